//! The store: all SQL, and the doorbell. The only place that imports `sqlx`.
//!
//! Refuses client round trips inside a transaction: each call here is one statement or one SQL function, so a process
//! that freezes in the middle hides nothing from the others for longer than its statement takes.
//!
//! | folder | what |
//! |---|---|
//! | `records` | plain data that statements take and give |
//! | `pool` | connections: login, TLS, sessions, whether Postgres is reached |
//! | `live` | what this process knows between two looks: who waits for what ([`wake_ups`]), what was seen committed, what goes together in one commit ([`accept_batch`], [`group_commit`]) |
//! | `tables` | the statements, one file a table |
//! | `upkeep` | migrations, partitions, sweeps, and what operators ask |
//! | `dev` | what measurements need |
//!
//! [`Store`] (`handle`) is a handle over plain parts; `open` makes one. No two files here import each other, however far
//! around.
//!
//! One order of locks: rows of one kind by their ids; keys, then in-flight rows, then conversations
//! (`docs/PROTOCOL.md`).
//!
//! Every statement has a deadline. One that fails or is given up on may or may not have been
//! committed; callers that repeat do so with the identical statement, which is harmless.

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
    records::assignment,
    tables::{
        accept, adoption, agents, beat, blockers, claim, closing, commands, conversations, events, inflight,
        lists, pages, past, remote_turns, remote_workers, replicas, rewound, turns, worker_tokens, workers,
    },
    upkeep::{doctor, migrate, partitions, sweep, verify},
};

pub(crate) use self::error::warn_of;
