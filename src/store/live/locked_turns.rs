//! Turns that claims pass over, since somebody else has locked their row or their conversation, as they were seen last.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use crate::id::TurnId;

/// From one look to the next, while there is something to pass over.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What claims pass over.
#[derive(Debug, Default)]
pub(in crate::store) struct LockedTurns(Mutex<Option<Sighting>>);

#[derive(Debug)]
struct Sighting {
    first: TurnId,
    conversations: Vec<Uuid>,
    at: Instant,
}

impl LockedTurns {
    /// The first of them, and when to look at it again.
    pub(in crate::store) fn first(&self) -> Option<(TurnId, Instant)> {
        self.newest().as_ref().map(|seen| (seen.first, seen.at + LOOK_EVERY))
    }

    /// Their conversations.
    pub(in crate::store) fn conversations(&self) -> Vec<Uuid> {
        self.newest().as_ref().map(|seen| seen.conversations.clone()).unwrap_or_default()
    }

    /// Notes what a look has found: turns with their conversations, in the order of the queue.
    pub(in crate::store) fn saw(&self, heads: &[(Uuid, Uuid)]) {
        let seen = heads.first().map(|(first, _)| Sighting {
            first: TurnId(*first),
            conversations: heads.iter().map(|(_, conversation)| *conversation).collect(),
            at: Instant::now(),
        });
        *self.newest() = seen;
    }

    fn newest(&self) -> MutexGuard<'_, Option<Sighting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
