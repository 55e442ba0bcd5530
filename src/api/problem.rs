//! Problems: errors as RFC 9457 `application/problem+json`.
//!
//! The only place that knows the status codes of errors. Detail for operators goes to the log here, and nowhere else:
//! a problem's text is for the client.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    id::{TurnId, WorkerId},
    store::{
        StoreError,
        word::{AcceptRefusal, WaitLimit},
    },
    stream::TailError,
    text,
};

/// A refusal, or an internal error.
#[derive(Debug, Clone)]
pub struct Problem(Box<ProblemParts>);

#[derive(Debug, Clone)]
struct ProblemParts {
    status: StatusCode,
    code: &'static str,
    detail: String,
    fields: Map<String, Value>,
}

/// `application/problem+json`
#[derive(ToSchema)]
#[allow(dead_code, reason = "only described by it: a problem is written field by field")]
pub struct ProblemDocument {
    /// `urn:lastword:problem:CODE`
    r#type: String,
    /// The name of the HTTP status.
    title: String,
    /// The HTTP status.
    status: u16,
    /// A stable code, for programs.
    code: String,
    /// A description, for people.
    detail: String,
    /// The refused field, parameter or header.
    field: Option<String>,
    /// The turn that keeps the conversation busy.
    active_turn_id: Option<String>,
    /// The path of that turn's events.
    stream_url: Option<String>,
    /// The exhausted share of the token: `streams`, `waits`, `rows`, `queue`, `unread_bytes`.
    share: Option<String>,
    /// Retry after this many seconds.
    retry_after_s: Option<u64>,
    /// The largest accepted body or field, in bytes.
    limit_bytes: Option<u64>,
}

impl Problem {
    fn new(status: u16, code: &'static str, detail: impl Into<String>) -> Problem {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Problem(Box::new(ProblemParts { status, code, detail: detail.into(), fields: Map::new() }))
    }

    /// The problem with one more field.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Problem {
        self.0.fields.insert(field.to_owned(), value.into());
        self
    }

    /// The problem with a delay for the client's retry, in seconds.
    fn after(self, seconds: u64) -> Problem {
        self.with("retry_after_s", seconds)
    }

    /// 400: a field, parameter or header is invalid.
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Problem {
        Problem::new(400, "invalid_request", detail).with("field", field.into())
    }

    /// 400: the body is not JSON.
    pub fn malformed(detail: impl Into<String>) -> Problem {
        Problem::new(400, "malformed_json", detail)
    }

    /// 400: there is no event at the cursor.
    pub fn past_the_head(field: &str) -> Problem {
        Problem::new(400, "cursor_past_head", "The cursor lies past the newest event.").with("field", field)
    }

    /// 401: the token is missing or unknown.
    pub fn unauthorized() -> Problem {
        Problem::new(401, "unauthorized", "This route needs a valid bearer token.")
    }

    /// 401: the ticket has expired.
    pub fn ticket_expired() -> Problem {
        Problem::new(401, "ticket_expired", "This ticket has expired. Make another one.")
    }

    /// 403: the token is not valid for this route, or the request comes from a foreign page.
    pub fn forbidden(detail: &str) -> Problem {
        Problem::new(403, "forbidden", detail)
    }

    /// 403 with another code.
    pub fn forbidden_as(code: &'static str, detail: &str) -> Problem {
        Problem::new(403, code, detail)
    }

    /// 404; `what` is one of `route`, `agent`, `turn`, `conversation`, `worker`, `worker_token`, `ask`.
    pub fn not_found(what: &'static str) -> Problem {
        let (code, detail) = match what {
            "agent" => ("agent_not_found", "There is no agent of this name."),
            "turn" => ("turn_not_found", "There is no such turn."),
            "conversation" => {
                ("conversation_not_found", "There is no such conversation, or it is another agent's.")
            }
            "worker" => ("worker_not_found", "There is no such worker."),
            "worker_token" => ("worker_token_not_found", "There is no such worker token."),
            "ask" => ("ask_not_found", "This turn has not asked a question of this id."),
            _ => ("not_found", "There is no such route."),
        };
        Problem::new(404, code, detail)
    }

    /// 405: the route does not take this method.
    pub fn method_not_allowed() -> Problem {
        Problem::new(405, "method_not_allowed", "This route does not take this method.")
    }

    /// 408: the body came too slowly.
    pub fn body_timeout() -> Problem {
        Problem::new(408, "request_timeout", "The request's body did not come in time.")
    }

    /// 409: the turn's state forbids the request.
    pub fn turn_state(code: &'static str, detail: &str, turn: TurnId) -> Problem {
        Problem::new(409, code, detail).with("turn_id", turn.to_string())
    }

    /// 410: retention dropped the log.
    pub fn log_gone() -> Problem {
        Problem::new(410, "events_gone", "This turn's events are retained no longer.")
    }

    /// 409: the event at the cursor may not be the event that the client has seen.
    pub fn log_rewound(turn: TurnId) -> Problem {
        let detail = "The database lost a part of this turn's events. Read them again from the start.";
        Problem::new(409, "log_rewound", detail).with("turn_id", turn.to_string())
    }

    /// 410: the turn has had its last word, so its worker can send nothing more.
    pub fn turn_gone(turn: TurnId) -> Problem {
        Problem::new(410, "turn_ended", "This turn has had its last word.").with("turn_id", turn.to_string())
    }

    /// 409: this worker has ended, or its id belongs to another worker.
    pub fn worker_gone(worker: WorkerId) -> Problem {
        let detail = "This worker has ended, or another worker has this id.";
        Problem::new(409, "worker_gone", detail).with("worker_id", worker.to_string())
    }

    /// 409: the limit of worker tokens is reached.
    pub fn worker_tokens_full() -> Problem {
        let detail = "The maximum number of worker tokens is reached.";
        Problem::new(409, "worker_tokens_full", detail)
    }

    /// 410: the turn was accepted, but the database lost it.
    pub fn turn_lost(turn: TurnId) -> Problem {
        Problem::new(410, "turn_lost", "This turn was accepted, but the database lost it. It may have run.")
            .with("turn_id", turn.to_string())
    }

    /// 413: the body is too large.
    pub fn too_large(limit: u64) -> Problem {
        let detail = format!("The request's body is larger than {limit} bytes.");
        Problem::new(413, "body_too_large", detail).with("limit_bytes", limit)
    }

    /// 413: the field does not fit into a worker's line.
    pub fn undeliverable(field: &str, limit: usize) -> Problem {
        let detail = format!("As JSON it is larger than the {limit} bytes that a worker can receive.");
        Problem::new(413, "input_too_large", detail).with("field", field).with("limit_bytes", limit)
    }

    /// 415: the body is not JSON.
    pub fn not_json() -> Problem {
        Problem::not_of_type("application/json")
    }

    /// 415: the body has another media type than `wanted`.
    pub fn not_of_type(wanted: &str) -> Problem {
        let detail = format!("The request's body must be {wanted}.");
        Problem::new(415, "unsupported_media_type", detail).with("field", "Content-Type")
    }

    /// 500: an internal error. The cause goes to the log.
    pub fn internal(what: &dyn std::fmt::Display) -> Problem {
        tracing::error!(error = %what, "a request failed with an internal error");
        let detail = "Something went wrong in the gateway.";
        Problem::new(500, "internal", detail)
    }

    /// 429: the limit of delayed refusals is reached, for this address or in all.
    pub fn too_many_failures(seconds: u64) -> Problem {
        let detail = "Too many requests from this address had an unknown token.";
        Problem::new(429, "too_many_failures", detail).after(seconds)
    }

    /// 503: the limit of request bytes in memory is reached.
    pub fn bodies_full() -> Problem {
        let detail = "This replica is reading the maximum of request bytes.";
        Problem::new(503, "bodies_full", detail).after(2)
    }

    /// 503: the limit of event streams is reached.
    pub fn too_many_streams() -> Problem {
        let detail = "This replica serves the maximum number of event streams.";
        Problem::new(503, "too_many_streams", detail).after(2)
    }

    /// 503: the limit of waiting requests is reached.
    pub fn too_many_waits() -> Problem {
        let detail = "The maximum number of requests waits at this replica.";
        Problem::new(503, "too_many_waits", detail).after(2)
    }

    /// 503: the limit of unread response bytes is reached.
    pub fn too_much_unread() -> Problem {
        let detail = "The maximum of unread response bytes waits at this replica.";
        Problem::new(503, "too_much_unread", detail).after(2)
    }

    /// 429: the caller's token has exhausted its share.
    pub fn share_exceeded(share: &'static str, seconds: u64) -> Problem {
        let detail = format!("This token has used its share of: {share}. The rest is for other tokens.");
        Problem::new(429, "share_exceeded", detail).with("share", share).after(seconds)
    }

    /// 503: this replica does not take this request now; another replica may.
    pub fn elsewhere() -> Problem {
        let detail = "This replica cannot take this request now. Another replica may.";
        Problem::new(503, "go_elsewhere", detail).after(1)
    }

    /// 503: Postgres does not answer.
    pub fn postgres_unavailable() -> Problem {
        let detail = "The database does not answer just now. Nothing that was accepted is lost.";
        Problem::new(503, "postgres_unavailable", detail).after(1)
    }

    /// 503: Postgres answers, but another session holds a lock that the request needs.
    pub fn postgres_locked() -> Problem {
        let detail =
            "Another database session has a lock that this request needs. Nothing that was accepted is lost.";
        Problem::new(503, "postgres_unavailable", detail).after(5)
    }

    /// Whether this is [`Problem::log_rewound`].
    pub fn is_log_rewound(&self) -> bool {
        self.0.code == "log_rewound"
    }

    /// Whether this is [`Problem::log_gone`].
    pub fn is_log_gone(&self) -> bool {
        self.0.code == "events_gone"
    }

    fn refused(code: AcceptRefusal, detail: Option<&str>) -> Option<Problem> {
        Some(match code {
            AcceptRefusal::NoConversation => Problem::not_found("conversation"),
            AcceptRefusal::TurnActive => {
                let problem =
                    Problem::new(409, "turn_active", "This conversation is busy with another turn.");
                match detail.and_then(|id| id.parse::<Uuid>().ok()).map(TurnId) {
                    Some(active) => problem
                        .with("active_turn_id", active.to_string())
                        .with("stream_url", format!("/v1/turns/{active}/events")),
                    None => problem,
                }
            }
            AcceptRefusal::KeyReused => Problem::new(
                422,
                "idempotency_key_reused",
                "This idempotency key was used with another request before.",
            )
            .with("field", "Idempotency-Key"),
            AcceptRefusal::Full if detail == Some(WaitLimit::Conversation.as_str()) => {
                Problem::new(429, "conversation_full", "The queue of this conversation is full.").after(5)
            }
            AcceptRefusal::Full => Problem::new(429, "queue_full", "The queue is full.").after(5),
            AcceptRefusal::NewerAgent => return None,
        })
    }
}

impl From<StoreError> for Problem {
    fn from(why: StoreError) -> Self {
        match &why {
            StoreError::Away { .. } | StoreError::Denied { .. } => {
                tracing::debug!(%why, "a request was refused");
                Problem::postgres_unavailable()
            }
            StoreError::Held { .. } => {
                tracing::debug!(%why, "a request was refused");
                Problem::postgres_locked()
            }
            StoreError::Refused { code, detail, .. } => {
                let known = code.clone().known().ok();
                let problem = known.and_then(|code| Problem::refused(code, detail.as_deref()));
                problem.unwrap_or_else(|| Problem::internal(&why))
            }
            StoreError::Broken { .. } => Problem::internal(&why),
        }
    }
}

impl From<TailError> for Problem {
    fn from(why: TailError) -> Self {
        match why {
            TailError::Gone { .. } => Problem::log_gone(),
            TailError::ConversationGone { .. } => Problem::not_found("conversation"),
            TailError::Rewound { turn } => Problem::log_rewound(turn),
            TailError::Store(why) => why.into(),
            why @ (TailError::Gap { .. } | TailError::AfterTheEnd { .. }) => Problem::internal(&why),
        }
    }
}

/// A response extension of every problem, for middleware.
#[derive(Debug, Clone, Copy)]
pub struct RefusalNote {
    /// The problem's code.
    pub code: &'static str,
    /// Retry after this many seconds.
    pub retry_after_s: Option<u64>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let ProblemParts { status, code, detail, fields } = *self.0;
        let retry_after = fields.get("retry_after_s").and_then(Value::as_u64);
        let mut document = json!({
            "type": format!("urn:lastword:problem:{code}"),
            "title": status.canonical_reason().unwrap_or("Error"),
            "status": status.as_u16(),
            "code": code,
            "detail": detail,
        });
        if let Some(document) = document.as_object_mut() {
            document.extend(fields);
        }
        let mut response = (status, text::one_line(&document.to_string()).into_owned()).into_response();
        response.extensions_mut().insert(RefusalNote { code, retry_after_s: retry_after });
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"lastword\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
