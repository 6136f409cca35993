//! Whether anybody has a file open for writing, asked of the kernel in one call.
//!
//! A read lease (`fcntl(2)`, `F_SETLEASE`) is granted only while nobody has the file open for writing, in whatever
//! process, namespace or mapping. It is given back at once. Does not see writers on other machines: ask about local file
//! systems only.

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;

/// Whether `file` is open for writing anywhere on this machine.
///
/// `file` has to be open for reading only and stays open for the caller to close: the lease is gone when this returns.
/// Somebody who opens it for writing in that moment waits for its end, some microseconds; with `O_NONBLOCK` that open
/// fails with `EWOULDBLOCK`.
///
/// # Errors
///
/// It cannot be known: the file belongs to somebody else and there is no `CAP_LEASE` (`EACCES`), the file system has no
/// leases or they are switched off (`EINVAL`), there is no memory for one.
pub fn is_open_for_writing(file: &File) -> Result<bool> {
    outlive_the_signal()?;
    match set_lease(file, libc::F_RDLCK) {
        Ok(()) => set_lease(file, libc::F_UNLCK).map(|()| false),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

fn set_lease(file: &File, kind: libc::c_int) -> Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and `F_SETLEASE` takes an int.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// Who breaks a lease has the kernel send `SIGIO` to its holder, which would end it. Nothing has to be done: the lease
/// is given back anyway. A handler that does nothing and not `SIG_IGN`, which programs started later would inherit.
fn outlive_the_signal() -> Result<()> {
    extern "C" fn nothing(_signal: libc::c_int) {}

    static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
    let failed = INSTALLED.get_or_init(|| {
        // SAFETY: all zeros are a valid `sigaction`: no flag, an empty mask, the default action.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the handler does nothing, so it may run at any time; the old action is not asked for.
        let result =
            unsafe { libc::sigaction(libc::SIGIO, &raw const action, std::ptr::null_mut()) };
        (result != 0).then(|| Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL))
    });
    failed.map_or(Ok(()), |code| Err(Error::from_raw_os_error(code)))
}
