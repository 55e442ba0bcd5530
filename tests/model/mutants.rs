//! Each guard is needed: without it the protocol breaks a promise, and the checker finds how.

use super::{
    holds::{ONE, PLAIN, SAFE, SEPARATE, check},
    promises::{
        AT_MOST_ONCE, CLOCK_OF_HEADS, FENCED, NO_FALSE_CLOSE, NOTHING_OPEN, OBLIGATION, ONE_AT_A_TIME,
        ONE_LAST_WORD, THREE_ATTEMPTS, TWO_LOSSES,
    },
    steps::TurnModel,
    world::{Break, Trouble},
};

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
const FREEZE: Trouble = Trouble { freezes: 1, ..CALM };

#[track_caller]
fn breaks(guard: Break, promise: &'static str, mut model: TurnModel) {
    model.rules.broken = guard;
    check(model).finds(promise);
}

#[test]
fn an_accept_that_decides_before_its_lock() {
    breaks(Break::AcceptDecidesEarly, CLOCK_OF_HEADS, TurnModel { turns: 2, ..ONE });
}

#[test]
fn a_claim_of_any_turn() {
    breaks(Break::ClaimTakesAny, ONE_AT_A_TIME, TurnModel { turns: 2, ..ONE });
}

#[test]
fn a_start_without_the_epoch() {
    breaks(Break::StartUnfenced, AT_MOST_ONCE, TurnModel { trouble: FREEZE, ..ONE });
}

#[test]
fn a_first_byte_before_the_commit_of_running() {
    breaks(Break::FirstByteEarly, AT_MOST_ONCE, TurnModel { trouble: FREEZE, ..ONE });
}

#[test]
fn an_append_without_the_epoch() {
    breaks(Break::AppendUnfenced, FENCED, TurnModel { rules: SAFE, trouble: FREEZE, ..ONE });
}

#[test]
fn a_last_word_without_the_epoch() {
    breaks(Break::FinishUnfenced, FENCED, TurnModel { trouble: Trouble { crashes: 1, ..FREEZE }, ..ONE });
}

#[test]
fn a_last_word_that_leaves_the_row() {
    breaks(Break::FinishKeepsRow, OBLIGATION, ONE);
    breaks(Break::FinishKeepsRow, ONE_LAST_WORD, TurnModel { trouble: FREEZE, ..ONE });
}

#[test]
fn a_close_without_a_second_look() {
    breaks(Break::CloseDecidesEarly, AT_MOST_ONCE, TurnModel { trouble: FREEZE, ..ONE });
    let trouble = Trouble { wrong_verdicts: 1, ..CALM };
    breaks(Break::CloseDecidesEarly, NO_FALSE_CLOSE, TurnModel { trouble, ..ONE });
}

#[test]
fn a_close_pass_that_never_comes_again() {
    breaks(Break::CloseOncePerLoss, NOTHING_OPEN, TurnModel { trouble: FREEZE, ..ONE });
}

#[test]
fn a_close_pass_that_does_not_loop_is_only_slower() {
    let mut model = TurnModel { turns: 2, rules: SEPARATE, trouble: Trouble { kills: 1, ..CALM } };
    model.rules.broken = Break::CloseDoesNotLoop;
    check(model).holds();
}

#[test]
fn a_running_turn_that_is_queued_again() {
    breaks(Break::RequeueRunning, AT_MOST_ONCE, TurnModel { trouble: FREEZE, ..ONE });
}

#[test]
fn a_turn_called_untouched_that_its_worker_has() {
    let trouble = Trouble { crashes: 1, ..CALM };
    breaks(Break::UntouchedUnasked, AT_MOST_ONCE, TurnModel { trouble, ..ONE });
}

#[test]
fn a_claim_given_back_that_its_worker_has_had() {
    let trouble = Trouble { wrong_verdicts: 1, ..CALM };
    breaks(Break::AstrayUnasked, AT_MOST_ONCE, TurnModel { trouble, ..ONE });
}

#[test]
fn losses_that_nobody_asks_for() {
    let trouble = Trouble { wrong_verdicts: 2, ..CALM };
    breaks(Break::LossesUnasked, TWO_LOSSES, TurnModel { trouble, ..ONE });
    // With the question, the same world is fine.
    check(TurnModel { rules: PLAIN, trouble, ..ONE }).holds();
}

#[test]
fn attempts_that_nobody_counts() {
    let trouble = Trouble { lost_answers: 3, ..CALM };
    breaks(Break::AttemptsUncounted, THREE_ATTEMPTS, TurnModel { trouble, ..ONE });
    // With the count, the same world is fine.
    check(TurnModel { rules: PLAIN, trouble, ..ONE }).holds();
}
