use super::*;
use crate::Any;
use crate::envoy::config::cluster::v3::{Cluster, OutlierDetection};
use crate::envoy::config::core::v3::UpstreamHttpProtocolOptions;
use crate::envoy::config::core::v3::{
    Address, HeaderValue, HeaderValueOption, SocketAddress, address, socket_address,
};
use crate::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use crate::envoy::config::metrics::v3::HistogramBucketSettings;
use crate::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, route,
    route_action, route_match,
};
use crate::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use crate::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use crate::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use crate::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher};
use prost_types::Duration;

fn shown<M: Message + Name>(message: &M) -> Vec<String> {
    violations(message).iter().map(ToString::to_string).collect()
}

fn cluster() -> Cluster {
    Cluster { name: "c".to_owned(), ..Default::default() }
}

fn route() -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(route_action::ClusterSpecifier::Cluster("c".to_owned())),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn virtual_host(routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: "h".to_owned(),
        domains: vec!["*".to_owned()],
        routes,
        ..Default::default()
    }
}

#[test]
fn given_a_sound_message_then_nothing_is_said() {
    assert_eq!(shown(&cluster()), Vec::<String>::new());
    assert_eq!(shown(&virtual_host(vec![route()])), Vec::<String>::new());
}

#[test]
fn given_an_absent_text_with_a_least_length_then_the_default_is_judged() {
    assert_eq!(shown(&Cluster::default()), ["name: must have at least 1 character, has 0"]);
}

#[test]
fn given_a_duration_out_of_bounds_then_it_is_shown_in_seconds() {
    let zero = Some(Duration::default());
    let cluster = Cluster { connect_timeout: zero, ..cluster() };
    assert_eq!(shown(&cluster), ["connect_timeout: must be above 0s, is 0s"]);
}

#[test]
fn given_a_wrapped_number_out_of_bounds_then_its_field_is_named() {
    let cluster = Cluster {
        outlier_detection: Some(OutlierDetection {
            max_ejection_percent: Some(101),
            ..Default::default()
        }),
        ..cluster()
    };
    assert_eq!(
        shown(&cluster),
        ["outlier_detection.max_ejection_percent: must be at most 100, is 101"]
    );
}

#[test]
fn given_an_enum_value_that_is_not_defined_then_it_is_refused() {
    let cluster = Cluster { lb_policy: 77, ..cluster() };
    assert_eq!(shown(&cluster), ["lb_policy: must be a value that the enum defines, is 77"]);
}

#[test]
fn given_a_list_with_too_few_items_or_an_empty_item_then_both_are_found() {
    let host = VirtualHost { domains: vec![], ..virtual_host(vec![]) };
    assert_eq!(shown(&host), ["domains: must have at least 1 items, has 0"]);
    let route = Route { request_headers_to_remove: vec!["a\nb".to_owned()], ..route() };
    assert_eq!(
        shown(&virtual_host(vec![route])),
        ["routes[0].request_headers_to_remove[0]: must be the name of a header, is \"a\\nb\""]
    );
}

#[test]
fn given_a_missing_message_or_oneof_then_it_is_required() {
    let empty = Route { r#match: None, action: None, ..Default::default() };
    assert_eq!(
        shown(&virtual_host(vec![empty])),
        ["routes[0].match: must be set", "routes[0].action: must have one of its members set"]
    );
}

#[test]
fn given_a_control_character_in_a_header_then_it_is_refused() {
    let option = |key: &str, value: &str| HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let route = Route {
        request_headers_to_add: vec![option("x", "a\tb"), option("x\n", "a\u{0}b")],
        ..route()
    };
    let faults = shown(&route);
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("request_headers_to_add[1].header.key: "), "{faults:?}");
    assert!(faults[1].starts_with("request_headers_to_add[1].header.value: "), "{faults:?}");
}

#[test]
fn given_a_number_in_a_oneof_then_it_is_judged_only_when_set() {
    let socket = |port| SocketAddress {
        address: "1.2.3.4".to_owned(),
        port_specifier: port,
        ..Default::default()
    };
    let of = |port| Address { address: Some(address::Address::SocketAddress(socket(port))) };
    let too_high = of(Some(socket_address::PortSpecifier::PortValue(70_000)));
    assert_eq!(shown(&too_high), ["socket_address.port_value: must be at most 65535, is 70000"]);
    assert_eq!(
        shown(&of(None)),
        ["socket_address.port_specifier: must have one of its members set"]
    );
}

#[test]
fn given_a_pattern_of_a_path_then_it_is_matched_by_hand() {
    let mut route = route();
    let prefix =
        |text: &str| Some(route_match::PathSpecifier::PathSeparatedPrefix(text.to_owned()));
    for (text, ok) in [("/a", true), ("/", false), ("/a/", false), ("/a?b", false)] {
        let specifier = RouteMatch { path_specifier: prefix(text), ..Default::default() };
        route.r#match = Some(specifier);
        assert_eq!(shown(&route).is_empty(), ok, "{text}");
    }
}

#[test]
fn given_a_fault_inside_packed_messages_then_it_is_found_in_depth() {
    let tcp = TcpProxy {
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster("c".to_owned())),
        ..Default::default()
    };
    let http = HttpConnectionManager::default();
    let filter = |any| Filter {
        name: "f".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(any)),
    };
    let listener = Listener {
        filter_chains: vec![FilterChain {
            filters: vec![filter(Any::pack(&tcp)), filter(Any::pack(&http))],
            ..Default::default()
        }],
        ..Default::default()
    };
    assert_eq!(
        shown(&listener),
        [
            "filter_chains[0].filters[0].typed_config.stat_prefix: must have at least 1 character, has 0",
            "filter_chains[0].filters[1].typed_config.stat_prefix: must have at least 1 character, has 0",
            "filter_chains[0].filters[1].typed_config.route_specifier: must have one of its members set",
        ]
    );
}

#[test]
fn given_a_fault_inside_a_map_of_packed_messages_then_its_key_is_named() {
    let mut cluster = cluster();
    cluster
        .typed_extension_protocol_options
        .insert("http".to_owned(), Any::pack(&HttpProtocolOptions::default()));
    assert_eq!(
        shown(&cluster),
        ["typed_extension_protocol_options[\"http\"].upstream_protocol_options: \
             must have one of its members set"]
    );
}

#[test]
fn given_weighted_clusters_without_clusters_then_the_list_is_refused() {
    let route = Route {
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(route_action::ClusterSpecifier::WeightedClusters(
                WeightedCluster::default(),
            )),
            ..Default::default()
        })),
        ..route()
    };
    assert_eq!(
        shown(&route),
        ["route.weighted_clusters.clusters: must have at least 1 items, has 0"]
    );
}

#[test]
fn given_an_encoded_body_then_it_is_judged_as_it_is() {
    let config =
        RouteConfiguration { virtual_hosts: vec![VirtualHost::default()], ..Default::default() };
    let body = config.encode_to_vec();
    let faults = violations_of(ResourceType::RouteConfiguration, &body);
    assert_eq!(faults, violations(&config));
    assert_eq!(faults.len(), 2, "{faults:?}");
    let cut = violations_of(ResourceType::RouteConfiguration, &body[..1]);
    assert_eq!(cut[0].to_string(), "is not a well-formed message");
    assert_eq!(violations_in("type.googleapis.com/not.ours", b"x"), vec![]);
}

#[test]
fn given_an_expression_that_re2_refuses_then_it_is_named() {
    let regex = |text: &str| RegexMatcher { regex: text.to_owned(), ..Default::default() };
    let mut route = route();
    route.r#match = Some(RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::SafeRegex(regex("/(a"))),
        ..Default::default()
    });
    assert_eq!(
        shown(&route),
        ["match.safe_regex.regex: must be a regular expression, is \"/(a\": unclosed group"]
    );
}

#[test]
fn given_packed_numbers_then_each_is_judged_and_none_may_come_twice() {
    let buckets = HistogramBucketSettings {
        r#match: Some(StringMatcher {
            match_pattern: Some(string_matcher::MatchPattern::Exact("s".to_owned())),
            ..Default::default()
        }),
        buckets: vec![1.0, -1.0, 1.0],
        ..Default::default()
    };
    assert_eq!(
        shown(&buckets),
        ["buckets: must not hold an item twice", "buckets[1]: must be above 0, is -1"]
    );
}

#[test]
fn given_a_rule_that_ignores_emptiness_then_only_a_value_is_judged() {
    let mut options = UpstreamHttpProtocolOptions::default();
    assert_eq!(shown(&options), Vec::<String>::new());
    options.override_auto_sni_header = "a b".to_owned();
    assert_eq!(
        shown(&options),
        ["override_auto_sni_header: must be the name of a header, is \"a b\""]
    );
}

#[test]
fn every_type_of_resource_has_rules() {
    for resource_type in ResourceType::ALL {
        assert!(table::find(type_name(resource_type.type_url())).is_some(), "{resource_type}");
    }
}
