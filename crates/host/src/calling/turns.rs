//! The turns of this host: their list for the beat, and the channels to each.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::words::{OrderToPass, line};
use lastword_words::id::TurnId;

/// Orders that may wait for one turn.
const ORDERS_MAX: usize = 64;

/// The turns of this host.
#[derive(Debug)]
pub struct Turns {
    list: Mutex<TurnList>,
    changed: Notify,
}

#[derive(Debug)]
struct TurnList {
    turns: HashMap<TurnId, TurnReach>,
    /// When the last turn ended.
    idle_since: Instant,
}

/// A turn, as the beat reaches it.
#[derive(Debug)]
struct TurnReach {
    epoch: i32,
    told: HashSet<String>,
    orders: mpsc::Sender<Vec<u8>>,
    over: CancellationToken,
}

/// A turn that this host has taken, with the receiving ends of its channels. Dropping it removes the turn from the
/// list.
#[derive(Debug)]
pub struct Admitted {
    turns: Arc<Turns>,
    turn: TurnId,
    epoch: i32,
    /// Lines for the worker.
    pub orders: mpsc::Receiver<Vec<u8>>,
    /// Cancelled when the turn no longer belongs to this host.
    pub over: CancellationToken,
}

impl Default for Turns {
    fn default() -> Self {
        let list = TurnList { turns: HashMap::new(), idle_since: Instant::now() };
        Turns { list: Mutex::new(list), changed: Notify::new() }
    }
}

impl Turns {
    /// Lists a turn; `None` if it is listed already. Ends an earlier attempt of it.
    pub fn admit(self: &Arc<Self>, turn: TurnId, epoch: i32) -> Option<Admitted> {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let over = CancellationToken::new();
        let mut list = self.list.lock();
        if list.turns.get(&turn).is_some_and(|known| known.epoch >= epoch) {
            return None;
        }
        let reach = TurnReach { epoch, told: HashSet::new(), orders: sender, over: over.clone() };
        if let Some(earlier) = list.turns.insert(turn, reach) {
            earlier.over.cancel();
        }
        Some(Admitted { turns: self.clone(), turn, epoch, orders, over })
    }

    /// The number of turns.
    pub fn count(&self) -> usize {
        self.list.lock().turns.len()
    }

    /// Since when there is no turn; `None` if there are some.
    pub fn idle_since(&self) -> Option<Instant> {
        let list = self.list.lock();
        list.turns.is_empty().then_some(list.idle_since)
    }

    /// Waits until a turn ends. Cancel-safe.
    pub async fn one_ended(&self) {
        self.changed.notified().await;
    }

    /// Waits until there is no turn.
    pub async fn none_left(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// The turns as a beat names them.
    pub fn named(&self) -> Value {
        let list = self.list.lock();
        let named = list.turns.iter().map(|(turn, reach)| {
            let told: Vec<&String> = reach.told.iter().collect();
            json!({ "turn_id": turn, "epoch": reach.epoch, "told": told })
        });
        named.collect()
    }

    /// Passes an order on, once. An order that does not fit is sent again by the gateway.
    pub fn order(&self, order: &OrderToPass) {
        let mut list = self.list.lock();
        let Some(reach) = list.turns.get_mut(&order.turn_id) else { return };
        if reach.told.contains(&order.key) {
            return;
        }
        let line = line(order.order.get());
        if reach.orders.try_send(line).is_ok() {
            reach.told.insert(order.key.clone());
        }
    }

    /// Ends this host's work on a turn.
    pub fn end(&self, turn: TurnId, epoch: i32) {
        if let Some(reach) = self.list.lock().turns.get(&turn).filter(|reach| reach.epoch == epoch) {
            reach.over.cancel();
        }
    }

    /// Ends this host's work on every turn.
    pub fn end_all(&self) {
        self.list.lock().turns.values().for_each(|reach| reach.over.cancel());
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut list = self.turns.list.lock();
        if list.turns.get(&self.turn).is_some_and(|reach| reach.epoch == self.epoch) {
            list.turns.remove(&self.turn);
        }
        list.idle_since = Instant::now();
        drop(list);
        self.turns.changed.notify_waiters();
        self.turns.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn an_order_is_passed_on_once_and_an_earlier_attempt_ends() {
        let (turns, turn) = (Arc::new(Turns::default()), TurnId(Uuid::nil()));
        let mut first = turns.admit(turn, 1).unwrap();
        assert!(turns.admit(turn, 1).is_none(), "it is on the list");
        let order = || OrderToPass {
            key: "cancel".to_owned(),
            turn_id: turn,
            order: RawValue::from_string("{\"type\":\n\"cancel\"}".to_owned()).unwrap(),
        };
        turns.order(&order());
        turns.order(&order());
        assert_eq!(first.orders.try_recv().unwrap(), b"{\"type\": \"cancel\"}\n");
        assert!(first.orders.try_recv().is_err());
        assert_eq!(turns.named()[0]["told"], json!(["cancel"]));

        let second = turns.admit(turn, 2).unwrap();
        assert!(first.over.is_cancelled() && !second.over.is_cancelled());
        drop(first);
        assert_eq!((turns.count(), turns.idle_since()), (1, None));
        turns.end(turn, 1);
        assert!(!second.over.is_cancelled());
        drop(second);
        assert!(turns.idle_since().is_some());
    }
}
