//! Requests generated from `/openapi.json` by schemathesis; `make schemathesis` installs and runs it.
//!
//! Keeps one promise above all: nothing that is generated is ever executed. An agent is a command, and generated agents
//! are put here; but only the HTTP handlers serve, in this process, without an engine or a worker. A task in this test
//! writes each turn's last word.

use std::{path::Path, time::Duration};

use lastword::{
    agent::Runtime,
    event::Kind,
    id::{ConversationId, WorkerId},
    store::{claim::Ready, queue_hints::FRONT, workers::NewWorker},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use super::world::{OPERATOR, World};

/// Between two looks for turns that wait.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Turns that end at one look.
const AT_ONCE: i64 = 64;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs schemathesis: `make schemathesis`"]
async fn generated_requests_meet_no_fault() {
    // Every route behind a token, so that one which forgets to ask for it is found.
    let world = World::with(|config| config.client_tokens = vec!["client-token".to_owned()]).await;
    let known = things(&world).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut run = Command::new(std::env::var("SCHEMATHESIS").expect("SCHEMATHESIS says which program"));
    run.arg("--config-file")
        .arg(root.join("tests/schemathesis/schemathesis.toml"))
        .arg("run")
        .arg(format!("{}/openapi.json", world.url))
        .args(std::env::var("SCHEMATHESIS_ARGS").unwrap_or_default().split_whitespace())
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", root.join("tests/schemathesis"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("LASTWORD_KNOWN", known.to_string())
        .env("LASTWORD_TOKEN", OPERATOR)
        // It keeps notes where it runs.
        .current_dir(root.join("target"))
        .kill_on_drop(true);
    let status = tokio::select! {
        status = run.status() => status.unwrap(),
        () = end_turns(&world) => unreachable!("the hand never rests"),
    };
    assert!(status.success(), "schemathesis found something: {status}");
    // The one that was written down by hand.
    let workers = world.store.workers(None, AT_ONCE).await.unwrap();
    assert!(workers.len() == 1, "something was run: {workers:?}");
    for finding in world.store.verify().await.unwrap() {
        assert!(finding.broken.is_empty(), "{finding:?}");
    }
}

/// One thing of every kind that a route can name: a turn that waits for an answer, one that ended, …
async fn things(world: &World) -> Value {
    let ended = make_turn(world).await;
    let mut run = world.run_next().await;
    run.say(Kind::Delta, r#"{"text":"hello"}"#).await;
    run.complete("hello").await;
    let asking = make_turn(world).await;
    let mut run = world.run_next().await;
    run.say(Kind::Ask, r#"{"ask_id":"ask_1","prompt":"?"}"#).await;
    let conversation: ConversationId = ended["conversation_id"].as_str().unwrap().parse().unwrap();
    let worker = NewWorker {
        id: WorkerId(world.store.clock().mint()),
        agent: "demo".to_owned(),
        agent_revision: 1,
        runtime: Runtime::Process,
        conversation: Some(conversation),
        pid: 1,
    };
    world.store.worker_started(&worker).await.unwrap();
    json!({
        "turns": [ended["id"], asking["id"]],
        "ended": ended["id"],
        "conversations": [ended["conversation_id"], asking["conversation_id"]],
        "workers": [worker.id],
        "agents": ["demo"],
    })
}

async fn make_turn(world: &World) -> Value {
    let asked = json!({"agent": "demo", "input": "hello"});
    let answer = world.as_operator(Method::POST, "/v1/turns").json(&asked).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    answer.json().await.unwrap()
}

/// Gives every turn a short answer, whatever its agent would run.
async fn end_turns(world: &World) {
    loop {
        for claim in world.store.claim(&[Runtime::Process], &Ready::default(), FRONT, AT_ONCE).await.unwrap()
        {
            let Some(seq) = world.store.start(&claim, None).await.unwrap() else { continue };
            let mut run = world.resume(claim.turn, seq);
            run.say(Kind::Delta, r#"{"text":"hello"}"#).await;
            run.complete("hello").await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
