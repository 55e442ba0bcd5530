//! The HTTP API.
//!
//! Owns the routes and their middleware. Knows HTTP, but neither workers nor the engine: API and engine meet in
//! Postgres, even within one process. Keeps I12: a request owns no turn, it reads the log.

mod accept;
mod agents;
mod answer;
mod answers;
mod auth;
mod away;
mod bodies;
mod connected;
mod conversations;
mod cors;
mod document;
mod events;
mod exchange;
mod full;
mod gateway;
mod health;
mod linger;
mod listen;
mod observe;
mod params;
mod peer;
mod problem;
mod readiness;
mod reconnect;
mod replicas;
mod request;
mod shares;
mod speak;
mod sse;
mod stall;
mod ticket;
mod turns;
mod unread;
mod who;
mod wire;
mod worker;
mod worker_tokens;
mod workers;

use axum::{Router, middleware, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use self::gateway::Gateway;
use self::{answer::Json, document::Document, problem::Problem};
use crate::console;

/// Serves all routes until the hard stop. Once `closing` is cancelled, it accepts no more connections, closes idle
/// ones, and returns after the last has ended. A drain comes before that: requests are still answered then.
pub async fn serve(listener: TcpListener, gateway: Gateway, closing: CancellationToken) {
    let service = router(gateway.clone());
    listen::serve(listener, gateway, service, closing).await;
}

/// All routes. Under [`serve`], a stream that must end early resets its connection; under another listener, the
/// stream ends in an error instead.
pub fn router(gateway: Gateway) -> Router {
    let (api, document) = OpenApiRouter::with_openapi(Document::openapi())
        .merge(
            client_routes()
                .route_layer(middleware::from_fn_with_state(gateway.clone(), unread::counted))
                .route_layer(middleware::from_fn_with_state(gateway.clone(), auth::client)),
        )
        .merge(
            stream_routes()
                .route_layer(middleware::from_fn_with_state(gateway.clone(), unread::counted))
                .route_layer(middleware::from_fn(reconnect::put_off))
                .route_layer(middleware::from_fn_with_state(gateway.clone(), auth::reader)),
        )
        .merge(operator_routes().route_layer(middleware::from_fn_with_state(gateway.clone(), auth::operator)))
        .merge(worker_routes(&gateway))
        .merge(metrics_route().route_layer(middleware::from_fn_with_state(gateway.clone(), auth::metrics)))
        .merge(open_routes())
        .split_for_parts();
    let document = document::finished(&document);
    let api = api
        .route("/openapi.json", get(async move || Json(document)))
        .merge(console::pages())
        .fallback(async || Problem::not_found("route"))
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .layer(middleware::from_fn_with_state(gateway.clone(), auth::page))
        .layer(CatchPanicLayer::custom(panicked));
    let api = match gateway.doors.origins.layer() {
        Some(cors) => api.layer(cors),
        None => api,
    };
    api.layer(middleware::from_fn(observe::request)).with_state(gateway)
}

/// Routes for a client's or an operator's token.
fn client_routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(turns::create, turns::list))
        .routes(routes!(turns::read))
        .routes(routes!(turns::cancel))
        .routes(routes!(ticket::of_turn))
        .routes(routes!(ticket::of_conversation))
        .routes(routes!(answers::answer))
        .routes(routes!(turns::retry))
        .routes(routes!(conversations::create, conversations::list))
        .routes(routes!(conversations::read))
        .routes(routes!(conversations::turns))
        .routes(routes!(agents::list))
        .routes(routes!(agents::read))
}

/// Routes for a client's or an operator's token, or for a ticket made with one.
fn stream_routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(events::of_turn)).routes(routes!(events::of_conversation))
}

/// Routes that always need an operator's token.
fn operator_routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(agents::put, agents::delete))
        .routes(routes!(conversations::delete))
        .routes(routes!(replicas::list))
        .routes(routes!(workers::list))
        .routes(routes!(workers::read))
        .routes(routes!(workers::stop))
        .routes(routes!(worker_tokens::create, worker_tokens::list))
        .routes(routes!(worker_tokens::revoke))
}

/// Routes for a worker's token, or for a turn's token. The token is checked before the body is read.
fn worker_routes(gateway: &Gateway) -> OpenApiRouter<Gateway> {
    let register = OpenApiRouter::new().routes(routes!(worker::register));
    let callers =
        OpenApiRouter::new().routes(routes!(worker::claims::wait)).routes(routes!(worker::beat::beat));
    let messages = OpenApiRouter::new().routes(routes!(worker::messages::post));
    register
        .route_layer(middleware::from_fn_with_state(gateway.clone(), auth::newcomer))
        .merge(callers.route_layer(middleware::from_fn_with_state(gateway.clone(), auth::worker)))
        .merge(messages.route_layer(middleware::from_fn_with_state(gateway.clone(), auth::speaker)))
}

/// The route for an operator's token, or for callers on this machine.
fn metrics_route() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(health::metrics))
}

/// Routes for all callers.
fn open_routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(health::livez)).routes(routes!(health::readyz))
}

fn panicked(payload: Box<dyn std::any::Any + Send>) -> axum::response::Response {
    use axum::response::IntoResponse as _;
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    Problem::internal(&format!("a request panicked: {text}")).into_response()
}
