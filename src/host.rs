//! The seam to the host: shm mounts, pinned namespaces, what a process sees, the boot clock; [`Host`].
//!
//! Decides nothing, and never touches a mount that is not below our own run directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::desired::BootTime;
use crate::observed::{FileKind, Published, RuntimeProcess, Space, Stray, View};
use crate::workload::{Bytes, InstanceId, Signal};

pub mod group;
pub mod linux;
pub mod means;
pub mod memory;
pub mod mountinfo;
mod probe;
mod strays;

/// What the host does for us. Verbs are quick and synchronous; the caller moves them off the async threads.
///
/// # Guarantees
/// Every verb is idempotent and checks mountinfo before it mounts or unmounts. Only paths below
/// `<run>/ipc/<instance>/` are mounted on or unmounted, never the host's /dev/shm.
pub trait Host: Send + Sync + 'static {
    /// Everything published under the run directory, and the facts that are asked for. A process that is not, or no
    /// longer, its instance's has no view: a runtime whose shim hangs names pids that are somebody else's by now.
    fn observe(&self, ask: &Ask) -> Result<Facts, Error>;

    /// Mounts the tmpfs that joiners bind, `nosuid,nodev,noexec,mode=1777`, unless exactly one is there. The
    /// directory is 0700.
    fn publish_shm(&self, id: &InstanceId, size: Bytes) -> Result<(), Error>;

    /// Binds the IPC namespace of a created task's process to the `ns` file, unless that namespace is there.
    fn publish_namespace(&self, id: &InstanceId, pid: u32) -> Result<(), Error>;

    /// Unmounts both, lazily, in a loop until mountinfo is clean, and removes the directory. Who has joined keeps
    /// what it has.
    fn unpublish(&self, id: &InstanceId) -> Result<(), Error>;

    /// What a process sees, whoever's it is. `None`: it is gone.
    fn view(&self, pid: u32) -> Result<Option<View>, Error>;

    /// Makes the missing source directory of a bind, 0755.
    fn make_directory(&self, path: &Path) -> Result<(), Error>;

    /// Whether what is mounted here is seen by the runtime, whose process has that pid; `Err` says why not, or why
    /// that is not known, as it is for a process of another pid namespace (pid 0).
    fn mounts_shared_with(&self, runtime: u32) -> Result<(), String>;

    /// Sends SIGKILL to a process of an instance by its pid, when the runtime did not end it. Ok as well when there is no
    /// such process, or when it is none of the instance's, by its cgroup: pids are used again.
    fn kill(&self, pid: u32, id: &InstanceId) -> Result<(), Error>;

    /// What is there of an instance, whether the runtime knows of it or not. `None`: nothing.
    fn stray(&self, id: &InstanceId) -> Result<Option<Stray>, Error>;

    /// Sends a signal to what the runtime has lost of an instance, and says whether there was anything to get it. Only
    /// processes in the instance's cgroup, and the shim of exactly this container, are ever told anything.
    fn signal_stray(&self, id: &InstanceId, whom: Whom, signal: Signal) -> Result<bool, Error>;

    /// Removes what is left of an instance that the runtime has lost: the mount of its root file system, its cgroups
    /// and, last of all because the rest is found by it, what the low-level runtime keeps. Refused while a process of
    /// it lives.
    fn remove_stray(&self, id: &InstanceId) -> Result<(), Error>;

    /// Gives back what a lot of work has left in this process; nothing is expected to be done for a while.
    fn rest(&self) {}

    /// Time since boot, suspended time included.
    fn now(&self) -> BootTime;

    /// Wall clock, RFC 3339 in UTC, for people only: nothing is decided by it.
    fn wall_clock(&self) -> String {
        self.wall_clock_after(Duration::ZERO)
    }

    /// What the wall clock will show after that time.
    fn wall_clock_after(&self, span: Duration) -> String;
}

/// What [`Host::observe`] is to look at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ask {
    /// Bind sources.
    pub paths: BTreeSet<PathBuf>,
    /// Processes of running tasks, and whose they are said to be.
    pub pids: BTreeMap<u32, InstanceId>,
    /// The container runtime.
    pub runtime: Option<RuntimeProcess>,
    /// The instances that the runtime has tasks of: what there is of others are strays. `None`: nobody asks for those.
    pub tasks: Option<BTreeSet<InstanceId>>,
}

/// Who gets a signal of [`Host::signal_stray`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// The process that the program began with, as far as that is known.
    Main,
    /// All processes of the instance.
    All,
    /// The shim that held them, which is none of them.
    Shim,
}

/// What [`Host::observe`] found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Facts {
    pub boot_id: String,
    /// Every directory under `<run>/ipc`, and every mount below it.
    pub published: BTreeMap<InstanceId, Published>,
    pub paths: BTreeMap<PathBuf, FileKind>,
    pub views: BTreeMap<u32, View>,
    /// The host's own: /dev/shm and IPC namespace of the controller, which `host` mode shares.
    pub host_view: Option<View>,
    /// What there is of instances of which the runtime has no task.
    pub strays: BTreeMap<InstanceId, Stray>,
    /// Why that is not known.
    pub strays_unknown: Option<String>,
    pub means: Means,
    /// The file system that the runtime keeps the content of images on; `None`: not known.
    pub image_space: Option<Space>,
}

/// What the runtime is known to lack, without which it can start no container. What is not known is not missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Means {
    /// Programs that it does not find where it looks for them.
    pub missing_programs: BTreeSet<&'static str>,
    /// Why no container can have a cgroup.
    pub cgroup_fault: Option<String>,
}

/// How a process of a model was made: what an OCI spec's IPC parts ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub ipc: ProcessIpc,
    pub shm: ProcessShm,
    /// In whose cgroup it is.
    pub instance: Option<InstanceId>,
}

/// Which IPC namespace a process was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessIpc {
    /// A new one.
    Own,
    Host,
    /// The one pinned at this path.
    Path(PathBuf),
}

/// What is on a process's /dev/shm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessShm {
    /// Nothing is mounted there.
    None,
    /// A tmpfs that nobody else sees.
    Own,
    Host,
    /// A bind of this path.
    Path(PathBuf),
}

/// A verb of the host that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} `{subject}`")]
pub struct Error {
    pub operation: &'static str,
    pub subject: String,
    #[source]
    pub cause: std::io::Error,
}
