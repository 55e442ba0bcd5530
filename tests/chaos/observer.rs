//! An observer: follows one turn to its last word, from replica to replica.
//!
//! Acts as a client that wants to see the end: it reads, keeps its cursor, and continues at another replica when a
//! connection is cut, silent for longer than keep-alives allow, or at random. It records every event in the order of
//! arrival, and judges none.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    time::Duration,
};

use eventsource_stream::Eventsource;
use futures_util::{StreamExt, stream};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::{
    client::Client,
    history::{Fact, Outcome, Sight},
};

/// Longer than two keep-alives of the fleet: who is silent that long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(8);
/// Told so often that there is no such log, an observer believes it.
const GONE_MAX: u32 = 5;
/// One in so many events makes the observer go elsewhere without a reason.
const RESTLESS: u32 = 40;

/// What an observer should do.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    /// Which of the turn's observers it is.
    pub who: u8,
    /// What its choices come from.
    pub seed: u64,
    /// How long it waits for the end, over all connections.
    pub at_most: Duration,
    /// Where it begins; anywhere if absent.
    pub first_slot: Option<usize>,
    /// Whether it may go elsewhere without a reason.
    pub is_restless: bool,
}

/// Follows a turn to its end and notes it. Whoever must hear of events as they come gets them too.
pub async fn watch(client: Client, turn: String, plan: Watch, told: Option<mpsc::Sender<Value>>) {
    let mut observer = Observer {
        rng: StdRng::seed_from_u64(plan.seed),
        seen: Vec::new(),
        cursor: -1,
        reset_at: 0,
        connects: 0,
        slot: 0,
        last: Value::Null,
        gone: 0,
        cut_at: None,
        is_done: false,
        told,
        client,
        turn,
        plan,
    };
    let began = Instant::now();
    let mut why = "never tried".to_owned();
    while !observer.is_done {
        let left = plan.at_most.saturating_sub(began.elapsed());
        let ending = observer.client.clone();
        let followed = tokio::select! {
            followed = timeout(left, observer.follow()) => followed,
            () = ending.given_up() => return observer.note(Outcome::Info, Some(why)),
        };
        if observer.connects > 0 && !observer.is_done {
            observer.cut_at.get_or_insert_with(Instant::now);
        }
        match followed {
            Ok(Ok(())) => {}
            Ok(Err(cut)) => {
                why = cut;
                let pause = observer.rng.random_range(50..250);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            Err(_) => return observer.note(Outcome::Info, Some(why)),
        }
        if began.elapsed() >= plan.at_most && !observer.is_done {
            return observer.note(Outcome::Info, Some(why));
        }
    }
}

struct Observer {
    client: Client,
    turn: String,
    plan: Watch,
    rng: StdRng,
    seen: Vec<Sight>,
    cursor: i64,
    reset_at: usize,
    connects: u32,
    slot: usize,
    last: Value,
    /// How often it was told that there is no such log.
    gone: u32,
    /// When the last connection ended.
    cut_at: Option<Instant>,
    is_done: bool,
    told: Option<mpsc::Sender<Value>>,
}

impl Observer {
    /// One connection; an error says why it was no use.
    async fn follow(&mut self) -> Result<(), String> {
        self.slot = match self.plan.first_slot {
            Some(slot) if self.connects == 0 => slot,
            _ => self.client.fleet().draw(&mut self.rng),
        };
        self.connects += 1;
        let answer = self.client.open(&self.turn, self.cursor, self.slot).await?;
        if [404, 410].contains(&answer.status().as_u16()) {
            self.gone += 1;
            if self.gone >= GONE_MAX {
                self.is_done = true;
                self.note(Outcome::Info, Some(format!("gone: {}", answer.status())));
            }
        }
        if answer.status() == 409 {
            // What it had seen stands there no more.
            self.reset_at = self.seen.len();
            self.cursor = -1;
        }
        if answer.status() != 200 {
            return Err(format!("slot {}: {}", self.slot, answer.status()));
        }
        if let Some(cut_at) = self.cut_at.take() {
            let us = u64::try_from(cut_at.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.client.fleet().history.note(Fact::Measure { name: "resume".to_owned(), us });
        }
        // Of bytes, not of events: a keep-alive is no silence.
        let bytes = Box::pin(answer.bytes_stream());
        let heard = stream::unfold(bytes, async |mut bytes| match timeout(SILENCE_MAX, bytes.next()).await {
            Ok(next) => Some((next?.map_err(io::Error::other), bytes)),
            Err(_) => Some((Err(io::Error::other("silence")), bytes)),
        });
        let mut frames = Box::pin(heard).eventsource();
        loop {
            let frame = match frames.next().await {
                Some(Ok(frame)) => frame,
                Some(Err(why)) => return Err(why.to_string()),
                None => return Err("a clean end without a last word".to_owned()),
            };
            match frame.event.as_str() {
                "reconnect" => return Ok(()),
                "reset" => {
                    self.reset_at = self.seen.len();
                    self.cursor = -1;
                }
                _ => self.see(&frame.id, &frame.data).await?,
            }
            if self.is_done {
                return Ok(());
            }
            if self.plan.is_restless && self.rng.random_range(0..RESTLESS) == 0 {
                return Ok(());
            }
        }
    }

    async fn see(&mut self, id: &str, data: &str) -> Result<(), String> {
        let event: Value = serde_json::from_str(data).map_err(|why| why.to_string())?;
        let seq = event["seq"].as_i64().ok_or("an event without seq")?;
        if id != seq.to_string() {
            return Err(format!("id {id} on event {seq}"));
        }
        let kind = event["kind"].as_str().unwrap_or_default().to_owned();
        let is_last = ["completed", "failed", "cancelled"].contains(&kind.as_str());
        self.seen.push(Sight { seq, kind, digest: digest(&event) });
        self.cursor = seq;
        if is_last {
            self.is_done = true;
            self.last = event.clone();
            self.note(Outcome::Ok, None);
        }
        if let Some(told) = &self.told {
            // Who asked to be told may have heard enough.
            let _ = told.send(event).await;
        }
        Ok(())
    }

    fn note(&mut self, f: Outcome, why: Option<String>) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.client.fleet().history.note(Fact::Watch {
            f,
            who: self.plan.who,
            turn: self.turn.clone(),
            seen: std::mem::take(&mut self.seen),
            code: text(&self.last["error"]["code"]),
            text: text(&self.last["text"]),
            connects: self.connects,
            slot: self.slot,
            reset_at: self.reset_at,
            why,
        });
    }
}

/// A digest of an event's own fields: the same for the same event, on the wire and in the database.
pub fn digest(event: &Value) -> u64 {
    let mut fields = event.clone();
    if let Some(fields) = fields.as_object_mut() {
        for envelope in ["turn_id", "seq", "kind", "at", "attempt"] {
            fields.remove(envelope);
        }
    }
    let mut hasher = DefaultHasher::new();
    // Keys are sorted, so equal objects are equal texts.
    fields.to_string().hash(&mut hasher);
    hasher.finish()
}
