//! Virtual hosts: with their RouteConfiguration, and domains that move (R65).

use super::dsl::*;

fn routes() -> [xds::EncodedResource; 5] {
    [
        resource(Cds, "a", 1),
        resource(Rds, "80", 1),
        host("80/*", 1, &["*"], &[]),
        host("80/a", 1, &["a"], &["a"]),
        resource(Rds, "81", 1),
    ]
}

#[test]
fn r65_hosts_come_after_their_route_configuration_in_one_response() {
    let mut proxy = Proxy::offered(routes());
    proxy.ask(Cds, &[]);
    proxy.ack_all();
    proxy.ask(Vhds, &[]);
    proxy.is_silent();
    proxy.ask(Rds, &["80"]);
    let written = proxy.written();
    assert_eq!(types(&written), [Rds, Vhds]);
    assert_eq!(written[1].resources.len(), 2);
}

#[test]
fn the_first_hosts_are_never_split() {
    let settings = xds::Settings { response_bytes: 1, ..xds::Settings::default() };
    let mut proxy = Proxy::with(settings, routes());
    proxy.ask(Rds, &["80"]);
    proxy.gets(Rds, &["80"], &[]);
    proxy.ask(Vhds, &[]);
    proxy.gets(Vhds, &["80/*", "80/a"], &[]);
}

#[test]
fn the_first_hosts_wait_together_for_their_clusters_for_10_s_at_most() {
    let mut proxy = Proxy::offered(routes());
    proxy.ask(Cds, &[]);
    let clusters = proxy.gets(Cds, &["a"], &[]);
    proxy.ask(Rds, &["80"]);
    proxy.ask(Vhds, &[]);
    proxy.gets(Rds, &["80"], &[]);
    proxy.wait(9);
    proxy.is_silent();
    proxy.wait(1);
    proxy.gets(Vhds, &["80/*", "80/a"], &[]);
    proxy.ack(&clusters);
    proxy.is_silent();
}

#[test]
fn hosts_are_sent_again_when_their_route_configuration_is_newly_asked_for() {
    let mut proxy = Proxy::settled(routes());
    proxy.drop_names(Rds, &["80"]);
    let gone = proxy.gets(Vhds, &[], &["80/*", "80/a"]);
    proxy.ack(&gone);
    proxy.ask(Rds, &["80"]);
    assert_eq!(types(&proxy.ack_all()), [Rds, Vhds]);
    proxy.ask(Rds, &["80"]);
    assert_eq!(types(&proxy.written()), [Rds, Vhds]);
}

#[test]
fn only_the_changed_host_is_pushed() {
    let mut proxy = Proxy::settled(routes());
    proxy.publish(|v| v.set(host("80/a", 2, &["a"], &["a"])));
    proxy.gets(Vhds, &["80/a"], &[]);
}

#[test]
fn a_new_host_of_a_held_route_configuration_follows_its_cluster() {
    let mut proxy = Proxy::settled(routes());
    proxy.publish(|v| v.set(resource(Cds, "b", 1)).set(host("80/b", 1, &["b"], &["b"])));
    let cluster = proxy.gets(Cds, &["b"], &[]);
    proxy.ack(&cluster);
    proxy.gets(Vhds, &["80/b"], &[]);
}

#[test]
fn after_a_reconnect_hosts_are_kept_until_their_route_configuration_is_known() {
    let all = routes();
    let mut proxy = Proxy::offered(all.clone());
    proxy.reconnect(Vhds, &[], &[all[2].clone(), host("80/gone", 1, &["g"], &[])]);
    proxy.is_silent();
    proxy.reconnect(Rds, &["80"], &all[1..2]);
    let written = proxy.ack_all();
    assert_eq!(
        shape(&written),
        [
            (Vhds, vec!["80/a".to_owned(), "80/gone".to_owned()], vec![]),
            (Vhds, vec![], vec!["80/gone".to_owned()])
        ]
    );
    assert_eq!(proxy.holds(Vhds), ["80/*", "80/a"]);
}

#[test]
fn a_domain_that_moves_takes_both_hosts_in_one_response() {
    let mut proxy = Proxy::settled([
        resource(Rds, "80", 1),
        host("80/a", 1, &["a", "x"], &[]),
        host("80/b", 1, &["b"], &[]),
    ]);
    proxy.publish(|v| {
        v.set(host("80/a", 2, &["a"], &[]))
            .set(host("80/b", 2, &["b", "x"], &["c"]))
            .set(resource(Cds, "c", 1))
    });
    // The taker waits for its cluster, so the giver waits with it.
    let cluster = proxy.gets(Cds, &["c"], &[]);
    proxy.ack(&cluster);
    proxy.gets(Vhds, &["80/a", "80/b"], &[]);
}

#[test]
fn a_vanishing_host_whose_domain_is_taken_is_parked_on_a_placeholder_first() {
    let mut proxy = Proxy::settled([resource(Rds, "80", 1), host("80/a", 1, &["x"], &[])]);
    proxy.publish(|v| v.remove(Vhds, "80/a").set(host("80/b", 1, &["x"], &[])));
    let both = proxy.gets(Vhds, &["80/a", "80/b"], &[]);
    assert!(both.resources[0].body().ends_with(b".invalid"));
    proxy.ack(&both);
    let removal = proxy.gets(Vhds, &[], &["80/a"]);
    proxy.ack(&removal);
    assert_eq!(proxy.holds(Vhds), ["80/b"]);
}

#[test]
fn equal_domains_of_two_route_configurations_have_nothing_to_do_with_each_other() {
    let mut proxy = Proxy::settled([
        resource(Rds, "80", 1),
        resource(Rds, "81", 1),
        host("80/a", 1, &["x"], &[]),
    ]);
    proxy.publish(|v| v.set(host("81/a", 1, &["x"], &[])));
    proxy.gets(Vhds, &["81/a"], &[]);
}

#[test]
fn hosts_queued_behind_a_route_configuration_that_is_dropped_are_not_written() {
    let mut proxy = Proxy::offered(routes());
    proxy.ask(Vhds, &[]);
    proxy.ask(Rds, &["80"]);
    let first = proxy.session.poll_output().unwrap();
    assert_eq!(first.resource_type, Rds);
    proxy.drop_names(Rds, &["80"]);
    proxy.is_silent();
}

#[test]
fn a_swap_of_domains_goes_together_although_both_hosts_were_suspects_in_an_older_version() {
    let swap = |n, of_a: &str, of_b: &str| {
        [host("80/a", n, &["a", of_a], &[]), host("80/b", n, &["b", of_b], &[])]
    };
    let mut proxy = Proxy::settled(swap(1, "x", "y").into_iter().chain([resource(Rds, "80", 1)]));
    let [a, b] = swap(2, "x", "y");
    proxy.publish(|v| v.set(a).set(b));
    let late = proxy.gets(Vhds, &["80/a", "80/b"], &[]);
    let [a, b] = swap(3, "y", "x");
    proxy.publish(|v| v.set(a).set(b));
    proxy.nack(&late, "one of them is bad");
    proxy.gets(Vhds, &["80/a", "80/b"], &[]);
}

#[test]
fn a_host_refused_for_a_domain_that_another_kept_is_sent_when_that_one_gives_it_up() {
    let mut proxy = Proxy::settled([
        resource(Rds, "80", 1),
        host("80/a", 1, &["a", "x"], &[]),
        host("80/b", 1, &["b"], &[]),
    ]);
    proxy.publish(|v| v.set(host("80/a", 2, &["a"], &[])).set(host("80/b", 2, &["b", "x"], &[])));
    let pair = proxy.gets(Vhds, &["80/a", "80/b"], &[]);
    proxy.nack(&pair, "a is bad");
    for single in proxy.written() {
        proxy.nack(&single, "a is bad, so b has x twice");
    }
    proxy.is_silent();
    proxy.publish(|v| v.set(host("80/a", 3, &["a"], &[])));
    let fixed = proxy.gets(Vhds, &["80/a"], &[]);
    proxy.ack(&fixed);
    proxy.gets(Vhds, &["80/b"], &[]);
}
