//! What a controller finds when it starts: what runs is adopted, what ended is told, what is nobody's is swept, and
//! what is somebody else's is left alone.

use std::collections::{BTreeSet, HashMap};
use std::fs;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateRequest, ListContainersRequest, ListRequest,
};
use evenkeel::desired::{Origin, Source};
use evenkeel::plan::Phase;
use evenkeel::runtime::{NewInstance, Runtime as _};
use evenkeel::workload::{InstanceId, IpcDefaults, Workload};
use rustix::mount::MountFlags;
use rustix::process::Signal;

use crate::program::{Site, manifest, sleeper, until_dead};
use crate::rig::{Rig, sweep};

/// The record of the engine says where the files of containers are. Without it they say so themselves.
#[tokio::test]
async fn what_is_in_another_snapshotter_is_kept_where_it_is_or_everything_is_refused() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let file = site.state_dir().join("engine.json");
    let record = |snapshotter: &str| {
        let text = fs::read_to_string(&file).unwrap();
        let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
        let before = record["snapshotter"].as_str().unwrap().to_owned();
        record["snapshotter"] = snapshotter.into();
        fs::write(&file, record.to_string()).unwrap();
        before
    };
    // A box on which overlays could not be mounted when it began.
    site.apply();
    assert_eq!(record("native"), "overlayfs");
    site.write("web.yaml", &sleeper("web"));
    site.apply();
    let pid = site.pid("web");
    fs::remove_file(&file).unwrap();
    site.plan_is_empty();
    site.apply();
    assert_eq!(record("overlayfs"), "native", "it is found out from what is there");
    for command in ["plan", "apply", "down"] {
        site.run(&[command]).exits(3).says(&["`native`", "`overlayfs`", "engine.json"]);
    }
    assert!(sweep::is_alive(pid));
    record("native");
    assert_eq!(site.pid("web"), pid);
    site.plan_is_empty();
    site.run(&["down"]).exits(0);
    assert!(!site.state_dir().join("logs").exists());
}

#[tokio::test]
async fn the_snapshotter_that_the_configuration_names_is_used_unless_something_is_in_another() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let named = |snapshotter: &str| {
        site.configure(&format!("removeAfter: 200ms\nsnapshotter: {snapshotter}\n"));
    };
    let snapshots = |snapshotter: &str| {
        let listed = rig.ctr(&["snapshots", "--snapshotter", snapshotter, "list"]);
        listed.lines().filter(|it| it.starts_with("web-")).count()
    };
    site.write("web.yaml", &sleeper("web"));
    named("nowhere");
    site.run(&["apply"]).exits(3).says(&["`nowhere`", "cannot be used"]);
    site.run(&["doctor"]).says(&["`nowhere`"]);
    named("native");
    site.apply();
    assert_eq!((snapshots("native"), snapshots("overlayfs")), (1, 0));
    site.plan_is_empty();
    let pid = site.pid("web");
    named("overlayfs");
    for command in ["plan", "apply", "down"] {
        site.run(&[command]).exits(3).says(&["`native`", "`overlayfs`"]);
    }
    assert!(sweep::is_alive(pid));
    // Nothing is in the other one any more.
    named("native");
    site.run(&["down"]).exits(0);
    named("overlayfs");
    site.apply();
    assert_eq!((snapshots("native"), snapshots("overlayfs")), (0, 1));
    // It is remembered.
    site.configure("removeAfter: 200ms\n");
    site.plan_is_empty();
    site.run(&["down"]).exits(0);
}

#[tokio::test]
async fn what_ended_while_nobody_looked_is_told_with_its_code_and_what_runs_is_kept() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let out = rig.dir().join("out");
    fs::create_dir(&out).unwrap();
    let waits = |name: &str, policy: &str| {
        let script = format!("until [ -e /out/{name} ]; do sleep 0.1; done; exit 7");
        let spec = format!(
            "command: [sh, -c, \"{script}\"]\nmounts: [{{type: bind, source: {}, target: /out}}]\nrestart: {{policy: {policy}}}",
            out.display()
        );
        manifest(name, &spec)
    };
    site.write("once.yaml", &waits("once", "never"));
    site.write("again.yaml", &waits("again", "always"));
    site.write("steady.yaml", &(sleeper("steady") + "  ipcMode: shareable\n"));
    let controller = site.controller();
    let pids = ["once", "again", "steady"].map(|name| site.until_running(name));
    let shm = site.run_dir().join("ipc").join(&site.item("steady").unwrap().instance.unwrap().id);
    let identity = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/ipc")).unwrap();
    let (namespace, mounts) = (identity(pids[2]), sweep::mounts_below(&shm));
    assert_eq!(mounts.len(), 2);

    controller.kill();
    for name in ["once", "again"] {
        fs::write(out.join(name), "").unwrap();
    }
    until_dead(pids[0]);
    until_dead(pids[1]);
    fs::remove_file(out.join("again")).unwrap();

    let controller = site.controller();
    site.until("once", |item| {
        let item = item.filter(|it| it.phase == Phase::Failed)?;
        let end = item.last_exit.as_ref()?;
        assert_eq!((end.code, end.reason.as_str()), (7, "exited"));
        Some(())
    });
    site.until("again", |item| {
        let item = item.filter(|it| it.phase == Phase::Running)?;
        let instance = item.instance.as_ref()?;
        let pid = instance.pid.filter(|it| *it != pids[1])?;
        assert_eq!((item.last_exit.as_ref()?.code, instance.restarts), (7, 1));
        Some(pid)
    });
    assert_eq!(site.until_running("steady"), pids[2]);
    assert_eq!((identity(pids[2]), sweep::mounts_below(&shm)), (namespace, mounts));
    assert_eq!(controller.terminate(), Some(0));
}

/// Everything that a run which was killed at the worst moments can leave, and beside it what looks like it.
#[tokio::test]
async fn what_is_nobodys_is_swept_once_and_what_is_somebody_elses_stays() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let image = rig.load_image().await;
    site.write("web.yaml", &sleeper("web"));
    site.apply();
    let web = site.pid("web");

    // Ours: a lease with a snapshot, mounts, a pinned namespace, logs, strikes.
    let client = rig.client();
    let ghost: Workload = serde_json::from_value(serde_json::json!({
        "name": "ghost",
        "spec": { "image": image.name, "command": ["true"] }
    }))
    .unwrap();
    let revision = ghost.revision(&image.digest);
    let id = InstanceId::new(&ghost.name, &revision);
    let origin = Origin {
        source: Source::new(&site.manifests_dir(), &site.manifests_dir()),
        file: "ghost.yaml".into(),
        document: 0,
    };
    let instance = NewInstance {
        id: id.clone(),
        revision,
        origin,
        workload: ghost,
        defaults: IpcDefaults::default(),
        image: image.clone(),
    };
    client.lease("evenkeel-ghost").await.unwrap();
    client.prepare_snapshot("evenkeel-ghost", &instance).await.unwrap();
    let published = site.run_dir().join("ipc").join(id.as_str());
    fs::create_dir_all(published.join("shm")).unwrap();
    let shm = published.join("shm");
    rustix::mount::mount("shm", &shm, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(published.join("ns"), "").unwrap();
    rustix::mount::mount_bind("/proc/self/ns/ipc", published.join("ns")).unwrap();
    let logs = site.state_dir().join("logs").join(id.as_str());
    fs::create_dir_all(&logs).unwrap();
    fs::write(logs.join("0.log"), "").unwrap();

    // Somebody else's, in the same namespace.
    let labels = HashMap::from([("somebody".to_owned(), "else".to_owned())]);
    let lease = CreateRequest { id: "theirs".to_owned(), labels: labels.clone() };
    LeasesClient::new(rig.channel()).create(Rig::request(lease)).await.unwrap();
    let prepare = PrepareSnapshotRequest {
        snapshotter: Rig::snapshotter(),
        key: "theirs".to_owned(),
        parent: String::new(),
        labels: HashMap::from([("containerd.io/gc.root".to_owned(), "1".to_owned())]),
    };
    SnapshotsClient::new(rig.channel()).prepare(Rig::request(prepare)).await.unwrap();
    let container = Container {
        id: "theirs".to_owned(),
        labels,
        runtime: Some(containerd_client::services::v1::container::Runtime {
            name: "io.containerd.runc.v2".to_owned(),
            options: None,
        }),
        spec: Some(prost_types::Any::default()),
        ..Container::default()
    };
    let create = CreateContainerRequest { container: Some(container) };
    ContainersClient::new(rig.channel()).create(Rig::request(create)).await.unwrap();
    let foreign = rig.dir().join("foreign");
    fs::create_dir(&foreign).unwrap();
    rustix::mount::mount("shm", &foreign, "tmpfs", MountFlags::empty(), None).unwrap();

    let plan = site.run(&["plan"]).exits(5);
    for what in ["lease", "snapshot", "ghost", "logs"] {
        assert!(plan.out.contains(what), "{}", plan.out);
    }
    assert!(!plan.out.contains("theirs"), "{}", plan.out);
    site.apply();
    site.plan_is_empty();
    assert_eq!(site.pid("web"), web);
    assert!(!published.exists() && !logs.exists());
    assert_eq!(sweep::mounts_below(&published), Vec::<std::path::PathBuf>::new());

    let leases = LeasesClient::new(rig.channel()).list(Rig::request(ListRequest::default())).await;
    let leases: BTreeSet<String> =
        leases.unwrap().into_inner().leases.into_iter().map(|it| it.id).collect();
    assert_eq!(leases, ["theirs".to_owned()].into());
    let list = Rig::request(ListContainersRequest::default());
    let containers = ContainersClient::new(rig.channel()).list(list).await.unwrap().into_inner();
    assert!(containers.containers.iter().any(|it| it.id == "theirs"));
    assert!(
        rig.ctr(&["snapshots", "--snapshotter", &Rig::snapshotter(), "list"]).contains("theirs")
    );
    assert_eq!(sweep::mounts_below(&foreign), std::slice::from_ref(&foreign));
    sweep::signal(web, Signal::KILL);
}
