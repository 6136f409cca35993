//! What is told to people and programs: the status document, exit codes, and how an error is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backoff::Failure;
use crate::desired::{BootTime, DesiredState, Origin};
use crate::manifest::{Problem, Severity};
use crate::observed::{End, Instance, ObservedState, Progress};
use crate::plan::{Phase, Plan, Step};
use crate::refusal;
use crate::workload::{InstanceId, Name, Shm};

mod event;
pub mod trouble;

pub use event::{Event, EventKind, EventType, Standings};

/// Prints an error with its causes, `outer: middle: inner`; the only way an error is shown.
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

/// The exit codes of every command; of several that apply, the first in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command line or the configuration is wrong.
    Usage,
    /// containerd, rights, lock: the surroundings do not allow it.
    Environment,
    /// There are problems in manifests.
    Problems,
    /// Not everything is as wanted.
    NotConverged,
    /// `plan`: there are changes.
    Changes,
    Success,
    /// `exec`: whatever the process ended with.
    Process(u8),
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Environment => 3,
            Self::Problems => 1,
            Self::NotConverged => 4,
            Self::Changes => 5,
            Self::Success => 0,
            Self::Process(code) => code,
        }
    }
}

/// What `status --output json` prints, and what the controller keeps in `<run>/status.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub api_version: String,
    /// `Status`.
    pub kind: String,
    /// Who wrote it; absent when no controller runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<ControllerStatus>,
    pub runtime: RuntimeStatus,
    pub sources: Vec<SourceStatus>,
    pub holds: Vec<HoldStatus>,
    pub items: Vec<Item>,
    /// Images that come from their registries just now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pulls: Vec<PullStatus>,
    /// Problems that belong to no workload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ProblemStatus>,
}

/// An image that comes from its registry just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullStatus {
    /// Its full name.
    pub image: String,
    /// Bytes of its layers that are there, as they come: compressed.
    pub done: u64,
    /// Of so many; 0: not known yet.
    pub total: u64,
}

/// The process that keeps the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ControllerStatus {
    pub pid: u32,
    pub version: String,
    /// RFC 3339.
    pub started_at: String,
    /// When the status last changed, RFC 3339.
    pub updated_at: String,
}

/// How the runtime answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeStatus {
    /// `ready` or `unreachable`.
    pub state: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How a source of manifests stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    pub path: String,
    /// `ready`, or `held`: nothing of it is removed.
    pub state: String,
    /// A stable code; empty while ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The file that holds it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
}

/// Removals that wait for `approve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoldStatus {
    pub token: String,
    pub reason: String,
    pub message: String,
    pub source: String,
    pub removals: Vec<crate::observed::Approval>,
}

/// One workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<OriginStatus>,
    pub phase: Phase,
    /// A stable kebab-case code; absent when there is nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub up_to_date: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipc: Option<IpcStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ExitStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_failure: Option<FailureStatus>,
    /// When it is tried next, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_retry_at: Option<String>,
    /// While a step of it fails: a digest of what that was tried for, the manifest and what a person asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ProblemStatus>,
}

/// Where a workload's document stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OriginStatus {
    pub source: String,
    pub file: String,
    pub document: usize,
}

impl From<&Origin> for OriginStatus {
    fn from(origin: &Origin) -> Self {
        Self {
            source: origin.source.to_string(),
            file: origin.file.display().to_string(),
            document: origin.document,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    pub restarts: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// With `imagePullPolicy: always`: why it could not be checked before this start whether its name stands for another
    /// image now, so that it runs what was there; a stable kebab-case code and a message. Absent: it was, or had not to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_unchecked: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IpcStatus {
    pub mode: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub donor: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExitStatus {
    pub code: u32,
    pub reason: String,
    pub at: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailureStatus {
    pub code: u32,
    pub reason: String,
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
    pub at: String,
}

impl From<&Failure> for FailureStatus {
    fn from(failure: &Failure) -> Self {
        Self {
            code: failure.code,
            reason: failure.reason.clone(),
            message: failure.message.clone(),
            advice: refusal::of(&failure.reason).advice.to_owned(),
            at: failure.at.clone(),
        }
    }
}

/// Of a start that failed: the words of that are not kept, but their sense.
impl From<&End> for FailureStatus {
    fn from(end: &End) -> Self {
        let message = format!("its last start failed: {}", end.reason);
        let advice = refusal::of(&end.reason).advice.to_owned();
        Self { code: end.code, reason: end.reason.clone(), message, advice, at: end.at.clone() }
    }
}

/// A problem as `validate --output json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProblemStatus {
    pub file: String,
    pub line: u32,
    pub column: u32,
    /// `error` or `warning`.
    pub severity: String,
    pub code: String,
    pub pointer: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl From<&Problem> for ProblemStatus {
    fn from(problem: &Problem) -> Self {
        let severity = match problem.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        Self {
            file: problem.position.file.display().to_string(),
            line: problem.position.line,
            column: problem.position.column,
            severity: severity.to_owned(),
            code: problem.code.to_owned(),
            pointer: problem.pointer.clone(),
            message: problem.message.clone(),
            hint: problem.hint.clone(),
            fix: problem.fix.clone(),
        }
    }
}

/// What the status is made of besides the plan and its inputs.
#[derive(Debug, Clone, Default)]
pub struct Around {
    pub controller: Option<ControllerStatus>,
    pub runtime: RuntimeStatus,
    pub now: BootTime,
    /// Turns a time since boot into the wall clock's.
    pub wall_clock_of: BTreeMap<BootTime, String>,
}

/// How everything stands, once the plan's steps are taken for under way.
pub fn status(
    desired: &DesiredState,
    observed: &ObservedState,
    plan: &Plan,
    around: &Around,
) -> Status {
    let sources = desired
        .sources
        .iter()
        .map(|(source, state)| match state.blockers.first() {
            None => SourceStatus {
                path: source.to_string(),
                state: "ready".to_owned(),
                reason: String::new(),
                message: String::new(),
                file: String::new(),
            },
            Some(blocker) => SourceStatus {
                path: source.to_string(),
                state: "held".to_owned(),
                reason: blocker.code.to_owned(),
                message: blocker.message.clone(),
                file: blocker.path.display().to_string(),
            },
        })
        .collect();
    let holds = plan
        .holds
        .iter()
        .map(|hold| HoldStatus {
            token: hold.token.clone(),
            reason: hold.code.to_owned(),
            message: hold.message.clone(),
            source: hold.source.to_string(),
            removals: hold.removals.iter().cloned().collect(),
        })
        .collect();
    let by_name = ByName::of(desired, observed, plan);
    let problems = desired
        .problems
        .iter()
        .filter(|it| owner(it, desired).is_none_or(|it| !plan.standings.contains_key(it)));
    let broken = observed.broken_hands.iter().map(|(path, why)| broken_hand(path, why));
    let pulls = observed.pulls.iter().filter_map(|(image, it)| {
        let Progress { done, total } = it.under_way?;
        Some(PullStatus { image: image.clone(), done, total })
    });
    let items = plan
        .standings
        .keys()
        .map(|name| item(name, desired, observed, plan, around, &by_name))
        .collect();
    Status {
        api_version: crate::workload::API_VERSION.to_owned(),
        kind: "Status".to_owned(),
        controller: around.controller.clone(),
        runtime: runtime(observed, plan, around),
        sources,
        holds,
        items,
        pulls: pulls.collect(),
        problems: problems.map(ProblemStatus::from).chain(broken).collect(),
    }
}

/// How the runtime answers, and what it has lost that no workload's item tells of.
fn runtime(observed: &ObservedState, plan: &Plan, around: &Around) -> RuntimeStatus {
    let mut runtime = around.runtime.clone();
    if !runtime.message.is_empty() {
        return runtime;
    }
    let stems: BTreeSet<String> = plan.standings.keys().map(InstanceId::stem_of).collect();
    let unknown = observed.strays.iter().filter(|(id, _)| !stems.contains(id.stem()));
    let alive = unknown.filter(|it| !it.1.pids.is_empty()).map(|it| format!("`{}`", it.0));
    let alive: Vec<String> = alive.collect();
    runtime.message = match (&observed.strays_unknown, alive.as_slice()) {
        (Some(why), _) => {
            format!(
                "it is not known what runs without containerd's knowledge, so nothing is started: {why}"
            )
        }
        (None, []) => String::new(),
        (None, alive) => {
            format!(
                "it has lost what still runs and belongs to no known workload: {}",
                alive.join(", ")
            )
        }
    };
    runtime
}

/// A wish of a person that cannot be understood. A warning: no manifest is wrong, and all goes on as if nobody had
/// asked.
fn broken_hand(path: &Path, why: &str) -> ProblemStatus {
    ProblemStatus {
        file: path.display().to_string(),
        line: 0,
        column: 0,
        severity: "warning".to_owned(),
        code: "wish-unreadable".to_owned(),
        pointer: String::new(),
        message: format!(
            "what a person asked for here cannot be read, and counts for nothing; ask again, or remove the file: {why}"
        ),
        hint: None,
        fix: None,
    }
}

/// The workload in whose document a problem stands.
fn owner<'a>(problem: &'a Problem, desired: &DesiredState) -> Option<&'a Name> {
    problem.workload.as_ref().filter(|it| desired.workloads.contains_key(*it))
}

/// What belongs to each workload, gathered once: looking for it would take the square of the time.
#[derive(Default)]
struct ByName<'a> {
    instances: BTreeMap<&'a Name, Vec<&'a Instance>>,
    steps: BTreeMap<&'a Name, Vec<&'a Step>>,
    problems: BTreeMap<&'a Name, Vec<&'a Problem>>,
}

impl<'a> ByName<'a> {
    fn of(desired: &'a DesiredState, observed: &'a ObservedState, plan: &'a Plan) -> Self {
        let mut by_name = Self::default();
        for it in observed.instances.values() {
            by_name.instances.entry(&it.name).or_default().push(it);
        }
        for step in &plan.steps {
            if let Some(name) = &step.name {
                by_name.steps.entry(name).or_default().push(step);
            }
        }
        for problem in &desired.problems {
            if let Some(name) = owner(problem, desired) {
                by_name.problems.entry(name).or_default().push(problem);
            }
        }
        by_name
    }
}

fn item(
    name: &Name,
    desired: &DesiredState,
    observed: &ObservedState,
    plan: &Plan,
    around: &Around,
    by_name: &ByName<'_>,
) -> Item {
    let standing = &plan.standings[name];
    let wanted = desired.workloads.get(name);
    let instance = standing
        .instance
        .as_ref()
        .and_then(|id| observed.instances.get(id))
        .or_else(|| by_name.instances.get(name)?.first().copied());
    let origin = wanted.map(|it| &it.origin).or(instance.map(|it| &it.origin));
    // What is under way is told as such: it is not there yet.
    let acts = by_name.steps.get(name).into_iter().flatten().map(|it| it.action.verb());
    let (mut starts, mut stops, mut cleans) = (false, false, false);
    for verb in acts {
        starts |= matches!(verb, "start" | "prepare" | "import" | "resume");
        stops |= matches!(verb, "stop" | "remove");
        cleans |= matches!(verb, "finish" | "clear");
    }
    let running = instance.is_some_and(|it| it.task.pid().is_some());
    // What runs and was told to end is waited for, whatever comes after it.
    let mut of_name = by_name.instances.get(name).into_iter().flatten();
    let ends = stops && of_name.any(|it| it.task.pid().is_some() && it.ending.is_some());
    let phase = match standing.phase {
        Phase::Running | Phase::Stopped if ends => Phase::Stopping,
        Phase::Running if starts => Phase::Starting,
        Phase::Stopped if stops && running => Phase::Stopping,
        // Who waits for the end of a run finds its code, and nothing of it in the way, when he is told.
        Phase::Completed | Phase::Failed | Phase::Stopped if cleans => Phase::Stopping,
        Phase::Running
        | Phase::Starting
        | Phase::Waiting
        | Phase::BackingOff
        | Phase::Held
        | Phase::Invalid
        | Phase::Stopped
        | Phase::Stopping
        | Phase::Completed
        | Phase::Failed => standing.phase,
    };
    let is_being_cleaned_up = cleans && phase == Phase::Stopping;
    let run = instance.and_then(|it| it.run.as_ref());
    let strikes = observed.strikes.get(name);
    let live = instance.and_then(|it| it.task.pid());
    let end = instance.and_then(|it| it.end.as_ref());
    Item {
        name: name.to_string(),
        origin: origin.map(OriginStatus::from),
        phase,
        reason: standing.reason.to_owned(),
        message: standing.message.clone(),
        up_to_date: standing.up_to_date && !starts && !stops && !is_being_cleaned_up,
        instance: instance.map(|it| InstanceStatus {
            id: it.id.to_string(),
            pid: live,
            restarts: run.map_or(0, |run| run.n.saturating_sub(1)),
            started_at: run.filter(|_| live.is_some()).map(|run| run.started.clone()),
            image_unchecked: run
                .filter(|_| live.is_some())
                .and_then(|run| run.image_unchecked.clone()),
        }),
        ipc: instance.and_then(|it| {
            let ipc = it.workload.as_ref()?.spec.ipc(&it.defaults);
            let shm_size = match ipc.shm {
                Shm::Runtime(size) | Shm::Published(size) => Some(size.to_string()),
                Shm::Absent | Shm::Host | Shm::Donor | Shm::User => None,
            };
            Some(IpcStatus {
                mode: ipc.mode.to_string(),
                shm_size,
                donor: ipc.mode.donor().map(ToString::to_string),
            })
        }),
        last_exit: end.and_then(End::exit).map(|it| ExitStatus {
            code: it.code,
            reason: it.reason,
            at: it.at,
        }),
        start_failure: strikes
            .filter(|strikes| {
                let mut of_name = by_name.instances.get(name).into_iter().flatten();
                !of_name.any(|it| it.has_run_since(strikes.at, &observed.boot_id))
            })
            .and_then(|it| it.failure.as_ref())
            .filter(|_| live.is_none() || !standing.up_to_date)
            .map(FailureStatus::from)
            // After a reboot only the container knows.
            .or_else(|| {
                end.filter(|it| live.is_none() && it.is_failed_start()).map(FailureStatus::from)
            }),
        next_retry_at: standing.until.and_then(|it| around.wall_clock_of.get(&it).cloned()),
        tried: None,
        problems: by_name
            .problems
            .get(name)
            .into_iter()
            .flatten()
            .map(|it| ProblemStatus::from(*it))
            .collect(),
    }
}

/// What `plan --output json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanReport {
    pub api_version: String,
    /// `Plan`.
    pub kind: String,
    /// In an order in which every step comes after those it requires.
    pub steps: Vec<StepReport>,
    pub status: Status,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `import`, `pull`, `mark`, `prepare`, `update`, `stop`, `resume`, `finish`, `start`, `publish`, `remove`, `sweep`.
    pub action: String,
    pub subject: String,
    pub cause: String,
    /// Indexes of the steps that come before.
    pub requires: Vec<usize>,
}

impl PlanReport {
    pub fn new(plan: &Plan, status: Status) -> Self {
        let step = |it: &crate::plan::Step| StepReport {
            name: it.name.as_ref().map(ToString::to_string),
            action: it.action.verb().to_owned(),
            subject: it.action.subject(),
            cause: it.cause.to_string(),
            requires: it.requires.iter().map(|it| it.0).collect(),
        };
        Self {
            api_version: crate::workload::API_VERSION.to_owned(),
            kind: "Plan".to_owned(),
            steps: plan.steps.iter().map(step).collect(),
            status,
        }
    }
}

/// What `validate --output json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProblemReport {
    pub api_version: String,
    /// `Problems`.
    pub kind: String,
    /// Number of documents that name a workload.
    pub documents: usize,
    pub problems: Vec<ProblemStatus>,
}
