//! A client of the HTTP endpoints of controllers and proxies.
//!
//! **Invariant:** plain HTTP, one request a connection, bounded in time.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Time that a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Get a JSON document from `address`, such as `127.0.0.1:8080`.
pub(crate) fn get(address: &str, path: &str) -> Result<Value> {
    wait_for(get_async(address, path))
}

/// Run something that waits, on a runtime of its own.
pub(crate) fn wait_for<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(work)
}

async fn get_async(address: &str, path: &str) -> Result<Value> {
    let body = tokio::time::timeout(PATIENCE, request(address, path))
        .await
        .with_context(|| format!("no answer from {address} within {PATIENCE:?}"))?
        .with_context(|| {
            format!(
                "no controller answers at {address}; name the address that heddle-controller was \
                 given as --admin-address with --admin, or ask those of a cluster with --kubernetes"
            )
        })?;
    serde_json::from_slice(&body).with_context(|| format!("reading what {address}{path} answered"))
}

/// Ask for `path` once, and expect an answer that is no error.
pub(crate) async fn request(address: &str, path: &str) -> Result<Bytes> {
    exchange(TcpStream::connect(address).await?, address, path).await
}

/// Ask for `path` of `host` over a connection.
pub(crate) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    path: &str,
) -> Result<Bytes> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request =
        http::Request::get(path).header(http::header::HOST, host).body(Empty::<Bytes>::new())?;
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
