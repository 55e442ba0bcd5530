//! Waits for turns with one long poll at a time, for as many as there is room for.
//!
//! Leaving is decided between two polls: a host that leaves during a poll could abandon a turn that was just
//! offered.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::{link::Route, state::HostState, words::OfferedTurns};
use crate::descriptors;

/// Duration of one long poll, in seconds.
const WAIT_S: u64 = 20;
/// Additional time for its answer.
const SLACK: Duration = Duration::from_secs(5);
/// Pause while this host lacks the resources to start a process.
const LACK_PAUSE: Duration = Duration::from_secs(1);

/// Takes turns until this host leaves.
pub async fn take_on(host: &HostState) {
    let mut routes = host.link.routes();
    loop {
        if host.is_leaving() {
            return;
        }
        if host.is_idle_for_too_long() {
            tracing::info!("idle for too long; leaving");
            return host.leave();
        }
        if host.is_retired() {
            return retire(host).await;
        }
        descriptors::look().await;
        if descriptors::shortage().is_some() || descriptors::starts() == 0 {
            // Turns may go to another host meanwhile.
            tokio::select! {
                () = tokio::time::sleep(LACK_PAUSE) => {}
                () = host.leaving() => {}
            }
            continue;
        }
        let room = host.concurrency.saturating_sub(host.turns.count()).min(descriptors::starts());
        if room == 0 {
            tokio::select! {
                () = host.turns.one_ended() => {}
                () = host.leaving() => {}
            }
            continue;
        }
        let route = tokio::select! {
            route = routes.wait_for(Option::is_some) => route.map(|route| route.clone()),
            () = host.leaving() => return,
        };
        let Ok(route) = route else { return };
        let Some(route) = route else { continue };
        let is_answered = tokio::select! {
            // Never cancelled by leaving: its offers are wanted, and the next beat reports that this host leaves.
            is_answered = poll(host, &route, room) => is_answered,
            // Turns offered at the former replica meanwhile go to another worker.
            _ = routes.changed() => continue,
        };
        if !is_answered {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(rand::random_range(100..300))) => {}
                _ = routes.changed() => {}
                () = host.leaving() => {}
            }
        }
    }
}

/// Leaves when the running turns have ended. No clock of a drain runs meanwhile.
async fn retire(host: &HostState) {
    tracing::info!(
        turns = host.turns.count(),
        "old enough to retire; leaving when the running turns have ended"
    );
    tokio::select! {
        () = host.turns.none_left() => {}
        () = host.leaving() => {}
    }
    host.leave();
}

/// One poll. Returns whether it was answered.
async fn poll(host: &HostState, route: &Route, room: usize) -> bool {
    let wait_s = match host.asks_until() {
        Some(until) => until.saturating_duration_since(Instant::now()).as_secs().clamp(1, WAIT_S),
        None => WAIT_S,
    };
    let body = json!({ "worker_id": route.registered.worker_id, "room": room, "wait_s": wait_s });
    let asked = host.link.call(route, "claims", &body, Duration::from_secs(wait_s) + SLACK);
    match asked.await {
        Ok(answer) if answer.status().as_u16() == 204 => true,
        Ok(answer) if answer.status().is_success() => match answer.json::<OfferedTurns>().await {
            Ok(offers) => {
                for offer in offers.turns {
                    host.accept(offer, &route.registered);
                }
                true
            }
            Err(why) => {
                tracing::warn!(%why, "an offer could not be read");
                false
            }
        },
        Ok(answer) => {
            tracing::debug!(status = %answer.status(), "the request for turns failed; trying again");
            false
        }
        Err(why) => {
            tracing::debug!(%why, "the request for turns failed; trying again");
            false
        }
    }
}
