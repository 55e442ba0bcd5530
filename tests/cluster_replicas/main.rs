//! Whatever happens to replicas and to Postgres, every turn gets one last word, on every remaining replica, and healthy
//! turns go on.
//!
//! Each test has a cluster of its own, since its cases would disturb others; they run one after the other.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "one suite asks Postgres by SQL of its own")]

mod drain;
mod failover;
mod frozen;
mod killed;
mod locked;
mod pooled;
#[path = "../support/pooler.rs"]
#[allow(dead_code, reason = "the harness uses more of it")]
mod pooler;
mod postgres;
mod queue;
mod retained;
#[path = "../support/mod.rs"]
mod support;

use reqwest::Method;
use serde_json::Value;
use support::{Cluster, Event, EventStream, Next, OPERATOR, PATIENCE, check_log, eventually};

/// A replica to be broken, and one that goes on. Where the last case broke one, another is started.
async fn pair(cluster: &Cluster) -> (usize, usize) {
    while cluster.living().len() < 2 {
        cluster.spawn_replica().await;
    }
    (cluster.living()[0], cluster.living()[1])
}

/// A replica's row as another one tells it, by its process; the newest where that process
/// registered several times.
async fn row_of(cluster: &Cluster, asked: usize, i: usize) -> Value {
    let page = cluster.get(asked, "/v1/replicas?limit=200").await;
    let pid = cluster.pid(i);
    let rows = page["items"].as_array().unwrap();
    rows.iter().find(|row| row["pid"] == pid).unwrap_or_else(|| panic!("no process {pid}: {page}")).clone()
}

/// Follows a turn to its end from where a stream was cut off, on another replica; every event that
/// a client of both has seen.
async fn resume(cluster: &Cluster, on: usize, turn: &str, mut seen: Vec<Event>) -> Vec<Event> {
    let cursor = seen.last().map_or(-1, |event| event.seq);
    seen.extend(cluster.stream(on, turn, cursor).await.until_terminal(PATIENCE).await);
    check_log(&seen, 0);
    seen
}

/// Reads until a turn has said `deltas` things.
async fn read_some(stream: &mut EventStream, deltas: usize) -> Vec<Event> {
    let (mut seen, mut said) = (Vec::new(), 0);
    while said < deltas {
        let event = stream.next_event(PATIENCE).await;
        said += usize::from(event.kind == "delta");
        assert!(!event.is_terminal(), "it ended early: {}", event.data);
        seen.push(event);
    }
    seen
}

/// Reads until the stream breaks; the events, and whether it said beforehand that it would.
async fn read_until_cut(stream: &mut EventStream) -> (Vec<Event>, bool) {
    let (mut seen, mut is_announced) = (Vec::new(), false);
    loop {
        match stream.next(PATIENCE).await {
            Next::Event(event) => seen.push(event),
            Next::Reconnect => is_announced = true,
            Next::Cut(_) => return (seen, is_announced),
            Next::Ended => panic!("it ended cleanly"),
            Next::Reset => panic!("it was reset"),
        }
    }
}

/// The sum of a metric's series at one replica; 0 where it was never counted.
async fn metric(cluster: &Cluster, i: usize, name: &str) -> f64 {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = http.get(format!("{}/metrics", cluster.url(i))).bearer_auth(OPERATOR).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    let text = answer.text().await.unwrap();
    assert!(text.contains("lastword_"), "no metrics: {text}");
    let ours = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
    });
    ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Fails if any replica of the cluster judged another, or is not at work.
async fn assert_nobody_was_judged(cluster: &Cluster) {
    for i in cluster.living() {
        assert_eq!(metric(cluster, i, "lastword_verdicts_total").await, 0.0, "replica {i} judged another");
    }
    let page = cluster.get(cluster.living()[0], "/v1/replicas?limit=200").await;
    let rows = page["items"].as_array().unwrap();
    assert_eq!(rows.len(), cluster.replicas(), "somebody registered anew: {page}");
    assert!(rows.iter().all(|row| row["state"] == "ready"), "{page}");
}

/// Waits until a replica says that it is ready.
async fn ready(cluster: &Cluster, i: usize) {
    eventually("the replica is ready", async || {
        cluster.ask(i, Method::GET, "/readyz", None).await.0.is_success().then_some(())
    })
    .await;
}
