//! VirtualService: what drops a rule, and what does not.

use std::sync::Arc;

use std::time::Duration;

use model::rows::{
    Forward, GatewayName, HttpAction, HttpRule, PortRedirect, RouteRules, StringMatch,
};
use model::{Problem, Reason, Row};

use super::{assert_clear, errors, faults, istio, lower};

/// A rule that is good, to be found again behind a bad one.
const GOOD: &str = "{name: good, route: [{destination: {host: good}}]}";

/// Rules and problems of a VirtualService with these `http` rules.
fn rules(http: &str) -> (RouteRules, Vec<Problem>) {
    of(&format!("{{hosts: [shop.example.com], http: [{http}]}}"))
}

fn of(spec: &str) -> (RouteRules, Vec<Problem>) {
    let (rows, problems) = lower(&istio("VirtualService", spec));
    assert_clear(&problems);
    match rows.into_iter().next() {
        Some(Row::RouteRules(rules)) => (Arc::unwrap_or_clone(rules), problems),
        other => panic!("{spec}: {other:?} {problems:?}"),
    }
}

/// The one problem of a rule that is dropped while the next one stays, path included.
fn dropped(rule: &str) -> Problem {
    let (rules, mut problems) = rules(&format!("{rule}, {GOOD}"));
    let left: Vec<_> = rules.http.iter().map(|r| &*r.field).collect();
    assert_eq!(left, ["spec.http[1]"], "{rule}: {problems:?}");
    assert_eq!(errors(&problems), 1, "{rule}: {problems:?}");
    problems.remove(0)
}

/// The rule and the one problem that leaves it in force.
fn kept(rule: &str) -> (HttpRule, Problem) {
    let (mut rules, mut problems) = rules(&format!("{rule}, {GOOD}"));
    assert_eq!((rules.http.len(), problems.len()), (2, 1), "{rule}: {problems:?}");
    (rules.http.remove(0), problems.remove(0))
}

fn forward(rule: &HttpRule) -> &Forward {
    match &rule.action {
        HttpAction::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

fn weights(rule: &HttpRule) -> Vec<u32> {
    forward(rule).destinations.iter().map(|d| d.weight).collect()
}

fn split(weights: &[&str]) -> String {
    let each = |w: &&str| format!("{{destination: {{host: a}}, weight: {w}}}");
    format!("{{route: [{}]}}", weights.iter().map(each).collect::<Vec<_>>().join(", "))
}

#[test]
fn given_weights_that_cannot_be_used_then_their_rule_is_dropped_and_only_it() {
    for (weights, field, reason) in [
        (["-1", "50"], "spec.http[0].route[0].weight", Reason::OutOfRange),
        (["50", "4294967296"], "spec.http[0].route[1].weight", Reason::OutOfRange),
        (["50", "99999999999999999999"], "spec.http[0].route[1].weight", Reason::WrongType),
        (["half", "50"], "spec.http[0].route[0].weight", Reason::WrongType),
        (["50.5", "50"], "spec.http[0].route[0].weight", Reason::WrongType),
        (["0", "0"], "spec.http[0].route", Reason::OutOfRange),
    ] {
        let problem = dropped(&split(&weights));
        assert_eq!((problem.field.as_str(), problem.reason), (field, reason), "{weights:?}");
    }
}

#[test]
fn given_weights_whose_sum_overflows_u32_then_the_rule_is_dropped() {
    let problem = dropped(&split(&["2147483647", "2147483647", "2147483647"]));
    assert_eq!(problem.field, "spec.http[0].route");
    assert!(problem.message.contains("6442450941"), "{problem}");
}

#[test]
fn given_a_single_destination_then_it_gets_everything_whatever_its_weight_says() {
    for weight in ["0", "1", "100"] {
        let (rules, problems) = rules(&split(&[weight]));
        assert_eq!((weights(&rules.http[0]), &problems[..]), (vec![100], &[][..]));
    }
}

#[test]
fn given_weights_that_do_not_add_up_to_100_then_they_are_shares() {
    let (rules, problems) = rules(&split(&["1", "2", "0"]));
    assert_eq!((weights(&rules.http[0]), &problems[..]), (vec![1, 2, 0], &[][..]));
}

#[test]
fn given_a_match_that_cannot_be_read_then_its_rule_is_dropped_and_only_it() {
    let to = "route: [{destination: {host: a}}]";
    for (condition, field, reason) in [
        ("{uri: {regex: '('}}", "uri.regex", Reason::WrongType),
        ("{uri: {regex: 'a**'}}", "uri.regex", Reason::WrongType),
        ("{uri: {regex: ''}}", "uri.regex", Reason::WrongType),
        ("{uri: {exact: /a, prefix: /b}}", "uri", Reason::WrongType),
        ("{uri: {suffix: /a}}", "uri.suffix", Reason::UnknownField),
        ("{uri: /a}", "uri", Reason::WrongType),
        ("{urri: {exact: /a}}", "urri", Reason::UnknownField),
        ("{headers: {x: {exact: 7}}}", "headers.x.exact", Reason::WrongType),
        ("{headers: {'a b': {exact: x}}}", "headers.a b", Reason::WrongType),
        ("{headers: [x]}", "headers", Reason::WrongType),
        ("{method: GET}", "method", Reason::WrongType),
        ("{port: 0}", "port", Reason::OutOfRange),
        ("{port: 65536}", "port", Reason::OutOfRange),
        ("{port: http}", "port", Reason::WrongType),
        ("{ignoreUriCase: 'yes'}", "ignoreUriCase", Reason::WrongType),
        ("{queryParams: {q: {regex: '[a--b]'}}}", "queryParams.q.regex", Reason::WrongType),
        ("{scheme: http}", "scheme", Reason::WrongType),
        ("{withoutHeaders: {x: a}}", "withoutHeaders.x", Reason::WrongType),
        ("{sourceLabels: {a: 1}}", "sourceLabels.a", Reason::WrongType),
    ] {
        let problem = dropped(&format!("{{match: [{{uri: {{prefix: /ok}}}}, {condition}], {to}}}"));
        let field = format!("spec.http[0].match[1].{field}");
        assert_eq!((&problem.field, problem.reason), (&field, reason), "{condition}");
    }
    for condition in ["null", "[]", "/a"] {
        let problem = dropped(&format!("{{match: [{condition}], {to}}}"));
        assert_eq!(problem.field, "spec.http[0].match[0]", "{condition}");
    }
    assert_eq!(
        dropped(&format!("{{match: {{uri: {{exact: /a}}}}, {to}}}")).field,
        "spec.http[0].match"
    );
}

#[test]
fn given_a_duplicate_condition_then_the_rule_is_dropped_because_either_may_be_meant() {
    let problem = dropped(
        "{match: [{uri: {exact: /a}, uri: {exact: /b}}], route: [{destination: {host: a}}]}",
    );
    assert_eq!(
        (problem.field.as_str(), problem.reason),
        ("spec.http[0].match[0].uri", Reason::Duplicate)
    );
}

#[test]
fn given_conditions_then_they_are_taken_as_written_with_lower_case_header_names() {
    let (rules, problems) = rules(
        "{match: [{uri: {prefix: /}, authority: {exact: A.com}, headers: {X-B: {regex: '.+'}, \
         X-A: {}}, queryParams: {q: {exact: '1'}}, method: {exact: GET}, port: 80}], \
         route: [{destination: {host: a}}]}",
    );
    assert_eq!(problems, []);
    let found = &rules.http[0].matches[0];
    let names: Vec<_> = found.headers.iter().map(|h| &*h.name).collect();
    assert_eq!(names, [":authority", ":method", "x-a", "x-b"]);
    assert_eq!(found.headers[2].value, StringMatch::Present);
    assert_eq!((found.port, found.query.len()), (Some(80), 1));
}

#[test]
fn given_a_bad_timeout_then_the_rule_stays_with_the_default() {
    for timeout in ["5", "'5'", "soon", "-1s", "10us", "100000000h", "[1s]"] {
        let (rule, problem) =
            kept(&format!("{{timeout: {timeout}, route: [{{destination: {{host: a}}}}]}}"));
        assert_eq!(problem.field, "spec.http[0].timeout", "{timeout}");
        assert_eq!(forward(&rule).timeout, None, "{timeout}");
    }
    let (rules, problems) = rules("{timeout: 1.5s, route: [{destination: {host: a}}]}");
    assert_eq!(
        (forward(&rules.http[0]).timeout, &problems[..]),
        (Some(Duration::from_millis(1500)), &[][..])
    );
}

#[test]
fn given_bad_attempts_then_the_default_policy_stays_and_retries_are_not_turned_off() {
    for attempts in ["-1", "three", "1.5", "10000000"] {
        let rule =
            format!("{{retries: {{attempts: {attempts}}}, route: [{{destination: {{host: a}}}}]}}");
        let (rule, problem) = kept(&rule);
        assert_eq!(problem.field, "spec.http[0].retries.attempts");
        assert_eq!(forward(&rule).retries, None, "{attempts}");
    }
}

#[test]
fn given_a_bad_part_of_retries_then_the_rest_of_the_policy_is_in_force() {
    for (part, field) in [
        ("perTryTimeout: 0s", "perTryTimeout"),
        ("perTryTimeout: 2", "perTryTimeout"),
        ("retryOn: sometimes", "retryOn"),
        ("retryOn: [5xx]", "retryOn"),
        ("backoff: 0.1ms", "backoff"),
        ("retryRemoteLocalities: 1", "retryRemoteLocalities"),
        ("perTryTimeOut: 2s", "perTryTimeOut"),
    ] {
        let rule =
            format!("{{retries: {{attempts: 3, {part}}}, route: [{{destination: {{host: a}}}}]}}");
        let (rule, problem) = kept(&rule);
        assert_eq!(problem.field, format!("spec.http[0].retries.{field}"));
        assert_eq!(forward(&rule).retries.as_ref().map(|r| r.attempts), Some(3), "{part}");
    }
}

#[test]
fn given_a_bad_rewrite_then_the_rule_is_dropped() {
    for (rewrite, field) in [
        ("{uri: 7}", ".uri"),
        ("{urii: /a}", ".urii"),
        ("{uri: /a, uriRegexRewrite: {match: a, rewrite: b}}", ""),
        ("{uriRegexRewrite: {match: '(', rewrite: b}}", ".uriRegexRewrite.match"),
        ("{uriRegexRewrite: {rewrite: b}}", ".uriRegexRewrite.match"),
        (r#"{authority: "a\nb"}"#, ".authority"),
        ("/a", ""),
    ] {
        let problem =
            dropped(&format!("{{rewrite: {rewrite}, route: [{{destination: {{host: a}}}}]}}"));
        assert_eq!(problem.field, format!("spec.http[0].rewrite{field}"), "{rewrite}");
    }
}

#[test]
fn given_a_redirect_then_its_code_is_one_of_five() {
    for (code, good) in [
        (301, true),
        (302, true),
        (303, true),
        (307, true),
        (308, true),
        (300, false),
        (304, false),
    ] {
        let rule = format!("{{redirect: {{uri: /a, redirectCode: {code}}}}}");
        if good {
            let (rules, problems) = rules(&rule);
            assert_eq!(problems, []);
            assert!(matches!(&rules.http[0].action, HttpAction::Redirect(r) if r.code == code));
        } else {
            assert_eq!(dropped(&rule).field, "spec.http[0].redirect.redirectCode", "{code}");
        }
    }
    for code in ["200", "999", "moved"] {
        let problem = dropped(&format!("{{redirect: {{uri: /a, redirectCode: {code}}}}}"));
        assert_eq!(problem.field, "spec.http[0].redirect.redirectCode", "{code}");
    }
}

#[test]
fn given_a_redirect_that_changes_nothing_then_it_is_dropped_because_it_would_loop() {
    for redirect in ["{}", "{redirectCode: 302}"] {
        let problem = dropped(&format!("{{redirect: {redirect}}}"));
        assert_eq!(
            (problem.field.as_str(), problem.reason),
            ("spec.http[0].redirect", Reason::Required)
        );
    }
}

#[test]
fn given_parts_of_a_redirect_that_exclude_each_other_then_it_is_said_which_counts() {
    let (rule, problem) = kept("{redirect: {port: 8443, derivePort: FROM_REQUEST_PORT}}");
    assert_eq!(problem.field, "spec.http[0].redirect.derivePort");
    assert!(
        matches!(&rule.action, HttpAction::Redirect(r) if r.port == Some(PortRedirect::Number(8443)))
    );
    let (_, problem) = kept("{redirect: {uri: /a, prefixRewrite: /b}}");
    assert_eq!(problem.field, "spec.http[0].redirect.prefixRewrite");
    let (_, problem) = kept("{redirect: {uri: /a}, timeout: 5s}");
    assert_eq!(problem.field, "spec.http[0].timeout");
}

#[test]
fn given_no_action_or_two_then_the_rule_is_dropped() {
    assert_eq!(dropped("{name: none}").reason, Reason::Required);
    assert_eq!(dropped("{route: []}").reason, Reason::Required);
    let both = "{redirect: {uri: /a}, route: [{destination: {host: a}}]}";
    assert_eq!(dropped(both).field, "spec.http[0]");
    assert_eq!(dropped("{route: [{}]}").field, "spec.http[0].route[0].destination");
    assert_eq!(
        dropped("{route: [{destination: {}}]}").field,
        "spec.http[0].route[0].destination.host"
    );
    assert_eq!(dropped("{directResponse: {status: 99}}").reason, Reason::OutOfRange);
    assert_eq!(dropped("{delegate: {name: b}}").reason, Reason::NotSupported);
    assert_eq!(dropped("{delegate: {name: x}}").reason, Reason::NotSupported);
    assert_eq!(dropped("null").field, "spec.http[0]");
}

#[test]
fn given_a_bad_destination_then_the_rule_is_dropped() {
    for (destination, field) in [
        ("{host: 'a b'}", "host"),
        ("{host: 'a:80'}", "host"),
        ("{host: '*.a.com'}", "host"),
        ("{host: a, port: 80}", "port"),
        ("{host: a, port: {number: 0}}", "port.number"),
        ("{host: a, port: {name: http}}", "port.name"),
        ("{host: a, subset: 1}", "subset"),
        ("{host: a, subsets: v1}", "subsets"),
    ] {
        let problem = dropped(&format!("{{route: [{{destination: {destination}}}]}}"));
        assert_eq!(problem.field, format!("spec.http[0].route[0].destination.{field}"));
    }
}

#[test]
fn given_hosts_that_are_bad_or_twice_there_then_the_others_count() {
    let spec =
        format!("{{hosts: ['a b', shop, 7, shop.shop.svc.cluster.local, B.com], http: [{GOOD}]}}");
    let (rules, problems) = of(&spec);
    let hosts: Vec<_> = rules.hosts.iter().map(|h| &**h).collect();
    assert_eq!(hosts, ["shop.shop.svc.cluster.local", "b.com"]);
    assert_eq!(
        faults(&problems),
        [
            ("spec.hosts[0]", Reason::WrongType),
            ("spec.hosts[2]", Reason::WrongType),
            ("spec.hosts[3]", Reason::Duplicate),
        ]
    );
}

#[test]
fn given_no_host_that_can_be_used_then_the_object_gives_nothing() {
    for (hosts, field) in
        [("[]", "spec.hosts"), ("['a b']", "spec.hosts[0]"), ("shop", "spec.hosts")]
    {
        let (rows, problems) =
            lower(&istio("VirtualService", &format!("{{hosts: {hosts}, http: [{GOOD}]}}")));
        assert!(rows.is_empty(), "{hosts}");
        assert_eq!(problems[0].field, field);
    }
    let (rows, problems) = lower(&istio("VirtualService", &format!("{{http: [{GOOD}]}}")));
    assert_eq!((rows.len(), problems[0].reason), (0, Reason::Required));
}

#[test]
fn given_bad_gateways_then_the_object_gives_nothing_because_it_would_apply_elsewhere() {
    for gateways in ["[a/b/c]", "['a b']", "edge", "[7]", "[edge, null]"] {
        let spec = format!("{{hosts: [a.com], gateways: {gateways}, http: [{GOOD}]}}");
        let (rows, problems) = lower(&istio("VirtualService", &spec));
        assert!(rows.is_empty(), "{gateways}: {rows:?}");
        assert_eq!(errors(&problems), 1, "{gateways}: {problems:?}");
        assert!(problems[0].field.starts_with("spec.gateways"), "{problems:?}");
    }
}

#[test]
fn given_gateways_then_short_names_are_of_the_own_namespace_and_none_is_the_mesh() {
    let gateways = |list: &str| {
        of(&format!("{{hosts: [a.com], gateways: {list}, http: [{GOOD}]}}")).0.gateways
    };
    let named = |namespace: &str, name: &str| GatewayName::Gateway {
        namespace: namespace.into(),
        name: name.into(),
    };
    assert_eq!(gateways("[]"), [GatewayName::Mesh]);
    assert_eq!(
        gateways("[mesh, edge, edge, istio-system/edge]"),
        [GatewayName::Mesh, named("shop", "edge"), named("istio-system", "edge")]
    );
}

#[test]
fn given_fields_without_effect_then_they_give_no_problem() {
    let (_, problems) = rules("{websocketUpgrade: true, route: [{destination: {host: a}}]}");
    assert_eq!(problems, []);
}

#[test]
fn given_a_mistyped_field_of_a_rule_then_it_is_named_with_its_neighbour() {
    let (_, problem) = kept("{timout: 5s, route: [{destination: {host: a}}]}");
    assert_eq!(
        (problem.field.as_str(), problem.reason),
        ("spec.http[0].timout", Reason::UnknownField)
    );
    assert!(problem.message.contains("`timeout`"), "{problem}");
}

#[test]
fn given_export_to_then_the_rules_say_who_applies_them() {
    for (export_to, sees) in [
        ("['*']", vec!["shop", "edge", "a"]),
        ("[.]", vec!["shop"]),
        ("['~']", vec![]),
        ("[., edge]", vec!["shop", "edge"]),
        ("[edge]", vec!["edge"]),
    ] {
        let (rules, problems) = of(&format!("{{hosts: [a.com], exportTo: {export_to}}}"));
        assert_eq!(problems, []);
        let visibility = rules.export_to.expect("there");
        let found: Vec<_> =
            ["shop", "edge", "a"].into_iter().filter(|n| visibility.sees(n)).collect();
        assert_eq!(found, sees, "{export_to}");
    }
    for absent in ["", ", exportTo: []"] {
        assert_eq!(of(&format!("{{hosts: [a.com]{absent}}}")).0.export_to, None, "{absent}");
    }
}

#[test]
fn given_export_to_that_cannot_be_read_then_nobody_gets_the_rules() {
    for (export_to, field) in [
        ("[edge, 'a b']", "spec.exportTo[1]"),
        ("[shop/a]", "spec.exportTo[0]"),
        ("[~]", "spec.exportTo[0]"),
        ("[7]", "spec.exportTo[0]"),
        ("edge", "spec.exportTo"),
    ] {
        let spec = format!("{{hosts: [a.com], exportTo: {export_to}}}");
        let (rows, problems) = lower(&istio("VirtualService", &spec));
        assert_clear(&problems);
        assert_eq!((rows, faults(&problems)), (vec![], vec![(field, Reason::WrongType)]));
    }
}
