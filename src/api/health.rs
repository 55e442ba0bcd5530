//! Probes and metrics.
//!
//! `/livez` says that this process answers, and checks nothing else: an unreachable database is no reason for a
//! restart. `/readyz` says whether new requests should be sent to this replica.

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

/// The name of the supervisor's entry for the registration of this replica.
const PRESENCE: &str = "presence";

/// Whether this replica takes new requests, and the reasons if not.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadinessView {
    /// `ready` or `unready`.
    status: &'static str,
    /// Whether the replica is draining.
    draining: bool,
    /// Whether Postgres answers.
    postgres: bool,
    /// What is wrong with Postgres, for people; null if nothing is.
    postgres_fault: Option<&'static str>,
    /// Whether the schema is this release's.
    migrated: bool,
    /// `ready` if the replica is registered, else the state of its registration.
    presence: String,
    /// What the replica lacks to start workers: `descriptors`, `processes` or `memory`; null if nothing.
    lacks: Option<&'static str>,
    /// The state of the doorbell between replicas.
    doorbell: DoorbellView,
}

/// Whether replicas wake each other by NOTIFY. Without it everything works, but more slowly.
#[derive(Debug, Serialize, ToSchema)]
pub struct DoorbellView {
    /// Whether the doorbell is configured on.
    on: bool,
    /// From sending a ring to hearing the same ring; null if none was heard recently.
    round_trip_ms: Option<f64>,
}

/// Says that this process answers.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, body = String)))]
pub async fn livez() -> &'static str {
    "ok\n"
}

/// Says whether new requests should be sent to this replica.
#[utoipa::path(get, path = "/readyz", tag = "health",
    responses((status = 200, body = ReadinessView), (status = 503, body = ReadinessView)))]
pub async fn readyz(State(gateway): State<Gateway>) -> (StatusCode, Json<ReadinessView>) {
    let (store, known) = (&gateway.store, &gateway.doors.readiness);
    let does_answer = known.answers(store).await;
    let refusal = readiness::refusal(store).await;
    // Open connections keep working while new logins are refused.
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

/// Metrics in the Prometheus text format, for operators, or for all callers on a loopback address.
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, body = String), (status = 401)))]
pub async fn metrics(State(gateway): State<Gateway>) -> impl IntoResponse {
    gateway.note_bounds();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render())
}
