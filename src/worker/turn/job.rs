//! A claimed turn that is to be run here.

use std::time::Duration;

use tokio::time::sleep_until;

use super::timers::{Clocks, Lapse};
use crate::{
    agent::Scope,
    failure::Code,
    host::{HostedTurn, Obstacle},
    id::{ConversationId, TurnId, WorkerId},
    store::{
        claim::{Claim, Phase},
        commands::Order,
        turns::Agent,
    },
    word::Open,
    worker::registry::{Interruption, Reach},
};

/// Claims a turn may have in all (`lw_may_rerun_v1`).
const ATTEMPTS_MAX: i32 = 3;

/// A claimed turn with its agent and clocks. Dropping it frees the turn's slot.
#[derive(Debug)]
pub(in crate::worker) struct Job {
    pub(in crate::worker) claim: Claim,
    pub(in crate::worker) agent: Agent,
    pub(in crate::worker) clocks: Clocks,
    pub(in crate::worker) span: tracing::Span,
    pub(in crate::worker) reach: Reach,
}

/// What a turn and its conversation's own worker must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) struct Fit {
    /// Counts the workers of the conversation.
    pub(in crate::worker) generation: i64,
    pub(in crate::worker) revision: i32,
    /// Whether the input must pass guards before a worker may be started.
    pub(in crate::worker) is_guarded: bool,
}

impl HostedTurn for Job {
    type Fit = Fit;

    fn id(&self) -> TurnId {
        self.claim.turn
    }

    fn conversation(&self) -> ConversationId {
        self.claim.conversation
    }

    fn agent(&self) -> (&str, i32) {
        (&self.agent.name, self.agent.revision)
    }

    fn is_shared(&self) -> bool {
        self.agent.spec.scope == Scope::Shared
    }

    fn span(&self) -> tracing::Span {
        self.span.clone()
    }

    fn idle_ttl(&self) -> Duration {
        self.agent.spec.idle_ttl.0
    }

    fn fit(&self) -> Fit {
        Fit {
            generation: self.claim.generation,
            revision: self.agent.revision,
            is_guarded: !self.agent.spec.guards.is_empty(),
        }
    }

    fn fits(&self, fit: &Fit) -> bool {
        self.fit() == *fit
    }

    fn bound_to(&self) -> Option<WorkerId> {
        match self.claim.phase {
            Phase::Running(worker) => Some(worker),
            Phase::Starting | Phase::Forsaken => None,
        }
    }

    fn must_start_here(&self) -> bool {
        // The last attempt: a turn that is given back now could not be claimed again.
        self.claim.epoch >= ATTEMPTS_MAX
    }

    async fn called_off(&mut self) -> Obstacle {
        loop {
            let (at, lapse) = self.clocks.next();
            let call = tokio::select! {
                () = sleep_until(at) => return match lapse {
                    Lapse::Fails(Code::TurnTimeout) => Obstacle::failed(Code::TurnTimeout.message()),
                    Lapse::Fails(_) => Obstacle::Lapsed,
                    Lapse::Cancels => Obstacle::Cancelled(Open::default()),
                },
                call = self.reach.call() => call,
            };
            match call {
                Interruption::Halt(halt) => return Obstacle::Halted(halt),
                Interruption::Order(command) => match command.order {
                    Order::Cancel { by } => return Obstacle::Cancelled(by),
                    // No worker has asked a question yet.
                    Order::Answer { .. } => {}
                },
            }
        }
    }
}
