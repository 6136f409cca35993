//! What goes, what is held, and what is left over.

use super::*;
use crate::desired::{Blocker, Source};

const FOUR: [(&str, &str); 4] = [("a", ""), ("b", ""), ("c", ""), ("d", "")];

#[tokio::test(start_paused = true)]
async fn a_removed_manifest_removes_its_workload_with_all_that_it_had() {
    let mut it = Harness::with(&[("a", r#""ipcMode": "shareable""#), ("b", ""), ("c", "")]).await;
    let before = it.pids().await;
    let logs = it.log_directory().join(it.id_of("a").await.as_str());
    std::fs::create_dir_all(&logs).unwrap();
    it.remove("a");
    it.until_gone("a").await;
    it.idle().await;
    let left = it.everything().await;
    assert!(left.iter().all(|it| !it.contains("a-")), "{left:#?}");
    assert!(!logs.exists());
    assert_eq!(it.pid_of("b").await, before["b"]);
}

#[tokio::test(start_paused = true)]
async fn too_many_removals_are_held_until_a_person_releases_them() {
    let mut it = Harness::with(&FOUR).await;
    let before = it.pids().await;
    for workload in ["a", "b"] {
        it.wanted.workloads.remove(&name(workload));
    }
    it.remove("c");
    it.until("they are held", |it| it.holds.len() == 1).await;
    it.after(100.0).await;
    assert_eq!(it.pids().await, before);
    let hold = it.status().holds[0].clone();
    assert_eq!((hold.reason.as_str(), hold.removals.len()), ("prune-limit", 3));
    assert_eq!((it.item("a").phase, it.item("a").reason.as_str()), (Phase::Held, "prune-limit"));
    // As `approve` does, from another process.
    let released = it.clock();
    it.run_directory().approve(&hold.token, &hold.removals.into_iter().collect()).unwrap();
    it.until_gone("c").await;
    assert!(it.clock() - released < 2000, "a person waits for it");
    it.idle().await;
    assert_eq!(it.running().await, ["d"]);
    assert!(it.run_directory().approvals().unwrap().is_empty(), "it is used up");
    assert!(it.run_directory().removals().unwrap().is_empty(), "and counts for nothing");
}

#[tokio::test(start_paused = true)]
async fn an_approval_is_for_exactly_what_was_shown() {
    let mut it =
        Harness::with(&[("a", ""), ("b", ""), ("c", ""), ("d", ""), ("e", ""), ("f", "")]).await;
    it.configure(|it| it.prune_limit = 10);
    let remove = |it: &mut Harness, names: &[&str]| {
        it.wanted.workloads.retain(|it, _| !names.contains(&it.as_str()));
        it.publish();
    };
    remove(&mut it, &["a", "b", "c", "d", "e"]);
    it.until("they are held", |it| it.holds.iter().any(|it| it.removals.len() == 5)).await;
    let hold = it.status().holds[0].clone();
    // Two of them become others before it is released.
    it.want("a", r#""args": ["x"]"#);
    it.want("b", r#""args": ["x"]"#);
    it.until_running("a").await;
    it.until_running("b").await;
    it.idle().await;
    remove(&mut it, &["a", "b"]);
    it.until("they are held", |it| it.holds.iter().any(|it| it.removals.len() == 5)).await;
    assert_ne!(it.status().holds[0].token, hold.token);
    it.run_directory().approve(&hold.token, &hold.removals.into_iter().collect()).unwrap();
    it.until_gone("e").await;
    it.after(100.0).await;
    assert_eq!(it.running().await, ["a", "b", "f"]);
    assert_eq!(it.status().holds[0].removals.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_slow_deletion_is_one_deletion() {
    let mut it = Harness::with(&FOUR).await;
    it.remove("a");
    it.until_gone("a").await;
    it.remove("b");
    it.until_gone("b").await;
    it.after(120.0).await;
    it.remove("c");
    it.until_reason("c", "prune-limit").await;
    it.after(300.0).await;
    assert_eq!(it.running().await, ["c", "d"]);
    // Ten minutes after the others it is one of two.
    it.after(300.0).await;
    assert_eq!(it.running().await, ["d"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_manifest_says_is_absent_is_no_loss() {
    let mut it = Harness::with(&FOUR).await;
    for workload in ["a", "b", "c", "d"] {
        it.want(workload, r#""state": "absent""#);
    }
    it.until("all are gone", |it| it.items.iter().all(|it| it.reason == "absent")).await;
    it.idle().await;
    assert_eq!(it.all_but_images().await, [""; 0]);
    assert!(it.run_directory().removals().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stopped_workload_keeps_its_instance() {
    let mut it = Harness::with(&[("a", "")]).await;
    let id = it.id_of("a").await;
    it.want("a", r#""state": "stopped""#);
    it.until("it has stopped", |it| it.items[0].phase == Phase::Stopped).await;
    it.after(100.0).await;
    assert_eq!(it.running().await, [""; 0]);
    it.runtime.soil(&id);
    it.want("a", "");
    it.until_running("a").await;
    assert!(it.runtime.is_soiled(&id), "it is the same one");
}

#[tokio::test(start_paused = true)]
async fn an_absence_acts_when_its_time_has_come_and_was_confirmed() {
    let mut it = Harness::with(&FOUR).await;
    let acts_at = it.host.now() + Duration::from_secs(20);
    let state = it.wanted.sources.get_mut(&source()).unwrap();
    state.absence_acts_at = acts_at;
    state.confirmed = BootTime::default();
    it.remove("a");
    it.until_reason("a", "removal-pending").await;
    it.runtime.looks();
    it.after(60.0).await;
    assert_eq!(it.running().await.len(), 4, "nobody has looked since");
    assert!(it.runtime.looks() < 10, "and there is nothing to be looked at meanwhile");
    it.wanted.sources.get_mut(&source()).unwrap().confirmed = it.host.now();
    it.publish();
    it.until_gone("a").await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_be_believed_removes_nothing() {
    let mut it = Harness::with(&FOUR).await;
    let before = it.pids().await;
    let blocker = Blocker {
        code: "source-missing",
        path: source().path().to_owned(),
        message: "does not exist".to_owned(),
        since: it.host.now(),
    };
    it.wanted.sources.get_mut(&source()).unwrap().blockers.push(blocker);
    it.wanted.workloads.clear();
    it.publish();
    it.until_reason("a", "source-missing").await;
    assert_eq!(it.status().sources[0].reason, "source-missing");
    it.kill().await;
    it.run();
    it.after(1000.0).await;
    assert_eq!(it.pids().await, before);
    // And what dies meanwhile is started as it was.
    it.exit("a", 1).await;
    it.idle().await;
    assert_eq!(it.running().await.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_another_source_brought_is_listed_and_left_alone() {
    let mut it = Harness::with(&FOUR).await;
    let before = it.pids().await;
    it.kill().await;
    let other = Source::new(std::path::Path::new("/"), std::path::Path::new("/other"));
    it.wanted.sources = [(other, believable())].into();
    it.wanted.workloads.clear();
    it.publish();
    it.run();
    it.until_reason("a", "unclaimed").await;
    it.after(1000.0).await;
    assert_eq!(it.pids().await, before);
}

#[tokio::test(start_paused = true)]
async fn what_nothing_owns_is_swept_and_what_is_not_ours_is_left() {
    use crate::runtime::Runtime as _;
    let mut it = Harness::with(&[("a", r#""ipcMode": "shareable""#)]).await;
    it.kill().await;
    let expected = it.everything().await;
    let foreign: InstanceId = "foreign".parse().unwrap();
    it.runtime.add_foreign(&foreign);
    let gone: InstanceId = "gone-0123456789".parse().unwrap();
    it.host.leave_directory(&gone);
    it.host.stack_shm(
        &"mounted-0123456789".parse().unwrap(),
        crate::workload::Bytes::new(4096).unwrap(),
    );
    it.runtime.lease("evenkeel-gone-0123456789").await.unwrap();
    std::fs::create_dir_all(it.log_directory().join(gone.as_str())).unwrap();
    std::fs::write(it.log_directory().join(gone.as_str()).join("log"), "x").unwrap();
    // What somebody keeps beside the logs is no log, whatever it is called.
    let kept = ["backup", "file-0123456789"].map(|name| it.log_directory().join(name));
    std::fs::create_dir(&kept[0]).unwrap();
    std::fs::write(&kept[1], "x").unwrap();
    let strikes = Strikes {
        revision: it.revision("a"),
        count: 3,
        at: BootTime::default(),
        run: None,
        failure: None,
    };
    it.run_directory().set_strikes(&name("gone"), Some(&strikes)).unwrap();
    // A snapshot without a container.
    let lost = it.id_of("a").await;
    assert_ne!(it.everything().await, expected);
    it.run();
    it.idle().await;
    assert!(kept.iter().all(|it| it.exists()));
    std::fs::remove_dir(&kept[0]).unwrap();
    std::fs::remove_file(&kept[1]).unwrap();
    assert_eq!(it.everything().await, expected);
    assert!(it.runtime.has_foreign(&foreign));
    assert!(it.run_directory().strikes().unwrap().is_empty());
    assert_eq!(it.id_of("a").await, lost);
}
