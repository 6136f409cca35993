//! A controller on a runtime and a host in memory, with a clock that tests move; the run directory is a real one.

use std::path::{Path, PathBuf};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::super::*;
use crate::backoff::Delays;
use crate::desired::{Origin, Source, SourceState, Wanted};
use crate::host::memory::{Lost, MemoryHost, process_of};
use crate::image::Archives;
use crate::observed::{HandKind, ImageConfig, ImagePlace, Published};
use crate::plan::{ImagePolicy, LogDefaults};
use crate::registry::memory::MemoryRegistry;
use crate::rundir::RunDirectory;
use crate::runtime::memory::MemoryRuntime;
use crate::status::Item;
use crate::workload::{Bytes, IpcDefaults, RestartPolicy, Workload};

/// Longer than anything takes on the simulated clock.
const DEADLINE: Duration = Duration::from_hours(3);

pub(super) type MemoryEdge = Arc<Edge<MemoryRuntime, MemoryHost>>;

pub(super) struct Harness {
    pub(super) directory: tempfile::TempDir,
    pub(super) runtime: MemoryRuntime,
    pub(super) host: MemoryHost,
    pub(super) wanted: DesiredState,
    pub(super) desired: watch::Sender<Option<Arc<DesiredState>>>,
    pub(super) policy: watch::Sender<Arc<Policy>>,
    /// Where images come from; `None`: none are pulled.
    pub(super) registry: Option<MemoryRegistry>,
    status: watch::Receiver<Option<Arc<Status>>>,
    controller: Option<(JoinHandle<Ended>, oneshot::Sender<()>)>,
    /// When each instance was started.
    starts: Vec<(Instant, String)>,
    begun: Instant,
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn source() -> Source {
    Source::new(Path::new("/"), Path::new("/manifests"))
}

pub(super) fn origin(name: &str) -> Origin {
    Origin { source: source(), file: PathBuf::from(format!("{name}.yaml")), document: 0 }
}

/// A workload from the inside of its spec as JSON, with an image and a command.
fn workload(name: &str, spec: &str) -> Arc<Workload> {
    let mut value: serde_json::Value = serde_json::from_str(&format!("{{{spec}}}")).unwrap();
    let fields = value.as_object_mut().unwrap();
    fields.entry("image").or_insert("busybox".into());
    fields.entry("command").or_insert(serde_json::json!(["sleep", "1000"]));
    let whole = serde_json::json!({ "name": name, "spec": value });
    Arc::new(serde_json::from_value(whole).unwrap())
}

/// A source whose absences act.
pub(super) fn believable() -> SourceState {
    SourceState {
        prunes: true,
        blockers: Vec::new(),
        partial: Vec::new(),
        absence_acts_at: BootTime::default(),
        absent: BTreeMap::new(),
        unseen_acts_at: BootTime(Duration::MAX),
        confirmed: BootTime(Duration::MAX),
        documents: 0,
    }
}

pub(super) fn image(name: &str, place: ImagePlace) -> Image {
    Image {
        name: name.to_owned(),
        digest: format!("sha256:{}", "a".repeat(64)),
        config: ImageConfig::default(),
        place,
    }
}

impl Harness {
    /// Nothing is wanted and nothing runs yet.
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = MemoryRuntime::default();
        runtime.add_image(image("docker.io/library/busybox:latest", ImagePlace::Store));
        let processes = runtime.clone();
        let processes = Arc::new(move |pid| processes.process(pid).map(|it| process_of(&it.spec)));
        let run = directory.path().join("run");
        let host = MemoryHost::new(&run, processes).with_runtime_clock();
        let (all, signal, remove) = (runtime.clone(), runtime.clone(), runtime.clone());
        let host = host.with_lost(Lost {
            all: Arc::new(move || all.strays()),
            signal: Arc::new(move |id, it| signal.signal_stray(id, it)),
            remove: Arc::new(move |id| remove.remove_stray(id)),
        });
        let policy = Policy {
            ipc: IpcDefaults::default(),
            restart: RestartPolicy::Always,
            delays: Delays::default(),
            log: LogDefaults { max_size: Bytes::new(1 << 20).unwrap(), max_files: 2 },
            images: ImagePolicy::default(),
            prune_limit: 50,
            run_directory: run,
            log_directory: directory.path().join("logs"),
            cgroup_parent: "/evenkeel".to_owned(),
        };
        let wanted =
            DesiredState { sources: [(source(), believable())].into(), ..DesiredState::default() };
        Self {
            directory,
            runtime,
            host,
            desired: watch::Sender::new(Some(Arc::new(wanted.clone()))),
            wanted,
            policy: watch::Sender::new(Arc::new(policy)),
            status: watch::channel(None).1,
            registry: None,
            controller: None,
            starts: Vec::new(),
            begun: Instant::now(),
        }
    }

    /// A controller that got these workloads running.
    pub(super) async fn with(workloads: &[(&str, &str)]) -> Self {
        let mut it = Self::new();
        for (name, spec) in workloads {
            it.want(name, spec);
        }
        it.run();
        for (name, _) in workloads {
            it.until_running(name).await;
        }
        it.idle().await;
        it
    }

    // What a person does.

    /// Writes a manifest, or another one of that name.
    pub(super) fn want(&mut self, workload_name: &str, spec: &str) {
        let workload = Some(workload(workload_name, spec));
        let wanted = Wanted { origin: origin(workload_name), workload };
        self.wanted.workloads.insert(name(workload_name), wanted);
        self.publish();
    }

    /// Writes a manifest that has problems.
    pub(super) fn want_invalid(&mut self, workload: &str) {
        let wanted = Wanted { origin: origin(workload), workload: None };
        self.wanted.workloads.insert(name(workload), wanted);
        self.publish();
    }

    pub(super) fn remove(&mut self, workload: &str) {
        self.wanted.workloads.remove(&name(workload)).unwrap();
        self.publish();
    }

    pub(super) fn publish(&self) {
        self.desired.send_replace(Some(Arc::new(self.wanted.clone())));
    }

    /// Puts an archive with an image of that name where it is looked for.
    pub(super) fn archive(&self, image: &str) {
        let directory = self.directory.path().join("images");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("image.tar"), crate::image::tests::archive(image)).unwrap();
    }

    /// Asks for something beside the manifests.
    pub(super) fn ask(&self, workload: &str, kind: HandKind) {
        self.ask_for(workload, kind, false);
    }

    pub(super) fn ask_for(&self, workload: &str, kind: HandKind, fresh: bool) {
        let boot_id = self.host.observe(&Ask::default()).unwrap().boot_id;
        let hand = Hand { kind, at: self.host.now(), boot_id, fresh };
        self.run_directory().set_hand(&name(workload), &hand).unwrap();
    }

    /// Who waits for what was asked.
    pub(super) fn asked(&self) -> Vec<String> {
        let (hands, _) = self.run_directory().hands();
        hands.iter().map(|(name, it)| format!("{:?} {name}", it.kind)).collect()
    }

    pub(super) fn configure(&self, change: impl FnOnce(&mut Policy)) {
        self.policy.send_modify(|it| change(Arc::make_mut(it)));
    }

    // The controller.

    pub(super) fn edge(&self) -> Edge<MemoryRuntime, MemoryHost> {
        let boot_id = self.host.observe(&Ask::default()).unwrap().boot_id;
        let edge = Edge::new(
            self.runtime.clone(),
            Arc::new(self.host.clone()),
            self.run_directory(),
            Archives::new(vec![self.directory.path().join("images")]),
            self.log_directory(),
            boot_id,
        );
        match &self.registry {
            Some(registry) => edge.with_registry(Arc::new(registry.clone())),
            None => edge,
        }
    }

    pub(super) fn run_directory(&self) -> RunDirectory {
        RunDirectory::new(&self.directory.path().join("run"))
    }

    pub(super) fn log_directory(&self) -> PathBuf {
        self.directory.path().join("logs")
    }

    pub(super) fn controller(
        &self,
        edge: MemoryEdge,
        goal: Goal,
    ) -> Controller<MemoryRuntime, MemoryHost> {
        Controller {
            edge,
            desired: self.desired.subscribe(),
            policy: self.policy.subscribe(),
            mounts_not_shared: None,
            identity: None,
            goal,
        }
    }

    pub(super) fn run(&mut self) {
        self.run_on(self.edge());
    }

    pub(super) fn run_on(&mut self, edge: Edge<MemoryRuntime, MemoryHost>) {
        assert!(self.controller.is_none(), "two controllers");
        let controller = self.controller(Arc::new(edge), Goal::Keep);
        let (report, status) = watch::channel(None);
        self.status = status;
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(controller.run(report, async move { drop(ended.await) }));
        self.controller = Some((task, end));
    }

    /// A command that ends by itself.
    pub(super) async fn once(&mut self, goal: Goal) -> Ended {
        let (report, status) = watch::channel(None);
        self.status = status;
        let mut controller = self.controller(Arc::new(self.edge()), goal);
        // A command reads its manifests to their last state, and then the channel ends.
        controller.desired = watch::channel(Some(Arc::new(self.wanted.clone()))).1;
        let ended = controller.run(report, std::future::pending());
        tokio::time::timeout(DEADLINE, ended).await.expect("it ends")
    }

    /// Kills the controller where it is.
    pub(super) async fn kill(&mut self) {
        if let Some((task, _)) = self.controller.take() {
            task.abort();
            drop(task.await);
        }
    }

    /// Tells the controller to end.
    pub(super) async fn end(&mut self) -> Ended {
        let (task, end) = self.controller.take().unwrap();
        end.send(()).unwrap();
        task.await.unwrap()
    }

    /// Waits until the controller ends by itself.
    pub(super) async fn ended(&mut self) -> Ended {
        let (task, _end) = self.controller.take().unwrap();
        tokio::time::timeout(DEADLINE, task).await.expect("it ends").unwrap()
    }

    // Time.

    pub(super) async fn after(&self, seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }

    /// Until everything that hints have set off is done.
    pub(super) async fn idle(&self) {
        self.after(0.6).await;
    }

    /// Milliseconds since the harness was made.
    pub(super) fn clock(&self) -> u64 {
        milliseconds(self.begun.elapsed())
    }

    pub(super) async fn until(&mut self, what: &str, holds: impl Fn(&Status) -> bool) {
        let mut status = self.status.clone();
        let wait = async {
            while !status.borrow_and_update().as_deref().is_some_and(&holds) {
                status.changed().await.expect("the controller runs");
            }
        };
        let came = tokio::time::timeout(DEADLINE, wait).await.is_ok();
        assert!(came, "never came: {what}; the last status was {:#?}", self.status.borrow());
    }

    pub(super) async fn until_running(&mut self, workload: &str) {
        let is = |it: &Item| {
            it.name == workload
                && it.phase == Phase::Running
                && it.up_to_date
                && it.instance.as_ref().is_some_and(|it| it.pid.is_some())
        };
        self.until(&format!("{workload} runs"), |it| it.items.iter().any(is)).await;
    }

    pub(super) async fn until_reason(&mut self, workload: &str, reason: &str) {
        let is = |it: &Item| it.name == workload && it.reason == reason;
        self.until(&format!("{workload}: {reason}"), |it| it.items.iter().any(is)).await;
    }

    pub(super) async fn until_gone(&mut self, workload: &str) {
        self.until(&format!("{workload} is gone"), |it| {
            it.items.iter().all(|it| it.name != workload)
        })
        .await;
    }

    // What can be seen.

    pub(super) fn status(&self) -> Arc<Status> {
        self.status.borrow().clone().expect("there is a status")
    }

    pub(super) fn item(&self, workload: &str) -> Item {
        let status = self.status();
        let item = status.items.iter().find(|it| it.name == workload);
        item.unwrap_or_else(|| panic!("{workload} is not in {status:#?}")).clone()
    }

    pub(super) async fn look(&self) -> ObservedState {
        let desired = self.desired.borrow().clone();
        observe_once(&Arc::new(self.edge()), desired.as_deref(), None).await.unwrap().0
    }

    /// Names and pids of all that runs.
    pub(super) async fn pids(&self) -> BTreeMap<String, u32> {
        let observed = self.look().await;
        let running = observed.instances.values();
        running.filter_map(|it| Some((it.name.to_string(), it.task.pid()?))).collect()
    }

    pub(super) async fn running(&self) -> Vec<String> {
        self.pids().await.into_keys().collect()
    }

    pub(super) async fn pid_of(&self, workload: &str) -> u32 {
        let pids = self.pids().await;
        *pids.get(workload).unwrap_or_else(|| panic!("{workload} does not run: {pids:?}"))
    }

    pub(super) async fn instance(&self, workload: &str) -> Instance {
        let observed = self.look().await;
        let mut of: Vec<Instance> =
            observed.instances.into_values().filter(|it| it.name.as_str() == workload).collect();
        assert_eq!(of.len(), 1, "instances of {workload}: {of:#?}");
        of.remove(0)
    }

    pub(super) async fn id_of(&self, workload: &str) -> InstanceId {
        self.instance(workload).await.id
    }

    /// Lets the main process of a workload end by itself.
    pub(super) async fn exit(&self, workload: &str, code: u32) {
        self.runtime.exit(&self.id_of(workload).await, code);
    }

    pub(super) fn exit_on_start(&self, workload: &str, code: Option<u32>) {
        self.runtime.exit_on_start(&name(workload), code);
    }

    /// The verbs of the runtime since the last time, without their subjects' revisions: `create task web`.
    pub(super) fn calls(&mut self) -> Vec<String> {
        let calls = self.runtime.timed_calls();
        self.starts.extend(calls.iter().filter(|it| it.1.starts_with("start task")).cloned());
        calls.into_iter().map(|(_, it)| plain(&it)).collect()
    }

    /// When a workload was started, in milliseconds since the harness was made.
    pub(super) fn starts(&mut self, workload: &str) -> Vec<u64> {
        self.calls();
        let of = |call: &str| plain(call) == format!("start task {workload}");
        let starts = self.starts.iter().filter(|it| of(&it.1));
        starts.map(|it| milliseconds(it.0.duration_since(self.begun))).collect()
    }

    /// The revision that a workload's manifest means.
    pub(super) fn revision(&self, workload: &str) -> crate::workload::Revision {
        let wanted = self.wanted.workloads[&name(workload)].workload.as_ref().unwrap();
        wanted.revision(&image("", ImagePlace::Store).digest)
    }

    /// The plan that the next look would make.
    pub(super) async fn plan(&self) -> Plan {
        let observed = self.look().await;
        let desired = self.desired.borrow().clone().unwrap();
        plan::diff(&desired, &observed, &self.policy.borrow(), self.host.now())
    }

    /// Everything that is left anywhere, in a form that two runs can be compared by: no pids and no times.
    pub(super) async fn everything(&self) -> Vec<String> {
        let observed = self.look().await;
        let mut all = Vec::new();
        for it in observed.instances.values() {
            let state =
                if it.task.pid().is_some() { "runs".to_owned() } else { format!("{:?}", it.task) };
            let snapshot = it.has_snapshot;
            let Published { directory, shm, shm_mounts, ns, .. } = it.published;
            all.push(format!(
                "{} of {}: {state}, snapshot {snapshot}, published {directory} {} {shm_mounts} {ns}",
                it.id, it.origin, shm.is_some()
            ));
        }
        let facts = self.host.observe(&Ask::default()).unwrap();
        all.extend(facts.published.keys().map(|it| format!("published {it}")));
        all.extend(observed.orphans.keys().map(|it| format!("orphan {it}")));
        all.extend(observed.strays.keys().map(|it| format!("stray {it}")));
        all.extend(observed.leftovers.iter().map(|it| format!("leftover {it}")));
        let objects = self.runtime.observe(&BTreeSet::new()).await.unwrap();
        all.extend(objects.leases.iter().map(|it| format!("lease {it}")));
        all.extend(objects.snapshots.iter().map(|it| format!("snapshot {it}")));
        let own = objects.stored_images.iter().filter(|(_, it)| it.came.is_some());
        all.extend(own.map(|(name, it)| format!("image {name}: unused {}", it.unused.is_some())));
        all.extend(self.asked());
        all.extend(directories(&self.log_directory()).iter().map(|it| format!("logs {it}")));
        all
    }
}

fn milliseconds(span: Duration) -> u64 {
    span.as_millis().try_into().unwrap()
}

/// A call without the revision.
fn plain(call: &str) -> String {
    let is_revision = |it: &str| it.len() == 10 && it.bytes().all(|it| it.is_ascii_hexdigit());
    match call.rsplit_once('-') {
        Some((before, revision)) if is_revision(revision) => before.to_owned(),
        _ => call.to_owned(),
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if let Some((task, _)) = self.controller.take() {
            task.abort();
        }
        // A test that failed shows where it stood.
        if std::thread::panicking() {
            let calls = self.runtime.calls();
            eprintln!("at {} ms, the last calls: {calls:#?}", self.clock());
        }
    }
}
