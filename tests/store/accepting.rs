//! I1 and I14: a turn is accepted once; a refused turn leaves nothing behind.

use futures_util::{StreamExt, future::join_all, stream};
use lastword::{
    id::{ConversationId, TurnId},
    store::accept::IfBusy,
};

use crate::{
    cases,
    cases::all,
    ground::{Server, fresh, next_in, refusal},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted() {
    let server = Server::start().await;
    let cases = cases![&server;
        twins_with_one_key_become_one_turn,
        an_accept_repeated_after_an_unknown_commit_is_the_same_turn,
        turns_accepted_at_once_line_up_without_gaps,
        what_is_refused_leaves_nothing_behind,
    ];
    all(cases).await;
}

async fn twins_with_one_key_become_one_turn(server: &Server) {
    let ground = server.ground().await;
    let (one, other) = (ground.open(), ground.open());
    let key = |n: usize, body: &str| Some((format!("key {n}"), body.to_owned()));
    stream::iter(0..200)
        .for_each_concurrent(4, async |n| {
            let mut twins = [fresh(&one), fresh(&other)];
            twins.iter_mut().for_each(|twin| twin.idempotency = key(n, "body"));
            let (first, second) = tokio::join!(one.accept(&twins[0]), other.accept(&twins[1]));
            let (first, second) = (first.unwrap(), second.unwrap());
            assert_eq!(first.id, second.id, "two turns for one key");
            assert!(first.is_repeat != second.is_repeat, "{first:?} {second:?}");

            let mut forged = fresh(&other);
            forged.idempotency = key(n, "another body");
            assert_eq!(refusal(other.accept(&forged).await).0, "LW422");
        })
        .await;
    assert_eq!(ground.ask("select count(*) from turns").await, "200");
    assert_eq!(ground.ask("select count(*) from conversations").await, "200");
    ground.assert_whole().await;
}

async fn an_accept_repeated_after_an_unknown_commit_is_the_same_turn(server: &Server) {
    let ground = server.ground().await;
    let store = ground.open();
    let new = fresh(&store);
    assert!(!store.accept(&new).await.unwrap().is_repeat);
    let before = ground.everything_of(new.id).await;
    let again = store.accept(&new).await.unwrap();
    assert_eq!((again.id, again.is_repeat), (new.id, true));
    assert_eq!(ground.everything_of(new.id).await, before);
}

async fn turns_accepted_at_once_line_up_without_gaps(server: &Server) {
    let ground = server.ground().await;
    let stores = [ground.open(), ground.open()];
    let conversation = ConversationId(stores[0].clock().mint());
    stores[0].make_conversation(conversation, "demo").await.unwrap();
    let accepted = join_all((0..50).map(async |i| {
        let store = &stores[i % 2];
        let mut new = next_in(store, conversation);
        new.depth_max = 40;
        store.accept(&new).await
    }))
    .await;
    let (accepted, refused): (Vec<_>, Vec<_>) = accepted.into_iter().partition(Result::is_ok);
    assert_eq!((accepted.len(), refused.len()), (40, 10));
    for refused in refused {
        assert_eq!(refusal(refused), ("LW429".to_owned(), "conversation".to_owned()));
    }
    let ordinals = "select string_agg(ordinal::text, ' ' order by ordinal) from turns";
    let wanted: Vec<_> = (1..=40).map(|n: i32| n.to_string()).collect();
    assert_eq!(ground.ask(ordinals).await, wanted.join(" "));
    ground.assert_whole().await;
}

async fn what_is_refused_leaves_nothing_behind(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let store = &replica.store;
    let first = replica.accept().await;
    let rows = "select concat_ws(' ', (select count(*) from turns), (select count(*) from inflight),
        (select count(*) from turn_events), (select count(*) from idempotency), (select count(*) from conversations),
        (select sum(next_ordinal) from conversations))";
    let before = ground.ask(rows).await;

    let mut busy = next_in(store, first.conversation);
    busy.if_busy = IfBusy::Reject;
    busy.idempotency = Some(("key".to_owned(), "body".to_owned()));
    let (code, active) = refusal(store.accept(&busy).await);
    assert_eq!((code.as_str(), active), ("LW409", first.id.0.to_string()));

    let mut deep = next_in(store, first.conversation);
    deep.depth_max = 1;
    assert_eq!(refusal(store.accept(&deep).await), ("LW429".to_owned(), "conversation".to_owned()));

    let mut full = fresh(store);
    full.queue_max = 1;
    assert_eq!(refusal(store.accept(&full).await), ("LW429".to_owned(), "queue".to_owned()));

    let mut foreign = next_in(store, first.conversation);
    foreign.agent.name = "another".to_owned();
    assert_eq!(refusal(store.accept(&foreign).await).0, "LW404");
    let unknown = next_in(store, ConversationId(store.clock().mint()));
    assert_eq!(refusal(store.accept(&unknown).await).0, "LW404");
    // Its day has no partition: refused whole, not half.
    let mut ancient = fresh(store);
    ancient.id = TurnId(uuid::Uuid::from_u128(0x0100_0000_0000_7000_8000_0000_0000_0000));
    assert!(store.accept(&ancient).await.is_err());
    assert_eq!(ground.ask(rows).await, before);

    assert!(store.delete_conversation(first.conversation).await.unwrap());
    assert_eq!(refusal(store.accept(&next_in(store, first.conversation)).await).0, "LW404");
    assert_eq!(ground.ask(rows).await, before);
    // A claimed turn does not count as queued: the queue has room again.
    replica.claim_of(first.id).await;
    store.accept(&full).await.unwrap();
    ground.assert_whole().await;
}
