//! The program is killed after each single effect, and the next run sets right what it left.
//!
//! Each try has directories and a containerd namespace of its own, so that many can run at once on one containerd.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{Kind, ListSnapshotsRequest};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{ListContainersRequest, ListRequest, ListTasksRequest};
use evenkeel::config::cgroup_parent;

use crate::program::{Site, eventually, manifest, sleeper};
use crate::rig::{Rig, sweep};

/// Most of the time of a try is spent waiting: for the second that a workload has to run before it is believed.
const AT_ONCE: usize = 6;

/// Far more effects than any of these commands has.
const MOST: usize = 60;

/// What is done before the command that is killed, and what it is to do.
struct Walk {
    name: &'static str,
    /// Manifests that are applied before.
    before: Vec<(&'static str, String)>,
    /// Manifests from then on; those that are only in `before` are removed.
    after: Vec<(&'static str, String)>,
    command: &'static str,
    /// For what the command is, else `apply` sets right what a killed one left.
    of: Option<&'static str>,
    /// At least so many effects, so that none is lost unnoticed.
    effects: usize,
}

fn walks() -> Vec<Walk> {
    let private = || ("a", sleeper("a"));
    let donor = || ("donor", sleeper("donor") + "  ipcMode: shareable\n");
    let joiner = || ("joiner", sleeper("joiner") + "  ipcMode: container:donor\n");
    let once = || ("joiner", joiner().1 + "  restart: {policy: never}\n");
    let other = |(name, text): (&'static str, String)| {
        (name, text + "  env: [{name: OTHER, value: \"1\"}]\n")
    };
    let job = || ("job", manifest("job", "command: [\"true\"]\nrestart: {policy: never}"));
    let walk = |name, before, after, effects| Walk {
        name,
        before,
        after,
        command: "apply",
        of: None,
        effects,
    };
    let by_hand = |name, command, effects| {
        let all = || vec![donor(), joiner()];
        Walk { command, of: Some("donor"), ..walk(name, all(), all(), effects) }
    };
    vec![
        walk("start", vec![], vec![private()], 9),
        walk("start-shared", vec![], vec![donor(), joiner()], 19),
        walk("replace", vec![private()], vec![other(private())], 15),
        // It runs once, and that is not over with the run that was ended so that it follows its donor.
        walk("replace-donor", vec![donor(), once()], vec![other(donor()), once()], 27),
        walk("replace-job", vec![job()], vec![other(job())], 15),
        walk("remove", vec![private(), donor()], vec![private()], 8),
        Walk {
            command: "down",
            ..walk("down", vec![donor(), joiner()], vec![donor(), joiner()], 14)
        },
        by_hand("stop-by-hand", "stop", 4),
        by_hand("restart-by-hand", "restart", 10),
        by_hand("renew-by-hand", "restart --fresh", 15),
    ]
}

impl Walk {
    fn words(&self) -> Vec<&'static str> {
        self.command.split(' ').chain(self.of).collect()
    }

    /// One try: the `n`-th effect is the last one, or none is without `n`. Whether the command came to its end, and
    /// what there is after the next one.
    fn run(&self, rig: &Rig, aborting: &Path, n: Option<usize>) -> (bool, Vec<String>) {
        let name = n.map_or_else(|| self.name.to_owned(), |n| format!("{}-{n}", self.name));
        let site = Site::beside(rig, &name);
        site.configure("removeAfter: 200ms\npruneLimit: 100\n");
        if !self.before.is_empty() {
            self.before.iter().for_each(|(file, text)| site.write(&format!("{file}.yaml"), text));
            site.apply();
        }
        for (file, _) in &self.before {
            if !self.after.iter().any(|it| it.0 == *file) {
                site.remove(&format!("{file}.yaml"));
            }
        }
        self.after.iter().for_each(|(file, text)| site.write(&format!("{file}.yaml"), text));

        let mut ended = true;
        if let Some(n) = n {
            let killed =
                site.clone().with_program(aborting).with("EVENKEEL_ABORT_AFTER", n.to_string());
            let done = killed.run(&self.words());
            ended = done.code.is_some();
            if ended {
                done.exits(0);
            }
        }
        // What a person asked for is done by whoever comes next.
        if self.of.is_none() || n.is_none() {
            site.run(&self.words()).exits(0);
        }
        if self.of.is_some() {
            site.apply();
        }
        if self.command != "down" {
            site.plan_is_empty();
        }
        let found = inventory(rig, &site);
        // What is there after it can be removed, all of it.
        site.run(&["down"]).exits(0);
        let left = left_after_down(rig, &site);
        assert_eq!(left, Vec::<String>::new(), "{name}: left after down");
        (ended, found)
    }
}

/// Everything of a site on this machine, in words that are the same for equal sites.
pub(crate) fn inventory(rig: &Rig, site: &Site) -> Vec<String> {
    // Shims and logs end a moment after their containers.
    let mut before = processes(site);
    let mut found = eventually("the same processes twice", || {
        let now = processes(site);
        let is_same = now == before;
        before = now;
        is_same.then(|| before.clone())
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    found.extend(runtime.block_on(objects(rig, site.namespace())));

    let bundles = format!("/{}/", site.namespace());
    for mount in sweep::mounts_below(site.dir().parent().unwrap().parent().unwrap()) {
        if let Ok(below) = mount.strip_prefix(site.dir()) {
            found.push(format!("mount: {}", below.display()));
        } else if let Some((_, id)) = mount.to_str().unwrap().split_once(&bundles) {
            found.push(format!("mount of a task: {id}"));
        }
    }

    let cgroup = cgroup_parent(&site.run_dir());
    for root in sweep::cgroup_roots() {
        let own = root.join(cgroup.trim_start_matches('/'));
        for directory in directories(&own) {
            let id = directory.strip_prefix(&own).unwrap().display().to_string();
            found.push(format!("cgroup: {} {id}", root.display()));
        }
    }

    for directory in [site.run_dir(), site.state_dir()] {
        for path in files(&directory) {
            let below = path.strip_prefix(site.dir()).unwrap().display().to_string();
            // Made when first needed, and kept.
            let known = ["run/strikes", "run/approvals", "run/holds", "run/hands"];
            let known = known.contains(&below.as_str());
            if !known && below != "run/status.json" && below != "lib/engine.json" {
                found.push(format!("file: {}", below.replace(site.namespace(), "NAMESPACE")));
            }
        }
    }
    found.sort();
    found
}

/// What is there of a site beside the files that it is made of.
pub(crate) fn left_after_down(rig: &Rig, site: &Site) -> Vec<String> {
    let nothing: BTreeSet<&str> = [
        "file: lib",
        "file: lib/images",
        "file: lib/images/busybox.tar",
        "file: lib/owner",
        "file: run",
        "file: run/lock",
    ]
    .into();
    let mut left = inventory(rig, site);
    left.retain(|it| !nothing.contains(it.as_str()));
    left
}

/// The processes of a site: shims, logs, and what is in its cgroups.
fn processes(site: &Site) -> Vec<String> {
    let cgroup = cgroup_parent(&site.run_dir());
    let own = format!("{}/", site.dir().display());
    let mut found = Vec::new();
    for process in sweep::processes() {
        let words = &process.arguments;
        let is_shim = words.windows(2).any(|it| it[0] == "-namespace" && it[1] == site.namespace());
        if is_shim {
            found.push(format!("shim: {}", after(words, "-id")));
        } else if is_in(process.pid, &cgroup) {
            found.push(format!("process: {}", words.join(" ")));
        } else if let Some(log) = words.iter().find_map(|it| it.split_once(&own)) {
            found.push(format!("process with: {}", log.1));
        }
    }
    found.sort();
    found
}

/// What containerd has in a namespace, but for images and what belongs to them.
async fn objects(rig: &Rig, namespace: &str) -> Vec<String> {
    fn request<T>(namespace: &str, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("containerd-namespace", namespace.parse().unwrap());
        request
    }
    let channel = rig.channel();
    let mut found = Vec::new();
    let list = request(namespace, ListContainersRequest::default());
    let containers = ContainersClient::new(channel.clone()).list(list).await.unwrap().into_inner();
    found.extend(containers.containers.iter().map(|it| format!("container: {}", it.id)));
    let list = request(namespace, ListTasksRequest::default());
    let tasks = TasksClient::new(channel.clone()).list(list).await.unwrap().into_inner().tasks;
    found.extend(tasks.iter().map(|it| format!("task: {} {:?}", it.id, it.status())));
    let list = request(namespace, ListRequest::default());
    let leases = LeasesClient::new(channel.clone()).list(list).await.unwrap().into_inner().leases;
    found.extend(leases.iter().map(|it| format!("lease: {}", it.id)));
    let list = ListSnapshotsRequest { snapshotter: Rig::snapshotter(), ..Default::default() };
    let mut client = SnapshotsClient::new(channel);
    let mut snapshots = client.list(request(namespace, list)).await.unwrap().into_inner();
    while let Some(message) = snapshots.message().await.unwrap() {
        let active = message.info.iter().filter(|it| it.kind() != Kind::Committed);
        found.extend(active.map(|it| format!("snapshot: {} {:?}", it.name, it.kind())));
    }
    found
}

fn after(words: &[String], flag: &str) -> String {
    words.iter().skip_while(|it| *it != flag).nth(1).cloned().unwrap_or_default()
}

fn is_in(pid: u32, cgroup: &str) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().any(|it| it.ends_with(cgroup) || it.contains(&format!(":{cgroup}/")))
}

/// The directory and all directories below it, without following links.
fn directories(directory: &Path) -> Vec<PathBuf> {
    files(directory).into_iter().filter(|it| it.is_dir() && !it.is_symlink()).collect()
}

/// The directory and all that is below it, without following links or entering mounts.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut queue = vec![directory.to_owned()];
    while let Some(path) = queue.pop() {
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() && !path.ends_with("shm") {
            queue.extend(
                std::fs::read_dir(&path).into_iter().flatten().flatten().map(|it| it.path()),
            );
        }
        found.push(path);
    }
    found
}

/// The program, built so that it can be told to abort; beside the usual one, and from the same parts.
pub(crate) fn aborting_program() -> PathBuf {
    if cfg!(feature = "abort-after-effect") {
        return PathBuf::from(env!("CARGO_BIN_EXE_evenkeel"));
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let own = target.join("abort-after-effect");
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo
        .args([
            "build",
            "--quiet",
            "--bin",
            "evenkeel",
            "--features",
            "abort-after-effect",
            "--manifest-path",
        ])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .arg("--target-dir")
        .arg(&own)
        .env("CARGO_BUILD_BUILD_DIR", target.parent().unwrap());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    own.join("debug/evenkeel")
}

#[tokio::test]
async fn a_crash_after_any_effect_is_set_right_by_the_next_run() {
    let aborting = aborting_program();
    let rig = Rig::start().await;
    let walks = walks();
    let references: Vec<Vec<String>> = {
        let found: Vec<Mutex<Vec<String>>> = walks.iter().map(|_| Mutex::default()).collect();
        std::thread::scope(|scope| {
            for (walk, found) in walks.iter().zip(&found) {
                let (rig, aborting) = (&rig, &aborting);
                scope.spawn(move || *found.lock().unwrap() = walk.run(rig, aborting, None).1);
            }
        });
        found.into_iter().map(|it| it.into_inner().unwrap()).collect()
    };
    // Tries of all walks, those with few effects first; a walk is over with the first that comes to its end.
    let over: Vec<(AtomicBool, AtomicUsize)> =
        walks.iter().map(|_| (AtomicBool::new(false), AtomicUsize::new(0))).collect();
    let next = AtomicUsize::new(0);
    let problems = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::SeqCst);
                    let (n, index) = (at / walks.len() + 1, at % walks.len());
                    if n > MOST {
                        return;
                    }
                    let (is_over, effects) = &over[index];
                    if is_over.load(Ordering::SeqCst) {
                        continue;
                    }
                    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        walks[index].run(&rig, &aborting, Some(n))
                    }));
                    let name = walks[index].name;
                    let mut problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
                    match tried {
                        Ok((ended, found)) => {
                            if found != references[index] {
                                problems.push(format!(
                                    "{name} after {n}: {}",
                                    difference(&references[index], &found)
                                ));
                            }
                            if ended {
                                is_over.store(true, Ordering::SeqCst);
                            } else {
                                effects.fetch_max(n, Ordering::SeqCst);
                            }
                        }
                        Err(_) => problems.push(format!("{name} after {n}: see above")),
                    }
                }
            });
        }
    });
    assert_eq!(problems.into_inner().unwrap(), Vec::<String>::new());
    for (walk, (is_over, _)) in walks.iter().zip(&over) {
        assert!(is_over.load(Ordering::SeqCst), "{} does not come to its end", walk.name);
    }
    // What is passed without a crash has not been walked.
    let passed: Vec<_> =
        walks.iter().zip(over).map(|(walk, it)| (walk.name, it.1.into_inner())).collect();
    let expected: Vec<_> = walks.iter().map(|it| (it.name, it.effects)).collect();
    assert!(passed.iter().zip(&expected).all(|(it, least)| it.1 >= least.1), "{passed:?}");
    rig.assert_clean();
}

pub(crate) fn difference(wanted: &[String], found: &[String]) -> String {
    let missing = wanted.iter().filter(|it| !found.contains(it)).map(|it| format!("- {it}"));
    let more = found.iter().filter(|it| !wanted.contains(it)).map(|it| format!("+ {it}"));
    missing.chain(more).collect::<Vec<_>>().join("\n")
}
