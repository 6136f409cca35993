//! Registries over HTTP: the distribution protocol, with what containerd's `hosts.toml` and Docker's and Podman's
//! files say of their hosts.
//!
//! A client of its own: what is kept in memory has a bound, each wait has an end, what a registry says about trying
//! again is passed on, and secrets go to whom they are for. It decides nothing about failures.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Client;
use tokio::time::Instant;

pub use self::credentials::usual_files;
use self::hosts::{Host, Tls};
use self::session::Session;
use super::{Answer, Error, Pieces, Reason, Registry};
use crate::content::{Descriptor, Digest};
use crate::workload::ImageName;

mod answer;
mod auth;
mod client;
mod credentials;
mod files;
mod hosts;
mod session;

/// A client is made anew after that, so that renewed certificates are seen; within it, connections are used again.
const CLIENT_LIFE: Duration = Duration::from_mins(1);

/// A mirror that is not there, that breaks off or has wrong bytes is passed over for so long: an image is asked for in
/// dozens of requests, and each try at a layer would begin with the mirror that has spoilt the last one.
const SHUNNED: Duration = Duration::from_mins(1);

/// What the box says of registries. It has no secret, only where they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Directories in the layout of containerd's `certs.d`; the first that has something about a registry counts.
    pub hosts: Vec<PathBuf>,
    /// These go before all files.
    pub logins: Vec<Login>,
    /// Files as Docker and Podman write them; the first that has something for a registry counts.
    pub credentials: Vec<PathBuf>,
    /// Where credential helpers are looked for before PATH.
    pub helpers: Vec<PathBuf>,
    pub deadlines: Deadlines,
}

/// A name for a registry, and where its password is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// `registry.example`, `registry.example:5000`.
    pub host: String,
    pub username: String,
    pub password_file: PathBuf,
}

/// How long something is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// A connection, with TLS.
    pub connect: Duration,
    /// The head of an answer.
    pub head: Duration,
    /// The next piece of an answer.
    pub stall: Duration,
    /// All of an answer that is not a layer: a host must not keep us with a byte now and then.
    pub whole: Duration,
    /// A credential helper.
    pub helper: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            head: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            whole: Duration::from_mins(2),
            helper: Duration::from_secs(10),
        }
    }
}

/// Registries over HTTP; clones are the same ones.
#[derive(Debug, Clone)]
pub struct HttpRegistry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: Options,
    tokens: auth::Tokens,
    clients: Mutex<Vec<Kept>>,
    shunned: Arc<Shunned>,
}

/// Hosts that have failed a moment ago, and until when they are passed over.
#[derive(Debug, Default)]
struct Shunned(Mutex<BTreeMap<String, Instant>>);

impl Shunned {
    fn add(&self, host: &Host) {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        hosts.retain(|_, until| now < *until);
        hosts.insert(host.base.to_string(), now + SHUNNED);
    }

    fn has(&self, host: &Host) -> bool {
        let hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.get(host.base.as_str()).is_some_and(|until| Instant::now() < *until)
    }
}

#[derive(Debug)]
struct Kept {
    kind: Kind,
    client: Client,
    since: Instant,
}

/// What makes two clients different.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kind {
    tls: Tls,
    connect: Duration,
    is_loopback: bool,
}

impl HttpRegistry {
    /// Reads nothing yet: files are read when an image is asked for.
    pub fn new(options: Options) -> Self {
        let (tokens, clients, shunned) = Default::default();
        Self(Arc::new(Shared { options, tokens, clients, shunned }))
    }

    /// The hosts that an image is asked for, each with what is needed to ask it.
    async fn attempts(
        &self,
        image: &str,
        is_wanted: fn(&Host) -> bool,
    ) -> Result<Attempts<'_>, Error> {
        let name = Name::of(image)?;
        let directories = self.0.options.hosts.clone();
        let registry = name.registry.clone();
        let found = tokio::task::spawn_blocking(move || hosts::find(&directories, &registry)).await;
        let hosts = found.unwrap_or_else(|error| Err(lost(&error)))?;
        let mut hosts: VecDeque<Host> = hosts.into_iter().filter(is_wanted).collect();
        let mut failures = Vec::new();
        // The last one is asked in any case: there is nobody else.
        let last = hosts.pop_back();
        hosts.retain(|it| {
            let is_shunned = self.0.shunned.has(it);
            if is_shunned {
                let what = format!("`{}` has failed a moment ago", it.name());
                failures.push(Error::new(Reason::Unreachable, what));
            }
            !is_shunned
        });
        hosts.extend(last);
        Ok(Attempts { shared: &self.0, name, hosts, failures })
    }
}

/// A thread for reading files that did not end well.
fn lost(error: &tokio::task::JoinError) -> Error {
    Error::new(Reason::Settings, format!("failed to read settings: {error}"))
}

impl Shared {
    /// A client for a host, with the connections that are still open.
    async fn client(&self, host: &Host) -> Result<Client, Error> {
        let kind = Kind {
            tls: host.tls.clone(),
            connect: host.connect.unwrap_or(self.options.deadlines.connect),
            is_loopback: hosts::is_loopback(host.name()),
        };
        {
            let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.retain(|it| it.since.elapsed() < CLIENT_LIFE);
            if let Some(kept) = clients.iter().find(|it| it.kind == kind) {
                return Ok(kept.client.clone());
            }
        }
        let made = kind.clone();
        let made = tokio::task::spawn_blocking(move || {
            client::client(&made.tls, made.connect, made.is_loopback)
        });
        let client = made.await.unwrap_or_else(|error| Err(lost(&error)))?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.push(Kept { kind, client: client.clone(), since: Instant::now() });
        Ok(client)
    }
}

/// The hosts that are still to be asked, and why the others did not help.
struct Attempts<'a> {
    shared: &'a Shared,
    name: Name,
    hosts: VecDeque<Host>,
    failures: Vec<Error>,
}

impl<'a> Attempts<'a> {
    /// The next host; one that cannot even be asked is passed over.
    async fn next(&mut self) -> Option<Session<'a>> {
        while let Some(host) = self.hosts.pop_front() {
            match self.shared.client(&host).await {
                Ok(client) => {
                    let is_last = self.hosts.is_empty();
                    let name = self.name.clone();
                    return Some(Session::new(self.shared, client, host, name, is_last));
                }
                Err(error) => self.failures.push(error),
            }
        }
        None
    }

    fn failed(&mut self, session: &Session<'_>, error: Error) {
        // What else is wrong with a mirror is known at once, and may be about this image alone.
        let is_lasting =
            matches!(error.reason, Reason::Unreachable | Reason::Silent | Reason::Mismatch);
        if is_lasting {
            session.shun();
        }
        self.failures.push(error);
    }

    /// The failure of the last host, which is the registry itself, with the mirrors that did not help either.
    fn end(mut self) -> Error {
        let Some(mut last) = self.failures.pop() else {
            let what = format!(
                "no host of `{}` may be asked for `{}`: see `capabilities` in its hosts.toml",
                self.name.registry, self.name
            );
            return Error::new(Reason::Settings, what);
        };
        if !self.failures.is_empty() {
            let mirrors: Vec<String> = self.failures.into_iter().map(|it| it.message).collect();
            last.message = format!("{} (mirrors: {})", last.message, mirrors.join("; "));
        }
        last
    }
}

impl Registry for HttpRegistry {
    fn resolve<'a>(&'a self, image: &'a str) -> Answer<'a, Descriptor> {
        Box::pin(self.resolve_any(image))
    }

    fn read<'a>(&'a self, image: &'a str, content: &'a Descriptor) -> Answer<'a, Vec<u8>> {
        Box::pin(self.read_any(image, content))
    }

    fn stream<'a>(
        &'a self,
        image: &'a str,
        content: &'a Descriptor,
        offset: u64,
    ) -> Answer<'a, Pieces> {
        Box::pin(self.stream_any(image, content, offset))
    }
}

impl HttpRegistry {
    async fn resolve_any(&self, image: &str) -> Result<Descriptor, Error> {
        let mut attempts = self.attempts(image, |it| it.can.resolve).await?;
        while let Some(session) = attempts.next().await {
            match session.resolve().await {
                Ok(found) => return Ok(found),
                Err(error) => attempts.failed(&session, error),
            }
        }
        Err(attempts.end())
    }

    async fn read_any(&self, image: &str, content: &Descriptor) -> Result<Vec<u8>, Error> {
        let mut attempts = self.attempts(image, |it| it.can.pull).await?;
        while let Some(session) = attempts.next().await {
            match session.read(content).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => attempts.failed(&session, error),
            }
        }
        Err(attempts.end())
    }

    async fn stream_any(
        &self,
        image: &str,
        content: &Descriptor,
        offset: u64,
    ) -> Result<Pieces, Error> {
        let mut attempts = self.attempts(image, |it| it.can.pull).await?;
        while let Some(session) = attempts.next().await {
            match session.stream(content, offset).await {
                Ok(pieces) => return Ok(pieces),
                Err(error) => attempts.failed(&session, error),
            }
        }
        Err(attempts.end())
    }
}

/// An image's full name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    registry: String,
    repository: String,
    /// A tag, or a digest.
    reference: String,
}

impl Name {
    fn of(image: &str) -> Result<Self, Error> {
        let wrong = || {
            let what = format!("`{}` is not the name of an image", image.escape_debug());
            Error::new(Reason::Settings, what)
        };
        let full = image.parse::<ImageName>().map_err(|_| wrong())?.full();
        let (registry, rest) = full.split_once('/').ok_or_else(wrong)?;
        let (path, digest) = match rest.split_once('@') {
            Some((path, digest)) => (path, Some(digest)),
            None => (rest, None),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        let reference = digest.or(tag).ok_or_else(wrong)?;
        let [registry, repository, reference] =
            [registry, repository, reference].map(str::to_owned);
        Ok(Self { registry, repository, reference })
    }

    /// The digest that the name has, if it is of the kind that we compute.
    fn digest(&self) -> Option<Digest> {
        self.reference.parse().ok()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.reference.contains(':') { '@' } else { ':' };
        write!(f, "{}{mark}{}", self.repository, self.reference)
    }
}

#[cfg(test)]
mod tests;
