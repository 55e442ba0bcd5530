//! The protocol keeps its promises, in worlds small enough for an exhaustive search.
//!
//! Also keeps the searches honest: each names rare states that it must have reached.

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use super::{
    database::Rules,
    promises::{ENDED_BY_ANOTHER, LAST_ATTEMPT, LATE_AFTER_END, LATE_CLAIM, LATE_WRITER, QUEUED_AGAIN},
    steps::TurnModel,
    world::{Break, Trouble},
};

/// Turns of one conversation that are not run again once a worker has them.
pub const PLAIN: Rules = Rules { broken: Break::Nothing, is_retry_safe: false, is_one_line: true };
/// `retry = "safe"`.
pub const SAFE: Rules = Rules { is_retry_safe: true, ..PLAIN };
/// Each turn in a conversation of its own.
pub const SEPARATE: Rules = Rules { is_one_line: false, ..PLAIN };

const CALM: Trouble = Trouble {
    kills: 0,
    freezes: 0,
    drains: 0,
    wrong_verdicts: 0,
    lost_answers: 0,
    lapses: 0,
    cancels: 0,
    crashes: 0,
};

/// One turn, two replicas, nothing goes wrong.
pub const ONE: TurnModel = TurnModel { rules: PLAIN, trouble: CALM, turns: 1 };

/// A model about to be searched.
pub struct Search<M>(M);

pub fn check<M>(model: M) -> Search<M> {
    Search(model)
}

impl<M> Search<M>
where
    M: Model + Send + Sync + 'static,
    M::State: std::hash::Hash + std::fmt::Debug + Clone + PartialEq + Send + Sync,
    M::Action: std::fmt::Debug + Clone + PartialEq,
{
    /// Searches every state; each promise holds. Which of the rare things were come by.
    #[track_caller]
    pub fn holds(self) -> Vec<&'static str> {
        let promises = self.0.properties();
        let found = self.0.checker().threads(2).spawn_bfs().join();
        for promise in promises.iter().filter(|p| p.expectation == Expectation::Always) {
            if let Some(path) = found.discovery(promise.name) {
                let (steps, last) = (path.clone().into_actions(), path.last_state().clone());
                panic!("{} is broken by {steps:#?}\nwhich leads to {last:#?}", promise.name);
            }
        }
        assert!(found.is_done(), "the search ended early");
        println!("{} states, {} steps deep", found.unique_state_count(), found.max_depth());
        found.discoveries().into_keys().collect()
    }

    /// Searches until `promise` is seen broken.
    #[track_caller]
    pub fn finds(self, promise: &'static str) {
        let until = HasDiscoveries::AnyOf([promise].into());
        let found = self.0.checker().finish_when(until).spawn_bfs().join();
        let Some(path) = found.discovery(promise) else {
            panic!("{promise} holds without its guard: {} states", found.unique_state_count());
        };
        println!("{promise}: {:#?}", path.into_actions());
    }
}

#[track_caller]
fn holds_and_sees(model: TurnModel, rare: &[&str]) {
    let seen = check(model).holds();
    let missed: Vec<_> = rare.iter().filter(|name| !seen.contains(name)).collect();
    assert!(missed.is_empty(), "never came by {missed:?}");
}

#[test]
fn two_turns_of_one_conversation_with_nothing_wrong() {
    assert!(check(TurnModel { turns: 2, ..ONE }).holds().is_empty(), "nothing rare without trouble");
}

#[test]
fn a_frozen_replica_with_lost_answers_and_deadlines() {
    let trouble = Trouble { freezes: 1, lost_answers: 1, lapses: 1, ..CALM };
    holds_and_sees(
        TurnModel { trouble, ..ONE },
        &[ENDED_BY_ANOTHER, LATE_WRITER, LATE_AFTER_END, LATE_CLAIM, QUEUED_AGAIN],
    );
}

#[test]
fn a_drain_beside_a_frozen_replica() {
    let trouble = Trouble { freezes: 1, drains: 1, lost_answers: 1, ..CALM };
    holds_and_sees(TurnModel { trouble, ..ONE }, &[QUEUED_AGAIN, ENDED_BY_ANOTHER, LAST_ATTEMPT]);
}

#[test]
fn turns_that_may_be_run_again() {
    let trouble = Trouble { freezes: 1, drains: 1, crashes: 1, ..CALM };
    holds_and_sees(
        TurnModel { rules: SAFE, trouble, ..ONE },
        &[QUEUED_AGAIN, LATE_WRITER, LATE_AFTER_END, LAST_ATTEMPT],
    );
}

#[test]
fn a_verdict_on_a_replica_that_lives() {
    let trouble = Trouble { wrong_verdicts: 1, freezes: 1, ..CALM };
    holds_and_sees(TurnModel { trouble, ..ONE }, &[LATE_CLAIM, LATE_WRITER, LATE_AFTER_END, LAST_ATTEMPT]);
}

#[test]
fn cancels_deadlines_and_crashes_around_a_kill() {
    let trouble = Trouble { kills: 1, cancels: 1, lapses: 1, lost_answers: 1, crashes: 1, ..CALM };
    holds_and_sees(TurnModel { trouble, ..ONE }, &[QUEUED_AGAIN, ENDED_BY_ANOTHER]);
}

#[test]
fn two_turns_of_one_conversation_and_a_wrong_verdict() {
    let trouble = Trouble { wrong_verdicts: 1, ..CALM };
    holds_and_sees(TurnModel { turns: 2, trouble, ..ONE }, &[LATE_CLAIM, QUEUED_AGAIN]);
}

#[test]
fn two_turns_of_one_conversation_and_a_freeze() {
    let trouble = Trouble { freezes: 1, ..CALM };
    holds_and_sees(TurnModel { turns: 2, trouble, ..ONE }, &[LATE_CLAIM, QUEUED_AGAIN, ENDED_BY_ANOTHER]);
}

#[test]
fn two_conversations_and_a_kill() {
    let trouble = Trouble { kills: 1, ..CALM };
    holds_and_sees(TurnModel { turns: 2, rules: SEPARATE, trouble }, &[QUEUED_AGAIN, ENDED_BY_ANOTHER]);
}

#[test]
#[ignore = "minutes: `make model`"]
fn wide_two_conversations_and_a_freeze() {
    let trouble = Trouble { freezes: 1, ..CALM };
    holds_and_sees(TurnModel { turns: 2, rules: SEPARATE, trouble }, &[LATE_CLAIM, LATE_AFTER_END]);
}

#[test]
#[ignore = "minutes: `make model`"]
fn wide_two_wrong_verdicts_and_a_lost_answer() {
    let trouble = Trouble { wrong_verdicts: 2, lost_answers: 1, ..CALM };
    holds_and_sees(TurnModel { trouble, ..ONE }, &[LATE_CLAIM, LAST_ATTEMPT]);
}
