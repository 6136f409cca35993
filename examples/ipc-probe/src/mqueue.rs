//! POSIX message queues: made and removed by system call, listed by /dev/mqueue.

use std::ffi::CString;
use std::io;

const DIRECTORY: &str = "/dev/mqueue";

/// Makes a queue that stays until it is removed or its namespace is gone.
pub(crate) fn create(name: &str) -> io::Result<()> {
    let name = c_name(name)?;
    let mode: libc::mode_t = 0o666;
    let attributes: *mut libc::mq_attr = std::ptr::null_mut();
    // SAFETY: the name ends with NUL; mode and attributes (null: the default ones) follow O_CREAT as it asks.
    let queue =
        unsafe { libc::mq_open(name.as_ptr(), libc::O_CREAT | libc::O_RDWR, mode, attributes) };
    if queue < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and ours.
    unsafe { libc::mq_close(queue) };
    Ok(())
}

pub(crate) fn remove(name: &str) -> io::Result<()> {
    let name = c_name(name)?;
    // SAFETY: the name ends with NUL.
    let result = unsafe { libc::mq_unlink(name.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// All names in order; `None`: there is no /dev/mqueue.
pub(crate) fn list() -> io::Result<Option<Vec<String>>> {
    let entries = match std::fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(Some(names))
}

/// A queue's name starts with a slash; users may leave it out.
fn c_name(name: &str) -> io::Result<CString> {
    Ok(CString::new(format!("/{}", name.trim_start_matches('/')))?)
}
