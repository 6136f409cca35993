//! What containers print: a small process per container that writes it, and a reader.
//!
//! The writer is our own binary, started by the container runtime for each task as a hidden command, and outlives
//! controller and runtime. It never makes the container wait for a disk: what cannot be written in time is dropped,
//! and a later line says how much that was. It does not know what a container is and keeps no state but its files.
//!
//! The format is the one that Kubernetes' runtimes write, one record a line:
//!
//! ```text
//! 2026-01-01T00:00:00.000000Z stdout F text
//! ```
//!
//! Time in UTC, stream, `F` for the end of a line or `P` for a part of one that goes on in the stream's next record,
//! and the bytes as they came. The newest records are in `output.log`, older ones in `output.log.1`, `.2`, ….

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

mod follower;
mod journal;
mod pipe;
mod reader;

pub use follower::Follower;
pub use pipe::pipe;
pub use reader::Reader;

/// The hidden command that the container runtime runs.
pub const PIPE_COMMAND: &str = "log-pipe";

/// Name of the file that is written; older ones have a number behind it.
pub const FILE: &str = "output.log";

/// Longest text of one record, as Kubernetes' runtimes have it; a longer line is written in parts.
pub const RECORD_TEXT: usize = 16 << 10;

/// Smallest size of one file: below it a rotation would come with nearly every line.
pub const MIN_FILE_SIZE: u64 = 4 << 10;

/// Which of a container's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One record of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was read from the container, RFC 3339 in UTC with microseconds; empty for a line that a crash left
    /// torn.
    pub stamp: String,
    pub stream: Stream,
    /// The line goes on in the next record of its stream, so no line end belongs behind the text.
    pub partial: bool,
    /// Any bytes but a line end.
    pub text: Vec<u8>,
}

impl Entry {
    /// Reads a record without its line end. What is not one, such as a line torn by a power cut, is all text.
    fn parse(line: &[u8]) -> Self {
        let record = || {
            let mut fields = line.splitn(4, |byte| *byte == b' ');
            let stamp = std::str::from_utf8(fields.next()?).ok()?;
            let stream = match fields.next()? {
                b"stdout" => Stream::Stdout,
                b"stderr" => Stream::Stderr,
                _ => return None,
            };
            let partial = match fields.next()? {
                b"F" => false,
                b"P" => true,
                _ => return None,
            };
            let text = fields.next()?.to_vec();
            let is_time = stamp.ends_with('Z') && stamp.as_bytes().first()?.is_ascii_digit();
            is_time.then(|| Self { stamp: stamp.to_owned(), stream, partial, text })
        };
        let torn = || Self {
            stamp: String::new(),
            stream: Stream::Stdout,
            partial: false,
            text: line.to_vec(),
        };
        record().unwrap_or_else(torn)
    }
}

/// Where a writer writes, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub directory: PathBuf,
    /// Of one file, in bytes; at least [`MIN_FILE_SIZE`] is taken.
    pub max_size: u64,
    /// Number of files, the one being written included; at least one.
    pub max_files: u32,
}

impl Place {
    /// The one parameter of the hidden command, `<directory>:<size>:<files>`. The runtime has undone the percent
    /// signs of [`Place::target`] by then; a directory may have colons.
    pub fn parse(parameter: &OsStr) -> Option<Self> {
        let mut parts = parameter.as_bytes().rsplitn(3, |byte| *byte == b':');
        let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
        let max_files = u32::try_from(number()?).ok()?.max(1);
        let max_size = number()?.max(MIN_FILE_SIZE);
        let directory = PathBuf::from(std::ffi::OsString::from_vec(parts.next()?.to_vec()));
        directory.is_absolute().then_some(Self { directory, max_size, max_files })
    }

    /// The address that a task's stdout and stderr are given so that containerd's shim runs `binary` as their
    /// writer. Several parameters would arrive in a random order, so there is one.
    pub fn target(&self, binary: &Path) -> String {
        let mut parameter = self.directory.as_os_str().as_bytes().to_vec();
        parameter.extend_from_slice(format!(":{}:{}", self.max_size, self.max_files).as_bytes());
        format!(
            "binary://{}?{PIPE_COMMAND}={}",
            escape(binary.as_os_str().as_bytes()),
            escape(&parameter)
        )
    }
}

/// Escapes everything that means something in a query of a URL.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(*byte));
            }
            _ => {
                text.push('%');
                text.extend(
                    [byte >> 4, byte & 15]
                        .map(|it| char::from(b"0123456789ABCDEF"[usize::from(it)])),
                );
            }
        }
    }
    text
}

/// `output.log` for 0, `output.log.<n>` for older ones.
fn file_name(directory: &Path, n: u32) -> PathBuf {
    if n == 0 { directory.join(FILE) } else { directory.join(format!("{FILE}.{n}")) }
}

/// The numbers of the files that are there, from the newest; unreadable is empty.
fn file_numbers(directory: &Path) -> Vec<u32> {
    let number = |name: &OsStr| match name.to_str()?.strip_prefix(FILE)? {
        "" => Some(0),
        more => more.strip_prefix('.')?.parse().ok().filter(|n| *n > 0),
    };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries.filter_map(|entry| number(&entry.file_name())).collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_read_back_by_the_rules_of_urls() {
        let place = Place {
            directory: "/var/lib/even keel/logs/a:b&c%41+d;é".into(),
            max_size: 10 << 20,
            max_files: 2,
        };
        let target = place.target(Path::new("/usr/bin/even keel"));
        assert_eq!(
            target,
            "binary:///usr/bin/even%20keel?log-pipe=\
             /var/lib/even%20keel/logs/a%3Ab%26c%2541%2Bd%3B%C3%A9%3A10485760%3A2"
        );
        // What the runtime hands over has the percent signs undone, once.
        let parameter = "/var/lib/even keel/logs/a:b&c%41+d;é:10485760:2";
        assert_eq!(Place::parse(OsStr::new(parameter)), Some(place));
    }

    #[test]
    fn a_parameter_needs_a_directory_and_two_numbers() {
        for wrong in ["", "/a", "/a:1", "a:1:1", "/a:x:1", "/a:1:x", ":1:1", "/a:-1:1"] {
            assert_eq!(Place::parse(OsStr::new(wrong)), None, "{wrong}");
        }
        let small = Place::parse(OsStr::new("/a:1:0")).unwrap();
        assert_eq!((small.max_size, small.max_files), (MIN_FILE_SIZE, 1));
    }

    #[test]
    fn a_record_is_read_and_anything_else_is_text() {
        let entry = Entry::parse(b"2026-01-01T00:00:00.000000Z stderr P a b \xff");
        assert_eq!(entry.stamp, "2026-01-01T00:00:00.000000Z");
        assert_eq!((entry.stream, entry.partial), (Stream::Stderr, true));
        assert_eq!(entry.text, b"a b \xff");
        let blank = Entry::parse(b"2026-01-01T00:00:00.000000Z stdout F ");
        assert!(!blank.partial && blank.text.is_empty());
        for torn in [&b"2026-01-01T00:00:00.000000Z stdo"[..], b"", b"x stdout F y", b"\0\0\0"] {
            let entry = Entry::parse(torn);
            assert_eq!((entry.stamp.as_str(), entry.text.as_slice()), ("", torn));
        }
    }
}
