//! The loop: observe → diff → execute → report → wait.
//!
//! Level-triggered: whatever wakes it, it looks at everything and plans anew. Files, events and timers carry no data
//! into the plan. It is the only place that logs failures.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::backoff::Strikes;
use crate::desired::{BootTime, DesiredState};
use crate::host::{Ask, Host};
use crate::observed::{
    Approval, Exec, Hand, Image, Instance, Leftover, ObservedState, Removal, Task,
};
use crate::oci::HOST_NETWORK_FILES;
use crate::plan::{self, Action, MachineEnd, Phase, Plan, Policy, Step, StepId};
use crate::rundir::{ExecOwner, ImageHold, Stamp};
use crate::runtime::{Container, Objects, Runtime};
use crate::status::{self, Around, Chain, ControllerStatus, RuntimeStatus, Status, trouble};
use crate::workload::{InstanceId, MountKind, Name, NetworkMode};

mod execute;
mod flights;
#[cfg(test)]
mod tests;
mod told;

pub use execute::{CONCURRENCY, Crash, EFFECTS, Edge, Error};

use flights::{Cooling, Flights, Key, donors, needs, workload};

/// A look at everything without any hint, for what no event tells of.
pub const RESYNC: Duration = Duration::from_secs(30);

/// The shortest wait for a time that was planned, whatever the plan says.
const LEAST: Duration = Duration::from_millis(1);

/// Hints of the runtime within this time make one look together; a start alone makes half a dozen.
const HINT_QUIET: Duration = Duration::from_millis(25);

/// The same while steps are under way.
const HINT_QUIET_BUSY: Duration = Duration::from_millis(250);

/// How often approvals are looked for while something is held: a person waits for it, and a look costs one system call.
const APPROVALS: Duration = Duration::from_secs(1);

/// A look that takes longer than this is told of: the runtime hangs, or the box does.
const SILENT: Duration = Duration::from_secs(5);

/// How often it is looked for what a person asks for. A few system calls, which an idle controller does not feel.
const HANDS: Duration = Duration::from_secs(1);

/// How often it is told how far a pull has come.
const PROGRESS: Duration = Duration::from_secs(1);

/// First and longest wait after a look that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// How long a workload must run before one-shot `apply` believes it.
const BELIEVED: Duration = Duration::from_secs(1);

/// What a controller is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// Keep going until told to end.
    Keep,
    /// End when no step can be taken now and nothing waits but a retry. `wait`: go on until everything is as wanted.
    Converge { wait: bool },
    /// End when what a person asked for of these workloads is done, or can get no further; touch no others.
    Hands { names: BTreeSet<Name> },
    /// Remove the named workloads, or everything.
    Down { names: Option<BTreeSet<Name>> },
    /// End every process and keep everything; what has not ended at that time is killed.
    Shutdown { until: BootTime, why: Option<MachineEnd> },
}

impl Goal {
    /// Whether anything can be done without having read them.
    fn follows_manifests(&self) -> bool {
        match self {
            Self::Keep | Self::Converge { .. } | Self::Hands { .. } => true,
            Self::Down { .. } | Self::Shutdown { .. } => false,
        }
    }
}

/// How a controller ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    Converged,
    /// Some workloads are not as wanted; the status says which.
    NotConverged,
    /// Told to end.
    Shutdown,
    /// The runtime never answered.
    Unreachable(String),
}

/// Reconciles one host. See [`Controller::run`].
pub struct Controller<R, H> {
    pub edge: Arc<Edge<R, H>>,
    pub desired: watch::Receiver<Option<Arc<DesiredState>>>,
    pub policy: watch::Receiver<Arc<Policy>>,
    /// Why mounts cannot be shared with the runtime, looked up at connect.
    pub mounts_not_shared: Option<String>,
    pub identity: Option<ControllerStatus>,
    pub goal: Goal,
}

/// What one look found.
struct Look {
    observed: ObservedState,
    now: BootTime,
}

impl<R: Runtime, H: Host> Controller<R, H> {
    /// Runs until the goal is reached or `shutdown` resolves; containers keep running.
    ///
    /// # Guarantees
    /// Steps of one workload never overlap; a slow one keeps no other workload from being reconciled. The status goes
    /// to `report` at every change, before the loop waits.
    pub async fn run(
        mut self,
        report: watch::Sender<Option<Arc<Status>>>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Ended {
        let mut hints = self.edge.runtime.hints();
        let mut flights = Flights::default();
        let mut cooling = Cooling::default();
        let mut failures = 0_u32;
        let mut complaint = String::new();
        let mut wake = "start";
        let mut manifests_end = false;
        let mut began = None;
        let mut asked = BTreeMap::new();
        let mut read: Option<Arc<DesiredState>> = None;
        let mut standings = None;
        // It has read everything there is, and starts it.
        let mut is_worn = true;
        if self.identity.is_some() {
            self.edge.run.sweep_execs();
            self.edge.run.sweep_pulls();
            self.edge.tell_controller("controller-started");
        }
        let late_archives = self.edge.late_archives();
        tokio::pin!(shutdown);
        loop {
            let begun = Instant::now();
            hints.borrow_and_update();
            flights.seen();
            self.policy.borrow_and_update();
            // The last state comes with the end of its channel, and one look does for both. Asked first: what is sent
            // before the end is read after this.
            manifests_end |= self.desired.has_changed().is_err();
            let desired = self.desired.borrow_and_update().clone();
            if desired.as_ref().map(Arc::as_ptr) != read.as_ref().map(Arc::as_ptr) {
                // An edit acts at once, whatever woke this pass and whatever failed before it.
                cooling.forget();
                is_worn |= read.is_some();
                read.clone_from(&desired);
            }
            // Before they are read: what comes in between makes another look, and not none.
            let hands = self.edge.run.hands_stamp();
            if !matches!(self.goal, Goal::Shutdown { .. })
                && let Some(by) = self.edge.run.shutdown()
            {
                // Whatever is under way: its end is in that one's hands now, and nothing is begun any more.
                info!(by = by.pid, "`evenkeel shutdown` ends everything; this ends for it");
                return self.leave(flights, &mut cooling).await;
            }
            let mut next = RESYNC;
            let mut held = false;
            let mut released = BTreeSet::new();
            let mut manifests = self.desired.clone();
            let is_blind = desired.is_none() && self.goal.follows_manifests();
            let look = self.look_and_tell(desired.as_deref(), &report, &mut complaint);
            let look = tokio::select! {
                biased;
                look = look => look,
                // Without manifests a look only tells whether the runtime answers.
                Ok(()) = manifests.changed(), if is_blind => continue,
                never = flights.go_on(&self.edge) => match never {},
                // A look may wait for a runtime that hangs; who ends us does not.
                () = &mut shutdown => return self.leave(flights, &mut cooling).await,
            };
            if look.is_ok() && !complaint.is_empty() {
                info!("the runtime answers again");
                complaint.clear();
                self.edge.tell_runtime(None);
            }
            match (&desired, look) {
                (_, Err(error)) => {
                    failures = failures.saturating_add(1);
                    let text = Chain(&error).to_string();
                    self.complain(&report, &mut complaint, &text);
                    next = RETRY.0.saturating_mul(1 << failures.min(10)).min(RETRY.1);
                    if self.goal != Goal::Keep && failures > 5 {
                        return Ended::Unreachable(text);
                    }
                }
                (None, Ok(_)) if self.goal.follows_manifests() => {
                    debug!(wake, "manifests are not read yet");
                }
                (desired, Ok(look)) => {
                    failures = 0;
                    let empty = DesiredState::default();
                    let desired = desired.as_deref().unwrap_or(&empty);
                    let before = std::mem::replace(&mut asked, look.observed.hands.clone());
                    if asked.iter().any(|(name, hand)| before.get(name) != Some(hand)) {
                        // Who asks for something does not mean in a minute.
                        cooling.forget();
                    }
                    let plan = self.plan(desired, &look);
                    debug!(wake, steps = plan.steps.len(), "pass");
                    is_worn |= !plan.steps.is_empty();
                    self.dispatch(&plan, &mut flights, &cooling, look.now);
                    self.say(&report, desired, &look, &plan, &cooling);
                    if let Some(status) =
                        report.borrow().as_ref().filter(|_| self.goal.follows_manifests())
                    {
                        self.edge.tell_standings(&mut standings, &status.items);
                    }
                    // What is absent may still have to be confirmed.
                    let is_last = manifests_end || !self.goal.follows_manifests();
                    let began = *began.get_or_insert(look.now);
                    if flights.is_empty()
                        && is_last
                        && let Some(ended) = self.ended(&plan, &look, &cooling, began)
                    {
                        return ended;
                    }
                    let due = plan.wake.into_iter().chain(cooling.due(look.now)).min();
                    next = due.map_or(next, |it| next.min(it.since(look.now).max(LEAST)));
                    if look.observed.pulls.values().any(|it| it.under_way.is_some()) {
                        next = next.min(PROGRESS);
                    }
                    held = !plan.holds.is_empty();
                    released.clone_from(&look.observed.approvals);
                    if self.goal != Goal::Keep && flights.is_empty() {
                        // What is believed after a second of running is looked at again then.
                        next = next.min(BELIEVED);
                    }
                }
            }
            let is_idle = next >= RESYNC && flights.is_empty() && failures == 0;
            if is_worn && is_idle && self.goal == Goal::Keep {
                self.edge.host.rest();
                is_worn = false;
            }
            let deadline = Instant::now() + next;
            // While steps are under way most hints are their own echo.
            let quiet = if flights.is_empty() { HINT_QUIET } else { HINT_QUIET_BUSY };
            let hints_from = Instant::now() + quiet;
            // Where many steps end one after the other, looking takes no more than a third of the time.
            let pause = (begun.elapsed() * 2).min(HINT_QUIET_BUSY);
            let soonest = Instant::now() + pause;
            // Every arm is cancel-safe: watch channels keep what is unseen, a set keeps what is done, and a timer is
            // made anew from the plan. In order, so that equal worlds take equal ways; each arm leads to a look at all.
            wake = tokio::select! {
                biased;
                () = &mut shutdown => return self.leave(flights, &mut cooling).await,
                changed = self.desired.changed(), if !manifests_end => {
                    // Read once and for all when the other end is gone.
                    manifests_end = changed.is_err();
                    "manifests"
                }
                Ok(()) = self.policy.changed() => "configuration",
                Ok(()) = async { tokio::time::sleep_until(hints_from).await; hints.changed().await } => "runtime",
                () = flights.landed(&self.edge, &mut cooling, soonest) => "steps",
                () = released_since(&self.edge, &released), if held => "approval",
                () = asked_since(&self.edge, &hands) => "hand",
                () = late_archives.notified() => "archives",
                () = tokio::time::sleep_until(deadline) => "timer",
            };
        }
    }

    async fn leave(&self, mut flights: Flights, cooling: &mut Cooling) -> Ended {
        flights.finish_soon(&self.edge, cooling).await;
        if self.identity.is_some() {
            self.edge.tell_controller("controller-ended");
        }
        Ended::Shutdown
    }

    fn plan(&self, desired: &DesiredState, look: &Look) -> Plan {
        match &self.goal {
            Goal::Keep | Goal::Converge { .. } => {
                plan::diff(desired, &look.observed, &self.policy.borrow(), look.now)
            }
            Goal::Hands { names } => {
                let policy = self.policy.borrow();
                plan::diff(desired, &look.observed, &policy, look.now).only(names)
            }
            Goal::Down { names } => plan::down(&look.observed, names.as_ref()),
            Goal::Shutdown { until, why } => plan::shutdown(&look.observed, look.now, *until, *why),
        }
    }

    /// Sends off every part of the plan that touches nothing which is under way, and requires nothing that does.
    fn dispatch(&self, plan: &Plan, flights: &mut Flights, cooling: &Cooling, at: BootTime) {
        // At the end of the machine each plan says what is left from now, and not what there is from the signal on.
        if !matches!(self.goal, Goal::Shutdown { .. }) {
            for step in &plan.steps {
                if let Action::Stop(stop) = &step.action {
                    self.edge.hasten(stop);
                }
            }
        }
        for part in parts(plan) {
            let waits = |key: &Key| flights.is_busy(key) || cooling.is_cooling(key, at);
            let waits = |step: &Step| {
                needs(step).iter().any(waits) || donors(step).any(|it| flights.is_busy(&it))
            };
            let held = held(plan, &part, &flights.joined(), waits);
            // A later plan has what comes after a pause, and what it has learned meanwhile: a joiner is not stopped
            // for a donor that did not live through its first moments.
            let mut later = BTreeSet::new();
            let mut now = Vec::new();
            for id in part.into_iter().filter(|it| !held.contains(it)) {
                let step = &plan.steps[id.0];
                if step.pause.is_zero() && step.requires.iter().all(|it| !later.contains(it)) {
                    now.push((id, step.clone()));
                } else {
                    later.insert(id);
                }
            }
            flights.send(&self.edge, now, cooling.edits);
        }
    }

    /// Whether a one-shot goal is reached that was set at `began`.
    fn ended(&self, plan: &Plan, look: &Look, cooling: &Cooling, began: BootTime) -> Option<Ended> {
        match &self.goal {
            Goal::Keep => None,
            // What has no container object and does not answer cannot be removed, and is not gone.
            Goal::Down { names: None }
                if plan.is_empty()
                    && look.observed.orphans.values().any(|it| *it == Task::Unknown) =>
            {
                Some(Ended::NotConverged)
            }
            // What nobody knows of may run.
            Goal::Down { .. } if plan.is_empty() && has_unknown_strays(&look.observed) => {
                Some(Ended::NotConverged)
            }
            // A donor that stays is there.
            Goal::Down { .. } if plan.is_empty() && !plan.standings.is_empty() => {
                Some(Ended::NotConverged)
            }
            Goal::Down { .. } if plan.is_empty() => Some(Ended::Converged),
            Goal::Down { .. } => cooling.has_given_up(look.now).then_some(Ended::NotConverged),
            // A shim that is slow to answer may do so before the time is up.
            Goal::Shutdown { .. } if plan.is_empty() => {
                let observed = &look.observed;
                let mut tasks =
                    observed.instances.values().map(|it| &it.task).chain(observed.orphans.values());
                let is_unknown = tasks.any(|it| *it == Task::Unknown);
                (!is_unknown && !has_unknown_strays(observed)).then_some(Ended::Converged)
            }
            // Refusals that come quickly are no reason to leave processes to the end of the machine.
            Goal::Shutdown { until, .. } => (look.now >= *until && cooling.has_given_up(look.now))
                .then_some(Ended::NotConverged),
            Goal::Converge { .. } | Goal::Hands { .. } => {
                let wait = &matches!(self.goal, Goal::Converge { wait: true });
                if !plan.is_empty() {
                    return (!wait && cooling.is_cooling_any(look.now))
                        .then_some(Ended::NotConverged);
                }
                let soon = plan.standings.values().any(|it| plan.is_soon(it));
                let instance = |standing: &plan::Standing| {
                    standing.instance.as_ref().and_then(|id| look.observed.instances.get(id))
                };
                let mut converged = true;
                let mut young = false;
                for (name, standing) in &plan.standings {
                    match standing.phase {
                        Phase::Running if standing.up_to_date && standing.reason.is_empty() => {
                            let run = instance(standing).and_then(|it| it.run.as_ref());
                            young |= run.is_some_and(|it| look.now.since(it.at) < BELIEVED);
                        }
                        Phase::Completed | Phase::Stopped if standing.up_to_date => {}
                        // What was found dead is tried once where that is a matter of a moment: its last run may
                        // have been ended by a command that was killed before it could start it again.
                        Phase::BackingOff
                            if standing.until.is_some_and(|at| at.since(look.now) < BELIEVED)
                                && instance(standing)
                                    .and_then(|it| it.run.as_ref())
                                    .is_some_and(|it| it.at < began) =>
                        {
                            young = true;
                        }
                        // Neither wanted nor given: none of this command's business.
                        Phase::Held if standing.reason == "unclaimed" => {}
                        Phase::Running
                        | Phase::Starting
                        | Phase::Waiting
                        | Phase::BackingOff
                        | Phase::Held
                        | Phase::Invalid
                        | Phase::Stopped
                        | Phase::Stopping
                        | Phase::Completed
                        | Phase::Failed => {
                            debug!(name = %name, phase = %standing.phase, reason = standing.reason, "not as wanted");
                            converged = false;
                        }
                    }
                }
                match (soon || young, converged) {
                    (true, _) => None,
                    (false, true) => Some(Ended::Converged),
                    (false, false) if *wait => None,
                    (false, false) => Some(Ended::NotConverged),
                }
            }
        }
    }

    /// Looks at everything that is ours, and at what the manifests name.
    async fn look(&self, desired: Option<&DesiredState>) -> Result<Look, Error> {
        observe(&self.edge, desired, self.mounts_not_shared.clone()).await
    }

    /// As [`Self::look`]; a runtime that neither answers nor fails is reported while it is waited for.
    async fn look_and_tell(
        &self,
        desired: Option<&DesiredState>,
        report: &watch::Sender<Option<Arc<Status>>>,
        complaint: &mut String,
    ) -> Result<Look, Error> {
        let look = self.look(desired);
        tokio::pin!(look);
        tokio::select! {
            biased;
            found = &mut look => return found,
            () = tokio::time::sleep(SILENT) => {}
        }
        // One that was silent before has said more by now than this.
        if complaint.is_empty() {
            let text = format!("the runtime has not answered for {} s", SILENT.as_secs());
            self.complain(report, complaint, &text);
        }
        look.await
    }

    /// Tells of a runtime that cannot be observed: when that begins, and when there is another word for it.
    fn complain(
        &self,
        report: &watch::Sender<Option<Arc<Status>>>,
        complaint: &mut String,
        text: &str,
    ) {
        if text == complaint {
            return;
        }
        warn!(error = text, "the runtime cannot be observed; containers keep running");
        self.say_unreachable(report, text);
        // The beginning of it is news, another word for it is not.
        if complaint.is_empty() {
            self.edge.tell_runtime(Some(text));
        }
        text.clone_into(complaint);
    }

    fn say(
        &self,
        report: &watch::Sender<Option<Arc<Status>>>,
        desired: &DesiredState,
        look: &Look,
        plan: &Plan,
        cooling: &Cooling,
    ) {
        let around = Around {
            controller: self.identity.clone(),
            runtime: RuntimeStatus { state: "ready".to_owned(), message: String::new() },
            now: look.now,
            wall_clock_of: due_times(plan, &*self.edge.host, look.now),
        };
        let mut status = status::status(desired, &look.observed, plan, &around);
        let planned: BTreeSet<&str> =
            plan.steps.iter().filter_map(|it| Some(it.name.as_ref()?.as_str())).collect();
        for item in status.items.iter_mut().filter(|it| planned.contains(it.name.as_str())) {
            // What is planned and does not work is not under way.
            let Ok(name) = item.name.parse::<Name>() else { continue };
            let Some((failed, until)) = cooling.trouble(&name) else { continue };
            let runs = item.instance.as_ref().is_some_and(|it| it.pid.is_some());
            item.phase = if runs { Phase::Running } else { Phase::BackingOff };
            failed.reason.clone_into(&mut item.reason);
            item.message.clone_from(&failed.message);
            item.up_to_date = false;
            item.next_retry_at =
                (until > look.now).then(|| self.edge.host.wall_clock_after(until.since(look.now)));
            let (wanted, hand) = (desired.workloads.get(&name), look.observed.hands.get(&name));
            item.tried = Some(trouble::asked_of(wanted, hand));
        }
        // What an image fails for is in no step's trouble.
        for item in status.items.iter_mut().filter(|it| it.reason == plan::PULL_FAILED) {
            let Ok(name) = item.name.parse::<Name>() else { continue };
            let (wanted, hand) = (desired.workloads.get(&name), look.observed.hands.get(&name));
            item.tried = Some(trouble::asked_of(wanted, hand));
        }
        report.send_if_modified(|before| {
            let changed = before.as_deref() != Some(&status);
            if changed {
                *before = Some(Arc::new(status));
            }
            changed
        });
    }

    fn say_unreachable(&self, report: &watch::Sender<Option<Arc<Status>>>, message: &str) {
        report.send_modify(|before| {
            let mut status = before.as_deref().cloned().unwrap_or_else(|| {
                let around = Around { controller: self.identity.clone(), ..Around::default() };
                status::status(
                    &DesiredState::default(),
                    &ObservedState::default(),
                    &Plan::default(),
                    &around,
                )
            });
            status.runtime =
                RuntimeStatus { state: "unreachable".to_owned(), message: message.to_owned() };
            *before = Some(Arc::new(status));
        });
    }
}

/// Whether something may run that the runtime has lost.
fn has_unknown_strays(observed: &ObservedState) -> bool {
    observed.strays_unknown.is_some() || observed.strays.values().any(|it| it.unsure)
}

/// Waits until a person has released something else than before. Asked only while something is held.
async fn released_since<R: Runtime, H: Host>(edge: &Arc<Edge<R, H>>, before: &BTreeSet<Approval>) {
    loop {
        tokio::time::sleep(APPROVALS).await;
        let asked = Arc::clone(edge);
        let read = edge.blocking(move || asked.run.approvals()).await;
        if let Ok(Ok(approvals)) = read
            && approvals.into_values().flatten().collect::<BTreeSet<_>>() != *before
        {
            return;
        }
    }
}

/// Waits until a person has asked for something, or something was done about it.
async fn asked_since<R: Runtime, H: Host>(edge: &Arc<Edge<R, H>>, before: &Stamp) {
    loop {
        tokio::time::sleep(HANDS).await;
        // Right here: it is a directory in memory, and a thread would cost more.
        if edge.run.hands_stamp() != *before {
            return;
        }
    }
}

/// Wall clock of the times that the status names.
pub fn due_times<H: Host>(plan: &Plan, host: &H, now: BootTime) -> BTreeMap<BootTime, String> {
    plan.standings
        .values()
        .filter_map(|it| it.until)
        .map(|at| (at, host.wall_clock_after(at.since(now))))
        .collect()
}

/// What there is where no engine has ever run: the images of the archives and what the manifests name on the host.
pub async fn observe_nothing<R: Runtime, H: Host>(
    edge: &Arc<Edge<R, H>>,
    desired: &DesiredState,
    mounts_not_shared: Option<String>,
) -> Result<(ObservedState, BootTime), Error> {
    let objects = Objects::default();
    assemble(edge, Some(desired), objects, mounts_not_shared).await.map(|it| (it.observed, it.now))
}

/// Looks at everything once, as a pass does.
pub async fn observe_once<R: Runtime, H: Host>(
    edge: &Arc<Edge<R, H>>,
    desired: Option<&DesiredState>,
    mounts_not_shared: Option<String>,
) -> Result<(ObservedState, BootTime), Error> {
    observe(edge, desired, mounts_not_shared).await.map(|it| (it.observed, it.now))
}

async fn observe<R: Runtime, H: Host>(
    edge: &Arc<Edge<R, H>>,
    desired: Option<&DesiredState>,
    mounts_not_shared: Option<String>,
) -> Result<Look, Error> {
    let objects = edge.runtime.observe(&wanted_images(desired)).await?;
    assemble(edge, desired, objects, mounts_not_shared).await
}

fn wanted_images(desired: Option<&DesiredState>) -> BTreeSet<String> {
    let wanted = desired.into_iter().flat_map(|it| it.workloads.values());
    wanted.filter_map(|it| Some(it.workload.as_ref()?.spec.image.full())).collect()
}

/// Puts what the runtime says together with what the host, the archives and the run directory say.
async fn assemble<R: Runtime, H: Host>(
    edge: &Arc<Edge<R, H>>,
    desired: Option<&DesiredState>,
    objects: Objects,
    mounts_not_shared: Option<String>,
) -> Result<Look, Error> {
    let images = wanted_images(desired);
    let workloads: Vec<_> = desired
        .into_iter()
        .flat_map(|it| it.workloads.values())
        .filter_map(|it| it.workload.clone())
        .collect();
    let mut ask = Ask::default();
    let stored = objects.containers.iter().filter_map(|it| it.workload.as_ref());
    for workload in stored.chain(workloads.iter().map(AsRef::as_ref)) {
        let binds = workload.spec.mounts.iter().filter(|it| it.kind == MountKind::Bind);
        ask.paths.extend(binds.filter_map(|it| Some(it.source.as_ref()?.as_path().to_owned())));
        if workload.spec.network.mode == NetworkMode::Host {
            ask.paths.extend(HOST_NETWORK_FILES.map(Into::into));
        }
    }
    // What the others are wanted for is known.
    let unnamed: BTreeMap<String, String> = (objects.stored_images.iter())
        .filter(|(name, it)| it.came.is_some() && !images.contains(*name))
        .map(|(name, it)| (name.clone(), it.digest.clone()))
        .collect();
    ask.runtime.clone_from(&objects.process);
    let running = objects.containers.iter().filter_map(|it| Some((it.task.pid()?, it.id.clone())));
    ask.pids = running.collect();
    ask.tasks = Some(objects.tasks);
    let missing: BTreeSet<String> =
        images.iter().filter(|it| !objects.images.contains_key(*it)).cloned().collect();
    let blocking = Arc::clone(edge);
    let asked = edge.blocking(move || {
        let facts = blocking.host.observe(&ask)?;
        let records = Records {
            strikes: blocking.run.strikes()?,
            removals: blocking.run.removals()?,
            approvals: blocking.run.approvals()?.into_values().flatten().collect(),
            hands: blocking.run.hands(),
            execs: blocking.run.execs(),
            image_holds: blocking.run.image_holds(),
        };
        let mut archives = blocking.archives.lock().unwrap_or_else(PoisonError::into_inner);
        let archived = archives.find(&missing);
        let kept = archives.find(&unnamed.keys().cloned().collect());
        drop(archives);
        let is_kept = |it: &Image| unnamed.get(&it.name) == Some(&it.digest);
        let kept = kept.unread.is_empty().then(|| {
            kept.images.into_values().filter(is_kept).map(|it| it.name).collect::<BTreeSet<_>>()
        });
        let logs = directories(&blocking.log_directory);
        Ok::<_, Error>((facts, records, archived, kept, logs))
    });
    let (facts, records, archived, kept, logs) = asked.await??;
    let now = edge.host.now();

    let mut observed = ObservedState {
        boot_id: facts.boot_id.clone(),
        images: objects.images.clone(),
        stored_images: objects.stored_images,
        archived_images: kept,
        image_space: facts.image_space,
        mount_sources: facts.paths.clone(),
        oom_score_adj: edge.oom_score_adj,
        mounts_not_shared,
        missing_programs: facts.means.missing_programs.clone(),
        cgroup_fault: facts.means.cgroup_fault.clone(),
        strikes: records.strikes,
        removals: records.removals,
        approvals: records.approvals,
        hands: records.hands.0,
        broken_hands: records.hands.1,
        orphans: objects.orphans.clone(),
        strays: facts.strays.clone(),
        strays_unknown: facts.strays_unknown.clone(),
        ..ObservedState::default()
    };
    observed.images.extend(archived.images);
    observed.archive_problems = archived.problems.iter().map(ToString::to_string).collect();
    observed.unread_archives = archived.unread;
    observed.has_registries = edge.registry.is_some();
    observed.pulls = edge.pulls_of(|it| images.contains(it));
    let mut leases = objects.leases;
    for hold in records.image_holds {
        // Not left behind, as long as the command lives.
        leases.retain(|it| !hold.leases.contains(it));
        observed.images_in_hand.extend(hold.names);
    }
    for container in objects.containers {
        let instance = instance(container, &facts);
        observed.instances.insert(instance.id.clone(), instance);
    }
    for (id, stray) in observed.strays.iter_mut().filter(|_| objects.incomplete) {
        // Of a container object's task the runtime was asked alone.
        stray.unsure = !observed.instances.contains_key(id);
    }
    observed.leftovers = leftovers(&observed, desired, &facts, &logs, &leases, &objects.snapshots);
    for (key, ExecOwner { instance, holder }) in records.execs {
        if holder.is_alive() {
            let exec = Exec { pid: holder.pid, since: holder.since };
            observed.execs.entry(instance).or_default().push(exec);
        } else {
            observed.leftovers.insert(Leftover::Exec(instance, key));
        }
    }
    Ok(Look { observed, now })
}

/// What is kept under the run directory.
struct Records {
    strikes: BTreeMap<Name, Strikes>,
    removals: Vec<Removal>,
    approvals: BTreeSet<Approval>,
    hands: (BTreeMap<Name, Hand>, BTreeMap<std::path::PathBuf, String>),
    execs: BTreeMap<String, ExecOwner>,
    image_holds: Vec<ImageHold>,
}

fn instance(container: Container, facts: &crate::host::Facts) -> Instance {
    let Container {
        id,
        name,
        revision,
        origin,
        workload,
        defaults,
        image,
        has_snapshot,
        run,
        end,
        ending,
        task,
    } = container;
    Instance {
        published: facts.published.get(&id).copied().unwrap_or_default(),
        view: task.pid().and_then(|pid| facts.views.get(&pid).copied()),
        workload: workload.map(Arc::new),
        id,
        name,
        revision,
        origin,
        defaults,
        image,
        has_snapshot,
        run,
        end,
        ending,
        task,
    }
}

/// What nothing owns: published paths without a process, and the rest without an instance.
fn leftovers(
    observed: &ObservedState,
    desired: Option<&DesiredState>,
    facts: &crate::host::Facts,
    logs: &[InstanceId],
    leases: &BTreeSet<String>,
    snapshots: &BTreeSet<String>,
) -> BTreeSet<Leftover> {
    let mut leftovers = BTreeSet::new();
    // What the runtime has lost may still run, and write its log.
    let ended = |id: &InstanceId| {
        observed.instances.get(id).is_none_or(|it| it.task == Task::None)
            && !observed.strays.contains_key(id)
    };
    leftovers
        .extend(facts.published.keys().filter(|id| ended(id)).cloned().map(Leftover::Published));
    // One that was cleared after its last run has no log either.
    let cleared = |it: &Instance| {
        let workload = it.workload.as_ref();
        workload.is_some_and(|it| it.spec.remove_on_exit)
            && !it.has_snapshot
            && it.end.is_some()
            && it.task == Task::None
    };
    let is_left = |id: &&InstanceId| {
        observed.instances.get(id).is_none_or(cleared) && !observed.strays.contains_key(*id)
    };
    leftovers.extend(logs.iter().filter(is_left).cloned().map(Leftover::Logs));
    leftovers.extend(leases.iter().cloned().map(Leftover::Lease));
    leftovers.extend(snapshots.iter().cloned().map(Leftover::Snapshot));
    let known = |name: &Name| {
        desired.is_some_and(|it| it.workloads.contains_key(name))
            || observed.instances.values().any(|it| &it.name == name)
    };
    leftovers
        .extend(observed.strikes.keys().filter(|it| !known(it)).cloned().map(Leftover::Strikes));
    // A release is for this absence: one that outlived it would let the next one pass.
    let overtaken = |it: &&Approval| {
        desired.is_some_and(|desired| desired.workloads.contains_key(&it.name))
            || !observed.instances.contains_key(&it.instance)
    };
    leftovers.extend(observed.approvals.iter().filter(overtaken).cloned().map(Leftover::Approval));
    leftovers
}

/// The directories below a path that are called as instances are; a missing path has none. What somebody put
/// beside them is none of our business.
fn directories(path: &std::path::Path) -> Vec<InstanceId> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let id = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let is_directory = entry.file_type().is_ok_and(|it| it.is_dir());
        (is_directory && InstanceId::is_one(&name)).then(|| name.parse().ok())?
    };
    entries.flatten().filter_map(id).collect()
}

/// What of a part is left to a later plan: the workloads of which a step waits, whole, and what requires any of that.
/// Nobody else waits: a donor starts again whatever those who join it are busy with, but for the moment in which they do.
fn held(
    plan: &Plan,
    part: &[StepId],
    joined: &BTreeSet<InstanceId>,
    waits: impl Fn(&Step) -> bool,
) -> BTreeSet<StepId> {
    let of = |id: &StepId| &plan.steps[id.0];
    let mut held: BTreeSet<StepId> = part.iter().copied().filter(|id| waits(of(id))).collect();
    if !held.is_empty() {
        let is_joined =
            |id: &StepId| of(id).action.instance().is_some_and(|it| joined.contains(it));
        held.extend(part.iter().copied().filter(is_joined));
    }
    let mut names: BTreeSet<&Name> = BTreeSet::new();
    loop {
        let before = held.len();
        names.extend(held.iter().filter_map(|id| workload(of(id))));
        held.extend(
            part.iter()
                .copied()
                .filter(|id| {
                    let step = of(id);
                    workload(step).is_some_and(|it| names.contains(it))
                        || step.requires.iter().any(|it| held.contains(it))
                })
                .collect::<Vec<_>>(),
        );
        if held.len() == before {
            return held;
        }
    }
}

/// The connected parts of a plan: steps that share a workload or an edge belong together, in the plan's order.
fn parts(plan: &Plan) -> Vec<Vec<StepId>> {
    /// Of union-find over steps.
    fn find(root: &mut [usize], mut at: usize) -> usize {
        while root[at] != at {
            root[at] = root[root[at]];
            at = root[at];
        }
        at
    }
    let mut root: Vec<usize> = (0..plan.steps.len()).collect();
    let mut by_name: BTreeMap<&Name, usize> = BTreeMap::new();
    for (at, step) in plan.steps.iter().enumerate() {
        let of_same_name = step.name.as_ref().and_then(|it| by_name.insert(it, at));
        for other in step.requires.iter().map(|it| it.0).chain(of_same_name) {
            let (a, b) = (find(&mut root, at), find(&mut root, other));
            root[a.max(b)] = a.min(b);
        }
    }
    let mut parts: BTreeMap<usize, Vec<StepId>> = BTreeMap::new();
    for at in 0..plan.steps.len() {
        parts.entry(find(&mut root, at)).or_default().push(StepId(at));
    }
    parts.into_values().collect()
}
