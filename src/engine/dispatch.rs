//! Dispatch: claims queued turns for free places, and brings orders to the turns that run here.
//!
//! Both passes look when the doorbell rings, and now and then all the same (I13, `Wake::look_due`).

use std::{collections::HashSet, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Engine, remote};
use crate::{
    id::TurnId,
    store::{StoreError, inflight::Held},
    turn::CancelledBy,
};

/// A little more than the head start that a warm worker's replica has.
const HEAD_START: Duration = Duration::from_millis(60);
/// Claims in one statement.
const CLAIMS_MAX: usize = 256;
/// How long the queue is followed from where the last claim ended, while there is more than can be taken.
const FOLLOW_MAX: Duration = Duration::from_millis(100);
/// Between two comparisons of what is held with what runs.
const SETTLE_EVERY: Duration = Duration::from_secs(5);

/// Claims until told to take on nothing new.
pub async fn claim_on(engine: Engine, until: CancellationToken) {
    let mut settled_at = Instant::now();
    let mut missing = HashSet::new();
    let mut is_second_look = false;
    let mut line = Line::default();
    loop {
        let wake = engine.store.wake();
        let is_rung = tokio::select! {
            () = until.cancelled() => return,
            () = wake.queue() => true,
            () = sleep(HEAD_START), if is_second_look => false,
            () = wake.look_due() => false,
        };
        match claim(&engine, &mut line, &until).await {
            // Others' conversations may wait for their own replica's head start.
            Ok(is_short) => is_second_look = is_rung && is_short,
            Err(why) => {
                tracing::warn!(%why, "nothing claimed");
                is_second_look = false;
            }
        }
        match remote::claim(&engine).await {
            Ok(is_left) => is_second_look |= is_left,
            Err(why) => tracing::warn!(%why, "nothing claimed for remote workers"),
        }
        if settled_at.elapsed() >= SETTLE_EVERY {
            settled_at = Instant::now();
            if let Err(why) = settle(&engine, &mut missing).await {
                tracing::warn!(%why, "claims of our own not looked at");
            }
        }
    }
}

/// How far the queue was claimed from its front.
#[derive(Debug, Default)]
struct Line {
    /// The last one, and when the front was looked at.
    last: Option<(TurnId, Instant)>,
}

impl Line {
    /// Where the next look begins; `None`: at the front.
    fn behind(&mut self, now: Instant) -> Option<TurnId> {
        self.last = self.last.filter(|(_, front_at)| now.duration_since(*front_at) < FOLLOW_MAX);
        self.last.map(|(turn, _)| turn)
    }

    /// A look that began now found as many as there were places for, up to this one; `None`: fewer.
    fn goes_on(&mut self, now: Instant, last: Option<TurnId>) {
        let front_at = self.last.map_or(now, |(_, front_at)| front_at);
        self.last = last.map(|turn| (turn, front_at));
    }
}

/// Claims what there are places for; whether it found less than that.
async fn claim(engine: &Engine, line: &mut Line, until: &CancellationToken) -> Result<bool, StoreError> {
    loop {
        if until.is_cancelled() {
            return Ok(false);
        }
        if !engine.is_present() {
            return Ok(false);
        }
        let Some(mut room) = engine.host.room(CLAIMS_MAX) else { return Ok(false) };
        let places = room.places();
        let limit = i64::try_from(places).unwrap_or(0);
        let now = Instant::now();
        let behind = line.behind(now);
        let claims = engine.store.claim(engine.host.runtimes(), room.ready(), behind, limit).await?;
        let is_short = claims.len() < places;
        line.goes_on(now, claims.iter().map(|claim| claim.turn).max().filter(|_| !is_short));
        for claim in claims {
            let (turn, epoch) = (claim.turn, claim.epoch);
            // A drain may have begun while the answer was on its way.
            if until.is_cancelled() || !engine.host.take(claim, &mut room) {
                let is_released = engine.store.release(turn, epoch, true).await?;
                tracing::info!(turn_id = %turn, is_released, "claimed without a place for it; given back");
            }
        }
        // Behind the last one there is no more; before it there may be.
        if is_short && behind.is_none() {
            return Ok(true);
        }
    }
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
        if engine.host.forgo_unless_had(turn, epoch) && engine.store.release(turn, epoch, true).await? {
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

/// Brings orders to the turns that run here, until cancelled.
pub async fn order_on(engine: Engine, until: CancellationToken) {
    loop {
        let wake = engine.store.wake();
        tokio::select! {
            () = until.cancelled() => return,
            () = wake.orders() => {}
            () = wake.look_due() => {}
        }
        if let Err(why) = bring_orders(&engine).await {
            tracing::warn!(%why, "orders not read");
        }
    }
}

async fn bring_orders(engine: &Engine) -> Result<(), StoreError> {
    remote::look_after(engine).await?;
    let runs: Vec<TurnId> = engine.host.runs().into_keys().collect();
    if !runs.is_empty() {
        for command in engine.store.commands(&runs).await? {
            engine.host.order(command);
        }
    }
    if engine.host.lives() > 0 || engine.store.desk().has_callers() {
        for worker in engine.store.stops().await? {
            // A stop that finds a live turn goes through the same last word as everything else.
            let turns = engine.host.stop_worker(worker);
            if let Some(caller) = engine.store.desk().caller(worker) {
                caller.stop();
            }
            if !turns.is_empty() {
                engine.store.cancel(&turns, CancelledBy::Operator).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_queue_is_followed_for_a_moment_and_its_front_is_looked_at_again() {
        let turns = [1, 2].map(|n| TurnId(Uuid::from_u128(n)));
        let mut line = Line::default();
        let mut now = Instant::now();
        assert_eq!(line.behind(now), None);
        for turn in turns {
            line.goes_on(now, Some(turn));
            assert_eq!(line.behind(now), Some(turn));
            now += FOLLOW_MAX * 2 / 3;
        }
        assert_eq!(line.behind(now), None, "the front was looked at too long ago");
        line.goes_on(now, Some(turns[0]));
        line.goes_on(now, None);
        assert_eq!(line.behind(now), None, "there was no more");
    }
}
