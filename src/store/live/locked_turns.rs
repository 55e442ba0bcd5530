//! Turns that claims skip, since another session has locked their row or their conversation: the newest sighting.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use crate::id::TurnId;

/// Interval between two looks while any turn is locked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The locked turns as seen last.
#[derive(Debug, Default)]
pub(in crate::store) struct LockedTurns(Mutex<Option<Sighting>>);

#[derive(Debug)]
struct Sighting {
    first: TurnId,
    conversations: Vec<Uuid>,
    at: Instant,
}

impl LockedTurns {
    /// The first locked turn, and when to look again; `None` if none is locked.
    pub(in crate::store) fn first(&self) -> Option<(TurnId, Instant)> {
        self.0.lock().as_ref().map(|seen| (seen.first, seen.at + LOOK_EVERY))
    }

    /// Conversations of the locked turns.
    pub(in crate::store) fn conversations(&self) -> Vec<Uuid> {
        self.0.lock().as_ref().map(|seen| seen.conversations.clone()).unwrap_or_default()
    }

    /// Stores the result of a look: turn and conversation ids, in queue order.
    pub(in crate::store) fn saw(&self, heads: &[(Uuid, Uuid)]) {
        let seen = heads.first().map(|(first, _)| Sighting {
            first: TurnId(*first),
            conversations: heads.iter().map(|(_, conversation)| *conversation).collect(),
            at: Instant::now(),
        });
        *self.0.lock() = seen;
    }
}
