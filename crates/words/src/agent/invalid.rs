//! The reason why a spec is refused.

/// A spec whose fields parse, but whose values are invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct InvalidSpec {
    /// The dotted path of the field.
    pub field: &'static str,
    /// What is wrong with the value.
    pub why: String,
}
