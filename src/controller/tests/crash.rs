//! The controller dies after each single effect; the next one gets to where it would have got.

use super::*;
use crate::registry::memory::MemoryRegistry;

struct Scenario {
    what: &'static str,
    /// What runs before.
    before: &'static [(&'static str, &'static str)],
    change: fn(&mut Harness),
}

/// Nothing of all this concerns it.
const BYSTANDER: (&str, &str) = ("bystander", "");

const DONOR: (&str, &str) = ("donor", r#""ipcMode": "shareable""#);
const JOINER: (&str, &str) = ("joiner", r#""ipcMode": "container:donor""#);

const SCENARIOS: &[Scenario] = &[
    Scenario {
        what: "a start",
        before: &[BYSTANDER],
        change: |it| {
            it.want(
                "a",
                r#""ipcMode": "shareable", "mounts": [{"type": "bind", "source": "/made", "target": "/x", "create": true}]"#,
            );
        },
    },
    Scenario {
        what: "a start from a registry",
        before: &[BYSTANDER],
        change: |it| {
            let registry = MemoryRegistry::default();
            registry.put("docker.io/library/web:1", &[b'x'; 20_000]);
            registry.cut_next(10_000);
            it.registry = Some(registry);
            it.want("a", r#""image": "web:1""#);
        },
    },
    Scenario {
        what: "a replacement",
        before: &[BYSTANDER, ("a", "")],
        change: |it| it.want("a", r#""args": ["x"]"#),
    },
    Scenario {
        what: "a replacement that publishes",
        before: &[BYSTANDER, DONOR],
        change: |it| it.want("donor", r#""ipcMode": "shareable", "shmSize": "1Mi""#),
    },
    Scenario {
        what: "a removal",
        before: &[BYSTANDER, DONOR],
        change: |it| {
            let logs = it.log_directory();
            let id = InstanceId::new(&name("donor"), &it.revision("donor"));
            std::fs::create_dir_all(logs.join(id.as_str())).unwrap();
            it.remove("donor");
        },
    },
    Scenario {
        what: "a start of donor and joiner",
        before: &[BYSTANDER],
        change: |it| {
            it.want(DONOR.0, DONOR.1);
            it.want(JOINER.0, JOINER.1);
        },
    },
    Scenario {
        what: "a replacement of a donor with a joiner",
        before: &[BYSTANDER, DONOR, JOINER],
        change: |it| it.want("donor", r#""ipcMode": "shareable", "args": ["x"]"#),
    },
    Scenario {
        what: "a replacement of a donor with a joiner that runs once",
        before: &[
            BYSTANDER,
            DONOR,
            ("joiner", r#""ipcMode": "container:donor", "restart": {"policy": "never"}"#),
        ],
        change: |it| it.want("donor", r#""ipcMode": "shareable", "args": ["x"]"#),
    },
    Scenario {
        what: "a removal of donor and joiner",
        before: &[BYSTANDER, ("second", ""), DONOR, JOINER],
        change: |it| {
            it.wanted.workloads.remove(&name("donor"));
            it.remove("joiner");
        },
    },
    Scenario {
        what: "a run that ended",
        before: &[BYSTANDER, DONOR],
        change: |it| {
            let id = InstanceId::new(&name("donor"), &it.revision("donor"));
            it.runtime.exit(&id, 1);
        },
    },
    Scenario {
        what: "a run that was the last",
        before: &[
            BYSTANDER,
            (
                "job",
                r#""ipcMode": "shareable", "restart": {"policy": "never"}, "removeOnExit": true"#,
            ),
        ],
        change: |it| {
            let id = InstanceId::new(&name("job"), &it.revision("job"));
            std::fs::create_dir_all(it.log_directory().join(id.as_str())).unwrap();
            it.runtime.exit(&id, 0);
        },
    },
    Scenario {
        what: "a stop",
        before: &[BYSTANDER, DONOR],
        change: |it| it.want("donor", r#""ipcMode": "shareable", "state": "stopped""#),
    },
    Scenario {
        what: "a stop without a signal of what is paused",
        before: &[BYSTANDER, ("a", r#""stop": {"timeout": "0s"}"#)],
        change: |it| {
            let id = InstanceId::new(&name("a"), &it.revision("a"));
            it.runtime.pause(&id);
            it.want("a", r#""stop": {"timeout": "0s"}, "state": "stopped""#);
        },
    },
    Scenario {
        what: "a stop by hand",
        before: &[BYSTANDER, DONOR, JOINER],
        change: |it| it.ask("donor", HandKind::Stop),
    },
    Scenario {
        what: "a restart by hand",
        before: &[BYSTANDER, ("a", "")],
        change: |it| it.ask("a", HandKind::Restart),
    },
    Scenario {
        what: "a restart by hand of a donor with a joiner",
        before: &[BYSTANDER, DONOR, JOINER],
        change: |it| it.ask("donor", HandKind::Restart),
    },
    Scenario {
        what: "a restart by hand from the image",
        before: &[BYSTANDER, DONOR],
        change: |it| it.ask_for("donor", HandKind::Restart, true),
    },
    Scenario {
        what: "a change in place",
        before: &[BYSTANDER, ("a", "")],
        change: |it| it.want("a", r#""stop": {"timeout": "1s"}"#),
    },
    Scenario {
        what: "a pause",
        before: &[BYSTANDER, ("a", "")],
        change: |it| {
            let id = InstanceId::new(&name("a"), &it.revision("a"));
            it.runtime.pause(&id);
        },
    },
    Scenario {
        what: "a lost container object",
        before: &[BYSTANDER, DONOR],
        change: |it| {
            let id = InstanceId::new(&name("donor"), &it.revision("donor"));
            it.runtime.lose_container(&id);
        },
    },
    Scenario {
        what: "a lost container with its task",
        before: &[BYSTANDER, ("a", r#""ipcMode": "shareable", "stop": {"timeout": "1s"}"#)],
        change: |it| {
            let id = InstanceId::new(&name("a"), &it.revision("a"));
            it.runtime.ignore_signals(&id);
            it.runtime.lose(&id);
        },
    },
    Scenario {
        what: "an image that nothing needs",
        before: &[BYSTANDER],
        change: |it| {
            for name in ["old:1", "older:1"] {
                let digest = crate::content::Digest::of(name.as_bytes()).to_string();
                let image = Image { digest, ..image(name, ImagePlace::Store) };
                it.runtime.add_own_image(image, 10);
            }
            it.configure(|it| it.images.grace = Duration::from_secs(2));
        },
    },
    Scenario {
        what: "leftovers",
        before: &[BYSTANDER],
        change: |it| {
            for id in ["one-0123456789", "two-0123456789"] {
                it.host.leave_directory(&id.parse().unwrap());
            }
        },
    },
];

/// Runs a scenario to its end, the first controller only for so many effects; what is there then, and which effects
/// were made.
async fn play(scenario: &Scenario, effects: usize) -> (Vec<String>, Vec<&'static str>) {
    let mut it = Harness::with(scenario.before).await;
    // Long enough for a joiner to follow at once.
    it.after(20.0).await;
    let bystander = it.pid_of("bystander").await;
    it.kill().await;
    (scenario.change)(&mut it);
    let crash = Crash::after(effects);
    it.run_on(it.edge().with_crash(Arc::clone(&crash)));
    it.after(10.0).await;
    it.kill().await;
    it.run();
    it.after(40.0).await;
    let what = format!("{} that ended after {:?}", scenario.what, crash.passed());
    let plan = it.plan().await;
    assert!(plan.is_empty(), "{what}: {plan}");
    assert_eq!(it.pid_of("bystander").await, bystander, "{what}");
    let strikes = it.look().await.strikes;
    assert!(strikes.is_empty() || !scenario.what.contains("by hand"), "{what}: {strikes:?}");
    let failed = it.status().items.iter().any(|it| it.start_failure.is_some());
    assert!(!failed, "{what}: {:#?}", it.status().items);
    (it.everything().await, crash.passed())
}

#[tokio::test(start_paused = true)]
async fn a_crash_after_any_effect_leaves_nothing_that_the_next_controller_does_not_repair() {
    let mut passed = BTreeSet::new();
    for scenario in SCENARIOS {
        let (expected, effects) = play(scenario, usize::MAX).await;
        assert!(!effects.is_empty(), "{}", scenario.what);
        passed.extend(effects.iter().copied());
        for n in 1..=effects.len() {
            let (left, made) = play(scenario, n).await;
            // Steps side by side may each have made one more.
            assert!(made.len() >= n, "{}: {made:?}", scenario.what);
            assert_eq!(left, expected, "{} that ended after {made:?}", scenario.what);
        }
    }
    // An import needs an archive, a lost pin somebody's hand, and the rest a failure: they are interrupted elsewhere.
    let elsewhere = [
        "import/lease",
        "import/blob",
        "import/image",
        "import/release",
        "publish",
        "stop/pid",
        "undo/task",
        "undo/unpublish",
        "failed/strikes",
        "failed/end",
    ];
    let never: Vec<_> =
        EFFECTS.iter().filter(|it| !passed.contains(*it) && !elsewhere.contains(it)).collect();
    assert!(never.is_empty(), "no scenario makes {never:?}");
}
