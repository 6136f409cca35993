//! The private containerd as a real process, and our log writer under its shim.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use evenkeel::engine::{Embedded, Error, Found, snapshotter};
use evenkeel::log::{Entry, Place, Reader, Stream};
use rustix::mount::{MountFlags, UnmountFlags};

/// A private containerd that ends with the test.
struct Running {
    directory: tempfile::TempDir,
    engine: Embedded,
}

impl Running {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("evenkeel-engine-").tempdir().unwrap();
        let engine = Embedded::new(&directory.path().join("state"), &directory.path().join("run"));
        Self { directory, engine }
    }

    async fn start(&self) -> u32 {
        self.engine.start().await.unwrap();
        self.pid()
    }

    fn pid(&self) -> u32 {
        let Found::Running { pid: Some(pid) } = self.engine.find() else { panic!("it runs") };
        pid
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.engine.stop().ok();
        // Mounts of snapshots and of a failed test's tasks would keep the directory.
        let mounts = evenkeel::host::mountinfo::parse(&fs::read("/proc/self/mountinfo").unwrap());
        for mount in mounts.iter().rev().filter(|it| it.point.starts_with(self.directory.path())) {
            rustix::mount::unmount(&mount.point, UnmountFlags::DETACH).ok();
        }
    }
}

#[tokio::test]
async fn it_starts_once_is_found_again_and_ends() {
    let it = Running::new();
    assert_eq!(it.engine.find(), Found::Never);
    let pid = it.start().await;
    assert_eq!(it.start().await, pid, "it runs already");
    let again = Embedded::new(&it.directory.path().join("state"), &it.directory.path().join("run"));
    assert_eq!(again.find(), Found::Running { pid: Some(pid) });
    let group =
        rustix::process::getpgid(rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()))
            .unwrap();
    assert_eq!(
        u32::try_from(group.as_raw_nonzero().get()).unwrap(),
        pid,
        "Ctrl-C is not meant for it"
    );
    again.stop().unwrap();
    assert_eq!(again.find(), Found::Stopped);
    assert_eq!(evenkeel::host::linux::start_time(pid), None);
    again.stop().unwrap();
}

#[tokio::test]
async fn it_starts_again_after_it_was_killed() {
    let it = Running::new();
    let first = it.start().await;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(first).unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    // Its socket is left, and nobody listens.
    eventually("the end of the first", || (it.engine.find() == Found::Stopped).then_some(()));
    assert_ne!(it.start().await, first);
}

/// A killed containerd gives up its sockets before it has ended.
#[tokio::test]
async fn it_starts_once_the_one_before_has_ended() {
    let it = Running::new();
    let mut dying = Command::new("sleep").arg("600").spawn().unwrap();
    fs::create_dir_all(it.directory.path().join("run")).unwrap();
    let started = evenkeel::host::linux::start_time(dying.id()).unwrap();
    let boot_id = evenkeel::host::linux::boot_id().unwrap();
    let text = format!(
        r#"{{"pid":{},"startTime":{started},"bootId":"{boot_id}","since":""}}"#,
        dying.id()
    );
    fs::write(it.directory.path().join("run/containerd.pid.json"), text).unwrap();
    let engine = it.engine.clone();
    let start = tokio::spawn(async move { engine.start().await });
    // The first thing that a start makes after its look at what was before.
    let config = it.engine.root().join("config.toml");
    let deadline = Instant::now() + Duration::from_mins(1);
    while !config.exists() {
        assert!(Instant::now() < deadline, "the start waits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(it.engine.find(), Found::Stopped, "nothing runs beside the one that dies");
    dying.kill().unwrap();
    dying.wait().unwrap();
    start.await.unwrap().unwrap();
    assert_ne!(it.pid(), dying.id());
}

#[tokio::test]
async fn a_stranger_s_pid_is_not_ended() {
    let it = Running::new();
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    fs::create_dir_all(it.directory.path().join("run")).unwrap();
    let boot_id = evenkeel::host::linux::boot_id().unwrap();
    let pid_file = it.directory.path().join("run/containerd.pid.json");
    let text =
        format!(r#"{{"pid":{},"startTime":1,"bootId":"{boot_id}","since":""}}"#, stranger.id());
    for text in [text.as_str(), "{", ""] {
        fs::write(&pid_file, text).unwrap();
        it.engine.stop().unwrap();
        assert_eq!(stranger.try_wait().unwrap(), None, "{text}");
        assert!(!pid_file.exists());
    }
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn a_failed_start_shows_the_end_of_its_log() {
    let it = Running::new();
    // Nobody can listen there.
    fs::create_dir_all(it.engine.socket().join("in the way")).unwrap();
    let error = it.engine.start().await.unwrap_err();
    let Error::Ended { tail, .. } = &error else { panic!("{error}") };
    assert!(tail.contains("containerd.sock"), "{error}");
}

#[test]
fn overlayfs_is_used_where_it_works() {
    let directory = tempfile::tempdir().unwrap();
    let odd = directory.path().join("a, b:c\\d");
    assert_eq!(snapshotter(&odd).unwrap(), "overlayfs");
    assert_eq!(fs::read_dir(&odd).unwrap().count(), 0, "nothing is left of the try");
    // An overlay cannot be the upper layer of another one.
    let parts = ["lower", "upper", "work", "merged"].map(|it| directory.path().join(it));
    for part in &parts {
        fs::create_dir(part).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        parts[0].display(),
        parts[1].display(),
        parts[2].display()
    );
    let data = std::ffi::CString::new(options).unwrap();
    rustix::mount::mount("overlay", &parts[3], "overlay", MountFlags::empty(), data.as_c_str())
        .unwrap();
    let answer = snapshotter(&parts[3].join("containerd"));
    rustix::mount::unmount(&parts[3], UnmountFlags::DETACH).unwrap();
    assert_eq!(answer.unwrap(), "native");
}

#[tokio::test]
async fn a_container_s_output_is_written_by_us_and_outlives_containerd() {
    let it = Running::new();
    it.start().await;
    let rootfs = it.directory.path().join("rootfs");
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static is installed");
    fs::set_permissions(rootfs.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    let place = Place {
        directory: it.directory.path().join("state/logs/a b:1%"),
        max_size: 1 << 20,
        max_files: 2,
    };
    let target = place.target(Path::new(env!("CARGO_BIN_EXE_evenkeel")));
    let script = "echo out; echo err >&2; read go < /go; echo last; printf end";
    let name = format!("evenkeel-test-{}", std::process::id());
    let ctr = |arguments: &[&str]| {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(it.engine.socket())
            .args(["--namespace", &name])
            .args(arguments);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let fifo = rootfs.join("go");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let runc = it.directory.path().join("run/runc");
    let (runc, rootfs) = (runc.to_str().unwrap(), rootfs.to_str().unwrap());
    let cgroup = format!("/{name}");
    let busybox = ["/bin/busybox", "sh", "-c", script];
    let run = [
        "run",
        "--detach",
        "--rootfs",
        "--runc-root",
        runc,
        "--cgroup",
        &cgroup,
        "--log-uri",
        &target,
        rootfs,
        &name,
    ];
    ctr(&[&run[..], &busybox[..]].concat());
    let both = |entries: &[Entry]| entries.len() == 2;
    eventually("the first output", || both(&entries(&place)).then_some(()));
    let mut first = entries(&place);
    first.sort_by_key(|it| it.stream.as_str());
    assert_eq!(first[0].text, b"err");
    assert_eq!((first[1].stream, first[1].text.as_slice()), (Stream::Stdout, &b"out"[..]));
    // Nobody is left but the container, its shim and the writer.
    it.engine.stop().unwrap();
    fs::write(&fifo, "\n").unwrap();
    eventually("the last output", || (entries(&place).last()?.text == b"end").then_some(()));
    it.start().await;
    eventually("the end of the task", || {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(it.engine.socket())
            .args(["-n", &name, "task", "ls"])
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap().contains("STOPPED").then_some(())
    });
    ctr(&["task", "delete", &name]);
    ctr(&["container", "delete", &name]);
    ctr(&["namespace", "remove", &name]);
}

fn entries(place: &Place) -> Vec<Entry> {
    let mut reader = Reader::open(&place.directory, None, None).unwrap();
    std::iter::from_fn(|| reader.read().unwrap()).collect()
}

/// Looks until there is something, within a deadline that is far more than a slow machine needs.
#[expect(clippy::disallowed_methods, reason = "tests wait for another process, with a deadline")]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_mins(1), "not within the deadline: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
