//! What a process costs, as the kernel counts it, and which files were touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub(crate) struct Usage {
    /// Spent so far.
    pub(crate) cpu: Duration,
    /// Bytes that it caused to be sent to a block device.
    pub(crate) written: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Self {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let read = |name: &str| std::fs::read_to_string(process.join(name)).unwrap();
        // The file of the process tells of its first thread only.
        let threads = std::fs::read_dir(process.join("task")).unwrap().flatten();
        let nanos = threads.filter_map(|it| {
            let text = std::fs::read_to_string(it.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        });
        let living = Duration::from_nanos(nanos.sum());
        Self { cpu: living.max(ticks(&read("stat"))), written: field(&read("io"), "write_bytes:") }
    }
}

/// Bytes of memory of a process; `kind` is a name of its smaps.
pub(crate) fn memory(pid: u32, kind: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    field(&text, &format!("{kind}:")) * 1024
}

/// The first number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|it| it.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// CPU time in whole ticks, that of threads which have ended included.
fn ticks(stat: &str) -> Duration {
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// When each file below was changed last.
pub(crate) fn changes(directories: &[PathBuf]) -> BTreeMap<PathBuf, SystemTime> {
    fn walk(directory: &Path, found: &mut BTreeMap<PathBuf, SystemTime>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                walk(&entry.path(), found);
            }
            found.insert(entry.path(), metadata.modified().unwrap());
        }
    }
    let mut found = BTreeMap::new();
    for directory in directories {
        walk(directory, &mut found);
    }
    found
}
