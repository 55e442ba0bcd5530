//! Reports the ends of pods: why a worker is gone becomes the reason of its turn's last word.
//!
//! Every replica reports what its watch saw, so a reason is recorded even if the replica that created the pod is
//! gone; the store keeps the first report. The holder of the turn writes the last word. Reports are kept while the
//! store is away.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    pods::{Ended, Pods},
    verdict::{Cause, Ending},
};
use crate::{
    failure::Code,
    store::{Store, StoreError, remote_workers::ExitReport, warn_of},
    telemetry::metrics,
};

/// Reports ends until cancelled.
pub async fn tell_on(store: Store, pods: Pods, until: CancellationToken) {
    loop {
        let mut ends = tokio::select! {
            () = until.cancelled() => return,
            ends = pods.ends() => ends,
        };
        while let Some(ended) = ends.pop() {
            if let Err(why) = tell(&store, &ended).await {
                warn_of!(why, pod = ended.name, "a pod's end could not be reported; trying again");
                ends.push(ended);
                pods.put_back(ends);
                tokio::select! {
                    () = until.cancelled() => return,
                    () = sleep(Duration::from_millis(rand::random_range(100..300))) => {}
                }
                break;
            }
        }
    }
}

async fn tell(store: &Store, ended: &Ended) -> Result<(), StoreError> {
    let told = store.worker_gone(Some(ended.worker), None, &exit_report(&ended.ending)).await?;
    if told > 0 {
        metrics::worker_exits(ended.ending.cause.as_str());
        let (cause, detail) = (ended.ending.cause.to_string(), &ended.ending.detail);
        tracing::info!(pod = ended.name, worker_id = %ended.worker, cause, detail, "a worker's pod ended");
    }
    if let Some(hash) = ended.token_hash {
        store.revoke_worker_token(hash).await?;
    }
    Ok(())
}

/// The report that becomes the last word of the worker's turn.
fn exit_report(ending: &Ending) -> ExitReport {
    let code = if ending.cause == Cause::NodeLost { Code::WorkerLost } else { Code::WorkerExited };
    let message = format!("The worker handling your request stopped unexpectedly ({}).", ending.cause);
    ExitReport { code, message, detail: Some(ending.detail.clone()).filter(|detail| !detail.is_empty()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_node_is_a_lost_worker_and_all_else_an_exit() {
        let of = |cause| exit_report(&Ending { cause, detail: "node-7: gone".to_owned() });
        let lost = of(Cause::NodeLost);
        assert_eq!(lost.code, Code::WorkerLost);
        assert_eq!(lost.detail.as_deref(), Some("node-7: gone"));
        let oom = of(Cause::OutOfMemory { limit: Some("512Mi".to_owned()) });
        assert_eq!(oom.code, Code::WorkerExited);
        let wanted = "The worker handling your request stopped unexpectedly (out of memory, limit 512Mi).";
        assert_eq!(oom.message, wanted);
    }
}
