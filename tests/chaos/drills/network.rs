//! Faults of the network to Postgres: cut both ways and one way, commits whose answer is lost, a replica that is frozen
//! in the middle of a statement, a failover, a transaction pooler.

use std::{net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use lastword_devkit::postgres::Postgres;
use rand::Rng;
use tokio::time::{Instant, sleep};

use super::{
    Row,
    database::{last_word_across, serves_again},
    quantile,
    round::Round,
    spread,
};
use crate::{
    checker::{Allowances, Findings, PROMOTED},
    client::Ask,
    load::Mix,
    plan::{Ground, Plan},
    pooler::Pooler,
    proxy::{Proxy, Weather},
    scene::{Ballast, Scene, Stage},
    standby::{Mode, Pair},
};

const BALLAST: usize = 10;
const CUT: Duration = Duration::from_secs(30);
const FREEZE: Duration = Duration::from_secs(14);

/// A private Postgres with a proxy before it for each slot, and a plan that goes through them.
pub fn by_proxy(slots: usize) -> (Ground, Vec<Proxy>, Plan) {
    let postgres = tokio::task::block_in_place(Postgres::for_test).unwrap();
    let upstream = SocketAddr::from(([127, 0, 0, 1], postgres.port()));
    let proxies: Vec<Proxy> = (0..slots).map(|_| Proxy::start(upstream).unwrap()).collect();
    let urls = proxies.iter().map(|proxy| proxy.url_of(&postgres.url())).collect();
    (Ground::Own(Box::new(postgres)), proxies, Plan { database_urls: urls, ..Plan::slots(slots) })
}

/// Replicas are cut from Postgres for 30 s, four of six at once, both ways or one.
pub async fn cut(stage: Stage) -> Row {
    let (ground, proxies, plan) = by_proxy(6);
    let scene = Scene::over(&stage, ground, plan, Mix::LIGHT).await;
    let mut ballast = Ballast::default();
    let mut left = stage.count;
    while let Some(round) = Round::next(&scene, &mut ballast, &mut left, 4, BALLAST).await {
        let mut cuts = Vec::new();
        for &slot in &round.slots {
            let ways = [Weather::CutBoth, Weather::CutToServer, Weather::CutToClient];
            let way = ways[scene.nemesis().random_range(0..ways.len())];
            let turns = round.watched_turns_at(&scene, slot);
            cuts.push(scene.fleet.broke("cut_replica", Some(slot), Some(scene.fleet.pid(slot)), turns));
            proxies[slot].set(way);
        }
        sleep(CUT).await;
        round.slots.iter().for_each(|&slot| proxies[slot].set(Weather::Clear));
        cuts.into_iter().for_each(|id| scene.fleet.healed(id, "cut_replica"));
        serves_again(&scene, Instant::now()).await;
    }
    ballast.drop_all(&scene).await;
    let findings = scene.close(Allowances::NONE).await;
    let told = findings.told_first.get("cut_replica").cloned().unwrap_or_default();
    let service = findings.measures.get("service").cloned().unwrap_or_default();
    Row {
        count: findings.faults.get("cut_replica").copied().unwrap_or_default(),
        figure: format!(
            "accepted during the cut: {}; told {}; service again {}",
            findings.accepted_while_cut,
            spread(&told),
            spread(&service)
        ),
        is_met: findings.accepted_while_cut == 0
            && !told.is_empty()
            && quantile(&told, 1.0) <= Duration::from_secs(12)
            && quantile(&service, 1.0) <= Duration::from_secs(5),
        is_run: true,
        findings,
    }
}

/// The answer to an accept's commit is lost; its client asks again with its key.
pub async fn lost_commit(stage: Stage) -> Row {
    const AT_ONCE: usize = 4;
    let (ground, proxies, plan) = by_proxy(3);
    let scene = Scene::over(&stage, ground, plan, Mix::FAINT).await;
    scene.fleet.broke("lost_commits", None, None, Vec::new());
    let done = || proxies.iter().map(Proxy::cuts_done).sum::<u64>() as usize;
    let mut rounds = 0;
    while done() < stage.count && rounds < stage.count * 3 {
        let slot = scene.nemesis().random_range(0..proxies.len());
        proxies[slot].cut_after_commit(AT_ONCE as u32, "lw_accept_v1");
        let posts = (0..AT_ONCE).map(|_| async {
            let mut rng = scene.rng();
            let ask = Ask::demo("good day");
            if let Some(turn) = scene.load.client().post_from(&ask, slot, &mut rng).await {
                scene.load.observe(&turn, None, &mut rng);
            }
        });
        join_all(posts).await;
        rounds += AT_ONCE;
    }
    let count = done();
    let findings = scene.close(Allowances::NONE).await;
    Row {
        count,
        figure: format!("keys with more than one turn: {}", findings.duplicated),
        is_met: findings.duplicated == 0 && count >= stage.count,
        is_run: true,
        findings,
    }
}

/// Replicas stand still while their statements are on the way and their clients read much.
pub async fn freeze_within(stage: Stage) -> Row {
    let (ground, proxies, plan) = by_proxy(6);
    let scene = Scene::over(&stage, ground, plan, Mix::LIGHT).await;
    let mut ballast = Ballast::default();
    // A log of some megabytes, so that reads of it are large results.
    let large = scene.post(&Ask::demo("/flood 40000")).await;
    scene.load.observe(&large, None, &mut scene.rng());
    let mut left = stage.count;
    while let Some(round) = Round::next(&scene, &mut ballast, &mut left, 4, BALLAST).await {
        for &slot in &round.slots {
            // Every answer takes so long that whatever moment it is, something is on its way.
            let seed = scene.nemesis().random();
            proxies[slot].set(Weather::Delay { ms: 20, jitter_ms: 60, seed });
            scene.load.observe(&large, Some(slot), &mut scene.rng());
        }
        let pause = scene.nemesis().random_range(20..400);
        sleep(Duration::from_millis(pause)).await;
        let frozen = round.freeze(&scene);
        sleep(FREEZE).await;
        for (slot, id) in frozen {
            scene.fleet.thaw(slot, id);
            proxies[slot].set(Weather::Clear);
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
        figure: format!("closed {}", spread(&told)),
        is_met: !told.is_empty() && quantile(&told, 1.0) <= Duration::from_secs(12),
        is_run: true,
        findings,
    }
}

/// The primary dies, and a standby that has every commit takes over.
pub async fn fail_over(stage: Stage) -> Row {
    let (findings, _) = fail_over_as(&stage, Mode::Synchronous, Allowances::NONE).await;
    let service = findings.measures.get("service").cloned().unwrap_or_default();
    Row {
        count: stage.count,
        figure: format!("lost: {}; service again {}", findings.lost, spread(&service)),
        is_met: findings.lost == 0
            && !service.is_empty()
            && quantile(&service, 1.0) <= Duration::from_secs(5),
        is_run: true,
        findings,
    }
}

/// The primary dies, and a standby takes over that lacks the newest commits.
pub async fn fail_over_behind(stage: Stage) -> Row {
    let allow = Allowances { database_lost_commits: true, ..Allowances::NONE };
    let (findings, reported) = fail_over_as(&stage, Mode::Asynchronous, allow).await;
    let internal = findings.codes.get("internal").copied().unwrap_or_default();
    Row {
        count: stage.count,
        figure: format!(
            "accepted turns that the standby lacked: {}; last words that it lacked: {}; ended as internal: \
             {internal}; explicit resets: {}; turns that the replicas counted: {reported}; two events under \
             one seq without a reset: {}",
            findings.gone, findings.unsaid, findings.resets, findings.reordered
        ),
        is_met: findings.reordered == 0 && findings.gone > 0 && reported > 0,
        is_run: true,
        findings,
    }
}

async fn fail_over_as(stage: &Stage, mode: Mode, allow: Allowances) -> (Findings, u64) {
    let mut pair = Pair::start(mode).await.unwrap();
    let proxies: Vec<Proxy> = (0..3).map(|_| Proxy::start(pair.primary_addr()).unwrap()).collect();
    let urls = proxies.iter().map(|proxy| proxy.url_of(&pair.primary_url())).collect();
    let plan = Plan { database_urls: urls, ..Plan::slots(3) };
    let scene = Scene::over(stage, Ground::Lent(pair.primary_url()), plan, Mix::LIGHT).await;
    let mut ballast = Ballast::default();
    for _ in 0..stage.count {
        ballast.fill(&scene, 6).await;
        if mode == Mode::Asynchronous {
            pair.hold_back().await.unwrap();
            let held_back = scene.nemesis().random_range(500..2500);
            sleep(Duration::from_millis(held_back)).await;
        }
        let id = scene.fleet.broke("fail_over", None, None, Vec::new());
        let address = pair.fail_over().await.unwrap();
        // Nobody can have read anything from the new primary before this line.
        scene.history.phase(PROMOTED);
        scene.fleet.set_database_url(pair.primary_url());
        for proxy in &proxies {
            proxy.retarget(address);
            proxy.reset_all();
        }
        serves_again(&scene, Instant::now()).await;
        scene.fleet.healed(id, "fail_over");
        pair.restore_standby().await.unwrap();
    }
    ballast.drop_all(&scene).await;
    let reported = lost_commits_reported(&scene).await;
    (scene.close(allow).await, reported)
}

/// What the replicas' metrics say of commits that the database lost.
async fn lost_commits_reported(scene: &Scene) -> u64 {
    let mut sum = 0.0;
    for slot in 0..scene.fleet.size() {
        let text = scene.fleet.metrics(slot).await;
        let lines = text.lines().filter(|line| line.starts_with("lastword_rewound_turns_total"));
        sum += lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>();
    }
    sum as u64
}

/// A transaction pooler between, the listener beside it; and the same without.
pub async fn pooler(stage: Stage) -> Row {
    let program = match Pooler::find() {
        Ok(program) => program,
        Err(why) => return Row::not_run(why),
    };
    let mut told = Vec::new();
    let mut findings = Findings::default();
    for is_pooled in [false, true] {
        let postgres = tokio::task::block_in_place(Postgres::for_test).unwrap();
        let pool = is_pooled.then(|| program.start(&postgres.url(), 20).unwrap());
        let mut plan = Plan::slots(3);
        if let Some(pool) = &pool {
            plan.database_urls = vec![pool.url(); 3];
            plan = plan.env("LASTWORD_LISTENER_DATABASE_URL", &postgres.url());
        }
        let scene = Scene::over(&stage, Ground::Own(Box::new(postgres)), plan, Mix::FAINT).await;
        scene.fleet.broke(if is_pooled { "pooled" } else { "direct" }, None, None, Vec::new());
        for _ in 0..stage.count {
            last_word_across(&scene).await;
        }
        let found = scene.close(Allowances::NONE).await;
        told.push(found.measures.get("terminal").cloned().unwrap_or_default());
        findings.add(found);
    }
    let later = quantile(&told[1], 0.99).saturating_sub(quantile(&told[0], 0.99));
    Row {
        count: stage.count,
        figure: format!(
            "PgBouncer {}: terminal seen with it {}; without {}",
            program.version(),
            spread(&told[1]),
            spread(&told[0])
        ),
        is_met: told.iter().all(|times| !times.is_empty()) && later <= Duration::from_secs(1),
        is_run: true,
        findings,
    }
}
