//! Load: the highest rate of turns, and of events, that two replicas sustain.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::time::{Instant, sleep};

use super::reading::Reading;
use crate::{
    client::{Ask, Client, TurnMoments},
    crew,
    plan::AgentScope,
    site::Site,
    times::Durations,
};
use lastword::{clock::steady_ns, telemetry::metrics};

/// Streams that pour, where they are few.
const FEW: usize = 8;
/// How long the queue may take to be empty.
const DRAIN_MAX: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Conversations of a queue, where each has a process.
const CONVERSATIONS: usize = 32;
/// How many replicas count as many.
const MANY_REPLICAS: usize = 10;

/// Turns in a closed loop.
pub async fn turns(site: &mut Site) -> anyhow::Result<Reading> {
    let all = closed_loop(site, site.sizes.clients, site.sizes.load).await?;
    let mut times = Durations::new()?;
    for seen in &all {
        times.record_ns(seen.ended - seen.sent);
    }
    let rate = rate(all.len(), &all).context("no turn was completed")?;
    Ok(Reading::default().with("turns", rate).with_times(&times))
}

/// Things a second, from the first request to the last answer.
fn rate(things: usize, all: &[TurnMoments]) -> Option<f64> {
    let (first, last) = (all.iter().map(|seen| seen.sent).min()?, all.iter().map(|seen| seen.ended).max()?);
    Some(things as f64 / (last.checked_sub(first)? as f64 / 1e9))
}

/// Clients that post, wait for the end, and post again, for so long. Where each conversation has a
/// process of its own, a client keeps to one, or starts of processes would be all that is measured.
pub async fn closed_loop(site: &Site, clients: usize, time: Duration) -> anyhow::Result<Vec<TurnMoments>> {
    let keeps = site.own_rig().is_none_or(|rig| rig.plan.scope == AgentScope::Conversation);
    let began = Instant::now();
    let jobs = (0..clients).map(|n| {
        let (client, url, mut ask) = (site.client.clone(), site.url(n), site.ask("/pace 1 0 20"));
        async move {
            let (url, mut all) = (url?, Vec::new());
            while began.elapsed() < time {
                let seen = client.run(&url, &ask, |_, _| {}).await?;
                ask.conversation = keeps.then(|| seen.conversation.clone());
                all.push(seen);
            }
            Ok(all)
        }
    });
    Ok(crew::all(&site.supervisor, jobs.collect()).await?.concat())
}

/// A queue that is there all at once. The database says when the last of it ended: a look at the queue
/// costs, and so it is seldom looked at.
pub async fn drain(site: &mut Site) -> anyhow::Result<Reading> {
    let count = site.sizes.drained;
    let rig = site.rig()?;
    let conversations = if rig.plan.scope == AgentScope::Shared { count } else { CONVERSATIONS.min(count) };
    let turns = rig.park("/pace 1 0 20", conversations, count / conversations).await?;
    let began_at = rig.store.unpark().await?;
    let began = Instant::now();
    while rig.store.is_busy().await? {
        ensure!(began.elapsed() < DRAIN_MAX, "the queue is not empty after {DRAIN_MAX:?}");
        sleep(LOOK_EVERY).await;
    }
    let weight = rig.store.weigh(&turns).await?;
    ensure!(
        weight.completed == turns.len() as i64,
        "{} of {} turns completed",
        weight.completed,
        turns.len()
    );
    let took =
        weight.finished_at.and_then(|at| (at - began_at).to_std().ok()).context("no turn has ended")?;
    let reading = Reading::default().with("turns", turns.len() as f64 / took.as_secs_f64());
    Ok(reading.noting(format!("{} turns in {conversations} conversations", turns.len())))
}

/// Workers that say as much as they can, and a client for each.
pub async fn durable(site: &mut Site, is_many: bool) -> anyhow::Result<Reading> {
    let streams = if is_many { site.sizes.streams_many } else { FEW };
    let text = format!("/pour {} 20", site.sizes.pour_s);
    // The first turn of a conversation may start its process: not while others pour.
    let (client, supervisor) = (site.client.clone(), site.supervisor.clone());
    let warm = (0..streams).map(|n| warmed(client.clone(), site.url(n), site.ask("hello")));
    let warm = crew::all(&supervisor, warm.collect()).await?;
    let jobs = warm.into_iter().map(|(url, ask)| {
        let (client, ask) = (client.clone(), Ask { text: text.clone(), ..ask });
        async move { client.run(&url, &ask, |_, _| {}).await }
    });
    let all = crew::all(&supervisor, jobs.collect()).await?;
    let pieces: u64 = all.iter().map(|seen| seen.pieces).sum();
    let first = all.iter().filter_map(|seen| seen.first).min().context("no event came")?;
    let last = all.iter().map(|seen| seen.last).max().unwrap_or(first);
    let rate = pieces as f64 / ((last - first) as f64 / 1e9);
    Ok(Reading::default().with("events", rate).noting(format!("{streams} streams")))
}

/// A conversation whose worker is warm.
async fn warmed(client: Client, url: anyhow::Result<String>, ask: Ask) -> anyhow::Result<(String, Ask)> {
    let url = url?;
    let seen = client.run(&url, &ask, |_, _| {}).await?;
    Ok((url, Ask { conversation: Some(seen.conversation), ..ask }))
}

/// How often a replica rings, whatever is asked of it.
pub async fn rings(site: &mut Site) -> anyhow::Result<Reading> {
    let of_two = most_rings(site).await?;
    site.rig()?.resize(MANY_REPLICAS).await?;
    let of_ten = most_rings(site).await;
    site.rig()?.resize(2).await?;
    Ok(Reading::default().with("of two", of_two).with("of ten", of_ten?))
}

/// Rings a second of the replica that rang most, under turns and then under events.
async fn most_rings(site: &mut Site) -> anyhow::Result<f64> {
    let mut most: f64 = 0.0;
    for is_events in [false, true] {
        let (before, began) = (site.rig()?.metric(metrics::DOORBELL_RINGS).await?, steady_ns());
        if is_events {
            paced(site).await?;
        } else {
            closed_loop(site, site.sizes.clients, site.sizes.load / 2).await?;
        }
        let seconds = (steady_ns() - began) as f64 / 1e9;
        let after = site.rig()?.metric(metrics::DOORBELL_RINGS).await?;
        let rates = after.iter().zip(&before).map(|(after, before)| (after - before) / seconds);
        most = rates.fold(most, f64::max);
    }
    Ok(most)
}

/// Streams that together bring some two thousand events a second.
async fn paced(site: &Site) -> anyhow::Result<()> {
    let seconds = (site.sizes.load / 2).as_secs_f64();
    let text: Arc<str> = format!("/pace {} 100 20", (100.0 * seconds) as u64).into();
    let jobs = (0..20).map(|n| {
        let (client, url, ask) = (site.client.clone(), site.url(n), site.ask(&text));
        async move { client.run(&url?, &ask, |_, _| {}).await }
    });
    crew::all(&site.supervisor, jobs.collect()).await.map(drop)
}
