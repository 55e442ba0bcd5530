//! The read batch: readers that ask at the same moment are answered by one statement.
//!
//! Owns the readers' queue. A query starts at once when idle; readers gather while one runs. No reader waits for a
//! timer, and a thousand readers woken together cost a few statements. A batched read is short: a reader with more to
//! catch up on reads by itself, a page at a time.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::store::{
    error::StoreError,
    records::page::{LogPage, Room, Want},
};

/// Readers answered by one statement.
const GATHERED_MAX: usize = 128;
/// The most that one reader gets from a batched read.
pub(in crate::store) const ROOM: Room = Room { rows: 64, bytes: 64 * 1024 };
/// Reads that may be queued; further readers query by themselves.
const QUEUE_MAX: usize = 4096;

/// The reply channel of one reader.
pub(in crate::store) type Answer = oneshot::Sender<Result<LogPage, StoreError>>;

/// The queue of readers.
#[derive(Debug)]
pub(in crate::store) struct ReadBatch {
    queue: mpsc::Sender<(Want, Answer)>,
    inbox: Mutex<mpsc::Receiver<(Want, Answer)>>,
    /// Whether the reading task has started.
    is_served: AtomicBool,
}

impl Default for ReadBatch {
    fn default() -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE_MAX);
        ReadBatch { queue, inbox: Mutex::new(inbox), is_served: AtomicBool::new(false) }
    }
}

impl ReadBatch {
    /// Queues a read and waits for its page; `None` if no task runs, the queue is full, or `limit` is below a batch's.
    pub(in crate::store) async fn ask(&self, want: Want, limit: i64) -> Option<Result<LogPage, StoreError>> {
        if !self.is_served.load(Ordering::Acquire) || limit < ROOM.rows {
            return None;
        }
        let (answer, page) = oneshot::channel();
        self.queue.try_send((want, answer)).ok()?;
        page.await.ok()
    }

    /// Waits for queued reads, at least one, and drops those whose reader has gone.
    pub(in crate::store) async fn next(&self) -> (Vec<Want>, Vec<Answer>) {
        self.is_served.store(true, Ordering::Release);
        let mut asked = Vec::with_capacity(GATHERED_MAX);
        self.inbox.lock().await.recv_many(&mut asked, GATHERED_MAX).await;
        asked.into_iter().filter(|(_, answer)| !answer.is_closed()).unzip()
    }

    /// Stops batching: queued readers get no answer and query by themselves.
    pub(in crate::store) async fn close(&self) {
        let mut inbox = self.inbox.lock().await;
        inbox.close();
        while inbox.try_recv().is_ok() {}
    }
}
