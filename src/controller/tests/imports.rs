//! Images from archives.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicU32, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

/// What comes before an image in a compressed archive, such as other images, has to be unpacked to get to it.
const BEFORE: u64 = 48 << 20;

/// An archive as `docker save` writes it, compressed, with something else in front.
fn archive(name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut append = |path: &str, size: u64, content: &mut dyn std::io::Read| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        tar.append_data(&mut header, path, content).unwrap();
    };
    append("other", BEFORE, &mut std::io::repeat(0).take(BEFORE));
    let layer = [0; 1024];
    let config = format!(
        r#"{{"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        crate::content::Digest::of(&layer)
    );
    let manifest =
        format!(r#"[{{"Config":"config.json","RepoTags":["{name}"],"Layers":["layer.tar"]}}]"#);
    append("layer.tar", 1024, &mut layer.as_slice());
    append("config.json", config.len() as u64, &mut config.as_bytes());
    append("manifest.json", manifest.len() as u64, &mut manifest.as_bytes());
    let mut encoder = tar.into_inner().unwrap();
    encoder.flush().unwrap();
    encoder.finish().unwrap()
}

/// One thread does everything that waits: it must not wait for an archive.
#[tokio::test]
async fn everything_goes_on_while_an_archive_is_unpacked() {
    let it = Harness::new();
    let images = it.directory.path().join("images");
    std::fs::create_dir(&images).unwrap();
    std::fs::write(images.join("a.tar.gz"), archive("web:1")).unwrap();
    let edge = Arc::new(it.edge());
    let name = "docker.io/library/web:1".to_owned();
    let found = edge.archives.lock().unwrap().find(&[name.clone()].into());
    let image = found.images[&name].clone();
    let ticks = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&ticks);
    let ticking = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let (action, cause) = (Action::Import { image }, Cause::Added);
    let pause = Duration::ZERO;
    let step = plan::Step { name: None, action, cause, requires: Vec::new(), pause };
    let (done, _) = edge.carry_out(&step, None).await;
    done.unwrap();
    ticking.abort();
    assert!(ticks.load(Ordering::Relaxed) >= 10, "{ticks:?}");
    assert!(it.runtime.observe(&[name.clone()].into()).await.unwrap().images.contains_key(&name));
}
