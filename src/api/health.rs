//! Probes and metrics.
//!
//! `/livez` says that this process answers, and asks nobody: a database that is away is no reason to
//! restart it. `/readyz` says whether new requests should come here.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{answer::Json, gateway::Gateway, readiness};
use crate::{
    descriptors::{self, Lack},
    telemetry::metrics,
};

/// The supervisor's line that says whether this replica is registered.
const PRESENCE: &str = "presence";

/// Whether this replica takes new requests, and why not.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadinessView {
    /// `ready` or `unready`.
    status: &'static str,
    /// It is about to leave.
    draining: bool,
    /// Postgres answers.
    postgres: bool,
    /// What is wrong with Postgres, for people; null where nothing is.
    postgres_fault: Option<&'static str>,
    /// The schema is this release's.
    migrated: bool,
    /// Whether it is registered: `ready` where it is.
    presence: String,
    /// What it lacks to start a worker: `descriptors`, `processes` or `memory`; null where nothing.
    lacks: Option<&'static str>,
    /// Whether replicas hear each other.
    doorbell: DoorbellView,
}

/// Whether replicas wake each other by NOTIFY. Without it everything is only slower.
#[derive(Debug, Serialize, ToSchema)]
pub struct DoorbellView {
    /// Whether it is used.
    on: bool,
    /// From a ring sent to the same ring heard; null where none was heard of late.
    round_trip_ms: Option<f64>,
}

/// Says that this process answers.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, body = String)))]
pub async fn livez() -> &'static str {
    "ok\n"
}

/// Says whether new requests should come here.
#[utoipa::path(get, path = "/readyz", tag = "health",
    responses((status = 200, body = ReadinessView), (status = 503, body = ReadinessView)))]
pub async fn readyz(State(gateway): State<Gateway>) -> (StatusCode, Json<ReadinessView>) {
    let (store, known) = (&gateway.store, gateway.readiness());
    let does_answer = known.answers(store).await;
    let refusal = readiness::refusal(store).await;
    // Connections that are there serve everybody while new logins are refused.
    let postgres = does_answer && !refusal.is_some_and(|denial| denial.is_of_statements());
    let fault = (!does_answer).then_some("Postgres does not answer");
    let migrated = postgres && known.is_migrated(store).await;
    let board = gateway.supervisor.board();
    let presence = board.state(PRESENCE).unwrap_or("ready").to_owned();
    let draining = gateway.supervisor.soft().is_cancelled();
    let lacks = descriptors::shortage().map(Lack::as_str);
    let is_ready = !draining && postgres && migrated && presence == "ready" && lacks.is_none();
    let wake = store.wake();
    let round_trip_ms = wake.rings.round_trip().map(|took| took.as_secs_f64() * 1000.0);
    let view = ReadinessView {
        status: if is_ready { "ready" } else { "unready" },
        draining,
        postgres,
        postgres_fault: refusal.map(|denial| denial.cause).or(fault),
        migrated,
        presence,
        lacks,
        doorbell: DoorbellView { on: wake.rings.is_on(), round_trip_ms },
    };
    (if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(view))
}

/// Metrics in Prometheus' text form, for operators, or for everybody on a loopback address.
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, body = String), (status = 401)))]
pub async fn metrics(State(gateway): State<Gateway>) -> impl IntoResponse {
    gateway.note_bounds();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render())
}
