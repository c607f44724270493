//! Clusters.
//!
//! In: the key of a cluster. Out: an `ir::Cluster`.
//!
//! **Invariant:** connections are never less secured than a policy asks: where that cannot be done
//! there are none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::client::Client;
use super::destination::PolicyChain;
use super::endpoints::{Accounts, Carriers};
use super::inbound::target;
use super::place::distributes;
use super::{BuiltIn, ClusterKey, Part, selects};
use crate::ir::{Cluster, ClusterEndpoints, HttpVersion, MeshTls, NamedEndpoint, UpstreamTls};
use crate::names;
use crate::object::Origins;
use crate::rows::{
    ClientTls, ConnectionPool, Declared, HashKey, HttpAction, HttpPool, LbAlgorithm, Protocol,
    Resolution, Service, Subset, TcpPool, TrafficPolicy, UpgradePolicy, takes_mutual_tls,
};
use crate::track::View;

/// Build a cluster.
pub(super) fn cluster(view: &View<'_>, key: &ClusterKey, mutual_tls: bool) -> Cluster {
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
    let distributes = key.has_endpoints && distributes(view, &policy);
    let TrafficPolicy { load_balancer, connection_pool, outlier_detection, tls, ports: _ } = policy;
    let pool = connection_pool.unwrap_or_default();
    let load_balancer = load_balancer.map_or(LbAlgorithm::LeastRequest, |lb| lb.algorithm);
    let protocol = service.as_ref().map(|(_, s, index)| s.ports[*index].protocol);
    let http_version = match (pool.http.upgrade, protocol) {
        _ if pool.http.use_client_protocol => HttpVersion::AsClient,
        (Some(UpgradePolicy::Upgrade), _) | (_, Some(Protocol::Http2)) => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    };
    let mut accounts = Carriers::default();
    let endpoints = match &service {
        None => ClusterEndpoints::None,
        Some((id, service, index)) => {
            let port = service.ports[*index].number;
            match service.resolution {
                _ if key.has_endpoints => {
                    accounts = (*view.get(&Accounts { service: (*id).clone(), port })).clone();
                    ClusterEndpoints::Discovered
                }
                Resolution::Dns | Resolution::DnsRoundRobin => {
                    let mut names = named(view, key, service, *index, &mut accounts);
                    match service.resolution {
                        _ if names.is_empty() => ClusterEndpoints::None,
                        Resolution::DnsRoundRobin => ClusterEndpoints::NamedOnce(names.remove(0)),
                        _ => ClusterEndpoints::Named(names),
                    }
                }
                Resolution::Endpoints => {
                    accounts = (*view.get(&Accounts { service: (*id).clone(), port })).clone();
                    ClusterEndpoints::Original
                }
                Resolution::Original => ClusterEndpoints::Original,
            }
        }
    };
    let mesh_tls = |sni: Option<Arc<str>>, names: Vec<Arc<str>>| {
        let trust_domain = Arc::clone(&view.mesh().trust_domain);
        let names = if names.is_empty() { accounts.identities(&trust_domain) } else { names };
        let sni = sni.unwrap_or_else(|| names::server_name(&key.name));
        MeshTls { sni, names, trust_domain, protocol: protocol.unwrap_or(Protocol::Unknown) }
    };
    let (tls, endpoints) = match tls {
        Some(ClientTls::Disable) => (UpstreamTls::Plain, endpoints),
        Some(ClientTls::Origin(origin)) => (UpstreamTls::Origin(origin), endpoints),
        Some(ClientTls::Mesh { sni, names }) if mutual_tls => {
            (UpstreamTls::Always(mesh_tls(sni, names)), endpoints)
        }
        // Plain text is not what was asked for.
        Some(ClientTls::Mesh { .. } | ClientTls::Refused) => {
            (UpstreamTls::Plain, ClusterEndpoints::None)
        }
        None if mutual_tls && view.mesh().auto_mtls => {
            let tls = match &endpoints {
                ClusterEndpoints::Discovered => UpstreamTls::WhereTaken(mesh_tls(None, vec![])),
                ClusterEndpoints::Named(_) | ClusterEndpoints::NamedOnce(_) if accounts.some() => {
                    UpstreamTls::WhereTaken(mesh_tls(None, vec![]))
                }
                // Which endpoint it is, is known when the connection is made.
                ClusterEndpoints::Original if accounts.all() => {
                    UpstreamTls::Always(mesh_tls(None, vec![]))
                }
                _ => UpstreamTls::Plain,
            };
            (tls, endpoints)
        }
        None => (UpstreamTls::Plain, endpoints),
    };
    Cluster {
        name: Arc::clone(&key.name),
        load_balancer: match endpoints {
            ClusterEndpoints::Original => LbAlgorithm::Passthrough,
            _ if load_balancer == LbAlgorithm::Passthrough => LbAlgorithm::LeastRequest,
            _ => load_balancer,
        },
        endpoints,
        http_version,
        distributes,
        pinned: key.has_endpoints && service.as_ref().is_some_and(|(_, s, _)| s.headless),
        tls,
        connect_timeout: connect_timeout(view, &pool),
        pool: limits(pool),
        outlier_detection,
        origins,
    }
}

/// Time to open a connection: what limits say, else what the mesh has.
pub(super) fn connect_timeout(view: &View<'_>, pool: &ConnectionPool) -> Duration {
    pool.tcp.connect_timeout.unwrap_or_else(|| view.mesh().connect_timeout)
}

/// Limits without what has been applied elsewhere.
pub(super) fn limits(pool: ConnectionPool) -> ConnectionPool {
    let ConnectionPool { tcp, http } = pool;
    ConnectionPool {
        tcp: TcpPool { connect_timeout: None, ..tcp },
        http: HttpPool { upgrade: None, use_client_protocol: false, ..http },
    }
}

/// Endpoints of a service port that are looked up in DNS, sorted.
fn named(
    view: &View<'_>,
    key: &ClusterKey,
    service: &Service,
    at: usize,
    accounts: &mut Carriers,
) -> Vec<NamedEndpoint> {
    let (port, labels) = (&service.ports[at].name, part_labels(view, key));
    let mut out = BTreeSet::new();
    let mut add = |declared: &Declared, addresses: &[IpAddr], port| {
        let address = || addresses.first().map(|a| Arc::from(a.to_string()));
        if selects(&labels, &declared.labels)
            && let Some(host) = declared.dns_name.clone().or_else(address)
        {
            let (locality, weight) = (declared.locality.clone(), declared.weight);
            let mutual_tls = takes_mutual_tls(&declared.labels);
            accounts.add(mutual_tls, declared.account(&service.namespace));
            out.insert(NamedEndpoint { host, port, locality, weight, mutual_tls });
        }
    };
    for slice in view.slices(service).into_iter().filter_map(|id| view.slice(&id)) {
        let Some(slice_port) = slice.ports.iter().find(|p| p.name == *port) else { continue };
        for endpoint in &slice.endpoints {
            if let Some(declared) = &endpoint.declared {
                add(declared, &endpoint.addresses, slice_port.number);
            }
        }
    }
    for workload in view.selected_workloads(service) {
        if let Some(declared) = &workload.declared
            && let Some(number) = target(&service.ports[at], Some(&workload))
        {
            add(declared, &workload.addresses, number);
        }
    }
    out.into_iter().collect()
}

/// The policy of a service's port for clients of its own namespace.
pub(super) fn policy_at_home(
    view: &View<'_>,
    service: &Service,
    port: u16,
    origins: &mut Origins,
) -> TrafficPolicy {
    let namespace = Arc::clone(&service.namespace);
    let client = Client::Namespace(Arc::clone(&namespace));
    let host = Arc::clone(&service.host);
    let chain = view.get(&PolicyChain { client, namespace, host });
    let Some(id) = chain.first() else { return TrafficPolicy::default() };
    let Some(row) = view.policy(id) else { return TrafficPolicy::default() };
    origins.push(id.origin(Arc::clone(&row.field)));
    row.policy.of_port(port)
}

/// What decides the endpoint of a cluster that chooses it by a hash.
pub(super) fn hash_key(view: &View<'_>, key: &ClusterKey) -> Option<HashKey> {
    if key.policies.is_empty() {
        return None;
    }
    effective_policy(view, key, &mut Origins::default()).load_balancer?.hash
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
    let port = key.service.as_ref().map(|(_, port)| *port).unwrap_or_default();
    match subset {
        Some(subset) => policy.of_part(&subset.policy, port),
        None => policy.of_port(port),
    }
}

/// The subset that a policy defines for this cluster.
fn subset(view: &View<'_>, key: &ClusterKey) -> Option<Subset> {
    let Some(Part::Defined { policy, subset }) = &key.part else { return None };
    view.policy(policy)?.subsets.iter().find(|s| s.name == *subset).cloned()
}

/// A cluster that no service stands behind.
pub(super) fn built_in(view: &View<'_>, which: BuiltIn) -> Cluster {
    let (endpoints, http_version, load_balancer) = match which {
        BuiltIn::Passthrough => {
            (ClusterEndpoints::Original, HttpVersion::AsClient, LbAlgorithm::Passthrough)
        }
        BuiltIn::InboundPassthrough => (
            ClusterEndpoints::Local { port: None },
            HttpVersion::AsClient,
            LbAlgorithm::Passthrough,
        ),
        BuiltIn::BlackHole => {
            (ClusterEndpoints::None, HttpVersion::Http1, LbAlgorithm::LeastRequest)
        }
    };
    Cluster {
        name: which.name(),
        endpoints,
        http_version,
        load_balancer,
        distributes: false,
        pinned: false,
        tls: UpstreamTls::Plain,
        connect_timeout: view.mesh().connect_timeout,
        pool: ConnectionPool::default(),
        outlier_detection: None,
        origins: Origins::default(),
    }
}

/// Labels that the workloads of a cluster must carry.
pub(super) fn part_labels(view: &View<'_>, key: &ClusterKey) -> BTreeMap<Arc<str>, Arc<str>> {
    match &key.part {
        None => BTreeMap::new(),
        Some(Part::Derived(labels)) => labels.clone(),
        Some(Part::Defined { .. }) => subset(view, key).map(|s| s.labels).unwrap_or_default(),
    }
}
