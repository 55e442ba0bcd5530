//! A spec as stored in the database. A newer release may have written it.
//!
//! The API is strict: a misspelt field would be a missing limit. Reading from the database is lenient: fields unknown
//! to this release are named and kept, and all other fields are read. An agent with unknown fields is shown, and its
//! turns are accepted and wait: a release runs no turn of a spec that it does not fully understand.

use serde_json::Value;

use super::{AgentSpec, READS, Runtime};
use crate::word::Open;

/// Unknown fields reported per spec.
const UNREAD_MAX: usize = 64;
/// Stands for all fields of a spec that cannot be read at all.
const EVERYTHING: &str = ".";
/// Stands for a meaning that no field shows: the spec needs a higher reader level than this release has.
const MEANING: &str = "reader_min";

/// A stored spec, as this release understands it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredSpec {
    /// The known fields, with defaults for all others.
    pub spec: AgentSpec,
    /// The unknown part; `None` if the whole spec is known.
    pub unread: Option<Unread>,
}

/// The part of a stored spec that this release does not understand.
#[derive(Debug, Clone, PartialEq)]
pub struct Unread {
    /// The dotted paths of the unknown fields.
    pub fields: Vec<String>,
    /// The stored runtime.
    pub runtime: Open<Runtime>,
    /// The whole stored spec.
    pub whole: Value,
    paths: Vec<Vec<ValueStep>>,
}

/// One step from a value to a nested value.
#[derive(Debug, Clone, PartialEq)]
enum ValueStep {
    Field(String),
    Place(usize),
}

impl StoredSpec {
    /// Reads the text of a stored spec. `reader_min`: the reader level that is stored with the spec.
    ///
    /// # Errors
    /// The text is not JSON.
    pub fn read(text: &str, reader_min: i32) -> Result<StoredSpec, serde_json::Error> {
        let is_newer = reader_min > READS;
        if let (false, Ok(spec)) = (is_newer, serde_json::from_str(text)) {
            return Ok(StoredSpec { spec, unread: None });
        }
        let whole: Value = serde_json::from_str(text)?;
        let mut known = whole.clone();
        let mut paths = Vec::new();
        let spec = loop {
            let why = match serde_path_to_error::deserialize::<_, AgentSpec>(&known) {
                Ok(spec) => break Some(spec),
                Err(why) => why,
            };
            let path = steps(why.path());
            if paths.len() >= UNREAD_MAX || !leave_out(&mut known, &path) {
                break None;
            }
            paths.push(path);
        };
        // An unknown word inside a list item is removed first, then the item that is empty without it.
        let all = paths.clone();
        paths.retain(|path: &Vec<ValueStep>| {
            !all.iter().any(|other| other != path && path.starts_with(other))
        });
        let mut fields: Vec<String> = match &spec {
            Some(_) => paths.iter().map(|path| dotted(path)).collect(),
            None => vec![EVERYTHING.to_owned()],
        };
        if fields.is_empty() {
            fields.push(MEANING.to_owned());
        }
        let runtime = Open::of(whole.get("runtime").and_then(Value::as_str).unwrap_or_default());
        // Any spec will do: this release does not run the agent.
        let spec = spec.unwrap_or_else(AgentSpec::remote);
        Ok(StoredSpec { spec, unread: Some(Unread { fields, runtime, whole, paths }) })
    }
}

impl Unread {
    /// Removes from a new spec the unknown fields that it repeats unchanged, for [`KeptFields::put_back`].
    pub fn take_unchanged(&self, new: &mut Value) -> KeptFields {
        let mut kept = Vec::new();
        for path in
            self.paths.iter().filter(|path| path.iter().all(|step| matches!(step, ValueStep::Field(_))))
        {
            let (Some(stored), Some(given)) = (at(&self.whole, path), at(new, path)) else { continue };
            if stored == given {
                kept.push((path.clone(), stored.clone()));
            }
        }
        for (path, _) in &kept {
            leave_out(new, path);
        }
        KeptFields(kept)
    }
}

/// Fields of a newer release, kept to be put back in place.
#[derive(Debug)]
pub struct KeptFields(Vec<(Vec<ValueStep>, Value)>);

impl KeptFields {
    /// Puts the fields back into a spec.
    pub fn put_back(self, spec: &mut Value) {
        for (path, value) in self.0 {
            let Some((ValueStep::Field(name), parents)) = path.split_last() else { continue };
            if let Some(fields) = at_mut(spec, parents).and_then(Value::as_object_mut) {
                fields.insert(name.clone(), value);
            }
        }
    }
}

fn steps(path: &serde_path_to_error::Path) -> Vec<ValueStep> {
    use serde_path_to_error::Segment;
    let step = |segment: &Segment| match segment {
        Segment::Map { key } => Some(ValueStep::Field(key.clone())),
        Segment::Seq { index } => Some(ValueStep::Place(*index)),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().map_while(step).collect()
}

fn dotted(path: &[ValueStep]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            ValueStep::Field(name) if text.is_empty() => text.push_str(name),
            ValueStep::Field(name) => text.extend([".", name]),
            ValueStep::Place(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

fn at<'a>(value: &'a Value, path: &[ValueStep]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, step| match step {
        ValueStep::Field(name) => value.get(name),
        ValueStep::Place(index) => value.get(index),
    })
}

fn at_mut<'a>(value: &'a mut Value, path: &[ValueStep]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, step| match step {
        ValueStep::Field(name) => value.get_mut(name),
        ValueStep::Place(index) => value.get_mut(index),
    })
}

/// Removes the value at the path; false if there is none. A spec needs a runtime, so an unknown one is replaced by
/// `remote`.
fn leave_out(value: &mut Value, path: &[ValueStep]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let Some(parent) = at_mut(value, parents) else { return false };
    match (last, parent) {
        (ValueStep::Field(name), Value::Object(fields)) if parents.is_empty() && name == "runtime" => {
            let another = Value::from("remote");
            fields.insert(name.clone(), another.clone()).is_some_and(|before| before != another)
        }
        (ValueStep::Field(name), Value::Object(fields)) => fields.remove(name).is_some(),
        (ValueStep::Place(index), Value::Array(items)) if *index < items.len() => {
            items.remove(*index);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::agent::Runtime;

    fn read(spec: &Value) -> StoredSpec {
        StoredSpec::read(&spec.to_string(), READS).unwrap()
    }

    fn unread(spec: &Value) -> Vec<String> {
        read(spec).unread.map(|unread| unread.fields).unwrap_or_default()
    }

    #[test]
    fn what_this_release_wrote_is_read_whole() {
        let spec = AgentSpec::process(vec!["true".to_owned()]);
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(StoredSpec::read(&text, READS).unwrap(), StoredSpec { spec, unread: None });
    }

    #[test]
    fn unknown_fields_and_words_are_named_and_all_else_is_read() {
        let spec = json!({
            "runtime": "process", "command": ["sh"], "sandbox": {"kind": "wasm"}, "retry": "twice",
            "timeouts": {"cap": "1h", "thinking": "5s"},
            "guards": [{"kind": "max_chars", "limit": 3}, {"kind": "judge", "model": "m"}],
        });
        let StoredSpec { spec, unread } = read(&spec);
        let mut fields = unread.unwrap().fields;
        fields.sort();
        assert_eq!(fields, ["guards[1]", "retry", "sandbox", "timeouts.thinking"]);
        assert_eq!((spec.command, spec.timeouts.cap.millis()), (vec!["sh".to_owned()], 3_600_000));
        assert_eq!(spec.guards.len(), 1);
    }

    #[test]
    fn a_spec_of_a_higher_level_is_not_understood_although_all_its_fields_are() {
        let spec = json!({"runtime": "process", "command": ["sh"]});
        let StoredSpec { spec, unread } = StoredSpec::read(&spec.to_string(), READS + 1).unwrap();
        assert_eq!((spec.command, unread.unwrap().fields), (vec!["sh".to_owned()], vec![MEANING.to_owned()]));
    }

    #[test]
    fn a_runtime_of_a_newer_release_is_kept_by_name() {
        let StoredSpec { spec, unread } = read(&json!({"runtime": "wasm", "module": "a.wasm"}));
        let unread = unread.unwrap();
        assert_eq!((spec.runtime, unread.runtime.as_str()), (Runtime::Remote, "wasm"));
        assert_eq!(unread.whole["module"], "a.wasm");
    }

    #[test]
    fn a_spec_of_which_nothing_can_be_read_is_still_an_agent() {
        for spec in [json!([1]), json!({"command": ["sh"]}), json!("text")] {
            assert_eq!(unread(&spec), [EVERYTHING], "{spec}");
        }
        assert!(StoredSpec::read("{", READS).is_err());
    }

    #[test]
    fn what_is_written_back_unchanged_is_kept_and_a_change_is_not() {
        let stored = json!({"runtime": "process", "command": ["sh"], "sandbox": "strict",
            "timeouts": {"cap": "1h", "thinking": "5s"}});
        let unread = read(&stored).unread.unwrap();
        let mut new = stored.clone();
        new["command"] = json!(["bash"]);
        new["timeouts"]["thinking"] = json!("6s");
        let kept = unread.take_unchanged(&mut new);
        assert_eq!(new.get("sandbox"), None);
        assert_eq!(new["timeouts"]["thinking"], "6s", "which the door refuses by name");
        kept.put_back(&mut new);
        assert_eq!((&new["sandbox"], &new["command"]), (&json!("strict"), &json!(["bash"])));
    }
}
