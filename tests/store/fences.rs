//! I3 and I5: without the current epoch nothing is written, and nothing follows a last word.

use futures_util::future::join_all;
use lastword::{event::Kind, id::WorkerId, store::group_commit::Written, turn::CancelledBy};

use crate::{
    cases,
    cases::all,
    ground::{Server, append_of, finish_of},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fenced() {
    let server = Server::start().await;
    let cases = cases![&server;
        a_stale_epoch_writes_nothing,
        what_is_written_twice_stands_once,
        nothing_follows_a_last_word,
        one_poisonous_event_does_not_fail_its_neighbours,
    ];
    all(cases).await;
}

async fn a_stale_epoch_writes_nothing(server: &Server) {
    let ground = server.ground().await;
    let (stale, holder) = (ground.replica().await, ground.replica().await);
    let old = stale.claimed().await;
    assert!(stale.store.release(old.turn, old.epoch, false).await.unwrap());
    let new = holder.claim_of(old.turn).await;
    assert_eq!((old.epoch, new.epoch), (1, 2));
    let seq = holder.start(&new).await.unwrap();

    let before = ground.everything_of(old.turn).await;
    let mut ahead = new.clone();
    ahead.epoch = 3;
    for wrong in [&old, &ahead] {
        assert_eq!(stale.append(wrong, seq, Kind::Delta).await, Written::LeaseLost);
        assert_eq!(stale.finish(wrong, seq).await, Written::LeaseLost);
        assert_eq!(stale.start(wrong).await, None);
        assert!(!stale.store.release(wrong.turn, wrong.epoch, false).await.unwrap());
        assert!(stale.store.is_over(wrong.turn, wrong.epoch).await.unwrap());
    }
    // The right epoch, on top of an event that was never committed.
    assert_eq!(holder.append(&new, seq + 1, Kind::Delta).await, Written::LeaseLost);
    assert_eq!(holder.finish(&new, seq + 1).await, Written::LeaseLost);
    assert_eq!(ground.everything_of(old.turn).await, before, "a stale write left a trace");

    assert_eq!(holder.append(&new, seq, Kind::Delta).await, Written::Done(seq + 1));
    assert_eq!(holder.finish(&new, seq + 1).await, Written::Done(seq + 2));
    ground.assert_whole().await;
}

async fn what_is_written_twice_stands_once(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let claim = replica.claimed().await;
    let worker = WorkerId(replica.store.clock().mint());
    let seq = replica.store.start(&claim, Some(worker)).await.unwrap().unwrap();
    assert_eq!(replica.store.start(&claim, Some(worker)).await.unwrap(), Some(seq));
    let another = WorkerId(replica.store.clock().mint());
    assert_eq!(replica.store.start(&claim, Some(another)).await.unwrap(), None, "a second worker took it");

    let mut append = append_of(&claim, seq, Kind::Delta);
    append.events.push(append.events[0].clone());
    for _ in 0..3 {
        assert_eq!(replica.writer.append(append.clone()).await, Written::Done(seq + 2));
    }
    let word = finish_of(&claim, seq + 2);
    assert_eq!(replica.writer.finish(word.clone()).await, Written::Done(seq + 3));
    let before = ground.everything_of(claim.turn).await;
    assert_eq!(replica.writer.finish(word.clone()).await, Written::Done(seq + 3), "not recognised");

    // Another last word of the same epoch is not taken for the one that stands.
    let mut other = word;
    other.word.data = r#"{"text":"something else"}"#.to_owned();
    assert_eq!(replica.writer.finish(other).await, Written::LeaseLost);
    assert_eq!(ground.everything_of(claim.turn).await, before);
    assert_eq!(ground.kinds(claim.turn).await, "accepted started delta delta completed");
    ground.assert_whole().await;
}

async fn nothing_follows_a_last_word(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (claim, seq) = replica.running().await;
    assert_eq!(replica.finish(&claim, seq).await, Written::Done(seq + 1));

    let before = ground.everything_of(claim.turn).await;
    for base in [seq, seq + 1] {
        assert_eq!(replica.append(&claim, base, Kind::Delta).await, Written::LeaseLost);
    }
    assert_eq!(replica.finish(&claim, seq + 1).await, Written::Done(seq + 1), "the one that stands");
    assert_eq!(replica.start(&claim).await, None);
    assert!(!replica.store.release(claim.turn, claim.epoch, false).await.unwrap());
    assert_eq!(replica.store.cancel(&[claim.turn], CancelledBy::Client).await.unwrap(), []);
    assert!(replica.store.close_due(&[claim.turn], 10).await.unwrap().is_empty());
    assert_eq!(ground.everything_of(claim.turn).await, before);

    let second = ground
        .run(&format!(
            "insert into turn_events (turn_id, seq, kind, data) values ('{}', {}, 'failed', '{{}}')",
            claim.turn.0,
            seq + 2
        ))
        .await
        .unwrap_err();
    assert_eq!(second.as_database_error().unwrap().code().as_deref(), Some("23505"), "{second}");
    ground.assert_whole().await;
}

async fn one_poisonous_event_does_not_fail_its_neighbours(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let mut turns = Vec::new();
    for _ in 0..20 {
        turns.push(replica.running().await);
    }
    let written = join_all(turns.iter().enumerate().map(|(i, (claim, seq))| {
        let mut append = append_of(claim, *seq, Kind::Delta);
        if i == 7 {
            // No text of Postgres can hold it.
            append.events[0].data = "{\"text\":\"\0\"}".to_owned();
        }
        replica.writer.append(append)
    }))
    .await;
    for (i, (written, (_, seq))) in written.into_iter().zip(&turns).enumerate() {
        match written {
            Written::Refused(_) => assert_eq!(i, 7),
            written => assert_eq!((written, i == 7), (Written::Done(seq + 1), false)),
        }
    }
    ground.assert_whole().await;
}
