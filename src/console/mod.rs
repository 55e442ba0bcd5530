//! The console: two pages that need only this gateway.
//!
//! They show worker text as text, never as markup, and load nothing from other origins; the headers here enforce
//! both.

use axum::{Router, http::header, response::IntoResponse, routing::get};

const CONSOLE: &str = include_str!("index.html");
const DOCS: &str = include_str!("docs.html");
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes of the pages.
pub fn pages<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", get(async || page(CONSOLE))).route("/docs", get(async || page(DOCS)))
}

fn page(html: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, html)
}
