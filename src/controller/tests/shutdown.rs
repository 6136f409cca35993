//! The end of the machine, and what the next start makes of it.

use super::*;
use crate::rundir::Holder;

const DONOR: (&str, &str) = ("donor", r#""ipcMode": "shareable""#);
const JOINER: (&str, &str) = ("joiner", r#""ipcMode": "container:donor""#);
const LAST: (&str, &str) = ("last", r#""ipcMode": "container:joiner""#);

/// Ends everything within so many seconds.
async fn shut_down(it: &mut Harness, seconds: u64) -> Ended {
    let until = it.host.now() + Duration::from_secs(seconds);
    it.once(Goal::Shutdown { until, why: Some(MachineEnd::Reboot) }).await
}

/// Who was signalled, in this order.
fn signalled(it: &mut Harness) -> Vec<String> {
    let calls = it.calls();
    calls.iter().filter_map(|it| it.strip_prefix("signal task ")).map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn joiners_end_before_their_donor_everything_is_kept_and_the_next_controller_starts_it() {
    let never = ("job", r#""restart": {"policy": "never"}"#);
    let mut it = Harness::with(&[DONOR, JOINER, LAST, ("other", ""), never]).await;
    it.after(60.0).await;
    let before = it.look().await.instances.len();
    let (job, done) = (it.instance("job").await, ("done", r#""restart": {"policy": "never"}"#));
    it.exit_on_start("done", Some(0));
    it.want(done.0, done.1);
    it.until("it is done", |it| it.items.iter().any(|it| it.phase == Phase::Completed)).await;
    it.kill().await;
    it.calls();
    let strikes = it.look().await.strikes;
    assert_eq!(shut_down(&mut it, 60).await, Ended::Converged);
    let mut order = signalled(&mut it);
    order.retain(|it| ["donor", "joiner", "last"].contains(&it.as_str()));
    assert_eq!(order, ["last", "joiner", "donor"]);
    assert_eq!(it.running().await, [""; 0]);
    let observed = it.look().await;
    assert_eq!(observed.instances.len(), before + 1);
    assert!(observed.instances.values().all(|it| it.has_snapshot && it.task == Task::None));
    assert_eq!((observed.strikes, observed.hands.len()), (strikes.clone(), 0));
    assert_eq!(it.instance("job").await.end.unwrap().reason, "stopped");
    // Once more there is nothing to do.
    assert_eq!(shut_down(&mut it, 60).await, Ended::Converged);
    assert_eq!(it.calls(), [""; 0]);
    it.run();
    for workload in ["donor", "joiner", "last", "other", "job"] {
        it.until_running(workload).await;
    }
    assert_eq!(it.instance("job").await.run.unwrap().n, job.run.unwrap().n + 1);
    it.idle().await;
    assert_eq!(it.starts("done").len(), 1, "what has run to its end does not run again");
    assert_eq!(it.look().await.strikes, strikes);
}

#[tokio::test(start_paused = true)]
async fn each_has_its_own_time_and_none_more_than_is_left_of_the_whole() {
    let mut it = Harness::with(&[
        ("short", r#""stop": {"timeout": "2s"}"#),
        ("long", r#""stop": {"timeout": "1h"}"#),
        ("never", r#""stop": {"timeout": "never"}"#),
        DONOR,
        ("joiner", r#""ipcMode": "container:donor", "stop": {"timeout": "7s"}"#),
    ])
    .await;
    for name in ["short", "long", "never", "donor", "joiner"] {
        it.runtime.ignore_signals(&it.id_of(name).await);
    }
    it.kill().await;
    it.calls();
    let begun = tokio::time::Instant::now();
    assert_eq!(shut_down(&mut it, 10).await, Ended::Converged);
    // When each was told to end, and when it was killed.
    let mut times = BTreeMap::new();
    for (at, call) in it.runtime.timed_calls() {
        if let Some(id) = call.strip_prefix("signal task ") {
            let name = id.rsplit_once('-').unwrap().0.to_owned();
            let at = at.duration_since(begun).as_secs_f64().round();
            times.entry(name).or_insert((at, at)).1 = at;
        }
    }
    // Side by side, but for the donor, which has what its joiner has left of the time.
    let expected = [
        ("donor", (7.0, 10.0)),
        ("joiner", (0.0, 7.0)),
        ("long", (0.0, 10.0)),
        ("never", (0.0, 10.0)),
        ("short", (0.0, 2.0)),
    ];
    assert_eq!(times, expected.map(|(name, at)| (name.to_owned(), at)).into());
}

#[tokio::test(start_paused = true)]
async fn an_exit_that_nobody_has_seen_yet_keeps_its_code() {
    let mut it = Harness::with(&[("a", r#""restart": {"policy": "never"}"#)]).await;
    it.kill().await;
    it.exit("a", 7).await;
    assert_eq!(shut_down(&mut it, 60).await, Ended::Converged);
    let end = it.instance("a").await.end.unwrap();
    assert_eq!((end.code, end.reason.as_str(), end.failures), (7, "exited", 1));
    it.run();
    it.until("it has failed", |it| it.items[0].phase == Phase::Failed).await;
    assert_eq!(it.item("a").last_exit.unwrap().code, 7);
}

#[tokio::test(start_paused = true)]
async fn a_controller_and_a_command_end_for_it_and_begin_nothing() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    it.run_directory().set_shutdown(Some(&Holder::this().unwrap())).unwrap();
    let begun = it.clock();
    it.exit("a", 1).await;
    let ended = it.ended().await;
    assert_eq!(ended, Ended::Shutdown);
    assert!(it.clock() - begun < 2000);
    assert_eq!(it.running().await, ["b"]);
    it.want("c", "");
    for goal in [Goal::Keep, Goal::Converge { wait: true }, Goal::Down { names: None }] {
        assert_eq!(it.once(goal).await, Ended::Shutdown);
    }
    assert_eq!(it.running().await, ["b"]);
    assert_eq!(shut_down(&mut it, 60).await, Ended::Converged);
    // One that was killed counts for nothing.
    let killed = Holder { pid: u32::MAX, ..Holder::this().unwrap() };
    it.run_directory().set_shutdown(Some(&killed)).unwrap();
    it.run();
    it.until_running("a").await;
    it.until_running("c").await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_controller_notices_within_a_second_that_everything_is_to_end() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.after(100.0).await;
    it.run_directory().set_shutdown(Some(&Holder::this().unwrap())).unwrap();
    let begun = it.clock();
    assert_eq!(it.ended().await, Ended::Shutdown);
    assert!(it.clock() - begun <= 1050, "{}", it.clock() - begun);
    assert_eq!(it.running().await, ["a"]);
}

/// Refusals that come quickly do not use up the time that there is.
#[tokio::test(start_paused = true)]
async fn what_is_refused_is_tried_until_the_time_is_up() {
    for (answers_after, ended) in [(20, Ended::Converged), (600, Ended::NotConverged)] {
        let mut it = Harness::with(&[("a", "")]).await;
        it.kill().await;
        let id = it.id_of("a").await;
        it.runtime.refuse_signals(&id);
        let runtime = it.runtime.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(answers_after)).await;
            runtime.exit(&id, 137);
        });
        assert_eq!(shut_down(&mut it, 60).await, ended);
        let least = answers_after.min(60) * 1000;
        assert!((least..least + 60_000).contains(&it.clock()), "{}", it.clock());
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_answer_is_not_taken_for_ended() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    it.kill().await;
    let id = it.id_of("a").await;
    it.runtime.hang(&id, true);
    let runtime = it.runtime.clone();
    let answers = id.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(20)).await;
        runtime.hang(&answers, false);
    });
    assert_eq!(shut_down(&mut it, 60).await, Ended::Converged);
    assert!(it.clock() >= 20_000);
    assert_eq!(it.running().await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_crash_in_the_middle_of_it_is_repaired_by_the_next_one() {
    let workloads = [DONOR, JOINER, ("job", r#""restart": {"policy": "never"}"#)];
    for effects in 1.. {
        let mut it = Harness::with(&workloads).await;
        it.kill().await;
        let crash = Crash::after(effects);
        let edge = it.edge().with_crash(Arc::clone(&crash));
        let until = it.host.now() + Duration::from_mins(1);
        let goal = Goal::Shutdown { until, why: None };
        let first = it.controller(Arc::new(edge), goal);
        let first = first.run(watch::channel(None).0, std::future::pending());
        let ended = tokio::time::timeout(Duration::from_secs(30), first).await;
        assert_eq!(shut_down(&mut it, 60).await, Ended::Converged);
        assert_eq!(it.running().await, [""; 0]);
        it.run();
        for workload in ["donor", "joiner"] {
            it.until_running(workload).await;
        }
        assert!(it.look().await.strikes.is_empty(), "{:?}", crash.passed());
        if ended == Ok(Ended::Converged) {
            break;
        }
    }
}

/// Nobody waits for what nothing ends, once the time is up.
#[tokio::test(start_paused = true)]
async fn a_donor_is_ended_although_nothing_ends_its_joiner() {
    let mut it = Harness::with(&[DONOR, JOINER, ("other", "")]).await;
    it.kill().await;
    it.runtime.refuse_signals(&it.id_of("joiner").await);
    assert_eq!(shut_down(&mut it, 60).await, Ended::NotConverged);
    assert_eq!(it.running().await, ["joiner"]);
    assert_eq!(it.instance("donor").await.end.unwrap().reason, "stopped");
}
