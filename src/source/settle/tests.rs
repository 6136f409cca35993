use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;

use super::super::writers::writers;
use super::*;

/// A tracker of a real directory under an artificial clock.
struct Bench {
    _directory: tempfile::TempDir,
    beside: tempfile::TempDir,
    root: PathBuf,
    tracker: Tracker,
    watches: Watches,
    ask: Ask,
    now: BootTime,
}

/// Nobody writes.
const NO_WRITERS: Ask = |_| Writers::default();

/// It cannot be known who writes.
const UNKNOWN_WRITERS: Ask =
    |files| Writers { unknown: files.keys().copied().collect(), ..Writers::default() };

const WEB: &str = "apiVersion: evenkeel/v1\nkind: Container\nmetadata:\n  name: web\nspec:\n  image: docker.io/library/busybox:1\n";

impl Bench {
    fn new(inotify: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        let source = Source::new(Path::new("/"), &root);
        let tracker = Tracker::new(source, 0);
        Self {
            _directory: directory,
            beside: tempfile::tempdir().unwrap(),
            root,
            tracker,
            watches: if inotify { Watches::new(|| {}) } else { Watches::default() },
            // Where the file system of the tests has no leases, other processes may be closed to us.
            ask: |files| Writers { unknown: BTreeSet::new(), ..writers(files) },
            now: BootTime(Duration::from_secs(1000)),
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    fn after(&mut self, millis: u64) -> &mut Self {
        self.now = self.now + Duration::from_millis(millis);
        self
    }

    /// Takes all events of what happened until now.
    fn drain(&mut self) -> Stir {
        self.watches.catch_up(self.beside.path());
        self.watches.drain(self.now)
    }

    fn begin(&mut self, forget: bool) -> Begun {
        self.tracker.begin(&mut self.watches, self.now, forget)
    }

    fn end(&mut self, begun: Begun, mut stir: Stir) -> Result<Scan, Repeat> {
        let looks = vec![(&mut self.tracker, begun)];
        super::end(looks, &mut self.watches, &mut stir, self.ask, self.now).remove(0)
    }

    /// One look, with `meanwhile` between the reading and the decision.
    fn look_while(&mut self, forget: bool, meanwhile: impl FnOnce(&Path)) -> Scan {
        self.drain();
        self.watches.begin();
        let begun = self.begin(forget);
        self.watches.end(begun.keys().collect());
        meanwhile(&self.root);
        let stir = self.drain();
        self.end(begun, stir).unwrap()
    }

    fn look(&mut self) -> Scan {
        self.look_while(false, |_| {})
    }
}

/// Whether the one file counts, and with how many documents.
fn documents(scan: &Scan) -> Option<usize> {
    match scan.files.values().next().unwrap() {
        FileState::Settled(reading) => Some(reading.documents.len()),
        FileState::Unsettled => None,
    }
}

#[test]
fn a_file_that_is_closed_after_its_last_write_counts_at_once() {
    let mut bench = Bench::new(true);
    bench.look();
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    assert_eq!(documents(&bench.look()), Some(1));
    assert_eq!(bench.tracker.due(bench.now), None);
}

#[test]
fn without_an_event_two_reads_must_agree_a_quiet_time_apart() {
    for inotify in [true, false] {
        let mut bench = Bench::new(inotify);
        fs::write(bench.path("web.yaml"), WEB).unwrap();
        assert_eq!(documents(&bench.look()), None);
        assert_eq!(bench.tracker.due(bench.now), Some(bench.now + QUIET));
        assert_eq!(documents(&bench.after(20).look()), None);
        if !inotify {
            // Another content starts the time anew.
            fs::write(bench.path("web.yaml"), format!("{WEB}---\n{WEB}")).unwrap();
            assert_eq!(documents(&bench.after(10).look()), None);
        }
        assert_eq!(documents(&bench.after(25).look()), Some(if inotify { 1 } else { 2 }));
        assert_eq!(bench.tracker.due(bench.now), None);
    }
}

#[test]
fn where_writers_cannot_be_known_two_reads_must_agree_a_second_apart() {
    let mut bench = Bench::new(true);
    bench.ask = UNKNOWN_WRITERS;
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    bench.look();
    assert_eq!(documents(&bench.after(950).look()), None);
    assert_eq!(documents(&bench.after(50).look()), Some(1));
    // One that was seen to be written is settled by its close alone.
    let file = fs::File::create(bench.path("web.yaml")).unwrap();
    for _ in 0..10 {
        assert_eq!(documents(&bench.after(5_000).look()), Some(1));
    }
    drop(file);
    let empty = bench.look();
    assert!(
        matches!(&empty.files[Path::new("web.yaml")], FileState::Settled(it) if it.unreadable.is_some())
    );
}

#[test]
fn a_content_of_old_counts_at_the_first_look_unless_somebody_has_it_open() {
    // A file that nobody has written for long, on a local file system.
    let program = fs::canonicalize("/proc/self/exe").unwrap();
    let mut bench = Bench::new(true);
    let read = |ask: Ask, bench: &mut Bench| {
        bench.tracker = Tracker::new(bench.tracker.source.clone(), 0);
        let signature = Signature::of(&fs::metadata(&program).unwrap());
        let key = Key { directory: signature.id, name: "x".into() };
        let content = Content {
            signature,
            bytes: WEB.into(),
            too_large: false,
            torn: false,
            local: true,
            age: AGED,
        };
        let place =
            Place { path: program.clone(), signature, many_names: false, key: Some(key.clone()) };
        let file = Which::Manifest("web.yaml".into());
        let read = Read { file, key: Some(key), mark: None, place, content, digest: [0; 32] };
        bench.ask = ask;
        let found = Walk {
            root: Path::new("/nowhere"),
            source: 0,
            ignore: &Ignore::default(),
            watches: &mut Watches::default(),
        };
        let begun = Begun { found: found.run(), reads: vec![read], at: bench.now, changed: false };
        bench.end(begun, Stir::default()).unwrap();
        bench.tracker.files[Path::new("web.yaml")].settled.is_some()
    };
    assert!(read(UNKNOWN_WRITERS, &mut bench));
    assert!(read(NO_WRITERS, &mut bench));
    assert!(!read(
        |files| Writers { open: files.keys().copied().collect(), ..Writers::default() },
        &mut bench
    ));
}

#[test]
fn a_write_that_comes_after_the_reading_is_not_taken_for_finished() {
    let mut bench = Bench::new(true);
    bench.look();
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    let mut again = None;
    let scan = bench.look_while(false, |root| {
        let mut file = fs::OpenOptions::new().append(true).open(root.join("web.yaml")).unwrap();
        file.write_all(b"---\n").unwrap();
        again = Some(file);
    });
    assert_eq!(documents(&scan), None);
    assert_eq!(documents(&bench.after(500).look()), None);
    again.take().unwrap().write_all(WEB.as_bytes()).unwrap();
    assert_eq!(documents(&bench.look()), Some(2));
}

#[test]
fn a_file_that_stays_open_for_writing_never_counts_and_is_asked_about_ever_more_rarely() {
    let mut bench = Bench::new(true);
    bench.look();
    let mut file = fs::File::create(bench.path("web.yaml")).unwrap();
    file.write_all(WEB.as_bytes()).unwrap();
    let mut looks = 0;
    let begun = bench.now;
    while bench.now.since(begun) < Duration::from_mins(10) {
        assert_eq!(documents(&bench.look()), None);
        looks += 1;
        bench.now = bench.tracker.due(bench.now).unwrap().max(bench.now + Duration::from_millis(1));
    }
    assert!(looks < 40, "{looks}");
    drop(file);
    assert_eq!(documents(&bench.look()), Some(1));
}

#[test]
fn what_is_rewritten_counts_as_it_was_until_it_is_whole() {
    let mut bench = Bench::new(true);
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    bench.look();
    assert_eq!(documents(&bench.after(50).look()), Some(1));
    let mut file = fs::File::create(bench.path("web.yaml")).unwrap();
    assert_eq!(documents(&bench.look()), Some(1));
    file.write_all(format!("{WEB}---\n{WEB}").as_bytes()).unwrap();
    assert_eq!(documents(&bench.after(5_000).look()), Some(1));
    assert_eq!(documents(&bench.after(5_000).look()), Some(1));
    drop(file);
    assert_eq!(documents(&bench.look()), Some(2));
}

#[test]
fn a_slow_look_counts_from_the_side_that_waits_longer() {
    let mut bench = Bench::new(false);
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    bench.ask = UNKNOWN_WRITERS;
    bench.look();
    // The second read was made early in a look that took two seconds.
    let begun = bench.after(100).now;
    let look = bench.begin(false);
    bench.after(2_000);
    let scan = bench.end(look, Stir::default()).unwrap();
    assert_eq!(documents(&scan), None);
    assert_eq!(scan.at, begun);
    fs::remove_file(bench.path("web.yaml")).unwrap();
    let begun = bench.after(100).now;
    let look = bench.begin(false);
    let ended = bench.after(2_000).now;
    let scan = bench.end(look, Stir::default()).unwrap();
    assert_eq!((scan.at, scan.last_change), (begun, ended));
}

#[test]
fn after_lost_events_every_file_is_read_again_and_a_new_content_needs_two_reads() {
    let mut bench = Bench::new(true);
    bench.look();
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    assert_eq!(documents(&bench.look()), Some(1));
    fs::write(bench.path("web.yaml"), format!("{WEB}---\n{WEB}")).unwrap();
    // More events than the queue holds.
    let names = [bench.path("x"), bench.path("y")];
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    for round in 0..limit.trim().parse::<usize>().unwrap() {
        let [from, to] = [&names[round % 2], &names[(round + 1) % 2]];
        if round == 0 {
            fs::write(from, "").unwrap();
        }
        fs::rename(from, to).unwrap();
    }
    let stir = bench.drain();
    assert!(stir.lost && stir.any && stir.sources.contains(&0));
    assert_eq!(documents(&bench.look_while(true, |_| {})), Some(1));
    assert_eq!(documents(&bench.after(50).look()), Some(2));
    // One whose looks are the same may have changed within one tick of the clock that its change time is read from.
    bench.watches.begin();
    assert_eq!(bench.begin(true).reads.len(), 1);
}

#[test]
fn patterns_that_are_gone_count_until_the_source_was_quiet() {
    let mut bench = Bench::new(true);
    bench.look();
    fs::create_dir(bench.path("drafts")).unwrap();
    fs::write(bench.path(ignore::FILE), "drafts/").unwrap();
    fs::write(bench.path("drafts/web.yaml"), WEB).unwrap();
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    // The walk that read the patterns did not know them yet.
    bench.drain();
    let begun = bench.begin(false);
    assert_eq!(bench.end(begun, Stir::default()), Err(Repeat));
    assert_eq!(bench.look().files.len(), 1);
    fs::remove_file(bench.path(ignore::FILE)).unwrap();
    assert_eq!(bench.look().files.len(), 1);
    assert_eq!(bench.tracker.due(bench.now), Some(bench.now + IGNORE_AFTER));
    assert_eq!(bench.after(1_999).look().files.len(), 1);
    bench.after(1);
    let begun = bench.begin(false);
    assert_eq!(bench.end(begun, Stir::default()), Err(Repeat));
    assert_eq!(bench.look().files.len(), 2);
}

#[test]
fn patterns_that_were_truncated_count_until_they_are_written_again_or_deleted() {
    let mut bench = Bench::new(true);
    bench.look();
    let ignore = bench.path(ignore::FILE);
    fs::write(&ignore, "").unwrap();
    fs::create_dir(bench.path("drafts")).unwrap();
    fs::write(bench.path("drafts/web.yaml"), WEB).unwrap();
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    // What the files of a scan are, with the problem of the patterns.
    let files = |scan: &Scan| {
        let manifests = scan.files.keys().filter(|it| **it != Path::new(ignore::FILE)).count();
        let reading = scan.files.get(Path::new(ignore::FILE)).map(|it| match it {
            FileState::Settled(reading) => Arc::clone(reading),
            FileState::Unsettled => panic!("it counts"),
        });
        let problem = reading.map(|it| (it.problems[0].code, it.unreadable.is_some()));
        (manifests, problem)
    };
    let settle = |bench: &mut Bench| {
        bench.drain();
        let begun = bench.begin(false);
        match bench.end(begun, Stir::default()) {
            Ok(scan) => scan,
            Err(Repeat) => bench.look(),
        }
    };
    // Nobody knows that it ever said anything: it is told, and holds nothing.
    assert_eq!(files(&settle(&mut bench)), (2, Some(("empty-file", false))));
    fs::write(&ignore, "drafts/").unwrap();
    assert_eq!(files(&settle(&mut bench)), (1, None));
    for nothing in ["", " \n"] {
        fs::write(&ignore, nothing).unwrap();
        assert_eq!(files(&settle(&mut bench)), (1, Some(("empty-file", true))), "{nothing:?}");
        assert_eq!(files(&bench.after(60_000).look()), (1, Some(("empty-file", true))));
    }
    fs::write(&ignore, "# drafts/").unwrap();
    assert_eq!(files(&settle(&mut bench)), (2, None));
    fs::write(&ignore, "drafts/").unwrap();
    assert_eq!(files(&settle(&mut bench)), (1, None));
    fs::write(&ignore, "").unwrap();
    assert_eq!(files(&settle(&mut bench)).0, 1);
    fs::remove_file(&ignore).unwrap();
    assert_eq!(files(&bench.look()).0, 1);
    bench.after(2_000);
    assert_eq!(files(&settle(&mut bench)), (2, None));
}

#[test]
fn a_look_that_finds_nothing_new_reads_nothing_and_changes_nothing() {
    let mut bench = Bench::new(true);
    bench.look();
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    let before = bench.look();
    bench.drain();
    bench.after(45_000);
    bench.watches.begin();
    let begun = bench.begin(false);
    assert!(begun.reads.is_empty());
    let after = bench.end(begun, Stir::default()).unwrap();
    assert_eq!((after.files, after.last_change), (before.files, before.last_change));
}

#[test]
fn what_is_touched_without_a_new_content_stays_the_same_reading() {
    let mut bench = Bench::new(true);
    bench.look();
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    let before = bench.look();
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    let after = bench.look();
    let reading = |scan: &Scan| match &scan.files[Path::new("web.yaml")] {
        FileState::Settled(reading) => Arc::clone(reading),
        FileState::Unsettled => panic!("unsettled"),
    };
    assert!(Arc::ptr_eq(&reading(&before), &reading(&after)));
    assert!(bench.tracker.files[Path::new("web.yaml")].candidate.is_none());
}

#[test]
fn what_is_never_the_same_twice_is_looked_at_ever_more_rarely() {
    // A file of another size than it says, and one that somebody writes all the time.
    for is_odd in [true, false] {
        let mut bench = Bench::new(false);
        if is_odd {
            std::os::unix::fs::symlink("/proc/version", bench.path("web.yaml")).unwrap();
        }
        let (mut looks, began) = (0, bench.now);
        while bench.now.since(began) < Duration::from_mins(1) {
            if !is_odd {
                fs::write(bench.path("web.yaml"), format!("{WEB}# {looks}")).unwrap();
            }
            assert_eq!(documents(&bench.look()), None);
            bench.now = bench.tracker.due(bench.now).unwrap();
            looks += 1;
        }
        assert!(looks < 60, "{looks} looks in a minute");
        if !is_odd {
            // It is left alone at last, and counts within seconds.
            let left = bench.now;
            while documents(&bench.look()).is_none() {
                bench.now = bench.tracker.due(bench.now).unwrap();
            }
            assert!(bench.now.since(left) < Duration::from_secs(5));
            assert_eq!(bench.tracker.due(bench.now), None);
        }
    }
}

#[test]
fn bounds_on_a_tree_hold_instead_of_removing() {
    let mut bench = Bench::new(false);
    fs::create_dir_all(bench.path(&"d/".repeat(super::super::DEPTH_LIMIT + 2))).unwrap();
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    bench.look();
    let scan = bench.after(50).look();
    let codes = scan.files.values().filter_map(|it| match it {
        FileState::Settled(reading) => reading.unreadable,
        FileState::Unsettled => None,
    });
    let codes = codes.collect::<Vec<_>>();
    assert_eq!((scan.files.len(), codes.as_slice()), (2, &["source-too-large"][..]));
}

#[test]
fn a_finished_file_that_is_being_written_again_does_not_count_although_no_event_says_so() {
    let incomplete: Ask = |files| {
        let open = writers(files).open;
        let unknown = files.keys().filter(|id| !open.contains(id)).copied().collect();
        Writers { open, unknown }
    };
    for ask in [None, Some(incomplete)] {
        let mut bench = Bench::new(true);
        bench.ask = ask.unwrap_or(bench.ask);
        bench.look();
        fs::write(bench.path("web.yaml"), format!("{WEB}---\n{WEB}")).unwrap();
        bench.drain();
        bench.watches.deafen();
        let mut writer = fs::File::create(bench.path("web.yaml")).unwrap();
        writer.write_all(WEB.as_bytes()).unwrap();
        for _ in 0..10 {
            let begun = bench.begin(false);
            assert_eq!(documents(&bench.end(begun, Stir::default()).unwrap()), None);
            bench.after(5_000);
        }
    }
}

#[test]
fn a_finished_file_that_is_written_to_its_end_after_the_reading_does_not_count_as_it_was_read() {
    for ask in [NO_WRITERS, UNKNOWN_WRITERS] {
        let mut bench = Bench::new(true);
        bench.ask = ask;
        bench.look();
        fs::write(bench.path("web.yaml"), WEB).unwrap();
        bench.drain();
        bench.watches.deafen();
        let begun = bench.begin(false);
        // Opened before, written and closed since: no event has come, and nobody has it open any more.
        fs::write(bench.path("web.yaml"), format!("{WEB}---\n{WEB}")).unwrap();
        assert_eq!(documents(&bench.end(begun, Stir::default()).unwrap()), None);
        let begun = bench.after(50).begin(false);
        bench.end(begun, Stir::default()).unwrap();
        let begun = bench.after(1_000).begin(false);
        assert_eq!(documents(&bench.end(begun, Stir::default()).unwrap()), Some(2));
    }
}

#[test]
fn an_event_that_comes_after_the_writers_were_looked_for_still_counts() {
    let mut bench = Bench::new(true);
    bench.look();
    fs::write(bench.path("web.yaml"), WEB).unwrap();
    bench.drain();
    let begun = bench.begin(false);
    bench.ask = UNKNOWN_WRITERS;
    // A writer that leaves the file as it is.
    drop(fs::OpenOptions::new().append(true).open(bench.path("web.yaml")).unwrap());
    bench.watches.catch_up(bench.beside.path());
    assert_eq!(documents(&bench.end(begun, Stir::default()).unwrap()), None);
    assert_eq!(documents(&bench.look()), Some(1));
}
