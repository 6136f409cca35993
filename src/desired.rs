//! What the manifests want: all workloads of all sources, cross-references checked, and what could not be understood.
//!
//! Pure: [`History::fold`] takes scans and a time. It reads no file and looks at no container.

pub mod graph;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::manifest::{Problem, Reading};
use crate::workload::{Name, Workload};

pub mod history;

pub use history::{Believing, History};

/// Time since boot, suspended time included (`CLOCK_BOOTTIME`): it never jumps, and equals across processes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct BootTime(pub Duration);

impl std::ops::Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl BootTime {
    /// Time from `earlier` to `self`; zero when it is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// A root that manifests come from: a directory, a single file, or stdin (`-`).
///
/// Invariant: absolute (or `-`), without `.`, `..` and trailing slashes; symlinks not resolved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Source(PathBuf);

impl Source {
    /// `path` made absolute below `current` and cleaned in its text only.
    pub fn new(current: &std::path::Path, path: &std::path::Path) -> Self {
        use std::path::Component;
        if path.as_os_str() == "-" {
            return Self(path.to_owned());
        }
        let mut clean = PathBuf::from("/");
        for part in current.join(path).components() {
            match part {
                Component::Normal(part) => clean.push(part),
                Component::ParentDir => {
                    clean.pop();
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Self(clean)
    }

    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    pub fn is_stdin(&self) -> bool {
        self.0.as_os_str() == "-"
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Which document a workload comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    pub source: Source,
    /// Path below the source; empty for a single file and stdin.
    pub file: PathBuf,
    /// Index of the document in the file, from 0.
    pub document: usize,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = if self.file.as_os_str().is_empty() {
            self.source.path().to_owned()
        } else {
            self.source.path().join(&self.file)
        };
        match self.document {
            0 => write!(f, "{}", path.display()),
            n => write!(f, "{} (document {})", path.display(), n + 1),
        }
    }
}

/// One look at one source, made at one time. What the edge hands to the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    pub source: Source,
    pub at: BootTime,
    /// When anything in the source was last seen to change; the time of the first scan at start.
    pub last_change: BootTime,
    pub root: Root,
    /// Files that count, by their path below the source; empty path for a single file and stdin.
    /// A file that has not settled yet is here with its last settled reading, or `Unsettled`.
    pub files: BTreeMap<PathBuf, FileState>,
    /// What else there is below a directory, by its path below the source.
    pub below: BTreeMap<PathBuf, Below>,
}

/// Something below a source that files are found in, or may be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Below {
    Directory {
        device: u64,
    },
    /// It may be a directory, and cannot be looked into; a stable code says why.
    Unknown {
        code: &'static str,
    },
}

/// What a source's root was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    Directory {
        device: u64,
    },
    /// A single file or stdin: nothing is ever removed on its account.
    File,
    Missing,
    Unreadable(String),
}

/// A file of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    Settled(Arc<Reading>),
    /// Being written, and never read whole before: counts as unreadable.
    Unsettled,
}

/// Everything that is wanted now. A value: equal inputs give equal states.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredState {
    /// Every given source, in the order given.
    pub sources: BTreeMap<Source, SourceState>,
    pub workloads: BTreeMap<Name, Wanted>,
    /// All problems of all files, by position.
    pub problems: Vec<Problem>,
}

/// A workload that a document names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub origin: Origin,
    /// `None`: its document has problems; it is held as it was last applied.
    pub workload: Option<Arc<Workload>>,
}

/// What the absence of a document from a source may mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceState {
    /// Whether absence from this source can remove anything at all: not for single files and stdin.
    pub prunes: bool,
    /// Why nothing of this source is removed now; the worst first. Empty when absence is believable.
    pub blockers: Vec<Blocker>,
    /// What holds only some workloads: files with foreign documents or nothing but comments, and directories that are
    /// not what they were.
    pub partial: Vec<PartialHold>,
    /// Absence acts from then on; later changes move it.
    pub absence_acts_at: BootTime,
    /// Names that were here before and are absent, with the time from which their absence acts at the latest.
    pub absent: BTreeMap<Name, BootTime>,
    /// The same for every other name: what an earlier run has started may be absent from the first scan on.
    pub unseen_acts_at: BootTime,
    /// The latest of the times above that a scan has passed: absence acts only after a look that confirms it.
    pub confirmed: BootTime,
    /// Number of documents that name a workload.
    pub documents: usize,
}

impl SourceState {
    /// From when on the absence of `name` acts, once a look has confirmed it.
    pub fn acts_at(&self, name: &Name) -> BootTime {
        self.absence_acts_at.min(self.absent.get(name).copied().unwrap_or(self.unseen_acts_at))
    }
}

/// Why nothing of a source is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blocker {
    /// A stable code: `source-missing`, `source-unreadable`, `source-emptied`, `source-replaced`, or the code of
    /// the file's problem.
    pub code: &'static str,
    /// The file, or the root.
    pub path: PathBuf,
    pub message: String,
    pub since: BootTime,
}

/// A file or directory that holds the workloads that came from it, and those it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialHold {
    /// Path below the source.
    pub file: PathBuf,
    /// `foreign-document` or `comments-only`; of a directory `source-replaced`, or why it cannot be looked into.
    pub code: &'static str,
    pub names: BTreeSet<String>,
    pub since: BootTime,
}

/// What it means that no document names a workload that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absence {
    /// Its source is not among those given: it is listed, and left alone.
    Unclaimed,
    /// It came from a single file or stdin, or a document does name it: absence never removes it.
    Never,
    /// Something may hide its document, or its source cannot be believed now.
    Held { code: &'static str, path: PathBuf, message: String, since: BootTime },
    /// Absent, but not for long enough, or not confirmed by a look since.
    Pending { until: BootTime },
    /// It may be removed, as far as its source is concerned.
    Acts,
}

impl DesiredState {
    /// What the absence of `name` means, whose instance says that it came from `origin`.
    pub fn removal(&self, name: &Name, origin: &Origin, now: BootTime) -> Absence {
        if self.workloads.contains_key(name) {
            return Absence::Never;
        }
        let Some(home) = self.sources.get(&origin.source) else {
            return Absence::Unclaimed;
        };
        if !home.prunes {
            return Absence::Never;
        }
        // The source that its document was last seen in may be another one than the instance's label says, when the
        // document moved and vanished before the label was written anew.
        let last_seen = self.sources.iter().filter(|(_, it)| it.absent.contains_key(name));
        let concerned = || std::iter::once((&origin.source, home)).chain(last_seen.clone());
        if let Some(blocker) = concerned().find_map(|(_, it)| it.blockers.first()) {
            return Absence::Held {
                code: blocker.code,
                path: blocker.path.clone(),
                message: blocker.message.clone(),
                since: blocker.since,
            };
        }
        for (source, state) in &self.sources {
            let holds = |it: &&PartialHold| {
                it.names.contains(name.as_str())
                    || (*source == origin.source && origin.file.starts_with(&it.file))
            };
            if let Some(hold) = state.partial.iter().find(holds) {
                return Absence::Held {
                    code: hold.code,
                    path: source.path().join(&hold.file),
                    message: match hold.code {
                        "comments-only" => {
                            format!("has nothing but comments and may have named `{name}`")
                        }
                        "foreign-document" => format!(
                            "has a document that is not Evenkeel's and may have named `{name}`"
                        ),
                        "source-replaced" => format!(
                            "is on another device than before, where `{name}` came from; believed after {} s with a \
                             valid manifest and nothing unreadable",
                            history::TRIAL.as_secs()
                        ),
                        _ => format!("cannot be followed, and `{name}` came from there"),
                    },
                    since: hold.since,
                };
            }
        }
        let late = concerned().map(|(_, it)| it.acts_at(name)).max().unwrap_or_default();
        let confirmed = concerned().all(|(_, it)| it.confirmed >= it.acts_at(name));
        if now >= late && confirmed { Absence::Acts } else { Absence::Pending { until: late } }
    }
}
