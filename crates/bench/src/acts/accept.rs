//! One turn at a time: from the client's request to its acceptance, to the worker, to the first event.
//!
//! Each turn is timed from the moment when its request was due. All turns belong to one conversation, whose worker is
//! warm and waits on a known replica; a turn that another replica took is not counted, and reported.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::reading::Reading;
use crate::{
    client::{Ask, TurnMoments},
    plan::{AGENT, OWN_AGENT},
    site::Site,
    times::{Durations, Timetable},
};
use lastword::clock::steady_ns;

/// How long an agent of somebody else is asked.
const IN_LINE_MAX: Duration = Duration::from_secs(60);
/// One piece, said at once.
const ONE_PIECE: &str = "/pace 1 0 20";

/// Where the worker waits.
#[derive(Debug, Clone, Copy)]
pub struct AcceptWay {
    /// The replica of the worker; turns are posted on the first.
    pub host: usize,
    /// Whether the worker serves this conversation alone.
    pub is_own_process: bool,
}

/// To the worker that has read the turn.
pub async fn accept(site: &mut Site, way: AcceptWay) -> anyhow::Result<Reading> {
    let agent = if way.is_own_process { OWN_AGENT } else { AGENT };
    let took = |from: u64, seen: &TurnMoments| Some(seen.stamp?.saturating_sub(from));
    one_by_one(site, way.host, agent, took).await
}

/// To the worker's first event at the client.
pub async fn first_event(site: &mut Site) -> anyhow::Result<Reading> {
    let took = |from: u64, seen: &TurnMoments| Some(seen.first?.saturating_sub(from));
    if site.own_rig().is_some() {
        // Nobody but the replica of a conversation's own process takes its turns.
        return one_by_one(site, 1, OWN_AGENT, took).await;
    }
    in_line(site, |seen| Some(seen.first?.saturating_sub(seen.sent))).await
}

/// To the answer that says so.
pub async fn accepted(site: &mut Site) -> anyhow::Result<Reading> {
    if site.own_rig().is_none() {
        return in_line(site, |seen| Some(seen.answered.saturating_sub(seen.sent))).await;
    }
    let (mut times, mut table) = (Durations::new()?, Timetable::every(site.sizes.turn_every));
    let (url, mut ask) = (site.url(0)?, site.ask(ONE_PIECE));
    // Warm: a conversation of its own each would start a process each. The turns run on meanwhile.
    ask.conversation = Some(site.client.run(&url, &ask, |_, _| {}).await?.conversation);
    for _ in 0..site.sizes.turns_alone {
        let from = table.next().await;
        site.client.post(&url, &ask).await?;
        times.record_ns(steady_ns().saturating_sub(from));
        table.done();
    }
    Ok(Reading::default().with_times(&times))
}

/// Somebody else's agent, which may take its time: one turn after the other, for a minute at most, each
/// timed from when it was sent.
async fn in_line(site: &Site, took: impl Fn(&TurnMoments) -> Option<u64>) -> anyhow::Result<Reading> {
    let (mut times, began) = (Durations::new()?, Instant::now());
    let (url, mut ask) = (site.url(0)?, site.ask(ONE_PIECE));
    for _ in 0..site.sizes.turns_alone {
        let seen = site.client.run(&url, &ask, |_, _| {}).await?;
        times.record_ns(took(&seen).context("a turn without an event of its worker")?);
        ask.conversation = Some(seen.conversation);
        if began.elapsed() > IN_LINE_MAX {
            break;
        }
    }
    let note = format!("{} turns, one after the other", times.count());
    Ok(Reading::default().with_times(&times).noting(note))
}

async fn one_by_one(
    site: &mut Site,
    host: usize,
    agent: &str,
    took: impl Fn(u64, &TurnMoments) -> Option<u64>,
) -> anyhow::Result<Reading> {
    let (client, sizes, url) = (site.client.clone(), site.sizes, site.url(0)?);
    let rig = site.rig()?;
    let conversation = rig.conversation_on(host, agent).await?;
    let ask = Ask { agent: agent.to_owned(), text: ONE_PIECE.to_owned(), conversation: Some(conversation) };
    let (mut times, mut strays) = (Durations::new()?, 0);
    let mut table = Timetable::every(sizes.turn_every);
    for _ in 0..sizes.turns_alone {
        let from = table.next().await;
        let seen = client.run(&url, &ask, |_, _| {}).await?;
        table.done();
        if rig.host_of(&seen.worker).await? == Some(host) {
            times.record_ns(took(from, &seen).context("a turn without a stamp")?);
        } else {
            strays += 1;
        }
    }
    Reading::without_strays(&times, strays, sizes.turns_alone as usize)
}
