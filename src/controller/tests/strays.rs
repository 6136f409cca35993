//! A runtime that has lost what runs: nothing runs twice, and nothing is left running.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::host::memory::Lost;
use crate::plan::RemoveStray;
use crate::status::Item;

/// What runs of all workloads, known to the runtime or not.
async fn processes(it: &Harness) -> usize {
    let lost: usize = it.runtime.strays().values().map(|it| it.pids.len()).sum();
    it.pids().await.len() + lost
}

#[tokio::test(start_paused = true)]
async fn what_a_runtime_has_lost_runs_once_whether_its_manifest_changed_or_not() {
    for everything in [true, false] {
        for edit in [true, false] {
            let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
            let before = it.pids().await;
            if everything {
                it.runtime.lose_everything();
            } else {
                it.runtime.lose_tasks();
            }
            if edit {
                it.want("a", r#""args": ["5"]"#);
            }
            it.until("it runs as something else", |status| {
                let pid = |it: &Item| it.instance.as_ref().and_then(|it| it.pid);
                let is_new = |it: &Item| pid(it).is_some_and(|pid| pid != before[&it.name]);
                status.items.len() == 2 && status.items.iter().all(is_new)
            })
            .await;
            it.idle().await;
            assert_eq!(processes(&it).await, 2, "everything {everything}, edit {edit}");
            assert!(it.runtime.strays().is_empty());
            assert!(it.plan().await.is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn down_ends_what_a_runtime_has_lost() {
    let mut it = Harness::with(&[("a", ""), ("b", r#""ipcMode": "shareable""#)]).await;
    it.kill().await;
    it.runtime.lose_everything();
    let names = Some([name("a")].into());
    assert_eq!(it.once(Goal::Down { names }).await, Ended::Converged);
    assert_eq!(it.runtime.strays().len(), 1);
    assert_eq!(it.once(Goal::Down { names: None }).await, Ended::Converged);
    assert_eq!((processes(&it).await, it.all_but_images().await), (0, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn down_does_not_say_that_all_is_gone_where_nobody_can_look() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.kill().await;
    it.runtime.lose_everything();
    it.host.hide_strays(Some("no cgroups"));
    assert_eq!(it.once(Goal::Down { names: None }).await, Ended::NotConverged);
    it.host.hide_strays(None);
    assert_eq!(it.once(Goal::Down { names: None }).await, Ended::Converged);
    assert_eq!(processes(&it).await, 0);
}

#[tokio::test(start_paused = true)]
async fn it_is_asked_to_end_and_killed_when_its_time_is_over() {
    for (stubborn, least, most) in [(false, 0, 2000), (true, 5000, 7000)] {
        let it = Harness::with(&[("a", r#""stop": {"timeout": "5s"}"#)]).await;
        if stubborn {
            it.runtime.ignore_signals(&it.id_of("a").await);
        }
        it.runtime.lose_tasks();
        let begun = it.clock();
        while !it.runtime.strays().is_empty() {
            it.after(0.05).await;
            assert!(it.clock() - begun < 60_000, "it is never ended");
        }
        let took = it.clock() - begun;
        assert!((least..most).contains(&took), "stubborn {stubborn}: {took} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn while_it_takes_its_time_nobody_looks_again_and_again() {
    let spec = r#""ipcMode": "shareable", "stop": {"timeout": "20m"}"#;
    let mut it = Harness::with(&[("a", spec), ("b", r#""ipcMode": "container:a""#)]).await;
    it.runtime.ignore_signals(&it.id_of("a").await);
    it.runtime.lose_tasks();
    it.after(10.0).await;
    it.runtime.looks();
    it.after(600.0).await;
    let looks = it.runtime.looks();
    assert!(looks < 60, "{looks} looks in ten minutes");
    it.until_running("a").await;
    it.until_running("b").await;
    assert!(it.runtime.strays().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_takes_its_time_is_asked_about_ever_more_rarely_and_is_over_soon_after_its_end() {
    let mut it = Harness::with(&[("a", r#""stop": {"timeout": "2h"}"#)]).await;
    it.runtime.ignore_signals(&it.id_of("a").await);
    it.kill().await;
    it.runtime.lose_tasks();
    let asked = Arc::new(AtomicUsize::new(0));
    let (all, signal, remove) = (it.runtime.clone(), it.runtime.clone(), it.runtime.clone());
    let count = Arc::clone(&asked);
    it.host = it.host.clone().with_lost(Lost {
        all: Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            all.strays()
        }),
        signal: Arc::new(move |id, it| signal.signal_stray(id, it)),
        remove: Arc::new(move |id| remove.remove_stray(id)),
    });
    it.run();
    it.after(3600.0).await;
    let asked = asked.load(Ordering::Relaxed);
    assert!((3600..5000).contains(&asked), "it was asked about {asked} times in an hour");
    let (id, begun) = (it.instance("a").await.id, it.clock());
    it.runtime.signal_stray(&id, Signal::KILL);
    it.until_running("a").await;
    assert!(it.clock() - begun < 2000, "it starts {} ms later", it.clock() - begun);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_ended_holds_its_own_workload_and_says_why() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    let before = it.pids().await;
    it.kill().await;
    it.runtime.lose_everything();
    it.host.fail_next("remove_stray", io::ErrorKind::PermissionDenied);
    it.run();
    let has_failed = |it: &&Item| it.reason == "remove-failed";
    it.until("one fails", |it| it.items.iter().any(|it| has_failed(&it))).await;
    let failed = it.status().items.iter().find(has_failed).unwrap().clone();
    assert!(failed.message.contains("permission denied"), "{}", failed.message);
    let other = if failed.name == "a" { "b" } else { "a" };
    it.until_running(other).await;
    assert_ne!(it.pid_of(other).await, before[other]);
    // The next try does it.
    it.until_running(&failed.name).await;
    it.idle().await;
    assert_eq!(processes(&it).await, 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_runtime_loses_before_it_is_stopped_has_not_ended() {
    let mut it = Harness::with(&[("a", "")]).await;
    let id = it.id_of("a").await;
    // Or it carries out the same.
    it.kill().await;
    it.want("a", r#""args": ["5"]"#);
    // The plan is of a look that was made before its task was lost.
    let plan = it.plan().await;
    let stop = plan.steps.iter().find(|it| matches!(it.action, Action::Stop(_))).unwrap().clone();
    it.runtime.lose_tasks();
    let (done, _) = it.edge().carry_out(&stop, None).await;
    let failed = done.unwrap_err().to_string();
    assert!(failed.contains("a process of it still runs"), "{failed}");
    assert_eq!(it.look().await.instances[&id].end, None);
    assert_eq!(it.runtime.strays()[&id].pids.len(), 1);
    it.run();
    it.until_running("a").await;
    it.idle().await;
    assert_eq!(processes(&it).await, 1);
    assert!(it.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_done_and_does_not_help_is_done_ever_more_rarely() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    it.kill().await;
    it.runtime.lose(&it.id_of("a").await);
    it.wanted.workloads.remove(&name("a"));
    it.publish();
    let stays = Arc::new(AtomicBool::new(true));
    let (all, signal, remove) = (it.runtime.clone(), it.runtime.clone(), it.runtime.clone());
    let removes_nothing = Arc::clone(&stays);
    it.host = it.host.clone().with_lost(Lost {
        all: Arc::new(move || all.strays()),
        signal: Arc::new(move |id, it| signal.signal_stray(id, it)),
        remove: Arc::new(move |id| {
            if !removes_nothing.load(Ordering::Relaxed) {
                remove.remove_stray(id);
            }
        }),
    });
    it.runtime.looks();
    it.run();
    it.after(600.0).await;
    let looks = it.runtime.looks();
    assert!(looks < 120, "{looks} looks in ten minutes");
    assert_eq!(it.runtime.strays().len(), 1);
    stays.store(false, Ordering::Relaxed);
    it.after(61.0).await;
    assert!(it.runtime.strays().is_empty());
    assert!(it.plan().await.is_empty());
    assert_eq!(it.running().await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_runtime_has_after_all_is_not_touched() {
    let it = Harness::with(&[("a", "")]).await;
    let (pid, id) = (it.pid_of("a").await, it.id_of("a").await);
    // Of a look that was made before its task was there.
    let step = Step {
        name: Some(name("a")),
        action: Action::RemoveStray(RemoveStray {
            id: id.clone(),
            signal: Signal::KILL,
            timeout: StopTimeout::After(Span(Duration::ZERO)),
        }),
        cause: Cause::Stray { processes: 1 },
        requires: Vec::new(),
        pause: Duration::ZERO,
    };
    it.host.fail_next("signal_stray", io::ErrorKind::Other);
    it.host.fail_next("remove_stray", io::ErrorKind::Other);
    let (done, _) = it.edge().carry_out(&step, None).await;
    assert!(done.is_ok(), "{done:?}");
    assert_eq!(it.pid_of("a").await, pid);
}
