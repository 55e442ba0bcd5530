//! A password that is rotated while a replica runs, as a mounted Secret presents it.

use std::{fs, path::Path, process::Command};

use chrono::NaiveDateTime;
use reqwest::{Client, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    server::{Server, lastword},
    support::{OPERATOR, PATIENCE, eventually, program, replica::Replica},
};

struct World {
    server: Server,
    home: tempfile::TempDir,
    replica: Replica,
    http: Client,
}

impl World {
    async fn start() -> World {
        let (server, home) = (Server::start().await, tempfile::tempdir().unwrap());
        write(home.path(), &server.url("one", ""));
        let replica = Replica::start(serve(home.path()), home.path().join("log"));
        let http = Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let world = World { server, home, replica, http };
        world.until_ready().await;
        let spec = json!({"runtime": "process", "command": [program(), "demo-agent"]});
        let put = world
            .http
            .put(world.at("/v1/agents/demo"))
            .bearer_auth(OPERATOR)
            .json(&spec)
            .send()
            .await
            .unwrap();
        assert!(put.status().is_success(), "{put:?}");
        world
    }

    fn at(&self, path: &str) -> String {
        self.replica.url() + path
    }

    async fn until_ready(&self) {
        eventually("ready", async || (self.readiness().await?.0 == StatusCode::OK).then_some(())).await;
    }

    async fn readiness(&self) -> Option<(StatusCode, Value)> {
        let answer = self.http.get(self.at("/readyz")).send().await.ok()?;
        Some((answer.status(), answer.json().await.ok()?))
    }

    async fn post(&self, input: &str, more: Value, wait: u32) -> Response {
        let mut body = json!({"agent": "demo", "input": input});
        crate::support::lay_over(&mut body, more);
        let request = self.http.post(self.at("/v1/turns")).bearer_auth(OPERATOR).json(&body);
        request.header("Prefer", format!("wait={wait}")).send().await.unwrap()
    }

    /// The password is another one from now on, and nobody is left inside.
    async fn lock_out(&self) {
        self.server
            .sql(&[
                "alter role app password 'two'",
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'",
            ])
            .await;
    }

    /// When logins were refused.
    fn refusals(&self) -> Vec<NaiveDateTime> {
        let log = fs::read_to_string(self.server.postgres.log()).unwrap();
        let refused =
            log.lines().filter(|line| line.contains("password authentication failed for user \"app\""));
        refused
            .map(|line| NaiveDateTime::parse_from_str(&line[..23], "%Y-%m-%d %H:%M:%S%.3f").unwrap())
            .collect()
    }
}

fn serve(home: &Path) -> Command {
    let mut command = lastword(&["serve"], "", home);
    command.env_remove("DATABASE_URL").env("LASTWORD_DATABASE_URL_FILE", home.join("url"));
    command
        .env("LASTWORD_DEV", "1")
        .env("LASTWORD_OPERATOR_TOKENS", OPERATOR)
        .env("LASTWORD_DATA_DIR", home.join("data"));
    command
}

/// As a kubelet does: the new file comes into the old one's place.
fn write(home: &Path, url: &str) {
    fs::write(home.join("next"), url).unwrap();
    fs::rename(home.join("next"), home.join("url")).unwrap();
}

fn names_its_turn(answer: &Response) -> bool {
    let location = answer.headers().get(header::LOCATION);
    location.is_some_and(|location| location.to_str().unwrap().starts_with("/v1/turns/turn_"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_locked_out_says_so_knocks_softly_and_comes_in_with_the_new_password() {
    let world = World::start().await;
    let first = world.post("/echo hi", json!({}), 30).await;
    assert_eq!(first.json::<Value>().await.unwrap()["status"], "completed");
    // Two turns run meanwhile: one is watched, and one is waited for.
    let watched = world.post("/slow 20", json!({"stream": true}), 0).await;
    assert!(watched.status() == StatusCode::OK && names_its_turn(&watched));
    let running = "select count(*)::text from lastword.turns";
    let app = world.server.url("one", "?sslmode=disable");
    let count = async || {
        let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&app).await.ok()?;
        sqlx::query_scalar::<_, String>(running).fetch_one(&mut conn).await.ok()
    };
    let waiting = world.post("/slow 60000", json!({}), 4);
    let locking = async {
        eventually("three turns are accepted", async || count().await.filter(|n| n == "3")).await;
        world.lock_out().await;
    };
    let (waited, ()) = tokio::join!(waiting, locking);
    assert!(waited.status() == StatusCode::ACCEPTED && names_its_turn(&waited), "{waited:?}");
    assert!(waited.json::<Value>().await.unwrap()["id"].as_str().unwrap().starts_with("turn_"));

    let unready = eventually("unready", async || {
        world.readiness().await.filter(|(status, _)| *status == StatusCode::SERVICE_UNAVAILABLE)
    });
    let (_, view) = unready.await;
    assert_eq!(view["postgres"], false, "{view}");
    let told = async || {
        let (_, view) = world.readiness().await?;
        view["postgres_fault"].as_str().filter(|why| why.contains("refuses this user's password")).map(drop)
    };
    eventually("the reason", told).await;
    let refused = world.post("/echo hi", json!({}), 0).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key(header::RETRY_AFTER), "{refused:?}");

    let refusals =
        eventually("five refusals", async || Some(world.refusals()).filter(|all| all.len() >= 5)).await;
    for pair in refusals.windows(2) {
        assert!(pair[1] - pair[0] >= chrono::TimeDelta::milliseconds(900), "{refusals:?}");
    }
    write(world.home.path(), &world.server.url("two", ""));
    world.until_ready().await;
    let again = world.post("/echo hi", json!({}), 30).await;
    assert_eq!(again.json::<Value>().await.unwrap()["status"], "completed");
    let seen = tokio::time::timeout(PATIENCE, watched.text()).await.unwrap().unwrap();
    assert!(seen.contains("event: completed"), "{seen}");
    let log = world.replica.log();
    assert!(log.contains("the file that holds the database URL has changed"), "{log}");
    assert!(!log.contains(":one@") && !log.contains(":two@"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_rotated_with_its_file_is_noticed_by_nobody() {
    let world = World::start().await;
    world.server.sql(&["alter role app password 'two'"]).await;
    write(world.home.path(), &world.server.url("two", ""));
    // More at once than there are connections that rest.
    let posts = (0..12).map(|_| world.post("/echo hi", json!({}), 30));
    for answer in futures_util::future::join_all(posts).await {
        assert_eq!(answer.status(), StatusCode::OK, "{answer:?}");
        assert_eq!(answer.json::<Value>().await.unwrap()["status"], "completed");
    }
    assert_eq!(world.readiness().await.unwrap().0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_there_serve_all_while_logins_are_refused() {
    let world = World::start().await;
    world.server.sql(&["alter role app password 'two'"]).await;
    // More at once than there are connections that rest, until one was asked for and refused.
    let told = async || {
        let posts = (0..12).map(|_| world.post("/echo hi", json!({}), 30));
        for answer in futures_util::future::join_all(posts).await {
            let status = answer.status();
            let is_told = status == StatusCode::SERVICE_UNAVAILABLE
                && answer.headers().contains_key(header::RETRY_AFTER);
            assert!(status.is_success() && names_its_turn(&answer) || is_told, "{answer:?}");
        }
        // A balancer goes on sending requests here; people are told.
        let (status, view) = world.readiness().await?;
        assert_eq!(status, StatusCode::OK, "{view}");
        view["postgres_fault"].as_str().filter(|why| why.contains("refuses this user's password")).map(drop)
    };
    eventually("the reason", told).await;
    let log = world.replica.log();
    assert!(!log.contains("a request failed with an internal error"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_names_another_database_is_not_followed() {
    let world = World::start().await;
    world.server.sql(&["create database other owner app"]).await;
    write(world.home.path(), &world.server.url("one", "").replace("/app", "/other"));
    world.server.sql(&["select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'"]).await;
    let log = eventually("a warning", async || {
        Some(world.replica.log()).filter(|log| log.contains("names another server or database now"))
    });
    log.await;
    world.until_ready().await;
    let done = world.post("/echo hi", json!({}), 30).await;
    assert_eq!(done.json::<Value>().await.unwrap()["status"], "completed");
    let tables =
        world.server.ask("select count(*)::text from pg_stat_activity where datname = 'other'").await;
    assert_eq!(tables, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_taken_away_is_told_and_waited_for() {
    let world = World::start().await;
    let mut conn =
        <sqlx::PgConnection as sqlx::Connection>::connect(&world.server.url("one", "")).await.unwrap();
    sqlx::query("revoke all on lastword.inflight, lastword.turns from app").execute(&mut conn).await.unwrap();
    let told = async || {
        let (status, view) = world.readiness().await?;
        let is_told = view["postgres_fault"].as_str().is_some_and(|why| why.contains("lacks a right"));
        (status == StatusCode::SERVICE_UNAVAILABLE && is_told).then_some(())
    };
    eventually("the reason", told).await;
    let refused = world.post("/echo hi", json!({}), 0).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
    assert!(world.replica.log().contains("grant the user"), "{}", world.replica.log());
    sqlx::query("grant all on lastword.inflight, lastword.turns to app").execute(&mut conn).await.unwrap();
    world.until_ready().await;
    let done = world.post("/echo hi", json!({}), 30).await;
    assert_eq!(done.json::<Value>().await.unwrap()["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_after_a_turn_is_accepted_does_not_fail_its_request() {
    let world = World::start().await;
    let first: Value = world.post("/slow 60000", json!({}), 0).await.json().await.unwrap();
    let mut conn =
        <sqlx::PgConnection as sqlx::Connection>::connect(&world.server.url("one", "")).await.unwrap();
    // The turn can be stored, and what is before it cannot be cancelled.
    sqlx::query("alter function lastword.lw_cancel_v1 rename to lw_cancel_v1_away")
        .execute(&mut conn)
        .await
        .unwrap();
    let more = json!({"conversation_id": first["conversation_id"], "if_busy": "interrupt"});
    let second = world.post("/echo hi", more, 0).await;
    assert!(second.status() == StatusCode::ACCEPTED && names_its_turn(&second), "{second:?}");
    let second: Value = second.json().await.unwrap();
    sqlx::query("alter function lastword.lw_cancel_v1_away rename to lw_cancel_v1")
        .execute(&mut conn)
        .await
        .unwrap();
    let seen = async |turn: &Value| {
        let asked =
            world.http.get(world.at(&format!("/v1/turns/{}", turn["id"].as_str()?))).bearer_auth(OPERATOR);
        asked.send().await.ok()?.json::<Value>().await.ok()
    };
    for (turn, end) in [(&first, "cancelled"), (&second, "completed")] {
        eventually(end, async || seen(turn).await.filter(|turn| turn["status"] == end)).await;
    }
}
