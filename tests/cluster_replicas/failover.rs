//! Postgres fails over to an asynchronous standby: lost commits are detected, reported and counted; everything else
//! goes on.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use lastword_devkit::{
    child,
    postgres::{Binaries, Options, Postgres, StopMode},
};
use nix::sys::signal::Signal;
use reqwest::StatusCode;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::block_in_place;

use crate::{
    assert_nobody_was_judged, metric, read_some, ready,
    support::{Cluster, Event, EventStream, Next, OPERATOR, PATIENCE, Plan, eventually, kinds, said},
};

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_a_standby_lacks_are_told_and_nothing_runs_twice() {
    let mut standby = None;
    let cluster = Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    let standby = standby.insert(Standby::of(&cluster).await);

    // Before the standby falls behind: a turn that waits for its user, a turn that speaks, a
    // conversation whose first turn waits and whose second one is queued.
    let kept = cluster.post(0, "demo", "/ask your name?").await;
    cluster.until(0, &kept, "ask", PATIENCE).await;
    let speaking = cluster.post_on(0, "demo", "/slow 2000").await;
    let mut streams = Vec::new();
    for i in 0..2 {
        let mut stream = cluster.stream(i, &speaking.id, -1).await;
        read_some(&mut stream, 2).await;
        streams.push(stream);
    }
    let first = cluster.post(1, "demo", "/ask your colour?").await;
    let ask = cluster.until(1, &first, "ask", PATIENCE).await;
    let second = cluster.post_in(1, &first.conversation, "demo", "/slow 2000").await;
    standby.fall_behind(&cluster).await;
    let tail = Tail::of(&cluster, &speaking.id);
    let mut thread = thread(&cluster, &first.conversation).await;

    // What the standby will never know: more words, a last word and the claim of the next turn, a turn.
    for stream in &mut streams {
        read_some(stream, 5).await;
    }
    let asked = ask.data["ask_id"].as_str().unwrap().to_owned();
    assert_eq!(cluster.answer(0, &first, &asked, json!("blue")).await.0, StatusCode::ACCEPTED);
    let mut ended = cluster.stream(0, &first.id, -1).await;
    assert_eq!(ended.until_terminal(PATIENCE).await.last().unwrap().kind, "completed");
    let mut run = cluster.stream(1, &second.id, -1).await;
    read_some(&mut run, 2).await;
    let vanished = cluster.post(1, "demo", "/slow 2000").await;
    let mut ghost = cluster.stream(0, &vanished.id, -1).await;
    read_some(&mut ghost, 2).await;
    read_until(&mut thread, "event: delta\nid: 2.2\n").await;
    let heard = streams[0].cursor();
    eventually("the command line has heard as much", async || (tail.newest() >= heard).then_some(())).await;
    let promoted_at = standby.take_over(&cluster, StopMode::Immediate).await;

    for stream in &mut streams {
        let (before, after) = told_anew(stream).await;
        assert!(before.iter().all(|event| !event.is_terminal()), "{:?}", kinds(&before));
        assert_eq!(after.last().unwrap().code(), "internal", "{}", after.last().unwrap().data);
        let error = &after.last().unwrap().data["error"];
        assert_eq!((&error["safe_to_retry"], &error["attempt"]), (&json!(false), &json!(1)), "{error}");
        assert_eq!(kinds(&after)[..2], ["accepted", "started"]);
    }
    tail.assert_started_again_and_failed();
    let (_, after) = told_anew(&mut run).await;
    assert_eq!(kinds(&after), ["accepted", "failed"], "it ran again, or looks as if it had not run");
    assert_eq!(after.last().unwrap().code(), "internal");
    let said = read_until(&mut thread, "id: 2.1\n").await;
    let (_, anew) = said.split_once("event: reset\ndata: ").expect("the conversation's reader is not reset");
    assert!(
        anew.contains("event: accepted\nid: 1.0\n") && anew.contains("event: failed\nid: 2.1\n"),
        "{anew}"
    );
    let after = cluster.watch_all(&first).await;
    assert_eq!(after.last().unwrap().code(), "internal", "a last word that was lost became another");
    let took = promoted_at.elapsed();
    eprintln!("the last words came within {took:?} of the promotion");
    assert!(took < Duration::from_secs(12), "{took:?}");
    until_reset(&mut ghost).await;
    assert!(matches!(ghost.next(PATIENCE).await, Next::Cut(_)), "a turn that vanished was told on");

    // A cursor from before proves nothing where the logs part: a page is refused, a stream begins again.
    for turn in [&speaking, &first, &second] {
        let head = cluster.events(0, turn).await.last().unwrap().seq;
        for cursor in [head, head + 1] {
            assert_eq!(refusal(&cluster, &turn.id, cursor).await, (409, "log_rewound".to_owned()));
            let stream = resumed(&cluster, &turn.id, cursor).await;
            assert_eq!(stream.status(), 200);
            let told = stream.text().await.unwrap();
            let (before, anew) =
                told.split_once("event: reset\ndata: ").expect("it is told that it begins again");
            assert!(!before.contains("id: ") && anew.contains("event: accepted\nid: 0\n"), "{told}");
            assert!(anew.contains("event: failed\n"), "{told}");
        }
        let mut rest = cluster.stream(1, &turn.id, head - 1).await;
        assert_eq!(rest.until_terminal(PATIENCE).await.len(), 1);
    }
    assert_eq!(refusal(&cluster, &vanished.id, 0).await, (410, "turn_lost".to_owned()));

    // What was not lost goes on, and so does everything new.
    let ask = cluster.until(1, &kept, "ask", PATIENCE).await;
    let asked = ask.data["ask_id"].as_str().unwrap().to_owned();
    assert_eq!(cluster.answer(1, &kept, &asked, json!("Ada")).await.0, StatusCode::ACCEPTED);
    assert_eq!(cluster.watch_all(&kept).await.last().unwrap().kind, "completed");
    let new = cluster.post_in(0, &first.conversation, "demo", "hello").await;
    assert_eq!(cluster.watch_all(&new).await.last().unwrap().kind, "completed");

    let counted = async |name: &str| metric(&cluster, 0, name).await + metric(&cluster, 1, name).await;
    assert_eq!(counted("lastword_rewound_turns_total").await, 4.0);
    assert!(counted("lastword_rewound_events_total").await >= 5.0 + 2.0 + 3.0);
    let doctor = cluster.command("doctor").output().unwrap();
    let found = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(found.contains("4 turns lost commits"), "{found}");
    assert_nobody_was_judged(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_has_everything_kills_nobody() {
    let mut standby = None;
    let cluster = Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    let standby = standby.insert(Standby::of(&cluster).await);
    let turns =
        [cluster.post_on(0, "demo", "/slow 150").await, cluster.post_on(1, "demo", "/slow 150").await];
    let mut streams = Vec::new();
    for turn in &turns {
        for i in 0..2 {
            let mut stream = cluster.stream(i, &turn.id, -1).await;
            let seen = read_some(&mut stream, 2).await;
            streams.push((stream, seen));
        }
    }
    let queued = cluster.post_in(0, &turns[1].conversation, "demo", "hello").await;
    // A primary that shuts down waits for its standbys.
    standby.take_over(&cluster, StopMode::Fast).await;

    let words: String = (1..=150).map(|n| format!("word{n} ")).collect();
    for (mut stream, mut seen) in streams {
        seen.extend(stream.until_terminal(PATIENCE).await);
        assert_eq!(seen.last().unwrap().kind, "completed", "{}", seen.last().unwrap().data);
        assert_eq!(said(&seen), words);
    }
    assert_eq!(cluster.watch_all(&queued).await.last().unwrap().kind, "completed");
    for i in 0..2 {
        assert_eq!(metric(&cluster, i, "lastword_rewound_turns_total").await, 0.0);
        let log = cluster.log(i);
        assert!(log.contains("on another timeline"), "the failover was not seen:\n{log}");
    }
    assert_nobody_was_judged(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_knows_what_a_dead_holder_cannot_tell() {
    let mut standby = None;
    let cluster = Cluster::with(Plan { turns_max: 2, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let standby = standby.insert(Standby::of(&cluster).await);
    // The reader's replica has no place, so the holder is the other one.
    let mut fillers = Vec::new();
    while fillers.len() < 2 {
        let filler = cluster.post_on(1, "demo", "/ask and wait").await;
        cluster.until(1, &filler, "ask", PATIENCE).await;
        fillers.push(filler);
    }
    let first = cluster.post_on(0, "demo", "/ask your colour?").await;
    let ask = cluster.until(1, &first, "ask", PATIENCE).await;
    let second = cluster.post_in(0, &first.conversation, "demo", "/slow 2000").await;
    let speaking = cluster.post_on(0, "demo", "/slow 2000").await;
    let mut other = cluster.stream(1, &speaking.id, -1).await;
    read_some(&mut other, 2).await;
    standby.fall_behind(&cluster).await;

    let asked = ask.data["ask_id"].as_str().unwrap().to_owned();
    assert_eq!(cluster.answer(0, &first, &asked, json!("blue")).await.0, StatusCode::ACCEPTED);
    let mut run = cluster.stream(1, &second.id, -1).await;
    read_some(&mut run, 2).await;
    read_some(&mut other, 5).await;
    assert_eq!(cluster.worker_of(&second).await.replica, 0);
    for filler in &fillers {
        // Now there are places for a second run.
        cluster.cancel(1, filler).await;
        assert_eq!(cluster.watch(1, filler).await.last().unwrap().kind, "cancelled");
    }
    // Its claim dies with it and with the primary.
    cluster.kill(0);
    standby.take_over(&cluster, StopMode::Immediate).await;

    let (_, after) = told_anew(&mut run).await;
    assert_eq!(kinds(&after), ["accepted", "failed"], "it ran again");
    assert_eq!(after.last().unwrap().code(), "internal");
    let (_, after) = told_anew(&mut other).await;
    assert_eq!(after.last().unwrap().code(), "internal", "{}", after.last().unwrap().data);
    // What nobody else saw ends by the verdict, and the next of its line can run.
    cluster.watch(1, &first).await;
    let new = cluster.post_in(1, &first.conversation, "demo", "hello").await;
    assert_eq!(cluster.watch(1, &new).await.last().unwrap().kind, "completed");
    assert_eq!(metric(&cluster, 1, "lastword_unreconciled_replicas_total").await, 1.0);
}

/// `lastword turns tail`, as somebody runs it.
struct Tail {
    child: Child,
    out: PathBuf,
}

impl Tail {
    fn of(cluster: &Cluster, turn: &str) -> Tail {
        let out = cluster.data_dir().join("tail.json");
        let mut command = cluster.command("turns");
        command.args(["tail", turn, "--output", "json"]).env("LASTWORD_TOKEN", OPERATOR);
        command.args(["--url", &format!("{},{}", cluster.url(0), cluster.url(1))]);
        command.stdin(Stdio::null()).stdout(fs::File::create(&out).unwrap());
        Tail { child: child::spawn(command, Signal::SIGKILL).unwrap(), out }
    }

    fn seqs(&self) -> Vec<i64> {
        let text = fs::read_to_string(&self.out).unwrap();
        let events = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        events.filter_map(|event| event["seq"].as_i64()).collect()
    }

    fn newest(&self) -> i64 {
        self.seqs().last().copied().unwrap_or(-1)
    }

    fn assert_started_again_and_failed(mut self) {
        let status = block_in_place(|| self.child.wait()).unwrap();
        assert_eq!(status.code(), Some(1), "{status}");
        let seqs = self.seqs();
        let again = seqs.iter().rposition(|&seq| seq == 0).unwrap();
        assert!(again > 0, "it was not told from the start again: {seqs:?}");
        for told in [&seqs[..again], &seqs[again..]] {
            assert_eq!(told, (0..).take(told.len()).collect::<Vec<_>>());
        }
    }
}

/// What a stream told before its reset, and the whole log that it told after it.
async fn told_anew(stream: &mut EventStream) -> (Vec<Event>, Vec<Event>) {
    (until_reset(stream).await, stream.until_terminal(PATIENCE).await)
}

async fn until_reset(stream: &mut EventStream) -> Vec<Event> {
    let mut before = Vec::new();
    loop {
        match stream.next(PATIENCE).await {
            Next::Event(event) => before.push(event),
            Next::Reset => return before,
            other => panic!("no reset but {other:?} after {:?}", kinds(&before)),
        }
    }
}

/// A conversation's stream, raw.
async fn thread(cluster: &Cluster, conversation: &str) -> reqwest::Response {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/v1/conversations/{conversation}/events", cluster.url(0));
    http.get(url).bearer_auth(OPERATOR).header("accept", "text/event-stream").send().await.unwrap()
}

/// What a raw stream says until it has said `end`, which comes at the start of a frame or in it. Reads
/// past a `reset` only with what follows it.
async fn read_until(stream: &mut reqwest::Response, end: &str) -> String {
    let mut said = String::new();
    let read = async {
        while !said.rsplit("event: reset\n").next().unwrap().contains(end) {
            said.push_str(&String::from_utf8_lossy(&stream.chunk().await.unwrap().expect("it ended")));
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("it says no more");
    said
}

/// How a reader with this cursor is refused.
async fn refusal(cluster: &Cluster, turn: &str, cursor: i64) -> (u16, String) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/v1/turns/{turn}/events?after={cursor}", cluster.url(1));
    let asked = http.get(url).bearer_auth(OPERATOR).header("accept", "application/json");
    let answer = asked.send().await.unwrap();
    let status = answer.status().as_u16();
    let problem: serde_json::Value = answer.json().await.unwrap();
    (status, problem["code"].as_str().unwrap().to_owned())
}

/// A turn's stream as a browser asks for it again.
async fn resumed(cluster: &Cluster, turn: &str, cursor: i64) -> reqwest::Response {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let asked = http.get(format!("{}/v1/turns/{turn}/events", cluster.url(1))).bearer_auth(OPERATOR);
    let asked = asked.header("accept", "text/event-stream").header("last-event-id", cursor.to_string());
    asked.send().await.unwrap()
}

/// An asynchronous standby of a cluster's Postgres. It outlives the cluster, which is verified over it.
struct Standby {
    server: Option<Postgres>,
    options: Options,
    /// Holds its data.
    _home: tempfile::TempDir,
}

impl Standby {
    /// Copies the primary and follows it. By SQL and `cp`: not every installation of a server has
    /// `pg_basebackup`.
    async fn of(cluster: &Cluster) -> Standby {
        let (port, url, primary) = {
            let primary = cluster.postgres();
            (primary.port(), primary.url(), primary.data().to_owned())
        };
        let home = tempfile::Builder::new().prefix("lastword-standby-").tempdir().unwrap();
        let data = home.path().join("data");
        let mut conn = PgConnection::connect(&url).await.unwrap();
        sqlx::query("select pg_backup_start('standby', true)").execute(&mut conn).await.unwrap();
        block_in_place(|| {
            // Files that come and go meanwhile are none that a copy needs; the log is streamed.
            Command::new("cp").arg("-a").arg(&primary).arg(&data).stderr(Stdio::null()).status().unwrap();
            for file in ["postmaster.pid", "postmaster.opts"] {
                fs::remove_file(data.join(file)).unwrap();
            }
            for entry in fs::read_dir(data.join("pg_wal")).unwrap().flatten() {
                if entry.file_type().unwrap().is_file() {
                    fs::remove_file(entry.path()).unwrap();
                }
            }
        });
        let label: String = sqlx::query_scalar("select labelfile from pg_backup_stop(false)")
            .fetch_one(&mut conn)
            .await
            .unwrap();
        fs::write(data.join("backup_label"), label).unwrap();
        fs::write(data.join("standby.signal"), "").unwrap();
        let password = fs::read_to_string(data.join("lastword.password")).unwrap();
        let source = format!("host=127.0.0.1 port={port} user=postgres password={password}");
        fs::write(data.join("postgresql.auto.conf"), format!("primary_conninfo = '{source}'\n")).unwrap();
        // To the user that the server runs as.
        let whose = format!("--reference={}", primary.display());
        let owned = Command::new("chown").arg("-R").arg(whose).arg(home.path()).status().unwrap();
        assert!(owned.success());
        let options = Options { durable: false, ..Options::new(data, Binaries::find(None).unwrap()) };
        let server = block_in_place(|| Postgres::start(options.clone())).unwrap();
        Standby { server: Some(server), options, _home: home }
    }

    /// Takes in all that is committed by now, and nothing after it.
    async fn fall_behind(&self, cluster: &Cluster) {
        let url = cluster.postgres().url();
        let mut primary = PgConnection::connect(&url).await.unwrap();
        let mut here = PgConnection::connect(&self.server.as_ref().unwrap().url()).await.unwrap();
        // Of what is inserted, not of what is written: commits of a throw-away server do not wait.
        let lsn: String = sqlx::query_scalar("select pg_current_wal_insert_lsn()::text")
            .fetch_one(&mut primary)
            .await
            .unwrap();
        let until = async |conn: &mut PgConnection, what: String| {
            let conn = tokio::sync::Mutex::new(conn);
            eventually(&what, async || {
                let mut conn = conn.lock().await;
                let ask = sqlx::query_scalar::<_, bool>(AssertSqlSafe(what.clone()));
                ask.fetch_one(&mut **conn).await.unwrap().then_some(())
            })
            .await;
        };
        until(&mut here, format!("select pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn")).await;
        sqlx::query("alter system set primary_conninfo = ''").execute(&mut here).await.unwrap();
        sqlx::query("select pg_reload_conf()").execute(&mut here).await.unwrap();
        until(&mut here, "select not exists (select from pg_stat_wal_receiver)".to_owned()).await;
    }

    /// Stops the primary and takes its place, at its address; when it became one.
    async fn take_over(&mut self, cluster: &Cluster, mode: StopMode) -> Instant {
        let (port, url) = {
            let primary = cluster.postgres();
            (primary.port(), primary.url())
        };
        block_in_place(|| {
            cluster.postgres().stop(mode).unwrap();
            self.server.as_mut().unwrap().stop(StopMode::Fast).unwrap();
            let options = Options { port: Some(port), ..self.options.clone() };
            self.server = Some(Postgres::start(options).unwrap());
        });
        let mut conn = PgConnection::connect(&url).await.unwrap();
        let promoted: bool =
            sqlx::query_scalar("select pg_promote(true, 60)").fetch_one(&mut conn).await.unwrap();
        assert!(promoted, "the standby was not promoted");
        let promoted_at = Instant::now();
        for i in cluster.living() {
            ready(cluster, i).await;
        }
        promoted_at
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.stop(StopMode::Immediate);
        }
    }
}
