//! Pod.
//!
//! In: the object. Out: one `Workload` row.
//!
//! **Invariant:** a Pod that has ended gives nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use model::rows::{CapturedPorts, Workload};
use model::{Change, Problem, Reason, Row};
use serde::Deserialize;

use super::{annotation, decode};
use crate::kind::Kind;
use crate::object::RawObject;
use crate::schema::describe;
use crate::yaml::Value;

/// The kind.
pub(crate) struct Pod;

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    service_account_name: Option<Arc<str>>,
    node_name: Option<Arc<str>>,
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    #[serde(default)]
    ports: Vec<ContainerPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    #[serde(default)]
    name: Arc<str>,
    container_port: u16,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    status: String,
}

#[derive(Deserialize)]
struct PodIp {
    ip: String,
}

// === impl Pod ===

impl Kind for Pod {
    fn lower(&self, raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some(Object { spec, status }) = decode(&raw, &mut problems) else {
            return (Change { owner: raw.owner, rows: Vec::new() }, problems);
        };
        let Spec { service_account_name, node_name, containers } = spec;
        let Status { phase, pod_ip, pod_ips, conditions } = status;
        if phase == "Succeeded" || phase == "Failed" {
            return (Change { owner: raw.owner, rows: Vec::new() }, problems);
        }
        let mut addresses: Vec<IpAddr> = Vec::new();
        let one = pod_ip.into_iter().map(|ip| ("status.podIP".to_owned(), ip));
        let all =
            (0..).zip(pod_ips).map(|(i, p): (usize, _)| (format!("status.podIPs[{i}].ip"), p.ip));
        for (field, text) in one.chain(all).filter(|(_, text)| !text.is_empty()) {
            match text.parse() {
                Ok(address) if addresses.contains(&address) => {}
                Ok(address) => addresses.push(address),
                Err(_) => {
                    let message = format!("{text:?} is no IP address; it is not used");
                    problems.push(Problem::error(&raw.owner, field, Reason::WrongType, message));
                }
            }
        }
        let named_ports: BTreeMap<Arc<str>, u16> = containers
            .into_iter()
            .flat_map(|c| c.ports)
            .filter(|p| !p.name.is_empty())
            .map(|p| (p.name, p.container_port))
            .collect();
        let captured = captured(&raw, &mut problems);
        let row = Workload {
            namespace: Arc::clone(&raw.owner.namespace),
            name: Arc::clone(&raw.owner.name),
            labels: raw.labels,
            addresses,
            service_account: service_account_name.unwrap_or_else(|| Arc::from("default")),
            named_ports,
            captured,
            node: node_name,
            // In files nobody writes conditions.
            ready: !conditions.iter().any(|c| c.r#type == "Ready" && c.status != "True"),
            declared: None,
        };
        (Change { owner: raw.owner, rows: vec![Row::Workload(row.into())] }, problems)
    }
}

/// Ports that the pod's proxy takes, as the injector was told.
fn captured(raw: &RawObject, problems: &mut Vec<Problem>) -> CapturedPorts {
    let mut ports = |name: &str| {
        let (field, value) = annotation(raw, name)?;
        let ports = match value {
            Value::String(text) if text.trim() == "*" => return None,
            Value::String(text) => {
                let listed = text.split(',').map(str::trim).filter(|port| !port.is_empty());
                listed.map(str::parse).collect::<Result<BTreeSet<u16>, _>>().ok()
            }
            _ => None,
        };
        if ports.is_none() {
            let message = format!(
                "must be ports in quotes, separated by commas, but is {}, so its proxy is taken to \
                 capture all; write for example \"8080,9090\"",
                describe(value)
            );
            problems.push(Problem::error(&raw.owner, field, Reason::WrongType, message));
        }
        ports
    };
    let only = ports("traffic.sidecar.istio.io/includeInboundPorts");
    let never = ports("traffic.sidecar.istio.io/excludeInboundPorts").unwrap_or_default();
    CapturedPorts { only, never }
}
