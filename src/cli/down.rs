//! `evenkeel down`: stop and remove what is ours. Images stay.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;
use tracing::{info, warn};

use super::connect::{self, Connection, Lock};
use super::hand::{self, Request};
use super::{Context, Failure};
use crate::controller::{self, Controller, Ended, Goal};
use crate::desired::Source;
use crate::observed::{HandKind, ObservedState};
use crate::status::{Chain, Exit};
use crate::workload::{InstanceId, Name, Span};

/// How long a controller is waited for.
const BESIDE: Span = Span(Duration::from_mins(5));

#[derive(Debug, Args)]
pub(super) struct DownArgs {
    /// Workloads; all of them when none is named
    names: Vec<Name>,
    /// Only what came from this directory or file of manifests
    #[arg(long, value_name = "PATH")]
    source: Option<PathBuf>,
    /// Say what would be removed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// End the embedded containerd too, even when only some workloads are removed
    #[arg(long)]
    stop_engine: bool,
}

pub(super) fn down(context: &mut Context<'_>, args: DownArgs) -> Result<Exit, Failure> {
    super::start_tracing(context.verbose, false)?;
    let settings = context.settings()?;
    let DownArgs { names, source, dry_run, stop_engine } = args;
    let everything = names.is_empty() && source.is_none();
    let (plan, ended) = connect::block_on(async move {
        let run = connect::run_directory(&settings)?;
        if dry_run {
            // Beside a controller too, and without starting anything.
            let connection = connect::connect(&settings, connect::Start::Nothing, false).await?;
            if connection.is_absent {
                nothing_of(&names, source.as_deref())?;
                return Ok((crate::plan::Plan::default(), Ended::Converged));
            }
            let (observed, chosen) = choose(&connection, names, source.as_deref()).await?;
            let plan = crate::plan::down(&observed, chosen.as_ref());
            refuse_donors(&plan)?;
            return Ok((plan, Ended::Converged));
        }
        let _lock = match connect::lock(&run, &settings)? {
            Lock::Held(lock) => lock,
            // What no manifest names any more, the controller can remove.
            Lock::Taken(_) if !everything && connect::watched(&run)?.is_some() => {
                let connection =
                    connect::connect(&settings, connect::Start::Nothing, false).await?;
                let (_, chosen) = choose(&connection, names, source.as_deref()).await?;
                let request = Request {
                    kind: HandKind::Down,
                    fresh: false,
                    names: chosen.unwrap_or_default(),
                    timeout: BESIDE,
                };
                let (_, exit) = hand::carry_out(&settings, &request).await?;
                let is_done = exit == Exit::Success;
                let ended = if is_done { Ended::Converged } else { Ended::NotConverged };
                return Ok((crate::plan::Plan::default(), ended));
            }
            Lock::Taken(by) => {
                let message =
                    format!("{}; end it first, or it would start everything again", by.message());
                return Err(Failure::new(Exit::Environment, message));
            }
        };
        // What is to be removed has to be seen, so an embedded engine that was ended is started once more.
        let connection = connect::connect(&settings, connect::Start::IfItHasState, false).await?;
        if connection.is_absent {
            nothing_of(&names, source.as_deref())?;
            connect::remove_run_directory(&run, &settings).await;
            return Ok((crate::plan::Plan::default(), Ended::Converged));
        }
        let (observed, chosen) = choose(&connection, names, source.as_deref()).await?;
        let plan = crate::plan::down(&observed, chosen.as_ref());
        refuse_donors(&plan)?;
        let ended = remove(&settings, &connection, chosen.clone()).await;
        if ended == Ended::NotConverged {
            return Err(left(&connection, chosen.as_ref()).await);
        }
        if ended == Ended::Converged
            && let Err(error) = connection.edge.runtime.collect_garbage().await
        {
            warn!(error = %Chain(&error), "removed layers may take up space until containerd deletes them");
        }
        if ended == Ended::Converged && (everything || stop_engine) {
            connect::stop_engine(&settings).await?;
        }
        if ended == Ended::Converged && everything {
            connect::remove_run_directory(&run, &settings).await;
            info!("everything is removed");
        }
        Ok((plan, ended))
    })??;
    if dry_run {
        write!(context.out, "{plan}")?;
        if plan.is_empty() {
            writeln!(context.out, "nothing to do")?;
        }
    }
    match ended {
        Ended::Converged => Ok(Exit::Success),
        Ended::NotConverged | Ended::Shutdown => Ok(Exit::NotConverged),
        Ended::Unreachable(message) => Err(Failure::new(Exit::Environment, message)),
    }
}

/// What is there, and the workloads that are meant; `None` for all of them.
async fn choose(
    connection: &Connection,
    names: Vec<Name>,
    source: Option<&Path>,
) -> Result<(ObservedState, Option<BTreeSet<Name>>), Failure> {
    let (observed, _) = controller::observe_once(&connection.edge, None, None)
        .await
        .map_err(|error| Failure::environment(&error))?;
    if names.is_empty() && source.is_none() {
        return Ok((observed, None));
    }
    // Of what containerd has lost, the name is left in its ID.
    let is_lost = |it: &Name| observed.strays.keys().any(|id| id.stem() == InstanceId::stem_of(it));
    let is_unknown = |it: &Name| {
        !observed.instances.values().any(|instance| &instance.name == it) && !is_lost(it)
    };
    let unknown: Vec<Name> = names.iter().filter(|it| is_unknown(it)).cloned().collect();
    nothing_of(&unknown, None)?;
    let mut chosen: BTreeSet<Name> = names.into_iter().collect();
    if let Some(path) = source {
        let source = Source::new(&std::env::current_dir()?, path);
        let of = observed.instances.values().filter(|it| it.origin.source == source);
        let of: Vec<Name> = of.map(|it| it.name.clone()).collect();
        if of.is_empty() {
            nothing_of(&[], Some(path))?;
        }
        chosen.extend(of);
    }
    Ok((observed, Some(chosen)))
}

/// Refuses to remove a donor from under joiners that stay; before anything is done, since who names several means all.
fn refuse_donors(plan: &crate::plan::Plan) -> Result<(), Failure> {
    plan.standings.iter().next().map_or(Ok(()), |(name, it)| Err(in_use(name, &it.message)))
}

/// `why` names the joiners.
pub(super) fn in_use(name: &Name, why: &str) -> Failure {
    Failure::new(
        Exit::NotConverged,
        format_args!(
            "`{name}` is {why}: nothing was removed; name all of them, or none [donor-in-use]"
        ),
    )
}

/// Refuses names and a source that nothing of ours has.
fn nothing_of(names: &[Name], source: Option<&Path>) -> Result<(), Failure> {
    let message = match (names.first(), source) {
        (Some(name), _) => format!("no workload is called `{name}`"),
        (None, Some(source)) => format!("nothing came from `{}`", source.display()),
        (None, None) => return Ok(()),
    };
    Err(Failure::new(Exit::Usage, format_args!("{message}; `evenkeel status` lists what there is")))
}

/// What a removal that got no further has left. Why was told when it failed.
async fn left(connection: &Connection, chosen: Option<&BTreeSet<Name>>) -> Failure {
    let observed = match controller::observe_once(&connection.edge, None, None).await {
        Ok((observed, _)) => observed,
        Err(error) => return Failure::environment(&error),
    };
    let instances = observed.instances.values();
    let instances = instances.filter(|it| chosen.is_none_or(|names| names.contains(&it.name)));
    let mut left: BTreeSet<String> = instances.map(|it| format!("`{}`", it.name)).collect();
    if chosen.is_none() {
        left.extend(observed.orphans.keys().map(|it| format!("the task of `{it}`")));
        left.extend(observed.leftovers.iter().map(ToString::to_string));
    }
    let stems = chosen.map(|it| it.iter().map(InstanceId::stem_of).collect::<BTreeSet<_>>());
    let strays = observed.strays.keys();
    let strays = strays.filter(|it| stems.as_ref().is_none_or(|stems| stems.contains(it.stem())));
    left.extend(strays.map(|it| format!("what containerd has lost of `{it}`")));
    left.extend(observed.strays_unknown.iter().map(|it| format!("whatever nobody can see: {it}")));
    let left = left.into_iter().collect::<Vec<_>>().join(", ");
    Failure::new(
        Exit::NotConverged,
        format_args!("still there after several tries: {left}; run it again once that can end"),
    )
}

async fn remove(
    settings: &crate::config::Settings,
    connection: &Connection,
    names: Option<BTreeSet<Name>>,
) -> Ended {
    let (report, _reports) = watch::channel(None);
    let (_desired, desired) = watch::channel(None);
    let (_policy, policy) = watch::channel(Arc::new(settings.policy()));
    let controller = Controller {
        edge: Arc::clone(&connection.edge),
        desired,
        policy,
        mounts_not_shared: None,
        identity: None,
        goal: Goal::Down { names },
    };
    controller.run(report, std::future::pending()).await
}
