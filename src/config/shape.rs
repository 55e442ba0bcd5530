//! How a variable's text becomes a value, by the kind of its key.

use toml::Value;

/// The kind of a key's value.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum ValueShape {
    Text,
    Number,
    Flag,
    List,
}

/// The value of a text, or what is wrong with the text.
pub(super) fn shape(shape: ValueShape, text: &str) -> Result<Value, String> {
    match shape {
        ValueShape::Text => Ok(Value::String(text.to_owned())),
        ValueShape::Number => {
            let number = text.trim().parse().map(Value::Integer);
            number.map_err(|_| format!("`{text}` is not a whole number"))
        }
        ValueShape::Flag => match text.trim().to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(Value::Boolean(true)),
            "0" | "false" | "no" | "off" => Ok(Value::Boolean(false)),
            _ => Err(format!("`{text}` is neither true nor false")),
        },
        ValueShape::List => {
            let parts = text.split([',', '\n']).map(str::trim).filter(|part| !part.is_empty());
            Ok(Value::Array(parts.map(|part| Value::String(part.to_owned())).collect()))
        }
    }
}
