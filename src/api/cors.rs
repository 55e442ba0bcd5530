//! Pages of other origins that may use this gateway from a browser, as the configuration names them.
//!
//! None may by default: a browser then shows a page nothing of an answer. No cookie is ever asked for, so a page that
//! may still needs a token of its own, or a ticket. A preflight needs neither: it asks for nothing but this.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tower_http::cors::CorsLayer;

use crate::config::Config;

/// A browser asks again after so long.
const PREFLIGHT_COUNTS_FOR: Duration = Duration::from_secs(3600);

/// The origins that may. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Origins(Arc<[HeaderValue]>);

impl Origins {
    /// Those that a configuration names.
    pub fn of(config: &Config) -> Origins {
        Origins(config.cors_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect())
    }

    /// Whether a request comes from a page of one of them.
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).into_iter();
        match (origins.next(), origins.next()) {
            (Some(origin), None) => self.0.contains(origin),
            _ => false,
        }
    }

    /// The same of the text of one origin.
    pub fn names(&self, origin: &str) -> bool {
        self.0.iter().any(|known| known == origin)
    }

    /// What tells browsers so; `None` where nobody may.
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
