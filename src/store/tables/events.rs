//! Writes at the end of the log: append and finish, for many turns at once.
//!
//! Keeps I3, I4 and I5. An append locks the in-flight row under its epoch, and proves by the event at `base` that it
//! continues what the writer saw committed. An identical repeat is harmless. The fence also names the replica: after a
//! failover that lost commits an epoch may be assigned twice.

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use crate::store::records::word::TurnClock;
use crate::{
    event::{Event, Kind, NewEvent, SharedEvent},
    id::TurnId,
    store::{
        error::StoreError,
        handle::Store,
        records::{
            page::{Anchor, LogPage},
            word::Stored,
        },
        upkeep::partitions::ends,
    },
    turn::LastWord,
};

/// The fence of a write: a turn, and the epoch that it was claimed with.
pub type Lease = (TurnId, i32);

/// Events to append to one turn.
#[derive(Debug, Clone)]
pub struct Append {
    /// The turn.
    pub turn: TurnId,
    /// The caller's epoch.
    pub epoch: i32,
    /// The `seq` before the first of the events.
    pub base: i32,
    /// The events, in order.
    pub events: Vec<NewEvent>,
    /// The clock that runs after the events: progress or answer.
    pub clock: TurnClock,
    /// Milliseconds until that clock lapses.
    pub budget_ms: i64,
}

/// A last word, from the turn's holder.
#[derive(Debug, Clone)]
pub struct Finish {
    /// The turn.
    pub turn: TurnId,
    /// The caller's epoch.
    pub epoch: i32,
    /// The `seq` before the first event of `said`, or before the last word.
    pub base: i32,
    /// Events before the last word that are not in the log yet, in order.
    pub said: Vec<NewEvent>,
    /// The last word.
    pub word: LastWord,
}

/// A write that is committed.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Landed {
    /// The write's fence.
    pub(in crate::store) lease: Lease,
    /// The identity of the event at `base`.
    base: Anchor,
    /// The time of the written events; `None` if an earlier attempt may have written some of them.
    at: Option<DateTime<Utc>>,
}

impl Landed {
    /// The page after `base` that a reader would find now, up to `newest`. `None` if the caller cannot know: the reader
    /// has to query.
    pub(in crate::store) fn page(
        &self,
        base: i32,
        newest: i32,
        events: impl Iterator<Item = NewEvent>,
    ) -> Option<LogPage> {
        let (at, (turn_id, attempt)) = (self.at?, self.lease);
        let event =
            |(seq, NewEvent { kind, data }): (i32, _)| Event { turn_id, seq, kind, attempt, data, at };
        let events: Vec<SharedEvent> = (base + 1..).zip(events).map(event).map(SharedEvent::from).collect();
        // A last word is appended after whatever is there.
        let is_all = events.last().is_some_and(|last| last.seq == newest);
        is_all.then_some(LogPage { anchor: Some(self.base), events, is_whole: true })
    }
}

/// Last words that are committed.
#[derive(Debug)]
pub(in crate::store) struct Finished {
    /// The fence and `seq` of each last word.
    pub(in crate::store) words: Vec<(Lease, i32)>,
    /// The last words that this statement wrote.
    pub(in crate::store) landed: Vec<Landed>,
    /// The first turn that is claimable now, after one of these turns has ended.
    pub(in crate::store) next: Option<TurnId>,
}

impl Store {
    /// Appends for many turns in one statement. The caller has lost every turn that is missing from the answer.
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
                           o_base_attempt as "base_attempt!", o_base_kind as "base_kind!: Stored<Kind>"
                      from lastword.lw_append_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                    "#,
                    &columns.turns,
                    &columns.epochs,
                    &columns.bases,
                    &columns.clocks as &[Stored<TurnClock>],
                    &columns.budgets,
                    self.replica().0,
                    first,
                    last,
                    &columns.said.turns,
                    &columns.said.epochs,
                    &columns.said.places,
                    &columns.said.kinds as &[Stored<Kind>],
                    &columns.said.data,
                )
                .fetch_all(c)
            })
            .await?;
        let landed = rows.into_iter().map(|row| {
            let base = Anchor { at: row.base_at, attempt: row.base_attempt, kind: row.base_kind.0 };
            Landed { lease: (TurnId(row.turn), row.epoch), base, at: row.at }
        });
        Ok(landed.collect())
    }

    /// Writes the last words of many turns, with the events before each.
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
                           o_base_kind as "base_kind!: Stored<Kind>"
                      from lastword.lw_finish_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                    "#,
                    &turns,
                    &epochs,
                    &bases,
                    &kinds as &[Stored<Kind>],
                    &data,
                    self.replica().0,
                    first,
                    last,
                    &said.turns,
                    &said.epochs,
                    &said.places,
                    &said.kinds as &[Stored<Kind>],
                    &said.data,
                )
                .fetch_all(c)
            })
            .await?;
        let next = rows.iter().find_map(|row| row.next).map(TurnId);
        let words = rows.iter().map(|row| ((TurnId(row.turn), row.epoch), row.seq)).collect();
        let landed = rows.into_iter().map(|row| {
            let base = Anchor { at: row.base_at, attempt: row.base_attempt, kind: row.base_kind.0 };
            Landed { lease: (TurnId(row.turn), row.epoch), base, at: row.at }
        });
        Ok(Finished { words, landed: landed.collect(), next })
    }

    /// Those of these last words that are in the log as the caller's own, to resolve a finish whose commit was unknown.
    pub(in crate::store) async fn finished(
        &self,
        finishes: &[Finish],
    ) -> Result<Vec<(Lease, i32)>, StoreError> {
        let (turns, epochs, _, kinds, data) = finish_columns(finishes);
        let query = sqlx::query!(
            r#"
            select e.turn_id as "turn!", e.attempt as "epoch!", e.seq as "seq!"
              from unnest($1::uuid[], $2::int[], $3::text[], $4::text[]) w (turn_id, epoch, kind, data)
              join lastword.turns t on t.id = w.turn_id
              join lastword.turn_events e on e.turn_id = t.id and e.seq = t.last_seq
               and e.attempt = w.epoch and e.kind = w.kind and e.data = w.data
            "#,
            &turns,
            &epochs,
            &kinds as &[Stored<Kind>],
            &data,
        );
        let rows = self.fetch_all("finished", query).await?;
        Ok(rows.into_iter().map(|row| ((TurnId(row.turn), row.epoch), row.seq)).collect())
    }
}

#[derive(Default)]
struct AppendColumns {
    turns: Vec<Uuid>,
    epochs: Vec<i32>,
    bases: Vec<i32>,
    clocks: Vec<Stored<TurnClock>>,
    budgets: Vec<i64>,
    said: SaidColumns,
}

impl AppendColumns {
    fn push(&mut self, append: &Append) {
        self.turns.push(append.turn.0);
        self.epochs.push(append.epoch);
        self.bases.push(append.base);
        self.clocks.push(Stored(append.clock));
        self.budgets.push(append.budget_ms);
        self.said.push((append.turn, append.epoch), &append.events);
    }
}

/// Events of many turns, one column each. `places` count from 1 after the turn's base.
#[derive(Default)]
struct SaidColumns {
    turns: Vec<Uuid>,
    epochs: Vec<i32>,
    places: Vec<i32>,
    kinds: Vec<Stored<Kind>>,
    data: Vec<String>,
}

impl SaidColumns {
    fn push(&mut self, (turn, epoch): Lease, events: &[NewEvent]) {
        for (place, event) in (1..).zip(events) {
            self.turns.push(turn.0);
            self.epochs.push(epoch);
            self.places.push(place);
            self.kinds.push(Stored(event.kind));
            self.data.push(event.data.clone());
        }
    }
}

type FinishColumns = (Vec<Uuid>, Vec<i32>, Vec<i32>, Vec<Stored<Kind>>, Vec<String>);

fn finish_columns(finishes: &[Finish]) -> FinishColumns {
    let mut columns = FinishColumns::default();
    for finish in finishes {
        columns.0.push(finish.turn.0);
        columns.1.push(finish.epoch);
        columns.2.push(finish.base);
        columns.3.push(Stored(finish.word.kind));
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
