//! Sidecar: what the sidecars of some workloads may reach.
//!
//! In: the object. Out: one `SidecarScope` row.
//!
//! **Invariant:** what cannot be read never widens what is reached.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use model::rows::{
    EgressListener, HostPattern, HostScope, IngressListener, IngressTarget, OutboundPolicy,
    Protocol, SidecarScope,
};
use model::{Change, ObjectRef, Problem, Reason, Row};
use serde::Deserialize;

use super::connection_pool::{CONNECTION_POOL, Pool};
use super::{decode, later, nothing};
use crate::kind::Kind;
use crate::object::RawObject;
use crate::schema::{Field, OnBad, Type, field, not_yet};
use crate::text;

/// The kind.
pub(crate) struct Sidecar;

/// What becomes of requests to hosts that nothing declares.
pub(crate) const OUTBOUND_POLICY: &[Field] = &[
    field("mode", Type::Enum(&["ALLOW_ANY", "REGISTRY_ONLY"])).or_parent(),
    not_yet("egressProxy").of(later::DESTINATION),
];

const CAPTURE_MODES: &[&str] = &["DEFAULT", "IPTABLES", "NONE"];

const PORT: Type = Type::Object(&[
    field("number", Type::Integer(1, 65_535)).required(),
    field("protocol", Type::Text),
    field("name", Type::Text).inert(),
    // Deprecated in the API, and never had an effect.
    field("targetPort", Type::Any).inert(),
]);

/// The number alone decides: what is spoken is what the services say.
const EGRESS_PORT: Type = Type::Object(&[
    field("number", Type::Integer(1, 65_535)).required(),
    field("protocol", Type::Any).inert(),
    field("name", Type::Text).inert(),
    // Deprecated in the API, and never had an effect.
    field("targetPort", Type::Any).inert(),
]);

const EGRESS: Type = Type::Object(&[
    field("hosts", Type::List(&Type::Text, OnBad::Field)).required(),
    // Without its port a listener would be for all of them.
    field("port", EGRESS_PORT).or_parent(),
    field("bind", Type::Checked(text::address)).or_parent(),
    field("captureMode", Type::Enum(CAPTURE_MODES)).or_parent(),
]);

const INGRESS: Type = Type::Object(&[
    field("port", PORT).required(),
    field("bind", Type::Checked(text::address)).or_parent(),
    field("captureMode", Type::Enum(CAPTURE_MODES)).or_parent(),
    field("defaultEndpoint", Type::Checked(default_endpoint)).or_parent(),
    // Without it what was meant to come in by TLS would come in without.
    not_yet("tls").or_parent(),
    field("connectionPool", CONNECTION_POOL),
]);

const SPEC: Type = Type::Object(&[
    // Without its selector it would apply to the whole namespace.
    field(
        "workloadSelector",
        Type::Object(&[
            field("labels", Type::Map(text::not_empty, &Type::Text)).or_parent(),
            field("matchLabels", Type::Map(text::not_empty, &Type::Text)).or_parent(),
        ]),
    )
    .or_parent(),
    field("ingress", Type::List(&INGRESS, OnBad::Field)),
    field("egress", Type::List(&EGRESS, OnBad::Field)),
    field("inboundConnectionPool", CONNECTION_POOL),
    field("outboundTrafficPolicy", Type::Object(OUTBOUND_POLICY)),
]);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    workload_selector: Option<Selector>,
    ingress: Vec<Option<Ingress>>,
    egress: Option<Vec<Option<Egress>>>,
    inbound_connection_pool: Option<Pool>,
    outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    labels: BTreeMap<Arc<str>, Arc<str>>,
    match_labels: BTreeMap<Arc<str>, Arc<str>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Egress {
    hosts: Vec<Option<String>>,
    port: Option<Port>,
    bind: Option<IpAddr>,
    capture_mode: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    port: Port,
    bind: Option<IpAddr>,
    capture_mode: Option<String>,
    default_endpoint: Option<String>,
    connection_pool: Option<Pool>,
}

#[derive(Deserialize)]
struct Port {
    number: u16,
    protocol: Option<String>,
}

/// The decoded form of `OUTBOUND_POLICY`.
#[derive(Deserialize)]
pub(crate) struct OutboundTrafficPolicy {
    mode: Option<String>,
}

/// Whether a host is let through or taken out again.
enum Entry {
    In(HostPattern),
    Out(HostPattern),
    /// `~/*`: nothing.
    Nothing,
}

// === impl Sidecar ===

impl Kind for Sidecar {
    fn spec(&self) -> Option<&'static Type> {
        Some(&SPEC)
    }

    fn lower(&self, mut raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some(spec) = decode::<Spec>(&mut raw, &SPEC, &mut problems) else {
            return (nothing(raw), problems);
        };
        let Spec {
            workload_selector,
            ingress,
            egress,
            inbound_connection_pool,
            outbound_traffic_policy,
        } = spec;
        let Selector { mut labels, match_labels } = workload_selector.unwrap_or_default();
        labels.extend(match_labels);
        let mut lowering = Lowering { owner: &raw.owner, problems: &mut problems };
        let egress = egress.map(|listeners| {
            let some = (0..).zip(listeners).filter_map(|(i, listener)| Some((i, listener?)));
            some.map(|(i, listener)| lowering.egress(i, listener)).collect()
        });
        let ingress = lowering.ingress(ingress);
        let row = SidecarScope {
            namespace: Arc::clone(&raw.owner.namespace),
            created: raw.created,
            selector: labels,
            egress,
            outbound: outbound_traffic_policy.and_then(|p| p.lower()),
            ingress,
            inbound_pool: inbound_connection_pool.map(Pool::lower),
        };
        (Change { owner: raw.owner, rows: vec![Row::SidecarScope(row.into())] }, problems)
    }
}

struct Lowering<'a> {
    owner: &'a Arc<ObjectRef>,
    problems: &'a mut Vec<Problem>,
}

// === impl Lowering ===

impl Lowering<'_> {
    fn error(&mut self, field: String, reason: Reason, message: impl Into<String>) {
        self.problems.push(Problem::error(self.owner, field, reason, message));
    }

    fn egress(&mut self, index: usize, listener: Egress) -> EgressListener {
        let Egress { hosts, port, bind, capture_mode } = listener;
        let opened = capture_mode.as_deref() == Some("NONE");
        if port.is_none() && (bind.is_some() || opened) {
            let field = format!("spec.egress[{index}].port");
            let message = "is required beside `bind` or captureMode NONE; name the port to open";
            self.error(field, Reason::Required, message);
        }
        let mut out = EgressListener {
            port: port.map(|p| p.number),
            bind: bind.or(opened.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST))),
            ..EgressListener::default()
        };
        for (j, host) in hosts.into_iter().enumerate() {
            let Some(host) = host else { continue };
            match entry(&host, &self.owner.namespace) {
                Ok(Entry::In(pattern)) => out.hosts.push(pattern),
                Ok(Entry::Out(pattern)) => out.excluded.push(pattern),
                Ok(Entry::Nothing) => {}
                Err(why) => {
                    let field = format!("spec.egress[{index}].hosts[{j}]");
                    self.error(field, Reason::WrongType, why);
                    // One that takes something out must not be lost.
                    if host.starts_with('~') {
                        out.hosts.clear();
                        return out;
                    }
                }
            }
        }
        out
    }

    fn ingress(&mut self, listeners: Vec<Option<Ingress>>) -> Vec<IngressListener> {
        let mut out: Vec<IngressListener> = Vec::new();
        for (index, listener) in listeners.into_iter().enumerate() {
            let Some(listener) = listener else { continue };
            let Ingress { port, bind, capture_mode, default_endpoint, connection_pool } = listener;
            let field = format!("spec.ingress[{index}]");
            let Port { number, protocol: word } = port;
            if out.iter().any(|known| known.port == number) {
                let message = format!("port {number} is listed above; this one is not used");
                self.error(format!("{field}.port.number"), Reason::Duplicate, message);
                continue;
            }
            let spoken = word.as_deref().map(text::protocol);
            if spoken == Some(None) {
                let word = word.unwrap_or_default();
                let message = format!("{word:?} is no protocol; use HTTP, HTTP2, GRPC, TCP or TLS");
                self.error(format!("{field}.port.protocol"), Reason::WrongType, message);
                continue;
            }
            out.push(IngressListener {
                field: Arc::from(field),
                port: number,
                protocol: spoken.flatten().unwrap_or(Protocol::Unknown),
                bind,
                opened: capture_mode.as_deref() == Some("NONE"),
                to: default_endpoint.map_or(IngressTarget::Original, |text| target(&text, number)),
                pool: connection_pool.map(Pool::lower),
            });
        }
        out
    }
}

fn default_endpoint(text: &str) -> Result<(), String> {
    let local = |socket: SocketAddr| socket.ip().is_loopback() || socket.ip().is_unspecified();
    let good = match text.strip_prefix("unix://") {
        Some(path) => path.starts_with('/') && path.len() < 108,
        None => text.parse().is_ok_and(|socket: SocketAddr| local(socket) && socket.port() > 0),
    };
    if good {
        return Ok(());
    }
    Err(format!(
        "must be like 127.0.0.1:8080, [::1]:8080, 0.0.0.0:8080 (the workload's own address) or \
         unix:///path, but is {text:?}"
    ))
}

/// What a text of `default_endpoint` means.
fn target(text: &str, port: u16) -> IngressTarget {
    if let Some(path) = text.strip_prefix("unix://") {
        return IngressTarget::Socket(Arc::from(path));
    }
    match text.parse::<SocketAddr>() {
        Ok(socket) if !socket.ip().is_unspecified() => {
            IngressTarget::Address(socket.ip(), socket.port())
        }
        Ok(socket) if socket.port() != port => IngressTarget::Port(socket.port()),
        _ => IngressTarget::Original,
    }
}

/// `namespace/host`, where the namespace is a name, `.`, `*` or `~`, and `~name` takes out.
fn entry(text: &str, own: &Arc<str>) -> Result<Entry, String> {
    let Some((namespace, host)) = text.split_once('/') else {
        return Err(format!("must be like namespace/host, but is {text:?}; `*/{text}` is any"));
    };
    if namespace == "~" {
        return match host {
            "*" => Ok(Entry::Nothing),
            _ => Err(format!("`~` is for no host at all and written `~/*`, not {text:?}")),
        };
    }
    text::host(host)?;
    let (out, namespace) = match namespace.strip_prefix('~') {
        Some(rest) => (true, rest),
        None => (false, namespace),
    };
    let scope = match namespace {
        "*" => HostScope::Any,
        "." => HostScope::Namespace(Arc::clone(own)),
        name => {
            text::dns_name(name)?;
            HostScope::Namespace(Arc::from(name))
        }
    };
    let pattern = HostPattern { scope, host: Arc::from(host.to_ascii_lowercase()) };
    Ok(if out { Entry::Out(pattern) } else { Entry::In(pattern) })
}

// === impl OutboundTrafficPolicy ===

impl OutboundTrafficPolicy {
    /// The policy; none where the mode is not said.
    pub(crate) fn lower(&self) -> Option<OutboundPolicy> {
        match self.mode.as_deref()? {
            "REGISTRY_ONLY" => Some(OutboundPolicy::RegistryOnly),
            _ => Some(OutboundPolicy::AllowAny),
        }
    }
}
