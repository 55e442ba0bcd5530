//! Events: the log of a turn or of a whole conversation, as a stream or as pages of JSON.

use std::time::Duration;

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    accept::CancelOnDrop,
    answer::Json,
    gateway::Gateway,
    peer::Connection,
    problem::{Problem, ProblemDocument},
    request::{Id, LAST_EVENT_ID, Params, last_event_id, wants_events},
    sse::{self, StreamSlot},
    turns::found,
    who::Who,
};
use crate::{
    event::{LastWords, SharedEvent},
    id::{ConversationId, TurnId},
    store::conversations::Conversation,
    stream::{ConversationTail, EventReader, Position, Tail, Telling},
};

const LIMIT_DEFAULT: i64 = 200;
const LIMIT_MAX: i64 = 1000;
/// The most bytes of data on a page over several turns: the same as on a page of one turn.
const PAGE_BYTES: usize = 1024 * 1024;

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventPage {
    /// Events in order, without gaps.
    #[schema(value_type = Vec<Object>)]
    events: Vec<SharedEvent>,
    /// `?after=` of the next page.
    next_after: serde_json::Value,
    /// Whether the last event is the last word, so that there is no next page.
    closed: bool,
}

/// A cursor in a turn's log; -1 before the first event.
#[derive(Debug, Clone, Copy)]
struct Seq(i32);

impl std::str::FromStr for Seq {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().ok().filter(|seq| *seq >= -1).map(Seq).ok_or("A cursor is a `seq`, or -1 for the start.")
    }
}

/// A request for events.
struct EventQuery<C> {
    after: Option<C>,
    /// The header or parameter with the cursor.
    field: &'static str,
    wait: Duration,
    limit: i64,
    is_stream: bool,
    last_words: LastWords,
}

impl<C: std::str::FromStr<Err: std::fmt::Display>> EventQuery<C> {
    fn read(mut params: Params, headers: &HeaderMap) -> Result<Self, Problem> {
        let asks_for_page = params.has("wait") || params.has("limit");
        let (wait, limit) = (params.wait()?, params.number("limit", 1..=LIMIT_MAX)?);
        let last_words = params.last_words()?;
        let is_stream = wants_events(headers).unwrap_or(!asks_for_page);
        // A browser that reconnects sends the URL with the original `after` again.
        let (mut field, mut after) = ("after", params.parsed::<C>("after")?);
        let mut resume = |by: &'static str, text: &str| {
            field = by;
            after = Some(text.parse().map_err(|why: C::Err| Problem::invalid(by, why.to_string()))?);
            Ok::<_, Problem>(())
        };
        if let Some(last) = params.text(LAST_EVENT_ID).filter(|last| !last.is_empty()) {
            resume(LAST_EVENT_ID, &last)?;
        }
        if let Some(last) = last_event_id(headers) {
            let by = "Last-Event-ID";
            resume(by, last.to_str().map_err(|why| Problem::invalid(by, why.to_string()))?)?;
        }
        // Browsers and proxies add parameters against caches.
        if !is_stream {
            params.end()?;
        }
        Ok(EventQuery { after, field, wait, limit: limit.unwrap_or(LIMIT_DEFAULT), is_stream, last_words })
    }
}

impl<C> EventQuery<C> {
    /// The result of the check of the cursor. If the log was rewound behind the cursor, a stream begins with a
    /// `reset`, like a stream that was open at the time: a browser takes an error status for the end.
    fn unless_rewound<T: Default>(
        &self,
        found: Result<T, Problem>,
        turn: TurnId,
    ) -> Result<(T, Option<TurnId>), Problem> {
        match found {
            Err(why) if self.is_stream && why.is_log_rewound() => Ok((T::default(), Some(turn))),
            found => found.map(|found| (found, None)),
        }
    }
}

/// Reads a turn's events after a cursor, as an event stream or as a page of JSON.
///
/// The stream ends after the terminal event. With `Accept: application/json` the response is a page of events.
#[utoipa::path(get, path = "/v1/turns/{id}/events", tag = "events",
    params(
        ("id" = String, Path),
        ("after" = Option<i32>, Query, description = "The newest `seq` that the client has seen"),
        ("lastEventId" = Option<String>, Query, description = "The same, for clients that cannot send a header; overrides `after`"),
        ("Last-Event-ID" = Option<String>, Header, description = "The same; overrides both"),
        ("ticket" = Option<String>, Query, description = "A ticket for these events, in place of a token"),
        ("text" = Option<String>, Query, description = "`omit`: last words without their `text`, with its length as `text_bytes`"),
        ("wait" = Option<u64>, Query, description = "JSON only: seconds to wait for an event (60 at most)"),
        ("limit" = Option<i64>, Query, description = "JSON only: maximum number of events", minimum = 1, maximum = 1000),
    ),
    responses(
        (status = 200, description = "The events; or an event stream",
            content((EventPage = "application/json"), (String = "text/event-stream"))),
        (status = 204, description = "The cursor is at the last word: there is nothing more"),
        (status = 400, description = "`cursor_past_head`", body = ProblemDocument),
        (status = 404, body = ProblemDocument),
        (status = 409, description = "JSON only: `log_rewound`: the database lost events; read from the start", body = ProblemDocument),
        (status = 410, description = "`events_gone`: retained no longer; `turn_lost`", body = ProblemDocument),
        (status = 429, description = "`share_exceeded`", body = ProblemDocument),
    ))]
pub async fn of_turn(
    State(gateway): State<Gateway>,
    Id(id): Id<TurnId>,
    who: Who,
    connection: Connection,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Problem> {
    let wanted = EventQuery::<Seq>::read(params, &headers)?;
    let after = wanted.after.map_or(-1, |Seq(seq)| seq);
    found(&gateway, id).await?;
    let is_at_end = is_at_last_word(&gateway, id, after, wanted.field).await;
    let (is_at_end, reset) = wanted.unless_rewound(is_at_end, id)?;
    if is_at_end {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let tail = Tail::new(&gateway.store, id, if reset.is_some() { -1 } else { after });
    if wanted.is_stream {
        let slot = StreamSlot::take(&gateway, who, connection)?;
        let stream = (EventReader::Turn(Box::new(tail)), Telling { last_words: wanted.last_words, reset });
        return Ok(sse::response(&gateway, stream, slot, CancelOnDrop::none(), false));
    }
    let _waiting = gateway.doors.shares.wait(who, wanted.wait)?;
    turn_page(&gateway, who, tail, wanted).await
}

/// Whether the cursor is at the terminal event. Refuses a cursor without an event.
async fn is_at_last_word(gateway: &Gateway, id: TurnId, after: i32, field: &str) -> Result<bool, Problem> {
    // After a rewind, another event may have the `seq` that the client has seen.
    if after >= 0 && gateway.store.rewound_from(id).await?.is_some_and(|from| after >= from) {
        return Err(Problem::log_rewound(id));
    }
    let at = gateway.store.read_after(id, after.max(0) - 1, 1).await?;
    match at.first() {
        Some(event) if after < 0 || event.seq == after => Ok(after >= 0 && event.kind.is_terminal()),
        // Event 0 is committed with the turn, so retention dropped a log without it.
        _ if gateway.store.read_after(id, -1, 1).await?.is_empty() => Err(Problem::log_gone()),
        _ => Err(Problem::past_the_head(field)),
    }
}

async fn turn_page(
    gateway: &Gateway,
    who: Who,
    mut tail: Tail,
    wanted: EventQuery<Seq>,
) -> Result<Response, Problem> {
    let until = Instant::now() + wanted.wait;
    loop {
        let place = gateway.doors.shares.rendering(who).await?;
        let events = tail.look(wanted.limit).await?;
        let left = time_left(gateway, until);
        if !events.is_empty() || left.is_zero() {
            let (next_after, closed) = (tail.cursor().into(), tail.is_ended());
            let events = events.into_iter().map(|event| wanted.last_words.told(event)).collect();
            return Ok(Json(EventPage { events, next_after, closed }).into_response());
        }
        drop(place);
        tokio::select! {
            () = tail.wait(left) => {}
            () = gateway.supervisor.soft().cancelled() => {}
        }
    }
}

/// Reads all events of a conversation's turns in order, after a cursor `ORDINAL.SEQ`.
///
/// The stream has no end, because another turn may always come.
#[utoipa::path(get, path = "/v1/conversations/{id}/events", tag = "events",
    params(
        ("id" = String, Path),
        ("after" = Option<String>, Query, description = "`ORDINAL.SEQ` of the newest event that the client has seen"),
        ("lastEventId" = Option<String>, Query, description = "The same, for clients that cannot send a header; overrides `after`"),
        ("Last-Event-ID" = Option<String>, Header, description = "The same; overrides both"),
        ("ticket" = Option<String>, Query, description = "A ticket for these events, in place of a token"),
        ("text" = Option<String>, Query, description = "`omit`: last words without their `text`, with its length as `text_bytes`"),
        ("wait" = Option<u64>, Query, description = "JSON only: seconds to wait for an event (60 at most)"),
        ("limit" = Option<i64>, Query, description = "JSON only: maximum number of events", minimum = 1, maximum = 1000),
    ),
    responses(
        (status = 200, description = "The events; or an event stream",
            content((EventPage = "application/json"), (String = "text/event-stream"))),
        (status = 400, description = "`cursor_past_head`", body = ProblemDocument),
        (status = 404, body = ProblemDocument),
        (status = 429, description = "`share_exceeded`", body = ProblemDocument),
    ))]
pub async fn of_conversation(
    State(gateway): State<Gateway>,
    Id(id): Id<ConversationId>,
    who: Who,
    connection: Connection,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Problem> {
    let wanted = EventQuery::<Position>::read(params, &headers)?;
    let at = wanted.after.unwrap_or(Position::START);
    let there = gateway.store.conversation(id).await?.ok_or_else(|| Problem::not_found("conversation"))?;
    let rewound = check_position(&gateway, &there, at, &wanted).await?;
    let thread =
        ConversationTail::new(&gateway.store, id, if rewound.is_some() { Position::START } else { at });
    if wanted.is_stream {
        let slot = StreamSlot::take(&gateway, who, connection)?;
        let telling = Telling { last_words: wanted.last_words, reset: rewound };
        let stream = (EventReader::Thread(Box::new(thread)), telling);
        return Ok(sse::response(&gateway, stream, slot, CancelOnDrop::none(), false));
    }
    let _waiting = gateway.doors.shares.wait(who, wanted.wait)?;
    thread_page(&gateway, who, thread, at, wanted).await
}

/// Refuses a position without an event. Returns the rewound turn if the stream must begin with a reset.
async fn check_position(
    gateway: &Gateway,
    there: &Conversation,
    at: Position,
    wanted: &EventQuery<Position>,
) -> Result<Option<TurnId>, Problem> {
    if at.seq < 0 && at.ordinal == 1 {
        return Ok(None);
    }
    let turns = gateway.store.turn_ids_after(there.id, at.ordinal - 1, 1).await?;
    match turns.first() {
        Some(&(ordinal, turn)) if ordinal == at.ordinal => {
            match is_at_last_word(gateway, turn, at.seq, wanted.field).await {
                // Retention dropped an old turn's log; the conversation goes on with the next turn.
                Err(why) if why.is_log_gone() => Ok(None),
                found => wanted.unless_rewound(found, turn).map(|(_, reset)| reset),
            }
        }
        // Retention dropped the turn; the conversation goes on with the next one.
        _ if at.ordinal <= there.turns => Ok(None),
        _ => Err(Problem::past_the_head(wanted.field)),
    }
}

async fn thread_page(
    gateway: &Gateway,
    who: Who,
    mut thread: ConversationTail,
    mut at: Position,
    wanted: EventQuery<Position>,
) -> Result<Response, Problem> {
    let until = Instant::now() + wanted.wait;
    let (mut events, mut bytes) = (Vec::new(), 0);
    let mut place = gateway.doors.shares.rendering(who).await?;
    loop {
        let room = if bytes < PAGE_BYTES { wanted.limit - events.len() as i64 } else { 0 };
        let more = if room > 0 { thread.look(room).await? } else { Vec::new() };
        let is_all = more.is_empty();
        for (position, event) in more {
            at = position;
            bytes += event.data.len();
            events.push(wanted.last_words.told(event));
        }
        let left = time_left(gateway, until);
        if is_all && (!events.is_empty() || left.is_zero()) {
            let next_after = at.to_string().into();
            return Ok(Json(EventPage { events, next_after, closed: false }).into_response());
        }
        if is_all {
            drop(place);
            tokio::select! {
                () = thread.wait(left) => {}
                () = gateway.supervisor.soft().cancelled() => {}
            }
            place = gateway.doors.shares.rendering(who).await?;
        }
    }
}

/// The rest of the wait; zero while this replica drains, so that the client asks another one.
fn time_left(gateway: &Gateway, until: Instant) -> Duration {
    if gateway.supervisor.soft().is_cancelled() {
        return Duration::ZERO;
    }
    until.saturating_duration_since(Instant::now())
}
