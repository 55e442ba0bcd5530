//! Reads of the log: the events after a cursor, a page at a time.
//!
//! Refuses a page without the identity of the event at its cursor: a reader that continues after an event must find the
//! same event there (I4).

use tokio::time::Instant;
use uuid::Uuid;

pub use crate::store::records::page::{Anchor, LogPage};
use crate::{
    event::{Event, Kind, SharedEvent},
    id::TurnId,
    store::{
        error::StoreError,
        handle::Store,
        live::{recent_events::Snapshot, subscriptions::Subscription},
        records::{
            page::{Room, Want},
            word::Stored,
        },
        upkeep::partitions::ends,
    },
    word::Open,
};

/// Bytes of data in a page that a reader queries by itself.
const PAGE_BYTES: i64 = 1024 * 1024;
/// What is read of each of many logs together.
const BEGINNING: Room = Room { rows: 64, bytes: 64 * 1024 };

impl Store {
    /// Events of a turn after `cursor` (-1: all), in order: at most `limit`, and about 1 MiB of data, but at least one
    /// if there are any. An empty answer is the end of the log.
    pub async fn read_after(
        &self,
        turn: TurnId,
        cursor: i32,
        limit: i64,
    ) -> Result<Vec<SharedEvent>, StoreError> {
        Ok(self.read_on(turn, cursor, limit).await?.events)
    }

    /// As [`Store::read_after`], with the identity of the event at the cursor, in one snapshot.
    pub async fn read_on(&self, turn: TurnId, cursor: i32, limit: i64) -> Result<LogPage, StoreError> {
        let room = Room { rows: limit, bytes: PAGE_BYTES };
        let mut pages = self.read_many(&[Want { turn, cursor }], room).await?;
        pages.pop().unwrap_or_else(|| Ok(LogPage::default()))
    }

    /// As [`Store::read_on`], from the cache that all readers of the turn in this process share, or batched with the
    /// reads of other turns. `is_behind`: the reader has much to catch up on, and queries by itself.
    pub async fn read_shared(
        &self,
        interest: &Subscription,
        cursor: i32,
        limit: i64,
        is_behind: bool,
    ) -> Result<LogPage, StoreError> {
        let (turn, recent, is_alone) = (interest.turn(), interest.recent(), interest.is_alone());
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        let known = || recent.answer(interest.due(), cursor, most, is_alone);
        if let Some(page) = known() {
            return Ok(page);
        }
        let read = || async {
            match is_behind {
                true => self.read_on(turn, cursor, limit).await,
                false => self.read_gathered(turn, cursor, limit).await,
            }
        };
        // A reader that replays older events must not delay the others.
        if !is_alone && recent.is_beyond(cursor) {
            return read().await;
        }
        let _reading = recent.reading.lock().await;
        if let Some(page) = known() {
            return Ok(page);
        }
        let began = Instant::now();
        let page = read().await?;
        let mut look = Snapshot { began, cursor, page };
        let page = if is_alone { look.hand_over(usize::MAX) } else { look.page.clone() };
        recent.keep(look);
        Ok(page)
    }

    /// The event at the cursor and up to `limit` events after it, in a batch with other reads if the rest of the log
    /// fits.
    async fn read_gathered(&self, turn: TurnId, cursor: i32, limit: i64) -> Result<LogPage, StoreError> {
        if let Some(page) = self.read_batch().ask(Want { turn, cursor }, limit).await
            && page.as_ref().map_or(true, |page| page.is_whole)
        {
            return page;
        }
        self.read_on(turn, cursor, limit).await
    }

    /// The first events of each of these logs, in order: 64 events or 64 KiB each.
    pub async fn read_beginnings(
        &self,
        turns: &[TurnId],
    ) -> Result<Vec<Result<Vec<SharedEvent>, StoreError>>, StoreError> {
        let wants: Vec<Want> = turns.iter().map(|&turn| Want { turn, cursor: -1 }).collect();
        let pages = self.read_many(&wants, BEGINNING).await?;
        Ok(pages.into_iter().map(|page| page.map(|page| page.events)).collect())
    }

    /// One page for each want, in order, in one snapshot. A log that cannot be read fails only its own page.
    pub(in crate::store) async fn read_many(
        &self,
        wants: &[Want],
        room: Room,
    ) -> Result<Vec<Result<LogPage, StoreError>>, StoreError> {
        let turns: Vec<Uuid> = wants.iter().map(|want| want.turn.0).collect();
        let cursors: Vec<i32> = wants.iter().map(|want| want.cursor).collect();
        let (first, last) = ends(&turns);
        let query = sqlx::query!(
            r#"
            select w.place as "place!", e.seq, e.kind as "kind: Stored<Open<Kind>>", e.attempt, e.data as "data!", e.at
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
        );
        let rows = self.fetch_all("read_after", query).await?;
        let mut pages: Vec<Result<LogPage, StoreError>> =
            wants.iter().map(|_| Ok(LogPage::default())).collect();
        for row in rows {
            let at = usize::try_from(row.place - 1).unwrap_or(usize::MAX);
            let (Some(want), Some(slot)) = (wants.get(at), pages.get_mut(at)) else { continue };
            let Ok(page) = slot else { continue };
            match row.kind.0.known() {
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
