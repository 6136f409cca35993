//! What each mode gives: namespace, /dev/shm, /dev/mqueue, who sees whose objects, and what there is on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use evenkeel::status::Status;
use serde_json::{Value, json};

use super::stage::{Inside, Stage, below, inside, item, mount_on, mounts, pid, probe, runs};
use crate::rig::Engine;

/// Names the host in the tables below.
const HOST: &str = "host-itself";

/// A workload for each mode, with a writable root or a read-only one; `shareable` has a joiner.
fn modes(read_only: bool) -> BTreeMap<String, Value> {
    let suffix = if read_only { "-ro" } else { "" };
    let mode = |name: &str, mode: Option<&str>| {
        let mut spec = json!({ "readOnlyRootfs": read_only });
        if let Some(mode) = mode {
            spec["ipcMode"] = mode.into();
        }
        (format!("{name}{suffix}"), spec)
    };
    let joiner = format!("container:shareable{suffix}");
    [
        mode("absent", None),
        mode("host", Some("host")),
        mode("joiner", Some(&joiner)),
        mode("none", Some("none")),
        mode("private", Some("private")),
        mode("shareable", Some("shareable")),
    ]
    .into()
}

/// Who sees whose objects.
fn group(name: &str) -> &str {
    match name {
        "joiner" => "shareable",
        "joiner-ro" => "shareable-ro",
        "host" | "host-ro" => HOST,
        other => other,
    }
}

#[tokio::test]
async fn every_mode_shares_what_it_says_with_a_writable_and_a_read_only_root() {
    let stage = Stage::set().await;
    let workloads = modes(false).into_iter().chain(modes(true)).collect();
    check(&stage, &workloads);
}

#[tokio::test]
async fn every_mode_shares_what_it_says_on_each_engine() {
    for engine in Engine::all() {
        let stage = Stage::set_on(&engine).await;
        check(&stage, &modes(false));
    }
}

#[tokio::test]
async fn a_default_counts_when_an_instance_is_made_and_another_one_changes_nothing() {
    let stage = Stage::set().await;
    stage.want("unnamed", json!({}));
    stage.want("named", json!({ "ipcMode": "private", "shmSize": "2Mi" }));
    let flags = ["--default-ipc-mode", "shareable", "--default-shm-size", "1Mi"];
    let made = stage.apply_with(&flags);
    assert_eq!(made.code, 0, "{made:#?}");
    let status = made.status;
    let shm = Inside::of(&pid(&status, "unnamed").to_string()).shm.unwrap();
    let published = mount_on("self", stage.published(&status, "unnamed").join("shm")).unwrap();
    assert_eq!(shm.device, published.device);
    assert!(shm.super_options.contains("size=1024k"), "{shm:?}");
    assert!(!stage.published(&status, "named").exists());
    let said = |status: &Status| {
        let ipc = item(status, "unnamed").ipc.as_ref().unwrap();
        (ipc.mode.clone(), ipc.shm_size.clone().unwrap())
    };
    assert_eq!(said(&status), ("shareable".to_owned(), "1Mi".to_owned()));

    // Today's defaults are others: what runs was made with those of then.
    stage.want("late", json!({}));
    let later = stage.apply_all();
    assert_eq!(pid(&later, "unnamed"), pid(&status, "unnamed"));
    assert_eq!(said(&later), said(&status));
    assert_eq!(item(&later, "late").ipc.as_ref().unwrap().mode, "private");
    // A donor has to say so itself: whether a manifest is right must not depend on the box.
    stage.want("joiner", json!({ "ipcMode": "container:unnamed" }));
    let refused = stage.apply();
    assert_eq!(refused.code, 1, "{refused:#?}");
    assert_eq!(item(&refused.status, "joiner").problems[0].code, "ipc-donor-not-shareable");
    assert_eq!(pid(&refused.status, "unnamed"), pid(&status, "unnamed"));
    stage.take_down();
}

fn check(stage: &Stage, workloads: &BTreeMap<String, Value>) {
    for (name, spec) in workloads {
        stage.want(name, spec.clone());
    }
    let status = stage.apply_all();
    let seen: BTreeMap<&str, Inside> = workloads
        .keys()
        .map(|name| (name.as_str(), Inside::of(&pid(&status, name).to_string())))
        .collect();
    let host = Inside::of("self");

    check_namespaces(&seen, &host);
    check_shm(stage, &status, &seen, &host);
    check_mqueue(&seen);
    check_objects(&status, workloads);
    check_host(stage, &status, workloads);
    for (name, spec) in workloads {
        let ipc = item(&status, name).ipc.as_ref().unwrap();
        assert_eq!(ipc.mode, spec["ipcMode"].as_str().unwrap_or("private"), "{name}");
        let own_size =
            matches!(group(name), HOST) || name.contains("joiner") || name.contains("none");
        assert_eq!(ipc.shm_size.as_deref(), (!own_size).then_some("64Mi"), "{name}");
        let donor = ipc.mode.strip_prefix("container:");
        assert_eq!(ipc.donor.as_deref(), donor, "{name}");
    }
    stage.take_down();
}

fn check_namespaces(seen: &BTreeMap<&str, Inside>, host: &Inside) {
    let mut groups: BTreeMap<u64, BTreeSet<&str>> = [(host.namespace, [HOST].into())].into();
    for (name, it) in seen {
        groups.entry(it.namespace).or_default().insert(group(name));
    }
    for (namespace, names) in &groups {
        assert_eq!(names.len(), 1, "IPC namespace {namespace} is shared: {names:?}");
    }
    let expected: BTreeSet<&str> = seen.keys().map(|it| group(it)).chain([HOST]).collect();
    assert_eq!(groups.len(), expected.len(), "{groups:?}");
}

fn check_shm(stage: &Stage, status: &Status, seen: &BTreeMap<&str, Inside>, host: &Inside) {
    let host_devices: BTreeSet<String> = mounts("self").into_iter().map(|it| it.device).collect();
    for (name, it) in seen {
        let root = format!("/proc/{}/root", pid(status, name));
        let mode = group(name).trim_end_matches("-ro");
        if mode == "none" {
            assert_eq!(it.shm, None, "{name}");
            let found = std::fs::symlink_metadata(format!("{root}/dev/shm"));
            assert!(found.is_err(), "{name} has a /dev/shm, if only as a directory");
            continue;
        }
        let shm = it.shm.as_ref().unwrap_or_else(|| panic!("{name} has no /dev/shm"));
        assert!(!shm.is_read_only(), "{name}: {shm:?}");
        let access = std::fs::metadata(format!("{root}/dev/shm")).unwrap().permissions().mode();
        assert_eq!(access & 0o7777, 0o1777, "{name}");
        match mode {
            HOST => {
                let theirs = host.shm.as_ref().unwrap();
                assert_eq!(shm.device, theirs.device, "{name}");
                // A bind inherits: it neither adds nor takes away.
                assert_eq!(shm.options, theirs.options, "{name}");
                continue;
            }
            "private" | "absent" => {
                assert!(!host_devices.contains(&shm.device), "{name}: {shm:?}");
            }
            _ => {
                let donor = group(name);
                let published =
                    mount_on("self", stage.published(status, donor).join("shm")).unwrap();
                assert_eq!(shm.device, published.device, "{name}");
                assert_eq!(shm.device, seen[donor].shm_device(), "{name}");
                assert_eq!(shm.root, "/", "{name}");
            }
        }
        assert_eq!((shm.kind.as_str(), shm.source.as_str()), ("tmpfs", "shm"), "{name}");
        assert!(shm.has(&["nosuid", "nodev", "noexec"]), "{name}: {shm:?}");
        assert!(shm.super_options.contains("size=65536k"), "{name}: {shm:?}");
        let size = rustix::fs::statvfs(format!("{root}/dev/shm")).unwrap();
        assert_eq!(size.f_blocks * size.f_frsize, 64 << 20, "{name}");
    }
}

fn check_mqueue(seen: &BTreeMap<&str, Inside>) {
    let mut devices: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, it) in seen {
        if *name == "none-ro" {
            assert_eq!(it.mqueue, None, "nothing to write to in `none` with a read-only root");
            continue;
        }
        let mqueue = it.mqueue.as_ref().unwrap_or_else(|| panic!("{name} has no /dev/mqueue"));
        assert_eq!(mqueue.kind, "mqueue", "{name}");
        assert!(mqueue.has(&["nosuid", "nodev", "noexec"]), "{name}: {mqueue:?}");
        assert!(!mqueue.is_read_only(), "{name}: {mqueue:?}");
        devices.entry(&mqueue.device).or_default().insert(group(name));
    }
    for (device, names) in devices {
        assert_eq!(names.len(), 1, "queues of device {device} are shared: {names:?}");
    }
}

/// `SysV` segments, POSIX queues and files in /dev/shm that this test makes, on the host and in host mode too; removed
/// from the host when dropped.
struct Objects {
    keys: BTreeMap<String, String>,
    prefix: String,
}

impl Objects {
    fn of<'a>(names: impl Iterator<Item = &'a String>) -> Self {
        let own = std::process::id();
        let key = |place: usize| {
            format!("{:#x}", 0x4500_0000 | (own & 0xffff) << 8 | u32::try_from(place).unwrap())
        };
        let names = names.cloned().chain([HOST.to_owned()]);
        let keys = names.enumerate().map(|(place, name)| (name, key(place))).collect();
        Self { keys, prefix: format!("evenkeel-test-{own}-") }
    }

    fn queue(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn on_host(arguments: &[&str]) -> bool {
        let output = Command::new(probe()).args(arguments).output().unwrap();
        output.status.success()
    }

    /// Those of our objects that a report names: workloads whose segment, queue and file is seen.
    fn seen(&self, report: &BTreeMap<String, String>) -> [BTreeSet<String>; 3] {
        let list = |key: &str| -> BTreeSet<&str> {
            report.get(key).map(|it| it.split(',').collect()).unwrap_or_default()
        };
        let of = |names: BTreeSet<&str>| {
            names
                .into_iter()
                .filter_map(|it| it.strip_prefix(&self.prefix))
                .map(str::to_owned)
                .collect()
        };
        let keys = list("sysv_keys");
        let keys =
            self.keys.iter().filter(|it| keys.contains(it.1.as_str())).map(|it| it.0.clone());
        [keys.collect(), of(list("mqueue_names")), of(list("shm_files"))]
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        for (name, key) in &self.keys {
            // Most of them never were on the host.
            Self::on_host(&["sysv-rm", key]);
            Self::on_host(&["mq-rm", &self.queue(name)]);
            drop(std::fs::remove_file(format!("/dev/shm/{}", self.queue(name))));
        }
    }
}

fn report(text: &str) -> BTreeMap<String, String> {
    let pair =
        |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    text.lines().filter_map(pair).collect()
}

/// Everybody makes a segment, a queue and a file as a user without rights; everybody sees those of its group alone.
fn check_objects(status: &Status, workloads: &BTreeMap<String, Value>) {
    let objects = Objects::of(workloads.keys());
    for name in workloads.keys() {
        let (key, queue, pid) = (&objects.keys[name], objects.queue(name), pid(status, name));
        inside(pid, &["ipc-probe", "sysv-put", key, name]);
        inside(pid, &["ipc-probe", "mq-put", &queue]);
        if group(name).trim_end_matches("-ro") != "none" {
            inside(pid, &["touch", &format!("/dev/shm/{queue}")]);
        }
    }
    let (key, queue) = (&objects.keys[HOST], objects.queue(HOST));
    assert!(Objects::on_host(&["sysv-put", key, HOST]));
    assert!(Objects::on_host(&["mq-put", &queue]));
    std::fs::write(format!("/dev/shm/{queue}"), "").unwrap();

    let everybody: Vec<&str> = workloads.keys().map(String::as_str).chain([HOST]).collect();
    for name in &everybody {
        let text = if *name == HOST {
            let output = Command::new(probe()).arg("report").output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        } else {
            inside(pid(status, name), &["ipc-probe", "report"])
        };
        let report = report(&text);
        let friends: BTreeSet<String> = everybody
            .iter()
            .filter(|it| group(it) == group(name))
            .map(|it| (*it).to_owned())
            .collect();
        let [keys, queues, files] = objects.seen(&report);
        assert_eq!(keys, friends, "segments that {name} sees");
        let is_none = group(name).trim_end_matches("-ro") == "none";
        // The host itself need not have a /dev/mqueue.
        if report["mqueue"] == "absent" {
            assert!(matches!(*name, "none-ro" | HOST), "{name} has no /dev/mqueue");
        } else {
            assert_eq!(queues, friends, "queues that {name} sees");
        }
        let files_expected = if is_none { BTreeSet::new() } else { friends.clone() };
        assert_eq!(files, files_expected, "files in /dev/shm that {name} sees");
        for friend in &friends {
            let key = &objects.keys[friend];
            let text = if *name == HOST {
                let output = Command::new(probe()).args(["sysv-get", key]).output().unwrap();
                String::from_utf8(output.stdout).unwrap()
            } else {
                inside(pid(status, name), &["ipc-probe", "sysv-get", key])
            };
            assert_eq!(text.trim(), format!("text={friend}"), "what {name} reads");
        }
    }
}

/// Only `shareable` has anything outside of its container, and that is out of reach of other users.
fn check_host(stage: &Stage, status: &Status, workloads: &BTreeMap<String, Value>) {
    let base = stage.rig.run_dir().join("ipc");
    let shareable = || workloads.keys().filter(|it| it.starts_with("shareable"));
    let mut expected = BTreeSet::new();
    for name in shareable() {
        assert!(runs(status, name));
        let directory = stage.published(status, name);
        let access = std::fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(access & 0o7777, 0o700, "{}", directory.display());
        let shm = mount_on("self", directory.join("shm")).unwrap();
        assert_eq!((shm.kind.as_str(), shm.source.as_str()), ("tmpfs", "shm"));
        assert!(shm.has(&["nosuid", "nodev", "noexec"]), "{shm:?}");
        assert!(shm.super_options.contains("size=65536k"), "{shm:?}");
        let access = std::fs::metadata(directory.join("shm")).unwrap().permissions().mode();
        assert_eq!(access & 0o7777, 0o1777);
        let ns = mount_on("self", directory.join("ns")).unwrap();
        let own = Inside::of(&pid(status, name).to_string()).namespace;
        assert_eq!((ns.kind.as_str(), ns.root.as_str()), ("nsfs", &*format!("ipc:[{own}]")));
        expected.extend([directory.join("shm"), directory.join("ns"), directory]);
    }
    let found: BTreeSet<_> = below(&base).into_iter().collect();
    assert_eq!(found, expected);
    let points: Vec<String> = mounts("self")
        .into_iter()
        .map(|it| it.point)
        .filter(|it| it.starts_with(base.to_str().unwrap()))
        .collect();
    let wanted = 2 * shareable().count() + 1;
    assert_eq!(
        points.len(),
        wanted,
        "two mounts for each, and the private one below them: {points:?}"
    );
}
