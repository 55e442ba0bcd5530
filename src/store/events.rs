//! The log: append and finish, many turns at once, and reading after a cursor.
//!
//! Keeps I3, I4 and I5: an append locks the in-flight row under its epoch, and proves by the event
//! at `base` that it continues what the writer saw committed. An identical repeat is harmless. The fence
//! names the replica too: in a database that went back in time, an epoch may be given out twice.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError};
use crate::{
    event::{Event, Kind, NewEvent},
    id::TurnId,
    turn::LastWord,
};

/// What tells one event from another that came to stand in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    pub(super) at: DateTime<Utc>,
    pub(super) attempt: i32,
    pub(super) kind: Kind,
}

impl Anchor {
    /// Of an event.
    pub fn of(event: &Event) -> Anchor {
        Anchor { at: event.at, attempt: event.attempt, kind: event.kind }
    }
}

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

/// The data in one page of a reader that reads by itself, in bytes.
const PAGE_BYTES: i64 = 1024 * 1024;

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

/// Last words that are in the log.
#[derive(Debug)]
pub(super) struct Finished {
    /// Turn, epoch, `seq` of each.
    pub(super) words: Vec<(TurnId, i32, i32)>,
    /// Whether a turn that waited behind one of them can be claimed now.
    pub(super) has_next: bool,
}

impl Store {
    /// Appends for many turns in one statement. A turn and epoch missing from the answer is lost to
    /// the caller.
    pub(super) async fn append(&self, appends: &[Append]) -> Result<Vec<Lease>, StoreError> {
        let mut columns = AppendColumns::default();
        for append in appends {
            columns.push(append);
        }
        let mut lease = self.lease().await?;
        let rows = lease
            .run("append", |c| {
                sqlx::query!(
                    r#"
                    with want as materialized (
                      select * from unnest($1::uuid[], $2::int[], $3::int[], $4::text[], $5::bigint[])
                        w (turn_id, epoch, base, clock, budget_ms)),
                    -- The fence. A lock, not an update: updating the row at each append would cost
                    -- its throughput whenever a long transaction holds vacuum back.
                    held as materialized (
                      select i.turn_id, w.base, w.epoch, w.clock, i.cap_at,
                             clock_timestamp() + w.budget_ms * interval '1 ms' as until,
                             -- The deadline in the row lags by at most this.
                             least(3000, w.budget_ms / 10) * interval '1 ms' as slack,
                             i.deadline, i.clock as old_clock
                        from inflight i join want w using (turn_id)
                       where i.epoch = w.epoch and i.replica = $11 and i.phase = 'running'
                         and exists (select from turn_events p where p.turn_id = w.turn_id and p.seq = w.base)
                       order by i.turn_id
                         for no key update of i),
                    moved as (
                      update inflight i
                         set deadline = least(i.cap_at, h.until), clock = h.clock
                        from held h
                       where i.turn_id = h.turn_id
                         and (h.clock <> h.old_clock
                           or (h.deadline < h.until - h.slack and h.deadline < h.cap_at))),
                    e as (
                      insert into turn_events (turn_id, seq, kind, attempt, data)
                      select h.turn_id, h.base + v.i, v.kind, h.epoch, v.data
                        from unnest($6::uuid[], $7::int[], $8::int[], $9::text[], $10::text[])
                          v (turn_id, epoch, i, kind, data)
                        join held h using (turn_id, epoch)
                      on conflict (turn_id, seq) do nothing)
                    select turn_id as "turn!", epoch as "epoch!" from held
                    "#,
                    &columns.turns,
                    &columns.epochs,
                    &columns.bases,
                    &columns.clocks,
                    &columns.budgets,
                    &columns.said.turns,
                    &columns.said.epochs,
                    &columns.said.places,
                    &columns.said.kinds,
                    &columns.said.data,
                    self.replica().0,
                )
                .fetch_all(c)
            })
            .await?;
        Ok(rows.into_iter().map(|row| (TurnId(row.turn), row.epoch)).collect())
    }

    /// Last words of many turns, with what was said right before each.
    pub(super) async fn finish(&self, finishes: &[Finish]) -> Result<Finished, StoreError> {
        let (turns, epochs, bases, kinds, data) = finish_columns(finishes);
        let mut said = SaidColumns::default();
        for finish in finishes {
            said.push((finish.turn, finish.epoch), &finish.said);
        }
        let mut lease = self.lease().await?;
        let rows = lease
            .run("finish", |c| {
                sqlx::query!(
                    r#"
                    select o_turn as "turn!", o_epoch as "epoch!", o_seq as "seq!", o_has_next as "has_next!"
                      from lw_finish_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
                    "#,
                    &turns,
                    &epochs,
                    &bases,
                    &kinds,
                    &data,
                    self.replica().0,
                    &said.turns,
                    &said.epochs,
                    &said.places,
                    &said.kinds,
                    &said.data,
                )
                .fetch_all(c)
            })
            .await?;
        let has_next = rows.iter().any(|row| row.has_next);
        let words = rows.into_iter().map(|row| (TurnId(row.turn), row.epoch, row.seq)).collect();
        Ok(Finished { words, has_next })
    }

    /// Of these last words, those that stand in the log as the caller's own: the look after a
    /// finish whose commit was unknown.
    pub(super) async fn finished(&self, finishes: &[Finish]) -> Result<Vec<(TurnId, i32, i32)>, StoreError> {
        let (turns, epochs, _, kinds, data) = finish_columns(finishes);
        let mut lease = self.lease().await?;
        let rows = lease
            .run("finished", |c| {
                sqlx::query!(
                    r#"
                    select e.turn_id as "turn!", e.attempt as "epoch!", e.seq as "seq!"
                      from unnest($1::uuid[], $2::int[], $3::text[], $4::text[]) w (turn_id, epoch, kind, data)
                      join turns t on t.id = w.turn_id
                      join turn_events e on e.turn_id = t.id and e.seq = t.last_seq
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
        Ok(rows.into_iter().map(|row| (TurnId(row.turn), row.epoch, row.seq)).collect())
    }

    /// Events of a turn after `cursor` (-1 for all), in order: at most `limit` of them, and about
    /// 1 MiB of data, but never none where there are some. An empty answer is the end of the log.
    pub async fn read_after(&self, turn: TurnId, cursor: i32, limit: i64) -> Result<Vec<Event>, StoreError> {
        Ok(self.read_on(turn, cursor, limit).await?.events)
    }

    /// The same, and what stands at the cursor, in one snapshot: whoever goes on after an event must
    /// find that very event in its place.
    pub async fn read_on(&self, turn: TurnId, cursor: i32, limit: i64) -> Result<Page, StoreError> {
        let room = Room { rows: limit, bytes: PAGE_BYTES };
        let mut pages = self.read_many(&[Want { turn, cursor }], room).await?;
        pages.pop().unwrap_or_else(|| Ok(Page::default()))
    }

    /// A page for each of them, in their order, in one snapshot. A log that cannot be read is the
    /// error of its own reader.
    pub(super) async fn read_many(
        &self,
        wants: &[Want],
        room: Room,
    ) -> Result<Vec<Result<Page, StoreError>>, StoreError> {
        let turns: Vec<Uuid> = wants.iter().map(|want| want.turn.0).collect();
        let cursors: Vec<i32> = wants.iter().map(|want| want.cursor).collect();
        let mut lease = self.lease().await?;
        let rows = lease
            .run("read_after", |c| {
                sqlx::query!(
                    r#"
                    select w.place as "place!", e.seq, e.kind, e.attempt, e.data as "data!", e.at
                      from unnest($1::uuid[], $2::int[]) with ordinality w (turn_id, cursor, place)
                     cross join lateral (
                       select *, sum(octet_length(data)) over (order by seq) - octet_length(data) as bytes_before
                         from (
                           select seq, kind, attempt, case when seq = w.cursor then '' else data end as data, at
                             from turn_events
                            where turn_id = w.turn_id and seq >= w.cursor
                            order by seq
                            limit $3::bigint + (w.cursor >= 0)::int) page) e
                     where e.bytes_before < $4
                     order by w.place, e.seq
                    "#,
                    &turns,
                    &cursors,
                    room.rows,
                    room.bytes,
                )
                .fetch_all(c)
            })
            .await?;
        let mut pages: Vec<Result<Page, StoreError>> = wants.iter().map(|_| Ok(Page::default())).collect();
        for row in rows {
            let at = usize::try_from(row.place - 1).unwrap_or(usize::MAX);
            let (Some(want), Some(slot)) = (wants.get(at), pages.get_mut(at)) else { continue };
            let Ok(page) = slot else { continue };
            match row.kind.parse() {
                Ok(kind) => {
                    let (seq, attempt, data, at) = (row.seq, row.attempt, row.data, row.at);
                    page.put(want, Event { turn_id: want.turn, seq, kind, attempt, data, at });
                }
                Err(why) => *slot = Err(StoreError::unreadable("read_after", why)),
            }
        }
        for page in pages.iter_mut().flatten() {
            page.is_whole = page.has_room(room);
        }
        Ok(pages)
    }
}

/// What a reader wants: a turn's events after a cursor (-1: from the start).
#[derive(Debug, Clone, Copy)]
pub(super) struct Want {
    pub(super) turn: TurnId,
    pub(super) cursor: i32,
}

/// What one page may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) rows: i64,
    /// Of data; the event that goes beyond is left out, unless it is the first.
    pub(super) bytes: i64,
}

/// What one look at a log brings.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// What stands at the cursor.
    pub anchor: Option<Anchor>,
    /// What comes after it.
    pub events: Vec<Event>,
    /// Whether there was nothing more.
    pub is_whole: bool,
}

impl Page {
    fn put(&mut self, want: &Want, event: Event) {
        if event.seq == want.cursor {
            self.anchor = Some(Anchor::of(&event));
        } else {
            self.events.push(event);
        }
    }

    /// Whether more would have come, had there been more.
    fn has_room(&self, room: Room) -> bool {
        let bytes: usize = self.events.iter().map(|event| event.data.len()).sum();
        (self.events.len() as i64) < room.rows && (bytes as i64) < room.bytes
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
