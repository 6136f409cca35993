//! The IPC modes end to end: the program against a real containerd, seen from inside of the containers and from the
//! host, by /proc and mountinfo.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod defects;
mod donors;
mod edits;
mod modes;
mod refused;
mod shm;
pub(crate) mod stage;
