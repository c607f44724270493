//! Clusters and their endpoint sets.
//!
//! In: the key of a cluster. Out: an `ir::Cluster`, an `ir::Endpoints`.
//!
//! **Invariant:** an endpoint appears once, whatever slices name it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{ClusterKey, Part, selects};
use crate::ir::{Cluster, ClusterEndpoints, EndpointAddress, Endpoints, HttpVersion};
use crate::object::Origins;
use crate::rows::{
    ConnectionPool, Endpoint, LbAlgorithm, Protocol, Service, Subset, TcpPool, TrafficPolicy,
    UpgradePolicy,
};
use crate::track::View;

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
        origins.push(id.origin(Arc::clone(&row.field)));
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

/// Build the endpoint set of a cluster.
pub(super) fn endpoints(view: &View<'_>, key: &ClusterKey) -> Endpoints {
    let labels = match &key.part {
        None => BTreeMap::new(),
        Some(Part::Derived(labels)) => labels.clone(),
        Some(Part::Defined { .. }) => subset(view, key).map(|s| s.labels).unwrap_or_default(),
    };
    let mut found: BTreeMap<(IpAddr, u16), bool> = BTreeMap::new();
    let mut origins = Origins::default();
    if let Some((id, port)) = &key.service
        && let Some(service) = view.service_by_id(id)
        && let Some(port) = service.ports.iter().find(|p| p.number == *port)
    {
        origins.push(id.origin(""));
        for (slice_id, slice) in view.slices(&service) {
            let serves = slice.ports.iter().find(|p| p.name == port.name);
            let Some(number) = serves.map(|p| p.number) else { continue };
            origins.push(slice_id.origin(""));
            for endpoint in &slice.endpoints {
                let Some(address) = endpoint.addresses.first() else { continue };
                if !(endpoint.ready || endpoint.draining)
                    || !(labels.is_empty() || carries(view, &service, endpoint, &labels))
                {
                    continue;
                }
                // Two slices that disagree: ready wins, as kube-proxy has it.
                let draining = found.entry((*address, number)).or_insert(true);
                *draining &= !endpoint.ready;
            }
        }
    }
    Endpoints {
        cluster: Arc::clone(&key.name),
        endpoints: found
            .into_iter()
            .map(|((address, port), draining)| EndpointAddress { address, port, draining })
            .collect(),
        origins,
    }
}

/// Whether the workload behind an endpoint carries these labels.
fn carries(
    view: &View<'_>,
    service: &Service,
    endpoint: &Endpoint,
    labels: &BTreeMap<Arc<str>, Arc<str>>,
) -> bool {
    let by_name = endpoint.workload.as_ref().and_then(|n| view.workload(&service.namespace, n));
    let by_address = || endpoint.addresses.iter().find_map(|a| view.workload_at(*a));
    by_name.or_else(by_address).is_some_and(|workload| selects(labels, &workload.labels))
}
