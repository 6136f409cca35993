//! A person's process beside a workload's program.

use super::*;
use crate::rundir::Holder;
use crate::runtime::{Exec as Process, Streams};

const KEY: &str = "exec-a";

/// Starts a process beside a workload's program, of a command that lives or was killed.
async fn exec(it: &Harness, workload: &str, lives: bool) -> InstanceId {
    let id = it.id_of(workload).await;
    let mut holder = Holder::this().unwrap();
    if !lives {
        // The same pid, but another process: it was used again.
        holder.start_time += 1;
    }
    let owner = ExecOwner { instance: id.clone(), holder };
    it.run_directory().set_exec_owner(KEY, &owner).unwrap();
    let process = Process {
        args: vec!["sh".to_owned()],
        env: Vec::new(),
        working_dir: None,
        user: None,
        terminal: None,
    };
    it.runtime.exec(&id, KEY, &process, &Streams::default()).await.unwrap();
    id
}

async fn lives(it: &Harness, id: &InstanceId) -> bool {
    matches!(it.runtime.wait_exec(id, KEY, Duration::from_millis(1)).await, Ok(None))
}

/// The command ends, or is killed.
fn end(it: &Harness) {
    it.run_directory().remove_exec(KEY).unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_process_of_a_killed_command_is_swept_and_that_of_a_living_one_is_not() {
    let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
    let pid = it.pid_of("a").await;
    let id = exec(&it, "a", true).await;
    it.after(100.0).await;
    assert!(lives(&it, &id).await && it.plan().await.is_empty());
    assert!(it.item("a").up_to_date, "it is no change to anything");
    end(&it);
    it.runtime.delete_exec(&id, KEY).await.unwrap();
    it.kill().await;
    let id = exec(&it, "a", false).await;
    let plan = it.plan().await.to_string();
    assert!(plan.contains("process exec-a in a-") && plan.contains("was killed"), "{plan}");
    it.run();
    it.after(5.0).await;
    assert!(!lives(&it, &id).await && it.run_directory().execs().is_empty());
    assert_eq!(it.pid_of("a").await, pid);
    assert!(it.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_cannot_be_deleted_now_is_not_forgotten() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.kill().await;
    it.runtime.fail_next(crate::runtime::verb::DELETE_EXEC, crate::runtime::ErrorKind::Refused);
    let id = exec(&it, "a", false).await;
    it.run();
    it.after(60.0).await;
    assert!(!lives(&it, &id).await && it.run_directory().execs().is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_change_of_a_manifest_ends_a_workload_that_somebody_works_in() {
    let changes: [fn(&mut Harness); 4] = [
        |it| it.want("a", r#""args": ["x"]"#),
        |it| it.want("a", r#""state": "stopped""#),
        |it| it.want("a", r#""state": "absent""#),
        |it| it.remove("a"),
    ];
    for change in changes {
        let mut it = Harness::with(&[("a", ""), ("b", "")]).await;
        let pid = it.pid_of("a").await;
        let id = exec(&it, "a", true).await;
        change(&mut it);
        it.until_reason("a", "exec-running").await;
        it.after(1000.0).await;
        let item = it.item("a");
        assert_eq!((item.phase, item.up_to_date), (Phase::Held, false));
        assert!(item.message.contains(&std::process::id().to_string()), "{}", item.message);
        assert!(lives(&it, &id).await && it.pid_of("a").await == pid);
        assert!(it.status().holds.is_empty(), "there is nothing to approve");
        let begun = it.clock();
        end(&it);
        it.until("it goes on", |it| it.items.iter().all(|it| it.reason != "exec-running")).await;
        assert!(it.clock() - begun < 1100, "{}", it.clock() - begun);
        it.after(20.0).await;
        assert_ne!(it.pids().await.get("a"), Some(&pid));
        assert!(it.plan().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_joiner_that_somebody_works_in_follows_its_donor_when_that_has_ended() {
    let joiner = r#""ipcMode": "container:donor""#;
    let mut it = Harness::with(&[("donor", r#""ipcMode": "shareable""#), ("joiner", joiner)]).await;
    it.after(20.0).await;
    let (donor, pid) = (it.pid_of("donor").await, it.pid_of("joiner").await);
    exec(&it, "joiner", true).await;
    it.exit("donor", 1).await;
    it.until_reason("joiner", "exec-running").await;
    it.after(100.0).await;
    assert_eq!(it.pid_of("joiner").await, pid);
    assert_ne!(it.pid_of("donor").await, donor);
    assert!(it.item("joiner").message.contains("another IPC namespace"));
    end(&it);
    it.until_running("joiner").await;
    assert_ne!(it.pid_of("joiner").await, pid);
}

#[tokio::test(start_paused = true)]
async fn what_a_person_asks_for_of_the_workload_goes_ahead() {
    for kind in [HandKind::Stop, HandKind::Restart] {
        let mut it = Harness::with(&[("a", "")]).await;
        let pid = it.pid_of("a").await;
        exec(&it, "a", true).await;
        it.want("a", r#""args": ["x"]"#);
        it.until_reason("a", "exec-running").await;
        it.ask("a", kind);
        it.after(20.0).await;
        assert_ne!(it.pids().await.get("a"), Some(&pid), "{kind:?}");
        let is_new = it.instance("a").await.workload.unwrap().spec.args.is_some();
        assert_eq!(is_new, kind == HandKind::Restart, "{kind:?}");
    }
    // The end of everything is asked for, too.
    let mut it = Harness::with(&[("a", "")]).await;
    exec(&it, "a", true).await;
    it.kill().await;
    let until = it.host.now() + Duration::from_mins(1);
    assert_eq!(it.once(Goal::Shutdown { until, why: None }).await, Ended::Converged);
    assert_eq!(it.running().await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_ended_by_itself_starts_again_whoever_worked_in_it() {
    let it = Harness::with(&[("a", "")]).await;
    let pid = it.pid_of("a").await;
    exec(&it, "a", true).await;
    it.exit("a", 1).await;
    it.after(5.0).await;
    assert_ne!(it.pid_of("a").await, pid);
}
