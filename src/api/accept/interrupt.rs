//! Interrupting: an accepted turn cancels the turns before it in its conversation.
//!
//! Keeps the rule that a failure after the acceptance does not fail the request.

use tokio::time::Instant;

use super::disconnect::CANCEL_WITHIN;
use crate::{
    api::{away::insist, gateway::Gateway},
    id::{ConversationId, TurnId},
    store::StoreError,
    task::TaskKind,
    turn::CancelledBy,
};

/// Interrupts the turns before this one. If Postgres is unreachable, the work goes on in the background: the turn is
/// accepted, and the request must say so.
pub(super) async fn interrupt_for(gateway: &Gateway, turn: TurnId, conversation: ConversationId) {
    if interrupt(gateway, turn, conversation).await.is_ok() {
        return;
    }
    let supervisor = gateway.supervisor.clone();
    let gateway = gateway.clone();
    supervisor.clone().spawn(TaskKind::Client, "interrupts", async move {
        let until = Instant::now() + CANCEL_WITHIN;
        let again = async {
            while let Err(why) = interrupt(&gateway, turn, conversation).await {
                if Instant::now() > until {
                    return tracing::error!(
                        %turn, %why,
                        "earlier turns of the conversation go on: the interrupt failed"
                    );
                }
            }
        };
        supervisor.hard().run_until_cancelled(again).await;
    });
}

/// Cancels the turns before this one. This turn is accepted first, so a turn that comes in between queues behind it.
async fn interrupt(gateway: &Gateway, turn: TurnId, conversation: ConversationId) -> Result<(), StoreError> {
    let store = &gateway.store;
    let Some(accepted) = insist(|| store.turn(turn)).await? else { return Ok(()) };
    let before = insist(|| store.open_turns(conversation, Some(accepted.ordinal))).await?;
    if !before.is_empty() {
        insist(|| store.cancel(&before, CancelledBy::Interrupt)).await?;
    }
    Ok(())
}
