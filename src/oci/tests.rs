use serde_json::{Value, json};

use super::*;
use crate::workload::IpcDefaults;

/// Lowers a manifest's `spec` for an image and shows the result as JSON.
fn check(spec: Value, image: &Value) -> Result<Value, Unlowerable> {
    let mut spec = spec;
    spec.as_object_mut().unwrap().entry("image").or_insert("app".into());
    let workload: Workload =
        serde_json::from_value(json!({ "name": "web", "spec": spec })).unwrap();
    let image: ImageConfig = serde_json::from_value(image.clone()).unwrap();
    let lowered = lower(&Lowering {
        id: &"web-0123456789".parse().unwrap(),
        ipc: &workload.spec.ipc(&IpcDefaults::default()),
        workload: &workload,
        image: &image,
        cgroup_parent: "/evenkeel",
        published: &PublishedPaths {
            shm: "/run/shm-of-donor".into(),
            ns: "/run/ns-of-donor".into(),
        },
        host_files: &HOST_NETWORK_FILES,
        oom_score_adj: None,
    })?;
    Ok(serde_json::to_value(lowered).unwrap())
}

/// With an image that has nothing but a program.
fn lowered(spec: Value) -> Value {
    check(spec, &json!({ "cmd": ["sh"] })).unwrap()
}

fn targets(lowered: &Value) -> Vec<&str> {
    lowered["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["destination"].as_str().unwrap())
        .collect()
}

/// Type, source and options of the only mount on a target, in one line.
fn mount_on(lowered: &Value, target: &str) -> Option<String> {
    let mut on =
        lowered["mounts"].as_array().unwrap().iter().filter(|it| it["destination"] == target);
    let it = on.next()?;
    assert_eq!(on.next(), None, "two mounts on {target}");
    let options: Vec<&str> =
        it["options"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    Some(format!(
        "{} {} {}",
        it["type"].as_str().unwrap(),
        it["source"].as_str().unwrap(),
        options.join(",")
    ))
}

fn namespace<'a>(lowered: &'a Value, kind: &str) -> Option<&'a Value> {
    lowered["linux"]["namespaces"].as_array().unwrap().iter().find(|it| it["type"] == kind)
}

#[test]
fn command_and_args_combine_with_the_image_as_in_kubernetes() {
    let image = json!({ "entrypoint": ["/entry", "-e"], "cmd": ["cmd", "-c"] });
    let cases = [
        (json!({}), json!(["/entry", "-e", "cmd", "-c"])),
        (json!({ "command": ["own"] }), json!(["own"])),
        (json!({ "args": ["-a"] }), json!(["/entry", "-e", "-a"])),
        (json!({ "command": ["own"], "args": ["-a"] }), json!(["own", "-a"])),
        (json!({ "command": [], "args": [] }), json!(["/entry", "-e", "cmd", "-c"])),
    ];
    for (spec, expected) in cases {
        assert_eq!(check(spec.clone(), &image).unwrap()["process"]["args"], expected, "{spec}");
    }
}

#[test]
fn an_image_without_a_program_needs_a_command() {
    for image in [json!({}), json!({ "cmd": [""] })] {
        let error = check(json!({}), &image).unwrap_err();
        assert_eq!(error.reason, "no-command");
        assert!(error.message.contains("`app`") && error.message.contains("`command`"), "{error}");
    }
    assert_eq!(
        check(json!({ "command": ["own"] }), &json!({})).unwrap()["process"]["args"],
        json!(["own"])
    );
}

#[test]
fn the_working_directory_is_the_manifests_the_images_or_the_root() {
    let cases = [
        (json!({}), "", "/"),
        (json!({}), "/srv", "/srv"),
        (json!({}), "srv", "/srv"),
        (json!({ "workingDir": "/own" }), "/srv", "/own"),
    ];
    for (spec, image, expected) in cases {
        let lowered = check(spec, &json!({ "cmd": ["sh"], "workingDir": image })).unwrap();
        assert_eq!(lowered["process"]["cwd"], expected);
    }
}

#[test]
fn the_last_value_of_a_variable_wins_and_keeps_the_first_place() {
    let image = json!({ "cmd": ["sh"], "env": ["A=image", "PATH=/image", "HOSTNAME=0.0.0.0", "not a variable", "B=x=y"] });
    let own = json!([{ "name": "A", "value": "first" }, { "name": "C" }, { "name": "A", "value": "own" }]);
    let env = check(json!({ "env": own }), &image).unwrap()["process"]["env"].clone();
    assert_eq!(env, json!(["PATH=/image", "HOSTNAME=0.0.0.0", "A=own", "B=x=y", "C="]));
}

#[test]
fn path_and_host_name_are_there_without_being_asked_for() {
    let lowered = lowered(json!({ "hostname": "www.example" }));
    let expected = [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOSTNAME=www.example",
    ];
    assert_eq!(lowered["process"]["env"], json!(expected));
    assert_eq!(lowered["hostname"], "www.example");
}

#[test]
fn the_host_name_is_the_workloads_name_by_default() {
    assert_eq!(lowered(json!({}))["hostname"], "web");
}

#[test]
fn a_numeric_user_of_the_image_is_taken() {
    let cases = [
        ("", 0, 0),
        ("root", 0, 0),
        ("root:root", 0, 0),
        ("1000", 1000, 0),
        ("7:8", 7, 8),
        ("7:", 7, 0),
    ];
    for (text, uid, gid) in cases {
        let lowered = check(json!({}), &json!({ "cmd": ["sh"], "user": text })).unwrap();
        assert_eq!(
            lowered["process"]["user"],
            json!({ "uid": uid, "gid": gid, "additionalGids": [gid] }),
            "{text}"
        );
    }
}

#[test]
fn a_named_user_of_the_image_is_refused_with_the_way_out() {
    for text in ["nginx", "1000:staff", "+1", "-1", "4294967295", "1:2:3"] {
        let image = json!({ "cmd": ["sh"], "user": text });
        let error = check(json!({}), &image).unwrap_err();
        assert_eq!(error.reason, "user-not-numeric", "{text}");
        assert!(
            error.message.contains(&format!("`{text}`")) && error.message.contains("uid: 1000"),
            "{error}"
        );
        let own = json!({ "user": { "uid": 5 } });
        assert_eq!(check(own, &image).unwrap()["process"]["user"]["uid"], 5);
    }
}

#[test]
fn the_own_group_is_among_the_groups_once() {
    let user = json!({ "uid": 5, "gid": 6, "supplementalGroups": [7, 6, 7] });
    let lowered = lowered(json!({ "user": user }));
    assert_eq!(lowered["process"]["user"], json!({ "uid": 5, "gid": 6, "additionalGids": [6, 7] }));
}

#[test]
fn root_has_dockers_capabilities_and_others_have_them_in_the_bounding_set_only() {
    let size = |lowered: &Value, set: &str| {
        lowered["process"]["capabilities"][set].as_array().unwrap().len()
    };
    let sizes = |lowered: &Value| {
        ["bounding", "effective", "permitted", "inheritable", "ambient"]
            .map(|set| size(lowered, set))
    };
    assert_eq!(sizes(&lowered(json!({}))), [14, 14, 14, 0, 0]);
    assert_eq!(sizes(&lowered(json!({ "user": { "uid": 1 } }))), [14, 0, 0, 0, 0]);
}

#[test]
fn nothing_is_asked_for_that_needs_a_right_containerd_may_lack() {
    let process = lowered(json!({}))["process"].clone();
    assert_eq!(process.get("rlimits"), None);
    assert_eq!(process.get("oomScoreAdj"), None);
    assert_eq!(process["user"].get("umask"), None);
    assert_eq!(process["terminal"], false);
    assert_eq!(process["noNewPrivileges"], false);
}

#[test]
fn the_cgroup_is_the_instances_below_the_run_directorys() {
    assert_eq!(lowered(json!({}))["linux"]["cgroupsPath"], "/evenkeel/web-0123456789");
}

#[test]
fn no_device_is_allowed_but_those_the_runtime_adds() {
    let rules = lowered(json!({}))["linux"]["resources"]["devices"].clone();
    assert_eq!(rules, json!([{ "allow": false, "access": "rwm" }]));
}

#[test]
fn a_network_of_none_is_a_namespace_of_its_own() {
    let lowered = lowered(json!({}));
    assert_eq!(namespace(&lowered, "network"), Some(&json!({ "type": "network" })));
    assert_eq!(mount_on(&lowered, "/etc/hosts"), None);
}

#[test]
fn the_hosts_network_comes_with_the_hosts_names() {
    let lowered = lowered(json!({ "network": { "mode": "host" } }));
    assert_eq!(namespace(&lowered, "network"), None);
    for file in HOST_NETWORK_FILES {
        assert_eq!(mount_on(&lowered, file).unwrap(), format!("bind {file} rbind,rprivate,ro"));
    }
}

#[test]
fn an_own_mount_takes_the_place_of_the_hosts_names() {
    let own = json!([{ "type": "tmpfs", "target": "/etc" }]);
    let lowered = lowered(json!({ "network": { "mode": "host" }, "mounts": own }));
    assert!(HOST_NETWORK_FILES.iter().all(|file| mount_on(&lowered, file).is_none()));
}

#[test]
fn each_ipc_mode_has_its_namespace_and_its_shm() {
    let new = json!({ "type": "ipc" });
    let donors = json!({ "type": "ipc", "path": "/run/ns-of-donor" });
    let size = json!(4096);
    let cases = [
        (json!({ "ipcMode": "none" }), Some(&new), None),
        (json!({}), Some(&new), Some("tmpfs shm nosuid,noexec,nodev,mode=1777,size=67108864")),
        (
            json!({ "ipcMode": "private", "shmSize": size }),
            Some(&new),
            Some("tmpfs shm nosuid,noexec,nodev,mode=1777,size=4096"),
        ),
        (
            json!({ "ipcMode": "shareable" }),
            Some(&new),
            Some("bind /run/shm-of-donor rbind,rprivate"),
        ),
        (json!({ "ipcMode": "host" }), None, Some("bind /dev/shm rbind,rprivate")),
        (
            json!({ "ipcMode": "container:db" }),
            Some(&donors),
            Some("bind /run/shm-of-donor rbind,rprivate"),
        ),
    ];
    for (spec, ipc, shm) in cases {
        let lowered = lowered(spec.clone());
        assert_eq!(namespace(&lowered, "ipc"), ipc, "{spec}");
        assert_eq!(mount_on(&lowered, "/dev/shm").as_deref(), shm, "{spec}");
        assert_eq!(
            mount_on(&lowered, "/dev/mqueue").as_deref(),
            Some("mqueue mqueue nosuid,noexec,nodev"),
            "{spec}"
        );
    }
}

#[test]
fn an_own_mount_on_shm_replaces_ours_in_every_mode() {
    for mode in ["none", "private", "shareable", "host", "container:db"] {
        let own = json!([{ "type": "tmpfs", "target": "/dev/shm", "size": "1Mi" }]);
        let lowered = lowered(json!({ "ipcMode": mode, "mounts": own }));
        assert_eq!(
            mount_on(&lowered, "/dev/shm").unwrap(),
            "tmpfs tmpfs noexec,nosuid,nodev,rprivate,size=1048576,mode=1777",
            "{mode}"
        );
    }
}

#[test]
fn an_own_dev_drops_the_mounts_below_it_but_a_shared_shm_stays() {
    let own = json!([{ "type": "bind", "source": "/dev", "target": "/dev" }]);
    let cases = [
        ("none", vec!["/proc", "/sys", "/dev"]),
        ("private", vec!["/proc", "/sys", "/dev"]),
        ("shareable", vec!["/proc", "/sys", "/dev", "/dev/shm"]),
        ("host", vec!["/proc", "/sys", "/dev", "/dev/shm"]),
        ("container:db", vec!["/proc", "/sys", "/dev", "/dev/shm"]),
    ];
    for (mode, expected) in cases {
        let lowered = lowered(json!({ "ipcMode": mode, "mounts": own }));
        assert_eq!(targets(&lowered), expected, "{mode}");
    }
}

#[test]
fn an_own_mount_that_only_starts_like_dev_drops_nothing() {
    let lowered = lowered(json!({ "mounts": [{ "type": "tmpfs", "target": "/device" }] }));
    assert!(mount_on(&lowered, "/dev").is_some() && mount_on(&lowered, "/dev/pts").is_some());
}

#[test]
fn mode_none_with_a_read_only_root_leaves_nothing_writable() {
    let sealed = lowered(json!({ "ipcMode": "none", "readOnlyRootfs": true }));
    assert_eq!(sealed["root"], json!({ "path": "rootfs", "readonly": true }));
    assert_eq!(targets(&sealed), ["/proc", "/dev", "/sys", "/dev/pts"]);
    assert!(mount_on(&sealed, "/dev").unwrap().ends_with(",ro"));
}

#[test]
fn other_modes_with_a_read_only_root_keep_dev_shm_and_mqueue_writable() {
    for mode in ["private", "shareable", "host", "container:db"] {
        let open = lowered(json!({ "ipcMode": mode, "readOnlyRootfs": true }));
        for target in ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"] {
            let mount = mount_on(&open, target).unwrap();
            assert!(!mount.split([',', ' ']).any(|it| it == "ro"), "{mode} {target}: {mount}");
        }
    }
}

#[test]
fn the_root_is_writable_by_default_and_there_is_no_cgroup_mount() {
    let lowered = lowered(json!({}));
    assert_eq!(lowered["root"], json!({ "path": "rootfs", "readonly": false }));
    assert_eq!(targets(&lowered), ["/proc", "/dev", "/sys", "/dev/pts", "/dev/mqueue", "/dev/shm"]);
}

#[test]
fn a_bind_is_recursive_and_passes_on_what_it_is_told_to() {
    let bind = |more: Value| {
        let mut own = json!({ "type": "bind", "source": "/srv", "target": "/data" });
        own.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let lowered = lowered(json!({ "mounts": [own] }));
        (mount_on(&lowered, "/data").unwrap(), lowered["linux"].get("rootfsPropagation").cloned())
    };
    assert_eq!(bind(json!({})), ("bind /srv rbind,rprivate".into(), None));
    assert_eq!(
        bind(json!({ "readOnly": true, "options": ["noexec", "rw"] })),
        ("bind /srv rbind,rprivate,noexec,rw,ro".into(), None)
    );
    assert_eq!(
        bind(json!({ "propagation": "rslave" })),
        ("bind /srv rbind,rslave".into(), Some("rslave".into()))
    );
    assert_eq!(
        bind(json!({ "propagation": "rshared" })),
        ("bind /srv rbind,rshared".into(), Some("shared".into()))
    );
}

#[test]
fn the_options_of_a_tmpfs_come_after_its_defaults() {
    let own = json!({
        "type": "tmpfs", "target": "/scratch", "size": "2Ki", "mode": "0700", "options": ["exec"], "readOnly": true
    });
    assert_eq!(
        mount_on(&lowered(json!({ "mounts": [own] })), "/scratch").unwrap(),
        "tmpfs tmpfs noexec,nosuid,nodev,rprivate,size=2048,mode=0700,exec,ro"
    );
}

#[test]
fn mounts_are_sorted_by_depth_and_otherwise_stay_in_order() {
    let own = json!([
        { "type": "tmpfs", "target": "/dev/shm/cache" },
        { "type": "tmpfs", "target": "/b/c" },
        { "type": "tmpfs", "target": "/b", "mode": "0700" },
        { "type": "tmpfs", "target": "/a" },
        { "type": "tmpfs", "target": "/b", "mode": "0711" },
    ]);
    let lowered = lowered(json!({ "ipcMode": "shareable", "mounts": own }));
    assert_eq!(
        targets(&lowered),
        [
            "/proc",
            "/dev",
            "/sys",
            "/b",
            "/a",
            "/b",
            "/dev/pts",
            "/dev/mqueue",
            "/dev/shm",
            "/b/c",
            "/dev/shm/cache"
        ]
    );
}
