//! The accept batch: turns that arrive at the same moment are accepted in one commit.
//!
//! Owns the queue. `engine::intake` drains the queue, since the engine knows this replica's free capacity. A turn is
//! taken at once when the intake is idle; turns gather while a commit is in progress. No turn waits for a timer.
//! Without an intake each turn is accepted in a commit of its own.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::store::records::new_turn::{NewTurn, Verdict};

/// Turns that may be queued; further turns are accepted in commits of their own.
const WAITING_MAX: usize = 4096;

/// A queued request to accept a turn.
#[derive(Debug)]
pub struct Wanted {
    /// The turn.
    pub new: NewTurn,
    answer: oneshot::Sender<Verdict>,
}

impl Wanted {
    /// Answers the request. A caller that has gone away is ignored.
    pub fn answer(self, verdict: Verdict) {
        let _ = self.answer.send(verdict);
    }
}

/// The queue of turns to be accepted.
#[derive(Debug)]
pub struct AcceptBatch {
    queue: mpsc::Sender<Wanted>,
    inbox: Mutex<Waiting>,
    is_served: AtomicBool,
}

#[derive(Debug)]
struct Waiting {
    queue: mpsc::Receiver<Wanted>,
    /// Turns left for a later batch, since an earlier one in the queue has the same conversation or key.
    left: Vec<Wanted>,
}

impl Default for AcceptBatch {
    fn default() -> Self {
        let (sender, queue) = mpsc::channel(WAITING_MAX);
        let inbox = Mutex::new(Waiting { queue, left: Vec::new() });
        AcceptBatch { queue: sender, inbox, is_served: AtomicBool::new(false) }
    }
}

impl AcceptBatch {
    /// Queues a turn and waits for its verdict; `None` if no intake runs or the queue is full.
    pub(in crate::store) async fn ask(&self, new: &NewTurn) -> Option<Verdict> {
        if !self.is_served.load(Ordering::Acquire) {
            return None;
        }
        let (answer, verdict) = oneshot::channel();
        self.queue.try_send(Wanted { new: new.clone(), answer }).ok()?;
        verdict.await.ok()
    }

    /// How many turns are queued, and the limit.
    pub(in crate::store) fn waiting(&self) -> (usize, usize) {
        (WAITING_MAX.saturating_sub(self.queue.capacity()), WAITING_MAX)
    }

    /// Waits for turns and takes up to `most` of them, sorted by conversation. No two have the same conversation or
    /// idempotency key.
    pub async fn take(&self, most: usize) -> Vec<Wanted> {
        self.is_served.store(true, Ordering::Release);
        let mut inbox = self.inbox.lock().await;
        let mut waiting = std::mem::take(&mut inbox.left);
        if waiting.is_empty() {
            inbox.queue.recv_many(&mut waiting, most).await;
        } else {
            while waiting.len() < most
                && let Ok(wanted) = inbox.queue.try_recv()
            {
                waiting.push(wanted);
            }
        }
        let (taken, left) = apart(waiting);
        inbox.left = left;
        taken
    }

    /// Stops the batching: queued callers get no answer and accept their turns in commits of their own.
    pub async fn close(&self) {
        self.is_served.store(false, Ordering::Release);
        let mut inbox = self.inbox.lock().await;
        inbox.queue.close();
        while inbox.queue.try_recv().is_ok() {}
        inbox.left.clear();
    }
}

/// Splits into one batch without duplicate conversations or keys, and the rest.
fn apart(waiting: Vec<Wanted>) -> (Vec<Wanted>, Vec<Wanted>) {
    let (mut conversations, mut keys) = (HashSet::new(), HashSet::new());
    let (mut taken, left): (Vec<Wanted>, Vec<Wanted>) = waiting.into_iter().partition(|wanted| {
        let key = wanted.new.idempotency.as_ref().map(|(key, _)| key.clone());
        let is_first = !conversations.contains(&wanted.new.conversation)
            && key.as_ref().is_none_or(|key| !keys.contains(key));
        if is_first {
            conversations.insert(wanted.new.conversation);
            keys.extend(key);
        }
        is_first
    });
    taken.sort_by_key(|wanted| wanted.new.conversation);
    (taken, left)
}
