//! Configuration of one replica: from `lastword.toml`, then `LASTWORD_*`, then flags.
//!
//! Owns the fields, their defaults, and the checks of the whole. Refuses unknown keys and variables (a misspelt
//! limit is no limit), and listening beyond loopback without tokens. [`source`] has the order of the sources,
//! [`redact`] hides secrets.

mod doors;
mod error;
mod files;
pub mod kept;
mod keys;
pub mod pass;
mod redact;
mod schema;
mod services;
mod settings;
mod shape;
mod source;
mod surroundings;
mod validity;

pub use self::{
    error::ConfigError,
    settings::{Config, Doorbell, LogFormat, workers_for},
    source::Overrides,
    surroundings::Surroundings,
};

#[cfg(test)]
mod tests;
