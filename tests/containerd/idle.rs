//! What the program does when there is nothing to do.

use std::process::Stdio;
use std::time::Duration;

use crate::program::{Site, sleeper};
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
