//! What a person asked for: the steps that it leads to, and that it is swept when it is done.

use super::*;
use crate::backoff::Strikes;
use crate::observed::{ImagePlace, Run};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Asks for something now, of what was started before.
fn ask(observed: &mut ObservedState, of: &str, kind: HandKind, fresh: bool) {
    for run in observed.instances.values_mut().filter_map(|it| it.run.as_mut()) {
        run.at = BootTime(Duration::from_mins(15));
    }
    let hand = Hand { kind, at: model::now(), boot_id: model::BOOT.to_owned(), fresh };
    observed.hands.insert(name(of), hand);
}

/// The steps of a plan as `verb name`, each after those that it requires.
fn steps(plan: &Plan) -> Vec<String> {
    let of = |it: &Step| it.name.as_ref().map_or("-", Name::as_str).to_owned();
    plan.steps.iter().map(|it| format!("{} {}", it.action.verb(), of(it))).collect()
}

fn requires(plan: &Plan) -> Vec<Vec<usize>> {
    plan.steps.iter().map(|it| it.requires.iter().map(|it| it.0).collect()).collect()
}

#[test]
fn a_restart_from_the_image_removes_before_it_makes_and_imports_before_it_stops() {
    let wanted = desired(&[("a", Some(""))]);
    let mut observed = empty();
    converge(&wanted, &mut observed);
    ask(&mut observed, "a", HandKind::Restart, true);
    for image in observed.images.values_mut() {
        image.place = ImagePlace::Archive("/images/busybox.tar".into());
    }
    let plan = diff(&wanted, &observed, &policy(), model::now());
    assert_eq!(steps(&plan), ["import a", "stop a", "remove a", "prepare a", "start a"]);
    assert_eq!(requires(&plan), [vec![], vec![0], vec![1], vec![2], vec![3]]);
    assert!(plan.steps.iter().all(|it| it.cause == Cause::ByHand(HandKind::Restart)), "{plan}");
    apply(&mut observed, &plan);
    assert_eq!(observed.instances.values().next().unwrap().run.as_ref().unwrap().n, 1);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    assert_eq!(steps(&plan), ["sweep a"]);
    converge(&wanted, &mut observed);
}

#[test]
fn joiners_follow_a_donor_that_is_restarted_by_hand_and_not_one_that_is_stopped() {
    let wanted = desired(&PAIR);
    let mut observed = empty();
    converge(&wanted, &mut observed);
    let joiner = pid(&observed, "joiner");
    ask(&mut observed, "donor", HandKind::Stop, false);
    let plan = converge(&wanted, &mut observed);
    assert_eq!(pid(&observed, "joiner"), joiner);
    let donor = standing(&plan, "donor");
    assert_eq!((donor.phase, donor.reason), (Phase::Stopped, "stopped-by-hand"));
    assert_eq!(standing(&plan, "joiner").phase, Phase::Running);
    ask(&mut observed, "donor", HandKind::Restart, false);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    assert_eq!(steps(&plan), ["start donor", "stop joiner", "start joiner"]);
    assert!(!plan.steps[1].pause.is_zero() && plan.steps[1].requires == [StepId(0)]);
    converge(&wanted, &mut observed);
    assert_ne!(pid(&observed, "joiner"), joiner);
    assert!(observed.hands.is_empty());
}

#[test]
fn a_donor_is_not_restarted_by_hand_while_a_running_joiner_could_not_follow() {
    let with = |source: &str| {
        format!(
            r#""ipcMode": "container:donor", "mounts": [{{"type": "bind", "source": "{source}", "target": "/x"}}]"#
        )
    };
    let joiner = with("/gone");
    let wanted = desired(&[PAIR[0], ("joiner", Some(&joiner))]);
    let mut observed = empty();
    observed.mount_sources.insert("/gone".into(), crate::observed::FileKind::Directory);
    converge(&wanted, &mut observed);
    observed.mount_sources.clear();
    for fresh in [false, true] {
        ask(&mut observed, "donor", HandKind::Restart, fresh);
        let plan = diff(&wanted, &observed, &policy(), model::now());
        assert!(plan.is_empty(), "{plan}");
        let donor = standing(&plan, "donor");
        assert_eq!((donor.phase, donor.reason), (Phase::Running, "joiner-not-startable"));
    }
}

#[test]
fn a_retry_forgets_failures_before_it_starts() {
    let wanted = desired(&[("a", Some(r#""restart": {"policy": "never"}"#))]);
    let mut observed = empty();
    converge(&wanted, &mut observed);
    let instance = observed.instances.values_mut().next().unwrap();
    instance.task = Task::Stopped { code: 3, at: String::new() };
    let revision = instance.revision.clone();
    let plan = converge(&wanted, &mut observed);
    assert_eq!(standing(&plan, "a").phase, Phase::Failed);
    let at = BootTime(Duration::from_secs(999));
    observed
        .strikes
        .insert(name("a"), Strikes { revision, count: 9, at, run: None, failure: None });
    for kind in [HandKind::Retry, HandKind::Start] {
        let mut observed = observed.clone();
        ask(&mut observed, "a", kind, false);
        let plan = diff(&wanted, &observed, &policy(), model::now());
        assert_eq!(steps(&plan), ["sweep a", "start a"]);
        assert_eq!(plan.steps[1].requires, [StepId(0)]);
        let Action::Start(start) = &plan.steps[1].action else { panic!("{plan}") };
        assert_eq!(start.strikes_if_failed, 1);
        converge(&wanted, &mut observed);
        assert_eq!((running(&observed), observed.strikes.len()), (vec!["a".to_owned()], 0));
    }
    // A restart is another run, and forgives nothing.
    ask(&mut observed, "a", HandKind::Restart, false);
    assert_eq!(steps(&diff(&wanted, &observed, &policy(), model::now())), ["start a"]);
}

/// Something that happens to an instance that runs.
type Change = fn(&mut Instance);

/// The ways in which a workload can be found.
fn states() -> Vec<(&'static str, Change)> {
    fn recorded(instance: &mut Instance, reason: &str) {
        instance.task = Task::None;
        instance.view = None;
        instance.published = crate::observed::Published::default();
        let (code, reason, at) = (3, reason.to_owned(), String::new());
        instance.end = Some(End { n: 1, code, reason, at, failures: 1, ..End::default() });
    }
    vec![
        ("running", |_| {}),
        ("paused", |it| it.task = Task::Paused { pid: it.task.pid().unwrap() }),
        ("exited", |it| it.task = Task::Stopped { code: 3, at: String::new() }),
        ("lost", |it| it.task = Task::None),
        ("ended", |it| recorded(it, "exited")),
        ("stopped", |it| recorded(it, STOPPED)),
        ("created", |it| {
            it.task = Task::Created { pid: 5 };
            it.run = None;
        }),
        ("cut off", |it| {
            it.task = Task::Created { pid: 5 };
            let run = it.run.take().unwrap();
            it.run = Some(Run { boot: "before".to_owned(), ..run });
        }),
    ]
}

#[test]
fn whatever_is_asked_of_whatever_is_there_is_done_once_and_costs_no_strike() {
    use HandKind::{Restart, Retry, Start, Stop};
    let asked = [(Stop, false), (Start, false), (Restart, false), (Restart, true), (Retry, false)];
    for policy_of in ["always", "on-failure", "never"] {
        let donor = format!(r#""ipcMode": "shareable", "restart": {{"policy": "{policy_of}"}}"#);
        let wanted = desired(&[("donor", Some(&donor)), PAIR[1], ("other", Some(""))]);
        for (state, change) in states() {
            for (kind, fresh) in asked {
                let what = format!("{kind:?} {fresh} of what is {state} under {policy_of}");
                let mut observed = empty();
                converge(&wanted, &mut observed);
                let other = pid(&observed, "other");
                let of_donor = |it: &&mut Instance| it.name.as_str() == "donor";
                change(observed.instances.values_mut().find(of_donor).unwrap());
                let before = observed
                    .instances
                    .values()
                    .find_map(|it| (it.name.as_str() == "donor").then(|| it.task.pid()).flatten());
                ask(&mut observed, "donor", kind, fresh);
                let plan = converge(&wanted, &mut observed);
                assert_eq!(pid(&observed, "other"), other, "{what}");
                let strikes = observed.strikes.get(&name("donor")).map_or(0, |it| it.count);
                assert_eq!(strikes, 0, "{what}");
                let runs = running(&observed).contains(&"donor".to_owned());
                let donor = standing(&plan, "donor");
                if kind == Stop {
                    assert!(!runs && observed.hands.len() == 1, "{what}");
                    assert_eq!((donor.phase, donor.reason), (Phase::Stopped, "stopped-by-hand"));
                    continue;
                }
                assert!(runs && observed.hands.is_empty(), "{what}: {donor:?}");
                if let Some(before) = before {
                    assert_eq!(pid(&observed, "donor") == before, kind != Restart, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_part_of_a_plan_has_all_that_its_steps_require_and_nothing_else() {
    let wanted = desired(&[PAIR[0], PAIR[1], ("other", Some(""))]);
    let mut observed = empty();
    for image in observed.images.values_mut() {
        image.place = ImagePlace::Archive("/images/busybox.tar".into());
    }
    let whole = diff(&wanted, &observed, &policy(), model::now());
    let part = |names: &[&str]| {
        whole.clone().only(&names.iter().map(|it| name(it)).collect::<BTreeSet<_>>())
    };
    let joiner = part(&["joiner"]);
    let mut of = steps(&joiner);
    of.sort();
    assert_eq!(
        of,
        ["import donor", "prepare donor", "prepare joiner", "start donor", "start joiner"]
    );
    assert!(joiner.standings.keys().map(Name::as_str).eq(["joiner"]));
    apply(&mut observed, &joiner);
    let mut now = running(&observed);
    now.sort();
    assert_eq!(now, ["donor", "joiner"]);
    assert!(part(&["nobody"]).is_empty());
    assert_eq!(part(&["donor", "joiner", "other"]).steps, whole.steps);
}

#[test]
fn down_takes_wishes_along() {
    let wanted = desired(&[("a", Some("")), ("b", Some(""))]);
    let mut observed = empty();
    converge(&wanted, &mut observed);
    ask(&mut observed, "a", HandKind::Stop, false);
    ask(&mut observed, "b", HandKind::Stop, false);
    let plan = down(&observed, Some(&[name("a")].into()));
    apply(&mut observed, &plan);
    assert!(observed.hands.keys().map(Name::as_str).eq(["b"]));
    let plan = down(&observed, None);
    apply(&mut observed, &plan);
    assert!(observed.hands.is_empty() && observed.instances.is_empty());
}
