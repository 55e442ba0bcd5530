//! Reconcile: after the database went to another timeline, compares what this replica has seen with what
//! is there (a promoted standby may lack the newest commits).
//!
//! ```text
//! beat: the row's timeline ≠ the database's ──► compare ──► close what was cut off ──► timeline into the row
//!                                                     meanwhile nobody claims
//! ```
//! Keeps I10: a turn that a worker has received may look queued again, so nothing is claimed before
//! every replica at work has compared. Keeps I8: where nothing was lost nothing is found, and nothing
//! happens. Runs after every broken connection too: a crash without `synchronous_commit` loses commits
//! on the same timeline.

use std::sync::atomic::Ordering;

use super::shared::Engine;
use crate::{
    event::Kind,
    store::{StoreError, warn_of},
    telemetry::metrics,
};

/// Turns in one statement.
const TURNS_MAX: usize = 500;

/// Compares everything that is remembered, and says what was lost.
pub(super) async fn compare(engine: &Engine) -> Result<(), StoreError> {
    let store = &engine.store;
    let breaks = store.breaks();
    // The new primary may be another machine, with a clock of its own.
    store.probe().await?;
    let seen = store.seen_commits().all();
    let (mut turns, mut events) = (0, 0);
    for some in seen.chunks(TURNS_MAX) {
        for rewound in store.reconcile(some).await? {
            turns += 1;
            events += rewound.events_lost;
            tracing::error!(
                turn_id = %rewound.turn, how = rewound.how, events_lost = rewound.events_lost,
                "the database lost a part of this turn"
            );
            metrics::rewound(&rewound.how, rewound.events_lost);
            if rewound.how == "closed" {
                metrics::last_words(Kind::Failed, "internal");
            }
            if let Some(epoch) = engine.host.runs().get(&rewound.turn) {
                engine.host.halt(rewound.turn, *epoch);
            }
            store.seen_commits().forget(rewound.turn);
        }
    }
    if turns > 0 {
        tracing::error!(turns, events, "the database went back in time: commits are lost");
    }
    // Not before the end: one that failed, or that a break overtook, has to be done again.
    engine.compared_breaks.store(breaks, Ordering::Release);
    Ok(())
}

/// Whether a comparison that began after the last broken connection came to its end.
pub(super) fn is_up_to_date(engine: &Engine) -> bool {
    engine.compared_breaks.load(Ordering::Acquire) == engine.store.breaks()
}

/// Compares in the background, so that the beat goes on. With `timeline` it says in this replica's row
/// that it has; until then nobody claims.
pub(super) fn spawn(engine: &Engine, timeline: Option<i32>) {
    if engine.is_reconciling.swap(true, Ordering::AcqRel) {
        return;
    }
    let engine = engine.clone();
    let supervisor = engine.supervisor.clone();
    supervisor.spawn(crate::task::Kind::Turn, "reconcile", async move {
        if let Err(why) = on_timeline(&engine, timeline).await {
            // The next beat asks again.
            warn_of!(why, "what was seen is not compared yet");
        }
        engine.is_reconciling.store(false, Ordering::Release);
    });
}

async fn on_timeline(engine: &Engine, timeline: Option<i32>) -> Result<(), StoreError> {
    let Some(timeline) = timeline else { return compare(engine).await };
    tracing::warn!(timeline, "the database is on another timeline; comparing it with what was seen");
    // A worker's own memory may hold what is lost; a fresh one is told what there is.
    engine.host.retire_workers();
    compare(engine).await?;
    if engine.store.set_reconciled(timeline).await? {
        tracing::info!(timeline, "compared");
    }
    engine.store.wake().look_everywhere();
    Ok(())
}
