//! Reads archives, one after the other, beside those who look for images.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::index::Index;
use super::{ArchiveProblem, Stamp};

/// What was found in an archive that had that stamp.
pub(super) type Done = (PathBuf, Stamp, Result<Index, ArchiveProblem>);

/// A thread that reads what it is asked to, from the first time on that it is.
#[derive(Debug, Default)]
pub(super) struct Reader {
    thread: Option<Thread>,
    /// What was asked for and has not come back; each path once, so there is no more of it than there are archives.
    asked: BTreeSet<PathBuf>,
    late: Arc<Notify>,
    /// Nobody waits any more: who reads tells when it is done.
    is_late: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Thread {
    ask: mpsc::Sender<(PathBuf, Stamp)>,
    done: mpsc::Receiver<Done>,
}

impl Reader {
    pub(super) fn late(&self) -> Arc<Notify> {
        Arc::clone(&self.late)
    }

    /// Has an archive read, unless it is being read.
    pub(super) fn read(&mut self, path: &Path, stamp: &Stamp) {
        if self.asked.contains(path) {
            return;
        }
        if self.thread.is_none() {
            self.thread = self.start().ok();
        }
        let Some(thread) = &self.thread else { return };
        // One that is gone is started anew by the next who asks.
        if thread.ask.send((path.to_owned(), stamp.clone())).is_ok() {
            self.asked.insert(path.to_owned());
        }
    }

    /// The next that was read; waits for it until then, or not at all.
    pub(super) fn next(&mut self, deadline: Option<Instant>) -> Option<Done> {
        if self.asked.is_empty() {
            return None;
        }
        let thread = self.thread.as_ref()?;
        // Before it is looked: what is done from here on is told.
        self.is_late.store(deadline.is_none(), Ordering::SeqCst);
        let left =
            deadline.map_or(Duration::ZERO, |it| it.saturating_duration_since(Instant::now()));
        match thread.done.recv_timeout(left) {
            Ok(done) => {
                self.asked.remove(&done.0);
                Some(done)
            }
            // From here on it is told, and what came before that is taken along.
            Err(mpsc::RecvTimeoutError::Timeout) => deadline.and_then(|_| self.next(None)),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                self.thread = None;
                self.asked.clear();
                None
            }
        }
    }

    fn start(&self) -> std::io::Result<Thread> {
        let (ask, asked) = mpsc::channel::<(PathBuf, Stamp)>();
        let (tell, done) = mpsc::channel();
        let (late, is_late) = (Arc::clone(&self.late), Arc::clone(&self.is_late));
        thread::Builder::new().name("archives".to_owned()).spawn(move || {
            for (path, stamp) in asked {
                let index = super::read(&path, &stamp);
                if tell.send((path, stamp, index)).is_err() {
                    return;
                }
                if is_late.load(Ordering::SeqCst) {
                    late.notify_one();
                }
            }
        })?;
        Ok(Thread { ask, done })
    }
}
