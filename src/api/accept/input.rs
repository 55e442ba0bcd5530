//! The input and the metadata of a new turn, passed on unchanged.
//!
//! Refuses other JSON types and unknown fields.

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use crate::json::{self, Raw};

/// The user's message.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Input {
    /// The text; not empty.
    pub text: String,
    /// Passed to the agent unchanged.
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

/// A JSON object, kept as its text.
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

/// The canonical form of an input for the request's hash: the same as in older releases, which did not keep the order
/// of keys.
pub(super) fn canonical_input(json: &str) -> Result<String, serde_json::Error> {
    let value = json::read(json)?;
    let text = &value["text"];
    Ok(match value.get("attachments") {
        Some(attachments) => format!(r#"{{"text":{text},"attachments":{attachments}}}"#),
        None => format!(r#"{{"text":{text}}}"#),
    })
}
