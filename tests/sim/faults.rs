//! Mistakes that somebody could make, planted at the seams around the controller: what it is told is wrong, or what it
//! does. The rules look at what really is there and really happens, so they have to find each of them.

use evenkeel::observed::{HandKind, STOPPED, Task};
use evenkeel::runtime::memory::MemoryRuntime;
use evenkeel::runtime::{Container, Objects, Update};
use evenkeel::workload::InstanceId;

use crate::tree::{Said, Truth};

/// A mistake. Each has a row in docs/testing.md, with the seeds and the rules that find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    DirectoryIsEmpty,
    RootReadInPart,
    StoppedBeforePrepared,
    StillPublished,
    StrikesLost,
    AdoptedByPid,
    LeaseKept,
    LeaseNeverSwept,
    EndOfOlderRun,
    DonorWithoutJoiners,
    NeverStarted,
    RestartForgotten,
    StopForgotten,
    RestartCounted,
    OthersTakenDown,
    ImageThatIsGone,
    KilledAtOnce,
    OtherCode,
    RetriesUncounted,
    EarlierBootForgotten,
    EveryBootIsThisOne,
    NotCleared,
    SourcesBelieved,
    WorkUnseen,
    JoinersUnseen,
    ShutdownIsDown,
    LossUnseen,
    LookIsHint,
}

/// All of them: what the documentation calls each, and the rules of which any seed of its row may name one.
pub(crate) const FAULTS: [(Fault, &str, &[&str]); 28] = [
    (
        Fault::DirectoryIsEmpty,
        "a sub-directory that cannot be read is read as empty",
        &["removal-believable", "untouched-without-reason"],
    ),
    (
        Fault::RootReadInPart,
        "a root that cannot be read to its end is taken for read",
        &["removal-believable", "untouched-without-reason"],
    ),
    (
        Fault::StoppedBeforePrepared,
        "an instance is stopped before its replacement is prepared",
        &["prepared-before-stop"],
    ),
    (
        Fault::StillPublished,
        "a donor is restarted without taking down what it published",
        &["fresh-and-own"],
    ),
    (
        Fault::StrikesLost,
        "strikes are lost when the controller restarts",
        &["not-faster-than-backoff"],
    ),
    (
        Fault::AdoptedByPid,
        "what has ended is adopted again when its pid lives, whoever has that now",
        &["converged", "no-busy-loop"],
    ),
    (Fault::LeaseKept, "a lease is not released after the preparation", &["lease-released"]),
    (
        Fault::LossUnseen,
        "what the runtime has lost is not looked for",
        &["never-two", "nothing-left-over"],
    ),
    (Fault::LeaseNeverSwept, "a lease is never swept", &["second-look-plans-nothing"]),
    (
        Fault::EndOfOlderRun,
        "the end of an older run is taken for that of the last",
        &["not-faster-than-backoff"],
    ),
    (Fault::DonorWithoutJoiners, "a donor in use is removed", &["donor-in-use-stays"]),
    (
        Fault::NeverStarted,
        "an exited task that containerd forgot is taken for one never started",
        &["not-faster-than-backoff", "no-run-after-the-last"],
    ),
    (
        Fault::RestartForgotten,
        "a restart by hand is forgotten when its first step begins",
        &["hand-costs-no-strike"],
    ),
    (
        Fault::StopForgotten,
        "a stop by hand is forgotten when the controller restarts",
        &["stopped-stays-stopped"],
    ),
    (
        Fault::RestartCounted,
        "what a restart ended is counted as a failure",
        &["hand-costs-no-strike"],
    ),
    (
        Fault::OthersTakenDown,
        "a wish to take one down takes others down",
        &["untouched-without-reason", "removal-believable"],
    ),
    (
        Fault::ImageThatIsGone,
        "an instance is made from an image that is gone",
        &["second-look-plans-nothing"],
    ),
    (Fault::KilledAtOnce, "SIGKILL does not wait for `stop.timeout`", &["time-to-end"]),
    (Fault::OtherCode, "another exit code is written down", &["exit-code-kept"]),
    (
        Fault::RetriesUncounted,
        "the failures that `maxRetries` counts are not kept",
        &["no-run-after-the-last"],
    ),
    (
        Fault::EarlierBootForgotten,
        "a run of an earlier boot is taken for none",
        &["no-run-after-the-last"],
    ),
    (
        Fault::EveryBootIsThisOne,
        "with `onBoot`, a run of an earlier boot is taken for one of this",
        &["converged"],
    ),
    (Fault::NotCleared, "`removeOnExit` leaves the file system", &["second-look-plans-nothing"]),
    (Fault::SourcesBelieved, "bind sources are not looked at", &["sources-first"]),
    (Fault::WorkUnseen, "it is not seen that a person works in it", &["worked-in-untouched"]),
    (
        Fault::JoinersUnseen,
        "at the end of the machine joiners are not told from others",
        &["joiners-before-donors"],
    ),
    (Fault::ShutdownIsDown, "a shutdown is taken for `down`", &["shutdown-keeps-all"]),
    (Fault::LookIsHint, "each look at the runtime is a hint to look again", &["no-busy-loop"]),
];

impl Fault {
    /// What a look at the runtime shows with this fault. `pids`: that each instance had last.
    pub(crate) fn falsify(
        self,
        objects: &mut Objects,
        runtime: &MemoryRuntime,
        pid_of: impl Fn(&InstanceId) -> Option<u32>,
        truth: &Truth,
        boot: &str,
        is_shutting_down: bool,
    ) {
        for container in &mut objects.containers {
            if self == Self::AdoptedByPid && !is_alive(container) {
                let pid = pid_of(&container.id).filter(|it| runtime.process(*it).is_some());
                container.task = pid.map_or(container.task.clone(), |pid| Task::Running { pid });
            }
            if self == Self::EndOfOlderRun
                && let (Some(run), Some(end)) = (&container.run, &mut container.end)
            {
                end.n = end.n.max(run.n);
            }
            if self == Self::NeverStarted && container.task == Task::None && !has_ended(container) {
                container.run = None;
            }
            if self == Self::DonorWithoutJoiners {
                forget_donor(container, truth);
            }
            if self == Self::OtherCode
                && let Task::Stopped { code, .. } = &mut container.task
            {
                *code += 1;
            }
            let is_of_this_boot = container.run.as_ref().is_some_and(|it| it.boot == boot);
            if self == Self::EarlierBootForgotten && !is_of_this_boot && !is_alive(container) {
                (container.run, container.end) = (None, None);
            }
            if self == Self::EveryBootIsThisOne
                && let Some(run) = &mut container.run
            {
                boot.clone_into(&mut run.boot);
            }
            if self == Self::JoinersUnseen
                && is_shutting_down
                && let Some(workload) = &mut container.workload
            {
                workload.spec.ipc_mode = None;
            }
        }
    }

    /// What is written to a container with this fault. `asked`: what a person asks for of it.
    pub(crate) fn falsify_update(self, update: &Update, asked: Option<HandKind>) -> Update {
        let mut update = update.clone();
        if self == Self::RestartCounted
            && asked == Some(HandKind::Restart)
            && let Some(end) = update.end.as_mut().filter(|it| it.reason == STOPPED)
        {
            end.failures += 1;
        }
        if self == Self::RetriesUncounted
            && let Some(end) = &mut update.end
        {
            end.failures = 0;
        }
        update
    }
}

fn is_alive(container: &Container) -> bool {
    !matches!(container.task, Task::None | Task::Stopped { .. })
}

fn has_ended(container: &Container) -> bool {
    let end = container.end.as_ref().map(|it| it.n);
    container.run.as_ref().is_none_or(|run| end.is_some_and(|it| it >= run.n))
}

/// Of a joiner whose manifest names a donor that no manifest describes any more, only what it runs as is left that
/// says so.
fn forget_donor(container: &mut Container, truth: &Truth) {
    let Some(workload) = &mut container.workload else { return };
    let donor = workload.spec.ipc_mode.as_ref().and_then(|it| it.donor());
    let gone = donor.is_some_and(|it| truth.said(it.as_str()) == Said::Nothing);
    if gone && !matches!(truth.said(container.name.as_str()), Said::Valid(_)) {
        workload.spec.ipc_mode = None;
    }
}

/// A row of the table in docs/testing.md.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) planted: String,
    /// Rules and the seeds that they were broken by.
    pub(crate) found: Vec<(String, u64)>,
}

const HEAD: &str = "| planted | rule | seed |\n|---|---|---|\n";

/// The table of a text, and where it begins and ends.
pub(crate) fn table(text: &str) -> (Vec<Row>, std::ops::Range<usize>) {
    let begin = text.find(HEAD).expect("there is a table of what was planted") + HEAD.len();
    let length = text[begin..].find("\n\n").map_or(text.len() - begin, |it| it + 1);
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [planted, rules, seeds] = cells[..] else { panic!("`{line}` has three cells") };
        let rules = rules.split(", ").map(|it| it.trim_matches('`').to_owned());
        let seeds = seeds.split(", ").map(|it| it.parse().expect("a seed is a number"));
        Row { planted: planted.to_owned(), found: rules.zip(seeds).collect() }
    };
    let rows = text[begin..begin + length].lines().map(row).collect();
    (rows, begin..begin + length)
}

pub(crate) fn print(rows: &[Row]) -> String {
    let mut text = String::new();
    for Row { planted, found } in rows {
        let rules: Vec<String> = found.iter().map(|it| format!("`{}`", it.0)).collect();
        let seeds: Vec<String> = found.iter().map(|it| it.1.to_string()).collect();
        let row = [planted, &*rules.join(", "), &*seeds.join(", ")].join(" | ");
        text.extend(["| ", &row, " |\n"]);
    }
    text
}
