//! Tokens that have ended: their remote workers are refused, and their turns end.
//!
//! A token is revoked at one replica while its worker may call any. So each replica polls for ended tokens every
//! 500 ms, without relying on the doorbell (I13).

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use super::shared::Engine;
use crate::{
    failure::Code,
    store::{StoreError, remote_workers::ExitReport, worker_tokens::ENDED},
    token::TokenHash,
};

/// Poll interval.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) async fn refuse_on(engine: Engine, until: CancellationToken) {
    let mut since = engine.store.clock().now();
    while until.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        match look(&engine, since).await {
            Ok(looked_at) => since = looked_at,
            // The next poll covers the missed time.
            Err(why) => tracing::debug!(%why, "ended worker tokens could not be read; trying again"),
        }
    }
}

/// One poll. Returns its time.
async fn look(engine: &Engine, since: DateTime<Utc>) -> Result<DateTime<Utc>, StoreError> {
    let (rendezvous, now) = (&engine.rendezvous, engine.store.clock().now());
    let sessions = rendezvous.sessions();
    // A worker without a session here cannot start one with an ended token.
    if sessions.is_empty() {
        return Ok(now);
    }
    if sessions.iter().any(|session| !session.is_let_in(now)) {
        engine.store.end_expired_worker_tokens().await?;
    }
    let ended: HashSet<TokenHash> = engine.store.worker_tokens_ended(since).await?.into_iter().collect();
    for session in sessions.iter().filter(|session| ended.contains(&session.token_hash)) {
        let worker = session.worker.id;
        tracing::info!(worker_id = %worker, "a remote worker's token has ended; the worker is dismissed");
        session.refuse();
        rendezvous.dismiss(session);
        for line in rendezvous.lines().iter().filter(|line| line.worker == worker) {
            line.report_exit(ExitReport { code: Code::WorkerLost, message: ENDED.to_owned(), detail: None });
        }
    }
    Ok(now)
}
