//! Service.
//!
//! In: the object. Out: one `Service` row; of one that is but a name, the endpoint that DNS has for
//! the name that it stands for.
//!
//! **Invariant:** what is spoken on a port comes from `appProtocol`, else from the beginning of
//! the port's name, else it is unknown; an annotation that cannot be read never widens who sees it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use model::rows::{
    DefaultVisibility, Endpoint, EndpointSlice, Protocol, Resolution, Selects,
    Service as ServiceRow, ServicePort, SlicePort, TargetPort,
};
use model::{Change, Problem, Reason, Row};
use serde::Deserialize;

use super::{annotation, decode};
use crate::export_to::{check, visibility};
use crate::kind::Kind;
use crate::object::RawObject;
use crate::schema::describe;
use crate::text::{dns_name, full_host, protocol as protocol_of};
use crate::yaml::Value;

/// The kind.
pub(crate) struct Service;

const EXPORT_TO: &str = "networking.istio.io/exportTo";

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    r#type: String,
    external_name: String,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    selector: BTreeMap<Arc<str>, Arc<str>>,
    ports: Vec<Port>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    port: u16,
    #[serde(default)]
    name: Arc<str>,
    protocol: Option<String>,
    app_protocol: Option<String>,
    target_port: Option<Target>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a port number up to 65535 or the name of a port")]
enum Target {
    Number(u16),
    Name(Arc<str>),
}

// === impl Service ===

impl Kind for Service {
    fn lower(&self, raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some(Object { spec }) = decode(&raw, &mut problems) else {
            return (Change { owner: raw.owner, rows: Vec::new() }, problems);
        };
        let Spec { r#type, external_name, cluster_ip, cluster_ips, selector, ports } = spec;
        let headless = cluster_ip.iter().chain(&cluster_ips).any(|ip| ip == "None");
        let mut alias_of = None;
        if r#type == "ExternalName" {
            if let Err(why) = dns_name(external_name.trim_end_matches('.')) {
                let field = "spec.externalName";
                problems.push(Problem::error(&raw.owner, field, Reason::WrongType, why));
                return (Change { owner: raw.owner, rows: Vec::new() }, problems);
            }
            let name = external_name.trim_end_matches('.').to_ascii_lowercase();
            alias_of = Some(Arc::<str>::from(name));
        }
        let mut lowered: Vec<ServicePort> = Vec::new();
        for (index, port) in ports.into_iter().enumerate() {
            let port = port.lower();
            let same = |p: &ServicePort| p.number == port.number;
            if port.protocol == Protocol::Udp {
                continue;
            }
            if port.number == 0 || lowered.iter().any(same) {
                let field = format!("spec.ports[{index}].port");
                let (reason, message) = if port.number == 0 {
                    let message = "must be between 1 and 65535, but is 0; the port is not used";
                    (Reason::OutOfRange, message.to_owned())
                } else {
                    let number = port.number;
                    let message = format!("port {number} is declared above; this one is not used");
                    (Reason::Duplicate, message)
                };
                problems.push(Problem::error(&raw.owner, field, reason, message));
                continue;
            }
            lowered.push(port);
        }
        let row = ServiceRow {
            host: full_host(&raw.owner.name, &raw.owner.namespace),
            namespace: Arc::clone(&raw.owner.namespace),
            name: Arc::clone(&raw.owner.name),
            created: None,
            addresses: addresses(&raw, cluster_ip, cluster_ips, &mut problems),
            subnets: Vec::new(),
            headless,
            resolution: if alias_of.is_some() { Resolution::Dns } else { Resolution::Endpoints },
            alias_of: alias_of.clone(),
            ports: lowered,
            selector,
            selects: Selects::Registered,
            export_to: export_to(&raw, &mut problems).map(|v| v.of(&raw.owner.namespace)),
        };
        let named = alias_of.map(|name| Row::EndpointSlice(named_endpoint(&row, name).into()));
        let rows = [Row::Service(row.into())].into_iter().chain(named).collect();
        (Change { owner: raw.owner, rows }, problems)
    }
}

/// The endpoint of a service that is but a name for another.
fn named_endpoint(service: &ServiceRow, name: Arc<str>) -> EndpointSlice {
    // Nobody translates ports on the way there.
    let port = |p: &ServicePort| SlicePort { name: Arc::clone(&p.name), number: p.number };
    EndpointSlice {
        namespace: Arc::clone(&service.namespace),
        service: Arc::clone(&service.name),
        ports: service.ports.iter().map(port).collect(),
        endpoints: vec![Endpoint::named(&name)],
    }
}

/// Addresses of the service; a headless one has none.
fn addresses(
    raw: &RawObject,
    first: Option<String>,
    all: Vec<String>,
    problems: &mut Vec<Problem>,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    let first = first.map(|text| ("spec.clusterIP".to_owned(), text));
    let all = (0..).zip(all).map(|(i, text): (usize, _)| (format!("spec.clusterIPs[{i}]"), text));
    for (field, text) in first.into_iter().chain(all) {
        match text.parse() {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(_) if text.is_empty() || text == "None" => {}
            Err(_) => {
                let message = format!("{text:?} is no IP address; it is not used");
                problems.push(Problem::error(&raw.owner, field, Reason::WrongType, message));
            }
        }
    }
    addresses
}

/// Who sees the service; none where it does not say.
fn export_to(raw: &RawObject, problems: &mut Vec<Problem>) -> Option<DefaultVisibility> {
    let (field, value) = annotation(raw, EXPORT_TO)?;
    let mut why = match value {
        Value::String(text) => {
            let entries = || text.split(',').map(str::trim);
            if text.trim().is_empty() {
                return None;
            }
            match entries().try_for_each(check) {
                Ok(()) => return visibility(entries()),
                Err(why) => why,
            }
        }
        // Without quotes `~` is how YAML writes nothing, and far from meaning everyone.
        other => format!("must be a text in quotes, but is {}", describe(other)),
    };
    why.push_str(", so the service is visible in its own namespace only");
    problems.push(Problem::error(&raw.owner, field, Reason::WrongType, why));
    Some(DefaultVisibility::own())
}

// === impl Port ===

impl Port {
    fn lower(self) -> ServicePort {
        let Self { port, name, protocol, app_protocol, target_port } = self;
        let spoken = match protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            _ => app_protocol
                .as_deref()
                .and_then(app_protocol_of)
                .or_else(|| protocol_of(name.split('-').next().unwrap_or_default()))
                .unwrap_or(Protocol::Unknown),
        };
        ServicePort {
            number: port,
            name,
            protocol: spoken,
            target: match target_port {
                None | Some(Target::Number(0)) => TargetPort::Number(port),
                Some(Target::Number(number)) => TargetPort::Number(number),
                Some(Target::Name(name)) => match name.parse() {
                    Ok(number) => TargetPort::Number(number),
                    Err(_) => TargetPort::Name(name),
                },
            },
        }
    }
}

/// The protocol that a port's `appProtocol` stands for.
fn app_protocol_of(word: &str) -> Option<Protocol> {
    match word.to_ascii_lowercase().as_str() {
        "kubernetes.io/ws" => Some(Protocol::Http),
        "kubernetes.io/h2c" => Some(Protocol::Http2),
        "kubernetes.io/wss" => Some(Protocol::Tls),
        _ => protocol_of(word),
    }
}
