//! `make chaos`: injects every fault, and counts the outcome of every turn.
//!
//! Owns the forms (short for CI, usual, full), the order of the drills and the report. Each drill has its own Postgres,
//! replicas, workers, clients, history and verdict; `target/chaos/` keeps the histories. Fails if any drill lost,
//! duplicated, reordered or falsely ended a turn, or, beyond the short form, missed its figure.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a drill that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "clients and the checker are outside the product's rules")]
#![allow(dead_code, missing_docs, reason = "each form uses a part of this")]

#[path = "../support/mod.rs"]
mod support;

mod checker;
mod client;
mod drills;
mod fleet;
mod history;
mod hosts;
mod load;
mod mutants;
mod observer;
mod plan;
#[path = "../support/pooler.rs"]
mod pooler;
mod proxy;
mod puppet;
mod races;
mod report;
mod scene;
mod standby;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use tokio::{sync::Semaphore, time::timeout};

use drills::{Drill, Row};
use report::Done;
use scene::Stage;

/// No drill may hang for longer than this.
const DRILL_MAX: Duration = Duration::from_secs(45 * 60);

/// How much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Minutes, for CI.
    Short,
    /// About ten minutes.
    Usual,
    /// As often as the published table says.
    Full,
}

/// Breaks everything, and counts.
#[derive(Debug, Parser)]
struct Args {
    /// How much.
    #[arg(long, value_enum, default_value = "usual")]
    form: Form,
    /// Everything that is drawn comes from this; printed, so that a run can be done again.
    #[arg(long)]
    seed: Option<u64>,
    /// Only drills whose name contains one of these.
    drills: Vec<String>,
    /// Another count than the form's.
    #[arg(long)]
    count: Option<usize>,
    /// Drills at once, of those that mostly wait.
    #[arg(long, default_value_t = 3)]
    lanes: usize,
    /// Writes the table as Markdown here too.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Plays a replica that holds turns in the database of `DATABASE_URL`.
    #[arg(long, hide = true)]
    puppet: bool,
    /// Only lists the drills.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(args))
}

async fn run(args: Args) -> ExitCode {
    if args.puppet {
        return puppet::hold(std::env::var("DATABASE_URL").expect("DATABASE_URL")).await;
    }
    let seed = args.seed.unwrap_or_else(rand::random);
    let wanted = chosen(&args);
    if args.list {
        for (drill, count) in wanted {
            println!("{:16} {count:5}  {}", drill.name, drill.fault);
        }
        return ExitCode::SUCCESS;
    }
    println!("seed {seed}, {:?} form, {}", args.form, report::surroundings());
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
    std::fs::create_dir_all(&dir).expect("a directory for histories");
    let began = Instant::now();
    let (alone, patient): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(drill, _)| drill.is_alone);
    let mut done = Vec::new();
    for (drill, count) in alone {
        done.push(perform(drill, count, seed, dir.clone()).await);
    }
    let lanes = Arc::new(Semaphore::new(args.lanes.max(1)));
    let tasks: Vec<_> = patient
        .into_iter()
        .map(|(drill, count)| {
            let (lanes, dir) = (lanes.clone(), dir.clone());
            tokio::spawn(async move {
                let _lane = lanes.acquire_owned().await.expect("lanes stay open");
                perform(drill, count, seed, dir).await
            })
        })
        .collect();
    for task in tasks {
        done.push(task.await.expect("a drill's own panic is its finding"));
    }
    let order: Vec<&str> = drills::all().iter().map(|drill| drill.name).collect();
    done.sort_by_key(|done| order.iter().position(|name| *name == done.drill.name));
    report::print(&done, began.elapsed());
    if let Some(path) = args.report {
        std::fs::write(path, report::markdown(&done, seed)).expect("a place for the report");
    }
    let is_short = args.form == Form::Short;
    // What is lost, doubled or falsely ended fails anywhere; how long something took only where the
    // machine is known to have nothing else to do.
    match done.iter().all(|done| done.is_good() || !done.row.is_run || is_short && done.is_clean()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The drills that were asked for, and how often each fault should happen.
fn chosen(args: &Args) -> Vec<(Drill, usize)> {
    let column = args.form as usize;
    let is_named = |drill: &Drill| {
        args.drills.is_empty() || args.drills.iter().any(|name| drill.name.contains(name.as_str()))
    };
    let drills = drills::all().into_iter().filter(is_named);
    drills
        .map(|drill| {
            // Who names a drill wants it, in whatever form.
            let least = usize::from(!args.drills.is_empty());
            let count = args.count.unwrap_or(drill.counts[column].max(least));
            (drill, count)
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// One drill; a panic in it is its finding.
async fn perform(drill: Drill, count: usize, seed: u64, dir: PathBuf) -> Done {
    let kept = dir.join(format!("{}.complaints", drill.name));
    let stage = Stage { seed, count, dir, name: drill.name };
    let began = Instant::now();
    let row = match timeout(DRILL_MAX, tokio::spawn((drill.run)(stage))).await {
        Ok(Ok(row)) => row,
        Ok(Err(why)) => Row::broken(support::panic_text(why)),
        Err(_) => Row::broken(format!("not over after {DRILL_MAX:?}")),
    };
    let done = Done { drill, row, took: began.elapsed() };
    report::print_one(&done);
    report::keep_complaints(&done, &kept);
    done
}
