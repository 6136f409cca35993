//! The connection: clients that carry our headers, and one way to wait for an answer.
//!
//! Knows no verb of the seam. Nothing is retried here.

use std::error::Error as _;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::runtime::{Error, ErrorKind};

/// Making a connection to a local socket takes no time unless containerd accepts none.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Largest answer that is taken. containerd itself sends at most 16 MiB, tonic takes 4 MiB unless told.
const ANSWER_LIMIT: usize = 64 << 20;

/// Window for streams: with HTTP/2's 64 KiB a long list waits for the other side again and again.
const STREAM_WINDOW: u32 = 1 << 20;

/// Adds the namespace, and the lease that protects what a call makes from garbage collection.
#[derive(Debug, Clone)]
pub(super) struct Headers {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl tonic::service::Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

/// A channel with our headers.
type Wire = InterceptedService<Channel, Headers>;

/// The way to one containerd and one namespace of it. Connects when it is first used, and again after a loss.
#[derive(Debug, Clone)]
pub(super) struct Link {
    channel: Channel,
    headers: Headers,
    address: PathBuf,
}

/// Makes a method that gives a client of one service.
macro_rules! service {
    ($name:ident, $client:ident) => {
        pub(super) fn $name(&self) -> $client<Wire> {
            $client::with_interceptor(self.channel.clone(), self.headers.clone())
                .max_decoding_message_size(ANSWER_LIMIT)
                .max_encoding_message_size(ANSWER_LIMIT)
        }
    };
}

impl Link {
    /// Has to be called within a tokio runtime.
    pub(super) fn new(address: &Path, namespace: &str) -> Result<Self, Fault> {
        let path = address
            .to_str()
            .ok_or_else(|| Fault::refused("the path of the socket is not UTF-8"))?;
        let endpoint = Endpoint::from_shared(format!("unix://{path}"))
            .map_err(|error| Fault::refused(format!("not a path of a socket: {error}")))?
            .connect_timeout(CONNECT_LIMIT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW);
        let headers = Headers { namespace: header(namespace)?, lease: None };
        Ok(Self { channel: endpoint.connect_lazy(), headers, address: address.to_owned() })
    }

    /// The same link for calls that are made under a lease.
    pub(super) fn under(&self, lease: &str) -> Result<Self, Fault> {
        let mut link = self.clone();
        link.headers.lease = Some(header(lease)?);
        Ok(link)
    }

    pub(super) fn address(&self) -> &Path {
        &self.address
    }

    service!(containers, ContainersClient);
    service!(content, ContentClient);
    service!(diff, DiffClient);
    service!(events, EventsClient);
    service!(images, ImagesClient);
    service!(introspection, IntrospectionClient);
    service!(leases, LeasesClient);
    service!(namespaces, NamespacesClient);
    service!(snapshots, SnapshotsClient);
    service!(tasks, TasksClient);
    service!(version, VersionClient);

    /// Waits for the answer to a call, `limit` at most.
    pub(super) async fn answer<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Fault> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.fault(&status)),
            Err(_) => Err(self.late(limit)),
        }
    }

    /// Waits for all messages of a stream, `limit` at most for all of them together.
    pub(super) async fn gather<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
    ) -> Result<Vec<T>, Fault> {
        let all = async {
            let mut stream = call.await?.into_inner();
            let mut messages = Vec::new();
            while let Some(message) = stream.message().await? {
                messages.push(message);
            }
            Ok(Response::new(messages))
        };
        self.answer(limit, all).await
    }

    /// Waits for the next message of a stream that is expected to go on, `limit` at most.
    pub(super) async fn next<T>(
        &self,
        limit: Duration,
        stream: &mut Streaming<T>,
    ) -> Result<T, Fault> {
        let next = async {
            let message = stream.message().await?;
            message
                .map(Response::new)
                .ok_or_else(|| Status::aborted("containerd ended the stream early"))
        };
        self.answer(limit, next).await
    }

    /// What became of a call. Only what never reached containerd, or whose answer never came back, has a source:
    /// codes alone do not tell, because containerd passes on those of its shims.
    pub(super) fn fault(&self, status: &Status) -> Fault {
        if let Some(mut deepest) = status.source() {
            while let Some(source) = deepest.source() {
                deepest = source;
            }
            let text =
                format!("containerd does not answer on `{}`: {deepest}", self.address.display());
            return Fault { kind: ErrorKind::Unreachable, text };
        }
        let kind = match status.code() {
            Code::NotFound => ErrorKind::Missing,
            Code::AlreadyExists => ErrorKind::Conflict,
            Code::DeadlineExceeded => ErrorKind::Unreachable,
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::InvalidArgument
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
            | Code::Unauthenticated => ErrorKind::Refused,
        };
        Fault { kind, text: status.message().to_owned() }
    }

    fn late(&self, limit: Duration) -> Fault {
        let text =
            format!("no answer from `{}` within {} s", self.address.display(), limit.as_secs_f32());
        Fault { kind: ErrorKind::Unreachable, text }
    }
}

fn header(text: &str) -> Result<MetadataValue<Ascii>, Fault> {
    text.parse()
        .map_err(|_| Fault::refused(format!("`{}` is not an identifier", text.escape_debug())))
}

/// Why a call failed, before it is known which verb of the seam that means.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: ErrorKind,
    text: String,
}

impl Fault {
    pub(super) fn refused(text: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Refused, text: text.into() }
    }

    pub(super) fn conflict(text: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Conflict, text: text.into() }
    }

    pub(super) fn missing(text: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Missing, text: text.into() }
    }

    pub(super) fn says(&self, part: &str) -> bool {
        self.text.contains(part)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl std::error::Error for Fault {}

/// Puts a fault into the words of the seam.
pub(super) trait During<T> {
    fn during(self, operation: &'static str, subject: impl fmt::Display) -> Result<T, Error>;
}

impl<T> During<T> for Result<T, Fault> {
    fn during(self, operation: &'static str, subject: impl fmt::Display) -> Result<T, Error> {
        self.map_err(|fault| Error {
            operation,
            subject: subject.to_string(),
            kind: fault.kind,
            cause: Some(Box::new(fault)),
        })
    }
}

/// What to make of an answer when the thing may be gone, or may be there already.
pub(super) trait Tolerate<T> {
    /// `None` when it does not exist.
    fn unless_missing(self) -> Result<Option<T>, Fault>;

    /// `None` when it exists already.
    fn unless_there(self) -> Result<Option<T>, Fault>;
}

impl<T> Tolerate<T> for Result<T, Fault> {
    fn unless_missing(self) -> Result<Option<T>, Fault> {
        match self {
            Err(fault) if fault.kind == ErrorKind::Missing => Ok(None),
            other => other.map(Some),
        }
    }

    fn unless_there(self) -> Result<Option<T>, Fault> {
        match self {
            Err(fault) if fault.kind == ErrorKind::Conflict => Ok(None),
            other => other.map(Some),
        }
    }
}
