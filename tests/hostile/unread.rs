//! A client token requests pages and reads none: the replica's memory and other tokens are not affected.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{Instant, interval, timeout},
};

use crate::{
    shares::{FLOODER, NEIGHBOUR, Scene, is_refused},
    support::{OPERATOR, PATIENCE, eventually},
};

/// What the system takes for a reader at most, about.
const WINDOW: u32 = 4 * 1024;

/// A completed turn whose answer has so many bytes.
async fn long_turn(scene: &Scene, bytes: usize) -> String {
    let body = json!({"agent": "demo", "input": format!("/echo {}", "x".repeat(bytes))});
    let ask = scene.ask(OPERATOR, Method::POST, "/v1/turns").header("prefer", "wait=60").json(&body);
    let turn: Value = ask.send().await.unwrap().json().await.unwrap();
    assert_eq!(turn["status"], "completed", "{}", turn["error"]);
    turn["id"].as_str().unwrap().to_owned()
}

/// Asks for a page, and reads of the answer what stands before its body.
async fn ask_and_read_the_status(scene: &Scene, path: &str) -> (u16, TcpStream) {
    let url: reqwest::Url = scene.cluster.url(0).parse().unwrap();
    let address = url.socket_addrs(|| None).unwrap()[0];
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(WINDOW).unwrap();
    let mut wire = socket.connect(address).await.unwrap();
    let ask = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\nAuthorization: Bearer {FLOODER}\r\n\r\n",
        address
    );
    wire.write_all(ask.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    timeout(PATIENCE, wire.read_exact(&mut status)).await.unwrap().unwrap();
    let status = std::str::from_utf8(&status).unwrap().strip_prefix("HTTP/1.1 ").unwrap();
    (status.parse().unwrap(), wire)
}

/// Resident memory of a process, in bytes.
fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_nobody_reads_do_not_fill_the_memory() {
    let scene = Scene::with(&[("LASTWORD_UNREAD_MAX", "8MiB")]).await;
    let turn = long_turn(&scene, 900_000).await;
    let path = format!("/v1/turns/{turn}/events?limit=1000");
    // What one page costs for the first time is not what an attack costs.
    scene.ask(NEIGHBOUR, Method::GET, &path).header("accept", "application/json").send().await.unwrap();
    let before = resident(scene.cluster.pid(0));
    let asked = futures_util::future::join_all((0..60).map(|_| ask_and_read_the_status(&scene, &path))).await;
    let grown = resident(scene.cluster.pid(0)).saturating_sub(before);
    let served = asked.iter().filter(|(status, _)| *status == 200).count();
    assert!((1..=7).contains(&served), "{served} pages of 900 kB and more are within a share of 6.4 MiB");
    assert!(asked.iter().all(|(status, _)| [200, 429].contains(status)));
    assert!(grown < 64 * 1024 * 1024, "{grown} bytes for {served} pages that nobody reads");
    let again = scene.ask(FLOODER, Method::GET, &path).header("accept", "application/json").send().await;
    is_refused(again.unwrap(), "unread_bytes").await;
    // What is small is answered all the same, and others read what they like.
    let small = scene.ask(FLOODER, Method::GET, "/v1/conversations").send().await.unwrap();
    assert_eq!(small.status(), StatusCode::OK);
    for token in [NEIGHBOUR, OPERATOR] {
        let page = scene.ask(token, Method::GET, &path).header("accept", "application/json").send().await;
        let page: Value = page.unwrap().json().await.unwrap();
        assert_eq!(page["closed"], true, "{token}");
    }
    scene.is_served(NEIGHBOUR).await;
    drop(asked);
    eventually("the pages are gone with their connections", async || {
        (scene.used("unread_bytes").await == 0).then_some(())
    })
    .await;
    let again = scene.ask(FLOODER, Method::GET, &path).header("accept", "application/json").send().await;
    assert_eq!(again.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_read_too_slowly_ends_with_its_connection() {
    let scene = Scene::with(&[]).await;
    let turn = long_turn(&scene, 300_000).await;
    let (status, mut wire) = ask_and_read_the_status(&scene, &format!("/v1/turns/{turn}")).await;
    assert_eq!(status, 200);
    // Ten seconds, and one for each 32 KiB: at this pace it would take half a minute more. The system itself gives up
    // on such a reader too, after thirty seconds in which nothing was acknowledged.
    let asked_at = Instant::now();
    let mut pace = interval(Duration::from_millis(250));
    let (mut piece, mut read) = ([0; 1536], 0);
    let end = loop {
        pace.tick().await;
        match wire.read(&mut piece).await {
            Ok(0) => panic!("ended well after {read} bytes"),
            Ok(count) => read += count,
            Err(why) => break why,
        }
    };
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(read < 300_000, "{read}");
    assert!(asked_at.elapsed() < Duration::from_secs(28), "{:?}", asked_at.elapsed());
    assert_eq!(scene.used("unread_bytes").await, 0);
}
