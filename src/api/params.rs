//! Query parameters, parsed strictly.
//!
//! Refuses parameters that the route does not know, because a misspelt parameter would have no effect. Only event
//! streams ignore unknown parameters: browsers and proxies add some against caches.

use std::{str::FromStr, time::Duration};

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};

use super::{
    problem::Problem,
    request::{WAIT_MAX_S, agent_name},
};
use crate::event::LastWords;

/// Default number of items on a page of a list.
const LIMIT_DEFAULT: i64 = 50;
const LIMIT_MAX: i64 = 200;

/// The query's parameters. Take each one, then [`Params::end`].
#[derive(Debug)]
pub struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(pairs)| Params(pairs))
            .map_err(|why| Problem::invalid("query", why.to_string()))
    }
}

impl Params {
    /// Takes the text of a parameter. A second value of the same parameter is refused by [`Params::end`].
    pub fn text(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(found, _)| found == name)?;
        Some(self.0.remove(at).1)
    }

    /// Whether a parameter is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(found, _)| found == name)
    }

    /// Takes a parameter and parses it.
    pub fn parsed<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Problem>
    where
        T::Err: std::fmt::Display,
    {
        let parsed = self.text(name).map(|text| text.parse::<T>());
        parsed.transpose().map_err(|why| Problem::invalid(name, why.to_string()))
    }

    /// Takes a whole number within bounds.
    pub fn number(
        &mut self,
        name: &str,
        bounds: std::ops::RangeInclusive<i64>,
    ) -> Result<Option<i64>, Problem> {
        match self.parsed::<i64>(name)? {
            Some(n) if !bounds.contains(&n) => {
                let (least, most) = bounds.into_inner();
                Err(Problem::invalid(name, format!("It must lie between {least} and {most}.")))
            }
            n => Ok(n),
        }
    }

    /// Takes `wait`: how long to wait; 0 by default.
    pub fn wait(&mut self) -> Result<Duration, Problem> {
        let seconds = self.number("wait", 0..=WAIT_MAX_S as i64)?.unwrap_or(0);
        Ok(Duration::from_secs(seconds.unsigned_abs()))
    }

    /// Takes `agent`, a filter.
    pub fn agent(&mut self) -> Result<Option<String>, Problem> {
        self.text("agent").map(|name| agent_name("agent", name)).transpose()
    }

    /// Takes `limit`, the number of items on a page.
    pub fn limit(&mut self) -> Result<i64, Problem> {
        Ok(self.number("limit", 1..=LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT))
    }

    /// Takes `text`: how much of last words the client gets.
    pub fn last_words(&mut self) -> Result<LastWords, Problem> {
        match self.text("text").as_deref() {
            None => Ok(LastWords::Whole),
            Some("omit") => Ok(LastWords::WithoutText),
            Some(_) => Err(Problem::invalid("text", "It takes one value: `omit`.")),
        }
    }

    /// Refuses all parameters that were not taken.
    pub fn end(self) -> Result<(), Problem> {
        match self.0.into_iter().next() {
            Some((name, _)) => {
                let name = if name.is_empty() { "query".to_owned() } else { name };
                Err(Problem::invalid(name, "This route does not know this parameter, or it comes twice."))
            }
            None => Ok(()),
        }
    }
}

/// No parameters.
#[derive(Debug)]
pub struct NoParams;

impl<S: Send + Sync> FromRequestParts<S> for NoParams {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        Params::from_request_parts(parts, state).await?.end().map(|()| NoParams)
    }
}

/// Parameters of the routes that make a turn: how much of the last word the client gets.
#[derive(Debug)]
pub struct OfNewTurn(pub LastWords);

impl<S: Send + Sync> FromRequestParts<S> for OfNewTurn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let mut params = Params::from_request_parts(parts, state).await?;
        if params.has("wait") {
            let detail = "To wait for the turn's end send the header `Prefer: wait=SECONDS`.";
            return Err(Problem::invalid("wait", detail));
        }
        let last_words = params.last_words()?;
        params.end().map(|()| OfNewTurn(last_words))
    }
}
