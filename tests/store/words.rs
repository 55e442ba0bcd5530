//! I2 under races: of several writers of a last word exactly one succeeds.

use futures_util::{StreamExt, future::join_all, stream};
use lastword::{
    event::Kind,
    id::TurnId,
    store::{claim::Claim, group_commit::Written},
    turn::{CancelledBy, LastWord},
};

use crate::{
    cases,
    cases::all,
    ground::{Replica, Server, finish_of, last_word},
};

const ROUNDS: usize = 500;
/// Rounds that run beside each other.
const ABREAST: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_last_word() {
    let server = Server::start().await;
    let cases = cases![&server;
        a_cancel_against_a_finish_leaves_one_last_word,
        a_cancel_against_a_claim_and_a_start_leaves_one_last_word,
        a_close_against_a_finish_leaves_one_last_word,
    ];
    all(cases).await;
}

async fn a_cancel_against_a_finish_leaves_one_last_word(server: &Server) {
    let ground = server.ground().await;
    let (holder, other) = (ground.replica().await, ground.replica().await);
    let turns = running(&holder, ROUNDS).await;
    stream::iter(turns)
        .for_each_concurrent(ABREAST, async |(claim, seq)| {
            let turn = claim.turn;
            let cancel = async { other.store.cancel(&[turn], CancelledBy::Client).await.unwrap() };
            let (written, asked) = tokio::join!(holder.finish(&claim, seq), cancel);
            // A running turn is its holder's to end: the cancel only asks, or comes too late.
            assert_eq!(written, Written::Done(seq + 1));
            assert!(asked.is_empty() || asked == [(turn, false)], "{asked:?}");
            assert_eq!(last_word(&other.store, turn).await.0, Kind::Completed);
        })
        .await;
    ground.assert_whole().await;
}

async fn a_cancel_against_a_claim_and_a_start_leaves_one_last_word(server: &Server) {
    let ground = server.ground().await;
    let (holder, other) = (ground.replica().await, ground.replica().await);
    let mut turns: Vec<TurnId> = Vec::new();
    for _ in 0..ROUNDS {
        turns.push(holder.accept().await.id);
    }
    // Claims come in pages, cancels one by one: some meet a queued turn, some a starting one.
    let claims = async {
        let mut ended = 0;
        while ended < ROUNDS {
            let claims = holder.claim(3).await;
            for claim in &claims {
                let word = match holder.start(claim).await {
                    Some(seq) => finish_of(claim, seq),
                    None => cancelled(claim),
                };
                assert!(matches!(holder.writer.finish(word).await, Written::Done(_)));
            }
            let open = ground.ask("select count(*) from inflight").await;
            ended = ROUNDS - open.parse::<usize>().unwrap();
        }
    };
    let cancels = stream::iter(turns.iter().rev()).for_each_concurrent(ABREAST, async |turn| {
        other.store.cancel(&[*turn], CancelledBy::Operator).await.unwrap();
    });
    tokio::join!(claims, cancels);
    for turn in turns {
        let (kind, word) = last_word(&holder.store, turn).await;
        match kind {
            Kind::Cancelled => assert_eq!(word["by"], "operator"),
            kind => assert_eq!(kind, Kind::Completed),
        }
    }
    ground.assert_whole().await;
}

async fn a_close_against_a_finish_leaves_one_last_word(server: &Server) {
    let ground = server.ground().await;
    let (holder, other) = (ground.replica().await, ground.replica().await);
    let turns = running(&holder, ROUNDS).await;
    for (claim, _) in &turns {
        ground.lapse(claim.turn).await;
    }
    stream::iter(turns)
        .for_each_concurrent(ABREAST, async |(claim, seq)| {
            let turn = claim.turn;
            let close = async |replica: &Replica| replica.store.close_due(&[turn], 10).await.unwrap().len();
            let (written, here, there) =
                tokio::join!(holder.finish(&claim, seq), close(&holder), close(&other));
            let status = other.store.turn(turn).await.unwrap().unwrap().status;
            match written {
                Written::Done(_) => assert_eq!((status.as_str(), here + there), ("completed", 0)),
                Written::LeaseLost => assert_eq!((status.as_str(), here + there), ("failed", 1)),
                Written::Refused(why) => panic!("{why}"),
            }
        })
        .await;
    ground.assert_whole().await;
}

fn cancelled(claim: &Claim) -> lastword::store::events::Finish {
    let data = r#"{"by":"operator"}"#.to_owned();
    let word = LastWord { kind: Kind::Cancelled, data, label: "client".into() };
    lastword::store::events::Finish { word, ..finish_of(claim, claim.last_seq) }
}

/// Turns that this replica runs, with the seq of their newest event.
async fn running(replica: &Replica, count: usize) -> Vec<(Claim, i32)> {
    for _ in 0..count {
        replica.accept().await;
    }
    let claims = replica.claim(i64::try_from(count).unwrap()).await;
    assert_eq!(claims.len(), count);
    join_all(claims.into_iter().map(async |claim| {
        let seq = replica.start(&claim).await.unwrap();
        (claim, seq)
    }))
    .await
}
