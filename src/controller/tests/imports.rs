//! Images from archives.

use std::io::{Read as _, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;
use crate::host::memory::MemoryHost;
use crate::image::Archives;
use crate::runtime::memory::MemoryRuntime;

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
    let edge = Arc::new(edge(&it, Duration::from_mins(1)));
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

/// An edge that waits that long for archives to be read.
fn edge(it: &Harness, patience: Duration) -> Edge<MemoryRuntime, MemoryHost> {
    let mut edge = it.edge();
    let archives = Archives::new(vec![it.directory.path().join("images")]).with_patience(patience);
    edge.archives = Arc::new(Mutex::new(archives));
    edge
}

#[tokio::test]
async fn what_an_archive_has_is_started_when_it_has_been_read() {
    let mut it = Harness::new();
    it.archive("web:1");
    it.want("a", r#""image": "web:1""#);
    let edge = edge(&it, Duration::ZERO);
    it.run_on(edge);
    it.until_running("a").await;
    assert!(it.clock() < 15_000, "not only when everything is looked at again: {}", it.clock());
}

#[tokio::test(start_paused = true)]
async fn a_command_waits_for_an_archive_that_is_being_read() {
    let mut it = Harness::new();
    it.archive("web:1");
    it.want("a", r#""image": "web:1""#);
    let edge = edge(&it, Duration::ZERO);
    let mut controller = it.controller(Arc::new(edge), Goal::Converge { wait: false });
    controller.desired = watch::channel(Some(Arc::new(it.wanted.clone()))).1;
    let ended = controller.run(watch::channel(None).0, std::future::pending()).await;
    assert_eq!(ended, Ended::Converged);
}
