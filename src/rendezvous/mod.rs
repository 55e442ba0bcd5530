//! The in-memory rendezvous of remote workers, which call over HTTP, and this replica's engine. API handlers never call
//! the engine, and the engine never calls a handler.
//!
//! Owns the sessions of the workers that call here ([`WorkerSession`]) and the lines of the turns held here ([`Line`]).
//! A handler leaves a poll, a batch of messages or a beat, and waits. The engine claims turns for polls and moves turns
//! here; the run of a turn takes the messages from the turn's line. No SQL: durable state is in
//! [`crate::store::remote_turns`] and [`crate::store::remote_workers`].
//! Refuses to keep state for a worker that is no longer heard, and to grow: every queue has a bound.

mod line;
mod liveness;
mod session;

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

pub use self::{
    line::{Batch, Delivery, Line, LineEnd, OrderToTell},
    liveness::{Liveness, OpenRequest, TICK},
    session::{OfferGuard, Polling, TurnOffer, WorkerSession},
};
use crate::{
    id::{TurnId, WorkerId},
    store::{StoreError, remote_turns::Proof, remote_workers::RemoteWorker},
    telemetry::metrics,
    token::TokenHash,
};

/// Workers that may be registered at one replica.
const SESSIONS_MAX: usize = 10_000;
/// Requests to move a turn that may be queued.
const REQUESTS_MAX: usize = 1024;

/// The rendezvous of one replica.
#[derive(Debug)]
pub struct Rendezvous {
    state: Mutex<RendezvousState>,
    requests: mpsc::Sender<AdoptRequest>,
    inbox: tokio::sync::Mutex<mpsc::Receiver<AdoptRequest>>,
    /// Whether this replica takes on turns, claimed or moved.
    takes_turns: AtomicBool,
    url: OnceLock<String>,
}

#[derive(Debug, Default)]
struct RendezvousState {
    sessions: HashMap<WorkerId, Arc<WorkerSession>>,
    /// Sessions per token.
    tokens: HashMap<TokenHash, usize>,
    lines: HashMap<TurnId, Arc<Line>>,
}

impl RendezvousState {
    fn forget_token(&mut self, token_hash: &TokenHash) {
        if let Entry::Occupied(mut count) = self.tokens.entry(*token_hash) {
            match count.get().checked_sub(1) {
                None | Some(0) => drop(count.remove()),
                Some(left) => *count.get_mut() = left,
            }
        }
    }
}

/// A request to move a turn to this replica, since its worker called here.
#[derive(Debug)]
pub struct AdoptRequest {
    /// The turn.
    pub turn: TurnId,
    /// The epoch of the attempt.
    pub epoch: i32,
    /// What entitles the caller: the worker's session, or the turn's token.
    pub proof: Proof,
    answer: oneshot::Sender<AdoptOutcome>,
}

impl AdoptRequest {
    /// Answers the request. A caller that has gone away is ignored.
    pub fn answer(self, outcome: AdoptOutcome) {
        let _ = self.answer.send(outcome);
    }
}

/// What became of an [`AdoptRequest`].
#[derive(Debug, Clone)]
pub enum AdoptOutcome {
    /// This replica holds the turn; its line.
    Held(Arc<Line>),
    /// No such turn was offered to this caller.
    Unknown,
    /// The turn has had its last word.
    Ended,
    /// The turn has a newer epoch, or is queued again.
    Stale,
    /// The turn cannot be moved here now; the caller may retry.
    Elsewhere,
    /// The database could not be asked, or answered with an error.
    Failed(StoreError),
}

impl Default for Rendezvous {
    fn default() -> Self {
        let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
        let inbox = tokio::sync::Mutex::new(inbox);
        Rendezvous {
            state: Mutex::default(),
            requests,
            inbox,
            takes_turns: AtomicBool::new(false),
            url: OnceLock::new(),
        }
    }
}

impl Rendezvous {
    /// The URL of this replica; empty until [`Rendezvous::set_url`].
    pub fn url(&self) -> &str {
        self.url.get().map_or("", String::as_str)
    }

    /// Sets the URL of this replica. Only the first call has an effect.
    pub fn set_url(&self, url: &str) {
        let _ = self.url.set(url.to_owned());
    }

    /// Whether this replica takes on turns. If not, its workers should call another replica.
    pub fn takes_turns(&self) -> bool {
        self.takes_turns.load(Ordering::Acquire)
    }

    /// Sets whether this replica takes on turns; wakes all sessions on a change.
    pub fn set_takes_turns(&self, takes_turns: bool) {
        if self.takes_turns.swap(takes_turns, Ordering::AcqRel) != takes_turns {
            for session in self.sessions() {
                session.wake();
            }
        }
    }

    /// Opens a session for a worker with a token of this hash, valid until `expires_at`; `None` at the limit of 10,000
    /// sessions. A worker that registers again replaces its own session, at the limit too.
    pub fn admit(
        &self,
        worker: RemoteWorker,
        token_hash: TokenHash,
        expires_at: Option<DateTime<Utc>>,
    ) -> Option<Arc<WorkerSession>> {
        let mut state = self.state.lock();
        if state.sessions.len() >= SESSIONS_MAX && !state.sessions.contains_key(&worker.id) {
            return None;
        }
        let id = worker.id;
        let session = Arc::new(WorkerSession::new(worker, token_hash, expires_at));
        *state.tokens.entry(token_hash).or_default() += 1;
        if let Some(former) = state.sessions.insert(id, session.clone()) {
            state.forget_token(&former.token_hash);
            former.wake();
        }
        Some(session)
    }

    /// Records two gauges with their limits: sessions, and queued move requests.
    pub fn note_bounds(&self) {
        let waiting = REQUESTS_MAX.saturating_sub(self.requests.capacity());
        metrics::bound("remote_workers", self.state.lock().sessions.len() as u64, SESSIONS_MAX as u64);
        metrics::bound("moves", waiting as u64, REQUESTS_MAX as u64);
    }

    /// The session of this worker; `None` if the worker is not registered here.
    pub fn session(&self, worker: WorkerId) -> Option<Arc<WorkerSession>> {
        self.state.lock().sessions.get(&worker).cloned()
    }

    /// Whether a worker with this token has a session here.
    pub fn knows(&self, token_hash: &TokenHash) -> bool {
        self.state.lock().tokens.contains_key(token_hash)
    }

    /// Whether any worker has a session here.
    pub fn has_sessions(&self) -> bool {
        !self.state.lock().sessions.is_empty()
    }

    /// All sessions.
    pub fn sessions(&self) -> Vec<Arc<WorkerSession>> {
        self.state.lock().sessions.values().cloned().collect()
    }

    /// Removes a session, unless the worker has registered again and has a newer one.
    pub fn dismiss(&self, session: &Arc<WorkerSession>) {
        let mut state = self.state.lock();
        if state.sessions.get(&session.worker.id).is_some_and(|known| Arc::ptr_eq(known, session)) {
            state.sessions.remove(&session.worker.id);
            state.forget_token(&session.token_hash);
        }
    }

    /// Removes all sessions: the workers register again. Lines stay open.
    pub fn dismiss_all(&self) {
        let sessions: Vec<Arc<WorkerSession>> = {
            let mut state = self.state.lock();
            state.tokens.clear();
            state.sessions.drain().map(|(_, session)| session).collect()
        };
        sessions.iter().for_each(|session| session.wake());
    }

    /// Opens a line for a turn that this replica now holds. An older line of the same turn is closed.
    pub fn open(self: &Arc<Self>, line: Line) -> Arc<Line> {
        let line = Arc::new(line);
        if let Some(former) = self.state.lock().lines.insert(line.turn, line.clone()) {
            former.close(LineEnd::LetGo);
        }
        line
    }

    /// Closes a line. Every request that waits on the line is told the `end`.
    pub fn close(&self, line: &Arc<Line>, end: LineEnd) {
        let session = {
            let mut state = self.state.lock();
            if state.lines.get(&line.turn).is_some_and(|known| Arc::ptr_eq(known, line)) {
                state.lines.remove(&line.turn);
            }
            state.sessions.get(&line.worker).cloned()
        };
        line.close(end);
        if let Some(session) = session {
            session.wake();
        }
    }

    /// All open lines.
    pub fn lines(&self) -> Vec<Arc<Line>> {
        self.state.lock().lines.values().cloned().collect()
    }

    /// The open line of a turn at this epoch; `None` if this replica does not hold the turn.
    pub fn line(&self, turn: TurnId, epoch: i32) -> Option<Arc<Line>> {
        self.state.lock().lines.get(&turn).filter(|line| line.epoch == epoch).cloned()
    }

    /// The line of a turn. If another replica holds the turn the engine is asked to move the turn here first.
    pub async fn line_or_move(&self, turn: TurnId, epoch: i32, proof: Proof) -> AdoptOutcome {
        if let Some(line) = self.line(turn, epoch) {
            return AdoptOutcome::Held(line);
        }
        if !self.takes_turns() {
            return AdoptOutcome::Elsewhere;
        }
        let (answer, outcome) = oneshot::channel();
        let request = AdoptRequest { turn, epoch, proof, answer };
        let is_left = match proof {
            // A beat names all turns of its worker, a few at a time, and retries on the next beat: it may wait for the
            // queue.
            Proof::Worker(_) => self.requests.send(request).await.is_ok(),
            Proof::Token(_) => self.requests.try_send(request).is_ok(),
        };
        if !is_left {
            return AdoptOutcome::Elsewhere;
        }
        outcome.await.unwrap_or(AdoptOutcome::Elsewhere)
    }

    /// The next requests, up to `most`; empty once the channel is closed. Cancel-safe.
    pub async fn next_requests(&self, most: usize) -> Vec<AdoptRequest> {
        let mut requests = Vec::new();
        self.inbox.lock().await.recv_many(&mut requests, most).await;
        requests
    }

    /// Wakes the worker of a line: there is something new for it.
    pub fn ring(&self, line: &Line) {
        if let Some(session) = self.session(line.worker) {
            session.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_token_is_known_as_long_as_somebody_calls_who_came_with_it() {
        let rendezvous = Rendezvous::default();
        let admit = |n: u128, token: u8| {
            let (id, agent) = (WorkerId(Uuid::from_u128(n)), "a".to_owned());
            let worker = RemoteWorker { id, agent, agent_revision: 1, conversation: None, name: None };
            rendezvous.admit(worker, [token; 32], None).unwrap()
        };
        let (one, other) = (admit(1, 7), admit(2, 7));
        rendezvous.dismiss(&one);
        rendezvous.dismiss(&one);
        assert!(rendezvous.knows(&[7; 32]) && !rendezvous.knows(&[8; 32]));
        let again = admit(2, 8);
        assert!(
            !rendezvous.knows(&[7; 32]) && rendezvous.knows(&[8; 32]),
            "it called again with another token"
        );
        rendezvous.dismiss(&other);
        assert!(rendezvous.knows(&[8; 32]), "who has called anew is not forgotten");
        rendezvous.dismiss(&again);
        assert!(!rendezvous.knows(&[8; 32]) && !rendezvous.has_sessions());
        admit(3, 9);
        rendezvous.dismiss_all();
        assert!(!rendezvous.knows(&[9; 32]));
    }
}
