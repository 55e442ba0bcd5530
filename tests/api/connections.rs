//! Connections that wait for their next request.

use std::time::Duration;

use lastword::units::Span;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::world::{Replica, World};

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
