//! What keeps a controller from getting on, as somebody beside it finds it in its status.
//!
//! Only the controller knows that its steps fail. Only who looks at the manifests himself knows whether the controller
//! has tried what they say now; so each trouble carries what it was about.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use super::{Item, Status};
use crate::content::hex;
use crate::desired::Wanted;
use crate::observed::Hand;
use crate::plan::{Cause, Plan, Step, StepId};
use crate::workload::Name;

/// A digest of all that is asked for of a workload: by its manifest, and by a person.
pub fn asked_of(wanted: Option<&Wanted>, hand: Option<&Hand>) -> String {
    let asked = (wanted.and_then(|it| it.workload.as_deref()), hand);
    let text = serde_json::to_vec(&asked).expect("a spec has only text keys and finite numbers");
    hex(&Sha256::digest(text)[..16])
}

/// What a controller says of each workload of which a step is left, and of which it failed when the same was tried.
/// `asked`: what is asked for of a workload now, as [`asked_of`] puts it.
pub fn troubles(
    plan: &Plan,
    told: &Status,
    asked: impl Fn(&str) -> String,
) -> BTreeMap<String, Item> {
    let left: BTreeSet<&str> = plan.steps.iter().flat_map(of).map(Name::as_str).collect();
    let is_same = |it: &&Item| {
        left.contains(it.name.as_str())
            && it.tried.as_ref().is_some_and(|tried| *tried == asked(&it.name))
    };
    told.items.iter().filter(is_same).map(|it| (it.name.clone(), it.clone())).collect()
}

/// The workload of a step, or those that wait for what it brings.
fn of(step: &Step) -> impl Iterator<Item = &Name> {
    let wanted = if let Cause::Wanted(names) = &step.cause { Some(names) } else { None };
    step.name.iter().chain(wanted.into_iter().flatten())
}

/// Whether all that is left of a plan waits for what fails. What belongs to no workload is swept beside everything
/// else, and says nothing.
pub fn is_stuck(plan: &Plan, troubles: &BTreeMap<String, Item>) -> bool {
    let mut stuck: BTreeSet<StepId> = BTreeSet::new();
    // Every step comes after those that it requires.
    for (at, step) in plan.steps.iter().enumerate() {
        let mut of = of(step).peekable();
        let is_of_somebody = of.peek().is_some();
        let fails = is_of_somebody && of.all(|it| troubles.contains_key(it.as_str()));
        if fails || step.requires.iter().any(|it| stuck.contains(it)) {
            stuck.insert(StepId(at));
        } else if is_of_somebody {
            return false;
        }
    }
    !stuck.is_empty()
}

/// Puts what the controller knows of its steps into a status that somebody else has made.
pub fn tell(status: &mut Status, troubles: &BTreeMap<String, Item>) {
    for item in &mut status.items {
        if let Some(told) = troubles.get(item.name.as_str()) {
            item.phase = told.phase;
            item.reason.clone_from(&told.reason);
            item.message.clone_from(&told.message);
            item.up_to_date = told.up_to_date;
            item.next_retry_at.clone_from(&told.next_retry_at);
            item.tried.clone_from(&told.tried);
        }
    }
}
