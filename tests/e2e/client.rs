//! One client: posts with a key, and follows turns from replica to replica by its cursor.
//!
//! Owns single requests and the moves to another replica. After an unknown outcome the client repeats the request with
//! the same key. A stream that is cut, or told to reconnect, continues at another replica after the newest event that
//! was seen. `support::EventStream` checks the events of a stream on the way.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    Args,
    doors::Doors,
    support::{Event, EventStream, Next, check_log},
};

/// How long one request may take before its outcome is unknown.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// How long a client goes on asking.
const ASK_MAX: Duration = Duration::from_secs(60);
/// How long a turn may say nothing: longer than Postgres is ever away here.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Before a door that did not answer is left for the other one.
const PAUSE: Duration = Duration::from_millis(50);
/// Events of one page.
const PAGE_ROWS: usize = 1000;

/// Clones are the same client.
#[derive(Clone)]
pub struct Client {
    doors: Arc<Doors>,
    http: reqwest::Client,
    token: Option<String>,
    agent: String,
    shared: Arc<Shared>,
}

/// What all clones count together.
#[derive(Default)]
struct Shared {
    keys: AtomicUsize,
    live: AtomicUsize,
    /// Posts that the front did not accept at once.
    refused: AtomicUsize,
    /// Every turn that was accepted and followed to its end, with what was seen.
    seen: Mutex<Vec<(String, Vec<Event>)>>,
}

/// How a turn was followed.
#[derive(Debug)]
pub struct Followed {
    /// All of them, checked: no gap, no repeat, one last word.
    pub events: Vec<Event>,
    /// When the last word came.
    pub ended_at: Instant,
    /// From each cut to the answer with which the stream went on.
    pub resumes: Vec<Duration>,
}

impl Followed {
    /// The last word.
    pub fn last(&self) -> &Event {
        self.events.last().expect("a log that was checked has a last word")
    }
}

impl Client {
    /// Every request has its own connection, as if each came from somebody else.
    pub fn new(args: &Args, doors: Arc<Doors>) -> Client {
        let http = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .connect_timeout(Duration::from_secs(1))
            .build();
        let http = http.expect("a client");
        let (token, agent) = (args.token.clone(), args.agent.clone());
        Client { doors, http, token, agent, shared: Arc::default() }
    }

    /// A new key for one message.
    pub fn key(&self) -> String {
        let n = self.shared.keys.fetch_add(1, Ordering::Relaxed);
        format!("e2e-{:08x}-{n}", rand::random::<u32>())
    }

    /// Streams that are open now.
    pub fn live(&self) -> usize {
        self.shared.live.load(Ordering::Relaxed)
    }

    /// Posts that the front, which leads to replicas that are ready, did not accept at once.
    pub fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Every turn that was followed to its end.
    pub fn seen(&self) -> Vec<(String, Vec<Event>)> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Posts a message in a new conversation, first at this door, until a turn is accepted; its id.
    pub async fn post(&self, door: usize, text: &str) -> String {
        self.post_in(door, text, None).await["id"].as_str().expect("a turn has an id").to_owned()
    }

    /// The same in a conversation; the turn.
    pub async fn post_in(&self, mut door: usize, text: &str, conversation: Option<&str>) -> Value {
        let key = self.key();
        let began = Instant::now();
        loop {
            match self.post_once(door, text, conversation, &key).await {
                Ok(turn) => return turn,
                Err(why) => assert!(began.elapsed() < ASK_MAX, "nobody accepts a turn: {why}"),
            }
            if Some(door) == self.doors.front() {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
            }
            sleep(PAUSE).await;
            door = self.doors.elsewhere(door);
        }
    }

    /// Posts once; an error says what came instead of an acceptance, or that nothing did.
    pub async fn post_once(
        &self,
        door: usize,
        text: &str,
        conversation: Option<&str>,
        key: &str,
    ) -> Result<Value, String> {
        let mut body = json!({"agent": self.agent, "input": text});
        if let Some(conversation) = conversation {
            body["conversation_id"] = conversation.into();
        }
        let post = self.http.post(format!("{}/v1/turns", self.doors.url(door))).json(&body);
        let answer = self.with_token(post).header("idempotency-key", key).timeout(REQUEST_MAX).send().await;
        let answer = answer.map_err(|why| format!("{why:?}"))?;
        let status = answer.status();
        let said: Value = answer.json().await.map_err(|why| format!("{status}: {why:?}"))?;
        // What is wrong with the request itself is wrong everywhere.
        assert!(![400, 401, 403, 404, 422].contains(&status.as_u16()), "POST /v1/turns: {status} {said}");
        if status.is_success() { Ok(said) } else { Err(format!("{status} {said}")) }
    }

    /// Cancels a turn, at this door.
    pub async fn cancel(&self, door: usize, turn: &str) {
        let post = self.http.post(format!("{}/v1/turns/{turn}/cancel", self.doors.url(door)));
        let answer = self.with_token(post).timeout(REQUEST_MAX).send().await.expect("an answer to a cancel");
        assert!(answer.status().is_success(), "cancel of {turn}: {}", answer.status());
    }

    /// Follows a turn to its end, from this door on; `told` hears the newest `seq`.
    pub async fn follow(&self, turn: String, mut door: usize, told: Option<watch::Sender<i64>>) -> Followed {
        let mut events: Vec<Event> = Vec::new();
        let mut resumes = Vec::new();
        let mut cut_at: Option<Instant> = None;
        let mut ended_at: Option<Instant> = None;
        let began = Instant::now();
        loop {
            let after = events.last().map_or(-1, |event| event.seq);
            let mut stream = match self.open(&turn, after, door).await {
                Ok(stream) => stream,
                Err(why) => {
                    let lost_for = cut_at.unwrap_or(began).elapsed();
                    assert!(lost_for < ASK_MAX, "{turn} cannot be followed after {after}: {why}");
                    sleep(PAUSE).await;
                    door = self.doors.elsewhere(door);
                    continue;
                }
            };
            resumes.extend(cut_at.take().map(|cut| cut.elapsed()));
            let _live = Live::new(&self.shared);
            loop {
                match stream.next(SILENCE_MAX).await {
                    Next::Event(event) => {
                        if let Some(told) = &told {
                            told.send_replace(event.seq);
                        }
                        ended_at = event.is_terminal().then(Instant::now);
                        events.push(event);
                    }
                    Next::Ended | Next::Reconnect | Next::Cut(_) => break,
                    Next::Reset => panic!("{turn}: what was told does not stand any more"),
                }
            }
            // A clean end is one only behind the last word, which the stream itself checks; a cut behind it
            // costs nothing.
            if let Some(ended_at) = ended_at {
                check_log(&events, 0);
                self.note(&turn, &events);
                return Followed { events, ended_at, resumes };
            }
            cut_at = Some(Instant::now());
            door = self.doors.elsewhere(door);
        }
    }

    /// A turn's whole log as a list, from this door.
    pub async fn log(&self, turn: &str, door: usize) -> Vec<Event> {
        let url = format!("{}/v1/turns/{turn}/events?after=-1&limit={PAGE_ROWS}", self.doors.url(door));
        let ask =
            self.with_token(self.http.get(url)).header("accept", "application/json").timeout(REQUEST_MAX);
        let answer = ask.send().await.unwrap_or_else(|why| panic!("the log of {turn}: {why:?}"));
        let status = answer.status();
        let page: Value =
            answer.json().await.unwrap_or_else(|why| panic!("the log of {turn}: {status} {why:?}"));
        let items = page["events"].as_array().unwrap_or_else(|| panic!("the log of {turn}: {status} {page}"));
        assert!(items.len() < PAGE_ROWS, "{turn} has more events than a page");
        items.iter().cloned().map(Event::new).collect()
    }

    async fn open(&self, turn: &str, after: i64, door: usize) -> Result<EventStream, String> {
        let url = format!("{}/v1/turns/{turn}/events?after={after}", self.doors.url(door));
        let ask = self.with_token(self.http.get(url)).header("accept", "text/event-stream");
        let answer =
            tokio::time::timeout(REQUEST_MAX, ask.send()).await.map_err(|_| "no answer".to_owned())?;
        let answer = answer.map_err(|why| format!("{why:?}"))?;
        match answer.status().as_u16() {
            200 => Ok(EventStream::new(answer, turn, after)),
            status => Err(format!("{} answers {status}", self.doors.url(door))),
        }
    }

    fn with_token(&self, ask: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        self.token.iter().fold(ask, |ask, token| ask.bearer_auth(token))
    }

    /// All who saw a turn must have seen the same.
    fn note(&self, turn: &str, events: &[Event]) {
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.iter().rev().find(|(other, _)| other == turn) {
            Some((_, before)) => assert_eq!(before, events, "two clients saw different logs of {turn}"),
            None => seen.push((turn.to_owned(), events.to_vec())),
        }
    }
}

/// Counts an open stream for as long as it is one.
struct Live<'a>(&'a Shared);

impl Live<'_> {
    fn new(shared: &Shared) -> Live<'_> {
        shared.live.fetch_add(1, Ordering::Relaxed);
        Live(shared)
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}
