//! Removes the workspaces of conversations that are gone, on this replica's own disk.

use tokio::task::spawn_blocking;

use super::host::Host;
use crate::{host::process::workspace, store::StoreError};

/// Conversations looked up by one statement.
const ASKED_AT_ONCE: usize = 500;

impl Host {
    /// Removes the workspaces of deleted conversations, except where a worker still runs. Returns how many were
    /// removed.
    ///
    /// # Errors
    /// Postgres is away. A directory that cannot be removed is logged and retried at the next call.
    pub async fn remove_leftovers(&self) -> Result<usize, StoreError> {
        let dir = self.deps().workspaces.to_owned();
        let there = spawn_blocking(move || workspace::conversations(&dir)).await;
        let there = there.map_err(|why| StoreError::unreadable("workspaces", why))?;
        let there = match there {
            Ok(there) => there,
            Err(why) => {
                tracing::warn!(%why, "workspaces cannot be listed");
                return Ok(0);
            }
        };
        let mut removed = 0;
        for some in there.chunks(ASKED_AT_ONCE) {
            for conversation in self.deps().store.conversations_gone(some).await? {
                if self.workers().own_worker(conversation, |_| Some(())).is_some() {
                    continue;
                }
                let workspace = self.deps().workspace("", Some(conversation));
                // A workspace may be large, so the removal may block. `remove_dir_all` follows no links.
                match spawn_blocking(move || std::fs::remove_dir_all(workspace)).await {
                    Ok(Ok(())) => removed += 1,
                    Ok(Err(why)) => tracing::warn!(%conversation, %why, "a workspace cannot be removed"),
                    Err(why) => return Err(StoreError::unreadable("workspaces", why)),
                }
            }
        }
        Ok(removed)
    }
}
