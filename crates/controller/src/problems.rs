//! What proxies rejected, said of the objects that it came from.
//!
//! In: rejections and notices of streams. Out: problems.
//!
//! **Invariant:** a rejection counts until its stream ends or its resource changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::{Problem, ProxyKey, Reason, ir};
use xds::{Notice, Rejection, ResourceRef, ResourceType, What};

/// Finds what a resource was made of, by type and name.
pub(crate) type SourceOf<'a> = &'a dyn Fn(ResourceType, &str) -> Option<Arc<ir::Resource>>;

/// Rejections that are in force.
#[derive(Default)]
pub(crate) struct Rejections {
    by_stream: BTreeMap<(ProxyKey, ResourceType, Arc<str>), Problem>,
}

// === impl Rejections ===

impl Rejections {
    /// Note what happened on a stream whose scope offers these resources. Returns whether anything
    /// changed.
    pub(crate) fn note(&mut self, event: &xds::Event, source_of: SourceOf<'_>) -> bool {
        let key = ProxyKey(event.stream.0);
        match &event.what {
            What::Rejected(rejection) => {
                tracing::warn!(
                    proxy = %event.node_id,
                    kind = %rejection.resource_type,
                    nonce = %rejection.nonce,
                    resources = ?rejection.resources.iter().map(|(n, _)| &**n).collect::<Vec<_>>(),
                    error = %rejection.error,
                    "proxy rejected a response"
                );
                self.rejected(key, event, rejection, source_of)
            }
            What::Notice(notice) => {
                let (resource, message) = waited(notice);
                tracing::warn!(proxy = %event.node_id, resource = %resource.name, "{message}");
                false
            }
        }
    }

    fn rejected(
        &mut self,
        key: ProxyKey,
        event: &xds::Event,
        rejection: &Rejection,
        source_of: SourceOf<'_>,
    ) -> bool {
        // While several are suspected, none is accused: the culprit is found by sending each alone.
        if !rejection.parked {
            return false;
        }
        let mut changed = false;
        for (name, _) in &rejection.resources {
            let Some(resource) = source_of(rejection.resource_type, name) else { continue };
            let Some(origin) = resource.origins().0.first() else { continue };
            let message = format!(
                "proxy {} rejected {} {name}, which comes from here: {}; it keeps what it had",
                event.node_id, rejection.resource_type, rejection.error
            );
            let problem = Problem::error(&origin.object, &*origin.field, Reason::Rejected, message);
            let key = (key, rejection.resource_type, Arc::clone(name));
            let same = self.by_stream.get(&key) == Some(&problem);
            self.by_stream.insert(key, problem);
            changed |= !same;
        }
        changed
    }

    /// A stream ended.
    pub(crate) fn forget_stream(&mut self, key: ProxyKey) -> bool {
        let before = self.by_stream.len();
        self.by_stream.retain(|(stream, _, _), _| *stream != key);
        before != self.by_stream.len()
    }

    /// A resource changed: what was said of it may not hold any more.
    pub(crate) fn forget_resource(&mut self, resource_type: ResourceType, name: &str) {
        self.by_stream.retain(|(_, t, n), _| (*t, &**n) != (resource_type, name));
    }

    /// The problems in force.
    pub(crate) fn problems(&self) -> BTreeSet<Problem> {
        self.by_stream.values().cloned().collect()
    }
}

fn waited(notice: &Notice) -> (&ResourceRef, String) {
    match notice {
        Notice::SentBeforeReference { resource, missing } => {
            let missing: Vec<_> =
                missing.iter().map(|m| format!("{} {}", m.resource_type, m.name)).collect();
            let message = format!(
                "sent {} before the proxy has {}: it waited long enough",
                resource.resource_type,
                missing.join(", ")
            );
            (resource, message)
        }
        Notice::RemovedWhileReferenced { resource } => {
            let message = format!(
                "removed {} although something may still refer to it: it waited long enough",
                resource.resource_type
            );
            (resource, message)
        }
    }
}
