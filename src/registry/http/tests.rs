//! Against a server that answers as each test says; no network but loopback.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt as _;

use super::*;
use crate::content::{CONFIG, JSON_LIMIT, LAYER_GZIP, MANIFEST};

/// A request as the server got it.
#[derive(Debug, Clone)]
struct Seen {
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What is sent back, and whether the connection is closed after it.
struct Reply {
    bytes: Vec<u8>,
    then_silent: bool,
}

impl Reply {
    fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), then_silent: false }
    }

    fn silent(self) -> Self {
        Self { then_silent: true, ..self }
    }
}

/// An answer with its length.
fn reply(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Reply {
    let body = body.as_ref();
    let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
    if !headers.iter().any(|it| it.0 == "Content-Length") {
        write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
    }
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    Reply::raw([head.as_bytes(), b"\r\n", body].concat())
}

type Script = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// A server on loopback; it goes with the test.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, Arc::new(script)).await
    }

    async fn start_tls(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(Some(authority().acceptor(false)), Arc::new(script)).await
    }

    async fn listen(tls: Option<TlsAcceptor>, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, script, all) = (tls.clone(), Arc::clone(&script), Arc::clone(&all));
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &script, &all).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &script, &all).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { address, seen }
    }

    fn image(&self) -> String {
        format!("{}/a/b:1", self.address)
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Since the last time.
    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    fn lines(&self) -> Vec<String> {
        self.seen().iter().map(|it| format!("{} {}", it.method, it.target)).collect()
    }
}

/// One request per connection.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: &Script,
    all: &Mutex<Vec<Seen>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let headers: BTreeMap<String, String> = lines
        .filter_map(|it| it.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |it| it.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let body = String::from_utf8(body).unwrap();
    let seen = Seen { method, target, headers, body };
    all.lock().unwrap().push(seen.clone());
    let Reply { mut bytes, then_silent } = script(&seen);
    if seen.method == "HEAD" {
        let end = bytes.windows(4).position(|it| it == b"\r\n\r\n");
        bytes.truncate(end.map_or(bytes.len(), |it| it + 4));
    }
    stream.write_all(&bytes).await.ok()?;
    stream.flush().await.ok()?;
    if then_silent {
        // Until the other side has enough of it.
        stream.read_u8().await.ok()?;
    }
    stream.shutdown().await.ok()
}

/// A certificate authority, and a server's and a client's certificate by it, for this test process.
struct Authority {
    ca: String,
    server: (String, String),
    client: (String, String),
}

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let leaf = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
        };
        Authority { ca: ca.pem(), server: leaf("127.0.0.1"), client: leaf("box") }
    })
}

impl Authority {
    fn acceptor(&self, wants_client: bool) -> TlsAcceptor {
        use rustls::pki_types::CertificateDer;
        use rustls::server::WebPkiClientVerifier;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if wants_client {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let chain = vec![CertificateDer::from_pem_slice(self.server.0.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(self.server.1.as_bytes()).unwrap();
        TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()))
    }
}

fn manifest() -> Vec<u8> {
    let config = Descriptor::new(CONFIG, Digest::of(b"config"), 6);
    let layer = Descriptor::new(LAYER_GZIP, Digest::of(LAYER), LAYER.len().try_into().unwrap());
    let value = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
    });
    value.to_string().into_bytes()
}

const LAYER: &[u8] = b"0123456789";

fn layer() -> Descriptor {
    Descriptor::new(LAYER_GZIP, Digest::of(LAYER), 10)
}

fn target() -> Descriptor {
    let bytes = manifest();
    Descriptor::new(MANIFEST, Digest::of(&bytes), bytes.len().try_into().unwrap())
}

/// A registry that has one image and asks for nothing.
fn open(seen: &Seen) -> Reply {
    let path = seen.target.split('?').next().unwrap();
    if path.contains("/manifests/") {
        let digest = target().digest.to_string();
        let headers = [("Content-Type", MANIFEST), ("Docker-Content-Digest", digest.as_str())];
        return reply(200, &headers, manifest());
    }
    match path.rsplit('/').next() {
        Some(it) if it == Digest::of(LAYER).as_str() => reply(200, &[], LAYER),
        _ => reply(404, &[], r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#),
    }
}

/// A script that gives tokens for `scheme`-like credentials, and asks for one of them.
fn with_tokens(realm: &str, token: &'static str) -> impl Fn(&Seen) -> Reply + Send + Sync + use<> {
    let challenge = format!(
        r#"Bearer realm="{realm}",service="the registry",scope="repository:a/b:pull",error="invalid_token""#
    );
    move |seen| {
        if seen.target.starts_with("/token") {
            return reply(200, &[], format!(r#"{{"token":"{token}","expires_in":300}}"#));
        }
        if seen.header("authorization") == format!("Bearer {token}") {
            return open(seen);
        }
        reply(401, &[("WWW-Authenticate", &challenge)], r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)
    }
}

/// A server whose script has to know its own URL.
async fn own<S>(make: impl FnOnce(String) -> S) -> Server
where
    S: Fn(&Seen) -> Reply + Send + Sync + 'static,
{
    let script: Arc<OnceLock<Script>> = Arc::default();
    let late = Arc::clone(&script);
    let server = Server::start(move |seen| late.get().unwrap()(seen)).await;
    assert!(script.set(Arc::new(make(server.url()))).is_ok());
    server
}

fn plain() -> HttpRegistry {
    HttpRegistry::new(Options::default())
}

/// Does not wait long for anybody.
fn hasty() -> Deadlines {
    let short = Duration::from_millis(300);
    Deadlines { head: short, stall: short, helper: short, ..Deadlines::default() }
}

/// A directory with files for a test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Says something about the host of a server.
    fn host(&self, server: &Server, text: &str) -> Options {
        self.write(&format!("hosts/{}/hosts.toml", server.address), text);
        Options { hosts: vec![self.0.path().join("hosts")], ..Options::default() }
    }

    fn helper(&self, name: &str, script: &str) {
        let path =
            self.write(&format!("bin/docker-credential-{name}"), &format!("#!/bin/sh\n{script}"));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn basic(user: &str, password: &str) -> String {
    STANDARD.encode(format!("{user}:{password}"))
}

/// All pieces that came, and what ended them.
async fn drain(mut pieces: Pieces) -> (Vec<u8>, Option<Error>) {
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => {
                assert!(pieces.next().await.is_none(), "something comes after an error");
                return (bytes, Some(error));
            }
        }
    }
    (bytes, None)
}

#[tokio::test]
async fn a_tag_is_resolved_by_the_head_of_an_answer() {
    let server = Server::start(open).await;
    assert_eq!(plain().resolve(&server.image()).await.unwrap(), target());
    let seen = server.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].method.as_str(), seen[0].target.as_str()), ("HEAD", "/v2/a/b/manifests/1"));
    for media_type in [
        MANIFEST,
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        assert!(seen[0].header("accept").contains(media_type), "{media_type}");
    }
    let by_digest = format!("{}/a/b:1@{}", server.address, target().digest);
    assert_eq!(plain().resolve(&by_digest).await.unwrap(), target());
    let asked = format!("HEAD /v2/a/b/manifests/{}", target().digest);
    assert_eq!(server.lines(), [asked], "of a tag and a digest the digest alone counts");
}

#[tokio::test]
async fn what_the_head_leaves_open_is_found_in_the_body() {
    let sha512 = format!("sha512:{}", "a".repeat(128));
    let heads: [&[(&str, &str)]; 4] = [
        &[("Content-Type", MANIFEST)],
        &[("Content-Type", MANIFEST), ("Docker-Content-Digest", &sha512)],
        &[("Content-Type", "application/json"), ("Docker-Content-Digest", "nonsense")],
        &[],
    ];
    for head in heads {
        let head: Vec<(String, String)> =
            head.iter().map(|it| (it.0.to_owned(), it.1.to_owned())).collect();
        let server = Server::start(move |_| {
            let head: Vec<_> = head.iter().map(|it| (it.0.as_str(), it.1.as_str())).collect();
            reply(200, &head, manifest())
        });
        let server = server.await;
        assert_eq!(plain().resolve(&server.image()).await.unwrap(), target());
        let path = "/v2/a/b/manifests/1";
        assert_eq!(server.lines(), [format!("HEAD {path}"), format!("GET {path}")]);
    }
    // Who knows no HEAD.
    let server =
        Server::start(|it| if it.method == "HEAD" { reply(405, &[], "") } else { open(it) });
    assert_eq!(plain().resolve(&server.await.image()).await.unwrap(), target());
}

#[tokio::test]
async fn a_digest_is_resolved_to_itself_or_not_at_all() {
    let other = Digest::of(b"other");
    for has_header in [true, false] {
        let server = Server::start(move |seen| {
            if has_header {
                open(seen)
            } else {
                reply(200, &[("Content-Type", MANIFEST)], manifest())
            }
        });
        let server = server.await;
        let error = plain().resolve(&format!("{}/a/b@{other}", server.address)).await.unwrap_err();
        assert_eq!(error.reason, Reason::Mismatch, "{error}");
    }
    let server = Server::start(open).await;
    let digits = |bytes: &[u8]| crate::content::hex(&<sha2::Sha512 as sha2::Digest>::digest(bytes));
    let right = format!("{}/a/b@sha512:{}", server.address, digits(&manifest()));
    assert_eq!(plain().resolve(&right).await.unwrap(), target());
    let wrong = format!("{}/a/b@sha512:{}", server.address, digits(b"other"));
    assert_eq!(plain().resolve(&wrong).await.unwrap_err().reason, Reason::Mismatch);
}

#[tokio::test]
async fn what_is_read_is_what_its_digest_says() {
    let server = Server::start(|seen| match seen.target.as_str() {
        it if it.contains("/manifests/") => open(seen),
        it if it.ends_with(Digest::of(b"config").as_str()) => reply(200, &[], "config"),
        _ => reply(200, &[], "nonsense"),
    });
    let server = server.await;
    let registry = plain();
    assert_eq!(registry.read(&server.image(), &target()).await.unwrap(), manifest());
    let config = Descriptor::new(CONFIG, Digest::of(b"config"), 6);
    assert_eq!(registry.read(&server.image(), &config).await.unwrap(), b"config");
    let asked = [
        format!("GET /v2/a/b/manifests/{}", target().digest),
        format!("GET /v2/a/b/blobs/{}", config.digest),
    ];
    assert_eq!(server.lines(), asked);
    for wrong in [
        Descriptor::new(MANIFEST, Digest::of(b"x"), 1),
        Descriptor::new(CONFIG, Digest::of(b"x"), 1),
    ] {
        let error = registry.read(&server.image(), &wrong).await.unwrap_err();
        assert_eq!(error.reason, Reason::Mismatch, "{error}");
    }
}

#[tokio::test]
async fn what_is_too_large_is_not_kept() {
    let much = vec![b' '; usize::try_from(JSON_LIMIT).unwrap() + 1];
    let chunked = |body: &[u8]| {
        let mut bytes =
            b"HTTP/1.1 200 X\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        bytes.extend(format!("{:x}\r\n", body.len()).bytes());
        bytes.extend([body, b"\r\n"].concat());
        // And there is no end.
        Reply::raw(bytes).silent()
    };
    let with_length = reply(200, &[("Content-Length", "99999999999")], "{").silent();
    let (with_length, chunked) = (with_length.bytes, chunked(&much).bytes);
    for bytes in [with_length, chunked] {
        let server = Server::start(move |_| Reply::raw(bytes.clone()).silent()).await;
        let error = plain().resolve(&server.image()).await.unwrap_err();
        assert_eq!(error.reason, Reason::Broken, "{error}");
        let error = plain().read(&server.image(), &target()).await.unwrap_err();
        assert_eq!(error.reason, Reason::Broken, "{error}");
        assert!(error.message.contains("more than 4096 KiB"), "{error}");
    }
    let digest = target().digest.to_string();
    let server = Server::start(move |_| {
        let head = [
            ("Content-Type", MANIFEST),
            ("Docker-Content-Digest", digest.as_str()),
            ("Content-Length", "99999999999"),
        ];
        reply(200, &head, "")
    });
    let error = plain().resolve(&server.await.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Broken, "{error}");
}

#[tokio::test]
async fn a_layer_is_continued_where_it_broke_off() {
    let honest = |seen: &Seen| {
        let start: usize = match seen.header("range").strip_prefix("bytes=") {
            None => return reply(200, &[], LAYER),
            Some(range) => range.trim_end_matches('-').parse().unwrap(),
        };
        if start >= LAYER.len() {
            return reply(416, &[], "");
        }
        let range = format!("bytes {start}-9/10");
        reply(206, &[("Content-Range", &range)], &LAYER[start..])
    };
    let ignorant = |_: &Seen| reply(200, &[], LAYER);
    // A part that starts earlier than asked for is as good.
    let rounding = |_: &Seen| reply(206, &[("Content-Range", "bytes 2-9/10")], &LAYER[2..]);
    let servers =
        [Server::start(honest).await, Server::start(ignorant).await, Server::start(rounding).await];
    for server in &servers {
        let pieces = plain().stream(&server.image(), &layer(), 4).await.unwrap();
        assert_eq!(drain(pieces).await, (LAYER[4..].to_vec(), None));
        let asked = &server.seen()[0];
        assert_eq!(asked.header("range"), "bytes=4-");
        assert_eq!(asked.header("accept-encoding"), "identity");
    }
    for server in &servers[..2] {
        for (offset, expected) in [(0, LAYER), (10, b"".as_slice())] {
            let pieces = plain().stream(&server.image(), &layer(), offset).await.unwrap();
            assert_eq!(drain(pieces).await, (expected.to_vec(), None));
        }
        let asked = server.seen();
        assert!(!asked[0].headers.contains_key("range"));
    }
    let past_the_end = plain().stream(&servers[0].image(), &layer(), 11).await;
    assert_eq!(past_the_end.err().unwrap().reason, Reason::Broken);
    for range in ["bytes 7-9/10", "nonsense", ""] {
        let server =
            Server::start(move |_| reply(206, &[("Content-Range", range)], &LAYER[7..])).await;
        let error = plain().stream(&server.image(), &layer(), 4).await.err().unwrap();
        assert_eq!(error.reason, Reason::Broken, "{range}: {error}");
    }
}

#[tokio::test]
async fn a_layer_that_is_cut_gives_its_pieces_and_then_an_error() {
    let server = Server::start(|_| reply(200, &[("Content-Length", "10")], "0123")).await;
    let (bytes, error) = drain(plain().stream(&server.image(), &layer(), 0).await.unwrap()).await;
    let error = error.unwrap();
    assert_eq!((bytes.as_slice(), error.reason), (b"0123".as_slice(), Reason::Silent), "{error}");
    assert!(error.message.contains(&server.address.to_string()), "{error}");
}

#[tokio::test]
async fn who_is_silent_has_failed() {
    let options = Options { deadlines: hasty(), ..Options::default() };
    let registry = HttpRegistry::new(options);
    // Before, within and after the head.
    for bytes in ["", "HTTP/1.1 200 X\r\nContent-"] {
        let server = Server::start(move |_| Reply::raw(bytes).silent()).await;
        let error = registry.resolve(&server.image()).await.unwrap_err();
        assert_eq!(error.reason, Reason::Silent, "{bytes}: {error}");
        assert!(error.message.contains("did not answer within 300 ms"), "{error}");
    }
    let server = Server::start(|_| reply(200, &[("Content-Length", "10")], "0123").silent()).await;
    let (bytes, error) = drain(registry.stream(&server.image(), &layer(), 0).await.unwrap()).await;
    let error = error.unwrap();
    assert_eq!((bytes.as_slice(), error.reason), (b"0123".as_slice(), Reason::Silent), "{error}");
    assert!(error.message.contains("sent nothing more for 300 ms"), "{error}");
    let error = registry.read(&server.image(), &target()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Silent, "{error}");
    // A byte now and then keeps nobody.
    let options = Options {
        deadlines: Deadlines { whole: Duration::from_millis(300), ..Deadlines::default() },
        ..Options::default()
    };
    let error = HttpRegistry::new(options).read(&server.image(), &target()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Silent, "{error}");
    assert!(error.message.contains("more than 300 ms for an answer"), "{error}");
    // And a connection that is closed without a word.
    let server = Server::start(|_| Reply::raw("")).await;
    let error = registry.resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Silent, "{error}");
}

#[tokio::test(start_paused = true)]
async fn who_takes_long_to_store_a_piece_is_no_silent_registry() {
    let stall = Duration::from_secs(30);
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<&str>>(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let response = hyper::Response::new(reqwest::Body::wrap_stream(stream));
    let mut body = client::Body::new(response.into(), "r.example", 0, stall);
    for _ in 0..3 {
        // Nothing comes until a while after it is asked for, and that is long after the piece before.
        let sender = sender.clone();
        let late = tokio::spawn(async move {
            tokio::time::sleep(stall * 3).await;
            sender.send(Ok("piece")).await.unwrap();
        });
        tokio::time::sleep(stall * 5 / 2).await;
        assert_eq!(body.next().await.unwrap().unwrap(), "piece");
        late.await.unwrap();
    }
    let since = Instant::now();
    let error = body.next().await.unwrap().unwrap_err();
    assert_eq!(error.reason, Reason::Silent, "{error}");
    let waited = since.elapsed();
    assert!((stall..stall * 2).contains(&waited), "{waited:?}");
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn each_refusal_has_its_reason() {
    let unknown = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no\u001b[2J\nsuch"}]}"#;
    let cases: [(u16, &str, Reason, &str); 9] = [
        (401, "", Reason::Unauthorized, "wants other credentials for"),
        (403, r#"{"errors":[{"code":"DENIED"}]}"#, Reason::Unauthorized, "let us have"),
        (404, unknown, Reason::NotFound, r"MANIFEST_UNKNOWN: no\u{1b}[2J\nsuch"),
        (404, "<html>", Reason::NotFound, "has no `sha256:"),
        (429, "", Reason::RateLimited, "too many requests"),
        (500, r#"{"message":"out of order"}"#, Reason::Broken, "500 Internal Server Error"),
        (503, "", Reason::Broken, "503 Service Unavailable"),
        (418, "", Reason::Broken, "418"),
        (304, "", Reason::Broken, "304"),
    ];
    for (status, body, reason, words) in cases {
        let server = Server::start(move |_| reply(status, &[], body)).await;
        let image = server.image();
        let read = plain().read(&image, &target()).await.unwrap_err();
        assert_eq!(read.reason, reason, "{status}: {read}");
        assert!(read.message.contains(words), "{status}: `{words}` is not in: {read}");
        assert!(read.message.contains(&server.address.to_string()), "{read}");
        assert_eq!(plain().resolve(&image).await.unwrap_err().reason, reason, "{status}");
        let error = plain().stream(&image, &layer(), 0).await.err().unwrap();
        assert_eq!(error.reason, reason, "{status}");
        assert_eq!(error.retry_after, None);
    }
    let long = format!(r#"{{"errors":[{{"code":"X","message":"{}"}}]}}"#, "ü".repeat(9000));
    let server = Server::start(move |_| reply(404, &[], &long)).await;
    let error = plain().read(&server.image(), &target()).await.unwrap_err();
    assert!(error.message.chars().count() < 400, "{error}");
}

#[tokio::test]
async fn a_registry_that_wants_tls_is_said_to_want_it_and_what_to_do() {
    let gos = "Client sent an HTTP request to an HTTPS server.\n";
    let nginx = "<center>The plain HTTP request was sent to HTTPS port</center>";
    for words in [gos, nginx] {
        // What has no body in an answer to HEAD is said to who asks for all.
        let server = Server::start(move |seen| {
            reply(400, &[], if seen.method == "HEAD" { "" } else { words })
        });
        let server = server.await;
        let image = server.image();
        let errors = [
            plain().resolve(&image).await.unwrap_err(),
            plain().read(&image, &target()).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.reason, Reason::Untrusted, "{error}");
            let way =
                format!("write `server = \"https://{}\"` into its hosts.toml", server.address);
            assert!(error.message.contains(&way), "{error}");
            assert!(error.message.contains("`registries.hostsDirs`"), "{error}");
        }
    }
    let server = Server::start(|_| reply(400, &[], "The header is too long")).await;
    let error = plain().resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Broken, "{error}");
    assert!(error.message.contains("answered 400 Bad Request"), "{error}");
    assert!(!error.message.contains("hosts.toml"), "{error}");
}

#[tokio::test]
async fn when_to_come_back_is_passed_on() {
    let date = |seconds| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap()
    };
    let cases = [
        (429, "120".to_owned(), 120..=120),
        (503, "7".to_owned(), 7..=7),
        (429, date(600), 590..=600),
        (429, "99999999999999999999999".to_owned(), 3600..=3600),
        (429, date(999_999), 3600..=3600),
        (429, "0".to_owned(), 0..=0),
        (429, date(-600), 0..=0),
        (429, "soon".to_owned(), 0..=0),
        (404, "120".to_owned(), 0..=0),
    ];
    for (status, value, expected) in cases {
        let sent = value.clone();
        let server = Server::start(move |_| reply(status, &[("Retry-After", &sent)], "")).await;
        let error = plain().resolve(&server.image()).await.unwrap_err();
        let found = error.retry_after.map_or(0, |it| it.as_secs());
        assert!(expected.contains(&found), "{status} {value}: {found} s");
        if status == 429 {
            assert_eq!(error.reason, Reason::RateLimited);
        }
    }
}

#[tokio::test]
async fn what_is_no_answer_is_told_so() {
    let html = [("Content-Type", "text/html; charset=utf-8")];
    let server = Server::start(move |_| reply(200, &html, "<html>log in</html>")).await;
    let error = plain().resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Broken);
    assert!(error.message.contains("what is no image (text/html)"), "{error}");
    let server = Server::start(|_| Reply::raw("SSH-2.0-OpenSSH_9.2\r\n\r\n")).await;
    let error = plain().resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Broken);
    assert!(error.message.contains("what is no HTTP"), "{error}");
}

#[tokio::test]
async fn who_is_not_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = plain().resolve(&format!("{address}/a/b:1")).await.unwrap_err();
    assert_eq!(error.reason, Reason::Unreachable);
    assert!(error.message.contains("refused"), "{error}");
    let error = plain().resolve(&format!("{}.example/a/b:1", "a".repeat(64))).await.unwrap_err();
    assert_eq!(error.reason, Reason::Unreachable, "{error}");
    let error = plain().resolve("A//b").await.unwrap_err();
    assert_eq!(error.reason, Reason::Settings, "{error}");
}

#[tokio::test]
async fn a_token_is_bought_once_and_used_until_it_ends() {
    let server = own(|url| with_tokens(&format!("{url}/token?x=y"), "T0ken")).await;
    let registry = plain();
    registry.resolve(&server.image()).await.unwrap();
    let seen = server.seen();
    let lines: Vec<_> = seen.iter().map(|it| it.method.as_str()).collect();
    assert_eq!(lines, ["HEAD", "GET", "HEAD"]);
    assert_eq!(seen[1].target, "/token?x=y&service=the+registry&scope=repository%3Aa%2Fb%3Apull");
    assert_eq!(seen[1].header("authorization"), "", "there are no credentials");
    registry.read(&server.image(), &target()).await.unwrap();
    drain(registry.stream(&server.image(), &layer(), 0).await.unwrap()).await;
    assert_eq!(server.seen().len(), 2, "the token is there");
    // Another repository needs another one.
    registry.resolve(&format!("{}/a/c:1", server.address)).await.unwrap();
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_token_that_is_refused_is_bought_anew_once() {
    let good: Arc<Mutex<u32>> = Arc::default();
    let now = Arc::clone(&good);
    let server = own(move |url| {
        let challenge = format!(r#"Bearer realm="{url}/token""#);
        move |seen: &Seen| {
            let number = *now.lock().unwrap();
            if seen.target.starts_with("/token") {
                return reply(200, &[], format!(r#"{{"access_token":"t{number}"}}"#));
            }
            if seen.header("authorization") == format!("Bearer t{number}") && number < 2 {
                return open(seen);
            }
            reply(401, &[("WWW-Authenticate", &challenge)], "")
        }
    })
    .await;
    let registry = plain();
    registry.resolve(&server.image()).await.unwrap();
    assert!(server.seen()[1].target.contains("scope=repository%3Aa%2Fb%3Apull"));
    *good.lock().unwrap() = 1;
    registry.resolve(&server.image()).await.unwrap();
    assert_eq!(server.seen().len(), 3, "refused, bought, shown");
    *good.lock().unwrap() = 2;
    let error = registry.resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Unauthorized, "{error}");
    assert_eq!(server.seen().len(), 3, "and no more than once");
}

#[tokio::test]
async fn a_token_that_ends_soon_is_not_kept() {
    for (life, requests) in [(r#","expires_in":3"#, 3), ("", 1), (r#","expires_in":600"#, 1)] {
        let server = own(|url| {
            let ask = with_tokens(&format!("{url}/token"), "T0ken");
            move |seen: &Seen| {
                if seen.target.starts_with("/token") {
                    reply(200, &[], format!(r#"{{"token":"T0ken"{life}}}"#))
                } else {
                    ask(seen)
                }
            }
        })
        .await;
        let registry = plain();
        registry.resolve(&server.image()).await.unwrap();
        server.seen();
        registry.resolve(&server.image()).await.unwrap();
        assert_eq!(server.seen().len(), requests, "{life}");
    }
}

#[tokio::test]
async fn a_realm_that_gives_no_token_is_told() {
    let cases: [(u16, &str, Reason, &str); 5] = [
        (401, r#"{"details":"wrong"}"#, Reason::Unauthorized, "there are none for it"),
        (200, "<html>", Reason::Broken, "answered with none"),
        (200, r#"{"token":"a\nb"}"#, Reason::Broken, "cannot be sent"),
        (500, "", Reason::Broken, "500"),
        (429, "", Reason::RateLimited, "too many"),
    ];
    for (status, body, reason, words) in cases {
        let server = own(|url| {
            let ask = with_tokens(&format!("{url}/token"), "T0ken");
            move |seen: &Seen| {
                if seen.target.starts_with("/token") {
                    reply(status, &[("Retry-After", "9")], body)
                } else {
                    ask(seen)
                }
            }
        })
        .await;
        let error = plain().resolve(&server.image()).await.unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
        assert!(error.message.contains(words), "{error}");
        assert_eq!(error.retry_after.is_some(), status >= 429, "{error}");
    }
}

/// Asks for a user and a password.
fn with_password(pair: &str) -> impl Fn(&Seen) -> Reply + Send + Sync + use<> {
    let expected = format!("Basic {pair}");
    move |seen| {
        if seen.header("authorization") == expected {
            open(seen)
        } else {
            reply(401, &[("WWW-Authenticate", r#"Basic realm="r""#)], "")
        }
    }
}

#[tokio::test]
async fn a_password_is_shown_when_it_is_asked_for() {
    let server = Server::start(with_password(&basic("me", "hunter2"))).await;
    let files = Files::new();
    let auths = |pair: &str| {
        let text = format!(r#"{{"auths":{{"{}":{{"auth":"{pair}"}}}}}}"#, server.address);
        let path = files.write("config.json", &text);
        HttpRegistry::new(Options { credentials: vec![path], ..Options::default() })
    };
    let registry = auths(&basic("me", "hunter2"));
    registry.resolve(&server.image()).await.unwrap();
    drain(registry.stream(&server.image(), &layer(), 0).await.unwrap()).await;
    let seen = server.seen();
    assert_eq!(seen[0].header("authorization"), "", "not before it is asked for");
    // The file is read anew each time.
    auths(&basic("me", "wrong"));
    let error = registry.resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Unauthorized);
    assert!(error.message.contains("config.json"), "which credentials: {error}");
    let error = plain().resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Unauthorized);
    assert!(error.message.contains("there are none for it"), "{error}");
}

#[tokio::test]
async fn a_password_an_identity_or_a_token_buys_access() {
    let files = Files::new();
    let cases = [
        (format!(r#"{{"auth":"{}"}}"#, basic("me", "hunter2")), "GET"),
        (r#"{"username":"me","password":"hunter2"}"#.to_owned(), "GET"),
        (r#"{"auth":"bWU6","identitytoken":"1dent+ity"}"#.to_owned(), "POST"),
        (r#"{"registrytoken":"T0ken"}"#.to_owned(), ""),
    ];
    for (entry, method) in cases {
        let server = own(|url| with_tokens(&format!("{url}/token"), "T0ken")).await;
        let text = format!(r#"{{"auths":{{"{}":{entry}}}}}"#, server.address);
        let path = files.write("auth.json", &text);
        let registry = HttpRegistry::new(Options { credentials: vec![path], ..Options::default() });
        registry.resolve(&server.image()).await.unwrap();
        let seen = server.seen();
        match method {
            "GET" => {
                assert!(seen[1].target.ends_with("&account=me"), "{:?}", seen[1]);
                let expected = format!("Basic {}", basic("me", "hunter2"));
                assert_eq!(seen[1].header("authorization"), expected);
            }
            "POST" => {
                assert_eq!((seen[1].method.as_str(), seen[1].target.as_str()), ("POST", "/token"));
                for part in ["grant_type=refresh_token", "refresh_token=1dent%2Bity", "service=the"]
                {
                    assert!(seen[1].body.contains(part), "{part}: {:?}", seen[1]);
                }
                assert_eq!(seen[1].header("authorization"), "");
            }
            _ => assert_eq!(seen.len(), 2),
        }
    }
}

#[tokio::test]
async fn credentials_are_looked_for_in_their_order() {
    let files = Files::new();
    files.helper("store", r#"cat >/dev/null; echo '{"Username":"store","Secret":"s"}'"#);
    files.helper("none", "echo credentials not found in native keychain; exit 1");
    files.helper(
        "echo",
        r#"read key; test "$1" = get && echo "{\"ServerURL\":\"$key\",\"Username\":\"helper\",\"Secret\":\"$key\"}""#,
    );
    let host = "registry.example:5000";
    let login = files.write("password", "p:w\n");
    let logins =
        vec![Login { host: host.to_owned(), username: "login".to_owned(), password_file: login }];
    let auth = |user: &str| format!(r#"{{"auth":"{}"}}"#, basic(user, "p"));
    let first =
        files.write("first.json", &format!(r#"{{"auths":{{"{host}":{}}}}}"#, auth("first")));
    let second =
        files.write("second.json", &format!(r#"{{"auths":{{"{host}":{}}}}}"#, auth("second")));
    let other = files.write(
        "other.json",
        &format!(r#"{{"auths":{{"other.example":{},"{host}":{{}}}}}}"#, auth("other")),
    );
    let podman = files.write(
        "podman.json",
        &format!(
            r#"{{"auths":{{"{host}":{},"{host}/a":{},"{host}/a/b":{},"{host}/a/bc":{}}}}}"#,
            auth("host"),
            auth("folder"),
            auth("repository"),
            auth("wrong")
        ),
    );
    let legacy = files.write(
        "legacy.json",
        &format!(r#"{{"auths":{{"https://{host}/v1/":{}}}}}"#, auth("legacy")),
    );
    let helper = files.write(
        "helper.json",
        &format!(
            r#"{{"auths":{{"{host}":{}}},"credHelpers":{{"{host}":"echo"}},"credsStore":"store"}}"#,
            auth("no")
        ),
    );
    let store = files.write(
        "store.json",
        &format!(r#"{{"auths":{{"{host}":{}}},"credsStore":"store"}}"#, auth("no")),
    );
    let empty_store = files.write(
        "none.json",
        &format!(r#"{{"auths":{{"{host}":{}}},"credsStore":"none"}}"#, auth("file")),
    );
    // As Docker has it, that takes a registry out of the store.
    let no_helper = files.write(
        "no-helper.json",
        &format!(
            r#"{{"auths":{{"{host}":{}}},"credHelpers":{{"{host}":""}},"credsStore":"store"}}"#,
            auth("file")
        ),
    );
    let missing = files.path().join("missing.json");
    let cases: [(&[Login], &[&PathBuf], &str); 10] = [
        (&logins, &[&first], "login p:w"),
        (&[], &[&missing, &other, &first, &second], "first p"),
        (&[], &[&second, &first], "second p"),
        (&[], &[&podman], "repository p"),
        (&[], &[&legacy], "legacy p"),
        (&[], &[&helper], "helper registry.example:5000"),
        (&[], &[&store], "store s"),
        (&[], &[&empty_store], "file p"),
        (&[], &[&no_helper], "file p"),
        (&[], &[&other], ""),
    ];
    for (logins, paths, expected) in cases {
        let options = Options {
            logins: logins.to_vec(),
            credentials: paths.iter().map(|it| (*it).clone()).collect(),
            helpers: vec![files.path().join("bin")],
            ..Options::default()
        };
        let looked = credentials::look(&options, host, "a/b").await;
        assert_eq!(shown(&looked), expected, "{paths:?}");
        assert_eq!(looked.trouble, None);
    }
    // Docker's registry has several names, and its helpers know the oldest.
    let docker = files.write(
        "docker.json",
        &format!(r#"{{"auths":{{"https://index.docker.io/v1/":{}}}}}"#, auth("docker")),
    );
    let helped = files.write("helped.json", r#"{"credHelpers":{"docker.io":"echo"}}"#);
    for (path, expected) in [(docker, "docker p"), (helped, "helper https://index.docker.io/v1/")] {
        let options = Options {
            credentials: vec![path],
            helpers: vec![files.path().join("bin")],
            ..Options::default()
        };
        let looked = credentials::look(&options, "registry-1.docker.io", "library/redis").await;
        assert_eq!(shown(&looked), expected);
    }
}

#[tokio::test]
async fn the_usual_port_makes_no_other_registry() {
    let named = hosts::find(&[], "registry.example:443").unwrap();
    let names: Vec<_> = named.iter().map(|it| (it.name(), it.namespace.as_deref())).collect();
    // It is the registry itself, which is told no name, and helpers know it as it is written.
    assert_eq!(names, [("registry.example:443", None)]);
    let files = Files::new();
    files.helper("echo", r#"read key; echo "{\"Username\":\"helper\",\"Secret\":\"$key\"}""#);
    let password = files.write("password", "p");
    let auth = basic("file", "p");
    let hosts = ["registry.example", "registry.example:443"];
    for (written, asked) in [(hosts[0], hosts[1]), (hosts[1], hosts[0]), (hosts[1], hosts[1])] {
        let login = Login {
            host: written.to_owned(),
            username: "login".to_owned(),
            password_file: password.clone(),
        };
        let options = Options { logins: vec![login], ..Options::default() };
        assert_eq!(shown(&credentials::look(&options, asked, "a").await), "login p");
        for key in [written.to_owned(), format!("{written}/a"), format!("https://{written}")] {
            let text = format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#);
            let options = Options {
                credentials: vec![files.write("config.json", &text)],
                ..Options::default()
            };
            assert_eq!(shown(&credentials::look(&options, asked, "a").await), "file p", "{key}");
        }
        let options = with_helper(&files, written, "echo");
        let looked = credentials::look(&options, asked, "a").await;
        assert_eq!(shown(&looked), format!("helper {asked}"));
    }
}

fn shown(looked: &credentials::Looked) -> String {
    use secrecy::ExposeSecret as _;
    let Some(found) = &looked.found else { return String::new() };
    match &found.credentials {
        credentials::Credentials::Password { username, password } => {
            format!("{username} {}", password.expose_secret())
        }
        credentials::Credentials::Identity(token) => format!("identity {}", token.expose_secret()),
        credentials::Credentials::Token(token) => format!("token {}", token.expose_secret()),
    }
}

/// Options with one file that names a helper for a host.
fn with_helper(files: &Files, host: &str, helper: &str) -> Options {
    let path = files.write("config.json", &format!(r#"{{"credHelpers":{{"{host}":"{helper}"}}}}"#));
    let deadlines = Deadlines { helper: Duration::from_millis(500), ..Deadlines::default() };
    let helpers = vec![files.path().join("bin")];
    Options { credentials: vec![path], helpers, deadlines, ..Options::default() }
}

#[tokio::test]
async fn a_helper_that_does_not_help_is_named_where_it_is_needed() {
    let files = Files::new();
    let started = files.path().join("started");
    files.helper("hangs", &format!("sleep 300 & echo $! >'{}'; wait", started.display()));
    files.helper("fails", "echo hunter2; exit 1");
    files.helper("babbles", "echo hunter2");
    files.helper("identity", r#"echo '{"Username":"<token>","Secret":"1dentity"}'"#);
    let locked = Server::start(with_password(&basic("me", "hunter2"))).await;
    let public = own(|url| with_tokens(&format!("{url}/token"), "T0ken")).await;
    let cases = [
        ("missing", "is not installed"),
        ("hangs", "said nothing for 500 ms"),
        ("fails", "failed"),
        ("babbles", "did not answer as a credential helper does"),
        ("../x", "is not the name of a program"),
    ];
    for (helper, words) in cases {
        let host = locked.address.to_string();
        let registry = HttpRegistry::new(with_helper(&files, &host, helper));
        let error = registry.resolve(&locked.image()).await.unwrap_err();
        assert_eq!(error.reason, Reason::Settings, "{error}");
        let name = format!("docker-credential-{helper}");
        for part in [words, &name, &host, "config.json", "take it out of the file"] {
            assert!(error.message.contains(part), "`{part}` is not in: {error}");
        }
        assert!(!error.message.contains("hunter2"), "{error}");
        // Who needs no credentials is not kept from its images.
        let host = public.address.to_string();
        let registry = HttpRegistry::new(with_helper(&files, &host, helper));
        registry.resolve(&public.image()).await.unwrap();
    }
    let options = with_helper(&files, "h.example", "identity");
    let looked = credentials::look(&options, "h.example", "a/b").await;
    assert_eq!(shown(&looked), "identity 1dentity");
    // What a helper has started ends with it.
    let number = std::fs::read_to_string(started).unwrap();
    let process = PathBuf::from(format!("/proc/{}/stat", number.trim()));
    let deadline = Instant::now() + Duration::from_secs(30);
    let lives = || {
        std::fs::read_to_string(&process)
            .is_ok_and(|it| !it.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
    };
    while lives() {
        assert!(Instant::now() < deadline, "{} still runs", number.trim());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_told_with_their_place() {
    let files = Files::new();
    let locked = Server::start(with_password(&basic("me", "hunter2"))).await;
    let broken = files.write("broken.json", "{\n\"auths\": \"hunter2\"}");
    let bad = format!(r#"{{"auths":{{"{}":{{"auth":"aHVudGVyMg=="}}}}}}"#, locked.address);
    let bad = files.write("bad.json", &bad);
    let missing = files.path().join("missing");
    let of_files = |it: &PathBuf| Options { credentials: vec![it.clone()], ..Options::default() };
    let login = Login {
        host: locked.address.to_string(),
        username: "me".to_owned(),
        password_file: missing,
    };
    let cases = [
        (of_files(&broken), "broken.json:2`"),
        (of_files(&bad), "is not `user:password`"),
        (of_files(&files.path().to_owned()), "not a file"),
        (Options { logins: vec![login], ..Options::default() }, "there is no `"),
    ];
    for (options, words) in cases {
        let error = HttpRegistry::new(options).resolve(&locked.image()).await.unwrap_err();
        assert_eq!(error.reason, Reason::Settings, "{error}");
        assert!(error.message.contains(words), "`{words}` is not in: {error}");
        assert!(!error.message.contains("hunter2") && !error.message.contains("aHVu"), "{error}");
    }
    let cases = [
        ("\n\nserver = ", "hosts.toml:3`: it is not TOML"),
        ("server = 5", "hosts.toml:1`: `server` has to be a text"),
        ("[host.\"https://a\"]\nskip_verify = \"hunter2\"", "hosts.toml:2`: `skip_verify`"),
        ("[host.\"https://a\"]\nheader = \"hunter2\"", "hosts.toml:2`: `header`"),
        ("[host.\"https://a\"]\n\ndial_timeout = \"hunter2\"", "hosts.toml:3`: `dial_timeout`"),
        ("\n[host.\"https://me:hunter2@a\"]", "hosts.toml:2`: a host is named like"),
        ("ca = \"no.pem\"", "no.pem`: entity not found"),
    ];
    for (text, words) in cases {
        let options = files.host(&locked, text);
        let error = HttpRegistry::new(options).resolve(&locked.image()).await.unwrap_err();
        assert_eq!(error.reason, Reason::Settings, "{text}: {error}");
        assert!(error.message.contains(words), "`{words}` is not in: {error}");
        assert!(!error.message.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_is_followed_without_what_is_for_the_registry() {
    let storage = Server::start(|seen| {
        if seen.headers.contains_key("x-ours") {
            reply(400, &[], "")
        } else {
            reply(200, &[], LAYER)
        }
    });
    let storage = storage.await;
    let there = format!("{}/blob?X-Signature=s1gnature", storage.url());
    let server = own(|url| {
        let ask = with_tokens(&format!("{url}/token"), "T0ken");
        move |seen: &Seen| match seen.target.as_str() {
            it if it.ends_with("/moved") => {
                assert_eq!(seen.header("authorization"), "Bearer T0ken", "it is the same host");
                reply(307, &[("Location", &there)], "")
            }
            it if it.contains("/blobs/") && !seen.header("authorization").is_empty() => {
                reply(302, &[("Location", "/moved")], "")
            }
            _ => ask(seen),
        }
    })
    .await;
    let files = Files::new();
    let header = format!("server = \"{}\"\n[header]\nX-Ours = \"0urs\"", server.url());
    let registry = HttpRegistry::new(files.host(&server, &header));
    let pieces = registry.stream(&server.image(), &layer(), 0).await.unwrap();
    assert_eq!(drain(pieces).await, (LAYER.to_vec(), None));
    let seen = storage.seen();
    assert_eq!(seen[0].target, "/blob?X-Signature=s1gnature");
    assert_eq!(seen[0].header("authorization"), "");
    for seen in server.seen() {
        let is_token = seen.target.starts_with("/token");
        assert_eq!(seen.header("x-ours"), if is_token { "" } else { "0urs" });
    }
}

#[tokio::test]
async fn a_redirect_leads_neither_in_circles_nor_to_plain_http() {
    let circle = Server::start(|_| reply(302, &[("Location", "/v2/again")], "")).await;
    let error = plain().resolve(&circle.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Broken);
    assert!(error.message.contains("redirects more than 5 times"), "{error}");
    let storage = Server::start(open).await;
    let there = format!("{}/blob?s1gnature", storage.url());
    let server = Server::start_tls(move |_| reply(302, &[("Location", &there)], "")).await;
    let error = trusting(&Files::new(), &server).resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Untrusted);
    assert!(error.message.contains("plain HTTP"), "{error}");
    assert!(storage.seen().is_empty());
    for nonsense in ["", "ftp://x/", "http://", "file:///etc/passwd"] {
        let server = Server::start(move |_| reply(302, &[("Location", nonsense)], "")).await;
        let error = plain().resolve(&server.image()).await.unwrap_err();
        assert_eq!(error.reason, Reason::Broken, "{nonsense}: {error}");
    }
    // What the storage says of the permission it was given is no word about us, and asks nothing of us.
    let challenge = [("WWW-Authenticate", "Basic realm=\"r\"")];
    let storage = Server::start(move |_| reply(401, &challenge, "")).await;
    let there = storage.url();
    let server = Server::start(move |_| reply(307, &[("Location", &there)], "")).await;
    let error = plain().stream(&server.image(), &layer(), 0).await.err().unwrap();
    assert_eq!(error.reason, Reason::Broken);
    for part in [storage.address.to_string(), server.address.to_string()] {
        assert!(error.message.contains(&part), "{error}");
    }
    assert!(!error.message.contains("credentials for"), "{error}");
    assert_eq!(storage.seen().len(), 1);
}

/// A client that knows the test's authority, and that this server has a certificate by it.
fn trusting(files: &Files, server: &Server) -> HttpRegistry {
    files.write(&format!("hosts/{}/ca.pem", server.address), &authority().ca);
    let text = format!("server = \"https://{}\"\nca = \"ca.pem\"", server.address);
    HttpRegistry::new(files.host(server, &text))
}

#[tokio::test]
async fn a_certificate_is_trusted_by_the_authority_that_is_named_for_the_host() {
    let server = Server::start_tls(open).await;
    let files = Files::new();
    let text = format!("server = \"https://{}\"\n", server.address);
    let error =
        HttpRegistry::new(files.host(&server, &text)).resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Untrusted, "{error}");
    assert!(error.message.contains("UnknownIssuer; name its authority as `ca`"), "{error}");
    trusting(&files, &server).resolve(&server.image()).await.unwrap();
    // A name that the certificate does not have.
    let port = server.address.port();
    let other = format!("server = \"https://localhost:{port}\"\nca = [\"ca.pem\"]");
    let error =
        HttpRegistry::new(files.host(&server, &other)).resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Untrusted, "{error}");
    let anybody = format!("{text}skip_verify = true");
    HttpRegistry::new(files.host(&server, &anybody)).resolve(&server.image()).await.unwrap();
    // Docker's older layout.
    let legacy = Files::new();
    let name = format!("localhost_{port}_");
    legacy.write(&format!("hosts/{name}/ca.crt"), &authority().ca);
    let found = hosts::find(&[legacy.path().join("hosts")], &format!("localhost:{port}")).unwrap();
    assert_eq!(found[0].tls.ca, [legacy.path().join("hosts").join(name).join("ca.crt")]);
    // Who speaks no TLS is not who is meant.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&reply(400, &[], "").bytes).await.unwrap();
        // Not before it is read.
        stream.read_to_end(&mut Vec::new()).await.ok();
    });
    let text = format!("server = \"https://{address}\"\n");
    let options = files.host(&server, &text);
    let error = HttpRegistry::new(options).resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Untrusted, "{error}");
    assert!(error.message.contains("if it speaks plain HTTP"), "{error}");
}

#[tokio::test]
async fn a_host_that_wants_to_know_us_is_shown_our_certificate() {
    let server = Server::listen(Some(authority().acceptor(true)), Arc::new(open)).await;
    let files = Files::new();
    trusting(&files, &server).resolve(&server.image()).await.unwrap_err();
    let folder = format!("hosts/{}", server.address);
    files.write(&format!("{folder}/our.cert"), &authority().client.0);
    files.write(&format!("{folder}/our.key"), &authority().client.1);
    let both = format!("{}{}", authority().client.0, authority().client.1);
    files.write(&format!("{folder}/both.pem"), &both);
    for client in [r#"[["our.cert", "our.key"]]"#, r#"["both.pem"]"#, r#""both.pem""#] {
        let text =
            format!("server = \"https://{}\"\nca = \"ca.pem\"\nclient = {client}", server.address);
        let options = files.host(&server, &text);
        HttpRegistry::new(options).resolve(&server.image()).await.unwrap();
    }
}

#[tokio::test]
async fn a_realm_without_tls_gets_no_credentials_of_a_registry_with_tls() {
    for gives in [true, false] {
        let realm = Server::start(move |_| {
            if gives { reply(200, &[], r#"{"token":"T0ken"}"#) } else { reply(401, &[], "") }
        });
        let realm = realm.await;
        let server = Server::start_tls(with_tokens(&realm.url(), "T0ken")).await;
        let files = Files::new();
        let auth = format!(r#"{{"auths":{{"{}":{{"auth":"bWU6aHVudGVyMg=="}}}}}}"#, server.address);
        let path = files.write("config.json", &auth);
        let options = trusting(&files, &server).0.options.clone();
        let registry = HttpRegistry::new(Options { credentials: vec![path], ..options });
        let result = registry.resolve(&server.image()).await;
        assert_eq!(result.is_ok(), gives, "{result:?}");
        if let Err(error) = result {
            assert!(error.message.contains("plain HTTP, so it was not sent"), "{error}");
        }
        let seen = realm.seen();
        assert_eq!(seen[0].header("authorization"), "");
        assert!(!seen[0].target.contains("account"), "{:?}", seen[0]);
    }
}

#[tokio::test]
async fn mirrors_are_asked_in_their_order_and_the_registry_last() {
    let log: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let logged = |name: &'static str, script: fn(&Seen) -> Reply| {
        let log = Arc::clone(&log);
        Server::start(move |seen| {
            log.lock().unwrap().push(name);
            script(seen)
        })
    };
    let failing = logged("failing", |_| reply(500, &[], "")).await;
    let without = logged("without", |_| reply(404, &[], "")).await;
    let mirror = logged("mirror", open).await;
    let server = logged("server", open).await;
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let files = Files::new();
    let text = |server: &Server, hosts: &[String]| {
        let hosts = hosts.iter().fold(String::new(), |all, it| all + &format!("[host.\"{it}\"]\n"));
        format!("server = \"{}\"\n{hosts}", server.url())
    };
    let urls = [format!("http://{gone}"), without.url(), failing.url(), mirror.url()];
    for order in [[0, 1, 2, 3], [2, 0, 1, 3]] {
        let hosts: Vec<String> = order.iter().map(|it| urls[*it].clone()).collect();
        let registry = HttpRegistry::new(files.host(&server, &text(&server, &hosts)));
        assert_eq!(registry.resolve(&server.image()).await.unwrap(), target());
        let expected: Vec<&str> = order
            .iter()
            .filter_map(|it| [None, Some("without"), Some("failing"), Some("mirror")][*it])
            .collect();
        assert_eq!(std::mem::take(&mut *log.lock().unwrap()), expected);
        let pieces = registry.stream(&server.image(), &layer(), 0).await.unwrap();
        assert_eq!(drain(pieces).await, (LAYER.to_vec(), None));
        assert_eq!(std::mem::take(&mut *log.lock().unwrap()), expected);
    }
    let registry = HttpRegistry::new(files.host(&server, &text(&server, &urls[..3])));
    registry.read(&server.image(), &target()).await.unwrap();
    assert_eq!(log.lock().unwrap().last(), Some(&"server"));
    // The error is the registry's own, and names who else was asked.
    let broken = logged("broken", |_| reply(429, &[("Retry-After", "5")], "")).await;
    let text = text(&broken, &urls[..3]);
    let registry = HttpRegistry::new(files.host(&server, &text));
    let error = registry.resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::RateLimited, "{error}");
    assert_eq!(error.retry_after, Some(Duration::from_secs(5)));
    for part in [gone, without.address, failing.address, broken.address] {
        assert!(error.message.contains(&part.to_string()), "{part}: {error}");
    }
}

#[tokio::test]
async fn a_mirror_that_spoils_a_layer_is_passed_over_at_the_next_try() {
    let options = |files: &Files, server: &Server, mirror: &Server| {
        let text = format!("server = \"{}\"\n[host.\"{}\"]", server.url(), mirror.url());
        Options { deadlines: hasty(), ..files.host(server, &text) }
    };
    let cut: fn(&Seen) -> Reply = |_| reply(200, &[("Content-Length", "10")], "0123");
    let stuck: fn(&Seen) -> Reply = |_| reply(200, &[("Content-Length", "10")], "0123").silent();
    let short: fn(&Seen) -> Reply = |_| reply(200, &[], "0123");
    let long: fn(&Seen) -> Reply = |_| reply(200, &[], "0123456789x");
    let wrong: fn(&Seen) -> Reply = |_| reply(200, &[], "012345678x");
    let silent: fn(&Seen) -> Reply = |_| Reply::raw("").silent();
    for (script, reason, offset) in [
        (cut, Some(Reason::Silent), 0),
        (stuck, Some(Reason::Silent), 0),
        (short, Some(Reason::Mismatch), 0),
        (long, Some(Reason::Broken), 2),
        (wrong, Some(Reason::Mismatch), 0),
        (silent, None, 0),
    ] {
        let (server, mirror) = (Server::start(open).await, Server::start(script).await);
        let files = Files::new();
        let registry = HttpRegistry::new(options(&files, &server, &mirror));
        let pieces = registry.stream(&server.image(), &layer(), offset).await.unwrap();
        assert_eq!(drain(pieces).await.1.map(|it| it.reason), reason);
        assert_eq!(mirror.seen().len(), 1);
        let pieces = registry.stream(&server.image(), &layer(), 0).await.unwrap();
        assert_eq!(drain(pieces).await, (LAYER.to_vec(), None));
        assert_eq!(mirror.seen().len(), 0);
    }
    // The registry itself is asked again, however it has failed: there is nobody else.
    let server = Server::start(cut).await;
    for _ in 0..2 {
        let registry = plain();
        let pieces = registry.stream(&server.image(), &layer(), 0).await.unwrap();
        drain(pieces).await.1.unwrap();
    }
    assert_eq!(server.seen().len(), 2);
    // What is good is asked on.
    let (server, mirror) = (Server::start(open).await, Server::start(open).await);
    let files = Files::new();
    let registry = HttpRegistry::new(options(&files, &server, &mirror));
    for offset in [0, 4, 0] {
        let pieces = registry.stream(&server.image(), &layer(), offset).await.unwrap();
        let start = usize::try_from(offset).unwrap();
        assert_eq!(drain(pieces).await, (LAYER[start..].to_vec(), None));
    }
    assert_eq!((mirror.seen().len(), server.seen().len()), (3, 0));
}

#[tokio::test]
async fn a_registry_that_may_not_be_asked_is_not() {
    let server = Server::start(open).await;
    let files = Files::new();
    let text = format!("server = \"{}\"\ncapabilities = []", server.url());
    let error =
        HttpRegistry::new(files.host(&server, &text)).resolve(&server.image()).await.unwrap_err();
    assert_eq!(error.reason, Reason::Settings);
    assert!(error.message.contains("`capabilities`"), "{error}");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_mirror_is_asked_at_its_path_and_for_what_it_can() {
    let server = Server::start(open).await;
    let mirror = Server::start(open).await;
    let files = Files::new();
    let cases = [
        ("", "", "/v2/a/b/manifests/1"),
        ("/", "", "/v2/a/b/manifests/1"),
        ("/v2", "", "/v2/a/b/manifests/1"),
        ("/proxy", "", "/proxy/v2/a/b/manifests/1"),
        ("/v2/proxy/", "override_path = true", "/v2/proxy/a/b/manifests/1"),
        ("", "override_path = true", "/a/b/manifests/1"),
    ];
    for (path, settings, expected) in cases {
        let text = format!("[host.\"{}{path}\"]\n{settings}", mirror.url());
        let registry = HttpRegistry::new(files.host(&server, &text));
        registry.resolve(&server.image()).await.unwrap();
        let namespace = server.address.to_string().replace(':', "%3A");
        assert_eq!(mirror.lines(), [format!("HEAD {expected}?ns={namespace}")]);
        assert_eq!(server.seen().len(), 0);
    }
    let text = format!(
        "[host.\"{}\"]\ncapabilities = [\"pull\"]\n[host.\"{0}\".header]\nX-Ours = [\"1\"]",
        mirror.url()
    );
    let registry = HttpRegistry::new(files.host(&server, &text));
    registry.resolve(&server.image()).await.unwrap();
    assert_eq!((mirror.seen().len(), server.seen().len()), (0, 1), "it cannot resolve");
    registry.read(&server.image(), &target()).await.unwrap();
    let seen = mirror.seen();
    assert_eq!((seen.len(), server.seen().len()), (1, 0));
    assert_eq!(seen[0].header("x-ours"), "1");
}

#[test]
fn a_registry_is_found_where_containerd_finds_it() {
    let urls =
        |found: Vec<Host>| -> Vec<String> { found.iter().map(|it| it.base.to_string()).collect() };
    for (registry, expected) in [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("registry.example", "https://registry.example/v2"),
        ("registry.example:5000", "https://registry.example:5000/v2"),
        ("localhost", "http://localhost/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("localhost:443", "https://localhost/v2"),
        ("127.3.2.1:5000", "http://127.3.2.1:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("localhost.example", "https://localhost.example/v2"),
    ] {
        assert_eq!(urls(hosts::find(&[], registry).unwrap()), [expected]);
    }
    let files = Files::new();
    let directory = [files.path().join("missing"), files.path().to_owned()];
    let find = |registry: &str| urls(hosts::find(&directory, registry).unwrap());
    files.write("_default/hosts.toml", "[host.\"https://any.example\"]");
    files.write("docker.io/hosts.toml", "[host.\"mirror.example\"]\n[host.\"http://a.example:1\"]");
    files.write("x.example:5000/hosts.toml", "server = \"http://x.example:5000\"");
    assert_eq!(
        find("docker.io"),
        ["https://mirror.example/v2", "http://a.example:1/v2", "https://registry-1.docker.io/v2"]
    );
    assert_eq!(find("y.example"), ["https://any.example/v2", "https://y.example/v2"]);
    assert_eq!(find("x.example:5000"), ["http://x.example:5000/v2"]);
    files.write("x.example_5000_/hosts.toml", "server = \"\"\ndial_timeout = \"1m30.5s\"");
    let found = hosts::find(&directory, "x.example:5000").unwrap();
    assert_eq!(found[0].connect, Some(Duration::from_millis(90_500)));
    assert_eq!(urls(found), ["https://x.example:5000/v2"]);
}

/// All that is told or could be logged, of failures at every place that knows a secret.
#[tokio::test]
async fn no_secret_is_ever_told() {
    let secrets = ["hunter2", "T0ken", "1dentity", "s1gnature", "bWU6aHVudGVyMg"];
    // All that it was shown comes back.
    let repeat = |seen: &Seen| {
        let shown = seen.header("authorization");
        let pair = shown.strip_prefix("Basic ").map(|it| STANDARD.decode(it).unwrap());
        let pair = String::from_utf8(pair.unwrap_or_default()).unwrap();
        let message = format!("not {shown} ({pair}) {} http://x/y?s1gnature", seen.body);
        serde_json::json!({"errors": [{"code": "DENIED", "message": message}]}).to_string()
    };
    let files = Files::new();
    let mut told = Vec::new();
    for entry in [
        r#"{"auth":"bWU6aHVudGVyMg=="}"#,
        r#"{"identitytoken":"1dentity"}"#,
        r#"{"registrytoken":"T0ken"}"#,
    ] {
        // It wants a password, or a token, and refuses it, or what was bought with it; or it sends us on.
        let storage = Server::start(|_| reply(403, &[], "?s1gnature")).await;
        let there = format!("{}/?s1gnature", storage.url());
        for (scheme, of_token, of_image) in [
            ("Basic", 200, 403),
            ("Bearer", 401, 403),
            ("Bearer", 500, 403),
            ("Bearer", 200, 403),
            ("Bearer", 200, 302),
        ] {
            let there = there.clone();
            let server = own(|url| {
                let challenge = format!(r#"{scheme} realm="{url}/token?s1gnature""#);
                move |seen: &Seen| {
                    if seen.target.starts_with("/token") {
                        let token = r#"{"token":"T0ken","expires_in":300}"#;
                        return reply(
                            of_token,
                            &[],
                            if of_token == 200 { token.to_owned() } else { repeat(seen) },
                        );
                    }
                    if seen.header("authorization").is_empty() {
                        return reply(401, &[("WWW-Authenticate", &challenge)], repeat(seen));
                    }
                    reply(of_image, &[("Location", &there)], repeat(seen))
                }
            })
            .await;
            let text = format!(r#"{{"auths":{{"{}":{entry}}}}}"#, server.address);
            let path = files.write("config.json", &text);
            let header = format!("server = \"{}\"\n[header]\nX = \"hunter2\"", server.url());
            let options = Options { credentials: vec![path], ..files.host(&server, &header) };
            let registry = HttpRegistry::new(options.clone());
            let error = registry.read(&server.image(), &target()).await.unwrap_err();
            told.push(format!("{error}\n{error:?}\n{options:?}\n{registry:?}"));
            // With the token that is kept.
            let error = registry.read(&server.image(), &target()).await.unwrap_err();
            told.push(format!("{error}\n{error:?}\n{registry:?}"));
        }
    }
    // Connections that fail on the way to a URL with a secret.
    let unknown = format!("https://{}.example/?s1gnature", "a".repeat(64));
    for there in ["http://127.0.0.1:1/?s1gnature".to_owned(), unknown] {
        let server = Server::start(move |_| reply(302, &[("Location", &there)], "")).await;
        let error = plain().resolve(&server.image()).await.unwrap_err();
        told.push(format!("{error}\n{error:?}"));
    }
    let known = hosts::find(&[files.path().join("hosts")], "docker.io");
    told.push(format!("{known:?}"));
    assert!(told.len() > 30);
    for text in told {
        for secret in secrets {
            assert!(!text.contains(secret), "`{secret}` is in: {text}");
        }
    }
}
