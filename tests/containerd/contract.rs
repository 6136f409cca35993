//! What every runtime keeps: one list of cases, run on the model in memory and on each real containerd.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use evenkeel::content::{Descriptor, Digest, stack};
use evenkeel::desired::{BootTime, Origin, Source};
use evenkeel::observed::{Came, End, Image, ImagePlace, Run, StoredImage, Task, Unused};
use evenkeel::runtime::{
    Blob, BlobWriter, Container, Error, ErrorKind, Exec, LogTarget, Mark, NewBlob, NewImage,
    NewInstance, Objects, Runtime, Streams, Tell, Update, verb,
};
use evenkeel::workload::{InstanceId, IpcDefaults, IpcMode, Signal, Workload};
use oci_spec::runtime::Spec;
use prost::bytes::Bytes;

mod containerd;
mod memory;
mod real;
mod silent;

/// Everything that a test waits for happens within milliseconds; this is for a busy machine.
const SOON: Duration = Duration::from_mins(1);

/// A runtime, and the means to make happen to it what the seam has no verb for.
trait Harness {
    type Runtime: Runtime;

    fn runtime(&self) -> &Self::Runtime;

    /// In the store, unpacked; its program `sh` waits for [`Harness::exit`].
    fn image(&self) -> Image;

    /// The spec of an instance whose program runs until it is told to exit, and ends with 143 on SIGTERM.
    fn spec(&self, id: &InstanceId) -> Spec;

    /// Waits until the program of a started task listens to signals.
    async fn listens(&self, pid: u32);

    async fn exit(&self, id: &InstanceId, code: u32);

    /// A process for beside the program, that runs until [`Harness::exit_exec`].
    fn exec(&self) -> Exec;

    async fn exit_exec(&self, id: &InstanceId, key: &str, code: u32);

    fn is_alive(&self, pid: u32) -> bool;

    /// Ends containerd at once; [`Harness::start`] brings it back.
    async fn stop(&mut self);

    async fn start(&mut self);

    /// Whether that makes it forget the tasks that have ended.
    fn forgets_tasks(&self) -> bool;

    /// Lets garbage collection take everything that nothing refers to.
    async fn collect(&self);

    /// Records the content of [`Harness::image`] under another name, as somebody else.
    async fn add_foreign_image(&self, name: &str);

    async fn pause(&self, id: &InstanceId);

    /// Lets the shim stop answering, or answer again.
    async fn hang(&self, id: &InstanceId, hung: bool);

    async fn lose_container(&self, id: &InstanceId);

    async fn add_foreign(&self, id: &InstanceId);

    async fn has_foreign(&self, id: &InstanceId) -> bool;

    /// The keys of the labels that containerd itself sees.
    async fn labels(&self, id: &InstanceId) -> BTreeSet<String>;

    /// Leaves a trace in the writable layer.
    async fn soil(&self, id: &InstanceId);

    async fn is_soiled(&self, id: &InstanceId) -> bool;
}

/// Makes a module that runs every case.
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        /// Every case on the model.
        mod on_memory {
            $(
                #[tokio::test]
                async fn $case() {
                    super::$case(&mut super::memory::Memory::default()).await;
                }
            )*
        }

        /// Every case on every containerd that was chosen.
        mod on_containerd {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    for engine in crate::rig::Engine::all() {
                        println!("on containerd {engine}");
                        super::$case(&mut super::real::Real::start(&engine).await).await;
                    }
                }
            )*
        }
    };
}

cases!(
    a_new_runtime_has_nothing_of_ours,
    an_instance_is_seen_as_it_was_made,
    an_origin_too_long_for_a_label_is_kept,
    labels_of_the_user_are_kept_and_are_no_labels_of_containerd,
    creating_twice_is_ok,
    another_revision_under_the_same_id_is_a_conflict,
    an_update_changes_what_it_names_and_nothing_else,
    an_update_of_what_is_not_there_is_missing,
    a_task_is_created_then_runs_and_keeps_its_pid,
    creating_a_task_twice_gives_the_same_process,
    a_second_task_beside_a_running_one_is_a_conflict,
    a_task_of_no_container_is_missing,
    starting_a_running_task_is_ok,
    a_created_task_can_be_killed,
    deleting_a_created_task_ends_its_process,
    a_running_task_is_not_deleted,
    a_container_with_a_task_is_not_removed,
    a_cleared_container_keeps_its_object_and_can_be_prepared_again,
    removing_twice_is_ok,
    a_signal_to_what_is_gone_is_ok,
    deleting_a_task_that_is_gone_is_ok,
    the_stop_signal_reaches_the_program,
    waiting_gives_up_at_its_limit,
    waiting_returns_how_the_task_ended,
    waiting_for_no_task_says_that_there_is_none,
    how_a_task_ended_is_seen_until_it_is_deleted,
    a_paused_task_is_seen_and_can_be_resumed,
    an_end_is_hinted,
    what_changes_after_an_observation_is_hinted_after_it,
    a_restarted_instance_keeps_its_writable_layer,
    what_was_recorded_outlives_a_restart_of_containerd,
    running_tasks_outlive_containerd,
    a_dead_containerd_is_unreachable_and_comes_back_with_a_hint,
    a_leftover_snapshot_is_listed_and_not_used_again,
    the_snapshot_of_a_container_is_neither_replaced_nor_removed_alone,
    leases_are_listed_until_they_are_removed,
    nothing_is_made_under_a_lease_that_is_gone,
    what_was_made_outlives_its_lease,
    only_the_images_asked_for_are_found,
    an_image_of_ours_is_listed_with_what_is_written_on_it,
    an_image_of_somebody_else_is_listed_and_left_alone,
    an_image_that_is_recorded_anew_is_ours_and_used_and_stays_pinned,
    an_image_is_removed_as_long_as_its_name_points_at_it,
    a_container_outlives_the_removal_of_its_image,
    an_instance_of_a_missing_image_cannot_be_prepared,
    a_layer_is_unpacked_on_those_below_it,
    a_blob_that_is_not_what_it_says_is_refused,
    a_blob_can_be_stored_twice,
    a_blob_that_comes_in_pieces_goes_on_where_it_was_left_off,
    what_came_of_a_blob_is_thrown_away_if_it_can_never_be_it,
    a_task_without_its_container_is_an_orphan_and_can_be_removed,
    a_container_of_somebody_else_is_left_alone,
    a_hung_shim_makes_its_own_task_unknown_and_no_other,
    a_process_beside_the_program_ends_with_its_code_and_is_deleted,
    a_process_beside_the_program_is_ended_by_a_signal_and_by_its_deletion,
    a_process_needs_a_task_that_runs_and_a_key_of_its_own,
    a_process_ends_with_the_program_beside_it,
);

const LEASE: &str = "evenkeel-test";

fn workload(name: &str) -> Workload {
    let json = serde_json::json!({ "name": name, "spec": { "image": "busybox" } });
    serde_json::from_value(json).unwrap()
}

fn new_instance(harness: &impl Harness, name: &str) -> NewInstance {
    let workload = workload(name);
    let image = harness.image();
    let revision = workload.revision(&image.digest);
    NewInstance {
        id: InstanceId::new(&workload.name, &revision),
        revision,
        origin: Origin {
            source: Source::new(Path::new("/"), Path::new("/etc/manifests")),
            file: PathBuf::from("a#b/web.yaml"),
            document: 2,
        },
        workload,
        defaults: IpcDefaults { mode: IpcMode::Shareable, shm_size: "1000".parse().unwrap() },
        image,
    }
}

/// Makes an instance as the controller would.
async fn create(harness: &impl Harness, instance: &NewInstance) {
    let runtime = harness.runtime();
    runtime.lease(LEASE).await.unwrap();
    runtime.prepare_snapshot(LEASE, instance).await.unwrap();
    runtime.create(LEASE, instance).await.unwrap();
    runtime.remove_lease(LEASE).await.unwrap();
    let spec = Some(Box::new(harness.spec(&instance.id)));
    runtime.update(&instance.id, &Update { spec, ..Update::default() }).await.unwrap();
}

async fn create_task(harness: &impl Harness, id: &InstanceId) -> u32 {
    harness.runtime().create_task(id, &LogTarget::None).await.unwrap()
}

/// Makes an instance and runs it.
async fn run(harness: &impl Harness, name: &str) -> (NewInstance, u32) {
    let instance = new_instance(harness, name);
    create(harness, &instance).await;
    let pid = create_task(harness, &instance.id).await;
    harness.runtime().start_task(&instance.id).await.unwrap();
    harness.listens(pid).await;
    (instance, pid)
}

async fn observe(harness: &impl Harness) -> Objects {
    let found = harness.runtime().observe(&BTreeSet::new()).await.unwrap();
    // Its own process is nothing of ours, and there is none where it is a model; and there are the harness's images.
    Objects { process: None, stored_images: BTreeMap::new(), ..found }
}

/// The only container.
async fn container(harness: &impl Harness) -> Container {
    let mut containers = observe(harness).await.containers;
    assert_eq!(containers.len(), 1, "{containers:?}");
    containers.remove(0)
}

fn kind<T: Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind
}

/// Looks until it is so: at each hint, and otherwise ten times a second.
async fn until<H: Harness>(harness: &H, what: &str, is_so: impl Fn(&Objects) -> bool) -> Objects {
    let mut hints = harness.runtime().hints();
    let looking = async {
        loop {
            hints.mark_unchanged();
            let objects = observe(harness).await;
            if is_so(&objects) {
                return objects;
            }
            drop(tokio::time::timeout(Duration::from_millis(100), hints.changed()).await);
        }
    };
    let Ok(objects) = tokio::time::timeout(SOON, looking).await else {
        panic!("{what}: not within {SOON:?}; last: {:?}", observe(harness).await)
    };
    objects
}

async fn until_dead(harness: &impl Harness, pid: u32) {
    let dead = async {
        while harness.is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, dead).await.expect("the process ends");
}

async fn a_new_runtime_has_nothing_of_ours(harness: &mut impl Harness) {
    assert_eq!(observe(harness).await, Objects::default());
}

async fn an_instance_is_seen_as_it_was_made(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    create(harness, &instance).await;
    let NewInstance { id, revision, origin, workload, defaults, image } = instance;
    let expected = Container {
        id,
        name: workload.name.clone(),
        revision,
        origin,
        workload: Some(workload),
        defaults,
        image,
        has_snapshot: true,
        run: None,
        end: None,
        ending: None,
        task: Task::None,
    };
    assert_eq!(container(harness).await, expected);
    let objects = observe(harness).await;
    assert_eq!((objects.snapshots.len(), objects.leases.len(), objects.orphans.len()), (0, 0, 0));
}

async fn an_origin_too_long_for_a_label_is_kept(harness: &mut impl Harness) {
    let mut instance = new_instance(harness, "web");
    instance.origin.file = PathBuf::from(format!("{}/web.yaml", "long".repeat(1100)));
    create(harness, &instance).await;
    assert_eq!(container(harness).await.origin, instance.origin);

    let short = Origin { file: PathBuf::from("web.yaml"), ..instance.origin.clone() };
    let update = |origin: &Origin| Update { origin: Some(origin.clone()), ..Update::default() };
    harness.runtime().update(&instance.id, &update(&short)).await.unwrap();
    assert_eq!(container(harness).await.origin, short);
    harness.runtime().update(&instance.id, &update(&instance.origin)).await.unwrap();
    assert_eq!(container(harness).await.origin, instance.origin);
}

async fn labels_of_the_user_are_kept_and_are_no_labels_of_containerd(harness: &mut impl Harness) {
    let mut instance = new_instance(harness, "web");
    instance
        .workload
        .labels
        .insert("containerd.io/restart.status".to_owned(), "running".to_owned());
    instance.workload.annotations.insert("long".to_owned(), "x".repeat(100_000));
    create(harness, &instance).await;
    assert_eq!(container(harness).await.workload, Some(instance.workload));
    let labels = harness.labels(&instance.id).await;
    assert!(labels.iter().all(|key| key.starts_with("evenkeel/")), "{labels:?}");
}

async fn creating_twice_is_ok(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    create(harness, &instance).await;
    let before = container(harness).await;
    create(harness, &instance).await;
    assert_eq!(container(harness).await, before);
}

async fn another_revision_under_the_same_id_is_a_conflict(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    create(harness, &instance).await;
    let other =
        NewInstance { revision: workload("other").revision("sha256:x"), ..instance.clone() };
    harness.runtime().lease(LEASE).await.unwrap();
    assert_eq!(kind(harness.runtime().create(LEASE, &other).await), ErrorKind::Conflict);
    assert_eq!(kind(harness.runtime().prepare_snapshot(LEASE, &other).await), ErrorKind::Conflict);
    assert_eq!(container(harness).await.revision, instance.revision);
}

async fn an_update_changes_what_it_names_and_nothing_else(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    create(harness, &instance).await;
    let mut expected = container(harness).await;

    let run = Run {
        n: 1,
        order: 2,
        boot: "b".to_owned(),
        at: BootTime(Duration::from_secs(3)),
        started: "then".to_owned(),
        image_unchecked: None,
    };
    let end = End {
        n: 1,
        code: 3,
        reason: "exited".to_owned(),
        at: "now".to_owned(),
        lasted_ms: 5,
        ..End::default()
    };
    let mut workload = instance.workload.clone();
    workload.annotations.insert("a".to_owned(), "b".to_owned());
    let origin = Origin { document: 7, ..instance.origin.clone() };
    let updates = [
        Update { run: Some(run.clone()), ..Update::default() },
        Update { end: Some(end.clone()), ..Update::default() },
        Update { workload: Some(workload.clone()), ..Update::default() },
        Update { origin: Some(origin.clone()), ..Update::default() },
        Update { ending: Some(1), ..Update::default() },
        Update::default(),
        Update { ending: Some(0), ..Update::default() },
        Update { ending: Some(1), ..Update::default() },
        // Another run is not the one that was to end.
        Update { run: Some(run.clone()), ..Update::default() },
    ];
    for (n, update) in updates.iter().enumerate() {
        harness.runtime().update(&instance.id, update).await.unwrap();
        match n {
            0 => expected.run = Some(run.clone()),
            1 => expected.end = Some(end.clone()),
            2 => expected.workload = Some(workload.clone()),
            3 => expected.origin = origin.clone(),
            4 | 7 => expected.ending = Some(1),
            6 | 8 => expected.ending = None,
            _ => {}
        }
        assert_eq!(container(harness).await, expected);
    }
}

async fn an_update_of_what_is_not_there_is_missing(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    let update = Update { origin: Some(instance.origin), ..Update::default() };
    let error = harness.runtime().update(&instance.id, &update).await.unwrap_err();
    assert_eq!((error.kind, error.operation), (ErrorKind::Missing, verb::UPDATE));
    assert_eq!(error.subject, instance.id.as_str());
}

async fn a_task_is_created_then_runs_and_keeps_its_pid(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    create(harness, &instance).await;
    let pid = create_task(harness, &instance.id).await;
    assert_eq!(container(harness).await.task, Task::Created { pid });
    assert!(harness.is_alive(pid));
    harness.runtime().start_task(&instance.id).await.unwrap();
    assert_eq!(container(harness).await.task, Task::Running { pid });
    assert!(harness.is_alive(pid));
}

async fn creating_a_task_twice_gives_the_same_process(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    create(harness, &instance).await;
    let pid = create_task(harness, &instance.id).await;
    assert_eq!(create_task(harness, &instance.id).await, pid);
    assert!(harness.is_alive(pid));
}

async fn a_second_task_beside_a_running_one_is_a_conflict(harness: &mut impl Harness) {
    let (instance, pid) = run(harness, "web").await;
    assert_eq!(
        kind(harness.runtime().create_task(&instance.id, &LogTarget::None).await),
        ErrorKind::Conflict
    );
    assert_eq!(container(harness).await.task, Task::Running { pid });
    assert!(harness.is_alive(pid));
}

async fn a_task_of_no_container_is_missing(harness: &mut impl Harness) {
    let id = new_instance(harness, "web").id;
    assert_eq!(
        kind(harness.runtime().create_task(&id, &LogTarget::None).await),
        ErrorKind::Missing
    );
    assert_eq!(kind(harness.runtime().start_task(&id).await), ErrorKind::Missing);
    assert_eq!(kind(harness.runtime().resume_task(&id).await), ErrorKind::Missing);
}

async fn starting_a_running_task_is_ok(harness: &mut impl Harness) {
    let (instance, pid) = run(harness, "web").await;
    harness.runtime().start_task(&instance.id).await.unwrap();
    harness.runtime().resume_task(&instance.id).await.unwrap();
    assert_eq!(container(harness).await.task, Task::Running { pid });
}

async fn a_created_task_can_be_killed(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    create(harness, &instance).await;
    let pid = create_task(harness, &instance.id).await;
    harness.runtime().kill(&instance.id, Signal::KILL, false).await.unwrap();
    let ended = harness.runtime().wait(&instance.id, SOON).await.unwrap();
    assert!(matches!(ended, Some(Task::Stopped { code: 137, .. })), "{ended:?}");
    harness.runtime().delete_task(&instance.id).await.unwrap();
    until_dead(harness, pid).await;
    assert_eq!(container(harness).await.task, Task::None);
}

async fn deleting_a_created_task_ends_its_process(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    create(harness, &instance).await;
    let pid = create_task(harness, &instance.id).await;
    harness.runtime().delete_task(&instance.id).await.unwrap();
    until_dead(harness, pid).await;
    assert_eq!(container(harness).await.task, Task::None);
    // And it can be created again.
    create_task(harness, &instance.id).await;
}

async fn a_running_task_is_not_deleted(harness: &mut impl Harness) {
    let (instance, pid) = run(harness, "web").await;
    assert_eq!(kind(harness.runtime().delete_task(&instance.id).await), ErrorKind::Refused);
    assert_eq!(container(harness).await.task, Task::Running { pid });
    assert!(harness.is_alive(pid));
}

async fn a_container_with_a_task_is_not_removed(harness: &mut impl Harness) {
    let (instance, pid) = run(harness, "web").await;
    let id = &instance.id;
    assert_eq!(kind(harness.runtime().remove(id).await), ErrorKind::Refused);
    assert_eq!(container(harness).await.task, Task::Running { pid });
    harness.runtime().kill(id, Signal::KILL, true).await.unwrap();
    harness.runtime().wait(id, SOON).await.unwrap();
    assert_eq!(kind(harness.runtime().remove(id).await), ErrorKind::Refused);
    harness.runtime().delete_task(id).await.unwrap();
    harness.runtime().remove(id).await.unwrap();
    assert_eq!(observe(harness).await, Objects::default());
}

async fn a_cleared_container_keeps_its_object_and_can_be_prepared_again(
    harness: &mut impl Harness,
) {
    let (instance, _) = run(harness, "web").await;
    let runtime = harness.runtime();
    assert_eq!(kind(runtime.clear(&instance.id).await), ErrorKind::Refused);
    harness.exit(&instance.id, 3).await;
    until(harness, "it ended", |it| matches!(it.containers[0].task, Task::Stopped { .. })).await;
    let end = End { n: 1, code: 3, reason: "exited".to_owned(), ..End::default() };
    let update = Update { end: Some(end.clone()), ..Update::default() };
    runtime.update(&instance.id, &update).await.unwrap();
    runtime.delete_task(&instance.id).await.unwrap();
    for _ in 0..2 {
        runtime.clear(&instance.id).await.unwrap();
        let left = container(harness).await;
        assert_eq!(
            (left.has_snapshot, left.end, left.task),
            (false, Some(end.clone()), Task::None)
        );
        assert!(observe(harness).await.snapshots.is_empty());
    }
    runtime.lease(LEASE).await.unwrap();
    runtime.prepare_snapshot(LEASE, &instance).await.unwrap();
    runtime.remove_lease(LEASE).await.unwrap();
    assert!(container(harness).await.has_snapshot);
    let pid = create_task(harness, &instance.id).await;
    runtime.start_task(&instance.id).await.unwrap();
    harness.listens(pid).await;
    assert!(!harness.is_soiled(&instance.id).await);
}

async fn removing_twice_is_ok(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    create(harness, &instance).await;
    harness.runtime().remove(&instance.id).await.unwrap();
    harness.runtime().remove(&instance.id).await.unwrap();
    assert_eq!(observe(harness).await, Objects::default());
}

async fn a_signal_to_what_is_gone_is_ok(harness: &mut impl Harness) {
    let (instance, _) = run(harness, "web").await;
    let id = &instance.id;
    harness.exit(id, 0).await;
    harness.runtime().wait(id, SOON).await.unwrap();
    for all in [false, true] {
        harness.runtime().kill(id, Signal::KILL, all).await.unwrap();
    }
    harness.runtime().delete_task(id).await.unwrap();
    harness.runtime().kill(id, Signal::TERM, false).await.unwrap();
    harness.runtime().remove(id).await.unwrap();
    harness.runtime().kill(id, Signal::TERM, false).await.unwrap();
}

async fn deleting_a_task_that_is_gone_is_ok(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    harness.runtime().delete_task(&instance.id).await.unwrap();
    create(harness, &instance).await;
    harness.runtime().delete_task(&instance.id).await.unwrap();
}

async fn the_stop_signal_reaches_the_program(harness: &mut impl Harness) {
    let (instance, pid) = run(harness, "web").await;
    harness.runtime().kill(&instance.id, Signal::TERM, false).await.unwrap();
    let ended = harness.runtime().wait(&instance.id, SOON).await.unwrap();
    assert!(matches!(ended, Some(Task::Stopped { code: 143, .. })), "{ended:?}");
    until_dead(harness, pid).await;
}

async fn waiting_gives_up_at_its_limit(harness: &mut impl Harness) {
    let (instance, pid) = run(harness, "web").await;
    assert_eq!(
        harness.runtime().wait(&instance.id, Duration::from_millis(50)).await.unwrap(),
        None
    );
    assert_eq!(container(harness).await.task, Task::Running { pid });
}

async fn waiting_returns_how_the_task_ended(harness: &mut impl Harness) {
    let (instance, _) = run(harness, "web").await;
    let id = &instance.id;
    let (ended, ()) = tokio::join!(harness.runtime().wait(id, SOON), harness.exit(id, 7));
    let Some(Task::Stopped { code: 7, at }) = ended.unwrap() else { panic!("not stopped with 7") };
    at.parse::<jiff::Timestamp>().unwrap();
    // Also when it is over.
    let ended = harness.runtime().wait(id, SOON).await.unwrap();
    assert_eq!(ended, Some(Task::Stopped { code: 7, at }));
}

async fn waiting_for_no_task_says_that_there_is_none(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    assert_eq!(harness.runtime().wait(&instance.id, SOON).await.unwrap(), Some(Task::None));
    create(harness, &instance).await;
    assert_eq!(harness.runtime().wait(&instance.id, SOON).await.unwrap(), Some(Task::None));
}

async fn how_a_task_ended_is_seen_until_it_is_deleted(harness: &mut impl Harness) {
    let (instance, _) = run(harness, "web").await;
    harness.exit(&instance.id, 3).await;
    let is_stopped = |it: &Objects| matches!(it.containers[0].task, Task::Stopped { code: 3, .. });
    until(harness, "the task has stopped", is_stopped).await;
    harness.runtime().delete_task(&instance.id).await.unwrap();
    assert_eq!(container(harness).await.task, Task::None);
}

async fn a_paused_task_is_seen_and_can_be_resumed(harness: &mut impl Harness) {
    let (instance, pid) = run(harness, "web").await;
    harness.pause(&instance.id).await;
    assert_eq!(container(harness).await.task, Task::Paused { pid });
    harness.runtime().kill(&instance.id, Signal::TERM, false).await.unwrap();
    assert_eq!(container(harness).await.task, Task::Paused { pid });
    harness.runtime().resume_task(&instance.id).await.unwrap();
    let ended = harness.runtime().wait(&instance.id, SOON).await.unwrap();
    assert!(matches!(ended, Some(Task::Stopped { code: 143, .. })), "{ended:?}");
}

async fn an_end_is_hinted(harness: &mut impl Harness) {
    let (instance, _) = run(harness, "web").await;
    let mut hints = harness.runtime().hints();
    // Until a change is seen, the subscription may not stand yet; it says so by a hint of its own.
    let settled = async {
        while tokio::time::timeout(Duration::from_secs(2), hints.changed()).await.is_ok() {}
    };
    settled.await;
    harness.exit(&instance.id, 0).await;
    tokio::time::timeout(SOON, hints.changed()).await.expect("a hint comes").unwrap();
    let is_stopped = |it: &Objects| matches!(it.containers[0].task, Task::Stopped { .. });
    until(harness, "the task has stopped", is_stopped).await;
}

async fn what_changes_after_an_observation_is_hinted_after_it(harness: &mut impl Harness) {
    let mut hints = harness.runtime().hints();
    for n in 0..5 {
        hints.mark_unchanged();
        let before = observe(harness).await.containers.len();
        create(harness, &new_instance(harness, &format!("web{n}"))).await;
        tokio::time::timeout(SOON, hints.changed()).await.expect("a hint comes").unwrap();
        assert_eq!(observe(harness).await.containers.len(), before + 1);
    }
}

async fn a_restarted_instance_keeps_its_writable_layer(harness: &mut impl Harness) {
    let (instance, _) = run(harness, "web").await;
    let id = &instance.id;
    harness.soil(id).await;
    harness.exit(id, 0).await;
    harness.runtime().wait(id, SOON).await.unwrap();
    harness.runtime().delete_task(id).await.unwrap();
    let pid = create_task(harness, id).await;
    harness.runtime().start_task(id).await.unwrap();
    assert!(harness.is_soiled(id).await);
    assert!(harness.is_alive(pid));
}

async fn what_was_recorded_outlives_a_restart_of_containerd(harness: &mut impl Harness) {
    let (instance, _) = run(harness, "job").await;
    let id = &instance.id;
    let run = Run {
        n: 1,
        order: 1,
        boot: "b".to_owned(),
        at: BootTime::default(),
        started: String::new(),
        image_unchecked: None,
    };
    harness
        .runtime()
        .update(id, &Update { run: Some(run.clone()), ..Update::default() })
        .await
        .unwrap();
    harness.exit(id, 3).await;
    harness.runtime().wait(id, SOON).await.unwrap();
    let end = End {
        n: 1,
        code: 3,
        reason: "exited".to_owned(),
        at: String::new(),
        lasted_ms: 0,
        ..End::default()
    };
    harness
        .runtime()
        .update(id, &Update { end: Some(end.clone()), ..Update::default() })
        .await
        .unwrap();

    harness.stop().await;
    harness.start().await;
    let forgets = harness.forgets_tasks();
    let objects = until(harness, "the task is as expected", |it| {
        let task = &it.containers[0].task;
        if forgets { *task == Task::None } else { matches!(task, Task::Stopped { code: 3, .. }) }
    });
    let container = objects.await.containers.remove(0);
    assert_eq!((container.run, container.end), (Some(run), Some(end)));
    assert!(container.has_snapshot);
}

async fn running_tasks_outlive_containerd(harness: &mut impl Harness) {
    let (_, pid) = run(harness, "web").await;
    harness.stop().await;
    assert!(harness.is_alive(pid));
    harness.start().await;
    until(harness, "it runs", |it| it.containers[0].task == Task::Running { pid }).await;
    assert!(harness.is_alive(pid));
}

async fn a_dead_containerd_is_unreachable_and_comes_back_with_a_hint(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    create(harness, &instance).await;
    let id = &instance.id;
    let mut hints = harness.runtime().hints();
    observe(harness).await;
    harness.stop().await;
    let runtime = harness.runtime();
    let error = runtime.observe(&BTreeSet::new()).await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    assert!(kind(runtime.lease("evenkeel-x").await) == ErrorKind::Unreachable);
    assert!(
        kind(
            runtime
                .update(id, &Update { origin: Some(instance.origin.clone()), ..Update::default() })
                .await
        ) == ErrorKind::Unreachable
    );
    assert!(kind(runtime.create_task(id, &LogTarget::None).await) == ErrorKind::Unreachable);
    assert!(kind(runtime.kill(id, Signal::KILL, false).await) == ErrorKind::Unreachable);
    assert!(kind(runtime.remove(id).await) == ErrorKind::Unreachable);
    hints.mark_unchanged();
    harness.start().await;
    tokio::time::timeout(SOON, hints.changed()).await.expect("a hint comes").unwrap();
    assert_eq!(container(harness).await.id, *id);
}

async fn a_leftover_snapshot_is_listed_and_not_used_again(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    let runtime = harness.runtime();
    runtime.lease(LEASE).await.unwrap();
    runtime.prepare_snapshot(LEASE, &instance).await.unwrap();
    harness.soil(&instance.id).await;
    assert!(harness.is_soiled(&instance.id).await);
    assert_eq!(observe(harness).await.snapshots, [instance.id.to_string()].into());

    runtime.prepare_snapshot(LEASE, &instance).await.unwrap();
    assert!(!harness.is_soiled(&instance.id).await);
    runtime.remove_snapshot(instance.id.as_str()).await.unwrap();
    runtime.remove_snapshot(instance.id.as_str()).await.unwrap();
    assert_eq!(observe(harness).await.snapshots, BTreeSet::new());
}

async fn the_snapshot_of_a_container_is_neither_replaced_nor_removed_alone(
    harness: &mut impl Harness,
) {
    let instance = new_instance(harness, "web");
    create(harness, &instance).await;
    harness.soil(&instance.id).await;
    let runtime = harness.runtime();
    runtime.lease(LEASE).await.unwrap();
    runtime.prepare_snapshot(LEASE, &instance).await.unwrap();
    assert_eq!(kind(runtime.remove_snapshot(instance.id.as_str()).await), ErrorKind::Refused);
    assert!(harness.is_soiled(&instance.id).await);
    assert_eq!(observe(harness).await.snapshots, BTreeSet::new());
}

async fn leases_are_listed_until_they_are_removed(harness: &mut impl Harness) {
    let runtime = harness.runtime();
    for id in ["evenkeel-a", "evenkeel-b", "evenkeel-a"] {
        runtime.lease(id).await.unwrap();
    }
    assert_eq!(
        observe(harness).await.leases,
        ["evenkeel-a", "evenkeel-b"].map(str::to_owned).into()
    );
    runtime.remove_lease("evenkeel-a").await.unwrap();
    runtime.remove_lease("evenkeel-a").await.unwrap();
    assert_eq!(observe(harness).await.leases, ["evenkeel-b".to_owned()].into());
}

async fn nothing_is_made_under_a_lease_that_is_gone(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    assert_eq!(
        kind(harness.runtime().prepare_snapshot("evenkeel-gone", &instance).await),
        ErrorKind::Missing
    );
    assert_eq!(observe(harness).await, Objects::default());
}

async fn what_was_made_outlives_its_lease(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    create(harness, &instance).await;
    harness.collect().await;
    assert!(container(harness).await.has_snapshot);
    let pid = create_task(harness, &instance.id).await;
    harness.runtime().start_task(&instance.id).await.unwrap();
    assert!(harness.is_alive(pid));
    // The image and its layers are still there as well.
    let other = new_instance(harness, "other");
    create(harness, &other).await;
    create_task(harness, &other.id).await;
}

async fn only_the_images_asked_for_are_found(harness: &mut impl Harness) {
    let image = harness.image();
    let missing = "docker.io/library/no\"such:latest".to_owned();
    let runtime = harness.runtime();
    let asked = BTreeSet::from([image.name.clone(), missing.clone()]);
    let images = runtime.observe(&asked).await.unwrap().images;
    assert_eq!(images, [(image.name.clone(), image)].into());
    assert!(runtime.observe(&BTreeSet::from([missing])).await.unwrap().images.is_empty());
}

const OURS: &str = "docker.io/library/ours:1";

/// Makes an image of ours of the content of the harness's own.
async fn record_ours(harness: &impl Harness) -> NewImage {
    let image = harness.image();
    let new = NewImage {
        name: OURS.to_owned(),
        digest: image.digest,
        media_type: evenkeel::content::MANIFEST.to_owned(),
        size: 7,
        config: image.config,
        came: Came::Pulled,
    };
    let runtime = harness.runtime();
    runtime.lease(LEASE).await.unwrap();
    runtime.put_image(LEASE, &new).await.unwrap();
    runtime.remove_lease(LEASE).await.unwrap();
    new
}

async fn stored(harness: &impl Harness, name: &str) -> Option<StoredImage> {
    let found = harness.runtime().observe(&BTreeSet::new()).await.unwrap();
    found.stored_images.get(name).cloned()
}

fn unused() -> Unused {
    Unused { boot: "a-boot".to_owned(), at: BootTime(Duration::from_hours(24)) }
}

async fn an_image_of_ours_is_listed_with_what_is_written_on_it(harness: &mut impl Harness) {
    let NewImage { digest, .. } = record_ours(harness).await;
    let runtime = harness.runtime();
    let image = stored(harness, OURS).await.unwrap();
    assert!(image.size > 0);
    let new = StoredImage {
        digest: digest.clone(),
        came: Some(Came::Pulled),
        pinned: false,
        unused: None,
        ..image
    };
    assert_eq!(image, new);
    for (mark, expected) in [
        (Mark::Unused(unused()), StoredImage { unused: Some(unused()), ..new.clone() }),
        (Mark::Pinned, StoredImage { unused: Some(unused()), pinned: true, ..new.clone() }),
        (Mark::Used, StoredImage { pinned: true, ..new.clone() }),
        (Mark::Unpinned, new.clone()),
        (Mark::Unpinned, new.clone()),
    ] {
        runtime.mark_image(OURS, &digest, &mark).await.unwrap();
        assert_eq!(stored(harness, OURS).await, Some(expected), "{mark:?}");
    }
    let other = Digest::of(b"other").to_string();
    assert_eq!(kind(runtime.mark_image(OURS, &other, &Mark::Pinned).await), ErrorKind::Missing);
    assert_eq!(kind(runtime.mark_image("x", &digest, &Mark::Pinned).await), ErrorKind::Missing);
    assert_eq!(stored(harness, OURS).await, Some(new));
}

async fn an_image_of_somebody_else_is_listed_and_left_alone(harness: &mut impl Harness) {
    let name = "docker.io/library/theirs:1".to_owned();
    harness.add_foreign_image(&name).await;
    let NewImage { digest, media_type, size, config, .. } = record_ours(harness).await;
    let runtime = harness.runtime();
    let before = stored(harness, &name).await.unwrap();
    assert_eq!((before.came, &before.digest), (None, &digest));
    assert_eq!(kind(runtime.mark_image(&name, &digest, &Mark::Pinned).await), ErrorKind::Conflict);
    assert_eq!(kind(runtime.remove_image(&name, &digest).await), ErrorKind::Conflict);
    // Not even by bringing it ourselves it becomes ours.
    runtime.lease(LEASE).await.unwrap();
    let came = Came::Imported;
    let new = NewImage { name: name.clone(), digest, media_type, size, config, came };
    runtime.put_image(LEASE, &new).await.unwrap();
    assert_eq!(stored(harness, &name).await, Some(before));
}

async fn an_image_that_is_recorded_anew_is_ours_and_used_and_stays_pinned(
    harness: &mut impl Harness,
) {
    let new = record_ours(harness).await;
    let runtime = harness.runtime();
    runtime.mark_image(OURS, &new.digest, &Mark::Unused(unused())).await.unwrap();
    runtime.mark_image(OURS, &new.digest, &Mark::Pinned).await.unwrap();
    runtime.lease(LEASE).await.unwrap();
    runtime.put_image(LEASE, &NewImage { came: Came::Imported, ..new }).await.unwrap();
    let image = stored(harness, OURS).await.unwrap();
    assert_eq!((image.came, image.unused, image.pinned), (Some(Came::Imported), None, true));
}

async fn an_image_is_removed_as_long_as_its_name_points_at_it(harness: &mut impl Harness) {
    let NewImage { digest, .. } = record_ours(harness).await;
    let runtime = harness.runtime();
    runtime.remove_image(OURS, Digest::of(b"other").as_str()).await.unwrap();
    assert!(stored(harness, OURS).await.is_some());
    for _ in 0..2 {
        runtime.remove_image(OURS, &digest).await.unwrap();
        assert_eq!(stored(harness, OURS).await, None);
    }
    // What the other name needs is still there.
    create(harness, &new_instance(harness, "web")).await;
}

async fn a_container_outlives_the_removal_of_its_image(harness: &mut impl Harness) {
    let NewImage { digest, .. } = record_ours(harness).await;
    let mut instance = new_instance(harness, "web");
    OURS.clone_into(&mut instance.image.name);
    create(harness, &instance).await;
    for name in [OURS, &harness.image().name] {
        harness.runtime().remove_image(name, &digest).await.unwrap();
    }
    harness.collect().await;
    create_task(harness, &instance.id).await;
    harness.runtime().start_task(&instance.id).await.unwrap();
}

async fn an_instance_of_a_missing_image_cannot_be_prepared(harness: &mut impl Harness) {
    let mut instance = new_instance(harness, "web");
    instance.image.digest = Digest::of(b"missing").to_string();
    instance.image.config.diff_ids = vec![Digest::of(b"layer").to_string()];
    harness.runtime().lease(LEASE).await.unwrap();
    assert_eq!(
        kind(harness.runtime().prepare_snapshot(LEASE, &instance).await),
        ErrorKind::Missing
    );
    let image = NewImage {
        name: "docker.io/library/missing:latest".to_owned(),
        digest: instance.image.digest.clone(),
        media_type: evenkeel::content::MANIFEST.to_owned(),
        size: 7,
        config: instance.image.config.clone(),
        came: Came::Imported,
    };
    assert_eq!(kind(harness.runtime().put_image(LEASE, &image).await), ErrorKind::Missing);
    let found = harness.runtime().observe(&[image.name].into()).await.unwrap();
    assert!(found.images.is_empty(), "{found:?}");
    assert_eq!(found.snapshots, BTreeSet::new());
}

/// What the real one makes of the bytes is seen where an image is pulled.
async fn a_layer_is_unpacked_on_those_below_it(harness: &mut impl Harness) {
    let blobs = [&b"below"[..], b"above"].map(|it| {
        let size = u64::try_from(it.len()).unwrap();
        Descriptor::new(evenkeel::content::LAYER, Digest::of(it), size)
    });
    let diff_ids = blobs.each_ref().map(|it| it.digest.to_string());
    let layers = stack(&blobs, &diff_ids);
    let runtime = harness.runtime();
    runtime.lease(LEASE).await.unwrap();
    assert_eq!(kind(runtime.unpack_layer(LEASE, &layers[0]).await), ErrorKind::Missing);
    put(harness, &blobs[1].digest, blobs[1].size, b"above").await.unwrap();
    assert_eq!(kind(harness.runtime().unpack_layer(LEASE, &layers[1]).await), ErrorKind::Missing);
}

async fn put(
    harness: &impl Harness,
    digest: &Digest,
    size: u64,
    mut content: &[u8],
) -> Result<(), Error> {
    let labels =
        [("containerd.io/gc.ref.content.config".to_owned(), Digest::of(b"other").to_string())]
            .into();
    let blob = Blob { digest: digest.to_string(), size, labels, content: &mut content };
    harness.runtime().put_blob(LEASE, blob).await
}

async fn a_blob_that_is_not_what_it_says_is_refused(harness: &mut impl Harness) {
    harness.runtime().lease(LEASE).await.unwrap();
    let content = vec![b'x'; 3_000_000];
    let size = 3_000_000;
    let digest = Digest::of(&content);
    assert_eq!(kind(put(harness, &Digest::of(b"else"), size, &content).await), ErrorKind::Refused);
    assert_eq!(kind(put(harness, &digest, size + 1, &content).await), ErrorKind::Refused);
    assert_eq!(kind(put(harness, &digest, size - 1, &content).await), ErrorKind::Refused);
    // What failed does not stand in the way of the right one.
    put(harness, &digest, size, &content).await.unwrap();
}

fn new_blob(content: &[u8]) -> NewBlob {
    let size = u64::try_from(content.len()).unwrap();
    NewBlob { digest: Digest::of(content), size, labels: BTreeMap::new() }
}

async fn open(harness: &impl Harness, blob: &NewBlob) -> Box<dyn BlobWriter> {
    harness.runtime().open_blob(LEASE, blob).await.unwrap().expect("it is not there")
}

async fn a_blob_that_comes_in_pieces_goes_on_where_it_was_left_off(harness: &mut impl Harness) {
    harness.runtime().lease(LEASE).await.unwrap();
    // No piece of it is like another.
    let content: Vec<u8> =
        (0..12_000_000_u32).map(|n| (n / 251 + n % 249).to_le_bytes()[0]).collect();
    let blob = new_blob(&content);
    let mut writer = open(harness, &blob).await;
    assert_eq!(writer.offset(), 0);
    for piece in content[..10_500_000].chunks(100_001) {
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(writer.offset(), 10_500_000);
    drop(writer);
    let mut writer = open(harness, &blob).await;
    let offset = usize::try_from(writer.offset()).unwrap();
    // Two pieces are lost at most: one that waits to be sent, and one that was not stored yet.
    assert!((10_500_000 - (4 << 20)..=10_500_000).contains(&offset), "{offset}");
    writer.write(Bytes::copy_from_slice(&content[offset..11_000_000])).await.unwrap();
    // It breaks off: what is there is kept.
    assert_eq!(kind(writer.commit().await), ErrorKind::Refused);
    let mut writer = open(harness, &blob).await;
    assert_eq!(writer.offset(), 11_000_000);
    writer.write(Bytes::copy_from_slice(&content[11_000_000..])).await.unwrap();
    writer.commit().await.unwrap();
    assert!(harness.runtime().open_blob(LEASE, &blob).await.unwrap().is_none());
    // The other way to store it knows it too.
    put(harness, &blob.digest, blob.size, &[]).await.unwrap();
}

async fn what_came_of_a_blob_is_thrown_away_if_it_can_never_be_it(harness: &mut impl Harness) {
    harness.runtime().lease(LEASE).await.unwrap();
    let content = vec![b'x'; 1_500_000];
    let blob = new_blob(&content);
    let mut writer = open(harness, &blob).await;
    writer.write(Bytes::from(vec![b'y'; 1_500_000])).await.unwrap();
    assert_eq!(kind(writer.commit().await), ErrorKind::Conflict);
    let mut writer = open(harness, &blob).await;
    assert_eq!(writer.offset(), 0, "what was wrong");
    writer.write(Bytes::copy_from_slice(&content)).await.unwrap();
    assert_eq!(kind(writer.write(Bytes::from_static(b"x")).await), ErrorKind::Conflict);
    drop(writer);
    let mut writer = open(harness, &blob).await;
    assert_eq!(writer.offset(), 0, "what was too long");
    writer.write(Bytes::copy_from_slice(&content)).await.unwrap();
    writer.commit().await.unwrap();
}

async fn a_blob_can_be_stored_twice(harness: &mut impl Harness) {
    harness.runtime().lease(LEASE).await.unwrap();
    for content in [b"".as_slice(), b"content", &vec![b'x'; 1 << 20]] {
        let size = u64::try_from(content.len()).unwrap();
        for _ in 0..2 {
            put(harness, &Digest::of(content), size, content).await.unwrap();
        }
    }
}

async fn a_task_without_its_container_is_an_orphan_and_can_be_removed(harness: &mut impl Harness) {
    let (instance, pid) = run(harness, "web").await;
    let id = &instance.id;
    let runtime = harness.runtime();
    harness.lose_container(id).await;
    let orphaned = observe(harness).await;
    assert_eq!(orphaned.orphans, [(id.clone(), Task::Running { pid })].into());
    assert!(orphaned.containers.is_empty());
    // Nothing may look as if it had worked.
    assert_eq!(kind(runtime.kill(id, Signal::KILL, false).await), ErrorKind::Refused);
    assert_eq!(kind(runtime.delete_task(id).await), ErrorKind::Refused);
    assert_eq!(kind(runtime.remove(id).await), ErrorKind::Refused);
    assert!(harness.is_alive(pid));

    runtime.readopt(id).await.unwrap();
    runtime.readopt(id).await.unwrap();
    let readopted = observe(harness).await;
    assert_eq!(readopted.orphans, [(id.clone(), Task::Running { pid })].into());
    assert!(readopted.containers.is_empty());
    runtime.kill(id, Signal::KILL, true).await.unwrap();
    runtime.wait(id, SOON).await.unwrap();
    runtime.delete_task(id).await.unwrap();
    // A crash here is seen as well.
    assert_eq!(observe(harness).await.orphans, [(id.clone(), Task::None)].into());
    runtime.remove(id).await.unwrap();
    until_dead(harness, pid).await;
    assert_eq!(observe(harness).await, Objects::default());
}

async fn a_container_of_somebody_else_is_left_alone(harness: &mut impl Harness) {
    let instance = new_instance(harness, "web");
    let id = &instance.id;
    harness.add_foreign(id).await;
    assert_eq!(observe(harness).await, Objects::default());
    let runtime = harness.runtime();
    runtime.lease(LEASE).await.unwrap();
    assert_eq!(kind(runtime.create(LEASE, &instance).await), ErrorKind::Conflict);
    assert_eq!(kind(runtime.readopt(id).await), ErrorKind::Conflict);
    assert!(harness.has_foreign(id).await);
}

async fn a_hung_shim_makes_its_own_task_unknown_and_no_other(harness: &mut impl Harness) {
    let (hung, hung_pid) = run(harness, "hung").await;
    let (good, good_pid) = run(harness, "good").await;
    harness.hang(&hung.id, true).await;
    let task = |objects: &Objects, id: &InstanceId| {
        objects.containers.iter().find(|it| it.id == *id).unwrap().task.clone()
    };
    // The first look may have to find out; the others know.
    for limit in [10, 2, 2] {
        let look = tokio::time::timeout(Duration::from_secs(limit), observe(harness));
        let objects = look.await.expect("a hung shim does not delay an observation");
        assert_eq!(task(&objects, &hung.id), Task::Unknown);
        assert_eq!(task(&objects, &good.id), Task::Running { pid: good_pid });
        assert!(objects.orphans.is_empty(), "{objects:?}");
    }
    // What does answer can be changed all the same.
    harness.runtime().kill(&good.id, Signal::KILL, true).await.unwrap();
    harness.runtime().wait(&good.id, SOON).await.unwrap();
    harness.runtime().delete_task(&good.id).await.unwrap();
    assert_eq!(harness.runtime().wait(&hung.id, Duration::from_millis(10)).await.unwrap(), None);

    let mut hints = harness.runtime().hints();
    hints.mark_unchanged();
    harness.hang(&hung.id, false).await;
    tokio::time::timeout(SOON, hints.changed()).await.expect("a hint comes").unwrap();
    until(harness, "it answers again", |it| task(it, &hung.id) == Task::Running { pid: hung_pid })
        .await;
    assert_eq!(task(&observe(harness).await, &good.id), Task::None);
}

/// For the harnesses: how the image looks once it is in the store.
fn in_store(image: Image) -> Image {
    Image { place: ImagePlace::Store, ..image }
}

async fn exec(harness: &impl Harness, id: &InstanceId, key: &str) -> Result<u32, Error> {
    harness.runtime().exec(id, key, &harness.exec(), &Streams::default()).await
}

async fn a_process_beside_the_program_ends_with_its_code_and_is_deleted(
    harness: &mut impl Harness,
) {
    let (web, pid) = run(harness, "web").await;
    let runtime = harness.runtime();
    let own = exec(harness, &web.id, "exec-a").await.unwrap();
    assert_ne!(own, pid);
    let short = Duration::from_millis(100);
    assert_eq!(runtime.wait_exec(&web.id, "exec-a", short).await.unwrap(), None);
    // It is no task of ours, and no other pid of it.
    assert_eq!(container(harness).await.task, Task::Running { pid });
    runtime.tell_exec(&web.id, "exec-a", Tell::EndOfInput).await.unwrap();
    harness.exit_exec(&web.id, "exec-a", 7).await;
    for _ in 0..2 {
        assert_eq!(runtime.wait_exec(&web.id, "exec-a", SOON).await.unwrap(), Some(7));
    }
    for _ in 0..2 {
        runtime.delete_exec(&web.id, "exec-a").await.unwrap();
        runtime.tell_exec(&web.id, "exec-a", Tell::Signal(Signal::TERM)).await.unwrap();
    }
    let gone = runtime.wait_exec(&web.id, "exec-a", short).await;
    assert_eq!(kind(gone), ErrorKind::Missing);
    assert_eq!(container(harness).await.task, Task::Running { pid });
}

async fn a_process_beside_the_program_is_ended_by_a_signal_and_by_its_deletion(
    harness: &mut impl Harness,
) {
    let (web, pid) = run(harness, "web").await;
    let runtime = harness.runtime();
    exec(harness, &web.id, "exec-a").await.unwrap();
    exec(harness, &web.id, "exec-b").await.unwrap();
    runtime.tell_exec(&web.id, "exec-a", Tell::Signal(Signal::KILL)).await.unwrap();
    assert_eq!(runtime.wait_exec(&web.id, "exec-a", SOON).await.unwrap(), Some(137));
    let short = Duration::from_millis(100);
    assert_eq!(runtime.wait_exec(&web.id, "exec-b", short).await.unwrap(), None);
    runtime.delete_exec(&web.id, "exec-b").await.unwrap();
    assert_eq!(kind(runtime.wait_exec(&web.id, "exec-b", short).await), ErrorKind::Missing);
    assert_eq!(container(harness).await.task, Task::Running { pid });
}

async fn a_process_needs_a_task_that_runs_and_a_key_of_its_own(harness: &mut impl Harness) {
    let web = new_instance(harness, "web");
    assert_eq!(kind(exec(harness, &web.id, "exec-a").await), ErrorKind::Missing);
    create(harness, &web).await;
    assert_eq!(kind(exec(harness, &web.id, "exec-a").await), ErrorKind::Missing);
    let pid = create_task(harness, &web.id).await;
    harness.runtime().start_task(&web.id).await.unwrap();
    harness.listens(pid).await;
    exec(harness, &web.id, "exec-a").await.unwrap();
    assert_eq!(kind(exec(harness, &web.id, "exec-a").await), ErrorKind::Conflict);
    let nothing = Exec::default();
    let refused = harness.runtime().exec(&web.id, "exec-b", &nothing, &Streams::default()).await;
    assert_eq!(kind(refused), ErrorKind::Refused);
    // What could not be started has left nothing behind.
    exec(harness, &web.id, "exec-b").await.unwrap();
}

async fn a_process_ends_with_the_program_beside_it(harness: &mut impl Harness) {
    let (web, _) = run(harness, "web").await;
    let runtime = harness.runtime();
    exec(harness, &web.id, "exec-a").await.unwrap();
    runtime.kill(&web.id, Signal::KILL, false).await.unwrap();
    runtime.wait(&web.id, SOON).await.unwrap().unwrap();
    assert_eq!(runtime.wait_exec(&web.id, "exec-a", SOON).await.unwrap(), Some(137));
    runtime.delete_task(&web.id).await.unwrap();
    runtime.delete_exec(&web.id, "exec-a").await.unwrap();
    runtime.remove(&web.id).await.unwrap();
}
