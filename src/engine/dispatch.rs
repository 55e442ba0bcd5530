//! Dispatch: claims queued turns for free slots, and passes commands to the turns that run here.
//!
//! Both passes run when the doorbell rings, and by a fallback poll (I13, `Rings::look_due`).

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    remote::{self, WorkersSought},
    shared::Engine,
};
use crate::{
    id::TurnId,
    store::{StoreError, ring::first, warn_of},
    turn::CancelledBy,
};

/// The name of the claims task on the task board.
pub(super) const LINE: &str = "dispatch";
/// A little more than the 50 ms head start of a warm worker's replica.
const HEAD_START: Duration = Duration::from_millis(60);
/// Claims in one statement.
const CLAIMS_MAX: usize = 256;

/// Claims turns until cancelled.
pub async fn claim_on(engine: Engine, until: CancellationToken) {
    let (mut search, mut looked_at) = (Search::default(), Instant::now());
    loop {
        let wake = engine.store.wake();
        let is_due = tokio::select! {
            () = until.cancelled() => return,
            () = wake.queue.called() => false,
            () = sleep_until(search.due_at().unwrap_or_else(Instant::now)), if search.due_at().is_some() => true,
            () = wake.rings.look_due(looked_at) => true,
        };
        let call = wake.queue.take_call();
        // The fallback poll covers the whole queue even if rings are frequent: each ring names only its own turns.
        if looked_at.elapsed() >= wake.rings.look_every() {
            looked_at = Instant::now();
            search.widen(wake.queue.front());
        }
        search.go_on(wake.queue.take_named(), Instant::now());
        if let Err(why) = claim(&engine, &mut search, &until).await {
            if why.is_held() {
                search.look_again(Instant::now());
            }
            warn_of!(why, "queued turns could not be claimed");
        }
        let reach =
            if is_due || call.is_for_queue { WorkersSought::All } else { WorkersSought::Kept(call.kept) };
        match remote::claim(&engine, &reach).await {
            Ok(false) => {}
            // A turn was left to the former holder of its conversation: look again after the head start.
            Ok(true) => search.look_again(Instant::now()),
            Err(why) => warn_of!(why, "turns for remote workers could not be claimed"),
        }
        let locked = engine.store.first_passed_over();
        search.locked = locked.map(|(first, at)| (first, at.max(Instant::now() + HEAD_START)));
    }
}

/// Which parts of the queue are still to be searched.
#[derive(Debug, Default)]
struct Search {
    /// First turn to search from; `None`: nothing to search.
    from: Option<TurnId>,
    /// First queued turn that may have been skipped because its warm replica still had its 50 ms head start.
    met: Option<TurnId>,
    /// When to search again, and the first turn of that search.
    again_at: Option<Instant>,
    again: Option<TurnId>,
    /// First turn skipped because another session holds its lock, and when to try it again.
    locked: Option<(TurnId, Instant)>,
}

impl Search {
    fn widen(&mut self, from: TurnId) {
        self.from = first(self.from, Some(from));
    }

    /// Adds newly named turns, and searches that are due now.
    fn go_on(&mut self, news: Option<TurnId>, now: Instant) {
        if self.again_at.take_if(|at| *at <= now).is_some() {
            self.from = first(self.from, self.again.take());
        }
        if let Some((turn, _)) = self.locked.take_if(|(_, at)| *at <= now) {
            self.from = first(self.from, Some(turn));
        }
        self.from = first(self.from, news);
        self.met = first(self.met, news);
    }

    /// Notes a completed search. `last`: its last claim if it found a turn for every slot, else `None`.
    fn looked(&mut self, last: Option<TurnId>, now: Instant) {
        self.from = last;
        if self.again.is_none() && self.met.is_some() {
            self.again = self.met.take();
            self.again_at = Some(now + HEAD_START);
        }
    }

    fn look_again(&mut self, now: Instant) {
        self.again_at.get_or_insert(now + HEAD_START);
    }

    /// When to search even if no ring arrives.
    fn due_at(&self) -> Option<Instant> {
        first(self.again_at, self.locked.map(|(_, at)| at))
    }
}

/// One search: claims as many turns as there are slots.
async fn claim(engine: &Engine, search: &mut Search, until: &CancellationToken) -> Result<(), StoreError> {
    let Some(from) = search.from else { return Ok(()) };
    if until.is_cancelled() || !engine.can_start() {
        return Ok(());
    }
    let Some(mut capacity) = engine.host.capacity(CLAIMS_MAX) else { return Ok(()) };
    let slots = capacity.slots();
    let limit = i64::try_from(slots).unwrap_or(0);
    let claims = engine.store.claim(engine.host.runtimes(), capacity.ready(), from, limit).await?;
    let last = claims.iter().map(|claim| claim.turn).max();
    search.looked(last.filter(|_| claims.len() >= slots), Instant::now());
    if search.from.is_some() {
        // The rest of the queue comes after any newer turns in front.
        engine.store.wake().queue.look();
    }
    for claim in claims {
        let (turn, epoch) = (claim.turn, claim.epoch);
        // A drain may have begun while the claim was in flight.
        if until.is_cancelled() || !engine.host.take(claim, &mut capacity) {
            engine.give_back(turn, epoch).await;
        }
    }
    Ok(())
}

/// Passes commands to the turns that run here, until cancelled.
pub async fn order_on(engine: Engine, until: CancellationToken) {
    loop {
        let wake = engine.store.wake();
        tokio::select! {
            () = until.cancelled() => return,
            () = wake.orders() => {}
            () = wake.rings.look_due(Instant::now()) => {}
        }
        if let Err(why) = bring_orders(&engine).await {
            warn_of!(why, "orders could not be read");
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
    if engine.host.lives() > 0 || engine.rendezvous.has_sessions() {
        for worker in engine.store.stops().await? {
            // Cancels the worker's running turns, so they end by the usual path.
            let turns = engine.host.stop_worker(worker);
            if let Some(session) = engine.rendezvous.session(worker) {
                session.stop();
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

    fn turn(n: u128) -> TurnId {
        TurnId(Uuid::from_u128(n))
    }

    #[test]
    fn the_queue_is_searched_from_what_is_new_until_there_is_no_more() {
        let (mut search, now) = (Search::default(), Instant::now());
        search.go_on(Some(turn(5)), now);
        search.looked(Some(turn(8)), now);
        assert_eq!(search.from, Some(turn(8)), "there may be more");
        search.go_on(Some(turn(9)), now);
        assert_eq!(search.from, Some(turn(8)));
        search.looked(None, now);
        assert_eq!(search.from, None);
        search.go_on(None, now);
        assert_eq!(search.from, None, "a place is free, and nothing waits for one");
    }

    #[test]
    fn whoever_may_have_had_a_head_start_is_looked_at_again_when_it_is_over() {
        let (mut search, mut now) = (Search::default(), Instant::now());
        search.go_on(Some(turn(5)), now);
        search.looked(None, now);
        let due = search.again_at.unwrap();
        // Skipped within the other replica's head start, so the turn gets its own second look.
        now += HEAD_START / 2;
        search.go_on(Some(turn(7)), now);
        search.looked(None, now);
        assert_eq!(search.again_at, Some(due));
        search.go_on(None, due);
        assert_eq!(search.from, Some(turn(5)));
        search.looked(None, due);
        assert_eq!((search.again, search.again_at), (Some(turn(7)), Some(due + HEAD_START)));
        search.go_on(None, due + HEAD_START);
        assert_eq!(search.from, Some(turn(7)));
        search.looked(None, due + HEAD_START);
        assert_eq!(search.again_at, None, "once is enough");
    }

    #[test]
    fn a_head_start_that_is_waited_for_already_takes_nobody_elses() {
        let (mut search, now) = (Search::default(), Instant::now());
        search.look_again(now);
        let later = now + HEAD_START / 2;
        search.go_on(Some(turn(5)), later);
        search.looked(None, later);
        search.go_on(None, later + HEAD_START);
        assert_eq!(search.from, Some(turn(5)));
    }

    #[test]
    fn a_look_without_news_is_followed_by_none() {
        let mut search = Search::default();
        search.widen(turn(3));
        search.looked(None, Instant::now());
        assert_eq!((search.from, search.again_at), (None, None));
    }
}
