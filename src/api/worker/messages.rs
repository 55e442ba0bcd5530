//! A remote worker's messages for a turn: batches, acknowledged after their commit.
//!
//! Owns the envelope: the turn and the attempt, the number of the first message, and the limits of a batch. The
//! turn's run interprets the lines; an invalid line fails the turn, like an invalid line of any other worker.

use axum::{
    Extension,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

use super::beat::OrderView;
use crate::{
    api::{
        answer::Json,
        auth::{Speaker, may_speak},
        gateway::Gateway,
        problem::{Problem, ProblemDocument},
        request::{Id, Params},
    },
    config::Config,
    frame::is_blank,
    id::TurnId,
    rendezvous::{AdoptOutcome, Batch, Delivery, Line, LineEnd},
    store::remote_turns::Proof,
    token,
};

/// The largest batch, in bytes; one message may have half of that.
const BATCH_BYTES_MAX: u64 = Config::BATCH_BYTES_MAX;
/// Messages per batch.
const MESSAGES_MAX: usize = 4096;
const MEDIA_TYPE: &str = "application/x-ndjson";

/// The response to a batch.
#[derive(Debug, Serialize, ToSchema)]
pub struct Acknowledged {
    /// The number of the last committed message.
    acknowledged: u64,
    /// Orders that the worker has not yet acknowledged.
    orders: Vec<OrderView>,
}

/// Takes a turn, and messages of it.
///
/// The first batch may be empty: the worker begins when it is answered.
#[utoipa::path(post, path = "/v1/worker/turns/{id}/messages", tag = "remote workers",
    params(
        ("id" = String, Path),
        ("epoch" = i32, Query, description = "The attempt", minimum = 1),
        ("n" = i64, Query, description = "The number of the first message, from 1", minimum = 1),
    ),
    request_body(content = String, content_type = "application/x-ndjson",
        description = "Messages of the native protocol, one a line, and `gone` when the worker is gone"),
    responses(
        (status = 200, description = "Committed", body = Acknowledged),
        (status = 204, description = "All of it was committed before"),
        (status = 403, description = "`epoch_stale`: another attempt has the turn", body = ProblemDocument),
        (status = 409, description = "`messages_gap`: those from `expected` on are missing", body = ProblemDocument),
        (status = 410, description = "`turn_ended`: it has had its last word", body = ProblemDocument),
    ))]
pub async fn post(
    State(gateway): State<Gateway>,
    Id(turn): Id<TurnId>,
    Extension(speaker): Extension<Speaker>,
    mut params: Params,
    request: Request,
) -> Result<Response, Problem> {
    tracing::Span::current().record("turn_id", tracing::field::display(turn));
    let hash = speaker.token_hash;
    let missing = |name: &str| Problem::invalid(name, "It is missing.");
    let epoch = params.number("epoch", 1..=i64::from(i32::MAX))?.ok_or_else(|| missing("epoch"))?;
    let epoch = i32::try_from(epoch).map_err(|_| missing("epoch"))?;
    let first = params.number("n", 1..=i64::MAX)?.ok_or_else(|| missing("n"))?.unsigned_abs();
    params.end()?;
    may_speak(&gateway, speaker, turn, epoch).await?;
    let batch = read(&gateway, request).await?;
    let mut is_second = false;
    loop {
        let line = match gateway.rendezvous.line_or_move(turn, epoch, Proof::Token(hash)).await {
            AdoptOutcome::Held(line) => line,
            AdoptOutcome::Unknown => return Err(Problem::unauthorized()),
            AdoptOutcome::Ended => return Err(ended(turn)),
            AdoptOutcome::Stale => return Err(stale(turn)),
            AdoptOutcome::Elsewhere => return Err(Problem::elsewhere()),
            AdoptOutcome::Failed(why) => return Err(why.into()),
        };
        if !token::is_same(&line.token_hash, &hash) {
            return Err(Problem::unauthorized());
        }
        let open = line.liveness.request();
        let delivery = line.deliver(first, batch.clone()).await;
        open.answered();
        match delivery {
            // The line was given up meanwhile: ask once more which replica holds the turn.
            Delivery::LetGo if !is_second => is_second = true,
            // Another replica may hold the turn by now, and have the messages that are missing here.
            Delivery::Gap(_) if !gateway.store.strayed(&[(turn, epoch)]).await?.is_empty() => {
                gateway.rendezvous.close(&line, LineEnd::LetGo);
            }
            delivery => return answer(&line, delivery),
        }
    }
}

fn answer(line: &Line, delivery: Delivery) -> Result<Response, Problem> {
    match delivery {
        Delivery::New(acknowledged) => {
            let orders = line.untold().into_iter();
            let orders = orders.map(|order| OrderView::of(line.turn, order)).collect::<Result<_, _>>()?;
            Ok(Json(Acknowledged { acknowledged, orders }).into_response())
        }
        Delivery::Known(_) => Ok(StatusCode::NO_CONTENT.into_response()),
        Delivery::Gap(expected) => {
            let detail = "Messages before this batch are missing.";
            Err(Problem::turn_state("messages_gap", detail, line.turn).with("expected", expected))
        }
        Delivery::Ended => Err(ended(line.turn)),
        Delivery::LetGo => Err(Problem::elsewhere()),
    }
}

async fn read(gateway: &Gateway, request: Request) -> Result<Batch, Problem> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let is_ndjson = essence.eq_ignore_ascii_case(MEDIA_TYPE);
    // The body's room is released after the read, so that other requests need not wait for this turn's processing.
    let (body, _held) = gateway.doors.bodies.read(request, BATCH_BYTES_MAX).await?;
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !is_blank(line));
    let batch: Batch = lines.map(Bytes::copy_from_slice).collect();
    if !batch.is_empty() && !is_ndjson {
        return Err(Problem::not_of_type(MEDIA_TYPE));
    }
    if batch.len() > MESSAGES_MAX {
        return Err(Problem::invalid("body", format!("It takes {MESSAGES_MAX} messages at most.")));
    }
    Ok(batch)
}

fn ended(turn: TurnId) -> Problem {
    Problem::turn_gone(turn)
}

fn stale(turn: TurnId) -> Problem {
    Problem::forbidden_as("epoch_stale", "Another attempt has this turn.").with("turn_id", turn.to_string())
}
