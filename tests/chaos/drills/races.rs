//! Races of the store, as a drill: ten thousand of each kind, one winner each.

use super::Row;
use crate::{checker::Findings, races, scene::Stage};

/// Runs them, and takes every wrong for a complaint.
pub async fn run(stage: Stage) -> Row {
    let here = tokio::runtime::Handle::current();
    // On a thread of its own: what it awaits cannot move between threads.
    let races = move || here.block_on(races::run(stage.count, stage.seed));
    let report = tokio::task::spawn_blocking(races).await.unwrap();
    let wins = |tally: &races::Tally| {
        let wins: Vec<String> = tally.wins.iter().map(|(side, count)| format!("{side} {count}")).collect();
        format!("{} ({})", tally.kind, wins.join(", "))
    };
    let figure = report.tallies.iter().map(wins).collect::<Vec<_>>().join("; ");
    let findings = Findings { complaints: report.wrongs(), ..Findings::default() };
    Row { count: stage.count, figure, is_met: !report.tallies.is_empty(), is_run: true, findings }
}
