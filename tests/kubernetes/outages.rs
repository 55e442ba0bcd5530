//! The API server is away, or the replica that created the pod is gone.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    field::{Field, failed},
    server::ApiServer,
    support::{Plan, eventually},
};

#[tokio::test]
async fn a_turn_waits_for_a_cluster_that_is_away_and_no_longer_than_its_clock() {
    let server = ApiServer::start();
    server.go_away();
    let field = Field::beside(server, Plan { replicas: 1, ..Plan::default() }).await;
    field.pod_agent("impatient", json!({"timeouts": {"startup": "2s"}})).await;
    field.pod_agent("patient", json!({"timeouts": {"startup": "60s"}})).await;
    let patient = field.post(0, "patient", "hello").await;
    let impatient = field.post(0, "impatient", "hello").await;
    let events = field.watch(0, &impatient).await;
    failed(events.last().unwrap(), "worker_startup_failed", "in time: the cluster cannot be reached");
    // It comes back by itself, and the turn that waits goes on.
    field.server.come_back();
    let pod = field.pod_of(&patient).await;
    // Away once more, in the middle of the start.
    field.server.go_away();
    field.server.world.set_worker(&pod, "Failed", json!({"terminated": {"exitCode": 4}}));
    let back = Instant::now();
    field.server.come_back();
    let (word, took) = field.last_word(0, &patient, back).await;
    failed(&word, "worker_startup_failed", "exit code 4");
    println!("told {took:?} after the server came back");
}

#[tokio::test]
async fn a_turn_that_runs_goes_on_without_the_cluster_and_without_its_replica() {
    let field = Field::open(Plan::default()).await;
    field.pod_agent("steady", json!({})).await;
    let turn = field.post(0, "steady", "/slow 60").await;
    let pod = field.pod_of(&turn).await;
    let both = format!("{},{}", field.url(0), field.url(1));
    field.kubelet.run_towards(&pod, Some(&both));
    field.until(1, &turn, "delta", Duration::from_secs(30)).await;
    field.server.go_away();
    // Its worker calls the first of them, and turns to the other.
    field.kill(0);
    let events = field.watch(1, &turn).await;
    assert_eq!(events.last().unwrap().kind, "completed", "{events:?}");
    assert_eq!(events.iter().filter(|event| event.kind == "started").count(), 1, "one attempt");
    field.server.come_back();
    eventually("the other replica still knows the pod", async || {
        let log = field.log(1);
        assert!(!log.contains("a worker's pod ended"), "{log}");
        field.server.world.asked("GET").last().filter(|asked| asked.contains("watch=true")).map(|_| ())
    })
    .await;
    assert_eq!(field.server.world.names(), [pod]);
}

#[tokio::test]
async fn a_pod_whose_replica_is_gone_serves_the_turn_at_another_or_is_removed() {
    let field = Field::open(Plan::default()).await;
    field.pod_agent("kept", json!({})).await;
    field.pod_agent("brief", json!({"idle_ttl": "0s"})).await;
    let turn = field.post(0, "kept", "hello").await;
    let pod = field.pod_of(&turn).await;
    let replica = &field.server.world.pod(&pod).unwrap()["metadata"]["labels"]["lastword/replica"];
    let asked_by = field.replica_of(replica.as_str().unwrap()).await;
    field.kill(asked_by);
    let other = 1 - asked_by;
    field.kubelet.run_towards(&pod, Some(&field.url(other)));
    let events = field.watch(other, &turn).await;
    assert_eq!(events.last().unwrap().kind, "completed", "{events:?}");
    let pods = field.server.world.names();
    assert_eq!(pods, [pod.as_str()], "the other one waited for the same pod");
    // Another pod, of a turn that is over: nobody needs it.
    let again = field.post(other, "brief", "hello").await;
    let orphan = field.pod_of(&again).await;
    field.server.world.set_worker(&orphan, "Running", json!({"running": {}}));
    field.cancel(other, &again).await;
    eventually("the orphan is removed", async || field.server.world.pod(&orphan).is_none().then_some(()))
        .await;
}
