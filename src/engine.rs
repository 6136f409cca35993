//! Which containerd: the system's, or a private one that we start, find again and end.
//!
//! [`decide`] takes what is known and gives an answer with its reason; the rest carries it out. Nothing here talks
//! to containerd beyond asking whether its socket answers: that is [`crate::runtime`].

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::host::{linux, means};
use crate::rundir::{self, Durability, Holder, make_directory, write_atomically};

/// The system's socket, unless the configuration names another one.
pub const SYSTEM_SOCKET: &str = "/run/containerd/containerd.sock";

/// How long a fresh containerd may take to answer: a slow box reads its database from flash.
const START_LIMIT: Duration = Duration::from_mins(1);

/// How often its socket is tried meanwhile.
const START_INTERVAL: Duration = Duration::from_millis(20);

/// How long it may take to end after SIGTERM, and again after SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// containerd's own limit for the paths of its two sockets.
const SOCKET_LIMIT: usize = 104;

/// Its log is cut back above this, and what is kept besides is at most that much again.
const LOG_LIMIT: u64 = 4 << 20;

/// What `--engine` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The recorded one; the first time the system's if there is one.
    #[default]
    Auto,
    System,
    Embedded,
}

/// Which containerd our containers are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    System,
    Embedded,
}

impl Engine {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Embedded => "embedded",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::System => Self::Embedded,
            Self::Embedded => Self::System,
        }
    }
}

/// What [`decide`] knows. [`Known::gather`] looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known {
    pub choice: Choice,
    /// The answer of an earlier run.
    pub recorded: Option<Engine>,
    /// The configuration names a containerd to use.
    pub address_given: bool,
    pub system: System,
    /// The embedded engine has a root directory: it was started once, whatever is recorded.
    pub embedded_root: bool,
    /// Instances of ours known to be in the system's containerd; 0 if nobody asked.
    pub system_instances: usize,
    /// The same for the embedded one.
    pub embedded_instances: usize,
}

/// What there is of a system containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum System {
    #[default]
    Absent,
    /// A socket that nobody answers, or a service that is enabled and has no socket yet.
    Silent,
    Answers,
}

/// An engine, and why that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub engine: Engine,
    pub reason: &'static str,
}

/// Why there is no engine to use; each says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "this box uses the {} engine, and its containers would run twice under another one: to move them, run \
         `evenkeel down --engine {}` first, which ends them and forgets the choice",
        recorded.as_str(), recorded.as_str()
    )]
    Recorded { recorded: Engine },
    #[error(
        "{count} containers of ours are in the {} engine, and would run twice under another one: say `--engine {}`, \
         or run `evenkeel down --engine {}` first",
        engine.as_str(), engine.as_str(), engine.as_str()
    )]
    Instances { engine: Engine, count: usize },
    #[error(
        "this box uses the containerd namespace `{recorded}`: under another one its containers would run twice, and \
         their logs and shared memory would be taken for leftovers; to move them, run `evenkeel down \
         --containerd-namespace {recorded}` first"
    )]
    Namespace { recorded: String },
    #[error(
        "this box uses the containerd at `{}`, and its containers would run twice in another one: to move them, run \
         `evenkeel down --containerd-address {}` first", recorded.display(), recorded.display()
    )]
    Address { recorded: PathBuf },
    #[error(
        "`--engine embedded` and a containerd address contradict each other: the embedded one has its own"
    )]
    AddressOfEmbedded,
    #[error(
        "there is a system containerd that does not answer: start it (`systemctl start containerd`), or say \
         `--engine embedded` to use a private one for good"
    )]
    Silent,
}

/// Decides which containerd to use. The first answer is to be recorded: nothing may ever run twice.
pub fn decide(known: &Known) -> Result<Decision, Refusal> {
    let decision = |engine, reason| Ok(Decision { engine, reason });
    let decided = match (known.choice, known.recorded, known.system) {
        (Choice::Embedded, _, _) if known.address_given => Err(Refusal::AddressOfEmbedded),
        (Choice::Embedded, Some(Engine::System), _) => {
            Err(Refusal::Recorded { recorded: Engine::System })
        }
        (Choice::System, Some(Engine::Embedded), _) => {
            Err(Refusal::Recorded { recorded: Engine::Embedded })
        }
        // An address is as clear a word as `--engine system`.
        (Choice::Auto, Some(Engine::Embedded), _) if known.address_given => {
            Err(Refusal::Recorded { recorded: Engine::Embedded })
        }
        (Choice::Embedded, _, _) => decision(Engine::Embedded, "it was asked for"),
        (Choice::System, _, _) => decision(Engine::System, "it was asked for"),
        (Choice::Auto, Some(engine), _) => decision(engine, "it was used before"),
        (Choice::Auto, None, _) if known.address_given => {
            decision(Engine::System, "its address was given")
        }
        // Its record was lost, not its containers.
        (Choice::Auto, None, _) if known.embedded_root => {
            decision(Engine::Embedded, "it was started before")
        }
        (Choice::Auto, None, System::Answers) => {
            decision(Engine::System, "a system containerd answers")
        }
        (Choice::Auto, None, System::Silent) => Err(Refusal::Silent),
        (Choice::Auto, None, System::Absent) => {
            decision(Engine::Embedded, "there is no system containerd")
        }
    }?;
    let other = decided.engine.other();
    let count = match other {
        Engine::System => known.system_instances,
        Engine::Embedded => known.embedded_instances,
    };
    if count > 0 { Err(Refusal::Instances { engine: other, count }) } else { Ok(decided) }
}

impl Known {
    /// Looks at the box; asks no containerd for its instances.
    pub fn gather(
        choice: Choice,
        address: Option<&Path>,
        directories: &Embedded,
    ) -> Result<Self, Error> {
        let record = Record::read(&directories.state)?;
        Ok(Self {
            choice,
            recorded: record.map(|it| it.engine),
            address_given: address.is_some(),
            system: System::look(Path::new(SYSTEM_SOCKET)),
            embedded_root: directories.root().exists(),
            system_instances: 0,
            embedded_instances: 0,
        })
    }
}

impl System {
    fn look(socket: &Path) -> Self {
        let enabled = || {
            Path::new("/run/systemd/system").exists()
                && Path::new("/etc/systemd/system/multi-user.target.wants/containerd.service")
                    .exists()
        };
        if connect(socket).is_ok() {
            Self::Answers
        } else if socket.exists() || enabled() {
            Self::Silent
        } else {
            Self::Absent
        }
    }
}

/// The answer that stands, in `<state>/engine.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub engine: Engine,
    /// Where in it: the system's socket when another than the usual one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<PathBuf>,
    /// Which of its namespaces.
    #[serde(default)]
    pub namespace: String,
    /// What our snapshots are kept in; another one would not find them.
    pub snapshotter: String,
    /// For people.
    pub reason: String,
}

impl Record {
    fn path(state: &Path) -> PathBuf {
        state.join("engine.json")
    }

    /// `None`: nothing was decided yet. A record that cannot be understood is an error, since guessing could run
    /// everything twice.
    pub fn read(state: &Path) -> Result<Option<Self>, Error> {
        let path = Self::path(state);
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(record) => Ok(Some(record)),
                Err(error) => {
                    let cause = format!(
                        "{error}; remove it after making sure which containerd has our containers"
                    );
                    Err(failure("read", &path, io::Error::new(io::ErrorKind::InvalidData, cause)))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(failure("read", &path, cause)),
        }
    }

    /// Written to survive a power cut; not at all when it is there already.
    pub fn write(&self, state: &Path) -> Result<(), Error> {
        let path = Self::path(state);
        let text =
            serde_json::to_string(self).map_err(|error| failure("write", &path, error.into()))?;
        Ok(write_atomically(&path, format!("{text}\n").as_bytes(), Durability::Disk)?)
    }

    /// Refuses another place than the recorded one: what is in ours would be unknown there.
    pub fn check(&self, address: Option<&Path>, namespace: &str) -> Result<(), Refusal> {
        // Records of the first version did not say.
        if !self.namespace.is_empty() && self.namespace != namespace {
            return Err(Refusal::Namespace { recorded: self.namespace.clone() });
        }
        let usual = Path::new(SYSTEM_SOCKET);
        let recorded = self.address.as_deref().unwrap_or(usual);
        if self.engine == Engine::System
            && !self.namespace.is_empty()
            && recorded != address.unwrap_or(usual)
        {
            return Err(Refusal::Address { recorded: recorded.to_owned() });
        }
        Ok(())
    }

    /// After everything of ours is gone from the engine.
    pub fn forget(state: &Path) -> Result<(), Error> {
        let path = Self::path(state);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(failure("remove", &path, cause))
            }
            _ => Ok(()),
        }
    }
}

/// An engine that could not be started, found or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {operation} `{subject}`")]
    Failed {
        operation: &'static str,
        subject: String,
        #[source]
        cause: io::Error,
    },
    #[error(transparent)]
    File(#[from] rundir::Error),
    #[error("`{}` is too long for the path of a socket, which has at most {SOCKET_LIMIT} bytes: use a shorter run directory", socket.display())]
    TooLong { socket: PathBuf },
    #[error("{} not installed; {}", list(programs), hint(programs))]
    Missing { programs: Vec<&'static str> },
    #[error("containerd ended while it started; its log, `{}`, ends with: {tail}", log.display())]
    Ended { log: PathBuf, tail: String },
    #[error("containerd did not answer within {} s; its log, `{}`, ends with: {tail}", START_LIMIT.as_secs(), log.display())]
    Silent { log: PathBuf, tail: String },
    #[error("containerd (pid {pid}) did not end, not even by SIGKILL")]
    Immortal { pid: u32 },
}

fn failure(operation: &'static str, subject: &Path, cause: io::Error) -> Error {
    Error::Failed { operation, subject: subject.display().to_string(), cause }
}

fn list(programs: &[&str]) -> String {
    let names: Vec<String> = programs.iter().map(|it| format!("`{it}`")).collect();
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

fn hint(programs: &[&str]) -> String {
    let mut packages: Vec<&str> = Vec::new();
    for program in programs {
        // The shim comes with containerd.
        let package = if *program == means::RUNC { "runc" } else { "containerd" };
        if !packages.contains(&package) {
            packages.push(package);
        }
    }
    let packages = packages.join(" ");
    format!("`apt-get install {packages}` on Debian and Ubuntu, `dnf install {packages}` on Fedora")
}

/// The programs that containers need.
pub const PROGRAMS: [&str; 3] = ["containerd", means::SHIM, means::RUNC];

/// Says which of [`PROGRAMS`] are not on the `PATH`.
pub fn check_programs(path: &std::ffi::OsStr) -> Result<(), Error> {
    let there = |program: &str| {
        means::find(None, std::env::split_paths(path), program).is_ok_and(|it| it.is_some())
    };
    let programs: Vec<&'static str> = PROGRAMS.into_iter().filter(|it| !there(it)).collect();
    if programs.is_empty() { Ok(()) } else { Err(Error::Missing { programs }) }
}

/// The private containerd of one pair of state and run directory, both absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    state: PathBuf,
    run: PathBuf,
}

/// What there is of an embedded engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It was never started here: nothing of ours can be in it.
    Never,
    /// It was started once and does not answer now.
    Stopped,
    /// It answers; with its pid, if that can be known.
    Running { pid: Option<u32> },
}

impl Embedded {
    pub fn new(state: &Path, run: &Path) -> Self {
        Self { state: state.to_owned(), run: run.to_owned() }
    }

    /// containerd's own root: images, snapshots, metadata.
    pub fn root(&self) -> PathBuf {
        self.state.join("containerd")
    }

    pub fn socket(&self) -> PathBuf {
        self.run.join("containerd/containerd.sock")
    }

    pub fn log(&self) -> PathBuf {
        self.root().join("containerd.log")
    }

    fn pid_file(&self) -> PathBuf {
        self.run.join("containerd.pid.json")
    }

    /// Looks without starting anything.
    pub fn find(&self) -> Found {
        if let Ok(pid) = connect(&self.socket()) {
            return Found::Running { pid };
        }
        if self.root().exists() { Found::Stopped } else { Found::Never }
    }

    /// Starts it and waits until it answers; does nothing when it does already. Returns its socket.
    ///
    /// # Assumptions
    /// The caller holds the controller's lock, so that nobody else starts it at the same time.
    pub async fn start(&self) -> Result<PathBuf, Error> {
        if matches!(self.find(), Found::Running { .. }) {
            return Ok(self.socket());
        }
        let second = PathBuf::from(format!("{}.ttrpc", self.socket().display()));
        if second.as_os_str().len() > SOCKET_LIMIT {
            return Err(Error::TooLong { socket: second });
        }
        check_programs(&std::env::var_os("PATH").unwrap_or_default())?;
        for directory in [self.root(), self.run.join("containerd")] {
            make_directory(&directory)?;
        }
        let config = self.root().join("config.toml");
        write_atomically(&config, self.config().as_bytes(), Durability::Boot)?;
        let mut child: Option<tokio::process::Child> = None;
        let deadline = linux::boot_time() + START_LIMIT;
        loop {
            if connect(&self.socket()).is_ok() {
                return Ok(self.socket());
            }
            match &mut child {
                Some(child) => {
                    if !matches!(child.try_wait(), Ok(None)) {
                        return Err(Error::Ended { log: self.log(), tail: tail(&self.log()) });
                    }
                }
                // One that is alive and silent starts, hangs or is just dying, whose sockets go first. A second one
                // beside it would wait for its database for ever.
                None if self.pid().is_some() => {}
                None => child = Some(self.spawn(&config)?),
            }
            if linux::boot_time() > deadline {
                return Err(Error::Silent { log: self.log(), tail: tail(&self.log()) });
            }
            tokio::time::sleep(START_INTERVAL).await;
        }
    }

    fn spawn(&self, config: &Path) -> Result<tokio::process::Child, Error> {
        self.trim_log()?;
        let failed = |cause| failure("start", Path::new("containerd"), cause);
        let log = File::options().append(true).create(true).mode(0o640).open(self.log());
        let log = log.map_err(|cause| failure("open", &self.log(), cause))?;
        let child = tokio::process::Command::new("containerd")
            .arg("--config")
            .arg(config)
            .current_dir("/")
            // It is not the service that somebody waits for.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            // Ctrl-C is meant for us, and containers outlive us.
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .map_err(failed)?;
        let started = child.id().and_then(|pid| Some((pid, linux::start_time(pid)?)));
        // One that is gone already is found so by the caller.
        if let Some((pid, start_time)) = started {
            let boot_id = linux::boot_id().map_err(failed)?;
            let holder = Holder { pid, start_time, boot_id, since: linux::wall_clock() };
            let text = serde_json::to_string(&holder).map_err(|error| failed(error.into()))?;
            write_atomically(&self.pid_file(), text.as_bytes(), Durability::Boot)?;
        }
        Ok(child)
    }

    /// The process that we started or that listens on our socket, if it lives.
    fn pid(&self) -> Option<u32> {
        if let Found::Running { pid: Some(pid) } = self.find() {
            return Some(pid);
        }
        let holder: Holder = serde_json::from_slice(&fs::read(self.pid_file()).ok()?).ok()?;
        holder.is_alive().then_some(holder.pid)
    }

    /// Ends it: SIGTERM, then SIGKILL. Containers go on. `Ok` when it does not run. Blocks for at most 20 s.
    pub fn stop(&self) -> Result<(), Error> {
        if let Some(pid) = self.pid() {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let failed = |error: rustix::io::Errno| failure("end", &process, error.into());
            let handle = i32::try_from(pid)
                .ok()
                .and_then(Pid::from_raw)
                .ok_or(failed(rustix::io::Errno::SRCH))?;
            // A handle to the very process: from here on its pid may be used again without harm.
            let handle = match rustix::process::pidfd_open(handle, PidfdFlags::empty()) {
                Ok(handle) => Some(handle),
                Err(rustix::io::Errno::SRCH) => None,
                Err(error) => return Err(failed(error)),
            };
            if let Some(handle) = handle.filter(|_| self.pid() == Some(pid)) {
                let mut ended = false;
                for signal in [Signal::TERM, Signal::KILL] {
                    match rustix::process::pidfd_send_signal(&handle, signal) {
                        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                        Err(error) => return Err(failed(error)),
                    }
                    ended = wait_for_end(&handle, STOP_LIMIT).map_err(failed)?;
                    if ended {
                        break;
                    }
                }
                if !ended {
                    return Err(Error::Immortal { pid });
                }
            }
        }
        for path in [self.pid_file(), self.socket()] {
            match fs::remove_file(&path) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(failure("remove", &path, cause));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Cuts the log back when it is too large: the newest part is kept in a second file. Called at every start and
    /// from time to time; containerd says nothing while nobody asks it anything.
    ///
    /// Not through a pipe: a reader that is killed would take containerd with it.
    pub fn trim_log(&self) -> Result<(), Error> {
        let path = self.log();
        let failed = |cause| failure("trim", &path, cause);
        let mut log = match File::options().read(true).write(true).open(&path) {
            Ok(log) => log,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(cause) => return Err(failed(cause)),
        };
        let length = log.metadata().map_err(failed)?.len();
        if length <= LOG_LIMIT {
            return Ok(());
        }
        // A full disk must not keep the log from being cut.
        let kept = self.root().join("containerd.log.1");
        let copied = log.seek(SeekFrom::Start(length - LOG_LIMIT)).and_then(|_| {
            let mut kept =
                File::options().write(true).create(true).truncate(true).mode(0o640).open(&kept)?;
            io::copy(&mut (&mut log).take(LOG_LIMIT), &mut kept)
        });
        if copied.is_err() {
            fs::remove_file(&kept).ok();
        }
        // containerd appends, so it goes on at the new end.
        log.set_len(0).map_err(failed)
    }

    fn config(&self) -> String {
        let text = |path: PathBuf| toml_string(&path.to_string_lossy());
        let disabled: Vec<String> = DISABLED_PLUGINS.iter().map(|it| toml_string(it)).collect();
        let (root, state) = (text(self.root()), text(self.run.join("containerd")));
        let (disabled, address) = (disabled.join(",\n  "), text(self.socket()));
        // The list stands before the first table: after it, the key would belong to the table.
        format!(
            "version = 2\nroot = {root}\nstate = {state}\ndisabled_plugins = [\n  {disabled},\n]\n\n\
             [grpc]\n  address = {address}\n"
        )
    }
}

/// What a private containerd must not do: serve Kubernetes, listen on fixed paths outside our directories, unpack
/// into /opt, restart containers by itself. One list for all versions; unknown names do no harm.
pub const DISABLED_PLUGINS: [&str; 6] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
    "io.containerd.cri.v1.images",
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
];

/// A basic string of TOML, whose escapes are those of JSON.
fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Whether somebody listens on a socket, and by the kernel's word who; a process of another pid namespace has no pid
/// here. Never waits: a process that hangs lets its queue of connections fill.
fn connect(path: &Path) -> io::Result<Option<u32>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let peer = rustix::net::sockopt::socket_peercred(&socket)?;
    Ok(u32::try_from(peer.pid.as_raw_nonzero().get()).ok())
}

fn wait_for_end(handle: &rustix::fd::OwnedFd, limit: Duration) -> rustix::io::Result<bool> {
    let deadline = linux::boot_time() + limit;
    loop {
        let left = deadline.since(linux::boot_time());
        let mut waiting = [PollFd::new(handle, PollFlags::IN)];
        let timeout = Timespec::try_from(left).map_err(|_| rustix::io::Errno::INVAL)?;
        match rustix::event::poll(&mut waiting, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The last lines of a log, for a message.
fn tail(path: &Path) -> String {
    const TAIL: u64 = 600;
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        file.take(TAIL).read_to_end(&mut bytes)
    });
    match read {
        Ok(0) | Err(_) => "(nothing)".to_owned(),
        Ok(_) => String::from_utf8_lossy(&bytes).trim().to_owned(),
    }
}

/// The snapshotter for containerd's root in `directory`: overlayfs where the file system can do it, as ext4 and xfs
/// can and another overlay cannot; else native, which copies.
///
/// Mounts once below `directory`, which is made when it is missing.
pub fn snapshotter(directory: &Path) -> Result<&'static str, Error> {
    let probe = directory.join("overlay-probe");
    let failed = |cause| failure("try overlayfs in", directory, cause);
    // What a kill left of an earlier try.
    end_probe(&probe).map_err(failed)?;
    for part in ["lower", "upper", "work", "merged"] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(probe.join(part))
            .map_err(failed)?;
    }
    let works = (|| {
        let mut options = Vec::new();
        for (key, part) in [("lowerdir", "lower"), (",upperdir", "upper"), (",workdir", "work")] {
            options.extend_from_slice(key.as_bytes());
            options.push(b'=');
            for byte in probe.join(part).as_os_str().as_bytes() {
                // What overlayfs takes for separators.
                if matches!(byte, b',' | b':' | b'\\') {
                    options.push(b'\\');
                }
                options.push(*byte);
            }
        }
        let data = std::ffi::CString::new(options).ok()?;
        rustix::mount::mount(
            "overlay",
            probe.join("merged"),
            "overlay",
            MountFlags::empty(),
            data.as_c_str(),
        )
        .ok()?;
        fs::write(probe.join("merged/file"), "").ok()
    })();
    end_probe(&probe).map_err(failed)?;
    Ok(if works.is_some() { "overlayfs" } else { "native" })
}

fn end_probe(probe: &Path) -> io::Result<()> {
    match rustix::mount::unmount(
        probe.join("merged"),
        UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
    ) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_dir_all(probe) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOICES: [Choice; 3] = [Choice::Auto, Choice::System, Choice::Embedded];
    const RECORDED: [Option<Engine>; 3] = [None, Some(Engine::System), Some(Engine::Embedded)];
    const SYSTEMS: [System; 3] = [System::Absent, System::Silent, System::Answers];

    fn all() -> Vec<Known> {
        let mut all = Vec::new();
        for choice in CHOICES {
            for recorded in RECORDED {
                for system in SYSTEMS {
                    for bits in 0..4 {
                        all.push(Known {
                            choice,
                            recorded,
                            system,
                            address_given: bits & 1 > 0,
                            embedded_root: bits & 2 > 0,
                            ..Known::default()
                        });
                    }
                }
            }
        }
        all
    }

    #[test]
    fn a_recorded_engine_is_never_left() {
        for known in all() {
            let (Some(recorded), Ok(decision)) = (known.recorded, decide(&known)) else { continue };
            assert_eq!(decision.engine, recorded, "{known:?}");
        }
    }

    #[test]
    fn what_is_asked_for_is_taken_or_refused() {
        for known in all() {
            match (known.choice, decide(&known)) {
                (Choice::System, Ok(decision)) => assert_eq!(decision.engine, Engine::System),
                (Choice::Embedded, Ok(decision)) => assert_eq!(decision.engine, Engine::Embedded),
                (Choice::Embedded, Err(Refusal::AddressOfEmbedded)) => assert!(known.address_given),
                (Choice::System | Choice::Embedded, Err(refusal)) => {
                    assert_eq!(refusal, Refusal::Recorded { recorded: known.recorded.unwrap() });
                }
                (Choice::Auto, _) => {}
            }
        }
    }

    #[test]
    fn auto_takes_the_system_s_if_there_is_one() {
        let decide = |system, embedded_root, address_given| {
            let known = Known { address_given, system, embedded_root, ..Known::default() };
            super::decide(&known).map(|it| it.engine)
        };
        assert_eq!(decide(System::Answers, false, false), Ok(Engine::System));
        assert_eq!(decide(System::Absent, false, false), Ok(Engine::Embedded));
        assert_eq!(
            decide(System::Silent, false, false),
            Err(Refusal::Silent),
            "it may just be late at boot"
        );
        assert_eq!(
            decide(System::Answers, true, false),
            Ok(Engine::Embedded),
            "its record was lost"
        );
        assert_eq!(decide(System::Absent, false, true), Ok(Engine::System));
    }

    #[test]
    fn instances_in_the_other_engine_are_never_started_twice() {
        for mut known in all() {
            let Ok(decision) = decide(&known) else { continue };
            let other = decision.engine.other();
            match other {
                Engine::System => known.system_instances = 2,
                Engine::Embedded => known.embedded_instances = 2,
            }
            let refusal = decide(&known).unwrap_err();
            assert_eq!(refusal, Refusal::Instances { engine: other, count: 2 });
            assert!(refusal.to_string().contains(&format!("down --engine {}", other.as_str())));
        }
    }

    #[test]
    fn a_record_is_kept_until_it_is_forgotten_and_never_guessed() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(directory.path()).unwrap(), None);
        let record = Record {
            engine: Engine::Embedded,
            address: None,
            namespace: "evenkeel".to_owned(),
            snapshotter: "overlayfs".to_owned(),
            reason: "there is no system containerd".to_owned(),
        };
        record.write(directory.path()).unwrap();
        assert_eq!(Record::read(directory.path()).unwrap(), Some(record));
        Record::forget(directory.path()).unwrap();
        Record::forget(directory.path()).unwrap();
        assert_eq!(Record::read(directory.path()).unwrap(), None);
        fs::write(directory.path().join("engine.json"), "{").unwrap();
        assert!(Record::read(directory.path()).unwrap_err().to_string().contains("engine.json"));
    }

    #[test]
    fn another_place_than_the_recorded_one_is_refused() {
        let record = |engine, address: Option<&str>| Record {
            engine,
            address: address.map(PathBuf::from),
            namespace: "evenkeel".to_owned(),
            snapshotter: "overlayfs".to_owned(),
            reason: String::new(),
        };
        let embedded = record(Engine::Embedded, None);
        embedded.check(None, "evenkeel").unwrap();
        let refusal = embedded.check(None, "other").unwrap_err();
        assert!(refusal.to_string().contains("down --containerd-namespace evenkeel"), "{refusal}");
        let usual = record(Engine::System, None);
        usual.check(None, "evenkeel").unwrap();
        usual.check(Some(Path::new(SYSTEM_SOCKET)), "evenkeel").unwrap();
        let refusal = usual.check(Some(Path::new("/x.sock")), "evenkeel").unwrap_err();
        assert_eq!(refusal, Refusal::Address { recorded: SYSTEM_SOCKET.into() });
        record(Engine::System, Some("/x.sock"))
            .check(Some(Path::new("/x.sock")), "evenkeel")
            .unwrap();
        record(Engine::System, Some("/x.sock")).check(None, "evenkeel").unwrap_err();
    }

    #[test]
    fn what_is_missing_is_named_with_its_packages() {
        let directory = tempfile::tempdir().unwrap();
        let message = check_programs(directory.path().as_os_str()).unwrap_err().to_string();
        assert_eq!(
            message,
            "`containerd`, `containerd-shim-runc-v2`, `runc` are not installed; `apt-get install containerd runc` on \
             Debian and Ubuntu, `dnf install containerd runc` on Fedora"
        );
        for program in ["containerd", "containerd-shim-runc-v2"] {
            let path = directory.path().join(program);
            let file = File::options().write(true).create_new(true).mode(0o755).open(path);
            drop(file.unwrap());
        }
        fs::write(directory.path().join("runc"), "not a program").unwrap();
        let message = check_programs(directory.path().as_os_str()).unwrap_err().to_string();
        assert!(
            message.starts_with("`runc` is not installed; `apt-get install runc`"),
            "{message}"
        );
    }

    #[test]
    fn the_configuration_stays_below_our_directories() {
        let embedded =
            Embedded::new(Path::new("/var/lib/even \"keel\""), Path::new("/run/evenkeel"));
        let config = embedded.config();
        assert!(config.contains(r#"root = "/var/lib/even \"keel\"/containerd""#), "{config}");
        assert!(
            config.contains(r#"address = "/run/evenkeel/containerd/containerd.sock""#),
            "{config}"
        );
        let (top, _) = config.split_once("\n[").unwrap();
        assert!(
            DISABLED_PLUGINS.iter().all(|it| top.contains(it)),
            "before the first table: {config}"
        );
    }

    #[test]
    fn a_large_log_is_cut_and_its_end_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let embedded = Embedded::new(directory.path(), directory.path());
        embedded.trim_log().unwrap();
        fs::create_dir(embedded.root()).unwrap();
        let mut text = vec![b'x'; usize::try_from(LOG_LIMIT).unwrap()];
        fs::write(embedded.log(), &text).unwrap();
        embedded.trim_log().unwrap();
        assert_eq!(fs::metadata(embedded.log()).unwrap().len(), LOG_LIMIT);
        text.extend_from_slice(b"the end");
        fs::write(embedded.log(), &text).unwrap();
        embedded.trim_log().unwrap();
        assert_eq!(fs::metadata(embedded.log()).unwrap().len(), 0);
        let kept = fs::read(embedded.root().join("containerd.log.1")).unwrap();
        assert!(kept.ends_with(b"the end") && kept.len() as u64 == LOG_LIMIT);
    }

    #[test]
    fn an_engine_that_was_never_started_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let embedded =
            Embedded::new(&directory.path().join("state"), &directory.path().join("run"));
        assert_eq!(embedded.find(), Found::Never);
        embedded.stop().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        fs::create_dir_all(embedded.root()).unwrap();
        assert_eq!(embedded.find(), Found::Stopped);
    }
}
