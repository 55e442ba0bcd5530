//! Settle: what is held in this replica's name is compared with what runs here, until the replica has left.
//!
//! An answer of Postgres may be lost after its commit: then a claim is ours, and nothing runs. It is found here, also during
//! a drain: what is left behind then would look as if it had died with this replica.

use std::{collections::HashSet, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::shared::Engine;
use crate::{
    id::TurnId,
    store::{StoreError, inflight::Held, warn_of},
};

/// Between two comparisons.
const SETTLE_EVERY: Duration = Duration::from_secs(5);

/// Compares until cancelled.
pub async fn settle_on(engine: Engine, until: CancellationToken) {
    let mut missing = HashSet::new();
    loop {
        tokio::select! {
            () = until.cancelled() => return,
            () = sleep(SETTLE_EVERY) => {}
        }
        if let Err(why) = settle(&engine, &mut missing).await {
            warn_of!(why, "claims of our own not looked at");
        }
    }
}

/// The same at the end, when no claim is on its way any more: what does not run here now never will.
pub async fn settle_last(engine: &Engine) -> Result<(), StoreError> {
    let mut missing = HashSet::new();
    for _ in 0..2 {
        settle(engine, &mut missing).await?;
    }
    Ok(())
}

/// Settles what the database and this process disagree about: gives back rows that are ours and that no
/// worker has had (a claim whose answer was lost), disowns those that one may have had (it was ended while
/// Postgres was away), for the close pass to settle; ends runs that are not ours any more, and idle workers whose conversation is
/// served elsewhere now. A row must have been `missing` here twice in a row: the answer to its claim may be
/// on its way.
async fn settle(engine: &Engine, missing: &mut HashSet<(TurnId, i32)>) -> Result<(), StoreError> {
    let left = engine.host.time_left();
    if !left.is_empty() {
        let moved = engine.store.hold(&left).await?;
        if moved > 0 {
            tracing::warn!(moved, "deadlines were early by the database's clock; moved");
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
        // Where the answer to its claim was lost no worker has had it, whatever its phase.
        if engine.host.release_unless_delivered(turn, epoch)
            && engine.store.release(turn, epoch, true).await?
        {
            tracing::warn!(turn_id = %turn, epoch, "a claim of ours has reached no worker; it is given back");
            continue;
        }
        engine.store.disown(turn, epoch).await?;
        tracing::warn!(turn_id = %turn, epoch, "a claim of ours does not run here; it is disowned");
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
