//! `evenkeel attach`: what a running workload prints from now on, until its present run ends, and then its exit code.
//!
//! Reads the log, so a slow reader here never makes the workload wait. There is no input: a workload's program reads
//! nothing, since no manifest can ask for it yet.

use std::time::Duration;

use clap::Args;

use super::connect::{self, Connection, Start};
use super::{Context, Failure, exec, logs};
use crate::host::linux;
use crate::log::{Entry, Reader, Stream};
use crate::observed::{EXIT_UNKNOWN, Run, Task};
use crate::runtime::{Container, Runtime as _};
use crate::status::Exit;
use crate::workload::{InstanceId, LogDriver, Name};

/// How often new lines are looked for: quick enough for a person, next to nothing for the box.
const INTERVAL: Duration = Duration::from_millis(100);

/// One question after the end of the run; it is asked again and again.
const WAIT: Duration = Duration::from_mins(10);

/// Between two questions to a containerd that does not answer; the workload does not need it.
const RETRY: Duration = Duration::from_millis(500);

/// How often it is asked again, with [`RETRY`] between, once the process is gone.
const QUESTIONS: u32 = 60;

/// Looks without a new line after which the last words of a run are taken for read: a busy box writes them late.
const SILENT_LOOKS: u32 = 10;

/// Looks for last words, at most.
const LAST_LOOKS: u32 = 100;

/// Lines between two looks at whose they are.
const BATCH: usize = 1000;

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// Workload
    name: Name,
}

/// The run that is looked at.
struct Present {
    id: InstanceId,
    name: Name,
    run: u64,
    pid: u32,
    /// Of its process; none: it ended just now.
    start_time: Option<u64>,
}

pub(super) fn attach(context: &mut Context<'_>, args: &AttachArgs) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    connect::run_directory(&settings)?;
    connect::block_on(async {
        let connection = connect::connect(&settings, Start::Nothing, false).await?;
        let id = exec::running(&connection, &args.name).await?;
        let log = settings.log_directory().join(id.as_str());
        // Before anything is asked: what is printed meanwhile is new.
        let reader =
            Reader::open(&log, Some(0), None).map_err(|error| failed(&args.name, &error))?;
        let present = present(&connection, &args.name, id).await?;
        follow(context, &connection, &present, reader).await
    })?
}

fn failed(name: &Name, error: &std::io::Error) -> Failure {
    let message = format!("failed to read the log of `{name}`: {error}");
    Failure::new(Exit::Environment, message)
}

async fn present(connection: &Connection, name: &Name, id: InstanceId) -> Result<Present, Failure> {
    let container = container(connection, &id).await?;
    let pid = container.as_ref().and_then(|it| it.task.pid());
    let (Some(container), Some(pid)) = (container, pid) else {
        let message = format!("`{name}` has just ended; `evenkeel explain {name}` says how");
        return Err(Failure::new(Exit::Environment, message));
    };
    let driver = container.workload.as_ref().and_then(|it| it.spec.log.driver);
    if driver.unwrap_or_default() == LogDriver::None {
        let message = format!("`{name}` has `log: {{driver: none}}`: nobody keeps what it prints");
        return Err(Failure::new(Exit::Environment, message));
    }
    let run = container.run.map_or(1, |it| it.n);
    let start_time = linux::start_time(pid);
    Ok(Present { id, name: name.clone(), run, pid, start_time })
}

/// The container object of an instance, as it is now.
async fn container(connection: &Connection, id: &InstanceId) -> Result<Option<Container>, Failure> {
    let objects = connection.edge.runtime.observe(&std::collections::BTreeSet::new()).await;
    let objects = objects.map_err(|error| Failure::environment(&error))?;
    Ok(objects.containers.into_iter().find(|it| it.id == *id))
}

/// Prints until the run ends.
async fn follow(
    context: &mut Context<'_>,
    connection: &Connection,
    present: &Present,
    mut reader: Reader,
) -> Result<Exit, Failure> {
    let ended = ended(connection, present);
    tokio::pin!(ended);
    let code = loop {
        // Nothing is lost when either is dropped: the future is kept, and a timer is made anew.
        tokio::select! {
            biased;
            code = &mut ended => break code?,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        // A run that ends right now may be followed by another, whose words are not to be taken for its own.
        let mut entries = batch(&mut reader, present)?;
        if !is_still_it(present) {
            entries = own(connection, present, entries).await?.0;
        }
        print(context, entries)?;
        // A silent workload would keep us for ever after the last reader has gone.
        if super::is_stdout_closed() {
            return Ok(Exit::Success);
        }
    };
    let mut silent = 0;
    for _ in 0..LAST_LOOKS {
        let entries = batch(&mut reader, present)?;
        silent = if entries.is_empty() { silent + 1 } else { 0 };
        let (entries, is_over) = own(connection, present, entries).await?;
        print(context, entries)?;
        if is_over || silent >= SILENT_LOOKS {
            break;
        }
        tokio::time::sleep(INTERVAL).await;
    }
    match code {
        Some(code) => Ok(Exit::Process(u8::try_from(code).unwrap_or(u8::MAX))),
        None => {
            let message = format!("`{}` has ended, and nobody saw how", present.name);
            Err(Failure::new(Exit::Environment, message))
        }
    }
}

fn is_still_it(present: &Present) -> bool {
    present.start_time.is_some() && linux::start_time(present.pid) == present.start_time
}

fn batch(reader: &mut Reader, present: &Present) -> Result<Vec<Entry>, Failure> {
    let mut entries = Vec::new();
    while entries.len() < BATCH {
        match reader.read().map_err(|error| failed(&present.name, &error))? {
            Some(entry) => entries.push(entry),
            None => break,
        }
    }
    Ok(entries)
}

/// Those that were printed before the next run of the instance began, and whether one has printed something. The
/// number of a run is written before it begins, so a look after the reading knows of each that can have printed.
async fn own(
    connection: &Connection,
    present: &Present,
    mut entries: Vec<Entry>,
) -> Result<(Vec<Entry>, bool), Failure> {
    if entries.is_empty() {
        return Ok((entries, false));
    }
    // Without containerd nothing is started either.
    let next = container(connection, &present.id).await.ok().flatten().and_then(|it| it.run);
    let next = next.filter(|it| it.n > present.run);
    let Some(began) = next.and_then(|it: Run| it.started.parse::<jiff::Timestamp>().ok()) else {
        return Ok((entries, false));
    };
    let before = entries.len();
    entries.retain(|it| it.stamp.parse::<jiff::Timestamp>().is_ok_and(|stamp| stamp < began));
    let is_over = entries.len() < before;
    Ok((entries, is_over))
}

/// Waits for the end of the run. Its code; `None`: nobody knows it.
async fn ended(connection: &Connection, present: &Present) -> Result<Option<u32>, Failure> {
    let runtime = &connection.edge.runtime;
    let mut questions = 0;
    loop {
        let answer = match runtime.wait(&present.id, WAIT).await {
            Ok(None) => continue,
            Ok(Some(task)) => code(connection, present, &task).await,
            Err(error) => Err(Failure::environment(&error)),
        };
        match answer {
            Ok(code) => return Ok(code),
            // containerd may go and come back; the process does not need it.
            Err(_) if is_still_it(present) => questions = 0,
            Err(failure) if questions >= QUESTIONS => return Err(failure),
            Err(_) => questions += 1,
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The code of the run that has ended. When somebody has tidied up, or another run has begun already, it stands on the
/// container.
async fn code(
    connection: &Connection,
    present: &Present,
    task: &Task,
) -> Result<Option<u32>, Failure> {
    let Some(container) = container(connection, &present.id).await? else { return Ok(None) };
    let is_present = container.run.as_ref().is_none_or(|it| it.n == present.run);
    if let (Task::Stopped { code, .. }, true) = (task, is_present) {
        return Ok(Some(*code));
    }
    let end = container.end.filter(|it| it.n == present.run && it.reason != EXIT_UNKNOWN);
    Ok(end.map(|it| it.code))
}

/// Each stream to ours; as JSON, both to stdout.
fn print(context: &mut Context<'_>, entries: Vec<Entry>) -> Result<(), Failure> {
    for entry in entries {
        match entry.stream {
            Stream::Stderr if !context.is_json() => {
                context.err.write_all(&entry.text)?;
                if !entry.partial {
                    writeln!(context.err)?;
                }
            }
            Stream::Stdout | Stream::Stderr => logs::write(context, &entry, false)?,
        }
    }
    context.out.flush()?;
    Ok(())
}
