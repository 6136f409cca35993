//! Edits of what runs: what cannot be carried out leaves every process as it is, and says why.

use std::collections::BTreeMap;

use evenkeel::status::Status;
use rustix::process::Signal;
use serde_json::json;

use super::stage::{IMAGE, Stage, find, item, pid, pids, runs};
use crate::rig::sweep;

/// Running as it was before, with something to say about it.
fn stays(
    status: &Status,
    name: &str,
    phase: &str,
    reason: &str,
    before: &BTreeMap<String, u32>,
) -> bool {
    find(status, name).is_some_and(|it| {
        it.phase.to_string() == phase
            && it.reason == reason
            && it.instance.as_ref().and_then(|it| it.pid) == before.get(name).copied()
    })
}

#[tokio::test]
async fn an_edit_to_what_is_missing_leaves_the_process_alone() {
    let stage = Stage::set().await;
    let source = stage.rig.dir().join("source");
    std::fs::create_dir(&source).unwrap();
    let bound = |source: &std::path::Path| json!({ "mounts": [{ "type": "bind", "source": source, "target": "/data" }] });
    stage.want("image", json!({ "image": IMAGE }));
    stage.want("bound", bound(&source));
    stage.want("donor", json!({ "ipcMode": "shareable" }));
    let controller = stage.controller();
    let all = ["image", "bound", "donor"];
    let begun = stage.until("all run", |it| all.iter().all(|name| runs(it, name))).await;
    let before = pids(&begun);

    stage.want("image", json!({ "image": "missing:9", "imagePullPolicy": "never" }));
    stage.want("bound", bound(&stage.rig.dir().join("missing")));
    stage.want(
        "donor",
        json!({ "ipcMode": "shareable", "image": "missing:9", "imagePullPolicy": "never" }),
    );
    let edited = stage
        .until("the edits are refused", |it| {
            stays(it, "image", "Running", "image-missing", &before)
                && stays(it, "bound", "Running", "mount-source-missing", &before)
                && stays(it, "donor", "Running", "image-missing", &before)
        })
        .await;
    for (name, what) in [("image", "missing:9"), ("bound", "/missing"), ("donor", "missing:9")] {
        let it = item(&edited, name);
        assert!(!it.up_to_date && it.message.contains(what), "{it:#?}");
        assert!(sweep::is_alive(before[name]));
    }
    // What ends meanwhile is started again as it was.
    sweep::signal(before["image"], Signal::KILL);
    let again = stage
        .until("it is back", |it| {
            find(it, "image").is_some_and(|it| {
                let instance = it.instance.as_ref();
                it.reason == "image-missing"
                    && instance.is_some_and(|it| it.pid.is_some_and(|pid| pid != before["image"]))
            })
        })
        .await;
    let instance = |status: &Status| item(status, "image").instance.as_ref().unwrap().id.clone();
    assert_eq!(instance(&again), instance(&begun));

    // Taken back, there is nothing to do.
    stage.want("image", json!({ "image": IMAGE }));
    stage.want("bound", bound(&source));
    stage.want("donor", json!({ "ipcMode": "shareable" }));
    let back = stage.until("all is well", |it| all.iter().all(|name| runs(it, name))).await;
    assert_eq!(pids(&back), pids(&again));
    // And what is no longer missing is carried out, without anybody telling.
    stage.want("bound", bound(&stage.rig.dir().join("missing")));
    let before = pids(&back);
    stage
        .until("it is missing", |it| stays(it, "bound", "Running", "mount-source-missing", &before))
        .await;
    std::fs::create_dir(stage.rig.dir().join("missing")).unwrap();
    let done = stage.until("it runs", |it| runs(it, "bound")).await;
    assert_ne!(pid(&done, "bound"), before["bound"]);
    controller.end();
    stage.take_down();
}

#[tokio::test]
async fn a_donor_in_use_is_neither_made_private_nor_removed() {
    let stage = Stage::set().await;
    let shareable = || stage.want("donor", json!({ "ipcMode": "shareable" }));
    shareable();
    stage.want("joiner", json!({ "ipcMode": "container:donor" }));
    stage.want("first", json!({}));
    stage.want("second", json!({}));
    let controller = stage.controller();
    let all = ["donor", "joiner", "first", "second"];
    let begun = stage.until("all run", |it| all.iter().all(|name| runs(it, name))).await;
    let before = pids(&begun);

    let edits: [(&str, &dyn Fn()); 4] = [
        ("made private", &|| stage.want("donor", json!({ "ipcMode": "private" }))),
        ("made absent", &|| {
            stage.want("donor", json!({ "ipcMode": "shareable", "state": "absent" }));
        }),
        ("given its own /dev/shm", &|| {
            let own = json!([{ "type": "tmpfs", "target": "/dev/shm" }]);
            stage.want("donor", json!({ "ipcMode": "shareable", "mounts": own }));
        }),
        ("removed", &|| stage.unwant("donor")),
    ];
    for (what, edit) in edits {
        edit();
        let held =
            stage.until(what, |it| stays(it, "donor", "Held", "donor-in-use", &before)).await;
        let message = &item(&held, "donor").message;
        assert!(message.contains("joiner"), "{what}: {message}");
        assert_eq!(pids(&held), before, "{what}");
        assert!(before.values().all(|pid| sweep::is_alive(*pid)), "{what}");
        assert!(stage.published(&held, "donor").join("shm").exists(), "{what}");
        shareable();
        let back = stage.until("it is shareable again", |it| all.iter().all(|name| runs(it, name)));
        assert_eq!(pids(&back.await), before, "{what}");
    }

    // Both in one change: nobody is left to hold the donor.
    stage.unwant("donor");
    stage.unwant("joiner");
    let of_both = |it: &String| it.contains("donor-") || it.contains("joiner-");
    let gone = stage
        .until("both are gone", |it| {
            find(it, "donor").is_none()
                && find(it, "joiner").is_none()
                && !stage.traces().iter().any(of_both)
                && !stage.rig.run_dir().join("ipc").exists()
        })
        .await;
    assert!(!sweep::is_alive(before["donor"]) && !sweep::is_alive(before["joiner"]));
    for name in ["first", "second"] {
        assert_eq!(pid(&gone, name), before[name]);
    }
    controller.end();
    stage.take_down();
}
