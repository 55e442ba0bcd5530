//! A puppet: a replica without workers, which holds as many turns as a test wants.
//!
//! Owns a process of its own, so that it can be killed like a replica. Everything that other replicas see of it is the
//! product's own code: it registers, holds the session lock, beats, claims and starts turns through the product's
//! store. It writes no event.

use std::{process::ExitCode, time::Duration};

use lastword::{
    agent::Runtime,
    config::Config,
    store::{
        Store, beat::BeatSession, claim::Ready, notify_listener::listen_on, notify_sender::ring_on,
        queue_hints::FRONT,
    },
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const BEAT_EVERY: Duration = Duration::from_millis(500);
const CLAIMS_MAX: i64 = 64;

/// Holds whatever is queued, until it is killed or judged.
pub async fn hold(database_url: String) -> ExitCode {
    let config = Config { database_url, ..Config::default() };
    let store = Store::open(&config).expect("a store");
    store.probe().await.expect("Postgres");
    let until = CancellationToken::new();
    tokio::spawn(listen_on(store.clone(), until.clone()));
    tokio::spawn(ring_on(store.clone(), until.clone()));
    while store.wake().lock_key() == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    let timeline = store.timeline().await.expect("a timeline");
    store.register("http://127.0.0.1:1", timeline).await.expect("a row");
    tokio::spawn(claim_all(store.clone()));
    let mut session = BeatSession::open(&store).await.expect("a session");
    loop {
        match session.beat(&store).await {
            Ok(seen) if seen.is_alive => sleep(BEAT_EVERY).await,
            end => {
                eprintln!("the puppet's strings are cut: {end:?}");
                return ExitCode::FAILURE;
            }
        }
    }
}

async fn claim_all(store: Store) {
    loop {
        let claims =
            store.claim(&[Runtime::Process], &Ready::default(), FRONT, CLAIMS_MAX).await.expect("claims");
        let is_short = claims.is_empty();
        for claim in claims {
            store.start(&claim, None).await.expect("a start");
        }
        if is_short {
            sleep(Duration::from_millis(20)).await;
        }
    }
}
