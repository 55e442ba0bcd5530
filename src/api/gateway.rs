//! The shared state of the API: the store, the configuration, and the API's counters and caches.
//!
//! Owns everything that the requests of this process share. Knows no routes.

use std::sync::Arc;

use super::{
    auth::{Guesses, Keys, Strangers},
    bodies::Bodies,
    connected::{Connected, PerAddress},
    cors::Origins,
    readiness::Readiness,
    shares::Shares,
};
use crate::{
    config::Config,
    descriptors,
    id::TurnId,
    rendezvous::Rendezvous,
    store::{Store, remote_turns::Proof, worker_tokens::Grant},
    task::Supervisor,
    telemetry::metrics,
    token::TokenHash,
};

/// The shared state of the API. Clones share their state.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Postgres.
    pub store: Store,
    /// The place where remote workers and the engine meet.
    pub rendezvous: Arc<Rendezvous>,
    /// The replica's configuration.
    pub config: Arc<Config>,
    /// The owner of all tasks. Its soft stop closes streams, its hard stop ends them.
    pub supervisor: Supervisor,
    pub(super) doors: Arc<Doors>,
}

/// What a request passes, and what bounds it.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) keys: Keys,
    pub(super) guesses: Guesses,
    pub(super) bodies: Bodies,
    /// Look-ups of worker tokens.
    pub(super) newcomers: Strangers<TokenHash, Grant>,
    /// Look-ups of turn tokens.
    pub(super) speakers: Strangers<(TurnId, i32, Proof), ()>,
    pub(super) connected: Connected,
    /// The origins whose pages may call.
    pub(super) origins: Origins,
    pub(super) shares: Shares,
    pub(super) readiness: Readiness,
}

impl Gateway {
    /// The state for this store.
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
            readiness: Readiness::default(),
        });
        Gateway { store, rendezvous, config, supervisor, doors }
    }

    /// Updates the metrics of connections and bodies. The shares update their own.
    pub(super) fn note_bounds(&self) {
        let (connections, most) = self.doors.connected.count();
        metrics::bound("connections", connections as u64, most as u64);
        let (bytes, most) = self.doors.bodies.count();
        metrics::bound("body_bytes", bytes, most);
    }
}
