//! Faults of workers: killed, frozen past their clock, busy without progress, poisonous.

use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Row, quantile, spread};
use crate::{
    checker::Allowances,
    client::{Accepted, Ask},
    load::Mix,
    plan::Plan,
    scene::{Scene, Stage},
    support,
};

/// Victims at once: more would measure how fast this machine starts processes.
const VICTIMS: usize = 3;
/// The progress clock of agents that are expected to lose against it.
const CLOCK: Duration = Duration::from_secs(1);

/// The worker of a turn under way is killed.
pub async fn kill(stage: Stage) -> Row {
    let scene = Scene::open(&stage, Plan::slots(3), Mix::FAINT).await;
    let victims = (0..VICTIMS).map(|n| async move { stage_count(n, stage.count) });
    let counts = join_all(victims).await;
    join_all(counts.into_iter().map(|count| kill_some(&scene, count))).await;
    let findings = scene.close(Allowances::NONE).await;
    let told = findings.told_all.get("kill_worker").cloned().unwrap_or_default();
    Row {
        count: findings.faults.get("kill_worker").copied().unwrap_or_default(),
        figure: spread(&told),
        is_met: !told.is_empty() && quantile(&told, 0.99) <= Duration::from_millis(250),
        is_run: true,
        findings,
    }
}

/// How many of `count` fall to the `n`th of the victims' lines.
fn stage_count(n: usize, count: usize) -> usize {
    count / VICTIMS + usize::from(n < count % VICTIMS)
}

async fn kill_some(scene: &Scene, count: usize) {
    for _ in 0..count {
        let Some((turn, pid, mut hear)) = speaking(scene, &Ask::demo("/slow 100000")).await else { continue };
        scene.fleet.broke("kill_worker", None, Some(pid), vec![turn.turn]);
        support::signal(pid, Signal::SIGKILL);
        while hear.recv().await.is_some() {}
    }
}

/// A turn of which something was said: the turn, its worker's process id, and what its observer hears.
async fn speaking(scene: &Scene, ask: &Ask) -> Option<(Accepted, i32, mpsc::Receiver<Value>)> {
    let turn = scene.post(ask).await;
    let mut rng = scene.rng();
    let slot = scene.fleet.draw(&mut rng);
    let mut hear = scene.load.observe_and_tell(&turn, slot, &mut rng);
    while hear.recv().await.is_some_and(|event| event["kind"] != "delta") {}
    let found = scene.running(std::slice::from_ref(&turn)).await;
    found.into_iter().next().map(|(turn, pid, _)| (turn, pid, hear))
}

/// A worker stands still past its progress clock, goes on, and says more.
pub async fn freeze(stage: Stage) -> Row {
    let scene = Scene::open(&stage, Plan::slots(3), Mix::FAINT).await;
    put_impatient(&scene).await;
    let mut left = stage.count;
    while left > 0 {
        let batch = left.min(10);
        left -= batch;
        join_all((0..batch).map(|_| freeze_one(&scene))).await;
    }
    let findings = scene.close(Allowances::NONE).await;
    let told = findings.told_first.get("freeze_worker").cloned().unwrap_or_default();
    Row {
        count: findings.faults.get("freeze_worker").copied().unwrap_or_default(),
        // The checker compares every log with what stood in it when the last word was seen.
        figure: format!("late writes accepted: {}; told {}", findings.reordered, spread(&told)),
        is_met: findings.reordered == 0 && !told.is_empty(),
        is_run: true,
        findings,
    }
}

async fn put_impatient(scene: &Scene) {
    let spec = json!({
        "runtime": "process",
        "command": [support::program(), "demo-agent"],
        "timeouts": {"progress": format!("{}ms", CLOCK.as_millis())},
    });
    scene.fleet.put_agent("impatient", spec).await;
}

async fn freeze_one(scene: &Scene) {
    let ask = Ask { agent: "impatient".to_owned(), ..Ask::demo("/slow 100000") };
    let Some((turn, pid, mut hear)) = speaking(scene, &ask).await else { return };
    let id = scene.fleet.broke("freeze_worker", None, Some(pid), vec![turn.turn]);
    support::signal(pid, Signal::SIGSTOP);
    while hear.recv().await.is_some() {}
    // The host may have killed it by now; if not, it speaks again.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT);
    scene.fleet.healed(id, "freeze_worker");
}

/// Workers that only beat, and turns that kill whoever runs them.
pub async fn no_progress(stage: Stage) -> Row {
    let scene = Scene::open(&stage, Plan::slots(3), Mix::FAINT).await;
    put_impatient(&scene).await;
    let mut left = stage.count;
    while left > 0 {
        let batch = left.min(10);
        left -= batch;
        join_all((0..batch).map(|n| suffer(&scene, if n % 2 == 0 { "/hang" } else { "/kill" }))).await;
    }
    let findings = scene.close(Allowances::NONE).await;
    let told = findings.told_all.get("hang").cloned().unwrap_or_default();
    let bound = CLOCK + Duration::from_secs(1);
    Row {
        count: stage.count,
        figure: format!("told {} (clock {CLOCK:?}); run twice: {}", spread(&told), findings.duplicated),
        is_met: !told.is_empty() && quantile(&told, 0.99) <= bound && findings.duplicated == 0,
        is_run: true,
        findings,
    }
}

async fn suffer(scene: &Scene, text: &str) {
    let ask = Ask { agent: "impatient".to_owned(), ..Ask::demo(text) };
    let turn = scene.post(&ask).await;
    let mut rng = scene.rng();
    let slot = scene.fleet.draw(&mut rng);
    let mut hear = scene.load.observe_and_tell(&turn, slot, &mut rng);
    while let Some(event) = hear.recv().await {
        // Its clock runs from here.
        if event["kind"] == "started" {
            scene.fleet.broke(&text[1..], None, None, vec![turn.turn.clone()]);
        }
    }
}
