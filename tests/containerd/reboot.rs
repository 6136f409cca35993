//! The power goes and comes back: what ran is gone without a word, and with it everything that a machine keeps in
//! memory, its mounts and its clock included.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use evenkeel::plan::Phase;
use evenkeel::runtime::Runtime as _;
use evenkeel::status::Item;

use crate::ipc::stage::ipc_namespace;
use crate::others;
use crate::program::{Site, eventually, manifest, sleeper};
use crate::rig::{Rig, sweep};

/// How long the machine was up before; the next boot begins much earlier by that clock.
const BEFORE: Duration = Duration::from_hours(2400);

/// Writes a line at each run, and ends with this code or sleeps on.
fn counted(out: &Path, name: &str, then: &str, restart: &str) -> String {
    let spec = format!(
        "command: [sh, -c, \"echo run >> /out/{name}; {then}\"]\nstop: {{signal: SIGKILL}}\n\
         mounts: [{{type: bind, source: {}, target: /out}}]\nrestart: {{{restart}}}",
        out.display()
    );
    manifest(name, &spec)
}

#[track_caller]
fn until_phase(site: &Site, name: &str, phase: Phase) -> Item {
    site.until(name, |item| item.filter(|it| it.phase == phase).cloned())
}

/// Code and reason of the last end.
fn end(item: &Item) -> Option<(u32, &str)> {
    item.last_exit.as_ref().map(|it| (it.code, it.reason.as_str()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reboot_everything_runs_that_is_to_run_and_nothing_else() {
    let mut rig = Rig::start().await;
    let out = rig.dir().join("out");
    fs::create_dir(&out).unwrap();
    rig.stop_containerd();
    let program = rig.boot("first", BEFORE);
    rig.start_containerd().await;
    let site = Site::of(&rig).with_program(&program);
    let runs = |name: &str| fs::read_to_string(out.join(name)).map_or(0, |it| it.lines().count());

    let on = "exec sleep 36000";
    let write = |name: &str, then: &str, restart: &str| {
        site.write(&format!("{name}.yaml"), &counted(&out, name, then, restart));
    };
    write("steady", on, "policy: always");
    write("retried", on, "policy: on-failure");
    write("once", on, "policy: never");
    write("good", "exit 0", "policy: on-failure");
    write("bad", "exit 3", "policy: never");
    write("each-boot", "exit 0", "policy: never, onBoot: true");
    // It waits for longer than anybody does.
    write("crash", "exit 5", "backoff: {initial: 20h, max: 20h}");
    write("held", on, "policy: always");
    write("by-hand", on, "policy: always");
    site.write("donor.yaml", &(sleeper("donor") + "  ipcMode: shareable\n"));
    for name in ["joiner", "another"] {
        site.write(&format!("{name}.yaml"), &(sleeper(name) + "  ipcMode: container:donor\n"));
    }
    let controller = site.controller();
    let sleepers = ["steady", "retried", "once", "held", "by-hand", "donor", "joiner", "another"];
    for name in sleepers {
        site.until_running(name);
    }
    for (name, phase) in [
        ("good", Phase::Completed),
        ("bad", Phase::Failed),
        ("each-boot", Phase::Completed),
        ("crash", Phase::BackingOff),
    ] {
        until_phase(&site, name, phase);
        assert_eq!(runs(name), 1, "{name}");
    }
    site.run(&["stop", "by-hand"]).exits(0);
    let text = counted(&out, "held", on, "policy: always");
    site.write("held.yaml", &text.replace("command:", "comand:"));
    until_phase(&site, "held", Phase::Held);
    let before = site.pids();
    assert_eq!(before.len(), sleepers.len() - 1);
    let first_id = others::id(&site, "held");

    // The power goes.
    drop(controller);
    rig.cut_power();
    assert!(before.iter().all(|it| !sweep::is_alive(it.1)));
    let logs = others::leave_logs(&site);
    let program = rig.boot("second", Duration::ZERO);
    rig.start_containerd().await;
    let site = site.with_program(&program);
    rig.client().lease("evenkeel-ghost").await.unwrap();
    // Nobody knows yet how it ended, and nothing of it is told as if it ran.
    assert!(site.pids().is_empty(), "{:?}", site.status());

    let controller = site.controller();
    for name in ["steady", "retried", "by-hand", "donor", "joiner", "another"] {
        site.until_running(name);
    }
    for name in ["steady", "retried", "by-hand", "held"] {
        eventually("a second run", || (runs(name) == 2).then_some(()));
    }
    for name in ["steady", "retried"] {
        assert_eq!(end(&site.item(name).unwrap()), Some((255, "exit-unknown")), "{name}");
    }
    // As it was last understood.
    let held = site.until("held", |item| {
        item.filter(|it| {
            it.phase == Phase::Held && it.instance.as_ref().is_some_and(|it| it.pid.is_some())
        })
        .cloned()
    });
    assert_eq!((held.reason.as_str(), others::id(&site, "held")), ("manifest-invalid", first_id));
    // A delay is one of a boot.
    eventually("another try", || (runs("crash") == 2).then_some(()));
    until_phase(&site, "crash", Phase::BackingOff);
    eventually("once after each boot", || (runs("each-boot") == 2).then_some(()));
    until_phase(&site, "each-boot", Phase::Completed);
    for (name, phase, code) in [
        ("once", Phase::Failed, (255, "exit-unknown")),
        ("good", Phase::Completed, (0, "exited")),
        ("bad", Phase::Failed, (3, "exited")),
    ] {
        let item = until_phase(&site, name, phase);
        assert_eq!((end(&item), runs(name)), (Some(code), 1), "{name}");
    }
    let namespaces = || -> BTreeSet<u64> {
        let pids = ["donor", "joiner", "another"].map(|it| site.pid(it).to_string());
        pids.iter().map(|it| ipc_namespace(it)).collect()
    };
    assert_eq!(namespaces().len(), 1);
    assert_ne!(namespaces().first(), Some(&ipc_namespace("self")));

    // What nobody needs is swept, once.
    let nothing_to_do = || {
        eventually("nothing to do", || {
            site.run(&["plan"]).out.contains("nothing can be done now").then_some(())
        });
    };
    nothing_to_do();
    assert!(!logs.exists());
    assert_eq!(rig.ctr(&["leases", "list", "--quiet"]), "");
    let all = site.pids();

    // A restart of the controller is no boot.
    assert_eq!(controller.terminate(), Some(0));
    let controller = site.controller();
    nothing_to_do();
    assert_eq!(site.pids(), all);
    let once = ["crash", "each-boot", "good", "bad", "once"].map(&runs);
    assert_eq!(once, [2, 2, 1, 1, 1]);
    assert_eq!(controller.terminate(), Some(0));
    site.run(&["down"]).exits(0);
    for what in ["containers", "tasks", "leases"] {
        assert_eq!(rig.ctr(&[what, "list", "--quiet"]), "", "{what}");
    }
}
