//! `lastword`: a gateway for chat agents in which **every accepted turn gets exactly one last word**,
//! seen by the client on whichever replica it is connected to, whatever dies in between.
//!
//! # The way of a turn
//!
//! ```text
//! POST /v1/turns
//!   api::accept ──► store::accept_batch        those of one moment go together
//!                        ▼
//!   engine::intake ── store::accept            turn + in-flight row + event 0, one commit; claimed in it
//!                        │ ring                where there is room here: the rest is
//!                        ▼                     queued
//!   engine::dispatch ─ store::claim            heads of lines, SKIP LOCKED, epoch + 1
//!                        ▼
//!   worker::route ─► host ──── a process        finds its worker, and hears it
//!                        ▼
//!   worker::turn::run ── transcript             what a worker says becomes events
//!                        ▼
//!   store::group_commit ── append, finish      group commit of many turns, fenced by epoch
//!                        │ after the commit: shown to local readers, the others rung
//!                        ▼
//!   stream::tail ──► stream::render ──► api::sse ──► the client
//!
//!   engine::presence ─ store::beat             who lives; the verdict on who does not
//!   engine::reap ─ store::closing              the last word for turns whose holder is gone,
//!                                              by any replica: same log, same ring
//! ```
//!
//! The doors ([`api`]) and the [`engine`] never call each other: they meet in the store. What is to be accepted
//! is handed in there; everything after that goes through Postgres, even inside one process.
//!
//! # Floors
//!
//! A file imports from lower floors only, and no circle ties files to each other; `tests/layers` holds the house to it.
//!
//! | floor | modules |
//! |---|---|
//! | 6 | [`cli`]: wiring, processes |
//! | 5 | [`api`], [`console`]: the doors |
//! | 4 | [`engine`]: the passes |
//! | 3 | [`worker`]: run a turn · [`stream`]: watch a turn (strangers to each other) · [`rendezvous`]: remote workers and the engine |
//! | 2 | [`store`]: all SQL, the doorbell |
//! | 1 | [`config`] · [`descriptors`] · [`host`]: worker processes · [`telemetry`] · [`task`] |
//! | 0 | [`id`] · [`json`] · [`clock`] · [`event`] · [`frame`] · [`halves`] · [`turn`] · [`failure`] · [`agent`] · [`units`] · [`token`] · [`principal`] · [`secret`] · [`text`]: the words |
//!
//! Floor 0 is `crates/words`, and [`host`], [`task`] and [`descriptors`] are `crates/host`: what a host of workers needs that is
//! no gateway. Beside them: `crates/devkit`, a private Postgres and child processes for development and tests, and
//! `crates/bench`, which measures (`docs/decisions/0035`).
//!
//! # What must always hold
//!
//! `docs/INVARIANTS.md` names each invariant, its keeper and the test that shows it. In short: the
//! in-flight row ([`store::inflight`]) is the obligation to answer. It exists from acceptance to the
//! last word, only its deletion may write the last word, and every write on behalf of a worker
//! names the epoch that it was claimed with.

pub use lastword_host::{self as host, descriptors, task};
pub use lastword_words::{
    agent, clock, event, failure, frame, halves, id, json, principal, secret, text, token, turn, units,
};

pub mod api;
pub mod cli;
pub mod config;
pub mod console;
pub mod engine;
pub mod rendezvous;
pub mod store;
pub mod stream;
pub mod telemetry;
pub mod worker;
