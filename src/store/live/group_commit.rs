//! The group commit: one task per replica writes the events and last words of all its turns.
//!
//! Flushes at once when idle; writes gather while a flush is in progress. No timer, and no commit per token. The queue
//! is bounded, so a slow database holds back the workers' pipes instead of filling this process' memory.
//!
//! While Postgres is away a batch is retried, unchanged. If Postgres rejects a batch, each turn is written by itself, so
//! one bad event does not fail other turns. Writes of a turn that another session has locked are retried separately.

mod aside;

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::aside::Aside;
use crate::{
    event::NewEvent,
    id::TurnId,
    store::{
        error::StoreError,
        handle::Store,
        tables::events::{Append, Finish, Finished, Landed, Lease},
    },
    telemetry::metrics,
};

/// Writes that may be queued for a flush.
const QUEUE_MAX: usize = 1024;
/// Writes in one flush.
const BATCH_MAX: usize = 512;
/// Concurrent writes of locked turns. Each holds a connection for as long as a statement waits for a lock.
const HELD_AT_ONCE: usize = 2;

/// The result of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Committed; the newest `seq` of the turn.
    Done(i32),
    /// The caller no longer holds the turn (I5). Nothing was written.
    LeaseLost,
    /// Postgres rejects this particular write.
    Refused(String),
}

/// The sending side of the group commit. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Asked>,
}

#[derive(Debug)]
enum Write {
    Append(Append),
    Finish(Finish),
}

type Asked = (Write, oneshot::Sender<Written>);

/// A write under one claim.
trait Leased: Into<Write> + Sync {
    /// The result of a whole batch.
    type Done;

    fn lease(&self) -> Lease;

    fn write(store: &Store, writes: &[Self]) -> impl Future<Output = Result<Self::Done, StoreError>> + Send;
}

impl From<Append> for Write {
    fn from(append: Append) -> Write {
        Write::Append(append)
    }
}

impl Leased for Append {
    type Done = Vec<Landed>;

    fn lease(&self) -> Lease {
        (self.turn, self.epoch)
    }

    async fn write(store: &Store, writes: &[Self]) -> Result<Vec<Landed>, StoreError> {
        store.append(writes).await
    }
}

impl From<Finish> for Write {
    fn from(finish: Finish) -> Write {
        Write::Finish(finish)
    }
}

impl Leased for Finish {
    type Done = Finished;

    fn lease(&self) -> Lease {
        (self.turn, self.epoch)
    }

    async fn write(store: &Store, writes: &[Self]) -> Result<Finished, StoreError> {
        store.finish(writes).await
    }
}

/// The receiving side, for [`write_on`].
#[derive(Debug)]
pub struct Inbox(mpsc::Receiver<Asked>);

impl Writer {
    /// A writer and the inbox for its task.
    pub fn new() -> (Writer, Inbox) {
        let (queue, inbox) = mpsc::channel(QUEUE_MAX);
        (Writer { queue }, Inbox(inbox))
    }

    /// Appends events. A turn may have one write in progress at a time. Answers [`Written::LeaseLost`] once the task
    /// has ended: this process then writes nothing more.
    pub async fn append(&self, append: Append) -> Written {
        self.write(Write::Append(append)).await
    }

    /// Writes a turn's last word.
    pub async fn finish(&self, finish: Finish) -> Written {
        self.write(Write::Finish(finish)).await
    }

    /// Records the queue's length and limit as a gauge.
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

/// Processes the inbox until cancelled.
pub async fn write_on(store: Store, inbox: Inbox, until: CancellationToken) {
    let (held, patient) = mpsc::channel(QUEUE_MAX);
    let aside = Aside::new(held);
    let work = async { tokio::join!(flush_on(&store, inbox, aside), write_held(&store, patient)) };
    until.run_until_cancelled(work).await;
}

async fn flush_on(store: &Store, mut inbox: Inbox, aside: Aside<Asked>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while inbox.0.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let events = batch.iter().map(|(write, _)| match write {
            Write::Append(append) => append.events.len(),
            Write::Finish(finish) => finish.said.len() + 1,
        });
        metrics::append_batch(events.sum());
        flush(store, std::mem::take(&mut batch), Locked::Leaves(&aside)).await;
    }
}

/// Writes the turns that another session has locked, each by itself, for as long as that takes.
async fn write_held(store: &Store, mut patient: mpsc::Receiver<Asked>) {
    let places = Semaphore::new(HELD_AT_ONCE);
    let mut writing = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(asked) = patient.recv() => writing.push(flush(store, vec![asked], Locked::Waits(&places))),
            Some(()) = writing.next() => {}
            else => return,
        }
    }
}

/// What happens to a write whose turn another session has locked.
#[derive(Clone, Copy)]
enum Locked<'a> {
    /// The write leaves its batch and goes to the task for locked turns.
    Leaves(&'a Aside<Asked>),
    /// The write is retried, with a permit of this semaphore.
    Waits(&'a Semaphore),
}

async fn flush(store: &Store, batch: Vec<Asked>, locked: Locked<'_>) {
    let (mut appends, mut finishes, mut replies) = (Vec::new(), Vec::new(), HashMap::new());
    for (write, reply) in batch {
        // At most one write per lease: the turn's run waits for the answer before the next write.
        match write {
            Write::Append(append) => {
                replies.insert(append.lease(), reply);
                appends.push(append);
            }
            Write::Finish(finish) => {
                replies.insert(finish.lease(), reply);
                finishes.push(finish);
            }
        }
    }
    append_all(store, appends, &mut replies, locked).await;
    finish_all(store, finishes, &mut replies, locked).await;
}

type Replies = HashMap<Lease, oneshot::Sender<Written>>;

fn answer(replies: &mut Replies, lease: Lease, written: Written) {
    if let Some(reply) = replies.remove(&lease) {
        // A run that has ended does not wait for the answer.
        let _ = reply.send(written);
    }
}

async fn append_all(store: &Store, mut appends: Vec<Append>, replies: &mut Replies, locked: Locked<'_>) {
    if appends.is_empty() {
        return;
    }
    let began = Instant::now();
    let landed = match repeat(store, &mut appends, replies, locked).await {
        Ok(landed) => landed,
        Err(why) if appends.len() == 1 => {
            tracing::error!(%why, turn = %appends[0].turn, "Postgres refuses an append");
            return answer(replies, appends[0].lease(), Written::Refused(why.to_string()));
        }
        Err(_) => {
            for append in appends {
                Box::pin(append_all(store, vec![append], replies, locked)).await;
            }
            return;
        }
    };
    let landed: HashMap<Lease, Landed> = landed.into_iter().map(|write| (write.lease, write)).collect();
    for append in appends {
        let lease = append.lease();
        let Some(write) = landed.get(&lease) else {
            answer(replies, lease, Written::LeaseLost);
            continue;
        };
        metrics::events_appended(append.events.len());
        let seq = append.base + i32::try_from(append.events.len()).unwrap_or(0);
        store.seen_commits().saw(append.turn, append.epoch, seq);
        show(store, began, write, (append.base, seq), append.events.into_iter());
        answer(replies, lease, Written::Done(seq));
    }
    store.wake().turns.events_elsewhere(landed.into_keys().map(|(turn, _)| turn));
}

/// Hands the written events, after `base` up to `newest`, to local readers, so that they need no query.
fn show(
    store: &Store,
    began: Instant,
    write: &Landed,
    (base, newest): (i32, i32),
    events: impl Iterator<Item = NewEvent>,
) {
    let page = || write.page(base, newest, events);
    store.wake().turns.events_here(write.lease.0, began, base, page);
}

async fn finish_all(store: &Store, mut finishes: Vec<Finish>, replies: &mut Replies, locked: Locked<'_>) {
    if finishes.is_empty() {
        return;
    }
    let began = Instant::now();
    let written = repeat(store, &mut finishes, replies, locked).await;
    let Finished { words, landed, next } = match written {
        Ok(written) if written.words.len() == finishes.len() => written,
        // Missing leases are lost, unless an earlier attempt of the same statement was committed and its answer lost.
        // That answer also named the next claimable turn, hence `moved()` below.
        Ok(mut written) => match insist(|| store.finished(&finishes)).await {
            Ok(earlier) => {
                written.words.extend(earlier);
                store.wake().queue.moved();
                written
            }
            Err(_) => written,
        },
        Err(why) if finishes.len() == 1 => {
            tracing::error!(%why, turn = %finishes[0].turn, "Postgres refuses a last word");
            return answer(replies, finishes[0].lease(), Written::Refused(why.to_string()));
        }
        Err(_) => {
            for finish in finishes {
                Box::pin(finish_all(store, vec![finish], replies, locked)).await;
            }
            return;
        }
    };
    // Before the answers: a caller that learns of the end must find the next turn already named.
    if let Some(next) = next {
        store.wake().queue.grew(next);
    }
    let seqs: HashMap<Lease, i32> = words.into_iter().collect();
    let landed: HashMap<Lease, Landed> = landed.into_iter().map(|write| (write.lease, write)).collect();
    for finish in finishes {
        let lease = finish.lease();
        let Some(&seq) = seqs.get(&lease) else {
            answer(replies, lease, Written::LeaseLost);
            continue;
        };
        metrics::events_appended(finish.said.len());
        store.seen_commits().saw_end(finish.turn, finish.epoch, Some(seq), finish.word.kind);
        let word = NewEvent { kind: finish.word.kind, data: finish.word.data };
        match landed.get(&lease) {
            Some(write) => {
                show(store, began, write, (finish.base, seq), finish.said.into_iter().chain([word]));
            }
            None => store.wake().turns.events_committed([finish.turn]),
        }
        answer(replies, lease, Written::Done(seq));
    }
    store.wake().turns.events_elsewhere(landed.into_keys().map(|(turn, _)| turn));
}

/// Retries a write while Postgres is away. Writes of locked turns may have left `writes` on return.
async fn repeat<W: Leased>(
    store: &Store,
    writes: &mut Vec<W>,
    replies: &mut Replies,
    locked: Locked<'_>,
) -> Result<W::Done, StoreError> {
    if let Locked::Leaves(aside) = locked
        && aside.locks_are_about()
    {
        let _ = set_aside(store, writes, replies, aside).await;
    }
    loop {
        let tried = {
            let _place = match locked {
                Locked::Waits(places) => places.acquire().await.ok(),
                Locked::Leaves(_) => None,
            };
            W::write(store, writes).await
        };
        match tried {
            Err(why) if why.is_away() => {
                tracing::debug!(%why, "a write failed; trying again");
                if why.is_held() {
                    match locked {
                        Locked::Leaves(aside) if set_aside(store, writes, replies, aside).await == 0 => {
                            store.tell_who_locked_a_table().await;
                        }
                        Locked::Leaves(_) => {}
                        Locked::Waits(_) => {
                            store.tell_who_locked(writes.iter().map(|write| write.lease().0)).await;
                        }
                    }
                }
                pause().await;
            }
            other => return other,
        }
    }
}

/// Moves writes of locked turns out of a batch; returns how many. 0 if a whole table is locked.
async fn set_aside<W: Leased>(
    store: &Store,
    writes: &mut Vec<W>,
    replies: &mut Replies,
    aside: &Aside<Asked>,
) -> usize {
    let turns: Vec<TurnId> = writes.iter().map(|write| write.lease().0).collect();
    // If Postgres does not tell, the whole batch is retried together.
    let locked = store.locked(&turns).await.unwrap_or_default();
    for write in writes.extract_if(.., |write| locked.contains(&write.lease().0)) {
        let lease = write.lease();
        aside.note();
        tracing::debug!(turn_id = %lease.0, "another database session has locked a row of this turn; written by itself");
        if let Some(reply) = replies.remove(&lease) {
            aside.take((write.into(), reply)).await;
        }
    }
    let count = locked.len();
    store.tell_who_locked(locked).await;
    count
}

/// Retries a query while Postgres is away.
async fn insist<T, F>(mut question: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match question().await {
            Err(why) if why.is_away() => {
                tracing::warn!(%why, "a query failed; trying again");
                pause().await;
            }
            other => return other,
        }
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(50..300))).await;
}
