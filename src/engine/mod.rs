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
pub mod suspicion;
mod tokens;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    config::Config,
    descriptors,
    id::TurnId,
    rendezvous::Rendezvous,
    store::{
        Store, batch_reader,
        group_commit::{Inbox, Writer, write_on},
        notify_listener, notify_sender, poller, warn_of,
    },
    task::{Kind, Supervisor},
    worker::{host::Host, kubernetes::Pods},
};

/// The dispatch task's line on the board.
const DISPATCH: &str = "dispatch";

/// What the passes share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    store: Store,
    host: Host,
    rendezvous: Arc<Rendezvous>,
    supervisor: Supervisor,
    url: Arc<str>,
    postgres_away_max: Duration,
    retain: Duration,
    queue_max: u32,
    /// Set by presence, taken by reap: somebody was lost within the last minute.
    recent_loss: Arc<AtomicBool>,
    /// Set by presence: registered, and the last beat came back.
    is_present: Arc<AtomicBool>,
    /// Whether a comparison is under way.
    is_reconciling: Arc<AtomicBool>,
    /// How often the beat's connection had broken when the last comparison began that came to its end.
    compared_breaks: Arc<AtomicU64>,
}

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
            url: url.into(),
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

    /// What this replica runs.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Whether this replica may claim: it has registered, and beats.
    fn is_present(&self) -> bool {
        self.is_present.load(Ordering::Relaxed)
    }

    /// Whether this replica may claim what it may have to start a worker for: it lacks nothing besides. What it
    /// claimed without it would fail here, and another replica may have it.
    fn can_start(&self) -> bool {
        self.is_present() && descriptors::shortage().is_none()
    }

    fn set_present(&self, is_present: bool) {
        let was_present = self.is_present.swap(is_present, Ordering::Relaxed);
        self.open_or_shut();
        if is_present && !was_present {
            self.store.wake().queue.look();
        }
    }

    /// Tells remote workers whether this replica takes on turns.
    fn open_or_shut(&self) {
        self.rendezvous.set_takes_turns(self.is_present() && !self.supervisor.soft().is_cancelled());
    }

    /// Gives back a turn that was claimed without a place for it. Where that fails, it is settled later.
    async fn give_back(&self, turn: TurnId, epoch: i32) {
        match self.store.release(turn, epoch, true).await {
            Ok(is_released) => {
                tracing::info!(turn_id = %turn, is_released, "claimed without a place for it; given back");
            }
            Err(why) => {
                warn_of!(why, turn_id = %turn, "claimed without a place for it; not given back")
            }
        }
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
        spawn(DISPATCH, Box::pin(dispatch::claim_on(self.clone(), soft)));
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
