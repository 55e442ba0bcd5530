//! Accepting a turn: from a request's body to a turn that is durable.
//!
//! Keeps I1: nothing is answered before the commit is known. A commit that is not known is asked for
//! again with the very same turn, for two seconds; the client's own repeat, under its idempotency
//! key, goes on from there. Keeps I12: once begun, an accept runs to its end, whether or not the
//! client that asked for it is still there.

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
    },
    stream::Tail,
    task::Kind,
    telemetry::metrics,
    token,
    turn::{Status, Turn},
};

/// What an accept with an agent that has a newer revision is refused with.
const NEWER_AGENT: &str = "LW412";
/// A `traceparent` of the first version.
const TRACEPARENT_CHARS: usize = 55;

/// A new turn as a client asks for it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TurnRequest {
    /// The agent's name.
    pub agent: String,
    /// What the user says: a text, or a text with attachments.
    pub input: Input,
    /// The conversation to go on with; absent: a new one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub conversation_id: Option<ConversationId>,
    /// The client's own; comes back with the turn.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonObject>,
    /// Answer with the turn's event stream.
    #[serde(default)]
    pub stream: Option<bool>,
    /// What to do when the conversation is busy.
    #[serde(default)]
    pub if_busy: IfBusy,
    /// What becomes of the turn when the client that waits for its answer goes away.
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
    /// The conversation to go on with.
    pub conversation: Option<ConversationId>,
    /// JSON text.
    pub metadata: Option<String>,
    /// The turn it repeats.
    pub retry_of: Option<TurnId>,
    /// The client's key and the hash of its request.
    pub idempotency: Option<(String, String)>,
    /// What to do when the conversation is busy.
    pub if_busy: IfBusy,
    /// What to do when the client goes away.
    pub on_disconnect: OnDisconnect,
    /// Whose share it takes from.
    pub who: Who,
    /// Whether its log is followed at once: whoever is there before it begins misses nothing of it.
    pub is_followed: bool,
    /// W3C trace context.
    pub traceparent: String,
}

impl TurnRequest {
    /// The order that this request is; `key` is the client's idempotency key.
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
        // How the answer is delivered is no part of what is asked for: `stream` may differ.
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

/// The hash that an idempotency key is bound to.
pub fn hash_of(asked: &impl Serialize) -> Result<String, Problem> {
    let canonical = serde_json::to_string(asked).map_err(|why| Problem::internal(&why))?;
    Ok(token::digits(&token::hash(&canonical)))
}

/// A turn that is durable.
#[derive(Debug)]
pub struct AcceptedTurn {
    /// Which.
    pub id: TurnId,
    /// How it looked when it was accepted; `None` where it had been accepted before.
    pub turn: Option<Turn>,
    /// A reader of its log, where one was there before it began.
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
            status: if accepted.is_running() { Status::Running } else { Status::Queued }.to_string(),
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

/// Accepts a turn. The work is a task of its own, so that a client that leaves cuts nothing off. The room of its
/// body is `held` until then.
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
    gateway.supervisor.spawn(Kind::Client, "accepts", task);
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
    let room = gateway.shares().queue(store, who, &mut new).await?;
    let tail = is_followed.then(|| Tail::new(store, new.id, -1));
    let accepted = loop {
        match insist(|| store.accept(&new)).await {
            // Somebody has put a newer one since it was read.
            Err(StoreError::Refused { code, .. }) if code == NEWER_AGENT => {
                store.forget_newest(&new.agent.name);
                new.agent = agent(gateway, &new.agent.name).await?;
            }
            // Its commit may become known yet: the client can look for it.
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
        // A repeat may stand for a first try that did not come this far.
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

/// The trace context of a request: our own span's where it is traced, else the client's, else new.
pub fn traceparent(headers: &axum::http::HeaderMap) -> String {
    use crate::telemetry::trace;
    let sent = headers.get("traceparent").and_then(|value| value.to_str().ok());
    let sent = sent.filter(|text| trace::trace_id(text).is_some());
    // What a later version appends may be of any length, and a worker's line is not.
    let sent = sent.and_then(|text| text.get(..TRACEPARENT_CHARS)).map(str::to_owned);
    trace::current_traceparent().or(sent).unwrap_or_else(trace::new_traceparent)
}
