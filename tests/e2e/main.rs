//! The end-to-end driver: shows the promises of two replicas wherever they run.
//!
//! Takes the base URLs of two replicas and shell commands that list, kill, drain and restart them and that break and
//! heal Postgres. Owns the order of the steps and the exit code: 0 if every requested step held, 1 if one did not, 2 if
//! a step has no command. Knows nothing of where the replicas run: `deploy/local`, Compose and a cluster differ only in
//! the commands. Keeps: it judges by what clients see, and checks every list of events for gaps, repeats and a last
//! word.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "clients are outside the product's rules")]

#[path = "../support/mod.rs"]
mod support;

mod client;
mod crowd;
mod doors;
mod orders;
mod report;
mod steps;

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::{Parser, ValueEnum};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, timeout},
};

use client::Client;
use doors::Doors;
use orders::Orders;
use report::{Report, Row};

/// No step may hang for longer.
const STEP_MAX: Duration = Duration::from_secs(180);

/// Shows what two replicas promise: posts to the first, reads on the second, kills, drains and restarts.
#[derive(Debug, Clone, Parser)]
// Of two the later counts, so that a script's choices can be changed from outside.
#[command(args_override_self = true)]
pub struct Args {
    /// Base URL of the first replica, such as http://127.0.0.1:8080
    url_a: String,
    /// Base URL of the second one
    url_b: String,
    /// URL of what stands before all replicas and leads to those that are ready: a Service, a proxy
    #[arg(long, env = "FRONT")]
    front: Option<String>,
    /// Prints the replicas that are ready, a line each: NAME, or NAME URL where there is no --forward
    #[arg(long, value_name = "COMMAND")]
    list: String,
    /// Makes the local port $PORT (of one of the URLs) reach the replica $REPLICA until that ends
    #[arg(long, value_name = "COMMAND")]
    forward: Option<String>,
    /// Kills the replica $REPLICA without a grace; something brings one back
    #[arg(long, value_name = "COMMAND")]
    kill: Option<String>,
    /// Makes the replica $REPLICA leave gracefully; something brings one back
    #[arg(long, value_name = "COMMAND")]
    drain: Option<String>,
    /// Restarts every replica, one after another, and waits for the last
    #[arg(long, value_name = "COMMAND")]
    restart: Option<String>,
    /// Stops Postgres
    #[arg(long, value_name = "COMMAND")]
    break_postgres: Option<String>,
    /// Starts it again
    #[arg(long, value_name = "COMMAND")]
    heal_postgres: Option<String>,
    /// A client's token, or an operator's; none where the routes are open
    #[arg(long, env = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// An agent that runs `lastword demo-agent`
    #[arg(long, default_value = "demo")]
    agent: String,
    /// Where this build's `lastword verify` finds the database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// Runs `lastword verify --output json` where the database can be reached; instead of --database-url
    #[arg(long, value_name = "COMMAND")]
    verify: Option<String>,
    /// Only these steps
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Step>,
    /// Live streams while replicas are restarted
    #[arg(long, default_value_t = 200)]
    streams: usize,
    /// From the order to kill to the last word on the other replica
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    told_max: Duration,
    /// From the end of a replica until two answer again
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    back_max: Duration,
    /// From a cut to the stream that goes on elsewhere
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    resume_max: Duration,
    /// How long a turn runs while a replica drains: longer than its preStop, shorter than its drain
    #[arg(long, default_value = "12s", value_parser = humantime::parse_duration)]
    drained_turn: Duration,
    /// How long Postgres is away; less than the replicas' postgres_away_max
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    away: Duration,
    /// From Postgres' return to the next turn that is accepted
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    serve_max: Duration,
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Posted to A, read on B
    Cross,
    /// A killed without a grace
    Kill,
    /// A drained under streams
    Drain,
    /// All restarted under streams
    Restart,
    /// Postgres broken and healed
    Postgres,
    /// All logs read again from both, and `lastword verify`
    Verify,
}

impl Step {
    /// The options without which it cannot be done.
    fn lacks(self, args: &Args) -> Vec<&'static str> {
        let needs: &[(&'static str, bool)] = match self {
            Step::Cross => &[],
            Step::Kill => &[("--kill", args.kill.is_some())],
            Step::Drain => &[("--drain", args.drain.is_some())],
            Step::Restart => &[("--restart", args.restart.is_some())],
            Step::Postgres => &[
                ("--break-postgres", args.break_postgres.is_some()),
                ("--heal-postgres", args.heal_postgres.is_some()),
            ],
            Step::Verify => &[("--verify", args.verify.is_some() || args.database_url.is_some())],
        };
        needs.iter().filter(|(_, is_there)| !is_there).map(|(name, _)| *name).collect()
    }
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.only.is_empty() {
        args.only = Step::value_variants().to_vec();
    }
    let lacking: Vec<_> = args.only.iter().flat_map(|step| step.lacks(&args)).collect();
    if !lacking.is_empty() {
        eprintln!("missing: {} (or leave those steps out with --only)", lacking.join(", "));
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).expect("a signal to wait for");
        tokio::select! {
            code = run(args) => code,
            _ = terminated.recv() => ExitCode::from(143),
            _ = tokio::signal::ctrl_c() => ExitCode::from(130),
        }
    })
}

async fn run(args: Args) -> ExitCode {
    let orders = Arc::new(Orders::of(&args));
    let doors = Doors::open(&args, orders.clone());
    let began = Instant::now();
    let client = Client::new(&args, doors.clone());
    let world = Arc::new(World { args, orders, doors, client });
    let mut report = Report::default();
    if let Err(why) = world.doors.both_ready(world.args.back_max).await {
        eprintln!("two replicas are needed: {why}");
        return ExitCode::FAILURE;
    }
    for step in world.args.only.clone() {
        for row in perform(&world, step).await {
            report.add(row);
        }
    }
    report.print(began.elapsed());
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One step; a panic in it is its finding.
async fn perform(world: &Arc<World>, step: Step) -> Vec<Row> {
    let world = world.clone();
    let name = format!("{step:?}").to_lowercase();
    let mut work = tokio::spawn(async move {
        match step {
            Step::Cross => steps::cross(&world).await,
            Step::Kill => steps::kill(&world).await,
            Step::Drain => steps::drain(&world).await,
            Step::Restart => steps::restart(&world).await,
            Step::Postgres => steps::postgres(&world).await,
            Step::Verify => steps::verify(&world).await,
        }
    });
    match timeout(STEP_MAX, &mut work).await {
        Ok(Ok(rows)) => rows,
        Ok(Err(why)) => vec![Row::broken(&name, support::panic_text(why))],
        Err(_) => {
            work.abort();
            vec![Row::broken(&name, format!("not over after {STEP_MAX:?}"))]
        }
    }
}

/// What every step has.
pub struct World {
    args: Args,
    orders: Arc<Orders>,
    doors: Arc<Doors>,
    client: Client,
}
