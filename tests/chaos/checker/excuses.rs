//! Excuses: which unexpected last words a fault explains, and whether answers are the agent's.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::{Allowances, Findings, id_of, stored::Stored};
use crate::history::{Fact, Line, Outcome};

/// Last words other than what was asked for need a fault that explains them.
pub fn check_excuses(
    findings: &mut Findings,
    lines: &[Line],
    stored: &HashMap<Uuid, Stored>,
    allow: Allowances,
) {
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
            (_, "replica_lost") if !allow.turns_outlive_replicas => {
                was(&losses, turn.replica_pid)
                    || turn.replica_pid.is_none() && losses.iter().any(|name| hit.contains_key(name))
            }
            (_, "worker_exited") => {
                was(&["kill_worker"], turn.worker_pid) || ["/crash", "/kill"].contains(&word)
            }
            (_, "worker_lost") => was(&["kill_host", "freeze_host"], turn.worker_pid),
            (_, "worker_unresponsive") => {
                was(&["freeze_worker"], turn.worker_pid) || ["/hang", "/freeze"].contains(&word)
            }
            (_, "interrupted") => {
                was(&["drain_replica"], turn.replica_pid) && !allow.turns_outlive_replicas
                    || was(&["drain_host"], turn.worker_pid)
            }
            (_, "guard_blocked") => word == "/poison",
            // The next release's word for a turn that is completed without an answer.
            (_, "said_nothing") => script == "silent",
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
