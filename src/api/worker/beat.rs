//! A remote worker's proof of life: a long poll that names its turns, and brings their orders.
//!
//! Keeps I11: a turn that is not the worker's any more is told as over.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{Extension, extract::State};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};
use utoipa::ToSchema;

use super::{session, still_let_in};
use crate::{
    api::{
        answer::Json,
        auth::Admission,
        gateway::Gateway,
        peer::Connection,
        problem::{Problem, ProblemDocument},
        request::Strict,
    },
    id::{TurnId, WorkerId},
    rendezvous::{AdoptOutcome, Line, OpenRequest, OrderToTell, WorkerSession},
    store::remote_turns::Proof,
};

/// How long a beat is kept open, in milliseconds.
const WAIT_DEFAULT_MS: u64 = 1000;
const WAIT_MAX_MS: u64 = 5000;
/// Turns that one beat may name.
const TURNS_MAX: usize = 10_000;
/// Turns that one beat waits for at a time while they are moved here, and for how long in all: its worker takes a
/// replica that is silent for 3 s for gone. What was asked for is moved all the same.
const MOVES_MAX: usize = 128;
const MOVES_WITHIN: Duration = Duration::from_secs(1);

/// Who lives, and what it runs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BeatRequest {
    /// `wrk_…`
    #[schema(value_type = String)]
    worker_id: WorkerId,
    /// Turns that it was offered and that are not over for it.
    turns: Vec<Named>,
    /// How long to wait for orders, in milliseconds.
    #[serde(default = "wait_default")]
    #[schema(minimum = 0, maximum = 5000)]
    wait_ms: u64,
    /// For how long, in all, it could not hear what a process said of one turn, since that had too much to say of
    /// another. It is nobody's silence.
    #[serde(default)]
    waited_ms: Option<u64>,
    /// It takes no more turns; with no turn at all it has left.
    #[serde(default)]
    is_leaving: bool,
}

/// A turn of the worker.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// `turn_…`
    #[schema(value_type = String)]
    turn_id: TurnId,
    /// The attempt.
    epoch: i32,
    /// Keys of the orders that it has been told.
    #[serde(default)]
    told: Vec<String>,
}

fn wait_default() -> u64 {
    WAIT_DEFAULT_MS
}

/// What a worker must hear.
#[derive(Debug, Serialize, ToSchema)]
pub struct Beat {
    /// What is to be passed on.
    orders: Vec<OrderView>,
    /// Turns that are not the worker's any more; whatever it still does for them is to be ended.
    over: Vec<Over>,
    /// Another replica would do better. This one goes on until the worker has turned to it.
    should_move: bool,
    /// An operator wants the worker to end.
    should_stop: bool,
}

/// Something for a turn's worker; it comes until its key is among those `told`.
#[derive(Debug, Serialize, ToSchema)]
pub struct OrderView {
    /// `cancel`, or one of the question's.
    key: String,
    /// `turn_…`
    #[schema(value_type = String)]
    turn_id: TurnId,
    /// The native protocol's message.
    #[schema(value_type = Object)]
    order: Box<RawValue>,
}

impl OrderView {
    pub(super) fn of(turn_id: TurnId, order: OrderToTell) -> Result<OrderView, Problem> {
        let message = RawValue::from_string(order.message).map_err(|why| Problem::internal(&why))?;
        Ok(OrderView { key: order.key, turn_id, order: message })
    }
}

/// A turn that is not the worker's any more.
#[derive(Debug, Serialize, ToSchema)]
pub struct Over {
    /// `turn_…`
    #[schema(value_type = String)]
    turn_id: TurnId,
    /// The attempt.
    epoch: i32,
    /// `turn_ended` or `epoch_stale`.
    code: &'static str,
}

/// A line that the beat keeps open.
struct HeardLine {
    line: Arc<Line>,
    open: OpenRequest,
}

/// Proves that a worker lives, and waits for orders to its turns.
#[utoipa::path(post, path = "/v1/worker/beat", tag = "remote workers", request_body = BeatRequest,
    responses(
        (status = 200, body = Beat),
        (status = 404, description = "`worker_not_found`: register first", body = ProblemDocument),
    ))]
pub async fn beat(
    State(gateway): State<Gateway>,
    Extension(admission): Extension<Admission>,
    Connection(peer): Connection,
    Strict(request): Strict<BeatRequest>,
) -> Result<Json<Beat>, Problem> {
    let session = session(&gateway, &admission, request.worker_id)?;
    if request.wait_ms > WAIT_MAX_MS {
        return Err(Problem::invalid("wait_ms", "It must lie between 0 and 5000."));
    }
    if request.turns.len() > TURNS_MAX {
        return Err(Problem::invalid("turns", "It takes 10000 at most."));
    }
    let until = Instant::now() + Duration::from_millis(request.wait_ms);
    if request.is_leaving {
        session.leave();
    }
    let has_left = request.is_leaving && request.turns.is_empty();
    let open = session.liveness().beat();
    if let Some(peer) = peer
        && let Some(cut_off) = session.liveness().came_by(peer.number())
    {
        peer.at_end(cut_off);
    }
    let waited = request.waited_ms.map(Duration::from_millis);
    let (heard, over) = hear(&gateway, request.worker_id, request.turns).await;
    if let Some(waited) = waited {
        heard.iter().for_each(|heard| heard.line.note_waited(waited));
    }
    let beat = match has_left {
        true => leave(&gateway, &session).await,
        false => listen(&gateway, &session, &heard, over, until).await,
    };
    heard.into_iter().for_each(|heard| heard.open.answered());
    open.answered();
    still_let_in(&gateway, &session)?;
    beat.map(Json)
}

/// The lines of the turns that a worker names, and those that are over for it. Those that are held elsewhere are moved
/// here, many at a time. Of a turn that can be had neither here nor now, nor in time, nothing is said: the worker names
/// it again.
async fn hear(gateway: &Gateway, worker: WorkerId, turns: Vec<Named>) -> (Vec<HeardLine>, Vec<Over>) {
    let rendezvous = &gateway.rendezvous;
    let (mut heard, mut over) = (Vec::new(), Vec::new());
    let judged = stream::iter(turns).map(|named| async move {
        let outcome = rendezvous.line_or_move(named.turn_id, named.epoch, Proof::Worker(worker)).await;
        (named, outcome)
    });
    let mut judged = pin!(judged.buffer_unordered(MOVES_MAX).take_until(sleep(MOVES_WITHIN)));
    while let Some((Named { turn_id, epoch, told }, outcome)) = judged.next().await {
        let code = match outcome {
            AdoptOutcome::Held(line) if line.worker() == worker => {
                let open = line.liveness().beat();
                line.note_told(told);
                heard.push(HeardLine { line, open });
                continue;
            }
            AdoptOutcome::Held(_) | AdoptOutcome::Unknown | AdoptOutcome::Stale => "epoch_stale",
            AdoptOutcome::Ended => "turn_ended",
            AdoptOutcome::Elsewhere | AdoptOutcome::Failed(_) => continue,
        };
        over.push(Over { turn_id, epoch, code });
    }
    (heard, over)
}

/// Waits until there is something to say.
async fn listen(
    gateway: &Gateway,
    session: &Arc<WorkerSession>,
    heard: &[HeardLine],
    over: Vec<Over>,
    until: Instant,
) -> Result<Beat, Problem> {
    let rendezvous = &gateway.rendezvous;
    let before = (rendezvous.takes_turns(), session.is_stopped(), session.is_leaving());
    let is_said = !over.is_empty();
    let number = session.listen();
    let look = || {
        let orders: Vec<(TurnId, OrderToTell)> = heard
            .iter()
            .flat_map(|it| it.line.untold().into_iter().map(|order| (it.line.turn(), order)))
            .collect();
        let has_ended = heard.iter().any(|it| it.line.end().is_some());
        let is_over = is_said || session.is_heard_anew(number);
        let is_changed = before != (rendezvous.takes_turns(), session.is_stopped(), session.is_leaving());
        let has_news = is_over || has_ended || is_changed;
        (has_news || !orders.is_empty()).then_some(orders)
    };
    let orders = session.look_until(until, look).await.unwrap_or_default().into_iter();
    let orders = orders.map(|(turn, order)| OrderView::of(turn, order)).collect::<Result<_, _>>()?;
    Ok(Beat { orders, over, should_move: !rendezvous.takes_turns(), should_stop: session.is_stopped() })
}

/// A worker says goodbye.
async fn leave(gateway: &Gateway, session: &Arc<WorkerSession>) -> Result<Beat, Problem> {
    gateway.rendezvous.dismiss(session);
    gateway.store.remote_worker_ended(session.worker().id, "left").await?;
    Ok(Beat { orders: Vec::new(), over: Vec::new(), should_move: false, should_stop: false })
}
