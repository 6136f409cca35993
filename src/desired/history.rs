//! What scans mean when they are seen in a row: which absence is believed, since when something is in the way, and
//! what the manifests want together; [`History::fold`].
//!
//! Pure: times are arguments, and a scan is a value. It does not decide how much may be removed at once, nor what a
//! donor's joiners have to say about it: that is the plan's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::desired::graph::{self, Named};
use crate::desired::{
    Below, Blocker, BootTime, DesiredState, FileState, Origin, PartialHold, Root, Scan, Source,
    SourceState, Wanted,
};
use crate::manifest::{Content, Problem, Reading};
use crate::workload::{Name, Workload};

/// How long a source must have been quiet before an absence acts: git replaces a file by unlink and create, and a
/// checkout of 3,000 small files leaves a moved one absent for up to 370 ms on a fast disk.
pub const REMOVE_AFTER: Duration = Duration::from_secs(2);

/// An absence acts after this time although the source never becomes quiet: a program that writes a file every
/// second must not keep a removed workload alive for ever. Where quiet is asked for longer than that, after that time.
pub const LATEST: Duration = Duration::from_mins(1);

/// A root on another device is believed again after it has been good for so long: longer than a mount takes to be
/// filled, short enough for a person who waits.
pub const TRIAL: Duration = Duration::from_secs(10);

/// Absent names that are remembered for each source; the ones that became absent first are forgotten first, and the
/// source's own time counts for them then.
const ABSENT_LIMIT: usize = 10_000;

/// How much must happen before an absence is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Believing {
    /// Time without a change in a source before what is absent from it may be removed.
    pub remove_after: Duration,
    /// An empty root that was read without an error means that nothing is wanted.
    pub allow_empty: bool,
}

impl Default for Believing {
    fn default() -> Self {
        Self { remove_after: REMOVE_AFTER, allow_empty: false }
    }
}

/// What is remembered from scan to scan. Starts empty with each run of the controller.
#[derive(Debug, Clone, Default)]
pub struct History {
    sources: BTreeMap<Source, Past>,
    /// Workloads of the last state, so that an unchanged one stays the same value in memory.
    workloads: BTreeMap<Name, Arc<Workload>>,
    due: Option<BootTime>,
}

/// What is remembered of one source.
#[derive(Debug, Clone, Default)]
struct Past {
    single: bool,
    /// Device number of the root that is believed.
    device: Option<u64>,
    trial: Option<Trial>,
    /// The same of each directory below it: manifests may be on a mount there.
    below: BTreeMap<PathBuf, (u64, Option<Trial>)>,
    /// Since when each path is in the way.
    blocked: BTreeMap<PathBuf, BootTime>,
    partial: BTreeMap<PathBuf, BootTime>,
    present: BTreeSet<Name>,
    /// Since when each name is absent; `None`: the time does not run, because something is in the way.
    absent: BTreeMap<Name, Option<BootTime>>,
    /// Since when any other name is.
    unseen: Option<BootTime>,
    /// The last scan that had something in the way.
    last_blocked: Option<BootTime>,
}

/// A root on a device that is not believed yet.
#[derive(Debug, Clone, Copy)]
struct Trial {
    device: u64,
    /// Since when it has a valid manifest and nothing unreadable.
    good: Option<BootTime>,
}

impl History {
    /// Takes the present scans of all given sources and returns what they want.
    ///
    /// `now` is not before the end of the scans; what they show for the first time may have happened until then.
    /// Equal scans at a later time give an equal state, unless a time that something waited for has passed.
    pub fn fold(&mut self, scans: &[Scan], now: BootTime, options: &Believing) -> DesiredState {
        let readings = scans.iter().flat_map(settled);
        let together =
            Together::of(readings.map(|(scan, file, reading)| (&scan.source, file, reading)));
        self.sources.retain(|source, _| scans.iter().any(|scan| scan.source == *source));
        self.due = None;

        let mut state = DesiredState { problems: together.problems, ..DesiredState::default() };
        for (name, (origin, workload)) in together.workloads {
            let workload = workload.map(|new| match self.workloads.get(&name) {
                Some(old) if **old == *new => Arc::clone(old),
                _ => Arc::new(new.clone()),
            });
            state.workloads.insert(name, Wanted { origin, workload });
        }
        let known =
            |(name, wanted): (&Name, &Wanted)| Some((name.clone(), wanted.workload.clone()?));
        self.workloads = state.workloads.iter().filter_map(known).collect();

        for scan in scans {
            let past = self.sources.entry(scan.source.clone()).or_default();
            let (source, due) = past.fold(scan, &state.workloads, now, options);
            state.sources.insert(scan.source.clone(), source);
            self.due = self.due.into_iter().chain(due).min();
        }
        state
    }

    /// When another look is needed although nothing changes: to confirm an absence, or to end a trial.
    pub fn due(&self) -> Option<BootTime> {
        self.due
    }
}

/// The files of a scan that were read whole.
fn settled(scan: &Scan) -> impl Iterator<Item = (&Scan, &Path, &Reading)> {
    scan.files.iter().filter_map(move |(file, state)| match state {
        FileState::Settled(reading) => Some((scan, file.as_path(), &**reading)),
        FileState::Unsettled => None,
    })
}

/// What several files want together.
pub struct Together<'a> {
    /// Of all files and across them, by position.
    pub problems: Vec<Problem>,
    /// The document that counts for each name; `None`: it has problems.
    pub workloads: BTreeMap<Name, (Origin, Option<&'a Workload>)>,
}

impl<'a> Together<'a> {
    /// Checks the documents of `readings`, given with their source and their path below it, against each other.
    pub fn of(readings: impl Iterator<Item = (&'a Source, &'a Path, &'a Reading)>) -> Self {
        let mut problems = Vec::new();
        let mut named = Vec::new();
        for (source, file, reading) in readings {
            problems.extend(reading.problems.iter().cloned());
            for document in &reading.documents {
                if let Content::Workload { name, workload, places } = &document.content {
                    let origin = Origin {
                        source: source.clone(),
                        file: file.to_owned(),
                        document: document.index,
                    };
                    let position = &document.position;
                    named.push(Named {
                        origin,
                        name,
                        workload: workload.as_deref(),
                        places,
                        position,
                    });
                }
            }
        }
        let graph = graph::check(&named);
        problems.extend(graph.problems);
        problems.sort_by(|a, b| {
            (&a.position, a.code, &a.pointer).cmp(&(&b.position, b.code, &b.pointer))
        });
        let workloads = graph.winner.into_iter().filter_map(|(name, index)| {
            let document = named.get(index)?;
            let workload = document.workload.filter(|_| !graph.invalid.contains(&name));
            Some((name, (document.origin.clone(), workload)))
        });
        let workloads = workloads.collect();
        Self { problems, workloads }
    }
}

impl Past {
    fn fold(
        &mut self,
        scan: &Scan,
        wanted: &BTreeMap<Name, Wanted>,
        now: BootTime,
        options: &Believing,
    ) -> (SourceState, Option<BootTime>) {
        let seen = Seen::of(scan);
        let mut due = Vec::new();
        match &scan.root {
            Root::File => self.single = true,
            Root::Directory { .. } => self.single = false,
            // What it was before; a root that was never there is taken for a directory, which holds more.
            Root::Missing | Root::Unreadable(_) => {}
        }

        let mut blockers = self.root_blockers(scan, &seen, now, options, &mut due);
        blockers.extend(seen.blockers);
        self.date(&mut blockers, now);
        let mut partial = seen.partial;
        partial.extend(self.unsure_below(scan, blockers.is_empty(), now, &mut due));
        let partial = self.date_partial(partial, now);

        let blocked = !blockers.is_empty();
        if blocked {
            self.last_blocked = Some(now);
        }
        // While something is in the way the time is only shown; afterwards it counts from the end of that.
        let quiet_since = match self.last_blocked {
            Some(last) if !blocked => scan.last_change.max(last),
            _ => scan.last_change,
        };
        let absence_acts_at = quiet_since + options.remove_after;

        self.note_absence(&seen.names, wanted, now, blocked);
        let longest = LATEST.max(options.remove_after);
        let latest = |since: Option<BootTime>| since.map_or(absence_acts_at, |it| it + longest);
        let absent: BTreeMap<Name, BootTime> =
            self.absent.iter().map(|(name, since)| (name.clone(), latest(*since))).collect();
        let unseen_acts_at = latest(self.unseen).min(absence_acts_at);

        let mut confirmed = BootTime::default();
        // What is absent from a single file may be another source's to remove.
        if !blocked && (!self.single || !absent.is_empty()) {
            for time in absent.values().copied().chain([unseen_acts_at, absence_acts_at]) {
                if time <= scan.at {
                    confirmed = confirmed.max(time);
                } else {
                    due.push(time);
                }
            }
        }
        let state = SourceState {
            prunes: !self.single && !scan.source.is_stdin(),
            blockers,
            partial,
            absence_acts_at,
            absent,
            unseen_acts_at,
            confirmed,
            documents: seen.documents,
        };
        (state, due.into_iter().min())
    }

    /// Why the root itself cannot be believed.
    fn root_blockers(
        &mut self,
        scan: &Scan,
        seen: &Seen,
        now: BootTime,
        options: &Believing,
        due: &mut Vec<BootTime>,
    ) -> Vec<Blocker> {
        let blocker = |code, message: String| Blocker {
            code,
            path: scan.source.path().to_owned(),
            message,
            since: BootTime::default(),
        };
        let device = match &scan.root {
            Root::Directory { device } => *device,
            Root::File => return Vec::new(),
            Root::Missing => {
                self.trial = None;
                return vec![blocker("source-missing", "does not exist".to_owned())];
            }
            Root::Unreadable(why) => {
                self.trial = None;
                return vec![blocker("source-unreadable", why.clone())];
            }
        };
        let mut blockers = Vec::new();
        match self.device {
            Some(believed) if believed != device => {
                let good = seen.valid > 0 && seen.blockers.is_empty();
                let since = self.trial.filter(|it| it.device == device).and_then(|it| it.good);
                let good = good.then_some(since.unwrap_or(now));
                self.trial = Some(Trial { device, good });
                match good {
                    Some(since) if scan.at >= since + TRIAL => {
                        self.device = Some(device);
                        self.trial = None;
                        self.below.clear();
                    }
                    _ => {
                        due.extend(good.map(|since| since + TRIAL));
                        let message = format!(
                            "is on another device than before; believed after {} s with a valid manifest and \
                             nothing unreadable",
                            TRIAL.as_secs()
                        );
                        blockers.push(blocker("source-replaced", message));
                    }
                }
            }
            _ => {
                self.device = Some(device);
                self.trial = None;
            }
        }
        if seen.documents == 0 && seen.blockers.is_empty() && !options.allow_empty {
            let message = "has no manifest at all; set `allowEmpty` if that is meant".to_owned();
            blockers.push(blocker("source-emptied", message));
        }
        blockers
    }

    /// Directories below the root that are not what they were, or cannot be looked into: what came from there is held.
    /// A mount that is gone leaves an empty directory.
    fn unsure_below(
        &mut self,
        scan: &Scan,
        nothing_in_the_way: bool,
        now: BootTime,
        due: &mut Vec<BootTime>,
    ) -> Vec<PartialHold> {
        let hold = |file: &PathBuf, code| PartialHold {
            file: file.clone(),
            code,
            names: BTreeSet::new(),
            since: BootTime::default(),
        };
        // What is below a root that is not believed is none of its directories.
        if !matches!(scan.root, Root::Directory { device } if self.device == Some(device)) {
            return Vec::new();
        }
        let mut holds = Vec::new();
        self.below.retain(|path, _| scan.below.contains_key(path));
        for (path, below) in &scan.below {
            let device = match below {
                Below::Directory { device } => *device,
                Below::Unknown { code } => {
                    holds.push(hold(path, code));
                    continue;
                }
            };
            let (believed, trial) = self.below.entry(path.clone()).or_insert((device, None));
            if *believed == device {
                *trial = None;
                continue;
            }
            let good = nothing_in_the_way && has_valid_below(scan, path);
            let since = trial.filter(|it| it.device == device).and_then(|it| it.good);
            let good = good.then_some(since.unwrap_or(now));
            match good {
                Some(since) if scan.at >= since + TRIAL => (*believed, *trial) = (device, None),
                _ => {
                    *trial = Some(Trial { device, good });
                    due.extend(good.map(|since| since + TRIAL));
                    holds.push(hold(path, "source-replaced"));
                }
            }
        }
        holds
    }

    /// Writes down since when each path is in the way, and forgets those that are not any more.
    fn date(&mut self, blockers: &mut [Blocker], now: BootTime) {
        let before = std::mem::take(&mut self.blocked);
        for blocker in blockers {
            blocker.since = before.get(&blocker.path).copied().unwrap_or(now);
            self.blocked.insert(blocker.path.clone(), blocker.since);
        }
    }

    fn date_partial(&mut self, mut partial: Vec<PartialHold>, now: BootTime) -> Vec<PartialHold> {
        let before = std::mem::take(&mut self.partial);
        for hold in &mut partial {
            hold.since = before.get(&hold.file).copied().unwrap_or(now);
            self.partial.insert(hold.file.clone(), hold.since);
        }
        partial
    }

    fn note_absence(
        &mut self,
        names: &BTreeSet<Name>,
        wanted: &BTreeMap<Name, Wanted>,
        now: BootTime,
        blocked: bool,
    ) {
        let gone = self.present.difference(names).cloned().map(|name| (name, None));
        self.absent.extend(gone);
        // A name that moved to another file or source is not absent.
        self.absent.retain(|name, _| !names.contains(name) && !wanted.contains_key(name));
        for since in self.absent.values_mut() {
            *since = if blocked { None } else { Some(since.unwrap_or(now)) };
        }
        self.unseen = if blocked { None } else { Some(self.unseen.unwrap_or(now)) };
        let too_many = self.absent.len().saturating_sub(ABSENT_LIMIT);
        if too_many > 0 {
            let mut first: Vec<_> =
                self.absent.iter().map(|(name, since)| (*since, name.clone())).collect();
            first.sort();
            for (_, name) in first.into_iter().take(too_many) {
                self.absent.remove(&name);
            }
            // They are among the others now, and may be absent only from this scan on.
            self.unseen = self.unseen.map(|_| now);
        }
        self.present.clone_from(names);
    }
}

fn has_valid_below(scan: &Scan, path: &Path) -> bool {
    let is_valid = |it: &Content| matches!(it, Content::Workload { workload: Some(_), .. });
    scan.files.iter().any(|(file, state)| match state {
        FileState::Settled(reading) => {
            file.starts_with(path) && reading.documents.iter().any(|it| is_valid(&it.content))
        }
        FileState::Unsettled => false,
    })
}

/// What one scan shows of one source.
struct Seen {
    names: BTreeSet<Name>,
    documents: usize,
    /// Documents without problems of their own.
    valid: usize,
    /// Files that may hide any workload, without their dates.
    blockers: Vec<Blocker>,
    partial: Vec<PartialHold>,
}

impl Seen {
    fn of(scan: &Scan) -> Self {
        let mut seen = Self {
            names: BTreeSet::new(),
            documents: 0,
            valid: 0,
            blockers: Vec::new(),
            partial: Vec::new(),
        };
        for (file, state) in &scan.files {
            let path = if file.as_os_str().is_empty() {
                scan.source.path().to_owned()
            } else {
                scan.source.path().join(file)
            };
            match state {
                FileState::Settled(reading) => seen.file(file, &path, reading),
                FileState::Unsettled => seen.blockers.push(Blocker {
                    code: "file-unsettled",
                    path,
                    message: "is still being written".to_owned(),
                    since: BootTime::default(),
                }),
            }
        }
        seen
    }

    fn file(&mut self, file: &Path, path: &Path, reading: &Reading) {
        let hides = |code: &'static str, fallback: &str| {
            let told = reading.problems.iter().find(|it| it.code == code);
            let message = told.map_or_else(|| fallback.to_owned(), |it| it.message.clone());
            Blocker { code, path: path.to_owned(), message, since: BootTime::default() }
        };
        if let Some(code) = reading.unreadable {
            self.blockers.push(hides(code, "cannot be read"));
            return;
        }
        let mut broken = BTreeSet::new();
        let mut foreign = BTreeSet::new();
        let mut partial = reading.comments_only.then_some("comments-only");
        for document in &reading.documents {
            match &document.content {
                Content::Workload { name, workload, .. } => {
                    self.documents += 1;
                    self.valid += usize::from(workload.is_some());
                    self.names.insert(name.clone());
                }
                Content::Foreign { name } => {
                    partial = Some("foreign-document");
                    foreign.extend(name.clone());
                }
                Content::Unreadable { code } => {
                    if broken.insert(*code) {
                        self.blockers.push(hides(code, "has a broken document"));
                    }
                }
            }
        }
        if let Some(code) = partial {
            self.partial.push(PartialHold {
                file: file.to_owned(),
                code,
                names: foreign,
                since: BootTime::default(),
            });
        }
    }
}

#[cfg(test)]
mod tests;
