//! The history of a conversation: its earlier turns, for a worker that has not served them.
//!
//! Reads within limits, newest first: a conversation may be years long and an answer megabytes. Refuses to guess: an
//! unreadable row is an error, never a turn without text.

use crate::{
    agent::History,
    event::Kind,
    id::{ConversationId, TurnId},
    store::{error::StoreError, handle::Store, records::word::Stored},
    turn::Status,
};

/// Reads up to this many times `history.bytes`, since long texts will be shortened.
const READ_TIMES: i64 = 4;
/// Events of turns that are searched for questions, at most.
const EVENTS_MAX: i64 = 20_000;
/// The least `seq` of a last word after a question and its answer, which follow `accepted` and `started`.
const ANSWERED_SEQ_MIN: i32 = 4;
/// A turn that was cut off is read by its pieces if the turns after it have at most this many events together.
const SAID_MAX: i64 = 100_000;

/// An earlier turn.
#[derive(Debug, Clone, PartialEq)]
pub struct PastTurn {
    /// The turn.
    pub id: TurnId,
    /// The turn's number within its conversation.
    pub ordinal: i64,
    /// How the turn ended.
    pub status: Status,
    /// JSON object `{text, attachments?}`.
    pub input: String,
    /// The data of the last word; `None` if the log is no longer retained.
    pub last_word: Option<String>,
    /// Earlier events with their data: questions and answers; for a turn that did not complete also its pieces, of a
    /// long text those at its beginning and its end.
    pub said: Vec<(Kind, String)>,
}

impl Store {
    /// The turns of a conversation before `ordinal`, newest first: up to `limits.turns`, until their texts exceed 4 ×
    /// `limits.bytes`. A single turn counts for at most `limits.bytes`.
    ///
    /// # Errors
    /// Postgres is away, or a row is unreadable.
    pub async fn past(
        &self,
        conversation: ConversationId,
        ordinal: i64,
        limits: History,
    ) -> Result<Vec<PastTurn>, StoreError> {
        let bytes = i64::try_from(limits.bytes.0).unwrap_or(i64::MAX / READ_TIMES).min(i64::MAX / READ_TIMES);
        let query = sqlx::query!(
            r#"
            select p.id as "id!", p.ordinal as "ordinal!", p.status as "status!: Stored<Status>", p.input as "input!",
                   p.last_word as "last_word?", s.kinds as "kinds?: Vec<Stored<Kind>>", s.data as "said?"
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
        );
        let rows = self.fetch_all("past", query).await?;
        let past = rows.into_iter().map(|row| PastTurn {
            id: TurnId(row.id),
            ordinal: row.ordinal,
            status: row.status.0,
            input: row.input,
            last_word: row.last_word,
            said: (row.kinds.unwrap_or_default().into_iter().map(|kind| kind.0))
                .zip(row.said.unwrap_or_default())
                .collect(),
        });
        Ok(past.collect())
    }
}
