//! Clusters and their endpoint sets.
//!
//! In: a target. Out: an `ir::Cluster` and an `ir::Endpoints` in the group's rows.
//!
//! **Invariant:** an endpoint appears once, whatever slices name it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::destination::{Part, Target};
use super::{RowKey, Rows, View, selects};
use crate::ir::{self, Cluster, ClusterEndpoints, EndpointAddress, Endpoints, HttpVersion};
use crate::object::Origins;
use crate::rows::{
    ConnectionPool, Endpoint, LbAlgorithm, Mesh, Protocol, Service, ServicePort, TcpPool,
    TrafficPolicy, UpgradePolicy,
};
use crate::snapshot::RowId;

/// Add the cluster of a target and, where it has any, its endpoints.
pub(super) fn add_cluster(view: View<'_>, mesh: &Mesh, target: &Target, rows: &mut Rows) {
    let key = RowKey::Cluster(target.key());
    if rows.0.contains_key(&key) {
        return;
    }
    let cluster = cluster(view, mesh, target);
    let discovered = cluster.endpoints == ClusterEndpoints::Discovered;
    rows.0.insert(key, Arc::new(ir::Resource::Cluster(Box::new(cluster))));
    if let (true, Some((id, port))) = (discovered, &target.service)
        && let Some(service) = view.service_by_id(id)
    {
        rows.add(RowKey::Endpoints(target.key()), || {
            ir::Resource::Endpoints(endpoints(view, target, id, service, port))
        });
    }
}

fn cluster(view: View<'_>, mesh: &Mesh, target: &Target) -> Cluster {
    let (policy, origins) = effective_policy(view, target);
    let TrafficPolicy { load_balancer, connection_pool, outlier_detection } = policy;
    let ConnectionPool { tcp, http } = connection_pool.unwrap_or_default();
    let load_balancer = load_balancer.unwrap_or(LbAlgorithm::LeastRequest);
    let protocol = target.service.as_ref().map(|(_, port)| port.protocol);
    let http_version = match (http.upgrade, protocol) {
        _ if http.use_client_protocol => HttpVersion::AsClient,
        (Some(UpgradePolicy::Upgrade), _) | (_, Some(Protocol::Http2)) => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    };
    Cluster {
        name: Arc::clone(&target.name),
        endpoints: match (&target.service, load_balancer) {
            (None, _) => ClusterEndpoints::None,
            (_, LbAlgorithm::Passthrough) => ClusterEndpoints::Original,
            _ => ClusterEndpoints::Discovered,
        },
        http_version,
        load_balancer,
        connect_timeout: tcp.connect_timeout.unwrap_or(mesh.connect_timeout),
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
fn effective_policy(view: View<'_>, target: &Target) -> (TrafficPolicy, Origins) {
    let mut origins = Origins::default();
    let mut policy = TrafficPolicy::default();
    if let Some((id, port)) = &target.service {
        let index = view
            .service_by_id(id)
            .and_then(|s| s.ports.iter().position(|p| p.number == port.number));
        origins.push(id.origin(index.map_or(String::new(), |i| format!("spec.ports[{i}]"))));
    }
    if let Some(Part::Defined { policy: id, subset }) = &target.subset {
        origins.push(id.origin(Arc::clone(&subset.field)));
    }
    if let Some(id) = target.policies.first()
        && let Some(row) = view.policy(id)
    {
        policy = row.policy.clone();
        origins.push(id.origin(Arc::clone(&row.field)));
    }
    if let Some(Part::Defined { subset, .. }) = &target.subset {
        policy = policy.overlaid(&subset.policy);
    }
    (policy, origins)
}

fn endpoints(
    view: View<'_>,
    target: &Target,
    id: &RowId,
    service: &Service,
    port: &ServicePort,
) -> Endpoints {
    let labels = target.labels();
    let mut found: BTreeMap<(IpAddr, u16), bool> = BTreeMap::new();
    let mut origins = Origins::one(id.origin(""));
    for (slice_id, slice) in view.slices(service) {
        let Some(number) = slice.ports.iter().find(|p| p.name == port.name).map(|p| p.number)
        else {
            continue;
        };
        origins.push(slice_id.origin(""));
        for endpoint in &slice.endpoints {
            let Some(address) = endpoint.addresses.first() else { continue };
            if !(endpoint.ready || endpoint.draining)
                || !(labels.is_empty() || carries(view, service, endpoint, &labels))
            {
                continue;
            }
            // Two slices that disagree: ready wins, as kube-proxy has it.
            let draining = found.entry((*address, number)).or_insert(true);
            *draining &= !endpoint.ready;
        }
    }
    Endpoints {
        cluster: Arc::clone(&target.name),
        endpoints: found
            .into_iter()
            .map(|((address, port), draining)| EndpointAddress { address, port, draining })
            .collect(),
        origins,
    }
}

/// Whether the workload behind an endpoint carries these labels.
fn carries(
    view: View<'_>,
    service: &Service,
    endpoint: &Endpoint,
    labels: &BTreeMap<Arc<str>, Arc<str>>,
) -> bool {
    let by_name = endpoint.workload.as_ref().and_then(|n| view.workload(&service.namespace, n));
    let by_address = || endpoint.addresses.iter().find_map(|a| view.workload_at(*a));
    by_name.or_else(by_address).is_some_and(|workload| selects(labels, &workload.labels))
}
