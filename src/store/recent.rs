//! The newest read of a turn's log in this process, for everybody who follows that turn here.
//!
//! Owns what one read brought, for as long as the turn has readers. A thousand readers of one turn are
//! woken by one ring and cost one read. Keeps I4: what is handed on came from the log, and a read counts
//! for a reader only if it began after whatever woke that reader.

use tokio::{sync::Mutex, time::Instant};

use super::{Store, StoreError, events::Anchor, wake::Interest};
use crate::event::Event;

/// What a read brings: what stands at the cursor, and what comes after it.
type Answer = (Option<Anchor>, Vec<Event>);

/// Above this a read may have left something out: half of what one may bring.
const WHOLE_BYTES_MAX: usize = 512 * 1024;

/// The newest read of one turn's log.
#[derive(Debug, Default)]
pub struct Recent {
    read: Mutex<Option<Read>>,
}

#[derive(Debug)]
struct Read {
    began: Instant,
    cursor: i32,
    anchor: Option<Anchor>,
    events: Vec<Event>,
    /// Whether there was nothing more.
    is_whole: bool,
}

impl Read {
    /// What this read says to one who asks from `cursor` on; `None` where it cannot tell.
    fn answer(&self, cursor: i32, limit: usize) -> Option<Answer> {
        let skipped = usize::try_from(cursor.checked_sub(self.cursor)?).ok()?;
        let anchor = match skipped.checked_sub(1) {
            None => self.anchor,
            Some(last_skipped) => Some(Anchor::of(self.events.get(last_skipped)?)),
        };
        let rest = self.events.get(skipped..)?;
        if rest.is_empty() && !self.is_whole {
            return None;
        }
        Some((anchor, rest.iter().take(limit).cloned().collect()))
    }
}

impl Store {
    /// As [`Store::read_on`], shared with whoever else follows the turn in this process.
    pub async fn read_shared(
        &self,
        interest: &Interest,
        cursor: i32,
        limit: i64,
    ) -> Result<Answer, StoreError> {
        let turn = interest.turn();
        let Some(recent) = interest.recent() else {
            return self.read_on(turn, cursor, limit).await;
        };
        // Held while reading: who comes meanwhile wants the same.
        let mut last = recent.read.lock().await;
        let rows_max = usize::try_from(limit).unwrap_or(usize::MAX);
        match &*last {
            // One who replays what others have behind them must not keep them waiting.
            Some(read) if read.cursor > cursor => {
                drop(last);
                return self.read_on(turn, cursor, limit).await;
            }
            Some(read) if read.began >= interest.due() => {
                if let Some(answer) = read.answer(cursor, rows_max) {
                    return Ok(answer);
                }
            }
            _ => {}
        }
        let began = Instant::now();
        let (anchor, events) = self.read_on(turn, cursor, limit).await?;
        let bytes: usize = events.iter().map(|event| event.data.len()).sum();
        let is_whole = events.len() < rows_max && bytes < WHOLE_BYTES_MAX;
        *last = Some(Read { began, cursor, anchor, events: events.clone(), is_whole });
        Ok((anchor, events))
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::{event::Kind, id::TurnId};

    fn event(seq: i32) -> Event {
        let (turn_id, at) = (TurnId(Uuid::nil()), DateTime::UNIX_EPOCH);
        Event { turn_id, seq, kind: Kind::Delta, attempt: 1, data: "{}".to_owned(), at }
    }

    fn read(cursor: i32, seqs: std::ops::Range<i32>, is_whole: bool) -> Read {
        let anchor = (cursor >= 0).then(|| Anchor::of(&event(cursor)));
        Read { began: Instant::now(), cursor, anchor, events: seqs.map(event).collect(), is_whole }
    }

    fn seqs(answer: Option<Answer>) -> Option<Vec<i32>> {
        answer.map(|(_, events)| events.iter().map(|event| event.seq).collect())
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
        let cut_off = read(4, 5..8, false);
        assert_eq!(seqs(cut_off.answer(7, 10)), None, "there may be more");
        assert_eq!(seqs(read(-1, 0..0, true).answer(0, 10)), None);
    }

    #[test]
    fn what_stands_at_the_cursor_is_part_of_the_answer() {
        let read = read(4, 5..8, true);
        for cursor in 4..8 {
            assert_eq!(
                read.answer(cursor, 10).and_then(|(anchor, _)| anchor),
                Some(Anchor::of(&event(cursor)))
            );
        }
    }
}
