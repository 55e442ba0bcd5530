//! A primary with a standby, against real servers: what a failover keeps, and what it loses.

use std::fs;

use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::sync::watch;

use crate::{
    eventually,
    proxy::Proxy,
    standby::{Mode, Pair},
};

/// How many fail-overs in a row.
const ROUNDS: u32 = 2;
/// How many commits a client is told of before each.
const COMMITS: usize = 40;

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn insert(conn: &mut PgConnection, mark: i32) -> Result<(), sqlx::Error> {
    sqlx::query("insert into marks (mark) values ($1)").bind(mark).execute(conn).await.map(|_| ())
}

async fn marks(url: &str) -> Vec<i32> {
    sqlx::query_scalar("select mark from marks order by mark")
        .fetch_all(&mut connect(url).await)
        .await
        .unwrap()
}

/// Commits by way of `url` until told to stop, whatever breaks; tells what it was told of.
async fn commit_on(url: String, told: watch::Sender<Vec<i32>>, mut stop: watch::Receiver<bool>) {
    let mut mark = 0;
    while !*stop.borrow_and_update() {
        let Ok(mut conn) = PgConnection::connect(&url).await else { continue };
        while !*stop.borrow_and_update() {
            mark += 1;
            if insert(&mut conn, mark).await.is_err() {
                break;
            }
            told.send_modify(|told| told.push(mark));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synchronous_fail_over_loses_nothing_that_a_client_was_told_of() {
    let mut pair = Pair::start(Mode::Synchronous).await.unwrap();
    connect(&pair.primary_url()).await.execute("create table marks (mark int primary key)").await.unwrap();
    a_commit_waits_for_its_standby(&pair).await;
    let proxy = Proxy::start(pair.primary_addr()).unwrap();
    let (told, heard) = watch::channel(Vec::new());
    let (stop, stopped) = watch::channel(false);
    let by_proxy = proxy.url_of(&pair.primary_url());
    let client = tokio::spawn(commit_on(by_proxy.clone(), told, stopped));
    for round in 0..ROUNDS {
        if round > 0 {
            pair.restore_standby().await.unwrap();
        }
        let enough = heard.borrow().len() + COMMITS;
        eventually("commits are told of", async || heard.borrow().len() >= enough).await;
        let address = pair.fail_over().await.unwrap();
        let before = heard.borrow().clone();
        proxy.retarget(address);
        let kept = marks(&by_proxy).await;
        let lost: Vec<&i32> = before.iter().filter(|mark| kept.binary_search(mark).is_err()).collect();
        assert!(lost.is_empty(), "fail-over {round} lost {lost:?} of {}", before.len());
    }
    let enough = heard.borrow().len() + COMMITS;
    eventually("commits go on without a standby", async || heard.borrow().len() >= enough).await;
    stop.send_replace(true);
    client.await.unwrap();
}

async fn a_commit_waits_for_its_standby(pair: &Pair) {
    pair.hold_back().await.unwrap();
    let mut held = connect(&pair.primary_url()).await;
    let mut waits = tokio::spawn(async move { insert(&mut held, -1).await });
    let mut other = connect(&pair.primary_url()).await;
    let waiting = "select count(*) = 1 from pg_stat_activity where wait_event = 'SyncRep'";
    eventually("it waits", async || sqlx::query_scalar(waiting).fetch_one(&mut other).await.unwrap()).await;
    assert!(futures_util::poll!(&mut waits).is_pending(), "nobody waited");
    pair.let_through();
    waits.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_asynchronous_fail_over_loses_what_was_held_back_and_nothing_else() {
    let mut pair = Pair::start(Mode::Asynchronous).await.unwrap();
    let mut primary = connect(&pair.primary_url()).await;
    primary.execute("create table marks (mark int primary key)").await.unwrap();
    for mark in 1..=10 {
        insert(&mut primary, mark).await.unwrap();
    }
    pair.hold_back().await.unwrap();
    for mark in 11..=20 {
        insert(&mut primary, mark).await.unwrap();
    }
    let standby = pair.standby_url().unwrap();
    // What it has received it shows a moment later.
    eventually("the standby shows what it has", async || marks(&standby).await.len() >= 10).await;
    assert_eq!(marks(&standby).await, Vec::from_iter(1..=10));

    pair.let_through();
    eventually("it catches up", async || marks(&standby).await.len() == 20).await;

    pair.hold_back().await.unwrap();
    for mark in 21..=30 {
        insert(&mut primary, mark).await.unwrap();
    }
    assert_eq!(marks(&pair.primary_url()).await, Vec::from_iter(1..=30));
    pair.fail_over().await.unwrap();
    assert_eq!(marks(&pair.primary_url()).await, Vec::from_iter(1..=20));
    insert(&mut connect(&pair.primary_url()).await, 99).await.unwrap();
}

#[tokio::test]
async fn nothing_is_left_of_a_pair() {
    let mut pair = Pair::start(Mode::Asynchronous).await.unwrap();
    let home = pair.home().to_owned();
    assert!(home.is_dir());
    let mut pids = processes_under(&home);
    assert!(pids.len() > 10, "{pids:?}");
    pair.fail_over().await.unwrap();
    pair.restore_standby().await.unwrap();
    pids.extend(processes_under(&home));
    let segments = segments_of(&pids);
    assert!(!segments.is_empty());
    drop(pair);
    assert!(!home.exists(), "{} was left behind", home.display());
    assert_eq!(processes_under(&home), Vec::<String>::new());
    assert_eq!(segments_of(&pids), Vec::<String>::new());
}

/// Every process that works in `home`, by its id.
fn processes_under(home: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(home)))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Segments of System V memory that one of these processes made.
fn segments_of(pids: &[String]) -> Vec<String> {
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap();
    // Columns: key, id, permissions, size, the maker's process id.
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| pids.iter().any(|pid| pid == row[4])).map(|row| row[1].to_owned()).collect()
}
