//! What happened, one event at a time, for `evenkeel events`. The words are those of Kubernetes' events where they fit.
//!
//! Makes events from steps and standings; knows neither where they are kept nor what time it is.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Item, Status};
use crate::plan::{Action, Phase, Step};

/// Longest text of an event; what is longer is cut. The journal is small, and the whole text is in the log.
const TEXT: usize = 1024;

/// Something that happened; a line of `events --output json` and of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// RFC 3339.
    pub time: String,
    /// `Normal`, or `Warning`: something that was not wanted.
    pub r#type: EventType,
    pub kind: EventKind,
    /// What happened, in kebab case: `started`, `image-missing`, …
    pub reason: String,
    /// The workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The instance, image or leftover that it happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Why it was done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cause: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The process of ours that says so.
    pub pid: u32,
}

/// Whether it is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EventType {
    Normal,
    Warning,
}

/// What it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A step was done, or failed.
    Step,
    /// A run was seen to have ended.
    Exit,
    /// A workload waits, is held, cannot be understood, has completed or failed; or does so no more.
    Standing,
    /// A person asked for something.
    Hand,
    /// containerd is away, or back.
    Runtime,
    /// A controller began or ended.
    Controller,
    /// Events were lost.
    Journal,
}

impl Event {
    pub fn new(kind: EventKind, r#type: EventType, reason: &str, message: &str) -> Self {
        Self {
            time: String::new(),
            r#type,
            kind,
            reason: cut(reason),
            name: None,
            subject: None,
            cause: String::new(),
            message: cut(message),
            pid: 0,
        }
    }

    /// The same, of a workload.
    #[must_use]
    pub fn of(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// A step that was done.
    pub fn done(step: &Step) -> Self {
        let (kind, r#type, reason) = match &step.action {
            Action::Import { .. } => (EventKind::Step, EventType::Normal, "imported"),
            Action::Pull { .. } => (EventKind::Step, EventType::Normal, "pulled"),
            Action::MarkImage { .. } => (EventKind::Step, EventType::Normal, "marked"),
            Action::RemoveImage { .. } => (EventKind::Step, EventType::Normal, "removed"),
            Action::Prepare(_) => (EventKind::Step, EventType::Normal, "prepared"),
            Action::Update(_) => (EventKind::Step, EventType::Normal, "updated"),
            Action::Stop(_) => (EventKind::Step, EventType::Normal, "stopped"),
            Action::Resume { .. } => (EventKind::Step, EventType::Normal, "resumed"),
            Action::Start(_) => (EventKind::Step, EventType::Normal, "started"),
            Action::Publish { .. } => (EventKind::Step, EventType::Normal, "published"),
            Action::Clear { .. } => (EventKind::Step, EventType::Normal, "cleared"),
            Action::Remove { .. } | Action::RemoveOrphan { .. } => {
                (EventKind::Step, EventType::Normal, "removed")
            }
            Action::RemoveStray(_) => (EventKind::Step, EventType::Warning, "removed"),
            Action::Sweep(_) => (EventKind::Step, EventType::Normal, "swept"),
            Action::Finish(it) if it.never_ran => {
                (EventKind::Step, EventType::Normal, "start-interrupted")
            }
            Action::Finish(it) => match it.exit {
                Some((0, _)) => (EventKind::Exit, EventType::Normal, "exited"),
                Some(_) => (EventKind::Exit, EventType::Warning, "exited"),
                None => (EventKind::Exit, EventType::Warning, "exit-unknown"),
            },
        };
        Self::new(kind, r#type, reason, "").by(step)
    }

    /// A step that failed; `reason` is the status's, or that of a start that failed.
    pub fn failed(step: &Step, reason: &str, message: &str) -> Self {
        Self::new(EventKind::Step, EventType::Warning, reason, message).by(step)
    }

    fn by(self, step: &Step) -> Self {
        Self {
            name: step.name.as_ref().map(ToString::to_string),
            subject: Some(cut(&step.action.subject())),
            cause: cut(&step.cause.to_string()),
            ..self
        }
    }
}

/// Text of at most [`TEXT`] bytes.
fn cut(text: &str) -> String {
    if text.len() <= TEXT {
        return text.to_owned();
    }
    let mut end = TEXT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// How workloads stood when it was last told of them.
#[derive(Debug, Default)]
pub struct Standings {
    told: BTreeMap<String, (Phase, String)>,
}

impl Standings {
    /// As somebody else has told before.
    pub fn since(status: &Status) -> Self {
        Self { told: status.items.iter().map(|it| (it.name.clone(), standing(it))).collect() }
    }

    /// What is new about how workloads stand. What a step tells of by itself is left out: that something runs, was
    /// stopped, or waits for its next try.
    pub fn news(&mut self, items: &[Item]) -> Vec<Event> {
        let before = std::mem::take(&mut self.told);
        let mut events = Vec::new();
        for item in items {
            let now = standing(item);
            let last = before.get(&item.name);
            if last != Some(&now) {
                let was_held = last.is_some_and(|it| it.0 == Phase::Held);
                events.extend(news_of(item, was_held).map(|it| it.of(&item.name)));
            }
            self.told.insert(item.name.clone(), now);
        }
        events
    }
}

/// What makes it news when it is another.
fn standing(item: &Item) -> (Phase, String) {
    (item.phase, item.reason.clone())
}

fn news_of(item: &Item, was_held: bool) -> Option<Event> {
    let r#type = match item.phase {
        // A failed step has told of itself.
        Phase::Running if item.reason.is_empty() || item.reason.ends_with("-failed") => {
            let is_over = was_held && item.reason.is_empty();
            let message = "it is held no more";
            return is_over
                .then(|| Event::new(EventKind::Standing, EventType::Normal, "released", message));
        }
        Phase::Starting | Phase::BackingOff | Phase::Stopped | Phase::Stopping => return None,
        Phase::Running | Phase::Completed => EventType::Normal,
        Phase::Waiting | Phase::Held | Phase::Invalid | Phase::Failed => EventType::Warning,
    };
    let phase = item.phase.to_string().to_lowercase();
    // How it ended is told by the end of its run.
    let is_own = item.phase == Phase::Failed || item.reason.is_empty();
    let reason = if is_own { &phase } else { &item.reason };
    let message = match item.message.as_str() {
        "" => phase.clone(),
        message => format!("{phase}: {message}"),
    };
    Some(Event::new(EventKind::Standing, r#type, reason, &message))
}
