//! Metrics for Prometheus, under the names that Istio's dashboards know where they mean the same.
//!
//! **Invariant:** values are read when they are asked for; nothing is counted twice.

mod identity;
mod injection;

use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};
use prometheus::{Opts, Registry, TextEncoder};
use xds::{ResourceType, Stats, Streams};

use self::identity::IdentityMetrics;
pub(crate) use self::injection::InjectionMetrics;
use crate::sources::SourceState;
use crate::world::Shared;

/// The exporter.
pub(crate) struct Metrics {
    registry: Registry,
    shared: Arc<Shared>,
    stats: Arc<Stats>,
    streams: Arc<Streams>,
    proxies: IntGauge,
    pushes: IntCounterVec,
    rejects: IntCounterVec,
    sent_bytes: IntCounter,
    refused: IntCounter,
    skipped: IntCounter,
    unread: IntCounter,
    events_dropped: IntCounter,
    stale: IntGauge,
    intake_bytes: IntGauge,
    waiting: IntGauge,
    objects: IntGaugeVec,
    services: IntGauge,
    virtual_services: IntGauge,
    problems: IntGaugeVec,
    ready: IntGauge,
    leading: IntGauge,
    sources: IntGaugeVec,
    identity: Option<IdentityMetrics>,
    /// Two who ask at once would count everything twice.
    asking: Mutex<()>,
}

static BATCH_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let options = HistogramOpts::new(
        "heddle_batch_seconds",
        "Time from taking a batch of events to its publication",
    )
    .buckets(vec![0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0]);
    #[allow(clippy::expect_used, reason = "name and buckets are the constants above")]
    Histogram::with_opts(options).expect("constant options")
});

static BATCH_EVENTS: LazyLock<IntCounter> = LazyLock::new(|| {
    #[allow(clippy::expect_used, reason = "the name is a constant")]
    IntCounter::new("heddle_events_total", "Events that the loop handled").expect("constant name")
});

/// Note a batch.
pub(crate) fn batch(took: Duration, events: usize) {
    BATCH_SECONDS.observe(took.as_secs_f64());
    BATCH_EVENTS.inc_by(events as u64);
}

/// Set up the exporter.
pub(crate) fn register(
    shared: Arc<Shared>,
    stats: Arc<Stats>,
    streams: Arc<Streams>,
    injection: Option<&InjectionMetrics>,
) -> Result<Arc<Metrics>> {
    Metrics::new(shared, stats, streams, injection).map(Arc::new).context("setting up metrics")
}

// === impl Metrics ===

impl Metrics {
    fn new(
        shared: Arc<Shared>,
        stats: Arc<Stats>,
        streams: Arc<Streams>,
        injection: Option<&InjectionMetrics>,
    ) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| IntGauge::new(name, help);
        let counter = |name: &str, help: &str| IntCounter::new(name, help);
        let identity = shared.secured.then(IdentityMetrics::new).transpose()?;
        let metrics = Self {
            registry: Registry::new(),
            shared,
            stats,
            streams,
            proxies: gauge("pilot_xds", "Proxies connected by xDS")?,
            pushes: IntCounterVec::new(
                Opts::new("pilot_xds_pushes", "Responses sent by xDS"),
                &["type"],
            )?,
            rejects: IntCounterVec::new(
                Opts::new("pilot_total_xds_rejects", "Responses that proxies rejected"),
                &["type"],
            )?,
            sent_bytes: counter("heddle_xds_sent_bytes_total", "Bytes of responses")?,
            refused: counter("heddle_xds_refused_total", "Streams turned away")?,
            skipped: counter(
                "heddle_xds_skipped_equal_total",
                "Wake-ups of a stream after which nothing had to be sent",
            )?,
            unread: counter(
                "pilot_xds_write_timeout",
                "Streams ended because their proxy did not read",
            )?,
            events_dropped: counter(
                "heddle_xds_events_dropped_total",
                "Rejections and notices that found the queue full",
            )?,
            stale: gauge("heddle_xds_stale_proxies", "Proxies with an overdue response")?,
            intake_bytes: gauge("heddle_xds_intake_bytes", "Bytes of requests not yet whole")?,
            waiting: gauge("heddle_xds_waiting_proxies", "Proxies that wait to be taken in")?,
            objects: IntGaugeVec::new(Opts::new("heddle_objects", "Objects by kind"), &["kind"])?,
            services: gauge("pilot_services", "Services")?,
            virtual_services: gauge("pilot_virt_services", "VirtualServices")?,
            problems: IntGaugeVec::new(
                Opts::new("heddle_problems", "Problems with objects and files"),
                &["severity"],
            )?,
            ready: gauge("heddle_ready", "Whether proxies can be served")?,
            leading: gauge("heddle_leading", "Whether this replica leads")?,
            sources: IntGaugeVec::new(
                Opts::new("heddle_source_stale", "Whether a watch of the cluster cannot go on"),
                &["kind"],
            )?,
            identity,
            asking: Mutex::default(),
        };
        let info = IntGaugeVec::new(Opts::new("pilot_info", "Version"), &["version"])?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let registry = &metrics.registry;
        registry.register(Box::new(info))?;
        registry.register(Box::new(metrics.pushes.clone()))?;
        registry.register(Box::new(metrics.rejects.clone()))?;
        registry.register(Box::new(metrics.objects.clone()))?;
        registry.register(Box::new(metrics.problems.clone()))?;
        registry.register(Box::new(metrics.sources.clone()))?;
        registry.register(Box::new(BATCH_SECONDS.clone()))?;
        let gauges = [
            &metrics.proxies,
            &metrics.stale,
            &metrics.intake_bytes,
            &metrics.waiting,
            &metrics.services,
            &metrics.virtual_services,
            &metrics.ready,
            &metrics.leading,
        ];
        for gauge in gauges {
            registry.register(Box::new(gauge.clone()))?;
        }
        let counters = [
            &metrics.sent_bytes,
            &metrics.refused,
            &metrics.skipped,
            &metrics.unread,
            &metrics.events_dropped,
            &BATCH_EVENTS,
        ];
        for counter in counters {
            registry.register(Box::new(counter.clone()))?;
        }
        if let Some(identity) = &metrics.identity {
            identity.register(registry)?;
        }
        if let Some(injection) = injection {
            injection.register(registry)?;
        }
        Ok(metrics)
    }

    /// The metrics now, in Prometheus' text format.
    pub(crate) fn text(&self) -> prometheus::Result<String> {
        let _alone = self.asking.lock();
        self.refresh();
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    fn refresh(&self) {
        for resource_type in ResourceType::ALL {
            let label = [&*resource_type.short_name().to_ascii_lowercase()];
            let pushes = self.stats.responses(resource_type).get();
            to(&self.pushes.with_label_values(&label), pushes);
            let label = [resource_type.type_url()];
            to(&self.rejects.with_label_values(&label), self.stats.rejections(resource_type).get());
        }
        to(&self.sent_bytes, self.stats.sent_bytes.get());
        to(&self.refused, self.stats.refused.get());
        to(&self.skipped, self.stats.skipped_equal.get());
        to(&self.unread, self.stats.unread.get());
        to(&self.events_dropped, self.stats.events_dropped.get());
        let streams = self.streams.list();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.proxies.set(count(streams.len()));
        let stale = streams.iter().filter(|s| s.types.iter().any(|t| t.stale)).count();
        self.stale.set(count(stale));
        let set = |gauge: &IntGauge, n: u64| gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        set(&self.intake_bytes, self.stats.intake_bytes.get());
        set(&self.waiting, self.stats.waiting.get());
        let world = self.shared.world.load();
        self.objects.reset();
        for owner in world.objects.keys() {
            self.objects.with_label_values(&[&*owner.kind.name]).inc();
        }
        self.services.set(self.objects.with_label_values(&["Service"]).get());
        self.virtual_services.set(self.objects.with_label_values(&["VirtualService"]).get());
        let (mut errors, mut warnings) = (0, 0);
        let own = world.objects.values().flat_map(|o| o.problems.iter().map(|p| p.severity));
        let between = world.problems.iter().map(|p| p.severity);
        let files = world.files.iter().map(|p| p.severity);
        for severity in own.chain(between).chain(files) {
            match severity {
                model::Severity::Error => errors += 1,
                model::Severity::Warning => warnings += 1,
            }
        }
        self.problems.with_label_values(&["error"]).set(errors);
        self.problems.with_label_values(&["warning"]).set(warnings);
        for (kind, watched) in self.shared.sources.list() {
            let stale = watched.state == SourceState::Stale;
            self.sources.with_label_values(&[kind]).set(i64::from(stale));
        }
        self.leading.set(i64::from(*self.shared.leading.borrow()));
        self.ready.set(i64::from(self.shared.missing().is_none()));
        if let Some((identity, ca)) = self.identity.as_ref().zip(self.shared.ca.get()) {
            identity.refresh(ca);
        }
    }
}

/// Bring a counter to a value that was counted elsewhere.
fn to(counter: &IntCounter, value: u64) {
    counter.inc_by(value.saturating_sub(counter.get()));
}
