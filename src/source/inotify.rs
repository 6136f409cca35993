//! Watches on directories, and what their events say about single files: whether the last write was followed by a
//! close.
//!
//! Events are hints to look again and say when a file is finished; no state is built from them. inotify is used
//! directly and read by the thread that looks at the files, because only then is it known which of two came first:
//! an event, or the reading of the file.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::file::FileId;
use crate::desired::BootTime;

/// Most files of which it is remembered how their writing goes. Beyond that everything counts as not seen.
const MARK_LIMIT: usize = 50_000;

/// Most batches of events that are read at once: a writer that never rests must not keep us from looking.
const BATCH_LIMIT: usize = 256;

const BUFFER: usize = 16 << 10;

/// What matters of a directory that is only on the way to a source; it may be a busy one, such as /tmp.
const WAY: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What matters of a directory that files are read from. Opening and reading are not in it, so looking makes no events.
const CONTENT: WatchFlags = WAY
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::EXCL_UNLINK);

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
    /// Grows with every event; equal means that nothing happened in between.
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

/// Why a directory is watched.
#[derive(Debug, Default)]
struct Interest {
    /// It is part of these sources.
    sources: BTreeSet<usize>,
    /// Names in it that lead to a source, or that a symlink of a source leads to.
    names: BTreeSet<(OsString, usize)>,
}

#[derive(Debug)]
struct Watched {
    id: FileId,
    interest: Interest,
    events: WatchFlags,
    /// Asked for again since the last [`Watches::begin`].
    fresh: bool,
}

/// All watches of all sources. Works without inotify: then nothing is watched and no event comes.
#[derive(Debug, Default)]
pub(super) struct Watches {
    inotify: Option<OwnedFd>,
    directories: HashMap<i32, Watched>,
    by_id: HashMap<FileId, i32>,
    marks: BTreeMap<Key, Mark>,
    /// The files that the last look wanted.
    targets: BTreeSet<Key>,
    serial: u64,
    /// Why not everything is watched.
    refused: Option<Errno>,
}

impl Watches {
    /// Watches nothing yet; `enabled: false` never will.
    pub(super) fn new(enabled: bool) -> Self {
        let mut watches = Self::default();
        if enabled {
            match inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC) {
                Ok(fd) => watches.inotify = Some(fd),
                Err(error) => watches.refused = Some(error),
            }
        }
        watches
    }

    /// For waiting.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(|it| it.as_fd())
    }

    /// Whether every directory of the last look is watched, and if not, why.
    pub(super) fn complete(&self) -> Result<(), Option<Errno>> {
        match (&self.inotify, self.refused) {
            (Some(_), None) => Ok(()),
            (_, refused) => Err(refused),
        }
    }

    /// Starts a look: directories that are not asked for again until [`Watches::end`] are let go.
    pub(super) fn begin(&mut self) {
        if self.inotify.is_some() {
            self.refused = None;
        }
        for directory in self.directories.values_mut() {
            directory.fresh = false;
        }
    }

    /// Watches a directory of a source. To be called before its names are read, or a change in between is missed.
    pub(super) fn directory(&mut self, path: &Path, id: FileId, source: usize) {
        if let Some(directory) = self.watch(path, id, CONTENT) {
            directory.interest.sources.insert(source);
        }
    }

    /// Watches one name in a directory that leads to a source.
    pub(super) fn way(&mut self, directory: &Path, name: &OsStr, source: usize) {
        self.name(directory, name, source, WAY);
    }

    /// Watches one file that a symlink of a source leads to.
    pub(super) fn target(&mut self, directory: &Path, name: &OsStr, source: usize) -> Option<Key> {
        self.name(directory, name, source, CONTENT)
    }

    fn name(
        &mut self,
        directory: &Path,
        name: &OsStr,
        source: usize,
        events: WatchFlags,
    ) -> Option<Key> {
        let id = FileId::of(&std::fs::metadata(directory).ok()?);
        if let Some(directory) = self.watch(directory, id, events) {
            directory.interest.names.insert((name.to_owned(), source));
        }
        Some(Key { directory: id, name: name.to_owned() })
    }

    fn watch(&mut self, path: &Path, id: FileId, events: WatchFlags) -> Option<&mut Watched> {
        let wd = match self.by_id.get(&id) {
            Some(wd) if self.directories.get(wd).is_some_and(|it| it.events.contains(events)) => {
                *wd
            }
            _ => self.add(path, id, events)?,
        };
        let watched = self.directories.get_mut(&wd)?;
        if !watched.fresh {
            watched.fresh = true;
            watched.interest = Interest::default();
        }
        Some(watched)
    }

    fn add(&mut self, path: &Path, id: FileId, events: WatchFlags) -> Option<i32> {
        let fd = self.inotify.as_ref()?;
        let wd = match inotify::add_watch(fd, path, events) {
            Ok(wd) => wd,
            Err(Errno::NOENT | Errno::NOTDIR) => return None,
            Err(error) => {
                self.refused = Some(error);
                return None;
            }
        };
        // Another directory may have come under this path in the meantime; its events still say "look again".
        let id = std::fs::metadata(path).map_or(id, |it| FileId::of(&it));
        match self.directories.get_mut(&wd) {
            Some(watched) if watched.id == id => watched.events = events,
            _ => {
                self.forget(wd);
                let watched = Watched { id, interest: Interest::default(), events, fresh: false };
                self.directories.insert(wd, watched);
            }
        }
        self.by_id.insert(id, wd);
        Some(wd)
    }

    /// Ends a look: lets go of what was not asked for, and forgets the marks of files that nobody wants.
    pub(super) fn end(&mut self, wanted: BTreeSet<Key>) {
        let stale: Vec<i32> =
            self.directories.iter().filter(|(_, it)| !it.fresh).map(|(wd, _)| *wd).collect();
        for wd in stale {
            self.forget(wd);
            if let Some(fd) = &self.inotify {
                // It may be gone already, which is what is wanted.
                inotify::remove_watch(fd, wd).ok();
            }
        }
        self.marks.retain(|key, _| wanted.contains(key));
        self.targets = wanted;
    }

    fn forget(&mut self, wd: i32) {
        if let Some(watched) = self.directories.remove(&wd)
            && self.by_id.get(&watched.id) == Some(&wd)
        {
            self.by_id.remove(&watched.id);
        }
    }

    pub(super) fn is_watched(&self, directory: FileId) -> bool {
        self.by_id.contains_key(&directory)
    }

    pub(super) fn mark(&self, key: &Key) -> Option<Mark> {
        self.marks.get(key).copied()
    }

    /// What was known of a file has been used.
    pub(super) fn unmark(&mut self, key: &Key) {
        self.marks.remove(key);
    }

    /// Reads all events that are there. After it returns, every change that was complete before the call is marked.
    pub(super) fn drain(&mut self, now: BootTime) -> Stir {
        let mut stir = Stir::default();
        let Some(fd) = self.inotify.take() else { return stir };
        let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER];
        let mut reader = inotify::Reader::new(&fd, &mut buffer);
        let mut batches = 0;
        loop {
            if reader.is_buffer_empty() {
                batches += 1;
                if batches > BATCH_LIMIT {
                    // What was read after this point cannot be ordered any more.
                    stir.lost = true;
                    break;
                }
            }
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|it| OsStr::from_bytes(it.to_bytes()));
                    self.take(event.wd(), event.events(), name, now, &mut stir);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => {
                    self.refused = Some(error);
                    stir.lost = true;
                    break;
                }
            }
        }
        self.inotify = Some(fd);
        if self.marks.len() > MARK_LIMIT {
            stir.lost = true;
        }
        if stir.lost {
            self.marks.clear();
            stir.any = true;
            stir.sources.extend(
                self.directories.values().flat_map(|it| it.interest.sources.iter().copied()),
            );
        }
        stir
    }

    fn take(
        &mut self,
        wd: i32,
        events: ReadFlags,
        name: Option<&OsStr>,
        now: BootTime,
        stir: &mut Stir,
    ) {
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            stir.lost = true;
            return;
        }
        let Some(watched) = self.directories.get(&wd) else { return };
        let interest = &watched.interest;
        let Some(name) = name else {
            // The directory itself: moved, removed, unmounted, or its rights changed.
            stir.any = true;
            stir.sources
                .extend(interest.sources.iter().chain(interest.names.iter().map(|(_, it)| it)));
            if events.intersects(ReadFlags::IGNORED | ReadFlags::UNMOUNT) {
                self.forget(wd);
            }
            return;
        };
        let key = Key { directory: watched.id, name: name.to_owned() };
        let of_name = interest.names.iter().filter(|(it, _)| it == name).map(|(_, source)| *source);
        let named: BTreeSet<usize> = of_name.collect();
        let walked = interest.sources.clone();
        if named.is_empty() && walked.is_empty() {
            return;
        }
        let hidden = name.as_bytes().starts_with(b".");
        let is_directory = events.contains(ReadFlags::ISDIR);
        if !is_directory {
            self.mark_file(&key, events, now);
        }
        let counts = !named.is_empty()
            || is_directory
            || super::scan::is_manifest(name)
            || name == super::ignore::FILE
            || self.targets.contains(&key);
        let comes_or_goes =
            ReadFlags::CREATE | ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO;
        // Anything else (a log, an editor's swap file) is worth a look only when it comes or goes: visible symlinks may
        // lead through it.
        if counts || events.intersects(comes_or_goes) {
            stir.any = true;
            stir.finished |=
                counts && events.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO);
            stir.sources.extend(named);
            if !hidden || name == super::ignore::FILE {
                stir.sources.extend(walked);
            }
        }
    }

    fn mark_file(&mut self, key: &Key, events: ReadFlags, now: BootTime) {
        let stage = if events.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO) {
            Stage::Finished
        } else if events.intersects(ReadFlags::MODIFY | ReadFlags::CREATE) {
            Stage::Writing
        } else {
            if events.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
                self.marks.remove(key);
            }
            return;
        };
        self.serial += 1;
        self.marks.insert(key.clone(), Mark { stage, serial: self.serial, at: now });
    }
}
