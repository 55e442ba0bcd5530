//! Where remote workers, which call over HTTP, and this replica's engine meet, since a door calls no engine and the
//! engine no door.
//!
//! Owns who calls here ([`WorkerSession`]) and the lines to the turns that are held here ([`Line`]). A door puts a
//! poll, a batch of messages or a beat there, and waits; the engine claims for polls, moves turns here, and
//! each turn's run takes what its line brings. No SQL: what is durable is in [`crate::store::remote_turns`] and
//! [`crate::store::remote_workers`].
//! Refuses to hold anything for a worker that is not heard any more, and to grow: every queue has a bound.

mod line;
mod liveness;
mod session;

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use chrono::{DateTime, Utc};
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

/// Workers that may call one replica.
const SESSIONS_MAX: usize = 10_000;
/// Requests that may wait.
const REQUESTS_MAX: usize = 1024;

/// Where remote workers and the engine meet.
#[derive(Debug)]
pub struct Rendezvous {
    state: Mutex<RendezvousState>,
    requests: mpsc::Sender<AdoptRequest>,
    inbox: tokio::sync::Mutex<mpsc::Receiver<AdoptRequest>>,
    /// Whether this replica takes on turns.
    takes_turns: AtomicBool,
    url: OnceLock<String>,
}

#[derive(Debug, Default)]
struct RendezvousState {
    sessions: HashMap<WorkerId, Arc<WorkerSession>>,
    /// How many of them came with each token.
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

/// That a turn be held here, to which a worker wants to say something.
#[derive(Debug)]
pub struct AdoptRequest {
    /// Which turn.
    pub turn: TurnId,
    /// At which attempt.
    pub epoch: i32,
    /// Why it may be asked for.
    pub proof: Proof,
    answer: oneshot::Sender<AdoptOutcome>,
}

impl AdoptRequest {
    /// Tells whoever asked. One who has gone needs no answer.
    pub fn answer(self, outcome: AdoptOutcome) {
        let _ = self.answer.send(outcome);
    }
}

/// What became of an [`AdoptRequest`].
#[derive(Debug, Clone)]
pub enum AdoptOutcome {
    /// It is held here.
    Held(Arc<Line>),
    /// No such turn was offered to whoever asks.
    Unknown,
    /// It has had its last word.
    Ended,
    /// Another attempt has it, or it waits for one.
    Stale,
    /// Not here, or not now.
    Elsewhere,
    /// The database was not asked, or said something unexpected.
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
    /// Where this replica is reached; empty until [`Rendezvous::set_url`].
    pub fn url(&self) -> &str {
        self.url.get().map_or("", String::as_str)
    }

    /// Says where. The first time counts.
    pub fn set_url(&self, url: &str) {
        let _ = self.url.set(url.to_owned());
    }

    /// Whether this replica takes on turns; if not, its workers had better go elsewhere.
    pub fn takes_turns(&self) -> bool {
        self.takes_turns.load(Ordering::Acquire)
    }

    /// Says whether it does, and tells the workers.
    pub fn set_takes_turns(&self, takes_turns: bool) {
        if self.takes_turns.swap(takes_turns, Ordering::AcqRel) != takes_turns {
            for session in self.sessions() {
                session.wake();
            }
        }
    }

    /// Lets a worker call that has a token of this hash, until then; `None` where there are too many. One that calls
    /// again keeps its place.
    pub fn admit(
        &self,
        worker: RemoteWorker,
        token_hash: TokenHash,
        expires_at: Option<DateTime<Utc>>,
    ) -> Option<Arc<WorkerSession>> {
        let mut state = self.state();
        if state.sessions.len() >= SESSIONS_MAX && !state.sessions.contains_key(&worker.id) {
            return None;
        }
        let id = worker.id;
        let session = Arc::new(WorkerSession::new(worker, token_hash, expires_at));
        *state.tokens.entry(token_hash).or_default() += 1;
        if let Some(former) = state.sessions.insert(id, session.clone()) {
            state.forget_token(former.token_hash());
            former.wake();
        }
        Some(session)
    }

    /// Tells operators how many workers call here and how many turns wait to be moved, and how many may.
    pub fn note_bounds(&self) {
        let waiting = REQUESTS_MAX.saturating_sub(self.requests.capacity());
        metrics::bound("remote_workers", self.state().sessions.len() as u64, SESSIONS_MAX as u64);
        metrics::bound("moves", waiting as u64, REQUESTS_MAX as u64);
    }

    /// The worker of this id, where it calls here.
    pub fn session(&self, worker: WorkerId) -> Option<Arc<WorkerSession>> {
        self.state().sessions.get(&worker).cloned()
    }

    /// Whether anybody calls here who came with this token.
    pub fn knows(&self, token_hash: &TokenHash) -> bool {
        self.state().tokens.contains_key(token_hash)
    }

    /// Whether anybody calls here.
    pub fn has_sessions(&self) -> bool {
        !self.state().sessions.is_empty()
    }

    /// Everybody who calls here.
    pub fn sessions(&self) -> Vec<Arc<WorkerSession>> {
        self.state().sessions.values().cloned().collect()
    }

    /// Forgets a session, unless its worker has called anew.
    pub fn dismiss(&self, session: &Arc<WorkerSession>) {
        let mut state = self.state();
        if state.sessions.get(&session.worker().id).is_some_and(|known| Arc::ptr_eq(known, session)) {
            state.sessions.remove(&session.worker().id);
            state.forget_token(session.token_hash());
        }
    }

    /// Forgets everybody who calls: they register anew, and the lines to their turns stay.
    pub fn dismiss_all(&self) {
        let sessions: Vec<Arc<WorkerSession>> = {
            let mut state = self.state();
            state.tokens.clear();
            state.sessions.drain().map(|(_, session)| session).collect()
        };
        sessions.iter().for_each(|session| session.wake());
    }

    /// Opens a line for a turn that is held here from now on.
    pub fn open(self: &Arc<Self>, line: Line) -> Arc<Line> {
        let line = Arc::new(line);
        if let Some(former) = self.state().lines.insert(line.turn(), line.clone()) {
            former.close(LineEnd::LetGo);
        }
        line
    }

    /// Closes a line; whoever waits at it is told how the turn ended here.
    pub fn close(&self, line: &Arc<Line>, end: LineEnd) {
        let session = {
            let mut state = self.state();
            if state.lines.get(&line.turn()).is_some_and(|known| Arc::ptr_eq(known, line)) {
                state.lines.remove(&line.turn());
            }
            state.sessions.get(&line.worker()).cloned()
        };
        line.close(end);
        if let Some(session) = session {
            session.wake();
        }
    }

    /// Every line that is open here.
    pub fn lines(&self) -> Vec<Arc<Line>> {
        self.state().lines.values().cloned().collect()
    }

    /// The line to a turn that is held here.
    pub fn line(&self, turn: TurnId, epoch: i32) -> Option<Arc<Line>> {
        self.state().lines.get(&turn).filter(|line| line.epoch() == epoch).cloned()
    }

    /// The line to a turn, which is moved here where another replica holds it.
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
            // A beat asks for all that its worker has, a few at a time, and comes back late for what it did not get.
            Proof::Worker(_) => self.requests.send(request).await.is_ok(),
            Proof::Token(_) => self.requests.try_send(request).is_ok(),
        };
        if !is_left {
            return AdoptOutcome::Elsewhere;
        }
        outcome.await.unwrap_or(AdoptOutcome::Elsewhere)
    }

    /// The next requests, so many at most; none when there will be no more. Cancel-safe.
    pub async fn next_requests(&self, most: usize) -> Vec<AdoptRequest> {
        let mut requests = Vec::new();
        self.inbox.lock().await.recv_many(&mut requests, most).await;
        requests
    }

    /// Tells the worker of a line that there is something new for it.
    pub fn ring(&self, line: &Line) {
        if let Some(session) = self.session(line.worker()) {
            session.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, RendezvousState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
