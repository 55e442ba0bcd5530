//! One client token takes all that it can get: another token and an operator are still served.

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{Cluster, OPERATOR, PATIENCE, Plan, eventually};

pub const FLOODER: &str = "token-of-the-flooder";
pub const NEIGHBOUR: &str = "token-of-the-neighbour";
/// Others than the flooder.
const OTHERS: [&str; 2] = [NEIGHBOUR, OPERATOR];

/// A gateway under attack, and one who asks it things.
pub struct Scene {
    pub cluster: Cluster,
    http: reqwest::Client,
}

impl Scene {
    /// A replica with two client tokens, told this too.
    pub async fn with(settings: &[(&str, &str)]) -> Scene {
        let tokens = format!("{FLOODER},{NEIGHBOUR}");
        let mut env = vec![("LASTWORD_CLIENT_TOKENS".to_owned(), tokens)];
        env.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let cluster = Cluster::with(Plan { replicas: 1, env, ..Plan::default() }).await;
        cluster.demo_agent("demo", json!({})).await;
        Scene { cluster, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    pub fn ask(&self, token: &str, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.cluster.url(0))).bearer_auth(token)
    }

    async fn post(&self, token: &str, path: &str, body: &Value) -> Response {
        self.ask(token, Method::POST, path).json(body).timeout(PATIENCE).send().await.unwrap()
    }

    /// A conversation without a turn, whose events never end.
    async fn conversation(&self) -> String {
        let made = self.post(OPERATOR, "/v1/conversations", &json!({"agent": "demo"})).await;
        assert_eq!(made.status(), StatusCode::CREATED);
        made.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
    }

    async fn stream(&self, token: &str, conversation: &str) -> Response {
        let path = format!("/v1/conversations/{conversation}/events");
        self.ask(token, Method::GET, &path).header("accept", "text/event-stream").send().await.unwrap()
    }

    /// How much of a bound is in use, as the alert on bounds sees it.
    pub async fn used(&self, bound: &str) -> u64 {
        let page = self.ask(OPERATOR, Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
        let name = format!("lastword_bound_used{{bound=\"{bound}\"}} ");
        let used = page.lines().find_map(|line| line.strip_prefix(&name));
        used.unwrap_or_else(|| panic!("no {name}: {page}")).parse().unwrap()
    }

    /// A turn of this token's that is made, followed and completed.
    pub async fn is_served(&self, token: &str) {
        let body = json!({"agent": "demo", "input": "/echo hello", "stream": true});
        let answer = self.post(token, "/v1/turns", &body).await;
        assert_eq!(answer.status(), StatusCode::OK, "{token}");
        let said = answer.text().await.unwrap();
        assert!(said.contains("event: completed"), "{token}: {said}");
    }
}

/// Refused, since the token has its share of this.
pub async fn is_refused(answer: Response, share: &str) {
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS, "{answer:?}");
    assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem: Value = answer.json().await.unwrap();
    assert_eq!((&problem["code"], &problem["share"]), (&json!("share_exceeded"), &json!(share)), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_takes_all_streams_leaves_some_for_others() {
    let scene = Scene::with(&[("LASTWORD_STREAMS_MAX", "10")]).await;
    let conversation = scene.conversation().await;
    let mut taken = Vec::new();
    for _ in 0..8 {
        let stream = scene.stream(FLOODER, &conversation).await;
        assert_eq!(stream.status(), StatusCode::OK);
        taken.push(stream);
    }
    is_refused(scene.stream(FLOODER, &conversation).await, "streams").await;
    let body = json!({"agent": "demo", "input": "/echo hello", "stream": true});
    is_refused(scene.post(FLOODER, "/v1/turns", &body).await, "streams").await;
    for token in OTHERS {
        scene.is_served(token).await;
    }
    taken.pop();
    let again = eventually("a seat is free again", async || {
        Some(scene.stream(FLOODER, &conversation).await).filter(|stream| stream.status() == StatusCode::OK)
    });
    drop(again.await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_requests_all_wait_leaves_room_for_others() {
    let scene = Scene::with(&[("LASTWORD_WAITS_MAX", "5")]).await;
    let path = format!("/v1/conversations/{}/events?wait=60", scene.conversation().await);
    let mut waiting = JoinSet::new();
    for _ in 0..4 {
        waiting.spawn(scene.ask(FLOODER, Method::GET, &path).send());
    }
    eventually("the flooder has its share", async || (scene.used("waits").await == 4).then_some(())).await;
    is_refused(scene.ask(FLOODER, Method::GET, &path).send().await.unwrap(), "waits").await;
    let body = json!({"agent": "demo", "input": "/echo hello"});
    let wait =
        |token: &str| scene.ask(token, Method::POST, "/v1/turns").header("prefer", "wait=30").json(&body);
    is_refused(wait(FLOODER).send().await.unwrap(), "waits").await;
    for token in OTHERS {
        let answer = wait(token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{token}");
        assert_eq!(answer.json::<Value>().await.unwrap()["status"], "completed", "{token}");
    }
    // Whoever does not wait takes nothing.
    assert_eq!(scene.post(FLOODER, "/v1/turns", &body).await.status(), StatusCode::ACCEPTED);
    waiting.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_makes_so_many_conversations_and_others_make_theirs() {
    let scene = Scene::with(&[("LASTWORD_TOKEN_ROWS_PER_MINUTE_MAX", "6")]).await;
    let body = json!({"agent": "demo"});
    let mut made = 0;
    let refused = loop {
        let answer = scene.post(FLOODER, "/v1/conversations", &body).await;
        if answer.status() != StatusCode::CREATED {
            break answer;
        }
        made += 1;
        assert!(made < 1000, "without an end");
    };
    assert!(made >= 10, "{made}");
    is_refused(refused, "rows").await;
    let turn = json!({"agent": "demo", "input": "/echo hello"});
    is_refused(scene.post(FLOODER, "/v1/turns", &turn).await, "rows").await;
    for token in OTHERS {
        assert_eq!(scene.post(token, "/v1/conversations", &body).await.status(), StatusCode::CREATED);
        scene.is_served(token).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_turns_hang_leaves_places_and_the_queue_to_others() {
    let settings = [("LASTWORD_TURNS_MAX", "5"), ("LASTWORD_QUEUE_MAX", "20")];
    let scene = Scene::with(&settings).await;
    let hang = json!({"agent": "demo", "input": "/hang"});
    let mut made = Vec::new();
    let refused = loop {
        let answer = scene.post(FLOODER, "/v1/turns", &hang).await;
        if answer.status() != StatusCode::ACCEPTED {
            break answer;
        }
        made.push(answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned());
        assert!(made.len() < 100, "without an end");
    };
    is_refused(refused, "queue").await;
    // Its share of the places and of the queue.
    assert!((16..=20).contains(&made.len()), "{}", made.len());
    for token in OTHERS {
        scene.is_served(token).await;
    }
    // A repeat of one that was accepted is told so, however many wait.
    let keyed =
        |key: &str| scene.ask(FLOODER, Method::POST, "/v1/turns").header("idempotency-key", key).json(&hang);
    is_refused(keyed("new").send().await.unwrap(), "queue").await;
    // What ends makes room for the same token's.
    cancel(&scene, &made[..2]).await;
    let again = eventually("its next turn is taken", async || {
        let answer = keyed("again").send().await.unwrap();
        (answer.status() == StatusCode::ACCEPTED).then_some(answer)
    });
    let again: Value = again.await.json().await.unwrap();
    let repeat: Value = keyed("again").send().await.unwrap().json().await.unwrap();
    assert_eq!(repeat["id"], again["id"]);
    made.push(again["id"].as_str().unwrap().to_owned());
    eventually("its turns run in the places that are free", async || {
        let page = scene.cluster.get(0, "/v1/turns?status=running&limit=50").await;
        (page["items"].as_array().unwrap().len() == 4).then_some(())
    })
    .await;
    cancel(&scene, &made[2..]).await;
}

async fn cancel(scene: &Scene, turns: &[String]) {
    for turn in turns {
        let path = format!("/v1/turns/{turn}/cancel");
        assert!(scene.post(OPERATOR, &path, &json!({})).await.status().is_success());
    }
}
