//! Reap: closes turns that are overdue or held by lost replicas. Runs on every replica, without an election.
//!
//! Sleeps until the next deadline, a verdict or a ring. A row left overdue by a living holder is closed only after
//! 20 of this replica's own looks: the holder closes its turns exactly, and a step of the database's clock must
//! end no turn (I6). Rows of lost holders are closed at once, and looked for once a second for a minute: a
//! zombie's claim may commit after the first pass.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::shared::Engine;
use crate::{
    failure::Code,
    id::TurnId,
    store::{
        StoreError,
        closing::{Outlook, Overdue},
        warn_of,
    },
    telemetry::metrics,
};

/// The longest sleep between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Sleep while rows remain to be closed.
const LOOK_SOON: Duration = Duration::from_millis(100);
const LOOK_AFTER_LOSS: Duration = Duration::from_secs(1);
/// A living holder's row is closed after this many looks found it overdue, each at least `LOOK_OVERDUE` apart.
/// Counted, not timed, because a stalled Postgres stops the looks too.
const OVERDUE_LOOKS: u32 = 20;
const LOOK_OVERDUE: Duration = Duration::from_millis(500);
/// Last words in one statement.
const CLOSE_MAX: i32 = 500;

/// Closes turns until cancelled.
pub async fn close_on(engine: Engine, until: CancellationToken) {
    let mut overdue = HashMap::new();
    let mut wait = Duration::ZERO;
    while until.run_until_cancelled(timeout(wait, engine.store.wake().closing())).await.is_some() {
        wait = match pass(&engine, &mut overdue).await {
            Ok(wait) => wait,
            Err(why) => {
                warn_of!(why, "turns that are due could not be closed; trying again");
                overdue.clear();
                LOOK_AFTER_LOSS
            }
        };
    }
}

/// One pass. Returns how long to sleep afterwards.
async fn pass(engine: &Engine, seen: &mut HashMap<Overdue, Looks>) -> Result<Duration, StoreError> {
    let is_after_loss = engine.recent_loss.swap(false, Ordering::Relaxed);
    let mut outlook = engine.store.outlook().await?;
    if outlook.rows > 0 && engine.store.promote().await? {
        outlook = engine.store.outlook().await?;
    }
    metrics::inflight(outlook.rows.unsigned_abs());
    metrics::queued(outlook.queued.unsigned_abs());
    metrics::bound("queue", outlook.queued.unsigned_abs(), engine.queue_max.into());
    metrics::overdue(outlook.overdue.len() as u64);
    let lapsed = left_overdue(&outlook, seen, Instant::now());
    if is_after_loss || outlook.closable > 0 || !lapsed.is_empty() {
        close(engine, &lapsed).await?;
    }
    if outlook.closable > 0 {
        return Ok(LOOK_SOON);
    }
    let until_next = outlook.next_ms.map_or(LOOK_EVERY, |ms| Duration::from_millis(ms.max(0).unsigned_abs()));
    let longest = match () {
        () if !outlook.overdue.is_empty() => LOOK_OVERDUE,
        () if is_after_loss => LOOK_AFTER_LOSS,
        () => LOOK_EVERY,
    };
    Ok((until_next + Duration::from_millis(5)).min(longest))
}

/// The rows that a living holder has left overdue long enough, under an unchanged deadline.
fn left_overdue(outlook: &Outlook, seen: &mut HashMap<Overdue, Looks>, now: Instant) -> Vec<TurnId> {
    let mut lapsed = Vec::new();
    let mut still = HashMap::with_capacity(outlook.overdue.len());
    for row in &outlook.overdue {
        let mut looks = seen.remove(row).unwrap_or(Looks { count: 0, last: now });
        if now.duration_since(looks.last) >= LOOK_OVERDUE {
            looks = Looks { count: looks.count + 1, last: now };
        }
        if looks.count >= OVERDUE_LOOKS {
            lapsed.push(row.turn);
        }
        still.insert(*row, looks);
    }
    *seen = still;
    lapsed
}

/// How often a row was seen overdue, and when last.
#[derive(Debug, Clone, Copy)]
struct Looks {
    count: u32,
    last: Instant,
}

async fn close(engine: &Engine, lapsed: &[TurnId]) -> Result<(), StoreError> {
    loop {
        let closed = engine.store.close_due(lapsed, CLOSE_MAX).await?;
        for word in &closed {
            tracing::info!(turn_id = %word.turn, kind = word.status.as_str(), code = word.code.as_str(), agent = word.agent, "closed");
            match word.last_word() {
                Some(kind) => metrics::last_words(kind, word.code.as_str()),
                None => metrics::requeued(Code::ReplicaLost.as_str()),
            }
        }
        // Loops until a page is short: the remaining rows are due as well.
        if closed.len() < usize::try_from(CLOSE_MAX).unwrap_or(usize::MAX) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_left_overdue_after_twenty_looks_half_a_second_apart() {
        let row =
            Overdue { turn: TurnId(uuid::Uuid::nil()), epoch: 1, deadline: chrono::DateTime::UNIX_EPOCH };
        let outlook = Outlook { overdue: vec![row], ..Outlook::default() };
        let (mut seen, start) = (HashMap::new(), Instant::now());
        let at = |half_seconds: u32| start + LOOK_OVERDUE * half_seconds;
        assert!((0..20).all(|n| left_overdue(&outlook, &mut seen, at(n)).is_empty()));
        assert_eq!(left_overdue(&outlook, &mut seen, at(20)), [row.turn]);
        // A long stall counts as one look.
        seen.clear();
        assert!(left_overdue(&outlook, &mut seen, at(21)).is_empty());
        assert!(left_overdue(&outlook, &mut seen, at(1000)).is_empty());
    }

    #[test]
    fn a_moved_deadline_is_a_sign_of_life() {
        let mut row =
            Overdue { turn: TurnId(uuid::Uuid::nil()), epoch: 1, deadline: chrono::DateTime::UNIX_EPOCH };
        let (mut seen, start) = (HashMap::new(), Instant::now());
        for n in 0..100 {
            row.deadline += chrono::TimeDelta::seconds(i64::from(n % 10 == 0));
            let outlook = Outlook { overdue: vec![row], ..Outlook::default() };
            assert!(left_overdue(&outlook, &mut seen, start + LOOK_OVERDUE * n).is_empty());
        }
    }
}
