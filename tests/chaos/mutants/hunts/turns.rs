//! Hunts for rules within one turn.

use std::{fs, time::Duration};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Session, uuid};
use crate::support::{Cluster, Next, PATIENCE, eventually, within};

/// A lock is held no longer than a statement may take.
const HELD: Duration = Duration::from_millis(1500);

/// A turn ends, and its in-flight row with it.
pub async fn ended(cluster: &Cluster) -> bool {
    cluster.demo_agent("demo", json!({})).await;
    let turn = cluster.post(0, "demo", "hello").await;
    cluster.watch(0, &turn).await;
    Session::open(cluster).await.count("inflight").await == 0
}

/// Two turns that may not wait come at once, while the conversation's row is held: both decide only
/// when it is let go.
pub async fn two_that_may_not_wait(cluster: &Cluster) -> bool {
    cluster.demo_agent("demo", json!({})).await;
    let first = cluster.post(0, "demo", "hello").await;
    cluster.watch(0, &first).await;
    let (mut holder, mut looker) = (Session::open(cluster).await, Session::open(cluster).await);
    holder.run("begin").await;
    let row = format!("select from conversations where id = '{}' for update", uuid(&first.conversation));
    assert_eq!(holder.run(&row).await, 1);
    let body = json!({
        "agent": "demo", "input": "/slow 10", "conversation_id": first.conversation, "if_busy": "reject"});
    let posts = join_all((0..2).map(|i| cluster.ask(i, Method::POST, "/v1/turns", Some(body.clone()))));
    let release = async {
        looker.blocked("lw_accept_v1", 2).await;
        holder.run("rollback").await;
    };
    let (answers, ()) = tokio::join!(posts, release);
    let count = |status| answers.iter().filter(|(answered, _)| *answered == status).count();
    let holds = (count(StatusCode::ACCEPTED), count(StatusCode::CONFLICT)) == (1, 1);
    looker.until("select not exists (select from inflight)").await;
    holds
}

/// The holder cannot write, for somebody holds the turn's row: until it can, its readers see nothing.
pub async fn reader_of_a_blocked_log(cluster: &Cluster) -> bool {
    cluster.demo_agent("demo", json!({})).await;
    let turn = cluster.post(0, "demo", "/slow 40").await;
    cluster.worker_of(&turn).await;
    let mut stream = cluster.stream(0, &turn.id, -1).await;
    let (mut holder, mut looker) = (Session::open(cluster).await, Session::open(cluster).await);
    holder.run("begin").await;
    let row = format!("select from inflight where turn_id = '{}' for update", uuid(&turn.id));
    assert_eq!(holder.run(&row).await, 1);
    let until = Instant::now() + HELD;
    let mut holds = true;
    while let Ok(next) = timeout_at(until, stream.next(PATIENCE)).await {
        // Anything else says that what it had been given does not stand.
        let Next::Event(event) = next else {
            holds = false;
            break;
        };
        let there = format!("turn_events where turn_id = '{}' and seq = {}", uuid(&turn.id), event.seq);
        holds &= looker.count(&there).await == 1;
    }
    holder.run("rollback").await;
    if holds {
        stream.until_terminal(PATIENCE).await;
    }
    holds
}

/// Readers on both replicas, one of them far from the worker, and no doorbell.
pub async fn readers_without_a_doorbell(cluster: &Cluster) -> bool {
    cluster.demo_agent("demo", json!({})).await;
    let turn = cluster.post(0, "demo", "/slow 20").await;
    let all = join_all((0..2).map(|i| cluster.watch(i, &turn)));
    timeout(Duration::from_secs(12), all).await.is_ok()
}

/// A worker that beats and does nothing else.
pub async fn only_beats(cluster: &Cluster) -> bool {
    cluster.demo_agent("demo", json!({"timeouts": {"progress": "2s"}})).await;
    let turn = cluster.post(0, "demo", "/hang").await;
    let watched = timeout(Duration::from_secs(8), cluster.watch(1, &turn)).await;
    watched.is_ok_and(|events| events.last().unwrap().code() == "worker_unresponsive")
}

/// The move to `running` is held up; the worker, which writes down every line, must not have one yet.
pub async fn blocked_start(cluster: &Cluster) -> bool {
    let script = r#"sleep 2; echo '{"type":"ready"}'
while read -r line; do case "$line" in *'"type":"turn"'*) echo "$line" >> received
  echo '{"type":"content","text":"done"}'; echo '{"type":"complete"}';; *) exit 0;; esac; done"#;
    cluster.put_agent("clerk", json!({"runtime": "process", "command": ["sh", "-c", script]})).await;
    let turn = cluster.post(0, "clerk", "hello").await;
    let received = cluster.workspace(&turn.conversation).join("received");
    let (mut holder, mut looker) = (Session::open(cluster).await, Session::open(cluster).await);
    let phase = format!("select phase = 'starting' from inflight where turn_id = '{}'", uuid(&turn.id));
    looker.until(&phase).await;
    holder.run("begin").await;
    let row = format!(
        "select from inflight where turn_id = '{}' and phase = 'starting' for update",
        uuid(&turn.id)
    );
    assert_eq!(holder.run(&row).await, 1);
    looker.blocked("update lastword.inflight", 1).await;
    let until = Instant::now() + HELD;
    let lines = || fs::read_to_string(&received).unwrap_or_default().lines().count();
    within(PATIENCE, "a line, or the time", async || (lines() > 0 || Instant::now() > until).then_some(()))
        .await;
    let holds = lines() == 0;
    holder.run("rollback").await;
    eventually("the worker has it", async || (lines() > 0).then_some(())).await;
    cluster.watch(0, &turn).await;
    holds && lines() == 1
}
