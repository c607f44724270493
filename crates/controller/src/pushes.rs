//! The last batches: what came in, what ran again, what differed, who was woken.
//!
//! In: what the loop did. Out: `/debug/pushz`: why a change reached a proxy, or why not.
//!
//! **Invariant:** bounded in batches and in lines per batch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::Ran;
use rpds::RedBlackTreeSetSync;
use xds::{ResourceType, ScopeId, StreamId};

/// Streams, shared with the loop: a batch may wake thousands.
pub(crate) type StreamIds = RedBlackTreeSetSync<StreamId>;

/// Batches that are kept.
const KEPT: usize = 64;
/// One batch.
#[derive(Debug)]
pub(crate) struct Push {
    /// Publication after it.
    pub(crate) revision: u64,
    /// When it was taken.
    pub(crate) at: SystemTime,
    /// From taking it to its publication.
    pub(crate) took: Duration,
    /// What came in.
    pub(crate) events: Vec<String>,
    /// Whether any row differs.
    pub(crate) touched: bool,
    /// Queries that ran again, and whether their value differs.
    pub(crate) ran: Vec<(String, bool)>,
    /// How many ran.
    pub(crate) ran_count: usize,
    /// Resources whose content differs, or that are gone.
    pub(crate) resources: Vec<(ResourceType, Arc<str>)>,
    /// How many.
    pub(crate) resource_count: usize,
    /// Scopes that differ, and the streams that were woken for them.
    pub(crate) woken: Vec<(ScopeId, StreamIds)>,
}

/// The last batches, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pushes(VecDeque<Arc<Push>>);

// === impl Pushes ===

impl Pushes {
    /// Keep a batch.
    pub(crate) fn add(&mut self, push: Push) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(Arc::new(push));
    }

    /// Newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &Arc<Push>> {
        self.0.iter().rev()
    }
}

// === impl Push ===

impl Push {
    /// Lines of each sort that are kept of a batch.
    pub(crate) const LINES: usize = 100;

    /// The first lines of what ran.
    pub(crate) fn lines(ran: &[Ran]) -> Vec<(String, bool)> {
        ran.iter().take(Self::LINES).map(|r| (r.to_string(), r.differs)).collect()
    }

    /// The first of many.
    pub(crate) fn first<T: Clone>(all: &[T]) -> Vec<T> {
        all.iter().take(Self::LINES).cloned().collect()
    }

    /// The outcome in a sentence.
    pub(crate) fn outcome(&self) -> &'static str {
        if self.resource_count > 0 || !self.woken.is_empty() {
            if self.woken.iter().all(|(_, streams)| streams.is_empty()) {
                "resources differ; no stream holds them"
            } else {
                "resources differ; the streams that hold them were woken"
            }
        } else if self.ran_count > 0 {
            "what was read differs, but every resource came out equal: nothing to send"
        } else if self.touched {
            "no connected proxy depends on what differs: nothing to send"
        } else {
            "nothing differs from what was there"
        }
    }
}
