//! Five thousand turns in flight on one replica, which is killed.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use lastword_devkit::child;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::{Row, quantile, spread};
use crate::{
    checker::Allowances,
    client::{Accepted, Ask},
    load::Mix,
    plan::Plan,
    scene::{Ballast, Scene, Stage},
};

const TURNS: usize = 5_000;
const POSTS_AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(180);

/// A replica that holds thousands of turns is killed; how long after its verdict all were told.
pub async fn kill(stage: Stage) -> Row {
    // One place each, and a turn that keeps it: nobody but the puppet has room.
    let plan = Plan { turns_max: 1, ..Plan::slots(2) };
    let scene = Scene::open(&stage, plan, Mix { closed: 1, open_per_s: 0.0, ..Mix::FAINT }).await;
    for _ in 0..stage.count {
        let mut ballast = Ballast::default();
        ballast.fill(&scene, scene.fleet.size()).await;
        one_round(&scene).await;
        ballast.drop_all(&scene).await;
    }
    let findings = scene.close(Allowances::NONE).await;
    let told = findings.told_all.get("verdict").cloned().unwrap_or_default();
    Row {
        count: findings.faults.get("verdict").copied().unwrap_or_default(),
        figure: format!("after the verdict {} ({} turns)", spread(&told), told.len()),
        is_met: told.len() >= stage.count * TURNS && quantile(&told, 1.0) <= Duration::from_secs(3),
        is_run: true,
        findings,
    }
}

async fn one_round(scene: &Scene) {
    let ask = Ask::demo("good day");
    let turns: Vec<Accepted> =
        stream::iter(0..TURNS).map(|_| scene.post(&ask)).buffer_unordered(POSTS_AT_ONCE).collect().await;
    for turn in &turns {
        scene.load.observe_once(turn, &mut scene.rng());
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--puppet").env("DATABASE_URL", scene.fleet.database_url()).stdin(Stdio::null());
    let mut puppet = child::spawn(command, Signal::SIGKILL).unwrap();
    let pid = i32::try_from(puppet.id()).unwrap();
    wait_for(scene, pid, "i.phase = 'running'", |held| held >= TURNS as i64).await;
    // Its beats were seen, as those of any replica that has been there for a while.
    scene.acquainted_with(scene.fleet.size() as i64 + 1).await;
    let ids: Vec<String> = turns.into_iter().map(|turn| turn.turn).collect();
    scene.fleet.broke("kill_replica", None, Some(pid), ids.clone());
    puppet.kill().unwrap();
    puppet.wait().unwrap();
    wait_for(scene, pid, "r.gone_at is not null", |held| held > 0).await;
    scene.fleet.broke("verdict", None, Some(pid), ids);
    wait_for(scene, pid, "true", |held| held == 0).await;
}

/// Looks at the rows in flight at this process until their count is as wanted.
async fn wait_for(scene: &Scene, pid: i32, which: &str, is_so: impl Fn(i64) -> bool) {
    let mut admin = scene.fleet.admin().await;
    let sql = format!(
        "select count(*) from inflight i join replicas r on r.id = i.replica where r.pid = {pid} and {which}"
    );
    let until = Instant::now() + PATIENCE;
    loop {
        let count: i64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql.as_str())).fetch_one(&mut admin).await.unwrap();
        if is_so(count) {
            return;
        }
        assert!(Instant::now() < until, "{count} rows at {pid} with {which}");
        sleep(Duration::from_millis(5)).await;
    }
}
