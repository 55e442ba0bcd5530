//! Turns: create, read, list, cancel, retry.

use std::time::Duration;

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    accept::{
        AcceptedTurn, CancelOnDrop, OnDisconnect, TurnOrder, TurnRequest, accept, hash_of, traceparent,
    },
    answer::Json,
    away::insist,
    bodies::BodyRoom,
    gateway::Gateway,
    peer::Connection,
    problem::{Problem, ProblemDocument},
    request::{
        Id, KeptBody, Maybe, NoParams, Nothing, OfNewTurn, Page, Params, idempotency_key, preferred_wait,
        wants_events,
    },
    shares::Taken,
    sse::{self, StreamSlot},
    who::Who,
};
use crate::{
    event::LastWords,
    id::{ConversationId, TurnId},
    store::turns::TurnFilter,
    stream::{EventReader, Tail, Telling},
    task::aside,
    turn::{CancelledBy, Status, Turn},
};

/// How the response to a new turn is delivered.
struct AnswerForm {
    slot: Option<StreamSlot>,
    wait: Option<Duration>,
    /// The reserved wait.
    _waiting: Option<Taken>,
    on_disconnect: OnDisconnect,
    last_words: LastWords,
}

impl AnswerForm {
    /// Built before the turn is accepted: no turn is accepted if its stream cannot be served or the caller cannot
    /// wait.
    fn of(
        gateway: &Gateway,
        who: Who,
        headers: &HeaderMap,
        connection: Connection,
        (stream, last_words): (Option<bool>, LastWords),
    ) -> Result<AnswerForm, Problem> {
        let is_stream = stream.unwrap_or_else(|| wants_events(headers) == Some(true));
        let slot = if is_stream { Some(StreamSlot::take(gateway, who, connection)?) } else { None };
        let wait = preferred_wait(headers)?;
        // A request with a stream does not wait.
        let waits_for = wait.filter(|_| !is_stream).unwrap_or_default();
        let waiting = gateway.doors.shares.wait(who, waits_for)?;
        let on_disconnect = OnDisconnect::Continue;
        Ok(AnswerForm { slot, wait, _waiting: waiting, on_disconnect, last_words })
    }
}

/// Makes a turn.
///
/// With `stream: true` or `Accept: text/event-stream`, the response is the turn's event stream from `seq` 0.
/// Otherwise the response is 202 with the turn, or 200 if `Prefer: wait=N` was sent and the turn ended in time.
#[utoipa::path(post, path = "/v1/turns", tag = "turns", request_body = TurnRequest,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "The same key gives the same turn"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N seconds (60 at most) for the end"),
        ("text" = Option<String>, Query, description = "`omit`: the last word without its `text`"),
    ),
    responses(
        (status = 200, description = "The turn, ended; or its event stream",
            content((Turn = "application/json"), (String = "text/event-stream"))),
        (status = 202, description = "The turn, accepted", body = Turn),
        (status = 413, description = "`body_too_large`; `input_too_large`: too large for a worker's message. `limit_bytes` is the limit",
            body = ProblemDocument),
        (status = 429, description = "`conversation_full`, `queue_full`; `share_exceeded`: this token's, of which `share` says",
            body = ProblemDocument),
        (status = "4XX", description = "Refused; nothing was stored", body = ProblemDocument, content_type = "application/problem+json"),
    ))]
pub async fn create(
    State(gateway): State<Gateway>,
    who: Who,
    connection: Connection,
    headers: HeaderMap,
    OfNewTurn(last_words): OfNewTurn,
    KeptBody(request, held, weight): KeptBody<TurnRequest>,
) -> Result<Response, Problem> {
    let form = (request.stream, last_words);
    let mut delivery = AnswerForm::of(&gateway, who, &headers, connection, form)?;
    delivery.on_disconnect = request.on_disconnect;
    let is_followed = delivery.slot.is_some();
    let (key, traceparent) = (idempotency_key(&headers)?, traceparent(&headers));
    let order = aside(weight, move || request.into_order(who, key, is_followed, traceparent)).await?;
    gateway.doors.shares.rows(who, 1 + u32::from(order.conversation.is_none()))?;
    let made = accept(&gateway, order, held).await?;
    deliver(&gateway, made, delivery).await
}

/// How the answer to a retry is delivered.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryRequest {
    /// Answer with the new turn's event stream.
    #[serde(default)]
    stream: Option<bool>,
}

/// Makes a new turn like an ended one, in the same conversation; its `retry_of` names the old one.
#[utoipa::path(post, path = "/v1/turns/{id}/retry", tag = "turns", request_body = Option<RetryRequest>,
    params(
        ("id" = String, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key gives the same turn"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N seconds (60 at most) for the end"),
        ("text" = Option<String>, Query, description = "`omit`: the last word without its `text`"),
    ),
    responses(
        (status = 200, description = "The new turn, ended; or its event stream",
            content((Turn = "application/json"), (String = "text/event-stream"))),
        (status = 202, description = "The new turn", body = Turn),
        (status = 409, description = "`turn_open`: it has not ended", body = ProblemDocument),
        (status = 429, description = "`conversation_full`, `queue_full`, `share_exceeded`", body = ProblemDocument),
    ))]
pub async fn retry(
    State(gateway): State<Gateway>,
    Id(id): Id<TurnId>,
    who: Who,
    connection: Connection,
    headers: HeaderMap,
    OfNewTurn(last_words): OfNewTurn,
    Maybe(request): Maybe<RetryRequest>,
) -> Result<Response, Problem> {
    let form = (request.stream, last_words);
    let delivery = AnswerForm::of(&gateway, who, &headers, connection, form)?;
    let old = found(&gateway, id).await?;
    if !old.is_ended() {
        return Err(Problem::turn_state("turn_open", "This turn has not ended yet.", id));
    }
    let input = gateway.store.input(id).await?;
    let (conversation, agent, input, metadata) = input.ok_or_else(|| Problem::not_found("turn"))?;
    let hash = hash_of(&("retry", id))?;
    gateway.doors.shares.rows(who, 1)?;
    let order = TurnOrder {
        agent,
        input,
        conversation: Some(conversation),
        metadata,
        retry_of: Some(id),
        idempotency: idempotency_key(&headers)?.map(|key| (key, hash)),
        if_busy: Default::default(),
        on_disconnect: OnDisconnect::Continue,
        who,
        is_followed: delivery.slot.is_some(),
        traceparent: traceparent(&headers),
    };
    let made = accept(&gateway, order, BodyRoom::default()).await?;
    deliver(&gateway, made, delivery).await
}

async fn deliver(gateway: &Gateway, made: AcceptedTurn, delivery: AnswerForm) -> Result<Response, Problem> {
    let id = made.id;
    tracing::Span::current().record("turn_id", tracing::field::display(id));
    let mut guard = CancelOnDrop::new(gateway, id, delivery.on_disconnect);
    let mut response = if let Some(slot) = delivery.slot {
        // The first event of a turn that was accepted by an earlier request has been seen by then.
        let is_first = made.turn.is_some();
        let tail = made.tail.unwrap_or_else(|| Tail::new(&gateway.store, id, -1));
        let reader = EventReader::Turn(Box::new(tail));
        let telling = Telling { last_words: delivery.last_words, reset: None };
        sse::response(gateway, (reader, telling), slot, guard, is_first)
    } else {
        let told = match made.turn {
            Some(turn) if delivery.wait.is_none() => Ok(turn),
            // The turn is accepted, so a failed read of its newest state is no error.
            Some(turn) => wait_for_end(gateway, id, delivery.wait).await.or(Ok(turn)),
            None => wait_for_end(gateway, id, delivery.wait).await,
        };
        guard.disarm();
        match told {
            Ok(turn) => {
                let is_in_time = delivery.wait.is_some() && turn.is_ended();
                let status = if is_in_time { StatusCode::OK } else { StatusCode::ACCEPTED };
                (status, Json(shown(turn, delivery.last_words))).into_response()
            }
            // A repeat: only the id is known here. The client can send the key again.
            Err(why) => why.with("turn_id", id.to_string()).into_response(),
        }
    };
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/turns/{id}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The turn when it has ended, when the wait is over, or when this replica drains.
async fn wait_for_end(gateway: &Gateway, id: TurnId, wait: Option<Duration>) -> Result<Turn, Problem> {
    let until = Instant::now() + wait.unwrap_or_default();
    let mut interest = gateway.store.wake().turns.subscribe(id);
    loop {
        interest.look();
        let left = until.saturating_duration_since(Instant::now());
        match insist(|| gateway.store.turn(id)).await {
            Ok(turn) => {
                let turn = turn.ok_or_else(|| Problem::not_found("turn"))?;
                let is_over = left.is_zero() || gateway.supervisor.soft().is_cancelled();
                if turn.is_ended() || is_over {
                    return Ok(turn);
                }
            }
            // A waiting request also waits until Postgres is reachable again.
            Err(why) if why.is_away() && !left.is_zero() => continue,
            Err(why) => return Err(why.into()),
        }
        tokio::select! {
            () = interest.news(left.min(Duration::from_secs(1)), None) => {}
            () = gateway.supervisor.soft().cancelled() => {}
        }
    }
}

/// Reads a turn.
#[utoipa::path(get, path = "/v1/turns/{id}", tag = "turns",
    params(
        ("id" = String, Path),
        ("text" = Option<String>, Query, description = "`omit`: `text` is null"),
    ),
    responses(
        (status = 200, body = Turn),
        (status = 404, description = "`turn_not_found`", body = ProblemDocument),
        (status = 410, description = "`events_gone`: retained no longer; `turn_lost`", body = ProblemDocument),
    ))]
pub async fn read(
    State(gateway): State<Gateway>,
    Id(id): Id<TurnId>,
    mut params: Params,
) -> Result<Json<Turn>, Problem> {
    let last_words = params.last_words()?;
    params.end()?;
    found(&gateway, id).await.map(|turn| Json(shown(turn, last_words)))
}

/// The turn with as much of its last word as the client asked for.
fn shown(turn: Turn, last_words: LastWords) -> Turn {
    match last_words {
        LastWords::Whole => turn,
        LastWords::WithoutText => Turn { text: None, ..turn },
    }
}

/// Lists turns, newest first.
///
/// A page may have fewer items than `limit`, even none, if many turns do not match the filter. The list has ended
/// only when `next` is null.
#[utoipa::path(get, path = "/v1/turns", tag = "turns",
    params(
        ("agent" = Option<String>, Query), ("status" = Option<Status>, Query),
        ("conversation_id" = Option<String>, Query),
        ("overdue" = Option<bool>, Query, description = "Only turns past their deadline"),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query),
        ("text" = Option<String>, Query, description = "`omit`: `text` is null"),
    ),
    responses((status = 200, body = Page<Turn>)))]
pub async fn list(State(gateway): State<Gateway>, mut params: Params) -> Result<Json<Page<Turn>>, Problem> {
    let filter = TurnFilter {
        agent: params.agent()?,
        status: params.parsed("status")?,
        conversation: params.parsed::<ConversationId>("conversation_id")?,
        is_overdue: params.parsed("overdue")?.unwrap_or(false),
        before: params.parsed("cursor")?,
        limit: params.limit()?,
    };
    let last_words = params.last_words()?;
    params.end()?;
    page_of_turns(&gateway, filter, last_words).await
}

/// One page of turns.
pub(super) async fn page_of_turns(
    gateway: &Gateway,
    filter: TurnFilter,
    last_words: LastWords,
) -> Result<Json<Page<Turn>>, Problem> {
    let page = gateway.store.turns(&filter).await?;
    let items = page.items.into_iter().map(|turn| shown(turn, last_words)).collect();
    Ok(Json(Page { items, next: page.next.map(|turn| turn.to_string()) }))
}

/// Cancels a turn. It still gets a last word, which may be another one if it came first.
#[utoipa::path(post, path = "/v1/turns/{id}/cancel", tag = "turns", params(("id" = String, Path)),
    responses(
        (status = 200, description = "The turn had already ended", body = Turn),
        (status = 202, description = "The turn is being cancelled", body = Turn),
        (status = 404, body = ProblemDocument),
    ))]
pub async fn cancel(
    State(gateway): State<Gateway>,
    _: NoParams,
    Id(id): Id<TurnId>,
    Maybe(Nothing {}): Maybe<Nothing>,
) -> Result<(StatusCode, Json<Turn>), Problem> {
    let outcomes = gateway.store.cancel(&[id], CancelledBy::Client).await?;
    let turn = found(&gateway, id).await?;
    let status = if outcomes.is_empty() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(turn)))
}

/// The turn, or 404. 410 if the database lost the accepted turn, or the turn is older than the retention.
pub(super) async fn found(gateway: &Gateway, id: TurnId) -> Result<Turn, Problem> {
    tracing::Span::current().record("turn_id", tracing::field::display(id));
    if let Some(turn) = gateway.store.turn(id).await? {
        return Ok(turn);
    }
    match gateway.store.rewound_from(id).await? {
        Some(_) => Err(Problem::turn_lost(id)),
        None if gateway.store.is_past(id) => Err(Problem::log_gone()),
        None => Err(Problem::not_found("turn")),
    }
}
