//! The result of one act of a measure.

use anyhow::ensure;

use crate::times::Durations;

/// Why statements are not counted.
pub const NO_STATEMENTS: &str = "this Postgres has no pg_stat_statements";

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
    pub fn with_times(self, times: &Durations) -> Self {
        let none = "nothing came";
        self.with_any("p50", times.quantile_ms(0.5), none)
            .with_any("p99", times.quantile_ms(0.99), none)
            .with_any("max", times.max_ms(), none)
    }

    /// With the times of turns whose worker was where it should be, and how many were elsewhere.
    pub fn without_strays(times: &Durations, strays: usize, of: usize) -> anyhow::Result<Reading> {
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
