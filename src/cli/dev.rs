//! `lastword dev`: a whole cluster on one machine.
//!
//! Owns the order of start and stop (Postgres first and last, the replicas in between) and the output at the
//! terminal. [`cluster`] owns the processes, [`home`] the directory.

mod cluster;
pub mod demo;
mod home;
mod replica;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use lastword_devkit::signals::Signals;

use self::cluster::{DevCluster, DevPlan};

/// Poll interval for dead processes. A process that dies is restarted within a second.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Flags of `lastword dev`.
#[derive(Debug, clap::Args)]
pub struct DevArgs {
    /// Port of the first replica on 127.0.0.1; the other replicas get the ports after it
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Number of replicas, each a process of its own
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=26))]
    replicas: u16,
    /// Directory for the database, the logs and the tokens
    #[arg(long, value_name = "DIR", env = "LASTWORD_DATA", default_value = ".lastword")]
    data: PathBuf,
    /// Directory of the programs `postgres` and `initdb` [default: searched for]
    #[arg(long, value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
}

/// Starts the cluster, restarts what dies, and stops it at a signal: gently at the first, at once at the second.
///
/// # Errors
/// Postgres is missing or does not start, a port is taken, another `dev` uses the directory, or the
/// replicas do not become ready.
pub async fn run(args: DevArgs) -> anyhow::Result<ExitCode> {
    let plan = DevPlan {
        dir: args.data,
        port: args.port,
        replicas: args.replicas,
        postgres_bin: args.postgres_bin,
        is_durable: true,
    };
    note!("Starting Postgres and {} …", plural(plan.replicas, "replica"));
    let mut cluster = DevCluster::start(&plan).await?;
    let mut signals = Signals::listen()?;
    let lived = tokio::select! {
        lived = live(&mut cluster) => lived,
        () = signals.asked() => Ok(()),
    };
    note!("Stopping; press Ctrl-C again to stop at once …");
    cluster.stop(&mut signals).await;
    lived.map(|()| ExitCode::SUCCESS)
}

/// Returns only on a permanent failure.
async fn live(cluster: &mut DevCluster) -> anyhow::Result<()> {
    cluster.settle().await?;
    cluster.install_demo_agent().await?;
    welcome(cluster);
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        cluster.look()?;
    }
}

fn welcome(cluster: &DevCluster) {
    let state = cluster.state();
    say!("\nlastword is up, on this machine only. Ctrl-C stops all of it.\n");
    for replica in &state.replicas {
        say!("  replica {}   {}   process {}", replica.name, replica.url, replica.pid.unwrap_or_default());
    }
    let kept = |name: &str| shown(&cluster.dir().join(name));
    say!("  console     {}   (opens {} with the operator's token)", kept(home::CONSOLE), state.urls[0]);
    say!("  Postgres    {}   process {}", cluster.postgres_address(), state.postgres.pid.unwrap_or_default());
    say!("  directory   {}   (logs; dev.json has the database's URL)", cluster.dir().display());
    if !state.postgres.data.starts_with(cluster.dir()) {
        say!("  database    {}", state.postgres.data.display());
        say!("              (Postgres does not run as root, and its user cannot reach that directory)");
    }
    let (first, last) = (&state.urls[0], state.urls.last().unwrap_or(&state.urls[0]));
    say!("\nTry, in another terminal:\n");
    let header = kept(home::CLIENT_HEADER);
    say!("  curl -N -H @{header} {first}/v1/turns -H 'Accept: text/event-stream' \\");
    say!("    -H 'Content-Type: application/json' -d '{{\"agent\":\"demo\",\"input\":\"/slow 100\"}}'\n");
    say!("  # the same turn on another replica; TURN is the turn_id that the first command shows");
    say!("  curl -N -H @{header} {last}/v1/turns/TURN/events -H 'Accept: text/event-stream'\n");
    say!("  {} chat --agent demo --data {}\n", us(), shown(cluster.dir()));
}

/// The name this program was called by, so that printed commands can be pasted.
fn us() -> String {
    std::env::args().next().unwrap_or_else(|| "lastword".to_owned())
}

/// The path, relative to the current directory if it lies below.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let short = path.strip_prefix(here).ok().filter(|short| !short.as_os_str().is_empty());
    short.unwrap_or(path).display().to_string()
}

fn plural(count: u16, what: &str) -> String {
    if count == 1 { format!("one {what}") } else { format!("{count} {what}s") }
}
