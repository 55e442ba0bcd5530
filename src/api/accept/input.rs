//! What a client's new turn brings along: its input and its metadata, given on as they came.
//!
//! Refuses what has another shape, and fields that nobody knows.

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use crate::json::{self, Raw};

/// What the user says.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Input {
    /// The words; not empty.
    pub text: String,
    /// Handed to the agent as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<serde_json::Value>>)]
    pub attachments: Option<Vec<Raw>>,
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct InputParts {
            text: String,
            #[serde(default)]
            attachments: Option<Vec<Raw>>,
        }
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Input;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text or an object {text, attachments?}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
                Ok(Input { text: text.to_owned(), attachments: None })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Input, A::Error> {
                let InputParts { text, attachments } =
                    InputParts::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Input { text, attachments })
            }
        }
        from.deserialize_any(Either)
    }
}

/// A JSON object, as it came.
#[derive(Debug)]
pub struct JsonObject(pub(super) Raw);

impl<'de> Deserialize<'de> for JsonObject {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = Raw::deserialize(from)?;
        if raw.text().starts_with('{') {
            return Ok(JsonObject(raw));
        }
        Err(de::Error::custom("invalid type: it must be an object"))
    }
}

/// An input as the hash of its request has it, however it was written: as releases wrote it that kept no order of keys.
pub(super) fn canonical_input(json: &str) -> Result<String, serde_json::Error> {
    let value = json::read(json)?;
    let text = &value["text"];
    Ok(match value.get("attachments") {
        Some(attachments) => format!(r#"{{"text":{text},"attachments":{attachments}}}"#),
        None => format!(r#"{{"text":{text}}}"#),
    })
}
