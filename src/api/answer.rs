//! JSON answers.
//!
//! Keeps the rule that an answer is one line for every reader and contains nothing that a terminal obeys: text of
//! workers and other clients is escaped. `axum::Json` does not do that, and is not used.

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::problem::Problem;
use crate::text;

/// A value as a JSON response body.
#[derive(Debug, Clone)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match text::json_line(&self.0) {
            Ok(body) => {
                let kind = HeaderValue::from_static("application/json");
                ([(header::CONTENT_TYPE, kind)], body).into_response()
            }
            Err(why) => Problem::internal(&why).into_response(),
        }
    }
}
