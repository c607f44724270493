//! Streams that are taken in, as many at once as there is memory for.
//!
//! Until it has caught up, a stream keeps something for each name, and shares it with all others
//! only then. Thousands that come at once, after an outage, are taken in one after the other, in
//! the order in which they came; who waits has not been read from, so what it says stays with it.
//!
//! **Invariant:** nobody waits for a client: one that keeps us waiting loses its place, not its
//! stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use envoy_api::ResourceType;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Options;
use crate::publication::ScopeView;

/// What a name takes until its stream has caught up, in bytes. Measured with 10,000 services.
const NAME: usize = 64;
/// What a stream is expected to take before any view was seen, in KiB.
const FIRST: u32 = 1024;
/// How many times as long as without a word a stream may have its place in all.
const AT_MOST: u32 = 8;

/// The places.
pub(super) struct Admission {
    /// In KiB.
    free: Arc<Semaphore>,
    all: u32,
    /// What a stream takes, as far as is known: as much as the one before it.
    each: AtomicU32,
    options: Arc<Options>,
}

/// The place of a stream, until it leaves it.
pub(super) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    patience: Duration,
    last_word: Instant,
    end: Instant,
}

// === impl Admission ===

impl Admission {
    pub(super) fn new(options: Arc<Options>) -> Self {
        let all = u32::try_from(options.building_bytes >> 10).unwrap_or(u32::MAX).max(1);
        let free = Arc::new(Semaphore::new(all as usize));
        Self { free, all, each: AtomicU32::new(FIRST), options }
    }

    /// Wait for a place.
    pub(super) async fn enter(&self) -> Place {
        let _waiting = Waiting::new(&self.options);
        let each = self.each.load(Ordering::Relaxed).clamp(1, self.all);
        // An error means that the semaphore is closed, and nobody closes it.
        let permit = Arc::clone(&self.free).acquire_many_owned(each).await.ok();
        let (now, patience) = (Instant::now(), self.options.building_patience);
        Place { permit, patience, last_word: now, end: now + patience * AT_MOST }
    }

    /// A stream was given this view.
    pub(super) fn learn(&self, view: &ScopeView) {
        let names: usize = ResourceType::ALL.into_iter().map(|kind| view.size(kind)).sum();
        let each = u32::try_from(names.saturating_mul(NAME) >> 10).unwrap_or(u32::MAX);
        self.each.store(each, Ordering::Relaxed);
    }
}

// === impl Place ===

impl Place {
    /// When it is lost; none when it is left already.
    pub(super) fn until(&self) -> Option<Instant> {
        self.permit.is_some().then(|| self.end.min(self.last_word + self.patience))
    }

    /// The proxy said something, or read something.
    pub(super) fn heard(&mut self) {
        self.last_word = Instant::now();
    }

    /// Give it to who is next.
    pub(super) fn leave(&mut self) {
        self.permit = None;
    }
}

/// Counts a stream as waiting until dropped.
struct Waiting<'a>(&'a Options);

impl<'a> Waiting<'a> {
    fn new(options: &'a Options) -> Self {
        options.stats.waiting.add(1);
        Self(options)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.stats.waiting.subtract(1);
    }
}
