//! Images that nothing needs any more: how long they are kept, and when the disk has no room for them.
//!
//! Only what we brought ourselves, and nobody uses or wants kept, is ever removed. A tag that has moved needs no step: the
//! content that it pointed at before goes by itself, but for what containers are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Cause, Planner};
use crate::desired::{BootTime, DesiredState};
use crate::observed::{Leftover, ObservedState, Space, StoredImage, Unused};
use crate::plan::{Action, ImagePolicy, pull_lease};
use crate::workload::{Name, WantedState};

/// However full the disk is: a manifest that is written anew is absent for a moment, and so may be its workload.
const LEAST_AGE: Duration = Duration::from_mins(2);

/// The lease under which an image is brought from an archive, by its digest.
pub fn import_lease(digest: &str) -> String {
    format!("evenkeel-import-{}", digest.replace(':', "-"))
}

/// Who needs an image, or why it stays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageUse {
    /// A container was made from it, whether it runs or not.
    Container(Name),
    /// A manifest names it.
    Manifest(Name),
    /// A person wants it kept.
    Pinned,
    /// It is in an archive that is kept.
    Archive,
    /// It is being brought.
    Coming,
    /// Somebody else put it there.
    Foreign,
}

/// Who needs the images in the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageUses {
    /// Of each image; nothing of one that nobody needs.
    pub uses: BTreeMap<String, BTreeSet<ImageUse>>,
    /// Why there may be more that is needed, so that nothing may go; `None`: there is no more.
    pub unknown: Option<String>,
}

/// Who needs which image in the store, by everything that is wanted and there.
pub fn image_uses(desired: &DesiredState, observed: &ObservedState) -> ImageUses {
    let mut wanted: BTreeMap<String, BTreeSet<ImageUse>> = BTreeMap::new();
    for (name, it) in &desired.workloads {
        if let Some(workload) = &it.workload
            && workload.spec.state != WantedState::Absent
        {
            let image = workload.spec.image.full();
            wanted.entry(image).or_default().insert(ImageUse::Manifest(name.clone()));
        }
    }
    let mut digests: BTreeMap<&str, BTreeSet<ImageUse>> = BTreeMap::new();
    for instance in observed.instances.values() {
        let by = ImageUse::Container(instance.name.clone());
        digests.entry(&instance.image.digest).or_default().insert(by.clone());
        // What it was last applied with is what it goes on with, should its manifest be held.
        let applied = instance.workload.as_ref().map(|it| it.spec.image.full());
        for image in applied.into_iter().chain([instance.image.name.clone()]) {
            wanted.entry(image).or_default().insert(by.clone());
        }
    }
    let uses = observed.stored_images.iter().map(|(name, image)| {
        let mut uses = wanted.remove(name).unwrap_or_default();
        uses.extend(digests.get(image.digest.as_str()).into_iter().flatten().cloned());
        let archived = observed.archived_images.as_ref().is_some_and(|it| it.contains(name));
        let kept = [
            (image.came.is_none(), ImageUse::Foreign),
            (image.pinned, ImageUse::Pinned),
            (archived, ImageUse::Archive),
            (is_coming(name, image, observed), ImageUse::Coming),
        ];
        uses.extend(kept.into_iter().filter(|it| it.0).map(|it| it.1));
        (name.clone(), uses)
    });
    ImageUses { uses: uses.collect(), unknown: unknown(desired, observed) }
}

fn is_coming(name: &str, image: &StoredImage, observed: &ObservedState) -> bool {
    let has_lease = |lease: String| observed.leftovers.contains(&Leftover::Lease(lease));
    observed.images_in_hand.contains(name)
        || observed.pulls.get(name).is_some_and(|it| it.under_way.is_some())
        || has_lease(pull_lease(name))
        || has_lease(import_lease(&image.digest))
}

/// What may hide the name of an image.
fn unknown(desired: &DesiredState, observed: &ObservedState) -> Option<String> {
    if observed.archived_images.is_none() {
        return Some("archives of images are still being read".to_owned());
    }
    if let Some(it) = desired.sources.values().find_map(|it| it.blockers.first()) {
        return Some(format!("{}: {}", it.path.display(), it.message));
    }
    // What is there of one whose manifest has problems says what it goes on with.
    let is_there = |name: &Name| observed.instances.values().any(|it| it.name == *name);
    let mut wanted = desired.workloads.iter();
    let hidden = wanted.find(|(name, it)| it.workload.is_none() && !is_there(name));
    hidden.map(|(name, it)| format!("the manifest of `{name}` has problems ({})", it.origin))
}

/// How much is to be removed so that the disk is as empty as it should be again; nothing below the upper mark.
fn excess(space: Option<Space>, policy: &ImagePolicy) -> u64 {
    let Some(space) = space.filter(|it| it.fill() >= policy.high.into()) else { return 0 };
    let wanted = u128::from(space.total) * u128::from(100 - policy.low.min(100)) / 100;
    u64::try_from(wanted).unwrap_or(u64::MAX).saturating_sub(space.free)
}

impl Planner<'_> {
    /// Writes down since when an image is unused, and removes those that were for long enough.
    pub(super) fn plan_images(&mut self) {
        let needs = image_uses(self.desired, self.observed);
        let mut unused: Vec<(BootTime, &str, &StoredImage)> = Vec::new();
        for (name, image) in &self.observed.stored_images {
            if image.came.is_none() {
                continue;
            }
            let is_used = needs.uses.get(name).is_none_or(|it| !it.is_empty());
            match &image.unused {
                Some(_) if is_used => self.mark(name, image, None, Cause::UsedAgain),
                None if is_used => {}
                _ if needs.unknown.is_some() => {}
                Some(since) if since.boot == self.observed.boot_id && since.at <= self.now => {
                    unused.push((since.at, name, image));
                }
                // A reboot begins it anew: nobody knows how long the machine was off.
                _ => {
                    let at = BootTime(Duration::from_secs(self.now.0.as_secs()));
                    let since = Unused { boot: self.observed.boot_id.clone(), at };
                    self.mark(name, image, Some(since), Cause::Unused);
                }
            }
        }
        unused.sort_by_key(|it| (it.0, it.1));
        let is_coming = |it: &ImageUse| *it == ImageUse::Coming;
        // What comes may have layers of what goes.
        let is_busy = needs.uses.values().flatten().any(is_coming)
            || !self.observed.images_in_hand.is_empty()
            || self.observed.pulls.values().any(|it| it.under_way.is_some())
            || self
                .plan
                .steps
                .iter()
                .any(|it| matches!(it.action, Action::Pull { .. } | Action::Import { .. }));
        if is_busy {
            return;
        }
        let policy = self.policy.images;
        let fill = self.observed.image_space.map_or(0, Space::fill);
        let mut excess = excess(self.observed.image_space, &policy);
        for (since, name, image) in unused {
            let age = self.now.since(since);
            let cause = if age >= policy.grace {
                Cause::UnusedFor(policy.grace)
            } else if excess > 0 && age >= LEAST_AGE {
                Cause::DiskFull { fill }
            } else {
                let grace = if excess > 0 { policy.grace.min(LEAST_AGE) } else { policy.grace };
                self.wake_at(since + grace);
                continue;
            };
            excess = excess.saturating_sub(image.size);
            let (name, digest) = (name.to_owned(), image.digest.clone());
            self.plan.push(None, Action::RemoveImage { name, digest }, cause, Vec::new());
        }
    }

    fn mark(&mut self, name: &str, image: &StoredImage, unused: Option<Unused>, cause: Cause) {
        let (name, digest) = (name.to_owned(), image.digest.clone());
        self.plan.push(None, Action::MarkImage { name, digest, unused }, cause, Vec::new());
    }
}
