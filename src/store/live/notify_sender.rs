//! The ringing side of the doorbell: one connection, one NOTIFY at a time.
//!
//! Rings at once, and gathers while a ring is under way. Where it rings all the time it gathers for longer, the longer the
//! more there are whom it wakes. NOTIFY never rides in a writing transaction: there it would serialise all
//! commits. A ring that meets a broken connection is rung again over a new one: the listener waits for its
//! own probe, and would take a lost one for its own deafness. Whoever misses a ring looks by itself.

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
/// From one ring to the next, on average, for each replica that is woken, up to ten: each ring costs every replica
/// something.
const GAP_EACH: Duration = Duration::from_micros(2200);
const GAP_MAX: Duration = Duration::from_millis(22);
/// So many may come sooner, as long as others before them came later.
const RINGS_AHEAD: u32 = 10;
const RECONNECT_GAP: Duration = Duration::from_millis(200);

/// Rings what is pending until cancelled, then once more: nothing committed goes unrung.
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

/// How fast rings may follow each other.
struct Pace {
    /// When the next one would be due if all came at the average.
    due: Instant,
}

impl Pace {
    /// How long to gather after a ring that woke so many replicas.
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

    /// How often it rings in a second if there is always something to ring for, and each ring takes 1 ms.
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
        // Five at once, each 50 ms: 100 a second of two replicas.
        for n in 0..200 {
            let now = began + Duration::from_millis(50) * (n / 5);
            assert_eq!(pace.rest(now, 2), Duration::ZERO, "{n}");
        }
    }
}
