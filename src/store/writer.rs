//! The group commit: one task a replica writes the events and last words of all its turns.
//!
//! Flushes at once when idle and gathers while a flush is under way; no timer, no commit a token.
//! Its queue is bounded, so a slow database holds back the workers' pipes, not this process' memory.
//!
//! While Postgres is away a batch is repeated, identically, until it answers. One poisonous event
//! does not fail its neighbours: a batch that Postgres refuses is written turn by turn.

use std::{collections::HashMap, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Store, StoreError,
    events::{Append, Finish, Finished, Landed, Lease},
};
use crate::{config::Lever, event::NewEvent, telemetry::metrics};

/// Writes that wait for a flush.
const QUEUE_MAX: usize = 1024;
/// Writes in one flush.
const BATCH_MAX: usize = 512;

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Committed; the newest `seq` of the turn.
    Done(i32),
    /// The turn is not the caller's any more (I5). Nothing was written.
    LeaseLost,
    /// Postgres refuses this very write.
    Refused(String),
}

/// The way to the writer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<(Write, oneshot::Sender<Written>)>,
}

#[derive(Debug)]
enum Write {
    Append(Append),
    Finish(Finish),
}

/// The receiving end, to be run by [`write_on`].
#[derive(Debug)]
pub struct Inbox(mpsc::Receiver<(Write, oneshot::Sender<Written>)>);

impl Writer {
    /// A writer and the inbox that its task works off.
    pub fn new() -> (Writer, Inbox) {
        let (queue, inbox) = mpsc::channel(QUEUE_MAX);
        (Writer { queue }, Inbox(inbox))
    }

    /// Appends events. At most one write of a turn may be under way. A writer that has ended
    /// answers [`Written::LeaseLost`]: this process has nothing more to say.
    pub async fn append(&self, append: Append) -> Written {
        self.write(Write::Append(append)).await
    }

    /// Writes a turn's last word.
    pub async fn finish(&self, finish: Finish) -> Written {
        self.write(Write::Finish(finish)).await
    }

    /// Tells operators how many writes wait, and how many may.
    pub fn note_bounds(&self) {
        let waiting = QUEUE_MAX.saturating_sub(self.queue.capacity());
        metrics::bound("writer", waiting as u64, QUEUE_MAX as u64);
    }

    async fn write(&self, write: Write) -> Written {
        let (reply, written) = oneshot::channel();
        if self.queue.send((write, reply)).await.is_err() {
            return Written::LeaseLost;
        }
        written.await.unwrap_or(Written::LeaseLost)
    }
}

/// Works off the inbox until cancelled.
pub async fn write_on(store: Store, mut inbox: Inbox, until: CancellationToken) {
    let batch_max = if store.uses(Lever::GroupCommit) { BATCH_MAX } else { 1 };
    let mut batch = Vec::with_capacity(batch_max);
    loop {
        let taken = tokio::select! {
            taken = inbox.0.recv_many(&mut batch, batch_max) => taken,
            () = until.cancelled() => return,
        };
        if taken == 0 {
            return;
        }
        metrics::append_batch(taken);
        let (mut appends, mut finishes, mut replies) = (Vec::new(), Vec::new(), HashMap::new());
        for (write, reply) in batch.drain(..) {
            let lease = match write {
                Write::Append(append) => {
                    let lease = (append.turn, append.epoch);
                    appends.push(append);
                    lease
                }
                Write::Finish(finish) => {
                    let lease = (finish.turn, finish.epoch);
                    finishes.push(finish);
                    lease
                }
            };
            // One write of a lease at a time: the run loop waits for its answer.
            replies.insert(lease, reply);
        }
        let flush = async {
            append_all(&store, appends, &mut replies).await;
            finish_all(&store, finishes, &mut replies).await;
        };
        if until.run_until_cancelled(flush).await.is_none() {
            return;
        }
    }
}

type Replies = HashMap<Lease, oneshot::Sender<Written>>;

fn answer(replies: &mut Replies, lease: Lease, written: Written) {
    if let Some(reply) = replies.remove(&lease) {
        // A turn whose run is gone does not wait for the answer.
        let _ = reply.send(written);
    }
}

async fn append_all(store: &Store, appends: Vec<Append>, replies: &mut Replies) {
    if appends.is_empty() {
        return;
    }
    let began = Instant::now();
    let landed = match repeat(|| store.append(&appends)).await {
        Ok(landed) => landed,
        Err(why) if appends.len() == 1 => {
            tracing::error!(%why, turn = %appends[0].turn, "Postgres refuses an append");
            return answer(replies, (appends[0].turn, appends[0].epoch), Written::Refused(why.to_string()));
        }
        Err(_) => {
            for append in appends {
                Box::pin(append_all(store, vec![append], replies)).await;
            }
            return;
        }
    };
    let landed: HashMap<Lease, Landed> = landed.into_iter().map(|write| (write.lease, write)).collect();
    for append in appends {
        let lease = (append.turn, append.epoch);
        let Some(write) = landed.get(&lease) else {
            answer(replies, lease, Written::LeaseLost);
            continue;
        };
        metrics::events_appended(append.events.len());
        let seq = append.base + i32::try_from(append.events.len()).unwrap_or(0);
        store.witness().saw(append.turn, append.epoch, seq);
        show(store, began, write, (append.base, seq), append.events.into_iter());
        answer(replies, lease, Written::Done(seq));
    }
    store.wake().events_elsewhere(landed.into_keys().map(|(turn, _)| turn));
}

/// Shows local readers what a write brought, from `base` to `newest`, so that they need not read it.
fn show(
    store: &Store,
    began: Instant,
    write: &Landed,
    (base, newest): (i32, i32),
    events: impl Iterator<Item = NewEvent>,
) {
    let page = || write.page(base, newest, events).filter(|_| store.uses(Lever::ShownFromMemory));
    store.wake().events_here(write.lease.0, began, base, page);
}

async fn finish_all(store: &Store, finishes: Vec<Finish>, replies: &mut Replies) {
    if finishes.is_empty() {
        return;
    }
    let began = Instant::now();
    let Finished { words, landed, next } = match repeat(|| store.finish(&finishes)).await {
        Ok(written) if written.words.len() == finishes.len() => written,
        // What is missing is lost, unless an earlier try of the same statement was committed. That one's
        // answer was lost too, and with it which others can be claimed.
        Ok(mut written) => match repeat(|| store.finished(&finishes)).await {
            Ok(earlier) => {
                written.words.extend(earlier);
                store.wake().queue_moved();
                written
            }
            Err(_) => written,
        },
        Err(why) if finishes.len() == 1 => {
            tracing::error!(%why, turn = %finishes[0].turn, "Postgres refuses a last word");
            return answer(replies, (finishes[0].turn, finishes[0].epoch), Written::Refused(why.to_string()));
        }
        Err(_) => {
            for finish in finishes {
                Box::pin(finish_all(store, vec![finish], replies)).await;
            }
            return;
        }
    };
    // Before the answers: who hears that a turn has ended finds the next one named.
    if let Some(next) = next {
        store.wake().queue_grew(next);
    }
    let seqs: HashMap<Lease, i32> = words.into_iter().collect();
    let landed: HashMap<Lease, Landed> = landed.into_iter().map(|write| (write.lease, write)).collect();
    for finish in finishes {
        let lease = (finish.turn, finish.epoch);
        let Some(&seq) = seqs.get(&lease) else {
            answer(replies, lease, Written::LeaseLost);
            continue;
        };
        metrics::events_appended(finish.said.len());
        store.witness().saw_end(finish.turn, finish.epoch, Some(seq), finish.word.kind);
        let word = NewEvent { kind: finish.word.kind, data: finish.word.data };
        match landed.get(&lease) {
            Some(write) => {
                show(store, began, write, (finish.base, seq), finish.said.into_iter().chain([word]));
            }
            None => store.wake().events_committed([finish.turn]),
        }
        answer(replies, lease, Written::Done(seq));
    }
    store.wake().events_elsewhere(landed.into_keys().map(|(turn, _)| turn));
}

/// Repeats a statement while Postgres is away.
async fn repeat<T, F>(mut statement: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match statement().await {
            Err(why) if why.is_away() => {
                tracing::warn!(%why, "writing again soon");
                tokio::time::sleep(Duration::from_millis(rand::random_range(50..300))).await;
            }
            other => return other,
        }
    }
}
