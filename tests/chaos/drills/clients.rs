//! Bad clients: slow readers, half-open connections, and thousands of readers of a replica that dies.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Row, quantile, spread};
use crate::{
    checker::Allowances,
    client::{Accepted, Ask},
    history::Fact,
    load::Mix,
    plan::Plan,
    scene::{Scene, Stage},
    support::{self, OPERATOR},
};

/// What a slow reader's kernel takes in before it must read.
const RECEIVE_BYTES: usize = 4096;
/// What a replica may grow by for one reader that does not read: two pages of events, and buffers.
const BYTES_A_READER: u64 = 256 * 1024;
/// How many turns the others' figure is made of: with fewer than a hundred the p99 is the slowest of all.
const PROBES: usize = 200;

/// Readers of one byte a second, and half-open ones, on a log of megabytes.
pub async fn slow(stage: Stage) -> Row {
    let scene = Scene::open(&stage, Plan::slots(2), Mix::FAINT).await;
    let large = scene.post(&Ask::demo("/flood 20000")).await;
    let mut rng = scene.rng();
    let mut hear = scene.load.observe_and_tell(&large, 0, &mut rng);
    while hear.recv().await.is_some() {}
    let before = others(&scene).await;
    let memory_before = memory(scene.fleet.pid(0));
    scene.fleet.broke("slow_readers", Some(0), None, Vec::new());
    let stop = CancellationToken::new();
    let address: SocketAddr = scene.fleet.url(0).strip_prefix("http://").unwrap().parse().unwrap();
    let readers: Vec<_> = (0..stage.count)
        .map(|n| tokio::spawn(read_slowly(address, large.clone(), n % 2 == 0, stop.clone())))
        .collect();
    sleep(Duration::from_secs(10)).await;
    let during = others(&scene).await;
    let grown = memory(scene.fleet.pid(0)).saturating_sub(memory_before);
    stop.cancel();
    let ends = join_all(readers).await;
    let opened = ends.into_iter().filter(|end| matches!(end, Ok(true))).count();
    let findings = scene.close(Allowances::NONE).await;
    let (p99_before, p99_during) = (quantile(&before, 0.99), quantile(&during, 0.99));
    Row {
        count: opened,
        figure: format!(
            "memory + {} KiB a reader; others' turns before {}; beside them {}",
            grown / 1024 / opened.max(1) as u64,
            spread(&before),
            spread(&during)
        ),
        is_met: opened >= stage.count
            && grown <= BYTES_A_READER * opened as u64
            && p99_during <= p99_before.mul_f64(1.2),
        is_run: true,
        findings,
    }
}

/// How long plain turns take, from the post to the observer's last word, in microseconds.
async fn others(scene: &Scene) -> Vec<u64> {
    let mut times = Vec::new();
    let mut ask = Ask::demo("hi");
    for _ in 0..PROBES {
        let began = Instant::now();
        let turn = scene.post(&ask).await;
        ask.conversation = Some(turn.conversation.clone());
        let mut hear = scene.load.observe_and_tell(&turn, 0, &mut scene.rng());
        while hear.recv().await.is_some() {}
        let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        scene.history.note(Fact::Measure { name: "turn".to_owned(), us });
        times.push(us);
    }
    times
}

/// Opens the log and reads a byte a second, or none at all; whether it got as far as a head.
async fn read_slowly(address: SocketAddr, turn: Accepted, reads: bool, stop: CancellationToken) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(RECEIVE_BYTES).unwrap();
    socket.set_nonblocking(true).unwrap();
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(why) if why.raw_os_error() == Some(nix::libc::EINPROGRESS) => {}
        Err(_) => return false,
    }
    let Ok(mut wire) = TcpStream::from_std(socket.into()) else { return false };
    let head = format!(
        "GET /v1/turns/{}/events?after=-1 HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\
         Authorization: Bearer {OPERATOR}\r\n\r\n",
        turn.turn
    );
    if wire.writable().await.is_err() || wire.write_all(head.as_bytes()).await.is_err() {
        return false;
    }
    let mut first = [0; 12];
    let opened = timeout(Duration::from_secs(20), wire.read_exact(&mut first)).await;
    let is_open = matches!(opened, Ok(Ok(_))) && first.ends_with(b" 200");
    let mut byte = [0; 1];
    while !stop.is_cancelled() {
        let _ = stop.run_until_cancelled(sleep(Duration::from_secs(1))).await;
        if reads && !matches!(timeout(Duration::from_secs(1), wire.read(&mut byte)).await, Ok(Ok(1)) | Err(_))
        {
            break;
        }
    }
    is_open
}

/// Resident memory of a process, in bytes.
fn memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

/// A transaction is held open elsewhere while turns go on.
pub async fn long_transaction(stage: Stage) -> Row {
    let scene = Scene::open(&stage, Plan::slots(2), Mix::FAINT).await;
    let spec =
        json!({"runtime": "process", "command": [support::program(), "demo-agent"], "scope": "shared"});
    scene.fleet.put_agent("companion", spec).await;
    let window = Duration::from_secs((stage.count as u64 / 5).clamp(5, 60));
    let before = throughput(&scene, window).await;
    let id = scene.fleet.broke("long_transaction", None, None, Vec::new());
    let mut admin = scene.fleet.admin().await;
    sqlx::raw_sql(
        "begin isolation level repeatable read; select pg_current_xact_id(); select count(*) from turns",
    )
    .execute(&mut admin)
    .await
    .unwrap();
    let held = Instant::now();
    let mut during = 0.0;
    while held.elapsed() < Duration::from_secs(stage.count as u64) {
        // The last window counts: by then what vacuum could not remove has piled up.
        during = throughput(&scene, window).await;
    }
    sqlx::raw_sql("rollback").execute(&mut admin).await.unwrap();
    scene.fleet.healed(id, "long_transaction");
    let after = throughput(&scene, window).await;
    let findings = scene.close(Allowances::NONE).await;
    // Beside both, so that a machine that got slower meanwhile is not taken for it.
    let loss = 1.0 - during / ((before + after) / 2.0);
    Row {
        count: stage.count,
        figure: format!(
            "{before:.0} turns/s before, {during:.0} at its end, {after:.0} after: a loss of {:.0} %",
            loss * 100.0
        ),
        is_met: loss <= 0.10,
        is_run: true,
        findings,
    }
}

/// Turns a second of a few people who chat at once: conversations come to their end, and others begin.
async fn throughput(scene: &Scene, window: Duration) -> f64 {
    const PEOPLE: usize = 6;
    const TURNS_EACH: u32 = 20;
    let began = Instant::now();
    let counts = join_all((0..PEOPLE).map(|_| async {
        let fresh = Ask { agent: "companion".to_owned(), ..Ask::demo("hi") };
        let (mut ask, mut count) = (fresh.clone(), 0_u32);
        while began.elapsed() < window {
            let turn = scene.post(&ask).await;
            ask.conversation = Some(turn.conversation.clone());
            let mut rng = scene.rng();
            let slot = scene.fleet.draw(&mut rng);
            let mut hear = scene.load.observe_and_tell(&turn, slot, &mut rng);
            while hear.recv().await.is_some() {}
            count += 1;
            if count % TURNS_EACH == 0 {
                ask = fresh.clone();
            }
        }
        count
    }))
    .await;
    f64::from(counts.iter().sum::<u32>()) / began.elapsed().as_secs_f64()
}
