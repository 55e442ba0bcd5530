//! The gathered read: what many readers ask for in the same moment is one statement.
//!
//! Owns the readers' inbox. Asks at once when idle and gathers while a statement is under way, so no
//! reader waits for a timer, and a thousand that are woken together cost a few statements. What is
//! read in company is short: whoever has more to catch up on reads by itself, a page at a time.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Lever,
    id::TurnId,
    store::{
        Store, StoreError,
        tables::pages::{Page, Room, Want},
    },
};

/// Readers answered by one statement.
const GATHERED_MAX: usize = 128;
/// What one of them gets at most.
const ROOM: Room = Room { rows: 64, bytes: 64 * 1024 };
/// Questions that wait; more of them read by themselves.
const QUEUE_MAX: usize = 4096;

type Answer = oneshot::Sender<Result<Page, StoreError>>;

/// Where readers ask.
#[derive(Debug)]
pub(in crate::store) struct Reads {
    queue: mpsc::Sender<(Want, Answer)>,
    inbox: Mutex<mpsc::Receiver<(Want, Answer)>>,
    /// Whether somebody has begun to work the inbox off.
    is_served: AtomicBool,
}

impl Default for Reads {
    fn default() -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE_MAX);
        Reads { queue, inbox: Mutex::new(inbox), is_served: AtomicBool::new(false) }
    }
}

impl Store {
    /// What stands at the cursor and the next events after it, read together with what others want.
    /// At most `limit` of them.
    pub(in crate::store) async fn read_gathered(
        &self,
        turn: TurnId,
        cursor: i32,
        limit: i64,
    ) -> Result<Page, StoreError> {
        let is_served = self.reads.is_served.load(Ordering::Acquire) && self.uses(Lever::ReadTogether);
        if is_served && limit >= ROOM.rows {
            let (answer, page) = oneshot::channel();
            if self.reads.queue.try_send((Want { turn, cursor }, answer)).is_ok()
                && let Ok(page) = page.await
                && page.as_ref().map_or(true, |page| page.is_whole)
            {
                return page;
            }
        }
        self.read_on(turn, cursor, limit).await
    }
}

/// Answers readers until cancelled. Two at once: one statement is prepared while the other runs.
pub async fn read_on(store: Store, until: CancellationToken) {
    store.reads.is_served.store(true, Ordering::Release);
    let serving = async {
        loop {
            let mut asked = Vec::with_capacity(GATHERED_MAX);
            store.reads.inbox.lock().await.recv_many(&mut asked, GATHERED_MAX).await;
            // Who has gone meanwhile needs no answer.
            let asked = asked.into_iter().filter(|(_, answer)| !answer.is_closed());
            let (wants, answers): (Vec<Want>, Vec<Answer>) = asked.unzip();
            if !wants.is_empty() {
                answer_all(&store, &wants, answers).await;
            }
        }
    };
    until.run_until_cancelled(serving).await;
    // From here on everybody reads for himself, and who still waits is told so.
    let mut inbox = store.reads.inbox.lock().await;
    inbox.close();
    while inbox.try_recv().is_ok() {}
}

async fn answer_all(store: &Store, wants: &[Want], answers: Vec<Answer>) {
    match store.read_many(wants, ROOM).await {
        Ok(pages) => {
            for (answer, page) in answers.into_iter().zip(pages) {
                let _ = answer.send(page);
            }
        }
        // Each reader tells its own client, or waits until Postgres is back.
        Err(why) => {
            for answer in answers {
                let _ = answer.send(Err(why.clone()));
            }
        }
    }
}
