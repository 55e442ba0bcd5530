//! Retention: old turns are deleted with all their rows; turns that are in flight or younger stay.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lastword::{
    config::Config,
    id::TurnId,
    store::{Store, sweep::Sweeper},
    units::Span,
};
use uuid::Uuid;

use crate::ground::{Ground, Server, next_in};

const OLD_TURNS: i64 = 3000;

/// Ended turns of two to three hours ago, five events each, two turns a conversation; with whatever else may be kept.
async fn plant(ground: &Ground) {
    let base = ground.ask("select now() - interval '3 hours'").await;
    let id = |of: &str| {
        format!(
            "(left(lw_first_id('{base}'::timestamptz + {of} * interval '1 s')::text, 24) || lpad(to_hex({of}), 12, '0'))::uuid"
        )
    };
    let (turn, conversation) = (id("n"), id("(n / 2)"));
    for statement in [
        "select lw_partition_make_v1((now() - interval '3 hours')::date)".to_owned(),
        format!(
            "insert into conversations (id, agent, next_ordinal)
             select distinct {conversation}, 'demo', 3 from generate_series(0, {OLD_TURNS} - 1) n"
        ),
        format!(
            "insert into turns (id, conversation_id, ordinal, agent, agent_revision, status, attempt, input, traceparent,
               started_at, finished_at, last_seq)
             select {turn}, {conversation}, n % 2 + 1, 'demo', 1, case n % 10 when 0 then 'failed' else 'completed' end, 1,
                    '{{}}', 'x', now() + n * interval '1 ms', now() + n * interval '1 ms', 4
               from generate_series(0, {OLD_TURNS} - 1) n"
        ),
        "insert into turn_events (turn_id, seq, kind, attempt, data)
         select t.id, s, case s when 0 then 'accepted' when 4 then t.status else 'delta' end, 1, '{}'
           from turns t, generate_series(0, 4) s"
            .to_owned(),
        "insert into not_completed select id, status, agent, conversation_id, ordinal from turns where status = 'failed'"
            .to_owned(),
        "insert into commands (turn_id, kind) select id, 'cancel' from turns where status = 'failed'".to_owned(),
        "insert into idempotency (key, turn_id, body_hash, created_at)
         select id::text, id, 'x', now() - interval '2 hours' from turns"
            .to_owned(),
    ] {
        ground.run(&statement).await.unwrap();
    }
}

/// Sweeps all that is older than an hour.
async fn sweep(sweeper: &mut Sweeper, keep_from: DateTime<Utc>) -> (i32, i32) {
    let (mut after, mut turns, mut events) = (Uuid::nil(), 0, 0);
    while let Some(last) = {
        let swept = sweeper.turns(after, keep_from).await.unwrap();
        (turns, events) = (turns + swept.turns, events + swept.events);
        swept.last
    } {
        assert!(last > after, "it goes on");
        after = last;
    }
    (turns, events)
}

fn hour_ago(store: &Store) -> DateTime<Utc> {
    store.clock().now() - TimeDelta::hours(1)
}

async fn left(ground: &Ground) -> Vec<String> {
    let mut left = Vec::new();
    for table in ["turns", "turn_events", "conversations", "not_completed", "commands", "idempotency"] {
        left.push(format!("{table} {}", ground.ask(&format!("select count(*) from {table}")).await));
    }
    left
}

#[tokio::test]
async fn what_is_older_goes_while_turns_are_accepted_and_nothing_of_it_is_left() {
    let server = Server::start().await;
    let ground = server.ground().await;
    plant(&ground).await;
    let replica = ground.replica().await;
    let config = Config {
        database_url: ground.url.clone(),
        retain: Span(Duration::from_secs(3600)),
        ..Config::default()
    };
    let store = Store::open(&config).unwrap();
    store.probe().await.unwrap();
    let mut sweeper = store.sweeper().await.unwrap();
    let from = hour_ago(&store);
    let ((turns, events), ()) = tokio::join!(sweep(&mut sweeper, from), async {
        for _ in 0..20 {
            let (claim, seq) = replica.running().await;
            replica.finish(&claim, seq).await;
        }
    });
    assert_eq!((i64::from(turns), i64::from(events)), (OLD_TURNS, OLD_TURNS * 5));
    store.sweep().await.unwrap();
    let wanted =
        ["turns 20", "turn_events 60", "conversations 20", "not_completed 0", "commands 0", "idempotency 0"];
    assert_eq!(left(&ground).await, wanted);
    ground.assert_whole().await;
    let old = TurnId(ground.ask("select lw_first_id(now() - interval '3 hours')").await.parse().unwrap());
    assert!(store.is_past(old) && !store.is_past(TurnId(store.clock().mint())));
}

#[tokio::test]
async fn what_is_in_flight_stays_and_so_does_its_conversation() {
    let server = Server::start().await;
    let ground = server.ground().await;
    plant(&ground).await;
    // The second turn of one conversation runs still, and another conversation has a turn that is new.
    let open = ground.ask("select id from turns where ordinal = 2 order by id limit 1").await;
    for statement in [
        format!("update turns set status = 'running', finished_at = null, last_seq = null where id = '{open}'"),
        format!("delete from turn_events where turn_id = '{open}' and seq = 4"),
        format!(
            "insert into inflight (turn_id, conversation_id, ordinal, agent, agent_revision, runtime, phase, epoch, replica,
               clock, deadline, cap_at, queue_ms, startup_ms, progress_ms, cap_ms)
             select id, conversation_id, ordinal, agent, 1, 'process', 'running', 1, id, 'progress', now() + interval '1 h',
                    now() + interval '1 h', 1, 1, 1, 1 from turns where id = '{open}'"
        ),
    ] {
        assert!(ground.run(&statement).await.unwrap() > 0);
    }
    let replica = ground.replica().await;
    let busy = ground.ask("select id from conversations order by id desc limit 1").await.parse().unwrap();
    let store = &replica.store;
    let new = next_in(store, lastword::id::ConversationId(busy));
    store.accept(&new).await.unwrap();
    let mut sweeper = store.sweeper().await.unwrap();
    let from = hour_ago(store);
    assert_eq!(i64::from(sweep(&mut sweeper, from).await.0), OLD_TURNS - 1);
    assert_eq!(ground.ask("select count(*) from turns").await, "2");
    assert_eq!(ground.ask("select count(*) from conversations").await, "2");
    assert_eq!(ground.ask(&format!("select count(*) from turn_events where turn_id = '{open}'")).await, "4");
}

#[tokio::test]
async fn a_conversation_that_a_turn_is_being_accepted_in_is_left_for_the_next_look() {
    let server = Server::start().await;
    let ground = server.ground().await;
    plant(&ground).await;
    let store = ground.open();
    store.probe().await.unwrap();
    let mut held = ground.sql.begin().await.unwrap();
    sqlx::query("select from conversations order by id limit 1 for no key update")
        .execute(&mut *held)
        .await
        .unwrap();
    let mut sweeper = store.sweeper().await.unwrap();
    sweep(&mut sweeper, hour_ago(&store)).await;
    assert_eq!(ground.ask("select count(*) from conversations").await, "1");
    held.rollback().await.unwrap();
    let swept = sweeper.empty(Uuid::nil(), hour_ago(&store)).await.unwrap();
    assert_eq!(
        (swept.conversations, ground.ask("select count(*) from conversations").await.as_str()),
        (1, "0")
    );
}

#[tokio::test]
async fn what_ends_in_a_deleted_conversation_is_erased_and_nothing_else() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (kept, (claim, seq)) = (replica.running().await.0, replica.running().await);
    assert!(replica.store.delete_conversation(claim.conversation).await.unwrap());
    assert_eq!(replica.store.erase(None, 100).await.unwrap(), 0, "its turn is in flight");
    assert!(replica.store.turn(claim.turn).await.unwrap().is_none(), "and yet nothing is told of it");
    replica.finish(&claim, seq).await;
    assert_eq!(replica.store.erase(None, 100).await.unwrap(), 2);
    assert_eq!(replica.store.erase(None, 100).await.unwrap(), 0);
    for (table, key) in [("turns", "id"), ("turn_events", "turn_id"), ("inflight", "turn_id")] {
        let left = format!("select string_agg(distinct {key}::text, ' ') from {table}");
        assert_eq!(ground.ask(&left).await, kept.turn.0.to_string(), "{table}");
    }
    assert_eq!(ground.ask("select count(*) from conversations").await, "1");
    ground.assert_whole().await;
}

#[tokio::test]
async fn two_replicas_do_not_sweep_the_same() {
    let server = Server::start().await;
    let ground = server.ground().await;
    plant(&ground).await;
    let store = ground.open();
    store.probe().await.unwrap();
    let mut held = ground.sql.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('lastword sweep', 0))")
        .execute(&mut *held)
        .await
        .unwrap();
    let mut sweeper = store.sweeper().await.unwrap();
    assert_eq!(sweep(&mut sweeper, hour_ago(&store)).await, (0, 0), "somebody else is at it");
    held.rollback().await.unwrap();
    assert_eq!(i64::from(sweep(&mut sweeper, hour_ago(&store)).await.0), OLD_TURNS);
}
