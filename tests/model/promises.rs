//! What must hold in every state of the turn model, and what must be reachable.
//!
//! The names begin with the invariant of `docs/INVARIANTS.md` that they check.

use stateright::{Model, Property};

use super::{
    steps::TurnModel,
    world::{ATTEMPTS, Condition, Event, Holder, Kind, LOSSES, Phase, Statement, Turn, World, Wrong},
};

pub const ONE_LAST_WORD: &str = "I2 one last word";
pub const OBLIGATION: &str = "I2 the row is there until the last word";
pub const NOTHING_AFTER: &str = "I3 nothing after the last word";
pub const NO_GAP: &str = "I4 no gap";
pub const FENCED: &str = "I5 fenced";
pub const CLOCK_OF_HEADS: &str = "I6 the queue clock runs for heads of lines only";
pub const NOTHING_OPEN: &str = "I6 where nothing can happen any more, nothing is open";
pub const NO_FALSE_CLOSE: &str = "I8 no turn within its deadline is closed while its holder lives";
pub const ONE_AT_A_TIME: &str = "I9 one at a time, in order";
pub const AT_MOST_ONCE: &str = "I10 at most once";
pub const THREE_ATTEMPTS: &str = "I10 three attempts";
pub const TWO_LOSSES: &str = "I10 not on a third after two were lost";

pub const ENDED_BY_ANOTHER: &str = "a turn is ended by another replica";
pub const LATE_WRITER: &str = "a late write meets a later epoch";
pub const LATE_AFTER_END: &str = "a late write meets the last word";
pub const LATE_CLAIM: &str = "a claim is committed across a verdict";
pub const QUEUED_AGAIN: &str = "a turn is run again elsewhere";
pub const LAST_ATTEMPT: &str = "a turn uses up its attempts";

/// The promises of this model.
pub fn all() -> Vec<Property<TurnModel>> {
    vec![
        always(ONE_LAST_WORD, |_, world| world.turns.iter().all(|turn| last_words(turn).count() <= 1)),
        always(OBLIGATION, |_, world| {
            world.turns.iter().filter(|turn| !turn.log.is_empty()).all(|turn| {
                let is_told = last_words(turn).count() > 0;
                turn.row.is_some() != is_told && turn.is_ended == is_told
            })
        }),
        always(NOTHING_AFTER, |_, world| {
            world.turns.iter().all(|turn| last_words(turn).all(|last| Some(last) == turn.log.last()))
        }),
        always(NO_GAP, |_, world| {
            world.turns.iter().all(|turn| (0..).zip(&turn.log).all(|(seq, event)| event.seq == seq))
        }),
        always(FENCED, |_, world| {
            let is_ordered = |turn: &Turn| turn.log.is_sorted_by_key(|event: &Event| event.epoch);
            world.wrong != Some(Wrong::Unfenced) && world.turns.iter().all(is_ordered)
        }),
        always(CLOCK_OF_HEADS, |model, world| {
            (0..).zip(&world.turns).all(|(n, turn)| {
                !turn.row.is_some_and(|row| row.is_at_head) || !model.rules.is_behind(world, n)
            })
        }),
        always(NOTHING_OPEN, |model, world| {
            let mut steps = Vec::new();
            if world.air.is_empty() && world.turns.iter().any(|turn| turn.row.is_some()) {
                model.actions(world, &mut steps);
                return !steps.is_empty();
            }
            true
        }),
        always(NO_FALSE_CLOSE, |_, world| world.wrong != Some(Wrong::ClosedAlive)),
        always(ONE_AT_A_TIME, |model, world| {
            (0..).zip(&world.turns).all(|(n, turn)| !is_claimed(turn) || !model.rules.is_behind(world, n))
        }),
        always(AT_MOST_ONCE, |model, world| {
            world.turns.iter().all(|turn| {
                // Agents that say so may see a turn again, as long as it has said nothing.
                if model.rules.is_retry_safe { !has_started_after_words(turn) } else { turn.received <= 1 }
            })
        }),
        always(THREE_ATTEMPTS, |_, world| {
            world.turns.iter().all(|turn| turn.row.is_none_or(|row| row.epoch <= ATTEMPTS))
        }),
        always(TWO_LOSSES, |_, world| {
            world.turns.iter().all(|turn| turn.row.is_none_or(|row| row.losses < LOSSES))
        }),
        sometimes(ENDED_BY_ANOTHER, |_, world| {
            world.turns.iter().any(|turn| {
                let starter = turn.log.iter().rfind(|event| event.kind == Kind::Started);
                last_words(turn).any(|last| starter.is_some_and(|started| started.by != last.by))
            })
        }),
        sometimes(LATE_WRITER, |_, world| {
            late_writes(world).any(|(turn, epoch)| world.turn(turn).row.is_some_and(|row| row.epoch > epoch))
        }),
        sometimes(LATE_AFTER_END, |_, world| late_writes(world).any(|(turn, _)| world.turn(turn).is_ended)),
        sometimes(LATE_CLAIM, |_, world| {
            world.turns.iter().any(|turn| {
                turn.row.is_some_and(|row| match row.holder {
                    Holder::Of(id) => {
                        let process = &world.processes[usize::from(id.process)];
                        world.is_gone(row.holder)
                            && process.boot > id.boot
                            && process.condition == Condition::Alive
                    }
                    _ => false,
                })
            })
        }),
        sometimes(QUEUED_AGAIN, |_, world| {
            world
                .turns
                .iter()
                .any(|turn| turn.row.is_some_and(|row| row.phase == Phase::Running && row.epoch > 1))
        }),
        sometimes(LAST_ATTEMPT, |_, world| {
            world.turns.iter().any(|turn| last_words(turn).any(|last| last.epoch == ATTEMPTS))
        }),
    ]
}

type Claim = fn(&TurnModel, &World) -> bool;

fn always(name: &'static str, condition: Claim) -> Property<TurnModel> {
    Property::always(name, condition)
}

fn sometimes(name: &'static str, condition: Claim) -> Property<TurnModel> {
    Property::sometimes(name, condition)
}

fn last_words(turn: &Turn) -> impl Iterator<Item = &Event> {
    turn.log.iter().filter(|event| event.kind == Kind::Last)
}

fn is_claimed(turn: &Turn) -> bool {
    turn.row.is_some_and(|row| row.phase != Phase::Queued)
}

fn has_started_after_words(turn: &Turn) -> bool {
    let said = turn.log.iter().position(|event| event.kind == Kind::Said);
    said.is_some_and(|at| turn.log[at..].iter().any(|event| event.kind == Kind::Started))
}

/// Appends and last words on their way from somebody who is gone.
fn late_writes(world: &World) -> impl Iterator<Item = (u8, u8)> {
    world.air.iter().filter_map(|statement| match *statement {
        Statement::Append { by, turn, epoch, .. } | Statement::Finish { by, turn, epoch, .. } => {
            world.is_gone(Holder::Of(by)).then_some((turn, epoch))
        }
        _ => None,
    })
}
