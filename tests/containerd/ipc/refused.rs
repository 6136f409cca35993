//! What is refused leaves nothing behind: manifests with problems, and modes that cannot work where the program runs.

use std::collections::BTreeSet;

use evenkeel::status::Status;
use serde_json::{Value, json};

use super::stage::{Stage, find, item, mounts, pid, pids, runs};

/// Names, wrong specs, and the code of the problem.
fn wrong() -> Vec<(&'static str, Value, &'static str)> {
    let mode = |mode: &str| json!({ "ipcMode": mode });
    let sized = |mode: &str| json!({ "ipcMode": mode, "shmSize": "1Mi" });
    vec![
        ("mode-unknown", mode("bogus"), "ipc-mode-invalid"),
        ("mode-empty", mode(""), "ipc-mode-invalid"),
        ("mode-upper", mode("Private"), "ipc-mode-invalid"),
        ("mode-no-target", mode("container:"), "ipc-mode-invalid"),
        ("mode-no-colon", mode("container"), "ipc-mode-invalid"),
        ("mode-two-targets", mode("container:good:good"), "ipc-mode-invalid"),
        ("itself", mode("container:itself"), "ipc-self-join"),
        ("circle-one", mode("container:circle-two"), "ipc-cycle"),
        ("circle-two", mode("container:circle-one"), "ipc-cycle"),
        ("of-nobody", mode("container:nobody"), "ipc-donor-unknown"),
        ("of-private", mode("container:donor-private"), "ipc-donor-not-shareable"),
        ("of-none", mode("container:donor-none"), "ipc-donor-not-shareable"),
        ("of-host", mode("container:donor-host"), "ipc-donor-not-shareable"),
        ("of-unnamed", mode("container:donor-unnamed"), "ipc-donor-not-shareable"),
        ("of-own-mount", mode("container:donor-own-mount"), "ipc-donor-not-shareable"),
        ("sized-none", sized("none"), "shm-size-conflict"),
        ("sized-host", sized("host"), "shm-size-conflict"),
        ("sized-joiner", sized("container:good"), "shm-size-conflict"),
        ("sized-nothing", json!({ "shmSize": 0 }), "size-invalid"),
    ]
}

/// Valid workloads that nobody can join; stopped, so that nothing of them is there either.
fn donors() -> Vec<(&'static str, Value)> {
    let own_shm = json!([{ "type": "tmpfs", "target": "/dev/shm", "size": "1Mi" }]);
    let stopped = |mode: &str| json!({ "ipcMode": mode, "state": "stopped" });
    vec![
        ("donor-private", stopped("private")),
        ("donor-none", stopped("none")),
        ("donor-host", stopped("host")),
        ("donor-unnamed", json!({ "state": "stopped" })),
        (
            "donor-own-mount",
            json!({ "ipcMode": "shareable", "state": "stopped", "mounts": own_shm }),
        ),
    ]
}

#[tokio::test]
async fn a_manifest_with_a_problem_of_ipc_has_no_effect_and_stops_no_other() {
    let stage = Stage::set().await;
    // What the program writes about itself is there from the first time on.
    stage.apply();
    let before = stage.traces();
    for (name, spec, _) in wrong() {
        stage.want(name, spec);
    }
    for (name, spec) in donors() {
        stage.want(name, spec);
    }
    let applied = stage.apply();
    assert_eq!(applied.code, 1, "{applied:#?}");
    assert_eq!(stage.traces(), before);
    check(&applied.status);

    // One that is fine is started beside them, and nothing but it is there.
    stage.want("good", json!({ "ipcMode": "shareable" }));
    let applied = stage.apply();
    assert_eq!(applied.code, 1, "{applied:#?}");
    check(&applied.status);
    assert!(runs(&applied.status, "good"), "{applied:#?}");
    assert_eq!(pids(&applied.status).len(), 1, "{applied:#?}");
    let others: Vec<String> = stage
        .traces()
        .difference(&before)
        .filter(|it| ![" good-", "/good-", "\"good-"].iter().any(|of| it.contains(of)))
        .cloned()
        .collect();
    // The ones for all: image, cgroup, and where runc and the host keep things of instances.
    let shared = |it: &String| {
        it.starts_with("image ")
            || it.starts_with("cgroup ")
            || it.ends_with("/runc/evenkeel")
            || ["/ipc", "/runc", "/logs"].iter().any(|end| it.ends_with(end))
    };
    assert_eq!(others.into_iter().filter(|it| !shared(it)).collect::<Vec<_>>(), [""; 0]);
    stage.take_down();
}

fn check(status: &Status) {
    for (name, _, code) in wrong() {
        let it = item(status, name);
        assert_eq!(it.phase.to_string(), "Invalid", "{it:#?}");
        assert_eq!(it.instance, None, "{it:#?}");
        let codes: Vec<&str> = it.problems.iter().map(|it| it.code.as_str()).collect();
        assert_eq!(codes, [code], "{it:#?}");
        let problem = &it.problems[0];
        assert!(problem.line > 0 && problem.file.ends_with(&format!("{name}.yaml")), "{it:#?}");
    }
    for (name, _) in donors() {
        assert_eq!(item(status, name).phase.to_string(), "Stopped", "{name}");
    }
}

#[tokio::test]
async fn where_containerd_does_not_see_our_mounts_only_what_shares_them_is_refused() {
    let stage = Stage::set().await;
    stage.want("shareable", json!({ "ipcMode": "shareable" }));
    stage.want("joiner", json!({ "ipcMode": "container:shareable" }));
    let others = ["private", "none", "host"];
    for name in others {
        stage.want(name, json!({ "ipcMode": name }));
    }
    let is_refused = |it: &Status, name: &str, phase: &str| {
        find(it, name)
            .is_some_and(|it| it.phase.to_string() == phase && it.reason == "mounts-not-shared")
    };
    let controller = stage.controller_apart();
    let apart = stage
        .until("the others run", |it| {
            others.iter().all(|name| runs(it, name))
                && ["shareable", "joiner"].iter().all(|name| is_refused(it, name, "Waiting"))
        })
        .await;
    assert!(!item(&apart, "shareable").message.is_empty(), "{apart:#?}");
    let traces = stage.traces();
    let of_refused: BTreeSet<&String> =
        traces.iter().filter(|it| it.contains("shareable-") || it.contains("joiner-")).collect();
    assert_eq!(of_refused, BTreeSet::new());
    let base = stage.rig.run_dir().join("ipc");
    assert!(!base.exists());
    let inner = mounts(&controller.pid().to_string());
    assert!(!inner.iter().any(|it| it.point.starts_with(base.to_str().unwrap())), "{inner:#?}");
    controller.end();

    // Seen by containerd they run, and go on when the next controller is apart again; but nothing new is started.
    let controller = stage.controller();
    let all = ["private", "none", "host", "shareable", "joiner"];
    let together = stage.until("all run", |it| all.iter().all(|name| runs(it, name))).await;
    for name in others {
        assert_eq!(pid(&together, name), pid(&apart, name), "{name}");
    }
    controller.end();
    stage.want("shareable", json!({ "ipcMode": "shareable", "shmSize": "1Mi" }));
    let controller = stage.controller_apart();
    let edited =
        stage.until("the edit is refused", |it| is_refused(it, "shareable", "Running")).await;
    assert_eq!(pids(&edited), pids(&together));
    assert!(!item(&edited, "shareable").up_to_date);
    controller.end();
    stage.take_down();
}
