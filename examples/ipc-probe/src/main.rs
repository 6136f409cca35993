//! Shows from inside a container which IPC objects it shares, and makes some for others to see.
//!
//! Small text output, `key=value` on each line, for people in the demo and for tests. Exit code 0 is success, 1 a
//! failure or something asked for that is not there, 2 a usage error.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

mod mqueue;
mod report;
mod signal;
mod sysv;

const USAGE: &str = "\
usage: ipc-probe COMMAND
  producer             write a counter to /dev/shm and to a System V segment every second until SIGTERM
  consumer [ROUNDS]    print what the producer wrote every second; after ROUNDS, 0 if both were seen last
  report               print what this container has and shares
  sysv-put KEY TEXT    make a System V segment that stays
  sysv-get KEY         print the text of a System V segment
  sysv-rm KEY          remove a System V segment
  mq-put NAME          make a POSIX message queue that stays
  mq-list              print the names of all POSIX message queues
  mq-rm NAME           remove a POSIX message queue
  trap SECONDS [CODE]  wait for SIGTERM, take SECONDS to end, then exit with CODE
  exit CODE            exit with CODE
  spam BYTES           write that many bytes to stdout at full speed
  sleep                wait for SIGTERM";

/// Where the producer writes for its consumers.
const DEMO_FILE: &str = "/dev/shm/evenkeel-demo";

/// `evkl` in ASCII.
const DEMO_KEY: i32 = 0x6576_6b6c;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // From the first moment on: as PID 1 of a container, an unhandled SIGTERM would be ignored.
    let signals = signal::Signals::hold();
    match run(&arguments, &signals) {
        Ok(code) => ExitCode::from(code),
        Err(Failure::Usage) => {
            complain(USAGE);
            ExitCode::from(2)
        }
        Err(Failure::Io(error)) => {
            complain(&format!("ipc-probe: {}: {error}", arguments.join(" ")));
            ExitCode::from(1)
        }
    }
}

enum Failure {
    Usage,
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn run(arguments: &[&str], signals: &signal::Signals) -> Result<u8, Failure> {
    match *arguments {
        ["producer"] => producer(signals)?,
        ["consumer"] => return Ok(consumer(signals, u64::MAX)),
        ["consumer", rounds] => return Ok(consumer(signals, number(rounds)?)),
        ["report"] => report::report(),
        ["sysv-put", key, text] => sysv::Segment::create(sysv_key(key)?)?.put(text)?,
        ["sysv-get", key] => return Ok(found("text", sysv::read(sysv_key(key)?)?.as_deref())),
        ["sysv-rm", key] => sysv::remove(sysv_key(key)?)?,
        ["mq-put", name] => mqueue::create(name)?,
        ["mq-list"] => {
            return Ok(found("queues", mqueue::list()?.map(|names| names.join(",")).as_deref()));
        }
        ["mq-rm", name] => mqueue::remove(name)?,
        ["trap", seconds] => trap(signals, number(seconds)?),
        ["trap", seconds, code] => {
            let code = number(code)?;
            trap(signals, number(seconds)?);
            return Ok(code);
        }
        ["exit", code] => return number(code),
        ["spam", bytes] => spam(number(bytes)?)?,
        ["sleep"] => while !signals.arrives_within(Duration::from_hours(1)) {},
        _ => return Err(Failure::Usage),
    }
    Ok(0)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|_| Failure::Usage)
}

/// A key in decimal or, with `0x`, hexadecimal.
fn sysv_key(text: &str) -> Result<i32, Failure> {
    match text.strip_prefix("0x") {
        Some(hex) => i32::from_str_radix(hex, 16).map_err(|_| Failure::Usage),
        None => number(text),
    }
}

/// Prints one line. A reader that went away is no reason to end: the container outlives its log.
fn say(key: &str, value: impl std::fmt::Display) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{key}={value}").and_then(|()| stdout.flush());
}

fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints what was found, or `absent`, and says so in the exit code.
fn found(key: &str, value: Option<&str>) -> u8 {
    let code = u8::from(value.is_none());
    say(key, value.unwrap_or("absent"));
    code
}

/// Writes to both kinds of shared memory until a signal comes, then takes its objects away.
fn producer(signals: &signal::Signals) -> io::Result<()> {
    say("shm_file", DEMO_FILE);
    say("sysv_key", format_args!("{DEMO_KEY:#x}"));
    let mut segment = sysv::Segment::create(DEMO_KEY)?;
    let mut round = 0_u64;
    let result = loop {
        round += 1;
        let text = format!("message {round}");
        let written = write_whole(Path::new(DEMO_FILE), &text).and_then(|()| segment.put(&text));
        if written.is_err() {
            break written;
        }
        say("produced", text);
        if signals.arrives_within(Duration::from_secs(1)) {
            break Ok(());
        }
    };
    let cleaned = std::fs::remove_file(DEMO_FILE).and(sysv::remove(DEMO_KEY));
    say("end", "objects removed");
    result.and(cleaned)
}

/// A reader sees the old text or the new one, never a part.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}

fn consumer(signals: &signal::Signals, rounds: u64) -> u8 {
    let mut seen_both = false;
    for round in 0..rounds {
        if round > 0 && signals.arrives_within(Duration::from_secs(1)) {
            return 0;
        }
        let shm = std::fs::read_to_string(DEMO_FILE).ok();
        let sysv = sysv::read(DEMO_KEY).ok().flatten();
        seen_both = shm.is_some() && sysv.is_some();
        found("shm", shm.as_deref());
        found("sysv", sysv.as_deref());
    }
    u8::from(!seen_both)
}

#[expect(clippy::disallowed_methods, reason = "taking its time is what this command is for")]
fn trap(signals: &signal::Signals, seconds: u64) {
    say("trap", "ready");
    while !signals.arrives_within(Duration::from_hours(1)) {}
    say("trap", "ending");
    // Further signals change nothing.
    std::thread::sleep(Duration::from_secs(seconds));
}

fn spam(bytes: u64) -> io::Result<()> {
    // Lines of 64 bytes, so that tools which read lines can follow.
    let line = format!("{:-<63}\n", "spam ");
    let chunk = line.repeat(1024).into_bytes();
    let mut stdout = io::stdout().lock();
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    while left > 0 {
        let part = left.min(chunk.len());
        stdout.write_all(&chunk[..part])?;
        left -= part;
    }
    stdout.flush()
}
