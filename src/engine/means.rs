//! Means: whether this replica has what the start of a worker takes, looked at once a second.
//!
//! While it lacks something it claims nothing that a worker may have to be started for, is not ready, and ends
//! workers that have no turn: what they hold is what is lacking. Turns of remote workers go on being claimed: they
//! need nothing to be started. Keeps I8: a want of this replica's own is nobody's failure.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::shared::Engine;
use crate::{
    descriptors::{self, Lack},
    telemetry::metrics,
};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Idle workers that are ended at a look: enough for the starts of the next second, and not all that are warm.
const ENDED_MAX: usize = 4;

/// Looks until cancelled.
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

/// Tells operators.
fn note(before: Option<Lack>, now: Option<Lack>) {
    let descriptors::LimitUse { used, max } = descriptors::seen();
    metrics::bound("descriptors", used, max);
    metrics::claims_paused(now.is_some());
    match (before, now) {
        (None, Some(lack)) => {
            tracing::warn!(lack = lack.as_str(), used, max, "nothing is claimed: no worker could be started");
        }
        (Some(_), None) => tracing::info!(used, max, "workers can be started again"),
        _ => {}
    }
}
