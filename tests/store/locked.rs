//! Rows that another session of the database has locked: what waits for them, and what does not.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use lastword::{
    agent::Runtime,
    event::Kind,
    id::{ConversationId, TurnId, WorkerId},
    store::{
        adoption::{Adoption, Move},
        claim::{Claim, Ready},
        group_commit::Written,
        queue_hints::FRONT,
        remote_turns::{Bid, Proof},
    },
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::Instant;

use crate::{
    cases,
    cases::all,
    ground::{Ground, Replica, Server, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_locked_by_others() {
    let server = Server::start().await;
    let cases = cases![&server;
        a_locked_turn_of_a_lost_replica_waits_and_the_others_have_their_last_word,
        a_claim_passes_over_a_locked_conversation_until_it_is_free,
        a_claim_passes_over_a_locked_turn_until_it_is_free,
        a_remote_claim_passes_over_a_locked_conversation,
        a_locked_turn_is_not_moved_and_the_others_are,
        many_locked_turns_hold_up_the_writes_of_others_once,
        who_has_locked_a_turn_is_named,
        a_statement_of_ours_that_waits_is_not_told_as_who_blocks,
    ];
    all(cases).await;
}

/// A session that has locked this row; the lock goes with it.
async fn lock(ground: &Ground, table: &str, id: impl ToString) -> PgConnection {
    let mut conn = PgConnection::connect(&ground.url).await.unwrap();
    let key = if table == "inflight" { "turn_id" } else { "id" };
    let lock = format!("begin; select from {table} where {key} = '{}' for update", id.to_string());
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut conn).await.unwrap();
    conn
}

fn turns(claims: &[Claim]) -> Vec<TurnId> {
    let mut turns: Vec<_> = claims.iter().map(|claim| claim.turn).collect();
    turns.sort();
    turns
}

async fn a_locked_turn_of_a_lost_replica_waits_and_the_others_have_their_last_word(server: &Server) {
    let ground = server.ground().await;
    let (doomed, judge) = (ground.replica().await, ground.replica().await);
    let (locked, _) = doomed.running().await;
    let (free, _) = doomed.running().await;
    let held = lock(&ground, "turns", locked.turn.0).await;
    ground.lose(doomed.store.replica()).await;

    let asked_at = Instant::now();
    let closed = judge.store.close_due(&[], 100).await.unwrap();
    assert_eq!(closed.iter().map(|closed| closed.turn).collect::<Vec<_>>(), [free.turn]);
    assert!(asked_at.elapsed() < Duration::from_secs(1), "it waited for {:?}", asked_at.elapsed());
    held.close().await.unwrap();
    let closed = until("the lock's end", async || {
        Some(judge.store.close_due(&[], 100).await.unwrap()).filter(|closed| !closed.is_empty())
    })
    .await;
    assert_eq!(closed.iter().map(|closed| closed.turn).collect::<Vec<_>>(), [locked.turn]);
    ground.assert_whole().await;
}

async fn a_claim_passes_over_a_locked_conversation_until_it_is_free(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let [first, second, third] = accepted(&replica).await;
    let held = lock(&ground, "conversations", first.1.0).await;
    passed_over(&replica, first.0, [second.0, third.0], held).await;
    ground.assert_whole().await;
}

async fn a_claim_passes_over_a_locked_turn_until_it_is_free(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let [first, second, third] = accepted(&replica).await;
    // A turn's row is written where a worker can have the turn at once.
    let held = lock(&ground, "turns", second.0.0).await;
    let worker = WorkerId(replica.store.clock().mint());
    let seats = lastword::store::claim::Seats { agent: "demo".to_owned(), revision: 1, worker, count: 8 };
    let ready = Ready { seats: vec![seats], ..Ready::default() };
    let claim = async || replica.store.claim(&[Runtime::Process], &ready, FRONT, 10).await;
    assert!(claim().await.unwrap_err().is_held());
    assert_eq!(turns(&claim().await.unwrap()), [first.0, third.0]);
    held.close().await.unwrap();
    let claimed = until("the turn that was locked", async || {
        Some(claim().await.unwrap()).filter(|claims| !claims.is_empty())
    })
    .await;
    assert_eq!(turns(&claimed), [second.0]);
    ground.assert_whole().await;
}

/// Three turns, each in a conversation of its own.
async fn accepted(replica: &Replica) -> [(TurnId, ConversationId); 3] {
    let mut all = Vec::new();
    for _ in 0..3 {
        let turn = replica.accept().await;
        all.push((turn.id, turn.conversation));
    }
    all.try_into().unwrap()
}

/// The first claim waits in vain, the next one takes the others, and the lock's end is noticed.
async fn passed_over(replica: &Replica, locked: TurnId, others: [TurnId; 2], held: PgConnection) {
    let claim = async || replica.store.claim(&[Runtime::Process], &Ready::default(), FRONT, 10).await;
    assert!(claim().await.unwrap_err().is_held());
    assert_eq!(replica.store.first_passed_over().map(|(turn, _)| turn), Some(locked));
    assert_eq!(turns(&claim().await.unwrap()), others);
    assert!(claim().await.unwrap().is_empty());
    held.close().await.unwrap();
    let claimed = until("the turn that was locked", async || {
        Some(claim().await.unwrap()).filter(|claims| !claims.is_empty())
    })
    .await;
    assert_eq!(turns(&claimed), [locked]);
    assert_eq!(replica.store.first_passed_over(), None);
}

async fn a_remote_claim_passes_over_a_locked_conversation(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let [first, second, third] = accepted(&replica).await;
    ground.run("update inflight set runtime = 'remote'").await.unwrap();
    let heads = async || {
        let agents = ["demo".to_owned()];
        let heads = replica.store.remote_heads(&agents, &[], FRONT, &[]).await.unwrap();
        heads.into_iter().map(|head| head.turn).collect::<Vec<_>>()
    };
    assert_eq!(heads().await, [first.0, second.0, third.0]);
    let held = lock(&ground, "conversations", second.1.0).await;
    let worker = WorkerId(replica.store.clock().mint());
    let bids = [first, second, third].map(|(turn, _)| Bid { turn, worker, token_hash: [7; 32] });
    assert!(replica.store.claim_remote(&bids).await.unwrap_err().is_held());
    assert_eq!(heads().await, [first.0, third.0]);
    held.close().await.unwrap();
    until("the turn that was locked", async || (heads().await.len() == 3).then_some(())).await;
    ground.assert_whole().await;
}

async fn a_locked_turn_is_not_moved_and_the_others_are(server: &Server) {
    let ground = server.ground().await;
    let (former, next) = (ground.replica().await, ground.replica().await);
    let worker = WorkerId(former.store.clock().mint());
    let mut bids = Vec::new();
    for _ in 0..3 {
        bids.push(Bid { turn: former.accept().await.id, worker, token_hash: [7; 32] });
    }
    former.store.claim_remote(&bids).await.unwrap();
    let moves: Vec<_> =
        bids.iter().map(|bid| Move { turn: bid.turn, epoch: 1, proof: Proof::Worker(worker) }).collect();
    let held = lock(&ground, "inflight", bids[1].turn.0).await;
    let adopted = next.store.adopt(&moves).await.unwrap();
    assert!(matches!(adopted[0], Ok(Adoption::Adopted(_))), "{adopted:?}");
    assert!(adopted[1].as_ref().is_err_and(|why| why.is_held()), "{adopted:?}");
    assert!(matches!(adopted[2], Ok(Adoption::Adopted(_))), "{adopted:?}");
    held.close().await.unwrap();
    until("the lock's end", async || {
        let adopted = next.store.adopt(&moves).await.unwrap();
        adopted.iter().all(|it| matches!(it, Ok(Adoption::Adopted(_)))).then_some(())
    })
    .await;
    ground.assert_whole().await;
}

async fn many_locked_turns_hold_up_the_writes_of_others_once(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (free, mut seq) = replica.running().await;
    let (mut locked, mut held) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        locked.push(replica.running().await);
    }
    for (claim, _) in &locked {
        held.push(lock(&ground, "inflight", claim.turn.0).await);
    }
    let began_at = Instant::now();
    let mut waiting = FuturesUnordered::new();
    for (claim, base) in &locked {
        waiting.push(replica.append(claim, *base, Kind::Delta));
        // The locked turn's write is under way before the free one's.
        assert!(futures_util::poll!(waiting.next()).is_pending());
        assert_eq!(replica.append(&free, seq, Kind::Delta).await, Written::Done(seq + 1));
        seq += 1;
    }
    // One statement that waits in vain takes 2.5 s.
    assert!(began_at.elapsed() < Duration::from_secs(5), "the free turn took {:?}", began_at.elapsed());
    for held in held {
        held.close().await.unwrap();
    }
    for _ in 0..locked.len() {
        assert!(matches!(waiting.next().await, Some(Written::Done(_))));
    }
    ground.assert_whole().await;
}

/// Has a session call itself `forgotten`; its backend.
async fn named(held: &mut PgConnection) -> i32 {
    sqlx::raw_sql("set application_name = 'forgotten'").execute(&mut *held).await.unwrap();
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(held).await.unwrap()
}

async fn who_has_locked_a_turn_is_named(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (locked, _) = replica.running().await;
    let (free, _) = replica.running().await;
    let turns = [locked.turn, free.turn];
    assert_eq!(replica.store.waits(&turns).await, []);
    for (table, id) in
        [("inflight", locked.turn.0), ("turns", locked.turn.0), ("conversations", locked.conversation.0)]
    {
        let mut held = lock(&ground, table, id).await;
        let pid = named(&mut held).await;
        let waits = replica.store.waits(&turns).await;
        assert_eq!(waits.len(), 1, "{table}: {waits:?}");
        assert_eq!((waits[0].turn, waits[0].conversation), (Some(locked.turn), locked.conversation));
        let blocker = waits[0].blocker.as_ref().unwrap();
        assert_eq!((blocker.pid, blocker.application.as_str()), (pid, "forgotten"), "{table}");
        assert!(blocker.open_for.is_some(), "{table}");
        held.close().await.unwrap();
        until("the lock's end", async || replica.store.waits(&turns).await.is_empty().then_some(())).await;
    }
    // A row that two have locked names neither.
    let share = async || {
        let mut conn = PgConnection::connect(&ground.url).await.unwrap();
        let lock = format!("begin; select from turns where id = '{}' for share", locked.turn.0);
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut conn).await.unwrap();
        conn
    };
    let both = (share().await, share().await);
    let waits = replica.store.waits(&turns).await;
    assert_eq!(
        waits.iter().map(|wait| (wait.turn, wait.blocker.clone())).collect::<Vec<_>>(),
        [(Some(locked.turn), None)]
    );
    drop(both);
    ground.assert_whole().await;
}

async fn a_statement_of_ours_that_waits_is_not_told_as_who_blocks(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (claim, seq) = replica.running().await;
    let mut held = lock(&ground, "turns", claim.turn.0).await;
    let pid = named(&mut held).await;
    // The last word holds the row in flight, and waits for the turn's.
    let mut word = std::pin::pin!(replica.finish(&claim, seq));
    assert!(futures_util::poll!(&mut word).is_pending());
    let waiting = "select count(*) from pg_stat_activity
      where wait_event_type = 'Lock' and datname = current_database()";
    until("a wait", async || (ground.ask(waiting).await != "0").then_some(())).await;
    let waits = replica.store.waits(&[claim.turn]).await;
    assert_eq!(waits[0].blocker.as_ref().map(|blocker| blocker.pid), Some(pid), "{waits:?}");
    held.close().await.unwrap();
    assert!(matches!(word.await, Written::Done(_)));
    ground.assert_whole().await;
}
