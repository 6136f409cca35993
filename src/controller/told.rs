//! What happens, written into the journal for `evenkeel events`: what steps come to, how workloads stand, and whether
//! the runtime answers. Decides nothing, and nothing waits for it.

use super::execute::{Edge, Error};
use super::flights::Trouble;
use crate::host::Host;
use crate::plan::{Action, Step};
use crate::runtime::Runtime;
use crate::status::{Event, EventKind, EventType, Item, Standings, Status};

impl<R: Runtime, H: Host> Edge<R, H> {
    /// Writes down what happened just now.
    pub(super) fn tell(&self, event: Event) {
        self.run.record(Event { time: self.host.wall_clock(), ..event });
    }

    /// What came of a step.
    pub(super) fn tell_step(&self, step: &Step, result: &Result<(), Error>) {
        self.tell(match result {
            Ok(()) => Event::done(step),
            Err(error) => {
                let trouble = Trouble::of(step, error);
                // Of a start that failed its own reason says more.
                let reason = match step.action {
                    Action::Start(_) if error.is_counted() => error.classify().name,
                    _ => trouble.reason,
                };
                Event::failed(step, reason, &trouble.message)
            }
        });
    }

    /// Whether the runtime answers, when that changes.
    pub(super) fn tell_runtime(&self, away: Option<&str>) {
        self.tell(match away {
            Some(why) => Event::new(EventKind::Runtime, EventType::Warning, "runtime-away", why),
            None => Event::new(
                EventKind::Runtime,
                EventType::Normal,
                "runtime-back",
                "containerd answers again",
            ),
        });
    }

    /// The beginning and the end of a controller.
    pub(super) fn tell_controller(&self, reason: &str) {
        self.tell(Event::new(EventKind::Controller, EventType::Normal, reason, ""));
    }

    /// What is new about how workloads stand. The first time: new since the last status that somebody has written.
    pub(super) fn tell_standings(&self, standings: &mut Option<Standings>, items: &[Item]) {
        let standings = standings.get_or_insert_with(|| {
            let last: Option<Status> = self.run.status().ok().flatten();
            last.as_ref().map_or_else(Standings::default, Standings::since)
        });
        for event in standings.news(items) {
            self.tell(event);
        }
    }
}
