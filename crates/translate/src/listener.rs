//! Listeners.
//!
//! **Invariant:** nothing here changes with rules or services: a changed listener cuts
//! connections.

use std::sync::Arc;

use envoy_api::envoy::config::core::v3::{
    CidrRange, DataSource, SubstitutionFormatString, TrafficDirection, address,
    data_source::Specifier, substitution_format_string::Format,
};
use envoy_api::envoy::config::listener::v3::{
    AdditionalAddress, Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter,
    listener_filter,
};
use envoy_api::envoy::extensions::filters::common::set_filter_state::v3::{
    FilterStateValue,
    filter_state_value::{Key, SharedWithUpstream, Value},
};
use envoy_api::envoy::extensions::filters::http::router::v3::Router;
use envoy_api::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_api::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_api::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_api::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
    http_connection_manager::{RouteSpecifier, UpgradeConfig},
    http_filter,
};
use envoy_api::envoy::extensions::filters::network::set_filter_state::v3::Config as SetFilterState;
use envoy_api::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy,
    tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
};
use envoy_api::envoy::r#type::v3::{HashPolicy, hash_policy, hash_policy::SourceIp};
use envoy_api::{Any, config_source};
use model::ir::{self, Serves};
use model::rows::IpNet;
use prost::{Message, Name};
use prost_types::Duration;

use crate::access_log::Logs;
use crate::endpoints::socket;
use crate::inbound::inbound;
use crate::tls;

/// What HTTP without TLS looks like to `http_inspector`.
const HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// Spell a listener.
pub(crate) fn listener(listener: &ir::Listener) -> Listener {
    let ir::Listener { name, bind, port, serves, access_log_file, origins: _ } = listener;
    let logs = Logs::file(access_log_file.as_deref());
    let (address, additional) = match bind {
        Some(address) => (address.to_string(), Vec::new()),
        None => ("0.0.0.0".to_owned(), vec![any_ipv6(*port)]),
    };
    let common = Listener {
        name: name.to_string(),
        address: Some(socket(&address, *port)),
        additional_addresses: additional,
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Default::default()
    };
    match serves {
        Serves::Edge { route_config } => {
            let manager = HttpConnectionManager {
                // The edge: what clients say about themselves in x-forwarded-for is appended to.
                use_remote_address: Some(true),
                ..manager(name, by_rds(route_config), &logs)
            };
            Listener { filter_chains: vec![http_chain(&manager)], ..common }
        }
        Serves::Captured { otherwise } => Listener {
            use_original_dst: Some(true),
            listener_filters: vec![original_dst()],
            default_filter_chain: Some(tcp_chain(otherwise, &logs)),
            ..common
        },
        Serves::Outbound { opened, route_config, chains, otherwise, sticky, sniffed } => {
            let tls = chains.iter().any(|chain| !chain.server_names.is_empty());
            // Envoy looks no further once a chain fits by what carries the protocol. Only where TLS
            // is looked into may a TLS client look like one of HTTP.
            let plain = if tls { "raw_buffer" } else { "" };
            let http = route_config.as_ref().map(|config| FilterChain {
                filter_chain_match: Some(FilterChainMatch {
                    transport_protocol: plain.to_owned(),
                    ..looks_like_http()
                }),
                ..http_chain(&manager(name, by_rds(config), &logs))
            });
            let spelled = chains.iter().map(|chain| {
                let beside_http = route_config.is_some() && chain.destinations.is_empty();
                outbound_chain(chain, if beside_http { plain } else { "" }, &logs)
            });
            let filters = [tls.then(tls_inspector), http.is_some().then(http_inspector)];
            Listener {
                bind_to_port: (!opened).then_some(false),
                listener_filters: filters.into_iter().flatten().collect(),
                // A client may open a connection long before it has something to ask.
                listener_filters_timeout: (tls || http.is_some()).then(Duration::default),
                filter_chains: http.into_iter().chain(spelled).collect(),
                default_filter_chain: Some(split_chain(name, otherwise, *sticky, *sniffed, &logs)),
                ..common
            }
        }
        Serves::Inbound { captured, trust_domain, ports, others } => Listener {
            traffic_direction: TrafficDirection::Inbound.into(),
            ..inbound(common, *captured, trust_domain, ports, others.as_ref(), &logs)
        },
    }
}

pub(crate) fn original_dst() -> ListenerFilter {
    listener_filter("envoy.filters.listener.original_dst", &OriginalDst::default())
}

pub(crate) fn http_inspector() -> ListenerFilter {
    listener_filter("envoy.filters.listener.http_inspector", &HttpInspector::default())
}

pub(crate) fn tls_inspector() -> ListenerFilter {
    listener_filter("envoy.filters.listener.tls_inspector", &TlsInspector::default())
}

/// HTTP without TLS.
pub(crate) fn looks_like_http() -> FilterChainMatch {
    let application_protocols = HTTP.map(str::to_owned).into();
    FilterChainMatch { application_protocols, ..Default::default() }
}

/// A chain; one that is not for TLS is for connections by this transport.
fn outbound_chain(chain: &ir::Chain, plain: &str, logs: &Logs) -> FilterChain {
    let ir::Chain { server_names, destinations, clients, shares, sticky, sniffed, origins: _ } =
        chain;
    let block = |block: &IpNet| CidrRange {
        address_prefix: block.network().to_string(),
        prefix_len: Some(u32::from(block.prefix_len())),
    };
    let name = server_names.first().or(shares.first().map(|(cluster, _)| cluster));
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            prefix_ranges: destinations.iter().map(block).collect(),
            source_prefix_ranges: clients.iter().map(block).collect(),
            server_names: server_names.iter().map(ToString::to_string).collect(),
            transport_protocol: match server_names.is_empty() {
                true => plain.to_owned(),
                false => "tls".to_owned(),
            },
            ..Default::default()
        }),
        ..split_chain(name.map_or("", |name| name), shares, *sticky, *sniffed, logs)
    }
}

/// Routes come by RDS.
fn by_rds(route_config: &str) -> RouteSpecifier {
    RouteSpecifier::Rds(Rds {
        config_source: Some(config_source::ads()),
        route_config_name: route_config.to_owned(),
    })
}

pub(crate) fn manager(name: &str, routes: RouteSpecifier, logs: &Logs) -> HttpConnectionManager {
    logs.http(HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(routes),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(Any::pack(&Router::default()))),
            ..Default::default()
        }],
        normalize_path: Some(true),
        // Long polls and streams are the rule's business, by `timeout`.
        stream_idle_timeout: Some(Duration::default()),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    })
}

pub(crate) fn http_chain(manager: &HttpConnectionManager) -> FilterChain {
    chain("envoy.filters.network.http_connection_manager", manager)
}

pub(crate) fn tcp_chain(cluster: &Arc<str>, logs: &Logs) -> FilterChain {
    split_chain(cluster, &[(Arc::clone(cluster), 1)], false, false, logs)
}

fn split_chain(
    name: &str,
    clusters: &[(Arc<str>, u32)],
    sticky: bool,
    sniffed: bool,
    logs: &Logs,
) -> FilterChain {
    let weighted = |(name, weight): &(Arc<str>, u32)| ClusterWeight {
        name: name.to_string(),
        weight: *weight,
        ..Default::default()
    };
    let specifier = match clusters {
        [(only, _)] => ClusterSpecifier::Cluster(only.to_string()),
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several.iter().map(weighted).collect(),
        }),
    };
    let proxy = logs.tcp(TcpProxy {
        stat_prefix: name.to_owned(),
        cluster_specifier: Some(specifier),
        hash_policy: sticky.then(by_client).into_iter().collect(),
        ..Default::default()
    });
    let chain = chain("envoy.filters.network.tcp_proxy", &proxy);
    if !sniffed {
        return chain;
    }
    // What the cluster would ask for is HTTP.
    let asked = FilterStateValue {
        key: Some(Key::ObjectKey("envoy.network.application_protocols".to_owned())),
        value: Some(Value::FormatString(SubstitutionFormatString {
            format: Some(Format::TextFormatSource(DataSource {
                specifier: Some(Specifier::InlineString(tls::MESH_BYTES[1].to_owned())),
                ..Default::default()
            })),
            ..Default::default()
        })),
        shared_with_upstream: SharedWithUpstream::Once.into(),
        ..Default::default()
    };
    let ask = SetFilterState { on_new_connection: vec![asked], ..Default::default() };
    let mut filters = vec![filter("envoy.filters.network.set_filter_state", &ask)];
    filters.extend(chain.filters);
    FilterChain { filters, ..chain }
}

fn by_client() -> HashPolicy {
    HashPolicy { policy_specifier: Some(hash_policy::PolicySpecifier::SourceIp(SourceIp {})) }
}

fn chain<M: Message + Name>(filter: &str, config: &M) -> FilterChain {
    FilterChain { filters: vec![self::filter(filter, config)], ..Default::default() }
}

fn filter<M: Message + Name>(name: &str, config: &M) -> Filter {
    Filter {
        name: name.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(Any::pack(config))),
    }
}

fn listener_filter<M: Message + Name>(name: &str, config: &M) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(Any::pack(config))),
        ..Default::default()
    }
}

fn any_ipv6(port: u16) -> AdditionalAddress {
    let mut address = socket("::", port);
    if let Some(address::Address::SocketAddress(socket)) = &mut address.address {
        // IPv4 arrives at the other address already.
        socket.ipv4_compat = false;
    }
    AdditionalAddress { address: Some(address), ..Default::default() }
}
