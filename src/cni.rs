//! Calls CNI plugins: programs that put a network namespace onto a network, and take it off again.
//!
//! By the Container Network Interface specification (`SPEC.md` of containernetworking/cni), versions 0.3.0 to 1.1.0.
//! A *network* is a file that somebody wrote ([`Network`], found by [`Configurations`]): a name and a chain of plugins.
//! An *attachment* is one interface of one container on it ([`Attachment`], [`Key`]). [`Caller`] runs the chain, and
//! what it came to is an [`Allocation`]; a [`Cache`] keeps what each was made with, for as long as it lasts.
//!
//! ```text
//! /etc/cni/net.d/*.conflist ─▶ Network ─┐            stdin: plugin's object + name, cniVersion,
//!                                       ├─▶ Caller ─▶       runtimeConfig, prevResult           ─▶ plugin
//! container, namespace, interface ──────┘    │  ▲    CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, …     │
//!                                            ▼  └────── stdout: result, or {code, msg, details} ◀───┘
//!                             Cache: configuration, attachment, result
//! ```
//!
//! What a plugin is given is passed on as it was written, whatever it says: nobody here knows the fields of plugins.
//!
//! Nothing is tried twice, nothing is logged, and nobody here knows which networks and containers there should be.
//! Who calls keeps the rule of the specification that nothing happens twice at a time for one container. GC, STATUS,
//! VERSION and the folders of plugin files of version 1.1 are not used.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

mod allocation;
mod attachment;
mod cache;
mod caller;
mod configuration;
mod json;
mod process;

pub use allocation::{Allocation, Dns, Interface, Ip, Prefix, Route};
pub use attachment::{Attachment, Key};
pub use cache::{BrokenEntry, Cache, Entry, Listing};
pub use caller::{Caller, Checked, DEADLINE, PLUGIN_DIRECTORIES};
pub use configuration::{BrokenFile, Configurations, InvalidNetwork, Network, Version};
pub use process::{Call, Verb};

/// Why a network could not be used. `Display`: what happened and what to do about it; [`Error::code`]: a word for it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no network is called `{name}`: put a file *.conflist with this name into one of {directories}{broken}"
    )]
    NetworkUnknown { name: String, directories: String, broken: String },
    /// A file with the network, or a directory with plugins, cannot be used.
    #[error("`{}` cannot be used: {reason}", path.display())]
    ConfigInvalid { path: PathBuf, reason: String },
    /// What the caller asks for is not possible on any network.
    #[error("{0}")]
    AttachmentInvalid(String),
    #[error(
        "{key} has been added before, or was begun: delete it first, since undoing a second one would undo the first"
    )]
    AlreadyAdded { key: Key },
    #[error("{key} is not there to be checked: delete what may be left of it and add it")]
    NotAdded { key: Key },
    #[error(
        "the plugin `{plugin}` of network `{network}` is in none of {directories}: install it (Debian: containernetworking-plugins)"
    )]
    PluginMissing { plugin: String, network: String, directories: String },
    #[error("{call} could not be run: look whether `{}` is a program for this machine", program.display())]
    PluginUnusable {
        call: Call,
        program: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(
        "{call} did not end within {after:?} and was killed: look what it waits for, such as a daemon or a lock"
    )]
    PluginTimeout { call: Call, after: Duration },
    #[error("{call} does not keep to the protocol: it {what}; replace it or its configuration")]
    PluginGarbage { call: Call, what: String },
    #[error(
        "{call} has no address left: widen the range, or delete what holds addresses and is gone: {message}"
    )]
    NoAddresses { call: Call, message: String },
    #[error("{call} lacks a program: install it (for port mappings: iptables): {message}")]
    ToolMissing { call: Call, message: String },
    #[error("{call} cannot do it now: look what it waits for, or wait: {message}")]
    TryLater { call: Call, message: String },
    #[error(
        "{call} does not know this version of CNI: write one that it knows as `cniVersion`, or update it: {message}"
    )]
    VersionRefused { call: Call, message: String },
    #[error("{call} refuses its configuration: change that: {message}")]
    ConfigRefused { call: Call, message: String },
    /// Whatever else a plugin says; `code` is its own number for it.
    #[error("{call} failed: {message}")]
    Failed { call: Call, code: Option<u64>, message: String },
    #[error("failed to {operation} `{}`: see to it that this can be done", path.display())]
    Cache {
        operation: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(
        "`{}` does not say what was added: delete it with the network's configuration at hand: {reason}",
        path.display()
    )]
    CacheBroken { path: PathBuf, reason: String },
}

impl Error {
    /// As `status` and the journal have it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NetworkUnknown { .. } => "cni-network-unknown",
            Self::ConfigInvalid { .. } | Self::ConfigRefused { .. } => "cni-config-invalid",
            Self::AttachmentInvalid(_) => "cni-attachment-invalid",
            Self::AlreadyAdded { .. } => "cni-already-added",
            Self::NotAdded { .. } => "cni-not-added",
            Self::PluginMissing { .. } => "cni-plugin-missing",
            Self::PluginUnusable { .. } => "cni-plugin-unusable",
            Self::PluginTimeout { .. } => "cni-plugin-timeout",
            Self::PluginGarbage { .. } => "cni-plugin-garbage",
            Self::NoAddresses { .. } => "cni-no-addresses",
            Self::ToolMissing { .. } => "cni-tool-missing",
            Self::TryLater { .. } => "cni-try-later",
            Self::VersionRefused { .. } => "cni-version-refused",
            Self::Failed { .. } => "cni-failed",
            Self::Cache { .. } => "cni-cache-failed",
            Self::CacheBroken { .. } => "cni-cache-broken",
        }
    }
}

/// The text of a file that somebody else may have put there; `None`: there is none.
///
/// Never waits, as it would for a pipe that nobody writes to, and never reads more than `limit`.
fn read_file(path: &Path, limit: u64) -> Result<Option<String>, String> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if !file.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("it is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if u64::try_from(bytes.len()).is_ok_and(|it| it > limit) {
        return Err(format!("it is larger than {limit} bytes"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| "it is not UTF-8".to_owned())
}

/// Paths as a message shows them.
fn listed(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths.iter().map(|it| format!("`{}`", it.display())).collect();
    shown.join(", ")
}

#[cfg(test)]
mod tests;
