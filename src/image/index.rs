//! What an archive holds: images by name and digest, and where their blobs are in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Error, ErrorKind, Read as _, Result};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::source::{GZIP, Source, ZSTD, refused, truncated};
use super::tar::{Kind, Walker, normal};
use crate::content::{
    self, Descriptor, Digest, INDEX_DEPTH, JSON_LIMIT, Manifest, Target, choose, parse_config,
    parse_target, references,
};
use crate::observed::ImageConfig;
use crate::workload::ImageName;

/// All JSON of an archive together: thousands of manifests and configurations.
const METADATA_LIMIT: u64 = 64 << 20;

/// All names of an archive together, and what its links point at: those of a hundred thousand blobs.
const NAMES_LIMIT: usize = 16 << 20;

/// Images of one archive.
const IMAGE_LIMIT: usize = 200;

/// Links to links; `docker save` makes one.
const LINK_DEPTH: usize = 8;

/// Everything that can be asked of an archive.
#[derive(Debug, Default)]
pub(super) struct Index {
    names: BTreeMap<String, Digest>,
    images: BTreeMap<Digest, Packed>,
    /// What is wrong with single images; the others can be used.
    pub(super) problems: Vec<String>,
}

/// An image in an archive.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    pub(super) target: Descriptor,
    pub(super) config: ImageConfig,
    /// All that this box needs of it, each once.
    pub(super) parts: Vec<Part>,
}

/// A blob of an image.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) place: Place,
}

#[derive(Debug, Clone)]
pub(super) enum Place {
    Archive {
        offset: u64,
    },
    /// It is not in the archive as such.
    Memory(Arc<[u8]>),
}

impl Index {
    pub(super) fn read(file: &File) -> Result<Self> {
        let contents = Contents::read(&mut Source::open(file.try_clone()?)?)?;
        let mut index = Self::default();
        let oci = contents.json("index.json");
        let docker = contents.json("manifest.json");
        if oci.is_none() && docker.is_none() {
            return Err(refused(
                "has neither index.json nor manifest.json: it is no image archive",
            ));
        }
        if let Some(json) = oci {
            index.add_layout(&contents, json)?;
        }
        // Newer Dockers write both. What the first one has is not taken again.
        if let Some(json) = docker {
            index.add_docker(&contents, json, file)?;
        }
        Ok(index)
    }

    /// The image of that name, or of the digest in it.
    pub(super) fn find(&self, name: &str) -> Option<&Packed> {
        match name.split_once('@') {
            Some((_, digest)) => self.by_digest(digest),
            None => self.images.get(self.names.get(name)?),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    pub(super) fn by_digest(&self, digest: &str) -> Option<&Packed> {
        self.images.get(&digest.parse().ok()?)
    }

    fn add_layout(&mut self, contents: &Contents, json: &[u8]) -> Result<()> {
        let Ok(Target::Index(entries)) = parse_target(json) else {
            return Err(refused("index.json is not an image index"));
        };
        for entry in entries.into_iter().take(IMAGE_LIMIT) {
            let annotation = |key| entry.annotations.as_ref().and_then(|it| it.get(key));
            let name = annotation("io.containerd.image.name")
                .or_else(|| annotation("org.opencontainers.image.ref.name"));
            let names: Vec<String> = name.into_iter().cloned().collect();
            match contents.follow(&entry) {
                Ok(packed) => self.add(packed, &names),
                Err(why) => {
                    self.problems.push(format!("image {}: {why}", label(&names, &entry.digest)));
                }
            }
        }
        Ok(())
    }

    fn add_docker(&mut self, contents: &Contents, json: &[u8], file: &File) -> Result<()> {
        let images: Vec<Saved> = serde_json::from_slice(json).map_err(|error| {
            Error::new(ErrorKind::InvalidData, format!("manifest.json is not understood: {error}"))
        })?;
        let has_layout = !self.images.is_empty();
        let new = |saved: Saved| {
            let mut names = saved.repo_tags.clone().unwrap_or_default();
            names.retain(|name| full(name).is_none_or(|full| !self.names.contains_key(&full)));
            (!names.is_empty() || !has_layout).then_some((saved, names))
        };
        let images: Vec<_> = images.into_iter().take(IMAGE_LIMIT).filter_map(new).collect();
        let compressed = contents.compressed(images.iter().map(|it| &it.0), file)?;
        for (saved, names) in images {
            match contents.assemble(&saved, &compressed)? {
                Ok(packed) => self.add(packed, &names),
                Err(why) => {
                    self.problems.push(format!("image `{}`: {why}", saved.config.escape_debug()));
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, packed: Packed, names: &[String]) {
        for name in names {
            match full(name) {
                Some(full) => {
                    self.names.entry(full).or_insert_with(|| packed.target.digest.clone());
                }
                None => {
                    self.problems.push(format!("`{}` is not an image name", name.escape_debug()));
                }
            }
        }
        self.images.entry(packed.target.digest.clone()).or_insert(packed);
    }
}

fn full(name: &str) -> Option<String> {
    name.parse::<ImageName>().ok().map(|it| it.full())
}

fn label(names: &[String], digest: &Digest) -> String {
    match names.first() {
        Some(name) => format!("`{}`", name.escape_debug()),
        None => format!("`{digest}`"),
    }
}

/// An image as `docker save` lists it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// The manifest that such an image never had.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Made<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: &'a Descriptor,
    layers: &'a [Descriptor],
}

/// The entries of an archive, with the small ones' content.
struct Contents {
    files: BTreeMap<String, Stored>,
    links: BTreeMap<String, String>,
}

struct Stored {
    offset: u64,
    size: u64,
    /// The media type of a layer with this content; `None`: it is not compressed, as far as its beginning tells.
    compressed: Option<&'static str>,
    json: Option<Vec<u8>>,
}

impl Contents {
    fn read(source: &mut Source) -> Result<Self> {
        let mut contents = Self { files: BTreeMap::new(), links: BTreeMap::new() };
        let mut walker = Walker::new(source);
        let mut room = METADATA_LIMIT;
        let mut names = NAMES_LIMIT;
        while let Some(entry) = walker.next()? {
            let target = match &entry.kind {
                Kind::Link(target) => target.len(),
                Kind::File { .. } => 0,
            };
            names = names
                .checked_sub(entry.name.len() + target)
                .ok_or_else(|| refused("has names of impossible length"))?;
            match entry.kind {
                Kind::Link(target) => drop(contents.links.insert(entry.name, target)),
                Kind::File { offset, size } => {
                    let source = walker.content();
                    let start = read(source, size.min(4))?;
                    // Everything that has to be understood is JSON; where it stands in the archive is not known.
                    let is_json = size <= JSON_LIMIT && matches!(start.first(), Some(b'{' | b'['));
                    let json = if is_json {
                        room = room
                            .checked_sub(size)
                            .ok_or_else(|| refused("has too many manifests"))?;
                        let rest = read(source, size.saturating_sub(4))?;
                        Some([start.as_slice(), &rest].concat())
                    } else {
                        None
                    };
                    let compressed = match start.as_slice() {
                        start if start.starts_with(&GZIP) => Some(content::LAYER_GZIP),
                        start if start.starts_with(&ZSTD) => Some(content::LAYER_ZSTD),
                        _ => None,
                    };
                    contents.files.insert(entry.name, Stored { offset, size, compressed, json });
                }
            }
        }
        Ok(contents)
    }

    fn stored(&self, name: &str) -> Option<&Stored> {
        let mut name = name;
        for _ in 0..LINK_DEPTH {
            if let Some(stored) = self.files.get(name) {
                return Some(stored);
            }
            name = self.links.get(name)?;
        }
        None
    }

    /// A file by its path in a document.
    fn path(&self, path: &str) -> Option<&Stored> {
        self.stored(&normal("", path.as_bytes())?)
    }

    /// The digests of compressed layers, by their offset. Has to read them whole, all in one pass; only other tools
    /// than Docker write such.
    fn compressed<'a>(
        &self,
        images: impl Iterator<Item = &'a Saved>,
        file: &File,
    ) -> Result<BTreeMap<u64, Digest>> {
        let layers = images.flat_map(|it| &it.layers).filter_map(|it| self.path(it));
        let layers = layers.filter(|it| it.compressed.is_some());
        let layers: BTreeMap<u64, u64> = layers.map(|it| (it.offset, it.size)).collect();
        let mut digests = BTreeMap::new();
        if layers.is_empty() {
            return Ok(digests);
        }
        let mut source = Source::open(file.try_clone()?)?;
        for (offset, size) in layers {
            source.skip_to(offset)?;
            digests.insert(offset, digest(&mut source, size)?);
        }
        Ok(digests)
    }

    fn json(&self, name: &str) -> Option<&[u8]> {
        self.stored(name)?.json.as_deref()
    }

    fn blob(&self, descriptor: &Descriptor) -> std::result::Result<&Stored, String> {
        let digest = &descriptor.digest;
        let name = format!("blobs/sha256/{}", digest.hex());
        let stored = self.stored(&name).ok_or_else(|| format!("blob `{digest}` is missing"))?;
        if stored.size == descriptor.size {
            Ok(stored)
        } else {
            Err(format!("blob `{digest}` has {} bytes, not {}", stored.size, descriptor.size))
        }
    }

    /// A blob that has to be understood, with its content checked.
    fn document(&self, descriptor: &Descriptor) -> std::result::Result<(&Stored, &[u8]), String> {
        let stored = self.blob(descriptor)?;
        let digest = &descriptor.digest;
        let json =
            stored.json.as_deref().ok_or_else(|| format!("blob `{digest}` is no document"))?;
        if Digest::of(json) == *digest {
            Ok((stored, json))
        } else {
            Err(format!("blob `{digest}` is damaged"))
        }
    }

    /// Collects the image that a descriptor of `index.json` stands for.
    fn follow(&self, entry: &Descriptor) -> std::result::Result<Packed, String> {
        let mut parts = Vec::new();
        let mut next = entry.clone();
        let mut media_type = entry.media_type.clone();
        for depth in 0..INDEX_DEPTH {
            let (stored, json) = self.document(&next)?;
            let target = parse_target(json).map_err(|error| error.to_string())?;
            if depth == 0 && media_type.is_empty() {
                media_type = match target {
                    Target::Manifest(_) => content::MANIFEST.to_owned(),
                    Target::Index(_) => content::INDEX.to_owned(),
                };
            }
            parts.push(part(&next, references(&target), stored.offset));
            match target {
                Target::Index(entries) => {
                    let here = content::architecture();
                    let chosen = choose(&entries, here);
                    next = chosen
                        .ok_or_else(|| format!("there is none for linux/{here} in it"))?
                        .clone();
                }
                Target::Manifest(Manifest { config, layers }) => {
                    let (stored, json) = self.document(&config)?;
                    parts.push(part(&config, BTreeMap::new(), stored.offset));
                    let config = parse_config(json).map_err(|error| error.to_string())?.config;
                    if config.diff_ids.len() != layers.len() {
                        return Err("its manifest and its configuration disagree about its layers"
                            .to_owned());
                    }
                    for layer in &layers {
                        parts.push(part(layer, BTreeMap::new(), self.blob(layer)?.offset));
                    }
                    let target = Descriptor {
                        media_type,
                        ..Descriptor::new("", entry.digest.clone(), entry.size)
                    };
                    return Ok(Packed { target, config, parts: once(parts) });
                }
            }
        }
        Err("its indexes are nested too deeply".to_owned())
    }

    /// Makes an image of what `docker save` wrote before it wrote manifests. The same archive gives the same digest.
    fn assemble(
        &self,
        saved: &Saved,
        compressed: &BTreeMap<u64, Digest>,
    ) -> Result<std::result::Result<Packed, String>> {
        let find = |path: &str| {
            self.path(path).ok_or_else(|| format!("`{}` is missing", path.escape_debug()))
        };
        let config = find(&saved.config).and_then(|stored| {
            let json = stored.json.as_deref().ok_or("its configuration is no document")?;
            let config = parse_config(json).map_err(|error| error.to_string())?.config;
            if config.diff_ids.len() == saved.layers.len() {
                Ok((
                    stored,
                    Descriptor::new(content::CONFIG, Digest::of(json), stored.size),
                    config,
                ))
            } else {
                Err("its manifest and its configuration disagree about its layers".to_owned())
            }
        });
        let (stored, descriptor, config) = match config {
            Ok(found) => found,
            Err(why) => return Ok(Err(why)),
        };
        let mut parts = vec![part(&descriptor, BTreeMap::new(), stored.offset)];
        let mut layers = Vec::new();
        for (path, diff_id) in saved.layers.iter().zip(&config.diff_ids) {
            let stored = match find(path) {
                Ok(stored) => stored,
                Err(why) => return Ok(Err(why)),
            };
            let layer = match stored.compressed.zip(compressed.get(&stored.offset)) {
                Some((media_type, digest)) => {
                    Descriptor::new(media_type, digest.clone(), stored.size)
                }
                // An uncompressed layer is what its configuration calls it; who stores it finds out if not.
                None => {
                    let diff_id = diff_id.parse().expect("a configuration holds digests only");
                    Descriptor::new(content::LAYER, diff_id, stored.size)
                }
            };
            parts.push(part(&layer, BTreeMap::new(), stored.offset));
            layers.push(layer);
        }
        let manifest = Manifest { config: descriptor, layers };
        let Manifest { config: made_of, layers } = &manifest;
        let json = serde_json::to_vec(&Made {
            schema_version: 2,
            media_type: content::MANIFEST,
            config: made_of,
            layers,
        })?;
        let size = u64::try_from(json.len()).unwrap_or(u64::MAX);
        let target = Descriptor::new(content::MANIFEST, Digest::of(&json), size);
        let labels = references(&Target::Manifest(manifest));
        parts.push(Part {
            digest: target.digest.clone(),
            size,
            labels,
            place: Place::Memory(json.into()),
        });
        Ok(Ok(Packed { target, config, parts: once(parts) }))
    }
}

fn part(descriptor: &Descriptor, labels: BTreeMap<String, String>, offset: u64) -> Part {
    Part {
        digest: descriptor.digest.clone(),
        size: descriptor.size,
        labels,
        place: Place::Archive { offset },
    }
}

/// Empty layers come many times in one image.
fn once(mut parts: Vec<Part>) -> Vec<Part> {
    let mut seen = BTreeSet::new();
    parts.retain(|part| seen.insert(part.digest.clone()));
    parts
}

fn read(source: &mut Source, size: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = source.take(size).read_to_end(&mut bytes)?;
    if u64::try_from(length).ok() == Some(size) { Ok(bytes) } else { Err(truncated()) }
}

fn digest(source: &mut Source, size: u64) -> Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut left = size;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(buffer.len()).min(buffer.len());
        match source.read(&mut buffer[..length])? {
            0 => return Err(truncated()),
            n => {
                hasher.update(&buffer[..n]);
                left -= u64::try_from(n).unwrap_or(left);
            }
        }
    }
    Ok(Digest::finish(hasher))
}
