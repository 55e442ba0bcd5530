//! Shared reads: one for all readers of a turn, and never an old one for a reader that was woken later; one statement
//! for many turns; one poll for all waiting readers.

use std::time::Duration;

use futures_util::future::join_all;
use lastword::{
    event::{Kind, SharedEvent},
    id::TurnId,
    store::{batch_reader, claim::Claim, group_commit::Written, pages::Anchor, poller},
    stream::Tail,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    cases,
    cases::all,
    ground::{Ground, Replica, Server, fresh},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shared() {
    let server = Server::start().await;
    let cases = cases![&server;
        one_read_serves_whoever_came_before_it,
        whoever_was_woken_after_a_read_reads_again,
        a_reader_that_begins_anew_reads_anew,
        readers_that_ask_at_once_are_answered_each_with_its_own,
        what_is_committed_here_is_shown_without_a_read,
        whoever_was_rung_since_a_commit_here_reads,
        the_poller_finds_whoever_was_not_rung_for,
    ];
    all(cases).await;
}

/// A turn of somebody else's whose log can grow without a ring reaching the reader's store.
async fn growing(ground: &Ground) -> (Replica, Claim, i32) {
    let writer = ground.replica().await;
    let (claim, seq) = writer.running().await;
    (writer, claim, seq)
}

fn seqs(events: &[SharedEvent]) -> Vec<i32> {
    events.iter().map(|event| event.seq).collect()
}

async fn one_read_serves_whoever_came_before_it(server: &Server) {
    let ground = server.ground().await;
    let (writer, claim, seq) = growing(&ground).await;
    let store = ground.open();
    let (one, other) = (store.wake().turns.subscribe(claim.turn), store.wake().turns.subscribe(claim.turn));
    let first = store.read_shared(&one, -1, 100, false).await.unwrap().events;
    writer.append(&claim, seq, Kind::Delta).await;
    // What this one was woken for is in the read of the first: it costs none of its own.
    let shared = store.read_shared(&other, -1, 100, false).await.unwrap().events;
    assert_eq!(seqs(&shared), seqs(&first));
    assert_eq!(store.read_after(claim.turn, -1, 100).await.unwrap().len(), first.len() + 1);
}

async fn whoever_was_woken_after_a_read_reads_again(server: &Server) {
    let ground = server.ground().await;
    let (writer, claim, seq) = growing(&ground).await;
    let store = ground.open();
    let (one, mut other) =
        (store.wake().turns.subscribe(claim.turn), store.wake().turns.subscribe(claim.turn));
    let first = store.read_shared(&one, -1, 100, false).await.unwrap().events;
    writer.append(&claim, seq, Kind::Delta).await;
    store.wake().turns.events_committed([claim.turn]);
    other.look();
    let fresh = store.read_shared(&other, -1, 100, false).await.unwrap().events;
    assert_eq!(fresh.len(), first.len() + 1);
    // From where the first stands, the same read has the rest, and the event that it stands on.
    let page = store.read_shared(&one, first.last().unwrap().seq, 100, false).await.unwrap();
    assert_eq!(seqs(&page.events), seqs(&fresh[first.len()..]));
    assert!(page.anchor.is_some());
}

async fn a_reader_that_begins_anew_reads_anew(server: &Server) {
    let ground = server.ground().await;
    let (writer, claim, seq) = growing(&ground).await;
    let store = ground.open();
    let alone = store.wake().turns.subscribe(claim.turn);
    let first = store.read_shared(&alone, -1, 100, false).await.unwrap().events;
    writer.append(&claim, seq, Kind::Delta).await;
    let second = store.read_shared(&alone, -1, 100, false).await.unwrap().events;
    assert_eq!(second.len(), first.len() + 1);
}

async fn readers_that_ask_at_once_are_answered_each_with_its_own(server: &Server) {
    let ground = server.ground().await;
    let writer = ground.replica().await;
    let store = ground.open();
    let until = CancellationToken::new();
    let serving = tokio::spawn(batch_reader::read_on(store.clone(), until.clone()));
    let mut logs = Vec::new();
    for _ in 0..20 {
        let (claim, seq) = writer.running().await;
        writer.append(&claim, seq, Kind::Delta).await;
        logs.push((
            store.wake().turns.subscribe(claim.turn),
            store.read_after(claim.turn, -1, 100).await.unwrap(),
        ));
    }
    // From every cursor of every log, all at once.
    let asked = logs.iter().flat_map(|(interest, log)| {
        let cursors = std::iter::once(-1).chain(log.iter().map(|event| event.seq));
        cursors.map(move |cursor| (interest, log, cursor))
    });
    let read = asked.map(async |(interest, log, cursor)| {
        let page = store.read_shared(interest, cursor, 100, false).await.unwrap();
        assert!(page.is_whole);
        assert_eq!(page.anchor, log.iter().find(|event| event.seq == cursor).map(|event| Anchor::of(event)));
        let rest: Vec<&SharedEvent> = log.iter().filter(|event| event.seq > cursor).collect();
        assert_eq!(page.events.iter().collect::<Vec<_>>(), rest);
    });
    assert!(join_all(read).await.len() > logs.len());
    // More than one gets in company is a whole page all the same.
    let (claim, mut seq) = writer.running().await;
    for _ in 0..99 {
        let Written::Done(newest) = writer.append(&claim, seq, Kind::Delta).await else { panic!("fenced") };
        seq = newest;
    }
    let long = store.read_shared(&store.wake().turns.subscribe(claim.turn), -1, 90, false).await.unwrap();
    assert_eq!((long.events.len(), long.is_whole), (90, false));
    until.cancel();
    serving.await.unwrap();
    // Nobody serves any more: a reader goes by itself.
    let (interest, log) = &logs[0];
    assert_eq!(store.read_shared(interest, -1, 100, false).await.unwrap().events, *log);
}

async fn what_is_committed_here_is_shown_without_a_read(server: &Server) {
    let ground = server.ground().await;
    let here = ground.replica().await;
    let new = fresh(&here.store);
    let mut tails = [Tail::new(&here.store, new.id, -1), Tail::new(&here.store, new.id, -1)];
    let mut alone = Tail::new(&here.store, TurnId(here.store.clock().mint()), -1);
    here.store.accept(&new).await.unwrap();
    // Whoever reads the log now waits.
    let lock = async || {
        let mut lock = ground.sql.begin().await.unwrap();
        sqlx::query("lock table turn_events in access exclusive mode").execute(&mut *lock).await.unwrap();
        lock
    };
    let lock_of_birth = lock().await;
    for tail in &mut tails {
        assert_eq!(seqs(&tail.look(100).await.unwrap()), [0]);
        assert_eq!(seqs(&tail.look(100).await.unwrap()), [0; 0], "it knows that there is nothing more");
    }
    assert!(timeout(Duration::from_millis(100), alone.look(100)).await.is_err(), "nothing is locked");
    lock_of_birth.rollback().await.unwrap();

    let claim = here.claim_of(new.id).await;
    let seq = here.start(&claim).await.unwrap();
    for tail in &mut tails {
        assert_eq!(seqs(&tail.look(100).await.unwrap()), [seq]);
    }
    here.append(&claim, seq, Kind::Delta).await;
    here.append(&claim, seq + 1, Kind::Delta).await;
    assert_eq!(here.finish(&claim, seq + 2).await, Written::Done(seq + 3));
    let lock_of_end = lock().await;
    let [mut one, mut other] = tails;
    let shown = one.look(100).await.unwrap();
    assert_eq!(seqs(&other.look(2).await.unwrap()), [seq + 1, seq + 2]);
    drop(one);
    assert_eq!(seqs(&other.look(2).await.unwrap()), [seq + 3]);
    assert!(other.is_ended());
    lock_of_end.rollback().await.unwrap();
    assert_eq!(shown, here.store.read_after(new.id, seq, 100).await.unwrap(), "as it stands, times and all");
}

async fn whoever_was_rung_since_a_commit_here_reads(server: &Server) {
    let ground = server.ground().await;
    let here = ground.replica().await;
    let (claim, seq) = here.running().await;
    let mut tail = Tail::new(&here.store, claim.turn, seq);
    tail.look(100).await.unwrap();
    here.append(&claim, seq, Kind::Delta).await;
    ground.run("update turn_events set data = '{\"text\":\"read\"}' where kind = 'delta'").await.unwrap();
    here.store.wake().turns.events_committed([claim.turn]);
    let read = tail.look(100).await.unwrap();
    assert_eq!((seqs(&read), read[0].data.as_str()), (vec![seq + 1], "{\"text\":\"read\"}"));
}

async fn the_poller_finds_whoever_was_not_rung_for(server: &Server) {
    let ground = server.ground().await;
    let (writer, claim, seq) = growing(&ground).await;
    let (_, still, _) = growing(&ground).await;
    let store = ground.open();
    let until = CancellationToken::new();
    let looking = tokio::spawn(poller::look_on(store.clone(), until.clone()));
    let (mut goes_on, mut stands) = (Tail::new(&store, claim.turn, -1), Tail::new(&store, still.turn, -1));
    for tail in [&mut goes_on, &mut stands] {
        assert!(!tail.page().await.unwrap().is_empty());
    }
    let (more, woken, ()) = tokio::join!(
        async {
            let page = goes_on.page().await.unwrap();
            until.cancel();
            page
        },
        // Until the other one has read.
        until.run_until_cancelled(stands.page()),
        async {
            writer.append(&claim, seq, Kind::Delta).await;
        },
    );
    assert_eq!(seqs(&more), [seq + 1]);
    assert!(woken.is_none(), "nothing has happened there");
    looking.await.unwrap();
}
