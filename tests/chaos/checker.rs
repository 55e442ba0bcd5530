//! The checker: compares the history, the workers' receipts and the database, trusts none of them, and counts.
//!
//! Owns its own reading of all three: its SQL names tables, never the product's functions. The failure of a turn is
//! excused only by a fault in the history that hit that very worker or replica during the turn; every other failure is
//! a false death.
//!
//! | count | meaning |
//! |---|---|
//! | attempted | posts that began, by nonce |
//! | acknowledged | nonces whose post was answered 2xx |
//! | recovered | turns that have a last word although no client received an answer to their post |
//! | lost | acknowledged turns that the database lacks, or without a last word; observers left hanging |
//! | duplicated | nonces with two turns, turns with two last words, turns that workers received twice |
//! | reordered | gaps, repeats or differences between the log and what two observers saw |
//! | unexpected | last words without an excuse, answers of turns that no worker received |

mod excuses;
mod findings;
mod stored;

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use sqlx::PgConnection;
use uuid::Uuid;

pub use self::findings::Findings;
use self::{
    excuses::check_excuses,
    stored::{Stored, read_database},
};
use crate::history::{Fact, Line, Outcome, Sight};

/// The phase that begins when a standby that may lack commits takes over.
pub const PROMOTED: &str = "promoted";

/// What a run may be excused for beyond what its faults say.
#[derive(Debug, Clone, Copy)]
pub struct Allowances {
    /// The database itself lost commits: turns may be gone, and end as `internal`.
    pub database_lost_commits: bool,
    /// The database's clock was stepped: its times tell no order.
    pub clock_was_stepped: bool,
    /// A turn's worker goes on at another replica: none falls with its own.
    pub turns_outlive_replicas: bool,
    /// Fewer acknowledged turns before the first fault make the run void.
    pub turns_min: usize,
}

impl Allowances {
    /// Faults excuse what they hit, and nothing else is excused.
    pub const NONE: Allowances = Allowances {
        database_lost_commits: false,
        clock_was_stepped: false,
        turns_outlive_replicas: false,
        turns_min: 12,
    };
}

/// Reads all and counts; `receipts` are ids of turns, as often as a worker received them. An error is a run
/// that cannot be judged.
pub async fn check(
    lines: &[Line],
    receipts: &[String],
    admin: &mut PgConnection,
    allow: Allowances,
) -> anyhow::Result<Findings> {
    let stored = read_database(admin).await?;
    let left: i64 = sqlx::query_scalar("select count(*) from inflight").fetch_one(admin).await?;
    let mut findings = Findings::default();
    if left > 0 {
        findings.complain(format!("{left} obligations are left in flight"));
    }
    let posts = check_posts(&mut findings, lines, &stored, allow);
    check_logs(&mut findings, &stored);
    check_receipts(&mut findings, receipts, &stored, allow);
    check_lines_of_conversations(&mut findings, &stored);
    check_observers(&mut findings, lines, &stored, allow);
    check_excuses(&mut findings, lines, &stored, allow);
    check_cuts(&mut findings, lines);
    count_figures(&mut findings, lines);
    check_not_void(&mut findings, lines, &posts, allow);
    Ok(findings)
}

/// Nonces and what is known of them.
fn check_posts(
    findings: &mut Findings,
    lines: &[Line],
    stored: &HashMap<Uuid, Stored>,
    allow: Allowances,
) -> HashMap<String, HashSet<Uuid>> {
    let mut attempted = HashSet::new();
    let mut acknowledged: HashMap<String, HashSet<Uuid>> = HashMap::new();
    for line in lines {
        let Fact::Post { f, nonce, turn, .. } = &line.fact else { continue };
        attempted.insert(nonce.clone());
        findings.refused += usize::from(matches!(f, Outcome::Fail | Outcome::Info));
        if let (Outcome::Ok, Some(turn)) = (f, turn) {
            acknowledged.entry(nonce.clone()).or_default().insert(id_of(turn));
        }
    }
    findings.attempted = attempted.len();
    findings.acknowledged = acknowledged.len();
    let mut by_nonce: HashMap<&str, Vec<Uuid>> = HashMap::new();
    for (&id, turn) in stored {
        by_nonce.entry(&turn.nonce).or_default().push(id);
        if !acknowledged.contains_key(&turn.nonce) {
            if !attempted.contains(&turn.nonce) {
                findings.complain(format!("{id}: nobody posted {}", turn.nonce));
            }
            findings.recovered += 1;
        }
    }
    for (nonce, turns) in &by_nonce {
        if turns.len() > 1 {
            findings.duplicated += 1;
            findings.complain(format!("{nonce} has {} turns: {turns:?}", turns.len()));
        }
    }
    for (nonce, turns) in &acknowledged {
        if turns.len() > 1 && !allow.database_lost_commits {
            findings.duplicated += 1;
            findings.complain(format!("{nonce} was answered with different turns: {turns:?}"));
        }
        for turn in turns {
            if !stored.contains_key(turn) && allow.database_lost_commits {
                findings.gone += 1;
            } else if !stored.contains_key(turn) {
                findings.lost += 1;
                findings.complain(format!("{turn} of {nonce} was acknowledged and is not there"));
            }
        }
    }
    acknowledged
}

/// Each log by itself: contiguous, one last word, at the end, and the turn says so too.
fn check_logs(findings: &mut Findings, stored: &HashMap<Uuid, Stored>) {
    for (id, turn) in stored {
        let ends: Vec<&Sight> =
            turn.events.iter().map(|(sight, _)| sight).filter(|sight| is_last(&sight.kind)).collect();
        match ends.as_slice() {
            [] => {
                findings.lost += 1;
                findings.complain(format!("{id} has no last word; it is {}", turn.status));
            }
            [end] => {
                if end.kind != turn.status {
                    findings.complain(format!("{id} is {} and its last word {}", turn.status, end.kind));
                }
                if end.seq + 1 != turn.events.len() as i64 {
                    findings.reordered += 1;
                    findings.complain(format!("{id} goes on after its last word"));
                }
                match end.kind.as_str() {
                    "completed" => findings.completed += 1,
                    "failed" => findings.failed += 1,
                    _ => findings.cancelled += 1,
                }
            }
            _ => {
                findings.duplicated += 1;
                findings.complain(format!("{id} has {} last words", ends.len()));
            }
        }
        if turn.events.iter().zip(0..).any(|((sight, _), n)| sight.seq != n) {
            findings.reordered += 1;
            findings.complain(format!("{id} has gaps"));
        }
    }
}

/// A turn is received once at most: one whose claim was given back before that has two `started`, and one
/// receipt. What was answered was received.
fn check_receipts(
    findings: &mut Findings,
    receipts: &[String],
    stored: &HashMap<Uuid, Stored>,
    allow: Allowances,
) {
    let mut received: HashMap<Uuid, usize> = HashMap::new();
    for turn in receipts {
        *received.entry(id_of(turn)).or_default() += 1;
    }
    for (turn, times) in received.iter().filter(|(_, times)| **times > 1) {
        // A database that lost commits may have lost that of a claim.
        if !allow.database_lost_commits {
            findings.duplicated += 1;
            findings.complain(format!("{turn} was received {times} times"));
        }
    }
    for (turn, _) in
        stored.iter().filter(|(id, turn)| turn.status == "completed" && !received.contains_key(id))
    {
        findings.unexpected += 1;
        findings.complain(format!("{turn} is completed, and no worker received it"));
    }
}

/// Ordinals without gaps: a turn that was lost would leave one.
fn check_lines_of_conversations(findings: &mut Findings, stored: &HashMap<Uuid, Stored>) {
    let mut lines: HashMap<Uuid, Vec<i64>> = HashMap::new();
    for turn in stored.values() {
        lines.entry(turn.conversation).or_default().push(turn.ordinal);
    }
    for (conversation, mut ordinals) in lines {
        ordinals.sort_unstable();
        if ordinals.iter().zip(1..).any(|(&ordinal, n)| ordinal != n) {
            findings.reordered += 1;
            findings.complain(format!("conversation {conversation} has ordinals {ordinals:?}"));
        }
    }
}

/// What observers saw is the log, or the beginning of it, and each saw its end.
fn check_observers(
    findings: &mut Findings,
    lines: &[Line],
    stored: &HashMap<Uuid, Stored>,
    allow: Allowances,
) {
    let promotions = lines.iter().filter(|line| {
        allow.database_lost_commits && matches!(&line.fact, Fact::Phase { name } if name == PROMOTED)
    });
    let promoted_at = promotions.map(|line| line.t).max().unwrap_or_default();
    for line in lines {
        let Fact::Watch { f, who, turn, seen, reset_at, why, connects, .. } = &line.fact else { continue };
        let id = id_of(turn);
        findings.watched += usize::from(*f == Outcome::Ok);
        findings.resets += usize::from(*reset_at > 0);
        let may_be_gone = allow.database_lost_commits && !stored.contains_key(&id);
        if *f != Outcome::Ok && !may_be_gone {
            findings.lost += 1;
            findings
                .complain(format!("observer {who} of {turn} never saw its end ({connects} tries): {why:?}"));
        }
        let Some(stored) = stored.get(&id) else { continue };
        // After an explicit reset an observer begins anew: only what came after must stand.
        let seen = &seen[*reset_at..];
        let is_prefix = seen.len() <= stored.events.len()
            && seen.iter().zip(&stored.events).all(|(mine, (its, _))| mine == its);
        let is_other = !is_prefix || *f == Outcome::Ok && seen.len() != stored.events.len();
        if is_other && *f == Outcome::Ok && line.t < promoted_at {
            // It was told the end by a primary whose newest commits are gone, and has left.
            findings.unsaid += 1;
        } else if is_other {
            findings.reordered += 1;
            let difference = seen.iter().zip(&stored.events).find(|(mine, (its, _))| mine != &its);
            findings.complain(format!(
                "observer {who} of {turn} saw {} events, the log has {}; they differ at {difference:?}",
                seen.len(),
                stored.events.len()
            ));
        }
    }
}

/// A replica that is cut from Postgres can accept nothing.
fn check_cuts(findings: &mut Findings, lines: &[Line]) {
    let mut cut: HashMap<u64, usize> = HashMap::new();
    // Posts that began while their slot was cut.
    let mut doubtful: HashSet<(&str, usize)> = HashSet::new();
    for line in lines {
        match &line.fact {
            Fact::Fault { f: Outcome::Invoke, id, name, slot: Some(slot), .. } if name == "cut_replica" => {
                cut.insert(*id, *slot);
            }
            Fact::Fault { f: Outcome::Ok, id, .. } => {
                if let Some(slot) = cut.remove(id) {
                    doubtful.retain(|(_, of)| *of != slot);
                }
            }
            Fact::Post { f: Outcome::Invoke, nonce, slot, .. } if cut.values().any(|cut| cut == slot) => {
                doubtful.insert((nonce, *slot));
            }
            Fact::Post { f: Outcome::Ok, nonce, slot, .. } if doubtful.contains(&(nonce.as_str(), *slot)) => {
                findings.accepted_while_cut += 1;
                findings.complain(format!("slot {slot} accepted {nonce} while it was cut from Postgres"));
            }
            _ => {}
        }
    }
}

/// Figures, from the history's own times.
fn count_figures(findings: &mut Findings, lines: &[Line]) {
    let mut ends: HashMap<&str, Vec<u64>> = HashMap::new();
    for line in lines {
        if let Fact::Watch { f: Outcome::Ok, turn, .. } = &line.fact {
            ends.entry(turn).or_default().push(line.t);
        }
    }
    let mut nth: HashMap<&str, u32> = HashMap::new();
    for line in lines {
        match &line.fact {
            Fact::Fault { f: Outcome::Invoke, name, slot, turns, .. } => {
                let n = nth.entry(name).or_default();
                *n += 1;
                let mut hasher = DefaultHasher::new();
                (name, slot, *n).hash(&mut hasher);
                // Faults of different names may be under way at once: a sum knows no order of those.
                findings.schedule = findings.schedule.wrapping_add(hasher.finish());
                *findings.faults.entry(name.clone()).or_default() += 1;
                for times in turns.iter().filter_map(|turn| ends.get(turn.as_str())) {
                    let took = |end: Option<&u64>| end.map_or(0, |end| end.saturating_sub(line.t));
                    let (first, all) = (took(times.iter().min()), took(times.iter().max()));
                    findings.told_first.entry(name.clone()).or_default().push(first);
                    findings.told_all.entry(name.clone()).or_default().push(all);
                }
            }
            Fact::Measure { name, us } => findings.measures.entry(name.clone()).or_default().push(*us),
            Fact::Last { f: Outcome::Fail | Outcome::Info, slot, what, why } => {
                findings.complain(format!("after the last heal slot {slot} did not serve {what}: {why:?}"));
            }
            _ => {}
        }
    }
}

/// A run in which too little happened before its first fault shows nothing.
fn check_not_void(
    findings: &mut Findings,
    lines: &[Line],
    acknowledged: &HashMap<String, HashSet<Uuid>>,
    allow: Allowances,
) {
    let first = lines.iter().position(|line| matches!(line.fact, Fact::Fault { .. }));
    let before = lines.iter().take(first.unwrap_or(lines.len()));
    let count = before.filter(|line| matches!(line.fact, Fact::Post { f: Outcome::Ok, .. })).count();
    if count < allow.turns_min || acknowledged.is_empty() {
        findings.complain(format!("void: {count} turns before the first fault, {} wanted", allow.turns_min));
    }
}

fn is_last(kind: &str) -> bool {
    ["completed", "failed", "cancelled"].contains(&kind)
}

fn id_of(turn: &str) -> Uuid {
    turn.strip_prefix("turn_").and_then(|id| id.parse().ok()).unwrap_or_default()
}
