//! Turns that wait for their pods delay no turn in the queue.

use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    field::{Field, failed},
    support::{Plan, eventually},
};

/// What was claimed since a transaction elsewhere began, and stands in the queue's index for as long.
const DEAD: i64 = 5_000;
/// Turns whose pods do not start.
const TURNS: usize = 3;
/// Whoever registers, hears rings for the first time, or looks all the same, begins at the front.
const LOOKS_FROM_THE_FRONT: i64 = 20;

#[tokio::test]
async fn a_pod_that_takes_its_time_has_nobody_look_at_the_queue() {
    // Who hears no ring has to look everywhere.
    let env = vec![("LASTWORD_DOORBELL".to_owned(), "on".to_owned())];
    let field = Field::open(Plan { env, ..Plan::default() }).await;
    field.pod_agent("slow", json!({"timeouts": {"startup": "12s"}})).await;
    // What waits longest is what a look at the queue begins with.
    field.put_agent("uncalled", json!({"runtime": "remote"})).await;
    let first = field.post(0, "uncalled", "hello").await;
    let url = field.postgres().url();
    let mut elsewhere = PgConnection::connect(&url).await.unwrap();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let begin = "begin isolation level repeatable read; select from inflight";
    sqlx::raw_sql(begin).execute(&mut elsewhere).await.unwrap();
    let dead = format!(
        "begin;
         insert into inflight (turn_id, conversation_id, ordinal, agent, agent_revision, runtime, deadline, cap_at,
           queue_ms, startup_ms, progress_ms, cap_ms)
         select v.id, v.id, 1, 'demo', 1, 'process', now(), now(), 1, 1, 1, 1
           from generate_series(1, {DEAD}) n, lateral (
             select (left(lw_first_id(clock_timestamp())::text, 24) || lpad(to_hex(n), 12, '0'))::uuid) v (id);
         delete from inflight where agent = 'demo';
         commit"
    );
    sqlx::raw_sql(AssertSqlSafe(dead)).execute(&mut conn).await.unwrap();
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        turns.push(field.post(0, "slow", "hello").await);
    }
    for turn in &turns {
        let events = field.watch(1, turn).await;
        failed(events.last().unwrap(), "worker_startup_failed", "in time: its pod has not started yet");
    }
    field.cancel(0, &first).await;
    // What a connection has read is told when it ends.
    for i in 0..2 {
        field.terminate(i);
        assert!(field.wait_exit(i).await.success());
    }
    let left = "select count(*) from pg_stat_activity where application_name like 'lastword%'";
    eventually("all connections are closed", async || {
        (sqlx::query_scalar::<_, i64>(left).fetch_one(&mut conn).await.unwrap() == 0).then_some(())
    })
    .await;
    let read = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'inflight_queued'";
    let read: i64 = sqlx::query_scalar(read).fetch_one(&mut conn).await.unwrap();
    println!("{TURNS} turns waited for their pods, and {read} entries of the queue were read");
    assert!(read < LOOKS_FROM_THE_FRONT * DEAD, "{read} entries of the queue were read");
    elsewhere.close().await.unwrap();
}
