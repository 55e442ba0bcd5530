//! Clients that go away: what becomes of the turn whose answer they waited for.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::{api::gateway::Gateway, id::TurnId, task::Kind, turn::CancelledBy};

/// How long a cancel for a client that has left is tried.
pub(super) const CANCEL_WITHIN: Duration = Duration::from_secs(30);

/// What becomes of a turn when the client that waits for its answer goes away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDisconnect {
    /// It goes on; the client comes back with its cursor.
    #[default]
    Continue,
    /// It is cancelled.
    Cancel,
}

/// Cancels a turn when it is dropped before its answer was whole: its client went away. Not so when
/// this replica lets its clients go; they come back elsewhere.
#[derive(Debug)]
pub struct CancelOnDrop(Option<Box<(Gateway, TurnId)>>);

impl CancelOnDrop {
    /// A guard of the turn, where its client asked for one.
    pub fn new(gateway: &Gateway, turn: TurnId, on_disconnect: OnDisconnect) -> CancelOnDrop {
        CancelOnDrop((on_disconnect == OnDisconnect::Cancel).then(|| Box::new((gateway.clone(), turn))))
    }

    /// A guard of nothing.
    pub fn none() -> CancelOnDrop {
        CancelOnDrop(None)
    }

    /// The answer was whole, or will be asked for again.
    pub fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some((gateway, turn)) = self.0.take().map(|left| *left)
            && !gateway.supervisor.soft().is_cancelled()
        {
            let supervisor = gateway.supervisor.clone();
            supervisor.spawn(Kind::Client, "disconnects", async move {
                cancel_for_disconnect(&gateway, turn).await;
            });
        }
    }
}

/// Cancels a turn whose client has left, also where Postgres is away for a while.
pub(super) async fn cancel_for_disconnect(gateway: &Gateway, turn: TurnId) {
    let until = Instant::now() + CANCEL_WITHIN;
    let cancel = async {
        loop {
            match gateway.store.cancel(&[turn], CancelledBy::Disconnect).await {
                Err(why) if why.is_away() && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(rand::random_range(100..300))).await;
                }
                Err(why) => return tracing::error!(%turn, %why, "a turn whose client left goes on"),
                Ok(_) => return tracing::info!(%turn, "cancelled: its client left"),
            }
        }
    };
    gateway.supervisor.hard().run_until_cancelled(cancel).await;
}
