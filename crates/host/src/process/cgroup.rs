//! A control group for each worker, if this machine allows a replica to create one: there the kernel bounds the
//! worker's memory.
//!
//! Owns the decision, once a process, and the removal of a group whose guard was killed. Refuses to fail anything:
//! without a group the guard measures the memory.
//!
//! ```text
//! the replica's own group            version 2: no process may be in a group that is divided
//! ├── lastword-replica               so the replica and its guards move here first
//! └── lastword-PID-START             the groups of one replica; removed with the last of them
//!     └── NUMBER                     a worker's process tree; its guard stays outside
//! ```
//! [`mod@site`] finds the replica's own group and creates others below it, [`group`] is one of these.

mod group;
mod site;
#[cfg(test)]
mod tests;

use std::{sync::OnceLock, time::Duration};

use tokio::time::{Instant, sleep};

pub use self::group::Group;
pub(super) use self::group::HeldGroup;
use self::site::GroupSite;
use lastword_words::units::Size;

/// How long the last processes of a group are waited for after their guard, and how often they are looked for.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(5);
const CLEAR_EVERY: Duration = Duration::from_millis(20);

/// Whether workers get a group of their own here; the version of control groups. Moves nothing, and leaves nothing.
///
/// # Errors
/// Why there are none, for a person.
pub fn probe() -> Result<u8, String> {
    let site = site::find()?;
    if !site.must_divide() {
        site.try_out().map_err(|why| why.to_string())?;
    }
    Ok(site.version.number())
}

/// Decides once whether workers get groups, makes room for them, and removes what a replica left that is gone. Where it
/// is not called the first start of a worker decides.
pub async fn settle() {
    let _ = tokio::task::spawn_blocking(site).await;
}

fn site() -> Option<&'static GroupSite> {
    static SITE: OnceLock<Option<GroupSite>> = OnceLock::new();
    let decide = || match site::find().and_then(|site| site.occupy()) {
        Ok(site) => {
            site.sweep();
            tracing::info!(version = site.version.number(), "each worker has a control group of its own");
            Some(site)
        }
        Err(why) => {
            tracing::info!(why, "workers have no control groups on this machine: their memory is polled");
            None
        }
    };
    SITE.get_or_init(decide).as_ref()
}

/// Makes a group for a worker, where they are to be had; a failure is logged, and the worker starts without.
pub(super) async fn make(memory: Size) -> Option<HeldGroup> {
    let making = tokio::task::spawn_blocking(move || {
        let made = site()?.make(memory);
        made.inspect_err(|why| tracing::warn!(%why, "no control group for this worker: its memory is polled"))
            .ok()
    });
    making.await.ok().flatten().map(HeldGroup::new)
}

/// Sees to it that the group of a worker that has ended is gone: its guard removes it, unless that was killed.
pub(super) async fn clear(held: Option<HeldGroup>) {
    let Some(held) = held else { return };
    let until = Instant::now() + CLEAR_TIMEOUT;
    while held.group().is_there() && Instant::now() < until {
        let group = held.group().clone();
        // It may wait for others' changes of groups, so not on a thread of the runtime.
        let clearing = tokio::task::spawn_blocking(move || group.clear());
        if clearing.await.unwrap_or(true) {
            return;
        }
        sleep(CLEAR_EVERY).await;
    }
}
