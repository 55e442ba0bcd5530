//! Answers about turns that are no longer retained.

use lastword::{config::Config, units::Span};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::world::{Frames, World, problem};

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_is_retained_no_longer_is_gone_and_its_conversation_goes_on() {
    let world = World::with(|config: &mut Config| config.retain = Span::seconds(3600)).await;
    world.store.probe().await.unwrap();
    for path in ["", "/events"] {
        let old = world.get(&format!("/v1/turns/turn_018c0000000070008000000000000001{path}")).await;
        assert_eq!(
            (old.status().as_u16(), problem(old).await["code"].clone()),
            (410, json!("events_gone")),
            "{path}"
        );
    }
    let first = world.make_turn(json!({})).await;
    world.run_next().await.complete("one").await;
    let conversation = first["conversation_id"].as_str().unwrap();
    let second = world.make_turn(json!({"conversation_id": conversation})).await;
    world.run_next().await.complete("two").await;
    let mut conn = PgConnection::connect(&world.database_url).await.unwrap();
    let turn: lastword::id::TurnId = first["id"].as_str().unwrap().parse().unwrap();
    for table in ["turn_events where turn_id", "turns where id"] {
        conn.execute(AssertSqlSafe(format!("delete from {table} = '{}'", turn.0))).await.unwrap();
    }
    // Who has seen the first turn comes back with its last event.
    let path = format!("/v1/conversations/{conversation}/events?after=1.2");
    let asked = world.request(reqwest::Method::GET, &path).header("accept", "text/event-stream");
    let mut frames = Frames::of(asked.send().await.unwrap());
    frames.until("event: completed").await;
    assert!(frames.text.contains(second["id"].as_str().unwrap()), "{}", frames.text);
    let past: Value = problem(world.get(&path.replace("1.2", "3.0")).await).await;
    assert_eq!(past["code"], "cursor_past_head");
}
