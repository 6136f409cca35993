//! `evenkeel shutdown`: the end of the machine. Takes the work over from a controller, ends every process in order, and
//! keeps everything for the next start.
//!
//! Does not end an embedded containerd: it has nothing to lose, and ends with the machine.

use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::connect::{self, Connection, Lock, Start};
use super::reconcile::converge;
use super::{Context, Failure};
use crate::config::Settings;
use crate::controller::{self, Ended, Goal};
use crate::host::Host as _;
use crate::observed::Task;
use crate::plan::MachineEnd;
use crate::rundir::{self, Holder, RunDirectory};
use crate::status::{Chain, Exit};
use crate::workload::Span;

/// How long whoever works here is waited for: a controller looks once a second, and lets what it has begun go on for
/// five.
const HANDOVER: Duration = Duration::from_secs(20);

/// Kept at the end of the time for what has to be killed.
const KILLING: Duration = Duration::from_secs(10);

/// Between two tries to get the lock.
const POLL: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(super) struct ShutdownArgs {
    /// What the machine ends for, `power-off` or `reboot`: said as the cause of what is done. Nothing else depends on
    /// it yet
    #[arg(long = "for", value_enum, value_name = "WHY", hide_possible_values = true)]
    why: Option<Why>,
    /// Be done within this time, the controller's end included. What still runs when most of it has passed is killed,
    /// whatever its own stop timeout
    #[arg(long, value_name = "DURATION", default_value = "1m20s")]
    timeout: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Why {
    PowerOff,
    Reboot,
}

pub(super) fn shutdown(context: &mut Context<'_>, args: &ShutdownArgs) -> Result<Exit, Failure> {
    super::start_tracing(context.verbose, false)?;
    let settings = context.settings()?;
    let why = args.why.map(|it| match it {
        Why::PowerOff => MachineEnd::PowerOff,
        Why::Reboot => MachineEnd::Reboot,
    });
    connect::block_on(end_everything(&settings, args.timeout.0, why))?
}

async fn end_everything(
    settings: &Settings,
    timeout: Duration,
    why: Option<MachineEnd>,
) -> Result<Exit, Failure> {
    let deadline = Instant::now() + timeout;
    let run = connect::run_directory(settings)?;
    if run.controller().map_err(|error| Failure::environment(&error))?.is_some() {
        // Where nothing can be ended, nobody is sent away either.
        drop(connect::connect(settings, Start::Nothing, false).await?);
    }
    let _standing = Standing::new(&run)?;
    let _lock = take_over(settings, &run, deadline.min(Instant::now() + HANDOVER)).await?;
    let connection = connect::connect(settings, Start::IfItHasState, false).await?;
    if connection.is_absent {
        return Ok(Exit::Success);
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let until = connection.edge.host.now() + left.saturating_sub(KILLING.min(timeout / 4));
    let (_desired, desired) = watch::channel(None);
    let goal = Goal::Shutdown { until, why };
    let (_, ended) = converge(settings, &connection, desired, goal, Span(left)).await;
    match ended {
        Ended::Converged => {
            info!("everything has ended, and is kept for the next start");
            Ok(Exit::Success)
        }
        Ended::NotConverged | Ended::Shutdown => {
            Err(Failure::new(Exit::NotConverged, left_over(&connection).await))
        }
        Ended::Unreachable(message) => Err(Failure::new(Exit::Environment, message)),
    }
}

/// Says that everything is being ended, as long as it lives.
struct Standing<'a> {
    run: &'a RunDirectory,
}

impl<'a> Standing<'a> {
    fn new(run: &'a RunDirectory) -> Result<Self, Failure> {
        let this = Holder::this().map_err(|error| {
            Failure::new(Exit::Environment, format_args!("failed to look at /proc: {error}"))
        })?;
        run.set_shutdown(Some(&this)).map_err(|error| Failure::environment(&error))?;
        Ok(Self { run })
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        // Of a process that has ended it counts for nothing.
        if let Err(error) = self.run.set_shutdown(None) {
            warn!(error = %Chain(&error), "failed to say that the shutdown is over");
        }
    }
}

/// Waits for the end of whoever works here.
async fn take_over(
    settings: &Settings,
    run: &RunDirectory,
    until: Instant,
) -> Result<rundir::Lock, Failure> {
    let mut told = false;
    loop {
        match connect::lock_for_shutdown(run, settings)? {
            Lock::Held(lock) => return Ok(lock),
            Lock::Taken(by) if Instant::now() >= until => {
                let message = format!("{}, and does not let go of it", by.message());
                return Err(Failure::new(Exit::Environment, message));
            }
            Lock::Taken(by) => {
                if !std::mem::replace(&mut told, true) {
                    info!(pid = by.pid, "taking over");
                }
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

/// What has not ended.
async fn left_over(connection: &Connection) -> String {
    let observed = match controller::observe_once(&connection.edge, None, None).await {
        Ok((observed, _)) => observed,
        Err(error) => return format!("not everything has ended: {}", Chain(&error)),
    };
    let is_left = |task: &Task| match task {
        Task::Created { .. } | Task::Running { .. } | Task::Paused { .. } | Task::Unknown => true,
        Task::None | Task::Stopped { .. } => false,
    };
    let instances = observed.instances.values().filter(|it| is_left(&it.task));
    let instances = instances.map(|it| format!("`{}`", it.name));
    let orphans = observed.orphans.iter().filter(|it| is_left(it.1));
    let strays = observed.strays.iter().filter(|it| !it.1.pids.is_empty());
    let unnamed = orphans.map(|it| it.0).chain(strays.map(|it| it.0));
    let names: Vec<String> = instances.chain(unnamed.map(|it| format!("`{it}`"))).collect();
    match names.as_slice() {
        [] => "not everything is cleaned up; the next start does the rest".to_owned(),
        names => format!("not ended in time: {}", names.join(", ")),
    }
}
