//! Images from registries.

use super::*;
use crate::content::Digest;
use crate::registry::memory::MemoryRegistry;
use crate::registry::{self, Reason};

const WEB: &str = "docker.io/library/web:1";
const IMAGE: &str = r#""image": "web:1""#;

/// A harness whose registry has an image with a layer of so many bytes.
fn harness(bytes: usize) -> (Harness, MemoryRegistry) {
    let mut it = Harness::new();
    let registry = MemoryRegistry::default();
    registry.put(WEB, &vec![b'x'; bytes]);
    it.registry = Some(registry.clone());
    (it, registry)
}

/// How often a registry was asked what a name stands for.
fn asked(calls: &[String]) -> usize {
    calls.iter().filter(|it| it.starts_with("resolve")).count()
}

/// From which offsets layers were asked for.
fn offsets(calls: &[String]) -> Vec<u64> {
    let offset = |it: &String| it.strip_prefix("stream ")?.split_once(" from ")?.1.parse().ok();
    calls.iter().filter_map(offset).collect()
}

fn error(reason: Reason) -> registry::Error {
    registry::Error::new(reason, "it does not work")
}

#[tokio::test(start_paused = true)]
async fn an_image_is_pulled_once_however_many_want_it() {
    let (mut it, registry) = harness(100_000);
    registry.delay(Duration::from_secs(5));
    let names: Vec<String> = (0..20).map(|n| format!("w{n}")).collect();
    for name in &names {
        it.want(name, IMAGE);
    }
    it.run();
    for name in &names {
        it.until_running(name).await;
    }
    it.idle().await;
    let calls = registry.calls();
    assert_eq!((asked(&calls), offsets(&calls)), (1, vec![0]), "{calls:?}");
    let observed = it.look().await;
    assert!(observed.leftovers.is_empty(), "{:?}", observed.leftovers);
    assert!(it.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pull_keeps_nobody_else_waiting_and_says_how_far_it_is() {
    let (mut it, registry) = harness(50_000);
    registry.delay(Duration::from_mins(10));
    for n in 0..12 {
        let name = format!("docker.io/library/image{n}:1");
        registry.put(&name, format!("{n}").as_bytes());
        it.want(&format!("slow{n}"), &format!(r#""image": "image{n}:1""#));
    }
    it.run();
    it.until_reason("slow11", "image-pulling").await;
    it.want("quick", "");
    it.until_running("quick").await;
    assert!(it.clock() < 10_000, "{}", it.clock());
    it.after(60.0).await;
    assert_eq!(it.item("slow0").phase, Phase::Waiting);
    assert_eq!(asked(&registry.calls()), 3, "so many at the same time");
}

#[tokio::test(start_paused = true)]
async fn how_far_a_pull_has_come_is_told() {
    let (mut it, registry) = harness(50_000);
    registry.cut_next(20_000);
    it.want("a", IMAGE);
    it.run();
    // Until the rest of it is asked for.
    it.until("it is told", |status| {
        status.items.iter().any(|it| it.message.ends_with("is being pulled: 19 of 49 KiB"))
    })
    .await;
    it.until_running("a").await;
}

#[tokio::test(start_paused = true)]
async fn a_layer_is_unpacked_while_those_above_it_come() {
    let (mut it, registry) = harness(10);
    let large = vec![b'x'; 50_000];
    registry.put_layers(WEB, &[b"below", &large, b"above"]);
    // The second one, of which the rest is asked for after a pause.
    registry.cut_next(1_000);
    registry.cut_next(20_000);
    it.want("a", IMAGE);
    it.run();
    it.until_running("a").await;
    let (below, middle) = (Digest::of(b"below"), Digest::of(&large));
    let calls = it.runtime.timed_calls();
    let at = |call: String| calls.iter().filter(|it| it.1 == call).map(|it| it.0).next_back();
    let unpacked = at(format!("unpack layer {below}")).unwrap();
    let (asked_again, after) =
        (at(format!("fetch blob {middle}")), at(format!("unpack layer {middle}")));
    assert!(Some(unpacked) < asked_again && asked_again <= after, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_pulled_is_said_and_tried_ever_more_rarely() {
    let (mut it, registry) = harness(10);
    it.want("a", r#""image": "nowhere:1""#);
    it.run();
    it.until_reason("a", "image-pull-failed").await;
    let item = it.item("a");
    assert_eq!(item.phase, Phase::BackingOff);
    assert!(item.message.contains("(image-not-found)"), "{}", item.message);
    assert!(item.next_retry_at.is_some());
    it.after(600.0).await;
    let tries = asked(&registry.calls());
    // After 1, 3, 7, … 255 and 511 s, a fifth more or less.
    assert!((9..=11).contains(&tries), "{tries}");
    it.after(3600.0).await;
    let tries = asked(&registry.calls());
    assert!((10..=15).contains(&tries), "{tries}");
    registry.put("docker.io/library/nowhere:1", b"x");
    it.until_running("a").await;
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_asks_for_time_gets_it_and_a_person_waits_for_nothing() {
    let (mut it, registry) = harness(10);
    let retry_after = Some(Duration::from_secs(500));
    registry.fail_next("resolve", registry::Error { retry_after, ..error(Reason::RateLimited) });
    it.want("a", IMAGE);
    it.run();
    it.until_reason("a", "image-pull-failed").await;
    assert!(it.item("a").message.contains("registry-rate-limited"));
    it.after(490.0).await;
    assert_eq!(asked(&registry.calls()), 1);
    it.after(20.0).await;
    it.until_running("a").await;

    let (mut it, registry) = harness(10);
    registry.fail_next("resolve", registry::Error { retry_after, ..error(Reason::RateLimited) });
    it.want("a", IMAGE);
    it.run();
    it.until_reason("a", "image-pull-failed").await;
    it.after(10.0).await;
    it.ask("a", HandKind::Retry);
    it.until_running("a").await;
    assert!(it.clock() < 20_000, "{}", it.clock());
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_breaks_off_goes_on_where_it_was() {
    let (mut it, registry) = harness(50_000);
    registry.cut_next(20_000);
    registry.cut_next(5_000);
    it.want("a", IMAGE);
    it.run();
    it.until_running("a").await;
    assert_eq!(offsets(&registry.calls()), [0, 20_000, 25_000]);
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_was_killed_in_the_middle_of_a_pull_does_not_start_over() {
    let (mut it, registry) = harness(50_000);
    registry.cut_next(20_000);
    it.want("a", IMAGE);
    it.run();
    it.after(0.5).await;
    assert_eq!(offsets(&registry.calls()), [0]);
    it.kill().await;
    assert_eq!(it.look().await.leftovers.len(), 1, "its lease");
    it.run();
    it.until_running("a").await;
    it.idle().await;
    assert_eq!(offsets(&registry.calls()), [20_000]);
    assert!(it.look().await.leftovers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_failed_half_way_goes_on_and_leaves_nothing_once_it_is_not_wanted() {
    let (mut it, registry) = harness(50_000);
    registry.cut_next(20_000);
    for _ in 0..100 {
        registry.fail_next("stream", error(Reason::Unreachable));
    }
    it.want("a", IMAGE);
    it.want("b", "");
    it.run();
    it.until_reason("a", "image-pull-failed").await;
    it.after(1000.0).await;
    assert_eq!(it.look().await.leftovers.len(), 1, "what has come is kept");
    let calls = registry.calls();
    assert_eq!(*offsets(&calls).last().unwrap(), 0, "{calls:?}");
    it.want("a", "");
    it.until_running("a").await;
    it.idle().await;
    assert!(it.look().await.leftovers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_pulled_for_what_does_not_run_or_must_not() {
    let (mut it, registry) = harness(10);
    it.want("never", r#""image": "web:1", "imagePullPolicy": "never""#);
    it.want("stopped", r#""image": "web:1", "state": "stopped""#);
    it.want("there", "");
    it.run();
    it.until_running("there").await;
    it.until_reason("never", "image-missing").await;
    assert!(it.item("never").message.contains("imagePullPolicy: never"));
    it.after(1000.0).await;
    assert_eq!(registry.calls(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_runs_goes_on_until_the_image_of_its_replacement_is_there() {
    let (mut it, registry) = harness(10);
    it.want("a", "");
    it.run();
    it.until_running("a").await;
    let before = it.pid_of("a").await;
    registry.fail_next("resolve", error(Reason::Unauthorized));
    registry.delay(Duration::from_secs(30));
    it.want("a", IMAGE);
    it.until_reason("a", "image-pulling").await;
    assert_eq!(it.item("a").phase, Phase::Running);
    it.until_reason("a", "image-pull-failed").await;
    assert!(it.item("a").message.contains("registry-unauthorized"));
    assert_eq!((it.item("a").phase, it.pid_of("a").await), (Phase::Running, before));
    it.until_running("a").await;
    assert_ne!(it.pid_of("a").await, before);
}

#[tokio::test(start_paused = true)]
async fn always_asks_before_a_start_and_starts_what_is_there_if_nobody_answers() {
    let always =
        r#""image": "web:1", "imagePullPolicy": "always", "restart": {"policy": "always"}"#;
    let (mut it, registry) = harness(10);
    it.want("a", always);
    it.run();
    it.until_running("a").await;
    it.idle().await;
    let first = it.instance("a").await;
    // What runs is left alone, whoever looks.
    registry.put(WEB, b"another one");
    it.kill().await;
    it.run();
    it.after(1000.0).await;
    assert_eq!(asked(&registry.calls()), 1);
    assert_eq!(it.instance("a").await.id, first.id);
    // Once it has to be started anyway, it is what the name stands for now.
    it.exit("a", 0).await;
    it.after(10.0).await;
    let second = it.instance("a").await;
    assert_ne!(second.image.digest, first.image.digest);
    assert_eq!(asked(&registry.calls()), 1);
    // An unchanged name changes nothing, and who ends again and again does not ask as often.
    it.after(100.0).await;
    for _ in 0..3 {
        it.exit("a", 1).await;
        it.after(10.0).await;
        assert_eq!(it.running().await, ["a"]);
    }
    assert_eq!(it.instance("a").await.id, second.id);
    let calls = registry.calls();
    assert_eq!((asked(&calls), offsets(&calls).len()), (1, 0), "{calls:?}");
    // A restart by hand is a start too.
    it.after(100.0).await;
    registry.put(WEB, b"one in between");
    it.ask("a", HandKind::Restart);
    it.after(10.0).await;
    assert_eq!(it.running().await, ["a"]);
    let second = {
        let third = it.instance("a").await;
        assert_ne!(third.id, second.id);
        third
    };
    assert_eq!(asked(&registry.calls()), 1);
    // Nobody answers.
    it.after(100.0).await;
    registry.put(WEB, b"a third one");
    registry.fail_next("resolve", error(Reason::Unreachable));
    it.exit("a", 1).await;
    it.after(10.0).await;
    assert_eq!(it.running().await, ["a"]);
    assert_eq!(it.instance("a").await.id, second.id);
    assert_eq!(asked(&registry.calls()), 1);
}

#[tokio::test(start_paused = true)]
async fn what_runs_an_image_that_could_not_be_checked_says_so_until_it_is_started_anew() {
    let always =
        r#""image": "web:1", "imagePullPolicy": "always", "restart": {"policy": "always"}"#;
    let unchecked = |it: &Harness| it.item("a").instance.unwrap().image_unchecked;
    let (mut it, registry) = harness(10);
    it.want("a", always);
    it.want("b", IMAGE);
    it.run();
    it.until_running("a").await;
    it.until_running("b").await;
    assert_eq!(unchecked(&it), None);
    it.after(100.0).await;
    registry.fail_next("resolve", error(Reason::Unreachable));
    it.exit("a", 1).await;
    it.after(10.0).await;
    // It runs as well as it can, and the next controller knows it too.
    for _ in 0..2 {
        let item = it.item("a");
        assert_eq!((item.phase, item.reason.as_str()), (Phase::Running, ""));
        assert!(item.up_to_date);
        let why = unchecked(&it).unwrap();
        assert!(why.starts_with("registry-unreachable: "), "{why}");
        assert!(why.ends_with("it does not work"), "{why}");
        it.after(1000.0).await;
        it.kill().await;
        it.run();
        it.until_running("a").await;
    }
    // Another one that has not to be checked says nothing of it.
    assert_eq!(it.item("b").instance.unwrap().image_unchecked, None);
    it.exit("a", 1).await;
    it.after(10.0).await;
    assert_eq!(it.running().await, ["a", "b"]);
    assert_eq!(unchecked(&it), None);
}

#[tokio::test(start_paused = true)]
async fn a_command_pulls_what_it_needs_and_ends_when_that_fails() {
    let (mut it, registry) = harness(10);
    registry.delay(Duration::from_secs(100));
    it.want("a", IMAGE);
    assert_eq!(it.once(Goal::Converge { wait: false }).await, Ended::Converged);
    it.want("b", r#""image": "nowhere:1""#);
    assert_eq!(it.once(Goal::Converge { wait: false }).await, Ended::NotConverged);
    let item = it.item("b");
    assert_eq!(item.reason, "image-pull-failed");
    assert!(item.message.contains("image-not-found"), "{}", item.message);
    // One workload alone brings its image too.
    it.want("c", r#""image": "other:1", "state": "running""#);
    registry.put("docker.io/library/other:1", b"o");
    it.ask("c", HandKind::Start);
    let names = [name("c")].into();
    assert_eq!(it.once(Goal::Hands { names }).await, Ended::Converged);
    assert!(it.running().await.contains(&"c".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_is_no_image_for_this_machine_is_said_to_be_that() {
    let (mut it, registry) = harness(10);
    registry.put_raw(WEB, crate::content::INDEX, br#"{"manifests":[]}"#);
    it.want("a", IMAGE);
    it.run();
    it.until_reason("a", "image-pull-failed").await;
    let message = it.item("a").message;
    assert!(message.contains("image-unusable") && message.contains("nothing for"), "{message}");
    registry.put_raw(WEB, crate::content::MANIFEST, b"<html>");
    it.ask("a", HandKind::Retry);
    it.until("it is no manifest", |status| {
        status.items.iter().any(|it| it.message.contains("is not understood"))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_what_its_digest_says_is_never_used() {
    let (mut it, registry) = harness(50_000);
    registry.spoil_next();
    it.want("a", IMAGE);
    it.run();
    it.until_reason("a", "image-pull-failed").await;
    let message = it.item("a").message;
    assert!(message.contains("content-mismatch"), "{message}");
    it.until_running("a").await;
    // Nothing of what was wrong is gone on with.
    assert_eq!(offsets(&registry.calls()), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn what_has_come_is_kept_while_nobody_knows_whether_it_is_wanted() {
    let (mut it, registry) = harness(50_000);
    registry.cut_next(20_000);
    it.want("a", IMAGE);
    it.want("b", "");
    it.run();
    it.after(0.5).await;
    it.kill().await;
    // The next one has not read everything yet.
    let wanted = it.wanted.workloads.remove(&name("a")).unwrap();
    it.wanted.sources.get_mut(&source()).unwrap().absence_acts_at = BootTime(Duration::MAX);
    it.publish();
    it.run();
    it.after(100.0).await;
    assert_eq!(it.look().await.leftovers.len(), 1, "its lease");
    it.wanted.workloads.insert(name("a"), wanted);
    it.publish();
    it.until_running("a").await;
    assert_eq!(offsets(&registry.calls()), [0, 20_000]);
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_an_image_has_twice_comes_once() {
    let (mut it, registry) = harness(10);
    registry.put_layers(WEB, &[b"one", b"two", b"one", b"one"]);
    it.want("a", IMAGE);
    it.run();
    it.until_running("a").await;
    assert_eq!(offsets(&registry.calls()), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_cannot_be_had_is_a_pull_that_failed() {
    let (mut it, registry) = harness(10);
    it.want("there", IMAGE);
    it.run();
    it.until_running("there").await;
    // What was asked a moment ago counts.
    it.after(100.0).await;
    let locks = it.run_directory().path().join("pulls");
    std::fs::remove_dir_all(&locks).unwrap();
    std::fs::write(&locks, "").unwrap();
    it.want("always", r#""image": "web:1", "imagePullPolicy": "always""#);
    it.want("missing", r#""image": "other:1""#);
    it.after(10.0).await;
    // What could not be checked starts all the same.
    assert_eq!(it.running().await, ["always", "there"]);
    let unchecked = it.item("always").instance.unwrap().image_unchecked.unwrap();
    assert!(unchecked.contains("pulls"), "{unchecked}");
    it.until_reason("missing", "image-pull-failed").await;
    registry.put("docker.io/library/other:1", b"o");
    std::fs::remove_file(&locks).unwrap();
    it.until_running("missing").await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_somebody_else_pulls_is_said_to_be_pulled() {
    let (mut it, registry) = harness(10);
    let lock = it.run_directory().lock_pull(&plan::pull_lease(WEB)).unwrap();
    assert!(lock.is_some());
    it.want("a", IMAGE);
    it.run();
    it.until("it is being pulled", |status| {
        status.items.iter().any(|it| it.message.ends_with("is being pulled"))
    })
    .await;
    assert_eq!(registry.calls(), [""; 0]);
    drop(lock);
    it.until_running("a").await;
    assert!(it.edge().progress().is_empty());
}
