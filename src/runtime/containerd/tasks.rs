//! The task list, and what to do about a shim that does not answer.
//!
//! containerd asks the shims one after the other and gives each two seconds, so one that hangs makes every list slow.
//! As soon as a list is late, the tasks are asked for one by one instead; those that do not answer are remembered and
//! reported as unknown without asking them again, while a probe in the background finds out when they answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::{GetRequest, ListTasksRequest};
use containerd_client::types::v1::{Process, Status};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::link::{Fault, Link, Tolerate as _};
use crate::observed::Task;
use crate::runtime::ErrorKind;

/// A list of a thousand tasks takes 0.3 s here, one of twenty 6 ms. Half of what one hung shim costs.
const PATIENCE: Duration = Duration::from_secs(1);

/// Longest wait for a list or a task where there is nothing better to do: fifteen hung shims' worth.
const LIMIT: Duration = Duration::from_secs(30);

/// Time between two tries to reach a hung shim. containerd itself waits two seconds for each.
const PROBE_PAUSE: Duration = Duration::from_millis(500);

/// Tries of one probe: a quarter of an hour, then the next observation starts another.
const PROBES: u32 = 360;

/// What containerd says about the tasks of our namespace.
pub(super) enum Listed {
    All(BTreeMap<String, Task>),
    /// Some shim hangs; [`Tasks::each`] has to be used, and [`Tasks::known`] for the rest.
    Stalled,
}

/// Asks for tasks, and remembers which do not answer.
pub(super) struct Tasks {
    link: Link,
    changes: watch::Sender<u64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Tasks that did not answer; each has a probe.
    hung: BTreeSet<String>,
    /// The last complete list, for what can be found by listing only.
    known: BTreeMap<String, Task>,
    /// A list is under way in the background.
    listing: bool,
}

impl Tasks {
    pub(super) fn new(link: Link, changes: watch::Sender<u64>) -> Self {
        Self { link, changes, state: Mutex::default() }
    }

    /// All tasks, unless that would take long.
    pub(super) async fn list(self: &Arc<Self>) -> Result<Listed, Fault> {
        if !self.state().hung.is_empty() {
            self.list_in_background();
            return Ok(Listed::Stalled);
        }
        match tokio::time::timeout(PATIENCE, self.list_all()).await {
            Ok(Ok(all)) => {
                self.state().known.clone_from(&all);
                Ok(Listed::All(all))
            }
            Ok(Err(fault)) => Err(fault),
            Err(_) => {
                self.list_in_background();
                Ok(Listed::Stalled)
            }
        }
    }

    /// Asks for the tasks of containers one by one; those that do not answer are unknown.
    pub(super) async fn each(
        self: &Arc<Self>,
        ids: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Task>, Fault> {
        let mut found = BTreeMap::new();
        let mut asked = JoinSet::new();
        {
            let mut state = self.state();
            state.hung.retain(|id| ids.contains(id));
            for id in ids {
                if state.hung.contains(id) {
                    found.insert(id.clone(), Task::Unknown);
                } else {
                    let (tasks, id) = (Arc::clone(self), id.clone());
                    asked.spawn(async move {
                        let answer = tasks.ask(&id, PATIENCE).await;
                        (id, answer)
                    });
                }
            }
        }
        while let Some(answer) = asked.join_next().await {
            let (id, answer) = answer.expect("asking neither panics nor is cancelled");
            match answer {
                Ok(Some(task)) => {
                    if task == Task::Unknown {
                        self.probe(&id);
                    }
                    found.insert(id, task);
                }
                Ok(None) => {}
                // Its own shim hung or gone; a containerd that is gone is found by the other lists.
                Err(fault) if fault.kind == ErrorKind::Unreachable => {
                    self.probe(&id);
                    found.insert(id, Task::Unknown);
                }
                Err(_) => {
                    found.insert(id, Task::Unknown);
                }
            }
        }
        Ok(found)
    }

    /// The last complete list.
    pub(super) fn known(&self) -> BTreeMap<String, Task> {
        self.state().known.clone()
    }

    /// What the list says about one task, whether it has a container object or not.
    pub(super) async fn listed(&self, id: &str) -> Result<Task, Fault> {
        Ok(self.list_all().await?.remove(id).unwrap_or_default())
    }

    /// The task of a container object. `None`: the object or its task is missing.
    pub(super) async fn get(&self, id: &str) -> Result<Option<Task>, Fault> {
        self.ask(id, LIMIT).await
    }

    async fn ask(&self, id: &str, limit: Duration) -> Result<Option<Task>, Fault> {
        let request = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
        let answer =
            self.link.answer(limit, self.link.tasks().get(request)).await.unless_missing()?;
        Ok(answer.and_then(|it| it.process).map(|process| task(&process)))
    }

    async fn list_all(&self) -> Result<BTreeMap<String, Task>, Fault> {
        let request = ListTasksRequest { filter: String::new() };
        let answer = self.link.answer(LIMIT, self.link.tasks().list(request)).await?;
        Ok(answer.tasks.iter().map(|process| (process.id.clone(), task(process))).collect())
    }

    /// At most one at a time.
    fn list_in_background(self: &Arc<Self>) {
        if std::mem::replace(&mut self.state().listing, true) {
            return;
        }
        let tasks = Arc::clone(self);
        tokio::spawn(async move {
            let all = tasks.list_all().await;
            let mut state = tasks.state();
            state.listing = false;
            if let Ok(all) = all {
                state.known = all;
            }
        });
    }

    /// Remembers a task that does not answer, and says so when it does again.
    fn probe(self: &Arc<Self>, id: &str) {
        if !self.state().hung.insert(id.to_owned()) {
            return;
        }
        let (tasks, id) = (Arc::downgrade(self), id.to_owned());
        tokio::spawn(async move {
            for _ in 0..PROBES {
                tokio::time::sleep(PROBE_PAUSE).await;
                let Some(tasks) = tasks.upgrade() else { return };
                match tasks.ask(&id, LIMIT).await {
                    Ok(Some(Task::Unknown)) | Err(_) => {}
                    Ok(_) => break,
                }
            }
            if let Some(tasks) = tasks.upgrade() {
                tasks.state().hung.remove(&id);
                tasks.changes.send_modify(|n| *n += 1);
            }
        });
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Every change is one assignment, so a panic elsewhere leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn task(process: &Process) -> Task {
    let pid = process.pid;
    match process.status() {
        Status::Created => Task::Created { pid },
        Status::Running => Task::Running { pid },
        Status::Paused | Status::Pausing => Task::Paused { pid },
        Status::Stopped => Task::Stopped { code: process.exit_status, at: time(process.exited_at) },
        Status::Unknown => Task::Unknown,
    }
}

/// RFC 3339; empty when containerd does not know.
pub(super) fn time(at: Option<prost_types::Timestamp>) -> String {
    // A time that Go left out is the year 1.
    at.filter(|it| it.seconds > 0).map(|it| it.to_string()).unwrap_or_default()
}
