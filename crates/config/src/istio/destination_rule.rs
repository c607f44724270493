//! DestinationRule: how to talk to a destination.
//!
//! In: the object. Out: one `DestinationPolicy` row.
//!
//! **Invariant:** a part of a policy that cannot be read is left out, and the rest is in force.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::rows::{
    ClientTls, DestinationPolicy, HashKey, LbAlgorithm, LoadBalancer as LoadBalancerRow,
    OutlierDetection, Subset, TrafficPolicy,
};
use model::{Change, ObjectRef, Problem, Reason, Row};
use serde::Deserialize;

use super::client_tls::{CLIENT_TLS, Tls};
use super::connection_pool::{CONNECTION_POOL, Pool};
use super::locality::{LOCALITY, Locality};
use super::{decode, later, lies, nothing, time};
use crate::export_to::{EXPORT_TO, visibility};
use crate::kind::Kind;
use crate::object::RawObject;
use crate::schema::{OnBad, Type, field, not_yet};
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
    field(
        "consistentHash",
        Type::Strict(&[
            field("httpHeaderName", Type::Checked(text::header_name)).or_parent(),
            field(
                "httpCookie",
                Type::Strict(&[
                    field("name", Type::Checked(text::header_name)).required(),
                    field("path", Type::Checked(text::no_control)).or_parent(),
                    field("ttl", Type::Time(0)).or_parent(),
                    field(
                        "attributes",
                        Type::List(
                            &Type::Strict(&[
                                field("name", Type::Checked(text::header_name)).required(),
                                field("value", Type::Checked(text::no_control)).or_parent(),
                            ]),
                            OnBad::Parent,
                        ),
                    )
                    .or_parent(),
                ]),
            )
            .or_parent(),
            field("useSourceIp", Type::Bool).or_parent(),
            field("httpQueryParameterName", Type::Checked(text::not_empty)).or_parent(),
            field(
                "ringHash",
                Type::Object(&[field("minimumRingSize", Type::Integer(0, 8_388_608))]),
            ),
            field("maglev", Type::Object(&[field("tableSize", Type::Integer(0, 5_000_011))])),
            field("minimumRingSize", Type::Integer(0, 8_388_608)),
        ]),
    ),
    field("localityLbSetting", LOCALITY),
    not_yet("zoneAwareLbSetting").of(later::ZONES),
    not_yet("warmupDurationSecs").of(later::WARMUP_TIME),
    not_yet("warmup").of(later::WARMUP),
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

/// What holds for one port instead of everything else in the policy.
const OF_PORT: Type = Type::Object(&[
    // Without its port it would be for none.
    field("port", Type::Strict(&[field("number", Type::Integer(1, 65_535)).required()])).required(),
    field("loadBalancer", LOAD_BALANCER),
    field("connectionPool", CONNECTION_POOL),
    field("outlierDetection", OUTLIER_DETECTION),
    field("tls", CLIENT_TLS),
]);

const TRAFFIC_POLICY: Type = Type::Object(&[
    field("loadBalancer", LOAD_BALANCER),
    field("connectionPool", CONNECTION_POOL),
    field("outlierDetection", OUTLIER_DETECTION),
    field("tls", CLIENT_TLS),
    field("portLevelSettings", Type::List(&OF_PORT, OnBad::Field)),
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
    tls: Option<Tls>,
    port_level_settings: Vec<Option<OfPort>>,
}

#[derive(Deserialize)]
struct OfPort {
    port: PortNumber,
    #[serde(flatten)]
    policy: PortPolicy,
}

#[derive(Deserialize)]
struct PortNumber {
    number: u16,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PortPolicy {
    load_balancer: Option<LoadBalancer>,
    connection_pool: Option<Pool>,
    outlier_detection: Option<Outlier>,
    tls: Option<Tls>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LoadBalancer {
    simple: Option<String>,
    consistent_hash: Option<ConsistentHash>,
    locality_lb_setting: Option<Locality>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConsistentHash {
    http_header_name: Option<Arc<str>>,
    http_cookie: Option<Cookie>,
    use_source_ip: bool,
    http_query_parameter_name: Option<Arc<str>>,
    ring_hash: Option<RingHash>,
    maglev: Option<Maglev>,
    minimum_ring_size: Option<u32>,
}

#[derive(Deserialize)]
struct Cookie {
    name: Arc<str>,
    path: Option<Arc<str>>,
    ttl: Option<String>,
    #[serde(default)]
    attributes: Vec<Attribute>,
}

#[derive(Deserialize)]
struct Attribute {
    name: Arc<str>,
    #[serde(default)]
    value: Arc<str>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RingHash {
    minimum_ring_size: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Maglev {
    table_size: Option<u32>,
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
        let owner = Arc::clone(&raw.owner);
        let mut lowering = Lowering { owner: &owner, problems: &mut problems };
        let mut lowered: Vec<Subset> = Vec::new();
        for (index, subset) in subsets.into_iter().enumerate() {
            let Some(NamedSubset { name, labels, traffic_policy }) = subset else { continue };
            let field = format!("spec.subsets[{index}]");
            if lowered.iter().any(|s| *s.name == *name) {
                let message = format!("subset {name} is defined above already; remove one of them");
                lowering.error(format!("{field}.name"), Reason::Duplicate, message);
                continue;
            }
            let path = format!("{field}.trafficPolicy");
            lowered.push(Subset {
                field: Arc::from(field),
                name: Arc::from(name),
                labels: labels.into_iter().map(|(k, v)| (Arc::from(k), Arc::from(v))).collect(),
                policy: traffic_policy.unwrap_or_default().lower(&path, &mut lowering),
            });
        }
        let row = DestinationPolicy {
            namespace: Arc::clone(&raw.owner.namespace),
            created: raw.created,
            host: full_host(&host, &raw.owner.namespace),
            export_to: visibility(export_to.iter().map(String::as_str))
                .map(|v| v.of(&raw.owner.namespace)),
            field: Arc::from("spec.trafficPolicy"),
            policy: traffic_policy.unwrap_or_default().lower("spec.trafficPolicy", &mut lowering),
            subsets: lowered,
        };
        (Change { owner: raw.owner, rows: vec![Row::DestinationPolicy(row.into())] }, problems)
    }
}

// === impl Policy ===

impl Policy {
    fn lower(self, path: &str, lowering: &mut Lowering<'_>) -> TrafficPolicy {
        let Self { load_balancer, connection_pool, outlier_detection, tls, port_level_settings } =
            self;
        let of_all = PortPolicy { load_balancer, connection_pool, outlier_detection, tls };
        let mut policy = of_all.lower(path, lowering);
        for (index, setting) in port_level_settings.into_iter().enumerate() {
            let Some(OfPort { port: PortNumber { number }, policy: own }) = setting else {
                continue;
            };
            let path = format!("{path}.portLevelSettings[{index}]");
            if policy.ports.contains_key(&number) {
                let message = format!("port {number} is set above; this one is not used");
                lowering.error(format!("{path}.port.number"), Reason::Duplicate, message);
                continue;
            }
            let own = own.lower(&path, lowering);
            policy.ports.insert(number, own);
        }
        policy
    }
}

impl PortPolicy {
    fn lower(self, path: &str, lowering: &mut Lowering<'_>) -> TrafficPolicy {
        let Self { load_balancer, connection_pool, outlier_detection, tls } = self;
        let tls_path = format!("{path}.tls");
        let path = format!("{path}.loadBalancer");
        TrafficPolicy {
            tls: lowering.tls(tls, &tls_path),
            load_balancer: load_balancer.and_then(|lb| lb.lower(&path, lowering)),
            connection_pool: connection_pool.map(Pool::lower),
            outlier_detection: outlier_detection.map(Outlier::lower),
            ports: BTreeMap::new(),
        }
    }
}

impl LoadBalancer {
    fn lower(self, path: &str, lowering: &mut Lowering<'_>) -> Option<LoadBalancerRow> {
        let locality = self.locality_lb_setting.map(|setting| {
            let path = format!("{path}.localityLbSetting");
            Arc::new(setting.lower(lowering.owner, &path, lowering.problems))
        });
        if let Some(hash) = self.consistent_hash {
            if self.simple.is_some() {
                let message = "has no effect beside `consistentHash`; keep one of the two";
                lowering.error(format!("{path}.simple"), Reason::WrongType, message.to_owned());
            }
            let hash = hash.lower(&format!("{path}.consistentHash"), lowering)?;
            return Some(LoadBalancerRow { locality, ..hash });
        }
        let algorithm = match self.simple.as_deref() {
            Some("ROUND_ROBIN") => LbAlgorithm::RoundRobin,
            Some("RANDOM") => LbAlgorithm::Random,
            Some("PASSTHROUGH") => LbAlgorithm::Passthrough,
            Some("LEAST_REQUEST" | "LEAST_CONN") => LbAlgorithm::LeastRequest,
            _ if locality.is_some() => LbAlgorithm::LeastRequest,
            _ => return None,
        };
        Some(LoadBalancerRow { locality, ..algorithm.into() })
    }
}

impl ConsistentHash {
    fn lower(self, path: &str, lowering: &mut Lowering<'_>) -> Option<LoadBalancerRow> {
        // As the API has it.
        const RING: u32 = 1024;
        const TABLE: u32 = 65_537;
        let Self {
            http_header_name,
            http_cookie,
            use_source_ip,
            http_query_parameter_name,
            ring_hash,
            maglev,
            minimum_ring_size,
        } = self;
        let cookie = http_cookie.map(|Cookie { name, path, ttl, attributes }| HashKey::Cookie {
            name,
            path,
            ttl: time(ttl),
            attributes: attributes.into_iter().map(|a| (a.name, a.value)).collect(),
        });
        let keys = [
            http_header_name.map(HashKey::Header),
            cookie,
            use_source_ip.then_some(HashKey::SourceIp),
            http_query_parameter_name.map(HashKey::Query),
        ];
        let mut keys = keys.into_iter().flatten();
        let (Some(hash), None) = (keys.next(), keys.next()) else {
            let message = "must hold exactly one of httpHeaderName, httpCookie, useSourceIp, \
                           httpQueryParameterName";
            lowering.error(path.to_owned(), Reason::WrongType, message.to_owned());
            return None;
        };
        let least = ring_hash.as_ref().and_then(|r| r.minimum_ring_size).or(minimum_ring_size);
        let algorithm = match maglev {
            Some(_) if ring_hash.is_some() => {
                let message = "must not hold both `ringHash` and `maglev`; keep one of the two";
                lowering.error(path.to_owned(), Reason::WrongType, message.to_owned());
                return None;
            }
            Some(Maglev { table_size }) => {
                let size = table_size.filter(|size| *size > 0).unwrap_or(TABLE);
                if !is_prime(size) {
                    let message = format!("must be a prime, but is {size}; {TABLE} is the default");
                    lowering.error(format!("{path}.maglev.tableSize"), Reason::OutOfRange, message);
                    return None;
                }
                LbAlgorithm::Maglev { size }
            }
            None => LbAlgorithm::RingHash { least: least.filter(|n| *n > 0).unwrap_or(RING) },
        };
        Some(LoadBalancerRow { algorithm, hash: Some(hash), locality: None })
    }
}

fn is_prime(number: u32) -> bool {
    let divides = |d: &u32| number.is_multiple_of(*d);
    number > 1
        && !(2..number)
            .take_while(|d| u64::from(*d) * u64::from(*d) <= u64::from(number))
            .any(|d| divides(&d))
}

struct Lowering<'a> {
    owner: &'a Arc<ObjectRef>,
    problems: &'a mut Vec<Problem>,
}

// === impl Lowering ===

impl Lowering<'_> {
    /// How connections are secured; where that cannot be read there are none.
    fn tls(&mut self, tls: Option<Tls>, path: &str) -> Option<ClientTls> {
        let Some(tls) = tls else {
            let bad = self.problems.iter().any(|p| lies(&p.field, path));
            return bad.then_some(ClientTls::Refused);
        };
        if let Some(field) = tls.idle() {
            let message = "has no effect in this mode; remove it, or use mode MUTUAL";
            let field = format!("{path}.{field}");
            self.problems.push(Problem::warning(self.owner, field, Reason::NotSupported, message));
        }
        Some(tls.lower().unwrap_or_else(|(field, message)| {
            self.error(format!("{path}.{field}"), Reason::Required, message.to_owned());
            ClientTls::Refused
        }))
    }

    fn error(&mut self, field: String, reason: Reason, message: String) {
        self.problems.push(Problem::error(self.owner, field, reason, message));
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
