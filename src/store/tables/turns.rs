//! Turns: read, cancel. Accepting is in [`super::accept`], lists are in [`super::lists`].

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

pub use crate::store::records::agent::Agent;
use crate::{
    id::{ConversationId, TurnId},
    json::Raw,
    store::{
        error::StoreError,
        handle::Store,
        records::word::{Cancellation, Stored},
    },
    task::aside,
    turn::{CancelledBy, Status, Turn},
    word::Open,
};

/// Which turns to list.
#[derive(Debug, Clone, Default)]
pub struct TurnFilter {
    /// Only this agent's.
    pub agent: Option<String>,
    /// Only in this status.
    pub status: Option<Status>,
    /// Only this conversation's.
    pub conversation: Option<ConversationId>,
    /// Only past their deadline.
    pub is_overdue: bool,
    /// Only before this turn (newest first).
    pub before: Option<TurnId>,
    /// At most this many.
    pub limit: i64,
}

impl Store {
    /// One turn as clients see it; `None` if there is none or its conversation was deleted.
    pub async fn turn(&self, id: TurnId) -> Result<Option<Turn>, StoreError> {
        let query = sqlx::query_as!(
            TurnRow,
            r#"
            select t.id, t.conversation_id, t.agent, t.ordinal, t.status as "status: Stored<Open<Status>>", t.attempt, t.created_at,
                   t.started_at, t.finished_at, t.metadata, t.retry_of, e.data as "last_word?"
              from lastword.turns t left join lastword.turn_events e on e.turn_id = t.id and e.seq = t.last_seq
              -- Of a deleted conversation nothing is told from that moment on.
              join lastword.conversations c on c.id = t.conversation_id and c.deleted_at is null
             where t.id = $1
            "#,
            id.0
        );
        let row = self.fetch_optional("turn", query).await?;
        let bytes = row.as_ref().map_or(0, TurnRow::bytes);
        aside(bytes, move || row.map(TurnRow::read).transpose()).await
    }

    /// A conversation's turn ids after an ordinal, in order.
    pub async fn turn_ids_after(
        &self,
        conversation: ConversationId,
        ordinal: i64,
        limit: i64,
    ) -> Result<Vec<(i64, TurnId)>, StoreError> {
        let query = sqlx::query!(
            "select ordinal, id from lastword.turns where conversation_id = $1 and ordinal > $2 order by ordinal limit $3",
            conversation.0,
            ordinal,
            limit
        );
        let rows = self.fetch_all("turn_ids_after", query).await?;
        Ok(rows.into_iter().map(|row| (row.ordinal, TurnId(row.id))).collect())
    }

    /// Cancels turns. A queued turn ends at once; the holder of a claimed turn gets an order and 10 s to end it. Turns
    /// that had ended before are missing from the answer; `true`: the turn ended with this call.
    pub async fn cancel(&self, turns: &[TurnId], by: CancelledBy) -> Result<Vec<(TurnId, bool)>, StoreError> {
        let ids: Vec<Uuid> = turns.iter().map(|turn| turn.0).collect();
        let query = sqlx::query!(
            r#"
            select o_turn as "turn!", o_outcome as "outcome!: Stored<Open<Cancellation>>"
              from lastword.lw_cancel_v1($1, $2, 10000)
            "#,
            &ids,
            Stored(by) as Stored<CancelledBy>
        );
        let rows = self.fetch_all("cancel", query).await?;
        let rows: Vec<_> = rows.into_iter().map(|row| (TurnId(row.turn), row.outcome.0)).collect();
        let is = |word: Cancellation| rows.iter().any(|(_, outcome)| *outcome == word);
        // No ring for `asked before`: the holder has that order, or finds it with its next poll.
        if is(Cancellation::Asked) {
            self.wake().orders_left();
        }
        if is(Cancellation::Cancelled) {
            let ended = rows.iter().filter(|row| row.1 == Cancellation::Cancelled).map(|row| row.0);
            for turn in ended.clone() {
                self.seen_commits().saw_end(turn, 0, None, crate::event::Kind::Cancelled);
            }
            self.wake().turns.events_committed(ended);
            self.wake().queue.moved();
        }
        // A turn that ended in this call may have two rows: its state before and after.
        let mut outcomes = BTreeMap::new();
        for (turn, outcome) in rows {
            *outcomes.entry(turn).or_insert(false) |= outcome == Cancellation::Cancelled;
        }
        Ok(outcomes.into_iter().collect())
    }

    /// Turns of a conversation without a last word, before an ordinal (`None`: all), 10,000 at most.
    pub async fn open_turns(
        &self,
        conversation: ConversationId,
        before: Option<i64>,
    ) -> Result<Vec<TurnId>, StoreError> {
        let query = sqlx::query_scalar!(
            "
            select turn_id from lastword.inflight
             where conversation_id = $1 and ($2::bigint is null or ordinal < $2)
             order by ordinal limit 10000
            ",
            conversation.0,
            before
        );
        let rows = self.fetch_all("open_turns", query).await?;
        Ok(rows.into_iter().map(TurnId).collect())
    }

    /// A turn's conversation, agent, input and metadata, to accept a new turn like it.
    pub async fn input(
        &self,
        turn: TurnId,
    ) -> Result<Option<(ConversationId, String, String, Option<String>)>, StoreError> {
        let query = sqlx::query!(
            "select conversation_id, agent, input, metadata from lastword.turns where id = $1",
            turn.0
        );
        let row = self.fetch_optional("input", query).await?;
        Ok(row.map(|row| (ConversationId(row.conversation_id), row.agent, row.input, row.metadata)))
    }
}

/// The fields of a last word that a turn shows.
#[derive(Default, Deserialize)]
#[serde(default)]
struct WordFields {
    text: Option<String>,
    error: Option<serde_json::Value>,
    usage: Option<Raw>,
}

/// A turn as read from the database.
pub(in crate::store) struct TurnRow {
    pub(in crate::store) id: Uuid,
    pub(in crate::store) conversation_id: Uuid,
    pub(in crate::store) agent: String,
    pub(in crate::store) ordinal: i64,
    pub(in crate::store) status: Stored<Open<Status>>,
    pub(in crate::store) attempt: i32,
    pub(in crate::store) created_at: DateTime<Utc>,
    pub(in crate::store) started_at: Option<DateTime<Utc>>,
    pub(in crate::store) finished_at: Option<DateTime<Utc>>,
    pub(in crate::store) metadata: Option<String>,
    pub(in crate::store) retry_of: Option<Uuid>,
    pub(in crate::store) last_word: Option<String>,
}

impl TurnRow {
    /// Bytes of the JSON that [`TurnRow::read`] parses.
    pub(in crate::store) fn bytes(&self) -> usize {
        [&self.metadata, &self.last_word].into_iter().flatten().map(String::len).sum()
    }

    pub(in crate::store) fn read(self) -> Result<Turn, StoreError> {
        let unreadable = |why: &dyn std::fmt::Display| StoreError::unreadable("turn", why);
        let word: WordFields = match &self.last_word {
            Some(data) => serde_json::from_str(data).map_err(|why| unreadable(&why))?,
            None => WordFields::default(),
        };
        let metadata = self.metadata.map(RawValue::from_string).transpose();
        let id = TurnId(self.id);
        Ok(Turn {
            id: id.to_string(),
            conversation_id: ConversationId(self.conversation_id).to_string(),
            agent: self.agent,
            ordinal: self.ordinal,
            status: self.status.0,
            attempt: self.attempt,
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            text: word.text,
            error: word.error,
            usage: word.usage,
            metadata: metadata.map_err(|why| unreadable(&why))?,
            retry_of: self.retry_of.map(|turn| TurnId(turn).to_string()),
            events_url: format!("/v1/turns/{id}/events"),
        })
    }
}
