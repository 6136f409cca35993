//! `evenkeel run` and `evenkeel apply`: the same loop, for ever or to convergence.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::connect::{self, Connection, Lock};
use super::hand::{BELIEVED, POLL, READ_AGAIN};
use super::progress::{self, Shown};
use super::{Context, Failure, plan, status};
use crate::config::{self, Flags, Settings};
use crate::controller::{Controller, Ended, Goal};
use crate::desired::{Believing, DesiredState, Source};
use crate::host::Host as _;
use crate::manifest::Problem;
use crate::plan::{Plan, Policy, Standing};
use crate::rundir::RunDirectory;
use crate::source;
use crate::status::{Chain, ControllerStatus, Exit, Item, ProblemStatus, Status, trouble};
use crate::workload::{Name, Span};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Log as JSON lines
    #[arg(
        long,
        env = "EVENKEEL_LOG_JSON",
        hide_env_values = true,
        value_parser = clap::builder::FalseyValueParser::new()
    )]
    log_json: bool,
    /// Take the containerd namespace over from another owner
    #[arg(long)]
    take_over: bool,
}

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    /// Manifests instead of the configured ones; a single file or `-` (stdin) removes nothing
    paths: Vec<PathBuf>,
    /// Keep trying until everything is as wanted
    #[arg(long)]
    wait: bool,
    /// Give up after this time
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    timeout: Span,
    /// Take the containerd namespace over from another owner
    #[arg(long)]
    take_over: bool,
}

pub(super) fn run(context: &mut Context<'_>, args: &RunArgs) -> Result<Exit, Failure> {
    let RunArgs { log_json, take_over } = *args;
    super::start_tracing(context.verbose, log_json)?;
    let settings = context.strict_settings()?;
    let flags = context.flags.clone();
    connect::block_on(async move { keep_running(flags, settings, take_over).await })?
}

async fn keep_running(flags: Flags, settings: Settings, take_over: bool) -> Result<Exit, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Exit::Environment, format_args!("failed to wait for signals: {error}"))
    };
    // Before anything else, so that none is missed.
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;

    let run = connect::run_directory(&settings)?;
    let lock = connect::lock(&run, &settings)?;
    let _lock = match lock {
        Lock::Held(lock) => lock,
        Lock::Taken(by) => return Err(Failure::new(Exit::Environment, by.message())),
    };
    let sources = connect::sources(&settings.manifests)?;
    let names: Vec<String> = sources.iter().map(ToString::to_string).collect();
    info!(version = env!("CARGO_PKG_VERSION"), sources = names.join(","), "controller starts");
    let connection = connect::connect(&settings, connect::Start::Engine, take_over).await?;
    let watching =
        source::watch(source::Options { sources, believing: believing(&settings), inotify: true })
            .map_err(|error| Failure::environment(&error))?;
    let (policy, followed) = watch::channel(Arc::new(settings.policy()));
    let (report, mut reports) = watch::channel(None::<Arc<Status>>);
    let (faults, mut faulty) = watch::channel(Vec::new());
    if let Some(problem) = &settings.emptied {
        warn!(file = %problem.position, code = problem.code, "{}", problem.message);
        faults.send_replace(vec![ProblemStatus::from(problem)]);
    }
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let Connection { edge, mounts_not_shared, keeper, .. } = connection;
    let (host, pulling) = (Arc::clone(&edge.host), Arc::clone(&edge));
    let written = crate::rundir::RunDirectory::new(&settings.run_directory);
    let writer = tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = reports.changed() => if changed.is_err() { break },
                Ok(()) = faulty.changed() => {}
            }
            let status = reports.borrow_and_update().clone();
            let Some(status) = status else { continue };
            let mut status = (*status).clone();
            status.problems.extend(faulty.borrow_and_update().iter().cloned());
            if let Some(controller) = &mut status.controller {
                controller.updated_at = crate::host::Host::wall_clock(&*host);
            }
            if let Err(error) = written.set_status(&status) {
                warn!(error = %Chain(&error), "failed to write the status");
            }
        }
    });
    let controller = Controller {
        identity: Some(ControllerStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: crate::host::Host::wall_clock(&*edge.host),
            updated_at: String::new(),
        }),
        edge,
        desired: watching.desired(),
        policy: followed,
        mounts_not_shared,
        goal: Goal::Keep,
    };
    let body = controller.run(report, async move {
        drop(ended.await);
    });
    tokio::pin!(body);
    let progress = progress::tell(pulling);
    tokio::pin!(progress);
    let keeper = connect::keep_engine(keeper);
    tokio::pin!(keeper);
    let mut following = Following {
        flags,
        has_file: settings.config.is_some() && settings.emptied.is_none(),
        started: settings,
        policy,
        faults,
    };
    let mut end = Some(end);
    let outcome = loop {
        tokio::select! {
            ended = &mut body => break ended,
            () = &mut keeper => {}
            never = &mut progress => match never {},
            _ = terminate.recv() => { info!("told to end; containers keep running"); end.take(); }
            _ = interrupt.recv() => { info!("told to end; containers keep running"); end.take(); }
            _ = hangup.recv() => following.read_again(&watching),
        }
    };
    // Ends with its sender, which the loop has dropped.
    drop(writer.await);
    info!("controller ended");
    match outcome {
        Ended::Shutdown | Ended::Converged => Ok(Exit::Success),
        Ended::NotConverged => Ok(Exit::NotConverged),
        Ended::Unreachable(message) => Err(Failure::new(Exit::Environment, message)),
    }
}

/// The configuration that a controller follows.
struct Following {
    flags: Flags,
    /// What it began with: some of it holds until it ends.
    started: Settings,
    /// What holds now stands in a file that says something.
    has_file: bool,
    policy: watch::Sender<Arc<Policy>>,
    /// What is wrong with the file, for the status.
    faults: watch::Sender<Vec<ProblemStatus>>,
}

impl Following {
    /// Reads the file again. One with problems changes nothing, and neither does one that says nothing any more: who
    /// truncates a file and dies before he has written it means no defaults.
    fn read_again(&mut self, watching: &source::Watching) {
        match Settings::load_strictly(&self.flags) {
            Ok(Settings { emptied: Some(problem), .. }) if self.has_file => {
                let message = "the configuration is empty; what it said before holds".to_owned();
                let problem = Problem { message, ..problem };
                error!(file = %problem.position, code = problem.code, "configuration is empty; nothing changed");
                self.faults.send_replace(vec![ProblemStatus::from(&problem)]);
            }
            Ok(next) => {
                for setting in self.started.changed_at_start_only(&next) {
                    warn!(setting, "a changed setting needs a restart of the controller");
                }
                info!(
                    ipc_mode = %next.ipc.mode,
                    shm_size = %next.ipc.shm_size,
                    "configuration was read again"
                );
                self.has_file = next.config.is_some() && next.emptied.is_none();
                self.faults.send_replace(next.emptied.iter().map(ProblemStatus::from).collect());
                watching.believe(believing(&next));
                self.policy.send_replace(Arc::new(next.policy()));
            }
            Err(error) => {
                error!(error = %Chain(&error), "configuration is not valid; nothing changed");
                if let config::Error::Problems(problems) = &error {
                    self.faults.send_replace(problems.iter().map(ProblemStatus::from).collect());
                }
            }
        }
    }
}

fn believing(settings: &Settings) -> Believing {
    Believing { remove_after: settings.remove_after, allow_empty: settings.allow_empty }
}

pub(super) fn apply(context: &mut Context<'_>, args: ApplyArgs) -> Result<Exit, Failure> {
    super::start_tracing(context.verbose, false)?;
    let settings = context.settings()?;
    let ApplyArgs { paths, wait, timeout, take_over } = args;
    // Before anything is read: without rights, nothing of this makes sense.
    let run = connect::run_directory(&settings)?;
    let sources = connect::sources(&super::sources(&paths, &settings))?;
    let (desired, status, ended) = connect::block_on(async move {
        let deadline = Instant::now() + timeout.0;
        loop {
            let left = Span(deadline.saturating_duration_since(Instant::now()));
            match turn(&run, &settings, &sources, deadline).await? {
                Turn::Ours(_lock) => {
                    let states = source::read_to_rest(sources, settings.allow_empty);
                    let connection = connect::connect(&settings, connect::Start::Engine, take_over);
                    let connection = connect::patiently(&settings, connection).await?;
                    let goal = Goal::Converge { wait };
                    let (status, ended) =
                        converge(&settings, &connection, states.clone(), goal, left).await;
                    let desired = states.borrow().clone();
                    let desired = desired.map_or_else(DesiredState::default, |it| (*it).clone());
                    if let Some(status) = &status {
                        run.set_status(&**status).map_err(|error| Failure::environment(&error))?;
                    }
                    return Ok::<_, Failure>((desired, status, ended));
                }
                // The controller does the work; this waits until nothing is left of it.
                Turn::Beside(sources) => {
                    if let Some((desired, status, ended)) =
                        beside(&settings, &run, &sources, wait, deadline).await?
                    {
                        return Ok((desired, Some(Arc::new(status)), ended));
                    }
                    // It has ended: now the work is ours, or the next one's.
                }
            }
        }
    })??;
    let style = context.problem_style();
    for problem in &desired.problems {
        writeln!(context.err, "{}", crate::manifest::render::text(problem, style))?;
    }
    if let Some(status) = status {
        if context.is_json() {
            context.json(&*status)?;
        } else {
            let shown = Status { problems: Vec::new(), ..(*status).clone() };
            status::table(context, &shown)?;
        }
    }
    match (ended, status::exit_of_manifests(&desired)) {
        (Ended::Unreachable(message), _) => Err(Failure::new(Exit::Environment, message)),
        (_, Exit::Problems) => Ok(Exit::Problems),
        (Ended::Converged, _) => Ok(Exit::Success),
        (Ended::NotConverged | Ended::Shutdown, _) => Ok(Exit::NotConverged),
    }
}

/// Who does the work of an `apply`.
enum Turn {
    Ours(crate::rundir::Lock),
    /// The controller, which reads these sources.
    Beside(Vec<Source>),
}

/// Waits until another command has ended; a controller does not, so it has to have these sources among its own.
async fn turn(
    run: &RunDirectory,
    settings: &Settings,
    sources: &[Source],
    deadline: Instant,
) -> Result<Turn, Failure> {
    let mut told = false;
    loop {
        let by = match connect::lock(run, settings)? {
            Lock::Held(lock) => return Ok(Turn::Ours(lock)),
            Lock::Taken(by) => by,
        };
        if let Some(watched) = connect::watched(run)? {
            let mut covering: Vec<Source> = Vec::new();
            for source in sources {
                let covers = |it: &&Source| source.path().starts_with(it.path());
                let Some(it) = watched.iter().find(covers) else {
                    let message = format!(
                        "{}; it does not read `{source}`: end it first, or put the manifests where it does",
                        by.message()
                    );
                    return Err(Failure::new(Exit::Environment, message));
                };
                if !covering.contains(it) {
                    covering.push(it.clone());
                }
            }
            info!(pid = by.pid, "a controller runs; waiting for it to get there");
            return Ok(Turn::Beside(covering));
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(Exit::Environment, by.message()));
        }
        if !std::mem::replace(&mut told, true) {
            info!(pid = by.pid, "another command is at work; waiting for its end");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Runs the loop until nothing more can be done, at most `timeout`.
pub(super) async fn converge(
    settings: &Settings,
    connection: &Connection,
    desired: watch::Receiver<Option<Arc<DesiredState>>>,
    goal: Goal,
    timeout: Span,
) -> (Option<Arc<Status>>, Ended) {
    let (report, reports) = watch::channel(None);
    let (_policy, policy) = watch::channel(Arc::new(settings.policy()));
    let controller = Controller {
        edge: Arc::clone(&connection.edge),
        desired,
        policy,
        mounts_not_shared: connection.mounts_not_shared.clone(),
        identity: None,
        goal,
    };
    let interrupted = async {
        match signal(SignalKind::interrupt()) {
            Ok(mut interrupt) => drop(interrupt.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    let end = async {
        tokio::select! {
            () = tokio::time::sleep(timeout.0) => {}
            () = interrupted => {}
        }
    };
    let edge = Arc::clone(&connection.edge);
    let ended = tokio::select! {
        ended = controller.run(report, end) => ended,
        never = progress::tell(edge) => match never {},
    };
    let status = reports.borrow().clone();
    (status, ended)
}

/// What a controller says of the steps that are left of this plan and fail; nothing when none runs.
pub(super) fn troubles(
    run: &RunDirectory,
    plan: &Plan,
    desired: &DesiredState,
) -> Result<BTreeMap<String, Item>, Failure> {
    let Some(told) = connect::controller_status(run)? else { return Ok(BTreeMap::new()) };
    let (hands, _) = run.hands();
    Ok(trouble::troubles(plan, &told, |name| {
        let name: Option<Name> = name.parse().ok();
        let wanted = name.as_ref().and_then(|it| desired.workloads.get(it));
        trouble::asked_of(wanted, name.and_then(|it| hands.get(&it)))
    }))
}

/// Looks until the controller has done everything that these manifests ask for, or can get no further; `None`: it has
/// ended. Judges as a pass of its own would: what runs has to go on for a moment, and only `wait` waits for what waits,
/// or for steps that fail.
async fn beside(
    settings: &Settings,
    run: &RunDirectory,
    sources: &[Source],
    wait: bool,
    deadline: Instant,
) -> Result<Option<(DesiredState, Status, Ended)>, Failure> {
    let connection = connect::connect(settings, connect::Start::Nothing, false).await?;
    let read = || source::read_once(sources.to_vec(), settings.allow_empty);
    let mut desired = read().await;
    let mut last_read = Instant::now();
    let mut steady: Option<(Instant, BTreeMap<String, u32>)> = None;
    let mut stuck: Option<Instant> = None;
    let mut shown = Shown::default();
    loop {
        if last_read.elapsed() >= READ_AGAIN {
            desired = read().await;
            last_read = Instant::now();
        }
        let (plan, mut status) = plan::look(settings, &connection, &desired).await?;
        let troubles = troubles(run, &plan, &desired)?;
        shown.show(&connect::pulls(run)?);
        let mut ended = None;
        if plan.is_empty() && status::exit_of(&status) == Exit::Success {
            let pid = |it: &Item| Some((it.name.clone(), it.instance.as_ref()?.pid?));
            let pids: BTreeMap<String, u32> = status.items.iter().filter_map(pid).collect();
            match &steady {
                Some((since, before)) if *before == pids => {
                    if since.elapsed() >= BELIEVED {
                        ended = Some(Ended::Converged);
                    }
                }
                _ if pids.is_empty() => ended = Some(Ended::Converged),
                _ => steady = Some((Instant::now(), pids)),
            }
        } else {
            steady = None;
            let now = connection.edge.host.now();
            let is_soon = |it: &Standing| {
                plan.is_soon(it) || it.until.is_some_and(|at| at.since(now) < BELIEVED)
            };
            if plan.is_empty() && !wait && !plan.standings.values().any(is_soon) {
                ended = Some(Ended::NotConverged);
            }
        }
        if !wait && trouble::is_stuck(&plan, &troubles) {
            let since = *stuck.get_or_insert_with(Instant::now);
            // What is tried again at this moment may work.
            let all_wait = troubles.values().all(|it| it.next_retry_at.is_some());
            if all_wait && since.elapsed() >= BELIEVED {
                ended = Some(Ended::NotConverged);
            }
        } else {
            stuck = None;
        }
        if Instant::now() >= deadline {
            ended = ended.or(Some(Ended::NotConverged));
        }
        if let Some(ended) = ended {
            trouble::tell(&mut status, &troubles);
            return Ok(Some((desired, status, ended)));
        }
        if run.controller().map_err(|error| Failure::environment(&error))?.is_none() {
            return Ok(None);
        }
        tokio::time::sleep(POLL).await;
    }
}
