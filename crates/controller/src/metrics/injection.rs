//! Metrics of injection, under the names that Istio's dashboards know.
//!
//! **Invariant:** no label names a workload, so their number is bounded.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

/// Injection's part of the exporter.
#[derive(Clone)]
pub(crate) struct InjectionMetrics {
    pub(crate) requests: IntCounter,
    pub(crate) successes: IntCounter,
    pub(crate) failures: IntCounter,
    pub(crate) skipped: IntCounter,
    pub(crate) time: Histogram,
    pub(crate) missed: IntGauge,
}

// === impl InjectionMetrics ===

impl InjectionMetrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| IntCounter::new(name, help);
        let time = HistogramOpts::new("sidecar_injection_time_seconds", "Time of a review")
            .buckets(vec![0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0]);
        Ok(Self {
            requests: counter("sidecar_injection_requests_total", "Reviews that were asked for")?,
            successes: counter("sidecar_injection_success_total", "Pods that were injected")?,
            failures: counter(
                "sidecar_injection_failure_total",
                "Pods that were refused, and reviews that could not be answered",
            )?,
            skipped: counter("sidecar_injection_skip_total", "Pods that were passed over")?,
            time: Histogram::with_opts(time)?,
            missed: IntGauge::new(
                "heddle_injection_missed_pods",
                "Pods that are to have a sidecar and have none, as the leader sees it",
            )?,
        })
    }

    pub(super) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        for counter in [&self.requests, &self.successes, &self.failures, &self.skipped] {
            registry.register(Box::new(counter.clone()))?;
        }
        registry.register(Box::new(self.time.clone()))?;
        registry.register(Box::new(self.missed.clone()))
    }
}
