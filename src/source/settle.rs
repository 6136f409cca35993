//! Which content of a file counts: only a settled one.
//!
//! A content is settled when all of this holds:
//!
//! * Events say that the file came by rename, or that its last write was followed by its close. Or no events were seen
//!   (start-up, overflow, a network file system) and two reads agree, a quiet time apart; on a local file system, a
//!   change time a few seconds ago stands for the first of the two.
//! * After it was read, nobody has the file open for writing. Where that cannot be known, no later event has come since
//!   and, without events, the two reads are a second apart.
//! * After that, the file still looks as it did when it was read.
//!
//! The first is a hint, because events come late; the others make it sure: there was a time after the read at which
//! the file was closed, and from the read until then nothing was written. Until all of it holds the last settled
//! content counts: most prefixes of a manifest are valid manifests.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::events::{Key, Mark, Stage, Stir, Watches};
use super::file::{self, Content, FileId, Look, Refusal, Signature};
use super::ignore::{self, BadLine, Ignore};
use super::scan::{Entry, Found, Place, Walk};
use super::writers::{Way, Writers};
use crate::desired::history::LATEST;
use crate::desired::{BootTime, FileState, Root, Scan, Source};
use crate::manifest::{self, Position, Problem, Reading, Severity};

/// Between two reads that must agree, where it can be known that nobody has the file open for writing.
///
/// A half-written file that somebody has open never counts, however short this is. It is for a writer that is between
/// two opens (`echo a > f; echo b >> f`), for whom a shell needs less than a millisecond, and starting a program a few.
/// It is more than two ticks of the slowest clock that change times are read from (10 ms), so that a write after the
/// first read shows in the second.
pub(super) const QUIET: Duration = Duration::from_millis(25);

/// Between two reads that must agree, where that cannot be known.
pub(super) const UNKNOWN: Duration = Duration::from_secs(1);

/// A content that has been the same for so long, by its change time, is one on which two reads agree: the kernel says
/// that nothing came between. Longer than a second, because that clock may be set.
const AGED: Duration = Duration::from_secs(3);

/// A file that was seen to be written is left alone for so long before it is asked whether it still is: normally
/// its close is seen.
const WRITING: Duration = Duration::from_secs(1);

/// Longest time between two reads of a file, or two walks over a source, that is another one each time.
const RESTLESS: Duration = Duration::from_secs(2);

/// Longest time between two questions for a file that somebody keeps open.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// How long the patterns of a `.evenkeelignore` that is gone still count: git replaces it by unlink and create, and
/// without it drafts would start.
const IGNORE_AFTER: Duration = Duration::from_secs(2);

type Digest = [u8; 32];

/// Content of a file that counts.
#[derive(Debug, Clone)]
struct Settled {
    /// `None`: it has to be read again to know.
    signature: Option<Signature>,
    digest: Option<Digest>,
    refusal: Option<Refusal>,
    reading: Arc<Reading>,
    /// Only of `.evenkeelignore`.
    ignore: Option<Ignore>,
}

/// Content that may come to count.
#[derive(Debug, Clone)]
struct Candidate {
    signature: Signature,
    digest: Digest,
    since: BootTime,
    /// How often a writer was found.
    asked: u32,
    due: BootTime,
}

/// What is remembered of one file.
#[derive(Debug, Clone, Default)]
struct Tracked {
    settled: Option<Settled>,
    candidate: Option<Candidate>,
    /// When to look again.
    due: Option<BootTime>,
    /// How many reads in a row came to nothing because it was changing.
    restless: u32,
    /// Somebody is known to be writing it, or that cannot be known: not a matter of a short wait.
    held_open: bool,
}

/// One source over time.
#[derive(Debug)]
pub(super) struct Tracker {
    pub(super) source: Source,
    index: usize,
    files: BTreeMap<PathBuf, Tracked>,
    ignore_file: Tracked,
    patterns: Ignore,
    /// Since when there is no `.evenkeelignore` although patterns count.
    ignore_gone: Option<BootTime>,
    fingerprint: Option<u64>,
    last_change: BootTime,
    /// Identity of the root at the last walk.
    pub(super) root: Option<FileId>,
    /// How many walks in a row saw something vanish.
    unsteady: u32,
    /// The patterns changed after the walk that used them.
    repeat: bool,
}

/// Answers who has files open for writing.
pub(super) type Ask = fn(&BTreeMap<FileId, Way>) -> Writers;

/// A read whose result may count.
#[derive(Debug)]
struct Read {
    file: Which,
    key: Option<Key>,
    mark: Option<Mark>,
    place: Place,
    content: Content,
    digest: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Which {
    Ignore,
    Manifest(PathBuf),
}

/// The walk has to be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Repeat;

/// A look at one source, begun.
#[derive(Debug)]
pub(super) struct Begun {
    found: Found,
    reads: Vec<Read>,
    /// Before the walk: everything in it was seen after this.
    at: BootTime,
    changed: bool,
}

/// A look at one source of which only the writers of some files are still to be known.
#[derive(Debug)]
struct Weighed {
    found: Found,
    /// What counts if nobody is writing it.
    ready: Vec<Read>,
    at: BootTime,
}

/// Ends looks: decides what counts of what was read. `stir` is what events brought since, and is added to.
///
/// All looks together, because to ask for writers may be to look at every process.
pub(super) fn end(
    looks: Vec<(&mut Tracker, Begun)>,
    watches: &mut Watches,
    stir: &mut Stir,
    ask: Ask,
    now: BootTime,
) -> Vec<Result<Scan, Repeat>> {
    let weigh = |(tracker, begun): (_, _)| {
        let tracker: &mut Tracker = tracker;
        let weighed = tracker.weigh(begun, watches, stir, now);
        (tracker, weighed)
    };
    let weighed: Vec<(&mut Tracker, Weighed)> = looks.into_iter().map(weigh).collect();
    let ready = weighed.iter().flat_map(|(_, it)| &it.ready);
    let files: BTreeMap<FileId, Way> = ready.filter_map(Read::asks).collect();
    let answer = if files.is_empty() { Writers::default() } else { ask(&files) };
    if weighed.iter().any(|(_, it)| !it.ready.is_empty()) {
        stir.add(watches.drain_late(now));
    }
    weighed
        .into_iter()
        .map(|(tracker, weighed)| tracker.conclude(weighed, watches, stir, &answer, now))
        .collect()
}

impl Read {
    /// Whether no later event has come.
    fn is_unchanged(&self, watches: &Watches, stir: &Stir) -> bool {
        !stir.lost && self.key.as_ref().and_then(|key| watches.mark(key)) == self.mark
    }

    /// Whether the file looks as it did when it was read.
    fn is_as_it_was(&self) -> bool {
        std::fs::metadata(&self.place.path)
            .is_ok_and(|it| Signature::of(&it) == self.content.signature)
    }

    /// What to ask for its writers; `None` where no answer would be whole.
    fn asks(&self) -> Option<(FileId, Way)> {
        let name = self.key.as_ref().filter(|_| !self.place.many_names);
        let way = Way { path: self.place.path.clone(), name: name.map(|key| key.name.clone()) };
        self.content.local.then_some((self.content.signature.id, way))
    }

    fn unmark(&self, watches: &mut Watches) {
        if let Some(key) = &self.key {
            watches.unmark(key);
        }
    }
}

impl Begun {
    /// The files whose events matter.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        let entries = self.found.files.values().chain(&self.found.ignore);
        entries.filter_map(|entry| match entry {
            Entry::File(place) => place.key.clone(),
            Entry::Refused(_) => None,
        })
    }
}

impl Tracker {
    pub(super) fn new(source: Source, index: usize) -> Self {
        Self {
            source,
            index,
            files: BTreeMap::new(),
            ignore_file: Tracked::default(),
            patterns: Ignore::default(),
            ignore_gone: None,
            fingerprint: None,
            last_change: BootTime::default(),
            root: None,
            unsteady: 0,
            repeat: false,
        }
    }

    /// Something changed in this source by what an event says.
    pub(super) fn changed(&mut self, now: BootTime) {
        self.last_change = self.last_change.max(now);
    }

    /// Walks over the source and reads what is new. `forget`: events were lost, so every file is read again.
    pub(super) fn begin(&mut self, watches: &mut Watches, now: BootTime, forget: bool) -> Begun {
        let walk =
            Walk { root: self.source.path(), source: self.index, ignore: &self.patterns, watches };
        let found = walk.run();
        self.root = found.id;
        self.unsteady = if found.unsteady { self.unsteady.saturating_add(1) } else { 0 };
        self.repeat = false;
        let changed = self.is_changed(&found, watches);
        if changed {
            self.changed(now);
        }

        self.files.retain(|path, _| found.files.contains_key(path));
        if forget {
            let all = self.files.values_mut().chain([&mut self.ignore_file]);
            for settled in all.filter_map(|it| it.settled.as_mut()) {
                settled.signature = None;
            }
        }
        let mut reads = Vec::new();
        for (path, entry) in &found.files {
            let tracked = self.files.entry(path.clone()).or_default();
            let shown = shown(self.source.path(), path);
            reads.extend(tracked.look(Which::Manifest(path.clone()), entry, &shown, watches, now));
        }
        match &found.ignore {
            Some(entry) => {
                self.ignore_gone = None;
                let shown = self.source.path().join(ignore::FILE);
                reads.extend(self.ignore_file.look(Which::Ignore, entry, &shown, watches, now));
            }
            None if self.ignore_file.settled.is_some() => {
                let since = *self.ignore_gone.get_or_insert(now);
                let until = (since.max(self.last_change) + IGNORE_AFTER).min(since + LATEST);
                if now >= until {
                    self.ignore_file = Tracked::default();
                    self.patterns = Ignore::default();
                    self.ignore_gone = None;
                    self.repeat = true;
                } else {
                    self.ignore_file.due = Some(until);
                }
            }
            None => self.ignore_file = Tracked::default(),
        }
        Begun { found, reads, at: now, changed }
    }

    /// Sorts out what may count of what was read, after the events that came meanwhile were taken too.
    fn weigh(
        &mut self,
        begun: Begun,
        watches: &mut Watches,
        stir: &Stir,
        now: BootTime,
    ) -> Weighed {
        let Begun { found, reads, at, changed } = begun;
        if changed {
            // On a slow disk a walk takes long, and what it found may have happened a moment ago.
            self.changed(now);
        }
        let mut ready = Vec::new();
        for read in reads {
            let tracked = self.tracked(&read.file);
            let same_as_settled =
                tracked.settled.as_ref().is_some_and(|settled| settled.digest == Some(read.digest));
            let same_as_before = tracked.candidate.as_ref().is_some_and(|candidate| {
                candidate.signature == read.content.signature
                    && candidate.digest == read.digest
                    && at >= candidate.since + QUIET
            });
            let aged = read.content.age >= AGED && !is_writing(&read);
            let may_count = is_finished(&read) || aged || same_as_before;
            if !read.is_unchanged(watches, stir) || read.content.torn {
                tracked.wait_restlessly(&read, now);
            } else if may_count && same_as_settled {
                // It counts already, whoever is about to write it.
                self.settle(&read, watches);
            } else if may_count {
                ready.push(read);
            } else {
                tracked.wait_restlessly(&read, now);
            }
        }
        Weighed { found, ready, at }
    }

    /// Decides what counts, knowing the writers. `Err`: the walk has to be repeated at once, because what it leaves out
    /// has changed.
    fn conclude(
        &mut self,
        weighed: Weighed,
        watches: &mut Watches,
        stir: &Stir,
        answer: &Writers,
        now: BootTime,
    ) -> Result<Scan, Repeat> {
        let Weighed { found, ready, at } = weighed;
        for read in ready {
            self.conclude_read(&read, watches, stir, answer, at, now);
        }
        if self.repeat { Err(Repeat) } else { Ok(self.scan(&found, at)) }
    }

    /// Settles a file or waits. It was read between `at` and `now`.
    fn conclude_read(
        &mut self,
        read: &Read,
        watches: &mut Watches,
        stir: &Stir,
        answer: &Writers,
        at: BootTime,
        now: BootTime,
    ) {
        let finished = is_finished(read);
        let writing = is_writing(read);
        let aged = read.content.age >= AGED;
        let id = read.content.signature.id;
        let known = read.asks().is_some() && !answer.unknown.contains(&id);
        let tracked = self.tracked(&read.file);
        let since = tracked.candidate.as_ref().map_or(now, |it| it.since);
        if !read.is_unchanged(watches, stir) {
            tracked.wait_restlessly(read, now);
        } else if answer.open.contains(&id) {
            let asked = tracked.candidate.as_ref().map_or(0, |it| it.asked);
            let pause = (QUIET * 2).saturating_mul(1_u32 << asked.min(16)).min(ASK_LIMIT);
            tracked.wait(read, now + pause, now);
            tracked.held_open = true;
            if let Some(candidate) = &mut tracked.candidate {
                candidate.asked += 1;
            }
            if finished {
                read.unmark(watches);
            }
        } else if !read.is_as_it_was() {
            // Its event is on its way; the one that was there was about something else.
            tracked.wait_restlessly(read, now);
            if finished {
                read.unmark(watches);
            }
        } else if known || finished || (!writing && (aged || at >= since + UNKNOWN)) {
            self.settle(read, watches);
        } else if writing {
            // It was seen to be written and its close was not: only the close, or knowing better, settles it.
            tracked.wait(read, now + ASK_LIMIT, now);
            tracked.held_open = true;
        } else {
            tracked.wait(read, since + UNKNOWN, now);
        }
    }

    fn tracked(&mut self, which: &Which) -> &mut Tracked {
        match which {
            Which::Ignore => &mut self.ignore_file,
            Which::Manifest(path) => self.files.entry(path.clone()).or_default(),
        }
    }

    fn settle(&mut self, read: &Read, watches: &mut Watches) {
        read.unmark(watches);
        let shown = match &read.file {
            Which::Ignore => self.source.path().join(ignore::FILE),
            Which::Manifest(path) => shown(self.source.path(), path),
        };
        let is_ignore = read.file == Which::Ignore;
        let tracked = self.tracked(&read.file);
        tracked.candidate = None;
        tracked.due = None;
        tracked.restless = 0;
        tracked.held_open = false;
        if let Some(settled) = &mut tracked.settled
            && settled.digest == Some(read.digest)
        {
            settled.signature = Some(read.content.signature);
            return;
        }
        let before = tracked.settled.take().and_then(|it| it.ignore);
        let (reading, patterns) = if !is_ignore {
            (read_manifest(&shown, &read.content), None)
        } else if is_empty(&read.content) && before.as_ref().is_some_and(|it| !it.is_empty()) {
            // Who truncates a file and dies before he has written it does not mean that drafts shall start.
            let message =
                "is empty, and what it left out stays left out; write it again, or delete it";
            (manifest::unreadable(&shown, "empty-file", message), None)
        } else {
            read_ignore(&shown, &read.content)
        };
        // Patterns that cannot be read leave the last ones in place.
        tracked.settled = Some(Settled {
            signature: Some(read.content.signature),
            digest: Some(read.digest),
            refusal: None,
            reading: Arc::new(reading),
            ignore: patterns.clone().or(before),
        });
        if let Some(patterns) = patterns {
            self.patterns = patterns;
            self.repeat = true;
        }
    }

    /// Compares what the walk found with what the last one found.
    fn is_changed(&mut self, found: &Found, watches: &Watches) -> bool {
        let mut hasher = DefaultHasher::new();
        match &found.root {
            Root::Directory { device } => (0, device).hash(&mut hasher),
            Root::File => 1.hash(&mut hasher),
            Root::Missing => 2.hash(&mut hasher),
            Root::Unreadable(why) => (3, why).hash(&mut hasher),
        }
        found.id.hash(&mut hasher);
        found.files.hash(&mut hasher);
        found.ignore.hash(&mut hasher);
        found.below.hash(&mut hasher);
        for (id, changed) in &found.directories {
            // Where there are events they say more: what is hidden does not count.
            (id, (!watches.is_watched(*id)).then_some(changed)).hash(&mut hasher);
        }
        let fingerprint = hasher.finish();
        self.fingerprint.replace(fingerprint) != Some(fingerprint)
    }

    fn scan(&self, found: &Found, at: BootTime) -> Scan {
        let mut scan = Scan {
            source: self.source.clone(),
            at,
            last_change: self.last_change,
            root: found.root.clone(),
            files: BTreeMap::new(),
            below: found.below.clone(),
        };
        let state = |tracked: &Tracked| match &tracked.settled {
            Some(settled) => FileState::Settled(Arc::clone(&settled.reading)),
            None => FileState::Unsettled,
        };
        if found.ignore.is_some() || self.ignore_gone.is_some() {
            if self.ignore_file.settled.as_ref().is_none_or(|it| it.ignore.is_none()) {
                // What it leaves out is not known, and must not start.
                scan.root = Root::Unreadable(format!("its {} cannot be read (yet)", ignore::FILE));
                scan.files.insert(PathBuf::from(ignore::FILE), state(&self.ignore_file));
                return scan;
            }
            let has_problems = |it: &Settled| !it.reading.problems.is_empty();
            if self.ignore_file.settled.as_ref().is_some_and(has_problems) {
                scan.files.insert(PathBuf::from(ignore::FILE), state(&self.ignore_file));
            }
        }
        let files = found
            .files
            .keys()
            .filter_map(|path| Some((path.clone(), state(self.files.get(path)?))));
        scan.files.extend(files);
        scan
    }

    /// A look that says nothing.
    pub(super) fn unknown(&self, at: BootTime) -> Scan {
        Scan {
            source: self.source.clone(),
            at,
            last_change: self.last_change,
            root: Root::Unreadable(format!("its {} keeps changing", ignore::FILE)),
            files: BTreeMap::new(),
            below: BTreeMap::new(),
        }
    }

    /// When to look again, whatever happens.
    pub(super) fn due(&self, now: BootTime) -> Option<BootTime> {
        let again = self.unsteady.checked_sub(1).map(|times| now + pause(times));
        self.tracked_files().filter_map(|it| it.due).chain(again).min()
    }

    /// Whether some content only needs a short time to count.
    pub(super) fn is_settling(&self) -> bool {
        let settling = |it: &Tracked| it.settled.is_none() && !it.held_open;
        self.unsteady > 0
            || self.files.values().any(settling)
            || (self.ignore_file.due.is_some() && settling(&self.ignore_file))
    }

    fn tracked_files(&self) -> impl Iterator<Item = &Tracked> {
        self.files.values().chain([&self.ignore_file])
    }
}

impl Tracked {
    /// Reads the file if it may have changed.
    fn look(
        &mut self,
        file: Which,
        entry: &Entry,
        shown: &Path,
        watches: &mut Watches,
        now: BootTime,
    ) -> Option<Read> {
        let place = match entry {
            Entry::File(place) => place,
            Entry::Refused(refusal) => {
                self.refuse(refusal, shown, file == Which::Ignore);
                return None;
            }
        };
        let mark = place.key.as_ref().and_then(|key| watches.mark(key));
        if let Some(settled) = &self.settled
            && settled.signature == Some(place.signature)
            && mark.is_none()
        {
            self.candidate = None;
            self.due = None;
            self.restless = 0;
            return None;
        }
        if let Some(Mark { stage: Stage::Writing, at, .. }) = mark
            && now < at + WRITING
            && !place.many_names
        {
            self.due = Some(at + WRITING);
            self.held_open = true;
            return None;
        }
        // Asked before its time, by an event of another file.
        if mark.is_none_or(|it| it.stage == Stage::Writing)
            && let Some(candidate) = &self.candidate
            && candidate.signature == place.signature
            && now < candidate.due
        {
            self.due = Some(candidate.due);
            return None;
        }
        match file::read(&place.path) {
            Look::Bytes(content) => {
                let digest = Sha256::new()
                    .chain_update(&content.bytes)
                    .chain_update([u8::from(content.too_large)])
                    .finalize()
                    .into();
                Some(Read {
                    file,
                    key: place.key.clone(),
                    mark,
                    place: place.clone(),
                    content,
                    digest,
                })
            }
            Look::Refused(refusal) => {
                self.refuse(&refusal, shown, file == Which::Ignore);
                None
            }
            Look::Gone => {
                self.due = Some(now + self.next_pause());
                None
            }
        }
    }

    /// What cannot be read at all counts at once: it can only hold, never act.
    fn refuse(&mut self, refusal: &Refusal, shown: &Path, is_ignore: bool) {
        self.candidate = None;
        self.due = None;
        self.restless = 0;
        self.held_open = false;
        if self.settled.as_ref().is_some_and(|it| it.refusal.as_ref() == Some(refusal)) {
            return;
        }
        let ignore = self.settled.take().and_then(|it| it.ignore).filter(|_| is_ignore);
        self.settled = Some(Settled {
            signature: None,
            digest: None,
            refusal: Some(refusal.clone()),
            reading: Arc::new(manifest::unreadable(shown, refusal.code, refusal.message.clone())),
            ignore,
        });
    }

    /// How long to leave alone what is changing: ever longer, so that what never rests costs little.
    fn next_pause(&mut self) -> Duration {
        let pause = pause(self.restless);
        self.restless = self.restless.saturating_add(1);
        pause
    }

    /// Waits for another read that agrees.
    fn wait_restlessly(&mut self, read: &Read, now: BootTime) {
        let due = now + self.next_pause();
        self.wait(read, due, now);
    }

    /// Remembers what was read, to be compared with what is read at `due`.
    fn wait(&mut self, read: &Read, due: BootTime, now: BootTime) {
        let same = self
            .candidate
            .as_ref()
            .filter(|it| it.signature == read.content.signature && it.digest == read.digest);
        let (since, asked) = same.map_or((now, 0), |it| (it.since, it.asked));
        self.candidate = Some(Candidate {
            signature: read.content.signature,
            digest: read.digest,
            since,
            asked,
            due,
        });
        self.due = Some(due);
        self.held_open = false;
    }
}

/// How long to wait after so many waits for the same. Writers change a file a few times in a row, and rest.
fn pause(times: u32) -> Duration {
    QUIET.saturating_mul(1 << times.saturating_sub(3).min(16)).min(RESTLESS)
}

/// Whether events say that it came by rename or was closed after its last write.
fn is_finished(read: &Read) -> bool {
    matches!(read.mark, Some(Mark { stage: Stage::Finished, .. }))
}

/// Whether it was seen to be written, and not to be closed since.
fn is_writing(read: &Read) -> bool {
    // A new hard link looks as if it had just been created.
    !read.place.many_names && matches!(read.mark, Some(Mark { stage: Stage::Writing, .. }))
}

/// A path as it is shown to the user.
pub(super) fn shown(root: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { root.to_owned() } else { root.join(below) }
}

pub(super) fn read_manifest(shown: &Path, content: &Content) -> Reading {
    if content.too_large {
        manifest::too_large(shown, &content.bytes)
    } else {
        manifest::read(shown, &content.bytes)
    }
}

/// Reads `.evenkeelignore`; without patterns when it is not understood whole.
pub(super) fn read_ignore(shown: &Path, content: &Content) -> (Reading, Option<Ignore>) {
    let unreadable = |message: String| manifest::unreadable(shown, "ignore-unreadable", message);
    if content.too_large {
        return (unreadable("is too large".to_owned()), None);
    }
    let Ok(text) = std::str::from_utf8(&content.bytes) else {
        return (unreadable("is not UTF-8".to_owned()), None);
    };
    if is_empty(content) {
        let message = "the file is empty: nothing is left out".to_owned();
        let problem = Problem {
            hint: Some("write it again, with a comment if that is meant, or delete it".to_owned()),
            ..Problem::of_file(shown, Severity::Warning, "empty-file", message)
        };
        let reading = Reading { problems: vec![problem], ..Reading::default() };
        return (reading, Some(Ignore::default()));
    }
    match Ignore::parse(text) {
        Ok(patterns) => (Reading::default(), Some(patterns)),
        Err(lines) => {
            let problems = lines.into_iter().map(|line| bad_line(shown, line)).collect();
            (
                Reading { problems, unreadable: Some("ignore-unreadable"), ..Reading::default() },
                None,
            )
        }
    }
}

/// As what a power cut or a copy in progress leaves; what is meant to say nothing has at least a comment.
fn is_empty(content: &Content) -> bool {
    content.bytes.trim_ascii().is_empty()
}

fn bad_line(shown: &Path, line: BadLine) -> Problem {
    Problem {
        position: Position {
            file: shown.to_owned(),
            line: line.line,
            column: u32::from(line.line > 0),
        },
        severity: Severity::Error,
        code: "ignore-unreadable",
        pointer: String::new(),
        message: format!("`{}` {}", line.text.trim(), line.message),
        hint: Some("one glob a line; see the documentation of `.evenkeelignore`".to_owned()),
        fix: None,
        workload: None,
        related: None,
        bytes: 0..0,
        source_line: line.text,
    }
}

#[cfg(test)]
mod tests;
