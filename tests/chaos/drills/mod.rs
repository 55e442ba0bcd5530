//! The drills: one fault each, its count and its figure.
//!
//! Owns the list, in the order of the published table. A drill returns the checker's findings and judges only its own
//! figure.

pub mod clients;
pub mod database;
pub mod machine;
pub mod mass;
pub mod network;
pub mod poison;
pub mod races;
pub mod remote;
pub mod replicas;
pub mod round;
pub mod soak;
pub mod words;
pub mod workers;

use std::{fmt::Write as _, future::Future, pin::Pin, time::Duration};

use crate::{checker::Findings, scene::Stage};

/// A drill's end.
#[derive(Debug, Clone)]
pub struct Row {
    /// How often the fault happened.
    pub count: usize,
    /// What was measured, in words.
    pub figure: String,
    /// Whether the figure is within its bound.
    pub is_met: bool,
    /// Whether it was run at all: what this machine lacks is neither held nor missed.
    pub is_run: bool,
    /// What the checker found.
    pub findings: Findings,
}

impl Row {
    /// Of a drill that this machine has not got what it takes for. Never counted as held.
    pub fn not_run(why: String) -> Row {
        Row {
            count: 0,
            figure: format!("not run: {why}"),
            is_met: false,
            is_run: false,
            findings: Findings::default(),
        }
    }
}

type Run = fn(Stage) -> Pin<Box<dyn Future<Output = Row> + Send>>;

/// One drill.
pub struct Drill {
    /// Its name on the command line.
    pub name: &'static str,
    /// The fault, as the table has it.
    pub fault: &'static str,
    /// The bound, as the table has it.
    pub bound: &'static str,
    /// How often, in the short, the usual and the full form. Nought: not in that form.
    pub counts: [usize; 3],
    /// Whether its figure is a matter of milliseconds, so that nothing else may run beside it.
    pub is_alone: bool,
    /// Does it.
    pub run: Run,
}

macro_rules! drill {
    ($name:literal, $fault:literal, $bound:literal, $counts:expr, $is_alone:expr, $run:path) => {
        Drill {
            name: $name,
            fault: $fault,
            bound: $bound,
            counts: $counts,
            is_alone: $is_alone,
            run: |stage| Box::pin($run(stage)),
        }
    };
}

/// Every drill.
pub fn all() -> Vec<Drill> {
    vec![
        drill!("worker-kill", "worker SIGKILL", "told in p99 ≤ 250 ms", [40, 200, 1000], true, workers::kill),
        drill!(
            "replica-kill",
            "replica SIGKILL, client on another",
            "p99 ≤ 2 s",
            [4, 20, 200],
            true,
            replicas::kill
        ),
        drill!(
            "worker-freeze",
            "worker SIGSTOP past its clock, then SIGCONT, writes late",
            "late writes accepted: 0",
            [8, 40, 200],
            false,
            workers::freeze
        ),
        drill!(
            "replica-freeze",
            "replica SIGSTOP 30 s, then SIGCONT",
            "closed by another in ≤ 12 s, late writes 0, clients move",
            [0, 4, 52],
            false,
            replicas::freeze
        ),
        drill!(
            "replica-cut",
            "replica cut from Postgres 30 s (both ways, one way)",
            "accepted during the cut 0; told within 12 s; back in service ≤ 5 s",
            [0, 4, 52],
            false,
            network::cut
        ),
        drill!(
            "lost-commit",
            "connection cut after COMMIT was sent, client retries with its key",
            "one turn a key",
            [40, 200, 1000],
            false,
            network::lost_commit
        ),
        drill!(
            "postgres-restart",
            "Postgres restarted (fast, immediate, SIGKILL), away 0–30 s",
            "false deaths 0; service again ≤ 3 s after Postgres",
            [3, 10, 50],
            false,
            database::restart
        ),
        drill!(
            "postgres-stall",
            "Postgres stalled (all its processes stopped) 12 s and 30 s, its clock stepped ± 60 s",
            "false deaths 0",
            [0, 4, 20],
            false,
            database::stall
        ),
        drill!(
            "failover-sync",
            "failover to a synchronous standby",
            "0 lost; service again ≤ 5 s",
            [1, 4, 20],
            false,
            network::fail_over
        ),
        drill!(
            "failover-async",
            "failover to an asynchronous standby that lacks the newest commits",
            "noticed, ended as internal, no two events under one seq without a reset, count reported",
            [1, 3, 10],
            false,
            network::fail_over_behind
        ),
        drill!(
            "frozen-within",
            "a replica frozen in the middle of a statement or of a large result",
            "its turns closed in ≤ 12 s all the same",
            [0, 4, 52],
            false,
            network::freeze_within
        ),
        drill!(
            "backends-ended",
            "every backend terminated every 2 s",
            "5 min; false deaths 0",
            [5, 20, 150],
            false,
            database::terminate
        ),
        drill!(
            "no-notify",
            "NOTIFY never delivered",
            "terminal seen ≤ 1 s later than with it",
            [10, 30, 100],
            false,
            database::no_notify
        ),
        drill!(
            "pooler",
            "transaction pooler in between (PgBouncer)",
            "correct; terminal seen ≤ 1 s later than without",
            [10, 30, 100],
            false,
            network::pooler
        ),
        drill!(
            "versions",
            "two versions side by side, upgrade and back",
            "0 interrupted, 0 refused accepts; each tells the other's words",
            [0, 1, 5],
            false,
            replicas::upgrade
        ),
        drill!(
            "races",
            "claim races, finish against reap, cancel against finish, late appends",
            "10,000 each; one winner, losers silent",
            [0, 1000, 10_000],
            true,
            races::run
        ),
        drill!(
            "no-progress",
            "worker that beats without progress; poison turn",
            "told within its clock + 1 s; never run twice",
            [10, 40, 200],
            false,
            workers::no_progress
        ),
        drill!(
            "mass",
            "5,000 turns in flight on a replica that is killed",
            "all told ≤ 3 s after the verdict",
            [0, 1, 5],
            true,
            mass::kill
        ),
        drill!(
            "rolling-restart",
            "rolling restart of 3 replicas under 500 live streams",
            "0 interrupted that fit the drain, 0 refused accepts, resume p99 ≤ 1 s",
            [0, 1, 20],
            true,
            replicas::roll
        ),
        drill!(
            "disk-full",
            "disk full under Postgres",
            "no acceptance without a durable row",
            [0, 1, 5],
            false,
            machine::disk_full
        ),
        drill!(
            "out-of-memory",
            "OOM kill of a replica",
            "no acceptance without a durable row",
            [0, 2, 5],
            false,
            machine::out_of_memory
        ),
        drill!("clocks", "clocks of replicas ± 1 h", "no effect", [5, 20, 100], false, machine::clocks),
        drill!(
            "slow-readers",
            "slow readers (1 byte/s), half-open clients",
            "memory bounded, others' p99 within 20 %",
            [0, 500, 500],
            true,
            clients::slow
        ),
        drill!(
            "long-transaction",
            "a long transaction held open elsewhere",
            "10 min; throughput loss ≤ 10 %",
            [0, 20, 600],
            true,
            clients::long_transaction
        ),
        drill!(
            "poison",
            "texts that are costly to check, giant texts, workers that flood, idle connections",
            "false deaths 0, nobody judged, no replica without a beat for 5 s",
            [4, 12, 100],
            false,
            poison::run
        ),
        drill!(
            "remote",
            "remote workers: hosts, their workers, replicas, the nets between, Postgres",
            "a turn falls with its worker or host alone; a killed host told ≤ 4 s",
            [6, 40, 300],
            false,
            remote::run
        ),
        drill!("soak", "soak with all of it", "30 min, ≥ 50,000 turns", [40, 150, 1800], false, soak::run),
    ]
}

/// The shortest time that this share of all is not above.
pub fn quantile(times: &[u64], share: f64) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let rank = (times.len() as f64 * share).ceil() as usize;
    Duration::from_micros(times.get(rank.clamp(1, times.len().max(1)) - 1).copied().unwrap_or_default())
}

/// Times as the table shows them.
pub fn spread(times: &[u64]) -> String {
    let ms = |share| quantile(times, share).as_secs_f64() * 1000.0;
    let mut text = String::new();
    let _ = write!(text, "p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms", ms(0.5), ms(0.99), ms(1.0));
    text
}
