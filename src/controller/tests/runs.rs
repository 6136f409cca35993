//! Runs that end: delays, strikes, policies, and what survives of them.

use super::*;
use crate::backoff::Delays;
use crate::workload::RestartPolicy;

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

/// Who waits for the end of a job reads its code, and finds nothing of it in the way.
#[tokio::test(start_paused = true)]
async fn an_end_is_told_once_everything_of_the_run_is_cleaned_up() {
    const JOB: &str = r#""ipcMode": "shareable", "restart": {"policy": "never"}"#;
    for (code, phase) in [(0, Phase::Completed), (3, Phase::Failed)] {
        let mut it = Harness::with(&[("a", JOB)]).await;
        it.kill().await;
        it.exit("a", code).await;
        // It does not get further than to write down the end.
        let crash = Crash::after(2);
        it.run_on(it.edge().with_crash(Arc::clone(&crash)));
        it.after(5.0).await;
        assert_eq!(crash.passed(), ["finish/strikes", "finish/end"]);
        let item = it.item("a");
        assert_eq!((item.phase, item.up_to_date), (Phase::Stopping, false));
        it.kill().await;
        it.run();
        it.until("it has ended", |it| it.items[0].phase == phase).await;
        let item = it.item("a");
        assert_eq!((item.last_exit.unwrap().code, item.up_to_date), (code, true));
        assert_eq!(it.host.observe(&Ask::default()).unwrap().published.len(), 0);
        assert_eq!(it.instance("a").await.task, crate::observed::Task::None);
    }
}

/// Nobody looked for a while: the run has not lasted longer for that.
#[tokio::test(start_paused = true)]
async fn a_short_run_is_short_however_late_its_end_is_noticed() {
    let mut it = Harness::new();
    it.exit_on_start("a", Some(1));
    it.want("a", "");
    it.run();
    // Just before the start after 6.4 s.
    it.after(12.5).await;
    let count = it.look().await.strikes[&name("a")].count;
    it.exit_on_start("a", None);
    it.until_running("a").await;
    it.kill().await;
    it.after(0.2).await;
    it.exit("a", 1).await;
    it.after(60.0).await;
    it.run();
    it.until("it is noticed", |it| it.items[0].phase == Phase::BackingOff).await;
    it.idle().await;
    assert_eq!(it.look().await.strikes[&name("a")].count, count + 1);
    let lasted = it.instance("a").await.end.unwrap().lasted_ms;
    assert!((100..1000).contains(&lasted), "{lasted}");
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

/// How long after its end a program starts again that has failed three times and has now run for so long.
async fn delay_after(spec: &str, configured: impl FnOnce(&mut Policy), lasted: u64) -> u64 {
    let mut it = Harness::new();
    it.configure(configured);
    it.exit_on_start("a", Some(1));
    it.want("a", spec);
    it.run();
    while it.starts("a").len() < 3 {
        it.after(0.01).await;
    }
    it.exit_on_start("a", None);
    it.until_running("a").await;
    let run = it.instance("a").await.run.unwrap().at;
    let ran = it.host.now().since(run);
    tokio::time::sleep(Duration::from_millis(lasted).saturating_sub(ran)).await;
    it.exit("a", 1).await;
    let (ended, before) = (it.clock(), it.starts("a").len());
    while it.starts("a").len() == before {
        it.after(0.01).await;
    }
    it.starts("a").last().unwrap() - ended
}

#[tokio::test(start_paused = true)]
async fn a_run_is_long_from_exactly_reset_after_on() {
    let own = |text: &str| format!(r#""restart": {{"backoff": {{"resetAfter": "{text}"}}}}"#);
    let none = |_: &mut Policy| {};
    let two = |it: &mut Policy| it.delays.reset_after = Duration::from_secs(2);
    // After three failures the fourth delay is 800 ms, and the first is 100 ms.
    for (spec, configured, lasted, expected) in [
        (String::new(), none as fn(&mut Policy), 9_999, 800),
        (String::new(), none, 10_000, 100),
        (String::new(), two, 1_999, 800),
        (String::new(), two, 2_000, 100),
        (own("3s"), two, 2_999, 800),
        (own("3s"), two, 3_000, 100),
    ] {
        let delay = delay_after(&spec, configured, lasted).await;
        let place = format!("{spec} after {lasted} ms: {delay}");
        assert!((expected..expected + 40).contains(&delay), "{place}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_configurations_delays_and_policy_are_for_manifests_that_leave_them_out() {
    let configured = |it: &mut Harness| {
        it.configure(|it| {
            it.delays = Delays {
                initial: Duration::from_secs(1),
                factor: 3,
                max: Duration::from_secs(20),
                reset_after: Duration::from_secs(30),
            };
        });
    };
    let mut it = Harness::new();
    configured(&mut it);
    it.exit_on_start("a", Some(1));
    it.exit_on_start("own", Some(1));
    it.want("a", "");
    it.want("own", r#""restart": {"backoff": {"initial": "2s", "factor": 2, "max": "5s"}}"#);
    it.run();
    it.after(90.0).await;
    assert_delays(&it.starts("a")[..6], &[1000, 3000, 9000, 20_000, 20_000]);
    assert_delays(&it.starts("own")[..5], &[2000, 4000, 5000, 5000]);
    // What it says from now on counts at once.
    it.configure(|it| it.restart = RestartPolicy::Never);
    it.until("it has failed", |it| it.items[0].phase == Phase::Failed).await;
    let starts = it.starts("a").len();
    it.after(600.0).await;
    assert_eq!(it.starts("a").len(), starts);
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
        // The run directory is memory.
        std::fs::remove_dir_all(it.directory.path().join("run")).unwrap();
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
async fn an_edit_in_place_is_tried_at_once_and_its_delays_begin_anew() {
    let edits = [
        (r#""log": {"maxSize": "64Ki"}"#, [100, 200]),
        (r#""stop": {"timeout": "1s"}"#, [100, 200]),
        (r#""restart": {"policy": "on-failure"}"#, [100, 200]),
        (r#""restart": {"backoff": {"initial": "2s", "factor": 3}}"#, [2000, 6000]),
    ];
    for (spec, delays) in edits {
        for is_start_that_fails in [false, true] {
            let mut it = Harness::new();
            it.exit_on_start("a", Some(1));
            it.want("a", "");
            it.run();
            it.after(60.0).await;
            if is_start_that_fails {
                it.runtime.fail_next(verb::CREATE_TASK, ErrorKind::Refused);
            }
            // The next try is after 102 s, and the one after it after 162.
            it.after(50.0).await;
            it.until("it waits", |it| it.items[0].phase == Phase::BackingOff).await;
            let is_failed = it.item("a").start_failure.is_some();
            assert_eq!(is_failed, is_start_that_fails);
            let id = it.id_of("a").await;
            let edited = it.clock();
            it.want("a", spec);
            it.after(30.0).await;
            assert_eq!(it.id_of("a").await, id, "{spec} is in place");
            let starts = it.starts("a");
            let since: Vec<u64> = starts.into_iter().filter(|it| *it >= edited).collect();
            assert!(since[0] - edited < 100, "{spec}: {edited} {since:?}");
            assert_delays(&since[..3], &delays);
        }
    }
}

/// What has run to its end stays there unless the policy says something else now.
#[tokio::test(start_paused = true)]
async fn an_edit_in_place_goes_by_the_new_policy() {
    let never = r#""restart": {"policy": "never"}"#;
    let twice = r#""restart": {"policy": "on-failure", "maxRetries": 1}"#;
    let often = r#""restart": {"policy": "on-failure", "maxRetries": 50}"#;
    let (always, log) = ("", r#", "log": {"maxFiles": 7}"#);
    for (before, code, edit, phase, runs_again) in [
        (never, 0, format!("{never}{log}"), Phase::Completed, false),
        (never, 1, format!("{never}{log}"), Phase::Failed, false),
        (never, 1, always.to_owned(), Phase::BackingOff, true),
        (never, 0, always.to_owned(), Phase::BackingOff, true),
        (twice, 1, format!("{twice}{log}"), Phase::Failed, false),
        (twice, 1, often.to_owned(), Phase::BackingOff, true),
        (always, 1, never.to_owned(), Phase::Failed, false),
        (always, 0, never.to_owned(), Phase::Completed, false),
    ] {
        let mut it = Harness::new();
        it.exit_on_start("a", Some(code));
        it.want("a", before);
        it.run();
        it.after(60.0).await;
        let edited = it.clock();
        it.want("a", &edit);
        it.after(2.0).await;
        let row = format!("{before} {code} → {edit}");
        assert_eq!(it.item("a").phase, phase, "{row}");
        let again = it.starts("a").into_iter().any(|it| it >= edited);
        assert_eq!(again, runs_again, "{row}");
    }
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

#[tokio::test(start_paused = true)]
async fn d16_a_failed_start_and_the_last_exit_are_told_side_by_side() {
    let mut it = Harness::new();
    it.want(
        "a",
        r#""restart": {"policy": "on-failure", "maxRetries": 1, "backoff": {"initial": "1s"}}"#,
    );
    it.run();
    it.until_running("a").await;
    it.runtime.fail_next(verb::CREATE_TASK, ErrorKind::Refused);
    it.exit("a", 3).await;
    it.until("both are told", |it| it.items[0].phase == Phase::Failed).await;
    it.idle().await;
    let item = it.item("a");
    let exit = item.last_exit.unwrap();
    assert_eq!((exit.code, exit.reason.as_str()), (3, "exited"));
    let failure = item.start_failure.unwrap();
    assert_eq!((failure.code, failure.reason.as_str()), (128, "start-failed"));
    assert!(!failure.advice.is_empty());
    // What is kept on the container says both after a reboot, when the strikes are gone.
    let end = it.instance("a").await.end.unwrap();
    assert_eq!((end.code, end.reason.as_str(), end.failures), (128, "start-failed", 2));
    // A start that fails first of all hides no code that was never there.
    let mut it = Harness::new();
    it.runtime.fail_next(verb::CREATE_TASK, ErrorKind::Refused);
    it.want("a", r#""restart": {"policy": "never"}"#);
    it.run();
    it.until_reason("a", "start-failed").await;
    it.idle().await;
    let item = it.item("a");
    assert_eq!((item.phase, item.last_exit), (Phase::Failed, None));
    assert_eq!(item.start_failure.unwrap().code, 128);
}

#[tokio::test(start_paused = true)]
async fn a_reboot_resets_the_delays() {
    let mut it = Harness::new();
    it.exit_on_start("a", Some(1));
    it.want("a", "");
    it.run();
    it.after(20.0).await;
    it.kill().await;
    assert!(it.look().await.strikes[&name("a")].count > 5);
    it.runtime.reboot();
    it.host.reboot();
    // The run directory is memory.
    std::fs::remove_dir_all(it.directory.path().join("run")).unwrap();
    let before = it.starts("a").len();
    it.run();
    it.after(2.0).await;
    let starts = it.starts("a");
    assert_delays(&starts[before..before + 4], &DELAYS[..3]);
}

#[tokio::test(start_paused = true)]
async fn only_failures_of_the_program_use_up_its_retries() {
    let spec =
        r#""ipcMode": "container:donor", "restart": {"policy": "on-failure", "maxRetries": 2}"#;
    let mut it = Harness::with(&[("donor", r#""ipcMode": "shareable""#), ("a", spec)]).await;
    for n in 0..3 {
        // Each time the donor is another one.
        it.after(20.0).await;
        let before = it.pid_of("a").await;
        it.want("donor", &format!(r#""ipcMode": "shareable", "args": ["{n}"]"#));
        it.after(20.0).await;
        it.until_running("a").await;
        assert_ne!(it.pid_of("a").await, before);
    }
    for _ in 0..3 {
        it.kill().await;
        it.runtime.reboot();
        it.host.reboot();
        it.run();
        it.until_running("a").await;
    }
    for _ in 0..3 {
        // Stopped on purpose, and started again.
        it.want("a", &format!(r#"{spec}, "state": "stopped""#));
        it.until("it stands", |it| {
            it.items.iter().any(|it| it.name == "a" && it.phase == Phase::Stopped)
        })
        .await;
        it.idle().await;
        it.want("a", spec);
        it.until_running("a").await;
    }
    let end = it.instance("a").await.end.unwrap();
    assert_eq!(end.failures, 0, "{end:?}");
    for _ in 0..2 {
        it.exit("a", 1).await;
        it.after(30.0).await;
        it.until_running("a").await;
    }
    it.exit("a", 1).await;
    it.after(100.0).await;
    assert_eq!(it.item("a").phase, Phase::Failed);
    assert_eq!(it.instance("a").await.end.unwrap().failures, 3);
}

#[tokio::test(start_paused = true)]
async fn a_hint_of_an_older_run_changes_nothing() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.exit("a", 1).await;
    it.until_running("a").await;
    it.after(1.0).await;
    let (pid, before) = (it.pid_of("a").await, it.instance("a").await);
    it.calls();
    for _ in 0..5 {
        // All that an event is, whatever run it tells of.
        it.runtime.hint();
        it.after(1.0).await;
    }
    assert_eq!(it.calls(), Vec::<String>::new());
    let after = it.instance("a").await;
    assert_eq!((it.pid_of("a").await, after), (pid, before));
}

const JOB: &str = r#""ipcMode": "shareable", "removeOnExit": true, "restart": "#;

/// What is left of an instance: its object with its end, and nothing else.
async fn assert_cleared(it: &Harness, reason: &str, code: u32) {
    let left = it.instance("a").await;
    let end = left.end.unwrap();
    assert_eq!((end.reason.as_str(), end.code), (reason, code));
    assert_eq!(
        (left.task, left.has_snapshot, left.published.directory),
        (Task::None, false, false)
    );
    assert!(directories(&it.log_directory()).is_empty());
    assert!(it.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_removed_on_exit_still_says_how_it_ended_and_does_not_run_again() {
    for (policy, code, phase) in [
        (r#"{"policy": "never"}"#, 0, Phase::Completed),
        (r#"{"policy": "never"}"#, 4, Phase::Failed),
        (r#"{"policy": "on-failure", "maxRetries": 2}"#, 0, Phase::Completed),
        (r#"{"policy": "on-failure", "maxRetries": 2}"#, 5, Phase::Failed),
    ] {
        let mut it = Harness::new();
        it.exit_on_start("a", Some(code));
        it.want("a", &format!("{JOB}{policy}"));
        let logs = it.log_directory().join(InstanceId::new(&name("a"), &it.revision("a")).as_str());
        std::fs::create_dir_all(logs).unwrap();
        it.run();
        it.after(5.0).await;
        assert_cleared(&it, "exited", code).await;
        let starts = it.starts("a").len();
        assert_eq!(starts, if phase == Phase::Failed && policy.contains("max") { 3 } else { 1 });
        for reboots in 0..3 {
            let item = it.item("a");
            assert_eq!((item.phase, item.last_exit.unwrap().code), (phase, code));
            assert_eq!(it.starts("a").len(), starts);
            it.kill().await;
            if reboots > 0 {
                it.runtime.reboot();
                it.host.reboot();
            }
            it.run();
            it.after(40.0).await;
        }
        // Another revision is another matter.
        it.want("a", &format!(r#"{JOB}{policy}, "args": ["x"]"#));
        it.after(5.0).await;
        assert!(it.starts("a").len() > starts);
        assert_cleared(&it, "exited", code).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_of_what_is_removed_on_exit_is_cleaned_up_and_told() {
    let mut it = Harness::new();
    it.runtime.fail_next(verb::START_TASK, ErrorKind::Refused);
    it.want("a", &format!(r#"{JOB}{{"policy": "never"}}"#));
    it.run();
    it.until_reason("a", "start-failed").await;
    it.idle().await;
    assert_cleared(&it, "start-failed", 128).await;
    let item = it.item("a");
    assert_eq!((item.phase, item.start_failure.unwrap().code), (Phase::Failed, 128));
    // After a reboot too, when only the container knows.
    it.kill().await;
    it.runtime.reboot();
    it.host.reboot();
    it.run_directory().set_strikes(&name("a"), None).unwrap();
    it.run();
    it.until("it is told again", |it| it.items.iter().any(|it| it.phase == Phase::Failed)).await;
    let failure = it.item("a").start_failure.unwrap();
    assert_eq!((failure.code, failure.reason.as_str()), (128, "start-failed"));
    assert!(!failure.advice.is_empty());
    assert_eq!(it.starts("a").len(), 1);
    // With `onBoot` it is made anew for each boot.
    let mut it = Harness::new();
    it.exit_on_start("a", Some(0));
    it.want("a", &format!(r#"{JOB}{{"policy": "never", "onBoot": true}}"#));
    for boots in 1..4 {
        it.run();
        it.after(5.0).await;
        assert_eq!(it.starts("a").len(), boots);
        assert_cleared(&it, "exited", 0).await;
        it.kill().await;
        it.runtime.reboot();
        it.host.reboot();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_removed_on_exit_and_stopped_by_hand_is_kept() {
    let mut it = Harness::with(&[("a", &format!(r#"{JOB}{{"policy": "never"}}"#))]).await;
    it.want("a", &format!(r#"{JOB}{{"policy": "never"}}, "state": "stopped""#));
    it.until("it stands", |it| it.items[0].phase == Phase::Stopped).await;
    it.idle().await;
    assert!(it.instance("a").await.has_snapshot);
}

#[tokio::test(start_paused = true)]
async fn no_failure_of_a_cleanup_stops_the_rest_of_it_and_all_are_told() {
    // After a run: the task cannot be deleted, and what it published goes all the same.
    let mut it = Harness::with(&[("a", r#""ipcMode": "shareable""#)]).await;
    it.runtime.fail_next(verb::DELETE_TASK, ErrorKind::Refused);
    it.exit_on_start("a", Some(1));
    it.exit("a", 1).await;
    it.after(0.09).await;
    let left = it.instance("a").await;
    assert!(!left.published.directory, "{left:?}");
    let end = left.end.unwrap();
    assert_eq!((end.code, end.failures), (1, 1));
    it.after(30.0).await;
    // It was tried again, and counted once.
    let starts = it.starts("a");
    assert_delays(&starts[1..5], &DELAYS[1..4]);
    let end = it.instance("a").await.end.unwrap();
    assert_eq!(u64::from(end.failures), end.n);

    // At a removal: neither object nor mounts go at first.
    let mut it = Harness::with(&[("a", r#""ipcMode": "shareable""#), ("b", "")]).await;
    let logs = it.log_directory().join(it.id_of("a").await.as_str());
    std::fs::create_dir_all(&logs).unwrap();
    it.runtime.fail_next(verb::REMOVE, ErrorKind::Refused);
    it.remove("a");
    it.until("a failure is told", |it| it.items.iter().any(|it| it.reason == "remove-failed"))
        .await;
    assert!(!logs.exists(), "the log went although the container did not");
    it.until_gone("a").await;
    it.idle().await;
    assert!(it.plan().await.is_empty());

    // After a failed start: both failures are in the message, the reason is that of the start.
    let mut it = Harness::new();
    it.want("a", r#""ipcMode": "shareable", "restart": {"policy": "never"}"#);
    it.runtime.fail_next(verb::START_TASK, ErrorKind::Refused);
    it.host.fail_next("unpublish", std::io::ErrorKind::ResourceBusy);
    it.run();
    it.until_reason("a", "start-failed").await;
    it.idle().await;
    let failure = it.item("a").start_failure.unwrap();
    assert!(
        failure.message.contains("start task") && failure.message.contains("unpublish"),
        "{failure:?}"
    );
    let left = it.instance("a").await;
    assert_eq!(
        (left.task, left.published.directory),
        (Task::None, false),
        "the next pass swept it"
    );

    // After the last run: what cannot be unmounted keeps nothing else, and is swept.
    let it = Harness::with(&[("a", &format!(r#"{JOB}{{"policy": "never"}}"#))]).await;
    it.host.fail_next("unpublish", std::io::ErrorKind::ResourceBusy);
    it.runtime.fail_next(verb::CLEAR, ErrorKind::Refused);
    it.exit("a", 0).await;
    it.after(10.0).await;
    assert_cleared(&it, "exited", 0).await;
}

/// The calls about one workload that change it.
fn changes(it: &mut Harness, workload: &str) -> Vec<String> {
    let calls = it.calls();
    let ours =
        calls.into_iter().filter_map(|it| Some(it.strip_suffix(workload)?.trim().to_owned()));
    ours.filter(|it| it != "wait for task").collect()
}

#[tokio::test(start_paused = true)]
async fn an_end_that_cannot_be_written_down_keeps_the_task_and_nothing_else() {
    // By itself: strikes are counted, /dev/shm goes, and the code waits with its task.
    let mut it =
        Harness::with(&[("a", r#""ipcMode": "shareable", "restart": {"policy": "never"}"#)]).await;
    it.kill().await;
    it.exit("a", 3).await;
    it.calls();
    it.runtime.fail_next(verb::UPDATE, ErrorKind::Refused);
    it.run();
    it.until_reason("a", "finish-failed").await;
    assert!(it.item("a").message.contains("update container"), "{:?}", it.item("a"));
    let left = it.instance("a").await;
    assert!(matches!(left.task, Task::Stopped { code: 3, .. }), "{left:?}");
    assert!(!left.published.directory, "{left:?}");
    it.until("it has failed", |it| it.items[0].phase == Phase::Failed).await;
    let left = it.instance("a").await;
    let end = left.end.unwrap();
    assert_eq!((end.code, end.reason.as_str(), left.task), (3, "exited", Task::None));

    // By us: the same, and the failure of the other link is told too.
    let deaf = r#""ipcMode": "shareable", "stop": {"timeout": "5s"}"#;
    let mut it = Harness::with(&[("a", deaf)]).await;
    it.runtime.ignore_signals(&it.id_of("a").await);
    it.want("a", &format!(r#"{deaf}, "state": "stopped""#));
    // The note before the signal is written.
    it.after(1.0).await;
    it.calls();
    it.runtime.fail_next(verb::UPDATE, ErrorKind::Refused);
    it.host.fail_next("unpublish", std::io::ErrorKind::ResourceBusy);
    it.until_reason("a", "stop-failed").await;
    let message = it.item("a").message;
    assert!(message.contains("update container") && message.contains("unpublish"), "{message}");
    assert_eq!(changes(&mut it, "a"), ["signal task", "update container"]);
    it.until("it is stopped", |it| it.items[0].phase == Phase::Stopped).await;
    it.idle().await;
    let left = it.instance("a").await;
    assert_eq!((left.end.unwrap().reason.as_str(), left.task), ("stopped", Task::None));
    assert!(!left.published.directory);
    assert!(it.plan().await.is_empty());
}

/// The delay counts from the moment at which the end is written down: before that each look would find it as far away as
/// the last one did, and look again when it is over.
#[tokio::test(start_paused = true)]
async fn an_end_that_cannot_be_written_down_for_long_is_not_looked_at_again_and_again() {
    for initial in [1, 100] {
        let mut it = Harness::with(&[("a", "")]).await;
        it.configure(|policy| policy.delays.initial = Duration::from_millis(initial));
        for _ in 0..1000 {
            it.runtime.fail_next(verb::UPDATE, ErrorKind::Refused);
        }
        it.exit("a", 1).await;
        it.until_reason("a", "finish-failed").await;
        it.runtime.looks();
        it.after(600.0).await;
        let looks = it.runtime.looks();
        assert!(looks < 60, "{looks} looks in ten minutes, with a first delay of {initial} ms");
    }
}

/// A full disk keeps containerd from writing, and no program from being ended.
#[tokio::test(start_paused = true)]
async fn a_note_that_cannot_be_written_keeps_no_signal_from_being_sent() {
    let mut it = Harness::with(&[("a", "")]).await;
    let pid = it.pid_of("a").await;
    it.kill().await;
    it.want("a", r#""args": ["x"]"#);
    it.calls();
    it.runtime.fail_next(verb::UPDATE, ErrorKind::Refused);
    it.run();
    it.until_running("a").await;
    assert_ne!(it.pid_of("a").await, pid);
    // The end says whose doing it was.
    it.idle().await;
    assert_eq!(it.item("a").reason, "");

    // Nothing can be written at all: it is ended, and what is known stays where it is.
    let mut it = Harness::with(&[("a", "")]).await;
    it.kill().await;
    it.want("a", r#""args": ["x"]"#);
    for _ in 0..2 {
        it.runtime.fail_next(verb::UPDATE, ErrorKind::Refused);
    }
    it.run();
    it.until("it does not run", |it| {
        it.items[0].instance.as_ref().is_none_or(|it| it.pid.is_none())
    })
    .await;
    it.until_running("a").await;
    it.idle().await;
    assert!(it.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_was_written_down_and_not_completed_is_no_end_of_its_own() {
    let donor = |args: &str| {
        format!(
            r#""ipcMode": "shareable", "args": ["{args}"], "restart": {{"backoff": {{"initial": "5s"}}}}"#
        )
    };
    let once = r#""ipcMode": "container:donor", "restart": {"policy": "never"}"#;
    let mut it = Harness::with(&[("donor", &donor("1")), ("once", once)]).await;
    it.after(20.0).await;
    let before = it.pid_of("once").await;
    it.want("donor", &donor("2"));
    it.until_reason("once", "donor-changed").await;
    // The donor runs, and the joiner is about to follow it.
    it.runtime.fail_next(verb::DELETE_TASK, ErrorKind::Refused);
    it.after(20.0).await;
    it.until_running("once").await;
    assert_ne!(it.pid_of("once").await, before);
    let end = it.instance("once").await.end.unwrap();
    assert_eq!((end.reason.as_str(), end.failures), ("stopped", 0));
}

/// A controller that dies when it has told a program to end, and before it can say that it has.
async fn cut_off_after_the_signal() -> Harness {
    let once = r#""restart": {"policy": "never"}, "stop": {"timeout": "10s"}"#;
    let mut it = Harness::with(&[("once", once)]).await;
    it.after(20.0).await;
    it.kill().await;
    it.want("once", r#""restart": {"policy": "never"}, "state": "stopped""#);
    // Its new manifest, the note, and the signal.
    let crash = Crash::after(3);
    it.run_on(it.edge().with_crash(Arc::clone(&crash)));
    it.after(5.0).await;
    let mut passed = crash.passed();
    passed.sort_unstable();
    assert_eq!(passed, ["stop/note", "stop/signal", "update"]);
    it.kill().await;
    it
}

#[tokio::test(start_paused = true)]
async fn an_end_that_the_controller_did_not_live_to_see_is_not_the_programs_own() {
    let mut it = cut_off_after_the_signal().await;
    it.want("once", r#""restart": {"policy": "never"}"#);
    it.run();
    it.until_running("once").await;
    let end = it.instance("once").await.end.unwrap();
    assert_eq!((end.reason.as_str(), end.code, end.failures), ("stopped", 143, 0));
    assert!(it.look().await.strikes.is_empty());
    // The next end is its own, although the one before was not.
    assert_eq!(it.instance("once").await.ending, None);
    it.exit("once", 3).await;
    it.until("it has failed", |it| it.items.iter().any(|it| it.phase == Phase::Failed)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_was_lost_with_its_task_is_not_the_programs_own_end() {
    let mut it = cut_off_after_the_signal().await;
    it.runtime.forget_tasks();
    it.want("once", r#""restart": {"policy": "never"}"#);
    it.run();
    it.until_running("once").await;
    assert_eq!(it.instance("once").await.end.unwrap().reason, "stopped");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_is_called_off_before_the_signal_leaves_the_end_to_the_program() {
    let once = r#""restart": {"policy": "never"}"#;
    let mut it = Harness::with(&[("once", once)]).await;
    it.after(20.0).await;
    let before = it.pid_of("once").await;
    it.kill().await;
    it.want("once", r#""restart": {"policy": "never"}, "state": "stopped""#);
    it.run_on(it.edge().with_crash(Crash::after(2)));
    it.after(5.0).await;
    it.kill().await;
    assert_eq!(it.instance("once").await.ending, Some(1));
    it.want("once", once);
    it.run();
    it.after(5.0).await;
    assert_eq!(it.instance("once").await.ending, None);
    assert_eq!(it.pid_of("once").await, before);
    it.exit("once", 3).await;
    it.until("it has failed", |it| it.items.iter().any(|it| it.phase == Phase::Failed)).await;
    assert_eq!(it.starts("once").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_stop_of_what_never_ran_is_not_the_end_of_the_run_to_come() {
    let mut it = Harness::new();
    it.want("a", "");
    // Created, and not noted as run.
    let crash = Crash::after(6);
    it.run_on(it.edge().with_crash(Arc::clone(&crash)));
    it.after(1.0).await;
    assert_eq!(crash.passed().last(), Some(&"start/task"));
    it.kill().await;
    it.want("a", r#""state": "stopped""#);
    it.run();
    it.until("it has stopped", |it| it.items.iter().any(|it| it.phase == Phase::Stopped)).await;
    let left = it.instance("a").await;
    assert_eq!((left.task, left.end), (Task::None, None));
    it.exit_on_start("a", Some(1));
    it.want("a", "");
    it.after(4.0).await;
    assert_delays(&it.starts("a")[..5], &DELAYS[..4]);
    assert_eq!(it.instance("a").await.end.map(|it| it.code), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_cut_off_twice_before_it_ran_runs() {
    for effects in 1..=3 {
        let mut it = Harness::new();
        it.want("a", r#""restart": {"policy": "never"}"#);
        // Noted as run, and not started.
        let crash = Crash::after(7);
        it.run_on(it.edge().with_crash(Arc::clone(&crash)));
        it.after(1.0).await;
        assert_eq!(crash.passed().last(), Some(&"start/run"));
        it.kill().await;
        it.run_on(it.edge().with_crash(Crash::after(effects)));
        it.after(20.0).await;
        it.kill().await;
        it.run();
        it.until_running("a").await;
        assert_eq!(it.starts("a").len(), 1);
        assert!(it.look().await.strikes.is_empty());
    }
}

/// As on a machine without a battery for its clock: each boot begins on the same day.
#[tokio::test(start_paused = true)]
async fn a_boot_before_what_was_replaced_is_removed_runs_no_job_again_whatever_the_clock_says() {
    let mut it = Harness::new();
    let boot = |it: &Harness| {
        it.runtime.reboot();
        it.host.reboot();
        std::fs::remove_dir_all(it.directory.path().join("run")).unwrap();
    };
    it.want("a", "");
    it.run();
    it.until_running("a").await;
    it.kill().await;
    boot(&it);
    it.run();
    it.after(3600.0).await;
    it.kill().await;
    // It takes the place of one that ran for the last time late on that day.
    it.want("a", r#""args": ["job"], "restart": {"policy": "never"}"#);
    for _ in 0..1000 {
        it.runtime.fail_next(verb::REMOVE, ErrorKind::Refused);
    }
    boot(&it);
    it.run();
    it.after(1.0).await;
    let observed = it.look().await;
    let job = observed.instances.values().find(|it| it.task.pid().is_some()).unwrap().id.clone();
    it.kill().await;
    boot(&it);
    it.calls();
    it.run();
    it.after(10.0).await;
    assert_eq!(it.item("a").phase, Phase::Failed);
    assert_eq!(it.look().await.instances.len(), 2, "the old one could not be removed");
    let started = format!("start task {job}");
    assert!(!it.calls().contains(&started));
}

/// As on a full disk: a start fails, and so does noting that on the container.
#[tokio::test(start_paused = true)]
async fn a_job_for_each_boot_keeps_its_delays_when_its_failed_start_cannot_be_noted() {
    let mut it = Harness::new();
    it.exit_on_start("a", Some(0));
    it.want("a", r#""restart": {"policy": "never", "onBoot": true}"#);
    it.run();
    it.idle().await;
    it.kill().await;
    it.runtime.reboot();
    it.host.reboot();
    std::fs::remove_dir_all(it.directory.path().join("run")).unwrap();
    it.calls();
    for _ in 0..2000 {
        it.runtime.fail_next(verb::UPDATE, ErrorKind::Refused);
    }
    it.run();
    it.after(60.0).await;
    let tries = it.calls().iter().filter(|it| *it == "update container a").count();
    // Two for each start: after 0, 0.1, 0.3, … 51.1 s.
    assert!((10..=22).contains(&tries), "{tries}");
    let item = it.item("a");
    assert_eq!((item.phase, item.reason.as_str()), (Phase::BackingOff, "start-failed"));
    assert!(item.next_retry_at.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_long_run_that_was_ended_on_purpose_starts_the_delays_anew_too() {
    for by in ["restart", "edit", "stop"] {
        let mut it = Harness::new();
        it.exit_on_start("a", Some(1));
        it.want("a", "");
        it.run();
        it.after(12.5).await;
        it.exit_on_start("a", None);
        it.until_running("a").await;
        it.after(3600.0).await;
        match by {
            "restart" => it.ask("a", HandKind::Restart),
            "stop" => {
                it.want("a", r#""state": "stopped""#);
                it.until("it has stopped", |it| it.items[0].phase == Phase::Stopped).await;
                it.want("a", "");
            }
            _ => it.want("a", r#""args": ["x"]"#),
        }
        it.after(2.0).await;
        it.until_running("a").await;
        let ended = it.clock();
        it.exit("a", 1).await;
        it.after(20.0).await;
        let again = *it.starts("a").last().unwrap() - ended;
        assert!((100..130).contains(&again), "{by}: {again}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_created_and_never_started_has_not_lived_for_long_when_it_is_ended() {
    let mut it = Harness::new();
    it.exit_on_start("a", Some(1));
    it.want("a", "");
    it.run();
    it.after(3.0).await;
    assert_delays(&it.starts("a"), &DELAYS[..4]);
    it.kill().await;
    let crash = Crash::after(3);
    it.run_on(it.edge().with_crash(Arc::clone(&crash)));
    it.after(60.0).await;
    assert_eq!(crash.passed().last(), Some(&"start/run"));
    it.kill().await;
    let until = it.host.now() + Duration::from_secs(10);
    assert_eq!(it.once(Goal::Shutdown { until, why: None }).await, Ended::Converged);
    assert_eq!(it.instance("a").await.end.map(|it| it.lasted_ms), Some(0));
    let before = it.starts("a").len();
    it.run();
    it.after(4.0).await;
    assert_delays(&it.starts("a")[before..], &DELAYS[5..6]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_that_a_later_one_made_good_is_told_no_more() {
    let mut it = Harness::new();
    it.want("a", "");
    it.runtime.fail_next(verb::START_TASK, ErrorKind::Refused);
    it.run();
    it.until("it says so", |it| it.items.iter().any(|it| it.start_failure.is_some())).await;
    it.until_running("a").await;
    it.after(60.0).await;
    it.want("a", r#""image": "nowhere:1""#);
    it.until_reason("a", "image-missing").await;
    assert_eq!(it.item("a").start_failure, None);
    it.want("a", r#""state": "stopped""#);
    it.until("it has stopped", |it| it.items[0].phase == Phase::Stopped).await;
    it.idle().await;
    assert_eq!(it.item("a").start_failure, None);
}
