//! Who follows whole conversations: in this process, and on which other replicas.
//!
//! Owns that interest. A conversation's next turn is told to whoever waits for it here, and rung for only while some
//! other replica has said that it follows conversations: a turn that nobody waits for costs no ring. As with the rest of
//! the doorbell none of it is needed: the poller looks for everybody who waits (I13).
//!
//! Order for a waiter, always: register interest, then look, then wait.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use super::{ring::Ring, rings::Rings, subscriptions::Cursor};
use crate::id::{ConversationId, TurnId};

/// For so long it counts that another replica said that it follows conversations: it repeats it with each probe.
const SAID_FOR: Duration = Duration::from_secs(15);
/// So soon it is not said again, whoever begins to wait meanwhile.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Who follows conversations.
#[derive(Debug)]
pub struct ConversationSubscriptions {
    rings: Arc<Rings>,
    here: Mutex<HashMap<ConversationId, Followed>>,
    /// By the mark of its rings, when each other replica said last that it follows some.
    elsewhere: Mutex<HashMap<Uuid, Instant>>,
    /// When this one said so last.
    said: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Followed {
    /// Where each reader stands while it waits.
    stands: Vec<Arc<Mutex<Option<ConversationCursor>>>>,
    news: watch::Sender<()>,
}

/// Where a reader of a conversation stands that waits for its next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversationCursor {
    /// It has all turns up to this ordinal.
    pub after: i64,
    /// The turn that it was told last, and that turn's last event.
    pub told: Option<(TurnId, Cursor)>,
    /// How often the beat's connection had broken when that was last seen to stand there.
    pub breaks: u64,
}

impl ConversationSubscriptions {
    pub(in crate::store) fn new(rings: Arc<Rings>) -> Self {
        let (here, elsewhere, said) = (Mutex::default(), Mutex::default(), Mutex::default());
        ConversationSubscriptions { rings, here, elsewhere, said }
    }

    /// Registers interest in a conversation's next turns.
    pub fn subscribe(self: &Arc<Self>, conversation: ConversationId) -> ConversationSubscription {
        let mut here = lock(&self.here);
        let followed = here
            .entry(conversation)
            .or_insert_with(|| Followed { stands: Vec::with_capacity(1), news: watch::Sender::new(()) });
        let stand = Arc::default();
        followed.stands.push(Arc::clone(&stand));
        ConversationSubscription { news: followed.news.subscribe(), stand, conversation, all: self.clone() }
    }

    /// Turns of these conversations were accepted: wakes who follows them here, and rings where others follow any.
    pub(in crate::store) fn grew(&self, conversations: &[ConversationId]) {
        self.rung(conversations.iter().copied());
        if !conversations.is_empty() && self.are_followed_elsewhere() {
            self.rings.add(|ring| ring.turns.extend(conversations.iter().map(|conversation| conversation.0)));
        }
    }

    /// Where readers stand that wait now; each stand once.
    pub(in crate::store) fn waiting(&self) -> Vec<(ConversationId, ConversationCursor)> {
        let mut waiting = Vec::new();
        for (&conversation, followed) in lock(&self.here).iter() {
            let first = waiting.len();
            for stand in followed.stands.iter().filter_map(|stand| *lock(stand)) {
                if !waiting[first..].contains(&(conversation, stand)) {
                    waiting.push((conversation, stand));
                }
            }
        }
        waiting
    }

    /// What those who wait there were told last was seen to stand there still, at so many breaks.
    pub(in crate::store) fn compared(
        &self,
        conversation: ConversationId,
        compared: ConversationCursor,
        breaks: u64,
    ) {
        let here = lock(&self.here);
        for stand in here.get(&conversation).iter().flat_map(|followed| &followed.stands) {
            if let Some(stand) = lock(stand).as_mut().filter(|stand| **stand == compared) {
                stand.breaks = breaks;
            }
        }
    }

    /// Wakes those who follow these.
    fn rung(&self, conversations: impl IntoIterator<Item = ConversationId>) {
        let here = lock(&self.here);
        for followed in conversations.into_iter().filter_map(|conversation| here.get(&conversation)) {
            followed.news.send_replace(());
        }
    }

    /// The same, and waits for none of them: one that does not come to look is not to be looked for again.
    pub(in crate::store) fn call(&self, conversation: ConversationId) {
        if let Some(followed) = lock(&self.here).get(&conversation) {
            followed.news.send_replace(());
            followed.stands.iter().for_each(|stand| *lock(stand) = None);
        }
    }

    /// Hears what another replica rang.
    pub(in crate::store) fn hear(&self, sender: Uuid, ring: &Ring) {
        self.heard(sender, ring.follows, ring.probe.is_some());
        self.rung(ring.turns.iter().map(|&conversation| ConversationId(conversation)));
    }

    /// Notes what another replica said of itself; a probe says it either way.
    fn heard(&self, sender: Uuid, follows: bool, is_probe: bool) {
        let mut elsewhere = lock(&self.elsewhere);
        if follows {
            elsewhere.insert(sender, Instant::now());
        } else if is_probe {
            elsewhere.remove(&sender);
        }
        elsewhere.retain(|_, said| said.elapsed() < SAID_FOR);
    }

    fn are_followed_elsewhere(&self) -> bool {
        lock(&self.elsewhere).values().any(|said| said.elapsed() < SAID_FOR)
    }

    /// What a probe says of this replica.
    pub(in crate::store) fn say(&self) -> bool {
        let follows = !lock(&self.here).is_empty();
        *lock(&self.said) = follows.then(Instant::now);
        follows
    }

    /// Whether it is time to say that somebody waits here.
    fn is_news(&self) -> bool {
        let mut said = lock(&self.said);
        let is_news = said.is_none_or(|said| said.elapsed() > SAY_EVERY);
        if is_news {
            *said = Some(Instant::now());
        }
        is_news
    }
}

/// One reader's interest in one conversation; ends when dropped.
#[derive(Debug)]
pub struct ConversationSubscription {
    news: watch::Receiver<()>,
    stand: Arc<Mutex<Option<ConversationCursor>>>,
    conversation: ConversationId,
    all: Arc<ConversationSubscriptions>,
}

impl ConversationSubscription {
    /// Marks everything so far as seen. Call it before each look.
    pub fn look(&mut self) {
        self.news.borrow_and_update();
    }

    /// Until something happened since the last [`ConversationSubscription::look`], or `at_most` has passed. The poller looks
    /// meanwhile.
    pub async fn news(&mut self, at_most: Duration, stand: ConversationCursor) {
        *lock(&self.stand) = Some(stand);
        if self.all.is_news() {
            self.all.rings.add(|ring| ring.follows = true);
        }
        // The sender lives as long as this interest does.
        let _ = tokio::time::timeout(at_most, self.news.changed()).await;
        *lock(&self.stand) = None;
    }
}

impl Drop for ConversationSubscription {
    fn drop(&mut self) {
        let mut here = lock(&self.all.here);
        if let Some(followed) = here.get_mut(&self.conversation) {
            followed.stands.retain(|stand| !Arc::ptr_eq(stand, &self.stand));
            if followed.stands.is_empty() {
                here.remove(&self.conversation);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        lock(&all.elsewhere).insert(other, long_ago);
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
