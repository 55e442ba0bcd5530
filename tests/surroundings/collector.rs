//! A small collector of traces, over HTTP and over gRPC.

use std::net::SocketAddr;

use axum::{
    body::Bytes,
    http::{HeaderMap, StatusCode, Uri},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value,
};
use prost::Message as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::support::PATIENCE;

/// What one export was.
pub struct Export {
    /// The path that was called.
    pub path: String,
    /// What the request carried beside.
    pub headers: HeaderMap,
    /// What it held.
    pub content: ExportTraceServiceRequest,
}

impl Export {
    /// An attribute of the resource, where it is a text.
    pub fn attribute(&self, key: &str) -> Option<String> {
        let resources = self.content.resource_spans.iter().filter_map(|spans| spans.resource.as_ref());
        let mut attributes = resources.flat_map(|resource| &resource.attributes);
        match attributes.find(|attribute| attribute.key == key)?.value.clone()?.value? {
            Value::StringValue(text) => Some(text),
            _ => None,
        }
    }

    /// The names of its spans.
    pub fn spans(&self) -> Vec<&str> {
        let scopes = self.content.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| &scope.spans).map(|span| span.name.as_str()).collect()
    }

    /// A header, where it is a text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A collector that listens.
pub struct Collector {
    /// Where.
    pub address: SocketAddr,
    got: mpsc::Receiver<Export>,
}

impl Collector {
    /// One that takes OTLP over HTTP, and answers each export with this status.
    pub async fn http(status: StatusCode) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (collector, tell) = Collector::on(&listener);
        let take = async move |uri: Uri, headers: HeaderMap, body: Bytes| {
            let content = ExportTraceServiceRequest::decode(body).unwrap();
            let _ = tell.send(Export { path: uri.path().to_owned(), headers, content }).await;
            status
        };
        let router = axum::Router::new().fallback(take);
        tokio::spawn(async move { axum::serve(listener, router).await });
        collector
    }

    /// One that takes OTLP over gRPC, without TLS.
    pub async fn grpc(at: &str) -> Collector {
        let listener = TcpListener::bind(at).await.unwrap();
        let (collector, tell) = Collector::on(&listener);
        tokio::spawn(async move {
            while let Ok((peer, _)) = listener.accept().await {
                tokio::spawn(calls(peer, tell.clone()));
            }
        });
        collector
    }

    fn on(listener: &TcpListener) -> (Collector, mpsc::Sender<Export>) {
        let (tell, got) = mpsc::channel(10_000);
        (Collector { address: listener.local_addr().unwrap(), got }, tell)
    }

    /// The next export.
    pub async fn next(&mut self) -> Export {
        let next = tokio::time::timeout(PATIENCE, self.got.recv()).await;
        next.expect("an export arrives").expect("the collector lives")
    }

    /// Whether nothing has arrived that was not asked for.
    pub fn is_empty(&mut self) -> bool {
        self.got.try_recv().is_err()
    }
}

/// Answers the calls of one connection of HTTP/2, each with an empty message and the status of success.
async fn calls(peer: TcpStream, tell: mpsc::Sender<Export>) {
    // Whoever speaks TLS fails here.
    let Ok(mut connection) = h2::server::handshake(peer).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let tell = tell.clone();
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut bytes = Vec::new();
            while let Some(Ok(chunk)) = body.data().await {
                let _ = body.flow_control().release_capacity(chunk.len());
                bytes.extend_from_slice(&chunk);
            }
            // A flag and four bytes of length come before the message.
            let content = ExportTraceServiceRequest::decode(&bytes[5..]).unwrap();
            // Before the answer, so that what was answered has arrived.
            let export = Export { path: head.uri.path().to_owned(), headers: head.headers, content };
            let _ = tell.send(export).await;
            let mut answer = axum::http::Response::new(());
            let grpc = "application/grpc".parse().unwrap();
            answer.headers_mut().insert("content-type", grpc);
            let mut sending = respond.send_response(answer, false).unwrap();
            sending.send_data(Bytes::from_static(&[0; 5]), false).unwrap();
            let end = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            sending.send_trailers(end).unwrap();
        });
    }
}
