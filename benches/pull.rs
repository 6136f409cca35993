//! A pull of 500 MB in 10 layers from a registry on loopback, beside two floors, in one run.
//!
//! The floors are `skopeo copy` to an OCI layout plus an unpack of the same layers by containerd's own calls, and
//! `ctr images pull`. Bringing skopeo's files into containerd is not counted: they were written once already. Everything
//! is taken away between the rounds, what is dirty is on the disk before each, and the medians are compared. Promise:
//! 1.1 × the faster floor.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "that is what a bench is for")]
#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use containerd_client::services::v1 as api;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots as snapshot;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::types;

#[path = "../tests/containerd"]
mod containerd {
    #[expect(dead_code, reason = "the tests use more of it")]
    pub(crate) mod rig;
}

use containerd::rig::Rig;
use containerd::rig::recipe::Recipe;
use containerd::rig::registry::{Blob, Kind, Pushed, Registry, skopeo};

const LAYERS: u64 = 10;
/// Bytes of each, which do not get smaller by packing.
const LAYER: u64 = 50_000_000;
/// Of three, the middle one moves by a tenth on a quiet machine.
const ROUNDS: usize = 7;
const PROMISED: f64 = 1.1;

/// What the first floor is made under.
const LEASE: &str = "evenkeel-bench-pull";

/// What is sent at once, as containerd's own clients do.
const PIECE: usize = 1 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let registry = Registry::start(Kind::Plain);
    let rig = Rig::start().await;
    let pushed = registry.push("bench/pull:1", &Recipe::empty().with_data(LAYERS, LAYER, 1));
    let layers = registry.stored(&pushed).layers;

    let (mut copies, mut unpacks, mut skopeos) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ctrs, mut own) = (Vec::new(), Ok(Vec::new()));
    for _ in 0..ROUNDS {
        let (copy, unpack) = by_skopeo(&rig, &registry, &pushed, &layers).await;
        copies.push(copy);
        unpacks.push(unpack);
        skopeos.push(copy + unpack);
        clear(&rig).await;

        ctrs.push(by_ctr(&rig, &pushed));
        assert_complete(&rig).await;
        clear(&rig).await;

        // What cannot be done once is not tried again.
        if let Ok(times) = &mut own {
            match ours(&rig, &pushed) {
                Ok(time) => {
                    times.push(time);
                    assert_complete(&rig).await;
                    clear(&rig).await;
                }
                Err(failure) => own = Err(failure),
            }
        }
    }

    println!("a pull of {LAYERS} layers of {} MB, median of {ROUNDS}:", LAYER / 1_000_000);
    let floors =
        [show("skopeo copy, and an unpack", &mut skopeos), show("ctr images pull", &mut ctrs)];
    let (copy, unpack) = (median(&mut copies), median(&mut unpacks));
    println!("  of the first, the copy takes {copy:?} and the unpack {unpack:?}");
    match own {
        Ok(mut times) => {
            let own = show("evenkeel image pull", &mut times);
            let ratio = own.as_secs_f64() / floors.into_iter().min().unwrap().as_secs_f64();
            println!("  {ratio:.2} × the faster floor (promised {PROMISED} ×)");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("  there is no number of ours: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn show(what: &str, times: &mut [Duration]) -> Duration {
    let middle = median(times);
    println!("  {what}: {middle:?} (of {times:?})");
    middle
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// By the program itself, with what it is not told as it is.
fn ours(rig: &Rig, pushed: &Pushed) -> Result<Duration, String> {
    rustix::fs::sync();
    let begun = Instant::now();
    let output = rig.evenkeel(&["image", "pull", "--engine", "system", &pushed.name]);
    let took = begun.elapsed();
    if output.status.success() {
        return Ok(took);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`evenkeel image pull` ends with {}: {}", output.status, said.trim()))
}

fn by_ctr(rig: &Rig, pushed: &Pushed) -> Duration {
    rustix::fs::sync();
    let begun = Instant::now();
    let snapshotter = Rig::snapshotter();
    rig.ctr(&["images", "pull", "--plain-http", "--snapshotter", &snapshotter, &pushed.name]);
    begun.elapsed()
}

/// How long the copy takes, and the unpack of what it has brought.
async fn by_skopeo(
    rig: &Rig,
    registry: &Registry,
    pushed: &Pushed,
    layers: &[Blob],
) -> (Duration, Duration) {
    let scratch = tempfile::tempdir_in(rig.dir()).unwrap();
    let layout = scratch.path().join("layout");
    let (source, target) =
        (format!("docker://{}", pushed.name), format!("oci:{}", layout.display()));
    let options = registry.options("src-");
    let args: Vec<&str> =
        ["copy", "--quiet"].into_iter().chain(options.iter().map(String::as_str)).collect();
    rustix::fs::sync();
    let begun = Instant::now();
    let output = skopeo(&[&args[..], &[&source, &target]].concat());
    let copy = begun.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let lease = api::CreateRequest { id: LEASE.to_owned(), ..Default::default() };
    LeasesClient::new(rig.channel()).create(Rig::request(lease)).await.unwrap();
    for layer in layers {
        store(rig, layer, &layout.join("blobs/sha256").join(layer.digest.hex())).await;
    }
    rustix::fs::sync();
    let begun = Instant::now();
    unpack(rig, layers).await;
    (copy, begun.elapsed())
}

/// Puts a file into containerd's content store.
async fn store(rig: &Rig, blob: &Blob, file: &Path) {
    let mut file = std::fs::File::open(file).unwrap();
    let total = i64::try_from(blob.size).unwrap();
    let digest = blob.digest.to_string();
    let mut offset = 0;
    let pieces = std::iter::from_fn(move || {
        if offset == total {
            return None;
        }
        let mut data = Vec::with_capacity(PIECE);
        file.by_ref().take(u64::try_from(PIECE).unwrap()).read_to_end(&mut data).unwrap();
        let end = offset + i64::try_from(data.len()).unwrap();
        let action = if end == total { api::WriteAction::Commit } else { api::WriteAction::Write };
        let request = api::WriteContentRequest {
            action: action.into(),
            r#ref: digest.clone(),
            total,
            expected: digest.clone(),
            offset,
            data,
            ..Default::default()
        };
        offset = end;
        Some(request)
    });
    let request = leased(tokio_stream::iter(pieces));
    let mut answers = ContentClient::new(rig.channel()).write(request).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
}

/// One layer on top of the other, as containerd's own clients do it.
async fn unpack(rig: &Rig, layers: &[Blob]) {
    let mut snapshots = SnapshotsClient::new(rig.channel());
    let mut parent = String::new();
    for layer in layers {
        let key = format!("unpack-{}", layer.digest);
        let prepare = snapshot::PrepareSnapshotRequest {
            snapshotter: Rig::snapshotter(),
            key: key.clone(),
            parent,
            ..Default::default()
        };
        let mounts = snapshots.prepare(leased(prepare)).await.unwrap().into_inner().mounts;
        let diff = types::Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.to_string(),
            size: i64::try_from(layer.size).unwrap(),
            ..Default::default()
        };
        let apply = api::ApplyRequest { diff: Some(diff), mounts, ..Default::default() };
        DiffClient::new(rig.channel()).apply(leased(apply)).await.unwrap();
        let name = layer.digest.to_string();
        let commit = snapshot::CommitSnapshotRequest {
            snapshotter: Rig::snapshotter(),
            name: name.clone(),
            key,
            ..Default::default()
        };
        snapshots.commit(leased(commit)).await.unwrap();
        parent = name;
    }
}

fn leased<T>(message: T) -> tonic::Request<T> {
    let mut request = Rig::request(message);
    request.metadata_mut().insert("containerd-lease", LEASE.parse().unwrap());
    request
}

/// Whether everything that was pulled is there; a number without it would mean nothing.
async fn assert_complete(rig: &Rig) {
    let count = usize::try_from(LAYERS).unwrap();
    assert_eq!(images(rig).await.len(), 1);
    assert_eq!(snapshots(rig).await, count);
    assert!(content(rig).await >= count, "its layers are in the content store");
}

/// Takes away everything that the namespace has.
async fn clear(rig: &Rig) {
    for name in images(rig).await {
        let delete = api::DeleteImageRequest { name, sync: true, ..Default::default() };
        ImagesClient::new(rig.channel()).delete(Rig::request(delete)).await.unwrap();
    }
    let mut leases = LeasesClient::new(rig.channel());
    let list = leases.list(Rig::request(api::ListRequest::default())).await.unwrap();
    for lease in list.into_inner().leases {
        let delete = api::DeleteRequest { id: lease.id, sync: true };
        leases.delete(Rig::request(delete)).await.unwrap();
    }
    assert_eq!((snapshots(rig).await, content(rig).await), (0, 0), "something is left");
}

async fn images(rig: &Rig) -> Vec<String> {
    let list = Rig::request(api::ListImagesRequest::default());
    let list = ImagesClient::new(rig.channel()).list(list).await.unwrap();
    list.into_inner().images.into_iter().map(|it| it.name).collect()
}

async fn snapshots(rig: &Rig) -> usize {
    let list =
        snapshot::ListSnapshotsRequest { snapshotter: Rig::snapshotter(), ..Default::default() };
    let list = SnapshotsClient::new(rig.channel()).list(Rig::request(list)).await.unwrap();
    let (mut list, mut count) = (list.into_inner(), 0);
    while let Some(some) = list.message().await.unwrap() {
        count += some.info.len();
    }
    count
}

async fn content(rig: &Rig) -> usize {
    let list = Rig::request(api::ListContentRequest::default());
    let list = ContentClient::new(rig.channel()).list(list).await.unwrap();
    let (mut list, mut count) = (list.into_inner(), 0);
    while let Some(some) = list.message().await.unwrap() {
        count += some.info.len();
    }
    count
}
