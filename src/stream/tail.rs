//! One turn's log, from a cursor on: first what stands there, then what comes.
//!
//! Keeps I4 for readers: events are handed on in order, each once, and a log that has a gap is an
//! error, never a shorter answer. Keeps I8: while Postgres is away a reader waits, and goes on after.
//!
//! Every read takes along what stands at the cursor. A database that went back in time may have put
//! another event there: then the reader is told, and never shown a second event under one `seq`.
//!
//! The order is always: register interest, mark all as seen, read, and only then wait. What is
//! committed between the read and the wait then ends the wait at once.

use std::time::Duration;

use chrono::TimeDelta;

use crate::{
    event::{Event, SharedEvent},
    id::{ConversationId, TurnId},
    store::{
        Store, StoreError,
        pages::{Anchor, EventPage},
        seen_commits::KEPT_FOR,
        subscriptions::{Cursor, Subscription},
    },
};

/// Events in one read: what a reader holds in memory at most.
pub const PAGE_ROWS: i64 = 256;
/// The longest between two looks, whatever was heard: the poller looks for all tails much sooner (I13).
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A reader of one turn's log.
#[derive(Debug)]
pub struct Tail {
    store: Store,
    interest: Subscription,
    turn: TurnId,
    cursor: i32,
    /// The event at the cursor, as it was handed on; `None` before the first look.
    anchor: Option<Anchor>,
    /// Whether the last look left something out.
    is_behind: bool,
    is_ended: bool,
}

/// Why a log cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The log skips or repeats: never to be shown.
    #[error("{turn}: event {found} stands where {wanted} was due")]
    Gap {
        /// Whose log.
        turn: TurnId,
        /// The `seq` that was due.
        wanted: i32,
        /// The `seq` that stands there.
        found: i32,
    },
    /// Something stands after the last word.
    #[error("{turn}: event {seq} stands after the last word")]
    AfterTheEnd {
        /// Whose log.
        turn: TurnId,
        /// Its `seq`.
        seq: i32,
    },
    /// The database went back in time: what was handed on does not stand there any more.
    #[error("{turn}: the database went back in time")]
    Rewound {
        /// Whose log.
        turn: TurnId,
    },
    /// The log is retained no longer.
    #[error("{turn}: the log is retained no longer")]
    Gone {
        /// Whose log.
        turn: TurnId,
    },
    /// The conversation was deleted, or is retained no longer.
    #[error("{conversation}: the conversation is gone")]
    ConversationGone {
        /// Which one.
        conversation: ConversationId,
    },
    /// Postgres.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Tail {
    /// A reader of what comes after `cursor` (-1: from the start). Subscription counts from here on.
    pub fn new(store: &Store, turn: TurnId, cursor: i32) -> Tail {
        let interest = store.wake().turns.subscribe(turn);
        Tail { store: store.clone(), interest, turn, cursor, anchor: None, is_behind: false, is_ended: false }
    }

    /// The next events, at least one, waiting for them as long as it takes; none after the terminal
    /// event. Bound it, or race it against a stop.
    ///
    /// # Errors
    /// All but an absence of Postgres, which is waited out.
    pub async fn page(&mut self) -> Result<Vec<SharedEvent>, TailError> {
        loop {
            // In a box, so that whoever waits keeps no room for a read.
            match Box::pin(self.look(PAGE_ROWS)).await {
                Ok(events) if !events.is_empty() || self.is_ended => return Ok(events),
                Ok(_) => self.wait(LOOK_EVERY).await,
                Err(TailError::Store(why)) if why.is_away() => pause().await,
                Err(why) => return Err(why),
            }
        }
    }

    /// What stands after the cursor now, at most `limit` events; the cursor moves behind them.
    ///
    /// # Errors
    /// Postgres is away, or the log is not what it must be.
    pub async fn look(&mut self, limit: i64) -> Result<Vec<SharedEvent>, TailError> {
        if self.is_ended {
            return Ok(Vec::new());
        }
        self.interest.look();
        let read = self.store.read_shared(&self.interest, self.cursor, limit, self.is_behind).await?;
        let EventPage { anchor, events, is_whole } = read;
        if self.cursor >= 0 && (anchor.is_none() || self.anchor.is_some_and(|known| Some(known) != anchor)) {
            return Err(self.why_not_anchored().await?);
        }
        self.is_behind = !is_whole;
        self.anchor = anchor;
        if events.is_empty() && self.cursor < 0 {
            // Event 0 is committed with the turn: a log without it was dropped.
            return Err(TailError::Gone { turn: self.turn });
        }
        for event in &events {
            self.advance(event)?;
        }
        Ok(events)
    }

    /// Forgets everything: the next look begins at the start of the log.
    pub fn restart(&mut self) {
        self.cursor = -1;
        self.anchor = None;
        self.is_behind = false;
        self.is_ended = false;
    }

    /// What was handed on last; `None` before the first event.
    pub(super) fn told(&self) -> Option<LastTold> {
        let anchor = self.anchor.filter(|_| self.cursor >= 0)?;
        Some(LastTold { turn: self.turn, place: Cursor { seq: self.cursor, anchor } })
    }

    /// Whether the event at the cursor is a last word, by the newest look: nothing comes after it.
    pub(super) fn is_at_last_word(&self) -> bool {
        self.is_ended || self.anchor.is_some_and(|anchor| anchor.is_terminal())
    }

    /// Until something happened since the last [`Tail::look`], at most so long.
    pub async fn wait(&mut self, at_most: Duration) {
        let place = self.anchor.map(|anchor| Cursor { seq: self.cursor, anchor });
        self.interest.news(at_most.min(LOOK_EVERY), place).await;
    }

    /// Whether the terminal event was handed on.
    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// The newest `seq` that was handed on, or the cursor it began with.
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

    /// What a reader was shown is known to this replica, whoever wrote it.
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

    /// What was handed on stands there no more: its day was dropped, or the database went back in time.
    async fn why_not_anchored(&self) -> Result<TailError, TailError> {
        let turn = self.turn;
        let is_dropped = is_dropped(&self.store, turn).await?;
        Ok(if is_dropped { TailError::Gone { turn } } else { TailError::Rewound { turn } })
    }
}

/// Whether the whole log is gone though its turn is there, or is as old as what goes with its log.
async fn is_dropped(store: &Store, turn: TurnId) -> Result<bool, TailError> {
    Ok(store.read_after(turn, -1, 1).await?.is_empty()
        && (store.is_past(turn) || store.turn(turn).await?.is_some()))
}

/// What is kept of an ended turn's reader: what it handed on last.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastTold {
    pub(super) turn: TurnId,
    pub(super) place: Cursor,
}

impl LastTold {
    /// Whether that still stands there. Only of an ended turn it needs the question: every look at an open one asks it.
    pub(super) async fn is_still_so(&self, store: &Store) -> Result<bool, TailError> {
        let anchor = store.read_on(self.turn, self.place.seq, 0).await?.anchor;
        Ok(anchor == Some(self.place.anchor) || is_dropped(store, self.turn).await?)
    }
}

/// Between two tries while Postgres is away; jittered, so that its return is no stampede.
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
