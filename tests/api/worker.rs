//! The routes of remote workers: who may call them, and refusals by name. No engine runs behind these handlers, so no
//! worker is admitted for long; `cluster_remote` tests admitted workers.

use lastword::{
    agent::AgentSpec,
    id::{TurnId, WorkerId},
    rendezvous::Line,
    store::worker_tokens::Grant,
    token::{self, Purpose},
};
use lastword_devkit::postgres::StopMode;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::world::{OPERATOR, World, problem};

const WORKERS: &str = "worker-token";

async fn world() -> World {
    let world = World::with(|config| {
        config.worker_tokens = vec![WORKERS.to_owned()];
        config.client_tokens = vec!["client-token".to_owned()];
    })
    .await;
    world.store.put_agent("far", Some(&AgentSpec::remote())).await.unwrap();
    world
}

async fn ask(world: &World, token: &str, route: &str, body: &Value) -> Response {
    let path = format!("/v1/worker/{route}");
    world.request(Method::POST, &path).bearer_auth(token).json(body).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_workers_token_opens_the_routes_of_workers() {
    let world = world().await;
    let nobody = WorkerId(uuid::Uuid::nil());
    let turn = format!("turns/turn_{}/messages?epoch=1&n=1", "0".repeat(32));
    for (route, body, is_found) in [
        ("register", json!({"agent": "far"}), StatusCode::SERVICE_UNAVAILABLE),
        ("claims", json!({"worker_id": nobody, "room": 1}), StatusCode::NOT_FOUND),
        ("beat", json!({"worker_id": nobody, "turns": []}), StatusCode::NOT_FOUND),
    ] {
        for token in ["wrong", "client-token", OPERATOR] {
            let answer = ask(&world, token, route, &body).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{route} with {token}");
            assert_eq!(problem(answer).await["code"], "unauthorized");
        }
        assert_eq!(ask(&world, WORKERS, route, &body).await.status(), is_found, "{route}");
    }
    let bare = world.request(Method::POST, &format!("/v1/worker/{turn}")).send().await.unwrap();
    assert_eq!(bare.status(), StatusCode::UNAUTHORIZED);
    for path in ["/v1/turns", "/v1/workers", "/v1/agents"] {
        let answer = world.request(Method::GET, path).bearer_auth(WORKERS).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minted_token_is_good_for_what_it_was_minted_for() {
    let world = world().await;
    world.store.put_agent("other", Some(&AgentSpec::remote())).await.unwrap();
    let turn = world.request(Method::POST, "/v1/turns").bearer_auth(OPERATOR);
    let turn: Value =
        turn.json(&json!({"agent": "far", "input": "x"})).send().await.unwrap().json().await.unwrap();
    let conversation = turn["conversation_id"].as_str().unwrap();
    let bound = conversation.parse().unwrap();
    let grant = Grant { agent: "far".to_owned(), conversation: Some(bound), expires_at: None };
    let token = world.store.mint_worker_token(&grant).await.unwrap();
    let register = async |agent: &str, conversation: Option<&str>| {
        let body = json!({"agent": agent, "conversation_id": conversation});
        ask(&world, &token, "register", &body).await.status().as_u16()
    };
    // 503: let in, but nothing is taken on here.
    assert_eq!(register("far", Some(conversation)).await, 503);
    assert_eq!(register("far", None).await, 503);
    assert_eq!(register("other", Some(conversation)).await, 403);
    assert_eq!(register("far", Some(&format!("conv_{}", "0".repeat(32)))).await, 403);
    assert_eq!(world.store.revoke_worker_tokens(bound).await.unwrap(), 1);
    assert_eq!(register("far", Some(conversation)).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_says_wrong_is_refused_by_name() {
    let world = world().await;
    let worker = format!("wrk_{}", "0".repeat(32));
    for (route, body, field) in [
        ("register", json!({}), "agent"),
        ("register", json!({"agent": "../x"}), "agent"),
        ("register", json!({"agent": "far", "conversation_id": "x"}), "conversation_id"),
        ("register", json!({"agent": "far", "worker_id": "x"}), "worker_id"),
        ("register", json!({"agent": "far", "name": "x".repeat(201)}), "name"),
        ("register", json!({"agent": "far", "colour": 1}), "colour"),
        ("claims", json!({"worker_id": worker}), "room"),
        ("claims", json!({"room": 1}), "worker_id"),
        ("beat", json!({"worker_id": worker}), "turns"),
        ("beat", json!({"worker_id": worker, "turns": [{"turn_id": "x", "epoch": 1}]}), "turns[0].turn_id"),
    ] {
        let answer = ask(&world, WORKERS, route, &body).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{route} {body}");
        assert_eq!(problem(answer).await["field"], field, "{route} {body}");
    }
    let turn = TurnId(uuid::Uuid::nil());
    let token = token::mint(Purpose::Turn);
    let say = async |query: &str, kind: &str, body: Vec<u8>| {
        let path = format!("/v1/worker/turns/{turn}/messages{query}");
        let asked = world.request(Method::POST, &path).bearer_auth(&token).header("content-type", kind);
        asked.body(body).send().await.unwrap()
    };
    let ndjson = "application/x-ndjson";
    for (query, field) in [
        ("", "epoch"),
        ("?epoch=1", "n"),
        ("?epoch=0&n=1", "epoch"),
        ("?epoch=1&n=0", "n"),
        ("?epoch=1&n=1&x=1", "x"),
    ] {
        let answer = say(query, ndjson, Vec::new()).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{query}");
        assert_eq!(problem(answer).await["field"], field, "{query}");
    }
    let answer = say("?epoch=1&n=1", ndjson, b"{}\n".to_vec()).await;
    assert_eq!(problem(answer).await["code"], "go_elsewhere");
    // A turn that is held here.
    let (line, _batches) = Line::new((turn, 1), WorkerId(uuid::Uuid::nil()), token::hash(&token), 0);
    world.rendezvous.open(line);
    let answer = say("?epoch=1&n=1", "application/json", b"{}".to_vec()).await;
    assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let answer = say("?epoch=1&n=1", ndjson, vec![b'x'; 2 * 1024 * 1024 + 1]).await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let answer = say("?epoch=1&n=1", ndjson, b"{}\n".repeat(4097)).await;
    assert_eq!(problem(answer).await["field"], "body");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_token_is_refused_without_a_look_at_the_database() {
    let world = World::alone(|config| config.worker_tokens = vec![WORKERS.to_owned()]).await;
    world.rendezvous.set_takes_turns(true);
    world.server.lock().unwrap().stop(StopMode::Immediate).unwrap();
    let nobody = WorkerId(uuid::Uuid::nil());
    let messages = format!("turns/{}/messages?epoch=1&n=1", TurnId(nobody.0));
    let cut_off = |token: String| token[..52].to_owned();
    for (route, body, purpose, other) in [
        ("register", json!({"agent": "far"}), Purpose::Worker, Purpose::Turn),
        ("claims", json!({"worker_id": nobody, "room": 1}), Purpose::Worker, Purpose::Turn),
        ("beat", json!({"worker_id": nobody, "turns": []}), Purpose::Worker, Purpose::Turn),
        (&messages, json!({}), Purpose::Turn, Purpose::Worker),
    ] {
        for token in [cut_off(token::mint(purpose)), token::mint(other)] {
            let answer = ask(&world, &token, route, &body).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{route} with {token}");
        }
        // Such a one is looked up.
        let answer = ask(&world, &token::mint(purpose), route, &body).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{route}");
    }
}
