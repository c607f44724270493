//! What every endpoint set must be for any client of xDS (R87).

#![allow(clippy::expect_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_api::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint};
use model::ir;
use model::rows::Locality;
use proptest::prelude::*;
use prost::Message;

fn place(n: u8) -> Arc<Locality> {
    let text =
        |on: bool, name: &str| Arc::from(if on { format!("{name}{n}") } else { String::new() });
    Arc::new(Locality {
        region: text(n & 1 > 0, "region"),
        zone: text(n & 2 > 0, "zone"),
        subzone: text(n & 4 > 0, "rack"),
    })
}

/// Each address once, in several slices and places.
fn set() -> impl Strategy<Value = ir::Endpoints> {
    let endpoint = (any::<u16>(), 0u8..5, any::<bool>());
    proptest::collection::vec((endpoint, 0usize..4), 0..60).prop_map(|all| {
        let mut chunks = vec![Vec::new(); 4];
        let mut seen = BTreeSet::new();
        for ((address, at, draining), chunk) in all {
            if !seen.insert(address) {
                continue;
            }
            let [a, b] = address.to_be_bytes();
            chunks[chunk].push(ir::EndpointAddress {
                address: [10, 0, a, b].into(),
                port: 8080,
                draining,
                locality: place(at),
                weight: u32::from(at) + 1,
                mutual_tls: draining,
                labels: (at > 2).then(|| Arc::new(BTreeMap::from([("a".into(), "b".into())]))),
            });
        }
        ir::Endpoints {
            cluster: "outbound|80||a.b.svc.cluster.local".into(),
            chunks: chunks
                .into_iter()
                .map(|c| Arc::new(ir::EndpointChunk::new(c, BTreeSet::new())))
                .collect(),
            places: None,
            origins: Default::default(),
        }
    })
}

proptest! {
    #[test]
    fn r87_priorities_localities_weights_and_addresses_are_as_every_client_wants_them(set in set()) {
        let count: usize = set.chunks.iter().map(|chunk| chunk.endpoints.len()).sum();
        let (encoded, violations) = translate::encode(&ir::Resource::Endpoints(set));
        prop_assert!(violations.is_empty(), "{violations:?}");
        let found = ClusterLoadAssignment::decode(&*encoded.body()).expect("a message");
        let priorities: BTreeSet<u32> = found.endpoints.iter().map(|group| group.priority).collect();
        let gapless: BTreeSet<u32> = (0..).take(priorities.len()).collect();
        prop_assert_eq!(priorities, gapless);
        let mut places = BTreeMap::new();
        let mut addresses = BTreeSet::new();
        for group in &found.endpoints {
            let locality = group.locality.clone().unwrap_or_default();
            let key = (group.priority, locality.region, locality.zone, locality.sub_zone);
            prop_assert!(places.insert(key, ()).is_none(), "a locality twice");
            prop_assert!(group.load_balancing_weight.is_some_and(|weight| weight > 0));
            for endpoint in &group.lb_endpoints {
                prop_assert!(endpoint.load_balancing_weight.is_some_and(|weight| weight > 0));
                let Some(lb_endpoint::HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
                    panic!("an endpoint without an address");
                };
                let address = host.address.as_ref().expect("an address").encode_to_vec();
                prop_assert!(addresses.insert(address), "an address twice");
            }
        }
        prop_assert_eq!(addresses.len(), count, "none is lost");
    }
}
