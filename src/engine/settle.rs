//! Settle: compares the turns held in this replica's name with the turns that run here, until the replica has
//! left.
//!
//! Postgres' answer may be lost after its commit: this replica then holds a claim that runs nowhere. Settle finds
//! such claims, also during a drain, so that they do not look like turns that died with the replica.

use std::{collections::HashSet, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::shared::Engine;
use crate::{
    id::TurnId,
    store::{StoreError, inflight::Held, warn_of},
};

/// Pause between two comparisons.
const SETTLE_EVERY: Duration = Duration::from_secs(5);

/// Compares until cancelled.
pub async fn settle_on(engine: Engine, until: CancellationToken) {
    let mut missing = HashSet::new();
    while until.run_until_cancelled(sleep(SETTLE_EVERY)).await.is_some() {
        if let Err(why) = settle(&engine, &mut missing).await {
            warn_of!(why, "this replica's claims could not be compared with the database");
        }
    }
}

/// The last comparison, when no claim is in flight any more: what does not run here now never will.
pub async fn settle_last(engine: &Engine) -> Result<(), StoreError> {
    let mut missing = HashSet::new();
    for _ in 0..2 {
        settle(engine, &mut missing).await?;
    }
    Ok(())
}

/// Resolves differences between the database and this process. Gives back rows that no worker has received (the
/// claim's answer was lost). Disowns rows that a worker may have received (the run ended while Postgres was away),
/// which the close pass then ends. Ends runs no longer held here, and idle workers whose conversation moved away.
/// A row must be missing here in two comparisons in a row, because the answer to its claim may be in flight.
async fn settle(engine: &Engine, missing: &mut HashSet<(TurnId, i32)>) -> Result<(), StoreError> {
    let left = engine.host.time_left();
    if !left.is_empty() {
        let moved = engine.store.hold(&left).await?;
        if moved > 0 {
            tracing::warn!(moved, "deadlines were too early by the database's clock and were moved");
        }
    }
    let warm: Vec<_> = engine.host.warm().iter().map(|warm| (warm.conversation, warm.generation)).collect();
    let before = engine.host.runs();
    let Held { turns: held, taken_over } = engine.store.held(&warm).await?;
    let now = engine.host.runs();
    engine.host.stop_taken_over(&warm, &taken_over);
    let is_here = |turn| now.contains_key(turn) || before.contains_key(turn);
    let gone: HashSet<_> = held.iter().filter(|(turn, _)| !is_here(turn)).map(|(&t, &e)| (t, e)).collect();
    for &(turn, epoch) in gone.intersection(missing) {
        // If the claim's answer was lost no worker has received the turn, whatever its phase.
        if engine.host.release_unless_delivered(turn, epoch)
            && engine.store.release(turn, epoch, true).await?
        {
            tracing::warn!(
                turn_id = %turn, epoch,
                "a claimed turn has reached no worker; the turn is given back"
            );
            continue;
        }
        engine.store.disown(turn, epoch).await?;
        tracing::warn!(turn_id = %turn, epoch, "a claimed turn does not run here; it will be closed as lost");
    }
    *missing = gone;
    for (turn, epoch) in before {
        let is_running = now.get(&turn) == Some(&epoch);
        if is_running && held.get(&turn) != Some(&epoch) && engine.store.is_over(turn, epoch).await? {
            engine.host.halt(turn, epoch);
        }
    }
    Ok(())
}
