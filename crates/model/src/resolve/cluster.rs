//! Clusters and their endpoint sets.
//!
//! In: the key of a cluster. Out: an `ir::Cluster`, an `ir::Endpoints`.
//!
//! **Invariant:** an endpoint appears once, whatever slices name it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{BuiltIn, ClusterKey, Key, Part, selects};
use crate::ir::{
    Cluster, ClusterEndpoints, EndpointAddress, EndpointChunk, Endpoints, HttpVersion,
};
use crate::object::Origins;
use crate::rows::{
    ConnectionPool, Endpoint, HttpAction, LbAlgorithm, Locality, Protocol, Subset, TcpPool,
    TrafficPolicy, UpgradePolicy,
};
use crate::snapshot::RowId;
use crate::track::{Query, View};

/// Build a cluster.
pub(super) fn cluster(view: &View<'_>, key: &ClusterKey) -> Cluster {
    let service = key.service.as_ref().and_then(|(id, port)| {
        let service = view.service_by_id(id)?;
        let index = service.ports.iter().position(|p| p.number == *port)?;
        Some((id, service, index))
    });
    let mut origins = Origins::default();
    if let Some((id, _, index)) = &service {
        origins.push(id.origin(format!("spec.ports[{index}]")));
    }
    if let Some((id, rule, position)) = &key.asked_by
        && let Some(rules) = view.rules(id)
        && let Some(HttpAction::Forward(forward)) = rules.http.get(*rule).map(|r| &r.action)
        && let Some(destination) = forward.destinations.get(*position)
    {
        origins.push(id.origin(format!("{}.destination", destination.field)));
    }
    let policy = effective_policy(view, key, &mut origins);
    let TrafficPolicy { load_balancer, connection_pool, outlier_detection } = policy;
    let ConnectionPool { tcp, http } = connection_pool.unwrap_or_default();
    let load_balancer = load_balancer.unwrap_or(LbAlgorithm::LeastRequest);
    let protocol = service.as_ref().map(|(_, s, index)| s.ports[*index].protocol);
    let http_version = match (http.upgrade, protocol) {
        _ if http.use_client_protocol => HttpVersion::AsClient,
        (Some(UpgradePolicy::Upgrade), _) | (_, Some(Protocol::Http2)) => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    };
    Cluster {
        name: Arc::clone(&key.name),
        endpoints: match (&service, load_balancer) {
            (None, _) => ClusterEndpoints::None,
            (_, LbAlgorithm::Passthrough) => ClusterEndpoints::Original,
            _ => ClusterEndpoints::Discovered,
        },
        http_version,
        load_balancer,
        connect_timeout: tcp.connect_timeout.unwrap_or_else(|| view.mesh().connect_timeout),
        tcp: TcpPool { connect_timeout: None, ..tcp },
        max_pending_requests: http.max_pending_requests,
        max_requests: http.max_requests,
        max_requests_per_connection: http.max_requests_per_connection,
        max_retries: http.max_retries,
        idle_timeout: http.idle_timeout,
        max_concurrent_streams: http.max_concurrent_streams,
        http2_keep_alive: http.http2_keep_alive,
        outlier_detection,
        origins,
    }
}

/// The policy of the whole service with the subset's own parts laid over it.
pub(super) fn effective_policy(
    view: &View<'_>,
    key: &ClusterKey,
    origins: &mut Origins,
) -> TrafficPolicy {
    let subset = subset(view, key);
    if let (Some(Part::Defined { policy, .. }), Some(subset)) = (&key.part, &subset) {
        origins.push(policy.origin(Arc::clone(&subset.field)));
    }
    let mut policy = TrafficPolicy::default();
    if let Some(id) = key.policies.first()
        && let Some(row) = view.policy(id)
    {
        policy = row.policy.clone();
        if policy != TrafficPolicy::default() {
            origins.push(id.origin(Arc::clone(&row.field)));
        }
    }
    match subset {
        Some(subset) => policy.overlaid(&subset.policy),
        None => policy,
    }
}

/// The subset that a policy defines for this cluster.
fn subset(view: &View<'_>, key: &ClusterKey) -> Option<Subset> {
    let Some(Part::Defined { policy, subset }) = &key.part else { return None };
    view.policy(policy)?.subsets.iter().find(|s| s.name == *subset).cloned()
}

/// The endpoints that one slice gives to a service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Chunk {
    slice: RowId,
    /// Name of the service port.
    port: Arc<str>,
    /// Labels that the workloads must carry.
    labels: BTreeMap<Arc<str>, Arc<str>>,
}

// === impl Chunk ===

impl Query for Chunk {
    /// None when the slice does not serve the port.
    type Value = Option<Arc<EndpointChunk>>;

    fn run(&self, view: &View<'_>) -> Self::Value {
        let slice = view.slice(&self.slice)?;
        let port = slice.ports.iter().find(|p| p.name == self.port)?.number;
        let mut out = Vec::new();
        for endpoint in &slice.endpoints {
            let Some(&address) = endpoint.addresses.first() else { continue };
            if (endpoint.ready || endpoint.draining)
                && (self.labels.is_empty()
                    || carries(view, &slice.namespace, endpoint, &self.labels))
            {
                let locality = locality(view, endpoint);
                out.push(EndpointAddress { address, port, draining: !endpoint.ready, locality });
            }
        }
        merge(&mut out);
        Some(Arc::new(EndpointChunk::new(out)))
    }

    fn key(&self) -> Key {
        Key::Chunk(self.clone())
    }
}

impl fmt::Display for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for port {:?}", self.slice.object, self.port)?;
        if !self.labels.is_empty() {
            write!(f, " labelled {:?}", self.labels)?;
        }
        Ok(())
    }
}

/// Sort, and keep each address once. Two that disagree: ready wins, as kube-proxy has it.
fn merge(endpoints: &mut Vec<EndpointAddress>) {
    // Ready sorts first.
    endpoints.sort();
    endpoints.dedup_by_key(|e| (e.address, e.port));
}

/// Where an endpoint runs: where its node is, else the zone that its slice tells.
fn locality(view: &View<'_>, endpoint: &Endpoint) -> Arc<Locality> {
    match (endpoint.node.as_ref().and_then(|name| view.node(name)), &endpoint.zone) {
        (Some(node), _) => Arc::new(node.locality.clone()),
        (None, Some(zone)) => Arc::new(Locality { zone: Arc::clone(zone), ..Locality::default() }),
        (None, None) => Arc::default(),
    }
}

/// A cluster that no service stands behind.
pub(super) fn built_in(view: &View<'_>, which: BuiltIn) -> Cluster {
    let (endpoints, http_version) = match which {
        BuiltIn::Passthrough => (ClusterEndpoints::Original, HttpVersion::AsClient),
        BuiltIn::BlackHole => (ClusterEndpoints::None, HttpVersion::Http1),
    };
    Cluster {
        name: which.name(),
        endpoints,
        http_version,
        load_balancer: match which {
            BuiltIn::Passthrough => LbAlgorithm::Passthrough,
            BuiltIn::BlackHole => LbAlgorithm::LeastRequest,
        },
        connect_timeout: view.mesh().connect_timeout,
        tcp: TcpPool::default(),
        max_pending_requests: None,
        max_requests: None,
        max_requests_per_connection: None,
        max_retries: None,
        idle_timeout: None,
        max_concurrent_streams: None,
        http2_keep_alive: None,
        outlier_detection: None,
        origins: Origins::default(),
    }
}

/// Build the endpoint set of a cluster.
pub(super) fn endpoints(view: &View<'_>, key: &ClusterKey) -> Endpoints {
    let labels = match &key.part {
        None => BTreeMap::new(),
        Some(Part::Derived(labels)) => labels.clone(),
        Some(Part::Defined { .. }) => subset(view, key).map(|s| s.labels).unwrap_or_default(),
    };
    let mut chunks = Vec::new();
    let mut origins = Origins::default();
    if let Some((id, port)) = &key.service
        && let Some(service) = view.service_by_id(id)
        && let Some(port) = service.ports.iter().find(|p| p.number == *port)
    {
        origins.push(id.origin(""));
        for slice in view.slices(&service) {
            let port = Arc::clone(&port.name);
            let chunk = Chunk { slice: slice.clone(), port, labels: labels.clone() };
            if let Some(chunk) = &*view.get(&chunk) {
                origins.push(slice.origin(""));
                chunks.push(Arc::clone(chunk));
            }
        }
    }
    Endpoints { cluster: Arc::clone(&key.name), chunks: distinct(chunks), origins }
}

/// Chunks as they are, or, while slices name an endpoint twice, all in one.
fn distinct(chunks: Vec<Arc<EndpointChunk>>) -> Vec<Arc<EndpointChunk>> {
    if chunks.len() < 2 {
        return chunks;
    }
    let all = || chunks.iter().flat_map(|chunk| chunk.endpoints.iter());
    let mut addresses: Vec<_> = all().map(|e| (e.address, e.port)).collect();
    // Stable, because it is fast on runs that are sorted already.
    addresses.sort();
    if addresses.windows(2).all(|pair| pair[0] != pair[1]) {
        return chunks;
    }
    let mut endpoints = all().cloned().collect();
    merge(&mut endpoints);
    vec![Arc::new(EndpointChunk::new(endpoints))]
}

/// Whether the workload behind an endpoint carries these labels.
fn carries(
    view: &View<'_>,
    namespace: &Arc<str>,
    endpoint: &Endpoint,
    labels: &BTreeMap<Arc<str>, Arc<str>>,
) -> bool {
    let by_name = endpoint.workload.as_ref().and_then(|n| view.workload(namespace, n));
    let by_address = || endpoint.addresses.iter().find_map(|a| view.workload_at(*a));
    by_name.or_else(by_address).is_some_and(|workload| selects(labels, &workload.labels))
}
