//! The newest read of a turn's log in this process, for everybody who follows that turn here.
//!
//! Owns what one read brought, for as long as the turn has readers. A thousand readers of one turn are
//! woken by one ring and cost one read. Keeps I4: what is handed on came from the log, and a read counts
//! for a reader only if it began after whatever woke that reader.

use tokio::{sync::Mutex, time::Instant};

use super::{
    Store, StoreError,
    events::{Anchor, Page},
    wake::Interest,
};

/// The newest read of one turn's log.
#[derive(Debug, Default)]
pub struct Recent {
    read: Mutex<Option<Read>>,
}

#[derive(Debug)]
struct Read {
    began: Instant,
    cursor: i32,
    page: Page,
}

impl Read {
    /// What this read says to one who asks from `cursor` on; `None` where it cannot tell.
    fn answer(&self, cursor: i32, limit: usize) -> Option<Page> {
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
        Some(Page { anchor, events, is_whole: self.page.is_whole && rest.len() <= limit })
    }
}

impl Store {
    /// As [`Store::read_on`], shared with whoever else follows the turn in this process, and read together
    /// with what others want. Who has much to catch up on reads by itself.
    pub async fn read_shared(
        &self,
        interest: &Interest,
        cursor: i32,
        limit: i64,
        is_behind: bool,
    ) -> Result<Page, StoreError> {
        let turn = interest.turn();
        let read = || async {
            match is_behind {
                true => self.read_on(turn, cursor, limit).await,
                false => self.read_gathered(turn, cursor, limit).await,
            }
        };
        let Some(recent) = interest.recent() else {
            return read().await;
        };
        // Held while reading: who comes meanwhile wants the same.
        let mut last = recent.read.lock().await;
        match &*last {
            // One who replays what others have behind them must not keep them waiting.
            Some(newest) if newest.cursor > cursor => {
                drop(last);
                return read().await;
            }
            Some(newest) if newest.began >= interest.due() => {
                if let Some(page) = newest.answer(cursor, usize::try_from(limit).unwrap_or(usize::MAX)) {
                    return Ok(page);
                }
            }
            _ => {}
        }
        let began = Instant::now();
        let page = read().await?;
        *last = Some(Read { began, cursor, page: page.clone() });
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::{
        event::{Event, Kind},
        id::TurnId,
    };

    fn event(seq: i32) -> Event {
        let (turn_id, at) = (TurnId(Uuid::nil()), DateTime::UNIX_EPOCH);
        Event { turn_id, seq, kind: Kind::Delta, attempt: 1, data: "{}".to_owned(), at }
    }

    fn read(cursor: i32, seqs: std::ops::Range<i32>, is_whole: bool) -> Read {
        let anchor = (cursor >= 0).then(|| Anchor::of(&event(cursor)));
        let page = Page { anchor, events: seqs.map(event).collect(), is_whole };
        Read { began: Instant::now(), cursor, page }
    }

    fn seqs(answer: Option<Page>) -> Option<Vec<i32>> {
        answer.map(|page| page.events.iter().map(|event| event.seq).collect())
    }

    #[test]
    fn one_read_answers_whoever_is_within_it() {
        let read = read(4, 5..8, true);
        assert_eq!(seqs(read.answer(4, 10)), Some(vec![5, 6, 7]));
        assert_eq!(seqs(read.answer(6, 10)), Some(vec![7]));
        assert_eq!(seqs(read.answer(7, 10)), Some(vec![]));
        assert_eq!(seqs(read.answer(4, 2)), Some(vec![5, 6]));
    }

    #[test]
    fn a_read_says_nothing_of_what_it_did_not_see() {
        let whole = read(4, 5..8, true);
        assert_eq!(seqs(whole.answer(3, 10)), None, "before its cursor");
        assert_eq!(seqs(whole.answer(9, 10)), None, "beyond its last event");
        assert!(!whole.answer(4, 2).unwrap().is_whole, "it left some out");
        let cut_off = read(4, 5..8, false);
        assert_eq!(seqs(cut_off.answer(7, 10)), None, "there may be more");
        assert_eq!(seqs(read(-1, 0..0, true).answer(0, 10)), None);
    }

    #[test]
    fn what_stands_at_the_cursor_is_part_of_the_answer() {
        let read = read(4, 5..8, true);
        for cursor in 4..8 {
            assert_eq!(
                read.answer(cursor, 10).and_then(|page| page.anchor),
                Some(Anchor::of(&event(cursor)))
            );
        }
    }
}
