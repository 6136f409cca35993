//! `evenkeel exec`: a process beside a workload's program, with this terminal or these pipes.
//!
//! The process belongs to this command: it is deleted when the command ends, and a controller or a later `exec` deletes
//! those of commands that were killed. A file says whose it is: while this command lives, no change of a manifest ends
//! the workload under it, but what a person asks for does.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use rustix::fs::{Mode, OFlags};
use rustix::termios::{OptionalActions, Termios};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::connect::{self, Connection};
use super::{Context, Failure};
use crate::observed::Task;
use crate::refusal::classify;
use crate::rundir::{ExecOwner, Holder, RunDirectory};
use crate::runtime::{Error, ErrorKind, Exec, Runtime as _, Streams, Tell};
use crate::status::{Chain, Exit};
use crate::workload::{AbsolutePath, InstanceId, Name, Signal, User};

/// One question after the end of the process; it is asked again and again.
const WAIT: Duration = Duration::from_mins(10);

/// How often it is asked again, with [`RETRY`] between, how a task is whose shim does not answer.
const SILENCES: u32 = 20;

/// Between two questions to a containerd that does not answer; the process does not need it.
const RETRY: Duration = Duration::from_millis(500);

/// How long containerd may stay away once the process has closed its output, or is to be deleted.
const AWAY_LIMIT: Duration = Duration::from_secs(30);

/// After the end of the process its output comes within that, unless a process that it left behind keeps it open.
const SILENCE: Duration = Duration::from_secs(3);

/// After a signal that was passed on, the process has that long to end before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// A kill takes effect at once; without an end within that it is sent again.
const KILL_PAUSE: Duration = Duration::from_secs(5);

/// Kills after which nobody waits any longer: the kernel holds the process, or its shim does not answer.
const KILLS: u32 = 2;

/// How long a word to the process may take: everything else waits for it.
const WORD: Duration = Duration::from_secs(5);

/// The ends of three streams, each told once.
const EVENTS: usize = 3;

/// What is copied at once.
const BUFFER: usize = 32 << 10;

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Pass stdin on; without it the process reads nothing
    #[arg(short, long)]
    interactive: bool,
    /// Give the process a terminal, of this one's size
    #[arg(short, long)]
    tty: bool,
    /// User and group in numbers; the container's when absent
    #[arg(short, long, value_name = "UID[:GID]", value_parser = user)]
    user: Option<User>,
    /// Working directory; the container's when absent
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<AbsolutePath>,
    /// Variable of the environment, besides the container's; repeatable
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Workload
    name: Name,
    /// Command and its arguments, after `--`
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn user(text: &str) -> Result<User, String> {
    let number = |it: &str| {
        let plain = !it.is_empty() && it.bytes().all(|c| c.is_ascii_digit());
        it.parse::<u32>().ok().filter(|n| plain && i32::try_from(*n).is_ok())
    };
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    match (number(uid), number(gid)) {
        (Some(uid), Some(gid)) => Ok(User { uid, gid, supplemental_groups: Vec::new() }),
        _ => Err(format!("`{text}` is not a user in numbers, such as 1000 or 1000:1000")),
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not a variable: write NAME=VALUE")),
    }
}

pub(super) fn exec(context: &mut Context<'_>, args: ExecArgs) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let run = connect::run_directory(&settings)?;
    let ExecArgs { interactive, tty, user, workdir, mut env, name, command } = args;
    if tty && interactive && !io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "stdin is no terminal; leave `--tty` out"));
    }
    let terminal = tty.then(window);
    if tty && !env.iter().any(|it| it.0 == "TERM") {
        let term = std::env::var("TERM").ok().filter(|it| !it.is_empty());
        env.push(("TERM".to_owned(), term.unwrap_or_else(|| "xterm".to_owned())));
    }
    let exec =
        Exec { args: command, env, working_dir: workdir.map(|it| it.to_string()), user, terminal };
    connect::block_on(async {
        let connection = connect::connect(&settings, connect::Start::Nothing, false).await?;
        let id = running(&connection, &name).await?;
        sweep(&connection).await;
        let session = Session::new(&run, id, interactive, tty)?;
        let result = session.run(&connection, &exec).await;
        session.end(&connection).await;
        result
    })?
}

/// Columns and rows of this terminal.
fn window() -> (u16, u16) {
    rustix::termios::tcgetwinsize(io::stdin())
        .or_else(|_| rustix::termios::tcgetwinsize(io::stdout()))
        .map_or((80, 24), |it| (it.ws_col, it.ws_row))
}

/// The instance of a workload that runs now.
pub(super) async fn running(connection: &Connection, name: &Name) -> Result<InstanceId, Failure> {
    let unknown = || {
        let message = format!("no workload is called `{name}`; `evenkeel status` lists them");
        Failure::new(Exit::Usage, message)
    };
    if connection.is_absent {
        return Err(unknown());
    }
    let run = &connection.edge.run;
    // A command that was killed while its process started keeps the shim from answering.
    let dead = run.execs().into_iter().filter(|(_, owner)| !owner.holder.is_alive());
    let _readers: Vec<_> = dead.map(|(key, _)| run.read_exec(&key)).collect();
    let mut tries = 0;
    loop {
        let objects = connection.edge.runtime.observe(&std::collections::BTreeSet::new()).await;
        let objects = objects.map_err(|error| Failure::environment(&error))?;
        let own: Vec<_> = objects.containers.into_iter().filter(|it| it.name == *name).collect();
        if own.is_empty() {
            return Err(unknown());
        }
        if let Some(it) = own.iter().find(|it| matches!(it.task, Task::Running { .. })) {
            return Ok(it.id.clone());
        }
        // A shim that is slow to answer says nothing about its container.
        let is_silent = own.iter().any(|it| it.task == Task::Unknown);
        if !is_silent || tries >= SILENCES {
            let why = if is_silent {
                format!("containerd does not say whether `{name}` runs")
            } else {
                format!("`{name}` does not run")
            };
            let message = format!("{why}; `evenkeel explain {name}` says why");
            return Err(Failure::new(Exit::Environment, message));
        }
        tries += 1;
        tokio::time::sleep(RETRY).await;
    }
}

/// Deletes the processes of commands that were killed, where no controller does. What does not succeed is tried by the
/// next one.
async fn sweep(connection: &Connection) {
    let run = &connection.edge.run;
    run.sweep_execs();
    for (key, owner) in run.execs() {
        if !owner.holder.is_alive()
            && connection.edge.runtime.delete_exec(&owner.instance, &key).await.is_ok()
        {
            drop(run.remove_exec(&key));
        }
    }
}

/// A process, its FIFOs, and this side's ends of them.
struct Session {
    id: InstanceId,
    key: String,
    /// Removed with the session.
    directory: tempfile::TempDir,
    streams: Streams,
    interactive: bool,
    tty: bool,
}

/// What happens while the process runs.
enum Event {
    /// No more input comes from here.
    InputEnded,
    /// One of its outputs was closed, or nobody reads ours any more.
    OutputEnded(io::Result<()>),
}

impl Session {
    fn new(
        run: &RunDirectory,
        id: InstanceId,
        interactive: bool,
        tty: bool,
    ) -> Result<Self, Failure> {
        let failed = |what: &Path, error: io::Error| {
            let message = format!("failed to make `{}`: {error}", what.display());
            Failure::new(Exit::Environment, message)
        };
        let holder = Holder::this().map_err(|error| failed(&run.exec_directory(), error))?;
        let directory = run.make_exec(&holder).map_err(|error| Failure::environment(&error))?;
        let name = directory.path().file_name().map(OsString::from).unwrap_or_default();
        let key = name.into_string().unwrap_or_default();
        run.set_exec_owner(&key, &ExecOwner { instance: id.clone(), holder })
            .map_err(|error| Failure::environment(&error))?;
        let fifo = |name: &str| {
            let path = directory.path().join(name);
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR)
                .map(|()| path.clone())
                .map_err(|error| failed(&path, error.into()))
        };
        let streams = Streams {
            stdin: interactive.then(|| fifo("stdin")).transpose()?,
            stdout: Some(fifo("stdout")?),
            stderr: (!tty).then(|| fifo("stderr")).transpose()?,
        };
        Ok(Self { id, key, directory, streams, interactive, tty })
    }

    async fn run(&self, connection: &Connection, exec: &Exec) -> Result<Exit, Failure> {
        let runtime = &connection.edge.runtime;
        let open = |path: &Option<PathBuf>, flags: OFlags| match path {
            None => Ok(None),
            Some(path) => rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
                .map(|it| Some(File::from(it)))
                .map_err(|error| {
                    let message = format!("failed to open `{}`: {error}", path.display());
                    Failure::new(Exit::Environment, message)
                }),
        };
        // Not waiting: the other side opens them when the process starts, and waits for us to have done so.
        let reading = OFlags::RDONLY | OFlags::NONBLOCK;
        let stdout = open(&self.streams.stdout, reading)?;
        let stderr = open(&self.streams.stderr, reading)?;
        // Both ways, since nobody reads it yet.
        let stdin = open(&self.streams.stdin, OFlags::RDWR)?;
        // Listened to before there is anything that they would leave behind.
        let mut signals = Signals::new()?;
        runtime
            .exec(&self.id, &self.key, exec, &self.streams)
            .await
            .map_err(|error| refused(&error))?;
        let raw = if self.tty && self.interactive { Raw::enter() } else { None };
        let (events, mut happens) = mpsc::channel(EVENTS);
        let progress = Arc::new(Progress::default());
        let mut open_outputs = 0_u32;
        let outputs = [(stdout, false), (stderr, true)];
        for (file, is_error) in outputs.into_iter().filter_map(|(it, e)| Some((it?, e))) {
            let (events, progress) = (events.clone(), Arc::clone(&progress));
            rustix::fs::fcntl_setfl(&file, OFlags::empty()).map_err(io::Error::from)?;
            open_outputs += 1;
            std::thread::spawn(move || {
                let ended = print(file, is_error, &progress);
                drop(events.blocking_send(Event::OutputEnded(ended)));
            });
        }
        if let Some(file) = stdin {
            let events = events.clone();
            // It may wait for a key for ever, and is left behind with the process.
            std::thread::spawn(move || {
                feed(file);
                drop(events.blocking_send(Event::InputEnded));
            });
        }
        let is_closed = Cell::new(false);
        let mut ended = std::pin::pin!(self.ended(connection, &is_closed));
        let mut code = None;
        let mut seen = 0;
        let mut kill_at: Option<tokio::time::Instant> = None;
        let mut kills = 0;
        let mut input_ended = std::pin::pin!(self.end_input(connection));
        let mut has_no_input = false;
        // Every branch loses nothing when it is dropped: channels, signals, and one future that is kept.
        while code.is_none() || open_outputs > 0 {
            let far = tokio::time::Instant::now() + WAIT;
            tokio::select! {
                end = &mut ended, if code.is_none() => code = Some(end?),
                Some(event) = happens.recv() => match event {
                    Event::InputEnded => has_no_input = true,
                    Event::OutputEnded(Ok(())) => {
                        open_outputs -= 1;
                        is_closed.set(open_outputs == 0);
                    }
                    Event::OutputEnded(Err(error)) => return Err(error.into()),
                },
                () = &mut input_ended, if has_no_input => has_no_input = false,
                signal = signals.next() => match signal {
                    None if self.tty => {
                        let (columns, rows) = window();
                        self.tell(connection, Tell::Resize(columns, rows)).await;
                    }
                    None => {}
                    Some(signal) => {
                        // The second one is meant.
                        let signal = if kill_at.is_some() { Signal::KILL } else { signal };
                        self.tell(connection, Tell::Signal(signal)).await;
                        kill_at.get_or_insert(tokio::time::Instant::now() + GRACE);
                    }
                },
                () = tokio::time::sleep_until(kill_at.unwrap_or(far)), if kill_at.is_some() && code.is_none() => {
                    if kills == KILLS {
                        let message = "the process was killed and does not end; a controller or the next `evenkeel \
                                       exec` tries again";
                        return Err(Failure::new(Exit::Environment, message));
                    }
                    kills += 1;
                    self.tell(connection, Tell::Signal(Signal::KILL)).await;
                    kill_at = Some(tokio::time::Instant::now() + KILL_PAUSE);
                }
                () = tokio::time::sleep(SILENCE), if code.is_some() => {
                    let now = progress.reads.load(Ordering::Relaxed);
                    // A slow reader of ours keeps us from reading on.
                    if now == seen && progress.writing.load(Ordering::Relaxed) == 0 {
                        break;
                    }
                    seen = now;
                }
            }
        }
        drop(raw);
        let code = code.unwrap_or_default();
        Ok(Exit::Process(u8::try_from(code).unwrap_or(u8::MAX)))
    }

    /// A process that is gone needs to be told nothing, and one that cannot be reached is told again.
    async fn tell(&self, connection: &Connection, tell: Tell) {
        let told = connection.edge.runtime.tell_exec(&self.id, &self.key, tell);
        drop(tokio::time::timeout(WORD, told).await);
    }

    /// Tells the process that no more input comes: without it, it might wait for ever. containerd may go and come back
    /// meanwhile.
    async fn end_input(&self, connection: &Connection) {
        let runtime = &connection.edge.runtime;
        while let Err(error) = runtime.tell_exec(&self.id, &self.key, Tell::EndOfInput).await
            && error.is_unreachable()
        {
            tokio::time::sleep(RETRY).await;
        }
    }

    /// How the process ended. containerd may go and come back meanwhile; once the process has no output any more, it
    /// may well be gone, and is not waited for without end.
    async fn ended(&self, connection: &Connection, is_closed: &Cell<bool>) -> Result<u32, Failure> {
        let runtime = &connection.edge.runtime;
        let mut away = Duration::ZERO;
        loop {
            match runtime.wait_exec(&self.id, &self.key, WAIT).await {
                Ok(Some(code)) => return Ok(code),
                Ok(None) => away = Duration::ZERO,
                Err(error) if error.is_unreachable() && away < AWAY_LIMIT => {
                    tokio::time::sleep(RETRY).await;
                    if is_closed.get() {
                        away += RETRY;
                    }
                }
                Err(error) => return Err(Failure::environment(&error)),
            }
        }
    }

    /// Deletes the process, and then its FIFOs. When that cannot be done now, the next `exec` does it.
    async fn end(self, connection: &Connection) {
        let runtime = &connection.edge.runtime;
        let delete = async {
            loop {
                match runtime.delete_exec(&self.id, &self.key).await {
                    Err(error) if error.is_unreachable() => tokio::time::sleep(RETRY).await,
                    other => return other,
                }
            }
        };
        match tokio::time::timeout(AWAY_LIMIT, delete).await {
            Ok(Ok(())) => drop(self.directory.close()),
            Ok(Err(_)) | Err(_) => drop(self.directory.keep()),
        }
    }
}

/// What to say of a process that could not be started: a program that is not there has a shell's code for that.
fn refused(error: &Error) -> Failure {
    // The runtime's own text, without ours in front of it.
    let cause = error.cause.as_ref().map(ToString::to_string).unwrap_or_default();
    let exit = match error.kind {
        ErrorKind::Unreachable | ErrorKind::Missing | ErrorKind::Conflict => Exit::Environment,
        ErrorKind::Refused => match classify(&cause).name {
            "command-not-executable" => Exit::Process(126),
            "command-not-found" => Exit::Process(127),
            _ => Exit::Environment,
        },
    };
    Failure::new(exit, Chain(error))
}

/// How far the output has come.
#[derive(Debug, Default)]
struct Progress {
    reads: AtomicU64,
    /// Threads that wait for somebody to read what they write.
    writing: AtomicU64,
}

/// Copies to stdout or stderr until the end of the file.
fn print(mut file: File, is_error: bool, progress: &Progress) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        progress.writing.fetch_add(1, Ordering::Relaxed);
        // Past the buffer of lines: a prompt has no line end.
        if is_error {
            io::stderr().write_all(&buffer[..read])?;
        } else {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&buffer[..read])?;
            stdout.flush()?;
        }
        progress.reads.fetch_add(1, Ordering::Relaxed);
        progress.writing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Copies stdin until its end, or until nobody takes it.
fn feed(mut file: File) {
    let mut buffer = vec![0; BUFFER];
    loop {
        // Past the standard library's buffer, which would keep what comes after.
        let read = match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => return,
            Ok(read) => read,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        if file.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}

/// A terminal that passes every key on; as before when this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Option<Self> {
        let before = rustix::termios::tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no care.
        rustix::termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.before).ok();
    }
}

/// What is sent to this command and meant for the process.
struct Signals {
    ends: [(tokio::signal::unix::Signal, Signal); 4],
    window: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind: SignalKind, name: &str| -> Result<_, Failure> {
            let own = name.parse().map_err(|error| Failure::new(Exit::Environment, error))?;
            Ok((signal(kind)?, own))
        };
        Ok(Self {
            ends: [
                listen(SignalKind::interrupt(), "SIGINT")?,
                listen(SignalKind::terminate(), "SIGTERM")?,
                listen(SignalKind::hangup(), "SIGHUP")?,
                listen(SignalKind::quit(), "SIGQUIT")?,
            ],
            window: signal(SignalKind::window_change())?,
        })
    }

    /// The next signal for the process; `None`: the window has another size.
    async fn next(&mut self) -> Option<Signal> {
        let [a, b, c, d] = &mut self.ends;
        tokio::select! {
            _ = a.0.recv() => Some(a.1),
            _ = b.0.recv() => Some(b.1),
            _ = c.0.recv() => Some(c.1),
            _ = d.0.recv() => Some(d.1),
            _ = self.window.recv() => None,
        }
    }
}
