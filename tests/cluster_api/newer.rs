//! Words of a newer release in the database: shown as they are, kept, and run by no replica that does not understand
//! them.

use lastword::{agent::READS, id::TurnId};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::{Cluster, PATIENCE, eventually};

pub async fn an_agent_of_a_newer_release_is_shown_and_its_turns_wait(cluster: &Cluster) {
    let spec = json!({
        "runtime": "process", "command": ["true"], "sandbox": {"kind": "strict"},
        "guards": [{"kind": "judge", "model": "m"}], "timeouts": {"queue": "1h"},
    });
    put(cluster, "newer", &spec).await;
    for i in 0..2 {
        let shown = cluster.get(i, "/v1/agents/newer").await;
        assert_eq!(shown["spec"], spec);
        let mut unread: Vec<_> = shown["unread"].as_array().unwrap().iter().map(Value::to_string).collect();
        unread.sort();
        assert_eq!(unread, [r#""guards[0]""#, r#""sandbox""#]);
        let all = cluster.get(i, "/v1/agents?limit=200").await;
        assert!(all["items"].as_array().unwrap().iter().any(|agent| agent["name"] == "newer"), "{all}");
    }
    // Who accepts it knows its agent. The other replica declines the first turn, and leaves the second alone.
    for n in 0..2 {
        let turn = cluster.post(n, "newer", "hello").await;
        if n == 0 {
            eventually("the other replica has declined it", async || {
                (declined(cluster, &turn.id).await == 1).then_some(())
            })
            .await;
        }
        let other = cluster.post(n, "demo", "hello").await;
        assert_eq!(cluster.watch_all(&other).await.last().unwrap().kind, "completed");
        let seen = cluster.get(n, &format!("/v1/turns/{}", turn.id)).await;
        assert_eq!((&seen["status"], &seen["attempt"]), (&json!("queued"), &json!(0)), "{seen}");
        assert_eq!(declined(cluster, &turn.id).await, if n == 0 { 1 } else { 0 });
        assert!(cluster.cancel(1 - n, &turn).await.is_success());
        assert_eq!(cluster.watch_all(&turn).await.last().unwrap().kind, "cancelled");
    }
}

/// All fields of the spec are known here, and a newer release reads more in them.
pub async fn an_agent_that_needs_a_newer_reader_is_shown_and_its_turns_are_not_claimed(cluster: &Cluster) {
    let spec = json!({"runtime": "process", "command": ["true"], "timeouts": {"queue": "1h"}});
    put(cluster, "higher", &spec).await;
    execute(cluster, format!("update agents set reader_min = {} where name = 'higher'", READS + 1)).await;
    for i in 0..2 {
        let shown = cluster.get(i, "/v1/agents/higher").await;
        assert_eq!((&shown["spec"], &shown["unread"]), (&spec, &json!(["reader_min"])), "{shown}");
        let turn = cluster.post(i, "higher", "hello").await;
        for n in 0..2 {
            let other = cluster.post(n, "demo", "hello").await;
            assert_eq!(cluster.watch_all(&other).await.last().unwrap().kind, "completed");
        }
        let seen = cluster.get(i, &format!("/v1/turns/{}", turn.id)).await;
        assert_eq!((&seen["status"], &seen["attempt"]), (&json!("queued"), &json!(0)), "{seen}");
        assert_eq!(declined(cluster, &turn.id).await, 0, "nobody has claimed the turn");
        assert!(cluster.cancel(1 - i, &turn).await.is_success());
        assert_eq!(cluster.watch_all(&turn).await.last().unwrap().kind, "cancelled");
    }
}

pub async fn a_field_of_a_newer_release_is_kept_when_its_agent_is_written_back(cluster: &Cluster) {
    let stored = json!({"runtime": "process", "command": ["true"], "sandbox": "strict"});
    put(cluster, "kept", &stored).await;
    let put_as =
        async |spec: &Value| cluster.ask(1, Method::PUT, "/v1/agents/kept", Some(spec.clone())).await;
    let mut changed = cluster.get(0, "/v1/agents/kept").await["spec"].clone();
    changed["command"] = json!(["false"]);
    let (status, agent) = put_as(&changed).await;
    assert_eq!(status, StatusCode::OK, "{agent}");
    let shown = cluster.get(0, "/v1/agents/kept").await;
    assert_eq!((&shown["spec"]["command"], &shown["spec"]["sandbox"]), (&json!(["false"]), &json!("strict")));
    // Another value, and another field, are no business of a release that does not know them.
    for (field, value) in [("sandbox", "loose"), ("sandbx", "strict")] {
        let mut wrong = changed.clone();
        wrong[field] = json!(value);
        let (status, problem) = put_as(&wrong).await;
        assert_eq!((status, &problem["field"]), (StatusCode::BAD_REQUEST, &json!(field)), "{problem}");
    }
    let (status, agent) = put_as(&json!({"runtime": "process", "command": ["true"]})).await;
    assert_eq!((status, agent["spec"].get("sandbox")), (StatusCode::OK, None), "{agent}");
}

pub async fn an_event_of_a_newer_release_is_told_by_its_name(cluster: &Cluster) {
    let turn = cluster.post(0, "demo", "hello").await;
    let events = cluster.watch_all(&turn).await;
    let delta = events.iter().find(|event| event.kind == "delta").unwrap();
    let id: TurnId = turn.id.parse().unwrap();
    let said = r#"{"thought":"so far","of_a_newer_release":{"deep":1}}"#;
    execute(
        cluster,
        format!(
            "update turn_events set kind = 'reasoning', data = '{said}' where turn_id = '{}' and seq = {}",
            id.0, delta.seq
        ),
    )
    .await;
    for i in 0..2 {
        let read = cluster.stream(i, &turn.id, -1).await.until_terminal(PATIENCE).await;
        assert_eq!(read.len(), events.len());
        let event = read.iter().find(|event| event.seq == delta.seq).unwrap();
        assert_eq!(
            (event.kind.as_str(), &event.data["of_a_newer_release"]["deep"]),
            ("reasoning", &json!(1))
        );
        let rest = cluster.stream(i, &turn.id, delta.seq).await.until_terminal(PATIENCE).await;
        assert_eq!(
            rest.len(),
            read.iter().filter(|event| event.seq > delta.seq).count(),
            "a cursor at such an event holds"
        );
    }
    execute(
        cluster,
        format!("update turn_events set kind = 'delta' where turn_id = '{}' and seq = {}", id.0, delta.seq),
    )
    .await;
}

pub async fn a_code_of_a_newer_release_is_told_as_it_is(cluster: &Cluster) {
    let turn = cluster.post(0, "demo", "/error not now").await;
    cluster.watch_all(&turn).await;
    let id: TurnId = turn.id.parse().unwrap();
    execute(
        cluster,
        format!("update turn_events set data = replace(data, 'agent_error', 'of_a_newer_release') where turn_id = '{}'", id.0),
    )
    .await;
    for i in 0..2 {
        assert_eq!(cluster.watch(i, &turn).await.last().unwrap().code(), "of_a_newer_release");
        let seen = cluster.get(i, &format!("/v1/turns/{}", turn.id)).await;
        assert_eq!(seen["error"]["code"], "of_a_newer_release", "{seen}");
    }
}

/// Puts an agent as a newer release does: past the door of this one.
async fn put(cluster: &Cluster, name: &str, spec: &Value) {
    execute(cluster, format!("insert into agents (name, revision, spec) values ('{name}', 1, '{spec}')"))
        .await;
}

async fn declined(cluster: &Cluster, turn: &str) -> i32 {
    let id: TurnId = turn.parse().unwrap();
    let mut conn = connect(cluster).await;
    let count = format!("select declined from inflight where turn_id = '{}'", id.0);
    sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut conn).await.unwrap()
}

async fn execute(cluster: &Cluster, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connect(cluster).await).await.unwrap();
}

async fn connect(cluster: &Cluster) -> PgConnection {
    let url = cluster.postgres().url();
    PgConnection::connect(&url).await.unwrap()
}
