//! `evenkeel approve`: lists held removals, or releases exactly one set of them. Works beside a controller.

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Context, Failure, connect};
use crate::status::{Exit, HoldStatus};
use crate::workload::API_VERSION;

#[derive(Debug, Args)]
pub(super) struct ApproveArgs {
    /// Token of the held set, as `approve` without one lists it
    token: Option<String>,
}

/// What `approve --output json` prints: what is held, or was released.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct HoldReport {
    api_version: String,
    /// `Holds`.
    kind: String,
    holds: Vec<HoldStatus>,
}

impl HoldReport {
    fn new(holds: Vec<HoldStatus>) -> Self {
        Self { api_version: API_VERSION.to_owned(), kind: "Holds".to_owned(), holds }
    }
}

pub(super) fn approve(context: &mut Context<'_>, args: &ApproveArgs) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let (status, _) = connect::current_status(&settings)?;
    let Some(token) = &args.token else {
        if context.is_json() {
            context.json(&HoldReport::new(status.holds))?;
        } else if status.holds.is_empty() {
            writeln!(context.out, "nothing is held")?;
        } else {
            for hold in &status.holds {
                writeln!(context.out, "{}  {}: {}", hold.token, hold.reason, hold.message)?;
                for it in &hold.removals {
                    writeln!(context.out, "          remove {} ({})", it.name, it.instance)?;
                }
            }
        }
        return Ok(Exit::Success);
    };
    let Some(hold) = status.holds.iter().find(|it| &it.token == token) else {
        let message = format!("nothing is held under `{token}`; `evenkeel approve` lists what is");
        return Err(Failure::new(Exit::Usage, message));
    };
    let run = connect::run_directory(&settings)?;
    run.approve(token, &hold.removals.iter().cloned().collect())
        .map_err(|error| Failure::environment(&error))?;
    let controller = connect::wake_controller(&run);
    if context.is_json() {
        context.json(&HoldReport::new(vec![hold.clone()]))?;
    } else {
        for it in &hold.removals {
            writeln!(context.out, "released: removal of {}", it.name)?;
        }
    }
    if !controller {
        writeln!(
            context.err,
            "no controller runs; the next `evenkeel apply` or `run` removes them"
        )?;
    }
    Ok(Exit::Success)
}
