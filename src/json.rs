//! JSON that is given on as it came: every number with its digits, every object with its keys in their order.
//!
//! Owns nothing but the text, which is valid JSON. Who needs to know what it says parses it where that is asked for.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// A JSON value, as its text.
#[derive(Debug, Clone)]
pub struct Raw(Box<RawValue>);

impl Raw {
    /// The text of a value, without blanks around it.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn of(text: String) -> Result<Raw, serde_json::Error> {
        RawValue::from_string(text).map(Raw)
    }

    /// `null`
    pub fn null() -> Raw {
        Raw(RawValue::NULL.to_owned())
    }

    /// Its text.
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        self.text() == "null"
    }
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
}
