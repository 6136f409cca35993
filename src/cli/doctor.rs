//! `evenkeel doctor`: whether this box can run workloads, and what stands in the way.
//!
//! Looks and asks, each within a deadline. It starts no engine, makes no file and tries nothing that leaves a trace.

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use super::connect::{self, Decided, Owner};
use super::{Context, Failure};
use crate::config::Settings;
use crate::engine::{Engine, Found};
use crate::host::linux::LinuxHost;
use crate::host::{Host as _, means, mountinfo};
use crate::observed::RuntimeProcess;
use crate::rundir::RunDirectory;
use crate::runtime::containerd::Containerd;
use crate::status::{Chain, Exit, Status};
use crate::workload::API_VERSION;

/// For a program that prints its version; a disk that sleeps takes seconds.
const PROGRAM_LIMIT: Duration = Duration::from_secs(10);

/// For all that is asked of containerd together.
const ENGINE_LIMIT: Duration = Duration::from_secs(20);

/// With less, the next image or log may find no room.
const SPACE: u64 = 256 << 20;

/// The run directory holds small files; the pages of shared memory are not in it.
const RUN_SPACE: u64 = 4 << 20;

/// With fewer inodes files cannot be made although there is room.
const INODES: u64 = 1000;

/// The oldest that is tested, in its first two numbers.
const OLDEST: (u32, u32) = (1, 6);

/// How far a status may be ahead of the clock before the clock was turned back.
const AHEAD: i64 = 5;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {}

/// What `doctor --output json` prints.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct CheckReport {
    api_version: String,
    /// `Checks`.
    kind: String,
    checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Check {
    /// A stable word.
    name: String,
    state: State,
    message: String,
    /// What to do; empty when there is nothing.
    advice: String,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// It works, or will, but something is to be known.
    Warning,
    /// Workloads cannot be run.
    Problem,
}

impl Check {
    #[expect(clippy::needless_pass_by_value, reason = "callers give fragments, formatted or not")]
    fn new(name: &str, state: State, message: impl ToString, advice: impl ToString) -> Self {
        let (message, advice) = (message.to_string(), advice.to_string());
        Self { name: name.to_owned(), state, message, advice }
    }

    fn ok(name: &str, message: impl ToString) -> Self {
        Self::new(name, State::Ok, message, "")
    }

    fn warning(name: &str, message: impl ToString, advice: impl ToString) -> Self {
        Self::new(name, State::Warning, message, advice)
    }

    fn problem(name: &str, message: impl ToString, advice: impl ToString) -> Self {
        Self::new(name, State::Problem, message, advice)
    }
}

pub(super) fn doctor(context: &mut Context<'_>, args: &DoctorArgs) -> Result<Exit, Failure> {
    let DoctorArgs {} = args;
    let settings = context.settings()?;
    let checks = connect::block_on(checks(&settings))?;
    let has = |state| checks.iter().any(|it| it.state == state);
    let exit = if has(State::Problem) { Exit::Environment } else { Exit::Success };
    if context.is_json() {
        let (api_version, kind) = (API_VERSION.to_owned(), "Checks".to_owned());
        context.json(&CheckReport { api_version, kind, checks })?;
        return Ok(exit);
    }
    let width = checks.iter().map(|it| it.name.len()).max().unwrap_or_default();
    for Check { name, state, message, advice } in &checks {
        let state = match state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Problem => "problem",
        };
        write!(context.out, "{state:<8} {name:<width$}  {message}")?;
        if !advice.is_empty() {
            write!(context.out, "; {advice}")?;
        }
        writeln!(context.out)?;
    }
    Ok(exit)
}

async fn checks(settings: &Settings) -> Vec<Check> {
    let mut checks = vec![rights()];
    checks.extend(settings.manifests.iter().map(|it| manifests(it)));
    let mounts = mounts();
    checks.push(run_directory(&settings.run_directory, &mounts));
    checks.push(state_directory(&settings.state_directory));
    checks.extend(controller(settings));
    checks.push(cgroups(means::cgroups_among(&mounts)));
    match connect::decide(settings) {
        Err(failure) => {
            checks.push(Check::problem("engine", failure.message, ""));
            checks.push(runc(means::RUNC, false).await);
        }
        Ok(decided) => engine(settings, &decided, &mounts, &mut checks).await,
    }
    checks
}

fn rights() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::ok("rights", "root")
    } else {
        Check::problem(
            "rights",
            "not root",
            "run it as root; only `evenkeel validate` needs no rights",
        )
    }
}

fn manifests(path: &Path) -> Check {
    let shown = path.display();
    let readable = match std::fs::metadata(path) {
        Ok(it) if it.is_dir() => std::fs::read_dir(path).map(drop),
        Ok(_) => std::fs::File::open(path).map(drop),
        Err(error) => Err(error),
    };
    match readable {
        Ok(()) => Check::ok("manifests", shown),
        Err(error) => Check::warning(
            "manifests",
            format_args!("`{shown}` cannot be read: {error}"),
            "nothing starts from it and nothing of it is removed; make it, or say `--manifests`",
        ),
    }
}

fn mounts() -> Vec<mountinfo::Mount> {
    std::fs::read("/proc/self/mountinfo").map(|it| mountinfo::parse(&it)).unwrap_or_default()
}

/// The mount that a path is on.
fn mount_of<'a>(path: &Path, mounts: &'a [mountinfo::Mount]) -> Option<&'a mountinfo::Mount> {
    let path = std::fs::canonicalize(path).ok()?;
    let above = mounts.iter().filter(|it| path.starts_with(&it.point));
    // Of two on one point the later one is seen.
    above.max_by_key(|it| it.point.components().count())
}

/// The path itself, or what is there of the way to it.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|it| it.exists()).unwrap_or(Path::new("/"))
}

fn run_directory(path: &Path, mounts: &[mountinfo::Mount]) -> Check {
    let name = "run directory";
    if let Err(check) = directory(name, path, RUN_SPACE) {
        return check;
    }
    let shown = path.display();
    let kind = mount_of(existing(path), mounts).map_or("", |it| it.kind.as_str());
    if kind != "tmpfs" && kind != "ramfs" {
        return Check::warning(
            name,
            format_args!("`{shown}` is on {kind}, so what belongs to one boot is kept after it"),
            "say `--run-dir` with a directory on a tmpfs",
        );
    }
    let is_new = if path.exists() { "" } else { ", made at the first start" };
    Check::ok(name, format_args!("{shown}: {kind}{is_new}"))
}

fn state_directory(path: &Path) -> Check {
    let free = match directory("state directory", path, SPACE) {
        Ok(free) => free,
        Err(check) => return check,
    };
    let is_new = if path.exists() { "" } else { ", made at the first start" };
    let message = format!("{}: {} MiB free{is_new}", path.display(), free >> 20);
    Check::ok("state directory", message)
}

/// Free bytes, unless something is wrong with a directory of ours, or with the place where it is going to be made.
fn directory(name: &str, path: &Path, needed: u64) -> Result<u64, Check> {
    let shown = path.display();
    let there = existing(path);
    let problem = |what: &dyn std::fmt::Display, advice: &str| {
        Err(Check::problem(name, format_args!("`{}` {what}", there.display()), advice))
    };
    let metadata = match std::fs::metadata(there) {
        Ok(it) => it,
        Err(error) => {
            return problem(&format_args!("cannot be looked at: {error}"), "check its disk");
        }
    };
    if !metadata.is_dir() {
        return problem(&"is no directory", "remove it, or say another path");
    }
    if let Err(error) = rustix::fs::access(there, rustix::fs::Access::WRITE_OK) {
        return problem(
            &format_args!("cannot be written to: {error}"),
            "it needs rights and a file system that is not read-only",
        );
    }
    let space = match rustix::fs::statvfs(there) {
        Ok(it) => it,
        Err(error) => {
            return problem(&format_args!("cannot be looked at: {error}"), "check its disk");
        }
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    // Some file systems make inodes as they need them, and say that they have none.
    let is_out = |free: u64, least: u64| free < least;
    if free == 0 || space.f_files > 0 && space.f_favail == 0 {
        return problem(&"is on a full disk", "make room");
    }
    let is_ours = there == path;
    if is_ours && (metadata.uid() != 0 || metadata.permissions().mode() & 0o022 != 0) {
        let (owner, mode) = (metadata.uid(), metadata.permissions().mode() & 0o7777);
        return Err(Check::warning(
            name,
            format_args!("others may write to `{shown}` (owner {owner}, mode {mode:04o})"),
            format_args!("`chown root {shown} && chmod go-w {shown}`"),
        ));
    }
    if is_out(free, needed) || space.f_files > 0 && is_out(space.f_favail, INODES) {
        let (mib, inodes) = (free >> 20, space.f_favail);
        return Err(Check::warning(
            name,
            format_args!("`{shown}` has {mib} MiB and {inodes} inodes left"),
            "make room before images, logs or writable layers need it",
        ));
    }
    Ok(free)
}

/// Who works on the run directory, and whether the status that it keeps can be believed.
fn controller(settings: &Settings) -> Vec<Check> {
    let run = RunDirectory::new(&settings.run_directory);
    let holder = match run.controller() {
        Ok(holder) => holder,
        Err(error) => {
            let advice = "look again: it may be starting or ending";
            return vec![Check::warning("controller", Chain(&error), advice)];
        }
    };
    let mut checks = vec![match &holder {
        Some(it) => Check::ok("controller", it),
        None => Check::warning("controller", "none runs", "`evenkeel run` keeps things as wanted"),
    }];
    let status: Option<Status> = match run.status() {
        Ok(status) => status,
        Err(error) => {
            let advice = "the next `evenkeel run` or `evenkeel apply` writes it anew";
            checks.push(Check::warning("status", Chain(&error), advice));
            return checks;
        }
    };
    let Some(keeper) = status.and_then(|it| it.controller) else { return checks };
    let age = keeper
        .updated_at
        .parse::<jiff::Timestamp>()
        .ok()
        .map(|it| jiff::Timestamp::now().as_second().saturating_sub(it.as_second()));
    checks.push(match (age, &holder) {
        (None, _) => Check::warning(
            "status",
            format_args!("its time `{}` cannot be read", keeper.updated_at),
            "the next change writes it anew",
        ),
        (Some(age), _) if age < -AHEAD => Check::warning(
            "status",
            format_args!("it is {} s ahead of the clock, which was turned back", -age),
            "times in status and logs are off; nothing is decided by them",
        ),
        (Some(age), Some(holder)) if holder.pid != keeper.pid => Check::warning(
            "status",
            format_args!("it is from another process, pid {}, {age} s ago", keeper.pid),
            "the controller has not written its own yet; look again",
        ),
        (Some(age), _) => Check::ok("status", format_args!("last changed {} s ago", age.max(0))),
    });
    checks
}

/// Whether containers can have cgroups: looked at, not tried.
fn cgroups(found: Result<&'static str, String>) -> Check {
    let name = "cgroup";
    match found {
        Ok(version) => Check::ok(name, format_args!("{version}, writable")),
        Err(why) => Check::problem(name, why, "mount cgroups at /sys/fs/cgroup, writable"),
    }
}

async fn engine(
    settings: &Settings,
    decided: &Decided,
    mounts: &[mountinfo::Mount],
    checks: &mut Vec<Check>,
) {
    let engine = decided.decision.engine;
    let reason = match &decided.recorded {
        Some(record) => format!("{}; recorded, another one is refused", record.reason),
        None => decided.decision.reason.to_owned(),
    };
    checks.push(Check::ok("engine", format_args!("{}: {reason}", engine.as_str())));
    let is_embedded = engine == Engine::Embedded;
    let found = if is_embedded { Some(decided.embedded.find()) } else { None };
    let stopped = "`evenkeel run` or `evenkeel apply` starts it";
    match found {
        Some(state @ (Found::Never | Found::Stopped)) => {
            checks.push(runc(means::RUNC, true).await);
            let path = std::env::var_os("PATH").unwrap_or_default();
            checks.push(match crate::engine::check_programs(&path) {
                Err(error) => Check::problem("containerd", Chain(&error), ""),
                Ok(()) if state == Found::Never => {
                    Check::ok("containerd", format_args!("not started yet; {stopped}"))
                }
                Ok(()) => Check::warning("containerd", "the embedded one does not run", stopped),
            });
        }
        Some(Found::Running { .. }) | None => {
            let recorded = decided.recorded.as_ref().map(|it| it.snapshotter.clone());
            let snapshotter = settings.snapshotter.clone().or(recorded);
            match reached(settings, decided, snapshotter, mounts).await {
                Ok(found) => checks.extend(found),
                Err(check) => {
                    checks.push(runc(means::RUNC, is_embedded).await);
                    checks.push(check);
                }
            }
        }
    }
}

/// What a containerd that should answer says.
async fn reached(
    settings: &Settings,
    decided: &Decided,
    snapshotter: Option<String>,
    mounts: &[mountinfo::Mount],
) -> Result<Vec<Check>, Check> {
    let socket = decided.socket(settings);
    let shown = socket.display();
    let advice = match decided.decision.engine {
        Engine::System => "start it (`systemctl start containerd`), or read its log",
        Engine::Embedded => "`evenkeel run` starts it again; its log is in the state directory",
    };
    let silent = |what: &dyn std::fmt::Display| {
        Check::problem("containerd", format_args!("`{shown}`: {what}"), advice)
    };
    let is_recorded = snapshotter.is_some();
    let snapshotter = snapshotter.unwrap_or_else(|| "overlayfs".to_owned());
    let client = connect::runtime_settings(settings, socket.clone(), snapshotter.clone())
        .map_err(|failure| silent(&failure.message))
        .and_then(|it| Containerd::new(it).map_err(|error| silent(&Chain(&error))))?;
    let ask = async {
        let peer = client.peer_pid().await?;
        let process = client.process().await;
        let version = client.version().await?;
        let owner = client.owner().await?;
        let fault = client.fault_of_snapshotter().await?;
        Ok::<_, crate::runtime::Error>((peer, process, version, owner, fault))
    };
    let (peer, process, version, owner, fault) = match tokio::time::timeout(ENGINE_LIMIT, ask).await
    {
        Ok(Ok(answers)) => answers,
        Ok(Err(error)) => return Err(silent(&Chain(&error))),
        Err(_) => {
            return Err(silent(&format_args!("no answer within {} s", ENGINE_LIMIT.as_secs())));
        }
    };
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse::<u32>);
    let number = (numbers.next().and_then(Result::ok), numbers.next().and_then(Result::ok));
    let is_old = matches!(number, (Some(a), Some(b)) if (a, b) < OLDEST);
    let mut checks = vec![if is_old {
        Check::warning(
            "containerd",
            format_args!("{version} at {shown} is not tested"),
            "use 1.6 or newer",
        )
    } else {
        Check::ok("containerd", format_args!("{version} at {shown}"))
    }];
    checks.extend(means_of(process.as_ref(), decided.decision.engine).await);
    checks.push(owned(settings, owner.as_deref()));
    checks.push(match fault {
        None => Check::ok("snapshotter", snapshotter),
        Some(why) if is_recorded => Check::problem(
            "snapshotter",
            format_args!("`{snapshotter}`, which our snapshots are in: {why}"),
            "switch it on in containerd's configuration",
        ),
        Some(why) => Check::warning(
            "snapshotter",
            format_args!("`{snapshotter}`: {why}"),
            "the first start chooses `native` if overlays cannot be mounted",
        ),
    });
    checks.push(shared(settings, peer, mounts));
    Ok(checks)
}

/// Whether the runtime sees what we mount for joiners.
fn shared(settings: &Settings, peer: Option<u32>, mounts: &[mountinfo::Mount]) -> Check {
    let name = "mounts";
    let cgroup_parent = crate::config::cgroup_parent(&settings.run_directory);
    let seen = LinuxHost::new(&settings.run_directory, &cgroup_parent)
        .map_err(|error| Chain(&error).to_string())
        .and_then(|host| host.mounts_shared_with(peer.unwrap_or(0)));
    let propagation = mount_of(existing(&settings.run_directory), mounts)
        .map(|it| it.propagation.join(" "))
        .filter(|it| !it.is_empty())
        .unwrap_or_else(|| "private".to_owned());
    match seen {
        Ok(()) => Check::ok(
            name,
            format_args!("containerd sees ours; the run directory's are {propagation}"),
        ),
        Err(why) => Check::warning(
            name,
            format_args!("{why}; the run directory's are {propagation}"),
            "workloads that share memory are not started; run both in one mount namespace: no PrivateMounts, \
             PrivateTmp or ProtectSystem in a unit",
        ),
    }
}

/// Whose the containerd namespace is.
fn owned(settings: &Settings, label: Option<&str>) -> Check {
    let name = "owner";
    let namespace = &settings.containerd_namespace;
    let Some(label) = label else {
        return Check::ok(name, format_args!("nobody has used the namespace `{namespace}` yet"));
    };
    let take_over =
        "`evenkeel run --take-over` takes it over; or say another `--containerd-namespace`";
    let Ok(owner) = serde_json::from_str::<Owner>(label) else {
        let message = format!("the namespace `{namespace}` belongs to `{label}`");
        return Check::problem(name, message, take_over);
    };
    let id = std::fs::read_to_string(settings.state_directory.join("owner"));
    let is_ours = id.is_ok_and(|it| it.trim() == owner.id)
        && owner.state_directory == settings.state_directory
        && owner.run_directory == settings.run_directory;
    if is_ours {
        return Check::ok(name, format_args!("the namespace `{namespace}` is ours"));
    }
    let (state, run) = (owner.state_directory.display(), owner.run_directory.display());
    let message = format!(
        "the namespace `{namespace}` belongs to the evenkeel with the state directory `{state}` and the run \
         directory `{run}`"
    );
    if owner.run_directory != settings.run_directory
        && let Ok(Some(holder)) = RunDirectory::new(&owner.run_directory).controller()
    {
        let message = format!("{message}, which works now: {holder}");
        return Check::problem(
            name,
            message,
            "end that one, or say another `--containerd-namespace`",
        );
    }
    if owner.state_directory.exists() {
        Check::problem(name, message, take_over)
    } else {
        Check::warning(
            name,
            format_args!("{message}, which is gone"),
            "the next start takes it over",
        )
    }
}

/// What a containerd that runs needs to start a container, as far as it can be seen in its process.
async fn means_of(process: Option<&RuntimeProcess>, engine: Engine) -> Vec<Check> {
    let known = process.and_then(|it| Some((it, means::programs(it, [].iter()).ok()?)));
    let Some((process, programs)) = known else {
        return vec![runc(means::RUNC, engine == Engine::Embedded).await];
    };
    let mut checks = Vec::new();
    if let Some(found) = means::cgroups(process).filter(Result::is_err) {
        checks.push(cgroups(found));
    }
    let missing = |name, package| {
        let advice = format!("install {package}; no container starts without it");
        Check::problem(name, "it is nowhere where containerd looks for it", advice)
    };
    checks.push(match programs.shim {
        Some(path) => Check::ok("shim", path.display()),
        None => missing("shim", "containerd's shim for runc"),
    });
    checks.push(match programs.runc {
        Some(path) => {
            // In its root, should that be another one.
            let path = path.strip_prefix("/").unwrap_or(&path).to_owned();
            let path = Path::new("/proc").join(process.pid.to_string()).join("root").join(path);
            runc(path, true).await
        }
        None => missing("runc", "it"),
    });
    checks
}

/// runc's version.
async fn runc(program: impl AsRef<OsStr>, is_needed: bool) -> Check {
    let name = "runc";
    let mut command = tokio::process::Command::new(program);
    command.arg("--version").stdin(std::process::Stdio::null()).kill_on_drop(true);
    let why = match tokio::time::timeout(PROGRAM_LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let version =
                text.lines().next().unwrap_or_default().trim_start_matches("runc version ");
            return Check::ok(name, version);
        }
        Ok(Ok(output)) => format!("`runc --version` ended with {}", output.status),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            "it is not on the PATH".to_owned()
        }
        Ok(Err(error)) => format!("it cannot be run: {error}"),
        Err(_) => format!("no answer within {} s", PROGRAM_LIMIT.as_secs()),
    };
    if is_needed {
        Check::problem(name, why, "install it; no container starts without it")
    } else {
        Check::warning(name, why, "install it, unless containerd is told of another one")
    }
}
