//! The router of a shared worker: a lane for each of its turns, and what the worker says put
//! through to the turn that the message names.
//!
//! Owns which turns the worker serves, which it has served, and what each has not heard yet. Refuses a
//! turn beyond the worker's room, one that it has served before (its words of then would pass for those
//! of now), and any turn once it is retired.
//! Refuses to grow: [`UNHEARD_MAX`] messages wait for a turn at most. Then the worker's pipe waits with
//! all that is in it, and no turn's silence counts meanwhile (I8).
//! Keeps I7: a line brings the worker's end only after everything that was said on it before.
//!
//! The worker's life is in [`super::worker`]; a turn's end of its line becomes its lane ([`super::lane`]).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use metrics::counter;
use tokio::{
    sync::{
        Notify,
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{served::ServedTurns, waits::Waits};
use crate::{
    descriptors::Lack,
    owner::{LATE_OUTPUT, Program},
    process::{Exit, Heard, Inlet, Process, Renewer, SendError},
    protocol::{
        codec::{Fault, ProtocolError},
        messages::{FromWorker, Message, ToWorker},
    },
};
use lastword_words::id::{TurnId, WorkerId};

/// Messages that may wait for one turn.
const UNHEARD_MAX: usize = 64;

/// One shared worker, as its pool, its life and its turns reach it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct TurnRouter(Arc<SharedWorker>);

#[derive(Debug)]
struct SharedWorker {
    worker: WorkerId,
    program: Program,
    state: Mutex<RouterState>,
    /// Rung where its life should look again: at the last line's end, and at a change of standing.
    changed: Notify,
    stage: watch::Sender<Stage>,
    kill: CancellationToken,
    /// The waits of this worker's pipe, and those of all shared workers.
    waits: [Arc<Waits>; 2],
}

#[derive(Debug)]
pub(super) struct RouterState {
    pub(super) standing: Standing,
    pub(super) lines: HashMap<TurnId, mpsc::Sender<Heard>>,
    /// Room that is kept for turns which are being claimed.
    pub(super) reserved: usize,
    served: ServedTurns,
    /// When the last line ended.
    idle_since: Instant,
    /// `None` until its program runs.
    pub(super) reached: Option<Reached>,
}

/// The ways to a worker whose program runs.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) pid: i32,
    inlet: Inlet,
    renewer: Renewer,
}

/// A turn's end of its line, to be made its lane.
#[derive(Debug)]
pub(super) struct RawLane {
    pub(super) router: TurnRouter,
    pub(super) turn: TurnId,
    pub(super) unheard: mpsc::Receiver<Heard>,
    /// The worker's process id, where nobody has talked to it for a while.
    pub(super) idle_pid: Option<i32>,
}

/// Whether a shared worker is given turns, and how it is ended when it has none. Only ever moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// It is given turns.
    Open,
    /// No more turns; it is asked to leave.
    Retired,
    /// No more turns; it is killed, since it does not do what it is told.
    Condemned,
}

/// How far the worker has come. All but the first three are for good.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    /// It has not said that it is ready.
    Starting,
    /// It serves turns.
    Ready,
    /// It will say nothing more; it may still run.
    Closed,
    /// It never came to serve turns.
    Refused { message: String, detail: Option<String> },
    /// The same, since this replica lacks what the start of any worker takes.
    Lacking { lack: Lack, detail: String },
    /// It said something that is nobody's.
    Faulty(ProtocolError),
    /// It is gone.
    Exited(Exit),
}

/// What its life should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerOutlook {
    /// It has turns.
    Busy,
    /// It has none, since then.
    Idle(Instant),
    /// It has none, and will be given none.
    Over(Standing),
}

impl TurnRouter {
    /// A worker that is to be started for `turn`, and that turn's line.
    pub(super) fn new(worker: WorkerId, program: Program, turn: TurnId, all: Arc<Waits>) -> (Self, RawLane) {
        let (line, unheard) = mpsc::channel(UNHEARD_MAX);
        let state = RouterState {
            standing: Standing::Open,
            lines: HashMap::from([(turn, line)]),
            reserved: 0,
            served: ServedTurns::default(),
            idle_since: Instant::now(),
            reached: None,
        };
        let router = TurnRouter(Arc::new(SharedWorker {
            worker,
            program,
            state: Mutex::new(state),
            changed: Notify::new(),
            stage: watch::Sender::new(Stage::Starting),
            kill: CancellationToken::new(),
            waits: [Arc::default(), all],
        }));
        let line = RawLane { router: router.clone(), turn, unheard, idle_pid: None };
        (router, line)
    }

    /// A line for `turn`, where there is room for it.
    pub(super) fn connect(&self, turn: TurnId) -> Option<RawLane> {
        self.connect_in(&mut self.state(), turn)
    }

    pub(super) fn connect_in(&self, state: &mut RouterState, turn: TurnId) -> Option<RawLane> {
        let is_known = state.lines.contains_key(&turn) || state.served.is_known(turn);
        if state.standing != Standing::Open || self.room(state) == 0 || is_known {
            return None;
        }
        // One that talks to others lives.
        let idle = state.reached.as_ref().filter(|_| state.lines.is_empty());
        // Its guard is to look closely again.
        let idle_pid = idle.inspect(|it| it.renewer.renew(true)).map(|it| it.pid);
        let (line, unheard) = mpsc::channel(UNHEARD_MAX);
        state.lines.insert(turn, line);
        Some(RawLane { router: self.clone(), turn, unheard, idle_pid })
    }

    /// For how many turns more there is room.
    pub(super) fn room(&self, state: &RouterState) -> usize {
        let taken = state.lines.len() + state.reserved;
        self.0.program.turns.saturating_sub(taken)
    }

    /// Whether there is room for another turn.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.state();
        state.standing == Standing::Open && self.room(&state) > 0
    }

    /// Ends a turn's line: what the worker says of it from now on is late. One that the worker has received nothing of
    /// may come again: its line was kept for it while it was accepted, and it had to wait behind another.
    pub(crate) fn disconnect(&self, turn: TurnId, is_served: bool) {
        let mut state = self.state();
        let has_ended = state.lines.remove(&turn).is_some();
        if is_served {
            state.served.note(turn);
        }
        if has_ended && state.lines.is_empty() {
            state.idle_since = Instant::now();
            self.0.changed.notify_one();
        }
    }

    /// Puts a message through to its turn; waits, and the whole worker with it, where too much waits for
    /// that one already.
    pub(crate) async fn put_through(&self, turn: TurnId, heard: Heard) -> Result<(), Fault> {
        let line = {
            let state = self.state();
            let line = state.lines.get(&turn).cloned();
            if line.is_none() && !state.served.is_known(turn) {
                return Err(Fault::OtherTurn);
            }
            line
        };
        let Some(line) = line else {
            self.note_late(turn, &heard);
            return Ok(());
        };
        match line.try_send(heard) {
            Ok(()) => {}
            Err(TrySendError::Closed(late)) => self.note_late(turn, &late),
            Err(TrySendError::Full(heard)) => {
                let [of_this, of_all] = &self.0.waits;
                let _waiting = (of_this.begin(), of_all.begin());
                tokio::select! {
                    sent = line.send(heard) => if let Err(mpsc::error::SendError(late)) = sent {
                        self.note_late(turn, &late);
                    },
                    () = self.killed() => {}
                }
            }
        }
        Ok(())
    }

    /// Notes what was said of a turn after its end. That it has stopped, as it was told to, is no output.
    pub(crate) fn note_late(&self, turn: TurnId, heard: &Heard) {
        if matches!(heard, Heard::Message(FromWorker { message: Message::Cancelled, .. })) {
            return;
        }
        counter!(LATE_OUTPUT).increment(1);
        if self.state().served.is_first_late(turn) {
            tracing::warn!(worker_id = %self.0.worker, late_for = %turn, "a worker spoke after its turn's end; not kept");
        }
    }

    /// The worker has come this far. After what is for good nothing moves any more.
    pub(crate) fn enter(&self, stage: Stage) {
        self.0.stage.send_if_modified(|now| {
            let is_final = !matches!(now, Stage::Starting | Stage::Ready | Stage::Closed);
            if !is_final {
                *now = stage;
            }
            !is_final
        });
    }

    /// The same, and nothing more will be said on any line. How many there were.
    pub(crate) fn close(&self, stage: Stage) -> usize {
        // First the reason, then the end of each line, which sends its turn to look for the reason.
        self.enter(stage);
        let mut state = self.state();
        state.standing = Standing::Condemned;
        let cut: Vec<TurnId> = state.lines.drain().map(|(turn, _)| turn).collect();
        for &turn in &cut {
            state.served.note(turn);
        }
        cut.len()
    }

    /// Gives it no more turns.
    pub(crate) fn retire(&self, standing: Standing) {
        let mut state = self.state();
        state.standing = state.standing.max(standing);
        self.0.changed.notify_one();
    }

    /// The same where it has none, whatever has come meanwhile.
    pub(crate) fn retire_if_idle(&self) -> bool {
        let mut state = self.state();
        if state.lines.is_empty() {
            state.standing = state.standing.max(Standing::Retired);
            self.0.changed.notify_one();
        }
        state.lines.is_empty()
    }

    /// A turn's authority is over though the worker may go on with it: it is told to stop, and is given
    /// no more turns.
    pub(crate) fn give_up(&self, turn: TurnId) {
        if let Ok(line) = (ToWorker::Cancel { turn_id: turn }).to_line() {
            let _ = self.send_line(line);
        }
        self.retire(Standing::Condemned);
    }

    /// Ends the process at once, whatever runs on it.
    pub(crate) fn kill(&self) {
        self.retire(Standing::Condemned);
        self.0.kill.cancel();
    }

    /// Until it must end at once.
    pub(crate) async fn killed(&self) {
        self.0.kill.cancelled().await;
    }

    /// Hands a message to the worker's queue. One that does not read is given no more turns.
    pub(crate) fn send_line(&self, line: Vec<u8>) -> Result<(), SendError> {
        let inlet = self.state().reached.as_ref().map(|it| it.inlet.clone());
        let sent = inlet.map_or(Err(SendError::Closed), |inlet| inlet.send_line(line));
        if matches!(sent, Err(SendError::Stuck | SendError::Closed)) {
            self.retire(Standing::Condemned);
        }
        sent
    }

    /// Its program runs.
    pub(crate) fn note_process(&self, process: &Process) {
        let (pid, inlet, renewer) = (process.pid(), process.inlet(), process.renewer());
        self.state().reached = Some(Reached { pid, inlet, renewer });
    }

    /// Proves this replica's life to the worker's guard.
    pub(crate) fn renew(&self) {
        let state = self.state();
        if let Some(reached) = &state.reached {
            reached.renewer.renew(!state.lines.is_empty());
        }
    }

    /// What its life should do next.
    pub(crate) fn outlook(&self) -> WorkerOutlook {
        match &*self.state() {
            state if !state.lines.is_empty() => WorkerOutlook::Busy,
            state if state.standing == Standing::Open => WorkerOutlook::Idle(state.idle_since),
            state => WorkerOutlook::Over(state.standing),
        }
    }

    /// Until its life should look again. Cancel-safe.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Until nobody waits for it; nobody can from then on. Cancel-safe.
    pub(crate) async fn deserted(&self) {
        while !self.retire_if_idle() {
            self.changed().await;
        }
    }

    /// For how long the pipe has waited for one turn or another, in all.
    pub(crate) fn waited(&self) -> Duration {
        self.0.waits[0].total()
    }

    pub(crate) fn worker(&self) -> WorkerId {
        self.0.worker
    }

    pub(crate) fn program(&self) -> &Program {
        &self.0.program
    }

    /// Whether it serves turns of this agent at this revision.
    pub(crate) fn is_of(&self, (agent, revision): (&str, i32)) -> bool {
        self.0.program.revision == revision && self.0.program.agent == agent
    }

    /// Whether it serves turns.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(*self.0.stage.borrow(), Stage::Ready)
    }

    pub(crate) fn stage(&self) -> watch::Receiver<Stage> {
        self.0.stage.subscribe()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, RouterState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
