//! What happens to a turn if the client that waits for its answer disconnects.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::{api::gateway::Gateway, id::TurnId, task::TaskKind, turn::CancelledBy};

/// How long the cancel for a disconnected client is retried.
pub(super) const CANCEL_WITHIN: Duration = Duration::from_secs(30);

/// What happens to a turn if the client that waits for its answer disconnects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDisconnect {
    /// The turn goes on; the client can reconnect with its cursor.
    #[default]
    Continue,
    /// The turn is cancelled.
    Cancel,
}

/// Cancels the turn when dropped before the answer was complete, that is, when the client has disconnected. Does
/// nothing while this replica drains, since its clients reconnect to another one.
#[derive(Debug)]
pub struct CancelOnDrop(Option<Box<(Gateway, TurnId)>>);

impl CancelOnDrop {
    /// A guard of the turn, if the client asked for `on_disconnect: cancel`.
    pub fn new(gateway: &Gateway, turn: TurnId, on_disconnect: OnDisconnect) -> CancelOnDrop {
        CancelOnDrop((on_disconnect == OnDisconnect::Cancel).then(|| Box::new((gateway.clone(), turn))))
    }

    /// A guard that does nothing.
    pub fn none() -> CancelOnDrop {
        CancelOnDrop(None)
    }

    /// Call this when the answer is complete, or when the client will ask for it again.
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
            supervisor.spawn(TaskKind::Client, "disconnects", async move {
                cancel_for_disconnect(&gateway, turn).await;
            });
        }
    }
}

/// Cancels the turn of a disconnected client. Retries while Postgres is unreachable.
pub(super) async fn cancel_for_disconnect(gateway: &Gateway, turn: TurnId) {
    let until = Instant::now() + CANCEL_WITHIN;
    let cancel = async {
        loop {
            match gateway.store.cancel(&[turn], CancelledBy::Disconnect).await {
                Err(why) if why.is_away() && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(rand::random_range(100..300))).await;
                }
                Err(why) => {
                    return tracing::error!(
                        %turn, %why,
                        "the turn goes on: its client disconnected, and the cancel failed"
                    );
                }
                Ok(_) => return tracing::info!(%turn, "the turn is cancelled: its client disconnected"),
            }
        }
    };
    gateway.supervisor.hard().run_until_cancelled(cancel).await;
}
