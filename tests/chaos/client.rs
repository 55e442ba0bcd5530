//! One client: posts turns, sends orders, and records the outcome of each as far as it is known.
//!
//! Owns the requests of the load and their outcomes. After a timeout, a cut connection or a 5xx the outcome is unknown;
//! a client with a key repeats its request with the same key, at any replica, until it knows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::Fleet,
    history::{Fact, Outcome},
    support::OPERATOR,
};

/// How long one request may take before its outcome is unknown.
const REQUEST_MAX: Duration = Duration::from_secs(6);
/// How long a client with a key goes on asking.
const ASK_MAX: Duration = Duration::from_secs(90);

/// Of a message in the history.
const SCRIPT_MAX: usize = 1000;

/// A turn that was accepted, as its client knows it.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// `turn_…`
    pub turn: String,
    /// `conv_…`
    pub conversation: String,
}

/// What to post.
#[derive(Debug, Clone)]
pub struct Ask {
    /// For which agent.
    pub agent: String,
    /// The message.
    pub text: String,
    /// In which conversation; a new one where absent.
    pub conversation: Option<String>,
    /// Whether a key makes it safe to ask again.
    pub is_keyed: bool,
}

impl Ask {
    /// A keyed message to the demo agent in a new conversation.
    pub fn demo(text: &str) -> Ask {
        Ask { agent: "demo".to_owned(), text: text.to_owned(), conversation: None, is_keyed: true }
    }
}

static NONCES: AtomicU64 = AtomicU64::new(0);

/// Clients share one of these.
#[derive(Clone)]
pub struct Client {
    fleet: Arc<Fleet>,
    http: reqwest::Client,
    /// Nobody waits for a last word any more.
    given_up: CancellationToken,
}

impl Client {
    /// Of this fleet. Every request has its own connection, as if each came from somebody else.
    pub fn new(fleet: &Arc<Fleet>) -> Client {
        let http = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .connect_timeout(Duration::from_secs(1))
            .build()
            .unwrap();
        Client { fleet: fleet.clone(), http, given_up: CancellationToken::new() }
    }

    /// Tells every observer that is left that it has waited long enough.
    pub fn give_up(&self) {
        self.given_up.cancel();
    }

    /// Until nobody waits any more.
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// Posts at random replicas until the outcome is known, where a key makes that safe.
    pub async fn post(&self, ask: &Ask, rng: &mut StdRng) -> Option<Accepted> {
        let slot = self.fleet.draw(rng);
        self.post_from(ask, slot, rng).await
    }

    /// The same, and `slot` is the first that is asked.
    pub async fn post_from(&self, ask: &Ask, mut slot: usize, rng: &mut StdRng) -> Option<Accepted> {
        let nonce = format!("n{}", NONCES.fetch_add(1, Ordering::Relaxed));
        let began = Instant::now();
        loop {
            let (outcome, accepted) = self.post_once(ask, &nonce, slot).await;
            let is_settled = outcome == Outcome::Ok || !ask.is_keyed && outcome == Outcome::Info;
            if is_settled || began.elapsed() > ASK_MAX {
                return accepted;
            }
            let pause = rng.random_range(20..200);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            slot = self.fleet.draw(rng);
        }
    }

    /// Posts once at this replica. The same nonce is the same turn.
    pub async fn post_once(&self, ask: &Ask, nonce: &str, slot: usize) -> (Outcome, Option<Accepted>) {
        let note = |f, turn: Option<&str>, why: Option<String>| {
            self.fleet.history.note(Fact::Post {
                f,
                nonce: nonce.to_owned(),
                is_keyed: ask.is_keyed,
                // Of a giant text its first word, as the checker reads it.
                script: if ask.text.len() > SCRIPT_MAX { first_word(&ask.text) } else { ask.text.clone() },
                slot,
                turn: turn.map(str::to_owned),
                why,
            });
        };
        let mut body = json!({"agent": ask.agent, "input": ask.text, "metadata": {"nonce": nonce}});
        if let Some(conversation) = &ask.conversation {
            body["conversation_id"] = conversation.as_str().into();
        }
        let url = format!("{}/v1/turns", self.fleet.url(slot));
        let mut post = self.http.post(url).bearer_auth(OPERATOR).json(&body).timeout(REQUEST_MAX);
        if ask.is_keyed {
            post = post.header("idempotency-key", nonce);
        }
        note(Outcome::Invoke, None, None);
        let answer = match post.send().await {
            Ok(answer) => answer,
            // Nobody was there to hear it.
            Err(why) if why.is_connect() => {
                note(Outcome::Fail, None, Some("no connection".to_owned()));
                return (Outcome::Fail, None);
            }
            Err(why) => {
                note(Outcome::Info, None, Some(format!("{why:?}")));
                return (Outcome::Info, None);
            }
        };
        let status = answer.status();
        let read = answer.json::<Value>().await;
        match (status.as_u16(), read) {
            (200 | 202, Ok(turn)) => {
                let text = |field: &str| turn[field].as_str().unwrap_or_default().to_owned();
                let accepted = Accepted { turn: text("id"), conversation: text("conversation_id") };
                note(Outcome::Ok, Some(&accepted.turn), None);
                (Outcome::Ok, Some(accepted))
            }
            (400..=499, Ok(problem)) => {
                note(Outcome::Fail, None, Some(format!("{status} {}", problem["code"])));
                (Outcome::Fail, None)
            }
            (_, read) => {
                let code = read.map(|problem| problem["code"].to_string()).unwrap_or_default();
                note(Outcome::Info, None, Some(format!("{status} {code}")));
                (Outcome::Info, None)
            }
        }
    }

    /// Cancels a turn, at a random replica, until one takes the order.
    pub async fn cancel(&self, turn: &str, rng: &mut StdRng) {
        self.order("cancel", turn, &format!("/v1/turns/{turn}/cancel"), None, rng).await;
    }

    /// Answers a question, at a random replica, until one takes it.
    pub async fn answer(&self, turn: &str, ask_id: &str, rng: &mut StdRng) {
        let body = json!({"ask_id": ask_id, "answer": "blue"});
        self.order("answer", turn, &format!("/v1/turns/{turn}/answers"), Some(body), rng).await;
    }

    async fn order(&self, order: &str, turn: &str, path: &str, body: Option<Value>, rng: &mut StdRng) {
        let began = Instant::now();
        while began.elapsed() < ASK_MAX {
            let slot = self.fleet.draw(rng);
            let note = |f, why| {
                let (order, turn) = (order.to_owned(), turn.to_owned());
                self.fleet.history.note(Fact::Order { f, order, turn, slot, why });
            };
            let url = format!("{}{path}", self.fleet.url(slot));
            let ask = self.http.post(url).bearer_auth(OPERATOR).timeout(REQUEST_MAX);
            let ask = body.iter().fold(ask, |ask, body| ask.json(body));
            note(Outcome::Invoke, None);
            match ask.send().await.map(|answer| answer.status().as_u16()) {
                Ok(200..=299) => return note(Outcome::Ok, None),
                // It has ended, or somebody (we, unheard) answered before.
                Ok(status @ 400..=499) => return note(Outcome::Fail, Some(status.to_string())),
                Ok(status) => note(Outcome::Info, Some(status.to_string())),
                Err(why) => note(Outcome::Info, Some(why.to_string())),
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(50..300))).await;
        }
    }

    /// Opens a turn's stream after `after` at this replica; the answer once its head is there.
    pub async fn open(&self, turn: &str, after: i64, slot: usize) -> Result<reqwest::Response, String> {
        let url = format!("{}/v1/turns/{turn}/events?after={after}", self.fleet.url(slot));
        let ask = self.http.get(url).bearer_auth(OPERATOR).header("accept", "text/event-stream");
        match tokio::time::timeout(REQUEST_MAX, ask.send()).await {
            Ok(answer) => answer.map_err(|why| why.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// The fleet that it asks.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}
