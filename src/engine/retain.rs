//! Retain: creates the log's partitions ahead, drops old ones, sweeps rows that are past retention.
//!
//! Paced: a sweep uses one connection for at most half of the time, so running turns are not slowed down. It runs
//! often enough that each pass has only a fraction of the retained rows to remove.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::shared::Engine;
use crate::{
    store::{
        StoreError,
        conversations::ERASED_AT_ONCE,
        sweep::{BATCH_REST, keep_from},
        warn_of,
    },
    telemetry::metrics,
};

/// Interval of passes: `retain` / `PASSES_WITHIN`, between these bounds.
const PASS_EVERY: Duration = Duration::from_secs(600);
const PASS_EVERY_MIN: Duration = Duration::from_secs(1);
const PASSES_WITHIN: u32 = 20;
const AGAIN_SOON: Duration = Duration::from_secs(5);
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Pause after a batch, as a multiple of the batch's duration.
const REST: u32 = 1;
/// How often a sweep restarts from the front, to find rows that were in flight when it passed them; at most
/// `retain`.
const FROM_THE_FRONT_EVERY: Duration = Duration::from_secs(600);

/// Where the sweeps left off.
struct SweepPositions {
    turns: Uuid,
    conversations: Uuid,
    from_the_front: Instant,
}

/// Runs passes until cancelled.
pub async fn retain_on(engine: Engine, until: CancellationToken) {
    let mut places =
        SweepPositions { turns: Uuid::nil(), conversations: Uuid::nil(), from_the_front: Instant::now() };
    let every = (engine.retain / PASSES_WITHIN).clamp(PASS_EVERY_MIN, PASS_EVERY);
    loop {
        let began = Instant::now();
        let wait = match until.run_until_cancelled(pass(&engine, &mut places)).await {
            Some(Ok(())) => every,
            Some(Err(why)) => {
                warn_of!(why, "housekeeping failed; trying again");
                AGAIN_SOON.min(every)
            }
            None => return,
        };
        // A pass that takes as long as `retain` does not keep up.
        metrics::bound("sweep", began.elapsed().as_secs(), engine.retain.as_secs().max(1));
        tokio::select! {
            () = until.cancelled() => return,
            () = sleep(wait.mul_f64(rand::random_range(0.9..1.1))) => {}
        }
    }
}

async fn pass(engine: &Engine, places: &mut SweepPositions) -> Result<(), StoreError> {
    let store = &engine.store;
    store.probe().await?;
    let made = store.make_partitions().await?;
    let kept = || keep_from(store.clock().now(), engine.retain);
    let dropped = match kept() {
        Some(keep_from) => store.drop_partitions(keep_from.date_naive()).await?,
        None => Vec::new(),
    };
    let (turns, conversations) = sweep_turns(engine, places).await?;
    // Erases conversations deleted while a turn ran, or whose erasure was interrupted.
    while store.erase(None, ERASED_AT_ONCE).await? > 0 {}
    let mut swept = 0;
    loop {
        let began = Instant::now();
        let most = store.sweep().await?.max(store.sweep_remote().await?);
        swept += most;
        if most < BATCH_REST {
            break;
        }
        sleep(began.elapsed() * REST).await;
    }
    let workspaces = engine.host.remove_leftovers().await?;
    tracing::debug!(made, dropped = dropped.len(), turns, conversations, swept, workspaces, "housekeeping");
    Ok(())
}

/// Sweeps turns, then empty conversations, until none is past retention.
async fn sweep_turns(engine: &Engine, places: &mut SweepPositions) -> Result<(i64, i64), StoreError> {
    let kept = || keep_from(engine.store.clock().now(), engine.retain);
    if places.from_the_front.elapsed() > FROM_THE_FRONT_EVERY.min(engine.retain) {
        (places.turns, places.from_the_front) = (Uuid::nil(), Instant::now());
    }
    let mut sweeper = engine.store.sweeper().await?;
    let (mut turns, mut conversations) = (0, 0);
    while let Some(keep_from) = kept() {
        let began = Instant::now();
        let swept = sweeper.turns(places.turns, keep_from).await?;
        turns += i64::from(swept.turns);
        conversations += i64::from(swept.conversations);
        let Some(last) = swept.last else { break };
        places.turns = last;
        sleep(began.elapsed() * REST).await;
    }
    while let Some(keep_from) = kept() {
        let began = Instant::now();
        let swept = sweeper.empty(places.conversations, keep_from).await?;
        conversations += i64::from(swept.conversations);
        places.conversations = swept.last.unwrap_or_default();
        if swept.last.is_none() {
            break;
        }
        sleep(began.elapsed() * REST).await;
    }
    Ok((turns, conversations))
}

/// Periodic work that does not depend on Postgres: renews the lifeline of worker guards, and frees histogram
/// memory.
pub async fn upkeep_on(engine: Engine, until: CancellationToken) {
    while until
        .run_until_cancelled(tokio::time::sleep(UPKEEP_EVERY.min(engine.postgres_away_max / 4)))
        .await
        .is_some()
    {
        engine.host.renew();
        metrics::upkeep();
    }
}
