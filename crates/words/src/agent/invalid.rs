//! Why a spec is refused.

/// A spec whose fields parse but do not make sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct InvalidSpec {
    /// The field, dotted.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}
