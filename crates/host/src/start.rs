//! The start of a worker: from a slot to `ready`.
//!
//! Keeps I10: until then no worker has received the turn.

use std::time::Duration;

use super::{
    owner::{HostOwner, HostedTurn, Obstacle, Program, unless_called_off},
    process::{Launch, Process, StartError, until_ready},
    slots::Slot,
    workers::WorkerHost,
};
use crate::descriptors;

/// Pause between two tries of a start that only this host can make.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// Starts a program once a slot is free. Dropping the future leaves nothing behind.
pub(super) fn launch<O: HostOwner>(
    host: &WorkerHost<O>,
    program: &Program,
) -> impl Future<Output = Result<(Slot, Process), Obstacle>> + Send + use<O> {
    let (host, launch) = (host.clone(), program.launch.clone());
    // A worker may be sent two messages for each of its turns at the same moment.
    let launch = Launch { unread_max: launch.unread_max + 2 * program.turns, ..launch };
    async move {
        let slot = host.slot().await;
        let process = Process::start(host.owner().supervisor(), launch).await.map_err(refused)?;
        descriptors::started();
        tracing::info!(pid = process.pid(), "worker started");
        Ok((slot, process))
    }
}

/// Starts a program for a turn; retries if no other host could.
pub(super) async fn launch_for<O: HostOwner>(
    host: &WorkerHost<O>,
    turn: &mut O::Turn,
) -> Result<(Slot, Process), Obstacle> {
    let program = host.owner().program(turn);
    loop {
        match unless_called_off(turn, launch(host, &program)).await {
            Err(Obstacle::Lacks { lack, detail }) if turn.must_start_here() => {
                tracing::warn!(lack = lack.as_str(), detail, "no worker can be started now; trying again");
                unless_called_off(turn, pause()).await?;
            }
            other => return other,
        }
    }
}

/// Waits for the worker's `ready`, without a deadline of its own.
pub(super) async fn ready(process: &mut Process) -> Result<(), Obstacle> {
    Ok(until_ready(process).await?)
}

/// Sleeps until a retry makes sense.
///
/// # Errors
/// None; the signature is that of a step for [`unless_called_off`].
pub(crate) async fn pause() -> Result<(), Obstacle> {
    tokio::time::sleep(TRY_AGAIN).await;
    Ok(())
}

fn refused(why: StartError) -> Obstacle {
    match why.lack {
        Some(lack) => {
            // Recorded before the turn returns to the queue, so that this host does not claim it again.
            descriptors::lacked(lack);
            Obstacle::Lacks { lack, detail: why.detail }
        }
        None => Obstacle::Failed { message: why.message.to_owned(), detail: Some(why.detail) },
    }
}
