//! A host in memory: what is published, which bind sources exist, and what processes would see.
//!
//! Models the outcome of the mount calls, the traps among them, not the calls. Clones share one state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{Ask, Error, Facts, Host, Means, Process, ProcessIpc, ProcessShm, Whom};
use crate::desired::BootTime;
use crate::observed::{FileKind, Published, Space, Stray, View, published_paths};
use crate::workload::{Bytes, InstanceId, Signal};

/// How the processes of a runtime in memory were made; `None`: there is no such process.
pub type Processes = Arc<dyn Fn(u32) -> Option<Process> + Send + Sync>;

type Tell = Arc<dyn Fn(&InstanceId, Signal) + Send + Sync>;

/// What a runtime in memory has lost, and how it is ended.
#[derive(Clone)]
pub struct Lost {
    pub all: Arc<dyn Fn() -> BTreeMap<InstanceId, Stray> + Send + Sync>,
    pub signal: Tell,
    pub remove: Arc<dyn Fn(&InstanceId) + Send + Sync>,
}

/// What an OCI spec asks for: how the processes that a runtime in memory makes of it were made.
pub fn process_of(spec: &Spec) -> Process {
    let namespaces = spec.linux().as_ref().and_then(|it| it.namespaces().as_deref());
    let namespace = namespaces.into_iter().flatten().find(|it| it.typ() == LinuxNamespaceType::Ipc);
    let ipc = match namespace.map(oci_spec::runtime::LinuxNamespace::path) {
        None => ProcessIpc::Host,
        Some(None) => ProcessIpc::Own,
        Some(Some(path)) => ProcessIpc::Path(path.clone()),
    };
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    // The last one is on top.
    let shm = mounts.iter().rfind(|it| it.destination() == Path::new(SHM)).map_or(
        ProcessShm::None,
        |it| match it.source() {
            Some(source) if source == Path::new(SHM) => ProcessShm::Host,
            Some(source) if it.typ().as_deref() == Some("bind") => ProcessShm::Path(source.clone()),
            _ => ProcessShm::Own,
        },
    );
    let cgroup = spec.linux().as_ref().and_then(|it| it.cgroups_path().as_deref());
    let instance = cgroup.and_then(|it| it.file_name()?.to_str()?.parse().ok());
    Process { ipc, shm, instance }
}

const SHM: &str = "/dev/shm";

/// The host's own namespace, /dev/shm and disk; numbers as a kernel would give them.
const HOST_IPC: u64 = 4_026_531_839;
const HOST_SHM: u64 = 25;
const HOST_DISK: u64 = 65_024;
/// The namespaces that processes make are counted from here: one outlives its process while somebody else is in it.
const OWN_IPC: u64 = 4_026_540_000;
/// The tmpfs that a process's own runtime mounts is this plus its pid.
const OWN_SHM: u64 = 1_000_000;
/// The first tmpfs that is published.
const FIRST_PUBLISHED: u64 = 10_000;

/// A host of which nothing outlives the process.
#[derive(Clone)]
pub struct MemoryHost {
    run: PathBuf,
    processes: Processes,
    lost: Option<Lost>,
    state: Arc<Mutex<State>>,
}

struct State {
    strays_unknown: Option<String>,
    clock: Clock,
    boot: u64,
    published: BTreeMap<InstanceId, Entry>,
    next_device: u64,
    namespaces: u64,
    paths: BTreeMap<PathBuf, FileKind>,
    // What a process saw when it was first looked at. A path names something else once its donor runs anew, but who
    // has joined stays where it is.
    views: BTreeMap<u32, View>,
    killed: BTreeSet<u32>,
    mounts_shared: Result<(), String>,
    means: Means,
    image_space: Option<Space>,
    rests: usize,
    failures: BTreeMap<&'static str, io::ErrorKind>,
}

/// One directory below `<run>/ipc`.
#[derive(Default)]
struct Entry {
    /// Device and size of each mount on `shm`, the last on top.
    shm: Vec<(u64, u64)>,
    /// Inodes of the namespaces pinned on `ns`, the last on top.
    ns: Vec<u64>,
}

enum Clock {
    Manual(BootTime),
    /// Follows tokio's clock, which tests can pause.
    Runtime(tokio::time::Instant),
    /// The box's.
    Boot,
}

impl fmt::Debug for MemoryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryHost").field("run", &self.run).finish_non_exhaustive()
    }
}

impl MemoryHost {
    /// An empty host whose clock stands still at an hour after boot until it is advanced.
    pub fn new(run: &Path, processes: Processes) -> Self {
        let state = State {
            strays_unknown: None,
            clock: Clock::Manual(BootTime(START)),
            boot: 1,
            published: BTreeMap::new(),
            next_device: FIRST_PUBLISHED,
            namespaces: 0,
            paths: BTreeMap::new(),
            views: BTreeMap::new(),
            killed: BTreeSet::new(),
            mounts_shared: Ok(()),
            means: Means::default(),
            image_space: None,
            rests: 0,
            failures: BTreeMap::new(),
        };
        let state = Arc::new(Mutex::new(state));
        Self { run: run.to_owned(), processes, lost: None, state }
    }

    /// The same host with what a runtime has lost.
    #[must_use]
    pub fn with_lost(self, lost: Lost) -> Self {
        Self { lost: Some(lost), ..self }
    }

    /// The same host with a clock that follows tokio's, which a test can pause.
    #[must_use]
    pub fn with_runtime_clock(self) -> Self {
        self.state().clock = Clock::Runtime(tokio::time::Instant::now());
        self
    }

    /// The same host with the clock of the box, for tests with other parts that look at it.
    #[must_use]
    pub fn with_boot_clock(self) -> Self {
        self.state().clock = Clock::Boot;
        self
    }

    /// Moves a manual clock.
    pub fn advance(&self, span: Duration) {
        if let Clock::Manual(now) = &mut self.state().clock {
            *now = *now + span;
        }
    }

    /// Makes a path exist that binds may name, or, with `None`, go.
    pub fn set_path(&self, path: &Path, kind: Option<FileKind>) {
        let mut state = self.state();
        match kind {
            Some(kind) => state.paths.insert(path.to_owned(), kind),
            None => state.paths.remove(path),
        };
    }

    /// What [`Host::mounts_shared_with`] answers from now on.
    pub fn set_mounts_shared(&self, answer: Result<(), String>) {
        self.state().mounts_shared = answer;
    }

    /// What the runtime lacks from now on.
    pub fn set_image_space(&self, space: Option<Space>) {
        self.state().image_space = space;
    }

    /// How often [`Host::rest`] was called since the last time this was asked.
    pub fn rests(&self) -> usize {
        std::mem::take(&mut self.state().rests)
    }

    pub fn set_means(&self, means: Means) {
        self.state().means = means;
    }

    /// From now on it is not known what the runtime has lost, for this reason; `None`: it is again.
    pub fn hide_strays(&self, why: Option<&str>) {
        self.state().strays_unknown = why.map(str::to_owned);
    }

    /// Mounts one more tmpfs on an instance's `shm`, as a crash or an older program may have left it.
    pub fn stack_shm(&self, id: &InstanceId, size: Bytes) {
        let mut state = self.state();
        let device = state.new_device();
        state.published.entry(id.clone()).or_default().shm.push((device, size.get()));
    }

    /// Makes an instance's directory, as a crash before the first mount leaves it.
    pub fn leave_directory(&self, id: &InstanceId) {
        self.state().published.entry(id.clone()).or_default();
    }

    /// Number and size of the mounts on an instance's `shm`, the last on top.
    pub fn shm_sizes(&self, id: &InstanceId) -> Vec<u64> {
        self.state()
            .published
            .get(id)
            .map(|it| it.shm.iter().map(|(_, size)| *size).collect())
            .unwrap_or_default()
    }

    /// The next call of a verb fails: `publish_shm`, `publish_namespace`, `unpublish`, `observe`.
    pub fn fail_next(&self, verb: &'static str, kind: io::ErrorKind) {
        self.state().failures.insert(verb, kind);
    }

    /// Pids that [`Host::kill`] was called for.
    pub fn killed(&self) -> BTreeSet<u32> {
        self.state().killed.clone()
    }

    /// Forgets all that a reboot forgets; the clock starts anew.
    pub fn reboot(&self) {
        let mut state = self.state();
        state.boot += 1;
        state.published.clear();
        state.views.clear();
        state.clock = match state.clock {
            Clock::Manual(_) => Clock::Manual(BootTime(START)),
            Clock::Runtime(_) => Clock::Runtime(tokio::time::Instant::now()),
            Clock::Boot => Clock::Boot,
        };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fails(&self, verb: &'static str, subject: &dyn fmt::Display) -> Result<(), Error> {
        match self.state().failures.remove(verb) {
            Some(kind) => {
                Err(Error { operation: verb, subject: subject.to_string(), cause: kind.into() })
            }
            None => Ok(()),
        }
    }

    fn seen_by(&self, pid: u32) -> Option<View> {
        // Not under our lock: the closure may take locks of its own.
        let process = (self.processes)(pid);
        let mut state = self.state();
        let Some(process) = process else {
            state.views.remove(&pid);
            return None;
        };
        if let Some(view) = state.views.get(&pid) {
            return Some(*view);
        }
        let ipc_ns = match &process.ipc {
            ProcessIpc::Own => {
                state.namespaces += 1;
                OWN_IPC + state.namespaces
            }
            ProcessIpc::Host => HOST_IPC,
            // A real runtime refuses a path where nothing is pinned. Where it does not, the host's is the worst case.
            ProcessIpc::Path(path) => {
                let entry = state
                    .published
                    .iter()
                    .find(|(id, _)| &published_paths(&self.run, id).ns == path);
                entry.and_then(|(_, entry)| entry.ns.last().copied()).unwrap_or(HOST_IPC)
            }
        };
        let shm = match &process.shm {
            ProcessShm::None => None,
            ProcessShm::Own => Some(OWN_SHM + u64::from(pid)),
            ProcessShm::Host => Some(HOST_SHM),
            // The trap: a bind of a path where nothing is mounted shows the disk below it.
            ProcessShm::Path(path) => {
                let entry = state
                    .published
                    .iter()
                    .find(|(id, _)| &published_paths(&self.run, id).shm == path);
                Some(
                    entry
                        .and_then(|(_, entry)| entry.shm.last())
                        .map_or(HOST_DISK, |(device, _)| *device),
                )
            }
        };
        let view = View { ipc_ns, shm, shm_root: shm.map(|_| 1) };
        state.views.insert(pid, view);
        Some(view)
    }
}

/// Not zero, so that a time that was never set is told from the start.
const START: Duration = Duration::from_hours(1);

impl State {
    /// Numbers are never used twice here; a kernel does so at once, which is why nobody may keep them.
    fn new_device(&mut self) -> u64 {
        self.next_device += 1;
        self.next_device
    }
}

impl Host for MemoryHost {
    fn observe(&self, ask: &Ask) -> Result<Facts, Error> {
        self.fails("observe", &"host")?;
        let is_of = |pid: u32, id: &InstanceId| {
            (self.processes)(pid).is_some_and(|it| it.instance.as_ref() == Some(id))
        };
        let views = ask.pids.iter().filter(|(pid, id)| is_of(**pid, id));
        let views = views.filter_map(|(pid, _)| Some((*pid, self.seen_by(*pid)?))).collect();
        // Not under our lock: the closure may take locks of its own.
        let mut strays = match &ask.tasks {
            Some(_) => self.lost.as_ref().map(|it| (it.all)()).unwrap_or_default(),
            None => BTreeMap::new(),
        };
        strays.retain(|id, _| ask.tasks.as_ref().is_some_and(|it| !it.contains(id)));
        let state = self.state();
        let strays_unknown = state.strays_unknown.clone().filter(|_| ask.tasks.is_some());
        if strays_unknown.is_some() {
            strays.clear();
        }
        let published = |entry: &Entry| Published {
            directory: true,
            shm: entry.shm.last().map(|(device, _)| *device),
            shm_mounts: u32::try_from(entry.shm.len()).unwrap_or(u32::MAX),
            ns: !entry.ns.is_empty(),
            ns_inode: entry.ns.last().copied(),
        };
        let kind = |path: &PathBuf| Some((path.clone(), *state.paths.get(path)?));
        Ok(Facts {
            boot_id: format!("00000000-0000-4000-8000-{:012}", state.boot),
            published: state
                .published
                .iter()
                .map(|(id, entry)| (id.clone(), published(entry)))
                .collect(),
            paths: ask.paths.iter().filter_map(kind).collect(),
            views,
            host_view: Some(View { ipc_ns: HOST_IPC, shm: Some(HOST_SHM), shm_root: Some(1) }),
            means: state.means.clone(),
            image_space: state.image_space,
            strays,
            strays_unknown,
        })
    }

    fn publish_shm(&self, id: &InstanceId, size: Bytes) -> Result<(), Error> {
        self.fails("publish_shm", id)?;
        let mut state = self.state();
        let device = state.new_device();
        // The kernel rounds up to whole pages.
        let size = size.get().div_ceil(PAGE) * PAGE;
        let entry = state.published.entry(id.clone()).or_default();
        if !matches!(entry.shm[..], [(_, there)] if there == size) {
            entry.shm = vec![(device, size)];
        }
        Ok(())
    }

    fn publish_namespace(&self, id: &InstanceId, pid: u32) -> Result<(), Error> {
        self.fails("publish_namespace", id)?;
        let gone = || Error {
            operation: "publish the IPC namespace of",
            subject: id.to_string(),
            cause: io::ErrorKind::NotFound.into(),
        };
        let inode = self.seen_by(pid).ok_or_else(gone)?.ipc_ns;
        self.state().published.entry(id.clone()).or_default().ns = vec![inode];
        Ok(())
    }

    fn unpublish(&self, id: &InstanceId) -> Result<(), Error> {
        self.fails("unpublish", id)?;
        self.state().published.remove(id);
        Ok(())
    }

    fn view(&self, pid: u32) -> Result<Option<View>, Error> {
        Ok(self.seen_by(pid))
    }

    fn mounts_shared_with(&self, _runtime: u32) -> Result<(), String> {
        self.state().mounts_shared.clone()
    }

    fn make_directory(&self, path: &Path) -> Result<(), Error> {
        let mut state = self.state();
        match state.paths.get(path) {
            Some(FileKind::Other | FileKind::Silent) => Err(Error {
                operation: "make the directory",
                subject: path.display().to_string(),
                cause: io::ErrorKind::AlreadyExists.into(),
            }),
            Some(FileKind::Directory) => Ok(()),
            None => {
                state.paths.insert(path.to_owned(), FileKind::Directory);
                Ok(())
            }
        }
    }

    fn kill(&self, pid: u32, _id: &InstanceId) -> Result<(), Error> {
        self.state().killed.insert(pid);
        Ok(())
    }

    fn stray(&self, id: &InstanceId) -> Result<Option<Stray>, Error> {
        self.fails("stray", id)?;
        Ok(self.lost.as_ref().and_then(|it| (it.all)().remove(id)))
    }

    fn signal_stray(&self, id: &InstanceId, whom: Whom, signal: Signal) -> Result<bool, Error> {
        self.fails("signal_stray", id)?;
        let lives = self.stray(id)?.is_some_and(|it| !it.pids.is_empty());
        if let Some(lost) = self.lost.as_ref().filter(|_| lives && whom != Whom::Shim) {
            (lost.signal)(id, signal);
        }
        Ok(lives && whom != Whom::Shim)
    }

    fn remove_stray(&self, id: &InstanceId) -> Result<(), Error> {
        self.fails("remove_stray", id)?;
        if self.stray(id)?.is_some_and(|it| !it.pids.is_empty()) {
            return Err(Error {
                operation: "remove what is left of",
                subject: id.to_string(),
                cause: io::ErrorKind::ResourceBusy.into(),
            });
        }
        if let Some(lost) = &self.lost {
            (lost.remove)(id);
        }
        Ok(())
    }

    fn rest(&self) {
        self.state().rests += 1;
    }

    fn now(&self) -> BootTime {
        match self.state().clock {
            Clock::Manual(now) => now,
            Clock::Runtime(start) => BootTime(START) + start.elapsed(),
            Clock::Boot => super::linux::boot_time(),
        }
    }

    fn wall_clock_after(&self, span: Duration) -> String {
        let now = i64::try_from((self.now() + span).0.as_millis()).unwrap_or(i64::MAX);
        // A fixed day, so that what is printed in tests does not change.
        let time = jiff::Timestamp::from_millisecond(MEMORY_EPOCH_MS.saturating_add(now))
            .unwrap_or_default();
        format!("{time:.3}")
    }
}

const PAGE: u64 = 4096;

/// 2026-01-01T00:00:00Z.
const MEMORY_EPOCH_MS: i64 = 1_767_225_600_000;
