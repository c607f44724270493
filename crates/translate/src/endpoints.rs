//! Endpoint sets.
//!
//! **Invariant:** keeps the order of the `ir`; one locality while no policy needs more.

use envoy_api::envoy::config::core::v3::{
    Address, HealthStatus, SocketAddress, address, socket_address,
};
use envoy_api::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use model::ir;

/// Spell an endpoint set.
pub(crate) fn endpoints(set: &ir::Endpoints) -> ClusterLoadAssignment {
    let ir::Endpoints { cluster, endpoints, origins: _ } = set;
    let lb_endpoints: Vec<LbEndpoint> = endpoints.iter().map(endpoint).collect();
    let localities = if lb_endpoints.is_empty() {
        Vec::new()
    } else {
        vec![LocalityLbEndpoints {
            lb_endpoints,
            load_balancing_weight: Some(1),
            ..Default::default()
        }]
    };
    ClusterLoadAssignment {
        cluster_name: cluster.to_string(),
        endpoints: localities,
        ..Default::default()
    }
}

fn endpoint(endpoint: &ir::EndpointAddress) -> LbEndpoint {
    let ir::EndpointAddress { address, port, draining } = endpoint;
    let health = if *draining { HealthStatus::Draining } else { HealthStatus::Healthy };
    LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint {
            address: Some(socket(&address.to_string(), *port)),
            ..Default::default()
        })),
        health_status: health.into(),
        load_balancing_weight: Some(1),
        ..Default::default()
    }
}

/// A TCP address.
pub(crate) fn socket(address: &str, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(u32::from(port))),
            ..Default::default()
        })),
    }
}
