//! References: what must be there before an addition, and gone before a removal.
//!
//! **Invariant:** a wait is only for something that can come on this stream; what is neither
//! offered nor subscribed gates nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_api::{EncodedResource, ResourceRef, ResourceType};

use super::Session;
use crate::publication::ScopeView;

use ResourceType::{Cluster, Endpoints, Listener, RouteConfiguration, Secret, VirtualHost};

/// Everything that is referred to by something held or in flight.
pub(super) struct Referenced {
    names: BTreeSet<ResourceRef>,
    /// Types with content we do not know: it may refer to anything.
    unknown: BTreeSet<ResourceType>,
}

// === impl Referenced ===

impl Referenced {
    /// Whether the resource may still be in use.
    pub(super) fn contains(&self, resource: &ResourceRef) -> bool {
        self.names.contains(resource)
            || self.unknown.iter().any(|from| may_refer(*from, resource.resource_type))
    }
}

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
            false => self.now < self.settings.ask_grace,
        }
    }

    /// What held and in-flight resources refer to.
    pub(super) fn referenced(&self) -> Referenced {
        let mut names = BTreeSet::new();
        let mut unknown = BTreeSet::new();
        for resource_type in ResourceType::ALL {
            let state = self.state(resource_type);
            for resource in state.contents() {
                names.extend(resource.refs().iter().cloned());
            }
            if state.held.iter().any(|(_, held)| held.resource.is_none()) {
                unknown.insert(resource_type);
            }
        }
        Referenced { names, unknown }
    }

    /// A parent is sent: its children that the proxy subscribed to follow, changed or not.
    pub(super) fn owe_children(&mut self, view: &ScopeView, parent: &Arc<EncodedResource>) {
        let mut owe = |resource_type: ResourceType, name: &Arc<str>| {
            let state = &mut self.types[resource_type as usize];
            if state.wants(name) {
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
