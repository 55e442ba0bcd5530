//! `lastword work`: a host that calls a gateway over HTTP and runs a worker program with the native protocol on
//! its stdio.
//!
//! Owns what the host is told, and its signals. The host itself is [`crate::host::calling`].

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    clock::Clock,
    config::{Config, pass, workers_for},
    descriptors,
    host::{
        calling::{CallingHost, CallingPlan, Identity, Programs},
        process::{cgroup, user::User, workspace},
    },
    id::{ConversationId, WorkerId},
    task::{Supervisor, TaskKind},
    telemetry,
    units::Span,
};

/// Hosts a worker program for a gateway reached over HTTP.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Base URL of a gateway; several, separated by commas, are tried in turn
    #[arg(long = "url", env = "LASTWORD_URL", value_delimiter = ',', value_name = "URL", required = true)]
    urls: Vec<String>,
    /// File with the worker token
    #[arg(long, env = "LASTWORD_WORKER_TOKEN_FILE", value_name = "FILE")]
    token_file: PathBuf,
    /// Agent whose turns to run; its runtime is `remote`
    #[arg(long, env = "LASTWORD_AGENT", value_name = "NAME")]
    agent: String,
    /// Serve this conversation only
    #[arg(long, env = "LASTWORD_CONVERSATION_ID", value_name = "ID")]
    conversation: Option<ConversationId>,
    /// Maximum number of turns at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
    /// Maximum number of worker processes, idle ones included [default: 1.5 × concurrency, at least 16]
    #[arg(long, value_name = "COUNT")]
    workers_max: Option<u32>,
    /// Exit after this time without a turn
    #[arg(long, value_name = "SPAN")]
    exit_when_idle: Option<Span>,
    /// Take no new turns after this time, and exit when the running turns have ended
    #[arg(long, value_name = "SPAN")]
    retire_after: Option<Span>,
    /// Time for running turns to end after a SIGTERM
    #[arg(long, default_value = "45s", value_name = "SPAN")]
    drain: Span,
    /// Directory for workspaces
    #[arg(long, default_value = "lastword-work", value_name = "DIR")]
    data_dir: PathBuf,
    /// User that runs the program: a name, a UID, or UID:GID [default: the user of this host]
    #[arg(long, env = "LASTWORD_WORKER_USER", value_name = "USER")]
    worker_user: Option<String>,
    /// Environment variables that the program inherits, beside a minimum [default: all but LASTWORD_*]
    #[arg(long, env = "LASTWORD_WORKER_ENV_PASS", value_delimiter = ',', value_name = "NAMES")]
    env_pass: Option<Vec<String>>,
    /// Name of this host, for operators
    #[arg(long, env = "LASTWORD_WORKER_NAME")]
    name: Option<String>,
    /// Log filter, such as `info` or `lastword=debug`
    #[arg(long, env = "LASTWORD_LOG", default_value = "info")]
    log: String,
    /// Id of this worker; in a pod, the gateway sets it
    #[arg(long = "worker", env = "LASTWORD_WORKER_ID", value_name = "ID")]
    worker: Option<WorkerId>,
    /// Worker program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Works until told to stop, or until idle for too long.
///
/// # Errors
/// An unreadable token, an invalid URL, or a gateway that refuses this worker.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let token = std::fs::read_to_string(&args.token_file)
        .with_context(|| format!("cannot read {}", args.token_file.display()))?;
    let name = args.name.clone().or_else(own_name);
    let config = Config { log: args.log.clone(), ..Config::default() };
    let _telemetry = telemetry::init(&config, name.as_deref().unwrap_or("work"))?;
    descriptors::raise(0);
    cgroup::settle().await;
    let identity = Identity {
        agent: args.agent.clone(),
        conversation: args.conversation,
        worker: args.worker,
        name,
        token: token.trim().to_owned(),
    };
    let supervisor = Supervisor::new();
    let workers_max = args.workers_max.unwrap_or_else(|| workers_for(args.concurrency));
    anyhow::ensure!(workers_max >= args.concurrency, "--workers-max is below --concurrency");
    let data_dir = absolute(&args.data_dir)?;
    let user = args.worker_user.as_deref().map(|text| settle_user(text, &data_dir)).transpose()?;
    let concurrency = args.concurrency as usize;
    let env = match &args.env_pass {
        Some(names) => {
            let wrong = pass::wrong_with(names);
            anyhow::ensure!(wrong.is_none(), "--env-pass {}", wrong.unwrap_or_default());
            pass::passed(names)
        }
        None => passed_on(),
    };
    let command = args.command.clone();
    let programs = Programs {
        supervisor: supervisor.clone(),
        clock: Clock::default(),
        command,
        env,
        data_dir,
        user,
        concurrency,
    };
    let host = CallingHost::new(CallingPlan {
        urls: args.urls.clone(),
        identity,
        programs,
        workers_max,
        idle_max: args.exit_when_idle.map(|span| span.0),
        retire_after: args.retire_after.map(|span| span.0),
    })?;
    stop_signals(&supervisor, &host)?;
    host.serve(&supervisor, args.drain.0).await?;
    Ok(ExitCode::SUCCESS)
}

/// Takes turns, then lets them end. The final sleep outlasts the beat's goodbye, which ends the caller's wait.
fn stop_signals(supervisor: &Supervisor, host: &CallingHost) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let (host, hard) = (host.clone(), supervisor.hard().clone());
    supervisor.spawn(TaskKind::Client, "signals", async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
                () = hard.cancelled() => return,
            }
            host.stop();
        }
    });
    Ok(())
}

/// Resolves the program's user once, and makes the workspaces reachable for it.
fn settle_user(text: &str, data_dir: &std::path::Path) -> anyhow::Result<String> {
    let found = User::find(text).and_then(|user| User::may_become().map(|()| user));
    let user = found.map_err(|why| anyhow::anyhow!("--worker-user {why}"))?;
    workspace::open(&[data_dir.to_owned()], user)
        .map_err(|why| anyhow::anyhow!("--worker-user cannot be used: {why}"))?;
    Ok(user.to_string())
}

/// The environment of a worker: this host's own, without its private variables.
fn passed_on() -> BTreeMap<String, String> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).filter(|(name, _)| !name.starts_with("LASTWORD_")).collect()
}

fn own_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(format!("{}:{}", name.trim(), std::process::id()))
}

fn absolute(dir: &std::path::Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(dir).with_context(|| dir.display().to_string())
}
