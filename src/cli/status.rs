//! `evenkeel status`: what the controller says, or, without one, what is found.

use clap::Args;

use super::{Context, Failure, connect, validate};
use crate::desired::DesiredState;
use crate::plan::Phase;
use crate::status::{Exit, Item, ProblemStatus, SourceStatus, Status};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Only this workload, with everything that is known of it
    name: Option<String>,
}

pub(super) fn status(context: &mut Context<'_>, args: &StatusArgs) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let (mut status, remark) = connect::current_status(&settings)?;
    if let Some(name) = &args.name {
        status = alone(status, name);
        if status.items.is_empty() {
            return Err(Failure::new(
                Exit::Usage,
                format_args!("no workload is called `{name}`; `evenkeel status` lists them"),
            ));
        }
    }
    let exit = exit_of(&status);
    if context.is_json() {
        context.json(&status)?;
        return Ok(exit);
    }
    if let Some(remark) = remark {
        writeln!(context.err, "{remark}")?;
    }
    match &args.name {
        Some(_) => details(context, &status)?,
        None => table(context, &status)?,
    }
    Ok(exit)
}

/// What of a status concerns one workload; no item is left when there is no such workload.
pub(super) fn alone(mut status: Status, name: &str) -> Status {
    status.items.retain(|it| it.name == name);
    let origins: Vec<&str> =
        status.items.iter().filter_map(|it| Some(it.origin.as_ref()?.source.as_str())).collect();
    status.sources.retain(|it| origins.contains(&it.path.as_str()));
    status.holds.retain(|it| it.removals.iter().any(|it| it.name.as_str() == name));
    status.problems.clear();
    status
}

/// 3 when the runtime does not answer, 1 with problems, 4 when something is not as wanted.
pub(super) fn exit_of(status: &Status) -> Exit {
    if status.runtime.state != "ready" {
        return Exit::Environment;
    }
    let errors = |problems: &[ProblemStatus]| problems.iter().any(|it| it.severity == "error");
    if status.sources.iter().any(|it| is_unread(&it.reason)) {
        return Exit::Problems;
    }
    if errors(&status.problems) || status.items.iter().any(|it| errors(&it.problems)) {
        return Exit::Problems;
    }
    let fine = |it: &Item| {
        matches!(it.phase, Phase::Running | Phase::Completed | Phase::Stopped) && it.up_to_date
            || it.reason == "unclaimed"
    };
    if status.items.iter().all(fine) && status.holds.is_empty() {
        Exit::Success
    } else {
        Exit::NotConverged
    }
}

/// Whether that is why nothing of a source could be read, which no problem of a file says.
fn is_unread(reason: &str) -> bool {
    matches!(reason, "source-missing" | "source-unreadable")
}

/// 1 with an error in a manifest or a source that cannot be read.
pub(super) fn exit_of_manifests(desired: &DesiredState) -> Exit {
    let mut blockers = desired.sources.values().flat_map(|it| &it.blockers);
    if blockers.any(|it| is_unread(it.code)) {
        return Exit::Problems;
    }
    validate::exit_of(&desired.problems, false)
}

/// Sources of which nothing is removed, and why; what belongs in front of every table and plan.
pub(super) fn held_sources(
    context: &mut Context<'_>,
    sources: &[SourceStatus],
) -> Result<(), Failure> {
    for it in sources.iter().filter(|it| it.state != "ready") {
        let (path, message, reason) = (&it.path, super::one_line(&it.message), &it.reason);
        let file = if it.file == it.path { String::new() } else { format!("{}: ", it.file) };
        writeln!(context.out, "{path}: nothing of it is removed: {file}{message} [{reason}]")?;
    }
    Ok(())
}

/// One line for a problem whose source text is not at hand.
pub(super) fn problem_line(it: &ProblemStatus) -> String {
    let place = match it.line {
        0 => it.file.clone(),
        line => format!("{}:{line}:{}", it.file, it.column),
    };
    format!("{place}: {}[{}]: {}", it.severity, it.code, it.message)
}

pub(super) fn table(context: &mut Context<'_>, status: &Status) -> Result<(), Failure> {
    if status.runtime.state != "ready" || !status.runtime.message.is_empty() {
        let message = super::one_line(&status.runtime.message);
        writeln!(context.out, "containerd: {} ({message})", status.runtime.state)?;
    }
    held_sources(context, &status.sources)?;
    for hold in &status.holds {
        let names: Vec<&str> = hold.removals.iter().map(|it| it.name.as_str()).collect();
        let (names, message, token) =
            (names.join(", "), super::one_line(&hold.message), &hold.token);
        writeln!(
            context.out,
            "held: removal of {names}: {message}; release with `evenkeel approve {token}`"
        )?;
    }
    if status.items.is_empty() {
        writeln!(context.out, "no workloads")?;
    } else {
        rows(context, &status.items)?;
    }
    for problem in status.items.iter().flat_map(|it| &it.problems).chain(&status.problems) {
        writeln!(context.out, "{}", problem_line(problem))?;
    }
    Ok(())
}

fn rows(context: &mut Context<'_>, items: &[Item]) -> Result<(), Failure> {
    let dash = || "-".to_owned();
    let cells = |it: &Item| {
        let instance = it.instance.as_ref();
        let mut why = it.reason.clone();
        if !it.message.is_empty() {
            why = format!("{why}: {}", super::one_line(&it.message));
        }
        if !it.up_to_date && why.is_empty() {
            "not up to date".clone_into(&mut why);
        }
        if let Some(unchecked) = instance.and_then(|it| it.image_unchecked.as_deref())
            && why.is_empty()
        {
            why =
                format!("runs an image that could not be checked: {}", super::one_line(unchecked));
        }
        [
            it.name.clone(),
            it.phase.to_string(),
            instance.and_then(|it| it.pid).map_or_else(dash, |pid| pid.to_string()),
            instance.map_or_else(dash, |it| it.restarts.to_string()),
            it.ipc.as_ref().map_or_else(dash, |it| it.mode.clone()),
            why,
        ]
    };
    let head = ["NAME", "PHASE", "PID", "RESTARTS", "IPC", "REASON"].map(str::to_owned);
    let lines: Vec<[String; 6]> = std::iter::once(head).chain(items.iter().map(cells)).collect();
    let mut widths = [0; 5];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    for line in &lines {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        text.push_str(&line[5]);
        writeln!(context.out, "{}", text.trim_end())?;
    }
    Ok(())
}

fn details(context: &mut Context<'_>, status: &Status) -> Result<(), Failure> {
    for item in &status.items {
        let mut line = |key: &str, value: &str| -> Result<(), Failure> {
            if !value.is_empty() {
                writeln!(context.out, "{key:<14}{value}")?;
            }
            Ok(())
        };
        line("name", &item.name)?;
        line("phase", &item.phase.to_string())?;
        line("reason", &item.reason)?;
        line("message", &item.message)?;
        line("up to date", if item.up_to_date { "yes" } else { "no" })?;
        if let Some(it) = &item.origin {
            let file = match it.file.as_str() {
                "" => it.source.clone(),
                file => format!("{}/{file}", it.source),
            };
            let place = match it.document {
                0 => file,
                n => format!("{file} (document {})", n + 1),
            };
            line("manifest", &place)?;
        }
        if let Some(it) = &item.instance {
            line("instance", &it.id)?;
            line("pid", &it.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()))?;
            line("restarts", &it.restarts.to_string())?;
            line("started", it.started_at.as_deref().unwrap_or_default())?;
            line(
                "not checked",
                &super::one_line(it.image_unchecked.as_deref().unwrap_or_default()),
            )?;
        }
        if let Some(it) = &item.ipc {
            line("ipc mode", &it.mode)?;
            line("shm size", it.shm_size.as_deref().unwrap_or_default())?;
        }
        if let Some(it) = &item.last_exit {
            line("last exit", &format!("{} ({}) at {}", it.code, it.reason, it.at))?;
        }
        if let Some(it) = &item.start_failure {
            line(
                "start failure",
                &format!("{} ({}) at {}: {}", it.code, it.reason, it.at, it.message),
            )?;
            line("advice", &it.advice)?;
        }
        line("next try", item.next_retry_at.as_deref().unwrap_or_default())?;
        for it in &item.problems {
            line("problem", &problem_line(it))?;
        }
    }
    Ok(())
}
