//! Cursors: before the end, at the last word, beyond the head, deleted.

use lastword::event::Kind;
use reqwest::Method;
use serde_json::{Value, json};

use super::world::{Frames, World, kinds, problem};

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_before_the_end_always_gets_the_last_word() {
    let world = World::start().await;
    world.make_turn(json!({})).await;
    let mut run = world.run_next().await;
    run.say(Kind::Delta, r#"{"text":"a"}"#).await;
    let turn = run.turn.to_string();
    run.complete("a").await;
    let all = ["accepted", "started", "delta", "completed"];
    for after in -1..3 {
        let text = Frames::of(world.stream(&turn, after).await).end().await.unwrap();
        assert_eq!(kinds(&text), all[(after + 1) as usize..], "after {after}");
    }
    assert_eq!(world.stream(&turn, 3).await.status(), 204);
    let past = world.stream(&turn, 4).await;
    assert_eq!(past.status(), 400);
    assert_eq!(problem(past).await["code"], "cursor_past_head");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_event_id_beats_the_query() {
    let world = World::start().await;
    world.make_turn(json!({})).await;
    let run = world.run_next().await;
    let path = format!("/v1/turns/{}/events?after=0", run.turn);
    run.complete("a").await;
    let ask = |id: &str| world.request(Method::GET, &path).header("last-event-id", id.to_owned()).send();
    assert_eq!(kinds(&Frames::of(ask("1").await.unwrap()).end().await.unwrap()), ["completed"]);
    assert_eq!(ask("2").await.unwrap().status(), 204);
    assert_eq!(problem(ask("x").await.unwrap()).await["field"], "Last-Event-ID");
    let ended = Frames::of(ask("").await.unwrap()).end().await.unwrap();
    assert_eq!(kinds(&ended), ["started", "completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_events_go_on_where_they_ended() {
    let world = World::start().await;
    let turn = world.make_turn(json!({})).await;
    let path = turn["events_url"].as_str().unwrap().to_owned();
    let page = async |query: &str| -> Value {
        let ask = world.request(Method::GET, &format!("{path}?{query}")).header("accept", "application/json");
        ask.send().await.unwrap().json().await.unwrap()
    };
    let first = page("").await;
    assert_eq!(first["events"].as_array().unwrap().len(), 1);
    assert_eq!(first["events"][0]["turn_id"], turn["id"]);
    assert_eq!((&first["next_after"], &first["closed"]), (&json!(0), &json!(false)));
    let idle = page("after=0").await;
    assert_eq!(idle, json!({"events": [], "next_after": 0, "closed": false}));

    let waiting = page("after=0&wait=15");
    let (waited, _) = tokio::join!(waiting, async { world.run_next().await.complete("a").await });
    assert_eq!(waited["events"][0]["kind"], "started");
    let cursor = waited["next_after"].as_i64().unwrap();
    if !waited["closed"].as_bool().unwrap() {
        let last = page(&format!("after={cursor}&wait=15")).await;
        assert_eq!((&last["events"][0]["kind"], &last["closed"]), (&json!("completed"), &json!(true)));
    }
    let two = page("limit=2").await;
    assert_eq!((&two["next_after"], &two["closed"]), (&json!(1), &json!(false)));
    assert_eq!(page("limit=3").await["closed"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_dropped_is_gone_not_empty() {
    let world = World::start().await;
    world.make_turn(json!({})).await;
    let run = world.run_next().await;
    let turn = run.turn.to_string();
    run.complete("a").await;
    let tomorrow = (world.store.clock().now() + chrono::TimeDelta::days(1)).date_naive();
    assert!(!world.store.drop_partitions(tomorrow).await.unwrap().is_empty());
    for after in [-1, 0, 2] {
        let gone = world.stream(&turn, after).await;
        assert_eq!(gone.status(), 410, "after {after}");
        assert_eq!(problem(gone).await["code"], "events_gone");
    }
    assert_eq!(world.get(&format!("/v1/turns/{turn}")).await.status(), 200);
}
