//! What a container may do, seen from outside: the rights of its process, and what it cannot read or write.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{major, minor};
use serde_json::{Value, json};

use crate::ipc::stage::{Stage, mount_on, pid};

/// Docker's set: `chown`, `dac_override`, `fowner`, `fsetid`, `kill`, `setgid`, `setuid`, `setpcap`,
/// `net_bind_service`, `net_raw`, `sys_chroot`, `mknod`, `audit_write`, `setfcap`.
const ROOT: &str = "00000000a80425fb";
const NOTHING: &str = "0000000000000000";

/// Docker's lists; which of them a kernel has is its own business.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The line of a process' status that begins so.
fn said(pid: u32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = text.lines().filter_map(|it| it.strip_prefix(field)?.strip_prefix(":\t"));
    lines.next().unwrap_or_else(|| panic!("no {field} in {text}")).to_owned()
}

/// Whether a file can be made or changed in the container's file systems, by somebody who has every right.
fn writes(pid: u32, path: &str) -> bool {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--mount", "--", "touch", path]);
    command.env("PATH", "/bin:/usr/bin").stderr(Stdio::null()).status().unwrap().success()
}

fn workloads() -> Vec<(&'static str, Value)> {
    let spec =
        |mode: &str, read_only: bool| json!({ "ipcMode": mode, "readOnlyRootfs": read_only });
    let user = |mut spec: Value| {
        spec["user"] = json!({ "uid": 1000 });
        spec
    };
    vec![
        ("plain", spec("private", false)),
        ("read-only", spec("shareable", true)),
        ("none", spec("none", true)),
        ("user", user(spec("private", false))),
        ("user-none", user(spec("none", true))),
    ]
}

#[tokio::test]
async fn a_container_has_the_rights_that_docker_gives_and_sees_no_more_of_the_host() {
    let stage = Stage::set().await;
    for (name, spec) in workloads() {
        stage.want(name, spec);
    }
    let status = stage.apply_all();
    for (name, spec) in workloads() {
        let pid = pid(&status, name);
        let own = if spec["user"].is_null() { ROOT } else { NOTHING };
        for (field, expected) in [
            ("CapBnd", ROOT),
            ("CapEff", own),
            ("CapPrm", own),
            ("CapInh", NOTHING),
            ("CapAmb", NOTHING),
        ] {
            assert_eq!(said(pid, field), expected, "{field} of {name}");
        }

        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let inside = |path: &str| root.join(path.trim_start_matches('/'));
        let mut masked = 0;
        for path in MASKED {
            let Ok(meta) = std::fs::metadata(inside(path)) else { continue };
            masked += 1;
            if meta.is_dir() {
                let found = std::fs::read_dir(inside(path)).unwrap().count();
                assert_eq!(found, 0, "{path} in {name}");
                let mount = mount_on(&pid.to_string(), path).unwrap();
                assert!(mount.kind == "tmpfs" && mount.is_read_only(), "{path} in {name}");
            } else {
                // /dev/null.
                assert!(meta.file_type().is_char_device(), "{path} in {name}");
                assert_eq!((major(meta.rdev()), minor(meta.rdev())), (1, 3), "{path} in {name}");
            }
        }
        assert!(masked >= 4, "only {masked} of the paths are there");
        let mut read_only = 0;
        for path in READ_ONLY.into_iter().filter(|it| inside(it).exists()) {
            read_only += 1;
            let mount = mount_on(&pid.to_string(), path);
            assert!(mount.is_some_and(|it| it.is_read_only()), "{path} in {name}");
        }
        assert!(read_only >= 3, "only {read_only} of the paths are there");

        let writes = |path: &str| writes(pid, path);
        assert!(!writes("/proc/sys/kernel/shmmax"), "{name}");
        let is_sealed = spec["readOnlyRootfs"] == true;
        if spec["user"].is_null() {
            assert_eq!(writes("/x"), !is_sealed, "{name}");
            assert_eq!(writes("/dev/x"), name != "none", "{name}");
        }
        let on_root = mount_on(&pid.to_string(), "/").unwrap();
        assert_eq!(on_root.is_read_only(), is_sealed, "{name}");
    }
    stage.take_down();
}
