//! Whatever a worker does, its turn gets one last word, and every replica shows the same one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

#[path = "../support/mod.rs"]
mod support;

use serde_json::json;
use support::{Cluster, Plan, kinds, said};

#[tokio::test]
async fn hello() {
    let cluster = Cluster::with(Plan::default()).await;
    cluster.demo_agent("demo", json!({})).await;
    let turn = cluster.post(1, "demo", "hi there").await;
    let events = cluster.watch_all(&turn).await;
    assert_eq!(said(&events), "Hello! You said: hi there", "{:?}", kinds(&events));
    let w = cluster.worker_of(&turn).await;
    eprintln!("{w:?}");
    let t = cluster.post_on(0, "demo", "x").await;
    cluster.watch_all(&t).await;
    let t = cluster.post_on(1, "demo", "/flood 500").await;
    cluster.watch_all(&t).await;
}
