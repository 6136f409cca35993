//! What runc says for real about starts that fail, and what is made of it: the measured part of `tests/refusals.txt`.

use std::fs;
use std::path::{Path, PathBuf};

use evenkeel::desired::{Origin, Source};
use evenkeel::host::means;
use evenkeel::observed::Image;
use evenkeel::refusal;
use evenkeel::runtime::containerd::{Containerd, Settings};
use evenkeel::runtime::{LogTarget, NewInstance, Runtime as _, Update};
use evenkeel::workload::{InstanceId, IpcDefaults, Workload};
use serde_json::{Value, json};

use crate::rig::{Around, Engine, Rig, SEALED};

/// A start that fails: what it is called, what is different from a good spec, and what comes of it.
struct Row {
    name: &'static str,
    args: Value,
    mounts: Vec<Value>,
    /// JSON pointers into the spec, and what is put there.
    changes: Vec<(&'static str, Value)>,
    /// What happens to the box before.
    spoil: fn(&Rig),
    log: LogTarget,
    code: u32,
    reason: &'static str,
    /// The text has this part: it is the situation that is meant.
    says: &'static str,
}

fn row(
    name: &'static str,
    args: &[&str],
    code: u32,
    reason: &'static str,
    says: &'static str,
) -> Row {
    let (args, mounts, changes) = (json!(args), Vec::new(), Vec::new());
    Row { name, args, mounts, changes, spoil: |_| {}, log: LogTarget::None, code, reason, says }
}

fn bind(source: &Path, target: &str) -> Value {
    json!({ "destination": target, "type": "bind", "source": source, "options": ["rbind"] })
}

/// Every situation of the table, in directories of a test.
fn rows(directory: &Path) -> Vec<Row> {
    // Names that say what is not so must not confuse anybody.
    let nasty = directory.join("exec: \"x\": not a directory: permission denied");
    let (file, missing) = (directory.join("a file"), directory.join("nowhere: not a directory"));
    let gone = directory.join("permission denied: not a directory");
    fs::create_dir(&nasty).unwrap();
    fs::write(&file, "").unwrap();
    let sleep = ["sleep", "60"];
    let mut on_file =
        row("directory-on-file", &sleep, 127, "mount-type-mismatch", "not a directory");
    on_file.mounts = vec![bind(&nasty, "/bin/busybox")];
    let mut on_directory =
        row("file-on-directory", &sleep, 127, "mount-type-mismatch", "not a directory");
    on_directory.mounts = vec![bind(&file, "/bin")];
    let mut no_source =
        row("no-source", &sleep, 128, "mount-source-missing", "no such file or directory");
    no_source.mounts = vec![bind(&missing, "/mnt")];
    let mut no_donor = row("no-donor", &sleep, 128, "donor-vanished", "namespace path");
    no_donor.changes = vec![("/linux/namespaces/1/path", json!(gone))];
    let mut in_nasty = row(
        "nasty-and-not-executable",
        &["/nasty/data"],
        126,
        "command-not-executable",
        "permission denied",
    );
    fs::write(nasty.join("data"), "").unwrap();
    in_nasty.mounts = vec![bind(&nasty, "/nasty")];
    let mut working = row("working-directory", &sleep, 128, "working-directory-failed", "mkdir");
    working.changes = vec![("/process/cwd", json!("/bin/busybox"))];
    let mut sysctl = row("sysctl", &sleep, 128, "spec-rejected", "sysctl");
    sysctl.changes = vec![("/linux/sysctl", json!({ "vm.swappiness": "1" }))];
    let mut cpus = row("cpus", &sleep, 128, "cgroup-failed", "4095");
    cpus.changes = vec![("/linux/resources", json!({ "cpu": { "cpus": "4095" } }))];
    let mut no_layer = row("no-layer", &sleep, 128, "rootfs-failed", "failed to mount rootfs");
    no_layer.spoil = remove_newest_layer;
    let mut no_log = row("no-log", &sleep, 128, "log-failed", "no such file or directory");
    no_log.log =
        LogTarget::Files { directory: directory.join("log"), max_size: 1 << 20, max_files: 1 };
    vec![
        cpus,
        no_layer,
        no_log,
        row("not-in-path", &["nosuch"], 127, "command-not-found", "executable file not found"),
        row("no-such-path", &["/bin/nosuch"], 127, "command-not-found", "stat /bin/nosuch"),
        row("a-directory", &["/etc"], 126, "command-not-executable", "\"/etc\""),
        row("no-x-bit", &["/etc/passwd"], 126, "command-not-executable", "\"/etc/passwd\""),
        row(
            "nasty-and-missing",
            &["/permission denied"],
            127,
            "command-not-found",
            "permission denied",
        ),
        on_file,
        on_directory,
        no_source,
        no_donor,
        in_nasty,
        working,
        sysctl,
    ]
}

/// As a disk that has lost files does to the writable layer that was made last.
fn remove_newest_layer(rig: &Rig) {
    let own = format!("io.containerd.snapshotter.v1.{}/snapshots", Rig::snapshotter());
    let entries = fs::read_dir(rig.dir().join("containerd-root").join(own)).unwrap();
    let numbers = entries.filter_map(|it| it.unwrap().file_name().to_str()?.parse::<u32>().ok());
    let newest = numbers.max().unwrap();
    let own = format!("io.containerd.snapshotter.v1.{}/snapshots/{newest}", Rig::snapshotter());
    fs::remove_dir_all(rig.dir().join("containerd-root").join(own)).unwrap();
}

fn spec(rig: &Rig, id: &InstanceId, row: &Row) -> Value {
    let mount =
        |target: &str, kind: &str| json!({ "destination": target, "type": kind, "source": kind });
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|it| json!({ "type": it }));
    let mut mounts = vec![mount("/proc", "proc"), mount("/dev", "tmpfs")];
    mounts.extend(row.mounts.clone());
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": {
            "cwd": "/",
            "user": { "uid": 0, "gid": 0 },
            "env": ["PATH=/bin"],
            "args": row.args,
        },
        "mounts": mounts,
        "linux": { "namespaces": namespaces, "cgroupsPath": format!("{}/{id}", rig.cgroup_parent()) },
    });
    for (pointer, value) in &row.changes {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[field] = value.clone();
    }
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d15_what_runc_says_about_a_failed_start_gives_its_reason_and_code() {
    for engine in Engine::all() {
        let rig = Rig::start_on(&engine).await;
        for row in rows(&rig.dir().join("")) {
            refused(&rig, &row).await;
        }
        rig.assert_clean();
    }
}

/// A container that is to be started.
async fn made(rig: &Rig, client: &Containerd, image: &Image, row: &Row) -> NewInstance {
    let workload = json!({ "name": row.name, "spec": { "image": "busybox" } });
    let workload: Workload = serde_json::from_value(workload).unwrap();
    let revision = workload.revision(&image.digest);
    let instance = NewInstance {
        id: InstanceId::new(&workload.name, &revision),
        revision,
        origin: Origin {
            source: Source::new(Path::new("/"), Path::new("/manifests")),
            file: PathBuf::from("a.yaml"),
            document: 0,
        },
        workload,
        defaults: IpcDefaults::default(),
        image: image.clone(),
    };
    let id = &instance.id;
    client.lease("evenkeel-test").await.unwrap();
    client.prepare_snapshot("evenkeel-test", &instance).await.unwrap();
    client.create("evenkeel-test", &instance).await.unwrap();
    client.remove_lease("evenkeel-test").await.unwrap();
    let spec = serde_json::from_value(spec(rig, id, row)).unwrap();
    let update = Update { spec: Some(Box::new(spec)), ..Update::default() };
    client.update(id, &update).await.unwrap();
    instance
}

/// What a start fails with, which may be nothing of the container itself.
#[expect(clippy::print_stdout, reason = "shown with the failed test, and measured with")]
async fn refused(rig: &Rig, row: &Row) {
    let image = rig.load_image().await;
    let client = rig.client();
    let id = made(rig, &client, &image, row).await.id;
    (row.spoil)(rig);
    // Its program for logs is not there any more.
    let settings = Settings { log_program: rig.dir().join("gone"), ..rig.settings() };
    let without_log = Containerd::new(settings).unwrap();
    let creator = if row.log == LogTarget::None { &client } else { &without_log };
    let error = creator.create_task(&id, &row.log).await.expect_err(row.name);
    let text = error.cause.as_ref().unwrap().to_string();
    let engine = rig.engine();
    println!("{engine} {}: {text}", row.name);
    let found = refusal::classify(&text);
    assert_eq!((found.name, found.code), (row.reason, row.code), "{engine}: {text}");
    assert!(text.contains(row.says), "{}: {text}", row.name);
    client.delete_task(&id).await.unwrap();
    client.remove(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d15_what_containerd_says_without_runc_or_its_shim_gives_its_reason_and_code() {
    let sleep = ["sleep", "60"];
    let row = |name, says| row(name, &sleep, 128, "runtime-missing", says);
    for engine in Engine::all() {
        let rig = Rig::start_around(&engine, Around::OwnPrograms).await;
        let (shim, runc) = (rig.programs().join(means::SHIM), rig.programs().join(means::RUNC));
        fs::remove_file(&shim).unwrap();
        refused(&rig, &row("no-shim", "binary not installed")).await;
        rig.link(means::SHIM, &rig.programs());
        fs::remove_file(&runc).unwrap();
        refused(&rig, &row("no-runc", "\"runc\": executable file not found in $PATH")).await;
        // It has seen the shim once, and does not look for it again.
        rig.link(means::RUNC, &rig.programs());
        fs::remove_file(&shim).unwrap();
        rig.link(means::SHIM, &rig.more_programs());
        refused(&rig, &row("no-shim-any-more", "fork/exec")).await;
        rig.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d15_what_runc_says_about_cgroups_that_it_cannot_write_to_gives_its_reason_and_code() {
    for engine in Engine::all() {
        let rig = Rig::start_around(&engine, Around::SealedCgroups).await;
        let row = row("sealed", &["sleep", "60"], 128, "cgroup-failed", SEALED);
        refused(&rig, &row).await;
        rig.assert_clean();
    }
}
