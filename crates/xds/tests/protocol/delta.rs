//! Streams, subscriptions and reconnects of the delta variant (R6–R12, R18–R28, R46–R64, R82–R98, R103).

use std::collections::BTreeSet;
use std::sync::Arc;

use xds::{DeltaRequest, Settings};

use super::dsl::*;

#[test]
fn r6_nonces_are_unique_on_the_stream_across_types() {
    let mut proxy = Proxy::offered([resource(Cds, "c", 1), resource(Lds, "l", 1)]);
    proxy.ask(Cds, &[]);
    proxy.ask(Lds, &[]);
    proxy.ask(Eds, &["c", "d"]);
    let written = proxy.written();
    let nonces: BTreeSet<_> = written.iter().map(|r| r.nonce.clone()).collect();
    assert_eq!(nonces.len(), 3);
    assert!(!nonces.contains(""));
}

#[test]
fn r7_a_nonce_of_an_older_stream_on_the_first_request_is_no_answer() {
    let mut proxy = Proxy::offered([resource(Cds, "c", 1)]);
    proxy.request(
        Cds,
        DeltaRequest {
            nonce: "1".into(),
            error: Some("of the older stream".into()),
            ..DeltaRequest::default()
        },
    );
    proxy.gets(Cds, &["c"], &[]);
    assert_eq!(proxy.status(Cds).rejected, 0);
}

#[test]
fn r9_two_sessions_of_one_node_share_nothing() {
    let mut one = Proxy::offered([resource(Cds, "c", 1)]);
    let mut two = Proxy::offered([resource(Cds, "c", 1)]);
    one.ask(Cds, &[]);
    two.ask(Cds, &[]);
    let response = one.gets(Cds, &["c"], &[]);
    one.ack(&response);
    two.gets(Cds, &["c"], &[]);
    assert_eq!(two.holds(Cds), Vec::<String>::new());
}

#[test]
fn r10_an_unsubscribed_name_is_not_written_although_it_was_queued() {
    let settings = Settings { response_bytes: 1, ..Settings::default() };
    let mut proxy = Proxy::with(settings, ["a", "b"].map(|n| resource(Eds, n, 1)));
    proxy.ask(Eds, &["a", "b"]);
    let first = proxy.session.poll_output().unwrap();
    assert_eq!(&**first.resources[0].name(), "a");
    proxy.drop_names(Eds, &["b"]);
    proxy.is_silent();
    proxy.ack(&first);
    assert_eq!(proxy.status(Eds).in_flight, 0);
}

#[test]
fn r10_a_type_that_was_not_asked_for_never_comes() {
    let mut proxy = Proxy::offered([resource(Cds, "c", 1), resource(Lds, "l", 1)]);
    proxy.is_silent();
    proxy.ask(Cds, &[]);
    proxy.gets(Cds, &["c"], &[]);
}

#[test]
fn r11_a_name_occurs_once_in_a_response() {
    let mut proxy = Proxy::settled([resource(Cds, "c", 1)]);
    proxy.publish(|v| v.set(resource(Cds, "c", 2)));
    proxy.ask(Cds, &["c", "c"]);
    proxy.gets(Cds, &["c"], &[]);
}

#[test]
fn r12_the_resources_of_a_response_are_of_its_type() {
    let mut proxy = Proxy::offered([resource(Cds, "c", 1), resource(Lds, "l", 1)]);
    proxy.ask(Lds, &[]);
    proxy.ask(Cds, &[]);
    for response in proxy.written() {
        let mut types = response.resources.iter().map(|r| r.resource_type());
        assert!(types.all(|t| t == response.resource_type));
    }
}

#[test]
fn r14_several_queued_requests_get_one_answer() {
    let mut proxy = Proxy::offered(["a", "b"].map(|n| resource(Eds, n, 1)));
    proxy.ask(Eds, &["a"]);
    proxy.ask(Eds, &["b"]);
    proxy.gets(Eds, &["a", "b"], &[]);
}

#[test]
fn r18_an_ack_is_silent_and_counts_as_held() {
    let mut proxy = Proxy::offered([resource(Cds, "c", 1)]);
    proxy.ask(Cds, &[]);
    let response = proxy.gets(Cds, &["c"], &[]);
    let before = proxy.status(Cds);
    assert_ne!(before.sent_version, before.acked_version);
    proxy.ack(&response);
    proxy.is_silent();
    let after = proxy.status(Cds);
    assert_eq!(after.sent_version, after.acked_version);
    assert_eq!((after.acked, after.acked_nonce), (1, response.nonce));
    assert_eq!(proxy.holds(Cds), ["c"]);
}

#[test]
fn a_name_that_was_asked_for_is_unanswered_until_it_is_written() {
    let mut proxy = Proxy::offered([resource(Eds, "a", 1)]);
    for name in ["a", "b"] {
        proxy.ask(Eds, &[name]);
        assert!(proxy.status(Eds).unanswered);
        proxy.session.poll_output().expect("an answer");
        assert!(!proxy.status(Eds).unanswered);
    }
}

#[test]
fn r27_a_spontaneous_request_leaves_the_ack_state_alone() {
    let mut proxy = Proxy::offered([resource(Eds, "a", 1), resource(Eds, "b", 1)]);
    proxy.ask(Eds, &["a"]);
    proxy.gets(Eds, &["a"], &[]);
    proxy.ask(Eds, &["b"]);
    assert_eq!(proxy.status(Eds).in_flight, 1);
}

#[test]
fn r28_a_stale_nonce_changes_neither_acked_nor_error_state() {
    let mut proxy = Proxy::settled([resource(Cds, "c", 1)]);
    let before = proxy.status(Cds);
    for (nonce, error) in [("1", None), ("77", Some("no".to_owned()))] {
        let nonce = nonce.to_owned();
        proxy.request(Cds, DeltaRequest { nonce, error, ..DeltaRequest::default() });
    }
    proxy.is_silent();
    assert_eq!(proxy.status(Cds), before);
}

#[test]
fn r29_an_overdue_ack_shows_as_stale_and_holds_up_no_other_type() {
    let mut proxy = Proxy::offered([resource(Cds, "c", 1), resource(Lds, "l", 1)]);
    proxy.ask(Cds, &[]);
    proxy.gets(Cds, &["c"], &[]);
    proxy.wait(61);
    assert!(proxy.status(Cds).stale);
    proxy.ask(Lds, &[]);
    proxy.gets(Lds, &["l"], &[]);
    assert!(!proxy.status(Lds).stale);
}

#[test]
fn r46_a_first_request_without_names_means_everything_then_names_count() {
    for first in [&[][..], &["*"][..]] {
        let mut proxy = Proxy::offered(["a", "b"].map(|n| resource(Cds, n, 1)));
        proxy.ask(Cds, first);
        let response = proxy.gets(Cds, &["a", "b"], &[]);
        proxy.ack(&response);
        proxy.ask(Cds, &["a"]);
        let response = proxy.gets(Cds, &["a"], &[]);
        proxy.ack(&response);
        proxy.drop_names(Cds, &["*"]);
        proxy.is_silent();
        assert_eq!(proxy.holds(Cds), ["a"]);
        proxy.publish(|v| v.set(resource(Cds, "b", 2)));
        proxy.is_silent();
        proxy.publish(|v| v.set(resource(Cds, "a", 2)));
        let response = proxy.gets(Cds, &["a"], &[]);
        proxy.ack(&response);
        proxy.drop_names(Cds, &["a"]);
        proxy.publish(|v| v.set(resource(Cds, "a", 3)));
        proxy.is_silent();
    }
}

#[test]
fn r47_subscribing_and_unsubscribing_everything_at_once_subscribes_to_nothing() {
    let mut proxy = Proxy::offered(["a", "b"].map(|n| resource(Cds, n, 1)));
    proxy.request(
        Cds,
        DeltaRequest {
            subscribe: vec!["*".into()],
            unsubscribe: vec!["*".into()],
            ..DeltaRequest::default()
        },
    );
    proxy.is_silent();
    proxy.ask(Cds, &["b"]);
    proxy.gets(Cds, &["b"], &[]);
}

#[test]
fn r48_a_held_name_that_is_asked_for_again_is_sent_again() {
    let mut proxy = Proxy::settled([resource(Eds, "a", 1)]);
    proxy.ask(Eds, &["a"]);
    proxy.gets(Eds, &["a"], &[]);
}

#[test]
fn r49_unsubscribing_an_unknown_name_is_ignored() {
    let mut proxy = Proxy::settled([resource(Eds, "a", 1), resource(Cds, "c", 1)]);
    proxy.drop_names(Eds, &["x"]);
    proxy.drop_names(Cds, &["x"]);
    proxy.is_silent();
}

#[test]
fn r50_an_unsubscribed_name_is_silent_for_ever() {
    let mut proxy = Proxy::settled([resource(Eds, "a", 1)]);
    proxy.drop_names(Eds, &["a"]);
    proxy.is_silent();
    proxy.publish(|v| v.set(resource(Eds, "a", 2)));
    proxy.is_silent();
    proxy.publish(|v| v.remove(Eds, "a"));
    proxy.is_silent();
}

#[test]
fn r51_under_a_wildcard_an_unsubscribed_name_is_answered() {
    let mut proxy = Proxy::settled([resource(Cds, "a", 1)]);
    proxy.ask(Cds, &["a", "x"]);
    proxy.ack_all();
    proxy.drop_names(Cds, &["a"]);
    proxy.gets(Cds, &["a"], &[]);
    proxy.drop_names(Cds, &["x"]);
    proxy.gets(Cds, &[], &["x"]);
}

#[test]
fn r52_a_missing_name_is_answered_as_removed_and_sent_when_created() {
    let mut proxy = Proxy::offered([]);
    proxy.ask(Rds, &["r"]);
    let response = proxy.gets(Rds, &[], &["r"]);
    proxy.ack(&response);
    proxy.publish(|v| v.set(resource(Rds, "r", 1)));
    proxy.gets(Rds, &["r"], &[]);
}

#[test]
fn r52_found_and_missing_names_never_share_a_response() {
    let mut proxy = Proxy::offered([resource(Sds, "a", 1)]);
    proxy.ask(Sds, &["a", "b"]);
    let mut written = shape(&proxy.written());
    written.sort();
    assert_eq!(written, [(Sds, vec![], vec!["b".to_owned()]), (Sds, vec!["a".to_owned()], vec![])]);
}

#[test]
fn r53_only_what_was_held_or_asked_for_is_ever_removed() {
    let mut proxy = Proxy::offered([resource(Eds, "a", 1), resource(Lds, "l", 1)]);
    proxy.ask(Lds, &[]);
    proxy.ack_all();
    proxy.publish(|v| v.set(resource(Lds, "m", 1)).remove(Eds, "a"));
    let response = proxy.gets(Lds, &["m"], &[]);
    proxy.publish(|v| v.set(resource(Lds, "n", 1)).remove(Lds, "l"));
    proxy.publish(|v| v.remove(Lds, "n"));
    proxy.ack(&response);
    proxy.gets(Lds, &[], &["l"]);
}

#[test]
fn r54_a_reconnect_sends_what_changed_and_removes_what_vanished() {
    let old = ["same", "new", "gone"].map(|n| resource(Cds, n, 1));
    let mut proxy = Proxy::offered([resource(Cds, "same", 1), resource(Cds, "new", 2)]);
    proxy.reconnect(Cds, &[], &old);
    let response = proxy.gets(Cds, &["new"], &[]);
    proxy.ack(&response);
    let response = proxy.gets(Cds, &[], &["gone"]);
    proxy.ack(&response);
    proxy.is_silent();
    assert_eq!(proxy.holds(Cds), ["new", "same"]);
}

#[test]
fn r54_a_reconnect_that_finds_nothing_changed_is_silent() {
    let all = [resource(Cds, "c", 1), resource(Eds, "c", 1), resource(Lds, "l", 1)];
    let mut proxy = Proxy::offered(all.clone());
    proxy.reconnect(Eds, &["c"], &all[1..2]);
    proxy.reconnect(Lds, &[], &all[2..]);
    proxy.reconnect(Cds, &[], &all[..1]);
    proxy.is_silent();
}

#[test]
fn r55_a_name_only_in_initial_versions_is_no_subscription() {
    let old = ["a", "b"].map(|n| resource(Eds, n, 1));
    let mut proxy = Proxy::offered(["a", "b"].map(|n| resource(Eds, n, 2)));
    proxy.reconnect(Eds, &["a"], &old);
    let response = proxy.gets(Eds, &["a"], &[]);
    proxy.ack(&response);
    proxy.publish(|v| v.remove(Eds, "b"));
    proxy.is_silent();
}

#[test]
fn r56_a_named_child_with_a_matching_version_is_skipped_unless_the_switch_is_on() {
    let (clusters, old) = ([resource(Cds, "a", 1)], [resource(Eds, "a", 1)]);
    let offered = || clusters.iter().chain(&old).cloned();
    let mut proxy = Proxy::offered(offered());
    proxy.reconnect(Cds, &[], &clusters);
    proxy.reconnect(Eds, &["a"], &old);
    proxy.is_silent();
    let strict = Settings { resend_on_reconnect: vec![Eds], ..Settings::default() };
    let mut proxy = Proxy::with(strict, offered());
    proxy.reconnect(Cds, &[], &clusters);
    proxy.reconnect(Eds, &["a"], &old);
    proxy.gets(Eds, &["a"], &[]);
}

#[test]
fn r57_initial_versions_on_a_later_request_are_ignored() {
    let mut proxy = Proxy::offered(["a", "b"].map(|n| resource(Eds, n, 1)));
    proxy.ask(Eds, &["a"]);
    proxy.ack_all();
    proxy.reconnect(Eds, &["b"], &[resource(Eds, "b", 1)]);
    proxy.gets(Eds, &["b"], &[]);
}

#[test]
fn r58_a_subscription_with_a_stale_nonce_is_honoured_at_once() {
    let mut proxy = Proxy::settled([resource(Eds, "a", 1)]);
    proxy.publish(|v| v.set(resource(Eds, "b", 1)));
    proxy.request(
        Eds,
        DeltaRequest {
            subscribe: vec!["b".into()],
            unsubscribe: vec!["a".into()],
            nonce: "stale".into(),
            ..DeltaRequest::default()
        },
    );
    proxy.gets(Eds, &["b"], &[]);
    proxy.publish(|v| v.set(resource(Eds, "a", 2)));
    proxy.is_silent();
}

#[test]
fn r59_versions_are_a_function_of_content_whatever_came_before() {
    let version_after = |history: &[u32]| {
        let mut proxy = Proxy::offered([]);
        proxy.ask(Cds, &[]);
        proxy.ack_all();
        for n in history {
            proxy.publish(|v| v.set(resource(Cds, "a", *n)).set(resource(Cds, "b", 1)));
        }
        let response = proxy.written().remove(0);
        let versions: Vec<_> = response.resources.iter().map(|r| r.version()).collect();
        (response.version, versions)
    };
    let (replica, other) = (version_after(&[1, 2, 3]), version_after(&[3]));
    assert_eq!(replica, other, "two replicas, or one before and after a restart");
    let different = version_after(&[4]);
    assert_ne!(replica.0, different.0);
    assert_ne!(replica.1[0], different.1[0]);
    assert_eq!(replica.1[1], different.1[1]);
}

#[test]
fn r60_a_large_payload_is_split_and_every_part_has_its_own_nonce() {
    let settings = Settings { response_bytes: 300, ..Settings::default() };
    let clusters = ["a", "b", "c", "d", "e"].map(|n| resource(Cds, n, 1));
    let mut proxy = Proxy::with(settings, clusters);
    proxy.ask(Cds, &[]);
    let parts = proxy.written();
    assert!(parts.len() > 1);
    assert!(parts.iter().all(|p| p.resource_bytes() <= 300));
    let nonces: BTreeSet<_> = parts.iter().map(|p| &p.nonce).collect();
    assert_eq!(nonces.len(), parts.len());
    assert_eq!(parts.iter().map(|p| p.resources.len()).sum::<usize>(), 5);
}

#[test]
fn r61_one_changed_resource_comes_alone() {
    let mut proxy = Proxy::settled(["a", "b", "c"].map(|n| resource(Cds, n, 1)));
    proxy.publish(|v| v.set(resource(Cds, "b", 2)));
    proxy.gets(Cds, &["b"], &[]);
}

#[test]
fn r62_an_unknown_cluster_has_an_empty_assignment_not_a_removal() {
    let mut proxy = Proxy::offered([]);
    proxy.ask(Eds, &["c"]);
    let response = proxy.gets(Eds, &["c"], &[]);
    assert_eq!(&response.resources[0].body()[..], b"\x0a\x01c");
    proxy.ack(&response);
    proxy.is_silent();
    proxy.publish(|v| v.set(resource(Eds, "c", 1)));
    proxy.gets(Eds, &["c"], &[]);
}

#[test]
fn r62_endpoints_that_vanish_empty_the_assignment_only_while_the_cluster_stays() {
    let mut proxy =
        Proxy::settled([resource(Cds, "c", 1), resource(Eds, "c", 1), resource(Eds, "d", 1)]);
    proxy.publish(|v| v.remove(Eds, "c").remove(Eds, "d"));
    let response = proxy.gets(Eds, &["c"], &[]);
    assert_eq!(&response.resources[0].body()[..], b"\x0a\x01c");
}

#[test]
fn r64_a_resource_removed_and_created_again_with_equal_bytes_is_sent_again() {
    let mut proxy = Proxy::settled([resource(Cds, "c", 1)]);
    proxy.publish(|v| v.remove(Cds, "c"));
    let removal = proxy.gets(Cds, &[], &["c"]);
    proxy.publish(|v| v.set(resource(Cds, "c", 1)));
    proxy.is_silent();
    proxy.ack(&removal);
    proxy.gets(Cds, &["c"], &[]);
}

#[test]
fn r103_a_name_of_a_federated_authority_is_a_name_and_its_collection_no_wildcard() {
    let mut proxy = Proxy::offered(["a", "b"].map(|n| resource(Lds, n, 1)));
    let one = "xdstp://authority/envoy.config.listener.v3.Listener/a";
    let collection = "xdstp://authority/envoy.config.listener.v3.Listener/foo/*";
    proxy.ask(Lds, &[one, collection]);
    let response = proxy.gets(Lds, &[], &[one, collection]);
    proxy.ack(&response);
    proxy.publish(|v| v.set(resource(Lds, "a", 2)));
    proxy.is_silent();
    proxy.publish(|v| v.set(resource(Lds, one, 1)));
    proxy.gets(Lds, &[one], &[]);
}

#[test]
fn r82_equal_content_sends_nothing() {
    let mut proxy = Proxy::settled([resource(Cds, "c", 1), resource(Lds, "l", 1)]);
    proxy.publish(|v| v.set(resource(Cds, "c", 1)).set(resource(Lds, "l", 1)));
    proxy.is_silent();
    let all = [resource(Cds, "c", 1), resource(Lds, "l", 1)];
    proxy.session.on_view(proxy.now, &view(all));
    proxy.is_silent();
}

#[test]
fn r83_responses_are_equal_in_whatever_order_the_resources_were_given() {
    let name = |i: usize| format!("c{i}");
    let run = |order: Vec<usize>| {
        let mut proxy = Proxy::offered([]);
        proxy.ask(Cds, &[]);
        proxy.ack_all();
        proxy.publish(|edit| {
            let add = |edit: xds::LayerEdit, i| edit.set(resource(Cds, &name(i), 1));
            order.into_iter().fold(edit, add)
        });
        let response = proxy.written().remove(0);
        let bytes: Vec<_> = response.resources.iter().map(|r| r.delta_entry()).collect();
        (response.version, bytes)
    };
    assert_eq!(run((0..50).collect()), run((0..50).rev().collect()));
}

#[test]
fn r84_changed_endpoints_touch_only_the_sets_and_streams_that_have_them() {
    let sets = ["s|v1", "s|v2", "t"].map(|n| resource(Eds, n, 1));
    let clusters = ["s|v1", "s|v2", "t"].map(|n| resource(Cds, n, 1));
    let all = || sets.clone().into_iter().chain(clusters.clone());
    let mut subscribed = Proxy::settled(all());
    let mut other = Proxy::offered(all());
    other.ask(Eds, &["t"]);
    other.ack_all();
    for proxy in [&mut subscribed, &mut other] {
        proxy.publish(|v| v.set(resource(Eds, "s|v1", 2)).set(resource(Eds, "s|v2", 2)));
    }
    subscribed.gets(Eds, &["s|v1", "s|v2"], &[]);
    other.is_silent();
}

#[test]
fn r86_a_service_scaled_to_zero_and_back_changes_its_endpoints_only() {
    let (full, empty) = (resource(Eds, "c", 1), resource(Eds, "c", 0));
    let mut proxy = Proxy::settled([resource(Cds, "c", 1), full.clone()]);
    for set in [empty, full] {
        proxy.publish(|v| v.set(set.clone()));
        let response = proxy.gets(Eds, &["c"], &[]);
        assert_eq!(response.resources[0].version(), set.version());
        proxy.ack(&response);
        proxy.is_silent();
    }
    // The same where nothing is offered in between.
    proxy.publish(|v| v.remove(Eds, "c"));
    let response = proxy.gets(Eds, &["c"], &[]);
    proxy.ack(&response);
    proxy.is_silent();
}

#[test]
fn r90_a_client_that_does_not_ack_gets_one_push_and_then_the_newest_state() {
    let mut proxy = Proxy::settled([resource(Cds, "c", 0)]);
    let mut first = None;
    for n in 1..1000 {
        proxy.publish(|v| v.set(resource(Cds, "c", n)));
        for response in proxy.written() {
            assert!(first.replace(response).is_none(), "a second push");
        }
    }
    assert_eq!(proxy.status(Cds).in_flight, 1);
    proxy.ack(&first.unwrap());
    let response = proxy.gets(Cds, &["c"], &[]);
    let newest = resource(Cds, "c", 999);
    assert_eq!(response.resources[0].version(), newest.version());
}

#[test]
fn r90_an_answer_to_a_newly_asked_name_does_not_wait_for_the_push() {
    let mut proxy = Proxy::settled([resource(Eds, "a", 1)]);
    proxy.publish(|v| v.set(resource(Eds, "a", 2)).set(resource(Eds, "b", 1)));
    proxy.gets(Eds, &["a"], &[]);
    proxy.ask(Eds, &["b"]);
    proxy.gets(Eds, &["b"], &[]);
}

#[test]
fn r94_a_thousand_streams_of_one_view_share_the_bytes_of_each_resource() {
    let offered = view([resource(Cds, "c", 1)]);
    let bytes = |_| {
        let mut session = xds::Session::new(Settings::default());
        session.on_view(std::time::Duration::ZERO, &offered);
        session.on_request(std::time::Duration::ZERO, Cds, DeltaRequest::default());
        let response = session.poll_output().expect("a response");
        response.resources[0].delta_entry()
    };
    // Kept, so that no buffer takes the place of another.
    let all: Vec<_> = (0..1000).map(bytes).collect();
    let buffers: BTreeSet<_> = all.iter().map(|entry| entry.as_ptr()).collect();
    assert_eq!(buffers.len(), 1, "encoded once");
}

#[test]
fn r98_publishing_during_a_subscription_ends_in_the_newest_state() {
    let mut proxy = Proxy::offered([]);
    for n in 0..100 {
        let name = format!("c{n}");
        proxy.publish(|v| v.set(resource(Eds, &name, n)).set(resource(Eds, "all", n)));
        proxy.ask(Eds, &[&name, "all"]);
    }
    proxy.ack_all();
    let held = proxy.session.held(Eds);
    assert_eq!(held.len(), 101);
    let newest: Arc<str> = "all".into();
    assert_eq!(held[&newest], resource(Eds, "all", 99).version());
}
