//! The figures of the promise: how long after a death its last word reaches a client of another
//! replica. `make figures` runs it on a quiet machine; it fails where a figure is past its bound.
//!
//! Two real replicas with default settings over a throw-away Postgres, whose commits are not flushed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that cannot go on has failed")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    process::{Command, ExitCode},
    time::Duration,
};

use lastword_devkit::postgres::Binaries;
use serde_json::json;
use support::{
    Cluster,
    figures::{Figures, replica_kills, worker_crashes},
};

const CRASHES: usize = 200;
const CRASH_P99_MAX: Duration = Duration::from_millis(250);
const KILLS: usize = 20;
const KILL_MAX: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{cores} cores, {}", postgres_version());
    println!("                  count    p50 ms    p99 ms    max ms");
    let cluster = Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    let crashes = worker_crashes(&cluster, "demo", CRASHES).await;
    println!("worker crashed    {crashes}");
    let kills = replica_kills(&cluster, "demo", KILLS).await;
    println!("replica killed    {kills}");
    // Its end checks the whole database.
    drop(cluster);
    println!("verify            clean");
    judge(&crashes, &kills)
}

fn judge(crashes: &Figures, kills: &Figures) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    let found = [
        ("p99 of a crash", crashes.quantile(0.99), CRASH_P99_MAX),
        ("the longest after a kill", kills.max(), KILL_MAX),
    ];
    for (what, time, bound) in found {
        if time >= bound {
            println!("{what} is {time:?}, not below {bound:?}");
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn postgres_version() -> String {
    let postgres = Binaries::find(None).unwrap().postgres();
    let said = Command::new(postgres).arg("--version").output().unwrap();
    String::from_utf8_lossy(&said.stdout).trim().to_owned()
}
