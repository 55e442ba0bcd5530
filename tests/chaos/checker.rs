//! The checker: reads the history and the database, believes neither, and counts.
//!
//! Owns its own reading of both: its SQL names tables, never the product's functions. A turn that
//! failed is excused only by a fault that the history names and that hit that very worker or replica
//! in the turn's lifetime; everything else is a false death.
//!
//! | count | what it is |
//! |---|---|
//! | attempted | posts that began, by nonce |
//! | acknowledged | nonces whose post was answered 2xx |
//! | recovered | turns of which no client ever heard, with a last word all the same |
//! | lost | acknowledged turns that the database lacks, or without a last word; observers left hanging |
//! | duplicated | nonces with two turns, turns with two last words or two runs |
//! | reordered | gaps, repeats or differences between the log and what two observers saw |
//! | unexpected | last words that nothing excuses |

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::{
    history::{Fact, Line, Outcome, Sight},
    observer::digest,
};

/// What a run came to.
#[derive(Debug, Default, Clone)]
pub struct Findings {
    pub attempted: usize,
    pub acknowledged: usize,
    pub completed: usize,
    pub failed: usize,
    pub cancelled: usize,
    pub recovered: usize,
    pub lost: usize,
    pub duplicated: usize,
    pub reordered: usize,
    pub unexpected: usize,
    /// Observers that saw their turn's end.
    pub watched: usize,
    /// A digest of the faults, in order: the same seed gives the same.
    pub schedule: u64,
    /// Posts that were answered with anything but a turn.
    pub refused: usize,
    /// Posts that a replica answered with a turn though it was cut from Postgres.
    pub accepted_while_cut: usize,
    /// Acknowledged turns that the database lost, and observers that were told to begin anew, where
    /// the database itself lost commits.
    pub gone: usize,
    /// Observers that had seen the end of a turn before the database lost it.
    pub unsaid: usize,
    pub resets: usize,
    /// Turns whose end was wrong though it was one: another text than the agent gave.
    pub wrong: usize,
    /// A line for each of these, and for whatever else is not as it must be.
    pub complaints: Vec<String>,
    /// From a fault to the last word of a turn that it took along: the first observer's, and the
    /// last one's, in microseconds, by the fault's name.
    pub told_first: BTreeMap<String, Vec<u64>>,
    pub told_all: BTreeMap<String, Vec<u64>>,
    /// Other measures, by name, in microseconds.
    pub measures: BTreeMap<String, Vec<u64>>,
    /// Faults, by name.
    pub faults: BTreeMap<String, usize>,
    /// How the turns ended, by code.
    pub codes: BTreeMap<String, usize>,
}

impl Findings {
    /// Whether everything held.
    pub fn is_clean(&self) -> bool {
        self.complaints.is_empty()
    }

    fn complain(&mut self, what: String) {
        self.complaints.push(what);
    }

    /// Adds another run's findings.
    pub fn add(&mut self, other: Findings) {
        for (mine, its) in [
            (&mut self.attempted, other.attempted),
            (&mut self.acknowledged, other.acknowledged),
            (&mut self.completed, other.completed),
            (&mut self.failed, other.failed),
            (&mut self.cancelled, other.cancelled),
            (&mut self.recovered, other.recovered),
            (&mut self.lost, other.lost),
            (&mut self.duplicated, other.duplicated),
            (&mut self.reordered, other.reordered),
            (&mut self.unexpected, other.unexpected),
            (&mut self.refused, other.refused),
            (&mut self.watched, other.watched),
            (&mut self.accepted_while_cut, other.accepted_while_cut),
            (&mut self.gone, other.gone),
            (&mut self.unsaid, other.unsaid),
            (&mut self.resets, other.resets),
            (&mut self.wrong, other.wrong),
        ] {
            *mine += its;
        }
        self.complaints.extend(other.complaints);
        for (mine, its) in [
            (&mut self.told_first, other.told_first),
            (&mut self.told_all, other.told_all),
            (&mut self.measures, other.measures),
        ] {
            for (name, times) in its {
                mine.entry(name).or_default().extend(times);
            }
        }
        for (mine, its) in [(&mut self.faults, other.faults), (&mut self.codes, other.codes)] {
            for (name, count) in its {
                *mine.entry(name).or_default() += count;
            }
        }
    }
}

/// The phase that begins when a standby that may lack commits takes over.
pub const PROMOTED: &str = "promoted";

/// A turn as the database has it.
struct Stored {
    nonce: String,
    status: String,
    conversation: Uuid,
    ordinal: i64,
    events: Vec<(Sight, String)>,
    /// The process ids of its worker and of that worker's replica.
    worker_pid: Option<i32>,
    replica_pid: Option<i32>,
}

/// What a run may be excused for beyond what its faults say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowances {
    /// The database itself lost commits: turns may be gone, and end as `internal`.
    pub database_lost_commits: bool,
    /// Fewer acknowledged turns before the first fault make the run void.
    pub turns_min: usize,
}

/// Reads both and counts. An error is a run that cannot be judged.
pub async fn check(lines: &[Line], admin: &mut PgConnection, allow: Allowances) -> anyhow::Result<Findings> {
    let stored = read_database(admin).await?;
    let left: i64 = sqlx::query_scalar("select count(*) from inflight").fetch_one(admin).await?;
    let mut findings = Findings::default();
    if left > 0 {
        findings.complain(format!("{left} obligations are left in flight"));
    }
    let posts = check_posts(&mut findings, lines, &stored, allow);
    check_logs(&mut findings, &stored);
    check_lines_of_conversations(&mut findings, &stored);
    check_observers(&mut findings, lines, &stored, allow);
    check_excuses(&mut findings, lines, &stored, allow);
    check_cuts(&mut findings, lines);
    count_figures(&mut findings, lines);
    check_not_void(&mut findings, lines, &posts, allow);
    Ok(findings)
}

async fn read_database(admin: &mut PgConnection) -> anyhow::Result<HashMap<Uuid, Stored>> {
    let mut stored = HashMap::new();
    let turns = sqlx::query(
        "select id, conversation_id, ordinal, status, metadata::jsonb ->> 'nonce' as nonce from turns",
    );
    for row in turns.fetch_all(&mut *admin).await? {
        let turn = Stored {
            nonce: row.get::<Option<String>, _>("nonce").unwrap_or_default(),
            status: row.get("status"),
            conversation: row.get("conversation_id"),
            ordinal: row.get("ordinal"),
            events: Vec::new(),
            worker_pid: None,
            replica_pid: None,
        };
        stored.insert(row.get::<Uuid, _>("id"), turn);
    }
    let mut pids = HashMap::new();
    let workers = sqlx::query(
        "select w.id, w.pid, r.pid as replica_pid from workers w left join replicas r on r.id = w.replica_id",
    );
    for row in workers.fetch_all(&mut *admin).await? {
        let pair: (Option<i32>, Option<i32>) = (row.get("pid"), row.get("replica_pid"));
        pids.insert(format!("wrk_{}", row.get::<Uuid, _>("id").simple()), pair);
    }
    let events = sqlx::query("select turn_id, seq, kind, data from turn_events order by turn_id, seq");
    for row in events.fetch_all(&mut *admin).await? {
        let data: String = row.get("data");
        let value: serde_json::Value = serde_json::from_str(&data)?;
        let kind: String = row.get("kind");
        let seq = i64::from(row.get::<i32, _>("seq"));
        let turn: Uuid = row.get("turn_id");
        let Some(stored) = stored.get_mut(&turn) else { anyhow::bail!("events of no turn: {turn}") };
        if kind == "started"
            && let Some(&(worker, replica)) =
                value["worker_id"].as_str().and_then(|id| pids.get(&id.replace('-', "")))
        {
            (stored.worker_pid, stored.replica_pid) = (worker, replica);
        }
        let code = value["error"]["code"].as_str().unwrap_or_default().to_owned();
        stored.events.push((Sight { seq, kind, digest: digest(&value) }, code));
    }
    Ok(stored)
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
        let runs = turn.events.iter().filter(|(sight, _)| sight.kind == "started").count();
        if runs > 1 {
            findings.duplicated += 1;
            findings.complain(format!("{id} was run {runs} times"));
        }
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

/// Last words other than what was asked for need a fault that explains them.
fn check_excuses(findings: &mut Findings, lines: &[Line], stored: &HashMap<Uuid, Stored>, allow: Allowances) {
    let mut hit: HashMap<&str, HashSet<i32>> = HashMap::new();
    let mut scripts: HashMap<&str, &str> = HashMap::new();
    let mut cancelled: HashSet<Uuid> = HashSet::new();
    for line in lines {
        match &line.fact {
            Fact::Fault { f: Outcome::Invoke, name, pid: Some(pid), .. } => {
                hit.entry(name).or_default().insert(*pid);
            }
            Fact::Post { nonce, script, .. } => {
                scripts.insert(nonce, script);
            }
            Fact::Order { order, turn, .. } if order == "cancel" => {
                cancelled.insert(id_of(turn));
            }
            _ => {}
        }
    }
    let was = |names: &[&str], pid: Option<i32>| {
        pid.is_some_and(|pid| names.iter().any(|name| hit.get(name).is_some_and(|pids| pids.contains(&pid))))
    };
    let losses = ["kill_replica", "freeze_replica", "cut_replica", "oom_replica"];
    for (id, turn) in stored {
        let Some((end, code)) = turn.events.last() else { continue };
        let script = scripts.get(turn.nonce.as_str()).copied().unwrap_or_default();
        let word = script.split_whitespace().next().unwrap_or_default();
        *findings.codes.entry(if code.is_empty() { end.kind.clone() } else { code.clone() }).or_default() +=
            1;
        let is_excused = match (end.kind.as_str(), code.as_str()) {
            ("completed", _) => !["/hang", "/freeze", "/crash", "/kill"].contains(&word),
            ("cancelled", _) => cancelled.contains(id),
            (_, "replica_lost") => {
                was(&losses, turn.replica_pid)
                    || turn.replica_pid.is_none() && losses.iter().any(|name| hit.contains_key(name))
            }
            (_, "worker_exited") => {
                was(&["kill_worker"], turn.worker_pid) || ["/crash", "/kill"].contains(&word)
            }
            (_, "worker_unresponsive") => {
                was(&["freeze_worker"], turn.worker_pid) || ["/hang", "/freeze"].contains(&word)
            }
            (_, "interrupted") => was(&["drain_replica"], turn.replica_pid),
            (_, "internal") => allow.database_lost_commits,
            _ => false,
        };
        if !is_excused {
            findings.unexpected += 1;
            findings.complain(format!(
                "{id} ({script:?}, worker {:?} of {:?}) ended as {} {code}, and nothing explains it",
                turn.worker_pid, turn.replica_pid, end.kind
            ));
        }
    }
    check_answers(findings, lines, &scripts, stored);
}

/// A completed answer is the one that the agent gives.
fn check_answers(
    findings: &mut Findings,
    lines: &[Line],
    scripts: &HashMap<&str, &str>,
    stored: &HashMap<Uuid, Stored>,
) {
    for line in lines {
        let Fact::Watch { f: Outcome::Ok, turn, text, seen, .. } = &line.fact else { continue };
        let is_completed = seen.last().is_some_and(|sight| sight.kind == "completed");
        let Some(stored) = stored.get(&id_of(turn)) else { continue };
        let wanted = scripts.get(stored.nonce.as_str()).and_then(|script| answer_to(script));
        if let (true, Some(wanted)) = (is_completed, wanted)
            && *text != wanted
        {
            findings.wrong += 1;
            findings.complain(format!("{turn} answered {text:?}, not {wanted:?}"));
        }
    }
}

/// What the demo agent answers, where that is certain.
fn answer_to(script: &str) -> Option<String> {
    match script.split_once(' ') {
        Some(("/slow", count)) => {
            let count: u32 = count.parse().ok()?;
            Some((1..=count).map(|n| format!("word{n} ")).collect())
        }
        _ if script.starts_with('/') => None,
        _ => Some(format!("Hello! You said: {script}")),
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
