//! How each measure is taken, and what it brings.
//!
//! Owns the choice of the act and the form of its reading. An act leaves its site as it found it, as far
//! as the next one could notice.

pub mod accept;
pub mod load;
pub mod standing;
pub mod stream;
pub mod work;

use anyhow::ensure;

use super::{site::Site, times::Times};

/// How a measure is taken.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    /// [`accept::accepted`]
    Accepted,
    /// [`accept::accept`]
    Accept(accept::Way),
    /// [`accept::first_event`]
    FirstEvent,
    /// [`load::turns`]
    Turns,
    /// [`load::drain`]
    Drain,
    /// [`stream::events`]
    Events(stream::Way),
    /// [`load::durable`]
    Durable {
        /// As many streams as the sizes say; else eight.
        is_many: bool,
    },
    /// [`stream::lag`]
    Lag,
    /// [`stream::fan_out`]
    FanOut,
    /// [`load::rings`]
    Rings,
    /// [`standing::idle`]
    Idle,
    /// [`standing::heartbeats`]
    Heartbeats,
    /// [`standing::memory`]
    Memory,
    /// [`standing::idle_conversations`]
    IdleConversations,
    /// [`work::scale`]
    Scale,
    /// [`work::wal`]
    Wal,
    /// [`standing::start`]
    Start,
}

impl Act {
    /// Takes the measure once.
    pub async fn perform(self, site: &mut Site) -> anyhow::Result<Reading> {
        match self {
            Act::Accepted => accept::accepted(site).await,
            Act::Accept(way) => accept::accept(site, way).await,
            Act::FirstEvent => accept::first_event(site).await,
            Act::Turns => load::turns(site).await,
            Act::Drain => load::drain(site).await,
            Act::Events(way) => stream::events(site, way).await,
            Act::Durable { is_many } => load::durable(site, is_many).await,
            Act::Lag => stream::lag(site).await,
            Act::FanOut => stream::fan_out(site).await,
            Act::Rings => load::rings(site).await,
            Act::Idle => standing::idle(site).await,
            Act::Heartbeats => standing::heartbeats(site).await,
            Act::Memory => standing::memory(site).await,
            Act::IdleConversations => standing::idle_conversations(site).await,
            Act::Scale => work::scale(site).await,
            Act::Wal => work::wal(site).await,
            Act::Start => standing::start(site).await,
        }
    }
}

/// What one taking of a measure brings: a value for each figure, or why there is none.
#[derive(Debug, Default)]
pub struct Reading {
    /// By the figure's name.
    pub values: Vec<(&'static str, Result<f64, String>)>,
    /// What whoever reads the figures should know.
    pub notes: Vec<String>,
}

impl Reading {
    /// With a value.
    pub fn with(mut self, figure: &'static str, value: f64) -> Self {
        self.values.push((figure, Ok(value)));
        self
    }

    /// With a value, where it could be had.
    pub fn with_any(mut self, figure: &'static str, value: Option<f64>, why_not: &str) -> Self {
        self.values.push((figure, value.ok_or_else(|| why_not.to_owned())));
        self
    }

    /// With the middle, the tail and the longest of many.
    pub fn with_times(self, times: &Times) -> Self {
        let none = "nothing came";
        self.with_any("p50", times.quantile_ms(0.5), none)
            .with_any("p99", times.quantile_ms(0.99), none)
            .with_any("max", times.max_ms(), none)
    }

    /// With the times of turns whose worker was where it should be, and how many were elsewhere.
    pub fn without_strays(times: &Times, strays: usize, of: usize) -> anyhow::Result<Reading> {
        ensure!(strays * 2 < of, "{strays} of {of} turns were taken by another replica than the worker's");
        let reading = Reading::default().with_times(times);
        let note = format!("{strays} of {of} turns went to another replica and are left out");
        Ok(if strays == 0 { reading } else { reading.noting(note) })
    }

    /// With something to know.
    pub fn noting(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

/// Why statements are not counted.
pub const NO_STATEMENTS: &str = "this Postgres has no pg_stat_statements";
