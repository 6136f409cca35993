//! Real directories, the real watch and real git, with a runtime in memory at the other end.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use evenkeel::backoff::Delays;
use evenkeel::controller::{Controller, Edge, Ended, Goal};
use evenkeel::desired::{Believing, Source};
use evenkeel::host::memory::{MemoryHost, process_of};
use evenkeel::host::{Ask, Host as _};
use evenkeel::image::Archives;
use evenkeel::manifest::{self as manifests, Content};
use evenkeel::observed::{Image, ImageConfig, ImagePlace};
use evenkeel::plan::{ImagePolicy, LogDefaults, Phase, Policy};
use evenkeel::rundir::RunDirectory;
use evenkeel::runtime::memory::MemoryRuntime;
use evenkeel::source::{self, Options, Watching};
use evenkeel::status::Status;
use evenkeel::workload::{Bytes, InstanceId, IpcDefaults, RestartPolicy};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::source::{UNHURRIED, git, manifest, place};

/// Nothing takes longer; a test that waits for it fails after it.
const DEADLINE: Duration = Duration::from_mins(1);

/// Short, so that absences act within a test.
const REMOVE_AFTER: Duration = Duration::from_millis(300);

/// A controller on a directory.
struct Rig {
    directory: tempfile::TempDir,
    root: PathBuf,
    runtime: MemoryRuntime,
    status: watch::Receiver<Option<Arc<Status>>>,
    controller: JoinHandle<Ended>,
    end: oneshot::Sender<()>,
    // The watch ends with it.
    _watching: Watching,
}

impl Rig {
    /// `root` is below `directory`, or a link that leads there.
    fn new(directory: tempfile::TempDir, root: &Path, remove_after: Duration) -> Self {
        let runtime = MemoryRuntime::default();
        for tag in ["1", "2", "3", "one", "two", "same"] {
            runtime.add_image(image(tag));
        }
        let processes = runtime.clone();
        let processes = Arc::new(move |pid| processes.process(pid).map(|it| process_of(&it.spec)));
        let run = directory.path().join("run");
        let host = MemoryHost::new(&run, processes).with_boot_clock();
        let boot_id = host.observe(&Ask::default()).unwrap().boot_id;
        let logs = directory.path().join("logs");
        let policy = Policy {
            ipc: IpcDefaults::default(),
            restart: RestartPolicy::Always,
            delays: Delays::default(),
            log: LogDefaults { max_size: Bytes::new(1 << 20).unwrap(), max_files: 2 },
            images: ImagePolicy::default(),
            prune_limit: 50,
            run_directory: run.clone(),
            log_directory: logs.clone(),
            cgroup_parent: "/evenkeel".to_owned(),
        };
        let watching = source::watch(Options {
            sources: vec![Source::new(Path::new("/"), root)],
            believing: Believing { remove_after, allow_empty: false },
            inotify: true,
        })
        .unwrap();
        let archives = Archives::new(Vec::new());
        let edge = Edge::new(
            runtime.clone(),
            Arc::new(host),
            RunDirectory::new(&run),
            archives,
            logs,
            boot_id,
        );
        let (report, status) = watch::channel(None);
        let (end, ended) = oneshot::channel::<()>();
        let (policy, followed) = watch::channel(Arc::new(policy));
        let controller = Controller {
            edge: Arc::new(edge),
            desired: watching.desired(),
            policy: followed,
            mounts_not_shared: None,
            identity: None,
            goal: Goal::Keep,
        };
        let controller = tokio::spawn(async move {
            let ended = controller.run(report, async move { drop(ended.await) }).await;
            drop(policy);
            ended
        });
        Self {
            directory,
            root: root.to_owned(),
            runtime,
            status,
            controller,
            end,
            _watching: watching,
        }
    }

    fn removals(&self) -> usize {
        RunDirectory::new(&self.directory.path().join("run")).removals().unwrap().len()
    }

    /// Waits until exactly these instances run and nothing is left to do; their pids.
    async fn until(&mut self, expected: &[InstanceId]) -> BTreeMap<String, u32> {
        let pids = |status: &Status| {
            let settled = |it: &evenkeel::status::Item| {
                let instance = it.instance.as_ref()?;
                let is_settled = it.phase == Phase::Running && it.up_to_date;
                Some((instance.id.clone(), instance.pid.filter(|_| is_settled)?))
            };
            let all: Option<BTreeMap<String, u32>> = status.items.iter().map(settled).collect();
            let wanted = |all: &BTreeMap<String, u32>| {
                all.len() == expected.len()
                    && expected.iter().all(|it| all.contains_key(it.as_str()))
            };
            all.filter(wanted)
        };
        let wait = async {
            loop {
                if let Some(pids) = self.status.borrow_and_update().as_deref().and_then(pids) {
                    return pids;
                }
                self.status.changed().await.unwrap();
            }
        };
        let ran = tokio::time::timeout(DEADLINE, wait).await;
        ran.unwrap_or_else(|_| {
            panic!("never ran: {expected:?}; the status is {:#?}", self.status.borrow())
        })
    }

    async fn end(self) {
        self.end.send(()).unwrap();
        assert_eq!(self.controller.await.unwrap(), Ended::Shutdown);
    }
}

fn image(tag: &str) -> Image {
    Image {
        name: format!("docker.io/library/busybox:{tag}"),
        digest: format!("sha256:{tag:0>64}"),
        config: ImageConfig { cmd: vec!["sh".to_owned()], ..ImageConfig::default() },
        place: ImagePlace::Store,
    }
}

/// The instance that a manifest means: its ID covers everything that makes a difference to its process.
fn instance(text: &str) -> InstanceId {
    let reading = manifests::read(Path::new("x.yaml"), text.as_bytes());
    let Content::Workload { name, workload: Some(workload), .. } = &reading.documents[0].content
    else {
        panic!("not a manifest: {text}")
    };
    let (_, tag) = workload.spec.image.as_str().rsplit_once(':').unwrap();
    InstanceId::new(name, &workload.revision(&image(tag).digest))
}

fn fresh() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("manifests");
    fs::create_dir(&root).unwrap();
    (directory, root)
}

#[tokio::test]
async fn a_file_that_is_renamed_into_place_becomes_an_instance_and_one_that_is_removed_goes() {
    let (directory, root) = fresh();
    for name in ["a", "b", "c"] {
        fs::write(root.join(format!("{name}.yaml")), manifest(name, "1")).unwrap();
    }
    let mut rig = Rig::new(directory, &root, REMOVE_AFTER);
    let [a, b, c, a2] =
        [("a", "1"), ("b", "1"), ("c", "1"), ("a", "2")].map(|it| instance(&manifest(it.0, it.1)));
    let before = rig.until(&[a, b.clone(), c.clone()]).await;
    place(&rig.root.join("a.yaml"), &manifest("a", "2"));
    let after = rig.until(&[a2.clone(), b.clone(), c.clone()]).await;
    assert_eq!(after[b.as_str()], before[b.as_str()]);
    fs::remove_file(rig.root.join("c.yaml")).unwrap();
    let last = rig.until(&[a2.clone(), b.clone()]).await;
    assert_eq!((last[a2.as_str()], last[b.as_str()]), (after[a2.as_str()], after[b.as_str()]));
    // Another file, other comments, the same meaning.
    fs::remove_file(rig.root.join("b.yaml")).unwrap();
    place(&rig.root.join("moved.yaml"), &format!("# The same.\n{}", manifest("b", "1")));
    place(&rig.root.join("a.yaml"), &manifest("a", "1"));
    let [a] = [instance(&manifest("a", "1"))];
    assert_eq!(rig.until(&[a, b.clone()]).await[b.as_str()], last[b.as_str()]);
    assert_eq!(rig.removals(), 1);
    rig.end().await;
}

#[tokio::test]
async fn a_swapped_configmap_replaces_what_it_changes() {
    let (directory, root) = fresh();
    let write = |version: &str, b: &str| {
        let data = root.join(format!("..{version}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("a.yaml"), manifest("a", version)).unwrap();
        fs::write(data.join("b.yaml"), manifest("b", b)).unwrap();
        symlink(format!("..{version}"), root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    write("1", "1");
    symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
    symlink("..data/b.yaml", root.join("b.yaml")).unwrap();
    let mut rig = Rig::new(directory, &root, REMOVE_AFTER);
    let [a, b, a2] = [("a", "1"), ("b", "1"), ("a", "2")].map(|it| instance(&manifest(it.0, it.1)));
    let before = rig.until(&[a.clone(), b.clone()]).await;
    write("2", "1");
    fs::remove_dir_all(rig.root.join("..1")).unwrap();
    let after = rig.until(&[a2, b.clone()]).await;
    assert_eq!(after[b.as_str()], before[b.as_str()]);
    assert_eq!(rig.removals(), 0);
    rig.end().await;
}

#[tokio::test]
async fn a_repointed_link_replaces_what_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let trees = directory.path().join("trees");
    for (tree, a) in [("first", "1"), ("second", "2")] {
        fs::create_dir_all(trees.join(tree)).unwrap();
        fs::write(trees.join(tree).join("a.yaml"), manifest("a", a)).unwrap();
        fs::write(trees.join(tree).join("b.yaml"), manifest("b", "1")).unwrap();
    }
    let root = directory.path().join("current");
    symlink("trees/first", &root).unwrap();
    let mut rig = Rig::new(directory, &root, REMOVE_AFTER);
    let [a, b, a2] = [("a", "1"), ("b", "1"), ("a", "2")].map(|it| instance(&manifest(it.0, it.1)));
    let before = rig.until(&[a.clone(), b.clone()]).await;
    for (tree, a) in [("second", &a2), ("first", &a)] {
        symlink(format!("trees/{tree}"), rig.root.with_file_name("new")).unwrap();
        fs::rename(rig.root.with_file_name("new"), &rig.root).unwrap();
        let after = rig.until(&[a.clone(), b.clone()]).await;
        assert_eq!(after[b.as_str()], before[b.as_str()]);
    }
    assert_eq!(rig.removals(), 0);
    rig.end().await;
}

/// A random number generator with a seed that a failed run names.
struct Random(u64);

impl Random {
    #[expect(clippy::print_stdout, reason = "the runner shows the seed of a failed test")]
    fn new() -> Self {
        let given = std::env::var("EVENKEEL_SEED").ok().and_then(|it| it.parse().ok());
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let seed = given.unwrap_or(u64::from(since.subsec_nanos()));
        println!("EVENKEEL_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_back_and_forth_replaces_what_it_changes_and_nothing_else() {
    const ALL: usize = 210;
    const CHANGED: usize = 200;
    const ROUNDS: usize = 20;
    let text = |n: usize, version: &str| {
        let tag = if n < CHANGED { version } else { "same" };
        let mut text = manifest(&format!("w{n}"), tag);
        // Most prefixes of this are valid manifests that say something else.
        text.push_str("  env:\n");
        for m in 0..20 {
            writeln!(text, "    - {{name: V{m}, value: \"{tag}\"}}").unwrap();
        }
        text
    };
    let instances = |version| (0..ALL).map(|n| instance(&text(n, version))).collect::<Vec<_>>();
    let (directory, root) = fresh();
    let write = |version: &str| {
        for n in 0..ALL {
            fs::write(root.join(format!("w{n}.yaml")), text(n, version)).unwrap();
        }
    };
    git(&root, &["init", "-q", "-b", "one"], None).await;
    write("one");
    git(&root, &["add", "."], None).await;
    git(&root, &["commit", "-q", "-m", "one"], None).await;
    git(&root, &["checkout", "-q", "-b", "two"], None).await;
    write("two");
    git(&root, &["commit", "-q", "-a", "-m", "two"], None).await;

    let mut rig = Rig::new(directory, &root, UNHURRIED);
    let mut random = Random::new();
    let (one, two) = (instances("one"), instances("two"));
    let first = rig.until(&two).await;
    let mut calls = rig.runtime.calls();
    for round in 0..ROUNDS {
        let (branch, expected) = if round % 2 == 0 { ("one", &one) } else { ("two", &two) };
        let delay = Duration::from_micros(500 + random.below(12_000));
        git(&rig.root, &["checkout", "-q", branch], Some(delay)).await;
        let pids = rig.until(expected).await;
        for same in &expected[CHANGED..] {
            assert_eq!(pids[same.as_str()], first[same.as_str()], "{same} was touched");
        }
        calls.extend(rig.runtime.calls());
    }

    let subjects = |verb: &str| {
        let mut subjects: BTreeMap<&str, usize> = BTreeMap::new();
        for subject in calls.iter().filter_map(|it| it.strip_prefix(verb)) {
            *subjects.entry(subject.trim()).or_default() += 1;
        }
        subjects
    };
    // No instance was ever made of anything but a whole file, and each as often as it had to be.
    let mut expected: BTreeMap<&str, usize> = BTreeMap::new();
    for id in &one[..CHANGED] {
        expected.insert(id.as_str(), ROUNDS / 2);
    }
    for id in &two[..CHANGED] {
        expected.insert(id.as_str(), ROUNDS / 2 + 1);
    }
    for id in &two[CHANGED..] {
        expected.insert(id.as_str(), 1);
    }
    assert_eq!(subjects("create container"), expected);
    assert_eq!(subjects("start task"), expected);
    // What was removed made room for what took its place.
    for id in &two[CHANGED..] {
        assert!(!subjects("remove container").contains_key(id.as_str()));
    }
    assert_eq!(rig.removals(), 0, "no absence was ever believed");
    rig.end().await;
}
