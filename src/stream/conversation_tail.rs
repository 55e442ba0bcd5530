//! A whole conversation's events: turn after turn in the order they were accepted, then what comes.
//!
//! Keeps I4 across turns: a turn's events are told whole before the next one's begin. It has no
//! end, since another turn may always be accepted. Who has all of it asks Postgres nothing: whoever
//! accepts the next turn wakes it, or the poller does, which looks for all such readers at once.
//!
//! The order is always: register interest, mark all as seen, look, and only then wait.

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

/// A place in a conversation: a turn's ordinal, and a `seq` in its log. Its text is `ORDINAL.SEQ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The turn's place in the conversation, from 1.
    pub ordinal: i64,
    /// The event's place in the turn's log; -1 before the first.
    pub seq: i32,
}

impl Position {
    /// Before everything.
    pub const START: Position = Position { ordinal: 1, seq: -1 };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.ordinal, self.seq)
    }
}

/// A text that is no position.
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
    /// In a box: most readers wait for the next turn, and need no room for one.
    current: Option<Box<Tail>>,
    interest: ConversationSubscription,
    /// Of the turn that was told last, which has ended.
    told: Option<LastTold>,
    /// Whether it has waited since that was told: it may have been woken since that stands there no more.
    has_waited: bool,
    /// How often the connection to Postgres had broken when that was last looked at.
    breaks: u64,
}

impl ConversationTail {
    /// A reader of what comes after `at`.
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

    /// Forgets everything: the next look begins at the start.
    pub fn restart(&mut self) {
        (self.at, self.current, self.told) = (Position::START, None, None);
    }

    /// The next events of one turn, at least one, with their places, waiting for them as long as it
    /// takes. Bound it, or race it against a stop.
    ///
    /// # Errors
    /// All but an absence of Postgres, which is waited out.
    pub async fn page(&mut self) -> Result<Vec<(Position, SharedEvent)>, TailError> {
        loop {
            // In a box, so that whoever waits keeps no room for a read.
            match Box::pin(self.look(PAGE_ROWS)).await {
                Ok(events) if !events.is_empty() => return Ok(events),
                Ok(_) => self.wait(Duration::MAX).await,
                Err(TailError::Store(why)) if why.is_away() => pause().await,
                Err(why) => return Err(why),
            }
        }
    }

    /// What stands after the position now, at most `limit` events of one turn.
    ///
    /// # Errors
    /// Postgres is away, or a log is not what it must be.
    pub async fn look(&mut self, limit: i64) -> Result<Vec<(Position, SharedEvent)>, TailError> {
        loop {
            if self.current.is_none() && !self.enter_turn().await? {
                return Ok(Vec::new());
            }
            let Some(tail) = self.current.as_mut() else { continue };
            let (events, is_gone) = match tail.look(limit).await {
                Ok(events) => (events, false),
                // An old turn of a conversation that goes on: what is left is told.
                Err(TailError::Gone { .. }) => (Vec::new(), true),
                Err(why) => return Err(why),
            };
            // One that the reader came to at its last word has nothing more to tell, nor one whose log is gone.
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

    /// Until there may be more, at most so long.
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

    /// Goes to the turn at the position, or the first one after it; false where there is none yet.
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

    /// Whether the turn at the position has nothing more to tell though its newest event is no last word that this
    /// release knows. A later turn can only tell once this one has ended, so only
    /// a silent turn with a successor is worth the question.
    async fn is_over(&self) -> Result<bool, TailError> {
        let here = self.store.turn_ids_after(self.conversation, self.at.ordinal - 1, 1).await?;
        let Some(&(_, turn)) = here.first() else { return Ok(true) };
        if !self.store.turn(turn).await?.is_none_or(|turn| turn.is_ended()) {
            return Ok(false);
        }
        // It may have ended after the look: over only where still nothing stands after the cursor.
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
