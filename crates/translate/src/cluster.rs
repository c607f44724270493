//! Clusters.
//!
//! **Invariant:** names its endpoints only by EDS under its own name, from a ConfigSource whose
//! bytes never change.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_api::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, LoadBalancingPolicy, OutlierDetection, UpstreamConnectionOptions,
    circuit_breakers::Thresholds,
    cluster::{
        ClusterDiscoveryType, CommonLbConfig, DiscoveryType, DnsLookupFamily, EdsClusterConfig,
        LbConfig, LbPolicy, MaglevLbConfig, OriginalDstLbConfig, RingHashLbConfig,
        common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig},
    },
    load_balancing_policy::Policy,
};
use envoy_api::envoy::config::common::matcher::v3::{
    HttpHeadersMatch, MatchPredicate,
    match_predicate::{MatchSet, Rule},
};
use envoy_api::envoy::config::core::v3::{
    Address, BindConfig, ExtraSourceAddress, HealthStatus, Http1ProtocolOptions,
    Http2ProtocolOptions, HttpProtocolOptions as CommonHttp, KeepaliveSettings, Pipe,
    SocketAddress, TcpKeepalive, TypedExtensionConfig, UpstreamHttpProtocolOptions, address,
    socket_address::PortSpecifier,
};
use envoy_api::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints,
};
use envoy_api::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use envoy_api::envoy::extensions::load_balancing_policies::{
    least_request::v3::LeastRequest,
    maglev::v3::Maglev,
    override_host::v3::{OverrideHost, override_host::OverrideHostSource},
    random::v3::Random,
    ring_hash::v3::RingHash,
    round_robin::v3::RoundRobin,
};
use envoy_api::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        ExplicitHttpConfig, OutlierDetection as HttpOutlierDetection, UpstreamProtocolOptions,
        UseDownstreamHttpConfig, explicit_http_config::ProtocolConfig,
    },
};
use envoy_api::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_api::envoy::r#type::v3::Percent;
use envoy_api::{Any, config_source};
use model::ir;
use model::rows::{self, LbAlgorithm, TcpPool};

use crate::duration;
use crate::endpoints::{lb_endpoint, locality, socket};
use crate::tls;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Spell a cluster.
pub(crate) fn cluster(cluster: &ir::Cluster) -> Cluster {
    let ir::Cluster {
        name,
        endpoints,
        http_version: _,
        load_balancer,
        distributes,
        pinned,
        tls: _,
        connect_timeout,
        pool,
        outlier_detection: _,
        origins: _,
    } = cluster;
    let eds = *endpoints == ir::ClusterEndpoints::Discovered;
    let (discovery, assignment) = match endpoints {
        ir::ClusterEndpoints::Discovered => (DiscoveryType::Eds, None),
        ir::ClusterEndpoints::None => (DiscoveryType::Static, None),
        ir::ClusterEndpoints::Original | ir::ClusterEndpoints::Local { .. } => {
            (DiscoveryType::OriginalDst, None)
        }
        ir::ClusterEndpoints::Named(names) => {
            (DiscoveryType::StrictDns, Some(named_endpoints(name, names)))
        }
        ir::ClusterEndpoints::NamedOnce(one) => {
            (DiscoveryType::LogicalDns, Some(named_endpoints(name, std::slice::from_ref(one))))
        }
        ir::ClusterEndpoints::Address(address, port) => {
            let address = socket(&address.to_string(), *port);
            (DiscoveryType::Static, Some(one_endpoint(name, address)))
        }
        ir::ClusterEndpoints::Socket(path) => {
            (DiscoveryType::Static, Some(one_endpoint(name, pipe(path))))
        }
    };
    let (local, override_port) = match endpoints {
        ir::ClusterEndpoints::Local { port } => (true, *port),
        _ => (false, None),
    };
    let by_name = matches!(discovery, DiscoveryType::StrictDns | DiscoveryType::LogicalDns);
    let outlier = cluster.outlier_detection.as_ref();
    let panic = outlier.and_then(|o| o.min_health_percent);
    let options = http_options(cluster);
    let (transport_socket, transport_socket_matches) = tls::upstream(cluster);
    Cluster {
        name: name.to_string(),
        load_assignment: assignment,
        transport_socket,
        transport_socket_matches,
        // A machine without IPv6 would fail at every other address of a name that has both.
        dns_lookup_family: match by_name {
            true => DnsLookupFamily::V4Preferred.into(),
            false => DnsLookupFamily::Auto.into(),
        },
        upstream_bind_config: local.then(from_the_proxy),
        load_balancing_policy: pinned.then(|| pinned_policy(*load_balancer)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery.into())),
        eds_cluster_config: eds.then(|| EdsClusterConfig {
            eds_config: Some(config_source::ads()),
            ..Default::default()
        }),
        connect_timeout: Some(duration(*connect_timeout)),
        lb_policy: match load_balancer {
            LbAlgorithm::LeastRequest => LbPolicy::LeastRequest,
            LbAlgorithm::RoundRobin => LbPolicy::RoundRobin,
            LbAlgorithm::Random => LbPolicy::Random,
            LbAlgorithm::Passthrough => LbPolicy::ClusterProvided,
            LbAlgorithm::RingHash { .. } => LbPolicy::RingHash,
            LbAlgorithm::Maglev { .. } => LbPolicy::Maglev,
        }
        .into(),
        lb_config: match load_balancer {
            LbAlgorithm::RingHash { least } => Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
                minimum_ring_size: Some(u64::from(*least)),
                ..Default::default()
            })),
            LbAlgorithm::Maglev { size } => {
                let table_size = Some(u64::from(*size));
                Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size }))
            }
            LbAlgorithm::Passthrough if override_port.is_some() => {
                Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
                    upstream_port_override: override_port.map(u32::from),
                    ..Default::default()
                }))
            }
            _ => None,
        },
        circuit_breakers: Some(circuit_breakers(pool)),
        outlier_detection: outlier.map(outlier_detection),
        common_lb_config: (panic.is_some() || *distributes).then(|| CommonLbConfig {
            healthy_panic_threshold: panic.map(|percent| Percent { value: f64::from(percent) }),
            locality_config_specifier: distributes.then(|| {
                LocalityConfigSpecifier::LocalityWeightedLbConfig(
                    LocalityWeightedLbConfig::default(),
                )
            }),
            ..Default::default()
        }),
        upstream_connection_options: pool.tcp.keep_alive.as_ref().map(keep_alive),
        typed_extension_protocol_options: options
            .map(|o| (HTTP_OPTIONS.to_owned(), Any::pack(&o)))
            .into_iter()
            .collect(),
        ..Default::default()
    }
}

/// Endpoints that are looked up, by place.
fn named_endpoints(cluster: &Arc<str>, names: &[ir::NamedEndpoint]) -> ClusterLoadAssignment {
    let mut places: BTreeMap<&rows::Locality, Vec<&ir::NamedEndpoint>> = BTreeMap::new();
    for endpoint in names {
        places.entry(&endpoint.locality).or_default().push(endpoint);
    }
    let endpoint = |named: &&ir::NamedEndpoint| LbEndpoint {
        metadata: named.mutual_tls.then(tls::endpoint_metadata),
        ..lb_endpoint(socket(&named.host, named.port), named.weight, HealthStatus::Unknown)
    };
    let place = |(place, names): (&rows::Locality, Vec<&ir::NamedEndpoint>)| LocalityLbEndpoints {
        locality: (*place != rows::Locality::default()).then(|| locality(place)),
        lb_endpoints: names.iter().map(endpoint).collect(),
        load_balancing_weight: Some(names.iter().fold(0, |sum, n| n.weight.saturating_add(sum))),
        ..Default::default()
    };
    ClusterLoadAssignment {
        cluster_name: cluster.to_string(),
        endpoints: places.into_iter().map(place).collect(),
        ..Default::default()
    }
}

fn one_endpoint(cluster: &Arc<str>, address: Address) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: cluster.to_string(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![lb_endpoint(address, 1, HealthStatus::Unknown)],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn pipe(path: &str) -> Address {
    Address {
        address: Some(address::Address::Pipe(Pipe { path: path.to_owned(), ..Default::default() })),
    }
}

/// Addresses that connections come from which the proxy hands over to its workload: what captures
/// connections knows them by these.
fn from_the_proxy() -> BindConfig {
    let of = |address: &str| SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..Default::default()
    };
    BindConfig {
        source_address: Some(of("127.0.0.6")),
        extra_source_addresses: vec![ExtraSourceAddress {
            address: Some(of("::6")),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// The endpoint that a request names, else one by the algorithm.
fn pinned_policy(algorithm: LbAlgorithm) -> LoadBalancingPolicy {
    let policy = |name: &str, config: Any| Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: format!("envoy.load_balancing_policies.{name}"),
            typed_config: Some(config),
        }),
    };
    let fallback = match algorithm {
        LbAlgorithm::LeastRequest | LbAlgorithm::Passthrough => {
            policy("least_request", Any::pack(&LeastRequest::default()))
        }
        LbAlgorithm::RoundRobin => policy("round_robin", Any::pack(&RoundRobin::default())),
        LbAlgorithm::Random => policy("random", Any::pack(&Random::default())),
        LbAlgorithm::RingHash { least } => {
            let minimum_ring_size = Some(u64::from(least));
            policy("ring_hash", Any::pack(&RingHash { minimum_ring_size, ..Default::default() }))
        }
        LbAlgorithm::Maglev { size } => {
            let table_size = Some(u64::from(size));
            policy("maglev", Any::pack(&Maglev { table_size, ..Default::default() }))
        }
    };
    let pinned = OverrideHost {
        override_host_sources: vec![OverrideHostSource {
            header: ir::PINNED.to_owned(),
            ..Default::default()
        }],
        fallback_policy: Some(LoadBalancingPolicy { policies: vec![fallback] }),
        ..Default::default()
    };
    LoadBalancingPolicy { policies: vec![policy("override_host", Any::pack(&pinned))] }
}

/// Limits; what no policy sets is unbounded, not Envoy's 1,024: a mesh must not lose requests that
/// nobody asked it to.
fn circuit_breakers(pool: &rows::ConnectionPool) -> CircuitBreakers {
    let TcpPool {
        max_connections,
        connect_timeout: _,
        keep_alive: _,
        max_connection_duration: _,
        idle_timeout: _,
    } = &pool.tcp;
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: Some(max_connections.unwrap_or(u32::MAX)),
            max_pending_requests: Some(pool.http.max_pending_requests.unwrap_or(u32::MAX)),
            max_requests: Some(pool.http.max_requests.unwrap_or(u32::MAX)),
            max_retries: Some(pool.http.max_retries.unwrap_or(u32::MAX)),
            track_remaining: true,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn keep_alive(settings: &rows::TcpKeepAlive) -> UpstreamConnectionOptions {
    let rows::TcpKeepAlive { probes, time, interval } = settings;
    let seconds = |d: &std::time::Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
    UpstreamConnectionOptions {
        tcp_keepalive: Some(TcpKeepalive {
            keepalive_probes: *probes,
            keepalive_time: time.as_ref().map(seconds),
            keepalive_interval: interval.as_ref().map(seconds),
        }),
        ..Default::default()
    }
}

fn outlier_detection(settings: &rows::OutlierDetection) -> OutlierDetection {
    let rows::OutlierDetection {
        consecutive_5xx,
        consecutive_gateway,
        consecutive_local_origin,
        split_local_origin,
        interval,
        base_ejection_time,
        max_ejection_percent,
        min_health_percent: _,
        error_codes: _,
    } = settings;
    // A count of 0 turns that detector off.
    let positive = |count: &Option<u32>| count.filter(|n| *n > 0);
    let enforce = |count: &Option<u32>| count.map(|n| if n > 0 { 100 } else { 0 });
    OutlierDetection {
        consecutive_5xx: positive(consecutive_5xx),
        enforcing_consecutive_5xx: enforce(consecutive_5xx),
        consecutive_gateway_failure: positive(consecutive_gateway),
        enforcing_consecutive_gateway_failure: enforce(consecutive_gateway),
        split_external_local_origin_errors: *split_local_origin,
        consecutive_local_origin_failure: positive(consecutive_local_origin),
        enforcing_consecutive_local_origin_failure: enforce(consecutive_local_origin),
        interval: interval.map(duration),
        base_ejection_time: base_ejection_time.map(duration),
        max_ejection_percent: *max_ejection_percent,
        // Nobody asked for detection by success rate.
        enforcing_success_rate: Some(0),
        ..Default::default()
    }
}

/// HTTP options; none when all of them are Envoy's defaults for HTTP/1.1.
fn http_options(cluster: &ir::Cluster) -> Option<HttpProtocolOptions> {
    let rows::ConnectionPool { tcp, http } = &cluster.pool;
    let common = CommonHttp {
        idle_timeout: http.idle_timeout.map(duration),
        max_connection_duration: tcp.max_connection_duration.map(duration),
        max_requests_per_connection: http.max_requests_per_connection.filter(|n| *n > 0),
        ..Default::default()
    };
    let common = (common != CommonHttp::default()).then_some(common);
    let http2 = || Http2ProtocolOptions {
        max_concurrent_streams: http.max_concurrent_streams,
        connection_keepalive: http.http2_keep_alive.as_ref().map(|k| KeepaliveSettings {
            interval: Some(duration(k.interval)),
            timeout: Some(duration(k.timeout)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };
    let upstream = match cluster.http_version {
        ir::HttpVersion::Http1 => {
            explicit(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()))
        }
        ir::HttpVersion::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2())),
        ir::HttpVersion::AsClient => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(Http1ProtocolOptions::default()),
                http2_protocol_options: Some(http2()),
                ..Default::default()
            })
        }
    };
    let codes = cluster.outlier_detection.as_ref().map(|o| &o.error_codes[..]).unwrap_or_default();
    let outlier_detection =
        error_matcher(codes).map(|matcher| HttpOutlierDetection { error_matcher: Some(matcher) });
    // The name that is asked for is that of the request, and the server must prove it.
    let by_request = match &cluster.tls {
        ir::UpstreamTls::Origin(origin) if origin.sni.is_none() => {
            let named = origin.trusts_anybody || !origin.names.is_empty();
            Some(UpstreamHttpProtocolOptions {
                auto_sni: true,
                auto_san_validation: !named,
                ..Default::default()
            })
        }
        _ => None,
    };
    if common.is_none()
        && by_request.is_none()
        && outlier_detection.is_none()
        && cluster.http_version == ir::HttpVersion::Http1
    {
        return None;
    }
    Some(HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_http_protocol_options: by_request,
        upstream_protocol_options: Some(upstream),
        outlier_detection,
        ..Default::default()
    })
}

/// Matches answers with one of these codes; none for no codes.
fn error_matcher(codes: &[u16]) -> Option<MatchPredicate> {
    let one = |code: &u16| MatchPredicate {
        rule: Some(Rule::HttpResponseHeadersMatch(HttpHeadersMatch {
            headers: vec![HeaderMatcher {
                name: ":status".to_owned(),
                header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
                    match_pattern: Some(MatchPattern::Exact(code.to_string())),
                    ..Default::default()
                })),
                ..Default::default()
            }],
        })),
    };
    match codes {
        [] => None,
        [only] => Some(one(only)),
        several => Some(MatchPredicate {
            rule: Some(Rule::OrMatch(MatchSet { rules: several.iter().map(one).collect() })),
        }),
    }
}
