//! A registry of this machine's own on loopback: Debian's `docker-registry`, filled by `skopeo`.
//!
//! Everything is kept in a directory that goes when it is dropped, also after a failed test; what a killed test run left
//! behind ends with it, and its directory goes when the next rig or registry starts.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use evenkeel::content::{self, Digest};
use serde_json::Value;

use super::recipe::{REFERENCE, Recipe};
use super::sweep;

/// Whom the registries that ask for it know.
pub(crate) const USER: &str = "keel";
/// Not made of harmless letters only, as people's passwords are not.
pub(crate) const PASSWORD: &str = "a:b%c/d \"e";

/// bcrypt (cost 4) of [`PASSWORD`].
const HTPASSWD: &str = "keel:$2y$04$abcdefghijklmnopqrstuuP8VkAecFI45EY34fOomDE5txIljDdvW\n";

/// Generous: with all tests at once on two cores.
const LIMIT: Duration = Duration::from_mins(1);

/// How a registry is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By HTTP, by anybody.
    Plain,
    /// By HTTP, with [`USER`] and [`PASSWORD`].
    Basic,
    /// By HTTPS with a certificate of [`Registry::authority`] for `localhost` and 127.0.0.1, by anybody.
    Tls,
    /// By HTTPS, with [`USER`] and [`PASSWORD`].
    TlsBasic,
}

impl Kind {
    fn has_tls(self) -> bool {
        matches!(self, Self::Tls | Self::TlsBasic)
    }

    fn asks(self) -> bool {
        matches!(self, Self::Basic | Self::TlsBasic)
    }
}

/// A registry that runs.
pub(crate) struct Registry {
    directory: PathBuf,
    kind: Kind,
    address: SocketAddr,
    process: Child,
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// `127.0.0.1:40000/a/b:tag`.
    pub(crate) name: String,
    /// Of the manifest, or of the index: what the tag stands for.
    pub(crate) digest: Digest,
    repository: String,
}

/// What the registry has for this machine.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Of what the tag stands for.
    pub(crate) media_type: String,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Registry {
    pub(crate) fn start(kind: Kind) -> Self {
        sweep::stale();
        let directory = tempfile::Builder::new().prefix(sweep::PREFIX).tempdir().unwrap().keep();
        sweep::claim(&directory);
        let (process, address) = run(&directory, kind);
        Self { directory, kind, address, process }
    }

    /// Everything of it is below it.
    pub(crate) fn dir(&self) -> &Path {
        &self.directory
    }

    /// As it stands in names of images: `127.0.0.1:40000`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate of the authority that signed its own, for [`Kind::Tls`]; alone in its directory.
    pub(crate) fn authority(&self) -> PathBuf {
        self.directory.join("authority/ca.crt")
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap()
    }

    /// Pushes an image as `a/b:tag`. What had that name before has none then. A layer that the repository `a/b` has
    /// already, without any packing, is used as it is.
    pub(crate) fn push(&self, name: &str, recipe: &Recipe) -> Pushed {
        let scratch = tempfile::tempdir_in(&self.directory).unwrap();
        let (layout, digest) = (scratch.path().join("layout"), scratch.path().join("digest"));
        std::fs::create_dir(&layout).unwrap();
        recipe.layout(&layout);
        let source = format!("oci:{}:{REFERENCE}", layout.display());
        let target = format!("docker://{}/{name}", self.address);
        let mut args = vec!["copy", "--quiet", "--digestfile", digest.to_str().unwrap()];
        args.extend(recipe.options());
        let options = self.options("dest-");
        args.extend(options.iter().map(String::as_str));
        args.extend([source.as_str(), target.as_str()]);
        let output = skopeo(&args);
        assert!(
            output.status.success(),
            "skopeo {args:?}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        Pushed {
            name: format!("{}/{name}", self.address),
            digest: std::fs::read_to_string(digest).unwrap().trim().parse().unwrap(),
            repository: name.split(':').next().unwrap().to_owned(),
        }
    }

    /// What `skopeo` has to be told to be let in; `prefix` is for one of the sides of a copy.
    pub(crate) fn options(&self, prefix: &str) -> Vec<String> {
        let mut options = if self.kind.has_tls() {
            let directory = self.directory.join("authority");
            vec![format!("--{prefix}cert-dir={}", directory.display())]
        } else {
            vec![format!("--{prefix}tls-verify=false")]
        };
        if self.kind.asks() {
            options.push(format!("--{prefix}creds={USER}:{PASSWORD}"));
        }
        options
    }

    /// Looks up what a push has left.
    pub(crate) fn stored(&self, pushed: &Pushed) -> Stored {
        let options = self.options("");
        let manifest = |digest: &str| {
            let image = format!("docker://{}/{}@{digest}", self.address, pushed.repository);
            let mut args = vec!["inspect", "--raw"];
            args.extend(options.iter().map(String::as_str));
            args.push(&image);
            let output = skopeo(&args);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            serde_json::from_slice::<Value>(&output.stdout).unwrap()
        };
        let target = manifest(pushed.digest.as_str());
        let media_type = target["mediaType"].as_str().unwrap().to_owned();
        let entries = target["manifests"].as_array();
        let own = entries.map(|entries| {
            let is_own = |it: &&Value| it["platform"]["architecture"] == content::architecture();
            manifest(entries.iter().find(is_own).unwrap()["digest"].as_str().unwrap())
        });
        let image = own.unwrap_or(target);
        let blob = |it: &Value| Blob {
            media_type: it["mediaType"].as_str().unwrap().to_owned(),
            digest: it["digest"].as_str().unwrap().parse().unwrap(),
            size: it["size"].as_u64().unwrap(),
        };
        Stored {
            media_type,
            config: blob(&image["config"]),
            layers: image["layers"].as_array().unwrap().iter().map(blob).collect(),
        }
    }
}

#[expect(clippy::print_stdout, reason = "shown with the failed test only")]
impl Drop for Registry {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(20)..];
            println!("the registry logged last:\n{}", tail.join("\n"));
        }
        // It may be gone already; there is nothing else to do about it.
        drop(self.process.kill());
        drop(self.process.wait());
        let left = sweep::remove(&self.directory);
        if !std::thread::panicking() {
            assert_eq!(left, Vec::<String>::new(), "the registry could not be removed");
        }
    }
}

/// Starts it in a directory, and returns when it listens.
fn run(directory: &Path, kind: Kind) -> (Child, SocketAddr) {
    use std::os::unix::process::CommandExt as _;
    let configuration = directory.join("config.yml");
    std::fs::write(&configuration, configure(directory, kind)).unwrap();
    let mut log = std::fs::File::create(directory.join("log")).unwrap();
    // It ends with the thread that starts it, as nobody else would end it if the test were killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "docker-registry", "serve"]).arg(configuration);
    // A Ctrl-C meant for the tests must not end it before the test does.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = command.spawn().expect("setpriv cannot be run; run scripts/setup");
    let output = BufReader::new(process.stderr.take().unwrap());
    let (sender, listening) = mpsc::channel();
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            writeln!(log, "{line}").ok();
            // The kernel chooses the port, so that nobody else can have it.
            if let Some((_, rest)) = line.split_once("listening on ") {
                let end = rest.find(['"', ',']).unwrap_or(rest.len());
                sender.send(rest[..end].parse().unwrap()).ok();
            }
        }
    });
    match listening.recv_timeout(LIMIT) {
        Ok(address) => (process, address),
        Err(_) => {
            drop(process.kill());
            drop(process.wait());
            let log = std::fs::read_to_string(directory.join("log")).unwrap();
            panic!("docker-registry does not listen; is it installed by scripts/setup? {log}")
        }
    }
}

fn configure(directory: &Path, kind: Kind) -> String {
    use std::fmt::Write as _;
    let path = |name: &str| directory.join(name).display().to_string();
    let mut text = format!(
        "version: 0.1\n\
         log: {{level: info, accesslog: {{disabled: false}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
         http:\n  addr: 127.0.0.1:0\n  secret: test\n",
        path("storage")
    );
    if kind.has_tls() {
        certify(directory);
        let (certificate, key) = (path("server.crt"), path("server.key"));
        writeln!(text, "  tls: {{certificate: {certificate}, key: {key}}}").unwrap();
    }
    if kind.asks() {
        std::fs::write(directory.join("htpasswd"), HTPASSWD).unwrap();
        let file = path("htpasswd");
        writeln!(text, "auth: {{htpasswd: {{realm: test, path: {file}}}}}").unwrap();
    }
    text
}

/// Makes an authority and a server's certificate that it signed.
fn certify(directory: &Path) {
    const CONFIGURATION: &str = "[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = evenkeel test\n\
         [authority]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign\nsubjectKeyIdentifier = hash\n\
         [server]\nbasicConstraints = CA:FALSE\nkeyUsage = digitalSignature\nextendedKeyUsage = serverAuth\n\
         subjectAltName = DNS:localhost, IP:127.0.0.1\nsubjectKeyIdentifier = hash\n";
    std::fs::write(directory.join("openssl.cnf"), CONFIGURATION).unwrap();
    std::fs::create_dir(directory.join("authority")).unwrap();
    let new = "req -x509 -config openssl.cnf -days 2 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1";
    let authority = "-extensions authority -keyout ca.key -out authority/ca.crt";
    let server =
        "-extensions server -CA authority/ca.crt -CAkey ca.key -keyout server.key -out server.crt";
    for rest in [authority, server] {
        let mut command = Command::new("openssl");
        command.current_dir(directory).args(new.split(' ')).args(rest.split(' '));
        let output = command.output().expect("openssl cannot be run; run scripts/setup");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Runs skopeo.
pub(crate) fn skopeo(args: &[&str]) -> Output {
    let mut command = Command::new("skopeo");
    command.arg("--insecure-policy").args(args).stdin(Stdio::null());
    // What it remembers of blobs, for all of the machine, would make it push a layer that is packed in another way. It
    // remembers nothing where it can make no directory, and an ordinary user has a say in where.
    command.env("_CONTAINERS_ROOTLESS_UID", "1").env("XDG_DATA_HOME", "/dev/null");
    command.output().expect("skopeo cannot be run; run scripts/setup")
}

/// An answer by HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    /// As far as it came; the connection may have been cut.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of a header, which is asked for in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.lines().filter_map(|it| it.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Asks once by HTTP, and takes everything until the other side ends the connection.
pub(crate) fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(LIMIT)).unwrap();
    let headers: Vec<String> =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{}\r\n",
        headers.concat()
    );
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n");
    let Some(end) = end else { return Answer { status: 0, headers: String::new(), body: answer } };
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let (first, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    Answer {
        status: first.split(' ').nth(1).unwrap().parse().unwrap(),
        headers: headers.to_owned(),
        body: answer[end + 4..].to_vec(),
    }
}
