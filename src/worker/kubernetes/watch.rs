//! The watch: follows the pods of this replica's fleet, and deletes pods.
//!
//! ```text
//! list ──► watch ──event──► pods ──► turns that wait for one · ends to report
//!   ▲        │ cut, or silent: watched again from the same version
//!   └────────┴ version too old (410): everything is listed anew
//! ```
//!
//! Owns reconnecting: retries at once, then with growing pauses up to 3 s. While the connection is broken no pod
//! counts as gone and no end is reported.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::pods::{Pods, WatchLink};

/// Duration of one watch request, in seconds. A connection that dies silently is noticed 5 s after that.
const WATCH_S: u32 = 30;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// Failed deletions kept for a retry; the sweep finds the rest again.
const AGAIN_MAX: usize = 1024;

/// Watches until cancelled.
pub async fn watch_on(pods: Pods, until: CancellationToken) {
    until.run_until_cancelled(watch(&pods)).await;
}

async fn watch(pods: &Pods) {
    let mut pause = Pause::default();
    loop {
        if let Err(why) = pods.find_owner().await {
            pods.set_link(WatchLink::Broken(why.detail));
            pause.take(why.after).await;
            continue;
        }
        let config = watcher::Config::default().labels(&pods.selector()).timeout(WATCH_S);
        let mut events = pin!(watcher(pods.cluster().pods(), config));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    // `Init` comes before the server has answered.
                    if !matches!(event, Event::Init) {
                        pause = Pause::default();
                    }
                    pods.hear(event);
                }
                Err(why) => {
                    let end = end_of(&why);
                    if end == PodWatchEnd::Broken && pods.set_link(WatchLink::Broken(why.to_string())) {
                        tracing::warn!(%why, "worker pods cannot be watched; trying again");
                    }
                    pause.take(None).await;
                    if end != PodWatchEnd::Cut {
                        break;
                    }
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PodWatchEnd {
    /// The watch continues from where it was.
    Cut,
    /// The version is too old: everything is listed anew.
    Expired,
    /// The server cannot be reached; only a new list shows that it can be again.
    Broken,
}

fn end_of(why: &watcher::Error) -> PodWatchEnd {
    match why {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410 => {
            PodWatchEnd::Expired
        }
        watcher::Error::WatchError(status) if status.code == 410 => PodWatchEnd::Expired,
        watcher::Error::WatchError(_) | watcher::Error::WatchFailed(_) => PodWatchEnd::Cut,
        _ => PodWatchEnd::Broken,
    }
}

/// Deletes pods from the queue until cancelled.
pub async fn bury_on(pods: Pods, until: CancellationToken) {
    let Some(mut doomed) = pods.doomed() else { return };
    let mut again: Vec<String> = Vec::new();
    let mut pause = Pause::default();
    loop {
        let name = match again.pop() {
            Some(name) => name,
            None => tokio::select! {
                () = until.cancelled() => return,
                name = doomed.recv() => match name {
                    Some(name) => name,
                    None => return,
                },
            },
        };
        match pods.cluster().delete(&name).await {
            Ok(()) => pause = Pause::default(),
            Err(why) => {
                tracing::warn!(pod = name, why = why.detail, "a worker's pod was not deleted yet");
                if why.may_pass && again.len() < AGAIN_MAX {
                    again.insert(0, name);
                }
                tokio::select! {
                    () = until.cancelled() => return,
                    () = pause.take(why.after) => {}
                }
            }
        }
    }
}

/// Pauses with exponential growth and jitter.
#[derive(Debug, Default)]
pub(super) struct Pause(u32);

impl Pause {
    /// Sleeps for the next pause, at least `least`.
    pub(super) async fn take(&mut self, least: Option<Duration>) {
        let span = PAUSE_MIN.saturating_mul(1 << self.0.min(10)).min(PAUSE_MAX);
        self.0 += 1;
        sleep(span.mul_f64(rand::random_range(0.5..1.0)).max(least.unwrap_or_default())).await;
    }
}
