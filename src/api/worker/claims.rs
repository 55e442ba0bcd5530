//! A remote worker's long poll for turns, answered with offers.

use std::time::Duration;

use axum::{
    Extension,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{session, still_let_in};
use crate::{
    api::{
        answer::Json,
        auth::Admission,
        gateway::Gateway,
        problem::{Problem, ProblemDocument},
        request::{Strict, WAIT_MAX_S},
    },
    id::{ConversationId, TurnId, WorkerId},
    rendezvous,
};

/// How long a poll waits by default, in seconds.
const WAIT_DEFAULT_S: u64 = 20;
/// Turns that one worker may run at the same time.
const ROOM_MAX: u32 = 10_000;

/// A worker's poll for turns.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimsRequest {
    /// `wrk_…`
    #[schema(value_type = String)]
    worker_id: WorkerId,
    /// How many more turns the worker can run.
    #[schema(minimum = 1, maximum = 10000)]
    room: u32,
    /// How long to wait, in seconds.
    #[serde(default = "wait_default")]
    #[schema(minimum = 0, maximum = 60)]
    wait_s: u64,
}

fn wait_default() -> u64 {
    WAIT_DEFAULT_S
}

/// Turns offered to a worker.
#[derive(Debug, Serialize, ToSchema)]
pub struct Offers {
    /// At least one.
    turns: Vec<Offer>,
}

/// A turn that the worker may take by sending its first batch of messages, which may be empty.
#[derive(Debug, Serialize, ToSchema)]
pub struct Offer {
    /// `turn_…`
    #[schema(value_type = String)]
    turn_id: TurnId,
    /// `conv_…`
    #[schema(value_type = String)]
    conversation_id: ConversationId,
    /// The attempt; every message names it.
    epoch: i32,
    /// The turn's place in the conversation. A worker that served the turn before it knows the history.
    ordinal: i64,
    /// Authorises the turn's messages until its last word.
    token: String,
    /// The `turn` message of the native protocol.
    #[schema(value_type = Object)]
    turn: Box<RawValue>,
}

impl Offer {
    fn of(offer: rendezvous::TurnOffer) -> Result<Offer, Problem> {
        let rendezvous::TurnOffer { turn, conversation, epoch, ordinal, token, message, guard: _ } = offer;
        let message = RawValue::from_string(message).map_err(|why| Problem::internal(&why))?;
        Ok(Offer { turn_id: turn, conversation_id: conversation, epoch, ordinal, token, turn: message })
    }
}

/// Waits for turns. An offer that is not taken within 5 seconds goes to another worker.
#[utoipa::path(post, path = "/v1/worker/claims", tag = "remote workers", request_body = ClaimsRequest,
    responses(
        (status = 200, body = Offers),
        (status = 204, description = "No turn came in time"),
        (status = 404, description = "`worker_not_found`: register first", body = ProblemDocument),
    ))]
pub async fn wait(
    State(gateway): State<Gateway>,
    Extension(admission): Extension<Admission>,
    Strict(request): Strict<ClaimsRequest>,
) -> Result<Response, Problem> {
    let session = session(&gateway, &admission, request.worker_id)?;
    if !(1..=ROOM_MAX).contains(&request.room) {
        return Err(Problem::invalid("room", "It must lie between 1 and 10000."));
    }
    if request.wait_s > WAIT_MAX_S {
        return Err(Problem::invalid("wait_s", "It must lie between 0 and 60."));
    }
    let rendezvous = &gateway.rendezvous;
    let open = session.liveness.request();
    let polling = session.poll(request.room);
    gateway.store.wake().queue.look();
    let offers = polling.offers(Duration::from_secs(request.wait_s), || !rendezvous.takes_turns()).await;
    drop(polling);
    open.answered();
    still_let_in(&gateway, &session)?;
    if !offers.is_empty() {
        let turns = offers.into_iter().map(Offer::of).collect::<Result<_, _>>()?;
        return Ok(Json(Offers { turns }).into_response());
    }
    if rendezvous.takes_turns() {
        Ok(StatusCode::NO_CONTENT.into_response())
    } else {
        Err(Problem::elsewhere())
    }
}
