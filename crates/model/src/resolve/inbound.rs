//! What comes in to a workload: the ports on which it takes connections.
//!
//! In: the services that select the workload, or the ports that its Sidecar lists. Out: the keys of
//! one listener and of a cluster for each port.
//!
//! **Invariant:** a port appears once; nothing here depends on addresses of the workload, so that
//! all of a Deployment share these rows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::authentication::{OtherPorts, PeerModes};
use super::cluster::{connect_timeout, limits, policy_at_home};
use super::{BuiltIn, Labels, RowKey, RowSet};
use crate::ir::{
    self, Cluster, ClusterEndpoints, HttpVersion, InboundPort, Listener, Serves, Takes, UpstreamTls,
};
use crate::names;
use crate::object::Origins;
use crate::proxy::Proxy;
use crate::rows::{
    ConnectionPool, IngressListener, IngressTarget, LbAlgorithm, Protocol, Resolution, ServicePort,
    SidecarScope, TargetPort, Workload,
};
use crate::snapshot::RowId;
use crate::track::View;

/// Port that captured connections to a workload come to.
const CAPTURE_PORT: u16 = 15006;

/// A port on which a workload takes connections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboundKey {
    /// Port on which they arrive.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// How clients may come in.
    pub takes: Takes,
    /// Where the proxy hands them over.
    pub to: IngressTarget,
    /// The service or Sidecar that declares it, and the field.
    pub origin: (RowId, Arc<str>),
    /// The service and its port, where that is what declares it.
    pub service: Option<(RowId, u16)>,
    /// The Sidecar of the workload.
    pub sidecar: Option<RowId>,
    /// Address that the proxy opens the port on; none = connections are captured.
    pub bind: Option<IpAddr>,
}

/// The ports of a workload, sorted by number, and what it takes on all others.
pub(super) fn ports(
    view: &View<'_>,
    proxy: &Proxy,
    labels: &Labels,
    workload: Option<&Workload>,
    sidecar: Option<&(RowId, Arc<SidecarScope>)>,
) -> (Vec<InboundKey>, OtherPorts) {
    let namespace = &proxy.namespace;
    let peers = view.get(&PeerModes(Arc::clone(namespace))).of(labels);
    let mutual_tls = proxy.capabilities.mutual_tls;
    let takes = |port| Takes::of(peers.on(port), mutual_tls);
    let mut ports: BTreeMap<u16, InboundKey> = BTreeMap::new();
    let sidecar_id = || sidecar.map(|(id, _)| id.clone());
    let listing = sidecar.filter(|(_, scope)| !scope.ingress.is_empty());
    let listed = listing.is_some();
    if let Some((id, scope)) = listing {
        for listener in &scope.ingress {
            let IngressListener { field, port, protocol, bind, opened, to, pool: _ } = listener;
            let opened = *opened || !proxy.captures;
            ports.entry(*port).or_insert_with(|| InboundKey {
                port: *port,
                protocol: *protocol,
                takes: takes(*port),
                to: to.clone(),
                origin: (id.clone(), Arc::clone(field)),
                service: None,
                sidecar: sidecar_id(),
                bind: if opened { bind.or(proxy.address) } else { None },
            });
        }
    }
    // Where nothing is captured, the workload opens its ports itself.
    let declared = !listed && proxy.captures;
    let services = declared.then(|| view.services_selecting(namespace, labels));
    for (id, service) in services.into_iter().flatten() {
        if service.resolution != Resolution::Endpoints {
            continue;
        }
        for (at, port) in service.ports.iter().enumerate() {
            let Some(target) = target(port, workload) else { continue };
            ports.entry(target).or_insert_with(|| InboundKey {
                port: target,
                protocol: port.protocol,
                takes: takes(target),
                to: IngressTarget::Original,
                origin: (id.clone(), Arc::from(format!("spec.ports[{at}]"))),
                service: Some((id.clone(), port.number)),
                sidecar: sidecar_id(),
                bind: None,
            });
        }
    }
    let others = peers.others(|port| ports.contains_key(&port), mutual_tls);
    (ports.into_values().collect(), others)
}

/// The port of a workload at which a service's port arrives.
pub(super) fn target(port: &ServicePort, workload: Option<&Workload>) -> Option<u16> {
    let named = |name: &Arc<str>| workload.and_then(|w| w.named_ports.get(name).copied());
    let registered = workload.is_some_and(|w| w.declared.is_some());
    let own = registered.then(|| named(&port.name)).flatten();
    own.or_else(|| match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => named(name),
    })
}

/// The rows for these ports.
pub(super) fn rows(ports: &[InboundKey], others: &OtherPorts, captures: bool) -> RowSet {
    let mut rows = RowSet::new();
    let (opened, captured): (Vec<_>, Vec<_>) =
        ports.iter().cloned().partition(|port| port.bind.is_some());
    for port in ports {
        rows.insert(Arc::new(RowKey::InboundCluster(port.clone())));
    }
    for port in opened {
        rows.insert(Arc::new(RowKey::InboundListener(port)));
    }
    if captures {
        rows.insert(Arc::new(RowKey::VirtualInbound { ports: captured, others: others.clone() }));
        rows.insert(Arc::new(RowKey::BuiltIn(BuiltIn::InboundPassthrough)));
        rows.insert(Arc::new(RowKey::BuiltIn(BuiltIn::BlackHole)));
    }
    rows
}

/// Everything that comes in to a workload.
pub(super) fn virtual_inbound(
    view: &View<'_>,
    ports: &[InboundKey],
    others: &OtherPorts,
) -> Listener {
    let mut origins = Origins::default();
    for port in ports {
        origins.push(port.origin.0.origin(Arc::clone(&port.origin.1)));
    }
    Listener {
        name: Arc::from(names::VIRTUAL_INBOUND),
        bind: None,
        port: CAPTURE_PORT,
        serves: Serves::Inbound {
            captured: true,
            trust_domain: Arc::clone(&view.mesh().trust_domain),
            ports: ports.iter().map(inbound_port).collect(),
            others: Some(ir::OtherPorts {
                cluster: BuiltIn::InboundPassthrough.name(),
                takes: others.takes,
                ports: others.ports.iter().map(|(port, takes)| (*port, *takes)).collect(),
            }),
        },
        access_log_file: view.mesh().access_log_file.clone(),
        origins,
    }
}

/// What comes in on a port that the proxy opens itself.
pub(super) fn opened(view: &View<'_>, key: &InboundKey) -> Listener {
    Listener {
        name: names::inbound_listener(key.bind, key.port),
        bind: key.bind,
        port: key.port,
        serves: Serves::Inbound {
            captured: false,
            trust_domain: Arc::clone(&view.mesh().trust_domain),
            ports: vec![inbound_port(key)],
            others: None,
        },
        access_log_file: view.mesh().access_log_file.clone(),
        origins: Origins::one(key.origin.0.origin(Arc::clone(&key.origin.1))),
    }
}

fn inbound_port(key: &InboundKey) -> InboundPort {
    InboundPort {
        port: key.port,
        protocol: key.protocol,
        takes: key.takes,
        cluster: names::inbound_cluster(key.port),
        origins: Origins::one(key.origin.0.origin(Arc::clone(&key.origin.1))),
    }
}

/// The workload's own cluster for a port.
pub(super) fn cluster(view: &View<'_>, key: &InboundKey) -> Cluster {
    let mut origins = Origins::one(key.origin.0.origin(Arc::clone(&key.origin.1)));
    let http_version = match key.protocol {
        Protocol::Http2 => HttpVersion::Http2,
        // Whatever came in goes on.
        Protocol::Http | Protocol::Unknown => HttpVersion::AsClient,
        Protocol::Tcp | Protocol::Tls | Protocol::Udp => HttpVersion::Http1,
    };
    let pool = pool(view, key, &mut origins);
    Cluster {
        name: names::inbound_cluster(key.port),
        endpoints: match &key.to {
            IngressTarget::Original => ClusterEndpoints::Local { port: None },
            IngressTarget::Port(port) => ClusterEndpoints::Local { port: Some(*port) },
            IngressTarget::Address(address, port) => ClusterEndpoints::Address(*address, *port),
            IngressTarget::Socket(path) => ClusterEndpoints::Socket(Arc::clone(path)),
        },
        http_version,
        load_balancer: match &key.to {
            IngressTarget::Original | IngressTarget::Port(_) => LbAlgorithm::Passthrough,
            _ => LbAlgorithm::RoundRobin,
        },
        distributes: false,
        pinned: false,
        tls: UpstreamTls::Plain,
        outlier_detection: None,
        connect_timeout: connect_timeout(view, &pool),
        pool: limits(pool),
        origins,
    }
}

/// Limits of a port: those that the Sidecar has for it, else for all, else those of the service.
fn pool(view: &View<'_>, key: &InboundKey, origins: &mut Origins) -> ConnectionPool {
    let sidecar = key.sidecar.as_ref().and_then(|id| Some((id, view.sidecar_scope(id)?)));
    if let Some((id, scope)) = sidecar {
        let listener =
            scope.ingress.iter().find(|l| l.field == key.origin.1 && *id == key.origin.0);
        let own =
            listener.and_then(|l| Some((format!("{}.connectionPool", l.field), l.pool.clone()?)));
        let all = || Some(("spec.inboundConnectionPool".to_owned(), scope.inbound_pool.clone()?));
        if let Some((field, pool)) = own.or_else(all) {
            origins.push(id.origin(field));
            return pool;
        }
    }
    let Some((id, port)) = &key.service else { return ConnectionPool::default() };
    let Some(service) = view.service_by_id(id) else { return ConnectionPool::default() };
    let policy = policy_at_home(view, &service, *port, origins);
    policy.connection_pool.unwrap_or_default()
}
