//! Figures: the values of a measure, their targets, and the arithmetic between the two.
//!
//! Owns medians, spreads, ratios and verdicts, all pure. Refuses to invent a number: a figure without a value is "not
//! measured", never zero.

use serde::Serialize;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// A second, of whatever the figure is named after.
    PerSecond,
    /// Things.
    Count,
    /// Of a hundred.
    Percent,
    /// Bytes.
    Bytes,
    /// 1024 bytes.
    KiB,
    /// A million bytes.
    MB,
    /// One thing divided by another.
    Times,
}

impl Unit {
    /// As people and programs read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unit::Ms => "ms",
            Unit::PerSecond => "/s",
            Unit::Count => "",
            Unit::Percent => "%",
            Unit::Bytes => "B",
            Unit::KiB => "KiB",
            Unit::MB => "MB",
            Unit::Times => "×",
        }
    }

    /// Whether a short run says nothing of it: how fast a machine is, and what many share of a whole.
    pub const fn needs_length(self) -> bool {
        matches!(self, Unit::Ms | Unit::PerSecond | Unit::KiB | Unit::MB)
    }
}

/// What a machine can do at best, measured in the same run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// `select 1`.
    RoundTrip,
    /// One row inserted and committed.
    Commit,
    /// A NOTIFY, until another connection has it.
    WakeUp,
    /// Rows a second, inserted a hundred at a time on one connection.
    Rows,
    /// A request that does nothing, on a connection kept open.
    Http,
    /// [`Limit::Commit`] after a rest, as a turn that comes alone finds this machine.
    CommitRested,
    /// [`Limit::Http`] after a rest.
    HttpRested,
}

impl Limit {
    /// All of them.
    pub const ALL: [Limit; 7] = [
        Limit::RoundTrip,
        Limit::Commit,
        Limit::CommitRested,
        Limit::WakeUp,
        Limit::Rows,
        Limit::Http,
        Limit::HttpRested,
    ];

    /// The name in tables and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Limit::RoundTrip => "round-trip",
            Limit::Commit => "commit",
            Limit::WakeUp => "wake-up",
            Limit::Rows => "rows",
            Limit::Http => "http",
            Limit::CommitRested => "commit-rested",
            Limit::HttpRested => "http-rested",
        }
    }

    /// What it is, for people.
    pub const fn what(self) -> &'static str {
        match self {
            Limit::RoundTrip => "select 1, a round trip",
            Limit::Commit => "one INSERT, committed",
            Limit::WakeUp => "NOTIFY to wake-up",
            Limit::Rows => "plain insert, 100 rows at a time, one connection",
            Limit::Http => "GET /livez on an open connection",
            Limit::CommitRested => "one INSERT, committed, 25 ms after the one before",
            Limit::HttpRested => "GET /livez, 25 ms after the one before",
        }
    }

    /// What it is counted in.
    pub const fn unit(self) -> Unit {
        match self {
            Limit::Rows => Unit::PerSecond,
            _ => Unit::Ms,
        }
    }
}

/// What a value should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TargetBound {
    /// Not more.
    AtMost(f64),
    /// Not less.
    AtLeast(f64),
}

impl TargetBound {
    fn holds(self, value: f64) -> bool {
        match self {
            TargetBound::AtMost(most) => value <= most,
            TargetBound::AtLeast(least) => value >= least,
        }
    }

    /// As `≤ 1.5` or `≥ 3000`.
    pub fn shown(self) -> String {
        match self {
            TargetBound::AtMost(most) => format!("≤ {}", number(most)),
            TargetBound::AtLeast(least) => format!("≥ {}", number(least)),
        }
    }
}

/// One number of a measure.
#[derive(Debug)]
pub struct Figure {
    /// Its name within the measure.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// What it should be.
    pub bound: Option<TargetBound>,
    /// What it should be as a multiple of a limit.
    pub against: Option<(Limit, TargetBound)>,
}

impl Figure {
    /// What is wanted, for people; empty where nothing is.
    pub fn target(&self) -> String {
        let bound =
            self.bound.map(|bound| format!("{} {}", bound.shown(), self.unit.as_str()).trim().to_owned());
        let against = self.against.map(|(limit, bound)| format!("{} × {}", bound.shown(), limit.as_str()));
        bound.into_iter().chain(against).collect::<Vec<_>>().join(", ")
    }
}

/// What became of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetVerdict {
    /// Reached.
    Met,
    /// Not reached.
    Missed,
    /// There is no target.
    NoTarget,
    /// A run too short to judge speed by.
    NotJudged,
    /// No value.
    NotMeasured,
    /// The measure came to no end.
    Failed,
}

impl TargetVerdict {
    /// For the table.
    pub const fn shown(self) -> &'static str {
        match self {
            TargetVerdict::Met => "met",
            TargetVerdict::Missed => "MISSED",
            TargetVerdict::NoTarget => "",
            TargetVerdict::NotJudged => "not judged",
            TargetVerdict::NotMeasured => "not measured",
            TargetVerdict::Failed => "FAILED",
        }
    }
}

/// The values of one figure, one a run, and of its limit beside them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Values {
    /// One a run.
    pub values: Vec<f64>,
    /// Its limit in the same runs, in the same order; empty where it has none.
    pub limits: Vec<f64>,
    /// Why there are none.
    pub absent: Option<String>,
}

impl Values {
    /// The middle of the values.
    pub fn median(&self) -> Option<f64> {
        median(&self.values)
    }

    /// The smallest and the largest.
    pub fn spread(&self) -> Option<(f64, f64)> {
        let least = self.values.iter().copied().reduce(f64::min)?;
        Some((least, self.values.iter().copied().reduce(f64::max)?))
    }

    /// The middle of the runs' own ratios to the limit: both move with the machine's mood.
    pub fn ratio(&self) -> Option<f64> {
        ratio_of(&self.values, &self.limits)
    }

    /// What became of the figure's target.
    pub fn verdict(&self, figure: &Figure, is_short: bool) -> TargetVerdict {
        let Some(median) = self.median() else { return TargetVerdict::NotMeasured };
        let by_bound = figure.bound.map(|bound| bound.holds(median));
        let by_limit = figure.against.map(|(_, bound)| self.ratio().map(|ratio| bound.holds(ratio)));
        match (by_bound, by_limit) {
            (None, None) => TargetVerdict::NoTarget,
            _ if is_short && figure.unit.needs_length() => TargetVerdict::NotJudged,
            (Some(false), _) | (_, Some(Some(false))) => TargetVerdict::Missed,
            // The limit could not be measured here: nobody can say.
            (_, Some(None)) => TargetVerdict::NotJudged,
            (_, _) => TargetVerdict::Met,
        }
    }
}

/// The middle one; of an even number, the middle of the middle two.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some((low + high) / 2.0)
}

/// The middle of the ratios of values that belong together, `over` each of `under`.
pub fn ratio_of(over: &[f64], under: &[f64]) -> Option<f64> {
    if over.len() != under.len() {
        return None;
    }
    let ratios: Vec<f64> = over.iter().zip(under).map(|(over, under)| over / under).collect();
    median(&ratios).filter(|ratio| ratio.is_finite())
}

/// A number with as many digits as it deserves.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => grouped(value.round()),
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURE: Figure = Figure {
        name: "p50",
        unit: Unit::Ms,
        bound: Some(TargetBound::AtMost(1.5)),
        against: Some((Limit::Commit, TargetBound::AtMost(2.0))),
    };

    fn values(values: &[f64], limits: &[f64]) -> Values {
        Values { values: values.to_vec(), limits: limits.to_vec(), absent: None }
    }

    #[test]
    fn the_median_is_the_middle_and_of_nothing_there_is_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
        assert_eq!(values(&[3.0, 1.0, 2.0], &[]).spread(), Some((1.0, 3.0)));
        assert_eq!(values(&[], &[]).spread(), None);
    }

    #[test]
    fn a_ratio_is_taken_run_by_run() {
        // The machine was half as fast in the second run; the ratio did not move.
        assert_eq!(values(&[2.0, 4.0, 2.0], &[1.0, 2.0, 1.0]).ratio(), Some(2.0));
        assert_eq!(values(&[2.0], &[]).ratio(), None);
        assert_eq!(values(&[2.0], &[0.0]).ratio(), None, "no ratio to nothing");
    }

    #[test]
    fn a_target_is_met_only_by_all_that_is_wanted() {
        let verdict = |value: f64, limit: f64| values(&[value], &[limit]).verdict(&FIGURE, false);
        assert_eq!(verdict(1.5, 1.0), TargetVerdict::Met);
        assert_eq!(verdict(1.6, 1.0), TargetVerdict::Missed, "above its bound");
        assert_eq!(verdict(1.4, 0.5), TargetVerdict::Missed, "above its limit's multiple");
        assert_eq!(values(&[1.0], &[]).verdict(&FIGURE, false), TargetVerdict::NotJudged);
        assert_eq!(values(&[], &[]).verdict(&FIGURE, false), TargetVerdict::NotMeasured);
        let more = Figure {
            bound: Some(TargetBound::AtLeast(3000.0)),
            against: None,
            unit: Unit::PerSecond,
            ..FIGURE
        };
        assert_eq!(values(&[3000.0], &[]).verdict(&more, false), TargetVerdict::Met);
        assert_eq!(values(&[2999.0], &[]).verdict(&more, false), TargetVerdict::Missed);
    }

    #[test]
    fn a_short_run_judges_counts_and_no_speed() {
        assert_eq!(values(&[9.0], &[1.0]).verdict(&FIGURE, true), TargetVerdict::NotJudged);
        let count = Figure { unit: Unit::Count, against: None, ..FIGURE };
        assert_eq!(values(&[9.0], &[]).verdict(&count, true), TargetVerdict::Missed);
        let free = Figure { bound: None, against: None, ..FIGURE };
        assert_eq!(values(&[9.0], &[]).verdict(&free, true), TargetVerdict::NoTarget);
    }

    #[test]
    fn targets_and_numbers_read_well() {
        assert_eq!(FIGURE.target(), "≤ 1.50 ms, ≤ 2 × commit");
        for (value, shown) in [
            (0.123, "0.12"),
            (12.34, "12.3"),
            (123.4, "123"),
            (60_000.0, "60,000"),
            (1_234_567.8, "1,234,568"),
            (4.0, "4"),
        ] {
            assert_eq!(number(value), shown);
        }
    }
}
