//! Plays a script: a real controller, the real folding of scans, and everything around them in memory.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use evenkeel::backoff::Delays;
use evenkeel::controller::{Controller, Crash, Edge, Ended, Goal, observe_once};
use evenkeel::desired::{Believing, DesiredState, History};
use evenkeel::host::memory::{Lost, MemoryHost, process_of};
use evenkeel::host::{Ask, Host as _};
use evenkeel::image::Archives;
use evenkeel::observed::{FileKind, Hand, HandKind, Image, ImageConfig, ImagePlace, Task};
use evenkeel::plan::{self, ImagePolicy, LogDefaults, MachineEnd, Phase, Policy};
use evenkeel::rundir::{ExecOwner, Holder, RunDirectory};
use evenkeel::runtime::memory::MemoryRuntime;
use evenkeel::runtime::{Exec, Runtime as _, Streams};
use evenkeel::status::Status;
use evenkeel::workload::{
    Bytes, InstanceId, IpcDefaults, IpcMode, Name, OnDonorChange, RestartPolicy, Signal,
};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::faults::Fault;
use crate::judge::{Judge, objects};
use crate::runtime::{Shared, SimHost, SimRuntime};
use crate::script::{Script, Step};
use crate::tree::{QUIET, RESYNC, Said, Tree, Truth, mount};

/// Everything must be as wanted so long after the last failure: the longest delay of a crash loop, and the longest
/// time that an absence waits, one after the other, with room for a stop that needs its time.
const CONVERGED: Duration = Duration::from_mins(4);

/// How long who ends everything waits for who runs.
const HANDOVER: Duration = Duration::from_secs(15);

/// When who ends everything is ended by others, as a service manager does it.
const ENDED: Duration = Duration::from_mins(3);

/// How a script ended.
#[derive(Debug, Clone)]
pub(crate) struct Played {
    /// The rule that was broken, and how.
    pub(crate) verdict: Option<String>,
    /// Steps that were played before that.
    pub(crate) steps: usize,
    pub(crate) trace: Vec<String>,
    pub(crate) checks: std::collections::BTreeMap<&'static str, u64>,
}

/// Plays a script to its end, or until a rule is broken.
pub(crate) fn play(script: &Script) -> Played {
    play_with(script, None)
}

/// The same with a mistake planted.
pub(crate) fn play_with(script: &Script, fault: Option<Fault>) -> Played {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        let mut world = World::new(script.seed, fault);
        world.run();
        let mut steps = 0;
        for step in &script.steps {
            steps += 1;
            world.shared.note(&step.to_string());
            world.step(step).await;
            world.rest();
            if world.verdict().is_some() {
                break;
            }
        }
        if world.verdict().is_none() {
            world.converge().await;
        }
        world.kill().await;
        Played {
            verdict: world.verdict(),
            steps,
            trace: world.shared.trace(),
            checks: world.shared.judge(|it| it.checks.clone()),
        }
    })
}

struct Running {
    runtime: SimRuntime,
    crash: Arc<Crash>,
    controller: JoinHandle<Ended>,
    watcher: JoinHandle<()>,
    end: oneshot::Sender<()>,
    desired: watch::Receiver<Option<Arc<DesiredState>>>,
}

struct Files {
    tree: Mutex<Tree>,
    events: Notify,
}

struct World {
    directory: tempfile::TempDir,
    shared: Arc<Shared>,
    files: Arc<Files>,
    watched: bool,
    hints: watch::Sender<String>,
    policy: watch::Sender<Arc<Policy>>,
    status: watch::Sender<Option<Arc<Status>>>,
    running: Option<Running>,
    relay: JoinHandle<()>,
    /// Processes that persons run beside programs, and whether their commands live.
    execs: std::collections::BTreeMap<String, (InstanceId, bool)>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

pub(crate) fn image(name: &str, digest: u64) -> Image {
    Image {
        name: format!("localhost/{name}:1"),
        digest: format!("sha256:{digest:064x}"),
        config: ImageConfig::default(),
        place: ImagePlace::Store,
    }
}

/// Hints as containerd's events arrive: at once, or not, or late, or twice.
fn relay(
    memory: &MemoryRuntime,
    shared: Arc<Shared>,
    how: watch::Receiver<String>,
) -> JoinHandle<()> {
    let mut changes = memory.hints();
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            let after: &[u64] = match how.borrow().as_str() {
                "off" => &[],
                "late" => &[3000],
                "double" => &[0, 40, 1000],
                _ => &[0],
            };
            for ms in after {
                let shared = Arc::clone(&shared);
                let ms = *ms;
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    shared.hints.send_modify(|it| *it += 1);
                });
            }
        }
    })
}

/// Scans and folds as the source does.
async fn watch_files(
    shared: Arc<Shared>,
    files: Arc<Files>,
    sender: watch::Sender<Option<Arc<DesiredState>>>,
) {
    let mut history = History::default();
    loop {
        let at = shared.host.now();
        let (scan, truth, changed) = {
            let mut tree = files.tree.lock().unwrap_or_else(PoisonError::into_inner);
            let scan = tree.scan(at, shared.fault);
            let changed = scan.last_change == at;
            (scan, tree.truth(), changed)
        };
        shared.judge(|judge| judge.scanned(truth, changed, Instant::now()));
        let state = history.fold(&[scan], at, &Believing::default());
        sender.send_if_modified(|before| {
            let changed = before.as_deref() != Some(&state);
            if changed {
                *before = Some(Arc::new(state));
            }
            changed
        });
        let due = history.due().map_or(RESYNC, |it| it.since(at).max(Duration::from_millis(1)));
        let stirred = async {
            files.events.notified().await;
            tokio::time::sleep(QUIET).await;
        };
        drop(tokio::time::timeout(due.min(RESYNC), stirred).await);
    }
}

impl World {
    fn new(seed: u64, fault: Option<Fault>) -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let memory = MemoryRuntime::default();
        memory.reuse_pids();
        memory.add_image(image("one", 1));
        memory.add_image(image("two", 2));
        let processes = memory.clone();
        let processes = Arc::new(move |pid| processes.process(pid).map(|it| process_of(&it.spec)));
        let run = directory.path().join("run");
        let (all, signal, remove) = (memory.clone(), memory.clone(), memory.clone());
        let host = MemoryHost::new(&run, processes).with_runtime_clock().with_lost(Lost {
            all: Arc::new(move || all.strays()),
            signal: Arc::new(move |id, it| signal.signal_stray(id, it)),
            remove: Arc::new(move |id| remove.remove_stray(id)),
        });
        let policy = Policy {
            ipc: IpcDefaults::default(),
            restart: RestartPolicy::Always,
            delays: Delays::default(),
            log: LogDefaults { max_size: Bytes::new(1 << 20).expect("not 0"), max_files: 2 },
            images: ImagePolicy::default(),
            prune_limit: 50,
            run_directory: run,
            log_directory: directory.path().join("logs"),
            cgroup_parent: "/evenkeel".to_owned(),
        };
        let run = RunDirectory::new(&directory.path().join("run"));
        let shared = Shared::new(seed, memory, host, run, fault);
        for known in [image("one", 1), image("two", 2)] {
            shared.judge(|it| it.image(&known));
        }
        let there = mount(crate::generate::MOUNTS[0]);
        shared.host.set_path(&there, Some(FileKind::Directory));
        shared.judge(|it| it.mounted(&there, Some(FileKind::Directory)));
        let hints = watch::Sender::new("on".to_owned());
        let relay = relay(&shared.memory, Arc::clone(&shared), hints.subscribe());
        Self {
            directory,
            shared,
            files: Arc::new(Files { tree: Mutex::new(Tree::new()), events: Notify::new() }),
            watched: true,
            hints,
            policy: watch::Sender::new(Arc::new(policy)),
            status: watch::Sender::new(None),
            running: None,
            relay,
            execs: std::collections::BTreeMap::new(),
        }
    }

    fn verdict(&self) -> Option<String> {
        self.shared.judge(|it| it.verdict.clone())
    }

    fn blame(&self, rule: &str, why: &str) {
        self.shared.judge(|it| {
            if it.verdict.is_none() {
                it.verdict = Some(format!("{rule}: {why}"));
            }
        });
    }

    fn run_directory(&self) -> RunDirectory {
        RunDirectory::new(&self.directory.path().join("run"))
    }

    fn logs(&self) -> std::path::PathBuf {
        self.directory.path().join("logs")
    }

    fn edge(&self, runtime: SimRuntime) -> Edge<SimRuntime, SimHost> {
        // A failure that a script wants is for the controller's own look; without a boot ID there is no controller.
        let look = || self.shared.host.observe(&Ask::default());
        let facts = look().or_else(|_| look()).expect("one failure is wanted at most");
        Edge::new(
            runtime,
            Arc::new(SimHost(Arc::clone(&self.shared))),
            self.run_directory(),
            Archives::new(Vec::new()),
            self.logs(),
            facts.boot_id,
        )
        .on_one_thread()
    }

    fn run(&mut self) {
        if self.running.is_some() {
            return;
        }
        self.files.tree.lock().unwrap_or_else(PoisonError::into_inner).forget();
        self.forget();
        let runtime = self.shared.connect();
        let crash = Crash::after(usize::MAX);
        let edge = self.edge(runtime.clone()).with_crash(Arc::clone(&crash));
        let (sender, desired) = watch::channel(None);
        let controller = Controller {
            edge: Arc::new(edge),
            desired: desired.clone(),
            policy: self.policy.subscribe(),
            mounts_not_shared: None,
            identity: None,
            goal: Goal::Keep,
        };
        let (end, ended) = oneshot::channel();
        let report = self.status.clone();
        let controller = tokio::spawn(controller.run(report, async move { drop(ended.await) }));
        let files = Arc::clone(&self.files);
        let watcher = tokio::spawn(watch_files(Arc::clone(&self.shared), files, sender));
        self.running = Some(Running { runtime, crash, controller, watcher, end, desired });
    }

    /// What is lost at the start of a controller with the fault that is planted.
    fn forget(&self) {
        let run = self.run_directory();
        match self.shared.fault {
            Some(Fault::StrikesLost) => {
                for name in run.strikes().unwrap_or_default().keys() {
                    run.set_strikes(name, None).expect("it can be removed");
                }
            }
            Some(Fault::StopForgotten) => {
                for (name, _) in run.hands().0.iter().filter(|it| it.1.kind == HandKind::Stop) {
                    run.remove_hand(name).expect("it can be removed");
                }
            }
            _ => {}
        }
    }

    async fn kill(&mut self) {
        self.shared.cut();
        if let Some(running) = self.running.take() {
            running.controller.abort();
            running.watcher.abort();
            drop(running.controller.await);
            drop(running.watcher.await);
        }
    }

    /// A person, or the system, restarts what died.
    async fn bury(&mut self) {
        let dead = self
            .running
            .as_ref()
            .is_some_and(|it| it.controller.is_finished() || !self.shared.is_alive(&it.runtime));
        if dead {
            self.kill().await;
        }
    }

    fn tree(&self, change: impl FnOnce(&mut Tree)) {
        change(&mut self.files.tree.lock().unwrap_or_else(PoisonError::into_inner));
        if self.watched {
            self.files.events.notify_one();
        }
    }

    /// The instances of a workload with a task, the running one first.
    fn instance(&self, name: &str) -> Option<InstanceId> {
        let objects = objects(&self.shared.memory);
        let of = objects.containers.iter().filter(|it| it.name.as_str() == name);
        of.max_by_key(|it| it.task.pid().is_some()).map(|it| it.id.clone())
    }

    async fn step(&mut self, step: &Step) {
        self.bury().await;
        self.leave_ended().await;
        let memory = self.shared.memory.clone();
        match step {
            Step::Wait(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Step::Write { path, content } => self.tree(|it| it.write(path, content.clone())),
            Step::Begin { path, content } => self.tree(|it| it.begin(path, content.clone())),
            Step::Finish { path } => self.tree(|it| it.finish(path)),
            Step::Remove { path } => self.tree(|it| it.remove(path)),
            Step::Rename { from, to } => self.tree(|it| it.rename(from, to)),
            Step::Access { path, readable } => self.tree(|it| it.lock(path, *readable)),
            Step::Root { device } => self.tree(|it| it.set_root(*device)),
            Step::Clear => self.tree(Tree::clear),
            Step::Watch { on } => {
                self.watched = *on;
                if *on {
                    self.tree(|_| ());
                }
            }
            Step::Exit { name, code } => {
                if let Some(id) = self.instance(name) {
                    self.exit(&id, *code);
                }
            }
            Step::Crashing { name, code } => {
                if let Ok(name) = name.parse() {
                    memory.exit_on_start(&name, *code);
                }
            }
            Step::Stubborn { name } => {
                if let Some(id) = self.instance(name) {
                    memory.ignore_signals(&id);
                }
            }
            Step::Clinging { name } => {
                if let Some(id) = self.instance(name) {
                    memory.cling(&id);
                }
            }
            Step::Deaf { name } => {
                if let Some(id) = self.instance(name) {
                    memory.refuse_signals(&id);
                }
            }
            Step::Pause { name } => {
                if let Some(id) = self.instance(name) {
                    memory.pause(&id);
                }
            }
            Step::Hang { name, hung } => {
                if let Some(id) = self.instance(name) {
                    memory.hang(&id, *hung);
                    self.shared.judge(|it| it.hang(&id, *hung));
                }
            }
            Step::LoseContainer { name } => {
                if let Some(id) = self.instance(name) {
                    memory.lose_container(&id);
                    self.shared.judge(|it| it.lost(&id, name));
                }
            }
            Step::LoseEverything { tasks_only } => self.lose(*tasks_only),
            Step::Fail { verb, when, refused } => self.shared.fail(verb, *when, *refused),
            Step::Slow { verb, ms } => self.shared.slow(verb, *ms),
            Step::FailHost { verb } => {
                let verb = ["publish_shm", "publish_namespace", "unpublish", "observe"]
                    .into_iter()
                    .find(|it| it == verb);
                if let Some(verb) = verb {
                    self.shared.host.fail_next(verb, std::io::ErrorKind::StorageFull);
                }
            }
            Step::Unreachable { on } => self.unreachable(*on),
            Step::Forget => memory.forget_tasks(),
            Step::Hints { how } => {
                self.hints.send_replace(how.clone());
            }
            Step::Kill => self.kill().await,
            Step::KillAfterEffects(n) => {
                self.kill_if_stuck().await;
                if let Some(running) = &self.running {
                    running.crash.end_after(*n);
                }
            }
            Step::KillAtCall(n) => self.shared.kill_at_call(*n),
            Step::End => {
                if let Some(running) = self.running.take() {
                    running.end.send(()).ok();
                    drop(running.controller.await);
                    running.watcher.abort();
                    drop(running.watcher.await);
                }
                self.shared.cut();
            }
            Step::Run => {
                // One that stands still between two effects is dead.
                self.kill_if_stuck().await;
                self.run();
            }
            Step::Reboot => {
                self.kill().await;
                memory.reboot();
                self.shared.host.reboot();
                std::fs::remove_dir_all(self.directory.path().join("run")).ok();
                self.shared.judge(Judge::rebooted);
            }
            Step::Foreign { id } => {
                if let Ok(id) = id.parse::<InstanceId>() {
                    let taken = objects(&memory);
                    let taken = taken.containers.iter().any(|it| it.id == id)
                        || taken.orphans.contains_key(&id);
                    if !taken {
                        memory.add_foreign(&id);
                        self.shared.judge(|it| it.add_foreign(id));
                    }
                }
            }
            Step::Litter { kind, id } => self.litter(kind, id).await,
            Step::Image { name, digest } => match digest {
                Some(digest) => {
                    let image = image(name, *digest);
                    self.shared.judge(|it| it.image(&image));
                    memory.add_image(image);
                }
                None => memory.remove_image(&image(name, 0).name),
            },
            Step::Mount { name, kind } => {
                let kind = match kind.as_str() {
                    "directory" => Some(FileKind::Directory),
                    "other" => Some(FileKind::Other),
                    "silent" => Some(FileKind::Silent),
                    _ => None,
                };
                self.shared.host.set_path(&mount(name), kind);
                self.shared.judge(|it| it.mounted(&mount(name), kind));
            }
            Step::Exec { name, how } => match (self.instance(name), how.as_str()) {
                (Some(id), "begins") => self.work_in(&id).await,
                (Some(id), "killed") => self.leave(&id, true).await,
                (Some(id), _) => self.leave(&id, false).await,
                (None, _) => {}
            },
            Step::Shutdown(ms) => self.shut_down(Duration::from_millis(*ms)).await,
            Step::Approve => self.approve(),
            Step::Hand { name, kind, fresh } => self.ask(name, *kind, *fresh),
        }
        // What is ready now happens now.
        tokio::task::yield_now().await;
    }

    /// What runs goes on, and the runtime knows nothing of it any more.
    fn lose(&self, tasks_only: bool) {
        let memory = &self.shared.memory;
        for container in objects(memory).containers {
            let (id, name) = (&container.id, container.name.as_str());
            self.shared.judge(|it| if tasks_only { it.ended(id) } else { it.lost(id, name) });
        }
        if tasks_only { memory.lose_tasks() } else { memory.lose_everything() }
    }

    fn exit(&self, id: &InstanceId, code: u32) {
        let task = objects(&self.shared.memory)
            .containers
            .into_iter()
            .find(|it| it.id == *id)
            .map(|it| it.task);
        if matches!(task, Some(Task::Running { .. } | Task::Paused { .. })) {
            self.shared.memory.exit(id, code);
            self.shared.judge(|it| it.exited(id, code, Instant::now()));
        }
    }

    fn unreachable(&self, on: bool) {
        self.shared.unreachable.send_replace(on);
        if !on {
            self.shared.hints.send_modify(|it| *it += 1);
        }
    }

    /// A person begins to work in an instance, as the command does.
    async fn work_in(&mut self, id: &InstanceId) {
        let key = format!("exec-{}", self.execs.len());
        let Ok(holder) = Holder::this() else { return };
        let owner = ExecOwner { instance: id.clone(), holder };
        let process = Exec {
            args: vec!["sh".to_owned()],
            env: Vec::new(),
            working_dir: None,
            user: None,
            terminal: None,
        };
        let memory = &self.shared.memory;
        if memory.exec(id, &key, &process, &Streams::default()).await.is_ok() {
            if self.shared.fault != Some(Fault::WorkUnseen) {
                self.run_directory().set_exec_owner(&key, &owner).expect("it can be written");
            }
            self.shared.judge(|it| it.works(&key, id));
            self.execs.insert(key, (id.clone(), true));
        }
    }

    /// Those who work in an instance go, or are killed and leave their processes behind.
    async fn leave(&mut self, id: &InstanceId, killed: bool) {
        let run = self.run_directory();
        let memory = self.shared.memory.clone();
        for (key, (_, lives)) in self.execs.iter_mut().filter(|it| it.1.0 == *id && it.1.1) {
            *lives = false;
            self.shared.judge(|it| it.works_no_more(key));
            if !killed {
                run.remove_exec(key).expect("it can be removed");
                memory.delete_exec(id, key).await.expect("the model itself never fails");
            } else if let Some(mut owner) = run.execs().remove(key) {
                // The same pid, but another process.
                owner.holder.start_time += 1;
                run.set_exec_owner(key, &owner).expect("it can be written");
            }
        }
    }

    /// A command ends when the process does that it has started.
    async fn leave_ended(&mut self) {
        let living: BTreeSet<(String, InstanceId)> = self
            .execs
            .iter()
            .filter(|it| it.1.1)
            .map(|(key, (id, _))| (key.clone(), id.clone()))
            .collect();
        for (key, id) in living {
            let ended = self.shared.memory.wait_exec(&id, &key, Duration::ZERO).await;
            if !matches!(ended, Ok(None)) {
                self.leave(&id, false).await;
            }
        }
    }

    /// Ends everything as the command does: who runs ends for it first.
    async fn shut_down(&mut self, within: Duration) {
        let Ok(holder) = Holder::this() else { return };
        let run = self.run_directory();
        // Who takes things down says nothing of that.
        if self.shared.fault != Some(Fault::ShutdownIsDown) {
            run.set_shutdown(Some(&holder)).expect("it can be written");
        }
        if let Some(mut running) = self.running.take() {
            if tokio::time::timeout(HANDOVER, &mut running.controller).await.is_err() {
                running.controller.abort();
            }
            running.watcher.abort();
            drop(running.watcher.await);
        }
        self.shared.cut();
        let runtime = self.shared.connect();
        let deadline = Instant::now() + within;
        self.shared.judge(|it| it.shutting_down(Some(deadline)));
        let edge = self.edge(runtime.clone());
        let until = self.shared.host.now() + within;
        let goal = match self.shared.fault {
            Some(Fault::ShutdownIsDown) => Goal::Down { names: None },
            _ => Goal::Shutdown { until, why: Some(MachineEnd::Reboot) },
        };
        let controller = Controller {
            edge: Arc::new(edge),
            desired: watch::channel(None).1,
            policy: self.policy.subscribe(),
            mounts_not_shared: None,
            identity: None,
            goal,
        };
        let ended = controller.run(watch::channel(None).0, std::future::pending());
        let ended = tokio::time::timeout(ENDED, ended).await;
        if ended == Ok(Ended::Converged) {
            let all = objects(&self.shared.memory);
            let tasks = all.containers.iter().map(|it| (&it.id, &it.task)).chain(&all.orphans);
            for (id, task) in tasks.filter(|it| it.1.pid().is_some()) {
                self.blame("shutdown-ends-all", &format!("{id} is {task:?}"));
            }
        }
        self.shared.cut();
        self.shared.judge(|it| it.shutting_down(None));
        run.set_shutdown(None).expect("it can be removed");
    }

    async fn kill_if_stuck(&mut self) {
        let stuck = self.running.as_ref().is_some_and(|it| it.crash.is_over());
        if stuck {
            self.kill().await;
        }
        self.bury().await;
    }

    async fn litter(&self, kind: &str, id: &str) {
        let Ok(instance) = id.parse::<InstanceId>() else { return };
        match kind {
            "directory" => self.shared.host.leave_directory(&instance),
            "shm" => self.shared.host.stack_shm(&instance, Bytes::new(4096).expect("not 0")),
            "lease" => self.shared.memory.lease(&format!("evenkeel-{id}")).await.expect("it can"),
            _ => {}
        }
    }

    fn approve(&self) {
        let Some(status) = self.status.borrow().clone() else { return };
        for hold in &status.holds {
            let removals = hold.removals.iter().cloned().collect();
            self.run_directory().approve(&hold.token, &removals).expect("it can be written");
            let ids = hold.removals.iter().map(|it| it.instance.clone());
            self.shared.judge(|it| it.approve(ids));
        }
    }

    /// Asks as the commands do, and refuses what they refuse.
    fn ask(&self, name: &str, kind: HandKind, fresh: bool) {
        let Ok(workload) = name.parse::<Name>() else { return };
        let objects = objects(&self.shared.memory);
        let of: Vec<_> = objects.containers.iter().filter(|it| it.name == workload).collect();
        let runs = of.iter().any(|it| it.task.pid().is_some());
        let is_stopped = self.shared.judge(|it| it.is_stopped(name));
        let truth = self.files.tree.lock().unwrap_or_else(PoisonError::into_inner).truth();
        let said = truth.said(name);
        let is_there = !of.is_empty();
        let refused = match (kind, said) {
            (_, Said::Nothing) if !is_there => true,
            (HandKind::Down, said) => said != Said::Nothing,
            (HandKind::Stop, _) => is_stopped,
            (HandKind::Retry, _) if is_stopped => true,
            (_, Said::Invalid) => !is_there,
            (_, Said::Valid(doc)) if ["stopped", "absent"].contains(&doc.field("state")) => {
                if kind == HandKind::Start && is_stopped {
                    self.run_directory().remove_hand(&workload).expect("it can be removed");
                    self.shared.judge(|it| it.withdrawn(name, Instant::now()));
                    self.touch_hands();
                }
                true
            }
            (HandKind::Start, _) => runs && !is_stopped,
            (HandKind::Restart | HandKind::Retry, _) => false,
        };
        if refused {
            return;
        }
        let at = self.shared.host.now();
        // A person asks again where a look fails.
        let look = |_| self.shared.host.observe(&Ask::default()).ok();
        let boot_id = (0..100).find_map(look).expect("not all looks fail").boot_id;
        let hand = Hand { kind, at, boot_id, fresh };
        self.run_directory().set_hand(&workload, &hand).expect("it can be written");
        if kind == HandKind::Down && self.shared.fault == Some(Fault::OthersTakenDown) {
            for other in objects.containers.iter().filter(|it| it.name != workload) {
                self.run_directory().set_hand(&other.name, &hand).expect("it can be written");
            }
        }
        self.touch_hands();
        self.shared.judge(|it| it.asked(name, &hand, &objects, Instant::now()));
    }

    /// The kernel's clock stands still while simulated time goes on: each change gets a time of its own.
    fn touch_hands(&self) {
        let at = std::time::UNIX_EPOCH + self.shared.host.now().0 + Duration::from_nanos(1);
        let touched = std::fs::File::open(self.run_directory().path().join("hands"))
            .and_then(|it| it.set_modified(at));
        touched.expect("its time can be set");
    }

    fn rest(&self) {
        self.shared.judge(|it| it.at_rest(&self.shared.memory));
    }

    /// No more failures: everything gets as it is wanted, and nothing is left over.
    async fn converge(&mut self) {
        self.shared.note("no more failures");
        self.shared.no_more_failures();
        self.hints.send_replace("on".to_owned());
        self.unreachable(false);
        for name in crate::generate::NAMES {
            self.shared.memory.exit_on_start(&name.parse().expect("a name"), None);
        }
        self.shared.memory.heed_signals();
        for container in objects(&self.shared.memory).containers {
            self.shared.memory.hang(&container.id, false);
            self.shared.judge(|it| it.hang(&container.id, false));
            self.leave(&container.id, false).await;
            // What was asked to end and may take for ever does so in the end.
            if self.shared.judge(|it| it.is_asked_to_end(&container.id)) {
                self.exit(&container.id, 0);
            }
        }
        for id in self.shared.judge(Judge::asked_strays) {
            self.shared.memory.signal_stray(&id, Signal::TERM);
        }
        self.watched = true;
        self.tree(|it| {
            it.unlock_all();
            it.finish_all();
            if !it.has_root() {
                it.set_root(Some(1));
            }
        });
        self.kill_if_stuck().await;
        if let Some(running) = &self.running {
            running.crash.end_after(usize::MAX);
        }
        self.run();
        let half = CONVERGED / 2;
        tokio::time::sleep(half).await;
        self.rest();
        tokio::time::sleep(half).await;
        self.rest();
        if self.verdict().is_none() {
            self.look_back(false).await;
        }
    }

    /// At the end everything is as it is wanted.
    async fn look_back(&self, again: bool) {
        let Some(running) = &self.running else { return };
        let Some(desired) = running.desired.borrow().clone() else {
            return self.blame("converged", "the manifests were never read");
        };
        let edge = Arc::new(self.edge(running.runtime.clone()));
        let look = observe_once(&edge, Some(&desired), None);
        let (observed, now) = match tokio::time::timeout(ENDED, look).await {
            Ok(Ok(it)) => it,
            Ok(Err(error)) => return self.blame("converged", &error.to_string()),
            Err(_) => return self.blame("converged", "nothing answers"),
        };
        let policy = self.policy.borrow().clone();
        let plan = plan::diff(&desired, &observed, &policy, now);
        if !plan.is_empty() && !again {
            // Some time may have come in this very moment.
            tokio::time::sleep(CONVERGED / 4).await;
            return Box::pin(self.look_back(true)).await;
        }
        if !plan.is_empty() {
            return self.blame("second-look-plans-nothing", &plan.to_string());
        }
        let lost = self.shared.memory.strays();
        let mut strays = lost.clone();
        // What runs goes on while nothing can take its place, or a file may hide what it is; and that is told.
        let told = |id: &InstanceId| {
            let is_its = |it: &(&Name, &plan::Standing)| InstanceId::stem_of(it.0) == id.stem();
            match plan.standings.iter().find(is_its) {
                Some((_, standing)) => standing.message.contains("containerd has lost it"),
                None => desired
                    .sources
                    .values()
                    .any(|it| !it.blockers.is_empty() || !it.partial.is_empty()),
            }
        };
        strays.retain(|id, it| it.pids.is_empty() || !told(id));
        if !observed.leftovers.is_empty() || !observed.orphans.is_empty() || !strays.is_empty() {
            let left = format!("{:?} {:?} {strays:?}", observed.leftovers, observed.orphans);
            return self.blame("nothing-left-over", &left);
        }
        let objects = objects(&self.shared.memory);
        if !objects.leases.is_empty() || !objects.snapshots.is_empty() {
            let left = format!("{:?} {:?}", objects.leases, objects.snapshots);
            return self.blame("nothing-left-over", &left);
        }
        let facts = self.shared.host.observe(&Ask::default()).expect("it can be looked at");
        for id in facts.published.keys() {
            let runs = objects.containers.iter().any(|it| it.id == *id && it.task.pid().is_some());
            if !runs && !lost.contains_key(id) {
                return self.blame("nothing-left-over", &format!("published paths of {id}"));
            }
        }
        if let Some(key) = self.run_directory().execs().keys().next() {
            return self.blame("nothing-left-over", &format!("the process {key}"));
        }
        for (key, (id, _)) in &self.execs {
            if self.shared.memory.wait_exec(id, key, Duration::ZERO).await.is_ok() {
                return self.blame("nothing-left-over", &format!("the process {key} of {id}"));
            }
        }
        let logs = std::fs::read_dir(self.logs()).into_iter().flatten().flatten();
        for entry in logs {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !objects.containers.iter().any(|it| it.id.as_str() == name)
                && !lost.keys().any(|it| it.as_str() == name)
            {
                return self.blame("nothing-left-over", &format!("logs of {name}"));
            }
        }
        let truth = self.files.tree.lock().unwrap_or_else(PoisonError::into_inner).truth();
        for (name, standing) in &plan.standings {
            let good = match standing.phase {
                Phase::Running => standing.up_to_date || !standing.reason.is_empty(),
                Phase::Completed | Phase::Failed | Phase::Stopped | Phase::Held => true,
                Phase::Invalid => !matches!(truth.said(name.as_str()), Said::Valid(_)),
                Phase::Waiting => !standing.reason.is_empty(),
                Phase::Starting | Phase::BackingOff | Phase::Stopping => false,
            };
            if !good {
                let why = format!("{name} is {standing:?}");
                return self.blame("converged", &why);
            }
        }
        for name in truth.names() {
            let Said::Valid(doc) = truth.said(name) else { continue };
            let known = plan.standings.iter().any(|(it, _)| it.as_str() == name);
            if !known {
                return self.blame("converged", &format!("nobody knows {name}"));
            }
            if doc.field("state") == "absent" || doc.field("state") == "stopped" {
                continue;
            }
            let container = objects.containers.iter().find(|it| it.name.as_str() == name);
            let runs = container.is_some_and(|it| it.task.pid().is_some());
            let standing = plan.standings.iter().find(|(it, _)| it.as_str() == name).map(|it| it.1);
            let standing_over = standing.filter(|it| {
                matches!(it.phase, Phase::Completed | Phase::Failed) && it.reason != "start-failed"
            });
            if let (Some(_), Some(container)) = (standing_over, container) {
                self.look_at_what_is_over(container, &facts.boot_id);
            }
            let excuse = standing.is_some_and(|it| {
                matches!(it.phase, Phase::Completed | Phase::Failed)
                    || matches!(it.reason, "image-missing" | "task-lost")
                    || it.reason.starts_with("mount-source-")
                    || it.reason.contains("donor")
            });
            // A foreign container sits where it should be.
            let blocked = running.runtime.world.judge(|it| it.is_in_the_way(name));
            let stopped = running.runtime.world.judge(|it| it.is_stopped(name));
            if !runs && !excuse && !blocked && !stopped {
                return self.blame("converged", &format!("{name} does not run: {standing:?}"));
            }
        }
        self.look_at_joiners(&objects, &plan, &truth);
        self.shared.judge(|it| it.at_the_end(&objects, &observed, &plan));
    }

    /// What ran for the last time has run in this boot if it is to run in each, and has left nothing if it is not to.
    fn look_at_what_is_over(&self, container: &evenkeel::runtime::Container, boot: &str) {
        let Some(spec) = container.workload.as_ref().map(|it| &it.spec) else { return };
        let (id, run) = (&container.id, container.run.as_ref());
        if spec.restart.on_boot && run.is_none_or(|it| it.boot != boot) {
            self.blame("converged", &format!("{id} is to run in each boot, and has not"));
        }
        let ended = container.end.as_ref().zip(run).is_some_and(|(end, run)| end.n >= run.n);
        if !ended {
            self.blame("converged", &format!("nobody says how {id} ended"));
        }
        let log = self.logs().join(id.as_str());
        if spec.remove_on_exit && (container.has_snapshot || log.exists()) {
            self.blame("nothing-left-over", &format!("{id} is to be removed on exit"));
        }
    }

    fn look_at_joiners(
        &self,
        objects: &evenkeel::runtime::Objects,
        plan: &plan::Plan,
        truth: &Truth,
    ) {
        let view =
            |task: &Task| task.pid().and_then(|pid| self.shared.host.view(pid).ok().flatten());
        for joiner in &objects.containers {
            let Some(workload) = &joiner.workload else { continue };
            let Some(IpcMode::Container(donor)) = &workload.spec.ipc_mode else { continue };
            // One that is held, or waits for what it needs, is told so.
            let standing = plan.standings.get(&joiner.name);
            if workload.spec.restart.on_donor_change == OnDonorChange::Keep
                || standing.is_none_or(|it| !it.reason.is_empty() && it.reason != "image-missing")
            {
                continue;
            }
            // One that goes on until what is wanted of it can start, which joins somebody else or nobody.
            if matches!(truth.said(joiner.name.as_str()), Said::Valid(doc) if doc.donor() != Some(donor.as_str()))
            {
                continue;
            }
            let donor = objects.containers.iter().find(|it| it.name == *donor);
            let (Some(mine), Some(theirs)) =
                (view(&joiner.task), donor.and_then(|it| view(&it.task)))
            else {
                continue;
            };
            if (mine.ipc_ns, mine.shm) != (theirs.ipc_ns, theirs.shm) {
                let name = &joiner.name;
                self.blame("converged", &format!("{name} is in another namespace than its donor"));
            }
        }
    }
}

/// The directory of committed scripts.
pub(crate) fn replays() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sim/replays")
}
