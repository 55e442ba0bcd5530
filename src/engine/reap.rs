//! Reap: closes what is overdue or held by the gone, on any replica, without an election.
//!
//! Sleeps until the next deadline, a verdict or a ring. What a living holder has left overdue is
//! closed only after this replica's own 20 beats: its holder closes its turns exactly, and a step
//! of the database's clock kills nobody (I6). Held by the gone: at once, and once a second for a
//! minute after, since a zombie's claim can commit after the first pass.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::{
    event::Kind,
    id::TurnId,
    store::{
        StoreError,
        inflight::{Outlook, Overdue},
    },
    telemetry::metrics,
};

/// The longest sleep between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two looks while something is overdue, or somebody was lost.
const LOOK_SOON: Duration = Duration::from_millis(100);
const LOOK_AFTER_LOSS: Duration = Duration::from_secs(1);
/// 20 beats of 500 ms.
const OVERDUE_MAX: Duration = Duration::from_secs(10);
/// Last words in one statement.
const CLOSE_MAX: i32 = 500;

/// Closes until cancelled.
pub async fn close_on(engine: Engine, until: CancellationToken) {
    let mut overdue = HashMap::new();
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = until.cancelled() => return,
            _ = timeout(wait, engine.store.wake().closing()) => {}
        }
        wait = match pass(&engine, &mut overdue).await {
            Ok(wait) => wait,
            Err(why) => {
                tracing::warn!(%why, "nothing closed");
                overdue.clear();
                LOOK_AFTER_LOSS
            }
        };
    }
}

/// One pass; how long to sleep after it.
async fn pass(engine: &Engine, seen: &mut HashMap<Overdue, Instant>) -> Result<Duration, StoreError> {
    let is_after_loss = engine.recent_loss.swap(false, Ordering::Relaxed);
    engine.store.promote().await?;
    let outlook = engine.store.outlook().await?;
    metrics::inflight(outlook.rows.unsigned_abs());
    metrics::overdue(outlook.overdue.len() as u64);
    let lapsed = left_overdue(&outlook, seen, Instant::now());
    if is_after_loss || outlook.closable > 0 || !lapsed.is_empty() {
        close(engine, &lapsed).await?;
    }
    if outlook.closable > 0 {
        return Ok(LOOK_SOON);
    }
    let until_next = outlook.next_ms.map_or(LOOK_EVERY, |ms| Duration::from_millis(ms.max(0).unsigned_abs()));
    let is_watching = is_after_loss || !outlook.overdue.is_empty();
    let longest = if is_watching { LOOK_AFTER_LOSS } else { LOOK_EVERY };
    Ok((until_next + Duration::from_millis(5)).min(longest))
}

/// Which rows a living holder has left overdue for long enough, with the same deadline.
fn left_overdue(outlook: &Outlook, seen: &mut HashMap<Overdue, Instant>, now: Instant) -> Vec<TurnId> {
    seen.retain(|row, _| outlook.overdue.contains(row));
    let mut lapsed = Vec::new();
    for row in &outlook.overdue {
        let first = *seen.entry(*row).or_insert(now);
        if now.duration_since(first) >= OVERDUE_MAX {
            lapsed.push(row.turn);
        }
    }
    lapsed
}

async fn close(engine: &Engine, lapsed: &[TurnId]) -> Result<(), StoreError> {
    loop {
        let closed = engine.store.close_due(lapsed, CLOSE_MAX).await?;
        for word in &closed {
            tracing::info!(turn_id = %word.turn, kind = word.kind, code = word.code, agent = word.agent, "closed");
            match word.kind.parse::<Kind>() {
                Ok(kind) => metrics::last_words(kind, &word.code),
                Err(_) => metrics::requeued("replica_lost"),
            }
        }
        // Looped until a short page: what is left over is due as well.
        if closed.len() < usize::try_from(CLOSE_MAX).unwrap_or(usize::MAX) {
            return Ok(());
        }
    }
}
