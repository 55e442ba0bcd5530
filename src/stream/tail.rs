//! One turn's log from a cursor on: first the stored events, then new events as they come.
//!
//! Keeps I4 for readers: events come in order, each once, and a gap in the log is an error, never a shorter answer.
//! Keeps I8: a reader waits while Postgres is unreachable, and goes on afterwards.
//!
//! Every read includes the event at the cursor. A database that lost commits in a fail-over may have another event
//! there: then the reader gets an error, and never a second event with the same `seq`.
//!
//! The order is always: subscribe, mark everything as seen, read, and only then wait. A commit between the read and
//! the wait ends the wait at once.

use std::time::Duration;

use chrono::TimeDelta;

use crate::{
    event::{Event, SharedEvent},
    id::{ConversationId, TurnId},
    store::{
        Store, StoreError,
        pages::{Anchor, LogPage},
        seen_commits::KEPT_FOR,
        subscriptions::{Cursor, Subscription},
    },
};

/// Events per read: the most that a reader holds in memory.
pub const PAGE_ROWS: i64 = 256;
/// The longest time between two reads, in any case. The poller checks all tails much sooner (I13).
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A reader of one turn's log.
#[derive(Debug)]
pub struct Tail {
    store: Store,
    interest: Subscription,
    turn: TurnId,
    cursor: i32,
    /// The event at the cursor, as returned to the reader; `None` before the first read.
    anchor: Option<Anchor>,
    /// Whether the last read left events out.
    is_behind: bool,
    is_ended: bool,
}

/// Why the log cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The log has a gap or a duplicate, and must not be shown.
    #[error("{turn}: event {found} came instead of event {wanted}")]
    Gap {
        /// The turn whose log this is.
        turn: TurnId,
        /// The expected `seq`.
        wanted: i32,
        /// The `seq` in the log.
        found: i32,
    },
    /// There is an event after the last word.
    #[error("{turn}: event {seq} comes after the last word")]
    AfterTheEnd {
        /// The turn whose log this is.
        turn: TurnId,
        /// The `seq` of the extra event.
        seq: i32,
    },
    /// The database lost commits: an event that the reader has seen is not there any more.
    #[error("{turn}: the database went back in time")]
    Rewound {
        /// The turn whose log this is.
        turn: TurnId,
    },
    /// Retention dropped the log.
    #[error("{turn}: the log is retained no longer")]
    Gone {
        /// The turn whose log this is.
        turn: TurnId,
    },
    /// The conversation was deleted, or retention dropped it.
    #[error("{conversation}: the conversation is gone")]
    ConversationGone {
        /// The conversation.
        conversation: ConversationId,
    },
    /// A query failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Tail {
    /// A reader of the events after `cursor` (-1: from the start). Notifications count from this call on.
    pub fn new(store: &Store, turn: TurnId, cursor: i32) -> Tail {
        let interest = store.wake().turns.subscribe(turn);
        Tail { store: store.clone(), interest, turn, cursor, anchor: None, is_behind: false, is_ended: false }
    }

    /// The next events, at least one; none after the terminal event. Waits without a limit, so callers need a timeout
    /// or a `select!` with a stop.
    ///
    /// # Errors
    /// All errors except an unreachable Postgres, which is waited out.
    pub async fn page(&mut self) -> Result<Vec<SharedEvent>, TailError> {
        loop {
            // Boxed, so that a waiting reader holds no space for a read.
            match Box::pin(self.look(PAGE_ROWS)).await {
                Ok(events) if !events.is_empty() || self.is_ended => return Ok(events),
                Ok(_) => self.wait(LOOK_EVERY).await,
                Err(TailError::Store(why)) if why.is_away() => pause().await,
                Err(why) => return Err(why),
            }
        }
    }

    /// The events after the cursor as of now, at most `limit`. The cursor moves to the last of them.
    ///
    /// # Errors
    /// Postgres is unreachable, or the log is corrupt, gone or rewound.
    pub async fn look(&mut self, limit: i64) -> Result<Vec<SharedEvent>, TailError> {
        if self.is_ended {
            return Ok(Vec::new());
        }
        self.interest.look();
        let read = self.store.read_shared(&self.interest, self.cursor, limit, self.is_behind).await?;
        let LogPage { anchor, events, is_whole } = read;
        if self.cursor >= 0 && (anchor.is_none() || self.anchor.is_some_and(|known| Some(known) != anchor)) {
            return Err(self.why_not_anchored().await?);
        }
        self.is_behind = !is_whole;
        self.anchor = anchor;
        if events.is_empty() && self.cursor < 0 {
            // Event 0 is committed with the turn, so retention dropped a log without it.
            return Err(TailError::Gone { turn: self.turn });
        }
        for event in &events {
            self.advance(event)?;
        }
        Ok(events)
    }

    /// Starts over: the next read begins at the start of the log.
    pub fn restart(&mut self) {
        self.cursor = -1;
        self.anchor = None;
        self.is_behind = false;
        self.is_ended = false;
    }

    /// The last event that the reader got; `None` before the first event.
    pub(super) fn told(&self) -> Option<LastTold> {
        let anchor = self.anchor.filter(|_| self.cursor >= 0)?;
        Some(LastTold { turn: self.turn, place: Cursor { seq: self.cursor, anchor } })
    }

    /// Whether the event at the cursor is a last word, as of the newest read. Nothing comes after a last word.
    pub(super) fn is_at_last_word(&self) -> bool {
        self.is_ended || self.anchor.is_some_and(|anchor| anchor.is_terminal())
    }

    /// Waits until something happens after the last [`Tail::look`], or until `at_most` has passed.
    pub async fn wait(&mut self, at_most: Duration) {
        let place = self.anchor.map(|anchor| Cursor { seq: self.cursor, anchor });
        self.interest.news(at_most.min(LOOK_EVERY), place).await;
    }

    /// Whether the reader got the terminal event.
    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// The newest `seq` that the reader got, or the initial cursor.
    pub fn cursor(&self) -> i32 {
        self.cursor
    }

    fn advance(&mut self, event: &Event) -> Result<(), TailError> {
        let (turn, wanted) = (self.turn, self.cursor.saturating_add(1));
        if self.is_ended {
            return Err(TailError::AfterTheEnd { turn, seq: event.seq });
        }
        if event.seq != wanted {
            return Err(TailError::Gap { turn, wanted, found: event.seq });
        }
        self.cursor = event.seq;
        self.anchor = Some(Anchor::of(event));
        self.is_ended = event.kind.is_terminal();
        self.note_seen(event);
        Ok(())
    }

    /// Events shown to a reader are noted as seen by this replica, whichever replica wrote them.
    fn note_seen(&self, event: &Event) {
        let age = self.store.clock().now() - event.at;
        if age > TimeDelta::from_std(KEPT_FOR).unwrap_or(TimeDelta::MAX) {
            return;
        }
        let commits = self.store.seen_commits();
        match self.is_ended {
            true => commits.saw_end(self.turn, event.attempt, Some(event.seq), event.kind),
            false => commits.saw(self.turn, event.attempt, event.seq),
        }
    }

    /// Why the event at the cursor is missing: retention dropped its partition, or the database lost commits.
    async fn why_not_anchored(&self) -> Result<TailError, TailError> {
        let turn = self.turn;
        let is_dropped = is_dropped(&self.store, turn).await?;
        Ok(if is_dropped { TailError::Gone { turn } } else { TailError::Rewound { turn } })
    }
}

/// Whether retention dropped the log: no events, while the turn's row exists or the turn is older than the retention.
async fn is_dropped(store: &Store, turn: TurnId) -> Result<bool, TailError> {
    Ok(store.read_after(turn, -1, 1).await?.is_empty()
        && (store.is_past(turn) || store.turn(turn).await?.is_some()))
}

/// The last event that an ended turn's reader got.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastTold {
    pub(super) turn: TurnId,
    pub(super) place: Cursor,
}

impl LastTold {
    /// Whether the event is still in the log. Needed for ended turns only: every read of an open turn checks its own
    /// cursor.
    pub(super) async fn is_still_so(&self, store: &Store) -> Result<bool, TailError> {
        let anchor = store.read_on(self.turn, self.place.seq, 0).await?.anchor;
        Ok(anchor == Some(self.place.anchor) || is_dropped(store, self.turn).await?)
    }
}

/// The pause between two tries while Postgres is unreachable. Jittered, so that readers do not all come back at once.
pub(super) async fn pause() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(100..300))).await;
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::{config::Config, event::Kind};

    fn tail(cursor: i32) -> Tail {
        let config =
            Config { database_url: "postgres://nobody@127.0.0.1:1/none".to_owned(), ..Config::default() };
        Tail::new(&Store::open(&config).unwrap(), TurnId(uuid::Uuid::from_u128(1)), cursor)
    }

    fn event(seq: i32, kind: Kind) -> Event {
        let data = "{}".to_owned();
        Event {
            turn_id: TurnId(uuid::Uuid::from_u128(1)),
            seq,
            kind,
            attempt: 1,
            data,
            at: DateTime::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn a_gap_a_repeat_and_a_word_after_the_last_are_errors() {
        let mut tail = tail(3);
        assert!(matches!(
            tail.advance(&event(5, Kind::Delta)),
            Err(TailError::Gap { wanted: 4, found: 5, .. })
        ));
        assert!(tail.advance(&event(4, Kind::Delta)).is_ok());
        assert!(matches!(tail.advance(&event(4, Kind::Delta)), Err(TailError::Gap { wanted: 5, .. })));
        assert!(tail.advance(&event(5, Kind::Failed)).is_ok());
        assert!(tail.is_ended());
        assert!(matches!(tail.advance(&event(6, Kind::Delta)), Err(TailError::AfterTheEnd { seq: 6, .. })));
    }
}
