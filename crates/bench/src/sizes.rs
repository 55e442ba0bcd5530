//! The amounts that one run of a measure uses.
//!
//! Owns two forms: the full one, whose figures are judged, and the short one, which shows within a minute that
//! everything works and judges counts alone.

use std::time::Duration;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Whether this is the short form.
    pub is_short: bool,
    /// Samples of each limit.
    pub limit_samples: u32,
    /// Samples of those that are taken after a rest.
    pub limit_samples_rested: u32,
    /// Turns, one after the other, where one latency is measured a turn.
    pub turns_alone: u32,
    /// From one of those to the next; the rest before a limit that is taken rested.
    pub turn_every: Duration,
    /// How long a load lasts.
    pub load: Duration,
    /// Clients that post turns as fast as they are answered.
    pub clients: usize,
    /// Turns that wait before a drain.
    pub drained: usize,
    /// How long each of many turns pours out pieces.
    pub pour_s: u64,
    /// Streams of which a latency is taken.
    pub streams: usize,
    /// Streams that pour, at most.
    pub streams_many: usize,
    /// How long nothing happens while statements are counted.
    pub idle: Duration,
    /// Streams without news that one replica holds.
    pub idle_streams: usize,
    /// Streams of conversations without news that all replicas hold.
    pub idle_conversations: usize,
    /// Clients that watch one turn.
    pub watchers: usize,
    /// How long that turn speaks once all of them are there.
    pub watched: Duration,
    /// Turns in flight that say nothing.
    pub held_turns: usize,
    /// Turns whose database work is counted.
    pub counted_turns: usize,
    /// Starts of a replica.
    pub starts: usize,
}

impl Sizes {
    /// What is judged.
    pub const FULL: Sizes = Sizes {
        is_short: false,
        limit_samples: 200,
        limit_samples_rested: 40,
        turns_alone: 400,
        turn_every: Duration::from_millis(25),
        load: Duration::from_secs(10),
        clients: 16,
        drained: 20_000,
        pour_s: 5,
        streams: 10,
        streams_many: 500,
        idle: Duration::from_secs(10),
        idle_streams: 10_000,
        idle_conversations: 5000,
        watchers: 1000,
        watched: Duration::from_secs(10),
        held_turns: 5000,
        counted_turns: 400,
        starts: 5,
    };

    /// What shows that it works.
    pub const SHORT: Sizes = Sizes {
        is_short: true,
        limit_samples: 20,
        limit_samples_rested: 5,
        turns_alone: 20,
        turn_every: Duration::from_millis(25),
        load: Duration::from_secs(1),
        clients: 4,
        drained: 100,
        pour_s: 1,
        streams: 2,
        streams_many: 10,
        idle: Duration::from_secs(3),
        idle_streams: 100,
        idle_conversations: 100,
        watchers: 20,
        watched: Duration::from_secs(2),
        held_turns: 20,
        counted_turns: 40,
        starts: 1,
    };
}
