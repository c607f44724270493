//! DestinationRule: how to talk to a destination.
//!
//! In: the object. Out: one `DestinationPolicy` row.
//!
//! **Invariant:** a part of a policy that cannot be read is left out, and the rest is in force.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::rows::{
    ConnectionPool, DestinationPolicy, Http2KeepAlive, HttpPool, LbAlgorithm, OutlierDetection,
    Subset, TcpKeepAlive, TcpPool, TrafficPolicy, UpgradePolicy,
};
use model::{Change, Problem, Reason, Row};
use serde::Deserialize;

use super::{decode, later, nothing};
use crate::export_to::{EXPORT_TO, visibility};
use crate::kind::Kind;
use crate::object::RawObject;
use crate::schema::{OnBad, Type, field, not_yet, parse_time};
use crate::text::{self, full_host};

/// The kind.
pub(crate) struct DestinationRule;

const COUNT: Type = Type::Integer(0, u32::MAX as i64);
const INT32: Type = Type::Integer(0, i32::MAX as i64);
const PERCENT: Type = Type::Integer(0, 100);

const LOAD_BALANCER: Type = Type::Object(&[
    field(
        "simple",
        Type::Enum(&[
            "UNSPECIFIED",
            "LEAST_CONN",
            "RANDOM",
            "PASSTHROUGH",
            "ROUND_ROBIN",
            "LEAST_REQUEST",
        ]),
    ),
    not_yet("consistentHash"),
    not_yet("localityLbSetting").of(later::LOCALITY),
    not_yet("zoneAwareLbSetting").of(later::ZONES),
    not_yet("warmupDurationSecs").of(later::WARMUP_TIME),
    not_yet("warmup").of(later::WARMUP),
]);

const CONNECTION_POOL: Type = Type::Object(&[
    field(
        "tcp",
        Type::Object(&[
            field("maxConnections", INT32),
            field("connectTimeout", Type::Time(1)),
            field(
                "tcpKeepalive",
                Type::Object(&[
                    field("probes", COUNT),
                    field("time", Type::Time(1000)),
                    field("interval", Type::Time(1000)),
                ]),
            ),
            field("maxConnectionDuration", Type::Time(1)),
            field("idleTimeout", Type::Time(0)),
        ]),
    ),
    field(
        "http",
        Type::Object(&[
            field("http1MaxPendingRequests", INT32),
            field("http2MaxRequests", INT32),
            field("maxRequestsPerConnection", INT32),
            field("maxRetries", INT32),
            field("idleTimeout", Type::Time(0)),
            field("h2UpgradePolicy", Type::Enum(&["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"])),
            field("useClientProtocol", Type::Bool),
            field("maxConcurrentStreams", Type::Integer(0, i32::MAX as i64)),
            field(
                "http2KeepAlive",
                Type::Object(&[field("interval", Type::Time(1)), field("timeout", Type::Time(1))]),
            ),
        ]),
    ),
]);

const OUTLIER_DETECTION: Type = Type::Object(&[
    field("consecutiveErrors", INT32),
    field("splitExternalLocalOriginErrors", Type::Bool),
    field("consecutiveLocalOriginFailures", COUNT),
    field("consecutiveGatewayErrors", COUNT),
    field("consecutive5xxErrors", COUNT),
    field("interval", Type::Time(1)),
    field("baseEjectionTime", Type::Time(1)),
    field("maxEjectionPercent", PERCENT),
    field("minHealthPercent", PERCENT),
    field("outlierDetectionHttpErrorCodes", Type::List(&Type::Integer(100, 599), OnBad::Field)),
]);

const TRAFFIC_POLICY: Type = Type::Object(&[
    field("loadBalancer", LOAD_BALANCER),
    field("connectionPool", CONNECTION_POOL),
    field("outlierDetection", OUTLIER_DETECTION),
    not_yet("tls").of(later::CLIENT_TLS),
    not_yet("portLevelSettings"),
    not_yet("tunnel").of(later::TUNNEL),
    not_yet("proxyProtocol").of(later::PROXY_PROTOCOL),
    not_yet("retryBudget").of(later::RETRY_BUDGET),
]);

const SPEC: Type = Type::Object(&[
    field("host", Type::Checked(text::host)).required(),
    field("trafficPolicy", TRAFFIC_POLICY),
    field(
        "subsets",
        Type::List(
            &Type::Object(&[
                field("name", Type::Checked(subset_name)).required(),
                field("labels", Type::Map(text::not_empty, &Type::Text)).or_parent(),
                field("trafficPolicy", TRAFFIC_POLICY),
            ]),
            OnBad::Field,
        ),
    ),
    field("exportTo", EXPORT_TO).or_parent(),
    // Without its selector the policy would apply to workloads that it does not name.
    not_yet("workloadSelector").of(later::SELECTOR).or_parent(),
]);

fn subset_name(name: &str) -> Result<(), String> {
    // The name stands between bars in the name of a cluster.
    let good = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if !name.is_empty() && name.len() <= 253 && name.chars().all(good) {
        return Ok(());
    }
    Err(format!("{name:?} is not a subset name: letters, digits, `-`, `.` and `_` only"))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    host: String,
    traffic_policy: Option<Policy>,
    #[serde(default)]
    subsets: Vec<Option<NamedSubset>>,
    #[serde(default)]
    export_to: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamedSubset {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    traffic_policy: Option<Policy>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Policy {
    load_balancer: Option<LoadBalancer>,
    connection_pool: Option<Pool>,
    outlier_detection: Option<Outlier>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct LoadBalancer {
    simple: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Pool {
    tcp: Option<Tcp>,
    http: Option<Http>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Tcp {
    max_connections: Option<u32>,
    connect_timeout: Option<String>,
    tcp_keepalive: Option<KeepAlive>,
    max_connection_duration: Option<String>,
    idle_timeout: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct KeepAlive {
    probes: Option<u32>,
    time: Option<String>,
    interval: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Http {
    http1_max_pending_requests: Option<u32>,
    http2_max_requests: Option<u32>,
    max_requests_per_connection: Option<u32>,
    max_retries: Option<u32>,
    idle_timeout: Option<String>,
    h2_upgrade_policy: Option<String>,
    use_client_protocol: bool,
    max_concurrent_streams: Option<u32>,
    http2_keep_alive: Option<Ping>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ping {
    interval: Option<String>,
    timeout: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Outlier {
    consecutive_errors: Option<u32>,
    split_external_local_origin_errors: bool,
    consecutive_local_origin_failures: Option<u32>,
    consecutive_gateway_errors: Option<u32>,
    #[serde(rename = "consecutive5xxErrors")]
    consecutive_5xx_errors: Option<u32>,
    interval: Option<String>,
    base_ejection_time: Option<String>,
    max_ejection_percent: Option<u32>,
    min_health_percent: Option<u32>,
    outlier_detection_http_error_codes: Vec<Option<u16>>,
}

// === impl DestinationRule ===

impl Kind for DestinationRule {
    fn spec(&self) -> Option<&'static Type> {
        Some(&SPEC)
    }

    fn lower(&self, mut raw: RawObject) -> (Change, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some(spec) = decode::<Spec>(&mut raw, &SPEC, &mut problems) else {
            return (nothing(raw), problems);
        };
        let Spec { host, traffic_policy, subsets, export_to } = spec;
        let mut lowered: Vec<Subset> = Vec::new();
        for (index, subset) in subsets.into_iter().enumerate() {
            let Some(NamedSubset { name, labels, traffic_policy }) = subset else { continue };
            let field = format!("spec.subsets[{index}]");
            if lowered.iter().any(|s| *s.name == *name) {
                let message = format!("subset {name} is defined above already; remove one of them");
                let problem =
                    Problem::error(&raw.owner, format!("{field}.name"), Reason::Duplicate, message);
                problems.push(problem);
                continue;
            }
            lowered.push(Subset {
                field: Arc::from(field),
                name: Arc::from(name),
                labels: labels.into_iter().map(|(k, v)| (Arc::from(k), Arc::from(v))).collect(),
                policy: traffic_policy.unwrap_or_default().lower(),
            });
        }
        let row = DestinationPolicy {
            namespace: Arc::clone(&raw.owner.namespace),
            created: raw.created,
            host: full_host(&host, &raw.owner.namespace),
            export_to: visibility(export_to.iter().map(String::as_str))
                .map(|v| v.of(&raw.owner.namespace)),
            field: Arc::from("spec.trafficPolicy"),
            policy: traffic_policy.unwrap_or_default().lower(),
            subsets: lowered,
        };
        (Change { owner: raw.owner, rows: vec![Row::DestinationPolicy(row.into())] }, problems)
    }
}

// === impl Policy ===

impl Policy {
    fn lower(self) -> TrafficPolicy {
        let Self { load_balancer, connection_pool, outlier_detection } = self;
        TrafficPolicy {
            load_balancer: load_balancer.and_then(LoadBalancer::lower),
            connection_pool: connection_pool.map(Pool::lower),
            outlier_detection: outlier_detection.map(Outlier::lower),
        }
    }
}

impl LoadBalancer {
    fn lower(self) -> Option<LbAlgorithm> {
        match self.simple.as_deref()? {
            "ROUND_ROBIN" => Some(LbAlgorithm::RoundRobin),
            "RANDOM" => Some(LbAlgorithm::Random),
            "PASSTHROUGH" => Some(LbAlgorithm::Passthrough),
            "LEAST_REQUEST" | "LEAST_CONN" => Some(LbAlgorithm::LeastRequest),
            _ => None,
        }
    }
}

fn time(text: Option<String>) -> Option<std::time::Duration> {
    text.as_deref().and_then(parse_time)
}

impl Pool {
    fn lower(self) -> ConnectionPool {
        let Self { tcp, http } = self;
        ConnectionPool {
            tcp: tcp.unwrap_or_default().lower(),
            http: http.unwrap_or_default().lower(),
        }
    }
}

/// What 0 means in the API: not set.
fn positive(count: Option<u32>) -> Option<u32> {
    count.filter(|n| *n > 0)
}

impl Tcp {
    fn lower(self) -> TcpPool {
        let Self {
            max_connections,
            connect_timeout,
            tcp_keepalive,
            max_connection_duration,
            idle_timeout,
        } = self;
        TcpPool {
            max_connections: positive(max_connections),
            connect_timeout: time(connect_timeout),
            keep_alive: tcp_keepalive.map(|KeepAlive { probes, time: first, interval }| {
                TcpKeepAlive { probes, time: time(first), interval: time(interval) }
            }),
            max_connection_duration: time(max_connection_duration),
            idle_timeout: time(idle_timeout),
        }
    }
}

impl Http {
    fn lower(self) -> HttpPool {
        let Self {
            http1_max_pending_requests,
            http2_max_requests,
            max_requests_per_connection,
            max_retries,
            idle_timeout,
            h2_upgrade_policy,
            use_client_protocol,
            max_concurrent_streams,
            http2_keep_alive,
        } = self;
        HttpPool {
            max_pending_requests: positive(http1_max_pending_requests),
            max_requests: positive(http2_max_requests),
            max_requests_per_connection: positive(max_requests_per_connection),
            max_retries: positive(max_retries),
            idle_timeout: time(idle_timeout),
            upgrade: match h2_upgrade_policy.as_deref() {
                Some("UPGRADE") => Some(UpgradePolicy::Upgrade),
                Some("DO_NOT_UPGRADE") => Some(UpgradePolicy::DoNotUpgrade),
                _ => None,
            },
            use_client_protocol,
            max_concurrent_streams: positive(max_concurrent_streams),
            http2_keep_alive: http2_keep_alive.and_then(|Ping { interval, timeout }| {
                let interval = time(interval)?;
                Some(Http2KeepAlive { interval, timeout: time(timeout).unwrap_or(interval) })
            }),
        }
    }
}

impl Outlier {
    fn lower(self) -> OutlierDetection {
        let Self {
            consecutive_errors,
            split_external_local_origin_errors,
            consecutive_local_origin_failures,
            consecutive_gateway_errors,
            consecutive_5xx_errors,
            interval,
            base_ejection_time,
            max_ejection_percent,
            min_health_percent,
            outlier_detection_http_error_codes,
        } = self;
        let mut error_codes: Vec<u16> =
            outlier_detection_http_error_codes.into_iter().flatten().collect();
        error_codes.sort_unstable();
        error_codes.dedup();
        OutlierDetection {
            // `consecutiveErrors` is deprecated and elsewhere ignored in silence. Here it means
            // what it says, for both kinds of errors, unless the newer fields say otherwise.
            consecutive_5xx: consecutive_5xx_errors.or(consecutive_errors),
            consecutive_gateway: consecutive_gateway_errors.or(consecutive_errors),
            consecutive_local_origin: consecutive_local_origin_failures,
            split_local_origin: split_external_local_origin_errors,
            interval: time(interval),
            base_ejection_time: time(base_ejection_time),
            max_ejection_percent,
            min_health_percent,
            error_codes,
        }
    }
}
