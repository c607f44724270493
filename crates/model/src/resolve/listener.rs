//! Listeners.
//!
//! **Invariant:** nothing that changes with rules or endpoints is read here.

use std::net::IpAddr;
use std::sync::Arc;

use super::router::origins;
use super::{BuiltIn, ChainKey, ClusterKey, RowKey, Servers};
use crate::ir::{Chain, Listener, Serves, Shares};
use crate::names;
use crate::object::Origins;
use crate::rows::OutboundPolicy;
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

/// What leaves a workload for a port, or for a port of an address.
pub(super) fn outbound(view: &View<'_>, key: &RowKey) -> Listener {
    let mut origins = Origins::default();
    let (name, bind, opened, port, http, chains, last) = match key {
        RowKey::AddressListener { address, port, http, service, chains, otherwise } => {
            origins.push(service.origin(""));
            let name = names::tcp_listener(*address, *port);
            let chains: Vec<&ChainKey> = chains.iter().collect();
            (name, Some(*address), false, *port, *http, chains, Ok(otherwise))
        }
        RowKey::OutboundListener { bind, port, http, chains, otherwise, policy } => {
            let name = names::outbound_listener(*bind, *port);
            let last = otherwise.as_ref().ok_or(BuiltIn::of(*policy));
            (name, *bind, bind.is_some(), *port, *http, chains.iter().collect(), last)
        }
        // No other row is such a listener.
        _ => (Arc::default(), None, false, 0, false, Vec::new(), Err(BuiltIn::BlackHole)),
    };
    for chain in chains.iter().copied().chain(last.ok()) {
        origins.push(chain.origin.0.origin(Arc::clone(&chain.origin.1)));
    }
    let (otherwise, sticky) = match last {
        Ok(chain) => (shares(&chain.split), chain.is_sticky(view)),
        Err(which) => (vec![(which.name(), 1)], false),
    };
    Listener {
        name,
        bind,
        port,
        serves: Serves::Outbound {
            opened,
            route_config: http.then(|| names::outbound_route_config(port)),
            chains: chains.iter().map(|key| chain(view, key)).collect(),
            otherwise,
            sticky,
        },
        access_log_file: view.mesh().access_log_file.clone(),
        origins,
    }
}

fn chain(view: &View<'_>, key: &ChainKey) -> Chain {
    Chain {
        server_names: key.server_names.clone(),
        destinations: key.destinations.clone(),
        clients: key.clients.clone(),
        shares: shares(&key.split),
        sticky: key.is_sticky(view),
        origins: Origins::one(key.origin.0.origin(Arc::clone(&key.origin.1))),
    }
}

fn shares(split: &[(ClusterKey, u32)]) -> Shares {
    split.iter().map(|(cluster, weight)| (Arc::clone(&cluster.name), *weight)).collect()
}
