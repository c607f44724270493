//! A client of the HTTP endpoints of controllers and proxies.
//!
//! **Invariant:** plain HTTP, one request a connection, bounded in time.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Time that a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Get a JSON document from `address`, such as `127.0.0.1:8080`.
pub(crate) fn get(address: &str, path: &str) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let body = runtime
        .block_on(async { tokio::time::timeout(PATIENCE, request(address, path)).await })
        .with_context(|| format!("no answer from {address} within {PATIENCE:?}"))?
        .with_context(|| {
            format!(
                "no controller answers at {address}; name the address that heddle-controller was \
                 given as --admin-address with --admin"
            )
        })?;
    serde_json::from_slice(&body).with_context(|| format!("reading what {address}{path} answered"))
}

/// Ask for `path` once, and expect an answer that is no error.
pub(crate) async fn request(address: &str, path: &str) -> Result<Bytes> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request =
        http::Request::get(path).header(http::header::HOST, address).body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("it answered {status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(body)
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => {
            ended?;
            exchange.await
        }
    }
}
