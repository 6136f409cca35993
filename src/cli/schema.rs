//! `evenkeel schema`.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{Context, Failure};
use crate::status::Exit;

#[derive(Debug, Args)]
pub(super) struct SchemaArgs {
    /// Which document: `manifest`, `config`, or what a command prints with `--output json`: `status`, `plan`,
    /// `problems` (validate), `holds` (approve), `log` (a line of logs), `event` (a line of events), `images` (image
    /// list and prune), `checks` (doctor), `explanation` (explain)
    #[arg(value_enum, default_value_t = Kind::Manifest, hide_possible_values = true)]
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Manifest,
    Config,
    Status,
    Plan,
    Problems,
    Holds,
    Log,
    Event,
    Images,
    Checks,
    Explanation,
}

pub(super) fn schema(context: &mut Context<'_>, args: &SchemaArgs) -> Result<Exit, Failure> {
    let name =
        args.kind.to_possible_value().map_or_else(String::new, |it| it.get_name().to_owned());
    for (known, schema) in schemas() {
        if known == name {
            context.json(&schema)?;
        }
    }
    Ok(Exit::Success)
}

/// Every published schema by its name, as committed in `schemas/<name>.schema.json`.
pub(crate) fn schemas() -> [(&'static str, Value); 11] {
    [
        ("manifest", crate::schema::manifest()),
        ("config", crate::schema::of::<crate::config::File>("Evenkeel configuration")),
        ("status", crate::schema::of::<crate::status::Status>("Evenkeel status")),
        ("plan", crate::schema::of::<crate::status::PlanReport>("Evenkeel plan")),
        ("problems", crate::schema::of::<crate::status::ProblemReport>("Evenkeel problems")),
        ("holds", crate::schema::of::<super::approve::HoldReport>("Evenkeel holds")),
        ("log", crate::schema::of::<super::logs::Line>("Evenkeel log line")),
        ("event", crate::schema::of::<crate::status::Event>("Evenkeel event")),
        ("images", crate::schema::of::<super::image::ImageReport>("Evenkeel images")),
        ("checks", crate::schema::of::<super::doctor::CheckReport>("Evenkeel checks")),
        ("explanation", crate::schema::of::<super::explain::Explanation>("Evenkeel explanation")),
    ]
}
