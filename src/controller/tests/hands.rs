//! What a person asks for beside the manifests.

use super::*;
use crate::desired::Source;

const NEVER: &str = r#""restart": {"policy": "never"}"#;

/// Waits for a reason that comes within so many milliseconds.
async fn within(it: &mut Harness, limit: u64, workload: &str, reason: &str) {
    let begun = it.clock();
    it.until_reason(workload, reason).await;
    assert!(it.clock() - begun <= limit, "{} ms", it.clock() - begun);
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_noticed_within_a_second_and_holds_until_a_start() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    let (a, b) = (it.pid_of("a").await, it.pid_of("b").await);
    it.ask("a", HandKind::Stop);
    within(&mut it, 1050, "a", "stopped-by-hand").await;
    it.until("it has stopped", |it| it.items[0].phase == Phase::Stopped).await;
    let item = it.item("a");
    assert!(item.up_to_date && item.message.contains("evenkeel start a"), "{item:#?}");
    assert_eq!(item.last_exit.unwrap().reason, "stopped");
    // Time, an edit, another controller, and an apply change nothing.
    it.after(3600.0).await;
    it.want("a", r#""args": ["x"]"#);
    it.idle().await;
    it.kill().await;
    assert_eq!(it.once(Goal::Converge { wait: false }).await, Ended::Converged);
    it.run();
    it.after(60.0).await;
    assert_eq!(it.running().await, ["b"]);
    assert_eq!((it.pid_of("b").await, it.item("a").reason.as_str()), (b, "stopped-by-hand"));
    assert_eq!(it.asked(), ["Stop a"]);
    it.ask("a", HandKind::Start);
    it.until_running("a").await;
    assert_ne!(it.pid_of("a").await, a);
    assert_eq!(it.instance("a").await.workload.unwrap().spec.args.as_deref().unwrap(), ["x"]);
    it.after(2.0).await;
    assert_eq!(it.asked(), [""; 0]);
    assert!(it.look().await.strikes.is_empty() && it.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_while_nothing_happens_costs_one_look() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.ask("a", HandKind::Stop);
    it.until_reason("a", "stopped-by-hand").await;
    it.after(60.0).await;
    it.calls();
    it.runtime.looks();
    it.after(3600.0).await;
    assert_eq!(it.calls(), [""; 0]);
    assert!(it.runtime.looks() <= 121);
}

#[tokio::test(start_paused = true)]
async fn a_reboot_ends_a_stop() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.ask("a", HandKind::Stop);
    it.until("it has stopped", |it| it.items[0].phase == Phase::Stopped).await;
    it.kill().await;
    let mut hand = it.look().await.hands.remove(&name("a")).unwrap();
    hand.boot_id = "another".to_owned();
    it.run_directory().set_hand(&name("a"), &hand).unwrap();
    it.run();
    it.until_running("a").await;
    it.idle().await;
    assert_eq!(it.asked(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_donor_leaves_its_joiners_running_and_new_ones_waiting() {
    let joiner = r#""ipcMode": "container:donor""#;
    let mut it = Harness::with(&[("donor", r#""ipcMode": "shareable""#), ("joiner", joiner)]).await;
    it.after(20.0).await;
    let pid = it.pid_of("joiner").await;
    it.ask("donor", HandKind::Stop);
    it.until_reason("donor", "stopped-by-hand").await;
    it.want("late", joiner);
    it.until_reason("late", "waiting-for-donor").await;
    assert!(it.item("late").message.contains("stopped by hand"));
    it.after(60.0).await;
    assert_eq!(it.pids().await, BTreeMap::from([("joiner".to_owned(), pid)]));
    it.exit("joiner", 1).await;
    it.until_reason("joiner", "waiting-for-donor").await;
    it.ask("donor", HandKind::Start);
    it.until_running("late").await;
    it.until_running("joiner").await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_is_another_run_of_the_same_instance_and_no_failure() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    let (a, b) = (it.instance("a").await, it.pid_of("b").await);
    it.runtime.soil(&a.id);
    for fresh in [false, true] {
        it.after(1.0).await;
        let before = it.pid_of("a").await;
        it.ask_for("a", HandKind::Restart, fresh);
        let begun = it.clock();
        it.until("another process", |it| {
            let now = it.items[0].instance.as_ref().and_then(|it| it.pid);
            it.items[0].up_to_date && now.is_some_and(|now| now != before)
        })
        .await;
        assert!(it.clock() - begun <= 1500);
        it.after(120.0).await;
        let now = it.instance("a").await;
        assert_eq!(now.id, a.id);
        assert_eq!(it.runtime.is_soiled(&a.id), !fresh);
        assert_eq!(now.run.unwrap().n, if fresh { 1 } else { 2 });
        assert_eq!(it.asked(), [""; 0]);
        assert!(it.look().await.strikes.is_empty() && it.plan().await.is_empty());
    }
    assert_eq!(it.starts("a").len(), 3, "once each");
    assert_eq!(it.pid_of("b").await, b);
}

#[tokio::test(start_paused = true)]
async fn nothing_running_is_restarted_before_it_can_start_again() {
    let mut it = Harness::with(&[
        ("donor", r#""ipcMode": "shareable""#),
        ("joiner", r#""ipcMode": "container:donor""#),
        ("a", ""),
    ])
    .await;
    it.after(20.0).await;
    let pids = it.pids().await;
    it.ask("donor", HandKind::Stop);
    it.until_reason("donor", "stopped-by-hand").await;
    // It could not join anybody.
    it.ask("joiner", HandKind::Restart);
    it.until_reason("joiner", "waiting-for-donor").await;
    it.runtime.remove_image("docker.io/library/busybox:latest");
    it.ask_for("a", HandKind::Restart, true);
    it.until_reason("a", "image-missing").await;
    it.after(60.0).await;
    let now = it.pids().await;
    assert_eq!((now["joiner"], now["a"]), (pids["joiner"], pids["a"]));
    it.runtime.add_image(image("docker.io/library/busybox:latest", ImagePlace::Store));
    it.ask("donor", HandKind::Start);
    for workload in ["donor", "joiner", "a"] {
        it.until_running(workload).await;
    }
    it.after(60.0).await;
    assert!(it.pids().await.iter().all(|(name, pid)| pids[name] != *pid));
    assert_eq!(it.asked(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_ended_runs_once_more_when_it_is_restarted() {
    for code in [0, 3] {
        let mut it = Harness::new();
        it.exit_on_start("job", Some(code));
        it.want("job", NEVER);
        it.run();
        let phase = if code == 0 { Phase::Completed } else { Phase::Failed };
        it.until("it has ended", |it| it.items[0].phase == phase).await;
        it.after(5.0).await;
        it.ask("job", HandKind::Retry);
        it.after(60.0).await;
        let runs = if code == 0 { 1 } else { 2 };
        assert_eq!(it.starts("job").len(), runs, "only a failure is tried again");
        it.ask("job", HandKind::Restart);
        it.after(60.0).await;
        assert_eq!(it.starts("job").len(), runs + 1);
        assert_eq!((it.item("job").phase, it.asked()), (phase, vec![]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_forgets_failures_once_and_tries_at_once() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.exit_on_start("a", Some(1));
    it.exit("a", 1).await;
    it.after(300.0).await;
    let before = it.starts("a").len();
    assert!(it.look().await.strikes[&name("a")].count > 8);
    let begun = it.clock();
    it.ask("a", HandKind::Retry);
    it.after(10.0).await;
    let starts = it.starts("a");
    let waits: Vec<u64> = starts[before..].windows(2).map(|it| it[1] - it[0]).collect();
    assert!(starts[before] - begun <= 1050, "{starts:?}");
    // 100 ms doubled, each with a moment until it is seen.
    assert!(waits.len() >= 5 && waits[0] < 200 && waits[4] >= 1600, "{waits:?}");
    assert_eq!(it.asked(), [""; 0]);
    it.exit_on_start("a", None);
    it.ask("a", HandKind::Retry);
    it.until_running("a").await;
    assert!(it.look().await.strikes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_retry_of_what_has_used_up_its_retries_is_one_more_try() {
    let mut it = Harness::new();
    it.exit_on_start("a", Some(1));
    it.want("a", r#""restart": {"policy": "on-failure", "maxRetries": 2}"#);
    it.run();
    it.after(600.0).await;
    assert_eq!((it.starts("a").len(), it.item("a").phase), (3, Phase::Failed));
    for tries in [4, 5] {
        let begun = it.clock();
        it.ask("a", HandKind::Retry);
        it.after(600.0).await;
        let starts = it.starts("a");
        assert_eq!(starts.len(), tries, "once, and not so many times once more");
        assert!(starts[tries - 1] - begun <= 1100, "{starts:?}");
        assert_eq!((it.item("a").phase, it.asked()), (Phase::Failed, vec![]));
    }
    it.exit_on_start("a", None);
    it.ask("a", HandKind::Retry);
    it.until_running("a").await;
    // What fails after that has no tries left, as before.
    it.after(60.0).await;
    it.exit("a", 1).await;
    it.after(600.0).await;
    assert_eq!((it.starts("a").len(), it.item("a").phase), (6, Phase::Failed));
}

#[tokio::test(start_paused = true)]
async fn a_retry_does_not_wait_for_steps_that_failed() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.kill().await;
    it.want("b", "");
    let id = InstanceId::new(&name("b"), &it.revision("b"));
    it.runtime.add_foreign(&id);
    it.run();
    it.after(300.0).await;
    it.calls();
    it.ask("b", HandKind::Retry);
    it.after(1.5).await;
    assert!(it.calls().contains(&"make lease evenkeel-b".to_owned()));
    it.after(1.5).await;
    assert_eq!(it.asked(), ["Retry b"], "it was not tried yet");
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_is_what_came_of_a_restart() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.runtime.fail_next(verb::START_TASK, ErrorKind::Refused);
    it.ask("a", HandKind::Restart);
    it.after(2.0).await;
    assert_eq!(it.asked(), [""; 0]);
    it.until_running("a").await;
    assert_eq!(it.look().await.strikes[&name("a")].count, 1);
    it.after(100.0).await;
    assert_eq!(it.starts("a").len(), 3, "the first one, the failed one, and one after its delay");
}

#[tokio::test(start_paused = true)]
async fn a_held_workload_can_be_stopped_and_started() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.want_invalid("a");
    it.until_reason("a", "manifest-invalid").await;
    it.ask("a", HandKind::Stop);
    it.until("it has stopped", |it| it.items[0].instance.as_ref().unwrap().pid.is_none()).await;
    it.idle().await;
    let item = it.item("a");
    assert_eq!((item.phase, item.reason.as_str()), (Phase::Held, "manifest-invalid"));
    assert!(item.message.contains("stopped by hand"), "{}", item.message);
    it.ask("a", HandKind::Start);
    it.until("it runs", |it| it.items[0].instance.as_ref().unwrap().pid.is_some()).await;
    let pid = it.pid_of("a").await;
    it.after(5.0).await;
    it.ask("a", HandKind::Restart);
    it.after(60.0).await;
    assert_ne!(it.pid_of("a").await, pid);
    assert_eq!(it.asked(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn the_newest_wish_counts_and_one_that_means_nobody_is_swept() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    it.ask("a", HandKind::Restart);
    it.ask("a", HandKind::Stop);
    it.ask("nobody", HandKind::Stop);
    it.until_reason("a", "stopped-by-hand").await;
    it.after(60.0).await;
    assert_eq!((it.running().await, it.asked()), (vec!["b".to_owned()], vec!["Stop a".to_owned()]));
    it.ask("a", HandKind::Restart);
    it.until_running("a").await;
    // What goes takes its wish along, and so does what is not to run.
    it.ask("a", HandKind::Stop);
    it.until_reason("a", "stopped-by-hand").await;
    it.remove("a");
    it.until_gone("a").await;
    it.want("b", r#""state": "stopped""#);
    it.until("b stops", |it| it.items[0].phase == Phase::Stopped).await;
    it.ask("b", HandKind::Restart);
    it.after(60.0).await;
    assert_eq!(it.asked(), [""; 0]);
    assert!(it.running().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_of_what_cannot_be_read_now_is_kept() {
    let mut it = Harness::new();
    it.want("a", r#""image": "nowhere:1""#);
    it.run();
    it.until_reason("a", "image-missing").await;
    it.ask("a", HandKind::Stop);
    it.until_reason("a", "stopped-by-hand").await;
    let home = it.wanted.sources.get_mut(&source()).unwrap();
    home.blockers.push(crate::desired::Blocker {
        code: "file-unreadable",
        path: "/manifests/a.yaml".into(),
        message: String::new(),
        since: BootTime::default(),
    });
    it.remove("a");
    it.after(60.0).await;
    assert_eq!(it.asked(), ["Stop a"]);
}

#[tokio::test(start_paused = true)]
async fn a_broken_wish_is_said_and_stops_nothing() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    let pids = it.pids().await;
    let directory = it.run_directory().path().join("hands");
    std::fs::create_dir_all(directory.join("b.json")).unwrap();
    for text in
        ["", "{", "[]", r#"{"kind": "explode", "at": {"secs": 1, "nanos": 0}, "bootId": ""}"#]
    {
        std::fs::write(directory.join("a.json"), text).unwrap();
        it.after(2.0).await;
        it.until("it is said", |it| it.problems.len() == 2).await;
        let problem = &it.status().problems[0];
        assert!(problem.file.ends_with("hands/a.json") && problem.code == "wish-unreadable");
    }
    std::fs::write(directory.join("No Name.json"), "").unwrap();
    it.until("it is said", |it| it.problems.len() == 3).await;
    assert_eq!(it.pids().await, pids);
    assert!(it.plan().await.is_empty());
    it.run_directory().remove_hand(&name("a")).unwrap();
    it.until("it is forgotten", |it| it.problems.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_command_does_what_was_asked_of_its_workloads_and_touches_no_others() {
    let mut it = Harness::with(&[("a", ""), ("b", ""), ("c", "")]).await;
    let pids = it.pids().await;
    it.kill().await;
    it.want("b", r#""args": ["x"]"#);
    it.want("new", "");
    it.ask("a", HandKind::Stop);
    it.ask("c", HandKind::Restart);
    let goal = Goal::Hands { names: [name("a"), name("c")].into() };
    assert_eq!(it.once(goal.clone()).await, Ended::Converged);
    let now = it.pids().await;
    assert_eq!(now.keys().collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(now["b"], pids["b"]);
    assert_ne!(now["c"], pids["c"]);
    assert_eq!(it.asked(), ["Stop a"]);
    it.exit_on_start("c", Some(1));
    it.ask("c", HandKind::Restart);
    assert_eq!(it.once(goal).await, Ended::NotConverged);
}

#[tokio::test(start_paused = true)]
async fn what_no_manifest_names_is_taken_down_when_a_person_says_so() {
    let mut it = Harness::with(&[
        ("a", ""),
        ("donor", r#""ipcMode": "shareable""#),
        ("joiner", r#""ipcMode": "container:donor""#),
    ])
    .await;
    it.after(20.0).await;
    let other = Source::new(std::path::Path::new("/"), std::path::Path::new("/other"));
    it.wanted.sources = [(other, believable())].into();
    it.wanted.workloads.remove(&name("a"));
    it.wanted.workloads.remove(&name("donor"));
    it.publish();
    it.until_reason("a", "unclaimed").await;
    it.ask("a", HandKind::Down);
    it.ask("donor", HandKind::Down);
    it.ask("joiner", HandKind::Down);
    it.until_gone("a").await;
    it.after(120.0).await;
    assert_eq!(it.running().await, ["donor", "joiner"], "it is in use, and the other is wanted");
    assert_eq!(it.item("donor").reason, "donor-in-use");
    assert_eq!(it.asked(), ["Down donor"]);
    it.wanted.workloads.remove(&name("joiner"));
    it.publish();
    it.ask("joiner", HandKind::Down);
    it.until_gone("donor").await;
    it.idle().await;
    assert_eq!((it.running().await.len(), it.asked().len()), (0, 0));
}
