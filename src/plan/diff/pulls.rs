//! Images that have to come from registries: who waits for which, and when it is tried.
//!
//! A pull belongs to an image and not to a workload: one for all that wait for it, and nobody else waits for it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Cause, Obstacle, Planner, Target};
use crate::content::Digest;
use crate::observed::{HandKind, Leftover, Pull};
use crate::plan::{Action, PULL_FAILED, PULLING, Phase};
use crate::workload::{ImagePullPolicy, Name, Workload};

/// How long it counts that a registry was asked what a name stands for: a program that ends again and again is not to
/// ask as often.
const ASKED_COUNTS: Duration = Duration::from_mins(1);

/// Characters of what is kept with a run of why its image could not be checked: it is written to a label, of which there
/// may be 4 KiB.
const UNCHECKED_LENGTH: usize = 400;

/// How the leases of pulls begin.
const LEASE: &str = "evenkeel-pull-";

/// The lease under which an image is pulled. What has come of it is kept until it is complete, whoever goes on.
pub fn pull_lease(image: &str) -> String {
    let digest = Digest::of(image.as_bytes());
    format!("{LEASE}{}", &digest.hex()[..16])
}

impl<'a> Planner<'a> {
    /// Whether an image that is not there may be pulled for this workload.
    pub(super) fn can_pull(&self, workload: &Workload) -> bool {
        self.observed.has_registries && workload.spec.image_pull_policy != ImagePullPolicy::Never
    }

    /// Whether its registry has to be asked before a start what the name of its image stands for now. One that could not
    /// be asked keeps nobody from starting with what is there.
    pub(super) fn is_to_be_checked(&self, target: &Target<'a>) -> bool {
        let spec = &target.workload.spec;
        let runs = target.instance.is_some_and(|it| it.task.pid().is_some());
        let starts_anew =
            self.asked(&target.workload.name).is_some_and(|it| it.kind == HandKind::Restart);
        if (runs && !starts_anew) || !self.is_checked_before_starts(&target.workload) {
            return false;
        }
        let Some(pull) = self.observed.pulls.get(&spec.image.full()) else { return true };
        let counts = pull.asked.is_some_and(|at| self.now.since(at) < ASKED_COUNTS);
        let is_due = pull.failure.as_ref().is_none_or(|it| it.until <= self.now);
        pull.under_way.is_some() || (!counts && is_due)
    }

    fn is_checked_before_starts(&self, workload: &Workload) -> bool {
        let spec = &workload.spec;
        spec.image_pull_policy == ImagePullPolicy::Always
            && !spec.image.has_digest()
            && self.observed.has_registries
    }

    /// Why a start now is one of what is there, although that was to be checked before.
    pub(super) fn why_unchecked(&self, target: &Target<'a>) -> Option<String> {
        if !self.is_checked_before_starts(&target.workload) {
            return None;
        }
        let pull = self.observed.pulls.get(&target.workload.spec.image.full())?;
        let failure = pull.failure.as_ref()?;
        let why = format!("{}: {}", failure.reason, failure.message);
        Some(why.chars().take(UNCHECKED_LENGTH).collect())
    }

    /// What is said of a workload that waits for its image.
    pub(super) fn pull_obstacle(&self, image: &str) -> Obstacle {
        let pull = self.observed.pulls.get(image);
        let failed = pull.and_then(|it| it.failure.as_ref()).filter(|it| it.until > self.now);
        match (pull.and_then(|it| it.under_way), failed) {
            (None, Some(failed)) => Obstacle {
                reason: PULL_FAILED,
                message: format!(
                    "image {image} could not be pulled ({}): {}",
                    failed.reason, failed.message
                ),
            },
            (Some(progress), _) if progress.total > 0 => Obstacle {
                reason: PULLING,
                message: format!("image {image} is being pulled: {progress}"),
            },
            (Some(_), _) => {
                Obstacle { reason: PULLING, message: format!("image {image} is being pulled") }
            }
            (None, None) => {
                Obstacle { reason: PULLING, message: format!("image {image} has to be pulled") }
            }
        }
    }

    /// Notes that a workload waits for its image, if that is what it waits for.
    pub(super) fn wait_for_image(&mut self, name: &Name, target: &Target<'a>, why: &Obstacle) {
        if matches!(why.reason, PULLING | PULL_FAILED) {
            let image = target.workload.spec.image.full();
            self.waited_for.entry(image).or_default().insert(name.clone());
        }
    }

    /// A pull for each image that somebody waits for, when it is due; the leases that are kept for them. While a manifest
    /// may be hidden or is not read yet, all are: what has come of an image is lost with its lease.
    pub(super) fn plan_pulls(&mut self) -> BTreeSet<String> {
        let waited_for = std::mem::take(&mut self.waited_for);
        let mut leases: BTreeSet<String> = waited_for.keys().map(|it| pull_lease(it)).collect();
        if !self.is_absence_believed(|it| it.absence_acts_at.min(it.unseen_acts_at)) {
            let all = self
                .observed
                .leftovers
                .iter()
                .filter_map(|it| if let Leftover::Lease(id) = it { Some(id) } else { None });
            leases.extend(all.filter(|it| it.starts_with(LEASE)).cloned());
        }
        for (image, names) in waited_for {
            match self.due(&image, &names) {
                None => {
                    let known = self.observed.images.get(&image).map(|it| it.digest.clone());
                    let pull = Action::Pull { image, known };
                    self.plan.push(None, pull, Cause::Wanted(names), Vec::new());
                }
                Some(until) => {
                    for name in &names {
                        if let Some(standing) = self.plan.standings.get_mut(name)
                            && standing.reason == PULL_FAILED
                        {
                            standing.until = Some(until);
                            if standing.phase == Phase::Waiting {
                                standing.phase = Phase::BackingOff;
                            }
                        }
                    }
                    self.wake_at(until);
                }
            }
        }
        leases
    }

    /// When it is tried; `None`: now. Who asks for a workload asks for its image too.
    fn due(&self, image: &str, names: &BTreeSet<Name>) -> Option<crate::desired::BootTime> {
        let Pull { failure: Some(failure), .. } = self.observed.pulls.get(image)? else {
            return None;
        };
        let is_asked = names.iter().filter_map(|it| self.hand(it)).any(|it| match it.kind {
            HandKind::Start | HandKind::Restart | HandKind::Retry => it.at > failure.at,
            HandKind::Stop | HandKind::Down => false,
        });
        (failure.until > self.now && !is_asked).then_some(failure.until)
    }
}
