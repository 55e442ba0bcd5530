//! What the doors stand on: the store, the configuration, and what each door counts or remembers.
//!
//! Owns what all requests of this process share. Knows no route.

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
            readiness: Readiness::default(),
        });
        Gateway { store, rendezvous, config, supervisor, doors }
    }

    /// The configured tokens.
    pub(super) fn keys(&self) -> &Keys {
        &self.doors.keys
    }

    /// Room for the bodies of requests.
    pub(super) fn bodies(&self) -> &Bodies {
        &self.doors.bodies
    }

    /// What one token may take.
    pub(super) fn shares(&self) -> &Shares {
        &self.doors.shares
    }

    /// The connections that there are.
    pub(super) fn connected(&self) -> &Connected {
        &self.doors.connected
    }

    /// What probes found out before.
    pub(super) fn readiness(&self) -> &Readiness {
        &self.doors.readiness
    }

    /// Those who show tokens that nobody knows.
    pub(super) fn guesses(&self) -> &Guesses {
        &self.doors.guesses
    }

    /// Workers whose token is looked up.
    pub(super) fn newcomers(&self) -> &Strangers<TokenHash, Grant> {
        &self.doors.newcomers
    }

    /// Those whose token of a turn is looked up.
    pub(super) fn speakers(&self) -> &Strangers<(TurnId, i32, Proof), ()> {
        &self.doors.speakers
    }

    /// The sites whose pages may call.
    pub(super) fn origins(&self) -> &Origins {
        &self.doors.origins
    }

    /// Tells operators how near the bounds of the doors are; the shares tell of themselves.
    pub(super) fn note_bounds(&self) {
        let (connections, most) = self.connected().count();
        metrics::bound("connections", connections as u64, most as u64);
        let (bytes, most) = self.bodies().count();
        metrics::bound("body_bytes", bytes, most);
    }
}
