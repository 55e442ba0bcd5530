//! The results as a table.

use super::{
    course::{Findings, MeasureOutcome},
    figures::{Figure, Limit, TargetVerdict, Values, number, ratio_of},
};

/// A change that is compared counts as none up to this.
const WITHIN: f64 = 1.1;
const WORSE: &str = "worse";

/// The limits, then every measure, then what was compared.
pub fn text(findings: &Findings, is_short: bool) -> String {
    let mut out = limits(findings);
    out.push('\n');
    out.push_str(&measures(&findings.results, is_short));
    for change in &findings.compared {
        out.push_str(&format!("\n{}, beside the plain installation\n\n", change.name));
        out.push_str(&compared(&findings.results, &change.results));
    }
    for fault in &findings.faults {
        out.push_str(&format!("\nFAULT  {fault}\n"));
    }
    out
}

fn limits(findings: &Findings) -> String {
    let mut rows = vec![row(["limit", "what", "median", "spread"])];
    for limit in Limit::ALL {
        let values = findings.limits.get(&limit).cloned().unwrap_or_default();
        let unit = limit.unit().as_str();
        let shown = values.median().map_or_else(|| "not measured".to_owned(), |value| with_unit(value, unit));
        rows.push(row([limit.as_str(), limit.what(), &shown, &spread(&values)]));
    }
    layout(&rows)
}

fn measures(results: &[MeasureOutcome], is_short: bool) -> String {
    let mut rows = vec![row(["measure", "figure", "target", "median", "spread", "ratio", "verdict"])];
    let mut notes = String::new();
    for result in results {
        for (n, figure) in result.measure.figures.iter().enumerate() {
            let name = if n == 0 { result.measure.name } else { "" };
            rows.push(measured(result, n, figure, name, is_short));
        }
        for (mark, said) in [("", &result.notes), ("failed: ", &result.failures)] {
            said.iter().for_each(|said| notes.push_str(&format!("{}: {mark}{said}\n", result.measure.name)));
        }
        if let Some(why) = reason(result) {
            notes.push_str(&format!("{}: not measured: {why}\n", result.measure.name));
        }
    }
    let table = layout(&rows);
    if notes.is_empty() { table } else { format!("{table}\n{notes}") }
}

fn measured(result: &MeasureOutcome, n: usize, figure: &Figure, name: &str, is_short: bool) -> Vec<String> {
    let (values, verdict) = (&result.values[n], result.verdict(n, is_short));
    let median = values.median().map_or_else(String::new, |value| with_unit(value, figure.unit.as_str()));
    let ratio = figure.against.and_then(|(limit, _)| Some((limit, values.ratio()?)));
    let ratio =
        ratio.map_or_else(String::new, |(limit, ratio)| format!("{} × {}", number(ratio), limit.as_str()));
    row([name, figure.name, &figure.target(), &median, &spread(values), &ratio, verdict.shown()])
}

/// Why there is no value.
fn reason(result: &MeasureOutcome) -> Option<&str> {
    let absent = result.values.iter().find_map(|values| values.absent.as_deref());
    result.skipped.as_deref().or(absent)
}

fn compared(plain: &[MeasureOutcome], changed: &[MeasureOutcome]) -> String {
    let mut rows = vec![row(["measure", "figure", "plain", "changed", "ratio", "verdict"])];
    for (before, after) in plain.iter().zip(changed).filter(|(_, after)| after.skipped.is_none()) {
        for (n, figure) in before.measure.figures.iter().enumerate() {
            let name = if n == 0 { before.measure.name } else { "" };
            let shown = |values: &Values| {
                values.median().map_or_else(String::new, |value| with_unit(value, figure.unit.as_str()))
            };
            let ratio = ratio_of(&after.values[n].values, &before.values[n].values);
            let verdict = match (after.failures.is_empty() && before.failures.is_empty(), ratio) {
                (false, _) => TargetVerdict::Failed.shown(),
                (true, None) => TargetVerdict::NotMeasured.shown(),
                (true, Some(ratio)) => change(figure, ratio),
            };
            let ratio = ratio.map_or_else(String::new, number);
            rows.push(row([
                name,
                figure.name,
                &shown(&before.values[n]),
                &shown(&after.values[n]),
                &ratio,
                verdict,
            ]));
        }
    }
    let failures = changed.iter().flat_map(|result| {
        result.failures.iter().map(|why| format!("{}: failed: {why}\n", result.measure.name))
    });
    let failures: String = failures.collect();
    if failures.is_empty() { layout(&rows) } else { format!("{}\n{failures}", layout(&rows)) }
}

/// Whether a figure with a target got worse by more than a tenth.
pub fn has_suffered(plain: &[MeasureOutcome], changed: &[MeasureOutcome]) -> bool {
    plain.iter().zip(changed).any(|(before, after)| {
        before.measure.figures.iter().enumerate().any(|(n, figure)| {
            let has_target = figure.bound.is_some() || figure.against.is_some();
            let ratio = ratio_of(&after.values[n].values, &before.values[n].values);
            has_target && ratio.is_some_and(|ratio| change(figure, ratio) == WORSE)
        })
    })
}

/// Whether a figure got worse by more than a tenth, or better.
fn change(figure: &Figure, ratio: f64) -> &'static str {
    use super::figures::{TargetBound::AtLeast, Unit::PerSecond};
    let is_more_better =
        matches!(figure.bound, Some(AtLeast(_))) || (figure.bound.is_none() && figure.unit == PerSecond);
    let worse = if is_more_better { 1.0 / ratio } else { ratio };
    match worse {
        worse if worse > WITHIN => WORSE,
        worse if worse < 1.0 / WITHIN => "better",
        _ => "within 10 %",
    }
}

fn spread(values: &Values) -> String {
    values.spread().map_or_else(String::new, |(least, most)| format!("{} – {}", number(least), number(most)))
}

fn with_unit(value: f64, unit: &str) -> String {
    format!("{} {unit}", number(value)).trim_end().to_owned()
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Rows as lines, their columns two blanks apart, a line under the headings.
pub fn layout(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (n, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
        if n == 0 {
            let lines: Vec<_> = widths.iter().map(|width| "─".repeat(*width)).collect();
            text.push_str(&format!("{}\n", lines.join("  ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{TargetBound, Unit};

    const FIGURE: Figure =
        Figure { name: "f", unit: Unit::Ms, bound: Some(TargetBound::AtMost(1.0)), against: None };

    #[test]
    fn a_change_is_worse_or_better_by_what_the_figure_means() {
        assert_eq!(
            (change(&FIGURE, 1.2), change(&FIGURE, 1.05), change(&FIGURE, 0.5)),
            ("worse", "within 10 %", "better")
        );
        let rate = Figure { unit: Unit::PerSecond, bound: Some(TargetBound::AtLeast(1.0)), ..FIGURE };
        assert_eq!(
            (change(&rate, 1.2), change(&rate, 0.95), change(&rate, 0.5)),
            ("better", "within 10 %", "worse")
        );
    }

    #[test]
    fn columns_line_up_whatever_their_letters() {
        let text = layout(&[row(["a", "b"]), row(["≤ 1", "x"]), row(["é", ""])]);
        assert_eq!(text, "a    b\n───  ─\n≤ 1  x\né\n");
    }
}
