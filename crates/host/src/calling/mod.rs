//! A host that calls a gateway over HTTP: the outlet of `lastword work`.
//!
//! ```text
//! beat ──► which replica is called; orders, and what is over ─┐
//! claims ─► offers ─► turn ─► outbox ──► messages             ├─► the gateway
//!                      └─► WorkerHost: a process a conversation, or one for all
//! ```
//! Owns the order of its end: the first stop takes on nothing more, lets turns end until the drain is over, says
//! `interrupted` of the rest, and says goodbye. The second stop means now. However this host ends, its processes do.

mod beat;
mod claims;
mod error;
mod link;
mod outbox;
mod owner;
mod state;
mod turn;
mod turns;
mod words;

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use self::{error::CallingError, link::Identity, owner::Programs};
use self::{link::GatewayLink, state::HostState};
use crate::{
    task::{Supervisor, TaskKind},
    workers::WorkerHost,
};

/// How long the last words of interrupted turns, and the ends of processes, may take.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// How often the guards of processes get a proof of life.
const RENEW_EVERY: Duration = Duration::from_secs(2);

/// What a calling host is told.
#[derive(Debug)]
pub struct CallingPlan {
    /// Base URLs of the gateway, called in turn.
    pub urls: Vec<String>,
    /// Who this host is to the gateway.
    pub identity: Identity,
    /// What it starts.
    pub programs: Programs,
    /// Processes at once, idle ones included.
    pub workers_max: u32,
    /// It leaves after this time without a turn.
    pub idle_max: Option<Duration>,
    /// It takes on nothing more after this time, and leaves when its turns have ended.
    pub retire_after: Option<Duration>,
}

/// A host that calls. Clones are the same host.
#[derive(Debug, Clone)]
pub struct CallingHost(HostState);

impl CallingHost {
    /// A host that has not called yet.
    ///
    /// # Errors
    /// A URL that cannot be called.
    pub fn new(plan: CallingPlan) -> Result<CallingHost, CallingError> {
        let CallingPlan { urls, identity, programs, workers_max, idle_max, retire_after } = plan;
        Ok(CallingHost(HostState {
            link: Arc::new(GatewayLink::new(&urls, identity)?),
            turns: Arc::default(),
            concurrency: programs.concurrency,
            workers: WorkerHost::new(programs, workers_max),
            idle_max,
            retire_at: retire_after.map(|after| Instant::now() + after),
            now: CancellationToken::new(),
            left: CancellationToken::new(),
        }))
    }

    /// Asks it to leave: the first time once its turns have ended, or the drain is over; after that now.
    pub fn stop(&self) {
        if self.0.is_leaving() {
            self.0.now.cancel();
        }
        self.0.leave();
    }

    /// Works until it was stopped, or had nothing to do for too long. `drain`: how long running turns get to end.
    ///
    /// # Errors
    /// The gateway refuses this host.
    pub async fn serve(&self, supervisor: &Supervisor, drain: Duration) -> Result<(), CallingError> {
        let host = &self.0;
        let renewing = renew_on(host.workers.clone(), supervisor.hard().clone());
        supervisor.spawn(TaskKind::Client, "renewals", renewing);
        let done = tokio::select! {
            done = beat::keep(host) => done,
            () = work(host, drain) => Ok(()),
        };
        // Refused, or gone: whatever still runs has nobody to answer to.
        host.leave();
        host.now.cancel();
        host.turns.end_all();
        let _ = timeout(CLOSE_MAX, async {
            host.turns.none_left().await;
            host.workers.none_left().await;
        })
        .await;
        supervisor.hard().cancel();
        let _ = timeout(CLOSE_MAX, supervisor.ended()).await;
        done
    }
}

/// Takes on turns, then lets them end. Returns long after the beat has said goodbye, which ends the wait.
async fn work(host: &HostState, drain: Duration) {
    claims::take_on(host).await;
    host.leaving().await;
    tokio::select! {
        _ = timeout(drain, host.turns.none_left()) => {}
        () = host.now.cancelled() => {}
    }
    host.now.cancel();
    let _ = timeout(CLOSE_MAX, host.turns.none_left()).await;
    host.left.cancel();
    sleep(CLOSE_MAX).await;
}

/// Proves this host's life to the guards of its processes, until cancelled.
async fn renew_on(workers: WorkerHost<Programs>, until: CancellationToken) {
    while until.run_until_cancelled(sleep(RENEW_EVERY)).await.is_some() {
        workers.renew();
    }
}
