//! What the runtime has lost and the host has not: processes of instances of which it knows no task, or what is in the
//! way of their next start.
//!
//! Ended before anything of the same workload starts, is replaced or removed, so that nothing runs twice; and no
//! sooner than what takes its place can start, so that a runtime that has lost its data takes nothing else along.

use std::collections::BTreeMap;

use super::{Again, Cause, Obstacle, Phase, Plan, Planner, RemoveStray, StepId, Wish};
use super::{stop_of, stop_signal};
use crate::observed::{ImageConfig, Instance, ObservedState, Stray};
use crate::plan::Action;
use crate::workload::{DEFAULT_STOP_TIMEOUT, InstanceId, Name, Workload};

/// Plans the end of all chosen strays; the step of each.
pub(super) fn end_all(
    plan: &mut Plan,
    observed: &ObservedState,
    cause: &Cause,
    chosen: impl Fn(&InstanceId) -> bool,
) -> BTreeMap<InstanceId, StepId> {
    let mut steps = BTreeMap::new();
    for id in observed.strays.iter().filter(|it| !it.1.unsure && chosen(it.0)).map(|it| it.0) {
        let instance = observed.instances.get(id);
        let action = Action::RemoveStray(end_of(id, instance, None));
        let step = plan.push(instance.map(|it| &it.name), action, cause.clone(), Vec::new());
        steps.insert(id.clone(), step);
    }
    steps
}

/// As it would be stopped if the runtime still had it. Who has no container object goes by its manifest.
fn end_of(id: &InstanceId, instance: Option<&Instance>, wanted: Option<&Workload>) -> RemoveStray {
    let id = id.clone();
    match instance.map(stop_of) {
        Some(stop) => RemoveStray { id, signal: stop.signal, timeout: stop.timeout },
        None => RemoveStray {
            id,
            signal: stop_signal(wanted, &ImageConfig::default()),
            timeout: wanted.and_then(|it| it.spec.stop.timeout).unwrap_or(DEFAULT_STOP_TIMEOUT),
        },
    }
}

impl<'a> Planner<'a> {
    /// Those whose IDs start as a workload's do.
    fn strays_of(&self, stem: &str) -> impl Iterator<Item = (&'a InstanceId, &'a Stray)> {
        self.observed.strays.iter().filter(move |it| it.0.stem() == stem)
    }

    /// Why nothing of a workload may start: something of it may run already.
    pub(super) fn stray_obstacle(&self, stem: &str) -> Option<Obstacle> {
        if let Some(why) = &self.observed.strays_unknown {
            return Some(Obstacle {
                reason: "processes-unknown",
                message: format!(
                    "it is not known whether it runs without containerd's knowledge: {why}"
                ),
            });
        }
        self.strays_of(stem).any(|it| it.1.unsure).then(|| Obstacle {
            reason: "runtime-not-answering",
            message:
                "processes of it run, and the runtime does not say whether it has a task of it"
                    .to_owned(),
        })
    }

    /// Plans the end of all that the runtime has lost of a workload, once; the last of the steps. `None`: there is
    /// nothing, or nobody knows whether the runtime has lost it.
    pub(super) fn end_strays(
        &mut self,
        name: Option<&Name>,
        stem: &str,
        requires: Vec<StepId>,
    ) -> Option<StepId> {
        if let Some(step) = self.strays.get(stem) {
            return Some(*step);
        }
        let wanted = name.and_then(|it| self.desired.workloads.get(it)?.workload.clone());
        let mut requires = requires;
        let mut last = None;
        let strays: Vec<_> = self.strays_of(stem).filter(|it| !it.1.unsure).collect();
        for (id, stray) in strays {
            let instance = self.observed.instances.get(id);
            let action = Action::RemoveStray(end_of(id, instance, wanted.as_deref()));
            let cause = Cause::Stray { processes: stray.pids.len() };
            // One after the other, so that whoever waits for the last has waited for all.
            let step = self.plan.push(name, action, cause, requires);
            self.strays.insert(id.stem(), step);
            requires = vec![step];
            last = Some(step);
        }
        last
    }

    /// Why a run that the runtime has lost is not over yet: its process lives, and nothing can take its place, or
    /// nobody knows.
    pub(super) fn lives_on(
        &self,
        current: Option<&Instance>,
        ready: bool,
        again: Again,
        obstacle: Option<&Obstacle>,
    ) -> Option<Obstacle> {
        let id = &current?.id;
        if let Some(unknown) = self.stray_obstacle(id.stem()) {
            return Some(unknown);
        }
        self.observed.strays.get(id).filter(|it| !it.pids.is_empty())?;
        let is_last = matches!(again, Again::Completed | Again::Failed);
        let why = match obstacle {
            // A run that is its last goes on to its end.
            _ if is_last => "and its process goes on; its exit code will not be known",
            Some(_) => "and its process goes on until it can be started again",
            None => return None,
        };
        let more = obstacle.filter(|_| !ready).map(|it| format!(": {}", it.message));
        Some(Obstacle {
            reason: "task-lost",
            message: format!("containerd has lost it {why}{}", more.unwrap_or_default()),
        })
    }

    /// Plans the end of what no step of the workload has waited for: it runs by now as something else, or is not to
    /// run. While it waits for what it needs, what still runs of it does its work.
    pub(super) fn end_other_strays(&mut self, name: &Name, current: Option<&Instance>) {
        let stem = InstanceId::stem_of(name);
        let alive: usize = self.strays_of(&stem).map(|it| it.1.pids.len()).sum();
        // Removals say themselves what goes before them; what nobody claims is nobody's to end.
        let wish = self.cases.get(name).map(|it| &it.wish);
        if self.strays_of(&stem).next().is_none()
            || self.strays.contains_key(stem.as_str())
            || matches!(wish, None | Some(Wish::Remove { .. } | Wish::Unclaimed))
        {
            return;
        }
        let runs = current.is_some_and(|it| it.task.pid().is_some());
        let Some(standing) = self.plan.standings.get_mut(name) else { return };
        let waits = matches!(
            standing.phase,
            Phase::Waiting | Phase::BackingOff | Phase::Held | Phase::Invalid
        );
        if waits && !runs && alive > 0 {
            if standing.reason != "task-lost" {
                let comma = if standing.message.is_empty() { "" } else { "; " };
                standing.message += comma;
                standing.message += &Cause::Stray { processes: alive }.to_string();
            }
            return;
        }
        self.end_strays(Some(name), &stem, Vec::new());
    }

    /// Plans the end of what belongs to no workload that anybody knows of: nothing says where it came from, so no
    /// source may have anything that cannot be believed. What does not run can go at once.
    pub(super) fn end_unowned_strays(&mut self) {
        let sources = || self.desired.sources.values();
        let believed = !self.desired.sources.is_empty()
            && sources().all(|it| it.prunes && it.blockers.is_empty() && it.partial.is_empty());
        let due = sources().map(|it| it.absence_acts_at).max().unwrap_or_default();
        let acts = self.now >= due && sources().all(|it| it.confirmed >= it.absence_acts_at);
        let known: Vec<String> = self.cases.keys().map(InstanceId::stem_of).collect();
        let mut stems: Vec<&'a str> = self.observed.strays.keys().map(InstanceId::stem).collect();
        stems.dedup();
        for stem in stems {
            if known.iter().any(|it| it == stem) {
                continue;
            }
            let runs = self.strays_of(stem).any(|it| !it.1.pids.is_empty());
            if !runs || believed && acts {
                self.end_strays(None, stem, Vec::new());
            } else if believed {
                self.wake_at(due);
            }
        }
    }
}
