//! A conversation's past: its turns, as a worker that has not served them is told of them.
//!
//! Reads within bounds, newest first: a conversation may be years long and an answer megabytes. Refuses to guess: a row that
//! does not read is an error, never a turn without words.

use uuid::Uuid;

use super::{Store, StoreError, partitions::ends};
use crate::{
    agent::History,
    event::Kind,
    id::{ConversationId, TurnId},
    turn::Status,
};

/// Texts that are longer count as this many times `history.bytes`, so that what is before them is read as well.
const READ_TIMES: i64 = 4;
/// Events of turns that are looked at for questions, at most; those of a turn that was cut off come before.
const EVENTS_MAX: i64 = 20_000;
/// The last word's `seq` in a turn that asked and was answered, at least: behind `accepted` and `started`.
const ANSWERED_SEQ_MIN: i32 = 4;
/// Events that are read, at most.
const SAID_MAX: i64 = 100_000;

/// A turn of the past.
#[derive(Debug, Clone, PartialEq)]
pub struct PastTurn {
    /// Which.
    pub id: TurnId,
    /// Its place in the conversation.
    pub ordinal: i64,
    /// How it ended.
    pub status: Status,
    /// JSON object `{text, attachments?}`.
    pub input: String,
    /// The fields of its last word; `None` where the log is retained no longer.
    pub last_word: Option<String>,
    /// What was said before that, with its fields: questions and answers; where there is no whole answer its pieces too, of
    /// a long one those at its beginning and its end.
    pub said: Vec<(Kind, String)>,
}

impl Store {
    /// The turns of a conversation before `ordinal`, newest first: as many as the limits allow, and perhaps some more than
    /// their bytes.
    ///
    /// # Errors
    /// Postgres is away, or a row does not read.
    pub async fn past(
        &self,
        conversation: ConversationId,
        ordinal: i64,
        limits: History,
    ) -> Result<Vec<PastTurn>, StoreError> {
        let bytes = i64::try_from(limits.bytes.0).unwrap_or(i64::MAX / READ_TIMES).min(i64::MAX / READ_TIMES);
        let mut lease = self.lease().await?;
        let rows = lease
            .run("past", |c| {
                sqlx::query!(
                    r#"
                    select p.id as "id!", p.ordinal as "ordinal!", p.status as "status!", p.last_seq as "last_seq!",
                           p.input as "input!", p.last_word as "last_word?"
                      from (
                        select t.id, t.ordinal, t.status, coalesce(t.last_seq, 0) as last_seq, t.input, e.data as last_word,
                               -- What is before the row. A long text counts in part: it will be shortened.
                               sum(least(octet_length(t.input) + coalesce(octet_length(e.data), 0), $4::bigint))
                                 over (order by t.ordinal desc)
                               - least(octet_length(t.input) + coalesce(octet_length(e.data), 0), $4::bigint) as bytes_before
                          from (
                            select id, ordinal, status, last_seq, input
                              from lastword.turns
                             where conversation_id = $1 and ordinal < $2
                             order by ordinal desc
                             limit $3) t
                          left join lastword.turn_events e on e.turn_id = t.id and e.seq = t.last_seq) p
                     where p.bytes_before < $5::bigint
                     order by p.ordinal desc
                    "#,
                    conversation.0,
                    ordinal,
                    i64::from(limits.turns),
                    bytes,
                    bytes * READ_TIMES
                )
                .fetch_all(c)
            })
            .await?;
        let mut turns = Vec::with_capacity(rows.len());
        let (mut looked_at, mut events) = (Vec::new(), 0);
        for (place, row) in rows.into_iter().enumerate() {
            let status =
                row.status.parse().map_err(|_| StoreError::unreadable("past", "a status is unknown"))?;
            let is_cut_off = status != Status::Completed;
            events += i64::from(row.last_seq);
            if is_cut_off || (row.last_seq >= ANSWERED_SEQ_MIN && events <= EVENTS_MAX) {
                looked_at.push((place, row.id, is_cut_off));
            }
            turns.push(PastTurn {
                id: TurnId(row.id),
                ordinal: row.ordinal,
                status,
                input: row.input,
                last_word: row.last_word,
                said: Vec::new(),
            });
        }
        for (place, kind, data) in self.said(&looked_at, bytes).await? {
            turns[place].said.push((kind, data));
        }
        Ok(turns)
    }

    /// What was said in turns, each with its place and whether it was cut off.
    async fn said(
        &self,
        turns: &[(usize, Uuid, bool)],
        bytes: i64,
    ) -> Result<Vec<(usize, Kind, String)>, StoreError> {
        if turns.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = turns.iter().map(|(_, id, _)| *id).collect();
        let cut_off: Vec<bool> = turns.iter().map(|(.., is_cut_off)| *is_cut_off).collect();
        let (first, last) = ends(&ids);
        let mut lease = self.lease().await?;
        let rows = lease
            .run("said", |c| {
                sqlx::query!(
                    r#"
                    select w.place as "place!", e.kind as "kind!", e.data as "data!"
                      from unnest($1::uuid[], $2::boolean[]) with ordinality w (turn_id, is_cut_off, place)
                     cross join lateral (
                       select seq, kind, data,
                              sum(octet_length(data)) over (order by seq) - octet_length(data) as bytes_before,
                              sum(octet_length(data)) over (order by seq desc) - octet_length(data) as bytes_after
                         from lastword.turn_events
                        where turn_id = w.turn_id and turn_id between $4 and $5
                          and (kind in ('ask', 'answer') or (w.is_cut_off and kind in ('delta', 'content')))) e
                     where e.bytes_before < $3 or e.bytes_after < $3
                     order by w.place, e.seq
                     limit $6
                    "#,
                    &ids,
                    &cut_off,
                    bytes,
                    first,
                    last,
                    SAID_MAX
                )
                .fetch_all(c)
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                let kind = Kind::of_stored(&row.kind).map_err(|why| StoreError::unreadable("said", why))?;
                let turn = usize::try_from(row.place).ok().and_then(|place| turns.get(place - 1));
                let (place, ..) = turn.ok_or_else(|| StoreError::unreadable("said", "a row of no turn"))?;
                Ok((*place, kind, row.data))
            })
            .collect()
    }
}
