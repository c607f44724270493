//! What waits for what (R42, R63, R69–R79, R81).

use xds::Notice;

use super::dsl::*;

#[test]
fn r42_a_wildcard_without_resources_is_answered_at_once() {
    let mut proxy = Proxy::offered([]);
    proxy.ask(Cds, &[]);
    let response = proxy.gets(Cds, &[], &[]);
    proxy.ack(&response);
    proxy.is_silent();
}

#[test]
fn r63_a_secret_that_a_held_listener_names_is_not_removed_before_the_listener_changes() {
    let mut proxy = Proxy::settled([refers(Lds, "l", 1, &[(Sds, "s")]), resource(Sds, "s", 1)]);
    proxy.publish(|v| v.remove(Sds, "s").set(resource(Lds, "l", 2)));
    let response = proxy.gets(Lds, &["l"], &[]);
    proxy.ack(&response);
    proxy.gets(Sds, &[], &["s"]);
}

#[test]
fn r69_one_change_of_all_types_goes_out_in_push_order() {
    let names = [(Cds, "c"), (Eds, "c"), (Lds, "l"), (Rds, "r"), (Sds, "s")];
    let mut proxy = Proxy::settled(names.map(|(t, n)| resource(t, n, 1)));
    proxy.publish(|v| {
        let add = |v: xds::LayerEdit, (t, n)| v.set(resource(t, n, 2));
        names.into_iter().rev().fold(v, add)
    });
    assert_eq!(types(&proxy.written()), [Cds, Eds, Lds, Rds, Sds]);
}

#[test]
fn all_parts_of_cds_go_before_the_first_lds_answer() {
    let settings = xds::Settings { response_bytes: 1, ..xds::Settings::default() };
    let all = [resource(Cds, "a", 1), resource(Cds, "b", 1), resource(Lds, "l", 1)];
    let mut proxy = Proxy::with(settings, all);
    proxy.ask(Lds, &[]);
    proxy.ask(Cds, &[]);
    assert_eq!(types(&proxy.written()), [Cds, Cds, Lds]);
}

#[test]
fn r70_a_route_to_a_new_cluster_follows_the_ack_of_the_cluster() {
    let mut proxy = Proxy::settled([resource(Cds, "a", 1), refers(Rds, "r", 1, &[(Cds, "a")])]);
    proxy.publish(|v| v.set(resource(Cds, "b", 1)).set(refers(Rds, "r", 2, &[(Cds, "b")])));
    let cluster = proxy.gets(Cds, &["b"], &[]);
    proxy.ask(Eds, &["b"]);
    proxy.gets(Eds, &["b"], &[]);
    proxy.ack(&cluster);
    proxy.gets(Rds, &["r"], &[]);
    assert_eq!(proxy.notices(), []);
}

#[test]
fn r70_a_route_goes_anyway_when_the_cluster_is_not_acked_within_10_s() {
    let mut proxy = Proxy::settled([resource(Rds, "r", 1), resource(Cds, "a", 1)]);
    proxy.publish(|v| v.set(resource(Cds, "b", 1)).set(refers(Rds, "r", 2, &[(Cds, "b")])));
    proxy.gets(Cds, &["b"], &[]);
    let wait = proxy.session.next_deadline().unwrap() - proxy.now;
    assert_eq!(wait.as_secs(), 10);
    proxy.wait(9);
    proxy.is_silent();
    proxy.wait(1);
    proxy.gets(Rds, &["r"], &[]);
    assert!(matches!(
        &proxy.notices()[..],
        [Notice::SentBeforeReference { resource, missing }]
            if &*resource.name == "r" && &*missing[0].name == "b"
    ));
}

#[test]
fn r70_a_listener_goes_anyway_when_the_cluster_is_not_acked_within_20_s() {
    let mut proxy = Proxy::settled([resource(Lds, "l", 1), resource(Cds, "a", 1)]);
    proxy.publish(|v| v.set(resource(Cds, "b", 1)).set(refers(Lds, "l", 2, &[(Cds, "b")])));
    proxy.gets(Cds, &["b"], &[]);
    proxy.wait(19);
    proxy.is_silent();
    proxy.wait(1);
    proxy.gets(Lds, &["l"], &[]);
    assert_eq!(proxy.notices().len(), 1);
}

#[test]
fn the_first_lds_answer_holds_all_listeners_or_waits() {
    let mut proxy = Proxy::offered([
        resource(Cds, "a", 1),
        refers(Lds, "x", 1, &[(Cds, "a")]),
        resource(Lds, "y", 1),
    ]);
    proxy.ask(Cds, &[]);
    let clusters = proxy.gets(Cds, &["a"], &[]);
    proxy.ask(Lds, &[]);
    proxy.is_silent();
    proxy.ack(&clusters);
    proxy.gets(Lds, &["x", "y"], &[]);
}

#[test]
fn after_a_reconnect_a_listener_waits_a_moment_for_cds_to_be_asked_for() {
    let old = resource(Lds, "l", 1);
    let mut proxy = Proxy::offered([resource(Cds, "a", 1), refers(Lds, "l", 2, &[(Cds, "a")])]);
    proxy.now = std::time::Duration::ZERO;
    proxy.reconnect(Lds, &[], &[old]);
    proxy.is_silent();
    proxy.ask(Cds, &[]);
    let clusters = proxy.gets(Cds, &["a"], &[]);
    proxy.ack(&clusters);
    proxy.gets(Lds, &["l"], &[]);
}

#[test]
fn a_client_that_never_asks_for_cds_gets_its_listeners_after_the_grace() {
    let mut proxy = Proxy::offered([resource(Cds, "a", 1), refers(Lds, "l", 2, &[(Cds, "a")])]);
    proxy.now = std::time::Duration::ZERO;
    proxy.ask(Lds, &[]);
    proxy.is_silent();
    proxy.now = proxy.session.next_deadline().unwrap();
    proxy.session.on_timer(proxy.now);
    proxy.gets(Lds, &["l"], &[]);
}

#[test]
fn r71_a_removed_cluster_goes_after_the_ack_of_the_routes_that_drop_it() {
    let mut proxy = Proxy::settled([
        resource(Cds, "a", 1),
        resource(Cds, "b", 1),
        refers(Rds, "r", 1, &[(Cds, "a")]),
    ]);
    proxy.publish(|v| v.remove(Cds, "a").set(refers(Rds, "r", 2, &[(Cds, "b")])));
    let routes = proxy.gets(Rds, &["r"], &[]);
    proxy.wait(10);
    proxy.is_silent();
    proxy.ack(&routes);
    proxy.gets(Cds, &[], &["a"]);
    assert_eq!(proxy.notices(), []);
}

#[test]
fn r71_a_removal_waits_20_s_at_most() {
    let mut proxy = Proxy::settled([resource(Cds, "a", 1), refers(Lds, "l", 1, &[(Cds, "a")])]);
    proxy.publish(|v| v.remove(Cds, "a").set(resource(Lds, "l", 2)));
    proxy.gets(Lds, &["l"], &[]);
    proxy.wait(19);
    proxy.is_silent();
    proxy.wait(1);
    proxy.gets(Cds, &[], &["a"]);
    assert!(matches!(
        &proxy.notices()[..],
        [Notice::RemovedWhileReferenced { resource }] if &*resource.name == "a"
    ));
}

#[test]
fn r71_after_a_reconnect_unknown_listeners_may_still_use_the_vanished_cluster() {
    let mut proxy = Proxy::offered([resource(Lds, "l", 2)]);
    proxy.reconnect(Lds, &[], &[resource(Lds, "l", 1)]);
    proxy.reconnect(Cds, &[], &[resource(Cds, "gone", 1)]);
    let listener = proxy.gets(Lds, &["l"], &[]);
    proxy.ack(&listener);
    proxy.gets(Cds, &[], &["gone"]);
}

#[test]
fn r72_the_endpoints_of_a_changed_cluster_follow_unchanged_and_only_those() {
    let all = [
        resource(Cds, "a", 1),
        resource(Cds, "b", 1),
        resource(Eds, "a", 1),
        resource(Eds, "b", 1),
    ];
    let mut proxy = Proxy::settled(all);
    proxy.publish(|v| v.set(resource(Cds, "a", 2)));
    let written = proxy.written();
    assert_eq!(
        shape(&written),
        [(Cds, vec!["a".to_owned()], vec![]), (Eds, vec!["a".to_owned()], vec![])]
    );
}

#[test]
fn r73_endpoints_sent_before_their_cluster_are_sent_once_more() {
    let mut proxy = Proxy::settled([resource(Cds, "a", 1), resource(Eds, "a", 1)]);
    proxy.publish(|v| v.set(resource(Eds, "a", 2)));
    let endpoints = proxy.gets(Eds, &["a"], &[]);
    proxy.publish(|v| v.set(resource(Cds, "a", 2)));
    let written = proxy.written();
    assert_eq!(types(&written), [Cds, Eds]);
    proxy.ack(&endpoints);
    proxy.ack(&written[0]);
    proxy.ack(&written[1]);
    proxy.is_silent();
}

#[test]
fn r74_endpoints_never_wait_for_the_ack_of_cds() {
    let mut proxy = Proxy::offered([resource(Cds, "a", 1), resource(Eds, "a", 1)]);
    proxy.ask(Cds, &[]);
    proxy.gets(Cds, &["a"], &[]);
    proxy.ask(Eds, &["a"]);
    let endpoints = proxy.gets(Eds, &["a"], &[]);
    proxy.ack(&endpoints);
    proxy.publish(|v| v.set(resource(Eds, "a", 2)));
    proxy.gets(Eds, &["a"], &[]);
}

#[test]
fn r75_after_a_reconnect_children_follow_their_changed_parents_unasked() {
    let children = [resource(Eds, "c", 1), resource(Sds, "s", 1), resource(Sds, "t", 1)];
    let mut proxy = Proxy::offered([
        refers(Cds, "c", 2, &[(Sds, "s")]),
        refers(Lds, "l", 2, &[(Sds, "t")]),
        children[0].clone(),
        children[1].clone(),
        children[2].clone(),
    ]);
    proxy.reconnect(Eds, &["c"], &children[..1]);
    proxy.reconnect(Lds, &[], &[resource(Lds, "l", 1)]);
    proxy.reconnect(Sds, &["s", "t"], &children[1..]);
    proxy.reconnect(Cds, &[], &[resource(Cds, "c", 1)]);
    let written = proxy.written();
    assert_eq!(types(&written), [Cds, Eds, Lds, Sds]);
    assert_eq!(written[3].resources.len(), 2);
}

#[test]
fn r75_after_a_reconnect_children_follow_parents_that_were_sent_before_they_were_asked_for() {
    let (endpoints, secret) = (resource(Eds, "c", 1), resource(Sds, "s", 1));
    let cluster = refers(Cds, "c", 2, &[(Sds, "s")]);
    let others = [resource(Cds, "d", 1), resource(Eds, "d", 1)];
    let all = [cluster, endpoints.clone(), secret.clone()].into_iter().chain(others.clone());
    let mut proxy = Proxy::offered(all);
    proxy.reconnect(Cds, &[], &[resource(Cds, "c", 1), others[0].clone()]);
    let cluster = proxy.gets(Cds, &["c"], &[]);
    proxy.reconnect(Eds, &["c", "d"], &[endpoints, others[1].clone()]);
    proxy.gets(Eds, &["c"], &[]);
    proxy.ack(&cluster);
    proxy.reconnect(Sds, &["s"], &[secret]);
    proxy.gets(Sds, &["s"], &[]);
}

#[test]
fn r76_endpoints_of_a_cluster_that_vanished_while_warming_are_answered() {
    let mut proxy = Proxy::settled([resource(Cds, "other", 1)]);
    proxy.ask(Eds, &["vanished"]);
    proxy.gets(Eds, &["vanished"], &[]);
}

#[test]
fn r77_a_subset_of_names_is_answered_without_waiting_for_the_others() {
    let mut proxy = Proxy::offered(["a", "b"].map(|n| resource(Eds, n, 1)));
    proxy.ask(Eds, &["b"]);
    proxy.gets(Eds, &["b"], &[]);
}

#[test]
fn r78_a_rotated_secret_changes_nothing_else() {
    let mut proxy = Proxy::settled([refers(Lds, "l", 1, &[(Sds, "s")]), resource(Sds, "s", 1)]);
    proxy.publish(|v| v.set(resource(Sds, "s", 2)));
    proxy.gets(Sds, &["s"], &[]);
}

#[test]
fn r79_the_secrets_of_a_listener_that_changed_are_sent_again_unchanged() {
    let mut proxy = Proxy::settled([
        refers(Lds, "l", 1, &[(Sds, "s")]),
        resource(Sds, "s", 1),
        resource(Sds, "t", 1),
    ]);
    proxy.publish(|v| v.set(refers(Lds, "l", 2, &[(Sds, "s")])));
    let written = proxy.written();
    let names = |name: &str| vec![name.to_owned()];
    assert_eq!(shape(&written), [(Lds, names("l"), vec![]), (Sds, names("s"), vec![])]);
}

#[test]
fn r81_routes_that_are_asked_for_again_after_their_listener_changed_are_answered() {
    let mut proxy = Proxy::settled([refers(Lds, "l", 1, &[(Rds, "r")]), resource(Rds, "r", 1)]);
    proxy.publish(|v| v.set(refers(Lds, "l", 2, &[(Rds, "r")])));
    let listener = proxy.gets(Lds, &["l"], &[]);
    proxy.ack(&listener);
    proxy.ask(Rds, &["r"]);
    let routes = proxy.gets(Rds, &["r"], &[]);
    assert_eq!(routes.resources[0].version(), resource(Rds, "r", 1).version());
}

#[test]
fn a_reference_to_what_the_scope_does_not_offer_gates_nothing() {
    let mut proxy = Proxy::settled([resource(Cds, "a", 1), resource(Lds, "l", 1)]);
    proxy.publish(|v| v.set(refers(Lds, "l", 2, &[(Cds, "static")])));
    proxy.gets(Lds, &["l"], &[]);
}

#[test]
fn r71_after_a_reconnect_a_vanished_cluster_waits_for_routes_to_be_asked_for() {
    let mut proxy = Proxy::offered([resource(Rds, "r", 2)]);
    proxy.now = std::time::Duration::ZERO;
    proxy.reconnect(Cds, &[], &[resource(Cds, "gone", 1)]);
    proxy.is_silent();
    proxy.reconnect(Rds, &["r"], &[refers(Rds, "r", 1, &[(Cds, "gone")])]);
    let routes = proxy.gets(Rds, &["r"], &[]);
    proxy.ack(&routes);
    proxy.is_silent();
    // Hosts and listeners are not asked for at all.
    proxy.wait(1);
    proxy.gets(Cds, &[], &["gone"]);
}

#[test]
fn r75_endpoints_are_sent_again_to_a_proxy_that_came_back_before_its_changed_cluster_was_warm() {
    let (cluster, endpoints) = (resource(Cds, "c", 2), resource(Eds, "c", 1));
    let mut proxy = Proxy::offered([cluster.clone(), endpoints.clone()]);
    proxy.now = std::time::Duration::ZERO;
    // Envoy has the new cluster, not its endpoints: it asks for clusters once that is warm.
    proxy.reconnect(Eds, &["c"], &[endpoints]);
    proxy.is_silent();
    proxy.wait(1);
    let response = proxy.gets(Eds, &["c"], &[]);
    proxy.ack(&response);
    proxy.reconnect(Cds, &[], &[cluster]);
    proxy.is_silent();
}
