//! One page of metrics for the pod: Envoy's, the application's, the agent's own.
//!
//! In: where the parts are. Out: the page, passed on as it comes, so that a large one is never in
//! memory; metrics of the agent.
//!
//! **Invariant:** a part that fails hides no other, and is counted on the same page.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use axum::body::Body;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use prometheus::{Encoder as _, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::call;
use crate::certificates::State;
use crate::connections::Connections;
use crate::envoy::Life;
use crate::settings::Application;
use crate::settings::values::Scheme;

/// Time that a part has until its answer begins, and between two pieces of it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pieces that may wait for the reader. Full: the part is read as slowly as it reads.
const PIECES: usize = 4;

/// Metrics of the agent, and where the others are.
pub(crate) struct Metrics {
    envoy: Part,
    application: Option<Part>,
    certificate: watch::Receiver<State>,
    life: watch::Receiver<Life>,
    registry: Registry,
    expiry: IntGauge,
    obtained: IntCounter,
    failed: IntCounter,
    restarts: IntCounter,
    scrape_failures: IntCounterVec,
}

/// Somebody else's metrics.
struct Part {
    name: &'static str,
    address: SocketAddr,
    path: String,
    tls: bool,
}

// === impl Metrics ===

impl Metrics {
    /// Of this Envoy and this application.
    pub(crate) fn new(
        admin: SocketAddr,
        application: &Application,
        certificate: watch::Receiver<State>,
        life: watch::Receiver<Life>,
        connections: &Connections,
    ) -> Result<Self> {
        let registry = Registry::new();
        registry.register(Box::new(connections.counter.clone()))?;
        let counter = |name: &str, help: &str| -> Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let expiry = IntGauge::new(
            "heddle_agent_certificate_expiry_timestamp_seconds",
            "End of the certificate; 0 without one",
        )?;
        registry.register(Box::new(expiry.clone()))?;
        let scrape_failures = IntCounterVec::new(
            Opts::new(
                "heddle_agent_scrape_failures_total",
                "Parts of this page that could not be read, by part",
            ),
            &["part"],
        )?;
        registry.register(Box::new(scrape_failures.clone()))?;
        let part = |name, address, path: &str, tls| {
            // A counter that is there from the start can be watched.
            scrape_failures.with_label_values(&[name]).inc_by(0);
            Part { name, address, path: path.to_owned(), tls }
        };
        let envoy = part("envoy", admin, "/stats/prometheus", false);
        let own = application.metrics.as_ref().map(|metrics| {
            let address = (application.address, metrics.port).into();
            part("application", address, &metrics.path, metrics.scheme == Scheme::Https)
        });
        Ok(Self {
            expiry,
            obtained: counter(
                "heddle_agent_certificates_obtained_total",
                "Certificates got so far: the first, and renewals",
            )?,
            failed: counter(
                "heddle_agent_certificate_failures_total",
                "Attempts to get a certificate that failed",
            )?,
            restarts: counter(
                "heddle_agent_envoy_restarts_total",
                "How often Envoy ended without being asked to, and was started again",
            )?,
            envoy,
            application: own,
            certificate,
            life,
            registry,
            scrape_failures,
        })
    }

    /// The page.
    pub(crate) fn page(self: &Arc<Self>) -> Body {
        let (pieces, page) = mpsc::channel(PIECES);
        let metrics = Arc::clone(self);
        // Ends with the page, or with who reads it.
        tokio::spawn(async move {
            for part in [Some(&metrics.envoy), metrics.application.as_ref()].into_iter().flatten() {
                if let Err(error) = part.pass_on(&pieces).await {
                    tracing::debug!("metrics of {} cannot be read: {error:#}", part.name);
                    metrics.scrape_failures.with_label_values(&[part.name]).inc();
                }
            }
            // Last, so that what failed just now is counted. Nobody may be reading any more.
            let _ = pieces.send(Bytes::from(metrics.own())).await;
        });
        Body::from_stream(ReceiverStream::new(page).map(Ok::<_, std::convert::Infallible>))
    }

    /// The agent's own part.
    pub(crate) fn own(&self) -> Vec<u8> {
        // They are counted where things happen; nothing waits here, so no page sees them at 0.
        let set = |counter: &IntCounter, count: u64| {
            counter.reset();
            counter.inc_by(count);
        };
        {
            let state = self.certificate.borrow();
            let end = state.certificate.as_ref().map(|certificate| certificate.not_after);
            let end = end.and_then(|end| end.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            self.expiry.set(i64::try_from(end.as_secs()).unwrap_or(i64::MAX));
            set(&self.obtained, state.obtained);
            set(&self.failed, state.failed);
        }
        set(&self.restarts, self.life.borrow().restarts);
        let mut page = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut page) {
            tracing::error!("own metrics: {error}");
        }
        page
    }
}

// === impl Part ===

impl Part {
    /// Pass all lines on, the last one whole.
    async fn pass_on(&self, to: &mpsc::Sender<Bytes>) -> Result<()> {
        let request = Request::get(&self.path)
            .header(header::HOST, self.address.to_string())
            // Of the other format only one part could be on a page.
            .header(header::ACCEPT, "text/plain;version=0.0.4")
            .body(Empty::new())?;
        let answer = call::send(self.address, self.tls, request, PATIENCE).await?;
        ensure!(answer.status().is_success(), "{} answers {}", self.path, answer.status());
        let mut body = answer.into_body();
        let mut rest = Vec::new();
        loop {
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await;
            let frame = match frame.context("it stopped in the middle")? {
                Some(frame) => frame.context("it stopped in the middle")?,
                None => break,
            };
            let Ok(data) = frame.into_data() else { continue };
            rest.extend_from_slice(&data);
            // Whole lines only: after a failure the next part begins on a line of its own.
            let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
            let lines: Vec<u8> = rest.drain(..=end).collect();
            if to.send(without_end(&lines)).await.is_err() {
                return Ok(());
            }
        }
        if !rest.is_empty() {
            rest.push(b'\n');
            // The reader may be gone, which is no fault of this part.
            let _ = to.send(without_end(&rest)).await;
        }
        Ok(())
    }
}

/// The lines but for the mark by which some applications end their page: others follow.
fn without_end(lines: &[u8]) -> Bytes {
    const END: &[u8] = b"# EOF\n";
    if !lines.ends_with(END) {
        return Bytes::copy_from_slice(lines);
    }
    Bytes::copy_from_slice(&lines[..lines.len() - END.len()])
}
