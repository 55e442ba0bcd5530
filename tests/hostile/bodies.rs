//! Request bodies that are expensive to read.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::json;

use crate::{
    pulse::longest_silence,
    support::{Cluster, OPERATOR},
};

/// Far from the ten seconds that are a verdict, and from the half second between two beats.
const SILENCE_MAX: Duration = Duration::from_secs(4);
/// Requests at once, and numbers in each.
const REQUESTS: usize = 40;
const NUMBERS: usize = 200_000;

#[tokio::test(flavor = "multi_thread")]
async fn many_large_bodies_keep_no_replica_from_beating() {
    let cluster = &Cluster::start(1).await;
    cluster.demo_agent("demo", json!({})).await;
    let innocent = cluster.post(0, "demo", "/slow 20").await;
    let numbers = "0,".repeat(NUMBERS - 1) + "0";
    let body = format!(r#"{{"agent":"nobody","input":"x","metadata":{{"n":[{numbers}]}}}}"#);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/v1/turns", cluster.url(0));
    let posts = (0..REQUESTS).map(|_| {
        let post = http.post(&url).bearer_auth(OPERATOR).header("content-type", "application/json");
        post.body(body.clone()).send()
    });
    let (silence, answers) = longest_silence(cluster, join_all(posts)).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().status() == StatusCode::NOT_FOUND));
    assert!(silence < SILENCE_MAX, "the replica did not beat for {silence:?}");
    assert_eq!(cluster.watch(0, &innocent).await.last().unwrap().kind, "completed");
}
