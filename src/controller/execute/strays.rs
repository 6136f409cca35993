//! The end of what the runtime has lost: nobody but the kernel can be asked about it.

use std::time::Duration;

use tokio::time::Instant;

use super::{ASK_AGAIN, Edge, Error, KILL_WAIT, LOOK};
use crate::host::{Host, Whom};
use crate::observed::Task;
use crate::plan::RemoveStray;
use crate::runtime::Runtime;
use crate::workload::{InstanceId, Signal, StopTimeout};

/// No event tells of the end of a process that is nobody's.
const PAUSE: Duration = Duration::from_millis(50);

/// A shim ends within milliseconds of the signal that asks it to, and is killed when it does not.
const SHIM_WAIT: Duration = Duration::from_secs(2);

impl<R: Runtime, H: Host> Edge<R, H> {
    pub(super) async fn remove_stray(&self, stray: &RemoveStray) -> Result<(), Error> {
        let id = &stray.id;
        // Asked again, as late as can be: of what the runtime has by now, the next plan knows better.
        if self.runtime.wait(id, LOOK).await? != Some(Task::None) {
            return Ok(());
        }
        let limit = match stray.timeout {
            StopTimeout::After(span) => span.0,
            StopTimeout::Never => ASK_AGAIN,
        };
        let mut ended = !self.lives(id).await?;
        if !ended && !limit.is_zero() {
            let signal = stray.signal;
            let told = self
                .on_host(id.clone(), move |host, id| host.signal_stray(&id, Whom::Main, signal));
            // Whom nobody can ask to end is not waited for.
            if self.effect("stray/signal", told).await? {
                ended = self.has_ended(id, limit).await?;
                if !ended && stray.timeout == StopTimeout::Never {
                    return Err(Error::StillRuns { id: id.clone() });
                }
            }
        }
        let killed = Instant::now();
        while !ended {
            // Again and again: what was killed may have made others before it died.
            let kill = self
                .on_host(id.clone(), |host, id| host.signal_stray(&id, Whom::All, Signal::KILL));
            self.effect("stray/kill", kill).await?;
            ended = self.has_ended(id, PAUSE).await?;
            if !ended && killed.elapsed() >= KILL_WAIT {
                return Err(Error::StillThere { id: id.clone() });
            }
        }
        self.end_shim(id).await?;
        let remove = self.on_host(id.clone(), |host, id| host.remove_stray(&id));
        self.effect("stray/remove", remove).await
    }

    async fn lives(&self, id: &InstanceId) -> Result<bool, Error> {
        let stray = self.on_host(id.clone(), |host, id| host.stray(&id)).await?;
        Ok(stray.is_some_and(|it| !it.pids.is_empty()))
    }

    /// Whether no process of it is left, after that time at the latest.
    async fn has_ended(&self, id: &InstanceId, limit: Duration) -> Result<bool, Error> {
        let begun = Instant::now();
        loop {
            if !self.lives(id).await? {
                return Ok(true);
            }
            if begun.elapsed() >= limit {
                return Ok(false);
            }
            // What takes its time, be it hours, is asked about ever more rarely, and is over a tenth later at most.
            let pause = (begun.elapsed() / 10).clamp(PAUSE, LOOK);
            tokio::time::sleep(pause.min(limit.saturating_sub(begun.elapsed()))).await;
        }
    }

    /// A shim without a container waits for a containerd that will never ask it for anything.
    async fn end_shim(&self, id: &InstanceId) -> Result<(), Error> {
        let begun = Instant::now();
        let mut signal = Signal::TERM;
        loop {
            let told = self
                .on_host(id.clone(), move |host, id| host.signal_stray(&id, Whom::Shim, signal));
            if !self.effect("stray/shim", told).await? {
                return Ok(());
            }
            if begun.elapsed() >= KILL_WAIT {
                return Err(Error::StillThere { id: id.clone() });
            }
            if begun.elapsed() >= SHIM_WAIT {
                signal = Signal::KILL;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
