//! Commands that end by themselves.

use super::*;

const CONVERGE: Goal = Goal::Converge { wait: false };
const WAIT: Goal = Goal::Converge { wait: true };

#[tokio::test(start_paused = true)]
async fn it_has_converged_when_everything_has_run_for_a_moment() {
    let mut it = Harness::new();
    it.exit_on_start("job", Some(0));
    it.want("a", "");
    it.want("job", r#""restart": {"policy": "never"}"#);
    it.want("stopped", r#""state": "stopped""#);
    assert_eq!(it.once(CONVERGE).await, Ended::Converged);
    assert!((1000..2100).contains(&it.clock()), "{}", it.clock());
    assert_eq!(it.running().await, ["a"]);
    assert_eq!(it.once(CONVERGE).await, Ended::Converged);
    assert_eq!(it.starts("job").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_has_not_converged() {
    for code in [0, 1] {
        let mut it = Harness::new();
        it.exit_on_start("a", Some(code));
        it.want("a", "");
        it.want("b", "");
        assert_eq!(it.once(CONVERGE).await, Ended::NotConverged);
        assert!(it.clock() < 5000, "{}", it.clock());
        assert_eq!(it.running().await, ["b"]);
        assert_eq!(it.item("a").phase, Phase::BackingOff);
    }
}

#[tokio::test(start_paused = true)]
async fn what_dies_within_its_first_moment_has_not_converged() {
    let mut it = Harness::new();
    it.want("a", "");
    let runtime = it.runtime.clone();
    let id = InstanceId::new(&name("a"), &it.revision("a"));
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(700)).await;
        runtime.exit(&id, 1);
    });
    assert_eq!(it.once(CONVERGE).await, Ended::NotConverged);
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_ends_it_when_all_others_run() {
    let mut it = Harness::new();
    it.want("a", r#""image": "nowhere:1""#);
    it.want("b", "");
    assert_eq!(it.once(CONVERGE).await, Ended::NotConverged);
    assert_eq!(it.running().await, ["b"]);
    assert_eq!(it.item("a").reason, "image-missing");
    // Who waits gets it when it comes.
    let runtime = it.runtime.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_mins(10)).await;
        runtime.add_image(image("docker.io/library/nowhere:1", ImagePlace::Store));
    });
    assert_eq!(it.once(WAIT).await, Ended::Converged);
    assert_eq!(it.running().await, ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_manifest_stops_no_other() {
    let mut it = Harness::new();
    it.want_invalid("a");
    it.want("b", "");
    assert_eq!(it.once(CONVERGE).await, Ended::NotConverged);
    assert_eq!(it.running().await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_held_removal_ends_it() {
    let mut it = Harness::with(&[("a", ""), ("b", ""), ("c", "")]).await;
    it.kill().await;
    it.wanted.workloads.clear();
    it.publish();
    let begun = it.clock();
    assert_eq!(it.once(CONVERGE).await, Ended::NotConverged);
    assert!(it.clock() - begun < 2000);
    assert_eq!(it.running().await.len(), 3);
    assert_eq!(it.status().holds.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_acts_soon_is_waited_for() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    it.kill().await;
    let state = it.wanted.sources.get_mut(&source()).unwrap();
    state.absence_acts_at = it.host.now() + Duration::from_secs(5);
    it.remove("a");
    assert_eq!(it.once(CONVERGE).await, Ended::Converged);
    assert_eq!(it.running().await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_nobody_confirms_is_not_waited_for() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    it.kill().await;
    let state = it.wanted.sources.get_mut(&source()).unwrap();
    state.absence_acts_at = it.host.now() + Duration::from_secs(5);
    state.confirmed = BootTime::default();
    it.remove("a");
    let begun = it.clock();
    assert_eq!(it.once(CONVERGE).await, Ended::NotConverged);
    assert!(it.clock() - begun < 10000, "{}", it.clock() - begun);
    assert_eq!(it.running().await, ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_joiner_that_follows_soon_is_waited_for() {
    let mut it = Harness::with(&[
        ("donor", r#""ipcMode": "shareable""#),
        ("joiner", r#""ipcMode": "container:donor""#),
    ])
    .await;
    it.after(20.0).await;
    it.kill().await;
    it.want("donor", r#""ipcMode": "shareable", "args": ["x"]"#);
    assert_eq!(it.once(CONVERGE).await, Ended::Converged);
    assert_eq!(it.starts("joiner").len(), 2);
    assert!(it.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_ends_it() {
    let mut it = Harness::new();
    it.want("a", "");
    it.want("b", "");
    it.runtime.add_foreign(&InstanceId::new(&name("a"), &it.revision("a")));
    assert_eq!(it.once(CONVERGE).await, Ended::NotConverged);
    assert_eq!(it.running().await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_never_answers_ends_it() {
    let mut it = Harness::new();
    it.want("a", "");
    it.runtime.set_unreachable(true);
    let Ended::Unreachable(why) = it.once(CONVERGE).await else { panic!("it is") };
    assert!(why.contains("switched off"), "{why}");
    assert!((5000..60000).contains(&it.clock()), "{}", it.clock());
}

#[tokio::test(start_paused = true)]
async fn down_leaves_nothing_and_nothing_that_is_not_ours_behind() {
    let mut it = Harness::with(&[
        ("donor", r#""ipcMode": "shareable""#),
        ("joiner", r#""ipcMode": "container:donor""#),
        ("stubborn", r#""stop": {"timeout": "2s"}"#),
    ])
    .await;
    it.runtime.ignore_signals(&it.id_of("stubborn").await);
    it.exit_on_start("crashing", Some(1));
    it.want("crashing", "");
    it.idle().await;
    it.kill().await;
    let foreign: InstanceId = "foreign".parse().unwrap();
    it.runtime.add_foreign(&foreign);
    it.runtime.lose_container(&it.id_of("joiner").await);
    // The command reads no manifests.
    it.wanted.workloads.clear();
    it.publish();
    assert_eq!(it.once(Goal::Down { names: None }).await, Ended::Converged);
    assert_eq!(it.all_but_images().await, [""; 0]);
    assert!(it.look().await.strikes.is_empty());
    assert!(it.runtime.has_foreign(&foreign));
}

#[tokio::test(start_paused = true)]
async fn down_of_some_leaves_the_others() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    let before = it.pids().await;
    it.kill().await;
    let names = Some([name("a"), name("unknown")].into());
    assert_eq!(it.once(Goal::Down { names }).await, Ended::Converged);
    assert_eq!(it.pids().await, [("b".to_owned(), before["b"])].into());
}

#[tokio::test(start_paused = true)]
async fn down_of_what_does_not_answer_gives_up() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    it.kill().await;
    it.runtime.hang(&it.id_of("a").await, true);
    assert_eq!(it.once(Goal::Down { names: None }).await, Ended::NotConverged);
    assert_eq!(it.look().await.instances.len(), 1);
    assert!(it.clock() < 600_000);
}

#[tokio::test(start_paused = true)]
async fn it_does_not_end_before_the_manifests_have_come_to_rest() {
    let mut it = Harness::new();
    it.want("web", "");
    let controller = it.controller(Arc::new(it.edge()), Goal::Converge { wait: false });
    let ended = controller.run(watch::channel(None).0, std::future::pending());
    // What is absent may still have to be confirmed for as long as the other end is there.
    let ended = tokio::time::timeout(Duration::from_mins(1), ended).await;
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn down_is_not_done_while_a_task_without_an_object_does_not_answer() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.kill().await;
    let id = it.id_of("a").await;
    it.runtime.hang(&id, true);
    it.runtime.lose_container(&id);
    assert_eq!(it.once(Goal::Down { names: None }).await, Ended::NotConverged);
    it.runtime.hang(&id, false);
    assert_eq!(it.once(Goal::Down { names: None }).await, Ended::Converged);
}

#[tokio::test(start_paused = true)]
async fn a_replacement_that_is_tried_again_says_what_has_changed() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.runtime.refuse_signals(&it.id_of("a").await);
    it.want("a", r#""args": ["x"]"#);
    it.until_reason("a", "stop-failed").await;
    let plan = it.plan().await;
    let stop = plan.steps.iter().find(|it| matches!(it.action, Action::Stop(_))).unwrap();
    assert!(stop.cause.to_string().contains("args"), "{plan}");
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_next_revision_cannot_start_has_not_converged() {
    let mut it = Harness::new();
    it.exit_on_start("job", Some(0));
    it.want("job", r#""restart": {"policy": "never"}"#);
    assert_eq!(it.once(CONVERGE).await, Ended::Converged);
    it.want("job", r#""restart": {"policy": "never"}, "image": "nowhere:1""#);
    assert_eq!(it.once(CONVERGE).await, Ended::NotConverged);
    let item = it.item("job");
    assert_eq!((item.phase, item.reason.as_str()), (Phase::Completed, "image-missing"));
}

#[tokio::test(start_paused = true)]
async fn manifests_that_come_during_a_look_do_not_wait_for_its_end() {
    let mut it = Harness::new();
    it.want("a", "");
    it.desired.send_replace(None);
    it.runtime.set_hanging(true);
    it.run();
    it.after(0.1).await;
    assert_eq!(it.runtime.looks(), 1);
    it.publish();
    it.after(0.1).await;
    assert_eq!(it.runtime.looks(), 1, "another one, which knows of them");
}

#[tokio::test(start_paused = true)]
async fn a_command_that_has_nothing_to_do_looks_once() {
    let mut it = Harness::new();
    it.want("stopped", r#""state": "stopped""#);
    assert_eq!(it.once(CONVERGE).await, Ended::Converged);
    it.runtime.looks();
    assert_eq!(it.once(CONVERGE).await, Ended::Converged);
    assert_eq!(it.runtime.looks(), 1);
}

/// What somebody beside a controller finds of it.
#[tokio::test(start_paused = true)]
async fn a_plan_is_stuck_when_all_that_is_left_waits_for_what_failed_for_the_same_manifest() {
    let mut it = Harness::new();
    it.want("a", r#""ipcMode": "shareable""#);
    it.runtime.add_foreign(&InstanceId::new(&name("a"), &it.revision("a")));
    it.want("joiner", r#""ipcMode": "container:a""#);
    it.want("b", "");
    it.run();
    it.until_running("b").await;
    it.until_reason("a", "prepare-failed").await;

    let stuck = async |it: &Harness| {
        let (plan, status) = (it.plan().await, it.status());
        let hands = it.run_directory().hands().0;
        let asked =
            |of: &str| trouble::asked_of(it.wanted.workloads.get(&name(of)), hands.get(&name(of)));
        let troubles = trouble::troubles(&plan, &status, asked);
        let mut found = status::status(&it.wanted, &it.look().await, &plan, &Around::default());
        trouble::tell(&mut found, &troubles);
        let reason = found.items.iter().find(|it| it.name == "a").unwrap().reason.clone();
        (trouble::is_stuck(&plan, &troubles), reason)
    };
    // The joiner waits for its donor, and has no trouble of its own.
    assert_eq!(stuck(&it).await, (true, "prepare-failed".to_owned()));
    // Somebody else's step is to be done, whatever fails.
    it.kill().await;
    it.want("c", "");
    assert_eq!(stuck(&it).await, (false, "prepare-failed".to_owned()));
    it.remove("c");
    assert!(stuck(&it).await.0);
    // What a person asks for is to be tried, and so is another manifest, whatever of it is another one.
    it.ask("a", HandKind::Retry);
    assert_eq!(stuck(&it).await, (false, String::new()));
    it.run_directory().remove_hand(&name("a")).unwrap();
    assert!(stuck(&it).await.0);
    it.want("a", r#""ipcMode": "shareable", "stop": {"timeout": "1s"}"#);
    assert_eq!(stuck(&it).await, (false, String::new()));
}
