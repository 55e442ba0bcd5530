//! Reader levels: which releases read a spec completely.
//!
//! A spec needs the level of its newest field or word. The level is stored with each revision and each turn, so that an
//! older release leaves a turn alone without reading its agent (`docs/decisions/0038`).

use serde_json::Value;

/// The reader level of this release: the highest level in [`SINCE`], or 1.
pub const READS: i32 = newest(SINCE);

/// Fields (`timeouts.cap`, `guards[].limit`) and words (`runtime=process`) of a spec that the first release did not have,
/// each with the level that reads it. A release that adds some gives all of them one new level. A new field is left out
/// of the JSON where it has its default: else each spec that is put would need the new level.
const SINCE: &[(&str, i32)] = &[];

/// The level of the first release.
const FIRST: i32 = 1;

/// The reader level that a spec needs. `spec`: its JSON, as stored.
pub fn reader_min(spec: &Value) -> i32 {
    needed(spec, "", SINCE)
}

const fn newest(mut since: &[(&str, i32)]) -> i32 {
    let mut level = FIRST;
    while let [(_, next), rest @ ..] = since {
        if *next > level {
            level = *next;
        }
        since = rest;
    }
    level
}

fn needed(value: &Value, path: &str, since: &[(&str, i32)]) -> i32 {
    let of = |name: &str| since.iter().find(|(known, _)| *known == name).map_or(FIRST, |(_, level)| *level);
    let nested = match value {
        Value::Object(fields) => {
            let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            fields.iter().map(|(name, value)| needed(value, &below(name), since)).max()
        }
        Value::Array(items) => items.iter().map(|item| needed(item, &format!("{path}[]"), since)).max(),
        Value::String(word) => Some(of(&format!("{path}={word}"))),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    };
    nested.unwrap_or(FIRST).max(of(path))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;
    use utoipa::ToSchema;

    use super::*;
    use crate::agent::AgentSpec;

    /// What the first release reads. Never grows.
    const FIRST_FIELDS: &str = include_str!("fields_of_the_first_release.txt");

    #[test]
    fn a_spec_needs_the_level_of_its_newest_part() {
        let since = &[("sandbox", 2), ("guards[].kind=judge", 3), ("timeouts.thinking", 4)];
        let level = |spec: Value| needed(&spec, "", since);
        assert_eq!(level(json!({"runtime": "process", "timeouts": {"cap": "1h"}, "guards": []})), 1);
        assert_eq!(level(json!({"sandbox": {"kind": "strict"}})), 2);
        assert_eq!(level(json!({"guards": [{"kind": "max_chars"}, {"kind": "judge"}], "sandbox": null})), 3);
        assert_eq!(level(json!({"timeouts": {"thinking": 5}, "sandbox": true})), 4);
        assert_eq!((newest(since), newest(&[])), (4, 1));
    }

    #[test]
    fn a_spec_with_defaults_alone_is_read_by_the_first_release() {
        for spec in [AgentSpec::remote(), AgentSpec::process(vec!["true".to_owned()])] {
            assert_eq!(reader_min(&serde_json::to_value(spec).unwrap()), FIRST);
        }
    }

    /// A field or a word that is in neither list would be claimed by releases that cannot read it: give it a level in
    /// [`SINCE`].
    #[test]
    fn every_part_of_a_spec_has_a_level() {
        let mut schemas = Vec::new();
        AgentSpec::schemas(&mut schemas);
        let schemas = schemas.into_iter().map(|(name, schema)| (name, serde_json::to_value(schema).unwrap()));
        let schemas = Value::from_iter(schemas);
        let root = serde_json::to_value(<AgentSpec as utoipa::PartialSchema>::schema()).unwrap();
        let mut there = BTreeSet::new();
        parts(&root, "", &schemas, &mut there);
        let known: BTreeSet<String> =
            FIRST_FIELDS.lines().chain(SINCE.iter().map(|(name, _)| *name)).map(str::to_owned).collect();
        assert!(there.len() > 60, "{there:?}");
        let without: Vec<_> = there.difference(&known).collect();
        assert!(without.is_empty(), "no level: {without:#?}");
        let gone: Vec<_> = known.difference(&there).collect();
        assert!(gone.is_empty(), "no such field or word: {gone:#?}");
    }

    fn parts(schema: &Value, path: &str, schemas: &Value, found: &mut BTreeSet<String>) {
        if let Some(name) = schema["$ref"].as_str() {
            return parts(&schemas[name.rsplit('/').next().unwrap()], path, schemas, found);
        }
        for way in ["allOf", "oneOf", "anyOf"] {
            let ways = schema[way].as_array().into_iter().flatten();
            ways.for_each(|schema| parts(schema, path, schemas, found));
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            parts(field, &below, schemas, found);
            found.insert(below);
        }
        if !schema["items"].is_null() {
            parts(&schema["items"], &format!("{path}[]"), schemas, found);
        }
        let words = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
        found.extend(words.map(|word| format!("{path}={word}")));
    }
}
