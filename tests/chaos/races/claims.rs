//! Several replicas claim the same queued turns at the same moment.

use std::{collections::HashMap, time::Instant};

use futures_util::future::join_all;
use lastword::{
    agent::Runtime,
    id::{ReplicaId, TurnId},
    store::{
        claim::{Claim, Ready},
        group_commit::Written,
        queue_hints::FRONT,
    },
};
use tokio::{sync::Barrier, time::sleep};

use super::{
    Tally,
    field::{Field, ROUND},
    ground::finish_of,
};

const SIDES: [&str; 3] = ["first", "second", "third"];
/// Claims under way at one replica.
const ABREAST: usize = 4;
/// The most that one claim takes.
const PAGE_MAX: usize = 4;

/// Claims by one replica, or what kept it from claiming.
type Claimed = (usize, Result<Vec<Claim>, String>);

/// A race is a turn; whoever holds it has won, and runs it to its end.
pub async fn run(field: &mut Field, count: usize) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::of("claim", &SIDES);
    while tally.races < count {
        let turns = field.accepted(ROUND.min(count - tally.races)).await;
        tally.races += turns.len();
        let claimed = rush(field).await;
        judge(field, &turns, claimed, &mut tally).await;
    }
    field.close(&mut tally).await;
    tally.took = began.elapsed();
    tally
}

/// Everybody claims until nothing is left.
async fn rush(field: &mut Field) -> Vec<Claimed> {
    let barrier = Barrier::new(SIDES.len() * ABREAST);
    let mut plans = Vec::new();
    for n in 0..SIDES.len() * ABREAST {
        plans.push((n % SIDES.len(), field.starts(), 1 + field.below(PAGE_MAX)));
    }
    let field = &*field;
    let rushes = plans.into_iter().map(async |(side, (ahead, behind), page)| {
        let store = &field.all()[side].store;
        let mut claimed = Vec::new();
        barrier.wait().await;
        sleep(ahead.abs_diff(behind)).await;
        loop {
            let answer = store
                .claim(&[Runtime::Process], &Ready::default(), FRONT, i64::try_from(page).unwrap())
                .await;
            match answer {
                Ok(claims) if claims.is_empty() => return (side, Ok(claimed)),
                Ok(claims) => claimed.extend(claims),
                Err(why) => return (side, Err(why.to_string())),
            }
        }
    });
    join_all(rushes).await
}

/// Compares what everybody was told with what the table says, and runs the turns to their end.
async fn judge(field: &Field, turns: &[TurnId], claimed: Vec<Claimed>, tally: &mut Tally) {
    let mut winners: HashMap<TurnId, Vec<(usize, Claim)>> = HashMap::new();
    for (side, claims) in claimed {
        match claims {
            Ok(claims) => {
                for claim in claims {
                    winners.entry(claim.turn).or_default().push((side, claim));
                }
            }
            Err(why) => tally.noise(format!("a claim failed: {why}")),
        }
    }
    let rows: Vec<(uuid::Uuid, Option<uuid::Uuid>, i32)> =
        sqlx::query_as("select turn_id, replica, epoch from inflight")
            .fetch_all(&field.ground.sql)
            .await
            .unwrap();
    let rows: HashMap<TurnId, (Option<ReplicaId>, i32)> = rows
        .into_iter()
        .map(|(turn, replica, epoch)| (TurnId(turn), (replica.map(ReplicaId), epoch)))
        .collect();
    let mut ends = Vec::new();
    for turn in turns {
        let holders = winners.remove(turn).unwrap_or_default();
        tally.double_winners += usize::from(holders.len() > 1);
        let Some((side, claim)) = holders.into_iter().next() else {
            tally.noise(format!("{turn} was claimed by nobody: {:?}", rows.get(turn)));
            continue;
        };
        let wanted = (Some(field.all()[side].store.replica()), 1);
        if rows.get(turn) != Some(&wanted) {
            tally.noise(format!("{turn} was claimed as {wanted:?}, but is {:?}", rows.get(turn)));
        }
        tally.win(SIDES[side]);
        ends.push((side, claim));
    }
    let ends = join_all(ends.into_iter().map(async |(side, claim)| {
        let winner = field.all()[side];
        let Some(seq) = winner.start(&claim).await else {
            return Some(format!("{} not started", claim.turn));
        };
        let written = winner.writer.finish(finish_of(&claim, seq)).await;
        (written != Written::Done(seq + 1)).then(|| format!("{}: {written:?}", claim.turn))
    }));
    for noise in ends.await.into_iter().flatten() {
        tally.noise(noise);
    }
}
