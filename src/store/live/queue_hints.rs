//! Hints about the queue: the first turn that may be queued, and whether the queue can be full.
//!
//! Owns hints, never facts. While a transaction is open elsewhere, vacuum cannot remove claimed turns from the queue's
//! index, and a scan from its front reads all of them. So dispatch starts at the turn that a ring named, or at the last
//! known front. Each replica names the turns that it makes claimable, and surveys the whole queue every few seconds
//! (`Store::outlook`) to find any that nobody named (I13).

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{ring::first, rings::Rings};
use crate::id::{ConversationId, TurnId};

/// All replicas together may fill 1/8 of the free queue before they count the queue again.
const UNCOUNTED_PART: u64 = 8;
/// An id before every turn.
pub const FRONT: TurnId = TurnId(Uuid::nil());
/// An id after every turn.
pub const END: TurnId = TurnId(Uuid::max());

/// Hints for dispatch and for acceptance.
#[derive(Debug)]
pub struct QueueHints {
    rings: Arc<Rings>,
    look: Notify,
    hints: Mutex<Hints>,
}

#[derive(Debug)]
struct Hints {
    /// As far as this replica knows, nothing is queued before this turn.
    front: TurnId,
    /// The first turn that was named since dispatch last asked, and since the last survey began.
    named: Option<TurnId>,
    named_since_survey: Option<TurnId>,
    /// How many turns were queued at the last count, and how many this replica has queued since.
    counted: u64,
    queued_since: u64,
    /// Why dispatch was woken.
    call: Call,
}

/// Why dispatch was woken.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// To look at the queue: a new turn, a free slot, or an idle worker.
    pub is_for_queue: bool,
    /// To look for turns reserved for the workers of these conversations.
    pub kept: HashSet<ConversationId>,
}

impl QueueHints {
    pub(in crate::store) fn new(rings: Arc<Rings>) -> Self {
        QueueHints {
            rings,
            look: Notify::new(),
            hints: Mutex::new(Hints {
                front: FRONT,
                named: None,
                named_since_survey: None,
                counted: u64::MAX,
                queued_since: 0,
                call: Call::default(),
            }),
        }
    }

    /// Notes that this turn is claimable, or may be soon.
    pub(super) fn note_grown(&self, turn: TurnId) {
        {
            let mut hints = self.hints.lock();
            hints.front = hints.front.min(turn);
            hints.named = first(hints.named, Some(turn));
            hints.named_since_survey = first(hints.named_since_survey, Some(turn));
            hints.call.is_for_queue = true;
        }
        self.look.notify_one();
    }

    /// Has dispatch look from the front: a turn that was queued before, or was skipped, has become claimable.
    pub fn look_from_front(&self) {
        {
            let mut hints = self.hints.lock();
            hints.named = first(hints.named, Some(hints.front));
            hints.call.is_for_queue = true;
        }
        self.look.notify_one();
    }

    /// Notes that turns of these conversations are reserved for their own workers.
    pub(super) fn note_kept(&self, conversations: impl IntoIterator<Item = Uuid>) {
        let mut conversations = conversations.into_iter().map(ConversationId).peekable();
        if conversations.peek().is_some() {
            self.hints.lock().call.kept.extend(conversations);
            self.look.notify_one();
        }
    }

    /// Notes that rings may have been missed: the next look starts at the front.
    pub(super) fn forget(&self) {
        self.note_grown(FRONT);
    }

    /// Names a newly queued turn: wakes the local dispatch and rings the others.
    pub fn grew(&self, turn: TurnId) {
        self.note_grown(turn);
        self.rings.add(|ring| ring.first_queued = first(ring.first_queued, Some(turn.0)));
    }

    /// Some turn that was queued before may now be claimable: wakes the local dispatch and rings the others.
    pub fn moved(&self) {
        self.look_from_front();
        self.rings.add(|ring| ring.queue = true);
    }

    /// Wakes only the local dispatch, which resumes where it stopped: a slot is free, or a worker is idle.
    pub fn look(&self) {
        self.hints.lock().call.is_for_queue = true;
        self.look.notify_one();
    }

    /// Names a turn that is reserved for its conversation's worker. Only the replica that this worker calls has to look
    /// for the turn; nobody has to look at the queue.
    pub fn kept(&self, turn: TurnId, conversation: ConversationId) {
        self.note_kept([conversation.0]);
        self.rings.add(|ring| ring.kept.extend([(turn.0, conversation.0)]));
    }

    /// Waits until there may be something to claim.
    pub async fn called(&self) {
        self.look.notified().await;
    }

    /// Why dispatch was woken since the last call.
    pub fn take_call(&self) -> Call {
        std::mem::take(&mut self.hints.lock().call)
    }

    /// The first turn named since the last call; `None`: nothing new.
    pub fn take_named(&self) -> Option<TurnId> {
        self.hints.lock().named.take()
    }

    /// The first turn that the queue may hold. Without a working doorbell the whole queue has to be searched.
    pub fn front(&self) -> TurnId {
        if self.rings.round_trip().is_none() { FRONT } else { self.hints.lock().front }
    }

    /// Begins a survey of the whole queue. Only one may run at a time. `now`: an id minted just before.
    pub(in crate::store) fn survey(&self, now: TurnId) -> Survey<'_> {
        self.hints.lock().named_since_survey = None;
        Survey { queue: self, now }
    }

    /// The turn to start counting the queue from, before `count` more turns are queued. `None` if they fit into a queue
    /// of `most` without a count, whatever the other replicas do: together they take at most 1/8 of what was free.
    pub(in crate::store) fn count_from(&self, count: usize, most: u64) -> Option<TurnId> {
        let hints = self.hints.lock();
        let replicas = self.rings.replicas() as u64;
        let uncounted = (hints.queued_since + count as u64).saturating_mul(replicas * UNCOUNTED_PART);
        (hints.counted.saturating_add(uncounted) > most).then_some(hints.front)
    }

    /// Notes the result of a count, if there was one, and that `count` turns were queued.
    pub(in crate::store) fn queued(&self, counted: Option<u64>, count: usize) {
        let mut hints = self.hints.lock();
        if let Some(counted) = counted {
            (hints.counted, hints.queued_since) = (counted, 0);
        }
        hints.queued_since += count as u64;
    }
}

/// A survey of the whole queue in progress.
#[derive(Debug)]
pub(in crate::store) struct Survey<'a> {
    queue: &'a QueueHints,
    /// Minted when the survey began.
    now: TurnId,
}

impl Survey<'_> {
    /// Ends the survey: the first queued turn. Wakes dispatch if that turn is before the known front, so nobody named
    /// it.
    pub(in crate::store) fn found(self, found: Option<TurnId>) {
        let mut hints = self.queue.hints.lock();
        let is_news = found.is_some_and(|turn| turn < hints.front);
        let front = found.unwrap_or(self.now);
        hints.front = hints.named_since_survey.map_or(front, |named| named.min(front));
        drop(hints);
        if is_news {
            self.queue.look_from_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Doorbell;

    fn turn(n: u128) -> TurnId {
        TurnId(Uuid::from_u128(n))
    }

    fn hints() -> QueueHints {
        QueueHints::new(Arc::new(Rings::new(Doorbell::Off, Uuid::nil())))
    }

    fn front(queue: &QueueHints) -> TurnId {
        queue.hints.lock().front
    }

    #[test]
    fn what_is_named_is_told_once_from_the_first_on() {
        let queue = hints();
        assert_eq!(queue.take_named(), None);
        queue.grew(turn(7));
        queue.grew(turn(5));
        queue.grew(turn(6));
        assert_eq!([queue.take_named(), queue.take_named()], [Some(turn(5)), None]);
    }

    #[test]
    fn a_turn_that_is_kept_for_its_worker_is_no_reason_to_look_at_the_queue() {
        let (queue, conversation) = (hints(), ConversationId(Uuid::from_u128(1)));
        queue.kept(turn(7), conversation);
        assert_eq!(queue.take_call(), Call { is_for_queue: false, kept: [conversation].into() });
        assert_eq!((queue.take_named(), front(&queue), queue.take_call()), (None, FRONT, Call::default()));
        queue.look();
        assert!(queue.take_call().is_for_queue);
        queue.moved();
        assert!(queue.take_call().is_for_queue);
    }

    #[test]
    fn nothing_is_queued_before_the_first_that_was_found_or_named_since() {
        let queue = hints();
        queue.survey(turn(100)).found(Some(turn(40)));
        assert_eq!(front(&queue), turn(40));
        queue.moved();
        assert_eq!(queue.take_named(), Some(turn(40)), "which one is unknown");
        queue.survey(turn(110)).found(None);
        assert_eq!(front(&queue), turn(110));
        queue.grew(turn(90));
        assert_eq!(front(&queue), turn(90), "by a slow clock");
        let survey = queue.survey(turn(120));
        queue.grew(turn(80));
        survey.found(None);
        assert_eq!(front(&queue), turn(80), "it may have been too late for that look");
        queue.forget();
        assert_eq!(front(&queue), FRONT);
    }

    #[test]
    fn what_nobody_has_named_is_found_by_a_survey() {
        let queue = hints();
        queue.survey(turn(100)).found(None);
        assert_eq!(queue.take_named(), None);
        queue.survey(turn(110)).found(Some(turn(99)));
        assert_eq!(queue.take_named(), Some(turn(99)));
        queue.survey(turn(120)).found(Some(turn(99)));
        assert_eq!(queue.take_named(), None, "it waits, and that is known");
    }

    #[test]
    fn the_queue_is_counted_where_it_may_be_full() {
        let queue = hints();
        assert_eq!(queue.count_from(1, 1_000_000), Some(FRONT), "how many there are is unknown");
        queue.queued(Some(200), 1);
        // 800 were free, and two replicas take 50 each before the next count.
        queue.rings.set_peers(1);
        assert_eq!(queue.count_from(49, 1000), None);
        assert_eq!(queue.count_from(50, 1000), Some(FRONT));
        queue.queued(None, 40);
        assert_eq!(queue.count_from(10, 1000), Some(FRONT));
        queue.queued(Some(0), 0);
        assert_eq!(queue.count_from(1, 15), Some(FRONT), "a small queue is counted each time");
    }
}
