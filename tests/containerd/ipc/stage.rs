//! A rig whose containers can tell what they share, and hands to change manifests and to wait for what comes of it.
//!
//! Everything goes through the program and through /proc: no type of the library but the status document.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use evenkeel::status::{Item, Status};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::rig::{Engine, Rig, sweep};

/// The image of `scripts/image`: busybox and the ipc-probe example.
pub(crate) const IMAGE: &str = "localhost/busybox:1";

/// Ten times of what a loaded machine with two cores needs.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// Between two looks of a wait.
const PAUSE: Duration = Duration::from_millis(50);

pub(crate) struct Stage {
    pub(crate) rig: Rig,
}

/// What `apply` said.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) code: i32,
    pub(crate) status: Status,
    pub(crate) stderr: String,
}

impl Stage {
    /// On the chosen engine.
    pub(crate) async fn set() -> Self {
        Self::set_on(&Engine::chosen()).await
    }

    pub(crate) async fn set_on(engine: &Engine) -> Self {
        let rig = Rig::start_on(engine).await;
        std::fs::copy(probe_archive(), rig.state_dir().join("images/probe.tar")).unwrap();
        Self { rig }
    }

    /// Writes the manifest of a workload that waits for its end, unless `spec` says otherwise, into `<name>.yaml`.
    pub(crate) fn want(&self, name: &str, spec: Value) {
        self.want_in(&format!("{name}.yaml"), name, spec);
    }

    pub(crate) fn want_in(&self, file: &str, name: &str, spec: Value) {
        let mut spec = spec;
        let fields = spec.as_object_mut().unwrap();
        fields.entry("image").or_insert(IMAGE.into());
        fields.entry("command").or_insert(json!(["ipc-probe", "sleep"]));
        let manifest = json!({
            "apiVersion": "evenkeel/v1",
            "kind": "Container",
            "metadata": { "name": name },
            "spec": spec,
        });
        self.write(file, &format!("{manifest:#}\n"));
    }

    /// Puts a whole file into place.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let path = self.rig.manifests_dir().join(file);
        let new = self.rig.manifests_dir().join(format!(".{file}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    pub(crate) fn unwant(&self, name: &str) {
        std::fs::remove_file(self.rig.manifests_dir().join(format!("{name}.yaml"))).unwrap();
    }

    pub(crate) fn apply(&self) -> Applied {
        self.apply_with(&[])
    }

    /// With more flags.
    pub(crate) fn apply_with(&self, flags: &[&str]) -> Applied {
        let usual = ["apply", "--engine", "system", "--output", "json"];
        let output = self.rig.evenkeel(&[&usual, flags].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let status = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("apply printed no status: {error}\n{stderr}"));
        Applied { code: output.status.code().unwrap(), status, stderr }
    }

    /// [`Stage::apply`], which has to reach everything.
    pub(crate) fn apply_all(&self) -> Status {
        let applied = self.apply();
        assert_eq!(applied.code, 0, "{}\n{:#?}", applied.stderr, applied.status);
        applied.status
    }

    pub(crate) fn status(&self) -> Status {
        let output = self.rig.evenkeel(&["status", "--engine", "system", "--output", "json"]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Waits until the controller's status is as wanted.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        // As `status` prints it beside a controller, without a process for each look.
        let path = self.rig.run_dir().join("status.json");
        let read = || serde_json::from_slice::<Status>(&std::fs::read(&path).ok()?).ok();
        let found = tokio::time::timeout(LIMIT, async {
            loop {
                if let Some(status) = read().filter(&is_so) {
                    return status;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}\n{:#?}", read()))
    }

    /// Removes everything, and looks that nothing at all is left.
    pub(crate) fn take_down(&self) {
        let output = self.rig.evenkeel(&["down", "--engine", "system"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.rig.assert_clean();
        let left: Vec<String> =
            self.traces().into_iter().filter(|it| !it.starts_with("image ")).collect();
        assert_eq!(left, Vec::<String>::new(), "left behind");
    }

    /// Everything of ours on the box but files that the controller keeps for itself: containerd's objects, mounts,
    /// directories, cgroups and processes, each with the name of its instance in it.
    pub(crate) fn traces(&self) -> BTreeSet<String> {
        let mut traces: BTreeSet<String> = self.rig.remains().into_iter().collect();
        traces.retain(|it| !it.starts_with("process "));
        let own = [self.rig.containerd_pid()];
        for process in sweep::processes_of(self.rig.dir()) {
            let is_controller = process.arguments.iter().any(|it| it == "run");
            if !own.contains(&process.pid) && !is_controller {
                let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid));
                let cgroup = cgroup.unwrap_or_default();
                let place = cgroup.lines().filter_map(|it| it.splitn(3, ':').nth(2));
                let place = place.max_by_key(|it| it.len()).unwrap_or_default().to_owned();
                traces.insert(format!("process {} {place} {:?}", process.pid, process.arguments));
            }
        }
        for directory in [self.rig.run_dir(), self.rig.state_dir()] {
            let files = below(&directory).into_iter().filter(|it| !is_own(it));
            traces.extend(files.map(|it| format!("file {}", it.display())));
        }
        traces.extend(self.cgroups().iter().map(|it| format!("cgroup {}", it.display())));
        let images = self.rig.ctr(&["images", "list", "--quiet"]);
        traces.extend(images.lines().map(|it| format!("image {it}")));
        traces
    }

    /// The cgroups of this rig's containers, in every hierarchy, the common parent included.
    fn cgroups(&self) -> Vec<PathBuf> {
        let parent = evenkeel::config::cgroup_parent(&self.rig.run_dir());
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(root).unwrap().map(|it| it.unwrap().path());
        let tops =
            hierarchies.chain([root.to_owned()]).map(|it| it.join(parent.trim_start_matches('/')));
        let mut found = Vec::new();
        for top in tops.filter(|it| it.is_dir()) {
            let below = std::fs::read_dir(&top).unwrap().map(|it| it.unwrap().path());
            found.extend(below.filter(|it| it.is_dir()));
            found.push(top);
        }
        found
    }

    /// `<run>/ipc/<instance>`.
    pub(crate) fn published(&self, status: &Status, name: &str) -> PathBuf {
        self.rig.run_dir().join("ipc").join(&item(status, name).instance.as_ref().unwrap().id)
    }

    pub(crate) fn controller(&self) -> Controller {
        Controller::start(self, self.rig.command(&["run", "--engine", "system"]))
    }

    /// A controller in a mount namespace of its own, so that containerd does not see what it mounts.
    pub(crate) fn controller_apart(&self) -> Controller {
        let run = self.rig.command(&["run", "--engine", "system"]);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).arg(run.get_program());
        command.args(run.get_args()).current_dir(run.get_current_dir().unwrap());
        let variables = run.get_envs().filter_map(|(key, value)| Some((key, value?)));
        command.envs(variables).stdin(Stdio::null());
        Controller::start(self, command)
    }
}

/// A running `evenkeel run`, ended when it is dropped; containers keep running.
pub(crate) struct Controller {
    child: Child,
    log: PathBuf,
}

impl Controller {
    fn start(stage: &Stage, mut command: Command) -> Self {
        // A status of an earlier one must not be taken for this one's.
        drop(std::fs::remove_file(stage.rig.run_dir().join("status.json")));
        let log = stage.rig.dir().join("controller.log");
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: command.spawn().unwrap(), log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as its service manager would.
    pub(crate) fn end(mut self) {
        sweep::signal(self.child.id(), Signal::TERM);
        let code = self.child.wait().unwrap();
        assert!(code.success(), "{code}: {}", self.text());
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

#[expect(clippy::print_stdout, reason = "shown by the test runner when the test fails")]
impl Drop for Controller {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
        if std::thread::panicking() {
            println!("the controller logged:\n{}", self.text());
        }
    }
}

pub(crate) fn item<'a>(status: &'a Status, name: &str) -> &'a Item {
    find(status, name).unwrap_or_else(|| panic!("no `{name}` in {status:#?}"))
}

pub(crate) fn find<'a>(status: &'a Status, name: &str) -> Option<&'a Item> {
    status.items.iter().find(|it| it.name == name)
}

/// `Running`, with a process and nothing to complain about.
pub(crate) fn runs(status: &Status, name: &str) -> bool {
    find(status, name).is_some_and(|it| {
        it.phase.to_string() == "Running"
            && it.up_to_date
            && it.instance.as_ref().is_some_and(|it| it.pid.is_some())
    })
}

pub(crate) fn pid(status: &Status, name: &str) -> u32 {
    let instance = item(status, name).instance.as_ref();
    instance.and_then(|it| it.pid).unwrap_or_else(|| panic!("`{name}` does not run: {status:#?}"))
}

pub(crate) fn pids(status: &Status) -> BTreeMap<String, u32> {
    let pid = |it: &Item| it.instance.as_ref()?.pid;
    status.items.iter().filter_map(|it| Some((it.name.clone(), pid(it)?))).collect()
}

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) device: String,
    pub(crate) root: String,
    pub(crate) point: String,
    /// Of this mount: `nosuid`, `ro`.
    pub(crate) options: BTreeSet<String>,
    pub(crate) kind: String,
    pub(crate) source: String,
    /// Of its file system: `size=65536k`.
    pub(crate) super_options: BTreeSet<String>,
}

impl Mount {
    pub(crate) fn has(&self, options: &[&str]) -> bool {
        options.iter().all(|it| self.options.contains(*it))
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.options.contains("ro")
    }
}

/// All mounts that a process sees; `self` is the test's own.
pub(crate) fn mounts(process: &str) -> Vec<Mount> {
    let text = std::fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
    let set = |it: &str| it.split(',').map(str::to_owned).collect();
    let mount = |line: &str| {
        let (mount, system) = line.split_once(" - ")?;
        let mount: Vec<&str> = mount.split(' ').collect();
        let system: Vec<&str> = system.split(' ').collect();
        Some(Mount {
            device: mount[2].to_owned(),
            root: mount[3].to_owned(),
            point: mount[4].to_owned(),
            options: set(mount[5]),
            kind: system[0].to_owned(),
            source: system[1].to_owned(),
            super_options: set(system[2]),
        })
    };
    text.lines().map(|line| mount(line).unwrap()).collect()
}

/// What a process sees on a path: the topmost mount.
pub(crate) fn mount_on(process: &str, point: impl AsRef<Path>) -> Option<Mount> {
    mounts(process).into_iter().rfind(|it| Path::new(&it.point) == point.as_ref())
}

/// What a container's process sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inside {
    pub(crate) namespace: u64,
    pub(crate) shm: Option<Mount>,
    pub(crate) mqueue: Option<Mount>,
}

impl Inside {
    pub(crate) fn of(process: &str) -> Self {
        Self {
            namespace: ipc_namespace(process),
            shm: mount_on(process, "/dev/shm"),
            mqueue: mount_on(process, "/dev/mqueue"),
        }
    }

    pub(crate) fn shm_device(&self) -> &str {
        &self.shm.as_ref().expect("no /dev/shm").device
    }

    /// The three that are shared or not shared together.
    pub(crate) fn identity<'a>(&'a self) -> (u64, Option<&'a str>, Option<&'a str>) {
        let device = |it: &'a Option<Mount>| it.as_ref().map(|it| it.device.as_str());
        (self.namespace, device(&self.shm), device(&self.mqueue))
    }
}

/// Inode of a process's IPC namespace.
pub(crate) fn ipc_namespace(process: &str) -> u64 {
    std::fs::metadata(format!("/proc/{process}/ns/ipc")).unwrap().ino()
}

/// Runs a program inside of a container as a user without any right, and returns what it prints.
///
/// Each container gets a user of its own: the kernel counts the queues of a user across all namespaces.
pub(crate) fn inside(pid: u32, command: &[&str]) -> String {
    let user = (100_000 + pid).to_string();
    let output = Command::new("nsenter")
        .args(["--target", &pid.to_string(), "--mount", "--ipc", "--pid"])
        .args(["--setuid", &user, "--setgid", &user, "--"])
        .args(command)
        .env("PATH", "/bin:/usr/bin")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{command:?} inside of {pid}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Files that the program keeps about itself, not about a workload; and the archives.
fn is_own(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    let extension = path.extension();
    // The journal of events is one for all, and says what was refused.
    extension.is_some_and(|it| it == "tar" || it == "jsonl")
        || [
            "events",
            "lock",
            "status.json",
            "removals.json",
            "owner",
            "engine.json",
            "images",
            "logs",
        ]
        .contains(&name)
}

/// Everything below a directory, without going into other file systems.
pub(crate) fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut queue = vec![directory.to_owned()];
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|it| it.dev()).ok();
    while let Some(directory) = queue.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|it| it.is_dir()) && device(&path) == device(&directory)
            {
                queue.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

/// The ipc-probe example for use on the host.
pub(crate) fn probe() -> PathBuf {
    probe_archive();
    target().join("ipc-probe/release/ipc-probe")
}

/// The archive with [`IMAGE`]; made when the test script has not made it before.
pub(crate) fn probe_archive() -> PathBuf {
    let archive = target().join("busybox.tar");
    if !archive.exists() || !target().join("ipc-probe/release/ipc-probe").exists() {
        make_archive(&archive, IMAGE);
    }
    archive
}

/// Makes an archive of the probe's image under any name.
pub(crate) fn make_archive(file: &Path, name: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/image");
    let output = Command::new(script)
        .arg(file)
        .arg(name)
        .env("CARGO_TARGET_DIR", target())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().to_owned()
}
