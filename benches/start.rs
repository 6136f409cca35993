//! Ours beside the floor, in one run: a dropped manifest until its process runs, and `apply` of 20.
//!
//! The floor is the same containerd calls made directly, with the same log, lease, labels and concurrency. Pairs are
//! interleaved, so that whatever else the box does meets both; the medians are compared. Promises: 1.2 × and 1.1 ×.
//!
//! The manifests of `apply` are written right before it, so each is read twice before it counts: the quiet time between
//! the two reads is part of ours.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "that is what a bench is for")]
#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_client::services::v1 as api;
use containerd_client::services::v1::container::Runtime as RuntimeRecord;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use evenkeel::observed::{Image, published_paths};
use evenkeel::oci::{Lowering, lower};
use evenkeel::workload::{IpcDefaults, Workload};
use prost::Message as _;
use prost_types::{Any, FieldMask};
use tokio::sync::{Semaphore, mpsc};
use tonic::transport::Channel;

#[path = "../tests/containerd"]
mod containerd {
    #[expect(dead_code, reason = "the tests use more of it")]
    pub(crate) mod rig;
}

use containerd::rig::Rig;

/// Pairs of one dropped manifest and one direct start.
const SINGLE: usize = 15;
/// Pairs of `apply` of [`MANY`] manifests and as many direct starts.
const ROUNDS: usize = 15;
const MANY: usize = 20;
/// As the program has it.
const CONCURRENCY: usize = evenkeel::controller::CONCURRENCY;

type Starts = mpsc::UnboundedReceiver<(String, Instant)>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let rig = Rig::start().await;
    let image = rig.load_image().await;
    let mut started = starts(&rig);
    single(&rig, &image, &mut started).await;
    many(&rig, &image, &mut started).await;
}

async fn single(rig: &Rig, image: &Image, started: &mut Starts) {
    std::fs::create_dir_all(rig.manifests_dir()).unwrap();
    std::fs::write(rig.manifests_dir().join("keep.yaml"), manifest("keep", image)).unwrap();
    let mut controller = spawn(rig, &["run", "--engine", "system"]);
    next(started, "keep-").await;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    let channel = rig.channel();
    for n in 0..SINGLE {
        let name = format!("ours-{n}");
        let staged = rig.dir().join("staged.yaml");
        std::fs::write(&staged, manifest(&name, image)).unwrap();
        let begun = Instant::now();
        std::fs::rename(&staged, rig.manifests_dir().join(format!("{name}.yaml"))).unwrap();
        ours.push(next(started, &format!("{name}-")).await - begun);

        let begun = Instant::now();
        direct(rig, channel.clone(), image, &format!("floor-{n}")).await;
        floor.push(next(started, &format!("floor-{n}")).await - begun);
    }
    compare("dropped manifest until running", &mut ours, &mut floor, 1.2);
    end(&mut controller);
    clear(rig).await;
}

async fn many(rig: &Rig, image: &Image, started: &mut Starts) {
    let (mut ours, mut floor, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    let channel = rig.channel();
    let write = |round: &str| {
        let directory = rig.dir().join(format!("round-{round}"));
        std::fs::create_dir_all(&directory).unwrap();
        for n in 0..MANY {
            let name = format!("ours-{round}-{n}");
            std::fs::write(directory.join(format!("{name}.yaml")), manifest(&name, image)).unwrap();
        }
        directory
    };
    for round in 0..ROUNDS {
        let directory = write(&round.to_string());
        let (running, ended) = apply(rig, &directory, &format!("ours-{round}-"), started).await;
        ours.push(running);
        whole.push(ended);

        let begun = Instant::now();
        let permits = Arc::new(Semaphore::new(CONCURRENCY));
        let starts = (0..MANY).map(|n| {
            let (permits, channel) = (Arc::clone(&permits), channel.clone());
            async move {
                let _permit = permits.acquire().await.unwrap();
                direct(rig, channel, image, &format!("floor-{round}-{n}")).await;
            }
        });
        join_all(starts).await;
        let mut last = begun;
        for _ in 0..MANY {
            last = last.max(next(started, &format!("floor-{round}-")).await);
        }
        floor.push(last - begun);
        clear(rig).await;
    }
    compare("apply of 20 until all run", &mut ours, &mut floor, 1.1);
    whole.sort();
    println!(
        "  the command itself ends after {:?}: it watches them run for a second",
        whole[ROUNDS / 2]
    );
}

/// How long until all of a directory's manifests ran, and until the command ended.
async fn apply(
    rig: &Rig,
    directory: &Path,
    prefix: &str,
    started: &mut Starts,
) -> (Duration, Duration) {
    let begun = Instant::now();
    let mut apply = spawn(rig, &["apply", "--engine", "system", directory.to_str().unwrap()]);
    let mut last = begun;
    for _ in 0..MANY {
        last = last.max(next(started, prefix).await);
    }
    // Without blocking the thread that the events come in on.
    let status = tokio::task::spawn_blocking(move || apply.wait().unwrap()).await.unwrap();
    assert!(status.success(), "apply: {status}");
    (last - begun, begun.elapsed())
}

fn compare(what: &str, ours: &mut [Duration], floor: &mut [Duration], promised: f64) {
    let spread = |times: &mut [Duration]| {
        times.sort();
        (times[0], times[times.len() / 2], times[times.len() - 1])
    };
    let (ours, floor) = (spread(ours), spread(floor));
    let ratio = ours.1.as_secs_f64() / floor.1.as_secs_f64();
    println!(
        "{what}: ours {ours:?}, floor {floor:?} (min, median, max): {ratio:.2} × (promised {promised} ×)"
    );
}

fn manifest(name: &str, image: &Image) -> String {
    format!(
        "apiVersion: evenkeel/v1\nkind: Container\nmetadata:\n  name: {name}\nspec:\n  image: {}\n  command: [\"sleep\", \"100000\"]\n  stop:\n    timeout: 0s\n",
        image.name
    )
}

fn spawn(rig: &Rig, args: &[&str]) -> Child {
    let mut command = rig.command(args);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn end(child: &mut Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    child.wait().unwrap();
}

/// Removes what both sides started.
async fn clear(rig: &Rig) {
    let output = rig.evenkeel(&["down", "--engine", "system"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut containers = ContainersClient::new(rig.channel());
    let mut tasks = TasksClient::new(rig.channel());
    let list = api::ListContainersRequest::default();
    let left = containers.list(Rig::request(list)).await.unwrap().into_inner().containers;
    for id in left.into_iter().map(|it| it.id) {
        let kill = api::KillRequest { container_id: id.clone(), signal: 9, ..Default::default() };
        drop(tasks.kill(Rig::request(kill)).await);
        let wait = api::WaitRequest { container_id: id.clone(), ..Default::default() };
        drop(tasks.wait(Rig::request(wait)).await);
        let delete = api::DeleteTaskRequest { container_id: id.clone() };
        tasks.delete(Rig::request(delete)).await.unwrap();
        containers.delete(Rig::request(api::DeleteContainerRequest { id })).await.unwrap();
    }
}

/// runc's own options, as far as they are used.
#[derive(Clone, PartialEq, prost::Message)]
struct Options {
    #[prost(string, tag = "7")]
    root: String,
}

/// What the program asks containerd for when it starts a private container, and nothing else.
async fn direct(rig: &Rig, channel: Channel, image: &Image, id: &str) {
    let workload: Workload = serde_json::from_value(serde_json::json!({
        "name": id,
        "spec": { "image": image.name, "command": ["sleep", "100000"] }
    }))
    .unwrap();
    let lease = format!("evenkeel-{id}");
    let labels = HashMap::from([
        ("evenkeel-bench/name".to_owned(), id.to_owned()),
        ("evenkeel-bench/revision".to_owned(), "0".repeat(64)),
        ("evenkeel-bench/source".to_owned(), rig.manifests_dir().display().to_string()),
        ("evenkeel-bench/origin".to_owned(), format!("{id}.yaml#0")),
        ("evenkeel-bench/image-digest".to_owned(), image.digest.clone()),
    ]);
    let make_lease = api::CreateRequest { id: lease.clone(), labels: labels.clone() };
    LeasesClient::new(channel.clone()).create(Rig::request(make_lease)).await.unwrap();
    let mut prepare = Rig::request(PrepareSnapshotRequest {
        snapshotter: Rig::snapshotter(),
        key: id.to_owned(),
        parent: evenkeel::content::chain_ids(&image.config.diff_ids).pop().unwrap(),
        labels: HashMap::new(),
    });
    prepare.metadata_mut().insert("containerd-lease", lease.parse().unwrap());
    let mut snapshots = SnapshotsClient::new(channel.clone());
    let rootfs = snapshots.prepare(prepare).await.unwrap().into_inner().mounts;
    let any = |type_url: &str, value: Vec<u8>| Any { type_url: type_url.to_owned(), value };
    let instance = id.parse().unwrap();
    let published = published_paths(&rig.run_dir(), &instance);
    let parent = rig.cgroup_parent();
    let lowered = lower(&Lowering {
        id: &instance,
        workload: &workload,
        ipc: &workload.spec.ipc(&IpcDefaults::default()),
        image: &image.config,
        cgroup_parent: &parent,
        published: &published,
        host_files: &[],
        oom_score_adj: None,
    })
    .unwrap();
    let root = rig.dir().join("floor-runc").display().to_string();
    let record = api::Container {
        id: id.to_owned(),
        labels,
        image: image.name.clone(),
        runtime: Some(RuntimeRecord {
            name: "io.containerd.runc.v2".to_owned(),
            options: Some(any("containerd.runc.v1.Options", Options { root }.encode_to_vec())),
        }),
        spec: Some(any(
            "types.containerd.io/opencontainers/runtime-spec/1/Spec",
            serde_json::to_vec(&lowered).unwrap(),
        )),
        snapshotter: Rig::snapshotter(),
        snapshot_key: id.to_owned(),
        ..Default::default()
    };
    let mut containers = ContainersClient::new(channel.clone());
    let create = api::CreateContainerRequest { container: Some(record.clone()) };
    containers.create(Rig::request(create)).await.unwrap();
    let remove_lease = api::DeleteRequest { id: lease, sync: false };
    LeasesClient::new(channel.clone()).delete(Rig::request(remove_lease)).await.unwrap();
    let write = |path: &str| {
        Rig::request(api::UpdateContainerRequest {
            container: Some(record.clone()),
            update_mask: Some(FieldMask { paths: vec![path.to_owned()] }),
        })
    };
    containers.update(write("spec")).await.unwrap();
    let log = format!(
        "binary://{}?log-pipe={}:10485760:2",
        env!("CARGO_BIN_EXE_evenkeel"),
        rig.state_dir().join("logs").join(id).display()
    );
    let mut tasks = TasksClient::new(channel);
    let create = api::CreateTaskRequest {
        container_id: id.to_owned(),
        rootfs,
        stdout: log.clone(),
        stderr: log,
        ..Default::default()
    };
    tasks.create(Rig::request(create)).await.unwrap();
    containers.update(write("labels.evenkeel-bench/origin")).await.unwrap();
    let start = api::StartRequest { container_id: id.to_owned(), ..Default::default() };
    tasks.start(Rig::request(start)).await.unwrap();
}

/// When each task was seen to start, from containerd's own events.
fn starts(rig: &Rig) -> Starts {
    let (sender, receiver) = mpsc::unbounded_channel();
    let channel = rig.channel();
    let filters = vec![r#"topic=="/tasks/start""#.to_owned()];
    tokio::spawn(async move {
        let request = Rig::request(api::SubscribeRequest { filters });
        let mut stream = EventsClient::new(channel).subscribe(request).await.unwrap().into_inner();
        while let Some(envelope) = stream.message().await.unwrap() {
            let now = Instant::now();
            let event = envelope.event.unwrap();
            let start = containerd_client::events::TaskStart::decode(&*event.value).unwrap();
            if sender.send((start.container_id, now)).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Waits for the next start whose ID begins like that.
async fn next(started: &mut Starts, prefix: &str) -> Instant {
    loop {
        let next = tokio::time::timeout(Duration::from_mins(1), started.recv()).await;
        let (id, at) = next.expect("started within a minute").unwrap();
        if id.starts_with(prefix) {
            return at;
        }
    }
}

async fn join_all(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut all: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        all.retain_mut(|it| it.as_mut().poll(context).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
