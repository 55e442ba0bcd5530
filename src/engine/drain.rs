//! Drain: how a replica leaves. Claims nothing new, lets turns end, closes the rest, deregisters last.
//!
//! The beat goes on until the last turn is closed: a replica that still holds turns must not look dead, or another
//! replica would close them early.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{dispatch, reconcile, settle, shared::Engine};
use crate::{
    id::TurnId,
    store::{blockers::by_blocker, warn_of},
    worker::host::Halt,
};

/// Time limit for the last words of interrupted turns and the ends of workers.
const CLOSE_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The first log line about what the drain waits for comes after this time, further ones once a minute.
const TOLD_AFTER: Duration = Duration::from_secs(2);
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Turn ids in one log line.
const NAMED_MAX: usize = 8;

/// Drains until nothing runs here, the deadline passes, or `now` is cancelled; then deregisters. The caller stops
/// the tasks afterwards: they still have to write the last words of interrupted turns.
pub async fn drain(engine: &Engine, deadline: Duration, now: &CancellationToken) {
    let until = Instant::now() + deadline;
    if let Err(why) = engine.store.start_drain().await {
        // This replica claims nothing in any case; the others learn of the drain by `left` or a verdict.
        warn_of!(why, "the drain could not be announced to other replicas");
    }
    tracing::info!(turns = engine.host.runs().len(), "draining");
    engine.host.retire_workers();
    // A claim may be in flight, so an idle host counts only once dispatch has ended.
    let is_claiming = || engine.supervisor.board().state(dispatch::LINE).is_some();
    let nothing_runs = || !is_claiming() && engine.host.runs().is_empty();
    tokio::select! {
        _ = timeout_at(until, settled(nothing_runs)) => {}
        () = now.cancelled() => {}
        () = tell_waits(engine) => {}
    }
    let left = turns(engine);
    if !left.is_empty() {
        let named = named(&left);
        tracing::warn!(turns = left.len(), named, "the drain is over; turns that still run are interrupted");
    }
    engine.host.halt_all(Halt::Interrupted);
    let end = Instant::now() + CLOSE_MAX;
    let is_settled = tokio::select! {
        settled = timeout_at(end, settled(nothing_runs)) => settled.is_ok(),
        () = tell_waits(engine) => false,
    };
    if !is_settled {
        let left = turns(engine);
        tracing::warn!(
            turns = left.len(),
            named = named(&left),
            "turns are left for another replica to close"
        );
    }
    let _ = timeout_at(end, settled(|| engine.host.lives() == 0)).await;
    if let Ok(Err(why)) = timeout_at(end, settle::settle_last(engine)).await {
        warn_of!(why, "this replica's claims could not be compared with the database before leaving");
    }
    // No other replica knows which commits this one has seen.
    if !engine.is_present()
        && let Ok(Err(why)) = timeout_at(end, reconcile::compare(engine)).await
    {
        warn_of!(why, "commits seen here could not be compared with the database before leaving");
    }
    if let Err(why) = engine.store.leave().await {
        warn_of!(why, "this replica could not deregister; other replicas will judge it lost");
    }
}

/// Logs the turns the drain waits for, and the foreign sessions that block them. Never returns.
async fn tell_waits(engine: &Engine) {
    tokio::time::sleep(TOLD_AFTER).await;
    loop {
        let all = turns(engine);
        let waits = engine.store.waits(&all).await;
        for group in by_blocker(&waits) {
            group.warn("the drain waits for a turn: another database session has locked a row of the turn");
        }
        let others: Vec<TurnId> =
            all.into_iter().filter(|turn| waits.iter().all(|wait| wait.turn != Some(*turn))).collect();
        if !others.is_empty() {
            tracing::info!(turns = others.len(), named = named(&others), "the drain waits for running turns");
        }
        tokio::time::sleep(TOLD_EVERY).await;
    }
}

/// The turns that run here, sorted.
fn turns(engine: &Engine) -> Vec<TurnId> {
    let mut turns: Vec<TurnId> = engine.host.runs().into_keys().collect();
    turns.sort();
    turns
}

/// The first ids, for a log line.
fn named(turns: &[TurnId]) -> String {
    let named: Vec<String> = turns.iter().take(NAMED_MAX).map(TurnId::to_string).collect();
    named.join(" ")
}

async fn settled(is_settled: impl Fn() -> bool) {
    while !is_settled() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
