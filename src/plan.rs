//! What has to be done: [`diff`] of what is wanted and what is there, as a graph of steps with a cause each.
//!
//! Pure: no clock, no file, no log; the plan *is* the log. A plan is complete, every step to convergence as if each
//! one succeeds; what cannot be done now is in the standings, with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backoff::Delays;
use crate::desired::{BootTime, Origin, Source};
use crate::observed::{Approval, Exit, HandKind, Image, ImageConfig, Leftover, Unused, View};
use crate::oci::Blueprint;
use crate::workload::{
    Bytes, InstanceId, IpcDefaults, Name, RestartPolicy, Revision, Signal, Span, StopTimeout,
    Workload,
};

mod decide;
mod diff;
#[cfg(test)]
mod tests;

pub use decide::{Again, Decision, Fit, Have, Want, decide};
pub use diff::{ImageUse, ImageUses, diff, down, image_uses, import_lease, pull_lease, shutdown};

/// How long a removal by absence counts against the limit on how much may vanish at once.
pub const PRUNE_WINDOW: Duration = Duration::from_mins(10);

/// What the plan follows besides the two states: settings only, no facts.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// For what new instances' manifests leave open.
    pub ipc: IpcDefaults,
    pub restart: RestartPolicy,
    pub delays: Delays,
    pub log: LogDefaults,
    pub images: ImagePolicy,
    /// Share of a source's workloads that may go by absence within [`PRUNE_WINDOW`], in per cent.
    pub prune_limit: u32,
    pub run_directory: PathBuf,
    pub log_directory: PathBuf,
    /// `/evenkeel`, or `/evenkeel-<8 hex>` for another than the default run directory.
    pub cgroup_parent: String,
}

/// What a manifest's `log` leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogDefaults {
    pub max_size: Bytes,
    pub max_files: u32,
}

/// How long images are kept that nothing needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImagePolicy {
    /// Within one boot.
    pub grace: Duration,
    /// From so many per cent on that the disk is full, the oldest go before that, until it is down to `low`.
    pub high: u32,
    pub low: u32,
}

impl Default for ImagePolicy {
    fn default() -> Self {
        Self { grace: Duration::from_hours(24), high: 85, low: 80 }
    }
}

/// Reasons of a workload that waits for its image: it comes, or the last try failed.
pub const PULLING: &str = "image-pulling";
pub const PULL_FAILED: &str = "image-pull-failed";

/// Everything to be done, and how each workload stands.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// In an order in which every step comes after those it requires.
    pub steps: Vec<Step>,
    pub standings: BTreeMap<Name, Standing>,
    /// Removals that wait for a person.
    pub holds: Vec<Hold>,
    /// When something that waits is due, later than the time that the plan was made for; look again then.
    pub wake: Option<BootTime>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether what a workload waits for comes without anybody's help and before long, so that a command waits for it: a
    /// removal that acts, a joiner that follows, an image that is being pulled, or an archive that is being read.
    pub fn is_soon(&self, standing: &Standing) -> bool {
        match standing.reason {
            "removal-pending" | "donor-changed" => self.wake.is_some(),
            reason => matches!(reason, "archive-unread" | "image-pulling"),
        }
    }

    /// Puts a step at the end; `requires` must name steps before it.
    fn push(
        &mut self,
        name: Option<&Name>,
        action: Action,
        cause: Cause,
        requires: Vec<StepId>,
    ) -> StepId {
        let id = StepId(self.steps.len());
        debug_assert!(requires.iter().all(|it| *it < id), "a step comes after those it requires");
        self.steps.push(Step {
            name: name.cloned(),
            action,
            cause,
            requires,
            pause: Duration::ZERO,
        });
        id
    }
}

/// A step's place in its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub usize);

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The workload it belongs to; `None` for leftovers.
    pub name: Option<Name>,
    pub action: Action,
    pub cause: Cause,
    /// Steps that have to succeed before.
    pub requires: Vec<StepId>,
    /// Time between the last of them and this one. The controller leaves it to the plan that is made then.
    pub pause: Duration,
}

impl Step {
    /// The workload that it belongs to, or those that wait for what it brings.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        let wanted = if let Cause::Wanted(names) = &self.cause { Some(names) } else { None };
        self.name.iter().chain(wanted.into_iter().flatten())
    }
}

/// What a step does. Carries all that doing it needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Brings an image from an archive into the store.
    Import { image: Image },
    /// Brings an image from its registry into the store, unless what the name stands for is there. `known`: the digest
    /// of what is there.
    Pull { image: String, known: Option<String> },
    /// Writes down since when nothing uses an image, or that something does again.
    MarkImage { name: String, digest: String, unused: Option<Unused> },
    /// Removes an image of ours from the store, with what only it needs.
    RemoveImage { name: String, digest: String },
    /// Makes the snapshot and the container object of an instance, beside a running one.
    Prepare(Box<Prepare>),
    /// Writes changed settings to a container object in place; its process does not notice.
    Update(Box<Relabel>),
    /// Ends the main process and records how it ended.
    Stop(StopInstance),
    /// Lets a paused task run again.
    Resume { id: InstanceId },
    /// Records the end of a run that is over, and deletes what is left of its task.
    Finish(Finish),
    /// Runs an instance's main process.
    Start(Box<Start>),
    /// Pins the IPC namespace of a running instance again, whose pid is given.
    Publish { id: InstanceId, pid: u32 },
    /// Removes what an instance that has ended has, and keeps the container object, which says how it ended.
    Clear { id: InstanceId },
    /// Removes a stopped instance with everything that it has.
    Remove { id: InstanceId, by_absence: Option<ByAbsence> },
    /// Kills and removes a task that has no container object.
    RemoveOrphan { id: InstanceId, pid: Option<u32> },
    /// Ends what the runtime has lost of an instance, and removes what is left of it.
    RemoveStray(RemoveStray),
    /// Removes what no instance owns.
    Sweep(Leftover),
}

/// See [`Action::Prepare`].
#[derive(Debug, Clone, PartialEq)]
pub struct Prepare {
    pub id: InstanceId,
    pub revision: Revision,
    pub origin: Origin,
    pub workload: Arc<Workload>,
    pub defaults: IpcDefaults,
    pub image: Image,
    /// Only the snapshot is missing.
    pub snapshot_only: bool,
}

/// See [`Action::Update`].
#[derive(Debug, Clone, PartialEq)]
pub struct Relabel {
    pub id: InstanceId,
    pub origin: Origin,
    pub workload: Arc<Workload>,
    /// A stop that was begun is not wanted any more: its end will be its own.
    pub calls_off_stop: bool,
}

/// See [`Action::Stop`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopInstance {
    pub id: InstanceId,
    pub signal: Signal,
    pub timeout: StopTimeout,
    pub paused: bool,
    /// Its main process, for when nothing else ends it.
    pub pid: Option<u32>,
    /// Which run ends; 0: none, its process was created and never ran.
    pub run: u64,
    /// It has to be written down first that this run is ended on purpose.
    pub note: bool,
    pub started: Option<BootTime>,
    /// Runs of the instance that failed so far; this one is none.
    pub failures: u32,
}

/// See [`Action::RemoveStray`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoveStray {
    pub id: InstanceId,
    pub signal: Signal,
    pub timeout: StopTimeout,
}

/// See [`Action::Finish`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    pub id: InstanceId,
    pub revision: Revision,
    pub run: u64,
    /// The exit, or `None` when nobody saw it; a created task whose run is not noted has `run` 0.
    pub exit: Option<(u32, String)>,
    /// Its process was created and never ran, although its run is noted: that ends as one that was stopped.
    pub never_ran: bool,
    /// The exit before that, then.
    pub before: Option<Exit>,
    /// It was being ended on purpose, by one who did not get to write down that it has: as one that was stopped too.
    pub stopped: bool,
    pub started: Option<BootTime>,
    /// How long it ran, as far as that is known.
    pub lasted: Duration,
    /// Failures in a row after this one, and the name they are kept under.
    pub strikes: u32,
    /// Runs of the instance that failed so far, this one included if it did.
    pub failures: u32,
}

/// See [`Action::Start`].
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    pub id: InstanceId,
    pub revision: Revision,
    /// The n-th start of this instance.
    pub run: u64,
    /// The n-th start of the workload, over all its instances.
    pub order: u64,
    /// See [`crate::observed::Run::image_unchecked`].
    pub image_unchecked: Option<String>,
    /// What its spec is made from, at the start.
    pub blueprint: Box<Blueprint>,
    /// Size of the /dev/shm to publish; `None`: nothing is published.
    pub publish: Option<Bytes>,
    pub expect: Expect,
    /// Through whom it joins: its donor first, and last the one whose namespace it is. All of them have to run when it
    /// starts; empty when it joins nobody.
    pub donors: Vec<InstanceId>,
    pub log: Log,
    /// Missing bind sources that the manifest wants made.
    pub make_directories: Vec<PathBuf>,
    /// Failures in a row, if this start fails too.
    pub strikes_if_failed: u32,
    /// Runs of the instance that failed, if this start fails too.
    pub failures_if_failed: u32,
    /// How its last process ended, to be told of although this start failed.
    pub before: Option<Exit>,
    /// Written with the spec when they differ from what is stored.
    pub origin: Option<Origin>,
    pub workload: Option<Workload>,
}

/// Where a started instance's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Log {
    None,
    Files { directory: PathBuf, max_size: Bytes, max_files: u32 },
}

/// What a process has to see between its creation and its start; anything else deletes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    pub namespace: ExpectNamespace,
    pub shm: ExpectShm,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpectNamespace {
    Own,
    Host,
    /// The one that instance published.
    Of(InstanceId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpectShm {
    /// None at all.
    Absent,
    /// One that nobody else has.
    Own,
    Host,
    /// The one that instance published.
    Of(InstanceId),
    /// The user's own mount: nothing is expected of it.
    Any,
}

/// A removal that counts against the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByAbsence {
    pub name: Name,
    pub source: Source,
    /// How many workloads the source had.
    pub of: usize,
}

/// Why a step is in the plan; `Display` is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A manifest names it and there is no instance yet.
    Added,
    /// These workloads wait for it.
    Wanted(BTreeSet<Name>),
    /// The manifest says something else now.
    Changed(Vec<String>),
    /// Only settings that need no restart changed.
    Updated(Vec<String>),
    /// An instance is there that has never run.
    NotStarted,
    /// Its last run ended.
    Ended { code: u32 },
    /// Its last run ended in an unknown way.
    Lost,
    /// It runs once after each boot.
    Boot,
    /// It was paused by somebody.
    Paused,
    /// Its donor has another namespace now.
    DonorChanged { donor: Name },
    /// Joiners would not find its IPC namespace.
    PinLost,
    /// `state: stopped`.
    WantedStopped,
    /// `state: absent`.
    WantedAbsent,
    /// Its document is gone.
    Gone { origin: Origin },
    /// A person released the held removal.
    Approved,
    /// Another instance took its place.
    Superseded { by: InstanceId },
    /// Its preparation or start was interrupted.
    Interrupted,
    /// Its snapshot is missing.
    SnapshotMissing,
    /// `removeOnExit`, and its last run is over.
    RemoveOnExit,
    /// Nothing uses the image any more.
    Unused,
    /// Something uses the image again.
    UsedAgain,
    /// Nothing has used the image for that long.
    UnusedFor(Duration),
    /// Nothing uses the image, and the disk is so full, in per cent.
    DiskFull { fill: u64 },
    /// Nothing owns it.
    Leftover,
    /// The command that it belongs to was killed.
    ExecKilled,
    /// It has a task but no container object.
    Orphaned,
    /// The runtime knows no task of it, and so many of its processes live.
    Stray { processes: usize },
    /// `evenkeel down`.
    Down,
    /// A person asked for just this.
    Asked,
    /// A person asked for it beside the manifests.
    ByHand(HandKind),
    /// `evenkeel shutdown`: the machine ends.
    Shutdown(Option<MachineEnd>),
}

/// What the machine ends for, as far as it was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineEnd {
    PowerOff,
    Reboot,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added => f.write_str("new manifest"),
            Self::Wanted(names) => {
                let names: Vec<_> = names.iter().map(|it| format!("`{it}`")).collect();
                match names.as_slice() {
                    [few @ .., last] if names.len() <= 3 => {
                        let few = few.join(", ");
                        let and = if few.is_empty() { "" } else { " and " };
                        write!(f, "wanted by {few}{and}{last}")
                    }
                    many => {
                        let first = many.first().map_or("", |it| it);
                        let more = many.len().saturating_sub(1);
                        write!(f, "wanted by {first} and {more} more")
                    }
                }
            }
            Self::Changed(fields) => f.write_str(&fields.join(", ")),
            Self::Updated(fields) => write!(f, "{}, in place", fields.join(", ")),
            Self::NotStarted => f.write_str("not started yet"),
            Self::Ended { code } => write!(f, "exited with code {code}"),
            Self::Lost => f.write_str("its last run ended in an unknown way"),
            Self::Boot => f.write_str("runs once after each boot"),
            Self::Paused => f.write_str("paused, and wanted running"),
            Self::DonorChanged { donor } => {
                write!(f, "its donor `{donor}` has another IPC namespace")
            }
            Self::PinLost => f.write_str("its pinned IPC namespace was unmounted"),
            Self::WantedStopped => f.write_str("state: stopped"),
            Self::WantedAbsent => f.write_str("state: absent"),
            Self::Gone { origin } => write!(f, "no longer in {origin}"),
            Self::Approved => f.write_str("held removal was approved"),
            Self::Superseded { by } => write!(f, "replaced by {by}"),
            Self::Interrupted => f.write_str("an earlier start was interrupted"),
            Self::SnapshotMissing => f.write_str("its root file system is missing"),
            Self::RemoveOnExit => f.write_str("its last run is over: removeOnExit"),
            Self::Unused => f.write_str("nothing uses it any more"),
            Self::UsedAgain => f.write_str("it is used again"),
            Self::UnusedFor(span) => write!(f, "unused for {}", Span(*span)),
            Self::DiskFull { fill } => write!(f, "unused, and the disk is {fill} % full"),
            Self::Leftover => f.write_str("left behind, owned by nothing"),
            Self::ExecKilled => f.write_str("the `evenkeel exec` that it belongs to was killed"),
            Self::Orphaned => f.write_str("a task without a container object"),
            Self::Stray { processes: 0 } => {
                f.write_str("containerd has lost it, and what is left of it is in the way")
            }
            Self::Stray { processes: 1 } => {
                f.write_str("containerd has lost it, and a process of it still runs")
            }
            Self::Stray { processes } => {
                write!(f, "containerd has lost it, and {processes} of its processes still run")
            }
            Self::Down | Self::ByHand(HandKind::Down) => f.write_str("taken down"),
            Self::Asked => f.write_str("asked for by hand"),
            Self::ByHand(HandKind::Stop) => f.write_str("stopped by hand"),
            Self::ByHand(HandKind::Start) => f.write_str("started by hand"),
            Self::ByHand(HandKind::Restart) => f.write_str("restarted by hand"),
            Self::ByHand(HandKind::Retry) => f.write_str("tried again by hand"),
            Self::Shutdown(None) => f.write_str("shut down"),
            Self::Shutdown(Some(MachineEnd::PowerOff)) => {
                f.write_str("the machine is switched off")
            }
            Self::Shutdown(Some(MachineEnd::Reboot)) => f.write_str("the machine reboots"),
        }
    }
}

impl Action {
    /// The verb for people and logs.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Import { .. } => "import",
            Self::Pull { .. } => "pull",
            Self::MarkImage { .. } => "mark",
            Self::Prepare(_) => "prepare",
            Self::Update(_) => "update",
            Self::Stop(_) => "stop",
            Self::Resume { .. } => "resume",
            Self::Finish(_) => "finish",
            Self::Start(_) => "start",
            Self::Publish { .. } => "publish",
            Self::Clear { .. } => "clear",
            Self::Remove { .. }
            | Self::RemoveOrphan { .. }
            | Self::RemoveStray(_)
            | Self::RemoveImage { .. } => "remove",
            Self::Sweep(_) => "sweep",
        }
    }

    /// What it is done to: an instance, an image, or a leftover.
    pub fn subject(&self) -> String {
        match self {
            Self::Import { image } => image.name.clone(),
            Self::Pull { image, .. } => image.clone(),
            Self::MarkImage { name, .. } | Self::RemoveImage { name, .. } => name.clone(),
            Self::Prepare(it) => it.id.to_string(),
            Self::Update(it) => it.id.to_string(),
            Self::Stop(it) => it.id.to_string(),
            Self::Finish(it) => it.id.to_string(),
            Self::Start(it) => it.id.to_string(),
            Self::RemoveStray(it) => it.id.to_string(),
            Self::Resume { id }
            | Self::Publish { id, .. }
            | Self::Clear { id }
            | Self::Remove { id, .. }
            | Self::RemoveOrphan { id, .. } => id.to_string(),
            Self::Sweep(leftover) => leftover.to_string(),
        }
    }

    /// The instance it touches, if any.
    pub fn instance(&self) -> Option<&InstanceId> {
        match self {
            Self::Prepare(it) => Some(&it.id),
            Self::Update(it) => Some(&it.id),
            Self::Stop(it) => Some(&it.id),
            Self::Finish(it) => Some(&it.id),
            Self::Start(it) => Some(&it.id),
            Self::RemoveStray(it) => Some(&it.id),
            Self::Resume { id }
            | Self::Publish { id, .. }
            | Self::Clear { id }
            | Self::Remove { id, .. }
            | Self::RemoveOrphan { id, .. } => Some(id),
            Self::Import { .. }
            | Self::Pull { .. }
            | Self::MarkImage { .. }
            | Self::RemoveImage { .. }
            | Self::Sweep(_) => None,
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lease(id) => write!(f, "lease {id}"),
            Self::Snapshot(key) => write!(f, "snapshot {key}"),
            Self::Published(id) => write!(f, "ipc mounts of {id}"),
            Self::Logs(id) => write!(f, "logs of {id}"),
            Self::Strikes(name) => write!(f, "strikes of {name}"),
            Self::Approval(it) => write!(f, "approved removal of {}", it.instance),
            Self::Hand(name, _) => write!(f, "wish for {name}"),
            Self::Exec(id, key) => write!(f, "process {key} in {id}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {}: {}", self.action.verb(), self.action.subject(), self.cause)
    }
}

impl fmt::Display for Plan {
    /// A line per step; nothing for an empty plan.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

/// Where a workload is on its way.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum Phase {
    Running,
    Starting,
    Waiting,
    BackingOff,
    Held,
    Invalid,
    Stopped,
    Stopping,
    Completed,
    Failed,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "Running",
            Self::Starting => "Starting",
            Self::Waiting => "Waiting",
            Self::BackingOff => "BackingOff",
            Self::Held => "Held",
            Self::Invalid => "Invalid",
            Self::Stopped => "Stopped",
            Self::Stopping => "Stopping",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
        })
    }
}

/// How a workload stands once the plan's steps are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub phase: Phase,
    /// A stable kebab-case code; empty when there is nothing to say.
    pub reason: &'static str,
    pub message: String,
    /// What runs is what the manifest says.
    pub up_to_date: bool,
    /// The instance that stands for it now.
    pub instance: Option<InstanceId>,
    /// When it is looked at again.
    pub until: Option<BootTime>,
}

/// Removals that wait for a person, released together by one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Of exactly this set: 8 hex digits.
    pub token: String,
    pub code: &'static str,
    pub message: String,
    pub source: Source,
    pub removals: BTreeSet<Approval>,
}

/// Why a process that was created is not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// `mounts-not-shared` or `donor-vanished`.
    pub reason: &'static str,
    pub message: String,
}

/// Compares what a created process sees with what the plan wants, before it runs.
///
/// `published` are the namespace inode and the device of the /dev/shm that an instance publishes now.
pub fn accept(
    expect: &Expect,
    seen: &View,
    host: Option<&View>,
    published: impl Fn(&InstanceId) -> (Option<u64>, Option<u64>),
) -> Result<(), Mismatch> {
    let no = |reason, message: &str| Err(Mismatch { reason, message: message.to_owned() });
    match &expect.namespace {
        ExpectNamespace::Own if host.is_some_and(|it| it.ipc_ns == seen.ipc_ns) => {
            return no("namespace-not-own", "the process would share the host's IPC namespace");
        }
        ExpectNamespace::Host if host.is_some_and(|it| it.ipc_ns != seen.ipc_ns) => {
            return no("namespace-not-host", "the process is not in the host's IPC namespace");
        }
        ExpectNamespace::Of(donor) if published(donor).0 != Some(seen.ipc_ns) => {
            return no(
                "donor-vanished",
                "the donor's IPC namespace is not the one that was joined",
            );
        }
        ExpectNamespace::Own | ExpectNamespace::Host | ExpectNamespace::Of(_) => {}
    }
    match &expect.shm {
        ExpectShm::Absent if seen.shm.is_some() => {
            no("shm-unexpected", "the process has a /dev/shm")
        }
        ExpectShm::Own
            if seen.shm.is_none()
                || host.is_some_and(|it| it.shm.is_some() && it.shm == seen.shm) =>
        {
            no("shm-not-own", "the process has no /dev/shm of its own")
        }
        ExpectShm::Host if host.is_some_and(|it| it.shm.is_some() && it.shm != seen.shm) => {
            no("shm-not-host", "the process does not see the host's /dev/shm")
        }
        ExpectShm::Of(owner) if seen.shm.is_none() || published(owner).1 != seen.shm => no(
            "mounts-not-shared",
            "the runtime does not see the /dev/shm that was mounted for it: controller and containerd are in \
             different mount namespaces",
        ),
        ExpectShm::Absent
        | ExpectShm::Own
        | ExpectShm::Host
        | ExpectShm::Of(_)
        | ExpectShm::Any => Ok(()),
    }
}

/// The image that an instance runs from, as far as `config` decides about it.
pub(crate) fn stop_signal(workload: Option<&Workload>, config: &ImageConfig) -> Signal {
    workload
        .and_then(|it| it.spec.stop.signal)
        .or_else(|| Signal::from_image(&config.stop_signal))
        .unwrap_or(Signal::TERM)
}
