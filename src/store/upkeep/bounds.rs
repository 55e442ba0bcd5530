//! Gauges of the store's bounded resources, for operators.

use crate::{store::handle::Store, telemetry::metrics};

impl Store {
    /// Records the gauges. To be called every few seconds.
    pub fn note_bounds(&self) {
        let note = |name, (used, max): (usize, usize)| metrics::bound(name, used as u64, max as u64);
        note("database_pool", self.connections().lent());
        note("intake", self.accept_batch().waiting());
    }
}
