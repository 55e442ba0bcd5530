//! Faults of replicas: killed, frozen, restarted one by one.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use rand::seq::SliceRandom;
use tokio::time::sleep;

use super::{Row, quantile, round::Round, spread, words::Words};
use crate::{
    checker::Allowances,
    client::Ask,
    load::Mix,
    mutants,
    plan::Plan,
    scene::{Ballast, Scene, Stage},
    support,
};

/// Long turns that run somewhere when a replica falls.
const BALLAST: usize = 10;
const FREEZE: Duration = Duration::from_secs(30);

/// Replicas are killed, two of five at once.
pub async fn kill(stage: Stage) -> Row {
    let scene = Scene::open(&stage, Plan::slots(5), Mix::FAINT).await;
    let mut ballast = Ballast::default();
    let mut left = stage.count;
    while let Some(round) = Round::next(&scene, &mut ballast, &mut left, 2, BALLAST).await {
        for &slot in &round.slots {
            scene.fleet.kill(slot, round.turns_at(&scene, slot));
        }
        join_all(round.slots.iter().map(|&slot| scene.fleet.revive(slot))).await;
    }
    // The last ones are told before the ballast is cancelled.
    sleep(Duration::from_secs(3)).await;
    ballast.drop_all(&scene).await;
    let findings = scene.close(Allowances::NONE).await;
    let told = findings.told_all.get("kill_replica").cloned().unwrap_or_default();
    Row {
        count: findings.faults.get("kill_replica").copied().unwrap_or_default(),
        figure: format!("{} ({} turns)", spread(&told), told.len() / 2),
        is_met: !told.is_empty() && quantile(&told, 0.99) <= Duration::from_secs(2),
        is_run: true,
        findings,
    }
}

/// Replicas stand still for 30 s, four of six at once, and go on.
pub async fn freeze(stage: Stage) -> Row {
    let scene = Scene::open(&stage, Plan::slots(6), Mix::LIGHT).await;
    let mut ballast = Ballast::default();
    let mut left = stage.count;
    while let Some(round) = Round::next(&scene, &mut ballast, &mut left, 4, BALLAST).await {
        let frozen = round.freeze(&scene);
        sleep(FREEZE).await;
        for (slot, id) in frozen {
            scene.fleet.thaw(slot, id);
        }
        for &slot in &round.slots {
            scene.fleet.ready(slot, Duration::from_secs(30)).await;
        }
    }
    ballast.drop_all(&scene).await;
    let findings = scene.close(Allowances::NONE).await;
    let told = findings.told_first.get("freeze_replica").cloned().unwrap_or_default();
    Row {
        count: findings.faults.get("freeze_replica").copied().unwrap_or_default(),
        figure: format!("{}; late writes accepted: {}", spread(&told), findings.reordered),
        is_met: !told.is_empty()
            && quantile(&told, 1.0) <= Duration::from_secs(12)
            && findings.reordered == 0,
        is_run: true,
        findings,
    }
}

/// Three replicas are replaced one after the other while 500 streams are read.
pub async fn roll(stage: Stage) -> Row {
    const SIZE: usize = 3;
    const TALKERS: usize = 20;
    const READERS: usize = 25;
    let plan = Plan { drain: Duration::from_secs(20), ..Plan::slots(SIZE) };
    let scene = Scene::open(&stage, plan, Mix { closed: 2, open_per_s: 2.0, ..Mix::LIGHT }).await;
    let is_over = AtomicBool::new(false);
    let talk = join_all((0..TALKERS).map(|_| talk_until(&scene, &is_over, READERS)));
    let rolls = async {
        for _ in 0..stage.count {
            let mut order: Vec<usize> = (0..SIZE).collect();
            order.shuffle(&mut *scene.nemesis());
            for slot in order {
                scene.fleet.take_out(slot);
                scene.fleet.drain(slot).await;
                scene.fleet.revive(slot).await;
                scene.fleet.put_back(slot);
            }
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(talk, rolls);
    let findings = scene.close(Allowances::NONE).await;
    let resumes = findings.measures.get("resume").cloned().unwrap_or_default();
    let interrupted = findings.codes.get("interrupted").copied().unwrap_or_default();
    Row {
        count: stage.count,
        figure: format!(
            "interrupted: {interrupted}; refused accepts: {}; resume {} ({} of them)",
            findings.refused,
            spread(&resumes),
            resumes.len()
        ),
        is_met: interrupted == 0
            && findings.refused == 0
            && !resumes.is_empty()
            && quantile(&resumes, 0.99) <= Duration::from_secs(1),
        is_run: true,
        findings,
    }
}

/// Replicas of the next release join, take over, and leave again, while turns go on, and words of theirs stay behind.
pub async fn upgrade(stage: Stage) -> Row {
    const SIZE: usize = 3;
    let next = match tokio::task::spawn_blocking(mutants::next_release).await.unwrap() {
        Ok(next) => next,
        Err(why) => return Row::not_run(format!("no next release: {why:#}")),
    };
    let plan = Plan { drain: Duration::from_secs(20), ..Plan::slots(SIZE) };
    let scene = Scene::open(&stage, plan, Mix { closed: 6, open_per_s: 2.0, ..Mix::LIGHT }).await;
    let (mut side_by_side, mut words) = (0, Words::default());
    for _ in 0..stage.count {
        for program in [next.as_path(), support::program()] {
            for slot in 0..SIZE {
                scene.fleet.take_out(slot);
                scene.fleet.drain(slot).await;
                scene.fleet.set_program(slot, program.to_owned());
                scene.fleet.revive(slot).await;
                scene.fleet.put_back(slot);
                sleep(Duration::from_secs(2)).await;
                side_by_side += usize::from(releases_at_work(&scene).await > 1);
                let is_next = program == next;
                if !is_next {
                    words.read_by_older(&scene, slot).await;
                } else if slot == 0 {
                    words.speak(&scene, slot).await;
                }
                // Accepted by either release, and run by the next one while a replica of it is left.
                if is_next || slot < SIZE - 1 {
                    words.post(&scene, SIZE - 1).await;
                }
            }
        }
    }
    let findings = scene.close(Allowances::NONE).await;
    let interrupted = findings.codes.get("interrupted").copied().unwrap_or_default();
    Row {
        count: stage.count,
        figure: format!(
            "two releases at work {side_by_side} times; interrupted: {interrupted}; refused accepts: {}; {} read by the \
             one before, {} wrong",
            findings.refused,
            words.told_by_older,
            words.wrong.join("; ")
        ),
        is_met: side_by_side >= stage.count * 2
            && interrupted == 0
            && findings.refused == 0
            && words.told_by_older >= stage.count * SIZE
            && words.wrong.is_empty(),
        is_run: true,
        findings,
    }
}

async fn releases_at_work(scene: &Scene) -> i64 {
    let count = "select count(distinct version) from replicas where state = 'ready'";
    sqlx::query_scalar(count).fetch_one(&mut scene.fleet.admin().await).await.unwrap()
}

/// Turns of about four seconds, one after the other, each read by many.
async fn talk_until(scene: &Scene, is_over: &AtomicBool, readers: usize) {
    let mut ask = Ask::demo("/slow 40");
    while !is_over.load(Ordering::Relaxed) {
        let turn = scene.post(&ask).await;
        ask.conversation = Some(turn.conversation.clone());
        let mut rng = scene.rng();
        for _ in 0..readers / 2 {
            scene.load.observe(&turn, None, &mut rng);
        }
        let mut hear = scene.load.observe_and_tell(&turn, scene.fleet.draw(&mut rng), &mut rng);
        while hear.recv().await.is_some() {}
    }
}
