//! The receiving side of the doorbell, and the session lock that proves that this process lives.
//!
//! One connection does both. It is otherwise idle, so when the process dies Postgres frees the lock within
//! milliseconds. Each (re)connect takes a new lock key, then locks, then publishes the key for the beat to store, and
//! finally wakes every waiter, since notifications during the gap are lost.
//!
//! A connection can be dead without an error (a cut network sends no RST), so it is probed every 5 s: by a NOTIFY to
//! itself if the doorbell is on, else by a query.

use std::time::{Duration, Instant};

use sqlx::postgres::PgListener;
use tokio_util::sync::CancellationToken;

use super::ring::read;
use crate::{
    store::{
        error::{FailureReach, StoreError},
        handle::Store,
    },
    telemetry::metrics,
};

/// Interval between two probes.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How long a probe may take before the connection is dropped.
const PROBE_MAX: Duration = Duration::from_secs(4);
const CONNECT_MAX: Duration = Duration::from_secs(4);
const RECONNECT_GAP: Duration = Duration::from_millis(200);

/// Listens until cancelled. A lost session is replaced by a new one.
pub async fn listen_on(store: Store, until: CancellationToken) {
    until
        .run_until_cancelled(async {
            loop {
                if let Err(why) = session(&store).await {
                    store.reachability().failed(FailureReach::Connection, &why);
                }
                store.wake().rings.set_round_trip(None);
                tokio::time::sleep(RECONNECT_GAP).await;
            }
        })
        .await;
}

async fn session(store: &Store) -> Result<(), StoreError> {
    let lost = |why: String| StoreError::Away { op: "listen", why };
    let mut listener = tokio::time::timeout(CONNECT_MAX, connect(store))
        .await
        .map_err(|_| lost(format!("no connection within {CONNECT_MAX:?}")))??;
    store.wake().look_everywhere();
    let started = Instant::now();
    loop {
        let result = if store.wake().rings.is_on() {
            hear(store, &mut listener, started).await
        } else {
            knock(&mut listener).await
        };
        result.map_err(|why| lost(why.to_string()))?;
    }
}

/// Connects, takes the session lock, listens, and only then publishes the lock's key. If the beat has lost Postgres,
/// waits until the beat is connected again.
async fn connect(store: &Store) -> Result<PgListener, StoreError> {
    store.reachability().there().await;
    let mut listener = store.listener_sessions().listener("listen", PROBE_MAX).await?;
    // A silent reconnect would lose both the lock and the notifications meanwhile.
    listener.eager_reconnect(false);
    let key = i64::from_be_bytes(rand::random::<[u8; 8]>()) | 1;
    let failed = |why| StoreError::from_sqlx("listen", why);
    sqlx::query!("select pg_advisory_lock($1)", key).execute(&mut listener).await.map_err(failed)?;
    if store.wake().rings.is_on() {
        let schema = store.listener_sessions().schema(&mut listener).await.map_err(failed)?;
        listener.listen(&schema.channel()).await.map_err(failed)?;
    }
    store.wake().set_lock_key(key);
    Ok(listener)
}

/// Probes, then receives notifications until the next probe is due; an error if the probe does not come back.
async fn hear(store: &Store, listener: &mut PgListener, started: Instant) -> Result<(), sqlx::Error> {
    store.wake().ring_probe(started, Instant::now());
    let mut is_heard = false;
    let probed_at = tokio::time::Instant::now();
    loop {
        let until = probed_at + if is_heard { PROBE_EVERY } else { PROBE_MAX };
        let Ok(heard) = tokio::time::timeout_at(until, listener.try_recv()).await else {
            return if is_heard { Ok(()) } else { Err(sqlx::Error::PoolTimedOut) };
        };
        let Some(notification) = heard? else {
            return Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted).into());
        };
        let Some((sender, ring)) = read(notification.payload()) else {
            tracing::warn!("a notification on the doorbell's channel cannot be read; ignored");
            continue;
        };
        if sender != store.wake().rings.sender() {
            store.wake().hear(sender, &ring);
        } else if let Some(nonce) = ring.probe {
            let rung_at = started + Duration::from_micros(nonce.unsigned_abs());
            let took = rung_at.elapsed();
            store.wake().rings.set_round_trip(Some(took));
            metrics::doorbell_round_trip(took);
            is_heard = true;
        }
    }
}

/// Without the doorbell: checks only that the connection answers.
async fn knock(listener: &mut PgListener) -> Result<(), sqlx::Error> {
    tokio::time::sleep(PROBE_EVERY).await;
    let answer = sqlx::query!("select 1 as one").fetch_one(listener);
    tokio::time::timeout(PROBE_MAX, answer).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
    Ok(())
}
