//! What users of other engines met, each by its number in our register of such defects, on a real runtime. Those that
//! need no runtime are tested with the manifests; what is only to be known of the others is in `docs/lifecycle.md`.

use std::process::{Command, Stdio};

use evenkeel::plan::Phase;
use evenkeel::status::{Item, Status};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::stage::{Inside, Stage, inside, item, mount_on, mounts, pid, pids, runs};
use crate::program::eventually;
use crate::rig::sweep;

const QUICK: &str = "1s";

/// A donor that a joiner follows as soon as possible.
fn donor() -> Value {
    let backoff = json!({ "initial": QUICK, "factor": 1, "max": QUICK });
    json!({ "ipcMode": "shareable", "restart": { "backoff": backoff } })
}

fn joiner() -> Value {
    json!({ "ipcMode": "container:donor" })
}

fn view(status: &Status, name: &str) -> Inside {
    Inside::of(&pid(status, name).to_string())
}

/// Both run, as other processes than before, and share all of it.
fn have_moved_together(status: &Status, before: &Status) -> bool {
    let moved = |name| runs(status, name) && pid(status, name) != pid(before, name);
    moved("donor") && moved("joiner")
}

fn assert_shared(status: &Status) {
    assert_eq!(view(status, "joiner").identity(), view(status, "donor").identity());
}

fn mounts_on(process: &str, point: &str) -> usize {
    mounts(process).iter().filter(|it| it.point == point).count()
}

/// Whether a process catches SIGTERM.
fn handles_term(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|it| it.strip_prefix("SigCgt:")).unwrap().trim();
    u64::from_str_radix(caught, 16).unwrap() & (1 << 14) != 0
}

#[tokio::test]
async fn d4_a_donor_that_is_made_anew_takes_its_joiners_along() {
    let stage = Stage::set().await;
    stage.want("donor", donor());
    stage.want("joiner", joiner());
    let _controller = stage.controller();
    let before = stage.until("both run", |it| runs(it, "donor") && runs(it, "joiner")).await;
    let mut other = donor();
    other["env"] = json!([{ "name": "OTHER", "value": "1" }]);
    stage.want("donor", other);
    let after = stage.until("both moved", |it| have_moved_together(it, &before)).await;
    let id = |status: &Status| item(status, "donor").instance.as_ref().unwrap().id.clone();
    assert_ne!(id(&after), id(&before));
    assert_shared(&after);
}

#[tokio::test]
async fn d5_a_donor_that_restarts_leaves_no_joiner_in_its_old_namespace() {
    let stage = Stage::set().await;
    stage.want("donor", donor());
    stage.want("joiner", joiner());
    let _controller = stage.controller();
    let before = stage.until("both run", |it| runs(it, "donor") && runs(it, "joiner")).await;
    sweep::signal(pid(&before, "donor"), Signal::KILL);
    let is_silent = |it: &Status| {
        let (donor, joiner) = (item(it, "donor"), item(it, "joiner"));
        let now = |it: &Item| it.instance.as_ref().and_then(|it| it.pid);
        let has_moved = now(donor).is_some_and(|it| it != pid(&before, "donor"));
        let has_not = now(joiner) == Some(pid(&before, "joiner"));
        // It is on its way already, or outdated.
        let is_said = joiner.phase != Phase::Running || joiner.reason == "donor-changed";
        has_moved && has_not && (joiner.up_to_date || !is_said)
    };
    // Until it has followed, which is at least a second, it is said to be outdated.
    let after = stage
        .until("both moved", |it| {
            assert!(!is_silent(it), "{it:#?}");
            have_moved_together(it, &before)
        })
        .await;
    assert_shared(&after);
    assert_eq!(
        item(&after, "joiner").instance.as_ref().unwrap().id,
        item(&before, "joiner").instance.as_ref().unwrap().id
    );
}

#[tokio::test]
async fn d7_a_mount_of_the_users_own_on_dev_shm_is_the_only_one_there_with_its_own_size() {
    let stage = Stage::set().await;
    let own = json!([{ "type": "tmpfs", "target": "/dev/shm", "size": "3Mi" }]);
    for (name, mode) in [("private", "private"), ("unjoinable", "shareable"), ("none", "none")] {
        stage.want(name, json!({ "ipcMode": mode, "mounts": own }));
    }
    let status = stage.apply_all();
    for name in ["private", "unjoinable", "none"] {
        let process = pid(&status, name).to_string();
        assert_eq!(mounts_on(&process, "/dev/shm"), 1, "{name}");
        let shm = mount_on(&process, "/dev/shm").unwrap();
        assert!(shm.super_options.contains("size=3072k"), "{name}: {shm:?}");
    }
    stage.take_down();
}

#[tokio::test]
async fn d8_a_read_only_root_leaves_dev_shm_writable_in_every_mode_that_has_one() {
    let stage = Stage::set().await;
    stage.want("donor", json!({ "ipcMode": "shareable", "readOnlyRootfs": true }));
    for (name, mode) in [("private", "private"), ("joiner", "container:donor"), ("host", "host")] {
        stage.want(name, json!({ "ipcMode": mode, "readOnlyRootfs": true }));
    }
    let status = stage.apply_all();
    for name in ["donor", "private", "joiner", "host"] {
        let pid = pid(&status, name);
        let file = format!("/dev/shm/evenkeel-d8-{pid}");
        let script =
            format!("echo {name} > {file} && cat {file}; rm {file}; touch /x || echo sealed");
        let said = inside(pid, &["sh", "-c", &format!("({script}) 2>/dev/null")]);
        assert_eq!(said, format!("{name}\nsealed\n"));
    }
    stage.take_down();
}

#[tokio::test]
async fn d11_a_size_of_a_dev_shm_that_is_not_its_own_is_refused_before_anything_happens() {
    let stage = Stage::set().await;
    stage.want("donor", donor());
    stage.apply_all();
    let before = stage.traces();
    for (name, mode) in [("none", "none"), ("host", "host"), ("joiner", "container:donor")] {
        stage.want(name, json!({ "ipcMode": mode, "shmSize": "1Mi" }));
    }
    let applied = stage.apply();
    assert_eq!(applied.code, 1);
    assert_eq!(applied.stderr.matches("error[shm-size-conflict]").count(), 3, "{}", applied.stderr);
    assert_eq!(stage.traces(), before);
}

#[tokio::test]
async fn d12_what_is_called_none_has_nothing_of_it_and_with_a_read_only_root_nothing_to_write_to() {
    let stage = Stage::set().await;
    stage.want("none", json!({ "ipcMode": "none" }));
    stage.want("sealed", json!({ "ipcMode": "none", "readOnlyRootfs": true }));
    let status = stage.apply_all();
    let (none, sealed) = (view(&status, "none"), view(&status, "sealed"));
    assert_eq!((none.shm, none.mqueue.is_some()), (None, true));
    assert_eq!((sealed.shm, sealed.mqueue), (None, None));
    let find = "for it in / /dev /dev/shm /dev/mqueue /tmp /run /var/tmp; do \
                touch $it/x 2>/dev/null && echo $it; done; true";
    let write = |name: &str| {
        let target = pid(&status, name).to_string();
        // As root, and still nothing.
        let output = Command::new("nsenter")
            .args(["--target", &target, "--mount", "--ipc", "--pid", "--", "sh", "-c", find])
            .env("PATH", "/bin")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(write("sealed"), "");
    assert!(write("none").contains("/dev\n"), "{}", write("none"));
    stage.take_down();
}

#[tokio::test]
async fn d13_a_copy_of_its_dev_shm_in_another_mount_namespace_does_not_keep_it_from_being_removed()
{
    let stage = Stage::set().await;
    stage.want("shared", json!({ "ipcMode": "shareable" }));
    stage.want("private", json!({ "ipcMode": "private" }));
    let status = stage.apply_all();
    // As a service with private mounts, or a container that binds all of the host.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", "echo up; exec cat"]);
    let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut up).unwrap();
    let shm = stage.published(&status, "shared").join("shm");
    assert_eq!(mounts_on(&holder.id().to_string(), shm.to_str().unwrap()), 1);
    stage.take_down();
    // Its memory is free, too.
    assert_eq!(mounts_on(&holder.id().to_string(), shm.to_str().unwrap()), 0);
    drop(holder.stdin.take());
    holder.wait().unwrap();
}

#[tokio::test]
async fn d14_starting_again_stacks_no_mount_upon_another() {
    let stage = Stage::set().await;
    stage.want("donor", donor());
    stage.want("joiner", joiner());
    let mut controller = stage.controller();
    let mut before = stage.until("both run", |it| runs(it, "donor") && runs(it, "joiner")).await;
    for round in 0..3 {
        // Also when nobody was there to clean up.
        if round == 1 {
            drop(controller);
            sweep::signal(pid(&before, "donor"), Signal::KILL);
            controller = stage.controller();
        } else {
            sweep::signal(pid(&before, "donor"), Signal::KILL);
        }
        let after = stage.until("both moved", |it| have_moved_together(it, &before)).await;
        let published = stage.published(&after, "donor");
        for file in ["shm", "ns"] {
            let point = published.join(file);
            assert_eq!(mounts_on("self", point.to_str().unwrap()), 1, "{file}, round {round}");
        }
        for name in ["donor", "joiner"] {
            assert_eq!(mounts_on(&pid(&after, name).to_string(), "/dev/shm"), 1, "{name}");
        }
        before = after;
    }
}

#[tokio::test]
async fn d19_a_joiner_cannot_change_the_ipc_settings_of_its_donor() {
    let stage = Stage::set().await;
    stage.want("donor", donor());
    let status = stage.apply_all();
    let limits =
        |status: &Status| inside(pid(status, "donor"), &["cat", "/proc/sys/kernel/shmmax"]);
    let before = limits(&status);
    let mut spec = joiner();
    spec["sysctls"] = json!({ "kernel.shmmax": "4096" });
    stage.want("joiner", spec);
    let applied = stage.apply();
    assert_eq!(applied.code, 1);
    assert_eq!(pids(&applied.status).into_keys().collect::<Vec<_>>(), ["donor"]);
    assert_eq!(limits(&applied.status), before);
}

#[tokio::test]
async fn d20_a_signal_of_somebody_else_is_no_wish_and_disables_no_restart() {
    let stage = Stage::set().await;
    // The first process of a namespace ends of what it handles only.
    let script = "trap 'exit 3' TERM HUP; while :; do sleep 0.1; done";
    let mut web = donor();
    web["command"] = json!(["sh", "-c", script]);
    stage.want("web", web);
    let _controller = stage.controller();
    let mut before = stage.until("it runs", |it| runs(it, "web")).await;
    for signal in [Signal::TERM, Signal::HUP, Signal::KILL] {
        let process = pid(&before, "web");
        eventually("it handles signals", || handles_term(process).then_some(()));
        sweep::signal(pid(&before, "web"), signal);
        before = stage
            .until("it runs again", |it| runs(it, "web") && pid(it, "web") != pid(&before, "web"))
            .await;
    }
}

#[tokio::test]
async fn d22_a_joiner_never_has_the_namespace_of_one_donor_and_the_dev_shm_of_another() {
    let stage = Stage::set().await;
    stage.want("donor", donor());
    for n in 0..3 {
        stage.want(&format!("joiner-{n}"), joiner());
    }
    let _controller = stage.controller();
    let names = ["donor", "joiner-0", "joiner-1", "joiner-2"];
    let all_run = |it: &Status| names.iter().all(|name| runs(it, name));
    let mut before = stage.until("all run", all_run).await;
    for _ in 0..4 {
        // The donor goes while its joiners follow it.
        sweep::signal(pid(&before, "donor"), Signal::KILL);
        let first = stage
            .until("a first joiner that follows", |it| {
                (0..3).any(|n| {
                    let name = format!("joiner-{n}");
                    runs(it, &name) && pid(it, &name) != pid(&before, &name)
                })
            })
            .await;
        sweep::signal(pid(&first, "donor"), Signal::KILL);
        let after = stage
            .until("all have followed", |it| {
                all_run(it) && pid(it, "donor") != pid(&first, "donor")
            })
            .await;
        let wanted = view(&after, "donor");
        for name in &names[1..] {
            assert_eq!(view(&after, name).identity(), wanted.identity(), "{name}");
        }
        before = after;
    }
}
