//! `lastword`: a gateway for chat agents. **Every accepted turn gets exactly one last word**, which the client sees
//! on whichever replica it is connected to, whatever process dies in between.
//!
//! # The path of a turn
//!
//! ```text
//! POST /v1/turns
//!   api::accept ──► store::accept_batch        accepts that arrive together share a statement
//!                        ▼
//!   engine::intake ── store::accept            turn + in-flight row + event 0, one commit; claimed in it
//!           │            │ ring                while this replica has capacity: all other turns are
//!           │            ▼                     queued
//!           │ engine::dispatch ─ store::claim  heads of lines, SKIP LOCKED, epoch + 1
//!           ▼            ▼
//!   worker::route ─► host ──── a process        finds the turn's worker, and hears it
//!                        ▼
//!   worker::turn::run ── transcript             what a worker says becomes events
//!                        ▼
//!   store::group_commit ── append, finish      group commit of many turns, fenced by epoch
//!                        │ after the commit: shown to local readers, the others rung
//!                        ▼
//!   stream::tail ──► feed ──► render ──► api::sse ──► the client
//!
//!   engine::presence ─ store::beat             which replicas live; the verdict on a silent one
//!   engine::reap ─ store::closing              the last word for turns whose holder is gone,
//!                                              by any replica: same log, same ring
//! ```
//!
//! The API ([`api`]) and the [`engine`] never call each other; they meet in the store. The API hands a turn to be
//! accepted to the store, and everything after that goes through Postgres, even inside one process.
//!
//! `docs/WALKS.md` follows a turn, a verdict and a turn that moves to another replica, file by file.
//!
//! # Floors
//!
//! A file imports from lower floors only, and no import cycle exists. `tests/layers` checks both.
//!
//! | floor | modules |
//! |---|---|
//! | 6 | [`cli`]: wiring, processes |
//! | 5 | [`api`], [`console`]: the doors |
//! | 4 | [`engine`]: the passes |
//! | 3 | [`worker`]: run a turn · [`stream`]: watch a turn (strangers to each other) · [`rendezvous`]: remote workers and the engine |
//! | 2 | [`store`]: all SQL, the doorbell |
//! | 1 | [`config`] · [`descriptors`] · [`host`]: worker processes · [`telemetry`] · [`task`] |
//! | 0 | [`id`] · [`json`] · [`clock`] · [`event`] · [`frame`] · [`halves`] · [`turn`] · [`failure`] · [`agent`] · [`units`] · [`token`] · [`principal`] · [`secret`] · [`text`] · [`word`]: the words |
//!
//! Floor 0 is `crates/words`; [`host`], [`task`] and [`descriptors`] are `crates/host`, the part that a host of workers
//! shares with the gateway. Beside them: `crates/client` (requests to a gateway, and a turn followed to its last word),
//! `crates/devkit` (a private Postgres and child processes for development and
//! tests) and `crates/bench` (benchmarks, `docs/decisions/0035`).
//!
//! # What must always hold
//!
//! `docs/INVARIANTS.md` names each invariant, its keeper and the test that shows it. In short: the in-flight row
//! ([`store::inflight`]) is the obligation to answer. The row exists from acceptance to the last word; only its
//! deletion may write the last word; and every write on behalf of a worker names the epoch of its claim.

pub use lastword_host::{self as host, descriptors, task};
pub use lastword_words::{
    agent, clock, event, failure, frame, halves, id, json, principal, secret, text, token, turn, units, word,
    words,
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
