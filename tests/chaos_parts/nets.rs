//! The proxy against plain sockets: the effect of each weather, to the byte.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    PATIENCE, eventually,
    proxy::{Proxy, Weather},
};

/// More than what sockets and the proxy may hold on their way, all told.
const BUFFERS_MAX: usize = 32 * 1024 * 1024;

/// A server of the test's, a proxy before it, and one connection through both.
struct Line {
    proxy: Proxy,
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

impl Line {
    async fn open() -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
        let (client, server) = connect(&proxy, &listener).await;
        Line { proxy, listener, client, server }
    }

    /// Proves that bytes pass both ways.
    async fn talks(&mut self) {
        hears(&mut self.client, &mut self.server, b"ping").await;
        hears(&mut self.server, &mut self.client, b"pong").await;
    }
}

async fn connect(proxy: &Proxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(proxy.address()).await.unwrap();
    (client, timeout(PATIENCE, listener.accept()).await.unwrap().unwrap().0)
}

async fn hears(from: &mut TcpStream, to: &mut TcpStream, said: &[u8]) {
    from.write_all(said).await.unwrap();
    let mut heard = vec![0; said.len()];
    timeout(PATIENCE, to.read_exact(&mut heard)).await.expect("nothing came").unwrap();
    assert_eq!(heard, said);
}

async fn is_reset(stream: &mut TcpStream) -> bool {
    let mut heard = [0; 64];
    let read = timeout(PATIENCE, stream.read(&mut heard)).await.expect("nothing came, not even an end");
    read.is_err_and(|why| why.kind() == ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn clear_weather_passes_every_byte_both_ways_and_the_end() {
    let Line { proxy: _proxy, client, mut server, .. } = Line::open().await;
    let mut sent = vec![0; 8 * 1024 * 1024];
    StdRng::seed_from_u64(1).fill(sent.as_mut_slice());
    let (mut from_server, mut to_server) = client.into_split();
    let said = sent.clone();
    let client = tokio::spawn(async move {
        // In pieces of every size, and read while it writes, since the server echoes.
        let writing = async {
            for piece in said.chunks(70_001) {
                to_server.write_all(piece).await.unwrap();
            }
        };
        let mut heard = vec![0; said.len()];
        let reading = from_server.read_exact(&mut heard);
        let ((), read) = tokio::join!(writing, reading);
        read.unwrap();
        // Both halves are dropped here: the connection is closed.
        heard
    });
    let (mut read, mut write) = server.split();
    tokio::io::copy(&mut read, &mut write).await.unwrap();
    assert!(client.await.unwrap() == sent, "bytes were changed on their way");
}

#[tokio::test]
async fn a_closed_server_closes_its_client_after_the_last_byte() {
    let Line { proxy: _proxy, mut client, mut server, .. } = Line::open().await;
    server.write_all(b"goodbye").await.unwrap();
    drop(server);
    let mut heard = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, b"goodbye");
}

#[tokio::test]
async fn a_server_that_does_not_read_stops_its_client() {
    let Line { proxy: _proxy, mut client, mut server, .. } = Line::open().await;
    let piece = vec![7; 256 * 1024];
    let mut sent = 0;
    while let Ok(written) = timeout(Duration::from_millis(300), client.write(&piece)).await {
        sent += written.unwrap();
        assert!(sent < BUFFERS_MAX, "{sent} bytes are on their way to a server that reads none");
    }
    let mut heard = vec![0; sent];
    timeout(PATIENCE, server.read_exact(&mut heard)).await.unwrap().unwrap();
}

#[tokio::test]
async fn one_way_cuts_lose_one_way_only_and_reset_when_it_clears() {
    for weather in [Weather::CutToServer, Weather::CutToClient] {
        let mut line = Line::open().await;
        line.talks().await;
        line.proxy.set(weather);
        let (deaf, other) = match weather {
            Weather::CutToServer => (&mut line.server, &mut line.client),
            _ => (&mut line.client, &mut line.server),
        };
        hears(deaf, other, b"heard").await;
        other.write_all(b"lost").await.unwrap();
        eventually("the bytes are lost", async || line.proxy.bytes_lost() == 4).await;
        hears(deaf, other, b"still heard").await;
        line.proxy.set(Weather::Clear);
        assert!(is_reset(deaf).await, "{weather:?}: a stream with a hole went on");
        assert!(is_reset(other).await, "{weather:?}: a stream with a hole went on");
        let (mut client, mut server) = connect(&line.proxy, &line.listener).await;
        hears(&mut client, &mut server, b"new").await;
    }
}

#[tokio::test]
async fn a_black_hole_accepts_and_passes_nothing_not_even_an_end() {
    let mut line = Line::open().await;
    line.talks().await;
    line.proxy.set(Weather::CutBoth);
    line.client.write_all(b"lost").await.unwrap();
    line.server.write_all(b"lost too").await.unwrap();
    eventually("the bytes are lost", async || line.proxy.bytes_lost() == 12).await;
    let mut waiting = TcpStream::connect(line.proxy.address()).await.unwrap();
    waiting.write_all(b"late").await.unwrap();
    eventually("it is accepted", async || line.proxy.accepted() == 2).await;
    drop(line.client);
    let heard = timeout(Duration::from_millis(200), line.server.read(&mut [0; 8])).await;
    assert!(heard.is_err(), "the server heard of an end through a black hole: {heard:?}");
    let arrived = timeout(Duration::from_millis(100), line.listener.accept()).await;
    assert!(arrived.is_err(), "somebody came through a black hole");

    line.proxy.set(Weather::Clear);
    assert!(is_reset(&mut line.server).await);
    let (mut server, _) = timeout(PATIENCE, line.listener.accept()).await.unwrap().unwrap();
    let mut heard = [0; 4];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"late");
}

#[tokio::test]
async fn what_is_held_arrives_late_and_whole() {
    let mut line = Line::open().await;
    line.talks().await;
    line.proxy.set(Weather::Hold);
    line.client.write_all(b"late").await.unwrap();
    let heard = timeout(Duration::from_millis(200), line.server.read(&mut [0; 8])).await;
    assert!(heard.is_err(), "it was not held: {heard:?}");
    line.proxy.set(Weather::Clear);
    hears(&mut line.client, &mut line.server, b"").await;
    let mut heard = [0; 4];
    timeout(PATIENCE, line.server.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"late");
    assert_eq!(line.proxy.bytes_lost(), 0);
    line.talks().await;
}

#[tokio::test]
async fn a_delay_is_kept_and_keeps_the_order() {
    let mut line = Line::open().await;
    line.proxy.set(Weather::Delay { ms: 30, jitter_ms: 40, seed: 7 });
    for _ in 0..3 {
        let started = Instant::now();
        line.talks().await;
        assert!(started.elapsed() >= Duration::from_millis(60), "{:?}", started.elapsed());
    }
    let said: Vec<u8> = (0..200).collect();
    let mut heard = vec![0; said.len()];
    for byte in &said {
        line.client.write_all(&[*byte]).await.unwrap();
    }
    timeout(PATIENCE, line.server.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, said);
}

#[tokio::test]
async fn a_refusal_resets_what_is_there_and_what_comes() {
    let mut line = Line::open().await;
    line.talks().await;
    line.proxy.set(Weather::Refuse);
    assert!(is_reset(&mut line.client).await && is_reset(&mut line.server).await);
    for _ in 0..3 {
        let Ok(mut refused) = TcpStream::connect(line.proxy.address()).await else { continue };
        assert!(is_reset(&mut refused).await);
    }
    line.proxy.set(Weather::Clear);
    (line.client, line.server) = connect(&line.proxy, &line.listener).await;
    line.talks().await;
    line.proxy.reset_all();
    assert!(is_reset(&mut line.client).await && is_reset(&mut line.server).await);
    (line.client, line.server) = connect(&line.proxy, &line.listener).await;
    line.talks().await;
}

#[tokio::test]
async fn a_new_target_is_for_new_connections() {
    let mut line = Line::open().await;
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    line.proxy.retarget(other.local_addr().unwrap());
    line.talks().await;
    let (mut client, mut server) = connect(&line.proxy, &other).await;
    hears(&mut client, &mut server, b"there").await;
}

#[tokio::test]
async fn nothing_is_left_of_a_dropped_proxy() {
    let Line { proxy, mut client, mut server, .. } = Line::open().await;
    let address: SocketAddr = proxy.address();
    drop(proxy);
    for stream in [&mut client, &mut server] {
        let mut heard = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut heard)).await.unwrap();
        assert!(read.is_err() || heard.is_empty());
    }
    assert!(TcpStream::connect(address).await.is_err(), "somebody still listens");
}

#[tokio::test]
async fn a_url_keeps_all_but_its_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
    let at = proxy.address();
    for (url, by_proxy) in [
        ("postgres://postgres@127.0.0.1:5432/postgres", format!("postgres://postgres@{at}/postgres")),
        (
            "postgres://me:p%40ss@db:1/x?sslmode=disable",
            format!("postgres://me:p%40ss@{at}/x?sslmode=disable"),
        ),
        ("postgresql://db", format!("postgresql://{at}")),
    ] {
        assert_eq!(proxy.url_of(url), by_proxy);
    }
}
