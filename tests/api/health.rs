//! Probes, and requests and streams while Postgres is away.

use lastword::event::Kind;
use lastword_devkit::postgres::StopMode;
use reqwest::Method;
use serde_json::{Value, json};

use super::world::{Frames, World, kinds, problem, until};

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_why_not() {
    let world = World::start().await;
    let ready = world.get("/readyz").await;
    assert_eq!(ready.status(), 200);
    let view: Value = ready.json().await.unwrap();
    assert_eq!((&view["status"], &view["doorbell"]["on"]), (&json!("ready"), &json!(true)));

    world.supervisor.soft().cancel();
    let draining = world.get("/readyz").await;
    assert_eq!(draining.status(), 503);
    assert_eq!(draining.json::<Value>().await.unwrap()["draining"], true);
    assert_eq!(world.get("/livez").await.status(), 200);
    // During a drain requests are still answered.
    world.make_turn(json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_on_the_board_decides_too() {
    let world = World::start().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let until = stop.clone();
    world.supervisor.spawn(
        lastword::task::TaskKind::Client,
        "presence",
        async move { until.cancelled().await },
    );
    world.supervisor.report("presence", "registering");
    assert_eq!(world.get("/readyz").await.status(), 503);
    world.supervisor.report("presence", "ready");
    assert_eq!(world.get("/readyz").await.status(), 200);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgres_is_away_requests_are_told_and_streams_live_on() {
    let world = World::alone(|config| config.keep_alive = lastword::units::Span::seconds(1)).await;
    let turn = world.make_turn(json!({})).await;
    let id = turn["id"].as_str().unwrap().to_owned();
    let mut run = world.run_next().await;
    run.say(Kind::Delta, r#"{"text":"before"}"#).await;
    let (turn_id, seq) = (run.turn, run.seq);
    let mut frames = Frames::of(world.stream(&id, -1).await);
    frames.until("before").await;

    world.server.lock().unwrap().stop(StopMode::Fast).unwrap();
    let body = json!({"agent": "demo", "input": "x"});
    let ask = world.request(Method::POST, "/v1/turns").header("idempotency-key", "away-1").json(&body);
    let refused = ask.send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(problem(refused).await["code"], "postgres_unavailable");
    until("unready", || async { world.get("/readyz").await.status() == 503 }).await;
    assert_eq!(world.get("/livez").await.status(), 200);
    let before = frames.text.len();
    frames.until(": keep-alive").await;
    assert!(frames.text.len() > before);

    world.server.lock().unwrap().restart(StopMode::Fast).unwrap();
    until("ready", || async { world.get("/readyz").await.status() == 200 }).await;
    let cancelled = world.post(&format!("/v1/turns/{turn_id}/cancel"), &json!({})).await;
    assert_eq!(cancelled.status(), 202);
    let run = world.resume(turn_id, seq);
    run.complete("done").await;
    let text = frames.end().await.unwrap();
    assert_eq!(kinds(&text), ["accepted", "started", "delta", "completed"]);
    let ask = world.request(Method::POST, "/v1/turns").header("idempotency-key", "away-1").json(&body);
    assert_eq!(ask.send().await.unwrap().status(), 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_open_on_loopback_and_guarded_beyond() {
    lastword::telemetry::metrics::install();
    let world = World::start().await;
    world.get("/v1/turns").await;
    let page = world.get("/metrics").await;
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    let page = page.text().await.unwrap();
    assert!(page.contains(r#"lastword_http_requests_total{route="/v1/turns",status="200"}"#), "{page}");

    let world = World::with(|config| config.listen = "0.0.0.0:1".parse().unwrap()).await;
    assert_eq!(world.get("/metrics").await.status(), 401);
    let asked = world.as_operator(Method::GET, "/metrics").send().await.unwrap();
    assert_eq!(asked.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_stands_in_the_document() {
    let world = World::start().await;
    let document: Value = world.get("/openapi.json").await.json().await.unwrap();
    let paths: Vec<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    for path in [
        "/v1/turns",
        "/v1/turns/{id}",
        "/v1/turns/{id}/events",
        "/v1/turns/{id}/cancel",
        "/v1/turns/{id}/answers",
        "/v1/turns/{id}/retry",
        "/v1/conversations",
        "/v1/conversations/{id}",
        "/v1/conversations/{id}/turns",
        "/v1/conversations/{id}/events",
        "/v1/agents",
        "/v1/agents/{name}",
        "/v1/replicas",
        "/v1/workers",
        "/v1/workers/{id}/stop",
        "/livez",
        "/readyz",
        "/metrics",
    ] {
        assert!(paths.contains(&path), "{path}: {paths:?}");
    }
    for (path, mark) in [("/", "lastword"), ("/docs", "openapi.json")] {
        let page = world.get(path).await;
        assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
        assert!(page.text().await.unwrap().contains(mark));
    }
}
