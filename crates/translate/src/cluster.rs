//! Clusters.
//!
//! **Invariant:** names its endpoints only by EDS under its own name, from a ConfigSource whose
//! bytes never change.

use envoy_api::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, OutlierDetection, UpstreamConnectionOptions,
    circuit_breakers::Thresholds,
    cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy},
};
use envoy_api::envoy::config::common::matcher::v3::{
    HttpHeadersMatch, MatchPredicate,
    match_predicate::{MatchSet, Rule},
};
use envoy_api::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonHttp,
    KeepaliveSettings, TcpKeepalive,
};
use envoy_api::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
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

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Spell a cluster.
pub(crate) fn cluster(cluster: &ir::Cluster) -> Cluster {
    let eds = cluster.endpoints == ir::ClusterEndpoints::Discovered;
    let discovery = match cluster.endpoints {
        ir::ClusterEndpoints::Discovered => DiscoveryType::Eds,
        ir::ClusterEndpoints::None => DiscoveryType::Static,
        ir::ClusterEndpoints::Original => DiscoveryType::OriginalDst,
    };
    let outlier = cluster.outlier_detection.as_ref();
    let panic = outlier.and_then(|o| o.min_health_percent);
    let options = http_options(cluster);
    Cluster {
        name: cluster.name.to_string(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery.into())),
        eds_cluster_config: eds.then(|| EdsClusterConfig {
            eds_config: Some(config_source::ads()),
            ..Default::default()
        }),
        connect_timeout: Some(duration(cluster.connect_timeout)),
        lb_policy: match cluster.load_balancer {
            LbAlgorithm::LeastRequest => LbPolicy::LeastRequest,
            LbAlgorithm::RoundRobin => LbPolicy::RoundRobin,
            LbAlgorithm::Random => LbPolicy::Random,
            LbAlgorithm::Passthrough => LbPolicy::ClusterProvided,
        }
        .into(),
        circuit_breakers: Some(circuit_breakers(cluster)),
        outlier_detection: outlier.map(outlier_detection),
        common_lb_config: panic.map(|percent| CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: f64::from(percent) }),
            ..Default::default()
        }),
        upstream_connection_options: cluster.tcp.keep_alive.as_ref().map(keep_alive),
        typed_extension_protocol_options: options
            .map(|o| (HTTP_OPTIONS.to_owned(), Any::pack(&o)))
            .into_iter()
            .collect(),
        ..Default::default()
    }
}

/// Limits; what no policy sets is unbounded, not Envoy's 1,024: a mesh must not lose requests that
/// nobody asked it to.
fn circuit_breakers(cluster: &ir::Cluster) -> CircuitBreakers {
    let TcpPool {
        max_connections,
        connect_timeout: _,
        keep_alive: _,
        max_connection_duration: _,
        idle_timeout: _,
    } = &cluster.tcp;
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: Some(max_connections.unwrap_or(u32::MAX)),
            max_pending_requests: Some(cluster.max_pending_requests.unwrap_or(u32::MAX)),
            max_requests: Some(cluster.max_requests.unwrap_or(u32::MAX)),
            max_retries: Some(cluster.max_retries.unwrap_or(u32::MAX)),
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
    let common = CommonHttp {
        idle_timeout: cluster.idle_timeout.map(duration),
        max_connection_duration: cluster.tcp.max_connection_duration.map(duration),
        max_requests_per_connection: cluster.max_requests_per_connection.filter(|n| *n > 0),
        ..Default::default()
    };
    let common = (common != CommonHttp::default()).then_some(common);
    let http2 = || Http2ProtocolOptions {
        max_concurrent_streams: cluster.max_concurrent_streams,
        connection_keepalive: cluster.http2_keep_alive.as_ref().map(|k| KeepaliveSettings {
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
    if common.is_none()
        && outlier_detection.is_none()
        && cluster.http_version == ir::HttpVersion::Http1
    {
        return None;
    }
    Some(HttpProtocolOptions {
        common_http_protocol_options: common,
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
