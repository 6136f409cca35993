//! The seam to what runs containers: [`Runtime`], its values and its one error.
//!
//! Decides nothing: an interesting branch belongs in [`crate::plan`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use prost::bytes::Bytes;

pub use crate::content::{Blob, NewBlob, NewImage, NewLayer};
use crate::desired::Origin;
use crate::observed::{End, Image, Run, RuntimeProcess, StoredImage, Task, Unused};
pub use crate::oci::Exec;
use crate::workload::{InstanceId, IpcDefaults, Name, Revision, Signal, Workload};

pub mod containerd;
pub mod memory;

/// What runs containers: containerd, or a model of it in memory.
///
/// # Guarantees
/// Every verb is idempotent: removing what is gone is `Ok`, making what is there is `Ok` after checking that it is
/// ours and the same. Every verb has a deadline. A verb that is dropped half-way leaves something that
/// [`Runtime::observe`] shows.
///
/// # Errors
/// [`Error`] says which verb failed on what; `is_unreachable` tells a runtime that does not answer from one that
/// refuses.
pub trait Runtime: Send + Sync + 'static {
    /// All that is ours: containers, tasks, leases, snapshots, and the asked-for images that are in the store.
    fn observe(
        &self,
        images: &BTreeSet<String>,
    ) -> impl Future<Output = Result<Objects, Error>> + Send;

    /// Puts one blob into the content store, verified by its digest; known blobs are skipped.
    fn put_blob(
        &self,
        lease: &str,
        blob: Blob<'_>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Begins to put a blob into the content store as it comes, or goes on where one under this lease has left off.
    /// `None`: it is there, and has the labels.
    fn open_blob(
        &self,
        lease: &str,
        blob: &NewBlob,
    ) -> impl Future<Output = Result<Option<Box<dyn BlobWriter>>, Error>> + Send;

    /// Makes the snapshot of one layer whose blob and whose layers below are there; one that is there is kept, as long as
    /// the lease is there.
    /// `Conflict`: it is not what the image's configuration says.
    fn unpack_layer(
        &self,
        lease: &str,
        layer: &NewLayer,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Unpacks what is not unpacked yet of an image whose blobs are there, and records it. The record is ours then, unless
    /// there was one of somebody else's, and nothing is said any more of how long it was unused. `Conflict`: its layers are
    /// not what its configuration says, and what its name has pointed at it still does.
    fn put_image(
        &self,
        lease: &str,
        image: &NewImage,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Writes something on the record of an image of ours that points at that digest. `Missing`: there is none.
    /// `Conflict`: it is somebody else's.
    fn mark_image(
        &self,
        name: &str,
        digest: &str,
        mark: &Mark,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes the record of an image of ours, and with it what nothing else needs of its content and its layers: that
    /// is gone when this returns. `Ok` when the name points at something else by now. `Conflict`: it is somebody else's.
    fn remove_image(
        &self,
        name: &str,
        digest: &str,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes a lease of ours without expiry; everything made under it stays until it is removed.
    fn lease(&self, id: &str) -> impl Future<Output = Result<(), Error>> + Send;

    fn remove_lease(&self, id: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes the writable snapshot of an instance from its unpacked image. One that is there belongs to nobody or
    /// to this instance's container; the former is removed first.
    fn prepare_snapshot(
        &self,
        lease: &str,
        instance: &NewInstance,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes the container object.
    fn create(
        &self,
        lease: &str,
        instance: &NewInstance,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Writes labels, manifest and, if given, the OCI spec to a container object.
    fn update(
        &self,
        id: &InstanceId,
        update: &Update,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes the task: the process exists, with its namespaces and mounts, and does not run the program yet.
    /// Returns its pid.
    fn create_task(
        &self,
        id: &InstanceId,
        log: &LogTarget,
    ) -> impl Future<Output = Result<u32, Error>> + Send;

    /// Lets a created task run.
    fn start_task(&self, id: &InstanceId) -> impl Future<Output = Result<(), Error>> + Send;

    fn resume_task(&self, id: &InstanceId) -> impl Future<Output = Result<(), Error>> + Send;

    /// Sends a signal to the main process, or to all processes. `Ok` when there is none any more.
    fn kill(
        &self,
        id: &InstanceId,
        signal: Signal,
        all: bool,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Waits until the task has stopped, at most `limit`. `None`: it still runs then; [`Task::None`]: there is none.
    fn wait(
        &self,
        id: &InstanceId,
        limit: Duration,
    ) -> impl Future<Output = Result<Option<Task>, Error>> + Send;

    /// Deletes a stopped task, or a created one with its process. `Ok` when there is none.
    fn delete_task(&self, id: &InstanceId) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes the container object, then its snapshot. Refused while it has a task.
    fn remove(&self, id: &InstanceId) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes the snapshot of a container and keeps its object. Refused while it has a task.
    fn clear(&self, id: &InstanceId) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes a snapshot that belongs to no container.
    fn remove_snapshot(&self, key: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Puts a bare container object back under a task that has none, so that it can be killed and removed.
    fn readopt(&self, id: &InstanceId) -> impl Future<Output = Result<(), Error>> + Send;

    /// Starts a process beside the program of a running task, under a key that is new there; returns its pid. It has
    /// what the container's program has, but for what is said. What cannot be started leaves nothing.
    fn exec(
        &self,
        id: &InstanceId,
        key: &str,
        exec: &Exec,
        streams: &Streams,
    ) -> impl Future<Output = Result<u32, Error>> + Send;

    /// Waits until such a process has ended, at most `limit`, and returns its code. `None`: it still runs then.
    fn wait_exec(
        &self,
        id: &InstanceId,
        key: &str,
        limit: Duration,
    ) -> impl Future<Output = Result<Option<u32>, Error>> + Send;

    /// Does something to such a process. `Ok` when there is none any more.
    fn tell_exec(
        &self,
        id: &InstanceId,
        key: &str,
        tell: Tell,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Deletes such a process; one that runs is killed. `Ok` when there is none.
    fn delete_exec(
        &self,
        id: &InstanceId,
        key: &str,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Counts changes of anything in our namespace, and reconnections to the events after a loss. A hint to look
    /// again, no more. What happens after [`Runtime::observe`] was called is counted after its call.
    fn hints(&self) -> tokio::sync::watch::Receiver<u64>;
}

/// What a [`BlobWriter`] answers with.
pub type Written<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;

/// A blob on its way into the content store. One that is dropped has left what was written, for the next who opens it.
pub trait BlobWriter: Send {
    /// How much of it is there: what is written next begins here.
    fn offset(&self) -> u64;

    /// Writes the next piece. `Conflict`: it is more than the blob is said to have, and all of it is thrown away.
    fn write(&mut self, piece: Bytes) -> Written<'_>;

    /// Makes a blob of what was written, verified by its digest. `Conflict`: it is another one, and all of it is thrown
    /// away. What is too short is refused, and kept.
    fn commit(self: Box<Self>) -> Written<'static>;
}

/// The verbs as [`Error::operation`] names them.
pub mod verb {
    pub const OBSERVE: &str = "observe";
    pub const PUT_BLOB: &str = "store blob";
    pub const OPEN_BLOB: &str = "fetch blob";
    pub const UNPACK_LAYER: &str = "unpack layer";
    pub const PUT_IMAGE: &str = "unpack image";
    pub const MARK_IMAGE: &str = "mark image";
    pub const REMOVE_IMAGE: &str = "remove image";
    pub const LEASE: &str = "make lease";
    pub const REMOVE_LEASE: &str = "remove lease";
    pub const PREPARE_SNAPSHOT: &str = "prepare snapshot";
    pub const CREATE: &str = "create container";
    pub const UPDATE: &str = "update container";
    pub const CREATE_TASK: &str = "create task";
    pub const START_TASK: &str = "start task";
    pub const RESUME_TASK: &str = "resume task";
    pub const KILL: &str = "signal task";
    pub const WAIT: &str = "wait for task";
    pub const DELETE_TASK: &str = "delete task";
    pub const REMOVE: &str = "remove container";
    pub const CLEAR: &str = "clear container";
    pub const REMOVE_SNAPSHOT: &str = "remove snapshot";
    pub const READOPT: &str = "put back container";
    pub const EXEC: &str = "start a process in";
    pub const WAIT_EXEC: &str = "wait for a process in";
    pub const TELL_EXEC: &str = "reach a process in";
    pub const DELETE_EXEC: &str = "delete a process in";
}

/// What [`Runtime::observe`] finds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Objects {
    pub containers: Vec<Container>,
    /// Tasks without a container object of their own; also those for which [`Runtime::readopt`] has put one back,
    /// until that is removed.
    pub orphans: BTreeMap<InstanceId, Task>,
    /// Every instance of which there is a task, whatever is known of it.
    pub tasks: BTreeSet<InstanceId>,
    /// The tasks could not be listed: one without a container object may be missing.
    pub incomplete: bool,
    /// IDs of leases of ours.
    pub leases: BTreeSet<String>,
    /// Keys of snapshots of ours without a container.
    pub snapshots: BTreeSet<String>,
    /// Of those asked for.
    pub images: BTreeMap<String, Image>,
    /// All that there is a record of, by name.
    pub stored_images: BTreeMap<String, StoredImage>,
    /// The runtime itself; `None`: it is no process that can be seen from here.
    pub process: Option<RuntimeProcess>,
}

/// What [`Runtime::mark_image`] writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    Unused(Unused),
    Used,
    Pinned,
    Unpinned,
}

/// A container object of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    pub id: InstanceId,
    pub name: Name,
    pub revision: Revision,
    pub origin: Origin,
    /// `None`: the stored manifest cannot be read.
    pub workload: Option<Workload>,
    pub defaults: IpcDefaults,
    pub image: Image,
    pub has_snapshot: bool,
    pub run: Option<Run>,
    pub end: Option<End>,
    pub ending: Option<u64>,
    pub task: Task,
}

/// An instance to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewInstance {
    pub id: InstanceId,
    pub revision: Revision,
    pub origin: Origin,
    pub workload: Workload,
    /// Recorded for what the manifest leaves open.
    pub defaults: IpcDefaults,
    pub image: Image,
}

/// What [`Runtime::update`] writes; `None` leaves a part as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Update {
    pub origin: Option<Origin>,
    pub workload: Option<Workload>,
    /// A new run: what was written of the end of another one is forgotten.
    pub run: Option<Run>,
    pub end: Option<End>,
    /// The run that is being ended on purpose; 0: none is.
    pub ending: Option<u64>,
    pub spec: Option<Box<oci_spec::runtime::Spec>>,
}

/// Where a task's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    None,
    /// Our own binary, run by the shim: `evenkeel log-pipe`.
    Files {
        directory: PathBuf,
        max_size: u64,
        max_files: u32,
    },
}

/// The FIFOs that a process beside a task's own reads and writes; absent ones are closed to it.
///
/// # Assumptions
/// Whoever asks for it has those of the output open for reading by then: the runtime waits for that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Streams {
    pub stdin: Option<PathBuf>,
    pub stdout: Option<PathBuf>,
    /// None of its own with a terminal.
    pub stderr: Option<PathBuf>,
}

/// What [`Runtime::tell_exec`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    Signal(Signal),
    /// New columns and rows of its terminal.
    Resize(u16, u16),
    /// No more input comes: it reads what is there, and then an end.
    EndOfInput,
}

/// A verb of the runtime that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} `{subject}`")]
pub struct Error {
    /// One of [`verb`]'s, which reads after "failed to".
    pub operation: &'static str,
    pub subject: String,
    pub kind: ErrorKind,
    #[source]
    pub cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// How a verb failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// It cannot be reached, or did not answer in time.
    Unreachable,
    /// It answered with a refusal; the cause has its text.
    Refused,
    /// What is there under this name is not ours, or not the same.
    Conflict,
    /// The asked-for thing does not exist.
    Missing,
}

impl Error {
    pub fn is_unreachable(&self) -> bool {
        self.kind == ErrorKind::Unreachable
    }
}
