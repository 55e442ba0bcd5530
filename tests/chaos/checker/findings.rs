//! The result of a run: counts, complaints and figures.

use std::collections::BTreeMap;

/// What a run came to.
#[derive(Debug, Default, Clone)]
pub struct Findings {
    pub attempted: usize,
    pub acknowledged: usize,
    pub completed: usize,
    pub failed: usize,
    pub cancelled: usize,
    pub recovered: usize,
    pub lost: usize,
    pub duplicated: usize,
    pub reordered: usize,
    pub unexpected: usize,
    /// Observers that saw their turn's end.
    pub watched: usize,
    /// A digest of the faults, in order: the same seed gives the same.
    pub schedule: u64,
    /// Posts that were answered with anything but a turn.
    pub refused: usize,
    /// Posts that a replica answered with a turn though it was cut from Postgres.
    pub accepted_while_cut: usize,
    /// Acknowledged turns that the database lost, and observers that were told to begin anew, where
    /// the database itself lost commits.
    pub gone: usize,
    /// Observers that had seen the end of a turn before the database lost it.
    pub unsaid: usize,
    pub resets: usize,
    /// Turns whose end was wrong though it was one: another text than the agent gave.
    pub wrong: usize,
    /// A line for each of these, and for whatever else is not as it must be.
    pub complaints: Vec<String>,
    /// From a fault to the last word of a turn that it took along: the first observer's, and the
    /// last one's, in microseconds, by the fault's name.
    pub told_first: BTreeMap<String, Vec<u64>>,
    pub told_all: BTreeMap<String, Vec<u64>>,
    /// Other measures, by name, in microseconds.
    pub measures: BTreeMap<String, Vec<u64>>,
    /// Faults, by name.
    pub faults: BTreeMap<String, usize>,
    /// How the turns ended, by code.
    pub codes: BTreeMap<String, usize>,
}

impl Findings {
    /// Whether everything held.
    pub fn is_clean(&self) -> bool {
        self.complaints.is_empty()
    }

    pub(super) fn complain(&mut self, what: String) {
        self.complaints.push(what);
    }

    /// Adds another run's findings.
    pub fn add(&mut self, other: Findings) {
        for (mine, its) in [
            (&mut self.attempted, other.attempted),
            (&mut self.acknowledged, other.acknowledged),
            (&mut self.completed, other.completed),
            (&mut self.failed, other.failed),
            (&mut self.cancelled, other.cancelled),
            (&mut self.recovered, other.recovered),
            (&mut self.lost, other.lost),
            (&mut self.duplicated, other.duplicated),
            (&mut self.reordered, other.reordered),
            (&mut self.unexpected, other.unexpected),
            (&mut self.refused, other.refused),
            (&mut self.watched, other.watched),
            (&mut self.accepted_while_cut, other.accepted_while_cut),
            (&mut self.gone, other.gone),
            (&mut self.unsaid, other.unsaid),
            (&mut self.resets, other.resets),
            (&mut self.wrong, other.wrong),
        ] {
            *mine += its;
        }
        self.schedule = self.schedule.wrapping_add(other.schedule);
        self.complaints.extend(other.complaints);
        for (mine, its) in [
            (&mut self.told_first, other.told_first),
            (&mut self.told_all, other.told_all),
            (&mut self.measures, other.measures),
        ] {
            for (name, times) in its {
                mine.entry(name).or_default().extend(times);
            }
        }
        for (mine, its) in [(&mut self.faults, other.faults), (&mut self.codes, other.codes)] {
            for (name, count) in its {
                *mine.entry(name).or_default() += count;
            }
        }
    }
}
