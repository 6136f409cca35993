//! `evenkeel down`: stop and remove what is ours. Images stay.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio::sync::watch;
use tracing::info;

use super::connect::{self, Connection, Lock};
use super::{Context, Failure};
use crate::controller::{self, Controller, Ended, Goal};
use crate::desired::Source;
use crate::status::Exit;
use crate::workload::Name;

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
    super::start_tracing(context.verbose, false);
    let settings = context.settings()?;
    let DownArgs { names, source, dry_run, stop_engine } = args;
    let everything = names.is_empty() && source.is_none();
    let current = std::env::current_dir()?;
    let (plan, ended) = connect::block_on(async move {
        let run = connect::run_directory(&settings)?;
        let _lock = match connect::lock(&run, &settings)? {
            Lock::Held(lock) => lock,
            Lock::Taken(by) => {
                let message =
                    format!("{}; end it first, or it would start everything again", by.message());
                return Err(Failure::new(Exit::Environment, message));
            }
        };
        // What is to be removed has to be seen, so an embedded engine that was ended is started once more.
        let start = if dry_run { connect::Start::Nothing } else { connect::Start::IfItHasState };
        let connection = connect::connect(&settings, start, false).await?;
        if connection.is_absent {
            if !dry_run {
                connect::remove_run_directory(&run, &settings).await;
            }
            return Ok((crate::plan::Plan::default(), Ended::Converged));
        }
        let (observed, _) = controller::observe_once(&connection.edge, None, None)
            .await
            .map_err(|error| Failure::environment(&error))?;
        let mut chosen: BTreeSet<Name> = names.into_iter().collect();
        for name in &chosen {
            if !observed.instances.values().any(|it| &it.name == name) {
                let message =
                    format!("no workload is called `{name}`; `evenkeel status` lists them");
                return Err(Failure::new(Exit::Usage, message));
            }
        }
        if let Some(path) = source {
            let source = Source::new(&current, &path);
            let of = observed.instances.values().filter(|it| it.origin.source == source);
            chosen.extend(of.map(|it| it.name.clone()));
        }
        let chosen = (!everything).then_some(chosen);
        let plan = crate::plan::down(&observed, chosen.as_ref());
        if dry_run {
            return Ok((plan, Ended::Converged));
        }
        let ended = remove(&settings, &connection, chosen).await;
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
