//! The desk: where remote workers, which call over HTTP, and this replica's engine meet, since a door calls
//! no engine and the engine no door.
//!
//! Owns who calls here ([`Caller`]) and the lines to the turns that are held here ([`Line`]). A door puts a
//! poll, a batch of messages or a beat there, and waits; the engine claims for polls, moves turns here, and
//! each turn's run takes what its line brings. No SQL: what is durable is in [`super::remote_turns`] and
//! [`super::remote_workers`].
//! Refuses to hold anything for a caller that is not heard any more, and to grow: every queue has a bound.

mod caller;
mod line;
mod pulse;

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
    caller::{Caller, Offer, Polling, Promise},
    line::{Batch, Delivery, End, Line, OrderToTell},
    pulse::{Open, Pulse, TICK},
};
use crate::{
    id::{TurnId, WorkerId},
    store::{error::StoreError, remote_turns::Proof, remote_workers::RemoteWorker},
    token::TokenHash,
};

/// Workers that may call one replica.
const CALLERS_MAX: usize = 10_000;
/// Wishes that may wait.
const WISHES_MAX: usize = 1024;

/// Where remote workers and the engine meet.
#[derive(Debug)]
pub struct Desk {
    state: Mutex<State>,
    wishes: mpsc::Sender<Wish>,
    inbox: tokio::sync::Mutex<mpsc::Receiver<Wish>>,
    /// Whether this replica takes on turns.
    is_open: AtomicBool,
    url: OnceLock<String>,
}

#[derive(Debug, Default)]
struct State {
    callers: HashMap<WorkerId, Arc<Caller>>,
    /// How many of them came with each token.
    tokens: HashMap<TokenHash, usize>,
    lines: HashMap<TurnId, Arc<Line>>,
}

impl State {
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
pub struct Wish {
    /// Which turn.
    pub turn: TurnId,
    /// At which attempt.
    pub epoch: i32,
    /// Why it may be wished for.
    pub proof: Proof,
    answer: oneshot::Sender<Judgement>,
}

impl Wish {
    /// Tells whoever wished. One who has gone needs no answer.
    pub fn answer(self, judgement: Judgement) {
        let _ = self.answer.send(judgement);
    }
}

/// What became of a [`Wish`].
#[derive(Debug, Clone)]
pub enum Judgement {
    /// It is held here.
    Held(Arc<Line>),
    /// No such turn was offered to whoever wishes.
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

impl Default for Desk {
    fn default() -> Self {
        let (wishes, inbox) = mpsc::channel(WISHES_MAX);
        let inbox = tokio::sync::Mutex::new(inbox);
        Desk { state: Mutex::default(), wishes, inbox, is_open: AtomicBool::new(false), url: OnceLock::new() }
    }
}

impl Desk {
    /// Where this replica is reached; empty until [`Desk::set_url`].
    pub fn url(&self) -> &str {
        self.url.get().map_or("", String::as_str)
    }

    /// Says where. The first time counts.
    pub fn set_url(&self, url: &str) {
        let _ = self.url.set(url.to_owned());
    }

    /// Whether this replica takes on turns; if not, its callers had better go elsewhere.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Says whether it does, and tells the callers.
    pub fn set_open(&self, is_open: bool) {
        if self.is_open.swap(is_open, Ordering::AcqRel) != is_open {
            for caller in self.callers() {
                caller.wake();
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
    ) -> Option<Arc<Caller>> {
        let mut state = self.state();
        if state.callers.len() >= CALLERS_MAX && !state.callers.contains_key(&worker.id) {
            return None;
        }
        let id = worker.id;
        let caller = Arc::new(Caller::new(worker, token_hash, expires_at));
        *state.tokens.entry(token_hash).or_default() += 1;
        if let Some(former) = state.callers.insert(id, caller.clone()) {
            state.forget_token(former.token_hash());
            former.wake();
        }
        Some(caller)
    }

    /// How many workers call here, and how many may.
    pub(super) fn crowd(&self) -> (usize, usize) {
        (self.state().callers.len(), CALLERS_MAX)
    }

    /// How many wishes wait, and how many may.
    pub(super) fn wishes(&self) -> (usize, usize) {
        (WISHES_MAX.saturating_sub(self.wishes.capacity()), WISHES_MAX)
    }

    /// The worker of this id, where it calls here.
    pub fn caller(&self, worker: WorkerId) -> Option<Arc<Caller>> {
        self.state().callers.get(&worker).cloned()
    }

    /// Whether anybody calls here who came with this token.
    pub fn knows(&self, token_hash: &TokenHash) -> bool {
        self.state().tokens.contains_key(token_hash)
    }

    /// Whether anybody calls here.
    pub fn has_callers(&self) -> bool {
        !self.state().callers.is_empty()
    }

    /// Everybody who calls here.
    pub fn callers(&self) -> Vec<Arc<Caller>> {
        self.state().callers.values().cloned().collect()
    }

    /// Forgets a caller, unless it has called anew.
    pub fn dismiss(&self, caller: &Arc<Caller>) {
        let mut state = self.state();
        if state.callers.get(&caller.worker().id).is_some_and(|known| Arc::ptr_eq(known, caller)) {
            state.callers.remove(&caller.worker().id);
            state.forget_token(caller.token_hash());
        }
    }

    /// Forgets everybody who calls: they register anew, and the lines to their turns stay.
    pub fn dismiss_all(&self) {
        let callers: Vec<Arc<Caller>> = {
            let mut state = self.state();
            state.tokens.clear();
            state.callers.drain().map(|(_, caller)| caller).collect()
        };
        callers.iter().for_each(|caller| caller.wake());
    }

    /// Lays a line for a turn that is held here from now on.
    pub fn lay(self: &Arc<Self>, line: Line) -> Arc<Line> {
        let line = Arc::new(line);
        if let Some(former) = self.state().lines.insert(line.turn(), line.clone()) {
            former.close(End::LetGo);
        }
        line
    }

    /// Takes a line up; whoever waits at it is told how the turn ended here.
    pub fn take_up(&self, line: &Arc<Line>, end: End) {
        let caller = {
            let mut state = self.state();
            if state.lines.get(&line.turn()).is_some_and(|known| Arc::ptr_eq(known, line)) {
                state.lines.remove(&line.turn());
            }
            state.callers.get(&line.worker()).cloned()
        };
        line.close(end);
        if let Some(caller) = caller {
            caller.wake();
        }
    }

    /// Every line that is laid here.
    pub fn lines(&self) -> Vec<Arc<Line>> {
        self.state().lines.values().cloned().collect()
    }

    /// The line to a turn that is held here.
    pub fn line(&self, turn: TurnId, epoch: i32) -> Option<Arc<Line>> {
        self.state().lines.get(&turn).filter(|line| line.epoch() == epoch).cloned()
    }

    /// The line to a turn, which is moved here where another replica holds it.
    pub async fn line_or_move(&self, turn: TurnId, epoch: i32, proof: Proof) -> Judgement {
        if let Some(line) = self.line(turn, epoch) {
            return Judgement::Held(line);
        }
        if !self.is_open() {
            return Judgement::Elsewhere;
        }
        let (answer, judgement) = oneshot::channel();
        let wish = Wish { turn, epoch, proof, answer };
        let is_left = match proof {
            // A beat wishes for all that its worker has, a few at a time, and comes back late for what it did not get.
            Proof::Worker(_) => self.wishes.send(wish).await.is_ok(),
            Proof::Token(_) => self.wishes.try_send(wish).is_ok(),
        };
        if !is_left {
            return Judgement::Elsewhere;
        }
        judgement.await.unwrap_or(Judgement::Elsewhere)
    }

    /// The next wishes, so many at most; none when there will be no more. Cancel-safe.
    pub async fn next_wishes(&self, most: usize) -> Vec<Wish> {
        let mut wishes = Vec::new();
        self.inbox.lock().await.recv_many(&mut wishes, most).await;
        wishes
    }

    /// Tells the worker of a line that there is something new for it.
    pub fn ring(&self, line: &Line) {
        if let Some(caller) = self.caller(line.worker()) {
            caller.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_token_is_known_as_long_as_somebody_calls_who_came_with_it() {
        let desk = Desk::default();
        let admit = |n: u128, token: u8| {
            let (id, agent) = (WorkerId(Uuid::from_u128(n)), "a".to_owned());
            let worker = RemoteWorker { id, agent, agent_revision: 1, conversation: None, name: None };
            desk.admit(worker, [token; 32], None).unwrap()
        };
        let (one, other) = (admit(1, 7), admit(2, 7));
        desk.dismiss(&one);
        desk.dismiss(&one);
        assert!(desk.knows(&[7; 32]) && !desk.knows(&[8; 32]));
        let again = admit(2, 8);
        assert!(!desk.knows(&[7; 32]) && desk.knows(&[8; 32]), "it called again with another token");
        desk.dismiss(&other);
        assert!(desk.knows(&[8; 32]), "who has called anew is not forgotten");
        desk.dismiss(&again);
        assert!(!desk.knows(&[8; 32]) && !desk.has_callers());
        admit(3, 9);
        desk.dismiss_all();
        assert!(!desk.knows(&[9; 32]));
    }
}
