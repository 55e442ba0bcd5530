//! The worker processes of a replica, or of a host, are bounded: idle ones leave for those that are needed, the longest idle
//! first.

use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

use crate::{
    support::{Cluster, Outlet, Plan, Turn, eventually, is_alive, signal},
    workers::{completed, shell_with},
};

const WORKERS_MAX: usize = 8;

/// One replica, or one host of an agent, with room for 8 workers, and four turns at once.
pub fn plan(outlet: Outlet) -> Plan {
    Plan { replicas: 1, turns_max: 4, workers_max: Some(WORKERS_MAX as u32), outlet, ..Plan::default() }
}

pub async fn forty_conversations_have_eight_workers(cluster: &Cluster) {
    cluster.demo_agent("many", json!({})).await;
    let texts: Vec<String> = (0..40).map(|n| format!("number {n}")).collect();
    let turns: Vec<Turn> = join_all(texts.iter().map(|text| cluster.post(0, "many", text))).await;
    let mut most = 0;
    let watching = async {
        loop {
            most = most.max(cluster.guards());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let all = join_all(turns.iter().map(|turn| cluster.watch(0, turn)));
    tokio::select! {
        () = watching => {}
        all = all => for (events, text) in all.iter().zip(&texts) {
            assert_eq!(completed(events), format!("Hello! You said: {text}"));
        }
    }
    assert!((2..=WORKERS_MAX).contains(&most), "{most} workers at once");
    // The system's list of children may lack one while another is just ending.
    eventually("as many are kept warm as may be", async || (cluster.guards() == WORKERS_MAX).then_some(()))
        .await;
}

/// After the case of forty conversations, on a replica.
pub async fn the_bound_is_measured(cluster: &Cluster) {
    eventually("the bound is measured", async || {
        let metrics = cluster.metrics(0).await;
        let is_measured = [
            "lastword_workers{state=\"idle\"} 8",
            "lastword_bound_used{bound=\"workers\"} 0",
            "lastword_bound_max{bound=\"workers\"} 8",
        ];
        is_measured.iter().all(|line| metrics.contains(line)).then_some(())
    })
    .await;
}

pub async fn the_worker_that_was_idle_for_longest_leaves_first(cluster: &Cluster) {
    cluster.demo_agent("few", json!({})).await;
    let served = async |turn: &Turn| {
        completed(&cluster.watch(0, turn).await);
        cluster.worker_of(turn).await
    };
    let first = cluster.post(0, "few", "one").await;
    let its_worker = served(&first).await;
    let mut others = Vec::new();
    for n in 1..WORKERS_MAX {
        let turn = cluster.post(0, "few", &format!("other {n}")).await;
        others.push(served(&turn).await);
    }
    let again = cluster.post_in(0, &first.conversation, "few", "two").await;
    assert_eq!(served(&again).await, its_worker, "there was room for all of them");
    let one_more = cluster.post(0, "few", "one more").await;
    served(&one_more).await;
    cluster.ended(&others[0].id).await;
    let last = cluster.post_in(0, &first.conversation, "few", "three").await;
    assert_eq!(served(&last).await, its_worker, "it was used a moment ago");
    assert!(others[1..].iter().all(|other| is_alive(other.pid)), "one left, no more");
}

/// A worker that is told to leave, and takes its time.
const LINGERS: &str = r#"
trap '' TERM
say '{"type":"complete","text":"done"}'
read -r shutdown
touch told
while :; do sleep 0.02; done"#;

pub async fn a_turn_without_room_for_its_worker_waits_in_the_queue(cluster: &Cluster) {
    cluster.put_agent("lingers", shell_with(LINGERS, json!({}))).await;
    let mut leaving = Vec::new();
    for _ in 0..WORKERS_MAX {
        let turn = cluster.post(0, "lingers", "hello").await;
        cluster.watch(0, &turn).await;
        leaving.push((cluster.worker_of(&turn).await, turn.conversation));
    }
    join_all(leaving.iter().map(|(worker, _)| async {
        let path = format!("/v1/workers/{}/stop", worker.id);
        let (status, answer) = cluster.ask(0, Method::POST, &path, None).await;
        assert!(status.is_success(), "{status} {answer}");
    }))
    .await;
    eventually("all are on their way out", async || {
        let has_been_told = |conversation: &str| cluster.workspace(conversation).join("told").exists();
        leaving.iter().all(|(_, conversation)| has_been_told(conversation)).then_some(())
    })
    .await;
    let turn = cluster.post(0, "lingers", "hello").await;
    let seen = cluster.get(0, &format!("/v1/turns/{}", turn.id)).await;
    assert_eq!((&seen["status"], &seen["attempt"]), (&json!("queued"), &json!(0)), "it was claimed: {seen}");
    assert_eq!(cluster.guards(), WORKERS_MAX, "none is gone yet");
    signal(leaving[0].0.pid, Signal::SIGKILL);
    assert_eq!(cluster.watch(0, &turn).await.last().unwrap().kind, "completed");
    assert!(cluster.guards() <= WORKERS_MAX);
}
