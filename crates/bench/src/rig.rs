//! The bench's own installation: a private Postgres, replicas, and two agents.
//!
//! Owns all of it, in a directory that is deleted at the end; its parts are the plan's. Postgres runs with full
//! durability (`fsync`, `synchronous_commit` and `full_page_writes` on) unless only counts are taken.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use tokio::time::{Instant, sleep};

use super::{
    client::{Ask, Client},
    figures::number,
    plan::{AGENT, PastTurns, RigPlan},
    replica::Replica,
};
use lastword::{
    config::Config,
    id::TurnId,
    store::{
        Store,
        fixtures::{OpenTransaction, ParkedTurns},
        gauges::{Gauges, Tally},
        limits::MachineLimits,
    },
};
use lastword_devkit::postgres::Postgres;

/// How long what is under way may take to end.
const QUIET_MAX: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often a conversation is begun anew until its worker is where it should be.
const PLACING_TRIES: usize = 60;

/// Statements that are told one by one.
const STATEMENTS_TOLD: usize = 25;

/// What Postgres counted meanwhile.
#[derive(Debug)]
pub struct Counted {
    /// All of it.
    pub tally: Tally,
    /// Which statements, the most frequent first.
    pub by_statement: Vec<(String, i64)>,
}

impl Counted {
    /// The most frequent statements, each as often as it was sent in one of so many parts.
    pub fn most(&self, parts: f64) -> Vec<String> {
        let most = self.by_statement.iter().take(STATEMENTS_TOLD);
        most.map(|(text, calls)| format!("{:>7} × {text}", number(*calls as f64 / parts))).collect()
    }
}

/// A running installation. The fields go in the order in which they must end.
pub struct Rig {
    replicas: Vec<Replica>,
    workers: BTreeMap<String, usize>,
    _held: Option<OpenTransaction>,
    /// The statements of a measurement.
    pub store: Store,
    /// What Postgres counts.
    pub gauges: Gauges,
    /// What Postgres can do at best.
    pub limits: MachineLimits,
    /// Who asks the replicas.
    pub client: Client,
    /// What was started.
    pub plan: RigPlan,
    token: String,
    postgres: Postgres,
    place: RigDirectory,
}

impl Rig {
    /// Starts it all with two replicas. `tell` hears what takes long.
    pub async fn start(plan: RigPlan, tell: impl Fn(&str)) -> anyhow::Result<Rig> {
        let place = RigDirectory::new(&plan.dir)?;
        let postgres = plan.postgres(&place.0)?;
        let store = Store::open(&Config { database_url: postgres.url(), ..Config::default() })?;
        plan.migrate(&postgres)?;
        store.probe().await?;
        if let Some(history) = plan.history {
            make_history(&store, history, &tell).await?;
        }
        let held = if plan.is_held { Some(store.hold_transaction().await?) } else { None };
        let mut gauges = store.gauges().await?;
        gauges.count_statements(false).await?;
        let token: String = rand::random::<[u8; 16]>().iter().map(|byte| format!("{byte:02x}")).collect();
        let client = Client::new(&["http://127.0.0.1".to_owned()], Some(token.clone()))?;
        let mut rig = Rig {
            replicas: Vec::new(),
            workers: BTreeMap::new(),
            _held: held,
            limits: store.limits().await?,
            gauges,
            store,
            client,
            plan,
            token,
            postgres,
            place,
        };
        rig.resize(2).await?;
        rig.put_agents().await?;
        Ok(rig)
    }

    /// Where the replicas listen.
    pub fn urls(&self) -> Vec<String> {
        self.replicas.iter().map(|replica| replica.url.clone()).collect()
    }

    /// Where the database is kept.
    pub fn data(&self) -> &Path {
        self.postgres.data()
    }

    /// Replica `n`.
    pub fn replica(&self, n: usize) -> anyhow::Result<&Replica> {
        self.replicas.get(n).with_context(|| format!("there is no replica {n}"))
    }

    /// Starts replicas, or lets the newest leave, until there are so many.
    pub async fn resize(&mut self, count: usize) -> anyhow::Result<()> {
        while self.replicas.len() > count {
            if let Some(replica) = self.replicas.pop() {
                replica.leave().await?;
            }
        }
        while self.replicas.len() < count {
            self.add().await?;
        }
        Ok(())
    }

    /// Starts one more replica; how long it took until it was ready.
    pub async fn add(&mut self) -> anyhow::Result<Duration> {
        let log = self.place.0.join(format!("replica-{}.log", self.replicas.len()));
        let (replica, took) =
            Replica::start(|| self.plan.serve(&self.postgres, &self.place.0, &self.token), log, &self.client)
                .await?;
        self.replicas.push(replica);
        Ok(took)
    }

    /// Waits until no turn is under way.
    pub async fn quiet(&self) -> anyhow::Result<()> {
        let until = Instant::now() + QUIET_MAX;
        while self.store.is_busy().await? {
            ensure!(Instant::now() < until, "turns are still under way after {QUIET_MAX:?}");
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Counts while `work` is under way.
    pub async fn counted<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Rig) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Counted)> {
        self.gauges.count_statements(true).await?;
        let (before, sent) = (self.gauges.tally().await?, self.gauges.calls_by_statement().await?);
        let done = work(self).await;
        let (after, all) = (self.gauges.tally().await?, self.gauges.calls_by_statement().await?);
        self.gauges.count_statements(false).await?;
        let mut by_statement: Vec<(String, i64)> = all
            .into_iter()
            .map(|(text, calls)| {
                let before = sent.get(&text).copied().unwrap_or(0);
                (text, calls - before)
            })
            .filter(|(_, calls)| *calls > 0)
            .collect();
        by_statement.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
        Ok((done?, Counted { tally: after.since(before), by_statement }))
    }

    /// Counts what replicas do by themselves within so long.
    pub async fn at_rest(&mut self, time: Duration) -> anyhow::Result<Counted> {
        let nothing = async |_: &mut Rig| {
            sleep(time).await;
            Ok(())
        };
        Ok(self.counted(nothing).await?.1)
    }

    /// A conversation whose worker waits on replica `host`.
    pub async fn conversation_on(&mut self, host: usize, agent: &str) -> anyhow::Result<String> {
        let url = self.replica(host)?.url.clone();
        for _ in 0..PLACING_TRIES {
            let ask = Ask { agent: agent.to_owned(), text: "hello".to_owned(), conversation: None };
            let seen = self.client.run(&url, &ask, |_, _| {}).await?;
            if self.host_of(&seen.worker).await? == Some(host) {
                return Ok(seen.conversation);
            }
        }
        bail!("no conversation found its worker on replica {host} in {PLACING_TRIES} tries")
    }

    /// The replica that hosts a worker; `None` where none of ours does.
    pub async fn host_of(&mut self, worker: &str) -> anyhow::Result<Option<usize>> {
        if let Some(&host) = self.workers.get(worker) {
            return Ok(Some(host));
        }
        let url = self.replica(0)?.url.clone();
        let seen = self.client.get(&url, &format!("/v1/workers/{worker}")).await?;
        let list = self.client.get(&url, "/v1/replicas?limit=200").await?;
        let rows = list["items"].as_array().context("no list of replicas")?;
        let row = rows.iter().find(|row| row["id"] == seen["replica_id"]);
        let host = row.and_then(|row| self.replicas.iter().position(|replica| row["url"] == replica.url));
        if let Some(host) = host {
            self.workers.insert(worker.to_owned(), host);
        }
        Ok(host)
    }

    /// Turns that wait where no replica takes them.
    pub async fn park(
        &self,
        text: &str,
        conversations: usize,
        turns_each: usize,
    ) -> anyhow::Result<Vec<TurnId>> {
        let agent = self.store.agent(AGENT).await?.context("the agent is gone")?.agent;
        let wanted = ParkedTurns { agent: AGENT, revision: agent.revision, text, conversations, turns_each };
        Ok(self.store.park(wanted).await?)
    }

    /// A counter of each replica's metrics, all labels together.
    pub async fn metric(&self, name: &str) -> anyhow::Result<Vec<f64>> {
        let mut counts = Vec::with_capacity(self.replicas.len());
        for replica in &self.replicas {
            let page = self.client.text(&replica.url, "/metrics").await?;
            counts.push(sum_of(&page, name));
        }
        Ok(counts)
    }

    async fn put_agents(&self) -> anyhow::Result<()> {
        let url = self.replica(0)?.url.clone();
        for (name, spec) in self.plan.agents()? {
            let put = self.client.put(&url, &format!("/v1/agents/{name}"), &spec).await;
            put.with_context(|| format!("the agent `{name}` was refused"))?;
        }
        Ok(())
    }
}

async fn make_history(store: &Store, history: PastTurns, tell: &impl Fn(&str)) -> anyhow::Result<()> {
    let mut told = Instant::now();
    store
        .make_history(history.turns, history.events_each, history.span, |made| {
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                tell(&format!("history: {} turns and {} events so far", made.turns, made.events));
            }
        })
        .await?;
    Ok(())
}

/// The sum of a metric over its labels, in a page of Prometheus' text form.
fn sum_of(page: &str, name: &str) -> f64 {
    let values = page.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok()).flatten()
    });
    values.sum()
}

/// A directory of this one measurement, removed when it is over.
struct RigDirectory(PathBuf);

impl RigDirectory {
    fn new(dir: &Path) -> anyhow::Result<RigDirectory> {
        let name = format!("lastword-bench-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let place = std::path::absolute(dir)?.join(name);
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        Ok(RigDirectory(place))
    }
}

impl Drop for RigDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_never_mistaken_for_another() {
        let page = "# TYPE rings counter\nrings 3\nrings{why=\"a\"} 4\nrings_total 9\n";
        assert_eq!(sum_of(page, "rings"), 7.0);
        assert_eq!(sum_of(page, "silence"), 0.0);
    }
}
