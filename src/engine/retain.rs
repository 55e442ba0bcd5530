//! Retain: makes the log's partitions ahead, drops old ones whole, sweeps what is retained no longer.
//!
//! Paced: a sweep takes half of the time of one connection at most, so that turns under way go on, and it begins often
//! enough that it never has more to do than a part of what is retained.

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

/// A pass begins so often, or several times within what is retained.
const PASS_EVERY: Duration = Duration::from_secs(600);
const PASS_EVERY_MIN: Duration = Duration::from_secs(1);
const PASSES_WITHIN: u32 = 20;
const AGAIN_SOON: Duration = Duration::from_secs(5);
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// The rest after a batch, in times of the batch.
const REST: u32 = 1;
/// What a sweep passed over, since it was in flight then, is looked for again so often, or within what is retained.
const FROM_THE_FRONT_EVERY: Duration = Duration::from_secs(600);

/// How far the sweeps have come.
struct SweepPositions {
    turns: Uuid,
    conversations: Uuid,
    from_the_front: Instant,
}

/// Keeps house until cancelled.
pub async fn retain_on(engine: Engine, until: CancellationToken) {
    let mut places =
        SweepPositions { turns: Uuid::nil(), conversations: Uuid::nil(), from_the_front: Instant::now() };
    let every = (engine.retain / PASSES_WITHIN).clamp(PASS_EVERY_MIN, PASS_EVERY);
    loop {
        let began = Instant::now();
        let wait = match until.run_until_cancelled(pass(&engine, &mut places)).await {
            Some(Ok(())) => every,
            Some(Err(why)) => {
                warn_of!(why, "housekeeping is tried again soon");
                AGAIN_SOON.min(every)
            }
            None => return,
        };
        // One that takes as long as what it is to keep does not keep up.
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
    // What was deleted while a turn ran, or by a call that ended before it had erased everything.
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

/// Sweeps turns, and conversations that none is left of, until nothing older is there.
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

/// What must happen now and then, whatever Postgres does: workers' guards hear that this replica
/// lives, and histograms give back their memory.
pub async fn upkeep_on(engine: Engine, until: CancellationToken) {
    loop {
        tokio::select! {
            () = until.cancelled() => return,
            () = tokio::time::sleep(UPKEEP_EVERY.min(engine.postgres_away_max / 4)) => {}
        }
        engine.host.renew();
        metrics::upkeep();
    }
}
