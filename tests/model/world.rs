//! The world of the turn model: the state of the database and of the replicas, and the statements in transit.
//!
//! Owns the words. Each has a counterpart in the schema or in `src/`; what the protocol does not read (data, agents,
//! times) is left out.

/// Replica processes. The last one is never killed, frozen or drained: somebody must be left.
pub const REPLICAS: usize = 2;
/// Turns.
pub const TURNS: usize = 2;
/// Ids that one process may have, one after another: who was judged registers anew.
pub const BOOTS: u8 = 2;
/// `lw_may_rerun_v1`: `epoch < 3`.
pub const ATTEMPTS: u8 = 3;
/// `lw_close_v1`: a turn of so many lost holders is not run again.
pub const LOSSES: u8 = 2;

/// A guard of the protocol that a mutant leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Break {
    /// Nothing: the protocol as it is.
    Nothing,
    /// `lw_accept_v1` looks whether the line is empty before it holds the conversation's lock.
    AcceptDecidesEarly,
    /// The claim takes any queued turn, and `inflight_one_claimed` is not there.
    ClaimTakesAny,
    /// The worker receives its turn before the move to `running` is committed.
    FirstByteEarly,
    /// The append does not ask for the epoch.
    AppendUnfenced,
    /// The last word does not ask for the epoch.
    FinishUnfenced,
    /// The last word leaves the in-flight row.
    FinishKeepsRow,
    /// `lw_close_v1` acts on what its locking statement saw.
    CloseDecidesEarly,
    /// Every loss is followed by one close pass, and no other ever comes.
    CloseOncePerLoss,
    /// A close pass ends after a page of one. Passes come again, so this is only slower.
    CloseDoesNotLoop,
    /// `start` does not ask for the epoch.
    StartUnfenced,
    /// `lw_may_rerun_v1` lets a `running` turn go back to the queue.
    RequeueRunning,
    /// A holder says "untouched" of a turn that its worker has received.
    UntouchedUnasked,
    /// A holder says "untouched" of any turn that does not run there.
    AstrayUnasked,
    /// `lw_may_rerun_v1` does not count.
    AttemptsUncounted,
    /// `lw_close_v1` does not ask how many holders were lost.
    LossesUnasked,
}

/// `replicas.id`: a process, and how often it has registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    pub process: u8,
    pub boot: u8,
}

/// `replicas.state`; `Unborn` where there is no row yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Presence {
    Unborn,
    Ready,
    Draining,
    Lost,
    Left,
}

/// `inflight.phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    Queued,
    Starting,
    Running,
}

/// `inflight.replica`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    /// Null: the turn is queued.
    None,
    /// The nil id: its holder disowned it.
    Nobody,
    Of(Id),
}

/// An in-flight row: the obligation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Row {
    pub phase: Phase,
    pub epoch: u8,
    pub holder: Holder,
    /// `last_seq`: as of the last change of phase.
    pub base: u8,
    /// `head_at is not null`: the queue clock runs.
    pub is_at_head: bool,
    /// `deadline <= clock_timestamp()`, and of a living holder's: for twenty looks.
    pub is_overdue: bool,
    /// `cancelled_by is not null`.
    pub is_cancelled: bool,
    /// `replicas_lost`: holders that were lost with it.
    pub losses: u8,
}

/// `turn_events.kind`, as far as the protocol tells kinds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Accepted,
    Started,
    /// `delta`, `content`: a turn that has said something is never run again.
    Said,
    /// `completed`, `failed`, `cancelled`.
    Last,
}

/// A row of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Event {
    pub seq: u8,
    pub kind: Kind,
    pub epoch: u8,
    /// The process that wrote it. Not in the log: for the properties.
    pub by: u8,
}

/// A turn: its row, its log, its status.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Turn {
    pub row: Option<Row>,
    pub log: Vec<Event>,
    /// `turns.status` is terminal.
    pub is_ended: bool,
    /// How many workers have received its first byte. For the properties.
    pub received: u8,
    /// The place in its conversation, 0 until accepted.
    pub ordinal: u8,
}

/// A statement that was sent. It takes effect when it is committed, however long that takes and
/// whatever has become of its sender: that is the late writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Statement {
    /// `lw_accept_v1`. `saw_empty`: what a mutant decided before the lock.
    Accept { turn: u8, saw_empty: bool },
    /// `claim`, or the claim within `lw_accept_v1`. That its sender is `ready` and its turn the head of a line
    /// is from the statement's own snapshot, taken when it was sent. `has_worker`: one was kept for it.
    Claim { by: Id, turn: u8, has_worker: bool },
    /// `start`. That its sender is not gone is from the snapshot too.
    Start { by: Id, turn: u8, epoch: u8 },
    /// `lw_append_v1`.
    Append { by: Id, turn: u8, epoch: u8, base: u8 },
    /// `lw_finish_v1`.
    Finish { by: Id, turn: u8, epoch: u8, base: u8 },
    /// `lw_release_v1`.
    Release { by: Id, turn: u8, epoch: u8, is_untouched: bool },
    /// `disown`.
    Disown { by: Id, turn: u8, epoch: u8 },
    /// `lw_close_v1`, after its locking statement: the turns that it would run again or end.
    Close { by: Id, rerun: u8, end: u8 },
}

impl Statement {
    /// Who sent it; requests own nothing, so an accept has nobody.
    pub fn by(&self) -> Option<Id> {
        match *self {
            Statement::Accept { .. } => None,
            Statement::Claim { by, .. }
            | Statement::Start { by, .. }
            | Statement::Append { by, .. }
            | Statement::Finish { by, .. }
            | Statement::Release { by, .. }
            | Statement::Disown { by, .. }
            | Statement::Close { by, .. } => Some(by),
        }
    }
}

/// A turn that runs on a replica (`worker::host`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Run {
    pub turn: u8,
    pub epoch: u8,
    /// The newest `seq` that its pen knows to be committed.
    pub base: u8,
    pub stage: Stage,
    /// Its worker has received the turn.
    pub is_fed: bool,
    /// Its worker has said something.
    pub has_said: bool,
}

/// What a run does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Claimed; no worker has it.
    Claimed,
    /// `start` was sent and not answered.
    Starting,
    /// Nothing of its is under way.
    Running,
    /// An append was sent and not answered.
    Writing,
    /// A last word, or a release, was sent and not answered.
    Ending,
}

/// Whether a process takes steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Condition {
    Alive,
    Frozen,
    Dead,
}

/// A replica's process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process {
    pub condition: Condition,
    pub boot: u8,
    /// A claim was sent and not answered: dispatch sends one at a time.
    pub is_claiming: bool,
    pub runs: Vec<Run>,
    /// Claims that ran here and do not any more, with their epochs (`worker::registry`): a worker may have had
    /// them. Only those that are still held.
    pub had: Vec<(u8, u8)>,
}

/// What may still go wrong. Deaths and stand-stills are judged without a limit; these are bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Trouble {
    /// SIGKILLs.
    pub kills: u8,
    /// SIGSTOPs.
    pub freezes: u8,
    /// Drains.
    pub drains: u8,
    /// Verdicts on a replica that lives. Presence rules them out; the log must not depend on it.
    pub wrong_verdicts: u8,
    /// Answers of commits that never arrive.
    pub lost_answers: u8,
    /// Deadlines that pass without the holder's doing anything.
    pub lapses: u8,
    /// Cancels.
    pub cancels: u8,
    /// Starts of workers that fail, and workers that die.
    pub crashes: u8,
}

/// The whole world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub turns: [Turn; TURNS],
    pub replicas: [[Presence; BOOTS as usize]; REPLICAS],
    pub processes: [Process; REPLICAS],
    /// Sorted: the order of sending means nothing.
    pub air: Vec<Statement>,
    pub left: Trouble,
    /// For the mutant that closes once a loss: losses that no pass has answered yet.
    pub losses: u8,
    /// What a statement did that none may do. For the properties.
    pub wrong: Option<Wrong>,
}

/// An effect that no statement may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// It wrote under an epoch that was not the row's.
    Unfenced,
    /// A close ended or queued a turn whose holder lives, within its deadline.
    ClosedAlive,
}

impl World {
    pub fn presence(&self, id: Id) -> Presence {
        self.replicas[usize::from(id.process)][usize::from(id.boot)]
    }

    pub fn set_presence(&mut self, id: Id, presence: Presence) {
        self.replicas[usize::from(id.process)][usize::from(id.boot)] = presence;
    }

    /// The id that a process has now.
    pub fn id(&self, process: usize) -> Id {
        Id { process: process as u8, boot: self.processes[process].boot }
    }

    pub fn turn(&self, turn: u8) -> &Turn {
        &self.turns[usize::from(turn)]
    }

    pub fn turn_mut(&mut self, turn: u8) -> &mut Turn {
        &mut self.turns[usize::from(turn)]
    }

    /// Its row says `lost`.
    pub fn is_lost(&self, holder: Holder) -> bool {
        matches!(holder, Holder::Of(id) if self.presence(id) == Presence::Lost)
    }

    /// Its row says `lost` or `left`, or it has none.
    pub fn is_gone(&self, holder: Holder) -> bool {
        match holder {
            Holder::None => false,
            Holder::Nobody => true,
            Holder::Of(id) => !matches!(self.presence(id), Presence::Ready | Presence::Draining),
        }
    }

    pub fn send(&mut self, statement: Statement) {
        let at = self.air.binary_search(&statement).unwrap_or_else(|at| at);
        self.air.insert(at, statement);
    }
}
