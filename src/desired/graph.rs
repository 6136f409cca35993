//! Rules across all documents of all sources: one document a name, and donors that can be joined.
//!
//! Pure, and blind to what runs: whether a donor is up, stopped or on its way out is the plan's business. So a donor
//! with `state: absent` is no problem of its joiner, which waits: a donor in use is held, not removed, and the
//! joiner's manifest may be all right again with the donor's next edit. Nor is a donor whose document has problems:
//! those problems are the news, and saying it twice would only hide them.

use std::collections::{BTreeMap, BTreeSet};

use super::Origin;
use crate::manifest::{Place, Places, Position, Problem, Severity};
use crate::workload::{DEV_SHM, IpcMode, Name, WantedState, Workload};

/// A document that names a workload.
#[derive(Debug, Clone)]
pub struct Named<'a> {
    pub origin: Origin,
    pub name: &'a Name,
    /// `None`: the document has problems of its own.
    pub workload: Option<&'a Workload>,
    pub places: &'a Places,
    pub position: &'a Position,
}

/// What the documents come to when they are looked at together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Graph {
    /// In the order of their positions.
    pub problems: Vec<Problem>,
    /// Names that cannot be acted on because of an error in `problems`.
    pub invalid: BTreeSet<Name>,
    /// For each name, the index of the document that counts: the first one given.
    pub winner: BTreeMap<Name, usize>,
    /// For each valid joiner, the workload at the end of its chain, whose namespace and /dev/shm it gets. Without
    /// those whose chain leads to a document with problems.
    pub roots: BTreeMap<Name, Name>,
}

/// Most names of a circle that a message spells out.
const SHOWN_IN_CYCLE: usize = 8;

/// Unknown donors that get a "did you mean"; each compares with every name.
const ADVISED: usize = 10;

/// Checks all documents together. Equal inputs give equal results; of documents with one name the first counts, so
/// the order given is the order of precedence.
pub fn check(named: &[Named<'_>]) -> Graph {
    let mut graph = Graph::default();
    duplicates(named, &mut graph);
    // What each workload joins, of those that can be acted on. One that is to be removed needs no donor any more, and
    // a problem would only keep it from being removed.
    let valid: BTreeMap<&Name, (&Named<'_>, &Workload)> = graph
        .winner
        .iter()
        .filter(|(name, _)| !graph.invalid.contains(*name))
        .filter_map(|(_, index)| {
            Some((named[*index].name, (&named[*index], named[*index].workload?)))
        })
        .collect();
    let donor = |name: &Name| -> Option<&Name> {
        let (_, workload) = valid.get(name)?;
        workload
            .spec
            .ipc_mode
            .as_ref()?
            .donor()
            .filter(|_| workload.spec.state != WantedState::Absent)
    };

    let mut problems = Vec::new();
    let mut invalid = BTreeSet::new();
    let mut advised = 0;
    for (name, (document, _)) in &valid {
        let Some(target) = donor(name) else { continue };
        let problem = if !graph.winner.contains_key(target) {
            advised += 1;
            unknown(document, target, graph.winner.keys().filter(|_| advised <= ADVISED))
        } else if let Some((donor_document, workload)) = valid.get(target) {
            match unshareable(workload) {
                Some((why, hint)) => not_shareable(document, donor_document, &why, hint),
                None => continue,
            }
        } else {
            continue;
        };
        invalid.insert((*name).clone());
        problems.push(problem);
    }
    for cycle in cycles(valid.keys().copied(), donor) {
        for name in &cycle {
            if let Some((document, _)) = valid.get(name) {
                invalid.insert((*name).clone());
                problems.push(in_cycle(document, &cycle, name));
            }
        }
    }
    let end = |name: &Name| -> Option<Name> {
        let mut at = name;
        // A chain visits each workload once; one in a circle is invalid.
        for _ in 0..=valid.len() {
            if invalid.contains(at) || !valid.contains_key(at) {
                return None;
            }
            match donor(at) {
                Some(next) => at = next,
                None => return Some(at.clone()),
            }
        }
        None
    };
    let roots = valid.keys().filter(|name| donor(name).is_some());
    let roots: BTreeMap<Name, Name> =
        roots.filter_map(|name| Some(((*name).clone(), end(name)?))).collect();
    graph.roots = roots;
    graph.invalid.extend(invalid);
    graph.problems.extend(problems);
    graph.problems.sort_by(|a, b| (&a.position, a.code).cmp(&(&b.position, b.code)));
    graph
}

fn duplicates(named: &[Named<'_>], graph: &mut Graph) {
    for (index, document) in named.iter().enumerate() {
        let Some(first) = graph.winner.get(document.name).map(|it| &named[*it]) else {
            graph.winner.insert(document.name.clone(), index);
            continue;
        };
        let same = first.workload.is_some() && first.workload == document.workload;
        let (severity, hint) = if same {
            (Severity::Warning, "both say the same, so nothing changes; remove one of them")
        } else {
            graph.invalid.insert(document.name.clone());
            (
                Severity::Error,
                "give one of them another name; until then the workload is kept as it is",
            )
        };
        let place = place(document, document.places.name.as_ref());
        let message = format!("`{}` is named at {} as well", document.name, name_position(first));
        let problem = Problem::at(&place, severity, "duplicate-name", message);
        graph.problems.push(Problem {
            workload: Some(document.name.clone()),
            hint: Some(hint.to_owned()),
            related: Some(name_position(first)),
            ..problem
        });
    }
}

fn unknown<'a>(
    document: &Named<'_>,
    target: &Name,
    names: impl Iterator<Item = &'a Name>,
) -> Problem {
    let message = format!("no manifest names `{target}`, the workload to join");
    let problem = problem(document, "ipc-donor-unknown", message);
    let others = names.filter(|it| *it != document.name).map(Name::as_str);
    match crate::manifest::nearest(target.as_str(), others) {
        Some(other) => Problem {
            hint: Some(format!("did you mean `container:{other}`?")),
            fix: Some(format!("container:{other}")),
            ..problem
        },
        None => Problem {
            hint: Some("a donor is a workload of these manifests, called by its name".to_owned()),
            ..problem
        },
    }
}

/// Why a workload cannot be joined, and what to do about it.
fn unshareable(donor: &Workload) -> Option<(String, &'static str)> {
    let hint = "write `ipcMode: shareable` there";
    match &donor.spec.ipc_mode {
        // Its own donor is its own affair; through it others join what it has joined.
        Some(IpcMode::Shareable | IpcMode::Container(_)) => donor.spec.has_own_shm().then(|| {
            (
                format!("has its own mount on {DEV_SHM}"),
                "only a /dev/shm of ours can be joined: remove that mount",
            )
        }),
        Some(mode @ (IpcMode::None | IpcMode::Private | IpcMode::Host)) => {
            Some((format!("is `{mode}`"), hint))
        }
        None => Some(("does not say that it can be joined".to_owned(), hint)),
    }
}

fn not_shareable(document: &Named<'_>, donor: &Named<'_>, why: &str, hint: &str) -> Problem {
    let message = format!("`{}` cannot be joined: it {why}", donor.name);
    let related = donor
        .places
        .ipc_mode
        .as_ref()
        .map_or_else(|| name_position(donor), |it| it.position.clone());
    let problem = problem(document, "ipc-donor-not-shareable", message);
    Problem { hint: Some(hint.to_owned()), related: Some(related), ..problem }
}

fn in_cycle(document: &Named<'_>, cycle: &[&Name], name: &Name) -> Problem {
    let start = cycle.iter().position(|it| *it == name).unwrap_or_default();
    let mut path: Vec<String> =
        cycle.iter().cycle().skip(start).take(cycle.len()).map(|it| format!("`{it}`")).collect();
    if path.len() > SHOWN_IN_CYCLE {
        let left_out = path.len() - SHOWN_IN_CYCLE;
        path.truncate(SHOWN_IN_CYCLE);
        path.push(format!("{left_out} more"));
    }
    path.push(format!("`{name}`"));
    let message = format!("a circle of workloads that join each other: {}", path.join(" → "));
    let problem = problem(document, "ipc-cycle", message);
    Problem { hint: Some("make one of them `shareable`".to_owned()), ..problem }
}

/// The circles in which workloads join each other, each from its smallest name on.
///
/// Every workload joins at most one other, so a walk from each name finds them all, and each name is walked once.
fn cycles<'a>(
    names: impl Iterator<Item = &'a Name>,
    donor: impl Fn(&Name) -> Option<&'a Name>,
) -> Vec<Vec<&'a Name>> {
    let mut done: BTreeSet<&Name> = BTreeSet::new();
    let mut cycles = Vec::new();
    for name in names {
        let mut path: Vec<&Name> = Vec::new();
        let mut on_path: BTreeSet<&Name> = BTreeSet::new();
        let mut at = Some(name);
        while let Some(here) = at.filter(|it| !done.contains(*it)) {
            if !on_path.insert(here) {
                let start = path.iter().position(|it| *it == here).unwrap_or_default();
                let mut cycle = path.split_off(start);
                let smallest =
                    cycle.iter().enumerate().min_by_key(|(_, it)| **it).map_or(0, |it| it.0);
                cycle.rotate_left(smallest);
                cycles.push(cycle);
                break;
            }
            path.push(here);
            at = donor(here);
        }
        done.extend(on_path);
    }
    cycles
}

fn problem(document: &Named<'_>, code: &'static str, message: String) -> Problem {
    let place = place(document, document.places.ipc_mode.as_ref());
    let problem = Problem::at(&place, Severity::Error, code, message);
    Problem { workload: Some(document.name.clone()), ..problem }
}

fn name_position(document: &Named<'_>) -> Position {
    document.places.name.as_ref().map_or(document.position, |it| &it.position).clone()
}

/// A value's place; the document's start when the value's is not known.
fn place(document: &Named<'_>, place: Option<&Place>) -> Place {
    let start = || Place {
        position: document.position.clone(),
        pointer: String::new(),
        bytes: 0..0,
        source_line: String::new(),
    };
    place.cloned().unwrap_or_else(start)
}

#[cfg(test)]
mod tests;
