//! The store: all SQL, and the doorbell. The only module that imports `sqlx`.
//!
//! Refuses client round trips inside a transaction. Each call is one statement or one SQL function, so a process that
//! is frozen in the middle blocks the other replicas for no longer than its statement takes.
//!
//! | folder | what |
//! |---|---|
//! | `records` | plain data: the parameters and results of statements |
//! | `pool` | connections: login, TLS, session settings, reachability of Postgres |
//! | `live` | in-memory state between two polls: subscriptions ([`wake_ups`]), commits seen, batches ([`accept_batch`], [`group_commit`]) |
//! | `tables` | the statements, one file per table |
//! | `upkeep` | migrations, partitions, retention sweeps, and the checks for operators |
//! | `dev` | fixtures and counters for measurements |
//!
//! [`Store`] (`handle`) is a handle over plain parts; `open` makes a store. No two files import each other, not even
//! indirectly.
//!
//! Lock order: rows of one kind by their ids; kinds in the order idempotency keys, in-flight rows, conversations, turns
//! (`docs/PROTOCOL.md`).
//!
//! Every statement has a deadline. A statement that failed or timed out may or may not be committed. A caller that
//! retries sends the identical statement; a repeat has no further effect.

#[cfg(feature = "dev")]
mod dev;
pub mod error;
mod handle;
mod live;
mod open;
mod pool;
mod records;
mod tables;
mod upkeep;

#[cfg(feature = "dev")]
pub use self::dev::{fixtures, gauges, history, limits};
pub use self::{
    error::StoreError,
    handle::Store,
    live::{
        accept_batch, batch_reader, conversation_subscriptions, group_commit, notify_listener, notify_sender,
        poller, queue_hints, ring, rings, seen_commits, subscriptions, wake_ups,
    },
    pool::{denial, schema},
    records::{assignment, word},
    tables::{
        accept, adoption, agents, beat, blockers, claim, closing, commands, conversations, events, inflight,
        lists, pages, past, remote_turns, remote_workers, replicas, rewound, turns, worker_tokens, workers,
    },
    upkeep::{doctor, migrate, partitions, sweep, verify},
};

pub(crate) use self::error::warn_of;
