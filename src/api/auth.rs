//! Who may: bearer tokens for clients, operators and workers, and who may call where no token is asked for.
//!
//! Tokens are kept as SHA-256 hashes from the start on, and compared in constant time. Operators'
//! routes always need an operator's token: who may put an agent may run anything.

mod guesses;
mod pages;
mod readers;
mod strangers;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};

use self::pages::Openness;
pub use self::{
    guesses::Guesses,
    readers::{ByTicket, reader},
    strangers::Strangers,
};
use super::{Gateway, cors::Origins, listen::Peer, problem::Problem, shares::Who, ticket::Ticket};
use crate::{
    config::Config,
    id::TurnId,
    principal::Principal,
    store::{StoreError, remote_turns::Proof, worker_tokens::Grant},
    token::{self, Purpose, TokenHash},
};

/// Routes that whoever watches this process may ask, by any name. They tell nothing of turns.
const HEALTH: [&str; 2] = ["/livez", "/readyz"];

/// Who a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// No token, or an unknown one.
    Anybody,
    /// May use client routes.
    Client,
    /// May use every route.
    Operator,
}

/// The configured tokens, hashed.
#[derive(Debug)]
pub struct Keys {
    clients: Vec<TokenHash>,
    operators: Vec<TokenHash>,
    workers: Vec<TokenHash>,
    openness: Openness,
    openness_of_metrics: Openness,
    origins: Origins,
    is_dev: bool,
}

impl Keys {
    /// The keys of a configuration.
    pub fn of(config: &Config) -> Keys {
        let hash = |tokens: &[String]| tokens.iter().map(|token| token::hash(token)).collect();
        Keys {
            clients: hash(&config.client_tokens),
            operators: hash(&config.operator_tokens),
            workers: hash(&config.worker_tokens),
            openness: Openness::of(config),
            openness_of_metrics: Openness::of_metrics(config),
            origins: Origins::of(config),
            is_dev: config.dev,
        }
    }

    /// Who sends these headers.
    pub fn role(&self, headers: &HeaderMap) -> Role {
        let Some(token) = bearer(headers) else { return Role::Anybody };
        let hash = token::hash(token);
        // Every key is compared, whichever matches.
        let (is_operator, is_client) = (is_among(&self.operators, &hash), is_among(&self.clients, &hash));
        if is_operator {
            Role::Operator
        } else if is_client {
            Role::Client
        } else {
            Role::Anybody
        }
    }

    /// Whose share a request with these headers takes from.
    pub fn principal(&self, headers: &HeaderMap) -> Principal {
        let hash = bearer(headers).map(token::hash);
        let known = hash.and_then(|hash| self.whose(|known| token::is_same(known, &hash)));
        known.unwrap_or(Principal::ANONYMOUS)
    }

    /// Who has made this ticket for `subject`.
    fn maker(&self, ticket: &Ticket, subject: &str) -> Option<Principal> {
        self.whose(|known| ticket.is_of(known, subject))
    }

    /// Whose token it is that something is true of. Every key is asked, whichever it is true of.
    fn whose(&self, is_it: impl Fn(&TokenHash) -> bool) -> Option<Principal> {
        let is_operator = self.operators.iter().fold(false, |found, known| found | is_it(known));
        let places = self.clients.iter().enumerate();
        let client =
            places.fold(None, |found, (at, known)| if is_it(known) { found.or(Some(at)) } else { found });
        match client.map(Principal::client) {
            _ if is_operator => Some(Principal::OPERATOR),
            client => client,
        }
    }

    /// The hash of the token that a request shows; where routes are open that of none, which opens nothing elsewhere.
    pub fn token_hash(&self, headers: &HeaderMap) -> TokenHash {
        token::hash(bearer(headers).unwrap_or_default())
    }

    /// Whether the token of this hash lets any worker in.
    pub fn is_workers(&self, hash: &TokenHash) -> bool {
        is_among(&self.workers, hash)
    }

    /// Refuses what did not come the way that leaves the doors open. Who shows a token did not come by an open
    /// door; `dev` checks all the same.
    fn admits_here(&self, request: &Request) -> Result<(), Problem> {
        let path = request.uri().path();
        let asks_anybody = HEALTH.contains(&path);
        let asks_for_itself = path.starts_with("/v1/worker/");
        let shows_a_token = || self.role(request.headers()) >= Role::Client;
        if asks_anybody || !self.is_dev && (asks_for_itself || shows_a_token()) {
            return Ok(());
        }
        let openness = if self.is_dev { Openness::Local } else { self.openness };
        openness.admits(request.method(), request.headers(), &self.origins)
    }
}

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
            gateway.doors.guesses.refuse(&gateway.supervisor, self.from).await
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
    let found = gateway.doors.speakers.ask(&gateway.supervisor, (key, caller.from), look).await;
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
    let found = gateway.doors.newcomers.ask(&gateway.supervisor, (token_hash, caller.from), look).await;
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

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn is_among(hashes: &[TokenHash], hash: &TokenHash) -> bool {
    hashes.iter().fold(false, |found, known| found | token::is_same(known, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_token_opens_its_own_routes_only() {
        let config = Config {
            listen: "0.0.0.0:80".parse().unwrap(),
            client_tokens: vec!["c1".to_owned(), "c2".to_owned()],
            operator_tokens: vec!["o1".to_owned()],
            ..Config::default()
        };
        let keys = Keys::of(&config);
        for (value, role) in [
            ("Bearer c1", Role::Client),
            ("bearer c2", Role::Client),
            ("Bearer o1", Role::Operator),
            ("Bearer c", Role::Anybody),
            ("Basic c1", Role::Anybody),
            ("Bearer", Role::Anybody),
        ] {
            assert_eq!(keys.role(&headers(&[("authorization", value)])), role, "{value}");
        }
        for (value, principal) in [
            ("Bearer c1", Principal::client(0)),
            ("Bearer c2", Principal::client(1)),
            ("Bearer o1", Principal::OPERATOR),
            ("Bearer c", Principal::ANONYMOUS),
        ] {
            assert_eq!(keys.principal(&headers(&[("authorization", value)])), principal, "{value}");
        }
    }
}
