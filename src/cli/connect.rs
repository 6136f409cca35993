//! From settings to something that can be worked with: the engine, the run directory, the lock, the status.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::{Failure, plan};
use crate::config::{self, EngineChoice, Registries, Settings};
use crate::controller::Edge;
use crate::desired::Source;
use crate::engine::{Choice, Decision, Embedded, Engine, Found, Known, Record, Refusal};
use crate::host::Host as _;
use crate::host::linux::{LinuxHost, boot_id, oom_score_adj_under};
use crate::image::Archives;
use crate::observed::Progress;
use crate::registry::http::{self, HttpRegistry, Options};
use crate::rundir::{self, Holder, LockError, RunDirectory};
use crate::runtime::containerd::{self, Containerd};
use crate::source;
use crate::status::{Chain, Exit, RuntimeStatus, Status};

/// What takes longer than this is told of.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the embedded engine is looked after.
const KEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How often at least one that cannot be started is tried again: each try writes to its log.
const KEEP_LONGEST: Duration = Duration::from_mins(1);

/// What may be started to reach an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// The embedded one, if that is the decision.
    Engine,
    /// The embedded one, if it was ever started: there may be something of ours in it.
    IfItHasState,
    Nothing,
}

/// A reachable engine and everything that effects are made with.
pub(super) struct Connection {
    pub edge: Arc<Edge<Containerd, LinuxHost>>,
    pub mounts_not_shared: Option<String>,
    /// The embedded engine, for looking after it.
    pub keeper: Option<Embedded>,
    /// No engine of ours was ever started: nothing of ours can be there.
    pub is_absent: bool,
}

/// Runs a future to its end on this thread.
pub(super) fn block_on<T>(body: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .map_err(|error| {
            Failure::new(Exit::Environment, format_args!("failed to start: {error}"))
        })?;
    let value = runtime.block_on(body);
    // A look at a dead file system must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(value)
}

/// Says on stderr what is waited for when it takes more than a moment.
pub(super) async fn patiently<T>(settings: &Settings, body: impl Future<Output = T>) -> T {
    tokio::pin!(body);
    tokio::select! {
        biased;
        done = &mut body => return done,
        () = tokio::time::sleep(PATIENCE) => {}
    }
    let address = settings
        .containerd_address
        .as_ref()
        .map_or_else(String::new, |it| format!(" at `{}`", it.display()));
    // Nobody is told where stderr is gone, and the work goes on.
    drop(writeln!(std::io::stderr(), "evenkeel: waiting for containerd{address} to answer"));
    body.await
}

/// Sources as they are recorded: absolute, symlinks not resolved.
pub(super) fn sources(paths: &[PathBuf]) -> Result<Vec<Source>, Failure> {
    let current = std::env::current_dir()?;
    let mut sources: Vec<Source> = Vec::new();
    for path in paths {
        let source = Source::new(&current, path);
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    Ok(sources)
}

/// The run directory of these settings; refuses to go on without the rights to use it.
pub(super) fn run_directory(settings: &Settings) -> Result<RunDirectory, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(
            Exit::Environment,
            "root is needed to work with containers and mounts; `evenkeel validate` needs no rights",
        ));
    }
    Ok(RunDirectory::new(&settings.run_directory))
}

/// Whether we are the one that works here.
pub(super) enum Lock {
    Held(rundir::Lock),
    Taken(Other),
}

/// Another process that works on the same run directory.
pub(super) struct Other {
    pub pid: u32,
    directory: PathBuf,
    since: String,
}

impl Other {
    pub(super) fn message(&self) -> String {
        let Self { pid, directory, since } = self;
        format!("another evenkeel works on `{}`: pid {pid}, since {since}", directory.display())
    }
}

/// Refused while the machine is being shut down: nothing is to be started behind that one's back, also between the
/// end of a controller and the moment when the other has the lock.
pub(super) fn lock(run: &RunDirectory, settings: &Settings) -> Result<Lock, Failure> {
    if let Some(by) = run.shutdown() {
        let message = format!("`evenkeel shutdown` is ending everything: {by}");
        return Err(Failure::new(Exit::Environment, message));
    }
    lock_for_shutdown(run, settings)
}

/// The same, for the one who ends everything.
pub(super) fn lock_for_shutdown(run: &RunDirectory, settings: &Settings) -> Result<Lock, Failure> {
    match run.lock() {
        Ok(lock) => Ok(Lock::Held(lock)),
        Err(LockError::Locked { path, by }) => {
            let (pid, since) =
                by.map_or((0, "an unknown time".to_owned()), |it| (it.pid, it.since));
            let directory =
                if path.as_os_str().is_empty() { settings.run_directory.clone() } else { path };
            Ok(Lock::Taken(Other { pid, directory, since }))
        }
        Err(LockError::Failed(error)) => Err(Failure::environment(&error)),
    }
}

/// Which engine it is to be, and what was recorded of it.
pub(super) struct Decided {
    pub decision: Decision,
    pub recorded: Option<Record>,
    pub embedded: Embedded,
}

impl Decided {
    /// Where it is.
    pub(super) fn socket(&self, settings: &Settings) -> PathBuf {
        match self.decision.engine {
            Engine::System => settings
                .containerd_address
                .clone()
                .unwrap_or_else(|| crate::engine::SYSTEM_SOCKET.into()),
            Engine::Embedded => self.embedded.socket(),
        }
    }
}

/// Decides on an engine; starts and writes nothing.
pub(super) fn decide(settings: &Settings) -> Result<Decided, Failure> {
    let embedded = Embedded::new(&settings.state_directory, &settings.run_directory);
    let choice = match settings.engine {
        EngineChoice::Auto => Choice::Auto,
        EngineChoice::System => Choice::System,
        EngineChoice::Embedded => Choice::Embedded,
    };
    let known = Known::gather(choice, settings.containerd_address.as_deref(), &embedded)
        .map_err(|error| Failure::environment(&error))?;
    let decision = crate::engine::decide(&known).map_err(|refusal| match refusal {
        Refusal::AddressOfEmbedded => Failure::new(Exit::Usage, refusal),
        Refusal::Recorded { .. }
        | Refusal::Namespace { .. }
        | Refusal::Address { .. }
        | Refusal::Instances { .. }
        | Refusal::Silent => Failure::environment(&refusal),
    })?;
    let recorded =
        Record::read(&settings.state_directory).map_err(|error| Failure::environment(&error))?;
    if let Some(record) = &recorded {
        record
            .check(settings.containerd_address.as_deref(), &settings.containerd_namespace)
            .map_err(|refusal| Failure::environment(&refusal))?;
    }
    Ok(Decided { decision, recorded, embedded })
}

/// How a decided engine is talked to.
pub(super) fn runtime_settings(
    settings: &Settings,
    address: PathBuf,
    snapshotter: String,
) -> Result<containerd::Settings, Failure> {
    let log_program = std::env::current_exe().map_err(|error| {
        Failure::new(Exit::Environment, format_args!("failed to find our own program: {error}"))
    })?;
    Ok(containerd::Settings {
        address,
        namespace: settings.containerd_namespace.clone(),
        snapshotter,
        runc_root: settings.run_directory.join("runc"),
        log_program,
    })
}

/// Decides on an engine, starts it if that is allowed, and connects.
pub(super) async fn connect(
    settings: &Settings,
    start: Start,
    take_over: bool,
) -> Result<Connection, Failure> {
    let decided = decide(settings)?;
    let address = decided.socket(settings);
    let Decided { decision, recorded, embedded } = decided;
    let is_absent = match decision.engine {
        Engine::System => false,
        Engine::Embedded => match (embedded.find(), start) {
            (Found::Running { .. }, _) => false,
            (Found::Never, Start::IfItHasState | Start::Nothing) => true,
            (Found::Stopped, Start::Nothing) => {
                return Err(Failure::new(
                    Exit::Environment,
                    "the embedded containerd does not run; `evenkeel run` or `evenkeel apply` starts it",
                ));
            }
            (Found::Never | Found::Stopped, Start::Engine | Start::IfItHasState) => {
                info!(socket = %embedded.socket().display(), "starting the embedded containerd");
                embedded.start().await.map_err(|error| Failure::environment(&error))?;
                false
            }
        },
    };
    let mut is_recorded = recorded.is_some();
    let mut snapshotter = match (recorded, &settings.snapshotter) {
        (Some(record), _) => record.snapshotter,
        (None, Some(named)) => named.clone(),
        // To find out mounts and makes directories, and nobody who only looks makes snapshots.
        (None, None) if is_absent || start == Start::Nothing => "overlayfs".to_owned(),
        (None, None) => decide_snapshotter(settings, &decision, &embedded)?,
    };
    let through = |snapshotter: &str| {
        Containerd::new(runtime_settings(settings, address.clone(), snapshotter.to_owned())?)
            .map_err(|error| Failure::environment(&error))
    };
    let mut runtime = through(&snapshotter)?;
    let cgroup_parent = crate::config::cgroup_parent(&settings.run_directory);
    let host = LinuxHost::new(&settings.run_directory, &cgroup_parent)
        .map_err(|error| Failure::environment(&error))?;
    let boot_id = boot_id().map_err(|error| {
        Failure::new(Exit::Environment, format_args!("failed to read the boot id: {error}"))
    })?;
    let mut mounts_not_shared = None;
    let mut oom_score_adj = None;
    if !is_absent {
        let pid = runtime.peer_pid().await.map_err(|error| Failure::environment(&error))?;
        mounts_not_shared = host.mounts_shared_with(pid.unwrap_or(0)).err();
        oom_score_adj = pid.and_then(oom_score_adj_under);
        if start != Start::Nothing {
            claim(&runtime, settings, take_over).await?;
        }
        let used = runtime.snapshotters().await.map_err(|error| Failure::environment(&error))?;
        if let Some(named) = &settings.snapshotter {
            if let Some(other) = used.iter().find(|it| *it != named) {
                let message = format!(
                    "containers of ours have their files in the snapshotter `{other}`, and the configuration names \
                     `{named}`: nothing of them would be found. Name `{other}` there, or remove those containers first"
                );
                return Err(Failure::new(Exit::Environment, message));
            }
            if *named != snapshotter {
                // Nothing is in the one that was recorded.
                snapshotter.clone_from(named);
                runtime = through(&snapshotter)?;
                is_recorded = false;
            }
            let fault = runtime.fault_of_snapshotter().await;
            if let Some(why) = fault.map_err(|error| Failure::environment(&error))? {
                let message = format!(
                    "the snapshotter `{named}`, which the configuration names, cannot be used: {why}"
                );
                return Err(Failure::new(Exit::Environment, message));
            }
        }
        // With another one the writable layers of what is there would be taken for lost, and made anew.
        if let Some(other) = used.iter().find(|it| **it != snapshotter) {
            if is_recorded || used.len() > 1 {
                let state = settings.state_directory.display();
                let message = format!(
                    "containers of ours have their files in the snapshotter `{other}`, and not in `{snapshotter}`, \
                     which `{state}/engine.json` names or this box would choose: nothing of them would be found. Put \
                     `{other}` there, or remove those containers with the `evenkeel` that made them"
                );
                return Err(Failure::new(Exit::Environment, message));
            }
            snapshotter.clone_from(other);
            runtime = through(&snapshotter)?;
        }
        // Only now: a place that does not answer must not bind anybody. And before anything is made there.
        if start == Start::Engine && !is_recorded {
            let record = Record {
                engine: decision.engine,
                address: settings.containerd_address.clone(),
                namespace: settings.containerd_namespace.clone(),
                snapshotter,
                reason: decision.reason.to_owned(),
            };
            record
                .write(&settings.state_directory)
                .map_err(|error| Failure::environment(&error))?;
            info!(engine = decision.engine.as_str(), reason = decision.reason, "engine decided");
        }
    }
    let mut edge = Edge::new(
        runtime,
        Arc::new(host),
        RunDirectory::new(&settings.run_directory),
        Archives::new(settings.archives.clone()),
        settings.log_directory(),
        boot_id,
    );
    edge.oom_score_adj = oom_score_adj;
    let edge = edge.with_registry(Arc::new(HttpRegistry::new(registries(settings))));
    let keeper = (decision.engine == Engine::Embedded).then_some(embedded);
    Ok(Connection { edge: Arc::new(edge), mounts_not_shared, keeper, is_absent })
}

/// The settings of registries, as who asks them takes them.
fn registries(settings: &Settings) -> Options {
    let Registries { hosts_directories, credentials, logins } = settings.registries.clone();
    let login = |config::Login { host, username, password_file }| http::Login {
        host,
        username,
        password_file,
    };
    Options {
        hosts: hosts_directories,
        credentials: credentials.unwrap_or_else(http::usual_files),
        logins: logins.into_iter().map(login).collect(),
        ..Options::default()
    }
}

/// Whose a containerd namespace is, as its label says. The run directory belongs to it: that is where the lock is,
/// and what containers were started with.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Owner {
    pub id: String,
    pub state_directory: PathBuf,
    pub run_directory: PathBuf,
}

/// Where snapshots are to be kept: found out by trying, which mounts below the directory that they will be in.
fn decide_snapshotter(
    settings: &Settings,
    decision: &Decision,
    embedded: &Embedded,
) -> Result<String, Failure> {
    let root = match decision.engine {
        Engine::Embedded => embedded.root(),
        Engine::System => settings.state_directory.clone(),
    };
    let snapshotter =
        crate::engine::snapshotter(&root).map_err(|error| Failure::environment(&error))?;
    Ok(snapshotter.to_owned())
}

/// Writes our name on the containerd namespace, or says whose is on it.
async fn claim(runtime: &Containerd, settings: &Settings, take_over: bool) -> Result<(), Failure> {
    let mine = Owner {
        id: rundir::owner(&settings.state_directory)
            .map_err(|error| Failure::environment(&error))?,
        state_directory: settings.state_directory.clone(),
        run_directory: settings.run_directory.clone(),
    };
    let label = serde_json::to_string(&mine)
        .map_err(|error| Failure::new(Exit::Environment, format_args!("the owner: {error}")))?;
    let theirs = runtime.owner().await.map_err(|error| Failure::environment(&error))?;
    let refused = |what: &dyn std::fmt::Display| {
        let namespace = &settings.containerd_namespace;
        let message = format!("the containerd namespace `{namespace}` belongs to {what}");
        Err(Failure::new(Exit::Environment, message))
    };
    match theirs {
        Some(theirs) if theirs == label => return Ok(()),
        Some(theirs) => {
            let owner: Option<Owner> = serde_json::from_str(&theirs).ok();
            let who = owner.as_ref().map_or_else(
                || format!("`{theirs}`"),
                |it| {
                    let (state, run) = (it.state_directory.display(), it.run_directory.display());
                    format!("the evenkeel with the state directory `{state}` and the run directory `{run}`")
                },
            );
            // In our own run directory, we are the one who holds the lock.
            if let Some(owner) = owner.as_ref().filter(|it| it.run_directory != mine.run_directory)
            {
                match RunDirectory::new(&owner.run_directory).controller() {
                    Ok(None) => {}
                    Ok(Some(holder)) => {
                        return refused(&format_args!("{who}, which works now: {holder}"));
                    }
                    Err(error) => return refused(&format_args!("{who}: {}", Chain(&error))),
                }
            }
            // An owner whose state directory is no longer on this box cannot come back.
            let is_gone = owner.is_some_and(|it| !it.state_directory.exists());
            if !take_over && !is_gone {
                return refused(&format_args!(
                    "{who}; `evenkeel run --take-over` or `evenkeel apply --take-over` takes it over"
                ));
            }
            warn!(owner = who, "took the containerd namespace over");
        }
        None => {}
    }
    runtime.set_owner(&label).await.map_err(|error| Failure::environment(&error))
}

/// Starts the embedded engine again whenever it has died; never ends.
pub(super) async fn keep_engine(keeper: Option<Embedded>) {
    let Some(embedded) = keeper else { return std::future::pending().await };
    let mut complaint = String::new();
    let mut pause = KEEP_INTERVAL;
    loop {
        tokio::time::sleep(pause).await;
        if matches!(embedded.find(), Found::Running { .. }) {
            complaint.clear();
            pause = KEEP_INTERVAL;
        } else {
            if complaint.is_empty() {
                warn!("the embedded containerd does not answer; starting it again");
            } else {
                debug!("the embedded containerd still does not answer; starting it again");
            }
            match embedded.start().await {
                Ok(_) => {
                    complaint.clear();
                    pause = KEEP_INTERVAL;
                }
                Err(error) => {
                    pause = KEEP_LONGEST.min(pause * 2);
                    let text = Chain(&error).to_string();
                    if text != complaint {
                        warn!(
                            error = text,
                            "failed to start the embedded containerd; trying again"
                        );
                        complaint = text;
                    }
                }
            }
        }
        if let Err(error) = embedded.trim_log() {
            warn!(error = %Chain(&error), "failed to trim the log of the embedded containerd");
        }
    }
}

/// Ends the embedded engine, if that is ours, and forgets which engine it was.
pub(super) async fn stop_engine(settings: &Settings) -> Result<(), Failure> {
    let embedded = Embedded::new(&settings.state_directory, &settings.run_directory);
    let state = settings.state_directory.clone();
    let stopped = tokio::task::spawn_blocking(move || {
        embedded.stop()?;
        Record::forget(&state)
    });
    match stopped.await {
        Ok(result) => result.map_err(|error| Failure::environment(&error)),
        Err(error) => Err(Failure::new(Exit::Environment, error)),
    }
}

/// Removes what is empty and ours once everything is down, the directory of logs too; what is not empty stays.
pub(super) async fn remove_run_directory(run: &RunDirectory, settings: &Settings) {
    let path = run.path().to_owned();
    let cgroup = crate::config::cgroup_parent(&settings.run_directory);
    let logs = settings.log_directory();
    let removed = tokio::task::spawn_blocking(move || {
        remove_empty_cgroup(&cgroup);
        // containerd's second socket, which it leaves behind.
        drop(std::fs::remove_file(path.join("containerd/containerd.sock.ttrpc")));
        // Also what nobody could read.
        drop(std::fs::remove_dir_all(path.join("hands")));
        drop(std::fs::remove_dir_all(path.join("events")));
        for name in ["strikes", "approvals", "holds", "images", "ipc", "runc", "containerd"] {
            remove_empty(&path.join(name), 3);
        }
        // What commands that were killed have left; without containers there is no process of theirs.
        drop(std::fs::remove_dir_all(path.join("exec")));
        // Each log went with its container.
        drop(std::fs::remove_dir(logs));
        for name in ["status.json", "removals.json", "shutdown.json"] {
            drop(std::fs::remove_file(path.join(name)));
        }
    });
    drop(removed.await);
}

/// Removes a directory of directories that holds no file.
fn remove_empty(path: &Path, depth: usize) {
    if depth > 0
        && let Ok(entries) = std::fs::read_dir(path)
    {
        for entry in entries.flatten() {
            remove_empty(&entry.path(), depth - 1);
        }
    }
    drop(std::fs::remove_dir(path));
}

/// Removes our parent cgroup from every hierarchy; one that still has processes stays.
fn remove_empty_cgroup(parent: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let name = parent.trim_start_matches('/');
    drop(std::fs::remove_dir(root.join(name)));
    let Ok(hierarchies) = std::fs::read_dir(root) else { return };
    for hierarchy in hierarchies.flatten() {
        drop(std::fs::remove_dir(hierarchy.path().join(name)));
    }
}

/// Makes a running controller look at the run directory; whether there is one.
pub(super) fn wake_controller(run: &RunDirectory) -> bool {
    let Ok(Some(status)) = controller_status(run) else { return false };
    let pid = status.controller.and_then(|it| i32::try_from(it.pid).ok());
    pid.and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::kill_process(pid, rustix::process::Signal::HUP).is_ok())
}

/// The status that a controller keeps now; `None`: there is none, or it has not said anything yet.
///
/// Whoever holds the lock may be a command that ends by itself, and the status that of a controller before it.
pub(super) fn controller_status(run: &RunDirectory) -> Result<Option<Status>, Failure> {
    let holder: Option<Holder> = run.controller().map_err(|error| Failure::environment(&error))?;
    let status: Option<Status> = run.status().map_err(|error| Failure::environment(&error))?;
    let Some(holder) = holder else { return Ok(None) };
    Ok(status.filter(|it| it.controller.as_ref().is_some_and(|it| it.pid == holder.pid)))
}

/// What a controller pulls just now, by image; nothing when none runs.
pub(super) fn pulls(run: &RunDirectory) -> Result<BTreeMap<String, Progress>, Failure> {
    let pulls = controller_status(run)?.map(|it| it.pulls).unwrap_or_default();
    Ok(pulls
        .into_iter()
        .map(|it| (it.image, Progress { done: it.done, total: it.total }))
        .collect())
}

/// The sources that a controller reads; `None`: none runs, or it has not said yet.
pub(super) fn watched(run: &RunDirectory) -> Result<Option<Vec<Source>>, Failure> {
    let root = Path::new("/");
    let sources =
        |it: Status| it.sources.iter().map(|it| Source::new(root, Path::new(&it.path))).collect();
    Ok(controller_status(run)?.filter(|it| !it.sources.is_empty()).map(sources))
}

/// The controller's own status, or, without a controller, what is found now; with a remark on where it comes from.
pub(super) fn current_status(settings: &Settings) -> Result<(Status, Option<String>), Failure> {
    let run = run_directory(settings)?;
    if let Some(status) = controller_status(&run)? {
        return Ok((status, None));
    }
    let written: Option<Status> = run.status().map_err(|error| Failure::environment(&error))?;
    let found = block_on(async {
        let sources = sources(&settings.manifests)?;
        let desired = source::read_once(sources, settings.allow_empty).await;
        let found = async {
            let connection = connect(settings, Start::Nothing, false).await?;
            plan::look(settings, &connection, &desired).await
        };
        let (_, status) = patiently(settings, found).await?;
        Ok::<_, Failure>(status)
    })?;
    match (found, written) {
        (Ok(status), _) => {
            Ok((status, Some("no controller runs; this is what was found now".to_owned())))
        }
        (Err(failure), Some(mut status)) => {
            let age = status
                .controller
                .as_ref()
                .map_or_else(String::new, |it| format!(", of {}", it.updated_at));
            status.runtime =
                RuntimeStatus { state: "unreachable".to_owned(), message: failure.message };
            Ok((
                status,
                Some(format!(
                    "no controller runs and containerd does not answer; this is the last status{age}"
                )),
            ))
        }
        (Err(failure), None) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Told {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_cannot_be_started_is_tried_seldom_and_complained_about_once() {
        let told = Told::default();
        let writer = told.clone();
        let _telling = tracing::subscriber::set_default(
            tracing_subscriber::fmt()
                .with_max_level(tracing::Level::DEBUG)
                .with_writer(move || writer.clone())
                .finish(),
        );
        let directory = tempfile::tempdir().unwrap();
        // No socket has room there.
        let run = directory.path().join("x".repeat(200));
        let embedded = Embedded::new(&directory.path().join("state"), &run);
        let kept = tokio::time::timeout(Duration::from_hours(1), keep_engine(Some(embedded)));
        kept.await.unwrap_err();
        let told = String::from_utf8(told.0.lock().unwrap().clone()).unwrap();
        let count = |text: &str| told.lines().filter(|it| it.contains(text)).count();
        assert_eq!(count("WARN"), 2, "{told}");
        let tries = count("not answer");
        assert!((60..=70).contains(&tries), "{tries}");
    }
}
