//! Another session of the database that locks a row, or a table, for longer than any statement waits.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::time::{Instant, sleep};

use crate::{
    assert_nobody_was_judged,
    support::{Cluster, PATIENCE, Plan, Turn, eventually, program, said},
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

/// A session that calls itself `forgotten` and holds a turn's row; its backend.
async fn lock(held: &mut PgConnection, table: &str, turn: &Turn) -> i32 {
    let key = if table == "inflight" { "turn_id" } else { "id" };
    let id = turn.id.trim_start_matches("turn_");
    let lock = format!(
        "set application_name = 'forgotten'; begin; select from {table} where {key} = '{id}' for update"
    );
    held.execute(AssertSqlSafe(lock)).await.unwrap();
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(held).await.unwrap()
}

/// Lines in a replica's log that have all of these words.
fn lines(cluster: &Cluster, i: usize, words: &[&str]) -> Vec<String> {
    let log = cluster.log(i);
    let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
    log.lines().filter(has_all).map(str::to_owned).collect()
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
    for table in ["inflight", "turns"] {
        let turns = join_all((0..6).map(|i| cluster.post(i % 2, "demo", "/slow 20"))).await;
        for turn in &turns {
            cluster.until(0, turn, "started", PATIENCE).await;
        }
        let mut held = connect(&cluster).await;
        let pid = lock(&mut held, table, &turns[0]).await;
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
        let holder = cluster.worker_of(&turns[0]).await.replica;
        let told =
            lines(&cluster, holder, &["another database session has locked", &format!("blocker_pid={pid} ")]);
        assert_eq!(told.len(), 1, "{table}: {told:#?}");
        let words =
            [&turns[0].id, &turns[0].conversation, "blocker_application=\"forgotten\"", "blocker_open_s="];
        assert!(words.iter().all(|word| told[0].contains(*word)), "{table}: {}", told[0]);
        held.execute("rollback").await.unwrap();
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
    let mut held = connect(&cluster).await;
    let lock = "set application_name = 'forgotten'; begin; lock table turn_events in share mode";
    held.execute(lock).await.unwrap();
    let (most, ()) = most_connections(&cluster, sleep(HELD_FOR)).await;
    assert!(most <= POOL_MAX + 3, "{most} connections");
    // Whoever has turns under way meets the lock.
    let told = [0, 1].map(|i| {
        lines(
            &cluster,
            i,
            &["another database session has locked a table", "\"turn_events\"", "\"forgotten\""],
        )
        .len()
    });
    assert!(told.contains(&1) && told.iter().all(|lines| *lines <= 1), "{told:?}");
    held.execute("rollback").await.unwrap();
    for turn in &turns {
        let events = cluster.watch_all(turn).await;
        assert_eq!(events.last().unwrap().kind, "completed", "{}", events.last().unwrap().data);
        assert_eq!(said(&events), (1..=40).map(|n| format!("word{n} ")).collect::<String>());
    }
    assert_nobody_was_judged(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_whose_start_a_lock_holds_up_is_started_after_it() {
    let cluster = cluster().await;
    let slow = format!("sleep 2; exec '{}' demo-agent", program().display());
    let agent = json!({ "command": ["sh", "-c", slow], "timeouts": { "startup": "4s" } });
    cluster.demo_agent("slow", agent).await;
    let turn = cluster.post(0, "slow", "/echo hello").await;
    let mut held = connect(&cluster).await;
    held.execute("begin; lock table turn_events in share mode").await.unwrap();
    sleep(HELD_FOR).await;
    let status = &cluster.get(0, &format!("/v1/turns/{}", turn.id)).await["status"];
    assert_eq!(status, "queued", "its start was not held up");
    held.execute("rollback").await.unwrap();
    let events = cluster.watch_all(&turn).await;
    assert_eq!(events.last().unwrap().kind, "completed", "{}", events.last().unwrap().data);
    assert_nobody_was_judged(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_says_which_turn_it_waits_for_and_for_whom() {
    let drain = Duration::from_secs(4);
    let cluster = Cluster::with(Plan { drain, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let turn = cluster.post_on(0, "demo", "/slow 600").await;
    let free = cluster.post_on(0, "demo", "/slow 600").await;
    for turn in [&turn, &free] {
        cluster.until(1, turn, "delta", PATIENCE).await;
    }
    let mut held = connect(&cluster).await;
    let pid = lock(&mut held, "inflight", &turn).await;
    cluster.terminate(0);
    assert!(cluster.wait_exit(0).await.success());
    let pid = format!("blocker_pid={pid} ");
    let waits = lines(&cluster, 0, &["the drain waits for a turn", &turn.id, &turn.conversation, &pid]);
    // Once before its end, and once while the last word waits.
    assert_eq!(waits.len(), 2, "{}", cluster.log(0));
    assert_eq!(lines(&cluster, 0, &["the drain waits for running turns", &free.id]).len(), 1);
    assert_eq!(lines(&cluster, 0, &["the drain is over", &turn.id, &free.id]).len(), 1);
    assert_eq!(lines(&cluster, 0, &["for another replica to close", &turn.id]).len(), 1);
    held.execute("rollback").await.unwrap();
    eventually("its last word", async || {
        (cluster.get(1, &format!("/v1/turns/{}", turn.id)).await["status"] == "failed").then_some(())
    })
    .await;
    let events = cluster.watch_all(&free).await;
    assert_eq!(events.last().unwrap().code(), "interrupted");
}
