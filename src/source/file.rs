//! One file, looked at without ever blocking and read within a bound.
//!
//! Does not decide whether the content counts: that is [`super::settle`]'s.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Largest manifest that is read; a larger file is a problem, whatever it holds.
pub const FILE_LIMIT: usize = 256 << 10;

/// Device and inode: what a file or directory is, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileId {
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// What a file looks like from outside; another one means another content. Never mtime, which anybody can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Signature {
    pub(super) id: FileId,
    changed: (i64, i64),
    pub(super) size: u64,
}

impl Signature {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            id: FileId::of(metadata),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.size(),
        }
    }

    /// Time since the last change; zero when that is in the future, because the clock was set back.
    fn age(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let point = |seconds: i64, nanoseconds: i64| {
            Some(Duration::new(seconds.try_into().ok()?, nanoseconds.try_into().ok()?))
        };
        let (now, changed) =
            (point(now.tv_sec, now.tv_nsec), point(self.changed.0, self.changed.1));
        now.zip(changed).and_then(|(now, changed)| now.checked_sub(changed)).unwrap_or_default()
    }
}

/// Why a file is not read, with a stable code.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    /// A refusal by the system, for a file, a directory or what a symlink points to.
    pub(super) fn by_system(error: &std::io::Error) -> Self {
        Self { code: "file-unreadable", message: format!("cannot be read: {error}") }
    }

    fn not_regular(metadata: &Metadata) -> Self {
        let kind = metadata.file_type();
        let what = if kind.is_fifo() {
            "a named pipe"
        } else if kind.is_socket() {
            "a socket"
        } else if kind.is_dir() {
            "a directory"
        } else {
            "a device"
        };
        Self { code: "not-a-regular-file", message: format!("is {what}, not a regular file") }
    }
}

/// What stands behind a path.
#[derive(Debug)]
pub(super) enum Kind {
    Directory(Metadata),
    File(Metadata),
    Refused(Refusal),
    /// Not there (any more).
    Gone,
}

/// What stands behind `path`, symlinks followed. Opens nothing.
pub(super) fn kind(path: &Path) -> Kind {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Kind::Directory(metadata),
        Ok(metadata) if metadata.is_file() => Kind::File(metadata),
        Ok(metadata) => Kind::Refused(Refusal::not_regular(&metadata)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR) => match std::fs::symlink_metadata(path) {
                Ok(link) if link.is_symlink() => Kind::Refused(Refusal {
                    code: "dangling-symlink",
                    message: "is a symlink to something that does not exist".to_owned(),
                }),
                _ => Kind::Gone,
            },
            Some(Errno::LOOP) => Kind::Refused(Refusal {
                code: "symlink-loop",
                message: "is a symlink that leads back to itself".to_owned(),
            }),
            _ => Kind::Refused(Refusal::by_system(&error)),
        },
    }
}

/// What was read of a file.
#[derive(Debug)]
pub(super) enum Look {
    Bytes(Content),
    Refused(Refusal),
    Gone,
}

/// Content of a regular file, and what it looked like when it was read.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) signature: Signature,
    /// All of it, or the first [`FILE_LIMIT`] bytes of a larger one.
    pub(super) bytes: Vec<u8>,
    pub(super) too_large: bool,
    /// It changed while it was being read.
    pub(super) torn: bool,
    /// On a file system whose every writer is a process of this box.
    pub(super) local: bool,
    /// For how long it has been as it is, by its change time; zero where that is somebody else's clock.
    pub(super) age: Duration,
}

/// Reads a regular file, symlinks followed, at most [`FILE_LIMIT`] bytes and one.
pub(super) fn read(path: &Path) -> Look {
    // Opening a pipe can block and opening a device can do anything, so what it is is looked at first, on a
    // descriptor that cannot be exchanged under us.
    let place = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(error) => {
            return match kind(path) {
                Kind::Gone => Look::Gone,
                Kind::Refused(refusal) => Look::Refused(refusal),
                Kind::Directory(_) | Kind::File(_) => {
                    Look::Refused(Refusal::by_system(&error.into()))
                }
            };
        }
    };
    let before = match place.metadata() {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(metadata) => return Look::Refused(Refusal::not_regular(&metadata)),
        Err(error) => return Look::Refused(Refusal::by_system(&error)),
    };
    match read_place(&place, &before) {
        Ok(content) => Look::Bytes(content),
        Err(error) => Look::Refused(Refusal::by_system(&error)),
    }
}

fn read_place(place: &File, before: &Metadata) -> std::io::Result<Content> {
    let file =
        File::from(open_quietly(&descriptor_path(place), OFlags::NONBLOCK | OFlags::NOCTTY)?);
    let mut bytes = Vec::with_capacity(
        usize::try_from(before.size()).map_or(FILE_LIMIT, |it| it.min(FILE_LIMIT)) + 1,
    );
    let limit = u64::try_from(FILE_LIMIT).unwrap_or(u64::MAX);
    (&file).take(limit + 1).read_to_end(&mut bytes)?;
    let signature = Signature::of(&file.metadata()?);
    let too_large = bytes.len() > FILE_LIMIT;
    bytes.truncate(FILE_LIMIT);
    let torn = signature != Signature::of(before)
        || (!too_large && u64::try_from(bytes.len()).is_ok_and(|length| length != signature.size));
    let local = is_local(&file);
    let age = if local && !torn { signature.age() } else { Duration::ZERO };
    Ok(Content { signature, bytes, too_large, torn, local, age })
}

/// Opens for reading without writing an access time where that is allowed: looking costs no disk write.
pub(super) fn open_quietly(path: &Path, flags: OFlags) -> rustix::io::Result<rustix::fd::OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::open(path, flags, Mode::empty()),
        other => other,
    }
}

fn descriptor_path(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Magic numbers of the file systems that only this kernel writes to.
const LOCAL: [u64; 9] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683E, // btrfs
    0x0102_1994, // tmpfs
    0x8584_58F6, // ramfs
    0x794C_7630, // overlayfs
    0xF2F5_2010, // F2FS
    0x2FC1_2FC1, // ZFS
    0xCA45_1A4E, // bcachefs
];

fn is_local(file: &File) -> bool {
    let Ok(facts) = rustix::fs::fstatfs(file) else { return false };
    u64::try_from(facts.f_type).is_ok_and(|magic| LOCAL.contains(&magic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_a_socket_and_a_device_are_refused_without_being_opened() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe.yaml");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        let socket = directory.path().join("socket.yaml");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in
            [pipe.as_path(), socket.as_path(), Path::new("/dev/zero"), Path::new("/dev/tty")]
        {
            assert!(
                matches!(read(path), Look::Refused(Refusal { code: "not-a-regular-file", .. })),
                "{}",
                path.display()
            );
        }
    }

    #[test]
    fn no_more_than_the_limit_is_read_of_a_huge_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("huge.yaml");
        File::create(&path).unwrap().set_len(1 << 30).unwrap();
        let Look::Bytes(content) = read(&path) else { panic!("not read") };
        assert!(content.too_large);
        assert!(content.bytes.len() <= FILE_LIMIT && content.bytes.capacity() < 4 * FILE_LIMIT);
    }

    #[test]
    fn a_dangling_symlink_and_a_loop_say_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let dangling = directory.path().join("dangling.yaml");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        let looped = directory.path().join("loop.yaml");
        std::os::unix::fs::symlink("loop.yaml", &looped).unwrap();
        assert!(matches!(read(&dangling), Look::Refused(Refusal { code: "dangling-symlink", .. })));
        assert!(matches!(read(&looped), Look::Refused(Refusal { code: "symlink-loop", .. })));
        assert!(matches!(read(&directory.path().join("none.yaml")), Look::Gone));
    }
}
