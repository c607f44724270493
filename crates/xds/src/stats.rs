//! Counters for metrics: plain atomics, read by whoever exports them.
//!
//! **Invariant:** only ever grow, except `streams`, `waiting` and `intake_bytes`.

use std::sync::atomic::{AtomicU64, Ordering};

use envoy_api::ResourceType;

/// A counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// What all streams of this process did.
#[derive(Debug, Default)]
pub struct Stats {
    /// Streams open now.
    pub streams: Counter,
    /// Streams that wait until others are taken in.
    pub waiting: Counter,
    /// Streams ever opened.
    pub streams_opened: Counter,
    /// Streams turned away by the connector.
    pub refused: Counter,
    /// Requests read.
    pub requests: Counter,
    /// Bytes of requests that came in part.
    pub intake_bytes: Counter,
    /// Bytes of responses, gRPC prefix included.
    pub sent_bytes: Counter,
    /// Wake-ups of a stream after which nothing had to be sent.
    pub skipped_equal: Counter,
    /// Streams ended because their proxy did not read.
    pub unread: Counter,
    /// Events that found the channel full; the status still shows what they said.
    pub events_dropped: Counter,
    responses: [Counter; 6],
    resources: [Counter; 6],
    rejections: [Counter; 6],
}

// === impl Counter ===

impl Counter {
    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }
}

// === impl Stats ===

impl Stats {
    /// Responses of a type.
    pub fn responses(&self, resource_type: ResourceType) -> &Counter {
        &self.responses[resource_type as usize]
    }

    /// Resources in responses of a type, removals included.
    pub fn resources(&self, resource_type: ResourceType) -> &Counter {
        &self.resources[resource_type as usize]
    }

    /// NACKs of a type.
    pub fn rejections(&self, resource_type: ResourceType) -> &Counter {
        &self.rejections[resource_type as usize]
    }
}
