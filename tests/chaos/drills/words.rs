//! Words of the next release during an update: written by its replicas, and shown by replicas of the previous release.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    client::Ask,
    scene::Scene,
    support::{OPERATOR, PATIENCE},
};

/// The agent that has a field of the next release.
const AGENT: &str = "next";
/// Says one message of each kind that the next release tells otherwise, or, asked to be silent, nothing.
const WORKER: &str = r#"
echo '{"type":"ready"}'
while read -r line; do
  case "$line" in *'"type":"turn"'*) ;; *) continue ;; esac
  id="${line#*turn_id\":\"}"; id="${id%%\"*}"
  echo "$id" >> "$DEMO_RECEIPTS"
  case "$line" in *'"text":"silent"'*) ;; *)
    echo "{\"type\":\"mood\",\"turn_id\":\"$id\",\"mood\":\"good\"}"
    echo "{\"type\":\"status\",\"turn_id\":\"$id\",\"state\":\"thinking\"}"
    echo "{\"type\":\"delta\",\"turn_id\":\"$id\",\"text\":\"hello\"}" ;;
  esac
  echo "{\"type\":\"complete\",\"turn_id\":\"$id\"}"
done"#;

/// What was said in words of the next release, and is to be read for as long as the log is kept.
#[derive(Default)]
pub struct Words {
    told: Vec<(String, Value)>,
    /// What was read otherwise than was written, or not at all.
    pub wrong: Vec<String>,
    /// How often a replica of the release before told such words.
    pub told_by_older: usize,
}

impl Words {
    /// Puts the agent and speaks, at a replica of the next release.
    pub async fn speak(&mut self, scene: &Scene, slot: usize) {
        let spec = json!({
            "runtime": "process", "command": ["sh", "-c", WORKER], "of_the_next_release": "strict",
            "env": {"DEMO_RECEIPTS": scene.fleet.receipts_path()},
        });
        let put = get(scene, slot, &format!("/v1/agents/{AGENT}"), Some(&spec)).await;
        self.expect(put["spec"]["of_the_next_release"] == "strict", &format!("the next release put {put}"));
    }

    /// Posts at a replica, whichever release it is of, while one of the next release is there: both say the same.
    pub async fn post(&mut self, scene: &Scene, slot: usize) {
        for text in ["hello", "silent"] {
            let ask =
                Ask { agent: AGENT.to_owned(), text: text.to_owned(), conversation: None, is_keyed: true };
            let Some(turn) = scene.load.client().post_from(&ask, slot, &mut scene.rng()).await else {
                self.wrong.push(format!("`{text}` was not accepted at slot {slot}"));
                continue;
            };
            let log = ended(scene, slot, &turn.turn).await;
            let wanted: &[&str] = match text {
                "silent" => &["said_nothing"],
                _ => &["\"kind\":\"aside\"", "of_the_next_release", "\"kind\":\"completed\""],
            };
            let said = log.to_string();
            self.expect(
                wanted.iter().all(|word| said.contains(word)),
                &format!("`{text}` at slot {slot}: {said}"),
            );
            self.told.push((turn.turn, log));
        }
    }

    /// A replica of the release before tells all of it, and a turn that only the next one understands waits.
    pub async fn read_by_older(&mut self, scene: &Scene, slot: usize) {
        let agent = get(scene, slot, &format!("/v1/agents/{AGENT}"), None).await;
        self.expect(agent["unread"] == json!(["of_the_next_release"]), &format!("slot {slot} shows {agent}"));
        for (turn, log) in self.told.clone() {
            let read = events(scene, slot, &turn).await;
            self.expect(read == log, &format!("slot {slot} tells {read} of what was {log}"));
        }
        self.told_by_older += 1;
    }

    fn expect(&mut self, holds: bool, otherwise: &str) {
        if !holds {
            self.wrong.push(otherwise.to_owned());
        }
    }
}

/// The log of a turn, once its last word is there.
async fn ended(scene: &Scene, slot: usize, turn: &str) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let log = events(scene, slot, turn).await;
        let last = log.as_array().and_then(|log| log.last()).map(|event| event["kind"].clone());
        let is_ended =
            last.is_some_and(|kind| kind == "completed" || kind == "failed" || kind == "cancelled");
        if is_ended || Instant::now() > until {
            return log;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn events(scene: &Scene, slot: usize, turn: &str) -> Value {
    get(scene, slot, &format!("/v1/turns/{turn}/events?limit=200"), None).await["events"].take()
}

/// What a replica answers, `{}` where that is no JSON; with a body it is a PUT.
async fn get(scene: &Scene, slot: usize, path: &str, body: Option<&Value>) -> Value {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}{path}", scene.fleet.url(slot));
    let asked = match body {
        Some(body) => http.put(url).json(body),
        None => http.get(url),
    };
    let answer = asked.bearer_auth(OPERATOR).timeout(PATIENCE).send().await;
    match answer {
        Ok(answer) => answer.json().await.unwrap_or_default(),
        Err(why) => json!({ "why": why.to_string() }),
    }
}
