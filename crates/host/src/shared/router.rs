//! The router of a shared worker: one lane for each turn, and each message delivered to the turn it names.
//!
//! Owns which turns the worker serves and has served, and the messages that each turn has not read yet. Refuses a
//! turn beyond the worker's capacity, a turn served before (messages for the first run would pass for messages of
//! the second), and any turn once the worker is retired. Bounded: at most [`UNHEARD_MAX`] messages wait for a
//! turn. Beyond that the worker's whole pipe waits, and that time counts as no turn's silence (I8). Keeps I7: a
//! lane reports the worker's end only after all messages.
//!
//! [`super::worker`] runs the process; [`super::lane`] is the turn's end of a line.

use std::{collections::HashMap, sync::Arc, time::Duration};

use metrics::counter;
use parking_lot::{Mutex, MutexGuard};
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

/// One shared worker, as its pool, its task and its turns reach it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct TurnRouter(Arc<SharedWorker>);

#[derive(Debug)]
struct SharedWorker {
    worker: WorkerId,
    program: Program,
    state: Mutex<RouterState>,
    /// Notified when the worker's task must look again: at the end of the last line, and at a change of standing.
    changed: Notify,
    stage: watch::Sender<Stage>,
    kill: CancellationToken,
    /// Time in which this worker's output could not be read, since a turn's lane was full.
    waits: Arc<Waits>,
    /// The same of all shared workers of this host.
    waits_of_all: Arc<Waits>,
}

#[derive(Debug)]
pub(super) struct RouterState {
    pub(super) standing: Standing,
    pub(super) lines: HashMap<TurnId, mpsc::Sender<Heard>>,
    /// Lanes reserved for turns that are being claimed.
    pub(super) reserved: usize,
    served: ServedTurns,
    /// When the last line ended.
    idle_since: Instant,
    /// `None` until the program runs.
    pub(super) reached: Option<Reached>,
}

/// Handles to a running program.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) pid: i32,
    inlet: Inlet,
    renewer: Renewer,
}

/// A turn's end of its line, from which its lane is made.
#[derive(Debug)]
pub(super) struct RawLane {
    pub(super) router: TurnRouter,
    pub(super) turn: TurnId,
    pub(super) unheard: mpsc::Receiver<Heard>,
    /// The worker's process id, if the worker was idle.
    pub(super) idle_pid: Option<i32>,
}

/// Whether a shared worker takes turns, and how it ends when it has none. Only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Takes turns.
    Open,
    /// No more turns; the worker is asked to leave.
    Retired,
    /// No more turns; the worker is killed because it does not obey.
    Condemned,
}

/// The worker's stage. All but the first three are final.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    /// Not ready yet.
    Starting,
    /// Serves turns.
    Ready,
    /// Will send nothing more, but may still run.
    Closed,
    /// Never became ready.
    Refused { message: String, detail: Option<String> },
    /// Not started, for lack of a resource on this machine.
    Lacking { lack: Lack, detail: String },
    /// Sent a line that belongs to no turn of its.
    Faulty(ProtocolError),
    /// The process has ended.
    Exited(Exit),
}

/// What the worker's task should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerOutlook {
    /// The worker has turns.
    Busy,
    /// No turn since this time.
    Idle(Instant),
    /// The worker has no turn and gets no more, for this reason.
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
            waits: Arc::default(),
            waits_of_all: all,
        }));
        let line = RawLane { router: router.clone(), turn, unheard, idle_pid: None };
        (router, line)
    }

    /// A line for `turn`, if there is room.
    pub(super) fn connect(&self, turn: TurnId) -> Option<RawLane> {
        self.connect_in(&mut self.state(), turn)
    }

    pub(super) fn connect_in(&self, state: &mut RouterState, turn: TurnId) -> Option<RawLane> {
        let is_known = state.lines.contains_key(&turn) || state.served.is_known(turn);
        if state.standing != Standing::Open || self.room(state) == 0 || is_known {
            return None;
        }
        // A busy worker is known to be alive.
        let idle = state.reached.as_ref().filter(|_| state.lines.is_empty());
        // Makes the guard check this replica's life more often again.
        let idle_pid = idle.inspect(|it| it.renewer.renew(true)).map(|it| it.pid);
        let (line, unheard) = mpsc::channel(UNHEARD_MAX);
        state.lines.insert(turn, line);
        Some(RawLane { router: self.clone(), turn, unheard, idle_pid })
    }

    /// The number of free lanes.
    pub(super) fn room(&self, state: &RouterState) -> usize {
        let taken = state.lines.len() + state.reserved;
        self.0.program.turns.saturating_sub(taken)
    }

    /// Whether the worker takes turns and has a free lane.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.state();
        state.standing == Standing::Open && self.room(&state) > 0
    }

    /// Ends a turn's line; later messages for the turn are late. If nothing was sent for this turn it may return
    /// later: a lane was reserved at accept time, but the turn was queued.
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

    /// Delivers a message to its turn. If too many messages wait for that turn, waits, and the whole worker with
    /// it.
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
                let (of_this, of_all) = (&self.0.waits, &self.0.waits_of_all);
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

    /// Counts a message that arrived after its turn's end. `cancelled` is expected then and does not count.
    pub(crate) fn note_late(&self, turn: TurnId, heard: &Heard) {
        if matches!(heard, Heard::Message(FromWorker { message: Message::Cancelled, .. })) {
            return;
        }
        counter!(LATE_OUTPUT).increment(1);
        if self.state().served.is_first_late(turn) {
            tracing::warn!(
                worker_id = %self.0.worker, late_for = %turn,
                "a worker's message came after its turn's end; the message is dropped"
            );
        }
    }

    /// Moves the worker to this stage, unless its stage is final.
    pub(crate) fn enter(&self, stage: Stage) {
        self.0.stage.send_if_modified(|now| {
            let is_final = !matches!(now, Stage::Starting | Stage::Ready | Stage::Closed);
            if !is_final {
                *now = stage;
            }
            !is_final
        });
    }

    /// Like `enter`, and ends every line. Returns how many there were.
    pub(crate) fn close(&self, stage: Stage) -> usize {
        // The stage comes first: the end of a line makes its turn read the stage.
        self.enter(stage);
        let mut state = self.state();
        state.standing = Standing::Condemned;
        let cut: Vec<TurnId> = state.lines.drain().map(|(turn, _)| turn).collect();
        for &turn in &cut {
            state.served.note(turn);
        }
        cut.len()
    }

    /// Gives the worker no more turns.
    pub(crate) fn retire(&self, standing: Standing) {
        let mut state = self.state();
        state.standing = state.standing.max(standing);
        self.0.changed.notify_one();
    }

    /// Retires the worker if it has no turn. Returns whether it has none.
    pub(crate) fn retire_if_idle(&self) -> bool {
        let mut state = self.state();
        if state.lines.is_empty() {
            state.standing = state.standing.max(Standing::Retired);
            self.0.changed.notify_one();
        }
        state.lines.is_empty()
    }

    /// Ends a turn's authority though the worker may go on with it: tells the worker to stop, and gives it no more
    /// turns.
    pub(crate) fn give_up(&self, turn: TurnId) {
        if let Ok(line) = (ToWorker::Cancel { turn_id: turn }).to_line() {
            let _ = self.send_line(line);
        }
        self.retire(Standing::Condemned);
    }

    /// Kills the process, whatever turns run on it.
    pub(crate) fn kill(&self) {
        self.retire(Standing::Condemned);
        self.0.kill.cancel();
    }

    /// Waits for [`kill`](Self::kill).
    pub(crate) async fn killed(&self) {
        self.0.kill.cancelled().await;
    }

    /// Queues a message for the worker. A worker that does not read its input gets no more turns.
    pub(crate) fn send_line(&self, line: Vec<u8>) -> Result<(), SendError> {
        let inlet = self.state().reached.as_ref().map(|it| it.inlet.clone());
        let sent = inlet.map_or(Err(SendError::Closed), |inlet| inlet.send_line(line));
        if matches!(sent, Err(SendError::Stuck | SendError::Closed)) {
            self.retire(Standing::Condemned);
        }
        sent
    }

    /// Records the started process.
    pub(crate) fn note_process(&self, process: &Process) {
        let (pid, inlet, renewer) = (process.pid(), process.inlet(), process.renewer());
        self.state().reached = Some(Reached { pid, inlet, renewer });
    }

    /// Renews the lifeline of the worker's guard.
    pub(crate) fn renew(&self) {
        let state = self.state();
        if let Some(reached) = &state.reached {
            reached.renewer.renew(!state.lines.is_empty());
        }
    }

    /// What the worker's task should do next.
    pub(crate) fn outlook(&self) -> WorkerOutlook {
        match &*self.state() {
            state if !state.lines.is_empty() => WorkerOutlook::Busy,
            state if state.standing == Standing::Open => WorkerOutlook::Idle(state.idle_since),
            state => WorkerOutlook::Over(state.standing),
        }
    }

    /// Waits for a change that the worker's task must act on. Cancel-safe.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Waits until no turn waits for the worker, and retires it. Cancel-safe.
    pub(crate) async fn deserted(&self) {
        while !self.retire_if_idle() {
            self.changed().await;
        }
    }

    /// Total time in which the worker's pipe was blocked by a turn.
    pub(crate) fn waited(&self) -> Duration {
        self.0.waits.total()
    }

    pub(crate) fn worker(&self) -> WorkerId {
        self.0.worker
    }

    pub(crate) fn program(&self) -> &Program {
        &self.0.program
    }

    /// Whether the worker serves this agent at this revision.
    pub(crate) fn is_of(&self, (agent, revision): (&str, i32)) -> bool {
        self.0.program.revision == revision && self.0.program.agent == agent
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(*self.0.stage.borrow(), Stage::Ready)
    }

    pub(crate) fn stage(&self) -> watch::Receiver<Stage> {
        self.0.stage.subscribe()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, RouterState> {
        self.0.state.lock()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
