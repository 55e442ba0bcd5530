//! Reconcile: after the database moved to another timeline, compares the commits this replica has seen with the
//! database. A promoted standby may lack the newest commits.
//!
//! ```text
//! beat: the row's timeline ≠ the database's ──► compare ──► close what was cut off ──► timeline into the row
//!                                                     meanwhile nobody claims
//! ```
//!
//! Keeps I10: a turn that a worker has received may look queued again, so nothing is claimed before every working
//! replica has compared. Keeps I8: without lost commits nothing changes. Also runs after every broken connection,
//! because a crash without `synchronous_commit` loses commits on the same timeline.

use std::sync::atomic::Ordering;

use super::shared::Engine;
use crate::{
    event::Kind,
    failure::Code,
    store::{StoreError, warn_of, word::Loss},
    telemetry::metrics,
};

/// Turns in one statement.
const TURNS_MAX: usize = 500;

/// Compares all remembered commits, and reports what was lost.
pub(super) async fn compare(engine: &Engine) -> Result<(), StoreError> {
    let store = &engine.store;
    let breaks = store.breaks();
    // The new primary may be another machine with another clock.
    store.probe().await?;
    let seen = store.seen_commits().all();
    let (mut turns, mut events) = (0, 0);
    for some in seen.chunks(TURNS_MAX) {
        for rewound in store.reconcile(some).await? {
            turns += 1;
            events += rewound.events_lost;
            tracing::error!(
                turn_id = %rewound.turn, how = rewound.how.as_str(), events_lost = rewound.events_lost,
                "the database lost a part of this turn"
            );
            metrics::rewound(rewound.how.as_str(), rewound.events_lost);
            if rewound.how == Loss::Closed {
                metrics::last_words(Kind::Failed, Code::Internal.as_str());
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
    // Stored last: a comparison that failed, or was overtaken by another break, is repeated.
    engine.compared_breaks.store(breaks, Ordering::Release);
    Ok(())
}

/// Whether a comparison that began after the last broken connection has completed.
pub(super) fn is_up_to_date(engine: &Engine) -> bool {
    engine.compared_breaks.load(Ordering::Acquire) == engine.store.breaks()
}

/// Compares in the background while the beat goes on. With `timeline`, records in this replica's row that it has
/// compared; until then no replica claims.
pub(super) fn spawn(engine: &Engine, timeline: Option<i32>) {
    if engine.is_reconciling.swap(true, Ordering::AcqRel) {
        return;
    }
    let engine = engine.clone();
    let supervisor = engine.supervisor.clone();
    supervisor.spawn(crate::task::TaskKind::Turn, "reconcile", async move {
        if let Err(why) = on_timeline(&engine, timeline).await {
            // The next beat starts another comparison.
            warn_of!(why, "commits seen here could not be compared with the database yet");
        }
        engine.is_reconciling.store(false, Ordering::Release);
    });
}

async fn on_timeline(engine: &Engine, timeline: Option<i32>) -> Result<(), StoreError> {
    let Some(timeline) = timeline else { return compare(engine).await };
    tracing::warn!(timeline, "the database is on another timeline; comparing it with the commits seen here");
    // A warm worker may remember turns that are lost; a fresh worker is given the history that exists.
    engine.host.retire_workers();
    compare(engine).await?;
    if engine.store.set_reconciled(timeline).await? {
        tracing::info!(timeline, "the database was compared with the commits seen here");
    }
    engine.store.wake().look_everywhere();
    Ok(())
}
