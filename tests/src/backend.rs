//! A small HTTP backend that says who it is and what it was asked.
//!
//! In: an address and a name. Out: a server that answers every request with a JSON line, until its
//! guard is dropped.
//!
//! **Invariant:** never fails a request by itself; what it answers depends on the request and its
//! own name alone.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// Header by which a backend says its name.
pub const NAME_HEADER: &str = "x-backend";

/// A running backend.
#[derive(Debug)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

// === impl Backend ===

impl Backend {
    /// Start a backend; port 0 takes a free one.
    pub async fn start(address: SocketAddr, name: &str) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("backend {name} cannot listen on {address}"))?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(serve(listener, Arc::from(name)));
        Ok(Self { address, task })
    }

    /// Serve until the listener fails, which it does not while the process has file handles.
    pub async fn join(mut self) {
        // The task ends only with this future.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, name: Arc<str>) {
    // Dropped with this future, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // An answer is one small packet: it must not wait for more.
        let _ = stream.set_nodelay(true);
        let name = Arc::clone(&name);
        connections.spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&name, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            // A client that hangs up is no fault of the backend.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

fn answer(name: &str, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let header = |name: &str| {
        request.headers().get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
    };
    let body = json!({
        "backend": name,
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map(ToString::to_string),
        "host": header("host"),
        "attempt": header("x-envoy-attempt-count"),
        "user": header("x-user"),
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    if let Ok(name) = http::HeaderValue::from_str(name) {
        response.headers_mut().insert(NAME_HEADER, name);
    }
    response
}
