//! ServiceEntry: a service that Kubernetes does not know.
//!
//! In: the object. Out: one `Service` row for each host, and one `EndpointSlice` row for each
//! endpoint.
//!
//! **Invariant:** an address that cannot be read never makes a service one of any address.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::rows::{
    Endpoint as EndpointRow, EndpointSlice, IpNet, Protocol, Resolution, Selects, Service,
    ServicePort, SlicePort, TargetPort,
};
use model::{Change, ObjectRef, Problem, Reason, Row};
use serde::Deserialize;

use super::workload_entry::{Address, ENDPOINT_FIELDS, Endpoint};
use super::{decode, nothing};
use crate::export_to::{EXPORT_TO, visibility};
use crate::kind::Kind;
use crate::object::RawObject;
use crate::schema::{OnBad, Type, field, not_yet};
use crate::text;

/// The kind.
pub(crate) struct ServiceEntry;

/// What `resolution` may be.
const RESOLUTIONS: &[&str] = &["DYNAMIC_DNS", "NONE", "STATIC", "DNS_ROUND_ROBIN", "DNS"];

const PORT: Type = Type::Object(&[
    field("number", Type::Integer(1, 65_535)).required(),
    field("protocol", Type::Checked(protocol_word)),
    field("name", Type::Text).required(),
    field("targetPort", Type::Integer(1, 65_535)).or_parent(),
]);

const SPEC: Type = Type::Object(&[
    field("hosts", Type::List(&Type::Checked(host), OnBad::Field)).required(),
    // Without its addresses a service would be one of any.
    field("addresses", Type::List(&Type::Checked(text::block), OnBad::Field)).or_parent(),
    field("ports", Type::List(&PORT, OnBad::Field)),
    // What it decides, TLS between workloads, is not there yet.
    field("location", Type::Enum(&["MESH_EXTERNAL", "MESH_INTERNAL"])).inert(),
    field("resolution", Type::Enum(RESOLUTIONS)).or_parent(),
    field("endpoints", Type::List(&Type::Object(ENDPOINT_FIELDS), OnBad::Field)),
    // Without its selector it would select nothing, or everything.
    field(
        "workloadSelector",
        Type::Object(&[field("labels", Type::Map(text::not_empty, &Type::Text)).or_parent()]),
    )
    .or_parent(),
    field("exportTo", EXPORT_TO).or_parent(),
    not_yet("subjectAltNames"),
]);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    hosts: Vec<Option<String>>,
    addresses: Vec<Option<String>>,
    ports: Vec<Option<Port>>,
    resolution: Option<String>,
    endpoints: Vec<Option<Endpoint>>,
    workload_selector: Option<Selector>,
    export_to: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    number: u16,
    protocol: Option<String>,
    name: Arc<str>,
    target_port: Option<u16>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Selector {
    labels: BTreeMap<Arc<str>, Arc<str>>,
}

fn host(text: &str) -> Result<(), String> {
    if text == "*" {
        return Err("must not be `*`: it would be every host there is; name a domain".to_owned());
    }
    text::host(text)
}

fn protocol_word(word: &str) -> Result<(), String> {
    match text::protocol(word) {
        Some(_) => Ok(()),
        None => Err(format!(
            "{word:?} is no protocol; use HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS, REDIS, MYSQL \
             or UDP"
        )),
    }
}

// === impl ServiceEntry ===

impl Kind for ServiceEntry {
    fn spec(&self) -> Option<&'static Type> {
        Some(&SPEC)
    }

    fn lower(&self, mut raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some(spec) = decode::<Spec>(&mut raw, &SPEC, &mut problems) else {
            return (nothing(raw), problems);
        };
        let Spec { hosts, addresses, ports, resolution, endpoints, workload_selector, export_to } =
            spec;
        let mut lowering = Lowering { owner: &raw.owner, problems: &mut problems };
        let resolution = match resolution.as_deref() {
            Some("STATIC") => Resolution::Endpoints,
            Some("DNS") => Resolution::Dns,
            Some("DNS_ROUND_ROBIN") => Resolution::DnsRoundRobin,
            Some("DYNAMIC_DNS") => {
                lowering.error(
                    "spec.resolution",
                    Reason::NotSupported,
                    "DYNAMIC_DNS is not supported by this version of Heddle; use DNS, or NONE",
                );
                return (nothing(raw), problems);
            }
            _ => Resolution::Original,
        };
        let given =
            addresses.iter().flatten().filter_map(|a| text::parse_block(a)).collect::<Vec<_>>();
        if given.is_empty() && !addresses.is_empty() {
            // Its problems have been told one by one.
            return (nothing(raw), problems);
        }
        let is_one = |block: &IpNet| block.prefix_len() == block.max_prefix_len();
        let (ones, subnets): (Vec<IpNet>, Vec<IpNet>) = given.into_iter().partition(is_one);
        let ports = lowering.ports(ports);
        let selector = workload_selector.map(|s| s.labels).unwrap_or_default();
        let endpoints = lowering.endpoints(endpoints, resolution, !selector.is_empty());
        let selector = if endpoints.is_empty() { selector } else { BTreeMap::new() };
        let hosts =
            lowering.hosts(hosts, resolution, !endpoints.is_empty() || !selector.is_empty());
        if resolution == Resolution::Endpoints && endpoints.is_empty() && selector.is_empty() {
            lowering.warning(
                "spec.endpoints",
                "there are none, so requests are answered with 503; list them, or select workloads",
            );
        }
        let mut rows = Vec::new();
        let by_itself = matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin)
            && endpoints.is_empty()
            && selector.is_empty();
        let shared: Arc<str> = Arc::from(format!("serviceentry/{}", raw.owner.name));
        let slice = |name: &Arc<str>, endpoint: EndpointRow, numbers: &BTreeMap<Arc<str>, u16>| {
            let number = |p: &ServicePort| match (numbers.get(&p.name), &p.target) {
                (Some(own), _) => *own,
                (None, TargetPort::Number(number)) => *number,
                (None, TargetPort::Name(_)) => p.number,
            };
            let of = |p: &ServicePort| SlicePort { name: Arc::clone(&p.name), number: number(p) };
            let slice = EndpointSlice {
                namespace: Arc::clone(&raw.owner.namespace),
                service: Arc::clone(name),
                ports: ports.iter().map(of).collect(),
                endpoints: vec![endpoint],
            };
            Row::EndpointSlice(slice.into())
        };
        for (numbers, endpoint) in endpoints {
            rows.push(slice(&shared, endpoint, &numbers));
        }
        for host in hosts {
            let mut name = Arc::clone(&shared);
            if by_itself {
                name = Arc::from(format!("{shared}/{host}"));
                rows.push(slice(&name, EndpointRow::named(&host), &BTreeMap::new()));
            }
            let service = Service {
                host,
                namespace: Arc::clone(&raw.owner.namespace),
                name,
                created: raw.created,
                addresses: ones.iter().map(IpNet::addr).collect(),
                subnets: subnets.clone(),
                headless: false,
                resolution,
                alias_of: None,
                ports: ports.clone(),
                selector: selector.clone(),
                selects: Selects::All,
                export_to: visibility(export_to.iter().map(String::as_str))
                    .map(|v| v.of(&raw.owner.namespace)),
            };
            rows.push(Row::Service(service.into()));
        }
        (Change { owner: raw.owner, rows }, problems)
    }
}

struct Lowering<'a> {
    owner: &'a Arc<ObjectRef>,
    problems: &'a mut Vec<Problem>,
}

// === impl Lowering ===

impl Lowering<'_> {
    fn error(&mut self, field: &str, reason: Reason, message: impl Into<String>) {
        self.problems.push(Problem::error(self.owner, field, reason, message));
    }

    fn warning(&mut self, field: &str, message: &str) {
        self.problems.push(Problem::warning(self.owner, field, Reason::Required, message));
    }

    fn ports(&mut self, ports: Vec<Option<Port>>) -> Vec<ServicePort> {
        let mut out: Vec<ServicePort> = Vec::new();
        for (index, port) in ports.into_iter().enumerate() {
            let Some(Port { number, protocol: word, name, target_port }) = port else { continue };
            let field = |name: &str| format!("spec.ports[{index}].{name}");
            if out.iter().any(|p| p.number == number) {
                let message = format!("port {number} is declared above; this one is not used");
                self.error(&field("number"), Reason::Duplicate, message);
                continue;
            }
            if out.iter().any(|p| p.name == name) {
                let message = format!("port {name:?} is declared above; this one is not used");
                self.error(&field("name"), Reason::Duplicate, message);
                continue;
            }
            let by_name = || text::protocol(name.split('-').next().unwrap_or_default());
            let spoken = word.as_deref().and_then(text::protocol).or_else(by_name);
            let spoken = spoken.unwrap_or(Protocol::Unknown);
            if spoken != Protocol::Udp {
                let target = TargetPort::Number(target_port.unwrap_or(number));
                out.push(ServicePort { number, name, protocol: spoken, target });
            }
        }
        out
    }

    fn hosts(
        &mut self,
        hosts: Vec<Option<String>>,
        resolution: Resolution,
        has_endpoints: bool,
    ) -> Vec<Arc<str>> {
        let mut out: Vec<Arc<str>> = Vec::new();
        let looked_up = matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        for (index, host) in hosts.into_iter().enumerate() {
            let Some(host) = host else { continue };
            let field = format!("spec.hosts[{index}]");
            let host: Arc<str> = Arc::from(host.to_ascii_lowercase());
            if out.contains(&host) {
                let message = format!("host {host} stands in the list twice; remove one");
                let problem = Problem::warning(self.owner, field, Reason::Duplicate, message);
                self.problems.push(problem);
            } else if looked_up && !has_endpoints && host.starts_with('*') {
                let message = format!(
                    "{host} is no name that DNS could be asked for; list endpoints, or use \
                     resolution NONE"
                );
                self.error(&field, Reason::WrongType, message);
            } else {
                out.push(host);
            }
        }
        out
    }

    /// Endpoints with their own ports.
    fn endpoints(
        &mut self,
        endpoints: Vec<Option<Endpoint>>,
        resolution: Resolution,
        selects: bool,
    ) -> Vec<(BTreeMap<Arc<str>, u16>, EndpointRow)> {
        let mut out: Vec<(BTreeMap<Arc<str>, u16>, EndpointRow)> = Vec::new();
        if resolution == Resolution::Original && (!endpoints.is_empty() || selects) {
            let field = if selects { "spec.workloadSelector" } else { "spec.endpoints" };
            let message = "has no effect with resolution NONE, which connects to whatever address \
                           the client meant; use STATIC or DNS, or remove it";
            self.error(field, Reason::WrongType, message);
            return out;
        }
        if !endpoints.is_empty() && selects {
            let message = "has no effect beside `endpoints`; keep one of the two";
            self.error("spec.workloadSelector", Reason::WrongType, message);
        }
        for (index, endpoint) in endpoints.into_iter().enumerate() {
            let Some(endpoint) = endpoint else { continue };
            let field = format!("spec.endpoints[{index}].address");
            if resolution == Resolution::DnsRoundRobin && !out.is_empty() {
                let message = "DNS_ROUND_ROBIN takes one endpoint; the first is used";
                self.error(&field, Reason::WrongType, message);
                break;
            }
            match endpoint.address() {
                Ok(Address::Name(name)) if resolution == Resolution::Endpoints => {
                    let message =
                        format!("{name:?} is no IP address, as STATIC wants; use resolution DNS");
                    self.error(&field, Reason::WrongType, message);
                }
                Ok(address) => out.push(endpoint.lower(address)),
                Err(message) => self.error(&field, Reason::WrongType, message),
            }
        }
        out
    }
}
