//! A line between a remote worker and the turn that it runs, which is held here.
//!
//! Owns the numbers: which message is expected next, and up to which they count. Refuses a gap. Keeps a door
//! waiting until what it brought is committed: an answer is an acknowledgement.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::liveness::Liveness;
use crate::{
    id::{TurnId, WorkerId},
    store::{remote_turns::Proof, remote_workers::ExitReport},
};

/// Batches that may wait for a turn's run.
const BATCHES_MAX: usize = 2;

/// Messages in order, as they came.
pub type Batch = Vec<Bytes>;

/// One turn's line.
#[derive(Debug)]
pub struct Line {
    turn: TurnId,
    epoch: i32,
    worker: WorkerId,
    token_hash: [u8; 32],
    liveness: Arc<Liveness>,
    /// The number of the last message that was taken in; held while a batch is handed over.
    received: tokio::sync::Mutex<u64>,
    inlet: mpsc::Sender<Batch>,
    progress: watch::Sender<Progress>,
    orders: Mutex<Vec<OrderToTell>>,
    /// What the worker last said that it was told.
    told: Mutex<Vec<String>>,
    exit_report: watch::Sender<Option<ExitReport>>,
    waits: Mutex<HostWaits>,
}

/// For how long the worker's pipe has waited, as its beats tell.
#[derive(Debug)]
struct HostWaits {
    opened: Instant,
    told: Option<ToldWaits>,
}

#[derive(Debug, Clone, Copy)]
struct ToldWaits {
    /// What of the total was before this line.
    before: Duration,
    total: Duration,
    at: Instant,
}

impl HostWaits {
    fn note(&mut self, total: Duration, now: Instant) {
        // Of what was before the line was opened nothing is this turn's.
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

/// How far a turn has come.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Whether its worker has spoken up for it.
    is_taken: bool,
    /// Whether `running` is committed.
    is_running: bool,
    /// The number of the last message that is committed.
    acknowledged: u64,
    end: Option<LineEnd>,
}

/// How a line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEnd {
    /// The turn has had its last word.
    Ended,
    /// It is not held here any more.
    LetGo,
}

/// Something for the worker to be told, until it says that it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderToTell {
    /// `cancel`, or the question's id.
    pub key: String,
    /// The native protocol's message, as JSON text.
    pub message: String,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It is committed, up to this message.
    New(u64),
    /// All of it was known before.
    Known(u64),
    /// Messages before it are missing; this one is expected.
    Gap(u64),
    /// The turn has had its last word.
    Ended,
    /// It is not held here any more.
    LetGo,
}

impl Line {
    /// A line on which `received` messages count already, and its run's end of it.
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

    /// Which turn.
    pub fn turn(&self) -> TurnId {
        self.turn
    }

    /// Which attempt.
    pub fn epoch(&self) -> i32 {
        self.epoch
    }

    /// Whose it is.
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// SHA-256 of the turn's token.
    pub fn token_hash(&self) -> &[u8; 32] {
        &self.token_hash
    }

    /// Whether somebody with this proof may speak on it. The token is for whoever asks to compare.
    pub fn is_for(&self, proof: Proof) -> bool {
        match proof {
            Proof::Worker(worker) => worker == self.worker,
            Proof::Token(_) => true,
        }
    }

    /// Whether its worker is heard.
    pub fn liveness(&self) -> &Arc<Liveness> {
        &self.liveness
    }

    /// Hands over a batch whose first message has this number, and waits until it is committed. An empty one
    /// waits until the turn is `running`. Given up before that, it may or may not have been taken.
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

    /// Until the worker has spoken up for the turn. Cancel-safe.
    pub async fn taken(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as this line does.
        let _ = progress.wait_for(|progress| progress.is_taken).await;
    }

    /// `running` is committed: the worker may begin.
    pub fn begin(&self) {
        self.progress.send_modify(|progress| progress.is_running = true);
    }

    /// So many messages are committed, in all.
    pub fn acknowledge(&self, messages: u64) {
        self.progress.send_if_modified(|progress| {
            let is_more = messages > progress.acknowledged;
            progress.acknowledged = progress.acknowledged.max(messages);
            is_more
        });
    }

    /// How the line ended, where it did.
    pub fn end(&self) -> Option<LineEnd> {
        self.progress.borrow().end
    }

    pub(super) fn close(&self, end: LineEnd) {
        self.progress.send_modify(|progress| progress.end = progress.end.or(Some(end)));
    }

    /// Somebody knows why the worker ended.
    pub fn report_exit(&self, why: ExitReport) {
        self.exit_report.send_replace(Some(why));
    }

    /// Until somebody knows why the worker ended. Cancel-safe.
    pub async fn exit_report(&self) -> ExitReport {
        let mut exit_report = self.exit_report.subscribe();
        match exit_report.wait_for(Option::is_some).await.map(|why| why.clone()) {
            Ok(Some(why)) => why,
            // The sender lives as long as this line does.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Adds something for the worker to be told; the same thing once.
    pub fn add_order(&self, order: OrderToTell) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if orders.iter().all(|known| known.key != order.key) {
            orders.push(order);
        }
    }

    /// The worker says for how long, in all, it could hear nothing of any turn while one had too much to say.
    pub fn note_waited(&self, total: Duration) {
        self.waits().note(total, Instant::now());
    }

    /// For how long the worker could not be heard on this line: at least, as it has said.
    pub fn waited(&self) -> Duration {
        self.waits().told()
    }

    /// The same, at most: since its last word it may have waited all the time.
    pub fn may_have_waited(&self) -> Duration {
        self.waits().at_most(Instant::now())
    }

    fn waits(&self) -> MutexGuard<'_, HostWaits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker says what it was told.
    pub fn note_told(&self, told: Vec<String>) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }

    /// What it has not said that it was told.
    pub fn untold(&self) -> Vec<OrderToTell> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
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
