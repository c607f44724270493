//! The kinds of Kubernetes: files are not validated by an API server.

use std::sync::Arc;

use model::rows::{Endpoint, EndpointSlice, Protocol, Service, TargetPort, Workload};
use model::{Problem, Reason, Row};

use super::{assert_clear, faults, lower};

fn of(api: &str, kind: &str, labels: &str, rest: &str) -> (Vec<Row>, Vec<Problem>) {
    let (rows, problems) = lower(&format!(
        "apiVersion: {api}\nkind: {kind}\nmetadata: {{name: x, namespace: shop, labels: {labels}}}\n{rest}\n"
    ));
    assert_clear(&problems);
    (rows, problems)
}

fn service(ports: &str) -> (Option<Service>, Vec<Problem>) {
    let (rows, problems) = of("v1", "Service", "{}", &format!("spec: {{ports: {ports}}}"));
    match rows.into_iter().next() {
        Some(Row::Service(service)) => (Some(Arc::unwrap_or_clone(service)), problems),
        None => (None, problems),
        other => panic!("{other:?}"),
    }
}

fn slice(rest: &str) -> (Option<EndpointSlice>, Vec<Problem>) {
    let labels = "{kubernetes.io/service-name: web}";
    let (rows, problems) = of("discovery.k8s.io/v1", "EndpointSlice", labels, rest);
    match rows.into_iter().next() {
        Some(Row::EndpointSlice(slice)) => (Some(Arc::unwrap_or_clone(slice)), problems),
        None => (None, problems),
        other => panic!("{other:?}"),
    }
}

fn endpoints(list: &str) -> (Vec<Endpoint>, Vec<Problem>) {
    let (row, problems) = slice(&format!("endpoints: {list}\nports: [{{port: 80}}]"));
    (row.expect("a row").endpoints, problems)
}

fn pod(rest: &str) -> (Option<Workload>, Vec<Problem>) {
    let (rows, problems) = of("v1", "Pod", "{app: web}", rest);
    match rows.into_iter().next() {
        Some(Row::Workload(workload)) => (Some(Arc::unwrap_or_clone(workload)), problems),
        None => (None, problems),
        other => panic!("{other:?}"),
    }
}

#[test]
fn given_ports_that_are_bad_or_twice_there_then_the_others_count() {
    let (row, problems) = service(
        "[{port: 80, name: http}, {port: 80, name: again}, {port: 0}, {port: 53, protocol: UDP}, \
         {port: 53, name: dns-tcp}]",
    );
    let ports: Vec<_> = row.expect("a row").ports.iter().map(|p| p.number).collect();
    assert_eq!(ports, [80, 53]);
    assert_eq!(
        faults(&problems),
        [("spec.ports[1].port", Reason::Duplicate), ("spec.ports[2].port", Reason::OutOfRange)]
    );
}

#[test]
fn given_target_ports_then_numbers_and_names_are_told_apart() {
    let (row, problems) = service(
        "[{port: 1, targetPort: 8080}, {port: 2, targetPort: http}, {port: 3, targetPort: '8081'}, \
         {port: 4}, {port: 5, targetPort: 0}]",
    );
    assert_eq!(problems, []);
    let targets: Vec<_> = row.expect("a row").ports.into_iter().map(|p| p.target).collect();
    let number = TargetPort::Number;
    assert_eq!(
        targets,
        [number(8080), TargetPort::Name("http".into()), number(8081), number(4), number(5)]
    );
}

#[test]
fn given_a_port_that_is_no_port_then_the_service_is_not_used_and_the_field_is_named() {
    for (ports, field) in [
        ("[{port: 70000}]", "spec.ports[0].port"),
        ("[{port: 80}, {port: -1}]", "spec.ports[1].port"),
        ("[{port: http}]", "spec.ports[0].port"),
        ("[{name: http}]", "spec.ports[0]"),
        ("[{port: 80, targetPort: 70000}]", "spec.ports[0].targetPort"),
        ("{port: 80}", "spec.ports"),
    ] {
        let (row, problems) = service(ports);
        assert!(row.is_none(), "{ports}");
        assert_eq!(faults(&problems), [(field, Reason::WrongType)], "{ports}: {problems:?}");
    }
}

#[test]
fn given_a_port_then_what_it_speaks_comes_from_app_protocol_else_from_its_name() {
    for (port, protocol) in [
        ("{port: 1, name: http-web}", Protocol::Http),
        ("{port: 1, name: http-web, appProtocol: grpc}", Protocol::Http2),
        ("{port: 1, name: http-web, appProtocol: mystery}", Protocol::Http),
        ("{port: 1, name: HTTP2}", Protocol::Http2),
        ("{port: 1, name: httpx}", Protocol::Unknown),
        ("{port: 1}", Protocol::Unknown),
    ] {
        let (row, problems) = service(&format!("[{port}]"));
        assert_eq!(row.expect("a row").ports[0].protocol, protocol, "{port}");
        assert_eq!(problems, []);
    }
}

#[test]
fn given_a_service_without_spec_then_it_has_no_ports() {
    let (rows, problems) = of("v1", "Service", "null", "spec: null");
    assert!(matches!(&rows[..], [Row::Service(s)] if s.ports.is_empty()));
    assert_eq!(problems, []);
}

#[test]
fn given_a_slice_that_names_no_service_then_it_is_not_used() {
    for labels in ["{}", "null", "{kubernetes.io/service-name: ''}"] {
        let (rows, problems) = of("discovery.k8s.io/v1", "EndpointSlice", labels, "ports: []");
        assert!(rows.is_empty());
        assert_eq!(faults(&problems), [("metadata.labels", Reason::Required)]);
        assert!(problems[0].message.contains("kubernetes.io/service-name"));
    }
}

#[test]
fn given_an_address_that_is_none_then_its_endpoint_goes_alone() {
    let (found, problems) =
        endpoints("[{addresses: [10.0.0.1]}, {addresses: [10.0.0.300]}, {addresses: ['fd00::1']}]");
    assert_eq!(found.len(), 2);
    assert_eq!(faults(&problems), [("endpoints[1].addresses", Reason::WrongType)]);
}

#[test]
fn given_names_as_addresses_then_the_slice_is_not_used() {
    let (row, problems) = slice("addressType: FQDN\nendpoints: [{addresses: [a.com]}]");
    assert!(row.is_none());
    assert_eq!(faults(&problems), [("addressType", Reason::NotSupported)]);
}

#[test]
fn given_conditions_then_an_endpoint_is_ready_or_draining_or_neither() {
    for (conditions, ready, draining) in [
        ("{}", true, false),
        ("{ready: true}", true, false),
        ("{ready: false}", false, false),
        ("{ready: false, serving: true}", false, false),
        ("{ready: false, serving: true, terminating: true}", false, true),
        ("{ready: true, serving: true, terminating: true}", false, true),
        ("{ready: false, serving: false, terminating: true}", false, false),
        ("null", true, false),
    ] {
        let list = format!("[{{addresses: [10.0.0.1], conditions: {conditions}}}]");
        let (found, problems) = endpoints(&list);
        assert_eq!(problems, []);
        assert_eq!((found[0].ready, found[0].draining), (ready, draining), "{conditions}");
    }
}

#[test]
fn given_ports_of_a_slice_then_empty_ones_are_passed_over() {
    let (row, problems) =
        slice("endpoints: null\nports: [{name: a}, {port: 0}, {port: 80, name: b}]");
    let row = row.expect("a row");
    assert_eq!((row.ports.len(), row.ports[0].number, &problems[..]), (1, 80, &[][..]));
    assert_eq!((&*row.namespace, &*row.service), ("shop", "web"));
}

#[test]
fn given_a_pod_that_has_ended_then_it_gives_nothing() {
    for (phase, there) in [
        ("Pending", true),
        ("Running", true),
        ("Unknown", true),
        ("Succeeded", false),
        ("Failed", false),
    ] {
        let (row, problems) = pod(&format!("status: {{phase: {phase}, podIP: 10.0.0.1}}"));
        assert_eq!((row.is_some(), &problems[..]), (there, &[][..]), "{phase}");
    }
}

#[test]
fn given_a_pod_then_its_addresses_account_and_named_ports_count() {
    let (row, problems) = pod(
        "spec: {serviceAccountName: web, containers: [{ports: [{name: http, containerPort: 8080}, \
         {containerPort: 9}]}, {}]}\nstatus: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: \
         'fd00::1'}]}",
    );
    let row = row.expect("a row");
    assert_eq!(problems, []);
    assert_eq!((row.addresses.len(), &*row.service_account), (2, "web"));
    assert_eq!(row.named_ports.get("http"), Some(&8080));
}

#[test]
fn given_a_pod_address_that_is_none_then_it_is_said() {
    let (row, problems) = pod("status: {podIP: somewhere, podIPs: [{ip: ''}, {ip: 10.0.0.1}]}");
    assert_eq!(faults(&problems), [("status.podIP", Reason::WrongType)]);
    assert_eq!(row.expect("a row").addresses.len(), 1);
    let (row, problems) = pod("spec: {containers: [{ports: [{containerPort: 99999}]}]}");
    assert!(row.is_none());
    assert_eq!(problems[0].field, "spec.containers[0].ports[0].containerPort");
}

/// The service with this annotation `networking.istio.io/exportTo`.
fn exported(annotation: &str) -> (Service, Vec<Problem>) {
    let (rows, problems) = lower(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: x, namespace: shop, annotations: \
         {{networking.istio.io/exportTo: {annotation}}}}}\nspec: {{ports: [{{port: 80}}]}}\n"
    ));
    assert_clear(&problems);
    match rows.into_iter().next() {
        Some(Row::Service(service)) => (Arc::unwrap_or_clone(service), problems),
        other => panic!("{annotation}: {other:?} {problems:?}"),
    }
}

#[test]
fn given_the_annotation_export_to_then_the_service_says_to_whom_it_exists() {
    for (annotation, sees) in [
        ("'*'", vec!["shop", "edge", "a"]),
        (".", vec!["shop"]),
        ("'~'", vec![]),
        ("'., edge'", vec!["shop", "edge"]),
        ("edge", vec!["edge"]),
    ] {
        let (service, problems) = exported(annotation);
        assert_eq!(problems, []);
        let visibility = service.export_to.expect("there");
        let found: Vec<_> =
            ["shop", "edge", "a"].into_iter().filter(|n| visibility.sees(n)).collect();
        assert_eq!(found, sees, "{annotation}");
    }
    assert_eq!(exported("''").0.export_to, None);
    assert_eq!(service("[{port: 80}]").0.expect("a row").export_to, None);
}

#[test]
fn given_an_annotation_export_to_that_cannot_be_read_then_the_service_is_private() {
    for annotation in ["~", "7", "'edge,'", "'*,a b'", "[edge]", "shop/edge"] {
        let (service, problems) = exported(annotation);
        let field = "metadata.annotations.networking.istio.io/exportTo";
        assert_eq!(faults(&problems), [(field, Reason::WrongType)], "{annotation}");
        assert_eq!(problems[0].severity, model::Severity::Error);
        let visibility = service.export_to.expect("there");
        assert!(visibility.sees("shop") && !visibility.sees("edge"), "{annotation}");
    }
}

#[test]
fn given_ports_that_a_pod_takes_without_its_proxy_then_they_are_known() {
    let captured = |annotations: &str| {
        let metadata = format!("{{}}, annotations: {{{annotations}}}");
        let (rows, problems) = of("v1", "Pod", &metadata, "");
        let [Row::Workload(row)] = &rows[..] else { panic!("{rows:?}") };
        ([80, 81, 82].map(|port| row.captured.contain(port)), faults(&problems).len())
    };
    const PREFIX: &str = "traffic.sidecar.istio.io";
    assert_eq!(captured(""), ([true; 3], 0));
    assert_eq!(
        captured(&format!("{PREFIX}/excludeInboundPorts: '80, 82'")),
        ([false, true, false], 0)
    );
    assert_eq!(
        captured(&format!(
            "{PREFIX}/includeInboundPorts: '80,81', {PREFIX}/excludeInboundPorts: '81'"
        )),
        ([true, false, false], 0)
    );
    assert_eq!(captured(&format!("{PREFIX}/includeInboundPorts: ''")), ([false; 3], 0));
    assert_eq!(captured(&format!("{PREFIX}/includeInboundPorts: '*'")), ([true; 3], 0));
    for bad in ["http", "80-82", "99999"] {
        assert_eq!(captured(&format!("{PREFIX}/excludeInboundPorts: '{bad}'")), ([true; 3], 1));
    }
    assert_eq!(captured(&format!("{PREFIX}/excludeInboundPorts: 80")), ([true; 3], 1));
}
