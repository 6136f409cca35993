//! A person's process beside a workload's program: while its command lives, what comes from manifests waits.
//!
//! What a person asks for of the workload itself does not: the newer hand counts.

use std::time::Duration;

use super::{Cause, HandKind, Obstacle, Planner, Wish};
use crate::observed::Instance;
use crate::workload::Name;

/// How often it is looked whether such a command has ended, while something waits for that: no event tells of it.
const LOOK: Duration = Duration::from_secs(1);

impl Planner<'_> {
    /// Why an instance is to be left alone: somebody works in it.
    pub(super) fn exec_obstacle(&self, instance: Option<&Instance>) -> Option<Obstacle> {
        let instance = instance.filter(|it| it.task.pid().is_some())?;
        let exec = self.observed.execs.get(&instance.id)?.first()?;
        let name = &instance.name;
        if self.is_stopped_by_hand(name) || self.is_taken_down(name) || self.asked(name).is_some() {
            return None;
        }
        let (pid, since) = (exec.pid, &exec.since);
        Some(Obstacle {
            reason: "exec-running",
            message: format!(
                "a person's `evenkeel exec` works in it: pid {pid}, since {since}; it is left alone until that ends"
            ),
        })
    }

    /// Holds every removal that would end a person's process.
    pub(super) fn hold_execs(&mut self) {
        let mut held = Vec::new();
        for case in self.cases.values() {
            let Wish::Remove { cause, .. } = &case.wish else { continue };
            let mut all = case.others.iter().copied().chain(case.current);
            if *cause != Cause::ByHand(HandKind::Down)
                && let Some(why) = all.find_map(|it| self.exec_obstacle(Some(it)))
            {
                let message = format!("{cause}, but {}", why.message);
                held.push((case.name.clone(), Wish::Keep { reason: why.reason, message }));
            }
        }
        for (name, wish) in held {
            if let Some(case) = self.cases.get_mut(&name) {
                case.wish = wish;
            }
        }
    }

    /// What waits for somebody's process is not as wanted, and is looked at again soon.
    pub(super) fn remember_execs(&mut self, name: &Name) {
        if let Some(standing) = self.plan.standings.get_mut(name)
            && standing.reason == "exec-running"
        {
            standing.up_to_date = false;
            self.wake_at(self.now + LOOK);
        }
    }
}
