//! Where replicas scan the queue: from the turn that a ring names, and at intervals from its front.

use std::time::Duration;

use lastword::{
    config::Config,
    store::{Store, fixtures::ParkedTurns},
};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::Instant;

use crate::support::{Cluster, Plan, eventually};

/// What was claimed since the transaction began.
const DEAD: i64 = 5_000;
/// Turns that wait for a claim, on the replica that they were not accepted by.
const TURNS: i64 = 30;
/// Who hears rings for the first time, or looks all the same, begins at the front.
const LOOKS_FROM_THE_FRONT: i64 = 20;
/// Three times as long as from one look without a ring to the next.
const UNTOLD_MAX: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_waits_for_a_claim_does_not_read_what_was_claimed_before() {
    // Who hears no ring has to look everywhere.
    let env = vec![("LASTWORD_DOORBELL".to_owned(), "on".to_owned())];
    let cluster = Cluster::with(Plan { env, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let conversation = cluster.conversation_on(1, "demo").await;
    let url = cluster.postgres().url();
    let (mut elsewhere, mut conn) =
        (PgConnection::connect(&url).await.unwrap(), PgConnection::connect(&url).await.unwrap());
    sqlx::raw_sql("begin isolation level repeatable read; select from inflight")
        .execute(&mut elsewhere)
        .await
        .unwrap();
    // In one transaction: nobody ever sees them, and vacuum may not remove them.
    let dead = format!(
        "insert into inflight (turn_id, conversation_id, ordinal, agent, agent_revision, runtime, deadline, cap_at,
           queue_ms, startup_ms, progress_ms, cap_ms)
         select v.id, v.id, 1, 'demo', 1, 'process', now(), now(), 1, 1, 1, 1
           from generate_series(1, {DEAD}) n, lateral (select lpad(to_hex(n), 32, '0')::uuid) v (id);
         delete from inflight where agent_revision = 1 and turn_id <= '{}'",
        uuid::Uuid::from_u128(DEAD as u128)
    );
    sqlx::raw_sql(AssertSqlSafe(format!("begin; {dead}; commit"))).execute(&mut conn).await.unwrap();
    for _ in 0..TURNS {
        let turn = cluster.post_in(0, &conversation, "demo", "hello").await;
        let events = cluster.watch(0, &turn).await;
        assert_eq!(events.last().unwrap().kind, "completed", "{:?}", events.last());
    }
    // What a connection has read is told when it ends.
    for i in 0..2 {
        cluster.terminate(i);
        assert!(cluster.wait_exit(i).await.success());
    }
    let left = "select count(*) from pg_stat_activity where application_name like 'lastword%'";
    eventually("all connections are closed", async || {
        (sqlx::query_scalar::<_, i64>(left).fetch_one(&mut conn).await.unwrap() == 0).then_some(())
    })
    .await;
    let read = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'inflight_queued'";
    let read: i64 = sqlx::query_scalar(read).fetch_one(&mut conn).await.unwrap();
    assert!(read >= TURNS, "{TURNS} turns waited in the queue, and {read} entries of it were read");
    assert!(read < LOOKS_FROM_THE_FRONT * DEAD, "{TURNS} turns, and {read} entries of the queue were read");
    elsewhere.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_nobody_rang_for_is_found_while_all_others_are_rung_for() {
    let cluster = Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    let conversation = cluster.conversation_on(1, "demo").await;
    let url = cluster.postgres().url();
    let store = Store::open(&Config { database_url: url.clone(), ..Config::default() }).unwrap();
    let mass = ParkedTurns { agent: "demo", revision: 1, text: "hello", conversations: 1, turns_each: 1 };
    let untold = store.park(mass).await.unwrap()[0];
    // It can be claimed from now on, and nobody is told.
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let unpark = sqlx::query("update inflight set runtime = 'process' where turn_id = $1").bind(untold.0);
    assert_eq!(unpark.execute(&mut conn).await.unwrap().rows_affected(), 1);
    let began = Instant::now();
    let mut others = 0;
    loop {
        let turn = cluster.post_in(0, &conversation, "demo", "hello").await;
        let events = cluster.watch(0, &turn).await;
        assert_eq!(events.last().unwrap().kind, "completed", "{:?}", events.last());
        let status = cluster.get(0, &format!("/v1/turns/{untold}")).await["status"].clone();
        if status == "completed" {
            break;
        }
        others += 1;
        assert!(began.elapsed() < UNTOLD_MAX, "{status}, after {others} others");
    }
}
