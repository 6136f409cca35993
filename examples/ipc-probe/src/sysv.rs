//! System V shared memory: a segment that holds one text behind its length.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// One page: the length, then the text.
const SIZE: usize = 4096;
const CAPACITY: usize = SIZE - size_of::<AtomicU32>();

/// An attached segment; detached when dropped, and left in the system.
pub(crate) struct Segment {
    // Invariant: the address of SIZE bytes that are mapped as long as the value lives.
    address: *mut u8,
}

impl Segment {
    /// Makes the segment, or takes the one that is there.
    pub(crate) fn create(key: i32) -> io::Result<Self> {
        Self::attach(identify(key, libc::IPC_CREAT | 0o666)?)
    }

    fn attach(id: i32) -> io::Result<Self> {
        // SAFETY: a null address lets the kernel choose one that is free.
        let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
        // What shmat returns for a failure is all ones.
        if address.addr() == usize::MAX {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { address: address.cast() })
        }
    }

    fn length(&self) -> &AtomicU32 {
        // SAFETY: the address is mapped, aligned to a page, and every process uses these bytes atomically.
        unsafe { AtomicU32::from_ptr(self.address.cast()) }
    }

    fn text(&self) -> *mut u8 {
        // SAFETY: within the SIZE bytes that are mapped.
        unsafe { self.address.add(size_of::<AtomicU32>()) }
    }

    /// Replaces the text. A reader in between finds none.
    pub(crate) fn put(&mut self, text: &str) -> io::Result<()> {
        if text.len() > CAPACITY {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "text is longer than the segment",
            ));
        }
        self.length().store(0, Ordering::Release);
        // SAFETY: the length was checked, and `text` cannot lie in the segment.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), self.text(), text.len()) };
        self.length().store(u32::try_from(text.len()).unwrap_or(0), Ordering::Release);
        Ok(())
    }

    fn get(&self) -> String {
        let length =
            usize::try_from(self.length().load(Ordering::Acquire)).unwrap_or(0).min(CAPACITY);
        let mut bytes = vec![0; length];
        // SAFETY: the length is within the segment, and the vector is of that length.
        unsafe {
            std::ptr::copy_nonoverlapping(self.text().cast_const(), bytes.as_mut_ptr(), length);
        };
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the address came from shmat and is not used any more.
        unsafe { libc::shmdt(self.address.cast()) };
    }
}

/// The text of a segment; `None`: there is no such segment.
pub(crate) fn read(key: i32) -> io::Result<Option<String>> {
    match identify(key, 0) {
        Ok(id) => Ok(Some(Segment::attach(id)?.get())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a segment; it lives on for those who have it attached.
pub(crate) fn remove(key: i32) -> io::Result<()> {
    let id = identify(key, 0)?;
    // SAFETY: IPC_RMID takes no third argument.
    let result = unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn identify(key: i32, flags: i32) -> io::Result<i32> {
    let size = if flags & libc::IPC_CREAT == 0 { 0 } else { SIZE };
    // SAFETY: takes and returns numbers only.
    let id = unsafe { libc::shmget(key, size, flags) };
    if id < 0 { Err(io::Error::last_os_error()) } else { Ok(id) }
}
