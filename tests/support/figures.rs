//! The time to a last word: from the moment of a death to a client of another replica.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::Instant;

use super::{Cluster, PATIENCE, eventually, signal};

/// Lengths of time, sorted.
pub struct Figures(Vec<Duration>);

impl Figures {
    fn of(mut times: Vec<Duration>) -> Figures {
        assert!(!times.is_empty(), "nothing was measured");
        times.sort();
        Figures(times)
    }

    /// The shortest time that this share of all is not above.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (self.0.len() as f64 * share).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        self.0[self.0.len() - 1]
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let (p50, p99) = (self.quantile(0.5), self.quantile(0.99));
        write!(f, "{:5}  {:8.1}  {:8.1}  {:8.1}", self.0.len(), ms(p50), ms(p99), ms(self.max()))
    }
}

/// Kills the worker of a turn under way, so many times; from the kill to the `failed` that a client
/// of the other replica reads.
pub async fn worker_crashes(cluster: &Cluster, agent: &str, count: usize) -> Figures {
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let living = cluster.living();
        let turn = cluster.post(living[n % living.len()], agent, "/slow 600").await;
        let worker = cluster.worker_of(&turn).await;
        let client = *living.iter().find(|&&i| i != worker.replica).expect("another replica");
        let mut stream = cluster.stream(client, &turn.id, -1).await;
        stream.until("delta", PATIENCE).await;
        let killed = Instant::now();
        signal(worker.pid, Signal::SIGKILL);
        let word = stream.until("failed", PATIENCE).await;
        times.push(killed.elapsed());
        assert_eq!(word.code(), "worker_exited", "{}", word.data);
    }
    Figures::of(times)
}

/// Kills the replica that runs a turn, so many times, and starts another in its place; from the kill
/// to the `failed` that a client of the one that is left reads.
pub async fn replica_kills(cluster: &Cluster, agent: &str, count: usize) -> Figures {
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let living = cluster.living();
        let turn = cluster.post(living[n % living.len()], agent, "/slow 600").await;
        let doomed = cluster.worker_of(&turn).await.replica;
        let client = *living.iter().find(|&&i| i != doomed).expect("another replica");
        let mut stream = cluster.stream(client, &turn.id, -1).await;
        stream.until("delta", PATIENCE).await;
        let killed = Instant::now();
        cluster.kill(doomed);
        let word = stream.until("failed", PATIENCE).await;
        times.push(killed.elapsed());
        assert_eq!(word.code(), "replica_lost", "{}", word.data);
        cluster.spawn_replica().await;
        acquainted(cluster).await;
    }
    Figures::of(times)
}

/// Waits until everybody has beaten some more. Who never saw a peer alive takes longer to judge it:
/// that is another figure, of a replica that dies in its first second.
async fn acquainted(cluster: &Cluster) {
    let mut beats: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    eventually("more beats", async || {
        let page = cluster.get(cluster.living()[0], "/v1/replicas?limit=200").await;
        let rows = page["items"].as_array().expect("a list");
        for row in rows.iter().filter(|row| row["state"] == "ready") {
            beats.entry(text(&row["id"])).or_default().insert(text(&row["beat_at"]));
        }
        (beats.len() >= cluster.living().len() && beats.values().all(|seen| seen.len() > 3)).then_some(())
    })
    .await;
}
