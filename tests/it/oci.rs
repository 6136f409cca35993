//! Whole specs as committed files, the mounts of every IPC mode as one table, and rules that no spec may break.
//!
//! `UPDATE=1 cargo test` rewrites the files; a reviewer reads their diff.
#![cfg(test)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use evenkeel::manifest::{self, Content};
use evenkeel::observed::{ImageConfig, PublishedPaths};
use evenkeel::oci::{HOST_NETWORK_FILES, Lowering, lower};
use evenkeel::workload::{IpcDefaults, Workload};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use proptest::prelude::*;
use serde_json::{Value, json};

fn lowered(workload: &Workload, image: &ImageConfig) -> Spec {
    lower(&Lowering {
        id: &"web-0123456789".parse().unwrap(),
        workload,
        ipc: &workload.spec.ipc(&IpcDefaults::default()),
        image,
        cgroup_parent: "/evenkeel",
        published: &PublishedPaths {
            shm: "/run/evenkeel/ipc/INSTANCE/shm".into(),
            ns: "/run/evenkeel/ipc/INSTANCE/ns".into(),
        },
        host_files: &HOST_NETWORK_FILES,
        oom_score_adj: None,
    })
    .unwrap()
}

fn workload(spec: Value) -> Workload {
    let mut spec = spec;
    spec.as_object_mut().unwrap().entry("image").or_insert("busybox:1".into());
    serde_json::from_value(json!({ "name": "web", "spec": spec })).unwrap()
}

fn shell() -> ImageConfig {
    ImageConfig { cmd: vec!["sh".to_owned()], ..ImageConfig::default() }
}

/// Compares with a committed file, or rewrites it with `UPDATE=1`.
fn check(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/oci").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        actual == expected,
        "{} is not what is made today; look at it with `UPDATE=1 cargo test` and `git diff`:\n{actual}",
        path.display()
    );
}

/// JSON with the sets of capabilities in order, so that equal specs are equal text.
fn text(spec: &Spec) -> String {
    let mut json = serde_json::to_value(spec).unwrap();
    for set in json["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
        set.as_array_mut().unwrap().sort_by_key(ToString::to_string);
    }
    format!("{json:#}\n")
}

#[test]
fn whole_specs_are_as_committed() {
    let server = ImageConfig {
        entrypoint: vec!["/usr/bin/server".to_owned()],
        cmd: vec!["--help".to_owned()],
        env: vec!["PATH=/usr/bin:/bin".to_owned(), "VERSION=7".to_owned()],
        working_dir: "/srv".to_owned(),
        user: "999:1000".to_owned(),
        ..ImageConfig::default()
    };
    let everything = json!({
        "command": ["/bin/server"],
        "args": ["--port", "80"],
        "workingDir": "/data",
        "env": [{ "name": "VERSION", "value": "8" }, { "name": "COLOUR", "value": "blue" }],
        "hostname": "www.example",
        "user": { "uid": 5, "gid": 6, "supplementalGroups": [7] },
        "ipcMode": "shareable",
        "shmSize": "128Mi",
        "network": { "mode": "host" },
        "readOnlyRootfs": true,
        "mounts": [
            { "type": "bind", "source": "/srv/data", "target": "/data", "propagation": "rslave" },
            { "type": "bind", "source": "/etc/app.conf", "target": "/etc/app.conf", "readOnly": true },
            { "type": "tmpfs", "target": "/tmp", "size": "16Mi", "options": ["exec"] },
        ],
    });
    check("plain.json", &text(&lowered(&workload(json!({})), &shell())));
    check("image.json", &text(&lowered(&workload(json!({ "args": ["--port", "80"] })), &server)));
    check("everything.json", &text(&lowered(&workload(everything), &server)));
    check(
        "joiner.json",
        &text(&lowered(&workload(json!({ "ipcMode": "container:db" })), &shell())),
    );
    check(
        "sealed.json",
        &text(&lowered(&workload(json!({ "ipcMode": "none", "readOnlyRootfs": true })), &shell())),
    );
}

/// Every example and what the demo runs, each workload on its own.
#[test]
fn the_specs_of_all_examples_are_as_committed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    for directory in ["examples", "manifests"] {
        for entry in std::fs::read_dir(root.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|it| it != "yaml") {
                continue;
            }
            let reading = manifest::read(&path, &std::fs::read(&path).unwrap());
            assert_eq!(reading.problems, [], "{}", path.display());
            for document in reading.documents {
                let Content::Workload { name, workload: Some(workload), .. } = document.content
                else {
                    panic!("{} has a document that is no workload", path.display())
                };
                let file = format!("examples/{name}.json");
                check(&file, &text(&lowered(&workload, &shell())));
                names.insert(format!("{name}.json"));
            }
        }
    }
    let committed = std::fs::read_dir(root.join("tests/golden/oci/examples")).unwrap();
    let committed: BTreeSet<String> =
        committed.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(committed, names, "specs of examples that are gone");
}

const MODES: [&str; 5] = ["none", "private", "shareable", "host", "container:db"];

/// Every mode × root × own mount, with all that decides who shares what.
#[test]
fn the_table_of_ipc_modes_is_as_committed() {
    let own_mounts = [
        ("no own mount", json!([])),
        (
            "own tmpfs on /dev/shm",
            json!([{ "type": "tmpfs", "target": "/dev/shm", "size": "1Mi" }]),
        ),
        (
            "own bind on /dev/shm",
            json!([{ "type": "bind", "source": "/srv/shm", "target": "/dev/shm" }]),
        ),
        ("own bind on /dev", json!([{ "type": "bind", "source": "/dev", "target": "/dev" }])),
    ];
    let mut table = String::new();
    for mode in MODES {
        for read_only in [false, true] {
            for (title, mounts) in &own_mounts {
                let spec = lowered(
                    &workload(
                        json!({ "ipcMode": mode, "readOnlyRootfs": read_only, "mounts": mounts }),
                    ),
                    &shell(),
                );
                let root = if read_only { "read-only" } else { "writable" };
                writeln!(table, "# {mode}, root {root}, {title}").unwrap();
                writeln!(table, "ipc namespace: {}", ipc_namespace(&spec)).unwrap();
                for line in mount_lines(&spec) {
                    writeln!(table, "{line}").unwrap();
                }
                table.push('\n');
            }
        }
    }
    check("ipc-modes.txt", &table);
}

fn ipc_namespace(spec: &Spec) -> String {
    let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
    match namespaces.iter().find(|it| it.typ() == LinuxNamespaceType::Ipc) {
        None => "the host's".to_owned(),
        Some(it) => {
            it.path().as_ref().map_or_else(|| "new".to_owned(), |path| path.display().to_string())
        }
    }
}

/// The mounts at and below /dev: target, type, source, options.
fn mount_lines(spec: &Spec) -> Vec<String> {
    let show = |it: &oci_spec::runtime::Mount| {
        format!(
            "{:<12} {:<7} {:<31} {}",
            it.destination().display(),
            it.typ().as_deref().unwrap(),
            it.source().as_deref().unwrap().display(),
            it.options().as_ref().unwrap().join(",")
        )
    };
    let mounts = spec.mounts().as_ref().unwrap();
    mounts.iter().filter(|it| it.destination().starts_with("/dev")).map(show).collect()
}

/// Targets around the ones that matter, so that they meet often.
fn target() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "dev", "shm", "mqueue", "pts", "sys", "proc", "etc", "hosts", "data",
    ]);
    prop::collection::vec(part, 1..4).prop_map(|parts| format!("/{}", parts.join("/")))
}

fn any_mount() -> impl Strategy<Value = Value> {
    let kind = prop::bool::ANY;
    let propagation = prop::sample::select(vec!["rprivate", "rslave", "rshared"]);
    (kind, target(), prop::bool::ANY, propagation).prop_map(|(is_bind, target, read_only, propagation)| {
        if is_bind {
            json!({ "type": "bind", "source": "/srv", "target": target, "readOnly": read_only, "propagation": propagation })
        } else {
            json!({ "type": "tmpfs", "target": target, "readOnly": read_only })
        }
    })
}

proptest! {
    #[test]
    fn no_spec_breaks_the_rules_of_mounts(
        mode in prop::sample::select(MODES.to_vec()),
        read_only in prop::bool::ANY,
        network in prop::sample::select(vec!["none", "host"]),
        own in prop::collection::vec(any_mount(), 0..6),
    ) {
        let workload = workload(json!({
            "ipcMode": mode, "readOnlyRootfs": read_only, "network": { "mode": network }, "mounts": own
        }));
        let spec = lowered(&workload, &shell());
        prop_assert_eq!(&spec, &lowered(&workload, &shell()));
        let targets: Vec<PathBuf> = spec.mounts().iter().flatten().map(|it| it.destination().clone()).collect();
        let is_own = |target: &Path| workload.spec.mounts.iter().any(|it| it.target.as_path() == target);
        for (place, target) in targets.iter().enumerate() {
            for earlier in &targets[..place] {
                prop_assert!(!earlier.starts_with(target) || earlier == target, "{:?} hides {:?}", target, earlier);
                prop_assert!(earlier != target || is_own(target), "{:?} is mounted twice", target);
            }
        }
        for own in &workload.spec.mounts {
            let written = workload.spec.mounts.iter().filter(|it| it.target == own.target).count();
            let made = targets.iter().filter(|it| *it == own.target.as_path()).count();
            prop_assert_eq!(made, written, "{}", own.target);
        }
        let covers_dev = workload.spec.mounts.iter().any(|it| Path::new("/dev").starts_with(it.target.as_path()));
        let wants_shm = match mode {
            "none" => false,
            "private" => !covers_dev,
            _ => true,
        };
        let has_shm = targets.iter().any(|it| it == Path::new("/dev/shm"));
        prop_assert_eq!(has_shm, wants_shm || is_own(Path::new("/dev/shm")));
    }
}
