//! The outbox of one turn: messages of its worker that the gateway has not acknowledged.
//!
//! Owns the message numbers. A message is kept until it is acknowledged, and sent again after a broken call, to
//! whichever replica is called then; its number makes the repetition harmless. Bounded: a full outbox holds the
//! worker back.

use std::{collections::VecDeque, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::link::GatewayLink;
use lastword_words::id::TurnId;

/// Messages, and their bytes, that may wait.
const MESSAGES_MAX: usize = 1024;
const BYTES_MAX: usize = 1024 * 1024;
/// Messages, and their bytes, in one batch.
const BATCH_MESSAGES_MAX: usize = 512;
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// A batch is answered after its commit. The beat notices a dead replica.
const POST_TIMEOUT: Duration = Duration::from_secs(60);

/// The result of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// The batch is committed.
    Done,
    /// The turn no longer belongs to this host.
    Over,
}

type Posting = Pin<Box<dyn Future<Output = Posted> + Send>>;

/// One turn's outbox.
pub struct Outbox {
    link: Arc<GatewayLink>,
    turn: TurnId,
    epoch: i32,
    token: String,
    /// Cancelled when the turn is over.
    over: CancellationToken,
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The number of the first waiting message.
    first: u64,
    /// The call in flight, and its number of messages.
    posting: Option<(Posting, usize)>,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outbox { turn, epoch, first, bytes, .. } = self;
        write!(f, "Outbox({turn}, epoch {epoch}: {bytes} B from message {first} on)")
    }
}

impl Outbox {
    pub fn new(
        link: Arc<GatewayLink>,
        (turn, epoch): (TurnId, i32),
        token: String,
        over: CancellationToken,
    ) -> Outbox {
        let (waiting, bytes, first, posting) = (VecDeque::new(), 0, 1, None);
        Outbox { link, turn, epoch, token, over, waiting, bytes, first, posting }
    }

    /// Takes the turn. The worker may begin only after the answer.
    pub async fn take(&mut self) -> Posted {
        self.call(Vec::new()).await
    }

    /// Keeps a message until it is acknowledged.
    pub fn push(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.waiting.push_back(line);
    }

    /// Whether the worker must not be read for now.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= MESSAGES_MAX || self.bytes >= BYTES_MAX
    }

    /// Whether every message is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Posts waiting messages once the previous call is answered. Returns a call's result; never returns if there
    /// is nothing to post. Cancel-safe.
    pub async fn posted(&mut self) -> Posted {
        if self.posting.is_none() && !self.waiting.is_empty() {
            let (batch, messages) = self.batch();
            self.posting = Some((Box::pin(self.call(batch)), messages));
        }
        let Some((posting, messages)) = &mut self.posting else {
            return std::future::pending().await;
        };
        let (posted, messages) = (posting.await, *messages);
        self.posting = None;
        if posted == Posted::Done {
            let acknowledged = self.waiting.drain(..messages);
            self.bytes -= acknowledged.map(|line| line.len()).sum::<usize>();
            self.first += messages as u64;
        }
        posted
    }

    fn batch(&self) -> (Vec<u8>, usize) {
        let (mut batch, mut messages) = (Vec::new(), 0);
        for line in self.waiting.iter().take(BATCH_MESSAGES_MAX) {
            if messages > 0 && batch.len() + line.len() > BATCH_BYTES_MAX {
                break;
            }
            batch.extend_from_slice(line);
            messages += 1;
        }
        (batch, messages)
    }

    fn call(&self, batch: Vec<u8>) -> impl Future<Output = Posted> + Send + use<> {
        let (link, token, over) = (self.link.clone(), self.token.clone(), self.over.clone());
        let path = format!("turns/{}/messages?epoch={}&n={}", self.turn, self.epoch, self.first);
        async move {
            let posting = post(&link, &path, &token, &batch);
            over.run_until_cancelled(posting).await.unwrap_or(Posted::Over)
        }
    }
}

/// Posts a batch until an answer is final.
async fn post(link: &GatewayLink, path: &str, token: &str, batch: &[u8]) -> Posted {
    let mut routes = link.routes();
    loop {
        // Cannot fail: the sender lives as long as the link.
        let Ok(route) = routes.wait_for(Option::is_some).await.map(|route| route.clone()) else {
            return Posted::Over;
        };
        let Some(route) = route else { continue };
        let asked = link.post(&route, path, token, batch.to_vec(), POST_TIMEOUT);
        let answered = tokio::select! {
            answered = asked => answered,
            // The batch is sent again to the new replica; its numbers make that harmless.
            _ = routes.changed() => continue,
        };
        match answered.map(|answer| answer.status().as_u16()) {
            Ok(200 | 204) => return Posted::Done,
            Ok(status @ (400..=403 | 405..=407 | 409..=417)) => {
                if !matches!(status, 403 | 410) {
                    tracing::error!(
                        path,
                        status,
                        "the gateway refuses messages of a turn; the turn ends here"
                    );
                }
                return Posted::Over;
            }
            Ok(status) => tracing::debug!(path, status, "messages not delivered; trying again"),
            Err(why) => tracing::debug!(path, %why, "messages not delivered; trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(rand::random_range(50..200))) => {}
            _ = routes.changed() => {}
        }
    }
}
