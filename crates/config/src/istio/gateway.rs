//! Gateway: ports of gateway proxies.
//!
//! In: the object. Out: one `Gateway` row with the servers that can be served.
//!
//! **Invariant:** a server that asks for TLS never becomes one without.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use model::rows::{Gateway as GatewayRow, HostPattern, HostScope, Server};
use model::{Change, Problem, Reason, Row};
use serde::Deserialize;

use super::{decode, later, nothing};
use crate::kind::Kind;
use crate::object::RawObject;
use crate::schema::{OnBad, Type, field, not_yet};
use crate::text;

/// The kind.
pub(crate) struct Gateway;

const SERVER: Type = Type::Object(&[
    field(
        "port",
        Type::Strict(&[
            field("number", Type::Integer(1, 65_535)).required(),
            field("protocol", Type::Text).required(),
            field("name", Type::Text).inert(),
            // Deprecated in the API, and never had an effect.
            field("targetPort", Type::Any).inert(),
        ]),
    )
    .required(),
    field("bind", Type::Checked(text::address)).or_parent(),
    field("hosts", Type::List(&Type::Checked(text::scoped_host), OnBad::Field)).required(),
    field("name", Type::Text).inert(),
    // Served without its TLS settings, a server would be more open than was written.
    not_yet("tls").of(later::SERVER_TLS).or_parent(),
    not_yet("defaultEndpoint").of(Type::Text).or_parent(),
]);

const SPEC: Type = Type::Object(&[
    // Without its selector a gateway would be opened by every gateway proxy.
    field("selector", Type::Map(text::not_empty, &Type::Text)).or_parent(),
    field("servers", Type::List(&SERVER, OnBad::Field)).required(),
]);

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    selector: BTreeMap<String, String>,
    servers: Vec<Option<GatewayServer>>,
}

#[derive(Deserialize)]
struct GatewayServer {
    port: Port,
    bind: Option<String>,
    #[serde(default)]
    hosts: Vec<Option<String>>,
}

#[derive(Deserialize)]
struct Port {
    number: u16,
    protocol: String,
}

// === impl Gateway ===

impl Kind for Gateway {
    fn spec(&self) -> Option<&'static Type> {
        Some(&SPEC)
    }

    fn lower(&self, mut raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some(spec) = decode::<Spec>(&mut raw, &SPEC, &mut problems) else {
            return (nothing(raw), problems);
        };
        let mut servers = Vec::new();
        for (index, server) in spec.servers.into_iter().enumerate() {
            let Some(server) = server else { continue };
            let field = format!("spec.servers[{index}]");
            match server.lower(field, &raw.owner.namespace) {
                Ok(server) => servers.push(server),
                Err((field, reason, message)) => {
                    problems.push(Problem::error(&raw.owner, field, reason, message));
                }
            }
        }
        let row = GatewayRow {
            namespace: Arc::clone(&raw.owner.namespace),
            name: Arc::clone(&raw.owner.name),
            created: raw.created,
            selector: spec
                .selector
                .into_iter()
                .map(|(k, v)| (Arc::from(k), Arc::from(v)))
                .collect(),
            servers,
        };
        (Change { owner: raw.owner, rows: vec![Row::Gateway(row.into())] }, problems)
    }
}

// === impl GatewayServer ===

impl GatewayServer {
    fn lower(
        self,
        field: String,
        namespace: &Arc<str>,
    ) -> Result<Server, (String, Reason, String)> {
        let Self { port: Port { number, protocol }, bind, hosts } = self;
        match protocol.to_ascii_uppercase().as_str() {
            "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => {}
            "HTTPS" | "TLS" | "TCP" | "MONGO" => {
                let message = format!(
                    "protocol {protocol} is not supported by this version of Heddle, so the server \
                     is not opened"
                );
                return Err((format!("{field}.port.protocol"), Reason::NotSupported, message));
            }
            _ => {
                let message = format!(
                    "must be HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP or MONGO, but is \
                     {protocol:?}"
                );
                return Err((format!("{field}.port.protocol"), Reason::WrongType, message));
            }
        }
        let hosts: Vec<HostPattern> =
            hosts.into_iter().flatten().map(|h| pattern(&h, namespace)).collect();
        if hosts.is_empty() {
            let message = "must name at least one host; `*` accepts every host".to_owned();
            return Err((format!("{field}.hosts"), Reason::Required, message));
        }
        Ok(Server {
            field: Arc::from(field),
            port: number,
            bind: bind.and_then(|b| b.parse().ok()).filter(|b: &IpAddr| !b.is_unspecified()),
            hosts,
        })
    }
}

/// `host`, `*/host`, `./host` or `namespace/host`. Hosts here are never short names.
fn pattern(text: &str, namespace: &Arc<str>) -> HostPattern {
    let (scope, host) = match text.split_once('/') {
        None | Some(("*", _)) => (HostScope::Any, text.rsplit('/').next().unwrap_or(text)),
        Some((".", host)) => (HostScope::Namespace(Arc::clone(namespace)), host),
        Some((other, host)) => (HostScope::Namespace(Arc::from(other)), host),
    };
    HostPattern { scope, host: Arc::from(host.to_ascii_lowercase()) }
}
