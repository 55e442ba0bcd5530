//! The parts of the bench's own installation, and the commands that start them.
//!
//! Owns every setting that differs from the gateway's default. Keeps the environment of this process away from what is
//! measured.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use lastword_devkit::postgres::{Binaries, Options, Postgres};

/// The agent that most is measured with; its scope is the plan's.
pub const AGENT: &str = "bench";
/// One with a process for each conversation, whatever the plan says.
pub const OWN_AGENT: &str = "bench-own";

/// Scope of the agent's workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AgentScope {
    /// A process for each conversation.
    Conversation,
    /// One process for many turns at once.
    Shared,
}

impl AgentScope {
    /// As the agent's spec has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            AgentScope::Conversation => "conversation",
            AgentScope::Shared => "shared",
        }
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct RigPlan {
    /// Where; a directory of its own is made in it.
    pub dir: PathBuf,
    /// The program that replicas run; this one if absent.
    pub program: Option<PathBuf>,
    /// The programs of Postgres; searched for if absent.
    pub postgres_bin: Option<PathBuf>,
    /// Settings of Postgres beside ours.
    pub settings: Vec<(String, String)>,
    /// Whether commits are flushed.
    pub is_durable: bool,
    /// More for their environment.
    pub env: Vec<(String, String)>,
    /// How workers and conversations belong together.
    pub scope: AgentScope,
    /// Ended turns that are there before it starts.
    pub history: Option<PastTurns>,
    /// Whether a transaction is open elsewhere all the time.
    pub is_held: bool,
}

/// Ended turns that a measurement begins with.
#[derive(Debug, Clone, Copy)]
pub struct PastTurns {
    /// How many.
    pub turns: i64,
    /// Events of each.
    pub events_each: i32,
    /// They began evenly over this time before the start; over twenty days if absent.
    pub span: Option<Duration>,
}

impl RigPlan {
    /// Starts Postgres in `place`, with statements counted where this one can.
    pub fn postgres(&self, place: &Path) -> anyhow::Result<Postgres> {
        let binaries = Binaries::find(self.postgres_bin.as_deref())?;
        let mut settings = self.settings.clone();
        if binaries.has_library("pg_stat_statements") {
            settings.push(("shared_preload_libraries".to_owned(), "pg_stat_statements".to_owned()));
        }
        let options = Options {
            settings,
            durable: self.is_durable,
            log: Some(place.join("postgres.log")),
            ..Options::new(place.join("postgres"), binaries)
        };
        Postgres::start(options)
    }

    /// Has the program that replicas run make its tables.
    pub fn migrate(&self, postgres: &Postgres) -> anyhow::Result<()> {
        let done = self.command(postgres, "migrate")?.output().context("cannot run `lastword migrate`")?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "`lastword migrate` failed ({}): {}", done.status, said.trim());
        Ok(())
    }

    /// What runs a replica, but for its address: with the defaults, and no limit in the way of a load.
    pub fn serve(&self, postgres: &Postgres, place: &Path, token: &str) -> anyhow::Result<Command> {
        let mut command = self.command(postgres, "serve")?;
        command
            .current_dir(place)
            .env("LASTWORD_DATA_DIR", place.join("workspaces"))
            .env("LASTWORD_OPERATOR_TOKENS", token)
            .env("LASTWORD_CLIENT_TOKENS", token)
            .env("LASTWORD_DRAIN", "2s")
            .env("LASTWORD_TURNS_MAX", "6000")
            .env("LASTWORD_QUEUE_MAX", "1000000")
            .env("LASTWORD_CONVERSATION_DEPTH_MAX", "1000000")
            .env("LASTWORD_STREAMS_MAX", "20000")
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// The agents and their specs. Their worker is the gateway beside this program, whoever runs the replicas.
    pub fn agents(&self) -> anyhow::Result<[(&'static str, Value); 2]> {
        let worker = gateway()?;
        Ok([(AGENT, spec(&worker, self.scope)), (OWN_AGENT, spec(&worker, AgentScope::Conversation))])
    }

    /// A command of the program that replicas run, over this database.
    fn command(&self, postgres: &Postgres, subcommand: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(self.program.clone().map_or_else(gateway, Ok)?);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("LASTWORD_") || text.starts_with("OTEL_") {
                command.env_remove(name);
            }
        }
        command.arg(subcommand).env("DATABASE_URL", postgres.url());
        Ok(command)
    }
}

/// With clocks that no measure runs into.
fn spec(worker: &Path, scope: AgentScope) -> Value {
    let mut spec = json!({
        "runtime": "process",
        "command": [worker, "demo-agent", "--pace"],
        "scope": scope.as_str(),
        "idle_ttl": "1h",
        "timeouts": {"queue": "1h", "progress": "1h", "cap": "2h"},
        "limits": {"output_bytes": "1GiB"},
    });
    if scope == AgentScope::Shared {
        spec["max_concurrent_turns"] = 8192.into();
    }
    spec
}

/// The gateway's program, which is installed and built beside this one.
fn gateway() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let gateway = own.with_file_name("lastword");
    anyhow::ensure!(
        gateway.is_file(),
        "{} is missing: build it first, or name it with --program",
        gateway.display()
    );
    Ok(gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_specs_are_ones_that_the_gateway_takes() {
        let spec: lastword::agent::AgentSpec =
            serde_json::from_value(spec(Path::new("/bin/lastword"), AgentScope::Conversation)).unwrap();
        assert_eq!(spec.validate(), Ok(()));
    }
}
