//! Orders: cancel, answer, retry, stop, delete.

use lastword::event::Kind;
use reqwest::Method;
use serde_json::{Value, json};

use super::world::{World, problem};

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_a_waiting_turn_and_asks_a_running_one() {
    let world = World::start().await;
    let turn = world.make_turn(json!({})).await;
    let path = format!("/v1/turns/{}/cancel", turn["id"].as_str().unwrap());
    let answer = world.request(Method::POST, &path).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let cancelled: Value = answer.json().await.unwrap();
    assert_eq!(cancelled["status"], "cancelled");
    let again = world.post(&path, &json!({})).await;
    assert_eq!(again.status(), 200);
    assert_eq!(again.json::<Value>().await.unwrap(), cancelled);
    assert_eq!(problem(world.post(&path, &json!({"why": 1})).await).await["field"], "why");

    let turn = world.make_turn(json!({})).await;
    let run = world.run_next().await;
    let path = format!("/v1/turns/{}/cancel", turn["id"].as_str().unwrap());
    for _ in 0..2 {
        let answer = world.post(&path, &json!({})).await;
        assert_eq!(answer.status(), 202);
        assert_eq!(answer.json::<Value>().await.unwrap()["status"], "running");
    }
    assert_eq!(world.store.commands(&[run.turn]).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_takes_one_answer_while_its_turn_runs() {
    let world = World::start().await;
    let turn = world.make_turn(json!({})).await;
    let path = format!("/v1/turns/{}/answers", turn["id"].as_str().unwrap());
    let answer = json!({"ask_id": "ask_1", "answer": {"choice": "yes"}});
    assert_eq!(problem(world.post(&path, &answer).await).await["code"], "ask_not_found");
    let mut run = world.run_next().await;
    run.say(Kind::Ask, r#"{"ask_id":"ask_1","prompt":"sure?"}"#).await;
    assert_eq!(problem(world.post(&path, &json!({"ask_id": "ask_1"})).await).await["field"], "answer");
    let null = json!({"ask_id": "ask_1", "answer": null});
    assert_eq!(problem(world.post(&path, &null).await).await["field"], "answer");

    assert_eq!(world.post(&path, &answer).await.status(), 202);
    let orders = world.store.commands(&[run.turn]).await.unwrap();
    assert!(format!("{orders:?}").contains("choice"), "{orders:?}");
    let refused = world.post(&path, &answer).await;
    assert_eq!(refused.status(), 409);
    assert_eq!(problem(refused).await["code"], "ask_answered");

    run.say(Kind::Ask, r#"{"ask_id":"ask_2","prompt":"really?"}"#).await;
    run.complete("done").await;
    let late = world.post(&path, &json!({"ask_id": "ask_2", "answer": 1})).await;
    assert_eq!(late.status(), 409);
    assert_eq!(problem(late).await["code"], "turn_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_a_new_turn_that_cites_the_old_one() {
    let world = World::start().await;
    let old = world.make_turn(json!({"input": {"text": "again"}, "metadata": {"a": 1}})).await;
    let path = format!("/v1/turns/{}/retry", old["id"].as_str().unwrap());
    let early = world.request(Method::POST, &path).send().await.unwrap();
    assert_eq!(early.status(), 409);
    assert_eq!(problem(early).await["code"], "turn_open");
    world.run_next().await.complete("done").await;

    let ask = || world.request(Method::POST, &path).header("idempotency-key", "retry-1").send();
    let answer = ask().await.unwrap();
    assert_eq!(answer.status(), 202);
    let new: Value = answer.json().await.unwrap();
    assert_eq!((&new["retry_of"], &new["ordinal"]), (&old["id"], &json!(2)));
    for kept in ["agent", "conversation_id", "metadata"] {
        assert_eq!(new[kept], old[kept], "{kept}");
    }
    let repeat: Value = ask().await.unwrap().json().await.unwrap();
    assert_eq!(repeat["id"], new["id"]);
    let (_, _, input, _) =
        world.store.input(new["id"].as_str().unwrap().parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(input, r#"{"text":"again"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_conversation_cancels_its_turns_and_takes_no_more() {
    let world = World::start().await;
    let made = world.post("/v1/conversations", &json!({"agent": "demo"})).await;
    assert_eq!(made.status(), 201);
    let path = made.headers()["location"].to_str().unwrap().to_owned();
    let made: Value = made.json().await.unwrap();
    assert_eq!((&made["turns"], &made["agent"]), (&json!(0), &json!("demo")));
    let fields = json!({"conversation_id": made["id"]});
    world.make_turn(fields.clone()).await;
    let waiting = world.make_turn(fields).await;
    let list: Value = world.get(&format!("{path}/turns")).await.json().await.unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 2);

    let deleted = world.as_operator(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(deleted.status(), 204);
    assert_eq!(world.get(&path).await.status(), 404);
    let events = format!("{}?limit=9", waiting["events_url"].as_str().unwrap());
    assert_eq!(world.get(&events).await.status(), 404, "it was cancelled, and is told of no more");
    let body = json!({"agent": "demo", "input": "x", "conversation_id": made["id"]});
    assert_eq!(problem(world.post("/v1/turns", &body).await).await["code"], "conversation_not_found");
    let again = world.as_operator(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(again.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_put_revisioned_and_deleted() {
    let world = World::start().await;
    let spec = json!({"runtime": "process", "command": ["run"], "env": {"KEY": "secret"}});
    let put =
        async |spec: &Value| world.as_operator(Method::PUT, "/v1/agents/a").json(spec).send().await.unwrap();
    assert_eq!(put(&spec).await.status(), 201);
    let same = put(&spec).await;
    assert_eq!(same.status(), 200);
    assert_eq!(same.json::<Value>().await.unwrap()["revision"], 1);
    let newer: Value =
        put(&json!({"runtime": "process", "command": ["run", "2"]})).await.json().await.unwrap();
    assert_eq!((&newer["revision"], &newer["spec"]["command"]), (&json!(2), &json!(["run", "2"])));

    for (spec, field) in [
        (json!({"runtime": "process", "command": []}), "command"),
        (json!({"runtime": "process", "command": ["x"], "colour": 1}), "colour"),
        (json!({"runtime": "process", "command": ["x"], "timeouts": {"cap": "soon"}}), "timeouts.cap"),
        (json!({"runtime": "steam", "command": ["x"]}), "runtime"),
        (json!({"runtime": "kubernetes", "command": ["x"], "pod": {"image": "a b"}}), "pod.image"),
        // No cluster was given to this gateway.
        (json!({"runtime": "kubernetes", "command": ["x"], "pod": {"image": "a"}}), "runtime"),
    ] {
        let refused = put(&spec).await;
        assert_eq!(refused.status(), 400);
        assert_eq!(problem(refused).await["field"], field, "{spec}");
    }

    put(&spec).await;
    let seen: Value = world.get("/v1/agents/a").await.json().await.unwrap();
    assert_eq!((&seen["spec"]["env"], &seen["spec"]["runtime"]), (&Value::Null, &json!("process")));
    let list: Value = world.get("/v1/agents?limit=1").await.json().await.unwrap();
    assert_eq!((&list["items"][0]["name"], &list["next"]), (&json!("a"), &json!("a")));
    let list: Value = world.get("/v1/agents?limit=1&cursor=a").await.json().await.unwrap();
    assert_eq!((&list["items"][0]["name"], &list["next"]), (&json!("demo"), &Value::Null));

    let delete = || world.as_operator(Method::DELETE, "/v1/agents/a").send();
    assert_eq!(delete().await.unwrap().status(), 204);
    assert_eq!(delete().await.unwrap().status(), 404);
    assert_eq!(world.get("/v1/agents/a").await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_replicas_and_workers_and_stop_one() {
    let world = World::start().await;
    let list = async |path: &str| -> Value {
        world.as_operator(Method::GET, path).send().await.unwrap().json().await.unwrap()
    };
    let replicas = list("/v1/replicas").await;
    let me = &replicas["items"][0];
    assert_eq!((&me["url"], &me["state"]), (&json!(world.url), &json!("ready")));
    assert_eq!((&me["pid"], &me["turns"]), (&json!(std::process::id()), &json!(0)));

    let turn = world.make_turn(json!({})).await;
    let id = lastword::id::WorkerId(world.store.clock().mint());
    let new = lastword::store::workers::NewWorker {
        id,
        agent: "demo".to_owned(),
        agent_revision: 1,
        runtime: lastword::agent::Runtime::Process,
        conversation: Some(turn["conversation_id"].as_str().unwrap().parse().unwrap()),
        pid: 7,
    };
    world.store.worker_started(&new).await.unwrap();
    assert_eq!(list("/v1/workers").await["items"][0]["state"], "starting");
    world.store.worker_ready(id).await.unwrap();
    let seen = list("/v1/workers").await["items"][0].clone();
    assert_eq!((&seen["state"], &seen["pid"], &seen["replica_id"]), (&json!("idle"), &json!(7), &me["id"]));

    let stop = || world.as_operator(Method::POST, &format!("/v1/workers/{id}/stop")).send();
    assert_eq!(stop().await.unwrap().status(), 202);
    assert_eq!(world.store.stops().await.unwrap(), [id]);
    world.store.worker_ended(id, "exit code 1", "oh\0no").await.unwrap();
    assert_eq!(stop().await.unwrap().status(), 200);
    let ended = list(&format!("/v1/workers/{id}")).await;
    assert_eq!((&ended["state"], &ended["exit"]), (&json!("ended"), &json!("exit code 1")));
    assert_eq!(ended["stderr_tail"], "oh\u{fffd}no");
    assert_eq!(list("/v1/workers").await["items"], json!([]));
}
