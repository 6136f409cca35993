//! containerd's events, reduced to one number that grows.
//!
//! Nobody learns from here what happened, only that it is time to look again.

use std::sync::OnceLock;
use std::time::Duration;

use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use prost_types::Any;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::link::{Fault, Link};
use super::record::filter;

/// First pause before containerd is tried again: it is back 0.3 s after a restart.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Longest pause: a local socket costs nothing to try.
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// containerd sends nothing, not even headers, before the first event, so that a subscription cannot be told from one
/// that never arrived. Two or three markers show it.
const MARKER_PAUSE: Duration = Duration::from_millis(5);

/// A containerd that answers shows the marker within milliseconds.
const MARKER_LIMIT: Duration = Duration::from_secs(5);

/// Subscribes while somebody wants hints, and again after each loss.
pub(super) struct Events {
    changes: watch::Sender<u64>,
    task: OnceLock<AbortHandle>,
}

impl Events {
    pub(super) fn new(changes: watch::Sender<u64>) -> Self {
        Self { changes, task: OnceLock::new() }
    }

    /// The number. The first call starts the subscription and has to be made within a tokio runtime.
    pub(super) fn hints(&self, link: &Link, namespace: &str) -> watch::Receiver<u64> {
        self.task.get_or_init(|| {
            let follow = follow(link.clone(), namespace.to_owned(), self.changes.clone());
            tokio::spawn(follow).abort_handle()
        });
        self.changes.subscribe()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// Never returns; ends by being aborted.
async fn follow(link: Link, namespace: String, changes: watch::Sender<u64>) {
    // Tells our markers from those of another process, and of an earlier subscription.
    let marker = format!("/evenkeel/sync/{}", std::process::id());
    let mut pause = FIRST_PAUSE;
    for n in 0_u64.. {
        let marker = format!("{marker}-{n}");
        if read(&link, &namespace, &marker, &changes).await == Reached::Yes {
            pause = FIRST_PAUSE;
        }
        sleep(pause).await;
        pause = LAST_PAUSE.min(pause * 2);
    }
}

#[derive(PartialEq, Eq)]
enum Reached {
    Yes,
    No,
}

/// Counts events until the stream ends.
async fn read(link: &Link, namespace: &str, marker: &str, changes: &watch::Sender<u64>) -> Reached {
    let Ok(Ok(mut stream)) = timeout(MARKER_LIMIT, subscribe(link, namespace, marker)).await else {
        return Reached::No;
    };
    let mut reached = Reached::No;
    // An error is the end as well: the caller subscribes anew.
    while let Ok(Some(envelope)) = stream.message().await {
        if envelope.topic == marker {
            // What changed before the subscription stood may have been missed. Later markers were still under way.
            if std::mem::replace(&mut reached, Reached::Yes) == Reached::No {
                changes.send_modify(|n| *n += 1);
            }
        } else if matters(&envelope.topic) {
            changes.send_modify(|n| *n += 1);
        }
    }
    // The next look finds out whether containerd is gone, and then says so at once.
    if reached == Reached::Yes {
        changes.send_modify(|n| *n += 1);
    }
    reached
}

type Stream = tonic::Streaming<containerd_client::types::Envelope>;

/// Returns as soon as the first event has come, which is a marker at the latest.
async fn subscribe(link: &Link, namespace: &str, marker: &str) -> Result<Stream, Fault> {
    let mut client = link.events();
    let request = SubscribeRequest { filters: vec![filter("namespace", namespace)] };
    let mut subscription = std::pin::pin!(client.subscribe(request));
    let mut ticks = interval(MARKER_PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            // Kept across the loop, so nothing is lost when the other arm wins.
            stream = &mut subscription => {
                return stream.map(tonic::Response::into_inner).map_err(|status| link.fault(&status));
            }
            // A tick that is dropped comes again.
            _ = ticks.tick() => {
                // Every Go program can decode an empty message: others may be listening.
                let event = Any { type_url: "google.protobuf.Empty".to_owned(), value: Vec::new() };
                let request = PublishRequest { topic: marker.to_owned(), event: Some(event) };
                link.answer(MARKER_LIMIT, link.events().publish(request)).await?;
            }
        }
    }
}

/// Whether what we observe can have changed. Events of our own leases, blobs and unpacking do not matter.
fn matters(topic: &str) -> bool {
    let exec = topic.starts_with("/tasks/exec-");
    let prefixes = ["/tasks/", "/containers/", "/images/", "/snapshot/remove"];
    !exec && prefixes.iter().any(|prefix| topic.starts_with(prefix))
}
