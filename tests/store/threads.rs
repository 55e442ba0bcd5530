//! A reader of a whole conversation, and the poller that looks for it.

use std::time::Duration;

use lastword::{
    event::Kind,
    store::{beat::BeatSession, notify_listener::listen_on, notify_sender::ring_on, poller::look_on},
    stream::{ConversationTail, Position, tail::TailError},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::ground::{Ground, Replica, Server, next_in};

const PATIENCE: Duration = Duration::from_secs(20);

/// A conversation with a turn that has ended, and a reader elsewhere that has seen all of it and has begun to wait.
async fn told(ground: &Ground) -> (Replica, ConversationTail, CancellationToken, lastword::store::Store) {
    let writer = ground.replica().await;
    let (claim, seq) = writer.running().await;
    writer.finish(&claim, seq).await;
    let (store, until) = (ground.open(), CancellationToken::new());
    tokio::spawn(look_on(store.clone(), until.clone()));
    let mut thread = ConversationTail::new(&store, claim.conversation, Position::START);
    let events = thread.page().await.unwrap();
    assert_eq!(events.last().map(|(_, event)| event.kind), Some(Kind::Completed));
    (writer, thread, until, store)
}

#[tokio::test]
async fn the_poller_finds_the_next_turn_for_whoever_was_not_rung_for() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let (writer, mut thread, until, _) = told(&ground).await;
    let conversation = ground.ask("select id from conversations").await.parse().unwrap();
    assert_eq!(thread.look(10).await.unwrap(), [], "nothing has happened");
    let (woken, ()) = tokio::join!(timeout(PATIENCE, thread.wait(Duration::MAX)), async {
        let next = next_in(&writer.store, lastword::id::ConversationId(conversation));
        writer.store.accept(&next).await.unwrap();
    });
    assert!(woken.is_ok(), "nobody looked for it");
    let seen: Vec<_> =
        thread.look(10).await.unwrap().into_iter().map(|(at, event)| (at.ordinal, event.kind)).collect();
    assert_eq!(seen, [(2, Kind::Accepted)]);
    until.cancel();
}

#[tokio::test]
async fn a_reader_that_waits_is_told_that_what_it_was_told_stands_there_no_more() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let (_, mut thread, until, store) = told(&ground).await;
    assert_eq!(thread.look(10).await.unwrap(), [], "nothing has happened");
    ground.run("update turn_events set at = at + interval '1 s' where kind = 'completed'").await.unwrap();
    // Whoever waits meanwhile asks nothing, so it takes a break to have it compared.
    let (woken, _beat) = tokio::join!(timeout(PATIENCE, thread.wait(Duration::MAX)), async {
        store.note_break();
        // Nobody else asks before the beat has connected.
        BeatSession::open(&store).await.unwrap()
    });
    assert!(woken.is_ok(), "nobody compared it");
    let told = thread.look(10).await;
    assert!(matches!(told, Err(TailError::Rewound { .. })), "{told:?}");
    until.cancel();
}

#[tokio::test]
async fn a_reader_that_begins_at_a_last_word_waits_for_the_next_turn() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let writer = ground.replica().await;
    let (claim, seq) = writer.running().await;
    writer.finish(&claim, seq).await;
    let at = Position { ordinal: 1, seq: seq + 1 };
    let mut thread = ConversationTail::new(&writer.store, claim.conversation, at);
    assert_eq!(thread.look(10).await.unwrap(), []);
    writer.store.accept(&next_in(&writer.store, claim.conversation)).await.unwrap();
    let seen = thread.page().await.unwrap();
    assert_eq!(seen.first().map(|(at, _)| (at.ordinal, at.seq)), Some((2, 0)));
}

#[tokio::test]
async fn a_replica_that_follows_a_conversation_is_rung_for_where_nobody_looks() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let writer = ground.replica().await;
    let (store, until) = (ground.open(), CancellationToken::new());
    for store in [&store, &writer.store] {
        tokio::spawn(listen_on(store.clone(), until.clone()));
        tokio::spawn(ring_on(store.clone(), until.clone()));
    }
    let (claim, seq) = writer.running().await;
    writer.finish(&claim, seq).await;
    let mut thread = ConversationTail::new(&store, claim.conversation, Position { ordinal: 1, seq: seq + 1 });
    assert_eq!(thread.look(10).await.unwrap(), []);
    let wait = tokio::spawn(async move { thread.wait(Duration::MAX).await });
    // The other one may not have heard yet that anybody follows conversations: a later turn is rung for.
    crate::ground::until("the reader is woken", async || {
        writer.store.accept(&next_in(&writer.store, claim.conversation)).await.unwrap();
        wait.is_finished().then_some(())
    })
    .await;
    until.cancel();
}
