//! The runtime in memory behind a connection that takes time, fails, and breaks off; every call passes the judge.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use evenkeel::desired::BootTime;
use evenkeel::host::memory::MemoryHost;
use evenkeel::host::{self, Ask, Facts, Host, Whom};
use evenkeel::observed::{FileKind, HandKind, Image, Stray, Task, View};
use evenkeel::rundir::RunDirectory;
use evenkeel::runtime::memory::MemoryRuntime;
use evenkeel::runtime::{
    Blob, BlobWriter, Error, ErrorKind, Exec, LogTarget, Mark, NewBlob, NewImage, NewInstance,
    NewLayer, Objects, Runtime, Streams, Tell, Update, verb,
};
use evenkeel::workload::{Bytes, InstanceId, Signal};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::faults::Fault;
use crate::judge::{Judge, objects};
use crate::script::When;

/// All verbs whose failure can be wished for.
pub(crate) const VERBS: [&str; 16] = [
    verb::OBSERVE,
    verb::LEASE,
    verb::REMOVE_LEASE,
    verb::PREPARE_SNAPSHOT,
    verb::CREATE,
    verb::UPDATE,
    verb::CREATE_TASK,
    verb::START_TASK,
    verb::RESUME_TASK,
    verb::KILL,
    verb::WAIT,
    verb::DELETE_TASK,
    verb::REMOVE,
    verb::REMOVE_SNAPSHOT,
    verb::READOPT,
    verb::PUT_IMAGE,
];

/// The host as controllers see it.
#[derive(Clone)]
pub(crate) struct SimHost(pub(crate) Arc<Shared>);

/// One controller's connection.
#[derive(Clone)]
pub(crate) struct SimRuntime {
    pub(crate) world: Arc<Shared>,
    /// Which controller it belongs to; those before are dead.
    controller: u64,
}

/// What outlives controllers.
pub(crate) struct Shared {
    pub(crate) memory: MemoryRuntime,
    pub(crate) host: MemoryHost,
    pub(crate) hints: watch::Sender<u64>,
    pub(crate) unreachable: watch::Sender<bool>,
    pub(crate) fault: Option<Fault>,
    run: RunDirectory,
    begun: Instant,
    state: Mutex<State>,
}

struct State {
    seed: u64,
    alive: u64,
    counts: BTreeMap<(&'static str, String), u64>,
    failures: VecDeque<(String, When, bool)>,
    slow: VecDeque<(String, u64)>,
    kill_at_call: Option<usize>,
    /// Nothing goes wrong any more, not even with a call that was to be the last of its controller.
    calm: bool,
    /// For faults: the pid that each instance had last, who made each lease, and the images that were ever there.
    pids: BTreeMap<InstanceId, u32>,
    leases: BTreeMap<String, u64>,
    images: BTreeMap<String, Image>,
    judge: Judge,
    trace: Vec<String>,
}

/// A call under way.
struct Call {
    world: Arc<Shared>,
    of: Option<String>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.world.state().judge.end(self.of.as_ref(), Instant::now());
    }
}

impl Shared {
    pub(crate) fn new(
        seed: u64,
        memory: MemoryRuntime,
        host: MemoryHost,
        run: RunDirectory,
        fault: Option<Fault>,
    ) -> Arc<Self> {
        let state = State {
            seed,
            alive: 0,
            counts: BTreeMap::new(),
            failures: VecDeque::new(),
            slow: VecDeque::new(),
            kill_at_call: None,
            calm: false,
            pids: BTreeMap::new(),
            leases: BTreeMap::new(),
            images: BTreeMap::new(),
            judge: Judge::default(),
            trace: Vec::new(),
        };
        Arc::new(Self {
            memory,
            host,
            hints: watch::Sender::new(0),
            unreachable: watch::Sender::new(false),
            fault,
            run,
            begun: Instant::now(),
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn judge<T>(&self, ask: impl FnOnce(&mut Judge) -> T) -> T {
        ask(&mut self.state().judge)
    }

    /// A connection of a new controller; those before are cut.
    pub(crate) fn connect(self: &Arc<Self>) -> SimRuntime {
        let mut state = self.state();
        state.alive += 1;
        state.kill_at_call = None;
        state.judge.new_controller();
        SimRuntime { world: Arc::clone(self), controller: state.alive }
    }

    /// Nothing that is under way is answered any more.
    pub(crate) fn cut(&self) {
        let mut state = self.state();
        state.alive += 1;
        state.judge.new_controller();
    }

    pub(crate) fn is_alive(&self, runtime: &SimRuntime) -> bool {
        self.state().alive == runtime.controller
    }

    pub(crate) fn fail(&self, verb: &str, when: When, refused: bool) {
        self.state().failures.push_back((verb.to_owned(), when, refused));
    }

    pub(crate) fn slow(&self, verb: &str, ms: u64) {
        self.state().slow.push_back((verb.to_owned(), ms));
    }

    pub(crate) fn kill_at_call(&self, n: usize) {
        self.state().kill_at_call = Some(n);
    }

    pub(crate) fn no_more_failures(&self) {
        let mut state = self.state();
        state.failures.clear();
        state.slow.clear();
        state.kill_at_call = None;
        state.calm = true;
    }

    /// A pid may be another process's from now on: the host looks at it anew.
    fn forget_dead_processes(&self) {
        let used = self.state().judge.pids();
        for pid in used {
            self.host.view(pid).ok();
        }
    }

    /// What a look shows with the fault that is planted.
    fn falsify(&self, objects: &mut Objects, asked: &BTreeSet<String>) {
        let Some(fault) = self.fault else { return };
        let mut state = self.state();
        if fault == Fault::ImageThatIsGone {
            state.images.extend(objects.images.clone());
            objects.images.clone_from(&state.images);
            objects.images.retain(|name, _| asked.contains(name));
        }
        let truth = state.judge.files();
        let pid_of = |id: &InstanceId| state.pids.get(id).copied();
        let boot = self.boot_id();
        let is_shutting_down = state.judge.is_shutting_down();
        fault.falsify(objects, &self.memory, pid_of, &truth, &boot, is_shutting_down);
    }

    fn boot_id(&self) -> String {
        // A failure that a script wants is for the controller's own look.
        let look = |_| self.host.observe(&Ask::default()).ok();
        (0..2).find_map(look).expect("one failure is wanted at most").boot_id
    }

    /// What a person asks for of the workload of an instance.
    fn asked(&self, id: &InstanceId) -> Option<HandKind> {
        let name = objects(&self.memory).containers.into_iter().find(|it| it.id == *id)?.name;
        Some(self.run.hands().0.get(&name)?.kind)
    }

    pub(crate) fn note(&self, what: &str) {
        let ms = self.begun.elapsed().as_millis();
        self.state().trace.push(format!("{ms:>8} {what}"));
    }

    pub(crate) fn trace(&self) -> Vec<String> {
        self.state().trace.clone()
    }
}

impl State {
    /// How long a call takes before and after its effect.
    fn times(&mut self, operation: &'static str, subject: &str) -> (u64, u64) {
        let count = self.counts.entry((operation, subject.to_owned())).or_default();
        *count += 1;
        let mut hasher = DefaultHasher::new();
        (self.seed, operation, subject, *count).hash(&mut hasher);
        let dice = hasher.finish();
        let slow = self.slow.iter().position(|(slow, _)| slow == operation);
        let slow = slow.and_then(|at| self.slow.remove(at)).map_or(0, |it| it.1);
        (1 + dice % 7 + slow / 2, (dice >> 8) % 7 + slow / 2)
    }
}

impl SimRuntime {
    /// Never returns in a controller that is dead.
    async fn live(&self) {
        if self.world.state().alive != self.controller {
            std::future::pending::<()>().await;
        }
    }

    /// What the runtime does about the binds of an instance: it refuses what is not there, and waits for what does
    /// not answer.
    async fn bind(&self, id: &InstanceId) -> Result<(), Error> {
        let found = objects(&self.world.memory).containers.into_iter().find(|it| it.id == *id);
        let mounts = found.and_then(|it| it.workload).map(|it| it.spec.mounts);
        for source in mounts.into_iter().flatten().filter_map(|it| it.source) {
            let kind = match self.world.judge(|it| it.source(source.as_path())) {
                Some(FileKind::Directory | FileKind::Other) => continue,
                Some(FileKind::Silent) => {
                    tokio::time::sleep(Duration::from_secs(10)).await;
                    ErrorKind::Unreachable
                }
                None => ErrorKind::Refused,
            };
            let cause = Some(format!("mounting {source}: no such file or directory").into());
            return Err(Error {
                operation: verb::CREATE_TASK,
                subject: id.to_string(),
                kind,
                cause,
            });
        }
        Ok(())
    }

    async fn perform<T>(
        &self,
        operation: &'static str,
        subject: &str,
        effect: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.live().await;
        let error = |kind| Error {
            operation,
            subject: subject.to_owned(),
            kind,
            cause: Some("the simulation wants it".into()),
        };
        let is_busy;
        let (before, after, failure, _call) = {
            let mut state = self.world.state();
            let (before, after) = state.times(operation, subject);
            let failure = state.failures.iter().position(|(failing, ..)| failing == operation);
            let failure = failure.and_then(|at| state.failures.remove(at));
            let of = state.judge.begin(operation, subject, Instant::now());
            is_busy = state.judge.is_one_too_many(operation, Instant::now());
            (before, after, failure, Call { world: Arc::clone(&self.world), of })
        };
        if is_busy {
            // A loop that takes no time of the simulated clock would never come to an end.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(before)).await;
        self.live().await;
        let unreachable = || *self.world.unreachable.borrow();
        if unreachable() {
            self.world.judge(|it| it.failed(subject));
            return Err(error(ErrorKind::Unreachable));
        }
        if let Some((_, When::Before, refused)) = failure {
            self.world.note(&format!("  {operation} {subject} fails"));
            self.world.judge(|it| it.failed(subject));
            if [verb::KILL, verb::RESUME_TASK].contains(&operation) && refused {
                self.world.judge(|it| it.not_signalled(subject));
            }
            if operation == verb::WAIT && refused {
                self.world.judge(|it| it.waits_on(Instant::now()));
            }
            let kind = if refused { ErrorKind::Refused } else { ErrorKind::Unreachable };
            return Err(error(kind));
        }
        let (memory, host) = (&self.world.memory, &self.world.host);
        let changes = operation != verb::OBSERVE;
        let dies = changes && {
            let mut state = self.world.state();
            state.judge.before(operation, subject, memory, host);
            match &mut state.kill_at_call {
                Some(0 | 1) => {
                    state.kill_at_call = None;
                    true
                }
                Some(n) => {
                    *n -= 1;
                    false
                }
                None => false,
            }
        };
        let result = if operation == verb::WAIT {
            let mut gone = self.world.unreachable.subscribe();
            tokio::select! {
                biased;
                result = effect => result,
                _ = gone.wait_for(|it| *it) => Err(error(ErrorKind::Unreachable)),
            }
        } else {
            effect.await
        };
        self.live().await;
        if changes {
            let outcome = if result.is_ok() { "" } else { ": refused" };
            self.world.note(&format!("  {operation} {subject}{outcome}"));
            self.world.state().judge.after(operation, subject, result.is_ok(), memory, host);
        }
        if dies && !self.world.state().calm {
            self.world.note("  the controller dies");
            self.world.cut();
        }
        self.live().await;
        tokio::time::sleep(Duration::from_millis(after)).await;
        self.live().await;
        if unreachable() || failure.is_some() {
            self.world.judge(|it| it.failed(subject));
            return Err(error(ErrorKind::Unreachable));
        }
        result
    }
}

impl Runtime for SimRuntime {
    async fn observe(&self, images: &BTreeSet<String>) -> Result<Objects, Error> {
        let look = async {
            let mut objects = self.world.memory.observe(images).await?;
            self.world.falsify(&mut objects, images);
            if self.world.fault == Some(Fault::LookIsHint) {
                self.world.hints.send_modify(|it| *it += 1);
            }
            Ok(objects)
        };
        self.perform(verb::OBSERVE, "everything", look).await
    }

    async fn put_blob(&self, lease: &str, blob: Blob<'_>) -> Result<(), Error> {
        self.world.memory.put_blob(lease, blob).await
    }

    async fn open_blob(
        &self,
        lease: &str,
        blob: &NewBlob,
    ) -> Result<Option<Box<dyn BlobWriter>>, Error> {
        self.world.memory.open_blob(lease, blob).await
    }

    async fn unpack_layer(&self, lease: &str, layer: &NewLayer) -> Result<(), Error> {
        self.world.memory.unpack_layer(lease, layer).await
    }

    async fn put_image(&self, lease: &str, image: &NewImage) -> Result<(), Error> {
        let put = self.world.memory.put_image(lease, image);
        self.perform(verb::PUT_IMAGE, &image.name, put).await
    }

    async fn mark_image(&self, name: &str, digest: &str, mark: &Mark) -> Result<(), Error> {
        let marked = self.world.memory.mark_image(name, digest, mark);
        self.perform(verb::MARK_IMAGE, name, marked).await
    }

    async fn remove_image(&self, name: &str, digest: &str) -> Result<(), Error> {
        let removed = Runtime::remove_image(&self.world.memory, name, digest);
        self.perform(verb::REMOVE_IMAGE, name, removed).await
    }

    async fn lease(&self, id: &str) -> Result<(), Error> {
        if self.world.fault == Some(Fault::StoppedBeforePrepared) {
            let of = id.strip_prefix("evenkeel-").and_then(|it| it.parse::<InstanceId>().ok());
            for it in objects(&self.world.memory).containers {
                let is_older = |of: &InstanceId| it.id != *of && it.id.stem() == of.stem();
                if it.task.pid().is_some() && of.as_ref().is_some_and(is_older) {
                    self.kill(&it.id, Signal::KILL, false).await?;
                }
            }
        }
        self.world.state().leases.insert(id.to_owned(), self.controller);
        self.perform(verb::LEASE, id, self.world.memory.lease(id)).await
    }

    async fn remove_lease(&self, id: &str) -> Result<(), Error> {
        let maker = self.world.state().leases.remove(id);
        let is_kept = match self.world.fault {
            Some(Fault::LeaseKept) => maker.is_some(),
            Some(Fault::LeaseNeverSwept) => maker != Some(self.controller),
            _ => false,
        };
        if is_kept {
            return self.perform(verb::REMOVE_LEASE, id, async { Ok(()) }).await;
        }
        self.perform(verb::REMOVE_LEASE, id, self.world.memory.remove_lease(id)).await
    }

    async fn prepare_snapshot(&self, lease: &str, instance: &NewInstance) -> Result<(), Error> {
        let prepare = self.world.memory.prepare_snapshot(lease, instance);
        self.perform(verb::PREPARE_SNAPSHOT, instance.id.as_str(), prepare).await
    }

    async fn create(&self, lease: &str, instance: &NewInstance) -> Result<(), Error> {
        let create = self.world.memory.create(lease, instance);
        self.perform(verb::CREATE, instance.id.as_str(), create).await
    }

    async fn update(&self, id: &InstanceId, update: &Update) -> Result<(), Error> {
        let asked = self.world.fault.and_then(|_| self.world.asked(id));
        let false_one = self.world.fault.map(|it| it.falsify_update(update, asked));
        let update = false_one.as_ref().unwrap_or(update);
        let write = async {
            let before = objects(&self.world.memory);
            let result = self.world.memory.update(id, update).await;
            if result.is_ok() {
                let strikes = self.world.run.strikes().unwrap_or_default();
                self.world.judge(|judge| judge.updated(id, update, &before, &strikes));
            }
            result
        };
        self.perform(verb::UPDATE, id.as_str(), write).await
    }

    async fn create_task(&self, id: &InstanceId, log: &LogTarget) -> Result<u32, Error> {
        let create = async {
            self.bind(id).await?;
            self.world.forget_dead_processes();
            let pid = self.world.memory.create_task(id, log).await?;
            self.world.state().pids.insert(id.clone(), pid);
            if let LogTarget::Files { directory, .. } = log {
                std::fs::create_dir_all(directory).expect("a directory can be made");
            }
            Ok(pid)
        };
        self.perform(verb::CREATE_TASK, id.as_str(), create).await
    }

    async fn start_task(&self, id: &InstanceId) -> Result<(), Error> {
        self.perform(verb::START_TASK, id.as_str(), self.world.memory.start_task(id)).await
    }

    async fn resume_task(&self, id: &InstanceId) -> Result<(), Error> {
        self.perform(verb::RESUME_TASK, id.as_str(), self.world.memory.resume_task(id)).await
    }

    async fn kill(&self, id: &InstanceId, signal: Signal, all: bool) -> Result<(), Error> {
        if self.world.fault == Some(Fault::RestartForgotten)
            && self.world.asked(id) == Some(HandKind::Restart)
            && let Some(it) =
                objects(&self.world.memory).containers.into_iter().find(|it| it.id == *id)
        {
            self.world.run.remove_hand(&it.name).expect("it can be removed");
        }
        let memory = &self.world.memory;
        let kill = async {
            let before = objects(memory);
            let is_alive =
                before.containers.iter().any(|it| it.id == *id && it.task.pid().is_some());
            if signal == Signal::KILL {
                self.world.judge(|it| it.signalled(id, signal, false, memory));
            }
            let result = memory.kill(id, signal, all).await;
            if signal != Signal::KILL && is_alive {
                self.world.judge(|it| it.signalled(id, signal, result.is_err(), memory));
            }
            result
        };
        self.perform(verb::KILL, id.as_str(), kill).await
    }

    async fn wait(&self, id: &InstanceId, limit: Duration) -> Result<Option<Task>, Error> {
        let is_hasty = self.world.fault == Some(Fault::KilledAtOnce);
        let limit = if is_hasty { Duration::ZERO } else { limit };
        self.perform(verb::WAIT, id.as_str(), self.world.memory.wait(id, limit)).await
    }

    async fn delete_task(&self, id: &InstanceId) -> Result<(), Error> {
        self.perform(verb::DELETE_TASK, id.as_str(), self.world.memory.delete_task(id)).await
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), Error> {
        self.perform(verb::REMOVE, id.as_str(), self.world.memory.remove(id)).await
    }

    async fn clear(&self, id: &InstanceId) -> Result<(), Error> {
        if self.world.fault == Some(Fault::NotCleared) {
            return self.perform(verb::CLEAR, id.as_str(), async { Ok(()) }).await;
        }
        self.perform(verb::CLEAR, id.as_str(), self.world.memory.clear(id)).await
    }

    async fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        self.perform(verb::REMOVE_SNAPSHOT, key, self.world.memory.remove_snapshot(key)).await
    }

    async fn readopt(&self, id: &InstanceId) -> Result<(), Error> {
        self.perform(verb::READOPT, id.as_str(), self.world.memory.readopt(id)).await
    }

    // The controller knows of no process beside a task's own.
    async fn exec(
        &self,
        id: &InstanceId,
        key: &str,
        exec: &Exec,
        streams: &Streams,
    ) -> Result<u32, Error> {
        self.world.memory.exec(id, key, exec, streams).await
    }

    async fn wait_exec(
        &self,
        id: &InstanceId,
        key: &str,
        limit: Duration,
    ) -> Result<Option<u32>, Error> {
        self.world.memory.wait_exec(id, key, limit).await
    }

    async fn tell_exec(&self, id: &InstanceId, key: &str, tell: Tell) -> Result<(), Error> {
        self.world.memory.tell_exec(id, key, tell).await
    }

    async fn delete_exec(&self, id: &InstanceId, key: &str) -> Result<(), Error> {
        self.world.memory.delete_exec(id, key).await
    }

    fn hints(&self) -> watch::Receiver<u64> {
        self.world.hints.subscribe()
    }
}

impl Host for SimHost {
    fn observe(&self, ask: &Ask) -> Result<Facts, host::Error> {
        let mut facts = self.0.host.observe(ask)?;
        if self.0.fault == Some(Fault::SourcesBelieved) {
            facts.paths = ask.paths.iter().map(|it| (it.clone(), FileKind::Directory)).collect();
        }
        if self.0.fault == Some(Fault::LossUnseen) {
            facts.strays.clear();
        }
        Ok(facts)
    }

    fn stray(&self, id: &InstanceId) -> Result<Option<Stray>, host::Error> {
        self.0.host.stray(id)
    }

    fn signal_stray(
        &self,
        id: &InstanceId,
        whom: Whom,
        signal: Signal,
    ) -> Result<bool, host::Error> {
        self.0.judge(|it| it.stray_signalled(id));
        self.0.host.signal_stray(id, whom, signal)
    }

    fn remove_stray(&self, id: &InstanceId) -> Result<(), host::Error> {
        self.0.host.remove_stray(id)
    }

    fn publish_shm(&self, id: &InstanceId, size: Bytes) -> Result<(), host::Error> {
        self.0.host.publish_shm(id, size)
    }

    fn publish_namespace(&self, id: &InstanceId, pid: u32) -> Result<(), host::Error> {
        self.0.host.publish_namespace(id, pid)
    }

    fn unpublish(&self, id: &InstanceId) -> Result<(), host::Error> {
        if self.0.fault == Some(Fault::StillPublished) {
            return Ok(());
        }
        self.0.host.unpublish(id)
    }

    fn view(&self, pid: u32) -> Result<Option<View>, host::Error> {
        self.0.host.view(pid)
    }

    fn make_directory(&self, path: &std::path::Path) -> Result<(), host::Error> {
        self.0.host.make_directory(path)?;
        self.0.judge(|it| {
            if it.source(path).is_none() {
                it.mounted(path, Some(FileKind::Directory));
            }
        });
        Ok(())
    }

    fn mounts_shared_with(&self, runtime: u32) -> Result<(), String> {
        self.0.host.mounts_shared_with(runtime)
    }

    fn kill(&self, pid: u32, id: &InstanceId) -> Result<(), host::Error> {
        let world = &self.0;
        // As a kernel: by its pid, whatever its shim says.
        if world.memory.process(pid).is_some_and(|it| it.id == *id) {
            world.note(&format!("  kill pid {pid} {id}"));
            world.judge(|it| it.before(verb::KILL, id.as_str(), &world.memory, &world.host));
            world.memory.exit(id, 137);
            world.judge(|it| it.exited(id, 137, Instant::now()));
        }
        world.host.kill(pid, id)
    }

    fn now(&self) -> BootTime {
        self.0.host.now()
    }

    fn wall_clock_after(&self, span: Duration) -> String {
        self.0.host.wall_clock_after(span)
    }
}
