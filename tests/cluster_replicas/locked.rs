//! Somebody else in the database who locks a row, or a table, for longer than any statement waits.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::time::{Instant, sleep};

use crate::{
    assert_nobody_was_judged,
    support::{Cluster, PATIENCE, Plan, said},
};

/// What a replica's pool may have; three more connections have purposes of their own.
const POOL_MAX: i64 = 4;
/// Longer than a statement of a turn waits, several times.
const HELD_FOR: Duration = Duration::from_secs(12);

async fn cluster() -> Cluster {
    let env = vec![("LASTWORD_POOL_MAX".to_owned(), POOL_MAX.to_string())];
    let cluster = Cluster::with(Plan { env, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    cluster
}

async fn connect(cluster: &Cluster) -> PgConnection {
    let url = cluster.postgres().url();
    PgConnection::connect(&url).await.unwrap()
}

/// The most connections that one replica has had until `done` is.
async fn most_connections<T>(cluster: &Cluster, done: impl Future<Output = T>) -> (i64, T) {
    let mut conn = connect(cluster).await;
    let mut most = 0;
    let count = async {
        loop {
            let counts = "select coalesce(max(n), 0) from (select count(*) as n from pg_stat_activity
              where application_name like 'lastword %' group by application_name) c";
            most = most.max(sqlx::query_scalar::<_, i64>(counts).fetch_one(&mut conn).await.unwrap());
            sleep(Duration::from_millis(100)).await;
        }
    };
    let done = tokio::select! {
        done = done => done,
        () = count => unreachable!(),
    };
    (most, done)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_locked_row_holds_up_its_own_turn_alone() {
    let cluster = cluster().await;
    for (table, key) in [("inflight", "turn_id"), ("turns", "id")] {
        let turns = join_all((0..6).map(|i| cluster.post(i % 2, "demo", "/slow 20"))).await;
        for turn in &turns {
            cluster.until(0, turn, "started", PATIENCE).await;
        }
        let mut conn = connect(&cluster).await;
        let mut held = conn.begin().await.unwrap();
        let lock = format!(
            "select from {table} where {key} = '{}' for update",
            turns[0].id.trim_start_matches("turn_")
        );
        held.execute(AssertSqlSafe(lock)).await.unwrap();
        let locked_at = Instant::now();
        let others = async {
            for turn in &turns[1..] {
                let events = cluster.stream(1, &turn.id, -1).await.until_terminal(PATIENCE).await;
                assert_eq!(events.last().unwrap().kind, "completed", "{}", events.last().unwrap().data);
            }
            let took = locked_at.elapsed();
            // A turn that comes meanwhile, on each replica.
            for i in 0..2 {
                let turn = cluster.post_on(i, "demo", "/echo hello").await;
                cluster.stream(i, &turn.id, -1).await.until_terminal(PATIENCE).await;
            }
            tokio::time::sleep(HELD_FOR.saturating_sub(locked_at.elapsed())).await;
            took
        };
        let (most, took) = most_connections(&cluster, others).await;
        // Two seconds of words, and one for a statement that waits in vain.
        assert!(took < Duration::from_secs(9), "{table}: others took {took:?}");
        assert!(most <= POOL_MAX + 3, "{table}: {most} connections");
        let status = &cluster.get(0, &format!("/v1/turns/{}", turns[0].id)).await["status"];
        assert_eq!(status, "running", "{table}: the row was not locked");
        held.rollback().await.unwrap();
        let events = cluster.watch_all(&turns[0]).await;
        assert_eq!(events.last().unwrap().kind, "completed", "{table}: {}", events.last().unwrap().data);
        assert_eq!(said(&events), (1..=20).map(|n| format!("word{n} ")).collect::<String>());
    }
    assert_nobody_was_judged(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_takes_no_more_connections_and_ends_no_turn() {
    let cluster = cluster().await;
    let turns = join_all((0..6).map(|i| cluster.post(i % 2, "demo", "/slow 40"))).await;
    for turn in &turns {
        cluster.until(0, turn, "started", PATIENCE).await;
    }
    let mut conn = connect(&cluster).await;
    let mut held = conn.begin().await.unwrap();
    held.execute("lock table turn_events in share mode").await.unwrap();
    let (most, ()) = most_connections(&cluster, sleep(HELD_FOR)).await;
    assert!(most <= POOL_MAX + 3, "{most} connections");
    held.rollback().await.unwrap();
    for turn in &turns {
        let events = cluster.watch_all(turn).await;
        assert_eq!(events.last().unwrap().kind, "completed", "{}", events.last().unwrap().data);
        assert_eq!(said(&events), (1..=40).map(|n| format!("word{n} ")).collect::<String>());
    }
    assert_nobody_was_judged(&cluster).await;
}
