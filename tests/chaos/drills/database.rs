//! Faults of Postgres: restarted, killed, stalled, its clock stepped, its backends terminated, NOTIFY off.
//!
//! None of these faults excuses a failed turn: here every failure is a false death.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use lastword_devkit::postgres::StopMode;
use nix::sys::signal::Signal;
use rand::{Rng, seq::SliceRandom};
use tokio::time::{Instant, sleep};

use super::{Row, quantile, spread};
use crate::{
    checker::Allowances,
    client::Ask,
    fleet::Fleet,
    history::{Fact, Outcome},
    load::Mix,
    plan::Plan,
    scene::{Ballast, Scene, Stage},
    support,
};

/// How long a replica may take to serve again, before it counts as gone for good.
const BACK_MAX: Duration = Duration::from_secs(30);
const BALLAST: usize = 6;

/// Postgres is stopped in three ways, and comes back at once or up to 30 s later.
pub async fn restart(stage: Stage) -> Row {
    let scene = Scene::open(&stage, Plan::slots(3), Mix::LIGHT).await;
    let mut ballast = Ballast::default();
    for n in 0..stage.count {
        ballast.fill(&scene, BALLAST).await;
        let (way, away) = draw_restart(&scene, n);
        let id = scene.fleet.broke(&format!("postgres_{way}"), None, None, Vec::new());
        scene.fleet.with_postgres(|postgres| {
            if way == "sigkill" {
                support::signal(i32::try_from(postgres.pid().unwrap()).unwrap(), Signal::SIGKILL);
            }
            postgres.stop(if way == "fast" { StopMode::Fast } else { StopMode::Immediate }).unwrap();
        });
        sleep(away).await;
        scene.fleet.with_postgres(|postgres| postgres.restart(StopMode::Fast).unwrap());
        let back = Instant::now();
        serves_again(&scene, back).await;
        scene.fleet.healed(id, "postgres");
    }
    ballast.drop_all(&scene).await;
    let findings = scene.close(Allowances::NONE).await;
    let service = findings.measures.get("service").cloned().unwrap_or_default();
    Row {
        count: stage.count,
        figure: format!("false deaths: {}; service again {}", findings.unexpected, spread(&service)),
        is_met: findings.unexpected == 0 && quantile(&service, 1.0) <= Duration::from_secs(3),
        is_run: true,
        findings,
    }
}

/// How it stops, and how long it stays away: mostly a moment, every fifth time up to 30 s.
fn draw_restart(scene: &Scene, n: usize) -> (&'static str, Duration) {
    let mut dice = scene.nemesis();
    let way = ["fast", "immediate", "sigkill"][dice.random_range(0..3)];
    let away = if n % 5 == 4 { dice.random_range(5_000..=30_000) } else { dice.random_range(0..2_000) };
    (way, Duration::from_millis(away))
}

/// Posts at every replica until each has taken a turn, and notes how long after `back` that was.
pub async fn serves_again(scene: &Scene, back: Instant) {
    let asked = (0..scene.fleet.size()).map(|slot| async move {
        let nonce = format!("back-{slot}-{}", scene.history.now());
        while back.elapsed() < BACK_MAX {
            let posted = scene.load.client().post_once(&Ask::demo("good day"), &nonce, slot).await;
            if let (Outcome::Ok, Some(turn)) = posted {
                let us = u64::try_from(back.elapsed().as_micros()).unwrap_or(u64::MAX);
                scene.history.note(Fact::Measure { name: "service".to_owned(), us });
                scene.load.observe(&turn, None, &mut scene.rng());
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        let (what, why) = ("a post after the heal".to_owned(), Some(format!("not within {BACK_MAX:?}")));
        scene.history.note(Fact::Last { f: Outcome::Fail, slot, what, why });
    });
    join_all(asked).await;
}

/// All of Postgres stands still for 12 s or 30 s; and its clock is stepped by a minute, both ways.
pub async fn stall(stage: Stage) -> Row {
    let plan =
        Plan { prelude: STEPPED_CLOCK.to_vec(), search_path: Some("public,pg_catalog"), ..Plan::slots(3) };
    let scene = Scene::open(&stage, plan, Mix::LIGHT).await;
    let mut ballast = Ballast::default();
    let mut kinds: Vec<&str> =
        ["stall 12", "step 60", "stall 30", "step -60"].repeat(stage.count.div_ceil(4));
    kinds.truncate(stage.count);
    kinds.shuffle(&mut *scene.nemesis());
    for kind in kinds {
        ballast.fill(&scene, BALLAST).await;
        let id = scene.fleet.broke(&format!("postgres_{}", kind.replace(' ', "_")), None, None, Vec::new());
        match kind.split_once(' ') {
            Some(("stall", seconds)) => stand_still(&scene.fleet, seconds.parse().unwrap()).await,
            Some((_, seconds)) => step_clock(&scene, seconds).await,
            None => unreachable!("{kind}"),
        }
        serves_again(&scene, Instant::now()).await;
        scene.fleet.healed(id, "postgres");
    }
    ballast.drop_all(&scene).await;
    let findings = scene.close(Allowances { clock_was_stepped: true, ..Allowances::NONE }).await;
    Row {
        count: stage.count,
        figure: format!("false deaths: {}", findings.unexpected),
        is_met: findings.unexpected == 0,
        is_run: true,
        findings,
    }
}

/// A clock of the database that can be stepped: found before the built-in one by every session that looks there first.
const STEPPED_CLOCK: [&str; 4] = [
    "create table public.clock_step (by interval not null)",
    "insert into public.clock_step values ('0')",
    "create function public.clock_timestamp() returns timestamptz language sql volatile as
       $$ select pg_catalog.clock_timestamp() + by from public.clock_step $$",
    "alter role postgres set search_path = lastword, public, pg_catalog",
];

async fn step_clock(scene: &Scene, seconds: &str) {
    let mut admin = scene.fleet.admin().await;
    let step = sqlx::query("update clock_step set by = by + $1::text::interval").bind(format!("{seconds} s"));
    step.execute(&mut admin).await.unwrap();
    // Long enough for every pass of every replica to have looked at the new time.
    sleep(Duration::from_secs(12)).await;
}

async fn stand_still(fleet: &Arc<Fleet>, seconds: u64) {
    let server = fleet.with_postgres(|postgres| i32::try_from(postgres.pid().unwrap()).unwrap());
    let everybody = || [vec![server], support::children_of(server)].concat();
    let send = |pid: i32, which| {
        // A backend may end in between.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), which);
    };
    everybody().into_iter().for_each(|pid| send(pid, Signal::SIGSTOP));
    // One that was being born while the first were stopped.
    everybody().into_iter().for_each(|pid| send(pid, Signal::SIGSTOP));
    sleep(Duration::from_secs(seconds)).await;
    everybody().into_iter().for_each(|pid| send(pid, Signal::SIGCONT));
}

/// Every backend of ours is ended every two seconds.
pub async fn terminate(stage: Stage) -> Row {
    let scene = Scene::open(&stage, Plan::slots(3), Mix::LIGHT).await;
    let mut ballast = Ballast::default();
    ballast.fill(&scene, BALLAST).await;
    let mut admin = scene.fleet.admin().await;
    let mut ended = 0;
    for _ in 0..stage.count {
        scene.fleet.broke("terminate_backends", None, None, Vec::new());
        ended += sqlx::query_scalar::<_, i64>(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
              where application_name like 'lastword%'",
        )
        .fetch_one(&mut admin)
        .await
        .unwrap();
        sleep(Duration::from_secs(2)).await;
    }
    ballast.drop_all(&scene).await;
    let findings = scene.close(Allowances::NONE).await;
    Row {
        count: stage.count,
        figure: format!(
            "{} s, {ended} backends ended; false deaths: {}",
            stage.count * 2,
            findings.unexpected
        ),
        is_met: findings.unexpected == 0 && ended as usize > stage.count,
        is_run: true,
        findings,
    }
}

/// A whole run in which NOTIFY reaches nobody, beside one in which it does.
pub async fn no_notify(stage: Stage) -> Row {
    let mut told = Vec::new();
    let mut findings = crate::checker::Findings::default();
    for doorbell in ["on", "off"] {
        let plan = Plan::slots(3).env("LASTWORD_DOORBELL", doorbell);
        let scene = Scene::open(&stage, plan, Mix::FAINT).await;
        scene.fleet.broke(&format!("doorbell_{doorbell}"), None, None, Vec::new());
        for _ in 0..stage.count {
            last_word_across(&scene).await;
        }
        let found = scene.close(Allowances::NONE).await;
        told.push(found.measures.get("terminal").cloned().unwrap_or_default());
        findings.add(found);
    }
    let worst = |times: &[u64]| quantile(times, 0.99);
    let later = worst(&told[1]).saturating_sub(worst(&told[0]));
    Row {
        count: stage.count,
        figure: format!("terminal seen with it {}; without {}", spread(&told[0]), spread(&told[1])),
        is_met: told.iter().all(|times| !times.is_empty()) && later <= Duration::from_millis(1050),
        is_run: true,
        findings,
    }
}

/// From the moment that the database wrote a last word down to an observer that has it.
pub async fn last_word_across(scene: &Scene) {
    let turn = scene.post(&Ask::demo("good day")).await;
    let mut rng = scene.rng();
    let slot = scene.fleet.draw(&mut rng);
    let mut hear = scene.load.observe_and_tell(&turn, slot, &mut rng);
    while let Some(event) = hear.recv().await {
        if event["kind"] == "completed" {
            let at: chrono::DateTime<chrono::Utc> = event["at"].as_str().unwrap().parse().unwrap();
            // The same machine, the same clock.
            let us = (chrono::Utc::now() - at).num_microseconds().unwrap_or_default();
            let us = u64::try_from(us).unwrap_or_default();
            scene.history.note(Fact::Measure { name: "terminal".to_owned(), us });
        }
    }
}
