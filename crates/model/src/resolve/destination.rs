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

use super::client::Client;
use super::cluster::effective_policy;
use super::rules::Carried;
use super::{ClusterKey, Key, Part, precedence};
use crate::hosts;
use crate::names;
use crate::object::Origins;
use crate::rows::{
    Destination, HttpAction, HttpRule, LbAlgorithm, Resolution, Service, WeightedDestination,
};
use crate::snapshot::RowId;
use crate::track::{Query, View};

/// What the destinations of a rule list come to for clients of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Outcome {
    pub(crate) rules: RowId,
    pub(crate) client: Client,
    /// Port that requests come in on.
    pub(crate) port: u16,
}

/// The policies that win for a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PolicyChain {
    pub(crate) client: Client,
    /// Namespace of the service.
    pub(crate) namespace: Arc<str>,
    pub(crate) host: Arc<str>,
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
    Cluster(ClusterKey, Option<Fault>),
    /// The subset exists nowhere; what the whole service would be.
    NoSubset(ClusterKey),
}

// === impl Outcome ===

impl Query for Outcome {
    /// For each rule and each of its destinations: the cluster, or none when it leaves the split.
    type Value = Vec<Vec<Option<ClusterKey>>>;

    fn run(&self, view: &View<'_>) -> Self::Value {
        let Some(rules) = view.rules(&self.rules) else { return Vec::new() };
        let of_rule = |rule: &HttpRule| match &rule.action {
            HttpAction::Redirect(_) | HttpAction::Respond { .. } => Vec::new(),
            HttpAction::Forward(forward) => {
                let port = request_port(rule).unwrap_or(self.port);
                let split = examine(view, &self.client, &forward.destinations, port);
                split.into_iter().map(|(cluster, _)| cluster).collect()
            }
        };
        rules.http.iter().map(of_rule).collect()
    }

    fn key(&self) -> Key {
        Key::Outcome(self.clone())
    }
}

/// The port that requests of a rule come in on, where its conditions say so.
pub(super) fn request_port(rule: &HttpRule) -> Option<u16> {
    rule.matches.iter().find_map(|m| m.port)
}

/// Resolve a split: for each destination, in order, its cluster and what is wrong with it.
pub(super) fn examine(
    view: &View<'_>,
    client: &Client,
    destinations: &[WeightedDestination],
    request_port: u16,
) -> Vec<(Option<ClusterKey>, Option<Fault>)> {
    let found: Vec<Found> =
        destinations.iter().map(|d| find(view, client, &d.destination, request_port)).collect();
    let others_remain = found
        .iter()
        .zip(destinations)
        .any(|(f, d)| matches!(f, Found::Cluster(..)) && d.weight > 0);
    found
        .into_iter()
        .map(|found| match found {
            Found::Cluster(cluster, fault) => (Some(cluster), fault),
            Found::NoSubset(_) if others_remain => (None, Some(Fault::SubsetLeaves)),
            Found::NoSubset(whole) => (Some(whole), Some(Fault::SubsetWhole)),
        })
        .collect()
}

fn find(view: &View<'_>, client: &Client, destination: &Destination, request_port: u16) -> Found {
    let Destination { host, subset, port } = destination;
    let stub = |port: u16, fault| {
        let name = names::outbound_cluster(port, subset.as_deref(), host);
        let key = ClusterKey {
            name,
            service: None,
            policies: Vec::new(),
            part: None,
            has_endpoints: false,
            asked_by: None,
        };
        Found::Cluster(key, Some(fault))
    };
    let mut ports = view.ports_of(host, client);
    let alias = match ports.first() {
        Some(first) => first.service.alias_of.is_some(),
        // One without ports may be a name for one that has some.
        None if view.service(host, client).is_some() => true,
        None => return stub(port.unwrap_or(request_port), Fault::HostNotFound),
    };
    if alias
        && let Some((_, named)) = view.service(host, client)
        && let Some((_, target)) = view.target_of(&named, client)
    {
        ports = view.ports_of(&target.host, client);
    }
    let found = match (*port, &ports[..]) {
        (None, [only]) => only,
        (wanted, ports) => {
            let number = wanted.unwrap_or(request_port);
            let Some(found) = ports.iter().find(|of| of.number() == number) else {
                let fault =
                    if wanted.is_none() { Fault::PortAmbiguous } else { Fault::PortNotFound };
                return stub(number, fault);
            };
            found
        }
    };
    let (port, id, service) = (found.number(), found.id.clone(), Arc::clone(&found.service));
    let whole = whole(view, client, &id, &service, port);
    let Some(wanted) = subset else { return Found::Cluster(whole, None) };
    let name = names::outbound_cluster(port, Some(wanted), host);
    let defines =
        |id: &&RowId| view.policy(id).is_some_and(|p| p.subsets.iter().any(|s| s.name == *wanted));
    if let Some(policy) = whole.policies.iter().find(defines).cloned() {
        let part = Some(Part::Defined { policy, subset: Arc::clone(wanted) });
        let key = ClusterKey { name, part, ..whole }.with_endpoints(view, &service);
        return Found::Cluster(key, None);
    }
    if service.selector.is_empty() {
        return Found::NoSubset(whole);
    }
    let version = BTreeMap::from([(Arc::from("version"), Arc::clone(wanted))]);
    let mut labels = service.selector.clone();
    labels.extend(version.clone());
    let namespace = Arc::clone(&service.namespace);
    if *view.get(&Carried { namespace, labels }) {
        let part = Some(Part::Derived(version));
        let key = ClusterKey { name, part, ..whole }.with_endpoints(view, &service);
        return Found::Cluster(key, Some(Fault::SubsetDerived));
    }
    Found::NoSubset(whole)
}

/// The cluster of a service port as a whole.
pub(super) fn whole(
    view: &View<'_>,
    client: &Client,
    id: &RowId,
    service: &Service,
    port: u16,
) -> ClusterKey {
    let chain = view.get(&PolicyChain {
        client: client.clone(),
        namespace: Arc::clone(&service.namespace),
        host: Arc::clone(&service.host),
    });
    ClusterKey {
        name: names::outbound_cluster(port, None, &service.host),
        service: Some((id.clone(), port)),
        policies: (*chain).clone(),
        part: None,
        has_endpoints: true,
        asked_by: None,
    }
    .with_endpoints(view, service)
}

// === impl ClusterKey ===

impl ClusterKey {
    /// Decide whether the cluster has an endpoint set, once everything else is known.
    fn with_endpoints(self, view: &View<'_>, service: &Service) -> Self {
        let has_endpoints = service.resolution == Resolution::Endpoints
            && !(self.part.is_none() && self.is_headless_stream(service))
            && {
                let policy = effective_policy(view, &self, &mut Origins::default());
                let algorithm = policy.load_balancer.map(|lb| lb.algorithm);
                algorithm != Some(LbAlgorithm::Passthrough)
            };
        Self { has_endpoints, ..self }
    }

    /// Whether it is a port whose clients choose the endpoint themselves, by address.
    fn is_headless_stream(&self, service: &Service) -> bool {
        let port = self.service.as_ref().map(|(_, port)| *port);
        let found = service.ports.iter().find(|p| Some(p.number) == port);
        service.headless && found.is_some_and(|p| !p.protocol.is_http())
    }
}

// === impl PolicyChain ===

impl Query for PolicyChain {
    /// Policies of the client's namespace, else of the service's, else of the root namespace;
    /// within one namespace those with the most specific host, oldest first. The first gives the
    /// policy of the whole; subsets are looked for in all, in order. Policies that are not exported
    /// to the client take no part.
    type Value = Vec<RowId>;

    fn run(&self, view: &View<'_>) -> Vec<RowId> {
        let root = Arc::clone(&view.mesh().root_namespace);
        let mut candidates = Vec::new();
        for pattern in hosts::patterns_for(&self.host) {
            let mut all = view.policies_for(&pattern);
            all.retain(|(_, policy)| self.client.sees(&view.visibility_of_policy(policy)));
            candidates.push(all);
        }
        let client = match &self.client {
            Client::Anyone => None,
            Client::Namespace(namespace) => Some(namespace),
        };
        for namespace in client.into_iter().chain([&self.namespace, &root]) {
            for of_pattern in &candidates {
                let mut here: Vec<_> =
                    of_pattern.iter().filter(|(_, p)| p.namespace == *namespace).collect();
                if here.is_empty() {
                    continue;
                }
                here.sort_by(|(a_id, a), (b_id, b)| {
                    precedence(a.created, a_id).cmp(&precedence(b.created, b_id))
                });
                return here.into_iter().map(|(id, _)| id.clone()).collect();
            }
        }
        Vec::new()
    }

    fn key(&self) -> Key {
        Key::PolicyChain(self.clone())
    }
}
