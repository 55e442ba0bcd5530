//! `lastword serve`: one replica, from its configuration to its end.
//!
//! Owns the order: listen first (a taken port is known at once), migrate, start the passes, answer. SIGTERM or
//! SIGINT drains; the second signal interrupts. A panic, or the end of a task the replica needs, drains too and
//! sets exit code 1.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use super::database;
use crate::{
    api::{self, Gateway},
    config::{Config, ConfigError, Overrides},
    descriptors,
    engine::{Engine, drain},
    host::process::{cgroup, user::User, workspace},
    rendezvous::Rendezvous,
    store::Store,
    task::{Supervisor, TaskKind},
    telemetry,
    worker::kubernetes,
};

/// Time for the last tasks to end after the drain.
const END_MAX: Duration = Duration::from_secs(5);
/// Connections to Postgres outside the pool: the beat's, the listener's and the notify sender's.
const RESERVED_CONNECTIONS: u32 = 3;

/// Runs one replica.
///
/// Commands of agents whose runtime is `process` run as this replica's own user, with all rights of that user,
/// unless LASTWORD_WORKER_USER names another user.
///
/// Every client token gives access to all conversations and turns: to read, answer and cancel.
/// Give client tokens to your own programs, never to users (docs/SECURITY.md).
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// The configuration file [default: lastword.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address to listen on [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// URL at which operators reach this replica [default: http:// and the address]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// URL of the database; better given in DATABASE_URL or LASTWORD_DATABASE_URL_FILE
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Directory for workspaces [default: lastword-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Allow client routes without tokens beyond loopback, or beside operator tokens: something else controls access
    #[arg(long)]
    insecure: bool,
}

/// Serves until told to stop.
///
/// # Errors
/// An invalid configuration, an address in use, a schema that cannot be migrated.
pub async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let mut config = Config::load(Overrides {
        config: args.config,
        listen: args.listen,
        url: args.url,
        database_url: args.database_url,
        data_dir: args.data_dir,
        insecure: args.insecure.then_some(true),
    })?;
    settle_worker_user(&mut config)?;
    let store = Store::open(&config).map_err(database::explained)?;
    let _telemetry = telemetry::init(&config, &store.replica().to_string())?;
    note_descriptors(&config);
    if config.worker_cgroups {
        cgroup::settle().await;
    }
    let supervisor = Supervisor::new();
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let bound = listener.local_addr()?;
    let url = config.advertised_url(bound);
    tracing::info!(%bound, %url, version = env!("CARGO_PKG_VERSION"), "listening");
    if config.worker_user.is_none() {
        tracing::warn!(
            "agents' commands run as this replica's own user, with all its rights; set worker_user to another user"
        );
    }

    let pods =
        kubernetes::connect(&config, &url).await.context("cannot connect to the Kubernetes cluster")?;
    let now = CancellationToken::new();
    let asked = stop_signals(&supervisor, now.clone())?;
    let closing = CancellationToken::new();
    let rendezvous = Arc::<Rendezvous>::default();
    let gateway =
        Gateway::new(store.clone(), rendezvous.clone(), Arc::new(config.clone()), supervisor.clone());
    let doors = api::serve(listener, gateway, closing.clone());
    supervisor.spawn(TaskKind::Replica, "doors", doors);
    let is_migrated = tokio::select! {
        migrated = migrate(&store) => migrated.map(|()| true),
        () = supervisor.soft().cancelled() => Ok(false),
    }?;
    if is_migrated {
        let engine = Engine::start(store.clone(), rendezvous, supervisor.clone(), &config, url, pods);
        supervisor.soft().cancelled().await;
        drain::drain(&engine, config.drain.0, &now).await;
    }
    closing.cancel();
    supervisor.hard().cancel();
    if tokio::time::timeout(END_MAX, supervisor.ended()).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    store.close().await;
    drop(asked);
    if let Some(why) = supervisor.panicked().or_else(|| supervisor.ended_early()) {
        tracing::error!(why, "stopped by a fault");
        return Ok(ExitCode::FAILURE);
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Resolves the workers' user once, and makes the workspaces reachable for it.
fn settle_worker_user(config: &mut Config) -> anyhow::Result<()> {
    let Some(text) = config.worker_user.as_deref() else { return Ok(()) };
    let refuse = |why: String| ConfigError::Refused { key: "worker_user", why };
    let user = User::find(text).and_then(|user| User::may_become().map(|()| user)).map_err(refuse)?;
    let workspaces = config.data_dir.join("workspaces");
    let dirs = [config.data_dir.clone(), workspaces.clone(), workspaces.join("shared")];
    workspace::open(&dirs, user).map_err(|why| refuse(format!("cannot be used: {why}")))?;
    config.worker_user = Some(user.to_string());
    Ok(())
}

/// Raises the descriptor limit, and logs if it is too low for the configured connections.
fn note_descriptors(config: &Config) {
    let descriptors = descriptors::raise(config.pool_max + RESERVED_CONNECTIONS);
    let connections = descriptors::connections(config.connections_max, config.workers_max());
    if connections < config.connections_max as usize {
        tracing::info!(
            descriptors,
            connections,
            connections_max = config.connections_max,
            "the limit of open files is too low for connections_max: raise the hard limit (ulimit -Hn)"
        );
    }
}

/// Connects and migrates; waits for a Postgres that is not up yet. A permanent error is returned.
async fn migrate(store: &Store) -> anyhow::Result<()> {
    loop {
        let migrated = match store.knock().await {
            Ok(()) => store.migrate().await,
            Err(why) => Err(why),
        };
        match migrated {
            Ok(()) => return Ok(()),
            Err(why) if why.denial().is_some() => return Err(database::explained(why)),
            Err(why) if why.is_away() => {
                tokio::time::sleep(Duration::from_millis(rand::random_range(200..400))).await;
            }
            Err(why) => return Err(why).context("the schema cannot be migrated"),
        }
    }
}

/// The first SIGTERM or SIGINT drains. The second cancels `now`: running turns are interrupted and their last
/// words still written. The third stops everything at once. Dropping the guard ends the watch.
fn stop_signals(
    supervisor: &Supervisor,
    now: CancellationToken,
) -> anyhow::Result<tokio_util::sync::DropGuard> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let (soft, hard) = (supervisor.soft().clone(), supervisor.hard().clone());
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let mut signals = 0;
    supervisor.spawn(TaskKind::Client, "signals", async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
                () = stopped.cancelled() => return,
                () = hard.cancelled() => return,
            }
            signals += 1;
            match signals {
                1 => soft.cancel(),
                2 => now.cancel(),
                _ => hard.cancel(),
            }
        }
    });
    Ok(stop.drop_guard())
}
