//! One call of one plugin: what it is given, for how long, and what it says.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::json::quoted;
use super::{Error, json};
use crate::host::group::Group;

/// A result has some hundred bytes, and thousands where somebody collects routes.
const OUTPUT_LIMIT: u64 = 1 << 20;

/// What is kept of a plugin's own log, for the case that it says nothing else.
const LOG_LIMIT: u64 = 16 << 10;

/// How long a killed process is waited for. One that hangs in the kernel does not go before that lets it.
const REAPING: Duration = Duration::from_secs(5);

/// How much is told of what is not JSON.
const GARBAGE_SHOWN: usize = 200;

/// How much is told of a plugin's own words.
const MESSAGE_SHOWN: usize = 1000;

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Check,
    Del,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
        }
    }
}

/// Who was asked what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub verb: Verb,
    pub plugin: String,
    pub network: String,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, plugin, network } = self;
        write!(f, "the plugin `{plugin}` of network `{network}`, called for {},", verb.as_str())
    }
}

/// What a plugin has left behind.
struct Said {
    status: ExitStatus,
    output: Vec<u8>,
    log: Vec<u8>,
}

/// Runs a plugin to its end and returns what it printed.
///
/// It has ended when it is gone and nobody holds its outputs any more. After the deadline, and when it prints without
/// end, its whole process group is killed; so it is when this is dropped, and then nobody waits for it. A process that
/// the plugin has given a group of its own is not reached by that.
pub(super) async fn run(
    call: &Call,
    program: &Path,
    environment: &[(&str, OsString)],
    input: &[u8],
    deadline: Duration,
) -> Result<String, Error> {
    let spawned = Command::new(program)
        .env_clear()
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|cause| Error::PluginUnusable {
        call: call.clone(),
        program: program.to_owned(),
        cause,
    })?;
    // After the child, so that it is dropped before: while nobody has waited for the child, its number is nobody else's.
    let group = Group::of(child.id());
    let said = match tokio::time::timeout(deadline, talk(&mut child, input)).await {
        Ok(Ok(said)) => {
            group.over();
            said
        }
        Ok(Err(what)) => {
            end(group, &mut child).await;
            return Err(Error::PluginGarbage { call: call.clone(), what });
        }
        Err(_) => {
            end(group, &mut child).await;
            return Err(Error::PluginTimeout { call: call.clone(), after: deadline });
        }
    };
    judge(call, &said)
}

/// Gives it its input and takes its outputs, all at the same time: it may do them in any order.
async fn talk(child: &mut Child, input: &[u8]) -> Result<Said, String> {
    let piped = "it was started with pipes";
    let mut stdin = child.stdin.take().expect(piped);
    let mut stdout = child.stdout.take().expect(piped);
    let mut stderr = child.stderr.take().expect(piped);
    let write = async move {
        // One that does not read it says by itself what it thinks of that.
        stdin.write_all(input).await.ok();
        Ok(())
    };
    let output = async {
        let output = take(&mut stdout, OUTPUT_LIMIT + 1).await?;
        if u64::try_from(output.len()).is_ok_and(|it| it <= OUTPUT_LIMIT) {
            Ok(output)
        } else {
            Err(format!("printed more than {OUTPUT_LIMIT} bytes"))
        }
    };
    let log = async {
        let log = take(&mut stderr, LOG_LIMIT).await?;
        // The rest is read all the same: who writes a log does not expect to be stopped by that.
        tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await.map_err(unreadable)?;
        Ok(log)
    };
    let ((), output, log) = tokio::try_join!(write, output, log)?;
    let status = child.wait().await.map_err(|error| format!("cannot be waited for: {error}"))?;
    Ok(Said { status, output, log })
}

/// What comes until the end, or up to the limit.
async fn take(from: &mut (impl AsyncRead + Unpin), limit: u64) -> Result<Vec<u8>, String> {
    let mut taken = Vec::new();
    from.take(limit).read_to_end(&mut taken).await.map_err(unreadable)?;
    Ok(taken)
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` has it")]
fn unreadable(error: std::io::Error) -> String {
    format!("cannot be read from: {error}")
}

async fn end(group: Group, child: &mut Child) {
    drop(group);
    // If it takes longer, the runtime goes on waiting for it when the child is dropped.
    tokio::time::timeout(REAPING, child.wait()).await.ok();
}

/// What it printed, unless that or the way it ended says that it failed.
fn judge(call: &Call, said: &Said) -> Result<String, Error> {
    let output = String::from_utf8_lossy(&said.output);
    if said.status.success() {
        return match output {
            std::borrow::Cow::Borrowed(text) => Ok(text.to_owned()),
            std::borrow::Cow::Owned(text) => Err(Error::PluginGarbage {
                call: call.clone(),
                what: format!("printed what is not UTF-8: {}", quoted(&text, GARBAGE_SHOWN)),
            }),
        };
    }
    if output.trim().is_empty() {
        let log = quoted(&String::from_utf8_lossy(&said.log), MESSAGE_SHOWN);
        let log = if log.is_empty() { "nothing".to_owned() } else { format!("`{log}`") };
        let message = format!("{}, and says {log} about that", said.status);
        return Err(Error::Failed { call: call.clone(), code: None, message });
    }
    match json::check_depth(&output)
        .and_then(|()| serde_json::from_str::<Fault>(&output).map_err(|error| error.to_string()))
    {
        Ok(fault) => Err(fault.into_error(call)),
        Err(_) => Err(garbage(call, &output)),
    }
}

/// Printed where a result, or an error, was due.
pub(super) fn garbage(call: &Call, output: &str) -> Error {
    let what = match quoted(output, GARBAGE_SHOWN) {
        it if it.is_empty() => "printed nothing".to_owned(),
        it => format!("printed `{it}`"),
    };
    Error::PluginGarbage { call: call.clone(), what }
}

/// How a plugin says that it failed.
#[derive(Deserialize)]
struct Fault {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Fault {
    fn into_error(self, call: &Call) -> Error {
        let Self { code, msg, details } = self;
        let parts = [msg.as_str(), details.as_str()];
        let parts: Vec<&str> = parts.into_iter().filter(|it| !it.trim().is_empty()).collect();
        let message = match quoted(&parts.join("; "), MESSAGE_SHOWN) {
            it if it.is_empty() => format!("it gives the number {code} and no reason"),
            it => it,
        };
        let call = call.clone();
        // There is no number for these. The first are the words of host-local, the second those that Go has for a
        // program that is in no directory of PATH, and the third those of portmap when it is to take ports back.
        if message.contains("no IP addresses available in range set") {
            return Error::NoAddresses { call, message };
        }
        let tools = ["executable file not found in $PATH", "neither iptables nor ip6tables"];
        if tools.iter().any(|it| message.contains(it)) {
            return Error::ToolMissing { call, message };
        }
        match code {
            1 => Error::VersionRefused { call, message },
            2 | 6 | 7 => Error::ConfigRefused { call, message },
            11 | 50 | 51 => Error::TryLater { call, message },
            _ => Error::Failed { call, code: Some(code), message },
        }
    }
}
