//! The seam to where images come from: [`Registry`], its values and its one error.
//!
//! Stores nothing and tries nothing twice: what to do about a failure is decided elsewhere, from its [`Reason`].

use std::pin::Pin;
use std::time::Duration;

use prost::bytes::Bytes;
use tokio_stream::Stream;

use crate::content::Descriptor;

pub mod http;
pub mod memory;

/// Bytes as they come.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// What a registry will have said.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Registries: real ones, or a model of them in memory.
///
/// Images are named in full: `docker.io/library/redis:7`, `registry.example/a/b@sha256:…`. Of a name with a tag and a
/// digest the digest alone counts.
///
/// # Guarantees
/// Every call ends: who is silent for too long has failed. Nothing that is kept in memory is larger than
/// [`crate::content::JSON_LIMIT`], whatever the other side sends. No error tells a secret.
pub trait Registry: Send + Sync + 'static {
    /// What a name stands for now: an index or a manifest, as the registry has it.
    fn resolve<'a>(&'a self, image: &'a str) -> Answer<'a, Descriptor>;

    /// An index, a manifest or a configuration of that image, whole and verified.
    fn read<'a>(&'a self, image: &'a str, content: &'a Descriptor) -> Answer<'a, Vec<u8>>;

    /// A blob of that image from an offset on, as it comes. It is not verified, and may be shorter or longer than it is
    /// said to be: whoever stores it looks at that.
    fn stream<'a>(
        &'a self,
        image: &'a str,
        content: &'a Descriptor,
        offset: u64,
    ) -> Answer<'a, Pieces>;
}

/// Why something could not be had from a registry. `Display`: who said or did what, and no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub reason: Reason,
    pub message: String,
    /// The registry asks not to be asked again before that.
    pub retry_after: Option<Duration>,
}

impl Error {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after: None }
    }
}

/// The kinds of failures that people do different things about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its name is not known, or nobody accepts the connection.
    Unreachable,
    /// It was connected, and said nothing for too long, or broke off.
    Silent,
    /// Its certificate is not trusted, or it speaks no TLS.
    Untrusted,
    /// It knows no such image, or does not let us know.
    NotFound,
    /// It wants credentials, or others.
    Unauthorized,
    /// It has had enough of us for now.
    RateLimited,
    /// It answered with a failure of its own, or with what is no answer.
    Broken,
    /// What came is not what its digest says.
    Mismatch,
    /// Our own settings for it cannot be used: credentials, their helper, a file about its host.
    Settings,
}

impl Reason {
    /// As `status` and the journal have it.
    pub fn code(self) -> &'static str {
        match self {
            Self::Unreachable => "registry-unreachable",
            Self::Silent => "registry-silent",
            Self::Untrusted => "registry-untrusted",
            Self::NotFound => "image-not-found",
            Self::Unauthorized => "registry-unauthorized",
            Self::RateLimited => "registry-rate-limited",
            Self::Broken => "registry-failed",
            Self::Mismatch => "content-mismatch",
            Self::Settings => "registry-settings",
        }
    }
}
