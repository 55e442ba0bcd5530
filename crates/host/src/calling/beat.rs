//! The beat: proves to the gateway that this host lives, brings orders, and decides which replica is called.
//!
//! ```text
//! no route ──register──► calling ──beat──► calling
//!    ▲                      │ should_move: register elsewhere first, then let go
//!    └──── no answer ───────┘
//! ```
//!
//! Keeps I11: a turn that the gateway calls over, and every turn after too long without an answer, is ended here.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    error::CallingError,
    link::{NoRoute, Route},
    state::HostState,
    words::BeatReply,
};
use lastword_words::agent::Scope;

/// How long the gateway may hold a beat open (long poll).
const WAIT: Duration = Duration::from_secs(1);
/// Additional time for its answer.
const SLACK: Duration = Duration::from_secs(2);
/// Pause between two searches for another replica while the present one should be left.
const MOVE_EVERY: Duration = Duration::from_millis(500);
/// Without an answer for this long all turns are given up: the gateway has done the same by then.
const AWAY_MAX: Duration = Duration::from_secs(60);
/// While no replica can be reached, a log line says so this often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The result of a beat.
enum BeatHeard {
    Beat(BeatReply),
    /// The replica does not know this host any more.
    Unknown,
    Nothing(String),
}

/// Beats until this host has left, or is refused.
pub async fn keep(host: &HostState) -> Result<(), CallingError> {
    let mut at = Beating { host, next: 0, route: None, heard_at: Instant::now(), told_at: None };
    loop {
        let Some(route) = at.route.clone() else {
            if host.has_left() {
                return Ok(());
            }
            at.find().await?;
            continue;
        };
        let (is_leaving, is_last) = (host.is_leaving(), host.has_left());
        let heard = tokio::select! {
            heard = at.beat(&route, is_leaving) => heard,
            // Leaving is reported at once.
            () = host.leaving(), if !is_leaving => continue,
            () = host.left.cancelled(), if !is_last => continue,
        };
        match heard {
            _ if is_last => return Ok(()),
            BeatHeard::Beat(beat) => at.heed(&route, beat).await,
            BeatHeard::Unknown => at.lose(&route, route.found_by),
            BeatHeard::Nothing(why) => {
                tracing::warn!(gateway = route.base, why, "the replica does not answer; trying another");
                at.lose(&route, route.found_by + 1);
            }
        }
    }
}

struct Beating<'a> {
    host: &'a HostState,
    /// The next URL to try.
    next: usize,
    route: Option<Route>,
    /// When the gateway last answered.
    heard_at: Instant,
    /// When the log was last told that no replica can be reached.
    told_at: Option<Instant>,
}

impl Beating<'_> {
    /// Registers with a replica; tries each URL once, then pauses.
    async fn find(&mut self) -> Result<(), CallingError> {
        let link = &self.host.link;
        let mut unreachable = String::new();
        for _ in 0..link.urls() {
            match link.register(self.next).await {
                Ok(route) => {
                    self.take(route);
                    return Ok(());
                }
                Err(NoRoute::Refused(problem)) => return Err(CallingError::Refused(problem)),
                Err(NoRoute::Unreachable(why)) => {
                    tracing::debug!(why, "a replica cannot be reached");
                    self.next += 1;
                    unreachable = why;
                }
            }
        }
        if self.told_at.is_none_or(|at| at.elapsed() > TOLD_EVERY) {
            tracing::warn!(
                why = unreachable,
                "the gateway cannot be reached by any of its URLs; trying again"
            );
            self.told_at = Some(Instant::now());
        }
        if self.heard_at.elapsed() > AWAY_MAX {
            self.host.turns.end_all();
        }
        sleep(Duration::from_millis(rand::random_range(50..250))).await;
        Ok(())
    }

    fn take(&mut self, route: Route) {
        tracing::info!(
            gateway = route.base, worker_id = %route.registered.worker_id,
            "registered with the gateway"
        );
        self.next = route.found_by;
        self.told_at = None;
        self.heard_at = Instant::now();
        self.host.link.set_route(Some(route.clone()));
        self.route = Some(route);
    }

    fn lose(&mut self, route: &Route, next: usize) {
        // If the lost address was the replica's own, the configured URL is tried first.
        self.next = next;
        self.route = None;
        self.host.link.note_misleading_unless_given(&route.base);
        self.host.link.set_route(None);
    }

    async fn beat(&mut self, route: &Route, is_leaving: bool) -> BeatHeard {
        let mut body = json!({
            "worker_id": route.registered.worker_id, "turns": self.host.turns.named(),
            "wait_ms": WAIT.as_millis(), "is_leaving": is_leaving,
        });
        // A conversation's own process waits for no other turn, and older gateways do not accept the field.
        if route.registered.hears_waits && route.registered.scope == Scope::Shared {
            let waited = self.host.workers.waited();
            body["waited_ms"] = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX).into();
        }
        let asked = self.host.link.call(route, "beat", &body, WAIT + SLACK);
        match asked.await {
            Ok(answer) if answer.status().is_success() => match answer.json().await {
                Ok(beat) => {
                    self.heard_at = Instant::now();
                    BeatHeard::Beat(beat)
                }
                Err(why) => BeatHeard::Nothing(why.to_string()),
            },
            Ok(answer) if matches!(answer.status().as_u16(), 401 | 404) => BeatHeard::Unknown,
            Ok(answer) => BeatHeard::Nothing(answer.status().to_string()),
            Err(why) => BeatHeard::Nothing(lastword_client::gateway::cause(&why)),
        }
    }

    async fn heed(&mut self, route: &Route, beat: BeatReply) {
        beat.orders.iter().for_each(|order| self.host.turns.order(order));
        for over in beat.over {
            tracing::info!(
                turn_id = %over.turn_id, over.code,
                "the gateway has closed a turn; the turn ends here"
            );
            self.host.turns.end(over.turn_id, over.epoch);
        }
        if beat.should_stop {
            self.host.leave();
        }
        if beat.should_move {
            self.move_on(route).await;
        }
    }

    /// Moves to another replica that accepts this host; the present one is used until then.
    async fn move_on(&mut self, route: &Route) {
        for n in 1..=self.host.link.urls() {
            if let Ok(other) = self.host.link.register(route.found_by + n).await {
                return self.take(other);
            }
        }
        sleep(MOVE_EVERY).await;
    }
}
