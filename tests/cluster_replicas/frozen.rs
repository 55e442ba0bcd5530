//! A replica that is frozen past its verdict: the others close its turns, and after thawing it writes nothing and
//! starts over.

use std::time::Duration;

use serde_json::json;

use crate::{
    read_some, ready, row_of,
    support::{Cluster, eventually, is_alive},
};

/// 20 beats, and the rest of a busy machine's time.
const VERDICT_MAX: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stood_still_changes_nothing_and_starts_over() {
    let cluster = Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    let (still, other) = (0, 1);
    let turn = cluster.post_on(still, "demo", "/slow 600").await;
    let worker = cluster.worker_of(&turn).await;
    let old = row_of(&cluster, other, still).await["id"].clone();
    let mut stream = cluster.stream(other, &turn.id, -1).await;
    read_some(&mut stream, 3).await;

    cluster.freeze(still);
    let rest = stream.until_terminal(VERDICT_MAX).await;
    assert_eq!(rest.last().unwrap().code(), "replica_lost");
    let before = cluster.events(other, &turn).await;
    // Its conversation does not wait for it.
    let next = cluster.post_in(other, &turn.conversation, "demo", "go on").await;
    assert_eq!(cluster.watch(other, &next).await.last().unwrap().kind, "completed");

    cluster.thaw(still);
    eventually("it registers anew", async || {
        let row = row_of(&cluster, other, still).await;
        (row["state"] == "ready" && row["id"] != old).then_some(())
    })
    .await;
    ready(&cluster, still).await;
    eventually("its old worker is gone", async || (!is_alive(worker.pid)).then_some(())).await;
    assert_eq!(cluster.events(other, &turn).await, before, "it wrote after the verdict");
    assert_eq!(cluster.watch_all(&turn).await, before);
    let anew = cluster.post_on(still, "demo", "again").await;
    assert_eq!(cluster.watch_all(&anew).await.last().unwrap().kind, "completed");
    let page = cluster.get(other, "/v1/replicas?limit=200").await;
    let lost = page["items"].as_array().unwrap().iter().find(|row| row["id"] == old).cloned();
    assert_eq!(lost.unwrap()["state"], "lost");
}
