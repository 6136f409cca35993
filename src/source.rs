//! Directories, files and stdin → a channel of [`DesiredState`]; the only place that knows where manifests come from.
//!
//! Does not know what a manifest means ([`crate::manifest`]) nor what its absence means ([`History`]): it finds files,
//! reads those that have settled, and looks again when something may have changed. Events are hints; every look is
//! complete and is the truth.
//!
//! One thread looks after all sources. It waits for events of [`notify`], and looks
//!
//! * at once when a file came by rename or was closed after its last write,
//! * when it has been quiet for 50 ms after any other event, or 1 s after the first of them,
//! * when a file needs a second read to count, or an absence a second look to act,
//! * when a root has become another one (mounts come without an event), and every 45 s whatever happens.
//!
//! Without inotify (no more watches, a file system without events) it looks every 2 s, and says so once.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd as _, OwnedFd};
use tokio::sync::watch;

use crate::desired::history::Together;
use crate::desired::{Believing, BootTime, DesiredState, FileState, History, Root, Scan, Source};
use crate::manifest::{self, Problem, Reading};

mod events;
mod file;
mod ignore;
mod scan;
mod settle;
mod writers;

pub use file::FILE_LIMIT;
pub use scan::{DEPTH_LIMIT, FILES_LIMIT, NAMES_LIMIT, TOTAL_LIMIT};

use events::{Stir, Watches};
use file::{FileId, Look};
use ignore::Ignore;
use scan::{Entry, Walk};
use settle::{Begun, Tracker};
use writers::writers;

/// Quiet after an event that finished no file, before a look.
const QUIET: Duration = Duration::from_millis(50);

/// Longest wait for quiet.
const LONGEST: Duration = Duration::from_secs(1);

/// Least time between two looks: a checkout finishes a file every 100 µs, which is not worth 10,000 looks a second.
/// Where a look takes longer, twice its time, so that looking never takes more than a third of a processor.
const PAUSE: Duration = Duration::from_millis(1);

/// Longest time between two looks that come of this.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Between two looks at the roots alone: a mount comes without an event, and until it is seen nothing is lost.
const TICK: Duration = Duration::from_secs(5);

/// Between two whole looks without inotify.
const POLL: Duration = Duration::from_secs(2);

/// Between two whole looks when nothing happens.
const RESYNC: Duration = Duration::from_secs(45);

/// The first state is held back for so long at most while files of it still have to settle.
const FIRST: Duration = Duration::from_secs(2);

/// Between the two looks of [`read_once`] that must agree.
const ONCE: Duration = Duration::from_millis(200);

/// How long [`read_once`] waits for files that somebody is writing.
const ONCE_WRITING: Duration = Duration::from_secs(3);

/// How long [`read_once`] waits for a source to become quiet.
const ONCE_LONGEST: Duration = Duration::from_secs(10);

/// Most bytes of stdin; one file may hold many documents, as on disk.
const STDIN_LIMIT: usize = FILE_LIMIT;

/// What is watched and how.
#[derive(Debug, Clone)]
pub struct Options {
    pub sources: Vec<Source>,
    pub believing: Believing,
    /// `false`: looks every 2 s instead of waiting for events.
    pub inotify: bool,
}

/// A watched set of sources. Ends when it is dropped.
#[derive(Debug)]
pub struct Watching {
    desired: watch::Receiver<Option<Arc<DesiredState>>>,
    shared: Arc<Shared>,
}

/// What the thread is told.
#[derive(Debug)]
struct Shared {
    believing: Mutex<Believing>,
    look: AtomicBool,
    stop: AtomicBool,
    wake: OwnedFd,
}

impl Shared {
    fn wake(&self) {
        // It fails only when the counter is full, and then the thread is about to wake anyway.
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).ok();
    }

    fn believing(&self) -> Believing {
        *self.believing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watch that could not be started.
#[derive(Debug, thiserror::Error)]
#[error("failed to start watching manifests")]
pub struct Error(#[source] std::io::Error);

/// Starts watching.
///
/// # Guarantees
/// The channel holds `None` until every source was read once. After that each value is whole: no content that was
/// not settled is in it. An equal state is not sent twice.
///
/// # Assumptions
/// A source on a dead network file system blocks the thread, and with it every source: then nothing changes, and
/// nothing is removed.
pub fn watch(options: Options) -> Result<Watching, Error> {
    let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|error| Error(error.into()))?;
    let shared = Arc::new(Shared {
        believing: Mutex::new(options.believing),
        look: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        wake,
    });
    let (sender, desired) = watch::channel(None);
    let watches = if options.inotify {
        let shared = Arc::clone(&shared);
        Watches::new(move || shared.wake())
    } else {
        Watches::default()
    };
    let looker = Looker::new(options.sources, watches);
    let thread = Watcher {
        looker,
        sender,
        shared: Arc::clone(&shared),
        started: now(),
        last_look: None,
        first_event: None,
        last_event: BootTime::default(),
        finished: false,
        lost: false,
        checked: now(),
        said: !options.inotify,
    };
    // Not joined when it ends: it may hang in a look at a dead file system.
    std::thread::Builder::new()
        .name("source".to_owned())
        .spawn(move || thread.run())
        .map_err(Error)?;
    Ok(Watching { desired, shared })
}

impl Watching {
    /// What is wanted; `None` until it is known.
    pub fn desired(&self) -> watch::Receiver<Option<Arc<DesiredState>>> {
        self.desired.clone()
    }

    /// Changes what is believed from now on.
    pub fn believe(&self, believing: Believing) {
        *self.shared.believing.lock().unwrap_or_else(PoisonError::into_inner) = believing;
        self.look();
    }

    /// Looks at everything now.
    pub fn look(&self) {
        self.shared.look.store(true, Ordering::SeqCst);
        self.shared.wake();
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake();
    }
}

/// Time since boot, suspended time included.
fn now() -> BootTime {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    BootTime(Duration::new(seconds.unwrap_or_default(), nanoseconds.unwrap_or_default()))
}

/// All sources, looked at together.
#[derive(Debug)]
struct Looker {
    trackers: Vec<Tracker>,
    /// stdin and what it said, which is read once.
    stdin: Option<(Source, Option<Scan>)>,
    watches: Watches,
    history: History,
}

impl Looker {
    fn new(sources: Vec<Source>, watches: Watches) -> Self {
        let mut looker =
            Self { trackers: Vec::new(), stdin: None, watches, history: History::default() };
        let mut seen = BTreeSet::new();
        for source in sources {
            if !seen.insert(source.clone()) {
                continue;
            }
            if source.is_stdin() {
                looker.stdin = Some((source, None));
            } else {
                looker.trackers.push(Tracker::new(source, looker.trackers.len()));
            }
        }
        looker
    }

    /// One look at everything. `forget`: events were lost. Returns what happened meanwhile, too.
    fn look(&mut self, forget: bool) -> (Vec<Scan>, Stir) {
        let mut scans = Vec::new();
        if let Some((source, scan)) = &mut self.stdin {
            scans.push(
                scan.get_or_insert_with(|| read_stdin(source, std::io::stdin().lock())).clone(),
            );
        }
        let at = now();
        self.watches.begin();
        let begun = self.trackers.iter_mut().map(|it| it.begin(&mut self.watches, at, forget));
        let begun: Vec<Begun> = begun.collect();
        self.watches.end(begun.iter().flat_map(Begun::keys).collect());
        let mut stir = self.watches.drain(now());
        let looks = self.trackers.iter_mut().zip(begun).collect();
        let outcomes = settle::end(looks, &mut self.watches, &mut stir, writers, now());
        for (tracker, mut outcome) in self.trackers.iter_mut().zip(outcomes) {
            if outcome.is_err() {
                let begun = tracker.begin(&mut self.watches, at, false);
                let looks = vec![(&mut *tracker, begun)];
                let again = settle::end(looks, &mut self.watches, &mut stir, writers, now());
                outcome = again.into_iter().next().unwrap_or(outcome);
            }
            match outcome {
                Ok(scan) => scans.push(scan),
                // Its patterns change faster than it can be walked.
                Err(settle::Repeat) => {
                    stir.any = true;
                    scans.push(tracker.unknown(at));
                }
            }
        }
        (scans, stir)
    }

    /// Whether some root is not what it was at the last look.
    fn roots_changed(&self) -> bool {
        self.trackers.iter().any(|tracker| {
            let root = std::fs::metadata(tracker.source.path()).ok().map(|it| FileId::of(&it));
            root != tracker.root
        })
    }

    fn is_settling(&self) -> bool {
        self.trackers.iter().any(Tracker::is_settling)
    }

    /// When the next look is due although nothing happens.
    fn due(&self, now: BootTime) -> Option<BootTime> {
        self.trackers.iter().filter_map(|it| it.due(now)).chain(self.history.due()).min()
    }
}

/// The thread and what it waits for.
struct Watcher {
    looker: Looker,
    sender: watch::Sender<Option<Arc<DesiredState>>>,
    shared: Arc<Shared>,
    started: BootTime,
    last_look: Option<Looked>,
    /// The first event since the last look.
    first_event: Option<BootTime>,
    last_event: BootTime,
    /// A file was finished since the last look.
    finished: bool,
    lost: bool,
    /// When the roots were compared last.
    checked: BootTime,
    /// That it has to do without events was said.
    said: bool,
}

#[derive(Debug, Clone, Copy)]
struct Looked {
    ended: BootTime,
    soonest: BootTime,
    /// When the next look is due although nothing happens.
    due: Option<BootTime>,
    complete: bool,
}

impl Watcher {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) && !self.sender.is_closed() {
            let stir = self.looker.watches.drain(now());
            // After the events, not before: they may have waited for this thread, but not have happened later.
            let time = now();
            self.note(&stir, time);
            if self.shared.look.swap(false, Ordering::SeqCst) || self.is_due(time) {
                self.look();
                continue;
            }
            self.wait(self.next(time).since(time));
        }
    }

    fn note(&mut self, stir: &Stir, time: BootTime) {
        self.lost |= stir.lost;
        self.finished |= stir.finished;
        if stir.any {
            self.first_event.get_or_insert(time);
            self.last_event = time;
        }
        for index in &stir.sources {
            if let Some(tracker) = self.looker.trackers.get_mut(*index) {
                tracker.changed(time);
            }
        }
    }

    /// When the next look is to be made.
    fn look_at(&self) -> BootTime {
        let Some(last) = self.last_look else { return BootTime::default() };
        let events = self.first_event.map(|first| {
            if self.finished { first } else { (self.last_event + QUIET).min(first + LONGEST) }
        });
        let regular = last.ended + if last.complete { RESYNC } else { POLL };
        events
            .into_iter()
            .chain(last.due)
            .chain([regular])
            .min()
            .unwrap_or(regular)
            .max(last.soonest)
    }

    fn is_due(&mut self, time: BootTime) -> bool {
        if time >= self.look_at() {
            return true;
        }
        if time < self.checked + TICK {
            return false;
        }
        self.checked = time;
        self.looker.roots_changed()
    }

    fn next(&self, time: BootTime) -> BootTime {
        self.look_at().min(self.checked + TICK).max(time)
    }

    fn look(&mut self) {
        let begun = now();
        let forget = std::mem::take(&mut self.lost);
        self.finished = false;
        self.first_event = None;
        let (scans, stir) = self.looker.look(forget);
        let ended = now();
        self.note(&stir, ended);
        self.checked = ended;
        let complete = self.looker.watches.complete();
        if let Err(reason) = complete {
            self.say(reason);
        }
        let first = self.sender.borrow().is_none();
        let state = self.looker.history.fold(&scans, ended, &self.shared.believing());
        let due = self.looker.due(ended);
        let pause = (now().since(begun) * 2).clamp(PAUSE, LONGEST_PAUSE);
        self.last_look =
            Some(Looked { ended, soonest: ended + pause, due, complete: complete.is_ok() });
        // What only needs a moment more comes with the first state instead of after it.
        if first && self.looker.is_settling() && ended < self.started + FIRST {
            return;
        }
        self.sender.send_if_modified(|before| {
            let changed = before.as_deref() != Some(&state);
            if changed {
                *before = Some(Arc::new(state));
            }
            changed
        });
    }

    fn say(&mut self, reason: Option<rustix::io::Errno>) {
        if self.said {
            return;
        }
        self.said = true;
        let hint = match reason {
            Some(rustix::io::Errno::NOSPC) => "raise fs.inotify.max_user_watches",
            Some(rustix::io::Errno::MFILE) => "raise fs.inotify.max_user_instances",
            _ => "",
        };
        let error = reason.map(std::io::Error::from);
        tracing::warn!(
            error = error.as_ref().map(tracing::field::display),
            hint,
            "cannot watch all manifests for events, looking every 2 s instead"
        );
    }

    fn wait(&self, span: Duration) {
        let mut ready = [PollFd::from_borrowed_fd(self.shared.wake.as_fd(), PollFlags::IN)];
        // A little more than asked, so that the time has come when it wakes.
        let span = span + Duration::from_micros(200);
        let timeout = Timespec {
            tv_sec: span.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: span.subsec_nanos().into(),
        };
        // An interrupted wait is a short one; the loop looks at the time anyway.
        rustix::event::poll(&mut ready, Some(&timeout)).ok();
        rustix::io::read(&self.shared.wake, &mut [0_u8; 8]).ok();
    }
}

/// Reads stdin to its end, or to the limit.
fn read_stdin(source: &Source, stdin: impl std::io::Read) -> Scan {
    let limit = u64::try_from(STDIN_LIMIT).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let reading = match stdin.take(limit + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() > STDIN_LIMIT => {
            bytes.truncate(STDIN_LIMIT);
            manifest::too_large(source.path(), &bytes)
        }
        Ok(_) => manifest::read(source.path(), &bytes),
        Err(error) => manifest::unreadable(
            source.path(),
            "file-unreadable",
            format!("cannot be read: {error}"),
        ),
    };
    let at = now();
    Scan {
        source: source.clone(),
        at,
        last_change: at,
        root: Root::File,
        files: [(PathBuf::new(), FileState::Settled(Arc::new(reading)))].into(),
        below: std::collections::BTreeMap::new(),
    }
}

/// Reads all sources once, for a command that ends: two looks 200 ms apart that agree.
///
/// A source that does not become quiet within 10 s is returned as it is; what is absent from it is not confirmed and
/// removes nothing, and a file that is still being written is not in it.
pub async fn read_once(sources: Vec<Source>, allow_empty: bool) -> DesiredState {
    let mut states = read_to_rest(sources, allow_empty);
    while states.changed().await.is_ok() {}
    let last = states.borrow().clone();
    last.map_or_else(DesiredState::default, |it| (*it).clone())
}

/// As [`read_once`], for a command that acts meanwhile: what is new or changed counts as soon as every file has
/// settled, and only what is absent has to be confirmed. The channel ends with the last state.
pub fn read_to_rest(
    sources: Vec<Source>,
    allow_empty: bool,
) -> watch::Receiver<Option<Arc<DesiredState>>> {
    let believing = Believing { remove_after: ONCE, allow_empty };
    let (sender, states) = watch::channel(None);
    tokio::spawn(async move {
        let mut looker = Looker::new(sources, Watches::default());
        let started = now();
        loop {
            let look = tokio::task::spawn_blocking(move || {
                let (scans, _) = looker.look(false);
                let ended = now();
                let state = looker.history.fold(&scans, ended, &believing);
                (looker, scans, state, ended)
            });
            let (back, scans, state, ended) =
                look.await.expect("a look at the sources does not panic");
            looker = back;
            let mut files = scans.iter().flat_map(|it| it.files.values());
            let writing = files.any(|it| *it == FileState::Unsettled);
            let settled = !looker.is_settling() && (!writing || ended >= started + ONCE_WRITING)
                || ended >= started + ONCE_LONGEST;
            if settled {
                sender.send_replace(Some(Arc::new(state)));
                if looker.history.due().is_none() || ended >= started + ONCE_LONGEST {
                    return;
                }
            }
            let next =
                looker.due(ended).unwrap_or(ended + ONCE).max(ended + PAUSE).min(ended + ONCE);
            tokio::time::sleep(next.since(now())).await;
        }
    });
    states
}

/// What [`scan_for_validation`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Validation {
    /// Of all files and across them, by position.
    pub problems: Vec<Problem>,
    /// Files that were read.
    pub files: usize,
    /// Documents in them, foreign ones included.
    pub documents: usize,
}

/// Reads all that is below `paths` now, without waiting for anything to settle, and lists what is wrong with it.
///
/// Positions carry the paths as given. `-` is stdin.
pub fn scan_for_validation(current: &Path, paths: &[PathBuf]) -> Validation {
    let mut readings = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, path) in paths.iter().enumerate() {
        let source = Source::new(current, path);
        if source.is_stdin() {
            let scan = read_stdin(&source, std::io::stdin().lock());
            for (below, state) in scan.files {
                if let FileState::Settled(reading) = state {
                    readings.push((source.clone(), below, Arc::unwrap_or_clone(reading)));
                }
            }
            continue;
        }
        let (found, ids) = read_now(path, index, &seen);
        // A file that is given twice, or alone and with its directory, is one file.
        seen.extend(ids);
        readings.extend(found.into_iter().map(|(below, reading)| (source.clone(), below, reading)));
    }
    let documents = readings.iter().map(|(_, _, reading)| reading.documents.len()).sum();
    let files = readings.len();
    let together = Together::of(
        readings.iter().map(|(source, below, reading)| (source, below.as_path(), reading)),
    );
    Validation { problems: together.problems, files, documents }
}

/// Reads what is below one path, but for what was read before.
fn read_now(
    root: &Path,
    source: usize,
    before: &BTreeSet<FileId>,
) -> (Vec<(PathBuf, Reading)>, BTreeSet<FileId>) {
    let mut readings = Vec::new();
    let mut ids = BTreeSet::new();
    let mut patterns = Ignore::default();
    let ignore_file = root.join(ignore::FILE);
    if root.is_dir() {
        match file::read(&ignore_file) {
            Look::Gone => {}
            Look::Refused(refusal) => {
                let reading = manifest::unreadable(&ignore_file, refusal.code, refusal.message);
                readings.push((PathBuf::from(ignore::FILE), reading));
            }
            Look::Bytes(content) => {
                let (reading, read) = settle::read_ignore(&ignore_file, &content);
                patterns = read.unwrap_or_default();
                if !reading.problems.is_empty() {
                    readings.push((PathBuf::from(ignore::FILE), reading));
                }
            }
        }
    }
    let mut watches = Watches::default();
    let found = Walk { root, source, ignore: &patterns, watches: &mut watches }.run();
    let refused = match &found.root {
        Root::Missing => Some(("source-missing", "does not exist".to_owned())),
        Root::Unreadable(why) => Some(("source-unreadable", why.clone())),
        Root::Directory { .. } | Root::File => None,
    };
    if let Some((code, message)) = refused {
        readings.push((PathBuf::new(), manifest::unreadable(root, code, message)));
    }
    for (below, entry) in found.files {
        let shown = settle::shown(root, &below);
        let reading = match entry {
            Entry::Refused(refusal) => manifest::unreadable(&shown, refusal.code, refusal.message),
            Entry::File(place) if before.contains(&place.signature.id) => continue,
            Entry::File(place) => {
                ids.insert(place.signature.id);
                match file::read(&place.path) {
                    Look::Bytes(content) => settle::read_manifest(&shown, &content),
                    Look::Refused(refusal) => {
                        manifest::unreadable(&shown, refusal.code, refusal.message)
                    }
                    Look::Gone => continue,
                }
            }
        };
        readings.push((below, reading));
    }
    (readings, ids)
}
