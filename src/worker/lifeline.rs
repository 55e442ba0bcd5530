//! What a replica and a worker's guard process say to each other over the lifeline: one JSON
//! object a line, each way. Both ends are the same build, so nothing here is a contract.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The first line to the guard: what to run and how far to let it go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The agent's whole environment.
    pub env: BTreeMap<String, String>,
    /// The agent's working directory.
    pub cwd: PathBuf,
    /// Resident memory of the whole tree, in bytes.
    pub memory_bytes: u64,
    /// Processes in the tree, the agent's own included.
    pub processes_max: u32,
    /// SIGTERM → SIGKILL, in milliseconds.
    pub stop_grace_ms: u64,
    /// How long the replica may be silent, in milliseconds.
    pub silence_max_ms: u64,
}

/// Every later line to the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The replica's proof of life.
    Renew(bool),
    /// SIGTERM to the agent's group; SIGKILL to the tree after the grace.
    Stop {},
    /// SIGKILL to the tree.
    Kill {},
}

impl Order {
    /// The order as its line, the newline included.
    pub const fn line(self) -> &'static [u8] {
        match self {
            Order::Renew(_) => b"{\"renew\":true}\n",
            Order::Stop {} => b"{\"stop\":{}}\n",
            Order::Kill {} => b"{\"kill\":{}}\n",
        }
    }
}

/// A line from the guard: `spawned` or `refused`, then `exited`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The agent runs.
    Spawned {
        /// Its process id, which is its group's and session's too.
        pid: i32,
    },
    /// The agent could not be started.
    Refused(Refusal),
    /// The agent is gone, and all that it started.
    Exited(Ended),
}

/// Why an agent could not be started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind of obstacle.
    pub kind: Obstacle,
    /// The system's error number, where it gave one.
    pub errno: Option<i32>,
    /// For operators.
    pub detail: String,
}

/// What stands in an agent's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Obstacle {
    /// The program, or the interpreter that it names, does not exist.
    NotFound,
    /// It exists and may not be run.
    NotExecutable,
    /// The working directory cannot be entered.
    Workdir,
    /// Anything else.
    Other,
}

/// How an agent ended. At most one of `code` and `signal`; at most one of the claims.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it, or its tree, went over its memory.
    #[serde(default)]
    pub oom: bool,
    /// Whether its tree had too many processes.
    #[serde(default)]
    pub processes: bool,
    /// Whether the replica was silent for too long.
    #[serde(default)]
    pub silence: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reads_back_what_it_wrote() {
        for order in [Order::Renew(true), Order::Stop {}, Order::Kill {}] {
            assert_eq!(serde_json::from_slice::<Order>(order.line()).unwrap(), order);
        }
    }
}
