//! Where turns are handed in: what is asked for in the same moment is accepted in one commit.
//!
//! Owns the inbox; the engine works it off (`engine::intake`), since it knows what this replica has room
//! for. Takes at once when idle and gathers while a commit is under way, so no turn waits for a timer.
//! Where nobody works it off, each turn is a commit of its own.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::store::records::new_turn::{NewTurn, Verdict};

/// Turns that wait; more of them go by themselves.
const WAITING_MAX: usize = 4096;

/// A turn that somebody wants accepted.
#[derive(Debug)]
pub struct Wanted {
    /// The turn.
    pub new: NewTurn,
    answer: oneshot::Sender<Verdict>,
}

impl Wanted {
    /// Tells whoever asked. One who has gone needs no answer.
    pub fn answer(self, verdict: Verdict) {
        let _ = self.answer.send(verdict);
    }
}

/// The inbox.
#[derive(Debug)]
pub struct AcceptBatch {
    queue: mpsc::Sender<Wanted>,
    inbox: Mutex<Waiting>,
    is_served: AtomicBool,
}

#[derive(Debug)]
struct Waiting {
    queue: mpsc::Receiver<Wanted>,
    /// Those that cannot go with what goes before them.
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
    /// Hands a turn in; `None` where nobody takes it.
    pub(in crate::store) async fn ask(&self, new: &NewTurn) -> Option<Verdict> {
        if !self.is_served.load(Ordering::Acquire) {
            return None;
        }
        let (answer, verdict) = oneshot::channel();
        self.queue.try_send(Wanted { new: new.clone(), answer }).ok()?;
        verdict.await.ok()
    }

    /// How many wait, and how many may.
    pub(in crate::store) fn waiting(&self) -> (usize, usize) {
        (WAITING_MAX.saturating_sub(self.queue.capacity()), WAITING_MAX)
    }

    /// What waits, at most so much, sorted by conversation: no two of one conversation, of one key or of one
    /// turn.
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

    /// From here on every turn goes by itself; who still waits is told to.
    pub async fn close(&self) {
        self.is_served.store(false, Ordering::Release);
        let mut inbox = self.inbox.lock().await;
        inbox.queue.close();
        while inbox.queue.try_recv().is_ok() {}
        inbox.left.clear();
    }
}

/// Parts what may go together from what must wait for it.
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
