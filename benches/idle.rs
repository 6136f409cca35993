//! What the program costs when nothing happens: 20 workloads that sleep, for 60 s, which holds a look without any hint.
//!
//! Promises: no write to a disk and at most 50 ms of CPU, by the controller and the writers of the containers' logs
//! together, and at most 10 MB of memory (PSS) for the controller. A log writer, of which every container has one,
//! has at most 400 kB.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::disallowed_methods, reason = "it measures")]
#![expect(clippy::print_stdout, reason = "that is what a bench is for")]

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

#[path = "../tests/containerd"]
mod containerd {
    #[expect(dead_code, reason = "the tests use more of it")]
    pub(crate) mod rig;
}

use containerd::rig::Rig;
use containerd::rig::usage::{Usage, changes, memory};

const WORKLOADS: usize = 20;
/// What a start leaves to be done has been done after this.
const QUIET: Duration = Duration::from_secs(15);
const IDLE: Duration = Duration::from_mins(1);
const MEMORY: u64 = 10_000_000;
const WRITER: u64 = 400_000;
const CPU: Duration = Duration::from_millis(50);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    assert!(IDLE > evenkeel::controller::RESYNC, "a look without any hint is part of it");
    let rig = Rig::start().await;
    let image = rig.load_image().await;
    std::fs::create_dir_all(rig.manifests_dir()).unwrap();
    for n in 0..WORKLOADS {
        let text = format!(
            "apiVersion: evenkeel/v1\nkind: Container\nmetadata:\n  name: idle-{n}\nspec:\n  image: {}\n  command: [\"sleep\", \"100000\"]\n  stop:\n    timeout: 0s\n",
            image.name
        );
        std::fs::write(rig.manifests_dir().join(format!("idle-{n}.yaml")), text).unwrap();
    }
    let mut command = rig.command(&["run", "--engine", "system"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let controller = Running(command.spawn().unwrap());
    let deadline = Instant::now() + Duration::from_mins(2);
    while rig.log_writers().len() < WORKLOADS {
        assert!(Instant::now() < deadline, "{WORKLOADS} start within two minutes");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(QUIET).await;

    let writers = rig.log_writers();
    assert_eq!(writers.len(), WORKLOADS);
    let ours: Vec<u32> = writers.iter().copied().chain([controller.0.id()]).collect();
    let directories = [rig.state_dir(), rig.run_dir()];
    let files = changes(&directories);
    let before: Vec<Usage> = ours.iter().map(|pid| Usage::of(*pid)).collect();
    tokio::time::sleep(IDLE).await;
    let after: Vec<Usage> = ours.iter().map(|pid| Usage::of(*pid)).collect();

    let spent =
        before.iter().zip(&after).map(|(before, after)| after.cpu.saturating_sub(before.cpu));
    let spent: Vec<Duration> = spent.collect();
    let cpu: Duration = spent.iter().sum();
    let written: u64 =
        before.iter().zip(&after).map(|(before, after)| after.written - before.written).sum();
    let own = memory(controller.0.id(), "Pss");
    let of_writers: u64 = writers.iter().map(|pid| memory(*pid, "Pss")).sum();
    let of_writer = of_writers / u64::try_from(WORKLOADS).unwrap();
    println!(
        "{WORKLOADS} idle workloads, {IDLE:?}: {cpu:?} of CPU, {:?} of it the controller's (promised {CPU:?}); {written} bytes to disk (promised none)",
        spent.last().unwrap()
    );
    println!(
        "  PSS: {own} bytes (promised {MEMORY}), and {of_writer} for each log writer (promised {WRITER})"
    );
    assert_eq!(changes(&directories), files, "a file was touched");
    assert_eq!(written, 0);
    assert!(cpu <= CPU && own <= MEMORY && of_writer <= WRITER);
}

/// Ends a process that this one has started, however this one goes on.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
