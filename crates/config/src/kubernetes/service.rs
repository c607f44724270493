//! Service.
//!
//! In: the object. Out: one `Service` row.
//!
//! **Invariant:** what is spoken on a port comes from `appProtocol`, else from the beginning of
//! the port's name, else it is unknown.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::rows::{Protocol, Service as ServiceRow, ServicePort, TargetPort};
use model::{Change, Kind as KindName, Problem, Reason, Row};
use serde::Deserialize;

use super::decode;
use crate::kind::{Kind, KindScope, kind_name};
use crate::object::RawObject;
use crate::schema::Type;
use crate::text::full_host;

/// The kind.
pub(crate) struct Service;

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
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
    fn name(&self) -> KindName {
        kind_name("", "Service")
    }

    fn scope(&self) -> KindScope {
        KindScope::Namespaced
    }

    fn spec(&self) -> Option<&'static Type> {
        None
    }

    fn lower(&self, raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some(Object { spec: Spec { selector, ports } }) = decode(&raw, &mut problems) else {
            return (Change { owner: raw.owner, rows: Vec::new() }, problems);
        };
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
            ports: lowered,
            selector,
        };
        (Change { owner: raw.owner, rows: vec![Row::Service(row)] }, problems)
    }
}

// === impl Port ===

impl Port {
    fn lower(self) -> ServicePort {
        let Self { port, name, protocol, app_protocol, target_port } = self;
        let spoken = match protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            _ => app_protocol
                .as_deref()
                .map(spoken)
                .filter(|p| *p != Protocol::Unknown)
                .unwrap_or_else(|| spoken(name.split('-').next().unwrap_or_default())),
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

/// The protocol that a word stands for.
fn spoken(word: &str) -> Protocol {
    match word.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => Protocol::Http,
        "http2" | "grpc" | "grpc-web" | "kubernetes.io/h2c" => Protocol::Http2,
        "https" | "tls" | "kubernetes.io/wss" => Protocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => Protocol::Unknown,
    }
}
