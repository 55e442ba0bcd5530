//! Work that takes a processor for long: on threads of its own, few at a time.
//!
//! Tasks share the runtime's threads, and the beat is one of them. What a client's bytes make dear waits here for
//! its like, not the beat for it.

use std::{
    panic::resume_unwind,
    sync::{Arc, LazyLock},
};

use tokio::{sync::Semaphore, task::spawn_blocking};

/// So many bytes are worked on where they are: some tenths of a millisecond.
const SMALL: usize = 32 << 10;

/// Half of the processors, since the runtime has as many threads as there are.
static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new((processors / 2).max(1)))
});

/// Does work that grows with so many bytes. A panic is the caller's.
pub async fn aside<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if bytes <= SMALL {
        return work();
    }
    // It is never closed. Whoever waits for the work may be gone before it is done: the place is not free then.
    let place = PLACES.clone().acquire_owned().await;
    let done = spawn_blocking(move || {
        let _place = place;
        work()
    });
    match done.await {
        Ok(done) => done,
        Err(why) => match why.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is going, and every task with it.
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
