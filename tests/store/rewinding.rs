//! A database that lost commits, made by hand: what the comparison finds, and what waits for it.

use lastword::{
    event::Kind,
    store::{group_commit::Written, rewound::Rewound, seen_commits::SeenCommit},
    word::Open,
};

use crate::{
    cases,
    cases::all,
    ground::{Ground, Replica, Server, fresh, last_word, safe_agent},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_database_that_went_back_in_time_can_do() {
    let server = Server::start().await;
    let cases = cases![&server;
        a_comparison_finds_nothing_where_nothing_was_lost,
        what_is_behind_ends_once_and_is_told_once,
        nobody_claims_before_all_have_compared,
        what_a_holder_that_never_compared_held_is_not_run_again,
        an_epoch_that_was_given_out_twice_opens_nothing_to_the_first,
    ];
    all(cases).await;
}

async fn a_comparison_finds_nothing_where_nothing_was_lost(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    replica.claimed().await;
    let (running, seq) = replica.running().await;
    assert_eq!(replica.append(&running, seq, Kind::Delta).await, Written::Done(seq + 1));
    let (ended, seq) = replica.running().await;
    assert_eq!(replica.finish(&ended, seq).await, Written::Done(seq + 1));
    replica.accept().await;
    let seen = replica.store.seen_commits().all();
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert_eq!(replica.store.reconcile(&seen).await.unwrap(), []);
    assert_eq!(ground.ask("select count(*) from rewound").await, "0");
    assert_eq!(replica.append(&running, 2, Kind::Delta).await, Written::Done(3), "it was not left alone");
    ground.assert_whole().await;
}

async fn what_is_behind_ends_once_and_is_told_once(server: &Server) {
    let ground = server.ground().await;
    let (replica, reader) = (ground.replica().await, ground.replica().await);
    // Lost events, a lost claim, a lost last word, a lost acceptance.
    let (cut_off, seq) = replica.running().await;
    for base in seq..seq + 3 {
        assert_eq!(replica.append(&cut_off, base, Kind::Delta).await, Written::Done(base + 1));
    }
    let before = ground.everything_of(cut_off.turn).await;
    ground
        .run(&format!("delete from turn_events where turn_id = '{}' and seq > 2", cut_off.turn.0))
        .await
        .unwrap();
    assert_ne!(ground.everything_of(cut_off.turn).await, before);
    let queued = replica.accept().await.id;
    let reopened = replica.claimed().await;
    let vanished = fresh(&replica.store).id;
    let of = |turn, epoch, seq, end| SeenCommit { turn, epoch, seq: Some(seq), end };
    let seen = [
        of(cut_off.turn, 1, seq + 3, None),
        of(queued, 1, 4, None),
        of(reopened.turn, 1, 5, Some(Kind::Completed)),
        of(vanished, 1, 2, None),
    ];
    // Two replicas that saw the same compare at once.
    let (here, there) = tokio::join!(replica.store.reconcile(&seen), reader.store.reconcile(&seen));
    let mut told: Vec<Rewound> = here.unwrap();
    told.extend(there.unwrap());
    told.sort_by_key(|rewound| rewound.turn);
    let lost = |turn, how: &str, events_lost| Rewound { turn, how: Open::of(how), events_lost };
    let mut wanted = [
        lost(cut_off.turn, "closed", 2),
        lost(queued, "closed", 4),
        lost(reopened.turn, "closed", 5),
        lost(vanished, "vanished", 3),
    ];
    wanted.sort_by_key(|rewound| rewound.turn);
    assert_eq!(told, wanted);
    for turn in [cut_off.turn, queued, reopened.turn] {
        let (kind, data) = last_word(&replica.store, turn).await;
        assert_eq!((kind, &data["error"]["code"]), (Kind::Failed, &"internal".into()));
        assert_eq!(data["error"]["safe_to_retry"], false, "a worker has received it");
        let seq: i32 =
            ground.ask(&format!("select last_seq from turns where id = '{}'", turn.0)).await.parse().unwrap();
        assert_eq!(replica.store.rewound_from(turn).await.unwrap(), Some(seq));
    }
    assert_eq!(replica.append(&cut_off, 2, Kind::Delta).await, Written::LeaseLost);
    let losses = replica.store.losses().await.unwrap();
    assert_eq!((losses.turns, losses.events, losses.vanished), (4, 14, 1));
    ground.assert_whole().await;
}

async fn nobody_claims_before_all_have_compared(server: &Server) {
    let ground = server.ground().await;
    let (one, other) = (ground.replica().await, ground.replica().await);
    let timeline = one.store.timeline().await.unwrap();
    assert!(timeline > 0);
    behind(&ground, &other).await;
    let turn = one.accept().await.id;
    assert_eq!(one.claim(10).await.len(), 0, "claimed though another may have run it");
    // Nor is a row disowned, or a queue's clock taken at its word.
    ground.lapse(turn).await;
    assert_eq!(one.store.close_due(&[], 10).await.unwrap().len(), 0);
    assert!(!other.store.set_reconciled(timeline + 1).await.unwrap(), "of a timeline that is not");
    assert!(other.store.set_reconciled(timeline).await.unwrap());
    assert_eq!(one.claim(10).await.len(), 1);
    // One that is lost is not waited for.
    behind(&ground, &other).await;
    let turn = one.accept().await.id;
    ground.lose(other.store.replica()).await;
    assert_eq!(one.claim_of(turn).await.turn, turn);
}

async fn what_a_holder_that_never_compared_held_is_not_run_again(server: &Server) {
    let ground = server.ground().await;
    let (judge, doomed) = (ground.replica().await, ground.replica().await);
    let mut claims = Vec::new();
    for agent in [safe_agent(), crate::ground::agent(|_| ())] {
        let new = lastword::store::accept::NewTurn { agent, ..fresh(&doomed.store) };
        doomed.store.accept(&new).await.unwrap();
        claims.push(doomed.claim_of(new.id).await);
    }
    behind(&ground, &doomed).await;
    ground.lose(doomed.store.replica()).await;
    let closed = judge.store.close_due(&[], 10).await.unwrap();
    assert_eq!(closed.iter().map(|word| word.code.as_str()).collect::<Vec<_>>(), ["replica_lost"; 2]);
    for (claim, is_safe) in claims.iter().zip([true, false]) {
        let (kind, data) = last_word(&judge.store, claim.turn).await;
        assert_eq!((kind, &data["error"]["safe_to_retry"]), (Kind::Failed, &is_safe.into()));
        assert_eq!(
            judge.store.rewound_from(claim.turn).await.unwrap(),
            Some(1),
            "a reader may have seen more"
        );
    }
    ground.assert_whole().await;
}

async fn an_epoch_that_was_given_out_twice_opens_nothing_to_the_first(server: &Server) {
    let ground = server.ground().await;
    let (first, second) = (ground.replica().await, ground.replica().await);
    let lost = first.claimed().await;
    ground
        .run(&format!(
            "update inflight set phase = 'queued', clock = 'queue', epoch = 0, replica = null, claimed_at = null
              where turn_id = '{}'",
            lost.turn.0
        ))
        .await
        .unwrap();
    let held = second.claim_of(lost.turn).await;
    assert_eq!(held.epoch, lost.epoch);
    assert_eq!(first.start(&lost).await, None);
    let seq = second.start(&held).await.unwrap();
    assert_eq!(first.append(&lost, seq, Kind::Delta).await, Written::LeaseLost);
    assert_eq!(first.finish(&lost, seq).await, Written::LeaseLost);
    assert!(!first.store.release(lost.turn, lost.epoch, false).await.unwrap());
    assert!(first.store.is_over(lost.turn, lost.epoch).await.unwrap());
    assert_eq!(second.finish(&held, seq).await, Written::Done(seq + 1));
    ground.assert_whole().await;
}

/// As if the database had gone to another timeline since this replica compared.
async fn behind(ground: &Ground, replica: &Replica) {
    let id = replica.store.replica().0;
    ground.run(&format!("update replicas set timeline = timeline - 1 where id = '{id}'")).await.unwrap();
}
