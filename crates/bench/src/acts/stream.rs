//! Latency of events: from the worker's pipe to the bytes at one client, and at a thousand.
//!
//! The worker writes the time into each piece. Only pieces that were written while the stream was open count: pieces
//! that are replayed from the log were not late.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, sleep_until},
};

use super::reading::{NO_STATEMENTS, Reading};
use crate::{
    client::{Ask, Client},
    crew,
    frames::Frame,
    plan::AGENT,
    site::Site,
    times::Durations,
};
use lastword::{clock::steady_ns, event::Kind};

/// Pieces a second of one of few streams.
const CALM_RATE: u64 = 20;
/// Streams of a load of 2,000 events a second, and the pieces of each a second.
const BUSY: (usize, u64) = (20, 100);
/// Pieces a second of a turn that many watch.
const WATCHED_RATE: u64 = 10;
/// How long many clients may take to be there.
const GATHER_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Clients that come at once.
const OPENERS: usize = 32;
/// Statements that read the log, and do not write it.
const READS: (&str, &str) = ("%from%turn_events%", "%insert into turn_events%");

/// Where the client is, and what else goes on.
#[derive(Debug, Clone, Copy)]
pub struct StreamWay {
    /// Whether it reads on another replica than the worker's.
    pub is_other: bool,
    /// Whether there is a load.
    pub is_busy: bool,
}

/// From the worker to its client.
pub async fn events(site: &mut Site, way: StreamWay) -> anyhow::Result<Reading> {
    let sizes = site.sizes;
    let (streams, rate) = if way.is_busy { BUSY } else { (sizes.streams, CALM_RATE) };
    let (client, urls, supervisor) = (site.client.clone(), site.urls(), site.supervisor.clone());
    ensure!(urls.len() == 2, "this is measured over two replicas");
    let text = format!("/pace {} {rate} 20", (rate as f64 * sizes.load.as_secs_f64()) as u64);
    let rig = site.rig()?;
    let mut jobs = Vec::new();
    for n in 0..streams {
        let (host, reader) = (n % 2, if way.is_other { 1 - n % 2 } else { n % 2 });
        let conversation = Some(rig.conversation_on(host, AGENT).await?);
        let ask = Ask { agent: AGENT.to_owned(), text: text.clone(), conversation };
        jobs.push(one_stream(client.clone(), urls[host].clone(), urls[reader].clone(), ask, host));
    }
    let (mut times, mut strays) = (Durations::new()?, 0);
    for (part, worker, host) in crew::all(&supervisor, jobs).await? {
        if rig.host_of(&worker).await? == Some(host) {
            times.add(&part)?;
        } else {
            strays += 1;
        }
    }
    Reading::without_strays(&times, strays, streams)
}

/// Posts a turn at `url`, whose worker is on `host`, and times its pieces at `reader`: those that were
/// said once the stream was open there.
async fn one_stream(
    client: Client,
    url: String,
    reader: String,
    ask: Ask,
    host: usize,
) -> anyhow::Result<(Durations, String, usize)> {
    let (mut times, mut since) = (Durations::new()?, None);
    let turn = client.post(&url, &ask).await?;
    let seen = client
        .follow(&reader, &turn, |frame, now| time(&mut times, frame, now, *since.get_or_insert(now)))
        .await?;
    Ok((times, seen.worker, host))
}

/// Times a piece that was said after `since`.
fn time(times: &mut Durations, frame: &Frame<'_>, now: u64, since: u64) {
    if let Some(stamp) = (frame.kind == Kind::Delta).then(|| frame.stamp()).flatten()
        && stamp >= since
    {
        times.record_ns(now.saturating_sub(stamp));
    }
}

/// One event at the clients of all replicas, behind the first of them.
pub async fn lag(site: &mut Site) -> anyhow::Result<Reading> {
    let (client, supervisor, urls) = (site.client.clone(), site.supervisor.clone(), site.urls());
    let rate = CALM_RATE;
    let ask = site.ask(&format!("/pace {} {rate} 20", (rate as f64 * site.sizes.load.as_secs_f64()) as u64));
    let turn = client.post(&urls[0], &ask).await?;
    let jobs = urls.iter().cycle().take(urls.len().max(2) * 2).map(|url| {
        let (client, url, turn) = (client.clone(), url.clone(), turn.clone());
        async move {
            let mut moments = Vec::new();
            client.follow(&url, &turn, |_, now| moments.push(now)).await?;
            Ok(moments)
        }
    });
    let all = crew::all(&supervisor, jobs.collect()).await?;
    let events = all.iter().map(Vec::len).min().unwrap_or(0);
    // What was in the log when the last of them came was read by each in its own time.
    let opened = all.iter().filter_map(|moments| moments.first()).max().copied().unwrap_or(0);
    let mut times = Durations::new()?;
    for n in 0..events {
        let moments = || all.iter().map(|moments| moments[n]);
        let first = moments().min().filter(|first| *first > opened);
        if let Some(first) = first {
            moments().filter(|at| *at > first).for_each(|at| times.record_ns(at - first));
        }
    }
    Ok(Reading::default().with_times(&times))
}

/// One turn at very many clients.
pub async fn fan_out(site: &mut Site) -> anyhow::Result<Reading> {
    let (client, supervisor, urls, sizes) =
        (site.client.clone(), site.supervisor.clone(), site.urls(), site.sizes);
    // Silent until everybody should be there, and then for longer than is measured.
    let gather = (20 * sizes.watchers as u64).div_ceil(1000) + 1;
    let count = WATCHED_RATE * (sizes.watched.as_secs() + 2);
    let ask = site.ask(&format!("/pace {count} {WATCHED_RATE} 20 {gather}"));
    let (began, turn) = (Instant::now(), client.post(&urls[0], &ask).await?);
    let (there, door) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(OPENERS)));
    let watcher = |n: usize| Watcher {
        client: client.clone(),
        url: urls[n % urls.len()].clone(),
        turn: turn.clone(),
        there: there.clone(),
        door: door.clone(),
    };
    let jobs: Vec<_> = (0..sizes.watchers).map(|n| watcher(n).watch()).collect();
    let rig = site.rig()?;
    let counted = async {
        let until = Instant::now() + GATHER_MAX;
        while there.load(Ordering::Relaxed) < sizes.watchers {
            ensure!(Instant::now() < until, "the clients could not connect");
            sleep(LOOK_EVERY).await;
        }
        let since = steady_ns();
        rig.gauges.count_statements(true).await?;
        let before = rig.gauges.calls(READS.0, READS.1).await?;
        sleep_until(began + Duration::from_secs(gather) + sizes.watched).await;
        let (until, after) = (steady_ns(), rig.gauges.calls(READS.0, READS.1).await?);
        rig.gauges.count_statements(false).await?;
        Ok((since, until, after.zip(before).map(|(after, before)| after - before)))
    };
    let (all, counted) = tokio::join!(crew::all(&supervisor, jobs), counted);
    let ((all, (since, until, reads)), mut times) = ((all?, counted?), Durations::new()?);
    let mut heard: BTreeMap<u64, usize> = BTreeMap::new();
    for (stamp, at) in all.into_iter().flatten() {
        if (since..until).contains(&stamp) {
            times.record_ns(at.saturating_sub(stamp));
            *heard.entry(stamp).or_default() += 1;
        }
    }
    ensure!(heard.len() > 2, "the turn had ended before its clients were there");
    ensure!(heard.values().all(|clients| *clients == sizes.watchers), "some client missed an event");
    let each = reads.map(|reads| reads as f64 / (heard.len() * urls.len()) as f64);
    let reading = Reading::default().with_times(&times);
    Ok(reading.with_any("reads a replica and event", each, NO_STATEMENTS))
}

/// One of many clients of a turn.
struct Watcher {
    client: Client,
    url: String,
    turn: String,
    /// How many have heard something.
    there: Arc<AtomicUsize>,
    /// They do not all come at once: a rush at the door is not what is measured.
    door: Arc<Semaphore>,
}

impl Watcher {
    /// What it heard: when each piece was said, and when it came.
    async fn watch(self) -> anyhow::Result<Vec<(u64, u64)>> {
        let (mut moments, mut permit) = (Vec::new(), Some(self.door.acquire().await?));
        self.client
            .follow(&self.url, &self.turn, |frame, now| {
                if permit.take().is_some() {
                    self.there.fetch_add(1, Ordering::Relaxed);
                }
                let stamp = frame.stamp().filter(|_| frame.kind == Kind::Delta);
                moments.extend(stamp.map(|stamp| (stamp, now)));
            })
            .await
            .context("a client that watches")?;
        Ok(moments)
    }
}
