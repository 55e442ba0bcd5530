//! A page of a log.
//!
//! Owns the identity of events ([`Anchor`]).

use chrono::{DateTime, Utc};

use crate::{
    event::{Event, Kind, SharedEvent},
    id::TurnId,
};

/// The identity of an event: distinguishes it from another event that later took its `seq`, after a failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    pub(in crate::store) at: DateTime<Utc>,
    pub(in crate::store) attempt: i32,
    pub(in crate::store) kind: Kind,
}

impl Anchor {
    /// The identity of this event.
    pub fn of(event: &Event) -> Anchor {
        Anchor { at: event.at, attempt: event.attempt, kind: event.kind }
    }

    /// Whether the event is a last word.
    pub fn is_terminal(&self) -> bool {
        self.kind.is_terminal()
    }
}

/// A read: the events of a turn after a cursor (-1: from the start).
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Want {
    pub(in crate::store) turn: TurnId,
    pub(in crate::store) cursor: i32,
}

/// The limits of a page.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Room {
    pub(in crate::store) rows: i64,
    /// Bytes of data. An event that exceeds the limit is left out, unless it is the first.
    pub(in crate::store) bytes: i64,
}

/// The result of one read of a log.
#[derive(Debug, Clone, Default)]
pub struct LogPage {
    /// The identity of the event at the cursor; `None` if there is no event.
    pub anchor: Option<Anchor>,
    /// The events after the cursor.
    pub events: Vec<SharedEvent>,
    /// Whether the page reaches the end of the log.
    pub is_whole: bool,
}

impl LogPage {
    pub(in crate::store) fn put(&mut self, want: &Want, event: Event) {
        if event.seq == want.cursor {
            self.anchor = Some(Anchor::of(&event));
        } else {
            self.events.push(event.into());
        }
    }

    /// Whether the page is below its limits, so that it reaches the end of the log.
    pub(in crate::store) fn has_room(&self, room: Room) -> bool {
        let bytes: usize = self.events.iter().map(|event| event.data.len()).sum();
        (self.events.len() as i64) < room.rows && (bytes as i64) < room.bytes
    }
}
