//! The doors: the native HTTP API.
//!
//! Owns the routes and what they need; knows HTTP, and nothing of workers or of the engine: a door
//! and the engine meet in Postgres, even within one process. Keeps I12: a request holds no work, it
//! reads the log.

mod accept;
mod agents;
mod answer;
mod answers;
mod auth;
mod bodies;
mod connected;
mod conversations;
mod cors;
mod document;
mod events;
mod exchange;
mod full;
mod health;
mod linger;
pub mod listen;
mod observe;
mod params;
mod problem;
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
mod worker;
mod worker_tokens;
mod workers;

use std::sync::Arc;

use axum::{Router, middleware, routing::get};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    answer::Json,
    auth::{Guesses, Keys, Strangers},
    bodies::Bodies,
    connected::{Connected, PerAddress},
    cors::Origins,
    document::Document,
    health::Readiness,
    problem::Problem,
    shares::Shares,
};
use crate::{
    config::Config,
    console, descriptors,
    id::TurnId,
    rendezvous::Rendezvous,
    store::{Store, remote_turns::Proof, worker_tokens::Grant},
    task::Supervisor,
    telemetry::metrics,
    token::TokenHash,
};

pub use listen::serve;

/// What the doors stand on. Clones are the same gateway.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Postgres.
    pub store: Store,
    /// Where remote workers meet the engine.
    pub rendezvous: Arc<Rendezvous>,
    /// What this replica was told.
    pub config: Arc<Config>,
    /// Home of tasks; its soft stop lets streams go, its hard one ends them.
    pub supervisor: Supervisor,
    doors: Arc<Doors>,
}

#[derive(Debug)]
struct Doors {
    keys: Keys,
    guesses: Guesses,
    bodies: Bodies,
    newcomers: Strangers<TokenHash, Grant>,
    speakers: Strangers<(TurnId, i32, Proof), ()>,
    connected: Connected,
    origins: Origins,
    shares: Shares,
    rendering: unread::Rendering,
    readiness: Readiness,
}

impl Gateway {
    /// A gateway over this store.
    pub fn new(
        store: Store,
        rendezvous: Arc<Rendezvous>,
        config: Arc<Config>,
        supervisor: Supervisor,
    ) -> Gateway {
        let connections_max = descriptors::connections(config.connections_max, config.workers_max());
        let per_address = PerAddress {
            max: config.connections_per_address_max.map_or(connections_max.div_ceil(2), |max| max as usize),
            binds_loopback: config.connections_per_address_max.is_some(),
        };
        let doors = Arc::new(Doors {
            keys: Keys::of(&config),
            guesses: Guesses::default(),
            bodies: Bodies::new(config.bodies_max),
            newcomers: Strangers::default(),
            speakers: Strangers::default(),
            connected: Connected::new(connections_max, per_address, config.connection_idle_max.0),
            origins: Origins::of(&config),
            shares: Shares::of(&config),
            rendering: unread::Rendering::default(),
            readiness: Readiness::default(),
        });
        Gateway { store, rendezvous, config, supervisor, doors }
    }

    fn keys(&self) -> &Keys {
        &self.doors.keys
    }

    fn bodies(&self) -> &Bodies {
        &self.doors.bodies
    }

    fn shares(&self) -> &Shares {
        &self.doors.shares
    }

    fn connected(&self) -> &Connected {
        &self.doors.connected
    }

    fn readiness(&self) -> &Readiness {
        &self.doors.readiness
    }

    /// Tells operators how near the bounds of the doors are; the shares tell of themselves.
    fn note_bounds(&self) {
        let (connections, most) = self.connected().count();
        metrics::bound("connections", connections as u64, most as u64);
        let (bytes, most) = self.bodies().count();
        metrics::bound("body_bytes", bytes, most);
    }
}

/// Every route. [`serve`] adds what it needs to reset a connection; without it, as under another
/// listener, a stream that must end early ends in an error all the same.
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

/// For a client's token, or an operator's.
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

/// For a client's token, an operator's, or a ticket that one of them made.
fn stream_routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(events::of_turn)).routes(routes!(events::of_conversation))
}

/// For an operator's token, always.
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

/// For a worker's token, or the one of its turn. Nothing of a body is read before the token is known.
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

/// For an operator's token, or for this machine.
fn metrics_route() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(health::metrics))
}

/// For everybody.
fn open_routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(health::livez)).routes(routes!(health::readyz))
}

fn panicked(payload: Box<dyn std::any::Any + Send>) -> axum::response::Response {
    use axum::response::IntoResponse as _;
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    Problem::internal(&format!("a request panicked: {text}")).into_response()
}
