//! Answers to the questions of turns.

use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    answer::Json,
    gateway::Gateway,
    problem::{Problem, ProblemDocument},
    request::{Id, NoParams, Strict},
    turns::found,
};
use crate::{event::Kind, frame, id::TurnId, json::Raw, stream::tail::PAGE_ROWS, turn::Turn};

/// The answer to a turn's question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerRequest {
    /// The question's `ask_id`.
    ask_id: String,
    /// The answer: any JSON but null.
    #[schema(value_type = serde_json::Value)]
    answer: Raw,
}

/// Answers a turn's question, once.
#[utoipa::path(post, path = "/v1/turns/{id}/answers", tag = "turns", request_body = AnswerRequest,
    params(("id" = String, Path)),
    responses(
        (status = 202, description = "The answer is on its way to the agent", body = Turn),
        (status = 404, description = "`turn_not_found`, `ask_not_found`", body = ProblemDocument),
        (status = 409, description = "`ask_answered`, `turn_ended`", body = ProblemDocument),
        (status = 413, description = "`input_too_large`: too large for a worker's message", body = ProblemDocument),
    ))]
pub async fn answer(
    State(gateway): State<Gateway>,
    _: NoParams,
    Id(id): Id<TurnId>,
    Strict(request): Strict<AnswerRequest>,
) -> Result<(StatusCode, Json<Turn>), Problem> {
    if request.answer.is_null() {
        return Err(Problem::invalid("answer", "The answer must not be null."));
    }
    let answer = request.answer.text();
    if !frame::is_deliverable(answer) {
        return Err(Problem::undeliverable("answer", frame::INPUT_BYTES_MAX));
    }
    let turn = found(&gateway, id).await?;
    let asked = asked(&gateway, id, &request.ask_id).await?;
    if asked == AskState::Answered {
        return Err(Problem::turn_state("ask_answered", "This question has its answer already.", id));
    }
    if turn.is_ended() {
        return Err(Problem::turn_state("turn_ended", "This turn has ended.", id));
    }
    // Postgres cannot store NUL in text.
    if asked == AskState::Never || request.ask_id.contains('\0') {
        return Err(Problem::not_found("ask"));
    }
    if !gateway.store.leave_answer(id, &request.ask_id, answer).await? {
        return Err(Problem::turn_state("ask_answered", "This question has its answer already.", id));
    }
    Ok((StatusCode::ACCEPTED, Json(turn)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AskState {
    Never,
    Open,
    Answered,
}

/// The id of the question in an `ask` or `answer` event.
#[derive(Default, Deserialize)]
struct AskName {
    ask_id: String,
}

/// The state of a question, according to the log.
async fn asked(gateway: &Gateway, turn: TurnId, ask_id: &str) -> Result<AskState, Problem> {
    let (mut asked, mut cursor) = (AskState::Never, -1);
    loop {
        let events = gateway.store.read_after(turn, cursor, PAGE_ROWS).await?;
        let Some(last) = events.last() else { return Ok(asked) };
        cursor = last.seq;
        for event in &events {
            let outcome = match event.kind {
                Kind::Ask => AskState::Open,
                Kind::Answer => AskState::Answered,
                _ => continue,
            };
            let named: AskName = serde_json::from_str(&event.data).unwrap_or_default();
            if named.ask_id == ask_id {
                asked = outcome;
            }
        }
    }
}
