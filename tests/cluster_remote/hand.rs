//! A scripted worker that speaks the HTTP protocol directly, correctly or not.

use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE, WORKERS, eventually};

/// A worker written by hand.
pub struct Hand {
    http: Client,
    urls: Vec<String>,
    token: String,
    pub id: String,
}

/// A turn that it was offered.
#[derive(Debug, Clone)]
pub struct Offer {
    pub turn: String,
    pub epoch: i64,
    pub token: String,
    pub json: Value,
}

impl Hand {
    /// A worker that is registered at replica `i`.
    pub async fn register(cluster: &Cluster, i: usize, agent: &str) -> Hand {
        let http = Client::builder().no_proxy().build().unwrap();
        let urls = (0..cluster.replicas()).map(|i| cluster.url(i)).collect();
        let mut hand = Hand { http, urls, token: WORKERS.to_owned(), id: String::new() };
        // A replica is ready a moment before it takes on turns.
        let answer = eventually("the replica lets workers in", async || {
            let (status, answer) = hand.call(i, "register", json!({"agent": agent})).await;
            assert!(status == StatusCode::OK || status == StatusCode::SERVICE_UNAVAILABLE, "{answer}");
            (status == StatusCode::OK).then_some(answer)
        })
        .await;
        hand.id = answer["worker_id"].as_str().unwrap().to_owned();
        assert_eq!(answer["url"], hand.urls[i]);
        hand
    }

    /// The same worker at another replica.
    pub async fn register_again(&self, i: usize, agent: &str) {
        let body = json!({"agent": agent, "worker_id": self.id});
        let (status, answer) = self.call(i, "register", body).await;
        assert_eq!((status, &answer["worker_id"]), (StatusCode::OK, &json!(self.id)), "{answer}");
    }

    pub async fn call(&self, i: usize, route: &str, body: Value) -> (StatusCode, Value) {
        let asked = self.http.post(format!("{}/v1/worker/{route}", self.urls[i])).bearer_auth(&self.token);
        read(asked.json(&body).timeout(PATIENCE).send().await.unwrap()).await
    }

    /// The next turn.
    pub async fn offer(&self, i: usize) -> Offer {
        for _ in 0..10 {
            let body = json!({"worker_id": self.id, "room": 1, "wait_s": 5});
            let (status, answer) = self.call(i, "claims", body).await;
            if status == StatusCode::NO_CONTENT {
                continue;
            }
            assert_eq!(status, StatusCode::OK, "{answer}");
            let json = answer["turns"][0].clone();
            let text = |field: &str| json[field].as_str().unwrap().to_owned();
            let (turn, token) = (text("turn_id"), text("token"));
            return Offer { turn, epoch: json["epoch"].as_i64().unwrap(), token, json };
        }
        panic!("no turn was offered");
    }

    /// Whether there is none within a second.
    pub async fn is_offered_nothing(&self, i: usize) -> bool {
        let body = json!({"worker_id": self.id, "room": 1, "wait_s": 1});
        self.call(i, "claims", body).await.0 == StatusCode::NO_CONTENT
    }

    /// Posts messages of a turn, the first with the number `n`.
    pub async fn say(&self, i: usize, offer: &Offer, n: u64, messages: &[Value]) -> (StatusCode, Value) {
        self.say_with(i, offer, &offer.token, n, messages).await
    }

    pub async fn say_with(
        &self,
        i: usize,
        offer: &Offer,
        token: &str,
        n: u64,
        messages: &[Value],
    ) -> (StatusCode, Value) {
        let body: String = messages.iter().map(|message| format!("{message}\n")).collect();
        self.post(i, offer, token, n, body).await
    }

    /// Posts a body as it is.
    pub async fn say_text(&self, i: usize, offer: &Offer, n: u64, body: &str) -> (StatusCode, Value) {
        self.post(i, offer, &offer.token, n, body.to_owned()).await
    }

    async fn post(&self, i: usize, offer: &Offer, token: &str, n: u64, body: String) -> (StatusCode, Value) {
        let path = format!("turns/{}/messages?epoch={}&n={n}", offer.turn, offer.epoch);
        let asked = self.http.post(format!("{}/v1/worker/{path}", self.urls[i])).bearer_auth(token);
        let asked = asked.header("content-type", "application/x-ndjson").body(body);
        read(asked.timeout(PATIENCE).send().await.unwrap()).await
    }

    /// A beat that names these turns, told of these orders.
    pub async fn beat(&self, i: usize, offers: &[&Offer], told: &[&str], wait_ms: u64) -> Value {
        let turns: Vec<Value> = offers
            .iter()
            .map(|offer| json!({"turn_id": offer.turn, "epoch": offer.epoch, "told": told}))
            .collect();
        let body = json!({"worker_id": self.id, "turns": turns, "wait_ms": wait_ms});
        let (status, answer) = self.call(i, "beat", body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    /// Takes the next turn at replica `i`.
    pub async fn take(&self, i: usize) -> Offer {
        let offer = self.offer(i).await;
        let (status, answer) = self.say(i, &offer, 1, &[]).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        offer
    }

    /// A beat for a turn that breaks off in the middle.
    pub async fn break_off(&self, i: usize, offer: &Offer) {
        let turns = json!([{"turn_id": offer.turn, "epoch": offer.epoch}]);
        let body = json!({"worker_id": self.id, "turns": turns, "wait_ms": 5000});
        let asked = self.http.post(format!("{}/v1/worker/beat", self.urls[i])).bearer_auth(&self.token);
        let answer = asked.json(&body).timeout(Duration::from_millis(500)).send().await;
        assert!(answer.is_err_and(|why| why.is_timeout()));
    }
}

async fn read(answer: reqwest::Response) -> (StatusCode, Value) {
    let status = answer.status();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

pub fn delta(text: &str) -> Value {
    json!({"type": "delta", "text": text})
}

pub fn complete() -> Value {
    json!({"type": "complete"})
}
