//! CPU time of validating 1,000 manifests in 1,000 files, as `evenkeel validate` does it. Promise: under 0.2 s.

#![expect(clippy::print_stdout, reason = "that is what a bench is for")]

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

const FILES: usize = 1000;
const ROUNDS: usize = 9;
const PROMISED: Duration = Duration::from_millis(200);

fn main() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for n in 0..FILES {
        let text = format!(
            "# A service like many.\napiVersion: evenkeel/v1\nkind: Container\nmetadata:\n  name: service-{n}\n  labels:\n    \
             team: a\nspec:\n  image: docker.io/library/busybox:1.35\n  command: [\"sh\", \"-c\"]\n  args:\n    - sleep \
             1000\n  env:\n    - name: A\n      value: \"1\"\n    - name: B\n      value: two\n  ipcMode: shareable\n  \
             shmSize: 128Mi\n  mounts:\n    - type: tmpfs\n      target: /tmp\n      size: 16Mi\n  restart:\n    policy: \
             on-failure\n    maxRetries: 5\n  stop:\n    timeout: 5s\n"
        );
        let path = directory.path().join(format!("{n}.yaml"));
        std::fs::write(path, text).expect("room for a manifest");
    }
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let before = cpu();
            let paths = [directory.path().to_owned()];
            let found = evenkeel::source::scan_for_validation(directory.path(), &paths);
            assert_eq!((found.documents, found.problems.len()), (FILES, 0));
            cpu().saturating_sub(before)
        })
        .collect();
    let first = times[0];
    times.sort();
    let median = times[ROUNDS / 2];
    println!(
        "validate {FILES} manifests: {first:?} of CPU at first, {median:?} median of {ROUNDS} (promised {PROMISED:?})"
    );
    assert!(first < PROMISED);
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
