//! Every measure: its name, what it shows, its figures, and their targets.
//!
//! Owns the table of targets, the only one in the code. The acts themselves are in [`acts`].

use super::{
    acts::{self, Act},
    figures::{
        Figure, Limit,
        TargetBound::{self, AtLeast, AtMost},
        Unit,
    },
};

/// Where a measure can be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Anywhere.
    Gateway,
    /// An installation of its own.
    Own,
    /// One whose agent serves many turns by one worker.
    Shared,
}

/// One row of the table.
#[derive(Debug)]
pub struct Measure {
    /// Its name on the command line and in JSON.
    pub name: &'static str,
    /// What it shows.
    pub what: &'static str,
    /// Where it can be taken.
    pub needs: Needs,
    /// Whether it is taken with something changed as well, and compared.
    pub is_compared: bool,
    /// What it yields.
    pub figures: &'static [Figure],
    /// How it is taken.
    pub act: Act,
}

/// What a reading's value of that name is, and should be.
const fn figure(name: &'static str, unit: Unit) -> Figure {
    Figure { name, unit, bound: None, against: None }
}

const fn wanted(name: &'static str, unit: Unit, bound: TargetBound) -> Figure {
    Figure { name, unit, bound: Some(bound), against: None }
}

const fn against(
    name: &'static str,
    unit: Unit,
    bound: TargetBound,
    limit: Limit,
    times: TargetBound,
) -> Figure {
    Figure { name, unit, bound: Some(bound), against: Some((limit, times)) }
}

const fn ms(name: &'static str, most: f64) -> Figure {
    wanted(name, Unit::Ms, AtMost(most))
}

const P50: Figure = figure("p50", Unit::Ms);
const P99: Figure = figure("p99", Unit::Ms);
const MAX: Figure = figure("max", Unit::Ms);

/// All of them, in the order in which they are taken.
pub const MEASURES: &[Measure] = &[
    Measure {
        name: "accepted",
        what: "from the post of a turn to its acceptance",
        needs: Needs::Gateway,
        is_compared: true,
        figures: &[P50, P99, MAX],
        act: Act::Accepted,
    },
    Measure {
        name: "accept-same",
        what: "from the post of a turn to its receipt by the worker; idle, same replica",
        needs: Needs::Own,
        is_compared: true,
        figures: &[
            against("p50", Unit::Ms, AtMost(1.5), Limit::CommitRested, AtMost(2.0)),
            ms("p99", 6.0),
            MAX,
        ],
        act: Act::Accept(acts::accept::AcceptWay { host: 0, is_own_process: false }),
    },
    Measure {
        name: "accept-own",
        what: "the same, with a process for each conversation",
        needs: Needs::Own,
        is_compared: false,
        figures: &[P50, P99, MAX],
        act: Act::Accept(acts::accept::AcceptWay { host: 0, is_own_process: true }),
    },
    Measure {
        name: "accept-other",
        what: "the same, posted on one replica, with the warm worker on the other",
        needs: Needs::Own,
        is_compared: true,
        figures: &[
            Figure {
                name: "p50",
                unit: Unit::Ms,
                bound: None,
                against: Some((Limit::CommitRested, AtMost(3.0))),
            },
            ms("p99", 12.0),
            MAX,
        ],
        act: Act::Accept(acts::accept::AcceptWay { host: 1, is_own_process: true }),
    },
    Measure {
        name: "first-event",
        what: "from the post of a turn to its first event at the client; two replicas, unless --url is given",
        needs: Needs::Gateway,
        is_compared: true,
        figures: &[ms("p50", 4.0), ms("p99", 12.0), MAX],
        act: Act::FirstEvent,
    },
    Measure {
        name: "turns",
        what: "turns run to completion over HTTP, clients in a closed loop on all replicas",
        needs: Needs::Gateway,
        is_compared: true,
        figures: &[wanted("turns", Unit::PerSecond, AtLeast(3000.0)), P50, P99, MAX],
        act: Act::Turns,
    },
    Measure {
        name: "drain",
        what: "queued turns drained",
        needs: Needs::Own,
        is_compared: true,
        figures: &[wanted("turns", Unit::PerSecond, AtLeast(10_000.0))],
        act: Act::Drain,
    },
    Measure {
        name: "event-same",
        what: "from a worker's event to its arrival at a client of the same replica, 10 streams",
        needs: Needs::Own,
        is_compared: true,
        figures: &[ms("p50", 1.2), ms("p99", 4.0), MAX],
        act: Act::Events(acts::stream::StreamWay { is_other: false, is_busy: false }),
    },
    Measure {
        name: "event-other",
        what: "the same, with a client of the other replica",
        needs: Needs::Own,
        is_compared: true,
        figures: &[ms("p50", 2.0), ms("p99", 5.0), MAX],
        act: Act::Events(acts::stream::StreamWay { is_other: true, is_busy: false }),
    },
    Measure {
        name: "event-busy",
        what: "the same at 2,000 events a second",
        needs: Needs::Own,
        is_compared: true,
        figures: &[ms("p50", 3.0), ms("p99", 20.0), MAX],
        act: Act::Events(acts::stream::StreamWay { is_other: true, is_busy: true }),
    },
    Measure {
        name: "durable-few",
        what: "durable events through the whole path, 8 streams over two replicas",
        needs: Needs::Own,
        is_compared: true,
        figures: &[against("events", Unit::PerSecond, AtLeast(60_000.0), Limit::Rows, AtLeast(0.5))],
        act: Act::Durable { is_many: false },
    },
    Measure {
        name: "durable-many",
        what: "the same, 500 streams",
        needs: Needs::Shared,
        is_compared: true,
        figures: &[against("events", Unit::PerSecond, AtLeast(60_000.0), Limit::Rows, AtLeast(0.5))],
        act: Act::Durable { is_many: true },
    },
    Measure {
        name: "lag",
        what: "delay of one event at the clients of all replicas after its arrival at the first client",
        needs: Needs::Gateway,
        is_compared: false,
        figures: &[P50, P99, MAX],
        act: Act::Lag,
    },
    Measure {
        name: "fan-out",
        what: "one turn watched by 1,000 clients on two replicas",
        needs: Needs::Own,
        is_compared: true,
        figures: &[P50, ms("p99", 30.0), MAX, wanted("reads a replica and event", Unit::Count, AtMost(1.0))],
        act: Act::FanOut,
    },
    // Before replicas come and go: for a minute after one was lost or has left the others look more often.
    Measure {
        name: "idle",
        what: "statements of an idle replica, and updates of presence that touch no index",
        needs: Needs::Own,
        is_compared: false,
        // Work a second, not speed: it does not depend on how fast the machine is.
        figures: &[
            wanted("statements a second", Unit::Count, AtMost(3.0)),
            wanted("heap-only", Unit::Percent, AtLeast(100.0)),
        ],
        act: Act::Idle,
    },
    Measure {
        name: "rings",
        what: "NOTIFYs of one replica under load, two replicas and ten",
        needs: Needs::Own,
        is_compared: false,
        figures: &[
            wanted("of two", Unit::PerSecond, AtMost(250.0)),
            wanted("of ten", Unit::PerSecond, AtMost(50.0)),
        ],
        act: Act::Rings,
    },
    Measure {
        name: "heartbeats",
        what: "all replicas' heartbeats with 5,000 turns in flight",
        needs: Needs::Shared,
        is_compared: false,
        figures: &[
            wanted("beats a second", Unit::Count, AtMost(5.0)),
            figure("statements a second", Unit::Count),
            figure("statements a second, idle", Unit::Count),
        ],
        act: Act::Heartbeats,
    },
    Measure {
        name: "idle-conversations",
        what: "statements of both replicas for 5,000 streams of idle conversations",
        needs: Needs::Shared,
        is_compared: false,
        figures: &[
            wanted("statements a second", Unit::Count, AtMost(5.0)),
            figure("with those of idle replicas", Unit::Count),
            figure("a stream", Unit::KiB),
        ],
        act: Act::IdleConversations,
    },
    Measure {
        name: "memory",
        what: "resident memory of a replica with 10,000 idle streams",
        needs: Needs::Own,
        is_compared: false,
        figures: &[
            wanted("replica", Unit::MB, AtMost(200.0)),
            wanted("a stream", Unit::KiB, AtMost(16.0)),
            figure("replica before", Unit::MB),
        ],
        act: Act::Memory,
    },
    Measure {
        name: "scale",
        what: "database work of one turn of 20 events with 1, 2 and 4 replicas",
        needs: Needs::Own,
        is_compared: false,
        figures: &[
            figure("statements of 1", Unit::Count),
            figure("statements of 2", Unit::Count),
            figure("statements of 4", Unit::Count),
            wanted("statements, 4 to 1", Unit::Times, AtMost(1.1)),
            figure("WAL of 1", Unit::Bytes),
            figure("WAL of 2", Unit::Bytes),
            figure("WAL of 4", Unit::Bytes),
            wanted("WAL, 4 to 1", Unit::Times, AtMost(1.1)),
        ],
        act: Act::Scale,
    },
    Measure {
        name: "wal",
        what: "WAL of one turn of 100 events of 20 bytes, and its rows",
        needs: Needs::Own,
        is_compared: false,
        figures: &[
            figure("WAL", Unit::Bytes),
            figure("rows", Unit::Bytes),
            wanted("WAL to rows", Unit::Times, AtMost(2.0)),
        ],
        act: Act::Wal,
    },
    Measure {
        name: "start",
        what: "from the start of a replica until it is ready",
        needs: Needs::Own,
        is_compared: false,
        figures: &[ms("p50", 300.0), MAX],
        act: Act::Start,
    },
];

/// The measure of that name.
pub fn named(name: &str) -> Result<&'static Measure, String> {
    let known = MEASURES.iter().find(|measure| measure.name == name);
    known.ok_or_else(|| "no such measure; --list shows all of them".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_measure_and_each_of_its_figures_has_a_name_of_its_own() {
        let names: BTreeSet<_> = MEASURES.iter().map(|measure| measure.name).collect();
        assert_eq!(names.len(), MEASURES.len());
        for measure in MEASURES {
            let figures: BTreeSet<_> = measure.figures.iter().map(|figure| figure.name).collect();
            assert_eq!(figures.len(), measure.figures.len(), "{}", measure.name);
            assert!(!figures.is_empty());
        }
        assert!(named("turns").is_ok() && named("turn").is_err());
    }
}
