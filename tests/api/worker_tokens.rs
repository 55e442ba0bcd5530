//! Worker tokens: minted, shown once, listed, revoked; and which token a worker belongs to.

use lastword::agent::AgentSpec;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::world::{OPERATOR, World, problem};

const PATH: &str = "/v1/worker-tokens";

async fn world() -> World {
    let world = World::with(|config| {
        config.worker_tokens = vec!["one-worker-token".to_owned(), "other-worker-token".to_owned()];
    })
    .await;
    for agent in ["far", "other"] {
        world.store.put_agent(agent, Some(&AgentSpec::remote())).await.unwrap();
    }
    world
}

async fn ask(world: &World, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
    let mut request = world.request(method, path).bearer_auth(OPERATOR);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    (answer.status(), answer.json().await.unwrap_or(Value::Null))
}

/// What a worker with this token is answered that wants to serve this agent, as this worker.
async fn register(world: &World, token: &str, agent: &str, worker: Option<&str>) -> u16 {
    let body = json!({"agent": agent, "worker_id": worker});
    let asked = world.request(Method::POST, "/v1/worker/register").bearer_auth(token).json(&body);
    asked.send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_token_is_told_once_and_ends_when_it_is_revoked() {
    let world = world().await;
    let wanted = json!({"agent": "far", "expires": "90d"});
    let (status, minted) = ask(&world, Method::POST, PATH, Some(wanted)).await;
    assert_eq!(status, StatusCode::CREATED, "{minted}");
    let (id, token) = (minted["id"].as_str().unwrap(), minted["token"].as_str().unwrap());
    assert!(id.starts_with("wtk_") && token.starts_with("lww_"), "{minted}");
    assert!(minted["conversation_id"].is_null() && minted["expires_at"].is_string(), "{minted}");
    let (_, second) = ask(&world, Method::POST, PATH, Some(json!({"agent": "other"}))).await;
    assert!(second["expires_at"].is_null(), "{second}");

    let (_, listed) = ask(&world, Method::GET, PATH, None).await;
    let ids: Vec<&str> =
        listed["items"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [second["id"].as_str().unwrap(), id], "the newest first");
    assert!(!listed.to_string().contains(token) && !listed.to_string().contains("lww_"), "{listed}");

    // 503: let in, but nothing is taken on here.
    assert_eq!(register(&world, token, "far", None).await, 503);
    assert_eq!(register(&world, token, "other", None).await, 403);
    let (status, _) = ask(&world, Method::DELETE, &format!("{PATH}/{id}"), None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(register(&world, token, "far", None).await, 401);
    let (status, gone) = ask(&world, Method::DELETE, &format!("{PATH}/{id}"), None).await;
    assert_eq!((status, &gone["code"]), (StatusCode::NOT_FOUND, &json!("worker_token_not_found")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_token_that_makes_no_sense_is_refused_by_name() {
    let world = world().await;
    let nobodys = format!("conv_{}", "0".repeat(32));
    for (body, status, code) in [
        (json!({"agent": "nobody"}), 404, "agent_not_found"),
        // Its workers do not call.
        (json!({"agent": "demo"}), 404, "agent_not_found"),
        (json!({"agent": "far", "conversation_id": nobodys}), 404, "conversation_not_found"),
        (json!({"agent": "far", "expires": "soon"}), 400, "invalid_request"),
        (json!({"agent": "far", "expires": "0s"}), 400, "invalid_request"),
        (json!({"agent": "far", "expires": "999999999years"}), 400, "invalid_request"),
        (json!({"agent": "far", "scope": "all"}), 400, "invalid_request"),
    ] {
        let (given, answer) = ask(&world, Method::POST, PATH, Some(body.clone())).await;
        assert_eq!((given.as_u16(), &answer["code"]), (status, &json!(code)), "{body}: {answer}");
    }
    let answer = world.request(Method::POST, PATH).bearer_auth("one-worker-token");
    let answer = answer.json(&json!({"agent": "far"})).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(problem(answer).await["code"], "unauthorized");
}
