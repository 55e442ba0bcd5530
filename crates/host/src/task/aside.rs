//! Work that needs a processor for long: on separate threads, few at a time.
//!
//! The beat and all other tasks share the runtime's threads. Costly work on a client's bytes waits here for other
//! such work, so that the beat does not wait.

use std::{
    panic::resume_unwind,
    sync::{Arc, LazyLock},
};

use tokio::{sync::Semaphore, task::spawn_blocking};

/// Work on at most this many bytes is done in place, in some tenths of a millisecond.
const SMALL: usize = 32 << 10;

/// Half of the processors, since the runtime has one thread for each.
static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new((processors / 2).max(1)))
});

/// Does work whose cost grows with `bytes`. A panic continues in the caller.
pub async fn aside<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if bytes <= SMALL {
        return work();
    }
    // The semaphore is never closed. The permit is held by the work, which may outlive its caller.
    let place = PLACES.clone().acquire_owned().await;
    let done = spawn_blocking(move || {
        let _place = place;
        work()
    });
    match done.await {
        Ok(done) => done,
        Err(why) => match why.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is shutting down, and every task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::thread::current;

    use super::*;

    #[tokio::test]
    async fn what_is_large_is_worked_on_elsewhere() {
        let here = current().id();
        assert_eq!(aside(SMALL, || current().id()).await, here);
        assert_ne!(aside(SMALL + 1, || current().id()).await, here);
    }

    #[tokio::test]
    #[should_panic = "as it is"]
    async fn a_panic_is_the_callers() {
        aside(SMALL + 1, || panic!("as it is")).await
    }
}
