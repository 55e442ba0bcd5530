//! What this host starts for turns, and how they run: their output goes to the gateway over HTTP.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::turn::HostedJob;
use crate::{
    Fate, HostOwner, HostedTurn, Obstacle, ProcessLink, Program, Started,
    process::{Exit, Launch, Process},
    task::Supervisor,
};
use lastword_words::{clock::Clock, id::WorkerId, units::Size};

/// How long a guard may go without a renewal.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The program for this host's turns.
#[derive(Debug)]
pub struct Programs {
    /// Spawns this host's tasks. Its soft stop: no more turns are taken.
    pub supervisor: Supervisor,
    /// The home of new ids.
    pub clock: Clock,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The program's environment.
    pub env: BTreeMap<String, String>,
    /// The directory of the workspaces.
    pub data_dir: PathBuf,
    /// The user to run as; `None`: this host's own.
    pub user: Option<String>,
    /// Turns at once in one shared process.
    pub concurrency: usize,
}

impl HostOwner for Programs {
    type Turn = HostedJob;

    fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    fn mint(&self) -> WorkerId {
        WorkerId(self.clock.mint())
    }

    fn program(&self, job: &HostedJob) -> Program {
        let registered = &job.registered;
        let mut env = self.env.clone();
        env.insert("LASTWORD_AGENT".to_owned(), registered.agent.clone());
        let workspace = if job.is_shared() {
            self.data_dir.join("shared")
        } else {
            let conversation = job.conversation().to_string();
            env.insert("LASTWORD_CONVERSATION_ID".to_owned(), conversation.clone());
            self.data_dir.join(conversation)
        };
        let launch = Launch {
            env,
            memory: Size(registered.memory_bytes),
            processes: registered.processes,
            silence_max: SILENCE_MAX,
            user: self.user.clone(),
            ..Launch::new(self.command.clone(), workspace)
        };
        let (agent, revision) = job.agent();
        Program {
            agent: agent.to_owned(),
            revision,
            launch,
            turns: if job.is_shared() { self.concurrency } else { 1 },
            startup: Duration::from_millis(registered.startup_ms),
            idle_ttl: job.idle_ttl(),
            // The gateway has checked the input.
            is_guarded: false,
        }
    }

    async fn run<L: ProcessLink>(&self, job: &mut HostedJob, link: &mut L) -> Fate {
        job.run(link).await
    }

    async fn not_started(&self, mut job: HostedJob, why: Obstacle, process: Option<&Process>) {
        let tail = process.map(Process::stderr_tail).filter(|tail| !tail.is_empty());
        job.not_started(why.told(process), tail).await;
    }

    /// Never called: no turn here is bound to a worker.
    async fn forsaken(&self, _job: HostedJob) {}

    /// Operators see this host as one worker; its processes appear only in its own log.
    async fn note_started(&self, _started: Started<'_>) {}

    async fn note_ready(&self, _worker: WorkerId) {}

    async fn note_ended(&self, worker: WorkerId, exit: Exit, _stderr: String) {
        tracing::info!(worker_id = %worker, %exit, "worker ended");
    }
}
