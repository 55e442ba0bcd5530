//! Turns that live for longer than turns are retained.

use serde_json::json;

use crate::support::{Cluster, Plan, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_outlives_what_is_retained_goes_soon_after_its_end() {
    let env = vec![("LASTWORD_RETAIN".to_owned(), "2s".to_owned())];
    // Another one would come by later, with a place of its own.
    let cluster = Cluster::with(Plan { replicas: 1, env, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let long = cluster.post(0, "demo", "/slow 120").await;
    let short = cluster.post(0, "demo", "/slow 30").await;
    let is_listed = async |id: &str| cluster.get(0, "/v1/turns?limit=200").await.to_string().contains(id);
    eventually("the later turn is swept, past the earlier", async || {
        (!is_listed(&short.id).await).then_some(())
    })
    .await;
    assert!(is_listed(&long.id).await, "what is in flight stays");
    eventually("the earlier turn is swept", async || (!is_listed(&long.id).await).then_some(())).await;
}
