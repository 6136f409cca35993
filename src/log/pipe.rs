//! The hidden command: drains a container's two pipes into a [`Journal`](super::journal::Journal).
//!
//! Two threads, so that a disk that hangs does not hang the container: this one only reads the pipes, the other only
//! writes files, and between them is a queue of fixed size. There is no runtime, no argument parser and no logging
//! in this process: one of it runs for every container.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::time::ClockId;

use super::journal::{Journal, Moment};
use super::{Place, Stream};

/// The descriptors that the container runtime's shim hands over.
const STDOUT: i32 = 3;
const STDERR: i32 = 4;
/// The shim lets the container start when this one is closed.
const READY: i32 = 5;

/// What is read at once. Small, like all buffers here: a process of this is kept for every container.
const READ: usize = 16 << 10;

/// Memory for output that waits for the disk: some reads' worth, so that a busy disk
/// seldom makes the container wait.
const QUEUE: usize = 96 << 10;

/// How long a container is made to wait for a full queue before its output is dropped. A disk that is merely busy
/// makes room within that; one that hangs costs the container this once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Without output for that long, begun lines are written and memory is given back.
const QUIET: Duration = Duration::from_secs(1);

/// How long the end of a log waits for a disk that hangs.
const FAREWELL: Duration = Duration::from_secs(10);

/// Memory for the program's stack of the second thread; it calls nothing deep.
const STACK: usize = 128 << 10;

/// What a piece of the queue costs beside its bytes; a container that writes byte by byte must not fill our memory.
const PIECE: usize = 128;

/// Runs until both pipes are closed. `parameter` is what [`Place::target`] wrote.
///
/// Must be called before anything else in the process opens a file or starts a thread: the descriptors 3, 4 and 5
/// are taken as they were inherited.
///
/// # Errors
/// Only what keeps it from reading the pipes. A disk that cannot be written is no error: there may be room later.
pub fn pipe(parameter: &OsStr) -> io::Result<()> {
    let invalid =
        || io::Error::new(io::ErrorKind::InvalidInput, "expected <directory>:<bytes>:<files>");
    let place = Place::parse(parameter).ok_or_else(invalid)?;
    ignore_signals()?;
    let (stdout, stderr) = (take(STDOUT)?, take(STDERR)?);
    // The shim's working directory is the container's bundle; it could not be unmounted.
    std::env::set_current_dir("/")?;
    let mut journal = Journal::new(place);
    journal.prepare();
    close(READY)?;

    let queue = Queue::default();
    // Not scoped: at the end a thread that hangs in a write is left behind with the process.
    let queue: &'static Queue = Box::leak(Box::new(queue));
    thread::Builder::new().stack_size(STACK).spawn(move || write(queue, journal))?;
    drain(queue, stdout, stderr)?;
    queue.end();
    Ok(())
}

/// A runtime ends its log writers with SIGTERM before they have read everything, and a person's Ctrl-C is not meant
/// for them. Both threads have them blocked for good; SIGPIPE is ignored by the standard library.
fn ignore_signals() -> io::Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        signals.add(signal);
    }
    Ok(signals.thread_block()?)
}

/// Takes over an inherited pipe: opens it anew by its name in /proc, for only that makes an owned descriptor without
/// an unsafe promise, and closes the inherited one.
fn take(descriptor: i32) -> io::Result<File> {
    let nonblocking =
        i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = File::options()
        .read(true)
        .custom_flags(nonblocking)
        .open(format!("/proc/self/fd/{descriptor}"))
        .map_err(|error| {
            io::Error::new(error.kind(), format!("descriptor {descriptor}: {error}"))
        })?;
    close(descriptor)?;
    Ok(file)
}

fn close(descriptor: i32) -> io::Result<()> {
    Ok(nix::unistd::close(descriptor)?)
}

fn now() -> Moment {
    let uptime = rustix::time::clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(uptime.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(uptime.tv_nsec).unwrap_or_default();
    Moment { wall: jiff::Timestamp::now(), uptime: Duration::new(seconds, nanos) }
}

/// Reads both pipes until both are closed, and never waits for anything but them and, briefly, for the queue.
fn drain(queue: &Queue, stdout: File, stderr: File) -> io::Result<()> {
    let mut open = vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
    // Its pages are not touched before there is something to read.
    let mut buffer: Vec<u8> = Vec::with_capacity(READ);
    while !open.is_empty() {
        let mut waiting: Vec<PollFd<'_>> =
            open.iter().map(|(_, file)| PollFd::new(file, PollFlags::IN)).collect();
        match rustix::event::poll(&mut waiting, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = waiting.iter().map(|it| !it.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        open.retain(|(stream, file)| {
            if !ready.next().unwrap_or_default() {
                return true;
            }
            buffer.clear();
            match rustix::io::read(file, rustix::buffer::spare_capacity(&mut buffer)) {
                Ok(0) => false,
                Ok(_) => {
                    queue.offer(*stream, &buffer);
                    true
                }
                Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
            }
        });
    }
    Ok(())
}

/// What was read and is not written yet.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// Something was put in, or the end has come.
    filled: Condvar,
    /// Something was taken out, or all is written.
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<(Stream, Moment, Vec<u8>)>,
    bytes: usize,
    lost: u64,
    /// The disk has made no room within [`PATIENCE`]; nobody waits for it until it does.
    stuck: bool,
    ended: bool,
    written: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offer(&self, stream: Stream, bytes: &[u8]) {
        let mut state = self.state();
        let cost = PIECE + bytes.len();
        if state.bytes + cost > QUEUE && !state.stuck {
            let full = |state: &mut State| state.bytes + cost > QUEUE;
            let waited = self.emptied.wait_timeout_while(state, PATIENCE, full);
            let (again, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = again;
            state.stuck = timeout.timed_out();
        }
        if state.bytes + cost > QUEUE {
            state.lost += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            return;
        }
        state.bytes += cost;
        state.pieces.push_back((stream, now(), bytes.to_vec()));
        self.filled.notify_one();
    }

    /// Lets the writer finish, for a while.
    fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        self.filled.notify_one();
        drop(self.emptied.wait_timeout_while(state, FAREWELL, |state| !state.written));
    }
}

/// The second thread.
fn write(queue: &Queue, mut journal: Journal) {
    loop {
        let mut state = queue.state();
        let idle = |state: &mut State| state.pieces.is_empty() && !state.ended;
        if journal.is_unsettled() {
            let waited = queue.filled.wait_timeout_while(state, QUIET, idle);
            let (again, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = again;
            if timeout.timed_out() {
                drop(state);
                journal.settle(now());
                continue;
            }
        } else {
            state = queue.filled.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        }
        let Some((stream, moment, bytes)) = state.pieces.pop_front() else {
            // Ended, and nothing is left.
            let lost = std::mem::take(&mut state.lost);
            drop(state);
            journal.count_lost(lost, SLOW);
            journal.end(now());
            queue.state().written = true;
            queue.emptied.notify_one();
            return;
        };
        state.bytes -= PIECE + bytes.len();
        state.stuck = false;
        let last = state.pieces.is_empty();
        // What was lost came after everything that is in the queue.
        let lost = if last { std::mem::take(&mut state.lost) } else { 0 };
        drop(state);
        queue.emptied.notify_one();
        journal.accept(stream, moment, &bytes);
        if last {
            journal.commit(now());
            journal.count_lost(lost, SLOW);
        }
    }
}

const SLOW: &str = "the disk did not keep up";
