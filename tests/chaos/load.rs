//! The load: clients that run until they are stopped, and two observers for every turn.
//!
//! Owns the mix of normal use: short and long answers, several turns in one conversation, questions, cancels, posts
//! that are sent twice under one key, and clients without a key that give up. Everything is drawn from a seed; the
//! timing is not, and the history records it.

use std::{sync::Arc, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    client::{Accepted, Ask, Client},
    fleet::Fleet,
    history::Outcome,
    observer::{Watch, watch},
};

/// How long an observer waits for a last word. Longer than any drill's fault and its healing.
const WATCH_MAX: Duration = Duration::from_secs(150);
/// The same for turns that a drill keeps under way all the time: as long as any drill takes.
const WATCH_KEPT_MAX: Duration = Duration::from_secs(40 * 60);
/// A conversation that is talked to again keeps to its line.
const LINE_TURNS: usize = 3;
const CHAT_TURNS: usize = 50;

/// How much there is to do.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Clients that post, wait for the end, and post again.
    pub closed: usize,
    /// Turns a second that come whatever becomes of the others.
    pub open_per_s: f64,
    /// Clients that go on with one conversation for a while.
    pub chatty: usize,
    /// Between two turns of a closed client, at most.
    pub pause: Duration,
    /// Whether cancels, questions and lines are part of it, or only plain answers.
    pub is_varied: bool,
}

impl Mix {
    /// Enough to notice what breaks, on a machine with two cores.
    pub const LIGHT: Mix =
        Mix { closed: 4, open_per_s: 2.0, chatty: 0, pause: Duration::from_millis(400), is_varied: true };
    /// For a run whose figures must not be disturbed.
    pub const FAINT: Mix =
        Mix { closed: 2, open_per_s: 0.5, chatty: 0, pause: Duration::from_millis(800), is_varied: true };
}

/// Clients under way.
pub struct Load {
    clients: Vec<JoinHandle<()>>,
    watchers: TaskTracker,
    stop: CancellationToken,
    client: Client,
}

/// Whoever posts: it knows its replicas and leaves observers behind.
#[derive(Clone)]
struct Guest {
    client: Client,
    watchers: TaskTracker,
    stop: CancellationToken,
    mix: Mix,
}

impl Load {
    /// Starts the clients.
    pub fn start(fleet: &Arc<Fleet>, mix: Mix, seed: u64) -> Load {
        let client = Client::new(fleet);
        let (watchers, stop) = (TaskTracker::new(), CancellationToken::new());
        let guest = Guest { client: client.clone(), watchers: watchers.clone(), stop: stop.clone(), mix };
        let mut clients = Vec::new();
        for n in 0..mix.closed as u64 {
            let (guest, rng) = (guest.clone(), StdRng::seed_from_u64(seed.wrapping_add(n)));
            clients.push(tokio::spawn(guest.come_and_go(rng)));
        }
        for n in 0..mix.chatty as u64 {
            let (guest, rng) = (guest.clone(), StdRng::seed_from_u64(seed.wrapping_add(500 + n)));
            clients.push(tokio::spawn(guest.chat(rng)));
        }
        if mix.open_per_s > 0.0 {
            let rng = StdRng::seed_from_u64(seed.wrapping_add(1000));
            clients.push(tokio::spawn(guest.come_regularly(rng)));
        }
        Load { clients, watchers, stop, client }
    }

    /// Ends the clients, and waits until every observer is done.
    pub async fn stop(self) {
        self.stop.cancel();
        for client in self.clients {
            client.await.expect("a client ends");
        }
        self.watchers.close();
        if timeout(WATCH_MAX, self.watchers.wait()).await.is_err() {
            self.client.give_up();
            self.watchers.wait().await;
        }
    }

    /// Two observers for a turn that a drill posted itself; the first begins at `slot`.
    pub fn observe(&self, turn: &Accepted, slot: Option<usize>, rng: &mut StdRng) {
        for who in 0..2 {
            let first_slot = slot.filter(|_| who == 0);
            let plan =
                Watch { who, seed: rng.random(), at_most: WATCH_KEPT_MAX, first_slot, is_restless: false };
            self.watchers.spawn(watch(self.client.clone(), turn.turn.clone(), plan, None));
        }
    }

    /// One observer, where there are thousands of turns.
    pub fn observe_once(&self, turn: &Accepted, rng: &mut StdRng) {
        let plan = Watch {
            who: 0,
            seed: rng.random(),
            at_most: WATCH_KEPT_MAX,
            first_slot: None,
            is_restless: false,
        };
        self.watchers.spawn(watch(self.client.clone(), turn.turn.clone(), plan, None));
    }

    /// One more observer, on a replica that nothing is wrong with.
    pub fn observe_from(&self, turn: &str, slot: usize, rng: &mut StdRng) {
        let (first_slot, seed) = (Some(slot), rng.random());
        let plan = Watch { who: 2, seed, at_most: WATCH_KEPT_MAX, first_slot, is_restless: false };
        self.watchers.spawn(watch(self.client.clone(), turn.to_owned(), plan, None));
    }

    /// The same, and what the first of them sees is told.
    pub fn observe_and_tell(&self, turn: &Accepted, slot: usize, rng: &mut StdRng) -> mpsc::Receiver<Value> {
        let (told, hear) = mpsc::channel(4096);
        let mut told = Some(told);
        for who in 0..2 {
            let first_slot = Some(slot).filter(|_| who == 0);
            let plan = Watch { who, seed: rng.random(), at_most: WATCH_MAX, first_slot, is_restless: false };
            self.watchers.spawn(watch(self.client.clone(), turn.turn.clone(), plan, told.take()));
        }
        hear
    }

    /// The client that its drill may use too.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

impl Guest {
    async fn come_and_go(self, mut rng: StdRng) {
        while !self.stop.is_cancelled() {
            self.visit(&mut rng).await;
            let pause = self.mix.pause.mul_f64(rng.random_range(0.0..1.0));
            let _ = self.stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    /// One conversation after the other, each of several turns.
    async fn chat(self, mut rng: StdRng) {
        while !self.stop.is_cancelled() {
            let mut ask = Ask::demo("hi");
            for _ in 0..CHAT_TURNS {
                let Some(turn) = self.client.post(&ask, &mut rng).await else { break };
                ask.conversation = Some(turn.conversation.clone());
                let mut hear = self.observe(&turn, &mut rng);
                while hear.recv().await.is_some() {}
                if self.stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    async fn come_regularly(self, mut rng: StdRng) {
        let began = Instant::now();
        for n in 1.. {
            let due = began + Duration::from_secs_f64(f64::from(n) / self.mix.open_per_s);
            if self.stop.run_until_cancelled(tokio::time::sleep_until(due)).await.is_none() {
                return;
            }
            let (guest, mut rng) = (self.clone(), StdRng::seed_from_u64(rng.random()));
            self.watchers.spawn(async move { guest.visit(&mut rng).await });
        }
    }

    /// One thing that a guest may come for.
    async fn visit(&self, rng: &mut StdRng) {
        let choice = if self.mix.is_varied { rng.random_range(0..20) } else { 0 };
        match choice {
            0..=8 => self.talk(Ask::demo("good day"), rng).await,
            9..=11 => {
                let words = rng.random_range(5..60);
                self.talk(Ask::demo(&format!("/slow {words}")), rng).await;
            }
            12 => self.talk(Ask::demo("/flood 200"), rng).await,
            13 | 14 => self.talk_on(rng).await,
            15 | 16 => self.ask(rng).await,
            17 => self.cancel(rng).await,
            18 => self.post_twice(rng).await,
            _ => self.talk(Ask { is_keyed: false, ..Ask::demo("good day") }, rng).await,
        }
    }

    /// Posts and waits for the end.
    async fn talk(&self, ask: Ask, rng: &mut StdRng) {
        let Some(turn) = self.client.post(&ask, rng).await else { return };
        let mut hear = self.observe(&turn, rng);
        while hear.recv().await.is_some() {}
    }

    /// Several turns of one conversation, posted without waiting.
    async fn talk_on(&self, rng: &mut StdRng) {
        let mut ask = Ask::demo("good day");
        let mut last = None;
        for n in 0..LINE_TURNS {
            ask.text = format!("/slow {}", n + 2);
            let Some(turn) = self.client.post(&ask, rng).await else { return };
            ask.conversation = Some(turn.conversation.clone());
            last = Some(self.observe(&turn, rng));
        }
        while let Some(hear) = &mut last
            && hear.recv().await.is_some()
        {}
    }

    /// Waits for a question, and answers it somewhere.
    async fn ask(&self, rng: &mut StdRng) {
        let Some(turn) = self.client.post(&Ask::demo("/ask which colour?"), rng).await else { return };
        let mut hear = self.observe(&turn, rng);
        while let Some(event) = hear.recv().await {
            if let ("ask", Some(id)) = (event["kind"].as_str().unwrap_or_default(), event["ask_id"].as_str())
            {
                self.client.answer(&turn.turn, id, rng).await;
            }
        }
    }

    /// Cancels it somewhere, as soon as it speaks or before.
    async fn cancel(&self, rng: &mut StdRng) {
        let Some(turn) = self.client.post(&Ask::demo("/slow 300"), rng).await else { return };
        let mut hear = self.observe(&turn, rng);
        let wait = Duration::from_millis(rng.random_range(0..1500));
        let _ = timeout(wait, async { while hear.recv().await.is_some() {} }).await;
        self.client.cancel(&turn.turn, rng).await;
        while hear.recv().await.is_some() {}
    }

    /// The same post at two replicas at once: one turn.
    async fn post_twice(&self, rng: &mut StdRng) {
        let ask = Ask::demo("good day");
        let nonce = format!("twice-{:016x}", rng.random::<u64>());
        let slots = [self.client.fleet().draw(rng), self.client.fleet().draw(rng)];
        let (one, two) = tokio::join!(
            self.client.post_once(&ask, &nonce, slots[0]),
            self.client.post_once(&ask, &nonce, slots[1])
        );
        for (outcome, accepted) in [one, two] {
            if let (Outcome::Ok, Some(turn)) = (outcome, accepted) {
                drop(self.observe(&turn, rng));
                break;
            }
        }
    }

    fn observe(&self, turn: &Accepted, rng: &mut StdRng) -> mpsc::Receiver<Value> {
        let (told, hear) = mpsc::channel(4096);
        let mut told = Some(told);
        for who in 0..2 {
            let plan =
                Watch { who, seed: rng.random(), at_most: WATCH_MAX, first_slot: None, is_restless: true };
            self.watchers.spawn(watch(self.client.clone(), turn.turn.clone(), plan, told.take()));
        }
        hear
    }
}
