//! The mutants of the chaos harness still fit the code: a change that makes one stale fails here.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

#[path = "chaos/mutants/patches.rs"]
mod patches;

use std::{collections::HashSet, fs};

use patches::MUTANTS;

#[test]
fn every_edit_of_every_mutant_has_its_one_place() {
    let mut stale = Vec::new();
    for mutant in MUTANTS {
        assert!(!mutant.edits.is_empty() && !mutant.rule.is_empty() && !mutant.check.is_empty());
        for edit in mutant.edits {
            assert_ne!(edit.find, edit.replace, "{} changes nothing", mutant.name);
            let text = fs::read_to_string(edit.file).unwrap();
            let places = text.matches(edit.find).count();
            if places != 1 {
                stale
                    .push(format!("{}: {} places in {} for:\n{}", mutant.name, places, edit.file, edit.find));
            }
        }
    }
    assert!(stale.is_empty(), "{}", stale.join("\n"));
}

#[test]
fn no_two_mutants_have_one_name() {
    let names: HashSet<&str> = MUTANTS.iter().map(|mutant| mutant.name).collect();
    assert_eq!(names.len(), MUTANTS.len());
}
