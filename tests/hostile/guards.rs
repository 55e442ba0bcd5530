//! Texts that are expensive to check.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::{
    pulse::longest_silence,
    support::{Cluster, Turn, eventually, program},
};

/// A beat comes every half second, and twenty that are missed are a verdict. On a busy machine some are late.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// For each letter as many counts are open as there are: minutes in a match that nothing interrupts.
const COSTLY: &str = "(a{1,500}){1,20}x";
/// More than is compiled.
const TOO_LARGE: &str = "(a{1,1000}){1,200}x";

fn denies(patterns: &[&str]) -> Value {
    patterns.iter().map(|pattern| json!({"kind": "deny_regex", "pattern": pattern})).collect()
}

/// Puts an agent as an older release did, which looked at less.
async fn store_agent(cluster: &Cluster, name: &str, guards: Value) {
    let url = cluster.postgres().url();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let spec = json!({"runtime": "process", "command": [program(), "demo-agent"], "guards": guards});
    sqlx::query("select lw_agent_put_v1($1, $2)")
        .bind(name)
        .bind(spec.to_string())
        .execute(&mut conn)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_turn_stops_no_replica_and_no_neighbour() {
    let cluster = &Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    cluster.demo_agent("costly", json!({"guards": denies(&[COSTLY; 5])})).await;
    cluster.demo_agent("guarded", json!({"guards": denies(&[r"(?i)\bsecret\b"; 20])})).await;
    store_agent(cluster, "stored", denies(&[TOO_LARGE; 20])).await;
    let before = ids(cluster).await;

    let innocent = join_all([0, 1].map(|i| cluster.post_on(i, "demo", "/slow 60"))).await;
    let poison = "a".repeat(900_000);
    let attack = async {
        let posts =
            (0..4).flat_map(|n| ["costly", "stored"].map(|agent| cluster.post(n % 2, agent, &poison)));
        let turns = join_all(posts).await;
        // Neighbours with guards of their own are not behind them.
        let cheap = cluster.post(0, "guarded", "a word with you").await;
        assert_eq!(last(cluster, &cheap).await.0, "completed");
        join_all(turns.iter().map(|turn| last(cluster, turn))).await
    };
    let (silence, ends) = longest_silence(cluster, attack).await;
    assert!(silence < SILENCE_MAX, "a replica did not beat for {silence:?}");
    for (kind, code) in ends {
        assert_eq!((kind.as_str(), code.as_str()), ("failed", "guard_blocked"));
    }
    for turn in &innocent {
        assert_eq!(last(cluster, turn).await.0, "completed");
    }
    assert_eq!(ids(cluster).await, before, "a replica was judged lost");
    eventually("it is told", async || {
        let log = cluster.log(0) + &cluster.log(1);
        (log.contains("takes too long to check") && log.contains("a guard cannot be used")).then_some(())
    })
    .await;
}

async fn last(cluster: &Cluster, turn: &Turn) -> (String, String) {
    let events = cluster.watch(0, turn).await;
    let last = events.last().unwrap();
    (last.kind.clone(), last.code().to_owned())
}

async fn ids(cluster: &Cluster) -> Vec<String> {
    let seen = cluster.get(0, "/v1/replicas").await;
    let mut ids: Vec<String> =
        seen["items"].as_array().unwrap().iter().map(|replica| replica["id"].to_string()).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn a_guard_that_does_not_compile_lets_nothing_through() {
    let cluster = &Cluster::start(1).await;
    for (agent, pattern) in [("malformed", "("), ("large", TOO_LARGE)] {
        store_agent(cluster, agent, denies(&[pattern])).await;
        let turn = cluster.post(0, agent, "hello").await;
        let events = cluster.watch_all(&turn).await;
        let last = events.last().unwrap();
        assert_eq!((last.kind.as_str(), last.code()), ("failed", "guard_blocked"), "{agent}");
        assert!(last.message().contains("cannot be checked"), "{}", last.message());
    }
}

#[tokio::test]
async fn guards_that_cost_too_much_are_refused() {
    let cluster = &Cluster::start(1).await;
    let long = "a|".repeat(2100);
    let cases = [
        (denies(&["a"; 33]), "at most 32"),
        (denies(&["x", TOO_LARGE]), "guard 2, `(a{1,1000}){1,200}x`, takes more than 3 MiB to compile"),
        (denies(&[COSTLY; 20]), "in all"),
        (denies(&["x", &long]), "guard 2 is longer than 4096 characters"),
        (denies(&["("]), "guard 1, `(`, is not a regular expression"),
    ];
    for (guards, why) in cases {
        let spec = json!({"runtime": "process", "command": ["true"], "guards": guards});
        let (status, problem) = cluster.ask(0, Method::PUT, "/v1/agents/greedy", Some(spec)).await;
        assert_eq!((status, &problem["field"]), (StatusCode::BAD_REQUEST, &json!("guards")), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{problem}");
    }
    assert_eq!(cluster.ask(0, Method::GET, "/v1/agents/greedy", None).await.0, StatusCode::NOT_FOUND);
}
