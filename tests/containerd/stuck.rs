//! What does not want to go: mounts that somebody is in, shims that hang, processes that no signal ends. It is told,
//! tried again, and keeps nothing else waiting.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use evenkeel::plan::Phase;
use evenkeel::status::Item;
use rustix::process::Signal;

use crate::program::{Site, eventually, manifest, sleeper, until_dead};
use crate::rig::{Rig, sweep};
use crate::safety::assert_untouched;

const OTHER: &str = "  env: [{name: OTHER, value: \"1\"}]\n";

fn id(site: &Site, name: &str) -> String {
    site.item(name).unwrap().instance.unwrap().id
}

/// Starts a workload, changes it and removes it: nothing of that waits for what is stuck.
#[track_caller]
fn others_go_on(site: &Site, name: &str) {
    let file = format!("{name}.yaml");
    site.write(&file, &sleeper(name));
    let first = site.until_running(name);
    site.write(&file, &(sleeper(name) + OTHER));
    site.until(name, |item| {
        let pid = item?.instance.as_ref()?.pid?;
        (pid != first && item?.up_to_date).then_some(())
    });
    site.remove(&file);
    site.until_gone(name);
}

/// A process of somebody else, killed in the end.
struct Holder(Child);

impl Holder {
    /// In a directory, or with a mount namespace of its own that keeps a file open too.
    fn start(directory: &Path, open: Option<&Path>) -> Self {
        let mut command = match open {
            None => Command::new("sleep"),
            Some(file) => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "private", "sh", "-c"]);
                command.arg("exec 9<\"$1\"; shift; exec sleep \"$1\"").arg("sh").arg(file);
                command
            }
        };
        let child = command.arg("36000").current_dir(directory).stdin(Stdio::null()).spawn();
        let holder = Self(child.unwrap());
        let pid = holder.0.id();
        eventually("a holder", || {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            arguments.starts_with(b"sleep").then_some(())
        });
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A process that no signal reaches: it is in a frozen cgroup below its container's, of which runc knows nothing.
struct Frozen(PathBuf);

impl Frozen {
    fn new(pid: u32) -> Self {
        let cgroup = cgroup(pid).join("frozen");
        std::fs::create_dir(&cgroup).unwrap();
        std::fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
        std::fs::write(cgroup.join("freezer.state"), "FROZEN").unwrap();
        Self(cgroup)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        std::fs::write(self.0.join("freezer.state"), "THAWED").unwrap();
    }
}

/// The freezer cgroup of a process.
fn cgroup(pid: u32) -> PathBuf {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = text.lines().find_map(|it| it.split_once(":freezer:"));
    let own = own.expect("this test needs the freezer of cgroup version 1").1;
    Path::new("/sys/fs/cgroup/freezer").join(own.trim_start_matches('/'))
}

/// Cgroups of a site's containers that are still there.
fn cgroups(site: &Site) -> Vec<PathBuf> {
    let own = evenkeel::config::cgroup_parent(&site.run_dir());
    let roots = sweep::cgroup_roots();
    let parents = roots.iter().map(|it| it.join(own.trim_start_matches('/')));
    parents.filter(|it| it.exists()).collect()
}

#[expect(clippy::disallowed_methods, reason = "how long a command of another process takes")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    (work(), start.elapsed())
}

#[tokio::test]
async fn who_is_in_a_mount_that_goes_keeps_nothing_waiting() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.configure("removeAfter: 10ms\npruneLimit: 100\n");
    let controller = site.controller();
    site.write("donor.yaml", &(sleeper("donor") + "  ipcMode: shareable\n"));
    site.write("other.yaml", &sleeper("other"));
    for it in ["donor", "other"] {
        site.until_running(it);
    }
    let other = ("other".to_owned(), site.pid("other"));
    let id = id(&site, "donor");
    let published = site.run_dir().join("ipc").join(&id);
    let rootfs = rig
        .dir()
        .join("containerd-state/io.containerd.runtime.v2.task")
        .join(site.namespace())
        .join(&id)
        .join("rootfs");
    assert!(rootfs.join("bin").exists(), "{}", rootfs.display());
    let in_shm = Holder::start(&published.join("shm"), None);
    let with_pin = Holder::start(&published.join("shm"), Some(&published.join("ns")));
    // One of these keeps the root file system from being unmounted.
    let in_rootfs = Holder::start(&rootfs, None);
    site.remove("donor.yaml");
    let message = site.until("donor", |item| {
        let item: &Item = item.filter(|it| it.reason.ends_with("-failed"))?;
        Some(item.message.clone())
    });
    assert!(message.contains("busy"), "{message}");
    others_go_on(&site, "late");
    assert_untouched(&site, &[other]);
    drop(in_rootfs);
    site.until_gone("donor");
    assert!(!published.exists());
    drop((in_shm, with_pin));
    assert_eq!(controller.terminate(), Some(0));
    site.run(&["down"]).exits(0);
    rig.assert_clean();
    assert_eq!(cgroups(&site), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_shim_that_hangs_in_a_removal_is_waited_for_and_keeps_nothing_else_waiting() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.configure("removeAfter: 10ms\npruneLimit: 100\n");
    let controller = site.controller();
    let names = ["continued", "killed", "other"];
    for it in names {
        site.write(&format!("{it}.yaml"), &sleeper(it));
    }
    for it in names {
        site.until_running(it);
    }
    let other = ("other".to_owned(), site.pid("other"));
    let shims = ["continued", "killed"].map(|it| (it, site.pid(it), rig.shim(&id(&site, it))));
    for (name, _, shim) in shims {
        sweep::signal(shim, Signal::STOP);
        site.remove(&format!("{name}.yaml"));
    }
    for (name, ..) in shims {
        site.until(name, |item| {
            let item: &Item = item?;
            let waits = item.phase == Phase::Stopping && item.reason == "runtime-not-answering";
            waits.then_some(())
        });
    }
    others_go_on(&site, "late");
    assert_untouched(&site, &[other]);
    // Nothing can be removed of what does not answer, and that is said instead of done.
    assert_eq!(controller.terminate(), Some(0));
    let (done, took) = timed(|| site.run(&["down", "continued"]));
    done.exits(4).says(&["still there", "`continued`", "no answer"]);
    assert!(took < Duration::from_mins(2), "{took:?}");
    let controller = site.controller();

    sweep::signal(shims[0].2, Signal::CONT);
    site.until_gone("continued");
    sweep::signal(shims[1].2, Signal::KILL);
    site.until_gone("killed");
    for (_, pid, _) in shims {
        until_dead(pid);
    }
    assert_eq!(controller.terminate(), Some(0));
    site.plan_is_empty();
    site.run(&["down"]).exits(0);
    rig.assert_clean();
    assert_eq!(cgroups(&site), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_shim_that_begins_to_hang_in_the_middle_of_a_stop_keeps_neither_others_nor_a_newer_manifest_waiting()
 {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.configure("removeAfter: 10ms\npruneLimit: 100\n");
    let out = rig.dir().join("out");
    std::fs::create_dir(&out).unwrap();
    let text = |name: &str, more: &str| {
        let script = format!(
            "trap 'echo asked > /out/{name}; while [ -e /out/{name} ]; do sleep 0.1; done; exit 7' TERM; echo up > /out/{name}-up; while true; do sleep 0.1; done"
        );
        let mount = format!("{{type: bind, source: {}, target: /out}}", out.display());
        manifest(
            name,
            &format!(
                "command: [sh, -c, \"{script}\"]\nmounts: [{mount}]\nstop: {{timeout: 1h}}{more}"
            ),
        )
    };
    let controller = site.controller();
    let names = ["continued", "killed"];
    for it in names {
        site.write(&format!("{it}.yaml"), &text(it, ""));
    }
    site.write("other.yaml", &sleeper("other"));
    for it in names {
        site.until_running(it);
        eventually("a program that is up", || out.join(format!("{it}-up")).exists().then_some(()));
    }
    site.until_running("other");
    let other = ("other".to_owned(), site.pid("other"));
    let shims = names.map(|it| (it, site.pid(it), rig.shim(&id(&site, it))));
    for (name, _, shim) in shims {
        site.write(&format!("{name}.yaml"), &text(name, "\nstate: stopped"));
        eventually("a program that was asked to end", || out.join(name).exists().then_some(()));
        sweep::signal(shim, Signal::STOP);
    }
    for (name, ..) in shims {
        site.until(name, |item| {
            let item: &Item = item?;
            (item.phase != Phase::Running && item.reason == "runtime-not-answering").then_some(())
        });
    }
    others_go_on(&site, "late");
    assert_untouched(&site, &[other]);
    // What is wanted by now is another one, which will not wait for an hour either.
    for (name, ..) in shims {
        let spec = "command: [sleep, \"36000\"]\nstop: {signal: SIGKILL, timeout: 1s}";
        site.write(&format!("{name}.yaml"), &manifest(name, spec));
    }
    others_go_on(&site, "later");
    for (_, pid, _) in shims {
        assert!(sweep::is_alive(pid));
    }
    sweep::signal(shims[0].2, Signal::CONT);
    sweep::signal(shims[1].2, Signal::KILL);
    for (name, pid, _) in shims {
        let now = site.until_running(name);
        assert_ne!(now, pid);
        until_dead(pid);
    }
    assert_eq!(controller.terminate(), Some(0));
    site.plan_is_empty();
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn a_process_that_no_signal_ends_keeps_nothing_else_waiting() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.configure("removeAfter: 10ms\npruneLimit: 100\n");
    let controller = site.controller();
    for it in ["stuck", "other"] {
        site.write(&format!("{it}.yaml"), &sleeper(it));
    }
    let stuck = site.until_running("stuck");
    site.until_running("other");
    let other = ("other".to_owned(), site.pid("other"));
    let frozen = Frozen::new(stuck);
    site.write("stuck.yaml", &(sleeper("stuck") + OTHER));
    site.until("stuck", |item| (item?.phase == Phase::Stopping).then_some(()));
    others_go_on(&site, "late");
    let message = site.until("stuck", |item| {
        let item = item.filter(|it| it.reason == "stop-failed")?;
        Some(item.message.clone())
    });
    assert!(message.contains("still there after SIGKILL"), "{message}");
    others_go_on(&site, "later");
    assert_untouched(&site, &[other]);
    assert!(sweep::is_alive(stuck));
    assert_eq!(controller.terminate(), Some(0));
    let (done, took) = timed(|| site.run(&["down"]));
    done.exits(4).says(&["still there", "`stuck`", "SIGKILL"]);
    assert!(took < Duration::from_mins(2), "{took:?}");
    drop(frozen);
    until_dead(stuck);
    site.run(&["down"]).exits(0);
    rig.assert_clean();
    assert_eq!(cgroups(&site), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn what_somebody_froze_is_ended_all_the_same() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.configure("removeAfter: 10ms\npruneLimit: 100\n");
    site.write("a.yaml", &sleeper("a"));
    site.apply();
    let pid = site.pid("a");
    let cgroup = cgroup(pid);
    std::fs::write(cgroup.join("freezer.state"), "FROZEN").unwrap();
    let done = site.run(&["down"]);
    // Whatever came of it, nothing of it may stay.
    drop(std::fs::write(cgroup.join("freezer.state"), "THAWED"));
    done.exits(0);
    rig.assert_clean();
    assert_eq!(cgroups(&site), Vec::<PathBuf>::new());
}

/// A file system whose server never answers, as a mount of a network whose other end is gone; it fails once dropped.
struct DeadServer {
    point: PathBuf,
    // Closed before the unmount, which would wait for an answer too.
    connection: Option<std::fs::File>,
}

impl DeadServer {
    fn mount(point: PathBuf) -> Self {
        use std::os::fd::AsRawFd as _;
        std::fs::create_dir(&point).unwrap();
        let connection = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", connection.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("dead", &point, "fuse", flags, options.as_c_str()).unwrap();
        shake_hands(&connection);
        Self { point, connection: Some(connection) }
    }
}

/// Answers the first request, without which nobody who waits could be killed; `struct fuse_init_out` of linux/fuse.h.
fn shake_hands(mut connection: &std::fs::File) {
    use std::io::{Read as _, Write as _};
    let mut request = vec![0; 1 << 16];
    let length = connection.read(&mut request).unwrap();
    assert!(length >= 16, "a whole header");
    let unique = &request[8..16];
    let numbers =
        |numbers: &[u32]| -> Vec<u8> { numbers.iter().flat_map(|it| it.to_ne_bytes()).collect() };
    // Length and error, version 7.31, no flags; then the largest write and the grain of times.
    let answer = [
        numbers(&[80, 0]),
        unique.to_vec(),
        numbers(&[7, 31, 0, 0, 0, 4096, 1, 0]),
        numbers(&[0; 8]),
    ];
    connection.write_all(&answer.concat()).unwrap();
}

impl Drop for DeadServer {
    fn drop(&mut self) {
        self.connection = None;
        rustix::mount::unmount(&self.point, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

#[tokio::test]
async fn a_bind_source_that_does_not_answer_holds_its_own_workload_only() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let dead = DeadServer::mount(rig.dir().join("dead"));
    let controller = site.controller();
    site.write("other.yaml", &sleeper("other"));
    let before = site.until_running("other");
    let mount = format!(
        "  mounts: [{{type: bind, source: {}, target: /data}}]\n",
        dead.point.join("data").display()
    );
    site.write("nfs.yaml", &(sleeper("nfs") + &mount));
    site.until("nfs", |item| (item?.reason == "mount-source-silent").then_some(()));
    others_go_on(&site, "third");
    assert_eq!(site.pid("other"), before);
    // Whoever looks at the same name meanwhile hangs in the kernel, out of reach of any signal: nobody else may look.
    assert_eq!(controller.terminate(), Some(0));
    // It answers with an error now, which is as good as none.
    drop(dead);
    let controller = site.controller();
    site.until("nfs", |item| (item?.reason == "mount-source-missing").then_some(()));
    assert_eq!(site.pid("other"), before);
    assert_eq!(controller.terminate(), Some(0));
    site.run(&["down"]).exits(0);
}
