//! The loop as a person sees it, on a runtime and a host in memory and a clock that is moved.

mod crash;
mod events;
mod execs;
mod goals;
mod hands;
mod harness;
mod images;
mod imports;
mod ipc;
mod pulls;
mod removals;
mod runs;
mod shutdown;
mod stops;
mod strays;

use super::*;
use crate::observed::{HandKind, ImagePlace};
use crate::plan::{Cause, StopInstance};
use crate::runtime::{ErrorKind, verb};
use crate::workload::{Signal, Span, StopTimeout};
use harness::*;

#[tokio::test(start_paused = true)]
async fn what_is_wanted_is_started() {
    let mut it = Harness::with(&[("a", ""), ("b", r#""ipcMode": "shareable""#)]).await;
    assert_eq!(it.running().await, ["a", "b"]);
    let calls: Vec<String> =
        it.calls().into_iter().filter(|it| it.ends_with(" a") || it.ends_with("-a")).collect();
    assert_eq!(
        calls,
        [
            "make lease evenkeel-a",
            "prepare snapshot a",
            "create container a",
            "remove lease evenkeel-a",
            "update container a",
            "create task a",
            "update container a",
            "start task a",
        ]
    );
    assert!(it.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_new_controller_adopts_what_runs_and_touches_nothing() {
    let mut it = Harness::with(&[
        ("a", ""),
        ("donor", r#""ipcMode": "shareable""#),
        ("joiner", r#""ipcMode": "container:donor""#),
    ])
    .await;
    let pids = it.pids().await;
    for killed in [true, false, true] {
        if killed {
            it.kill().await;
        } else {
            assert_eq!(it.end().await, Ended::Shutdown);
        }
        it.calls();
        assert!(it.plan().await.is_empty());
        it.run();
        it.until_running("joiner").await;
        it.after(100.0).await;
        assert_eq!(it.pids().await, pids);
        assert_eq!(it.calls(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_edit_replaces_just_one() {
    let mut it = Harness::with(&[("a", ""), ("b", ""), ("c", "")]).await;
    let before = it.pids().await;
    let old = it.id_of("b").await;
    it.want("b", r#""args": ["x"]"#);
    it.until("another b", |status| {
        let b = status.items.iter().find(|it| it.name == "b").unwrap();
        b.up_to_date
            && b.instance.as_ref().is_some_and(|it| it.id != old.as_str() && it.pid.is_some())
    })
    .await;
    it.idle().await;
    let after = it.pids().await;
    assert_eq!((after["a"], after["c"]), (before["a"], before["c"]));
    assert_ne!(after["b"], before["b"]);
    assert_ne!(it.id_of("b").await, old, "and the old one is gone");
}

#[tokio::test(start_paused = true)]
async fn what_the_process_does_not_notice_is_written_in_place() {
    let mut it = Harness::with(&[("a", "")]).await;
    let pid = it.pid_of("a").await;
    it.want("a", r#""stop": {"timeout": "1s"}"#);
    it.idle().await;
    assert_eq!(it.pid_of("a").await, pid);
    let stored = it.instance("a").await.workload.unwrap();
    assert_eq!(stored.spec.stop.timeout, Some("1s".parse().unwrap()));
    it.configure(|it| it.ipc.mode = crate::workload::IpcMode::Shareable);
    it.after(60.0).await;
    assert_eq!(it.pid_of("a").await, pid, "a default is for new instances");
}

#[tokio::test(start_paused = true)]
async fn going_back_finds_the_same_name_running_anew_from_its_image() {
    let mut it = Harness::with(&[("a", "")]).await;
    let first = it.id_of("a").await;
    it.want("a", r#""args": ["x"]"#);
    it.idle().await;
    it.want("a", "");
    it.idle().await;
    assert_eq!(it.id_of("a").await, first, "the same revision has the same ID");
    assert_eq!(it.running().await, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn an_edit_whose_image_was_removed_waits_for_it_and_prepares_nothing() {
    let mut it = Harness::with(&[("a", "")]).await;
    let pid = it.pid_of("a").await;
    it.runtime.remove_image("docker.io/library/busybox:latest");
    it.calls();
    it.want("a", r#""args": ["x"]"#);
    it.until_reason("a", "image-missing").await;
    it.after(600.0).await;
    let item = it.item("a");
    assert_eq!((item.phase, item.up_to_date), (Phase::Running, false));
    assert_eq!(item.instance.unwrap().pid, Some(pid));
    assert_eq!(it.calls(), [""; 0], "nothing is tried that cannot be");
    it.runtime.add_image(image("docker.io/library/busybox:latest", ImagePlace::Store));
    it.until_running("a").await;
    assert_ne!(it.pid_of("a").await, pid);
}

#[tokio::test(start_paused = true)]
async fn failing_steps_of_one_workload_leave_the_others_alone() {
    let mut it = Harness::with(&[("bad", ""), ("a", "")]).await;
    let pid = it.pid_of("bad").await;
    // Somebody else's container sits where its next instance has to be.
    it.want("bad", r#""args": ["x"]"#);
    let revision = it.revision("bad");
    it.kill().await;
    it.runtime.add_foreign(&InstanceId::new(&name("bad"), &revision));
    it.calls();
    it.run();
    it.want("b", "");
    it.until_running("b").await;
    it.want("a", r#""args": ["x"]"#);
    it.after(600.0).await;
    let item = it.item("bad");
    assert_eq!((item.phase, item.reason.as_str()), (Phase::Running, "prepare-failed"));
    assert_eq!((item.instance.unwrap().pid, item.up_to_date), (Some(pid), false));
    assert!(item.message.contains("prepare snapshot") && item.next_retry_at.is_some());
    assert_eq!(it.running().await, ["a", "b", "bad"]);
    assert_eq!(it.pid_of("bad").await, pid, "nothing running is touched");
    let tries = it.calls().iter().filter(|it| *it == "make lease evenkeel-bad").count();
    assert!((10..30).contains(&tries), "it is tried again, ever more slowly: {tries}");
    assert!(it.runtime.looks() < 200, "and looked at no more often than that needs");
}

#[tokio::test(start_paused = true)]
async fn a_slow_stop_keeps_nobody_else_waiting() {
    let slow = r#""stop": {"timeout": "never"}"#;
    let mut it = Harness::with(&[("slow", slow), ("a", "")]).await;
    let (old, pid) = (it.id_of("slow").await, it.pid_of("slow").await);
    it.runtime.ignore_signals(&old);
    it.want("slow", r#""args": ["x"], "stop": {"timeout": "never"}"#);
    it.want("a", r#""args": ["x"]"#);
    it.idle().await;
    assert_eq!(it.item("slow").instance.unwrap().pid, Some(pid));
    let first = it.pid_of("a").await;
    // A newer manifest acts, a new one does, an absence does, and what is left over goes.
    it.want("a", r#""args": ["y"]"#);
    it.want("b", "");
    it.want("c", "");
    it.until_running("b").await;
    it.until_running("c").await;
    it.until_running("a").await;
    assert_ne!(it.pid_of("a").await, first);
    it.remove("c");
    it.until_gone("c").await;
    let leftover: InstanceId = "left-0123456789".parse().unwrap();
    it.host.leave_directory(&leftover);
    it.after(9000.0).await;
    assert!(it.look().await.leftovers.is_empty());
    assert_eq!(it.pid_of("slow").await, pid, "it may take for ever");
    assert!(it.runtime.looks() < 800);
    it.runtime.exit(&old, 0);
    it.idle().await;
    assert_ne!(it.pid_of("slow").await, pid);
    assert_eq!(it.running().await, ["a", "b", "slow"]);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ignores_its_signal_is_killed_when_its_time_is_over() {
    let mut it = Harness::with(&[("a", r#""stop": {"timeout": "3s"}"#)]).await;
    it.runtime.ignore_signals(&it.id_of("a").await);
    let begun = it.clock();
    it.want("a", r#""state": "stopped", "stop": {"timeout": "3s"}"#);
    it.until("it has stopped", |it| it.items[0].phase == Phase::Stopped).await;
    assert!((3000..3500).contains(&(it.clock() - begun)), "{}", it.clock() - begun);
    assert_eq!(it.item("a").last_exit.unwrap().code, 137);
}

#[tokio::test(start_paused = true)]
async fn a_controller_rests_once_after_its_work() {
    let mut it = Harness::new();
    it.want("a", "");
    it.run();
    it.until_running("a").await;
    it.after(300.0).await;
    assert_eq!(it.host.rests(), 1);
    it.after(300.0).await;
    assert_eq!(it.host.rests(), 0, "looks alone are no work");
    it.want("b", "");
    it.until_running("b").await;
    it.after(300.0).await;
    assert_eq!(it.host.rests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_hint_is_made_up_for_by_the_next_look_at_everything() {
    let it = Harness::with(&[("a", "")]).await;
    let pid = it.pid_of("a").await;
    it.runtime.set_silent(true);
    it.exit("a", 1).await;
    it.runtime.set_silent(false);
    it.after(RESYNC.as_secs_f64() + 1.0).await;
    assert_ne!(it.pid_of("a").await, pid);
}

#[tokio::test(start_paused = true)]
async fn while_nothing_happens_nothing_is_done() {
    let mut it = Harness::with(&[("a", ""), ("donor", r#""ipcMode": "shareable""#)]).await;
    it.calls();
    it.runtime.looks();
    it.after(3600.0).await;
    assert_eq!(it.calls(), [""; 0]);
    let looks = it.runtime.looks();
    assert!((100..=121).contains(&looks), "{looks}");
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_runtime_is_reported_and_its_containers_are_left_alone() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    let before = it.pids().await;
    it.runtime.set_unreachable(true);
    // Something changes meanwhile.
    it.want("c", "");
    it.want("b", r#""args": ["x"]"#);
    it.until("it is said", |it| it.runtime.state == "unreachable").await;
    let status = it.status();
    assert!(status.runtime.message.contains("switched off"), "{:?}", status.runtime);
    assert_eq!(status.items.len(), 2, "what was known stays");
    it.after(3600.0).await;
    assert!(it.runtime.looks() < 400);
    it.runtime.set_unreachable(false);
    it.until_running("c").await;
    it.until("another b", |it| it.items.iter().all(|it| it.up_to_date)).await;
    assert_eq!(it.status().runtime.state, "ready");
    let after = it.pids().await;
    assert_eq!(after["a"], before["a"]);
    assert_ne!(after["b"], before["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_goes_away_in_the_middle_of_a_start_costs_no_strike() {
    for operation in [verb::LEASE, verb::CREATE, verb::CREATE_TASK, verb::START_TASK, verb::UPDATE]
    {
        let mut it = Harness::with(&[("a", "")]).await;
        it.runtime.fail_next(operation, ErrorKind::Unreachable);
        it.want("b", r#""ipcMode": "shareable""#);
        it.until_running("b").await;
        assert!(it.look().await.strikes.is_empty(), "{operation}");
        assert_eq!(it.starts("a").len(), 1);
        assert!(it.plan().await.is_empty(), "{operation}: {}", it.plan().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bug_in_a_step_stops_no_workload_for_good() {
    for operation in [verb::CREATE, verb::START_TASK] {
        let mut it = Harness::with(&[("a", "")]).await;
        // Something else is under way all the time.
        it.want("slow", r#""stop": {"timeout": "never"}"#);
        it.until_running("slow").await;
        it.runtime.ignore_signals(&it.id_of("slow").await);
        it.want("slow", r#""args": ["x"], "stop": {"timeout": "never"}"#);
        it.idle().await;
        for _ in 0..3 {
            it.runtime.panic_next(operation);
        }
        let begun = it.clock();
        it.want("b", "");
        it.until_running("b").await;
        // Three failures: 100 + 200 + 400 ms.
        assert!((600..2000).contains(&(it.clock() - begun)), "{operation} {}", it.clock() - begun);
        assert_eq!(it.starts("a").len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_workload_is_free_as_soon_as_its_own_steps_have_ended() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    it.kill().await;
    let (a, b) = (it.instance("a").await, it.instance("b").await);
    it.runtime.ignore_signals(&a.id);
    let step = |workload: &str, action, requires: &[usize]| Step {
        name: Some(name(workload)),
        action,
        cause: Cause::Added,
        requires: requires.iter().copied().map(StepId).collect(),
        pause: Duration::ZERO,
    };
    let stop = StopInstance {
        id: a.id.clone(),
        signal: Signal::TERM,
        timeout: StopTimeout::Never,
        paused: false,
        pid: None,
        run: 1,
        note: false,
        started: None,
        failures: 0,
    };
    // They share an image, which is all that they have in common.
    let part = vec![
        step("a", Action::Import { image: image("shared", ImagePlace::Store) }, &[]),
        step("a", Action::Stop(stop), &[0]),
        step("b", Action::Resume { id: b.id.clone() }, &[0]),
    ];
    let edge = Arc::new(it.edge());
    let (mut flights, mut cooling) = (Flights::default(), Cooling::default());
    flights.send(&edge, part.into_iter().enumerate().map(|(n, it)| (StepId(n), it)).collect(), 0);
    while flights.is_busy(&Key::Workload(name("b"))) {
        flights.seen();
        flights.landed(&edge, &mut cooling, tokio::time::Instant::now()).await;
    }
    assert!(flights.is_busy(&Key::Workload(name("a"))));
    assert!(!flights.is_busy(&Key::Instance(b.id)));
}

fn sweep(workload: &str) -> Step {
    Step {
        name: Some(name(workload)),
        action: Action::Sweep(Leftover::Lease(format!("evenkeel-import-{workload}"))),
        cause: Cause::Added,
        requires: Vec::new(),
        pause: Duration::ZERO,
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_step_begins_while_everything_is_looked_at_and_nobody_else_does() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.kill().await;
    let id = it.id_of("a").await;
    let crash = Crash::after(usize::MAX);
    let edge = Arc::new(it.edge().with_crash(Arc::clone(&crash)));
    let resume = Step { action: Action::Resume { id }, requires: vec![StepId(0)], ..sweep("a") };
    let (mut flights, mut cooling) = (Flights::default(), Cooling::default());
    flights.send(&edge, vec![(StepId(0), sweep("a")), (StepId(1), resume)], 0);
    let look = tokio::time::sleep(Duration::from_secs(1));
    tokio::select! {
        () = look => {}
        never = flights.go_on(&edge) => match never {},
    }
    assert_eq!(crash.passed(), ["sweep", "resume"]);
    assert!(flights.is_busy(&Key::Workload(name("a"))), "what the look found is from before");
    flights.landed(&edge, &mut cooling, tokio::time::Instant::now()).await;
    assert!(!flights.is_busy(&Key::Workload(name("a"))) && flights.is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_so_many_steps_make_something_at_once() {
    let mut it = Harness::new();
    it.runtime.set_pace(Duration::from_secs(1));
    let names: Vec<String> = (0..3 * CONCURRENCY).map(|n| format!("w{n}")).collect();
    for name in &names {
        it.want(name, "");
    }
    it.run();
    for name in &names {
        it.until_running(name).await;
    }
    let is_making =
        |call: &str| call.starts_with("prepare snapshot ") || call.starts_with("create task ");
    let calls = it.runtime.timed_calls().into_iter();
    let begun: Vec<_> = calls.filter(|it| is_making(&it.1)).map(|it| it.0).collect();
    assert_eq!(begun.len(), 2 * names.len());
    // Each takes a second from its call on.
    let at_once = |now: &tokio::time::Instant| {
        let since = |it: &tokio::time::Instant| now.checked_duration_since(*it);
        begun.iter().filter_map(since).filter(|it| *it < Duration::from_secs(1)).count()
    };
    assert_eq!(begun.iter().map(at_once).max(), Some(CONCURRENCY), "no more, and no fewer");
}

#[tokio::test(start_paused = true)]
async fn waiting_for_processes_to_end_keeps_nothing_from_being_made() {
    let slow = r#""stop": {"timeout": "never"}"#;
    let names: Vec<String> = (0..2 * CONCURRENCY).map(|n| format!("w{n}")).collect();
    let workloads: Vec<_> = names.iter().map(|it| (it.as_str(), slow)).collect();
    let mut it = Harness::with(&workloads).await;
    for name in &names {
        it.runtime.ignore_signals(&it.id_of(name).await);
    }
    for name in &names {
        it.want(name, r#""state": "stopped", "stop": {"timeout": "never"}"#);
    }
    it.idle().await;
    let signals = it.calls().iter().filter(|it| it.starts_with("signal task ")).count();
    assert_eq!(signals, names.len(), "all of them are waited for");
    let begun = it.clock();
    it.want("new", "");
    it.until_running("new").await;
    assert!(it.clock() - begun < 1000, "it took {} ms", it.clock() - begun);
}

#[tokio::test(start_paused = true)]
async fn a_workload_goes_on_before_others_begin() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.kill().await;
    let id = it.id_of("a").await;
    let crash = Crash::after(usize::MAX);
    let edge = Arc::new(it.edge().with_crash(Arc::clone(&crash)));
    // All permits but one are taken.
    let mut taken = Vec::new();
    for _ in 1..CONCURRENCY {
        taken.push(edge.carry_out(&sweep("x"), None).await.1.unwrap());
    }
    let resume = Step { action: Action::Resume { id }, requires: vec![StepId(0)], ..sweep("a") };
    let (mut flights, mut cooling) = (Flights::default(), Cooling::default());
    flights.send(&edge, vec![(StepId(0), sweep("a")), (StepId(1), resume)], 0);
    flights.send(&edge, vec![(StepId(0), sweep("b"))], 0);
    while !flights.is_empty() {
        flights.seen();
        flights.landed(&edge, &mut cooling, tokio::time::Instant::now()).await;
    }
    assert_eq!(crash.passed()[CONCURRENCY - 1..], ["sweep", "resume", "sweep"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_runtime_does_not_end_is_killed_by_its_pid() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.kill().await;
    let id = it.id_of("a").await;
    let pid = it.instance("a").await.task.pid().unwrap();
    it.runtime.hang(&id, true);
    let stop = StopInstance {
        id,
        signal: Signal::TERM,
        timeout: StopTimeout::After(Span(Duration::ZERO)),
        paused: false,
        pid: Some(pid),
        run: 1,
        note: false,
        started: None,
        failures: 0,
    };
    let step = Step {
        name: Some(name("a")),
        action: Action::Stop(stop),
        cause: Cause::Added,
        requires: Vec::new(),
        pause: Duration::ZERO,
    };
    let edge = Arc::new(it.edge());
    let (mut flights, mut cooling) = (Flights::default(), Cooling::default());
    flights.send(&edge, [(StepId(0), step)].into(), 0);
    while flights.is_busy(&Key::Workload(name("a"))) {
        flights.seen();
        flights.landed(&edge, &mut cooling, tokio::time::Instant::now()).await;
    }
    assert_eq!(it.host.killed(), BTreeSet::from([pid]));
}

/// A runtime whose own state is gone refuses for ever; asking again and again would be all that is done.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_asked_to_end_is_killed_by_its_pid() {
    let mut it = Harness::with(&[("a", r#""stop": {"timeout": "20s"}"#)]).await;
    let (id, pid) = (it.id_of("a").await, it.pid_of("a").await);
    it.runtime.refuse_signals(&id);
    let asked = it.clock();
    it.want("a", r#""stop": {"timeout": "20s"}, "state": "stopped""#);
    while it.host.killed().is_empty() {
        it.after(0.1).await;
    }
    assert_eq!(it.host.killed(), BTreeSet::from([pid]));
    assert!((2000..20_000).contains(&(it.clock() - asked)), "{}", it.clock() - asked);
    it.runtime.exit(&id, 137);
    it.until("it is stopped", |it| it.items.iter().any(|it| it.phase == Phase::Stopped)).await;
    let calls = it.calls();
    assert_eq!(calls.iter().filter(|it| *it == "signal task a").count(), 3, "{calls:#?}");
}

#[tokio::test(start_paused = true)]
async fn what_may_take_for_ever_is_not_killed_because_it_cannot_be_asked() {
    let never = r#""stop": {"timeout": "never"}"#;
    let mut it = Harness::with(&[("a", never)]).await;
    it.runtime.refuse_signals(&it.id_of("a").await);
    it.want("a", &format!(r#"{never}, "state": "stopped""#));
    it.until_reason("a", "stop-failed").await;
    it.after(600.0).await;
    assert_eq!(it.running().await, ["a"]);
    assert_eq!(it.host.killed(), BTreeSet::new());
}

/// What runs and may take for ever would keep every newer manifest waiting for as long.
#[tokio::test(start_paused = true)]
async fn a_newer_manifest_cuts_short_a_stop_that_is_under_way_and_does_not_prolong_it() {
    let with = |args: &str, timeout: &str| {
        format!(r#""args": ["{args}"], "stop": {{"timeout": "{timeout}"}}"#)
    };
    let mut it = Harness::with(&[("a", &with("0", "never"))]).await;
    let (id, pid) = (it.id_of("a").await, it.pid_of("a").await);
    it.runtime.ignore_signals(&id);
    it.want("a", &with("1", "never"));
    it.after(600.0).await;
    assert_eq!(it.pid_of("a").await, pid);
    // From its signal on, which was long ago.
    let asked = it.clock();
    it.want("a", &with("1", "700s"));
    it.after(90.0).await;
    assert_eq!(it.pid_of("a").await, pid);
    it.want("a", &with("1", "1h"));
    it.until_running("a").await;
    assert!((90_000..110_000).contains(&(it.clock() - asked)), "{}", it.clock() - asked);
    let calls = it.calls();
    assert_eq!(calls.iter().filter(|it| *it == "signal task a").count(), 2, "{calls:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_newer_manifest_says_how_long_what_it_replaces_may_take_at_most() {
    for (old, new, least) in [("never", "2s", 2000), ("60s", "2s", 2000), ("2s", "60s", 2000)] {
        let with = |args: &str, timeout: &str| {
            format!(r#""args": ["{args}"], "stop": {{"timeout": "{timeout}"}}"#)
        };
        let mut it = Harness::with(&[("a", &with("0", old))]).await;
        it.runtime.ignore_signals(&it.id_of("a").await);
        let edited = it.clock();
        it.want("a", &with("1", new));
        it.idle().await;
        it.until_running("a").await;
        let took = it.clock() - edited;
        assert!((least..least + 1500).contains(&took), "{old} {new}: {took}");
    }
}

/// Like any other, by its pid if need be.
#[tokio::test(start_paused = true)]
async fn a_task_without_its_container_object_is_killed_by_its_pid() {
    let mut it = Harness::with(&[("a", "")]).await;
    let (id, pid) = (it.id_of("a").await, it.pid_of("a").await);
    it.runtime.refuse_signals(&id);
    it.runtime.lose_container(&id);
    while it.host.killed().is_empty() {
        it.after(0.1).await;
    }
    assert_eq!(it.host.killed(), BTreeSet::from([pid]));
    it.runtime.exit(&id, 137);
    it.until("another one runs", |it| {
        it.items
            .iter()
            .any(|it| it.instance.as_ref().is_some_and(|it| it.pid.is_some_and(|it| it != pid)))
    })
    .await;
}

/// Whoever ends us does not wait for a runtime that hangs.
#[tokio::test(start_paused = true)]
async fn the_end_is_heard_in_the_middle_of_a_look() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.runtime.set_hanging(true);
    it.want("b", "");
    it.after(1.0).await;
    let asked = it.clock();
    assert_eq!(it.end().await, Ended::Shutdown);
    assert!(it.clock() - asked < 1000, "{}", it.clock() - asked);
}

#[tokio::test(start_paused = true)]
async fn an_edit_waits_for_no_step_that_failed_before_it() {
    let mut it = Harness::new();
    for _ in 0..10 {
        it.runtime.fail_next(verb::PREPARE_SNAPSHOT, ErrorKind::Refused);
    }
    it.want("a", "");
    it.run();
    it.until_reason("a", "prepare-failed").await;
    it.after(10.0).await;
    let next = it.calls();
    assert!(next.iter().filter(|it| *it == "prepare snapshot a").count() > 3, "{next:?}");
    // By now it is tried again after a while only.
    it.after(1.0).await;
    assert!(!it.calls().contains(&"prepare snapshot a".to_owned()));
    let edited = it.clock();
    it.want("a", r#""args": ["x"]"#);
    it.after(0.2).await;
    assert!(it.calls().contains(&"prepare snapshot a".to_owned()), "at {edited}");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_after_an_edit_keeps_the_edit_from_nothing() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.kill().await;
    let id = it.id_of("a").await;
    let edge = Arc::new(it.edge());
    for edited in [false, true] {
        let (mut flights, mut cooling) = (Flights::default(), Cooling::default());
        it.runtime.fail_next(verb::RESUME_TASK, ErrorKind::Refused);
        let step = Step {
            name: Some(name("a")),
            action: Action::Resume { id: id.clone() },
            cause: Cause::Paused,
            requires: Vec::new(),
            pause: Duration::ZERO,
        };
        flights.send(&edge, vec![(StepId(0), step)], cooling.edits);
        if edited {
            cooling.forget();
        }
        flights.landed(&edge, &mut cooling, tokio::time::Instant::now()).await;
        let is_cooling = cooling.is_cooling(&Key::Workload(name("a")), it.host.now());
        assert_eq!(is_cooling, !edited);
        assert!(cooling.trouble(&name("a")).is_some(), "it is told all the same");
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_told_to_end_ends_what_it_has_begun_if_that_is_quick() {
    let mut it = Harness::with(&[("a", r#""stop": {"timeout": "3s"}"#)]).await;
    let pid = it.pid_of("a").await;
    it.runtime.ignore_signals(&it.id_of("a").await);
    it.want("a", r#""args": ["x"]"#);
    it.after(0.1).await;
    let begun = it.clock();
    assert_eq!(it.end().await, Ended::Shutdown);
    assert!(it.clock() - begun < 5100);
    assert_ne!(it.pid_of("a").await, pid, "it was replaced");
    assert!(it.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_told_to_end_waits_for_nobody_long() {
    let mut it = Harness::with(&[("a", r#""stop": {"timeout": "never"}"#)]).await;
    let pid = it.pid_of("a").await;
    it.runtime.ignore_signals(&it.id_of("a").await);
    it.want("a", r#""args": ["x"]"#);
    it.after(0.1).await;
    let begun = it.clock();
    assert_eq!(it.end().await, Ended::Shutdown);
    assert!((4900..5100).contains(&(it.clock() - begun)));
    assert_eq!(it.pid_of("a").await, pid);
}

#[tokio::test(start_paused = true)]
async fn a_shim_that_does_not_answer_concerns_its_own_workload_only() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    let before = it.pids().await;
    let hung = it.id_of("a").await;
    it.runtime.hang(&hung, true);
    it.until_reason("a", "runtime-not-answering").await;
    it.want("b", r#""args": ["x"]"#);
    it.want("a", r#""args": ["x"]"#);
    it.after(60.0).await;
    assert_ne!(it.pid_of("b").await, before["b"]);
    it.want("a", "");
    it.runtime.hang(&hung, false);
    it.until_running("a").await;
    assert_eq!(it.pid_of("a").await, before["a"]);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_paused_runs_again() {
    let mut it = Harness::with(&[("a", "")]).await;
    let pid = it.pid_of("a").await;
    it.runtime.pause(&it.id_of("a").await);
    it.idle().await;
    assert_eq!(it.instance("a").await.task, Task::Running { pid });
    assert_eq!(it.starts("a").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_without_its_container_object_ends_before_its_workload_starts_anew() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    let before = it.pids().await;
    it.calls();
    it.runtime.lose_container(&it.id_of("a").await);
    it.until_running("a").await;
    it.idle().await;
    let after = it.pids().await;
    assert_eq!(after["b"], before["b"]);
    assert_ne!(after["a"], before["a"]);
    let calls = it.calls();
    let at = |call: &str| {
        calls.iter().position(|it| it == call).unwrap_or_else(|| panic!("{call}: {calls:#?}"))
    };
    assert!(at("remove container a") < at("create container a"), "{calls:#?}");
    assert!(it.look().await.strikes.is_empty(), "and that was no failure of it");
    // Another revision of it does not run beside it either.
    it.kill().await;
    it.runtime.lose_container(&it.id_of("a").await);
    it.want("a", r#""args": ["x"]"#);
    it.calls();
    it.run();
    it.until_running("a").await;
    let calls = it.calls();
    let at = |call: &str| {
        calls.iter().position(|it| it == call).unwrap_or_else(|| panic!("{call}: {calls:#?}"))
    };
    assert!(at("remove container a") < at("prepare snapshot a"), "{calls:#?}");
}

/// An image is for everybody who wants it, whoever asked for it first.
#[tokio::test(start_paused = true)]
async fn an_image_comes_although_who_asked_first_is_busy_for_ever() {
    let never = r#""stop": {"timeout": "never"}"#;
    let mut it = Harness::with(&[("a", never)]).await;
    let old = it.id_of("a").await;
    it.runtime.ignore_signals(&old);
    it.want("a", &format!(r#"{never}, "args": ["x"]"#));
    it.idle().await;
    it.archive("docker.io/library/web:1");
    it.want("a", &format!(r#"{never}, "image": "web:1""#));
    it.want("b", r#""image": "web:1""#);
    it.after(3.0).await;
    assert_eq!(it.running().await, ["a", "b"]);
    assert_eq!(it.calls().iter().filter(|it| it.starts_with(verb::PUT_IMAGE)).count(), 1);
    it.runtime.exit(&old, 0);
    it.until_running("a").await;
}

#[tokio::test(start_paused = true)]
async fn everybody_who_waits_for_an_image_is_told_why_it_does_not_come() {
    let mut it = Harness::new();
    it.archive("docker.io/library/web:1");
    for _ in 0..4 {
        it.runtime.fail_next(verb::PUT_IMAGE, ErrorKind::Refused);
    }
    it.want("a", r#""image": "web:1""#);
    it.want("b", r#""image": "web:1""#);
    it.run();
    for workload in ["a", "b"] {
        it.until_reason(workload, "image-import-failed").await;
        let item = it.item(workload);
        assert_eq!((item.phase, item.up_to_date), (Phase::BackingOff, false), "{workload}");
    }
    it.until_running("a").await;
    it.until_running("b").await;
    assert_eq!(it.item("b").reason, "");
}
