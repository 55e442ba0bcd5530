//! Optimisations that a statement of the store still asks for by name.

/// One optimisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lever {
    /// A replica's readers get events it committed itself from memory, and read only other replicas' events.
    ShownFromMemory,
}
