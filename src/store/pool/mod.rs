//! Connections to Postgres: login, session settings, the pool, and whether Postgres is reachable.

pub(in crate::store) mod conn;
pub(in crate::store) mod connections;
pub mod denial;
pub(in crate::store) mod gate;
pub(in crate::store) mod login;
mod outage;
pub(in crate::store) mod reachability;
pub(in crate::store) mod row_query;
pub mod schema;
pub(in crate::store) mod session;
mod tls;
