//! Drain: how a replica leaves. Takes on nothing new, lets turns end, closes what is left,
//! deregisters last.
//!
//! The beat goes on until the last turn is closed: a replica that still holds turns must not look
//! dead, or another would close them too early.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{dispatch, reconcile, settle, shared::Engine};
use crate::{
    id::TurnId,
    store::{blockers::by_blocker, warn_of},
    worker::host::Halt,
};

/// How long the last words of interrupted turns, and the ends of workers, may take.
const CLOSE_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What a drain waits for is told after so long, and once a minute.
const TOLD_AFTER: Duration = Duration::from_secs(2);
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Turns that one line names.
const NAMED_MAX: usize = 8;

/// Drains until nothing runs here, the deadline, or `now`; then deregisters. The caller stops every
/// task afterwards, not before: the last words of what is interrupted are still to be written.
pub async fn drain(engine: &Engine, deadline: Duration, now: &CancellationToken) {
    let until = Instant::now() + deadline;
    if let Err(why) = engine.store.start_drain().await {
        // It claims nothing all the same; the verdict or `left` tells the others.
        warn_of!(why, "the drain was not announced");
    }
    tracing::info!(turns = engine.host.runs().len(), "draining");
    engine.host.retire_workers();
    // A claim may still be on its way: only when dispatch has ended does an empty host mean the end.
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
        tracing::warn!(turns = left.len(), named, "the drain is over; what still runs is interrupted");
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
        warn_of!(why, "claims of our own not looked at before leaving");
    }
    // Nobody else knows what this replica has seen.
    if !engine.is_present()
        && let Ok(Err(why)) = timeout_at(end, reconcile::compare(engine)).await
    {
        warn_of!(why, "what was seen was not compared before leaving");
    }
    if let Err(why) = engine.store.leave().await {
        warn_of!(why, "not deregistered; the others will find out");
    }
}

/// Tells which turns are waited for, and which sessions of somebody else's these wait for. Does not end.
async fn tell_waits(engine: &Engine) {
    tokio::time::sleep(TOLD_AFTER).await;
    loop {
        let all = turns(engine);
        let waits = engine.store.waits(&all).await;
        for group in by_blocker(&waits) {
            group.warn("the drain waits for a turn of which somebody else has locked a row");
        }
        let others: Vec<TurnId> =
            all.into_iter().filter(|turn| waits.iter().all(|wait| wait.turn != Some(*turn))).collect();
        if !others.is_empty() {
            tracing::info!(
                turns = others.len(),
                named = named(&others),
                "the drain waits for turns that run"
            );
        }
        tokio::time::sleep(TOLD_EVERY).await;
    }
}

/// What runs here.
fn turns(engine: &Engine) -> Vec<TurnId> {
    let mut turns: Vec<TurnId> = engine.host.runs().into_keys().collect();
    turns.sort();
    turns
}

/// The first of these turns, for a line in the log.
fn named(turns: &[TurnId]) -> String {
    let named: Vec<String> = turns.iter().take(NAMED_MAX).map(TurnId::to_string).collect();
    named.join(" ")
}

async fn settled(is_settled: impl Fn() -> bool) {
    while !is_settled() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
