//! What comes in to a workload: the chains of its inbound listener.
//!
//! | a port takes | a connection | goes to |
//! |---|---|---|
//! | mutual TLS | by TLS, asking for a protocol of the mesh | the workload, its client proved |
//! | mutual TLS alone | by TLS, whatever it asks for | the same |
//! | both | by other TLS | the workload, as it is |
//! | plain text | otherwise | the workload, as it is |
//! | neither | any | nowhere |
//!
//! Envoy looks no further once a chain fits by port or by what carries the protocol, so each of
//! these has chains for all that may come.
//!
//! **Invariant:** a connection that a policy refuses reaches no chain that leads to the workload.

use std::sync::Arc;

use envoy_api::envoy::config::listener::v3::{
    FilterChain, FilterChainMatch, Listener, ListenerFilter, ListenerFilterChainMatchPredicate,
    listener_filter_chain_match_predicate::{MatchSet, Rule},
};
use envoy_api::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
    route_action::ClusterSpecifier, route_match::PathSpecifier,
};
use envoy_api::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager,
    http_connection_manager::{
        ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails,
    },
};
use envoy_api::envoy::r#type::v3::Int32Range;
use model::ir::{InboundPort, OtherPorts, Takes};
use model::names;
use model::rows::Protocol;
use prost_types::Duration;

use crate::access_log::{self, Logs};
use crate::listener::{
    http_chain, http_inspector, looks_like_http, manager, original_dst, tcp_chain, tls_inspector,
};
use crate::tls::{self, MESH_BYTES, MESH_HTTP};

/// Port that connections to a workload come to, and that no workload may have itself.
const CAPTURE_PORT: u16 = 15006;

/// A client that has said nothing for so long is taken for one that waits for the server.
const SERVER_FIRST: Duration = Duration { seconds: 5, nanos: 0 };

/// Where connections to a port go, and how.
struct Target<'a> {
    /// None = every port that has no target of its own.
    port: Option<u16>,
    cluster: &'a Arc<str>,
    trust_domain: &'a str,
    logs: &'a Logs,
}

/// Complete an inbound listener.
pub(crate) fn inbound(
    common: Listener,
    captured: bool,
    trust_domain: &str,
    ports: &[InboundPort],
    others: Option<&OtherPorts>,
    logs: &Logs,
) -> Listener {
    let target = |port, cluster| Target { port, cluster, trust_domain, logs };
    let mut chains: Vec<FilterChain> = ports
        .iter()
        .flat_map(|p| target(Some(p.port), &p.cluster).chains(p.protocol, p.takes))
        .collect();
    let mut takes: Vec<Takes> = ports.iter().map(|port| port.takes).collect();
    let mut otherwise = None;
    if let Some(others) = others {
        for (port, takes) in &others.ports {
            chains.extend(target(Some(*port), &others.cluster).chains(Protocol::Tcp, *takes));
        }
        takes.extend(others.ports.iter().map(|(_, takes)| *takes).chain([others.takes]));
        let all = target(None, &others.cluster);
        if others.takes.mutual_tls {
            chains.extend(all.mutual_tls(Protocol::Tcp, others.takes));
        }
        otherwise = others.takes.plain.then(|| all.heard(others.takes, |target| target.tcp()));
    }
    let mut filters = Vec::new();
    if captured {
        filters.push(original_dst());
        // What is meant for the proxy itself would come back for ever.
        let nowhere = Arc::from(names::BLACK_HOLE);
        chains.push(target(Some(CAPTURE_PORT), &nowhere).tcp());
    }
    let inspects = takes.iter().any(|takes| takes.mutual_tls);
    if inspects {
        let plain = ports.iter().map(|port| (port.port, port.takes));
        let plain = plain.chain(others.iter().flat_map(|others| others.ports.iter().copied()));
        let plain: Vec<u16> = plain.filter(|(_, t)| !t.mutual_tls).map(|(port, _)| port).collect();
        let filter_disabled = (!plain.is_empty()).then(|| to_ports(&plain));
        filters.push(ListenerFilter { filter_disabled, ..tls_inspector() });
    }
    let sniffed = |p: &&InboundPort| p.protocol == Protocol::Unknown && p.takes.plain;
    let sniffed: Vec<u16> = ports.iter().filter(sniffed).map(|port| port.port).collect();
    if !sniffed.is_empty() {
        let others = Rule::NotMatch(Box::new(to_ports(&sniffed)));
        let filter_disabled = Some(predicate(others));
        filters.push(ListenerFilter { filter_disabled, ..http_inspector() });
    }
    Listener {
        // Without TLS a client may open a connection long before it has something to ask.
        listener_filters_timeout: match inspects {
            true => Some(SERVER_FIRST),
            false => (!sniffed.is_empty()).then(Duration::default),
        },
        continue_on_listener_filters_timeout: inspects,
        listener_filters: filters,
        filter_chains: chains,
        default_filter_chain: otherwise,
        access_log: inspects.then(access_log::ended).into_iter().collect(),
        ..common
    }
}

// === impl Target ===

impl Target<'_> {
    /// What becomes of connections to a port.
    fn chains(&self, protocol: Protocol, takes: Takes) -> Vec<FilterChain> {
        let mut chains = Vec::new();
        if takes.mutual_tls {
            chains.extend(self.mutual_tls(protocol, takes));
        }
        if takes.plain {
            chains.extend(self.heard(takes, |target| target.plain(protocol)));
        }
        if chains.is_empty() {
            chains.push(Target { cluster: &Arc::from(names::BLACK_HOLE), ..*self }.tcp());
        }
        chains
    }

    /// What comes in plain text to a port that takes mutual TLS as well: the agent is told.
    fn heard<T>(&self, takes: Takes, chains: impl Fn(&Target<'_>) -> T) -> T {
        match takes.mutual_tls {
            true => chains(&Target { logs: &self.logs.and_agent(), ..*self }),
            false => chains(self),
        }
    }

    fn plain(&self, protocol: Protocol) -> Vec<FilterChain> {
        match protocol {
            Protocol::Http | Protocol::Http2 => vec![self.matching(self.any(), self.http(false))],
            Protocol::Unknown => {
                let http = FilterChainMatch {
                    application_protocols: looks_like_http().application_protocols,
                    ..self.any()
                };
                vec![self.matching(http, self.http(false)), self.tcp()]
            }
            Protocol::Tcp | Protocol::Tls | Protocol::Udp => vec![self.tcp()],
        }
    }

    fn mutual_tls(&self, protocol: Protocol, takes: Takes) -> Vec<FilterChain> {
        let by_tls = |asking: &[&str]| FilterChainMatch {
            transport_protocol: "tls".to_owned(),
            application_protocols: asking.iter().map(ToString::to_string).collect(),
            ..self.any()
        };
        let proved = |chain: FilterChain, http| FilterChain {
            transport_socket: Some(tls::downstream(self.trust_domain, http)),
            ..chain
        };
        let http = |asking: &[&str]| self.matching(by_tls(asking), proved(self.http(true), true));
        let bytes = |asking: &[&str]| self.matching(by_tls(asking), proved(self.tcp(), false));
        let all: Vec<&str> = MESH_HTTP.into_iter().chain(MESH_BYTES).collect();
        // The same whatever else is taken: a policy that changes cuts none of these connections.
        let mut chains = match protocol {
            Protocol::Http | Protocol::Http2 => vec![http(&all)],
            Protocol::Unknown => vec![http(&MESH_HTTP), bytes(&MESH_BYTES)],
            Protocol::Tcp | Protocol::Tls | Protocol::Udp => vec![bytes(&all)],
        };
        // Other TLS: the workload's own, or a client that does not say what it means.
        chains.push(match protocol {
            _ if takes.plain => self.matching(by_tls(&[]), self.tcp()),
            Protocol::Http | Protocol::Http2 => http(&[]),
            _ => bytes(&[]),
        });
        chains
    }

    /// Every connection.
    fn any(&self) -> FilterChainMatch {
        FilterChainMatch { destination_port: self.port.map(u32::from), ..Default::default() }
    }

    fn matching(&self, condition: FilterChainMatch, chain: FilterChain) -> FilterChain {
        FilterChain { filter_chain_match: Some(condition), ..chain }
    }

    fn tcp(&self) -> FilterChain {
        let condition = self.port.map(|_| self.any());
        FilterChain { filter_chain_match: condition, ..tcp_chain(self.cluster, self.logs) }
    }

    fn http(&self, proved: bool) -> FilterChain {
        let routes = by_one_cluster(self.cluster);
        http_chain(&HttpConnectionManager {
            // The proxy of the client has said who it is for.
            normalize_path: None,
            // Who it is, says this proxy: what a client says of itself is taken away.
            forward_client_cert_details: match proved {
                true => ForwardClientCertDetails::SanitizeSet.into(),
                false => ForwardClientCertDetails::Sanitize.into(),
            },
            set_current_client_cert_details: proved
                .then(|| SetCurrentClientCertDetails { uri: true, ..Default::default() }),
            ..manager(self.cluster, routes, self.logs)
        })
    }
}

/// Connections to one of these ports.
fn to_ports(ports: &[u16]) -> ListenerFilterChainMatchPredicate {
    let range = |port: &u16| {
        let start = i32::from(*port);
        predicate(Rule::DestinationPortRange(Int32Range { start, end: start + 1 }))
    };
    match ports {
        [only] => range(only),
        several => {
            predicate(Rule::OrMatch(MatchSet { rules: several.iter().map(range).collect() }))
        }
    }
}

fn predicate(rule: Rule) -> ListenerFilterChainMatchPredicate {
    ListenerFilterChainMatchPredicate { rule: Some(rule) }
}

/// Everything goes to a cluster.
fn by_one_cluster(cluster: &str) -> RouteSpecifier {
    RouteSpecifier::RouteConfig(RouteConfiguration {
        name: cluster.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: cluster.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                name: "default".to_owned(),
                r#match: Some(RouteMatch {
                    path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                    ..Default::default()
                }),
                action: Some(Action::Route(RouteAction {
                    cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
                    timeout: Some(Duration::default()),
                    ..Default::default()
                })),
                ..Default::default()
            }],
            ..Default::default()
        }],
        validate_clusters: Some(false),
        ..Default::default()
    })
}
