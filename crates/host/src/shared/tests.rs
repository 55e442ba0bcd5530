use std::{pin::pin, task::Poll};

use futures_util::poll;
use uuid::Uuid;

use super::{super::lane::Lane, *};
use crate::{link::Link as _, process::Launch};
use lastword_words::{halves::Cut, units::Size};

fn program(turns: usize) -> Program {
    Program {
        agent: "a".to_owned(),
        revision: 1,
        launch: Launch::new(vec!["true".to_owned()], "/nowhere".into()),
        turns,
        startup: Duration::ZERO,
        idle_ttl: Duration::ZERO,
        is_guarded: false,
    }
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

fn connect(router: &TurnRouter, turn: TurnId) -> Option<Lane> {
    router.connect(turn).map(Lane::new)
}

/// A worker with room for `room`, and the lines of turns 0 and 1.
fn pair(room: usize) -> (TurnRouter, Lane, Lane) {
    let (router, first) = TurnRouter::new(WorkerId(Uuid::nil()), program(room), turn(0), Arc::default());
    let second = connect(&router, turn(1)).unwrap();
    (router, Lane::new(first).served(), second.served())
}

#[test]
fn a_worker_takes_as_many_turns_as_it_has_room_for() {
    let (router, mut first, _second) = pair(2);
    assert!(connect(&router, turn(2)).is_none());
    first.hang_up(true);
    let third = connect(&router, turn(2));
    assert!(third.is_some(), "there is room from a turn's end on");
    assert!(connect(&router, turn(3)).is_none());
}

#[test]
fn no_turn_comes_to_a_worker_twice() {
    let (router, first, second) = pair(9);
    assert!(connect(&router, turn(1)).is_none(), "it is here");
    drop((first, second));
    assert!(connect(&router, turn(1)).is_none(), "it was here");
    assert!(connect(&router, turn(2)).is_some());
}

#[test]
fn a_turn_that_never_reached_the_worker_may_come_to_it_yet() {
    let (router, _first, _second) = pair(9);
    drop(connect(&router, turn(2)).unwrap());
    assert!(connect(&router, turn(2)).is_some());
}

#[test]
fn a_worker_that_may_go_on_with_a_turn_gets_no_other() {
    let (router, mut first, second) = pair(9);
    first.hang_up(false);
    assert!(connect(&router, turn(2)).is_none());
    assert_eq!(router.outlook(), WorkerOutlook::Busy, "the others go on");
    drop(second);
    assert_eq!(router.outlook(), WorkerOutlook::Over(Standing::Condemned));
}

#[test]
fn a_worker_is_idle_from_its_last_turns_end_on() {
    let (router, first, second) = pair(9);
    drop(first);
    assert_eq!(router.outlook(), WorkerOutlook::Busy);
    let before = Instant::now();
    drop(second);
    assert!(matches!(router.outlook(), WorkerOutlook::Idle(since) if since >= before));
    let third = connect(&router, turn(2));
    assert!(!router.retire_if_idle(), "a turn has come");
    drop(third);
    assert!(router.retire_if_idle() && connect(&router, turn(3)).is_none());
    assert_eq!(router.outlook(), WorkerOutlook::Over(Standing::Retired));
}

#[tokio::test]
async fn what_is_said_goes_to_the_turn_that_it_names() {
    let (router, mut first, mut second) = pair(9);
    router.put_through(turn(1), delta(1, "b")).await.unwrap();
    router.put_through(turn(0), delta(0, "a")).await.unwrap();
    assert_eq!(first.recv().await, delta(0, "a"));
    assert_eq!(second.recv().await, delta(1, "b"));
    assert_eq!(router.put_through(turn(7), delta(7, "?")).await, Err(Fault::OtherTurn));
    drop(first);
    assert_eq!(router.put_through(turn(0), delta(0, "late")).await, Ok(()));
}

#[tokio::test]
async fn the_end_is_told_after_everything_that_was_said() {
    let (router, mut first, mut second) = pair(9);
    for n in 0..UNHEARD_MAX {
        router.put_through(turn(0), delta(0, &n.to_string())).await.unwrap();
    }
    assert_eq!(router.close(Stage::Closed), 2);
    router.enter(Stage::Exited(exit()));
    for n in 0..UNHEARD_MAX {
        assert_eq!(first.recv().await, delta(0, &n.to_string()));
    }
    assert_eq!(first.recv().await, Heard::Exited(exit()));
    assert_eq!(second.recv().await, Heard::Exited(exit()));
}

#[tokio::test]
async fn an_output_that_closes_is_told_before_the_exit() {
    let (router, mut first, _second) = pair(9);
    router.close(Stage::Closed);
    assert_eq!(first.recv().await, Heard::Closed);
    assert_eq!(poll!(pin!(first.recv())), Poll::Pending);
    router.enter(Stage::Exited(exit()));
    assert_eq!(first.recv().await, Heard::Exited(exit()));
}

#[tokio::test]
async fn what_ended_the_turns_is_not_forgotten_when_the_process_ends() {
    let (router, mut first, _second) = pair(9);
    let error = ProtocolError { fault: Fault::NoTurn, excerpt: String::new(), turn_id: None };
    router.close(Stage::Faulty(error.clone()));
    router.close(Stage::Exited(exit()));
    assert_eq!(first.recv().await, Heard::Protocol(error));
}

#[tokio::test]
async fn a_turn_that_cannot_be_written_holds_up_the_pipe_and_not_the_others_clocks() {
    let (router, mut first, second) = pair(9);
    for _ in 0..UNHEARD_MAX {
        router.put_through(turn(0), delta(0, "x")).await.unwrap();
    }
    assert_eq!(second.waited(), Duration::ZERO);
    {
        let mut full = pin!(router.put_through(turn(0), delta(0, "one more")));
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
    let (router, mut first, _second) = pair(9);
    for _ in 0..UNHEARD_MAX {
        router.put_through(turn(0), delta(0, "x")).await.unwrap();
    }
    let mut full = pin!(router.put_through(turn(0), delta(0, "one more")));
    assert_eq!(poll!(&mut full), Poll::Pending);
    first.hang_up(false);
    assert_eq!(full.await, Ok(()));
}

#[tokio::test]
async fn a_kill_does_not_wait_for_a_turn_that_cannot_be_written() {
    let (router, _first, _second) = pair(9);
    for _ in 0..UNHEARD_MAX {
        router.put_through(turn(0), delta(0, "x")).await.unwrap();
    }
    let mut full = pin!(router.put_through(turn(0), delta(0, "one more")));
    assert_eq!(poll!(&mut full), Poll::Pending);
    router.kill();
    assert_eq!(full.await, Ok(()));
}

#[tokio::test]
async fn a_claim_keeps_half_of_the_room_and_gives_it_back() {
    let (router, _first, _second) = pair(9);
    let lanes = router.reserve(64).unwrap();
    assert_eq!(lanes.count(), 3, "of seven that were free");
    assert_eq!(router.reserve(64).unwrap().count(), 2, "of four");
    let others: Vec<_> = (10..14).filter_map(|n| connect(&router, turn(n))).collect();
    assert_eq!(others.len(), 4, "what is kept by one is no room for another");
    assert!(connect(&router, turn(14)).is_none());
    drop(lanes);
    assert!(connect(&router, turn(14)).is_some());
}

#[tokio::test]
async fn a_reserved_lane_becomes_one_while_the_worker_takes_turns() {
    let (router, _first, _second) = pair(9);
    router.enter(Stage::Ready);
    let mut lanes = router.reserve(64).unwrap();
    assert!(lanes.take(turn(10)).is_some());
    assert!(lanes.take(turn(0)).is_none(), "a turn that it serves already");
    router.retire(Standing::Retired);
    assert!(lanes.take(turn(11)).is_none() && router.reserve(64).is_none());
}
