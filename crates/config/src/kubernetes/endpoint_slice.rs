//! EndpointSlice.
//!
//! In: the object. Out: one `EndpointSlice` row.
//!
//! **Invariant:** an endpoint that serves while it terminates is draining; one that neither is
//! ready nor serves is not there.

use std::net::IpAddr;
use std::sync::Arc;

use model::rows::{Endpoint as EndpointRow, EndpointSlice as SliceRow, SlicePort};
use model::{Change, Problem, Reason, Row};
use serde::Deserialize;

use super::decode;
use crate::kind::Kind;
use crate::object::RawObject;

/// The kind.
pub(crate) struct EndpointSlice;

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    #[serde(default)]
    address_type: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
    target_ref: Option<Target>,
    node_name: Option<Arc<str>>,
    zone: Option<Arc<str>>,
}

#[derive(Deserialize, Default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

/// What an endpoint is an address of.
#[derive(Deserialize)]
pub(super) struct Target {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: Arc<str>,
}

#[derive(Deserialize)]
struct Port {
    #[serde(default)]
    name: Arc<str>,
    port: Option<u16>,
}

// === impl EndpointSlice ===

impl Kind for EndpointSlice {
    fn lower(&self, raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        let nothing = |raw: RawObject| Change { owner: raw.owner, rows: Vec::new() };
        let Some(service) = raw.labels.get(SERVICE_LABEL).filter(|s| !s.is_empty()).cloned() else {
            let field = "metadata.labels";
            let message = format!("label {SERVICE_LABEL} is required: it names the Service");
            problems.push(Problem::error(&raw.owner, field, Reason::Required, message));
            return (nothing(raw), problems);
        };
        let Some(Object { address_type, endpoints, ports }) = decode(&raw, &mut problems) else {
            return (nothing(raw), problems);
        };
        if address_type == "FQDN" {
            let message = "FQDN is not supported by this version of Heddle; use IPv4 or IPv6";
            let problem = Problem::error(&raw.owner, "addressType", Reason::NotSupported, message);
            problems.push(problem);
            return (nothing(raw), problems);
        }
        let mut rows = Vec::new();
        for (index, endpoint) in endpoints.into_iter().enumerate() {
            match endpoint.lower() {
                Ok(endpoint) => rows.push(endpoint),
                Err(address) => {
                    let field = format!("endpoints[{index}].addresses");
                    let message =
                        format!("{address:?} is no IP address, so the endpoint is not used");
                    problems.push(Problem::error(&raw.owner, field, Reason::WrongType, message));
                }
            }
        }
        let row = SliceRow {
            namespace: Arc::clone(&raw.owner.namespace),
            service,
            ports: ports
                .into_iter()
                .filter_map(|p| {
                    Some(SlicePort { name: p.name, number: p.port.filter(|n| *n > 0)? })
                })
                .collect(),
            endpoints: rows,
        };
        (Change { owner: raw.owner, rows: vec![Row::EndpointSlice(row.into())] }, problems)
    }
}

// === impl Target ===

impl Target {
    /// Its name, if it is a pod.
    pub(super) fn pod(self) -> Option<Arc<str>> {
        (self.kind == "Pod" && !self.name.is_empty()).then_some(self.name)
    }
}

// === impl Endpoint ===

impl Endpoint {
    fn lower(self) -> Result<EndpointRow, String> {
        let Self { addresses, conditions, target_ref, node_name, zone } = self;
        let addresses: Result<Vec<IpAddr>, String> =
            addresses.into_iter().map(|a| a.parse().map_err(|_| a)).collect();
        let Conditions { ready, serving, terminating } = conditions;
        let terminating = terminating.unwrap_or(false);
        // Unknown readiness counts as ready; a terminating endpoint is never ready.
        let ready = ready.unwrap_or(true) && !terminating;
        Ok(EndpointRow {
            addresses: addresses?,
            ready,
            draining: !ready && terminating && serving.unwrap_or(false),
            workload: target_ref.and_then(Target::pod),
            node: node_name,
            zone,
            declared: None,
        })
    }
}
