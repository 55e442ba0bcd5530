//! Routes that make tickets ([`Ticket`]) for the events of a turn or of a conversation.

use std::time::Duration;

use axum::{extract::State, http::HeaderMap};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    answer::Json,
    auth::Ticket,
    gateway::Gateway,
    problem::{Problem, ProblemDocument},
    request::{Id, Maybe, NoParams, Nothing},
    turns::found,
};
use crate::id::{ConversationId, TurnId};

/// How long a ticket can open its stream. An open stream goes on after that.
const GOOD_FOR: Duration = Duration::from_secs(600);

/// A new ticket.
#[derive(Debug, Serialize, ToSchema)]
pub struct TicketView {
    /// `lws_…`, for `?ticket=` of `events_url`.
    ticket: String,
    /// The ticket opens the stream until then; an open stream goes on.
    expires_at: DateTime<Utc>,
    /// The path of the events that the ticket opens.
    events_url: String,
}

/// Makes a ticket for a turn's events.
///
/// The ticket opens `GET /v1/turns/{id}/events?ticket=…` without a token for ten minutes, and nothing else. It
/// becomes invalid when the token that made it does.
#[utoipa::path(post, path = "/v1/turns/{id}/ticket", tag = "events", params(("id" = String, Path)),
    responses((status = 200, body = TicketView), (status = 404, body = ProblemDocument)))]
pub async fn of_turn(
    State(gateway): State<Gateway>,
    _: NoParams,
    Id(id): Id<TurnId>,
    headers: HeaderMap,
    Maybe(Nothing {}): Maybe<Nothing>,
) -> Result<Json<TicketView>, Problem> {
    found(&gateway, id).await?;
    Ok(make(&gateway, &headers, &id.to_string(), format!("/v1/turns/{id}/events")))
}

/// Makes a ticket for a conversation's events.
///
/// The ticket opens `GET /v1/conversations/{id}/events?ticket=…` under the same conditions as a turn's ticket.
#[utoipa::path(post, path = "/v1/conversations/{id}/ticket", tag = "events", params(("id" = String, Path)),
    responses((status = 200, body = TicketView), (status = 404, body = ProblemDocument)))]
pub async fn of_conversation(
    State(gateway): State<Gateway>,
    _: NoParams,
    Id(id): Id<ConversationId>,
    headers: HeaderMap,
    Maybe(Nothing {}): Maybe<Nothing>,
) -> Result<Json<TicketView>, Problem> {
    let there = gateway.store.conversation(id).await?;
    there.ok_or_else(|| Problem::not_found("conversation"))?;
    Ok(make(&gateway, &headers, &id.to_string(), format!("/v1/conversations/{id}/events")))
}

fn make(gateway: &Gateway, headers: &HeaderMap, subject: &str, events_url: String) -> Json<TicketView> {
    let good_for = TimeDelta::from_std(GOOD_FOR).unwrap_or_default();
    let expires_at = gateway.store.clock().now() + good_for;
    let ticket = Ticket::sign(&gateway.doors.keys.token_hash(headers), subject, expires_at.timestamp());
    let expires_at = ticket.expires_at().unwrap_or(expires_at);
    Json(TicketView { ticket: ticket.to_string(), expires_at, events_url })
}
