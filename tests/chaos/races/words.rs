//! Races of last words against each other, and against a late writer: finish and close, cancel and finish, append and
//! close. The holder does not know what the others do.

use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use lastword::{
    agent::Runtime,
    event::{Kind, NewEvent},
    id::TurnId,
    store::{
        claim::Claim,
        claim::Ready,
        commands::Order,
        events::{Append, Finish},
        group_commit::Written,
        queue_hints::FRONT,
    },
    turn::{CancelledBy, LastWord},
};
use serde_json::json;
use tokio::{sync::Barrier, time::sleep};

use super::{
    Tally,
    field::{Field, Log, ROUND},
    ground::{append_of, finish_of},
};

/// The most events that one late write has.
const LATE_EVENTS_MAX: usize = 3;

/// The most that the holder may be ahead, beside chance.
const HANDICAP_US_MAX: usize = 30_000;

/// One turn to be raced for: its claim, its newest seq, and when the holder and the other set off.
type Pair = (Claim, i32, (Duration, Duration));

/// What the other side was told.
type Told<T> = Result<T, String>;

/// The holder finishes while others close: what they saw overdue, and what they believe to be lost.
pub async fn finish_against_close(field: &mut Field, count: usize) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::of("finish x close", &["finish", "close"]);
    let mut is_gone = false;
    while tally.races < count {
        let pairs = pairs(field, ROUND.min(count - tally.races)).await;
        field.doom(is_gone).await;
        let finish = async |claim: &Claim, seq: i32| field.holder.finish(claim, seq).await;
        let (written, closed) = against_close(field, &pairs, is_gone, finish, &mut tally).await;
        let logs = logs_of(field, &pairs).await;
        tally.races += pairs.len();
        for ((claim, seq, _), written) in pairs.iter().zip(written) {
            let (log, closes) = (&logs[&claim.turn], closes_of(&closed, claim.turn));
            let is_completed = log.terminal == "completed";
            tally.win(if is_completed { "finish" } else { "close" });
            let winners = closes + usize::from(matches!(written, Written::Done(_)));
            tally.double_winners += usize::from(winners > 1);
            let wanted = if is_completed { Written::Done(seq + 1) } else { Written::LeaseLost };
            if written != wanted || winners != 1 {
                tally.noise(format!("{}: {written:?}, {closes} closed it, but {log:?}", claim.turn));
            }
        }
        if is_gone {
            field.revive().await;
        }
        is_gone = !is_gone;
    }
    field.close(&mut tally).await;
    tally.took = began.elapsed();
    tally
}

/// A late writer appends while others close.
pub async fn append_against_close(field: &mut Field, count: usize) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::of("append x close", &["append", "close"]);
    let mut is_gone = false;
    while tally.races < count {
        let pairs = pairs(field, ROUND.min(count - tally.races)).await;
        let sizes: Vec<usize> = pairs.iter().map(|_| 1 + field.below(LATE_EVENTS_MAX)).collect();
        let size_of = |turn: TurnId| sizes[pairs.iter().position(|(claim, ..)| claim.turn == turn).unwrap()];
        field.doom(is_gone).await;
        let append = async |claim: &Claim, seq: i32| {
            field.holder.writer.append(late(claim, seq, size_of(claim.turn))).await
        };
        let (written, closed) = against_close(field, &pairs, is_gone, append, &mut tally).await;
        tally.races += pairs.len();
        // An append is a sign of life: such a turn is not overdue any more, and goes on to its end.
        let rest = written.iter().zip(&pairs).filter_map(|(written, (claim, ..))| match written {
            Written::Done(seq) => Some((claim, *seq)),
            _ => None,
        });
        let rest = join_all(rest.map(async |(claim, seq)| field.holder.finish(claim, seq).await)).await;
        for refused in rest.into_iter().filter(|written| matches!(written, Written::Refused(_))) {
            tally.noise(format!("a finish after an append: {refused:?}"));
        }
        let logs = logs_of(field, &pairs).await;
        for ((claim, seq, _), written) in pairs.iter().zip(written) {
            let (turn, size) = (claim.turn, i32::try_from(size_of(claim.turn)).unwrap());
            let is_there = logs[&turn].deltas == i64::from(size);
            tally.win(if is_there { "append" } else { "close" });
            let (log, closes) = (&logs[&turn], closes_of(&closed, turn));
            // What was overdue is so no more; what is held by somebody gone is closed all the same.
            let most = usize::from(is_gone || !is_there);
            tally.double_winners += usize::from(closes > most);
            let wanted = if is_there { Written::Done(seq + size) } else { Written::LeaseLost };
            if written != wanted || (log.deltas != 0 && !is_there) || (closes == 0 && !is_there) {
                tally.noise(format!("{turn}: {written:?}, {closes} closed it, but {log:?}"));
            }
        }
        if is_gone {
            field.revive().await;
        }
        is_gone = !is_gone;
    }
    field.close(&mut tally).await;
    tally.took = began.elapsed();
    tally
}

/// Another replica cancels: a turn that waits and is about to be claimed, or one that is about to end.
pub async fn cancel_against_finish(field: &mut Field, count: usize) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::of("cancel x finish", &["cancel", "finish"]);
    let mut is_queued = false;
    while tally.races < count {
        let size = ROUND.min(count - tally.races);
        let ends =
            if is_queued { cancel_waiting(field, size).await } else { cancel_running(field, size).await };
        let turns: Vec<TurnId> = ends.iter().map(|end| end.turn).collect();
        let logs = field.logs(&turns).await;
        tally.races += ends.len();
        for end in ends {
            let log = &logs[&end.turn];
            tally.win(if log.terminal == "cancelled" { "cancel" } else { "finish" });
            let is_held = matches!(end.written, Some((_, Written::Done(_))));
            tally.double_winners += usize::from(is_held && end.cancelled == Ok(Some(true)));
            if !end.is_true(log) {
                tally.noise(format!("{end:?}, but {}", log.terminal));
            }
        }
        is_queued = !is_queued;
    }
    field.close(&mut tally).await;
    tally.took = began.elapsed();
    tally
}

/// What both sides of a cancelled turn were told.
#[derive(Debug)]
struct CancelEnd {
    turn: TurnId,
    /// `None`: it had ended; true: it ended here and now; false: its holder was asked.
    cancelled: Told<Option<bool>>,
    /// What the holder wanted to write, and what became of it; `None` where it never held the turn.
    written: Option<(Kind, Written)>,
}

impl CancelEnd {
    /// Whether everybody was told what the log says.
    fn is_true(&self, log: &Log) -> bool {
        let Ok(cancelled) = &self.cancelled else { return false };
        match &self.written {
            // Whoever held it had the last word; the other one asked, or came too late.
            Some((kind, Written::Done(_))) => {
                log.terminal == kind.as_str()
                    && *cancelled != Some(true)
                    && (*kind == Kind::Completed || *cancelled == Some(false))
            }
            Some(_) => false,
            None => log.terminal == "cancelled" && *cancelled == Some(true),
        }
    }
}

async fn cancel_running(field: &mut Field, size: usize) -> Vec<CancelEnd> {
    let pairs = pairs(field, size).await;
    let barrier = Barrier::new(2 * pairs.len());
    let races = pairs.iter().map(async |(claim, seq, (ahead, behind))| {
        let finish = async {
            barrier.wait().await;
            sleep(*ahead).await;
            // As its holder does: an order that has come is obeyed.
            let word = if is_asked_to_stop(field, claim.turn).await {
                cancelled(claim, *seq)
            } else {
                finish_of(claim, *seq)
            };
            (word.word.kind, field.holder.writer.finish(word).await)
        };
        let cancel = async {
            barrier.wait().await;
            sleep(*behind).await;
            cancel(field, claim.turn).await
        };
        let (written, cancelled) = join(finish, cancel).await;
        CancelEnd { turn: claim.turn, cancelled, written: Some(written) }
    });
    join_all(races).await
}

async fn cancel_waiting(field: &mut Field, size: usize) -> Vec<CancelEnd> {
    let turns = field.accepted(size).await;
    let starts: Vec<_> = turns.iter().map(|_| field.starts()).collect();
    let field = &*field;
    let cancels = join_all(turns.iter().zip(&starts).map(async |(turn, (at, _))| {
        sleep(*at).await;
        cancel(field, *turn).await
    }));
    // One claim after another, each at its time, so that they meet the cancels.
    let claims = join_all(starts.iter().map(async |(_, at)| {
        sleep(*at).await;
        let claims =
            field.holder.store.claim(&[Runtime::Process], &Ready::default(), FRONT, 1).await.unwrap();
        join_all(claims.into_iter().map(async |claim| {
            let word = match field.holder.start(&claim).await {
                Some(seq) => finish_of(&claim, seq),
                // A cancel came first.
                None => cancelled(&claim, claim.last_seq),
            };
            (claim.turn, word.word.kind, field.holder.writer.finish(word).await)
        }))
        .await
    }));
    let (cancels, claims) = join(cancels, claims).await;
    let held: Vec<_> = claims.into_iter().flatten().collect();
    let ends = turns.iter().zip(cancels).map(|(turn, cancelled)| {
        let written = held.iter().find(|(held, ..)| held == turn);
        let written = written.map(|(_, kind, written)| (*kind, written.clone()));
        CancelEnd { turn: *turn, cancelled, written }
    });
    ends.collect()
}

async fn cancel(field: &Field, turn: TurnId) -> Told<Option<bool>> {
    let answer = field.others[0].store.cancel(&[turn], CancelledBy::Client).await;
    answer.map(|told| told.first().map(|(_, is_ended)| *is_ended)).map_err(|why| why.to_string())
}

async fn is_asked_to_stop(field: &Field, turn: TurnId) -> bool {
    let commands = field.holder.store.commands(&[turn]).await.unwrap();
    commands.iter().any(|command| matches!(command.order, Order::Cancel { .. }))
}

/// Turns that the holder runs, with the head starts of their races.
async fn pairs(field: &mut Field, count: usize) -> Vec<Pair> {
    let running = field.running(count).await;
    let mut races = Vec::new();
    for (claim, seq) in running {
        let (holder, other) = field.starts();
        // A holder's write goes through a queue, so the other one gives it up to a whole queue's time.
        let handicap = Duration::from_micros(field.below(HANDICAP_US_MAX) as u64);
        races.push((claim, seq, (holder, other + handicap)));
    }
    races
}

async fn logs_of(field: &Field, pairs: &[Pair]) -> std::collections::HashMap<TurnId, Log> {
    let turns: Vec<TurnId> = pairs.iter().map(|(claim, ..)| claim.turn).collect();
    field.logs(&turns).await
}

/// Every holder's write against a close by one of the others; what each holder was told, and which
/// turns were closed. A close takes what is due, where the holder is gone the first that it finds.
async fn against_close(
    field: &Field,
    pairs: &[Pair],
    is_gone: bool,
    write: impl AsyncFn(&Claim, i32) -> Written,
    tally: &mut Tally,
) -> (Vec<Written>, Vec<TurnId>) {
    let barrier = Barrier::new(2 * pairs.len());
    let (barrier, write) = (&barrier, &write);
    let races = pairs.iter().enumerate().map(async |(n, (claim, seq, (ahead, behind)))| {
        let writes = async {
            barrier.wait().await;
            sleep(*ahead).await;
            write(claim, *seq).await
        };
        let closes = async {
            barrier.wait().await;
            sleep(*behind).await;
            let overdue = if is_gone { Vec::new() } else { vec![claim.turn] };
            field.others[n % 2].store.close_due(&overdue, 1).await
        };
        join(writes, closes).await
    });
    let (mut written, mut closed) = (Vec::new(), Vec::new());
    for (write, close) in join_all(races).await {
        written.push(write);
        match close {
            Ok(words) => closed.extend(words.iter().map(|word| word.turn)),
            Err(why) => tally.noise(format!("a close failed: {why}")),
        }
    }
    (written, closed)
}

fn closes_of(closed: &[TurnId], turn: TurnId) -> usize {
    closed.iter().filter(|closed| **closed == turn).count()
}

fn late(claim: &Claim, base: i32, size: usize) -> Append {
    let events = (0..size).map(|n| NewEvent::new(Kind::Delta, &json!({ "text": format!("late {n}") })));
    Append { events: events.collect(), ..append_of(claim, base, Kind::Delta) }
}

fn cancelled(claim: &Claim, base: i32) -> Finish {
    let word = LastWord {
        kind: Kind::Cancelled,
        data: json!({ "by": "client" }).to_string(),
        label: "client".into(),
    };
    Finish { word, ..finish_of(claim, base) }
}
