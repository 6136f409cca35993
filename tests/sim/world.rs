//! Plays a script: a real controller, the real folding of scans, and everything around them in memory.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use evenkeel::backoff::Delays;
use evenkeel::controller::{Controller, Crash, Edge, Ended, Goal, observe_once};
use evenkeel::desired::{Believing, DesiredState, History};
use evenkeel::host::memory::{Lost, MemoryHost, process_of};
use evenkeel::host::{Ask, Host as _};
use evenkeel::image::Archives;
use evenkeel::observed::{Hand, HandKind, Image, ImageConfig, ImagePlace, Task};
use evenkeel::plan::{self, LogDefaults, Phase, Policy};
use evenkeel::rundir::RunDirectory;
use evenkeel::runtime::Runtime as _;
use evenkeel::runtime::memory::MemoryRuntime;
use evenkeel::status::Status;
use evenkeel::workload::{
    Bytes, InstanceId, IpcDefaults, IpcMode, Name, OnDonorChange, RestartPolicy,
};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::judge::{Judge, objects};
use crate::runtime::{Shared, SimRuntime};
use crate::script::{Script, Step};
use crate::tree::{QUIET, RESYNC, Said, Tree};

/// Everything must be as wanted so long after the last failure: the longest delay of a crash loop, and the longest
/// time that an absence waits, one after the other, with room for a stop that needs its time.
const CONVERGED: Duration = Duration::from_mins(4);

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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        let mut world = World::new(script.seed);
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
            let scan = tree.scan(at);
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
    fn new(seed: u64) -> Self {
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
            prune_limit: 50,
            run_directory: run,
            log_directory: directory.path().join("logs"),
            cgroup_parent: "/evenkeel".to_owned(),
        };
        let run = RunDirectory::new(&directory.path().join("run"));
        let shared = Shared::new(seed, memory, host, run);
        for known in [image("one", 1), image("two", 2)] {
            shared.judge(|it| it.image(&known));
        }
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

    fn edge(&self, runtime: SimRuntime) -> Edge<SimRuntime, MemoryHost> {
        // A failure that a script wants is for the controller's own look; without a boot ID there is no controller.
        let look = || self.shared.host.observe(&Ask::default());
        let facts = look().or_else(|_| look()).expect("one failure is wanted at most");
        Edge::new(
            runtime,
            Arc::new(self.shared.host.clone()),
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
        for container in objects(&self.shared.memory).containers {
            self.shared.memory.hang(&container.id, false);
            self.shared.judge(|it| it.hang(&container.id, false));
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
        let (observed, now) = match observe_once(&edge, Some(&desired), None).await {
            Ok(it) => it,
            Err(error) => return self.blame("converged", &error.to_string()),
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
            let excuse = standing.is_some_and(|it| {
                matches!(it.phase, Phase::Completed | Phase::Failed)
                    || matches!(it.reason, "image-missing" | "task-lost")
                    || it.reason.contains("donor")
            });
            // A foreign container sits where it should be.
            let blocked = running.runtime.world.judge(|it| it.is_in_the_way(name));
            let stopped = running.runtime.world.judge(|it| it.is_stopped(name));
            if !runs && !excuse && !blocked && !stopped {
                return self.blame("converged", &format!("{name} does not run: {standing:?}"));
            }
        }
        self.look_at_joiners(&objects, &plan);
        self.shared.judge(|it| it.at_the_end(&objects, &observed, &plan));
    }

    fn look_at_joiners(&self, objects: &evenkeel::runtime::Objects, plan: &plan::Plan) {
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
