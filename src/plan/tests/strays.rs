//! What the runtime has lost: it ends before anything takes its place, and never before that can.

use super::*;
use crate::desired::Blocker;
use crate::observed::Stray;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn stray(pids: &[u32]) -> Stray {
    Stray { pids: pids.iter().copied().collect(), unsure: false }
}

/// The runtime loses the task of a workload, and its container object too.
fn lose(observed: &mut ObservedState, of: &str, object: bool) -> InstanceId {
    let instance = observed.instances.values_mut().find(|it| it.name.as_str() == of).unwrap();
    let pid = instance.task.pid().unwrap();
    (instance.task, instance.view) = (Task::None, None);
    let id = instance.id.clone();
    if object {
        observed.instances.remove(&id);
    }
    observed.strays.insert(id.clone(), stray(&[pid]));
    id
}

fn without_image(observed: &ObservedState) -> ObservedState {
    ObservedState { images: BTreeMap::new(), ..observed.clone() }
}

/// The steps of a plan as `verb name`, and the steps that each of them requires.
fn steps(plan: &Plan) -> Vec<(String, Vec<usize>)> {
    let of = |it: &Step| it.name.as_ref().map_or("-", Name::as_str).to_owned();
    let line = |it: &Step| {
        let requires = it.requires.iter().map(|it| it.0).collect();
        (format!("{} {}", it.action.verb(), of(it)), requires)
    };
    plan.steps.iter().map(line).collect()
}

fn step(text: &str, requires: &[usize]) -> (String, Vec<usize>) {
    (text.to_owned(), requires.to_vec())
}

#[test]
fn what_is_lost_ends_before_its_workload_starts_and_after_that_is_prepared() {
    for edit in ["", r#""args": ["5"]"#] {
        let mut observed = empty();
        converge(&desired(&[("a", Some("")), ("b", Some(""))]), &mut observed);
        let id = lose(&mut observed, "a", true);
        let other = pid(&observed, "b");
        let wanted = desired(&[("a", Some(edit)), ("b", Some(""))]);
        let plan = diff(&wanted, &observed, &policy(), model::now());
        let expected = [step("prepare a", &[]), step("remove a", &[0]), step("start a", &[1])];
        // The start comes after the preparation by way of what is between them.
        let mut found = steps(&plan);
        found[2].1.retain(|it| *it != 0);
        assert_eq!(found, expected, "{edit}");
        assert_eq!(plan.steps[1].cause, Cause::Stray { processes: 1 });
        let Action::RemoveStray(end) = &plan.steps[1].action else { panic!("{plan}") };
        assert_eq!(end.id, id);
        converge(&wanted, &mut observed);
        assert_eq!(
            (running(&observed), pid(&observed, "b")),
            (vec!["a".into(), "b".into()], other)
        );
    }
}

#[test]
fn a_run_whose_task_is_lost_is_written_down_as_over_once_it_is() {
    let wanted = desired(&[("a", Some(r#""stop": {"signal": "SIGINT", "timeout": "3s"}"#))]);
    let mut observed = empty();
    converge(&wanted, &mut observed);
    lose(&mut observed, "a", false);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    // What is tried again waits for its delay.
    assert_eq!(steps(&plan), [step("remove a", &[]), step("finish a", &[0])], "{plan}");
    let Action::RemoveStray(end) = &plan.steps[0].action else { panic!("{plan}") };
    assert_eq!(
        (end.signal.number(), end.timeout),
        (2, StopTimeout::After(Span(Duration::from_secs(3))))
    );
    // A person does not wait for it.
    let hand = Hand {
        kind: HandKind::Start,
        at: model::now(),
        boot_id: model::BOOT.to_owned(),
        fresh: false,
    };
    observed.hands.insert(name("a"), hand);
    for run in observed.instances.values_mut().filter_map(|it| it.run.as_mut()) {
        run.at = BootTime(Duration::from_mins(15));
    }
    let plan = diff(&wanted, &observed, &policy(), model::now());
    let expected = [step("remove a", &[]), step("finish a", &[0]), step("start a", &[0, 1])];
    assert_eq!(steps(&plan), expected, "{plan}");
}

#[test]
fn what_runs_is_not_ended_while_nothing_can_take_its_place() {
    for object in [true, false] {
        let wanted = desired(&[("a", Some(""))]);
        let mut observed = empty();
        converge(&wanted, &mut observed);
        lose(&mut observed, "a", object);
        for it in observed.instances.values_mut() {
            it.has_snapshot = false;
        }
        let poor = without_image(&observed);
        let plan = diff(&wanted, &poor, &policy(), model::now());
        assert!(plan.is_empty(), "{plan}");
        let a = standing(&plan, "a");
        let reason = if object { "image-missing" } else { "task-lost" };
        assert_eq!((a.phase, a.reason), (Phase::Waiting, reason));
        assert!(a.message.contains("containerd has lost it"), "{}", a.message);
        assert!(a.message.contains("neither in containerd nor in an archive"), "{}", a.message);
        // What is only in the way, and runs no more, is nobody's loss.
        let mut dead = poor.clone();
        dead.strays.values_mut().for_each(|it| it.pids.clear());
        let plan = diff(&wanted, &dead, &policy(), model::now());
        assert_eq!(plan.steps[0].action.verb(), "remove", "{plan}");
        assert_eq!(plan.steps[0].cause, Cause::Stray { processes: 0 });
    }
    // Who cannot read the manifest does not know what is wanted instead.
    let mut observed = empty();
    converge(&desired(&[("a", Some(""))]), &mut observed);
    lose(&mut observed, "a", true);
    let plan = diff(&desired(&[("a", None)]), &observed, &policy(), model::now());
    assert!(plan.is_empty(), "{plan}");
    let a = standing(&plan, "a");
    assert_eq!((a.phase, a.message.contains("a process of it still runs")), (Phase::Invalid, true));
}

#[test]
fn a_job_that_is_lost_goes_on_to_its_end_and_is_not_run_again() {
    let wanted = desired(&[("job", Some(r#""restart": {"policy": "never"}"#))]);
    let mut observed = empty();
    converge(&wanted, &mut observed);
    let id = lose(&mut observed, "job", false);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(standing(&plan, "job").reason, "task-lost");
    observed.strays.insert(id, stray(&[]));
    let plan = converge(&wanted, &mut observed);
    let job = standing(&plan, "job");
    assert_eq!((job.phase, running(&observed).len()), (Phase::Failed, 0));
}

#[test]
fn what_runs_beside_what_is_wanted_or_is_to_be_stopped_ends_at_once() {
    let old: InstanceId = "a-0123456789".parse().unwrap();
    for state in ["", r#""state": "stopped""#, r#""state": "absent""#] {
        let mut observed = empty();
        converge(&desired(&[("a", Some(""))]), &mut observed);
        observed.strays.insert(old.clone(), stray(&[7, 8]));
        let wanted = desired(&[("a", Some(state))]);
        let plan = diff(&wanted, &observed, &policy(), model::now());
        let of = |it: &&Step| matches!(&it.action, Action::RemoveStray(it) if it.id == old);
        let end = plan.steps.iter().find(of).unwrap_or_else(|| panic!("{state}: {plan}"));
        assert_eq!(end.name, Some(name("a")));
        converge(&wanted, &mut observed);
        assert_eq!(running(&observed).len(), usize::from(state.is_empty()), "{state}");
        assert!(observed.strays.is_empty());
    }
}

#[test]
fn what_the_runtime_may_still_have_is_left_alone_and_nothing_starts_beside_it() {
    let wanted = desired(&[("a", Some("")), ("b", Some(""))]);
    let mut observed = empty();
    let id: InstanceId = "a-0123456789".parse().unwrap();
    observed.strays.insert(id, Stray { unsure: true, ..stray(&[7]) });
    let plan = converge(&wanted, &mut observed);
    assert_eq!(running(&observed), ["b"]);
    assert_eq!(standing(&plan, "a").reason, "runtime-not-answering");
    assert!(down(&observed, Some(&[name("a")].into())).is_empty());
    // Where nobody can look, nothing is started, and nothing that runs is touched.
    let mut observed = empty();
    converge(&desired(&[("b", Some(""))]), &mut observed);
    let before = pid(&observed, "b");
    observed.strays_unknown = Some("no cgroups".to_owned());
    let plan = converge(&wanted, &mut observed);
    assert_eq!((running(&observed), pid(&observed, "b")), (vec!["b".to_owned()], before));
    let a = standing(&plan, "a");
    assert_eq!((a.phase, a.reason), (Phase::Waiting, "processes-unknown"));
    assert!(a.message.contains("no cgroups"));
    // A run whose task is gone may go on there.
    observed.instances.values_mut().for_each(|it| it.task = Task::None);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(standing(&plan, "b").reason, "processes-unknown");
}

#[test]
fn what_belongs_to_no_workload_ends_when_every_source_can_be_believed() {
    let mut observed = empty();
    converge(&desired(&[("b", Some(""))]), &mut observed);
    observed.strays.insert("gone-0123456789".parse().unwrap(), stray(&[7]));
    let mut wanted = desired(&[("b", Some(""))]);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    assert_eq!(steps(&plan), [step("remove -", &[])]);
    // Its manifest may be what nobody can read.
    let blocker = Blocker {
        code: "file-unreadable",
        path: "/manifests/gone.yaml".into(),
        message: String::new(),
        since: BootTime::default(),
    };
    let source = wanted.sources.values_mut().next().unwrap();
    source.blockers = vec![blocker];
    assert!(diff(&wanted, &observed, &policy(), model::now()).is_empty());
    let source = wanted.sources.values_mut().next().unwrap();
    source.blockers.clear();
    source.prunes = false;
    assert!(diff(&wanted, &observed, &policy(), model::now()).is_empty());
    // A document that is only late.
    let source = wanted.sources.values_mut().next().unwrap();
    source.prunes = true;
    source.absence_acts_at = model::now() + Duration::from_secs(2);
    let plan = diff(&wanted, &observed, &policy(), model::now());
    assert_eq!((plan.steps.len(), plan.wake), (0, Some(model::now() + Duration::from_secs(2))));
}

#[test]
fn down_and_the_end_of_the_machine_end_what_is_lost_too() {
    let wanted = desired(&[("a", Some("")), ("b", Some(""))]);
    let mut observed = empty();
    converge(&wanted, &mut observed);
    lose(&mut observed, "a", false);
    lose(&mut observed, "b", true);
    observed.strays.insert("b-0123456789".parse().unwrap(), stray(&[]));
    let named = down(&observed, Some(&[name("a")].into()));
    assert_eq!(steps(&named), [step("remove a", &[]), step("remove a", &[0])]);
    let shutdown = shutdown(&observed, model::now(), model::now() + Duration::from_secs(5), None);
    assert_eq!(steps(&shutdown), [step("remove a", &[]), step("remove -", &[])]);
    for it in &shutdown.steps {
        let Action::RemoveStray(it) = &it.action else { panic!("{shutdown}") };
        assert_eq!(it.timeout, StopTimeout::After(Span(Duration::from_secs(5))));
    }
    let all = down(&observed, None);
    apply(&mut observed, &all);
    assert!(observed.strays.is_empty() && observed.instances.is_empty(), "{all}");
}
