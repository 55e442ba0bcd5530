//! The plain data of lastword, shared by the gateway, a host of workers and a client.
//!
//! Pure data and pure functions: no task, no socket, no file. [`id`], [`event`], [`failure`], [`turn`] and [`agent`]
//! are what the API shows; [`json`], [`text`], [`frame`] and [`halves`] are how text is kept and written; [`token`],
//! [`principal`] and [`secret`] identify callers; [`clock`] and [`units`] are time and size; [`word`] is what the lists
//! of words that the database stores have in common.

pub mod agent;
pub mod clock;
pub mod event;
pub mod failure;
pub mod frame;
pub mod halves;
pub mod id;
pub mod json;
pub mod principal;
pub mod secret;
pub mod text;
pub mod token;
pub mod turn;
pub mod units;
pub mod word;
