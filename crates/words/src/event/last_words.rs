//! Last words without their text, for readers that have already received the text in pieces.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
    ser::{SerializeMap as _, Serializer as _},
};
use serde_json::value::RawValue;

use super::{Event, SharedEvent};

/// How much of a last word a reader receives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LastWords {
    /// All of it.
    #[default]
    Whole,
    /// Everything but `text`; `text_bytes` gives its length in bytes of UTF-8.
    WithoutText,
}

impl LastWords {
    /// The event as this reader receives it.
    pub fn told(self, event: SharedEvent) -> SharedEvent {
        if self == LastWords::Whole || !event.kind.is_terminal() {
            return event;
        }
        match without_text(&event.data) {
            Some(data) => Event { data, ..Event::clone(&event) }.into(),
            None => event,
        }
    }
}

/// An object's fields in their order, each value as it was written.
struct OrderedFields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for OrderedFields<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = OrderedFields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OrderedFields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    fields.push((name, value));
                }
                Ok(OrderedFields(fields))
            }
        }
        from.deserialize_map(FieldsVisitor)
    }
}

/// The object without its `text`; `None` if the object has no `text`.
fn without_text(data: &str) -> Option<String> {
    let OrderedFields(fields) = serde_json::from_str(data).ok()?;
    let text = fields.iter().find(|(name, _)| name == "text")?.1;
    let length = serde_json::from_str::<Cow<'_, str>>(text.get()).ok()?.len();
    let mut out = Vec::new();
    let mut json = serde_json::Serializer::new(&mut out);
    let mut object = json.serialize_map(None).ok()?;
    for (name, value) in fields.iter().filter(|(name, _)| name != "text") {
        object.serialize_entry(name, value).ok()?;
    }
    object.serialize_entry("text_bytes", &length).ok()?;
    object.end().ok()?;
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_left_out_and_the_rest_stays_as_it_was_written() {
        for (data, without) in [
            (r#"{"stop_reason":"end","text":"aé"}"#, Some(r#"{"stop_reason":"end","text_bytes":3}"#)),
            (
                r#"{"text":"a\u0000\n","usage":{"text":"b", "cost":1.50}}"#,
                Some(r#"{"usage":{"text":"b", "cost":1.50},"text_bytes":3}"#),
            ),
            (r#"{"by":"client"}"#, None),
            (r#"{"text":null}"#, None),
            ("no json", None),
        ] {
            assert_eq!(without_text(data).as_deref(), without, "{data}");
        }
    }
}
