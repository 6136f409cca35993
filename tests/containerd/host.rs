//! One contract for both hosts, and what only the real one can show. Needs root: it mounts below a directory of its
//! own and starts processes with namespaces of their own.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evenkeel::host::linux::LinuxHost;
use evenkeel::host::memory::{Lost, MemoryHost};
use evenkeel::host::{Ask, Facts, Host, Process, ProcessIpc, ProcessShm, Whom, mountinfo};
use evenkeel::observed::{FileKind, Published, Stray, View, published_paths};
use evenkeel::rundir::RunDirectory;
use evenkeel::workload::{Bytes, InstanceId, Signal};

use crate::program::eventually;
use crate::rig::sweep;

/// A host and the hands that a test needs beside it.
trait Harness {
    type Host: Host;

    fn new() -> Self;
    fn host(&self) -> &Self::Host;
    fn run(&self) -> PathBuf;
    /// Starts a process that lives until [`Harness::end`].
    fn start(&mut self, process: Process) -> u32;
    fn end(&mut self, pid: u32);
    /// Mounts one more tmpfs on an instance's `shm`.
    fn stack(&self, id: &InstanceId);
    /// Makes an instance's directory with nothing mounted, as a crash before the first mount leaves it.
    fn leave_directory(&self, id: &InstanceId);
    /// Number of mounts on `shm` and the size in bytes of the one on top.
    fn shm(&self, id: &InstanceId) -> (usize, Option<u64>);
    /// Starts a process of an instance that no runtime knows of; the low-level one keeps what it keeps of each.
    fn strand(&mut self, id: &InstanceId) -> u32;
    /// A path for a bind source.
    fn source(&self, name: &str, kind: FileKind) -> PathBuf;
}

struct Memory {
    host: MemoryHost,
    processes: Arc<Mutex<BTreeMap<u32, Process>>>,
    lost: Arc<Mutex<BTreeMap<InstanceId, Stray>>>,
    last_pid: u32,
}

impl Harness for Memory {
    type Host = MemoryHost;

    fn new() -> Self {
        let processes: Arc<Mutex<BTreeMap<u32, Process>>> = Arc::default();
        let known = Arc::clone(&processes);
        let host = MemoryHost::new(
            Path::new("/run/evenkeel"),
            Arc::new(move |pid| known.lock().unwrap().get(&pid).cloned()),
        );
        let lost: Arc<Mutex<BTreeMap<InstanceId, Stray>>> = Arc::default();
        let (all, signal, remove) = (Arc::clone(&lost), Arc::clone(&lost), Arc::clone(&lost));
        let host = host.with_lost(Lost {
            all: Arc::new(move || all.lock().unwrap().clone()),
            signal: Arc::new(move |id, _| {
                signal.lock().unwrap().get_mut(id).unwrap().pids.clear();
            }),
            remove: Arc::new(move |id| drop(remove.lock().unwrap().remove(id))),
        });
        Self { host, processes, lost, last_pid: 100 }
    }

    fn host(&self) -> &MemoryHost {
        &self.host
    }

    fn run(&self) -> PathBuf {
        "/run/evenkeel".into()
    }

    fn start(&mut self, process: Process) -> u32 {
        self.last_pid += 1;
        let pid = self.last_pid;
        self.processes.lock().unwrap().insert(pid, process);
        // The controller looks at every process before it runs; who joins is joined from then on.
        self.host.view(pid).unwrap().unwrap();
        pid
    }

    fn strand(&mut self, id: &InstanceId) -> u32 {
        self.last_pid += 1;
        let stray = Stray { pids: [self.last_pid].into(), unsure: false };
        self.lost.lock().unwrap().insert(id.clone(), stray);
        self.last_pid
    }

    fn end(&mut self, pid: u32) {
        self.processes.lock().unwrap().remove(&pid);
    }

    fn stack(&self, id: &InstanceId) {
        self.host.stack_shm(id, MIB);
    }

    fn leave_directory(&self, id: &InstanceId) {
        self.host.leave_directory(id);
    }

    fn shm(&self, id: &InstanceId) -> (usize, Option<u64>) {
        let sizes = self.host.shm_sizes(id);
        (sizes.len(), sizes.last().copied())
    }

    fn source(&self, name: &str, kind: FileKind) -> PathBuf {
        let path = Path::new("/srv").join(name);
        self.host.set_path(&path, Some(kind));
        path
    }
}

struct Linux {
    // `None` only while it is dropped.
    directory: Option<tempfile::TempDir>,
    host: LinuxHost,
    children: Vec<Child>,
    /// Where the cgroups of its instances are.
    cgroups: PathBuf,
}

impl Harness for Linux {
    type Host = LinuxHost;

    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("evenkeel host ").tempdir().unwrap();
        let parent = format!("evenkeel-host-{}", std::process::id());
        let host = LinuxHost::new(&directory.path().join("run"), &format!("/{parent}")).unwrap();
        let roots = ["/sys/fs/cgroup/devices", "/sys/fs/cgroup"].map(PathBuf::from);
        let root = roots.into_iter().find(|it| it.join("cgroup.procs").exists()).unwrap();
        let cgroups = root.join(parent);
        Self { directory: Some(directory), host, children: Vec::new(), cgroups }
    }

    fn host(&self) -> &LinuxHost {
        &self.host
    }

    fn run(&self) -> PathBuf {
        fs::canonicalize(self.directory.as_ref().unwrap().path()).unwrap().join("run")
    }

    fn start(&mut self, process: Process) -> u32 {
        let shm = match process.shm {
            ProcessShm::None => "umount -l /dev/shm; umount -l /dev/shm; true".to_owned(),
            ProcessShm::Own => "mount -t tmpfs own /dev/shm".to_owned(),
            ProcessShm::Host => "true".to_owned(),
            ProcessShm::Path(path) => format!("mount --bind '{}' /dev/shm", path.display()),
        };
        let script = format!("({shm}) 2>/dev/null && echo ready && exec sleep 600");
        let unshared = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script];
        let mut command = match process.ipc {
            ProcessIpc::Own => command(&["unshare", "--ipc"]),
            ProcessIpc::Host => command(&["env"]),
            ProcessIpc::Path(path) => command(&["nsenter", &format!("--ipc={}", path.display())]),
        };
        let mut child = command.args(unshared).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the process could not be made: is this root?");
        if let Some(instance) = process.instance {
            let cgroup = self.cgroup().join(instance.as_str());
            fs::create_dir_all(&cgroup).unwrap();
            fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        self.children.push(child);
        self.children.last().unwrap().id()
    }

    fn end(&mut self, pid: u32) {
        let n = self.children.iter().position(|it| it.id() == pid).unwrap();
        let mut child = self.children.remove(n);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn stack(&self, id: &InstanceId) {
        let shm = published_paths(&self.run(), id).shm;
        fs::create_dir_all(&shm).unwrap();
        rustix::mount::mount("shm", &shm, "tmpfs", rustix::mount::MountFlags::empty(), c"size=1m")
            .unwrap();
    }

    fn leave_directory(&self, id: &InstanceId) {
        let paths = published_paths(&self.run(), id);
        fs::create_dir_all(&paths.shm).unwrap();
        fs::write(&paths.ns, "").unwrap();
    }

    fn shm(&self, id: &InstanceId) -> (usize, Option<u64>) {
        let shm = published_paths(&self.run(), id).shm;
        let mounts = mounts_below(&shm);
        let size = (!mounts.is_empty())
            .then(|| rustix::fs::statvfs(&shm).unwrap())
            .map(|it| it.f_blocks * it.f_frsize);
        (mounts.len(), size)
    }

    fn strand(&mut self, id: &InstanceId) -> u32 {
        let pid = self.member(id.as_str(), command(&["sleep", "600"]));
        self.keep(id, pid);
        pid
    }

    fn source(&self, name: &str, kind: FileKind) -> PathBuf {
        let path = self.directory.as_ref().unwrap().path().join(name);
        match kind {
            FileKind::Directory => fs::create_dir(&path).unwrap(),
            FileKind::Other => fs::write(&path, "").unwrap(),
            FileKind::Silent => unreachable!("no source of these tests is silent"),
        }
        path
    }
}

impl Linux {
    /// What those of its instances are in.
    fn cgroup(&self) -> PathBuf {
        let name = self.directory.as_ref().unwrap().path().file_name().unwrap();
        let roots = sweep::cgroup_roots();
        let root = roots.iter().find(|it| it.join("cgroup.procs").exists()).unwrap();
        root.join(name.to_str().unwrap().replace(' ', "-"))
    }
}

impl Drop for Linux {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
        for cgroup in [&self.cgroups, &self.cgroup()] {
            sweep::remove_cgroups(cgroup);
        }
        // A failed test leaves its mounts; they would keep the directory.
        if let Some(directory) = &self.directory {
            for mount in mounts_below(directory.path()).iter().rev() {
                rustix::mount::unmount(&mount.point, rustix::mount::UnmountFlags::DETACH).ok();
            }
        }
    }
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

fn mounts_below(path: &Path) -> Vec<mountinfo::Mount> {
    let mut mounts = mountinfo::parse(&fs::read("/proc/self/mountinfo").unwrap());
    mounts.retain(|mount| mount.point.starts_with(path));
    mounts
}

impl Linux {
    /// A process in the cgroup at that path below that of all instances.
    fn member(&mut self, cgroup: &str, mut process: Command) -> u32 {
        let cgroup = self.cgroups.join(cgroup);
        fs::create_dir_all(&cgroup).unwrap();
        let child = process.stdin(Stdio::null()).spawn().unwrap();
        fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
        self.children.push(child);
        self.children.last().unwrap().id()
    }

    fn bundle(&self, id: &InstanceId) -> PathBuf {
        let state = fs::canonicalize(self.directory.as_ref().unwrap().path()).unwrap();
        state.join("state/evenkeel").join(id.as_str())
    }

    /// What runc keeps of a container.
    fn keep(&self, id: &InstanceId, pid: u32) {
        let kept = self.run().join("runc/evenkeel").join(id.as_str());
        fs::create_dir_all(&kept).unwrap();
        let start = evenkeel::host::linux::start_time(pid).unwrap();
        let rootfs = self.bundle(id).join("rootfs");
        fs::create_dir_all(&rootfs).unwrap();
        let state = format!(
            r#"{{"id":"{id}","init_process_pid":{pid},"init_process_start":{start},"config":{{"rootfs":"{}"}}}}"#,
            rootfs.display()
        );
        fs::write(kept.join("state.json"), state).unwrap();
    }
}

const MIB: Bytes = Bytes::new(1 << 20).unwrap();

fn id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

fn own() -> Process {
    Process { ipc: ProcessIpc::Own, shm: ProcessShm::Own, instance: None }
}

/// Of an instance, in a namespace of its own.
fn of(instance: &str) -> Process {
    Process { instance: Some(id(instance)), ..own() }
}

fn donor(run: &Path, id: &InstanceId) -> Process {
    Process { shm: ProcessShm::Path(published_paths(run, id).shm), ..own() }
}

fn joiner(run: &Path, id: &InstanceId) -> Process {
    let paths = published_paths(run, id);
    Process { ipc: ProcessIpc::Path(paths.ns), shm: ProcessShm::Path(paths.shm), instance: None }
}

/// What stands where the directory of an instance should be.
#[test]
fn a_link_in_the_place_of_a_directory_is_removed_and_not_followed() {
    let it = Linux::new();
    let id = id("web-0123456789");
    let foreign = it.run().join("foreign");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("file"), "somebody's").unwrap();
    let base = it.run().join("ipc");
    fs::create_dir_all(&base).unwrap();
    std::os::unix::fs::symlink(&foreign, base.join(id.as_str())).unwrap();
    it.host().unpublish(&id).unwrap();
    assert!(foreign.join("file").exists());
    assert_eq!(facts(it.host()).published, BTreeMap::new());
}

fn facts<H: Host>(host: &H) -> Facts {
    host.observe(&Ask::default()).unwrap()
}

fn published<H: Host>(host: &H, id: &InstanceId) -> Option<Published> {
    facts(host).published.get(id).copied()
}

fn view<H: Host>(host: &H, pid: u32) -> View {
    host.view(pid).unwrap().expect("the process lives")
}

fn an_untouched_host_publishes_nothing<T: Harness>() {
    let it = T::new();
    let facts = facts(it.host());
    assert!(facts.published.is_empty() && facts.paths.is_empty() && facts.views.is_empty());
    assert!(!facts.boot_id.is_empty());
    assert!(facts.host_view.is_some());
}

fn publishing_shm_twice_is_one_mount<T: Harness>() {
    let (it, a) = (T::new(), id("a-1"));
    it.host().publish_shm(&a, MIB).unwrap();
    let before = published(it.host(), &a).unwrap();
    it.host().publish_shm(&a, MIB).unwrap();
    assert_eq!(published(it.host(), &a), Some(before));
    assert_eq!((before.directory, before.shm_mounts, before.ns), (true, 1, false));
    assert_eq!(it.shm(&a), (1, Some(MIB.get())));
}

fn a_size_is_rounded_up_to_a_page_and_stays_one_mount<T: Harness>() {
    let (it, a, odd) = (T::new(), id("a-1"), Bytes::new(5000).unwrap());
    it.host().publish_shm(&a, odd).unwrap();
    let before = published(it.host(), &a);
    it.host().publish_shm(&a, odd).unwrap();
    assert_eq!(it.shm(&a), (1, Some(8192)));
    assert_eq!(published(it.host(), &a), before);
}

fn stacked_leftovers_are_seen_and_replaced_by_one_mount<T: Harness>() {
    let (it, a) = (T::new(), id("a-1"));
    it.stack(&a);
    it.stack(&a);
    assert_eq!(published(it.host(), &a).unwrap().shm_mounts, 2);
    it.host().publish_shm(&a, MIB).unwrap();
    assert_eq!(it.shm(&a).0, 1);
}

fn a_leftover_of_another_size_is_replaced<T: Harness>() {
    let (it, a, other) = (T::new(), id("a-1"), Bytes::new(3 << 20).unwrap());
    it.host().publish_shm(&a, MIB).unwrap();
    it.host().publish_shm(&a, other).unwrap();
    assert_eq!(it.shm(&a), (1, Some(other.get())));
}

fn unpublishing_twice_leaves_nothing<T: Harness>() {
    let (mut it, a) = (T::new(), id("a-1"));
    it.host().publish_shm(&a, MIB).unwrap();
    it.stack(&a);
    let pid = it.start(own());
    it.host().publish_namespace(&a, pid).unwrap();
    it.host().unpublish(&a).unwrap();
    assert_eq!(published(it.host(), &a), None);
    it.host().unpublish(&a).unwrap();
    it.host().unpublish(&id("never-there")).unwrap();
    assert!(facts(it.host()).published.is_empty());
}

fn a_directory_without_mounts_is_a_leftover_and_goes<T: Harness>() {
    let (it, a) = (T::new(), id("a-1"));
    it.leave_directory(&a);
    let expected = Published { directory: true, ..Published::default() };
    assert_eq!(published(it.host(), &a), Some(expected), "a plain file on `ns` pins nothing");
    it.host().unpublish(&a).unwrap();
    assert_eq!(published(it.host(), &a), None);
}

fn publishing_over_a_half_made_directory_works<T: Harness>() {
    let (mut it, a) = (T::new(), id("a-1"));
    it.leave_directory(&a);
    it.host().publish_shm(&a, MIB).unwrap();
    let pid = it.start(own());
    it.host().publish_namespace(&a, pid).unwrap();
    let there = published(it.host(), &a).unwrap();
    assert_eq!((there.shm_mounts, there.ns), (1, true));
}

fn a_pinned_namespace_is_that_of_its_process<T: Harness>() {
    let (mut it, a) = (T::new(), id("a-1"));
    let pid = it.start(own());
    it.host().publish_namespace(&a, pid).unwrap();
    it.host().publish_namespace(&a, pid).unwrap();
    let there = published(it.host(), &a).unwrap();
    assert!(there.ns);
    assert_eq!(there.ns_inode, Some(view(it.host(), pid).ipc_ns));
    assert_ne!(there.ns_inode, facts(it.host()).host_view.map(|it| it.ipc_ns));
}

fn a_new_process_takes_the_place_of_the_pinned_one<T: Harness>() {
    let (mut it, a) = (T::new(), id("a-1"));
    let first = it.start(own());
    let second = it.start(own());
    it.host().publish_namespace(&a, first).unwrap();
    it.host().publish_namespace(&a, second).unwrap();
    assert_eq!(published(it.host(), &a).unwrap().ns_inode, Some(view(it.host(), second).ipc_ns));
}

fn the_pin_keeps_the_namespace_after_its_process_died<T: Harness>() {
    let (mut it, a, run) = (T::new(), id("a-1"), T::run);
    it.host().publish_shm(&a, MIB).unwrap();
    let process = donor(&run(&it), &a);
    let pid = it.start(process);
    it.host().publish_namespace(&a, pid).unwrap();
    let inode = view(it.host(), pid).ipc_ns;
    it.end(pid);
    assert_eq!(published(it.host(), &a).unwrap().ns_inode, Some(inode));
    let process = joiner(&run(&it), &a);
    let pid = it.start(process);
    assert_eq!(view(it.host(), pid).ipc_ns, inode);
}

fn the_namespace_of_a_dead_process_is_not_published<T: Harness>() {
    let (mut it, a) = (T::new(), id("a-1"));
    let pid = it.start(own());
    it.end(pid);
    let error = it.host().publish_namespace(&a, pid).unwrap_err();
    assert!(error.to_string().contains("a-1"), "{error}");
    assert!(!published(it.host(), &a).unwrap_or_default().ns);
}

fn donor_and_joiner_see_the_same_two_things<T: Harness>() {
    let (mut it, a) = (T::new(), id("a-1"));
    it.host().publish_shm(&a, MIB).unwrap();
    let process = donor(&it.run(), &a);
    let first = it.start(process);
    it.host().publish_namespace(&a, first).unwrap();
    let process = joiner(&it.run(), &a);
    let second = it.start(process);
    assert_eq!(view(it.host(), first), view(it.host(), second));
    assert_eq!(view(it.host(), first).shm, published(it.host(), &a).unwrap().shm);
}

fn a_joiner_keeps_what_it_has_when_its_donor_is_unpublished<T: Harness>() {
    let (mut it, a) = (T::new(), id("a-1"));
    it.host().publish_shm(&a, MIB).unwrap();
    let process = donor(&it.run(), &a);
    let first = it.start(process);
    it.host().publish_namespace(&a, first).unwrap();
    let process = joiner(&it.run(), &a);
    let second = it.start(process);
    let before = view(it.host(), second);
    it.end(first);
    it.host().unpublish(&a).unwrap();
    assert_eq!(view(it.host(), second), before);
    assert_eq!(published(it.host(), &a), None);
    // The donor runs anew: the joiner is left in the old pair, and that can be seen.
    it.host().publish_shm(&a, MIB).unwrap();
    let process = donor(&it.run(), &a);
    let third = it.start(process);
    it.host().publish_namespace(&a, third).unwrap();
    let (donor, joiner) = (view(it.host(), third), view(it.host(), second));
    assert_eq!(joiner, before);
    assert_ne!(donor.ipc_ns, joiner.ipc_ns);
    assert_ne!(donor.shm, joiner.shm);
}

fn a_private_process_shares_nothing<T: Harness>() {
    let (mut it, a) = (T::new(), id("a-1"));
    it.host().publish_shm(&a, MIB).unwrap();
    let pid = it.start(own());
    let other = it.start(own());
    let (one, two) = (view(it.host(), pid), view(it.host(), other));
    let host = facts(it.host()).host_view.unwrap();
    assert_ne!(one.ipc_ns, two.ipc_ns);
    assert_ne!(one.ipc_ns, host.ipc_ns);
    assert_ne!(one.shm, two.shm);
    assert_ne!(one.shm, host.shm);
    assert_ne!(one.shm, published(it.host(), &a).unwrap().shm);
}

fn a_process_of_the_host_sees_what_the_host_sees<T: Harness>() {
    let mut it = T::new();
    let pid = it.start(Process { ipc: ProcessIpc::Host, shm: ProcessShm::Host, instance: None });
    let host = facts(it.host()).host_view.unwrap();
    let seen = view(it.host(), pid);
    assert_eq!((seen.ipc_ns, seen.shm), (host.ipc_ns, host.shm));
}

fn a_process_without_shm_has_none<T: Harness>() {
    let mut it = T::new();
    let pid = it.start(Process { shm: ProcessShm::None, ..own() });
    let seen = view(it.host(), pid);
    assert_eq!((seen.shm, seen.shm_root), (None, None));
}

fn what_is_not_mounted_is_seen_as_the_disk_below<T: Harness>() {
    let (mut it, a) = (T::new(), id("a-1"));
    it.leave_directory(&a);
    let process = donor(&it.run(), &a);
    let pid = it.start(process);
    let shm = view(it.host(), pid).shm;
    assert!(shm.is_some(), "the trap: the process has a /dev/shm");
    assert_eq!(published(it.host(), &a).unwrap().shm, None);
    assert_ne!(shm, facts(it.host()).host_view.unwrap().shm);
}

fn a_dead_process_has_no_view<T: Harness>() {
    let mut it = T::new();
    let pid = it.start(own());
    assert!(it.host().view(pid).unwrap().is_some());
    it.end(pid);
    assert_eq!(it.host().view(pid).unwrap(), None);
    let alive = it.start(of("a-1"));
    let pids = [(pid, id("a-1")), (alive, id("a-1"))].into();
    let facts = it.host().observe(&Ask { pids, ..Ask::default() }).unwrap();
    assert_eq!(facts.views.keys().copied().collect::<Vec<_>>(), [alive]);
}

/// A pid that a runtime remembers may be somebody else's by now.
fn a_process_is_looked_at_for_its_own_instance_only<T: Harness>() {
    let mut it = T::new();
    let (a, b, stranger) = (it.start(of("a-1")), it.start(of("a-11")), it.start(own()));
    let seen = |pids: &[(u32, &str)]| {
        let pids = pids.iter().map(|(pid, name)| (*pid, id(name))).collect();
        let facts = it.host().observe(&Ask { pids, ..Ask::default() }).unwrap();
        facts.views.into_iter().collect::<Vec<_>>()
    };
    let view = |pid| (pid, it.host().view(pid).unwrap().unwrap());
    let mut both = [view(a), view(b)];
    both.sort_unstable_by_key(|it| it.0);
    assert_eq!(seen(&[(a, "a-1"), (b, "a-11"), (stranger, "c-1")]), both);
    assert_eq!(seen(&[(a, "a-11"), (b, "a-1"), (stranger, "a-1")]), []);
}

fn instances_do_not_touch_each_other<T: Harness>() {
    let (it, a, b) = (T::new(), id("a-1"), id("a-10"));
    it.host().publish_shm(&a, MIB).unwrap();
    it.host().publish_shm(&b, MIB).unwrap();
    let before = published(it.host(), &b);
    assert_ne!(published(it.host(), &a).unwrap().shm, before.unwrap().shm);
    it.host().unpublish(&a).unwrap();
    assert_eq!(published(it.host(), &a), None);
    assert_eq!(published(it.host(), &b), before);
}

fn bind_sources_are_told_apart<T: Harness>() {
    let it = T::new();
    let directory = it.source("directory", FileKind::Directory);
    let file = it.source("file", FileKind::Other);
    let missing = directory.join("missing");
    let ask =
        Ask { paths: [&directory, &file, &missing].map(Clone::clone).into(), ..Ask::default() };
    let facts = it.host().observe(&ask).unwrap();
    assert_eq!(
        facts.paths,
        BTreeMap::from([(directory, FileKind::Directory), (file, FileKind::Other)])
    );
}

fn a_missing_source_directory_is_made_once<T: Harness>() {
    let it = T::new();
    let file = it.source("file", FileKind::Other);
    let directory = it.source("directory", FileKind::Directory).join("a");
    it.host().make_directory(&directory).unwrap();
    it.host().make_directory(&directory).unwrap();
    let ask = Ask { paths: BTreeSet::from([directory.clone()]), ..Ask::default() };
    assert_eq!(
        it.host().observe(&ask).unwrap().paths,
        BTreeMap::from([(directory, FileKind::Directory)])
    );
    assert!(it.host().make_directory(&file).is_err(), "a file is not a directory");
}

fn clocks_do_not_go_back_and_say_the_day<T: Harness>() {
    let it = T::new();
    let before = it.host().now();
    assert!(it.host().now() >= before && before.0 > Duration::ZERO);
    let wall = it.host().wall_clock();
    assert_eq!(wall.len(), "2026-01-01T00:00:00.000Z".len(), "{wall}");
    assert!(wall.starts_with("20") && wall.ends_with('Z'), "{wall}");
}

fn strays<H: Host>(host: &H, tasks: &[&InstanceId]) -> BTreeMap<InstanceId, Stray> {
    let tasks = Some(tasks.iter().map(|it| (*it).clone()).collect());
    let facts = host.observe(&Ask { tasks, ..Ask::default() }).unwrap();
    assert_eq!(facts.strays_unknown, None);
    facts.strays
}

fn what_no_runtime_knows_of_is_found_ended_and_removed<T: Harness>() {
    let mut it = T::new();
    let (lost, other) = (id("a-0123456789"), id("b-0123456789"));
    assert_eq!(strays(it.host(), &[]), BTreeMap::new());
    let pid = it.strand(&lost);
    let bystander = it.strand(&other);
    let stray = |pids: &[u32]| Stray { pids: pids.iter().copied().collect(), unsure: false };
    let found = strays(it.host(), &[&other]);
    assert_eq!(found, BTreeMap::from([(lost.clone(), stray(&[pid]))]));
    assert_eq!(it.host().stray(&lost).unwrap(), Some(stray(&[pid])));
    assert!(facts(it.host()).strays.is_empty(), "nobody has asked");
    // What runs keeps all that it has.
    it.host().remove_stray(&lost).unwrap_err();
    assert!(it.host().signal_stray(&lost, Whom::All, Signal::KILL).unwrap());
    let ended = || (it.host().stray(&lost).unwrap() == Some(stray(&[]))).then_some(());
    eventually("the end of the process", ended);
    assert!(!it.host().signal_stray(&lost, Whom::Main, Signal::KILL).unwrap());
    assert_eq!(strays(it.host(), &[&other]), BTreeMap::from([(lost.clone(), stray(&[]))]));
    for _ in 0..2 {
        it.host().remove_stray(&lost).unwrap();
        assert_eq!(it.host().stray(&lost).unwrap(), None);
    }
    assert_eq!(strays(it.host(), &[]), BTreeMap::from([(other, stray(&[bystander]))]));
}

macro_rules! contract {
    ($($case:ident)*) => {
        mod memory {
            $(#[test] fn $case() { super::$case::<super::Memory>(); })*
        }
        mod linux {
            $(#[test] fn $case() { super::$case::<super::Linux>(); })*
        }
    };
}

contract! {
    what_no_runtime_knows_of_is_found_ended_and_removed
    an_untouched_host_publishes_nothing
    publishing_shm_twice_is_one_mount
    a_size_is_rounded_up_to_a_page_and_stays_one_mount
    stacked_leftovers_are_seen_and_replaced_by_one_mount
    a_leftover_of_another_size_is_replaced
    unpublishing_twice_leaves_nothing
    a_directory_without_mounts_is_a_leftover_and_goes
    publishing_over_a_half_made_directory_works
    a_pinned_namespace_is_that_of_its_process
    a_new_process_takes_the_place_of_the_pinned_one
    the_pin_keeps_the_namespace_after_its_process_died
    the_namespace_of_a_dead_process_is_not_published
    donor_and_joiner_see_the_same_two_things
    a_joiner_keeps_what_it_has_when_its_donor_is_unpublished
    a_private_process_shares_nothing
    a_process_of_the_host_sees_what_the_host_sees
    a_process_without_shm_has_none
    what_is_not_mounted_is_seen_as_the_disk_below
    a_dead_process_has_no_view
    a_process_is_looked_at_for_its_own_instance_only
    instances_do_not_touch_each_other
    bind_sources_are_told_apart
    a_missing_source_directory_is_made_once
    clocks_do_not_go_back_and_say_the_day
}

/// Text of the mountinfo line on `path`, as a person would grep it.
fn mount_line(path: &Path) -> String {
    let point = path.to_str().unwrap().replace(' ', "\\040");
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut lines = text.lines().filter(|line| line.split(' ').nth(4) == Some(&point));
    lines.next().expect("it is mounted").to_owned()
}

#[test]
fn the_published_tmpfs_has_the_options_of_the_reference_and_does_not_propagate() {
    let (it, a) = (Linux::new(), id("a-1"));
    it.host.publish_shm(&a, Bytes::new(64 << 20).unwrap()).unwrap();
    let shm = published_paths(&it.run(), &a).shm;
    let line = mount_line(&shm);
    let (front, back) = line.split_once(" - ").unwrap();
    assert!(
        front.ends_with("rw,nosuid,nodev,noexec,relatime"),
        "options without propagation: {line}"
    );
    assert!(back.starts_with("tmpfs shm rw,size=65536k"), "{line}");
    let metadata = fs::metadata(&shm).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o1777, 0));
    for directory in [it.run(), it.run().join("ipc"), it.run().join("ipc/a-1")] {
        assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o7777, 0o700);
    }
    let base = mount_line(&it.run().join("ipc"));
    assert!(!base.contains("shared:") && !base.contains("master:"), "{base}");
}

#[test]
fn publishing_again_keeps_what_is_in_it() {
    let (it, a) = (Linux::new(), id("a-1"));
    it.host.publish_shm(&a, MIB).unwrap();
    let object = published_paths(&it.run(), &a).shm.join("object");
    fs::write(&object, "kept").unwrap();
    it.host.publish_shm(&a, MIB).unwrap();
    assert_eq!(fs::read_to_string(&object).unwrap(), "kept");
}

#[test]
fn nothing_propagates_out_of_a_shared_mount() {
    let it = Linux::new();
    let root = fs::canonicalize(it.directory.as_ref().unwrap().path()).unwrap();
    rustix::mount::mount_bind(&root, &root).unwrap();
    rustix::mount::mount_change(&root, rustix::mount::MountPropagationFlags::SHARED).unwrap();
    let twin = tempfile::tempdir().unwrap();
    rustix::mount::mount_bind(&root, twin.path()).unwrap();
    let a = id("a-1");
    it.host.publish_shm(&a, MIB).unwrap();
    let copies: Vec<PathBuf> = mounts_below(twin.path()).into_iter().map(|it| it.point).collect();
    it.host.unpublish(&a).unwrap();
    let left = mounts_below(twin.path()).len();
    rustix::mount::unmount(twin.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(!copies.iter().any(|it| it.ends_with("shm")), "{copies:?}");
    assert_eq!(left, 1, "only the twin itself is mounted there");
}

#[test]
fn unpublishing_the_last_instance_leaves_no_mount_and_no_directory() {
    let (it, a, b) = (Linux::new(), id("a-1"), id("b-1"));
    it.host.publish_shm(&a, MIB).unwrap();
    it.host.publish_shm(&b, MIB).unwrap();
    it.host.unpublish(&a).unwrap();
    assert_eq!(mounts_below(&it.run()).len(), 2, "the private mount and the other shm");
    it.host.unpublish(&b).unwrap();
    assert!(mounts_below(&it.run()).is_empty());
    assert_eq!(fs::read_dir(it.run()).unwrap().count(), 0);
}

/// Nobody would find it later: it belongs to no instance.
#[test]
fn who_looks_meanwhile_does_not_keep_the_last_mount_from_going() {
    let it = Linux::new();
    let id = id("a-0123456789");
    let over = std::sync::atomic::AtomicBool::new(false);
    let base = it.run().join("ipc");
    let stayed = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::SeqCst) {
                    facts(it.host());
                }
            });
        }
        let stayed = (0..200).filter(|_| {
            it.host().publish_shm(&id, MIB).unwrap();
            it.host().unpublish(&id).unwrap();
            base.exists() || !mounts_below(&base).is_empty()
        });
        let stayed = stayed.count();
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        stayed
    });
    assert_eq!(stayed, 0, "of 200 times");
}

#[test]
fn foreign_mounts_next_to_ours_are_not_touched() {
    let (it, a) = (Linux::new(), id("a-1"));
    it.host.publish_shm(&a, MIB).unwrap();
    let foreign =
        [it.run().join("ipc/.foreign"), it.run().join("foreign"), it.run().join("ipc/a-12")];
    for path in &foreign {
        fs::create_dir(path).unwrap();
        rustix::mount::mount(
            "other",
            path,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            c"size=64k",
        )
        .unwrap();
        fs::write(path.join("file"), "kept").unwrap();
    }
    it.host.unpublish(&a).unwrap();
    it.host.unpublish(&id("a")).unwrap();
    for path in &foreign {
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept", "{}", path.display());
    }
    assert!(mounts_below(&it.run().join("ipc/a-1")).is_empty());
}

#[test]
fn the_memory_of_an_unpublished_shm_lives_as_long_as_its_joiner() {
    let (mut it, a) = (Linux::new(), id("a-1"));
    it.host.publish_shm(&a, MIB).unwrap();
    let shm = published_paths(&it.run(), &a).shm;
    fs::write(shm.join("object"), "still here").unwrap();
    let pid = it.start(Process { shm: ProcessShm::Path(shm), ..own() });
    it.host.unpublish(&a).unwrap();
    assert_eq!(
        fs::read_to_string(format!("/proc/{pid}/root/dev/shm/object")).unwrap(),
        "still here"
    );
    it.host.publish_shm(&a, MIB).unwrap();
    let fresh = published_paths(&it.run(), &a).shm;
    assert_eq!(fs::read_dir(fresh).unwrap().count(), 0, "the next run starts empty");
}

#[test]
fn removal_works_while_another_mount_namespace_holds_a_copy() {
    let (mut it, a) = (Linux::new(), id("a-1"));
    it.host.publish_shm(&a, MIB).unwrap();
    // As a service with private mounts or a monitoring agent does.
    let pid = it.start(own());
    let copies = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert!(copies.contains("/ipc/a-1/shm"));
    it.host.unpublish(&a).unwrap();
    assert_eq!(published(&it.host, &a), None);
    let copies = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert!(!copies.contains("/ipc/a-1/shm"), "removing the mount point detaches the copy");
}

#[test]
fn a_zombie_is_gone() {
    let it = Linux::new();
    let mut child = command(&["sleep", "600"]).spawn().unwrap();
    assert!(it.host.view(child.id()).unwrap().is_some());
    child.kill().unwrap();
    // Not waited for: it stays a zombie, which becomes one at its own pace.
    let deadline = Duration::from_secs(20);
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_child(&child),
        rustix::process::PidfdFlags::empty(),
    );
    let pidfd = pidfd.unwrap();
    let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec::try_from(deadline).unwrap();
    assert_eq!(rustix::event::poll(&mut poll, Some(&timeout)).unwrap(), 1);
    assert_eq!(it.host.view(child.id()).unwrap(), None);
    assert_eq!(evenkeel::host::linux::start_time(child.id()), None);
    child.wait().unwrap();
}

#[test]
fn a_process_lives_while_one_of_its_threads_does() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("threads.c");
    let program = directory.path().join("threads");
    // Its first thread ends at once; the second waits for the end of its input.
    let text = r"
        #include <pthread.h>
        #include <unistd.h>
        static void *wait_for_end(void *none) { char byte; while (read(0, &byte, 1) > 0); _exit(0); }
        int main(void) {
            pthread_t thread;
            if (pthread_create(&thread, 0, wait_for_end, 0)) return 1;
            pthread_exit(0);
        }
    ";
    std::fs::write(&source, text).unwrap();
    let compiler = command(&["cc", "-pthread", "-o"]).arg(&program).arg(&source).status().unwrap();
    assert!(compiler.success());
    let it = Linux::new();
    let mut child = Command::new(&program).stdin(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    };
    eventually("the end of the first thread", || (state() == 'Z').then_some(()));
    assert!(evenkeel::host::linux::start_time(pid).is_some());
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(evenkeel::host::linux::start_time(pid), None);
    assert_eq!(it.host.view(pid).unwrap(), None);
}

#[test]
fn only_a_process_of_another_kind_than_ours_is_killed() {
    let it = Linux::new();
    for pid in [0, 1, std::process::id(), u32::MAX] {
        assert!(it.host.kill(pid, &id("a-1")).is_err(), "{pid}");
    }
}

#[test]
fn only_a_process_in_the_cgroup_of_its_instance_is_killed() {
    let it = Linux::new();
    let roots = sweep::cgroup_roots();
    let root = roots.iter().find(|it| it.join("cgroup.procs").exists()).unwrap();
    let parent = root.join(format!("evenkeel-host-{}", std::process::id()));
    std::fs::create_dir_all(parent.join("a-1")).unwrap();
    let mut cat = command(&["cat"]);
    let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::fs::write(parent.join("a-1/cgroup.procs"), child.id().to_string()).unwrap();
    // Another instance's, and one whose name begins like that.
    for other in ["b-1", "a-11", "a"] {
        it.host.kill(child.id(), &id(other)).unwrap();
    }
    // A process that was killed may be listed for a while, but answers no more.
    let asked = child.stdin.as_mut().unwrap().write_all(b"x");
    let mut answer = Vec::new();
    child.stdout.as_mut().unwrap().take(1).read_to_end(&mut answer).unwrap();
    let is_alive = asked.is_ok() && answer == b"x";
    it.host.kill(child.id(), &id("a-1")).unwrap();
    let ended = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
    // Nobody is there any more.
    it.host.kill(child.id(), &id("a-1")).unwrap();
    std::fs::remove_dir(parent.join("a-1")).unwrap();
    std::fs::remove_dir(parent).unwrap();
    assert!(is_alive, "it was killed as another instance's");
}

#[test]
fn a_process_of_a_lost_instance_is_found_however_deep_it_is_and_its_main_one_is_told_apart() {
    let mut it = Linux::new();
    let lost = id("a-0123456789");
    let main = it.strand(&lost);
    let deep = it.member("a-0123456789/x/y", command(&["sleep", "600"]));
    // Another one's, whose name begins like that.
    let other = it.member("a-01234567890", command(&["sleep", "600"]));
    assert_eq!(strays(&it.host, &[])[&lost].pids, BTreeSet::from([main, deep]));
    assert!(it.host.signal_stray(&lost, Whom::Main, Signal::TERM).unwrap());
    eventually("the end of the first", || {
        (strays(&it.host, &[])[&lost].pids == BTreeSet::from([deep])).then_some(())
    });
    // Its pid may be another process's by now: that is not the one that runc has started.
    it.keep(&lost, deep);
    let state = it.run().join("runc/evenkeel/a-0123456789/state.json");
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, text.replace("\"init_process_start\":", "\"init_process_start\":1")).unwrap();
    assert!(!it.host.signal_stray(&lost, Whom::Main, Signal::KILL).unwrap());
    assert!(it.host.signal_stray(&lost, Whom::All, Signal::KILL).unwrap());
    eventually("the end of all", || strays(&it.host, &[])[&lost].pids.is_empty().then_some(()));
    it.host.remove_stray(&lost).unwrap();
    assert!(!it.cgroups.join("a-0123456789").exists());
    assert!(sweep::is_alive(other));
}

#[test]
fn the_shim_and_the_root_file_system_of_exactly_the_lost_container_go() {
    let mut it = Linux::new();
    let (lost, other) = (id("a-0123456789"), id("b-0123456789"));
    for id in [&lost, &other] {
        let pid = it.strand(id);
        it.host.signal_stray(id, Whom::All, Signal::KILL).unwrap();
        eventually("the end", || (!sweep::is_alive(pid)).then_some(()));
        let rootfs = it.bundle(id).join("rootfs");
        rustix::mount::mount("root", &rootfs, "tmpfs", rustix::mount::MountFlags::empty(), None)
            .unwrap();
    }
    // A shell that is called as a shim is, works where it works, and does what it is told.
    let program = it.directory.as_ref().unwrap().path().join("containerd-shim-x");
    fs::copy("/bin/sh", &program).unwrap();
    let shim = |it: &mut Linux, id: &InstanceId, named: &str| {
        let mut shim = Command::new(&program);
        let script = "trap 'exit 0' TERM; while :; do sleep 0.05; done";
        shim.args(["-c", script, "sh", "-id", named]).current_dir(it.bundle(id));
        it.children.push(shim.spawn().unwrap());
        it.children.last().unwrap().id()
    };
    let own = shim(&mut it, &lost, lost.as_str());
    // In another containerd's bundle of the same name, and another one's that somebody started in this bundle.
    let others = [shim(&mut it, &other, lost.as_str()), shim(&mut it, &lost, other.as_str())];
    eventually("the shims", || {
        let comm = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        let all = [own, others[0], others[1]];
        all.iter().all(|it| comm(*it).starts_with("containerd-shim")).then_some(())
    });
    // Gone below it, as when somebody removes containerd's state.
    eventually("the end of its shim", || {
        (!it.host.signal_stray(&lost, Whom::Shim, Signal::TERM).unwrap()).then_some(())
    });
    assert!(!sweep::is_alive(own));
    assert!(others.iter().all(|it| sweep::is_alive(*it)));
    it.host.remove_stray(&lost).unwrap();
    let left: Vec<PathBuf> = mounts_below(&it.bundle(&lost).join("../..").canonicalize().unwrap())
        .into_iter()
        .map(|it| it.point)
        .collect();
    assert_eq!(left, [it.bundle(&other).join("rootfs")]);
}

#[test]
fn another_mount_namespace_is_told() {
    let mut it = Linux::new();
    assert_eq!(it.host.mounts_shared_with(std::process::id()), Ok(()));
    let other = it.start(own());
    let reason = it.host.mounts_shared_with(other).unwrap_err();
    assert!(
        reason.contains(&other.to_string()) && reason.contains("another mount namespace"),
        "{reason}"
    );
    assert!(it.host.mounts_shared_with(0).unwrap_err().contains("not known"));
    it.end(other);
    assert!(it.host.mounts_shared_with(other).unwrap_err().contains("not known"));
}

#[test]
fn a_full_run_directory_is_an_error_that_names_the_file_and_leaves_the_old_content() {
    let directory = tempfile::tempdir().unwrap();
    rustix::mount::mount(
        "evenkeel-test",
        directory.path(),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        c"size=64k",
    )
    .unwrap();
    let run = RunDirectory::new(&directory.path().join("run"));
    run.set_status(&"fine").unwrap();
    fs::write(directory.path().join("filler"), vec![0; 1 << 20]).unwrap_err();
    let result = run.set_status(&"x".repeat(10_000));
    let status = run.status::<String>();
    let left = fs::read_dir(run.path()).unwrap().count();
    fs::remove_file(directory.path().join("filler")).unwrap();
    let again = run.set_status(&"x".repeat(10_000));
    rustix::mount::unmount(directory.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = result.unwrap_err();
    assert!(error.to_string().contains("run/status.json"), "{error}");
    assert_eq!(error.cause.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
    assert_eq!(status.unwrap().as_deref(), Some("fine"));
    assert_eq!(left, 1, "nothing half-written is left");
    again.unwrap();
}
