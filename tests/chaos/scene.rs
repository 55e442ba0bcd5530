//! One drill's scene: a fleet, its load, its history, and the checks after the last fault is healed.
//!
//! Owns the order: load first, then faults, then healing, then five operations at each replica, then the end of every
//! turn, and only then the checker. A drill adds its own faults and its own figure, nothing else.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use sqlx::Row;
use tokio::time::Instant;

use crate::{
    checker::{self, Allowances, Findings},
    client::{Accepted, Ask},
    fleet::Fleet,
    history::{self, Fact, History, Outcome},
    load::{Load, Mix},
    plan::{Ground, Plan},
};

/// Turns that must have been accepted before anything is broken.
const WARM_UP_TURNS: usize = 12;
const WARM_UP_MAX: Duration = Duration::from_secs(60);
/// What each replica must serve after the last heal, and how soon.
const LAST_OPERATIONS: usize = 5;
const LAST_MAX: Duration = Duration::from_secs(30);
/// What Postgres accepted in the last moment before a fault, and no client heard of, is found by its replica in two
/// passes of 5 s, and then runs.
const SETTLED_MAX: Duration = Duration::from_secs(30);

/// What a drill is given.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Everything that is drawn comes from here.
    pub seed: u64,
    /// How often the fault should happen.
    pub count: usize,
    /// Where histories go.
    pub dir: PathBuf,
    /// The drill's name, for its files.
    pub name: &'static str,
}

impl Stage {
    /// The drill's own dice.
    pub fn rng(&self) -> StdRng {
        // Another stream for each drill: a drill that draws more must not change its neighbours.
        let name = self.name.bytes().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        StdRng::seed_from_u64(self.seed ^ name)
    }

    /// A new history file.
    pub fn history(&self) -> Arc<History> {
        Arc::new(History::create(self.dir.join(format!("{}.jsonl", self.name))).expect("a history"))
    }
}

/// Where a drill breaks things.
pub struct Scene {
    pub fleet: Arc<Fleet>,
    pub load: Load,
    pub history: Arc<History>,
    nemesis: Mutex<StdRng>,
    rng: Mutex<StdRng>,
}

impl Scene {
    /// A fleet on its own Postgres.
    pub async fn open(stage: &Stage, plan: Plan, mix: Mix) -> Scene {
        let history = stage.history();
        let fleet = Fleet::start(plan, &history).await;
        Scene::on(stage, fleet, history, mix).await
    }

    /// A fleet on a database that the drill brought.
    pub async fn over(stage: &Stage, ground: Ground, plan: Plan, mix: Mix) -> Scene {
        let history = stage.history();
        let fleet = Fleet::over(ground, plan, &history).await;
        Scene::on(stage, fleet, history, mix).await
    }

    async fn on(stage: &Stage, fleet: Arc<Fleet>, history: Arc<History>, mix: Mix) -> Scene {
        let mut nemesis = stage.rng();
        let mut rng = StdRng::seed_from_u64(nemesis.random());
        let load = Load::start(&fleet, mix, rng.random());
        let (nemesis, rng) = (Mutex::new(nemesis), Mutex::new(rng));
        let scene = Scene { fleet, load, history, nemesis, rng };
        scene.warm_up().await;
        scene.history.phase("warm");
        scene
    }

    /// The dice that say what is broken when. Drawn from in the drill's own order only, so the same
    /// seed is the same schedule.
    pub fn nemesis(&self) -> MutexGuard<'_, StdRng> {
        self.nemesis.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dice of one's own for everything else, whose order the machine decides.
    pub fn rng(&self) -> StdRng {
        StdRng::seed_from_u64(self.rng.lock().unwrap_or_else(PoisonError::into_inner).random())
    }

    /// Posts a turn of the drill's own.
    pub async fn post(&self, ask: &Ask) -> Accepted {
        let mut rng = self.rng();
        self.load.client().post(ask, &mut rng).await.expect("a keyed post is told its turn")
    }

    /// The turns of `turns` that run now: turn, worker's process id (of a remote one its host's), replica's
    /// process id.
    pub async fn running(&self, turns: &[Accepted]) -> Vec<(Accepted, i32, i32)> {
        let mut admin = self.fleet.admin().await;
        let rows = sqlx::query(
            "select i.turn_id, coalesce(w.pid, split_part(w.name, ':', 2)::int) as pid, r.pid as replica_pid
               from inflight i join workers w on w.id = i.worker join replicas r on r.id = i.replica
              where i.phase = 'running'",
        );
        let rows = rows.fetch_all(&mut admin).await.unwrap();
        let found = rows.iter().filter_map(|row| {
            let id = format!("turn_{}", row.get::<uuid::Uuid, _>("turn_id").simple());
            let turn = turns.iter().find(|turn| turn.turn == id)?.clone();
            Some((turn, row.get("pid"), row.get("replica_pid")))
        });
        found.collect()
    }

    /// Lets one more observer follow each of these turns, on a replica that is none of `broken`.
    pub fn observe_elsewhere(&self, turns: &[String], broken: &[usize]) {
        let slot = (0..self.fleet.size()).find(|slot| !broken.contains(slot)).expect("a whole replica");
        for turn in turns {
            self.load.observe_from(turn, slot, &mut self.rng());
        }
    }

    /// Waits until every living replica has been seen by the others for some beats.
    pub async fn acquainted(&self) {
        self.acquainted_with(self.fleet.size() as i64).await;
    }

    /// The same for so many replicas.
    pub async fn acquainted_with(&self, count: i64) {
        let mut admin = self.fleet.admin().await;
        let until = Instant::now() + WARM_UP_MAX;
        loop {
            let young: i64 =
                sqlx::query_scalar("select count(*) from replicas where state = 'ready' and beat_n < 5")
                    .fetch_one(&mut admin)
                    .await
                    .unwrap();
            let ready: i64 = sqlx::query_scalar("select count(*) from replicas where state = 'ready'")
                .fetch_one(&mut admin)
                .await
                .unwrap();
            if young == 0 && ready == count {
                return;
            }
            assert!(Instant::now() < until, "{ready} replicas are ready, {young} of them young");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Everything is healed: each replica serves its last operations, every turn comes to its end,
    /// and the checker reads all of it.
    pub async fn close(self, allow: Allowances) -> Findings {
        self.history.phase("healed");
        for slot in 0..self.fleet.size() {
            self.serve_last(slot).await;
        }
        let Scene { fleet, load, history, .. } = self;
        load.stop().await;
        until_settled(&fleet).await;
        history.phase("over");
        let lines = history::read(history.flush()).expect("the history that was written");
        let mut findings = match checker::check(&lines, &fleet.receipts(), &mut fleet.admin().await, allow)
            .await
        {
            Ok(findings) => findings,
            Err(why) => Findings { complaints: vec![format!("not judged: {why:#}")], ..Findings::default() },
        };
        if let Err(said) = fleet.verify() {
            let mut broken = said.lines().filter(|line| line.starts_with("BROKEN"));
            // It knows the order of turns by their times.
            if !allow.clock_was_stepped || !broken.all(|line| line.starts_with("BROKEN I9")) {
                findings.complaints.push(format!("verify: {said}"));
            }
        }
        if let Err(why) = fleet.keep_logs(&history.flush().with_extension("logs")) {
            findings.complaints.push(format!("logs not kept: {why}"));
        }
        findings.complaints.extend(fleet.panics());
        findings.complaints.extend(fleet.end().into_iter().map(|left| format!("left behind: {left}")));
        findings
    }

    async fn serve_last(&self, slot: usize) {
        let note = |f, what: &str, why| {
            self.history.note(Fact::Last { f, slot, what: what.to_owned(), why });
        };
        for n in 0..LAST_OPERATIONS {
            let began = Instant::now();
            let nonce = format!("last-{slot}-{n}");
            let posted = loop {
                // It may be a moment before a replica that was healed takes turns again, no longer.
                match self.load.client().post_once(&Ask::demo("good day"), &nonce, slot).await {
                    (Outcome::Ok, Some(turn)) => break Some(turn),
                    _ if began.elapsed() > LAST_MAX => break None,
                    _ => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            };
            let Some(turn) = posted else {
                return note(Outcome::Fail, "a post", Some(format!("not within {LAST_MAX:?}")));
            };
            let mut rng = self.rng();
            let mut hear = self.load.observe_and_tell(&turn, slot, &mut rng);
            let end = tokio::time::timeout(LAST_MAX, async {
                let mut last = None;
                while let Some(event) = hear.recv().await {
                    last = Some(event["kind"].clone());
                }
                last
            });
            match end.await {
                Ok(Some(kind)) if kind == "completed" => note(Outcome::Ok, "a turn", None),
                other => note(Outcome::Fail, "a turn", Some(format!("{other:?}"))),
            }
        }
    }

    async fn warm_up(&self) {
        let until = Instant::now() + WARM_UP_MAX;
        let mut admin = self.fleet.admin().await;
        loop {
            let count: i64 = sqlx::query_scalar("select count(*) from turns where status = 'completed'")
                .fetch_one(&mut admin)
                .await
                .unwrap();
            if count >= WARM_UP_TURNS as i64 {
                return;
            }
            assert!(Instant::now() < until, "only {count} turns were completed before any fault");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Waits until nothing is in flight; what is left after too long is the checker's to tell.
async fn until_settled(fleet: &Fleet) {
    let mut admin = fleet.admin().await;
    let until = Instant::now() + SETTLED_MAX;
    while Instant::now() < until {
        let left: i64 =
            sqlx::query_scalar("select count(*) from inflight").fetch_one(&mut admin).await.unwrap();
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Long turns that a drill keeps under way, so that each fault has something to hit.
#[derive(Default)]
pub struct Ballast {
    turns: Vec<Accepted>,
}

impl Ballast {
    /// Brings it up to `count` turns that run; those that run, with the process ids of worker and
    /// replica.
    pub async fn fill(&mut self, scene: &Scene, count: usize) -> Vec<(Accepted, i32, i32)> {
        let until = Instant::now() + WARM_UP_MAX;
        loop {
            let running = scene.running(&self.turns).await;
            if running.len() >= count {
                return running;
            }
            assert!(Instant::now() < until, "{} of {count} turns run", running.len());
            // Those that ended are gone from here; those that wait are not yet there.
            let open = self.open(scene).await;
            self.turns.retain(|turn| open.contains(&turn.turn));
            for _ in self.turns.len()..count {
                let turn = scene.post(&Ask::demo("/slow 100000")).await;
                let mut rng = scene.rng();
                scene.load.observe(&turn, None, &mut rng);
                self.turns.push(turn);
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// All of them, those that have ended too.
    pub fn turns(&self) -> &[Accepted] {
        &self.turns
    }

    /// Cancels what is left.
    pub async fn drop_all(self, scene: &Scene) {
        let mut rng = scene.rng();
        for turn in self.turns {
            scene.load.client().cancel(&turn.turn, &mut rng).await;
        }
    }

    async fn open(&self, scene: &Scene) -> Vec<String> {
        let mut admin = scene.fleet.admin().await;
        let ids: Vec<uuid::Uuid> =
            sqlx::query_scalar("select turn_id from inflight").fetch_all(&mut admin).await.unwrap();
        ids.iter().map(|id| format!("turn_{}", id.simple())).collect()
    }
}
