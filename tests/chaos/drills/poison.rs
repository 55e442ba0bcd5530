//! Poison: expensive texts, giant texts, workers that flood, idle connections.

use std::time::Duration;

use futures_util::future::join_all;
use rand::Rng;
use serde_json::json;
use tokio::net::TcpStream;

use super::Row;
use crate::{
    checker::Allowances,
    client::Ask,
    load::Mix,
    plan::Plan,
    scene::{Scene, Stage},
    support,
};

/// For each letter as many counts are open as there are.
const COSTLY: &str = "(a{1,500}){1,20}x";
const GUARDS: usize = 8;
/// Of one poisonous text.
const LETTERS: usize = 900_000;
/// Files that a replica may have open, and connections that say nothing, at one replica.
const OPEN_FILES: u64 = 512;
const CONNECTIONS: usize = 600;
const CONNECTED: Duration = Duration::from_secs(3);
/// A beat comes every half second, and twenty that are missed are a verdict.
const SILENCE_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One after the other; what the checker makes of it, and the longest time without a beat.
pub async fn run(stage: Stage) -> Row {
    let scene =
        Scene::open(&stage, Plan { open_files: Some(OPEN_FILES), ..Plan::slots(3) }, Mix::LIGHT).await;
    scene.fleet.put_agent("guarded", guarded()).await;
    scene.acquainted().await;
    let mut silence = Duration::ZERO;
    for n in 0..stage.count {
        let slot = scene.nemesis().random_range(0..scene.fleet.size());
        silence = silence.max(longest_silence(&scene, poison(&scene, n, slot)).await);
    }
    let judged = judged(&scene).await;
    let findings = scene.close(Allowances::NONE).await;
    Row {
        count: stage.count,
        figure: format!(
            "longest time without a beat {} ms; judged {judged}; false deaths {}",
            silence.as_millis(),
            findings.unexpected
        ),
        is_met: silence <= SILENCE_MAX && judged == 0 && findings.unexpected == 0,
        is_run: true,
        findings,
    }
}

fn guarded() -> serde_json::Value {
    let guards = vec![json!({"kind": "deny_regex", "pattern": COSTLY}); GUARDS];
    json!({"runtime": "process", "command": [support::program(), "demo-agent"], "guards": guards})
}

async fn poison(scene: &Scene, n: usize, slot: usize) {
    let text = format!("/poison {}", "a".repeat(LETTERS));
    let asks = match n % 4 {
        0 => vec![Ask { agent: "guarded".to_owned(), ..Ask::demo(&text) }; 4],
        1 => vec![Ask::demo(&text); 4],
        2 => vec![Ask::demo("/flood 5000"); 4],
        _ => {
            let id = scene.fleet.broke("idle_connections", Some(slot), None, Vec::new());
            connect_and_say_nothing(scene, slot).await;
            return scene.fleet.healed(id, "idle_connections");
        }
    };
    let name = ["poison_guards", "poison_giants", "poison_floods"][n % 4];
    let id = scene.fleet.broke(name, Some(slot), None, Vec::new());
    join_all(asks.iter().map(|ask| end_of(scene, ask, slot))).await;
    scene.fleet.healed(id, name);
}

/// Posts a turn at this replica, and waits for its last word.
async fn end_of(scene: &Scene, ask: &Ask, slot: usize) {
    let mut rng = scene.rng();
    let Some(turn) = scene.load.client().post_from(ask, slot, &mut rng).await else { return };
    let mut hear = scene.load.observe_and_tell(&turn, slot, &mut rng);
    while hear.recv().await.is_some() {}
}

async fn connect_and_say_nothing(scene: &Scene, slot: usize) {
    let url = scene.fleet.url(slot);
    let address = url.trim_start_matches("http://");
    let open = join_all((0..CONNECTIONS).map(|_| TcpStream::connect(address))).await;
    tokio::time::sleep(CONNECTED).await;
    drop(open);
}

/// Beside `act`, the longest time that a replica was without a beat.
async fn longest_silence(scene: &Scene, act: impl Future<Output = ()>) -> Duration {
    let silence = "select coalesce(max(extract(epoch from clock_timestamp() - beat_at)), 0)::float8
                     from replicas where state = 'ready'";
    let mut admin = scene.fleet.admin().await;
    let (mut act, mut longest) = (std::pin::pin!(act), 0_f64);
    loop {
        tokio::select! {
            () = &mut act => return Duration::from_secs_f64(longest),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        longest = longest.max(sqlx::query_scalar(silence).fetch_one(&mut admin).await.unwrap());
    }
}

/// Replicas that were judged lost.
async fn judged(scene: &Scene) -> i64 {
    let mut admin = scene.fleet.admin().await;
    let lost = "select count(*) from replicas where state = 'lost'";
    sqlx::query_scalar(lost).fetch_one(&mut admin).await.unwrap()
}
