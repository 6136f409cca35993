//! What a person asked for beside the manifests: which of it still stands, what it changes, and when it is done.
//!
//! Decides about wishes only; how a workload gets there is for [`super`].

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Cause, Obstacle, Planner, Target, Wish};
use crate::backoff::Strikes;
use crate::desired::{BootTime, SourceState};
use crate::observed::{Hand, HandKind, Image, Instance, Leftover};
use crate::plan::{Action, Fit, Phase, Plan, StepId};
use crate::workload::{Name, WantedState};

/// How long a removal that a person asked for waits for the document to go that still names the workload.
const DOWN_COUNTS: Duration = Duration::from_mins(1);

impl Plan {
    /// What it has for these workloads, with every step that is required for it.
    #[must_use]
    pub fn only(self, names: &BTreeSet<Name>) -> Self {
        let mut kept = BTreeSet::new();
        for (at, step) in self.steps.iter().enumerate().rev() {
            let is_theirs = match (&step.name, &step.action) {
                (None, Action::Sweep(Leftover::Hand(name, _))) => names.contains(name),
                _ => step.names().any(|it| names.contains(it)),
            };
            if is_theirs || kept.contains(&StepId(at)) {
                kept.insert(StepId(at));
                kept.extend(step.requires.iter().copied());
            }
        }
        let numbers: Vec<StepId> = kept.iter().copied().collect();
        let renumbered = |it: &StepId| {
            StepId(numbers.binary_search(it).expect("what a kept step requires is kept"))
        };
        let mut steps = Vec::new();
        for (at, mut step) in self.steps.into_iter().enumerate() {
            if kept.contains(&StepId(at)) {
                step.requires = step.requires.iter().map(renumbered).collect();
                steps.push(step);
            }
        }
        let mut standings = self.standings;
        standings.retain(|name, _| names.contains(name));
        Self { steps, standings, holds: Vec::new(), wake: self.wake }
    }
}

impl<'a> Planner<'a> {
    /// What a person asked for of a workload in this boot, done or not.
    pub(super) fn hand(&self, name: &Name) -> Option<&'a Hand> {
        self.observed.hands.get(name).filter(|it| it.boot_id == self.observed.boot_id)
    }

    /// Whether a person keeps it stopped.
    pub(super) fn is_stopped_by_hand(&self, name: &Name) -> bool {
        self.hand(name).is_some_and(|it| it.kind == HandKind::Stop)
    }

    /// Whether a person said that it is to be removed, though no absence says so.
    pub(super) fn is_taken_down(&self, name: &Name) -> bool {
        self.hand(name).is_some_and(|it| it.kind == HandKind::Down)
    }

    /// A run that a person asked for and that has not begun: one that began later is the one.
    pub(super) fn asked(&self, name: &Name) -> Option<&'a Hand> {
        let hand = self.hand(name)?;
        let is_run = match hand.kind {
            HandKind::Start | HandKind::Restart | HandKind::Retry => true,
            HandKind::Stop | HandKind::Down => false,
        };
        let case = self.cases.get(name)?;
        let later = |it: &&Instance| {
            let run = it.run.as_ref().filter(|run| run.boot == self.observed.boot_id);
            run.is_some_and(|run| run.at >= hand.at)
        };
        let has_begun = case.current.iter().chain(&case.others).any(later);
        // A start that failed may have left no instance to say so.
        let strikes = self.observed.strikes.get(name).filter(|it| it.failure.is_some());
        let has_failed = strikes.is_some_and(|it| it.at >= hand.at);
        (is_run && !has_begun && !has_failed).then_some(hand)
    }

    /// Failures in a row of a workload that count: a person who asks for another try forgets them, and so does one who
    /// edits its manifest.
    pub(super) fn strikes(&self, name: &Name) -> Option<&'a Strikes> {
        let forgotten =
            self.asked(name).is_some_and(|it| matches!(it.kind, HandKind::Start | HandKind::Retry));
        self.observed.strikes.get(name).filter(|_| !forgotten && !self.is_edited_in_place(name))
    }

    /// Whether its manifest says something else than it was last applied with, without asking for another instance.
    /// One that does is another wish, which has no failures yet.
    fn is_edited_in_place(&self, name: &Name) -> bool {
        let (Some(case), Some(target)) = (self.cases.get(name), self.targets.get(name)) else {
            return false;
        };
        let is_target = |it: &&Instance| target.instance.is_some_and(|to| to.id == it.id);
        let edited = |it: &Instance| it.workload.as_ref() != Some(&target.workload);
        case.current.filter(is_target).is_some_and(edited)
    }

    /// Whether the end of a run is a person's doing and no failure: it was stopped, or is to run anew, and whoever
    /// was at it died before it could write that down.
    pub(super) fn ended_by_hand(&self, name: &Name) -> bool {
        self.is_stopped_by_hand(name) || self.asked(name).is_some()
    }

    /// The fit of an instance whose next run a person asked for.
    pub(super) fn fit_by_hand(&self, name: &Name, current: Option<&Instance>) -> Option<Fit> {
        let hand = self.asked(name).filter(|it| it.kind == HandKind::Restart)?;
        // What has never run has nothing to lose.
        let renew = hand.fresh && current.is_some_and(|it| it.run.is_some());
        Some(if renew { Fit::Renew } else { Fit::Restart })
    }

    /// The cause of a step towards a run that a person asked for.
    pub(super) fn cause_by_hand(&self, name: &Name) -> Option<Cause> {
        self.asked(name).map(|it| Cause::ByHand(it.kind))
    }

    /// What is said of a workload that a person keeps stopped.
    pub(super) fn stopped_by_hand(name: &Name) -> Obstacle {
        Obstacle {
            reason: "stopped-by-hand",
            message: format!(
                "stopped by hand; `evenkeel start {name}` or a reboot starts it again"
            ),
        }
    }

    /// The image of an instance, if an instance can be made of it now.
    pub(super) fn image_at_hand(&self, image: &Image) -> Option<Image> {
        self.observed.images.get(&image.name).filter(|it| it.digest == image.digest).cloned()
    }

    /// The same instance made anew: as if there were none.
    pub(super) fn anew(&self, target: &Target<'a>) -> Target<'a> {
        Target {
            workload: target.workload.clone(),
            id: target.id.clone(),
            revision: target.revision.clone(),
            instance: None,
            image: target.image.as_ref().and_then(|it| self.image_at_hand(it)),
            defaults: target.defaults.clone(),
            ipc: target.ipc.clone(),
            changes: Vec::new(),
        }
    }

    /// What keeps a run that a person asked for from taking the place of the one that is there.
    pub(super) fn hand_obstacle(
        &self,
        name: &Name,
        current: Option<&Instance>,
        target: &Target<'a>,
        fit: Fit,
    ) -> Option<Obstacle> {
        if !matches!(fit, Fit::Restart | Fit::Renew) {
            return None;
        }
        let has_image = || target.image.as_ref().is_some_and(|it| self.image_at_hand(it).is_some());
        if fit == Fit::Renew && !has_image() {
            let image = target.image.as_ref().map_or("", |it| it.name.as_str());
            return Some(Obstacle {
                reason: "image-missing",
                message: format!(
                    "it cannot be made anew: the image {image} that it was made from is not known to be there"
                ),
            });
        }
        self.joiners_obstacle(name, current, target)
    }

    /// The step that forgets failures which do not count any more.
    pub(super) fn forget_strikes(&mut self, name: &Name) -> Option<StepId> {
        if self.strikes(name).is_some() || !self.observed.strikes.contains_key(name) {
            return None;
        }
        let sweep = Action::Sweep(Leftover::Strikes(name.clone()));
        if let Some(planned) = self.plan.steps.iter().position(|it| it.action == sweep) {
            return Some(StepId(planned));
        }
        let edit = || Cause::Updated(vec!["manifest".to_owned()]);
        let cause = self.cause_by_hand(name).unwrap_or_else(edit);
        Some(self.plan.push(Some(name), sweep, cause, Vec::new()))
    }

    /// Removes the wishes that are done and those that can never be.
    pub(super) fn sweep_hands(&mut self) {
        for (name, hand) in &self.observed.hands {
            let is_old = hand.boot_id != self.observed.boot_id;
            if is_old || self.is_done(name, hand) {
                let is_ours = !is_old && self.cases.contains_key(name);
                let cause = if is_ours { Cause::ByHand(hand.kind) } else { Cause::Leftover };
                let sweep = Action::Sweep(Leftover::Hand(name.clone(), hand.clone()));
                self.plan.push(Some(name), sweep, cause, Vec::new());
            }
        }
    }

    fn is_done(&self, name: &Name, hand: &Hand) -> bool {
        let Some(case) = self.cases.get(name) else {
            // A document that is on its way is not to find its stop forgotten.
            return hand.kind != HandKind::Stop || self.is_nobody(name);
        };
        match hand.kind {
            HandKind::Stop => false,
            // Whoever asked may have seen sooner than we that the document is gone.
            HandKind::Down => {
                self.desired.workloads.contains_key(name) && self.now.since(hand.at) >= DOWN_COUNTS
            }
            HandKind::Start | HandKind::Restart | HandKind::Retry => {
                let is_wanted = match case.wish {
                    Wish::Follow(..) | Wish::Keep { .. } => Self::effective(case)
                        .is_some_and(|it| it.spec.state == WantedState::Running),
                    Wish::Remove { .. } | Wish::Unclaimed | Wish::Invalid => false,
                };
                !is_wanted || self.asked(name).is_none() || self.has_no_need(name, hand)
            }
        }
    }

    /// Whether there is nothing to be tried: it runs as it should, or has run to its end.
    fn has_no_need(&self, name: &Name, hand: &Hand) -> bool {
        let is_idle = !self.plan.steps.iter().any(|it| it.name.as_ref() == Some(name));
        let runs = self
            .cases
            .get(name)
            .and_then(|it| it.current)
            .is_some_and(|it| it.task.pid().is_some());
        let is_fine = self.plan.standings.get(name).is_some_and(|it| match it.phase {
            Phase::Running => it.up_to_date && it.reason.is_empty(),
            Phase::Held => runs,
            Phase::Completed => true,
            Phase::Starting
            | Phase::Waiting
            | Phase::BackingOff
            | Phase::Invalid
            | Phase::Stopped
            | Phase::Stopping
            | Phase::Failed => false,
        });
        hand.kind != HandKind::Restart && is_idle && is_fine
    }

    /// Whether a name that nothing has is believed to be nobody's: no file hides it, and its absence is old enough.
    fn is_nobody(&self, name: &Name) -> bool {
        self.is_absence_believed(|it| it.acts_at(name))
    }

    /// Whether nothing hides what is not named by any source. `until`: when absence from it acts.
    pub(super) fn is_absence_believed(&self, until: impl Fn(&SourceState) -> BootTime) -> bool {
        let is_gone = |it: &SourceState| {
            let until = until(it);
            it.prunes
                && it.blockers.is_empty()
                && it.partial.is_empty()
                && self.now >= until
                && it.confirmed >= until
        };
        !self.desired.sources.is_empty() && self.desired.sources.values().all(is_gone)
    }
}
