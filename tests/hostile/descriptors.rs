//! Callers that open idle connections, or as many connections as possible.

use std::{net::SocketAddr, process::Command};

use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use uuid::Uuid;

use crate::support::{Cluster, OPERATOR, PATIENCE, Plan, Turn, eventually, signal};

/// What a replica is permitted, where there is to be little.
const FEW: u64 = 256;
/// More than that.
const IDLE: usize = 300;

/// Connections to replica `i` that say nothing.
async fn idle_connections(cluster: &Cluster, i: usize) -> Vec<TcpStream> {
    let address = cluster.url(i).replace("http://", "");
    let mut idle = Vec::with_capacity(IDLE);
    for _ in 0..IDLE {
        idle.push(TcpStream::connect(&address).await.unwrap());
    }
    idle
}

/// A request from this address of ours to replica `i`: its connection, and the answer's head.
async fn knock(cluster: &Cluster, i: usize, from: &str, path: &str) -> (TcpStream, String) {
    let to: SocketAddr = cluster.url(i).replace("http://", "").parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {OPERATOR}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let reading = async {
        while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("an answer");
    (stream, String::from_utf8(answer).unwrap())
}

async fn metrics(cluster: &Cluster, i: usize) -> String {
    reqwest::get(format!("{}/metrics", cluster.url(i))).await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_take_no_descriptors_from_those_who_work() {
    let cluster = Cluster::with(Plan { replicas: 1, open_files: Some((FEW, FEW)), ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let idle = idle_connections(&cluster, 0).await;
    let mut turns = Vec::new();
    for _ in 0..12 {
        let body = json!({"agent": "demo", "input": "hello"});
        // Until some have been idle for long enough to make room a newcomer is told to come again.
        let turn = eventually("a turn is accepted", async || {
            let (status, answer) = cluster.ask(0, Method::POST, "/v1/turns", Some(body.clone())).await;
            assert!([StatusCode::ACCEPTED, StatusCode::SERVICE_UNAVAILABLE].contains(&status), "{answer}");
            (status == StatusCode::ACCEPTED).then(|| answer["id"].as_str().unwrap().to_owned())
        });
        turns.push(turn.await);
    }
    for turn in &turns {
        let events = cluster.stream(0, turn, -1).await.until_terminal(PATIENCE).await;
        assert_eq!(events.last().unwrap().kind, "completed", "{:?}", events.last());
    }
    let page = metrics(&cluster, 0).await;
    assert!(page.contains(r#"lastword_connections_cut_total{reason="idle"}"#), "{page}");
    for bound in ["streams", "connections", "turns", "queue", "descriptors", "database_pool"] {
        assert!(page.contains(&format!("lastword_bound_used{{bound=\"{bound}\"}}")), "{bound}: {page}");
        assert!(page.contains(&format!("lastword_bound_max{{bound=\"{bound}\"}}")), "{bound}: {page}");
    }
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_ceiling_a_client_is_told_and_none_is_cut_off() {
    let bounds = [("LASTWORD_CONNECTIONS_MAX", "12"), ("LASTWORD_CONNECTIONS_PER_ADDRESS_MAX", "8")];
    let env = bounds.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let cluster = Cluster::with(Plan { replicas: 1, env, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let turn = cluster.post(0, "demo", "/slow 3000").await;
    let events = format!("/v1/turns/{}/events", turn.id);
    let watch = async |from| {
        let (stream, head) = knock(&cluster, 0, from, &events).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        stream
    };
    let mut here = Vec::new();
    for _ in 0..8 {
        here.push(watch("127.0.0.1").await);
    }
    let told = async |from, path| knock(&cluster, 0, from, path).await.1.to_ascii_lowercase();
    let refused = |head: &str| head.starts_with("http/1.1 503") && head.contains("retry-after: 1");
    let head = told("127.0.0.1", "/v1/agents").await;
    assert!(refused(&head) && head.contains("too_many_connections"), "of one address: {head}");
    let mut there = Vec::new();
    for _ in 0..4 {
        there.push(watch("127.0.0.2").await);
    }
    let head = told("127.0.0.2", "/v1/agents").await;
    assert!(refused(&head), "in all: {head}");
    // Else whoever looks after it would kill what it has.
    let head = told("127.0.0.2", "/livez").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    drop(there.pop());
    eventually("there is a place again", async || {
        let head = told("127.0.0.2", "/v1/agents").await;
        assert!(refused(&head) || head.starts_with("http/1.1 200"), "{head}");
        head.starts_with("http/1.1 200").then_some(())
    })
    .await;
    for stream in here.iter().chain(&there) {
        let mut unread = [0; 4096];
        while let Ok(read) = stream.try_read(&mut unread) {
            assert_ne!(read, 0, "a stream was cut off");
        }
        assert!(stream.take_error().unwrap().is_none(), "a stream was reset");
    }
    cluster.cancel(0, &turn).await;
}

/// The soft limit of a process.
fn limit_of(pid: i32) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

/// Lets replica `i` open no more than so many descriptors from now on, whatever it has.
fn squeeze(cluster: &Cluster, i: usize, most: u64) {
    let limit = format!("--nofile={most}:");
    let done = Command::new("prlimit").args(["--pid", &cluster.pid(i).to_string(), &limit]).status().unwrap();
    assert!(done.success());
}

/// A connection that is used again and again, as there may be no other.
struct Kept(TcpStream);

impl Kept {
    async fn to(cluster: &Cluster, i: usize) -> Kept {
        Kept(TcpStream::connect(cluster.url(i).replace("http://", "")).await.unwrap())
    }

    async fn ask(&mut self, method: &str, path: &str, body: &str) -> (u16, String) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {OPERATOR}\r\n\
             content-type: application/json\r\naccept: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let reading = async {
            loop {
                let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    if body.len() >= length.unwrap().parse::<usize>().unwrap() {
                        return;
                    }
                }
                assert!(self.0.read_buf(&mut answer).await.unwrap() > 0, "{text}");
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("an answer");
        let text = String::from_utf8(answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    async fn post(&mut self, agent: &str) -> Turn {
        let body = json!({"agent": agent, "input": "hello"}).to_string();
        let (status, answer) = self.ask("POST", "/v1/turns", &body).await;
        assert_eq!(status, 202, "{answer}");
        Turn::new(serde_json::from_str(&answer).unwrap())
    }
}

/// Waits until replica `i` says what it lacks, or that it lacks nothing and is ready.
async fn until_it_says(kept: &mut Kept, lacks: Option<&str>) {
    eventually("it says what it lacks", async || {
        let (status, said) = kept.ask("GET", "/readyz", "").await;
        let said: Value = serde_json::from_str(&said).unwrap();
        (said["lacks"].as_str() == lacks && status == if lacks.is_some() { 503 } else { 200 }).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_descriptors_leaves_turns_to_others_and_says_so() {
    let cluster = Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    cluster.demo_agent("shared", json!({"scope": "shared", "max_concurrent_turns": 1})).await;
    // Its ways to Postgres are there.
    cluster.conversation_on(1, "demo").await;
    let mut kept = Kept::to(&cluster, 1).await;
    let before = limit_of(cluster.pid(1));
    for agent in ["demo", "shared"] {
        squeeze(&cluster, 1, 16);
        // It may not know yet, and claim what it cannot start.
        for _ in 0..3 {
            let turn = kept.post(agent).await;
            let events = cluster.watch(0, &turn).await;
            assert_eq!(events.last().unwrap().kind, "completed", "{:?}", events.last());
            assert_eq!(cluster.worker_of(&turn).await.replica, 0);
        }
        until_it_says(&mut kept, Some("descriptors")).await;
        let page = kept.ask("GET", "/metrics", "").await.1;
        assert!(page.contains("lastword_claims_paused 1"), "{page}");
        assert_eq!(kept.ask("GET", "/livez", "").await.0, 200);
        squeeze(&cluster, 1, before);
        until_it_says(&mut kept, None).await;
    }
    cluster.conversation_on(1, "demo").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_nobody_could_start_twice_waits_for_its_third_start() {
    let cluster = Cluster::start(1).await;
    cluster.demo_agent("demo", json!({})).await;
    let first = cluster.post(0, "demo", "/slow 600").await;
    let worker = cluster.worker_of(&first).await;
    let second = cluster.post_in(0, &first.conversation, "demo", "hello").await;
    let url = cluster.postgres().url();
    let mut database = PgConnection::connect(&url).await.unwrap();
    let id: Uuid = second.id.trim_start_matches("turn_").parse().unwrap();
    let done = sqlx::query("update inflight set epoch = 2 where turn_id = $1 and phase = 'queued'").bind(id);
    assert_eq!(done.execute(&mut database).await.unwrap().rows_affected(), 1);
    let mut kept = Kept::to(&cluster, 0).await;
    assert_eq!(kept.ask("GET", "/livez", "").await.0, 200);
    let before = limit_of(cluster.pid(0));
    squeeze(&cluster, 0, 16);
    signal(worker.pid, Signal::SIGKILL);
    // Where it has not counted yet it has the turn, and nobody else may have it any more.
    until_it_says(&mut kept, Some("descriptors")).await;
    squeeze(&cluster, 0, before);
    let events = cluster.watch(0, &second).await;
    assert_eq!(events.last().unwrap().kind, "completed", "{:?}", events.last());
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_wait_for_nothing_make_room_for_those_who_have_work() {
    let cluster = Cluster::with(Plan { replicas: 1, open_files: Some((100, 200)), ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let first = cluster.post(0, "demo", "/slow 3").await;
    let worker = cluster.worker_of(&first).await;
    assert_eq!((limit_of(cluster.pid(0)), limit_of(worker.pid)), (200, 100), "raised, and given back");
    let mut turns = Vec::new();
    for _ in 0..40 {
        turns.push(cluster.post(0, "demo", "/slow 3").await);
    }
    for turn in &turns {
        let events = cluster.watch(0, turn).await;
        assert_eq!(events.last().unwrap().kind, "completed", "{:?}", events.last());
    }
    let (_, workers) = cluster.ask(0, Method::GET, "/v1/workers", None).await;
    assert!(workers.to_string().contains("idle"), "all were ended: {workers}");
}
