//! Lists of conversations, of one agent or of all.

use uuid::Uuid;

use super::{Listed, Walk};
use crate::{
    id::ConversationId,
    store::{error::StoreError, handle::Store, tables::conversations::Conversation},
};

impl Store {
    /// Conversations, newest first, before one, of one agent or of all.
    pub async fn conversations(
        &self,
        agent: Option<&str>,
        before: Option<ConversationId>,
        limit: i64,
    ) -> Result<Listed<Conversation, ConversationId>, StoreError> {
        let mut walk = Walk::new(limit, before.map(|conversation| conversation.0));
        while let Some(step) = walk.step() {
            let rows = match agent {
                Some(agent) => self.conversations_of_agent(agent, walk.before, step).await?,
                None => self.conversations_of_all(walk.before, step).await?,
            };
            walk.take(rows.into_iter().map(|row| (row.id, row.read())).collect());
        }
        let Listed { items, next } = walk.page();
        Ok(Listed { items, next: next.map(ConversationId) })
    }

    async fn conversations_of_all(
        &self,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<ConversationRow>, StoreError> {
        let query = sqlx::query_as!(
            ConversationRow,
            "
            select id, agent, next_ordinal, created_at, deleted_at from lastword.conversations
             where id < $1 order by id desc limit $2
            ",
            before.unwrap_or(Uuid::max()),
            limit
        );
        self.fetch_all("conversations", query).await
    }

    async fn conversations_of_agent(
        &self,
        agent: &str,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<ConversationRow>, StoreError> {
        let query = sqlx::query_as!(
            ConversationRow,
            "
            select id, agent, next_ordinal, created_at, deleted_at from lastword.conversations
             where agent >= $1 and (agent, id) < ($1, $2) and coalesce(agent, '') <> ''
             order by agent desc, id desc limit $3
            ",
            agent,
            before.unwrap_or(Uuid::max()),
            limit
        );
        self.fetch_all("conversations", query).await
    }
}

struct ConversationRow {
    id: Uuid,
    agent: String,
    next_ordinal: i64,
    created_at: chrono::DateTime<chrono::Utc>,
    deleted_at: Option<chrono::DateTime<chrono::Utc>>,
}

impl ConversationRow {
    /// `None` if the conversation was deleted.
    fn read(self) -> Option<Conversation> {
        let ConversationRow { id, agent, next_ordinal, created_at, deleted_at } = self;
        let there = Conversation { id: ConversationId(id), agent, turns: next_ordinal - 1, created_at };
        deleted_at.is_none().then_some(there)
    }
}
