//! Conversations: create, read, list, delete.

use axum::{
    extract::State,
    http::{HeaderName, StatusCode, header},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    answer::Json,
    away::insist,
    gateway::Gateway,
    problem::{Problem, ProblemDocument},
    request::{Id, NoParams, Page, Params, Strict, agent_name},
    turns::page_of_turns,
    who::Who,
};
use crate::{
    id::ConversationId,
    store::{
        conversations::{Conversation, ERASED_AT_ONCE},
        turns::TurnFilter,
    },
    turn::{CancelledBy, Turn},
};

/// A conversation as clients see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConversationView {
    /// `conv_…`
    #[schema(value_type = String)]
    id: ConversationId,
    /// The agent of the conversation.
    agent: String,
    /// The number of turns accepted so far.
    turns: i64,
    /// When the conversation was created.
    created_at: DateTime<Utc>,
    /// The path of the conversation's events.
    events_url: String,
}

impl From<Conversation> for ConversationView {
    fn from(row: Conversation) -> Self {
        let Conversation { id, agent, turns, created_at } = row;
        ConversationView {
            id,
            agent,
            turns,
            created_at,
            events_url: format!("/v1/conversations/{id}/events"),
        }
    }
}

/// A request for a new conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConversationRequest {
    /// The agent's name.
    agent: String,
}

/// Makes a conversation without a turn. A turn without a conversation makes its own.
#[utoipa::path(post, path = "/v1/conversations", tag = "conversations", request_body = ConversationRequest,
    responses(
        (status = 201, body = ConversationView),
        (status = 404, description = "`agent_not_found`", body = ProblemDocument),
        (status = 429, description = "`share_exceeded`", body = ProblemDocument),
    ))]
pub async fn create(
    State(gateway): State<Gateway>,
    _: NoParams,
    who: Who,
    Strict(request): Strict<ConversationRequest>,
) -> Result<(StatusCode, [(HeaderName, String); 1], Json<ConversationView>), Problem> {
    let agent = agent_name("agent", request.agent)?;
    let known = gateway.store.agent(&agent).await?;
    known.ok_or_else(|| Problem::not_found("agent").with("field", "agent"))?;
    gateway.doors.shares.rows(who, 1)?;
    let id = ConversationId(gateway.store.clock().mint());
    insist(|| gateway.store.make_conversation(id, &agent)).await?;
    let made = insist(|| gateway.store.conversation(id)).await?;
    let made = made.ok_or_else(|| Problem::not_found("conversation"))?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/conversations/{id}"))], Json(made.into())))
}

/// Reads a conversation.
#[utoipa::path(get, path = "/v1/conversations/{id}", tag = "conversations", params(("id" = String, Path)),
    responses((status = 200, body = ConversationView), (status = 404, body = ProblemDocument)))]
pub async fn read(
    State(gateway): State<Gateway>,
    _: NoParams,
    Id(id): Id<ConversationId>,
) -> Result<Json<ConversationView>, Problem> {
    found(&gateway, id).await.map(|row| Json(row.into()))
}

/// Lists conversations, newest first.
#[utoipa::path(get, path = "/v1/conversations", tag = "conversations",
    params(
        ("agent" = Option<String>, Query),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query),
    ),
    responses((status = 200, body = Page<ConversationView>)))]
pub async fn list(
    State(gateway): State<Gateway>,
    mut params: Params,
) -> Result<Json<Page<ConversationView>>, Problem> {
    let (agent, before, limit) = (params.agent()?, params.parsed("cursor")?, params.limit()?);
    params.end()?;
    let page = gateway.store.conversations(agent.as_deref(), before, limit).await?;
    let items = page.items.into_iter().map(ConversationView::from).collect();
    Ok(Json(Page { items, next: page.next.map(|id| id.to_string()) }))
}

/// Lists a conversation's turns, newest first.
#[utoipa::path(get, path = "/v1/conversations/{id}/turns", tag = "conversations",
    params(
        ("id" = String, Path),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query),
        ("text" = Option<String>, Query, description = "`omit`: `text` is null"),
    ),
    responses((status = 200, body = Page<Turn>), (status = 404, body = ProblemDocument)))]
pub async fn turns(
    State(gateway): State<Gateway>,
    Id(id): Id<ConversationId>,
    mut params: Params,
) -> Result<Json<Page<Turn>>, Problem> {
    let (before, limit, last_words) = (params.parsed("cursor")?, params.limit()?, params.last_words()?);
    params.end()?;
    found(&gateway, id).await?;
    let filter = TurnFilter { conversation: Some(id), before, limit, ..TurnFilter::default() };
    page_of_turns(&gateway, filter, last_words).await
}

/// Deletes a conversation.
///
/// No more turns are accepted for it, and its open turns are cancelled. From that moment on, none of its data is
/// returned. Its texts are erased: those of ended turns before this call returns, those of other turns soon after
/// their end.
#[utoipa::path(delete, path = "/v1/conversations/{id}", tag = "operators", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ProblemDocument)))]
pub async fn delete(
    State(gateway): State<Gateway>,
    _: NoParams,
    Id(id): Id<ConversationId>,
) -> Result<StatusCode, Problem> {
    let store = &gateway.store;
    let is_deleted = insist(|| store.delete_conversation(id)).await?;
    // Also after a repeated delete: the first call may have ended before this step.
    let open = insist(|| store.open_turns(id, None)).await?;
    if !open.is_empty() {
        insist(|| store.cancel(&open, CancelledBy::Operator)).await?;
    }
    while insist(|| store.erase(Some(id), ERASED_AT_ONCE)).await? > 0 {}
    if is_deleted || !open.is_empty() {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::not_found("conversation"))
    }
}

async fn found(gateway: &Gateway, id: ConversationId) -> Result<Conversation, Problem> {
    gateway.store.conversation(id).await?.ok_or_else(|| Problem::not_found("conversation"))
}
