//! Verdicts: what a beat sees of the other replicas, and what refutes a verdict.

use lastword::{
    id::ReplicaId,
    store::{
        Store,
        beat::{BeatSession, Trace},
    },
};

use crate::{
    cases,
    cases::all,
    ground::{Replica, Server, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_judged() {
    let server = Server::start().await;
    let cases = cases![&server;
        a_beat_that_came_in_between_refutes_a_verdict,
        a_living_backend_refutes_a_verdict_that_asks_for_it,
        a_replica_that_left_cannot_be_judged_nor_beat,
        a_beat_sees_what_is_left_of_a_peer,
    ];
    all(cases).await;
}

async fn a_beat_that_came_in_between_refutes_a_verdict(server: &Server) {
    let ground = server.ground().await;
    let (judge, peer) = (ground.replica().await, ground.replica().await);
    let mut beats = BeatSession::open(&judge.store).await.unwrap();
    let mut signs = BeatSession::open(&peer.store).await.unwrap();
    assert!(signs.beat(&peer.store).await.unwrap().is_alive);
    let seen = beats.beat(&judge.store).await.unwrap();
    let before = seen.peers.iter().find(|seen| seen.id == peer.store.replica()).unwrap().beat_n;

    assert!(signs.beat(&peer.store).await.unwrap().is_alive);
    assert!(!verdict(&judge.store, peer.store.replica(), before, false).await);
    assert_eq!(state_of(&judge.store, peer.store.replica()).await, "ready");

    assert!(verdict(&judge.store, peer.store.replica(), before + 1, false).await);
    assert_eq!(state_of(&judge.store, peer.store.replica()).await, "lost");
    assert!(!verdict(&judge.store, peer.store.replica(), before + 1, false).await, "judged twice");
    // The judged one learns of it by its next beat: its own session was ended with the verdict.
    let told = until("a beat of the judged one", async || {
        let mut session = BeatSession::open(&peer.store).await.ok()?;
        session.beat(&peer.store).await.ok()
    })
    .await;
    assert!(!told.is_alive, "it beats on");
    assert!(beats.beat(&judge.store).await.unwrap().has_recent_loss);
}

async fn a_living_backend_refutes_a_verdict_that_asks_for_it(server: &Server) {
    let ground = server.ground().await;
    let (judge, peer) = (ground.replica().await, ground.replica().await);
    let id = peer.store.replica();
    assert!(!verdict(&judge.store, id, 0, true).await, "its pool is still connected");
    let Replica { store, writer } = peer;
    drop(writer);
    store.close().await;
    until("its last backend's end", async || verdict(&judge.store, id, 0, true).await.then_some(())).await;
    assert_eq!(state_of(&judge.store, id).await, "lost");
}

async fn a_replica_that_left_cannot_be_judged_nor_beat(server: &Server) {
    let ground = server.ground().await;
    let (judge, peer) = (ground.replica().await, ground.replica().await);
    let mut signs = BeatSession::open(&peer.store).await.unwrap();
    assert!(signs.beat(&peer.store).await.unwrap().is_alive);
    assert!(peer.store.start_drain().await.unwrap());
    assert!(signs.beat(&peer.store).await.unwrap().is_alive, "it beats while it drains");
    peer.store.leave().await.unwrap();
    assert!(!signs.beat(&peer.store).await.unwrap().is_alive);
    assert!(!verdict(&judge.store, peer.store.replica(), 2, false).await);
    assert_eq!(state_of(&judge.store, peer.store.replica()).await, "left");
}

async fn a_beat_sees_what_is_left_of_a_peer(server: &Server) {
    let ground = server.ground().await;
    let (judge, peer) = (ground.replica().await, ground.replica().await);
    let id = peer.store.replica();
    let mut beats = BeatSession::open(&judge.store).await.unwrap();
    let mut trace = async || {
        let seen = beats.beat(&judge.store).await.unwrap();
        seen.peers.iter().find(|seen| seen.id == id).unwrap().trace
    };
    assert_eq!(trace().await, Trace::Backends, "its pool is connected, and it has no lock");
    // Somebody holds the lock whose key it registered.
    let mut holder = ground.sql.acquire().await.unwrap();
    let key = peer.store.wake().lock_key();
    sqlx::query("select pg_advisory_lock($1)").bind(key).execute(&mut *holder).await.unwrap();
    assert_eq!(trace().await, Trace::Lock);
    sqlx::query("select pg_advisory_unlock($1)").bind(key).execute(&mut *holder).await.unwrap();
    let Replica { store, writer } = peer;
    drop(writer);
    store.close().await;
    until("its last backend's end", async || (trace().await == Trace::Nothing).then_some(())).await;
}

async fn state_of(store: &Store, id: ReplicaId) -> String {
    let replicas = store.replicas(None, 10).await.unwrap();
    replicas.into_iter().find(|replica| replica.id == id).unwrap().state.to_string()
}

/// A verdict as presence gives it: over a beat session, with what follows from it.
async fn verdict(judge: &Store, peer: ReplicaId, beat_n: i64, unless_backends_live: bool) -> bool {
    let mut session = BeatSession::open(judge).await.unwrap();
    let judged = session.judge(peer, beat_n, unless_backends_live).await.unwrap();
    if let Some(judged) = &judged {
        judge.clear_away(judged).await.unwrap();
    }
    judged.is_some()
}
