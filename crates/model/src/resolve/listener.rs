//! Listeners.
//!
//! **Invariant:** nothing that changes with rules or endpoints is read here.

use std::net::IpAddr;
use std::sync::Arc;

use super::cluster::effective_policy;
use super::router::origins;
use super::{BuiltIn, ChainKey, Chains, ClusterKey, Servers};
use crate::ir::{Chain, Listener, Serves, Shares};
use crate::names;
use crate::object::Origins;
use crate::rows::{ClientTls, OutboundPolicy, Protocol, ServicePort};
use crate::snapshot::RowId;
use crate::track::View;

/// Port that captured connections of a workload come to.
const CAPTURE_PORT: u16 = 15001;

/// A port of a gateway.
pub(super) fn gateway(
    view: &View<'_>,
    bind: Option<IpAddr>,
    port: u16,
    servers: &Servers,
) -> Listener {
    Listener {
        name: names::gateway_listener(bind, port),
        bind,
        port,
        serves: Serves::Edge { route_config: names::gateway_route_config(bind, port) },
        access_log_file: view.mesh().access_log_file.clone(),
        origins: origins(servers),
    }
}

/// Everything that leaves a workload.
pub(super) fn virtual_outbound(view: &View<'_>, policy: OutboundPolicy) -> Listener {
    Listener {
        name: Arc::from(names::VIRTUAL_OUTBOUND),
        bind: None,
        port: CAPTURE_PORT,
        serves: Serves::Captured { otherwise: BuiltIn::of(policy).name() },
        access_log_file: view.mesh().access_log_file.clone(),
        origins: Origins::default(),
    }
}

/// What leaves a workload for a port.
pub(super) fn outbound(
    view: &View<'_>,
    (bind, port): (Option<IpAddr>, u16),
    http: bool,
    chains: &Chains,
    otherwise: Result<&ChainKey, OutboundPolicy>,
) -> Listener {
    Listener {
        name: names::outbound_listener(bind, port),
        bind,
        origins: chain_origins(chains.iter().chain(otherwise.ok())),
        ..leaving(view, port, bind.is_some(), http, chains.iter(), otherwise)
    }
}

/// What leaves a workload for a port of an address of a service.
pub(super) fn to_address(
    view: &View<'_>,
    (address, port): (IpAddr, u16),
    http: bool,
    service: &RowId,
    chains: &[ChainKey],
    otherwise: &ChainKey,
) -> Listener {
    let mut origins = Origins::one(service.origin(""));
    for origin in chain_origins(chains.iter().chain([otherwise])).0 {
        origins.push(origin);
    }
    Listener {
        name: names::tcp_listener(address, port),
        bind: Some(address),
        origins,
        ..leaving(view, port, false, http, chains.iter(), Ok(otherwise))
    }
}

/// What such listeners have in common.
fn leaving<'a>(
    view: &View<'_>,
    port: u16,
    opened: bool,
    http: bool,
    chains: impl Iterator<Item = &'a ChainKey>,
    otherwise: Result<&ChainKey, OutboundPolicy>,
) -> Listener {
    let (otherwise, sticky, sniffed) = match otherwise {
        Ok(chain) => (shares(&chain.split), chain.is_sticky(view), is_sniffed(view, &chain.split)),
        Err(policy) => (vec![(BuiltIn::of(policy).name(), 1)], false, false),
    };
    Listener {
        name: Arc::default(),
        bind: None,
        port,
        serves: Serves::Outbound {
            opened,
            route_config: http.then(|| names::outbound_route_config(port)),
            chains: chains.map(|key| chain(view, key)).collect(),
            otherwise,
            sticky,
            sniffed,
        },
        access_log_file: view.mesh().access_log_file.clone(),
        origins: Origins::default(),
    }
}

fn chain_origins<'a>(chains: impl Iterator<Item = &'a ChainKey>) -> Origins {
    let mut origins = Origins::default();
    for (id, field) in chains.map(|chain| &chain.origin) {
        origins.push(id.origin(Arc::clone(field)));
    }
    origins
}

fn chain(view: &View<'_>, key: &ChainKey) -> Chain {
    Chain {
        server_names: key.server_names.clone(),
        destinations: key.destinations.clone(),
        clients: key.clients.clone(),
        shares: shares(&key.split),
        sticky: key.is_sticky(view),
        sniffed: is_sniffed(view, &key.split),
        origins: Origins::one(key.origin.0.origin(Arc::clone(&key.origin.1))),
    }
}

fn shares(split: &[(ClusterKey, u32)]) -> Shares {
    split.iter().map(|(cluster, weight)| (Arc::clone(&cluster.name), *weight)).collect()
}

/// Whether a server of the mesh behind one of the clusters finds out what is spoken.
fn is_sniffed(view: &View<'_>, split: &[(ClusterKey, u32)]) -> bool {
    split.iter().any(|(cluster, _)| {
        let Some((id, number)) = &cluster.service else { return false };
        let service = view.service_by_id(id);
        let unknown = |p: &ServicePort| p.number == *number && p.protocol == Protocol::Unknown;
        let of_mesh = || match effective_policy(view, cluster, &mut Origins::default()).tls {
            None | Some(ClientTls::Mesh { .. }) => true,
            Some(ClientTls::Disable | ClientTls::Origin(_) | ClientTls::Refused) => false,
        };
        service.is_some_and(|service| service.ports.iter().any(unknown)) && of_mesh()
    })
}
