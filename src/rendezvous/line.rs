//! The line between a remote worker and a turn that this replica holds.
//!
//! Owns the message numbers: the next number expected from the worker, and the last number committed. Refuses a gap.
//! A request waits on the line until its messages are committed, so the HTTP answer is an acknowledgement.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::liveness::Liveness;
use crate::{
    id::{TurnId, WorkerId},
    store::{remote_turns::Proof, remote_workers::ExitReport},
};

/// Batches that may be queued for a turn's run.
const BATCHES_MAX: usize = 2;

/// Messages in the order of their numbers.
pub type Batch = Vec<Bytes>;

/// The line of one turn, for one attempt.
#[derive(Debug)]
pub struct Line {
    /// The turn of the line.
    pub turn: TurnId,
    /// The epoch of the attempt.
    pub epoch: i32,
    /// The worker that runs the turn.
    pub worker: WorkerId,
    /// SHA-256 of the turn's token.
    pub token_hash: [u8; 32],
    /// Liveness of the worker for this turn.
    pub liveness: Arc<Liveness>,
    /// The number of the last message handed to the run. Locked while a batch is handed over, so batches stay in order.
    received: tokio::sync::Mutex<u64>,
    inlet: mpsc::Sender<Batch>,
    progress: watch::Sender<Progress>,
    orders: Mutex<Vec<OrderToTell>>,
    /// Keys of the orders that the worker named as received in its newest beat.
    told: Mutex<Vec<String>>,
    exit_report: watch::Sender<Option<ExitReport>>,
    waits: Mutex<HostWaits>,
}

/// How long the worker's pipe was blocked by other turns, as the worker's beats report.
#[derive(Debug)]
struct HostWaits {
    opened: Instant,
    told: Option<ToldWaits>,
}

#[derive(Debug, Clone, Copy)]
struct ToldWaits {
    /// The part of `total` from before this line was opened.
    before: Duration,
    total: Duration,
    at: Instant,
}

impl HostWaits {
    fn note(&mut self, total: Duration, now: Instant) {
        // The worker reports a total for its whole life; only the time since the line was opened belongs to this turn.
        let since_opened = now.saturating_duration_since(self.opened);
        let before = self.told.map_or(total.saturating_sub(since_opened), |told| told.before);
        self.told = Some(ToldWaits { before, total, at: now });
    }

    fn told(&self) -> Duration {
        self.told.map_or(Duration::ZERO, |told| told.total.saturating_sub(told.before))
    }

    fn at_most(&self, now: Instant) -> Duration {
        self.told() + self.told.map_or(Duration::ZERO, |told| now.saturating_duration_since(told.at))
    }
}

/// How far a turn's hand-over and its log have come.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Whether the worker has sent a request for the turn, which accepts the offer.
    is_taken: bool,
    /// Whether `running` is committed.
    is_running: bool,
    /// The number of the last message that is committed.
    acknowledged: u64,
    end: Option<LineEnd>,
}

/// How a line was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEnd {
    /// The last word is committed.
    Ended,
    /// This replica no longer holds the turn.
    LetGo,
}

/// A message for the worker. The line repeats the message until the worker confirms its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderToTell {
    /// `cancel`, or the question's id.
    pub key: String,
    /// The native protocol's message, as JSON text.
    pub message: String,
}

/// The result of delivering a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Committed, up to this message number.
    New(u64),
    /// All messages of the batch had arrived before and are committed; the newest committed number.
    Known(u64),
    /// Messages before the batch are missing; the number that is expected next.
    Gap(u64),
    /// The last word is committed: the rest of the batch is dropped.
    Ended,
    /// This replica no longer holds the turn; the batch may or may not be committed.
    LetGo,
}

impl Line {
    /// A line whose first `received` messages are already committed, and the receiver for the turn's run.
    pub fn new(
        (turn, epoch): (TurnId, i32),
        worker: WorkerId,
        token_hash: [u8; 32],
        received: u64,
    ) -> (Line, mpsc::Receiver<Batch>) {
        let (inlet, batches) = mpsc::channel(BATCHES_MAX);
        let progress = Progress { acknowledged: received, ..Progress::default() };
        let line = Line {
            turn,
            epoch,
            worker,
            token_hash,
            liveness: Arc::default(),
            received: tokio::sync::Mutex::new(received),
            inlet,
            progress: watch::Sender::new(progress),
            orders: Mutex::default(),
            told: Mutex::default(),
            exit_report: watch::Sender::new(None),
            waits: Mutex::new(HostWaits { opened: Instant::now(), told: None }),
        };
        (line, batches)
    }

    /// Whether a caller with this proof may use the line. For a token the caller compares [`Line::token_hash`] itself.
    pub fn is_for(&self, proof: Proof) -> bool {
        match proof {
            Proof::Worker(worker) => worker == self.worker,
            Proof::Token(_) => true,
        }
    }

    /// Delivers a batch whose first message has the number `first`, and waits until the batch is committed. An empty
    /// batch waits until the turn is `running`. If the future is dropped early the batch may or may not have been
    /// taken.
    pub async fn deliver(&self, first: u64, mut batch: Batch) -> Delivery {
        let last = first.saturating_sub(1).saturating_add(batch.len() as u64);
        self.progress.send_modify(|progress| progress.is_taken = true);
        let is_known = {
            let mut received = self.received.lock().await;
            if first > *received + 1 {
                return Delivery::Gap(*received + 1);
            }
            let known = usize::try_from(*received + 1 - first).unwrap_or(usize::MAX);
            batch.drain(..known.min(batch.len()));
            let new = batch.len() as u64;
            if new > 0 && self.inlet.send(batch).await.is_ok() {
                *received += new;
            }
            new == 0 && last >= first
        };
        let mut progress = self.progress.subscribe();
        let is_settled = |progress: &Progress| {
            progress.end.is_some() || (progress.is_running && progress.acknowledged >= last)
        };
        let settled = progress.wait_for(is_settled).await.map(|progress| *progress).unwrap_or_default();
        match settled {
            Progress { is_running: true, acknowledged, .. } if acknowledged >= last => match is_known {
                true => Delivery::Known(acknowledged),
                false => Delivery::New(acknowledged),
            },
            Progress { end: Some(LineEnd::Ended), .. } => Delivery::Ended,
            _ => Delivery::LetGo,
        }
    }

    /// Waits until the worker has sent a request for the turn. Cancel-safe.
    pub async fn taken(&self) {
        let mut progress = self.progress.subscribe();
        // Never fails: the line owns the sender.
        let _ = progress.wait_for(|progress| progress.is_taken).await;
    }

    /// Notes that `running` is committed: the worker may begin.
    pub fn begin(&self) {
        self.progress.send_modify(|progress| progress.is_running = true);
    }

    /// Notes that the first `messages` messages are committed.
    pub fn acknowledge(&self, messages: u64) {
        self.progress.send_if_modified(|progress| {
            let is_more = messages > progress.acknowledged;
            progress.acknowledged = progress.acknowledged.max(messages);
            is_more
        });
    }

    /// How the line was closed; `None` while the line is open.
    pub fn end(&self) -> Option<LineEnd> {
        self.progress.borrow().end
    }

    pub(super) fn close(&self, end: LineEnd) {
        self.progress.send_modify(|progress| progress.end = progress.end.or(Some(end)));
    }

    /// Reports why the worker exited.
    pub fn report_exit(&self, why: ExitReport) {
        self.exit_report.send_replace(Some(why));
    }

    /// Waits until the reason for the worker's exit is known. Cancel-safe.
    pub async fn exit_report(&self) -> ExitReport {
        let mut exit_report = self.exit_report.subscribe();
        match exit_report.wait_for(Option::is_some).await.map(|why| why.clone()) {
            Ok(Some(why)) => why,
            // Never happens: the line owns the sender.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Adds an order for the worker. An order whose key is already known is ignored.
    pub fn add_order(&self, order: OrderToTell) {
        let mut orders = self.orders.lock();
        if orders.iter().all(|known| known.key != order.key) {
            orders.push(order);
        }
    }

    /// Takes the worker's report of how long, in total over its life, one turn's output has blocked its pipe for all
    /// turns.
    pub fn note_waited(&self, total: Duration) {
        self.waits.lock().note(total, Instant::now());
    }

    /// The least time that the worker's pipe was blocked since the line was opened, from the worker's reports.
    pub fn waited(&self) -> Duration {
        self.waits.lock().told()
    }

    /// The most time that the pipe can have been blocked: [`Line::waited`] plus all the time since the last report.
    pub fn may_have_waited(&self) -> Duration {
        self.waits.lock().at_most(Instant::now())
    }

    /// Replaces the keys of the orders that the worker has received.
    pub fn note_told(&self, told: Vec<String>) {
        *self.told.lock() = told;
    }

    /// Orders that the worker has not confirmed yet.
    pub fn untold(&self) -> Vec<OrderToTell> {
        let told = self.told.lock();
        let orders = self.orders.lock();
        orders.iter().filter(|order| !told.contains(&order.key)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn line(received: u64) -> (Line, mpsc::Receiver<Batch>) {
        let (line, batches) = Line::new((TurnId(Uuid::nil()), 1), WorkerId(Uuid::nil()), [0; 32], received);
        line.begin();
        (line, batches)
    }

    fn batch(messages: u64) -> Batch {
        (0..messages).map(|n| Bytes::from(n.to_string())).collect()
    }

    #[tokio::test]
    async fn a_batch_counts_once_however_often_it_comes() {
        let (line, mut batches) = line(2);
        line.acknowledge(5);
        assert_eq!(line.deliver(3, batch(3)).await, Delivery::New(5));
        assert_eq!(batches.recv().await.unwrap().len(), 3);
        assert_eq!(line.deliver(3, batch(3)).await, Delivery::Known(5));
        assert_eq!(line.deliver(1, batch(1)).await, Delivery::Known(5));
        assert!(batches.try_recv().is_err(), "nothing came twice");
        line.acknowledge(6);
        assert_eq!(line.deliver(4, batch(3)).await, Delivery::New(6));
        assert_eq!(batches.recv().await.unwrap(), [Bytes::from("2")], "only what was new");
    }

    #[test]
    fn a_wait_counts_from_where_the_line_was_opened_and_up_to_the_last_word_at_least() {
        let (second, opened) = (Duration::from_secs(1), Instant::now());
        let mut waits = HostWaits { opened, told: None };
        assert_eq!(
            (waits.told(), waits.at_most(opened + second)),
            (Duration::ZERO, Duration::ZERO),
            "it says nothing"
        );
        waits.note(100 * second, opened + second);
        assert_eq!(waits.told(), second, "it was not there before");
        waits.note(103 * second, opened + 4 * second);
        assert_eq!((waits.told(), waits.at_most(opened + 5 * second)), (4 * second, 5 * second));
    }

    #[tokio::test]
    async fn a_gap_is_named_and_an_end_told() {
        let (line, _batches) = line(2);
        assert_eq!(line.deliver(4, batch(1)).await, Delivery::Gap(3));
        assert_eq!(line.deliver(9, Vec::new()).await, Delivery::Gap(3));
        line.close(LineEnd::Ended);
        line.close(LineEnd::LetGo);
        assert_eq!(line.deliver(3, batch(1)).await, Delivery::Ended);
        assert_eq!(line.deliver(1, batch(2)).await, Delivery::Known(2), "what counted counts");
    }
}
