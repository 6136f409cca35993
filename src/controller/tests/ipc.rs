//! Donors and joiners.

use super::*;
use crate::host::memory::{MemoryHost, process_of};
use crate::host::{Process, ProcessIpc, ProcessShm};
use crate::status::Item;

const DONOR: &str = r#""ipcMode": "shareable""#;
const JOINER: &str = r#""ipcMode": "container:donor""#;

async fn shares(it: &Harness) -> bool {
    let observed = it.look().await;
    let view = |workload: &str| {
        let mut of = observed.instances.values().filter(|it| it.name.as_str() == workload);
        of.find_map(|it| it.view).expect("it runs")
    };
    view("donor") == view("joiner")
}

#[tokio::test(start_paused = true)]
async fn a_joiner_starts_after_its_donor_and_in_its_namespace() {
    let mut it = Harness::new();
    // By name it would come first.
    it.want("a", JOINER);
    it.want("donor", DONOR);
    it.want("joiner", JOINER);
    it.run();
    it.until_running("joiner").await;
    it.until_running("a").await;
    let calls = it.calls();
    let at = |call: &str| calls.iter().position(|it| it == call).unwrap();
    assert!(at("start task donor") < at("create task a"));
    assert!(shares(&it).await);
}

#[tokio::test(start_paused = true)]
async fn a_joiner_follows_its_donor_once_that_has_lived_through_its_first_delay() {
    let donor = r#""ipcMode": "shareable", "restart": {"backoff": {"initial": "2s"}}"#;
    let mut it = Harness::with(&[("donor", donor), ("joiner", JOINER), ("other", "")]).await;
    let before = it.pids().await;
    let ended = it.clock();
    it.exit("donor", 1).await;
    it.after(4.5).await;
    let (donors, joiners) = (it.starts("donor"), it.starts("joiner"));
    assert_eq!((donors.len(), joiners.len()), (2, 2));
    assert!((2000..2100).contains(&(donors[1] - ended)), "{donors:?}");
    assert!((2000..2100).contains(&(joiners[1] - donors[1])), "{joiners:?}");
    assert!(shares(&it).await);
    assert_eq!(it.pid_of("other").await, before["other"]);
    assert!(!it.look().await.strikes.contains_key(&name("joiner")), "following is no failure");
    it.after(100.0).await;
    assert_eq!(it.starts("joiner").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_donor_in_a_crash_loop_does_not_take_its_joiner_along() {
    let mut it = Harness::with(&[("donor", DONOR), ("joiner", JOINER)]).await;
    let pid = it.pid_of("joiner").await;
    it.exit_on_start("donor", Some(1));
    it.exit("donor", 1).await;
    it.after(60.0).await;
    assert!(it.starts("donor").len() > 8);
    assert_eq!(it.pid_of("joiner").await, pid);
    // An edit of a donor that dies at once does not either.
    it.want("donor", r#""ipcMode": "shareable", "args": ["x"]"#);
    it.after(30.0).await;
    assert_eq!(it.pid_of("joiner").await, pid);
    it.exit_on_start("donor", None);
    it.until_running("donor").await;
    it.after(1.0).await;
    assert!(shares(&it).await);
    assert_eq!(it.starts("joiner").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_donor_is_followed() {
    let mut it = Harness::with(&[("donor", DONOR), ("joiner", JOINER)]).await;
    let before = it.pids().await;
    it.after(20.0).await;
    let plan = {
        it.want("donor", r#""ipcMode": "shareable", "shmSize": "1Mi""#);
        it.plan().await
    };
    // The plan is complete, although the joiner has a moment yet.
    let planned = |workload: &str| {
        let of = plan.steps.iter().filter(|it| it.name.as_ref() == Some(&name(workload)));
        of.map(|it| it.action.verb()).collect::<Vec<_>>()
    };
    assert_eq!(planned("donor"), ["prepare", "stop", "start", "remove"]);
    assert_eq!(planned("joiner"), ["stop", "start"]);
    it.after(5.0).await;
    let after = it.pids().await;
    assert!(after["donor"] != before["donor"] && after["joiner"] != before["joiner"]);
    assert!(shares(&it).await);
    assert!(it.plan().await.is_empty());
    assert!(it.look().await.strikes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_joiner_that_keeps_what_it_has_is_left_alone() {
    let keep = r#""ipcMode": "container:donor", "restart": {"onDonorChange": "keep"}"#;
    let mut it = Harness::with(&[("donor", DONOR), ("joiner", keep)]).await;
    let pid = it.pid_of("joiner").await;
    it.exit("donor", 1).await;
    it.until_reason("joiner", "donor-changed").await;
    it.after(100.0).await;
    assert_eq!(it.pid_of("joiner").await, pid);
    assert!(!it.item("joiner").up_to_date);
}

#[tokio::test(start_paused = true)]
async fn a_joiner_that_was_swept_up_in_many_changes_follows_no_more_often_than_it_would_restart() {
    let joiner = r#""ipcMode": "container:donor", "restart": {"backoff": {"initial": "30s"}}"#;
    let mut it = Harness::with(&[("donor", DONOR), ("joiner", joiner)]).await;
    it.after(60.0).await;
    for round in 0..6 {
        it.want("donor", &format!(r#""ipcMode": "shareable", "args": ["{round}"]"#));
        it.after(5.0).await;
    }
    // At once after a long life, then not before its own delay.
    assert_eq!(it.starts("joiner").len(), 2);
    it.after(30.0).await;
    assert_eq!(it.starts("joiner").len(), 3);
    assert!(shares(&it).await);
}

#[tokio::test(start_paused = true)]
async fn a_donor_in_use_is_neither_removed_nor_made_unjoinable() {
    for change in ["remove", "absent", "private", "own shm"] {
        let mut it =
            Harness::with(&[("donor", DONOR), ("joiner", JOINER), ("x", ""), ("y", "")]).await;
        let before = it.pids().await;
        match change {
            "remove" => it.remove("donor"),
            "absent" => it.want("donor", r#""ipcMode": "shareable", "state": "absent""#),
            "private" => it.want("donor", ""),
            _ => it.want(
                "donor",
                r#""ipcMode": "shareable", "mounts": [{"type": "tmpfs", "target": "/dev/shm"}]"#,
            ),
        }
        // The graph check makes the joiner invalid along with its donor; it goes on all the same.
        it.want_invalid("joiner");
        it.until_reason("donor", "donor-in-use").await;
        assert!(it.item("donor").message.contains("joiner"), "{:?}", it.item("donor"));
        it.after(100.0).await;
        assert_eq!(it.pids().await, before, "{change}");
        // Nor may a person release it: it would take the joiner's memory away.
        assert!(it.status().holds.is_empty());
        it.remove("joiner");
        it.until_gone("joiner").await;
        it.after(5.0).await;
        let after = it.pids().await;
        assert_ne!(after.get("donor"), before.get("donor"), "{change}");
        assert_eq!(
            after.contains_key("donor"),
            matches!(change, "private" | "own shm"),
            "{change}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn donor_and_joiner_leave_together_the_joiner_first() {
    let mut it = Harness::with(&[("donor", DONOR), ("joiner", JOINER), ("x", ""), ("y", "")]).await;
    it.calls();
    it.wanted.workloads.remove(&name("donor"));
    it.remove("joiner");
    it.until_gone("donor").await;
    it.idle().await;
    assert_eq!(it.running().await, ["x", "y"]);
    let calls = it.calls();
    let at = |call: &str| calls.iter().position(|it| it == call).unwrap();
    assert!(at("remove container joiner") < at("signal task donor"), "{calls:#?}");
    assert!(it.look().await.leftovers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_donor_waits_with_its_replacement_until_its_joiners_could_start_again() {
    let bound = r#""ipcMode": "container:donor", "mounts": [{"type": "bind", "source": "/data", "target": "/data"}]"#;
    let mut it = Harness::new();
    let data = std::path::Path::new("/data");
    it.host.set_path(data, Some(crate::observed::FileKind::Directory));
    it.want("donor", DONOR);
    it.want("joiner", bound);
    it.run();
    it.until_running("joiner").await;
    let before = it.pids().await;
    it.host.set_path(data, None);
    it.want("donor", r#""ipcMode": "shareable", "args": ["x"]"#);
    it.until_reason("donor", "joiner-not-startable").await;
    it.after(100.0).await;
    assert_eq!(it.pids().await, before);
    it.host.set_path(data, Some(crate::observed::FileKind::Directory));
    it.after(40.0).await;
    let after = it.pids().await;
    assert!(after["donor"] != before["donor"] && after["joiner"] != before["joiner"]);
}

#[tokio::test(start_paused = true)]
async fn nobody_joins_a_donor_that_is_being_ended() {
    let mut it = Harness::with(&[("donor", DONOR), ("x", ""), ("y", "")]).await;
    it.runtime.ignore_signals(&it.id_of("donor").await);
    it.calls();
    it.remove("donor");
    it.after(5.0).await;
    assert!(it.calls().iter().any(|it| it == "signal task donor"));
    // Its file is back, too late for the process that is there.
    it.want("donor", DONOR);
    it.want("joiner", JOINER);
    it.until_running("joiner").await;
    let calls = it.calls();
    let at = |call: &str| calls.iter().position(|it| it == call).unwrap();
    assert!(at("remove container donor") < at("create task donor"), "{calls:#?}");
    assert!(at("start task donor") < at("create task joiner"), "{calls:#?}");
    assert_eq!(calls.iter().filter(|it| *it == "start task joiner").count(), 1, "{calls:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_joiner_of_a_stopped_donor_waits() {
    let mut it = Harness::new();
    it.want("donor", r#""ipcMode": "shareable", "state": "stopped""#);
    it.want("joiner", JOINER);
    it.run();
    it.until_reason("joiner", "waiting-for-donor").await;
    it.after(100.0).await;
    assert_eq!(it.running().await, [""; 0]);
    assert_eq!(it.item("joiner").phase, Phase::Waiting);
    it.want("donor", DONOR);
    it.until_running("joiner").await;
}

#[tokio::test(start_paused = true)]
async fn a_joiner_of_a_joiner_lives_with_the_root() {
    let it = Harness::with(&[
        ("donor", DONOR),
        ("joiner", JOINER),
        ("third", r#""ipcMode": "container:joiner""#),
    ])
    .await;
    let same = |observed: &ObservedState| {
        let views: BTreeSet<_> =
            observed.instances.values().map(|it| it.view.unwrap().ipc_ns).collect();
        views.len() == 1
    };
    assert!(same(&it.look().await));
    it.exit("donor", 1).await;
    it.after(10.0).await;
    assert_eq!(it.running().await, ["donor", "joiner", "third"]);
    assert!(same(&it.look().await));
    assert!(it.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn each_run_of_a_donor_begins_with_an_empty_shm_whatever_was_left_behind() {
    for effects in 1..=4 {
        let mut it = Harness::with(&[("donor", DONOR)]).await;
        let shm = async |it: &Harness| it.instance("donor").await.published.shm;
        let before = shm(&it).await;
        it.kill().await;
        it.exit("donor", 1).await;
        // It dies while it tidies up after the run.
        it.run_on(it.edge().with_crash(Crash::after(effects)));
        it.after(0.2).await;
        it.kill().await;
        it.run();
        it.until_running("donor").await;
        let after = shm(&it).await;
        assert!(after.is_some() && after != before, "{effects} effects: {before:?} {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_joiner_does_not_start_for_a_donor_that_has_just_ended_and_that_is_no_strike() {
    let never = r#""ipcMode": "container:donor", "restart": {"policy": "never"}"#;
    let mut it = Harness::new();
    it.exit_on_start("donor", Some(1));
    it.want("donor", DONOR);
    it.want("joiner", never);
    it.run();
    it.after(5.0).await;
    assert!(it.starts("donor").len() > 3);
    assert_eq!(it.starts("joiner"), [0; 0]);
    assert!(!it.look().await.strikes.contains_key(&name("joiner")));
    it.exit_on_start("donor", None);
    it.until_running("joiner").await;
    assert!(shares(&it).await);
}

#[tokio::test(start_paused = true)]
async fn a_joiner_whose_next_revision_cannot_start_follows_the_donor_that_it_has() {
    // By name it comes before its donor.
    let mut it = Harness::with(&[
        ("a", r#""ipcMode": "container:donor""#),
        ("other", DONOR),
        ("donor", DONOR),
    ])
    .await;
    it.after(20.0).await;
    it.want("a", r#""ipcMode": "container:other", "image": "nowhere:1""#);
    it.until_reason("a", "image-missing").await;
    it.want("donor", r#""ipcMode": "shareable", "args": ["x"]"#);
    it.after(20.0).await;
    let observed = it.look().await;
    let view = |workload: &str| {
        let mut of = observed.instances.values().filter(|it| it.name.as_str() == workload);
        of.find_map(|it| it.view).expect("it runs")
    };
    assert_eq!(view("a"), view("donor"));
}

/// What the runtime makes of it is not what was asked for: the process is deleted, and nothing that it would have
/// had stays.
#[tokio::test(start_paused = true)]
async fn a_process_that_sees_something_else_is_never_started() {
    type Distort = fn(Process) -> Option<Process>;
    let cases: [(&str, Distort, &str); 8] = [
        ("", |it| Some(Process { ipc: ProcessIpc::Host, ..it }), "namespace-not-own"),
        ("", |it| Some(Process { shm: ProcessShm::Host, ..it }), "shm-not-own"),
        ("", |_| None, "process-vanished"),
        (
            r#""ipcMode": "none""#,
            |it| Some(Process { shm: ProcessShm::Own, ..it }),
            "shm-unexpected",
        ),
        (
            r#""ipcMode": "host""#,
            |it| Some(Process { ipc: ProcessIpc::Own, ..it }),
            "namespace-not-host",
        ),
        (r#""ipcMode": "host""#, |it| Some(Process { shm: ProcessShm::Own, ..it }), "shm-not-host"),
        (DONOR, |it| Some(Process { shm: ProcessShm::Own, ..it }), "mounts-not-shared"),
        (JOINER, |it| Some(Process { ipc: ProcessIpc::Own, ..it }), "donor-vanished"),
    ];
    for (spec, distort, reason) in cases {
        let mut it = Harness::new();
        let runtime = it.runtime.clone();
        let seen = Arc::new(move |pid| {
            let process = runtime.process(pid)?;
            let made = process_of(&process.spec);
            if process.id.as_str().starts_with("odd-") { distort(made) } else { Some(made) }
        });
        it.host = MemoryHost::new(it.run_directory().path(), seen).with_runtime_clock();
        it.want("donor", DONOR);
        it.want("odd", spec);
        it.run();
        let fails = |it: &Item| {
            it.name == "odd" && it.start_failure.as_ref().is_some_and(|it| it.reason == reason)
        };
        it.until(reason, |it| it.items.iter().any(fails)).await;
        it.until_running("donor").await;
        it.after(5.0).await;
        let calls = it.calls();
        let count = |call: &str| calls.iter().filter(|it| *it == call).count();
        assert_eq!(count("start task odd"), 0, "{reason}: {calls:#?}");
        assert!(count("create task odd") > 1, "{reason}: it is tried again");
        assert_eq!(count("create task odd"), count("delete task odd"), "{reason}");
        // With its backoff, no faster: after 0.1, 0.3, 0.7, 1.5 and 3.1 s.
        assert!(count("create task odd") < 8, "{reason}: {calls:#?}");
        let facts = it.host.observe(&Ask::default()).unwrap();
        let published: Vec<&str> = facts.published.keys().map(InstanceId::as_str).collect();
        assert_eq!(published.len(), 1, "{reason}: {published:?}");
        assert!(published[0].starts_with("donor-"), "{reason}: {published:?}");
        assert_eq!(it.running().await, ["donor"], "{reason}");
    }
}

/// Who joins a donor waits for it; a donor waits for nobody who joins it.
#[tokio::test(start_paused = true)]
async fn a_donor_starts_again_whatever_its_joiners_are_busy_with() {
    let stuck = r#""ipcMode": "container:donor", "stop": {"timeout": "never"}"#;
    let mut it = Harness::with(&[("donor", DONOR), ("joiner", JOINER), ("stuck", stuck)]).await;
    it.after(20.0).await;
    let (old, pid) = (it.id_of("stuck").await, it.pid_of("stuck").await);
    it.runtime.ignore_signals(&old);
    it.want(
        "stuck",
        r#""ipcMode": "container:donor", "stop": {"timeout": "never"}, "args": ["x"]"#,
    );
    it.after(60.0).await;
    assert_eq!(it.pid_of("stuck").await, pid, "it may take for ever");
    it.exit("donor", 1).await;
    it.after(3.0).await;
    assert_eq!(it.running().await, ["donor", "joiner", "stuck"]);
    assert!(shares(&it).await);
    // A newer manifest of the donor acts too, and is followed by who can.
    let before = it.pids().await;
    it.want("donor", r#""ipcMode": "shareable", "args": ["x"]"#);
    it.after(3.0).await;
    assert_ne!(it.pid_of("donor").await, before["donor"]);
    assert!(shares(&it).await);
    it.runtime.exit(&old, 0);
    it.after(3.0).await;
    assert_ne!(it.pid_of("stuck").await, pid);
    assert!(it.plan().await.is_empty(), "{}", it.plan().await);
}

/// What waited for the end of a process joins nobody who is just being ended.
#[tokio::test(start_paused = true)]
async fn a_joiner_that_was_stuck_does_not_join_a_donor_that_is_being_replaced() {
    let never = r#""ipcMode": "container:donor", "stop": {"timeout": "never"}"#;
    let mut it = Harness::with(&[("donor", DONOR), ("joiner", never)]).await;
    it.after(20.0).await;
    let (old, donor) = (it.id_of("joiner").await, it.id_of("donor").await);
    it.runtime.ignore_signals(&old);
    it.runtime.ignore_signals(&donor);
    it.want("joiner", &format!(r#"{never}, "args": ["x"]"#));
    it.after(5.0).await;
    it.want("donor", r#""ipcMode": "shareable", "args": ["x"]"#);
    it.after(5.0).await;
    it.runtime.exit(&old, 0);
    it.after(20.0).await;
    assert_eq!(it.running().await, ["donor", "joiner"]);
    assert!(shares(&it).await);
    let (donors, joiners) = (it.starts("donor"), it.starts("joiner"));
    assert_eq!((donors.len(), joiners.len()), (2, 2), "{donors:?} {joiners:?}");
    assert!(joiners[1] > donors[1]);
    assert!(!it.look().await.strikes.contains_key(&name("joiner")));
    assert!(it.plan().await.is_empty(), "{}", it.plan().await);
}

#[tokio::test(start_paused = true)]
async fn a_donor_starts_again_while_steps_of_its_joiners_fail() {
    let mut it = Harness::with(&[("donor", DONOR), ("joiner", JOINER), ("bad", JOINER)]).await;
    it.want("bad", r#""ipcMode": "container:donor", "args": ["x"]"#);
    let revision = it.revision("bad");
    it.runtime.add_foreign(&InstanceId::new(&name("bad"), &revision));
    // Its preparation fails, and is tried once a minute in the end.
    it.after(300.0).await;
    let pid = it.pid_of("bad").await;
    for _ in 0..3 {
        let ended = it.clock();
        it.exit("donor", 1).await;
        it.after(13.0).await;
        let again = *it.starts("donor").last().unwrap();
        assert!((ended..ended + 1000).contains(&again), "{again} after {ended}");
        assert!(shares(&it).await);
    }
    assert_eq!(it.pid_of("bad").await, pid, "nothing running is touched");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_because_its_donor_ended_in_the_middle_of_it_is_no_strike() {
    let mut it = Harness::new();
    it.want("donor", DONOR);
    it.want("joiner", r#""ipcMode": "container:donor", "restart": {"policy": "never"}"#);
    let donor = InstanceId::new(&name("donor"), &it.revision("donor"));
    let runtime = it.runtime.clone();
    let has_ended = std::sync::atomic::AtomicBool::new(false);
    let seen = Arc::new(move |pid| {
        let process = runtime.process(pid)?;
        let made = process_of(&process.spec);
        let is_joiner = process.id.as_str().starts_with("joiner-");
        if is_joiner && !has_ended.swap(true, std::sync::atomic::Ordering::Relaxed) {
            runtime.exit(&donor, 1);
            return Some(Process { ipc: ProcessIpc::Own, ..made });
        }
        Some(made)
    });
    it.host = MemoryHost::new(it.run_directory().path(), seen).with_runtime_clock();
    it.run();
    it.until_running("joiner").await;
    assert!(shares(&it).await);
    assert_eq!(it.starts("donor").len(), 2);
    assert!(!it.look().await.strikes.contains_key(&name("joiner")));
}
