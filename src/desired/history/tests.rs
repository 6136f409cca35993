use proptest::prelude::*;

use super::*;
use crate::desired::Absence;
use crate::manifest;

const ROOT: &str = "/manifests";

fn at(millis: u64) -> BootTime {
    BootTime(Duration::from_millis(1_000_000 + millis))
}

fn source() -> Source {
    Source::new(Path::new("/"), Path::new(ROOT))
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn valid(name: &str) -> String {
    format!(
        "apiVersion: evenkeel/v1\nkind: Container\nmetadata:\n  name: {name}\nspec:\n  image: docker.io/library/busybox:1\n"
    )
}

fn foreign(name: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n")
}

/// A scan of a directory whose files have these texts.
fn scan(millis: u64, last_change: u64, files: &[(&str, &str)]) -> Scan {
    let files = files.iter().map(|(file, text)| {
        let reading = manifest::read(&Path::new(ROOT).join(file), text.as_bytes());
        (PathBuf::from(file), FileState::Settled(Arc::new(reading)))
    });
    Scan {
        source: source(),
        at: at(millis),
        last_change: at(last_change),
        root: Root::Directory { device: 1 },
        files: files.collect(),
        below: BTreeMap::new(),
    }
}

fn origin(file: &str) -> Origin {
    Origin { source: source(), file: file.into(), document: 0 }
}

fn fold(history: &mut History, scan: &Scan) -> DesiredState {
    history.fold(std::slice::from_ref(scan), scan.at, &Believing::default())
}

fn code(absence: &Absence) -> &'static str {
    match absence {
        Absence::Unclaimed => "unclaimed",
        Absence::Never => "never",
        Absence::Held { code, .. } => code,
        Absence::Pending { .. } => "pending",
        Absence::Acts => "acts",
    }
}

/// What the absence of `web` from `web.yaml` means when only these files are there and nothing changes any more.
fn verdict(files: &[(&str, &str)]) -> &'static str {
    let mut history = History::default();
    fold(&mut history, &scan(0, 0, &[("web.yaml", &valid("web")), ("db.yaml", &valid("db"))]));
    fold(&mut history, &scan(1_000, 1_000, files));
    let state = fold(&mut history, &scan(90_000, 1_000, files));
    code(&state.removal(&name("web"), &origin("web.yaml"), at(90_000)))
}

#[test]
fn what_cannot_be_read_holds_and_the_rest_removes() {
    let db = ("db.yaml", valid("db"));
    let web = |file: &'static str, text: &str| verdict(&[(file, text), (db.0, &db.1)]);
    let typo = |from: &str, to: &str| valid("web").replace(from, to);
    assert_eq!(verdict(&[(db.0, &db.1)]), "acts");
    // Of our API group, but without a name that can be read: it may be any workload.
    for text in
        [typo("metadata:", "metdata:"), typo("name:", "nmae:"), typo("name: web", "name: -web")]
    {
        assert!(!["acts", "pending"].contains(&web("web.yaml", &text)), "{text}");
        assert!(!["acts", "pending"].contains(&web("moved.yaml", &text)), "moved: {text}");
    }
    for text in ["", "{", "a: b: c", "\u{0}"] {
        assert!(!["acts", "pending"].contains(&web("other.yaml", text)), "{text:?}");
    }
    // Foreign: by the file it was in, and by its name.
    assert_eq!(web("web.yaml", &typo("evenkeel/v1", "evenkel/v1")), "foreign-document");
    assert_eq!(web("moved.yaml", &typo("evenkeel/v1", "evenkel/v1")), "foreign-document");
    assert_eq!(web("web.yaml", &foreign("other")), "foreign-document");
    assert_eq!(web("kustomization.yaml", &foreign("other")), "acts");
    assert_eq!(web("web.yaml", "# nothing\n"), "comments-only");
    assert_eq!(web("other.yaml", "# nothing\n"), "acts");
    assert_eq!(web("web.yaml", &valid("other")), "acts");
    assert_eq!(web("moved.yaml", &valid("web")), "never");
    // A document with its name and problems is still a document.
    assert_eq!(web("web.yaml", &typo("image:", "imgae:")), "never");
    assert_eq!(verdict(&[]), "source-emptied");
    assert_eq!(verdict(&[("db.yaml", &foreign("db"))]), "source-emptied");
}

#[test]
fn an_unsettled_file_holds_and_says_since_when() {
    let mut history = History::default();
    let files = [("web.yaml", valid("web"))];
    let files: Vec<(&str, &str)> =
        files.iter().map(|(file, text)| (*file, text.as_str())).collect();
    fold(&mut history, &scan(0, 0, &files));
    let mut unsettled = scan(500, 500, &files);
    unsettled.files.insert("new.yaml".into(), FileState::Unsettled);
    fold(&mut history, &unsettled);
    unsettled.at = at(70_000);
    let state = fold(&mut history, &unsettled);
    let Absence::Held { code, path, since, .. } =
        state.removal(&name("db"), &origin("db.yaml"), at(70_000))
    else {
        panic!("not held")
    };
    assert_eq!(
        (code, path, since),
        ("file-unsettled", PathBuf::from("/manifests/new.yaml"), at(500))
    );
    // What it held is absent for as long as usual after it.
    let state = fold(&mut history, &scan(70_100, 500, &files));
    let absence = state.removal(&name("db"), &origin("db.yaml"), at(70_100));
    assert_eq!(absence, Absence::Pending { until: at(70_000) + REMOVE_AFTER });
    let state = fold(&mut history, &scan(72_000, 500, &files));
    assert_eq!(state.removal(&name("db"), &origin("db.yaml"), at(72_000)), Absence::Acts);
}

#[test]
fn an_absence_acts_after_the_source_was_quiet_and_was_looked_at_again() {
    let mut history = History::default();
    let both = [("web.yaml", &*valid("web")), ("db.yaml", &*valid("db"))];
    fold(&mut history, &scan(0, 0, &both));
    let removal =
        |state: &DesiredState, now| state.removal(&name("web"), &origin("web.yaml"), at(now));
    let state = fold(&mut history, &scan(10_000, 10_000, &both[1..]));
    assert_eq!(removal(&state, 10_000), Absence::Pending { until: at(12_000) });
    // The time alone is not enough: it may have come back unseen.
    assert_eq!(removal(&state, 20_000), Absence::Pending { until: at(12_000) });
    assert_eq!(history.due(), Some(at(12_000)));
    // Another change in the source moves it.
    let state = fold(&mut history, &scan(11_000, 11_000, &both[1..]));
    assert_eq!(removal(&state, 12_500), Absence::Pending { until: at(13_000) });
    let state = fold(&mut history, &scan(13_000, 11_000, &both[1..]));
    assert_eq!(removal(&state, 13_000), Absence::Acts);
    assert_eq!(removal(&state, 12_999), Absence::Pending { until: at(13_000) });
    // It is back.
    let state = fold(&mut history, &scan(14_000, 14_000, &both));
    assert_eq!(removal(&state, 90_000), Absence::Never);
}

#[test]
fn a_slow_scan_counts_from_the_side_that_waits_longer() {
    let mut history = History::default();
    let both = [("web.yaml", &*valid("web")), ("db.yaml", &*valid("db"))];
    fold(&mut history, &scan(0, 0, &both));
    // Begun at 10 s, ended at 70 s, with trouble until then.
    let mut slow = scan(10_000, 70_000, &both[1..]);
    slow.files.insert("x.yaml".into(), FileState::Unsettled);
    history.fold(&[slow], at(70_000), &Believing::default());
    let state =
        history.fold(&[scan(70_010, 70_000, &both[1..])], at(70_010), &Believing::default());
    let absence = state.removal(&name("web"), &origin("web.yaml"), at(70_010));
    assert_eq!(absence, Absence::Pending { until: at(72_000) });
    // Begun before the time had come: what it shows may be older than that.
    let state =
        history.fold(&[scan(71_900, 70_000, &both[1..])], at(80_000), &Believing::default());
    let absence = state.removal(&name("web"), &origin("web.yaml"), at(80_000));
    assert_eq!(absence, Absence::Pending { until: at(72_000) });
}

#[test]
fn a_source_that_never_rests_delays_an_absence_by_a_minute_at_most() {
    let mut history = History::default();
    let both = [("web.yaml", &*valid("web")), ("db.yaml", &*valid("db"))];
    fold(&mut history, &scan(0, 0, &both));
    let mut acted = None;
    for millis in (1_000..80_000).step_by(1_000) {
        let state = fold(&mut history, &scan(millis, millis, &both[1..]));
        if acted.is_none()
            && state.removal(&name("web"), &origin("web.yaml"), at(millis)) == Absence::Acts
        {
            acted = Some(millis);
        }
    }
    assert_eq!(acted, Some(61_000));
}

#[test]
fn a_source_that_never_rests_delays_what_an_earlier_run_started_by_a_minute_at_most_too() {
    let mut history = History::default();
    let db = [("db.yaml", &*valid("db"))];
    let mut acted = None;
    for millis in (0..80_000).step_by(1_000) {
        // What stands in the way for a while starts the time anew.
        let mut scan = scan(millis, millis, &db);
        if millis < 5_000 {
            scan.files.insert("new.yaml".into(), FileState::Unsettled);
        }
        let state = fold(&mut history, &scan);
        let absence = state.removal(&name("web"), &origin("web.yaml"), at(millis));
        if acted.is_none() && absence == Absence::Acts {
            acted = Some(millis);
        }
    }
    assert_eq!(acted, Some(65_000));
}

#[test]
fn an_absence_never_acts_before_the_configured_time_however_long_that_is() {
    let believing = Believing { remove_after: Duration::from_mins(10), allow_empty: false };
    let mut history = History::default();
    let both = [("web.yaml", &*valid("web")), ("db.yaml", &*valid("db"))];
    history.fold(&[scan(0, 0, &both)], at(0), &believing);
    let mut acted = None;
    for millis in (1_000..700_000).step_by(1_000) {
        let state = history.fold(&[scan(millis, 1_000, &both[1..])], at(millis), &believing);
        let absence = state.removal(&name("web"), &origin("web.yaml"), at(millis));
        if acted.is_none() && absence == Absence::Acts {
            acted = Some(millis);
        }
    }
    assert_eq!(acted, Some(601_000));
}

#[test]
fn what_a_single_file_named_as_well_goes_when_its_directory_lost_it() {
    let mut history = History::default();
    let both = [("web.yaml", &*valid("web")), ("db.yaml", &*valid("db"))];
    let file = |millis, last_change, text: &str| {
        let mut scan = scan(millis, last_change, &[("", text)]);
        scan.source = Source::new(Path::new("/"), Path::new("/single.yaml"));
        scan.root = Root::File;
        scan
    };
    let mut fold = |millis, here: Scan, there: Scan| {
        history.fold(&[here, there], at(millis), &Believing::default())
    };
    fold(0, scan(0, 0, &both), file(0, 0, &valid("web")));
    fold(1_000, scan(1_000, 1_000, &both[1..]), file(1_000, 1_000, &valid("other")));
    let state = fold(9_000, scan(9_000, 1_000, &both[1..]), file(9_000, 1_000, &valid("other")));
    assert_eq!(state.removal(&name("web"), &origin("web.yaml"), at(9_000)), Absence::Acts);
    // It is that file's own, and goes on.
    let of_file =
        Origin { source: Source::new(Path::new("/"), Path::new("/single.yaml")), ..origin("") };
    assert_eq!(state.removal(&name("web"), &of_file, at(9_000)), Absence::Never);
}

#[test]
fn more_names_than_are_remembered_are_as_late_as_any_other() {
    let documents: Vec<String> = (0..=ABSENT_LIMIT).map(|n| valid(&format!("w{n}"))).collect();
    let files: Vec<(String, String)> = documents
        .chunks(2_000)
        .enumerate()
        .map(|(n, it)| (format!("{n}.yaml"), it.join("---\n")))
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let mut history = History::default();
    // Long enough ago that nothing else would wait.
    fold(&mut history, &scan(0, 0, &files));
    fold(&mut history, &scan(100_000, 0, &files));
    let db = [("db.yaml", &*valid("db"))];
    for (millis, expected) in [(100_500, "pending"), (102_499, "pending"), (102_500, "acts")] {
        let state = fold(&mut history, &scan(millis, 100_500, &db));
        for n in [0, ABSENT_LIMIT] {
            let absence = state.removal(&name(&format!("w{n}")), &origin("0.yaml"), at(millis));
            assert_eq!(code(&absence), expected, "w{n} at {millis}");
        }
    }
}

#[test]
fn a_new_run_removes_what_it_never_saw_as_late_as_anything_else() {
    let mut history = History::default();
    let files = [("db.yaml", &*valid("db"))];
    let state = fold(&mut history, &scan(0, 0, &files));
    assert_eq!(code(&state.removal(&name("web"), &origin("web.yaml"), at(0))), "pending");
    let state = fold(&mut history, &scan(2_000, 0, &files));
    assert_eq!(code(&state.removal(&name("web"), &origin("web.yaml"), at(2_000))), "acts");
}

#[test]
fn a_root_that_is_gone_or_cannot_be_read_removes_nothing_however_long() {
    for (root, expected) in [
        (Root::Missing, "source-missing"),
        (Root::Unreadable("no".to_owned()), "source-unreadable"),
    ] {
        let mut history = History::default();
        fold(&mut history, &scan(0, 0, &[("web.yaml", &valid("web"))]));
        let mut gone = scan(1_000, 1_000, &[]);
        gone.root = root;
        fold(&mut history, &gone);
        gone.at = at(500_000);
        let state = fold(&mut history, &gone);
        let absence = state.removal(&name("web"), &origin("web.yaml"), at(500_000));
        assert!(
            matches!(&absence, Absence::Held { code, since, .. } if *code == expected && *since == at(1_000))
        );
        // Half of it is back: what is not is as good as just gone.
        let state = fold(&mut history, &scan(500_100, 500_100, &[("db.yaml", &valid("db"))]));
        assert_eq!(code(&state.removal(&name("web"), &origin("web.yaml"), at(500_100))), "pending");
    }
}

#[test]
fn an_empty_root_removes_everything_only_if_that_is_allowed() {
    let allow = Believing { allow_empty: true, ..Believing::default() };
    let mut history = History::default();
    history.fold(&[scan(0, 0, &[("web.yaml", &valid("web"))])], at(0), &allow);
    history.fold(&[scan(1_000, 1_000, &[])], at(1_000), &allow);
    let empty = [scan(3_000, 1_000, &[])];
    let state = history.fold(&empty, at(3_000), &allow);
    assert_eq!(state.removal(&name("web"), &origin("web.yaml"), at(3_000)), Absence::Acts);
    let state = history.fold(&empty, at(3_000), &Believing::default());
    assert_eq!(
        code(&state.removal(&name("web"), &origin("web.yaml"), at(3_000))),
        "source-emptied"
    );
    let mut missing = scan(4_000, 4_000, &[]);
    missing.root = Root::Missing;
    let state = history.fold(&[missing], at(4_000), &allow);
    assert_eq!(
        code(&state.removal(&name("web"), &origin("web.yaml"), at(4_000))),
        "source-missing"
    );
}

#[test]
fn a_root_on_another_device_is_believed_after_ten_good_seconds() {
    let mut history = History::default();
    let on = |device, millis, files: &[(&str, &str)]| {
        let mut scan = scan(millis, 1_000, files);
        scan.root = Root::Directory { device };
        scan
    };
    let absence = |state: &DesiredState, now| {
        code(&state.removal(&name("web"), &origin("web.yaml"), at(now)))
    };
    fold(&mut history, &on(1, 0, &[("web.yaml", &valid("web")), ("db.yaml", &valid("db"))]));
    let db = [("db.yaml", &*valid("db"))];
    for millis in [1_000, 5_000, 10_900] {
        let state = fold(&mut history, &on(2, millis, &db));
        assert_eq!(absence(&state, millis), "source-replaced", "{millis}");
        assert_eq!(history.due(), Some(at(11_000)));
    }
    // Something unreadable starts the time anew.
    let state = fold(&mut history, &on(2, 10_950, &[db[0], ("x.yaml", "{")]));
    assert_eq!(absence(&state, 10_950), "source-replaced");
    let state = fold(&mut history, &on(2, 12_000, &db));
    assert_eq!(absence(&state, 12_000), "source-replaced");
    let state = fold(&mut history, &on(2, 21_999, &db));
    assert_eq!(absence(&state, 21_999), "source-replaced");
    // Believed, and then as late as usual.
    let state = fold(&mut history, &on(2, 22_000, &db));
    assert_eq!(absence(&state, 22_000), "pending");
    let state = fold(&mut history, &on(2, 24_100, &db));
    assert_eq!(absence(&state, 24_100), "acts");
    // One that never has a manifest is never believed.
    fold(&mut history, &on(3, 30_000, &[]));
    let state = fold(&mut history, &on(3, 900_000, &[]));
    assert_eq!(absence(&state, 900_000), "source-replaced");
}

#[test]
fn a_directory_below_the_root_on_another_device_holds_what_came_from_it() {
    let mut history = History::default();
    let on = |device, millis, files: &[(&str, &str)]| {
        let mut scan = scan(millis, 1_000, files);
        scan.below = [(PathBuf::from("site"), Below::Directory { device })].into();
        scan
    };
    let absence = |state: &DesiredState, file, now| {
        code(&state.removal(&name("web"), &origin(file), at(now)))
    };
    let (db, api) = (("db.yaml", &*valid("db")), ("site/api.yaml", &*valid("api")));
    fold(&mut history, &on(2, 0, &[db, api, ("site/web.yaml", &valid("web"))]));
    // Its mount is gone, and what is left is an empty directory.
    let state = fold(&mut history, &on(1, 1_000, &[db]));
    assert_eq!(absence(&state, "site/web.yaml", 1_000), "source-replaced");
    let state = fold(&mut history, &on(1, 900_000, &[db]));
    assert_eq!(absence(&state, "site/web.yaml", 900_000), "source-replaced");
    assert_eq!(absence(&state, "site.yaml", 900_000), "acts");
    // Back as it was, and then on another device for good.
    let state = fold(&mut history, &on(2, 900_100, &[db, api]));
    assert_eq!(absence(&state, "site/web.yaml", 900_100), "acts");
    for millis in [900_200, 905_000, 910_199] {
        let state = fold(&mut history, &on(3, millis, &[db, api]));
        assert_eq!(absence(&state, "site/web.yaml", millis), "source-replaced", "{millis}");
    }
    let state = fold(&mut history, &on(3, 910_200, &[db, api]));
    assert_eq!(absence(&state, "site/web.yaml", 910_200), "acts");
    // Removed with all that is in it.
    let state = fold(&mut history, &scan(920_000, 1_000, &[db]));
    assert_eq!(absence(&state, "site/web.yaml", 920_000), "acts");
}

#[test]
fn a_name_that_moved_to_another_source_and_vanished_there_is_as_late_as_there() {
    let other = Source::new(Path::new("/"), Path::new("/other"));
    let of = |millis, last_change, files: &[(&str, &str)]| {
        let mut scan = scan(millis, last_change, files);
        scan.source = other.clone();
        scan
    };
    let web = ("web.yaml", &*valid("web"));
    let db = ("db.yaml", &*valid("db"));
    let x = ("x.yaml", &*valid("x"));
    let mut history = History::default();
    let mut fold = |millis, here: Scan, there: Scan| {
        history.fold(&[here, there], at(millis), &Believing::default())
    };
    fold(0, scan(0, 0, &[web, db]), of(0, 0, &[x]));
    let state = fold(9_000, scan(9_000, 9_000, &[db]), of(9_000, 9_000, &[x, web]));
    assert_eq!(state.removal(&name("web"), &origin("web.yaml"), at(9_000)), Absence::Never);
    fold(20_000, scan(20_000, 9_000, &[db]), of(20_000, 9_000, &[x, web]));
    // The label of its instance still says that it comes from here.
    let state = fold(30_000, scan(30_000, 9_000, &[db]), of(30_000, 30_000, &[x]));
    let absence = state.removal(&name("web"), &origin("web.yaml"), at(30_000));
    assert_eq!(absence, Absence::Pending { until: at(32_000) });
    let mut gone = of(32_000, 31_000, &[]);
    gone.root = Root::Missing;
    let state = fold(32_000, scan(32_000, 9_000, &[db]), gone);
    let absence = state.removal(&name("web"), &origin("web.yaml"), at(32_000));
    assert_eq!(code(&absence), "source-missing");
}

#[test]
fn a_single_file_and_a_source_that_is_not_given_remove_nothing() {
    let mut history = History::default();
    let mut file = scan(0, 0, &[("", &valid("db"))]);
    file.root = Root::File;
    fold(&mut history, &file);
    file.at = at(90_000);
    let state = fold(&mut history, &file);
    assert_eq!(state.removal(&name("web"), &origin(""), at(90_000)), Absence::Never);
    let elsewhere =
        Origin { source: Source::new(Path::new("/"), Path::new("/x")), ..origin("web.yaml") };
    assert_eq!(state.removal(&name("web"), &elsewhere, at(90_000)), Absence::Unclaimed);
    // A file that is gone was still a file.
    file.root = Root::Missing;
    file.files.clear();
    let state = fold(&mut history, &file);
    assert_eq!(state.removal(&name("web"), &origin(""), at(90_000)), Absence::Never);
}

#[test]
fn unchanged_workloads_stay_the_same_value() {
    let mut history = History::default();
    let files = [("web.yaml", &*valid("web"))];
    let before = fold(&mut history, &scan(0, 0, &files));
    let after = fold(&mut history, &scan(45_000, 0, &files));
    let workload = |state: &DesiredState| state.workloads[&name("web")].workload.clone().unwrap();
    assert!(Arc::ptr_eq(&workload(&before), &workload(&after)));
}

/// One step of a source's life.
#[derive(Debug, Clone)]
struct Step {
    pause: u64,
    present: [bool; 3],
    trouble: Trouble,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    None,
    Missing,
    Unreadable,
    Unsettled,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let trouble = prop_oneof![
        6 => Just(Trouble::None),
        1 => Just(Trouble::Missing),
        1 => Just(Trouble::Unreadable),
        1 => Just(Trouble::Unsettled),
    ];
    let step = (prop_oneof![1_u64..3_000, 1_u64..100_000], any::<[bool; 3]>(), trouble)
        .prop_map(|(pause, present, trouble)| Step { pause, present, trouble });
    proptest::collection::vec(step, 1..30)
}

const NAMES: [&str; 3] = ["a", "b", "c"];

proptest! {
    #[test]
    fn an_absence_acts_only_after_a_trouble_free_time_in_which_it_was_seen_in_every_scan(steps in steps()) {
        let mut history = History::default();
        let mut millis = 0;
        let mut changed = 0;
        let mut last = None;
        // Since when each name has been absent, and the source free of trouble.
        let mut since = [None; 3];
        let texts = NAMES.map(valid);
        for step in &steps {
            millis += step.pause;
            if last.replace((step.present, step.trouble)) != Some((step.present, step.trouble)) {
                changed = millis;
            }
            let files = NAMES.iter().zip(&texts).zip(step.present).filter(|(_, here)| *here);
            let files: Vec<(&str, &str)> = files.map(|((name, text), _)| (*name, text.as_str())).collect();
            let files: Vec<(String, &str)> = files.iter().map(|(name, text)| (format!("{name}.yaml"), *text)).collect();
            let files: Vec<(&str, &str)> = files.iter().map(|(file, text)| (file.as_str(), *text)).collect();
            let mut scan = scan(millis, changed, &files);
            match step.trouble {
                Trouble::None => {}
                Trouble::Missing => {
                    scan.root = Root::Missing;
                    scan.files.clear();
                }
                Trouble::Unreadable => {
                    let broken = manifest::read(Path::new("/manifests/x.yaml"), b"{");
                    scan.files.insert("x.yaml".into(), FileState::Settled(Arc::new(broken)));
                }
                Trouble::Unsettled => {
                    scan.files.insert("x.yaml".into(), FileState::Unsettled);
                }
            }
            let state = fold(&mut history, &scan);
            let free = step.trouble == Trouble::None && step.present != [false; 3];
            for (index, it) in NAMES.iter().enumerate() {
                let absent = !step.present[index];
                since[index] = (free && absent).then(|| since[index].unwrap_or(millis));
                let removal = state.removal(&name(it), &origin(&format!("{it}.yaml")), at(millis));
                let quiet = millis.saturating_sub(changed) >= 2_000;
                let long = since[index].is_some_and(|since| millis - since >= 60_000);
                let may = since[index].is_some() && (quiet || long);
                prop_assert!(removal != Absence::Acts || may, "{it} at {millis}: {state:?}");
                if free && absent && quiet && since[index].is_some_and(|since| millis - since >= 2_000) {
                    prop_assert_eq!(removal, Absence::Acts);
                }
            }
        }
    }

    #[test]
    fn the_same_scans_later_give_the_same_state(steps in steps()) {
        let mut history = History::default();
        let mut millis = 0;
        for step in &steps {
            millis += step.pause;
            let texts = NAMES.map(valid);
            let files = [("a.yaml", &*texts[0]), ("b.yaml", &*texts[1]), ("c.yaml", &*texts[2])];
            let files: Vec<_> = files.into_iter().zip(step.present).filter(|(_, here)| *here).map(|(it, _)| it).collect();
            fold(&mut history, &scan(millis, millis, &files));
            let mut before = fold(&mut history, &scan(millis, millis, &files));
            let changed = millis;
            while let Some(due) = history.due() {
                millis = u64::try_from(due.since(at(0)).as_millis()).unwrap();
                before = fold(&mut history, &scan(millis, changed, &files));
            }
            let after = fold(&mut history, &scan(millis + 1_000_000, changed, &files));
            prop_assert_eq!(before, after);
        }
    }
}
