//! A token's share of the queue, which all replicas have in common.
//!
//! Owns, per token, the last count of waiting turns and the number of turns queued here since. The database is
//! queried only if the share may be exhausted. Until then the estimate assumes that every replica has queued as many
//! turns since the count as this one. A turn far below its token's share needs no query.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    api::{away::insist, problem::Problem, who::Who},
    config::Config,
    store::{
        Store, StoreError,
        accept::Accepted,
        word::{AcceptRefusal, WaitLimit},
    },
};

/// How long a count that found the share exhausted is used.
const BELIEVED_FOR: Duration = Duration::from_millis(100);

/// The queue's shares of all tokens.
#[derive(Debug)]
pub(super) struct QueueShares {
    /// How many turns of one token may wait; `None`: no share, only the limit of the queue.
    share: Option<u64>,
    /// One for anonymous callers, and one per client token.
    lines: Box<[Arc<TokenQueue>]>,
}

/// The waiting turns of one token.
#[derive(Debug, Default)]
struct TokenQueue {
    tally: Mutex<QueueTally>,
    /// Held during the query: concurrent callers need its result, too.
    counting: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct QueueTally {
    /// The last count, and its time.
    counted: Option<(u64, Instant)>,
    /// Turns queued by this replica since then.
    since: u64,
    /// Turns that this replica is accepting now.
    pending: u64,
}

/// A reserved slot in the queue for a turn that is being accepted.
#[derive(Debug)]
pub struct QueueSlot(Arc<TokenQueue>);

impl Drop for QueueSlot {
    fn drop(&mut self) {
        self.0.tally.lock().pending -= 1;
    }
}

/// Whether a turn may be queued.
#[derive(Debug)]
pub enum QueueRoom {
    /// No share applies.
    Any,
    /// A slot is reserved.
    Some(QueueSlot),
    /// The token's share is exhausted.
    None,
}

impl QueueRoom {
    /// The turn was accepted. If it is new and was queued, it counts from now on.
    pub fn accepted(self, accepted: &Accepted) {
        if let QueueRoom::Some(QueueSlot(line)) = &self
            && !accepted.is_repeat
            && accepted.claim.is_none()
        {
            line.tally.lock().since += 1;
        }
    }

    /// The problem for a turn that was not accepted.
    pub fn refusal(&self, why: StoreError) -> Problem {
        match (self, &why) {
            (QueueRoom::None, StoreError::Refused { code, detail, .. })
                if *code == AcceptRefusal::Full && detail.as_deref() == Some(WaitLimit::Queue.as_str()) =>
            {
                full()
            }
            _ => why.into(),
        }
    }
}

/// The token's share of the queue is exhausted.
pub(super) fn full() -> Problem {
    Problem::share_exceeded("queue", 5)
}

impl QueueShares {
    pub(super) fn of(config: &Config) -> QueueShares {
        let queue_max = u64::from(config.queue_max);
        let share = (queue_max * u64::from(config.token_share)).div_ceil(100);
        let lines = (0..config.client_tokens.len() + 1).map(|_| Arc::default()).collect();
        QueueShares { share: (share < queue_max).then_some(share), lines }
    }

    /// Reserves a slot for one more turn of this token.
    pub(super) async fn room(&self, store: &Store, Who(whose): Who) -> Result<QueueRoom, StoreError> {
        // Operators have no share.
        let line = self.lines.get(usize::from(whose.number()));
        let (Some(share), Some(line)) = (self.share, line) else { return Ok(QueueRoom::Any) };
        let replicas = store.wake().rings.replicas() as u64;
        if let Some(room) = line.room(share, replicas, false) {
            return Ok(room);
        }
        let _counting = line.counting.lock().await;
        if let Some(room) = line.room(share, replicas, false) {
            return Ok(room);
        }
        let before = line.tally.lock().since;
        let counted = insist(|| store.queued_of(whose, share)).await?;
        {
            let mut tally = line.tally.lock();
            // Turns queued during the query stay in `since`: counting them twice is safe, missing them is not.
            tally.since -= before;
            tally.counted = Some((counted, Instant::now()));
        }
        Ok(line.room(share, replicas, true).unwrap_or(QueueRoom::None))
    }
}

impl TokenQueue {
    /// A slot or a refusal if the estimate is certain; `None` if a new count is needed. With `is_new`, right after a
    /// count, the result is never `None`.
    fn room(self: &Arc<Self>, share: u64, replicas: u64, is_new: bool) -> Option<QueueRoom> {
        let mut tally = self.tally.lock();
        let (counted, at) = tally.counted?;
        let here = tally.since + tally.pending;
        let is_free = counted.saturating_add((here + 1).saturating_mul(replicas)) <= share;
        if is_free || is_new && counted + here < share {
            tally.pending += 1;
            return Some(QueueRoom::Some(QueueSlot(self.clone())));
        }
        let is_full = is_new || at.elapsed() < BELIEVED_FOR && counted + here >= share;
        is_full.then_some(QueueRoom::None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(line: &TokenQueue, count: u64) {
        line.tally.lock().counted = Some((count, Instant::now()));
    }

    fn taken(line: &Arc<TokenQueue>, replicas: u64) -> Option<QueueSlot> {
        match line.room(10, replicas, false)? {
            QueueRoom::Some(waiting) => Some(waiting),
            _ => None,
        }
    }

    #[test]
    fn what_may_have_come_since_is_reckoned_with() {
        let line = Arc::new(TokenQueue::default());
        assert!(line.room(10, 1, false).is_none(), "how many there are is unknown");
        counted(&line, 6);
        // Four are free, and two replicas take two each before they count again.
        drop(taken(&line, 2).unwrap());
        line.tally.lock().since += 1;
        let waiting = taken(&line, 2).unwrap();
        assert!(line.room(10, 2, false).is_none());
        drop(waiting);
        drop(taken(&line, 2).unwrap());
        assert!(matches!(line.room(10, 2, true), Some(QueueRoom::Some(_))), "it was counted just now");
        counted(&line, 9);
        assert!(matches!(line.room(10, 2, false), Some(QueueRoom::None)), "counted just now, and full");
        counted(&line, 3);
        let mut all = Vec::new();
        all.extend(std::iter::from_fn(|| taken(&line, 1)));
        assert_eq!(all.len(), 6, "alone a replica knows it exactly");
    }

    #[test]
    fn operators_and_small_queues_have_no_share() {
        let queue = |queue_max| QueueShares::of(&Config { queue_max, ..Config::default() });
        assert_eq!([queue(10_000).share, queue(4).share, queue(5).share], [Some(8000), None, Some(4)]);
        assert_eq!(queue(10).lines.len(), 1, "everybody without a token");
    }
}
