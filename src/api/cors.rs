//! CORS: the configured origins whose pages may use this gateway from a browser.
//!
//! By default there are none, and browsers hide every response from pages of other origins. Cookies are not used, so
//! a page of a configured origin still needs a token or a ticket. A preflight request needs neither.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tower_http::cors::CorsLayer;

use crate::config::Config;

/// How long a browser may cache a preflight response.
const PREFLIGHT_COUNTS_FOR: Duration = Duration::from_secs(3600);

/// The configured origins. Clones share their state.
#[derive(Debug, Clone, Default)]
pub struct Origins(Arc<[HeaderValue]>);

impl Origins {
    /// The origins of a configuration.
    pub fn of(config: &Config) -> Origins {
        Origins(config.cors_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect())
    }

    /// Whether the request's `Origin` is a configured origin.
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).into_iter();
        match (origins.next(), origins.next()) {
            (Some(origin), None) => self.0.contains(origin),
            _ => false,
        }
    }

    /// Whether this is a configured origin.
    pub fn names(&self, origin: &str) -> bool {
        self.0.iter().any(|known| known == origin)
    }

    /// The CORS layer; `None` if no origin is configured.
    pub fn layer(&self) -> Option<CorsLayer> {
        let custom = ["idempotency-key", "last-event-id", "prefer", "traceparent", "tracestate"];
        let sent = custom.into_iter().map(HeaderName::from_static).chain([
            header::ACCEPT,
            header::AUTHORIZATION,
            header::CACHE_CONTROL,
            header::CONTENT_TYPE,
        ]);
        let layer = CorsLayer::new()
            .allow_origin(self.0.to_vec())
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            .allow_headers(sent.collect::<Vec<_>>())
            .expose_headers([header::LOCATION, header::RETRY_AFTER, header::WWW_AUTHENTICATE])
            .max_age(PREFLIGHT_COUNTS_FOR);
        (!self.0.is_empty()).then_some(layer)
    }
}
