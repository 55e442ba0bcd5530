//! The log's end: append and finish, many turns at once.
//!
//! Keeps I3, I4 and I5: an append locks the in-flight row under its epoch, and proves by the event
//! at `base` that it continues what the writer saw committed. An identical repeat is harmless. The fence
//! names the replica too: in a database that went back in time, an epoch may be given out twice.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    event::{Event, Kind, NewEvent, SharedEvent},
    id::TurnId,
    store::{
        error::StoreError,
        handle::Store,
        records::page::{Anchor, EventPage},
        upkeep::partitions::ends,
    },
    turn::LastWord,
};

/// Which clock a running turn's deadline stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnClock {
    /// The worker owes an event.
    Progress,
    /// The user owes an answer.
    Answer,
}

impl TurnClock {
    const fn as_str(self) -> &'static str {
        match self {
            TurnClock::Progress => "progress",
            TurnClock::Answer => "answer",
        }
    }
}

/// What a writer holds: a turn under the epoch that it was claimed with.
pub type Lease = (TurnId, i32);

/// Events to be appended to one turn.
#[derive(Debug, Clone)]
pub struct Append {
    /// Whose log.
    pub turn: TurnId,
    /// The caller's epoch.
    pub epoch: i32,
    /// The `seq` that the first of them follows.
    pub base: i32,
    /// In order.
    pub events: Vec<NewEvent>,
    /// Which clock runs after them.
    pub clock: TurnClock,
    /// How long that clock runs, in milliseconds.
    pub budget_ms: i64,
}

/// A last word to be written by the turn's holder.
#[derive(Debug, Clone)]
pub struct Finish {
    /// Which turn.
    pub turn: TurnId,
    /// The caller's epoch.
    pub epoch: i32,
    /// The `seq` that what was said, or the last word, follows.
    pub base: i32,
    /// What was said before it and is not in the log yet, in order.
    pub said: Vec<NewEvent>,
    /// The last word.
    pub word: LastWord,
}

/// A write that is in the log.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Landed {
    /// Whose.
    pub(in crate::store) lease: Lease,
    /// What stands where the write goes on.
    base: Anchor,
    /// The moment of its events; `None` where not all of them may be this statement's.
    at: Option<DateTime<Utc>>,
}

impl Landed {
    /// What a reader would find now after `base`, which these events go on from up to `newest`; `None` where
    /// that is to be read.
    pub(in crate::store) fn page(
        &self,
        base: i32,
        newest: i32,
        events: impl Iterator<Item = NewEvent>,
    ) -> Option<EventPage> {
        let (at, (turn_id, attempt)) = (self.at?, self.lease);
        let event =
            |(seq, NewEvent { kind, data }): (i32, _)| Event { turn_id, seq, kind, attempt, data, at };
        let events: Vec<SharedEvent> = (base + 1..).zip(events).map(event).map(SharedEvent::from).collect();
        // A last word goes behind whatever stands there.
        let is_all = events.last().is_some_and(|last| last.seq == newest);
        is_all.then_some(EventPage { anchor: Some(self.base), events, is_whole: true })
    }
}

/// Last words that are in the log.
#[derive(Debug)]
pub(in crate::store) struct Finished {
    /// Whose, and the `seq` of each.
    pub(in crate::store) words: Vec<(Lease, i32)>,
    /// Those that this statement wrote.
    pub(in crate::store) landed: Vec<Landed>,
    /// The first turn that waited behind one of them and can be claimed now.
    pub(in crate::store) next: Option<TurnId>,
}

impl Store {
    /// Appends for many turns in one statement. A turn and epoch missing from the answer is lost to
    /// the caller.
    pub(in crate::store) async fn append(&self, appends: &[Append]) -> Result<Vec<Landed>, StoreError> {
        let mut columns = AppendColumns::default();
        for append in appends {
            columns.push(append);
        }
        let (first, last) = ends(&columns.turns);
        let mut lease = self.lease().await?;
        let rows = lease
            .run("append", |c| {
                sqlx::query!(
                    r#"
                    select o_turn as "turn!", o_epoch as "epoch!", o_at as at, o_base_at as "base_at!",
                           o_base_attempt as "base_attempt!", o_base_kind as "base_kind!"
                      from lastword.lw_append_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                    "#,
                    &columns.turns,
                    &columns.epochs,
                    &columns.bases,
                    &columns.clocks,
                    &columns.budgets,
                    self.replica().0,
                    first,
                    last,
                    &columns.said.turns,
                    &columns.said.epochs,
                    &columns.said.places,
                    &columns.said.kinds,
                    &columns.said.data,
                )
                .fetch_all(c)
            })
            .await?;
        let landed = rows.into_iter().map(|row| {
            let kind =
                Kind::of_stored(&row.base_kind).map_err(|why| StoreError::unreadable("append", why))?;
            let base = Anchor { at: row.base_at, attempt: row.base_attempt, kind };
            Ok(Landed { lease: (TurnId(row.turn), row.epoch), base, at: row.at })
        });
        landed.collect()
    }

    /// Last words of many turns, with what was said right before each.
    pub(in crate::store) async fn finish(&self, finishes: &[Finish]) -> Result<Finished, StoreError> {
        let (turns, epochs, bases, kinds, data) = finish_columns(finishes);
        let mut said = SaidColumns::default();
        for finish in finishes {
            said.push((finish.turn, finish.epoch), &finish.said);
        }
        let (first, last) = ends(&turns);
        let mut lease = self.lease().await?;
        let rows = lease
            .run("finish", |c| {
                sqlx::query!(
                    r#"
                    select o_turn as "turn!", o_epoch as "epoch!", o_seq as "seq!", o_next as next, o_at as at,
                           o_base_at as "base_at!", o_base_attempt as "base_attempt!",
                           o_base_kind as "base_kind!"
                      from lastword.lw_finish_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                    "#,
                    &turns,
                    &epochs,
                    &bases,
                    &kinds,
                    &data,
                    self.replica().0,
                    first,
                    last,
                    &said.turns,
                    &said.epochs,
                    &said.places,
                    &said.kinds,
                    &said.data,
                )
                .fetch_all(c)
            })
            .await?;
        let next = rows.iter().find_map(|row| row.next).map(TurnId);
        let words = rows.iter().map(|row| ((TurnId(row.turn), row.epoch), row.seq)).collect();
        let landed = rows.into_iter().map(|row| {
            let kind =
                Kind::of_stored(&row.base_kind).map_err(|why| StoreError::unreadable("finish", why))?;
            let base = Anchor { at: row.base_at, attempt: row.base_attempt, kind };
            Ok(Landed { lease: (TurnId(row.turn), row.epoch), base, at: row.at })
        });
        Ok(Finished { words, landed: landed.collect::<Result<_, _>>()?, next })
    }

    /// Of these last words, those that stand in the log as the caller's own: the look after a
    /// finish whose commit was unknown.
    pub(in crate::store) async fn finished(
        &self,
        finishes: &[Finish],
    ) -> Result<Vec<(Lease, i32)>, StoreError> {
        let (turns, epochs, _, kinds, data) = finish_columns(finishes);
        let mut lease = self.lease().await?;
        let rows = lease
            .run("finished", |c| {
                sqlx::query!(
                    r#"
                    select e.turn_id as "turn!", e.attempt as "epoch!", e.seq as "seq!"
                      from unnest($1::uuid[], $2::int[], $3::text[], $4::text[]) w (turn_id, epoch, kind, data)
                      join lastword.turns t on t.id = w.turn_id
                      join lastword.turn_events e on e.turn_id = t.id and e.seq = t.last_seq
                       and e.attempt = w.epoch and e.kind = w.kind and e.data = w.data
                    "#,
                    &turns,
                    &epochs,
                    &kinds,
                    &data,
                )
                .fetch_all(c)
            })
            .await?;
        Ok(rows.into_iter().map(|row| ((TurnId(row.turn), row.epoch), row.seq)).collect())
    }
}

#[derive(Default)]
struct AppendColumns {
    turns: Vec<Uuid>,
    epochs: Vec<i32>,
    bases: Vec<i32>,
    clocks: Vec<String>,
    budgets: Vec<i64>,
    said: SaidColumns,
}

impl AppendColumns {
    fn push(&mut self, append: &Append) {
        self.turns.push(append.turn.0);
        self.epochs.push(append.epoch);
        self.bases.push(append.base);
        self.clocks.push(append.clock.as_str().to_owned());
        self.budgets.push(append.budget_ms);
        self.said.push((append.turn, append.epoch), &append.events);
    }
}

/// Events of many turns, a column each; `places` count from 1 after each turn's base.
#[derive(Default)]
struct SaidColumns {
    turns: Vec<Uuid>,
    epochs: Vec<i32>,
    places: Vec<i32>,
    kinds: Vec<String>,
    data: Vec<String>,
}

impl SaidColumns {
    fn push(&mut self, (turn, epoch): Lease, events: &[NewEvent]) {
        for (place, event) in (1..).zip(events) {
            self.turns.push(turn.0);
            self.epochs.push(epoch);
            self.places.push(place);
            self.kinds.push(event.kind.as_str().to_owned());
            self.data.push(event.data.clone());
        }
    }
}

type FinishColumns = (Vec<Uuid>, Vec<i32>, Vec<i32>, Vec<String>, Vec<String>);

fn finish_columns(finishes: &[Finish]) -> FinishColumns {
    let mut columns = FinishColumns::default();
    for finish in finishes {
        columns.0.push(finish.turn.0);
        columns.1.push(finish.epoch);
        columns.2.push(finish.base);
        columns.3.push(finish.word.kind.as_str().to_owned());
        columns.4.push(finish.word.data.clone());
    }
    columns
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_write_is_shown_only_where_it_is_known_to_stand() {
        let at = DateTime::UNIX_EPOCH;
        let base = Anchor { at, attempt: 1, kind: Kind::Started };
        let write = Landed { lease: (TurnId(Uuid::nil()), 1), base, at: Some(at) };
        let said = || [NewEvent { kind: Kind::Completed, data: "{}".to_owned() }].into_iter();
        assert_eq!(write.page(1, 2, said()).unwrap().events[0].seq, 2);
        assert!(write.page(1, 3, said()).is_none(), "something stands before it");
        assert!(
            Landed { at: None, ..write }.page(1, 2, said()).is_none(),
            "an earlier try may have written it"
        );
    }
}
