//! Flags, environment and configuration file → [`Settings`].
//!
//! Flags win over the environment, which wins over the file; the file's keys are the flags' names in camelCase.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgMatches, Args, ValueEnum};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::backoff::Delays;
use crate::content::hex;
use crate::manifest::{self, Problem};
use crate::plan::{ImagePolicy, LogDefaults, Policy};
use crate::workload::{
    AbsolutePath, Backoff, Bytes, DEFAULT_SHM_SIZE, Invalid, IpcDefaults, IpcMode, RestartPolicy,
    Span,
};

/// Where things are unless something else is said.
pub const CONFIG: &str = "/etc/evenkeel/config.yaml";
pub const MANIFESTS: &str = "/etc/evenkeel/manifests";
pub const RUN_DIRECTORY: &str = "/run/evenkeel";
pub const STATE_DIRECTORY: &str = "/var/lib/evenkeel";
pub const CONTAINERD_NAMESPACE: &str = "evenkeel";

/// Where something may be said of registries' hosts: by us, by containerd, by Docker.
pub const HOSTS_DIRECTORIES: [&str; 3] =
    ["/etc/evenkeel/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"];

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
#[schemars(inline)]
pub enum EngineChoice {
    /// The system's if there is one, else a private one; decided once
    #[default]
    Auto,
    /// The one at the containerd address
    System,
    /// A private one, with everything below our own directories
    Embedded,
}

/// IPC modes that can be a default: with any other, a manifest that names none would mean something surprising.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum DefaultIpcMode {
    #[default]
    Private,
    Shareable,
}

impl From<DefaultIpcMode> for IpcMode {
    fn from(mode: DefaultIpcMode) -> Self {
        match mode {
            DefaultIpcMode::Private => Self::Private,
            DefaultIpcMode::Shareable => Self::Shareable,
        }
    }
}

/// What the command line and the environment say; `None`: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct Flags {
    /// Configuration file [default: /etc/evenkeel/config.yaml, if it is there]
    #[arg(
        long,
        global = true,
        env = "EVENKEEL_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub config: Option<PathBuf>,
    /// Directory (or file) of manifests; repeatable, or with commas [default: /etc/evenkeel/manifests]
    #[arg(
        long,
        global = true,
        env = "EVENKEEL_MANIFESTS",
        hide_env_values = true,
        value_name = "PATH",
        value_delimiter = ','
    )]
    pub manifests: Vec<PathBuf>,
    /// Run directory, on a tmpfs [default: /run/evenkeel]
    #[arg(
        long,
        global = true,
        env = "EVENKEEL_RUN_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub run_dir: Option<PathBuf>,
    /// State directory: logs, image archives [default: /var/lib/evenkeel]
    #[arg(
        long,
        global = true,
        env = "EVENKEEL_STATE_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub state_dir: Option<PathBuf>,
    /// Socket of the system's containerd [default: /run/containerd/containerd.sock]
    #[arg(
        long,
        global = true,
        env = "EVENKEEL_CONTAINERD_ADDRESS",
        hide_env_values = true,
        value_name = "SOCKET"
    )]
    pub containerd_address: Option<PathBuf>,
    /// containerd namespace [default: evenkeel]
    #[arg(
        long,
        global = true,
        env = "EVENKEEL_CONTAINERD_NAMESPACE",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub containerd_namespace: Option<ContainerdNamespace>,
    /// Which containerd: `system`, `embedded` (a private one), or `auto`, which decides once [default: auto]
    #[arg(
        long,
        global = true,
        env = "EVENKEEL_ENGINE",
        hide_env_values = true,
        value_enum,
        hide_possible_values = true
    )]
    pub engine: Option<EngineChoice>,
    /// IPC mode of new instances whose manifest names none: `private` or `shareable` [default: private]
    #[arg(
        long,
        global = true,
        env = "EVENKEEL_DEFAULT_IPC_MODE",
        hide_env_values = true,
        value_name = "MODE",
        hide_possible_values = true
    )]
    pub default_ipc_mode: Option<DefaultIpcMode>,
    /// Size of /dev/shm of new instances whose manifest names none [default: 64Mi]
    #[arg(
        long,
        global = true,
        env = "EVENKEEL_DEFAULT_SHM_SIZE",
        hide_env_values = true,
        value_name = "SIZE",
        value_parser = size
    )]
    pub default_shm_size: Option<Bytes>,
    /// Which of them are from the command line; the others are from the environment.
    #[arg(skip)]
    typed: BTreeSet<String>,
}

fn size(text: &str) -> Result<Bytes, String> {
    text.parse().map_err(|error| format!("{error}; write whole bytes with Ki, Mi or Gi: 64Mi"))
}

impl Flags {
    /// Notes what was typed, as opposed to found in the environment.
    pub fn note_typed(&mut self, matches: &ArgMatches) {
        let typed = |id: &&clap::Id| {
            matches.value_source(id.as_str()) == Some(clap::parser::ValueSource::CommandLine)
        };
        self.typed = matches.ids().filter(typed).map(ToString::to_string).collect();
    }
}

/// A namespace of containerd: letters, digits, `.`, `_` and `-`, at most 76 characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerdNamespace(String);

impl ContainerdNamespace {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerdNamespace {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // No two separators in a row, none at an end.
        let part = |it: &str| !it.is_empty() && it.bytes().all(|c| c.is_ascii_alphanumeric());
        if text.len() <= 76 && text.split(['.', '_', '-']).all(part) {
            return Ok(Self(text.to_owned()));
        }
        Err(Invalid(format!(
            "`{text}` is not a containerd namespace; use letters and digits with single `.`, `_` or `-` between them"
        )))
    }
}

impl<'de> Deserialize<'de> for ContainerdNamespace {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for ContainerdNamespace {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ContainerdNamespace".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$",
            "maxLength": 76
        })
    }
}

/// The configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// Directories (or files) of manifests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<AbsolutePath>,
    /// Run directory, on a tmpfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_dir: Option<AbsolutePath>,
    /// State directory: logs, image archives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<AbsolutePath>,
    /// Socket of the system's containerd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containerd_address: Option<AbsolutePath>,
    /// containerd namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containerd_namespace: Option<ContainerdNamespace>,
    /// Which containerd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineChoice>,
    /// IPC mode of new instances whose manifest names none: `private` or `shareable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_ipc_mode: Option<DefaultIpcMode>,
    /// Size of /dev/shm of new instances whose manifest names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_shm_size: Option<Bytes>,
    /// Time after the last change in a source before an absent document acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove_after: Option<Span>,
    /// Per cent of a source's workloads that may go by absence within ten minutes; 100 for no limit.
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
    /// How registries are reached, and who we are for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registries: Option<RegistriesFile>,
    /// How long images are kept that nothing needs any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ImagesFile>,
    /// Directories with archives of images, besides `images/` in the state directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub archives: Vec<AbsolutePath>,
    /// containerd's snapshotter that containers have their files in; found out once when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z0-9]+([._-][a-z0-9]+)*$"))]
    pub snapshotter: Option<String>,
}

/// What a manifest's `restart` leaves open.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestartFile {
    /// When a workload whose main process ended is started again; `always` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<RestartPolicy>,
    /// Delays between restarts.
    #[serde(default)]
    pub backoff: Backoff,
}

/// What a manifest's `log` leaves open.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogFile {
    /// Size of one file before it is rotated; `10Mi` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<Bytes>,
    /// Number of files that are kept, the one being written included; 2 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_files: Option<u32>,
}

/// How registries are reached, and who we are for them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistriesFile {
    /// Directories in the layout of containerd's `certs.d`; the first that has something about a registry counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts_dirs: Option<Vec<AbsolutePath>>,
    /// Files of credentials as Docker and Podman write them, in place of the usual ones; the first that has something
    /// for a registry counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Vec<AbsolutePath>>,
    /// Logins that go before all files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logins: Vec<LoginFile>,
}

/// A login for one registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoginFile {
    /// The registry's name, with its port if it has one: `registry.example:5000`.
    #[schemars(regex(pattern = r"^[^/@\s]+$"))]
    pub host: String,
    #[schemars(length(min = 1))]
    pub username: String,
    /// A file with the password and nothing else, as systemd's credentials are; read when it is needed.
    pub password_file: AbsolutePath,
}

/// How registries are reached, and who we are for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registries {
    pub hosts_directories: Vec<PathBuf>,
    /// `None`: Docker's and Podman's usual ones.
    pub credentials: Option<Vec<PathBuf>>,
    pub logins: Vec<Login>,
}

/// A login for one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub host: String,
    pub username: String,
    pub password_file: PathBuf,
}

/// How long images are kept that nothing needs any more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImagesFile {
    /// Time within one boot after which one is removed; `24h` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<Span>,
    /// Per cent of the disk from which on the oldest are removed before that; 85 when absent, 100 for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub high_watermark: Option<u32>,
    /// Per cent of the disk down to which they are removed then; 80 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub low_watermark: Option<u32>,
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
    pub registries: Registries,
    pub images: ImagePolicy,
    /// Where archives of images are looked for.
    pub archives: Vec<PathBuf>,
    /// `None`: it is found out.
    pub snapshotter: Option<String>,
    /// The file that was read, if there was one.
    pub config: Option<PathBuf>,
    /// The file says nothing at all, as one that a power cut has emptied: every default holds, and that is told.
    pub emptied: Option<Problem>,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to read configuration `{path}`: {cause}")]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("the configuration has problems: {}", list(.0))]
    Problems(Vec<Problem>),
    #[error("{}", .0.join("; "))]
    Conflict(Vec<String>),
    #[error("failed to find the current directory: {0}")]
    Directory(std::io::Error),
}

/// All on one line, for a log; a terminal gets them with their source lines.
fn list(problems: &[Problem]) -> String {
    let line = |it: &Problem| {
        let hint = it.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
        format!("{}: {}{hint} [{}]", it.position, it.message, it.code)
    };
    problems.iter().map(line).collect::<Vec<_>>().join("; ")
}

/// Largest configuration file, as for manifests.
const LIMIT: u64 = 256 << 10;

impl Settings {
    /// Reads the file that the flags name, or the default one if it is there, and puts the flags over it.
    pub fn load(flags: &Flags) -> Result<Self, Error> {
        let (file, path, emptied) = Self::file(flags)?;
        Ok(Self { emptied, ..Self::merge(flags, file, path)? })
    }

    /// As [`Settings::load`], and refuses flags that say something else than the file: a controller that runs for
    /// years must not depend on which of the two somebody remembers.
    pub fn load_strictly(flags: &Flags) -> Result<Self, Error> {
        let (file, path, emptied) = Self::file(flags)?;
        if let Some(path) = &path {
            Self::agree(flags, &file, path)?;
        }
        Ok(Self { emptied, ..Self::merge(flags, file, path)? })
    }

    fn file(flags: &Flags) -> Result<(File, Option<PathBuf>, Option<Problem>), Error> {
        let path = flags.config.clone().unwrap_or_else(|| PathBuf::from(CONFIG));
        let bytes = match read_limited(&path) {
            Ok(bytes) => bytes,
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && flags.config.is_none() =>
            {
                return Ok((File::default(), None, None));
            }
            Err(cause) => return Err(Error::Read { path, cause }),
        };
        let file = manifest::configuration(&path, &bytes).map_err(Error::Problems)?;
        // What says nothing on purpose has at least a comment.
        let is_empty = bytes.trim_ascii().is_empty();
        let emptied = is_empty.then(|| manifest::empty_configuration(&path));
        Ok((file, Some(path), emptied))
    }

    /// Refuses what was typed and what is written to say different things; the environment stands over the file.
    fn agree(flags: &Flags, file: &File, path: &Path) -> Result<(), Error> {
        let shown = |it: Option<&Path>| it.map(|it| it.display().to_string());
        let joined = |paths: Vec<&Path>| {
            let texts: Vec<String> = paths.iter().map(|it| it.display().to_string()).collect();
            (!texts.is_empty()).then(|| texts.join(","))
        };
        let typed_manifests = absolute_all(&flags.manifests)?;
        let word = |it: EngineChoice| {
            it.to_possible_value().map_or_else(String::new, |it| it.get_name().to_owned())
        };
        let mode = |it: DefaultIpcMode| IpcMode::from(it).to_string();
        let settings = [
            (
                "manifests",
                "manifests",
                joined(typed_manifests.iter().map(AsRef::as_ref).collect()),
                joined(file.manifests.iter().map(AbsolutePath::as_path).collect()),
            ),
            (
                "run-dir",
                "runDir",
                shown(absolute_or(flags.run_dir.as_ref())?.as_deref()),
                shown(file.run_dir.as_ref().map(AbsolutePath::as_path)),
            ),
            (
                "state-dir",
                "stateDir",
                shown(absolute_or(flags.state_dir.as_ref())?.as_deref()),
                shown(file.state_dir.as_ref().map(AbsolutePath::as_path)),
            ),
            (
                "containerd-address",
                "containerdAddress",
                shown(absolute_or(flags.containerd_address.as_ref())?.as_deref()),
                shown(file.containerd_address.as_ref().map(AbsolutePath::as_path)),
            ),
            (
                "containerd-namespace",
                "containerdNamespace",
                flags.containerd_namespace.as_ref().map(|it| it.as_str().to_owned()),
                file.containerd_namespace.as_ref().map(|it| it.as_str().to_owned()),
            ),
            ("engine", "engine", flags.engine.map(word), file.engine.map(word)),
            (
                "default-ipc-mode",
                "defaultIpcMode",
                flags.default_ipc_mode.map(mode),
                file.default_ipc_mode.map(mode),
            ),
            (
                "default-shm-size",
                "defaultShmSize",
                flags.default_shm_size.map(|it| it.to_string()),
                file.default_shm_size.map(|it| it.to_string()),
            ),
        ];
        let mut conflicts = Vec::new();
        for (flag, key, said, written) in settings {
            if flags.typed.contains(&flag.replace('-', "_"))
                && let (Some(said), Some(written)) = (said, written)
                && said != written
            {
                conflicts.push(format!(
                    "`--{flag}` says `{said}`, and `{}` says `{key}: {written}`: say it in one place",
                    path.display()
                ));
            }
        }
        if conflicts.is_empty() { Ok(()) } else { Err(Error::Conflict(conflicts)) }
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
            typed: _,
        } = flags;
        let either = |flag: Option<&PathBuf>, written: Option<AbsolutePath>| {
            let written = written.map(|it| it.as_path().to_owned());
            Ok::<_, Error>(absolute_or(flag)?.or(written))
        };
        let manifests = match (manifests.is_empty(), file.manifests.is_empty()) {
            (false, _) => absolute_all(manifests)?,
            (true, false) => file.manifests.iter().map(|it| it.as_path().to_owned()).collect(),
            (true, true) => vec![PathBuf::from(MANIFESTS)],
        };
        let restart = file.restart.unwrap_or_default();
        let log = file.log.unwrap_or_default();
        let images = file.images.unwrap_or_default();
        let default = ImagePolicy::default();
        let high = images.high_watermark.unwrap_or(default.high);
        // One that is not said follows one that is.
        let low = images.low_watermark.unwrap_or(default.low.min(high.saturating_sub(1)));
        if low >= high {
            return Err(Error::Conflict(vec![format!(
                "`images.lowWatermark` is {low} and `images.highWatermark` is {high}: the low one has to be lower"
            )]));
        }
        let run_directory =
            either(run_dir.as_ref(), file.run_dir)?.unwrap_or_else(|| RUN_DIRECTORY.into());
        let state_directory =
            either(state_dir.as_ref(), file.state_dir)?.unwrap_or_else(|| STATE_DIRECTORY.into());
        if run_directory == state_directory {
            return Err(Error::Conflict(vec![format!(
                "run and state directory are both `{}`: one is forgotten at a reboot, the other is not",
                run_directory.display()
            )]));
        }
        let mut archives = vec![state_directory.join("images")];
        archives.extend(file.archives.iter().map(|it| it.as_path().to_owned()));
        Ok(Self {
            manifests,
            archives,
            snapshotter: file.snapshotter,
            run_directory,
            state_directory,
            containerd_address: either(containerd_address.as_ref(), file.containerd_address)?,
            containerd_namespace: containerd_namespace
                .as_ref()
                .or(file.containerd_namespace.as_ref())
                .map_or_else(|| CONTAINERD_NAMESPACE.to_owned(), |it| it.as_str().to_owned()),
            engine: engine.or(file.engine).unwrap_or_default(),
            ipc: IpcDefaults {
                mode: default_ipc_mode.or(file.default_ipc_mode).unwrap_or_default().into(),
                shm_size: default_shm_size.or(file.default_shm_size).unwrap_or(DEFAULT_SHM_SIZE),
            },
            remove_after: file.remove_after.map_or(REMOVE_AFTER, |it| it.0),
            prune_limit: file.prune_limit.unwrap_or(PRUNE_LIMIT),
            allow_empty: file.allow_empty.unwrap_or(false),
            restart: restart.policy.unwrap_or_default(),
            delays: Delays::of(&restart.backoff, Delays::default()),
            log: LogDefaults {
                max_size: log.max_size.unwrap_or(LOG.max_size),
                max_files: log.max_files.unwrap_or(LOG.max_files),
            },
            registries: registries(file.registries.unwrap_or_default()),
            images: ImagePolicy { grace: images.grace.map_or(default.grace, |it| it.0), high, low },
            config,
            emptied: None,
        })
    }

    /// The settings that differ in `next` and that a running controller cannot follow, by their keys in the file.
    pub fn changed_at_start_only(&self, next: &Self) -> Vec<&'static str> {
        let Self {
            manifests,
            run_directory,
            state_directory,
            containerd_address,
            containerd_namespace,
            engine,
            registries,
            archives,
            snapshotter,
            // Followed.
            ipc: _,
            remove_after: _,
            prune_limit: _,
            allow_empty: _,
            restart: _,
            delays: _,
            log: _,
            images: _,
            config: _,
            emptied: _,
        } = self;
        let changed = [
            ("manifests", *manifests != next.manifests),
            ("runDir", *run_directory != next.run_directory),
            ("stateDir", *state_directory != next.state_directory),
            ("containerdAddress", *containerd_address != next.containerd_address),
            ("containerdNamespace", *containerd_namespace != next.containerd_namespace),
            ("engine", *engine != next.engine),
            ("registries", *registries != next.registries),
            // The first one is below the state directory.
            ("archives", archives.get(1..) != next.archives.get(1..)),
            ("snapshotter", *snapshotter != next.snapshotter),
        ];
        changed.into_iter().filter(|it| it.1).map(|it| it.0).collect()
    }

    /// What the plan follows.
    pub fn policy(&self) -> Policy {
        Policy {
            ipc: self.ipc.clone(),
            restart: self.restart,
            delays: self.delays,
            log: self.log,
            images: self.images,
            prune_limit: self.prune_limit,
            run_directory: self.run_directory.clone(),
            log_directory: self.log_directory(),
            cgroup_parent: cgroup_parent(&self.run_directory),
        }
    }

    pub fn log_directory(&self) -> PathBuf {
        self.state_directory.join("logs")
    }
}

fn registries(file: RegistriesFile) -> Registries {
    let paths = |paths: Vec<AbsolutePath>| -> Vec<PathBuf> {
        paths.iter().map(|it| it.as_path().to_owned()).collect()
    };
    let login = |it: LoginFile| Login {
        host: it.host,
        username: it.username,
        password_file: it.password_file.as_path().to_owned(),
    };
    Registries {
        hosts_directories: file
            .hosts_dirs
            .map_or_else(|| HOSTS_DIRECTORIES.map(PathBuf::from).to_vec(), paths),
        credentials: file.credentials.map(paths),
        logins: file.logins.into_iter().map(login).collect(),
    }
}

/// Absolute, and without what says nothing (`.`, doubled and trailing slashes): these paths are handed to containerd,
/// whose current directory is another one. `..` and symlinks stay, which only the kernel can resolve.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    let path = std::path::absolute(path).map_err(Error::Directory)?;
    Ok(path.components().collect())
}

fn absolute_or(path: Option<&PathBuf>) -> Result<Option<PathBuf>, Error> {
    path.map(|it| absolute(it)).transpose()
}

/// Of manifests, where `-` is stdin.
fn absolute_all(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let stdin = Path::new("-");
    paths.iter().map(|it| if it == stdin { Ok(it.clone()) } else { absolute(it) }).collect()
}

/// The cgroup of a run directory's instances: two run directories never share one.
pub fn cgroup_parent(run_directory: &Path) -> String {
    if run_directory == Path::new(RUN_DIRECTORY) {
        return "/evenkeel".to_owned();
    }
    let digest = Sha256::digest(run_directory.as_os_str().as_encoded_bytes());
    format!("/evenkeel-{}", hex(&digest[..4]))
}

fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    // Not waiting for a writer, should it be a FIFO.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a file"));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > LIMIT {
        return Err(std::io::Error::other(format!("larger than {} KiB", LIMIT >> 10)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
