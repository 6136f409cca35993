//! The policy, as one table: what to do with one workload, given what is wanted and what is there.

use super::Phase;

/// What is wanted of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// Its manifest says so.
    Running,
    Stopped,
    Absent,
    /// Its manifest cannot be followed now, or its removal is held: it goes on as last applied.
    HeldRunning,
    HeldStopped,
    /// It comes from a source that was not given.
    Unclaimed,
}

/// What is there of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Have {
    Nothing,
    /// An instance that has never run.
    Unstarted,
    /// A task that was created and not started: an interrupted start.
    Created,
    Running,
    Paused,
    /// A task that ended, and whose end is not recorded yet.
    Exited,
    /// A run without a task and without an end.
    Lost,
    /// A run whose end is recorded.
    Ended,
    /// The runtime does not say.
    Unknown,
}

/// How what is there fits what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    Current,
    /// A joiner that runs in another namespace than its donor.
    Outdated,
    /// Another revision is wanted, and everything that it needs is there. (While something is missing, the instance
    /// that is there goes on as [`Fit::Current`].)
    Changed,
    /// A person wants another run of it.
    Restart,
    /// A person wants another run of it, from the image anew.
    Renew,
}

/// Whether a start may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Again {
    Now,
    /// After a delay.
    Later,
    /// The policy says that this run was the last: it succeeded.
    Completed,
    /// The policy says that this run was the last: it failed.
    Failed,
}

/// What to do with one workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// Nothing, and it stands like this.
    Leave(Phase),
    /// Something is missing that would have to be there first.
    Wait(Phase),
    /// Make an instance and start it.
    Create,
    /// Start the instance.
    Start,
    /// Make another instance, stop the one that runs, start the other, remove the former.
    Replace,
    /// Stop and start the same instance.
    Restart,
    /// Stop and remove the instance, make it anew and start it.
    Renew,
    Resume,
    /// Record how it ended; it is started when its delay is over.
    FinishAndWait,
    /// Record how it ended; it stays so.
    FinishAs(Phase),
    /// Record how it ended, then start it.
    FinishAndStart,
    Stop,
    Remove,
}

/// Decides. `ready`: everything that a start of the wanted revision needs is there.
///
/// The whole table is in `tests/decisions.txt`.
pub fn decide(want: Want, have: Have, fit: Fit, ready: bool, again: Again) -> Decision {
    use Decision as D;
    let held = matches!(want, Want::HeldRunning | Want::HeldStopped);
    let phase = |phase| if held { Phase::Held } else { phase };
    match (want, have) {
        (Want::Unclaimed, _) => D::Leave(Phase::Held),
        // What the runtime does not know must not be taken for anything.
        (_, Have::Unknown) => D::Wait(Phase::Waiting),

        (Want::Absent, Have::Nothing) => D::Leave(Phase::Stopped),
        (Want::Absent, _) => D::Remove,

        (Want::Stopped | Want::HeldStopped, Have::Nothing | Have::Unstarted | Have::Ended) => {
            D::Leave(phase(Phase::Stopped))
        }
        (Want::Stopped | Want::HeldStopped, Have::Created | Have::Running | Have::Paused) => {
            D::Stop
        }
        (Want::Stopped | Want::HeldStopped, Have::Exited | Have::Lost) => {
            D::FinishAs(phase(Phase::Stopped))
        }

        (Want::Running | Want::HeldRunning, Have::Nothing) => match (ready, again) {
            (false, _) => D::Wait(phase(Phase::Waiting)),
            (true, Again::Later) => D::Wait(phase(Phase::BackingOff)),
            (true, Again::Now | Again::Completed | Again::Failed) => D::Create,
        },

        (Want::Running | Want::HeldRunning, Have::Running | Have::Paused) => match (fit, have) {
            // Nothing that runs is touched before its replacement can start.
            (Fit::Changed, _) if ready && again != Again::Later => D::Replace,
            (Fit::Outdated, _) if ready && again == Again::Now => D::Restart,
            (Fit::Restart, _) if ready => D::Restart,
            (Fit::Renew, _) if ready => D::Renew,
            (_, Have::Paused) => D::Resume,
            (_, _) => D::Leave(phase(Phase::Running)),
        },

        (
            Want::Running | Want::HeldRunning,
            Have::Unstarted | Have::Created | Have::Exited | Have::Lost | Have::Ended,
        ) => {
            let unfinished = matches!(have, Have::Created | Have::Exited | Have::Lost);
            // Another revision starts whatever the policy says about the run of this one.
            if fit == Fit::Changed && ready && again != Again::Later {
                return D::Replace;
            }
            if fit == Fit::Renew && ready {
                return D::Renew;
            }
            // What a person asks for waits for no delay and for no policy.
            let again = if matches!(fit, Fit::Restart | Fit::Renew) { Again::Now } else { again };
            match (again, ready) {
                (Again::Completed, _) if unfinished => D::FinishAs(phase(Phase::Completed)),
                (Again::Failed, _) if unfinished => D::FinishAs(phase(Phase::Failed)),
                (Again::Completed, _) => D::Leave(phase(Phase::Completed)),
                (Again::Failed, _) => D::Leave(phase(Phase::Failed)),
                (Again::Later, _) | (Again::Now, false) if unfinished => D::FinishAndWait,
                (Again::Now, true) if unfinished => D::FinishAndStart,
                (Again::Now, true) => D::Start,
                // Time alone will not do: what is missing is the news.
                (Again::Later | Again::Now, false) => D::Wait(phase(Phase::Waiting)),
                (Again::Later, true) => D::Wait(phase(Phase::BackingOff)),
            }
        }
    }
}
