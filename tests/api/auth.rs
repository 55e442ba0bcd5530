//! Who may call which route.

use reqwest::Method;
use serde_json::json;

use super::world::{OPERATOR, World, problem};

#[tokio::test(flavor = "multi_thread")]
async fn each_route_opens_to_its_own_tokens() {
    let world = World::with(|config| config.client_tokens = vec!["client-token".to_owned()]).await;
    let turn = json!({"agent": "demo", "input": "x"});
    let spec = json!({"runtime": "process", "command": ["x"]});
    let nobody = "0".repeat(32);
    let conversation = format!("/v1/conversations/conv_{nobody}");
    let stop = format!("/v1/workers/wrk_{nobody}/stop");
    let (token, revoke) = (json!({"agent": "nobody"}), format!("/v1/worker-tokens/wtk_{nobody}"));
    for (method, path, body, [anybody, client, operator]) in [
        (Method::POST, "/v1/turns", Some(&turn), [401, 202, 202]),
        (Method::GET, "/v1/turns", None, [401, 200, 200]),
        (Method::GET, "/v1/agents", None, [401, 200, 200]),
        (Method::GET, "/v1/agents/demo", None, [401, 200, 200]),
        (Method::GET, "/v1/conversations", None, [401, 200, 200]),
        (Method::PUT, "/v1/agents/a", Some(&spec), [401, 403, 201]),
        (Method::DELETE, "/v1/agents/nobody", None, [401, 403, 404]),
        (Method::GET, "/v1/replicas", None, [401, 403, 200]),
        (Method::GET, "/v1/workers", None, [401, 403, 200]),
        (Method::POST, &stop, None, [401, 403, 404]),
        (Method::GET, "/v1/worker-tokens", None, [401, 403, 200]),
        (Method::POST, "/v1/worker-tokens", Some(&token), [401, 403, 404]),
        (Method::DELETE, &revoke, None, [401, 403, 404]),
        (Method::DELETE, &conversation, None, [401, 403, 404]),
        (Method::GET, "/livez", None, [200, 200, 200]),
        (Method::GET, "/readyz", None, [200, 200, 200]),
        (Method::GET, "/openapi.json", None, [200, 200, 200]),
        (Method::GET, "/docs", None, [200, 200, 200]),
        (Method::GET, "/", None, [200, 200, 200]),
    ] {
        let tokens = [
            (Some("wrong"), anybody),
            (None, anybody),
            (Some("client-token"), client),
            (Some(OPERATOR), operator),
        ];
        for (token, status) in tokens {
            let mut ask = world.request(method.clone(), path);
            if let Some(token) = token {
                ask = ask.bearer_auth(token);
            }
            if let Some(body) = body {
                ask = ask.json(body);
            }
            let answer = ask.send().await.unwrap();
            assert_eq!(answer.status(), status, "{method} {path} with {token:?}");
            if status == 401 {
                assert!(answer.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
                assert_eq!(problem(answer).await["code"], "unauthorized");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_client_tokens_a_loopback_gateway_still_guards_operators_routes() {
    let world = World::with(|config| config.operator_tokens.clear()).await;
    assert_eq!(world.get("/v1/turns").await.status(), 200);
    for path in ["/v1/replicas", "/v1/workers"] {
        assert_eq!(world.get(path).await.status(), 401, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_development_gateway_answers_no_page_of_another_site() {
    let world = World::with(|config| config.dev = true).await;
    for (name, value, status) in [
        ("host", "evil.example", 403),
        ("host", "localhost:1", 200),
        ("origin", "http://evil.example", 403),
        ("origin", "null", 403),
        ("origin", "http://localhost:3000", 200),
    ] {
        let answer = world.request(Method::GET, "/v1/turns").header(name, value).send().await.unwrap();
        assert_eq!(answer.status(), status, "{name}: {value}");
    }
}
