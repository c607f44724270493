//! Small backends that say who they are and what they were asked.
//!
//! In: an address, a name, what is spoken. Out: a server, until its guard is dropped. HTTP/1.1 or
//! HTTP/2, as the client has it: a JSON line for every request. Else the name and a space before
//! whatever is heard, or at once.
//!
//! **Invariant:** never fails a request by itself; what it answers depends on the request and its
//! own name alone.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Header by which a backend says its name.
pub const NAME_HEADER: &str = "x-backend";

/// What a backend speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1 and HTTP/2.
    Http,
    /// Says its name and what it hears, whenever it hears something.
    Echo,
    /// Says its name first, before it hears anything.
    First,
}

/// A running backend.
#[derive(Debug)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

// === impl Backend ===

impl Backend {
    /// Start a backend of HTTP; port 0 takes a free one.
    pub async fn start(address: SocketAddr, name: &str) -> Result<Self> {
        Self::start_as(Speaks::Http, address, name).await
    }

    /// Start a backend; port 0 takes a free one.
    pub async fn start_as(speaks: Speaks, address: SocketAddr, name: &str) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("backend {name} cannot listen on {address}"))?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(serve(speaks, listener, Arc::from(name)));
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

// === impl Speaks ===

impl std::str::FromStr for Speaks {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "http" => Self::Http,
            "echo" => Self::Echo,
            "first" => Self::First,
            _ => bail!("{text:?} is neither http nor echo nor first"),
        })
    }
}

async fn serve(speaks: Speaks, listener: TcpListener, name: Arc<str>) {
    // Dropped with this future, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // An answer is one small packet: it must not wait for more.
        let _ = stream.set_nodelay(true);
        let name = Arc::clone(&name);
        connections.spawn(async move {
            // A client that hangs up is no fault of the backend.
            match speaks {
                Speaks::Http => http(stream, &name).await,
                Speaks::Echo | Speaks::First => {
                    let _ = bytes(stream, &name, speaks == Speaks::First).await;
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn http(stream: TcpStream, name: &str) {
    let service = service_fn(|request| {
        let response = answer(name, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn bytes(mut stream: TcpStream, name: &str, first: bool) -> std::io::Result<()> {
    let name = format!("{name} ");
    if first {
        stream.write_all(name.as_bytes()).await?;
    }
    let mut heard = vec![0; 16 << 10];
    loop {
        let count = match stream.read(&mut heard).await? {
            0 => return Ok(()),
            count => count,
        };
        let says = if first { "" } else { &name };
        // One packet, which clients hear as a whole.
        stream.write_all(&[says.as_bytes(), &heard[..count]].concat()).await?;
    }
}

fn answer(name: &str, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let header = |name: &str| {
        request.headers().get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
    };
    let body = json!({
        "backend": name,
        "version": format!("{:?}", request.version()),
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map(ToString::to_string),
        "host": header("host"),
        "attempt": header("x-envoy-attempt-count"),
        "user": header("x-user"),
        "client": header("x-forwarded-client-cert"),
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    if let Ok(name) = http::HeaderValue::from_str(name) {
        response.headers_mut().insert(NAME_HEADER, name);
    }
    response
}
