//! What is written into the journal.

use super::*;
use crate::status::{Event, EventType};

/// Each event as `reason name: cause`, with `!` for a warning.
fn told(it: &Harness) -> Vec<String> {
    let of = |it: Event| {
        let mark = if it.r#type == EventType::Warning { "!" } else { "" };
        let name = it.name.map_or(String::new(), |it| format!(" {it}"));
        let cause = if it.cause.is_empty() { String::new() } else { format!(": {}", it.cause) };
        format!("{mark}{}{name}{cause}", it.reason)
    };
    it.run_directory().events().read().unwrap().into_iter().map(of).collect()
}

#[tokio::test(start_paused = true)]
async fn every_step_and_every_end_of_a_run_is_told_with_its_cause_and_idling_tells_nothing() {
    let mut it = Harness::with(&[("a", "")]).await;
    it.after(20.0).await;
    it.exit("a", 3).await;
    it.until_running("a").await;
    it.idle().await;
    it.remove("a");
    it.until_gone("a").await;
    it.idle().await;
    let expected = [
        "prepared a: new manifest",
        "started a: new manifest",
        "!exited a: exited with code 3",
        "started a: exited with code 3",
        "stopped a: no longer in /manifests/a.yaml",
        "removed a: no longer in /manifests/a.yaml",
    ];
    let all = told(&it);
    let mut rest: Vec<&String> = all.iter().filter(|it| !it.contains("swept")).collect();
    rest.retain(|it| !it.starts_with("controller"));
    assert_eq!(rest, expected);
    it.after(3600.0).await;
    assert_eq!(told(&it), all);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_with_its_own_reason_and_a_standing_when_it_changes() {
    let mut it = Harness::with(&[("donor", r#""ipcMode": "shareable""#)]).await;
    it.want("joiner", r#""ipcMode": "container:donor""#);
    it.until_running("joiner").await;
    it.runtime.fail_next(crate::runtime::verb::START_TASK, crate::runtime::ErrorKind::Refused);
    it.want("late", r#""image": "nowhere:1""#);
    it.want("failing", "");
    it.until_running("failing").await;
    it.remove("donor");
    it.until_reason("donor", "donor-in-use").await;
    it.after(60.0).await;
    // Another controller has nothing new to say.
    it.kill().await;
    let status = (*it.status()).clone();
    it.run_directory().set_status(&status).unwrap();
    it.run();
    it.after(60.0).await;
    it.want("donor", r#""ipcMode": "shareable""#);
    it.idle().await;
    let all = told(&it);
    let count = |text: &str| all.iter().filter(|it| *it == text).count();
    for (text, n) in [
        ("!image-missing late", 1),
        ("!donor-in-use donor", 1),
        ("released donor", 1),
        ("!start-failed failing: new manifest", 1),
    ] {
        assert_eq!(count(text), n, "{text}: {all:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_goes_away_and_comes_back_is_told_once_each() {
    let it = Harness::with(&[("a", "")]).await;
    it.runtime.set_unreachable(true);
    it.after(600.0).await;
    it.runtime.set_unreachable(false);
    it.after(60.0).await;
    let all = told(&it);
    let ours: Vec<&String> = all.iter().filter(|it| it.contains("runtime")).collect();
    assert_eq!(ours, ["!runtime-away", "runtime-back"]);
}

/// Also one that is not waited for as long as a question may take.
#[tokio::test(start_paused = true)]
async fn a_runtime_that_hangs_is_told_in_the_journal_as_in_the_status() {
    let mut it = Harness::with(&[("a", "")]).await;
    let ours = |it: &Harness| {
        let all = told(it).into_iter();
        all.filter(|it| it.contains("runtime")).collect::<Vec<String>>()
    };
    // A moment is no news.
    it.runtime.set_hanging(true);
    it.want("b", "");
    it.after(4.0).await;
    it.runtime.set_hanging(false);
    it.until_running("b").await;
    assert_eq!(ours(&it), [""; 0]);
    for n in 1..=2 {
        it.runtime.set_hanging(true);
        it.want("b", &format!(r#""args": ["{n}"]"#));
        it.until("it says so", |it| it.runtime.state == "unreachable").await;
        assert_eq!(ours(&it).len(), 2 * n - 1, "{:?}", ours(&it));
        it.after(10.0).await;
        it.runtime.set_hanging(false);
        it.until("it says so", |it| it.runtime.state == "ready").await;
        it.until_running("b").await;
        assert_eq!(ours(&it), ["!runtime-away", "runtime-back"].repeat(n));
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_cannot_be_written_stops_nothing_and_is_told_of_later() {
    let mut it = Harness::new();
    let path = it.run_directory().path().join("events");
    std::fs::create_dir_all(it.run_directory().path()).unwrap();
    std::fs::write(&path, "in its place").unwrap();
    it.exit_on_start("crashing", Some(1));
    it.want("crashing", r#""restart": {"backoff": {"initial": "1s", "max": "1s"}}"#);
    it.run();
    it.after(300.0).await;
    it.exit_on_start("crashing", None);
    it.until_running("crashing").await;
    std::fs::remove_file(&path).unwrap();
    it.want("next", "");
    it.until_running("next").await;
    let all = told(&it);
    assert!(all[0] == "!events-lost" && all.len() < 140, "{}: {}", all.len(), all[0]);
    assert!(all.contains(&"started next: new manifest".to_owned()), "{all:#?}");
}
