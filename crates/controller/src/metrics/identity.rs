//! Metrics of the authority, under Istio's names where they mean the same.
//!
//! **Invariant:** no label names a workload, so their number is bounded.

use std::time::{SystemTime, UNIX_EPOCH};

use ::identity::CertificateAuthority;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::to;

/// The authority's part of the exporter.
pub(super) struct IdentityMetrics {
    requests: IntCounter,
    issued: IntCounter,
    authentication: IntCounter,
    parsing: IntCounter,
    signing: IntCounter,
    refusals: IntCounterVec,
    connections: IntCounter,
    handshakes: IntCounter,
    files: IntCounter,
    root_end: IntGauge,
    chain_end: IntGauge,
}

// === impl IdentityMetrics ===

impl IdentityMetrics {
    pub(super) fn new() -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| IntCounter::new(name, help);
        Ok(Self {
            requests: counter("citadel_server_csr_count", "Requests for a certificate")?,
            issued: counter(
                "citadel_server_success_cert_issuance_count",
                "Certificates that were issued",
            )?,
            authentication: counter(
                "citadel_server_authentication_failure_count",
                "Callers who were not believed",
            )?,
            parsing: counter(
                "citadel_server_csr_parsing_err_count",
                "Requests that cannot be read, or ask for what nobody gets",
            )?,
            signing: counter(
                "citadel_server_csr_sign_err_count",
                "Certificates that could not be signed",
            )?,
            refusals: IntCounterVec::new(
                Opts::new("heddle_identity_refused_total", "Callers and requests refused"),
                &["reason"],
            )?,
            connections: counter("heddle_identity_connections_total", "TLS connections")?,
            handshakes: counter(
                "heddle_identity_failed_handshakes_total",
                "TLS handshakes that failed or took too long",
            )?,
            files: counter(
                "heddle_identity_refused_files_total",
                "Times that new files of the authority were refused",
            )?,
            root_end: IntGauge::new(
                "citadel_server_root_cert_expiry_timestamp",
                "When the first root ends, in seconds since 1970",
            )?,
            chain_end: IntGauge::new(
                "citadel_server_cert_chain_expiry_timestamp",
                "When the first certificate of the authority's chain ends, in seconds since 1970",
            )?,
        })
    }

    pub(super) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        for counter in [
            &self.requests,
            &self.issued,
            &self.authentication,
            &self.parsing,
            &self.signing,
            &self.connections,
            &self.handshakes,
            &self.files,
        ] {
            registry.register(Box::new(counter.clone()))?;
        }
        registry.register(Box::new(self.refusals.clone()))?;
        registry.register(Box::new(self.root_end.clone()))?;
        registry.register(Box::new(self.chain_end.clone()))
    }

    pub(super) fn refresh(&self, ca: &CertificateAuthority) {
        let stats = ca.stats();
        to(&self.requests, stats.requests.get());
        to(&self.issued, stats.issued.get());
        to(&self.authentication, stats.authentication_failures.get());
        to(&self.parsing, stats.bad_requests.get());
        to(&self.signing, stats.signing_failures.get());
        to(&self.connections, stats.connections.get());
        to(&self.handshakes, stats.handshake_failures.get());
        to(&self.files, stats.bad_files.get());
        for (reason, count) in stats.refusals() {
            to(&self.refusals.with_label_values(&[reason]), count);
        }
        let authority = ca.authority();
        let first = authority.roots().roots().map(|root| root.not_after).min();
        self.root_end.set(first.map_or(0, seconds));
        self.chain_end.set(seconds(authority.about().not_after));
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(since).unwrap_or(i64::MAX)
}
