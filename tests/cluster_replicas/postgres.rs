//! Postgres that restarts, crashes, stalls or terminates all sessions: no false death, no lost last word.

use std::time::Duration;

use futures_util::future::join_all;
use lastword_devkit::postgres::StopMode;
use nix::sys::signal::Signal;
use reqwest::StatusCode;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::{task::block_in_place, time::Instant};

use crate::{
    assert_nobody_was_judged, read_some, ready,
    support::{Cluster, OPERATOR, PATIENCE, Plan, children_of, eventually, is_alive, kinds, said, signal},
};

/// Longer than any replica waits for a peer's beat.
const STALL: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_dies_of_a_postgres_that_restarts() {
    let cluster = Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    // A crash keeps what was committed: throw-away servers do not promise that by themselves. It
    // counts for new sessions, and the first restart makes all of them new.
    let url = cluster.postgres().url();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    sqlx::query("alter role postgres set synchronous_commit = on").execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    for way in [Some(StopMode::Fast), Some(StopMode::Immediate), None] {
        turns_and_streams_live_through(&cluster, async |cluster| {
            block_in_place(|| {
                let mut postgres = cluster.postgres();
                if way.is_none() {
                    signal(i32::try_from(postgres.pid().unwrap()).unwrap(), Signal::SIGKILL);
                }
                postgres.restart(way.unwrap_or(StopMode::Immediate)).unwrap();
            });
        })
        .await;
    }
    the_doorbell_is_heard_at_once(&cluster).await;
    a_turn_that_cannot_be_stored_is_refused(&cluster).await;
    assert_nobody_was_judged(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_dies_of_a_postgres_that_stalls() {
    let cluster = Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    turns_and_streams_live_through(&cluster, async |cluster| {
        let server = i32::try_from(cluster.postgres().pid().unwrap()).unwrap();
        let everybody = || [vec![server], children_of(server)].concat();
        for pid in everybody() {
            signal(pid, Signal::SIGSTOP);
        }
        // The stall itself; nothing is waited for.
        tokio::time::sleep(STALL).await;
        for pid in everybody().into_iter().filter(|&pid| is_alive(pid)) {
            signal(pid, Signal::SIGCONT);
        }
    })
    .await;
    assert_nobody_was_judged(&cluster).await;
}

/// A history is known or its turn fails: no agent begins as if nothing had been said.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_postgres_is_away_for_fails_its_turn_and_is_worth_a_retry() {
    let cluster = Cluster::with(Plan { replicas: 1, ..Plan::default() }).await;
    let script = "
import json, os, sys, time
if os.path.exists('served'):
    open('begun', 'w').close()
    while not os.path.exists('go'): time.sleep(0.01)
print(json.dumps({'type': 'ready'}), flush=True)
turn = json.loads(sys.stdin.readline())
open('served', 'w').close()
print(json.dumps({'type': 'complete', 'text': str(len(turn.get('history', [])))}), flush=True)
";
    let spec =
        json!({"runtime": "process", "command": ["python3", "-c", script], "timeouts": {"startup": "8s"}});
    cluster.put_agent("once", spec).await;
    let first = cluster.post(0, "once", "one").await;
    cluster.watch_all(&first).await;
    // Its worker leaves after the answer; a turn that met this worker would fail with its exit.
    let worker = cluster.worker_of(&first).await.id;
    cluster.ended(&worker).await;
    let second = cluster.post_in(0, &first.conversation, "once", "two").await;
    let workspace = cluster.workspace(&first.conversation);
    eventually("its worker begins", async || workspace.join("begun").exists().then_some(())).await;
    let server = i32::try_from(cluster.postgres().pid().unwrap()).unwrap();
    let everybody = || [vec![server], children_of(server)].concat();
    for pid in everybody() {
        signal(pid, Signal::SIGSTOP);
    }
    std::fs::write(workspace.join("go"), "").unwrap();
    // The stall itself: longer than the startup clock and a statement's deadline.
    tokio::time::sleep(STALL).await;
    for pid in everybody().into_iter().filter(|&pid| is_alive(pid)) {
        signal(pid, Signal::SIGCONT);
    }
    let events = cluster.watch_all(&second).await;
    let last = events.last().unwrap();
    assert_eq!((last.kind.as_str(), last.code()), ("failed", "history_unavailable"), "{}", last.data);
    assert_eq!(last.data["error"]["retryable"], json!(true), "{}", last.data);
    let third = cluster.post_in(0, &first.conversation, "once", "three").await;
    assert_eq!(cluster.watch_all(&third).await.last().unwrap().text(), "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_dies_of_backends_that_are_ended_all_the_time() {
    let cluster = Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    let mut turns = Vec::new();
    for i in 0..8 {
        turns.push(cluster.post(i % 2, "demo", "/slow 100").await);
    }
    let url = cluster.postgres().url();
    let storm = async {
        let mut conn = PgConnection::connect(&url).await.unwrap();
        let (until, mut ended) = (Instant::now() + Duration::from_secs(10), 0);
        while Instant::now() < until {
            ended += sqlx::query_scalar::<_, i64>(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity
                  where application_name like 'lastword%'",
            )
            .fetch_one(&mut conn)
            .await
            .unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        ended
    };
    let late = async {
        // Turns that come in meanwhile.
        let mut turns = Vec::new();
        while turns.len() < 6 {
            let body = json!({"agent": "demo", "input": "hello"});
            let i = turns.len() % 2;
            let (status, answer) = cluster.ask(i, reqwest::Method::POST, "/v1/turns", Some(body)).await;
            match status {
                StatusCode::ACCEPTED => turns.push(answer["id"].as_str().unwrap().to_owned()),
                status => assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}"),
            }
        }
        turns
    };
    let (ended, late) = tokio::join!(storm, late);
    assert!(ended > 20, "only {ended} backends were ended");
    let words: String = (1..=100).map(|n| format!("word{n} ")).collect();
    for turn in &turns {
        let events = cluster.watch_all(turn).await;
        assert_eq!(events.last().unwrap().kind, "completed", "{}", events.last().unwrap().data);
        assert_eq!(said(&events), words);
    }
    for turn in late {
        let events = cluster.stream(0, &turn, -1).await.until_terminal(PATIENCE).await;
        assert_eq!(events.last().unwrap().kind, "completed", "{}", events.last().unwrap().data);
    }
    assert_nobody_was_judged(&cluster).await;
}

/// Runs a turn on each replica, watched on both, through an event in the life of Postgres.
async fn turns_and_streams_live_through(cluster: &Cluster, happen: impl AsyncFn(&Cluster)) {
    let turns =
        [cluster.post_on(0, "demo", "/slow 100").await, cluster.post_on(1, "demo", "/slow 100").await];
    let mut streams = Vec::new();
    for turn in &turns {
        for i in 0..2 {
            let mut stream = cluster.stream(i, &turn.id, -1).await;
            let seen = read_some(&mut stream, 2).await;
            streams.push((stream, seen));
        }
    }
    happen(cluster).await;
    let words: String = (1..=100).map(|n| format!("word{n} ")).collect();
    let ends = join_all(streams.into_iter().map(async |(mut stream, mut seen)| {
        seen.extend(stream.until_terminal(PATIENCE).await);
        seen
    }))
    .await;
    for seen in ends {
        let last = seen.last().unwrap();
        assert_eq!(last.kind, "completed", "{}", last.data);
        assert_eq!(said(&seen), words);
    }
    for turn in &turns {
        cluster.watch_all(turn).await;
    }
}

/// A listener that is well again hears itself: its probe is not lost with the notify sender's old connection.
async fn the_doorbell_is_heard_at_once(cluster: &Cluster) {
    for i in 0..2 {
        let heard = async || {
            let doorbell = &cluster.get(i, "/readyz").await["doorbell"];
            (doorbell["on"] == false || doorbell["round_trip_ms"].is_number()).then_some(())
        };
        eventually("the doorbell is heard", heard).await;
        let log = cluster.log(i);
        assert!(
            !log.contains("the listener's connection was lost why=listen: Postgres is away: pool timed out"),
            "{log}"
        );
    }
}

async fn a_turn_that_cannot_be_stored_is_refused(cluster: &Cluster) {
    let count = async || cluster.get(0, "/v1/turns?limit=200").await["items"].as_array().unwrap().len();
    let before = count().await;
    block_in_place(|| cluster.postgres().stop(StopMode::Fast)).unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = async |i: usize| {
        let url = format!("{}/v1/turns", cluster.url(i));
        let body = json!({"agent": "demo", "input": "is anybody there?"});
        http.post(url).bearer_auth(OPERATOR).json(&body).timeout(PATIENCE).send().await.unwrap()
    };
    for i in 0..2 {
        let answer = post(i).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers().contains_key("retry-after"), "{:?}", answer.headers());
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
    }
    block_in_place(|| cluster.postgres().restart(StopMode::Fast)).unwrap();
    ready(cluster, 0).await;
    assert_eq!(post(0).await.status(), StatusCode::ACCEPTED);
    assert_eq!(count().await, before + 1, "a refused turn was stored");
}

/// The commit of a claim as `running`, whose answer never came: its holder does not know the turn, and its
/// worker never receives it.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_was_lost_is_given_back() {
    let cluster = Cluster::with(Plan { replicas: 1, turns_max: 1, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let first = cluster.post(0, "demo", "/slow 30").await;
    cluster.until(0, &first, "started", PATIENCE).await;
    let second = cluster.post(0, "demo", "/echo received once").await;
    let url = cluster.postgres().url();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let claimed = sqlx::query(
        "with c as (
           update inflight
              set phase = 'running', epoch = epoch + 1, replica = r.id, last_seq = last_seq + 1,
                  worker = gen_random_uuid(), clock = 'progress', claimed_at = now(), started_at = now(),
                  cap_at = now() + interval '1 hour', deadline = now() + interval '5 minutes'
             from replicas r where phase = 'queued'
           returning turn_id, epoch, last_seq, worker),
         t as (
           update turns set status = 'running', attempt = c.epoch, started_at = now() from c where id = c.turn_id)
         insert into turn_events (turn_id, seq, kind, attempt, data)
         select turn_id, last_seq, 'started', epoch, json_build_object('worker_id', worker)::text from c",
    );
    assert_eq!(claimed.execute(&mut conn).await.unwrap().rows_affected(), 1, "only the second was queued");
    conn.close().await.unwrap();
    let seen = cluster.watch_all(&second).await;
    assert_eq!(kinds(&seen), ["accepted", "started", "started", "delta", "completed"], "{}", cluster.log(0));
    assert_eq!(said(&seen), "received once");
    cluster.verify();
}
