//! Readers of events: callers with a token, or with a ticket made with one.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};

use super::{
    Caller, client,
    keys::Role,
    pages::Openness,
    ticket::{self, Ticket},
};
use crate::{
    api::{gateway::Gateway, problem::Problem, who::Who},
    principal::Principal,
};

/// A request extension: a ticket let this request in.
#[derive(Debug, Clone, Copy)]
pub struct ByTicket;

/// Middleware of the event routes: lets in clients, operators, and callers with a ticket. A valid token comes first.
pub async fn reader(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let shown = ticket::take(request.uri_mut());
    let caller = Caller { shows_a_token: shown.is_some(), ..Caller::of(&request) };
    let keys = &gateway.doors.keys;
    let Some(shown) = shown.filter(|_| keys.role(request.headers()) < Role::Client) else {
        return client(State(gateway), request, next).await;
    };
    let principal = if keys.openness == Openness::Closed {
        let subject = request.uri().path().split('/').nth(3).unwrap_or_default();
        let ticket = shown.parse::<Ticket>().ok();
        let made = ticket.and_then(|ticket| Some((ticket, keys.maker(&ticket, subject)?)));
        let Some((ticket, maker)) = made else { return Err(caller.refused(&gateway).await) };
        if ticket.has_expired(gateway.store.clock().now()) {
            return Err(Problem::ticket_expired());
        }
        maker
    } else {
        Principal::ANONYMOUS
    };
    request.extensions_mut().insert(Who(principal));
    request.extensions_mut().insert(ByTicket);
    Ok(next.run(request).await)
}
