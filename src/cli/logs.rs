//! `evenkeel logs`: what a workload printed, from its files; needs no containerd.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use super::since::Since;
use super::{Context, Failure, connect};
use crate::log::{Entry, Follower, Reader};
use crate::status::Exit;
use crate::workload::{InstanceId, Name};

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// Workload
    name: Name,
    /// Go on with what is printed from now on, also by its next runs and instances
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// Only what was printed since: a while, 10m or 1h30m, or a time, 2026-01-31T10:00:00Z
    #[arg(long, value_name = "DURATION|TIME")]
    since: Option<Since>,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
}

/// How often a follower looks for new lines: quick enough for a person, next to nothing for the box.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// Looks for new lines between two looks for new instances.
const LOOKS: u32 = 5;

pub(super) fn logs(context: &mut Context<'_>, args: &LogsArgs) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let logs = settings.log_directory();
    let directories = newest_first(&logs, &args.name)?;
    let Some(directory) = directories.first() else {
        let message = format!(
            "there is no log of `{}`: no workload is called so, it has not run yet, or it has `log: {{driver: none}}`",
            args.name
        );
        return Err(Failure::new(Exit::Usage, message));
    };
    let failed = |error: std::io::Error| {
        Failure::new(
            Exit::Environment,
            format_args!("failed to read the log of `{}`: {error}", args.name),
        )
    };
    let since = args.since.map(|it| it.before(jiff::Timestamp::now()));
    let mut reader = Reader::open(directory, args.tail, since).map_err(failed)?;
    while let Some(entry) = reader.read().map_err(failed)? {
        write(context, &entry, args.timestamps)?;
    }
    context.out.flush()?;
    if !args.follow {
        return Ok(Exit::Success);
    }
    let mut follower = Follower::new(directory.clone(), reader, &directories).map_err(failed)?;
    connect::block_on(async {
        for look in 1_u32.. {
            while let Some(entry) = follower.read().map_err(failed)? {
                write(context, &entry, args.timestamps)?;
            }
            context.out.flush()?;
            // A silent log would keep us for ever after the last reader has gone.
            if super::is_stdout_closed() {
                break;
            }
            if look % LOOKS == 0 {
                let mut present = newest_first(&logs, &args.name)?;
                present.reverse();
                follower.look(&present).map_err(failed)?;
            }
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        }
        Ok(Exit::Success)
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

pub(super) fn write(
    context: &mut Context<'_>,
    entry: &Entry,
    timestamps: bool,
) -> Result<(), Failure> {
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

/// The log directories of the workload's instances, the one that was written last first.
fn newest_first(logs: &std::path::Path, name: &Name) -> Result<Vec<PathBuf>, Failure> {
    let entries = match std::fs::read_dir(logs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
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
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|it| {
            it.file_name().to_str().and_then(|it| it.parse().ok()).is_some_and(|id| is_of(&id))
        })
        .map(|it| (changed(&it), it.path()))
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|it| it.1).collect())
}
