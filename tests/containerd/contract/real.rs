//! A real containerd, as the contract sees it.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::MountsRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateImageRequest, CreateRequest, DeleteContainerRequest,
    DeleteRequest, GetContainerRequest, Image as ImageRecord, PauseTaskRequest, container,
};
use containerd_client::types::Descriptor;
use evenkeel::observed::{Image, Task};
use evenkeel::runtime::Exec;
use evenkeel::runtime::containerd::Containerd;
use evenkeel::workload::InstanceId;
use oci_spec::runtime::Spec;
use rustix::process::Signal;

use super::Harness;
use crate::rig::{Engine, Rig, sweep};

pub(super) struct Real {
    pub(super) rig: Rig,
    pub(super) client: Containerd,
    pub(super) image: Image,
}

/// What a test leaves in a writable layer.
const TRACE: &str = "trace";

/// Ends with the code in `/exit`, or with 143 on SIGTERM; `/dev/listens` says that it would.
const PROGRAM: &str = "trap 'exit 143' TERM; : >/dev/listens; until [ -s /exit ]; do sleep 0.02; done; \
     read code </exit; rm /exit; exit $code";

impl Real {
    pub(super) async fn start(engine: &Engine) -> Self {
        let rig = Rig::start_on(engine).await;
        let image = rig.load_image().await;
        Self { client: rig.client(), rig, image }
    }

    /// The directory in which the writable layer is.
    async fn layer(&self, id: &InstanceId) -> PathBuf {
        let request = MountsRequest { snapshotter: Rig::snapshotter(), key: id.to_string() };
        let answer =
            SnapshotsClient::new(self.rig.channel()).mounts(Rig::request(request)).await.unwrap();
        let mount = answer.into_inner().mounts.remove(0);
        let upper = mount.options.iter().find_map(|it| it.strip_prefix("upperdir="));
        PathBuf::from(upper.unwrap_or(&mount.source))
    }
}

impl Real {
    /// Writes a code for a program that waits for it.
    async fn tell(&self, id: &InstanceId, file: &str, code: u32) {
        let objects = super::observe(self).await;
        let container = objects.containers.iter().find(|it| it.id == *id).unwrap();
        let Task::Running { pid } = container.task else { panic!("{:?}", container.task) };
        // In one piece, so that the program never reads half of it.
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        std::fs::write(root.join("code"), format!("{code}\n")).unwrap();
        std::fs::rename(root.join("code"), root.join(file)).unwrap();
    }
}

impl Harness for Real {
    type Runtime = Containerd;

    fn runtime(&self) -> &Containerd {
        &self.client
    }

    fn image(&self) -> Image {
        self.image.clone()
    }

    fn spec(&self, id: &InstanceId) -> Spec {
        let mount = |target: &str, kind: &str| serde_json::json!({ "destination": target, "type": kind, "source": kind });
        let namespaces =
            ["pid", "ipc", "uts", "mount", "network"].map(|it| serde_json::json!({ "type": it }));
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs" },
            "process": {
                "cwd": "/",
                "user": { "uid": 0, "gid": 0 },
                "env": ["PATH=/bin"],
                "args": ["sh", "-c", PROGRAM],
            },
            "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs")],
            "linux": { "namespaces": namespaces, "cgroupsPath": format!("{}/{id}", self.rig.cgroup_parent()) },
        });
        serde_json::from_value(spec).unwrap()
    }

    async fn listens(&self, pid: u32) {
        let sign = PathBuf::from(format!("/proc/{pid}/root/dev/listens"));
        let listens = async {
            while !sign.exists() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(super::SOON, listens).await.expect("the program starts");
    }

    fn exec(&self) -> Exec {
        let program = PROGRAM.split_once("; ").unwrap().1.replace("/exit", "/exec");
        Exec { args: vec!["sh".to_owned(), "-c".to_owned(), program], ..Exec::default() }
    }

    async fn exit_exec(&self, id: &InstanceId, _: &str, code: u32) {
        self.tell(id, "exec", code).await;
    }

    async fn exit(&self, id: &InstanceId, code: u32) {
        self.tell(id, "exit", code).await;
    }

    fn is_alive(&self, pid: u32) -> bool {
        sweep::is_alive(pid)
    }

    async fn stop(&mut self) {
        self.rig.kill_containerd();
    }

    async fn start(&mut self) {
        self.rig.start_containerd().await;
    }

    fn forgets_tasks(&self) -> bool {
        self.rig.engine().forgets_tasks()
    }

    async fn add_foreign_image(&self, name: &str) {
        let target = Descriptor {
            media_type: evenkeel::content::MANIFEST.to_owned(),
            digest: self.image.digest.clone(),
            size: 7,
            ..Descriptor::default()
        };
        let image =
            ImageRecord { name: name.to_owned(), target: Some(target), ..Default::default() };
        let request = CreateImageRequest { image: Some(image), source_date_epoch: None };
        ImagesClient::new(self.rig.channel()).create(Rig::request(request)).await.unwrap();
    }

    async fn collect(&self) {
        let mut client = LeasesClient::new(self.rig.channel());
        let labels = HashMap::new();
        client
            .create(Rig::request(CreateRequest { id: "collect".to_owned(), labels }))
            .await
            .unwrap();
        client
            .delete(Rig::request(DeleteRequest { id: "collect".to_owned(), sync: true }))
            .await
            .unwrap();
    }

    async fn pause(&self, id: &InstanceId) {
        let request = PauseTaskRequest { container_id: id.to_string() };
        TasksClient::new(self.rig.channel()).pause(Rig::request(request)).await.unwrap();
    }

    async fn hang(&self, id: &InstanceId, hung: bool) {
        let shim = self.rig.shim(id.as_str());
        sweep::signal(shim, if hung { Signal::STOP } else { Signal::CONT });
        let follows = async {
            // A thread that is in the kernel stops a little later.
            while hung && !sweep::is_stopped(shim) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(super::SOON, follows).await.expect("the shim stops");
    }

    async fn lose_container(&self, id: &InstanceId) {
        let request = DeleteContainerRequest { id: id.to_string() };
        ContainersClient::new(self.rig.channel()).delete(Rig::request(request)).await.unwrap();
        // Its snapshot has nobody to keep it any more.
        self.collect().await;
    }

    async fn add_foreign(&self, id: &InstanceId) {
        let runtime =
            container::Runtime { name: "io.containerd.runc.v2".to_owned(), options: None };
        let spec = prost_types::Any { type_url: "somebody/else".to_owned(), value: b"{}".to_vec() };
        let container = Container {
            id: id.to_string(),
            labels: HashMap::from([("their/label".to_owned(), "x".to_owned())]),
            runtime: Some(runtime),
            spec: Some(spec),
            ..Container::default()
        };
        let request = CreateContainerRequest { container: Some(container) };
        ContainersClient::new(self.rig.channel()).create(Rig::request(request)).await.unwrap();
    }

    async fn has_foreign(&self, id: &InstanceId) -> bool {
        self.labels(id).await == ["their/label".to_owned()].into()
    }

    async fn labels(&self, id: &InstanceId) -> BTreeSet<String> {
        let request = GetContainerRequest { id: id.to_string() };
        let answer =
            ContainersClient::new(self.rig.channel()).get(Rig::request(request)).await.unwrap();
        answer.into_inner().container.unwrap().labels.into_keys().collect()
    }

    async fn soil(&self, id: &InstanceId) {
        std::fs::write(self.layer(id).await.join(TRACE), "").unwrap();
    }

    async fn is_soiled(&self, id: &InstanceId) -> bool {
        self.layer(id).await.join(TRACE).exists()
    }
}
