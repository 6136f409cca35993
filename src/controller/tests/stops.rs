//! How what runs is ended: which signals, at which times, in which order with everything else.

use super::*;

/// What happens to the program that is stopped, by its way of not ending.
#[derive(Debug, Clone, Copy)]
enum Program {
    HeedsSignals,
    IgnoresSignals,
    WaitsForItsChildren,
    IgnoresEverything,
    CannotBeAsked,
    /// Its shim hangs from the first signal on.
    LosesItsShim,
}

/// Milliseconds since the first signal of each way that it was ended in; what it ended with at the end.
async fn ways(program: Program, timeout: &str) -> Vec<String> {
    let spec = format!(r#""stop": {{"timeout": "{timeout}"}}"#);
    let mut it = Harness::with(&[("a", &spec)]).await;
    let id = it.id_of("a").await;
    match program {
        Program::HeedsSignals => {}
        Program::IgnoresSignals | Program::LosesItsShim => it.runtime.ignore_signals(&id),
        Program::WaitsForItsChildren => it.runtime.cling(&id),
        Program::IgnoresEverything => {
            it.runtime.cling(&id);
            it.runtime.ignore_signals(&id);
        }
        Program::CannotBeAsked => it.runtime.refuse_signals(&id),
    }
    it.runtime.timed_calls();
    let asked = Instant::now();
    it.want("a", &format!(r#"{spec}, "state": "stopped""#));
    let limit = Instant::now() + Duration::from_secs(if timeout == "never" { 4000 } else { 60 });
    let mut killed = None;
    while Instant::now() < limit && it.status().items[0].phase != Phase::Stopped {
        // A kernel ends what is killed by its pid, whatever its shim says.
        if killed.is_none() && !it.host.killed().is_empty() {
            killed = Some(Instant::now());
            it.runtime.exit(&id, 137);
            it.runtime.hang(&id, false);
        }
        // Once it was asked.
        if matches!(program, Program::LosesItsShim) && killed.is_none() {
            it.runtime.hang(&id, Instant::now() - asked > Duration::from_secs(1));
        }
        it.after(if timeout == "never" { 0.5 } else { 0.005 }).await;
    }
    let calls = it.runtime.timed_calls();
    let mut signals = calls.into_iter().filter(|it| it.1.starts_with("signal task")).peekable();
    let asked = signals.peek().map_or_else(Instant::now, |it| it.0);
    // What was planned to the millisecond may come in the next.
    let after = |at: Instant| at.duration_since(asked).as_millis() / 10 * 10;
    let mut ways: Vec<String> = signals.map(|it| format!("{} signal", after(it.0))).collect();
    ways.extend(killed.map(|at| format!("{} pid", after(at))));
    if let Some(end) = it.instance("a").await.end {
        ways.push(format!("{} {}", end.code, end.reason));
    }
    ways
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_is_ended_by_one_way_after_the_other_each_with_its_time() {
    use Program as P;
    let table: &[(Program, &str, &[&str])] = &[
        (P::HeedsSignals, "3s", &["0 signal", "143 stopped"]),
        (P::HeedsSignals, "0s", &["0 signal", "137 stopped"]),
        (P::HeedsSignals, "never", &["0 signal", "143 stopped"]),
        (P::IgnoresSignals, "3s", &["0 signal", "3000 signal", "137 stopped"]),
        (P::IgnoresSignals, "0s", &["0 signal", "137 stopped"]),
        // Each hour it is asked again, and never killed.
        (P::IgnoresSignals, "never", &["0 signal", "3600100 signal"]),
        (P::WaitsForItsChildren, "3s", &["0 signal", "3000 signal", "13000 signal", "137 stopped"]),
        (P::WaitsForItsChildren, "0s", &["0 signal", "10000 signal", "137 stopped"]),
        (
            P::IgnoresEverything,
            "3s",
            &["0 signal", "3000 signal", "13000 signal", "23000 pid", "137 stopped"],
        ),
        (P::IgnoresEverything, "0s", &["0 signal", "10000 signal", "20000 pid", "137 stopped"]),
        (
            P::CannotBeAsked,
            "20s",
            &["0 signal", "2000 signal", "2000 signal", "2000 pid", "137 stopped"],
        ),
        (
            P::CannotBeAsked,
            "1s",
            &["0 signal", "1000 signal", "1000 signal", "1000 pid", "137 stopped"],
        ),
        (
            P::LosesItsShim,
            "3s",
            &["0 signal", "3000 signal", "3000 signal", "3000 pid", "137 stopped"],
        ),
    ];
    let mut wrong = Vec::new();
    for (program, timeout, expected) in table {
        let found = ways(*program, timeout).await;
        if found != *expected {
            wrong.push(format!("{program:?} {timeout}: {found:?} and not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// It was asked, and has its time; that nobody can say how it is makes it no shorter.
#[tokio::test(start_paused = true)]
async fn what_was_asked_to_end_has_its_time_though_it_cannot_be_waited_for() {
    let mut it = Harness::with(&[("a", r#""stop": {"timeout": "20s"}"#)]).await;
    it.runtime.ignore_signals(&it.id_of("a").await);
    it.runtime.timed_calls();
    it.runtime.fail_next(verb::WAIT, ErrorKind::Refused);
    it.want("a", r#""stop": {"timeout": "20s"}, "state": "stopped""#);
    it.until("it is stopped", |it| it.items[0].phase == Phase::Stopped).await;
    let calls = it.runtime.timed_calls();
    let signals: Vec<Instant> =
        calls.iter().filter(|it| it.1.starts_with("signal task")).map(|it| it.0).collect();
    let [asked, killed] = signals[..] else { panic!("{calls:#?}") };
    assert_eq!(killed.duration_since(asked).as_secs(), 20);
    // One that ends meanwhile is seen to have ended.
    let mut it = Harness::with(&[("a", "")]).await;
    it.runtime.fail_next(verb::WAIT, ErrorKind::Refused);
    it.want("a", r#""state": "stopped""#);
    it.until("it is stopped", |it| it.items[0].phase == Phase::Stopped).await;
    assert_eq!(it.item("a").last_exit.unwrap().code, 143);
}

/// The effects that a change of what is wanted leads to, in their order.
async fn effects(
    before: &[(&str, &str)],
    prepare: impl AsyncFnOnce(&mut Harness),
    change: impl AsyncFnOnce(&mut Harness),
) -> Vec<&'static str> {
    let mut it = Harness::with(before).await;
    it.after(20.0).await;
    prepare(&mut it).await;
    it.kill().await;
    let crash = Crash::after(usize::MAX);
    it.run_on(it.edge().with_crash(Arc::clone(&crash)));
    change(&mut it).await;
    it.after(60.0).await;
    crash.passed()
}

const DONOR: &str = r#""ipcMode": "shareable", "stop": {"timeout": "1s"}"#;

#[tokio::test(start_paused = true)]
async fn each_chain_makes_its_effects_in_this_order() {
    let nothing = async |_: &mut Harness| {};
    // A donor that somebody paused and that ignores its signal is stopped.
    let stopped = effects(
        &[("a", DONOR)],
        async |it| {
            it.kill().await;
            let id = it.id_of("a").await;
            it.runtime.ignore_signals(&id);
            it.runtime.pause(&id);
            it.want("a", &format!(r#"{DONOR}, "state": "stopped""#));
        },
        nothing,
    )
    .await;
    assert_eq!(
        stopped,
        [
            "update",
            "stop/note",
            "stop/resume",
            "stop/signal",
            "stop/kill",
            "stop/end",
            "stop/task",
            "stop/unpublish",
        ]
    );
    // It ends by itself, and starts again.
    let ended = effects(&[("a", DONOR)], nothing, async |it| it.exit("a", 1).await).await;
    let finish = ["finish/strikes", "finish/end", "finish/task", "finish/unpublish"];
    let start =
        ["start/shm", "start/spec", "start/task", "start/namespace", "start/run", "start/start"];
    assert_eq!(ended, [&finish[..], &start[..]].concat());
    // It is replaced: what takes its place is there first, and what it had goes last.
    let replaced = effects(&[("a", DONOR)], nothing, async |it| {
        it.want("a", &format!(r#"{DONOR}, "args": ["x"]"#));
    })
    .await;
    let prepare = ["prepare/lease", "prepare/snapshot", "prepare/container", "prepare/release"];
    let stop = ["stop/note", "stop/signal", "stop/end", "stop/task", "stop/unpublish"];
    let remove = ["remove/container", "remove/unpublish", "remove/logs"];
    assert_eq!(replaced, [&prepare[..], &stop[..], &start[..], &remove[..]].concat());
    // Its document is gone.
    let removed = effects(&[("a", DONOR), ("b", "")], nothing, async |it| it.remove("a")).await;
    assert_eq!(removed, [&stop[..], &["remove/ledger"], &remove[..]].concat());
    // Its last run leaves nothing.
    let job = r#""restart": {"policy": "never"}, "removeOnExit": true"#;
    let cleared = effects(&[("a", job)], nothing, async |it| it.exit("a", 3).await).await;
    let clear = ["clear/unpublish", "clear/snapshot", "clear/logs"];
    assert_eq!(cleared, [&finish[..], &clear[..]].concat());
    // A start that fails is taken back before it is told.
    let failed = effects(&[], nothing, async |it| {
        it.runtime.fail_next(verb::START_TASK, ErrorKind::Refused);
        it.want("a", DONOR);
    })
    .await;
    let undo = ["undo/task", "undo/unpublish", "failed/strikes", "failed/end"];
    assert_eq!(failed, [&prepare[..], &start[..5], &undo[..], &start[..]].concat());
}
