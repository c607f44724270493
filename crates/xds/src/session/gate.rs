//! References: what must be there before an addition, and gone before a removal.
//!
//! **Invariant:** a wait is only for something that can come on this stream; what is neither
//! offered nor subscribed gates nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_api::{EncodedResource, ResourceRef, ResourceType};

use super::Session;
use super::state::TypeState;
use crate::publication::ScopeView;
use crate::whole::Whole;

use ResourceType::{Cluster, Endpoints, Listener, RouteConfiguration, Secret, VirtualHost};

fn may_refer(from: ResourceType, to: ResourceType) -> bool {
    matches!(
        (from, to),
        (Listener | RouteConfiguration | VirtualHost, Cluster)
            | (Listener, RouteConfiguration)
            | (Listener | Cluster, Secret)
    )
}

// === impl Session ===

impl Session {
    /// What a resource refers to and the proxy does not hold yet.
    ///
    /// Children (endpoints, secrets, a listener's routes) are asked for after their parent and
    /// so gate nothing; neither do clusters among each other.
    pub(super) fn missing_refs(
        &self,
        view: &ScopeView,
        resource: &EncodedResource,
    ) -> Vec<ResourceRef> {
        if matches!(resource.resource_type(), Cluster | Endpoints | Secret) {
            return Vec::new();
        }
        let refs = resource.refs().iter();
        refs.filter(|r| r.resource_type == Cluster && self.must_wait_for(view, r))
            .cloned()
            .collect()
    }

    /// Whether nothing of it has to wait for a cluster.
    pub(super) fn holds_clusters(&self, view: &Arc<ScopeView>, whole: &Whole) -> bool {
        let clusters = self.state(Cluster);
        let all = clusters.held.is_just(view) && clusters.pending.is_empty();
        let mut refs = whole.resources().flat_map(|resource| resource.refs());
        all || !refs.any(|r| r.resource_type == Cluster && self.must_wait_for(view, r))
    }

    fn must_wait_for(&self, view: &ScopeView, target: &ResourceRef) -> bool {
        let state = self.state(target.resource_type);
        let name = &target.name;
        if state.is_held(name) || view.get(target.resource_type, name).is_none() {
            return false;
        }
        let given_up = state.parked.get(name);
        if given_up.is_some_and(|parked| parked.stand_in.is_none() && !state.is_on_stream(name)) {
            return false;
        }
        match state.seen {
            true => state.wants(name),
            false => self.now < self.asked_by(),
        }
    }

    /// Those of some names that the proxy may still be using: something held or in flight refers
    /// to them, or is not known, or may be asked for in a moment.
    pub(super) fn in_use(
        &self,
        resource_type: ResourceType,
        names: &[Arc<str>],
    ) -> BTreeSet<Arc<str>> {
        let states = || ResourceType::ALL.into_iter().zip(&self.types);
        let unknown = |(from, state): (ResourceType, &TypeState)| {
            may_refer(from, resource_type) && state.held.has_unknown()
        };
        // By state of the world a proxy does not say what it held.
        let asking = !self.full_sets && self.now < self.asked_by();
        let unasked = |(from, state): (ResourceType, &TypeState)| {
            asking && may_refer(from, resource_type) && !state.seen
        };
        if states().any(unknown) || states().any(unasked) {
            return names.iter().cloned().collect();
        }
        let asked: BTreeSet<_> = names.iter().collect();
        let contents = self.types.iter().flat_map(|state| state.contents());
        let refs = contents.flat_map(|resource| resource.refs());
        let used = refs.filter(|r| r.resource_type == resource_type && asked.contains(&r.name));
        used.map(|r| r.name.clone()).collect()
    }

    /// A parent is sent: its children that the proxy subscribes to follow, changed or not.
    pub(super) fn owe_children(&mut self, view: &ScopeView, parent: &Arc<EncodedResource>) {
        let mut owe = |resource_type: ResourceType, name: &Arc<str>| {
            let state = &mut self.types[resource_type as usize];
            // After a reconnect the proxy may be about to say that it wants and holds them.
            if !state.seen || state.wants(name) {
                state.owed.insert(name.clone());
            }
        };
        match parent.resource_type() {
            Cluster => {
                owe(Endpoints, parent.name());
                for child in parent.refs() {
                    if matches!(child.resource_type, Endpoints | Secret) {
                        owe(child.resource_type, &child.name);
                    }
                }
            }
            Listener => {
                let secrets = parent.refs().iter();
                for secret in secrets.filter(|r| r.resource_type == Secret) {
                    owe(Secret, &secret.name);
                }
            }
            RouteConfiguration => {
                let hosts = view.virtual_hosts(parent.name());
                let state = &mut self.types[VirtualHost as usize];
                state.owed.extend(hosts.map(|host| host.name().clone()));
            }
            Endpoints | VirtualHost | Secret => {}
        }
    }
}
