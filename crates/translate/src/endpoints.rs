//! Endpoint sets.
//!
//! **Invariant:** localities are sorted, endpoints of one keep the order of the `ir`.

use std::collections::BTreeMap;

use envoy_api::envoy::config::core::v3::{
    self as core, Address, HealthStatus, SocketAddress, address, socket_address,
};
use envoy_api::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use model::ir;
use model::rows::Locality;

/// Spell an endpoint set.
pub(crate) fn endpoints(set: &ir::Endpoints) -> ClusterLoadAssignment {
    let ir::Endpoints { cluster, endpoints, origins: _ } = set;
    let mut places: BTreeMap<&Locality, Vec<LbEndpoint>> = BTreeMap::new();
    for one in endpoints {
        places.entry(&one.locality).or_default().push(endpoint(one));
    }
    let localities = places.into_iter().map(|(place, lb_endpoints)| LocalityLbEndpoints {
        locality: (*place != Locality::default()).then(|| locality(place)),
        load_balancing_weight: Some(u32::try_from(lb_endpoints.len()).unwrap_or(u32::MAX)),
        lb_endpoints,
        ..Default::default()
    });
    ClusterLoadAssignment {
        cluster_name: cluster.to_string(),
        endpoints: localities.collect(),
        ..Default::default()
    }
}

fn locality(place: &Locality) -> core::Locality {
    let Locality { region, zone, subzone } = place;
    core::Locality {
        region: region.to_string(),
        zone: zone.to_string(),
        sub_zone: subzone.to_string(),
    }
}

fn endpoint(endpoint: &ir::EndpointAddress) -> LbEndpoint {
    let ir::EndpointAddress { address, port, draining, locality: _ } = endpoint;
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
