//! JSON that is passed on unchanged: numbers keep their digits, and objects keep the order of their keys.
//!
//! Owns only the text, which is valid JSON. Code that needs the meaning parses the text.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, value::RawValue};

/// A JSON value, as its text.
#[derive(Debug, Clone)]
pub struct Raw(Box<RawValue>);

impl Raw {
    /// A value from JSON text, without surrounding whitespace.
    ///
    /// # Errors
    /// The text is not JSON.
    pub fn of(text: String) -> Result<Raw, serde_json::Error> {
        RawValue::from_string(text).map(Raw)
    }

    /// `null`
    pub fn null() -> Raw {
        Raw(RawValue::NULL.to_owned())
    }

    /// The JSON text.
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// Whether the value is `null`.
    pub fn is_null(&self) -> bool {
        self.text() == "null"
    }
}

impl From<&RawValue> for Raw {
    fn from(value: &RawValue) -> Raw {
        Raw(value.to_owned())
    }
}

/// Reads JSON as a value for display. A number out of `f64`'s range is read as a string of its digits.
///
/// # Errors
/// The text is not JSON.
pub fn read(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|why| {
        if let Ok(fields) = serde_json::from_str::<BTreeMap<String, &RawValue>>(text) {
            let fields = fields.into_iter().map(|(name, value)| Ok((name, read(value.get())?)));
            return fields.collect::<Result<Map<_, _>, _>>().map(Value::Object);
        }
        if let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(text) {
            return items
                .into_iter()
                .map(|item| read(item.get()))
                .collect::<Result<_, _>>()
                .map(Value::Array);
        }
        let rest = serde_json::from_str::<&RawValue>(text).map(RawValue::get).unwrap_or_default();
        let is_number = rest.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        if is_number { Ok(Value::from(rest)) } else { Err(why) }
    })
}

impl PartialEq for Raw {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Raw {}

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(out)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(from).map(Raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_on_is_what_came() {
        let text = r#"{"z":1.0,"a":[1e400,123456789012345678901234567890,-0,"\u00e9"]}"#;
        let read: Vec<Raw> = serde_json::from_str(&format!("[ {text} ,null]")).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), format!("[{text},null]"));
        assert!(read[1].is_null() && read[1] == Raw::null() && !read[0].is_null());
        assert!(Raw::of("{".to_owned()).is_err());
    }

    #[test]
    fn a_number_beyond_all_numbers_is_read_as_its_text() {
        let value = read(r#"{"a":[1,-1e400,"x"],"b":{"c":1e999}}"#).unwrap();
        assert_eq!(value, serde_json::json!({"a": [1, "-1e400", "x"], "b": {"c": "1e999"}}));
        for broken in ["", "{", "[1e400", "1e", "nul", r#"{"a":1e400"#] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }
}
