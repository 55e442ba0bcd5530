//! A conversation's past: its turns, as a worker that has not served them is told of them.
//!
//! Reads within bounds, newest first: a conversation may be years long and an answer megabytes. Refuses to guess: a row that
//! does not read is an error, never a turn without words.

use crate::{
    agent::History,
    event::Kind,
    id::{ConversationId, TurnId},
    store::{error::StoreError, handle::Store},
    turn::Status,
};

/// Texts that are longer count as this many times `history.bytes`, so that what is before them is read as well.
const READ_TIMES: i64 = 4;
/// Events of turns that are looked at for questions, at most.
const EVENTS_MAX: i64 = 20_000;
/// The last word's `seq` in a turn that asked and was answered, at least: behind `accepted` and `started`.
const ANSWERED_SEQ_MIN: i32 = 4;
/// A turn that was cut off is told by its pieces where the turns after it have this many events together, at most.
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
                    select p.id as "id!", p.ordinal as "ordinal!", p.status as "status!", p.input as "input!",
                           p.last_word as "last_word?", s.kinds as "kinds?", s.data as "said?"
                      from (
                        select t.id, t.ordinal, t.status, t.last_seq, t.input, e.data as last_word,
                               t.status <> 'completed' as is_cut_off,
                               sum(t.last_seq) over (order by t.ordinal desc) as events,
                               -- What is before the row. A long text counts in part: it will be shortened.
                               sum(least(octet_length(t.input) + coalesce(octet_length(e.data), 0), $4::bigint))
                                 over (order by t.ordinal desc)
                               - least(octet_length(t.input) + coalesce(octet_length(e.data), 0), $4::bigint) as bytes_before
                          from (
                            select id, ordinal, status, coalesce(last_seq, 0) as last_seq, input
                              from lastword.turns
                             where conversation_id = $1 and ordinal < $2
                             order by ordinal desc
                             limit $3) t
                          left join lastword.turn_events e on e.turn_id = t.id and e.seq = t.last_seq) p
                     cross join lateral (
                       select array_agg(e.kind order by e.seq) as kinds, array_agg(e.data order by e.seq) as data
                         from (
                           select seq, kind, data,
                                  sum(octet_length(data)) over (order by seq) - octet_length(data) as bytes_before,
                                  sum(octet_length(data)) over (order by seq desc) - octet_length(data) as bytes_after
                             from lastword.turn_events
                            where turn_id = p.id
                              and case when p.is_cut_off then p.events - p.last_seq <= $6
                                  else p.last_seq >= $7 and p.events <= $8 end
                              and (kind in ('ask', 'answer') or (p.is_cut_off and kind in ('delta', 'content')))) e
                        where e.bytes_before < $4 or e.bytes_after < $4) s
                     where p.bytes_before < $5::bigint
                     order by p.ordinal desc
                    "#,
                    conversation.0,
                    ordinal,
                    i64::from(limits.turns),
                    bytes,
                    bytes * READ_TIMES,
                    SAID_MAX,
                    ANSWERED_SEQ_MIN,
                    EVENTS_MAX
                )
                .fetch_all(c)
            })
            .await?;
        let unreadable = |what: &str| StoreError::unreadable("past", what);
        rows.into_iter()
            .map(|row| {
                let kinds = row.kinds.unwrap_or_default().into_iter();
                let said = kinds.zip(row.said.unwrap_or_default()).map(|(kind, data)| {
                    let kind = Kind::of_stored(&kind).map_err(|why| StoreError::unreadable("past", why))?;
                    Ok((kind, data))
                });
                Ok(PastTurn {
                    id: TurnId(row.id),
                    ordinal: row.ordinal,
                    status: row.status.parse().map_err(|_| unreadable("a status is unknown"))?,
                    input: row.input,
                    last_word: row.last_word,
                    said: said.collect::<Result<_, StoreError>>()?,
                })
            })
            .collect()
    }
}
