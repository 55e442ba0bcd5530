//! Suspicion: which peers this replica has seen dead, by its own count of beats.
//!
//! Pure: what each beat saw goes in, suspects come out. No clock is read. A peer whose count has
//! not changed is suspected after as many *completed* beats of our own as the evidence asks for:
//!
//! | what is left of it | our beats | what it means |
//! |---|---|---|
//! | nothing, its lock seen held in this session | 2 | the process died |
//! | nothing, its lock never seen held | 8 | it died before we looked |
//! | its lock, a backend, or whatever | 20 | it is frozen, or cut off |
//!
//! The first two count the beats through which nothing was left of it, too: one that is late when its
//! connections end has as long to come back as any other.
//!
//! Keeps I8: a Postgres that stalls or restarts stops our own beats as well, so it accuses nobody;
//! after it our session is new and has seen nothing held yet. A count that differs is a sign of
//! life, whichever way it moved.

use std::collections::{HashMap, hash_map::Entry};

use crate::{
    id::ReplicaId,
    store::beat::{PeerSeen, Trace},
};

/// This replica's own beats without a change, by evidence.
const BEATS_LOCK_LET_GO: u32 = 2;
const BEATS_LOCK_FREE: u32 = 8;
const BEATS_SILENT: u32 = 20;

/// What this replica's beats have seen of its peers.
#[derive(Debug, Default)]
pub struct FailureDetector {
    peers: HashMap<ReplicaId, PeerState>,
}

#[derive(Debug)]
struct PeerState {
    beat_n: i64,
    /// Our completed beats since the count last changed.
    unchanged: u32,
    /// Our completed beats in a row through which nothing was left of the peer.
    bare: u32,
    was_held: bool,
}

/// A peer that looks dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    /// The peer.
    pub id: ReplicaId,
    /// The peer's count; a beat that comes in between refutes the verdict.
    pub beat_n: i64,
    /// The reason for the suspicion.
    pub evidence: Evidence,
}

/// Why a peer is suspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The session lock was let go, and nothing is left of the peer.
    LockLetGo,
    /// Nothing is left of the peer, and its session lock was never seen held.
    LockFree,
    /// The peer has not beaten for 20 of our beats, whatever is left of it.
    Silent,
}

impl Evidence {
    /// The name in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Evidence::LockLetGo => "lock_let_go",
            Evidence::LockFree => "lock_free",
            Evidence::Silent => "silent",
        }
    }

    /// Whether a backend of the suspect that still exists refutes the verdict. A frozen process keeps its
    /// backends, so they prove nothing about a silent peer.
    pub const fn is_refuted_by_backends(self) -> bool {
        !matches!(self, Evidence::Silent)
    }
}

impl FailureDetector {
    /// Takes in what one completed beat saw. Returns the peers that look dead now.
    pub fn observe(&mut self, peers: &[PeerSeen]) -> Vec<Suspect> {
        self.peers.retain(|id, _| peers.iter().any(|peer| peer.id == *id));
        let mut suspects = Vec::new();
        for peer in peers {
            let seen = match self.peers.entry(peer.id) {
                // The first sight counts no beat: the peer may have died right after it.
                Entry::Vacant(first) => {
                    first.insert(PeerState { beat_n: peer.beat_n, unchanged: 0, bare: 0, was_held: false })
                }
                Entry::Occupied(seen) => {
                    let seen = seen.into_mut();
                    seen.unchanged = if seen.beat_n == peer.beat_n { seen.unchanged + 1 } else { 0 };
                    seen.beat_n = peer.beat_n;
                    seen
                }
            };
            seen.bare = if peer.trace == Trace::Nothing { seen.bare + 1 } else { 0 };
            let (evidence, needed) = match seen.was_held {
                // After 20 beats no trace helps: behind a pooler a backend may carry the name of a dead process
                // for ever.
                _ if seen.unchanged >= BEATS_SILENT => (Evidence::Silent, 0),
                true => (Evidence::LockLetGo, BEATS_LOCK_LET_GO),
                false => (Evidence::LockFree, BEATS_LOCK_FREE),
            };
            seen.was_held |= peer.trace == Trace::Lock;
            if seen.unchanged.min(seen.bare) >= needed {
                suspects.push(Suspect { id: peer.id, beat_n: peer.beat_n, evidence });
            }
        }
        suspects
    }

    /// Starts over with a new beat session: what the last session saw proves nothing any more.
    pub fn forget(&mut self) {
        self.peers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: ReplicaId = ReplicaId(uuid::Uuid::nil());

    fn seen(beat_n: i64, trace: Trace) -> [PeerSeen; 1] {
        [PeerSeen { id: PEER, beat_n, trace }]
    }

    /// Our beats until the peer is suspected, with its count standing still.
    fn beats_until_suspected(watch: &mut FailureDetector, trace: Trace) -> u32 {
        (1..100).find(|_| !watch.observe(&seen(7, trace)).is_empty()).unwrap()
    }

    #[test]
    fn a_lock_that_was_let_go_needs_two_beats() {
        let mut watch = FailureDetector::default();
        assert!(watch.observe(&seen(7, Trace::Lock)).is_empty());
        assert_eq!(beats_until_suspected(&mut watch, Trace::Nothing), 2);
    }

    #[test]
    fn a_lock_never_seen_held_needs_eight() {
        for first in [Trace::Nothing, Trace::Backends] {
            let mut watch = FailureDetector::default();
            assert!(watch.observe(&seen(7, first)).is_empty());
            assert_eq!(beats_until_suspected(&mut watch, Trace::Nothing), 8);
        }
    }

    #[test]
    fn a_lock_or_a_backend_that_is_there_needs_twenty() {
        for trace in [Trace::Lock, Trace::Backends] {
            let mut watch = FailureDetector::default();
            assert!(watch.observe(&seen(7, Trace::Lock)).is_empty());
            assert_eq!(beats_until_suspected(&mut watch, trace), 20);
        }
    }

    #[test]
    fn who_is_late_when_its_connections_end_has_two_beats_like_anybody() {
        for trace in [Trace::Lock, Trace::Backends] {
            let mut watch = FailureDetector::default();
            watch.observe(&seen(7, Trace::Lock));
            for _ in 0..5 {
                assert!(watch.observe(&seen(7, trace)).is_empty());
            }
            assert_eq!(beats_until_suspected(&mut watch, Trace::Nothing), 2);
        }
    }

    #[test]
    fn silence_ends_in_a_verdict_that_no_backend_refutes_whatever_is_left() {
        for trace in [Trace::Lock, Trace::Backends, Trace::Nothing] {
            let mut watch = FailureDetector::default();
            watch.observe(&seen(7, Trace::Lock));
            let last = (0..20).map(|_| watch.observe(&seen(7, trace))).last().unwrap();
            assert!(!last[0].evidence.is_refuted_by_backends(), "{last:?}");
        }
    }

    #[test]
    fn a_beat_is_a_sign_of_life_whichever_way_it_moved() {
        let mut watch = FailureDetector::default();
        for n in [7, 8, 3, 4, 100].into_iter().cycle().take(100) {
            assert!(watch.observe(&seen(n, Trace::Nothing)).is_empty());
        }
    }

    #[test]
    fn a_new_session_starts_from_nothing() {
        let mut watch = FailureDetector::default();
        watch.observe(&seen(7, Trace::Lock));
        watch.observe(&seen(7, Trace::Nothing));
        watch.forget();
        assert!(watch.observe(&seen(7, Trace::Nothing)).is_empty());
        assert_eq!(beats_until_suspected(&mut watch, Trace::Nothing), 8);
    }
}
