//! What the program does when there is nothing to do.

use std::process::Stdio;
use std::time::Duration;

use evenkeel::plan::Phase;

use crate::program::{Site, manifest, sleeper};
use crate::rig::Rig;
use crate::rig::usage::{Usage, changes, memory};

/// Three times what is promised for twenty workloads and an optimised build.
const CPU: Duration = Duration::from_millis(150);

/// There is a log writer for every container, so its memory counts: what of it is no file.
const WRITER: u64 = 320 << 10;

#[tokio::test]
async fn what_idles_writes_nothing_and_hardly_computes() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let names = ["a", "b", "c"];
    for name in names {
        site.write(&format!("{name}.yaml"), &sleeper(name));
    }
    // Its log would be written to a disk.
    let controller = site.controller_logging_to(Stdio::null());
    for name in names {
        site.until_running(name);
    }
    // What a start leaves to be done.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let writers = rig.log_writers();
    assert_eq!(writers.len(), names.len());
    for pid in &writers {
        let own = memory(*pid, "Anonymous");
        assert!(own < WRITER, "a log writer has {own} bytes of its own");
    }
    let ours: Vec<u32> = writers.into_iter().chain([controller.pid()]).collect();
    let usage = || ours.iter().map(|pid| Usage::of(*pid)).collect::<Vec<_>>();
    let directories = [rig.state_dir(), rig.run_dir()];
    let (files, before) = (changes(&directories), usage());
    // A look without any hint is part of it.
    tokio::time::sleep(evenkeel::controller::RESYNC + Duration::from_secs(5)).await;
    let after = usage();
    assert_eq!(changes(&directories), files, "a file was touched");
    let total = |of: fn(&Usage) -> u64, all: &[Usage]| all.iter().map(of).sum::<u64>();
    assert_eq!(
        total(|it| it.written, &after),
        total(|it| it.written, &before),
        "written to a disk"
    );
    let cpu = |all: &[Usage]| all.iter().map(|it| it.cpu).sum::<Duration>();
    let spent = cpu(&after).saturating_sub(cpu(&before));
    assert!(spent < CPU, "{spent:?}");
}

/// What a container that crashes and waits for its longest delay may cost the controller.
const WAITING: f64 = 0.01;

#[tokio::test]
async fn a_crash_loop_at_its_longest_delay_costs_next_to_nothing() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let spec = "command: [sh, -c, exit 5]\nrestart: {backoff: {initial: 1m, max: 1m}}";
    site.write("crash.yaml", &manifest("crash", spec));
    site.write("other.yaml", &sleeper("other"));
    let controller = site.controller_logging_to(Stdio::null());
    site.until_running("other");
    site.until("crash", |it| {
        let item = it.filter(|it| it.phase == Phase::BackingOff && it.next_retry_at.is_some())?;
        (item.last_exit.as_ref()?.code == 5).then_some(())
    });
    // What the start leaves to be done.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let span = Duration::from_secs(8);
    let before = Usage::of(controller.pid()).cpu;
    tokio::time::sleep(span).await;
    let spent = Usage::of(controller.pid()).cpu.saturating_sub(before);
    println!("{spent:?} in {span:?}");
    assert!(spent.as_secs_f64() < WAITING * span.as_secs_f64(), "{spent:?} in {span:?}");
    let item = site.item("crash").unwrap();
    assert_eq!(item.instance.unwrap().restarts, 0, "its delay is not over");
}
