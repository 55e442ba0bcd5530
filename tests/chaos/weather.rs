//! The weather of a proxy: what happens to the bytes of each direction.
//!
//! Pure. Chance starts from a seed, so the same seed and connections have the same delays.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// What the net does to what is sent over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Everything passes at once.
    Clear,
    /// Everything passes in order, each piece `ms` and up to `jitter_ms` more after it was sent.
    Delay {
        /// The least delay.
        ms: u64,
        /// What chance may add.
        jitter_ms: u64,
        /// Where chance starts; the same seed and connections give the same delays.
        seed: u64,
    },
    /// Nothing passes, nothing is lost: what was sent arrives, late, when this is over.
    Hold,
    /// A black hole: what is sent in either direction is lost, ends of connections too.
    CutBoth,
    /// What is sent to the server is lost.
    CutToServer,
    /// What is sent to the client is lost.
    CutToClient,
    /// Old connections are reset, and new ones at once.
    Refuse,
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// What the client sends.
    ToServer,
    /// What the server sends.
    ToClient,
}

/// What a direction is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// It passes.
    Open,
    /// It waits.
    Shut,
    /// It is lost.
    Lossy,
}

impl Weather {
    /// What this weather makes of a direction.
    pub fn gate(self, way: Way) -> Gate {
        match (self, way) {
            (Weather::Hold, _) => Gate::Shut,
            (Weather::CutBoth, _)
            | (Weather::CutToServer, Way::ToServer)
            | (Weather::CutToClient, Way::ToClient) => Gate::Lossy,
            _ => Gate::Open,
        }
    }

    /// How long a piece is under way; `chance` is the direction's own, and made at its first use.
    pub fn delay(self, connection: u64, way: Way, chance: &mut Option<(u64, StdRng)>) -> Duration {
        let Weather::Delay { ms, jitter_ms, seed } = self else { return Duration::ZERO };
        let own = seed ^ (connection << 1 | u64::from(way == Way::ToClient));
        let chance = match chance {
            Some((from, chance)) if *from == own => chance,
            slot => &mut slot.insert((own, StdRng::seed_from_u64(own))).1,
        };
        Duration::from_millis(ms + chance.random_range(0..=jitter_ms))
    }
}
