//! Destinations: from the host, subset and port of a rule to a cluster.
//!
//! In: what a rule names. Out: the cluster that it comes to, by the policies that win for the
//! client's namespace and by the missing-subset rule:
//!
//! 1. a policy defines the subset: its labels decide;
//! 2. none does, but workloads of the service carry `version: <subset>`: those are the subset;
//! 3. else the destination leaves the split while others remain;
//! 4. else the whole service is used.
//!
//! **Invariant:** a destination that does not exist keeps its share and answers 503: its loss must
//! not send its traffic elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ClusterKey, View, precedence};
use crate::hosts;
use crate::names;
use crate::rows::{
    Destination, DestinationPolicy, Service, ServicePort, Subset, WeightedDestination,
};
use crate::snapshot::RowId;

/// What a destination comes to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) name: Arc<str>,
    pub(super) service: Option<(RowId, ServicePort)>,
    pub(super) policies: Vec<RowId>,
    pub(super) subset: Option<Part>,
}

/// The part of a service that a subset names.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// Defined by a policy: which one, and the subset in it.
    Defined { policy: RowId, subset: Box<Subset> },
    /// Derived from the label `version`.
    Derived(BTreeMap<Arc<str>, Arc<str>>),
}

/// A target and its share of a split.
pub(super) struct Share {
    pub(super) target: Target,
    pub(super) weight: u32,
    pub(super) field: Arc<str>,
}

/// Why a destination is not what its author meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    HostNotFound,
    PortNotFound,
    PortAmbiguous,
    /// Rung 2.
    SubsetDerived,
    /// Rung 3.
    SubsetLeaves,
    /// Rung 4.
    SubsetWhole,
}

/// One destination before the split as a whole is known.
enum Found {
    Target(Target, Option<Fault>),
    /// The subset exists nowhere; what the whole service would be.
    NoSubset(Target),
}

/// Resolve a split.
pub(super) fn split(
    view: View<'_>,
    client_namespace: &Arc<str>,
    destinations: &[WeightedDestination],
    request_port: u16,
) -> Vec<Share> {
    examine(view, client_namespace, destinations, request_port)
        .into_iter()
        .filter_map(|(share, _)| share)
        .collect()
}

/// Resolve a split and say of each destination, in order, what is wrong with it.
pub(super) fn examine(
    view: View<'_>,
    client_namespace: &Arc<str>,
    destinations: &[WeightedDestination],
    request_port: u16,
) -> Vec<(Option<Share>, Option<Fault>)> {
    let found: Vec<Found> = destinations
        .iter()
        .map(|d| find(view, client_namespace, &d.destination, request_port))
        .collect();
    let remaining = found.iter().zip(destinations);
    let others_remain =
        remaining.into_iter().any(|(f, d)| matches!(f, Found::Target(..)) && d.weight > 0);
    let share = |target, d: &WeightedDestination| {
        Some(Share { target, weight: d.weight, field: Arc::clone(&d.field) })
    };
    found
        .into_iter()
        .zip(destinations)
        .map(|(found, d)| match found {
            Found::Target(target, fault) => (share(target, d), fault),
            Found::NoSubset(_) if others_remain => (None, Some(Fault::SubsetLeaves)),
            Found::NoSubset(target) => (share(target, d), Some(Fault::SubsetWhole)),
        })
        .collect()
}

fn find(
    view: View<'_>,
    client_namespace: &Arc<str>,
    destination: &Destination,
    request_port: u16,
) -> Found {
    let Destination { host, subset, port } = destination;
    let stub = |port: u16, fault| {
        let name = names::outbound_cluster(port, subset.as_deref(), host);
        let target = Target { name, service: None, policies: Vec::new(), subset: None };
        Found::Target(target, Some(fault))
    };
    let Some((service_id, service)) = view.service(host) else {
        return stub(port.unwrap_or(request_port), Fault::HostNotFound);
    };
    let port = match (*port, &service.ports[..]) {
        (None, [only]) => only.clone(),
        (wanted, ports) => {
            let number = wanted.unwrap_or(request_port);
            match ports.iter().find(|p| p.number == number) {
                Some(port) => port.clone(),
                None if wanted.is_none() => return stub(number, Fault::PortAmbiguous),
                None => return stub(number, Fault::PortNotFound),
            }
        }
    };
    let policies = policy_chain(view, client_namespace, service);
    let whole = Target {
        name: names::outbound_cluster(port.number, None, host),
        service: Some((service_id.clone(), port.clone())),
        policies,
        subset: None,
    };
    let Some(wanted) = subset else { return Found::Target(whole, None) };
    let name = names::outbound_cluster(port.number, Some(wanted), host);
    let defined = whole.policies.iter().find_map(|id| {
        let subset = view.policy(id)?.subsets.iter().find(|s| s.name == *wanted)?;
        Some(Part::Defined { policy: id.clone(), subset: Box::new(subset.clone()) })
    });
    if defined.is_some() {
        return Found::Target(Target { name, subset: defined, ..whole }, None);
    }
    let version = BTreeMap::from([(Arc::from("version"), Arc::clone(wanted))]);
    let mut selector = service.selector.clone();
    selector.extend(version.clone());
    let carried = !service.selector.is_empty()
        && view.workloads_selected(&service.namespace, &selector).next().is_some();
    if carried {
        let target = Target { name, subset: Some(Part::Derived(version)), ..whole };
        return Found::Target(target, Some(Fault::SubsetDerived));
    }
    Found::NoSubset(whole)
}

/// Policies that win for a client: those of its own namespace, else of the service's, else of the
/// root namespace; within one namespace those with the most specific host, oldest first. The first
/// gives the policy of the whole; subsets are looked for in all, in order.
pub(super) fn policy_chain(
    view: View<'_>,
    client_namespace: &Arc<str>,
    service: &Service,
) -> Vec<RowId> {
    let root = Arc::clone(&view.mesh().root_namespace);
    for namespace in [client_namespace, &service.namespace, &root] {
        for pattern in hosts::patterns_for(&service.host) {
            let mut here: Vec<(&RowId, &Arc<DestinationPolicy>)> =
                view.policies_for(&pattern).filter(|(_, p)| p.namespace == *namespace).collect();
            if here.is_empty() {
                continue;
            }
            here.sort_by(|a, b| precedence(a.1.created, a.0).cmp(&precedence(b.1.created, b.0)));
            return here.into_iter().map(|(id, _)| id.clone()).collect();
        }
    }
    Vec::new()
}

// === impl Target ===

impl Target {
    /// The key of its cluster.
    pub(super) fn key(&self) -> ClusterKey {
        ClusterKey {
            name: Arc::clone(&self.name),
            service: self.service.as_ref().map(|(id, _)| id.clone()),
            policies: self.policies.clone(),
            labels: self.labels(),
        }
    }

    /// Labels that its endpoints must carry.
    pub(super) fn labels(&self) -> BTreeMap<Arc<str>, Arc<str>> {
        match &self.subset {
            None => BTreeMap::new(),
            Some(Part::Defined { subset, .. }) => subset.labels.clone(),
            Some(Part::Derived(labels)) => labels.clone(),
        }
    }
}
