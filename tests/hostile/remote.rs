//! Remote workers with a token that does not belong to them.

use std::time::{Duration, Instant};

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE, Plan, eventually, program};

/// Configured tokens, each of which lets any worker in.
const ONE: &str = "one-worker-token-of-a-test";
const OTHER: &str = "other-worker-token-of-a-test";
/// By when every replica refuses a token that has ended; with room for a machine that is busy.
const SOON: Duration = Duration::from_secs(5);

/// Two replicas, and two agents whose workers call.
async fn pair() -> Cluster {
    let env = vec![("LASTWORD_WORKER_TOKENS".to_owned(), format!("{ONE},{OTHER}"))];
    let cluster = Cluster::with(Plan { env, ..Plan::default() }).await;
    for agent in ["mine", "theirs"] {
        cluster.put_agent(agent, json!({"runtime": "remote"})).await;
    }
    cluster
}

async fn call(cluster: &Cluster, i: usize, token: &str, route: &str, body: Value) -> (StatusCode, Value) {
    let http = Client::builder().no_proxy().build().unwrap();
    let asked = http.post(format!("{}/v1/worker/{route}", cluster.url(i))).bearer_auth(token);
    let answer = asked.json(&body).timeout(PATIENCE).send().await.unwrap();
    let status = answer.status();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or(Value::Null))
}

/// Registers a worker at replica `i`; its id.
async fn register(cluster: &Cluster, i: usize, token: &str, agent: &str) -> String {
    // A replica is ready a moment before it takes on turns.
    let answer = eventually("the replica lets workers in", async || {
        let (status, answer) = call(cluster, i, token, "register", json!({"agent": agent})).await;
        assert!(matches!(status.as_u16(), 200 | 503), "{answer}");
        (status == StatusCode::OK).then_some(answer)
    })
    .await;
    answer["worker_id"].as_str().unwrap().to_owned()
}

/// Waits for a turn; its offer.
async fn offered(cluster: &Cluster, i: usize, token: &str, worker: &str) -> Value {
    eventually("a turn is offered", async || {
        let body = json!({"worker_id": worker, "room": 1, "wait_s": 5});
        let (status, answer) = call(cluster, i, token, "claims", body).await;
        assert!(status.is_success(), "{answer}");
        answer["turns"][0].is_object().then(|| answer["turns"][0].clone())
    })
    .await
}

/// Takes an offered turn.
async fn take(cluster: &Cluster, i: usize, offer: &Value) {
    let http = Client::builder().no_proxy().build().unwrap();
    let (turn, epoch) = (offer["turn_id"].as_str().unwrap(), &offer["epoch"]);
    let path = format!("{}/v1/worker/turns/{turn}/messages?epoch={epoch}&n=1", cluster.url(i));
    let asked = http.post(path).bearer_auth(offer["token"].as_str().unwrap());
    let answer = asked.header("content-type", "application/x-ndjson").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

async fn minted(cluster: &Cluster, wanted: Value) -> (String, String) {
    let (status, minted) = cluster.ask(0, Method::POST, "/v1/worker-tokens", Some(wanted)).await;
    assert_eq!(status, StatusCode::CREATED, "{minted}");
    let text = |field: &str| minted[field].as_str().unwrap().to_owned();
    (text("id"), text("token"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_token_opens_no_other_agent_and_no_other_worker() {
    let cluster = pair().await;
    let (_, mine) = minted(&cluster, json!({"agent": "mine"})).await;
    let (_, twin) = minted(&cluster, json!({"agent": "mine"})).await;
    let worker = register(&cluster, 0, &mine, "mine").await;
    let victim = register(&cluster, 0, ONE, "theirs").await;
    for i in [0, 1] {
        let (status, _) = call(&cluster, i, &mine, "register", json!({"agent": "theirs"})).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "another agent, at {i}");
        for (thief, agent, prey) in
            [(&*twin, "mine", &worker), (OTHER, "theirs", &victim), (OTHER, "mine", &worker)]
        {
            let body = json!({"agent": agent, "worker_id": prey});
            let (status, answer) = call(&cluster, i, thief, "register", body).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "another's worker, at {i}: {answer}");
        }
    }
    let turn = cluster.post(1, "theirs", "hello").await;
    for thief in [&*mine, OTHER] {
        for (route, body) in [
            ("claims", json!({"worker_id": victim, "room": 1, "wait_s": 1})),
            ("beat", json!({"worker_id": victim, "turns": [], "wait_ms": 0, "is_leaving": true})),
        ] {
            let (status, answer) = call(&cluster, 0, thief, route, body).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{route}: {answer}");
        }
    }
    // Its own token goes on as before, and has its turn.
    let offer = offered(&cluster, 0, ONE, &victim).await;
    assert_eq!(offer["turn_id"], turn.id);
    cluster.cancel(0, &turn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_ended_is_refused_by_every_replica_and_its_turns_end() {
    let cluster = pair().await;
    let (id, token) = minted(&cluster, json!({"agent": "mine"})).await;
    let (_, brief) = minted(&cluster, json!({"agent": "mine", "expires": "8s"})).await;
    let workers = [register(&cluster, 0, &token, "mine").await, register(&cluster, 1, &token, "mine").await];
    let expiring = register(&cluster, 1, &brief, "mine").await;
    let mut turns = Vec::new();
    for (i, worker) in workers.iter().enumerate() {
        let turn = cluster.post(0, "mine", "hello").await;
        take(&cluster, i, &offered(&cluster, i, &token, worker).await).await;
        turns.push(turn);
    }
    let (status, _) = cluster.ask(0, Method::DELETE, &format!("/v1/worker-tokens/{id}"), None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let revoked = Instant::now();
    for (i, worker) in workers.iter().enumerate() {
        eventually("its calls are refused", async || {
            let body = json!({"worker_id": worker, "turns": [], "wait_ms": 0});
            (call(&cluster, i, &token, "beat", body).await.0 == StatusCode::UNAUTHORIZED).then_some(())
        })
        .await;
        let events = cluster.watch(i, &turns[i]).await;
        assert_eq!(events.last().unwrap().code(), "worker_lost", "{events:?}");
        let (status, _) = call(&cluster, i, &token, "register", json!({"agent": "mine"})).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
    assert!(revoked.elapsed() < SOON, "it was refused after {:?}", revoked.elapsed());

    // One that expires ends as well, though its worker has registered before; and a poll that is open ends with it.
    let body = json!({"worker_id": expiring, "room": 1, "wait_s": 20});
    let (status, answer) = call(&cluster, 1, &brief, "claims", body).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{answer}");
    eventually("it is listed no more", async || {
        let listed = cluster.get(0, "/v1/worker-tokens").await;
        listed["items"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_mints_lists_and_revokes() {
    let cluster = pair().await;
    let run = |args: &[&str]| {
        let url = cluster.url(0);
        let mut command = std::process::Command::new(program());
        command.env("LASTWORD_TOKEN", crate::support::OPERATOR).env("LASTWORD_URL", url).arg("worker-tokens");
        let done = command.args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert!(done.status.success(), "{args:?}: {}", text(done.stderr));
        text(done.stdout)
    };
    let token = run(&["create", "--agent", "mine", "--expires", "90d"]);
    register(&cluster, 0, token.trim(), "mine").await;
    let listed = run(&["list", "--output", "json"]);
    assert!(!listed.contains(token.trim()), "{listed}");
    let listed: Value = serde_json::from_str(&listed).unwrap();
    run(&["revoke", listed["items"][0]["id"].as_str().unwrap()]);
    let (status, _) = call(&cluster, 0, token.trim(), "register", json!({"agent": "mine"})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
