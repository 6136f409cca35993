//! [`shutdown`]: the end of the machine, which ends every process and removes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{donor_of, donors_last, ended, has_ended, is_ending, stop_of, strays, was_stopped};
use crate::desired::BootTime;
use crate::observed::{Instance, ObservedState, Task};
use crate::plan::{Action, Cause, Finish, MachineEnd, Plan, StepId};
use crate::workload::{InstanceId, Name, Span, StopTimeout};

/// Between the end of those who join and the end of whom they join: none, but who ends next is planned when it is
/// known what is left of the time.
const NEXT: Duration = Duration::from_millis(1);

/// Plans the end of every process of ours, joiners before what they join. Each has its own time to end, and none more
/// than what is left of the whole; then it is killed, whoever joins it. All objects stay, and every end is written down as one that somebody
/// wanted, so that the next controller starts everything again.
///
/// Hands and failures stay as they are: it is not a person's stop of a workload, and no run failed.
pub fn shutdown(
    observed: &ObservedState,
    now: BootTime,
    until: BootTime,
    why: Option<MachineEnd>,
) -> Plan {
    let left = until.since(now);
    let mut plan = Plan::default();
    let instances: Vec<&Instance> = observed.instances.values().collect();
    let mut joiners: BTreeMap<&Name, Vec<StepId>> = BTreeMap::new();
    for instance in donors_last(&instances) {
        let name = Some(&instance.name);
        let cause = Cause::Shutdown(why);
        match &instance.task {
            Task::Created { .. } | Task::Running { .. } | Task::Paused { .. } => {
                let mut stop = stop_of(instance);
                stop.timeout = at_most(stop.timeout, left);
                let mut before = joiners.get(&instance.name).cloned().unwrap_or_default();
                if left.is_zero() {
                    // Now each is killed, and nobody waits for one that nothing ends.
                    before.clear();
                }
                let waits = !before.is_empty();
                let step = plan.push(name, Action::Stop(stop), cause, before);
                if let Some(step) = plan.steps.get_mut(step.0).filter(|_| waits) {
                    step.pause = NEXT;
                }
                if let Some(donor) = donor_of(instance) {
                    joiners.entry(donor).or_default().push(step);
                }
            }
            // Its code would be lost with the machine.
            Task::Stopped { code, at } => {
                let finish = finish(instance, now, *code, at);
                plan.push(name, Action::Finish(finish), ended(instance), Vec::new());
            }
            // Nothing can be done about what does not answer; whoever asked is told.
            Task::None | Task::Unknown => {}
        }
    }
    let runs = |id: &InstanceId| observed.strays.get(id).is_some_and(|it| !it.pids.is_empty());
    for step in strays::end_all(&mut plan, observed, &Cause::Shutdown(why), runs).values() {
        let action = plan.steps.get_mut(step.0).map(|it| &mut it.action);
        if let Some(Action::RemoveStray(stray)) = action {
            stray.timeout = at_most(stray.timeout, left);
        }
    }
    for (id, task) in &observed.orphans {
        if *task != Task::Unknown {
            let remove = Action::RemoveOrphan { id: id.clone(), pid: task.pid() };
            plan.push(None, remove, Cause::Shutdown(why), Vec::new());
        }
    }
    plan
}

fn at_most(own: StopTimeout, left: Duration) -> StopTimeout {
    StopTimeout::After(match own {
        StopTimeout::After(Span(own)) => Span(own.min(left)),
        // The machine does not wait for ever.
        StopTimeout::Never => Span(left),
    })
}

fn finish(instance: &Instance, now: BootTime, code: u32, at: &str) -> Finish {
    let run = instance.run.as_ref();
    let n = run.map_or(1, |it| it.n);
    let before = instance.end.as_ref().map_or(0, |it| it.failures);
    let is_new = !has_ended(instance, n);
    Finish {
        id: instance.id.clone(),
        revision: instance.revision.clone(),
        run: if was_stopped(instance) { 0 } else { n },
        exit: Some((code, at.to_owned())),
        never_ran: false,
        before: None,
        stopped: is_ending(instance),
        started: run.map(|it| it.at),
        lasted: run.map_or(Duration::ZERO, |it| it.lasted(now, Some(at))),
        strikes: 0,
        failures: before.saturating_add(u32::from(is_new && code != 0 && !is_ending(instance))),
    }
}
