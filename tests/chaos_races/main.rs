//! The races of the chaos harness, a few hundred of each kind: enough to see both sides win.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

#[path = "../chaos/races/mod.rs"]
mod races;

/// Races of each kind; `RACES` overrides it.
const COUNT: usize = 256;
/// Races of each kind over a broken schema.
const BROKEN_COUNT: usize = 64;
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

/// A statement that breaks a rule is told by the races of its kind.
#[tokio::test(flavor = "multi_thread")]
async fn the_races_notice_a_broken_statement() {
    let gone = ("delete from lastword.inflight i", "update lastword.inflight i set agent = i.agent");
    let count = "select max(e.seq) + 1 from lastword.turn_events e";
    let gap = (count, &count.replace("+ 1", "+ 2")[..]);
    for ((find, replace), noticed) in [(gone, "rows left in flight"), (gap, "turns with gaps")] {
        // Like an edit of the migration, in the database that is raced on.
        let change = format!(
            "do $do$ declare v_old text := pg_get_functiondef('lw_end_v1'::regproc);
                             v_new text := replace(v_old, '{find}', '{replace}');
             begin assert v_old <> v_new; execute v_new; end $do$"
        );
        let report = races::run_over(BROKEN_COUNT, SEED, &change).await;
        for tally in &report.tallies {
            let wrongs = tally.wrongs();
            assert!(wrongs.iter().any(|wrong| wrong.contains(noticed)), "{noticed} is not in {wrongs:?}");
        }
    }
}
