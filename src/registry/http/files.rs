//! Small files of other programs, read whole.

use std::io::{Error as IoError, ErrorKind, Read as _, Result};
use std::path::Path;

use crate::registry::{Error, Reason};

/// A file with at most so many bytes; `None`: there is none.
pub(super) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // Not waiting for a writer, should it be a FIFO.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = match std::fs::File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(IoError::other("not a file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(IoError::other(format!("larger than {} KiB", limit >> 10)));
    }
    Ok(Some(bytes))
}

/// What is said of one that cannot be read.
pub(super) fn unreadable(path: &Path, cause: &IoError) -> Error {
    Error::new(Reason::Settings, format!("failed to read `{}`: {cause}", path.display()))
}
