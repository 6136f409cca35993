//! Process groups of programs that are run for a moment.

use rustix::process::{Pid, Signal, kill_process_group};

/// The process group of a program that leads one, killed when dropped. A process that has been given another group is
/// not reached by that.
///
/// # Assumptions
/// Whoever started the program has not waited for it yet, so that its number is nobody else's; or has called
/// [`Group::over`].
#[derive(Debug)]
pub struct Group(Option<u32>);

impl Group {
    /// Of a child that was started as the leader of a group; `None`: it was waited for.
    pub fn of(leader: Option<u32>) -> Self {
        Self(leader)
    }

    /// The leader was waited for: its number may be somebody else's from now on.
    pub fn over(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let number = self.0.and_then(|it| i32::try_from(it).ok());
        if let Some(group) = number.and_then(Pid::from_raw) {
            // It may be gone, which is as well.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}
