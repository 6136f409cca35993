//! Runs that end: delays, strikes, policies, and what survives of them.

use super::*;

/// Docker's list.
const DELAYS: [u64; 12] = [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000];

fn assert_delays(starts: &[u64], expected: &[u64]) {
    let between: Vec<u64> = starts.windows(2).map(|it| it[1] - it[0]).collect();
    assert_eq!(between, expected);
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_started_after_the_delays_of_docker() {
    let mut it = Harness::new();
    it.exit_on_start("a", Some(1));
    it.want("a", "");
    it.run();
    it.after(350.0).await;
    let starts = it.starts("a");
    assert_delays(&starts[..13], &DELAYS);
    it.until("it says so", |it| it.items[0].phase == Phase::BackingOff).await;
    let item = it.item("a");
    assert_eq!((item.reason.as_str(), item.last_exit.unwrap().code), ("exited", 1));
    assert!(item.next_retry_at.is_some());
}

#[tokio::test(start_paused = true)]
async fn the_delays_go_on_after_a_restart_of_the_controller() {
    let mut it = Harness::new();
    it.exit_on_start("a", Some(1));
    it.want("a", "");
    it.run();
    for _ in 0..8 {
        it.kill().await;
        it.run();
        it.after(0.9).await;
    }
    assert_delays(&it.starts("a"), &DELAYS[..6]);
}

#[tokio::test(start_paused = true)]
async fn no_strike_is_lost_or_counted_twice_when_noting_an_end_is_cut_off() {
    // The effects of a start and of noting its end; the controller dies after each of them once.
    for effects in 1..=4 {
        let mut it = Harness::new();
        it.exit_on_start("a", Some(1));
        it.want("a", "");
        it.run();
        // The fifth start is due after 1.5 s.
        it.after(1.4).await;
        it.exit_on_start("a", None);
        it.until_running("a").await;
        it.kill().await;
        let ended = it.clock();
        it.exit("a", 1).await;
        it.exit_on_start("a", Some(1));
        let crash = Crash::after(effects);
        it.run_on(it.edge().with_crash(Arc::clone(&crash)));
        it.after(0.3).await;
        it.kill().await;
        it.run();
        it.after(6.0).await;
        let starts = it.starts("a");
        let next: Vec<u64> = starts.iter().filter(|it| **it > ended).map(|it| it - ended).collect();
        let made = crash.passed();
        assert!((1600..2000).contains(&next[0]), "{made:?}: {next:?}");
        assert!((3200..3300).contains(&(next[1] - next[0])), "{made:?}: {next:?}");
    }
    let mut it = Harness::new();
    it.exit_on_start("a", Some(1));
    it.runtime.fail_next(verb::DELETE_TASK, ErrorKind::Unreachable);
    it.want("a", "");
    it.run();
    it.after(6.0).await;
    let starts = it.starts("a");
    assert!(starts[1] - starts[0] >= 100, "{starts:?}");
    assert_delays(&starts[1..6], &DELAYS[1..5]);
}

#[tokio::test(start_paused = true)]
async fn a_run_of_ten_seconds_starts_the_delays_anew() {
    let mut it = Harness::new();
    it.exit_on_start("a", Some(1));
    it.want("a", "");
    it.run();
    // Just before the start after 6.4 s.
    it.after(12.5).await;
    it.exit_on_start("a", None);
    it.until_running("a").await;
    let started = *it.starts("a").last().unwrap();
    it.after(10.0).await;
    let ended = it.clock();
    it.exit_on_start("a", Some(1));
    it.exit("a", 1).await;
    it.after(3.0).await;
    let starts = it.starts("a");
    let anew = starts.iter().position(|it| *it > started).unwrap();
    let first = starts[anew] - ended;
    // Nobody tells when a process ends by itself: hints are gathered for a moment.
    assert!((100..130).contains(&first), "{first}");
    assert_delays(&starts[anew..], &DELAYS[1..4]);
    // A shorter one does not.
    let mut it = Harness::new();
    it.exit_on_start("a", Some(1));
    it.want("a", "");
    it.run();
    it.after(12.5).await;
    it.exit_on_start("a", None);
    it.until_running("a").await;
    it.after(9.0).await;
    let ended = it.clock();
    it.exit("a", 1).await;
    it.after(20.0).await;
    let again = *it.starts("a").last().unwrap() - ended;
    assert!((12_800..12_830).contains(&again), "{again}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_is_a_failed_run_and_takes_back_what_it_made() {
    let mut it = Harness::new();
    it.want("a", r#""ipcMode": "shareable", "restart": {"backoff": {"initial": "10ms"}}"#);
    for _ in 0..4 {
        it.runtime.fail_next(verb::START_TASK, ErrorKind::Refused);
    }
    it.run();
    it.until("it says so", |it| it.items.iter().any(|it| it.phase == Phase::BackingOff)).await;
    let item = it.item("a");
    assert_eq!(item.reason, "start-failed");
    let failure = item.start_failure.unwrap();
    assert_eq!((failure.code, failure.reason.as_str()), (128, "start-failed"));
    assert!(failure.message.contains("a test wants it"), "{failure:?}");
    let left = it.instance("a").await;
    assert_eq!((left.task, left.published), (Task::None, crate::observed::Published::default()));
    it.until_running("a").await;
    // Its own first delay, not a default one.
    assert_delays(&it.starts("a"), &[10, 20, 40, 80]);
    it.idle().await;
    assert_eq!(it.item("a").start_failure, None, "it is over");
}

#[tokio::test(start_paused = true)]
async fn each_step_of_a_start_that_fails_is_taken_back() {
    for operation in [verb::CREATE_TASK, verb::UPDATE, verb::START_TASK] {
        let mut it = Harness::new();
        it.want("a", r#""ipcMode": "shareable", "restart": {"policy": "never"}"#);
        it.runtime.fail_next(operation, ErrorKind::Refused);
        it.run();
        it.until_reason("a", "start-failed").await;
        it.idle().await;
        assert_eq!(it.item("a").phase, Phase::Failed, "{operation}");
        let left = it.instance("a").await;
        assert_eq!(left.task, Task::None, "{operation}");
        assert!(!left.published.directory, "{operation}");
    }
    for verb in ["publish_shm", "publish_namespace"] {
        let mut it = Harness::new();
        it.want("a", r#""ipcMode": "shareable", "restart": {"policy": "never"}"#);
        it.host.fail_next(verb, std::io::ErrorKind::StorageFull);
        it.run();
        it.until_reason("a", "start-failed").await;
        it.idle().await;
        let left = it.instance("a").await;
        assert_eq!((left.task, left.published.directory), (Task::None, false), "{verb}");
        assert!(it.item("a").message.contains(verb), "{:?}", it.item("a"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_ended_is_not_run_again_by_any_restart() {
    let never = r#""restart": {"policy": "never"}"#;
    let on_failure = r#""restart": {"policy": "on-failure"}"#;
    let mut it = Harness::new();
    it.exit_on_start("good", Some(0));
    it.exit_on_start("bad", Some(3));
    it.exit_on_start("tried", Some(0));
    it.want("good", never);
    it.want("bad", never);
    it.want("tried", on_failure);
    it.run();
    it.idle().await;
    for restart in 0..4 {
        for (workload, phase, code) in [
            ("good", Phase::Completed, 0),
            ("bad", Phase::Failed, 3),
            ("tried", Phase::Completed, 0),
        ] {
            let item = it.item(workload);
            assert_eq!((item.phase, item.last_exit.unwrap().code), (phase, code), "{workload}");
            assert_eq!(it.starts(workload).len(), 1, "{workload}");
        }
        assert!(it.plan().await.is_empty());
        it.kill().await;
        if restart > 0 {
            it.runtime.forget_tasks();
        }
        if restart > 1 {
            it.runtime.reboot();
            it.host.reboot();
        }
        it.run();
        it.after(40.0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_exit_that_nobody_saw_is_never_one_that_did_not_happen() {
    let mut it = Harness::with(&[
        ("never", r#""restart": {"policy": "never"}"#),
        ("failing", r#""restart": {"policy": "on-failure"}"#),
        ("always", ""),
    ])
    .await;
    it.kill().await;
    for workload in ["never", "failing", "always"] {
        it.exit(workload, 0).await;
    }
    it.runtime.forget_tasks();
    it.run();
    it.until_running("always").await;
    it.until_running("failing").await;
    let item = it.item("never");
    assert_eq!((item.phase, item.reason.as_str()), (Phase::Failed, "exit-unknown"));
    assert_eq!(item.last_exit.unwrap().reason, "exit-unknown");
    it.after(100.0).await;
    assert_eq!(it.running().await, ["always", "failing"]);
    assert_eq!(it.look().await.strikes[&name("always")].count, 1, "it counts as a failure");
}

#[tokio::test(start_paused = true)]
async fn only_so_many_retries_are_made() {
    let mut it = Harness::new();
    it.exit_on_start("a", Some(1));
    it.want("a", r#""restart": {"policy": "on-failure", "maxRetries": 3}"#);
    it.run();
    it.after(600.0).await;
    assert_eq!(it.starts("a").len(), 4);
    assert_eq!(it.item("a").phase, Phase::Failed);
    // An edit is another matter.
    it.want("a", r#""args": ["x"], "restart": {"policy": "on-failure", "maxRetries": 3}"#);
    it.after(600.0).await;
    assert_eq!(it.starts("a").len(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_job_for_each_boot_runs_once_after_each_boot() {
    let mut it = Harness::new();
    it.exit_on_start("a", Some(0));
    it.want("a", r#""restart": {"policy": "never", "onBoot": true}"#);
    it.run();
    it.idle().await;
    for boots in 1..4 {
        assert_eq!(it.starts("a").len(), boots);
        it.kill().await;
        it.run();
        it.after(100.0).await;
        assert_eq!(it.starts("a").len(), boots, "a restart of the controller is no boot");
        it.kill().await;
        it.runtime.reboot();
        it.host.reboot();
        it.run();
        it.idle().await;
    }
    assert_eq!(it.item("a").phase, Phase::Completed);
}

#[tokio::test(start_paused = true)]
async fn after_a_boot_everything_starts_and_invalid_manifests_count_as_last_applied() {
    let mut it = Harness::with(&[
        ("a", ""),
        ("donor", r#""ipcMode": "shareable""#),
        ("joiner", r#""ipcMode": "container:donor""#),
    ])
    .await;
    it.want_invalid("a");
    it.want_invalid("joiner");
    it.want_invalid("new");
    it.until_reason("a", "manifest-invalid").await;
    assert_eq!(it.running().await, ["a", "donor", "joiner"]);
    it.kill().await;
    it.runtime.reboot();
    it.host.reboot();
    it.run();
    it.until_reason("a", "manifest-invalid").await;
    it.idle().await;
    assert_eq!(it.running().await, ["a", "donor", "joiner"]);
    assert_eq!(it.item("a").phase, Phase::Held);
    assert_eq!(it.item("new").phase, Phase::Invalid);
    let observed = it.look().await;
    let view = |workload: &str| {
        observed.instances.values().find(|it| it.name.as_str() == workload).unwrap().view
    };
    assert_eq!(view("joiner").unwrap().ipc_ns, view("donor").unwrap().ipc_ns);
}

#[tokio::test(start_paused = true)]
async fn an_edit_starts_a_crash_loop_without_a_delay() {
    let mut it = Harness::new();
    it.exit_on_start("a", Some(1));
    it.want("a", "");
    it.run();
    it.after(100.0).await;
    it.exit_on_start("a", None);
    let edited = it.clock();
    it.want("a", r#""args": ["x"]"#);
    it.until_running("a").await;
    assert!(it.clock() - edited < 100);
}

#[tokio::test(start_paused = true)]
async fn an_edit_to_what_cannot_start_leaves_what_runs_and_says_why() {
    for (spec, reason) in [
        (r#""image": "nowhere:1""#, "image-missing"),
        (
            r#""mounts": [{"type": "bind", "source": "/nowhere", "target": "/x"}]"#,
            "mount-source-missing",
        ),
        (r#""ipcMode": "container:donor""#, "waiting-for-donor"),
    ] {
        let mut it = Harness::with(&[("a", "")]).await;
        let pid = it.pid_of("a").await;
        it.want("a", spec);
        it.until_reason("a", reason).await;
        it.after(100.0).await;
        assert_eq!(it.pid_of("a").await, pid, "{reason}");
        assert!(!it.item("a").up_to_date);
        it.runtime.add_image(image("docker.io/library/nowhere:1", ImagePlace::Store));
        it.host
            .set_path(std::path::Path::new("/nowhere"), Some(crate::observed::FileKind::Directory));
        it.want("donor", r#""ipcMode": "shareable""#);
        it.until_running("a").await;
        assert_ne!(it.pid_of("a").await, pid, "{reason}");
    }
}
