//! A key of the configuration: its variables, and how their text becomes a value.

use toml::Value;

/// The prefix of our variables.
pub(super) const PREFIX: &str = "LASTWORD_";

/// One key, and its variables.
pub(super) struct Key {
    /// The name in the file.
    pub(super) name: &'static str,
    /// The form of its value.
    pub(super) shape: ValueShape,
    /// The variable, if it is not `LASTWORD_` and the key's name.
    pub(super) variable: Option<&'static str>,
    /// A customary variable of other programs; our own takes precedence.
    pub(super) foreign: Option<&'static str>,
    /// Whether `…_FILE` may name a file that holds the value. True for secrets.
    pub(super) has_file: bool,
}

/// Keys by the kind of their value; [`super::settings`] gives the names.
pub(super) const TEXT: Key = of(ValueShape::Text);
pub(super) const NUMBER: Key = of(ValueShape::Number);
pub(super) const FLAG: Key = of(ValueShape::Flag);
pub(super) const LIST: Key = of(ValueShape::List);

const fn of(shape: ValueShape) -> Key {
    Key { name: "", shape, variable: None, foreign: None, has_file: false }
}

/// A key whose value is a secret, so that `…_FILE` may name a file that holds the value.
pub(super) const fn secret(key: Key) -> Key {
    Key { has_file: true, ..key }
}

impl Key {
    /// The key's variable.
    pub(super) fn variable(&self) -> String {
        self.variable.map_or_else(|| format!("{PREFIX}{}", self.name.to_uppercase()), str::to_owned)
    }

    /// The variable that names a file with the value, if there is one.
    pub(super) fn file_variable(&self) -> Option<String> {
        self.has_file.then(|| self.variable() + "_FILE")
    }
}

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
