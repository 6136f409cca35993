//! Several logs of one workload, read on as they are written: the instances of it come and go.
//!
//! Does not know where instances are; it is told which directories there are now.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use super::{Entry, Reader};

/// Logs that are followed at once, the newest: a workload has two while one instance replaces the other, and a few
/// old ones that may come back.
const LOGS: usize = 8;

/// Reads the logs of a workload one record at a time, across rotations and from one instance to the next.
#[derive(Debug)]
pub struct Follower {
    // Invariant: at most LOGS.
    logs: Vec<Followed>,
    /// Logs that were there and are not followed, so that they are not taken for new ones.
    passed: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Followed {
    directory: PathBuf,
    reader: Reader,
    /// It was removed; its last lines are still to be read.
    gone: bool,
}

impl Followed {
    fn new(directory: PathBuf, reader: Reader) -> Self {
        Self { directory, reader, gone: false }
    }
}

impl Follower {
    /// Goes on with `reader`, the log in `directory`. What stands in the `others` by now is not read, but what comes
    /// is: an earlier instance may run again.
    pub fn new(directory: PathBuf, reader: Reader, others: &[PathBuf]) -> io::Result<Self> {
        let mut logs = Vec::new();
        for other in others.iter().filter(|it| **it != directory).take(LOGS - 1) {
            logs.push(Followed::new(other.clone(), Reader::open(other, Some(0), None)?));
        }
        let followed =
            |it: &&PathBuf| **it == directory || logs.iter().any(|log| log.directory == **it);
        let passed = others.iter().filter(|it| !followed(it)).cloned().collect();
        logs.push(Followed::new(directory, reader));
        Ok(Self { logs, passed })
    }

    /// The next record of any, or `None` at the present end of all.
    pub fn read(&mut self) -> io::Result<Option<Entry>> {
        for log in &mut self.logs {
            if let Some(entry) = log.reader.read()? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Takes note of the logs that there are now: new ones are read from their beginning. Those that are gone are
    /// forgotten at the second look, since something may have come in between.
    pub fn look(&mut self, present: &[PathBuf]) -> io::Result<()> {
        self.logs.retain_mut(|it| {
            let was_gone = std::mem::replace(&mut it.gone, !present.contains(&it.directory));
            !(was_gone && it.gone)
        });
        self.passed.retain(|it| present.contains(it));
        for directory in present {
            let is_followed = self.logs.iter().any(|it| it.directory == *directory);
            if is_followed || self.passed.contains(directory) {
                continue;
            }
            if self.logs.len() == LOGS {
                self.passed.insert(self.logs.remove(0).directory);
            }
            let reader = Reader::open(directory, None, None)?;
            self.logs.push(Followed::new(directory.clone(), reader));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::path::Path;

    use super::*;

    fn print(directory: &Path, text: &str) {
        fs::create_dir_all(directory).unwrap();
        let path = directory.join(super::super::FILE);
        let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "2026-01-01T00:00:00.000000Z stdout F {text}").unwrap();
    }

    fn rest(follower: &mut Follower) -> Vec<String> {
        std::iter::from_fn(|| follower.read().unwrap())
            .map(|it| String::from_utf8(it.text).unwrap())
            .collect()
    }

    #[test]
    fn a_replacement_is_read_from_its_beginning_and_an_old_instance_from_now_on() {
        let directory = tempfile::tempdir().unwrap();
        let [old, present, new] = ["a-1", "a-2", "a-3"].map(|it| directory.path().join(it));
        print(&old, "long ago");
        print(&present, "one");
        let reader = Reader::open(&present, None, None).unwrap();
        let all = [present.clone(), old.clone()];
        let mut follower = Follower::new(present.clone(), reader, &all).unwrap();
        assert_eq!(rest(&mut follower), ["one"]);
        print(&present, "two");
        print(&new, "three");
        follower.look(&[old.clone(), present.clone(), new.clone()]).unwrap();
        assert_eq!(rest(&mut follower), ["two", "three"]);
        // Rolled back: the old instance runs again, the others are removed.
        print(&present, "last words");
        fs::remove_dir_all(&present).unwrap();
        print(&old, "four");
        follower.look(&[old.clone(), new]).unwrap();
        assert_eq!(rest(&mut follower), ["four", "last words"]);
        // Removed, and made again under the same name.
        fs::remove_dir_all(&old).unwrap();
        follower.look(&[]).unwrap();
        follower.look(&[]).unwrap();
        assert!(follower.logs.is_empty());
        print(&old, "five");
        follower.look(&[old]).unwrap();
        assert_eq!(rest(&mut follower), ["five"]);
    }

    #[test]
    fn no_more_logs_are_open_than_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let logs: Vec<PathBuf> =
            (0..40).map(|n| directory.path().join(format!("a-{n:02}"))).collect();
        for log in &logs {
            print(log, "old");
        }
        let reader = Reader::open(&logs[0], Some(0), None).unwrap();
        let mut follower = Follower::new(logs[0].clone(), reader, &logs[..20]).unwrap();
        assert_eq!(follower.logs.len(), LOGS);
        follower.look(&logs).unwrap();
        assert_eq!(follower.logs.len(), LOGS);
        let read = rest(&mut follower);
        assert!(read.len() <= 20, "what was there is not read: {read:?}");
    }
}
