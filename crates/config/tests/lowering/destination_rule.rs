//! DestinationRule: a part that cannot be read is left out, the rest is in force.

use std::time::Duration;

use model::rows::{DestinationPolicy, LbAlgorithm, LoadBalancer, TrafficPolicy};
use model::{Problem, Reason, Row};

use super::{assert_clear, faults, istio, lower};

fn of(spec: &str) -> (DestinationPolicy, Vec<Problem>) {
    let (rows, problems) = lower(&istio("DestinationRule", spec));
    assert_clear(&problems);
    match rows.into_iter().next() {
        Some(Row::DestinationPolicy(row)) => (std::sync::Arc::unwrap_or_clone(row), problems),
        other => panic!("{spec}: {other:?} {problems:?}"),
    }
}

fn policy(policy: &str) -> (TrafficPolicy, Vec<Problem>) {
    let (row, problems) = of(&format!("{{host: a, trafficPolicy: {policy}}}"));
    (row.policy, problems)
}

#[test]
fn given_two_subsets_of_one_name_then_the_first_is_in_force() {
    let (row, problems) = of("{host: a, subsets: [{name: v1, labels: {version: v1}}, {name: v1, \
                              labels: {version: v2}}, {name: v2}]}");
    assert_eq!(faults(&problems), [("spec.subsets[1].name", Reason::Duplicate)]);
    let names: Vec<_> = row.subsets.iter().map(|s| (&*s.name, &*s.field)).collect();
    assert_eq!(names, [("v1", "spec.subsets[0]"), ("v2", "spec.subsets[2]")]);
    assert_eq!(row.subsets[0].labels.get("version").map(|v| &**v), Some("v1"));
}

#[test]
fn given_a_subset_that_cannot_be_read_then_it_goes_alone() {
    for (subset, field) in [
        ("{labels: {a: b}}", "name"),
        ("{name: ''}", "name"),
        ("{name: 'a|b'}", "name"),
        ("{name: bad, labels: {version: 1}}", "labels.version"),
        ("{name: bad, labels: [a]}", "labels"),
    ] {
        let (row, problems) = of(&format!("{{host: a, subsets: [{subset}, {{name: v2}}]}}"));
        let names: Vec<_> = row.subsets.iter().map(|s| &*s.field).collect();
        assert_eq!(names, ["spec.subsets[1]"], "{subset}");
        assert_eq!(problems[0].field, format!("spec.subsets[0].{field}"), "{subset}");
    }
}

#[test]
fn given_consecutive_errors_then_it_counts_for_both_kinds_unless_the_newer_fields_say_otherwise() {
    for (fields, five, gateway) in [
        ("consecutiveErrors: 7", Some(7), Some(7)),
        ("consecutiveErrors: 0", Some(0), Some(0)),
        ("consecutiveErrors: 7, consecutive5xxErrors: 3", Some(3), Some(7)),
        ("consecutiveErrors: 7, consecutiveGatewayErrors: 0", Some(7), Some(0)),
        ("consecutive5xxErrors: 3", Some(3), None),
        ("interval: 1s", None, None),
    ] {
        let (policy, problems) = policy(&format!("{{outlierDetection: {{{fields}}}}}"));
        assert_eq!(problems, []);
        let found = policy.outlier_detection.expect("there");
        assert_eq!((found.consecutive_5xx, found.consecutive_gateway), (five, gateway), "{fields}");
    }
}

#[test]
fn given_a_bad_part_of_outlier_detection_then_the_rest_is_in_force() {
    for (part, field) in [
        ("consecutive5xxErrors: -1", "consecutive5xxErrors"),
        ("consecutive5xxErrors: many", "consecutive5xxErrors"),
        ("interval: 0s", "interval"),
        ("interval: 10", "interval"),
        ("baseEjectionTime: 0.1ms", "baseEjectionTime"),
        ("maxEjectionPercent: 101", "maxEjectionPercent"),
        ("minHealthPercent: -1", "minHealthPercent"),
        ("maxEjectionPercentage: 10", "maxEjectionPercentage"),
        ("outlierDetectionHttpErrorCodes: 500", "outlierDetectionHttpErrorCodes"),
    ] {
        let (policy, problems) =
            policy(&format!("{{outlierDetection: {{consecutiveErrors: 7, {part}}}}}"));
        assert_eq!(problems.len(), 1, "{part}: {problems:?}");
        assert_eq!(problems[0].field, format!("spec.trafficPolicy.outlierDetection.{field}"));
        let gateway = policy.outlier_detection.and_then(|o| o.consecutive_gateway);
        assert_eq!(gateway, Some(7), "{part}");
    }
}

#[test]
fn given_outlier_codes_then_bad_ones_go_alone_and_the_rest_are_sorted_once() {
    let (policy, problems) =
        policy("{outlierDetection: {outlierDetectionHttpErrorCodes: [503, 99, 500, 600, x, 503]}}");
    let path = "spec.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes";
    let fields: Vec<_> = problems.iter().map(|p| p.field.replace(path, "")).collect();
    assert_eq!(fields, ["[1]", "[3]", "[4]"]);
    assert_eq!(policy.outlier_detection.expect("there").error_codes, [500, 503]);
}

#[test]
fn given_a_load_balancer_then_its_word_is_known_or_said() {
    for (word, algorithm) in [
        ("ROUND_ROBIN", Some(LbAlgorithm::RoundRobin)),
        ("LEAST_CONN", Some(LbAlgorithm::LeastRequest)),
        ("LEAST_REQUEST", Some(LbAlgorithm::LeastRequest)),
        ("RANDOM", Some(LbAlgorithm::Random)),
        ("PASSTHROUGH", Some(LbAlgorithm::Passthrough)),
        ("UNSPECIFIED", None),
    ] {
        let (policy, problems) = policy(&format!("{{loadBalancer: {{simple: {word}}}}}"));
        let expected = algorithm.map(LoadBalancer::from);
        assert_eq!((policy.load_balancer, &problems[..]), (expected, &[][..]), "{word}");
    }
    let (policy, problems) = policy("{loadBalancer: {simple: round_robin}}");
    assert_eq!(policy.load_balancer, None);
    assert!(problems[0].message.contains("ROUND_ROBIN"), "{problems:?}");
}

#[test]
fn given_a_connection_pool_then_bad_numbers_go_alone_and_zero_is_not_set() {
    let (policy, problems) = policy(
        "{connectionPool: {tcp: {maxConnections: -1, connectTimeout: 30ms, tcpKeepalive: {time: \
         0.5s, probes: 3}}, http: {maxRetries: 0, http2MaxRequests: 10, h2UpgradePolicy: perhaps, \
         http2KeepAlive: {interval: 5s}}}}",
    );
    assert_eq!(
        faults(&problems),
        [
            ("spec.trafficPolicy.connectionPool.tcp.maxConnections", Reason::OutOfRange),
            ("spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.time", Reason::OutOfRange),
            ("spec.trafficPolicy.connectionPool.http.h2UpgradePolicy", Reason::WrongType),
        ]
    );
    let pool = policy.connection_pool.expect("there");
    assert_eq!(pool.tcp.max_connections, None);
    assert_eq!(pool.tcp.connect_timeout, Some(Duration::from_millis(30)));
    assert_eq!(pool.tcp.keep_alive.and_then(|k| k.probes), Some(3));
    assert_eq!((pool.http.max_retries, pool.http.max_requests), (None, Some(10)));
    assert_eq!(pool.http.http2_keep_alive.map(|k| k.timeout), Some(Duration::from_secs(5)));
}

#[test]
fn given_a_host_that_cannot_be_read_then_the_object_gives_nothing() {
    for (spec, reason) in [
        ("{}", Reason::Required),
        ("{host: ''}", Reason::WrongType),
        ("{host: 'a b'}", Reason::WrongType),
        ("{host: 7}", Reason::WrongType),
    ] {
        let (rows, problems) = lower(&istio("DestinationRule", spec));
        assert!(rows.is_empty());
        assert_eq!(faults(&problems), [("spec.host", reason)], "{spec}");
    }
}

#[test]
fn given_a_workload_selector_then_the_object_gives_nothing_because_it_would_apply_to_all() {
    let spec = "{host: a, workloadSelector: {matchLabels: {a: b}}}";
    let (rows, problems) = lower(&istio("DestinationRule", spec));
    assert!(rows.is_empty());
    assert_eq!(faults(&problems), [("spec.workloadSelector", Reason::NotSupported)]);
}

#[test]
fn given_export_to_then_the_policy_says_whose_clients_it_is_for() {
    let (row, problems) = of("{host: a, exportTo: [., edge]}");
    assert_eq!(problems, []);
    let visibility = row.export_to.expect("there");
    assert!(visibility.sees("shop") && visibility.sees("edge") && !visibility.sees("other"));
    assert_eq!(of("{host: a}").0.export_to, None);
    assert_eq!(of("{host: a, exportTo: []}").0.export_to, None);
    assert!(!of("{host: a, exportTo: ['~']}").0.export_to.expect("there").sees("shop"));
}

#[test]
fn given_export_to_that_cannot_be_read_then_the_policy_is_not_in_force() {
    for (export_to, field) in
        [("[., A]", "spec.exportTo[1]"), ("[~]", "spec.exportTo[0]"), ("'*'", "spec.exportTo")]
    {
        let spec = format!("{{host: a, exportTo: {export_to}}}");
        let (rows, problems) = lower(&istio("DestinationRule", &spec));
        assert_clear(&problems);
        assert_eq!((rows, faults(&problems)), (vec![], vec![(field, Reason::WrongType)]));
    }
}
