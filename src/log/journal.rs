//! The files of one log: records, rotation, and what happens when they cannot be written.
//!
//! Takes bytes and times and touches nothing but its directory. It reads no pipe, knows no clock and never waits.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::time::Duration;

use super::{Place, RECORD_TEXT, Stream, file_name, file_numbers};

/// Bytes of a record beside its text: time (27), stream (6), tag, three spaces and the line end.
const OVERHEAD: usize = 38;

/// Where a record's tag stands.
const TAG: usize = 35;

/// Records are gathered to about this size before they are written: few system calls, little memory.
const BATCH: usize = 16 << 10;

/// Memory that a burst left is given back above this.
const IDLE_MEMORY: usize = 4 << 10;

/// Time between two tries while nothing can be written: soon enough for a person who made room, and no load.
const RETRY: Duration = Duration::from_secs(1);

/// A time by both clocks: one for people, one that never jumps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) wall: jiff::Timestamp,
    pub(super) uptime: Duration,
}

/// Writes records to the files of a [`Place`], never more than it allows.
pub(super) struct Journal {
    place: Place,
    current: Option<Current>,
    /// Records that are not written yet.
    out: Vec<u8>,
    /// Begun lines of both streams, never longer than one record.
    begun: [Vec<u8>; 2],
    /// Output that was dropped since the last notice, in bytes.
    lost: u64,
    /// Why, and when it is tried again.
    trouble: Option<(String, Duration)>,
    made_directory: bool,
}

struct Current {
    file: File,
    length: u64,
}

impl Journal {
    /// Nothing is touched before the first record or [`Journal::prepare`].
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            current: None,
            out: Vec::new(),
            begun: [Vec::new(), Vec::new()],
            lost: 0,
            trouble: None,
            made_directory: false,
        }
    }

    /// Makes the directory and opens the file, so that an idle log is there too. A failure is no failure yet: there
    /// may be room when there is something to write.
    pub(super) fn prepare(&mut self) {
        drop(self.open(0));
    }

    /// Takes output of a stream.
    pub(super) fn accept(&mut self, stream: Stream, now: Moment, bytes: &[u8]) {
        let limit = self.record_text();
        let head = head(stream, now);
        let mut begun = std::mem::take(&mut self.begun[slot(stream)]);
        let mut rest = bytes;
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let mut line = &rest[..end.unwrap_or(rest.len())];
            rest = end.map_or(&[][..], |end| &rest[end + 1..]);
            while begun.len() + line.len() > limit {
                let (part, more) = line.split_at(limit - begun.len());
                self.record(now, &head, b'P', &[&begun, part]);
                begun.clear();
                line = more;
            }
            if end.is_some() {
                self.record(now, &head, b'F', &[&begun, line]);
                begun.clear();
            } else {
                begun.extend_from_slice(line);
            }
        }
        self.begun[slot(stream)] = begun;
    }

    /// Counts output that was dropped before it came here.
    pub(super) fn count_lost(&mut self, bytes: u64, reason: &str) {
        if bytes > 0 {
            self.lost += bytes;
            self.trouble.get_or_insert_with(|| (reason.to_owned(), Duration::ZERO));
        }
    }

    /// Writes what was taken, after saying what was lost before it.
    pub(super) fn commit(&mut self, now: Moment) {
        self.write_notice(now);
        self.write_out(now);
    }

    /// Writes begun lines in parts, so that a prompt without a line end can be read, and gives memory back.
    pub(super) fn settle(&mut self, now: Moment) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let begun = std::mem::take(&mut self.begun[slot(stream)]);
            if !begun.is_empty() {
                self.record(now, &head(stream, now), b'P', &[&begun]);
            }
        }
        self.commit(now);
        if self.out.capacity() > IDLE_MEMORY {
            self.out = Vec::new();
        }
    }

    /// Whether [`Journal::settle`] would do anything.
    pub(super) fn is_unsettled(&self) -> bool {
        self.lost > 0
            || self.out.capacity() > IDLE_MEMORY
            || self.begun.iter().any(|it| !it.is_empty())
    }

    /// Writes everything, also if it is not yet time to try again.
    pub(super) fn end(&mut self, now: Moment) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let begun = std::mem::take(&mut self.begun[slot(stream)]);
            if !begun.is_empty() {
                self.record(now, &head(stream, now), b'F', &[&begun]);
            }
        }
        if let Some((_, retry)) = &mut self.trouble {
            *retry = Duration::ZERO;
        }
        self.commit(now);
    }

    /// Longest text of a record: it has to fit into a file.
    fn record_text(&self) -> usize {
        usize::try_from(self.place.max_size)
            .map_or(RECORD_TEXT, |size| RECORD_TEXT.min(size - OVERHEAD))
    }

    fn record(&mut self, now: Moment, head: &[u8], tag: u8, text: &[&[u8]]) {
        let length = OVERHEAD + text.iter().map(|it| it.len()).sum::<usize>();
        let written = self.current.as_ref().map_or(0, |it| it.length);
        // Also when the file would be full, so that it gets full.
        let fits = written + count(self.out.len() + length) <= self.place.max_size;
        if !self.out.is_empty() && (!fits || self.out.len() + length > BATCH) {
            self.commit(now);
        }
        push_record(&mut self.out, head, tag, text);
    }

    /// Says what was lost, once that can be written.
    fn write_notice(&mut self, now: Moment) {
        if self.lost == 0 {
            return;
        }
        let Some((reason, retry)) = &self.trouble else { return };
        if now.uptime < *retry {
            return;
        }
        let text = format!("evenkeel: {} bytes of output were dropped here: {reason}", self.lost);
        let mut notice = Vec::new();
        push_record(&mut notice, &head(Stream::Stderr, now), b'F', &[text.as_bytes()]);
        let written = self.open(notice.len()).and_then(|it| it.append(&notice));
        match written {
            Ok(()) => {
                self.lost = 0;
                self.trouble = None;
            }
            Err((_, error)) => self.trouble = Some((error.to_string(), now.uptime + RETRY)),
        }
    }

    fn write_out(&mut self, now: Moment) {
        if self.out.is_empty() {
            return;
        }
        let mut out = std::mem::take(&mut self.out);
        // While there is something to be said first, nothing may come before it.
        let (kept, error) = if self.lost > 0 {
            (0, None)
        } else {
            match self.open(out.len()).and_then(|it| it.append(&out)) {
                Ok(()) => (out.len(), None),
                Err((kept, error)) => (kept, Some(error)),
            }
        };
        self.lost += lost_text(&out[kept..]);
        if let Some(error) = error {
            self.trouble = Some((error.to_string(), now.uptime + RETRY));
        }
        out.clear();
        self.out = out;
    }

    /// The file to write to, with room for so many bytes. It is looked for by its name each time: it may have been
    /// removed, or rotated by the writer of an earlier run that still has something to say.
    fn open(&mut self, coming: usize) -> Result<&mut Current, (usize, io::Error)> {
        let path = file_name(&self.place.directory, 0);
        let here = self.current.take().and_then(|it| {
            let (ours, named) = (it.file.metadata().ok()?, fs::metadata(&path).ok()?);
            let same = (ours.dev(), ours.ino()) == (named.dev(), named.ino());
            same.then_some(Current { file: it.file, length: ours.len() })
        });
        let opened = (|| {
            let current = here.map_or_else(|| self.open_new(&path), Ok)?;
            if current.length == 0 || current.length + count(coming) <= self.place.max_size {
                return Ok(current);
            }
            drop(current);
            self.rotate()?;
            self.open_new(&path)
        })();
        Ok(self.current.insert(opened.map_err(|error| (0, error))?))
    }

    fn open_new(&mut self, path: &std::path::Path) -> io::Result<Current> {
        // Only until it was there once: a directory that was removed belongs to an instance that was removed.
        if !self.made_directory {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.place.directory)?;
            self.made_directory = true;
            self.make_room(0)?;
        }
        let mut file =
            fs::OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
        let mut length = file.metadata()?.len();
        if length > 0 {
            // A power cut or a kill may have torn the last record.
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                length += 1;
            }
        }
        Ok(Current { file, length })
    }

    /// Gives every file the next number, the oldest ones first, so that a kill half-way loses nothing.
    fn rotate(&self) -> io::Result<()> {
        let directory = &self.place.directory;
        self.make_room(1)?;
        for n in file_numbers(directory).into_iter().rev() {
            fs::rename(file_name(directory, n), file_name(directory, n + 1))?;
        }
        Ok(())
    }

    /// Removes the oldest files until the rest is within the limits after `coming` more files.
    fn make_room(&self, coming: u32) -> io::Result<()> {
        let directory = &self.place.directory;
        let numbers = file_numbers(directory);
        let size = |n: &u32| fs::metadata(file_name(directory, *n)).map_or(0, |it| it.len());
        let mut total: u64 = numbers.iter().filter(|n| **n > 0 || coming > 0).map(size).sum();
        let older = u64::from(self.place.max_files - 1).saturating_mul(self.place.max_size);
        for n in numbers.iter().rev() {
            let written_to = *n == 0 && coming == 0;
            if written_to || (n + coming < self.place.max_files && total <= older) {
                break;
            }
            total = total.saturating_sub(size(n));
            fs::remove_file(file_name(directory, *n))?;
        }
        Ok(())
    }
}

impl Current {
    /// Appends whole records. On failure the file ends with a whole record, and how much of `bytes` that is comes
    /// with the error.
    fn append(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        while written < bytes.len() {
            match self.file.write(&bytes[written..]) {
                Ok(0) => return Err(self.cut(bytes, written, io::ErrorKind::WriteZero.into())),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.cut(bytes, written, error)),
            }
        }
        self.length += count(written);
        Ok(())
    }

    fn cut(&mut self, bytes: &[u8], written: usize, error: io::Error) -> (usize, io::Error) {
        let kept = bytes[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        // Should this fail too, the next writer repairs the torn record.
        drop(self.file.set_len(self.length + count(kept)));
        self.length += count(kept);
        (kept, error)
    }
}

fn slot(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Time and stream, with the space behind each.
fn head(stream: Stream, now: Moment) -> Vec<u8> {
    format!("{:.6} {} ", now.wall, stream.as_str()).into_bytes()
}

fn push_record(out: &mut Vec<u8>, head: &[u8], tag: u8, text: &[&[u8]]) {
    out.extend_from_slice(head);
    out.extend_from_slice(&[tag, b' ']);
    for part in text {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

/// Bytes of the container's output in whole records.
fn lost_text(records: &[u8]) -> u64 {
    let line_end = |record: &[u8]| u64::from(record.get(TAG) == Some(&b'F'));
    records
        .split_inclusive(|byte| *byte == b'\n')
        .map(|record| count(record.len().saturating_sub(OVERHEAD)) + line_end(record))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(directory: &tempfile::TempDir, max_size: u64, max_files: u32) -> Place {
        Place { directory: directory.path().join("logs/a-1"), max_size, max_files }
    }

    fn at(millis: i64) -> Moment {
        Moment {
            wall: jiff::Timestamp::from_millisecond(1_767_225_600_000 + millis).unwrap(),
            uptime: Duration::from_millis(1_000_000 + u64::try_from(millis).unwrap()),
        }
    }

    fn text(place: &Place, n: u32) -> String {
        fs::read_to_string(file_name(&place.directory, n)).unwrap_or_default()
    }

    fn sizes(place: &Place) -> Vec<u64> {
        let size = |n: &u32| fs::metadata(file_name(&place.directory, *n)).unwrap().len();
        file_numbers(&place.directory).iter().map(size).collect()
    }

    #[test]
    fn each_line_has_its_time_and_stream() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory, 1 << 20, 2);
        let mut journal = Journal::new(place.clone());
        journal.accept(Stream::Stdout, at(0), b"one\ntw");
        journal.accept(Stream::Stderr, at(1), b"err\n\n");
        journal.accept(Stream::Stdout, at(2), b"o\n");
        journal.commit(at(3));
        assert_eq!(
            text(&place, 0),
            "2026-01-01T00:00:00.000000Z stdout F one\n\
             2026-01-01T00:00:00.001000Z stderr F err\n\
             2026-01-01T00:00:00.001000Z stderr F \n\
             2026-01-01T00:00:00.002000Z stdout F two\n"
        );
    }

    #[test]
    fn the_overhead_is_what_a_record_has_beside_its_text() {
        let mut out = Vec::new();
        push_record(&mut out, &head(Stream::Stderr, at(0)), b'F', &[b"ab", b"c"]);
        assert_eq!(out.len(), OVERHEAD + 3);
        assert_eq!(out[TAG], b'F');
        assert_eq!(lost_text(&out), 4);
    }

    #[test]
    fn a_long_line_is_written_in_parts() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory, 1 << 20, 2);
        let mut journal = Journal::new(place.clone());
        let line = vec![b'x'; 2 * RECORD_TEXT];
        journal.accept(Stream::Stdout, at(0), &line[..100]);
        journal.accept(Stream::Stdout, at(0), &line[100..]);
        journal.accept(Stream::Stdout, at(0), b"\nyes\n");
        journal.commit(at(0));
        let entries: Vec<_> =
            text(&place, 0).lines().map(|it| super::super::Entry::parse(it.as_bytes())).collect();
        let shape: Vec<_> = entries.iter().map(|it| (it.partial, it.text.len())).collect();
        assert_eq!(shape, [(true, RECORD_TEXT), (false, RECORD_TEXT), (false, 3)]);
    }

    #[test]
    fn a_begun_line_is_shown_after_a_while_and_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory, 1 << 20, 2);
        let mut journal = Journal::new(place.clone());
        journal.accept(Stream::Stdout, at(0), b"login: ");
        journal.commit(at(0));
        assert_eq!(text(&place, 0), "");
        assert!(journal.is_unsettled());
        journal.settle(at(1000));
        assert!(!journal.is_unsettled());
        assert!(text(&place, 0).ends_with("stdout P login: \n"));
        journal.accept(Stream::Stdout, at(2000), b"root");
        journal.end(at(3000));
        assert!(text(&place, 0).ends_with("stdout F root\n"));
    }

    #[test]
    fn rotation_keeps_the_newest_and_never_exceeds_the_limits() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory, 4096, 3);
        let mut journal = Journal::new(place.clone());
        let mut lines = 0;
        while lines < 2000 {
            for _ in 0..7 {
                journal.accept(Stream::Stdout, at(lines), format!("line {lines}\n").as_bytes());
                lines += 1;
            }
            journal.commit(at(lines));
            let sizes = sizes(&place);
            assert!(sizes.len() <= 3 && sizes.iter().all(|it| *it <= 4096), "{sizes:?}");
        }
        let all = [2, 1, 0].map(|n| text(&place, n)).concat();
        let numbers: Vec<i64> =
            all.lines().map(|it| it.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers.last(), Some(&(lines - 1)));
        assert!(
            numbers.windows(2).all(|it| it[0] + 1 == it[1]),
            "no line is lost between two files"
        );
        assert!(numbers.len() > 160, "{}", numbers.len());
    }

    #[test]
    fn a_single_file_starts_anew() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory, 4096, 1);
        let mut journal = Journal::new(place.clone());
        for n in 0..1000 {
            journal.accept(Stream::Stdout, at(0), format!("line {n}\n").as_bytes());
        }
        journal.end(at(0));
        assert_eq!(file_numbers(&place.directory), [0]);
        assert!(sizes(&place)[0] <= 4096);
        assert!(text(&place, 0).ends_with("line 999\n"));
    }

    #[test]
    fn lowered_limits_are_kept_from_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory, 4096, 2);
        fs::create_dir_all(&place.directory).unwrap();
        for (n, size) in [(0, 4000), (1, 9000), (2, 10), (7, 10)] {
            fs::write(file_name(&place.directory, n), vec![b'\n'; size]).unwrap();
        }
        fs::write(place.directory.join("output.log.gz"), "not ours").unwrap();
        Journal::new(place.clone()).prepare();
        assert_eq!(file_numbers(&place.directory), [0]);
        assert!(place.directory.join("output.log.gz").exists());
    }

    #[test]
    fn a_torn_record_of_an_earlier_writer_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory, 4096, 2);
        fs::create_dir_all(&place.directory).unwrap();
        fs::write(file_name(&place.directory, 0), "2026-01-01T00:00:00.0000").unwrap();
        let mut journal = Journal::new(place.clone());
        journal.accept(Stream::Stdout, at(0), b"next\n");
        journal.commit(at(0));
        assert_eq!(
            text(&place, 0),
            "2026-01-01T00:00:00.0000\n2026-01-01T00:00:00.000000Z stdout F next\n"
        );
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told_when_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory, 4096, 2);
        // A file in the place of the directory: every open fails.
        fs::write(directory.path().join("logs"), "").unwrap();
        let mut journal = Journal::new(place.clone());
        journal.prepare();
        journal.accept(Stream::Stdout, at(0), b"one\ntwo\n");
        journal.commit(at(0));
        assert!(journal.is_unsettled());
        fs::remove_file(directory.path().join("logs")).unwrap();
        journal.accept(Stream::Stdout, at(10), b"three\n");
        journal.commit(at(10));
        assert_eq!(text(&place, 0), "", "not tried again at once");
        journal.accept(Stream::Stdout, at(2000), b"four\n");
        journal.commit(at(2000));
        let text = text(&place, 0);
        assert!(
            text.contains("stderr F evenkeel: 14 bytes of output were dropped here: "),
            "{text}"
        );
        assert!(text.ends_with("stdout F four\n"));
    }

    #[test]
    fn a_removed_file_is_made_again_and_a_removed_directory_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory, 4096, 2);
        let mut journal = Journal::new(place.clone());
        journal.accept(Stream::Stdout, at(0), b"one\n");
        journal.commit(at(0));
        fs::remove_file(file_name(&place.directory, 0)).unwrap();
        journal.accept(Stream::Stdout, at(0), b"two\n");
        journal.commit(at(0));
        assert!(text(&place, 0).ends_with("two\n"));
        fs::remove_dir_all(&place.directory).unwrap();
        journal.accept(Stream::Stdout, at(0), b"three\n");
        journal.end(at(0));
        assert!(!place.directory.exists());
    }

    #[test]
    fn two_writers_share_the_files() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory, 4096, 2);
        let mut old = Journal::new(place.clone());
        let mut new = Journal::new(place.clone());
        for n in 0..500 {
            for journal in [&mut old, &mut new] {
                journal.accept(Stream::Stdout, at(0), format!("{n}\n").as_bytes());
                journal.commit(at(0));
            }
            assert!(sizes(&place).iter().all(|it| *it <= 4096), "{:?}", sizes(&place));
        }
        assert!(file_numbers(&place.directory).len() <= 2);
    }
}
