//! What all proxies should hold: an immutable set of resources per scope, swapped atomically.
//!
//! In: a `Publication` from the one writer. Out: `ScopeView`s for the streams, each woken only
//! when the view of its own scope was replaced.
//!
//! **Invariant:** a published view never changes; readers take no lock; publishing never waits
//! for a client.
//!
//! ```
//! use std::sync::Arc;
//! use xds::{EncodedResource, Publication, Publisher, ResourceType, ScopeId, ScopeView};
//! let publisher = Publisher::default();
//! let cluster = EncodedResource::new(ResourceType::Cluster, "a", b"", vec![]);
//! let view = Arc::new(ScopeView::new([Arc::new(cluster)]));
//! publisher.publish(Publication { revision: 1, scopes: Arc::new([(ScopeId(0), view)].into()) });
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use envoy_api::{EncodedResource, ResourceType};
use tokio::sync::watch;

use crate::layer::{self, Layer, LayerEdit, Merged};

/// An opaque id: streams with the same id are offered the same resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId(pub u32);

/// Everything one scope offers: a stack of layers, lowest first.
#[derive(Clone, Debug, Default)]
pub struct ScopeView {
    layers: Vec<Arc<Layer>>,
}

/// The world at one revision.
#[derive(Clone, Debug, Default)]
pub struct Publication {
    /// Grows by every publication of this process; zero = nothing was published yet.
    pub revision: u64,
    /// The view of every scope.
    pub scopes: Arc<BTreeMap<ScopeId, Arc<ScopeView>>>,
}

/// Holds the current publication and wakes the streams of the scopes that it changed.
#[derive(Debug, Default)]
pub struct Publisher {
    current: ArcSwap<Publication>,
    // Held for a map look-up only, never while a client is waited for: `watch` does not block.
    wakers: Mutex<BTreeMap<ScopeId, watch::Sender<u64>>>,
}

// === impl ScopeView ===

impl ScopeView {
    /// A view of these resources, in one layer.
    pub fn new(resources: impl IntoIterator<Item = Arc<EncodedResource>>) -> Self {
        let edit = resources.into_iter().fold(Layer::default().edit(), LayerEdit::set);
        Self::of(vec![Arc::new(edit.build())])
    }

    /// A stack of layers, lowest first.
    pub fn of(layers: Vec<Arc<Layer>>) -> Self {
        Self { layers }
    }

    /// Its layers, lowest first.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// The resources of a type, by name.
    pub fn resources(
        &self,
        resource_type: ResourceType,
    ) -> impl Iterator<Item = (&Arc<str>, &Arc<EncodedResource>)> {
        Merged::new(&self.layers, resource_type, "")
    }

    /// Number of resources of a type, or more where layers hide some of each other's.
    pub(crate) fn size(&self, resource_type: ResourceType) -> usize {
        self.layers.iter().map(|layer| layer.size(resource_type)).sum()
    }

    /// One resource.
    pub fn get(&self, resource_type: ResourceType, name: &str) -> Option<&Arc<EncodedResource>> {
        let mut layers = self.layers.iter().rev();
        layers.find_map(|layer| layer.get(resource_type, name))?.as_ref()
    }

    /// Virtual hosts named `<route configuration>/<host>`.
    pub fn virtual_hosts<'a>(
        &'a self,
        route_configuration: &'a str,
    ) -> impl Iterator<Item = &'a Arc<EncodedResource>> {
        let first = format!("{route_configuration}/");
        Merged::new(&self.layers, ResourceType::VirtualHost, &first)
            .take_while(move |(name, _)| name.starts_with(&*first))
            .filter(move |(name, _)| parent_of(name) == Some(route_configuration))
            .map(|(_, host)| host)
    }

    /// Names of a type that may differ between `earlier` and this view.
    pub(crate) fn changed_since(
        &self,
        earlier: Option<&Arc<Self>>,
        resource_type: ResourceType,
    ) -> BTreeSet<Arc<str>> {
        let earlier = earlier.map_or(&[][..], |view| &view.layers);
        layer::changed_since(&self.layers, earlier, resource_type)
    }
}

/// The RouteConfiguration that a virtual host belongs to by its name.
pub(crate) fn parent_of(virtual_host: &str) -> Option<&str> {
    virtual_host.rsplit_once('/').map(|(parent, _)| parent)
}

// === impl Publisher ===

impl Publisher {
    /// Replace the publication and wake the streams of every scope whose view is another one.
    ///
    /// Never waits for a client: a stream that is busy finds the newest view when it looks.
    pub fn publish(&self, publication: Publication) {
        let revision = publication.revision;
        let next = Arc::new(publication);
        // Locked over the swap, so that two publications wake in the order they were swapped.
        let mut wakers = self.wakers();
        let previous = self.current.swap(next.clone());
        wakers.retain(|scope, waker| {
            let same = match (previous.scopes.get(scope), next.scopes.get(scope)) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                (None, None) => true,
                _ => false,
            };
            if !same {
                waker.send_replace(revision);
            }
            waker.receiver_count() > 0
        });
    }

    /// The current publication.
    pub fn load(&self) -> Arc<Publication> {
        self.current.load_full()
    }

    /// The current view of a scope.
    pub fn view(&self, scope: ScopeId) -> Option<Arc<ScopeView>> {
        self.current.load().scopes.get(&scope).cloned()
    }

    /// Be woken whenever the view of this scope is replaced. Subscribe first, then `view`.
    pub fn subscribe(&self, scope: ScopeId) -> watch::Receiver<u64> {
        let revision = self.current.load().revision;
        let mut wakers = self.wakers();
        let waker = wakers.entry(scope);
        waker.or_insert_with(|| watch::channel(revision).0).subscribe()
    }

    fn wakers(&self) -> MutexGuard<'_, BTreeMap<ScopeId, watch::Sender<u64>>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str, body: &[u8]) -> EncodedResource {
        EncodedResource::new(ResourceType::Cluster, name, body, vec![])
    }

    #[test]
    fn r98_publishing_wakes_only_the_scope_that_changed_and_waits_for_nobody() {
        let publisher = Publisher::default();
        let one = Arc::new(ScopeView::default());
        let two = Arc::new(ScopeView::default());
        let mut of_one = publisher.subscribe(ScopeId(1));
        let mut of_two = publisher.subscribe(ScopeId(2));
        let scopes = [(ScopeId(1), one.clone()), (ScopeId(2), two)];
        publisher.publish(Publication { revision: 1, scopes: Arc::new(scopes.into()) });
        assert!(of_one.has_changed().unwrap() && of_two.has_changed().unwrap());
        of_one.mark_unchanged();
        of_two.mark_unchanged();
        let two = Arc::new(ScopeView::new([Arc::new(cluster("c", b"1"))]));
        for revision in 2..1000 {
            let scopes = [(ScopeId(1), one.clone()), (ScopeId(2), two.clone())];
            publisher.publish(Publication { revision, scopes: Arc::new(scopes.into()) });
        }
        assert!(!of_one.has_changed().unwrap());
        assert!(of_two.has_changed().unwrap());
        assert_eq!(publisher.load().revision, 999);
    }

    #[test]
    fn virtual_hosts_belong_to_the_route_configuration_before_the_last_slash() {
        let host = |name: &str| {
            Arc::new(EncodedResource::new(ResourceType::VirtualHost, name, b"", vec![]))
        };
        let view = ScopeView::new(["80/a", "80/b", "8080/a", "80/x/a"].map(host));
        let names: Vec<_> = view.virtual_hosts("80").map(|h| h.name().clone()).collect();
        assert_eq!(names, ["80/a", "80/b"].map(Arc::from));
    }
}
