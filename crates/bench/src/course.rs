//! The course of a measurement: every measure in every run, with its limits right before it and the variants beside it.
//!
//! Owns the order. Each run takes all measures, and the first variant changes from run to run, so that drift of the
//! machine affects all alike. A measure that fails is reported as failed, and the others continue.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lastword::note;

use super::{
    acts::{Reading, load},
    figures::{Limit, TargetVerdict, Values, number},
    measures::{Measure, Needs},
    plan::AgentScope,
    site::Site,
};

/// The longest that one taking of a measure may last.
const MEASURE_MAX: Duration = Duration::from_secs(900);
/// How long everything is used before anything is measured.
const WARM_UP: Duration = Duration::from_secs(3);

/// What became of one measure at one site.
#[derive(Debug)]
pub struct MeasureOutcome {
    /// Which.
    pub measure: &'static Measure,
    /// One for each of its figures, in their order.
    pub values: Vec<Values>,
    /// What the runs had to tell; the same is told once.
    pub notes: Vec<String>,
    /// Why some run came to no end.
    pub failures: Vec<String>,
    /// Why it was not tried.
    pub skipped: Option<String>,
}

impl MeasureOutcome {
    fn new(measure: &'static Measure) -> MeasureOutcome {
        let values = measure.figures.iter().map(|_| Values::default()).collect();
        MeasureOutcome { measure, values, notes: Vec::new(), failures: Vec::new(), skipped: None }
    }

    /// What became of a figure's target.
    pub fn verdict(&self, figure: usize, is_short: bool) -> TargetVerdict {
        if !self.failures.is_empty() {
            return TargetVerdict::Failed;
        }
        self.values[figure].verdict(&self.measure.figures[figure], is_short)
    }

    /// Takes in one run, whose limits were measured right before it.
    fn take(&mut self, reading: Reading, limits: &BTreeMap<Limit, f64>) {
        for (figure, values) in self.measure.figures.iter().zip(&mut self.values) {
            let found = reading.values.iter().find(|(name, _)| *name == figure.name).map(|(_, value)| value);
            match found {
                Some(Ok(value)) if value.is_finite() => {
                    values.values.push(*value);
                    values.limits.extend(figure.against.and_then(|(limit, _)| limits.get(&limit)));
                }
                Some(Ok(value)) => self.failures.push(format!("{}: {value} is no figure", figure.name)),
                Some(Err(why)) => values.absent = Some(why.clone()),
                None => self.failures.push(format!("{}: the measure brought no such figure", figure.name)),
            }
        }
        for note in reading.notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }
}

/// The same measures with something changed.
#[derive(Debug)]
pub struct Compared {
    /// What was changed.
    pub name: String,
    /// Whether the change should make none to the figures.
    pub should_be_alike: bool,
    /// One for each measure, in the order of the first site's.
    pub results: Vec<MeasureOutcome>,
}

/// Everything that was found.
#[derive(Debug)]
pub struct Findings {
    /// One for each measure, in their order, at the first site.
    pub results: Vec<MeasureOutcome>,
    /// What each other site found.
    pub compared: Vec<Compared>,
    /// Samples of each limit, at the first site.
    pub limits: BTreeMap<Limit, Values>,
    /// What was wrong at the end, whatever the figures say.
    pub faults: Vec<String>,
}

/// Takes all measures at all sites, so many times. The sites after the first are compared with it.
pub async fn run(sites: &mut [Site], measures: &[&'static Measure], runs: u32) -> Findings {
    let mut results: Vec<Vec<MeasureOutcome>> =
        sites.iter().map(|_| measures.iter().map(|measure| MeasureOutcome::new(measure)).collect()).collect();
    let mut limits: BTreeMap<Limit, Values> = BTreeMap::new();
    let mut faults = Vec::new();
    for site in sites.iter_mut() {
        if let Err(why) = warm_up(site).await {
            faults.push(format!("{}: {why:#}", told(&site.name, "warming up")));
        }
    }
    let count = sites.len();
    for run in 0..runs as usize {
        for (n, measure) in measures.iter().enumerate() {
            for at in (0..count).map(|turn| (turn + run) % count) {
                let (site, result) = (&mut sites[at], &mut results[at][n]);
                if let Some(why) = obstacle(measure, site, at > 0) {
                    result.skipped = Some(why);
                    continue;
                }
                let began = Instant::now();
                let (found, said) = attempt(site, measure, result, run).await;
                if at == 0 {
                    for (limit, value) in found {
                        limits.entry(limit).or_default().values.push(value);
                    }
                }
                let (what, took) = (told(&site.name, measure.name), began.elapsed().as_secs_f64());
                note!("run {} of {runs}  {what:<28} {took:>6.1} s  {said}", run + 1);
            }
        }
    }
    for site in sites.iter_mut() {
        faults.extend(verify(site).await);
    }
    let mut results = results.into_iter();
    let plain = results.next().unwrap_or_default();
    let compared = sites.iter().skip(1).zip(results).map(|(site, results)| {
        let (name, should_be_alike) = (site.name.clone(), site.should_be_alike);
        Compared { name, should_be_alike, results }
    });
    Findings { results: plain, compared: compared.collect(), limits, faults }
}

/// Why a measure cannot be taken here.
fn obstacle(measure: &Measure, site: &Site, is_compared: bool) -> Option<String> {
    if is_compared && !measure.is_compared {
        return Some("not compared".to_owned());
    }
    match (measure.needs, site.own_rig()) {
        (Needs::Gateway, _) => None,
        (_, None) => Some("needs an installation of its own".to_owned()),
        (Needs::Shared, Some(rig)) if rig.plan.scope != AgentScope::Shared => {
            Some("needs --scope shared: otherwise the start of processes is measured".to_owned())
        }
        _ => None,
    }
}

/// Takes a measure once into its result. Returns the limits beside it, and what to say meanwhile.
async fn attempt(
    site: &mut Site,
    measure: &Measure,
    result: &mut MeasureOutcome,
    run: usize,
) -> (BTreeMap<Limit, f64>, String) {
    match take(site, measure).await {
        Ok((reading, limits)) => {
            let said = headline(measure, &reading);
            result.take(reading, &limits);
            (limits, said)
        }
        Err(why) => {
            result.failures.push(format!("run {}: {why:#}", run + 1));
            (BTreeMap::new(), format!("{why:#}"))
        }
    }
}

/// The limits, and then the measure.
async fn take(site: &mut Site, measure: &Measure) -> anyhow::Result<(Reading, BTreeMap<Limit, f64>)> {
    let work = async {
        site.quiet().await?;
        let limits = site.limits().await?;
        Ok((measure.act.perform(site).await?, limits))
    };
    match tokio::time::timeout(MEASURE_MAX, work).await {
        Ok(done) => done,
        Err(_) => anyhow::bail!("not done within {MEASURE_MAX:?}"),
    }
}

/// Statements parsed, connections open, processes started, caches full.
async fn warm_up(site: &mut Site) -> anyhow::Result<()> {
    note!("{}", told(&site.name, "warming up"));
    site.limits().await?;
    let time = WARM_UP.min(site.sizes.load);
    load::closed_loop(site, site.sizes.clients, time).await.map(drop)
}

/// Speed that bends the promise is worth nothing: the invariants, over all that was written.
async fn verify(site: &Site) -> Vec<String> {
    let Some(rig) = site.own_rig() else { return Vec::new() };
    if rig.plan.history.is_some() {
        note!("{}", told(&site.name, "not verified: the check of its history takes many minutes"));
        return Vec::new();
    }
    match rig.store.verify().await {
        Err(why) => vec![format!("verify: {why}")],
        Ok(findings) => {
            let broken = findings.into_iter().filter(|finding| !finding.broken.is_empty());
            broken
                .map(|one| format!("{} {}: broken by {}", one.invariant, one.rule, one.broken.join(", ")))
                .collect()
        }
    }
}

fn told(site: &str, what: &str) -> String {
    if site.is_empty() { what.to_owned() } else { format!("{what} ({site})") }
}

/// The first value of a reading, for whoever waits.
fn headline(measure: &Measure, reading: &Reading) -> String {
    let first = reading.values.iter().find_map(|(name, value)| Some((*name, *value.as_ref().ok()?)));
    let Some((name, value)) = first else { return String::new() };
    let unit =
        measure.figures.iter().find(|figure| figure.name == name).map_or("", |figure| figure.unit.as_str());
    format!("{name} {} {unit}", number(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measures::named;

    #[test]
    fn a_reading_without_one_of_its_figures_is_a_failure() {
        let mut result = MeasureOutcome::new(named("wal").unwrap());
        result.take(Reading::default().with("WAL", 3.0).with("rows", f64::NAN), &BTreeMap::new());
        assert_eq!(result.values[0].values, [3.0]);
        assert_eq!(result.failures.len(), 2, "{:?}", result.failures);
        assert_eq!(result.verdict(0, false), TargetVerdict::Failed);
    }

    #[test]
    fn a_limit_stands_beside_the_value_of_its_run() {
        let mut result = MeasureOutcome::new(named("accept-same").unwrap());
        let reading = || Reading::default().with("p50", 2.0).with("p99", 3.0).with("max", 4.0);
        result.take(reading(), &BTreeMap::from([(Limit::CommitRested, 1.0), (Limit::Http, 9.0)]));
        assert_eq!((&result.values[0].limits[..], &result.values[1].limits[..]), (&[1.0][..], &[][..]));
        assert_eq!(result.values[0].ratio(), Some(2.0));
        assert_eq!(result.verdict(0, false), TargetVerdict::Missed);
    }

    #[test]
    fn what_could_not_be_had_is_not_measured_and_never_zero() {
        let mut result = MeasureOutcome::new(named("idle").unwrap());
        let reading =
            Reading::default().with_any("statements a second", None, "why").with("heap-only", 100.0);
        result.take(reading, &BTreeMap::new());
        assert_eq!(result.verdict(0, false), TargetVerdict::NotMeasured);
        assert_eq!(result.values[0].absent.as_deref(), Some("why"));
        assert_eq!(result.verdict(1, false), TargetVerdict::Met);
    }
}
