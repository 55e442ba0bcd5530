//! A cache of one turn's newest events, shared by all readers of the turn in this process.
//!
//! Owns the newest snapshot, from a read or from a commit of this process, for as long as the turn has readers. A ring
//! that wakes a thousand readers of one turn costs one query; if the writer is in this process, none. Keeps I4: cached
//! events are committed, and a snapshot serves a reader only if it began after the notification that woke the reader.
//! Refuses to collect more than 64 KiB or 1024 events while no reader waits.

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::store::records::page::{Anchor, LogPage};

/// Bytes of data, and events, kept while no reader waits. The rendered JSON of events that were already read comes on
/// top.
const GATHERED_BYTES_MAX: usize = 64 * 1024;
const GATHERED_MAX: usize = 1024;

/// The cached events of one turn.
#[derive(Debug, Default)]
pub struct RecentEvents {
    newest: Mutex<Option<Snapshot>>,
    /// Held while reading, so that other readers wait for the same result.
    pub(in crate::store) reading: tokio::sync::Mutex<()>,
}

/// One view of the log: the events after `cursor`, as of `began`.
#[derive(Debug)]
pub(in crate::store) struct Snapshot {
    pub(in crate::store) began: Instant,
    pub(in crate::store) cursor: i32,
    pub(in crate::store) page: LogPage,
}

impl Snapshot {
    /// The page after `cursor`; `None` if this snapshot does not cover it.
    fn answer(&self, cursor: i32, limit: usize) -> Option<LogPage> {
        let skipped = usize::try_from(cursor.checked_sub(self.cursor)?).ok()?;
        let anchor = match skipped.checked_sub(1) {
            None => self.page.anchor,
            Some(last_skipped) => Some(Anchor::of(self.page.events.get(last_skipped)?)),
        };
        let rest = self.page.events.get(skipped..)?;
        if rest.is_empty() && !self.page.is_whole {
            return None;
        }
        let events = rest.iter().take(limit).cloned().collect();
        Some(LogPage { anchor, events, is_whole: self.page.is_whole && rest.len() <= limit })
    }

    /// As [`Snapshot::answer`] for the only reader: moves the events out instead of copying them.
    fn take(&mut self, cursor: i32, limit: usize) -> Option<LogPage> {
        let skipped = usize::try_from(cursor.checked_sub(self.cursor)?).ok()?;
        if skipped > self.page.events.len() {
            return None;
        }
        self.hand_over(skipped);
        let is_answer = self.page.is_whole || !self.page.events.is_empty();
        is_answer.then(|| self.hand_over(limit))
    }

    /// Moves out the first `limit` events.
    pub(in crate::store) fn hand_over(&mut self, limit: usize) -> LogPage {
        let rest = self.page.events.split_off(limit.min(self.page.events.len()));
        let is_whole = self.page.is_whole && rest.is_empty();
        let first = LogPage { events: std::mem::replace(&mut self.page.events, rest), is_whole, ..self.page };
        if let Some(last) = first.events.last() {
            (self.cursor, self.page.anchor) = (last.seq, Some(Anchor::of(last)));
        }
        first
    }

    /// The newest `seq` that the snapshot covers, and that event's anchor.
    fn end(&self) -> (i32, Option<Anchor>) {
        match self.page.events.last() {
            Some(event) => (event.seq, Some(Anchor::of(event))),
            None => (self.cursor, self.page.anchor),
        }
    }

    /// Appends a later snapshot that begins at the end of this one; otherwise returns it.
    fn go_on(&mut self, later: Snapshot, is_awaited: bool) -> Result<(), Snapshot> {
        let (gathered, more) = (&self.page.events, &later.page.events);
        let bytes: usize = gathered.iter().chain(more).map(|event| event.data.len()).sum();
        let is_kept =
            is_awaited || (bytes <= GATHERED_BYTES_MAX && gathered.len() + more.len() <= GATHERED_MAX);
        if self.end() != (later.cursor, later.page.anchor) || !is_kept {
            return Err(later);
        }
        self.page.events.extend(later.page.events);
        self.page.is_whole = later.page.is_whole;
        self.began = self.began.max(later.began);
        Ok(())
    }
}

impl RecentEvents {
    /// Adds the events after `cursor` that a statement of this process committed; the statement `began` then.
    /// `is_awaited`: a reader waits for the turn.
    pub(in crate::store) fn put(&self, began: Instant, cursor: i32, page: LogPage, is_awaited: bool) {
        let mut newest = self.newest.lock();
        let look = Snapshot { began, cursor, page };
        let refused = match &mut *newest {
            Some(known) => known.go_on(look, is_awaited).err(),
            None => Some(look),
        };
        if let Some(look) = refused {
            let bytes: usize = look.page.events.iter().map(|event| event.data.len()).sum();
            *newest = (is_awaited || bytes <= GATHERED_BYTES_MAX).then_some(look);
        }
    }

    /// The page after `cursor` from a snapshot that began at `due` or later; `None` if there is none.
    pub(in crate::store) fn answer(
        &self,
        due: Instant,
        cursor: i32,
        limit: usize,
        is_alone: bool,
    ) -> Option<LogPage> {
        let mut newest = self.newest.lock();
        let known = newest.as_mut().filter(|known| known.began >= due)?;
        if is_alone { known.take(cursor, limit) } else { known.answer(cursor, limit) }
    }

    /// Whether the cache begins after this reader's cursor, so that the reader lags behind the others.
    pub(in crate::store) fn is_beyond(&self, cursor: i32) -> bool {
        self.newest.lock().as_ref().is_some_and(|known| known.cursor > cursor)
    }

    /// Stores a read, unless a newer snapshot is cached.
    pub(in crate::store) fn keep(&self, look: Snapshot) {
        let mut newest = self.newest.lock();
        if newest.as_ref().is_none_or(|known| known.began < look.began) {
            *newest = Some(look);
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::{
        event::{Event, Kind, SharedEvent},
        id::TurnId,
    };

    fn event(seq: i32) -> SharedEvent {
        let (turn_id, at) = (TurnId(Uuid::nil()), DateTime::UNIX_EPOCH);
        Event { turn_id, seq, kind: Kind::Delta, attempt: 1, data: "{}".to_owned(), at }.into()
    }

    fn look(cursor: i32, seqs: std::ops::Range<i32>, is_whole: bool) -> Snapshot {
        let anchor = (cursor >= 0).then(|| Anchor::of(&event(cursor)));
        let page = LogPage { anchor, events: seqs.map(event).collect(), is_whole };
        Snapshot { began: Instant::now(), cursor, page }
    }

    fn seqs(answer: Option<LogPage>) -> Option<Vec<i32>> {
        answer.map(|page| page.events.iter().map(|event| event.seq).collect())
    }

    #[test]
    fn one_look_answers_whoever_is_within_it() {
        let known = look(4, 5..8, true);
        assert_eq!(seqs(known.answer(4, 10)), Some(vec![5, 6, 7]));
        assert_eq!(seqs(known.answer(6, 10)), Some(vec![7]));
        assert_eq!(seqs(known.answer(7, 10)), Some(vec![]));
        assert_eq!(seqs(known.answer(4, 2)), Some(vec![5, 6]));
    }

    #[test]
    fn a_look_says_nothing_of_what_it_did_not_see() {
        let whole = look(4, 5..8, true);
        assert_eq!(seqs(whole.answer(3, 10)), None, "before its cursor");
        assert_eq!(seqs(whole.answer(9, 10)), None, "beyond its last event");
        assert!(!whole.answer(4, 2).unwrap().is_whole, "it left some out");
        let cut_off = look(4, 5..8, false);
        assert_eq!(seqs(cut_off.answer(7, 10)), None, "there may be more");
        assert_eq!(seqs(look(-1, 0..0, true).answer(0, 10)), None);
    }

    #[test]
    fn what_stands_at_the_cursor_is_part_of_the_answer() {
        let known = look(4, 5..8, true);
        for cursor in 4..8 {
            assert_eq!(
                known.answer(cursor, 10).and_then(|page| page.anchor),
                Some(Anchor::of(&event(cursor)))
            );
        }
    }

    #[test]
    fn a_look_goes_on_where_a_commit_went_on_from_its_end() {
        let recent = RecentEvents::default();
        let (first, second) = (look(4, 5..8, true), look(7, 8..10, true));
        let (early, late) = (first.began, second.began);
        recent.put(early, 4, first.page, false);
        recent.put(late, 7, second.page, false);
        assert_eq!(seqs(recent.answer(late, 5, 10, false)), Some(vec![6, 7, 8, 9]));
        assert_eq!(
            seqs(recent.answer(late + std::time::Duration::from_nanos(1), 5, 10, false)),
            None,
            "it was woken later"
        );
        assert!(recent.is_beyond(3) && !recent.is_beyond(4));
        assert_eq!(seqs(recent.answer(late, 4, 2, true)), Some(vec![5, 6]));
        assert_eq!(seqs(recent.answer(late, 7, 10, true)), Some(vec![8, 9]));
        assert_eq!(seqs(recent.answer(late, 9, 10, true)), Some(vec![]), "its end is kept");
        assert_eq!(seqs(recent.answer(late, 4, 10, true)), None, "no more");
    }

    #[test]
    fn a_commit_after_another_event_is_no_continuation() {
        let recent = RecentEvents::default();
        recent.put(Instant::now(), 4, look(4, 5..8, true).page, false);
        let mut other = look(7, 8..10, true);
        other.page.anchor = Some(Anchor { attempt: 2, ..Anchor::of(&event(7)) });
        recent.put(other.began, 7, other.page, false);
        assert_eq!(seqs(recent.answer(other.began, 4, 10, false)), None);
        assert_eq!(recent.answer(other.began, 7, 10, false).unwrap().anchor.unwrap().attempt, 2);
    }

    #[test]
    fn what_nobody_waits_for_is_gathered_within_bounds() {
        let recent = RecentEvents::default();
        let mut big = look(0, 1..3, true);
        let data = "x".repeat(GATHERED_BYTES_MAX);
        big.page.events[0] = Event { data, ..Event::clone(&event(1)) }.into();
        recent.put(big.began, 0, big.page.clone(), false);
        assert_eq!(seqs(recent.answer(big.began, 0, 10, true)), None, "too much for nobody");
        recent.put(big.began, 0, big.page.clone(), true);
        recent.put(big.began, 2, look(2, 3..4, true).page, false);
        assert_eq!(seqs(recent.answer(big.began, 2, 10, true)), Some(vec![3]), "the newest alone");
    }
}
