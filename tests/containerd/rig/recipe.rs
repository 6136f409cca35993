//! Images to be pushed to a registry: made here layer by layer, packed and pushed by `skopeo`.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use evenkeel::content::{self, Digest};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::busybox::{self, Packing, Tar};

/// What [`Recipe::layout`] calls its only image.
pub(crate) const REFERENCE: &str = "it";

/// How large the files of a data layer are.
const FILE: u64 = 1 << 20;

/// An image as it is to be in the registry.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    layers: Vec<Layer>,
    packing: Packing,
    is_docker: bool,
    is_among_others: bool,
}

#[derive(Debug, Clone)]
enum Layer {
    Archive(Vec<u8>),
    /// So many bytes that do not get smaller, in files of [`FILE`]; the same ones for the same seed.
    Data {
        seed: u64,
        bytes: u64,
    },
}

impl Recipe {
    /// No layer yet, to be packed with gzip, in OCI's media types, for this machine alone.
    pub(crate) fn empty() -> Self {
        Self {
            layers: Vec::new(),
            packing: Packing::Gzip,
            is_docker: false,
            is_among_others: false,
        }
    }

    /// Busybox in one layer.
    pub(crate) fn busybox() -> Self {
        Self::empty().with_busybox()
    }

    /// Another layer on top, with busybox. What is below it makes it another one for containerd, which unpacks the same
    /// layer on the same ones only once.
    pub(crate) fn with_busybox(mut self) -> Self {
        self.layers.push(Layer::Archive(busybox::layer()));
        self
    }

    /// Another layer on top, of files with their content. A file `.wh.NAME` takes a name of the layers below away, and
    /// `.wh..wh..opq` all of its directory.
    pub(crate) fn with(mut self, files: &[(&str, &str)]) -> Self {
        let mut layer = Tar::default();
        for (path, content) in files {
            layer.file(path, 0o644, content.as_bytes());
        }
        self.layers.push(Layer::Archive(layer.finish()));
        self
    }

    /// More layers on top, each of so many bytes that do not get smaller by packing. Other seeds are other data.
    pub(crate) fn with_data(mut self, layers: u64, bytes: u64, seed: u64) -> Self {
        let layer = |n| Layer::Data { seed: seed * 1000 + n, bytes };
        self.layers.extend((0..layers).map(layer));
        self
    }

    /// How the layers are packed.
    pub(crate) fn packed(self, packing: Packing) -> Self {
        Self { packing, ..self }
    }

    /// In Docker's media types (schema 2).
    pub(crate) fn docker(self) -> Self {
        Self { is_docker: true, ..self }
    }

    /// In an index that begins with an image for another architecture, whose layer is no archive at all.
    pub(crate) fn among_others(self) -> Self {
        Self { is_among_others: true, ..self }
    }

    /// What `skopeo copy` has to be told to push it like that.
    pub(super) fn options(&self) -> Vec<&'static str> {
        let mut options = match self.packing {
            Packing::Plain => vec!["--preserve-digests"],
            Packing::Gzip => vec!["--dest-compress-format", "gzip"],
            Packing::Zstd => vec!["--dest-compress-format", "zstd"],
        };
        if self.is_docker {
            options.extend(["--format", "v2s2"]);
        }
        if self.is_among_others {
            options.push("--all");
        }
        options
    }

    /// Writes an OCI layout, with the layers as they are, into an empty directory.
    pub(super) fn layout(&self, directory: &Path) {
        let layout = Layout(directory);
        std::fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layers: Vec<Value> = self.layers.iter().map(|it| layout.layer(it)).collect();
        let own = content::architecture();
        let mut image = layout.image(own, &layers);
        if self.is_among_others {
            let other = if own == "arm64" { "amd64" } else { "arm64" };
            let garbage = layout.blob(content::LAYER, |file| {
                file.write_all(b"not for this machine").unwrap();
            });
            let entries = [layout.image(other, &[garbage]), image];
            image = layout.json(content::INDEX, &index(&entries));
        }
        image["annotations"] = json!({ "org.opencontainers.image.ref.name": REFERENCE });
        std::fs::write(directory.join("index.json"), index(&[image]).to_string()).unwrap();
    }
}

fn index(entries: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": content::INDEX, "manifests": entries })
}

/// A directory that an OCI layout is written to. What it writes, it returns the descriptor of.
struct Layout<'a>(&'a Path);

impl Layout<'_> {
    fn image(&self, architecture: &str, layers: &[Value]) -> Value {
        let diff_ids: Vec<&Value> = layers.iter().map(|it| &it["digest"]).collect();
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.json(content::CONFIG, &config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": content::MANIFEST,
            "config": config,
            "layers": layers,
        });
        let mut manifest = self.json(content::MANIFEST, &manifest);
        manifest["platform"] = json!({ "architecture": architecture, "os": "linux" });
        manifest
    }

    fn layer(&self, layer: &Layer) -> Value {
        self.blob(content::LAYER, |file| match layer {
            Layer::Archive(archive) => file.write_all(archive).unwrap(),
            Layer::Data { seed, bytes } => {
                let mut archive = tar::Builder::new(file);
                let mut noise = Noise(*seed);
                for n in 0..bytes.div_ceil(FILE) {
                    let size = FILE.min(bytes - n * FILE);
                    let mut header = busybox::header(tar::EntryType::Regular, 0o644, size);
                    let path = format!("data/{seed}/{n}");
                    archive.append_data(&mut header, path, (&mut noise).take(size)).unwrap();
                }
                archive.finish().unwrap();
            }
        })
    }

    fn json(&self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, |file| file.write_all(value.to_string().as_bytes()).unwrap())
    }

    fn blob(&self, media_type: &str, write: impl FnOnce(&mut Hashing)) -> Value {
        let new = self.0.join("new");
        let file = BufWriter::new(File::create(&new).unwrap());
        let mut file = Hashing { file, hasher: Sha256::new(), size: 0 };
        write(&mut file);
        file.file.flush().unwrap();
        let digest = Digest::finish(file.hasher);
        std::fs::rename(new, self.0.join("blobs/sha256").join(digest.hex())).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": file.size })
    }
}

/// A file that knows the digest of what was written.
struct Hashing {
    file: BufWriter<File>,
    hasher: Sha256,
    size: usize,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.size += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Endless bytes that look random (splitmix64).
struct Noise(u64);

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        for piece in buffer.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut it = self.0;
            it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            it ^= it >> 31;
            piece.copy_from_slice(&it.to_le_bytes()[..piece.len()]);
        }
        Ok(buffer.len())
    }
}
