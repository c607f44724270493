//! Listeners.
//!
//! **Invariant:** nothing that changes with rules or endpoints is read here.

use std::net::IpAddr;
use std::sync::Arc;

use super::router::origins;
use super::{BuiltIn, ClusterKey, Servers};
use crate::ir::{Listener, Serves};
use crate::names;
use crate::object::Origins;
use crate::rows::OutboundPolicy;
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

/// Connections that leave a workload for an address of a service.
pub(super) fn tcp(
    view: &View<'_>,
    address: IpAddr,
    port: u16,
    service: &RowId,
    split: &[(ClusterKey, u32)],
) -> Listener {
    let share = |(cluster, weight): &(ClusterKey, u32)| (Arc::clone(&cluster.name), *weight);
    Listener {
        name: names::tcp_listener(address, port),
        bind: Some(address),
        port,
        serves: Serves::Tcp { clusters: split.iter().map(share).collect() },
        access_log_file: view.mesh().access_log_file.clone(),
        origins: Origins::one(service.origin("")),
    }
}

/// HTTP that leaves a workload for a port.
pub(super) fn outbound(view: &View<'_>, port: u16, policy: OutboundPolicy) -> Listener {
    Listener {
        name: names::outbound_listener(port),
        bind: None,
        port,
        serves: Serves::Outbound {
            route_config: names::outbound_route_config(port),
            otherwise: BuiltIn::of(policy).name(),
        },
        access_log_file: view.mesh().access_log_file.clone(),
        origins: Origins::default(),
    }
}
