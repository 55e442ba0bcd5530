//! Running turns.
