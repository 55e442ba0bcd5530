//! A gateway to knock at, whose Postgres is away: a request that is refused is told so, one that
//! makes sense gets as far as the database and is told to come back.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use lastword::{
    api::{Gateway, router},
    config::Config,
    store::Store,
    task::Supervisor,
};
use serde_json::Value;
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// The operator's token here.
pub const OPERATOR: &str = "operator-token";
/// The largest body that this gateway takes.
pub const BODY_MAX: u64 = 2048;
/// Where the database is not. A socket that does not exist is refused without a wait.
const NOWHERE: &str = "postgres://nobody@localhost/none?host=/nonexistent";

/// One gateway in one thread.
pub struct Door {
    runtime: Runtime,
    routes: Router,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The whole body; `None` where it is no JSON.
    pub json: Option<Value>,
}

impl Door {
    /// A gateway in this runtime.
    pub fn new(runtime: Runtime) -> Door {
        let config = Config {
            database_url: NOWHERE.to_owned(),
            operator_tokens: vec![OPERATOR.to_owned()],
            // Client routes are open beside them.
            insecure: true,
            body_max: lastword::units::Size(BODY_MAX),
            ..Config::default()
        };
        let within = runtime.enter();
        let store = Store::open(&config).unwrap();
        let routes = router(Gateway::new(store, Arc::default(), Arc::new(config), Supervisor::new()));
        drop(within);
        Door { runtime, routes }
    }

    /// Sends one request; checks that the answer is one that a client can make sense of.
    pub fn knock(&self, request: Request<Body>) -> Answer {
        let is_head = request.method() == Method::HEAD;
        let shown = format!("{} {}", request.method(), request.uri());
        let routes = self.routes.clone();
        let (status, headers, bytes) = self.runtime.block_on(async {
            let (head, body) = routes.oneshot(request).await.unwrap().into_parts();
            (head.status, head.headers, to_bytes(body, usize::MAX).await.unwrap())
        });
        let answer = Answer { status, headers, json: serde_json::from_slice(&bytes).ok() };
        if !is_head {
            answer.check(&shown);
        }
        answer
    }
}

impl Answer {
    /// The problem's code, or nothing.
    pub fn code(&self) -> &str {
        self.field("code")
    }

    /// A text of the problem, or nothing.
    pub fn field(&self, name: &str) -> &str {
        self.json.as_ref().and_then(|json| json[name].as_str()).unwrap_or_default()
    }

    fn check(&self, request: &str) {
        let told = format!("{request}: {self:?}");
        let is_refusal = self.status.is_client_error() || self.status.is_server_error();
        let is_readiness = self.json.as_ref().is_some_and(|json| json.get("doorbell").is_some());
        if !is_refusal || is_readiness {
            assert!(self.status.is_success() || is_readiness, "{told}");
            return;
        }
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json", "{told}");
        assert_eq!(self.headers[header::CACHE_CONTROL], "no-store", "{told}");
        assert_eq!(self.json.as_ref().unwrap()["status"], self.status.as_u16(), "{told}");
        assert_eq!(self.field("type"), format!("urn:lastword:problem:{}", self.code()), "{told}");
        for text in ["title", "code", "detail"] {
            assert!(!self.field(text).is_empty(), "{text} of {told}");
        }
        let has = |name| self.headers.contains_key(name);
        match self.status {
            StatusCode::BAD_REQUEST if self.code() == "invalid_request" => {
                assert!(!self.field("field").is_empty(), "{told}");
            }
            StatusCode::BAD_REQUEST => assert_eq!(self.code(), "malformed_json", "{told}"),
            StatusCode::UNAUTHORIZED => assert!(has(header::WWW_AUTHENTICATE), "{told}"),
            StatusCode::NOT_FOUND => assert_eq!(self.code(), "not_found", "{told}"),
            StatusCode::METHOD_NOT_ALLOWED => assert!(has(header::ALLOW), "{told}"),
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNSUPPORTED_MEDIA_TYPE => {}
            StatusCode::SERVICE_UNAVAILABLE => {
                assert_eq!(self.code(), "postgres_unavailable", "{told}");
                assert!(has(header::RETRY_AFTER), "{told}");
            }
            _ => panic!("{told}"),
        }
    }
}
