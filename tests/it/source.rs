//! Real directories, and what is published of them.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use evenkeel::desired::{Absence, Believing, BootTime, DesiredState, Origin, Source};
use evenkeel::source::{self, Options, Watching};
use evenkeel::workload::Name;
use tokio::sync::watch;

/// No event takes longer; a test that waits for one fails after it.
const DEADLINE: Duration = Duration::from_secs(20);

/// Short, so that absences act within a test.
const REMOVE_AFTER: Duration = Duration::from_millis(300);

fn now() -> BootTime {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    BootTime(Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap()))
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A manifest; the tag tells its versions apart.
pub(super) fn manifest(name: &str, tag: &str) -> String {
    format!(
        "apiVersion: evenkeel/v1\nkind: Container\nmetadata:\n  name: {name}\nspec:\n  image: docker.io/library/busybox:{tag}\n"
    )
}

/// Puts a file there as a careful writer does.
pub(super) fn place(path: &Path, text: &str) {
    let temporary = path.with_file_name(".placed");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, path).unwrap();
}

struct Rig {
    directory: tempfile::TempDir,
    source: Source,
    watching: Watching,
    desired: watch::Receiver<Option<Arc<DesiredState>>>,
}

/// What is there before the watch starts.
fn prepared(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("manifests");
    fs::create_dir(&root).unwrap();
    for (file, text) in files {
        fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        fs::write(root.join(file), text).unwrap();
    }
    (directory, root)
}

impl Rig {
    fn watch(directory: tempfile::TempDir, root: &Path, inotify: bool) -> Self {
        let source = Source::new(Path::new("/"), root);
        let believing = Believing { remove_after: REMOVE_AFTER, allow_empty: false };
        let watching =
            source::watch(Options { sources: vec![source.clone()], believing, inotify }).unwrap();
        let desired = watching.desired();
        Self { directory, source, watching, desired }
    }

    fn new(files: &[(&str, &str)]) -> Self {
        let (directory, root) = prepared(files);
        Self::watch(directory, &root, true)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.source.path().join(file)
    }

    /// Waits for a state of which `holds` is true.
    async fn until(
        &mut self,
        what: &str,
        holds: impl Fn(&DesiredState) -> bool,
    ) -> Arc<DesiredState> {
        let wait = async {
            loop {
                if let Some(state) = self.desired.borrow_and_update().as_ref()
                    && holds(state)
                {
                    return Arc::clone(state);
                }
                self.desired.changed().await.unwrap();
            }
        };
        let state = tokio::time::timeout(DEADLINE, wait).await.ok();
        state.unwrap_or_else(|| {
            panic!("never came: {what}; the last state was {:#?}", self.desired.borrow())
        })
    }

    async fn until_tags(&mut self, tags: &[(&str, &str)]) -> Arc<DesiredState> {
        self.until(&format!("{tags:?}"), |state| all_tags(state) == tags).await
    }

    async fn until_blocked(&mut self, code: &str) -> Arc<DesiredState> {
        self.until(code, |state| codes(state).contains(&code)).await
    }

    fn removal(&self, state: &DesiredState, workload: &str, file: &str) -> Absence {
        let origin = Origin { source: self.source.clone(), file: file.into(), document: 0 };
        state.removal(&name(workload), &origin, now())
    }
}

/// All wanted workloads with the tags of their images.
fn all_tags(state: &DesiredState) -> Vec<(&str, &str)> {
    let tag = |name| tag_of(state, name).unwrap_or("?");
    state.workloads.keys().map(|it| (it.as_str(), tag(it.as_str()))).collect()
}

fn tag_of<'a>(state: &'a DesiredState, workload: &str) -> Option<&'a str> {
    let wanted = state.workloads.get(&name(workload))?;
    wanted.workload.as_ref()?.spec.image.as_str().rsplit_once(':').map(|(_, tag)| tag)
}

fn codes(state: &DesiredState) -> Vec<&'static str> {
    state.sources.values().flat_map(|it| &it.blockers).map(|it| it.code).collect()
}

#[tokio::test]
async fn the_first_state_has_everything_that_was_there_at_the_start() {
    let (directory, root) =
        prepared(&[("a.yaml", &manifest("a", "1")), ("sub/b.yml", &manifest("b", "1"))]);
    let mut rig = Rig::watch(directory, &root, true);
    rig.desired.changed().await.unwrap();
    let first = rig.desired.borrow().clone().unwrap();
    assert_eq!(all_tags(&first), [("a", "1"), ("b", "1")]);
    assert!(codes(&first).is_empty());
}

#[tokio::test]
async fn a_file_that_is_renamed_into_place_counts_at_once() {
    let mut rig = Rig::new(&[("a.yaml", &manifest("a", "1"))]);
    rig.until_tags(&[("a", "1")]).await;
    place(&rig.path("b.yaml"), &manifest("b", "1"));
    rig.until_tags(&[("a", "1"), ("b", "1")]).await;
    place(&rig.path("a.yaml"), &manifest("a", "2"));
    rig.until_tags(&[("a", "2"), ("b", "1")]).await;
    fs::rename(rig.path("b.yaml"), rig.path("c.yaml")).unwrap();
    let state =
        rig.until("moved", |it| it.workloads[&name("b")].origin.file == Path::new("c.yaml")).await;
    assert_eq!(rig.removal(&state, "b", "b.yaml"), Absence::Never);
}

#[tokio::test]
async fn a_finished_file_does_not_wait_for_quiet() {
    let mut rig = Rig::new(&[("a.yaml", &manifest("a", "0"))]);
    rig.until_tags(&[("a", "0")]).await;
    let mut times = Vec::new();
    for round in 1..=20 {
        let tag = round.to_string();
        let begun = now();
        if round % 2 == 0 {
            place(&rig.path("a.yaml"), &manifest("a", &tag));
        } else {
            fs::write(rig.path("a.yaml"), manifest("a", &tag)).unwrap();
        }
        rig.until("the new tag", |it| tag_of(it, "a") == Some(&tag)).await;
        times.push(now().since(begun));
    }
    times.sort();
    // One that waited for quiet would take 50 ms each time; a busy machine may take longer than that for some.
    assert!(times[0] < Duration::from_millis(45), "{times:?}");
}

#[tokio::test]
async fn no_prefix_of_a_slowly_written_manifest_ever_acts() {
    use std::io::Write as _;
    for inotify in [true, false] {
        let (directory, root) = prepared(&[("old.yaml", &manifest("old", "1"))]);
        let mut rig = Rig::watch(directory, &root, inotify);
        rig.until_tags(&[("old", "1")]).await;
        let text = format!(
            "{}  args: [a, b]\n  command: [c]\n  readOnlyRootfs: true\n",
            manifest("new", "1")
        );
        let mut new = fs::File::create(rig.path("new.yaml")).unwrap();
        // In place, from the first byte on: what it said before counts until it is whole.
        let changed = text.replace("name: new", "name: old").replace(":1", ":2");
        let mut old = fs::File::create(rig.path("old.yaml")).unwrap();
        let step = if inotify { 7 } else { 90 };
        let mut written = 0;
        while written < text.len() {
            let to = (written + step).min(text.len());
            new.write_all(&text.as_bytes()[written..to]).unwrap();
            old.write_all(&changed.as_bytes()[written..to]).unwrap();
            written = to;
            // Once longer than any wait that is not for the writer.
            let pause =
                Duration::from_millis(if written > 100 && written < 110 { 1500 } else { 60 });
            let begun = now();
            let mut round = 0;
            while now().since(begun) < pause {
                // Something else that is seen makes a look sure to have been made.
                round += 1;
                let marker = format!("{written}-{round}");
                place(&rig.path("marker.yaml"), &manifest("marker", &marker));
                rig.watching.look();
                let state =
                    rig.until("the marker", |it| tag_of(it, "marker") == Some(&marker)).await;
                assert_eq!(tag_of(&state, "new"), None, "after {written} bytes");
                assert_eq!(tag_of(&state, "old"), Some("1"), "after {written} bytes");
                if round > 2 {
                    assert!(codes(&state).contains(&"file-unsettled"), "{:?}", codes(&state));
                }
            }
        }
        drop((new, old));
        let state = rig
            .until("both", |it| tag_of(it, "new").is_some() && tag_of(it, "old") == Some("2"))
            .await;
        let spec = &state.workloads[&name("new")].workload.as_ref().unwrap().spec;
        assert!(spec.read_only_rootfs, "the whole file counts");
        assert!(codes(&state).is_empty());
    }
}

#[tokio::test]
async fn a_finished_file_that_is_written_again_before_it_is_read_never_acts_by_half() {
    use std::fmt::Write as _;
    use std::io::Write as _;
    let text = |tag: u32| {
        let mut text = manifest("a", &tag.to_string());
        text.push_str("  env:\n");
        for n in 0..20 {
            writeln!(text, "    - {{name: V{n}, value: \"{tag}\"}}").unwrap();
        }
        text
    };
    let mut rig = Rig::new(&[("a.yaml", &text(0))]);
    rig.until("the first", |it| tag_of(it, "a") == Some("0")).await;
    let mut seen = rig.watching.desired();
    let observer = tokio::spawn(async move {
        let mut last = 0;
        while seen.changed().await.is_ok() {
            let state = seen.borrow_and_update().clone().unwrap();
            let Some(wanted) = state.workloads.get(&name("a")) else { continue };
            let spec = &wanted.workload.as_ref().expect("no half-written file counts").spec;
            assert_eq!(spec.env.len(), 20, "{spec:?}");
            last = spec.image.as_str().rsplit_once(':').unwrap().1.parse().unwrap();
        }
        last
    });
    for round in 0..30 {
        let (finished, next) = (2 * round + 1, 2 * round + 2);
        if round % 2 == 0 {
            place(&rig.path("a.yaml"), &text(finished));
        } else {
            fs::write(rig.path("a.yaml"), text(finished)).unwrap();
        }
        // From before the event was heard of to after the file was read.
        tokio::time::sleep(Duration::from_micros(u64::from(round) * 150)).await;
        let next = text(next);
        // Up to the end of a line, so that it is a valid manifest that says something else.
        let half = next.find("    - {name: V10").unwrap();
        let mut writer = fs::File::create(rig.path("a.yaml")).unwrap();
        writer.write_all(&next.as_bytes()[..half]).unwrap();
        let marker = round.to_string();
        place(&rig.path("marker.yaml"), &manifest("marker", &marker));
        rig.watching.look();
        rig.until("the marker", |it| tag_of(it, "marker") == Some(&marker)).await;
        writer.write_all(&next.as_bytes()[half..]).unwrap();
        drop(writer);
        let tag = (2 * round + 2).to_string();
        rig.until("the whole", |it| tag_of(it, "a") == Some(&tag)).await;
    }
    drop(rig);
    assert_eq!(observer.await.unwrap(), 60);
}

#[tokio::test]
async fn a_file_that_is_open_for_writing_at_the_start_counts_when_it_is_closed() {
    use std::io::Write as _;
    let (directory, root) = prepared(&[("a.yaml", &manifest("a", "1"))]);
    let mut half = fs::File::create(root.join("b.yaml")).unwrap();
    half.write_all(manifest("b", "1").as_bytes()).unwrap();
    let mut rig = Rig::watch(directory, &root, true);
    let state = rig.until_tags(&[("a", "1")]).await;
    assert_eq!(codes(&state), ["file-unsettled"]);
    assert!(matches!(
        rig.removal(&state, "gone", "gone.yaml"),
        Absence::Held { code: "file-unsettled", .. }
    ));
    half.write_all(b"  readOnlyRootfs: true\n").unwrap();
    drop(half);
    let state = rig.until_tags(&[("a", "1"), ("b", "1")]).await;
    assert!(state.workloads[&name("b")].workload.as_ref().unwrap().spec.read_only_rootfs);
}

#[tokio::test]
async fn a_file_that_is_written_under_another_name_does_not_count_until_it_is_closed() {
    let (directory, root) = prepared(&[("a.yaml", &manifest("a", "1"))]);
    let other = directory.path().join("other");
    fs::hard_link(root.join("a.yaml"), &other).unwrap();
    let mut writer = fs::File::options().append(true).open(&other).unwrap();
    let mut rig = Rig::watch(directory, &root, true);
    let state = rig.until_blocked("file-unsettled").await;
    assert!(all_tags(&state).is_empty(), "{state:?}");
    writer.write_all(format!("---\n{}", manifest("b", "1")).as_bytes()).unwrap();
    drop(writer);
    let state = rig.until_tags(&[("a", "1"), ("b", "1")]).await;
    assert!(codes(&state).is_empty());
}

#[tokio::test]
async fn a_configmap_is_read_through_its_hidden_directory() {
    let (directory, root) =
        prepared(&[("..1/a.yaml", &manifest("a", "1")), ("..1/b.yaml", &manifest("b", "1"))]);
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
    symlink("..data/b.yaml", root.join("b.yaml")).unwrap();
    let mut rig = Rig::watch(directory, &root, true);
    rig.until_tags(&[("a", "1"), ("b", "1")]).await;
    // As the kubelet does it.
    fs::create_dir(rig.path("..2")).unwrap();
    fs::write(rig.path("..2/a.yaml"), manifest("a", "2")).unwrap();
    fs::write(rig.path("..2/b.yaml"), manifest("b", "2")).unwrap();
    symlink("..2", rig.path("..data_tmp")).unwrap();
    fs::rename(rig.path("..data_tmp"), rig.path("..data")).unwrap();
    fs::remove_dir_all(rig.path("..1")).unwrap();
    rig.until_tags(&[("a", "2"), ("b", "2")]).await;
    // A later edit behind the links is seen too.
    place(&rig.path("..2/a.yaml"), &manifest("a", "3"));
    rig.until_tags(&[("a", "3"), ("b", "2")]).await;
}

#[tokio::test]
async fn a_root_that_is_a_symlink_is_followed_when_it_is_repointed() {
    let directory = tempfile::tempdir().unwrap();
    for revision in ["1", "2"] {
        let tree = directory.path().join("git").join(revision).join("deploy");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("a.yaml"), manifest("a", revision)).unwrap();
    }
    symlink("1", directory.path().join("git/current")).unwrap();
    symlink("git/current/deploy", directory.path().join("manifests")).unwrap();
    let root = directory.path().join("manifests");
    let mut rig = Rig::watch(directory, &root, true);
    let state = rig.until_tags(&[("a", "1")]).await;
    assert_eq!(
        state.workloads[&name("a")].origin.source.path(),
        root,
        "the root is as it was given"
    );
    let git = rig.directory.path().join("git");
    symlink("2", git.join("new")).unwrap();
    fs::rename(git.join("new"), git.join("current")).unwrap();
    rig.until_tags(&[("a", "2")]).await;
    place(&git.join("2/deploy/b.yaml"), &manifest("b", "1"));
    rig.until_tags(&[("a", "2"), ("b", "1")]).await;
}

#[tokio::test]
async fn a_directory_that_is_renamed_away_removes_nothing_and_its_successor_is_watched() {
    let mut rig = Rig::new(&[("a.yaml", &manifest("a", "1")), ("b.yaml", &manifest("b", "1"))]);
    rig.until_tags(&[("a", "1"), ("b", "1")]).await;
    let away = rig.directory.path().join("away");
    fs::rename(rig.source.path(), &away).unwrap();
    let state = rig.until_blocked("source-missing").await;
    assert!(state.workloads.is_empty());
    assert!(matches!(
        rig.removal(&state, "a", "a.yaml"),
        Absence::Held { code: "source-missing", .. }
    ));
    fs::create_dir(rig.source.path()).unwrap();
    let state = rig.until_blocked("source-emptied").await;
    assert!(matches!(
        rig.removal(&state, "a", "a.yaml"),
        Absence::Held { code: "source-emptied", .. }
    ));
    // The old one says nothing any more, the new one does.
    place(&away.join("old.yaml"), &manifest("old", "1"));
    place(&rig.path("a.yaml"), &manifest("a", "2"));
    let state = rig.until_tags(&[("a", "2")]).await;
    assert!(matches!(rig.removal(&state, "b", "b.yaml"), Absence::Pending { .. }));
    place(&rig.path("a.yaml"), &manifest("a", "3"));
    rig.until_tags(&[("a", "3")]).await;
}

#[tokio::test]
async fn a_directory_that_is_removed_and_made_again_is_watched() {
    let mut rig = Rig::new(&[("a.yaml", &manifest("a", "1"))]);
    rig.until_tags(&[("a", "1")]).await;
    for round in 2..5 {
        fs::remove_dir_all(rig.source.path()).unwrap();
        fs::create_dir(rig.source.path()).unwrap();
        let tag = round.to_string();
        fs::write(rig.path("a.yaml"), manifest("a", &tag)).unwrap();
        rig.until_tags(&[("a", &tag)]).await;
    }
}

#[tokio::test]
async fn a_root_that_does_not_exist_yet_is_found_when_it_comes() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("deep/manifests");
    let mut rig = Rig::watch(directory, &root, true);
    rig.until_blocked("source-missing").await;
    fs::create_dir_all(rig.source.path()).unwrap();
    place(&rig.path("a.yaml"), &manifest("a", "1"));
    rig.until_tags(&[("a", "1")]).await;
}

#[tokio::test]
async fn a_removed_file_acts_late_and_only_after_a_look_that_confirms_it() {
    let mut rig = Rig::new(&[("a.yaml", &manifest("a", "1")), ("b.yaml", &manifest("b", "1"))]);
    rig.until_tags(&[("a", "1"), ("b", "1")]).await;
    let removed = now();
    fs::remove_file(rig.path("b.yaml")).unwrap();
    let state = rig.until_tags(&[("a", "1")]).await;
    let Absence::Pending { until } = rig.removal(&state, "b", "b.yaml") else {
        panic!("not pending")
    };
    assert!(until.since(removed) >= REMOVE_AFTER);
    let path = rig.source.clone();
    let origin = Origin { source: path, file: "b.yaml".into(), document: 0 };
    let state =
        rig.until("confirmed", |it| it.removal(&name("b"), &origin, now()) == Absence::Acts).await;
    assert!(now() >= until);
    assert_eq!(state.removal(&name("b"), &origin, removed), Absence::Pending { until });
    let elsewhere =
        Origin { source: Source::new(Path::new("/"), Path::new("/elsewhere")), ..origin };
    assert_eq!(state.removal(&name("b"), &elsewhere, now()), Absence::Unclaimed);
}

#[tokio::test]
async fn a_name_that_moves_to_another_file_is_never_absent() {
    let both = format!("{}---\n{}", manifest("a", "1"), manifest("b", "1"));
    let mut rig = Rig::new(&[("x.yaml", &both)]);
    rig.until_tags(&[("a", "1"), ("b", "1")]).await;
    place(&rig.path("y.yaml"), &manifest("b", "1"));
    place(&rig.path("x.yaml"), &manifest("a", "1"));
    let state =
        rig.until("moved", |it| it.workloads[&name("b")].origin.file == Path::new("y.yaml")).await;
    assert_eq!(rig.removal(&state, "b", "x.yaml"), Absence::Never);
    assert!(state.sources[&rig.source].absent.is_empty());
}

/// Makes something that is no manifest.
type Make = fn(&Path);

#[tokio::test]
async fn what_is_no_readable_file_holds_everything_and_the_rest_goes_on() {
    let mut rig = Rig::new(&[("a.yaml", &manifest("a", "1"))]);
    rig.until_tags(&[("a", "1")]).await;
    let bad = rig.path("bad.yaml");
    let cases: [(&str, Make); 7] = [
        ("not-a-regular-file", |path| {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
        }),
        ("not-a-regular-file", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
        ("not-a-regular-file", |path| symlink("/dev/zero", path).unwrap()),
        ("dangling-symlink", |path| symlink("nowhere", path).unwrap()),
        ("symlink-loop", |path| symlink("bad.yaml", path).unwrap()),
        // A regular file that cannot be read by anybody from its start.
        ("file-unreadable", |path| symlink("/proc/self/mem", path).unwrap()),
        ("file-too-large", |path| fs::File::create(path).unwrap().set_len(1 << 30).unwrap()),
    ];
    for (round, (code, make)) in cases.into_iter().enumerate() {
        make(&bad);
        let state = rig.until_blocked(code).await;
        let hold = rig.removal(&state, "gone", "gone.yaml");
        assert!(matches!(&hold, Absence::Held { path, .. } if *path == bad), "{hold:?}");
        // Others are not kept waiting.
        let tag = (round + 2).to_string();
        place(&rig.path("a.yaml"), &manifest("a", &tag));
        rig.until_tags(&[("a", &tag)]).await;
        fs::remove_file(&bad).unwrap();
        rig.until("nothing in the way", |it| codes(it).is_empty()).await;
    }
}

#[tokio::test]
async fn what_a_link_led_to_is_kept_while_it_leads_nowhere_or_elsewhere() {
    let (directory, root) = prepared(&[("a.yaml", &manifest("a", "1"))]);
    let site = directory.path().join("site");
    fs::create_dir(&site).unwrap();
    for workload in ["b", "c"] {
        fs::write(site.join(format!("{workload}.yaml")), manifest(workload, "1")).unwrap();
    }
    // Its name looks like a file's.
    symlink(&site, root.join("site.d")).unwrap();
    symlink("nowhere", root.join("notes.txt")).unwrap();
    let mut rig = Rig::watch(directory, &root, true);
    rig.until_tags(&[("a", "1"), ("b", "1"), ("c", "1")]).await;
    let held_by = |rig: &Rig, state: &DesiredState, file| match rig.removal(state, "b", file) {
        Absence::Held { code, path, .. } => Some((code, path)),
        Absence::Acts | Absence::Pending { .. } | Absence::Never | Absence::Unclaimed => None,
    };
    let link = rig.path("site.d");
    let away = rig.directory.path().join("away");
    fs::rename(&site, &away).unwrap();
    place(&rig.path("a.yaml"), &manifest("a", "2"));
    let state = rig.until_tags(&[("a", "2")]).await;
    assert_eq!(held_by(&rig, &state, "site.d/b.yaml"), Some(("dangling-symlink", link.clone())));
    assert_eq!(held_by(&rig, &state, "b.yaml"), None);
    fs::rename(&away, &site).unwrap();
    place(&rig.path("a.yaml"), &manifest("a", "3"));
    rig.until_tags(&[("a", "3"), ("b", "1"), ("c", "1")]).await;
    // As where a mount was: a directory on another device, and empty.
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    symlink(elsewhere.path(), rig.path(".next")).unwrap();
    fs::rename(rig.path(".next"), &link).unwrap();
    let state = rig.until_tags(&[("a", "3")]).await;
    assert_eq!(held_by(&rig, &state, "site.d/b.yaml"), Some(("source-replaced", link.clone())));
    // Removed, which says enough.
    fs::remove_file(&link).unwrap();
    let file = "site.d/b.yaml";
    rig.until("the removal acts", |it| {
        it.removal(&name("b"), &origin_of(it, file), now()) == Absence::Acts
    })
    .await;
}

/// The origin of a file of the only source.
fn origin_of(state: &DesiredState, file: &str) -> Origin {
    let source = state.sources.keys().next().unwrap().clone();
    Origin { source, file: file.into(), document: 0 }
}

#[tokio::test]
async fn litter_and_hidden_directories_do_not_count_and_directories_in_a_circle_end() {
    let mut rig = Rig::new(&[
        ("a.yaml", &manifest("a", "1")),
        ("a.yaml~", &manifest("b", "1")),
        ("#a.yaml#", &manifest("c", "1")),
        (".a.yaml", &manifest("d", "1")),
        ("a.yaml.swp", &manifest("e", "1")),
        ("a.yaml.tmp", &manifest("f", "1")),
        (".git/g.yaml", &manifest("g", "1")),
        ("notes.txt", "hello"),
        ("sub/h.json", &manifest("h", "1")),
    ]);
    symlink("..", rig.path("sub/up")).unwrap();
    symlink("sub", rig.path("again")).unwrap();
    let state = rig.until_tags(&[("a", "1"), ("h", "1")]).await;
    assert_eq!(state.workloads[&name("h")].origin.file, Path::new("sub/h.json"));
    assert!(codes(&state).is_empty());
}

#[tokio::test]
async fn a_new_directory_is_read_and_watched_to_its_depth() {
    let mut rig = Rig::new(&[("a.yaml", &manifest("a", "1"))]);
    rig.until_tags(&[("a", "1")]).await;
    let beside = rig.directory.path().join("beside");
    fs::create_dir_all(beside.join("x/y")).unwrap();
    fs::write(beside.join("x/y/b.yaml"), manifest("b", "1")).unwrap();
    fs::rename(&beside, rig.path("sub")).unwrap();
    rig.until_tags(&[("a", "1"), ("b", "1")]).await;
    place(&rig.path("sub/x/y/b.yaml"), &manifest("b", "2"));
    rig.until_tags(&[("a", "1"), ("b", "2")]).await;
    fs::remove_dir_all(rig.path("sub")).unwrap();
    rig.until_tags(&[("a", "1")]).await;
}

#[tokio::test]
async fn what_the_ignore_file_names_is_left_out_from_the_first_state_on() {
    let (directory, root) = prepared(&[
        (".evenkeelignore", "# drafts\ndrafts/\n/b.yaml\n"),
        ("a.yaml", &manifest("a", "1")),
        ("b.yaml", &manifest("b", "1")),
        ("drafts/c.yaml", &manifest("c", "1")),
    ]);
    let mut rig = Rig::watch(directory, &root, true);
    rig.desired.changed().await.unwrap();
    assert_eq!(all_tags(rig.desired.borrow().as_ref().unwrap()), [("a", "1")]);
    // What cannot be understood leaves the last patterns in place, and holds.
    place(&rig.path(".evenkeelignore"), "!b.yaml\n");
    let state = rig.until_blocked("ignore-unreadable").await;
    assert_eq!(all_tags(&state), [("a", "1")]);
    place(&rig.path(".evenkeelignore"), "drafts/\n");
    rig.until_tags(&[("a", "1"), ("b", "1")]).await;
    // git takes it away for a moment: that must not start a draft.
    fs::remove_file(rig.path(".evenkeelignore")).unwrap();
    place(&rig.path("a.yaml"), &manifest("a", "2"));
    rig.until_tags(&[("a", "2"), ("b", "1")]).await;
    fs::write(rig.path(".evenkeelignore"), "drafts/\n/b.yaml").unwrap();
    rig.until_tags(&[("a", "2")]).await;
    fs::remove_file(rig.path(".evenkeelignore")).unwrap();
    rig.until_tags(&[("a", "2"), ("b", "1"), ("c", "1")]).await;
}

#[tokio::test]
async fn a_single_file_is_watched_and_removes_nothing() {
    let (directory, root) = prepared(&[("one.yaml", &manifest("a", "1"))]);
    let mut rig = Rig::watch(directory, &root.join("one.yaml"), true);
    rig.until_tags(&[("a", "1")]).await;
    place(&root.join("one.yaml"), &manifest("b", "1"));
    let state = rig.until_tags(&[("b", "1")]).await;
    assert_eq!(rig.removal(&state, "a", ""), Absence::Never);
    place(&root.join("two.yaml"), &manifest("c", "1"));
    fs::remove_file(root.join("one.yaml")).unwrap();
    let state = rig.until_blocked("source-missing").await;
    assert_eq!(rig.removal(&state, "a", ""), Absence::Never);
}

#[tokio::test]
async fn without_events_everything_is_seen_by_looking() {
    let (directory, root) = prepared(&[("a.yaml", &manifest("a", "1"))]);
    let mut rig = Rig::watch(directory, &root, false);
    rig.until_tags(&[("a", "1")]).await;
    place(&rig.path("b.yaml"), &manifest("b", "1"));
    fs::write(rig.path("a.yaml"), manifest("a", "2")).unwrap();
    rig.until_tags(&[("a", "2"), ("b", "1")]).await;
    fs::remove_file(rig.path("b.yaml")).unwrap();
    let state = rig.until_tags(&[("a", "2")]).await;
    assert!(matches!(rig.removal(&state, "b", "b.yaml"), Absence::Pending { .. }));
    let origin = Origin { source: rig.source.clone(), file: "b.yaml".into(), document: 0 };
    rig.until("confirmed", |it| it.removal(&name("b"), &origin, now()) == Absence::Acts).await;
}

#[tokio::test]
async fn nothing_is_published_while_nothing_happens() {
    let files: Vec<(String, String)> =
        (0..20).map(|n| (format!("{n}.yaml"), manifest(&format!("w{n}"), "1"))).collect();
    let files: Vec<(&str, &str)> =
        files.iter().map(|(file, text)| (file.as_str(), text.as_str())).collect();
    let mut rig = Rig::new(&files);
    let acts = rig.source.clone();
    rig.until("quiet", |it| {
        let source = &it.sources[&acts];
        it.workloads.len() == 20 && source.confirmed >= source.absence_acts_at
    })
    .await;
    rig.watching.look();
    let quiet = tokio::time::timeout(Duration::from_secs(3), rig.desired.changed()).await;
    assert!(quiet.is_err(), "something was published");
}

#[tokio::test]
async fn one_look_for_a_command_finds_what_is_settled_and_confirms_what_is_absent() {
    use std::io::Write as _;
    let (_directory, root) =
        prepared(&[("a.yaml", &manifest("a", "1")), ("sub/b.yaml", &manifest("b", "1"))]);
    let source = Source::new(Path::new("/"), &root);
    let begun = now();
    let state = source::read_once(vec![source.clone()], false).await;
    assert!(now().since(begun) >= Duration::from_millis(200), "two looks 200 ms apart");
    assert_eq!(all_tags(&state), [("a", "1"), ("b", "1")]);
    let origin = Origin { source: source.clone(), file: "c.yaml".into(), document: 0 };
    assert_eq!(state.removal(&name("c"), &origin, now()), Absence::Acts);

    let mut half = fs::File::create(root.join("c.yaml")).unwrap();
    half.write_all(manifest("c", "1").as_bytes()).unwrap();
    let state = source::read_once(vec![source.clone()], false).await;
    assert_eq!(all_tags(&state), [("a", "1"), ("b", "1")]);
    assert!(matches!(
        state.removal(&name("d"), &origin, now()),
        Absence::Held { code: "file-unsettled", .. }
    ));
    drop(half);

    let writer = {
        let root = root.clone();
        tokio::spawn(async move {
            for round in 0_u32.. {
                place(&root.join("busy.yaml"), &manifest("busy", &round.to_string()));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let state = source::read_once(vec![source], false).await;
    writer.abort();
    assert!(
        !matches!(state.removal(&name("d"), &origin, now()), Absence::Acts),
        "it never became quiet"
    );
}

#[tokio::test]
async fn validation_reads_what_is_there_now_and_shows_paths_as_given() {
    let (directory, root) = prepared(&[
        ("a.yaml", &manifest("a", "1")),
        ("broken.yaml", "apiVersion: evenkeel/v1\nkind: Container\nmetadata: {}\n"),
        ("drafts/x.yaml", "{"),
        (".evenkeelignore", "drafts/"),
    ]);
    symlink("nowhere", root.join("dangling.yaml")).unwrap();
    let current = directory.path();
    let found = source::scan_for_validation(
        current,
        &[root.clone(), root.join("a.yaml"), root.join("none.yaml")],
    );
    assert_eq!((found.files, found.documents), (4, 2));
    let has = |code: &str, file: &Path| {
        assert!(
            found.problems.iter().any(|it| it.code == code && it.position.file == file),
            "{code} {found:#?}"
        );
    };
    has("dangling-symlink", &root.join("dangling.yaml"));
    has("source-missing", &root.join("none.yaml"));
    assert!(!found.problems.iter().any(|it| it.position.file.starts_with(root.join("drafts"))));
}

/// How long a source has to be quiet before an absence acts, where git is stopped in the middle of its work: however
/// long a busy machine takes to let it go on.
pub(super) const UNHURRIED: Duration = Duration::from_secs(30);

/// Runs git and stops it for 150 ms at some point, as a busy machine does.
pub(super) async fn git(root: &Path, arguments: &[&str], stop_after: Option<Duration>) {
    let mut git = tokio::process::Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.auto=0"])
        .args(arguments)
        .current_dir(root)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    if let Some(delay) = stop_after {
        tokio::time::sleep(delay).await;
        let signal = |signal| {
            let pid =
                git.id().and_then(|it| rustix::process::Pid::from_raw(it.try_into().unwrap()));
            pid.map(|pid| rustix::process::kill_process(pid, signal))
        };
        signal(rustix::process::Signal::STOP);
        tokio::time::sleep(Duration::from_millis(150)).await;
        signal(rustix::process::Signal::CONT);
    }
    assert!(git.wait().await.unwrap().success(), "git {arguments:?}");
}

#[tokio::test]
async fn a_checkout_back_and_forth_removes_no_name_and_shows_no_half_written_file() {
    use std::fmt::Write as _;
    const ALL: usize = 210;
    const CHANGED: usize = 200;
    let (directory, root) = prepared(&[]);
    let write = |version: &str| {
        for n in 0..ALL {
            let tag = if n < CHANGED { version } else { "same" };
            let mut text = manifest(&format!("w{n}"), tag);
            // Most prefixes of this are valid manifests that say something else.
            text.push_str("  env:\n");
            for m in 0..20 {
                writeln!(text, "    - {{name: V{m}, value: \"{tag}\"}}").unwrap();
            }
            fs::write(root.join(format!("w{n}.yaml")), text).unwrap();
        }
    };
    git(&root, &["init", "-q", "-b", "one"], None).await;
    write("one");
    git(&root, &["add", "."], None).await;
    git(&root, &["commit", "-q", "-m", "one"], None).await;
    git(&root, &["checkout", "-q", "-b", "two"], None).await;
    write("two");
    git(&root, &["commit", "-q", "-a", "-m", "two"], None).await;

    let mut rig = Rig::watch(directory, &root, true);
    rig.watching.believe(Believing { remove_after: UNHURRIED, ..Believing::default() });
    let whole = |state: &DesiredState, tag: &str| {
        (0..ALL).all(|n| {
            tag_of(state, &format!("w{n}")) == Some(if n < CHANGED { tag } else { "same" })
        })
    };
    rig.until("the second commit", |it| whole(it, "two")).await;

    let mut seen = rig.watching.desired();
    let source = rig.source.clone();
    let observer = tokio::spawn(async move {
        let mut states = 0;
        while seen.changed().await.is_ok() {
            let state = seen.borrow_and_update().clone().unwrap();
            states += 1;
            for n in 0..ALL {
                let workload = format!("w{n}");
                let origin = Origin {
                    source: source.clone(),
                    file: format!("{workload}.yaml").into(),
                    document: 0,
                };
                let removal = state.removal(&name(&workload), &origin, now());
                assert_ne!(removal, Absence::Acts, "{workload}");
                let Some(wanted) = state.workloads.get(&name(&workload)) else { continue };
                let spec = &wanted.workload.as_ref().expect("no half-written file counts").spec;
                let tag = spec.image.as_str().rsplit_once(':').unwrap().1;
                assert_eq!(spec.env.len(), 20, "{workload}");
                let expected: &[&str] = if n < CHANGED { &["one", "two"] } else { &["same"] };
                assert!(expected.contains(&tag), "{workload} {tag}");
            }
        }
        states
    });
    let mut random = 12345_u64;
    for round in 0..20 {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let branch = if round % 2 == 0 { "one" } else { "two" };
        let delay = Duration::from_micros(500 + (random >> 33) % 12_000);
        git(&root, &["checkout", "-q", branch], Some(delay)).await;
        rig.until(branch, |it| whole(it, branch)).await;
    }
    drop(rig);
    let states = observer.await.unwrap();
    assert!(states >= 20);
}
