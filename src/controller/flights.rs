//! Steps under way and those that wait for them: what runs, what it must have for itself, and what came of it.
//!
//! Does not say what is to be done. It keeps two steps from meeting at one thing, and lets go of each thing as soon as
//! the last step that needs it has ended, however it ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::execute::{self, Edge, Error};
use crate::backoff::Delays;
use crate::desired::BootTime;
use crate::host::Host;
use crate::observed::Leftover;
use crate::plan::{Action, Step, StepId};
use crate::runtime::Runtime;
use crate::status::Chain;
use crate::workload::{InstanceId, Name};

/// How long what is under way may go on when the controller is told to end. A replacement that has stopped the old
/// instance gets a chance to start the new one; a supervisor waits longer than this before it kills.
const FAREWELL: Duration = Duration::from_secs(5);

/// Something that one step at a time may touch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Workload(Name),
    Instance(InstanceId),
    Lease(String),
    Leftover(String),
}

/// What a step must have for itself.
pub(super) fn keys(step: &Step) -> BTreeSet<Key> {
    let mut keys: BTreeSet<Key> = step.name.iter().cloned().map(Key::Workload).collect();
    keys.extend(step.action.instance().cloned().map(Key::Instance));
    match &step.action {
        // Two imports of one image would share a lease.
        Action::Import { image } => keys.extend([Key::Lease(execute::import_lease(image))]),
        Action::Prepare(it) => keys.extend([Key::Lease(execute::instance_lease(&it.id))]),
        // What looks left behind may be just what a step under way is making.
        Action::Sweep(leftover) => keys.extend([match leftover {
            Leftover::Lease(id) => Key::Lease(id.clone()),
            Leftover::Snapshot(key) => {
                key.parse().map_or_else(|_| Key::Leftover(leftover.to_string()), Key::Instance)
            }
            Leftover::Published(id) | Leftover::Logs(id) | Leftover::Cgroup(id) => {
                Key::Instance(id.clone())
            }
            Leftover::Strikes(name) => Key::Workload(name.clone()),
            Leftover::Approval(it) => Key::Workload(it.name.clone()),
        }]),
        Action::Update(_)
        | Action::Stop(_)
        | Action::Resume { .. }
        | Action::Finish(_)
        | Action::Start(_)
        | Action::Publish { .. }
        | Action::Remove { .. }
        | Action::RemoveOrphan { .. } => {}
    }
    keys
}

/// Numbers steps across plans.
type Ticket = u64;

struct Flight {
    step: Arc<Step>,
    /// Steps that have to succeed before; empty when it runs.
    requires: BTreeSet<Ticket>,
    keys: BTreeSet<Key>,
    begun: Option<Instant>,
}

/// Steps of plans that are under way.
#[derive(Default)]
pub(super) struct Flights {
    steps: BTreeMap<Ticket, Flight>,
    running: JoinSet<Result<(), Error>>,
    // By the task that carries a step out: a task that panics has nothing but its ID left.
    tickets: HashMap<tokio::task::Id, Ticket>,
    next: Ticket,
    /// How many steps need each thing.
    busy: BTreeMap<Key, usize>,
    /// Busy things of which a step failed without a strike.
    failed: BTreeSet<Key>,
    /// Something is free that was not at the last look.
    freed: bool,
}

impl Flights {
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub(super) fn is_busy(&self, key: &Key) -> bool {
        self.busy.contains_key(key)
    }

    /// Everything is looked at now, whatever was freed before.
    pub(super) fn seen(&mut self) {
        self.freed = false;
    }

    /// Takes a connected part of a plan, with all that its steps require.
    pub(super) fn send<R: Runtime, H: Host>(
        &mut self,
        edge: &Arc<Edge<R, H>>,
        part: Vec<(StepId, Step)>,
    ) {
        let mut tickets = BTreeMap::new();
        for (id, step) in part {
            let ticket = self.next;
            self.next += 1;
            tickets.insert(id, ticket);
            let requires = step
                .requires
                .iter()
                .map(|it| *tickets.get(it).expect("a part has all that its steps require"))
                .collect();
            let keys = keys(&step);
            for key in &keys {
                *self.busy.entry(key.clone()).or_default() += 1;
            }
            let flight = Flight { step: Arc::new(step), requires, keys, begun: None };
            self.steps.insert(ticket, flight);
        }
        self.advance(edge);
    }

    /// Begins every step that requires nothing any more.
    fn advance<R: Runtime, H: Host>(&mut self, edge: &Arc<Edge<R, H>>) {
        for (ticket, flight) in &mut self.steps {
            if flight.begun.is_some() || !flight.requires.is_empty() {
                continue;
            }
            flight.begun = Some(Instant::now());
            let (edge, step) = (Arc::clone(edge), Arc::clone(&flight.step));
            let task = self.running.spawn(async move { edge.carry_out(&step).await });
            self.tickets.insert(task.id(), *ticket);
        }
    }

    /// Sees to what has ended and what comes after it, until something is free that another plan may want, and then
    /// on until `soonest`. Never returns while nothing is under way.
    ///
    /// Cancel-safe: between two waits everything is in order.
    pub(super) async fn landed<R: Runtime, H: Host>(
        &mut self,
        edge: &Arc<Edge<R, H>>,
        cooling: &mut Cooling,
        soonest: Instant,
    ) {
        loop {
            if self.freed && (self.is_empty() || Instant::now() >= soonest) {
                return;
            }
            if self.is_empty() {
                return std::future::pending().await;
            }
            tokio::select! {
                Some(ended) = self.running.join_next_with_id() => {
                    let (task, result) = match ended {
                        Ok((task, result)) => (task, result),
                        Err(error) => {
                            warn!(error = %error, "a step ended unexpectedly");
                            (error.id(), Err(Error::Lost))
                        }
                    };
                    if let Some(ticket) = self.tickets.remove(&task) {
                        self.land(ticket, result, cooling, edge.host.now());
                        self.advance(edge);
                    }
                }
                () = tokio::time::sleep_until(soonest), if self.freed => {}
            }
        }
    }

    fn land(
        &mut self,
        ticket: Ticket,
        result: Result<(), Error>,
        cooling: &mut Cooling,
        now: BootTime,
    ) {
        let Some(flight) = self.steps.remove(&ticket) else { return };
        report(&flight, &result);
        match result {
            Ok(()) => {
                for other in self.steps.values_mut() {
                    other.requires.remove(&ticket);
                }
            }
            Err(error) => {
                if !error.is_counted() {
                    self.failed.extend(flight.keys.iter().cloned());
                }
                self.skip(ticket, cooling, now);
            }
        }
        self.release(&flight.keys, cooling, now);
    }

    /// Forgets every step that cannot begin any more.
    fn skip(&mut self, failed: Ticket, cooling: &mut Cooling, now: BootTime) {
        let mut gone = vec![failed];
        while let Some(ticket) = gone.pop() {
            let dependants = self.steps.iter().filter(|(_, it)| it.requires.contains(&ticket));
            for ticket in dependants.map(|(ticket, _)| *ticket).collect::<Vec<_>>() {
                if let Some(flight) = self.steps.remove(&ticket) {
                    debug!(step = %flight.step, "step skipped: one that it requires failed");
                    self.release(&flight.keys, cooling, now);
                }
                gone.push(ticket);
            }
        }
    }

    fn release(&mut self, keys: &BTreeSet<Key>, cooling: &mut Cooling, now: BootTime) {
        for key in keys {
            let Some(count) = self.busy.get_mut(key) else { continue };
            *count -= 1;
            if *count > 0 {
                continue;
            }
            self.busy.remove(key);
            self.freed = true;
            if self.failed.remove(key) {
                cooling.strike(key, now);
            } else {
                cooling.until.remove(key);
            }
        }
    }

    /// Gives what is under way a moment to end by itself; what does not is repaired by the next controller.
    pub(super) async fn finish_soon<R: Runtime, H: Host>(
        &mut self,
        edge: &Arc<Edge<R, H>>,
        cooling: &mut Cooling,
    ) {
        let all = async {
            while !self.is_empty() {
                self.seen();
                self.landed(edge, cooling, Instant::now()).await;
            }
        };
        if tokio::time::timeout(FAREWELL, all).await.is_err() {
            debug!("steps are under way; the next controller takes them up");
        }
    }
}

/// Failures of steps that no strike stands for: how long what they touched is left alone.
#[derive(Default)]
pub(super) struct Cooling {
    until: BTreeMap<Key, (u32, BootTime)>,
}

impl Cooling {
    fn strike(&mut self, key: &Key, now: BootTime) {
        let count = self.until.get(key).map_or(0, |it| it.0).saturating_add(1);
        self.until.insert(key.clone(), (count, now + Delays::default().after(count)));
    }

    pub(super) fn is_cooling(&self, key: &Key, now: BootTime) -> bool {
        self.until.get(key).is_some_and(|it| it.1 > now)
    }

    pub(super) fn is_cooling_any(&self, now: BootTime) -> bool {
        self.until.values().any(|it| it.1 > now)
    }

    /// Nothing of what is left got better in several tries.
    pub(super) fn has_given_up(&self) -> bool {
        self.until.values().any(|it| it.0 >= 5)
    }

    /// When the next of them may be tried again.
    pub(super) fn due(&self, now: BootTime) -> Option<BootTime> {
        self.until.values().map(|it| it.1).filter(|it| *it > now).min()
    }
}

fn report(flight: &Flight, result: &Result<(), Error>) {
    let step = &flight.step;
    let name = step.name.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    let (action, subject, cause) = (step.action.verb(), step.action.subject(), &step.cause);
    let ms = flight.begun.map_or(0, |it| it.elapsed().as_millis());
    match result {
        Ok(()) => info!(name, action, subject, cause = %cause, ms, "step done"),
        Err(error) => {
            warn!(name, action, subject, cause = %cause, error = %Chain(error), "step failed");
        }
    }
}
