//! A ring: what one replica tells the others by NOTIFY.

use std::collections::HashSet;

use uuid::Uuid;

/// What one NOTIFY says: look at these.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ring {
    /// Turns with new events, and conversations with new turns: no two of all these ids are alike.
    pub turns: HashSet<Uuid>,
    /// The sender has readers of whole conversations.
    pub follows: bool,
    /// The first turn that was queued since the last ring.
    pub first_queued: Option<Uuid>,
    /// Something that was queued before may be claimed.
    pub queue: bool,
    /// Turns that are held for the workers of their conversations, each with its conversation.
    pub kept: HashSet<(Uuid, Uuid)>,
    /// Somebody left orders for a holder.
    pub orders: bool,
    /// Somebody was judged or left: there may be something to close.
    pub closing: bool,
    /// A probe of our own, to be heard by ourselves.
    pub probe: Option<i64>,
}

impl Ring {
    pub(in crate::store) fn is_empty(&self) -> bool {
        *self == Ring::default()
    }
}
