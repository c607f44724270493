//! Listeners.
//!
//! **Invariant:** nothing here changes with rules or services: a changed listener cuts
//! connections.

use envoy_api::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_api::envoy::config::core::v3::{TrafficDirection, address};
use envoy_api::envoy::config::listener::v3::{
    AdditionalAddress, Filter, FilterChain, Listener, filter,
};
use envoy_api::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_api::envoy::extensions::filters::http::router::v3::Router;
use envoy_api::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
    http_connection_manager::{RouteSpecifier, UpgradeConfig},
    http_filter,
};
use envoy_api::{Any, config_source};
use model::ir;
use prost_types::Duration;

use crate::endpoints::socket;

/// Spell a listener.
pub(crate) fn listener(listener: &ir::Listener) -> Listener {
    let ir::Listener { name, bind, port, route_config, access_log_file, origins: _ } = listener;
    let manager = HttpConnectionManager {
        stat_prefix: name.to_string(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(config_source::ads()),
            route_config_name: route_config.to_string(),
        })),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(Any::pack(&Router::default()))),
            ..Default::default()
        }],
        // The edge: what clients say about themselves in x-forwarded-for is appended to.
        use_remote_address: Some(true),
        normalize_path: Some(true),
        // Long polls and streams are the rule's business, by `timeout`.
        stream_idle_timeout: Some(Duration::default()),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        }],
        access_log: access_log_file.iter().map(|path| file_log(path)).collect(),
        ..Default::default()
    };
    let (address, additional) = match bind {
        Some(address) => (address.to_string(), Vec::new()),
        None => ("0.0.0.0".to_owned(), vec![any_ipv6(*port)]),
    };
    Listener {
        name: name.to_string(),
        address: Some(socket(&address, *port)),
        additional_addresses: additional,
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "envoy.filters.network.http_connection_manager".to_owned(),
                config_type: Some(filter::ConfigType::TypedConfig(Any::pack(&manager))),
            }],
            ..Default::default()
        }],
        traffic_direction: TrafficDirection::Outbound.into(),
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
