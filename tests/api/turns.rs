//! Creating turns: once, in order, within limits; and reading them.

use lastword::{
    agent::Runtime,
    store::{claim::Ready, queue_hints::FRONT},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::world::{OPERATOR, Replica, World, problem};

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_turn_is_durable_and_says_where_it_is() {
    let world = World::start().await;
    let answer = world.post("/v1/turns", &json!({"agent": "demo", "input": "hello"})).await;
    assert_eq!(answer.status(), 202);
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let turn: Value = answer.json().await.unwrap();
    assert_eq!(turn["status"], "queued");
    assert_eq!((&turn["ordinal"], &turn["attempt"]), (&json!(1), &json!(0)));
    assert_eq!(turn["events_url"], format!("{location}/events"));
    let read: Value = world.get(&location).await.json().await.unwrap();
    assert_eq!(read, turn);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_gives_the_same_turn_on_every_replica() {
    let world = World::start().await;
    let other = world.another(|_| {}).await;
    let ask = async |replica: &Replica, input: &str, stream: bool| {
        let body = json!({"agent": "demo", "input": input, "stream": stream});
        replica.request(Method::POST, "/v1/turns").header("idempotency-key", "k-1").json(&body).send().await
    };
    let first: Value = ask(&world, "hello", false).await.unwrap().json().await.unwrap();
    let again: Value = ask(&other, "hello", false).await.unwrap().json().await.unwrap();
    assert_eq!(first["id"], again["id"]);
    // How the answer is delivered is no part of the request.
    let stream = ask(&other, "hello", true).await.unwrap();
    assert_eq!(stream.headers()["location"], format!("/v1/turns/{}", first["id"].as_str().unwrap()));

    let refused = ask(&other, "something else", false).await.unwrap();
    assert_eq!(refused.status(), 422);
    assert_eq!(problem(refused).await["code"], "idempotency_key_reused");
    let list: Value = world.get("/v1/turns").await.json().await.unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_belongs_to_the_token_that_it_came_with() {
    let tokens = ["token-of-one", "token-of-another", "token-of-a-third"];
    let world = World::with(|config| config.client_tokens = tokens.map(str::to_owned).to_vec()).await;
    let ask = async |token: &str| {
        let request =
            world.request(Method::POST, "/v1/turns").bearer_auth(token).header("idempotency-key", "k-1");
        let answer = request.json(&json!({"agent": "demo", "input": "hello"})).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        let turn: Value = answer.json().await.unwrap();
        turn["id"].as_str().unwrap().to_owned()
    };
    let mut turns = std::collections::HashSet::new();
    for token in tokens.into_iter().chain([OPERATOR]) {
        let turn = ask(token).await;
        assert_eq!(ask(token).await, turn, "{token}");
        assert!(turns.insert(turn), "{token} was given another token's turn");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_conversation_queues_rejects_or_interrupts() {
    let world = World::start().await;
    let first = world.make_turn(json!({})).await;
    let conversation = &first["conversation_id"];
    let second = world.make_turn(json!({"conversation_id": conversation})).await;
    assert_eq!(second["ordinal"], 2);

    let body = json!({"agent": "demo", "input": "x", "conversation_id": conversation, "if_busy": "reject"});
    let refused = world.post("/v1/turns", &body).await;
    assert_eq!(refused.status(), 409);
    let refused = problem(refused).await;
    assert_eq!((&refused["code"], &refused["active_turn_id"]), (&json!("turn_active"), &first["id"]));
    assert_eq!(refused["stream_url"], first["events_url"]);

    let third = world.make_turn(json!({"conversation_id": conversation, "if_busy": "interrupt"})).await;
    for turn in [&first, &second] {
        let path = turn["events_url"].as_str().unwrap();
        let page: Value = world.get(&format!("{path}?limit=10")).await.json().await.unwrap();
        let word = page["events"].as_array().unwrap().last().unwrap();
        assert_eq!((&word["kind"], &word["by"]), (&json!("cancelled"), &json!("interrupt")));
    }
    assert_eq!(third["status"], "queued");
    let others = json!({"agent": "demo", "input": "x", "if_busy": "reject"});
    assert_eq!(world.post("/v1/turns", &others).await.status(), 202, "conversations do not block each other");
}

#[tokio::test(flavor = "multi_thread")]
async fn past_its_limits_a_new_turn_is_told_to_come_back() {
    let world = World::with(|config| {
        config.conversation_depth_max = 2;
        config.queue_max = 3;
    })
    .await;
    let first = world.make_turn(json!({})).await;
    world.make_turn(json!({"conversation_id": first["conversation_id"]})).await;
    let body = json!({"agent": "demo", "input": "x", "conversation_id": first["conversation_id"]});
    let full = world.post("/v1/turns", &body).await;
    assert_eq!(full.status(), 429);
    assert!(full.headers().contains_key("retry-after"));
    assert_eq!(problem(full).await["code"], "conversation_full");

    world.make_turn(json!({})).await;
    let full = world.post("/v1/turns", &json!({"agent": "demo", "input": "x"})).await;
    assert_eq!(full.status(), 429);
    assert_eq!(problem(full).await["code"], "queue_full");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_prefers_to_wait_gets_the_ended_turn() {
    let world = World::start().await;
    let ask = world.request(Method::POST, "/v1/turns").header("prefer", "wait=15");
    let ask = ask.json(&json!({"agent": "demo", "input": "hello"})).send();
    let work = async {
        super::world::until("the turn waits", || async {
            let list: Value = world.get("/v1/turns?status=queued").await.json().await.unwrap();
            !list["items"].as_array().unwrap().is_empty()
        })
        .await;
        world.run_next().await.complete("done").await;
    };
    let (answer, ()) = tokio::join!(ask, work);
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    let turn: Value = answer.json().await.unwrap();
    assert_eq!((&turn["status"], &turn["text"]), (&json!("completed"), &json!("done")));

    let ask = world.request(Method::POST, "/v1/turns").header("prefer", "wait=0");
    let answer = ask.json(&json!({"agent": "demo", "input": "hello"})).send().await.unwrap();
    assert_eq!(answer.status(), 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_paged_newest_first() {
    let world = World::start().await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(world.make_turn(json!({})).await["id"].clone());
    }
    world.run_next().await;
    let list: Value = world.get("/v1/turns?limit=2").await.json().await.unwrap();
    assert_eq!([&list["items"][0]["id"], &list["items"][1]["id"]], [&made[2], &made[1]]);
    let next = list["next"].as_str().unwrap();
    let rest: Value = world.get(&format!("/v1/turns?limit=2&cursor={next}")).await.json().await.unwrap();
    assert_eq!(rest["items"][0]["id"], made[0]);
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));

    for (filter, count) in [
        ("status=running", 1),
        ("status=queued", 2),
        ("status=failed", 0),
        ("agent=demo", 3),
        ("agent=other", 0),
        ("overdue=true", 0),
        ("overdue=false", 3),
    ] {
        let list: Value = world.get(&format!("/v1/turns?{filter}")).await.json().await.unwrap();
        assert_eq!(list["items"].as_array().unwrap().len(), count, "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_trace_is_the_turns() {
    let world = World::start().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (sent, is_kept) in [(trace, true), ("nonsense", false)] {
        let ask = world.request(Method::POST, "/v1/turns").header("traceparent", sent);
        let answer = ask.json(&json!({"agent": "demo", "input": "x"})).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        let claims = world.store.claim(&[Runtime::Process], &Ready::default(), FRONT, 1).await.unwrap();
        let kept = &claims[0].assignment.traceparent;
        assert_eq!(kept.split('-').nth(1) == trace.split('-').nth(1), is_kept);
        assert!(lastword::telemetry::trace_id(kept).is_some());
    }
}
