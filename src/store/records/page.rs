//! What one look at a log brings.
//!
//! Owns what one event is told from another by ([`Anchor`]).

use chrono::{DateTime, Utc};

use crate::{
    event::{Event, Kind, SharedEvent},
    id::TurnId,
};

/// What tells one event from another that came to stand in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    pub(in crate::store) at: DateTime<Utc>,
    pub(in crate::store) attempt: i32,
    pub(in crate::store) kind: Kind,
}

impl Anchor {
    /// Of an event.
    pub fn of(event: &Event) -> Anchor {
        Anchor { at: event.at, attempt: event.attempt, kind: event.kind }
    }

    /// Whether it is a last word.
    pub fn is_terminal(&self) -> bool {
        self.kind.is_terminal()
    }
}

/// What a reader wants: a turn's events after a cursor (-1: from the start).
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Want {
    pub(in crate::store) turn: TurnId,
    pub(in crate::store) cursor: i32,
}

/// What one page may hold.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Room {
    pub(in crate::store) rows: i64,
    /// Of data; the event that goes beyond is left out, unless it is the first.
    pub(in crate::store) bytes: i64,
}

/// What one look at a log brings.
#[derive(Debug, Clone, Default)]
pub struct EventPage {
    /// What stands at the cursor.
    pub anchor: Option<Anchor>,
    /// What comes after it.
    pub events: Vec<SharedEvent>,
    /// Whether there was nothing more.
    pub is_whole: bool,
}

impl EventPage {
    pub(in crate::store) fn put(&mut self, want: &Want, event: Event) {
        if event.seq == want.cursor {
            self.anchor = Some(Anchor::of(&event));
        } else {
            self.events.push(event.into());
        }
    }

    /// Whether more would have come, had there been more.
    pub(in crate::store) fn has_room(&self, room: Room) -> bool {
        let bytes: usize = self.events.iter().map(|event| event.data.len()).sum();
        (self.events.len() as i64) < room.rows && (bytes as i64) < room.bytes
    }
}
