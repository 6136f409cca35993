//! The journal of what happened: a few hundred kilobytes in the run directory, which is memory, so that nothing of it
//! reaches a disk. Several processes write it, and anybody may read on while they do.
//!
//! A journal is a favour: nobody waits for it for long and nothing fails because it cannot be written. What could not
//! be written is written later, and what does not fit in memory meanwhile is counted.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::status::{Event, EventKind, EventType};

/// Largest file; there are two, so the journal takes at most twice that of the memory that a run directory is in.
const FILE: u64 = 256 << 10;

/// Longest line; what is longer goes without its text. Texts are cut long before, but escapes can swell.
const LINE: usize = 16 << 10;

/// Events that wait to be written. Enough for a busy moment of a full file system, and little memory.
const WAITING: usize = 128;

/// How often another writer is waited for, and how long each time: a write takes microseconds.
const TRIES: (u32, Duration) = (20, Duration::from_millis(1));

const NEWEST: &str = "events.jsonl";
const OLDER: &str = "events.jsonl.1";

/// What this process has to write.
#[derive(Debug, Default)]
pub(super) struct Journal {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    /// Events that were forgotten since somebody was told so.
    lost: u64,
    /// The last try failed.
    is_stuck: bool,
}

impl Journal {
    /// Writes an event, now or with a later one.
    pub(super) fn record(&self, directory: &Path, event: &Event) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.lines.len() == WAITING {
            waiting.lines.pop_front();
            waiting.lost += 1;
        }
        let line = line(event);
        waiting.lines.push_back(line);
        let written = waiting.write(directory, event);
        waiting.is_stuck = written.is_err();
    }

    #[cfg(test)]
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.lock().unwrap_or_else(PoisonError::into_inner).lines.is_empty()
    }
}

impl Waiting {
    fn write(&mut self, directory: &Path, latest: &Event) -> io::Result<()> {
        super::make_directory(directory).map_err(|error| error.cause)?;
        // On the directory: files come and go. Given back with the descriptor, also when we are killed.
        let lock = File::open(directory)?;
        hold(&lock, self.is_stuck)?;
        let mut file = Newest::open(directory)?;
        if self.lost > 0 {
            let message = format!("{} events could not be written in time", self.lost);
            let lost = Event::new(EventKind::Journal, EventType::Warning, "events-lost", &message);
            file.append(&line(&Event { time: latest.time.clone(), pid: latest.pid, ..lost }))?;
            self.lost = 0;
        }
        while let Some(line) = self.lines.front() {
            file.append(line)?;
            self.lines.pop_front();
        }
        Ok(())
    }
}

/// Takes the lock of a journal. Who holds it may have been stopped, and is not waited for again and again.
#[expect(clippy::disallowed_methods, reason = "20 ms at most, and once only while it lasts")]
fn hold(lock: &File, is_stuck: bool) -> io::Result<()> {
    let (tries, pause) = TRIES;
    for n in 1.. {
        match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) if n < tries && !is_stuck => {
                std::thread::sleep(pause)
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn line(event: &Event) -> Vec<u8> {
    let text = |event: &Event| serde_json::to_vec(event).unwrap_or_default();
    let mut line = text(event);
    if line.len() >= LINE {
        let (message, cause) = (String::new(), String::new());
        line = text(&Event { message, cause, subject: None, ..event.clone() });
    }
    line.push(b'\n');
    line
}

/// The newest file, open for writing, while the lock is held.
struct Newest<'a> {
    directory: &'a Path,
    file: File,
    length: u64,
}

impl<'a> Newest<'a> {
    fn open(directory: &'a Path) -> io::Result<Self> {
        let path = directory.join(NEWEST);
        let mut options = File::options();
        let file = options.read(true).append(true).create(true).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        let mut newest = Self { directory, file, length };
        let mut last = [b'\n'];
        if length > 0 {
            newest.file.read_exact_at(&mut last, length - 1)?;
        }
        if last != [b'\n'] {
            // Somebody was killed in the middle of a line, and the next one is not to be taken for its end.
            newest.append(b"\n")?;
        }
        Ok(newest)
    }

    /// All of it or nothing.
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let size = u64::try_from(line.len()).unwrap_or(FILE);
        if self.length > 0 && self.length + size > FILE {
            fs::rename(self.directory.join(NEWEST), self.directory.join(OLDER))?;
            *self = Self::open(self.directory)?;
        }
        match self.file.write_all(line) {
            Ok(()) => {
                self.length += size;
                Ok(())
            }
            Err(error) => {
                // A full file system takes the beginning of a line. What cannot be undone is skipped by readers.
                drop(self.file.set_len(self.length));
                Err(error)
            }
        }
    }
}

/// Reads the journal from its oldest event on, across rotations. Writes nothing and waits for nobody.
#[derive(Debug)]
pub struct Events {
    directory: PathBuf,
    current: Option<(File, u64)>,
}

impl Events {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, current: None }
    }

    /// Everything that is new since the last call; at first, everything there is. A line that is not whole yet comes
    /// when it is, and what cannot be understood is skipped.
    pub fn read(&mut self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        if self.current.is_none() {
            // The newest first: should it be rotated meanwhile, it is the older one too, and is read once.
            let newest = open(&self.directory.join(NEWEST))?;
            let older = open(&self.directory.join(OLDER))?;
            let is_same = |a: &File, b: &File| Ok::<_, io::Error>(inode(a)? == inode(b)?);
            if let Some(older) = older
                && newest.as_ref().map_or(Ok(true), |it| is_same(it, &older).map(|it| !it))?
            {
                read_from(&older, 0, &mut events)?;
            }
            self.current = newest.map(|it| (it, 0));
        }
        // Each turn goes on to a file that is newer; a writer that is faster than this is read at the next call.
        for _ in 0..4 {
            let Some((file, offset)) = &mut self.current else { break };
            *offset = read_from(file, *offset, &mut events)?;
            let Some(newest) = open(&self.directory.join(NEWEST))? else { break };
            if inode(&newest)? == inode(file)? {
                break;
            }
            // What came between the two looks: it is not written any more by now.
            *offset = read_from(file, *offset, &mut events)?;
            // It may have been rotated away altogether.
            if let Some(older) = open(&self.directory.join(OLDER))?
                && inode(&older)? != inode(file)?
                && inode(&older)? != inode(&newest)?
            {
                read_from(&older, 0, &mut events)?;
            }
            self.current = Some((newest, 0));
        }
        Ok(events)
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn inode(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.ino())
}

/// Reads whole lines from a place on; the place after them.
fn read_from(file: &File, offset: u64, events: &mut Vec<Event>) -> io::Result<u64> {
    let length = file.metadata()?.len().saturating_sub(offset);
    // A file of ours is no longer; of another one, some is enough.
    let length = usize::try_from(length.min(2 * FILE)).unwrap_or(0);
    let mut bytes = vec![0; length];
    let mut read = 0;
    while read < length {
        match file.read_at(&mut bytes[read..], offset + u64::try_from(read).unwrap_or(0)) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(read);
    let whole = bytes.iter().rposition(|it| *it == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..whole].split(|it| *it == b'\n');
    events.extend(lines.filter_map(|line| serde_json::from_slice(line).ok()));
    Ok(offset + u64::try_from(whole).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::RunDirectory;
    use super::*;

    fn event(message: &str) -> Event {
        let event = Event::new(EventKind::Step, EventType::Normal, "started", message);
        Event { time: "2026-01-01T00:00:00.000Z".to_owned(), ..event }.of("web")
    }

    fn messages(events: Vec<Event>) -> Vec<String> {
        events.into_iter().map(|it| it.message).collect()
    }

    fn read(run: &RunDirectory) -> Vec<String> {
        messages(run.events().read().unwrap())
    }

    fn fresh() -> (tempfile::TempDir, RunDirectory) {
        let directory = tempfile::tempdir().unwrap();
        let run = RunDirectory::new(&directory.path().join("run"));
        (directory, run)
    }

    #[test]
    fn what_is_recorded_is_read_by_others_once_and_only_by_root() {
        let (directory, run) = fresh();
        assert_eq!(read(&run), [""; 0]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "looking makes nothing");
        run.record(event("one"));
        let mut reader = RunDirectory::new(run.path()).events();
        assert_eq!(messages(reader.read().unwrap()), ["one"]);
        assert_eq!(messages(reader.read().unwrap()), [""; 0]);
        RunDirectory::new(run.path()).record(event("two"));
        run.record(event("three"));
        assert_eq!(messages(reader.read().unwrap()), ["two", "three"]);
        let events = run.path().join("events");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&events), mode(&events.join(NEWEST))), (0o700, 0o600));
        let first = run.events().read().unwrap().remove(0);
        assert_eq!((first.pid, first.name.as_deref()), (std::process::id(), Some("web")));
    }

    #[test]
    fn it_never_takes_more_than_two_files_and_a_follower_misses_nothing_across_rotations() {
        let (_directory, run) = fresh();
        let mut reader = run.events();
        let mut seen = Vec::new();
        let text = "x".repeat(900);
        let count = usize::try_from(4 * FILE / 900).unwrap();
        for n in 0..count {
            run.record(event(&format!("{n} {text}")));
            if n % 100 == 0 {
                seen.extend(messages(reader.read().unwrap()));
            }
            let files = fs::read_dir(run.path().join("events")).unwrap().flatten();
            let sizes: Vec<u64> = files.map(|it| it.metadata().unwrap().len()).collect();
            assert!(sizes.len() <= 2 && sizes.iter().all(|it| *it <= FILE), "{sizes:?}");
        }
        seen.extend(messages(reader.read().unwrap()));
        let numbers: Vec<usize> =
            seen.iter().map(|it| it.split(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>());
        let kept = read(&run);
        assert!(kept.len() > 200 && kept.last() == seen.last(), "{}", kept.len());
    }

    #[test]
    fn a_follower_that_was_away_for_several_rotations_goes_on_with_what_is_left() {
        let (_directory, run) = fresh();
        run.record(event("first"));
        let mut reader = run.events();
        assert_eq!(messages(reader.read().unwrap()), ["first"]);
        let text = "x".repeat(900);
        for n in 0..4 * FILE / 900 {
            run.record(event(&format!("{n} {text}")));
        }
        run.record(event("last"));
        let read = messages(reader.read().unwrap());
        // With the rest of the file that it was at.
        let kept = super::tests::read(&run);
        assert!(read.ends_with(&kept) && read.len() < 4 * kept.len());
        assert_eq!(read.last().unwrap(), "last");
    }

    #[test]
    fn a_half_written_line_is_skipped_and_spoils_no_other() {
        let (_directory, run) = fresh();
        run.record(event("one"));
        let path = run.path().join("events").join(NEWEST);
        let mut reader = run.events();
        reader.read().unwrap();
        let append = |text: &[u8]| {
            File::options().append(true).open(&path).unwrap().write_all(text).unwrap();
        };
        append(b"{\"time\":\"2026");
        assert_eq!(messages(reader.read().unwrap()), [""; 0]);
        assert_eq!(read(&run), ["one"]);
        run.record(event("two"));
        assert_eq!(messages(reader.read().unwrap()), ["two"]);
        append(b"\xff\xfe\n{}\n\n");
        run.record(event("three"));
        assert_eq!(messages(reader.read().unwrap()), ["three"]);
        assert_eq!(read(&run), ["one", "two", "three"]);
    }

    #[test]
    fn writers_side_by_side_tear_no_line_and_lose_none() {
        let (_directory, run) = fresh();
        let text = "y".repeat(300);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let (run, text) = (RunDirectory::new(run.path()), &text);
                scope.spawn(move || {
                    for n in 0..100 {
                        run.record(event(&format!("{writer} {n} {text}")));
                    }
                    // What another one was too busy for is written with the next event.
                    while run.waits_to_record() {
                        run.record(event(&format!("{writer} more")));
                    }
                });
            }
        });
        let mut all = read(&run);
        all.retain(|it| !it.ends_with("more"));
        let mut expected: Vec<String> = (0..4)
            .flat_map(|w| (0..100).map(move |n| (w, n)))
            .map(|(w, n)| format!("{w} {n} {text}"))
            .collect();
        all.sort();
        expected.sort();
        assert_eq!(all.len(), 400);
        assert!(all == expected);
    }

    #[test]
    fn what_cannot_be_written_stops_nobody_is_counted_and_told_later() {
        let (_directory, run) = fresh();
        super::super::make_directory(run.path()).unwrap();
        // In the place of the directory: it cannot be written for anybody, root included.
        fs::write(run.path().join("events"), "").unwrap();
        for n in 0..WAITING + 5 {
            run.record(event(&n.to_string()));
        }
        fs::remove_file(run.path().join("events")).unwrap();
        run.record(event("last"));
        let read = read(&run);
        assert_eq!(read.len(), WAITING + 1);
        assert_eq!(read[0], "6 events could not be written in time");
        assert_eq!((read[1].as_str(), read[WAITING].as_str()), ("6", "last"));
        run.record(event("next"));
        assert_eq!(super::tests::read(&run).len(), WAITING + 2);
    }

    #[test]
    fn one_who_holds_the_journal_and_stands_still_holds_nobody_up() {
        let (_directory, run) = fresh();
        run.record(event("one"));
        let lock = File::open(run.path().join("events")).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        for n in 0..3 {
            run.record(event(&n.to_string()));
        }
        assert_eq!(read(&run), ["one"]);
        drop(lock);
        run.record(event("last"));
        assert_eq!(read(&run), ["one", "0", "1", "2", "last"]);
    }

    #[test]
    fn a_long_text_is_cut_and_one_that_swells_is_left_out() {
        let (_directory, run) = fresh();
        run.record(event(&"ä".repeat(5000)));
        let mut swelling = event("\u{1}");
        swelling.message = "\u{1}".repeat(LINE);
        run.record(swelling);
        let read = read(&run);
        assert!(read[0].len() < 1100 && read[0].ends_with('…') && read[1].is_empty(), "{read:?}");
    }
}
