//! Readers of a whole conversation that wait for its next turn: their cost, and how soon they see the turn.

use std::time::Duration;

use lastword::config::{Config, Doorbell};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::time::sleep;

use super::world::{Frames, Replica, World};

const STREAMS: usize = 200;
/// How long transactions are counted.
const COUNTED: Duration = Duration::from_secs(5);
/// So often at most.
const WINDOWS_MAX: usize = 12;

/// A conversation that one turn has ended in.
async fn conversation(world: &World) -> String {
    let turn = world.make_turn(json!({})).await;
    world.run_next().await.complete("done").await;
    turn["conversation_id"].as_str().unwrap().to_owned()
}

async fn empty_conversation(world: &World) -> String {
    let made = world.post("/v1/conversations", &json!({"agent": "demo"})).await;
    let made: Value = made.json().await.unwrap();
    made["id"].as_str().unwrap().to_owned()
}

/// Its stream, which has told all there is.
async fn follow(replica: &Replica, conversation: &str, until: &str) -> Frames {
    let path = format!("/v1/conversations/{conversation}/events");
    let asked = replica.request(reqwest::Method::GET, &path).header("accept", "text/event-stream");
    // Longer than all of a test.
    let asked = asked.timeout(Duration::from_secs(300));
    let mut frames = Frames::of(asked.send().await.unwrap());
    frames.until(until).await;
    frames.text.clear();
    frames
}

#[allow(clippy::disallowed_methods, reason = "a view that the build's database lacks")]
async fn transactions(world: &World) -> i64 {
    let mut conn = PgConnection::connect(&world.database_url).await.unwrap();
    let asked = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
    sqlx::query_scalar(asked).fetch_one(&mut conn).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_conversations_that_nothing_happens_in_share_one_look() {
    let world = World::start().await;
    let (mut conversations, mut streams) = (Vec::new(), Vec::new());
    for n in 0..STREAMS {
        let (conversation, until) = match n % 4 {
            0 => (conversation(&world).await, "event: completed"),
            _ => (empty_conversation(&world).await, "retry: "),
        };
        streams.push(follow(&world, &conversation, until).await);
        conversations.push(conversation);
    }
    // What has opened them is counted by and by: an idle connection tells its count after ten seconds.
    let mut counts = Vec::new();
    while counts.last().is_none_or(|count| *count > 4 * COUNTED.as_secs() as i64) {
        assert!(counts.len() < WINDOWS_MAX, "they do not rest: {counts:?} transactions in {COUNTED:?} each");
        let before = transactions(&world).await;
        sleep(COUNTED).await;
        counts.push(transactions(&world).await - before);
    }
    world.make_turn(json!({"conversation_id": conversations[0]})).await;
    streams[0].until("event: accepted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_turns_of_a_conversation_are_seen_on_every_replica() {
    let world = World::start().await;
    let other = world.another(|_| {}).await;
    let conversation = conversation(&world).await;
    let mut streams = [
        follow(&world, &conversation, "event: completed").await,
        follow(&other, &conversation, "event: completed").await,
    ];
    for _ in 0..5 {
        world.make_turn(json!({"conversation_id": conversation})).await;
        for stream in &mut streams {
            stream.until("event: accepted").await;
        }
        world.run_next().await.complete("done").await;
        for stream in &mut streams {
            stream.until("event: completed").await;
            stream.text.clear();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_doorbell_the_next_turn_is_seen_by_the_next_look() {
    let silent = |config: &mut Config| config.doorbell = Doorbell::Off;
    let world = World::with(silent).await;
    let other = world.another(silent).await;
    let told = conversation(&world).await;
    let empty = empty_conversation(&world).await;
    let mut streams =
        [follow(&other, &told, "event: completed").await, follow(&other, &empty, "retry: ").await];
    for (stream, conversation) in streams.iter_mut().zip([told, empty]) {
        world.make_turn(json!({"conversation_id": conversation})).await;
        stream.until("event: accepted").await;
    }
}
