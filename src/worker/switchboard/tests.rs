use std::{pin::pin, task::Poll};

use futures_util::poll;
use uuid::Uuid;

use super::{super::line::Line, *};
use crate::{agent::AgentSpec, halves::Cut, units::Size};

fn agent(room: u32) -> Agent {
    let spec = AgentSpec::process(vec!["true".to_owned()]);
    let spec = AgentSpec { scope: crate::agent::Scope::Shared, max_concurrent_turns: Some(room), ..spec };
    Agent::new("a", 1, spec)
}

fn turn(n: u128) -> TurnId {
    TurnId(Uuid::from_u128(n))
}

fn delta(n: u128, text: &str) -> Heard {
    let delta = Message::Delta { text: text.to_owned(), cut: Cut::default() };
    Heard::Message(FromWorker { turn_id: Some(turn(n)), message: delta })
}

fn exit() -> Exit {
    Exit::new(None, Size::mib(1), 1)
}

/// A worker with room for `room`, and the lines of turns 0 and 1.
fn pair(room: u32) -> (Switchboard, Extension, Extension) {
    let (switchboard, first) = Switchboard::new(WorkerId(Uuid::nil()), &agent(room), turn(0));
    let second = switchboard.connect(turn(1)).unwrap();
    (switchboard, first.served(), second.served())
}

#[test]
fn a_worker_takes_as_many_turns_as_it_has_room_for() {
    let (switchboard, mut first, _second) = pair(2);
    assert!(switchboard.connect(turn(2)).is_none());
    Line::Shared(&mut first).hang_up(true);
    let third = switchboard.connect(turn(2));
    assert!(third.is_some(), "there is room from a turn's end on");
    assert!(switchboard.connect(turn(3)).is_none());
}

#[test]
fn no_turn_comes_to_a_worker_twice() {
    let (switchboard, first, second) = pair(9);
    assert!(switchboard.connect(turn(1)).is_none(), "it is here");
    drop((first, second));
    assert!(switchboard.connect(turn(1)).is_none(), "it was here");
    assert!(switchboard.connect(turn(2)).is_some());
}

#[test]
fn a_turn_that_never_reached_the_worker_may_come_to_it_yet() {
    let (switchboard, _first, _second) = pair(9);
    drop(switchboard.connect(turn(2)).unwrap());
    assert!(switchboard.connect(turn(2)).is_some());
}

#[test]
fn a_worker_that_may_go_on_with_a_turn_gets_no_other() {
    let (switchboard, mut first, second) = pair(9);
    Line::Shared(&mut first).hang_up(false);
    assert!(switchboard.connect(turn(2)).is_none());
    assert_eq!(switchboard.outlook(), Outlook::Busy, "the others go on");
    drop(second);
    assert_eq!(switchboard.outlook(), Outlook::Over(Standing::Condemned));
}

#[test]
fn a_worker_is_idle_from_its_last_turns_end_on() {
    let (switchboard, first, second) = pair(9);
    drop(first);
    assert_eq!(switchboard.outlook(), Outlook::Busy);
    let before = Instant::now();
    drop(second);
    assert!(matches!(switchboard.outlook(), Outlook::Idle(since) if since >= before));
    let third = switchboard.connect(turn(2));
    assert!(!switchboard.retire_if_idle(), "a turn has come");
    drop(third);
    assert!(switchboard.retire_if_idle() && switchboard.connect(turn(3)).is_none());
    assert_eq!(switchboard.outlook(), Outlook::Over(Standing::Retired));
}

#[tokio::test]
async fn what_is_said_goes_to_the_turn_that_it_names() {
    let (switchboard, mut first, mut second) = pair(9);
    switchboard.put_through(turn(1), delta(1, "b")).await.unwrap();
    switchboard.put_through(turn(0), delta(0, "a")).await.unwrap();
    assert_eq!(Line::Shared(&mut first).recv().await, delta(0, "a"));
    assert_eq!(Line::Shared(&mut second).recv().await, delta(1, "b"));
    assert_eq!(switchboard.put_through(turn(7), delta(7, "?")).await, Err(Fault::OtherTurn));
    drop(first);
    assert_eq!(switchboard.put_through(turn(0), delta(0, "late")).await, Ok(()));
}

#[tokio::test]
async fn the_end_is_told_after_everything_that_was_said() {
    let (switchboard, mut first, mut second) = pair(9);
    for n in 0..UNHEARD_MAX {
        switchboard.put_through(turn(0), delta(0, &n.to_string())).await.unwrap();
    }
    assert_eq!(switchboard.close(Stage::Closed), 2);
    switchboard.enter(Stage::Exited(exit()));
    let (mut first, mut second) = (Line::Shared(&mut first), Line::Shared(&mut second));
    for n in 0..UNHEARD_MAX {
        assert_eq!(first.recv().await, delta(0, &n.to_string()));
    }
    assert_eq!(first.recv().await, Heard::Exited(exit()));
    assert_eq!(second.recv().await, Heard::Exited(exit()));
}

#[tokio::test]
async fn an_output_that_closes_is_told_before_the_exit() {
    let (switchboard, mut first, _second) = pair(9);
    switchboard.close(Stage::Closed);
    let mut first = Line::Shared(&mut first);
    assert_eq!(first.recv().await, Heard::Closed);
    assert_eq!(poll!(pin!(first.recv())), Poll::Pending);
    switchboard.enter(Stage::Exited(exit()));
    assert_eq!(first.recv().await, Heard::Exited(exit()));
}

#[tokio::test]
async fn what_ended_the_turns_is_not_forgotten_when_the_process_ends() {
    let (switchboard, mut first, _second) = pair(9);
    let error = ProtocolError { fault: Fault::NoTurn, excerpt: String::new(), turn_id: None };
    switchboard.close(Stage::Faulty(error.clone()));
    switchboard.close(Stage::Exited(exit()));
    assert_eq!(Line::Shared(&mut first).recv().await, Heard::Protocol(error));
}

#[tokio::test]
async fn a_turn_that_cannot_be_written_holds_up_the_pipe_and_not_the_others_clocks() {
    let (switchboard, mut first, mut second) = pair(9);
    for _ in 0..UNHEARD_MAX {
        switchboard.put_through(turn(0), delta(0, "x")).await.unwrap();
    }
    let (mut first, second) = (Line::Shared(&mut first), Line::Shared(&mut second));
    assert_eq!(second.waited(), Duration::ZERO);
    {
        let mut full = pin!(switchboard.put_through(turn(0), delta(0, "one more")));
        assert_eq!(poll!(&mut full), Poll::Pending, "it is not kept beyond its bound");
        let early = second.waited();
        assert!(!early.is_zero() && early < second.waited(), "while it waits");
        first.recv().await;
        assert_eq!(full.await, Ok(()));
    }
    assert_eq!(second.waited(), second.waited(), "it waits no more");
}

#[tokio::test]
async fn a_turn_that_ends_holds_up_nobody() {
    let (switchboard, mut first, _second) = pair(9);
    for _ in 0..UNHEARD_MAX {
        switchboard.put_through(turn(0), delta(0, "x")).await.unwrap();
    }
    let mut full = pin!(switchboard.put_through(turn(0), delta(0, "one more")));
    assert_eq!(poll!(&mut full), Poll::Pending);
    Line::Shared(&mut first).hang_up(false);
    assert_eq!(full.await, Ok(()));
}

#[tokio::test]
async fn a_kill_does_not_wait_for_a_turn_that_cannot_be_written() {
    let (switchboard, _first, _second) = pair(9);
    for _ in 0..UNHEARD_MAX {
        switchboard.put_through(turn(0), delta(0, "x")).await.unwrap();
    }
    let mut full = pin!(switchboard.put_through(turn(0), delta(0, "one more")));
    assert_eq!(poll!(&mut full), Poll::Pending);
    switchboard.kill();
    assert_eq!(full.await, Ok(()));
}

#[tokio::test]
async fn a_claim_keeps_half_of_the_room_and_gives_it_back() {
    let (switchboard, _first, _second) = pair(9);
    let seats = switchboard.seats(64).unwrap();
    assert_eq!(seats.describe().count, 3, "of seven that were free");
    assert_eq!(switchboard.seats(64).unwrap().describe().count, 2, "of four");
    let lines: Vec<_> = (10..14).filter_map(|n| switchboard.connect(turn(n))).collect();
    assert_eq!(lines.len(), 4, "what is kept by one is no room for another");
    assert!(switchboard.connect(turn(14)).is_none());
    drop(seats);
    assert!(switchboard.connect(turn(14)).is_some());
}

#[tokio::test]
async fn a_seat_becomes_a_line_while_the_worker_takes_turns() {
    let (switchboard, _first, _second) = pair(9);
    switchboard.enter(Stage::Ready);
    let mut seats = switchboard.seats(64).unwrap();
    assert!(seats.take(turn(10)).is_some());
    assert!(seats.take(turn(0)).is_none(), "a turn that it serves already");
    switchboard.retire(Standing::Retired);
    assert!(seats.take(turn(11)).is_none() && switchboard.seats(64).is_none());
}
