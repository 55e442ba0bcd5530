//! What this host starts for turns, and how the turns run: their words go to the gateway over HTTP.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::turn::HostedJob;
use crate::{
    clock::Clock,
    host::{
        Fate, HostOwner, HostedTurn, Obstacle, ProcessLink, Program, Started,
        process::{Exit, Launch, Process},
    },
    id::WorkerId,
    task::Supervisor,
    units::Size,
};

/// How long a guard may go without a proof of life.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What to run for the turns of this host.
#[derive(Debug)]
pub struct Programs {
    /// Starts this host's tasks. Its soft stop: nothing more is taken on.
    pub supervisor: Supervisor,
    /// The home of new ids.
    pub clock: Clock,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// What it finds in its environment.
    pub env: BTreeMap<String, String>,
    /// Where its workspaces are.
    pub data_dir: PathBuf,
    /// The user that it runs as, where that is another than this host's.
    pub user: Option<String>,
    /// Turns at once: those of a process that serves many.
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

    /// Not called: no turn here is bound to a worker.
    async fn forsaken(&self, _job: HostedJob) {}

    /// Operators see this host as one worker; what it runs is in its own log.
    async fn note_started(&self, _started: Started<'_>) {}

    async fn note_ready(&self, _worker: WorkerId) {}

    async fn note_ended(&self, worker: WorkerId, exit: Exit, _stderr: String) {
        tracing::info!(worker_id = %worker, %exit, "worker ended");
    }
}
