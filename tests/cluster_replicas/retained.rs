//! Turns that run for longer than the retention.

use serde_json::json;

use crate::support::{Cluster, PATIENCE, Plan, eventually, is_alive};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_goes_with_its_conversation_and_others_stay() {
    let env = vec![("LASTWORD_RETAIN".to_owned(), "20s".to_owned())];
    let cluster = Cluster::with(Plan { replicas: 1, env, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let (deleted, kept) =
        (cluster.post(0, "demo", "hello").await, cluster.post(0, "demo", "/slow 100000").await);
    cluster.until(0, &kept, "delta", PATIENCE).await;
    cluster.watch(0, &deleted).await;
    let [gone, there] = [&deleted, &kept].map(|turn| cluster.workspace(&turn.conversation));
    assert!(gone.is_dir() && there.is_dir());
    std::fs::write(gone.join("secret"), "mine").unwrap();
    let worker = cluster.worker_of(&deleted).await;
    let path = format!("/v1/conversations/{}", deleted.conversation);
    assert_eq!(cluster.ask(0, reqwest::Method::DELETE, &path, None).await.0, reqwest::StatusCode::NO_CONTENT);
    eventually("its idle worker ends", async || (!is_alive(worker.pid)).then_some(())).await;
    eventually("its workspace is gone", async || (!gone.exists()).then_some(())).await;
    assert!(there.is_dir(), "the workspace of a turn that runs");
    cluster.cancel(0, &kept).await;
    // What is retained no longer takes its workspace along.
    eventually("the other is gone as well", async || (!there.exists()).then_some(())).await;
}
