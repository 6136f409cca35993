//! What is there: a snapshot of everything that carries our labels or lies under our directories.
//!
//! Only data. The edge fills it in ([`crate::runtime`], [`crate::host`], the run directory); the plan reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backoff::Strikes;
use crate::desired::{BootTime, Origin, Source};
use crate::workload::{InstanceId, IpcDefaults, Name, Revision, Workload};

/// A snapshot of what is ours on this box.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ObservedState {
    /// Changes at every boot.
    pub boot_id: String,
    pub instances: BTreeMap<InstanceId, Instance>,
    /// Tasks of our namespace without a container object.
    pub orphans: BTreeMap<InstanceId, Task>,
    /// What is left of instances of which the runtime knows no task: it has lost them.
    pub strays: BTreeMap<InstanceId, Stray>,
    /// Why it is not known whether there are more of those; `None`: there are none.
    pub strays_unknown: Option<String>,
    /// What an instance that is gone, or was never finished, left behind.
    pub leftovers: BTreeSet<Leftover>,
    /// The images that the manifests name, by their full name; absent: not to be had.
    pub images: BTreeMap<String, Image>,
    /// Every image that the runtime's store has a record of, by its name, wanted or not.
    pub stored_images: BTreeMap<String, StoredImage>,
    /// Those of them that no manifest names and an archive has; `None`: not known yet, archives are being read.
    pub archived_images: Option<BTreeSet<String>>,
    /// Images that living commands bring or change.
    pub images_in_hand: BTreeSet<String>,
    /// The file system that holds the images; `None`: not known.
    pub image_space: Option<Space>,
    /// What is wrong with archives of images, for people.
    pub archive_problems: Vec<String>,
    /// Archives that are still being read: an image that is not to be had may be in one of them.
    pub unread_archives: Vec<PathBuf>,
    /// Images can be had from registries.
    pub has_registries: bool,
    /// What is known of bringing images from there, by their full names, since this program runs.
    pub pulls: BTreeMap<String, Pull>,
    /// The bind sources that the manifests name, and what comes with the host's network; absent: not there.
    pub mount_sources: BTreeMap<PathBuf, FileKind>,
    /// What programs have to be given so that they do not inherit the runtime's protection from the kernel's killer of
    /// those who use too much memory; `None`: nothing.
    pub oom_score_adj: Option<i32>,
    /// Why mounts of ours cannot be shared with the runtime (`mounts-not-shared`); `None`: they can.
    pub mounts_not_shared: Option<String>,
    /// Programs without which the runtime can start no container, and which it does not find.
    pub missing_programs: BTreeSet<&'static str>,
    /// Why no container can have a cgroup, if that is known.
    pub cgroup_fault: Option<String>,
    /// Failures in a row and when the next try is due.
    pub strikes: BTreeMap<Name, Strikes>,
    /// Removals by absence in the last ten minutes.
    pub removals: Vec<Removal>,
    /// Held changes that a person released.
    pub approvals: BTreeSet<Approval>,
    /// What a person asked for beside the manifests.
    pub hands: BTreeMap<Name, Hand>,
    /// Files of such wishes that cannot be understood, and why; they count for nothing.
    pub broken_hands: BTreeMap<PathBuf, String>,
    /// Processes beside instances' programs whose commands live.
    pub execs: BTreeMap<InstanceId, Vec<Exec>>,
}

/// What is known of bringing an image from its registry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pull {
    /// It is under way.
    pub under_way: Option<Progress>,
    /// How the last try failed; `None`: it did not, or there was none.
    pub failure: Option<PullFailure>,
    /// When its registry was last asked, whatever came of it.
    pub asked: Option<BootTime>,
}

/// How much of an image is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes of its layers that are there, as they come: compressed.
    pub done: u64,
    /// Of so many; 0: not known yet.
    pub total: u64,
}

impl fmt::Display for Progress {
    /// `12 of 345 MiB`, or in smaller units.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.total {
            0..=9_999 => (1, "bytes"),
            10_000..=9_999_999 => (1 << 10, "KiB"),
            _ => (1 << 20, "MiB"),
        };
        write!(f, "{} of {} {name}", self.done / unit, self.total.div_ceil(unit))
    }
}

/// A pull that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullFailure {
    /// A stable kebab-case code.
    pub reason: &'static str,
    pub message: String,
    /// Failures in a row.
    pub count: u32,
    pub at: BootTime,
    /// When it is tried again.
    pub until: BootTime,
}

/// The process of the container runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeProcess {
    pub pid: u32,
    /// Where it looks for programs before it follows its `PATH`.
    pub directories: Vec<PathBuf>,
    /// Where it keeps the content of images, in its own root; `None`: it does not say.
    pub content: Option<PathBuf>,
}

/// One container of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    pub id: InstanceId,
    pub name: Name,
    pub revision: Revision,
    pub origin: Origin,
    /// The manifest that it was last applied with; `None`: cannot be read any more.
    pub workload: Option<Arc<Workload>>,
    /// The mode and size that stood for what the manifest left open when it was created.
    pub defaults: IpcDefaults,
    pub image: Image,
    /// Its snapshot is there; without one it has to be made again.
    pub has_snapshot: bool,
    /// The n-th start, written before it.
    pub run: Option<Run>,
    /// How the last recorded run ended, written before its task is deleted.
    pub end: Option<End>,
    /// The run that is being ended on purpose, written before its process is told: whatever its end looks like, it is
    /// not the program's own.
    pub ending: Option<u64>,
    pub task: Task,
    /// What it publishes under the run directory for joiners.
    pub published: Published,
    /// Which namespace and /dev/shm its process sees; `None`: no process, or not readable.
    pub view: Option<View>,
}

impl Instance {
    /// Whether its program began to run after that time, in that boot: no start that failed before is the last one.
    pub fn has_run_since(&self, at: BootTime, boot: &str) -> bool {
        let run = self.run.as_ref().filter(|it| it.boot == boot && it.at > at);
        let is_failed = |run: &Run| {
            self.end.as_ref().is_some_and(|end| end.n >= run.n && end.is_failed_start())
        };
        run.is_some_and(|it| !is_failed(it)) && !matches!(self.task, Task::Created { .. })
    }
}

/// containerd's task of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Task {
    #[default]
    None,
    Created {
        pid: u32,
    },
    Running {
        pid: u32,
    },
    Paused {
        pid: u32,
    },
    /// `at` is RFC 3339.
    Stopped {
        code: u32,
        at: String,
    },
    /// The runtime does not say.
    Unknown,
}

impl Task {
    /// A process that runs the user's program.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Running { pid } | Self::Paused { pid } => Some(*pid),
            Self::None | Self::Created { .. } | Self::Stopped { .. } | Self::Unknown => None,
        }
    }
}

/// What is left of an instance of which the runtime knows no task: processes that still run, or no more than what the
/// low-level runtime keeps of it, which is in the way of its next start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stray {
    /// Its living processes.
    pub pids: BTreeSet<u32>,
    /// The runtime does not say whether it has a task of it.
    pub unsure: bool,
}

/// Label `evenkeel/run`: which start this is, and in which boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub n: u64,
    /// Which start of the workload it is, over all its instances: what ran last is known after a reboot too, on a
    /// machine whose wall clock begins anew with each.
    #[serde(default)]
    pub order: u64,
    pub boot: String,
    /// Time since boot of the start.
    pub at: BootTime,
    /// Wall clock of the start, RFC 3339.
    pub started: String,
    /// Why it runs what was there, although it was to be asked before this start what the name of its image stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_unchecked: Option<String>,
}

impl Run {
    /// How long it lasted, in this boot: until `ended`, the wall clock at its end in RFC 3339, or `now` if nobody knows.
    ///
    /// What is noticed late has not lasted longer for that. A wall clock that was set meanwhile makes no run longer
    /// than it can have been, and one that was set back before the start says nothing.
    pub fn lasted(&self, now: BootTime, ended: Option<&str>) -> Duration {
        let most = now.since(self.at);
        let time = |text: &str| text.parse::<jiff::Timestamp>().ok();
        let between =
            ended.and_then(|ended| Some(time(ended)?.duration_since(time(&self.started)?)));
        between.and_then(|it| Duration::try_from(it).ok()).map_or(most, |it| it.min(most))
    }
}

/// Reasons of an [`End`]: the process ended by itself, was ended by us, or nobody knows.
pub const EXITED: &str = "exited";
pub const STOPPED: &str = "stopped";
pub const EXIT_UNKNOWN: &str = "exit-unknown";

/// Label `evenkeel/end`: how the n-th run ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct End {
    pub n: u64,
    /// The process's own code, or 128 + signal; 255 when it is not known.
    pub code: u32,
    /// [`EXITED`], [`STOPPED`], [`EXIT_UNKNOWN`], or the reason of a start that failed.
    pub reason: String,
    /// Wall clock, RFC 3339.
    pub at: String,
    /// How long the run lasted, as far as known, in milliseconds.
    #[serde(default)]
    pub lasted_ms: u64,
    /// Runs of this instance so far that failed: by their code, in an unknown way, or before they began. Those that
    /// were stopped on purpose or that a reboot took are none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub failures: u32,
    /// Its process was made and taken away before it began, by a crash in between: there was no exit to tell of.
    #[serde(default, skip_serializing_if = "is_default")]
    pub never_ran: bool,
    /// The last exit before this start, which failed or never began: it hides none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Exit>,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: u32,
    pub reason: String,
    pub at: String,
}

impl End {
    /// The exit that it tells of: its own, or the one before a start that came to nothing.
    pub fn exit(&self) -> Option<Exit> {
        if self.is_failed_start() || self.never_ran {
            return self.before.clone();
        }
        Some(Exit { code: self.code, reason: self.reason.clone(), at: self.at.clone() })
    }

    /// No process of the user has run.
    pub fn is_failed_start(&self) -> bool {
        ![EXITED, STOPPED, EXIT_UNKNOWN].contains(&self.reason.as_str())
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What stands under `<run>/ipc/<instance>/` by mountinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Published {
    /// The directory exists.
    pub directory: bool,
    /// Device number of the tmpfs mounted on `shm`.
    pub shm: Option<u64>,
    /// Number of mounts on `shm`; more than one is a leftover of a crash.
    pub shm_mounts: u32,
    /// An nsfs mount is on `ns`.
    pub ns: bool,
    /// Inode of the pinned namespace.
    pub ns_inode: Option<u64>,
}

/// The paths under which an instance publishes what joiners use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPaths {
    pub shm: PathBuf,
    pub ns: PathBuf,
}

/// `<run>/ipc/<instance>/{shm,ns}`.
pub fn published_paths(run_directory: &Path, id: &InstanceId) -> PublishedPaths {
    let directory = run_directory.join("ipc").join(id.as_str());
    PublishedPaths { shm: directory.join("shm"), ns: directory.join("ns") }
}

/// What a process sees. Identifies only what is alive: numbers are reused at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Inode of its IPC namespace.
    pub ipc_ns: u64,
    /// Device number of its /dev/shm; `None`: it has none of its own.
    pub shm: Option<u64>,
    /// Inode of the root of its /dev/shm mount's file system, to tell directories of one device apart.
    pub shm_root: Option<u64>,
}

/// An image that a workload can be made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Full name: `docker.io/library/redis:7`.
    pub name: String,
    /// Digest of the target that the name points at: `sha256:…`.
    pub digest: String,
    pub config: ImageConfig,
    #[serde(skip)]
    pub place: ImagePlace,
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ImagePlace {
    /// In containerd.
    #[default]
    Store,
    /// In an archive that has to be imported first.
    Archive(PathBuf),
}

/// What the store has under the name of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Of what the name points at.
    pub digest: String,
    /// How we brought it; `None`: somebody else did, and it is left alone.
    pub came: Option<Came>,
    /// Bytes of what of it this machine needs, as they are stored, compressed; 0: not known.
    pub size: u64,
    /// A person wants it kept.
    pub pinned: bool,
    /// Nothing has used it since.
    pub unused: Option<Unused>,
}

/// How an image of ours came into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Came {
    /// From its registry.
    Pulled,
    /// From an archive.
    Imported,
}

impl Came {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pulled => "pulled",
            Self::Imported => "imported",
        }
    }
}

impl std::str::FromStr for Came {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Pulled, Self::Imported].into_iter().find(|it| it.as_str() == text).ok_or(())
    }
}

/// Since when nothing uses an image: as seconds after the start of a boot, since a wall clock may jump by decades.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unused {
    pub boot: String,
    pub at: BootTime,
}

impl std::fmt::Display for Unused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.boot, self.at.0.as_secs())
    }
}

impl std::str::FromStr for Unused {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (boot, seconds) = text.split_once(' ').ok_or(())?;
        let at = BootTime(Duration::from_secs(seconds.parse().map_err(|_| ())?));
        Ok(Self { boot: boot.to_owned(), at })
    }
}

/// How much room a file system has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    /// What may still be written.
    pub free: u64,
}

impl Space {
    /// Per cent of it that are taken.
    pub fn fill(self) -> u64 {
        if self.total == 0 {
            return 0;
        }
        let taken = u128::from(self.total.saturating_sub(self.free)) * 100;
        u64::try_from(taken / u128::from(self.total)).unwrap_or(100)
    }
}

/// The part of an OCI image configuration that a container is made from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: String,
    /// The uncompressed layers' digests, from the lowest.
    pub diff_ids: Vec<String>,
}

/// What a path on the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    Directory,
    Other,
    /// It does not answer, as on a file system whose server is gone.
    Silent,
}

/// Something of ours without an instance that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leftover {
    Lease(String),
    Snapshot(String),
    /// `<run>/ipc/<instance>` and the mounts below it.
    Published(InstanceId),
    /// `<state>/logs/<instance>`.
    Logs(InstanceId),
    /// Strikes of a workload that is neither wanted nor there.
    Strikes(Name),
    /// A release of a removal that has become pointless: the workload is wanted again, or its instance is gone.
    Approval(Approval),
    /// What a person asked for that is done, or has become pointless. Only just that: a newer wish stays.
    Hand(Name, Hand),
    /// A process beside an instance's program whose command was killed, by its key, and its FIFOs.
    Exec(InstanceId, String),
}

/// A process beside an instance's program, whose command lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Of the command.
    pub pid: u32,
    /// Wall clock, RFC 3339, for people.
    pub since: String,
}

/// What a person asked for of one workload beside its manifest; the newest one counts. Kept under the run directory,
/// so a reboot forgets it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hand {
    pub kind: HandKind,
    /// When it was asked.
    pub at: BootTime,
    /// In which boot; in another one it counts for nothing.
    pub boot_id: String,
    /// With [`HandKind::Restart`]: from the image anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
}

/// See [`Hand`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandKind {
    /// Stays stopped, whatever its manifest says, until a person starts it.
    Stop,
    /// Ends a stop, and is tried at once.
    Start,
    /// Runs anew, once.
    Restart,
    /// Its failures are forgotten, and it is tried at once.
    Retry,
    /// Is removed, though no manifest's absence says so.
    Down,
}

/// A removal by absence, for the limit on how much may vanish at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removal {
    pub source: Source,
    pub name: Name,
    pub at: BootTime,
    /// How many workloads the source had then, this one included.
    pub of: usize,
}

/// A held removal that a person released.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    pub name: Name,
    pub instance: InstanceId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_lasts_until_its_end_whoever_looks_when_and_whatever_the_clock_says() {
        let seconds = |n| BootTime(Duration::from_secs(n));
        let run = Run {
            n: 1,
            order: 1,
            boot: String::new(),
            at: seconds(100),
            started: "2026-01-01T00:00:00.000Z".to_owned(),
            image_unchecked: None,
        };
        let rows = [
            (None, 160, 60),
            (Some("2026-01-01T00:00:05Z"), 105, 5),
            (Some("2026-01-01T00:00:05Z"), 160, 5),
            (Some("2026-01-01T05:00:05+05:00"), 160, 5),
            // The clock was set forward by a day while it ran; back by an hour; somebody wrote nonsense.
            (Some("2026-01-02T00:00:05Z"), 105, 5),
            (Some("2025-12-31T23:00:05Z"), 105, 5),
            (Some("yesterday"), 105, 5),
        ];
        for (ended, now, lasted) in rows {
            assert_eq!(run.lasted(seconds(now), ended), Duration::from_secs(lasted), "{ended:?}");
        }
    }
}
