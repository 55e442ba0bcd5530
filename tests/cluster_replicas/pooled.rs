//! A transaction pooler between replicas and Postgres, and another program that uses the same pooler.

use std::collections::{HashMap, HashSet};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::{
    pooler::Pooler,
    support::{Cluster, Plan},
};

/// Connections of the pooler to Postgres.
const BACKENDS: u32 = 4;
/// What a replica wants of its own sessions, and what another program must not get.
const SETTINGS: [&str; 8] = [
    "plan_cache_mode",
    "enable_seqscan",
    "enable_bitmapscan",
    "jit",
    "search_path",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
];

/// The settings of every backend of the pooler, as another client of it sees them.
async fn settings(url: &str) -> HashMap<i32, Vec<String>> {
    let mut clients =
        join_all((0..BACKENDS).map(|_| async { PgConnection::connect(url).await.unwrap() })).await;
    // All of them at once: each has a backend of its own.
    let mut held = Vec::new();
    for client in &mut clients {
        held.push(client.begin().await.unwrap());
    }
    let mut seen = HashMap::new();
    for client in &mut held {
        let ask = "select pg_backend_pid(), array(select current_setting(name) from unnest($1::text[]) name)";
        let row = sqlx::query(ask).bind(&SETTINGS[..]).fetch_one(&mut **client).await.unwrap();
        seen.insert(row.get::<i32, _>(0), row.get::<Vec<String>, _>(1));
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_leave_nothing_on_the_backends_of_a_pooler() {
    let cluster = Cluster::with(Plan { replicas: 0, ..Plan::default() }).await;
    let direct = cluster.postgres().url();
    let pool = Pooler::find().unwrap().start(&direct, BACKENDS).unwrap();
    let before = settings(&pool.url()).await;
    assert_eq!(before.len(), BACKENDS as usize, "{}", pool.log());

    let url = pool.url();
    let env = [("DATABASE_URL", url.as_str()), ("LASTWORD_LISTENER_DATABASE_URL", direct.as_str())];
    for _ in 0..2 {
        cluster.spawn_replica_with(&env).await;
    }
    cluster.demo_agent("demo", json!({})).await;
    let turns = join_all((0..24).map(|i| cluster.post(i % 2, "demo", "/slow 5"))).await;
    for turn in &turns {
        let events = cluster.watch_all(turn).await;
        assert_eq!(events.last().unwrap().kind, "completed", "{}", events.last().unwrap().data);
    }
    // They did use the pooler, and went on meanwhile.
    let mut admin = PgConnection::connect(&direct).await.unwrap();
    let used: Vec<i32> =
        sqlx::query_scalar("select pid from pg_stat_activity where application_name like 'lastword %'")
            .fetch_all(&mut admin)
            .await
            .unwrap();
    let after = settings(&pool.url()).await;
    let used: HashSet<i32> = used.into_iter().collect();
    assert!(after.keys().any(|pid| used.contains(pid)), "{used:?} {after:?}");
    let usual = before.values().next().unwrap();
    for (pid, settings) in &after {
        assert_eq!(settings, usual, "backend {pid}: {SETTINGS:?}");
    }
    for i in 0..2 {
        assert!(cluster.log(i).contains("the session settings are rejected at login"), "{}", cluster.log(i));
    }
    cluster.verify();
    let doctor = cluster.command("doctor").envs(env).output().unwrap();
    let found = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.success(), "{found}");
    for line in [
        "warn  settings: a pooler drops the settings of lastword's sessions",
        "ok    schema: lastword",
        "ok    encoding: UTF8",
    ] {
        assert!(found.contains(line), "{line}: {found}");
    }
}
