//! `evenkeel validate`: every problem of manifests. Needs no containerd, no rights and no configuration.

use std::path::PathBuf;

use clap::Args;

use super::{Context, Failure};
use crate::manifest::{Problem, Severity};
use crate::source::scan_for_validation;
use crate::status::{Exit, ProblemReport, ProblemStatus};
use crate::workload::API_VERSION;

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// Directories and files; `-` is stdin
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Warnings fail too
    #[arg(long)]
    strict: bool,
}

pub(super) fn validate(context: &mut Context<'_>, args: &ValidateArgs) -> Result<Exit, Failure> {
    let current = std::env::current_dir()?;
    let found = scan_for_validation(&current, &args.paths);
    if context.is_json() {
        let report = ProblemReport {
            api_version: API_VERSION.to_owned(),
            kind: "Problems".to_owned(),
            documents: found.documents,
            problems: found.problems.iter().map(ProblemStatus::from).collect(),
        };
        context.json(&report)?;
    } else {
        let style = context.problem_style();
        for problem in &found.problems {
            writeln!(context.out, "{}", crate::manifest::render::text(problem, style))?;
        }
        context.out.flush()?;
        let count = |severity| found.problems.iter().filter(|it| it.severity == severity).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let numbers = [
            plural(found.files, "file"),
            plural(found.documents, "document"),
            plural(errors, "error"),
            plural(warnings, "warning"),
        ];
        writeln!(context.err, "{}", numbers.join(", "))?;
    }
    Ok(exit_of(&found.problems, args.strict))
}

fn plural(number: usize, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{s}")
}

/// 1 with an error, and with a warning when those fail too.
pub(super) fn exit_of(problems: &[Problem], strict: bool) -> Exit {
    let fails = |it: &Problem| strict || it.severity == Severity::Error;
    if problems.iter().any(fails) { Exit::Problems } else { Exit::Success }
}
