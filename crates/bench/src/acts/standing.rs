//! Costs at rest: idle replicas, silent turns, silent streams; and the start of a replica.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, sleep},
};

use super::reading::{NO_STATEMENTS, Reading};
use crate::{crew, figures::median, rig::Rig, site::Site};

/// The replicas of an installation at rest.
const REPLICAS: f64 = 2.0;
/// What is left to be done by what happened before.
const CALM: Duration = Duration::from_secs(2);
/// How long counts of Postgres may lag.
const STATISTICS_MAX: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The beat, and nothing else.
const BEATS: (&str, &str) = ("%update replicas%beat_n + 1%", "");
/// Clients that post at once.
const POSTERS: usize = 16;
/// Streams that are opened at once.
const OPENERS: usize = 64;
/// How long many turns may take to begin.
const BEGIN_MAX: Duration = Duration::from_secs(120);
/// Longer than the pause between two keep-alives.
const KEEP_ALIVE: Duration = Duration::from_secs(16);

/// Statements of a replica that has nothing to do.
pub async fn idle(site: &mut Site) -> anyhow::Result<Reading> {
    let time = site.sizes.idle;
    let rig = site.rig()?;
    sleep(CALM).await;
    let (updates, only) = rig.gauges.updates("replicas").await?;
    let counted = rig.at_rest(time).await?;
    let replica_seconds = time.as_secs_f64() * REPLICAS;
    let statements = counted.tally.statements.map(|all| all as f64 / replica_seconds);
    let until = Instant::now() + STATISTICS_MAX;
    let heap_only = loop {
        let (all_now, only_now) = rig.gauges.updates("replicas").await?;
        if all_now > updates {
            break 100.0 * (only_now - only) as f64 / (all_now - updates) as f64;
        }
        ensure!(Instant::now() < until, "Postgres counts no beats");
        sleep(LOOK_EVERY).await;
    };
    let reading = Reading::default()
        .with_any("statements a second", statements, NO_STATEMENTS)
        .with("heap-only", heap_only);
    Ok(counted.most(replica_seconds).into_iter().fold(reading, Reading::noting))
}

/// Statements while very many turns are with a worker that says nothing.
pub async fn heartbeats(site: &mut Site) -> anyhow::Result<Reading> {
    let (sizes, client, supervisor) = (site.sizes, site.client.clone(), site.supervisor.clone());
    let time = sizes.idle;
    let rig = site.rig()?;
    sleep(CALM).await;
    let at_rest = rig.at_rest(time).await?;
    // Long enough for all of them to begin, and for the count.
    let hold = time + Duration::from_millis(4 * sizes.held_turns as u64) + CALM * 4;
    let ask = site.ask(&format!("/hold {}", hold.as_secs()));
    let posters = (0..POSTERS).map(|n| {
        let (client, url, ask) = (client.clone(), site.url(n), ask.clone());
        let share = sizes.held_turns / POSTERS + usize::from(n < sizes.held_turns % POSTERS);
        async move {
            let url = url?;
            for _ in 0..share {
                client.post(&url, &ask).await?;
            }
            Ok(())
        }
    });
    crew::all(&supervisor, posters.collect()).await?;
    let rig = site.rig()?;
    let until = Instant::now() + BEGIN_MAX;
    while rig.store.running().await? < sizes.held_turns as i64 {
        ensure!(Instant::now() < until && rig.store.is_busy().await?, "not all turns began, or some ended");
        sleep(LOOK_EVERY).await;
    }
    sleep(CALM).await;
    let counting = async |rig: &mut Rig| {
        let before = rig.gauges.calls(BEATS.0, BEATS.1).await?;
        sleep(time).await;
        let after = rig.gauges.calls(BEATS.0, BEATS.1).await?;
        Ok(after.zip(before).map(|(after, before)| after - before))
    };
    let (beats, busy) = rig.counted(counting).await?;
    ensure!(rig.store.running().await? == sizes.held_turns as i64, "some turns ended during the count");
    let a_second = |count: Option<i64>| count.map(|count| count as f64 / time.as_secs_f64());
    Ok(Reading::default()
        .with_any("beats a second", a_second(beats), NO_STATEMENTS)
        .with_any("statements a second", a_second(busy.tally.statements), NO_STATEMENTS)
        .with_any("statements a second, idle", a_second(at_rest.tally.statements), NO_STATEMENTS)
        .noting(format!("{} turns", sizes.held_turns)))
}

/// Memory of a fresh replica, and of what it holds for streams without news: each of a turn of its own,
/// since readers of one turn share.
pub async fn memory(site: &mut Site) -> anyhow::Result<Reading> {
    let (sizes, supervisor) = (site.sizes, site.supervisor.clone());
    let rig = site.rig()?;
    let turns = rig.park("never mind", sizes.idle_streams, 1).await?;
    rig.add().await?;
    let url = rig.urls().pop().context("there is no replica")?;
    let before = rig.replica(2)?.resident_bytes()?;
    let address: SocketAddr = url.trim_start_matches("http://").parse()?;
    let token = rig.client.token().unwrap_or_default().to_owned();
    let turn = Arc::new(Semaphore::new(OPENERS));
    let openers = turns.iter().map(|id| {
        let (request, turn) = (request_for(&format!("turns/{id}"), address, &token), turn.clone());
        async move {
            let _permit = turn.acquire().await?;
            open(address, &request, "event: accepted").await
        }
    });
    let streams = crew::all(&supervisor, openers.collect()).await;
    // A keep-alive went out to each of them.
    sleep(if sizes.is_short { Duration::ZERO } else { KEEP_ALIVE }).await;
    let after = rig.replica(2)?.resident_bytes()?;
    let streams = streams?;
    let each = after.saturating_sub(before) as f64 / streams.len() as f64 / 1024.0;
    drop(streams);
    rig.resize(2).await?;
    rig.store.remove_parked().await?;
    Ok(Reading::default()
        .with("replica", after as f64 / 1e6)
        .with("a stream", each)
        .with("replica before", before as f64 / 1e6)
        .noting(format!("{} streams", sizes.idle_streams)))
}

fn request_for(whose: &str, address: SocketAddr, token: &str) -> String {
    format!(
        "GET /v1/{whose}/events HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
         Accept: text/event-stream\r\n\r\n"
    )
}

/// A stream, open, read up to these words: by hand, so that ten thousand cost this process little.
async fn open(address: SocketAddr, request: &str, until: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    // Else ten thousand ports would wait for a minute after each run.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.write_all(request.as_bytes()).await?;
    let (mut said, mut buffer) = (Vec::new(), [0; 2048]);
    while !said.windows(until.len()).any(|window| window == until.as_bytes()) {
        let taken = stream.read(&mut buffer).await?;
        ensure!(taken > 0, "a stream was refused: {}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&buffer[..taken]);
    }
    Ok(stream)
}

/// Statements for very many streams of conversations, each of which has told all there is.
pub async fn idle_conversations(site: &mut Site) -> anyhow::Result<Reading> {
    let (sizes, client, supervisor) = (site.sizes, site.client.clone(), site.supervisor.clone());
    let (time, ask, urls) = (sizes.idle, site.ask("/pace 1 0 20"), site.urls());
    let posters = (0..POSTERS).map(|n| {
        let (client, url, ask) = (client.clone(), site.url(n), ask.clone());
        let share = sizes.idle_conversations / POSTERS + usize::from(n < sizes.idle_conversations % POSTERS);
        async move {
            let (url, mut made) = (url?, Vec::with_capacity(share));
            for _ in 0..share {
                made.push(client.run(&url, &ask, |_, _| {}).await?.conversation);
            }
            Ok(made)
        }
    });
    let conversations = crew::all(&supervisor, posters.collect()).await?.concat();
    let rig = site.rig()?;
    sleep(CALM).await;
    let at_rest = rig.at_rest(time).await?;
    let before = rig.replica(0)?.resident_bytes()? + rig.replica(1)?.resident_bytes()?;
    let (token, turn) =
        (rig.client.token().unwrap_or_default().to_owned(), Arc::new(Semaphore::new(OPENERS)));
    let mut openers = Vec::with_capacity(conversations.len());
    for (n, conversation) in conversations.iter().enumerate() {
        let address: SocketAddr = urls[n % urls.len()].trim_start_matches("http://").parse()?;
        let request = request_for(&format!("conversations/{conversation}"), address, &token);
        let turn = turn.clone();
        openers.push(async move {
            let _permit = turn.acquire().await?;
            open(address, &request, "event: completed").await
        });
    }
    let streams = crew::all(&supervisor, openers).await?;
    sleep(CALM).await;
    let counted = rig.at_rest(time).await?;
    let after = rig.replica(0)?.resident_bytes()? + rig.replica(1)?.resident_bytes()?;
    let each = after.saturating_sub(before) as f64 / streams.len() as f64 / 1024.0;
    let count = streams.len();
    drop(streams);
    let a_second = |count: Option<i64>| count.map(|count| count as f64 / time.as_secs_f64());
    let (all, rest) = (a_second(counted.tally.statements), a_second(at_rest.tally.statements));
    let theirs = all.zip(rest).map(|(all, rest)| (all - rest).max(0.0));
    let reading = Reading::default()
        .with_any("statements a second", theirs, NO_STATEMENTS)
        .with_any("with those of idle replicas", all, NO_STATEMENTS)
        .with("a stream", each)
        .noting(format!("{count} streams"));
    Ok(counted.most(time.as_secs_f64()).into_iter().fold(reading, Reading::noting))
}

/// A replica, from its start to its first request.
pub async fn start(site: &mut Site) -> anyhow::Result<Reading> {
    let starts = site.sizes.starts;
    let rig = site.rig()?;
    let mut took = Vec::with_capacity(starts);
    for _ in 0..starts {
        took.push(rig.add().await?.as_secs_f64() * 1e3);
        rig.resize(2).await?;
    }
    let longest = took.iter().copied().reduce(f64::max);
    Ok(Reading::default().with_any("p50", median(&took), "no start").with_any("max", longest, "no start"))
}
