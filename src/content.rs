//! What images are made of: digests, descriptors, manifests, indexes and configurations, and which of them this box
//! needs.
//!
//! Pure: takes bytes and gives values. It fetches, stores and unpacks nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};

use crate::observed::{Came, ImageConfig};

/// Largest manifest, index or configuration that is read; registries refuse manifests over 4 MiB.
pub const JSON_LIMIT: u64 = 4 << 20;

/// Most layers of an image; overlayfs takes 500 at most, and Docker 127.
pub const LAYER_LIMIT: usize = 500;

/// Most indexes in indexes: two are unusual.
pub const INDEX_DEPTH: usize = 4;

/// Most entries of an index that are looked at; the largest published ones have a few dozen.
const INDEX_LIMIT: usize = 1000;

/// An OCI manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// An uncompressed layer.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// A layer compressed with gzip.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// A layer compressed with zstd.
pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A SHA-256 digest, `sha256:` and 64 lower-case hexadecimal digits.
///
/// Invariant: exactly that, so it is also safe as a part of a path or of an identifier.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Digest(String);

/// Bytes as lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    /// The digest of everything that a hasher was fed with.
    pub fn finish(hasher: Sha256) -> Self {
        Self(format!("sha256:{}", hex(&hasher.finalize())))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after `sha256:`.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl FromStr for Digest {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let inside = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        match text.strip_prefix("sha256:") {
            Some(hex) if hex.len() == 64 && hex.bytes().all(inside) => Ok(Self(text.to_owned())),
            _ => Err(Unreadable(format!("`{}` is not a sha256 digest", text.escape_debug()))),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Content that cannot be understood; `Display` says what and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

/// A reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// A descriptor with nothing but the necessary.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, platform: None, annotations: None }
    }
}

/// What an entry of an index is made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// One image: a configuration and layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// What an image's name points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

/// Reads a manifest or an index; the content says which of them it is.
pub fn parse_target(bytes: &[u8]) -> Result<Target, Unreadable> {
    #[derive(Deserialize)]
    struct Any {
        config: Option<Descriptor>,
        layers: Option<Vec<Descriptor>>,
        manifests: Option<Vec<Descriptor>>,
    }
    let any: Any = parse(bytes, "manifest")?;
    match (any.config, any.manifests) {
        (Some(config), None) => {
            let layers = any.layers.unwrap_or_default();
            if layers.len() > LAYER_LIMIT {
                return Err(Unreadable(format!(
                    "{} layers; at most {LAYER_LIMIT} are possible",
                    layers.len()
                )));
            }
            Ok(Target::Manifest(Manifest { config, layers }))
        }
        (None, Some(manifests)) if manifests.len() <= INDEX_LIMIT => Ok(Target::Index(manifests)),
        (None, Some(manifests)) => {
            Err(Unreadable(format!("an index of {} manifests", manifests.len())))
        }
        _ => Err(Unreadable("neither a manifest nor an index".to_owned())),
    }
}

/// The labels that keep what a manifest or an index refers to from containerd's garbage collection.
pub fn references(target: &Target) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut put = |what: &str, digest: &Digest| {
        labels.insert(format!("containerd.io/gc.ref.content.{what}"), digest.to_string());
    };
    match target {
        Target::Manifest(manifest) => {
            put("config", &manifest.config.digest);
            for (n, layer) in manifest.layers.iter().enumerate() {
                put(&format!("l.{n}"), &layer.digest);
            }
        }
        Target::Index(manifests) => {
            for (n, manifest) in manifests.iter().enumerate() {
                put(&format!("m.{n}"), &manifest.digest);
            }
        }
    }
    labels
}

/// Go's name of the architecture that this program is built for, as images use it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// The entry of an index for Linux on `architecture`. An entry that names no platform is for any.
pub fn choose<'a>(index: &'a [Descriptor], architecture: &str) -> Option<&'a Descriptor> {
    // The newest variant that every box of that architecture with today's Debian runs.
    let best = match architecture {
        "arm" => "v7",
        "arm64" => "v8",
        _ => "",
    };
    let rank = |it: &Descriptor| match &it.platform {
        None => Some(3),
        Some(platform) if platform.os != "linux" || platform.architecture != architecture => None,
        Some(platform) => match platform.variant.as_deref().unwrap_or_default() {
            variant if variant == best => Some(0),
            "" => Some(1),
            variant if variant < best => Some(2),
            _ => None,
        },
    };
    index
        .iter()
        .filter_map(|it| Some((rank(it)?, it)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, it)| it)
}

/// An image's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub architecture: String,
    pub os: String,
    pub config: ImageConfig,
}

/// Reads an image's configuration, OCI's or Docker's.
pub fn parse_config(bytes: &[u8]) -> Result<Config, Unreadable> {
    #[derive(Deserialize)]
    struct Outer {
        #[serde(default)]
        architecture: String,
        #[serde(default)]
        os: String,
        config: Option<Inner>,
        rootfs: Option<Rootfs>,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Inner {
        entrypoint: Option<Vec<String>>,
        cmd: Option<Vec<String>>,
        env: Option<Vec<String>>,
        working_dir: Option<String>,
        user: Option<String>,
        stop_signal: Option<String>,
    }
    #[derive(Deserialize)]
    struct Rootfs {
        diff_ids: Option<Vec<Digest>>,
    }
    let outer: Outer = parse(bytes, "image configuration")?;
    let inner = outer.config.unwrap_or_default();
    let diff_ids = outer.rootfs.and_then(|it| it.diff_ids).unwrap_or_default();
    if diff_ids.len() > LAYER_LIMIT {
        return Err(Unreadable(format!(
            "{} layers; at most {LAYER_LIMIT} are possible",
            diff_ids.len()
        )));
    }
    Ok(Config {
        architecture: outer.architecture,
        os: outer.os,
        config: ImageConfig {
            entrypoint: inner.entrypoint.unwrap_or_default(),
            cmd: inner.cmd.unwrap_or_default(),
            env: inner.env.unwrap_or_default(),
            working_dir: inner.working_dir.unwrap_or_default(),
            user: inner.user.unwrap_or_default(),
            stop_signal: inner.stop_signal.unwrap_or_default(),
            diff_ids: diff_ids.iter().map(ToString::to_string).collect(),
        },
    })
}

/// The names of the snapshots that the layers make, from the lowest; the last is the image's root file system.
pub fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()).0,
        };
        chain.push(id);
    }
    chain
}

/// One blob on its way into the content store.
pub struct Blob<'a> {
    pub digest: String,
    pub size: u64,
    /// Garbage collection labels: what the blob refers to.
    pub labels: BTreeMap<String, String>,
    /// Read once, from its start; reading may block.
    pub content: &'a mut (dyn std::io::Read + Send),
}

/// A blob that comes from elsewhere, piece by piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBlob {
    pub digest: Digest,
    pub size: u64,
    /// Garbage collection labels: what the blob refers to.
    pub labels: BTreeMap<String, String>,
}

/// A layer whose blob is there, to be unpacked on those below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLayer {
    pub blob: Descriptor,
    /// Of what is in it, unpacked.
    pub diff_id: String,
    /// The name of all below it together, if there is any.
    pub parent: Option<String>,
    /// The name of it and all below it together: see [`chain_ids`].
    pub chain_id: String,
}

/// An image's layers from the lowest on; `blobs` and `diff_ids` are of the same length.
pub fn stack(blobs: &[Descriptor], diff_ids: &[String]) -> Vec<NewLayer> {
    let chain = chain_ids(diff_ids);
    let parents = std::iter::once(None).chain(chain.iter().cloned().map(Some));
    let layers = blobs.iter().zip(diff_ids).zip(parents).zip(&chain);
    let layer = |(((blob, diff_id), parent), chain_id): (((&Descriptor, &String), _), &String)| {
        let (diff_id, chain_id) = (diff_id.clone(), chain_id.clone());
        NewLayer { blob: blob.clone(), diff_id, parent, chain_id }
    };
    layers.map(layer).collect()
}

/// An image whose blobs are there, to be recorded and unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImage {
    /// Full name: `docker.io/library/redis:7`.
    pub name: String,
    /// Of the image's target, a manifest or an index.
    pub digest: String,
    pub media_type: String,
    pub size: u64,
    pub config: ImageConfig,
    pub came: Came,
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, Unreadable> {
    serde_json::from_slice(bytes)
        .map_err(|error| Unreadable(format!("the {what} is not understood: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: Option<(&str, &str, &str)>) -> Descriptor {
        let platform = platform.map(|(os, architecture, variant)| Platform {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            variant: (!variant.is_empty()).then(|| variant.to_owned()),
        });
        Descriptor { platform, ..Descriptor::new(MANIFEST, Digest::of(b"x"), 1) }
    }

    #[test]
    fn only_sha256_digests_are_digests() {
        let hex = "a".repeat(64);
        assert!(format!("sha256:{hex}").parse::<Digest>().is_ok());
        for wrong in [
            hex.clone(),
            format!("sha512:{hex}"),
            format!("sha256:{hex}0"),
            "sha256:../../x".to_owned(),
        ] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
        assert_eq!(
            Digest::of(b"").as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn the_entry_for_this_architecture_is_chosen_and_attestations_are_not() {
        let index = [
            entry(Some(("unknown", "unknown", ""))),
            entry(Some(("linux", "arm64", "v8"))),
            entry(Some(("windows", "amd64", ""))),
            entry(Some(("linux", "amd64", ""))),
        ];
        assert_eq!(choose(&index, "amd64"), Some(&index[3]));
        assert_eq!(choose(&index, "arm64"), Some(&index[1]));
        assert_eq!(choose(&index, "s390x"), None);
    }

    #[test]
    fn an_arm_box_gets_the_newest_variant_that_it_runs() {
        let index = ["v5", "v6", "v7", "v8"].map(|it| entry(Some(("linux", "arm", it))));
        assert_eq!(choose(&index, "arm"), Some(&index[2]));
        assert!(choose(&index[3..], "arm").is_none());
        assert!(choose(&index[..1], "arm").is_some());
    }

    #[test]
    fn an_entry_without_a_platform_is_the_last_choice() {
        let index = [entry(None), entry(Some(("linux", "amd64", "")))];
        assert_eq!(choose(&index, "amd64"), Some(&index[1]));
        assert_eq!(choose(&index, "arm64"), Some(&index[0]));
    }

    #[test]
    fn chain_ids_are_those_of_the_image_specification() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|it| Digest::of(it).to_string());
        let chain = chain_ids(&[a.clone(), b.clone(), c.clone()]);
        assert_eq!(chain[0], a);
        assert_eq!(chain[1], Digest::of(format!("{a} {b}").as_bytes()).0);
        assert_eq!(chain[2], Digest::of(format!("{} {c}", chain[1]).as_bytes()).0);
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn a_configuration_with_nulls_is_read() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":null,"Cmd":["sh"],"Env":null},
            "rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = parse_config(text.as_bytes()).unwrap();
        assert_eq!(
            config.config,
            ImageConfig { cmd: vec!["sh".to_owned()], ..ImageConfig::default() }
        );
        assert!(parse_config(br#"{"rootfs":{"diff_ids":["sha256:x"]}}"#).is_err());
    }

    #[test]
    fn a_target_is_a_manifest_or_an_index_and_never_both() {
        let config = format!(r#"{{"digest":"{}","size":1}}"#, Digest::of(b"c"));
        assert!(matches!(
            parse_target(format!(r#"{{"config":{config},"layers":[]}}"#).as_bytes()),
            Ok(Target::Manifest(_))
        ));
        assert!(matches!(
            parse_target(format!(r#"{{"manifests":[{config}]}}"#).as_bytes()),
            Ok(Target::Index(_))
        ));
        assert!(
            parse_target(format!(r#"{{"config":{config},"manifests":[]}}"#).as_bytes()).is_err()
        );
        assert!(parse_target(b"{}").is_err());
        assert!(parse_target(b"[").is_err());
    }
}
