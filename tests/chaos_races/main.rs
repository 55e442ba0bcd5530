//! The races of the chaos harness, a few hundred of each kind: enough to see both sides win.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

#[path = "../chaos/races/mod.rs"]
mod races;

/// Races of each kind; `RACES` overrides it.
const COUNT: usize = 256;
/// Head starts; `SEED` overrides it.
const SEED: u64 = 1;

#[tokio::test(flavor = "multi_thread")]
async fn every_race_has_one_winner_and_every_loser_is_told() {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let count = given("RACES").map_or(COUNT, |count| usize::try_from(count).unwrap());
    let report = races::run(count, given("SEED").unwrap_or(SEED)).await;
    eprint!("{report}");
    let wrongs = report.wrongs();
    assert!(wrongs.is_empty(), "{}", wrongs.join("\n"));
}
