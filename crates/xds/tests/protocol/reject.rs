//! NACKs: who is parked, who goes on (R19–R26, R30).

use super::dsl::*;

#[test]
fn r19_an_error_is_a_rejection_whatever_else_the_request_says() {
    let mut proxy = Proxy::settled([resource(Lds, "l", 1)]);
    proxy.publish(|v| v.set(resource(Lds, "l", 2)));
    let response = proxy.gets(Lds, &["l"], &[]);
    proxy.nack(&response, "no");
    let rejections = proxy.session.take_rejections();
    assert_eq!(rejections.len(), 1);
    assert!(rejections[0].parked);
    assert_eq!(rejections[0].error, "no");
    assert_eq!(proxy.status(Lds).rejected_nonce, response.nonce);
    let good = resource(Lds, "l", 1).version();
    assert_eq!(proxy.session.held(Lds)["l"], good);
}

#[test]
fn r20_a_rejected_resource_is_parked_until_it_changes() {
    let mut proxy = Proxy::settled([resource(Lds, "l", 1), resource(Lds, "m", 1)]);
    proxy.publish(|v| v.set(resource(Lds, "l", 2)));
    let response = proxy.gets(Lds, &["l"], &[]);
    proxy.nack(&response, "no");
    proxy.is_silent();
    proxy.publish(|v| v.set(resource(Lds, "m", 2)));
    proxy.gets(Lds, &["m"], &[]);
    proxy.publish(|v| v.set(resource(Lds, "l", 2)));
    proxy.is_silent();
    assert_eq!(proxy.status(Lds).parked.len(), 1);
}

#[test]
fn r21_a_fix_is_delivered_at_once() {
    let mut proxy = Proxy::settled([resource(Lds, "l", 1)]);
    proxy.publish(|v| v.set(resource(Lds, "l", 2)));
    let response = proxy.gets(Lds, &["l"], &[]);
    proxy.nack(&response, "no");
    proxy.publish(|v| v.set(resource(Lds, "l", 3)));
    let response = proxy.gets(Lds, &["l"], &[]);
    proxy.ack(&response);
    assert!(proxy.status(Lds).parked.is_empty());
}

#[test]
fn r21_a_return_to_the_last_good_version_sends_nothing() {
    let mut proxy = Proxy::settled([resource(Lds, "l", 1)]);
    proxy.publish(|v| v.set(resource(Lds, "l", 2)));
    let response = proxy.gets(Lds, &["l"], &[]);
    proxy.nack(&response, "no");
    proxy.publish(|v| v.set(resource(Lds, "l", 1)));
    proxy.is_silent();
}

#[test]
fn r23_a_rejection_that_also_subscribes_does_both() {
    let mut proxy = Proxy::settled([resource(Eds, "a", 1)]);
    proxy.publish(|v| v.set(resource(Eds, "a", 2)).set(resource(Eds, "b", 1)));
    let response = proxy.gets(Eds, &["a"], &[]);
    proxy.request(
        Eds,
        xds::DeltaRequest {
            subscribe: vec!["b".into()],
            nonce: response.nonce.clone(),
            error: Some("no".into()),
            ..xds::DeltaRequest::default()
        },
    );
    proxy.gets(Eds, &["b"], &[]);
    assert_eq!(proxy.status(Eds).rejected, 1);
}

#[test]
fn r24_nothing_of_a_rejected_response_counts_as_held_and_the_last_good_version_stays() {
    let names = ["a", "b"];
    let mut proxy = Proxy::settled(names.map(|n| resource(Eds, n, 1)));
    proxy.publish(|v| names.into_iter().fold(v, |v, n| v.set(resource(Eds, n, 2))));
    let batch = proxy.gets(Eds, &names, &[]);
    proxy.nack(&batch, "one of them is bad");
    let versions = |proxy: &Proxy| {
        let held = proxy.session.held(Eds);
        names.map(|name| held[name])
    };
    assert_eq!(versions(&proxy), names.map(|n| resource(Eds, n, 1).version()));
    for single in proxy.written() {
        proxy.nack(&single, "bad");
    }
    assert_eq!(versions(&proxy), names.map(|n| resource(Eds, n, 1).version()));
    proxy.publish(|v| v.set(resource(Eds, "b", 3)));
    proxy.gets(Eds, &["b"], &[]);
}

#[test]
fn r25_the_suspects_of_a_rejected_batch_are_sent_one_by_one() {
    let mut proxy = Proxy::offered(["a", "b", "c"].map(|n| resource(Eds, n, 1)));
    proxy.ask(Eds, &["a", "b", "c"]);
    let batch = proxy.gets(Eds, &["a", "b", "c"], &[]);
    proxy.nack(&batch, "one of them is bad");
    assert_eq!(proxy.holds(Eds), Vec::<String>::new());
    let singles = proxy.written();
    assert_eq!(singles.len(), 3);
    for single in &singles {
        match &**single.resources[0].name() {
            "b" => proxy.nack(single, "bad"),
            _ => proxy.ack(single),
        }
    }
    // No good version was ever held: an empty assignment stands in.
    let stand_in = proxy.gets(Eds, &["b"], &[]);
    assert_eq!(&stand_in.resources[0].body()[..], b"\x0a\x01b");
    proxy.ack(&stand_in);
    proxy.is_silent();
    assert_eq!(proxy.holds(Eds), ["a", "b", "c"]);
}

#[test]
fn r25_clusters_that_the_error_does_not_name_count_as_held() {
    let mut proxy = Proxy::settled(["a", "b", "c"].map(|n| resource(Cds, n, 1)));
    proxy.publish(|v| ["a", "b", "c"].into_iter().fold(v, |v, n| v.set(resource(Cds, n, 2))));
    let batch = proxy.gets(Cds, &["a", "b", "c"], &[]);
    proxy.nack(&batch, "Error adding/updating cluster(s) b: bad address");
    let single = proxy.gets(Cds, &["b"], &[]);
    proxy.nack(&single, "Error adding/updating cluster(s) b: bad address");
    proxy.is_silent();
    let held = proxy.session.held(Cds);
    assert_eq!(held["a"], resource(Cds, "a", 2).version());
    assert_eq!(held["b"], resource(Cds, "b", 1).version());
}

#[test]
fn a_cluster_never_accepted_gets_a_stand_in_and_routes_to_it_go_out() {
    let mut proxy = Proxy::settled([resource(Cds, "a", 1), resource(Rds, "r", 1)]);
    proxy.publish(|v| v.set(resource(Cds, "b", 1)).set(refers(Rds, "r", 2, &[(Cds, "b")])));
    let cluster = proxy.gets(Cds, &["b"], &[]);
    proxy.nack(&cluster, "bad");
    let stand_in = proxy.gets(Cds, &["b"], &[]);
    assert_eq!(&stand_in.resources[0].body()[..], b"\x0a\x01b");
    proxy.ack(&stand_in);
    proxy.gets(Rds, &["r"], &[]);
    proxy.publish(|v| v.set(resource(Cds, "b", 2)));
    let fixed = proxy.gets(Cds, &["b"], &[]);
    assert_ne!(fixed.resources[0].body(), stand_in.resources[0].body());
}

#[test]
fn when_even_the_stand_in_is_refused_nothing_loops_and_routes_go_out() {
    let mut proxy = Proxy::settled([resource(Cds, "a", 1), resource(Rds, "r", 1)]);
    proxy.publish(|v| v.set(resource(Cds, "b", 1)).set(refers(Rds, "r", 2, &[(Cds, "b")])));
    for _ in 0..2 {
        let cluster = proxy.written().remove(0);
        assert_eq!(cluster.resource_type, Cds);
        proxy.nack(&cluster, "bad");
    }
    proxy.gets(Rds, &["r"], &[]);
    proxy.is_silent();
}

#[test]
fn a_host_never_accepted_answers_500_and_the_others_live() {
    let mut proxy = Proxy::settled([resource(Rds, "80", 1), host("80/a", 1, &["a"], &[])]);
    proxy.publish(|v| v.set(host("80/a", 2, &["a"], &[])).set(host("80/b", 1, &["b"], &[])));
    let batch = proxy.gets(Vhds, &["80/a", "80/b"], &[]);
    proxy.nack(&batch, "missing ): ((");
    let singles = proxy.written();
    assert_eq!(singles.len(), 2);
    proxy.ack(&singles[0]);
    proxy.nack(&singles[1], "missing ): ((");
    let stand_in = proxy.gets(Vhds, &["80/b"], &[]);
    assert_eq!(stand_in.resources[0].claims(), ["b".into()]);
    proxy.ack(&stand_in);
    proxy.is_silent();
}

#[test]
fn of_two_suspects_the_one_that_gives_a_domain_up_goes_first() {
    let mut proxy = Proxy::settled([
        resource(Rds, "80", 1),
        host("80/a", 1, &["a"], &[]),
        host("80/b", 1, &["b", "x"], &[]),
    ]);
    proxy.publish(|v| v.set(host("80/a", 2, &["a", "x"], &[])).set(host("80/b", 2, &["b"], &[])));
    let pair = proxy.gets(Vhds, &["80/a", "80/b"], &[]);
    proxy.nack(&pair, "no");
    let singles = proxy.written();
    assert_eq!(&**singles[0].resources[0].name(), "80/b");
    assert_eq!(&**singles[1].resources[0].name(), "80/a");
}

#[test]
fn r30_a_rejection_of_one_type_leaves_the_others_alone() {
    let mut proxy = Proxy::settled([resource(Cds, "c", 1), resource(Lds, "l", 1)]);
    proxy.publish(|v| v.set(resource(Cds, "c", 2)));
    let before = proxy.status(Lds);
    let response = proxy.gets(Cds, &["c"], &[]);
    proxy.nack(&response, "no");
    proxy.is_silent();
    assert_eq!(proxy.status(Lds), before);
}

#[test]
fn a_refused_removal_is_parked_and_does_not_loop() {
    let mut proxy = Proxy::settled([resource(Lds, "l", 1)]);
    proxy.publish(|v| v.remove(Lds, "l"));
    let response = proxy.gets(Lds, &[], &["l"]);
    proxy.nack(&response, "no");
    proxy.is_silent();
    proxy.publish(|v| v.set(resource(Lds, "l", 2)));
    proxy.gets(Lds, &["l"], &[]);
}
