//! What guards promise.

use regex::Regex;

use super::*;

const BUDGET: Duration = Duration::from_millis(500);

fn deny(pattern: &str) -> Guard {
    Guard::DenyRegex { pattern: pattern.to_owned(), notice: None }
}

fn finding(guards: &[Guard], text: &str) -> GuardFinding {
    Guards::compile(guards).check(text, BUDGET)
}

fn is_stopped(pattern: &str, text: &str) -> bool {
    match finding(&[deny(pattern)], text) {
        GuardFinding::Stopped(_) => true,
        GuardFinding::Passed => false,
        other => panic!("`{pattern}` on {text:?}: {other:?}"),
    }
}

#[test]
fn a_pattern_matches_what_the_crate_matches() {
    let patterns = [
        "(?i)secret",
        r"\bkey\b",
        r"^\s*$",
        r"(?m)^end$",
        r"\w{3,9}@",
        r"(a|b)*c$",
        r"\Bx",
        r"(?-u:\b)é",
        "[α-ω]{2}",
        "",
        "a*",
        r"[^a]$",
    ];
    let texts = [
        "",
        "a SECRET here",
        "the key",
        "monkeys",
        "schlüssel key é",
        "keyé",
        "line\nend\nmore",
        "name@example",
        "ababc",
        "αβγ",
        "ax x",
        "é",
    ];
    for pattern in patterns {
        let whole = Regex::new(pattern).unwrap();
        for text in texts {
            assert_eq!(is_stopped(pattern, text), whole.is_match(text), "`{pattern}` on {text:?}");
        }
    }
}

#[test]
fn the_first_guard_that_stops_a_text_is_told() {
    let long = Guard::MaxChars { limit: 3, notice: Some("long".to_owned()) };
    assert_eq!(finding(&[long.clone(), deny("é")], "éééé"), GuardFinding::Stopped("long".to_owned()));
    assert_eq!(finding(&[long, deny("x")], "ééé"), GuardFinding::Passed);
}

#[test]
fn what_does_not_compile_lets_nothing_through() {
    for pattern in ["(", r"(a{1,1000}){1,200}x", r"\p{L}{1000}"] {
        let guards = Guards::compile(&[deny("z"), deny(pattern)]);
        assert!(matches!(guards.check("a", BUDGET), GuardFinding::Unusable(_)), "`{pattern}`");
        let fault = guards.faults().next().unwrap().to_string();
        assert!(fault.starts_with("guard 2, `"), "{fault}");
    }
}

#[test]
fn no_pattern_takes_longer_than_its_budget() {
    // Each pattern takes seconds to minutes in the crate `regex`: every letter advances all counters at once, and no
    // two positions share a state.
    let costly = [r"(a{1,500}){1,40}[xy]$", r"[ab]*a[a-d]{1000}x", r"\b(a{1,250}){1,20}é\b"];
    let repeated = "a".repeat(900_000);
    let mut seed = 1_u32;
    let mixed = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ['a', 'b', 'c', 'd', 'é'][(seed >> 24) as usize % 5]
    });
    let mixed: String = mixed.take(600_000).collect();
    for pattern in costly {
        let guards = Guards::compile(&[deny(pattern)]);
        assert_eq!(guards.faults().next(), None);
        for text in [&repeated, &mixed] {
            let budget = Budget::start(Duration::MAX);
            let finding = guards.check(text, BUDGET);
            let took = Duration::MAX - budget.left();
            // Without optimised dependencies, a step takes twenty times as long.
            let most = BUDGET + Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 });
            assert!(took < most, "`{pattern}`: {took:?}");
            assert!(matches!(finding, GuardFinding::Unfinished | GuardFinding::Passed), "{finding:?}");
        }
    }
}
