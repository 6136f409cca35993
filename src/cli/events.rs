//! `evenkeel events`: what happened, from the journal in the run directory; needs no containerd.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;

use super::since::Since;
use super::{Context, Failure, connect};
use crate::status::{Event, EventType, Exit};
use crate::workload::Name;

/// How often a follower looks: quick enough for a person, next to nothing for the box.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Only of these workloads; all when none is named
    names: Vec<Name>,
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    /// Only what happened since: a while, 10m or 1h30m, or a time, 2026-01-31T10:00:00Z
    #[arg(long, value_name = "DURATION|TIME")]
    since: Option<Since>,
}

pub(super) fn events(context: &mut Context<'_>, args: &EventsArgs) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let run = connect::run_directory(&settings)?;
    let names: BTreeSet<&str> = args.names.iter().map(Name::as_str).collect();
    let since = args.since.map(|it| it.before(jiff::Timestamp::now()));
    let is_meant = |event: &Event| {
        let is_named =
            names.is_empty() || event.name.as_deref().is_some_and(|it| names.contains(it));
        // What has no time that can be read is shown with what is around it.
        let is_early = since.is_some_and(|since| {
            event.time.parse::<jiff::Timestamp>().is_ok_and(|time| time < since)
        });
        is_named && !is_early
    };
    let mut reader = run.events();
    let mut read = || {
        reader.read().map_err(|error| {
            let path = run.path().display();
            Failure::new(
                Exit::Environment,
                format_args!("failed to read the journal in `{path}`: {error}"),
            )
        })
    };
    let mut any = false;
    for event in read()?.into_iter().filter(is_meant) {
        any = true;
        write(context, &event)?;
    }
    context.out.flush()?;
    if !args.follow {
        if !any && !context.is_json() {
            writeln!(context.err, "no events")?;
        }
        return Ok(Exit::Success);
    }
    connect::block_on(async {
        // A box on which nothing happens would keep us for ever after the last reader has gone.
        while !super::is_stdout_closed() {
            tokio::time::sleep(FOLLOW_INTERVAL).await;
            for event in read()?.into_iter().filter(is_meant) {
                write(context, &event)?;
            }
            context.out.flush()?;
        }
        Ok(Exit::Success)
    })?
}

/// One line: JSON, or columns for people.
fn write(context: &mut Context<'_>, event: &Event) -> Result<(), Failure> {
    if context.is_json() {
        serde_json::to_writer(&mut *context.out, event).map_err(std::io::Error::from)?;
        writeln!(context.out)?;
        return Ok(());
    }
    let kind = match event.r#type {
        EventType::Normal => "Normal",
        EventType::Warning => "Warning",
    };
    let name = event.name.as_deref().unwrap_or("-");
    let what = [event.subject.as_deref().unwrap_or_default(), &event.cause, &event.message];
    let what: Vec<&str> = what.into_iter().filter(|it| !it.is_empty()).collect();
    let what = super::one_line(&what.join(": "));
    let line = format!("{}  {kind:<7}  {:<18}  {name:<20}  {what}", event.time, event.reason);
    writeln!(context.out, "{}", line.trim_end())?;
    Ok(())
}
