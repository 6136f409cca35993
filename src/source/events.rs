//! Watches on directories, and what their events say about single files: whether the last write was followed by a
//! close.
//!
//! Events are hints. [`notify`] reads them on a thread of its own, so that at any time some are still on their way:
//! that none has come does not say that nothing happened, and a file that is finished by its last event may be
//! being written again. It also names directories by path, keeps watching one that was renamed away under its old
//! name, lets go of watches without a word when a name above them goes, and does not pass on that a file system was
//! unmounted. So an event makes us look, and look sooner, and that is all: what is there is found by looking, whether
//! a content counts is decided by [`super::settle`] with a look at its writers, and watches are compared with the
//! identity of their directories at every look and all placed anew from time to time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode};
use notify::{Config, ErrorKind, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use rustix::io::Errno;

use super::file::FileId;
use crate::desired::BootTime;

/// Most files of which it is remembered how their writing goes. Beyond that everything counts as not seen.
const MARK_LIMIT: usize = 50_000;

/// Most hints that wait for us, as many as the kernel keeps. Beyond that all of them count as lost.
const HINT_LIMIT: usize = 16_384;

/// After so long every watch is placed anew: one that is gone without a word is gone no longer than that. Less than
/// the time between two looks when nothing happens.
const REARM: Duration = Duration::from_secs(40);

/// A file in a watched directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) directory: FileId,
    pub(super) name: OsString,
}

/// What events say of a file since they were last forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) stage: Stage,
    /// Grows with every event; equal means that no event came in between.
    pub(super) serial: u64,
    pub(super) at: BootTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Created or written, and not closed since.
    Writing,
    /// Renamed into place, or closed after its last write.
    Finished,
}

/// What a look at the events brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Stir {
    /// Look again.
    pub(super) any: bool,
    /// A file is finished: look at once.
    pub(super) finished: bool,
    /// Events were lost: nothing is known of any file.
    pub(super) lost: bool,
    /// Sources in which something changed.
    pub(super) sources: BTreeSet<usize>,
}

impl Stir {
    /// Adds what came later.
    pub(super) fn add(&mut self, later: Self) {
        self.any |= later.any;
        self.finished |= later.finished;
        self.lost |= later.lost;
        self.sources.extend(later.sources);
    }
}

/// What an event says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    MadeDirectory,
    Made,
    Written,
    /// Closed by one who had it open for writing.
    Closed,
    /// Renamed into place.
    Came,
    /// Removed or renamed away.
    Went,
    /// Its rights or times changed.
    Touched,
}

impl What {
    /// `None`: of no interest. Opening and reading come first: our own looks are among them and must not make us look.
    fn of(kind: EventKind) -> Option<Self> {
        match kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Self::Closed),
            // Both ends of a rename were told one by one.
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => None,
            EventKind::Create(CreateKind::Folder) => Some(Self::MadeDirectory),
            EventKind::Create(_) => Some(Self::Made),
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some(Self::Came),
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => Some(Self::Went),
            EventKind::Modify(ModifyKind::Data(_)) => Some(Self::Written),
            EventKind::Any | EventKind::Modify(_) | EventKind::Other => Some(Self::Touched),
        }
    }

    fn stage(self) -> Option<Stage> {
        match self {
            Self::Closed | Self::Came => Some(Stage::Finished),
            Self::Made | Self::Written => Some(Stage::Writing),
            Self::MadeDirectory | Self::Went | Self::Touched => None,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Hint {
    path: PathBuf,
    what: What,
}

/// Where a directory is watched.
#[derive(Debug)]
struct Post {
    id: FileId,
    /// Only these names in it matter; it may be a busy directory, such as /tmp.
    only: Option<BTreeSet<OsString>>,
}

/// What waits for us, and what the thread of [`notify`] has to know to leave out the rest.
#[derive(Debug, Default)]
struct Waiting {
    hints: Vec<Hint>,
    lost: bool,
    failed: Option<Errno>,
    posts: BTreeMap<PathBuf, Post>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.hints.is_empty() && !self.lost && self.failed.is_none()
    }

    /// The watched directories at `path` and below.
    fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = (&'a PathBuf, &'a Post)> {
        let from = (Bound::Included(path), Bound::Unbounded);
        self.posts.range::<Path, _>(from).take_while(move |(post, _)| post.starts_with(path))
    }

    fn is_wanted(&self, path: &Path, what: What) -> bool {
        let parent = path.parent().and_then(|it| self.posts.get(it));
        let of_parent = parent.is_some_and(|it| {
            it.only
                .as_ref()
                .is_none_or(|only| path.file_name().is_some_and(|name| only.contains(name)))
        });
        // Nobody knows the directory while a watch on it is being placed.
        (parent.is_none() || of_parent)
            || self.posts.contains_key(path)
            || (what == What::Went && self.below(path).next().is_some())
    }

    fn take_in(&mut self, event: notify::Result<notify::Event>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                self.failed = Some(errno(&error));
                self.lost = true;
                return;
            }
        };
        if event.need_rescan() {
            self.lost = true;
        }
        let Some(what) = What::of(event.kind) else { return };
        for path in event.paths {
            if self.lost || !self.is_wanted(&path, what) {
                continue;
            }
            let hint = Hint { path, what };
            if what == What::Written && self.hints.last() == Some(&hint) {
                continue;
            }
            self.hints.push(hint);
        }
        if self.lost || self.hints.len() > HINT_LIMIT {
            self.lost = true;
            self.hints = Vec::new();
        }
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// [`notify`], whose calls panic once its thread has ended.
#[derive(Debug)]
struct Notify(Option<RecommendedWatcher>);

impl Notify {
    fn is_alive(&mut self) -> bool {
        self.0.as_mut().is_some_and(|it| it.configure(Config::default()).is_ok())
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        if !self.is_alive()
            && let Some(dead) = self.0.take()
        {
            std::mem::forget(dead);
        }
    }
}

/// Why a directory is watched.
#[derive(Debug, Default)]
struct Interest {
    /// It is part of these sources.
    sources: BTreeSet<usize>,
    /// Names in it that lead to a source, or that a symlink of a source leads to.
    names: BTreeSet<(OsString, usize)>,
}

impl Interest {
    fn all(&self) -> impl Iterator<Item = usize> {
        self.sources.iter().copied().chain(self.names.iter().map(|(_, it)| *it))
    }
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    interest: Interest,
    /// Asked for again since the last [`Watches::begin`].
    fresh: bool,
}

/// All watches of all sources. Works without events: then nothing is watched and none comes.
#[derive(Debug, Default)]
pub(super) struct Watches {
    notify: Option<Notify>,
    waiting: Arc<Mutex<Waiting>>,
    directories: HashMap<FileId, Watched>,
    /// Paths that [`notify`] may still watch and we do not. They are to be let go before the next watch is placed: the
    /// same directory under a second path shares one watch with the first.
    doubtful: BTreeSet<PathBuf>,
    marks: BTreeMap<Key, Mark>,
    /// The files that the last look wanted.
    targets: BTreeSet<Key>,
    serial: u64,
    /// Why not everything is watched.
    refused: Option<Errno>,
    /// What came while watches were changed.
    pending: Stir,
    /// Watches may be gone: the next look places them anew.
    rearm: bool,
    rearming: bool,
    armed: BootTime,
    now: BootTime,
}

impl Watches {
    /// Watches nothing yet. `wake` is called on another thread when there is something to [drain](Self::drain).
    pub(super) fn new(wake: impl Fn() + Send + 'static) -> Self {
        let waiting = Arc::<Mutex<Waiting>>::default();
        let theirs = Arc::clone(&waiting);
        let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let Ok(event) = &event
                && !event.need_rescan()
                && What::of(event.kind).is_none()
            {
                return;
            }
            let mut waiting = lock(&theirs);
            let was_empty = waiting.is_empty();
            waiting.take_in(event);
            let is_first = was_empty && !waiting.is_empty();
            drop(waiting);
            if is_first {
                wake();
            }
        });
        let mut watches = Self { waiting, ..Self::default() };
        match made {
            Ok(watcher) => watches.notify = Some(Notify(Some(watcher))),
            Err(error) => watches.refused = Some(errno(&error)),
        }
        watches
    }

    /// Whether every directory of the last look is watched, and if not, why.
    pub(super) fn complete(&self) -> Result<(), Option<Errno>> {
        match (&self.notify, self.refused) {
            (Some(_), None) => Ok(()),
            (_, refused) => Err(refused),
        }
    }

    /// Starts a look: directories that are not asked for again until [`Watches::end`] are let go.
    pub(super) fn begin(&mut self) {
        if !self.is_alive() {
            return;
        }
        self.refused = None;
        self.let_go();
        self.rearming = std::mem::take(&mut self.rearm) || self.now.since(self.armed) >= REARM;
        if self.rearming {
            self.armed = self.now;
        }
        for directory in self.directories.values_mut() {
            directory.fresh = false;
        }
        for post in lock(&self.waiting).posts.values_mut() {
            post.only = None;
        }
    }

    /// Whether there are events at all. That their thread answers brings most of the events with it that were on
    /// their way.
    fn is_alive(&mut self) -> bool {
        let Some(notify) = &mut self.notify else { return false };
        let alive = notify.is_alive();
        if !alive {
            self.notify = None;
            self.refused = None;
            self.directories.clear();
            self.doubtful.clear();
            let mut waiting = lock(&self.waiting);
            waiting.posts.clear();
            waiting.lost = true;
        }
        alive
    }

    /// Watches a directory of a source. To be called before its names are read, or a change in between is missed.
    pub(super) fn directory(&mut self, path: &Path, id: FileId, source: usize) {
        if let Some(directory) = self.watch(path, id) {
            directory.interest.sources.insert(source);
        }
    }

    /// Watches one name in a directory: it leads to a source, or a symlink of a source leads to it.
    pub(super) fn name(&mut self, directory: &Path, name: &OsStr, source: usize) -> Option<Key> {
        let id = id_at(directory)?;
        if let Some(directory) = self.watch(directory, id) {
            directory.interest.names.insert((name.to_owned(), source));
        }
        Some(Key { directory: id, name: name.to_owned() })
    }

    fn watch(&mut self, path: &Path, id: FileId) -> Option<&mut Watched> {
        self.notify.as_ref()?;
        let path = std::path::absolute(path).ok()?;
        match self.directories.get(&id).map(|it| (it.fresh, it.path.clone())) {
            Some((true, _)) => {}
            // Reached on another way, or moved.
            Some((false, before)) if before != path && id_at(&before) != Some(id) => {
                self.release(&before);
                self.place(path, id)?;
            }
            Some((false, before)) if self.rearming => self.place(before, id)?,
            Some((false, _)) => {}
            None => self.place(path, id)?,
        }
        let watched = self.directories.get_mut(&id)?;
        if !watched.fresh {
            watched.fresh = true;
            watched.interest = Interest::default();
        }
        Some(watched)
    }

    /// Places a watch, or the same once more, which costs nothing.
    fn place(&mut self, path: PathBuf, id: FileId) -> Option<()> {
        let before = lock(&self.waiting).posts.get(&path).map(|it| it.id);
        if before.is_some_and(|it| it != id) {
            self.release(&path);
        }
        let notify = self.notify.as_mut()?.0.as_mut()?;
        if let Err(error) = notify.watch(&path, RecursiveMode::NonRecursive) {
            self.release(&path);
            let is_gone = matches!(error.kind, ErrorKind::PathNotFound)
                || matches!(errno(&error), Errno::NOENT | Errno::NOTDIR);
            if !is_gone {
                self.refused = Some(errno(&error));
            }
            return None;
        }
        if id_at(&path) != Some(id) {
            // Another directory came under this path meanwhile, and which of them is watched is not known.
            self.release(&path);
            self.pending.any = true;
            self.rearm = true;
            return None;
        }
        lock(&self.waiting).posts.insert(path.clone(), Post { id, only: None });
        let new = || Watched { path, interest: Interest::default(), fresh: false };
        self.directories.entry(id).or_insert_with(new);
        Some(())
    }

    /// Lets go of the watch at `path`. What it told until now still counts for the directory that was there.
    fn release(&mut self, path: &Path) {
        self.unwatch(path);
        self.collect();
        if let Some(watched) = self.forget(path)
            && watched.fresh
        {
            // It was asked for in this look, so it is a part of a source, and where it is now is not known.
            self.pending.any = true;
            self.pending.sources.extend(watched.interest.all());
        }
        self.let_go();
    }

    fn unwatch(&mut self, path: &Path) {
        if let Some(notify) = self.notify.as_mut().and_then(|it| it.0.as_mut()) {
            // It may be gone already, which is what is wanted.
            notify.unwatch(path).ok();
        }
    }

    fn let_go(&mut self) {
        for path in std::mem::take(&mut self.doubtful) {
            self.unwatch(&path);
        }
    }

    fn forget(&mut self, path: &Path) -> Option<Watched> {
        let post = lock(&self.waiting).posts.remove(path)?;
        self.directories.remove(&post.id)
    }

    /// Ends a look: lets go of what was not asked for, and forgets the marks of files that nobody wants.
    pub(super) fn end(&mut self, wanted: BTreeSet<Key>) {
        let stale: Vec<PathBuf> =
            self.directories.values().filter(|it| !it.fresh).map(|it| it.path.clone()).collect();
        for path in stale {
            self.unwatch(&path);
            self.forget(&path);
        }
        self.let_go();
        for post in lock(&self.waiting).posts.values_mut() {
            let interest = self.directories.get(&post.id).map(|it| &it.interest);
            post.only = interest
                .filter(|it| it.sources.is_empty())
                .map(|it| it.names.iter().map(|(name, _)| name.clone()).collect());
        }
        self.marks.retain(|key, _| wanted.contains(key));
        self.targets = wanted;
    }

    pub(super) fn is_watched(&self, directory: FileId) -> bool {
        self.directories.contains_key(&directory)
    }

    pub(super) fn mark(&self, key: &Key) -> Option<Mark> {
        self.marks.get(key).copied()
    }

    /// What was known of a file has been used.
    pub(super) fn unmark(&mut self, key: &Key) {
        self.marks.remove(key);
    }

    /// Takes all events that have come. More may be on their way.
    pub(super) fn drain(&mut self, now: BootTime) -> Stir {
        self.now = now;
        self.collect();
        std::mem::take(&mut self.pending)
    }

    /// [Drains](Self::drain) what has come by now and most of what was on its way.
    pub(super) fn drain_late(&mut self, now: BootTime) -> Stir {
        self.is_alive();
        self.drain(now)
    }

    fn collect(&mut self) {
        let (hints, lost, failed) = {
            let mut waiting = lock(&self.waiting);
            let lost = std::mem::take(&mut waiting.lost);
            (std::mem::take(&mut waiting.hints), lost, waiting.failed.take())
        };
        let mut stir = std::mem::take(&mut self.pending);
        for hint in &hints {
            self.take(hint, &mut stir);
        }
        if lost || failed.is_some() || self.marks.len() > MARK_LIMIT {
            self.refused = failed.or(self.refused);
            self.rearm = true;
            self.marks.clear();
            stir.lost = true;
            stir.any = true;
            stir.sources.extend(
                self.directories.values().flat_map(|it| it.interest.sources.iter().copied()),
            );
        }
        self.pending = stir;
    }

    fn take(&mut self, hint: &Hint, stir: &mut Stir) {
        let Hint { path, what } = hint;
        if *what == What::Went {
            self.take_gone(path, stir);
        } else if let Some(watched) = self.watched(path) {
            // The directory itself: another one is there, or its rights changed.
            stir.any = true;
            stir.sources.extend(watched.interest.all());
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
        let Some((directory, watched)) = self.watched_id(parent) else { return };
        let interest = &watched.interest;
        let of_name = interest.names.iter().filter(|(it, _)| it == name).map(|(_, source)| *source);
        let named: BTreeSet<usize> = of_name.collect();
        let walked = interest.sources.clone();
        if named.is_empty() && walked.is_empty() {
            return;
        }
        let key = Key { directory, name: name.to_owned() };
        let hidden = name.as_bytes().starts_with(b".");
        self.mark_file(&key, *what);
        let counts = !named.is_empty()
            || super::scan::is_manifest(name)
            || name == super::ignore::FILE
            || self.targets.contains(&key)
            || *what == What::MadeDirectory
            || (*what == What::Came && !hidden && is_directory(path));
        // Anything else (a log, an editor's swap file) is worth a look only when it comes or goes: visible symlinks may
        // lead through it.
        if counts || matches!(what, What::MadeDirectory | What::Made | What::Came | What::Went) {
            stir.any = true;
            stir.finished |= counts && what.stage() == Some(Stage::Finished);
            stir.sources.extend(named);
            if !hidden || name == super::ignore::FILE {
                stir.sources.extend(walked);
            }
        }
    }

    /// With a name that goes, [`notify`] lets go of everything that it watches there and below.
    fn take_gone(&mut self, path: &Path, stir: &mut Stir) {
        let gone: Vec<PathBuf> =
            lock(&self.waiting).below(path).map(|(post, _)| post.clone()).collect();
        for path in gone {
            if let Some(watched) = self.forget(&path) {
                stir.any = true;
                stir.sources.extend(watched.interest.all());
            }
            self.doubtful.insert(path);
        }
    }

    fn watched_id(&self, path: &Path) -> Option<(FileId, &Watched)> {
        let id = lock(&self.waiting).posts.get(path)?.id;
        Some((id, self.directories.get(&id)?))
    }

    fn watched(&self, path: &Path) -> Option<&Watched> {
        self.watched_id(path).map(|(_, it)| it)
    }

    fn mark_file(&mut self, key: &Key, what: What) {
        match what.stage() {
            Some(stage) => {
                self.serial += 1;
                self.marks.insert(key.clone(), Mark { stage, serial: self.serial, at: self.now });
            }
            None if what == What::Went => drop(self.marks.remove(key)),
            None => {}
        }
    }
}

fn errno(error: &notify::Error) -> Errno {
    match &error.kind {
        ErrorKind::MaxFilesWatch => Errno::NOSPC,
        ErrorKind::Io(error) => Errno::from_io_error(error).unwrap_or(Errno::IO),
        ErrorKind::PathNotFound => Errno::NOENT,
        ErrorKind::Generic(_) | ErrorKind::WatchNotFound | ErrorKind::InvalidConfig(_) => Errno::IO,
    }
}

fn id_at(path: &Path) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|it| FileId::of(&it))
}

fn is_directory(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|it| it.is_dir())
}

#[cfg(test)]
impl Watches {
    /// Waits until every event of what happened before has come. `beside` is a directory for nothing else.
    pub(super) fn catch_up(&mut self, beside: &Path) {
        let Some(notify) = self.notify.as_mut().and_then(|it| it.0.as_mut()) else { return };
        notify.watch(beside, RecursiveMode::NonRecursive).unwrap();
        let begun = super::now();
        for round in 0.. {
            let marker = beside.join(format!("{}-{round}", self.serial));
            std::fs::write(&marker, "").unwrap();
            loop {
                let waiting = lock(&self.waiting);
                if waiting.hints.iter().any(|it| it.path == marker) {
                    return;
                }
                if waiting.lost {
                    break;
                }
                drop(waiting);
                assert!(super::now().since(begun) < Duration::from_mins(1), "no event came");
                std::thread::yield_now();
            }
            self.collect();
        }
    }

    /// No event comes any more.
    pub(super) fn deafen(&mut self) {
        let posts = std::mem::take(&mut lock(&self.waiting).posts);
        self.waiting = Arc::new(Mutex::new(Waiting { posts, ..Waiting::default() }));
        self.notify = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        base: tempfile::TempDir,
        watches: Watches,
        beside: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let watches = Watches::new(|| {});
            let [base, beside] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            Self { base, watches, beside }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.base.path().join(name)
        }

        /// Watches these directories and no others.
        fn watch(&mut self, names: &[&str]) {
            self.watches.begin();
            for name in names {
                let path = self.path(name);
                self.watches.directory(&path, id_at(&path).unwrap(), 0);
            }
            self.watches.end(BTreeSet::new());
            assert_eq!(self.watches.complete(), Ok(()));
        }

        fn drain(&mut self) -> Stir {
            self.watches.catch_up(self.beside.path());
            self.watches.drain(BootTime::default())
        }

        /// How many hints wait.
        fn heard_of_base(&mut self) -> usize {
            self.watches.catch_up(self.beside.path());
            let waiting = lock(&self.watches.waiting);
            waiting.hints.iter().filter(|it| it.path.starts_with(self.base.path())).count()
        }

        /// Whether a change in a directory is seen.
        fn is_heard(&mut self, name: &str) -> bool {
            self.drain();
            std::fs::write(self.path(name).join("web.yaml"), "").unwrap();
            self.drain().finished
        }
    }

    #[test]
    fn reading_makes_no_event() {
        let mut bench = Bench::new();
        std::fs::write(bench.path("web.yaml"), "a").unwrap();
        bench.watch(&[""]);
        bench.drain();
        std::fs::read(bench.path("web.yaml")).unwrap();
        assert_eq!(std::fs::read_dir(bench.path("")).unwrap().count(), 1);
        assert_eq!(bench.heard_of_base(), 0);
        assert_eq!(bench.drain(), Stir::default());
    }

    #[test]
    fn directories_that_change_places_are_watched_as_what_they_are_now() {
        let mut bench = Bench::new();
        for name in ["a", "b"] {
            std::fs::create_dir(bench.path(name)).unwrap();
        }
        for above in [true, false] {
            // With and without a watch on what is above, at which `notify` lets go of those below.
            let names: &[&str] = if above { &["", "a", "b"] } else { &["a", "b"] };
            bench.watch(names);
            std::fs::rename(bench.path("a"), bench.path("c")).unwrap();
            std::fs::rename(bench.path("b"), bench.path("a")).unwrap();
            std::fs::rename(bench.path("c"), bench.path("b")).unwrap();
            assert!(bench.drain().any);
            bench.watch(names);
            assert!(bench.is_heard("a") && bench.is_heard("b"), "{above}");
            let key = |name: &str| Key {
                directory: id_at(&bench.path(name)).unwrap(),
                name: "web.yaml".into(),
            };
            assert!(bench.watches.mark(&key("a")).is_some(), "{above}");
            assert!(bench.watches.mark(&key("b")).is_some(), "{above}");
        }
    }

    #[test]
    fn a_directory_that_moved_before_its_event_came_is_watched_after_it() {
        let mut bench = Bench::new();
        std::fs::create_dir(bench.path("a")).unwrap();
        bench.watch(&["", "a"]);
        std::fs::rename(bench.path("a"), bench.path("b")).unwrap();
        std::fs::create_dir(bench.path("a")).unwrap();
        bench.watch(&["", "a", "b"]);
        // What came meanwhile may say that some watch is gone, and then makes us look again.
        while bench.drain().any {
            bench.watch(&["", "a", "b"]);
        }
        assert!(bench.is_heard("a") && bench.is_heard("b"));
    }

    #[test]
    fn a_directory_that_moved_out_of_the_sources_is_let_go() {
        let mut bench = Bench::new();
        std::fs::create_dir(bench.path("a")).unwrap();
        std::fs::create_dir(bench.path("b")).unwrap();
        bench.watch(&["a", "b"]);
        std::fs::rename(bench.path("a"), bench.path("away")).unwrap();
        assert!(bench.drain().any);
        bench.watch(&["b"]);
        std::fs::write(bench.path("away/web.yaml"), "").unwrap();
        assert_eq!(bench.heard_of_base(), 0);
    }

    #[test]
    fn a_watch_that_is_gone_without_a_word_is_placed_anew() {
        let mut bench = Bench::new();
        bench.watch(&[""]);
        let path = bench.path("");
        bench.watches.unwatch(&path);
        assert!(!bench.is_heard(""));
        bench.watches.now = bench.watches.now + REARM;
        bench.watch(&[""]);
        assert!(bench.is_heard(""));
    }

    #[test]
    fn names_that_do_not_matter_in_a_busy_directory_are_left_out() {
        let mut bench = Bench::new();
        std::fs::create_dir(bench.path("root")).unwrap();
        let base = bench.path("");
        bench.watches.begin();
        bench.watches.name(&base, OsStr::new("link"), 0);
        let root = bench.path("root");
        bench.watches.directory(&root, id_at(&root).unwrap(), 0);
        bench.watches.end(BTreeSet::new());
        bench.drain();
        for _ in 0..10 {
            std::fs::write(bench.path("log"), "a").unwrap();
            std::fs::rename(bench.path("log"), bench.path("old")).unwrap();
        }
        assert_eq!(bench.heard_of_base(), 0);
        assert_eq!(bench.drain(), Stir::default());
        std::fs::write(bench.path("link"), "").unwrap();
        assert!(bench.drain().any);
        std::fs::rename(bench.path("root"), bench.path("away")).unwrap();
        assert!(bench.drain().any);
    }

    #[test]
    fn hints_without_end_are_lost_and_not_kept() {
        let mut waiting = Waiting::default();
        let event = |n: usize| {
            notify::Event::new(EventKind::Create(CreateKind::File))
                .add_path(PathBuf::from(format!("/{n}")))
        };
        for n in 0..=HINT_LIMIT {
            assert!(!waiting.lost);
            waiting.take_in(Ok(event(n)));
        }
        assert!(waiting.lost && waiting.hints.capacity() == 0);
        waiting.take_in(Ok(event(0)));
        assert!(waiting.hints.is_empty());
        let mut waiting = Waiting::default();
        let overflow = notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        waiting.take_in(Ok(overflow));
        assert!(waiting.lost && waiting.failed.is_none());
        waiting.take_in(Err(notify::Error::new(ErrorKind::MaxFilesWatch)));
        assert_eq!(waiting.failed, Some(Errno::NOSPC));
    }
    /// The queue of the kernel is full as soon as nobody reads it, whoever made its events; what came after that is
    /// told by nobody.
    #[test]
    fn a_queue_that_overflowed_is_known_to_have_lost_something_and_goes_on() {
        let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        let mut bench = Bench::new();
        std::fs::create_dir(bench.path("root")).unwrap();
        let (base, root) = (bench.path(""), bench.path("root"));
        bench.watches.begin();
        bench.watches.name(&base, OsStr::new("link"), 0);
        bench.watches.directory(&root, id_at(&root).unwrap(), 1);
        bench.watches.end(BTreeSet::new());
        bench.drain();
        {
            // Keeps the thread that reads them from going on.
            let waiting = Arc::clone(&bench.watches.waiting);
            let _held = lock(&waiting);
            std::fs::write(bench.path("log"), "a").unwrap();
            for _ in 0..limit {
                // Two events each, of names that nobody wants: no hint is kept of them that could be too many.
                std::fs::rename(bench.path("log"), bench.path("old")).unwrap();
                std::fs::rename(bench.path("old"), bench.path("log")).unwrap();
            }
            std::fs::write(bench.path("root/web.yaml"), "").unwrap();
        }
        let stir = bench.drain();
        assert!(stir.lost && stir.any && stir.sources.contains(&1), "{stir:?}");
        assert!(!stir.finished, "the event of that write was told");
        assert!(!bench.drain().lost);
        assert!(bench.is_heard("root"));
    }
}
