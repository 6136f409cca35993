//! Connections to hosts: whom they trust, and what their failures mean.

use std::error::Error as StdError;
use std::fmt;
use std::io::{Error as IoError, ErrorKind};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prost::bytes::Bytes;
use reqwest::{Client, Response};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::time::Sleep;
use tokio_stream::Stream;

use super::credentials::seconds;
use super::files;
use super::hosts::Tls;
use crate::registry::{Error, Reason};

/// Largest file of certificates.
const LIMIT: u64 = 4 << 20;

/// A connection that nobody needs is closed soon: one layer comes after the other, and then there is nothing for hours.
const IDLE: Duration = Duration::from_secs(10);

/// A client for hosts of that kind. Reads files.
pub(super) fn client(tls: &Tls, connect: Duration, is_loopback: bool) -> Result<Client, Error> {
    let builder = Client::builder()
        .tls_backend_preconfigured(configuration(tls)?)
        .http1_only()
        .connect_timeout(connect)
        .pool_idle_timeout(IDLE)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(concat!("evenkeel/", env!("CARGO_PKG_VERSION")));
    // A proxy's localhost is another one.
    let builder = if is_loopback { builder.no_proxy() } else { builder };
    builder.build().map_err(|error| {
        let what = format!("failed to set up connections: {}", root(&error.without_url()));
        Error::new(Reason::Settings, what)
    })
}

fn configuration(tls: &Tls) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring has every usual cipher");
    let builder = if tls.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        let mut roots = RootCertStore::empty();
        // A box without authorities of its own may have no use for them; who has learns it from the connection.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for path in &tls.ca {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|_| wrong(path, "has no usable certificate"))?;
            }
        }
        builder.with_root_certificates(roots)
    };
    match tls.client.as_slice() {
        [] => Ok(builder.with_no_client_auth()),
        // A handshake shows one; of several, containerd too shows the first that fits, which is the first.
        [(certificate, key), ..] => {
            let chain = certificates(certificate)?;
            let bytes = bytes(key)?;
            let private = PrivateKeyDer::from_pem_slice(&bytes)
                .map_err(|_| wrong(key, "has no private key in PEM"))?;
            builder
                .with_client_auth_cert(chain, private)
                .map_err(|_| wrong(key, "is not the key of our certificate"))
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = bytes(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(wrong(path, "has no certificate in PEM")),
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    match files::read(path, LIMIT) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(files::unreadable(path, &IoError::from(ErrorKind::NotFound))),
        Err(cause) => Err(files::unreadable(path, &cause)),
    }
}

fn wrong(path: &Path, what: &str) -> Error {
    Error::new(Reason::Settings, format!("`{}` {what}", path.display()))
}

/// Believes everybody, as `skip_verify` asks for.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What a failure of a connection means. URLs are left out: a query may be a secret.
pub(super) fn failure(error: reqwest::Error, host: &str) -> Error {
    let error = error.without_url();
    let cause = root(&error);
    if let Some(distrust) = find::<rustls::Error>(&error) {
        let hint = hint(distrust);
        let what = format!("`{host}` is not trusted: {distrust}{hint}");
        return Error::new(Reason::Untrusted, what);
    }
    if error.is_connect() || error.is_timeout() {
        let cause =
            if error.is_timeout() { "no answer to the connection".to_owned() } else { cause };
        return Error::new(Reason::Unreachable, format!("failed to connect to `{host}`: {cause}"));
    }
    let is_nonsense = find::<hyper::Error>(&error)
        .is_some_and(|it| (it.is_parse() || it.is_user()) && !it.is_incomplete_message());
    if is_nonsense {
        let what = format!("`{host}` answered with what is no HTTP: {cause}");
        return Error::new(Reason::Broken, what);
    }
    Error::new(Reason::Silent, format!("`{host}` broke the connection off: {cause}"))
}

fn hint(distrust: &rustls::Error) -> &'static str {
    use rustls::CertificateError::UnknownIssuer;
    if matches!(distrust, rustls::Error::InvalidCertificate(UnknownIssuer)) {
        "; name its authority as `ca` in its hosts.toml, or install it on this box"
    } else if matches!(distrust, rustls::Error::InvalidMessage(_)) {
        "; if it speaks plain HTTP, say `server = \"http://…\"` in its hosts.toml"
    } else {
        ""
    }
}

/// The cause of a kind, however deep it is.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = below(error);
    }
    None
}

/// The innermost cause, in its words.
fn root(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    while let Some(next) = below(error) {
        error = next;
    }
    error.to_string()
}

fn below<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    // What is in an error of I/O is not its source.
    match error.downcast_ref::<IoError>().and_then(IoError::get_ref) {
        Some(inside) => Some(inside),
        None => error.source(),
    }
}

/// A whole body of at most `limit` bytes.
pub(super) async fn collect(
    response: Response,
    host: &str,
    limit: u64,
    stall: Duration,
    whole: Duration,
) -> Result<Vec<u8>, Error> {
    let too_large = || {
        let what =
            format!("`{host}` sends more than {} KiB where a small answer is due", limit >> 10);
        Error::new(Reason::Broken, what)
    };
    if response.content_length().is_some_and(|it| it > limit) {
        return Err(too_large());
    }
    let mut body = Body::new(response, host, 0, stall);
    let mut bytes = Vec::new();
    let all = async {
        while let Some(piece) = tokio_stream::StreamExt::next(&mut body).await {
            let piece = piece?;
            if u64::try_from(bytes.len() + piece.len()).unwrap_or(u64::MAX) > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(())
    };
    match tokio::time::timeout(whole, all).await {
        Ok(result) => result?,
        Err(_) => {
            let what = format!("`{host}` needs more than {} for an answer", seconds(whole));
            return Err(Error::new(Reason::Silent, what));
        }
    }
    Ok(bytes)
}

type Pieces = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// The rest of an answer as it comes, after some bytes that are skipped; ends with its first error.
pub(super) struct Body {
    pieces: Pieces,
    host: String,
    skip: u64,
    stall: Duration,
    silence: Pin<Box<Sleep>>,
    /// It runs only while somebody waits for a piece: who takes long to store one is not a silent registry.
    is_waiting: bool,
    is_over: bool,
}

impl Body {
    pub(super) fn new(response: Response, host: &str, skip: u64, stall: Duration) -> Self {
        Self {
            pieces: Box::pin(response.bytes_stream()),
            host: host.to_owned(),
            skip,
            stall,
            silence: Box::pin(tokio::time::sleep(stall)),
            is_waiting: false,
            is_over: false,
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Stream for Body {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if this.is_over {
                return Poll::Ready(None);
            }
            match this.pieces.as_mut().poll_next(context) {
                Poll::Ready(Some(Ok(piece))) => {
                    this.is_waiting = false;
                    let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
                    let skipped = this.skip.min(length);
                    this.skip -= skipped;
                    if skipped < length {
                        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
                        return Poll::Ready(Some(Ok(piece.slice(skipped..))));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    this.is_over = true;
                    return Poll::Ready(Some(Err(failure(error, &this.host))));
                }
                Poll::Ready(None) => this.is_over = true,
                Poll::Pending => {
                    if !this.is_waiting {
                        this.is_waiting = true;
                        this.silence.as_mut().reset(tokio::time::Instant::now() + this.stall);
                    }
                    if this.silence.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    this.is_over = true;
                    let what =
                        format!("`{}` sent nothing more for {}", this.host, seconds(this.stall));
                    return Poll::Ready(Some(Err(Error::new(Reason::Silent, what))));
                }
            }
        }
    }
}
