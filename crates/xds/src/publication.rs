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
//! let view = Arc::new(ScopeView::default().edit().set(cluster).build());
//! publisher.publish(Publication { revision: 1, scopes: [(ScopeId(0), view)].into() });
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use envoy_api::{EncodedResource, ResourceType};
use tokio::sync::watch;

/// An opaque id: streams with the same id are offered the same resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId(pub u32);

/// The resources of one type by name.
pub type Resources = BTreeMap<Arc<str>, Arc<EncodedResource>>;

/// Everything one scope offers, by type. Types that did not change are shared with the view
/// this one was edited from.
#[derive(Clone, Debug, Default)]
pub struct ScopeView {
    types: [Arc<Resources>; 6],
    edited: Option<Edited>,
}

/// Which names differ from an earlier view, so that thousands of streams need not search.
#[derive(Clone, Debug)]
struct Edited {
    base: Weak<ScopeView>,
    names: [Vec<Arc<str>>; 6],
}

/// The world at one revision.
#[derive(Clone, Debug, Default)]
pub struct Publication {
    /// Grows by every publication of this process; zero = nothing was published yet.
    pub revision: u64,
    /// The view of every scope.
    pub scopes: BTreeMap<ScopeId, Arc<ScopeView>>,
}

/// Builds a view from an earlier one; see [`ScopeView::edit`].
#[derive(Debug)]
pub struct ScopeEdit {
    view: ScopeView,
    touched: [Vec<Arc<str>>; 6],
    base: Option<Weak<ScopeView>>,
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
    /// A view of these resources.
    pub fn new(resources: impl IntoIterator<Item = Arc<EncodedResource>>) -> Self {
        let mut maps: [Resources; 6] = Default::default();
        for resource in resources {
            let slot = resource.resource_type() as usize;
            maps[slot].insert(resource.name().clone(), resource);
        }
        Self { types: maps.map(Arc::new), edited: None }
    }

    /// The resources of a type.
    pub fn resources(&self, resource_type: ResourceType) -> &Arc<Resources> {
        &self.types[resource_type as usize]
    }

    /// One resource.
    pub fn get(&self, resource_type: ResourceType, name: &str) -> Option<&Arc<EncodedResource>> {
        self.types[resource_type as usize].get(name)
    }

    /// Start an edited copy.
    pub fn edit(&self) -> ScopeEdit {
        ScopeEdit {
            view: Self { types: self.types.clone(), edited: None },
            touched: Default::default(),
            base: None,
        }
    }

    /// As `edit`, and remember what differs: a stream that holds `self` then looks at the
    /// touched names only, where it would otherwise compare the views name by name.
    pub fn edit_shared(self: &Arc<Self>) -> ScopeEdit {
        ScopeEdit { base: Some(Arc::downgrade(self)), ..self.edit() }
    }

    /// Virtual hosts named `<route configuration>/<host>`.
    pub fn virtual_hosts<'a>(
        &'a self,
        route_configuration: &'a str,
    ) -> impl Iterator<Item = &'a Arc<EncodedResource>> {
        let hosts = self.resources(ResourceType::VirtualHost);
        let first: Arc<str> = format!("{route_configuration}/").into();
        hosts
            .range(first.clone()..)
            .take_while(move |(name, _)| name.starts_with(&*first))
            .filter(move |(name, _)| parent_of(name) == Some(route_configuration))
            .map(|(_, host)| host)
    }

    /// Names of a type that may differ between `earlier` and this view.
    pub(crate) fn changed_since(
        &self,
        earlier: Option<&Arc<Self>>,
        resource_type: ResourceType,
    ) -> Vec<Arc<str>> {
        let slot = resource_type as usize;
        let new = &self.types[slot];
        let Some(earlier) = earlier else {
            return new.keys().cloned().collect();
        };
        let old = &earlier.types[slot];
        if Arc::ptr_eq(old, new) {
            return Vec::new();
        }
        if let Some(edited) = &self.edited
            && edited.base.ptr_eq(&Arc::downgrade(earlier))
        {
            return edited.names[slot].clone();
        }
        let differs = |name: &&Arc<str>| match (old.get(*name), new.get(*name)) {
            (Some(a), Some(b)) => !Arc::ptr_eq(a, b) && a.version() != b.version(),
            _ => true,
        };
        let gone = old.keys().filter(|name| !new.contains_key(*name));
        new.keys().filter(differs).chain(gone).cloned().collect()
    }
}

/// The RouteConfiguration that a virtual host belongs to by its name.
pub(crate) fn parent_of(virtual_host: &str) -> Option<&str> {
    virtual_host.rsplit_once('/').map(|(parent, _)| parent)
}

// === impl ScopeEdit ===

impl ScopeEdit {
    /// Add or replace a resource.
    #[must_use]
    pub fn set(mut self, resource: impl Into<Arc<EncodedResource>>) -> Self {
        let resource = resource.into();
        let slot = resource.resource_type() as usize;
        self.touched[slot].push(resource.name().clone());
        Arc::make_mut(&mut self.view.types[slot]).insert(resource.name().clone(), resource);
        self
    }

    /// Take a resource away; a missing one is no error.
    #[must_use]
    pub fn remove(mut self, resource_type: ResourceType, name: &str) -> Self {
        let slot = resource_type as usize;
        if let Some((name, _)) = Arc::make_mut(&mut self.view.types[slot]).remove_entry(name) {
            self.touched[slot].push(name);
        }
        self
    }

    /// The edited view.
    pub fn build(self) -> ScopeView {
        let names = self.touched;
        ScopeView { edited: self.base.map(|base| Edited { base, names }), ..self.view }
    }
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
        publisher.publish(Publication { revision: 1, scopes: scopes.into() });
        assert!(of_one.has_changed().unwrap() && of_two.has_changed().unwrap());
        of_one.mark_unchanged();
        of_two.mark_unchanged();
        let two = Arc::new(ScopeView::new([Arc::new(cluster("c", b"1"))]));
        for revision in 2..1000 {
            let scopes = [(ScopeId(1), one.clone()), (ScopeId(2), two.clone())];
            publisher.publish(Publication { revision, scopes: scopes.into() });
        }
        assert!(!of_one.has_changed().unwrap());
        assert!(of_two.has_changed().unwrap());
        assert_eq!(publisher.load().revision, 999);
    }

    #[test]
    fn changed_names_are_equal_with_and_without_the_hint() {
        let base = Arc::new(ScopeView::new(["a", "b", "c"].map(|n| Arc::new(cluster(n, b"1")))));
        let edit = |edit: ScopeEdit| {
            edit.set(cluster("b", b"2"))
                .remove(ResourceType::Cluster, "c")
                .set(cluster("d", b"1"))
                .build()
        };
        let mut hinted = edit(base.edit_shared()).changed_since(Some(&base), ResourceType::Cluster);
        let mut walked = edit(base.edit()).changed_since(Some(&base), ResourceType::Cluster);
        hinted.sort();
        walked.sort();
        assert_eq!(hinted, walked);
        assert_eq!(hinted, ["b", "c", "d"].map(Arc::from));
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
