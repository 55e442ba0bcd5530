//! The presence model: no replica that beats is declared lost. It drives the real `engine::suspicion`.
//!
//! One observer, one peer, one Postgres that may end any connection at any time, without limit. There is no clock: the
//! only measure is the number of the observer's completed beats. [`may_look`] has all assumptions about a living peer.

use lastword::{
    engine::suspicion::FailureDetector,
    id::ReplicaId,
    store::beat::{PeerSeen, Trace},
};
use stateright::{Model, Property};
use uuid::Uuid;

use super::{holds::check, world::Condition};

const NO_FALSE_VERDICT: &str = "I8 nobody is judged who beats";
const NOT_OVERLOOKED: &str = "whoever does not beat is suspected in time";
/// The same, of one that has lost its listener but has other backends.
const NOT_EVEN_DEAF: &str = "whoever stands still for twenty beats is judged, with a listener or without";
const REFUTED_BY_BEAT: &str = "a suspicion is refuted by a beat";
const REFUTED_BY_BACKEND: &str = "a suspicion is refuted by a backend";
const DEAD_JUDGED: &str = "a dead replica is judged";
const FROZEN_JUDGED: &str = "a frozen replica is judged";

const PEER: ReplicaId = ReplicaId(Uuid::nil());

/// A guard of presence that a mutant leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    Nothing,
    /// A free lock counts as let go, whether it was seen held or not.
    HeldUnseen,
    /// What a former session has seen is not forgotten.
    NeverForgets,
    /// The verdict does not ask for the count of beats that it rests on.
    BeatUnasked,
    /// Neither the look nor the verdict asks for backends.
    BackendsUnasked,
    /// What is left of it counts from its last beat, not from when nothing was left.
    BareUncounted,
}

#[derive(Debug, Clone, Copy)]
struct PresenceModel(Gap);

/// What the observer's `FailureDetector` knows of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Known {
    unchanged: u8,
    bare: u8,
    was_held: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Sight {
    condition: Condition,
    /// The peer's listener is connected: its session lock is held.
    is_lock_held: bool,
    /// The peer's beat session, or another connection of its, is there.
    is_connected: bool,
    /// The peer has no backend, and Postgres' restart was the reason.
    is_after_restart: bool,
    /// The observer's beat session is the one that it had.
    has_session: bool,
    known: Option<Known>,
    /// The peer has beaten since the observer last looked.
    is_fresh: bool,
    /// The observer's beats since the peer's last.
    quiet: u8,
    /// The observer's looks in a row that found nothing of the peer.
    bare: u8,
    /// The peer was frozen or dead since its last beat.
    has_stood: bool,
    /// A suspicion on its way to a verdict; true where a backend refutes it.
    doubt: Option<bool>,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    None,
    RefutedByBeat,
    RefutedByBackend,
    /// It stands still, and a look that should have doubted it did not.
    Overlooked,
    Lost {
        is_wrong: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The observer's beat, on a new session where the last one is gone (`Presence::step`).
    Look,
    /// The verdict's own statement (`store::beat::judge`).
    Judge,
    /// The peer's beat, on a new session where the last one is gone.
    Beat,
    /// The peer's listener connects and takes its lock.
    Listen,
    Kill,
    Freeze,
    Thaw,
    /// Postgres restarts.
    Restart,
    /// It ends the peer's backends: the listener's, the others, all.
    CutListener,
    CutOthers,
    CutAll,
    /// It ends the observer's beat session.
    CutObserver,
}

/// Whether the observer may look before a peer that lives beats: how late such a one may be. A stalled
/// connection may take it 20 of the observer's beats, ten seconds: the statement's deadline and a connect
/// are 4. Where one of them finds no backend of its, the next one does; after a restart of Postgres, which
/// ends the observer's session too, the eighth does.
fn may_look(sight: &Sight) -> bool {
    let bare_max = if sight.is_after_restart { 7 } else { 1 };
    sight.quiet < 20 && (has_backend(sight) || sight.bare < bare_max)
}

fn has_backend(sight: &Sight) -> bool {
    sight.is_lock_held || sight.is_connected
}

fn trace_of(sight: &Sight) -> Trace {
    match (sight.is_lock_held, sight.is_connected) {
        (true, _) => Trace::Lock,
        (false, true) => Trace::Backends,
        (false, false) => Trace::Nothing,
    }
}

impl PresenceModel {
    /// One look of the real `FailureDetector`, brought to where it stood.
    fn look(self, sight: &mut Sight) {
        let seen = |beat_n, trace| [PeerSeen { id: PEER, beat_n, trace }];
        let mut watch = FailureDetector::default();
        let trace = match trace_of(sight) {
            Trace::Backends if self.0 == Gap::BackendsUnasked => Trace::Nothing,
            trace => trace,
        };
        if let Some(known) = sight.known {
            let (looks, before) =
                (known.unchanged + 1, if known.was_held { Trace::Lock } else { Trace::Backends });
            watch.observe(&seen(100, before));
            // The beats that it made while nothing was left of it already.
            for n in 0..known.bare.saturating_sub(looks) {
                watch.observe(&seen(i64::from(n) + 1, Trace::Nothing));
            }
            for n in 0..looks {
                watch.observe(&seen(0, if looks - n > known.bare { before } else { Trace::Nothing }));
            }
        } else if self.0 == Gap::HeldUnseen {
            watch.observe(&seen(1, Trace::Lock));
        }
        let suspects = watch.observe(&seen(i64::from(sight.is_fresh), trace));
        sight.doubt = suspects.first().map(|suspect| suspect.evidence.is_refuted_by_backends());
        let unchanged = match sight.known {
            Some(known) if !sight.is_fresh => (known.unchanged + 1).min(UNCHANGED_MAX),
            _ => 0,
        };
        let bare = match (trace, sight.known) {
            (Trace::Nothing, Some(known)) => (known.bare + 1).min(BARE_MAX),
            (Trace::Nothing, None) => 1,
            _ => 0,
        };
        let bare = if self.0 == Gap::BareUncounted && bare > 0 { BARE_MAX } else { bare };
        let was_held = trace == Trace::Lock || sight.known.is_some_and(|known| known.was_held);
        let was_held = was_held || self.0 == Gap::HeldUnseen;
        if self.0 == Gap::BareUncounted && was_held && bare > 0 && unchanged >= 2 {
            sight.doubt = Some(true);
        }
        sight.known = Some(Known { unchanged, bare, was_held });
        let is_due = unchanged.min(bare) >= 8 || unchanged >= 20;
        if is_due && sight.condition != Condition::Alive && sight.doubt.is_none() {
            sight.outcome = Outcome::Overlooked;
        }
        sight.is_fresh = false;
        sight.quiet = (sight.quiet + 1).min(UNCHANGED_MAX);
        sight.bare = if has_backend(sight) { 0 } else { (sight.bare + 1).min(BARE_MAX) };
    }

    fn judge(self, sight: &mut Sight, is_refuted_by_backends: bool) {
        let has_backend = has_backend(sight);
        sight.outcome = match () {
            () if sight.is_fresh && self.0 != Gap::BeatUnasked => Outcome::RefutedByBeat,
            () if is_refuted_by_backends && has_backend && self.0 != Gap::BackendsUnasked => {
                Outcome::RefutedByBackend
            }
            () => Outcome::Lost { is_wrong: !sight.has_stood },
        };
    }
}

/// Above every threshold of `engine::suspicion`; counts go no further.
const UNCHANGED_MAX: u8 = 22;
const BARE_MAX: u8 = 9;

impl Model for PresenceModel {
    type State = Sight;
    type Action = Event;

    fn init_states(&self) -> Vec<Sight> {
        vec![Sight {
            condition: Condition::Alive,
            is_lock_held: true,
            is_connected: true,
            is_after_restart: false,
            has_session: false,
            known: None,
            is_fresh: true,
            quiet: 0,
            bare: 0,
            has_stood: false,
            doubt: None,
            outcome: Outcome::None,
        }]
    }

    fn actions(&self, sight: &Sight, events: &mut Vec<Event>) {
        if matches!(sight.outcome, Outcome::Lost { .. }) {
            return;
        }
        if sight.doubt.is_some() {
            events.push(Event::Judge);
        } else if sight.condition != Condition::Alive || may_look(sight) {
            events.push(Event::Look);
        }
        match sight.condition {
            Condition::Alive => {
                events.extend([Event::Beat, Event::Kill, Event::Freeze]);
                if !sight.is_lock_held {
                    events.push(Event::Listen);
                }
            }
            Condition::Frozen => events.extend([Event::Thaw, Event::Kill]),
            Condition::Dead => {}
        }
        events.extend([Event::Restart, Event::CutObserver]);
        events.extend([Event::CutListener, Event::CutOthers, Event::CutAll]);
    }

    fn next_state(&self, sight: &Sight, event: Event) -> Option<Sight> {
        let mut next = sight.clone();
        next.outcome = Outcome::None;
        match event {
            Event::Look => {
                if !next.has_session && self.0 != Gap::NeverForgets {
                    next.known = None;
                }
                next.has_session = true;
                self.look(&mut next);
            }
            Event::Judge => {
                // Without its session the verdict is not sent, and all is forgotten.
                if let Some(is_refuted_by_backends) = next.doubt.take().filter(|_| sight.has_session) {
                    self.judge(&mut next, is_refuted_by_backends);
                }
            }
            Event::Beat => {
                (next.is_connected, next.is_fresh) = (true, true);
                (next.quiet, next.has_stood, next.is_after_restart) = (0, false, false);
            }
            Event::Listen => next.is_lock_held = true,
            Event::Kill => {
                (next.condition, next.has_stood) = (Condition::Dead, true);
                (next.is_lock_held, next.is_connected) = (false, false);
            }
            Event::Freeze => (next.condition, next.has_stood) = (Condition::Frozen, true),
            Event::Thaw => next.condition = Condition::Alive,
            Event::Restart => {
                (next.is_lock_held, next.is_connected, next.has_session) = (false, false, false);
                (next.is_after_restart, next.quiet) = (true, 0);
            }
            Event::CutListener => next.is_lock_held = false,
            Event::CutOthers => next.is_connected = false,
            Event::CutAll => (next.is_lock_held, next.is_connected) = (false, false),
            Event::CutObserver => next.has_session = false,
        }
        if event == Event::Restart {
            next.bare = 0;
        } else if has_backend(sight) && !has_backend(&next) {
            next.is_after_restart = false;
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_FALSE_VERDICT, |_, sight: &Sight| {
                sight.outcome != Outcome::Lost { is_wrong: true }
            }),
            Property::always(NOT_OVERLOOKED, |_, sight: &Sight| sight.outcome != Outcome::Overlooked),
            Property::always(NOT_EVEN_DEAF, |_, sight: &Sight| {
                let is_long = sight.known.is_some_and(|known| known.unchanged >= 20);
                let is_refuted = sight.outcome == Outcome::RefutedByBackend;
                !is_long || !is_refuted || sight.condition == Condition::Alive
            }),
            Property::sometimes(REFUTED_BY_BEAT, |_, sight: &Sight| sight.outcome == Outcome::RefutedByBeat),
            Property::sometimes(REFUTED_BY_BACKEND, |_, sight: &Sight| {
                sight.outcome == Outcome::RefutedByBackend
            }),
            Property::sometimes(DEAD_JUDGED, |_, sight: &Sight| {
                sight.condition == Condition::Dead && matches!(sight.outcome, Outcome::Lost { .. })
            }),
            Property::sometimes(FROZEN_JUDGED, |_, sight: &Sight| {
                sight.condition == Condition::Frozen && matches!(sight.outcome, Outcome::Lost { .. })
            }),
        ]
    }
}

proptest::proptest! {
    /// The model brings a new `FailureDetector` to where it stood at each look. One that has watched all along
    /// suspects the same.
    #[test]
    fn a_watch_is_brought_to_where_it_stood(looks in proptest::collection::vec((proptest::bool::weighted(0.1), proptest::bool::weighted(0.3), proptest::bool::weighted(0.3)), 1..60)) {
        let mut watch = FailureDetector::default();
        let mut sight = PresenceModel(Gap::Nothing).init_states().remove(0);
        let mut beat_n = 0;
        for (is_fresh, is_lock_held, is_connected) in looks {
            beat_n += i64::from(is_fresh);
            (sight.is_fresh, sight.is_lock_held, sight.is_connected) = (is_fresh, is_lock_held, is_connected);
            let suspects = watch.observe(&[PeerSeen { id: PEER, beat_n, trace: trace_of(&sight) }]);
            PresenceModel(Gap::Nothing).look(&mut sight);
            let doubt = suspects.first().map(|suspect| suspect.evidence.is_refuted_by_backends());
            proptest::prop_assert_eq!(doubt, sight.doubt);
        }
    }
}

#[test]
fn nobody_is_judged_who_beats() {
    let seen = check(PresenceModel(Gap::Nothing)).holds();
    for rare in [REFUTED_BY_BEAT, REFUTED_BY_BACKEND, DEAD_JUDGED, FROZEN_JUDGED] {
        assert!(seen.contains(&rare), "never came by: {rare}");
    }
}

#[test]
fn a_verdict_on_a_lock_that_was_never_seen_held() {
    check(PresenceModel(Gap::HeldUnseen)).finds(NO_FALSE_VERDICT);
}

#[test]
fn a_verdict_by_what_a_former_session_saw() {
    check(PresenceModel(Gap::NeverForgets)).finds(NO_FALSE_VERDICT);
}

#[test]
fn a_verdict_that_no_beat_refutes() {
    check(PresenceModel(Gap::BeatUnasked)).finds(NO_FALSE_VERDICT);
}

#[test]
fn a_verdict_that_no_backend_refutes() {
    check(PresenceModel(Gap::BackendsUnasked)).finds(NO_FALSE_VERDICT);
}

/// One that lives, is late by a second, and whose backends then end all at once.
#[test]
fn a_verdict_on_a_late_peer_in_the_moment_that_its_backends_end() {
    check(PresenceModel(Gap::BareUncounted)).finds(NO_FALSE_VERDICT);
}
