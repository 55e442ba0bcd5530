//! Many clients at once, each a task.
//!
//! Owns their start and their end: the first failure ends the others, and no client outlives its measure.

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use lastword::task::{Supervisor, TaskKind};

/// Runs all of them, and returns what they bring, in no order.
pub async fn all<T: Send + 'static>(
    supervisor: &Supervisor,
    jobs: Vec<impl Future<Output = anyhow::Result<T>> + Send + 'static>,
) -> anyhow::Result<Vec<T>> {
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let count = jobs.len();
    let (done, mut results) = mpsc::channel(count.max(1));
    for job in jobs {
        let (done, stop) = (done.clone(), stop.clone());
        supervisor.spawn(TaskKind::Client, "client", async move {
            if let Some(result) = stop.run_until_cancelled(job).await {
                // Where nobody listens any more, another one has failed.
                let _ = done.send(result).await;
            }
        });
    }
    drop(done);
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        all.push(results.recv().await.context("a client ended without a result")??);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_fails_ends_the_others() {
        let supervisor = Supervisor::new();
        let jobs = (0..3).map(|n| async move {
            if n == 1 {
                anyhow::bail!("the second");
            }
            std::future::pending::<()>().await;
            Ok(n)
        });
        let why = all(&supervisor, jobs.collect()).await.unwrap_err();
        assert_eq!(why.to_string(), "the second");
        supervisor.ended().await;
    }

    #[tokio::test]
    async fn all_bring_something() {
        let jobs = (0..5).map(|n| async move { Ok(n) });
        let mut found = all(&Supervisor::new(), jobs.collect()).await.unwrap();
        found.sort_unstable();
        assert_eq!(found, [0, 1, 2, 3, 4]);
    }
}
