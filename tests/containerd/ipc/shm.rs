//! Sizes of /dev/shm, mounts of the user's own on, below and above it, and the mode that leaves nothing to write to.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use evenkeel::status::Status;
use serde_json::{Value, json};

use super::stage::{Inside, Stage, inside, ipc_namespace, item, mount_on, mounts, pid};

#[tokio::test]
async fn a_shm_has_the_size_that_its_manifest_says() {
    let stage = Stage::set().await;
    stage.want("private-custom", json!({ "ipcMode": "private", "shmSize": "3Mi" }));
    stage.want("private-odd", json!({ "ipcMode": "private", "shmSize": 5000 }));
    stage.want("shareable-custom", json!({ "ipcMode": "shareable", "shmSize": "128Mi" }));
    stage.want("shareable-odd", json!({ "ipcMode": "shareable", "shmSize": 102_401 }));
    stage.want("joiner", json!({ "ipcMode": "container:shareable-odd" }));
    stage.want("unnamed", json!({ "shmSize": "1Gi" }));
    let status = stage.apply_all();
    // The kernel rounds up to whole pages and tells KiB.
    for (name, size, said) in [
        ("private-custom", "size=3072k", Some("3Mi")),
        ("private-odd", "size=8k", Some("5000")),
        ("shareable-custom", "size=131072k", Some("128Mi")),
        ("shareable-odd", "size=104k", Some("102401")),
        ("joiner", "size=104k", None),
        ("unnamed", "size=1048576k", Some("1Gi")),
    ] {
        let shm = Inside::of(&pid(&status, name).to_string()).shm.unwrap();
        assert!(shm.super_options.contains(size), "{name}: {shm:?}");
        assert_eq!(item(&status, name).ipc.as_ref().unwrap().shm_size.as_deref(), said, "{name}");
    }
    let published = stage.published(&status, "shareable-odd").join("shm");
    assert!(mount_on("self", &published).unwrap().super_options.contains("size=104k"));
    // The limit is one: a page more does not fit.
    let fill = |pid, pages: &str| {
        inside(
            pid,
            &[
                "sh",
                "-c",
                &format!(
                    "dd if=/dev/zero of=/dev/shm/x bs=4k count={pages} 2>&1; rm /dev/shm/x; true"
                ),
            ],
        )
    };
    assert!(!fill(pid(&status, "private-odd"), "2").contains("No space left"));
    assert!(fill(pid(&status, "private-odd"), "3").contains("No space left"));

    // Equal sizes written otherwise are no change, and an unchanged directory is not touched.
    stage.want("private-custom", json!({ "ipcMode": "private", "shmSize": 3 << 20 }));
    let again = stage.apply_all();
    assert_eq!(super::stage::pids(&again), super::stage::pids(&status));
    // Another size is another instance.
    stage.want("private-custom", json!({ "ipcMode": "private", "shmSize": "4Mi" }));
    let changed = stage.apply_all();
    assert_ne!(pid(&changed, "private-custom"), pid(&status, "private-custom"));
    let shm = Inside::of(&pid(&changed, "private-custom").to_string()).shm.unwrap();
    assert!(shm.super_options.contains("size=4096k"), "{shm:?}");
    assert_eq!(pid(&changed, "joiner"), pid(&status, "joiner"));
    stage.take_down();
}

const MODES: [&str; 6] = ["absent", "none", "private", "shareable", "host", "joiner"];

/// A workload of each mode with these mounts; `donor` is what the joiner joins.
fn want_modes(stage: &Stage, mounts: &Value) {
    stage.want("donor", json!({ "ipcMode": "shareable" }));
    for name in MODES {
        let mut spec = json!({ "mounts": mounts });
        match name {
            "absent" => {}
            "joiner" => spec["ipcMode"] = "container:donor".into(),
            mode => spec["ipcMode"] = mode.into(),
        }
        stage.want(name, spec);
    }
}

fn check_namespaces(status: &Status) {
    let own = ipc_namespace("self");
    let namespace = |name: &str| ipc_namespace(&pid(status, name).to_string());
    for name in MODES {
        match name {
            "host" => assert_eq!(namespace(name), own),
            "joiner" => assert_eq!(namespace(name), namespace("donor")),
            _ => assert!(namespace(name) != own && namespace(name) != namespace("donor"), "{name}"),
        }
    }
}

#[tokio::test]
async fn a_mount_of_the_users_own_takes_the_place_of_dev_shm_in_every_mode() {
    let stage = Stage::set().await;
    let source = stage.rig.dir().join("own-shm");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("greeting"), "hello").unwrap();

    want_modes(&stage, &json!([{ "type": "tmpfs", "target": "/dev/shm", "size": "1Mi" }]));
    let status = stage.apply_all();
    check_namespaces(&status);
    let host = Inside::of("self");
    for name in MODES {
        let shm = Inside::of(&pid(&status, name).to_string()).shm.unwrap();
        assert_eq!((shm.kind.as_str(), shm.source.as_str()), ("tmpfs", "tmpfs"), "{name}");
        assert!(shm.has(&["nosuid", "nodev", "noexec"]), "{name}: {shm:?}");
        assert!(shm.super_options.contains("size=1024k"), "{name}: {shm:?}");
        assert_ne!(shm.device, host.shm_device(), "{name}");
        assert_eq!(item(&status, name).ipc.as_ref().unwrap().shm_size, None, "{name}");
        inside(pid(&status, name), &["touch", "/dev/shm/own"]);
    }
    check_published(&stage, &status);

    // The same with a directory of the host; another mount is another instance.
    let bind = json!({ "type": "bind", "source": source, "target": "/dev/shm", "readOnly": true });
    want_modes(&stage, &json!([bind]));
    let status = stage.apply_all();
    check_namespaces(&status);
    for name in MODES {
        let root = PathBuf::from(format!("/proc/{}/root", pid(&status, name)));
        assert_eq!(std::fs::read_to_string(root.join("dev/shm/greeting")).unwrap(), "hello");
        let shm = Inside::of(&pid(&status, name).to_string()).shm.unwrap();
        assert!(shm.is_read_only() && shm.root.ends_with("/own-shm"), "{name}: {shm:?}");
        assert!(std::fs::write(root.join("dev/shm/other"), "").is_err(), "{name}");
    }
    check_published(&stage, &status);
    stage.take_down();
    assert_eq!(std::fs::read_to_string(source.join("greeting")).unwrap(), "hello");
}

/// Who has a /dev/shm of their own publishes nothing.
fn check_published(stage: &Stage, status: &Status) {
    let entries = std::fs::read_dir(stage.rig.run_dir().join("ipc")).unwrap();
    let paths: Vec<PathBuf> = entries.map(|it| it.unwrap().path()).collect();
    assert_eq!(paths, [stage.published(status, "donor")]);
}

#[tokio::test]
async fn a_bound_dev_gets_the_shm_that_is_shared_and_mounts_below_dev_shm_are_on_top() {
    let stage = Stage::set().await;
    // What a program needs of /dev; `shm` is where a shared one goes.
    let dev = stage.rig.dir().join("dev");
    std::fs::create_dir_all(dev.join("shm")).unwrap();
    std::fs::write(dev.join("prepared"), "").unwrap();
    for (name, minor) in [("null", 3), ("zero", 5)] {
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(1, minor);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, dev.join(name), kind, mode, device).unwrap();
        std::fs::set_permissions(dev.join(name), std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    want_modes(&stage, &json!([{ "type": "bind", "source": dev, "target": "/dev" }]));
    let below = json!([
        { "type": "tmpfs", "target": "/dev/shm/below", "size": "1Mi" },
        { "type": "bind", "source": dev, "target": "/dev/shm/bound", "readOnly": true },
    ]);
    stage.want("below-private", json!({ "ipcMode": "private", "mounts": below }));
    stage.want("below-shareable", json!({ "ipcMode": "shareable", "mounts": below }));
    let status = stage.apply_all();
    check_namespaces(&status);
    let donor = Inside::of(&pid(&status, "donor").to_string());
    for name in MODES {
        let process = pid(&status, name).to_string();
        let it = Inside::of(&process);
        assert!(Path::new(&format!("/proc/{process}/root/dev/prepared")).exists(), "{name}");
        assert!(mount_on(&process, "/dev").unwrap().root.ends_with("/dev"), "{name}");
        assert_eq!(
            it.mqueue, None,
            "{name}: the mount of the user's takes the place of all below it"
        );
        match name {
            // The template's went with the rest; what is there is what the user has there.
            "absent" | "none" | "private" => assert_eq!(it.shm, None, "{name}"),
            "shareable" => {
                let published = mount_on("self", stage.published(&status, name).join("shm"));
                assert_eq!(it.shm_device(), published.unwrap().device);
            }
            "host" => assert_eq!(it.shm_device(), Inside::of("self").shm_device()),
            _ => assert_eq!(it.shm_device(), donor.shm_device()),
        }
    }
    // What containers mount there stays theirs.
    let outside = mounts("self");
    let outside = outside.iter().filter(|it| it.point.starts_with(dev.to_str().unwrap()));
    assert_eq!(outside.count(), 0);

    for name in ["below-private", "below-shareable"] {
        let process = pid(&status, name).to_string();
        let tmpfs = mount_on(&process, "/dev/shm/below").unwrap();
        assert!(tmpfs.super_options.contains("size=1024k"), "{name}: {tmpfs:?}");
        let bound = mount_on(&process, "/dev/shm/bound").unwrap();
        assert!(bound.is_read_only(), "{name}: {bound:?}");
        assert!(Path::new(&format!("/proc/{process}/root/dev/shm/bound/prepared")).exists());
        assert!(Inside::of(&process).shm.is_some());
        inside(pid(&status, name), &["touch", "/dev/shm/below/a", "/dev/shm/b"]);
    }
    stage.take_down();
    assert!(dev.join("prepared").exists() && dev.join("null").exists());
}

/// Tries to make a file in every directory of every mount and to open every file for writing; prints where that
/// works. The files of /proc are about the kernel and its processes: they keep nothing.
const WRITE_EVERYWHERE: &str = r#"
cut -d' ' -f5 /proc/self/mountinfo | sort -u | while read -r m; do
    case $m in /proc | /sys) depth=1 ;; *) depth=99 ;; esac
    find "$m" -xdev -maxdepth $depth -type d 2>/dev/null | while read -r d; do
        if true 2>/dev/null >"$d/.try"; then echo "made $d"; rm -f "$d/.try"; fi
    done
    case $m in /proc*) continue ;; esac
    find "$m" -xdev -maxdepth $depth -type f 2>/dev/null | while read -r f; do
        if true 2>/dev/null >>"$f"; then echo "opened $f"; fi
    done
done
"#;

#[tokio::test]
async fn mode_none_with_a_read_only_root_leaves_nothing_to_write_to() {
    let stage = Stage::set().await;
    stage.want("sealed", json!({ "ipcMode": "none", "readOnlyRootfs": true }));
    stage.want("open", json!({ "ipcMode": "none" }));
    stage.want("private", json!({ "ipcMode": "private", "readOnlyRootfs": true }));
    let status = stage.apply_all();
    // As the workload itself: with its capabilities, in its cgroup.
    let written = |name: &str| {
        let id = &item(&status, name).instance.as_ref().unwrap().id;
        let text = stage.rig.ctr(&[
            "tasks",
            "exec",
            "--exec-id",
            "walk",
            id,
            "sh",
            "-c",
            WRITE_EVERYWHERE,
        ]);
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(written("sealed"), Vec::<String>::new());
    // The same walk finds what there is in others.
    let open = written("open");
    for place in ["made /", "made /dev", "made /dev/mqueue", "made /tmp", "opened /etc/passwd"] {
        assert!(open.iter().any(|it| it == place), "{place} in {open:?}");
    }
    let private = written("private");
    for place in ["made /dev", "made /dev/shm", "made /dev/mqueue"] {
        assert!(private.iter().any(|it| it == place), "{place} in {private:?}");
    }
    assert!(!private.iter().any(|it| it == "made /" || it == "made /tmp"), "{private:?}");

    let sealed = mounts(&pid(&status, "sealed").to_string());
    let writable: Vec<&str> = sealed
        .iter()
        .filter(|it| !it.is_read_only() && it.kind != "proc" && it.kind != "devpts")
        .map(|it| it.point.as_str())
        .collect();
    assert_eq!(writable, Vec::<&str>::new(), "{sealed:#?}");
    stage.take_down();
}
