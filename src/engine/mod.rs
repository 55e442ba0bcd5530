//! The engine: the passes of one replica. Each is periodic, idempotent and takes no input; it wakes
//! by a ring, by a clock, and now and then by itself.
//!
//! | pass | what it does |
//! |---|---|
//! | [`presence`] | beats, judges the dead, starts over when judged |
//! | [`intake`] | accepts what was handed in, and takes at once what there is room for |
//! | [`means`] | looks whether there is what a worker's start takes |
//! | [`dispatch`] | claims queued turns; brings orders to those that run here |
//! | `settle` | compares what is held in its name with what runs here |
//! | [`reconcile`] | compares what was seen with a database that may have gone back in time |
//! | `remote` | claims for remote workers, and moves turns to where they call |
//! | `tokens` | refuses remote workers whose token has ended |
//! | [`reap`] | closes what is overdue or held by the gone |
//! | [`retain`] | partitions ahead, old days out |
//! | [`drain`] | leaves |
//!
//! Knows no request: the doors and the engine meet in Postgres alone.

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
    task::{Kind, Supervisor},
    worker::{host::Host, kubernetes::Pods},
};

impl Engine {
    /// Makes an engine and starts its passes. `url` is where this replica can be reached.
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
        let spawn = |name: &'static str, task: BoxTask| self.supervisor.spawn(Kind::Replica, name, task);
        // All but the claims go on through a drain: turns still run, and this replica still counts.
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
