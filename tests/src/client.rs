//! An HTTP/1.1 client that holds one connection and reports what came back; and how TLS begins.
//!
//! In: an address; host and path per request. Out: status, backend, headers, times.
//!
//! **Invariant:** one request at a time; a connection that the server closed between two requests
//! is opened again, any other failure is reported.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::backend::NAME_HEADER;

/// A client.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    connection: Option<SendRequest<Empty<Bytes>>>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When the request was begun.
    pub began: Instant,
    /// When the answer was there.
    pub ended: Instant,
    /// Status.
    pub status: StatusCode,
    /// Name of the backend that answered, if one did.
    pub backend: Option<String>,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

const PATIENCE: Duration = Duration::from_secs(15);

// === impl Client ===

impl Client {
    /// A client of this server; connects with the first request.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    /// GET `path` of `host`.
    pub async fn get(&mut self, host: &str, path: &str) -> Result<Answer> {
        let began = Instant::now();
        let request = Request::get(path).header(http::header::HOST, host).body(Empty::new())?;
        timeout(PATIENCE, self.send(request, began))
            .await
            .map_err(|_| anyhow!("no answer within {PATIENCE:?}"))
            .flatten()
            .with_context(|| format!("GET http://{host}{path} at {}", self.address))
            .inspect_err(|_| self.connection = None)
    }

    /// GET `path`, which must give 200 and JSON.
    pub async fn json(&mut self, path: &str) -> Result<Value> {
        let host = self.address.to_string();
        let answer = self.get(&host, path).await?;
        if answer.status != StatusCode::OK {
            let text = String::from_utf8_lossy(&answer.body);
            anyhow::bail!("{path} at {host} answers {}: {text}", answer.status);
        }
        serde_json::from_slice(&answer.body).with_context(|| format!("{path} gives no JSON"))
    }

    async fn send(&mut self, request: Request<Empty<Bytes>>, began: Instant) -> Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(mut open) => match open.ready().await {
                Ok(()) => open,
                Err(_) => self.connect().await?,
            },
            None => self.connect().await?,
        };
        let response = connection.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let backend = head.headers.get(NAME_HEADER);
        let backend = backend.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        self.connection = Some(connection);
        Ok(Answer {
            began,
            ended: Instant::now(),
            status: head.status,
            backend,
            headers: head.headers,
            body,
        })
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.address).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends when the sender is dropped; its errors reach the request in flight.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// The first message of a TLS 1.2 client.
pub fn tls_hello(name: Option<&str>) -> Vec<u8> {
    let sized = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&length[..], bytes].concat()
    };
    let mut extensions = Vec::new();
    if let Some(name) = name {
        let entry = [&[0][..], &sized(name.as_bytes())].concat();
        extensions.extend([&[0, 0][..], &sized(&sized(&entry))].concat());
    }
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    // No session; one cipher suite; no compression.
    hello.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
    hello.extend(sized(&extensions));
    let length = u32::try_from(hello.len()).unwrap_or(0).to_be_bytes();
    let message = [&[1], &length[1..], &hello[..]].concat();
    [&[0x16, 3, 1][..], &sized(&message)].concat()
}
