//! What users of other engines met, each by its number in our register of such defects: those that need no runtime.
//! The others are tested on a real one.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

use std::collections::BTreeSet;
use std::path::Path;

use evenkeel::backoff::Delays;
use evenkeel::desired::{BootTime, DesiredState, Source};
use evenkeel::observed::{Image, ImageConfig, ImagePlace, ObservedState};
use evenkeel::plan::{self, Action, ImagePolicy, LogDefaults, Plan, Policy};
use evenkeel::source;
use evenkeel::workload::{Bytes, IpcDefaults, RestartPolicy, Workload};
use serde_json::{Value, json};

const IMAGE: &str = "docker.io/library/busybox:1";

fn document(name: &str, spec: &Value) -> String {
    let mut spec = spec.clone();
    let fields = spec.as_object_mut().unwrap();
    fields.entry("image").or_insert(IMAGE.into());
    fields.entry("command").or_insert(json!(["true"]));
    let document = json!({
        "apiVersion": "evenkeel/v1",
        "kind": "Container",
        "metadata": { "name": name },
        "spec": spec,
    });
    format!("{document}\n")
}

/// What these files ask for, in files whose names are in this order.
async fn desired(documents: &[(&str, Value)]) -> DesiredState {
    let directory = tempfile::tempdir().unwrap();
    for (n, (name, spec)) in documents.iter().enumerate() {
        std::fs::write(directory.path().join(format!("{n}.yaml")), document(name, spec)).unwrap();
    }
    source::read_once(vec![Source::new(Path::new("/"), directory.path())], false).await
}

/// On a box with the image and nothing else.
fn planned(desired: &DesiredState) -> Plan {
    let image = Image {
        name: IMAGE.to_owned(),
        digest: format!("sha256:{}", "1".repeat(64)),
        config: ImageConfig::default(),
        place: ImagePlace::Store,
    };
    let observed =
        ObservedState { images: [(IMAGE.to_owned(), image)].into(), ..ObservedState::default() };
    let policy = Policy {
        ipc: IpcDefaults::default(),
        restart: RestartPolicy::Always,
        delays: Delays::default(),
        log: LogDefaults { max_size: Bytes::new(1 << 20).unwrap(), max_files: 2 },
        images: ImagePolicy::default(),
        prune_limit: 50,
        run_directory: "/run/evenkeel".into(),
        log_directory: "/var/lib/evenkeel/logs".into(),
        cgroup_parent: "/evenkeel".to_owned(),
    };
    plan::diff(desired, &observed, &policy, BootTime::default())
}

fn codes(desired: &DesiredState) -> BTreeSet<&str> {
    desired.problems.iter().map(|it| it.code).collect()
}

/// The workloads that the plan does anything for.
fn touched(plan: &Plan) -> BTreeSet<&str> {
    plan.steps.iter().filter_map(|it| Some(it.name.as_ref()?.as_str())).collect()
}

#[tokio::test]
async fn d1_a_wrong_mode_is_found_before_anything_is_done() {
    let desired =
        desired(&[("wrong", json!({ "ipcMode": "sharable" })), ("right", json!({}))]).await;
    assert_eq!(codes(&desired), ["ipc-mode-invalid"].into());
    assert_eq!(touched(&planned(&desired)), ["right"].into());
}

#[tokio::test]
async fn d3_who_joins_itself_or_a_circle_is_refused() {
    let desired = desired(&[
        ("itself", json!({ "ipcMode": "container:itself" })),
        ("one", json!({ "ipcMode": "container:two" })),
        ("two", json!({ "ipcMode": "container:three" })),
        ("three", json!({ "ipcMode": "container:one" })),
    ])
    .await;
    assert_eq!(codes(&desired), ["ipc-cycle", "ipc-self-join"].into());
    assert_eq!(touched(&planned(&desired)), BTreeSet::new());
}

#[tokio::test]
async fn d6_a_donor_starts_before_its_joiners_whatever_the_files_are_called() {
    let desired = desired(&[
        ("a-last", json!({ "ipcMode": "container:m-middle" })),
        ("m-middle", json!({ "ipcMode": "container:z-donor" })),
        ("z-donor", json!({ "ipcMode": "shareable" })),
    ])
    .await;
    assert_eq!(codes(&desired), BTreeSet::new());
    let plan = planned(&desired);
    let starts: Vec<&str> = plan
        .steps
        .iter()
        .filter(|it| matches!(it.action, Action::Start(_)))
        .map(|it| it.name.as_ref().unwrap().as_str())
        .collect();
    assert_eq!(starts, ["z-donor", "m-middle", "a-last"]);
    // Not by luck: each start waits for the one before it.
    let start_of = |name: &str| {
        let is_it = |it: &&plan::Step| {
            matches!(it.action, Action::Start(_)) && it.name.as_ref().unwrap().as_str() == name
        };
        plan.steps.iter().find(is_it).unwrap()
    };
    let position = |name: &str| plan.steps.iter().position(|it| std::ptr::eq(it, start_of(name)));
    for (joiner, donor) in [("a-last", "m-middle"), ("m-middle", "z-donor")] {
        let required: Vec<usize> = start_of(joiner).requires.iter().map(|it| it.0).collect();
        assert!(required.contains(&position(donor).unwrap()), "{joiner}: {required:?}");
    }
}

#[tokio::test]
async fn d10_the_ipc_of_the_host_is_not_given_on_unnoticed() {
    let desired = desired(&[
        ("host", json!({ "ipcMode": "host" })),
        ("joiner", json!({ "ipcMode": "container:host" })),
    ])
    .await;
    assert_eq!(codes(&desired), ["ipc-donor-not-shareable"].into());
    assert_eq!(touched(&planned(&desired)), ["host"].into());
}

#[test]
fn d17_every_field_that_makes_another_container_makes_another_revision() {
    let digest = format!("sha256:{}", "1".repeat(64));
    let workload = |spec: &Value| -> Workload {
        let mut spec = spec.clone();
        spec.as_object_mut().unwrap().entry("image").or_insert(IMAGE.into());
        serde_json::from_value(json!({ "name": "web", "spec": spec })).unwrap()
    };
    let base = workload(&json!({}));
    let recreates = [
        json!({ "image": "docker.io/library/other:1" }),
        json!({ "command": ["a"] }),
        json!({ "args": ["a"] }),
        json!({ "workingDir": "/a" }),
        json!({ "env": [{ "name": "A", "value": "1" }] }),
        json!({ "hostname": "a" }),
        json!({ "user": { "uid": 7 } }),
        json!({ "ipcMode": "shareable" }),
        json!({ "shmSize": "1Mi" }),
        json!({ "network": { "mode": "host" } }),
        json!({ "mounts": [{ "type": "tmpfs", "target": "/a" }] }),
        json!({ "readOnlyRootfs": true }),
    ];
    let leaves = [
        json!({ "imagePullPolicy": "never" }),
        json!({ "state": "stopped" }),
        json!({ "restart": { "policy": "never" } }),
        json!({ "stop": { "timeout": "1s" } }),
        json!({ "removeOnExit": true, "restart": { "policy": "never" } }),
        json!({ "log": { "maxFiles": 9 } }),
    ];
    for spec in &recreates {
        // What the image is counts, not what it is called.
        let digest_of_it = if spec.get("image").is_some() { "sha256:2" } else { &digest };
        assert_ne!(workload(spec).revision(digest_of_it), base.revision(&digest), "{spec}");
    }
    for spec in &leaves {
        assert_eq!(workload(spec).revision(&digest), base.revision(&digest), "{spec}");
    }
    let schema = evenkeel::schema::manifest();
    let fields = schema["$defs"]["Spec"]["properties"].as_object().unwrap().keys();
    let tested = recreates.iter().chain(&leaves).flat_map(|it| it.as_object().unwrap().keys());
    assert_eq!(tested.collect::<BTreeSet<_>>(), fields.collect::<BTreeSet<_>>());
}
