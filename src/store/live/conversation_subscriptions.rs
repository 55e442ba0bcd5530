//! Subscriptions to whole conversations: in this process, and which other replicas have any.
//!
//! A new turn of a conversation wakes local subscribers. Other replicas are notified only while one of them has
//! announced subscribers, so a turn without followers costs no NOTIFY. All of this is optional: the poller checks for
//! every waiting subscriber (I13).
//!
//! A waiter always subscribes first, then reads, then waits.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use super::{ring::Ring, rings::Rings, subscriptions::Cursor};
use crate::id::{ConversationId, TurnId};

/// How long another replica's announcement is valid. Each replica repeats the announcement with its probe, every 5 s.
const SAID_FOR: Duration = Duration::from_secs(15);
/// Least time between two announcements of this replica outside its probes.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Subscriptions to conversations.
#[derive(Debug)]
pub struct ConversationSubscriptions {
    rings: Arc<Rings>,
    here: Mutex<HashMap<ConversationId, Followed>>,
    /// When each other replica last announced subscribers, by its sender id.
    elsewhere: Mutex<HashMap<Uuid, Instant>>,
    /// When this replica last announced subscribers.
    said: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Followed {
    /// The cursor of each subscriber while it waits.
    stands: Vec<Arc<Mutex<Option<ConversationCursor>>>>,
    news: watch::Sender<()>,
}

/// The position of a subscriber that waits for a conversation's next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversationCursor {
    /// The subscriber has all turns up to this ordinal.
    pub after: i64,
    /// The turn that was sent last, and the position of that turn's last event.
    pub told: Option<(TurnId, Cursor)>,
    /// [`crate::store::Store::breaks`] when the last event was last seen unchanged in the log.
    pub breaks: u64,
}

impl ConversationSubscriptions {
    pub(in crate::store) fn new(rings: Arc<Rings>) -> Self {
        let (here, elsewhere, said) = (Mutex::default(), Mutex::default(), Mutex::default());
        ConversationSubscriptions { rings, here, elsewhere, said }
    }

    /// Subscribes to a conversation's next turns.
    pub fn subscribe(self: &Arc<Self>, conversation: ConversationId) -> ConversationSubscription {
        let mut here = self.here.lock();
        let followed = here
            .entry(conversation)
            .or_insert_with(|| Followed { stands: Vec::with_capacity(1), news: watch::Sender::new(()) });
        let stand = Arc::default();
        followed.stands.push(Arc::clone(&stand));
        ConversationSubscription { news: followed.news.subscribe(), stand, conversation, all: self.clone() }
    }

    /// Notes new turns in these conversations: wakes local subscribers, and rings if another replica has subscribers.
    pub(in crate::store) fn grew(&self, conversations: &[ConversationId]) {
        self.rung(conversations.iter().copied());
        if !conversations.is_empty() && self.are_followed_elsewhere() {
            self.rings.add(|ring| ring.turns.extend(conversations.iter().map(|conversation| conversation.0)));
        }
    }

    /// The cursors of all waiting subscribers, without duplicates.
    pub(in crate::store) fn waiting(&self) -> Vec<(ConversationId, ConversationCursor)> {
        let mut waiting = Vec::new();
        for (&conversation, followed) in self.here.lock().iter() {
            let first = waiting.len();
            for stand in followed.stands.iter().filter_map(|stand| *stand.lock()) {
                if !waiting[first..].contains(&(conversation, stand)) {
                    waiting.push((conversation, stand));
                }
            }
        }
        waiting
    }

    /// Notes that the last event of these subscribers was found unchanged in the log, after `breaks` breaks.
    pub(in crate::store) fn compared(
        &self,
        conversation: ConversationId,
        compared: ConversationCursor,
        breaks: u64,
    ) {
        let here = self.here.lock();
        for stand in here.get(&conversation).iter().flat_map(|followed| &followed.stands) {
            if let Some(stand) = stand.lock().as_mut().filter(|stand| **stand == compared) {
                stand.breaks = breaks;
            }
        }
    }

    /// Wakes the local subscribers of these conversations.
    fn rung(&self, conversations: impl IntoIterator<Item = ConversationId>) {
        let here = self.here.lock();
        for followed in conversations.into_iter().filter_map(|conversation| here.get(&conversation)) {
            followed.news.send_replace(());
        }
    }

    /// Wakes a conversation's subscribers and clears their cursors, so that the poller does not check again for a slow
    /// one.
    pub(in crate::store) fn call(&self, conversation: ConversationId) {
        if let Some(followed) = self.here.lock().get(&conversation) {
            followed.news.send_replace(());
            followed.stands.iter().for_each(|stand| *stand.lock() = None);
        }
    }

    /// Handles a ring of another replica.
    pub(in crate::store) fn hear(&self, sender: Uuid, ring: &Ring) {
        self.heard(sender, ring.follows, ring.probe.is_some());
        self.rung(ring.turns.iter().map(|&conversation| ConversationId(conversation)));
    }

    /// Notes whether another replica has subscribers. A probe without the flag withdraws the announcement.
    fn heard(&self, sender: Uuid, follows: bool, is_probe: bool) {
        let mut elsewhere = self.elsewhere.lock();
        if follows {
            elsewhere.insert(sender, Instant::now());
        } else if is_probe {
            elsewhere.remove(&sender);
        }
        elsewhere.retain(|_, said| said.elapsed() < SAID_FOR);
    }

    fn are_followed_elsewhere(&self) -> bool {
        self.elsewhere.lock().values().any(|said| said.elapsed() < SAID_FOR)
    }

    /// Whether this replica has subscribers; its probe carries the answer.
    pub(in crate::store) fn say(&self) -> bool {
        let follows = !self.here.lock().is_empty();
        *self.said.lock() = follows.then(Instant::now);
        follows
    }

    /// Whether an announcement is due.
    fn is_news(&self) -> bool {
        let mut said = self.said.lock();
        let is_news = said.is_none_or(|said| said.elapsed() > SAY_EVERY);
        if is_news {
            *said = Some(Instant::now());
        }
        is_news
    }
}

/// One subscription to one conversation; ends when dropped.
#[derive(Debug)]
pub struct ConversationSubscription {
    news: watch::Receiver<()>,
    stand: Arc<Mutex<Option<ConversationCursor>>>,
    conversation: ConversationId,
    all: Arc<ConversationSubscriptions>,
}

impl ConversationSubscription {
    /// Marks all notifications so far as seen. Call before each read.
    pub fn look(&mut self) {
        self.news.borrow_and_update();
    }

    /// Waits for a notification since the last [`ConversationSubscription::look`], or for `at_most`. The poller checks
    /// `stand` meanwhile.
    pub async fn news(&mut self, at_most: Duration, stand: ConversationCursor) {
        *self.stand.lock() = Some(stand);
        if self.all.is_news() {
            self.all.rings.add(|ring| ring.follows = true);
        }
        // The sender lives as long as this subscription.
        let _ = tokio::time::timeout(at_most, self.news.changed()).await;
        *self.stand.lock() = None;
    }
}

impl Drop for ConversationSubscription {
    fn drop(&mut self) {
        let mut here = self.all.here.lock();
        if let Some(followed) = here.get_mut(&self.conversation) {
            followed.stands.retain(|stand| !Arc::ptr_eq(stand, &self.stand));
            if followed.stands.is_empty() {
                here.remove(&self.conversation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Doorbell;

    const CONVERSATION: ConversationId = ConversationId(Uuid::from_u128(7));

    fn subscriptions(doorbell: Doorbell) -> Arc<ConversationSubscriptions> {
        Arc::new(ConversationSubscriptions::new(Arc::new(Rings::new(doorbell, Uuid::from_u128(1)))))
    }

    #[tokio::test]
    async fn a_turn_is_rung_for_only_while_somebody_elsewhere_follows_conversations() {
        let (all, other) = (subscriptions(Doorbell::On), Uuid::from_u128(2));
        let rings = || {
            all.grew(&[CONVERSATION]);
            all.rings.take().turns.contains(&CONVERSATION.0)
        };
        assert!(!rings(), "nobody said anything");
        all.heard(other, true, false);
        assert!(rings());
        all.heard(other, false, false);
        assert!(rings(), "a ring that says nothing of it changes nothing");
        all.heard(other, false, true);
        assert!(!rings(), "its probe does not say so any more");
        let long_ago = Instant::now().checked_sub(SAID_FOR).unwrap();
        all.elsewhere.lock().insert(other, long_ago);
        assert!(!rings(), "it was not heard of again");
    }

    #[tokio::test]
    async fn who_begins_to_wait_says_so_once_and_its_probes_repeat_it() {
        let all = subscriptions(Doorbell::On);
        assert!(!all.say());
        let mut interest = all.subscribe(CONVERSATION);
        let stand = ConversationCursor { after: 3, told: None, breaks: 0 };
        for is_said in [true, false] {
            interest.news(Duration::from_millis(1), stand).await;
            assert_eq!(all.rings.take().follows, is_said);
        }
        assert!(all.say());
        drop(interest);
        assert!(!all.say() && all.waiting().is_empty());
    }

    #[tokio::test]
    async fn what_happens_between_a_look_and_the_wait_ends_the_wait() {
        let all = subscriptions(Doorbell::Off);
        let mut interest = all.subscribe(CONVERSATION);
        interest.look();
        all.grew(&[CONVERSATION]);
        let (hour, stand) =
            (Duration::from_secs(3600), ConversationCursor { after: 0, told: None, breaks: 0 });
        interest.news(hour, stand).await;
        interest.look();
        let seen = tokio::time::timeout(Duration::from_millis(20), interest.news(hour, stand)).await;
        assert!(seen.is_err(), "it was seen");
    }
}
