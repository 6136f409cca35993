//! Reads a log from its oldest record to its newest, and on, across rotations.
//!
//! Holds at most one record in memory, and writes nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Entry, RECORD_TEXT, file_name, file_numbers};

/// Longest line that is read at once; whatever is longer was not written by us and comes in pieces.
const LINE: usize = RECORD_TEXT + 1024;

/// How often a look at the files is repeated because they were rotated meanwhile.
const ATTEMPTS: usize = 16;

/// A place in a log. It stays good while the log is written and rotated; what was rotated away before it was read is
/// skipped.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
    /// Records before this are skipped; written as records write it, so that text compares as time.
    since: Option<String>,
    /// Files to be read, the oldest first. The first is being read.
    files: VecDeque<BufReader<File>>,
    /// The line that is being read.
    line: Vec<u8>,
}

impl Reader {
    /// Opens the log in `directory`; with `tail`, at its last so many lines. A log that is not there yet is empty.
    pub fn open(
        directory: &Path,
        tail: Option<usize>,
        since: Option<jiff::Timestamp>,
    ) -> io::Result<Self> {
        let files = files(directory)?.ok_or_else(|| {
            io::Error::other(format!(
                "{}: rotated faster than it can be opened; try again",
                directory.display()
            ))
        })?;
        let mut files: VecDeque<File> = files.into();
        if let Some(lines) = tail {
            seek_to_tail(&mut files, lines)?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            since: since.map(|time| format!("{time:.6}")),
            files: files.into_iter().map(BufReader::new).collect(),
            line: Vec::new(),
        })
    }

    /// The next record, or `None` at the present end; more may come, and the same call finds it then.
    pub fn read(&mut self) -> io::Result<Option<Entry>> {
        loop {
            let Some(line) = self.read_line()? else { return Ok(None) };
            let entry = Entry::parse(&line);
            // What has no time is shown with what is around it.
            let early = self
                .since
                .as_ref()
                .is_some_and(|since| !entry.stamp.is_empty() && entry.stamp < *since);
            if !early {
                return Ok(Some(entry));
            }
        }
    }

    fn read_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut ended = false;
        loop {
            let Some(file) = self.files.front_mut() else {
                match self.oldest()? {
                    Some(file) => self.files.push_back(BufReader::new(file)),
                    None => return Ok(None),
                }
                continue;
            };
            let room = u64::try_from(LINE - self.line.len().min(LINE)).unwrap_or(0);
            let read = file.by_ref().take(room).read_until(b'\n', &mut self.line)?;
            if self.line.ends_with(b"\n") {
                self.line.pop();
                return Ok(Some(std::mem::take(&mut self.line)));
            }
            if self.line.len() >= LINE {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
            if read > 0 {
                continue;
            }
            // The end of this file. Only when it is known that it has a successor, nothing more is written to it,
            // and what came in between is still read.
            if ended {
                self.files.pop_front();
                ended = false;
                if !self.line.is_empty() {
                    return Ok(Some(std::mem::take(&mut self.line)));
                }
                continue;
            }
            if self.files.len() == 1 {
                match self.successor()? {
                    Some(next) => self.files.push_back(BufReader::new(next)),
                    None => return Ok(None),
                }
            }
            ended = true;
        }
    }

    /// The file that was begun after the one that is being read; `None` while that is the newest.
    fn successor(&self) -> io::Result<Option<File>> {
        let Some(current) = self.files.back() else { return Ok(None) };
        if is_called(&self.directory, 0, current.get_ref()) {
            return Ok(None);
        }
        let current = identity(current.get_ref())?;
        // It is rotated faster than it can be looked at: the next call tries again.
        let Some(mut files) = files(&self.directory)? else { return Ok(None) };
        for n in 0..files.len() {
            if identity(&files[n])? == current {
                return Ok((n + 1 < files.len()).then(|| files.swap_remove(n + 1)));
            }
        }
        // Rotated away: what is the oldest now is the next that can be read.
        Ok(files.into_iter().next())
    }

    fn oldest(&self) -> io::Result<Option<File>> {
        Ok(files(&self.directory)?.and_then(|files| files.into_iter().next()))
    }
}

/// The files of a log, from the oldest, as they were at one moment; `None` when they are rotated faster than that.
///
/// While names are gone through one by one, a rotation moves files on to names that are not looked at any more, or
/// were not there when the names were listed. So it counts only when the same names lead to the same files afterwards.
fn files(directory: &Path) -> io::Result<Option<Vec<File>>> {
    for _ in 0..ATTEMPTS {
        let numbers = file_numbers(directory);
        let opened: io::Result<Vec<File>> =
            numbers.iter().rev().map(|n| File::open(file_name(directory, *n))).collect();
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if file_numbers(directory) == numbers
            && numbers.iter().rev().zip(&opened).all(|(n, file)| is_called(directory, *n, file))
        {
            return Ok(Some(opened));
        }
    }
    Ok(None)
}

fn is_called(directory: &Path, n: u32, file: &File) -> bool {
    let named = std::fs::metadata(file_name(directory, n)).map(|it| (it.dev(), it.ino()));
    named.is_ok_and(|named| identity(file).is_ok_and(|open| open == named))
}

/// Names a file as long as it is open; its number is not used again before.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Leaves out what comes before the last `lines` lines. Files are looked through from the newest, each once.
fn seek_to_tail(files: &mut VecDeque<File>, lines: usize) -> io::Result<()> {
    let mut wanted = lines;
    for n in (0..files.len()).rev() {
        let mut starts: VecDeque<u64> = VecDeque::new();
        let mut reader = BufReader::new(&files[n]);
        let (mut offset, mut start, mut line) = (0, 0, Vec::new());
        loop {
            line.clear();
            let read = reader.by_ref().take(LINE as u64).read_until(b'\n', &mut line)?;
            if read == 0 {
                break;
            }
            offset += u64::try_from(read).unwrap_or_default();
            // A record that is being written is not a line yet.
            if line.pop() == Some(b'\n') && !Entry::parse(&line).partial {
                starts.push_back(start);
                start = offset;
                if starts.len() > wanted {
                    starts.pop_front();
                }
            }
        }
        let found = starts.len();
        wanted -= found;
        if wanted > 0 {
            files[n].rewind()?;
            continue;
        }
        let position = starts.front().copied().unwrap_or(start);
        files[n].seek(SeekFrom::Start(position))?;
        files.drain(..n);
        break;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::Stream;
    use super::*;

    fn record(n: usize) -> String {
        format!("2026-01-01T00:00:00.{n:06}Z stdout F line {n}\n")
    }

    fn records(numbers: std::ops::Range<usize>) -> String {
        numbers.map(record).collect()
    }

    fn rest(reader: &mut Reader) -> Vec<usize> {
        let number =
            |entry: Entry| String::from_utf8(entry.text).unwrap()["line ".len()..].parse().unwrap();
        std::iter::from_fn(|| reader.read().unwrap()).map(number).collect()
    }

    fn three_files() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (n, numbers) in [(2, 0..3), (1, 3..6), (0, 6..8)] {
            fs::write(file_name(directory.path(), n), records(numbers)).unwrap();
        }
        directory
    }

    fn rotate(directory: &Path, keep: u32) {
        fs::remove_file(file_name(directory, keep - 1)).ok();
        for n in (0..keep - 1).rev() {
            fs::rename(file_name(directory, n), file_name(directory, n + 1)).ok();
        }
    }

    #[test]
    fn all_files_are_read_from_the_oldest_record() {
        let directory = three_files();
        let mut reader = Reader::open(directory.path(), None, None).unwrap();
        let first = reader.read().unwrap().unwrap();
        assert_eq!(
            (first.stream, first.partial, first.text.as_slice()),
            (Stream::Stdout, false, &b"line 0"[..])
        );
        assert_eq!(rest(&mut reader), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(reader.read().unwrap(), None);
    }

    #[test]
    fn a_tail_may_span_files() {
        let directory = three_files();
        for (tail, first) in
            [(0, 8), (1, 7), (2, 6), (3, 5), (5, 3), (6, 2), (8, 0), (100, 0), (usize::MAX, 0)]
        {
            let mut reader = Reader::open(directory.path(), Some(tail), None).unwrap();
            assert_eq!(rest(&mut reader), (first..8).collect::<Vec<_>>(), "{tail}");
        }
    }

    #[test]
    fn parts_of_a_line_count_as_one() {
        let directory = tempfile::tempdir().unwrap();
        let stamp = "2026-01-01T00:00:00.000000Z";
        let text = format!(
            "{stamp} stdout F a\n{stamp} stdout P b\n{stamp} stdout F c\n{stamp} stdout F d\n"
        );
        fs::write(file_name(directory.path(), 0), text).unwrap();
        let mut reader = Reader::open(directory.path(), Some(2), None).unwrap();
        let texts: Vec<_> =
            std::iter::from_fn(|| reader.read().unwrap()).map(|it| it.text).collect();
        assert_eq!(texts, [b"b", b"c", b"d"]);
    }

    #[test]
    fn since_leaves_out_what_is_older() {
        let directory = three_files();
        let since = "2026-01-01T00:00:00.000005Z".parse().unwrap();
        assert_eq!(
            rest(&mut Reader::open(directory.path(), None, Some(since)).unwrap()),
            [5, 6, 7]
        );
        let next_day = "2026-01-02T00:00:00+01:00".parse().unwrap();
        assert!(
            rest(&mut Reader::open(directory.path(), None, Some(next_day)).unwrap()).is_empty()
        );
    }

    #[test]
    fn a_log_that_comes_later_is_read_from_its_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("a-1");
        let mut reader = Reader::open(&log, Some(0), None).unwrap();
        assert_eq!(reader.read().unwrap(), None);
        fs::create_dir(&log).unwrap();
        assert_eq!(reader.read().unwrap(), None);
        fs::write(file_name(&log, 0), records(0..2)).unwrap();
        assert_eq!(rest(&mut reader), [0, 1]);
    }

    #[test]
    fn a_record_is_read_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = file_name(directory.path(), 0);
        let text = record(1);
        let mut reader = Reader::open(directory.path(), None, None).unwrap();
        for end in 1..text.len() {
            fs::write(&path, &text[..end]).unwrap();
            assert_eq!(reader.read().unwrap(), None, "{end}");
        }
        fs::write(&path, &text).unwrap();
        assert_eq!(rest(&mut reader), [1]);
    }

    #[test]
    fn nothing_is_lost_or_read_twice_across_rotations() {
        let directory = tempfile::tempdir().unwrap();
        let mut reader = Reader::open(directory.path(), None, None).unwrap();
        let append = |numbers| {
            let path = file_name(directory.path(), 0);
            let mut text = fs::read_to_string(&path).unwrap_or_default();
            text.push_str(&records(numbers));
            // In place: a reader must not depend on the inode changing.
            let mut file = fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
            let known = usize::try_from(file.metadata().unwrap().len()).unwrap();
            file.write_all(&text.as_bytes()[known..]).unwrap();
        };
        append(0..2);
        assert_eq!(rest(&mut reader), [0, 1]);
        append(2..3);
        rotate(directory.path(), 4);
        append(3..4);
        rotate(directory.path(), 4);
        append(4..5);
        assert_eq!(rest(&mut reader), [2, 3, 4]);
        rotate(directory.path(), 4);
        assert_eq!(rest(&mut reader), [0; 0]);
        append(5..6);
        assert_eq!(rest(&mut reader), [5]);
        // Everything it has read is rotated away, and more than that.
        for n in 6..20 {
            rotate(directory.path(), 4);
            append(n..n + 1);
        }
        assert_eq!(rest(&mut reader), [16, 17, 18, 19]);
    }

    /// Rotates after each record, as fast as the reader allows without losing any.
    #[test]
    fn nothing_is_lost_or_read_twice_while_files_are_renamed() {
        struct Ended<'a>(&'a AtomicUsize);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.store(RECORDS, Ordering::Release);
            }
        }
        const RECORDS: usize = 3_000;
        let directory = tempfile::tempdir().unwrap();
        let seen = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..RECORDS {
                    while n >= seen.load(Ordering::Acquire) + 6 {
                        std::thread::yield_now();
                    }
                    fs::write(file_name(directory.path(), 0), record(n)).unwrap();
                    rotate(directory.path(), 8);
                }
            });
            // Also where this fails, the other one ends.
            let _end = Ended(&seen);
            let mut reader = Reader::open(directory.path(), None, None).unwrap();
            let mut read = 0;
            while read < RECORDS {
                for n in rest(&mut reader) {
                    assert_eq!(n, read);
                    read += 1;
                    seen.store(read, Ordering::Release);
                }
            }
        });
    }

    #[test]
    fn a_torn_or_endless_line_does_not_stop_the_reader() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(file_name(directory.path(), 1), "torn").unwrap();
        let mut text = vec![0; 3 * LINE];
        text.extend_from_slice(b"\n");
        text.extend_from_slice(record(1).as_bytes());
        fs::write(file_name(directory.path(), 0), text).unwrap();
        let mut reader = Reader::open(directory.path(), None, None).unwrap();
        let entries: Vec<_> = std::iter::from_fn(|| reader.read().unwrap()).collect();
        assert_eq!(entries.first().unwrap().text, b"torn");
        assert_eq!(entries.last().unwrap().text, b"line 1");
        assert!(entries.len() <= 6);
    }
}
