//! WorkloadEntry: a workload that Kubernetes does not run. ServiceEntries list such endpoints too.
//!
//! In: the object. Out: one `Workload` row.
//!
//! **Invariant:** an endpoint without an address that can be used is none.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use model::rows::{CapturedPorts, Declared, Endpoint as EndpointRow, Locality, Workload};
use model::{Change, Problem, Reason, Row};
use serde::Deserialize;

use super::{decode, nothing};
use crate::kind::Kind;
use crate::object::RawObject;
use crate::schema::{Field, Type, field, not_yet};
use crate::text;
use crate::yaml::Node;

/// The kind.
pub(crate) struct WorkloadEntry;

/// An endpoint, alone or in a list.
pub(super) const ENDPOINT_FIELDS: &[Field] = &[
    field("address", Type::Text).or_parent(),
    field("ports", Type::Map(text::not_empty, &Type::Integer(1, 65_535))).or_parent(),
    field("labels", Type::Map(text::not_empty, &Type::Text)).or_parent(),
    not_yet("network"),
    field("locality", Type::Checked(locality)),
    field("weight", Type::Integer(0, 1 << 20)),
    // Without it a client would trust more than its user meant.
    field("serviceAccount", Type::Checked(text::dns_name)).or_parent(),
];

const SPEC: Type = Type::Object(ENDPOINT_FIELDS);

/// The decoded form of `ENDPOINT_FIELDS`.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Endpoint {
    address: Option<String>,
    ports: BTreeMap<Arc<str>, u16>,
    labels: BTreeMap<Arc<str>, Arc<str>>,
    locality: Option<String>,
    weight: Option<u32>,
    #[serde(rename = "serviceAccount")]
    service_account: Option<Arc<str>>,
}

/// Where an endpoint is.
pub(super) enum Address {
    /// At an address.
    Ip(IpAddr),
    /// Where DNS says.
    Name(Arc<str>),
}

/// `region/zone/subzone`, of which the last may be missing.
fn locality(text: &str) -> Result<(), String> {
    match text.split('/').count() {
        1..=3 => Ok(()),
        _ => Err(format!("must be like region/zone/subzone, but is {text:?}")),
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Its address; else what is wrong with it.
    pub(super) fn address(&self) -> Result<Address, String> {
        let text = self.address.as_deref().unwrap_or_default();
        if text.starts_with("unix:") {
            return Err("Unix domain sockets are not supported by this version of Heddle; use an \
                        IP address"
                .to_owned());
        }
        match text.parse() {
            Ok(address) => Ok(Address::Ip(address)),
            Err(_) if text.is_empty() => {
                Err("is required; there are no networks to find it without".to_owned())
            }
            Err(_) => {
                text::dns_name(text)?;
                Ok(Address::Name(Arc::from(text.to_ascii_lowercase())))
            }
        }
    }

    fn declared(&self, address: &Address) -> Declared {
        Declared {
            dns_name: match address {
                Address::Ip(_) => None,
                Address::Name(name) => Some(Arc::clone(name)),
            },
            labels: self.labels.clone(),
            service_account: self.service_account.clone(),
            locality: Locality::parse(self.locality.as_deref().unwrap_or_default()),
            weight: self.weight.unwrap_or(1).max(1),
        }
    }

    /// The endpoint, with ports of its own.
    pub(super) fn lower(self, address: Address) -> (BTreeMap<Arc<str>, u16>, EndpointRow) {
        let declared = self.declared(&address);
        let row = EndpointRow {
            addresses: address.ip().into_iter().collect(),
            ready: true,
            declared: Some(declared.into()),
            ..EndpointRow::default()
        };
        (self.ports, row)
    }
}

// === impl Address ===

impl Address {
    fn ip(&self) -> Option<IpAddr> {
        if let Self::Ip(address) = self { Some(*address) } else { None }
    }
}

// === impl WorkloadEntry ===

impl Kind for WorkloadEntry {
    fn spec(&self) -> Option<&'static Type> {
        Some(&SPEC)
    }

    fn lower(&self, mut raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some(mut spec) = decode::<Endpoint>(&mut raw, &SPEC, &mut problems) else {
            return (nothing(raw), problems);
        };
        let address = match spec.address() {
            Ok(address) => address,
            Err(message) => {
                let field = "spec.address";
                problems.push(Problem::error(&raw.owner, field, Reason::WrongType, message));
                return (nothing(raw), problems);
            }
        };
        let mut labels = raw.labels.clone();
        labels.append(&mut spec.labels);
        spec.labels = labels.clone();
        let declared = spec.declared(&address);
        let row = Workload {
            namespace: Arc::clone(&raw.owner.namespace),
            name: Arc::clone(&raw.owner.name),
            labels,
            addresses: address.ip().into_iter().collect(),
            service_account: spec.service_account.clone().unwrap_or_else(|| Arc::from("default")),
            named_ports: spec.ports,
            captured: CapturedPorts::default(),
            node: None,
            ready: !is_unhealthy(&raw.body),
            declared: Some(declared.into()),
        };
        (Change { owner: raw.owner, rows: vec![Row::Workload(row.into())] }, problems)
    }
}

/// Whether a health check says that it takes no requests.
fn is_unhealthy(body: &Node) -> bool {
    let conditions = body.get("status").and_then(|status| status.get("conditions"));
    let items = conditions.and_then(Node::as_list).unwrap_or_default();
    let says = |item: &Node, key: &str, value: &str| {
        item.get(key).and_then(Node::as_str).is_some_and(|text| text == value)
    };
    items.iter().any(|item| says(item, "type", "Healthy") && says(item, "status", "False"))
}
