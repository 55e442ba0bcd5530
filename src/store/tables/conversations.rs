//! Conversations: make, read, delete. Lists are in [`super::lists`].

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    id::ConversationId,
    store::{error::StoreError, handle::Store},
};

/// Turns of deleted conversations that one statement erases.
pub const ERASED_AT_ONCE: i32 = 200;

/// A conversation as clients see it.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// The conversation's id.
    pub id: ConversationId,
    /// The agent's name.
    pub agent: String,
    /// Turns accepted so far.
    pub turns: i64,
    /// When the conversation was made.
    pub created_at: DateTime<Utc>,
}

impl Store {
    /// Makes a conversation. A repeat with the same id is harmless.
    pub async fn make_conversation(&self, id: ConversationId, agent: &str) -> Result<(), StoreError> {
        let query = sqlx::query!(
            "insert into lastword.conversations (id, agent) values ($1, $2) on conflict do nothing",
            id.0,
            agent
        );
        self.execute("make_conversation", query).await?;
        Ok(())
    }

    /// Those of these conversations that another session has locked. Waits for none.
    pub async fn locked_conversations(
        &self,
        conversations: &[ConversationId],
    ) -> Result<HashSet<ConversationId>, StoreError> {
        let ids: Vec<Uuid> = conversations.iter().map(|conversation| conversation.0).collect();
        let mut lease = self.lease().await?;
        let free = lease.run("locked_conversations", |c| {
            sqlx::query_scalar!(
                "select id from lastword.conversations where id = any ($1) order by id for no key update skip locked",
                &ids
            )
            .fetch_all(c)
        });
        let free = free.await?;
        let there = lease.run("locked_conversations", |c| {
            sqlx::query_scalar!("select id from lastword.conversations where id = any ($1)", &ids)
                .fetch_all(c)
        });
        Ok(there.await?.into_iter().filter(|id| !free.contains(id)).map(ConversationId).collect())
    }

    /// One conversation; `None` if there is none or it was deleted.
    pub async fn conversation(&self, id: ConversationId) -> Result<Option<Conversation>, StoreError> {
        let query = sqlx::query!(
            "select id, agent, next_ordinal, created_at from lastword.conversations where id = $1 and deleted_at is null",
            id.0
        );
        let row = self.fetch_optional("conversation", query).await?;
        Ok(row.map(|row| Conversation {
            id: ConversationId(row.id),
            agent: row.agent,
            turns: row.next_ordinal - 1,
            created_at: row.created_at,
        }))
    }

    /// Those of these conversations that no longer exist: erased, or past their retention.
    pub async fn conversations_gone(
        &self,
        conversations: &[ConversationId],
    ) -> Result<Vec<ConversationId>, StoreError> {
        let ids: Vec<Uuid> = conversations.iter().map(|id| id.0).collect();
        let query = sqlx::query_scalar!(
            r#"
            select w.id as "id!" from unnest($1::uuid[]) w (id)
              left join lateral (
               select true as is_there from lastword.conversations c where c.id = w.id limit 1) c on true
             where c.is_there is null
            "#,
            &ids
        );
        let rows = self.fetch_all("conversations_gone", query).await?;
        Ok(rows.into_iter().map(ConversationId).collect())
    }

    /// Those of these conversations that have a turn in flight.
    pub async fn conversations_in_flight(
        &self,
        conversations: &[ConversationId],
    ) -> Result<HashSet<ConversationId>, StoreError> {
        let ids: Vec<uuid::Uuid> = conversations.iter().map(|id| id.0).collect();
        let query = sqlx::query_scalar!(
            r#"
            select c.id as "id!" from unnest($1::uuid[]) c (id)
             where (select count(*) from (
               select from lastword.inflight i where i.conversation_id = c.id limit 1) one) = 1
            "#,
            &ids
        );
        let rows = self.fetch_all("conversations_in_flight", query).await?;
        Ok(rows.into_iter().map(ConversationId).collect())
    }

    /// Erases ended turns of deleted conversations, up to `limit`, with all their data, and deleted conversations
    /// without turns. `None`: of all deleted conversations. Returns the rows erased.
    pub async fn erase(&self, conversation: Option<ConversationId>, limit: i32) -> Result<i32, StoreError> {
        let query = sqlx::query_scalar!(
            r#"select lastword.lw_erase_v1($1, $2) as "rows!""#,
            conversation.map(|conversation| conversation.0),
            limit
        );
        self.fetch_one("erase", query).await
    }

    /// Marks a conversation as deleted: no turn is accepted after that, and nothing is shown of the conversation. The
    /// caller has to cancel its open turns. False if there is none.
    pub async fn delete_conversation(&self, id: ConversationId) -> Result<bool, StoreError> {
        let query = sqlx::query!(
            "update lastword.conversations set deleted_at = clock_timestamp() where id = $1 and deleted_at is null",
            id.0
        );
        let changed = self.execute("delete_conversation", query).await?;
        // Subscribers learn that the conversation has ended.
        self.wake().conversations.grew(&[id]);
        Ok(changed == 1)
    }
}
