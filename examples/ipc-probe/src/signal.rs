//! SIGTERM and SIGINT as something to wait for. There is no handler: both stay blocked and are asked for.
//!
//! Works for PID 1 of a container too, which ignores every signal that it has neither handled nor blocked.

use std::time::Duration;

/// Proof that the signals are blocked in this (the only) thread.
pub(crate) struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    pub(crate) fn hold() -> Self {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the pointer is to memory of the right type, which the call fills.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: sigemptyset has initialised it and cannot fail.
        let mut set = unsafe { set.assume_init() };
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // SAFETY: the set is initialised and the signals exist.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: the set is initialised; the old one is not asked for.
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        Self { set }
    }

    /// Waits for one of them; `false` when the time is over.
    pub(crate) fn arrives_within(&self, limit: Duration) -> bool {
        let limit = libc::timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        // SAFETY: the set and the time are initialised; nothing is asked for about the signal.
        let signal = unsafe {
            libc::sigtimedwait(&raw const self.set, std::ptr::null_mut(), &raw const limit)
        };
        signal > 0
    }
}
