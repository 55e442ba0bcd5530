//! Mutants: the product with one broken rule each, which the harness must catch.
//!
//! Owns the course of a hunt: the mutant is built in a copy of the source, and a process of its own runs the hunt
//! against real replicas of the mutant. The finding is what that process reports at its end, so a cluster that ends
//! dirty is one too. The same hunt over the real program must find nothing; otherwise its finding proves nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "asks Postgres by SQL of its own")]

mod hunts;
mod patches;
mod workshop;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use patches::NEXT_RELEASE;
pub use patches::{MUTANTS, Mutant};
use workshop::Workshop;

/// Names the hunt that a process is for.
const HUNT: &str = "LASTWORD_CHAOS_HUNT";
/// Names the program that clusters run, in place of the one that was built with the test.
const PROGRAM: &str = "LASTWORD_CHAOS_PROGRAM";
/// How the line of a finding, and that of none, begin.
const CAUGHT: &str = "caught: ";
const CLEAN: &str = "clean";

/// What the next release adds to the schema.
#[allow(dead_code, reason = "for the drills alone")]
const NEXT_MIGRATION: (&str, &str) = (
    "migrations/0900_next_release.sql",
    "-- A later release expands the schema first.\nalter table turns add column of_the_next_release text;\n",
);

/// What became of one mutant.
#[derive(Debug, Clone)]
pub struct MutantOutcome {
    /// Which one.
    pub name: &'static str,
    /// The check that caught it; `None` where it survived.
    pub caught_by: Option<String>,
    /// How long the hunt took, without the build.
    pub took: Duration,
}

/// Builds the next release of the product, with a migration more; where its program is.
///
/// # Errors
/// It cannot be built.
#[allow(dead_code, reason = "for the drills alone")]
pub fn next_release() -> anyhow::Result<PathBuf> {
    Workshop::open().build_next(&NEXT_RELEASE, NEXT_MIGRATION)
}

/// Builds and hunts the mutants of these names, all where none is given.
pub fn run(names: &[String]) -> Vec<MutantOutcome> {
    let workshop = Workshop::open();
    let hunted = chosen(names).into_iter().map(|mutant| {
        let began = Instant::now();
        let program = workshop.build(&mutant).unwrap_or_else(|why| panic!("{why:#}"));
        eprintln!("{} was built in {:.0} s", mutant.name, began.elapsed().as_secs_f64());
        let outcome = hunt(&mutant, Some(&program));
        eprintln!(
            "{} was caught by {:?} in {:.0} s",
            mutant.name,
            outcome.caught_by,
            outcome.took.as_secs_f64()
        );
        outcome
    });
    hunted.collect()
}

/// The same hunts over the real program, each of which must find nothing.
pub fn run_on_the_real_one(names: &[String]) -> Vec<MutantOutcome> {
    chosen(names).into_iter().map(|mutant| hunt(&mutant, None)).collect()
}

/// For the first line of `main`: runs the hunt that this process was started for. `None` where it was
/// started for something else.
pub fn hunt_if_asked() -> Option<ExitCode> {
    let name = env::var(HUNT).ok()?;
    let mutant = MUTANTS.into_iter().find(|mutant| mutant.name == name).expect("a known hunt");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let found = runtime.block_on(hunts::hunt(&mutant));
    println!("{}", found.map_or(CLEAN.to_owned(), |check| format!("{CAUGHT}{check}")));
    Some(ExitCode::SUCCESS)
}

fn chosen(names: &[String]) -> Vec<Mutant> {
    for name in names {
        assert!(MUTANTS.iter().any(|mutant| mutant.name == name), "no mutant is named {name}");
    }
    let is_chosen = |mutant: &Mutant| names.is_empty() || names.iter().any(|name| name == mutant.name);
    MUTANTS.into_iter().filter(is_chosen).collect()
}

fn hunt(mutant: &Mutant, program: Option<&Path>) -> MutantOutcome {
    let mut command = Command::new(env::current_exe().unwrap());
    command.env(HUNT, mutant.name).stdin(Stdio::null());
    match program {
        Some(program) => command.env(PROGRAM, program),
        None => command.env_remove(PROGRAM),
    };
    let began = Instant::now();
    let done = command.output().unwrap();
    let took = began.elapsed();
    let said = String::from_utf8_lossy(&done.stdout);
    let is_clean = said.lines().any(|line| line == CLEAN);
    let found = said.lines().find_map(|line| line.strip_prefix(CAUGHT)).map(str::to_owned);
    let why = String::from_utf8_lossy(&done.stderr);
    // A hunt that neither found nor cleared anything proves nothing.
    assert!(
        done.status.success() && is_clean != found.is_some(),
        "{}: {}\n{said}{why}",
        mutant.name,
        done.status
    );
    // What a survivor, or a finding of another kind, had to tell.
    if program.is_some() != found.is_some() || found.as_ref().is_some_and(|check| check != mutant.check) {
        eprintln!("--- {} ---\n{why}", mutant.name);
    }
    MutantOutcome { name: mutant.name, caught_by: found, took }
}
