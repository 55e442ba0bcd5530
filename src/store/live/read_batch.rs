//! The gathered read: what many readers ask for in the same moment is one statement.
//!
//! Owns the readers' inbox. Asks at once when idle and gathers while a statement is under way, so no
//! reader waits for a timer, and a thousand that are woken together cost a few statements. What is
//! read in company is short: whoever has more to catch up on reads by itself, a page at a time.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::store::{
    error::StoreError,
    records::page::{EventPage, Room, Want},
};

/// Readers answered by one statement.
const GATHERED_MAX: usize = 128;
/// What one of them gets at most.
pub(in crate::store) const ROOM: Room = Room { rows: 64, bytes: 64 * 1024 };
/// Questions that wait; more of them read by themselves.
const QUEUE_MAX: usize = 4096;

/// The way back to a reader.
pub(in crate::store) type Answer = oneshot::Sender<Result<EventPage, StoreError>>;

/// Where readers ask.
#[derive(Debug)]
pub(in crate::store) struct ReadBatch {
    queue: mpsc::Sender<(Want, Answer)>,
    inbox: Mutex<mpsc::Receiver<(Want, Answer)>>,
    /// Whether somebody has begun to work the inbox off.
    is_served: AtomicBool,
}

impl Default for ReadBatch {
    fn default() -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE_MAX);
        ReadBatch { queue, inbox: Mutex::new(inbox), is_served: AtomicBool::new(false) }
    }
}

impl ReadBatch {
    /// Asks; `None` where nobody answers, or where what is asked for has no room in company.
    pub(in crate::store) async fn ask(
        &self,
        want: Want,
        limit: i64,
    ) -> Option<Result<EventPage, StoreError>> {
        if !self.is_served.load(Ordering::Acquire) || limit < ROOM.rows {
            return None;
        }
        let (answer, page) = oneshot::channel();
        self.queue.try_send((want, answer)).ok()?;
        page.await.ok()
    }

    /// The questions that wait, some at least, of those who still want an answer.
    pub(in crate::store) async fn next(&self) -> (Vec<Want>, Vec<Answer>) {
        self.is_served.store(true, Ordering::Release);
        let mut asked = Vec::with_capacity(GATHERED_MAX);
        self.inbox.lock().await.recv_many(&mut asked, GATHERED_MAX).await;
        asked.into_iter().filter(|(_, answer)| !answer.is_closed()).unzip()
    }

    /// From here on everybody reads for himself, and who still waits is told so.
    pub(in crate::store) async fn close(&self) {
        let mut inbox = self.inbox.lock().await;
        inbox.close();
        while inbox.try_recv().is_ok() {}
    }
}
