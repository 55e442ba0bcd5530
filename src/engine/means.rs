//! Means: checks once a second whether this replica has the resources to start workers.
//!
//! While a resource is short this replica is not ready, claims nothing that may need a new worker, and stops idle
//! workers to free what they hold. Turns of remote workers are still claimed, since they start nothing here. Keeps
//! I8: a shortage of this replica fails no turn.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::shared::Engine;
use crate::{
    descriptors::{self, Lack},
    telemetry::metrics,
};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Idle workers stopped by one check: enough for the starts of the next second, yet some stay warm.
const ENDED_MAX: usize = 4;

/// Checks until cancelled.
pub async fn look_on(engine: Engine, until: CancellationToken) {
    let mut before = None;
    loop {
        descriptors::look().await;
        engine.host.note_bounds();
        engine.store.note_bounds();
        engine.rendezvous.note_bounds();
        let shortage = descriptors::shortage();
        note(before, shortage);
        match shortage {
            Some(_) => engine.host.end_idle(ENDED_MAX),
            None if before.is_some() => engine.store.wake().queue.look(),
            None => engine.host.look_if_wanted(),
        }
        before = shortage;
        tokio::select! {
            () = until.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Publishes the metrics, and logs the begin and end of a shortage.
fn note(before: Option<Lack>, now: Option<Lack>) {
    let descriptors::LimitUse { used, max } = descriptors::seen();
    metrics::bound("descriptors", used, max);
    metrics::claims_paused(now.is_some());
    match (before, now) {
        (None, Some(lack)) => {
            tracing::warn!(lack = lack.as_str(), used, max, "claims are paused: no worker can be started");
        }
        (Some(_), None) => tracing::info!(used, max, "workers can be started again"),
        _ => {}
    }
}
