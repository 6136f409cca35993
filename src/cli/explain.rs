//! `evenkeel explain`: one workload on one page: what is wanted, what is there, why, what comes next, and the way out.
//!
//! Looks for itself, also beside a controller: what the next step waits for stands in a plan, not in the status.

use std::collections::BTreeSet;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use super::connect;
use super::{Context, Failure, plan};
use crate::config::Settings;
use crate::desired::{DesiredState, Origin};
use crate::manifest;
use crate::plan::{Phase, Plan};
use crate::source;
use crate::status::{
    Exit, HoldStatus, Item, PlanReport, SourceStatus, Status, StepReport, trouble,
};
use crate::workload::{API_VERSION, Name};

/// More of a manifest is not read to find a line in it.
const FILE_LIMIT: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Workload
    name: Name,
}

/// What `explain --output json` prints.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Explanation {
    api_version: String,
    /// `Explanation`.
    kind: String,
    /// Where the manifest begins, `file:line`; absent when there is none, or it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    /// What the manifest says; absent without a valid one.
    #[serde(skip_serializing_if = "Option::is_none")]
    wanted: Option<Wanted>,
    /// How it stands.
    item: Item,
    /// What is done for it next, in order.
    steps: Vec<StepReport>,
    /// What has to be done before its first step: steps of other workloads.
    waits_for: Vec<StepReport>,
    /// Its removal, held for a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<HoldStatus>,
    /// Its source, when nothing of it is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SourceStatus>,
    /// What a person can do; empty when nothing has to be done.
    advice: Vec<String>,
}

/// The main points of a manifest.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Wanted {
    image: String,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipc_mode: Option<String>,
    restart_policy: String,
}

pub(super) fn explain(context: &mut Context<'_>, args: &ExplainArgs) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let run = connect::run_directory(&settings)?;
    let looked = connect::block_on(look(&settings))?;
    let (desired, plan, status, remark) = match looked {
        Ok((desired, plan, mut status)) => {
            // That steps fail is known to who tries them.
            let troubles = super::reconcile::troubles(&run, &plan, &desired)?;
            trouble::tell(&mut status, &troubles);
            (desired, plan, status, None)
        }
        // The last that is known is better than nothing, when it is called that.
        Err((desired, failure)) => {
            let (status, _) = connect::current_status(&settings).map_err(|_| failure)?;
            let remark = "containerd does not answer; this is the last that was written";
            (desired, Plan::default(), status, Some(remark))
        }
    };
    let name = args.name.to_string();
    if !status.items.iter().any(|it| it.name == name) {
        let message = format!("no workload is called `{name}`; `evenkeel status` lists them");
        return Err(Failure::new(Exit::Usage, message));
    }
    let explanation = explanation(&settings, &args.name, &desired, &plan, &status);
    let one = super::status::alone(status, &name);
    let exit = match remark {
        Some(_) => Exit::Environment,
        None => super::status::exit_of(&one),
    };
    if context.is_json() {
        context.json(&explanation)?;
        return Ok(exit);
    }
    if let Some(remark) = remark {
        writeln!(context.err, "{remark}")?;
    }
    page(context, &explanation)?;
    Ok(exit)
}

/// One look and plan; what is wanted is known also when containerd does not answer.
async fn look(
    settings: &Settings,
) -> Result<(DesiredState, Plan, Status), (DesiredState, Failure)> {
    let sources = match connect::sources(&settings.manifests) {
        Ok(sources) => sources,
        Err(failure) => return Err((DesiredState::default(), failure)),
    };
    let desired = source::read_once(sources, settings.allow_empty).await;
    let planned = async {
        let connection = connect::connect(settings, connect::Start::Nothing, false).await?;
        plan::look(settings, &connection, &desired).await
    };
    match planned.await {
        Ok((plan, status)) => Ok((desired, plan, status)),
        Err(failure) => Err((desired, failure)),
    }
}

fn explanation(
    settings: &Settings,
    name: &Name,
    desired: &DesiredState,
    plan: &Plan,
    status: &Status,
) -> Explanation {
    let text = name.to_string();
    let item = status.items.iter().find(|it| it.name == text).cloned();
    let item = item.expect("the caller has looked that it is there");
    let document = desired.workloads.get(name);
    let all = PlanReport::new(plan, Status { items: Vec::new(), ..status.clone() }).steps;
    let own: Vec<usize> =
        (0..all.len()).filter(|n| plan.steps[*n].names().any(|it| it == name)).collect();
    let before: BTreeSet<usize> = own
        .iter()
        .flat_map(|n| all[*n].requires.iter().copied())
        .filter(|n| !own.contains(n))
        .collect();
    let wanted = document.and_then(|it| it.workload.as_ref()).map(|it| Wanted {
        image: it.spec.image.to_string(),
        state: it.spec.state.to_string(),
        ipc_mode: it.spec.ipc_mode.as_ref().map(ToString::to_string),
        restart_policy: it.spec.restart.policy.unwrap_or(settings.restart).to_string(),
    });
    let is_held = |it: &&HoldStatus| it.removals.iter().any(|it| it.name == *name);
    let hold = status.holds.iter().find(is_held).cloned();
    let of = item.origin.as_ref().map(|it| it.source.clone());
    let source =
        status.sources.iter().find(|it| it.state != "ready" && Some(&it.path) == of.as_ref());
    let mut explanation = Explanation {
        api_version: API_VERSION.to_owned(),
        kind: "Explanation".to_owned(),
        place: document.map(|it| place(&it.origin)),
        wanted,
        steps: own.iter().map(|n| all[*n].clone()).collect(),
        waits_for: before.into_iter().map(|n| all[n].clone()).collect(),
        source: source.cloned(),
        hold,
        item,
        advice: Vec::new(),
    };
    explanation.advice = ways_out(&explanation);
    explanation
}

/// `file:line` of a document, or the file alone when it cannot be read now.
fn place(origin: &Origin) -> String {
    use std::io::Read as _;
    let file = if origin.file.as_os_str().is_empty() {
        origin.source.path().to_owned()
    } else {
        origin.source.path().join(&origin.file)
    };
    let mut bytes = Vec::new();
    let is_read = std::fs::metadata(&file).is_ok_and(|it| it.is_file())
        && std::fs::File::open(&file)
            .and_then(|it| it.take(FILE_LIMIT).read_to_end(&mut bytes))
            .is_ok();
    let reading =
        if is_read { manifest::read(&file, &bytes) } else { manifest::Reading::default() };
    let document = reading.documents.iter().find(|it| it.index == origin.document);
    match document {
        Some(it) => format!("{}:{}", file.display(), it.position.line),
        None => origin.to_string(),
    }
}

/// What a person can do, the most direct first.
fn ways_out(it: &Explanation) -> Vec<String> {
    let mut ways = Vec::new();
    for problem in &it.item.problems {
        let fix = problem
            .hint
            .clone()
            .or_else(|| problem.fix.as_ref().map(|fix| format!("write `{fix}`")));
        ways.extend(fix);
    }
    if let Some(hold) = &it.hold {
        ways.push(format!("release it with `evenkeel approve {}`", hold.token));
    }
    ways.extend(
        it.item.start_failure.iter().map(|it| it.advice.clone()).filter(|it| !it.is_empty()),
    );
    let reasons = [it.item.reason.as_str(), it.source.as_ref().map_or("", |it| it.reason.as_str())];
    for reason in reasons {
        let way = advice(reason);
        // A released hold is said with its token above.
        if !way.is_empty() && !ways.iter().any(|it| it == way) {
            ways.push(way.to_owned());
        }
    }
    ways.iter().map(|way| way.replace("NAME", &it.item.name)).collect()
}

/// What to do about a reason of the status; empty when it passes by itself. `NAME` is the workload's.
fn advice(reason: &str) -> &'static str {
    match reason {
        "manifest-invalid" => "correct the document; `evenkeel validate` shows what is wrong",
        "image-missing" => {
            "put an archive with the image into the state directory's `images/`, and check the name in it"
        }
        "image-pull-failed" => {
            "the message says why; it is tried again by itself, and at once by `evenkeel retry NAME`"
        }
        "mount-source-silent" => {
            "bring back the file system of the bind's source, or take the mount out"
        }
        "no-command" => "set `command`",
        "user-not-numeric" => "set `user` in numbers",
        "waiting-for-donor" => "look at the donor, with `evenkeel explain` too",
        "donor-in-use" => "change or remove the joiners that are named first",
        "joiner-not-startable" => "give the joiner what the message says is missing",
        "exited" => "look at `evenkeel logs NAME`",
        "exit-unknown" => "look for a power cut or a dead shim, and at `evenkeel logs NAME`",
        "runtime-not-answering" => "look for a hung shim of this container",
        "task-lost" => "give it what the message says is missing; then it is started anew",
        "processes-unknown" => {
            "mount cgroups at /sys/fs/cgroup where the controller sees them; `evenkeel doctor` looks at them"
        }
        "completed" => "`evenkeel restart NAME` runs it again, as does a change of its manifest",
        "stopped-by-hand" => "`evenkeel start NAME`",
        "exec-running" => "end the command that the message names, or `evenkeel restart NAME`",
        "prune-limit" => "`evenkeel approve` lists what is held and releases it",
        "source-missing" | "source-unreadable" | "source-emptied" | "source-replaced" => {
            "bring the directory of manifests back, or release what is held with `evenkeel approve`"
        }
        "source-is-a-file" => "`evenkeel down NAME` removes it",
        "unclaimed" => "`evenkeel down NAME` removes it; or give its source with `--manifests`",
        "prepare-failed" | "update-failed" | "stop-failed" | "resume-failed" | "finish-failed"
        | "publish-failed" | "remove-failed" => {
            "the message says what did not work; it is tried again by itself"
        }
        // What a start can fail with.
        _ => {
            let known = crate::refusal::REASONS.iter().find(|it| it.name == reason);
            known.map_or("", |it| it.advice)
        }
    }
}

fn page(context: &mut Context<'_>, it: &Explanation) -> Result<(), Failure> {
    let item = &it.item;
    let up_to_date = if item.up_to_date { "" } else { ", not as the manifest says" };
    writeln!(context.out, "{}: {}{up_to_date}", item.name, item.phase)?;
    let mut line = |key: &str, value: &str| -> Result<(), Failure> {
        if !value.is_empty() {
            writeln!(context.out, "  {key:<13}{value}")?;
        }
        Ok(())
    };
    let nowhere = "nowhere: no manifest names it";
    line("manifest", it.place.as_deref().unwrap_or(nowhere))?;
    if let Some(wanted) = &it.wanted {
        let mode =
            wanted.ipc_mode.as_ref().map_or_else(String::new, |it| format!(", ipcMode {it}"));
        let Wanted { image, state, restart_policy, ipc_mode: _ } = wanted;
        line("wanted", &format!("image {image}, {state}{mode}, restart {restart_policy}"))?;
    }
    match &item.instance {
        None => line("runs", "nothing")?,
        Some(instance) => {
            let state = match (&instance.pid, &instance.started_at) {
                (Some(pid), Some(since)) => format!("pid {pid} since {since}"),
                (Some(pid), None) => format!("pid {pid}"),
                (None, _) => "no process".to_owned(),
            };
            let restarts = match instance.restarts {
                1 => "1 restart".to_owned(),
                n => format!("{n} restarts"),
            };
            line("runs", &format!("{}: {state}, {restarts}", instance.id))?;
        }
    }
    let why = match (item.reason.as_str(), item.message.as_str()) {
        (reason, "") => reason.to_owned(),
        ("", message) => message.to_owned(),
        (reason, message) => format!("{message} [{reason}]"),
    };
    line("why", &why)?;
    for problem in &item.problems {
        line("problem", &super::status::problem_line(problem))?;
    }
    if let Some(exit) = &item.last_exit {
        line("last exit", &format!("code {} at {} [{}]", exit.code, exit.at, exit.reason))?;
    }
    if let Some(failure) = &item.start_failure {
        let crate::status::FailureStatus { code, reason, message, at, advice: _ } = failure;
        line("failed start", &format!("{message} at {at} [{reason}, code {code}]"))?;
    }
    if let Some(hold) = &it.hold {
        line("held", &format!("{} [{}]", hold.message, hold.reason))?;
    }
    if let Some(source) = &it.source {
        let what = format!("nothing of {} is removed", source.path);
        line(
            "source",
            &format!("{what}: {}: {} [{}]", source.file, source.message, source.reason),
        )?;
    }
    let step = |it: &StepReport| format!("{} {} ({})", it.action, it.subject, it.cause);
    for (n, next) in it.steps.iter().enumerate() {
        line(if n == 0 { "next" } else { "then" }, &step(next))?;
    }
    for before in &it.waits_for {
        line("after", &step(before))?;
    }
    match &item.next_retry_at {
        Some(at) => line("next look", at)?,
        None if it.steps.is_empty() => {
            let rests = matches!(item.phase, Phase::Running | Phase::Completed | Phase::Stopped);
            line("next", if rests { "nothing to do" } else { "nothing can be done now" })?;
        }
        None => {}
    }
    for way in &it.advice {
        line("way out", way)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::advice;

    #[test]
    fn every_reason_that_asks_for_something_has_a_way_out() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/lifecycle.md");
        let text = std::fs::read_to_string(path).unwrap();
        let table = text.split("| reason | means | what to do |").nth(1).unwrap();
        let mut seen = 0;
        for row in table.lines().skip(2).take_while(|it| it.starts_with('|')) {
            let cells: Vec<&str> = row.split(" | ").collect();
            let passes = ["nothing", "wait", "it follows", "it is tried again"];
            if passes.iter().any(|it| cells[2].starts_with(it)) {
                continue;
            }
            for reason in cells[0].split('`').skip(1).step_by(2) {
                assert!(!advice(reason).is_empty(), "`{reason}`: {}", cells[2]);
                seen += 1;
            }
        }
        assert!(seen > 20, "{seen}");
    }
}
