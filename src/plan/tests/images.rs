//! What becomes of an image in the store, by everything that may need it: a table that is read as a whole.

use super::*;
use crate::desired::DesiredState;
use crate::observed::{Came, ImagePlace, Progress, Pull, Space, StoredImage};

const WEB: &str = "docker.io/library/web:1";
const NOW: BootTime = BootTime(Duration::from_hours(100));
const GIB: u64 = 1 << 30;

/// An image of ours that nothing has needed for so long; its digest is its name's.
fn unused(name: &str, age: Duration, gib: u64) -> StoredImage {
    StoredImage {
        digest: crate::content::Digest::of(name.as_bytes()).to_string(),
        came: Some(Came::Pulled),
        size: gib * GIB,
        pinned: false,
        unused: Some(Unused {
            boot: model::BOOT.to_owned(),
            at: BootTime(NOW.0.checked_sub(age).unwrap()),
        }),
    }
}

/// The steps for images of a plan, and when it is looked again.
fn line(wanted: &DesiredState, observed: &ObservedState) -> String {
    let plan = diff(wanted, observed, &policy(), NOW);
    let of_images = plan
        .steps
        .iter()
        .filter(|it| matches!(it.action, Action::MarkImage { .. } | Action::RemoveImage { .. }));
    let steps: Vec<String> = of_images
        .map(|it| {
            let subject = it.action.subject().replace("docker.io/library/", "");
            format!("{} {subject}: {}", it.action.verb(), it.cause)
        })
        .collect();
    let uses = image_uses(wanted, observed);
    let of_web: Vec<String> =
        uses.uses.get(WEB).into_iter().flatten().map(|it| format!("{it:?}")).collect();
    let is_held = if uses.unknown.is_some() { "; held" } else { "" };
    let steps = if steps.is_empty() { "stays".to_owned() } else { steps.join(", ") };
    format!("{steps} [{}{is_held}]", of_web.join(", "))
}

#[test]
fn what_becomes_of_images_is_the_committed_table() {
    let age = Duration::from_hours(25);
    let none = desired(&[]);
    let stored = |age| {
        let images = [(WEB.to_owned(), unused(WEB, age, 1))].into();
        ObservedState { stored_images: images, archived_images: Some(BTreeSet::new()), ..empty() }
    };
    let with = |change: &dyn Fn(&mut ObservedState)| {
        let mut observed = stored(age);
        change(&mut observed);
        observed
    };
    let image = |change: &dyn Fn(&mut StoredImage)| {
        with(&|it| it.stored_images.values_mut().for_each(change))
    };
    let web = |state: &str| desired(&[("w", Some(&format!(r#""image": "web:1"{state}"#)))]);
    let digest = unused(WEB, age, 1).digest;
    // One that was started from it; its manifest says something else by now, or has problems.
    let applied = with(&|it| {
        it.images.insert(WEB.to_owned(), model::image(WEB, &digest, ImagePlace::Store));
        let stored = std::mem::take(&mut it.stored_images);
        converge(&web(""), it);
        it.stored_images = stored;
    });
    let coming = |lease: String| with(&|it| it.leftovers.extend([Leftover::Lease(lease.clone())]));
    let pulls = |of: &str| {
        with(&|it| {
            let pull = Pull { under_way: Some(Progress::default()), ..Pull::default() };
            it.pulls.insert(of.to_owned(), pull);
        })
    };
    let other = || "docker.io/library/other:1";
    let full = |free: u64, young: bool| {
        with(&|it| {
            it.stored_images = [("b:1", 23, 3), ("c:1", 20, 9), ("a:1", 10, 1), ("d:1", 5, 5)]
                .map(|(name, hours, gib)| {
                    (name.to_owned(), unused(name, Duration::from_hours(hours), gib))
                })
                .into();
            if young {
                for image in it.stored_images.values_mut() {
                    image.unused.as_mut().unwrap().at =
                        BootTime(NOW.0.checked_sub(Duration::from_secs(119)).unwrap());
                }
            }
            it.image_space = Some(Space { total: 100 * GIB, free: free * GIB });
        })
    };
    let problems = desired(&[("w", None)]);
    let mut blocked = desired(&[]);
    for source in blocked.sources.values_mut() {
        source.blockers.push(crate::desired::Blocker {
            code: "file-unreadable",
            path: "x.yaml".into(),
            message: "it cannot be read".to_owned(),
            since: BootTime::default(),
        });
    }
    let rows: Vec<(&str, &DesiredState, ObservedState)> = vec![
        ("unused for 25 h", &none, stored(age)),
        ("unused for 24 h", &none, stored(Duration::from_hours(24))),
        ("unused for 23 h", &none, stored(Duration::from_hours(23))),
        ("unused, not marked yet", &none, image(&|it| it.unused = None)),
        (
            "unused since an earlier boot",
            &none,
            image(&|it| it.unused.as_mut().unwrap().boot = "before".to_owned()),
        ),
        (
            "unused since a time to come",
            &none,
            image(&|it| it.unused.as_mut().unwrap().at = BootTime(NOW.0 * 2)),
        ),
        ("a container is made from it", &none, applied.clone()),
        ("and its manifest has problems", &problems, applied),
        ("pinned", &none, image(&|it| it.pinned = true)),
        ("in an archive", &none, with(&|it| it.archived_images = Some([WEB.to_owned()].into()))),
        ("somebody else's", &none, image(&|it| it.came = None)),
        ("it is pulled", &none, pulls(WEB)),
        ("another one is pulled", &none, pulls(other())),
        ("a lease to pull it", &none, coming(pull_lease(WEB))),
        ("a lease to import it", &none, coming(import_lease(&digest))),
        ("a command brings it", &none, with(&|it| it.images_in_hand.extend([WEB.to_owned()]))),
        (
            "a command brings another one",
            &none,
            with(&|it| it.images_in_hand.extend([other().to_owned()])),
        ),
        ("a manifest has problems", &problems, stored(age)),
        ("a file cannot be read", &blocked, stored(age)),
        ("archives are being read", &none, with(&|it| it.archived_images = None)),
        ("four, disk 84 % full", &none, full(16, false)),
        ("four, disk 85 % full", &none, full(15, false)),
        ("four, disk 90 % full", &none, full(10, false)),
        ("four, disk 99 % full", &none, full(1, false)),
        ("four of 119 s, disk 99 % full", &none, full(1, true)),
    ];
    let mut table = String::new();
    for state in ["", r#", "state": "stopped""#, r#", "state": "absent""#] {
        let what = format!("a manifest names it{}", state.replace('"', "").replace(", ", "; "));
        writeln!(table, "{what:<38} {}", line(&web(state), &stored(age))).unwrap();
    }
    for (what, wanted, observed) in rows {
        writeln!(table, "{what:<38} {}", line(wanted, &observed)).unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/images.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == table, "tests/images.txt differs; read it again after UPDATE=1\n{table}");
}
