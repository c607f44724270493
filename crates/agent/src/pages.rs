//! What the agent serves: readiness on one port; metrics, probes and the end on the other.
//!
//! In: listeners. Out: servers that live as long as the agent.
//!
//! **Invariant:** what changes something is taken from loopback only.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::extract::{ConnectInfo, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Router, serve};
use http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::envoy::Stop;
use crate::metrics::Metrics;
use crate::probes;
use crate::readiness::Readiness;
use crate::settings::Application;

/// What the second port needs.
pub(crate) struct Pages {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) application: Application,
    pub(crate) stop: watch::Sender<Stop>,
}

/// Serve readiness, for ever.
pub(crate) async fn readiness(listener: TcpListener, readiness: Readiness) -> Result<()> {
    let routes = Router::new().route("/healthz/ready", get(ready)).with_state(readiness);
    serve(listener, routes).await.context("serving readiness")
}

/// Serve the rest, for ever.
pub(crate) async fn rest(listener: TcpListener, pages: Pages) -> Result<()> {
    let routes = Router::new()
        .route("/stats/prometheus", get(metrics))
        .route("/metrics", get(metrics))
        .route("/stats/agent", get(own))
        .route("/app-health/{container}/{probe}", get(probe))
        .route("/quitquitquit", post(quit))
        .with_state(Arc::new(pages));
    let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
    serve(listener, routes).await.context("serving metrics")
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    let missing = readiness.missing().await;
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    let lines: String = missing.iter().map(|what| format!("{what}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines).into_response()
}

/// How pages with metrics begin.
const METRICS: [(HeaderName, &str); 1] =
    [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];

async fn metrics(State(pages): State<Arc<Pages>>) -> Response {
    (METRICS, pages.metrics.page()).into_response()
}

async fn own(State(pages): State<Arc<Pages>>) -> Response {
    (METRICS, pages.metrics.own()).into_response()
}

async fn probe(State(pages): State<Arc<Pages>>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(probe) = pages.application.probes.0.get(uri.path()) else {
        return (StatusCode::NOT_FOUND, format!("no probe is set for {}\n", uri.path()))
            .into_response();
    };
    match probes::run(probe, pages.application.address, &headers).await {
        Ok(()) => "ok\n".into_response(),
        Err(error) => {
            let why = format!("the application's probe fails: {error:#}\n");
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

async fn quit(
    State(pages): State<Arc<Pages>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        let why = "only a process of this pod may end its proxy: ask by 127.0.0.1\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    tracing::info!("the workload asks to end");
    pages.stop.send_modify(|stop| *stop = (*stop).max(Stop::Drain));
    "ending\n".into_response()
}
