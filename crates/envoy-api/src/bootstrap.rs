//! The file that Envoy starts with.
//!
//! In: who the proxy is and where its control plane is. Out: a `Bootstrap` message, to be amended
//! by the caller where needed, and its JSON for `envoy -c file.json`.
//!
//! **Invariant:** knows no mesh; holds no resource but the way to the control plane; everything
//! else comes over ADS.

use std::iter;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use prost_types::Duration;
use serde_json::{Map, Value};

use crate::Any;
use crate::config_source::{self, SDS_CLUSTER};
use crate::envoy::config::bootstrap::v3::{
    Admin, Bootstrap as Message, LayeredRuntime, RuntimeLayer, bootstrap::DynamicResources,
    bootstrap::StaticResources, runtime_layer::AdminLayer, runtime_layer::LayerSpecifier,
};
use crate::envoy::config::cluster::v3::{Cluster, cluster};
use crate::envoy::config::core::v3::{
    Address, ApiConfigSource, ApiVersion, BackoffStrategy, ConfigSource, GrpcService,
    Http2ProtocolOptions, KeepaliveSettings, Locality, Node, Pipe, RetryPolicy, SocketAddress,
    TransportSocket, address, api_config_source, grpc_service, socket_address,
};
use crate::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use crate::envoy::extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options};
use crate::json;

/// Name of the cluster that leads to the control plane.
pub const XDS_CLUSTER: &str = "xds-grpc";

/// An HTTP/2 ping goes out this often on the connection to the control plane, and must be
/// answered within the timeout: a control plane that vanished without closing its connections is
/// noticed after at most 40 s.
const KEEPALIVE_INTERVAL: Duration = Duration { seconds: 30, nanos: 0 };
const KEEPALIVE_TIMEOUT: Duration = Duration { seconds: 10, nanos: 0 };

/// Time between attempts to open the stream again grows from the first to the second. Envoy's own
/// first pause is 0.5 s, its last 30 s: too long for a replica that is merely restarted.
const RETRY_BASE: Duration = Duration { seconds: 0, nanos: 100_000_000 };
const RETRY_MAX: Duration = Duration { seconds: 5, nanos: 0 };

/// Envoy refuses a regular expression whose program is longer, and with it the whole response;
/// without this key the limit is 100, which ordinary expressions of users exceed (`[a-z]{1,63}`).
const REGEX_PROGRAM_SIZE: (&str, u32) = ("re2.max_program_size.error_level", 32_768);

const CONNECT_TIMEOUT: Duration = Duration { seconds: 5, nanos: 0 };

/// Which form of ADS the proxy speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Incremental: the only form with virtual hosts on their own.
    #[default]
    Delta,
    /// State of the world.
    Sotw,
}

/// What differs between two proxies when they start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bootstrap {
    /// Identity of the proxy in the eyes of the control plane.
    pub node_id: String,
    /// Name of the service that the proxy belongs to; Envoy needs one for some features.
    pub cluster: String,
    /// What the control plane may read about the proxy.
    pub metadata: Map<String, Value>,
    /// Where the proxy runs, if that is known at start.
    pub locality: Option<Locality>,
    /// Name or IP address of the control plane. A name is resolved again and again.
    pub xds_host: String,
    /// Port of its ADS server.
    pub xds_port: u16,
    /// How to secure the connection to it; none: plain text.
    pub xds_transport_socket: Option<TransportSocket>,
    /// Unix socket of the agent that serves certificates; none: there is no agent.
    pub sds_socket: Option<PathBuf>,
    /// Delta or state of the world.
    pub protocol: Protocol,
    /// IP address and port of the admin pages; none: no admin pages.
    pub admin_address: Option<(String, u16)>,
    /// Runtime keys fixed at start, such as `envoy.reloadable_features.x`; they go before ours.
    pub runtime: Map<String, Value>,
}

// === impl Bootstrap ===

impl Bootstrap {
    /// The message, for callers that add static resources or statistics settings.
    pub fn to_message(&self) -> Message {
        Message {
            node: Some(Node {
                id: self.node_id.clone(),
                cluster: self.cluster.clone(),
                metadata: Some(json::to_struct(&self.metadata)),
                locality: self.locality.clone(),
                ..Default::default()
            }),
            static_resources: Some(StaticResources {
                clusters: iter::once(self.xds_cluster())
                    .chain(self.sds_socket.as_deref().map(sds_cluster))
                    .collect(),
                ..Default::default()
            }),
            dynamic_resources: Some(DynamicResources {
                ads_config: Some(self.ads_config()),
                cds_config: Some(awaited()),
                lds_config: Some(awaited()),
                ..Default::default()
            }),
            admin: self.admin_address.as_ref().map(|(host, port)| Admin {
                address: Some(socket(host, *port)),
                ..Default::default()
            }),
            layered_runtime: Some(self.layered_runtime()),
            ..Default::default()
        }
    }

    /// The file for `envoy -c`.
    pub fn to_json(&self) -> Value {
        json::message_to_json(&self.to_message())
    }

    fn ads_config(&self) -> ApiConfigSource {
        let api_type = match self.protocol {
            Protocol::Delta => api_config_source::ApiType::DeltaGrpc,
            Protocol::Sotw => api_config_source::ApiType::Grpc,
        };
        let retry_policy = RetryPolicy {
            retry_back_off: Some(BackoffStrategy {
                base_interval: Some(RETRY_BASE),
                max_interval: Some(RETRY_MAX),
            }),
            ..Default::default()
        };
        let service = GrpcService {
            target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(
                grpc_service::EnvoyGrpc {
                    cluster_name: XDS_CLUSTER.to_owned(),
                    retry_policy: Some(retry_policy),
                    ..Default::default()
                },
            )),
            ..Default::default()
        };
        ApiConfigSource {
            api_type: api_type.into(),
            transport_api_version: ApiVersion::V3.into(),
            // The node with its metadata is repeated in no later request of the stream.
            set_node_on_first_message_only: true,
            grpc_services: vec![service],
            ..Default::default()
        }
    }

    fn xds_cluster(&self) -> Cluster {
        let discovery = match self.xds_host.parse::<IpAddr>() {
            Ok(_) => cluster::DiscoveryType::Static,
            Err(_) => cluster::DiscoveryType::StrictDns,
        };
        Cluster {
            cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(discovery.into())),
            dns_lookup_family: cluster::DnsLookupFamily::V4Preferred.into(),
            transport_socket: self.xds_transport_socket.clone(),
            ..grpc_cluster(XDS_CLUSTER, socket(&self.xds_host, self.xds_port))
        }
    }

    /// Keys fixed at start, below those that the admin pages may set while Envoy runs.
    fn layered_runtime(&self) -> LayeredRuntime {
        let (key, limit) = REGEX_PROGRAM_SIZE;
        let mut fixed = Map::from_iter([(key.to_owned(), limit.into())]);
        fixed.extend(self.runtime.clone());
        let layer = |name: &str, specifier| RuntimeLayer {
            name: name.to_owned(),
            layer_specifier: Some(specifier),
        };
        LayeredRuntime {
            layers: vec![
                layer("static", LayerSpecifier::StaticLayer(json::to_struct(&fixed))),
                layer("admin", LayerSpecifier::AdminLayer(AdminLayer {})),
            ],
        }
    }
}

/// ADS without a time limit: an Envoy that has not heard from its control plane stays in
/// initialization, and so not ready, instead of going live without listeners after 15 s.
fn awaited() -> ConfigSource {
    ConfigSource { initial_fetch_timeout: Some(Duration::default()), ..config_source::ads() }
}

fn sds_cluster(path: &Path) -> Cluster {
    let pipe = Pipe { path: path.to_string_lossy().into_owned(), ..Default::default() };
    grpc_cluster(SDS_CLUSTER, Address { address: Some(address::Address::Pipe(pipe)) })
}

/// A cluster of one endpoint that speaks HTTP/2.
fn grpc_cluster(name: &str, address: Address) -> Cluster {
    let endpoint = Endpoint { address: Some(address), ..Default::default() };
    let endpoint = LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)),
        ..Default::default()
    };
    let options = Any::pack(&http2_with_keepalive());
    Cluster {
        name: name.to_owned(),
        connect_timeout: Some(CONNECT_TIMEOUT),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..Default::default()
            }],
            ..Default::default()
        }),
        typed_extension_protocol_options: [(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            options,
        )]
        .into(),
        ..Default::default()
    }
}

fn http2_with_keepalive() -> HttpProtocolOptions {
    use http_protocol_options::explicit_http_config::ProtocolConfig;
    use http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions};
    let http2 = Http2ProtocolOptions {
        connection_keepalive: Some(KeepaliveSettings {
            interval: Some(KEEPALIVE_INTERVAL),
            timeout: Some(KEEPALIVE_TIMEOUT),
            ..Default::default()
        }),
        ..Default::default()
    };
    let explicit =
        ExplicitHttpConfig { protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2)) };
    HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
        ..Default::default()
    }
}

fn socket(host: &str, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: host.to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use serde_json::json;

    fn bootstrap() -> Bootstrap {
        Bootstrap {
            node_id: "sidecar~10.0.0.1~a.b~cluster.local".to_owned(),
            cluster: "a.b".to_owned(),
            metadata: Map::from_iter([("NAMESPACE".to_owned(), json!("b"))]),
            xds_host: "heddle.heddle-system.svc".to_owned(),
            xds_port: 15010,
            admin_address: Some(("127.0.0.1".to_owned(), 15000)),
            ..Default::default()
        }
    }

    #[test]
    fn it_breaks_no_field_rule_and_survives_json() {
        let message = bootstrap().to_message();
        assert_eq!(check::violations(&message), vec![]);
        assert_eq!(json::from_json::<Message>(&bootstrap().to_json()), Ok(message));
    }

    #[test]
    fn it_asks_for_delta_ads_with_the_node_once_and_short_pauses() {
        let json = bootstrap().to_json();
        assert_eq!(
            json["dynamic_resources"]["ads_config"],
            json!({
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": {
                    "cluster_name": "xds-grpc",
                    "retry_policy": { "retry_back_off": {
                        "base_interval": "0.100s",
                        "max_interval": "5s",
                    }},
                }}],
            })
        );
        assert_eq!(
            json["dynamic_resources"]["cds_config"],
            json!({ "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s" })
        );
        assert_eq!(json["static_resources"]["clusters"][0]["type"], "STRICT_DNS");
        let sotw = Bootstrap { protocol: Protocol::Sotw, ..bootstrap() }.to_json();
        assert_eq!(sotw["dynamic_resources"]["ads_config"]["api_type"], "GRPC");
    }

    #[test]
    fn an_agent_is_reached_by_its_socket() {
        let with = Bootstrap { sds_socket: Some("/run/sds.sock".into()), ..bootstrap() };
        assert_eq!(check::violations(&with.to_message()), vec![]);
        let json = with.to_json();
        let cluster = &json["static_resources"]["clusters"][1];
        assert_eq!(cluster["name"], SDS_CLUSTER);
        let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
        assert_eq!(endpoint["address"]["pipe"]["path"], "/run/sds.sock");
    }

    #[test]
    fn an_ip_address_is_not_resolved() {
        let json = Bootstrap { xds_host: "::1".to_owned(), ..bootstrap() }.to_json();
        assert_eq!(json["static_resources"]["clusters"][0]["type"], "STATIC");
    }
}
