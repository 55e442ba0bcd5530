//! Replicas that are killed, frozen, drained and cut off while remote workers run: the turns continue at another
//! replica.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::{
    hand::{Hand, complete, delta},
    pair, remote_agent,
    support::{
        Cluster, Host, HostPlan, PATIENCE, Plan, Turn, children_of, eventually, is_alive, said, signal,
    },
    workers::{cancelled, completed, goes_on},
    workers_in,
};

fn words(count: usize) -> String {
    (1..=count).map(|n| format!("word{n} ")).collect()
}

/// A turn on a host that calls replica 0 first, and has said something.
async fn under_way(cluster: &Cluster, text: &str) -> (Host, Turn) {
    remote_agent(cluster, "far", json!({})).await;
    let host = Host::start(cluster, HostPlan::demo("far", &[0, 1]));
    let turn = cluster.post(1, "far", text).await;
    cluster.until(1, &turn, "delta", PATIENCE).await;
    (host, turn)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_takes_no_remote_turn_with_it() {
    let cluster = pair().await;
    let (host, turn) = under_way(&cluster, "/slow 100").await;
    let process = host.workers();
    cluster.kill(0);
    let events = cluster.watch_all(&turn).await;
    assert_eq!(completed(&events), words(100));
    assert_eq!(events.iter().filter(|event| event.kind == "started").count(), 1);
    goes_on(&cluster, 1, &turn).await;
    assert_eq!(host.workers(), process, "the process has noticed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_replica_takes_no_remote_turn_with_it_and_changes_nothing_later() {
    let cluster = pair().await;
    let (_host, turn) = under_way(&cluster, "/slow 200").await;
    cluster.freeze(0);
    let events = cluster.watch(1, &turn).await;
    assert_eq!(completed(&events), words(200));
    cluster.thaw(0);
    assert_eq!(cluster.watch_all(&turn).await, events);
    goes_on(&cluster, 1, &turn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_replica_hands_its_remote_turns_on() {
    let drain = Duration::from_secs(60);
    let cluster = Cluster::with(Plan { env: workers_in(), drain, ..Plan::default() }).await;
    let (_host, turn) = under_way(&cluster, "/slow 200").await;
    let began = Instant::now();
    cluster.terminate(0);
    assert!(cluster.wait_exit(0).await.success());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "it waited for a turn that went elsewhere: {took:?}");
    assert_eq!(completed(&cluster.watch_all(&turn).await), words(200));
    goes_on(&cluster, 1, &turn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_restarts_costs_no_remote_turn() {
    let cluster = pair().await;
    let (_host, turn) = under_way(&cluster, "/slow 120").await;
    let mut stream = cluster.stream(1, &turn.id, -1).await;
    cluster.postgres().restart(lastword_devkit::postgres::StopMode::Fast).unwrap();
    stream.until_terminal(PATIENCE).await;
    assert_eq!(completed(&cluster.watch_all(&turn).await), words(120));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_and_a_cancel_find_a_turn_that_moved() {
    let cluster = pair().await;
    remote_agent(&cluster, "far", json!({})).await;
    let _host = Host::start(&cluster, HostPlan::demo("far", &[0, 1]));
    let asking = cluster.post(0, "far", "/ask well?").await;
    let ask = cluster.until(0, &asking, "ask", PATIENCE).await;
    cluster.kill(0);
    let ask_id = ask.data["ask_id"].as_str().unwrap();
    assert!(cluster.answer(1, &asking, ask_id, json!("fine")).await.0.is_success());
    assert_eq!(completed(&cluster.watch_all(&asking).await), "You answered: fine");
}

/// More silent turns than can be moved one at a time before they are closed.
const MANY: usize = 500;
/// Requests of a test that are under way at once.
const ASKED_AT_ONCE: usize = 32;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_takes_none_of_a_hosts_many_turns_with_it() {
    let plan = Plan { env: workers_in(), turns_max: MANY as u32, ..Plan::default() };
    let cluster = &Cluster::with(plan).await;
    remote_agent(cluster, "many", json!({"scope": "shared"})).await;
    let concurrency = MANY.to_string();
    let flags = ["--concurrency", &*concurrency];
    let _host = Host::start(cluster, HostPlan { flags: &flags, ..HostPlan::demo("many", &[0, 1]) });
    let asking = stream::iter(0..MANY).map(|n| async move {
        let turn = cluster.post(1, "many", &format!("/ask {n}?")).await;
        let ask = cluster.until(1, &turn, "ask", PATIENCE).await;
        (turn, ask.data["ask_id"].as_str().unwrap().to_owned())
    });
    let asked: Vec<(Turn, String)> = asking.buffered(ASKED_AT_ONCE).collect().await;
    cluster.kill(0);
    let killed = Instant::now();
    let url = cluster.postgres().url();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let moved = eventually("nothing is held by whoever is gone", async || {
        let by = "select count(*), count(*) filter (where r.url = $1)
                    from inflight i left join replicas r on r.id = i.replica";
        let by = sqlx::query_as::<_, (i64, i64)>(by).bind(cluster.url(1));
        let (all, here) = by.fetch_one(&mut conn).await.unwrap();
        (all == here).then_some(here)
    })
    .await;
    eprintln!("{moved} turns of {MANY} were moved within {:?} of the kill", killed.elapsed());
    assert_eq!(moved, MANY as i64, "the others have ended");
    let answering = stream::iter(asked.iter().enumerate()).map(|(n, (turn, ask_id))| async move {
        assert!(cluster.answer(1, turn, ask_id, json!(format!("{n}!"))).await.0.is_success());
        assert_eq!(completed(&cluster.watch(1, turn).await), format!("You answered: {n}!"));
    });
    answering.buffer_unordered(ASKED_AT_ONCE).collect::<()>().await;
}

/// Several progress clocks of the agent that is tried.
const STALL: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_cannot_be_written_costs_its_neighbours_on_a_host_no_time() {
    let plan = Plan { replicas: 1, env: workers_in(), ..Plan::default() };
    let cluster = Cluster::with(plan).await;
    let limits = json!({"progress": "1s"});
    let spec = json!({"scope": "shared", "timeouts": limits, "limits": {"output_bytes": "1GiB"}});
    remote_agent(&cluster, "shared", spec).await;
    let host =
        Host::start(&cluster, HostPlan { flags: &["--concurrency", "4"], ..HostPlan::demo("shared", &[0]) });
    let flood = cluster.post(0, "shared", "/flood 100000000").await;
    let steady = cluster.post(0, "shared", "/slow 60").await;
    for turn in [&flood, &steady] {
        cluster.until(0, turn, "delta", PATIENCE).await;
    }
    assert_eq!(host.workers().len(), 1, "they do not share a worker");
    // What the one says fills its outbox and the pipe, and what the other says waits behind it.
    let server = i32::try_from(cluster.postgres().pid().unwrap()).unwrap();
    let everybody = || [vec![server], children_of(server)].concat();
    everybody().into_iter().for_each(|pid| signal(pid, Signal::SIGSTOP));
    // The stall itself; nothing is waited for.
    tokio::time::sleep(STALL).await;
    everybody().into_iter().filter(|&pid| is_alive(pid)).for_each(|pid| signal(pid, Signal::SIGCONT));
    assert!(cluster.cancel(0, &flood).await.is_success(), "it was ended");
    cancelled(&cluster.watch(0, &flood).await, "client");
    assert_eq!(completed(&cluster.watch_all(&steady).await).split_whitespace().count(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_nobody_calls_for_ends_with_its_replica() {
    let cluster = pair().await;
    remote_agent(&cluster, "lonely", json!({})).await;
    let hand = Hand::register(&cluster, 0, "lonely").await;
    let turn = cluster.post(1, "lonely", "x").await;
    let offer = hand.take(0).await;
    assert!(hand.say(0, &offer, 1, &[delta("a")]).await.0.is_success());
    cluster.kill(0);
    let events = cluster.watch_all(&turn).await;
    assert_eq!(events.last().unwrap().code(), "replica_lost");
    assert_eq!(said(&events), "a");
    assert_eq!(hand.say(1, &offer, 2, &[complete()]).await.0, 410);
    eventually("its worker has ended", async || {
        let worker = cluster.worker(&hand.id).await;
        (worker["state"] == "ended").then_some(())
    })
    .await;
}
