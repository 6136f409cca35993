//! An image archive with busybox, made from the static one of this machine.

use std::sync::OnceLock;

use evenkeel::content::{self, Digest};

/// Its name in full.
pub(crate) const IMAGE: &str = "docker.io/library/busybox:latest";

/// An OCI layout with one image and one layer. The same bytes each time.
pub(crate) fn archive() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let layer = layer();
        layout(&layer, &config(&layer))
    })
}

/// The same name, but the configuration is of another layer: everything is as its digest says, and cannot be unpacked.
pub(crate) fn contradictory() -> Vec<u8> {
    layout(&layer(), &config(b"another"))
}

fn layout(layer: &[u8], config: &[u8]) -> Vec<u8> {
    let manifest = manifest(config, layer);
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":{},"annotations":{{"io.containerd.image.name":"{IMAGE}"}}}}]}}"#,
        content::MANIFEST,
        Digest::of(&manifest),
        manifest.len()
    );
    let mut archive = Tar::default();
    archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    archive.file("index.json", 0o644, index.as_bytes());
    for blob in [&*manifest, config, layer] {
        archive.file(&format!("blobs/sha256/{}", Digest::of(blob).hex()), 0o644, blob);
    }
    archive.finish()
}

/// What a layer is compressed with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// The same image as `docker save` writes it, with its layer compressed or not.
pub(crate) fn saved(name: &str, packing: Packing) -> Vec<u8> {
    let layer = layer();
    let manifest =
        format!(r#"[{{"Config":"config.json","RepoTags":["{name}"],"Layers":["x/layer.tar"]}}]"#);
    let mut archive = Tar::default();
    archive.file("manifest.json", 0o644, manifest.as_bytes());
    archive.file("config.json", 0o644, &config(&layer));
    let layer = match packing {
        Packing::Plain => layer,
        Packing::Gzip => gzip(&layer),
        Packing::Zstd => zstd::stream::encode_all(&*layer, 1).unwrap(),
    };
    archive.file("x/layer.tar", 0o644, &layer);
    archive.finish()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// The image's only layer, uncompressed.
pub(crate) fn layer() -> Vec<u8> {
    let busybox =
        ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok());
    let busybox = busybox.expect("there is no busybox; install busybox-static");
    let list = std::process::Command::new("busybox").arg("--list").output().unwrap();
    let applets = String::from_utf8(list.stdout).unwrap();
    let mut layer = Tar::default();
    for (directory, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o755),
        ("sys", 0o755),
        ("tmp", 0o1777),
    ] {
        layer.directory(directory, mode);
    }
    layer.file("bin/busybox", 0o755, &busybox);
    layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n");
    for applet in applets.lines().filter(|it| *it != "busybox") {
        layer.link(&format!("bin/{applet}"), "busybox");
    }
    layer.finish()
}

/// The configuration of an image of that one layer.
pub(crate) fn config(layer: &[u8]) -> Vec<u8> {
    format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":["sh"]}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        content::architecture(),
        Digest::of(layer)
    )
    .into_bytes()
}

fn manifest(config: &[u8], layer: &[u8]) -> Vec<u8> {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{}","size":{}}},"layers":[{{"mediaType":"{}","digest":"{}","size":{}}}]}}"#,
        content::MANIFEST,
        content::CONFIG,
        Digest::of(config),
        config.len(),
        content::LAYER,
        Digest::of(layer),
        layer.len()
    )
    .into_bytes()
}

/// A tar archive without times and owners.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Default for Tar {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Tar {
    fn directory(&mut self, path: &str, mode: u32) {
        self.append(tar::EntryType::Directory, path, mode, &[]);
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.append(tar::EntryType::Regular, path, mode, content);
    }

    fn link(&mut self, path: &str, to: &str) {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, to).unwrap();
    }

    fn append(&mut self, kind: tar::EntryType, path: &str, mode: u32, content: &[u8]) {
        let mut header = header(kind, mode, u64::try_from(content.len()).unwrap());
        self.0.append_data(&mut header, path, content).unwrap();
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
