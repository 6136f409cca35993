//! The runtime that is a model of containerd in memory.
//!
//! Runs no process and needs no time: a task ends when a test says so or a signal ends it. It is held to the real one
//! by the same contract tests, and has verbs of its own by which a test makes things happen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci_spec::runtime::Spec;
use prost::bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    Blob, BlobWriter, Container, Error, ErrorKind, Exec, LogTarget, Mark, NewBlob, NewImage,
    NewInstance, NewLayer, Objects, Runtime, Streams, Tell, Update, Written, verb,
};
use crate::content::Digest;
use crate::observed::{Came, Image, ImagePlace, StoredImage, Stray, Task};
use crate::workload::{InstanceId, Name, Signal};

/// The first process of a model; far from those of the system that the tests run on.
const FIRST_PID: u32 = 10_000_000;

/// A containerd that exists in memory only. Clones share it.
#[derive(Clone)]
pub struct MemoryRuntime {
    state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
}

/// A live process of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    pub id: InstanceId,
    /// What it was created from: says where its namespaces and mounts come from.
    pub spec: Spec,
}

/// What the model as a whole does to those who ask it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    Well,
    /// Every verb fails.
    Refuses,
    /// Who looks waits.
    Hangs,
}

struct State {
    containers: BTreeMap<InstanceId, Object>,
    tasks: BTreeMap<InstanceId, Running>,
    /// What is there of instances whose tasks are forgotten; stopped ones are in the way of the next start all the same.
    lost: BTreeMap<InstanceId, Running>,
    /// Processes beside the tasks' own, with their codes once they have ended.
    execs: BTreeMap<(InstanceId, String), Option<u32>>,
    snapshots: BTreeMap<String, Snapshot>,
    leases: BTreeSet<String>,
    images: BTreeMap<String, Image>,
    /// The records of those that are ours.
    records: BTreeMap<String, StoredImage>,
    blobs: BTreeSet<String>,
    /// What has come so far of blobs, and under which lease.
    partial: BTreeMap<String, (String, Vec<u8>)>,
    /// The layers that were unpacked for themselves, by their chains.
    unpacked: BTreeSet<String>,
    answers: Answers,
    /// Programs that end by themselves as soon as they start.
    endings: BTreeMap<Name, u32>,
    /// Instances that end by SIGKILL only.
    stubborn: BTreeSet<InstanceId>,
    /// Instances whose main process does not end before those beside it do.
    clinging: BTreeSet<InstanceId>,
    /// Whose runtime refuses every signal.
    unreachable_by_signals: BTreeSet<InstanceId>,
    /// `None`: the call panics.
    failures: VecDeque<(&'static str, Option<ErrorKind>)>,
    silent: bool,
    pace: Duration,
    calls: Vec<(Instant, String)>,
    looks: usize,
    next_pid: u32,
    /// A pid that is free is used again at once, as a busy box may do it.
    reuses_pids: bool,
    /// Seconds of a clock that moves with each end of a task.
    /// When the model was made, by tokio's clock: what its wall clock counts from.
    began: Instant,
}

/// A container object.
enum Object {
    Ours(Box<Record>),
    Readopted,
    Foreign,
}

struct Record {
    container: Container,
    spec: Option<Box<Spec>>,
}

struct Running {
    task: Task,
    spec: Spec,
    name: Option<Name>,
    hung: bool,
    /// Signals that came while it was paused.
    pending: Option<Signal>,
}

#[derive(Default)]
struct Snapshot {
    soiled: bool,
}

impl Default for MemoryRuntime {
    fn default() -> Self {
        let state = State {
            containers: BTreeMap::new(),
            tasks: BTreeMap::new(),
            lost: BTreeMap::new(),
            execs: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            leases: BTreeSet::new(),
            images: BTreeMap::new(),
            records: BTreeMap::new(),
            blobs: BTreeSet::new(),
            partial: BTreeMap::new(),
            unpacked: BTreeSet::new(),
            answers: Answers::Well,
            endings: BTreeMap::new(),
            stubborn: BTreeSet::new(),
            clinging: BTreeSet::new(),
            unreachable_by_signals: BTreeSet::new(),
            failures: VecDeque::new(),
            silent: false,
            pace: Duration::ZERO,
            calls: Vec::new(),
            looks: 0,
            next_pid: FIRST_PID,
            reuses_pids: false,
            began: Instant::now(),
        };
        Self { state: Arc::new(Mutex::new(state)), changes: watch::Sender::new(0) }
    }
}

/// What a test makes happen, and looks at.
impl MemoryRuntime {
    /// Puts an image into the store, unpacked, as somebody else does.
    pub fn add_image(&self, image: Image) {
        let image = Image { place: ImagePlace::Store, ..image };
        self.change(|state| {
            state.blobs.insert(image.digest.clone());
            state.images.insert(image.name.clone(), image);
        });
    }

    pub fn remove_image(&self, name: &str) {
        self.change(|state| {
            state.images.remove(name);
            state.records.remove(name);
        });
    }

    /// Puts an image of ours into the store, unpacked and of that size.
    pub fn add_own_image(&self, image: Image, size: u64) {
        let record = StoredImage {
            digest: image.digest.clone(),
            came: Some(Came::Pulled),
            size,
            pinned: false,
            unused: None,
        };
        self.change(|state| state.records.insert(image.name.clone(), record));
        self.add_image(image);
    }

    /// Lets the next call of one of [`verb`]'s fail, without an effect. Repeated, as many calls fail.
    pub fn fail_next(&self, operation: &'static str, kind: ErrorKind) {
        self.state().failures.push_back((operation, Some(kind)));
    }

    /// Lets the next call of one of [`verb`]'s panic, as a bug would.
    pub fn panic_next(&self, operation: &'static str) {
        self.state().failures.push_back((operation, None));
    }

    /// How long the making of a snapshot, and that of a task, takes from now on.
    pub fn set_pace(&self, pace: Duration) {
        self.state().pace = pace;
    }

    /// While silent nothing hints at changes, as when events are lost.
    pub fn set_silent(&self, silent: bool) {
        self.state().silent = silent;
    }

    /// Ends the task of an instance with this code.
    pub fn exit(&self, id: &InstanceId, code: u32) {
        self.change(|state| state.end(id, code));
    }

    /// Ends a process beside the program of an instance with this code.
    pub fn exit_exec(&self, id: &InstanceId, key: &str, code: u32) {
        self.change(|state| state.end_exec(id, key, code));
    }

    /// From now on the program of that workload ends with this code as soon as it starts; `None` undoes it.
    pub fn exit_on_start(&self, name: &Name, code: Option<u32>) {
        match code {
            Some(code) => self.state().endings.insert(name.clone(), code),
            None => self.state().endings.remove(name),
        };
    }

    /// From now on that instance ends by SIGKILL only.
    pub fn ignore_signals(&self, id: &InstanceId) {
        self.state().stubborn.insert(id.clone());
    }

    /// Signals reach all again, and end them.
    pub fn heed_signals(&self) {
        let mut state = self.state();
        state.stubborn.clear();
        state.clinging.clear();
        state.unreachable_by_signals.clear();
    }

    /// From now on that instance ends only if all its processes are killed, as when its main one waits in the kernel
    /// for another; if it ignores signals too, then nothing that is sent to it through its runtime ends it.
    pub fn cling(&self, id: &InstanceId) {
        self.state().clinging.insert(id.clone());
    }

    /// From now on no signal can be sent to that instance, as when runc has lost its state of it.
    pub fn refuse_signals(&self, id: &InstanceId) {
        self.state().unreachable_by_signals.insert(id.clone());
    }

    /// Stops all processes of a task for a moment, as somebody else may.
    pub fn pause(&self, id: &InstanceId) {
        self.change(|state| {
            if let Some(it) = state.tasks.get_mut(id)
                && let Task::Running { pid } = it.task
            {
                it.task = Task::Paused { pid };
            }
        });
    }

    /// From now on the pid of a process that has ended is that of the next one.
    pub fn reuse_pids(&self) {
        self.state().reuses_pids = true;
    }

    /// Lets a task's shim hang, or answer again.
    pub fn hang(&self, id: &InstanceId, hung: bool) {
        self.change(|state| {
            if let Some(it) = state.tasks.get_mut(id) {
                it.hung = hung;
            }
        });
    }

    /// A restart of containerd 1.7 or newer: tasks that have ended are forgotten.
    pub fn forget_tasks(&self) {
        self.change(|state| {
            state.tasks.retain(|_, it| !matches!(it.task, Task::Stopped { .. }));
            let tasks = &state.tasks;
            state.execs.retain(|key, _| tasks.contains_key(&key.0));
        });
    }

    /// All processes are gone and containerd knows of none.
    pub fn reboot(&self) {
        self.change(|state| {
            state.tasks.clear();
            state.execs.clear();
            state.lost.clear();
        });
    }

    /// Forgets an instance, its task and its snapshot while its process lives on.
    pub fn lose(&self, id: &InstanceId) {
        self.change(|state| {
            state.lost.extend(state.tasks.remove_entry(id));
            state.containers.remove(id);
            state.snapshots.remove(id.as_str());
        });
    }

    /// Forgets all tasks while their processes live on, as a containerd whose state directory is gone.
    pub fn lose_tasks(&self) {
        self.change(State::lose_tasks);
    }

    /// Forgets all tasks, containers, snapshots and leases of ours while the processes live on, as a containerd whose
    /// data is gone, or another one at the same place. The images are there again.
    pub fn lose_everything(&self) {
        self.change(|state| {
            state.lose_tasks();
            state.containers.retain(|_, it| matches!(it, Object::Foreign));
            state.snapshots.clear();
            state.leases.clear();
        });
    }

    /// What is there of instances whose tasks were lost.
    pub fn strays(&self) -> BTreeMap<InstanceId, Stray> {
        let pids = |it: &Running| match it.task {
            Task::Created { pid } | Task::Running { pid } | Task::Paused { pid } => [pid].into(),
            Task::None | Task::Stopped { .. } | Task::Unknown => BTreeSet::new(),
        };
        let state = self.state();
        let strays = state.lost.iter();
        strays.map(|(id, it)| (id.clone(), Stray { pids: pids(it), unsure: false })).collect()
    }

    /// Tells a lost process, as the kernel does it.
    pub fn signal_stray(&self, id: &InstanceId, signal: Signal) {
        let mut state = self.state();
        let ends = signal == Signal::KILL || !state.stubborn.contains(id);
        let at = state.wall_clock();
        if let Some(it) = state.lost.get_mut(id).filter(|_| ends) {
            it.task = Task::Stopped { code: 128 + u32::from(signal.number()), at };
        }
    }

    /// Removes what is in the way of its next start.
    pub fn remove_stray(&self, id: &InstanceId) {
        self.state().lost.remove(id);
    }

    /// While unreachable every verb fails; what runs goes on running.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.state().answers = if unreachable { Answers::Refuses } else { Answers::Well };
        if !unreachable {
            self.hint();
        }
    }

    /// While it hangs, nobody who looks gets an answer.
    pub fn set_hanging(&self, hanging: bool) {
        self.change(|state| {
            state.answers = if hanging { Answers::Hangs } else { Answers::Well };
        });
    }

    /// Removes a container object behind our back; its task and its snapshot stay.
    pub fn lose_container(&self, id: &InstanceId) {
        self.change(|state| {
            state.containers.remove(id);
        });
    }

    /// Puts a container object of somebody else into our namespace.
    pub fn add_foreign(&self, id: &InstanceId) {
        self.change(|state| {
            state.containers.insert(id.clone(), Object::Foreign);
        });
    }

    pub fn has_foreign(&self, id: &InstanceId) -> bool {
        matches!(self.state().containers.get(id), Some(Object::Foreign))
    }

    /// Leaves a trace in an instance's writable layer, to tell it from a new one.
    pub fn soil(&self, id: &InstanceId) {
        if let Some(snapshot) = self.state().snapshots.get_mut(id.as_str()) {
            snapshot.soiled = true;
        }
    }

    pub fn is_soiled(&self, id: &InstanceId) -> bool {
        self.state().snapshots.get(id.as_str()).is_some_and(|it| it.soiled)
    }

    /// The verbs that were called since the last time this was asked, each with its subject: `create task web-…`.
    /// Without [`Runtime::observe`], which changes nothing.
    pub fn calls(&self) -> Vec<String> {
        self.timed_calls().into_iter().map(|it| it.1).collect()
    }

    /// The same, with the time of each by tokio's clock, which a test can pause.
    pub fn timed_calls(&self) -> Vec<(Instant, String)> {
        std::mem::take(&mut self.state().calls)
    }

    /// How often [`Runtime::observe`] was called since the last time this was asked.
    pub fn looks(&self) -> usize {
        std::mem::take(&mut self.state().looks)
    }

    /// A live process, created or running.
    pub fn process(&self, pid: u32) -> Option<Process> {
        let state = self.state();
        let (id, it) = state.tasks.iter().chain(&state.lost).find(|(_, it)| match it.task {
            Task::Created { pid: own } | Task::Running { pid: own } | Task::Paused { pid: own } => {
                own == pid
            }
            Task::None | Task::Stopped { .. } | Task::Unknown => false,
        })?;
        Some(Process { id: id.clone(), spec: it.spec.clone() })
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.hint();
        result
    }

    /// Tells of a change, as an event of containerd does; whatever run it is about.
    pub fn hint(&self) {
        if !self.state().silent {
            self.changes.send_modify(|n| *n += 1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panics elsewhere has failed anyway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What takes its time on a real machine.
    async fn take_time(&self) {
        let pace = self.state().pace;
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
    }

    /// Asks without a trace.
    fn look<T>(
        &self,
        operation: &'static str,
        subject: &str,
        look: impl FnOnce(&mut State) -> Result<T, Refusal>,
    ) -> Result<T, Error> {
        let mut state = self.state();
        let failure = state.failures.iter().position(|(failing, _)| *failing == operation);
        let result = if state.answers == Answers::Refuses {
            Err(Refusal(ErrorKind::Unreachable, "the model is switched off"))
        } else if let Some((_, kind)) = failure.and_then(|n| state.failures.remove(n)) {
            let kind = kind.unwrap_or_else(|| panic!("a test wants `{operation}` to panic"));
            Err(Refusal(kind, "a test wants it"))
        } else {
            look(&mut state)
        };
        result.map_err(|refusal| Error {
            operation,
            subject: subject.to_owned(),
            kind: refusal.0,
            cause: Some(Box::new(refusal)),
        })
    }

    /// Notes the call and counts a change.
    fn perform<T>(
        &self,
        operation: &'static str,
        subject: &str,
        effect: impl FnOnce(&mut State) -> Result<T, Refusal>,
    ) -> Result<T, Error> {
        self.state().calls.push((Instant::now(), format!("{operation} {subject}")));
        let result = self.look(operation, subject, effect)?;
        self.hint();
        Ok(result)
    }
}

/// A blob of the model that is being written.
struct MemoryWriter {
    runtime: MemoryRuntime,
    blob: NewBlob,
    offset: u64,
}

impl MemoryWriter {
    fn perform(
        &self,
        effect: impl FnOnce(&mut Vec<u8>) -> Result<bool, Refusal>,
    ) -> Result<(), Error> {
        let digest = self.blob.digest.as_str();
        self.runtime.look(verb::OPEN_BLOB, digest, |state| {
            let Some((lease, mut content)) = state.partial.remove(digest) else {
                return Err(Refusal(ErrorKind::Missing, "nobody writes it any more"));
            };
            if effect(&mut content)? {
                state.blobs.insert(digest.to_owned());
            } else {
                state.partial.insert(digest.to_owned(), (lease, content));
            }
            Ok(())
        })
    }
}

impl BlobWriter for MemoryWriter {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn write(&mut self, piece: Bytes) -> Written<'_> {
        let written = self.perform(|content| {
            content.extend_from_slice(&piece);
            if u64::try_from(content.len()).unwrap_or(u64::MAX) > self.blob.size {
                return Err(OTHER_CONTENT);
            }
            Ok(false)
        });
        if written.is_ok() {
            self.offset += u64::try_from(piece.len()).unwrap_or(u64::MAX);
        }
        Box::pin(std::future::ready(written))
    }

    fn commit(self: Box<Self>) -> Written<'static> {
        let is_whole = self.offset >= self.blob.size;
        let committed = self.perform(|content| match Digest::of(content) == self.blob.digest {
            true => Ok(true),
            false if is_whole => Err(OTHER_CONTENT),
            false => Ok(false),
        });
        let committed = committed.and_then(|()| {
            let digest = self.blob.digest.as_str();
            self.runtime.look(verb::OPEN_BLOB, digest, |state| {
                if state.blobs.contains(digest) { Ok(()) } else { Err(WRONG_CONTENT) }
            })
        });
        Box::pin(std::future::ready(committed))
    }
}

/// 2026-01-01T01:00:00Z, when the clock of a host in memory begins.
const BEGINNING_MS: i64 = 1_767_229_200_000;

/// Why the model refuses.
#[derive(Debug, thiserror::Error)]
#[error("{1}")]
struct Refusal(ErrorKind, &'static str);

const HUNG: Refusal = Refusal(ErrorKind::Unreachable, "its shim does not answer");
const OBJECTLESS: Refusal =
    Refusal(ErrorKind::Refused, "its container object is gone and its task is not");
const OTHER_CONTENT: Refusal =
    Refusal(ErrorKind::Conflict, "its content is not what its digest says");
const WRONG_CONTENT: Refusal =
    Refusal(ErrorKind::Refused, "its content is not what its digest says");
const NO_LEASE: Refusal = Refusal(ErrorKind::Missing, "there is no such lease");
const NO_CONTAINER: Refusal = Refusal(ErrorKind::Missing, "there is no such container");
const NO_TASK: Refusal = Refusal(ErrorKind::Missing, "it has no task");
const NOT_OURS: Refusal = Refusal(
    ErrorKind::Conflict,
    "a container that is not ours, or of another revision, has this ID",
);

impl State {
    fn lose_tasks(&mut self) {
        self.execs.clear();
        let tasks = std::mem::take(&mut self.tasks);
        let is_there = |it: &Running| !matches!(it.task, Task::Stopped { .. });
        self.lost.extend(tasks.into_iter().filter(|(_, it)| is_there(it)));
    }

    fn end(&mut self, id: &InstanceId, code: u32) {
        let at = self.wall_clock();
        if let Some(it) = self.tasks.get_mut(id)
            && !matches!(it.task, Task::Stopped { .. })
        {
            it.task = Task::Stopped { code, at };
            // They are in its pid namespace.
            let of = self.execs.iter_mut().filter(|(key, end)| key.0 == *id && end.is_none());
            of.for_each(|(_, end)| *end = Some(137));
        }
    }

    /// That of a host in memory that was made at the same time and has never been rebooted.
    fn wall_clock(&self) -> String {
        let millis = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        let time = jiff::Timestamp::from_millisecond(BEGINNING_MS.saturating_add(millis));
        format!("{:.3}", time.unwrap_or_default())
    }

    fn end_exec(&mut self, id: &InstanceId, key: &str, code: u32) {
        if let Some(end) = self.execs.get_mut(&(id.clone(), key.to_owned())) {
            end.get_or_insert(code);
        }
    }

    fn new_pid(&mut self) -> u32 {
        let is_used = |pid| {
            self.tasks.values().chain(self.lost.values()).any(|it| match it.task {
                Task::Created { pid: used }
                | Task::Running { pid: used }
                | Task::Paused { pid: used } => used == pid,
                Task::None | Task::Stopped { .. } | Task::Unknown => false,
            })
        };
        if self.reuses_pids
            && let Some(free) = (FIRST_PID..self.next_pid).find(|pid| !is_used(*pid))
        {
            return free;
        }
        self.next_pid += 1;
        self.next_pid - 1
    }

    fn task(&self, id: &InstanceId) -> Task {
        match self.tasks.get(id) {
            None => Task::None,
            Some(it) if it.hung => Task::Unknown,
            Some(it) => it.task.clone(),
        }
    }

    /// The record of an image, if it points at that; refused if it is somebody else's.
    fn own_record(
        &mut self,
        name: &str,
        digest: &str,
    ) -> Result<Option<&mut StoredImage>, Refusal> {
        match (self.images.get(name), self.records.get_mut(name)) {
            (Some(image), _) if image.digest != digest => Ok(None),
            (Some(_), None) => Err(NOT_OURS),
            (_, record) => Ok(record),
        }
    }

    fn check_lease(&self, lease: &str) -> Result<(), Refusal> {
        if self.leases.contains(lease) { Ok(()) } else { Err(NO_LEASE) }
    }

    /// A task that has a container object and answers. `None`: there is no task at all.
    fn reach(&mut self, id: &InstanceId) -> Result<Option<&mut Running>, Refusal> {
        let has_object = self.containers.contains_key(id);
        match self.tasks.get_mut(id) {
            None => Ok(None),
            Some(_) if !has_object => Err(OBJECTLESS),
            Some(it) if it.hung => Err(HUNG),
            Some(it) => Ok(Some(it)),
        }
    }

    fn signal(&mut self, id: &InstanceId, signal: Signal, all: bool) {
        let number = signal.number();
        let reaches = if self.clinging.contains(id) {
            signal == Signal::KILL && all && !self.stubborn.contains(id)
        } else {
            signal == Signal::KILL || !self.stubborn.contains(id)
        };
        // Stopped, continued, window size and the like end nothing.
        let ends = !matches!(number, 0 | 17..=23 | 28) && reaches;
        let Some(it) = self.tasks.get_mut(id) else { return };
        match it.task {
            Task::Paused { .. } if signal != Signal::KILL => it.pending = Some(signal),
            Task::Created { .. } | Task::Running { .. } | Task::Paused { .. } if ends => {
                self.end(id, 128 + u32::from(number));
            }
            Task::None
            | Task::Created { .. }
            | Task::Running { .. }
            | Task::Paused { .. }
            | Task::Stopped { .. }
            | Task::Unknown => {}
        }
    }
}

impl Runtime for MemoryRuntime {
    async fn observe(&self, images: &BTreeSet<String>) -> Result<Objects, Error> {
        self.state().looks += 1;
        let mut changes = self.changes.subscribe();
        while self.state().answers == Answers::Hangs {
            // The sender is ours, so it lives.
            changes.changed().await.ok();
        }
        self.look(verb::OBSERVE, "the model", |state| {
            let tasks = state.tasks.keys().cloned().collect();
            let mut objects = Objects { leases: state.leases.clone(), tasks, ..Objects::default() };
            for (id, object) in &state.containers {
                match object {
                    Object::Ours(record) => {
                        let mut container = record.container.clone();
                        container.has_snapshot = state.snapshots.contains_key(id.as_str());
                        container.task = state.task(id);
                        objects.containers.push(container);
                    }
                    Object::Readopted => {
                        objects.orphans.insert(id.clone(), state.task(id));
                    }
                    Object::Foreign => {}
                }
            }
            for id in state.tasks.keys().filter(|id| !state.containers.contains_key(*id)) {
                objects.orphans.insert(id.clone(), state.task(id));
            }
            let has_container = |key: &str| state.containers.keys().any(|id| id.as_str() == key);
            objects.snapshots =
                state.snapshots.keys().filter(|key| !has_container(key)).cloned().collect();
            let asked = images.iter().filter_map(|name| state.images.get(name));
            objects.images = asked.map(|image| (image.name.clone(), image.clone())).collect();
            let stored = |image: &Image| {
                let foreign = || StoredImage {
                    digest: image.digest.clone(),
                    came: None,
                    size: 0,
                    pinned: false,
                    unused: None,
                };
                state.records.get(&image.name).cloned().unwrap_or_else(foreign)
            };
            objects.stored_images =
                state.images.values().map(|it| (it.name.clone(), stored(it))).collect();
            Ok(objects)
        })
    }

    async fn put_blob(&self, lease: &str, blob: Blob<'_>) -> Result<(), Error> {
        let Blob { digest, size, labels: _, content } = blob;
        self.perform(verb::PUT_BLOB, &digest, |state| {
            state.check_lease(lease)?;
            if state.blobs.contains(&digest) {
                return Ok(());
            }
            let mut hasher = Sha256::new();
            let mut buffer = vec![0; 1 << 16];
            let mut length = 0;
            loop {
                let n = content
                    .read(&mut buffer)
                    .map_err(|_| Refusal(ErrorKind::Refused, "it cannot be read"))?;
                if n == 0 {
                    break;
                }
                hasher.update(&buffer[..n]);
                length += u64::try_from(n).unwrap_or(u64::MAX);
            }
            if length != size || Digest::finish(hasher).as_str() != digest {
                return Err(WRONG_CONTENT);
            }
            state.blobs.insert(digest.clone());
            Ok(())
        })
    }

    async fn open_blob(
        &self,
        lease: &str,
        blob: &NewBlob,
    ) -> Result<Option<Box<dyn BlobWriter>>, Error> {
        self.perform(verb::OPEN_BLOB, blob.digest.as_str(), |state| {
            state.check_lease(lease)?;
            if state.blobs.contains(blob.digest.as_str()) {
                return Ok(None);
            }
            let (lease, digest) = (lease.to_owned(), blob.digest.to_string());
            let partial = state.partial.entry(digest).or_insert((lease, Vec::new()));
            let offset = u64::try_from(partial.1.len()).unwrap_or(u64::MAX);
            let (runtime, blob) = (self.clone(), blob.clone());
            Ok(Some(Box::new(MemoryWriter { runtime, blob, offset }) as Box<dyn BlobWriter>))
        })
    }

    async fn unpack_layer(&self, lease: &str, layer: &NewLayer) -> Result<(), Error> {
        self.perform(verb::UNPACK_LAYER, layer.blob.digest.as_str(), |state| {
            state.check_lease(lease)?;
            if !state.blobs.contains(layer.blob.digest.as_str()) {
                return Err(Refusal(ErrorKind::Missing, "its content is not there"));
            }
            if layer.parent.as_ref().is_some_and(|it| !state.unpacked.contains(it)) {
                return Err(Refusal(ErrorKind::Missing, "what is below it is not there"));
            }
            state.unpacked.insert(layer.chain_id.clone());
            Ok(())
        })
    }

    async fn put_image(&self, lease: &str, image: &NewImage) -> Result<(), Error> {
        self.perform(verb::PUT_IMAGE, &image.name, |state| {
            state.check_lease(lease)?;
            if !state.blobs.contains(&image.digest) {
                return Err(Refusal(ErrorKind::Missing, "its content is not there"));
            }
            let NewImage { name, digest, media_type: _, size, config, came } = image.clone();
            // Somebody else's stays theirs, whatever it points at.
            if !state.images.contains_key(&name) || state.records.contains_key(&name) {
                let pinned = state.records.get(&name).is_some_and(|it| it.pinned);
                let (digest, came) = (digest.clone(), Some(came));
                let record = StoredImage { digest, came, size, pinned, unused: None };
                state.records.insert(name.clone(), record);
            }
            state
                .images
                .insert(name.clone(), Image { name, digest, config, place: ImagePlace::Store });
            Ok(())
        })
    }

    async fn mark_image(&self, name: &str, digest: &str, mark: &Mark) -> Result<(), Error> {
        self.perform(verb::MARK_IMAGE, name, |state| {
            let record = state.own_record(name, digest)?;
            let record = record.ok_or(Refusal(ErrorKind::Missing, "there is no such image"))?;
            match mark.clone() {
                Mark::Unused(since) => record.unused = Some(since),
                Mark::Used => record.unused = None,
                Mark::Pinned => record.pinned = true,
                Mark::Unpinned => record.pinned = false,
            }
            Ok(())
        })
    }

    async fn remove_image(&self, name: &str, digest: &str) -> Result<(), Error> {
        self.perform(verb::REMOVE_IMAGE, name, |state| {
            if state.own_record(name, digest)?.is_some() {
                state.records.remove(name);
                state.images.remove(name);
                // Others may still need it.
                if state.images.values().all(|it| it.digest != digest) {
                    state.blobs.remove(digest);
                }
            }
            Ok(())
        })
    }

    async fn lease(&self, id: &str) -> Result<(), Error> {
        self.perform(verb::LEASE, id, |state| {
            state.leases.insert(id.to_owned());
            Ok(())
        })
    }

    async fn remove_lease(&self, id: &str) -> Result<(), Error> {
        self.perform(verb::REMOVE_LEASE, id, |state| {
            state.leases.remove(id);
            state.partial.retain(|_, it| it.0 != id);
            Ok(())
        })
    }

    async fn prepare_snapshot(&self, lease: &str, instance: &NewInstance) -> Result<(), Error> {
        let made = self.perform(verb::PREPARE_SNAPSHOT, instance.id.as_str(), |state| {
            state.check_lease(lease)?;
            let key = instance.id.as_str();
            if state.snapshots.contains_key(key) {
                match state.containers.get(&instance.id) {
                    Some(Object::Ours(it)) if it.container.revision == instance.revision => {
                        return Ok(());
                    }
                    Some(_) => return Err(NOT_OURS),
                    None => {}
                }
            }
            if !state.images.values().any(|it| it.digest == instance.image.digest) {
                return Err(Refusal(ErrorKind::Missing, "its image is not there"));
            }
            state.snapshots.insert(key.to_owned(), Snapshot::default());
            Ok(())
        });
        self.take_time().await;
        made
    }

    async fn create(&self, lease: &str, instance: &NewInstance) -> Result<(), Error> {
        self.perform(verb::CREATE, instance.id.as_str(), |state| {
            state.check_lease(lease)?;
            match state.containers.get(&instance.id) {
                Some(Object::Ours(it)) if it.container.revision == instance.revision => {
                    return Ok(());
                }
                Some(_) => return Err(NOT_OURS),
                None => {}
            }
            let NewInstance { id, revision, origin, workload, defaults, image } = instance.clone();
            let container = Container {
                id: id.clone(),
                name: workload.name.clone(),
                revision,
                origin,
                workload: Some(workload),
                defaults,
                image: Image { place: ImagePlace::Store, ..image },
                has_snapshot: false,
                run: None,
                end: None,
                ending: None,
                task: Task::None,
            };
            state.containers.insert(id, Object::Ours(Box::new(Record { container, spec: None })));
            Ok(())
        })
    }

    async fn update(&self, id: &InstanceId, update: &Update) -> Result<(), Error> {
        self.perform(verb::UPDATE, id.as_str(), |state| {
            let Some(Object::Ours(record)) = state.containers.get_mut(id) else {
                return Err(NO_CONTAINER);
            };
            let Update { origin, workload, run, end, ending, spec } = update.clone();
            let container = &mut record.container;
            if let Some(origin) = origin {
                container.origin = origin;
            }
            container.workload = workload.or_else(|| container.workload.take());
            if run.is_some() {
                container.ending = None;
            }
            if let Some(ending) = ending {
                container.ending = Some(ending).filter(|it| *it > 0);
            }
            container.run = run.or_else(|| container.run.take());
            container.end = end.or_else(|| container.end.take());
            record.spec = spec.or_else(|| record.spec.take());
            Ok(())
        })
    }

    async fn create_task(&self, id: &InstanceId, _: &LogTarget) -> Result<u32, Error> {
        let made = self.perform(verb::CREATE_TASK, id.as_str(), |state| {
            let (name, spec) = match state.containers.get(id) {
                None => return Err(NO_CONTAINER),
                Some(Object::Ours(it)) => {
                    (Some(it.container.name.clone()), it.spec.as_deref().cloned())
                }
                Some(Object::Readopted | Object::Foreign) => (None, None),
            };
            match state.task(id) {
                Task::None => {}
                Task::Created { pid } => return Ok(pid),
                Task::Running { .. }
                | Task::Paused { .. }
                | Task::Stopped { .. }
                | Task::Unknown => {
                    return Err(Refusal(
                        ErrorKind::Conflict,
                        "it has a task already, which is not a new one",
                    ));
                }
            }
            if !state.snapshots.contains_key(id.as_str()) {
                return Err(Refusal(ErrorKind::Missing, "it has no snapshot"));
            }
            // runc finds the one that it still knows.
            if state.lost.contains_key(id) {
                return Err(Refusal(
                    ErrorKind::Refused,
                    "runc create failed: container with given ID already exists",
                ));
            }
            let pid = state.new_pid();
            let task = Task::Created { pid };
            let running =
                Running { task, spec: spec.unwrap_or_default(), name, hung: false, pending: None };
            state.tasks.insert(id.clone(), running);
            Ok(pid)
        });
        self.take_time().await;
        made
    }

    async fn start_task(&self, id: &InstanceId) -> Result<(), Error> {
        self.perform(verb::START_TASK, id.as_str(), |state| {
            let task = state.reach(id)?.ok_or(NO_TASK)?;
            match task.task {
                Task::Created { pid } => task.task = Task::Running { pid },
                Task::Running { .. } => return Ok(()),
                Task::None | Task::Paused { .. } | Task::Stopped { .. } | Task::Unknown => {
                    return Err(Refusal(ErrorKind::Refused, "its task is not a new one"));
                }
            }
            let ending = task.name.clone().and_then(|name| state.endings.get(&name).copied());
            if let Some(code) = ending {
                state.end(id, code);
            }
            Ok(())
        })
    }

    async fn resume_task(&self, id: &InstanceId) -> Result<(), Error> {
        self.perform(verb::RESUME_TASK, id.as_str(), |state| {
            let task = state.reach(id)?.ok_or(NO_TASK)?;
            match task.task {
                Task::Paused { pid } => task.task = Task::Running { pid },
                Task::Running { .. } => return Ok(()),
                Task::None | Task::Created { .. } | Task::Stopped { .. } | Task::Unknown => {
                    return Err(Refusal(ErrorKind::Refused, "its task is not paused"));
                }
            }
            if let Some(signal) = task.pending.take() {
                state.signal(id, signal, false);
            }
            Ok(())
        })
    }

    async fn kill(&self, id: &InstanceId, signal: Signal, all: bool) -> Result<(), Error> {
        self.perform(verb::KILL, id.as_str(), |state| {
            if !matches!(state.task(id), Task::None | Task::Stopped { .. }) {
                state.reach(id)?;
                if state.unreachable_by_signals.contains(id) {
                    return Err(Refusal(ErrorKind::Refused, "a test wants it"));
                }
                state.signal(id, signal, all);
            }
            Ok(())
        })
    }

    async fn wait(&self, id: &InstanceId, limit: Duration) -> Result<Option<Task>, Error> {
        let mut changes = self.changes.subscribe();
        self.state().calls.push((Instant::now(), format!("{} {id}", verb::WAIT)));
        let ended = async {
            loop {
                let ended = self.look(verb::WAIT, id.as_str(), |state| match state.task(id) {
                    // A hung one is waited for like one that runs.
                    Task::Created { .. }
                    | Task::Running { .. }
                    | Task::Paused { .. }
                    | Task::Unknown => {
                        if state.containers.contains_key(id) {
                            Ok(None)
                        } else {
                            Err(OBJECTLESS)
                        }
                    }
                    ended @ (Task::None | Task::Stopped { .. }) => Ok(Some(ended)),
                });
                if !matches!(ended, Ok(None)) {
                    return ended;
                }
                // The sender lives as long as we do.
                changes.changed().await.expect("the model is borrowed");
            }
        };
        tokio::time::timeout(limit, ended).await.unwrap_or(Ok(None))
    }

    async fn delete_task(&self, id: &InstanceId) -> Result<(), Error> {
        self.perform(verb::DELETE_TASK, id.as_str(), |state| {
            match state.reach(id)?.map(|it| &it.task) {
                Some(Task::Running { .. } | Task::Paused { .. }) => {
                    return Err(Refusal(ErrorKind::Refused, "it still runs"));
                }
                None | Some(Task::None | Task::Created { .. } | Task::Stopped { .. } | Task::Unknown) => {}
            }
            state.tasks.remove(id);
            state.execs.retain(|key, _| key.0 != *id);
            Ok(())
        })
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), Error> {
        self.perform(verb::REMOVE, id.as_str(), |state| {
            if state.tasks.contains_key(id) {
                return Err(Refusal(
                    ErrorKind::Refused,
                    "it still has a task; that has to be deleted first",
                ));
            }
            state.containers.remove(id);
            state.snapshots.remove(id.as_str());
            Ok(())
        })
    }

    async fn clear(&self, id: &InstanceId) -> Result<(), Error> {
        self.perform(verb::CLEAR, id.as_str(), |state| {
            if state.tasks.contains_key(id) {
                return Err(Refusal(ErrorKind::Refused, "it still has a task"));
            }
            state.snapshots.remove(id.as_str());
            Ok(())
        })
    }

    async fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        self.perform(verb::REMOVE_SNAPSHOT, key, |state| {
            if state.containers.keys().any(|id| id.as_str() == key) {
                return Err(Refusal(ErrorKind::Refused, "a container has it"));
            }
            state.snapshots.remove(key);
            Ok(())
        })
    }

    async fn readopt(&self, id: &InstanceId) -> Result<(), Error> {
        self.perform(verb::READOPT, id.as_str(), |state| match state.containers.get(id) {
            Some(Object::Foreign) => Err(NOT_OURS),
            Some(Object::Ours(_) | Object::Readopted) => Ok(()),
            None => {
                state.containers.insert(id.clone(), Object::Readopted);
                Ok(())
            }
        })
    }

    async fn exec(
        &self,
        id: &InstanceId,
        key: &str,
        exec: &Exec,
        _: &Streams,
    ) -> Result<u32, Error> {
        self.perform(verb::EXEC, id.as_str(), |state| {
            if !state.containers.contains_key(id) {
                return Err(NO_CONTAINER);
            }
            match state.reach(id)?.ok_or(NO_TASK)?.task {
                Task::Running { .. } => {}
                Task::None
                | Task::Created { .. }
                | Task::Paused { .. }
                | Task::Stopped { .. }
                | Task::Unknown => return Err(Refusal(ErrorKind::Refused, "it does not run")),
            }
            if exec.args.is_empty() {
                return Err(Refusal(ErrorKind::Refused, "there is no program to run"));
            }
            let key = (id.clone(), key.to_owned());
            if state.execs.contains_key(&key) {
                return Err(Refusal(ErrorKind::Conflict, "there is a process of that key"));
            }
            state.execs.insert(key, None);
            let pid = state.next_pid;
            state.next_pid += 1;
            Ok(pid)
        })
    }

    async fn wait_exec(
        &self,
        id: &InstanceId,
        key: &str,
        limit: Duration,
    ) -> Result<Option<u32>, Error> {
        let mut changes = self.changes.subscribe();
        let ended = async {
            loop {
                let ended = self.look(verb::WAIT_EXEC, id.as_str(), |state| {
                    let found = state.execs.get(&(id.clone(), key.to_owned())).copied();
                    found.ok_or(Refusal(ErrorKind::Missing, "there is no such process"))
                });
                if !matches!(ended, Ok(None)) {
                    return ended;
                }
                changes.changed().await.expect("the model is borrowed");
            }
        };
        tokio::time::timeout(limit, ended).await.unwrap_or(Ok(None))
    }

    async fn tell_exec(&self, id: &InstanceId, key: &str, tell: Tell) -> Result<(), Error> {
        self.perform(verb::TELL_EXEC, id.as_str(), |state| {
            match tell {
                Tell::Signal(signal) => {
                    state.end_exec(id, key, 128 + u32::from(signal.number()));
                }
                Tell::Resize(..) | Tell::EndOfInput => {}
            }
            Ok(())
        })
    }

    async fn delete_exec(&self, id: &InstanceId, key: &str) -> Result<(), Error> {
        self.perform(verb::DELETE_EXEC, id.as_str(), |state| {
            state.execs.remove(&(id.clone(), key.to_owned()));
            Ok(())
        })
    }

    fn hints(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
