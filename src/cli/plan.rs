//! `evenkeel plan`: what apply would do. The executor is not even made.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::connect::{self, Connection};
use super::{Context, Failure};
use crate::config::Settings;
use crate::controller;
use crate::desired::DesiredState;
use crate::plan::{self, Phase, Plan};
use crate::source;
use crate::status::{self, Around, Exit, PlanReport, RuntimeStatus, Status};

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Manifests instead of the configured ones; `-` is stdin
    paths: Vec<PathBuf>,
}

pub(super) fn plan(context: &mut Context<'_>, args: PlanArgs) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let PlanArgs { paths } = args;
    connect::run_directory(&settings)?;
    let sources = connect::sources(&super::sources(&paths, &settings))?;
    let (desired, plan, status) = connect::block_on(async move {
        let desired = source::read_once(sources, settings.allow_empty).await;
        let found = async {
            let connection = connect::connect(&settings, connect::Start::Nothing, false).await?;
            look(&settings, &connection, &desired).await
        };
        let (plan, status) = connect::patiently(&settings, found).await?;
        Ok::<_, Failure>((desired, plan, status))
    })??;
    if context.is_json() {
        context.json(&PlanReport::new(&plan, status))?;
    } else {
        let style = context.problem_style();
        for problem in &desired.problems {
            writeln!(context.err, "{}", crate::manifest::render::text(problem, style))?;
        }
        super::status::held_sources(context, &status.sources)?;
        write!(context.out, "{plan}")?;
        let waits = |phase| matches!(phase, Phase::Waiting | Phase::BackingOff | Phase::Held);
        for (name, it) in plan
            .standings
            .iter()
            .filter(|(_, it)| waits(it.phase) || !it.up_to_date || it.reason == "stopped-by-hand")
        {
            if it.reason.is_empty() || it.reason == "manifest-invalid" && it.instance.is_none() {
                continue;
            }
            writeln!(
                context.out,
                "{:<8} {name}: {}: {}",
                it.phase.to_string().to_lowercase(),
                it.reason,
                it.message
            )?;
        }
        for hold in &plan.holds {
            writeln!(context.out, "release these removals with `evenkeel approve {}`", hold.token)?;
        }
        // What is somebody else's waits for nothing.
        let is_waiting =
            plan.standings.values().any(|it| waits(it.phase) && it.reason != "unclaimed");
        let summary = match plan.steps.len() {
            0 if is_waiting => "nothing can be done now".to_owned(),
            0 => "nothing to do".to_owned(),
            1 => "1 step to do".to_owned(),
            n => format!("{n} steps to do"),
        };
        writeln!(context.out, "{summary}")?;
    }
    let of_manifests = super::status::exit_of_manifests(&desired);
    Ok(if of_manifests != Exit::Success {
        of_manifests
    } else if plan.is_empty() {
        Exit::Success
    } else {
        Exit::Changes
    })
}

/// Observes and plans once, as a pass does, and says how everything stands.
pub(super) async fn look(
    settings: &Settings,
    connection: &Connection,
    desired: &DesiredState,
) -> Result<(Plan, Status), Failure> {
    let not_shared = connection.mounts_not_shared.clone();
    let observed = if connection.is_absent {
        controller::observe_nothing(&connection.edge, desired, not_shared).await
    } else {
        controller::observe_once(&connection.edge, Some(desired), not_shared).await
    };
    let (observed, now) = observed.map_err(|error| Failure::environment(&error))?;
    let plan = plan::diff(desired, &observed, &settings.policy(), now);
    let around = Around {
        controller: None,
        runtime: RuntimeStatus { state: "ready".to_owned(), message: String::new() },
        now,
        wall_clock_of: controller::due_times(&plan, &*Arc::clone(&connection.edge.host), now),
    };
    let status = status::status(desired, &observed, &plan, &around);
    Ok((plan, status))
}
