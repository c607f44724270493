//! Listeners.
//!
//! **Invariant:** nothing here changes with rules or services: a changed listener cuts
//! connections.

use std::sync::Arc;

use envoy_api::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_api::envoy::config::core::v3::{TrafficDirection, address};
use envoy_api::envoy::config::listener::v3::{
    AdditionalAddress, Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter,
    listener_filter,
};
use envoy_api::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_api::envoy::extensions::filters::http::router::v3::Router;
use envoy_api::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_api::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_api::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
    http_connection_manager::{RouteSpecifier, UpgradeConfig},
    http_filter,
};
use envoy_api::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy,
    tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
};
use envoy_api::{Any, config_source};
use model::ir::{self, Serves};
use prost::{Message, Name};
use prost_types::Duration;

use crate::endpoints::socket;

/// What HTTP without TLS looks like to `http_inspector`.
const HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// Spell a listener.
pub(crate) fn listener(listener: &ir::Listener) -> Listener {
    let ir::Listener { name, bind, port, serves, access_log_file, origins: _ } = listener;
    let access_log: Vec<AccessLog> = access_log_file.iter().map(|path| file_log(path)).collect();
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
                ..manager(name, route_config, access_log)
            };
            Listener { filter_chains: vec![http_chain(&manager)], ..common }
        }
        Serves::Captured { otherwise } => Listener {
            use_original_dst: Some(true),
            listener_filters: vec![listener_filter(
                "envoy.filters.listener.original_dst",
                &OriginalDst::default(),
            )],
            default_filter_chain: Some(tcp_chain(otherwise, access_log)),
            ..common
        },
        Serves::Tcp { clusters } => Listener {
            bind_to_port: Some(false),
            default_filter_chain: Some(split_chain(name, clusters, access_log)),
            ..common
        },
        Serves::Outbound { route_config, otherwise } => {
            let matched = FilterChainMatch {
                transport_protocol: "raw_buffer".to_owned(),
                application_protocols: HTTP.map(str::to_owned).into(),
                ..Default::default()
            };
            let http = FilterChain {
                filter_chain_match: Some(matched),
                ..http_chain(&manager(name, route_config, access_log.clone()))
            };
            Listener {
                bind_to_port: Some(false),
                listener_filters: vec![listener_filter(
                    "envoy.filters.listener.http_inspector",
                    &HttpInspector::default(),
                )],
                // A client may open a connection long before it has something to ask.
                listener_filters_timeout: Some(Duration::default()),
                filter_chains: vec![http],
                default_filter_chain: Some(tcp_chain(otherwise, access_log)),
                ..common
            }
        }
    }
}

fn manager(name: &str, route_config: &str, access_log: Vec<AccessLog>) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(config_source::ads()),
            route_config_name: route_config.to_owned(),
        })),
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
        access_log,
        ..Default::default()
    }
}

fn http_chain(manager: &HttpConnectionManager) -> FilterChain {
    chain("envoy.filters.network.http_connection_manager", manager)
}

fn tcp_chain(cluster: &Arc<str>, access_log: Vec<AccessLog>) -> FilterChain {
    split_chain(cluster, &[(Arc::clone(cluster), 1)], access_log)
}

fn split_chain(
    name: &str,
    clusters: &[(Arc<str>, u32)],
    access_log: Vec<AccessLog>,
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
    let proxy = TcpProxy {
        stat_prefix: name.to_owned(),
        cluster_specifier: Some(specifier),
        access_log,
        ..Default::default()
    };
    chain("envoy.filters.network.tcp_proxy", &proxy)
}

fn chain<M: Message + Name>(filter: &str, config: &M) -> FilterChain {
    FilterChain {
        filters: vec![Filter {
            name: filter.to_owned(),
            config_type: Some(filter::ConfigType::TypedConfig(Any::pack(config))),
        }],
        ..Default::default()
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

fn file_log(path: &str) -> AccessLog {
    let log = FileAccessLog { path: path.to_owned(), ..Default::default() };
    AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(Any::pack(&log))),
        ..Default::default()
    }
}
