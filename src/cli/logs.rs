//! `evenkeel logs`: what a workload printed, from its files; needs no containerd.

use std::path::PathBuf;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Context, Failure, connect};
use crate::log::{Entry, Reader};
use crate::status::Exit;
use crate::workload::{InstanceId, Name, Span};

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// Workload
    name: Name,
    /// Go on with what is printed from now on
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// Only what was printed in the last while: 10m, 1h30m
    #[arg(long, value_name = "DURATION")]
    since: Option<Span>,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
}

pub(super) fn logs(context: &mut Context<'_>, args: &LogsArgs) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let Some(directory) = newest(&settings.log_directory(), &args.name)? else {
        let message = format!(
            "there is no log of `{}`: no workload is called so, it has not run yet, or it has `log: {{driver: none}}`",
            args.name
        );
        return Err(Failure::new(Exit::Usage, message));
    };
    let failed = |error: std::io::Error| {
        Failure::new(
            Exit::Environment,
            format_args!("failed to read `{}`: {error}", directory.display()),
        )
    };
    let since = args.since.and_then(|ago| {
        jiff::Timestamp::now().checked_sub(jiff::SignedDuration::try_from(ago.0).ok()?).ok()
    });
    let mut reader = Reader::open(&directory, args.tail, since).map_err(failed)?;
    while let Some(entry) = reader.read().map_err(failed)? {
        write(context, &entry, args.timestamps)?;
    }
    context.out.flush()?;
    if !args.follow {
        return Ok(Exit::Success);
    }
    connect::block_on(async {
        loop {
            let entry = reader.follow().await.map_err(failed)?;
            write(context, &entry, args.timestamps)?;
            context.out.flush()?;
        }
    })?
}

/// A line of `logs --output json`; one JSON object a line.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    /// RFC 3339.
    time: String,
    /// `stdout` or `stderr`.
    stream: String,
    /// What is not UTF-8 is replaced.
    text: String,
    /// The line goes on in the next one.
    partial: bool,
}

fn write(context: &mut Context<'_>, entry: &Entry, timestamps: bool) -> Result<(), Failure> {
    if context.is_json() {
        let line = Line {
            time: entry.stamp.clone(),
            stream: entry.stream.as_str().to_owned(),
            text: String::from_utf8_lossy(&entry.text).into_owned(),
            partial: entry.partial,
        };
        serde_json::to_writer(&mut *context.out, &line).map_err(std::io::Error::from)?;
        writeln!(context.out)?;
        return Ok(());
    }
    if timestamps {
        write!(context.out, "{} {} ", entry.stamp, entry.stream.as_str())?;
    }
    context.out.write_all(&entry.text)?;
    if !entry.partial {
        writeln!(context.out)?;
    }
    Ok(())
}

/// The log directory of the workload's instance that was written last.
fn newest(logs: &std::path::Path, name: &Name) -> Result<Option<PathBuf>, Failure> {
    let entries = match std::fs::read_dir(logs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let message = format!("failed to read `{}`: {error}", logs.display());
            return Err(Failure::new(Exit::Environment, message));
        }
    };
    let is_of = |id: &InstanceId| {
        // `<name>-<10 hex>`, with doubled `-` of the name written once.
        let prefix = InstanceId::new(name, &crate::workload::Revision::recorded("")).to_string();
        id.as_str()
            .strip_prefix(&prefix)
            .is_some_and(|rest| rest.len() == 10 && rest.bytes().all(|c| c.is_ascii_hexdigit()))
    };
    let changed = |entry: &std::fs::DirEntry| {
        let file = entry.path().join(crate::log::FILE);
        std::fs::metadata(file).or_else(|_| entry.metadata()).and_then(|it| it.modified()).ok()
    };
    Ok(entries
        .flatten()
        .filter(|it| {
            it.file_name().to_str().and_then(|it| it.parse().ok()).is_some_and(|id| is_of(&id))
        })
        .max_by_key(changed)
        .map(|it| it.path()))
}
