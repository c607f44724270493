//! Who gets something else for a host than everybody.
//!
//! In: the objects that decide about a host. Out: what everybody gets for it, and what those
//! namespaces get instead that some object names.
//!
//! **Invariant:** a namespace for which a host comes to something else than for everybody is named
//! by a service, rule or policy that is read here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::client::Client;
use super::rules::{Head, RulesHead};
use super::sidecar::{DEFAULT_PORT, claims};
use super::{HostView, Key, RowSet, Viewer};
use crate::hosts;
use crate::rows::{Protocol, ServicePort, Visibility};
use crate::track::{Query, View};

/// Rows of a host for everybody, and for the namespaces that get others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HostViews {
    pub(crate) host: Arc<str>,
    pub(crate) mutual_tls: bool,
}

/// The value of `HostViews`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Views {
    pub(crate) everybody: Arc<RowSet>,
    pub(crate) others: BTreeMap<Arc<str>, Arc<RowSet>>,
}

/// Namespaces that services of a host and policies for it name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mentions(pub(crate) Arc<str>);

/// Namespaces that are named for services whose connections come in at a port that all share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PortMentions(pub(crate) u16);

/// Namespaces that objects name which decide about a host.
fn mentioned(view: &View<'_>, host: &Arc<str>) -> BTreeSet<Arc<str>> {
    let mut namespaces = (*view.get(&Mentions(Arc::clone(host)))).clone();
    for (_, head) in claims(view, host).into_iter().flatten() {
        of_head(view, &head, &mut namespaces);
    }
    namespaces
}

/// Namespaces that a rule list names, and that are named for its destinations.
fn of_head(view: &View<'_>, head: &Head, namespaces: &mut BTreeSet<Arc<str>>) {
    namespaces.extend(named(view.visibility_of_rules(head)));
    namespaces.extend(head.source_namespaces.iter().cloned());
    for destination in &head.destinations {
        namespaces.extend(view.get(&Mentions(Arc::clone(destination))).iter().cloned());
    }
}

/// Namespaces that a visibility names.
fn named(visibility: Visibility) -> BTreeSet<Arc<str>> {
    match visibility {
        Visibility::Everyone => BTreeSet::new(),
        Visibility::Namespaces(namespaces) => namespaces,
    }
}

// === impl HostViews ===

impl Query for HostViews {
    type Value = Views;

    fn run(&self, view: &View<'_>) -> Views {
        let host = &self.host;
        let viewer = |client| Viewer::sharing(client, self.mutual_tls);
        let of = |client| HostView { host: Arc::clone(host), viewer: viewer(client) };
        let everybody = view.get(&of(Client::Anyone));
        let mut namespaces = mentioned(view, host);
        let mut ports = BTreeSet::from([DEFAULT_PORT]);
        let services = view.services_of(host);
        for (_, service) in &services {
            if let Some(target) = &service.alias_of {
                namespaces.extend(mentioned(view, target));
                let targets = view.services_of(target);
                ports.extend(targets.iter().flat_map(|(_, t)| &t.ports).map(|p| p.number));
            }
            ports.extend(service.ports.iter().map(|p| p.number));
        }
        // To whom no service of the host is visible, its ports are those of a service whose pattern
        // covers it.
        let everyone = |service| view.visibility_of_service(service) == Visibility::Everyone;
        let covering = match services.iter().any(|(_, service)| everyone(service)) {
            true => Vec::new(),
            false => hosts::patterns_for(host),
        };
        for pattern in covering.into_iter().skip(1) {
            for (_, service) in view.services_of(&pattern) {
                namespaces.extend(mentioned(view, &pattern));
                ports.extend(service.ports.iter().map(|p| p.number));
            }
        }
        for port in ports {
            namespaces.extend(view.get(&PortMentions(port)).iter().cloned());
        }
        let mut others = BTreeMap::new();
        for namespace in namespaces {
            let own = view.get(&of(Client::Namespace(Arc::clone(&namespace))));
            if own != everybody {
                others.insert(namespace, own);
            }
        }
        Views { everybody, others }
    }

    fn key(&self) -> Key {
        Key::HostViews(self.clone())
    }
}

// === impl Mentions ===

impl Query for Mentions {
    type Value = BTreeSet<Arc<str>>;

    fn run(&self, view: &View<'_>) -> BTreeSet<Arc<str>> {
        // What a name stands for decides as well.
        let targets = view.services_of(&self.0).into_iter().filter_map(|(_, s)| s.alias_of.clone());
        let mut namespaces = BTreeSet::new();
        for host in targets.chain([Arc::clone(&self.0)]) {
            for (_, service) in view.services_of(&host) {
                namespaces.extend(named(view.visibility_of_service(&service)));
                namespaces.insert(Arc::clone(&service.namespace));
            }
            for pattern in hosts::patterns_for(&host) {
                for (_, policy) in view.policies_for(&pattern) {
                    namespaces.extend(named(view.visibility_of_policy(&policy)));
                    namespaces.insert(Arc::clone(&policy.namespace));
                }
            }
        }
        namespaces
    }

    fn key(&self) -> Key {
        Key::Mentions(self.clone())
    }
}

// === impl PortMentions ===

impl Query for PortMentions {
    type Value = BTreeSet<Arc<str>>;

    fn run(&self, view: &View<'_>) -> BTreeSet<Arc<str>> {
        let mut namespaces = BTreeSet::new();
        let services = view.shared_port(self.0);
        let server_first = |p: &ServicePort| p.number == self.0 && p.protocol == Protocol::Tcp;
        if services.iter().any(|(_, service)| service.ports.iter().any(server_first)) {
            // Who has HTTP there decides whether it is looked for.
            view.any_http(self.0, |service| {
                namespaces.extend(named(view.visibility_of_service(service)));
                false
            });
        }
        for (_, service) in services {
            namespaces.extend(mentioned(view, &service.host));
            if service.host.starts_with('*') {
                for id in view.tls_rules() {
                    if let Some(head) = &*view.get(&RulesHead(id)) {
                        of_head(view, head, &mut namespaces);
                    }
                }
            }
        }
        namespaces
    }

    fn key(&self) -> Key {
        Key::PortMentions(self.clone())
    }
}
