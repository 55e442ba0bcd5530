//! A remote worker's beat: a long poll that names the worker's turns and returns their orders.
//!
//! Keeps I11: a turn that the worker no longer has is reported as over.

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

/// How long a beat waits by default, in milliseconds.
const WAIT_DEFAULT_MS: u64 = 1000;
const WAIT_MAX_MS: u64 = 5000;
/// Turns that one beat may name.
const TURNS_MAX: usize = 10_000;
/// Concurrent adoptions per beat, and the total time to wait for them: a worker takes a replica for dead after 3 s of
/// silence. A requested adoption completes even if the wait ends first.
const MOVES_MAX: usize = 128;
const MOVES_WITHIN: Duration = Duration::from_secs(1);

/// A worker's beat.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BeatRequest {
    /// `wrk_…`
    #[schema(value_type = String)]
    worker_id: WorkerId,
    /// The worker's turns: every turn that it was offered and that is not over for it.
    turns: Vec<Named>,
    /// How long to wait for orders, in milliseconds.
    #[serde(default = "wait_default")]
    #[schema(minimum = 0, maximum = 5000)]
    wait_ms: u64,
    /// The total time for which the worker could not read from a process, because that process had too much output
    /// for another turn. This time does not count as silence of a turn.
    #[serde(default)]
    waited_ms: Option<u64>,
    /// The worker takes no more turns. Without any turns, the worker has left.
    #[serde(default)]
    is_leaving: bool,
}

/// A turn that the worker names.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// `turn_…`
    #[schema(value_type = String)]
    turn_id: TurnId,
    /// The attempt.
    epoch: i32,
    /// The keys of orders that the worker has received.
    #[serde(default)]
    told: Vec<String>,
}

fn wait_default() -> u64 {
    WAIT_DEFAULT_MS
}

/// The response to a beat.
#[derive(Debug, Serialize, ToSchema)]
pub struct Beat {
    /// Orders to pass on.
    orders: Vec<OrderView>,
    /// Turns that the worker no longer has; it must end all work on them.
    over: Vec<Over>,
    /// The worker should move to another replica. This replica serves the worker until then.
    should_move: bool,
    /// An operator has asked the worker to stop.
    should_stop: bool,
}

/// An order for a turn's worker, repeated until the worker lists its key in `told`.
#[derive(Debug, Serialize, ToSchema)]
pub struct OrderView {
    /// `cancel`, or a key of the question that is answered.
    key: String,
    /// `turn_…`
    #[schema(value_type = String)]
    turn_id: TurnId,
    /// A message of the native protocol.
    #[schema(value_type = Object)]
    order: Box<RawValue>,
}

impl OrderView {
    pub(super) fn of(turn_id: TurnId, order: OrderToTell) -> Result<OrderView, Problem> {
        let message = RawValue::from_string(order.message).map_err(|why| Problem::internal(&why))?;
        Ok(OrderView { key: order.key, turn_id, order: message })
    }
}

/// A turn that the worker no longer has.
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

/// A line that counts as connected while the beat is open.
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
    let open = session.liveness.beat();
    if let Some(peer) = peer
        && let Some(cut_off) = session.liveness.came_by(peer.number())
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

/// The lines of the turns that a worker names, and the turns that are over for the worker. Turns held by other
/// replicas are adopted here, many at a time. Turns that cannot be adopted right now or in time are omitted; the
/// worker names them again on its next beat.
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
            AdoptOutcome::Held(line) if line.worker == worker => {
                let open = line.liveness.beat();
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

/// Waits until there is something to report, or until `until`.
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
            .flat_map(|it| it.line.untold().into_iter().map(|order| (it.line.turn, order)))
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

/// Removes a worker that leaves.
async fn leave(gateway: &Gateway, session: &Arc<WorkerSession>) -> Result<Beat, Problem> {
    gateway.rendezvous.dismiss(session);
    gateway.store.remote_worker_ended(session.worker.id, "left").await?;
    Ok(Beat { orders: Vec::new(), over: Vec::new(), should_move: false, should_stop: false })
}
