//! The runtime that is a real containerd, through its gRPC services.
//!
//! The only place that names containerd's client. Decides nothing, remembers nothing that containerd can be asked for,
//! and touches no file: mounts and logs are made by the shims.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::snapshots::{
    ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
    StatSnapshotRequest,
};
use containerd_client::services::v1::{
    Container as ContainerRecord, CreateContainerRequest, CreateTaskRequest,
    DeleteContainerRequest, DeleteTaskRequest, GetContainerRequest, KillRequest,
    ListContainersRequest, ResumeTaskRequest, StartRequest, UpdateContainerRequest, WaitRequest,
    container,
};
use containerd_client::services::v1::{CreateRequest, DeleteRequest, ListRequest};
use containerd_client::types::Mount;
use prost_types::{Any, FieldMask};
use tokio::sync::watch;

use self::events::Events;
use self::link::{During as _, Fault, Link, Tolerate as _};
use self::record::{Kind, LEASE, NAME, READOPTED, REVISION, Record, filter};
use self::store::Store;
use self::tasks::{Listed, Tasks};
use super::{
    Blob, BlobWriter, Error, ErrorKind, Exec, LogTarget, Mark, NewBlob, NewImage, NewInstance,
    NewLayer, Objects, Runtime, Streams, Tell, Update, verb,
};
use crate::content::chain_ids;
use crate::observed::{RuntimeProcess, Task};
use crate::workload::{InstanceId, Signal};

mod about;
mod events;
mod execs;
mod link;
mod owner;
mod record;
mod store;
mod tasks;

/// The shim that every containerd since 1.4 has.
const SHIM: &str = "io.containerd.runc.v2";

const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Small transactions of containerd's database: each flushes, which takes seconds on flash that others write to.
const METADATA_LIMIT: Duration = Duration::from_secs(20);

/// Ten thousand containers take 0.3 s.
const LIST_LIMIT: Duration = Duration::from_secs(30);

/// A large writable layer on a slow disk takes long to delete.
const COLLECT_LIMIT: Duration = Duration::from_mins(2);

/// Starting a shim and runc takes 50 ms, and many times that while a small box starts everything at boot.
const CREATE_LIMIT: Duration = Duration::from_mins(1);

/// A signal, a start or a delete of a shim that answers; one that hangs never does.
const TASK_LIMIT: Duration = Duration::from_secs(30);

/// Mounts that are remembered between the preparation of a snapshot and its first use.
const MOUNTS_LIMIT: usize = 1024;

/// Where containerd is and how it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its socket.
    pub address: PathBuf,
    pub namespace: String,
    /// `overlayfs`, or `native` where overlays cannot be mounted.
    pub snapshotter: String,
    /// runc keeps its state below it. Never containerd's own place: there, two containerds that use one namespace
    /// and ID kill each other's containers.
    pub runc_root: PathBuf,
    /// Our own program, for the shim to run as a container's log.
    pub log_program: PathBuf,
}

/// A containerd. Connects when it is first asked for something, and again by itself after a loss.
pub struct Containerd {
    settings: Settings,
    link: Link,
    events: Events,
    tasks: Arc<Tasks>,
    store: Store,
    /// What `prepare_snapshot` was told, so that the first `create_task` need not ask again.
    mounts: Mutex<BTreeMap<InstanceId, Vec<Mount>>>,
    /// As it was last asked: what it says of itself does not change while it lives.
    process: Mutex<Option<RuntimeProcess>>,
}

impl Containerd {
    /// Has to be called within a tokio runtime. Asks nothing yet.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let link = Link::new(&settings.address, &settings.namespace)
            .during("use", settings.address.display())?;
        let (changes, _) = watch::channel(0);
        Ok(Self {
            events: Events::new(changes.clone()),
            tasks: Arc::new(Tasks::new(link.clone(), changes)),
            store: Store::new(link.clone(), settings.snapshotter.clone()),
            mounts: Mutex::default(),
            process: Mutex::default(),
            link,
            settings,
        })
    }

    /// The process that listens on the socket, to compare its mount namespace with ours. `None`: it is in a pid
    /// namespace that we cannot see into.
    pub async fn peer_pid(&self) -> Result<Option<u32>, Error> {
        let address = &self.settings.address;
        let unreachable = |cause: std::io::Error| Error {
            operation: "connect to",
            subject: address.display().to_string(),
            kind: ErrorKind::Unreachable,
            cause: Some(Box::new(cause)),
        };
        let connect = tokio::time::timeout(TASK_LIMIT, tokio::net::UnixStream::connect(address));
        let stream =
            connect.await.map_err(|late| unreachable(late.into()))?.map_err(unreachable)?;
        let pid = stream.peer_cred().map_err(unreachable)?.pid();
        Ok(pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0))
    }

    /// The process that listens on the socket, and where it looks for programs. `None`: not known.
    pub async fn process(&self) -> Option<RuntimeProcess> {
        let pid = self.peer_pid().await.ok()??;
        let lock = || self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().as_ref().filter(|it| it.pid == pid) {
            return Some(known.clone());
        }
        let directories = about::directories(&self.link).await.ok()?;
        let content = about::content(&self.link).await.ok()?;
        let process = RuntimeProcess { pid, directories, content };
        *lock() = Some(process.clone());
        Some(process)
    }

    /// Which evenkeel works in our containerd namespace; `None`: nobody has yet.
    pub async fn owner(&self) -> Result<Option<String>, Error> {
        let namespace = &self.settings.namespace;
        owner::read(&self.link, namespace).await.during("read the owner of namespace", namespace)
    }

    /// Writes that, and makes the namespace if it is missing.
    pub async fn set_owner(&self, owner: &str) -> Result<(), Error> {
        let namespace = &self.settings.namespace;
        owner::write(&self.link, namespace, owner)
            .await
            .during("write the owner of namespace", namespace)
    }

    /// containerd's version.
    pub async fn version(&self) -> Result<String, Error> {
        let address = self.settings.address.display();
        about::version(&self.link).await.during("ask for the version of", address)
    }

    /// Why our snapshotter cannot be used, as containerd knows it; `None`: it can.
    pub async fn fault_of_snapshotter(&self) -> Result<Option<String>, Error> {
        let name = &self.settings.snapshotter;
        about::fault_of_plugin(&self.link, "io.containerd.snapshotter.v1", name)
            .await
            .during("ask for the snapshotter", name)
    }

    /// Those that containers of ours keep their files in.
    pub async fn snapshotters(&self) -> Result<BTreeSet<String>, Error> {
        let all =
            self.containers().await.during("list the containers of", &self.settings.namespace)?;
        let ours = all.into_iter().filter(|it| matches!(record::read(it), Kind::Ours(_)));
        Ok(ours.map(|it| it.snapshotter).filter(|it| !it.is_empty()).collect())
    }

    /// Has containerd delete now what was removed, writable layers above all, and waits for it. By itself it does so
    /// some time later, and never when it is ended before.
    pub async fn collect_garbage(&self) -> Result<(), Error> {
        const ID: &str = "evenkeel-collect";
        // Only the deletion of a lease can be waited for.
        self.lease(ID).await?;
        let request = DeleteRequest { id: ID.to_owned(), sync: true };
        let collected = self.link.answer(COLLECT_LIMIT, self.link.leases().delete(request)).await;
        collected
            .unless_missing()
            .map(drop)
            .during("collect the garbage of", self.settings.address.display())
    }

    async fn containers(&self) -> Result<Vec<ContainerRecord>, Fault> {
        let request = ListContainersRequest::default();
        let messages = self
            .link
            .gather(LIST_LIMIT, async { self.link.containers().list_stream(request).await })
            .await?;
        Ok(messages.into_iter().filter_map(|it| it.container).collect())
    }

    async fn leases(&self) -> Result<BTreeSet<String>, Fault> {
        let request = ListRequest { filters: vec![format!("labels.\"{LEASE}\"")] };
        let answer =
            self.link.answer(LIST_LIMIT, async { self.link.leases().list(request).await }).await?;
        Ok(answer.leases.into_iter().map(|it| it.id).collect())
    }

    /// All keys, and those of them that are ours.
    async fn snapshots(&self) -> Result<(BTreeSet<String>, BTreeSet<String>), Fault> {
        let request = ListSnapshotsRequest {
            snapshotter: self.settings.snapshotter.clone(),
            filters: Vec::new(),
        };
        let messages = self
            .link
            .gather(LIST_LIMIT, async { self.link.snapshots().list(request).await })
            .await?;
        let mut all = BTreeSet::new();
        let mut ours = BTreeSet::new();
        for snapshot in messages.into_iter().flat_map(|it| it.info) {
            if snapshot.labels.contains_key(NAME) {
                ours.insert(snapshot.name.clone());
            }
            all.insert(snapshot.name);
        }
        Ok((all, ours))
    }

    async fn container(&self, id: &str) -> Result<Option<ContainerRecord>, Fault> {
        let request = GetContainerRequest { id: id.to_owned() };
        let answer = self
            .link
            .answer(METADATA_LIMIT, self.link.containers().get(request))
            .await
            .unless_missing()?;
        Ok(answer.and_then(|it| it.container))
    }

    async fn look(&self, names: &BTreeSet<String>) -> Result<Objects, Fault> {
        let (containers, listed, leases, (snapshots, ours), records, process) = tokio::try_join!(
            self.containers(),
            self.tasks.list(),
            self.leases(),
            self.snapshots(),
            self.store.records(),
            async { Ok(self.process().await) },
        )?;
        let images = self.store.usable(&records, names, &snapshots).await?;
        let stored_images = self.store.stored(&records).await?;
        let ids: BTreeSet<String> = containers.iter().map(|it| it.id.clone()).collect();
        let is_complete = matches!(listed, Listed::All(_));
        let (mut tasks, everything) = match listed {
            Listed::All(all) => (all.clone(), all),
            // Tasks without a container object can be listed only: the last list has to do.
            Listed::Stalled => (self.tasks.each(&ids).await?, self.tasks.known()),
        };
        let mut objects = Objects {
            leases,
            images,
            stored_images,
            process,
            incomplete: !is_complete,
            ..Objects::default()
        };
        let shown = tasks.keys().chain(everything.keys());
        objects.tasks = shown.filter_map(|id| id.parse().ok()).collect();
        for record in &containers {
            let task = tasks.remove(&record.id).unwrap_or_default();
            match record::read(record) {
                Kind::Ours(mut instance) => {
                    instance.has_snapshot = snapshots.contains(&record.snapshot_key);
                    instance.task = task;
                    objects.containers.push(*instance);
                }
                Kind::Readopted(id) => {
                    objects.orphans.insert(id, task);
                }
                Kind::Foreign => {}
            }
        }
        for (id, task) in everything {
            if !ids.contains(&id)
                && InstanceId::is_one(&id)
                && (!is_complete || self.is_orphan(&id).await?)
                && let Ok(id) = id.parse()
            {
                objects.orphans.insert(id, task);
            }
        }
        for key in ours {
            // A container that was made since the list was taken is no reason to remove its snapshot.
            if !ids.contains(&key) && self.container(&key).await?.is_none() {
                objects.snapshots.insert(key);
            }
        }
        Ok(objects)
    }

    /// Both lists were taken at about the same time only: looks again, at the object first.
    async fn is_orphan(&self, id: &str) -> Result<bool, Fault> {
        Ok(self.container(id).await?.is_none() && self.tasks.listed(id).await? != Task::None)
    }

    async fn lease_is_ours(&self, id: &str) -> Result<bool, Fault> {
        let request = ListRequest { filters: vec![filter("id", id)] };
        let answer = self.link.answer(METADATA_LIMIT, self.link.leases().list(request)).await?;
        Ok(answer.leases.iter().any(|it| it.id == id && it.labels.contains_key(LEASE)))
    }

    async fn prepare(&self, lease: &str, instance: &NewInstance) -> Result<Vec<Mount>, Fault> {
        let link = self.link.under(lease)?;
        let request = PrepareSnapshotRequest {
            snapshotter: self.settings.snapshotter.clone(),
            key: instance.id.to_string(),
            parent: chain_ids(&instance.image.config.diff_ids).pop().unwrap_or_default(),
            labels: record::snapshot_labels(instance),
        };
        let prepare = || {
            link.answer(METADATA_LIMIT, async { link.snapshots().prepare(request.clone()).await })
        };
        match prepare().await {
            Ok(answer) => return Ok(answer.mounts),
            Err(fault) if fault.kind == ErrorKind::Missing => {
                self.store.unpack(lease, &instance.image.digest).await?;
            }
            Err(fault) if fault.kind == ErrorKind::Conflict => {
                let key = instance.id.as_str();
                if let Some(container) = self.container(key).await? {
                    return if record::is_of(&container.labels, instance)
                        && container.snapshot_key == key
                    {
                        self.mounts_of(&instance.id).await
                    } else {
                        Err(Fault::conflict("a container that is not ours has this ID"))
                    };
                }
                // A dead one's writable layer.
                self.drop_snapshot(key).await?;
            }
            Err(fault) => return Err(fault),
        }
        Ok(prepare().await?.mounts)
    }

    async fn mounts_of(&self, id: &InstanceId) -> Result<Vec<Mount>, Fault> {
        let request =
            MountsRequest { snapshotter: self.settings.snapshotter.clone(), key: id.to_string() };
        Ok(self.link.answer(METADATA_LIMIT, self.link.snapshots().mounts(request)).await?.mounts)
    }

    /// Removes a snapshot of ours that no container has.
    async fn drop_snapshot(&self, key: &str) -> Result<(), Fault> {
        let request = StatSnapshotRequest {
            snapshotter: self.settings.snapshotter.clone(),
            key: key.to_owned(),
        };
        let found = self
            .link
            .answer(METADATA_LIMIT, self.link.snapshots().stat(request))
            .await
            .unless_missing()?;
        match found.and_then(|it| it.info) {
            None => Ok(()),
            Some(info) if info.labels.contains_key(NAME) => self.delete_snapshot(key).await,
            Some(_) => Err(Fault::conflict("a snapshot that is not ours has this name")),
        }
    }

    async fn delete_snapshot(&self, key: &str) -> Result<(), Fault> {
        let request = RemoveSnapshotRequest {
            snapshotter: self.settings.snapshotter.clone(),
            key: key.to_owned(),
        };
        let removed = self.link.answer(METADATA_LIMIT, self.link.snapshots().remove(request)).await;
        removed.unless_missing().map(drop)
    }

    /// A container object with a spec that is valid and starts nothing: the real one is written before each start.
    fn record(&self, id: &InstanceId, record: Record) -> Result<ContainerRecord, Fault> {
        let runc_root = self.settings.runc_root.to_str();
        let root = runc_root
            .ok_or_else(|| Fault::refused("the run directory's path is not UTF-8"))?
            .to_owned();
        let options = prost::Message::encode_to_vec(&RuncOptions { root });
        let options = Any { type_url: "containerd.runc.v1.Options".to_owned(), value: options };
        let placeholder = br#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"cwd":"/","args":["false"],"user":{"uid":0,"gid":0}},"linux":{}}"#;
        Ok(ContainerRecord {
            id: id.to_string(),
            labels: record.labels,
            extensions: record.extensions,
            runtime: Some(container::Runtime { name: SHIM.to_owned(), options: Some(options) }),
            spec: Some(Any { type_url: SPEC_TYPE.to_owned(), value: placeholder.to_vec() }),
            snapshotter: self.settings.snapshotter.clone(),
            ..Default::default()
        })
    }

    async fn make(&self, lease: &str, instance: &NewInstance) -> Result<(), Fault> {
        let link = self.link.under(lease)?;
        let record = ContainerRecord {
            image: instance.image.name.clone(),
            snapshot_key: instance.id.to_string(),
            ..self.record(&instance.id, Record::of(instance)?)?
        };
        let request = CreateContainerRequest { container: Some(record) };
        let made =
            link.answer(METADATA_LIMIT, link.containers().create(request)).await.unless_there()?;
        if made.is_some() {
            return Ok(());
        }
        match self.container(instance.id.as_str()).await? {
            Some(there) if record::is_of(&there.labels, instance) => Ok(()),
            _ => Err(Fault::conflict(
                "a container that is not ours, or of another revision, has this ID",
            )),
        }
    }

    async fn change(&self, id: &InstanceId, update: &Update) -> Result<(), Fault> {
        let changed = Record::changed(update)?;
        let mut paths = changed.mask();
        let mut record = ContainerRecord {
            id: id.to_string(),
            labels: changed.labels,
            extensions: changed.extensions,
            ..Default::default()
        };
        if let Some(spec) = &update.spec {
            let value = serde_json::to_vec(spec)
                .map_err(|error| Fault::refused(format!("the spec: {error}")))?;
            record.spec = Some(Any { type_url: SPEC_TYPE.to_owned(), value });
            paths.push("spec".to_owned());
        }
        // Without a mask, everything would be overwritten.
        if paths.is_empty() {
            return Ok(());
        }
        let request = UpdateContainerRequest {
            container: Some(record),
            update_mask: Some(FieldMask { paths }),
        };
        self.link.answer(METADATA_LIMIT, self.link.containers().update(request)).await.map(drop)
    }

    async fn make_task(&self, id: &InstanceId, log: &LogTarget) -> Result<u32, Fault> {
        let remembered = self.remembered_mounts().remove(id);
        let rootfs = match remembered {
            Some(mounts) => mounts,
            None => self.mounts_of(id).await?,
        };
        let output = self.output(log);
        let request = CreateTaskRequest {
            container_id: id.to_string(),
            rootfs,
            stdout: output.clone(),
            stderr: output,
            ..Default::default()
        };
        let made = self
            .link
            .answer(CREATE_LIMIT, self.link.tasks().create(request))
            .await
            .unless_there()?;
        match made {
            Some(made) => Ok(made.pid),
            None => match self.tasks.listed(id.as_str()).await? {
                Task::Created { pid } => Ok(pid),
                Task::None
                | Task::Running { .. }
                | Task::Paused { .. }
                | Task::Stopped { .. }
                | Task::Unknown => {
                    Err(Fault::conflict("it has a task already, which is not a new one"))
                }
            },
        }
    }

    /// What the shim does with the output. More than one parameter would arrive in any order.
    fn output(&self, log: &LogTarget) -> String {
        match log {
            LogTarget::None => String::new(),
            LogTarget::Files { directory, max_size, max_files } => {
                let program = escape(self.settings.log_program.as_os_str().as_bytes());
                let directory = escape(directory.as_os_str().as_bytes());
                format!("binary://{program}?log-pipe={directory}:{max_size}:{max_files}")
            }
        }
    }

    /// What *not found* means: also the answer for a living task whose container object is gone.
    async fn gone(&self, id: &InstanceId) -> Result<(), Fault> {
        match self.tasks.listed(id.as_str()).await? {
            Task::None | Task::Stopped { .. } => Ok(()),
            Task::Created { .. } | Task::Running { .. } | Task::Paused { .. } | Task::Unknown => {
                Err(objectless())
            }
        }
    }

    async fn unmake(&self, id: &InstanceId) -> Result<(), Fault> {
        let has_task = || Fault::refused("it still has a task; that has to be deleted first");
        if self.tasks.get(id.as_str()).await?.is_some() {
            return Err(has_task());
        }
        let request = DeleteContainerRequest { id: id.to_string() };
        let deleted = self
            .link
            .answer(METADATA_LIMIT, self.link.containers().delete(request))
            .await
            .unless_missing()?;
        // Without an object, the question before it has found no task either.
        if deleted.is_none() && self.tasks.listed(id.as_str()).await? != Task::None {
            return Err(has_task());
        }
        self.remembered_mounts().remove(id);
        self.delete_snapshot(id.as_str()).await
    }

    async fn put_back(&self, id: &InstanceId) -> Result<(), Fault> {
        let (name, revision) = id.as_str().rsplit_once('-').unwrap_or((id.as_str(), ""));
        let labels = [(READOPTED, "true"), (NAME, name), (REVISION, revision)];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let record =
            self.record(id, Record { labels: HashMap::from(labels), ..Record::default() })?;
        let request = CreateContainerRequest { container: Some(record) };
        let made = self
            .link
            .answer(METADATA_LIMIT, self.link.containers().create(request))
            .await
            .unless_there()?;
        if made.is_some() {
            return Ok(());
        }
        match self.container(id.as_str()).await?.as_ref().map(record::read) {
            Some(Kind::Foreign) => Err(Fault::conflict("a container that is not ours has this ID")),
            Some(Kind::Ours(_) | Kind::Readopted(_)) | None => Ok(()),
        }
    }

    async fn await_end(&self, id: &InstanceId, limit: Duration) -> Result<Option<Task>, Fault> {
        let request = WaitRequest { container_id: id.to_string(), ..Default::default() };
        let mut client = self.link.tasks();
        match tokio::time::timeout(limit, client.wait(request)).await {
            Err(_) => Ok(None),
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                Ok(Some(Task::Stopped {
                    code: answer.exit_status,
                    at: tasks::time(answer.exited_at),
                }))
            }
            Ok(Err(status)) => match self.link.fault(&status) {
                fault if fault.kind == ErrorKind::Missing => {
                    self.gone(id).await.map(|()| Some(Task::None))
                }
                fault => Err(fault),
            },
        }
    }

    fn remembered_mounts(&self) -> std::sync::MutexGuard<'_, BTreeMap<InstanceId, Vec<Mount>>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runtime for Containerd {
    async fn observe(&self, images: &BTreeSet<String>) -> Result<Objects, Error> {
        Box::pin(self.look(images)).await.during(verb::OBSERVE, self.link.address().display())
    }

    async fn put_blob(&self, lease: &str, blob: Blob<'_>) -> Result<(), Error> {
        let digest = blob.digest.clone();
        self.store.write(lease, blob).await.during(verb::PUT_BLOB, digest)
    }

    async fn open_blob(
        &self,
        lease: &str,
        blob: &NewBlob,
    ) -> Result<Option<Box<dyn BlobWriter>>, Error> {
        let opened = self.store.open(lease, blob).await.during(verb::OPEN_BLOB, &blob.digest)?;
        Ok(opened.map(|it| Box::new(it) as Box<dyn BlobWriter>))
    }

    async fn unpack_layer(&self, lease: &str, layer: &NewLayer) -> Result<(), Error> {
        let unpacked = self.store.unpack_layer(lease, layer).await;
        unpacked.during(verb::UNPACK_LAYER, &layer.blob.digest)
    }

    async fn put_image(&self, lease: &str, image: &NewImage) -> Result<(), Error> {
        self.store.record(lease, image).await.during(verb::PUT_IMAGE, &image.name)
    }

    async fn mark_image(&self, name: &str, digest: &str, mark: &Mark) -> Result<(), Error> {
        self.store.mark(name, digest, mark).await.during(verb::MARK_IMAGE, name)
    }

    async fn remove_image(&self, name: &str, digest: &str) -> Result<(), Error> {
        self.store.forget(name, digest).await.during(verb::REMOVE_IMAGE, name)
    }

    async fn lease(&self, id: &str) -> Result<(), Error> {
        let lease = async {
            let labels = HashMap::from([(LEASE.to_owned(), id.to_owned())]);
            let request = CreateRequest { id: id.to_owned(), labels };
            let made = self
                .link
                .answer(METADATA_LIMIT, self.link.leases().create(request))
                .await
                .unless_there()?;
            if made.is_some() || self.lease_is_ours(id).await? {
                Ok(())
            } else {
                Err(Fault::conflict("a lease that is not ours has this ID"))
            }
        };
        lease.await.during(verb::LEASE, id)
    }

    async fn remove_lease(&self, id: &str) -> Result<(), Error> {
        let request = DeleteRequest { id: id.to_owned(), sync: false };
        let removed = self.link.answer(METADATA_LIMIT, self.link.leases().delete(request)).await;
        removed.unless_missing().map(drop).during(verb::REMOVE_LEASE, id)
    }

    async fn prepare_snapshot(&self, lease: &str, instance: &NewInstance) -> Result<(), Error> {
        let mounts =
            self.prepare(lease, instance).await.during(verb::PREPARE_SNAPSHOT, &instance.id)?;
        let mut remembered = self.remembered_mounts();
        if remembered.len() < MOUNTS_LIMIT {
            remembered.insert(instance.id.clone(), mounts);
        }
        Ok(())
    }

    async fn create(&self, lease: &str, instance: &NewInstance) -> Result<(), Error> {
        self.make(lease, instance).await.during(verb::CREATE, &instance.id)
    }

    async fn update(&self, id: &InstanceId, update: &Update) -> Result<(), Error> {
        self.change(id, update).await.during(verb::UPDATE, id)
    }

    async fn create_task(&self, id: &InstanceId, log: &LogTarget) -> Result<u32, Error> {
        self.make_task(id, log).await.during(verb::CREATE_TASK, id)
    }

    async fn start_task(&self, id: &InstanceId) -> Result<(), Error> {
        let start = async {
            let request = StartRequest { container_id: id.to_string(), ..Default::default() };
            let Err(fault) = self.link.answer(TASK_LIMIT, self.link.tasks().start(request)).await
            else {
                return Ok(());
            };
            // Refused as well when it runs already.
            match fault.kind {
                ErrorKind::Refused => match self.tasks.get(id.as_str()).await? {
                    Some(Task::Running { .. }) => Ok(()),
                    _ => Err(fault),
                },
                ErrorKind::Unreachable | ErrorKind::Conflict | ErrorKind::Missing => Err(fault),
            }
        };
        start.await.during(verb::START_TASK, id)
    }

    async fn resume_task(&self, id: &InstanceId) -> Result<(), Error> {
        let resume = async {
            let request = ResumeTaskRequest { container_id: id.to_string() };
            let Err(fault) = self.link.answer(TASK_LIMIT, self.link.tasks().resume(request)).await
            else {
                return Ok(());
            };
            match fault.kind {
                ErrorKind::Refused => match self.tasks.get(id.as_str()).await? {
                    Some(Task::Running { .. }) => Ok(()),
                    _ => Err(fault),
                },
                ErrorKind::Unreachable | ErrorKind::Conflict | ErrorKind::Missing => Err(fault),
            }
        };
        resume.await.during(verb::RESUME_TASK, id)
    }

    async fn kill(&self, id: &InstanceId, signal: Signal, all: bool) -> Result<(), Error> {
        let kill = async {
            let signal = u32::from(signal.number());
            let request =
                KillRequest { container_id: id.to_string(), exec_id: String::new(), signal, all };
            match self
                .link
                .answer(TASK_LIMIT, self.link.tasks().kill(request))
                .await
                .unless_missing()?
            {
                Some(()) => Ok(()),
                None => self.gone(id).await,
            }
        };
        kill.await.during(verb::KILL, id)
    }

    async fn wait(&self, id: &InstanceId, limit: Duration) -> Result<Option<Task>, Error> {
        self.await_end(id, limit).await.during(verb::WAIT, id)
    }

    async fn delete_task(&self, id: &InstanceId) -> Result<(), Error> {
        let delete = async {
            let request = DeleteTaskRequest { container_id: id.to_string() };
            match self
                .link
                .answer(TASK_LIMIT, self.link.tasks().delete(request))
                .await
                .unless_missing()?
            {
                Some(_) => Ok(()),
                None if self.tasks.listed(id.as_str()).await? == Task::None => Ok(()),
                None => Err(objectless()),
            }
        };
        delete.await.during(verb::DELETE_TASK, id)
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), Error> {
        self.unmake(id).await.during(verb::REMOVE, id)
    }

    async fn clear(&self, id: &InstanceId) -> Result<(), Error> {
        let clear = async {
            if self.tasks.get(id.as_str()).await?.is_some() {
                return Err(Fault::refused("it still has a task; that has to be deleted first"));
            }
            self.remembered_mounts().remove(id);
            self.drop_snapshot(id.as_str()).await
        };
        clear.await.during(verb::CLEAR, id)
    }

    async fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        let remove = async {
            if self.container(key).await?.is_some() {
                return Err(Fault::refused("a container has it"));
            }
            self.drop_snapshot(key).await
        };
        remove.await.during(verb::REMOVE_SNAPSHOT, key)
    }

    async fn readopt(&self, id: &InstanceId) -> Result<(), Error> {
        self.put_back(id).await.during(verb::READOPT, id)
    }

    async fn exec(
        &self,
        id: &InstanceId,
        key: &str,
        exec: &Exec,
        streams: &Streams,
    ) -> Result<u32, Error> {
        let start = async {
            let request = GetContainerRequest { id: id.to_string() };
            let container =
                self.link.answer(METADATA_LIMIT, self.link.containers().get(request)).await?;
            let spec = container.container.and_then(|it| it.spec);
            execs::start(&self.link, id.as_str(), key, exec, spec, streams).await
        };
        start.await.during(verb::EXEC, id)
    }

    async fn wait_exec(
        &self,
        id: &InstanceId,
        key: &str,
        limit: Duration,
    ) -> Result<Option<u32>, Error> {
        execs::wait(&self.link, id.as_str(), key, limit).await.during(verb::WAIT_EXEC, id)
    }

    async fn tell_exec(&self, id: &InstanceId, key: &str, tell: Tell) -> Result<(), Error> {
        let told = match tell {
            Tell::Signal(signal) => {
                execs::kill(&self.link, id.as_str(), key, signal.number().into()).await
            }
            Tell::Resize(columns, rows) => {
                execs::resize(&self.link, id.as_str(), key, (columns, rows)).await
            }
            Tell::EndOfInput => execs::close_stdin(&self.link, id.as_str(), key).await,
        };
        told.during(verb::TELL_EXEC, id)
    }

    async fn delete_exec(&self, id: &InstanceId, key: &str) -> Result<(), Error> {
        execs::delete(&self.link, id.as_str(), key).await.during(verb::DELETE_EXEC, id)
    }

    fn hints(&self) -> watch::Receiver<u64> {
        self.events.hints(&self.link, &self.settings.namespace)
    }
}

fn objectless() -> Fault {
    Fault::refused(
        "its container object is gone and its task is not; the object has to be put back",
    )
}

/// The one of runc's options that we set; the message is not among containerd's own services.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct RuncOptions {
    #[prost(string, tag = "7")]
    root: String,
}

/// Percent-encodes everything but what is plain in a path and in a query alike.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(*byte));
            }
            _ => write!(text, "%{byte:02X}").expect("a string takes everything"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_survives_the_address_of_the_log() {
        assert_eq!(
            escape(b"/var/lib/even keel/\xff?a=b&c:d%+"),
            "/var/lib/even%20keel/%FF%3Fa%3Db%26c%3Ad%25%2B"
        );
    }

    #[test]
    fn only_ids_as_ours_are_taken_for_instances() {
        assert!(InstanceId::is_one("web-0123456789"));
        assert!(!InstanceId::is_one("web"));
        assert!(!InstanceId::is_one("web-012345678"));
        assert!(!InstanceId::is_one("-0123456789"));
        assert!(!InstanceId::is_one("web-012345678x"));
    }

    #[test]
    fn the_option_for_runc_is_its_seventh() {
        let bytes = prost::Message::encode_to_vec(&RuncOptions { root: "ab".to_owned() });
        assert_eq!(bytes, [7 << 3 | 2, 2, b'a', b'b']);
    }
}
