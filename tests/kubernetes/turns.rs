//! Turns on workers in pods: a real `lastword work`, started by the scripted node as the manifest says.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    field::{Field, SOON, failed},
    support::{Turn, eventually, kinds, said},
};

/// A turn whose worker runs and has said something.
async fn under_way(field: &Field, agent: &str, text: &str) -> (Turn, String) {
    let turn = field.post(0, agent, text).await;
    let pod = field.pod_of(&turn).await;
    field.kubelet.run(&pod);
    field.until(1, &turn, "delta", Duration::from_secs(30)).await;
    (turn, pod)
}

/// The pod's worker is killed in the middle of a turn, and the cluster tells this; the last word's message, and the
/// worker as operators see it then.
async fn cut_off(field: &Field, agent: &str, code: &str, tell: impl FnOnce(&Field, &str)) -> (String, Value) {
    field.pod_agent(agent, json!({})).await;
    let (turn, pod) = under_way(field, agent, "/slow 300").await;
    let told = Instant::now();
    // First the cluster tells: it is the reason that is to be seen, not the silence.
    tell(field, &pod);
    field.kubelet.kill(&pod);
    let (word, took) = field.last_word(1, &turn, told).await;
    println!("{agent}: {took:?} from the watch event to the last word on the other replica");
    assert!(took < SOON, "{agent}: {took:?}");
    failed(&word, code, "stopped unexpectedly");
    let events = field.watch_all(&turn).await;
    assert_eq!(kinds(&events)[..2], ["accepted", "started"]);
    let worker = field.worker(events[1].data["worker_id"].as_str().unwrap()).await;
    assert_eq!((&worker["state"], &worker["pod"]), (&json!("ended"), &json!(pod)), "{worker}");
    (word.message().to_owned(), worker)
}

fn terminated(end: Value) -> impl FnOnce(&Field, &str) {
    move |field, pod| field.server.world.set_worker(pod, "Failed", json!({"terminated": end}))
}

pub async fn a_worker_that_takes_too_much_memory(field: &Field) {
    let end = json!({"exitCode": 137, "reason": "OOMKilled"});
    let (said, _) = cut_off(field, "oom", "worker_exited", terminated(end)).await;
    assert!(said.contains("(out of memory, limit 1140850688)"), "{said}");
}

pub async fn a_worker_that_exits(field: &Field) {
    let end = json!({"exitCode": 3, "reason": "Error"});
    let (said, _) = cut_off(field, "exits", "worker_exited", terminated(end)).await;
    assert!(said.contains("(exit code 3)"), "{said}");
}

pub async fn a_pod_that_is_evicted(field: &Field) {
    let tell = |field: &Field, pod: &str| {
        let message = "The node was low on resource: memory.";
        field
            .server
            .world
            .set_status(pod, json!({"phase": "Failed", "reason": "Evicted", "message": message}));
    };
    let (said, worker) = cut_off(field, "evicted", "worker_exited", tell).await;
    assert!(said.contains("evicted from its machine"), "{said}");
    let detail = worker["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains("low on resource") && !said.contains("low on resource"),
        "for operators: {worker}"
    );
}

pub async fn a_node_that_is_lost(field: &Field) {
    let tell = |field: &Field, pod: &str| field.server.world.set_status(pod, json!({"phase": "Unknown"}));
    let (said, _) = cut_off(field, "node-lost", "worker_lost", tell).await;
    assert!(said.contains("its machine was lost"), "{said}");
}

pub async fn a_pod_that_somebody_deletes(field: &Field) {
    let tell = |field: &Field, pod: &str| assert!(field.server.world.remove(pod));
    let (said, _) = cut_off(field, "removed", "worker_exited", tell).await;
    assert!(said.contains("its pod was deleted"), "{said}");
}

pub async fn one_pod_serves_turn_after_turn(field: &Field) {
    field.pod_agent("warm", json!({})).await;
    let first = field.post(0, "warm", "hello").await;
    let pod = field.pod_of(&first).await;
    field.kubelet.run(&pod);
    let events = field.watch_all(&first).await;
    assert_eq!(events.last().unwrap().kind, "completed", "{events:?}");
    assert!(!said(&events).is_empty());
    let posted = Instant::now();
    let second = field.post_in(1, &first.conversation, "warm", "and again").await;
    let events = field.watch_all(&second).await;
    assert_eq!(events.last().unwrap().kind, "completed", "{events:?}");
    println!("a turn on a warm pod took {:?}", posted.elapsed());
    assert_eq!(field.server.world.pod_of(&first.conversation), Some(pod.clone()));
    let worker = events[1].data["worker_id"].as_str().unwrap();
    let label = &field.server.world.pod(&pod).unwrap()["metadata"]["labels"]["lastword/worker"];
    assert_eq!(label, worker, "the worker is who its pod says");
    let seen = field.worker(worker).await;
    assert_eq!((&seen["runtime"], &seen["pod"]), (&json!("kubernetes"), &json!(pod)), "{seen}");
    assert_eq!((&seen["conversation_id"], &seen["pid"]), (&json!(first.conversation), &json!(null)));
}

pub async fn a_worker_leaves_when_it_is_idle_and_its_pod_goes(field: &Field) {
    field.pod_agent("idle", json!({"idle_ttl": "1s"})).await;
    let turn = field.post(0, "idle", "hello").await;
    let pod = field.pod_of(&turn).await;
    let token = field.server.world.pod(&pod).unwrap()["metadata"]["annotations"]["lastword/token"].clone();
    let token = token.as_str().unwrap();
    assert_eq!(field.let_in(token, "idle").await, StatusCode::OK);
    assert_eq!(field.let_in(token, "warm").await, StatusCode::FORBIDDEN, "it is good for one agent");
    field.kubelet.run(&pod);
    assert_eq!(field.watch_all(&turn).await.last().unwrap().kind, "completed");
    assert_eq!(field.kubelet.reap(&pod).await, 0, "it leaves by itself:\n{}", field.kubelet.log(&pod));
    eventually("its pod is removed", async || field.server.world.pod(&pod).is_none().then_some(())).await;
    eventually("its token is revoked", async || {
        (field.let_in(token, "idle").await == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    // The conversation goes on with a fresh one.
    let next = field.post_in(0, &turn.conversation, "idle", "still there?").await;
    let fresh = field.pod_of(&next).await;
    assert_ne!(fresh, pod);
    field.kubelet.run(&fresh);
    assert_eq!(field.watch_all(&next).await.last().unwrap().kind, "completed");
}

pub async fn a_pod_of_an_older_revision_serves_no_more(field: &Field) {
    field.pod_agent("revised", json!({})).await;
    let first = field.post(0, "revised", "hello").await;
    let old = field.pod_of(&first).await;
    field.kubelet.run(&old);
    assert_eq!(field.watch_all(&first).await.last().unwrap().kind, "completed");
    field.pod_agent("revised", json!({"env": {"NEW": "1"}})).await;
    let second = field.post_in(0, &first.conversation, "revised", "hello").await;
    let fresh = eventually("a fresh pod", async || {
        field.server.world.pod_of(&first.conversation).filter(|pod| *pod != old)
    })
    .await;
    field.kubelet.run(&fresh);
    assert_eq!(field.watch_all(&second).await.last().unwrap().kind, "completed");
    eventually("the old one is removed", async || field.server.world.pod(&old).is_none().then_some(())).await;
}
