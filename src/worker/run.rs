//! One turn on a ready worker: what it says becomes events, and one end becomes the last word.
//!
//! One loop, five things to wait for: the worker, the writer, orders, clocks, a halt. While a write
//! is under way what the worker says gathers in a bounded buffer; when that is full the worker is
//! not listened to, its pipe fills, and it waits. That wait is not counted as its own silence (I8).
//!
//! A remote worker's turn may have begun elsewhere: then [`resume`] goes on from its log.
//!
//! Keeps I7, I10 (the move to `running` is committed before the worker receives a byte) and I11.

mod tell;

use std::time::Duration;

use futures_util::FutureExt as _;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::{
    clocks::Lapse,
    codec::Fault,
    ending::{Account, UNKNOWN_CANCELLER, cancelled},
    hand_over::hand_over,
    host::Host,
    job::{Call, Halt, Job},
    life::Fate,
    line::Line,
    pen::Pen,
    process::{Heard, SendError},
    remote::{self, Past},
    transcript::{Meaning, Transcript},
    wire::{FromWorker, Message, ToWorker},
};
use crate::{
    agent::Retry,
    event::{Kind, NewEvent},
    failure::Code,
    json::Raw,
    store::{
        commands::{Command, Order},
        events::TurnClock,
        group_commit::Written,
    },
    telemetry::metrics,
    turn::LastWord,
};

/// How long a worker may live on after it closed its output.
const CLOSED_GRACE: Duration = Duration::from_secs(1);

/// The fields of an answer's event.
#[derive(Serialize)]
struct Answered<'a> {
    answer: &'a Raw,
    ask_id: &'a str,
}

/// How a turn ends here.
enum End {
    /// With this word; then this becomes of the worker.
    Word(LastWord, Fate),
    /// It may be run again, by a fresh worker.
    Rerun(LastWord),
    /// It is not ours any more.
    Lost,
    /// Its worker calls another replica.
    Moved,
}

struct Run<'a> {
    host: &'a Host,
    line: Line<'a>,
    job: &'a mut Job,
    account: Account,
    transcript: Transcript,
    pen: Pen,
    cancelled_by: Option<String>,
    closed_until: Option<Instant>,
    /// What the worker may take until its next event.
    budget: Duration,
    has_answered: bool,
    /// Messages of the worker that became events, or the end; and how many of them the last write has.
    heard: u64,
    written: u64,
    /// Whether the worker was not listened to since the last write ended.
    was_deaf: bool,
    /// For how long the line had waited for other turns when the clock was last set.
    had_waited: Duration,
}

/// Runs `job` to its end, on the worker at the other end of `line`.
pub(super) async fn run<'a>(host: &'a Host, mut line: Line<'a>, job: &'a mut Job) -> Fate {
    let base = match &line {
        Line::Remote(_) => remote::hand_over(host, &mut line, job).await,
        _ => hand_over(host, &mut line, job).await,
    };
    let Some(base) = base else { return Fate::End };
    let left = job.agent.spec.timeouts.progress.0;
    let started_at = Some(host.store().clock().now());
    resume(host, line, job, Past { base, left, started_at, ..Past::default() }).await
}

/// Goes on with `job` after what was before.
pub(super) async fn resume<'a>(host: &'a Host, line: Line<'a>, job: &'a mut Job, past: Past) -> Fate {
    host.run_list().note_worker(job.claim.turn, line.worker());
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
        pen: Pen::new(host.writer().clone(), job.claim.clone(), past.base),
        cancelled_by: past.cancelled_by,
        closed_until: None,
        has_answered: past.has_answered,
        heard: past.heard,
        written: past.heard,
        transcript: past.transcript,
        was_deaf: false,
        had_waited: line.waited(),
        host,
        line,
        job,
        budget: past.left,
    };
    let end = run.until_end().await;
    run.tell(end).await
}

impl Run<'_> {
    async fn until_end(&mut self) -> End {
        loop {
            if let Some(end) = self.hear_what_was_said() {
                return end;
            }
            self.write();
            let (mut at, lapse) = self.job.clocks.next();
            let closed_until = self.closed_until.filter(|&until| until < at);
            at = closed_until.unwrap_or(at);
            let is_listening = !self.pen.is_full();
            self.was_deaf |= !is_listening;
            let end = tokio::select! {
                biased;
                written = self.pen.written() => self.written(written),
                call = self.job.reach.call() => match call {
                    Call::Halt(halt) => Some(self.halted(halt)),
                    Call::Order(command) => self.obey(command).await,
                },
                heard = self.line.recv(), if is_listening => self.hear(heard),
                () = sleep_until(at), if is_listening || lapse == Lapse::Cancels => match lapse {
                    _ if closed_until.is_some() => Some(self.left_without_exit()),
                    Lapse::Fails(Code::WorkerUnresponsive) if self.is_excused() => None,
                    lapse => Some(self.lapsed(lapse)),
                }
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// What is said in one breath goes into one write, or with the last word.
    fn hear_what_was_said(&mut self) -> Option<End> {
        while !self.pen.is_full() {
            let heard = self.line.recv().now_or_never()?;
            if let Some(end) = self.hear(heard) {
                return Some(end);
            }
        }
        None
    }

    fn write(&mut self) {
        let clock = if self.transcript.is_asking() { TurnClock::Answer } else { TurnClock::Progress };
        if !self.pen.is_writing() {
            self.written = self.heard;
        }
        self.pen.write(clock, self.budget);
    }

    fn written(&mut self, written: Written) -> Option<End> {
        match written {
            Written::Done(_) => {
                self.line.acknowledge(self.written);
                if std::mem::take(&mut self.was_deaf) {
                    // It could not be heard meanwhile: its silence was ours.
                    self.expect(self.budget);
                }
                None
            }
            Written::LeaseLost => Some(End::Lost),
            Written::Refused(why) => Some(self.fails(Code::Internal, Code::Internal.message(), Some(why))),
        }
    }

    fn hear(&mut self, heard: Heard) -> Option<End> {
        match heard {
            Heard::Message(from) => self.heed(from),
            Heard::Protocol(error) => {
                let detail = (!error.excerpt.is_empty()).then(|| format!("line: {}", error.excerpt));
                Some(self.fails(Code::WorkerProtocol, &error.to_string(), detail))
            }
            Heard::Closed => {
                self.closed_until = Some(Instant::now() + CLOSED_GRACE);
                None
            }
            // It obeyed in its own way.
            Heard::Exited(_) | Heard::Gone(_) if self.cancelled_by.is_some() => {
                Some(self.lapsed(Lapse::Cancels))
            }
            Heard::Exited(exit) => {
                let message = format!("The worker handling your request stopped unexpectedly ({exit}).");
                let tail = self.line.stderr_tail();
                Some(self.gone(Code::WorkerExited, &message, tail))
            }
            Heard::Gone(why) => Some(self.gone(why.code, &why.message, why.detail)),
        }
    }

    /// The worker is gone, and with it what it had not said.
    fn gone(&self, code: Code, message: &str, detail: Option<String>) -> End {
        let word = self.account.failure(code, message, detail);
        let may_rerun = self.job.agent.spec.retry == Retry::Safe && !self.has_answered;
        if may_rerun { End::Rerun(word) } else { End::Word(word, Fate::End) }
    }

    fn heed(&mut self, from: FromWorker) -> Option<End> {
        if let Some(turn) = from.turn_id.filter(|&turn| turn != self.job.claim.turn) {
            if Some(turn) == self.line.last_turn() {
                // Its turn has had its last word: it cannot become an event any more (I3).
                metrics::late_output();
                tracing::warn!(late_for = %turn, "a worker spoke after its turn's end; not kept");
                return None;
            }
            return Some(self.fails(Code::WorkerProtocol, &Fault::OtherTurn.to_string(), None));
        }
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
                self.expect(budget);
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

    fn gather(&mut self, event: NewEvent) {
        self.account.last_progress_at = Some(self.host.store().clock().now());
        self.pen.gather(event);
    }

    /// Sets the clock after an event: progress moves it, a question hands it to the user.
    fn expect(&mut self, announced: Duration) {
        let timeouts = self.job.agent.spec.timeouts;
        let now = Instant::now();
        // An announced budget never goes past the cap, which the clocks keep.
        let cap_left = self.job.clocks.cap_left(now);
        if self.transcript.is_asking() {
            self.budget = timeouts.answer.0.min(cap_left);
            self.job.clocks.expect_answer(now, self.budget);
        } else {
            self.budget = timeouts.progress.0.max(announced).min(cap_left);
            self.job.clocks.expect_progress(now, self.budget);
            self.had_waited = self.line.waited();
        }
        self.job.reach.set_due(self.job.clocks.next().0);
    }

    /// Whether the worker has more time, since for some of it its line waited for other turns.
    fn is_excused(&mut self) -> bool {
        let waited = self.line.may_have_waited();
        let excused = waited.saturating_sub(std::mem::replace(&mut self.had_waited, waited));
        self.job.clocks.excuse(excused);
        self.job.reach.set_due(self.job.clocks.next().0);
        !excused.is_zero()
    }

    async fn obey(&mut self, command: Command) -> Option<End> {
        let turn_id = self.job.claim.turn;
        let sent = match command.order {
            Order::Cancel { by } => {
                self.job.clocks.cancel(Instant::now());
                self.cancelled_by = Some(by);
                self.line.send(&ToWorker::Cancel { turn_id })
            }
            Order::Answer { ask_id, answer } => {
                let answer = Raw::of(answer).unwrap_or(Raw::null());
                if !self.transcript.take_ask(&ask_id) {
                    // Carried out before; only the mark was lost.
                    return self.mark_taken(command.id).await;
                }
                self.gather(NewEvent::new(Kind::Answer, &Answered { answer: &answer, ask_id: &ask_id }));
                self.expect(Duration::ZERO);
                self.line.send(&ToWorker::Answer { turn_id, ask_id, answer })
            }
        };
        if let Some(end) = self.mark_taken(command.id).await {
            return Some(end);
        }
        match sent {
            // One that is gone is about to be heard as such.
            Ok(()) | Err(SendError::Closed) => None,
            Err(_) if self.cancelled_by.is_some() => Some(self.lapsed(Lapse::Cancels)),
            Err(why @ SendError::TooLong) => {
                let message = "Your answer is too long for this agent's worker.";
                Some(self.fails(Code::InputTooLong, message, Some(why.to_string())))
            }
            Err(why) => {
                let message = "The worker handling your request does not read its input.";
                Some(self.fails(Code::WorkerUnresponsive, message, Some(why.to_string())))
            }
        }
    }

    /// Marks an order as carried out. One whose turn is held elsewhere by now is for that holder to carry out.
    async fn mark_taken(&mut self, command: i64) -> Option<End> {
        let (store, claim) = (self.host.store(), &self.job.claim);
        let marked = match &self.line {
            Line::Remote(_) => store.take_command_of(command, claim.turn, claim.epoch).await,
            _ => store.take_command(command).await.map(|()| true),
        };
        match marked {
            Ok(true) => None,
            Ok(false) => Some(End::Moved),
            Err(why) => {
                // It comes again, and does nothing then.
                tracing::debug!(%why, "an order was not marked as taken");
                None
            }
        }
    }

    fn lapsed(&mut self, lapse: Lapse) -> End {
        match lapse {
            Lapse::Cancels => {
                let by = self.cancelled_by.clone().unwrap_or_else(|| UNKNOWN_CANCELLER.as_str().to_owned());
                End::Word(cancelled(&by), Fate::End)
            }
            Lapse::Fails(code) => self.fails(code, code.message(), None),
        }
    }

    fn left_without_exit(&mut self) -> End {
        if self.cancelled_by.is_some() {
            return self.lapsed(Lapse::Cancels);
        }
        let message = "The worker handling your request closed its output in the middle of the turn.";
        self.fails(Code::WorkerExited, message, None)
    }

    fn halted(&mut self, halt: Halt) -> End {
        match halt {
            Halt::Lost => End::Lost,
            Halt::Moved => End::Moved,
            Halt::Interrupted => self.fails(Code::Interrupted, Code::Interrupted.message(), None),
        }
    }

    fn fails(&self, code: Code, message: &str, detail: Option<String>) -> End {
        End::Word(self.account.failure(code, message, detail), Fate::End)
    }
}
