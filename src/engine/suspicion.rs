//! Suspicion: which peers this replica has seen dead, by its own count of beats.
//!
//! Pure: what each beat saw goes in, suspects come out. No clock is read. A peer whose count has
//! not changed is suspected after as many *completed* beats of our own as the evidence asks for:
//!
//! | its session lock | our beats | what it means |
//! |---|---|---|
//! | seen held in this session, now free | 2 | the process died |
//! | free, never seen held | 8 | it died before we looked, or its listener is down |
//! | held, or whatever | 20 | it is frozen, or cut off |
//!
//! Keeps I8: a Postgres that stalls or restarts stops our own beats as well, so it accuses nobody;
//! after it our session is new and has seen nothing held yet. A count that differs is a sign of
//! life, whichever way it moved.

use std::collections::{HashMap, hash_map::Entry};

use crate::{id::ReplicaId, store::beat::PeerSeen};

/// Our beats without a change, by the evidence.
const BEATS_LOCK_LET_GO: u32 = 2;
const BEATS_LOCK_FREE: u32 = 8;
const BEATS_LOCK_HELD: u32 = 20;

/// What this replica's beats have seen of the others.
#[derive(Debug, Default)]
pub struct Watch {
    peers: HashMap<ReplicaId, Seen>,
}

#[derive(Debug)]
struct Seen {
    beat_n: i64,
    /// Our completed beats since its count last changed.
    unchanged: u32,
    was_held: bool,
}

/// A peer that looks dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    /// Which replica.
    pub id: ReplicaId,
    /// Where its count stands; a beat that comes in between refutes the verdict.
    pub beat_n: i64,
    /// Why it is suspected.
    pub evidence: Evidence,
}

/// Why a peer is suspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Its session lock was let go.
    LockLetGo,
    /// Its session lock is free.
    LockFree,
    /// Its session lock is held, but it does not beat.
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

    /// Whether a backend of the suspect's that is still there refutes it. A frozen process keeps its
    /// backends, so for it they prove nothing.
    pub const fn is_refuted_by_backends(self) -> bool {
        !matches!(self, Evidence::Silent)
    }
}

impl Watch {
    /// Takes in what one completed beat saw; who looks dead by now.
    pub fn observe(&mut self, peers: &[PeerSeen]) -> Vec<Suspect> {
        self.peers.retain(|id, _| peers.iter().any(|peer| peer.id == *id));
        let mut suspects = Vec::new();
        for peer in peers {
            let seen = match self.peers.entry(peer.id) {
                // The first sight counts no beat: it could be the very one it last beat at.
                Entry::Vacant(first) => {
                    first.insert(Seen { beat_n: peer.beat_n, unchanged: 0, was_held: false })
                }
                Entry::Occupied(seen) => {
                    let seen = seen.into_mut();
                    seen.unchanged = if seen.beat_n == peer.beat_n { seen.unchanged + 1 } else { 0 };
                    seen.beat_n = peer.beat_n;
                    seen
                }
            };
            let (evidence, needed) = match (peer.is_lock_free, seen.was_held) {
                // Long enough is long enough: behind a pooler a backend may bear the name of a dead
                // process for ever, and would refute all but this.
                _ if seen.unchanged >= BEATS_LOCK_HELD => (Evidence::Silent, BEATS_LOCK_HELD),
                (true, true) => (Evidence::LockLetGo, BEATS_LOCK_LET_GO),
                (true, false) => (Evidence::LockFree, BEATS_LOCK_FREE),
                (false, _) => (Evidence::Silent, BEATS_LOCK_HELD),
            };
            seen.was_held |= !peer.is_lock_free;
            if seen.unchanged >= needed {
                suspects.push(Suspect { id: peer.id, beat_n: peer.beat_n, evidence });
            }
        }
        suspects
    }

    /// A new beat session: what the last one saw proves nothing any more.
    pub fn forget(&mut self) {
        self.peers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: ReplicaId = ReplicaId(uuid::Uuid::nil());

    fn seen(beat_n: i64, is_lock_free: bool) -> [PeerSeen; 1] {
        [PeerSeen { id: PEER, beat_n, is_lock_free }]
    }

    /// Our beats until the peer is suspected, with its count standing still.
    fn beats_until_suspected(watch: &mut Watch, is_lock_free: bool) -> u32 {
        (1..100).find(|_| !watch.observe(&seen(7, is_lock_free)).is_empty()).unwrap()
    }

    #[test]
    fn a_lock_that_was_let_go_needs_two_beats() {
        let mut watch = Watch::default();
        assert!(watch.observe(&seen(7, false)).is_empty());
        assert_eq!(beats_until_suspected(&mut watch, true), 2);
    }

    #[test]
    fn a_lock_never_seen_held_needs_eight() {
        let mut watch = Watch::default();
        assert!(watch.observe(&seen(7, true)).is_empty());
        assert_eq!(beats_until_suspected(&mut watch, true), 8);
    }

    #[test]
    fn a_held_lock_needs_twenty() {
        let mut watch = Watch::default();
        assert!(watch.observe(&seen(7, false)).is_empty());
        assert_eq!(beats_until_suspected(&mut watch, false), 20);
    }

    #[test]
    fn silence_ends_in_a_verdict_that_no_backend_refutes_whatever_the_lock() {
        for is_lock_free in [true, false] {
            let mut watch = Watch::default();
            watch.observe(&seen(7, false));
            let last = (0..20).map(|_| watch.observe(&seen(7, is_lock_free))).last().unwrap();
            assert!(!last[0].evidence.is_refuted_by_backends(), "{last:?}");
        }
    }

    #[test]
    fn a_beat_is_a_sign_of_life_whichever_way_it_moved() {
        let mut watch = Watch::default();
        for n in [7, 8, 3, 4, 100].into_iter().cycle().take(100) {
            assert!(watch.observe(&seen(n, true)).is_empty());
        }
    }

    #[test]
    fn a_new_session_starts_from_nothing() {
        let mut watch = Watch::default();
        watch.observe(&seen(7, false));
        watch.observe(&seen(7, true));
        watch.forget();
        assert!(watch.observe(&seen(7, true)).is_empty());
        assert_eq!(beats_until_suspected(&mut watch, true), 8);
    }
}
