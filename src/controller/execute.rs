//! Carries out steps: straight lines of effects, each a named boundary, with an undo where one is due.
//!
//! Decides nothing and looks nothing up: a step carries all that it needs. A failed step stops those that require it,
//! never others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tracing::warn;

use crate::backoff::{Failure, Strikes};
use crate::content::Unreadable;
use crate::host::{self, Ask, Host};
use crate::image::Archives;
use crate::observed::{
    EXIT_UNKNOWN, EXITED, End, Image, ImagePlace, Leftover, Removal, Run, STOPPED, Task,
};
use crate::plan::{
    Action, Finish, Log, Mismatch, PRUNE_WINDOW, Prepare, Start, Step, StopInstance, accept,
    import_lease,
};
use crate::refusal::{self, Reason};
use crate::registry::{self, Registry};
use crate::rundir::RunDirectory;
use crate::runtime::{self, ErrorKind, LogTarget, Mark, NewInstance, Runtime, Update};
use crate::status::Chain;
use crate::workload::{InstanceId, Name, Signal, StopTimeout};

mod pull;
mod strays;

use pull::Pulls;

/// Steps that make something at the same time. Enough to keep two cores and a disk busy; each start costs a runc.
pub const CONCURRENCY: usize = 8;

/// To be one of those.
pub(super) type Permit = OwnedSemaphorePermit;

/// How long a process may take to die after SIGKILL, at each of the three ways of sending it.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// How long a joiner's start waits for the news that its donor has ended. One that has ended says so at once.
const DONOR_LOOK: Duration = Duration::from_millis(10);

/// How long the question may take whether something has ended.
const LOOK: Duration = Duration::from_secs(1);

/// A process that may take for ever to end is sent its signal again after this time.
const ASK_AGAIN: Duration = Duration::from_hours(1);

/// What could not be sent its signal is killed after this time, as Docker does.
const UNASKED: Duration = Duration::from_secs(2);

/// Every effect boundary, in the order in which a start, a replacement and a removal pass them.
pub const EFFECTS: &[&str] = &[
    "import/lease",
    "import/blob",
    "import/image",
    "import/release",
    "pull/lease",
    "pull/blob",
    "pull/unpack",
    "pull/image",
    "pull/release",
    "image/mark",
    "image/remove",
    "prepare/lease",
    "prepare/snapshot",
    "prepare/container",
    "prepare/release",
    "stop/resume",
    "stop/note",
    "stop/signal",
    "stop/kill",
    "stop/pid",
    "stop/end",
    "stop/task",
    "stop/unpublish",
    "finish/strikes",
    "finish/end",
    "finish/task",
    "finish/unpublish",
    "clear/unpublish",
    "clear/snapshot",
    "clear/logs",
    "start/directory",
    "start/shm",
    "start/spec",
    "start/task",
    "start/namespace",
    "start/run",
    "start/start",
    "undo/task",
    "undo/unpublish",
    "failed/strikes",
    "failed/end",
    "update",
    "resume",
    "publish",
    "remove/ledger",
    "remove/container",
    "remove/unpublish",
    "remove/logs",
    "orphan/object",
    "orphan/task",
    "stray/signal",
    "stray/kill",
    "stray/shim",
    "stray/remove",
    "sweep",
];

/// With the feature `abort-after-effect`, the n-th effect (`EVENKEEL_ABORT_AFTER=n`) is the last, or the first of that
/// name.
#[cfg(feature = "abort-after-effect")]
fn abort_after(effect: &'static str) {
    use std::sync::atomic::AtomicU64;
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let passed = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    let limit = std::env::var("EVENKEEL_ABORT_AFTER").unwrap_or_default();
    if limit == effect || limit.parse() == Ok(passed) {
        warn!(effect, passed, "aborting as asked");
        std::process::abort();
    }
}

/// With the same feature, the file that `EVENKEEL_FAIL` names makes effects fail: `3 undone lost` lets two pass, does
/// not make the third and says that it was refused, and makes the fourth and says that nobody answered. A name in
/// place of the number lets all pass that come before the first of that name. The file is gone once all of that has
/// happened.
#[cfg(feature = "abort-after-effect")]
mod fault {
    use std::sync::{Mutex, PoisonError};

    use crate::runtime::{Error, ErrorKind};

    /// How an effect fails.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Fault {
        /// It is not made.
        Undone,
        /// It is made, and said to be refused.
        Done,
        /// It is made, and the answer is lost.
        Lost,
    }

    impl Fault {
        pub(super) fn error(self, effect: &str) -> Error {
            let kind = if self == Self::Lost { ErrorKind::Unreachable } else { ErrorKind::Refused };
            let cause = Some(format!("{self:?} as asked").into());
            Error { operation: "pass", subject: effect.to_owned(), kind, cause }
        }
    }

    /// What is to become of this effect, which is the next one.
    pub(super) fn next(effect: &str) -> Option<Fault> {
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let path = std::path::PathBuf::from(std::env::var_os("EVENKEEL_FAIL")?);
        let text = std::fs::read_to_string(&path).ok()?;
        let mut words = text.split_whitespace();
        let first = words.next()?;
        let n: u64 = if first == effect { 1 } else { first.parse().ok()? };
        let mut rest: Vec<&str> = words.collect();
        let fault = if n > 1 || rest.is_empty() {
            None
        } else {
            match rest.remove(0) {
                "undone" => Some(Fault::Undone),
                "done" => Some(Fault::Done),
                "lost" => Some(Fault::Lost),
                _ => None,
            }
        };
        let left = n.saturating_sub(1).max(1);
        let written = if rest.is_empty() {
            std::fs::remove_file(&path)
        } else {
            std::fs::write(&path, format!("{left} {}", rest.join(" ")))
        };
        written.ok()?;
        fault
    }
}

/// Makes an effect the last one that is made, for trying out what a crash there leaves behind.
#[derive(Debug)]
pub struct Crash {
    after: AtomicUsize,
    passed: Mutex<Vec<&'static str>>,
}

impl Crash {
    /// Everything stands still once that many effects were made.
    pub fn after(effects: usize) -> Arc<Self> {
        Arc::new(Self { after: AtomicUsize::new(effects), passed: Mutex::default() })
    }

    /// Everything stands still once that many more effects were made.
    pub fn end_after(&self, more: usize) {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.after.store(passed.saturating_add(more), Ordering::Relaxed);
    }

    /// The effects that were made, of [`EFFECTS`].
    pub fn passed(&self) -> Vec<&'static str> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether everything stands still.
    pub fn is_over(&self) -> bool {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner).len();
        passed >= self.after.load(Ordering::Relaxed)
    }

    /// Counts an effect; whether it is one of those that are still made.
    fn pass(&self, effect: &'static str) -> bool {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.push(effect);
        passed.len() < self.after.load(Ordering::Relaxed)
    }
}

/// Holds the snapshot of an instance until its container exists.
pub(super) fn instance_lease(id: &InstanceId) -> String {
    format!("evenkeel-{id}")
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    #[error(transparent)]
    Host(#[from] host::Error),
    #[error(transparent)]
    RunDirectory(#[from] crate::rundir::Error),
    #[error(transparent)]
    Archive(#[from] crate::image::ArchiveProblem),
    #[error("failed to pull `{image}`")]
    Pull {
        image: String,
        #[source]
        cause: registry::Error,
    },
    #[error("`{image}` cannot be used: {why}")]
    Unusable { image: String, why: Unreadable },
    #[error(transparent)]
    Unlowerable(#[from] crate::oci::Unlowerable),
    #[error("failed to start `{id}`: {}", mismatch.message)]
    Mismatch { id: InstanceId, mismatch: Mismatch },
    #[error("failed to start `{id}`: its donor `{donor}` has just ended")]
    DonorEnded { id: InstanceId, donor: InstanceId },
    #[error("failed to end `{id}`: its process takes its time, and `stop.timeout` allows it")]
    StillRuns { id: InstanceId },
    #[error("failed to end `{id}`: its process is still there after SIGKILL")]
    StillThere { id: InstanceId },
    #[error("failed to end `{id}`: the runtime has lost it, and a process of it still runs")]
    Forgotten { id: InstanceId },
    #[error("failed to remove `{path}`")]
    Remove {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    /// All that did not work of a cleanup; the rest of it was done.
    #[error("failed to clean up `{id}`: {}", listed(failures))]
    Cleanup { id: InstanceId, failures: Vec<Self> },
    /// A start that failed, and what could not be taken back of it. The next pass sees that, and sweeps it.
    #[error("{}; of what it had made, some is left: {}", Chain(start), listed(failures))]
    NotTakenBack { start: Box<Self>, failures: Vec<Self> },
    /// A failed start that was counted: the strike says when it is tried again.
    #[error(transparent)]
    Counted(Box<Self>),
    #[error("the step ended unexpectedly")]
    Lost,
    #[error("it was done again and again, and is still to be done")]
    InVain,
}

fn listed(failures: &[Error]) -> String {
    failures.iter().map(|it| Chain(it).to_string()).collect::<Vec<_>>().join("; ")
}

/// A chain of which each link is tried: none that fails stops the next, and all that failed is told at the end.
#[derive(Default)]
struct Cleanup {
    failures: Vec<Error>,
}

impl Cleanup {
    /// Whether it worked.
    fn note(&mut self, result: Result<(), Error>) -> bool {
        let worked = result.is_ok();
        self.failures.extend(result.err());
        worked
    }

    /// One failure is told as it is.
    fn done(mut self, id: &InstanceId) -> Result<(), Error> {
        match self.failures.len() {
            0 => Ok(()),
            1 => self.failures.pop().map_or(Ok(()), Err),
            _ => Err(Error::Cleanup { id: id.clone(), failures: self.failures }),
        }
    }
}

/// Everything that effects are made with.
pub struct Edge<R, H> {
    pub runtime: R,
    pub host: Arc<H>,
    pub run: RunDirectory,
    pub archives: Arc<Mutex<Archives>>,
    /// Where images come from; `None`: none are pulled.
    pub registry: Option<Arc<dyn Registry>>,
    pulls: Pulls,
    pub log_directory: PathBuf,
    /// The kernel's name of this boot.
    pub boot_id: String,
    /// See [`crate::observed::ObservedState::oom_score_adj`].
    pub oom_score_adj: Option<i32>,
    permits: Arc<Semaphore>,
    ledger: Mutex<()>,
    /// How long each stop that is under way may take, by its instance.
    stops: watch::Sender<BTreeMap<InstanceId, StopTimeout>>,
    crash: Option<Arc<Crash>>,
    on_one_thread: bool,
}

impl<R: Runtime, H: Host> Edge<R, H> {
    pub fn new(
        runtime: R,
        host: Arc<H>,
        run: RunDirectory,
        archives: Archives,
        log_directory: PathBuf,
        boot_id: String,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(CONCURRENCY));
        let archives = Arc::new(Mutex::new(archives));
        Self {
            runtime,
            host,
            run,
            archives,
            registry: None,
            pulls: Pulls::default(),
            log_directory,
            boot_id,
            oom_score_adj: None,
            permits,
            ledger: Mutex::new(()),
            stops: watch::Sender::default(),
            crash: None,
            on_one_thread: false,
        }
    }

    /// The same, with registries to pull images from.
    #[must_use]
    pub fn with_registry(self, registry: Arc<dyn Registry>) -> Self {
        Self { registry: Some(registry), ..self }
    }

    /// The same, where nothing blocks: one thread does everything, in an order that comes out the same each time.
    #[must_use]
    pub fn on_one_thread(self) -> Self {
        Self { on_one_thread: true, ..self }
    }

    /// Does what may block where it keeps nobody else waiting.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        if self.on_one_thread {
            return Ok(work());
        }
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Lost)
    }

    /// The same, with an end.
    #[must_use]
    pub fn with_crash(self, crash: Arc<Crash>) -> Self {
        Self { crash: Some(crash), ..self }
    }

    /// Passes a boundary between two effects. The last one is never passed.
    async fn boundary(&self, effect: &'static str) {
        #[cfg(feature = "abort-after-effect")]
        abort_after(effect);
        if self.crash.as_ref().is_some_and(|it| !it.pass(effect)) {
            std::future::pending::<()>().await;
        }
    }

    /// Makes an effect, and passes the boundary after it once it is made.
    async fn effect<T, E: Into<Error>>(
        &self,
        effect: &'static str,
        work: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, Error> {
        let made = self.make(effect, work).await?;
        self.boundary(effect).await;
        Ok(made)
    }

    /// The same as a link of a chain of which each is tried; whether it worked.
    async fn link<E: Into<Error>>(
        &self,
        cleanup: &mut Cleanup,
        effect: &'static str,
        work: impl Future<Output = Result<(), E>> + Send,
    ) -> bool {
        let worked = cleanup.note(self.make(effect, work).await);
        self.boundary(effect).await;
        worked
    }

    async fn make<T, E: Into<Error>>(
        &self,
        effect: &'static str,
        work: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, Error> {
        debug_assert!(EFFECTS.contains(&effect), "an effect has a name in the list");
        #[cfg(feature = "abort-after-effect")]
        if let Some(fault) = fault::next(effect) {
            warn!(effect, ?fault, "failing as asked");
            if fault != fault::Fault::Undone {
                work.await.map_err(Into::into)?;
            }
            return Err(fault.error(effect).into());
        }
        work.await.map_err(Into::into)
    }

    /// Carries one step out, and returns the permit for what comes after it. `permit`: that of the step before it.
    pub(super) async fn carry_out(
        &self,
        step: &Step,
        permit: Option<Permit>,
    ) -> (Result<(), Error>, Option<Permit>) {
        // Waiting for a process to end makes nothing, nor does waiting for a registry, and must not keep others from
        // being made.
        let permit = match (&step.action, permit) {
            (Action::Stop(_) | Action::RemoveStray(_) | Action::Pull { .. }, _) => None,
            (
                Action::Import { .. }
                | Action::Prepare(_)
                | Action::Update(_)
                | Action::Resume { .. }
                | Action::Finish(_)
                | Action::Start(_)
                | Action::Publish { .. }
                | Action::Clear { .. }
                | Action::Remove { .. }
                | Action::RemoveOrphan { .. }
                | Action::MarkImage { .. }
                | Action::RemoveImage { .. }
                | Action::Sweep(_),
                None,
            ) => Arc::clone(&self.permits).acquire_owned().await.ok(),
            (_, permit) => permit,
        };
        (self.act(step).await, permit)
    }

    /// Carries one step out for a command that has no more, and writes down what came of it.
    pub async fn carry_out_alone(&self, step: &Step) -> Result<(), Error> {
        let result = self.act(step).await;
        self.tell_step(step, &result);
        result
    }

    async fn act(&self, step: &Step) -> Result<(), Error> {
        match &step.action {
            Action::Import { image } => self.import(image).await,
            Action::Pull { image, known } => self.pull(image, known.as_deref()).await,
            Action::MarkImage { name, digest, unused } => {
                let mark = unused.clone().map_or(Mark::Used, Mark::Unused);
                self.effect("image/mark", self.runtime.mark_image(name, digest, &mark)).await
            }
            Action::RemoveImage { name, digest } => {
                self.effect("image/remove", self.runtime.remove_image(name, digest)).await
            }
            Action::Prepare(prepare) => self.prepare(prepare).await,
            Action::Update(it) => {
                let update = Update {
                    origin: Some(it.origin.clone()),
                    workload: Some((*it.workload).clone()),
                    ending: it.calls_off_stop.then_some(0),
                    ..Update::default()
                };
                self.effect("update", self.runtime.update(&it.id, &update)).await
            }
            Action::Resume { id } => self.effect("resume", self.runtime.resume_task(id)).await,
            Action::Publish { id, pid } => {
                let pid = *pid;
                let publish =
                    self.on_host(id.clone(), move |host, id| host.publish_namespace(&id, pid));
                self.effect("publish", publish).await
            }
            Action::Stop(stop) => self.stop(stop).await,
            Action::Finish(finish) => self.finish(step.name.as_ref(), finish).await,
            Action::Start(start) => self.start(step.name.as_ref(), start).await,
            Action::Clear { id } => self.clear(id).await,
            Action::Remove { id, by_absence } => {
                if let Some(it) = by_absence {
                    let at = self.host.now();
                    let (source, name) = (it.source.clone(), it.name.clone());
                    let removal = Removal { source, name, at, of: it.of };
                    self.effect("remove/ledger", async { self.record_removal(removal) }).await?;
                }
                self.remove(id).await
            }
            Action::RemoveOrphan { id, pid } => {
                self.effect("orphan/object", self.runtime.readopt(id)).await?;
                self.kill(id, *pid).await?;
                self.effect("orphan/task", self.runtime.delete_task(id)).await?;
                self.remove(id).await
            }
            Action::RemoveStray(stray) => self.remove_stray(stray).await,
            Action::Sweep(leftover) => self.sweep(leftover).await,
        }
    }

    /// See [`Archives::late`].
    pub(super) fn late_archives(&self) -> Arc<Notify> {
        self.archives.lock().unwrap_or_else(PoisonError::into_inner).late()
    }

    async fn import(&self, image: &Image) -> Result<(), Error> {
        if image.place == ImagePlace::Store {
            return Ok(());
        }
        let archives = Arc::clone(&self.archives);
        let wanted = image.clone();
        let opened = self.blocking(move || {
            archives.lock().unwrap_or_else(PoisonError::into_inner).import(&wanted)
        });
        let mut import = opened.await??;
        // Blobs that no image refers to yet are collected unless a lease holds them.
        let lease = import_lease(&image.digest);
        self.effect("import/lease", self.runtime.lease(&lease)).await?;
        loop {
            // Gigabytes may have to be unpacked to get to a blob.
            let moved = self.blocking(move || (import.advance(), import)).await?;
            import = moved.1;
            moved.0?;
            let Some(blob) = import.blob() else { break };
            self.effect("import/blob", self.runtime.put_blob(&lease, blob)).await?;
        }
        // Only now is there an image: what was cut off before it is nothing that anything could be made from.
        self.effect("import/image", self.runtime.put_image(&lease, import.image())).await?;
        self.effect("import/release", self.runtime.remove_lease(&lease)).await
    }

    async fn prepare(&self, prepare: &Prepare) -> Result<(), Error> {
        let instance = NewInstance {
            id: prepare.id.clone(),
            revision: prepare.revision.clone(),
            origin: prepare.origin.clone(),
            workload: (*prepare.workload).clone(),
            defaults: prepare.defaults.clone(),
            image: prepare.image.clone(),
        };
        // Without a lease the snapshot could be collected before its container exists.
        let lease = instance_lease(&prepare.id);
        self.effect("prepare/lease", self.runtime.lease(&lease)).await?;
        self.effect("prepare/snapshot", self.runtime.prepare_snapshot(&lease, &instance)).await?;
        if !prepare.snapshot_only {
            self.effect("prepare/container", self.runtime.create(&lease, &instance)).await?;
        }
        self.effect("prepare/release", self.runtime.remove_lease(&lease)).await
    }

    async fn start(&self, name: Option<&Name>, start: &Start) -> Result<(), Error> {
        let Err(error) = self.try_start(start).await else { return Ok(()) };
        if error.is_unreachable() {
            // Nothing is known about it: it may run by now, or may even have ended. The next pass looks again.
            return Err(error);
        }
        let error = self.blame(start, error).await;
        let is_own = !matches!(error, Error::DonorEnded { .. });
        let error = match self.undo_start(start).await {
            failures if failures.is_empty() => error,
            failures => Error::NotTakenBack { start: Box::new(error), failures },
        };
        if !is_own {
            // Its donor's failure: it waits for it.
            return Err(error);
        }
        match name {
            Some(name) if self.record_failed_start(name, start, &error).await => {
                Err(Error::Counted(Box::new(error)))
            }
            _ => Err(error),
        }
    }

    /// What fails while its donor ends fails for that: its namespace and its /dev/shm vanish at any moment of a start.
    async fn blame(&self, start: &Start, error: Error) -> Error {
        for donor in &start.donors {
            if let Err(ended @ Error::DonorEnded { .. }) = self.look_at_donor(start, donor).await {
                return ended;
            }
        }
        error
    }

    async fn try_start(&self, start: &Start) -> Result<(), Error> {
        for path in &start.make_directories {
            let make = self.on_host(path.clone(), |host, path| host.make_directory(&path));
            self.effect("start/directory", make).await?;
        }
        if let Some(size) = start.publish {
            // What a run before may have left goes first: each run begins with an empty one.
            let publish = self.on_host(start.id.clone(), move |host, id| {
                if host.observe(&Ask::default())?.published.contains_key(&id) {
                    host.unpublish(&id)?;
                }
                host.publish_shm(&id, size)
            });
            self.effect("start/shm", publish).await?;
        }
        let update = Update {
            origin: start.origin.clone(),
            workload: start.workload.clone(),
            spec: Some(Box::new(start.blueprint.lower(&start.id)?)),
            ..Update::default()
        };
        self.effect("start/spec", self.runtime.update(&start.id, &update)).await?;
        let log = match &start.log {
            Log::None => LogTarget::None,
            Log::Files { directory, max_size, max_files } => LogTarget::Files {
                directory: directory.clone(),
                max_size: max_size.get(),
                max_files: *max_files,
            },
        };
        let create = self.runtime.create_task(&start.id, &log);
        let pid = self.effect("start/task", create).await?;
        if start.publish.is_some() {
            let id = start.id.clone();
            let publish = self.on_host(id, move |host, id| host.publish_namespace(&id, pid));
            self.effect("start/namespace", publish).await?;
        }
        for donor in &start.donors {
            self.look_at_donor(start, donor).await?;
        }
        self.look(start, pid).await?;
        // Written before the start, so that a run can never be taken for one that did not happen.
        let run = Run {
            n: start.run,
            order: start.order,
            boot: self.boot_id.clone(),
            at: self.host.now(),
            started: self.host.wall_clock(),
            image_unchecked: start.image_unchecked.clone(),
        };
        let update = Update { run: Some(run), ..Update::default() };
        self.effect("start/run", self.runtime.update(&start.id, &update)).await?;
        self.effect("start/start", self.runtime.start_task(&start.id)).await
    }

    /// Compares what the created process sees with what was wanted, while it does not run yet.
    async fn look(&self, start: &Start, pid: u32) -> Result<(), Error> {
        // Its shim holds it, so its pid is nobody else's yet.
        let (facts, seen) = self
            .on_host(pid, |host, pid| Ok((host.observe(&Ask::default())?, host.view(pid)?)))
            .await?;
        let mismatch = |reason, message: &str| Error::Mismatch {
            id: start.id.clone(),
            mismatch: Mismatch { reason, message: message.to_owned() },
        };
        let Some(seen) = seen else {
            return Err(mismatch("process-vanished", "its process ended before it was started"));
        };
        accept(&start.expect, &seen, facts.host_view.as_ref(), |id| {
            facts.published.get(id).map_or((None, None), |it| (it.ns_inode, it.shm))
        })
        .map_err(|mismatch| Error::Mismatch { id: start.id.clone(), mismatch })
    }

    /// A donor that has ended since the plan was made still publishes for a moment, what nobody else will ever join.
    async fn look_at_donor(&self, start: &Start, donor: &InstanceId) -> Result<(), Error> {
        match self.runtime.wait(donor, DONOR_LOOK).await {
            Ok(None) => Ok(()),
            Err(error) if error.is_unreachable() => Err(error.into()),
            Ok(Some(_)) | Err(_) => {
                Err(Error::DonorEnded { id: start.id.clone(), donor: donor.clone() })
            }
        }
    }

    /// Takes back what a failed start has made, and returns what could not be. That is seen, and swept, by the next
    /// pass.
    async fn undo_start(&self, start: &Start) -> Vec<Error> {
        let mut cleanup = Cleanup::default();
        let delete = self.runtime.delete_task(&start.id);
        // If it is not deleted it may run after all, and what it publishes is its own then.
        if self.link(&mut cleanup, "undo/task", delete).await && start.publish.is_some() {
            self.link(&mut cleanup, "undo/unpublish", self.unpublish(&start.id)).await;
        }
        cleanup.failures
    }

    async fn unpublish(&self, id: &InstanceId) -> Result<(), Error> {
        self.on_host(id.clone(), |host, id| host.unpublish(&id)).await
    }

    /// A failed start is a failed run: it is counted, and kept on the container for after a reboot. Whether a strike
    /// stands for it now.
    async fn record_failed_start(&self, name: &Name, start: &Start, error: &Error) -> bool {
        let Reason { code, name: reason, .. } = error.classify();
        let failure = Failure {
            code,
            reason: reason.to_owned(),
            message: Chain(error).to_string(),
            at: self.host.wall_clock(),
        };
        let strikes = Strikes {
            revision: start.revision.clone(),
            count: start.strikes_if_failed,
            at: self.host.now(),
            run: None,
            failure: Some(failure),
        };
        let record = async { self.run.set_strikes(name, Some(&strikes)) };
        let counted = match self.effect("failed/strikes", record).await {
            Ok(()) => true,
            Err(error) => {
                warn!(name = %name, error = %Chain(&error), "failed to record a failed start");
                false
            }
        };
        let at = self.host.wall_clock();
        let run = Run {
            n: start.run,
            order: start.order,
            boot: self.boot_id.clone(),
            at: self.host.now(),
            started: at.clone(),
            image_unchecked: None,
        };
        let end = End {
            n: start.run,
            code,
            reason: reason.to_owned(),
            at,
            lasted_ms: 0,
            failures: start.failures_if_failed,
            never_ran: false,
            before: start.before.clone(),
        };
        let update = Update { run: Some(run), end: Some(end), ..Update::default() };
        if let Err(error) = self.effect("failed/end", self.runtime.update(&start.id, &update)).await
        {
            warn!(name = %name, error = %Chain(&error), "failed to record a failed start");
        }
        counted
    }

    /// Lets a stop that is under way end sooner than it was to; never later.
    pub(super) fn hasten(&self, stop: &StopInstance) {
        self.stops.send_if_modified(|stops| {
            let Some(timeout) = stops.get_mut(&stop.id) else { return false };
            let sooner = timeout.sooner(stop.timeout);
            std::mem::replace(timeout, sooner) != sooner
        });
    }

    async fn stop(&self, stop: &StopInstance) -> Result<(), Error> {
        let id = &stop.id;
        self.stops.send_modify(|it| {
            it.insert(id.clone(), stop.timeout);
        });
        let stopped = self.stop_in_time(stop).await;
        self.stops.send_if_modified(|it| {
            it.remove(id);
            false
        });
        stopped
    }

    async fn stop_in_time(&self, stop: &StopInstance) -> Result<(), Error> {
        let id = &stop.id;
        let mut cleanup = Cleanup::default();
        if stop.note && stop.run > 0 {
            // Who dies after the signal leaves an end that would be taken for the program's own: one failure more, or
            // with `never` a run that is not begun again. That is better than a program that no full disk lets end,
            // so the signal is sent all the same.
            let update = Update { ending: Some(stop.run), ..Update::default() };
            self.link(&mut cleanup, "stop/note", self.runtime.update(id, &update)).await;
        }
        let ended = match self.end(stop).await {
            Ok(ended) => ended,
            Err(error) => {
                cleanup.note(Err(error));
                return cleanup.done(id);
            }
        };
        if ended == Task::None {
            // Gone from the runtime is not ended: it may have lost the task since it was looked at.
            let stray = self.on_host(id.clone(), |host, id| host.stray(&id)).await?;
            if stray.is_some_and(|it| !it.pids.is_empty()) {
                return Err(Error::Forgotten { id: id.clone() });
            }
        }
        let (code, at) = match ended {
            Task::Stopped { code, at } => (code, at),
            // The task is gone, or never ran: nobody knows how it ended.
            Task::None
            | Task::Created { .. }
            | Task::Running { .. }
            | Task::Paused { .. }
            | Task::Unknown => (255, self.host.wall_clock()),
        };
        // The code is lost with the task, so that stays until the code is written down.
        let mut is_recorded = true;
        if stop.run > 0 {
            let lasted_ms = stop.started.map_or(0, |it| milliseconds(self.host.now().since(it)));
            let (reason, failures) = (STOPPED.to_owned(), stop.failures);
            let end = End { n: stop.run, code, reason, at, lasted_ms, failures, ..End::default() };
            let update = Update { end: Some(end), ..Update::default() };
            is_recorded =
                self.link(&mut cleanup, "stop/end", self.runtime.update(id, &update)).await;
        }
        if is_recorded {
            // Whose doing the end was is known now, which is all that the note was for.
            cleanup.failures.clear();
            self.link(&mut cleanup, "stop/task", self.runtime.delete_task(id)).await;
        }
        // Nothing runs in it any more, whatever is known of how it ended.
        self.link(&mut cleanup, "stop/unpublish", self.unpublish(id)).await;
        cleanup.done(id)
    }

    /// Asks the process to end, and makes it when it does not; the task as it ended.
    async fn end(&self, stop: &StopInstance) -> Result<Task, Error> {
        let id = &stop.id;
        match self.ask_to_end(stop).await {
            Ok(Some(task)) => Ok(task),
            Ok(None) if self.may_take_for_ever(stop) => Err(Error::StillRuns { id: id.clone() }),
            Ok(None) => self.kill(id, stop.pid).await,
            // Nobody knows whether it runs, or it may take its time.
            Err(error) if error.is_unreachable() || self.may_take_for_ever(stop) => Err(error),
            // What cannot be asked cannot end by itself: a runtime whose own state is gone refuses for ever.
            Err(error) => {
                warn!(id = %id, error = %Chain(&error), "failed to ask it to end; it is killed");
                match self.runtime.wait(id, self.limit(stop).min(UNASKED)).await {
                    Ok(Some(task)) => Ok(task),
                    Ok(None) | Err(_) => self.kill(id, stop.pid).await,
                }
            }
        }
    }

    /// How long it may take by now.
    fn timeout(&self, stop: &StopInstance) -> StopTimeout {
        self.stops.borrow().get(&stop.id).copied().unwrap_or(stop.timeout)
    }

    fn may_take_for_ever(&self, stop: &StopInstance) -> bool {
        self.timeout(stop) == StopTimeout::Never
    }

    fn limit(&self, stop: &StopInstance) -> Duration {
        match self.timeout(stop) {
            StopTimeout::After(span) => span.0,
            StopTimeout::Never => ASK_AGAIN,
        }
    }

    /// The stop signal, and its time to act; none without a time.
    async fn ask_to_end(&self, stop: &StopInstance) -> Result<Option<Task>, Error> {
        let id = &stop.id;
        if stop.paused {
            // A paused process sees no signal before it is resumed, on some kernels not even SIGKILL.
            self.effect("stop/resume", self.runtime.resume_task(id)).await?;
        }
        let mut stops = self.stops.subscribe();
        if self.limit(stop).is_zero() {
            return Ok(None);
        }
        self.effect("stop/signal", self.runtime.kill(id, stop.signal, false)).await?;
        let asked = Instant::now();
        loop {
            stops.borrow_and_update();
            let left = self.limit(stop).saturating_sub(asked.elapsed());
            tokio::select! {
                biased;
                ended = self.runtime.wait(id, left) => match ended {
                    Ok(ended) => return Ok(ended),
                    Err(error) if error.is_unreachable() => return Err(error.into()),
                    // It was asked, and has its time, whether anybody can say how it is or not.
                    Err(_) if left.is_zero() => return Ok(None),
                    Err(error) => {
                        warn!(id = %id, error = %Chain(&error), "failed to wait for its end");
                        tokio::time::sleep(LOOK.min(left)).await;
                    }
                },
                Ok(()) = stops.changed() => {}
            }
        }
    }

    /// SIGKILL to the main process, then to all of them, then to the process itself: its shim may answer no more, and
    /// the program must not go on for that.
    async fn kill(&self, id: &InstanceId, pid: Option<u32>) -> Result<Task, Error> {
        let mut failed = None;
        for all in [false, true] {
            let killed = self.effect("stop/kill", self.runtime.kill(id, Signal::KILL, all)).await;
            let ended = match killed {
                Ok(()) => self.runtime.wait(id, KILL_WAIT).await.map_err(Error::from),
                Err(error) => Err(error),
            };
            match ended {
                Ok(Some(task)) => return Ok(task),
                Ok(None) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(pid) = pid {
            let kill = self.on_host(id.clone(), move |host, id| host.kill(pid, &id));
            self.effect("stop/pid", kill).await?;
            if let Ok(Some(task)) = self.runtime.wait(id, KILL_WAIT).await {
                return Ok(task);
            }
        }
        Err(failed.unwrap_or_else(|| Error::StillThere { id: id.clone() }))
    }

    /// Records how a run ended, then cleans up after it. The record comes first: containerd may be the only one that
    /// knows the code, and a run whose end is recorded is not counted again, however often the rest is tried.
    async fn finish(&self, name: Option<&Name>, finish: &Finish) -> Result<(), Error> {
        let id = &finish.id;
        let mut cleanup = Cleanup::default();
        // Before anything says that the run is over: one that is over and not counted would start without a delay.
        if let Some(name) = name.filter(|_| finish.strikes > 0) {
            let strikes = Strikes {
                revision: finish.revision.clone(),
                count: finish.strikes,
                at: self.host.now(),
                run: finish.started,
                failure: None,
            };
            // The rest is tidied up all the same, on a full run directory too.
            let record = async { self.run.set_strikes(name, Some(&strikes)) };
            self.link(&mut cleanup, "finish/strikes", record).await;
        }
        // The code is lost with the task, so that stays until the code is written down.
        let mut is_recorded = true;
        if finish.run > 0 {
            let (code, reason, at) = match &finish.exit {
                Some((code, at)) if finish.stopped => (*code, STOPPED, at.clone()),
                Some((code, at)) => (*code, EXITED, at.clone()),
                None if finish.never_ran || finish.stopped => {
                    (255, STOPPED, self.host.wall_clock())
                }
                None => (255, EXIT_UNKNOWN, self.host.wall_clock()),
            };
            let lasted_ms = if finish.never_ran { 0 } else { milliseconds(finish.lasted) };
            let end = End {
                n: finish.run,
                code,
                reason: reason.to_owned(),
                at,
                lasted_ms,
                failures: finish.failures,
                never_ran: finish.never_ran,
                before: finish.before.clone(),
            };
            let update = Update { end: Some(end), ..Update::default() };
            is_recorded =
                self.link(&mut cleanup, "finish/end", self.runtime.update(id, &update)).await;
        }
        if is_recorded {
            self.link(&mut cleanup, "finish/task", self.runtime.delete_task(id)).await;
        }
        self.link(&mut cleanup, "finish/unpublish", self.unpublish(id)).await;
        cleanup.done(id)
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), Error> {
        let mut cleanup = Cleanup::default();
        let removed = match self.make("remove/container", self.runtime.remove(id)).await {
            Ok(()) => true,
            Err(error) => {
                // What runs keeps what it publishes, and what does not answer may run.
                let ended = !error.is_unreachable()
                    && matches!(self.runtime.wait(id, LOOK).await, Ok(Some(_)));
                if !ended {
                    return Err(error);
                }
                cleanup.note(Err(error))
            }
        };
        self.boundary("remove/container").await;
        self.link(&mut cleanup, "remove/unpublish", self.unpublish(id)).await;
        self.link(&mut cleanup, "remove/logs", self.remove_logs(id)).await;
        if removed {
            cleanup.note(self.use_up_approval(id));
        }
        cleanup.done(id)
    }

    /// As [`Self::remove`], but the container object stays, with how it ended.
    async fn clear(&self, id: &InstanceId) -> Result<(), Error> {
        let mut cleanup = Cleanup::default();
        self.link(&mut cleanup, "clear/unpublish", self.unpublish(id)).await;
        self.link(&mut cleanup, "clear/snapshot", self.runtime.clear(id)).await;
        self.link(&mut cleanup, "clear/logs", self.remove_logs(id)).await;
        cleanup.done(id)
    }

    async fn remove_logs(&self, id: &InstanceId) -> Result<(), Error> {
        let path = self.log_directory.join(id.as_str());
        let removed = path.clone();
        match self.blocking(move || std::fs::remove_dir_all(removed)).await? {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(Error::Remove { path, cause }),
        }
    }

    async fn sweep(&self, leftover: &Leftover) -> Result<(), Error> {
        let sweep = async {
            match leftover {
                Leftover::Lease(id) => self.runtime.remove_lease(id).await?,
                Leftover::Snapshot(key) => self.runtime.remove_snapshot(key).await?,
                Leftover::Published(id) => self.unpublish(id).await?,
                Leftover::Logs(id) => self.remove_logs(id).await?,
                Leftover::Strikes(name) => self.run.set_strikes(name, None)?,
                Leftover::Approval(it) => self.use_up_approval(&it.instance)?,
                Leftover::Hand(name, hand) => self.run.take_hand(name, hand)?,
                Leftover::Exec(id, key) => {
                    let _readers = self.run.read_exec(key);
                    self.runtime.delete_exec(id, key).await?;
                    // Only now: without it nobody would know of the process any more.
                    self.run.remove_exec(key)?;
                }
            }
            Ok::<_, Error>(())
        };
        self.effect("sweep", sweep).await
    }

    /// Counts a removal by absence, and forgets those that count no more.
    fn record_removal(&self, removal: Removal) -> Result<(), Error> {
        // Two removals at the same time must not lose one of them.
        let _one = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let mut removals = self.run.removals()?;
        removals.retain(|it| removal.at.since(it.at) < PRUNE_WINDOW);
        removals.push(removal);
        Ok(self.run.set_removals(&removals)?)
    }

    /// An approval is for one instance, and gone with it.
    fn use_up_approval(&self, id: &InstanceId) -> Result<(), Error> {
        let _one = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        for (token, mut approvals) in self.run.approvals()? {
            let before = approvals.len();
            approvals.retain(|it| it.instance != *id);
            if approvals.is_empty() {
                self.run.withdraw_approval(&token)?;
            } else if approvals.len() < before {
                self.run.approve(&token, &approvals)?;
            }
        }
        Ok(())
    }

    /// Runs a synchronous verb of the host where it may block.
    async fn on_host<A, T>(
        &self,
        argument: A,
        verb: impl FnOnce(&H, A) -> Result<T, host::Error> + Send + 'static,
    ) -> Result<T, Error>
    where
        A: Send + 'static,
        T: Send + 'static,
    {
        let host = Arc::clone(&self.host);
        Ok(self.blocking(move || verb(&host, argument)).await??)
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Error {
    /// The runtime does not answer: nothing is known about the workload.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Runtime(error) => error.is_unreachable(),
            Self::Cleanup { failures, .. } => failures.iter().any(Self::is_unreachable),
            Self::Host(_)
            | Self::RunDirectory(_)
            | Self::Archive(_)
            | Self::Pull { .. }
            | Self::Unusable { .. }
            | Self::Unlowerable(_)
            | Self::Mismatch { .. }
            | Self::DonorEnded { .. }
            | Self::StillRuns { .. }
            | Self::StillThere { .. }
            | Self::Forgotten { .. }
            | Self::Remove { .. }
            | Self::NotTakenBack { .. }
            | Self::Counted(_)
            | Self::Lost
            | Self::InVain => false,
        }
    }

    /// A strike stands for it.
    pub fn is_counted(&self) -> bool {
        matches!(self, Self::Counted(_))
    }

    /// The compatible exit code, our reason and the advice.
    pub fn classify(&self) -> Reason {
        match self {
            Self::Mismatch { mismatch, .. } => refusal::of(mismatch.reason),
            Self::DonorEnded { .. } => refusal::of("donor-vanished"),
            Self::Runtime(error) if error.kind == ErrorKind::Missing => {
                refusal::of("instance-missing")
            }
            // Its own words only: what we put in front names the subject, which can be anything.
            Self::Runtime(error) => error.cause.as_ref().map_or_else(
                || refusal::of("start-failed"),
                |it| refusal::classify(&it.to_string()),
            ),
            Self::Archive(_) => refusal::of("image-import-failed"),
            Self::Unlowerable(_) => refusal::of("spec-rejected"),
            Self::Counted(error) | Self::NotTakenBack { start: error, .. } => error.classify(),
            Self::Host(_) | Self::RunDirectory(_) => refusal::of("host-failed"),
            Self::StillRuns { .. }
            | Self::StillThere { .. }
            | Self::Forgotten { .. }
            | Self::Remove { .. }
            | Self::Cleanup { .. }
            | Self::Pull { .. }
            | Self::Unusable { .. }
            | Self::Lost
            | Self::InVain => refusal::of("start-failed"),
        }
    }
}
