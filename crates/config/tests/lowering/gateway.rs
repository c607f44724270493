//! Gateway: which servers open, and on which proxies.

use std::sync::Arc;

use model::rows::{Gateway, HostScope};
use model::{Problem, Reason, Row};

use super::{assert_clear, faults, istio, lower};

const GOOD: &str = "{port: {number: 8081, protocol: HTTP}, hosts: ['*']}";

fn of(spec: &str) -> (Gateway, Vec<Problem>) {
    let (rows, problems) = lower(&istio("Gateway", spec));
    assert_clear(&problems);
    match rows.into_iter().next() {
        Some(Row::Gateway(row)) => (Arc::unwrap_or_clone(row), problems),
        other => panic!("{spec}: {other:?} {problems:?}"),
    }
}

fn servers(list: &str) -> (Vec<String>, Vec<Problem>) {
    let (row, problems) = of(&format!("{{selector: {{a: b}}, servers: [{list}]}}"));
    (row.servers.iter().map(|s| s.field.to_string()).collect(), problems)
}

#[test]
fn given_a_server_that_cannot_be_served_then_the_others_open() {
    for (server, field, reason) in [
        (
            "{port: {number: 443, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE}}",
            "tls",
            Reason::NotSupported,
        ),
        (
            "{port: {number: 80, protocol: HTTP}, hosts: ['*'], tls: {}}",
            "tls",
            Reason::NotSupported,
        ),
        (
            "{port: {number: 443, protocol: HTTPS}, hosts: ['*']}",
            "port.protocol",
            Reason::NotSupported,
        ),
        (
            "{port: {number: 80, protocol: TCP}, hosts: ['*']}",
            "port.protocol",
            Reason::NotSupported,
        ),
        ("{port: {number: 80, protocol: SPDY}, hosts: ['*']}", "port.protocol", Reason::WrongType),
        ("{port: {number: 80, protocol: 1}, hosts: ['*']}", "port.protocol", Reason::WrongType),
        ("{port: {number: 80}, hosts: ['*']}", "port.protocol", Reason::Required),
        ("{port: {protocol: HTTP}, hosts: ['*']}", "port.number", Reason::Required),
        ("{port: {number: 0, protocol: HTTP}, hosts: ['*']}", "port.number", Reason::OutOfRange),
        (
            "{port: {number: 65536, protocol: HTTP}, hosts: ['*']}",
            "port.number",
            Reason::OutOfRange,
        ),
        ("{port: 80, hosts: ['*']}", "port", Reason::WrongType),
        ("{hosts: ['*']}", "port", Reason::Required),
        ("{port: {number: 80, protocol: HTTP}}", "hosts", Reason::Required),
        ("{port: {number: 80, protocol: HTTP}, hosts: []}", "hosts", Reason::Required),
        ("{port: {number: 80, protocol: HTTP}, hosts: '*'}", "hosts", Reason::WrongType),
        (
            "{port: {number: 80, protocol: HTTP}, hosts: ['*'], bind: everywhere}",
            "bind",
            Reason::WrongType,
        ),
        (
            "{port: {number: 80, protocol: HTTP}, hosts: ['*'], defaultEndpoint: 'unix:///x'}",
            "defaultEndpoint",
            Reason::NotSupported,
        ),
        (
            "{port: null, port: {number: 80, protocol: HTTP}, hosts: ['*']}",
            "port",
            Reason::Required,
        ),
    ] {
        let (open, problems) = servers(&format!("{server}, {GOOD}"));
        assert_eq!(open, ["spec.servers[1]"], "{server}: {problems:?}");
        let field = format!("spec.servers[0].{field}");
        assert_eq!(faults(&problems)[0], (field.as_str(), reason), "{server}");
    }
}

#[test]
fn given_hosts_of_which_one_is_bad_then_the_server_accepts_the_others() {
    let (row, problems) = of("{selector: {a: b}, servers: [{port: {number: 80, protocol: http}, \
                              hosts: [./A.com, 'x y', ns/*, '*.b.com']}]}");
    assert_eq!(faults(&problems), [("spec.servers[0].hosts[1]", Reason::WrongType)]);
    let hosts: Vec<_> = row.servers[0].hosts.iter().map(|h| (&h.scope, &*h.host)).collect();
    let namespace = |name: &str| HostScope::Namespace(name.into());
    assert_eq!(
        hosts,
        [(&namespace("shop"), "a.com"), (&namespace("ns"), "*"), (&HostScope::Any, "*.b.com")]
    );
}

#[test]
fn given_a_server_all_of_whose_hosts_are_bad_then_it_does_not_open() {
    let (open, problems) =
        servers("{port: {number: 80, protocol: HTTP}, hosts: ['x y', 'a:80', http://a]}");
    assert!(open.is_empty());
    assert_eq!(faults(&problems).last(), Some(&("spec.servers[0].hosts", Reason::Required)));
}

#[test]
fn given_a_selector_that_cannot_be_read_then_the_gateway_opens_nowhere() {
    for (selector, field) in [
        ("[istio]", "spec.selector"),
        ("{istio: 1}", "spec.selector.istio"),
        ("{istio: null}", "spec.selector.istio"),
        ("{'': a}", "spec.selector."),
        ("ingress", "spec.selector"),
    ] {
        let spec = format!("{{selector: {selector}, servers: [{GOOD}]}}");
        let (rows, problems) = lower(&istio("Gateway", &spec));
        assert!(rows.is_empty(), "{selector}: {rows:?}");
        assert_eq!(problems[0].field, field);
    }
}

#[test]
fn given_a_bind_address_then_unspecified_means_every_address() {
    for (bind, found) in [("10.0.0.1", Some("10.0.0.1")), ("0.0.0.0", None), ("'::'", None)] {
        let (row, problems) = of(&format!(
            "{{selector: {{a: b}}, servers: [{{port: {{number: 80, protocol: HTTP, name: http, \
             targetPort: 8080}}, name: web, hosts: ['*'], bind: {bind}}}]}}"
        ));
        assert_eq!(problems, [], "what has no effect gives no problem");
        assert_eq!(row.servers[0].bind.map(|b| b.to_string()).as_deref(), found);
    }
}

#[test]
fn given_no_servers_then_that_is_said() {
    for (spec, reason) in
        [("{selector: {a: b}}", Reason::Required), ("{servers: x}", Reason::WrongType)]
    {
        let (rows, problems) = lower(&istio("Gateway", spec));
        assert!(rows.is_empty());
        assert_eq!(faults(&problems), [("spec.servers", reason)]);
    }
}
