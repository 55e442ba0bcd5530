//! Telemetry of requests: a span, a count and a duration for each.

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::telemetry::{adopt, metrics};

/// The label for all unmatched paths, so that the number of labels is bounded.
const NO_ROUTE: &str = "none";

/// Counts a request, and measures the time to the head of its response. The request's span continues the client's
/// trace.
pub async fn request(request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>();
    let route = matched.map_or(NO_ROUTE, MatchedPath::as_str).to_owned();
    let span = tracing::info_span!(
        "request",
        method = %request.method(),
        route,
        status = tracing::field::Empty,
        turn_id = tracing::field::Empty,
    );
    let sent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    if let Some(traceparent) = sent {
        adopt(&span, traceparent);
    }
    let began = Instant::now();
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    span.record("status", status);
    metrics::http_requests(&route, status, began.elapsed());
    response
}
