//! How each measure is taken, and what it yields.
//!
//! Owns the choice of the act. An act leaves its site unchanged, as far as the next act could notice.

pub mod accept;
pub mod load;
mod reading;
pub mod standing;
pub mod stream;
pub mod work;

pub use self::reading::Reading;
use super::site::Site;

/// How a measure is taken.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    /// [`accept::accepted`]
    Accepted,
    /// [`accept::accept`]
    Accept(accept::AcceptWay),
    /// [`accept::first_event`]
    FirstEvent,
    /// [`load::turns`]
    Turns,
    /// [`load::drain`]
    Drain,
    /// [`stream::events`]
    Events(stream::StreamWay),
    /// [`load::durable`]
    Durable {
        /// As many streams as the sizes say; else eight.
        is_many: bool,
    },
    /// [`stream::lag`]
    Lag,
    /// [`stream::fan_out`]
    FanOut,
    /// [`load::rings`]
    Rings,
    /// [`standing::idle`]
    Idle,
    /// [`standing::heartbeats`]
    Heartbeats,
    /// [`standing::memory`]
    Memory,
    /// [`standing::idle_conversations`]
    IdleConversations,
    /// [`work::scale`]
    Scale,
    /// [`work::wal`]
    Wal,
    /// [`standing::start`]
    Start,
}

impl Act {
    /// Takes the measure once.
    pub async fn perform(self, site: &mut Site) -> anyhow::Result<Reading> {
        match self {
            Act::Accepted => accept::accepted(site).await,
            Act::Accept(way) => accept::accept(site, way).await,
            Act::FirstEvent => accept::first_event(site).await,
            Act::Turns => load::turns(site).await,
            Act::Drain => load::drain(site).await,
            Act::Events(way) => stream::events(site, way).await,
            Act::Durable { is_many } => load::durable(site, is_many).await,
            Act::Lag => stream::lag(site).await,
            Act::FanOut => stream::fan_out(site).await,
            Act::Rings => load::rings(site).await,
            Act::Idle => standing::idle(site).await,
            Act::Heartbeats => standing::heartbeats(site).await,
            Act::Memory => standing::memory(site).await,
            Act::IdleConversations => standing::idle_conversations(site).await,
            Act::Scale => work::scale(site).await,
            Act::Wal => work::wal(site).await,
            Act::Start => standing::start(site).await,
        }
    }
}
