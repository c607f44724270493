//! Counters of the authority.
//!
//! **Invariant:** adding to one never waits; no name of a workload is a key, so they are bounded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A number that grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// What happened so far.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests for a certificate.
    pub requests: Counter,
    /// Certificates issued.
    pub issued: Counter,
    /// Callers that were not believed, of whatever service.
    pub authentication_failures: Counter,
    /// Requests that could not be read or were refused for what they ask.
    pub bad_requests: Counter,
    /// Certificates that could not be signed.
    pub signing_failures: Counter,
    /// Requests that found too many of the same caller waiting.
    pub busy: Counter,
    /// TLS handshakes that failed or took too long.
    pub handshake_failures: Counter,
    /// TLS connections so far.
    pub connections: Counter,
    /// Files of an authority that were refused.
    pub bad_files: Counter,
    /// Refusals by reason; reasons are words of this crate.
    refusals: Mutex<BTreeMap<&'static str, u64>>,
}

// === impl Counter ===

impl Counter {
    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

// === impl Stats ===

impl Stats {
    /// Refusals by reason, those of callers included.
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() +=
            1;
    }
}
