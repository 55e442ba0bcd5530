//! Watching turns.
