//! Retain: makes the log's partitions ahead, drops old ones whole, sweeps what nobody asks for.

use std::time::Duration;

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::{store::StoreError, telemetry::metrics};

const PASS_EVERY: Duration = Duration::from_secs(600);
const AGAIN_SOON: Duration = Duration::from_secs(5);
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Keeps house until cancelled.
pub async fn retain_on(engine: Engine, until: CancellationToken) {
    loop {
        let wait = match pass(&engine).await {
            Ok(()) => PASS_EVERY,
            Err(why) => {
                tracing::warn!(%why, "housekeeping is tried again soon");
                AGAIN_SOON
            }
        };
        tokio::select! {
            () = until.cancelled() => return,
            () = tokio::time::sleep(wait.mul_f64(rand::random_range(0.9..1.1))) => {}
        }
    }
}

async fn pass(engine: &Engine) -> Result<(), StoreError> {
    engine.store.probe().await?;
    let made = engine.store.make_partitions().await?;
    let retain = TimeDelta::from_std(engine.retain).unwrap_or(TimeDelta::MAX);
    let keep_from = engine.store.clock().now().checked_sub_signed(retain);
    let dropped = match keep_from {
        Some(keep_from) => engine.store.drop_partitions(keep_from.date_naive()).await?,
        None => Vec::new(),
    };
    let swept = engine.store.sweep().await? + engine.store.sweep_remote().await?;
    tracing::debug!(made, dropped = dropped.len(), swept, "housekeeping");
    Ok(())
}

/// What must happen now and then, whatever Postgres does: workers' guards hear that this replica
/// lives, and histograms give back their memory.
pub async fn upkeep_on(engine: Engine, until: CancellationToken) {
    loop {
        tokio::select! {
            () = until.cancelled() => return,
            () = tokio::time::sleep(UPKEEP_EVERY.min(engine.postgres_away_max / 4)) => {}
        }
        engine.host.renew();
        metrics::upkeep();
    }
}
