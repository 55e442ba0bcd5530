//! The sending side of the doorbell: one connection, one NOTIFY at a time.
//!
//! Sends at once when idle; rings gather while one is being sent. Under constant load the interval grows with the
//! number of replicas. NOTIFY is never part of a writing transaction: there it would serialise all commits. After a
//! broken connection the ring is sent again over a new one, since the listener would take its own lost probe for a dead
//! connection. A replica that misses a ring polls (I13).

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::ring::{Ring, payloads};
use crate::{
    store::{
        error::StoreError,
        handle::Store,
        pool::{conn::Conn, session::SessionPurpose},
    },
    telemetry::metrics,
};

const RING_MAX: Duration = Duration::from_secs(2);
/// Average interval between two rings per replica, up to ten replicas: each ring costs every replica some work.
const GAP_EACH: Duration = Duration::from_micros(2200);
const GAP_MAX: Duration = Duration::from_millis(22);
/// Burst allowance, in rings.
const RINGS_AHEAD: u32 = 10;
const RECONNECT_GAP: Duration = Duration::from_millis(200);

/// Sends pending rings until cancelled, then once more, so that every commit is rung for.
pub async fn ring_on(store: Store, until: CancellationToken) {
    let mut conn: Option<Conn> = None;
    let mut pace = Pace { due: Instant::now() };
    loop {
        let is_last = tokio::select! {
            () = store.wake().rings.added() => false,
            () = until.cancelled() => true,
        };
        let pending = store.wake().rings.take();
        if !pending.is_empty()
            && let Err(why) = ring(&store, &mut conn, &pending).await
        {
            tracing::debug!(%why, "the doorbell could not be rung");
            if !is_last {
                conn = None;
                tokio::time::sleep(RECONNECT_GAP).await;
                if why.is_away() {
                    store.wake().rings.put_back(pending);
                }
            }
        }
        if is_last {
            return;
        }
        tokio::time::sleep(pace.rest(Instant::now(), store.wake().rings.replicas())).await;
    }
}

/// The rate limit for rings, a token bucket.
struct Pace {
    /// When the next ring would be due at the average rate.
    due: Instant,
}

impl Pace {
    /// How long to pause after a ring that woke this many replicas.
    fn rest(&mut self, now: Instant, replicas: usize) -> Duration {
        let gap = GAP_EACH.saturating_mul(u32::try_from(replicas).unwrap_or(u32::MAX)).min(GAP_MAX);
        self.due = self.due.max(now) + gap;
        self.due.saturating_duration_since(now + gap * RINGS_AHEAD)
    }
}

async fn ring(store: &Store, slot: &mut Option<Conn>, pending: &Ring) -> Result<(), StoreError> {
    let lost = |why: String| StoreError::Away { op: "ring", why };
    let work = async {
        let conn = match slot {
            Some(conn) => conn,
            None => {
                slot.insert(store.listener_sessions().open("ring", SessionPurpose::Task(RING_MAX)).await?)
            }
        };
        for payload in payloads(store.wake().rings.sender(), pending) {
            sqlx::query_scalar!("select pg_notify($1, $2)::text", &*conn.schema.channel(), payload)
                .fetch_one(&mut *conn)
                .await
                .map_err(|why| StoreError::from_sqlx("ring", why))?;
            metrics::doorbell_rings();
        }
        Ok(())
    };
    match tokio::time::timeout(RING_MAX, work).await {
        Ok(done) => done,
        Err(_) => Err(lost(format!("no answer within {RING_MAX:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rings per second under constant load, if each ring takes 1 ms.
    fn rings_a_second(replicas: usize) -> u32 {
        let began = Instant::now();
        let (mut pace, mut now, mut rings) = (Pace { due: began }, began, 0);
        while now < began + Duration::from_secs(10) {
            now += Duration::from_millis(1);
            now += pace.rest(now, replicas);
            rings += 1;
        }
        rings / 10
    }

    #[test]
    fn rings_have_a_rate_that_goes_with_the_number_of_replicas() {
        assert_eq!([1, 2, 10, 100].map(rings_a_second), [455, 228, 46, 46]);
    }

    #[test]
    fn who_rings_now_and_then_never_rests() {
        let began = Instant::now();
        let mut pace = Pace { due: began };
        // Five at once, every 50 ms: 100 a second, for two replicas.
        for n in 0..200 {
            let now = began + Duration::from_millis(50) * (n / 5);
            assert_eq!(pace.rest(now, 2), Duration::ZERO, "{n}");
        }
    }
}
