//! HTTP/2 without TLS, beside HTTP/1.1.
#![allow(clippy::disallowed_methods, reason = "clients of a test have no supervisor")]

use std::time::Duration;

use lastword::{event::Kind, units::Span};
use reqwest::{Client, Version};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};

use super::world::{Frames, Replica, World, kinds, problem, until};

const PATIENCE: Duration = Duration::from_secs(30);

/// A client that speaks nothing else, over one connection.
fn client() -> Client {
    Client::builder().no_proxy().http2_prior_knowledge().timeout(PATIENCE).build().unwrap()
}

async fn post(http: &Client, replica: &Replica, fields: Value) -> reqwest::Response {
    let mut body = json!({"agent": "demo", "input": "hello"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let answer = http.post(format!("{}/v1/turns", replica.url)).json(&body).send().await.unwrap();
    assert_eq!(answer.version(), Version::HTTP_2);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_on_one_connection_are_told_and_end_cleanly() {
    let world = World::start().await;
    let http = client();
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(Frames::of(post(&http, &world, json!({"stream": true})).await));
    }
    for frames in &mut streams {
        frames.until("event: accepted").await;
    }
    for _ in 0..20 {
        let mut run = world.run_next().await;
        // More than is sent ahead of what is read.
        run.say(Kind::Delta, json!({"text": "x".repeat(300_000)}).to_string()).await;
        run.complete("done").await;
    }
    for frames in streams {
        assert_eq!(kinds(&frames.end().await.unwrap()), ["accepted", "started", "delta", "completed"]);
    }
    // A page, a refusal with a body that is too large, and the other protocol.
    let list = http.get(format!("{}/v1/turns", world.url)).send().await.unwrap();
    assert_eq!((list.version(), list.status().as_u16()), (Version::HTTP_2, 200));
    let large = http.post(format!("{}/v1/turns", world.url)).body(vec![b' '; 3 << 20]).send().await.unwrap();
    assert_eq!(problem(large).await["code"], "body_too_large");
    assert_eq!(world.get("/v1/turns").await.version(), Version::HTTP_11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_its_client_ends_cancels_its_turn_and_no_other() {
    let world = World::start().await;
    let http = client();
    let asked = json!({"stream": true, "on_disconnect": "cancel"});
    let mut leaving = Frames::of(post(&http, &world, asked.clone()).await);
    leaving.until("event: accepted").await;
    let left = world.run_next().await;
    let mut staying = Frames::of(post(&http, &world, asked.clone()).await);
    staying.until("event: accepted").await;
    let mut stays = world.run_next().await;
    drop(leaving);
    until("the turn is cancelled", async || !world.store.commands(&[left.turn]).await.unwrap().is_empty())
        .await;
    stays.say(Kind::Delta, r#"{"text":"still here"}"#).await;
    staying.until("still here").await;
    assert!(world.store.commands(&[stays.turn]).await.unwrap().is_empty());
    // The end of the connection is the end of all on it.
    drop((staying, http));
    until("the other too", async || !world.store.commands(&[stays.turn]).await.unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_leaves_lets_streams_go_and_ends_the_connection() {
    let world = World::start().await;
    let other = world.another(|_| {}).await;
    let http = client();
    let mut frames = Frames::of(post(&http, &other, json!({"stream": true})).await);
    frames.until("event: accepted").await;
    other.supervisor.soft().cancel();
    let (text, _) = frames.end().await.expect_err("no clean end");
    assert_eq!(kinds(&text), ["accepted", "reconnect"]);
    assert_eq!(http.get(format!("{}/livez", other.url)).send().await.unwrap().status(), 200);
    // What is under way is answered; then nothing is left.
    let tcp = TcpStream::connect(other.url.strip_prefix("http://").unwrap()).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(tcp).await.unwrap();
    let ended = tokio::spawn(connection);
    let turn: Value = post(&http, &other, json!({})).await.json().await.unwrap();
    let path = format!("{}/v1/turns/{}/events?wait=20&after=0", other.url, turn["id"].as_str().unwrap());
    sender = sender.ready().await.unwrap();
    let request = axum::http::Request::get(path).body(()).unwrap();
    let (answer, _) = sender.send_request(request, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    other.close();
    timeout(PATIENCE, ended).await.expect("it is told to go").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_ends_and_one_with_a_stream_does_not() {
    let world = World::with(|config| config.connection_idle_max = Span::seconds(1)).await;
    let http = client();
    let mut frames = Frames::of(post(&http, &world, json!({"stream": true})).await);
    frames.until("event: accepted").await;
    // Others come and go on its connection meanwhile.
    for _ in 0..4 {
        assert_eq!(http.get(format!("{}/v1/turns", world.url)).send().await.unwrap().status(), 200);
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    world.run_next().await.complete("done").await;
    assert_eq!(kinds(&frames.end().await.unwrap()), ["accepted", "started", "completed"]);
    let tcp = TcpStream::connect(world.url.strip_prefix("http://").unwrap()).await.unwrap();
    let (_sender, connection) = h2::client::handshake(tcp).await.unwrap();
    let _ = timeout(PATIENCE, connection).await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_nobody_reads_ends_alone() {
    let world = World::with(|config| config.stream_stall_max = Span::seconds(2)).await;
    let tcp = TcpStream::connect(world.url.strip_prefix("http://").unwrap()).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(tcp).await.unwrap();
    let connection = tokio::spawn(connection);
    let body = json!({"agent": "demo", "input": "x", "on_disconnect": "cancel", "stream": true}).to_string();
    let request = axum::http::Request::post(format!("{}/v1/turns", world.url));
    let request = request.header("content-type", "application/json").body(()).unwrap();
    let (answer, mut sent) = sender.send_request(request, false).unwrap();
    sent.send_data(body.into(), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut run = world.run_next().await;
    for _ in 0..4 {
        run.say(Kind::Delta, json!({"text": "x".repeat(100_000)}).to_string()).await;
    }
    // No room is ever given back, so nothing more may be sent.
    let turn = run.turn;
    until("its turn is told to end", async || !world.store.commands(&[turn]).await.unwrap().is_empty()).await;
    sender = sender.ready().await.unwrap();
    let request = axum::http::Request::get(format!("{}/livez", world.url)).body(()).unwrap();
    assert_eq!(sender.send_request(request, true).unwrap().0.await.unwrap().status(), 200, "others go on");
    drop((answer, sender));
    connection.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_headers_and_streams_are_bounded_as_they_are_elsewhere() {
    let world = World::with(|config| {
        config.insecure = false;
        config.operator_tokens = Vec::new();
    })
    .await;
    let http = client();
    let url = format!("{}/v1/turns", world.url);
    assert_eq!(http.get(&url).send().await.unwrap().status(), 200);
    let tcp = TcpStream::connect(world.url.strip_prefix("http://").unwrap()).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(tcp).await.unwrap();
    let connection = tokio::spawn(connection);
    // A name that was rebound to this machine is none of its own.
    for (host, status) in [("localhost", 200), ("rebound.example", 403)] {
        sender = sender.ready().await.unwrap();
        let request = axum::http::Request::get(format!("http://{host}/v1/turns")).body(()).unwrap();
        assert_eq!(sender.send_request(request, true).unwrap().0.await.unwrap().status(), status, "{host}");
    }
    assert!(sender.current_max_send_streams() <= 100, "{}", sender.current_max_send_streams());
    sender = sender.ready().await.unwrap();
    let request = axum::http::Request::get(&url).header("x-long", "x".repeat(64 * 1024)).body(()).unwrap();
    let refused = sender.send_request(request, true).unwrap().0.await;
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.status() == 431));
    drop(sender);
    connection.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_resets_keeps_nobody_waiting() {
    let world = World::start().await;
    let flood = async || {
        let tcp = TcpStream::connect(world.url.strip_prefix("http://").unwrap()).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(tcp).await.unwrap();
        let connection = tokio::spawn(connection);
        for _ in 0..5000 {
            sender = match sender.ready().await {
                Ok(sender) => sender,
                Err(_) => return true,
            };
            let request = axum::http::Request::get(format!("{}/v1/turns", world.url)).body(()).unwrap();
            let Ok((answer, mut stream)) = sender.send_request(request, true) else { return true };
            stream.send_reset(h2::Reason::CANCEL);
            drop(answer);
        }
        connection.abort();
        false
    };
    let honest = async {
        for _ in 0..20 {
            assert_eq!(timeout(PATIENCE, world.get("/v1/turns")).await.expect("an answer").status(), 200);
        }
    };
    tokio::join!(flood(), flood(), flood(), honest);
    until("what it began is over", async || world.supervisor.board().get("exchanges").is_none()).await;
}
