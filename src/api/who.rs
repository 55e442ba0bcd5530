//! The caller of a request, whose share the request counts against.

use std::convert::Infallible;

use axum::{extract::FromRequestParts, http::request::Parts};

use crate::principal::Principal;

/// The caller, as determined by the middleware of the client routes.
#[derive(Debug, Clone, Copy)]
pub struct Who(pub Principal);

impl<S: Send + Sync> FromRequestParts<S> for Who {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or(Who(Principal::ANONYMOUS)))
    }
}
