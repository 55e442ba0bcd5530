//! The results as JSON.
//!
//! Keeps: a value is a number or absent. `null` with a reason marks what was not measured.

use serde_json::{Map, Value, json};

use super::{
    course::{Findings, MeasureOutcome},
    figures::{Figure, TargetBound, Values, ratio_of},
    machine::Machine,
};

/// What the figures were measured with.
#[derive(Debug)]
pub struct Setting {
    /// The machine.
    pub machine: Machine,
    /// Postgres and the replicas, name by name.
    pub facts: Vec<(String, String)>,
    /// Runs of each measure.
    pub runs: u32,
    /// Whether they were short.
    pub is_short: bool,
}

impl Setting {
    /// For people, a line each.
    pub fn text(&self) -> String {
        let machine = &self.machine;
        let mut lines = vec![
            format!(
                "{} cores, {}, {} MiB, {}",
                machine.cores, machine.processor, machine.memory_mib, machine.system
            ),
            format!(
                "lastword {} ({} build), commit of this directory {}",
                machine.version,
                machine.build,
                machine.commit.as_deref().unwrap_or("unknown")
            ),
        ];
        lines.extend(self.facts.iter().map(|(name, value)| format!("{name} = {value}")));
        let form = if self.is_short { "short form: only counts are judged" } else { "full form" };
        lines.push(format!("runs of each measure: {}, {form}", self.runs));
        if let Some(load) = machine.load_before.filter(|load| *load > 0.5) {
            lines.push(format!("WARNING: the machine was busy (load {load}) when this began"));
        }
        lines.join("\n") + "\n"
    }
}

/// Everything.
pub fn json(setting: &Setting, findings: &Findings) -> Value {
    let facts: Map<String, Value> =
        setting.facts.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let limits: Map<String, Value> = findings
        .limits
        .iter()
        .map(|(limit, values)| {
            let mut said = numbers(values);
            said.insert("unit".to_owned(), limit.unit().as_str().into());
            (limit.as_str().to_owned(), said.into())
        })
        .collect();
    let measures: Vec<Value> =
        findings.results.iter().map(|result| measure(result, setting.is_short)).collect();
    let compared: Map<String, Value> = findings
        .compared
        .iter()
        .map(|change| (change.name.clone(), comparison(&findings.results, &change.results)))
        .collect();
    json!({
        "machine": setting.machine,
        "facts": facts,
        "runs": setting.runs,
        "form": if setting.is_short { "short" } else { "full" },
        "limits": limits,
        "measures": measures,
        "compared": compared,
        "faults": findings.faults,
    })
}

fn measure(result: &MeasureOutcome, is_short: bool) -> Value {
    let figures: Vec<Value> = result
        .measure
        .figures
        .iter()
        .enumerate()
        .map(|(n, figure)| {
            let mut said = numbers(&result.values[n]);
            said.insert("name".to_owned(), figure.name.into());
            said.insert("unit".to_owned(), figure.unit.as_str().into());
            said.insert("target".to_owned(), target(figure));
            said.insert("ratio".to_owned(), result.values[n].ratio().into());
            said.insert("verdict".to_owned(), json!(result.verdict(n, is_short)));
            said.into()
        })
        .collect();
    json!({
        "name": result.measure.name,
        "what": result.measure.what,
        "figures": figures,
        "notes": result.notes,
        "failures": result.failures,
        "not_measured": result.skipped,
    })
}

fn comparison(plain: &[MeasureOutcome], changed: &[MeasureOutcome]) -> Value {
    let measures = plain.iter().zip(changed).filter(|(_, after)| after.skipped.is_none());
    let measures: Map<String, Value> = measures
        .map(|(before, after)| {
            let figures: Map<String, Value> = before
                .measure
                .figures
                .iter()
                .enumerate()
                .map(|(n, figure)| {
                    let ratio = ratio_of(&after.values[n].values, &before.values[n].values);
                    let said = json!({
                        "plain": numbers(&before.values[n]),
                        "changed": numbers(&after.values[n]),
                        "ratio": ratio,
                    });
                    (figure.name.to_owned(), said)
                })
                .collect();
            (before.measure.name.to_owned(), json!({"figures": figures, "failures": after.failures}))
        })
        .collect();
    measures.into()
}

fn numbers(values: &Values) -> Map<String, Value> {
    let spread = values.spread();
    let mut said = Map::new();
    said.insert("median".to_owned(), values.median().into());
    said.insert("least".to_owned(), spread.map(|(least, _)| least).into());
    said.insert("most".to_owned(), spread.map(|(_, most)| most).into());
    said.insert("values".to_owned(), values.values.clone().into());
    if let Some(why) = &values.absent {
        said.insert("not_measured".to_owned(), why.clone().into());
    }
    said
}

fn target(figure: &Figure) -> Value {
    let bound = |bound: TargetBound| match bound {
        TargetBound::AtMost(most) => json!({"at_most": most}),
        TargetBound::AtLeast(least) => json!({"at_least": least}),
    };
    let against =
        figure.against.map(|(limit, times)| json!({"limit": limit.as_str(), "times": bound(times)}));
    match (figure.bound.map(bound), against) {
        (None, None) => Value::Null,
        (value, against) => json!({"value": value, "against": against}),
    }
}
