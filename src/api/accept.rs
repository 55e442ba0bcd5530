//! Accepting a turn: from the request's body to a durable turn.
//!
//! Keeps I1: no answer before the commit is known. If the outcome of a commit is unknown, the identical turn is sent
//! again for two seconds; after that the client can repeat the request under its idempotency key. Keeps I12: an
//! accept that has begun runs to its end, even if its client disconnects.

mod disconnect;
mod input;
mod interrupt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use utoipa::ToSchema;

use self::{disconnect::cancel_for_disconnect, input::canonical_input};
pub use self::{
    disconnect::{CancelOnDrop, OnDisconnect},
    input::{Input, JsonObject},
};
use super::{away::insist, bodies::BodyRoom, gateway::Gateway, problem::Problem, who::Who};
use crate::{
    frame,
    id::{ConversationId, TurnId},
    json,
    store::{
        StoreError,
        accept::{Accepted, IfBusy, NewTurn},
        turns::Agent,
        word::AcceptRefusal,
    },
    stream::Tail,
    task::TaskKind,
    telemetry::metrics,
    token,
    turn::{Status, Turn},
};

/// Length of a version 00 `traceparent`.
const TRACEPARENT_CHARS: usize = 55;

/// A request for a new turn.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TurnRequest {
    /// The agent's name.
    pub agent: String,
    /// The user's message: a text, or a text with attachments.
    pub input: Input,
    /// The conversation to continue. If absent, a new one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub conversation_id: Option<ConversationId>,
    /// The client's own data; returned with the turn.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonObject>,
    /// Answer with the turn's event stream.
    #[serde(default)]
    pub stream: Option<bool>,
    /// What to do if the conversation is busy.
    #[serde(default)]
    pub if_busy: IfBusy,
    /// What happens to the turn if the client that waits for its answer disconnects.
    #[serde(default)]
    pub on_disconnect: OnDisconnect,
}

/// A turn to be accepted, before its agent is looked up.
#[derive(Debug)]
pub struct TurnOrder {
    /// The agent's name.
    pub agent: String,
    /// JSON text of an [`Input`].
    pub input: String,
    /// The conversation to continue; `None`: a new one.
    pub conversation: Option<ConversationId>,
    /// The client's own data, as JSON text.
    pub metadata: Option<String>,
    /// The turn that this turn repeats.
    pub retry_of: Option<TurnId>,
    /// The client's idempotency key, and the hash of its request.
    pub idempotency: Option<(String, String)>,
    /// What to do if the conversation is busy.
    pub if_busy: IfBusy,
    /// What to do if the client disconnects.
    pub on_disconnect: OnDisconnect,
    /// The caller, whose share the turn counts against.
    pub who: Who,
    /// Whether the caller reads the log at once. The tail then subscribes before the accept and misses no
    /// notification.
    pub is_followed: bool,
    /// W3C trace context.
    pub traceparent: String,
}

impl TurnRequest {
    /// The order for this request; `key` is the client's idempotency key.
    pub fn into_order(
        self,
        who: Who,
        key: Option<String>,
        is_followed: bool,
        traceparent: String,
    ) -> Result<TurnOrder, Problem> {
        let agent = super::request::agent_name("agent", self.agent)?;
        if self.input.text.trim().is_empty() {
            return Err(Problem::invalid("input", "The text is empty."));
        }
        let internal = |why: serde_json::Error| Problem::internal(&why);
        let input = serde_json::to_string(&self.input).map_err(internal)?;
        let metadata = self.metadata.map(|JsonObject(object)| object.text().to_owned());
        let said = canonical_input(&input).map_err(internal)?;
        let more = metadata.as_deref().map(json::read).transpose().map_err(internal)?;
        let more = more.map(|value| value.to_string());
        // `stream` is not hashed: it changes the delivery of the answer, not the turn.
        let asked = (&agent, &said, self.conversation_id, &more, self.if_busy, self.on_disconnect, "turn");
        let hash = hash_of(&asked)?;
        Ok(TurnOrder {
            agent,
            input,
            conversation: self.conversation_id,
            metadata,
            retry_of: None,
            idempotency: key.map(|key| (key, hash)),
            if_busy: self.if_busy,
            on_disconnect: self.on_disconnect,
            who,
            is_followed,
            traceparent,
        })
    }
}

/// The request hash that an idempotency key is bound to.
pub fn hash_of(asked: &impl Serialize) -> Result<String, Problem> {
    let canonical = serde_json::to_string(asked).map_err(|why| Problem::internal(&why))?;
    Ok(token::digits(&token::hash(&canonical)))
}

/// A durable turn.
#[derive(Debug)]
pub struct AcceptedTurn {
    /// The turn's id.
    pub id: TurnId,
    /// The turn as it was accepted; `None` for a repeat, whose turn was accepted before.
    pub turn: Option<Turn>,
    /// A reader of the log that subscribed before the accept, if one was asked for.
    pub tail: Option<Tail>,
}

impl AcceptedTurn {
    fn of(new: &NewTurn, accepted: &Accepted, tail: Option<Tail>) -> AcceptedTurn {
        let id = accepted.id;
        let running_since = accepted.is_running().then_some(accepted.at);
        let turn = Turn {
            id: id.to_string(),
            conversation_id: new.conversation.to_string(),
            agent: new.agent.name.clone(),
            ordinal: accepted.ordinal,
            status: if accepted.is_running() { Status::Running } else { Status::Queued }.into(),
            attempt: i32::from(accepted.is_running()),
            created_at: accepted.at,
            started_at: running_since,
            finished_at: None,
            text: None,
            error: None,
            usage: None,
            metadata: new.metadata.clone().and_then(|text| RawValue::from_string(text).ok()),
            retry_of: new.retry_of.map(|turn| turn.to_string()),
            events_url: format!("/v1/turns/{id}/events"),
        };
        AcceptedTurn { id, turn: (!accepted.is_repeat).then_some(turn), tail: tail.filter(|_| id == new.id) }
    }
}

/// Accepts a turn. The work is a task of its own, so a client that disconnects interrupts nothing. `held`, the room
/// of the request's body, is released when the accept has ended.
pub async fn accept(gateway: &Gateway, order: TurnOrder, held: BodyRoom) -> Result<AcceptedTurn, Problem> {
    let (reply, accepted) = oneshot::channel();
    let task = {
        let gateway = gateway.clone();
        async move {
            let on_disconnect = order.on_disconnect;
            let outcome = accept_here(&gateway, order).await;
            drop(held);
            if let Err(Ok(made)) = reply.send(outcome)
                && on_disconnect == OnDisconnect::Cancel
            {
                cancel_for_disconnect(&gateway, made.id).await;
            }
        }
    };
    gateway.supervisor.spawn(TaskKind::Client, "accepts", task);
    accepted.await.unwrap_or_else(|_| Err(Problem::internal(&"an accept did not come to its end")))
}

async fn accept_here(gateway: &Gateway, order: TurnOrder) -> Result<AcceptedTurn, Problem> {
    let store = &gateway.store;
    let (is_followed, who) = (order.is_followed, order.who);
    if !frame::is_deliverable(&order.input) {
        return Err(Problem::undeliverable("input", frame::INPUT_BYTES_MAX));
    }
    let mut new = {
        let agent = agent(gateway, &order.agent).await?;
        new_turn(gateway, order, agent)
    };
    let room = gateway.doors.shares.queue(store, who, &mut new).await?;
    let tail = is_followed.then(|| Tail::new(store, new.id, -1));
    let accepted = loop {
        match insist(|| store.accept(&new)).await {
            // A newer revision was put after this one was read.
            Err(StoreError::Refused { code, .. }) if code == AcceptRefusal::NewerAgent => {
                store.forget_newest(&new.agent.name);
                new.agent = agent(gateway, &new.agent.name).await?;
            }
            // The turn may have been committed all the same. With its id, the client can look it up.
            Err(why) if why.is_away() => return Err(room.refusal(why).with("turn_id", new.id.to_string())),
            accepted => break accepted.map_err(|why| room.refusal(why))?,
        }
    };
    room.accepted(&accepted);
    if !accepted.is_repeat {
        metrics::turns_accepted(&new.agent.name);
    }
    tracing::info!(turn = %accepted.id, agent = new.agent.name, repeat = accepted.is_repeat, "accepted");
    if new.if_busy == IfBusy::Interrupt && !new.is_new_conversation {
        // Also for a repeat: the first try may have ended before this step.
        interrupt::interrupt_for(gateway, accepted.id, new.conversation).await;
    }
    Ok(AcceptedTurn::of(&new, &accepted, tail))
}

async fn agent(gateway: &Gateway, name: &str) -> Result<Agent, Problem> {
    let found = insist(|| gateway.store.agent_to_use(name)).await?;
    found.ok_or_else(|| Problem::not_found("agent").with("field", "agent"))
}

fn new_turn(gateway: &Gateway, order: TurnOrder, agent: Agent) -> NewTurn {
    let clock = gateway.store.clock();
    NewTurn {
        id: TurnId(order.who.0.mark(clock.mint())),
        conversation: order.conversation.unwrap_or_else(|| ConversationId(clock.mint())),
        is_new_conversation: order.conversation.is_none(),
        agent,
        input: order.input,
        metadata: order.metadata,
        traceparent: order.traceparent,
        retry_of: order.retry_of,
        idempotency: order.idempotency.map(|(key, hash)| (order.who.0.own_key(key), hash)),
        if_busy: order.if_busy,
        depth_max: gateway.config.conversation_depth_max,
        queue_max: gateway.config.queue_max,
    }
}

/// The trace context of a request: the current span if it is traced, else the client's header, else a new one.
pub fn traceparent(headers: &axum::http::HeaderMap) -> String {
    use crate::telemetry::trace;
    let sent = headers.get("traceparent").and_then(|value| value.to_str().ok());
    let sent = sent.filter(|text| trace::trace_id(text).is_some());
    // Later versions may append fields of any length, but a worker's line is limited.
    let sent = sent.and_then(|text| text.get(..TRACEPARENT_CHARS)).map(str::to_owned);
    trace::current_traceparent().or(sent).unwrap_or_else(trace::new_traceparent)
}
