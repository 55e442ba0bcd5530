//! Reads that readers of one turn share: one for all of them, and never an old one for whoever was woken
//! after it.

use lastword::{
    event::{Event, Kind},
    store::inflight::Claim,
};

use crate::{
    cases,
    cases::all,
    ground::{Ground, Replica, Server},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shared() {
    let server = Server::start().await;
    let cases = cases![&server;
        one_read_serves_whoever_came_before_it,
        whoever_was_woken_after_a_read_reads_again,
        a_reader_that_is_alone_shares_nothing,
    ];
    all(cases).await;
}

/// A turn of somebody else's whose log can grow without a ring reaching the reader's store.
async fn growing(ground: &Ground) -> (Replica, Claim, i32) {
    let writer = ground.replica().await;
    let (claim, seq) = writer.running().await;
    (writer, claim, seq)
}

fn seqs(events: &[Event]) -> Vec<i32> {
    events.iter().map(|event| event.seq).collect()
}

async fn one_read_serves_whoever_came_before_it(server: &Server) {
    let ground = server.ground().await;
    let (writer, claim, seq) = growing(&ground).await;
    let store = ground.open();
    let (one, other) = (store.wake().tail(claim.turn), store.wake().tail(claim.turn));
    let (_, first) = store.read_shared(&one, -1, 100).await.unwrap();
    writer.append(&claim, seq, Kind::Delta).await;
    // What this one was woken for is in the read of the first: it costs none of its own.
    let (_, shared) = store.read_shared(&other, -1, 100).await.unwrap();
    assert_eq!(seqs(&shared), seqs(&first));
    assert_eq!(store.read_after(claim.turn, -1, 100).await.unwrap().len(), first.len() + 1);
}

async fn whoever_was_woken_after_a_read_reads_again(server: &Server) {
    let ground = server.ground().await;
    let (writer, claim, seq) = growing(&ground).await;
    let store = ground.open();
    let (one, mut other) = (store.wake().tail(claim.turn), store.wake().tail(claim.turn));
    let (_, first) = store.read_shared(&one, -1, 100).await.unwrap();
    writer.append(&claim, seq, Kind::Delta).await;
    store.wake().events_committed([claim.turn]);
    other.look();
    let (_, fresh) = store.read_shared(&other, -1, 100).await.unwrap();
    assert_eq!(fresh.len(), first.len() + 1);
    // From where the first stands, the same read has the rest, and the event that it stands on.
    let (anchor, rest) = store.read_shared(&one, first.last().unwrap().seq, 100).await.unwrap();
    assert_eq!(seqs(&rest), seqs(&fresh[first.len()..]));
    assert!(anchor.is_some());
}

async fn a_reader_that_is_alone_shares_nothing(server: &Server) {
    let ground = server.ground().await;
    let (writer, claim, seq) = growing(&ground).await;
    let store = ground.open();
    let alone = store.wake().tail(claim.turn);
    let (_, first) = store.read_shared(&alone, -1, 100).await.unwrap();
    writer.append(&claim, seq, Kind::Delta).await;
    let (_, second) = store.read_shared(&alone, -1, 100).await.unwrap();
    assert_eq!(second.len(), first.len() + 1);
}
