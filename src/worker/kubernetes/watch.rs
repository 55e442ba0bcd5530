//! The watch: this replica's eyes on the pods of its fleet, and the hand that deletes them.
//!
//! ```text
//! list ──► watch ──event──► pods ──► who waits for one · the ends to be told
//!   ▲        │ cut, or silent: again from where it was
//!   └────────┴ too old to go on from (410): everything is listed anew
//! ```
//! Owns the way back after the API server was away: it asks again by itself, at first at once and then every few
//! seconds. Refuses to take silence for news: while the link is broken no pod is taken for gone, and no end is
//! made up.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::pods::{Pods, WatchLink};

/// How long one request to watch lasts. A connection that was cut in silence is noticed 5 s after that.
const WATCH_S: u32 = 30;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// Deletions that are tried again, at most; the sweep knows the others.
const AGAIN_MAX: usize = 1024;

/// Watches until cancelled.
pub async fn watch_on(pods: Pods, until: CancellationToken) {
    tokio::select! {
        () = until.cancelled() => {}
        () = watch(&pods) => {}
    }
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
                    // The first word of a list comes before the list was asked for.
                    if !matches!(event, Event::Init) {
                        pause = Pause::default();
                    }
                    pods.hear(event);
                }
                Err(why) => {
                    let end = end_of(&why);
                    if end == PodWatchEnd::Broken && pods.set_link(WatchLink::Broken(why.to_string())) {
                        tracing::warn!(%why, "worker pods cannot be watched; it is tried again");
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

/// What an error means for the watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PodWatchEnd {
    /// It goes on from where it was.
    Cut,
    /// There is no going on from where it was: everything is listed anew.
    Expired,
    /// The server cannot be asked. Only a list shows that it can be again.
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

/// Deletes what is to be deleted, until cancelled.
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

/// Pauses that grow, each a bit different.
#[derive(Debug, Default)]
pub(super) struct Pause(u32);

impl Pause {
    /// The next one; at least `least`, where somebody asked for it.
    pub(super) async fn take(&mut self, least: Option<Duration>) {
        let span = PAUSE_MIN.saturating_mul(1 << self.0.min(10)).min(PAUSE_MAX);
        self.0 += 1;
        sleep(span.mul_f64(rand::random_range(0.5..1.0)).max(least.unwrap_or_default())).await;
    }
}
