//! Which hosts are asked for an image, and how: the registry's own, or what a directory in the layout of containerd's
//! `certs.d` says.
//!
//! Reads the files anew each time, since they change; asks nobody.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::files;
use crate::registry::{Error, Reason};

/// The registry that images are from whose name names none, and the host that it has in truth.
pub(super) const DOCKER: &str = "docker.io";
const DOCKER_HOST: &str = "registry-1.docker.io";

/// Largest file about a host.
const LIMIT: u64 = 256 << 10;

/// Most mirrors of a registry: each is waited for in its turn.
const MIRRORS: usize = 16;

/// A host that is asked, and how.
#[derive(Debug, Clone)]
pub(super) struct Host {
    name: String,
    /// Up to and with `/v2`, or whatever else stands in its place; no slash at the end.
    pub(super) base: Url,
    /// The registry's name, which a mirror of several registries is told.
    pub(super) namespace: Option<String>,
    pub(super) can: Can,
    pub(super) headers: HeaderMap,
    pub(super) tls: Tls,
    pub(super) connect: Option<Duration>,
}

/// What a host is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Can {
    pub(super) pull: bool,
    pub(super) resolve: bool,
}

/// Whom a host is believed to be, and who we are for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Tls {
    /// Beside the system's.
    pub(super) ca: Vec<PathBuf>,
    /// Certificates and their keys; the same file may have both.
    pub(super) client: Vec<(PathBuf, PathBuf)>,
    pub(super) skip_verify: bool,
}

impl Host {
    /// As messages and files of credentials have it: the registry's name as it is written; of others a name, and a port
    /// unless it is the usual one.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn of(base: Url, registry: &str) -> Self {
        let own = if registry == DOCKER { DOCKER_HOST } else { registry };
        let (is_own, is_first) = (leads_to(&base, own), leads_to(&base, registry));
        let namespace = (!is_own && !is_first).then(|| registry.to_owned());
        Self {
            name: if is_own { own.to_owned() } else { authority(&base) },
            base,
            namespace,
            can: Can { pull: true, resolve: true },
            headers: HeaderMap::new(),
            tls: Tls::default(),
            connect: None,
        }
    }
}

/// A URL's name, and its port unless it is the usual one.
pub(super) fn authority(url: &Url) -> String {
    let name = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}

/// Whether a URL is one of a registry, `name[:port]`, also of one that is written with the usual port.
fn leads_to(url: &Url, registry: &str) -> bool {
    let usual = url.port_or_known_default();
    let with_port = usual.map(|it| format!("{}:{it}", url.host_str().unwrap_or_default()));
    authority(url) == registry || with_port.as_deref() == Some(registry)
}

/// Whether a registry, `name[:port]`, is this machine.
pub(super) fn is_loopback(registry: &str) -> bool {
    let name = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    name == "localhost"
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The hosts of a registry in the order in which they are asked; the last one is the registry itself.
///
/// # Errors
/// [`Reason::Settings`] with file and line.
pub(super) fn find(directories: &[PathBuf], registry: &str) -> Result<Vec<Host>, Error> {
    for directory in directories {
        for name in names(registry) {
            let directory = directory.join(name);
            if directory.is_dir() {
                return of_directory(&directory, registry);
            }
        }
    }
    Ok(vec![usual(registry)?])
}

/// A registry that nothing is said of: by TLS, unless it is this machine, as Docker and containerd have it.
fn usual(registry: &str) -> Result<Host, Error> {
    let name = if registry == DOCKER { DOCKER_HOST } else { registry };
    let plain = is_loopback(registry) && !registry.ends_with(":443");
    let scheme = if plain { "http" } else { "https" };
    let base = Url::parse(&format!("{scheme}://{name}/v2")).map_err(|_| {
        Error::new(Reason::Settings, format!("`{}` is no host", registry.escape_debug()))
    })?;
    Ok(Host::of(base, registry))
}

/// The directories that may be about a registry, the first one that is there counts.
fn names(registry: &str) -> Vec<String> {
    let mut names = vec![registry.to_owned(), "_default".to_owned()];
    if let Some((name, port)) = registry.rsplit_once(':') {
        names.insert(0, format!("{name}_{port}_"));
    }
    names
}

fn of_directory(directory: &Path, registry: &str) -> Result<Vec<Host>, Error> {
    let path = directory.join("hosts.toml");
    match files::read(&path, LIMIT) {
        Ok(Some(bytes)) => Reader::new(&path, directory, registry, &bytes)?.hosts(),
        Ok(None) => {
            let mut host = usual(registry)?;
            host.tls =
                certificates(directory).map_err(|cause| files::unreadable(directory, &cause))?;
            Ok(vec![host])
        }
        Err(cause) => Err(files::unreadable(&path, &cause)),
    }
}

/// Docker's older layout: `*.crt` are authorities, each `*.cert` is ours and has a `*.key`.
fn certificates(directory: &Path) -> std::io::Result<Tls> {
    let mut tls = Tls::default();
    let mut paths = Vec::new();
    for entry in directory.read_dir()? {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        match path.extension().and_then(|it| it.to_str()) {
            Some("crt") => tls.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                tls.client.push((path, key));
            }
            _ => {}
        }
    }
    Ok(tls)
}

/// Reads one `hosts.toml`. Nothing of the file is quoted but names of keys, since headers may be secrets.
struct Reader<'a> {
    path: &'a Path,
    directory: &'a Path,
    registry: &'a str,
    text: &'a str,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl<'a> Reader<'a> {
    fn new(
        path: &'a Path,
        directory: &'a Path,
        registry: &'a str,
        bytes: &'a [u8],
    ) -> Result<Self, Error> {
        let text = std::str::from_utf8(bytes).map_err(|_| {
            Error::new(Reason::Settings, format!("`{}` is not valid UTF-8", path.display()))
        })?;
        Ok(Self { path, directory, registry, text })
    }

    fn hosts(&self) -> Result<Vec<Host>, Error> {
        let root = DeTable::parse(self.text)
            .map_err(|error| self.wrong(error.span().map_or(0, |it| it.start), "it is not TOML"))?;
        let root = root.get_ref();
        let mut hosts = Vec::new();
        if let Some(mirrors) = root.get("host") {
            let Some(table) = mirrors.get_ref().as_table() else {
                return Err(self.wrong(mirrors.span().start, "`host` has to be a table"));
            };
            for (url, settings) in table {
                let Some(settings) = settings.get_ref().as_table() else {
                    return Err(self.wrong(url.span().start, "a host has to be a table"));
                };
                hosts.push(self.host(url.get_ref(), url.span().start, settings)?);
            }
            if hosts.len() > MIRRORS {
                let what = format!("it has more than {MIRRORS} hosts");
                return Err(self.wrong(mirrors.span().start, &what));
            }
        }
        let (server, place) = match root.get("server") {
            None => (usual(self.registry)?.base.to_string(), 0),
            Some(value) => (self.text_of("server", value)?.to_owned(), value.span().start),
        };
        // An empty one is none.
        let server =
            if server.is_empty() { usual(self.registry)?.base.to_string() } else { server };
        hosts.push(self.host(&server, place, root)?);
        Ok(hosts)
    }

    fn host(&self, url: &str, place: usize, settings: &DeTable<'_>) -> Result<Host, Error> {
        let with_scheme = if url.contains("://") {
            url.to_owned()
        } else {
            let name = url.split('/').next().unwrap_or_default();
            format!("{}://{url}", if is_loopback(name) { "http" } else { "https" })
        };
        let base = Url::parse(&with_scheme).ok();
        let base = base.filter(|it| {
            matches!(it.scheme(), "http" | "https")
                && it.host_str().is_some_and(|name| !name.is_empty())
                && it.username().is_empty()
                && it.password().is_none()
                && it.query().is_none()
                && it.fragment().is_none()
        });
        let Some(mut base) = base else {
            let what = "a host is named like `https://mirror.example`, without user and query";
            return Err(self.wrong(place, what));
        };
        let overrides = self.flag("override_path", settings)?;
        let path = base.path().trim_end_matches('/').to_owned();
        let path = if overrides || path.ends_with("/v2") { path } else { format!("{path}/v2") };
        base.set_path(&path);
        let mut host = Host::of(base, self.registry);
        if let Some(value) = settings.get("capabilities") {
            let words = self.texts("capabilities", value)?;
            host.can = Can { pull: words.contains(&"pull"), resolve: words.contains(&"resolve") };
        }
        if let Some(value) = settings.get("ca") {
            let paths = self.texts("ca", value)?;
            host.tls.ca = paths.into_iter().map(|it| self.directory.join(it)).collect();
        }
        if let Some(value) = settings.get("client") {
            host.tls.client = self.pairs(value)?;
        }
        host.tls.skip_verify = self.flag("skip_verify", settings)?;
        if let Some(value) = settings.get("header") {
            host.headers = self.headers(value)?;
        }
        if let Some(value) = settings.get("dial_timeout") {
            let text = self.text_of("dial_timeout", value)?;
            let Some(time) = duration(text) else {
                let what = "`dial_timeout` has to be a time like `3s`";
                return Err(self.wrong(value.span().start, what));
            };
            host.connect = Some(time);
        }
        Ok(host)
    }

    fn flag(&self, key: &str, settings: &DeTable<'_>) -> Result<bool, Error> {
        let Some(value) = settings.get(key) else { return Ok(false) };
        value.get_ref().as_bool().ok_or_else(|| {
            self.wrong(value.span().start, &format!("`{key}` has to be `true` or `false`"))
        })
    }

    fn text_of<'v>(&self, key: &str, value: &'v Value<'_>) -> Result<&'v str, Error> {
        value
            .get_ref()
            .as_str()
            .ok_or_else(|| self.wrong(value.span().start, &format!("`{key}` has to be a text")))
    }

    /// One text, or a list of them.
    fn texts<'v>(&self, key: &str, value: &'v Value<'_>) -> Result<Vec<&'v str>, Error> {
        match value.get_ref().as_array() {
            None => Ok(vec![self.text_of(key, value)?]),
            Some(list) => list.iter().map(|it| self.text_of(key, it)).collect(),
        }
    }

    /// `"both.pem"`, `["both.pem"]` or `[["our.cert", "our.key"]]`.
    fn pairs(&self, value: &Value<'_>) -> Result<Vec<(PathBuf, PathBuf)>, Error> {
        let pair = |value: &Value<'_>| {
            let paths = self.texts("client", value)?;
            let path = |it: &str| self.directory.join(it);
            match paths[..] {
                [both] => Ok((path(both), path(both))),
                [certificate, key] => Ok((path(certificate), path(key))),
                _ => Err(self.wrong(
                    value.span().start,
                    "each `client` has to be a file, or a certificate and its key",
                )),
            }
        };
        match value.get_ref().as_array() {
            None => Ok(vec![pair(value)?]),
            Some(list) => list.iter().map(pair).collect(),
        }
    }

    fn headers(&self, value: &Value<'_>) -> Result<HeaderMap, Error> {
        let wrong = |place: usize| self.wrong(place, "`header` has names, and texts for them");
        let table = value.get_ref().as_table().ok_or_else(|| wrong(value.span().start))?;
        let mut headers = HeaderMap::new();
        for (name, value) in table {
            let place = value.span().start;
            for text in self.texts("header", value)? {
                let name = HeaderName::from_bytes(name.get_ref().as_bytes());
                let (Ok(name), Ok(mut text)) = (name, HeaderValue::from_str(text)) else {
                    return Err(wrong(place));
                };
                text.set_sensitive(true);
                headers.append(name, text);
            }
        }
        Ok(headers)
    }

    fn wrong(&self, place: usize, what: &str) -> Error {
        let before = self.text.get(..place).unwrap_or_default();
        let line = before.bytes().filter(|c| *c == b'\n').count() + 1;
        Error::new(Reason::Settings, format!("`{}:{line}`: {what}", self.path.display()))
    }
}

/// A time as Go writes it: `3s`, `1m30s`, `1.5h`.
fn duration(text: &str) -> Option<Duration> {
    let units = [("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = units.iter().find(|it| it.0 == &rest[..end])?;
        seconds += number * unit.1;
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|it| !it.is_zero())
}
