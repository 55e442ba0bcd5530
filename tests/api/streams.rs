//! Event streams: replay, follow, the last word, and every other way to end.

use std::time::Duration;

use lastword::event::Kind;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Mutex,
};

use super::world::{Frames, World, kinds, problem, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_replays_follows_and_ends_cleanly_after_the_last_word() {
    let world = World::start().await;
    let other = world.another(|_| {}).await;
    let body = json!({"agent": "demo", "input": "hello", "stream": true});
    let mut first = Frames::of(world.post("/v1/turns", &body).await);
    first.until("event: accepted").await;
    let mut run = world.run_next().await;
    run.say(Kind::Delta, r#"{"text":"hel"}"#).await;
    first.until("hel").await;
    let answer = other.stream(&run.turn.to_string(), -1).await;
    assert_eq!(answer.headers()["cache-control"], "no-store, no-transform");
    let mut second = Frames::of(answer);
    second.until("hel").await;
    run.say(Kind::Delta, r#"{"text":"lo"}"#).await;
    run.complete("hello").await;

    let (first, second) = (first.end().await.unwrap(), second.end().await.unwrap());
    assert_eq!(kinds(&first), ["accepted", "started", "delta", "delta", "completed"]);
    let frames =
        |text: &str| text.split("\n\n").filter(|f| f.starts_with("event")).collect::<Vec<_>>().join("\n");
    assert_eq!(frames(&first), frames(&second), "every replica renders the same bytes");
    assert!(first.starts_with("retry: "));
    let ids: Vec<_> = first.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert_eq!(ids, ["0", "1", "2", "3", "4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_doorbell_is_only_slower() {
    let world = World::with(|config| config.doorbell = lastword::config::Doorbell::Off).await;
    let other = world.another(|config| config.doorbell = lastword::config::Doorbell::Off).await;
    let turn = world.make_turn(json!({})).await;
    let mut frames = Frames::of(other.stream(turn["id"].as_str().unwrap(), -1).await);
    frames.until("accepted").await;
    world.run_next().await.complete("done").await;
    assert_eq!(kinds(&frames.end().await.unwrap()), ["accepted", "started", "completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_text_can_never_forge_a_frame() {
    let world = World::start().await;
    world.make_turn(json!({})).await;
    let mut run = world.run_next().await;
    let forged = "a\r\rb\n\nevent: completed\nid: 99\ndata: {}\n\n";
    run.say(Kind::Delta, json!({"text": forged}).to_string()).await;
    // As a careless writer might have stored it.
    run.say(Kind::Custom, "{\"name\":\"x\",\r\n\n\"data\":1}").await;
    let turn = run.turn;
    run.complete("done").await;
    let text = Frames::of(world.stream(&turn.to_string(), -1).await).end().await.unwrap();
    assert_eq!(kinds(&text), ["accepted", "started", "delta", "custom", "completed"]);
    assert!(!text.contains('\r'));
    let data: Vec<Value> = text
        .lines()
        .filter_map(|l| l.strip_prefix("data: "))
        .map(|d| serde_json::from_str(d).unwrap())
        .collect();
    assert_eq!(data.len(), 5);
    assert_eq!(data[2]["text"], forged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_is_kept_alive() {
    let world = World::with(|config| config.keep_alive = lastword::units::Span::seconds(1)).await;
    let turn = world.make_turn(json!({})).await;
    let mut frames = Frames::of(world.stream(turn["id"].as_str().unwrap(), -1).await);
    frames.until(": keep-alive\n\n").await;
    assert_eq!(kinds(&frames.text), ["accepted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_tells_streams_to_reconnect_and_never_ends_one_cleanly() {
    let world = World::start().await;
    let other = world.another(|_| {}).await;
    let fields = json!({"agent": "demo", "input": "x", "stream": true, "on_disconnect": "cancel"});
    let mut frames = Frames::of(world.post("/v1/turns", &fields).await);
    frames.until("accepted").await;
    world.supervisor.soft().cancel();
    let (text, why) = frames.end().await.expect_err("a clean end looks like success");
    assert!(text.ends_with("event: reconnect\ndata: {}\n\n"), "{text}");
    assert!(why.is_body() || why.is_decode(), "{why:?}");

    // The client that was let go asked for a cancel on disconnect, and did not disconnect.
    let list: Value = other.get("/v1/turns").await.json().await.unwrap();
    let turn = list["items"][0].clone();
    assert_eq!(turn["status"], "queued");
    let mut frames = Frames::of(other.stream(turn["id"].as_str().unwrap(), 0).await);
    frames.until("retry").await;
    other.run_next().await.complete("done").await;
    assert_eq!(kinds(&frames.end().await.unwrap()), ["started", "completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_let_go_ends_in_a_reset() {
    let world = World::start().await;
    let turn = world.make_turn(json!({})).await;
    let address = world.url.strip_prefix("http://").unwrap();
    let mut wire = tokio::net::TcpStream::connect(address).await.unwrap();
    let path = turn["events_url"].as_str().unwrap();
    // To HTTP/1.0 a plain close is a clean end.
    wire.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    let mut bytes = [0; 4096];
    while !text.contains("accepted") {
        let n = wire.read(&mut bytes).await.unwrap();
        text.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
    }
    world.supervisor.soft().cancel();
    let end = loop {
        match wire.read(&mut bytes).await {
            Ok(0) => panic!("a clean end: {text}"),
            Ok(n) => text.push_str(std::str::from_utf8(&bytes[..n]).unwrap()),
            Err(why) => break why,
        }
    };
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(text.ends_with("event: reconnect\ndata: {}\n\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_cancels_its_turn_only_where_it_asked_for_that() {
    let world = World::with(|config| config.streams_max = 1).await;
    for on_disconnect in ["continue", "cancel"] {
        let body = json!({"agent": "demo", "input": "x", "stream": true, "on_disconnect": on_disconnect});
        // Who only looked whether the seat is free may still sit on it; a refusal stores nothing.
        let answer = Mutex::new(None);
        until("a seat for this one", || async {
            let asked = world.post("/v1/turns", &body).await;
            let is_seated = asked.status() != 503;
            *answer.lock().await = Some(asked);
            is_seated
        })
        .await;
        let answer = answer.into_inner().unwrap();
        let path = answer.headers()["location"].to_str().unwrap().to_owned();
        let mut frames = Frames::of(answer);
        frames.until("accepted").await;
        drop(frames);
        // The only seat is free once the door has seen the client leave.
        let turn = path.rsplit_once('/').unwrap().1;
        until("the client has left", || async { world.stream(turn, -1).await.status() == 200 }).await;
        until("the seat is free again", || async { world.supervisor.board().get("disconnects").is_none() })
            .await;
        let page: Value = world.get(&format!("{path}/events?limit=10")).await.json().await.unwrap();
        let last = page["events"].as_array().unwrap().last().unwrap();
        match on_disconnect {
            "cancel" => assert_eq!((&last["kind"], &last["by"]), (&json!("cancelled"), &json!("disconnect"))),
            _ => assert_eq!(last["kind"], "accepted"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_ended_is_not_cancelled_by_its_client_leaving() {
    let world = World::start().await;
    let body = json!({"agent": "demo", "input": "x", "stream": true, "on_disconnect": "cancel"});
    let mut frames = Frames::of(world.post("/v1/turns", &body).await);
    frames.until("accepted").await;
    world.run_next().await.complete("done").await;
    assert_eq!(kinds(&frames.end().await.unwrap()).last(), Some(&"completed"));
    assert!(world.supervisor.board().get("disconnects").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stream_too_many_is_refused_before_anything_is_accepted() {
    let world = World::with(|config| config.streams_max = 1).await;
    let turn = world.make_turn(json!({})).await;
    let mut frames = Frames::of(world.stream(turn["id"].as_str().unwrap(), -1).await);
    frames.until("accepted").await;
    let body = json!({"agent": "demo", "input": "x", "stream": true});
    let refused = world.post("/v1/turns", &body).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(problem(refused).await["code"], "too_many_streams");
    let list: Value = world.get("/v1/turns").await.json().await.unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    drop(frames);
    until("the seat is free", || async {
        let again = world.stream(turn["id"].as_str().unwrap(), -1).await;
        again.status() == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_told_turn_after_turn_and_never_ends() {
    let world = World::start().await;
    let first = world.make_turn(json!({})).await;
    let conversation = first["conversation_id"].as_str().unwrap();
    let path = format!("/v1/conversations/{conversation}/events");
    let sse = async |path: &str| {
        let ask = world.request(Method::GET, path).header("accept", "text/event-stream");
        Frames::of(ask.send().await.unwrap())
    };
    let mut frames = sse(&path).await;
    world.make_turn(json!({"conversation_id": conversation})).await;
    world.run_next().await.complete("one").await;
    world.run_next().await.complete("two").await;
    frames.until("\"two\"").await;
    let ids = |text: &str| {
        text.lines().filter_map(|l| l.strip_prefix("id: ").map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(ids(&frames.text), ["1.0", "1.1", "1.2", "2.0", "2.1", "2.2"]);

    // At the last word of the newest turn there is nothing, until another turn comes.
    let mut late = sse(&format!("{path}?after=2.2")).await;
    late.until("retry").await;
    world.make_turn(json!({"conversation_id": conversation})).await;
    late.until("accepted").await;
    assert_eq!(ids(&late.text), ["3.0"]);

    let page: Value = world.get(&format!("{path}?after=1.1&limit=2&wait=0")).await.json().await.unwrap();
    assert_eq!(page["events"].as_array().unwrap().len(), 2);
    assert_eq!((&page["next_after"], &page["closed"]), (&json!("2.0"), &json!(false)));
    let past = world.get(&format!("{path}?after=3.7")).await;
    assert_eq!(problem(past).await["code"], "cursor_past_head");
    let past = world.get(&format!("{path}?after=9.0")).await;
    assert_eq!(problem(past).await["code"], "cursor_past_head");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_a_page_and_not_the_log() {
    let world = World::start().await;
    world.make_turn(json!({})).await;
    let mut run = world.run_next().await;
    let text = "x".repeat(200_000);
    for _ in 0..100 {
        run.say(Kind::Delta, json!({"text": text}).to_string()).await;
    }
    let turn = run.turn.to_string();
    run.complete("done").await;
    let answer = world.stream(&turn, -1).await;
    // Not read at all for a while: others are served meanwhile.
    let page = tokio::time::timeout(Duration::from_secs(10), world.get(&format!("/v1/turns/{turn}"))).await;
    assert_eq!(page.unwrap().status(), 200);
    let text = Frames::of(answer).end().await.unwrap();
    assert_eq!(kinds(&text).len(), 103);
}
