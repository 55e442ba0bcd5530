//! The database's work for one turn: statements and WAL, which no machine makes faster.
//!
//! What replicas do without turns (beats, polls) is measured first, at rest, and subtracted: the rest belongs to the
//! turns.

use std::time::{Duration, Instant};

use super::reading::{NO_STATEMENTS, Reading};
use crate::{client::TurnMoments, crew, site::Site};
use anyhow::ensure;
use lastword::id::TurnId;

/// How long the work at rest is counted.
const REST: Duration = Duration::from_secs(3);
/// Clients of each replica that post the turns whose work is counted.
const CLIENTS: usize = 4;

/// Work of a number of turns, and the turns.
struct Work {
    statements: Option<f64>,
    wal_bytes: f64,
    turns: Vec<TurnMoments>,
}

/// The same turns on one, two and four replicas, with as many clients each: whoever adds replicas has more to do, and how
/// many turns share a commit depends on how many come at once.
pub async fn scale(site: &mut Site) -> anyhow::Result<Reading> {
    let (mut reading, mut found) = (Reading::default(), Vec::new());
    for (replicas, statements, wal) in [
        (1, "statements of 1", "WAL of 1"),
        (2, "statements of 2", "WAL of 2"),
        (4, "statements of 4", "WAL of 4"),
    ] {
        site.rig()?.resize(replicas).await?;
        let work = work_of(site, "/pace 20 0 20").await?;
        reading = reading.with_any(statements, work.statements, NO_STATEMENTS).with(wal, work.wal_bytes);
        found.push(work);
    }
    site.rig()?.resize(2).await?;
    let (one, four) = (&found[0], &found[2]);
    let growth = one.statements.zip(four.statements).map(|(one, four)| four / one);
    Ok(reading
        .with_any("statements, 4 to 1", growth, NO_STATEMENTS)
        .with("WAL, 4 to 1", four.wal_bytes / one.wal_bytes))
}

/// WAL beside the rows that it is for.
pub async fn wal(site: &mut Site) -> anyhow::Result<Reading> {
    let work = work_of(site, "/pace 100 200 20").await?;
    let turns: Vec<TurnId> = work.turns.iter().map(|seen| seen.turn.parse()).collect::<Result<_, _>>()?;
    let rows = site.rig()?.store.weigh(&turns).await?.bytes as f64 / turns.len() as f64;
    let reading = Reading::default().with("WAL", work.wal_bytes).with("rows", rows);
    Ok(reading.with("WAL to rows", work.wal_bytes / rows))
}

/// Runs the turns of a count, and says what one of them took of the database.
async fn work_of(site: &mut Site, script: &str) -> anyhow::Result<Work> {
    let (count, client, supervisor) =
        (site.sizes.counted_turns, site.client.clone(), site.supervisor.clone());
    let clients = CLIENTS * site.urls().len();
    let jobs = (0..clients).map(|n| {
        let (client, url, mut ask) = (client.clone(), site.url(n), site.ask(script));
        let share = count / clients;
        async move {
            let url = url?;
            // Outside the count: what starts a process, and what fills a cache.
            ask.conversation = Some(client.run(&url, &ask, |_, _| {}).await?.conversation);
            Ok((client, url, ask, share))
        }
    });
    let warm = crew::all(&supervisor, jobs.collect()).await?;
    let rig = site.rig()?;
    let rest = rig.at_rest(REST).await?.tally;
    let began = Instant::now();
    let (turns, counted) = rig
        .counted(async |_| {
            let jobs = warm.into_iter().map(|(client, url, ask, share)| async move {
                let mut all = Vec::with_capacity(share);
                for _ in 0..share {
                    all.push(client.run(&url, &ask, |_, _| {}).await?);
                }
                Ok(all)
            });
            Ok(crew::all(&supervisor, jobs.collect()).await?.concat())
        })
        .await?;
    let of_time = began.elapsed().as_secs_f64() / REST.as_secs_f64();
    ensure!(!turns.is_empty(), "no turn was counted");
    let each = |counted: i64, rest: i64| (counted as f64 - rest as f64 * of_time) / turns.len() as f64;
    let counted = counted.tally;
    let statements = counted.statements.zip(rest.statements).map(|(all, rest)| each(all, rest));
    Ok(Work { statements, wal_bytes: each(counted.wal_bytes, rest.wal_bytes), turns })
}
