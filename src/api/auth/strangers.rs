//! Unknown tokens: look-ups in the database, batched so that many cost no more than one.
//!
//! Owns the cost of unknown tokens: one query at a time for all waiting requests, and at most ten queries a second
//! while some of the tokens turn out to be invalid. Many requests from one address cannot crowd out the others. An
//! honest worker waits a tenth of a second at most, even if another replica minted its token just now, because no
//! negative result is cached.

use std::{collections::HashMap, hash::Hash, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    store::StoreError,
    task::{Supervisor, TaskKind},
};

/// The interval between two queries if the first found an invalid token.
const PAUSE: Duration = Duration::from_millis(100);
/// Waiting look-ups, in all and per address.
const WAITING_MAX: usize = 1024;
const WAITING_PER_ADDRESS_MAX: usize = 64;

/// The result of a look-up; `None` if too many wait.
pub type Found<V> = Option<Result<Option<V>, StoreError>>;

/// Batches look-ups of unknown tokens.
#[derive(Debug)]
pub struct Strangers<K, V> {
    state: Arc<Mutex<StrangerQueue<K, V>>>,
}

#[derive(Debug)]
struct StrangerQueue<K, V> {
    waiting: Vec<Stranger<K, V>>,
    /// Whether a task is running that does the look-ups.
    is_looked_after: bool,
}

#[derive(Debug)]
struct Stranger<K, V> {
    key: K,
    from: IpAddr,
    answer: oneshot::Sender<Result<Option<V>, StoreError>>,
}

impl<K, V> Default for Strangers<K, V> {
    fn default() -> Self {
        Strangers {
            state: Arc::new(Mutex::new(StrangerQueue { waiting: Vec::new(), is_looked_after: false })),
        }
    }
}

impl<K, V> Strangers<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + 'static,
{
    /// Looks a key up with the next batch. `look` answers for all keys of the batch.
    pub async fn ask<F>(
        &self,
        supervisor: &Supervisor,
        (key, from): (K, IpAddr),
        look: impl Fn(Vec<K>) -> F + Send + 'static,
    ) -> Found<V>
    where
        F: Future<Output = Result<HashMap<K, V>, StoreError>> + Send + 'static,
    {
        let (answer, found) = oneshot::channel();
        {
            let mut state = self.state.lock();
            let of_this_address = state.waiting.iter().filter(|stranger| stranger.from == from).count();
            if state.waiting.len() >= WAITING_MAX || of_this_address >= WAITING_PER_ADDRESS_MAX {
                return None;
            }
            state.waiting.push(Stranger { key, from, answer });
            if !std::mem::replace(&mut state.is_looked_after, true) {
                supervisor.spawn(TaskKind::Client, "look-ups", look_after(self.state.clone(), look));
            }
        }
        found.await.ok()
    }
}

/// Runs batches until no look-up waits.
async fn look_after<K, V, F>(state: Arc<Mutex<StrangerQueue<K, V>>>, look: impl Fn(Vec<K>) -> F + Send)
where
    K: Clone + Eq + Hash,
    V: Clone,
    F: Future<Output = Result<HashMap<K, V>, StoreError>> + Send + 'static,
{
    loop {
        let waiting = {
            let mut state = state.lock();
            if state.waiting.is_empty() {
                state.is_looked_after = false;
                return;
            }
            std::mem::take(&mut state.waiting)
        };
        let began = Instant::now();
        let found = look(waiting.iter().map(|stranger| stranger.key.clone()).collect()).await;
        let mut are_all_known = true;
        for Stranger { key, answer, .. } in waiting {
            let found = found.as_ref().map(|found| found.get(&key).cloned()).map_err(StoreError::clone);
            are_all_known &= matches!(found, Ok(Some(_)));
            // A caller that has disconnected needs no answer.
            let _ = answer.send(found);
        }
        if !are_all_known {
            tokio::time::sleep_until(began + PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use futures_util::future::join_all;

    use super::*;

    /// Knows even numbers, and counts its calls.
    #[derive(Clone, Default)]
    struct Register(Arc<AtomicUsize>);

    impl Register {
        async fn ask(&self, strangers: &Strangers<u32, u32>, n: u32, from: u8) -> Option<Option<u32>> {
            let looks = self.0.clone();
            let look = move |asked: Vec<u32>| {
                looks.fetch_add(1, Ordering::SeqCst);
                let known = asked.into_iter().filter(|n| n % 2 == 0).map(|n| (n, n)).collect();
                async move {
                    tokio::task::yield_now().await;
                    Ok(known)
                }
            };
            let from = Ipv4Addr::new(10, 0, 0, from).into();
            strangers.ask(&Supervisor::new(), (n, from), look).await.map(Result::unwrap)
        }
    }

    #[tokio::test]
    async fn many_strangers_are_one_look_and_each_gets_its_own_answer() {
        let (strangers, register) = (Strangers::default(), Register::default());
        let asked = (0..640).map(|n| register.ask(&strangers, n, (n % 10) as u8));
        for (n, answer) in (0..).zip(join_all(asked).await) {
            assert_eq!(answer, Some((n % 2 == 0).then_some(n)), "{n}");
        }
        assert_eq!(register.0.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn made_up_tokens_cost_ten_looks_a_second_and_an_honest_one_waits_no_longer_than_that() {
        let (strangers, register) = (Strangers::default(), Register::default());
        let began = Instant::now();
        while began.elapsed() < PAUSE * 5 {
            let (unknown, known) =
                tokio::join!(register.ask(&strangers, 1, 1), register.ask(&strangers, 2, 1));
            assert_eq!((unknown, known), (Some(None), Some(Some(2))));
        }
        let most = began.elapsed().as_millis().div_ceil(PAUSE.as_millis()) + 1;
        assert!(register.0.load(Ordering::SeqCst) as u128 <= most, "{:?} of {most}", register.0);
    }

    #[tokio::test]
    async fn one_address_crowds_out_nobody() {
        let (strangers, register) = (Strangers::default(), Register::default());
        let flood = join_all((0..1000).map(|_| register.ask(&strangers, 1, 1)));
        let (flood, honest) = tokio::join!(flood, register.ask(&strangers, 2, 2));
        assert_eq!(flood.iter().flatten().count(), WAITING_PER_ADDRESS_MAX);
        assert_eq!(honest, Some(Some(2)));
    }
}
