//! Endpoint sets.
//!
//! A set is put together from chunks, each of which is encoded once: an endpoint that comes or goes
//! in a service of thousands costs the bytes of its own slice and a copy of the others.
//!
//! **Invariant:** priorities and then places are sorted, chunks and the endpoints of each keep the
//! order of the `ir`.

use std::any::Any;
use std::collections::BTreeMap;

use envoy_api::ResourceType;
use envoy_api::check::{self, Violation};
use envoy_api::envoy::config::core::v3::{
    self as core, Address, HealthStatus, SocketAddress, address, socket_address,
};
use envoy_api::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use model::ir::{self, Place, Spot};
use model::rows::Locality;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::tls;

/// `ClusterLoadAssignment.endpoints`.
const LOCALITIES: u32 = 2;

/// A chunk as it is encoded.
#[derive(Default)]
struct Encoded {
    /// By spot: the sum of weights, and `LocalityLbEndpoints` with nothing but them.
    places: BTreeMap<Spot, (u32, Vec<u8>)>,
    violations: Vec<Violation>,
}

/// Endpoints of a place that have one priority.
#[derive(Default)]
struct Group<'a> {
    /// The sum of their weights.
    weight: u32,
    /// Their shares of requests, where those are given.
    shares: BTreeMap<&'a Spot, u32>,
    parts: Vec<&'a [u8]>,
}

/// Encode an endpoint set, and say which rules of Envoy's API it breaks.
pub(crate) fn endpoints(set: &ir::Endpoints) -> (Vec<u8>, Vec<Violation>) {
    let ir::Endpoints { cluster, chunks, places: counted, origins: _ } = set;
    let mut groups: BTreeMap<(u32, &Locality), Group<'_>> = BTreeMap::new();
    let mut violations = Vec::new();
    for chunk in chunks {
        let memo =
            chunk.memo.get_or_init(|| Box::new(Encoded::of(chunk)) as Box<dyn Any + Send + Sync>);
        // Nobody else keeps anything there.
        let Some(encoded) = memo.downcast_ref::<Encoded>() else { continue };
        for (spot, (weight, bytes)) in &encoded.places {
            let Place { priority, share } = match counted {
                None => Place { priority: 0, share: None },
                Some(counted) => match counted.get(spot) {
                    Some(place) => *place,
                    None => continue,
                },
            };
            let group = groups.entry((priority, &spot.locality)).or_default();
            group.weight = group.weight.saturating_add(*weight);
            // A spot may be in several chunks; its share is that of all of them.
            group.shares.extend(share.map(|share| (spot, share)));
            group.parts.push(bytes);
        }
        violations.extend(encoded.violations.iter().cloned());
    }
    let head = ClusterLoadAssignment { cluster_name: cluster.to_string(), ..Default::default() };
    violations.extend(check::violations_of(ResourceType::Endpoints, &head.encode_to_vec()));
    let mut out = head.encode_to_vec();
    for ((priority, place), Group { weight, shares, parts }) in groups {
        let share = shares.into_values().reduce(u32::saturating_add);
        let around = LocalityLbEndpoints {
            priority,
            locality: (*place != Locality::default()).then(|| locality(place)),
            load_balancing_weight: Some(share.unwrap_or(weight)),
            ..Default::default()
        };
        let length = around.encoded_len() + parts.iter().map(|part| part.len()).sum::<usize>();
        let length = length as u64;
        out.reserve(key_len(LOCALITIES) + encoded_len_varint(length));
        encode_key(LOCALITIES, WireType::LengthDelimited, &mut out);
        encode_varint(length, &mut out);
        out.extend_from_slice(&around.encode_to_vec());
        parts.into_iter().for_each(|part| out.extend_from_slice(part));
    }
    (out, violations)
}

/// A place.
pub(crate) fn locality(place: &Locality) -> core::Locality {
    let Locality { region, zone, subzone } = place;
    core::Locality {
        region: region.to_string(),
        zone: zone.to_string(),
        sub_zone: subzone.to_string(),
    }
}

fn endpoint(endpoint: &ir::EndpointAddress) -> LbEndpoint {
    let ir::EndpointAddress { address, port, draining, locality: _, weight, mutual_tls, labels: _ } =
        endpoint;
    let health = if *draining { HealthStatus::Draining } else { HealthStatus::Healthy };
    LbEndpoint {
        metadata: mutual_tls.then(tls::endpoint_metadata),
        ..lb_endpoint(socket(&address.to_string(), *port), *weight, health)
    }
}

/// An endpoint of an address.
pub(crate) fn lb_endpoint(address: Address, weight: u32, health: HealthStatus) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint {
            address: Some(address),
            ..Default::default()
        })),
        health_status: health.into(),
        load_balancing_weight: Some(weight),
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

// === impl Encoded ===

impl Encoded {
    fn of(chunk: &ir::EndpointChunk) -> Self {
        let mut places: BTreeMap<Spot, Vec<LbEndpoint>> = BTreeMap::new();
        for one in &chunk.endpoints {
            places.entry(one.spot()).or_default().push(endpoint(one));
        }
        let mut out = Self::default();
        for (place, lb_endpoints) in places {
            let weights = lb_endpoints.iter().filter_map(|one| one.load_balancing_weight);
            let count = weights.fold(0, u32::saturating_add);
            // One is like the other: an address, a port, a health.
            let one = lb_endpoints.iter().take(1).flat_map(check::violations);
            out.violations.extend(one);
            let bytes = LocalityLbEndpoints { lb_endpoints, ..Default::default() }.encode_to_vec();
            out.places.insert(place, (count, bytes));
        }
        out
    }
}
