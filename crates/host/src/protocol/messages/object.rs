//! A worker's message as an object of JSON, whose fields are read one by one.
//!
//! Refuses a field that is missing or of another type, naming it. What nobody reads keeps its text.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use lastword_words::json::Raw;

/// One message as an object of JSON. A field that is `null` counts as left out.
#[derive(Debug)]
pub struct Object<'a> {
    whole: &'a RawValue,
    fields: BTreeMap<String, &'a RawValue>,
}

impl<'a> Object<'a> {
    /// Reads a line of JSON, in which no half of a character stands alone.
    ///
    /// # Errors
    /// It is no JSON, or, with an error of data, no object.
    pub fn of(line: &'a str) -> Result<Self, serde_json::Error> {
        let whole: &RawValue = serde_json::from_str(line)?;
        Ok(Object { whole, fields: serde_json::from_str(whole.get())? })
    }

    /// All of it, as it came.
    pub fn whole(&self) -> Raw {
        self.whole.into()
    }

    fn get(&self, field: &str) -> Option<&'a RawValue> {
        self.fields.get(field).copied().filter(|value| value.get() != "null")
    }

    pub(super) fn raw(&self, field: &str) -> Option<Raw> {
        self.get(field).map(Raw::from)
    }

    pub(super) fn text(&self, field: &'static str) -> Result<String, BadField> {
        self.text_if_any(field)?.ok_or(bad(field, "a string"))
    }

    /// A text field; `None` where it is left out.
    ///
    /// # Errors
    /// The field is of another type.
    pub fn text_if_any(&self, field: &'static str) -> Result<Option<String>, BadField> {
        self.read(field, "a string")
    }

    pub(super) fn bool_if_any(&self, field: &'static str) -> Result<Option<bool>, BadField> {
        self.read(field, "true or false")
    }

    pub(super) fn seconds_if_any(&self, field: &'static str) -> Result<Option<f64>, BadField> {
        let wanted = "a number of seconds";
        let seconds: Option<f64> = self.read(field, wanted)?;
        let is_span = seconds.is_none_or(|s| s.is_finite() && s >= 0.0);
        if is_span { Ok(seconds) } else { Err(bad(field, wanted)) }
    }

    fn read<T: DeserializeOwned>(
        &self,
        field: &'static str,
        wanted: &'static str,
    ) -> Result<Option<T>, BadField> {
        let value = self.get(field).map(|value| serde_json::from_str(value.get()));
        value.transpose().map_err(|_| bad(field, wanted))
    }
}

pub(super) const fn bad(field: &'static str, wanted: &'static str) -> BadField {
    BadField { field, wanted }
}

/// A field of a known message that is missing or of the wrong type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its `{field}` is not {wanted}")]
pub struct BadField {
    /// The field.
    pub field: &'static str,
    /// What it should have been, such as `a string`.
    pub wanted: &'static str,
}
