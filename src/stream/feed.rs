//! One stream, from its first byte to its last, independent of the transport.
//!
//! ```text
//! opening ──retry──► following ──terminal event──► ended            (a clean end)
//!                      │ soft stop, jitter
//!                      └──reconnect──► letting go ──► let go        (an abort, never a clean end)
//! ```
//! A reader whose log was rewound gets a `reset`, and then the log from its start.
//!
//! Pull-based: the log is read only after the reader has taken the last page, so a slow reader holds at most one
//! page. A keep-alive never cancels a running read: the answer to a query that was sent is always read.
//!
//! A keep-alive says "nothing new", so a replica that gets no answers from Postgres sends none. Clients that watch
//! for silence then switch to another replica; all others get the events when Postgres is back.

use std::{future::Future, pin::Pin, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    conversation_tail::ConversationTail,
    render,
    tail::{Tail, TailError},
};
use crate::{
    event::{LastWords, SharedEvent},
    id::TurnId,
    store::Store,
    task::Supervisor,
};

/// Streams are closed over this period, so that their clients do not reconnect all at once.
const LET_GO_WITHIN: Duration = Duration::from_secs(2);
/// Keep-alives need an answer from Postgres within this time: one beat and its deadline.
const HEARD_WITHIN: Duration = Duration::from_secs(3);
/// The delay between the last bytes and the abort, because a reset may overtake unsent bytes.
const FLUSH: Duration = Duration::from_millis(100);

/// The reader behind a stream.
#[derive(Debug)]
pub enum EventReader {
    /// One turn, until its terminal event.
    Turn(Box<Tail>),
    /// A conversation, without an end.
    Thread(Box<ConversationTail>),
}

/// The next step of a stream.
#[derive(Debug)]
pub enum StreamStep {
    /// Bytes to send, and the events in them.
    Bytes(String, Vec<SharedEvent>),
    /// The terminal event was sent: end the stream cleanly.
    Ended,
    /// Abort the stream; the client reconnects with its cursor.
    LetGo,
    /// Abort the stream: the log cannot be read further.
    Broken(TailError),
}

/// Options of a stream, for both kinds of reader.
#[derive(Debug, Clone, Copy, Default)]
pub struct Telling {
    /// How much of a last word to send.
    pub last_words: LastWords,
    /// A turn whose log was rewound behind the reader's cursor; the stream begins with its reset.
    pub reset: Option<TurnId>,
}

type PendingRead = Pin<Box<dyn Future<Output = (EventReader, Result<FeedPage, TailError>)> + Send>>;

struct FeedPage {
    text: String,
    events: Vec<SharedEvent>,
    is_end: bool,
}

/// One stream.
pub struct Feed {
    store: Store,
    telling: Telling,
    reading: PendingRead,
    state: FeedState,
    keep_alive: Duration,
    quiet_until: Instant,
    let_go_at: Option<Instant>,
    soft: CancellationToken,
    hard: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FeedState {
    Opening,
    Following,
    Ended,
    LettingGo,
}

impl Feed {
    /// A stream of the events from `reader`. Closed when the supervisor stops.
    pub fn new(
        store: &Store,
        (reader, telling): (EventReader, Telling),
        keep_alive: Duration,
        supervisor: &Supervisor,
    ) -> Feed {
        let (soft, hard) = (supervisor.soft().clone(), supervisor.hard().clone());
        // A client that connects during the drain gets a little longer: it may have no other replica.
        let late = soft.is_cancelled().then(|| Instant::now() + LET_GO_WITHIN + let_go_jitter());
        Feed {
            store: store.clone(),
            telling,
            reading: read(reader, telling.last_words),
            state: FeedState::Opening,
            keep_alive,
            quiet_until: Instant::now() + keep_alive,
            let_go_at: late,
            soft,
            hard,
        }
    }

    /// The store that the stream reads from.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The next step. [`StreamStep::Bytes`] is the only step that is followed by another.
    pub async fn next(&mut self) -> StreamStep {
        match self.state {
            FeedState::Opening => {
                self.state = FeedState::Following;
                let reset = self.telling.reset.map(render::reset).unwrap_or_default();
                StreamStep::Bytes(render::retry() + &reset, Vec::new())
            }
            FeedState::Following => {
                let step = self.follow().await;
                if matches!(step, StreamStep::Broken(_)) {
                    // The abort must not overtake earlier bytes, such as a reset.
                    tokio::time::sleep(FLUSH).await;
                }
                step
            }
            FeedState::Ended => StreamStep::Ended,
            FeedState::LettingGo => {
                tokio::time::sleep(FLUSH).await;
                StreamStep::LetGo
            }
        }
    }

    async fn follow(&mut self) -> StreamStep {
        loop {
            let let_go_at = self.let_go_at;
            let step = tokio::select! {
                biased;
                (reader, page) = &mut self.reading => self.take(reader, page),
                () = self.hard.cancelled() => StreamStep::LetGo,
                () = sleep_until(let_go_at.unwrap_or(self.quiet_until)), if let_go_at.is_some() => {
                    self.state = FeedState::LettingGo;
                    StreamStep::Bytes(render::RECONNECT.to_owned(), Vec::new())
                }
                () = self.soft.cancelled(), if let_go_at.is_none() => {
                    self.let_go_at = Some(Instant::now() + let_go_jitter());
                    continue;
                }
                () = sleep_until(self.quiet_until) => {
                    if !self.store.was_heard_within(HEARD_WITHIN) {
                        self.quiet_until = Instant::now() + HEARD_WITHIN;
                        continue;
                    }
                    StreamStep::Bytes(render::KEEP_ALIVE.to_owned(), Vec::new())
                }
            };
            self.quiet_until = Instant::now() + self.keep_alive;
            return step;
        }
    }

    fn take(&mut self, reader: EventReader, page: Result<FeedPage, TailError>) -> StreamStep {
        match page {
            Ok(page) => {
                self.reading = read(reader, self.telling.last_words);
                if page.is_end {
                    self.state = FeedState::Ended;
                }
                StreamStep::Bytes(page.text, page.events)
            }
            Err(why) => {
                self.state = FeedState::LettingGo;
                StreamStep::Broken(why)
            }
        }
    }
}

/// Reads the next page. The query starts at the first poll of the future.
fn read(mut reader: EventReader, last_words: LastWords) -> PendingRead {
    Box::pin(async move {
        let page = match &mut reader {
            EventReader::Turn(tail) => {
                let told = |events: Vec<_>| events.into_iter().map(|event| last_words.told(event)).collect();
                tail.page().await.map(|events| turn_page(told(events), tail.is_ended()))
            }
            EventReader::Thread(thread) => {
                let told = |(at, event)| (at, last_words.told(event));
                thread.page().await.map(|placed| thread_page(placed.into_iter().map(told).collect()))
            }
        };
        let page = match page {
            Err(TailError::Rewound { turn }) => {
                tracing::warn!(
                    turn_id = %turn,
                    "the database lost events; the reader starts again from the first event"
                );
                match &mut reader {
                    EventReader::Turn(tail) => tail.restart(),
                    EventReader::Thread(thread) => thread.restart(),
                }
                Ok(FeedPage { text: render::reset(turn), events: Vec::new(), is_end: false })
            }
            page => page,
        };
        (reader, page)
    })
}

fn turn_page(events: Vec<SharedEvent>, is_end: bool) -> FeedPage {
    let mut text = String::new();
    for event in &events {
        render::frame(&mut text, event.seq, event);
    }
    FeedPage { text, events, is_end }
}

fn thread_page(placed: Vec<(super::Position, SharedEvent)>) -> FeedPage {
    let mut text = String::new();
    for (at, event) in &placed {
        render::frame(&mut text, at, event);
    }
    FeedPage { text, events: placed.into_iter().map(|(_, event)| event).collect(), is_end: false }
}

fn let_go_jitter() -> Duration {
    LET_GO_WITHIN.mul_f64(rand::random_range(0.0..1.0))
}
