//! Who we are for a host: logins that the settings name, then Docker's and Podman's files, with their helpers.
//!
//! All is read anew each time, since passwords change; nothing is kept. No message has more of a secret than where it
//! is from.

use std::collections::BTreeMap;
use std::io::Error as IoError;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::hosts::DOCKER;
use super::{Login, Options, files};
use crate::host::group::Group;
use crate::registry::{Error, Reason};

/// Largest file of credentials, and most that a helper says.
const LIMIT: u64 = 1 << 20;

/// Docker's registry as its files and helpers know it, for the sake of its first version.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// Who a helper says we are when what it has is an identity token.
const TOKEN_USER: &str = "<token>";

pub(super) enum Credentials {
    Password {
        username: String,
        password: SecretString,
    },
    /// Buys tokens, as a password does.
    Identity(SecretString),
    /// Is shown to the registry as it is.
    Token(SecretString),
}

pub(super) struct Found {
    pub(super) credentials: Credentials,
    /// For people: which file or helper.
    pub(super) from: String,
}

/// What was found, or else what was in the way of finding any; for a registry that needs none, neither matters.
#[derive(Default)]
pub(super) struct Looked {
    pub(super) found: Option<Found>,
    pub(super) trouble: Option<Error>,
}

/// Where Docker and Podman keep credentials of who runs this.
pub fn usual_files() -> Vec<PathBuf> {
    let variable = |name: &str| {
        let value = std::env::var_os(name).filter(|it| !it.is_empty());
        value.map(PathBuf::from).filter(|it| it.is_absolute())
    };
    // A service has no home unless its unit says so.
    let home = variable("HOME").unwrap_or_else(|| PathBuf::from("/root"));
    let docker = variable("DOCKER_CONFIG").unwrap_or_else(|| home.join(".docker"));
    let user = rustix::process::getuid().as_raw();
    let mut files = vec![docker.join("config.json")];
    files.extend(variable("REGISTRY_AUTH_FILE"));
    files.extend(variable("XDG_RUNTIME_DIR").map(|it| it.join("containers/auth.json")));
    files.push(PathBuf::from(format!("/run/containers/{user}/auth.json")));
    files.push(home.join(".config/containers/auth.json"));
    files
}

/// Looks for credentials for a repository of a host, as [`super::hosts::Host::name`] has it.
pub(super) async fn look(options: &Options, host: &str, repository: &str) -> Looked {
    let registry = registry_of(host);
    if let Some(login) = options.logins.iter().find(|it| normal(&it.host) == normal(registry)) {
        return match of_login(login).await {
            Ok(found) => Looked { found: Some(found), trouble: None },
            Err(error) => Looked { found: None, trouble: Some(error) },
        };
    }
    let mut looked = Looked::default();
    for path in &options.credentials {
        match of_file(options, path, registry, repository).await {
            Ok(None) => {}
            Ok(Some(found)) => return Looked { found: Some(found), trouble: None },
            Err(error) => looked.trouble = looked.trouble.or(Some(error)),
        }
    }
    looked
}

/// The one name of a registry that has several.
fn registry_of(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER,
        other => other,
    }
}

async fn of_login(login: &Login) -> Result<Found, Error> {
    let path = &login.password_file;
    let bytes = read(path).await?.ok_or_else(|| {
        let what = format!("there is no `{}`, the password for `{}`", path.display(), login.host);
        Error::new(Reason::Settings, what)
    })?;
    let text = String::from_utf8(bytes).map_err(|_| {
        Error::new(Reason::Settings, format!("`{}` is not valid UTF-8", path.display()))
    })?;
    // Whoever writes a file with an editor ends its line.
    let password = SecretString::from(text.trim_end_matches(['\r', '\n']));
    let credentials = Credentials::Password { username: login.username.clone(), password };
    Ok(Found { credentials, from: format!("`{}`", path.display()) })
}

async fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || files::read(&owned, LIMIT)).await;
    let read = read.unwrap_or_else(|error| Err(IoError::other(error)));
    read.map_err(|cause| files::unreadable(path, &cause))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

async fn of_file(
    options: &Options,
    path: &Path,
    registry: &str,
    repository: &str,
) -> Result<Option<Found>, Error> {
    let Some(bytes) = read(path).await? else { return Ok(None) };
    let file: File = serde_json::from_slice(&bytes).map_err(|error| {
        // What the parser says quotes what it met.
        let what = "is not a file of credentials as Docker or Podman write it";
        let place = format!("`{}:{}`", path.display(), error.line());
        Error::new(Reason::Settings, format!("{place}: it {what}"))
    })?;
    let mut trouble = None;
    let keys = keys(registry, repository);
    let named = keys.iter().find_map(|key| entry(&file.cred_helpers, key));
    let store = Some(&file.creds_store);
    // An empty one takes a registry out of the store.
    let helpers = if named.is_some_and(String::is_empty) { [None, None] } else { [named, store] };
    for helper in helpers.into_iter().flatten().filter(|it| !it.is_empty()) {
        match of_helper(options, helper, registry).await {
            Ok(None) => {}
            Ok(Some(credentials)) => {
                let from = format!("`docker-credential-{}`", helper.escape_debug());
                return Ok(Some(Found { credentials, from }));
            }
            Err(what) => {
                let what = format!(
                    "the credential helper `docker-credential-{}`, which `{}` names for `{registry}`, {what}",
                    helper.escape_debug(),
                    path.display()
                );
                trouble = trouble.or(Some(Error::new(Reason::Settings, what)));
            }
        }
    }
    let from = format!("`{}`", path.display());
    for key in &keys {
        let Some(entry) = entry(&file.auths, key) else { continue };
        match of_entry(entry) {
            Ok(None) => {}
            Ok(Some(credentials)) => return Ok(Some(Found { credentials, from })),
            Err(what) => {
                let what = format!("`{}`: the entry of `{key}` {what}", path.display());
                trouble = trouble.or(Some(Error::new(Reason::Settings, what)));
            }
        }
    }
    trouble.map_or(Ok(None), Err)
}

/// What an entry may be for, the most precise first: a repository, what it is below, its registry.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut keys = vec![format!("{registry}/{repository}")];
    while let Some((above, _)) = keys.last().and_then(|it| it.rsplit_once('/')) {
        keys.push(above.to_owned());
    }
    keys
}

fn entry<'a, T>(entries: &'a BTreeMap<String, T>, key: &str) -> Option<&'a T> {
    // Of several ways to write a key, the plain one is the newer one.
    let plain = entries.get(key);
    let key = normal(key);
    plain.or_else(|| entries.iter().find(|(it, _)| normal(it) == key).map(|it| it.1))
}

/// A key without what older programs wrote around it, and without the usual port: `https://host/v1/` is `host`.
fn normal(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let (host, path) = match bare {
        Some(bare) => (bare.split('/').next().unwrap_or_default(), ""),
        None => key.split_once('/').unwrap_or((key, "")),
    };
    let path = path.trim_end_matches('/');
    let host = registry_of(host.strip_suffix(":443").unwrap_or(host));
    if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }
}

fn of_entry(entry: &Entry) -> Result<Option<Credentials>, &'static str> {
    let secret = |text: &str| SecretString::from(text);
    if !entry.identitytoken.is_empty() {
        return Ok(Some(Credentials::Identity(secret(&entry.identitytoken))));
    }
    if !entry.registrytoken.is_empty() {
        return Ok(Some(Credentials::Token(secret(&entry.registrytoken))));
    }
    let (username, password) = if entry.auth.is_empty() {
        (entry.username.clone(), entry.password.clone())
    } else {
        let decoded = STANDARD.decode(entry.auth.trim()).ok();
        let decoded = decoded.and_then(|it| String::from_utf8(it).ok());
        let pair = decoded.as_deref().and_then(|it| it.split_once(':'));
        let Some((username, password)) = pair else {
            return Err("has an `auth` that is not `user:password` in base64");
        };
        (username.to_owned(), password.trim_matches('\0').to_owned())
    };
    if username.is_empty() {
        return Ok(None);
    }
    Ok(Some(Credentials::Password { username, password: secret(&password) }))
}

/// What a helper says.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Said {
    username: String,
    secret: String,
}

/// Asks a helper; the error goes on from its name.
async fn of_helper(
    options: &Options,
    helper: &str,
    registry: &str,
) -> Result<Option<Credentials>, String> {
    let remedy = "or take it out of the file";
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !helper.chars().all(inside) {
        return Err(format!("is not the name of a program: correct it, {remedy}"));
    }
    let program = format!("docker-credential-{helper}");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = options.helpers.iter().cloned().chain(std::env::split_paths(&path));
    let Some(program) = directories.map(|it| it.join(&program)).find(|it| it.is_file()) else {
        return Err(format!("is not installed: install it in a directory of PATH, {remedy}"));
    };
    let key = if registry == DOCKER { DOCKER_KEY } else { registry };
    let deadline = options.deadlines.helper;
    let Ok(said) = tokio::time::timeout(deadline, run(&program, key)).await else {
        let waited = seconds(deadline);
        return Err(format!("said nothing for {waited} and was ended: see why, {remedy}"));
    };
    let (succeeded, said) =
        said.map_err(|error| format!("cannot be run: {error}: mend it, {remedy}"))?;
    if !succeeded {
        // The protocol knows this failure by its words alone.
        if String::from_utf8_lossy(&said).contains("credentials not found") {
            return Ok(None);
        }
        let name = format!("docker-credential-{helper}");
        return Err(format!("failed: try `echo {key} | {name} get`, {remedy}"));
    }
    let said: Said = serde_json::from_slice(&said)
        .map_err(|_| format!("did not answer as a credential helper does: replace it, {remedy}"))?;
    let secret = SecretString::from(said.secret);
    Ok(match said.username.as_str() {
        TOKEN_USER => Some(Credentials::Identity(secret)),
        "" => None,
        _ => Some(Credentials::Password { username: said.username, password: secret }),
    })
}

/// For people.
pub(super) fn seconds(time: Duration) -> String {
    if time.subsec_millis() == 0 {
        format!("{} s", time.as_secs())
    } else {
        format!("{} ms", time.as_millis())
    }
}

/// Runs a helper to its end; when this is dropped, it and what it has started are ended.
async fn run(program: &Path, key: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // May have what must not be told.
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = Group::of(child.id());
    if let Some(mut stdin) = child.stdin.take() {
        // One that fails at once does not read it.
        drop(stdin.write_all(key.as_bytes()).await);
    }
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(LIMIT).read_to_end(&mut said).await?;
    }
    let status = child.wait().await?;
    // It is waited for, and its number may be somebody else's from now on.
    group.over();
    Ok((status.success(), said))
}
