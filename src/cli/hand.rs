//! `evenkeel stop`, `start`, `restart` and `retry`: a person's hand. Beside a controller they ask and wait, as `down` of
//! single workloads does there; without one they do it themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;
use tracing::info;

use super::connect::{self, Connection, Lock, Start};
use super::{Context, Failure, down, plan, reconcile, status};
use crate::config::Settings;
use crate::controller::{Ended, Goal};
use crate::desired::DesiredState;
use crate::host::Host as _;
use crate::manifest::nearest;
use crate::observed::{Hand, HandKind};
use crate::plan::{Phase, Plan};
use crate::rundir::RunDirectory;
use crate::source;
use crate::status::{Event, EventKind, EventType, Exit, Item, Status};
use crate::workload::{Name, Span, WantedState};

/// Between two looks at what a controller makes of it.
pub(super) const POLL: Duration = Duration::from_millis(200);

/// How old manifests may be by which it is judged how far a controller is.
pub(super) const READ_AGAIN: Duration = Duration::from_secs(5);

/// How long a workload must run before it is believed, as `apply` does.
pub(super) const BELIEVED: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct HandArgs {
    /// Workloads
    #[arg(required = true)]
    names: Vec<Name>,
    /// Wait no longer than this; what was asked for stands
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    timeout: Span,
}

#[derive(Debug, Args)]
pub(super) struct RestartArgs {
    #[command(flatten)]
    hand: HandArgs,
    /// Make the container anew from its image: what it has written, and its log, are gone
    #[arg(long)]
    fresh: bool,
}

/// What is asked for, of which workloads, and how long it is waited for.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) kind: HandKind,
    pub(super) fresh: bool,
    pub(super) names: BTreeSet<Name>,
    pub(super) timeout: Span,
}

pub(super) fn hand(
    context: &mut Context<'_>,
    kind: HandKind,
    args: HandArgs,
) -> Result<Exit, Failure> {
    asked(context, kind, args, false)
}

pub(super) fn restart(context: &mut Context<'_>, args: RestartArgs) -> Result<Exit, Failure> {
    asked(context, HandKind::Restart, args.hand, args.fresh)
}

fn asked(
    context: &mut Context<'_>,
    kind: HandKind,
    args: HandArgs,
    fresh: bool,
) -> Result<Exit, Failure> {
    super::start_tracing(context.verbose, false)?;
    let settings = context.settings()?;
    let HandArgs { names, timeout } = args;
    let request = Request { kind, fresh, names: names.into_iter().collect(), timeout };
    let (mut found, exit) = connect::block_on(carry_out(&settings, &request))??;
    found.items.retain(|it| request.names.iter().any(|name| name.as_str() == it.name));
    if context.is_json() {
        context.json(&found)?;
    } else {
        // Others' problems and holds are none of this command's business.
        found.problems.clear();
        found.holds.clear();
        found.sources.clear();
        status::table(context, &found)?;
    }
    Ok(exit)
}

/// Asks, and sees to it that it is done: by a controller, or right here. How everything stands then.
pub(super) async fn carry_out(
    settings: &Settings,
    request: &Request,
) -> Result<(Status, Exit), Failure> {
    let run = connect::run_directory(settings)?;
    let deadline = Instant::now() + request.timeout.0;
    let mut waiting = Waiting::new();
    let mut is_asked = false;
    loop {
        match connect::lock(&run, settings)? {
            Lock::Held(lock) => {
                return alone(settings, &run, request, is_asked, deadline, lock).await;
            }
            Lock::Taken(by) => match connect::watched(&run)? {
                Some(sources) => {
                    let desired = source::read_once(sources, settings.allow_empty).await;
                    let connection = connect::connect(settings, Start::Nothing, false).await?;
                    if !std::mem::replace(&mut is_asked, true) {
                        let (_, now) = plan::look(settings, &connection, &desired).await?;
                        ask(&run, &connection, &desired, &now, request)?;
                    }
                    let done = beside(settings, &run, &connection, desired, request, deadline);
                    if let Some(done) = done.await? {
                        return Ok(done);
                    }
                    // The controller has ended. Whoever comes next does it: perhaps this command.
                }
                None => {
                    if Instant::now() >= deadline {
                        return Err(Failure::new(Exit::Environment, by.message()));
                    }
                    waiting.tell(|| format!("pid {} is at work; waiting for its end", by.pid));
                    tokio::time::sleep(POLL).await;
                }
            },
        }
    }
}

/// Without a controller: one convergence pass for these workloads only.
async fn alone(
    settings: &Settings,
    run: &RunDirectory,
    request: &Request,
    is_asked: bool,
    deadline: Instant,
    _lock: crate::rundir::Lock,
) -> Result<(Status, Exit), Failure> {
    let sources = connect::sources(&settings.manifests)?;
    let states = source::read_to_rest(sources.clone(), settings.allow_empty);
    let desired = source::read_once(sources, settings.allow_empty).await;
    // To stop something needs no engine that was never there.
    let start = if request.kind == HandKind::Stop { Start::IfItHasState } else { Start::Engine };
    let connection = connect::connect(settings, start, false).await?;
    let (_, now) = plan::look(settings, &connection, &desired).await?;
    if !is_asked {
        ask(run, &connection, &desired, &now, request)?;
    }
    if !connection.is_absent {
        let goal = Goal::Hands { names: request.names.clone() };
        let left = deadline.saturating_duration_since(Instant::now());
        let (_, ended) = reconcile::converge(settings, &connection, states, goal, Span(left)).await;
        if let Ended::Unreachable(message) = ended {
            return Err(Failure::new(Exit::Environment, message));
        }
    }
    let (plan, found) = plan::look(settings, &connection, &desired).await?;
    run.set_status(&found).map_err(|error| Failure::environment(&error))?;
    let exit = match verdict(run, &plan.only(&request.names), &found, request) {
        Verdict::Done(_) => Exit::Success,
        Verdict::Failed | Verdict::Waits(_) => {
            withdraw(run, request)?;
            exit_of_failure(&found, request)
        }
    };
    Ok((found, exit))
}

/// Looks until the controller has done it; `None`: it has ended.
async fn beside(
    settings: &Settings,
    run: &RunDirectory,
    connection: &Connection,
    mut desired: DesiredState,
    request: &Request,
    deadline: Instant,
) -> Result<Option<(Status, Exit)>, Failure> {
    let mut waiting = Waiting::new();
    let mut steady: Option<(Instant, BTreeMap<Name, u32>)> = None;
    let mut read = Instant::now();
    loop {
        if read.elapsed() >= READ_AGAIN {
            let sources = desired.sources.keys().cloned().collect();
            desired = source::read_once(sources, settings.allow_empty).await;
            read = Instant::now();
        }
        let (plan, found) = plan::look(settings, connection, &desired).await?;
        match verdict(run, &plan.only(&request.names), &found, request) {
            // What runs has to go on for a moment.
            Verdict::Done(pids) => match &steady {
                _ if pids.is_empty() => return Ok(Some((found, Exit::Success))),
                Some((since, before)) if *before == pids => {
                    if since.elapsed() >= BELIEVED {
                        return Ok(Some((found, Exit::Success)));
                    }
                }
                _ => steady = Some((Instant::now(), pids)),
            },
            Verdict::Failed => {
                withdraw(run, request)?;
                let exit = exit_of_failure(&found, request);
                return Ok(Some((found, exit)));
            }
            Verdict::Waits(what) => {
                steady = None;
                waiting.tell(|| what);
            }
        }
        if Instant::now() >= deadline {
            withdraw(run, request)?;
            let exit = exit_of_failure(&found, request);
            return Ok(Some((found, exit)));
        }
        if run.controller().map_err(|error| Failure::environment(&error))?.is_none() {
            return Ok(None);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Takes back what could not be done and must not be done later, when the person is gone: a removal.
fn withdraw(run: &RunDirectory, request: &Request) -> Result<(), Failure> {
    for name in request.names.iter().filter(|_| request.kind == HandKind::Down) {
        run.remove_hand(name).map_err(|error| Failure::environment(&error))?;
    }
    Ok(())
}

/// Refuses what cannot be; else writes down what is asked for. All or nothing, as far as it is known beforehand.
fn ask(
    run: &RunDirectory,
    connection: &Connection,
    desired: &DesiredState,
    now: &Status,
    request: &Request,
) -> Result<(), Failure> {
    let mut items = Vec::new();
    for name in &request.names {
        let Some(item) = now.items.iter().find(|it| it.name == name.as_str()) else {
            return Err(unknown(name, now));
        };
        items.push((name, item));
    }
    let (hands, _) = run.hands();
    let boot = &connection.edge.boot_id;
    let is_stopped = |name: &Name| {
        hands.get(name).is_some_and(|it| it.kind == HandKind::Stop && it.boot_id == *boot)
    };
    let refused = |message: String| Err(Failure::new(Exit::NotConverged, message));
    for (name, item) in &items {
        let state = desired.workloads.get(*name).and_then(|it| it.workload.as_ref());
        let state = state.map(|it| it.spec.state);
        match request.kind {
            _ if item.reason == "unclaimed" && request.kind != HandKind::Down => {
                return refused(format!("`{name}` is left alone: {}", item.message));
            }
            HandKind::Retry if is_stopped(name) => {
                return refused(format!(
                    "`{name}` is stopped by hand; `evenkeel start {name}` starts it"
                ));
            }
            HandKind::Start | HandKind::Restart | HandKind::Retry
                if item.phase == Phase::Invalid =>
            {
                return Err(Failure::new(
                    Exit::Problems,
                    format!(
                        "the manifest of `{name}` has problems; `evenkeel validate` lists them"
                    ),
                ));
            }
            HandKind::Start | HandKind::Restart | HandKind::Retry => {
                let says = match state {
                    Some(WantedState::Stopped) => "stopped",
                    Some(WantedState::Absent) => "absent",
                    Some(WantedState::Running) | None => continue,
                };
                if request.kind == HandKind::Start && is_stopped(name) {
                    // It was meant, and is no reason any more when the manifest says otherwise.
                    run.remove_hand(name).map_err(|error| Failure::environment(&error))?;
                }
                return refused(format!("the manifest of `{name}` says `state: {says}`"));
            }
            HandKind::Down if let Some(wanted) = desired.workloads.get(*name) => {
                return Err(Failure::new(
                    Exit::Environment,
                    format!(
                        "{} still names `{name}`, and a controller would start it again: remove the document, \
                         or `evenkeel stop {name}`",
                        wanted.origin
                    ),
                ));
            }
            HandKind::Down if let Some(joiner) = joiner_that_stays(name, now, request) => {
                return Err(down::in_use(name, &format!("in use by {joiner}")));
            }
            HandKind::Stop | HandKind::Down => {}
        }
    }
    for (name, item) in items {
        let runs = item.instance.as_ref().is_some_and(|it| it.pid.is_some());
        // What runs is started, and what is stopped stays so since when it was.
        let is_so = match request.kind {
            HandKind::Start => runs && item.up_to_date && !is_stopped(name),
            HandKind::Stop => is_stopped(name),
            HandKind::Restart | HandKind::Retry | HandKind::Down => false,
        };
        if !is_so {
            let hand = Hand {
                kind: request.kind,
                at: connection.edge.host.now(),
                boot_id: connection.edge.boot_id.clone(),
                fresh: request.fresh,
            };
            run.set_hand(name, &hand).map_err(|error| Failure::environment(&error))?;
            record(run, name, request, connection.edge.host.wall_clock());
        }
    }
    Ok(())
}

/// Who joins this workload and is not to be removed with it.
fn joiner_that_stays<'a>(name: &Name, now: &'a Status, request: &Request) -> Option<&'a str> {
    let joins = |it: &Item| {
        it.ipc.as_ref().and_then(|it| it.donor.as_deref()) == Some(name.as_str())
            && !request.names.iter().any(|meant| meant.as_str() == it.name)
    };
    now.items.iter().find(|it| joins(it)).map(|it| it.name.as_str())
}

/// Writes into the journal what a person asked for.
fn record(run: &RunDirectory, name: &Name, request: &Request, time: String) {
    let reason = match request.kind {
        HandKind::Stop => "stop-asked",
        HandKind::Start => "start-asked",
        HandKind::Restart => "restart-asked",
        HandKind::Retry => "retry-asked",
        HandKind::Down => "down-asked",
    };
    let fresh = if request.fresh { "from its image anew" } else { "" };
    let event = Event::new(EventKind::Hand, EventType::Normal, reason, fresh).of(name.as_str());
    run.record(Event { time, ..event });
}

fn unknown(name: &Name, now: &Status) -> Failure {
    let known = nearest(name.as_str(), now.items.iter().map(|it| it.name.as_str()));
    let meant = known.map_or_else(String::new, |it| format!("; did you mean `{it}`?"));
    let message =
        format!("no workload is called `{name}`{meant}; `evenkeel status` lists what there is");
    Failure::new(Exit::Usage, message)
}

/// How far it is.
enum Verdict {
    /// As asked; with the processes that have to go on for a moment.
    Done(BTreeMap<Name, u32>),
    /// It was tried, and that is what came of it.
    Failed,
    /// For this.
    Waits(String),
}

/// `rest`: what the plan has for these workloads.
fn verdict(run: &RunDirectory, rest: &Plan, found: &Status, request: &Request) -> Verdict {
    let (hands, _) = run.hands();
    let mut pids = BTreeMap::new();
    let mut failed = false;
    for name in &request.names {
        let item = found.items.iter().find(|it| it.name == name.as_str());
        let pid = item.and_then(|it| it.instance.as_ref()?.pid);
        let is_open = hands.get(name).is_some_and(|it| it.kind == request.kind);
        let next = rest.steps.iter().find(|it| it.name.as_ref() == Some(name));
        let next = next.map(ToString::to_string);
        let phase = item.map(|it| it.phase);
        let waits = || {
            let (phase, why) = item.map_or_else(Default::default, |it| {
                (it.phase.to_string(), [it.reason.as_str(), it.message.as_str()].join(": "))
            });
            let next = next.clone().unwrap_or(why);
            Verdict::Waits(format!("waiting for `{name}`: {phase}: {next}"))
        };
        match request.kind {
            // What the runtime does not say may run.
            HandKind::Stop if next.is_some() || phase == Some(Phase::Waiting) => return waits(),
            HandKind::Stop if pid.is_some() => return waits(),
            // It is in use, and nobody waits for that to end.
            HandKind::Down if phase == Some(Phase::Held) && next.is_none() => failed = true,
            HandKind::Down if item.is_some_and(|it| it.instance.is_some()) => return waits(),
            HandKind::Stop | HandKind::Down => {}
            HandKind::Start | HandKind::Restart | HandKind::Retry => match (phase, pid) {
                _ if is_open || next.is_some() => return waits(),
                (Some(Phase::Running | Phase::Held), Some(pid)) => {
                    pids.insert(name.clone(), pid);
                }
                (Some(Phase::Completed), _) => {}
                (Some(Phase::BackingOff | Phase::Failed | Phase::Stopped) | None, _) => {
                    failed = true;
                }
                _ => return waits(),
            },
        }
    }
    if failed { Verdict::Failed } else { Verdict::Done(pids) }
}

fn exit_of_failure(found: &Status, request: &Request) -> Exit {
    let is_meant = |it: &&Item| request.names.iter().any(|name| name.as_str() == it.name);
    let has_problems = |it: &Item| it.problems.iter().any(|problem| problem.severity == "error");
    if found.items.iter().filter(is_meant).any(has_problems) {
        Exit::Problems
    } else {
        Exit::NotConverged
    }
}

/// Says what is waited for, after a second, and when it is something else.
struct Waiting {
    since: Instant,
    told: String,
}

impl Waiting {
    fn new() -> Self {
        Self { since: Instant::now(), told: String::new() }
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.since.elapsed() < Duration::from_secs(1) {
            return;
        }
        let text = what();
        if text != self.told {
            info!("{text}");
            self.told = text;
        }
    }
}
