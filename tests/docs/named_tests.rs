//! The tests that the docs name exist.

use std::{fs, path::Path};

#[test]
fn every_test_that_the_invariants_name_exists() {
    let named = names(&fs::read_to_string("docs/INVARIANTS.md").unwrap());
    assert!(named.len() > 60, "only {} tests are named", named.len());
    let missing: Vec<_> = named.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "named, but not there: {missing:#?}");
}

#[test]
fn every_test_that_the_protocol_names_exists() {
    let named = names(&fs::read_to_string("docs/PROTOCOL.md").unwrap());
    assert!(named.len() > 15, "only {} tests are named", named.len());
    let missing: Vec<_> = named.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "named, but not there: {missing:#?}");
}

#[test]
fn every_test_that_the_page_on_security_names_exists() {
    let named = names(&fs::read_to_string("docs/SECURITY.md").unwrap());
    assert!(named.len() > 15, "only {} tests are named", named.len());
    let missing: Vec<_> = named.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "named, but not there: {missing:#?}");
}

#[test]
fn a_test_that_does_not_exist_is_missed() {
    assert!(!exists("cluster_workers::startup::a_program_that_was_never_written"));
    assert!(!exists("no_such_suite::startup::a_missing_program_fails_its_turn"));
    assert!(exists("cluster_workers::startup::a_missing_program_fails_its_turn"));
}

/// Names of the form `suite::module::promise`.
fn names(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|name| name.matches("::").count() == 2).map(str::to_owned).collect()
}

fn exists(name: &str) -> bool {
    let mut parts = name.split("::");
    let (Some(suite), Some(module), Some(promise)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let file = Path::new("tests").join(suite).join(module).with_extension("rs");
    fs::read_to_string(file).is_ok_and(|code| code.contains(&format!("fn {promise}(")))
}
