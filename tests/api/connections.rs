//! Connections: idle ones, slow readers, and requests that are refused before their body was read.

use std::time::Duration;

use lastword::{event::Kind, units::Span};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

use crate::world::{OPERATOR, Replica, Run, World, until};

const PATIENCE: Duration = Duration::from_secs(30);

async fn connect(replica: &Replica) -> TcpStream {
    TcpStream::connect(replica.url.strip_prefix("http://").unwrap()).await.unwrap()
}

/// Asks whether the process lives; what came back.
async fn ask(wire: &mut TcpStream) -> String {
    wire.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut heard = String::new();
    let mut chunk = [0; 1024];
    while !heard.ends_with("ok\n") {
        let read = timeout(PATIENCE, wire.read(&mut chunk)).await.expect("an answer").unwrap();
        assert!(read > 0, "the connection was closed: {heard}");
        heard += std::str::from_utf8(&chunk[..read]).unwrap();
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_the_patience_for_a_head() {
    let world = World::start().await;
    let mut wire = connect(&world.replica).await;
    assert!(ask(&mut wire).await.starts_with("HTTP/1.1 200"));
    // What is tested: a balancer's pause between two requests, longer than a head may take.
    sleep(Duration::from_secs(32)).await;
    assert!(ask(&mut wire).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_request_ends_after_the_time_that_is_set() {
    let world = World::with(|config| config.connection_idle_max = Span::seconds(1)).await;
    let mut wire = connect(&world.replica).await;
    assert!(ask(&mut wire).await.starts_with("HTTP/1.1 200"));
    let end = timeout(PATIENCE, wire.read(&mut [0; 16])).await.expect("it is closed");
    assert_eq!(end.unwrap(), 0, "without a reset");
}

/// What a client sees of an answer that sends all of its body first, as most do.
async fn sent_whole(replica: &Replica, head: &str, bytes: usize) -> String {
    let mut wire = connect(replica).await;
    let head =
        format!("{head}host: localhost\r\ncontent-type: application/json\r\ncontent-length: {bytes}\r\n\r\n");
    let mut heard = String::new();
    let talk = async {
        wire.write_all(head.as_bytes()).await?;
        for _ in 0..bytes / PIECE.len() {
            wire.write_all(&PIECE).await?;
        }
        wire.read_to_string(&mut heard).await
    };
    match timeout(PATIENCE, talk).await.expect("an answer, and the end") {
        Ok(_) => heard.lines().next().unwrap_or_default().to_owned(),
        Err(why) => why.to_string(),
    }
}

static PIECE: [u8; 64 * 1024] = [b' '; 64 * 1024];
const MIB: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_before_its_body_was_read_is_told_to_a_client_that_sends_on() {
    let world = World::with(|config| {
        config.insecure = false;
        config.client_tokens = vec!["client-token-of-a-test".to_owned()];
        config.body_max = lastword::units::Size::mib(1);
    })
    .await;
    let client = "authorization: Bearer client-token-of-a-test\r\n";
    let operator = format!("authorization: Bearer {OPERATOR}\r\n");
    for (head, status) in [
        (format!("POST /v1/turns HTTP/1.1\r\n{client}"), "HTTP/1.1 413 Payload Too Large"),
        ("POST /v1/turns HTTP/1.1\r\n".to_owned(), "HTTP/1.1 401 Unauthorized"),
        (format!("PUT /v1/agents/x HTTP/1.1\r\n{client}"), "HTTP/1.1 403 Forbidden"),
        (format!("PUT /v1/agents/x HTTP/1.1\r\n{operator}"), "HTTP/1.1 413 Payload Too Large"),
        ("POST /v1/worker/register HTTP/1.1\r\n".to_owned(), "HTTP/1.1 401 Unauthorized"),
        (format!("POST /v1/nothing HTTP/1.1\r\n{client}"), "HTTP/1.1 404 Not Found"),
        (format!("PATCH /v1/turns HTTP/1.1\r\n{client}"), "HTTP/1.1 405 Method Not Allowed"),
        (format!("GET /v1/turns HTTP/1.1\r\n{client}"), "HTTP/1.1 200 OK"),
        (format!("POST /v1/turns HTTP/1.1\r\nno colon\r\n{client}"), "HTTP/1.1 400 Bad Request"),
    ] {
        let tries =
            (0..10).map(|n| sent_whole(&world.replica, &head, if n < 5 { 2 * MIB } else { 20 * MIB }));
        let answers = futures_util::future::join_all(tries).await;
        assert!(answers.iter().all(|answer| answer == status), "{head}: {answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nobody_reads_is_taken_for_so_many_bytes_and_so_long() {
    let world = World::start().await;
    let announced = "POST /v1/turns HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000000000\r\n\r\n";
    // Who never ends is cut off.
    let mut wire = connect(&world.replica).await;
    wire.write_all(announced.as_bytes()).await.unwrap();
    let mut sent = 0;
    while sent < 1024 * MIB && timeout(PATIENCE, wire.write_all(&PIECE)).await.expect("it is taken").is_ok() {
        sent += PIECE.len();
    }
    assert!((64 * MIB..256 * MIB).contains(&sent), "{sent} bytes");
    // Who falls silent is waited for a little.
    let mut wire = connect(&world.replica).await;
    wire.write_all(announced.as_bytes()).await.unwrap();
    wire.write_all(&PIECE).await.unwrap();
    let mut heard = Vec::new();
    // What else comes after the answer is the end, a reset where something was unread.
    let _ = timeout(PATIENCE, wire.read_to_end(&mut heard)).await.expect("it ends");
    assert!(heard.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&heard));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_body_that_nobody_reads_ends_no_connection() {
    let world = World::start().await;
    let mut wire = connect(&world.replica).await;
    let refused = "POST /v1/nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nhello";
    wire.write_all(refused.as_bytes()).await.unwrap();
    let heard = ask(&mut wire).await;
    assert!(heard.starts_with("HTTP/1.1 404") && heard.contains("HTTP/1.1 200 OK"), "{heard}");
}

/// A client that asks for the stream of a new turn and reads nothing more, and the turn, of which more waits than the
/// system holds for such a client.
async fn paused(world: &World) -> (TcpStream, Run<'_>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = world.url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut wire = socket.connect(address).await.unwrap();
    let body = json!({"agent": "demo", "input": "x", "on_disconnect": "cancel", "stream": true}).to_string();
    let head = "POST /v1/turns HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n";
    wire.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
    until("the turn waits", async || {
        let list: Value = world.get("/v1/turns").await.json().await.unwrap();
        list["items"].as_array().unwrap().len() == 1
    })
    .await;
    let mut run = world.run_next().await;
    for _ in 0..40 {
        run.say(Kind::Delta, json!({"text": "x".repeat(100_000)}).to_string()).await;
    }
    (wire, run)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_pauses_and_is_alive_keeps_its_stream_and_its_turn() {
    let world = World::start().await;
    let (mut wire, run) = paused(&world).await;
    // What is tested: longer than bytes may stay unacknowledged.
    sleep(Duration::from_secs(36)).await;
    run.complete("done").await;
    let mut heard = Vec::new();
    let read = timeout(PATIENCE, wire.read_to_end(&mut heard)).await.expect("the rest");
    let heard = String::from_utf8_lossy(&heard);
    assert!(read.is_ok() && heard.contains("event: completed"), "{read:?} after {} bytes", heard.len());
    assert_eq!(heard.matches("event: delta").count(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_for_as_long_as_is_set_is_gone() {
    let world = World::with(|config| config.stream_stall_max = Span::seconds(2)).await;
    let (wire, run) = paused(&world).await;
    let turn = run.turn;
    until("its connection is reset", async || wire.take_error().unwrap().is_some()).await;
    until("its turn is told to end", async || !world.store.commands(&[turn]).await.unwrap().is_empty()).await;
}
