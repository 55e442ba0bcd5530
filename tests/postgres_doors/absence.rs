//! A replica's log during a Postgres outage has few lines.

use lastword_devkit::postgres::{Binaries, Options, Postgres, StopMode};
use reqwest::{Client, Method, StatusCode};
use serde_json::json;
use tokio::task::block_in_place;

use crate::{
    server::lastword,
    support::{Cluster, PATIENCE, eventually, replica::Replica},
};

fn warnings(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains(" WARN ") || line.contains("ERROR ")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absence_is_one_line_and_one_at_its_end_over_all_parts_of_a_replica() {
    let cluster = Cluster::start(1).await;
    cluster.demo_agent("demo", json!({})).await;
    let turn = cluster.post(0, "demo", "/slow 100").await;
    cluster.stream(0, &turn.id, -1).await.until("delta", PATIENCE).await;
    let before = cluster.log(0);
    block_in_place(|| cluster.postgres().stop(StopMode::Fast)).unwrap();
    // Callers come all the time, and a turn writes; each post waits for as long as one waits for Postgres.
    for _ in 0..4 {
        let body = json!({"agent": "demo", "input": "/echo hi"});
        let (status, answer) = cluster.ask(0, Method::POST, "/v1/turns", Some(body)).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
    }
    let away = cluster.log(0)[before.len()..].to_owned();
    assert!(matches!(warnings(&away)[..], [one] if one.contains("Postgres is away")), "{away}");
    block_in_place(|| cluster.postgres().restart(StopMode::Immediate)).unwrap();
    eventually("it is back", async || cluster.log(0).contains("Postgres is back after ").then_some(())).await;
    let all = cluster.log(0)[before.len()..].to_owned();
    // Deadlines that lapsed meanwhile are no part of it.
    let told = warnings(&all).into_iter().filter(|line| !line.contains("deadlines were too early"));
    assert_eq!(told.count(), 1, "{all}");
    assert_eq!(all.matches("Postgres is back after ").count(), 1, "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_not_there_yet_is_waited_for_in_one_line() {
    let home = tempfile::tempdir().unwrap();
    let port = Postgres::for_test().unwrap().port();
    // Nobody listens there now, and `migrate` says so.
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let done = lastword(&["migrate"], &url, home.path()).output().unwrap();
    assert_eq!(done.status.code(), Some(1));

    let data = home.path().join("postgres");
    let options = || Options {
        durable: false,
        port: Some(port),
        ..Options::new(data.clone(), Binaries::find(None).unwrap())
    };
    let url = block_in_place(|| Postgres::start(options()).unwrap().url());
    let replica = Replica::start(lastword(&["serve"], &url, home.path()), home.path().join("log"));
    let http = Client::builder().no_proxy().build().unwrap();
    let ready = async || Some(http.get(replica.url() + "/readyz").send().await.ok()?.status());
    eventually("it serves", async || ready().await.filter(|status| *status == 503)).await;
    eventually("a line", async || replica.log().contains("Postgres is away").then_some(())).await;
    let _postgres = block_in_place(|| Postgres::start(options()).unwrap());
    eventually("it is ready", async || ready().await.filter(|status| *status == 200)).await;
    eventually("it is back", async || replica.log().contains("Postgres is back after ").then_some(())).await;
    let log = replica.log();
    let told = warnings(&log).iter().filter(|line| line.contains("Postgres")).count();
    assert_eq!(told, 1, "{log}");
}
