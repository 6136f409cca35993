//! What paths are, on file systems that may never answer: a look at a mount whose server is gone waits for ever, and
//! nothing can interrupt it.
//!
//! Not here: what a path that is there may be used for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::observed::FileKind;

/// How long the first of them may take: a disk may have to spin up.
const LIMIT: Duration = Duration::from_secs(1);

/// The others, once one was silent: they are likely to be on the same file system.
const LIMIT_LATER: Duration = Duration::from_millis(100);

/// Threads that may wait for ever. Beyond it, nobody is asked any more.
const MOST: usize = 32;

/// Looks at paths. Each that does not answer costs one thread until it does, and is not asked again meanwhile.
#[derive(Debug)]
pub(super) struct Probe {
    silent: Arc<Mutex<BTreeSet<PathBuf>>>,
    look: fn(&Path) -> Option<FileKind>,
}

impl Probe {
    pub(super) fn new(look: fn(&Path) -> Option<FileKind>) -> Self {
        Self { silent: Arc::default(), look }
    }

    /// What each of them is, but for those that are not there. Waits for a few seconds at most, and that only for
    /// those that were not silent before.
    pub(super) fn kinds(&self, paths: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, FileKind> {
        let (silent, mut left): (Vec<_>, Vec<_>) = {
            let known = lock(&self.silent);
            paths.iter().cloned().partition(|it| known.contains(it))
        };
        let mut kinds: BTreeMap<_, _> =
            silent.into_iter().map(|it| (it, FileKind::Silent)).collect();
        let mut limit = LIMIT;
        while !left.is_empty() {
            left = self.ask(left, limit, &mut kinds);
            limit = LIMIT_LATER;
        }
        kinds
    }

    /// Looks at one after the other on a thread of their own, until one is silent; returns those after it.
    fn ask(
        &self,
        paths: Vec<PathBuf>,
        limit: Duration,
        kinds: &mut BTreeMap<PathBuf, FileKind>,
    ) -> Vec<PathBuf> {
        let (send, answers) = sync_channel(paths.len());
        let (silent, look, asked) = (Arc::clone(&self.silent), self.look, paths.clone());
        let asking = move || {
            for path in asked {
                let kind = look(&path);
                // In one with the answer: who has waited too long sees either both or none.
                let mut silent = lock(&silent);
                silent.remove(&path);
                if send.send(kind).is_err() {
                    return;
                }
            }
        };
        let is_asked = lock(&self.silent).len() < MOST
            && std::thread::Builder::new().name("probe".to_owned()).spawn(asking).is_ok();
        if !is_asked {
            kinds.extend(paths.into_iter().map(|it| (it, FileKind::Silent)));
            return Vec::new();
        }
        let mut paths = paths.into_iter();
        while let Some(path) = paths.next() {
            let answer = match answers.recv_timeout(limit) {
                Ok(kind) => Some(kind),
                Err(RecvTimeoutError::Disconnected) => None,
                Err(RecvTimeoutError::Timeout) => {
                    let mut silent = lock(&self.silent);
                    let late = answers.try_recv().ok();
                    if late.is_none() {
                        silent.insert(path.clone());
                    }
                    late
                }
            };
            match answer {
                Some(kind) => kinds.extend(kind.map(|it| (path, it))),
                None => {
                    kinds.insert(path, FileKind::Silent);
                    return paths.collect();
                }
            }
        }
        Vec::new()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A FIFO that nobody writes to is opened for ever; everything else is looked at as it is.
    fn look(path: &Path) -> Option<FileKind> {
        if path.extension().is_some_and(|it| it == "fifo") {
            std::fs::File::open(path).ok()?;
            return Some(FileKind::Other);
        }
        std::fs::metadata(path).ok().map(|_| FileKind::Directory)
    }

    fn fifo(path: &Path) {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }

    #[test]
    fn a_path_that_never_answers_keeps_nobody_from_the_others_and_is_asked_again_once_it_has() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["b.fifo", "c.fifo"] {
            fifo(&path(name));
        }
        for name in ["a", "d"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        let paths = ["a", "b.fifo", "c.fifo", "d", "missing"].map(path).into();
        let probe = Probe::new(look);
        let is = |b| {
            BTreeMap::from([
                (path("a"), FileKind::Directory),
                (path("b.fifo"), b),
                (path("c.fifo"), FileKind::Silent),
                (path("d"), FileKind::Directory),
            ])
        };
        for _ in 0..3 {
            assert_eq!(probe.kinds(&paths), is(FileKind::Silent));
            assert_eq!(lock(&probe.silent).len(), 2, "one thread for each, however often");
        }
        // Both of its ends are open now, for as long as we hold it.
        let answers = std::fs::File::options().read(true).write(true).open(path("b.fifo")).unwrap();
        while probe.kinds(&paths) != is(FileKind::Other) {
            std::thread::yield_now();
        }
        drop(answers);
        // Lets the last thread end.
        drop(std::fs::File::options().read(true).write(true).open(path("c.fifo")).unwrap());
    }

    #[test]
    fn only_so_many_threads_wait() {
        let directory = tempfile::tempdir().unwrap();
        let paths: BTreeSet<PathBuf> =
            (0..MOST + 4).map(|n| directory.path().join(format!("{n:03}.fifo"))).collect();
        for path in &paths {
            fifo(path);
        }
        let probe = Probe::new(look);
        let kinds = probe.kinds(&paths);
        assert!(kinds.len() == MOST + 4 && kinds.values().all(|it| *it == FileKind::Silent));
        assert_eq!(lock(&probe.silent).len(), MOST);
        for path in &paths {
            drop(std::fs::File::options().read(true).write(true).open(path).unwrap());
        }
    }
}
