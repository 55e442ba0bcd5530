//! All events of a conversation: its turns in the order of their acceptance, then new events as they come.
//!
//! Keeps I4 across turns: all events of a turn come before those of the next. The log of a conversation has no end,
//! because another turn may always be accepted. An idle reader sends no queries: the doorbell of the next accept
//! wakes it, or the poller, which checks all such readers with one query.
//!
//! The order is always: subscribe, mark everything as seen, read, and only then wait.

use std::{fmt, str::FromStr, time::Duration};

use super::tail::{LastTold, PAGE_ROWS, Tail, TailError, pause};
use crate::{
    event::SharedEvent,
    id::ConversationId,
    store::{
        Store,
        conversation_subscriptions::{ConversationCursor, ConversationSubscription},
    },
};

/// A position in a conversation: a turn's ordinal, and a `seq` in its log. The text form is `ORDINAL.SEQ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The turn's place in the conversation, from 1.
    pub ordinal: i64,
    /// The event's place in the turn's log; -1 before the first event.
    pub seq: i32,
}

impl Position {
    /// Before the first event of the first turn.
    pub const START: Position = Position { ordinal: 1, seq: -1 };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.ordinal, self.seq)
    }
}

/// A text that is not a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected ORDINAL.SEQ, such as 3.17")]
pub struct NotAPosition;

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let (ordinal, seq) = text.split_once('.').ok_or(NotAPosition)?;
        let ordinal = ordinal.parse().ok().filter(|n| *n >= 1).ok_or(NotAPosition)?;
        let seq = seq.parse().ok().filter(|n| *n >= -1).ok_or(NotAPosition)?;
        Ok(Position { ordinal, seq })
    }
}

/// A reader of one conversation.
#[derive(Debug)]
pub struct ConversationTail {
    store: Store,
    conversation: ConversationId,
    at: Position,
    /// Boxed: most readers wait for the next turn and need no space for a tail.
    current: Option<Box<Tail>>,
    interest: ConversationSubscription,
    /// The last event of the turn before this one, which has ended.
    told: Option<LastTold>,
    /// Whether the reader has waited since then. A rewind of the log can be what ended the wait, so `told` is checked
    /// again.
    has_waited: bool,
    /// The count of broken Postgres connections at the last check of `told`.
    breaks: u64,
}

impl ConversationTail {
    /// A reader of the events after `at`.
    pub fn new(store: &Store, conversation: ConversationId, at: Position) -> ConversationTail {
        let (interest, breaks) = (store.wake().conversations.subscribe(conversation), store.breaks());
        let store = store.clone();
        ConversationTail {
            store,
            conversation,
            at,
            current: None,
            interest,
            told: None,
            has_waited: false,
            breaks,
        }
    }

    /// Starts over: the next read begins at the first turn.
    pub fn restart(&mut self) {
        (self.at, self.current, self.told) = (Position::START, None, None);
    }

    /// The next events, at least one, all of one turn, with their positions. Waits without a limit, so callers need a
    /// timeout or a `select!` with a stop.
    ///
    /// # Errors
    /// All errors except an unreachable Postgres, which is waited out.
    pub async fn page(&mut self) -> Result<Vec<(Position, SharedEvent)>, TailError> {
        loop {
            // Boxed, so that a waiting reader holds no space for a read.
            match Box::pin(self.look(PAGE_ROWS)).await {
                Ok(events) if !events.is_empty() => return Ok(events),
                Ok(_) => self.wait(Duration::MAX).await,
                Err(TailError::Store(why)) if why.is_away() => pause().await,
                Err(why) => return Err(why),
            }
        }
    }

    /// The events after the position, as of now: at most `limit`, all of one turn.
    ///
    /// # Errors
    /// Postgres is unreachable, or a log is corrupt, gone or rewound.
    pub async fn look(&mut self, limit: i64) -> Result<Vec<(Position, SharedEvent)>, TailError> {
        loop {
            if self.current.is_none() && !self.enter_turn().await? {
                return Ok(Vec::new());
            }
            let Some(tail) = self.current.as_mut() else { continue };
            let (events, is_gone) = match tail.look(limit).await {
                Ok(events) => (events, false),
                // Retention dropped an old turn's log; the conversation goes on with the next turn.
                Err(TailError::Gone { .. }) => (Vec::new(), true),
                Err(why) => return Err(why),
            };
            // Nothing follows if the cursor is at the last word already, or if the log is gone.
            let mut is_turn_over = tail.is_at_last_word() || is_gone;
            if events.is_empty() && !is_turn_over {
                if !self.is_over().await? {
                    return Ok(Vec::new());
                }
                is_turn_over = true;
            }
            let told = events_at(self.at.ordinal, events);
            if let Some((at, _)) = told.last() {
                self.at = *at;
            }
            if is_turn_over {
                self.told = self.current.take().and_then(|tail| tail.told());
                self.has_waited = false;
                self.at = Position { ordinal: self.at.ordinal + 1, seq: -1 };
            }
            if !told.is_empty() {
                return Ok(told);
            }
        }
    }

    /// Waits until there may be new events, or until `at_most` has passed.
    pub async fn wait(&mut self, at_most: Duration) {
        match &mut self.current {
            Some(tail) => tail.wait(at_most).await,
            None => {
                self.has_waited = true;
                let told = self.told.map(|told| (told.turn, told.place));
                let stand = ConversationCursor { after: self.at.ordinal - 1, told, breaks: self.breaks };
                self.interest.news(at_most, stand).await;
            }
        }
    }

    /// Opens the turn at the position, or the next one after it; false if there is none yet.
    async fn enter_turn(&mut self) -> Result<bool, TailError> {
        self.interest.look();
        let breaks = self.store.breaks();
        let next = self.store.turn_ids_after(self.conversation, self.at.ordinal - 1, 1).await?;
        if next.is_empty() && self.store.conversation(self.conversation).await?.is_none() {
            return Err(TailError::ConversationGone { conversation: self.conversation });
        }
        if let Some(told) = self.told
            && (!next.is_empty() || self.has_waited || breaks != self.breaks)
            && !told.is_still_so(&self.store).await?
        {
            return Err(TailError::Rewound { turn: told.turn });
        }
        self.breaks = breaks;
        let Some(&(ordinal, turn)) = next.first() else { return Ok(false) };
        if ordinal != self.at.ordinal {
            self.at = Position { ordinal, seq: -1 };
        }
        self.current = Some(Box::new(Tail::new(&self.store, turn, self.at.seq)));
        Ok(true)
    }

    /// Whether the turn at the position has no more events, although its newest event is no last word known to this
    /// release. A later turn has events only after this turn has ended, so the query is needed only when a read
    /// returns nothing.
    async fn is_over(&self) -> Result<bool, TailError> {
        let here = self.store.turn_ids_after(self.conversation, self.at.ordinal - 1, 1).await?;
        let Some(&(_, turn)) = here.first() else { return Ok(true) };
        if !self.store.turn(turn).await?.is_none_or(|turn| turn.is_ended()) {
            return Ok(false);
        }
        // The turn may have ended after the read: it is over only if there is still nothing after the cursor.
        let cursor = self.current.as_ref().map_or(self.at.seq, |tail| tail.cursor());
        Ok(self.store.read_after(turn, cursor, 1).await?.is_empty())
    }
}

fn events_at(ordinal: i64, events: Vec<SharedEvent>) -> Vec<(Position, SharedEvent)> {
    events.into_iter().map(|event| (Position { ordinal, seq: event.seq }, event)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_what_it_wrote() {
        let at = Position { ordinal: 3, seq: 17 };
        assert_eq!(at.to_string(), "3.17");
        assert_eq!("3.17".parse(), Ok(at));
        for text in ["", "3", "3.", ".1", "0.1", "-1.2", "3.-2", "3.1.2", "3.x", "99999999999999999999.1"] {
            assert_eq!(text.parse::<Position>(), Err(NotAPosition), "{text}");
        }
    }
}
