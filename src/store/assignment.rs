//! Assignments: what a worker is handed with a turn, its conversation's past included.

use super::{Store, StoreError};
use crate::{agent::History, id::ConversationId, turn::Status};

/// What a turn's worker is handed.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The agent's name.
    pub agent: String,
    /// The revision the turn was accepted with.
    pub agent_revision: i32,
    /// Place in the conversation.
    pub ordinal: i64,
    /// JSON object `{text, attachments?}`.
    pub input: String,
    /// W3C trace context.
    pub traceparent: String,
}

/// One thing that was said in a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Whether the user said it (else the agent).
    pub is_user: bool,
    /// The words.
    pub text: String,
}

impl Store {
    /// What was said in a conversation before `ordinal`, oldest first, the newest within the limits.
    /// A turn without an answer (failed, cancelled) still tells what the user said.
    pub async fn history(
        &self,
        conversation: ConversationId,
        ordinal: i64,
        limits: History,
    ) -> Result<Vec<Said>, StoreError> {
        let mut lease = self.lease().await?;
        let rows = lease
            .run("history", |c| {
                sqlx::query!(
                    r#"
                    select t.input, t.status, e.data as "last_word?"
                      from lastword.turns t left join lastword.turn_events e on e.turn_id = t.id and e.seq = t.last_seq
                     where t.conversation_id = $1 and t.ordinal < $2
                     order by t.ordinal desc
                     limit $3
                    "#,
                    conversation.0,
                    ordinal,
                    i64::from(limits.turns)
                )
                .fetch_all(c)
            })
            .await?;
        let mut said = Vec::new();
        let mut bytes = 0;
        for row in rows {
            let answer = row.last_word.filter(|_| row.status == Status::Completed.as_str());
            let answer = answer.and_then(|word| text_of(&word)).unwrap_or_default();
            let question = text_of(&row.input).unwrap_or_default();
            bytes += (question.len() + answer.len()) as u64;
            if bytes > limits.bytes.0 {
                break;
            }
            if !answer.is_empty() {
                said.push(Said { is_user: false, text: answer });
            }
            said.push(Said { is_user: true, text: question });
        }
        said.reverse();
        Ok(said)
    }
}

fn text_of(json: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Text {
        text: String,
    }
    serde_json::from_str::<Text>(json).ok().map(|it| it.text)
}
