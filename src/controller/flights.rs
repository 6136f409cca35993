//! Steps under way and those that wait for them: what runs, what it must have for itself, and what came of it.
//!
//! Does not say what is to be done. It keeps two steps from meeting at one thing, and lets go of each thing as soon as
//! the last step that needs it has ended, however it ended.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::execute::{self, Edge, Error, Permit};
use crate::backoff::Delays;
use crate::desired::BootTime;
use crate::host::Host;
use crate::observed::Leftover;
use crate::plan::{Action, PULL_FAILED, Step, StepId, import_lease, pull_lease};
use crate::runtime::Runtime;
use crate::status::Chain;
use crate::workload::{InstanceId, Name};

/// How long what is under way may go on when the controller is told to end. A replacement that has stopped the old
/// instance gets a chance to start the new one; a supervisor waits longer than this before it kills.
const FAREWELL: Duration = Duration::from_secs(5);

/// A one-shot command tries something that fails slowly, such as a process that no signal ends, for not longer than
/// this after its first failure: twice, as each try takes about half a minute.
const PATIENCE: Duration = Duration::from_secs(20);

/// A step that puts right what was found may be done so often in a row, each within that time of the last: longer than
/// the longest delay of what is done in vain.
const IN_VAIN: u32 = 5;
const OF_LATE: Duration = Duration::from_mins(2);

/// Something that one step at a time may touch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Workload(Name),
    Instance(InstanceId),
    Lease(String),
    Leftover(String),
}

/// What a step must have for itself.
fn keys(step: &Step) -> BTreeSet<Key> {
    let mut keys: BTreeSet<Key> = step.name.iter().cloned().map(Key::Workload).collect();
    keys.extend(step.action.instance().cloned().map(Key::Instance));
    match &step.action {
        // Two imports of one image would share a lease.
        Action::Import { image } => keys.extend([Key::Lease(import_lease(&image.digest))]),
        Action::Pull { image, .. } => keys.extend([Key::Lease(pull_lease(image))]),
        // Whoever brings it meanwhile would have it taken away, or be taken for one that nobody needs.
        Action::MarkImage { name, digest, .. } | Action::RemoveImage { name, digest } => {
            keys.extend([Key::Lease(pull_lease(name)), Key::Lease(import_lease(digest))]);
        }
        Action::Prepare(it) => keys.extend([Key::Lease(execute::instance_lease(&it.id))]),
        // What looks left behind may be just what a step under way is making.
        Action::Sweep(leftover) => keys.extend([match leftover {
            Leftover::Lease(id) => Key::Lease(id.clone()),
            Leftover::Snapshot(key) => {
                key.parse().map_or_else(|_| Key::Leftover(leftover.to_string()), Key::Instance)
            }
            Leftover::Published(id) | Leftover::Logs(id) | Leftover::Exec(id, _) => {
                Key::Instance(id.clone())
            }
            Leftover::Strikes(name) | Leftover::Hand(name, _) => Key::Workload(name.clone()),
            Leftover::Approval(it) => Key::Workload(it.name.clone()),
        }]),
        Action::Update(_)
        | Action::Stop(_)
        | Action::Resume { .. }
        | Action::Finish(_)
        | Action::Start(_)
        | Action::Publish { .. }
        | Action::Clear { .. }
        | Action::Remove { .. }
        | Action::RemoveOrphan { .. }
        | Action::RemoveStray(_) => {}
    }
    keys
}

/// The workload that must be free when a step begins. An image is brought for everybody who wants it: whoever asked for
/// it first may be busy for long.
pub(super) fn workload(step: &Step) -> Option<&Name> {
    step.name.as_ref().filter(|_| !matches!(step.action, Action::Import { .. }))
}

/// What must be free when a step begins.
pub(super) fn needs(step: &Step) -> BTreeSet<Key> {
    let mut needs = keys(step);
    needs.retain(|it| !matches!(it, Key::Workload(name) if workload(step) != Some(name)));
    needs
}

/// What must not be touched when a step begins, and may be afterwards: a donor that is being ended is not joined, and
/// one is not kept from ending by who is about to join it.
pub(super) fn donors(step: &Step) -> impl Iterator<Item = Key> {
    let donors =
        if let Action::Start(start) = &step.action { start.donors.as_slice() } else { &[] };
    donors.iter().cloned().map(Key::Instance)
}

/// Numbers steps across plans.
type Ticket = u64;

struct Flight {
    step: Arc<Step>,
    /// Steps that have to succeed before; empty when it runs.
    requires: BTreeSet<Ticket>,
    /// Steps that require this one.
    dependants: Vec<Ticket>,
    keys: BTreeSet<Key>,
    begun: Option<Instant>,
    ended: Option<Instant>,
    /// [`Cooling::edits`] when it was sent off.
    edits: u64,
}

/// Steps of plans that are under way.
#[derive(Default)]
pub(super) struct Flights {
    steps: BTreeMap<Ticket, Flight>,
    running: JoinSet<(Result<(), Error>, Option<Permit>)>,
    // By the task that carries a step out: a task that panics has nothing but its ID left.
    tickets: HashMap<tokio::task::Id, Ticket>,
    next: Ticket,
    /// What has ended and is not seen to yet: nobody else may touch it before everything was looked at after that.
    ended: VecDeque<(Ticket, Result<(), Error>)>,
    /// How many steps need each thing.
    busy: BTreeMap<Key, usize>,
    /// Busy things of which a step failed, and how the last of them did.
    failed: BTreeMap<Key, Trouble>,
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

    /// Whom somebody is just joining. Who ends such a one now, and starts it anew, has a joiner in an old namespace.
    pub(super) fn joined(&self) -> BTreeSet<InstanceId> {
        let begun = self.steps.values().filter(|it| it.begun.is_some() && it.ended.is_none());
        begun
            .filter_map(
                |it| if let Action::Start(start) = &it.step.action { Some(start) } else { None },
            )
            .flat_map(|it| it.donors.iter().cloned())
            .collect()
    }

    /// Whom of its donors a start would join that is just being ended or started, by another plan than its own.
    fn unsteady_donor(&self, start: &Step) -> Option<(InstanceId, InstanceId)> {
        let Action::Start(start) = &start.action else { return None };
        let is_touched = |donor: &&InstanceId| {
            let key = Key::Instance((*donor).clone());
            self.steps.values().any(|it| it.ended.is_none() && it.keys.contains(&key))
        };
        start.donors.iter().find(is_touched).map(|donor| (start.id.clone(), donor.clone()))
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
        edits: u64,
    ) {
        let mut tickets = BTreeMap::new();
        let mut ready = Vec::new();
        for (id, step) in part {
            let ticket = self.next;
            self.next += 1;
            tickets.insert(id, ticket);
            let requires: BTreeSet<Ticket> = step
                .requires
                .iter()
                .map(|it| *tickets.get(it).expect("a part has all that its steps require"))
                .collect();
            for it in &requires {
                if let Some(flight) = self.steps.get_mut(it) {
                    flight.dependants.push(ticket);
                }
            }
            if requires.is_empty() {
                ready.push(ticket);
            }
            let keys = keys(&step);
            for key in &keys {
                *self.busy.entry(key.clone()).or_default() += 1;
            }
            let (step, dependants) = (Arc::new(step), Vec::new());
            let (begun, ended) = (None, None);
            self.steps
                .insert(ticket, Flight { step, requires, dependants, keys, begun, ended, edits });
        }
        self.begin(edge, ready, None);
    }

    /// The first of them goes on with the permit of the step before it. Otherwise it would wait behind everything that
    /// is to begin: everybody's preparation, which keeps the disk busy, would come before anybody's start, which keeps
    /// the processors busy.
    fn begin<R: Runtime, H: Host>(
        &mut self,
        edge: &Arc<Edge<R, H>>,
        ready: Vec<Ticket>,
        mut permit: Option<Permit>,
    ) {
        for ticket in ready {
            let Some(flight) = self.steps.get_mut(&ticket) else { continue };
            flight.begun = Some(Instant::now());
            let (edge, step) = (Arc::clone(edge), Arc::clone(&flight.step));
            let permit = permit.take();
            let task = self.running.spawn(async move { edge.carry_out(&step, permit).await });
            self.tickets.insert(task.id(), ticket);
        }
    }

    /// Waits until a step has ended, and begins what waited for it alone. `None`: nothing is under way.
    ///
    /// Cancel-safe.
    async fn next_ended<R: Runtime, H: Host>(&mut self, edge: &Arc<Edge<R, H>>) -> Option<()> {
        let (task, result, permit) = match self.running.join_next_with_id().await? {
            Ok((task, (result, permit))) => (task, result, permit),
            Err(error) => {
                warn!(error = %error, "a step ended unexpectedly");
                (error.id(), Err(Error::Lost), None)
            }
        };
        let Some(ticket) = self.tickets.remove(&task) else { return Some(()) };
        if let Some(flight) = self.steps.get_mut(&ticket) {
            flight.ended = Some(Instant::now());
        }
        let mut ready = if result.is_ok() { self.allowed_by(ticket) } else { Vec::new() };
        ready.retain(|ticket| {
            let flight = self.steps.get(ticket);
            let Some((id, donor)) = flight.and_then(|it| self.unsteady_donor(&it.step)) else {
                return true;
            };
            // It waited for long, and its donor goes on meanwhile: it is planned anew.
            self.ended.push_back((*ticket, Err(Error::DonorEnded { id, donor })));
            false
        });
        self.begin(edge, ready, permit);
        self.ended.push_back((ticket, result));
        Some(())
    }

    /// The steps that can begin because this one has succeeded.
    fn allowed_by(&mut self, ticket: Ticket) -> Vec<Ticket> {
        let dependants = self.steps.get(&ticket).map(|it| it.dependants.clone());
        let mut ready = Vec::new();
        for dependant in dependants.unwrap_or_default() {
            let Some(it) = self.steps.get_mut(&dependant) else { continue };
            it.requires.remove(&ticket);
            if it.requires.is_empty() {
                ready.push(dependant);
            }
        }
        ready
    }

    /// Goes on with what is under way, for as long as somebody looks at everything: what has ended meanwhile is seen
    /// to by [`Self::landed`], so that no plan is made for it of what was seen before.
    pub(super) async fn go_on<R: Runtime, H: Host>(
        &mut self,
        edge: &Arc<Edge<R, H>>,
    ) -> Infallible {
        while self.next_ended(edge).await.is_some() {}
        std::future::pending().await
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
            while let Some((ticket, result)) = self.ended.pop_front() {
                if let Some(flight) = self.steps.get(&ticket) {
                    edge.tell_step(&flight.step, &result);
                }
                self.land(ticket, result, cooling, edge.host.now());
            }
            if self.freed && (self.is_empty() || Instant::now() >= soonest) {
                return;
            }
            if self.is_empty() {
                return std::future::pending().await;
            }
            tokio::select! {
                biased;
                Some(()) = self.next_ended(edge) => {}
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
        match result {
            Ok(()) => {
                report_done(&flight);
                if let Err(error) = cooling.done(&flight.step, now) {
                    self.note_trouble(&flight, &error, cooling);
                }
            }
            Err(error) => {
                let trouble = self.note_trouble(&flight, &error, cooling);
                // Who waits for an image that somebody else asked for has no other trouble to tell of.
                let is_shared = matches!(flight.step.action, Action::Import { .. });
                self.skip(&flight.dependants, is_shared.then_some(&trouble), cooling, now);
            }
        }
        self.release(&flight.keys, cooling, now);
    }

    fn note_trouble(&mut self, flight: &Flight, error: &Error, cooling: &Cooling) -> Trouble {
        let mut trouble = Trouble::of(&flight.step, error);
        trouble.edits = flight.edits;
        let is_known = flight.keys.iter().any(|it| {
            cooling.after.get(it).is_some_and(|it| it.trouble.message == trouble.message)
        });
        report_failed(flight, &trouble, is_known);
        for key in &flight.keys {
            self.failed.insert(key.clone(), trouble.clone());
        }
        trouble
    }

    /// Forgets steps that cannot begin any more, and those that require them. `shared`: the trouble is theirs too.
    fn skip(
        &mut self,
        dependants: &[Ticket],
        shared: Option<&Trouble>,
        cooling: &mut Cooling,
        now: BootTime,
    ) {
        let mut gone = dependants.to_vec();
        while let Some(ticket) = gone.pop() {
            if let Some(flight) = self.steps.remove(&ticket) {
                debug!(step = %flight.step, "step skipped: one that it requires failed");
                if let (Some(trouble), Some(name)) = (shared, &flight.step.name) {
                    self.failed.insert(Key::Workload(name.clone()), trouble.clone());
                }
                self.release(&flight.keys, cooling, now);
                gone.extend(flight.dependants);
            }
        }
    }

    fn release(&mut self, keys: &BTreeSet<Key>, cooling: &mut Cooling, now: BootTime) {
        let mut freed = false;
        let mut goes_on = false;
        for key in keys {
            let Some(count) = self.busy.get_mut(key) else { continue };
            *count -= 1;
            if *count > 0 {
                goes_on |= matches!(key, Key::Workload(_));
                continue;
            }
            self.busy.remove(key);
            freed = true;
            match self.failed.remove(key) {
                Some(trouble) => cooling.fail(key, trouble, now),
                None => drop(cooling.after.remove(key)),
            }
        }
        // Nobody else wants what a workload is done with while more is done to it.
        self.freed |= freed && !goes_on;
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

/// How a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// A stable kebab-case code.
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// A strike stands for it and says when it is tried again.
    is_counted: bool,
    /// [`Cooling::edits`] when its step was sent off.
    edits: u64,
}

impl Trouble {
    pub(super) fn of(step: &Step, error: &Error) -> Self {
        let reason = match &step.action {
            _ if error.is_unreachable() => "runtime-not-answering",
            _ if matches!(error, Error::DonorEnded { .. }) => "donor-vanished",
            Action::Import { .. } => "image-import-failed",
            Action::Pull { .. } => PULL_FAILED,
            Action::Prepare(_) => "prepare-failed",
            Action::Update(_) => "update-failed",
            Action::Stop(_) => "stop-failed",
            Action::Resume { .. } => "resume-failed",
            Action::Finish(_) => "finish-failed",
            Action::Start(_) => "start-failed",
            Action::Publish { .. } => "publish-failed",
            Action::Clear { .. }
            | Action::Remove { .. }
            | Action::RemoveOrphan { .. }
            | Action::RemoveStray(_)
            | Action::RemoveImage { .. }
            | Action::Sweep(_) => "remove-failed",
            Action::MarkImage { .. } => "update-failed",
        };
        Self { reason, message: Chain(error).to_string(), is_counted: error.is_counted(), edits: 0 }
    }
}

/// What failed last time, and how long it is left alone if no strike says so.
#[derive(Default)]
pub(super) struct Cooling {
    after: BTreeMap<Key, Failed>,
    /// Steps that were done of late: how often in a row, and when last.
    done: BTreeMap<String, (u32, BootTime)>,
    /// How often all was to be tried at once. What failed of a step that was sent off before says nothing of what is
    /// wanted since, and keeps that from nothing.
    pub(super) edits: u64,
}

struct Failed {
    trouble: Trouble,
    /// In a row, those without a strike.
    count: u32,
    /// When the first of them was.
    since: BootTime,
    until: BootTime,
}

impl Cooling {
    fn fail(&mut self, key: &Key, trouble: Trouble, now: BootTime) {
        let (count, until) = if trouble.is_counted || trouble.edits != self.edits {
            (0, now)
        } else {
            let count = self.after.get(key).map_or(0, |it| it.count).saturating_add(1);
            (count, now + Delays::default().after(count))
        };
        let before = self.after.get(key).filter(|it| it.count > 0 && count > 1);
        let since = before.map_or(now, |it| it.since);
        self.after.insert(key.clone(), Failed { trouble, count, since, until });
    }

    /// A step has ended well. One that is done again and again does not help, whatever is said of it: done as often as it
    /// is planned, it would keep a processor busy.
    fn done(&mut self, step: &Step, now: BootTime) -> Result<(), Error> {
        let is_delayed_otherwise = match &step.action {
            Action::Import { .. }
            | Action::Pull { .. }
            | Action::Prepare(_)
            | Action::Stop(_)
            | Action::Finish(_)
            | Action::Start(_)
            | Action::Remove { .. } => true,
            Action::Update(_)
            | Action::Resume { .. }
            | Action::Publish { .. }
            | Action::Clear { .. }
            | Action::RemoveOrphan { .. }
            | Action::RemoveStray(_)
            | Action::MarkImage { .. }
            | Action::RemoveImage { .. }
            | Action::Sweep(_) => false,
        };
        if is_delayed_otherwise {
            return Ok(());
        }
        self.done.retain(|_, it| now.since(it.1) < OF_LATE);
        let done = self
            .done
            .entry(format!("{} {}", step.action.verb(), step.action.subject()))
            .or_insert((0, now));
        *done = (done.0.saturating_add(1), now);
        if done.0 > IN_VAIN { Err(Error::InVain) } else { Ok(()) }
    }

    pub(super) fn is_cooling(&self, key: &Key, now: BootTime) -> bool {
        self.after.get(key).is_some_and(|it| it.until > now)
    }

    pub(super) fn is_cooling_any(&self, now: BootTime) -> bool {
        self.after.values().any(|it| it.until > now)
    }

    /// Something of what is left got no better in several tries, or in a few that took long.
    pub(super) fn has_given_up(&self, now: BootTime) -> bool {
        self.after
            .values()
            .any(|it| it.count >= 5 || it.count >= 2 && now.since(it.since) >= PATIENCE)
    }

    /// When the next of them may be tried again.
    pub(super) fn due(&self, now: BootTime) -> Option<BootTime> {
        self.after.values().map(|it| it.until).filter(|it| *it > now).min()
    }

    /// What keeps a workload from getting on that the plan cannot know of, and when it is tried again.
    pub(super) fn trouble(&self, name: &Name) -> Option<(&Trouble, BootTime)> {
        let failed = self.after.get(&Key::Workload(name.clone()))?;
        (!failed.trouble.is_counted).then_some((&failed.trouble, failed.until))
    }

    /// Everything may be tried at once.
    pub(super) fn forget(&mut self) {
        self.edits += 1;
        self.done.clear();
        for failed in self.after.values_mut() {
            failed.count = 0;
            failed.until = BootTime::default();
        }
    }
}

fn report_done(flight: &Flight) {
    let step = &flight.step;
    let name = step.name.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    let (action, subject) = (step.action.verb(), step.action.subject());
    let cause = step.cause.to_string();
    info!(name, action, subject, cause, ms = flight.lasted(), "step done");
}

/// A failure that persists is told when it starts and when its text changes, not at every try.
fn report_failed(flight: &Flight, trouble: &Trouble, is_known: bool) {
    let step = &flight.step;
    let name = step.name.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    let (action, subject) = (step.action.verb(), step.action.subject());
    let cause = step.cause.to_string();
    let (ms, error) = (flight.lasted(), &trouble.message);
    if is_known {
        debug!(name, action, subject, cause, error, ms, "step failed again");
    } else {
        warn!(name, action, subject, cause, error, ms, "step failed, and is tried again");
    }
}

impl Flight {
    fn lasted(&self) -> u64 {
        let ended = self.ended.unwrap_or_else(Instant::now);
        let lasted = self.begun.map_or(Duration::ZERO, |it| ended.duration_since(it));
        u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX)
    }
}
