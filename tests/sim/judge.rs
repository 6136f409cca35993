//! The safety rules, checked at each effect from what really happened: what the files said, what ran, since when.
//!
//! Knows nothing of plans. Where an effect may come of a look that was made a moment ago, everything counts that was
//! true since the work began of which it is a part.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use evenkeel::backoff::{Delays, RESET_AFTER, Strikes};
use evenkeel::host::memory::MemoryHost;
use evenkeel::host::{Ask, Host as _};
use evenkeel::observed::{
    EXIT_UNKNOWN, EXITED, End, FileKind, Hand, HandKind, ObservedState, STOPPED, Task, View,
};
use evenkeel::plan::{Phase, Plan};
use evenkeel::runtime::memory::MemoryRuntime;
use evenkeel::runtime::{Container, Objects, Runtime as _, Update, verb};
use evenkeel::workload::{
    DEFAULT_STOP_TIMEOUT, InstanceId, IpcMode, MountKind, Name, RestartPolicy, Signal, StopTimeout,
    WantedState, Workload,
};
use tokio::time::Instant;

use crate::script::Doc;
use crate::tree::{Said, Truth};

/// As the configuration has it.
const REMOVE_AFTER: Duration = Duration::from_secs(2);
const LATEST: Duration = Duration::from_mins(1);
const TRIAL: Duration = Duration::from_secs(10);
const PRUNE_WINDOW: Duration = Duration::from_mins(10);

/// So many calls of one verb within that time are more than work needs that gets on: in the ordinary 100,000 steps
/// nothing is looked at more than 170 times in a minute.
const BUSY: (Duration, usize) = (Duration::from_mins(1), 400);

/// Times of work that are remembered; longer than any work goes on without a pause.
const SPANS: usize = 500;

/// One scan, as the rules understand it.
#[derive(Debug, Clone)]
struct Seen {
    at: Instant,
    truth: Truth,
    /// Since when each name that was ever there is absent.
    absent: BTreeMap<String, Instant>,
    /// Since when nothing was in the way, and nothing changed.
    clear: Instant,
    quiet: Instant,
}

/// A run of a program, from its creation on.
#[derive(Debug, Clone)]
struct Run {
    name: String,
    created: Instant,
    started: Option<Instant>,
    view: Option<View>,
    ended: Option<Instant>,
    code: Option<u32>,
    /// The controller sent a signal before it ended, or said that it had.
    stopped: bool,
    /// When the first signal was sent.
    killed: Option<Instant>,
    /// When the controller wrote down that it ended.
    noticed: Option<Instant>,
    /// When it was first asked to end, and whether that could not be sent.
    asked: Option<Instant>,
    is_deaf: bool,
    /// It is among the failures that `maxRetries` counts.
    counted: bool,
}

/// Failures in a row.
#[derive(Debug, Clone)]
struct Failures {
    id: InstanceId,
    count: u32,
    /// When the last one happened.
    at: Instant,
}

/// What a person asked for of a workload.
#[derive(Debug, Clone)]
struct Wish {
    hand: Hand,
    asked: Instant,
    /// When another one took its place, or it was taken back.
    until: Option<Instant>,
    /// The files said something that may have ended it.
    is_moot: bool,
}

/// A person's process beside a program.
#[derive(Debug, Clone)]
struct Work {
    id: InstanceId,
    began: Instant,
    ended: Option<Instant>,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// By workload, the newest at the end.
    wishes: BTreeMap<String, Vec<Wish>>,
    seen: Vec<Seen>,
    believed_device: Option<u64>,
    good_since: Option<Instant>,
    runs: BTreeMap<InstanceId, Vec<Run>>,
    /// Of those that have lost their container object, as long as that was believed to be there.
    lost: Vec<Run>,
    failures: BTreeMap<String, Failures>,
    /// What each workload's document said last, and since when it says something else than before.
    edits: BTreeMap<String, (Doc, Option<Instant>)>,
    /// Runs that failed, in all, since each instance was made.
    failed: BTreeMap<InstanceId, u32>,
    /// The last run of each before this boot, if it was not ended by us.
    before_boot: BTreeMap<InstanceId, Run>,
    /// What each bind source was, since when.
    sources: BTreeMap<PathBuf, Vec<(Instant, Option<FileKind>)>>,
    execs: BTreeMap<String, Work>,
    /// How long an instance had to end, until its manifest was written anew then.
    timeouts: Vec<(InstanceId, Instant, StopTimeout)>,
    /// Somebody ends everything, in order until then.
    shutdown: Option<Instant>,
    removals: Vec<(String, Instant)>,
    sizes: Vec<(usize, Instant)>,
    approved: BTreeSet<InstanceId>,
    foreign: BTreeSet<InstanceId>,
    hung: BTreeSet<InstanceId>,
    asked_strays: BTreeSet<InstanceId>,
    pids: BTreeSet<u32>,
    /// Digests that each image ever had: what was prepared from one that is gone is still prepared.
    digests: BTreeMap<String, BTreeSet<String>>,
    leases: BTreeMap<String, u64>,
    controller: u64,
    /// Calls under way: those that concern everybody, and those that concern one workload.
    active: BTreeMap<Option<String>, usize>,
    busy_since: BTreeMap<Option<String>, Instant>,
    /// Times of work that is over, the last at the end.
    spans: VecDeque<(Instant, Instant)>,
    /// When each verb was called, for as long as that counts.
    recent: BTreeMap<&'static str, VecDeque<Instant>>,
    pub(crate) verdict: Option<String>,
    /// How often each rule was looked at.
    pub(crate) checks: BTreeMap<&'static str, u64>,
}

/// What is there.
pub(crate) fn objects(runtime: &MemoryRuntime) -> Objects {
    now(runtime.observe(&BTreeSet::new())).expect("the model itself never fails")
}

/// The result of what is ready at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(it) => it,
        std::task::Poll::Pending => panic!("a model needs no time"),
    }
}

fn find<'a>(objects: &'a Objects, id: &str) -> Option<&'a Container> {
    objects.containers.iter().find(|it| it.id.as_str() == id)
}

fn donor_of(container: &Container) -> Option<&str> {
    match container.workload.as_ref()?.spec.ipc_mode.as_ref()? {
        IpcMode::Container(name) => Some(name.as_str()),
        IpcMode::None | IpcMode::Private | IpcMode::Shareable | IpcMode::Host => None,
    }
}

/// A donor and whom it joins itself: what joins a joiner gets what the first of the chain has.
fn chain(donor: &str, objects: &Objects) -> Vec<String> {
    let mut chain = vec![donor.to_owned()];
    while let Some(next) = objects
        .containers
        .iter()
        .filter(|it| chain.last().is_some_and(|last| it.name.as_str() == last))
        .find_map(donor_of)
        .filter(|next| !chain.iter().any(|it| it == next))
    {
        chain.push(next.to_owned());
    }
    chain
}

/// Of several instances of a workload the one that lives, or ran last.
fn stands_for_its_workload(container: &Container, objects: &Objects) -> bool {
    let last = |it: &Container| (it.task.pid().is_some(), it.run.as_ref().map(|run| run.order));
    let mut others = objects.containers.iter().filter(|it| it.name == container.name);
    others.all(|it| last(it) <= last(container))
}

/// Whether its last run began after that was asked for.
fn has_begun(container: &Container, hand: &Hand) -> bool {
    container.run.as_ref().is_some_and(|it| it.boot == hand.boot_id && it.at >= hand.at)
}

fn is_live(task: &Task) -> bool {
    matches!(task, Task::Created { .. } | Task::Running { .. } | Task::Paused { .. })
}

impl Judge {
    fn blame(&mut self, rule: &'static str, why: &str) {
        if self.verdict.is_none() {
            self.verdict = Some(format!("{rule}: {why}"));
        }
    }

    fn check(&mut self, rule: &'static str, holds: bool, why: impl FnOnce() -> String) {
        *self.checks.entry(rule).or_default() += 1;
        if !holds {
            self.blame(rule, &why());
        }
    }

    // What happens around.

    /// A scan was published.
    pub(crate) fn scanned(&mut self, truth: Truth, changed: bool, at: Instant) {
        let last = self.seen.last();
        let mut absent = last.map(|it| it.absent.clone()).unwrap_or_default();
        absent.retain(|name, _| truth.said(name) == Said::Nothing);
        if let Some(last) = last {
            for name in last.truth.names().filter(|it| truth.said(it) == Said::Nothing) {
                absent.entry(name.clone()).or_insert(at);
            }
        }
        let mut blocked = truth.blocked || truth.documents == 0;
        // A root on another device is on trial.
        if let Some(device) = truth.device {
            if self.believed_device.is_none_or(|it| it == device) {
                self.believed_device = Some(device);
                self.good_since = None;
            } else {
                let good = truth.valid > 0 && !truth.blocked;
                self.good_since = if good { self.good_since.or(Some(at)) } else { None };
                if self.good_since.is_some_and(|it| at - it >= TRIAL) {
                    self.believed_device = Some(device);
                } else {
                    blocked = true;
                }
            }
        }
        let clear = match last {
            Some(last) if !blocked => last.clear,
            _ => at,
        };
        let quiet = match last {
            Some(last) if !changed => last.quiet,
            _ => at,
        };
        let ran = self.runs.values().flatten().map(|it| &it.name);
        let size = truth.names().chain(ran).collect::<BTreeSet<_>>().len();
        self.sizes.push((size, at));
        for name in truth.names() {
            let Said::Valid(doc) = truth.said(name) else { continue };
            match self.edits.get_mut(name) {
                Some((last, edited)) if last != doc => {
                    *edited = Some(at);
                    last.clone_from(doc);
                }
                Some(_) => {}
                None => drop(self.edits.insert(name.clone(), (doc.clone(), None))),
            }
        }
        let mut truth = truth;
        truth.blocked = blocked;
        self.seen.push(Seen { at, truth, absent, clear, quiet });
        self.end_wishes(at);
        if self.seen.len() > 200 {
            self.seen.drain(..100);
        }
    }

    /// What the files said last.
    pub(crate) fn files(&self) -> Truth {
        self.seen.last().map(|it| it.truth.clone()).unwrap_or_default()
    }

    /// The controller is another one.
    pub(crate) fn new_controller(&mut self) {
        self.controller += 1;
        self.believed_device = None;
        self.good_since = None;
        self.active.clear();
        self.spans.clear();
        self.busy_since.clear();
    }

    pub(crate) fn rebooted(&mut self) {
        self.wishes.clear();
        for (id, mut runs) in std::mem::take(&mut self.runs) {
            runs.retain(|it| it.started.is_some());
            match runs.pop() {
                Some(mut last) if !last.stopped => {
                    // What nobody had seen end may have ended in any way.
                    last.code = last.code.filter(|_| last.noticed.is_some());
                    self.before_boot.insert(id, last);
                }
                Some(_) => drop(self.before_boot.remove(&id)),
                None => {}
            }
        }
        self.execs.clear();
        self.lost.clear();
        self.failures.clear();
        self.removals.clear();
        self.sizes.clear();
        self.approved.clear();
        self.asked_strays.clear();
        self.hung.clear();
    }

    pub(crate) fn lost(&mut self, id: &InstanceId, name: &str) {
        let at = Instant::now();
        for mut run in self.runs.remove(id).into_iter().flatten() {
            run.ended.get_or_insert(at);
            self.lost.push(run);
        }
        self.failures.remove(name);
        self.failed.remove(id);
        self.before_boot.remove(id);
        // With its object goes what would show whether it was done.
        for wish in self.wishes.get_mut(name).into_iter().flatten() {
            wish.is_moot = true;
        }
    }

    /// Nobody sees the end of a run that is lost.
    pub(crate) fn ended(&mut self, id: &InstanceId) {
        if let Some(run) = self.runs.get_mut(id).and_then(|it| it.last_mut()) {
            run.ended.get_or_insert(Instant::now());
        }
    }

    pub(crate) fn approve(&mut self, ids: impl Iterator<Item = InstanceId>) {
        self.approved.extend(ids);
    }

    pub(crate) fn add_foreign(&mut self, id: InstanceId) {
        self.foreign.insert(id);
    }

    pub(crate) fn hang(&mut self, id: &InstanceId, hung: bool) {
        if hung {
            self.hung.insert(id.clone());
        } else {
            self.hung.remove(id);
        }
    }

    /// A bind source is something else from now on.
    pub(crate) fn mounted(&mut self, path: &Path, kind: Option<FileKind>) {
        self.sources.entry(path.to_owned()).or_default().push((Instant::now(), kind));
    }

    pub(crate) fn source(&self, path: &Path) -> Option<FileKind> {
        self.sources.get(path)?.last()?.1
    }

    /// Whether all that it binds was there at some time of the work that an effect now is a part of.
    fn has_sources(&self, workload: &Workload, at: Instant) -> bool {
        let since = self.since(at);
        workload.spec.mounts.iter().filter(|it| it.kind == MountKind::Bind).all(|mount| {
            let Some(path) = &mount.source else { return true };
            let all = self.sources.get(path.as_path()).map(Vec::as_slice).unwrap_or_default();
            let first = all.iter().rposition(|it| it.0 <= since).unwrap_or(0);
            let is_there = |kind: Option<FileKind>| match kind {
                Some(FileKind::Silent) => false,
                Some(FileKind::Directory | FileKind::Other) => true,
                None => mount.create,
            };
            // One that was never there has no history.
            (all.is_empty() && mount.create)
                || all.get(first..).unwrap_or_default().iter().any(|it| is_there(it.1))
                || (all.first().is_some_and(|it| it.0 > since) && mount.create)
        })
    }

    pub(crate) fn works(&mut self, key: &str, id: &InstanceId) {
        let work = Work { id: id.clone(), began: Instant::now(), ended: None };
        self.execs.insert(key.to_owned(), work);
    }

    pub(crate) fn works_no_more(&mut self, key: &str) {
        if let Some(work) = self.execs.get_mut(key) {
            work.ended.get_or_insert(Instant::now());
        }
    }

    pub(crate) fn shutting_down(&mut self, until: Option<Instant>) {
        self.shutdown = until;
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.shutdown.is_some()
    }

    /// A program ended by itself.
    pub(crate) fn exited(&mut self, id: &InstanceId, code: u32, at: Instant) {
        if let Some(run) = self.runs.get_mut(id).and_then(|it| it.last_mut())
            && run.ended.is_none()
        {
            run.ended = Some(at);
            run.code = Some(code);
        }
    }

    /// All that were ever used.
    pub(crate) fn pids(&self) -> BTreeSet<u32> {
        self.pids.clone()
    }

    /// Whether somebody else's container has an ID of this workload.
    pub(crate) fn is_in_the_way(&self, name: &str) -> bool {
        let stem = name.parse().map(|name| InstanceId::stem_of(&name));
        self.foreign.iter().any(|it| stem.as_ref().is_ok_and(|stem| it.stem() == stem))
    }

    // What a person asks for.

    pub(crate) fn asked(&mut self, name: &str, hand: &Hand, objects: &Objects, at: Instant) {
        self.withdrawn(name, at);
        let mut of = objects.containers.iter().filter(|it| it.name.as_str() == name);
        // Of what is there already nothing has to come.
        let is_moot = match hand.kind {
            HandKind::Start | HandKind::Retry => of.any(|it| is_live(&it.task)),
            HandKind::Stop | HandKind::Restart | HandKind::Down => false,
        };
        let wish = Wish { hand: hand.clone(), asked: at, until: None, is_moot };
        self.wishes.entry(name.to_owned()).or_default().push(wish);
        self.end_wishes(at);
    }

    pub(crate) fn withdrawn(&mut self, name: &str, at: Instant) {
        if let Some(last) = self.wishes.get_mut(name).and_then(|it| it.last_mut()) {
            last.until.get_or_insert(at);
        }
    }

    /// Whether a person keeps it stopped.
    pub(crate) fn is_stopped(&self, name: &str) -> bool {
        self.wish(name).is_some_and(|it| it.hand.kind == HandKind::Stop)
    }

    /// The one that counts.
    fn wish(&self, name: &str) -> Option<&Wish> {
        self.wishes.get(name)?.last().filter(|it| it.until.is_none())
    }

    /// Those that counted at any time since then.
    fn wishes(&self, name: &str, since: Instant) -> impl Iterator<Item = &Wish> {
        let all = self.wishes.get(name).into_iter().flatten();
        all.filter(move |it| it.until.is_none_or(|until| until >= since))
    }

    /// A run that a person asked for and that this one is not, as it began before.
    fn asks_for_another(&self, container: &Container, kinds: &[HandKind], at: Instant) -> bool {
        self.wishes(container.name.as_str(), self.since(at))
            .any(|it| kinds.contains(&it.hand.kind) && !has_begun(container, &it.hand))
    }

    /// The files may end a wish: a run of what is not to run, a stop of what nobody has any more.
    fn end_wishes(&mut self, at: Instant) {
        let window = self.window(at);
        let mut wishes = std::mem::take(&mut self.wishes);
        for (name, all) in &mut wishes {
            for wish in all.iter_mut().filter(|it| it.until.is_none()) {
                wish.is_moot |=
                    window.iter().any(|seen| match (wish.hand.kind, seen.truth.said(name)) {
                        (HandKind::Stop, Said::Nothing) => self.is_absent(seen, name, at),
                        (HandKind::Stop, _) => false,
                        (HandKind::Down, said) => said != Said::Nothing,
                        (
                            HandKind::Start | HandKind::Restart | HandKind::Retry,
                            Said::Valid(doc),
                        ) => ["stopped", "absent"].contains(&doc.field("state")),
                        (HandKind::Start | HandKind::Restart | HandKind::Retry, _) => true,
                    });
            }
        }
        self.wishes = wishes;
    }

    /// What is stopped by hand is started by nobody else.
    fn not_stopped(&mut self, container: &Container, at: Instant) {
        let since = self.since(at);
        let stopped = self
            .wish(container.name.as_str())
            .is_some_and(|it| it.hand.kind == HandKind::Stop && !it.is_moot && it.asked < since);
        self.check("stopped-stays-stopped", !stopped, || {
            format!("{} starts, and a person has stopped it", container.id)
        });
    }

    /// At the end all that was asked for is done, or waits for something that is said.
    pub(crate) fn at_the_end(&mut self, objects: &Objects, observed: &ObservedState, plan: &Plan) {
        let names: Vec<String> = self.wishes.keys().cloned().collect();
        for name in names {
            let Some(wish) = self.wish(&name).filter(|it| !it.is_moot).cloned() else { continue };
            let mut of = objects.containers.iter().filter(|it| it.name.as_str() == name);
            let file = observed.hands.iter().find(|it| it.0.as_str() == name);
            let stands = file.is_some_and(|it| *it.1 == wish.hand);
            let standing = plan.standings.iter().find(|it| it.0.as_str() == name).map(|it| it.1);
            let waits = stands && standing.is_some_and(|it| !it.reason.is_empty());
            let began = |it: &Container| has_begun(it, &wish.hand);
            let runs = |it: &Container| it.task.pid().is_some();
            match wish.hand.kind {
                HandKind::Stop => {
                    let done = stands && !of.any(runs);
                    self.check("stopped-stays-stopped", done, || {
                        format!("{name} runs, or its stop is forgotten")
                    });
                }
                HandKind::Down => {
                    let done = waits || of.next().is_none();
                    self.check("wish-not-lost", done, || {
                        format!("{name} was taken down, and is there")
                    });
                }
                HandKind::Restart => {
                    let failed = observed.strikes.iter().any(|(it, strikes)| {
                        it.as_str() == name
                            && strikes.failure.is_some()
                            && strikes.at >= wish.hand.at
                    });
                    let done = waits || failed || of.any(began);
                    self.check("wish-not-lost", done, || format!("{name} was never restarted"));
                }
                HandKind::Start | HandKind::Retry => {
                    let failed = standing.is_some_and(|it| it.phase == Phase::Failed);
                    let done = waits || !failed || of.any(began);
                    self.check("wish-not-lost", done, || format!("{name} was never tried again"));
                }
            }
        }
    }

    // Work that is under way.

    pub(crate) fn begin(&mut self, verb: &str, subject: &str, at: Instant) -> Option<String> {
        let of = (verb == verb::WAIT).then(|| subject.to_owned());
        let active = self.active.entry(of.clone()).or_default();
        if *active == 0 {
            self.busy_since.insert(of.clone(), at);
        }
        *active += 1;
        of
    }

    /// Counts a call; whether it is one too many, which nobody answers any more.
    pub(crate) fn is_one_too_many(&mut self, verb: &'static str, at: Instant) -> bool {
        let recent = self.recent.entry(verb).or_default();
        recent.retain(|it| at.duration_since(*it) < BUSY.0);
        recent.push_back(at);
        let count = recent.len();
        self.check("no-busy-loop", count <= BUSY.1, || {
            format!("{count} times `{verb}` within {} s", BUSY.0.as_secs())
        });
        count > BUSY.1
    }

    pub(crate) fn end(&mut self, of: Option<&String>, at: Instant) {
        let of = of.cloned();
        if let Some(active) = self.active.get_mut(&of) {
            *active = active.saturating_sub(1);
            if *active == 0 {
                self.spans.extend(self.busy_since.remove(&of).map(|from| (from, at)));
                if self.spans.len() > SPANS {
                    self.spans.pop_front();
                }
            }
        }
    }

    /// Who cannot wait asks again after a second, and the work goes on meanwhile without a call.
    pub(crate) fn waits_on(&mut self, at: Instant) {
        self.spans.push_back((at, at + Duration::from_secs(1)));
    }

    /// Since when the work goes on that an effect now may be a part of.
    fn since(&self, at: Instant) -> Instant {
        // What waits for a process to end may hold up what depends on it.
        let mut since = at;
        let open = self.busy_since.values().map(|from| (*from, at));
        let spans: Vec<(Instant, Instant)> = self.spans.iter().copied().chain(open).collect();
        // Spans that touch are one.
        loop {
            let earlier = spans
                .iter()
                .filter(|(from, to)| *to >= since && *from < since)
                .map(|it| it.0)
                .min();
            match earlier {
                Some(earlier) => since = earlier,
                None => return since,
            }
        }
    }

    /// All that the files said since the work began.
    fn window(&self, at: Instant) -> Vec<Seen> {
        let since = self.since(at);
        let first = self.seen.iter().rposition(|it| it.at <= since).unwrap_or(0);
        self.seen.get(first..).unwrap_or_default().to_vec()
    }

    // Effects.

    pub(crate) fn before(
        &mut self,
        verb: &'static str,
        subject: &str,
        runtime: &MemoryRuntime,
        host: &MemoryHost,
    ) {
        let at = Instant::now();
        let foreign = self.foreign.iter().any(|it| it.as_str() == subject);
        let refused = [verb::PREPARE_SNAPSHOT, verb::CREATE].contains(&verb);
        self.check("foreign-untouched", !foreign || refused, || format!("{verb} {subject}"));
        match verb {
            verb::KILL => self.before_kill(subject, runtime, host, at),
            verb::REMOVE => self.before_remove(subject, runtime, at),
            verb::CREATE_TASK => self.before_create_task(subject, runtime, at),
            verb::START_TASK => self.before_start(subject, runtime, host, at),
            _ => {}
        }
    }

    /// Nothing that runs is touched without a reason that the files give, and not before what replaces it is there.
    fn before_kill(
        &mut self,
        subject: &str,
        runtime: &MemoryRuntime,
        host: &MemoryHost,
        at: Instant,
    ) {
        let objects = objects(runtime);
        let Some(container) = find(&objects, subject) else { return };
        if let Some(run) = self.runs.get_mut(&container.id).and_then(|it| it.last_mut())
            && run.ended.is_none()
        {
            run.stopped = true;
            run.killed.get_or_insert(at);
        }
        if !matches!(container.task, Task::Running { .. } | Task::Paused { .. }) {
            return;
        }
        if let Some(until) = self.shutdown {
            // Once the time is up each is killed, whoever joins it.
            if at < until {
                self.joiners_first(container, &objects);
            }
            return;
        }
        let name = container.name.as_str().to_owned();
        let window = self.window(at);
        let mut unprepared = None;
        let own = container.workload.as_ref();
        let can_start = own.is_none_or(|it| self.has_sources(it, at));
        let mut reason = can_start && self.follows(container, &objects, host, at);
        self.not_worked_in(container, at);
        reason |= self.wishes(&name, self.since(at)).any(|it| match it.hand.kind {
            HandKind::Stop | HandKind::Down => true,
            HandKind::Start | HandKind::Restart | HandKind::Retry => false,
        });
        // Once: the run that came of it is left alone.
        reason |= can_start && self.asks_for_another(container, &[HandKind::Restart], at);
        let is_applied_as_stopped =
            container.workload.as_ref().is_some_and(|it| it.spec.state == WantedState::Stopped);
        for seen in &window {
            match seen.truth.said(&name) {
                Said::Valid(doc) if doc.field("state") == "stopped" => reason = true,
                Said::Valid(doc) if doc.field("state") == "absent" => reason = true,
                Said::Valid(doc) => {
                    let wanted = Self::wanted_id(doc, runtime);
                    if wanted.as_ref() == Some(&container.id) {
                        continue;
                    }
                    let is_ready = |id: &InstanceId| {
                        *id != container.id
                            && find(&objects, id.as_str()).is_some_and(|it| it.has_snapshot)
                    };
                    let has_sources = doc.workload().is_none_or(|it| self.has_sources(&it, at));
                    if has_sources && self.ever_wanted(doc).iter().any(is_ready) {
                        reason = true;
                    } else {
                        unprepared = wanted;
                    }
                }
                // What cannot be believed goes on as last applied, and that may be a stop.
                Said::Invalid => reason |= is_applied_as_stopped,
                Said::Nothing => {
                    reason |= is_applied_as_stopped || self.may_go(seen, container, at);
                }
            }
        }
        match unprepared {
            Some(wanted) if !reason => {
                self.check("prepared-before-stop", false, || {
                    format!("{subject} is ended, and {wanted} is not there")
                });
            }
            _ => {
                self.check("untouched-without-reason", reason, || {
                    format!("{subject} is ended, and nothing that the files say asks for it")
                });
            }
        }
    }

    /// At the end of the machine a donor goes after those who join it.
    fn joiners_first(&mut self, donor: &Container, objects: &Objects) {
        let joiner = objects.containers.iter().find(|it| {
            donor_of(it) == Some(donor.name.as_str())
                && it.name != donor.name
                && !self.hung.contains(&it.id)
                && matches!(it.task, Task::Running { .. } | Task::Paused { .. })
        });
        self.check("joiners-before-donors", joiner.is_none(), || {
            format!("{} is ended, and {} joins it", donor.id, joiner.expect("there is one").id)
        });
    }

    /// Nothing that files say ends what a person works in.
    fn not_worked_in(&mut self, container: &Container, at: Instant) {
        let since = self.since(at);
        let by_hand = self.wishes(container.name.as_str(), since).any(|it| match it.hand.kind {
            HandKind::Stop | HandKind::Down => true,
            HandKind::Start | HandKind::Restart | HandKind::Retry => {
                !has_begun(container, &it.hand)
            }
        });
        // Who begins in the middle of a stop comes too late.
        let asked = self.runs.get(&container.id).and_then(|it| it.last()?.asked).unwrap_or(at);
        let works = self.execs.values().any(|it| {
            it.id == container.id && it.ended.is_none() && it.began < since && it.began < asked
        });
        self.check("worked-in-untouched", by_hand || !works, || {
            format!("{} is ended while a person works in it", container.id)
        });
    }

    /// A signal is sent, and was not refused.
    pub(crate) fn signalled(
        &mut self,
        id: &InstanceId,
        signal: Signal,
        refused: bool,
        runtime: &MemoryRuntime,
    ) {
        let at = Instant::now();
        let objects = objects(runtime);
        let Some(container) = find(&objects, id.as_str()).cloned() else { return };
        let Some(run) = self.runs.get(id).and_then(|it| it.last()).cloned() else { return };
        if signal == Signal::KILL {
            if matches!(container.task, Task::Running { .. } | Task::Paused { .. })
                && run.ended.is_none()
                && !self.is_shutting_down()
            {
                self.in_its_time(&container, &run, at);
            }
        } else if let Some(run) = self.runs.get_mut(id).and_then(|it| it.last_mut()) {
            run.asked.get_or_insert(at);
            run.is_deaf |= refused;
        }
    }

    /// A signal was refused, or what has to come before it to a paused task.
    pub(crate) fn not_signalled(&mut self, id: &str) {
        let of = self.runs.iter_mut().find(|it| it.0.as_str() == id);
        if let Some(run) = of.and_then(|it| it.1.last_mut()) {
            run.is_deaf = true;
        }
    }

    /// What the runtime has lost is asked to end.
    pub(crate) fn stray_signalled(&mut self, id: &InstanceId) {
        self.asked_strays.insert(id.clone());
    }

    pub(crate) fn asked_strays(&mut self) -> BTreeSet<InstanceId> {
        std::mem::take(&mut self.asked_strays)
    }

    pub(crate) fn is_asked_to_end(&self, id: &InstanceId) -> bool {
        let last = self.runs.get(id).and_then(|it| it.last());
        last.is_some_and(|it| it.asked.is_some() && it.ended.is_none())
    }

    /// What is asked to end has its time for that.
    fn in_its_time(&mut self, container: &Container, run: &Run, at: Instant) {
        let own = container.workload.as_ref().and_then(|it| it.spec.stop.timeout);
        let asked = run.asked.unwrap_or(at);
        let since = self.since(asked);
        let first = self.seen.iter().rposition(|it| it.at < since).unwrap_or(0);
        let said = self.seen.iter().skip(first).filter_map(|seen| {
            let Said::Valid(doc) = seen.truth.said(container.name.as_str()) else { return None };
            doc.workload()?.spec.stop.timeout
        });
        // Its stop was planned with what it had then, which the same plan may write anew.
        let before = self.timeouts.iter().filter(|it| it.0 == container.id && it.1 >= since);
        let timeout = said
            .chain(before.map(|it| it.2))
            .fold(own.unwrap_or(DEFAULT_STOP_TIMEOUT), StopTimeout::sooner);
        let had = at - asked;
        let holds = match timeout {
            StopTimeout::After(span) => run.is_deaf || had >= span.0,
            StopTimeout::Never => false,
        };
        self.check("time-to-end", holds, || {
            format!("{} is killed {} ms after it was asked to end", container.id, had.as_millis())
        });
    }

    /// Whether a joiner does not share what its donor has.
    fn follows(
        &self,
        container: &Container,
        objects: &Objects,
        host: &MemoryHost,
        at: Instant,
    ) -> bool {
        let Some(donor) = donor_of(container) else { return false };
        let chain = chain(donor, objects);
        let view = |pid| host.view(pid).ok().flatten().map(key);
        let mine = container.task.pid().and_then(view);
        let since = self.since(at);
        // A donor that has just ended was there when the work began.
        let mut theirs = self.runs.values().flatten().chain(&self.lost).filter(|it| {
            chain.contains(&it.name)
                && it.started.is_some()
                && it.ended.is_none_or(|ended| ended >= since)
        });
        theirs.any(|it| {
            let other = it.view.map(key);
            it.started.is_some_and(|it| it >= since)
                || (mine.is_some() && other.is_some() && mine != other)
        })
    }

    fn wanted_id(doc: &crate::script::Doc, runtime: &MemoryRuntime) -> Option<InstanceId> {
        let workload = doc.workload()?;
        let name = workload.spec.image.full();
        let asked = BTreeSet::from([name.clone()]);
        let images = now(runtime.observe(&asked)).ok()?.images;
        let revision = workload.revision(&images.get(&name)?.digest);
        Some(InstanceId::new(&workload.name, &revision))
    }

    /// What it may mean by any image of that name.
    fn ever_wanted(&self, doc: &crate::script::Doc) -> Vec<InstanceId> {
        let Some(workload) = doc.workload() else { return Vec::new() };
        let digests = self.digests.get(&workload.spec.image.full()).into_iter().flatten();
        digests.map(|it| InstanceId::new(&workload.name, &workload.revision(it))).collect()
    }

    pub(crate) fn image(&mut self, image: &evenkeel::observed::Image) {
        self.digests.entry(image.name.clone()).or_default().insert(image.digest.clone());
    }

    /// With what runs goes what was prepared to take its place.
    fn is_approved(&self, id: &InstanceId) -> bool {
        self.approved.iter().any(|it| it.stem() == id.stem())
    }

    /// Whether an absence is believable.
    fn may_go(&self, seen: &Seen, container: &Container, at: Instant) -> bool {
        if self.is_approved(&container.id) {
            return true;
        }
        let held =
            seen.truth.partial.iter().any(|it| container.origin.file.as_os_str() == it.as_str());
        !held && self.is_absent(seen, container.name.as_str(), at)
    }

    /// Nothing hides it, and for long enough.
    fn is_absent(&self, seen: &Seen, name: &str, at: Instant) -> bool {
        let Some(absent) = seen.absent.get(name).copied().or_else(|| {
            // It was never there: since the first scan.
            self.seen.first().map(|it| it.at)
        }) else {
            return false;
        };
        let quiet = at.duration_since(absent.max(seen.quiet)) >= REMOVE_AFTER
            || at.duration_since(absent) >= LATEST;
        !seen.truth.blocked && quiet && at.duration_since(seen.clear) >= REMOVE_AFTER
    }

    fn before_remove(&mut self, subject: &str, runtime: &MemoryRuntime, at: Instant) {
        let objects = objects(runtime);
        let Some(container) = find(&objects, subject) else { return };
        let name = container.name.clone();
        self.failed.remove(&container.id);
        self.before_boot.remove(&container.id);
        self.check("shutdown-keeps-all", !self.is_shutting_down(), || {
            format!("{subject} is removed while everything is ended")
        });
        let others: Vec<&Container> = objects
            .containers
            .iter()
            .filter(|it| it.name == name && it.id != container.id)
            .collect();
        let window = self.window(at);
        // What is made anew under this ID begins anew, if something else ran meanwhile.
        if self.failures.get(name.as_str()).is_some_and(|it| it.id == container.id) {
            self.failures.remove(name.as_str());
        }
        // Of several that were only prepared one is enough.
        if others.iter().any(|it| it.run.is_some() || container.run.is_none()) {
            self.runs.remove(&container.id);
            return;
        }
        let mut superseded = false;
        let mut wanted_gone = false;
        let mut absent = false;
        for seen in &window {
            match seen.truth.said(name.as_str()) {
                Said::Valid(doc) if doc.field("state") == "absent" => wanted_gone = true,
                Said::Valid(doc) => {
                    superseded |= container.run.is_none()
                        && Self::wanted_id(doc, runtime).is_none_or(|it| it != container.id);
                }
                Said::Invalid => {}
                Said::Nothing => absent |= self.may_go(seen, container, at),
            }
        }
        // Made anew from its image, which its donors' rules are not about: it is there again in a moment.
        let renewed = self.wishes(name.as_str(), self.since(at)).any(|it| it.hand.fresh)
            && self.asks_for_another(container, &[HandKind::Restart], at);
        let taken_down =
            self.wishes(name.as_str(), self.since(at)).any(|it| it.hand.kind == HandKind::Down);
        self.runs.remove(&container.id);
        if renewed || (superseded && !wanted_gone && !absent && !taken_down) {
            return;
        }
        self.check("removal-believable", wanted_gone || absent || taken_down, || {
            format!("{subject} is removed, and its absence cannot be believed")
        });
        let users: Vec<&Container> = objects
            .containers
            .iter()
            .filter(|it| it.name != name && donor_of(it) == Some(name.as_str()))
            // One that never ran may have been made while the removal was under way: it waits for a donor.
            .filter(|it| it.run.is_some())
            .filter(|it| !self.hung.contains(&it.id) && stands_for_its_workload(it, &objects))
            .filter(|it| {
                // One that is to join something else, or nothing, does not count.
                !window.iter().any(|seen| match seen.truth.said(it.name.as_str()) {
                    Said::Valid(doc) => {
                        doc.donor() != Some(name.as_str()) || doc.field("state") == "absent"
                    }
                    Said::Nothing | Said::Invalid => false,
                })
            })
            .collect();
        self.check("donor-in-use-stays", users.is_empty(), || {
            format!("{subject} is removed, and {} joins it", users[0].id)
        });
        if absent && !wanted_gone && !taken_down && !self.is_approved(&container.id) {
            self.limit(name.as_str(), &objects, at);
        }
    }

    /// Not too many go by absence in ten minutes.
    fn limit(&mut self, name: &str, objects: &Objects, at: Instant) {
        self.removals.retain(|(_, then)| at.duration_since(*then) < PRUNE_WINDOW);
        self.sizes.retain(|(_, then)| at.duration_since(*then) < PRUNE_WINDOW);
        let there = objects.containers.iter().map(|it| it.name.as_str().to_owned());
        let wanted = self.seen.last().into_iter().flat_map(|it| it.truth.names().cloned());
        let size = there.chain(wanted).collect::<BTreeSet<_>>().len();
        self.sizes.push((size, at));
        if !self.removals.iter().any(|(gone, _)| gone == name) {
            self.removals.push((name.to_owned(), at));
        }
        let peak = self.sizes.iter().map(|it| it.0).max().unwrap_or(0);
        let gone = self.removals.len();
        self.check("prune-limit", gone <= (peak / 2).max(1), || {
            format!("{name} is one of {gone} of {peak} that went by absence in ten minutes")
        });
    }

    fn before_create_task(&mut self, subject: &str, runtime: &MemoryRuntime, at: Instant) {
        let objects = objects(runtime);
        let Some(container) = find(&objects, subject) else { return };
        self.alone(container, &objects);
        self.not_stopped(container, at);
        self.check("shutdown-keeps-all", !self.is_shutting_down(), || {
            format!("{subject} starts while everything is ended")
        });
        let has_sources = container.workload.as_ref().is_none_or(|it| self.has_sources(it, at));
        self.check("sources-first", has_sources, || {
            format!("{subject} starts, and what it binds is not there")
        });
        let name = container.name.as_str();
        if self.failures.get(name).is_some_and(|it| it.id != container.id) {
            self.failures.remove(name);
        }
        // What is replaced is not tried again, unless its replacement fails: its end is not counted then.
        for (id, runs) in &mut self.runs {
            if *id != container.id
                && let Some(last) = runs.last_mut().filter(|it| it.name == name)
            {
                last.stopped = true;
            }
        }
        // What a person asks for waits for no delay; a start and a retry forget what failed before.
        let again = self.asks_for_another(container, &[HandKind::Start, HandKind::Retry], at);
        let anew = self.asks_for_another(container, &[HandKind::Restart], at);
        // So does an edit, in place as any other, whenever it is noticed.
        let edited = self.edits.get(name).and_then(|it| it.1);
        let edited_since = |then: Instant| edited.is_some_and(|it| it >= then);
        let failed = self.failures.get(name).map(|it| it.at);
        // Who asks for something else a moment later does not bring them back.
        let was_asked = |it: &Wish| {
            matches!(it.hand.kind, HandKind::Start | HandKind::Retry)
                && !has_begun(container, &it.hand)
        };
        let forgotten = failed.is_some_and(|then| self.wishes(name, then).any(was_asked));
        if again || forgotten || failed.is_some_and(edited_since) {
            self.failures.remove(name);
        }
        if let Some(failures) =
            self.failures.get(name).filter(|it| it.id == container.id && !anew).cloned()
        {
            let due = failures.at + Delays::default().after(failures.count);
            let before = due.saturating_duration_since(at);
            self.check("not-faster-than-backoff", before.is_zero(), || {
                format!(
                    "{subject} is started {} ms too early, after {} failures",
                    before.as_millis(),
                    failures.count
                )
            });
        }
        let Some(last) = self.runs.get(&container.id).and_then(|it| it.last()).cloned() else {
            if let Some(last) = self.before_boot.get(&container.id).cloned() {
                let on_boot = container.workload.as_ref().is_some_and(|it| it.spec.restart.on_boot);
                if !on_boot {
                    self.not_over(container, &last, again, anew, at);
                }
            }
            return;
        };
        let (Some(_), Some(ended)) = (last.started, last.ended) else { return };
        if last.stopped {
            // Whoever did not get to say that it was stopped may have said that it ended, after a long run.
            if ended.duration_since(last.created) >= RESET_AFTER {
                self.failures.remove(name);
            }
            return;
        }
        let noticed = last.noticed.unwrap_or(at);
        let before = self.failures.get(name).filter(|it| it.id == container.id);
        // The run is noted before it begins, and a call may take its time.
        let long = noticed.duration_since(last.created) >= RESET_AFTER;
        let count = if long { 1 } else { before.map_or(0, |it| it.count) + 1 };
        // What ended while a person kept it stopped is no failure, and nobody may be left who asks for a start when
        // the stop is taken back.
        let kept = self.wishes(name, ended).any(|it| it.hand.kind == HandKind::Stop);
        // Counted by `started`; the note of the next run makes it lasting.
        if !again && !anew && !kept && !edited_since(ended.min(self.since(at))) {
            let due = ended + Delays::default().after(count);
            let early = due.saturating_duration_since(at);
            self.check("not-faster-than-backoff", early.is_zero(), || {
                format!(
                    "{subject} is started {} ms too early, after its end, failure {count} in a row",
                    early.as_millis()
                )
            });
            self.failures
                .insert(name.to_owned(), Failures { id: container.id.clone(), count, at: ended });
        }
        let by_hand = self.wishes(name, last.created).next().is_some();
        if last.code != Some(0) && !by_hand && !last.counted {
            *self.failed.entry(container.id.clone()).or_default() += 1;
            if let Some(run) = self.runs.get_mut(&container.id).and_then(|it| it.last_mut()) {
                run.counted = true;
            }
        }
        self.not_over(container, &last, again, anew, at);
    }

    /// What ended for good does not run again. `again`, `anew`: a person asks for it.
    fn not_over(
        &mut self,
        container: &Container,
        last: &Run,
        again: bool,
        anew: bool,
        at: Instant,
    ) {
        let Some(workload) = &container.workload else { return };
        let restart = &workload.spec.restart;
        let failed = self.failed.get(&container.id).copied().unwrap_or(0);
        let is_exhausted = restart.max_retries.is_some_and(|max| failed > max);
        let over = match restart.policy {
            // What a reboot took has begun, and is over.
            Some(RestartPolicy::Never) => true,
            Some(RestartPolicy::OnFailure) => {
                (last.code == Some(0) && last.noticed.is_some())
                    || (is_exhausted && last.ended.is_some() && last.code != Some(0))
            }
            Some(RestartPolicy::Always) | None => false,
        };
        let is_policy_old =
            self.window(at).iter().any(|seen| match seen.truth.said(container.name.as_str()) {
                Said::Valid(doc) => doc.workload().is_none_or(|it| it.spec.restart != *restart),
                Said::Nothing | Said::Invalid => false,
            });
        // What has succeeded is run again by a restart only.
        let by_hand = anew || (again && last.code != Some(0));
        self.check("no-run-after-the-last", !over || is_policy_old || by_hand, || {
            format!("{} runs again although its policy says that it is over", container.id)
        });
    }

    /// Never two processes of one workload.
    fn alone(&mut self, container: &Container, objects: &Objects) {
        let others = objects
            .containers
            .iter()
            .filter(|it| it.name == container.name && it.id != container.id && is_live(&it.task))
            .map(|it| &it.id);
        let stem = InstanceId::stem_of(&container.name);
        let orphans = objects
            .orphans
            .iter()
            .filter(|(id, task)| id.stem() == stem && is_live(task))
            .map(|(id, _)| id);
        let other = others.chain(orphans).next().cloned();
        self.check("never-two", other.is_none(), || {
            format!("{} starts beside {}", container.id, other.expect("there is one"))
        });
    }

    fn before_start(
        &mut self,
        subject: &str,
        runtime: &MemoryRuntime,
        host: &MemoryHost,
        at: Instant,
    ) {
        let objects = objects(runtime);
        let Some(container) = find(&objects, subject) else { return };
        let Task::Created { pid } = container.task else { return };
        self.alone(container, &objects);
        self.not_stopped(container, at);
        let lease = format!("evenkeel-{subject}");
        let kept = objects.leases.contains(&lease)
            && self.leases.get(&lease).is_some_and(|it| *it == self.controller);
        self.check("lease-released", !kept, || {
            format!("{lease} is there when its instance starts")
        });
        let Ok(Some(view)) = host.view(pid) else { return };
        let facts = host.observe(&Ask::default()).ok();
        let hosts = facts.and_then(|it| it.host_view).map(key);
        let Some(workload) = &container.workload else { return };
        let created =
            self.runs.get(&container.id).and_then(|it| it.last()).map_or(at, |it| it.created);
        match workload.spec.ipc(&container.defaults).mode {
            IpcMode::Container(donor) => {
                let chain = chain(donor.as_str(), &objects);
                let shared = self.runs.values().flatten().chain(&self.lost).any(|it| {
                    chain.contains(&it.name)
                        && it.started.is_some()
                        && it.ended.is_none_or(|it| it >= created)
                        && it.view.map(key) == Some(key(view))
                });
                self.check("joiner-with-its-donor", shared, || {
                    format!("{subject} starts in another namespace than `{donor}` runs in")
                });
            }
            IpcMode::Host => {}
            IpcMode::None | IpcMode::Private | IpcMode::Shareable => {
                let of_host = hosts.is_some_and(|it| it.0 == view.ipc_ns);
                // Numbers of namespaces and of what a process mounts itself are used again, those of what is
                // published are not.
                let publishes = workload.spec.ipc(&container.defaults).is_joinable();
                let used = self.runs.values().flatten().any(|it| {
                    it.started.is_some()
                        && it.view.is_some_and(|other| {
                            let of_living = it.ended.is_none();
                            (of_living && other.ipc_ns == view.ipc_ns)
                                || ((of_living || publishes)
                                    && view.shm.is_some()
                                    && other.shm == view.shm)
                        })
                });
                self.check("fresh-and-own", !of_host && !used, || {
                    format!("{subject} starts with what somebody else has or had: {view:?}")
                });
            }
        }
    }

    /// A call did not do what it was to do, or did not say so.
    pub(crate) fn failed(&mut self, subject: &str) {
        self.leases.retain(|lease, _| !lease.ends_with(subject));
    }

    pub(crate) fn after(
        &mut self,
        verb: &'static str,
        subject: &str,
        done: bool,
        runtime: &MemoryRuntime,
        host: &MemoryHost,
    ) {
        let at = Instant::now();
        match verb {
            verb::LEASE if done => {
                self.leases.insert(subject.to_owned(), self.controller);
            }
            verb::CREATE_TASK if done => {
                let objects = objects(runtime);
                let Some(container) = find(&objects, subject) else { return };
                let Task::Created { pid } = container.task else { return };
                self.pids.insert(pid);
                let run = Run {
                    name: container.name.as_str().to_owned(),
                    created: at,
                    started: None,
                    view: host.view(pid).ok().flatten(),
                    ended: None,
                    code: None,
                    stopped: false,
                    killed: None,
                    noticed: None,
                    asked: None,
                    is_deaf: false,
                    counted: false,
                };
                self.before_boot.remove(&container.id);
                let runs = self.runs.entry(container.id.clone()).or_default();
                runs.retain(|it| it.started.is_some());
                runs.push(run);
            }
            verb::START_TASK if done => {
                let objects = objects(runtime);
                let Some(container) = find(&objects, subject) else { return };
                let Some(run) = self.runs.get_mut(&container.id).and_then(|it| it.last_mut())
                else {
                    return;
                };
                run.started = Some(at);
                if let Task::Stopped { code, .. } = container.task {
                    run.ended = Some(at);
                    run.code = Some(code);
                }
            }
            verb::KILL | verb::RESUME_TASK | verb::WAIT | verb::DELETE_TASK if done => {
                let objects = objects(runtime);
                let Some(container) = find(&objects, subject) else { return };
                if matches!(container.task, Task::Stopped { .. } | Task::None)
                    && let Some(run) = self.runs.get_mut(&container.id).and_then(|it| it.last_mut())
                {
                    run.ended.get_or_insert(at);
                }
                if verb == verb::RESUME_TASK
                    && let Some(run) = self.runs.get_mut(&container.id).and_then(|it| it.last_mut())
                {
                    run.is_deaf &= run.asked.is_some();
                }
            }
            _ => {}
        }
    }

    /// The controller writes to a container. `before`: what was there.
    pub(crate) fn updated(
        &mut self,
        id: &InstanceId,
        update: &Update,
        before: &Objects,
        strikes: &BTreeMap<Name, Strikes>,
    ) {
        let at = Instant::now();
        // It is noted before the signal that it is being ended.
        if let (Some(ending), Some(run)) =
            (update.ending, self.runs.get_mut(id).and_then(|it| it.last_mut()))
        {
            run.stopped = ending > 0 || run.killed.is_some();
        }
        let container = find(before, id.as_str());
        if let Some(own) = container.filter(|_| update.workload.is_some()) {
            let timeout = own.workload.as_ref().and_then(|it| it.spec.stop.timeout);
            self.timeouts.push((id.clone(), at, timeout.unwrap_or(DEFAULT_STOP_TIMEOUT)));
        }
        let Some(end) = &update.end else { return };
        let is_last = container.is_some_and(|it| it.run.as_ref().is_some_and(|run| run.n == end.n));
        let told = self.runs.get(id).and_then(|it| it.last()).filter(|it| it.started.is_some());
        if let Some(code) = told.filter(|_| is_last && end.reason == EXITED).and_then(|it| it.code)
        {
            self.check("exit-code-kept", end.code == code, || {
                format!("{id} ended with {code}, and {} is written down", end.code)
            });
        }
        if let Some(run) = self.runs.get_mut(id).and_then(|it| it.last_mut()) {
            run.noticed = Some(at);
            // Nobody counts what the end of the machine finds ended.
            run.stopped |= end.reason == STOPPED || self.shutdown.is_some();
            if end.reason == EXIT_UNKNOWN {
                run.code = None;
            }
        }
        if let Some(container) = container {
            self.no_failure_by_hand(container, end, strikes, at);
        }
    }

    /// What a person ends is no failure, whoever writes that down.
    fn no_failure_by_hand(
        &mut self,
        container: &Container,
        end: &End,
        strikes: &BTreeMap<Name, Strikes>,
        at: Instant,
    ) {
        let killed = self.runs.get(&container.id).and_then(|it| it.last()?.killed);
        let (Some(run), Some(killed)) = (&container.run, killed) else { return };
        let by_hand = self.wish(container.name.as_str()).is_some_and(|it| {
            it.asked <= killed
                && !it.is_moot
                && match it.hand.kind {
                    HandKind::Stop => true,
                    HandKind::Restart => !has_begun(container, &it.hand),
                    HandKind::Start | HandKind::Retry | HandKind::Down => false,
                }
        });
        if !by_hand || run.n != end.n || at < killed {
            return;
        }
        let before = container.end.as_ref().map_or(0, |it| it.failures);
        let counted = strikes.get(&container.name).is_some_and(|it| it.run == Some(run.at));
        self.check("hand-costs-no-strike", end.failures == before && !counted, || {
            format!("{} was ended by hand, and that is counted as a failure", container.id)
        });
    }

    /// After each step: nothing of one workload runs twice, and what is foreign is there.
    pub(crate) fn at_rest(&mut self, runtime: &MemoryRuntime) {
        let objects = objects(runtime);
        // What has never run in this boot counts for the size of the source too.
        let there = objects.containers.iter().map(|it| it.name.as_str().to_owned());
        let wanted = self.seen.last().into_iter().flat_map(|it| it.truth.names().cloned());
        let size = there.chain(wanted).collect::<BTreeSet<_>>().len();
        self.sizes.push((size, Instant::now()));
        let mut live: BTreeMap<String, InstanceId> = BTreeMap::new();
        let tasks = objects.containers.iter().map(|it| (&it.id, &it.task));
        let known = tasks.chain(&objects.orphans).filter(|it| is_live(it.1)).map(|it| it.0);
        // What the runtime has lost runs all the same.
        let strays = runtime.strays();
        let lost = strays.iter().filter(|it| !it.1.pids.is_empty()).map(|it| it.0);
        for id in known.chain(lost) {
            if let Some(other) = live.insert(id.stem().to_owned(), id.clone()) {
                self.check("never-two", false, || format!("{id} runs beside {other}"));
            }
        }
        for id in self.foreign.clone() {
            self.check("foreign-untouched", runtime.has_foreign(&id), || format!("{id} is gone"));
        }
    }
}

fn key(view: View) -> (u64, Option<u64>) {
    (view.ipc_ns, view.shm)
}
