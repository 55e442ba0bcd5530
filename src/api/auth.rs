//! Who may: bearer tokens for clients, operators and workers, and who may call where no token is asked for.
//!
//! Operators' routes always need an operator's token: who may put an agent may run anything. The configured tokens
//! are in [`keys`].

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

/// Lets clients and operators through.
pub async fn client(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let caller = Caller::of(&request);
    let keys = gateway.keys();
    if keys.openness == Openness::Closed && keys.role(request.headers()) < Role::Client {
        return Err(caller.refused(&gateway).await);
    }
    let who = Who(keys.principal(request.headers()));
    request.extensions_mut().insert(who);
    Ok(next.run(request).await)
}

/// Lets operators through.
pub async fn operator(
    State(gateway): State<Gateway>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let caller = Caller::of(&request);
    match gateway.keys().role(request.headers()) {
        Role::Operator => Ok(next.run(request).await),
        Role::Client => Err(Problem::forbidden("This route needs an operator's token.")),
        Role::Anybody => Err(caller.refused(&gateway).await),
    }
}

/// Lets operators at the metrics, and whoever is on this machine where it listens there alone.
pub async fn metrics(
    State(gateway): State<Gateway>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let keys = gateway.keys();
    if keys.openness_of_metrics == Openness::Closed {
        return operator(State(gateway), request, next).await;
    }
    if keys.role(request.headers()) < Role::Operator {
        keys.openness_of_metrics.admits(request.method(), request.headers(), &Origins::default())?;
    }
    Ok(next.run(request).await)
}

/// Keeps pages of other sites, and what proxies pass on, from a gateway whose client routes are open.
pub async fn page(State(gateway): State<Gateway>, request: Request, next: Next) -> Result<Response, Problem> {
    gateway.keys().admits_here(&request)?;
    Ok(next.run(request).await)
}

/// Who asks, as far as it matters where there is nothing else to go by.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    from: IpAddr,
    shows_a_token: bool,
}

impl Caller {
    fn of(request: &Request) -> Caller {
        Caller { from: address(request), shows_a_token: bearer(request.headers()).is_some() }
    }

    /// The refusal of a request for want of a token. One that nobody knows may be a guess.
    async fn refused(self, gateway: &Gateway) -> Problem {
        if self.shows_a_token {
            gateway.guesses().refuse(&gateway.supervisor, self.from).await
        } else {
            Problem::unauthorized()
        }
    }
}

/// Who a worker is let in as, before anything of its body is read.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The hash of the token that it shows.
    pub token_hash: TokenHash,
    /// What that is good for; `None`: for any agent, or for a worker that calls here already.
    pub grant: Option<Grant>,
}

/// Whoever shows a turn's token, of which only the form was looked at.
#[derive(Debug, Clone, Copy)]
pub struct Speaker {
    /// The hash of the token.
    pub token_hash: TokenHash,
    caller: Caller,
}

/// Lets a worker in that calls for the first time, or from another replica.
pub async fn newcomer(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (caller, shown) = (Caller::of(&request), shown(&request, Purpose::Worker, &gateway));
    let Some(token_hash) = shown else { return Err(caller.refused(&gateway).await) };
    let grant = match gateway.keys().is_workers(&token_hash) {
        true => None,
        false => Some(granted(&gateway, token_hash, caller).await?),
    };
    request.extensions_mut().insert(Admission { token_hash, grant });
    Ok(next.run(request).await)
}

/// Lets a worker in that calls here, or that is to be told that it does not.
pub async fn worker(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (caller, shown) = (Caller::of(&request), shown(&request, Purpose::Worker, &gateway));
    let Some(token_hash) = shown else { return Err(caller.refused(&gateway).await) };
    let is_known = gateway.keys().is_workers(&token_hash) || gateway.rendezvous.knows(&token_hash);
    let grant = match is_known {
        true => None,
        false => Some(granted(&gateway, token_hash, caller).await?),
    };
    request.extensions_mut().insert(Admission { token_hash, grant });
    Ok(next.run(request).await)
}

/// Lets whoever shows what may be a turn's token up to that turn, which asks further ([`may_speak`]).
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

/// Whether a turn's messages are this speaker's to bring. Asked before its body is read, and before the turn
/// is moved here: neither is for anybody who comes along.
pub async fn may_speak(gateway: &Gateway, speaker: Speaker, turn: TurnId, epoch: i32) -> Result<(), Problem> {
    let Speaker { token_hash, caller } = speaker;
    if let Some(line) = gateway.rendezvous.line(turn, epoch) {
        return match token::is_same(line.token_hash(), &token_hash) {
            true => Ok(()),
            false => Err(caller.refused(gateway).await),
        };
    }
    // Where nothing is moved to, nobody need be known.
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
    let found = gateway.speakers().ask(&gateway.supervisor, (key, caller.from), look).await;
    match found.ok_or_else(Problem::elsewhere)?? {
        Some(()) => Ok(()),
        None => Err(caller.refused(gateway).await),
    }
}

/// The hash of the bearer token of a request, unless that is certainly not for this purpose.
fn shown(request: &Request, purpose: Purpose, gateway: &Gateway) -> Option<TokenHash> {
    let token = bearer(request.headers())?;
    let hash = token::hash(token);
    // A configured token may look like anything.
    (token::may_be(purpose, token) || gateway.keys().is_workers(&hash)).then_some(hash)
}

/// What a token is good for that is not configured here.
async fn granted(gateway: &Gateway, token_hash: TokenHash, caller: Caller) -> Result<Grant, Problem> {
    let store = gateway.store.clone();
    let look = move |hashes: Vec<TokenHash>| {
        let store = store.clone();
        async move { store.worker_grants(&hashes).await }
    };
    let found = gateway.newcomers().ask(&gateway.supervisor, (token_hash, caller.from), look).await;
    match found.ok_or_else(Problem::elsewhere)?? {
        Some(grant) => Ok(grant),
        None => Err(caller.refused(gateway).await),
    }
}

/// Where a request comes from, as far as the connection tells.
fn address(request: &Request) -> IpAddr {
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |ConnectInfo(peer)| peer.address().ip())
}
