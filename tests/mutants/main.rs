//! `make mutants`: the harness catches every broken rule, and reports nothing for the real program.
//!
//! Not part of the ordinary suite: it builds the program eleven times. Names as arguments select mutants.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

#[path = "../chaos/mutants/mod.rs"]
mod mutants;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use mutants::{MUTANTS, MutantOutcome};

fn main() -> ExitCode {
    if let Some(code) = mutants::hunt_if_asked() {
        return code;
    }
    let names: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let mut is_right = true;
    println!("the real program:");
    for outcome in mutants::run_on_the_real_one(&names) {
        is_right &= outcome.caught_by.is_none();
        tell(&outcome, outcome.caught_by.as_deref().unwrap_or("clean"));
    }
    println!("the mutants:");
    for outcome in mutants::run(&names) {
        let mutant = MUTANTS.into_iter().find(|mutant| mutant.name == outcome.name).unwrap();
        is_right &= outcome.caught_by.as_deref() == Some(mutant.check);
        tell(&outcome, outcome.caught_by.as_deref().unwrap_or("SURVIVED"));
    }
    if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(outcome: &MutantOutcome, what: &str) {
    let mutant = MUTANTS.into_iter().find(|mutant| mutant.name == outcome.name).unwrap();
    println!(
        "{:<28} | {:<66} | {:<60} | {:>5.1} s",
        outcome.name,
        mutant.rule,
        what,
        outcome.took.as_secs_f64()
    );
}
