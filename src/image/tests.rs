//! Archives as tools write them, and as nobody should.

use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::content::{self, Digest};

/// Builds a tar archive entry by entry.
#[derive(Clone, Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        self.raw(b'0', name.as_bytes(), "", &octal(content.len()), content)
    }

    fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.raw(kind, name.as_bytes(), target, &octal(0), &[])
    }

    /// An entry with any size field whatever its content is.
    fn raw(mut self, kind: u8, name: &[u8], target: &str, size: &[u8; 12], content: &[u8]) -> Self {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name);
        header[124..136].copy_from_slice(size);
        header[156] = kind;
        header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header[257..263].copy_from_slice(b"ustar\0");
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn octal(size: usize) -> [u8; 12] {
    format!("{size:011o}\0").into_bytes().try_into().unwrap()
}

/// An image of one layer, with all its documents.
struct Made {
    layer: Vec<u8>,
    config: String,
    manifest: String,
}

fn made(text: &str) -> Made {
    let layer = Tar::default().file("hello", text).end();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["{text}"]}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(&layer)
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        descriptor(content::CONFIG, config.as_bytes(), ""),
        descriptor(content::LAYER, &layer, "")
    );
    Made { layer, config, manifest }
}

fn descriptor(media_type: &str, content: &[u8], more: &str) -> String {
    let (digest, size) = (Digest::of(content), content.len());
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}{more}}}"#)
}

fn named(name: &str) -> String {
    format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#)
}

fn blob_path(content: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(content).hex())
}

impl Tar {
    fn blob(self, content: impl AsRef<[u8]>) -> Self {
        let path = blob_path(content.as_ref());
        self.file(&path, content)
    }

    fn blobs(self, image: &Made) -> Self {
        self.blob(&image.manifest).blob(&image.config).blob(&image.layer)
    }

    /// `index.json` with these descriptors.
    fn index(self, descriptors: &[String]) -> Self {
        self.file(
            "index.json",
            format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptors.join(",")),
        )
    }
}

fn layout(image: &Made, name: &str) -> Tar {
    Tar::default()
        .index(&[descriptor(content::MANIFEST, image.manifest.as_bytes(), &named(name))])
        .file("oci-layout", "{}")
        .blobs(image)
}

/// An archive that has one image of that name.
pub(crate) fn archive(name: &str) -> Vec<u8> {
    layout(&made("hello"), name).end()
}

fn saved(image: &Made, name: &str, layer: &str) -> Tar {
    let manifest =
        format!(r#"[{{"Config":"config.json","RepoTags":["{name}"],"Layers":["{layer}"]}}]"#);
    Tar::default().file("config.json", &image.config).file("manifest.json", manifest)
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(content, 1).unwrap()
}

/// A directory of archives.
struct Shelf {
    directory: tempfile::TempDir,
    archives: Archives,
}

fn directory(files: &[(&str, &[u8])]) -> Shelf {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(directory.path().join(name), content).unwrap();
    }
    let archives =
        Archives::new(vec![directory.path().to_owned(), directory.path().join("missing")]);
    // As long as it takes: what these tests are about is what is found.
    let archives = archives.with_patience(Duration::from_mins(1));
    Shelf { directory, archives }
}

impl Shelf {
    fn find(&mut self, name: &str) -> Found {
        self.archives.find(&[name.to_owned()].into())
    }

    /// The image of that name, everything of it read and compared with its digests.
    fn import(&mut self, name: &str) -> (Image, BTreeMap<String, Vec<u8>>) {
        let found = self.find(name);
        let image =
            found.images.get(name).unwrap_or_else(|| panic!("{:?}", found.problems)).clone();
        let mut import = self.archives.import(&image).unwrap();
        assert_eq!(import.image().digest, image.digest);
        let mut blobs = BTreeMap::new();
        let mut labels = Vec::new();
        while let Some(blob) = import.next().unwrap() {
            let mut content = Vec::new();
            blob.content.read_to_end(&mut content).unwrap();
            assert_eq!(Digest::of(&content).as_str(), blob.digest);
            assert_eq!(content.len() as u64, blob.size);
            labels.extend(blob.labels.into_values());
            assert!(blobs.insert(blob.digest, content).is_none(), "each blob comes once");
        }
        assert!(blobs.contains_key(&image.digest));
        // Whatever is kept from garbage collection is there.
        labels.retain(|digest| !blobs.contains_key(digest));
        assert_eq!(labels, Vec::<String>::new());
        (image, blobs)
    }

    fn problem(&mut self, name: &str) -> String {
        let found = self.find(name);
        assert_eq!(found.images.len(), 0);
        let problems: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].clone()
    }
}

const WEB: &str = "docker.io/library/web:1";

#[test]
fn an_image_in_an_oci_layout_is_found_by_its_name_and_by_its_digest() {
    let image = made("web");
    let digest = Digest::of(image.manifest.as_bytes());
    let archive = layout(&image, "web:1").end();
    for content in [archive.clone(), gzip(&archive), zstd(&archive)] {
        let mut archives = directory(&[("a.tar", &content)]);
        let (found, blobs) = archives.import(WEB);
        assert_eq!(found.digest, digest.as_str());
        assert_eq!(found.config.cmd, ["web"]);
        assert_eq!(found.place, ImagePlace::Archive(archives.directory.path().join("a.tar")));
        assert_eq!(blobs.len(), 3);
        archives.import(&format!("example.org/anything@{digest}"));
        assert_eq!(archives.find("docker.io/library/web:2"), Found::default());
        assert_eq!(archives.find(&format!("web@{}", Digest::of(b"other"))), Found::default());
    }
}

#[test]
fn the_full_name_of_an_image_counts_before_its_tag() {
    let image = made("web");
    let annotations = r#","annotations":{"org.opencontainers.image.ref.name":"1","io.containerd.image.name":"docker.io/library/web:1"}"#;
    let index = descriptor(content::MANIFEST, image.manifest.as_bytes(), annotations);
    let archive = Tar::default().index(&[index]).blobs(&image).end();
    directory(&[("a.tar", &archive)]).import(WEB);
}

#[test]
fn an_index_in_an_archive_gives_the_image_for_this_box_and_keeps_its_own_digest() {
    let (ours, other) = (made("ours"), made("other"));
    let platform = |it: &str| format!(r#","platform":{{"os":"linux","architecture":"{it}"}}"#);
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#,
        descriptor(content::MANIFEST, other.manifest.as_bytes(), &platform("vax")),
        descriptor(content::MANIFEST, ours.manifest.as_bytes(), &platform(content::architecture()))
    );
    let archive = Tar::default()
        .index(&[descriptor(content::INDEX, index.as_bytes(), &named("web:1"))])
        .blob(&index)
        .blobs(&ours)
        .end();
    let mut archives = directory(&[("a.tar", &archive)]);
    let found = archives.find(WEB).images.remove(WEB).unwrap();
    assert_eq!(found.digest, Digest::of(index.as_bytes()).as_str());
    assert_eq!(found.config.cmd, ["ours"]);
    let mut import = archives.archives.import(&found).unwrap();
    assert_eq!(import.image().media_type, content::INDEX);
    let mut count = 0;
    while import.next().unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 4);
}

#[test]
fn an_image_for_other_boxes_only_is_a_problem() {
    let image = made("web");
    let platform = r#","platform":{"os":"linux","architecture":"vax"}"#;
    let index = format!(
        r#"{{"manifests":[{}]}}"#,
        descriptor(content::MANIFEST, image.manifest.as_bytes(), platform)
    );
    let archive = Tar::default()
        .index(&[descriptor(content::INDEX, index.as_bytes(), &named("web:1"))])
        .blob(&index)
        .blobs(&image)
        .end();
    let problem = directory(&[("a.tar", &archive)]).problem(WEB);
    assert!(problem.contains("`web:1`") && problem.contains("linux/"), "{problem}");
}

#[test]
fn what_docker_saves_gets_the_same_digest_each_time() {
    let image = made("web");
    let plain = saved(&image, "web:1", "x/layer.tar").file("x/layer.tar", &image.layer).end();
    let linked = saved(&image, "web:1", "./y/layer.tar")
        .link(b'2', "y/layer.tar", "../x/layer.tar")
        .file("x/layer.tar", &image.layer)
        .end();
    let hard = saved(&image, "web:1", "y/layer.tar")
        .file("x/layer.tar", &image.layer)
        .link(b'1', "y/layer.tar", "x/layer.tar")
        .end();
    let mut digests = BTreeSet::new();
    for content in [plain.clone(), linked, hard, gzip(&plain)] {
        let (found, blobs) = directory(&[("a.tar", &content)]).import(WEB);
        assert_eq!(found.config.cmd, ["web"]);
        assert_eq!(blobs.len(), 3);
        digests.insert(found.digest);
    }
    assert_eq!(digests.len(), 1);
}

#[test]
fn compressed_layers_of_a_saved_image_get_their_own_digest() {
    let image = made("web");
    for (layer, media_type) in
        [(gzip(&image.layer), content::LAYER_GZIP), (zstd(&image.layer), content::LAYER_ZSTD)]
    {
        let archive = saved(&image, "web:1", "layer").file("layer", &layer).end();
        for content in [archive.clone(), gzip(&archive), zstd(&archive)] {
            let (found, blobs) = directory(&[("a.tar.gz", &content)]).import(WEB);
            assert!(blobs.contains_key(Digest::of(&layer).as_str()));
            let manifest = String::from_utf8(blobs[&found.digest].clone()).unwrap();
            assert!(manifest.contains(media_type), "{manifest}");
        }
    }
}

#[test]
fn an_archive_may_have_any_of_the_usual_endings() {
    let archive = layout(&made("web"), "web:1").end();
    for ending in ["tar", "tar.gz", "tgz", "tar.zst", "tar.zstd", "tzst"] {
        directory(&[(&format!("a.{ending}"), &zstd(&archive))]).import(WEB);
    }
    for other in [".a.tar", "a.zst", "a.tar.part"] {
        assert_eq!(directory(&[(other, &archive)]).find(WEB), Found::default(), "{other}");
    }
}

#[test]
fn of_an_archive_that_is_both_the_layout_counts() {
    let image = made("web");
    let manifest = format!(
        r#"[{{"Config":"{}","RepoTags":["web:1"],"Layers":["{}"]}}]"#,
        blob_path(image.config.as_bytes()),
        blob_path(&image.layer)
    );
    let archive = layout(&image, "docker.io/library/web:1").file("manifest.json", manifest).end();
    let (found, _) = directory(&[("a.tar", &archive)]).import(WEB);
    assert_eq!(found.digest, Digest::of(image.manifest.as_bytes()).as_str());
}

/// Docker with containerd's store, and containerd itself, write both, with compressed layers.
#[test]
fn layers_that_a_layout_describes_are_not_read_for_their_digests() {
    // Nobody has the time to read that: it is a hole.
    let size = 1_u64 << 40;
    let layer = format!("blobs/sha256/{}", "ab".repeat(32));
    let mut image = made("web");
    image.manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{{"mediaType":"{}","digest":"sha256:{}","size":{size}}}]}}"#,
        descriptor(content::CONFIG, image.config.as_bytes(), ""),
        content::LAYER_GZIP,
        "ab".repeat(32)
    );
    let docker = format!(
        r#"[{{"Config":"{}","RepoTags":["web:1"],"Layers":["{layer}"]}}]"#,
        blob_path(image.config.as_bytes())
    );
    let mut binary = [0; 12];
    binary[0] = 0x80;
    binary[4..].copy_from_slice(&size.to_be_bytes());
    let target = descriptor(content::MANIFEST, image.manifest.as_bytes(), &named("web:1"));
    let begun = Tar::default()
        .index(&[target])
        .blob(&image.manifest)
        .blob(&image.config)
        .file("manifest.json", docker)
        .raw(b'0', layer.as_bytes(), "", &binary, b"\x1f\x8b");
    let mut archives = directory(&[("a.tar", &begun.0)]);
    let path = archives.directory.path().join("a.tar");
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(begun.0.len() as u64 - 512 + size + 1024).unwrap();
    let found = archives.find(WEB);
    assert!(found.images.contains_key(WEB), "{:?}", found.problems);
}

#[test]
fn long_names_of_both_kinds_are_read() {
    let image = made("web");
    let long = format!("{}/layer.tar", "x".repeat(150));
    let gnu = saved(&image, "web:1", &long)
        .raw(b'L', b"././@LongLink", "", &octal(long.len() + 1), format!("{long}\0").as_bytes())
        .file("short", &image.layer)
        .end();
    let record = format!(" path={long}\n");
    let length = (1..9)
        .find(|n| (n + record.len()) == format!("{}{record}", n + record.len()).len())
        .unwrap()
        + record.len();
    let record = format!("{length}{record}");
    let pax = saved(&image, "web:1", &long)
        .raw(b'x', b"PaxHeaders", "", &octal(record.len()), record.as_bytes())
        .file("short", &image.layer)
        .end();
    directory(&[("gnu.tar", &gnu)]).import(WEB);
    directory(&[("pax.tar", &pax)]).import(WEB);
}

#[test]
fn an_archive_is_read_again_only_when_it_changed() {
    let mut archives = directory(&[("a.tar", &layout(&made("web"), "web:1").end())]);
    let index = |archives: &Shelf| {
        let known = archives.archives.known.values().next().unwrap();
        Arc::clone(known.index.as_ref().unwrap().as_ref().unwrap())
    };
    let image = archives.find(WEB).images.remove(WEB).unwrap();
    let first = index(&archives);
    archives.find(WEB);
    assert!(Arc::ptr_eq(&first, &index(&archives)));

    let path = archives.directory.path().join("a.tar");
    std::fs::write(&path, layout(&made("new"), "web:1").end()).unwrap();
    let problem = archives.archives.import(&image).unwrap_err();
    assert!(problem.message.contains("changed"), "{problem}");
    assert_eq!(archives.find(WEB).images[WEB].config.cmd, ["new"]);

    std::fs::remove_file(path).unwrap();
    assert_eq!(archives.find(WEB), Found::default());
    assert!(archives.archives.known.is_empty());
}

#[test]
fn nothing_is_read_while_nothing_is_asked_for() {
    let mut archives = directory(&[("a.tar", b"broken")]);
    assert_eq!(archives.archives.find(&BTreeSet::new()), Found::default());
    assert!(archives.archives.known.is_empty());
}

#[test]
fn of_two_archives_with_one_name_the_first_counts_and_the_other_is_a_problem() {
    let (first, second) = (made("first"), made("second"));
    let mut archives = directory(&[
        ("a.tar", &layout(&first, "web:1").end()),
        ("b.tar", &layout(&second, "web:1").end()),
        ("c.tar", &layout(&first, "web:1").end()),
        (".d.tar", b"being copied"),
        ("e.txt", b"something else"),
    ]);
    let found = archives.find(WEB);
    assert_eq!(found.images[WEB].config.cmd, ["first"]);
    assert_eq!(found.problems.len(), 1, "{:?}", found.problems);
    assert!(found.problems[0].path.ends_with("b.tar"));
}

#[test]
fn a_damaged_image_leaves_the_others_of_its_archive_alone() {
    let (good, bad) = (made("good"), made("bad"));
    let index = [
        descriptor(content::MANIFEST, bad.manifest.as_bytes(), &named("bad:1")),
        descriptor(content::MANIFEST, good.manifest.as_bytes(), &named("web:1")),
    ];
    let damaged = bad.config.replace("bad", "BAD");
    let broken = [
        Tar::default().index(&index).blobs(&good).blob(&bad.manifest).blob(&bad.config),
        Tar::default().index(&index).blobs(&good).blob(&bad.manifest).blob(&bad.layer),
        Tar::default().index(&index).blobs(&good).blob(&bad.layer).blob(&bad.config),
        Tar::default()
            .index(&index)
            .blobs(&good)
            .blob(&bad.manifest)
            .blob(&bad.layer)
            .file(&blob_path(bad.config.as_bytes()), &damaged),
        Tar::default()
            .index(&index)
            .blobs(&good)
            .blob(&bad.manifest)
            .blob(&bad.config)
            .file(&blob_path(&bad.layer), &bad.layer[1..]),
    ];
    for archive in broken {
        let mut archives = directory(&[("a.tar", &archive.end())]);
        archives.import(WEB);
        let found = archives.find("docker.io/library/bad:1");
        assert!(found.images.is_empty());
        assert_eq!(found.problems.len(), 1);
        assert!(
            found.problems[0].message.starts_with("image `bad:1`: blob `sha256:"),
            "{:?}",
            found.problems
        );
    }
}

#[test]
fn hostile_archives_are_problems() {
    let image = made("web");
    let digest =
        |it: &str| Tar::default().index(&[format!(r#"{{"digest":"{it}","size":1}}"#)]).end();
    let binary = |bytes: [u8; 8]| {
        let mut size = [0; 12];
        size[0] = 0x80;
        size[4..].copy_from_slice(&bytes);
        size
    };
    let first = layout(&image, "web:1");
    let deep = "[".repeat(20_000);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "no image archive"),
        ("only zeros", vec![0; 2048], "no image archive"),
        ("text", b"hello".to_vec(), "ends too early"),
        ("a page of text", vec![b'x'; 1024], "wrong number"),
        ("half a zstd", zstd(b"hello")[..8].to_vec(), "ends too early"),
        ("half a gzip", gzip(b"hello")[..8].to_vec(), "ends too early"),
        ("xz", b"\xfd7zXZ\0".to_vec(), "use zstd, gzip or nothing"),
        ("broken gzip", b"\x1f\x8b\x08garbage, and more of it".to_vec(), ""),
        ("no documents", Tar::default().file("a", "b").end(), "no image archive"),
        ("an index that is none", Tar::default().file("index.json", "{}").end(), "index.json"),
        (
            "a manifest.json that is none",
            Tar::default().file("manifest.json", "{}").end(),
            "manifest.json",
        ),
        ("deep json", Tar::default().file("manifest.json", deep).end(), "manifest.json"),
        ("a digest that leaves", digest("sha256:../../../etc/passwd"), "index.json"),
        ("another algorithm", digest("md5:x"), "index.json"),
        (
            "a size beyond the end",
            first.clone().raw(b'0', b"a", "", b"77777777777\0", b"x").end(),
            "ends too early",
        ),
        (
            "a size beyond all",
            first.clone().raw(b'0', b"a", "", &binary([0xff; 8]), b"x").end(),
            "impossible size",
        ),
        (
            "a size over 64 bits",
            first.clone().raw(b'0', b"a", "", &[0xff; 12], b"x").end(),
            "wrong number",
        ),
        (
            "a long name",
            first.clone().raw(b'L', b"a", "", b"77777777777\0", b"x").end(),
            "impossible size",
        ),
        (
            "a long header",
            first.clone().raw(b'x', b"a", "", b"77777777777\0", b"x").end(),
            "impossible size",
        ),
        (
            "a header of nonsense",
            first.clone().raw(b'x', b"a", "", &octal(9), b"99 path=x").end(),
            "extended header",
        ),
        (
            "a size that is no number",
            first.clone().raw(b'0', b"a", "", b"xyz\0\0\0\0\0\0\0\0\0", b"").end(),
            "wrong number",
        ),
    ];
    for (what, content, expected) in cases {
        let problem = directory(&[("a.tar", &content)]).problem(WEB);
        assert!(problem.contains("a.tar`: ") && problem.contains(expected), "{what}: {problem}");
    }
}

/// A compressed one is small, and each name alone is possible.
#[test]
fn names_do_not_fill_the_memory() {
    let mut archive = layout(&made("web"), "web:1");
    for n in 0..400 {
        let name = format!("{n}{}\0", "x".repeat(60_000));
        archive = archive
            .raw(b'L', b"././@LongLink", "", &octal(name.len()), name.as_bytes())
            .file("short", "");
    }
    let archive = gzip(&archive.end());
    let problem = directory(&[("a.tar.gz", &archive)]).problem(WEB);
    assert!(problem.contains("names"), "{problem}");
}

#[test]
fn entries_outside_of_the_archive_are_not_seen() {
    let image = made("web");
    let archive = saved(&image, "web:1", "layer.tar")
        .file("../layer.tar", &image.layer)
        .file("/layer.tar", &image.layer)
        .file("a/../../layer.tar", &image.layer)
        .link(b'2', "layer.tar", "../layer.tar")
        .end();
    assert!(directory(&[("a.tar", &archive)]).problem(WEB).contains("`layer.tar` is missing"));
    // A detour that stays inside is a name like any other.
    let archive = saved(&image, "web:1", "layer.tar").file("./a/../layer.tar", &image.layer).end();
    directory(&[("a.tar", &archive)]).import(WEB);
}

#[test]
fn links_in_a_circle_lead_nowhere() {
    let image = made("web");
    let archive = saved(&image, "web:1", "a").link(b'2', "a", "b").link(b'2', "b", "a").end();
    assert!(directory(&[("a.tar", &archive)]).problem(WEB).contains("`a` is missing"));
}

#[test]
fn what_is_no_file_is_a_problem_and_does_not_block() {
    let mut archives = directory(&[]);
    let path = archives.directory.path().join("a.tar");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    assert!(archives.problem(WEB).contains("not a regular file"));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(archives.problem(WEB).contains("not a regular file"));
    std::fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    assert_eq!(archives.find(WEB), Found::default());
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("a.tar", &path).unwrap();
    archives.problem(WEB);
}

#[test]
fn no_beginning_of_an_archive_is_an_image() {
    let archive =
        saved(&made("web"), "web:1", "layer.tar").file("layer.tar", &made("web").layer).end();
    let end = archive.len() - 1024;
    for length in (0..end).step_by(97) {
        let found = directory(&[("a.tar", &archive[..length])]).find(WEB);
        assert!(found.images.is_empty(), "{length} of {end}");
        assert_eq!(found.problems.len(), 1, "{length} of {end}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the bytes, there is an answer; and what is handed out is what it says, or an error.
    #[test]
    fn damage_is_found_or_handed_on_to_be_found(
        at in proptest::collection::vec((0_usize..6000, any::<u8>()), 1..8),
        compressed in any::<bool>(),
    ) {
        let mut archive = layout(&made("web"), "web:1").end();
        for (at, byte) in at {
            let length = archive.len();
            archive[at % length] = byte;
        }
        let archive = if compressed { gzip(&archive) } else { archive };
        let mut archives = directory(&[("a.tar", &archive)]);
        let found = archives.find(WEB);
        if let Some(image) = found.images.get(WEB) {
            let mut import = archives.archives.import(image).unwrap();
            while let Ok(Some(blob)) = import.next() {
                let mut content = Vec::new();
                blob.content.read_to_end(&mut content).unwrap();
                prop_assert!(content.len() as u64 <= blob.size);
            }
        }
    }
}

#[tokio::test]
async fn an_archive_that_takes_long_is_told_of_and_found_later() {
    // So much that it cannot be read before it is looked whether it was.
    let archive = layout(&made("web"), "web:1").file("padding", vec![0; 32 << 20]).end();
    let mut shelf = directory(&[("a.tar.gz", &gzip(&archive))]);
    shelf.archives = shelf.archives.with_patience(Duration::ZERO);
    let late = shelf.archives.late();
    let found = shelf.find(WEB);
    assert_eq!(found.unread, [shelf.directory.path().join("a.tar.gz")]);
    assert!(found.images.is_empty() && found.problems.is_empty(), "{found:?}");
    late.notified().await;
    let found = shelf.find(WEB);
    assert!(found.unread.is_empty() && found.images.contains_key(WEB), "{found:?}");
}
