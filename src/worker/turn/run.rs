//! One turn on a ready worker of any runtime, with the log as its outlet: messages become events, one end becomes
//! the last word.
//!
//! The loop is [`crate::host`]'s; this file implements a replica's part of each step. While a write is in flight,
//! messages gather in a bounded buffer. When the buffer is full the worker's pipe is not read, so the worker
//! blocks; that time does not count as the worker's silence (I8).
//!
//! Keeps I7, I10 (`running` is committed before the worker receives a byte) and I11.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::{
    handover::hand_over,
    job::Job,
    replay::Replay,
    terminal::{Account, cancelled},
    timers::Lapse,
    transcript::{Meaning, Transcript},
    write_buffer::WriteBuffer,
};
use crate::{
    agent::Retry,
    event::{Kind, NewEvent},
    failure::Code,
    host::{
        Breach, Broken, Fate, Halt, Link, Outlet, Step,
        process::{SendError, UNREAD},
        protocol::messages::{FromWorker, Message, ToWorker},
        until_end,
    },
    id::TurnId,
    json::Raw,
    store::{
        commands::{Command, Order},
        events::TurnClock,
        group_commit::Written,
    },
    turn::{CancelledBy, LastWord},
    word::Open,
    worker::{deps::Deps, registry::Interruption},
};

/// The fields of an `answer` event.
#[derive(Serialize)]
struct AnswerFields<'a> {
    answer: &'a Raw,
    ask_id: &'a str,
}

/// How a turn ends on this replica.
pub(super) enum End {
    /// With this last word, and this fate of the worker.
    Word(LastWord, Fate),
    /// The turn may be run again on a fresh worker; otherwise it ends with this last word.
    Rerun(LastWord),
    /// Another replica holds the turn, or nobody.
    Lost,
    /// The worker now calls another replica.
    Moved,
}

/// A running turn.
pub(super) struct Run<'a> {
    pub(super) deps: &'a Deps,
    pub(super) job: &'a mut Job,
    pub(super) account: Account,
    pub(super) transcript: Transcript,
    pub(super) buffer: WriteBuffer,
    cancelled_by: Option<Open<CancelledBy>>,
    /// How long the worker may take until its next event.
    budget: Duration,
    has_answered: bool,
    /// `heard`: messages that became events or the end. `written`: how many of them the last write included.
    pub(super) heard: u64,
    written: u64,
    /// Whether the worker's pipe was left unread at some time since the last write ended.
    was_deaf: bool,
    /// [`Link::ends_at_once`].
    ends_at_once: bool,
    /// The link's wait for other turns when the clock was last set.
    had_waited: Duration,
}

/// Runs `job` from its hand-over to its end, on the worker behind `link`.
pub(in crate::worker) async fn begin(deps: &Deps, link: &mut impl Link, job: &mut Job) -> Fate {
    match hand_over(deps, link, job).await {
        Some(base) => resume(deps, link, job, Replay::started(deps, job, base)).await,
        None => Fate::End,
    }
}

/// Runs `job` on from the state in `past` to its end.
pub(in crate::worker) async fn resume(
    deps: &Deps,
    link: &mut impl Link,
    job: &mut Job,
    past: Replay,
) -> Fate {
    deps.running.note_worker(job.claim.turn, link.worker());
    let now = Instant::now();
    match past.transcript.is_asking() {
        true => job.clocks.expect_answer(now, past.left),
        false => job.clocks.expect_progress(now, past.left),
    }
    job.reach.set_due(job.clocks.next().0);
    let mut account = Account::unstarted(&job.claim, Some(job));
    account.started_at = past.started_at;
    account.last_progress_at = past.last_progress_at;
    let mut run = Run {
        account,
        buffer: WriteBuffer::new(deps.writer.clone(), job.claim.clone(), past.base),
        cancelled_by: past.cancelled_by,
        has_answered: past.has_answered,
        heard: past.heard,
        written: past.heard,
        transcript: past.transcript,
        was_deaf: false,
        ends_at_once: link.ends_at_once(),
        had_waited: link.waited(),
        deps,
        job,
        budget: past.left,
    };
    let end = until_end(link, &mut run).await;
    run.finish(end, link).await
}

impl<L: Link> Outlet<L> for Run<'_> {
    type Order = Command;
    type End = End;

    fn turn(&self) -> TurnId {
        self.job.claim.turn
    }

    fn is_full(&self) -> bool {
        self.buffer.is_full()
    }

    fn flush(&mut self) {
        self.write();
    }

    async fn step(&mut self) -> Step<Command, End> {
        tokio::select! {
            biased;
            written = self.buffer.written() => match self.failed_write(written) {
                Some(end) => Step::End(end),
                None => Step::Written,
            },
            call = self.job.reach.call() => match call {
                Interruption::Halt(halt) => Step::End(self.halted(halt)),
                Interruption::Order(command) => Step::Order(command),
            },
        }
    }

    fn written(&mut self, link: &mut L) {
        self.note_written(link);
    }

    async fn obey(&mut self, command: Command, link: &mut L) -> Option<End> {
        let turn_id = self.job.claim.turn;
        let sent = match command.order {
            Order::Cancel { by } => {
                self.job.clocks.cancel(Instant::now());
                self.cancelled_by = Some(by);
                link.send(&ToWorker::Cancel { turn_id })
            }
            Order::Answer { ask_id, answer } => {
                let answer = Raw::of(answer).unwrap_or(Raw::null());
                if !self.transcript.take_ask(&ask_id) {
                    // The answer was delivered before, but the mark was lost.
                    return self.mark_taken(command.id).await;
                }
                self.gather(NewEvent::new(Kind::Answer, &AnswerFields { answer: &answer, ask_id: &ask_id }));
                self.expect(Duration::ZERO, link);
                link.send(&ToWorker::Answer { turn_id, ask_id, answer })
            }
        };
        if let Some(end) = self.mark_taken(command.id).await {
            return Some(end);
        }
        match sent {
            // A worker that has exited is reported by the next `recv()`.
            Ok(()) | Err(SendError::Closed) => None,
            Err(_) if self.cancelled_by.is_some() => Some(self.ended_by(Lapse::Cancels)),
            Err(why @ SendError::TooLong) => {
                let message = "Your answer is too long for this agent's worker.";
                Some(self.fails(Code::InputTooLong, message, Some(why.to_string())))
            }
            Err(why) => Some(self.fails(Code::WorkerUnresponsive, UNREAD, Some(why.to_string()))),
        }
    }

    fn heed(&mut self, from: FromWorker, link: &mut L) -> Option<End> {
        let budget = match &from.message {
            Message::Status { budget_s: Some(seconds), .. } => {
                Duration::try_from_secs_f64(*seconds).unwrap_or(Duration::MAX)
            }
            _ => Duration::ZERO,
        };
        self.heard += 1;
        match self.transcript.hear(from.message, self.job.agent.spec.limits.output_bytes.0) {
            Meaning::Alive => None,
            Meaning::Event(event) => {
                self.has_answered |= matches!(event.kind, Kind::Delta | Kind::Content | Kind::Ask);
                self.gather(event);
                self.expect(budget, link);
                None
            }
            Meaning::End(word) => Some(End::Word(word, Fate::Keep)),
            Meaning::Failed { code: Code::WorkerProtocol, message, .. } => {
                Some(self.fails(Code::WorkerProtocol, &message, None))
            }
            Meaning::Failed { code, message, retryable } => {
                Some(End::Word(self.account.failure_as(code, &message, None, retryable), Fate::Keep))
            }
            Meaning::Cancelled => Some(match self.cancelled_by.clone() {
                Some(by) => End::Word(cancelled(&by), Fate::Keep),
                None => {
                    let message = "The worker stopped the turn without having been asked to.";
                    self.fails(Code::WorkerProtocol, message, None)
                }
            }),
        }
    }

    fn broken(&mut self, broken: Broken) -> End {
        let Broken { breach, code, message, detail } = broken;
        match breach {
            // Exiting is a way to obey a cancel.
            Breach::Closed | Breach::Gone | Breach::Unreceived if self.cancelled_by.is_some() => {
                self.ended_by(Lapse::Cancels)
            }
            Breach::Gone => self.unfinished(code, &message, detail),
            Breach::Closed if self.ends_at_once => self.unfinished(code, &message, detail),
            Breach::Unreceived => {
                // `started` told that the host took the turn. What has said something was started, whatever its host reports.
                if self.heard == 0 {
                    self.account.started_at = None;
                }
                self.fails(code, &message, detail)
            }
            Breach::Closed | Breach::Protocol => self.fails(code, &message, detail),
        }
    }

    fn due(&mut self, is_listening: bool) -> Option<Instant> {
        self.was_deaf |= !is_listening;
        let (at, lapse) = self.job.clocks.next();
        (is_listening || lapse == Lapse::Cancels).then_some(at)
    }

    fn lapsed(&mut self, link: &mut L) -> Option<End> {
        match self.job.clocks.next().1 {
            Lapse::Fails(Code::WorkerUnresponsive) if self.is_excused(link) => None,
            lapse => Some(self.ended_by(lapse)),
        }
    }
}

impl Run<'_> {
    /// Starts a write of the gathered events, unless a write is in flight.
    pub(super) fn write(&mut self) {
        let clock = if self.transcript.is_asking() { TurnClock::Answer } else { TurnClock::Progress };
        if !self.buffer.is_writing() {
            self.written = self.heard;
        }
        self.buffer.write(clock, self.budget);
    }

    /// The end that a completed write forces on the turn; `None` if the write is committed.
    pub(super) fn failed_write(&mut self, written: Written) -> Option<End> {
        match written {
            Written::Done(_) => None,
            Written::LeaseLost => Some(End::Lost),
            Written::Refused(why) => Some(self.fails(Code::Internal, Code::Internal.message(), Some(why))),
        }
    }

    /// Acknowledges the messages of a committed write.
    pub(super) fn note_written(&mut self, link: &mut impl Link) {
        link.acknowledge(self.written);
        if std::mem::take(&mut self.was_deaf) {
            // The worker's pipe was not read meanwhile, so its silence does not count.
            self.expect(self.budget, link);
        }
    }

    /// Nothing more of this attempt comes: messages that the worker had not sent are lost.
    fn unfinished(&self, code: Code, message: &str, detail: Option<String>) -> End {
        let word = self.account.failure(code, message, detail);
        let may_rerun = self.job.agent.spec.retry == Retry::Safe && !self.has_answered;
        if may_rerun { End::Rerun(word) } else { End::Word(word, Fate::End) }
    }

    fn gather(&mut self, event: NewEvent) {
        self.account.last_progress_at = Some(self.deps.store.clock().now());
        self.buffer.gather(event);
    }

    /// Restarts the clock after an event: the progress clock, or the answer clock while a question is open.
    fn expect(&mut self, announced: Duration, link: &impl Link) {
        let timeouts = self.job.agent.spec.timeouts;
        let now = Instant::now();
        // An announced budget never extends past the cap.
        let cap_left = self.job.clocks.cap_left(now);
        if self.transcript.is_asking() {
            self.budget = timeouts.answer.0.min(cap_left);
            self.job.clocks.expect_answer(now, self.budget);
        } else {
            self.budget = timeouts.progress.0.max(announced).min(cap_left);
            self.job.clocks.expect_progress(now, self.budget);
            self.had_waited = link.waited();
        }
        self.job.reach.set_due(self.job.clocks.next().0);
    }

    /// Whether the worker gets more time because its link waited for other turns during the period.
    fn is_excused(&mut self, link: &impl Link) -> bool {
        let waited = link.may_have_waited();
        let excused = waited.saturating_sub(std::mem::replace(&mut self.had_waited, waited));
        self.job.clocks.excuse(excused);
        self.job.reach.set_due(self.job.clocks.next().0);
        !excused.is_zero()
    }

    /// Marks a command as carried out. If the mark matches no row, another replica holds the turn and carries it
    /// out.
    async fn mark_taken(&mut self, command: i64) -> Option<End> {
        let claim = &self.job.claim;
        match self.deps.store.take_command_of(command, claim.turn, claim.epoch).await {
            Ok(true) => None,
            Ok(false) => Some(End::Moved),
            Err(why) => {
                // The command is read again and then changes nothing.
                tracing::debug!(%why, "an order was not marked as taken");
                None
            }
        }
    }

    fn ended_by(&mut self, lapse: Lapse) -> End {
        match lapse {
            Lapse::Cancels => {
                let by = self.cancelled_by.clone().unwrap_or_default();
                End::Word(cancelled(&by), Fate::End)
            }
            Lapse::Fails(code) => self.fails(code, code.message(), None),
        }
    }

    fn halted(&mut self, halt: Halt) -> End {
        match halt {
            Halt::Lost => End::Lost,
            Halt::Moved => End::Moved,
            Halt::Interrupted if self.ends_at_once => {
                self.unfinished(Code::Interrupted, Code::Interrupted.message(), None)
            }
            Halt::Interrupted => self.fails(Code::Interrupted, Code::Interrupted.message(), None),
        }
    }

    fn fails(&self, code: Code, message: &str, detail: Option<String>) -> End {
        End::Word(self.account.failure(code, message, detail), Fate::End)
    }
}
