//! The meaning of the flags, and that the documents use them rightly.

#[path = "../../../tests/docs/reading.rs"]
mod reading;

use super::*;

fn parse(words: &str) -> Result<MeasureArgs, String> {
    let words = std::iter::once("lastword-bench").chain(words.split_whitespace());
    MeasureArgs::try_parse_from(words).map_err(|why| why.to_string())
}

fn names(args: &MeasureArgs) -> Vec<&str> {
    args.only.iter().map(|measure| measure.name).collect()
}

#[test]
fn without_flags_everything_is_measured_five_times_on_an_installation_of_its_own() {
    let args = parse("").unwrap();
    assert_eq!((args.runs, args.only.len(), args.history), (5, 0, None));
    assert!(args.remote.urls.is_empty() && !args.short && !args.counts && !args.strict);
}

#[test]
fn measures_are_chosen_by_name_and_an_unknown_one_is_refused() {
    assert_eq!(names(&parse("--only turns,wal").unwrap()), ["turns", "wal"]);
    assert_eq!(names(&parse("--only turns wal --runs 2").unwrap()), ["turns", "wal"]);
    assert!(parse("--only turn").unwrap_err().contains("no such measure"));
    assert!(parse("--runs 0").is_err());
}

#[test]
fn a_history_has_a_size_and_a_setting_a_value() {
    assert_eq!(parse("--history").unwrap().history, Some(2_000_000));
    assert_eq!(parse("--history=5000").unwrap().history, Some(5000));
    assert!(parse("--history=0").is_err());
    let programs = parse("--program old/lastword,new/lastword").unwrap().programs;
    assert_eq!(programs, [PathBuf::from("old/lastword"), PathBuf::from("new/lastword")]);
    let set = parse("--set LASTWORD_LOG=warn").unwrap().env;
    assert_eq!(set, [("LASTWORD_LOG".to_owned(), "warn".to_owned())]);
    assert!(parse("--set LASTWORD_LOG").is_err());
}

#[test]
fn an_installation_behind_a_url_is_measured_from_outside_alone() {
    let args = parse("--url http://one:8080/,http://two:8080 --agent support").unwrap();
    let remote = remote(&args.remote).unwrap();
    assert_eq!(remote.urls, ["http://one:8080", "http://two:8080"]);
    assert_eq!((remote.agent.as_str(), remote.input.as_str()), ("support", "Hello"));
    assert!(parse("--url http://one").unwrap_err().contains("--agent"));
    for other in ["--held", "--history", "--counts", "--scope conversation"] {
        assert!(parse(&format!("--url http://one --agent a {other}")).is_err(), "{other}");
    }
    let args = parse("--url ftp://one --agent a").unwrap();
    assert!(super::remote(&args.remote).is_err());
}

#[test]
fn counts_are_taken_alone() {
    assert!(parse("--counts --write-baseline").is_ok());
    assert!(parse("--counts --only turns").is_err());
    assert!(parse("--write-baseline").is_err());
}

#[test]
fn a_missed_target_fails_only_where_that_was_asked_for_and_a_failure_always() {
    let code =
        |findings: Findings, is_short, is_strict| format!("{:?}", exit_code(&findings, is_short, is_strict));
    let (success, failure) = (format!("{:?}", ExitCode::SUCCESS), format!("{:?}", ExitCode::FAILURE));
    let slow = || plain(finding(9.0, &[]));
    assert_eq!(code(slow(), false, false), success);
    assert_eq!(code(slow(), false, true), failure);
    assert_eq!(code(slow(), true, true), success, "a short run judges no speed");
    assert_eq!(code(plain(finding(1.0, &[])), false, true), success);
    assert_eq!(code(plain(finding(1.0, &["why"])), false, false), failure);
    let broken = Findings { faults: vec!["I4".to_owned()], ..slow() };
    assert_eq!(code(broken, false, false), failure);
    for (should_be_alike, wanted) in [(true, &failure), (false, &success)] {
        let results = vec![finding(1.2, &[])];
        let change = course::Compared { name: "held".to_owned(), should_be_alike, results };
        let findings = Findings { compared: vec![change], ..plain(finding(1.0, &[])) };
        assert_eq!(code(findings, false, true), *wanted);
    }
}

/// A measure whose targets are met by 1 and missed by 9.
fn finding(value: f64, failures: &[&str]) -> course::MeasureOutcome {
    let values = figures::Values { values: vec![value], limits: vec![1.0], absent: None };
    let measure = measures::named("accept-same").unwrap();
    let failures = failures.iter().map(|why| (*why).to_owned()).collect();
    course::MeasureOutcome { measure, values: vec![values; 3], notes: vec![], failures, skipped: None }
}

fn plain(finding: course::MeasureOutcome) -> Findings {
    Findings { results: vec![finding], compared: vec![], limits: Default::default(), faults: vec![] }
}

#[test]
fn the_list_has_every_measure_and_its_targets() {
    let list = list();
    for measure in MEASURES {
        assert!(list.contains(measure.name), "{list}");
    }
    assert!(list.contains("≥ 60,000 /s, ≥ 0.50 × rows"), "{list}");
}

#[test]
fn a_retention_is_loaded_for_as_long_as_asked_and_may_have_a_past() {
    let args = parse("--retain 1h --for 40m --history=6000000").unwrap();
    assert_eq!(args.load_for, Some(Span::seconds(2400)));
    assert_eq!(args.history, Some(6_000_000));
    assert!(parse("--for 40m").is_err());
    assert!(parse("--retain 1h --only turns").is_err());
}

#[test]
fn every_measurement_that_a_page_has_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut count = 0;
    for page in reading::pages(&root) {
        let mut said = reading::blocks(&page.text, "sh");
        said.extend(reading::code_within_lines(&page.text));
        for command in said.iter().flat_map(|said| reading::commands(said)) {
            let Some(words) = reading::called(&command).and_then(words_of_bench) else { continue };
            count += 1;
            let left_out = words.contains(&"…");
            let why = parse(&words.join(" ")).err().filter(|_| !left_out);
            assert_eq!(why, None, "{}: {command:?}", page.path.display());
        }
    }
    assert!(count > 8, "only {count} commands were found");
}

/// What a command on a page gives to this program: by its own name, by `lastword bench` or `make bench`.
fn words_of_bench<'a>((program, arguments): (&str, &'a [String])) -> Option<Vec<&'a str>> {
    let mut words = arguments.iter().map(String::as_str);
    match (program, words.clone().next()) {
        ("lastword-bench", _) => Some(words.collect()),
        ("lastword", Some("bench")) => Some(words.skip(1).collect()),
        ("make", Some("bench")) => {
            let given = words.find_map(|word| word.strip_prefix("ARGS="))?;
            Some(given.split_whitespace().collect())
        }
        _ => None,
    }
}
