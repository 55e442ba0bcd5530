//! The engine: the passes of one replica. Each pass is idempotent, takes no input, and wakes by the doorbell, by a
//! clock, and by a fallback poll.
//!
//! | pass | what it does |
//! |---|---|
//! | [`presence`] | beats, judges lost replicas, starts over when judged itself |
//! | [`intake`] | accepts posted turns, and claims those there is capacity for |
//! | [`means`] | checks the resources for worker starts |
//! | [`dispatch`] | claims queued turns; passes commands to running turns |
//! | `settle` | compares the turns held in this replica's name with those that run here |
//! | [`reconcile`] | after a failover, compares commits seen here with the database |
//! | `remote` | claims turns for remote workers, and moves turns to the replica their worker calls |
//! | `tokens` | refuses remote workers whose token has ended |
//! | [`reap`] | closes turns that are overdue or held by lost replicas |
//! | [`retain`] | creates partitions ahead, drops and sweeps old data |
//! | [`drain`] | leaves |
//!
//! Knows no request: the API and the engine meet in the store and at the rendezvous.

pub mod dispatch;
pub mod drain;
pub mod intake;
pub mod means;
pub mod presence;
pub mod reap;
pub mod reconcile;
mod remote;
pub mod retain;
mod settle;
mod shared;
pub mod suspicion;
mod tokens;

use std::sync::Arc;

pub use self::shared::Engine;
use crate::{
    config::Config,
    rendezvous::Rendezvous,
    store::{
        Store, batch_reader,
        group_commit::{Inbox, Writer, write_on},
        notify_listener, notify_sender, poller,
    },
    task::{Supervisor, TaskKind},
    worker::{host::Host, kubernetes::Pods},
};

impl Engine {
    /// Creates an engine and starts its passes. `url`: this replica's own URL.
    pub fn start(
        store: Store,
        rendezvous: Arc<Rendezvous>,
        supervisor: Supervisor,
        config: &Config,
        url: String,
        pods: Option<Pods>,
    ) -> Engine {
        if let Some(pods) = &pods {
            pods.start(&supervisor, &store);
        }
        rendezvous.set_url(&url);
        let (writer, inbox) = Writer::new();
        let host = Host::new(store.clone(), rendezvous.clone(), writer, supervisor.clone(), config, pods);
        let engine = Engine {
            store,
            host,
            rendezvous,
            supervisor,
            url: Arc::from(url),
            postgres_away_max: config.postgres_away_max.0,
            retain: config.retain.0,
            queue_max: config.queue_max,
            recent_loss: Arc::default(),
            is_present: Arc::default(),
            is_reconciling: Arc::default(),
            compared_breaks: Arc::default(),
        };
        engine.spawn_all(inbox);
        engine
    }

    fn spawn_all(&self, inbox: Inbox) {
        let (soft, hard) = (self.supervisor.soft().clone(), self.supervisor.hard().clone());
        let spawn = |name: &'static str, task: BoxTask| self.supervisor.spawn(TaskKind::Replica, name, task);
        // Only the claims end with a drain: the other passes serve running turns, and this replica still counts.
        spawn("writer", Box::pin(write_on(self.store.clone(), inbox, hard.clone())));
        spawn("intake", Box::pin(intake::accept_on(self.clone(), hard.clone())));
        spawn("listener", Box::pin(notify_listener::listen_on(self.store.clone(), hard.clone())));
        spawn("poller", Box::pin(poller::look_on(self.store.clone(), hard.clone())));
        for name in ["reader 1", "reader 2"] {
            spawn(name, Box::pin(batch_reader::read_on(self.store.clone(), hard.clone())));
        }
        spawn("notify sender", Box::pin(notify_sender::ring_on(self.store.clone(), hard.clone())));
        spawn(presence::LINE, Box::pin(presence::beat_on(self.clone(), hard.clone())));
        spawn(dispatch::LINE, Box::pin(dispatch::claim_on(self.clone(), soft)));
        spawn("settle", Box::pin(settle::settle_on(self.clone(), hard.clone())));
        spawn("orders", Box::pin(dispatch::order_on(self.clone(), hard.clone())));
        spawn("adopt", Box::pin(remote::adopt_on(self.clone(), hard.clone())));
        spawn("remote", Box::pin(remote::listen_on(self.clone(), hard.clone())));
        spawn("tokens", Box::pin(tokens::refuse_on(self.clone(), hard.clone())));
        spawn("reap", Box::pin(reap::close_on(self.clone(), hard.clone())));
        spawn("means", Box::pin(means::look_on(self.clone(), hard.clone())));
        spawn("retain", Box::pin(retain::retain_on(self.clone(), hard.clone())));
        spawn("upkeep", Box::pin(retain::upkeep_on(self.clone(), hard)));
    }
}

type BoxTask = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
