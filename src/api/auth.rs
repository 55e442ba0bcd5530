//! Access: bearer tokens of clients, operators and workers, and the callers allowed on routes without a token.
//!
//! Operators' routes always need an operator's token, because a caller who can put an agent can run any program. The
//! configured tokens are in [`keys`].

mod guesses;
mod keys;
mod pages;
mod readers;
mod strangers;
mod ticket;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use axum::{
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::Response,
};

pub use self::{
    guesses::Guesses,
    keys::{Keys, Role},
    readers::{ByTicket, reader},
    strangers::Strangers,
    ticket::Ticket,
};
use self::{keys::bearer, pages::Openness};
use super::{cors::Origins, gateway::Gateway, peer::Peer, problem::Problem, who::Who};
use crate::{
    id::TurnId,
    store::{StoreError, remote_turns::Proof, worker_tokens::Grant},
    token::{self, Purpose, TokenHash},
};

/// Middleware of the client routes: lets clients and operators in.
pub async fn client(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let caller = Caller::of(&request);
    let keys = &gateway.doors.keys;
    if keys.openness == Openness::Closed && keys.role(request.headers()) < Role::Client {
        return Err(caller.refused(&gateway).await);
    }
    let who = Who(keys.principal(request.headers()));
    request.extensions_mut().insert(who);
    Ok(next.run(request).await)
}

/// Middleware of the operators' routes: lets operators in.
pub async fn operator(
    State(gateway): State<Gateway>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let caller = Caller::of(&request);
    match gateway.doors.keys.role(request.headers()) {
        Role::Operator => Ok(next.run(request).await),
        Role::Client => Err(Problem::forbidden("This route needs an operator's token.")),
        Role::Anybody => Err(caller.refused(&gateway).await),
    }
}

/// Middleware of the metrics: lets operators in, and callers on this machine if the gateway listens only on loopback.
pub async fn metrics(
    State(gateway): State<Gateway>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let keys = &gateway.doors.keys;
    if keys.openness_of_metrics == Openness::Closed {
        return operator(State(gateway), request, next).await;
    }
    if keys.role(request.headers()) < Role::Operator {
        keys.openness_of_metrics.admits(request.method(), request.headers(), &Origins::default())?;
    }
    Ok(next.run(request).await)
}

/// Middleware of all routes: if client routes are open, refuses pages of other sites and requests forwarded by
/// proxies.
pub async fn page(State(gateway): State<Gateway>, request: Request, next: Next) -> Result<Response, Problem> {
    gateway.doors.keys.admits_here(&request)?;
    Ok(next.run(request).await)
}

/// A caller without a known token, for the limits of refusals.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    from: IpAddr,
    shows_a_token: bool,
}

impl Caller {
    fn of(request: &Request) -> Caller {
        Caller { from: address(request), shows_a_token: bearer(request.headers()).is_some() }
    }

    /// The refusal of a request without a valid token. An unknown token may be a guess, and is refused with a delay.
    async fn refused(self, gateway: &Gateway) -> Problem {
        if self.shows_a_token {
            gateway.doors.guesses.refuse(&gateway.supervisor, self.from).await
        } else {
            Problem::unauthorized()
        }
    }
}

/// What a worker's token allows, known before the body is read.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The hash of the worker's token.
    pub token_hash: TokenHash,
    /// The grant of a minted token. `None`: a configured token, which is good for any agent, or a token that is known
    /// to the rendezvous.
    pub grant: Option<Grant>,
}

/// A caller with a turn's token, of which only the form was checked.
#[derive(Debug, Clone, Copy)]
pub struct Speaker {
    /// The hash of the token.
    pub token_hash: TokenHash,
    caller: Caller,
}

/// Middleware of the registration: lets in a worker with a valid token.
pub async fn newcomer(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (caller, shown) = (Caller::of(&request), shown(&request, Purpose::Worker, &gateway));
    let Some(token_hash) = shown else { return Err(caller.refused(&gateway).await) };
    let grant = match gateway.doors.keys.is_workers(&token_hash) {
        true => None,
        false => Some(granted(&gateway, token_hash, caller).await?),
    };
    request.extensions_mut().insert(Admission { token_hash, grant });
    Ok(next.run(request).await)
}

/// Middleware of the worker routes: lets in a registered worker, or one that must be told to register.
pub async fn worker(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (caller, shown) = (Caller::of(&request), shown(&request, Purpose::Worker, &gateway));
    let Some(token_hash) = shown else { return Err(caller.refused(&gateway).await) };
    let is_known = gateway.doors.keys.is_workers(&token_hash) || gateway.rendezvous.knows(&token_hash);
    let grant = match is_known {
        true => None,
        false => Some(granted(&gateway, token_hash, caller).await?),
    };
    request.extensions_mut().insert(Admission { token_hash, grant });
    Ok(next.run(request).await)
}

/// Middleware of the messages: lets in a caller whose token may be a turn's token. The route then checks the token
/// with [`may_speak`].
pub async fn speaker(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (caller, shown) = (Caller::of(&request), shown(&request, Purpose::Turn, &gateway));
    let Some(token_hash) = shown else { return Err(caller.refused(&gateway).await) };
    request.extensions_mut().insert(Speaker { token_hash, caller });
    Ok(next.run(request).await)
}

/// Whether this speaker may send the turn's messages. Checked before the body is read and before the turn is adopted
/// here: a stranger must cause neither.
pub async fn may_speak(gateway: &Gateway, speaker: Speaker, turn: TurnId, epoch: i32) -> Result<(), Problem> {
    let Speaker { token_hash, caller } = speaker;
    if let Some(line) = gateway.rendezvous.line(turn, epoch) {
        return match token::is_same(&line.token_hash, &token_hash) {
            true => Ok(()),
            false => Err(caller.refused(gateway).await),
        };
    }
    // This replica adopts no turns, so the token need not be looked up.
    if !gateway.rendezvous.takes_turns() {
        return Err(Problem::elsewhere());
    }
    let key = (turn, epoch, Proof::Token(token_hash));
    let store = gateway.store.clone();
    let look = move |asked: Vec<_>| {
        let store = store.clone();
        async move {
            let offered = store.offered(&asked).await?;
            Ok::<HashMap<_, ()>, StoreError>(offered.into_iter().map(|key| (key, ())).collect())
        }
    };
    let found = gateway.doors.speakers.ask(&gateway.supervisor, (key, caller.from), look).await;
    match found.ok_or_else(Problem::elsewhere)?? {
        Some(()) => Ok(()),
        None => Err(caller.refused(gateway).await),
    }
}

/// The hash of a request's bearer token; `None` if there is none, or if its form shows another purpose.
fn shown(request: &Request, purpose: Purpose, gateway: &Gateway) -> Option<TokenHash> {
    let token = bearer(request.headers())?;
    let hash = token::hash(token);
    // A configured token may have any form.
    (token::may_be(purpose, token) || gateway.doors.keys.is_workers(&hash)).then_some(hash)
}

/// The grant of a token that is not configured here.
async fn granted(gateway: &Gateway, token_hash: TokenHash, caller: Caller) -> Result<Grant, Problem> {
    let store = gateway.store.clone();
    let look = move |hashes: Vec<TokenHash>| {
        let store = store.clone();
        async move { store.worker_grants(&hashes).await }
    };
    let found = gateway.doors.newcomers.ask(&gateway.supervisor, (token_hash, caller.from), look).await;
    match found.ok_or_else(Problem::elsewhere)?? {
        Some(grant) => Ok(grant),
        None => Err(caller.refused(gateway).await),
    }
}

/// The client's IP address, according to the connection.
fn address(request: &Request) -> IpAddr {
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |ConnectInfo(peer)| peer.address().ip())
}
