//! Endpoints: what clusters had before EndpointSlices. A cluster mirrors them as slices, so only
//! those in files are read.
//!
//! In: the object. Out: one `EndpointSlice` row for each subset.
//!
//! **Invariant:** an address that cannot be read is left out alone.

use std::net::IpAddr;
use std::sync::Arc;

use model::rows::{Endpoint as EndpointRow, EndpointSlice, SlicePort};
use model::{Change, Problem, Reason, Row};
use serde::Deserialize;

use super::decode;
use super::endpoint_slice::Target;
use crate::kind::Kind;
use crate::object::RawObject;

/// The kind.
pub(crate) struct Endpoints;

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    subsets: Vec<Subset>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Subset {
    addresses: Vec<Address>,
    ports: Vec<Port>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Address {
    ip: String,
    node_name: Option<Arc<str>>,
    target_ref: Option<Target>,
}

#[derive(Deserialize)]
struct Port {
    #[serde(default)]
    name: Arc<str>,
    port: u16,
}

// === impl Endpoints ===

impl Kind for Endpoints {
    fn lower(&self, raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some(Object { subsets }) = decode(&raw, &mut problems) else {
            return (Change { owner: raw.owner, rows: Vec::new() }, problems);
        };
        let mut rows = Vec::new();
        for (index, Subset { addresses, ports }) in subsets.into_iter().enumerate() {
            let mut endpoints = Vec::new();
            for (position, address) in addresses.into_iter().enumerate() {
                let Address { ip, node_name, target_ref } = address;
                let Ok(ip) = ip.parse::<IpAddr>() else {
                    let field = format!("subsets[{index}].addresses[{position}].ip");
                    let message = format!("{ip:?} is no IP address; the endpoint is not used");
                    problems.push(Problem::error(&raw.owner, field, Reason::WrongType, message));
                    continue;
                };
                endpoints.push(EndpointRow {
                    addresses: vec![ip],
                    ready: true,
                    workload: target_ref.and_then(Target::pod),
                    node: node_name,
                    ..EndpointRow::default()
                });
            }
            let port = |p: Port| SlicePort { name: p.name, number: p.port };
            let slice = EndpointSlice {
                namespace: Arc::clone(&raw.owner.namespace),
                service: Arc::clone(&raw.owner.name),
                ports: ports.into_iter().filter(|p| p.port > 0).map(port).collect(),
                endpoints,
            };
            rows.push(Row::EndpointSlice(slice.into()));
        }
        (Change { owner: raw.owner, rows }, problems)
    }
}
