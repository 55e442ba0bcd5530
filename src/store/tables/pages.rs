//! The log, read: what stands after a cursor, a page at a time.
//!
//! Owns what one event is told from another by ([`Anchor`]). Refuses a page without what stands at its cursor:
//! whoever goes on after an event must find that very event in its place.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    event::{Event, Kind, SharedEvent},
    id::TurnId,
    store::{Store, StoreError, upkeep::partitions::ends},
};

/// What tells one event from another that came to stand in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    pub(in crate::store) at: DateTime<Utc>,
    pub(in crate::store) attempt: i32,
    pub(in crate::store) kind: Kind,
}

impl Anchor {
    /// Of an event.
    pub fn of(event: &Event) -> Anchor {
        Anchor { at: event.at, attempt: event.attempt, kind: event.kind }
    }

    /// Whether it is a last word.
    pub fn is_terminal(&self) -> bool {
        self.kind.is_terminal()
    }
}

/// The data in one page of a reader that reads by itself, in bytes.
const PAGE_BYTES: i64 = 1024 * 1024;
/// What is read of each of many logs together.
const BEGINNING: Room = Room { rows: 64, bytes: 64 * 1024 };

impl Store {
    /// Events of a turn after `cursor` (-1 for all), in order: at most `limit` of them, and about
    /// 1 MiB of data, but never none where there are some. An empty answer is the end of the log.
    pub async fn read_after(
        &self,
        turn: TurnId,
        cursor: i32,
        limit: i64,
    ) -> Result<Vec<SharedEvent>, StoreError> {
        Ok(self.read_on(turn, cursor, limit).await?.events)
    }

    /// The same, and what stands at the cursor, in one snapshot: whoever goes on after an event must
    /// find that very event in its place.
    pub async fn read_on(&self, turn: TurnId, cursor: i32, limit: i64) -> Result<Page, StoreError> {
        let room = Room { rows: limit, bytes: PAGE_BYTES };
        let mut pages = self.read_many(&[Want { turn, cursor }], room).await?;
        pages.pop().unwrap_or_else(|| Ok(Page::default()))
    }

    /// The first events of each of these logs, in their order: all of most, and little of those that are long.
    pub async fn read_beginnings(
        &self,
        turns: &[TurnId],
    ) -> Result<Vec<Result<Vec<SharedEvent>, StoreError>>, StoreError> {
        let wants: Vec<Want> = turns.iter().map(|&turn| Want { turn, cursor: -1 }).collect();
        let pages = self.read_many(&wants, BEGINNING).await?;
        Ok(pages.into_iter().map(|page| page.map(|page| page.events)).collect())
    }

    /// A page for each of them, in their order, in one snapshot. A log that cannot be read is the
    /// error of its own reader.
    pub(in crate::store) async fn read_many(
        &self,
        wants: &[Want],
        room: Room,
    ) -> Result<Vec<Result<Page, StoreError>>, StoreError> {
        let turns: Vec<Uuid> = wants.iter().map(|want| want.turn.0).collect();
        let cursors: Vec<i32> = wants.iter().map(|want| want.cursor).collect();
        let (first, last) = ends(&turns);
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
                             from lastword.turn_events
                            where turn_id = w.turn_id and seq >= w.cursor and turn_id between $5 and $6
                            order by seq
                            limit $3::bigint + (w.cursor >= 0)::int) page) e
                     where e.bytes_before < $4
                     order by w.place, e.seq
                    "#,
                    &turns,
                    &cursors,
                    room.rows,
                    room.bytes,
                    first,
                    last,
                )
                .fetch_all(c)
            })
            .await?;
        let mut pages: Vec<Result<Page, StoreError>> = wants.iter().map(|_| Ok(Page::default())).collect();
        for row in rows {
            let at = usize::try_from(row.place - 1).unwrap_or(usize::MAX);
            let (Some(want), Some(slot)) = (wants.get(at), pages.get_mut(at)) else { continue };
            let Ok(page) = slot else { continue };
            match Kind::of_stored(&row.kind) {
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
pub(in crate::store) struct Want {
    pub(in crate::store) turn: TurnId,
    pub(in crate::store) cursor: i32,
}

/// What one page may hold.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Room {
    pub(in crate::store) rows: i64,
    /// Of data; the event that goes beyond is left out, unless it is the first.
    pub(in crate::store) bytes: i64,
}

/// What one look at a log brings.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// What stands at the cursor.
    pub anchor: Option<Anchor>,
    /// What comes after it.
    pub events: Vec<SharedEvent>,
    /// Whether there was nothing more.
    pub is_whole: bool,
}

impl Page {
    fn put(&mut self, want: &Want, event: Event) {
        if event.seq == want.cursor {
            self.anchor = Some(Anchor::of(&event));
        } else {
            self.events.push(event.into());
        }
    }

    /// Whether more would have come, had there been more.
    fn has_room(&self, room: Room) -> bool {
        let bytes: usize = self.events.iter().map(|event| event.data.len()).sum();
        (self.events.len() as i64) < room.rows && (bytes as i64) < room.bytes
    }
}
