//! Remote workers: one fault after the other around them, in an order drawn from the seed.
//!
//! Owns the schedule. Whatever happens to replicas, to the networks on both sides of them and to Postgres, a turn goes
//! on while its worker and its host live; it ends with them, and is reported.

use std::time::Duration;

use lastword_devkit::postgres::StopMode;
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use rand::{Rng, rngs::StdRng};
use tokio::time::sleep;

use super::{Row, network::by_proxy, quantile, spread};
use crate::{
    checker::Allowances,
    hosts,
    load::Mix,
    plan::Plan,
    proxy::{Proxy, Weather},
    scene::{Ballast, Scene, Stage},
};

const REPLICAS: usize = 3;
const HOSTS: usize = 3;
/// Long turns under way, so that each host and replica has some.
const BALLAST: usize = 12;
/// After a fault turns are held again, or end, before the next thing breaks: each falls with one thing alone, and
/// what is excused stays told apart.
const SETTLE: Duration = Duration::from_secs(1);
/// A connection that broke and no word for 2.5 s is a lost worker; the rest is the telling.
const TOLD_MAX: Duration = Duration::from_secs(4);

#[derive(Debug, Clone, Copy)]
enum Hurt {
    Kill,
    Freeze,
    Drain,
    /// Of one of its workers.
    KillWorker,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Host(Hurt),
    KillReplica,
    FreezeReplica,
    DrainReplica,
    CutDoor(Weather),
    SlowDoor,
    ResetDoor,
    CutReplica(Weather),
    ResetConnections,
    LoseCommits,
    RestartPostgres,
}

/// One fault: what, at which replica, at which host, and for how long.
#[derive(Debug, Clone, Copy)]
struct Step {
    fault: Fault,
    replica: usize,
    host: usize,
    hold: Duration,
}

fn draw(dice: &mut StdRng) -> Step {
    let ways = [Weather::CutBoth, Weather::CutToServer, Weather::CutToClient];
    let way = ways[dice.random_range(0..ways.len())];
    let (replica, host) = (dice.random_range(0..REPLICAS), dice.random_range(0..HOSTS));
    let hold = Duration::from_millis(dice.random_range(1_000..15_000));
    let fault = match dice.random_range(0..22) {
        0..=2 => Fault::Host(Hurt::Kill),
        3 => Fault::Host(Hurt::Freeze),
        4 => Fault::Host(Hurt::Drain),
        5 | 6 => Fault::Host(Hurt::KillWorker),
        7..=9 => Fault::KillReplica,
        10 => Fault::FreezeReplica,
        11 | 12 => Fault::DrainReplica,
        13 | 14 => Fault::CutDoor(way),
        15 => Fault::SlowDoor,
        16 => Fault::ResetDoor,
        17 => Fault::CutReplica(way),
        18 => Fault::ResetConnections,
        19 | 20 => Fault::LoseCommits,
        _ => Fault::RestartPostgres,
    };
    Step { fault, replica, host, hold }
}

/// So many faults.
pub async fn run(stage: Stage) -> Row {
    let (ground, proxies, plan) = by_proxy(REPLICAS);
    let (doors, plan) = hosts::doors(Plan { turns_max: 128, ..plan });
    let scene = Scene::over(&stage, ground, plan, Mix::LIGHT).await;
    scene.fleet.move_to_hosts(doors, HOSTS).await;
    let steps: Vec<Step> = (0..stage.count).map(|_| draw(&mut scene.nemesis())).collect();
    let mut ballast = Ballast::default();
    for step in steps {
        scene.acquainted().await;
        let running = ballast.fill(&scene, BALLAST).await;
        let pid = scene.fleet.hosts().pid(step.host);
        let its = running.into_iter().filter(|(_, host, _)| *host == pid);
        apply(&scene, &proxies, step, its.map(|(turn, ..)| turn.turn).collect()).await;
        sleep(SETTLE).await;
    }
    ballast.drop_all(&scene).await;
    let findings = scene.close(Allowances { turns_outlive_replicas: true, ..Allowances::NONE }).await;
    let told = findings.told_all.get("kill_host").cloned().unwrap_or_default();
    let fallen = |code| findings.codes.get(code).copied().unwrap_or_default();
    Row {
        count: findings.faults.values().sum(),
        figure: format!(
            "turns that fell with a replica: {}; with a host: {}; with a worker: {}; a killed host told {} ({} turns)",
            fallen("replica_lost"),
            fallen("worker_lost") + fallen("interrupted"),
            fallen("worker_exited"),
            spread(&told),
            told.len()
        ),
        is_met: fallen("replica_lost") == 0 && quantile(&told, 1.0) <= TOLD_MAX,
        is_run: true,
        findings,
    }
}

/// Breaks a host, and heals it. `its` are the turns under way that it runs.
async fn hurt(scene: &Scene, hurt: Hurt, step: Step, its: Vec<String>) {
    let Step { host, hold, .. } = step;
    let (fleet, hosts) = (&scene.fleet, scene.fleet.hosts());
    match hurt {
        Hurt::Kill => {
            fleet.broke("kill_host", Some(host), Some(hosts.pid(host)), its);
            hosts.kill(host);
            sleep(TOLD_MAX).await;
            hosts.revive(host);
        }
        Hurt::Freeze => {
            let id = fleet.broke("freeze_host", Some(host), Some(hosts.pid(host)), Vec::new());
            hosts.freeze(host, true);
            sleep(hold).await;
            hosts.freeze(host, false);
            fleet.healed(id, "freeze_host");
        }
        Hurt::Drain => {
            fleet.broke("drain_host", Some(host), Some(hosts.pid(host)), Vec::new());
            tokio::task::block_in_place(|| hosts.leave(host));
            hosts.revive(host);
        }
        Hurt::KillWorker => {
            let victim = hosts.workers(host).into_iter().max();
            fleet.broke("kill_worker", Some(host), Some(hosts.pid(host)), Vec::new());
            if let Some(victim) = victim {
                // It may have ended with its turn.
                let _ = signal::kill(Pid::from_raw(victim), Signal::SIGKILL);
            }
        }
    }
}

/// Breaks what the step says, and heals it.
async fn apply(scene: &Scene, proxies: &[Proxy], step: Step, its: Vec<String>) {
    let Step { replica, hold, .. } = step;
    let (fleet, hosts) = (&scene.fleet, scene.fleet.hosts());
    match step.fault {
        Fault::Host(what) => hurt(scene, what, step, its).await,
        Fault::KillReplica => {
            fleet.kill(replica, Vec::new());
            sleep(hold / 4).await;
            fleet.revive(replica).await;
        }
        Fault::FreezeReplica => {
            let id = fleet.freeze(replica, Vec::new());
            sleep(hold).await;
            fleet.thaw(replica, id);
            fleet.ready(replica, Duration::from_secs(30)).await;
        }
        Fault::DrainReplica => {
            fleet.drain(replica).await;
            fleet.revive(replica).await;
        }
        Fault::CutDoor(weather) => {
            weathered(scene, hosts.door(replica), ("cut_door", weather), replica, hold).await;
        }
        Fault::SlowDoor => {
            let weather = Weather::Delay { ms: 20, jitter_ms: 80, seed: hold.as_millis() as u64 };
            weathered(scene, hosts.door(replica), ("slow_door", weather), replica, hold).await;
        }
        Fault::ResetDoor => {
            fleet.broke("reset_door", Some(replica), None, Vec::new());
            hosts.door(replica).reset_all();
        }
        Fault::CutReplica(weather) => {
            weathered(scene, &proxies[replica], ("cut_replica", weather), replica, hold).await;
        }
        Fault::ResetConnections => {
            fleet.broke("reset_connections", Some(replica), None, Vec::new());
            proxies[replica].reset_all();
        }
        Fault::LoseCommits => {
            fleet.broke("lost_commits", Some(replica), None, Vec::new());
            proxies[replica].cut_after_commit(5, "lw_");
        }
        Fault::RestartPostgres => restart(scene, hold).await,
    }
}

/// Foul weather at a replica for a while.
async fn weathered(scene: &Scene, net: &Proxy, foul: (&str, Weather), replica: usize, hold: Duration) {
    let (name, weather) = foul;
    let id = scene.fleet.broke(name, Some(replica), Some(scene.fleet.pid(replica)), Vec::new());
    net.set(weather);
    sleep(hold).await;
    net.set(Weather::Clear);
    scene.fleet.healed(id, name);
    scene.fleet.ready(replica, Duration::from_secs(30)).await;
}

async fn restart(scene: &Scene, away: Duration) {
    let fleet = &scene.fleet;
    let id = fleet.broke("postgres_fast", None, None, Vec::new());
    fleet.with_postgres(|postgres| postgres.stop(StopMode::Fast).unwrap());
    sleep(away).await;
    fleet.with_postgres(|postgres| postgres.restart(StopMode::Fast).unwrap());
    fleet.healed(id, "postgres_fast");
    for slot in 0..fleet.size() {
        fleet.ready(slot, Duration::from_secs(30)).await;
    }
}
