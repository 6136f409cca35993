//! [`diff`]: wishes, targets and gates of every workload, then one decision each, then the steps with their edges.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::{
    Action, Again, ByAbsence, Cause, Decision, Expect, ExpectNamespace, ExpectShm, Finish, Fit,
    Have, Hold, Log, PRUNE_WINDOW, Phase, Plan, Policy, Prepare, Relabel, RemoveStray, Standing,
    Start, StepId, StopInstance, Want, decide, stop_signal,
};
use crate::backoff::{Delays, Strikes};
use crate::content::hex;
use crate::desired::{Absence, BootTime, DesiredState, Origin, Source};
use crate::observed::{
    Approval, EXITED, Exit, FileKind, HandKind, Image, ImagePlace, Instance, Leftover,
    ObservedState, STOPPED, Task, published_paths,
};
use crate::oci::{self, Blueprint};
use crate::workload::{
    DEFAULT_STOP_TIMEOUT, ImagePullPolicy, InstanceId, Ipc, IpcDefaults, IpcMode, LogDriver,
    MountKind, Name, OnDonorChange, RestartPolicy, Revision, Shm, WantedState, Workload,
};

mod execs;
mod hands;
mod images;
mod pulls;
mod shutdown;
mod strays;

pub use images::{ImageUse, ImageUses, image_uses, import_lease};
pub use pulls::pull_lease;
pub use shutdown::shutdown;

/// Plans everything that brings `observed` to `desired`.
///
/// # Guarantees
/// Equal inputs give equal plans. Nothing that does not carry our labels or lie under our directories is in one. On a
/// converged state it is empty.
pub fn diff(
    desired: &DesiredState,
    observed: &ObservedState,
    policy: &Policy,
    now: BootTime,
) -> Plan {
    Planner::new(desired, observed, policy, now).plan()
}

/// Plans the removal of the named workloads, or of everything that is ours: joiners first, then what is left over. A
/// donor that somebody joins who is not named stays, as it does beside a controller.
pub fn down(observed: &ObservedState, names: Option<&BTreeSet<Name>>) -> Plan {
    let mut plan = Plan::default();
    let kept = names.map(|names| donors_in_use(observed, names)).unwrap_or_default();
    let names: Option<BTreeSet<Name>> =
        names.map(|names| names.iter().filter(|it| !kept.contains_key(it)).cloned().collect());
    let names = names.as_ref();
    for (name, by) in kept {
        let held = Standing {
            phase: Phase::Held,
            reason: "donor-in-use",
            message: in_use_by(&by),
            up_to_date: false,
            instance: None,
            until: None,
        };
        plan.standings.insert(name, held);
    }
    let chosen = |name: &Name| names.is_none_or(|names| names.contains(name));
    let instances: Vec<&Instance> =
        observed.instances.values().filter(|it| chosen(&it.name)).collect();
    // An orphan and a stray have no name but the one that their ID was made of.
    let stems: Option<BTreeSet<String>> =
        names.map(|names| names.iter().map(InstanceId::stem_of).collect());
    let strays = strays::end_all(&mut plan, observed, &Cause::Down, |id| {
        stems.as_ref().is_none_or(|stems| stems.contains(id.stem()))
    });
    let mut joiners: BTreeMap<&Name, Vec<StepId>> = BTreeMap::new();
    // Joiners come before what they join, whatever their names are.
    for instance in donors_last(&instances) {
        let mut before = joiners.get(&instance.name).cloned().unwrap_or_default();
        before.extend(strays.get(&instance.id));
        let step = remove_steps(&mut plan, instance, &Cause::Down, before, None);
        if let Some(donor) = donor_of(instance) {
            joiners.entry(donor).or_default().push(step);
        }
    }
    for (id, task) in &observed.orphans {
        let chosen = stems.as_ref().is_none_or(|stems| stems.contains(id.stem()));
        if chosen && *task != Task::Unknown {
            plan.push(
                None,
                Action::RemoveOrphan { id: id.clone(), pid: task.pid() },
                Cause::Down,
                Vec::new(),
            );
        }
    }
    if names.is_none() {
        sweep(&mut plan, observed, &BTreeSet::new(), |_| true);
    }
    for (name, hand) in observed.hands.iter().filter(|it| chosen(it.0)) {
        let leftover = Leftover::Hand(name.clone(), hand.clone());
        plan.push(Some(name), Action::Sweep(leftover), Cause::Down, Vec::new());
    }
    plan
}

/// Which of these workloads cannot go alone, and by whom each of them is joined: by one that is not among them, or that
/// itself cannot go.
fn donors_in_use(
    observed: &ObservedState,
    names: &BTreeSet<Name>,
) -> BTreeMap<Name, BTreeSet<Name>> {
    let mut kept: BTreeMap<Name, BTreeSet<Name>> = BTreeMap::new();
    loop {
        let mut in_use: BTreeMap<Name, BTreeSet<Name>> = BTreeMap::new();
        for instance in observed.instances.values() {
            let stays = !names.contains(&instance.name) || kept.contains_key(&instance.name);
            if let Some(donor) = donor_of(instance).filter(|it| stays && names.contains(it)) {
                in_use.entry(donor.clone()).or_default().insert(instance.name.clone());
            }
        }
        if in_use == kept {
            return kept;
        }
        kept = in_use;
    }
}

fn in_use_by(joiners: &BTreeSet<Name>) -> String {
    format!("in use by {}", joiners.iter().map(Name::as_str).collect::<Vec<_>>().join(", "))
}

/// One workload on its way through the planner.
struct Case<'a> {
    name: &'a Name,
    /// The instance that stands for it: the one that runs, or ran last.
    current: Option<&'a Instance>,
    /// Other instances of the name.
    others: Vec<&'a Instance>,
    wish: Wish<'a>,
}

impl Case<'_> {
    /// The place of its last start among all of the workload.
    fn last_order(&self) -> u64 {
        let runs = self.current.iter().chain(&self.others).filter_map(|it| it.run.as_ref());
        runs.map(|it| it.order).max().unwrap_or(0)
    }
}

/// What is to become of a workload, before it is known whether it can.
#[derive(Clone)]
enum Wish<'a> {
    /// Follow this manifest.
    Follow(Arc<Workload>, &'a Origin),
    /// Go on as last applied, for this reason.
    Keep {
        reason: &'static str,
        message: String,
    },
    Remove {
        cause: Cause,
        by_absence: Option<ByAbsence>,
    },
    Unclaimed,
    /// There is a document with problems and nothing to keep.
    Invalid,
}

/// The revision that is wanted of a workload.
struct Target<'a> {
    workload: Arc<Workload>,
    id: InstanceId,
    revision: Revision,
    /// It exists already.
    instance: Option<&'a Instance>,
    image: Option<Image>,
    defaults: IpcDefaults,
    ipc: Ipc,
    changes: Vec<String>,
}

/// Why a start cannot be tried now.
#[derive(Debug, Clone)]
struct Obstacle {
    reason: &'static str,
    message: String,
}

/// How a donor will stand when its own steps are done.
#[derive(Clone)]
struct Donor {
    /// Whose namespace it is in: its own, or that of the donor at the end of the line.
    root: InstanceId,
    /// Itself and whom it joins in turn, up to the root, which is not among them.
    through: Vec<InstanceId>,
    /// The step of this plan after which it runs; `None`: it runs already.
    started_by: Option<StepId>,
    /// When the running one was started.
    since: Option<BootTime>,
    initial_delay: Duration,
    ipc: Ipc,
}

struct Planner<'a> {
    desired: &'a DesiredState,
    observed: &'a ObservedState,
    policy: &'a Policy,
    now: BootTime,
    plan: Plan,
    cases: BTreeMap<Name, Case<'a>>,
    /// The revisions that are wanted of those that follow their manifests.
    targets: BTreeMap<&'a Name, Rc<Target<'a>>>,
    /// Workloads that run, or will when the steps so far are done, by name.
    donors: BTreeMap<Name, Donor>,
    /// Workloads that run and cannot be joined as they are now, and why.
    unjoinable: BTreeMap<Name, Obstacle>,
    /// Who joins whom, by what each of them goes by.
    joiners: BTreeMap<Name, BTreeSet<Name>>,
    /// The steps that import images, by the image's name.
    imports: BTreeMap<String, StepId>,
    /// The steps that remove tasks without a container object, by what their IDs start with; `None`: nobody knows
    /// how the task is.
    orphans: BTreeMap<&'a str, Option<StepId>>,
    /// The last of the steps that end what the runtime has lost, by the same.
    strays: BTreeMap<&'a str, StepId>,
    /// How many workloads each source has, those it lost included.
    sizes: BTreeMap<&'a Source, usize>,
    /// What of [`oci::HOST_NETWORK_FILES`] is there.
    host_files: Vec<&'static str>,
    /// Images that workloads wait for, and which.
    waited_for: BTreeMap<String, BTreeSet<Name>>,
}

impl<'a> Planner<'a> {
    fn new(
        desired: &'a DesiredState,
        observed: &'a ObservedState,
        policy: &'a Policy,
        now: BootTime,
    ) -> Self {
        let is_there =
            |it: &&str| observed.mount_sources.get(Path::new(it)) == Some(&FileKind::Other);
        Self {
            desired,
            observed,
            policy,
            now,
            plan: Plan::default(),
            cases: BTreeMap::new(),
            targets: BTreeMap::new(),
            donors: BTreeMap::new(),
            unjoinable: BTreeMap::new(),
            joiners: BTreeMap::new(),
            imports: BTreeMap::new(),
            orphans: BTreeMap::new(),
            strays: BTreeMap::new(),
            sizes: BTreeMap::new(),
            host_files: oci::HOST_NETWORK_FILES.into_iter().filter(is_there).collect(),
            waited_for: BTreeMap::new(),
        }
    }

    fn plan(mut self) -> Plan {
        self.measure();
        self.gather();
        self.hold_execs();
        self.limit_removals();
        self.hold_donors_in_use();
        self.aim();
        self.remove_orphans();
        for name in self.order() {
            self.plan_one(&name);
        }
        self.plan_removals();
        self.end_unowned_strays();
        let pulls = self.plan_pulls();
        self.plan_images();
        self.sweep_hands();
        let wanted: BTreeSet<&Name> = self.desired.workloads.keys().collect();
        sweep(&mut self.plan, self.observed, &pulls, |name| !wanted.contains(name));
        self.plan
    }

    fn measure(&mut self) {
        let wanted = self.desired.workloads.iter().map(|(name, it)| (&it.origin.source, name));
        let there = self.observed.instances.values().map(|it| (&it.origin.source, &it.name));
        for (source, _) in wanted.chain(there).collect::<BTreeSet<_>>() {
            *self.sizes.entry(source).or_default() += 1;
        }
    }

    /// Ends tasks that have no container object, before anything of the same workload starts: one workload never runs
    /// twice, and a new container object must not inherit a task that it was not made for.
    fn remove_orphans(&mut self) {
        for (id, task) in &self.observed.orphans {
            if *task == Task::Unknown {
                self.orphans.insert(id.stem(), None);
                continue;
            }
            // One after the other, so that whoever waits for the last has waited for all.
            let before = self.orphans.get(id.stem()).copied().flatten();
            let remove = Action::RemoveOrphan { id: id.clone(), pid: task.pid() };
            let step = self.plan.push(None, remove, Cause::Orphaned, before.into_iter().collect());
            self.orphans
                .entry(id.stem())
                .and_modify(|it| *it = it.map(|_| step))
                .or_insert(Some(step));
        }
    }

    /// One case per name that is wanted or there.
    fn gather(&mut self) {
        let mut instances: BTreeMap<&Name, Vec<&Instance>> = BTreeMap::new();
        for instance in self.observed.instances.values() {
            instances.entry(&instance.name).or_default().push(instance);
        }
        let names: BTreeSet<&Name> =
            self.desired.workloads.keys().chain(instances.keys().copied()).collect();
        for name in names {
            let mut all = instances.remove(name).unwrap_or_default();
            // The one that runs stands for the workload, else the one that ran last; IDs make it one answer.
            all.sort_by_key(|it| {
                let order = it.run.as_ref().map(|run| run.order);
                (it.task.pid().is_some(), it.task != Task::None, order, it.id.clone())
            });
            let current = all.pop();
            let wish = self.wish(name, current);
            self.cases.insert(name.clone(), Case { name, current, others: all, wish });
        }
    }

    fn wish(&self, name: &Name, current: Option<&'a Instance>) -> Wish<'a> {
        match (self.desired.workloads.get(name), current) {
            (Some(wanted), current) => match (&wanted.workload, current) {
                (Some(workload), _) if workload.spec.state == WantedState::Absent => {
                    Wish::Remove { cause: Cause::WantedAbsent, by_absence: None }
                }
                (Some(workload), _) => Wish::Follow(Arc::clone(workload), &wanted.origin),
                (None, Some(_)) => Wish::Keep {
                    reason: "manifest-invalid",
                    message: format!(
                        "its manifest has problems ({}); it goes on as last applied",
                        wanted.origin
                    ),
                },
                (None, None) => Wish::Invalid,
            },
            (None, Some(instance)) => self.wish_for_absent(name, instance),
            (None, None) => Wish::Invalid,
        }
    }

    fn wish_for_absent(&self, name: &Name, instance: &'a Instance) -> Wish<'a> {
        let approval = Approval { name: name.clone(), instance: instance.id.clone() };
        let absence = self.desired.removal(name, &instance.origin, self.now);
        match absence {
            _ if self.is_taken_down(name) => {
                Wish::Remove { cause: Cause::ByHand(HandKind::Down), by_absence: None }
            }
            Absence::Unclaimed => Wish::Unclaimed,
            _ if self.observed.approvals.contains(&approval) => {
                Wish::Remove { cause: Cause::Approved, by_absence: None }
            }
            Absence::Never => Wish::Keep {
                reason: "source-is-a-file",
                message: format!(
                    "{} is a single file, and its absence there removes nothing",
                    instance.origin.source
                ),
            },
            Absence::Held { code, path, message, .. } => {
                Wish::Keep { reason: code, message: format!("{}: {message}", path.display()) }
            }
            Absence::Pending { .. } => Wish::Keep {
                reason: "removal-pending",
                message: "its document is absent; it is removed once the source is quiet"
                    .to_owned(),
            },
            Absence::Acts => Wish::Remove {
                cause: Cause::Gone { origin: instance.origin.clone() },
                by_absence: Some(ByAbsence {
                    name: name.clone(),
                    source: instance.origin.source.clone(),
                    of: self.sizes.get(&instance.origin.source).copied().unwrap_or(0),
                }),
            },
        }
    }

    /// Holds removals by absence that are more than a source may lose at once, all of them: half a deletion is no
    /// better than a whole one. Lists every hold that a person can release.
    fn limit_removals(&mut self) {
        // All of them may go; that the same few come and go all the time is not counted against them either.
        if self.policy.prune_limit >= 100 {
            return;
        }
        let mut leaving: BTreeMap<_, Vec<(Name, usize)>> = BTreeMap::new();
        for case in self.cases.values() {
            if let Wish::Remove { by_absence: Some(it), .. } = &case.wish {
                leaving.entry(it.source.clone()).or_default().push((case.name.clone(), it.of));
            }
        }
        for (source, names) in leaving {
            let recent = || {
                self.observed
                    .removals
                    .iter()
                    .filter(|it| it.source == source && self.now.since(it.at) < PRUNE_WINDOW)
            };
            let peak =
                recent().map(|it| it.of).chain(names.iter().map(|it| it.1)).max().unwrap_or(0);
            let share =
                peak.saturating_mul(usize::try_from(self.policy.prune_limit).unwrap_or(0)) / 100;
            let allowed = share.max(1);
            // One whose removal was counted and not completed is not a second one.
            let gone: BTreeSet<&Name> =
                recent().map(|it| &it.name).chain(names.iter().map(|it| &it.0)).collect();
            if gone.len() <= allowed {
                continue;
            }
            for (name, _) in names {
                if let Some(case) = self.cases.get_mut(&name) {
                    case.wish = Wish::Keep {
                        reason: "prune-limit",
                        message: format!(
                            "more than {} % of the {peak} workloads of {source} would go by absence",
                            self.policy.prune_limit
                        ),
                    };
                }
            }
        }
    }

    /// The spec that a workload goes by: the wanted one, or the last applied one while it is held.
    fn effective(case: &Case<'a>) -> Option<Arc<Workload>> {
        match &case.wish {
            Wish::Follow(workload, _) => Some(Arc::clone(workload)),
            Wish::Keep { .. } | Wish::Unclaimed => case.current.and_then(|it| it.workload.clone()),
            Wish::Remove { .. } | Wish::Invalid => None,
        }
    }

    /// Holds every donor that would be removed or made unjoinable while somebody's effective spec joins it.
    fn hold_donors_in_use(&mut self) {
        let donor = |case: &Case<'a>| {
            Self::effective(case).and_then(|it| it.spec.ipc_mode.as_ref()?.donor().cloned())
        };
        for case in self.cases.values() {
            if let Some(donor) = donor(case) {
                self.joiners.entry(donor).or_default().insert(case.name.clone());
            }
        }
        let mut next: Vec<Name> = self.joiners.keys().cloned().collect();
        while let Some(name) = next.pop() {
            let Some(case) = self.cases.get_mut(&name) else { continue };
            let Some(current) = case.current else { continue };
            let in_use = || in_use_by(self.joiners.get(&name).unwrap_or(&BTreeSet::new()));
            let message = match &case.wish {
                Wish::Remove { cause, .. } => format!("{cause}, but {}", in_use()),
                Wish::Follow(wanted, _) => {
                    let before = current
                        .workload
                        .as_ref()
                        .is_some_and(|it| it.spec.ipc(&current.defaults).is_joinable());
                    // A joiner names a donor that says so itself, so the default does not come into it.
                    if !before || wanted.spec.ipc(&self.policy.ipc).is_joinable() {
                        continue;
                    }
                    format!("the new manifest makes it impossible to join, but it is {}", in_use())
                }
                Wish::Keep { .. } | Wish::Unclaimed | Wish::Invalid => continue,
            };
            // A held donor may itself be a joiner, by what it was last applied with.
            let before = donor(case);
            case.wish = Wish::Keep { reason: "donor-in-use", message };
            let after = donor(case);
            if before == after {
                continue;
            }
            if let Some(joiners) = before.and_then(|it| self.joiners.get_mut(&it)) {
                joiners.remove(&name);
            }
            if let Some(donor) = after {
                self.joiners.entry(donor.clone()).or_default().insert(name);
                next.push(donor);
            }
        }
    }

    fn aim(&mut self) {
        for case in self.cases.values() {
            if let Wish::Follow(workload, _) = &case.wish {
                self.targets.insert(case.name, Rc::new(self.target(case, workload)));
            }
        }
    }

    /// Donors before joiners, otherwise by name. While what is wanted cannot start, a workload goes on as it is, so
    /// what it was last applied with counts too.
    fn order(&self) -> Vec<Name> {
        let donors = |name: &Name| {
            let case = self.cases.get(name);
            let of = |it: &Workload| it.spec.ipc_mode.as_ref()?.donor().cloned();
            let wanted = case.and_then(Self::effective).and_then(|it| of(&it));
            let applied = case.and_then(|it| it.current?.workload.as_deref()).and_then(of);
            // The last one is looked at first.
            [applied, wanted].into_iter().flatten()
        };
        let mut seen = BTreeSet::new();
        let mut order = Vec::new();
        for name in self.cases.keys() {
            // What has been entered is written down after its donors. A circle, which only what is wanted and what
            // was applied can make together, ends at a name seen before.
            let mut stack = vec![(name.clone(), false)];
            while let Some((name, entered)) = stack.pop() {
                if entered {
                    order.push(name);
                } else if seen.insert(name.clone()) {
                    let before = donors(&name).filter(|it| self.cases.contains_key(it));
                    let before: Vec<Name> = before.collect();
                    stack.push((name, true));
                    stack.extend(before.into_iter().map(|it| (it, false)));
                }
            }
        }
        order
    }

    fn plan_one(&mut self, name: &Name) {
        let Some(case) = self.cases.get(name) else { return };
        let (current, others, wish) = (case.current, case.others.clone(), case.wish.clone());
        let first = StepId(self.plan.steps.len());
        match wish {
            Wish::Invalid => self.stand(
                name,
                Phase::Invalid,
                Some(Obstacle {
                    reason: "manifest-invalid",
                    message: "its manifest has problems".to_owned(),
                }),
                false,
                None,
            ),
            Wish::Unclaimed => {
                let source = current.map(|it| it.origin.source.to_string()).unwrap_or_default();
                let message = format!(
                    "its source {source} was not given; `evenkeel down --source {source}` removes it"
                );
                self.stand(
                    name,
                    Phase::Held,
                    Some(Obstacle { reason: "unclaimed", message }),
                    false,
                    current,
                );
            }
            // In `plan_removals`, when it is known which joiners go first.
            Wish::Remove { .. } => {}
            Wish::Keep { reason, message } => {
                let Some(current) = current else { return };
                // A time that has passed waits for the manifests to be read again, and they wake by themselves.
                if let Absence::Pending { until } =
                    self.desired.removal(name, &current.origin, self.now)
                    && reason == "removal-pending"
                    && until > self.now
                {
                    self.wake_at(until);
                }
                let hold = Obstacle { reason, message };
                self.hold_releasable(name, current, &hold);
                match &current.workload {
                    Some(workload) => {
                        let target = Self::same(current, workload);
                        self.carry_out(name, Some(current), &target, Some(hold));
                    }
                    None => self.stand(name, Phase::Held, Some(hold), false, Some(current)),
                }
            }
            Wish::Follow(workload, origin) => self.follow(name, current, &workload, origin),
        }
        self.remember_execs(name);
        self.end_other_strays(name, current);
        // What is superseded goes once the workload runs as wanted, or was never more than prepared.
        self.remove_superseded(current, &others, first);
    }

    /// The instance itself as its own target: it goes on as it was last applied.
    fn same(instance: &'a Instance, workload: &Arc<Workload>) -> Target<'a> {
        Target {
            workload: Arc::clone(workload),
            id: instance.id.clone(),
            revision: instance.revision.clone(),
            instance: Some(instance),
            image: Some(instance.image.clone()),
            defaults: instance.defaults.clone(),
            ipc: workload.spec.ipc(&instance.defaults),
            changes: Vec::new(),
        }
    }

    fn follow(
        &mut self,
        name: &Name,
        current: Option<&'a Instance>,
        workload: &Arc<Workload>,
        origin: &Origin,
    ) {
        let Some(target) = self.targets.get(name).cloned() else { return };
        let target = &*target;
        let stopped = workload.spec.state == WantedState::Stopped || self.is_stopped_by_hand(name);
        let is_current = target.instance.is_some()
            && target.instance.map(|it| &it.id) == current.map(|it| &it.id);
        if is_current || current.is_none() || stopped {
            if is_current && let Some(current) = current {
                self.update_in_place(name, current, workload, origin);
            }
            if stopped
                && !is_current
                && let Some(current) = current
            {
                // It stays stopped as it is; the new revision is made when it is to run.
                let kept =
                    Target { workload: Arc::clone(workload), ..Self::same(current, workload) };
                self.carry_out(name, Some(current), &kept, None);
            } else {
                self.carry_out(name, current, target, None);
            }
            return;
        }
        if let Some(busy) = self.exec_obstacle(current)
            && let Some(current) = current
            && let Some(stored) = &current.workload
        {
            let kept = Self::same(current, stored);
            self.carry_out(name, Some(current), &kept, Some(busy));
            return;
        }
        // Another revision is wanted. What is there goes on, restarts included, until the other one can start.
        let obstacle =
            self.obstacle(target).or_else(|| self.joiners_obstacle(name, current, target));
        match (obstacle, current) {
            (Some(obstacle), Some(current)) => match current.workload.clone() {
                Some(stored) => {
                    let kept = Self::same(current, &stored);
                    self.carry_out(name, Some(current), &kept, None);
                    self.wait_for_image(name, target, &obstacle);
                    self.remark(name, obstacle);
                }
                None => self.stand(name, Phase::Held, Some(obstacle), false, Some(current)),
            },
            (_, current) => self.carry_out(name, current, target, None),
        }
    }

    /// Which instance a manifest means, by meaning: one that is there and would come out the same, or a new one.
    fn target(&self, case: &Case<'a>, workload: &Arc<Workload>) -> Target<'a> {
        let current = case.current;
        let full = workload.spec.image.full();
        let mut image = self.observed.images.get(&full).cloned();
        if image.is_none() {
            // Unknown is not changed: what cannot be resolved now is what it was.
            image = current.filter(|it| it.image.name == full).map(|it| it.image.clone());
        }
        let policy = &self.policy.ipc;
        // Empty: it would come out the same. Most are the same in every letter, which is quickly seen.
        let changes = |it: &Instance| match &it.workload {
            Some(stored) if stored == workload => Some(Vec::new()),
            Some(stored) => Some(stored.changes(&it.defaults, workload, policy)),
            None => None,
        };
        let has_image =
            |it: &Instance| image.as_ref().is_none_or(|image| image.digest == it.image.digest);
        let of_current = current.and_then(changes);
        // What is told of a change from the one to the other.
        let differences = |of_current: Option<Vec<String>>| {
            let mut changes = of_current.unwrap_or_default();
            if let (Some(image), Some(current)) = (&image, current)
                && image.digest != current.image.digest
                && image.name == current.image.name
            {
                let (before, after) = (short(&current.image.digest), short(&image.digest));
                changes.insert(0, format!("image: {before} → {after}"));
            }
            changes
        };
        let others = || {
            let mut others = case.others.clone();
            others.sort_by(|a, b| a.id.cmp(&b.id));
            others
                .into_iter()
                .find(|it| has_image(it) && changes(it).is_some_and(|it| it.is_empty()))
        };
        // The one that stands for it before the others.
        let equal = current
            .filter(|it| has_image(it) && of_current.as_ref().is_some_and(Vec::is_empty))
            .or_else(others);
        if let Some(instance) = equal {
            let mut same = Self::same(instance, workload);
            same.image = Some(instance.image.clone());
            if current.is_some_and(|it| it.id != instance.id) {
                same.changes = differences(of_current);
            }
            return same;
        }
        let digest = image.as_ref().map_or("", |it| it.digest.as_str());
        let revision = workload.revision(digest);
        let changes = differences(of_current);
        let id = InstanceId::new(case.name, &revision);
        Target {
            // An instance of this revision whose manifest cannot be read any more is still that revision.
            instance: self.observed.instances.get(&id),
            id,
            revision,
            image,
            defaults: policy.clone(),
            ipc: workload.spec.ipc(policy),
            workload: Arc::clone(workload),
            changes,
        }
    }

    /// Writes settings that the process does not notice.
    fn update_in_place(
        &mut self,
        name: &Name,
        current: &Instance,
        workload: &Arc<Workload>,
        origin: &Origin,
    ) {
        let mut fields = Vec::new();
        if current.origin != *origin {
            fields.push(format!("origin: {} → {origin}", current.origin));
        }
        if current.workload.as_deref() != Some(workload) {
            fields.push("manifest".to_owned());
        }
        if !fields.is_empty() {
            let relabel = Relabel {
                id: current.id.clone(),
                origin: origin.clone(),
                workload: Arc::clone(workload),
                calls_off_stop: false,
            };
            // Once it is written down, nobody knows of the edit any more.
            let forget = self.forget_strikes(name);
            self.plan.push(
                Some(name),
                Action::Update(Box::new(relabel)),
                Cause::Updated(fields),
                forget.into_iter().collect(),
            );
        }
    }

    /// What goes on although a stop of it was begun, by somebody who did not get to the end of it, ends by itself
    /// when it ends.
    fn call_off_stop(&mut self, name: &Name, current: &Instance, target: &Target<'a>) {
        let planned = self.plan.steps.iter_mut().rev().find_map(|it| {
            let Action::Update(it) = &mut it.action else { return None };
            (it.id == current.id).then_some(it)
        });
        if let Some(planned) = planned {
            planned.calls_off_stop = true;
            return;
        }
        let relabel = Relabel {
            id: current.id.clone(),
            origin: current.origin.clone(),
            workload: Arc::clone(&target.workload),
            calls_off_stop: true,
        };
        let cause = Cause::Updated(vec!["a stop that was begun is called off".to_owned()]);
        self.plan.push(Some(name), Action::Update(Box::new(relabel)), cause, Vec::new());
    }

    /// What is missing for a start of this target, besides its donor.
    fn obstacle(&self, target: &Target<'a>) -> Option<Obstacle> {
        let no = |reason, message: String| Some(Obstacle { reason, message });
        if let Some(None) = self.orphans.get(target.id.stem()) {
            return no(
                "runtime-not-answering",
                "a task of it has no container object, and the runtime does not say how that task is".to_owned(),
            );
        }
        if !self.observed.missing_programs.is_empty() {
            let programs: Vec<_> =
                self.observed.missing_programs.iter().map(|it| format!("`{it}`")).collect();
            let (programs, is) =
                (programs.join(" and "), if programs.len() == 1 { "is" } else { "are" });
            return no(
                "runtime-missing",
                format!("{programs} {is} nowhere where containerd looks for programs"),
            );
        }
        if let Some(why) = &self.observed.cgroup_fault {
            return no("cgroup-failed", format!("no container can have a cgroup: {why}"));
        }
        if let Some(unknown) = self.stray_obstacle(target.id.stem()) {
            return Some(unknown);
        }
        let image = match &target.image {
            Some(image) if !self.is_to_be_made_from_what_is_gone(target, image) => {
                if self.is_to_be_checked(target) {
                    return Some(self.pull_obstacle(&image.name));
                }
                image
            }
            Some(image) if self.observed.images.contains_key(&image.name) => {
                let (name, digest) = (&image.name, short(&image.digest));
                return no(
                    "image-missing",
                    format!(
                        "image {name} is another one now than {digest}, which it was made from"
                    ),
                );
            }
            _ if !self.observed.unread_archives.is_empty() => {
                let unread = &self.observed.unread_archives;
                let unread: Vec<_> =
                    unread.iter().map(|it| format!("`{}`", it.display())).collect();
                return no(
                    "archive-unread",
                    format!(
                        "image {} may be in {}, which is still being read",
                        target.workload.spec.image.full(),
                        unread.join(" or ")
                    ),
                );
            }
            _ if self.can_pull(&target.workload) => {
                return Some(self.pull_obstacle(&target.workload.spec.image.full()));
            }
            _ => {
                let name = target.workload.spec.image.full();
                let never = match target.workload.spec.image_pull_policy {
                    ImagePullPolicy::Never if self.observed.has_registries => {
                        ", and `imagePullPolicy: never` pulls none"
                    }
                    ImagePullPolicy::Never
                    | ImagePullPolicy::Always
                    | ImagePullPolicy::IfNotPresent => "",
                };
                let mut broken = self.observed.archive_problems.join("; ");
                if !broken.is_empty() {
                    broken.insert_str(0, "; ");
                }
                return no(
                    "image-missing",
                    format!(
                        "image {name} is neither in containerd nor in an archive{never}{broken}"
                    ),
                );
            }
        };
        for mount in &target.workload.spec.mounts {
            let (MountKind::Bind, Some(source)) = (mount.kind, &mount.source) else { continue };
            match self.observed.mount_sources.get(source.as_path()) {
                None if !mount.create => {
                    let message = format!("bind source {source} does not exist");
                    return no("mount-source-missing", message);
                }
                Some(FileKind::Silent) => {
                    let message = format!(
                        "bind source {source} does not answer: whoever serves its file system may be gone"
                    );
                    return no("mount-source-silent", message);
                }
                None | Some(FileKind::Directory | FileKind::Other) => {}
            }
        }
        if let Some(why) = &self.observed.mounts_not_shared
            && matches!(target.ipc.shm, Shm::Published(_) | Shm::Donor)
        {
            return no("mounts-not-shared", why.clone());
        }
        if let Err(error) = oci::check(&target.workload, &image.config) {
            return no(error.reason, error.message);
        }
        self.donor_obstacle(&target.ipc.mode)
    }

    /// Whether a start has to make the instance, or its root file system, from an image that cannot be had. An image
    /// that no manifest names was not looked for, so nobody knows: it is tried.
    fn is_to_be_made_from_what_is_gone(&self, target: &Target<'a>, image: &Image) -> bool {
        let is_there = target.instance.is_some_and(|it| it.has_snapshot);
        !is_there && self.image_at_hand(image).is_none() && self.is_looked_for(&image.name)
    }

    fn is_looked_for(&self, image: &str) -> bool {
        let wanted = self.desired.workloads.values().filter_map(|it| it.workload.as_ref());
        wanted.into_iter().any(|it| it.spec.image.full() == image)
    }

    /// Why a joiner cannot join now.
    fn donor_obstacle(&self, mode: &IpcMode) -> Option<Obstacle> {
        let donor = mode.donor()?;
        match self.donors.get(donor) {
            Some(it) if it.ipc.is_joinable() => None,
            Some(_) => Some(Obstacle {
                reason: "donor-not-joinable",
                message: format!("its donor `{donor}` runs in a mode that cannot be joined"),
            }),
            None => Some(self.unjoinable.get(donor).cloned().unwrap_or_else(|| Obstacle {
                reason: "waiting-for-donor",
                message: if self.is_stopped_by_hand(donor) {
                    format!("its donor `{donor}` is stopped by hand")
                } else {
                    format!("its donor `{donor}` does not run")
                },
            })),
        }
    }

    /// Why a donor that runs cannot be replaced now: somebody runs in its namespace who could not follow it.
    fn joiners_obstacle(
        &self,
        name: &Name,
        donor: Option<&Instance>,
        target: &Target<'a>,
    ) -> Option<Obstacle> {
        // Nobody loses anything by the start of one that does not run.
        donor.filter(|it| it.task.pid().is_some() && target.ipc.is_joinable())?;
        let joiners = self.joiners.get(name).into_iter().flatten();
        for case in joiners.filter_map(|it| self.cases.get(it)) {
            let Some(current) = case.current.filter(|it| it.task.pid().is_some()) else { continue };
            if donor_of(current) != Some(name) {
                continue;
            }
            // It goes on as what it is when what is wanted cannot start. The donor itself is what this is about: it is
            // joinable in its wanted spec.
            let wanted = self.targets.get(case.name).map(Rc::clone);
            let applied = current.workload.as_ref().map(|it| Rc::new(Self::same(current, it)));
            let mut why = None;
            let mut ways = [wanted, applied].into_iter().flatten();
            let can = ways.any(|way| {
                let obstacle = self.obstacle(&way).filter(|it| !it.reason.contains("donor"));
                let is_free = obstacle.is_none();
                why = why.take().or(obstacle);
                is_free
            });
            if let Some(why) = why.filter(|_| !can) {
                return Some(Obstacle {
                    reason: "joiner-not-startable",
                    message: format!(
                        "its joiner `{}` could not be started again: {}",
                        case.name, why.message
                    ),
                });
            }
        }
        None
    }

    fn delays(&self, workload: &Workload) -> Delays {
        Delays::of(&workload.spec.restart.backoff, self.policy.delays)
    }

    /// Decides about one workload and writes its steps. `hold`: why it goes on as last applied.
    fn carry_out(
        &mut self,
        name: &Name,
        current: Option<&'a Instance>,
        target: &Target<'a>,
        hold: Option<Obstacle>,
    ) {
        let busy = self.exec_obstacle(current);
        let is_stopped = target.workload.spec.state == WantedState::Stopped;
        let by_manifest = is_stopped && busy.is_none();
        let hold = if is_stopped { hold.or_else(|| busy.clone()) } else { hold };
        let by_hand =
            (!by_manifest && self.is_stopped_by_hand(name)).then(|| Self::stopped_by_hand(name));
        let stopped = by_manifest || by_hand.is_some();
        // Both are told of a workload that is held and stopped.
        let hold = hold.map(|it| match &by_hand {
            Some(by_hand) => {
                Obstacle { message: format!("{}; {}", it.message, by_hand.message), ..it }
            }
            None => it,
        });
        let want = match (&hold, stopped) {
            (None, false) => Want::Running,
            (None, true) => Want::Stopped,
            (Some(_), false) => Want::HeldRunning,
            (Some(_), true) => Want::HeldStopped,
        };
        let same =
            target.instance.map(|it| &it.id) == current.map(|it| &it.id) && current.is_some();
        let have = current.map_or(Have::Nothing, have);
        let outdated = if same { current.and_then(|it| self.outdated(it, target)) } else { None };
        let asked = self.fit_by_hand(name, current);
        let fit = match (&outdated, current, asked) {
            (_, Some(_), _) if !same => Fit::Changed,
            (_, Some(_), Some(asked)) => asked,
            (Some(_), _, _) => Fit::Outdated,
            _ => Fit::Current,
        };
        let mut obstacle =
            self.obstacle(target).or_else(|| self.hand_obstacle(name, current, target, fit));
        let (again, until) = self.again(name, current, target, have, fit);
        let mut due = until;
        let mut ready = obstacle.is_none();
        if fit == Fit::Outdated && obstacle.is_none() {
            let donor = outdated.clone().unwrap_or_else(|| name.clone());
            if let Some(busy) = busy {
                ready = false;
                let message =
                    format!("its donor `{donor}` has another IPC namespace, but {}", busy.message);
                obstacle = Some(Obstacle { message, ..busy });
            } else if target.workload.spec.restart.on_donor_change == OnDonorChange::Keep {
                ready = false;
                obstacle = Some(Obstacle {
                    reason: "donor-changed",
                    message: format!(
                        "its donor `{donor}` has another IPC namespace; `onDonorChange: keep` leaves it"
                    ),
                });
            } else if let Some(at) =
                self.follows_at(current, target, &donor, name).filter(|at| *at > self.now)
            {
                ready = false;
                due = Some(at);
                obstacle = Some(Obstacle {
                    reason: "donor-changed",
                    message: format!(
                        "its donor `{donor}` has another IPC namespace; it follows soon"
                    ),
                });
            }
        }
        if !stopped
            && have == Have::Lost
            && let Some(why) = self.lives_on(current, ready, again, obstacle.as_ref())
        {
            self.stand(name, Phase::Waiting, Some(why), fit != Fit::Changed, current);
            return;
        }
        let decision = decide(want, have, fit, ready, again);
        let waits = matches!(decision, Decision::Wait(_) | Decision::FinishAndWait)
            || matches!(fit, Fit::Restart | Fit::Renew);
        if let Some(obstacle) = obstacle.as_ref().filter(|_| waits) {
            self.wait_for_image(name, target, obstacle);
        }
        let message = |o: &Option<Obstacle>, h: &Option<Obstacle>| h.clone().or_else(|| o.clone());
        match decision {
            Decision::Leave(phase) => {
                if let Some(current) = current.filter(|it| is_ending(it))
                    && (have, fit) == (Have::Running, Fit::Current)
                    && hold.is_none()
                {
                    self.call_off_stop(name, current, target);
                }
                if !stopped
                    && have == Have::Ended
                    && matches!(again, Again::Completed | Again::Failed)
                {
                    self.clear_step(name, current, target, None);
                }
                let remark = match (phase, &obstacle) {
                    (Phase::Running | Phase::Held, Some(it))
                        if matches!(it.reason, "donor-changed" | "exec-running") =>
                    {
                        obstacle.clone()
                    }
                    // Why a run that a person asked for does not begin.
                    (Phase::Running | Phase::Held, Some(_))
                        if matches!(fit, Fit::Restart | Fit::Renew) =>
                    {
                        obstacle.clone()
                    }
                    (Phase::Stopped, _) => by_hand.clone(),
                    (Phase::Completed, _) => {
                        Some(Obstacle { reason: "completed", message: String::new() })
                    }
                    (Phase::Failed, _) => Some(self.failure(name, current)),
                    _ => None,
                };
                let up_to_date = fit != Fit::Changed
                    && remark.as_ref().is_none_or(|it| it.reason != "donor-changed");
                self.stand(name, phase, hold.or(remark), up_to_date, current);
                if let Some(due) = due.filter(|_| fit == Fit::Outdated) {
                    self.wake_at(due);
                }
                match outdated {
                    // What it shares is nowhere to be joined: its donor publishes something else now.
                    Some(donor) => {
                        let why = Obstacle {
                            reason: "waiting-for-donor",
                            message: format!(
                                "its donor `{name}` is in an IPC namespace that its own donor `{donor}` has left"
                            ),
                        };
                        self.unjoinable.insert(name.clone(), why);
                    }
                    None if have == Have::Running => self.offer(name, current, target, None),
                    None => {}
                }
            }
            Decision::Wait(phase) => {
                let backing_off = again == Again::Later && obstacle.is_none();
                let remark = if have == Have::Unknown {
                    Some(Obstacle {
                        reason: "runtime-not-answering",
                        message: "the runtime does not say how it is; it is left alone".to_owned(),
                    })
                } else if backing_off {
                    Some(self.failure(name, current))
                } else {
                    message(&obstacle, &hold)
                };
                self.stand(name, phase, hold.clone().or(remark), fit != Fit::Changed, current);
                self.wait_until(name, due.filter(|_| backing_off));
            }
            Decision::Create
            | Decision::Start
            | Decision::Replace
            | Decision::Restart
            | Decision::Renew
            | Decision::FinishAndStart => {
                let anew = (decision == Decision::Renew).then(|| self.anew(target));
                let target = anew.as_ref().unwrap_or(target);
                let start = self.start_steps(name, current, target, decision, outdated.as_ref());
                let runs = current.filter(|it| it.task.pid().is_some());
                self.stand(name, Phase::Running, hold, true, runs.or(target.instance).or(current));
                self.offer(name, current, target, start);
            }
            Decision::Resume => {
                if let Some(current) = current {
                    let resume = Action::Resume { id: current.id.clone() };
                    let step = self.plan.push(Some(name), resume, Cause::Paused, Vec::new());
                    self.offer(name, Some(current), target, Some(step));
                }
                self.stand(name, Phase::Running, hold, fit == Fit::Current, current);
            }
            Decision::FinishAndWait => {
                self.finish_step(name, current, target);
                let remark = if again == Again::Later {
                    Some(self.failure(name, current))
                } else {
                    obstacle
                };
                let phase = if again == Again::Later { Phase::BackingOff } else { Phase::Waiting };
                // Its delay begins when its end is written down. Until then it is over in the same time from now on,
                // however often somebody looks, and who looks when it is over never stops.
                self.stand(name, phase, hold.or(remark), true, current);
            }
            Decision::FinishAs(phase) => {
                let finish = self.finish_step(name, current, target);
                if !stopped && matches!(again, Again::Completed | Again::Failed) {
                    self.clear_step(name, current, target, finish);
                }
                let remark = (phase == Phase::Failed).then(|| self.failure(name, current));
                self.stand(name, phase, hold.or(remark).or(by_hand), true, current);
            }
            Decision::Stop => {
                if let Some(current) = current {
                    let cause = match &by_hand {
                        Some(_) => Cause::ByHand(HandKind::Stop),
                        None => Cause::WantedStopped,
                    };
                    self.stop_step(name, current, &cause, Vec::new());
                }
                let why = hold.or(by_hand);
                self.stand(name, Phase::Stopped, why, fit == Fit::Current, current);
            }
            Decision::Remove => {}
        }
    }

    /// Whether the policy lets the target start, and when.
    fn again(
        &self,
        name: &Name,
        current: Option<&Instance>,
        target: &Target<'a>,
        have: Have,
        fit: Fit,
    ) -> (Again, Option<BootTime>) {
        let (again, due) = self.again_by_policy(name, current, target, have, fit);
        match (again, self.asked(name)) {
            // What a person asks for waits for no delay; what has run to its end has to be told to do so once more.
            (Again::Now | Again::Later | Again::Failed, Some(_)) => (Again::Now, None),
            _ => (again, due),
        }
    }

    fn again_by_policy(
        &self,
        name: &Name,
        current: Option<&Instance>,
        target: &Target<'a>,
        have: Have,
        fit: Fit,
    ) -> (Again, Option<BootTime>) {
        let delays = self.delays(&target.workload);
        let strikes = self.strikes_of(name, &target.revision, current, &delays);
        let late = |due: BootTime| {
            if due > self.now { (Again::Later, Some(due)) } else { (Again::Now, None) }
        };
        let by_strikes = || strikes.map_or((Again::Now, None), |it| late(it.due(&delays)));
        let Some(current) = current.filter(|_| fit != Fit::Changed) else {
            return by_strikes();
        };
        let (code, count_due) = match (have, &current.task, &current.end) {
            // Ended by us, which is written down; only the rest of that is missing.
            (Have::Exited, _, _) if was_stopped(current) => return by_strikes(),
            (Have::Exited | Have::Lost, _, _) if is_ending(current) => return by_strikes(),
            (Have::Exited, Task::Stopped { code, .. }, _) => (*code, true),
            (Have::Lost, _, _) => (255, true),
            // What was stopped on purpose did not end by itself.
            (Have::Ended, _, Some(end)) if end.reason == STOPPED => return by_strikes(),
            (Have::Ended, _, Some(end)) => (end.code, false),
            _ => return by_strikes(),
        };
        let restart = &target.workload.spec.restart;
        let run = current.run.as_ref();
        if restart.on_boot && run.is_some_and(|it| it.boot != self.observed.boot_id) {
            // A start of this boot that failed, and that could not be noted on the container, is counted all the same.
            return by_strikes();
        }
        let exhausted = restart.max_retries.is_some_and(|max| self.failures_after(current) > max);
        match restart.policy.unwrap_or(self.policy.restart) {
            RestartPolicy::Never | RestartPolicy::OnFailure if code == 0 => {
                (Again::Completed, None)
            }
            RestartPolicy::Never => (Again::Failed, None),
            RestartPolicy::OnFailure if exhausted => (Again::Failed, None),
            RestartPolicy::OnFailure | RestartPolicy::Always if count_due => {
                late(self.now + delays.after(self.strikes_after(name, current, target)))
            }
            RestartPolicy::OnFailure | RestartPolicy::Always => by_strikes(),
        }
    }

    /// Runs of this instance that failed, the one that just ended included.
    fn failures_after(&self, current: &Instance) -> u32 {
        let before = current.end.as_ref().map_or(0, |it| it.failures);
        if is_recorded(current) {
            return before;
        }
        let failed = match (have(current), &current.task) {
            _ if is_ending(current) || self.ended_by_hand(&current.name) => false,
            (Have::Exited, Task::Stopped { code, .. }) => *code != 0,
            // What a reboot took is no failure of the program.
            (Have::Lost, _) => {
                current.run.as_ref().is_some_and(|it| it.boot == self.observed.boot_id)
            }
            _ => false,
        };
        before.saturating_add(u32::from(failed))
    }

    /// Failures in a row once the run that just ended is counted.
    fn strikes_after(&self, name: &Name, current: &Instance, target: &Target<'a>) -> u32 {
        let delays = self.delays(&target.workload);
        let before = self.strikes_of(name, &current.revision, Some(current), &delays);
        let lasted = current
            .run
            .as_ref()
            .filter(|it| it.boot == self.observed.boot_id)
            .map(|it| it.lasted(self.now, ended_at(current)));
        // Counted already, by one who did not get to the end of it.
        if let Some(before) = before
            && before.run.is_some()
            && before.run == current.run.as_ref().map(|it| it.at)
        {
            return before.count;
        }
        if lasted.is_some_and(|it| it >= delays.reset_after) {
            return 1;
        }
        before.map_or(0, |it| it.count).saturating_add(1)
    }

    /// Failures in a row of this revision that still count after what `instance` has run since.
    fn strikes_of(
        &self,
        name: &Name,
        revision: &Revision,
        instance: Option<&Instance>,
        delays: &Delays,
    ) -> Option<&'a Strikes> {
        let strikes = self.strikes(name).filter(|it| it.revision == *revision);
        strikes.filter(|it| !self.has_lived(instance, it, delays))
    }

    /// Whether an instance has run long enough since these failures to start the delays anew, and did not end by
    /// itself: a run that does is counted when it ends.
    fn has_lived(&self, instance: Option<&Instance>, strikes: &Strikes, delays: &Delays) -> bool {
        let Some(instance) = instance.filter(|it| it.revision == strikes.revision) else {
            return false;
        };
        let run = instance.run.as_ref().filter(|it| it.boot == self.observed.boot_id);
        let Some(run) = run else { return false };
        let is_long = |lasted: Duration| lasted >= delays.reset_after;
        if instance.task.pid().is_some() && !is_recorded(instance) && strikes.at <= run.at {
            return is_long(self.now.since(run.at));
        }
        let Some(end) = instance.end.as_ref().filter(|it| it.reason == STOPPED) else {
            return false;
        };
        let lasted = Duration::from_millis(end.lasted_ms);
        // The one that was stopped is the last run, or the one before it.
        let ended = if end.n >= run.n { run.at + lasted } else { run.at };
        is_long(lasted) && strikes.at <= ended
    }

    fn failure(&self, name: &Name, current: Option<&Instance>) -> Obstacle {
        let strikes = self.observed.strikes.get(name);
        let boot = &self.observed.boot_id;
        let strikes =
            strikes.filter(|it| !current.is_some_and(|run| run.has_run_since(it.at, boot)));
        if let Some(failure) = strikes.and_then(|it| it.failure.as_ref()) {
            return Obstacle {
                reason: "start-failed",
                message: format!("{}: {}", failure.reason, failure.message),
            };
        }
        let task = current.map(|it| (&it.task, &it.end));
        match task {
            Some((Task::Stopped { code, .. }, _)) => {
                Obstacle { reason: "exited", message: format!("exited with code {code}") }
            }
            Some((_, Some(end))) if end.reason == "exited" => {
                Obstacle { reason: "exited", message: format!("exited with code {}", end.code) }
            }
            Some((_, Some(end))) if end.reason != "exit-unknown" => {
                Obstacle { reason: "start-failed", message: end.reason.clone() }
            }
            _ => Obstacle {
                reason: "exit-unknown",
                message: "its last run ended in an unknown way".to_owned(),
            },
        }
    }

    /// Whether a running joiner sits in another namespace or /dev/shm than its donor has: the donor's name.
    fn outdated(&self, current: &Instance, target: &Target<'a>) -> Option<Name> {
        let donor = target.ipc.mode.donor()?;
        current.task.pid()?;
        let root = self.donors.get(donor)?;
        if root.started_by.is_some() {
            // It gets a new namespace in this very plan.
            return Some(donor.clone());
        }
        let instance = self.observed.instances.get(&root.root)?;
        // Not readable is not outdated.
        let (mine, theirs) = (current.view?, instance.view?);
        let other_shm = target.ipc.shm == Shm::Donor && mine.shm != theirs.shm;
        (mine.ipc_ns != theirs.ipc_ns || other_shm).then(|| donor.clone())
    }

    /// When a joiner follows its donor: once the donor has run for its own first delay, and not more often than the
    /// joiner's own delay. `None`: the donor starts in this plan, and a pause stands before the step.
    fn follows_at(
        &self,
        current: Option<&Instance>,
        target: &Target<'a>,
        donor: &Name,
        name: &Name,
    ) -> Option<BootTime> {
        let root = self.donors.get(donor)?;
        let delays = self.delays(&target.workload);
        let count = self.observed.strikes.get(name).map_or(1, |it| it.count.max(1));
        let own = current
            .and_then(|it| it.run.as_ref())
            .filter(|it| it.boot == self.observed.boot_id)
            .map(|it| it.at + delays.after(count));
        let donors = root.since.map(|it| it + root.initial_delay);
        if root.started_by.is_some() { None } else { own.max(donors) }
    }

    /// The steps that end with the target running; the last of them.
    fn start_steps(
        &mut self,
        name: &Name,
        current: Option<&'a Instance>,
        target: &Target<'a>,
        decision: Decision,
        outdated: Option<&Name>,
    ) -> Option<StepId> {
        let image = target.image.clone()?;
        let boot = current.is_some_and(|it| {
            target.workload.spec.restart.on_boot
                && it.run.as_ref().is_some_and(|run| run.boot != self.observed.boot_id)
        });
        let by_hand = self.cause_by_hand(name);
        let cause = match (decision, current.map(have), outdated) {
            (Decision::Replace, _, _) => Cause::Changed(target.changes.clone()),
            _ if by_hand.is_some() => by_hand.unwrap_or(Cause::NotStarted),
            (Decision::Create, _, _) => Cause::Added,
            (Decision::Restart, _, Some(donor)) => Cause::DonorChanged { donor: donor.clone() },
            (_, Some(Have::Lost), _) => Cause::Lost,
            (_, Some(Have::Created), _) => Cause::Interrupted,
            (_, Some(Have::Exited | Have::Ended), _) if boot => Cause::Boot,
            (_, Some(Have::Exited | Have::Ended), _) => current.map_or(Cause::NotStarted, ended),
            _ => Cause::NotStarted,
        };
        let orphan = self.orphans.get(target.id.stem()).copied().flatten();
        let mut before: Vec<StepId> = orphan.into_iter().collect();
        before.extend(self.forget_strikes(name));
        let missing = target.instance.is_none_or(|it| !it.has_snapshot);
        if missing {
            if let ImagePlace::Archive(_) = image.place {
                let known = self.imports.get(&image.name).copied();
                let import = known.unwrap_or_else(|| {
                    let import = Action::Import { image: image.clone() };
                    self.plan.push(Some(name), import, cause.clone(), Vec::new())
                });
                self.imports.insert(image.name.clone(), import);
                before.push(import);
            }
            if let Some(current) = current.filter(|_| decision == Decision::Renew) {
                let mut requires = before.clone();
                requires.extend(self.end_strays(Some(name), target.id.stem(), before.clone()));
                requires.extend(self.donors_start(target));
                before = vec![remove_steps(&mut self.plan, current, &cause, requires, None)];
            }
            let origin = self.desired.workloads.get(name).map(|it| it.origin.clone());
            let prepare = Prepare {
                id: target.id.clone(),
                revision: target.revision.clone(),
                origin: origin.or_else(|| current.map(|it| it.origin.clone()))?,
                workload: Arc::clone(&target.workload),
                defaults: target.defaults.clone(),
                image: image.clone(),
                snapshot_only: target.instance.is_some(),
            };
            let why =
                if target.instance.is_some() { Cause::SnapshotMissing } else { cause.clone() };
            before =
                vec![self.plan.push(Some(name), Action::Prepare(Box::new(prepare)), why, before)];
        }
        // Not before there is something to take its place.
        before.extend(self.end_strays(Some(name), target.id.stem(), before.clone()));
        // A joiner's process must not outlive the start of its donor into the wrong namespace.
        let donor = target.ipc.mode.donor().and_then(|it| self.donors.get(it)).cloned();
        let pause = match (&donor, decision) {
            (Some(donor), Decision::Restart) if donor.started_by.is_some() => donor.initial_delay,
            _ => Duration::ZERO,
        };
        if let Some(current) = current.filter(|_| decision != Decision::Renew) {
            match (decision, have(current)) {
                (_, Have::Running | Have::Paused) => {
                    let mut requires = before.clone();
                    requires.extend(donor.as_ref().and_then(|it| it.started_by));
                    let stop = self.stop_step(name, current, &cause, requires);
                    if let Some(step) = self.plan.steps.get_mut(stop.0) {
                        step.pause = pause;
                    }
                    before = vec![stop];
                }
                (_, Have::Exited | Have::Lost | Have::Created) => {
                    let stray = self.strays.get(current.id.stem()).copied();
                    before.push(self.finish_with(
                        name,
                        current,
                        target,
                        stray.into_iter().collect(),
                    ));
                }
                (_, Have::Nothing | Have::Unstarted | Have::Ended | Have::Unknown) => {}
            }
        }
        before.extend(donor.as_ref().and_then(|it| it.started_by));
        let start = self.start(name, target, &image, donor.as_ref());
        before.sort_unstable();
        before.dedup();
        let started = self.plan.push(Some(name), Action::Start(Box::new(start)), cause, before);
        if decision == Decision::Replace
            && let Some(current) = current
        {
            let by = Cause::Superseded { by: target.id.clone() };
            let remove = Action::Remove { id: current.id.clone(), by_absence: None };
            self.plan.push(Some(name), remove, by, vec![started]);
        }
        Some(started)
    }

    /// The step after which the donor of a target runs, if it does not run yet.
    fn donors_start(&self, target: &Target<'a>) -> Option<StepId> {
        self.donors.get(target.ipc.mode.donor()?)?.started_by
    }

    fn start(
        &self,
        name: &Name,
        target: &Target<'a>,
        image: &Image,
        donor: Option<&Donor>,
    ) -> Start {
        let owner = donor.map_or(&target.id, |it| &it.root);
        let published = published_paths(&self.policy.run_directory, owner);
        let blueprint = Blueprint {
            workload: Arc::clone(&target.workload),
            ipc: target.ipc.clone(),
            image: image.config.clone(),
            cgroup_parent: self.policy.cgroup_parent.clone(),
            published,
            host_files: self.host_files.clone(),
            oom_score_adj: self.observed.oom_score_adj,
        };
        let namespace = match &target.ipc.mode {
            IpcMode::None | IpcMode::Private | IpcMode::Shareable => ExpectNamespace::Own,
            IpcMode::Host => ExpectNamespace::Host,
            IpcMode::Container(_) => ExpectNamespace::Of(owner.clone()),
        };
        let (shm, publish) = match target.ipc.shm {
            Shm::Absent => (ExpectShm::Absent, None),
            Shm::Runtime(_) => (ExpectShm::Own, None),
            Shm::Published(size) => (ExpectShm::Of(target.id.clone()), Some(size)),
            Shm::Host => (ExpectShm::Host, None),
            Shm::Donor => (ExpectShm::Of(owner.clone()), None),
            Shm::User => (ExpectShm::Any, None),
        };
        let own = &target.workload.spec.log;
        let log = match own.driver.unwrap_or_default() {
            LogDriver::None => Log::None,
            LogDriver::Files => Log::Files {
                directory: self.policy.log_directory.join(target.id.as_str()),
                max_size: own.max_size.unwrap_or(self.policy.log.max_size),
                max_files: own.max_files.unwrap_or(self.policy.log.max_files),
            },
        };
        let mounts = &target.workload.spec.mounts;
        let make_directories = mounts
            .iter()
            .filter(|it| it.kind == MountKind::Bind && it.create)
            .filter_map(|it| it.source.as_ref())
            .filter(|it| !self.observed.mount_sources.contains_key(it.as_path()))
            .map(|it| it.as_path().to_owned())
            .collect();
        let delays = self.delays(&target.workload);
        let strikes = self.strikes_of(name, &target.revision, target.instance, &delays);
        Start {
            id: target.id.clone(),
            revision: target.revision.clone(),
            run: target.instance.and_then(|it| it.run.as_ref()).map_or(0, |it| it.n) + 1,
            order: self.cases.get(name).map_or(0, Case::last_order) + 1,
            image_unchecked: self.why_unchecked(target),
            blueprint: Box::new(blueprint),
            publish,
            expect: Expect { namespace, shm },
            donors: donor
                .map(|it| [it.through.as_slice(), std::slice::from_ref(&it.root)].concat())
                .unwrap_or_default(),
            log,
            make_directories,
            strikes_if_failed: strikes.map_or(0, |it| it.count).saturating_add(1),
            failures_if_failed: target
                .instance
                .map_or(0, |it| self.failures_after(it))
                .saturating_add(1),
            before: target.instance.and_then(last_exit),
            origin: None,
            workload: None,
        }
    }

    fn stop_step(
        &mut self,
        name: &Name,
        current: &Instance,
        cause: &Cause,
        requires: Vec<StepId>,
    ) -> StepId {
        let mut stop = stop_of(current);
        // What runs has promised its program a time. A newer manifest may cut that short, which is the only way out of
        // `never`, and does not prolong it.
        let newer = self.desired.workloads.get(name).and_then(|it| it.workload.as_ref());
        if let Some(timeout) = newer.and_then(|it| it.spec.stop.timeout) {
            stop.timeout = stop.timeout.sooner(timeout);
        }
        self.plan.push(Some(name), Action::Stop(stop), cause.clone(), requires)
    }

    fn finish_step(
        &mut self,
        name: &Name,
        current: Option<&'a Instance>,
        target: &Target<'a>,
    ) -> Option<StepId> {
        current.map(|it| {
            // A run that is written down as over is over.
            let stray = self.end_strays(Some(name), it.id.stem(), Vec::new());
            self.finish_with(name, it, target, stray.into_iter().collect())
        })
    }

    /// Removes what the last run has left, if that is wanted; the container object keeps saying how it ended.
    fn clear_step(
        &mut self,
        name: &Name,
        current: Option<&Instance>,
        target: &Target<'a>,
        finish: Option<StepId>,
    ) {
        let Some(current) = current else { return };
        if target.workload.spec.remove_on_exit && current.has_snapshot && target.id == current.id {
            let clear = Action::Clear { id: current.id.clone() };
            self.plan.push(Some(name), clear, Cause::RemoveOnExit, finish.into_iter().collect());
        }
    }

    fn finish_with(
        &mut self,
        name: &Name,
        current: &'a Instance,
        target: &Target<'a>,
        mut requires: Vec<StepId>,
    ) -> StepId {
        // What this run counts is counted after that.
        requires.extend(self.forget_strikes(name));
        let created = matches!(current.task, Task::Created { .. });
        let exit = match &current.task {
            Task::Stopped { code, at } => Some((*code, at.clone())),
            Task::None
            | Task::Created { .. }
            | Task::Running { .. }
            | Task::Paused { .. }
            | Task::Unknown => None,
        };
        let cause = if created { Cause::Interrupted } else { ended(current) };
        let run = current.run.as_ref().filter(|it| it.boot == self.observed.boot_id);
        let finish = Finish {
            id: current.id.clone(),
            revision: current.revision.clone(),
            run: match &current.run {
                _ if was_stopped(current) => 0,
                // Without an end it would be taken for a run that nobody saw end, once its process is gone.
                Some(run) if created && !has_ended(current, run.n) => run.n,
                _ if created => 0,
                run => run.as_ref().map_or(1, |it| it.n),
            },
            exit,
            never_ran: created,
            before: last_exit(current).filter(|_| created),
            stopped: is_ending(current),
            started: run.map(|it| it.at),
            lasted: run.map_or(Duration::ZERO, |it| it.lasted(self.now, ended_at(current))),
            // A start that was cut off is no failure of the program. What is replaced is tried again if its successor
            // cannot start after all.
            strikes: if created
                || was_stopped(current)
                || is_ending(current)
                || self.ended_by_hand(name)
            {
                0
            } else {
                self.strikes_after(name, current, target)
            },
            failures: self.failures_after(current),
        };
        self.plan.push(Some(name), Action::Finish(finish), cause, requires)
    }

    /// Makes a workload known to its joiners, as running already or after a step.
    fn offer(
        &mut self,
        name: &Name,
        current: Option<&Instance>,
        target: &Target<'a>,
        started_by: Option<StepId>,
    ) {
        let resumed = started_by.is_some_and(|it| {
            matches!(self.plan.steps.get(it.0).map(|it| &it.action), Some(Action::Resume { .. }))
        });
        let runs = started_by.is_none() || resumed;
        let instance = if runs { current } else { target.instance };
        let id = if runs { current.map_or(&target.id, |it| &it.id) } else { &target.id };
        let mut donor = Donor {
            root: id.clone(),
            through: Vec::new(),
            started_by: if resumed { None } else { started_by },
            since: instance.filter(|_| runs).and_then(|it| it.run.as_ref()).map(|it| it.at),
            initial_delay: self.delays(&target.workload).initial,
            ipc: target.ipc.clone(),
        };
        if runs
            && let Some(current) = current
            && let Some(why) = self.vanished(name, current, &donor.ipc)
        {
            self.unjoinable.insert(name.clone(), why);
            return;
        }
        // Joiners of a joiner use the paths of the root.
        if let Some(root) = target.ipc.mode.donor() {
            let Some(root) = self.donors.get(root) else { return };
            let own = std::mem::replace(&mut donor.root, root.root.clone());
            donor.through = [&[own], root.through.as_slice()].concat();
            donor.started_by = donor.started_by.or(root.started_by);
        }
        self.donors.insert(name.clone(), donor);
    }

    /// Why a running donor cannot be joined, whatever its mode says: somebody has unmounted what it publishes. Its
    /// namespace is pinned again; its /dev/shm comes back with its next start.
    fn vanished(&mut self, name: &Name, current: &Instance, ipc: &Ipc) -> Option<Obstacle> {
        let published = &current.published;
        // Not readable is not gone.
        let is_other = |own: Option<u64>, theirs: Option<u64>| {
            theirs.is_none() || own.is_some_and(|own| theirs != Some(own))
        };
        let (own_ns, own_shm) =
            (current.view.map(|it| it.ipc_ns), current.view.and_then(|it| it.shm));
        let no_shm = is_other(own_shm, published.shm);
        let no_ns = !published.ns || is_other(own_ns, published.ns_inode);
        if !matches!(ipc.shm, Shm::Published(_)) || !no_shm && !no_ns {
            return None;
        }
        let (what, way_out) = if no_shm {
            ("/dev/shm", "it can be joined again once it was restarted")
        } else {
            ("IPC namespace", "it is put back")
        };
        if !no_shm
            && self.observed.mounts_not_shared.is_none()
            && let Some(pid) = current.task.pid()
        {
            let publish = Action::Publish { id: current.id.clone(), pid };
            self.plan.push(Some(name), publish, Cause::PinLost, Vec::new());
        }
        Some(Obstacle {
            reason: "donor-vanished",
            message: format!(
                "the {what} of its donor `{name}` is not mounted any more where it was published; {way_out}"
            ),
        })
    }

    /// Removes instances that nothing needs any more; `first` is the first step that was planned for the workload.
    fn remove_superseded(
        &mut self,
        current: Option<&'a Instance>,
        others: &[&'a Instance],
        first: StepId,
    ) {
        let Some(current) = current else { return };
        // A job has taken its predecessor's place with its run, also when it has ended since.
        let has_run = current.end.as_ref().is_some_and(|it| it.reason == EXITED);
        let runs = current.task.pid().is_some() || has_run;
        for instance in others {
            let planned = self.plan.steps.get(first.0..).unwrap_or_default();
            if planned.iter().any(|it| it.action.instance() == Some(&instance.id)) {
                continue;
            }
            if self.exec_obstacle(Some(instance)).is_some() {
                continue;
            }
            // What ran before is kept until what replaces it runs.
            if runs || instance.run.is_none() || instance.task.pid().is_some() {
                let cause = Cause::Superseded { by: current.id.clone() };
                remove_steps(&mut self.plan, instance, &cause, Vec::new(), None);
            }
        }
    }

    /// Removals, joiners before donors.
    fn plan_removals(&mut self) {
        let leaving: BTreeMap<&Name, (Cause, Option<ByAbsence>)> = self
            .cases
            .values()
            .filter_map(|case| match &case.wish {
                Wish::Remove { cause, by_absence } => {
                    Some((case.name, (cause.clone(), by_absence.clone())))
                }
                Wish::Follow(..) | Wish::Keep { .. } | Wish::Unclaimed | Wish::Invalid => None,
            })
            .collect();
        let strays: BTreeMap<&Name, Option<StepId>> = leaving
            .keys()
            .map(|name| {
                (*name, self.end_strays(Some(name), &InstanceId::stem_of(name), Vec::new()))
            })
            .collect();
        let instances: Vec<&'a Instance> = leaving
            .keys()
            .filter_map(|name| self.cases.get(*name))
            .flat_map(|case| case.others.iter().copied().chain(case.current))
            .collect();
        let mut joiners: BTreeMap<&Name, Vec<StepId>> = BTreeMap::new();
        let mut counted = BTreeSet::new();
        for instance in donors_last(&instances) {
            let name = &instance.name;
            let Some((cause, by_absence)) = leaving.get(name) else { continue };
            if instance.task == Task::Unknown {
                let why = Obstacle {
                    reason: "runtime-not-answering",
                    message: "the runtime does not say how it is; it is left alone".to_owned(),
                };
                self.stand(name, Phase::Stopping, Some(why), false, Some(instance));
                continue;
            }
            // Several instances of one workload are one removal.
            let by_absence = by_absence.clone().filter(|_| counted.insert(name));
            let mut before = joiners.get(name).cloned().unwrap_or_default();
            before.extend(strays.get(name).copied().flatten());
            let step = remove_steps(&mut self.plan, instance, cause, before, by_absence);
            if let Some(donor) = donor_of(instance) {
                joiners.entry(donor).or_default().push(step);
            }
            let why = Obstacle { reason: "removing", message: cause.to_string() };
            self.stand(name, Phase::Stopping, Some(why), false, Some(instance));
        }
        for name in leaving.into_keys() {
            if self.desired.workloads.contains_key(name) && !self.plan.standings.contains_key(name)
            {
                let absent = Obstacle { reason: "absent", message: String::new() };
                self.stand(name, Phase::Stopped, Some(absent), true, None);
            }
        }
    }

    /// Lists a removal that a person can release.
    fn hold_releasable(&mut self, name: &Name, current: &Instance, hold: &Obstacle) {
        let by_absence = !self.desired.workloads.contains_key(name);
        if !by_absence
            || matches!(
                hold.reason,
                "donor-in-use" | "removal-pending" | "source-is-a-file" | "exec-running"
            )
        {
            return;
        }
        let approval = Approval { name: name.clone(), instance: current.id.clone() };
        let source = &current.origin.source;
        match self.plan.holds.iter_mut().find(|it| it.source == *source && it.code == hold.reason) {
            Some(group) => {
                group.removals.insert(approval);
                group.token = token(&group.removals);
            }
            None => {
                let removals = BTreeSet::from([approval]);
                self.plan.holds.push(Hold {
                    token: token(&removals),
                    code: hold.reason,
                    message: hold.message.clone(),
                    source: source.clone(),
                    removals,
                });
            }
        }
    }

    fn stand(
        &mut self,
        name: &Name,
        phase: Phase,
        why: Option<Obstacle>,
        up_to_date: bool,
        instance: Option<&Instance>,
    ) {
        let (reason, message) = why.map_or(("", String::new()), |it| (it.reason, it.message));
        let standing = Standing {
            phase,
            reason,
            message,
            up_to_date,
            instance: instance.map(|it| it.id.clone()),
            until: None,
        };
        self.plan.standings.insert(name.clone(), standing);
    }

    /// Says why what runs is not what is wanted.
    fn remark(&mut self, name: &Name, why: Obstacle) {
        if let Some(standing) = self.plan.standings.get_mut(name) {
            standing.reason = why.reason;
            standing.message = why.message;
            standing.up_to_date = false;
        }
    }

    fn wait_until(&mut self, name: &Name, until: Option<BootTime>) {
        if let Some(until) = until {
            if let Some(standing) = self.plan.standings.get_mut(name) {
                standing.until = Some(until);
            }
            self.wake_at(until);
        }
    }

    /// What was due before waits for something else than time.
    fn wake_at(&mut self, at: BootTime) {
        if at > self.now {
            self.plan.wake = Some(self.plan.wake.map_or(at, |it| it.min(at)));
        }
    }
}

/// The end of the last run is written down.
fn is_recorded(instance: &Instance) -> bool {
    let run = instance.run.as_ref().map_or(1, |it| it.n);
    instance.end.as_ref().is_some_and(|end| end.n >= run)
}

/// The last run was ended by us, and that is written down.
fn was_stopped(instance: &Instance) -> bool {
    is_recorded(instance) && instance.end.as_ref().is_some_and(|it| it.reason == STOPPED)
}

/// Its last run is being ended on purpose, or was when somebody died who was at it.
fn is_ending(instance: &Instance) -> bool {
    instance.ending == Some(instance.run.as_ref().map_or(1, |it| it.n))
}

/// What is there of a workload, from its instance.
fn have(instance: &Instance) -> Have {
    match (&instance.task, &instance.run) {
        (Task::Unknown, _) => Have::Unknown,
        (Task::Created { .. }, _) => Have::Created,
        (Task::Running { .. }, _) => Have::Running,
        (Task::Paused { .. }, _) => Have::Paused,
        (Task::Stopped { .. }, _) => Have::Exited,
        (Task::None, None) => Have::Unstarted,
        (Task::None, Some(run)) if has_ended(instance, run.n) => Have::Ended,
        (Task::None, Some(_)) => Have::Lost,
    }
}

/// Whether the end of the n-th run is written down.
fn has_ended(instance: &Instance, run: u64) -> bool {
    instance.end.as_ref().is_some_and(|end| end.n >= run)
}

fn ended(instance: &Instance) -> Cause {
    match (&instance.task, &instance.end) {
        (Task::Stopped { code, .. }, _) => Cause::Ended { code: *code },
        (Task::None, Some(end)) if instance.run.as_ref().is_some_and(|run| run.n <= end.n) => {
            Cause::Ended { code: end.code }
        }
        _ => Cause::Lost,
    }
}

fn stop_of(instance: &Instance) -> StopInstance {
    let workload = instance.workload.as_deref();
    // A start that was cut off before its run was noted: an end of it would be taken for that of the run to come.
    let is_unnoted = matches!(instance.task, Task::Created { .. })
        && instance.run.as_ref().is_none_or(|run| has_ended(instance, run.n));
    StopInstance {
        id: instance.id.clone(),
        signal: stop_signal(workload, &instance.image.config),
        timeout: workload.and_then(|it| it.spec.stop.timeout).unwrap_or(DEFAULT_STOP_TIMEOUT),
        paused: matches!(instance.task, Task::Paused { .. }),
        pid: instance.task.pid(),
        run: if is_unnoted { 0 } else { instance.run.as_ref().map_or(1, |it| it.n) },
        note: !is_ending(instance) && !matches!(instance.task, Task::Stopped { .. }),
        // What was created and not started has not run for as long as it stood there.
        started: (instance.run.as_ref())
            .filter(|_| !matches!(instance.task, Task::Created { .. }))
            .map(|it| it.at),
        failures: instance.end.as_ref().map_or(0, |it| it.failures),
    }
}

/// When the process ended that is still known.
fn ended_at(instance: &Instance) -> Option<&str> {
    match &instance.task {
        Task::Stopped { at, .. } => Some(at),
        Task::None
        | Task::Created { .. }
        | Task::Running { .. }
        | Task::Paused { .. }
        | Task::Unknown => None,
    }
}

/// How the last process of an instance ended, once it is recorded.
fn last_exit(instance: &Instance) -> Option<Exit> {
    match &instance.task {
        Task::Stopped { code, at } => {
            Some(Exit { code: *code, reason: EXITED.to_owned(), at: at.clone() })
        }
        Task::None
        | Task::Created { .. }
        | Task::Running { .. }
        | Task::Paused { .. }
        | Task::Unknown => instance.end.as_ref()?.exit(),
    }
}

/// Stops what runs, then removes everything; the last step.
fn remove_steps(
    plan: &mut Plan,
    instance: &Instance,
    cause: &Cause,
    mut requires: Vec<StepId>,
    by_absence: Option<ByAbsence>,
) -> StepId {
    let name = Some(&instance.name);
    if !matches!(instance.task, Task::None) {
        requires = vec![plan.push(name, Action::Stop(stop_of(instance)), cause.clone(), requires)];
    }
    plan.push(name, Action::Remove { id: instance.id.clone(), by_absence }, cause.clone(), requires)
}

/// Whom an instance was made to join.
fn donor_of(instance: &Instance) -> Option<&Name> {
    instance.workload.as_ref()?.spec.ipc_mode.as_ref()?.donor()
}

/// Joiners before what they join, otherwise by ID.
fn donors_last<'a>(instances: &[&'a Instance]) -> Vec<&'a Instance> {
    let donors: BTreeMap<&Name, Option<&Name>> =
        instances.iter().map(|it| (&it.name, donor_of(it))).collect();
    let depth = |it: &Instance| {
        let mut depth = 0_usize;
        let mut next = donor_of(it);
        // A chain cannot be longer than there are instances.
        while let Some(name) = next.filter(|_| depth <= instances.len()) {
            depth += 1;
            next = donors.get(name).copied().flatten();
        }
        depth
    };
    let mut sorted: Vec<(usize, &'a Instance)> =
        instances.iter().map(|it| (depth(it), *it)).collect();
    sorted.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.id.cmp(&b.1.id)));
    sorted.into_iter().map(|it| it.1).collect()
}

/// Steps for what no instance owns.
/// Those of pulls are not left behind: what has come so far is kept under them.
fn sweep(
    plan: &mut Plan,
    observed: &ObservedState,
    pulls: &BTreeSet<String>,
    gone: impl Fn(&Name) -> bool,
) {
    for leftover in &observed.leftovers {
        if let Leftover::Lease(id) = leftover
            && pulls.contains(id)
        {
            continue;
        }
        if let Leftover::Strikes(name) = leftover
            && !gone(name)
        {
            continue;
        }
        let cause = match leftover {
            Leftover::Exec(..) => Cause::ExecKilled,
            Leftover::Lease(_)
            | Leftover::Snapshot(_)
            | Leftover::Published(_)
            | Leftover::Logs(_)
            | Leftover::Strikes(_)
            | Leftover::Approval(_)
            | Leftover::Hand(..) => Cause::Leftover,
        };
        plan.push(None, Action::Sweep(leftover.clone()), cause, Vec::new());
    }
}

/// The first hex digits of a digest, for people.
fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

/// 8 hex digits that stand for exactly this set.
fn token(removals: &BTreeSet<Approval>) -> String {
    let mut digest = Sha256::new();
    for it in removals {
        digest.update(format!("{} {}\n", it.name, it.instance));
    }
    hex(&digest.finalize()[..4])
}
