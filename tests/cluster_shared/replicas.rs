//! Replicas with shared workers that pass turns to each other, drain, freeze, or cannot write.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::StatusCode;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::{
    answer_all, asking, asking_at, living, share,
    support::{Cluster, PATIENCE, Plan, children_of, is_alive, signal, within},
    workers::{cancelled, completed, failed},
};

/// Less than what is left of the time that a worker's guard waits for its replica, after a verdict.
const GUARD_WAITS: Duration = Duration::from_secs(10);
/// Several progress clocks of the agent that is tried.
const STALL: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn each_replica_has_its_own_shared_worker() {
    let cluster = Cluster::start(2).await;
    share(&cluster, "shared", json!({})).await;
    let turns = join_all((0..2).map(async |i| asking_at(&cluster, i, "shared", 15).await)).await.concat();
    let workers = living(&cluster, "shared").await;
    let replicas: HashSet<&str> =
        workers.iter().map(|worker| worker["replica_id"].as_str().unwrap()).collect();
    assert_eq!(replicas.len(), workers.len(), "two on one replica: {workers:?}");
    let running: i64 = workers.iter().map(|worker| worker["turns"].as_i64().unwrap()).sum();
    assert_eq!(running, 30, "{workers:?}");
    answer_all(&cluster, &turns).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_is_not_ours_any_more_ends_alone() {
    let cluster = Cluster::with(Plan { replicas: 1, ..Plan::default() }).await;
    share(&cluster, "shared", json!({})).await;
    let others = asking(&cluster, "shared", 2).await;
    let worker = cluster.worker_of(&others[0].0).await;
    let lost = cluster.post(0, "shared", "/slow 600").await;
    cluster.until(0, &lost, "delta", PATIENCE).await;
    // As if another had claimed it, and was gone.
    let url = cluster.postgres().url();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let id = lost.id.trim_start_matches("turn_");
    let claim = sqlx::query(
        "update inflight set epoch = epoch + 1, replica = gen_random_uuid() where turn_id = $1::uuid",
    );
    assert_eq!(claim.bind(id).execute(&mut conn).await.unwrap().rows_affected(), 1);
    conn.close().await.unwrap();
    let events = cluster.watch_all(&lost).await;
    failed(&events, "replica_lost", "");
    // It was told to stop, or it would speak on and on; and its worker is not trusted with another.
    let next = cluster.post(0, "shared", "/echo next").await;
    assert_eq!(completed(&cluster.watch_all(&next).await), "next");
    assert_ne!(cluster.worker_of(&next).await.id, worker.id);
    answer_all(&cluster, &others).await;
    assert_eq!(cluster.ended(&worker.id).await["exit"], "signal SIGKILL");
    assert_eq!(cluster.watch_all(&lost).await, events);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_cannot_be_written_costs_no_other_its_time() {
    let cluster = Cluster::with(Plan { replicas: 1, ..Plan::default() }).await;
    let spec = json!({"timeouts": {"progress": "1s"}, "limits": {"output_bytes": "1GiB"}});
    share(&cluster, "shared", spec).await;
    let flood = cluster.post(0, "shared", "/flood 100000000").await;
    let steady = cluster.post(0, "shared", "/slow 60").await;
    for turn in [&flood, &steady] {
        cluster.until(0, turn, "delta", PATIENCE).await;
    }
    assert_eq!(living(&cluster, "shared").await.len(), 1, "they do not share a worker");
    // What the one says fills the pipe, and what the other says waits behind it.
    let server = i32::try_from(cluster.postgres().pid().unwrap()).unwrap();
    let everybody = || [vec![server], children_of(server)].concat();
    everybody().into_iter().for_each(|pid| signal(pid, Signal::SIGSTOP));
    // The stall itself; nothing is waited for.
    tokio::time::sleep(STALL).await;
    everybody().into_iter().filter(|&pid| is_alive(pid)).for_each(|pid| signal(pid, Signal::SIGCONT));
    assert_eq!(completed(&cluster.watch_all(&steady).await).split_whitespace().count(), 60);
    assert_eq!(cluster.cancel(0, &flood).await, StatusCode::ACCEPTED, "it was ended");
    cancelled(&cluster.watch(0, &flood).await, "client");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_the_turns_of_a_shared_worker_end() {
    let plan = Plan { replicas: 1, drain: Duration::from_secs(4), ..Plan::default() };
    let cluster = Cluster::with(plan).await;
    share(&cluster, "shared", json!({})).await;
    let left_over = asking(&cluster, "shared", 2).await;
    let fits = cluster.post(0, "shared", "/slow 15").await;
    cluster.until(0, &fits, "delta", PATIENCE).await;
    let worker = cluster.worker_of(&fits).await;
    let other = cluster.spawn_replica().await;
    cluster.terminate(0);
    let events = cluster.watch(other, &fits).await;
    assert_eq!(completed(&events).split_whitespace().count(), 15);
    for (turn, _) in &left_over {
        failed(&cluster.watch(other, turn).await, "interrupted", "");
    }
    assert!(cluster.wait_exit(0).await.success());
    assert!(!is_alive(worker.pid), "the worker outlives its replica");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_turns_of_a_lost_replica_are_told_and_its_shared_worker_ends() {
    let cluster = Cluster::with(Plan { replicas: 1, ..Plan::default() }).await;
    share(&cluster, "shared", json!({})).await;
    let turns = asking(&cluster, "shared", 3).await;
    let worker = cluster.worker_of(&turns[0].0).await;
    let other = cluster.spawn_replica().await;
    cluster.freeze(0);
    for (turn, _) in &turns {
        failed(&cluster.watch(other, turn).await, "replica_lost", "");
    }
    cluster.thaw(0);
    // It learns that it was judged, and has no turn left to wait for.
    let is_gone = async || (!is_alive(worker.pid)).then_some(());
    within(GUARD_WAITS, "its shared worker is gone", is_gone).await;
    let next = cluster.post(0, "shared", "/echo again").await;
    assert_eq!(completed(&cluster.watch(other, &next).await), "again");
}
