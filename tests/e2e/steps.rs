//! The steps: what is done to the replicas, and what clients must have seen.
//!
//! Owns each step's course and its rows of the report. A step begins when two replicas are ready and ends when two are
//! ready again.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{
    World,
    client::Followed,
    crowd::{self, Watched},
    report::{Row, spread},
};

/// Doors.
const A: usize = 0;
const B: usize = 1;
/// The demo agent says a word in so many milliseconds.
const WORD_MS: u64 = 100;
/// A last word on one replica and on the other, while nothing is broken.
const LAG_MAX: Duration = Duration::from_secs(1);
/// Turns at A when it is killed; some are its own.
const KILLED_TURNS: usize = 8;
/// Turns while a replica drains, and while Postgres is away.
const DRAINED_TURNS: usize = 20;
const AWAY_TURNS: usize = 10;
/// Who follows a turn in the great crowd; and of the streams so many in a hundred are between two turns.
const FOLLOWERS: [usize; 4] = [A, B, A, B];
const BETWEEN_PERCENT: usize = 16;
/// How long a post is tried again while Postgres is away, and how often.
const KNOCK_EVERY: Duration = Duration::from_millis(100);

/// A message whose answer takes about so long.
fn slow(length: Duration) -> String {
    format!("/slow {}", length.as_millis() as u64 / WORD_MS)
}

/// Posted to A, read on B, as a stream and as a list; one key, one turn.
pub async fn cross(world: &World) -> Vec<Row> {
    let client = &world.client;
    let watched = Watched::post(client, A, "/slow 20", &[A, B]).await;
    let id = watched.id.clone();
    let ends = watched.ends().await;
    assert_eq!(ends[A].last().kind, "completed", "{:?}", ends[A].last());
    let lag = ends[B].ended_at.saturating_duration_since(ends[A].ended_at);
    let lists = [client.log(&id, A).await, client.log(&id, B).await];
    let is_same = lists.iter().all(|list| *list == ends[A].events);
    let key = client.key();
    let first = client.post_once(A, "hello", None, &key).await.expect("a turn");
    let second = client.post_once(B, "hello", None, &key).await.expect("the same turn");
    let measured = format!(
        "{} events on both, the last word {} ms later; {}",
        lists[B].len(),
        lag.as_millis(),
        if first["id"] == second["id"] { "one key, one turn" } else { "TWO TURNS FOR ONE KEY" }
    );
    let is_good = is_same && lag <= LAG_MAX && first["id"] == second["id"];
    vec![Row::new("posted to A, read on B", "the same log, within 1 s", measured, is_good)]
}

/// A is killed. Its turns end on B in time, those of others go on, and A is back with the same logs.
pub async fn kill(world: &World) -> Vec<Row> {
    let client = &world.client;
    let length = world.args.told_max + Duration::from_secs(20);
    let crowd = crowd::under_way(client, KILLED_TURNS, &slow(length), &[A, B], &[B, A]).await;
    let ids: Vec<String> = crowd.iter().map(|watched| watched.id.clone()).collect();
    let victim = world.doors.behind(A).await;
    let killed_at = Instant::now();
    world.orders.give(world.args.kill.as_deref().expect("a command"), &victim).await;
    sleep(world.args.told_max.saturating_sub(killed_at.elapsed())).await;
    // Whoever has no last word by now belongs to the other one, and is told to stop there.
    join_all(ids.iter().map(|id| client.cancel(B, id))).await;
    let (mut told, mut moved, mut codes, mut others) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for watched in crowd {
        let ends = watched.ends().await;
        match ends[0].last().kind.as_str() {
            "failed" => {
                told.push(ends[0].ended_at.saturating_duration_since(killed_at));
                codes.push(ends[0].last().code().to_owned());
            }
            "cancelled" => others += 1,
            kind => panic!("a turn that was never to end by itself is {kind}"),
        }
        moved.extend(ends.into_iter().flat_map(|end| end.resumes));
    }
    codes.sort();
    codes.dedup();
    let worst = told.iter().max().copied().unwrap_or_default();
    let bound = format!("{:?}", world.args.told_max);
    let measured = format!("{}; {}; {others} turns of others went on", spread(&told), codes.join(", "));
    // A replica that got a signal to leave before it was killed says so itself.
    let is_told = !told.is_empty()
        && others > 0
        && codes.iter().all(|code| code == "replica_lost" || code == "interrupted");
    let mut rows = vec![Row::new(
        "A killed: its turns' last word on B",
        bound,
        measured,
        is_told && worst <= world.args.told_max,
    )];
    rows.push(resumed(world, "A killed: its clients go on elsewhere", &moved));
    rows.push(back(world, "A is back").await);
    for id in &ids {
        assert_eq!(
            client.log(id, A).await,
            client.log(id, B).await,
            "A, which is back, tells another log of {id}"
        );
    }
    rows
}

/// A drains under live streams: every turn is completed, every client goes on elsewhere.
pub async fn drain(world: &World) -> Vec<Row> {
    let text = slow(world.args.drained_turn);
    let crowd = crowd::under_way(&world.client, DRAINED_TURNS, &text, &[A, B], &[A, B]).await;
    let leaving = world.doors.behind(A).await;
    let order = world.orders.give(world.args.drain.as_deref().expect("a command"), &leaving);
    let ((), ends) = tokio::join!(order, crowd::ends(crowd));
    let mut rows = vec![all_completed("A drained: its turns end, no gap, no repeat", DRAINED_TURNS, &ends)];
    let resumes: Vec<Duration> = ends.into_iter().flat_map(|end| end.resumes).collect();
    rows.push(resumed(world, "A drained: its clients go on elsewhere", &resumes));
    rows.push(back(world, "another one in A's place").await);
    rows
}

/// Every replica is restarted under the great crowd, which goes on all the while.
pub async fn restart(world: &World) -> Vec<Row> {
    let wanted = world.args.streams;
    let lines = (wanted + wanted * BETWEEN_PERCENT / 100).div_ceil(FOLLOWERS.len());
    let refused_before = world.client.refused();
    let is_over = AtomicBool::new(false);
    let crowd = join_all((0..lines).map(|n| line(world, n, &is_over)));
    let roll = async {
        while world.client.live() < wanted {
            sleep(KNOCK_EVERY).await;
        }
        let live = world.client.live();
        let began = Instant::now();
        world.orders.give(world.args.restart.as_deref().expect("a command"), "").await;
        let took = began.elapsed();
        // The old ones may still be leaving: streams move until the last of them is gone.
        world.doors.both_ready(world.args.back_max).await.unwrap_or_else(|why| panic!("{why}"));
        is_over.store(true, Ordering::Relaxed);
        (live, took)
    };
    let (ends, (live, took)) = tokio::join!(crowd, roll);
    let ends: Vec<Followed> = ends.into_iter().flatten().collect();
    let turns = ends.len() / FOLLOWERS.len();
    let step = format!("all restarted under {live} live streams: no gap, no repeat, no loss");
    let mut row = all_completed(&step, turns, &ends);
    row.measured += &format!("; rolled out in {:.0} s", took.as_secs_f64());
    let resumes: Vec<Duration> = ends.into_iter().flat_map(|end| end.resumes).collect();
    let mut rows = vec![row];
    // Two forwards alone lead to replicas that leave, until those are gone.
    if world.doors.front().is_some() || !world.orders.has_forward() {
        rows.push(resumed(world, "all restarted: clients go on elsewhere", &resumes));
    }
    if world.doors.front().is_some() {
        let refused = world.client.refused() - refused_before;
        let measured = format!("{refused} of {turns}");
        rows.push(Row::new("all restarted: posts not accepted at the front", "0", measured, refused == 0));
    }
    rows
}

/// A conversation that goes on, turn after turn, until it is over; each turn has its followers.
async fn line(world: &World, n: usize, is_over: &AtomicBool) -> Vec<Followed> {
    let mut ends = Vec::new();
    let mut conversation: Option<String> = None;
    // Not all of one length, so that their ends do not fall together.
    let text = slow(Duration::from_millis(4000 + 100 * (n as u64 % 20)));
    while !is_over.load(Ordering::Relaxed) {
        let door = world.doors.front().unwrap_or(n % 2);
        let turn = world.client.post_in(door, &text, conversation.as_deref()).await;
        let said = |field: &str| turn[field].as_str().expect("a field of a turn").to_owned();
        conversation = Some(said("conversation_id"));
        ends.extend(Watched::of(&world.client, said("id"), &FOLLOWERS).ends().await);
    }
    ends
}

/// Postgres is stopped and comes back: nothing is accepted meanwhile, nobody dies of it.
pub async fn postgres(world: &World) -> Vec<Row> {
    let (client, args) = (&world.client, &world.args);
    let length = args.away + Duration::from_secs(10);
    let crowd = crowd::under_way(client, AWAY_TURNS, &slow(length), &[A, B], &[A, B]).await;
    world.orders.give(args.break_postgres.as_deref().expect("a command"), "").await;
    let broken_at = Instant::now();
    let (mut refused, mut accepted) = (0, 0);
    while broken_at.elapsed() < args.away {
        match client.post_once(refused % 2, "hello", None, &client.key()).await {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
        sleep(KNOCK_EVERY).await;
    }
    let heal = world.orders.give(args.heal_postgres.as_deref().expect("a command"), "");
    // Counted from here on: the command may return when Postgres has been back for a while, or before.
    heal.await;
    let healed_at = Instant::now();
    let first = client.post(A, "hello").await;
    let served = healed_at.elapsed();
    let mut rows = vec![Row::new(
        "Postgres away: nothing is accepted",
        "0 accepted",
        format!("{accepted} accepted, {refused} refused in {:?}", args.away),
        accepted == 0 && refused > 0,
    )];
    let bound = format!("{:?}", args.serve_max);
    let measured = format!("{} ms", served.as_millis());
    rows.push(Row::new("Postgres back: a turn is accepted again", bound, measured, served <= args.serve_max));
    let ends = crowd::ends(crowd).await;
    rows.push(all_completed("Postgres back: no turn died of it", AWAY_TURNS, &ends));
    let after = Watched::of(client, first, &[A, B]).ends().await;
    rows.push(all_completed("Postgres back: new turns run", 1, &after));
    rows.push(back(world, "both replicas are ready again").await);
    rows
}

/// Every turn of this run is read again from both doors; then the whole database is looked over.
pub async fn verify(world: &World) -> Vec<Row> {
    let seen = world.client.seen();
    let mut differ = 0;
    for (turn, events) in &seen {
        for door in [A, B] {
            differ += usize::from(world.client.log(turn, door).await != *events);
        }
    }
    let measured = format!("{} turns, {differ} logs differ", seen.len());
    let mut rows =
        vec![Row::new("every turn read again from A and from B", "as it was seen", measured, differ == 0)];
    let said = world.orders.verify(&world.args).await.unwrap_or_else(|why| panic!("lastword verify: {why}"));
    let found: Value =
        serde_json::from_str(&said).unwrap_or_else(|why| panic!("lastword verify: {why}: {said}"));
    let rules: Vec<&Value> = found["findings"].as_array().into_iter().flatten().collect();
    let broken: Vec<_> =
        rules.iter().filter(|rule| rule["broken"].as_array().is_none_or(|ids| !ids.is_empty())).collect();
    let is_good = found["clean"] == true && !rules.is_empty() && broken.is_empty();
    let measured = if is_good { format!("{} rules hold", rules.len()) } else { format!("{broken:?}") };
    rows.push(Row::new("lastword verify", "every rule holds", measured, is_good));
    rows
}

/// All turns completed. That no log had a gap or a repeat was checked when it was followed.
fn all_completed(step: &str, turns: usize, ends: &[Followed]) -> Row {
    let odd: Vec<String> = ends
        .iter()
        .filter(|end| end.last().kind != "completed")
        .map(|end| format!("{} {}", end.last().kind, end.last().code()))
        .collect();
    let events: usize = ends.iter().map(|end| end.events.len()).sum();
    let measured = match odd.first() {
        None => format!("{turns} turns completed for {} streams, {events} events", ends.len()),
        Some(first) => format!("{} of {} streams ended otherwise, such as {first}", odd.len(), ends.len()),
    };
    Row::new(step, "all completed", measured, odd.is_empty() && !ends.is_empty())
}

/// How long clients were without a stream. That nobody had to go elsewhere would show nothing.
fn resumed(world: &World, step: &str, times: &[Duration]) -> Row {
    let worst = times.iter().max().copied().unwrap_or_default();
    let bound = format!("some do, within {:?}", world.args.resume_max);
    Row::new(step, bound, spread(times), !times.is_empty() && worst <= world.args.resume_max)
}

/// Two replicas answer behind the doors again.
async fn back(world: &World, step: &str) -> Row {
    let bound = format!("{:?}", world.args.back_max);
    match world.doors.both_ready(world.args.back_max).await {
        Ok(took) => Row::new(step, bound, format!("{:.1} s later", took.as_secs_f64()), true),
        Err(why) => Row::new(step, bound, why, false),
    }
}
