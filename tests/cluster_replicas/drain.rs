//! Replicas that are told to leave: turns that fit the drain complete, the others end as interrupted, and queued turns
//! are not touched.

use std::time::Duration;

use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;

use crate::{
    pair, read_some, read_until_cut, resume, row_of,
    support::{Cluster, PATIENCE, Plan, eventually, kinds, said},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_leaves_lets_its_turns_end() {
    let drain = Duration::from_secs(30);
    let cluster = Cluster::with(Plan { drain, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    what_fits_the_drain_completes(&cluster).await;
    a_second_signal_means_now(&cluster).await;
}

async fn what_fits_the_drain_completes(cluster: &Cluster) {
    let (leaving, other) = pair(cluster).await;
    let turn = cluster.post_on(leaving, "demo", "/slow 50").await;
    let id = row_of(cluster, other, leaving).await["id"].as_str().unwrap().to_owned();
    let mut stream = cluster.stream(leaving, &turn.id, -1).await;
    let mut seen = read_some(&mut stream, 3).await;
    cluster.terminate(leaving);
    let (more, is_announced) = read_until_cut(&mut stream).await;
    assert!(is_announced, "cut without a reconnect");
    seen.extend(more);

    // The others take what comes in meanwhile.
    let new = cluster.post(other, "demo", "hello").await;
    assert_eq!(cluster.worker_of(&new).await.replica, other);
    let is_open = cluster.get(other, &format!("/v1/turns/{}", turn.id)).await["status"] == "running";
    let seen = resume(cluster, other, &turn.id, seen).await;
    assert!(is_open, "the drain waited for nothing");
    assert_eq!(seen.last().unwrap().kind, "completed", "{}", seen.last().unwrap().data);
    assert_eq!(kinds(&seen).iter().filter(|kind| **kind == "started").count(), 1);
    assert_eq!(seen, cluster.watch_all(&turn).await);
    assert!(cluster.wait_exit(leaving).await.success());
    let rows = cluster.get(other, "/v1/replicas?limit=200").await;
    let row = rows["items"].as_array().unwrap().iter().find(|row| row["id"] == id.as_str()).cloned();
    assert_eq!(row.unwrap()["state"], "left");
}

async fn a_second_signal_means_now(cluster: &Cluster) {
    let (leaving, other) = pair(cluster).await;
    let turn = cluster.post_on(leaving, "demo", "/slow 600").await;
    let mut stream = cluster.stream(other, &turn.id, -1).await;
    read_some(&mut stream, 3).await;
    cluster.terminate(leaving);
    // Two signals in a row may arrive as one.
    eventually("it drains", async || {
        (row_of(cluster, other, leaving).await["state"] == "draining").then_some(())
    })
    .await;
    read_some(&mut stream, 3).await;
    let asked = Instant::now();
    cluster.terminate(leaving);
    let rest = stream.until_terminal(PATIENCE).await;
    let code = rest.last().unwrap().code().to_owned();
    assert!(cluster.wait_exit(leaving).await.success());
    assert!(
        asked.elapsed() < Duration::from_secs(15),
        "it waited for the drain's end: {:?}",
        asked.elapsed()
    );
    assert_eq!(code, "interrupted");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_drain_interrupts_what_runs_and_leaves_what_waits() {
    let drain = Duration::from_secs(1);
    let cluster = Cluster::with(Plan { drain, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let script = r#"
say() { printf '%s\n' "$1"; }
say '{"type":"ready"}'
read -r turn
[ -e tried ] || { touch tried; exec sleep 300; }
say '{"type":"delta","text":"at last"}'
say '{"type":"complete"}'"#;
    let spec = json!({"runtime": "process", "command": ["sh", "-c", script], "retry": "safe"});
    cluster.put_agent("safe", spec).await;
    let safe = cluster.post(0, "safe", "hello").await;
    assert_eq!(cluster.worker_of(&safe).await.replica, 0);
    let workspace = cluster.workspace(&safe.conversation);
    eventually("its worker has the turn", async || workspace.join("tried").exists().then_some(())).await;
    let turn = cluster.post_on(0, "demo", "/slow 600").await;
    let waiting = cluster.post_in(0, &turn.conversation, "demo", "after the drain").await;
    let mut stream = cluster.stream(1, &turn.id, -1).await;
    read_some(&mut stream, 3).await;
    cluster.terminate(0);
    let rest = stream.until_terminal(PATIENCE).await;
    let last = rest.last().unwrap();
    assert_eq!((last.kind.as_str(), last.code()), ("failed", "interrupted"), "{}", last.data);
    assert_eq!(last.data["error"]["retryable"], true);
    assert!(cluster.wait_exit(0).await.success());

    let events = cluster.watch_all(&waiting).await;
    assert_eq!(said(&events), "Hello! You said: after the drain");
    assert_eq!(events.iter().filter(|event| event.kind == "started").count(), 1);
    assert_eq!(cluster.worker_of(&waiting).await.replica, 1);

    // It had said nothing, and its agent allows another attempt.
    let events = cluster.watch_all(&safe).await;
    assert_eq!(kinds(&events), ["accepted", "started", "started", "delta", "completed"]);
    assert_eq!(cluster.worker_of(&safe).await.replica, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_was_lost_does_not_die_with_a_drain() {
    let cluster = Cluster::with(Plan { turns_max: 1, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let here = cluster.post_on(0, "demo", "/slow 600").await;
    let there = cluster.post_on(1, "demo", "/slow 600").await;
    read_some(&mut cluster.stream(1, &there.id, -1).await, 3).await;
    let turn = cluster.post(0, "demo", "hello").await;
    let id = row_of(&cluster, 0, 1).await["id"].as_str().unwrap().to_owned();
    claim_unheard(&cluster, &turn.id, &id).await;
    cluster.terminate(1);
    cluster.cancel(0, &here).await;
    let events = cluster.watch_all(&turn).await;
    assert_eq!(events.last().unwrap().kind, "completed", "{:?}", events.last().unwrap().data);
    assert_eq!(said(&events), "Hello! You said: hello");
    assert_eq!(cluster.worker_of(&turn).await.replica, 0);
    assert!(cluster.wait_exit(1).await.success());
}

/// What a claim leaves whose answer never came: the replica knows nothing of it.
#[allow(clippy::disallowed_methods, reason = "the lost answer of a statement cannot be arranged")]
async fn claim_unheard(cluster: &Cluster, turn: &str, replica: &str) {
    let bare = |id: &str| id.split_once('_').unwrap().1.to_owned();
    let url = cluster.postgres().url();
    let mut database = PgConnection::connect(&url).await.unwrap();
    let claimed = sqlx::query(
        "with i as (
           update inflight set phase = 'running', clock = 'progress', epoch = 1, replica = $2::uuid, last_seq = 1,
                  claimed_at = clock_timestamp(), started_at = clock_timestamp(),
                  deadline = least(cap_at, clock_timestamp() + interval '60 s')
            where turn_id = $1::uuid and phase = 'queued' returning turn_id),
         t as (
           update turns set status = 'running', attempt = 1, started_at = clock_timestamp()
            where id = (select turn_id from i))
         insert into turn_events (turn_id, seq, kind, attempt, data)
         select turn_id, 1, 'started', 1, '{\"worker_id\":null}' from i",
    )
    .bind(bare(turn))
    .bind(bare(replica))
    .execute(&mut database)
    .await
    .unwrap();
    assert_eq!(claimed.rows_affected(), 1, "it was queued");
}
