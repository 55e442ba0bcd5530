//! All faults together, for a given time: a schedule drawn from the seed, over active clients.
//!
//! Owns the schedule. It is drawn completely before the first fault, so the same seed and length yield the same faults
//! in the same order on the same slots; which turns they hit depends on the machine.

use std::time::Duration;

use lastword_devkit::postgres::StopMode;
use nix::sys::signal::Signal;
use rand::{Rng, rngs::StdRng};
use sqlx::Connection;
use tokio::time::{Instant, sleep};

use super::{Row, network::by_proxy};
use crate::{
    checker::Allowances,
    client::Ask,
    load::Mix,
    plan::Plan,
    proxy::{Proxy, Weather},
    scene::{Ballast, Scene, Stage},
    support,
};

const SLOTS: usize = 4;

/// One fault of a schedule: after so long, what, where, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Since the step before was healed.
    pub after: Duration,
    /// What breaks.
    pub fault: Fault,
    /// Where, for faults of one replica.
    pub slot: usize,
    /// How long it stays broken.
    pub hold: Duration,
}

/// What may break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillWorker,
    KillReplica,
    FreezeReplica,
    DrainReplica,
    Cut(Weather),
    Slow,
    ResetConnections,
    LoseCommits,
    RestartPostgres(&'static str),
    EndBackends,
    LongTransaction,
}

/// The faults of so many seconds.
pub fn schedule(dice: &mut StdRng, seconds: usize) -> Vec<Step> {
    let mut left = Duration::from_secs(seconds as u64);
    let mut steps = Vec::new();
    loop {
        let step = draw(dice);
        let Some(rest) = left.checked_sub(step.after + step.hold) else { return steps };
        left = rest;
        steps.push(step);
    }
}

fn draw(dice: &mut StdRng) -> Step {
    let ms = |dice: &mut StdRng, from: u64, to: u64| Duration::from_millis(dice.random_range(from..=to));
    let after = ms(dice, 1_000, 4_000);
    let slot = dice.random_range(0..SLOTS);
    let (fault, hold) = match dice.random_range(0..24) {
        0..=4 => (Fault::KillWorker, Duration::ZERO),
        5..=7 => (Fault::KillReplica, Duration::ZERO),
        8 => (Fault::FreezeReplica, ms(dice, 1_000, 30_000)),
        9 | 10 => (Fault::DrainReplica, Duration::ZERO),
        11 | 12 => {
            let ways = [Weather::CutBoth, Weather::CutToServer, Weather::CutToClient];
            (Fault::Cut(ways[dice.random_range(0..3)]), ms(dice, 1_000, 30_000))
        }
        13 | 14 => (Fault::Slow, ms(dice, 2_000, 8_000)),
        15 | 16 => (Fault::ResetConnections, Duration::ZERO),
        17 | 18 => (Fault::LoseCommits, Duration::ZERO),
        19 | 20 => {
            let way = ["fast", "immediate", "sigkill"][dice.random_range(0..3)];
            (Fault::RestartPostgres(way), ms(dice, 0, 8_000))
        }
        21 | 22 => (Fault::EndBackends, Duration::ZERO),
        _ => (Fault::LongTransaction, ms(dice, 5_000, 20_000)),
    };
    Step { after, fault, slot, hold }
}

/// The whole soak; `count` is its length in seconds.
pub async fn run(stage: Stage) -> Row {
    let (ground, proxies, plan) = by_proxy(SLOTS);
    let plan = Plan { drain: Duration::from_secs(5), turns_max: 128, ..plan };
    let mix = Mix { closed: 6, open_per_s: 2.0, chatty: 16, ..Mix::LIGHT };
    let scene = Scene::over(&stage, ground, plan, mix).await;
    let steps = schedule(&mut scene.nemesis(), stage.count);
    let mut ballast = Ballast::default();
    for step in &steps {
        sleep(step.after).await;
        ballast.fill(&scene, SLOTS).await;
        apply(&scene, &proxies, &ballast, *step).await;
    }
    ballast.drop_all(&scene).await;
    let findings = scene.close(Allowances::NONE).await;
    let turns = findings.completed + findings.failed + findings.cancelled;
    Row {
        count: steps.len(),
        figure: format!(
            "{} s, {turns} turns, {} observers' ends; lost {}, duplicated {}, reordered {}, false deaths {}",
            stage.count,
            findings.watched,
            findings.lost,
            findings.duplicated,
            findings.reordered,
            findings.unexpected
        ),
        is_met: findings.is_clean(),
        is_run: true,
        findings,
    }
}

async fn apply(scene: &Scene, proxies: &[Proxy], ballast: &Ballast, step: Step) {
    let Step { slot, hold, .. } = step;
    let fleet = &scene.fleet;
    match step.fault {
        Fault::KillWorker => kill_worker(scene, ballast).await,
        Fault::KillReplica => {
            fleet.kill(slot, Vec::new());
            fleet.revive(slot).await;
        }
        Fault::FreezeReplica => {
            let id = fleet.freeze(slot, Vec::new());
            sleep(hold).await;
            fleet.thaw(slot, id);
        }
        Fault::DrainReplica => {
            fleet.drain(slot).await;
            fleet.revive(slot).await;
        }
        Fault::Cut(weather) => {
            let id = fleet.broke("cut_replica", Some(slot), Some(fleet.pid(slot)), Vec::new());
            proxies[slot].set(weather);
            sleep(hold).await;
            proxies[slot].set(Weather::Clear);
            fleet.healed(id, "cut_replica");
        }
        Fault::Slow => {
            let id = fleet.broke("slow_net", Some(slot), None, Vec::new());
            proxies[slot].set(Weather::Delay { ms: 5, jitter_ms: 40, seed: id });
            sleep(hold).await;
            proxies[slot].set(Weather::Clear);
            fleet.healed(id, "slow_net");
        }
        Fault::ResetConnections => {
            fleet.broke("reset_connections", Some(slot), None, Vec::new());
            proxies[slot].reset_all();
        }
        Fault::LoseCommits => {
            fleet.broke("lost_commits", Some(slot), None, Vec::new());
            proxies[slot].cut_after_commit(5, "lw_");
        }
        Fault::RestartPostgres(way) => restart(scene, way, hold).await,
        Fault::EndBackends => {
            fleet.broke("terminate_backends", None, None, Vec::new());
            let all = "select pg_terminate_backend(pid) from pg_stat_activity
                        where application_name like 'lastword%'";
            sqlx::query(all).execute(&mut fleet.admin().await).await.unwrap();
        }
        Fault::LongTransaction => {
            let id = fleet.broke("long_transaction", None, None, Vec::new());
            let mut admin = fleet.admin().await;
            let mut open = admin.begin().await.unwrap();
            sqlx::query("select pg_current_xact_id(), count(*) from turns")
                .execute(&mut *open)
                .await
                .unwrap();
            sleep(hold).await;
            open.rollback().await.unwrap();
            fleet.healed(id, "long_transaction");
        }
    }
}

async fn kill_worker(scene: &Scene, ballast: &Ballast) {
    let running = scene.running(ballast.turns()).await;
    // Which one it is depends on what runs; that one dies now does not.
    if let Some((turn, pid, _)) = running.into_iter().next() {
        scene.fleet.broke("kill_worker", None, Some(pid), vec![turn.turn]);
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
    } else {
        scene.fleet.broke("kill_worker", None, None, Vec::new());
    }
}

async fn restart(scene: &Scene, way: &str, away: Duration) {
    let fleet = &scene.fleet;
    let id = fleet.broke(&format!("postgres_{way}"), None, None, Vec::new());
    fleet.with_postgres(|postgres| {
        if way == "sigkill" {
            support::signal(i32::try_from(postgres.pid().unwrap()).unwrap(), Signal::SIGKILL);
        }
        postgres.stop(if way == "fast" { StopMode::Fast } else { StopMode::Immediate }).unwrap();
    });
    sleep(away).await;
    fleet.with_postgres(|postgres| postgres.restart(StopMode::Fast).unwrap());
    // Somebody takes a turn again before the next thing breaks.
    let until = Instant::now() + Duration::from_secs(30);
    let turn = scene.post(&Ask::demo("good day")).await;
    scene.load.observe(&turn, None, &mut scene.rng());
    assert!(Instant::now() < until, "no turn was accepted within 30 s of Postgres' return");
    fleet.healed(id, "postgres");
}
