//! `lastword bench --counts`: the cost of one turn, in counts that do not depend on the machine's speed.
//!
//! Owns the two scripts, and the comparison with a baseline in the repository. A count that exceeds its baseline by
//! more than its margin fails; so does a count without a baseline. The turns run one after the other, and what replicas
//! do meanwhile without turns is subtracted. Postgres does not flush here: flushing changes how long a commit takes,
//! not how many there are.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{
    client::Ask,
    figures::number,
    plan::{AGENT, RigPlan},
    rig::{Counted, Rig},
    table::layout,
};
use lastword::{note, telemetry::metrics};

/// Turns whose twenty events come at once, read where they are made.
const BURST_TURNS: u32 = 200;
const BURST: &str = "/pace 20 0 20";
/// Turns whose twenty events come one by one, read on the other replica.
const PACED_TURNS: u32 = 40;
const PACED: &str = "/pace 20 50 20";
/// How long replicas are left alone to see what they do by themselves.
const REST: Duration = Duration::from_secs(6);
/// What a busy machine changes, by the end of a count's name: how many events meet in one commit, how
/// many commits in one ring. It makes fewer of them rather than more.
const MARGINS: [(&str, f64); 2] = [("NOTIFYs", 0.15), ("statements", 0.1)];
/// Of every other count.
const MARGIN: f64 = 0.05;

/// A count of one turn, and how much more is still the same.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// What a turn costs.
    pub count: f64,
    /// As a share: 0.1 lets a tenth more pass.
    pub margin: f64,
}

/// By the count's name.
pub type Baseline = BTreeMap<String, Expected>;

/// What was counted a turn, by name; `None` where this Postgres does not count it.
pub type Counts = BTreeMap<String, Option<f64>>;

/// What became of one count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Within its margin.
    Same,
    /// Less by more than the margin: the baseline can come down.
    Better,
    /// More by more than the margin.
    Worse,
    /// The baseline does not have it.
    Unknown,
    /// This Postgres does not count it.
    NotMeasured,
}

impl Outcome {
    /// Whether it lets the check pass.
    pub const fn is_well(self) -> bool {
        !matches!(self, Outcome::Worse | Outcome::Unknown)
    }

    const fn shown(self) -> &'static str {
        match self {
            Outcome::Same => "same",
            Outcome::Better => "better: lower the baseline",
            Outcome::Worse => "WORSE",
            Outcome::Unknown => "NOT IN THE BASELINE",
            Outcome::NotMeasured => "not measured",
        }
    }
}

/// Holds a count against its baseline.
pub fn judge(count: Option<f64>, expected: Option<Expected>) -> Outcome {
    match (count, expected) {
        (None, _) => Outcome::NotMeasured,
        (Some(_), None) => Outcome::Unknown,
        (Some(count), Some(expected)) if count > expected.count * (1.0 + expected.margin) => Outcome::Worse,
        (Some(count), Some(expected)) if count < expected.count * (1.0 - expected.margin) => Outcome::Better,
        (Some(_), Some(_)) => Outcome::Same,
    }
}

/// Counts, on an installation of its own, beside the baseline.
pub async fn run(mut plan: RigPlan) -> anyhow::Result<Counts> {
    plan.is_durable = false;
    for (name, value) in [
        ("fsync", "off"),
        // The first touch of a page after a checkpoint would weigh more than what is written to it.
        ("full_page_writes", "off"),
        ("autovacuum", "off"),
        ("checkpoint_timeout", "1d"),
        ("max_wal_size", "4GB"),
    ] {
        plan.settings.push((name.to_owned(), value.to_owned()));
    }
    let mut rig = Rig::start(plan, |said| note!("{said}")).await?;
    let conversation = rig.conversation_on(0, AGENT).await?;
    let ask = |script: &str| Ask {
        agent: AGENT.to_owned(),
        text: script.to_owned(),
        conversation: Some(conversation.clone()),
    };
    let mut counts = Counts::new();
    for (name, turns, ask, reader) in
        [("burst", BURST_TURNS, ask(BURST), 0), ("paced", PACED_TURNS, ask(PACED), 1)]
    {
        note!("counting {turns} turns, {name}");
        counts.extend(script(&mut rig, name, turns, &ask, reader).await?);
    }
    let findings = rig.store.verify().await?;
    let broken: Vec<&str> =
        findings.iter().filter(|one| !one.broken.is_empty()).map(|one| one.rule).collect();
    ensure!(broken.is_empty(), "the invariants are broken: {}", broken.join(", "));
    Ok(counts)
}

/// Counts one script.
async fn script(rig: &mut Rig, name: &str, turns: u32, ask: &Ask, reader: usize) -> anyhow::Result<Counts> {
    // What only the first turn does.
    one_turn(rig, ask, reader).await?;
    let nothing = async |_: &mut Rig| {
        sleep(REST).await;
        Ok(())
    };
    let (at_rest, rings_at_rest) = count(rig, nothing).await?;
    let began = Instant::now();
    let work = async |rig: &mut Rig| {
        for _ in 0..turns {
            one_turn(rig, ask, reader).await?;
        }
        Ok(())
    };
    let (counted, rings) = count(rig, work).await?;
    note!("{name}, statements a turn, those of the clock included:");
    counted.most(f64::from(turns)).iter().for_each(|line| note!("{line}"));
    let (counted, at_rest) = (counted.tally, at_rest.tally);
    let of_rest = began.elapsed().as_secs_f64() / REST.as_secs_f64();
    let each = |all: f64, rest: f64| (all - rest * of_rest) / f64::from(turns);
    let statements = counted.statements.zip(at_rest.statements);
    let statements = statements.map(|(all, rest)| each(all as f64, rest as f64));
    let notifies = each(rings, rings_at_rest);
    // A NOTIFY takes a transaction's number as well, and writes nothing.
    let writes = each(counted.writes as f64, at_rest.writes as f64) - notifies;
    Ok(Counts::from([
        (format!("{name}, statements"), statements),
        (format!("{name}, writing commits"), Some(writes)),
        (format!("{name}, WAL bytes"), Some(each(counted.wal_bytes as f64, at_rest.wal_bytes as f64))),
        (format!("{name}, NOTIFYs"), Some(notifies)),
    ]))
}

/// What Postgres counts meanwhile, and how often all replicas ring.
async fn count(
    rig: &mut Rig,
    work: impl AsyncFnOnce(&mut Rig) -> anyhow::Result<()>,
) -> anyhow::Result<(Counted, f64)> {
    let before: f64 = rig.metric(metrics::DOORBELL_RINGS).await?.iter().sum();
    let ((), counted) = rig.counted(work).await?;
    let after: f64 = rig.metric(metrics::DOORBELL_RINGS).await?.iter().sum();
    Ok((counted, after - before))
}

/// Posted on the first replica, and read on `reader` to its end.
async fn one_turn(rig: &Rig, ask: &Ask, reader: usize) -> anyhow::Result<()> {
    let urls = rig.urls();
    if reader == 0 {
        return rig.client.run(&urls[0], ask, |_, _| {}).await.map(drop);
    }
    let turn = rig.client.post(&urls[0], ask).await?;
    rig.client.follow(&urls[reader], &turn, |_, _| {}).await.map(drop)
}

/// Reads a baseline; an absent file has none.
pub fn read(path: &Path) -> anyhow::Result<Baseline> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string()),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(Baseline::new()),
        Err(why) => Err(why).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Makes these counts the baseline; margins that it has stay.
pub fn write(path: &Path, counts: &Counts, before: &Baseline) -> anyhow::Result<()> {
    let counted = counts.iter().filter_map(|(name, count)| Some((name, (*count)?)));
    let fresh: Baseline = counted
        .map(|(name, count)| {
            let margin = before.get(name).map_or_else(|| margin_of(name), |expected| expected.margin);
            (name.clone(), Expected { count: (count * 100.0).round() / 100.0, margin })
        })
        .collect();
    let text = serde_json::to_string_pretty(&fresh)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn margin_of(name: &str) -> f64 {
    MARGINS.iter().find(|(end, _)| name.ends_with(end)).map_or(MARGIN, |(_, margin)| *margin)
}

/// The counts beside their baseline, and whether all of them are well.
pub fn compare(counts: &Counts, baseline: &Baseline) -> (String, bool) {
    let heading = ["count of one turn", "baseline", "margin", "now", "verdict"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let mut are_well = true;
    for (name, &count) in counts {
        let expected = baseline.get(name).copied();
        let outcome = judge(count, expected);
        are_well &= outcome.is_well();
        rows.push(vec![
            name.clone(),
            expected.map_or_else(String::new, |expected| number(expected.count)),
            expected.map_or_else(String::new, |expected| format!("{:.0} %", expected.margin * 100.0)),
            count.map_or_else(String::new, number),
            outcome.shown().to_owned(),
        ]);
    }
    (layout(&rows), are_well)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: Expected = Expected { count: 10.0, margin: 0.1 };

    fn counts(count: Option<f64>) -> Counts {
        Counts::from([("burst, statements".to_owned(), count)])
    }

    #[test]
    fn a_count_that_is_worse_than_its_margin_fails() {
        let baseline = Baseline::from([("burst, statements".to_owned(), EXPECTED)]);
        for (count, outcome) in
            [(11.0, Outcome::Same), (11.1, Outcome::Worse), (9.0, Outcome::Same), (8.9, Outcome::Better)]
        {
            assert_eq!(judge(Some(count), Some(EXPECTED)), outcome, "{count}");
            let (text, are_well) = compare(&counts(Some(count)), &baseline);
            assert_eq!(are_well, outcome != Outcome::Worse, "{text}");
        }
    }

    #[test]
    fn a_count_that_nobody_expects_fails_and_one_that_cannot_be_had_does_not() {
        assert!(!compare(&counts(Some(1.0)), &Baseline::new()).1);
        let (text, are_well) = compare(&counts(None), &Baseline::new());
        assert!(are_well && text.contains("not measured"), "{text}");
    }

    #[test]
    fn a_baseline_reads_back_and_keeps_its_margins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("counts.json");
        assert_eq!(read(&path).unwrap(), Baseline::new());
        write(&path, &counts(Some(7.123)), &Baseline::from([("burst, statements".to_owned(), EXPECTED)]))
            .unwrap();
        let found = read(&path).unwrap();
        assert_eq!(found["burst, statements"], Expected { count: 7.12, margin: 0.1 });
        assert_eq!((margin_of("paced, NOTIFYs"), margin_of("paced, WAL bytes")), (0.15, 0.05));
        fs::write(&path, r#"{"a": {"count": 1, "margin": 0.1, "more": 2}}"#).unwrap();
        assert!(read(&path).is_err());
    }

    #[test]
    fn the_baseline_in_the_repository_has_every_count() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/counts.json");
        let baseline = read(&path).unwrap();
        for name in ["burst", "paced"] {
            for what in ["statements", "writing commits", "WAL bytes", "NOTIFYs"] {
                assert!(baseline.contains_key(&format!("{name}, {what}")), "{name}, {what}");
            }
        }
        assert!(baseline.values().all(|expected| expected.margin > 0.0 && expected.margin <= 0.5));
    }
}
