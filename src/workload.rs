//! What a manifest means: names, modes, quantities, and a workload with every built-in default applied.
//!
//! Knows nothing of YAML, of files, or of what runs. The types here are at once what a manifest's `spec` decodes
//! into, what its JSON Schema is generated from, and the canonical form that is stored with an instance, so that
//! the three cannot drift apart.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The only `apiVersion` so far. v1 only gains fields.
pub const API_VERSION: &str = "evenkeel/v1";

/// The only `kind` so far.
pub const KIND: &str = "Container";

/// `evenkeel/recreate: "any text"`: a changed text recreates the instance although its meaning is the same.
pub const RECREATE_ANNOTATION: &str = "evenkeel/recreate";

/// 64 MiB, Docker's and containerd's default size of /dev/shm.
pub const DEFAULT_SHM_SIZE: Bytes = Bytes(64 << 20);

/// What one manifest asks for: its name, the user's own metadata and its spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    pub name: Name,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    pub spec: Spec,
}

/// The `spec` of a manifest. Fields equal to their default are left out when it is written, so a new field of a new
/// release changes no revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(description = "How the container of a workload runs.")]
pub struct Spec {
    /// Image reference: a tag or a digest.
    pub image: ImageName,
    /// When the image is looked for elsewhere than in containerd.
    #[serde(default, skip_serializing_if = "is_default")]
    pub image_pull_policy: ImagePullPolicy,
    /// Whether the container runs, is kept stopped, or is removed although it is named.
    #[serde(default, skip_serializing_if = "is_default")]
    pub state: WantedState,
    /// Replaces the image's entrypoint.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Replaces the image's cmd.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Absolute path; the image's, or `/`, when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<AbsolutePath>,
    /// Added to the image's environment; the last of two entries of one name wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// The container's host name; the workload's name when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Hostname>,
    /// Numeric user and groups; the image's when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// Who shares the IPC namespace and /dev/shm; the controller's default at creation when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ipc_mode: Option<IpcMode>,
    /// Size of /dev/shm for `private` and `shareable`; the controller's default at creation when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<Bytes>,
    /// Which network the container sees.
    #[serde(default, skip_serializing_if = "is_default")]
    pub network: Network,
    /// Bind and tmpfs mounts; mounted in order of depth.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Makes the root file system read-only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only_rootfs: bool,
    /// What happens when the main process ends.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart: Restart,
    /// How the main process is asked to end.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stop: Stop,
    /// Removes file system and log after the last run; with the policies `never` and `on-failure` only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub remove_on_exit: bool,
    /// Where the output goes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub log: Log,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads an optional field that is there: `null` is not another way of leaving it out.
fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Reads a field whose type alone does not say which values it takes.
fn accepted<'de, D, T>(
    deserializer: D,
    what: &str,
    accepts: impl FnOnce(&T) -> bool,
) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    let value = T::deserialize(deserializer)?;
    if accepts(&value) { Ok(value) } else { Err(serde::de::Error::custom(format!("not {what}"))) }
}

/// A value that was refused by one of this module's types; `Display` is a fragment for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// Implements the string face of a newtype: `Display`, serde through `FromStr`, and a schema with a pattern.
macro_rules! text_type {
    ($type:ident, $schema:expr) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

/// A workload's name.
///
/// Invariant: an RFC 1123 label of at most 63 characters: lower-case letters, digits and `-`, which is neither first
/// nor last. A host name and a part of a containerd ID at the same time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Longest [`Name`]; the kernel's limit for a host name is 64.
pub const NAME_LENGTH: usize = 63;

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let inside = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let ok = !text.is_empty()
            && text.len() <= NAME_LENGTH
            && text.bytes().all(inside)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid(format!("`{text}` is not a valid name")))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_type!(
    Name,
    json_schema!({ "type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" })
);

/// Who shares a container's IPC namespace and /dev/shm.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpcMode {
    /// A namespace of its own and no /dev/shm at all.
    None,
    /// A namespace and a /dev/shm of its own that nobody can join.
    Private,
    /// A namespace and a /dev/shm of its own that others can join.
    Shareable,
    /// The host's namespace and /dev/shm.
    Host,
    /// The namespace and /dev/shm of the workload of that name.
    Container(Name),
}

/// The words of [`IpcMode`] that stand alone, for messages and suggestions.
pub const IPC_MODES: [&str; 4] = ["none", "private", "shareable", "host"];

impl IpcMode {
    /// The workload that this mode joins.
    pub fn donor(&self) -> Option<&Name> {
        match self {
            Self::Container(donor) => Some(donor),
            Self::None | Self::Private | Self::Shareable | Self::Host => None,
        }
    }
}

impl FromStr for IpcMode {
    type Err = Invalid;

    /// Compares exactly: no trimming, no other case, and the target of `container:` is a [`Name`].
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "none" => Ok(Self::None),
            "private" => Ok(Self::Private),
            "shareable" => Ok(Self::Shareable),
            "host" => Ok(Self::Host),
            _ => text
                .strip_prefix("container:")
                .and_then(|donor| donor.parse().ok())
                .map(Self::Container)
                .ok_or_else(|| Invalid(format!("`{text}` is not an IPC mode"))),
        }
    }
}

impl fmt::Display for IpcMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::Private => f.pad("private"),
            Self::Shareable => f.pad("shareable"),
            Self::Host => f.pad("host"),
            Self::Container(donor) => f.pad(&format!("container:{donor}")),
        }
    }
}

text_type!(
    IpcMode,
    json_schema!({
        "type": "string",
        "pattern": "^(none|private|shareable|host|container:[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)$"
    })
);

/// A number of bytes, written as whole bytes or with `Ki`, `Mi`, `Gi`.
///
/// Invariant: not zero; a tmpfs of size 0 would be unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

impl Bytes {
    /// `None` for zero.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes == 0 { None } else { Some(Self(bytes)) }
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Bytes {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // As many digits as a signed 64-bit number, which the kernel takes, holds in any case; a pattern can say so.
        let (digits, shift, most) = match text {
            _ if text.ends_with("Ki") => (&text[..text.len() - 2], 10, 15),
            _ if text.ends_with("Mi") => (&text[..text.len() - 2], 20, 12),
            _ if text.ends_with("Gi") => (&text[..text.len() - 2], 30, 9),
            _ => (text, 0, 18),
        };
        // `u64::from_str` accepts a plus sign.
        let plain = digits.len() <= most
            && !digits.starts_with('0')
            && digits.bytes().all(|c| c.is_ascii_digit());
        let number = if plain { digits.parse::<u64>().ok() } else { None };
        number
            .and_then(|n| n.checked_mul(1 << shift))
            .and_then(Self::new)
            .ok_or_else(|| Invalid(format!("`{text}` is not a size")))
    }
}

impl fmt::Display for Bytes {
    /// The shortest exact form: `64Mi`, `1536Ki`, `1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            n if n % (1 << 30) == 0 => format!("{}Gi", n >> 30),
            n if n % (1 << 20) == 0 => format!("{}Mi", n >> 20),
            n if n % (1 << 10) == 0 => format!("{}Ki", n >> 10),
            n => n.to_string(),
        };
        f.pad(&text)
    }
}

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes such as 67108864 or \"64Mi\"")
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Bytes, E> {
                n.to_string().parse().map_err(E::custom)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Bytes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "pattern": "^[1-9]([0-9]{0,17}|[0-9]{0,14}Ki|[0-9]{0,11}Mi|[0-9]{0,8}Gi)$",
            "minimum": 1,
            "maximum": 999_999_999_999_999_999_u64,
        })
    }
}

/// A length of time, written `100ms`, `10s`, `1m30s`, `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

/// The units of a [`Span`], each with its milliseconds and the most digits it takes, so that the longest is some
/// nine years: longer ones are mistakes, sums of them stay far from overflow, and a pattern can say so.
const SPAN_UNITS: [(&str, u64, usize); 4] =
    [("h", 3_600_000, 4), ("m", 60_000, 6), ("s", 1_000, 8), ("ms", 1, 11)];

/// The pattern of a [`Span`], without its ends.
macro_rules! span_pattern {
    () => {
        "([0-9]{1,4}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?([0-9]{1,11}ms)?"
    };
}

impl FromStr for Span {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid(format!("`{text}` is not a duration"));
        let mut rest = text;
        let mut total = Duration::ZERO;
        // Units come from the largest to the smallest, each at most once.
        let mut units = SPAN_UNITS.iter();
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, unit) = rest.split_at(digits);
            let unit = &unit[..unit.bytes().take_while(u8::is_ascii_alphabetic).count()];
            let (_, millis, most) = units.find(|(name, ..)| *name == unit).ok_or_else(invalid)?;
            let number: u64 = number.parse().map_err(|_| invalid())?;
            if digits > *most {
                return Err(invalid());
            }
            total += Duration::from_millis(number * millis);
            rest = &rest[digits + unit.len()..];
        }
        if text.is_empty() { Err(invalid()) } else { Ok(Self(total)) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis();
        let mut text = String::new();
        for (unit, millis, most) in SPAN_UNITS {
            // What is over the digits of a unit goes into the next, so that what is written can be read.
            let number =
                (rest / u128::from(millis)).min(10_u128.pow(u32::try_from(most).unwrap_or(0)) - 1);
            if number > 0 {
                text.extend([&number.to_string(), unit]);
                rest -= number * u128::from(millis);
            }
        }
        f.pad(if text.is_empty() { "0s" } else { &text })
    }
}

text_type!(
    Span,
    json_schema!({ "type": "string", "pattern": concat!("^", span_pattern!(), "$"), "minLength": 2 })
);

/// An image reference as the user wrote it; compared in its full form.
///
/// Invariant: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, as Docker reads it; at most 512 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(String);

impl ImageName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names one image for ever.
    pub fn has_digest(&self) -> bool {
        self.0.contains('@')
    }

    /// The full form: `redis` is `docker.io/library/redis:latest`.
    pub fn full(&self) -> String {
        let (name, digest) = match self.0.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (self.0.as_str(), None),
        };
        let first = name.split('/').next().unwrap_or_default();
        let has_host = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
        let mut full = match (has_host, name.contains('/')) {
            (true, _) => name.to_owned(),
            (false, true) => format!("docker.io/{name}"),
            (false, false) => format!("docker.io/library/{name}"),
        };
        let last = full.rsplit('/').next().unwrap_or_default();
        match digest {
            Some(digest) => full = format!("{full}@{digest}"),
            None if !last.contains(':') => full.push_str(":latest"),
            None => {}
        }
        full
    }
}

impl FromStr for ImageName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
                (Some(host), path)
            }
            _ => (None, name),
        };
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        let valid = text.len() <= 512
            && host.is_none_or(is_image_host)
            && path.split('/').all(is_image_component)
            && tag.is_none_or(is_image_tag)
            && digest.is_none_or(is_image_digest);
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid(format!("`{text}` is not an image reference")))
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_type!(
    ImageName,
    json_schema!({ "type": "string", "pattern": image_pattern(), "maxLength": 512 })
);

fn is_image_host(text: &str) -> bool {
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let label = |part: &str| {
        let inside = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
        !part.is_empty()
            && part.bytes().all(inside)
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.split('.').all(label)
        && port
            .is_none_or(|it| (1..=5).contains(&it.len()) && it.bytes().all(|c| c.is_ascii_digit()))
}

/// Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_image_component(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |it: &str| matches!(it, "" | "." | "_" | "__") || it.bytes().all(|c| c == b'-');
    text.starts_with(plain) && text.ends_with(plain) && text.split(plain).all(separator)
}

fn is_image_tag(text: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    let first = text.bytes().next().is_some_and(word);
    first && text.len() <= 128 && text.bytes().all(|c| word(c) || c == b'.' || c == b'-')
}

fn is_image_digest(text: &str) -> bool {
    let hex = |it: &str| it.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
    match text.split_once(':') {
        Some(("sha256", digits)) => digits.len() == 64 && hex(digits),
        Some(("sha512", digits)) => digits.len() == 128 && hex(digits),
        _ => false,
    }
}

/// What [`ImageName`] accepts. A first part with a dot or a colon is a host, as in [`ImageName::full`].
fn image_pattern() -> String {
    let label = "[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?";
    let host = format!("({label}(\\.{label})+(:[0-9]{{1,5}})?|{label}:[0-9]{{1,5}}|localhost)");
    let dotless = "[a-z0-9]+((_|__|-+)[a-z0-9]+)*";
    let component = "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*";
    let path = format!("({host}/{component}(/{component})*|{dotless}(/{component})+|{component})");
    format!(
        "^{path}(:[A-Za-z0-9_][-.A-Za-z0-9_]{{0,127}})?(@(sha256:[0-9a-f]{{64}}|sha512:[0-9a-f]{{128}}))?$"
    )
}

/// A path inside the container or on the host.
///
/// Invariant: absolute, without `..`, `//`, a trailing slash or a NUL; at most 1023 characters, which in any script
/// are fewer bytes than the kernel's limit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AbsolutePath(String);

impl AbsolutePath {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Number of components; `/` has none.
    pub fn depth(&self) -> usize {
        self.0.split('/').filter(|part| !part.is_empty()).count()
    }
}

impl FromStr for AbsolutePath {
    type Err = Invalid;

    /// Accepts `.`, doubled and trailing slashes and leaves them out, so that one place has one spelling.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parts: Vec<&str> =
            text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if !text.starts_with('/')
            || text.contains('\0')
            || parts.contains(&"..")
            || text.chars().count() > 1023
        {
            return Err(Invalid(format!("`{text}` is not an absolute path without `..`")));
        }
        Ok(Self(format!("/{}", parts.join("/"))))
    }
}

impl fmt::Display for AbsolutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_type!(
    AbsolutePath,
    json_schema!({
        "type": "string",
        "pattern": "^/[^\\x00]*$",
        "not": { "pattern": "(^|/)\\.\\.(/|$)" },
        "maxLength": 1023
    })
);

/// A host name: at most 64 bytes of letters, digits, `-` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hostname(String);

impl Hostname {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Hostname {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let label = |part: &str| {
            !part.is_empty()
                && part.len() <= 63
                && part.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
                && !part.starts_with('-')
                && !part.ends_with('-')
        };
        if text.len() <= 64 && text.split('.').all(label) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid(format!("`{text}` is not a host name")))
        }
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_type!(
    Hostname,
    json_schema!({
        "type": "string",
        "maxLength": 64,
        "pattern": "^[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?(\\.[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?)*$"
    })
);

/// Implements the face of a closed choice of kebab-case words beside its serde derive.
macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $type {
            /// Every word, in the order of the documentation.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

/// When an image is looked for elsewhere than in containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum ImagePullPolicy {
    #[default]
    IfNotPresent,
    Always,
    Never,
}
words!(ImagePullPolicy { IfNotPresent = "if-not-present", Always = "always", Never = "never" });

/// What a manifest wants of its workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum WantedState {
    #[default]
    Running,
    Stopped,
    Absent,
}
words!(WantedState { Running = "running", Stopped = "stopped", Absent = "absent" });

/// One variable of the environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    /// Any text without `=`.
    #[serde(deserialize_with = "variable_name")]
    #[schemars(length(max = 4096), regex(pattern = r"^[^=\x00]+$"))]
    pub name: String,
    /// Taken as it is: `$` and `{{` are text. Empty when absent.
    #[serde(
        default,
        deserialize_with = "variable_value",
        skip_serializing_if = "String::is_empty"
    )]
    #[schemars(regex(pattern = r"^[^\x00]*$"))]
    pub value: String,
}

fn variable_name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let valid =
        |it: &String| !it.is_empty() && !it.contains(['=', '\0']) && it.chars().count() <= 4096;
    accepted(deserializer, "a name of a variable", valid)
}

fn variable_value<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    accepted(deserializer, "a text without NUL", |it: &String| !it.contains('\0'))
}

/// Who the main process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    /// Numeric user ID.
    pub uid: u32,
    /// 0 when absent, as in Docker for a numeric user without an entry.
    #[serde(default, skip_serializing_if = "is_default")]
    pub gid: u32,
    /// Further numeric group IDs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supplemental_groups: Vec<u32>,
}

/// Which network a container sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// `none`, the default, has a loopback interface only; `host` is the host's own network.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: NetworkMode,
}

/// `none` has a loopback interface only; `host` is the host's own network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum NetworkMode {
    #[default]
    None,
    Host,
}
words!(NetworkMode { None = "none", Host = "host" });

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// `bind` shows a path of the host; `tmpfs` is memory.
    #[serde(rename = "type")]
    pub kind: MountKind,
    /// Path on the host; for `bind` only, which needs it.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub source: Option<AbsolutePath>,
    /// Path inside the container.
    pub target: AbsolutePath,
    /// Makes the mount read-only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// For `tmpfs` only; half of the memory when absent, the kernel's default.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// Octal permissions of a tmpfs; 1777 when absent.
    #[serde(default, deserialize_with = "file_mode", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = r"^[0-7]{3,4}$"))]
    pub mode: Option<String>,
    /// Further mount options; later ones win.
    #[serde(default, deserialize_with = "mount_options", skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = r"^[a-z_]+(=[^,\x00]+)?$")))]
    pub options: Vec<String>,
    /// How mounts made below a bind later are passed on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub propagation: Propagation,
    /// Makes a missing source directory of a bind (0755, root).
    #[serde(default, skip_serializing_if = "is_default")]
    pub create: bool,
}

fn file_mode<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let octal =
        |it: &String| (3..=4).contains(&it.len()) && it.bytes().all(|c| (b'0'..=b'7').contains(&c));
    accepted(deserializer, "octal permissions", octal).map(Some)
}

fn mount_options<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    let word = |it: &str| !it.is_empty() && it.bytes().all(|c| c.is_ascii_lowercase() || c == b'_');
    let option = |it: &String| match it.split_once('=') {
        Some((name, value)) => word(name) && !value.is_empty() && !value.contains([',', '\0']),
        None => word(it),
    };
    accepted(deserializer, "mount options", |it: &Vec<String>| it.iter().all(option))
}

/// The kinds of mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum MountKind {
    Bind,
    Tmpfs,
}
words!(MountKind { Bind = "bind", Tmpfs = "tmpfs" });

/// Mount propagation of a bind, recursive as Docker's default is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Propagation {
    #[default]
    Rprivate,
    Rslave,
    Rshared,
}
words!(Propagation { Rprivate = "rprivate", Rslave = "rslave", Rshared = "rshared" });

/// What happens when the main process ends. Absent fields take the configuration's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Restart {
    /// When a workload whose main process ended is started again; `always` when nothing else is configured.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub policy: Option<RestartPolicy>,
    /// With `on-failure` only; no limit when absent.
    #[serde(default, deserialize_with = "max_retries", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_retries: Option<u32>,
    /// Runs a completed workload again, once after each boot.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_boot: bool,
    /// What a joiner does when its donor has another namespace than it joined.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_donor_change: OnDonorChange,
    /// Delays between restarts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub backoff: Backoff,
}

fn max_retries<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    accepted(deserializer, "a number from 1", |it| *it >= 1).map(Some)
}

/// When a workload whose main process ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}
words!(RestartPolicy { Always = "always", OnFailure = "on-failure", Never = "never" });

/// What a joiner does when its donor has another namespace than it joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum OnDonorChange {
    #[default]
    Restart,
    Keep,
}
words!(OnDonorChange { Restart = "restart", Keep = "keep" });

/// Delays between restarts. Absent fields take the configuration's defaults: 100 ms, 2, 60 s, 10 s.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backoff {
    /// The first delay.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub initial: Option<Span>,
    /// Each delay is this many times the last one.
    #[serde(default, deserialize_with = "factor", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub factor: Option<u32>,
    /// The longest delay.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub max: Option<Span>,
    /// A run at least this long starts the delays anew.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub reset_after: Option<Span>,
}

fn factor<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    accepted(deserializer, "a number from 1 to 10", |it| (1..=10).contains(it)).map(Some)
}

/// How the main process is asked to end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stop {
    /// The image's stop signal, or SIGTERM, when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
    /// Time from the signal to SIGKILL; 10 s when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<StopTimeout>,
}

/// Docker's time between the stop signal and SIGKILL.
pub const DEFAULT_STOP_TIMEOUT: StopTimeout = StopTimeout::After(Span(Duration::from_secs(10)));

/// How long the main process may take to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopTimeout {
    After(Span),
    Never,
}

impl StopTimeout {
    /// The one that is over first.
    #[must_use]
    pub fn sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::After(one), Self::After(two)) => Self::After(Span(one.0.min(two.0))),
            (Self::After(one), Self::Never) | (Self::Never, Self::After(one)) => Self::After(one),
            (Self::Never, Self::Never) => Self::Never,
        }
    }
}

impl FromStr for StopTimeout {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text == "never" { Ok(Self::Never) } else { text.parse().map(Self::After) }
    }
}

impl fmt::Display for StopTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(span) => span.fmt(f),
            Self::Never => f.pad("never"),
        }
    }
}

text_type!(
    StopTimeout,
    json_schema!({
        "type": "string",
        "pattern": concat!("^(never|", span_pattern!(), ")$"),
        "minLength": 2
    })
);

/// A signal by its name: `SIGTERM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(u8);

/// Linux's signals 1 to 31, by number minus one.
const SIGNALS: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

impl Signal {
    pub const TERM: Self = Self(15);
    pub const KILL: Self = Self(9);

    pub const fn number(self) -> u8 {
        self.0
    }

    /// An image's stop signal, which may be a number or lack its prefix: `15`, `TERM`, `SIGRTMIN+3`.
    pub fn from_image(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<u8>() {
            return (1..=64).contains(&number).then_some(Self(number));
        }
        text.parse().or_else(|_| format!("SIG{text}").parse()).ok()
    }
}

impl FromStr for Signal {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // Compared as text, because `parse` would take `+07` too.
        let real_time = || match text.strip_prefix("SIGRTMIN")? {
            "" => Some(34),
            more => (1..=30)
                .find(|n| more.strip_prefix('+') == Some(n.to_string().as_str()))
                .map(|n| 34 + n),
        };
        let plain =
            SIGNALS.iter().position(|it| *it == text).and_then(|n| u8::try_from(n + 1).ok());
        plain
            .or_else(real_time)
            .map(Self)
            .ok_or_else(|| Invalid(format!("`{text}` is not a signal")))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.get(usize::from(self.0).wrapping_sub(1)) {
            Some(name) => f.pad(name),
            None if self.0 > 34 => f.pad(&format!("SIGRTMIN+{}", self.0 - 34)),
            None => f.pad("SIGRTMIN"),
        }
    }
}

text_type!(Signal, {
    let mut names: Vec<String> = SIGNALS.iter().map(ToString::to_string).collect();
    names.push("SIGRTMIN".to_owned());
    names.extend((1..=30).map(|n| format!("SIGRTMIN+{n}")));
    json_schema!({ "type": "string", "enum": names })
});

/// Where the output of a container goes. Absent fields take the configuration's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Log {
    /// `files` keeps the output under the state directory; `none` drops it.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub driver: Option<LogDriver>,
    /// Size of one file before it is rotated.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub max_size: Option<Bytes>,
    /// Number of files that are kept, the one being written included.
    #[serde(default, deserialize_with = "max_files", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_files: Option<u32>,
}

fn max_files<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    accepted(deserializer, "a number from 1 to 100", |it| (1..=100).contains(it)).map(Some)
}

/// `files` under the state directory, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum LogDriver {
    #[default]
    Files,
    None,
}
words!(LogDriver { Files = "files", None = "none" });

/// The target that makes a user's own mount take the place of /dev/shm.
pub const DEV_SHM: &str = "/dev/shm";

/// What becomes of /dev/shm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shm {
    /// There is none.
    Absent,
    /// A tmpfs that the runtime mounts inside the container, of that size.
    Runtime(Bytes),
    /// A tmpfs of that size that is mounted on the host and bound in, so that others can join it.
    Published(Bytes),
    /// The host's.
    Host,
    /// The donor's published one.
    Donor,
    /// The user's own mount, and nothing of ours.
    User,
}

/// What a workload's IPC settings come to, once the defaults of its creation are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipc {
    pub mode: IpcMode,
    pub shm: Shm,
}

impl Ipc {
    /// Whether others can join it or what it has joined.
    pub fn is_joinable(&self) -> bool {
        match self.shm {
            Shm::Published(_) | Shm::Donor => true,
            Shm::Absent | Shm::Runtime(_) | Shm::Host | Shm::User => false,
        }
    }
}

impl Spec {
    /// Whether the user has a mount of their own on /dev/shm.
    pub fn has_own_shm(&self) -> bool {
        self.mounts.iter().any(|mount| mount.target.as_str() == DEV_SHM)
    }

    /// Whether a mount of the user's, as one on /dev, takes the place of everything on and below /dev/shm. What is
    /// shared is mounted on top of it; a /dev/shm of the container's own is whatever the user has there.
    fn covers_shm(&self) -> bool {
        self.mounts.iter().any(|mount| Path::new(DEV_SHM).starts_with(mount.target.as_path()))
    }

    /// Decides who owns /dev/shm; the only place that does.
    ///
    /// A user's mount on it takes the place of ours in every mode and makes the workload impossible to join.
    pub fn ipc(&self, defaults: &IpcDefaults) -> Ipc {
        let mode = self.ipc_mode.clone().unwrap_or_else(|| defaults.mode.clone());
        let size = self.shm_size.unwrap_or(defaults.shm_size);
        let shm = match mode {
            _ if self.has_own_shm() => Shm::User,
            IpcMode::None | IpcMode::Private if self.covers_shm() => Shm::User,
            IpcMode::None => Shm::Absent,
            IpcMode::Private => Shm::Runtime(size),
            IpcMode::Shareable => Shm::Published(size),
            IpcMode::Host => Shm::Host,
            IpcMode::Container(_) => Shm::Donor,
        };
        Ipc { mode, shm }
    }
}

/// The IPC mode and size of /dev/shm that a manifest which names none gets when its instance is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpcDefaults {
    /// `Private` or `Shareable`; the others are not supported as a default.
    pub mode: IpcMode,
    pub shm_size: Bytes,
}

impl Default for IpcDefaults {
    fn default() -> Self {
        Self { mode: IpcMode::Private, shm_size: DEFAULT_SHM_SIZE }
    }
}

/// A digest over everything that is baked into an instance: name, recipe and image. 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(String);

impl Revision {
    /// A revision that was recorded earlier.
    pub fn recorded(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part that stands in an instance's ID.
    pub fn short(&self) -> &str {
        self.0.get(..10).unwrap_or(&self.0)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The containerd ID of an instance: `<name>-<10 hex digits of its revision>`.
///
/// Invariant: only letters, digits, `-`, `.` and `_`, at most 76 characters, so it is also a safe file name.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct InstanceId(String);

impl InstanceId {
    /// containerd allows no two separators in a row; the revision covers the name, so nothing is lost.
    pub fn new(name: &Name, revision: &Revision) -> Self {
        Self(format!("{}-{}", Self::stem_of(name), revision.short()))
    }

    /// What the IDs of all instances of a workload start with. Another workload's may start with the same.
    pub fn stem_of(name: &Name) -> String {
        let mut stem = String::new();
        for c in name.as_str().chars() {
            if c != '-' || !stem.ends_with('-') {
                stem.push(c);
            }
        }
        stem
    }

    /// Whether a text is as [`InstanceId::new`] makes them: what is called otherwise is nobody's instance.
    pub fn is_one(text: &str) -> bool {
        text.rsplit_once('-').is_some_and(|(name, revision)| {
            !name.is_empty()
                && revision.len() == 10
                && revision.bytes().all(|c| c.is_ascii_hexdigit())
        })
    }

    /// The ID without the revision.
    pub fn stem(&self) -> &str {
        self.0.rsplit_once('-').map_or(&self.0, |it| it.0)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstanceId {
    type Err = Invalid;

    /// Takes any identifier that containerd would accept and that cannot leave a directory.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let inside = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
        let ok = !text.is_empty()
            && text.len() <= 76
            && text.bytes().all(inside)
            && text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid(format!("`{text}` is not an instance ID")))
        }
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fields of a workload that are baked into its container, in meaning: the `R` fields.
///
/// Two workloads with equal recipes and images make equal containers, whatever their manifests look like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Recipe(serde_json::Map<String, serde_json::Value>);

impl Workload {
    /// The fields that recreate the instance when they change, normalised; a changed order of `env` or `mounts`
    /// changes nothing. IPC mode and size are left out: [`Workload::revision`] says how they are compared.
    pub fn recipe(&self) -> Recipe {
        // Every field is named, so that a new one has to be put on one side or the other.
        let Spec {
            image,
            image_pull_policy: _,
            state: _,
            command,
            args,
            working_dir,
            env,
            hostname,
            user,
            ipc_mode,
            shm_size,
            network,
            mounts,
            read_only_rootfs,
            restart: _,
            stop: _,
            remove_on_exit: _,
            log: _,
        } = &self.spec;
        let env: BTreeMap<&str, &str> =
            env.iter().map(|it| (it.name.as_str(), it.value.as_str())).collect();
        let mut mounts: Vec<&Mount> = mounts.iter().collect();
        mounts.sort_by(|a, b| (a.target.depth(), &a.target).cmp(&(b.target.depth(), &b.target)));
        let mut fields = serde_json::Map::new();
        let mut put = |field: &str, value: serde_json::Value| {
            if !value.is_null() {
                fields.insert(field.to_owned(), value);
            }
        };
        let json = |value: Result<serde_json::Value, serde_json::Error>| {
            value.expect("a spec has only text keys and finite numbers")
        };
        put("image", image.full().into());
        // An empty list says as much as none.
        let words = |it: &Option<Vec<String>>| it.clone().filter(|it| !it.is_empty());
        put("command", json(serde_json::to_value(words(command))));
        put("args", json(serde_json::to_value(words(args))));
        put("workingDir", json(serde_json::to_value(working_dir)));
        if !env.is_empty() {
            put("env", json(serde_json::to_value(env)));
        }
        if hostname.as_ref().is_some_and(|it| it.as_str() != self.name.as_str()) {
            put("hostname", json(serde_json::to_value(hostname)));
        }
        put("user", json(serde_json::to_value(user)));
        put("ipcMode", json(serde_json::to_value(ipc_mode)));
        put("shmSize", json(serde_json::to_value(shm_size)));
        if !is_default(network) {
            put("network", json(serde_json::to_value(network)));
        }
        if !mounts.is_empty() {
            put("mounts", json(serde_json::to_value(mounts)));
        }
        if *read_only_rootfs {
            put("readOnlyRootfs", true.into());
        }
        if let Some(text) = self.annotations.get(RECREATE_ANNOTATION) {
            put("recreate", text.as_str().into());
        }
        Recipe(fields)
    }

    /// The revision that an instance made from this workload and this image gets.
    pub fn revision(&self, image_digest: &str) -> Revision {
        let mut digest = Sha256::new();
        for part in [
            self.name.as_str(),
            image_digest,
            &serde_json::Value::Object(self.recipe().0).to_string(),
        ] {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(part.as_bytes());
        }
        Revision(crate::content::hex(&digest.finalize()))
    }

    /// The fields in which an instance made of `self` under `created_with` differs in meaning from what `wanted`
    /// asks for today under `defaults`, as `field: old → new`; empty when nothing would change.
    ///
    /// A mode or size that the manifest leaves open was decided when the instance was created, so a changed default
    /// is no difference while both leave it open.
    pub fn changes(
        &self,
        created_with: &IpcDefaults,
        wanted: &Self,
        defaults: &IpcDefaults,
    ) -> Vec<String> {
        let mut old = self.recipe().0;
        let mut new = wanted.recipe().0;
        let settle = |old: &mut serde_json::Map<_, _>,
                      new: &mut serde_json::Map<_, _>,
                      field: &str,
                      was: String,
                      now: String| {
            if !old.contains_key(field) && !new.contains_key(field) {
                return;
            }
            old.entry(field).or_insert_with(|| was.into());
            new.entry(field).or_insert_with(|| now.into());
        };
        let before = self.spec.ipc(created_with);
        let after = wanted.spec.ipc(defaults);
        settle(
            &mut old,
            &mut new,
            "ipcMode",
            created_with.mode.to_string(),
            defaults.mode.to_string(),
        );
        match (before.shm, after.shm) {
            // The size matters only where one is mounted.
            (Shm::Runtime(_), Shm::Runtime(_)) | (Shm::Published(_), Shm::Published(_)) => settle(
                &mut old,
                &mut new,
                "shmSize",
                created_with.shm_size.to_string(),
                defaults.shm_size.to_string(),
            ),
            _ => {
                old.remove("shmSize");
                new.remove("shmSize");
            }
        }
        let show = |value: Option<&serde_json::Value>| match value {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => "(none)".to_owned(),
        };
        let fields: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        fields
            .into_iter()
            .filter(|field| old.get(*field) != new.get(*field))
            .map(|field| format!("{field}: {} → {}", show(old.get(field)), show(new.get(field))))
            .collect()
    }
}
