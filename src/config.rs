//! Flags, environment and configuration file → [`Settings`].
//!
//! Flags win over the environment, which wins over the file; the file's keys are the flags' names in camelCase.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::backoff::Delays;
use crate::manifest::{self, Problem};
use crate::plan::{LogDefaults, Policy};
use crate::workload::{
    Backoff, Bytes, DEFAULT_SHM_SIZE, IpcDefaults, IpcMode, RestartPolicy, Span,
};

/// Where things are unless something else is said.
pub const CONFIG: &str = "/etc/evenkeel/config.yaml";
pub const MANIFESTS: &str = "/etc/evenkeel/manifests";
pub const RUN_DIRECTORY: &str = "/run/evenkeel";
pub const STATE_DIRECTORY: &str = "/var/lib/evenkeel";
pub const CONTAINERD_NAMESPACE: &str = "evenkeel";

/// Time that must pass after the last change in a source before an absent document acts.
pub const REMOVE_AFTER: Duration = Duration::from_secs(2);

/// Per cent of a source's workloads that may go by absence within ten minutes.
pub const PRUNE_LIMIT: u32 = 50;

/// One file of a container's log, and how many are kept, the one being written included.
pub const LOG: LogDefaults = LogDefaults {
    max_size: match Bytes::new(10 << 20) {
        Some(size) => size,
        None => DEFAULT_SHM_SIZE,
    },
    max_files: 2,
};

/// Which containerd is used.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum EngineChoice {
    /// The system's if there is one, else a private one; decided once
    #[default]
    Auto,
    /// The one at the containerd address
    System,
    /// A private one, with everything below our own directories
    Embedded,
}

/// What was typed; `None`: not given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct Flags {
    /// Configuration file [default: /etc/evenkeel/config.yaml, if it is there]
    #[arg(long, global = true, env = "EVENKEEL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory (or file) of manifests; can be repeated [default: /etc/evenkeel/manifests]
    #[arg(
        long,
        global = true,
        env = "EVENKEEL_MANIFESTS",
        value_name = "PATH",
        value_delimiter = ','
    )]
    pub manifests: Vec<PathBuf>,
    /// Run directory, on a tmpfs [default: /run/evenkeel]
    #[arg(long, global = true, env = "EVENKEEL_RUN_DIR", value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// State directory: logs, image archives [default: /var/lib/evenkeel]
    #[arg(long, global = true, env = "EVENKEEL_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Socket of the system's containerd [default: /run/containerd/containerd.sock]
    #[arg(long, global = true, env = "EVENKEEL_CONTAINERD_ADDRESS", value_name = "SOCKET")]
    pub containerd_address: Option<PathBuf>,
    /// containerd namespace [default: evenkeel]
    #[arg(long, global = true, env = "EVENKEEL_CONTAINERD_NAMESPACE", value_name = "NAME")]
    pub containerd_namespace: Option<String>,
    /// Which containerd [default: auto]
    #[arg(long, global = true, env = "EVENKEEL_ENGINE", value_enum)]
    pub engine: Option<EngineChoice>,
    /// IPC mode of new instances whose manifest names none: private or shareable [default: private]
    #[arg(long, global = true, env = "EVENKEEL_DEFAULT_IPC_MODE", value_name = "MODE")]
    pub default_ipc_mode: Option<String>,
    /// Size of /dev/shm of new instances whose manifest names none [default: 64Mi]
    #[arg(long, global = true, env = "EVENKEEL_DEFAULT_SHM_SIZE", value_name = "SIZE")]
    pub default_shm_size: Option<String>,
}

/// The configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// Directories (or files) of manifests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<PathBuf>,
    /// Run directory, on a tmpfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_dir: Option<PathBuf>,
    /// State directory: logs, image archives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Socket of the system's containerd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containerd_address: Option<PathBuf>,
    /// containerd namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containerd_namespace: Option<String>,
    /// Which containerd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineChoice>,
    /// IPC mode of new instances whose manifest names none: `private` or `shareable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_ipc_mode: Option<String>,
    /// Size of /dev/shm of new instances whose manifest names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_shm_size: Option<Bytes>,
    /// Time after the last change in a source before an absent document acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove_after: Option<Span>,
    /// Per cent of a source's workloads that may go by absence within ten minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub prune_limit: Option<u32>,
    /// An emptied directory of manifests removes everything that came from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_empty: Option<bool>,
    /// What a manifest's `restart` leaves open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartFile>,
    /// What a manifest's `log` leaves open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogFile>,
}

/// See [`File::restart`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestartFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<RestartPolicy>,
    #[serde(default)]
    pub backoff: Backoff,
}

/// See [`File::log`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_files: Option<u32>,
}

/// Everything that can be set, with every default applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub manifests: Vec<PathBuf>,
    pub run_directory: PathBuf,
    pub state_directory: PathBuf,
    /// `None`: nobody said, and the system's usual socket is meant.
    pub containerd_address: Option<PathBuf>,
    pub containerd_namespace: String,
    pub engine: EngineChoice,
    pub ipc: IpcDefaults,
    pub remove_after: Duration,
    pub prune_limit: u32,
    pub allow_empty: bool,
    pub restart: RestartPolicy,
    pub delays: Delays,
    pub log: LogDefaults,
    /// The file that was read, if there was one.
    pub config: Option<PathBuf>,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to read configuration `{path}`: {cause}")]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("{}", list(.0))]
    Problems(Vec<Problem>),
    #[error("{flag}: {message}")]
    Value { flag: &'static str, message: String },
    #[error("{0}")]
    Conflict(String),
}

fn list(problems: &[Problem]) -> String {
    let line = |it: &Problem| {
        let hint = it.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
        format!("{}: error[{}]: {}{hint}", it.position, it.code, it.message)
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Largest configuration file, as for manifests.
const LIMIT: u64 = 256 << 10;

impl Settings {
    /// Reads the file that the flags name, or the default one if it is there, and puts the flags over it.
    pub fn load(flags: &Flags) -> Result<Self, Error> {
        let (file, path) = Self::file(flags)?;
        Self::merge(flags, file, path)
    }

    /// As [`Settings::load`], and refuses flags that say something else than the file: a controller that runs for
    /// years must not depend on which of the two somebody remembers.
    pub fn load_strictly(flags: &Flags) -> Result<Self, Error> {
        let (file, path) = Self::file(flags)?;
        if let Some(path) = &path {
            Self::agree(flags, &file, path)?;
        }
        Self::merge(flags, file, path)
    }

    fn file(flags: &Flags) -> Result<(File, Option<PathBuf>), Error> {
        let path = flags.config.clone().unwrap_or_else(|| PathBuf::from(CONFIG));
        let bytes = match read_limited(&path) {
            Ok(bytes) => bytes,
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && flags.config.is_none() =>
            {
                return Ok((File::default(), None));
            }
            Err(cause) => return Err(Error::Read { path, cause }),
        };
        let file = manifest::configuration(&path, &bytes).map_err(Error::Problems)?;
        Ok((file, Some(path)))
    }

    fn agree(flags: &Flags, file: &File, path: &Path) -> Result<(), Error> {
        let differs = |flag: &str, key: &str, typed: Option<String>, written: Option<String>| match (
            typed, written,
        ) {
            (Some(typed), Some(written)) if typed != written => Err(Error::Conflict(format!(
                "--{flag} says `{typed}` and {} says `{key}: {written}`; say it in one place",
                path.display()
            ))),
            _ => Ok(()),
        };
        let show = |path: &Option<PathBuf>| path.as_ref().map(|it| it.display().to_string());
        let paths = |paths: &[PathBuf]| {
            (!paths.is_empty()).then(|| {
                paths.iter().map(|it| it.display().to_string()).collect::<Vec<_>>().join(",")
            })
        };
        let engine = |it: Option<EngineChoice>| it.map(|it| format!("{it:?}").to_lowercase());
        differs("manifests", "manifests", paths(&flags.manifests), paths(&file.manifests))?;
        differs("run-dir", "runDir", show(&flags.run_dir), show(&file.run_dir))?;
        differs("state-dir", "stateDir", show(&flags.state_dir), show(&file.state_dir))?;
        let address = (show(&flags.containerd_address), show(&file.containerd_address));
        differs("containerd-address", "containerdAddress", address.0, address.1)?;
        let namespace = (flags.containerd_namespace.clone(), file.containerd_namespace.clone());
        differs("containerd-namespace", "containerdNamespace", namespace.0, namespace.1)?;
        differs("engine", "engine", engine(flags.engine), engine(file.engine))?;
        let mode = (flags.default_ipc_mode.clone(), file.default_ipc_mode.clone());
        differs("default-ipc-mode", "defaultIpcMode", mode.0, mode.1)?;
        let size = |text: &String| {
            text.parse::<Bytes>().map_or_else(|_| text.clone(), |it| it.to_string())
        };
        let sizes = (
            flags.default_shm_size.as_ref().map(size),
            file.default_shm_size.map(|it| it.to_string()),
        );
        differs("default-shm-size", "defaultShmSize", sizes.0, sizes.1)
    }

    fn merge(flags: &Flags, file: File, config: Option<PathBuf>) -> Result<Self, Error> {
        let Flags {
            config: _,
            manifests,
            run_dir,
            state_dir,
            containerd_address,
            containerd_namespace,
            engine,
            default_ipc_mode,
            default_shm_size,
        } = flags.clone();
        let mode = default_ipc_mode
            .map(|text| ("--default-ipc-mode", text))
            .or(file.default_ipc_mode.map(|text| ("defaultIpcMode", text)));
        let mode = match mode {
            None => IpcMode::Private,
            Some((flag, text)) => match text.parse::<IpcMode>() {
                Ok(mode @ (IpcMode::Private | IpcMode::Shareable)) => mode,
                Ok(mode) => {
                    let message = format!(
                        "`{mode}` is not supported as default value; use private or shareable"
                    );
                    return Err(Error::Value { flag, message });
                }
                Err(_) => {
                    let message = format!("`{text}` is invalid; use private or shareable");
                    return Err(Error::Value { flag, message });
                }
            },
        };
        let shm_size = match default_shm_size {
            None => file.default_shm_size.unwrap_or(DEFAULT_SHM_SIZE),
            Some(text) => text.parse().map_err(|_| Error::Value {
                flag: "--default-shm-size",
                message: format!(
                    "`{text}` is not a size; write whole bytes with Ki, Mi or Gi, such as 64Mi"
                ),
            })?,
        };
        let manifests = match (manifests.is_empty(), file.manifests.is_empty()) {
            (false, _) => manifests,
            (true, false) => file.manifests,
            (true, true) => vec![PathBuf::from(MANIFESTS)],
        };
        let restart = file.restart.unwrap_or_default();
        let log = file.log.unwrap_or_default();
        Ok(Self {
            manifests,
            run_directory: run_dir.or(file.run_dir).unwrap_or_else(|| RUN_DIRECTORY.into()),
            state_directory: state_dir.or(file.state_dir).unwrap_or_else(|| STATE_DIRECTORY.into()),
            containerd_address: containerd_address.or(file.containerd_address),
            containerd_namespace: containerd_namespace
                .or(file.containerd_namespace)
                .unwrap_or_else(|| CONTAINERD_NAMESPACE.to_owned()),
            engine: engine.or(file.engine).unwrap_or_default(),
            ipc: IpcDefaults { mode, shm_size },
            remove_after: file.remove_after.map_or(REMOVE_AFTER, |it| it.0),
            prune_limit: file.prune_limit.unwrap_or(PRUNE_LIMIT),
            allow_empty: file.allow_empty.unwrap_or(false),
            restart: restart.policy.unwrap_or_default(),
            delays: Delays::of(&restart.backoff, Delays::default()),
            log: LogDefaults {
                max_size: log.max_size.unwrap_or(LOG.max_size),
                max_files: log.max_files.unwrap_or(LOG.max_files),
            },
            config,
        })
    }

    /// What the plan follows.
    pub fn policy(&self) -> Policy {
        Policy {
            ipc: self.ipc.clone(),
            restart: self.restart,
            delays: self.delays,
            log: self.log,
            prune_limit: self.prune_limit,
            run_directory: self.run_directory.clone(),
            log_directory: self.log_directory(),
            cgroup_parent: cgroup_parent(&self.run_directory),
        }
    }

    pub fn log_directory(&self) -> PathBuf {
        self.state_directory.join("logs")
    }

    /// Where image archives are looked for.
    pub fn image_directory(&self) -> PathBuf {
        self.state_directory.join("images")
    }
}

/// The cgroup of a run directory's instances: two run directories never share one.
pub fn cgroup_parent(run_directory: &Path) -> String {
    if run_directory == Path::new(RUN_DIRECTORY) {
        return "/evenkeel".to_owned();
    }
    let digest = Sha256::digest(run_directory.as_os_str().as_encoded_bytes());
    let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("/evenkeel-{hex}")
}

fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > LIMIT {
        return Err(std::io::Error::other(format!("larger than {} KiB", LIMIT >> 10)));
    }
    Ok(bytes)
}
