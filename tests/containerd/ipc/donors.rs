//! Donors and joiners over time: who starts first, who waits, who follows, and who does not.

use evenkeel::status::Status;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::stage::{Inside, Stage, find, item, mount_on, pid, pids, runs};
use crate::rig::{Engine, sweep};

const FIRST: &str = "z-donor";
const MIDDLE: &str = "m-middle";
const LAST: &str = "a-last";

fn donor(shm_size: &str, state: &str) -> Value {
    json!({
        "ipcMode": "shareable",
        "shmSize": shm_size,
        "state": state,
        "restart": { "backoff": { "initial": "1s", "factor": 1, "max": "1s" } },
    })
}

fn joiner(of: &str) -> Value {
    json!({ "ipcMode": format!("container:{of}") })
}

/// A chain of three whose files and names are in the wrong order.
fn want_chain(stage: &Stage) {
    stage.want_in("1.yaml", LAST, joiner(MIDDLE));
    stage.want_in("2.yaml", MIDDLE, joiner(FIRST));
    stage.want_in("3.yaml", FIRST, donor("64Mi", "running"));
}

fn view(status: &Status, name: &str) -> Inside {
    Inside::of(&pid(status, name).to_string())
}

/// All of them share the namespace, /dev/shm and the queues.
fn assert_shared(status: &Status, names: &[&str]) {
    let first = view(status, names[0]);
    assert!(first.shm.is_some() && first.mqueue.is_some());
    for name in &names[1..] {
        assert_eq!(view(status, name).identity(), first.identity(), "{name} and {}", names[0]);
    }
}

/// The processes are there and have these pids, whatever the status says.
fn assert_alive(pids: impl IntoIterator<Item = u32>) {
    for pid in pids {
        assert!(sweep::is_alive(pid), "{pid} has ended");
    }
}

fn started(status: &Status, name: &str) -> jiff::Timestamp {
    let instance = item(status, name).instance.as_ref().unwrap();
    instance.started_at.as_ref().unwrap().parse().unwrap()
}

fn says(status: &Status, name: &str, phase: &str, reason: &str) -> bool {
    find(status, name).is_some_and(|it| it.phase.to_string() == phase && it.reason == reason)
}

/// Every name runs up to date, with another process than before.
fn follow(status: &Status, before: &Status, names: &[&str]) -> bool {
    names.iter().all(|name| runs(status, name) && pid(status, name) != pid(before, name))
}

#[tokio::test]
async fn joiners_start_after_their_donor_and_follow_it_into_its_next_namespace() {
    let stage = Stage::set().await;
    follow_everywhere(&stage).await;
}

async fn follow_everywhere(stage: &Stage) {
    want_chain(stage);
    stage.want("keeper", {
        let mut spec = joiner(FIRST);
        spec["restart"] = json!({ "onDonorChange": "keep" });
        spec
    });
    let controller = stage.controller();
    let chain = [FIRST, MIDDLE, LAST];
    let all = [FIRST, MIDDLE, LAST, "keeper"];
    let begun = stage.until("all run", |it| all.iter().all(|name| runs(it, name))).await;
    assert_shared(&begun, &all);
    assert!(started(&begun, FIRST) < started(&begun, MIDDLE));
    assert!(started(&begun, MIDDLE) < started(&begun, LAST));

    // The donor is killed: a new namespace, and the others follow once it has lasted.
    let old = view(&begun, "keeper").namespace;
    sweep::signal(pid(&begun, FIRST), Signal::KILL);
    let next = stage
        .until("the chain follows", |it| {
            follow(it, &begun, &chain) && says(it, "keeper", "Running", "donor-changed")
        })
        .await;
    assert_shared(&next, &chain);
    assert_ne!(view(&next, FIRST).namespace, old);
    for name in [MIDDLE, LAST] {
        let waited = started(&next, name).duration_since(started(&next, FIRST));
        assert!(waited.as_millis() >= 1000, "{name} followed after {waited:?}");
        assert_eq!(item(&next, name).instance.as_ref().unwrap().restarts, 1, "{name}");
    }
    assert_eq!(pid(&next, "keeper"), pid(&begun, "keeper"));
    assert_eq!(view(&next, "keeper").namespace, old);
    assert!(!item(&next, "keeper").up_to_date);

    // The donor is stopped: who has joined goes on, who has not waits, and nothing of it is left outside.
    stage.want_in("3.yaml", FIRST, donor("64Mi", "stopped"));
    stage.want("late", joiner(FIRST));
    let stopped = stage
        .until("the donor is stopped", |it| {
            says(it, FIRST, "Stopped", "")
                && says(it, "late", "Waiting", "waiting-for-donor")
                && !stage.rig.run_dir().join("ipc").exists()
        })
        .await;
    assert!(item(&stopped, "late").message.contains(FIRST), "{stopped:#?}");
    assert_alive([MIDDLE, LAST, "keeper"].map(|name| pid(&next, name)));
    assert_eq!(pid(&stopped, MIDDLE), pid(&next, MIDDLE));
    assert!(runs(&stopped, MIDDLE) && runs(&stopped, LAST));

    stage.want_in("3.yaml", FIRST, donor("64Mi", "running"));
    let back = stage
        .until("the donor is back", |it| {
            follow(it, &next, &[MIDDLE, LAST]) && runs(it, FIRST) && runs(it, "late")
        })
        .await;
    let five = [FIRST, MIDDLE, LAST, "late"];
    assert_shared(&back, &five);

    // Another size is another donor instance.
    stage.want_in("3.yaml", FIRST, donor("32Mi", "running"));
    let replaced = stage.until("all follow its replacement", |it| follow(it, &back, &five)).await;
    assert_shared(&replaced, &five);
    for name in five {
        let shm = view(&replaced, name).shm.unwrap();
        assert!(shm.super_options.contains("size=32768k"), "{name}: {shm:?}");
    }
    let id = |status: &Status| item(status, FIRST).instance.as_ref().unwrap().id.clone();
    assert_ne!(id(&replaced), id(&back));
    stage
        .until("the former instance is gone", |_| {
            !stage.rig.ctr(&["containers", "list", "--quiet"]).contains(&id(&back))
                && !stage.published(&back, FIRST).exists()
        })
        .await;

    lose_the_pin(stage, &replaced).await;
    assert_eq!(pid(&stage.status(), "keeper"), pid(&begun, "keeper"));
    controller.end();
    stage.take_down();
}

/// Somebody unmounts what the donor publishes: a plain file and an empty directory are left, which nobody may join.
async fn lose_the_pin(stage: &Stage, before: &Status) {
    let ns = stage.published(before, FIRST).join("ns");
    rustix::mount::unmount(&ns, rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(ns.is_file());
    sweep::signal(pid(before, "late"), Signal::KILL);
    let healed = stage
        .until("it is back in its donor's namespace", |it| follow(it, before, &["late"]))
        .await;
    let five = [FIRST, MIDDLE, LAST, "late"];
    assert_shared(&healed, &five);
    assert_eq!(mount_on("self", &ns).unwrap().kind, "nsfs");
    for name in [FIRST, MIDDLE, LAST] {
        assert_eq!(pid(&healed, name), pid(before, name), "{name} has nothing to do with it");
    }

    // A /dev/shm cannot be put back; the donor's next start brings another one.
    let shm = stage.published(&healed, FIRST).join("shm");
    rustix::mount::unmount(&shm, rustix::mount::UnmountFlags::DETACH).unwrap();
    sweep::signal(pid(&healed, "late"), Signal::KILL);
    let waiting = stage.until("it waits", |it| says(it, "late", "Waiting", "donor-vanished")).await;
    for name in [FIRST, MIDDLE, LAST] {
        assert_eq!(pid(&waiting, name), pid(&healed, name), "{name} has nothing to do with it");
    }
    sweep::signal(pid(&healed, FIRST), Signal::KILL);
    let healed = stage.until("all follow", |it| follow(it, &healed, &five)).await;
    assert_shared(&healed, &five);
}

#[tokio::test]
async fn a_joiner_follows_on_each_engine() {
    for engine in Engine::all() {
        let stage = Stage::set_on(&engine).await;
        want_chain(&stage);
        let controller = stage.controller();
        let chain = [FIRST, MIDDLE, LAST];
        let begun = stage.until("all run", |it| chain.iter().all(|name| runs(it, name))).await;
        assert_shared(&begun, &chain);
        sweep::signal(pid(&begun, FIRST), Signal::KILL);
        let next = stage.until("all follow", |it| follow(it, &begun, &chain)).await;
        assert_shared(&next, &chain);
        controller.end();
        stage.take_down();
    }
}

#[tokio::test]
async fn a_joiner_is_left_alone_while_its_donor_does_not_last() {
    let stage = Stage::set().await;
    let control = stage.rig.dir().join("control");
    std::fs::create_dir(&control).unwrap();
    stage.want(
        "donor",
        json!({
            "ipcMode": "shareable",
            "command": ["sh", "-c", "trap 'exit 0' TERM; while [ ! -e /control/end ]; do sleep 0.1; done; exit 1"],
            "mounts": [{ "type": "bind", "source": control, "target": "/control" }],
            "restart": { "backoff": { "initial": "2s", "factor": 1, "max": "2s" } },
        }),
    );
    stage.want("joiner", joiner("donor"));
    let controller = stage.controller();
    let begun = stage.until("both run", |it| runs(it, "donor") && runs(it, "joiner")).await;

    std::fs::write(control.join("end"), "").unwrap();
    let restarts = |it: &Status| {
        find(it, "donor").and_then(|it| Some(it.instance.as_ref()?.restarts)).unwrap_or_default()
    };
    let failing = stage
        .until("the donor has ended again and again", |it| {
            restarts(it) >= 2 && says(it, "donor", "BackingOff", "exited")
        })
        .await;
    assert_alive([pid(&begun, "joiner")]);
    assert_eq!(pid(&failing, "joiner"), pid(&begun, "joiner"), "{failing:#?}");
    assert!(runs(&failing, "joiner"), "{failing:#?}");

    std::fs::remove_file(control.join("end")).unwrap();
    let lasting =
        stage.until("both run again", |it| follow(it, &begun, &["donor", "joiner"])).await;
    assert_shared(&lasting, &["donor", "joiner"]);
    assert_eq!(item(&lasting, "joiner").instance.as_ref().unwrap().restarts, 1);
    controller.end();
    stage.take_down();
}

#[tokio::test]
async fn the_end_of_a_chain_stays_with_its_own_donor_when_that_keeps_an_old_namespace() {
    let stage = Stage::set().await;
    want_chain(&stage);
    let mut middle = joiner(MIDDLE);
    middle["ipcMode"] = format!("container:{FIRST}").into();
    middle["restart"] = json!({ "onDonorChange": "keep" });
    stage.want_in("2.yaml", MIDDLE, middle);
    let controller = stage.controller();
    let chain = [FIRST, MIDDLE, LAST];
    let begun = stage.until("all run", |it| chain.iter().all(|name| runs(it, name))).await;

    sweep::signal(pid(&begun, FIRST), Signal::KILL);
    let kept = stage
        .until("the middle stays", |it| {
            follow(it, &begun, &[FIRST]) && says(it, MIDDLE, "Running", "donor-changed")
        })
        .await;
    assert_eq!(pid(&kept, MIDDLE), pid(&begun, MIDDLE));
    // Killed, it must not come back beside its donor: nothing pins the namespace in which that one is.
    sweep::signal(pid(&kept, LAST), Signal::KILL);
    let waiting = stage
        .until("the last one waits", |it| says(it, LAST, "Waiting", "waiting-for-donor"))
        .await;
    assert_eq!(pids(&waiting).get(MIDDLE), pids(&begun).get(MIDDLE));

    // With the middle in the new namespace all are together again.
    sweep::signal(pid(&begun, MIDDLE), Signal::KILL);
    let together = stage.until("all run", |it| follow(it, &begun, &chain)).await;
    assert_shared(&together, &chain);
    controller.end();
    stage.take_down();
}
