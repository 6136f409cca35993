//! Stand-in: the rules across documents.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::Origin;
use crate::manifest::{Places, Position, Problem};
use crate::workload::{Name, Workload};

/// A document that names a workload.
pub struct Named<'a> {
    pub origin: Origin,
    pub name: &'a Name,
    pub workload: Option<&'a Workload>,
    pub places: &'a Places,
    pub position: &'a Position,
}

/// What is wrong across documents.
pub struct Graph {
    pub problems: Vec<Problem>,
    pub invalid: BTreeSet<Name>,
    /// Index of the document that counts for a name.
    pub winner: BTreeMap<Name, usize>,
}

/// Stand-in: the first document of a name wins.
pub fn check(documents: &[Named<'_>]) -> Graph {
    let mut winner = BTreeMap::new();
    for (index, it) in documents.iter().enumerate() {
        winner.entry(it.name.clone()).or_insert(index);
    }
    Graph { problems: Vec::new(), invalid: BTreeSet::new(), winner }
}
