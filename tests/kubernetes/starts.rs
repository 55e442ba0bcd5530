//! Turns whose worker does not start: each gets its last word with the reason, quickly.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    field::{Field, SOON, failed},
    support::{eventually, kinds},
    world::status,
};

const CODE: &str = "worker_startup_failed";
const QUOTA: &str =
    "pods \"x\" is forbidden: exceeded quota: pods, requested: pods=1, used: pods=5, limited: pods=5";

/// Posts a turn whose pod gets this status; its last word's message, which must come in time.
async fn told(field: &Field, agent: &str, more: Value, status: Value) -> String {
    field.pod_agent(agent, more).await;
    let turn = field.post(0, agent, "hello").await;
    let pod = field.pod_of(&turn).await;
    let told = Instant::now();
    field.server.world.set_status(&pod, status);
    let (word, took) = field.last_word(1, &turn, told).await;
    println!("{agent}: {took:?} from the watch event to the last word on the other replica");
    assert!(took < SOON, "{agent}: {took:?}");
    failed(&word, CODE, "could not be started");
    assert_eq!(word.data["error"]["safe_to_retry"], true, "no worker received it");
    assert!(word.data["error"]["detail"].is_null(), "detail is for operators");
    assert_eq!(kinds(&field.watch_all(&turn).await), ["accepted", "failed"]);
    word.message().to_owned()
}

fn waiting(reason: &str) -> Value {
    let message = "failed to pull registry.example/agent:1: not found";
    json!({"phase": "Pending", "containerStatuses": [{"name": "worker", "image": "a", "imageID": "",
        "ready": false, "restartCount": 0, "state": {"waiting": {"reason": reason, "message": message}}}]})
}

fn nodeless() -> Value {
    let message = "0/3 nodes are available: 3 Insufficient memory.";
    json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]})
}

pub async fn an_image_that_cannot_be_pulled(field: &Field) {
    let said = told(field, "no-image", json!({}), waiting("ErrImagePull")).await;
    assert!(said.contains("its image could not be pulled") && !said.contains("registry"), "{said}");
}

pub async fn a_secret_that_is_missing(field: &Field) {
    let said = told(field, "no-secret", json!({}), waiting("CreateContainerConfigError")).await;
    assert!(said.contains("its configuration is incomplete"), "{said}");
}

pub async fn a_pod_that_no_node_has_room_for(field: &Field) {
    let said = told(field, "no-room", json!({}), nodeless()).await;
    assert!(said.contains("no machine has room for it"), "{said}");
}

pub async fn a_worker_that_ends_before_it_calls(field: &Field) {
    let status = json!({"phase": "Failed", "containerStatuses": [{"name": "worker", "image": "a", "imageID": "",
        "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 3, "reason": "Error"}}}]});
    let said = told(field, "early-exit", json!({}), status).await;
    assert!(said.contains("exit code 3"), "{said}");
}

pub async fn detail_for_whoever_may_see_it(field: &Field) {
    field.pod_agent("open", json!({"expose_errors": true})).await;
    let turn = field.post(0, "open", "hello").await;
    let pod = field.pod_of(&turn).await;
    field.server.world.set_status(&pod, waiting("ErrImagePull"));
    let events = field.watch(0, &turn).await;
    let detail = events[1].data["error"]["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("ErrImagePull: failed to pull registry.example/agent:1"), "{detail}");
}

pub async fn a_node_that_is_waited_for(field: &Field) {
    let more = json!({"pod": {"wait_for_node": "2s"}, "timeouts": {"startup": "30s"}});
    field.pod_agent("patient", more).await;
    let turn = field.post(0, "patient", "hello").await;
    let pod = field.pod_of(&turn).await;
    let told = Instant::now();
    field.server.world.set_status(&pod, nodeless());
    let (word, took) = field.last_word(1, &turn, told).await;
    failed(&word, CODE, "no machine has room for it");
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(2) + SOON, "{took:?}");
    // Nobody waits for it any more.
    eventually("the pod is removed", async || field.server.world.pod(&pod).is_none().then_some(())).await;
}

pub async fn a_pod_that_is_deleted_while_it_starts(field: &Field) {
    field.pod_agent("deleted", json!({})).await;
    let turn = field.post(0, "deleted", "hello").await;
    let pod = field.pod_of(&turn).await;
    let told = Instant::now();
    field.server.world.remove(&pod);
    let (word, took) = field.last_word(1, &turn, told).await;
    failed(&word, CODE, "its pod was deleted");
    assert!(took < SOON, "{took:?}");
}

pub async fn a_quota_that_is_used_up_for_a_while(field: &Field) {
    for _ in 0..3 {
        field.server.world.answer_agent("crowded", status(403, "Forbidden", QUOTA));
    }
    field.pod_agent("crowded", json!({})).await;
    let turn = field.post(0, "crowded", "hello").await;
    // Asked for again and again, until there is room.
    let pod = field.pod_of(&turn).await;
    field.server.world.set_status(&pod, waiting("InvalidImageName"));
    failed(field.watch_all(&turn).await.last().unwrap(), CODE, "its image could not be pulled");
}

pub async fn a_quota_that_stays_used_up(field: &Field) {
    for _ in 0..100 {
        field.server.world.answer_agent("full", status(403, "Forbidden", QUOTA));
    }
    field.pod_agent("full", json!({"timeouts": {"startup": "3s"}})).await;
    let before = field.server.world.answers_left("full");
    let posted = Instant::now();
    let turn = field.post(0, "full", "hello").await;
    let (word, took) = field.last_word(1, &turn, posted).await;
    failed(&word, CODE, "could not be started in time: its namespace has no room for another pod");
    assert!(took >= Duration::from_secs(3), "{took:?}");
    let asked = before - field.server.world.answers_left("full");
    assert!((3..=15).contains(&asked), "asked {asked} times in 3 s: that is no back-off, or none at all");
}

pub async fn a_pod_that_the_cluster_does_not_take(field: &Field) {
    for (agent, code, reason, words) in [
        ("invalid", 422, "Invalid", "the cluster does not accept its pod"),
        ("forbidden", 403, "Forbidden", "the cluster does not allow it"),
    ] {
        field.server.world.answer_agent(agent, status(code, reason, "no, because"));
        field.pod_agent(agent, json!({})).await;
        let posted = Instant::now();
        let turn = field.post(0, agent, "hello").await;
        let (word, took) = field.last_word(1, &turn, posted).await;
        failed(&word, CODE, words);
        assert!(took < SOON, "{agent}: nothing is waited for: {took:?}");
    }
}

pub async fn a_turn_that_is_cancelled_while_its_pod_starts(field: &Field) {
    field.pod_agent("cancelled", json!({})).await;
    let turn = field.post(0, "cancelled", "hello").await;
    field.pod_of(&turn).await;
    assert_eq!(field.cancel(1, &turn).await, StatusCode::ACCEPTED);
    assert_eq!(kinds(&field.watch_all(&turn).await), ["accepted", "cancelled"]);
}

pub async fn a_worker_that_never_calls(field: &Field) {
    field.pod_agent("silent", json!({"timeouts": {"startup": "2s"}})).await;
    let turn = field.post(0, "silent", "hello").await;
    let pod = field.pod_of(&turn).await;
    field.server.world.set_worker(&pod, "Running", json!({"running": {}}));
    let events = field.watch_all(&turn).await;
    failed(events.last().unwrap(), CODE, "in time: its worker has not called yet");
    eventually("the pod is removed", async || field.server.world.pod(&pod).is_none().then_some(())).await;
}
