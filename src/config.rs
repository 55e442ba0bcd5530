//! Configuration: what one replica is told, from `lastword.toml`, then `LASTWORD_*`, then flags.
//!
//! Owns the fields, their defaults and what is refused as a whole. It refuses unknown keys and
//! variables (a limit that is misspelt is a limit that is not there), and to listen beyond loopback
//! without tokens. The order of the sources is in [`source`], hiding secrets in [`redact`].

mod doors;
mod error;
mod files;
pub mod kept;
mod keys;
mod lever;
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
    lever::Lever,
    settings::{Config, Doorbell, LogFormat, workers_for},
    source::Overrides,
    surroundings::Surroundings,
};

#[cfg(test)]
mod tests;
