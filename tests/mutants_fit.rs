//! The edits of the chaos harness's mutants still match the code: a change that makes one stale fails here.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

#[path = "chaos/mutants/patches.rs"]
mod patches;

use std::{collections::HashSet, fs};

use patches::{MUTANTS, NEXT_RELEASE};

#[test]
fn every_edit_of_every_mutant_has_its_one_place() {
    let mut stale = Vec::new();
    for mutant in MUTANTS {
        assert!(!mutant.check.is_empty(), "{} is to be caught", mutant.name);
    }
    for mutant in MUTANTS.into_iter().chain([NEXT_RELEASE]) {
        assert!(!mutant.edits.is_empty() && !mutant.rule.is_empty());
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

/// A function that a later migration makes anew: an edit of the older one breaks nothing.
#[test]
fn every_edit_of_a_migration_is_of_the_newest_form_of_its_function() {
    let mut migrations: Vec<String> = fs::read_dir("migrations")
        .unwrap()
        .map(|entry| entry.unwrap().path().display().to_string())
        .collect();
    migrations.sort();
    let mut superseded = Vec::new();
    for mutant in MUTANTS {
        for edit in mutant.edits.iter().filter(|edit| edit.file.starts_with("migrations/")) {
            let text = fs::read_to_string(edit.file).unwrap();
            let before = &text[..text.find(edit.find).unwrap()];
            let (_, function) = before.rsplit_once("function ").expect("it is in a function");
            let made = format!("function {}(", function.split('(').next().unwrap());
            let later = migrations.iter().filter(|file| file.as_str() > edit.file);
            superseded.extend(
                later
                    .filter(|file| fs::read_to_string(file).unwrap().contains(&made))
                    .map(|file| format!("{}: {file} makes `{made}` anew", mutant.name)),
            );
        }
    }
    assert!(superseded.is_empty(), "{}", superseded.join("\n"));
}

#[test]
fn no_two_mutants_have_one_name() {
    let names: HashSet<&str> = MUTANTS.iter().map(|mutant| mutant.name).collect();
    assert_eq!(names.len(), MUTANTS.len());
}
