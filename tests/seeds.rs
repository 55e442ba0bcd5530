//! The seeds of the fuzz targets, each run once through the properties that the targets check.
//!
//! A finding of a fuzz target becomes a seed, so that it is checked from then on.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop at the first surprise")]

#[path = "../fuzz/src/lib.rs"]
mod properties;

use std::{fs, path::Path};

use properties::door::Door;

/// Runs every seed of a target; names the one that breaks.
fn replay(target: &str, check: impl Fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut count = 0;
    for seed in fs::read_dir(seeds).unwrap() {
        let seed = seed.unwrap().path();
        eprintln!("{}", seed.display());
        check(&fs::read(seed).unwrap());
        count += 1;
    }
    assert!(count >= 5, "{target} has {count} seeds");
}

fn door() -> Door {
    Door::new(tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap())
}

#[test]
fn every_seed_of_lines_holds() {
    replay("lines", properties::lines::check);
}

#[test]
fn every_seed_of_frames_holds() {
    replay("frames", properties::frames::check);
}

#[test]
fn every_seed_of_specs_holds() {
    replay("specs", properties::specs::check);
}

#[test]
fn every_seed_of_cursors_holds() {
    let door = door();
    replay("cursors", |seed| properties::cursors::check(&door, seed));
}

#[test]
fn every_seed_of_requests_holds() {
    let door = door();
    replay("requests", |seed| properties::requests::check(&door, seed));
}
