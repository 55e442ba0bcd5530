//! Presence: this replica's beat, and its verdicts on other replicas.
//!
//! ```text
//! waiting for the listener's lock ──► register ──► beating ──judged──► (again, as another replica)
//! ```
//!
//! Beats are at least 500 ms apart; missed beats are not made up. A replica that was judged lost has lost every
//! claim: it ends its workers and registers under a new id. A replica that cannot reach Postgres for
//! `postgres_away_max` ends its workers too (I8, I9), since by then another replica may have their turns.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    reconcile,
    shared::Engine,
    suspicion::{FailureDetector, Suspect},
};
use crate::{
    store::{
        StoreError,
        beat::{BeatAnswer, BeatSession},
        warn_of,
    },
    task::TaskKind,
    telemetry::metrics,
    worker::host::Halt,
};

/// The task's name on the task board. Its states: `registering`, `ready`, `away`.
pub const LINE: &str = "presence";

const BEAT_EVERY: Duration = Duration::from_millis(500);
/// Poll interval until the listener holds its lock, before the first beat.
const LOCK_LOOK_EVERY: Duration = Duration::from_millis(20);
/// Tries to end the backends and workers' lines that a lost replica left behind.
const CLEAR_AWAY_TRIES: u32 = 20;
/// Added to `postgres_away_max`. The last beat is older than the outage, and the next one waits for a reconnect,
/// which Postgres answers only after the attempts that were abandoned during the outage.
const AWAY_MARGIN: Duration = Duration::from_secs(8);

/// Registers and beats until cancelled.
pub async fn beat_on(engine: Engine, until: CancellationToken) {
    let mut presence = Presence {
        last_beat: Instant::now(),
        is_abandoned: false,
        detector: FailureDetector::default(),
        session: None,
        is_registered: false,
        engine,
    };
    until.run_until_cancelled(presence.run()).await;
}

/// The result of one step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BeatOutcome {
    /// A beat.
    Beat,
    /// The listener does not hold its lock yet.
    WaitForLock,
}

struct Presence {
    engine: Engine,
    detector: FailureDetector,
    session: Option<BeatSession>,
    is_registered: bool,
    /// When this replica last knew that its claims were its own.
    last_beat: Instant,
    /// Whether the workers were ended because Postgres was away too long.
    is_abandoned: bool,
}

impl Presence {
    async fn run(&mut self) {
        loop {
            let next = Instant::now() + BEAT_EVERY;
            match self.step().await {
                Ok(step) => {
                    self.engine
                        .supervisor
                        .report(LINE, if self.is_registered { "ready" } else { "registering" });
                    sleep_until(if step == BeatOutcome::Beat {
                        next
                    } else {
                        Instant::now() + LOCK_LOOK_EVERY
                    })
                    .await;
                }
                Err(why) => {
                    warn_of!(why, "the beat failed");
                    self.session = None;
                    self.engine.store.note_break();
                    self.detector.forget();
                    self.engine.set_present(false);
                    self.engine
                        .supervisor
                        .report(LINE, if self.is_registered { "away" } else { "registering" });
                    self.abandon_if_away_too_long();
                    // No back-off: a prompt beat keeps other replicas from suspecting this one.
                    tokio::time::sleep(Duration::from_millis(rand::random_range(100..300))).await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<BeatOutcome, StoreError> {
        let engine = self.engine.clone();
        if self.session.is_none() {
            // The beat connects first: until it has, the pool opens no other connections.
            self.session = Some(BeatSession::open(&engine.store).await?);
        }
        if !self.is_registered {
            // The lock comes before the row: a peer that sees the row must find the lock held.
            if engine.store.wake().lock_key() == 0 {
                return Ok(BeatOutcome::WaitForLock);
            }
            // Commits seen under the former id are compared before the new registration.
            let timeline = engine.store.timeline().await?;
            reconcile::compare(&engine).await?;
            engine.store.register(&engine.url, timeline).await?;
            self.is_registered = true;
            tracing::info!(replica_id = %engine.store.replica(), "registered");
        }
        let Some(session) = &mut self.session else { return Ok(BeatOutcome::Beat) };
        let seen = session.beat(&engine.store).await?;
        if !seen.is_alive {
            self.start_over();
            return Ok(BeatOutcome::Beat);
        }
        self.last_beat = Instant::now();
        self.is_abandoned = false;
        engine.store.wake().rings.set_peers(seen.peers.len());
        self.reconcile(&seen);
        self.judge(&seen).await?;
        if seen.has_recent_loss {
            engine.recent_loss.store(true, Ordering::Relaxed);
        }
        Ok(BeatOutcome::Beat)
    }

    /// A new timeline or a broken connection may mean lost commits.
    fn reconcile(&mut self, seen: &BeatAnswer) {
        let is_behind = seen.timeline != seen.timeline_now;
        self.engine.set_present(!is_behind);
        if is_behind || !reconcile::is_up_to_date(&self.engine) {
            reconcile::spawn(&self.engine, is_behind.then_some(seen.timeline_now));
        }
    }

    /// This replica was judged lost: every claim now belongs to other replicas.
    fn start_over(&mut self) {
        let judged = self.engine.store.replica();
        self.engine.host.halt_all(Halt::Lost);
        // The sessions of remote workers are recorded under the former id.
        self.engine.rendezvous.dismiss_all();
        let fresh = self.engine.store.rename_replica();
        tracing::error!(
            %judged, %fresh,
            "judged lost by another replica; this replica ends its workers and registers again"
        );
        self.is_registered = false;
        self.engine.set_present(false);
        self.detector.forget();
        self.engine.store.wake().look_everywhere();
    }

    fn abandon_if_away_too_long(&mut self) {
        if !self.is_abandoned && self.last_beat.elapsed() > self.engine.postgres_away_max + AWAY_MARGIN {
            self.is_abandoned = true;
            tracing::error!("Postgres was away for too long; the workers are ended");
            self.engine.host.halt_all(Halt::Lost);
        }
    }

    /// Passes verdicts over the beat's own connection, so a busy pool cannot delay the beat. Clean-up runs in
    /// tasks.
    async fn judge(&mut self, seen: &BeatAnswer) -> Result<(), StoreError> {
        for Suspect { id, beat_n, evidence } in self.detector.observe(&seen.peers) {
            let Some(session) = &mut self.session else { return Ok(()) };
            let engine = self.engine.clone();
            let Some(judged) = session.judge(id, beat_n, evidence.is_refuted_by_backends()).await? else {
                tracing::info!(
                    replica = %id, evidence = evidence.as_str(),
                    "a suspicion was refuted: the replica is alive"
                );
                continue;
            };
            metrics::verdicts(evidence.as_str());
            tracing::warn!(replica = %id, evidence = evidence.as_str(), "a replica is lost");
            if judged.is_unreconciled {
                metrics::unreconciled();
                tracing::error!(
                    replica = %id,
                    "the replica was lost together with the former primary: its last claims may run again"
                );
            }
            engine.recent_loss.store(true, Ordering::Relaxed);
            engine.store.wake().holder_gone();
            self.engine.supervisor.spawn(TaskKind::Turn, "verdict", async move {
                // Retried while Postgres is away: a backend that waits for a frozen client may hold row locks.
                for _ in 0..CLEAR_AWAY_TRIES {
                    let Err(why) = engine.store.clear_away(&judged).await else { break };
                    warn_of!(why, replica = %id, "the clean-up after a lost replica failed; trying again");
                    tokio::time::sleep(BEAT_EVERY).await;
                }
                engine.store.wake().holder_gone();
            });
        }
        Ok(())
    }
}
