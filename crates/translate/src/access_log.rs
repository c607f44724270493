//! Access logs: the files that users ask for, and what the agent beside Envoy is told.
//!
//! The agent hears of each connection that ends, and at once of what comes in plain text: of a
//! connection of bytes when it is passed on, of HTTP with each request, which name the connection.
//! Mutual TLS costs one message for each connection.
//!
//! **Invariant:** a file says the same whatever the agent is told.

use envoy_api::envoy::config::accesslog::v3::{
    AccessLog, AccessLogFilter, LogTypeFilter, access_log, access_log_filter::FilterSpecifier,
};
use envoy_api::envoy::config::core::v3::ApiVersion;
use envoy_api::envoy::data::accesslog::v3::AccessLogType;
use envoy_api::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_api::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use envoy_api::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::HcmAccessLogOptions,
};
use envoy_api::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::TcpAccessLogOptions,
};
use envoy_api::{Any, config_source};
use prost::{Message, Name};

/// Name of the log that the agent gets.
const CONNECTIONS: &str = "connections";

/// The logs of a filter chain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logs {
    /// File of the user's log.
    file: Option<String>,
    /// Whether the agent is told when something begins.
    told: bool,
}

/// Tells the agent of each connection of a listener once it has ended.
pub(crate) fn ended() -> AccessLog {
    let common = CommonGrpcAccessLogConfig {
        log_name: CONNECTIONS.to_owned(),
        grpc_service: Some(config_source::agent_service()),
        transport_api_version: ApiVersion::V3.into(),
        ..Default::default()
    };
    let config = TcpGrpcAccessLogConfig { common_config: Some(common) };
    log("envoy.access_loggers.tcp_grpc", &config)
}

// === impl Logs ===

impl Logs {
    /// This file, if any, and nothing else.
    pub(crate) fn file(path: Option<&str>) -> Self {
        Self { file: path.map(str::to_owned), told: false }
    }

    /// And the agent.
    pub(crate) fn and_agent(&self) -> Self {
        Self { told: true, ..self.clone() }
    }

    /// Those of HTTP.
    pub(crate) fn http(&self, manager: HttpConnectionManager) -> HttpConnectionManager {
        HttpConnectionManager {
            access_log: self.about(AccessLogType::DownstreamStart),
            access_log_options: self.told.then(|| HcmAccessLogOptions {
                flush_access_log_on_new_request: true,
                ..Default::default()
            }),
            ..manager
        }
    }

    /// Those of connections.
    pub(crate) fn tcp(&self, proxy: TcpProxy) -> TcpProxy {
        TcpProxy {
            access_log: self.about(AccessLogType::TcpUpstreamConnected),
            access_log_options: self.told.then(|| TcpAccessLogOptions {
                flush_access_log_on_connected: true,
                ..Default::default()
            }),
            ..proxy
        }
    }

    /// The file gets everything but the beginning, the agent only that.
    fn about(&self, beginning: AccessLogType) -> Vec<AccessLog> {
        let only = |exclude| {
            let filter = LogTypeFilter { types: vec![beginning.into()], exclude };
            let filter_specifier = Some(FilterSpecifier::LogTypeFilter(filter));
            self.told.then_some(AccessLogFilter { filter_specifier })
        };
        let file = self.file.iter().map(|path| {
            let config = FileAccessLog { path: path.clone(), ..Default::default() };
            AccessLog { filter: only(true), ..log("envoy.access_loggers.file", &config) }
        });
        let agent = self.told.then(|| AccessLog { filter: only(false), ..ended() });
        file.chain(agent).collect()
    }
}

fn log<M: Message + Name>(name: &str, config: &M) -> AccessLog {
    AccessLog {
        name: name.to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(Any::pack(config))),
        ..Default::default()
    }
}
