//! RouteConfigurations, virtual hosts, routes.
//!
//! **Invariant:** a virtual host has the same bytes whether it travels alone or within its
//! RouteConfiguration.

use std::sync::Arc;

use envoy_api::envoy::config::core::v3::{
    DataSource, HeaderValue, HeaderValueOption, data_source,
    header_value_option::HeaderAppendAction,
};
use envoy_api::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, RetryPolicy, Route, RouteAction, RouteConfiguration,
    Vhds, VirtualHost, WeightedCluster,
    redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
    retry_policy::{
        RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority,
    },
    route::Action,
    route_action::{
        ClusterSpecifier, HashPolicy, HostRewriteSpecifier,
        hash_policy::{self, PolicySpecifier},
    },
    weighted_cluster::ClusterWeight,
};
use envoy_api::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_api::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use envoy_api::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use envoy_api::{Any, config_source};
use model::ir;
use model::rows::{self, HashKey, PortRedirect, Rewrite, UriRewrite};
use prost_types::Duration;

use crate::duration;
use crate::route_match::{regex, route_match};

/// Spell a RouteConfiguration.
pub(crate) fn route_configuration(config: &ir::RouteConfiguration) -> RouteConfiguration {
    let ir::RouteConfiguration { name, virtual_hosts, origins: _ } = config;
    let (hosts, vhds) = match virtual_hosts {
        ir::VirtualHosts::Discovered => {
            (Vec::new(), Some(Vhds { config_source: Some(config_source::ads()) }))
        }
        ir::VirtualHosts::Inline(hosts) => (hosts.iter().map(|h| virtual_host(h)).collect(), None),
    };
    RouteConfiguration {
        name: name.to_string(),
        virtual_hosts: hosts,
        vhds,
        // `a.com:8080` is `a.com`: clients add the port that they dialled.
        ignore_port_in_host_matching: true,
        // Routes may come before their clusters; delivery sees to it that they do not.
        validate_clusters: Some(false),
        ..Default::default()
    }
}

/// Spell a virtual host.
pub(crate) fn virtual_host(host: &ir::VirtualHost) -> VirtualHost {
    let ir::VirtualHost { route_config: _, name, domains, routes, pinned, origins: _ } = host;
    VirtualHost {
        name: name.to_string(),
        domains: domains.iter().map(ToString::to_string).collect(),
        routes: routes.iter().map(route).collect(),
        include_request_attempt_count: true,
        request_headers_to_add: pinned.then(pin).into_iter().collect(),
        ..Default::default()
    }
}

/// The header that names the endpoint whose address the client used.
fn pin() -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: ir::PINNED.to_owned(),
            value: "%DOWNSTREAM_LOCAL_ADDRESS%".to_owned(),
            ..Default::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    }
}

fn route(route: &ir::Route) -> Route {
    let ir::Route { name, matcher, action, origins: _ } = route;
    let action = match action {
        ir::Action::Redirect(to) => Action::Redirect(redirect(to)),
        ir::Action::Respond { status, body } => Action::DirectResponse(DirectResponseAction {
            status: u32::from(*status),
            body: body.as_ref().map(|text| DataSource {
                specifier: Some(data_source::Specifier::InlineString(text.to_string())),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ir::Action::Forward { clusters, rewrite, timeout, retries, hash } => {
            Action::Route(RouteAction {
                hash_policy: hash.iter().map(hash_policy).collect(),
                ..forward(clusters, rewrite, *timeout, retries)
            })
        }
    };
    Route {
        name: name.as_ref().map(ToString::to_string).unwrap_or_default(),
        r#match: Some(route_match(matcher)),
        action: Some(action),
        ..Default::default()
    }
}

fn forward(
    clusters: &[ir::WeightedCluster],
    rewrite: &Rewrite,
    timeout: Option<std::time::Duration>,
    retries: &rows::RetryPolicy,
) -> RouteAction {
    let specifier = match clusters {
        [only] => ClusterSpecifier::Cluster(only.cluster.to_string()),
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several.iter().map(weighted).collect(),
            ..Default::default()
        }),
    };
    let Rewrite { uri, authority } = rewrite;
    let (prefix, substitution) = match uri {
        None => (String::new(), None),
        Some(UriRewrite::Matched(new)) => (new.to_string(), None),
        Some(UriRewrite::Regex { pattern, substitution }) => (
            String::new(),
            Some(RegexMatchAndSubstitute {
                pattern: Some(regex(pattern)),
                substitution: substitution.to_string(),
            }),
        ),
    };
    RouteAction {
        cluster_specifier: Some(specifier),
        prefix_rewrite: prefix,
        regex_rewrite: substitution,
        host_rewrite_specifier: authority
            .as_ref()
            .map(|host| HostRewriteSpecifier::HostRewriteLiteral(host.to_string())),
        // Envoy's own default would be 15 s.
        timeout: Some(timeout.map_or(Duration::default(), duration)),
        retry_policy: retry_policy(retries),
        ..Default::default()
    }
}

fn hash_policy(key: &HashKey) -> HashPolicy {
    let specifier = match key {
        HashKey::Header(name) => PolicySpecifier::Header(hash_policy::Header {
            header_name: name.to_string(),
            ..Default::default()
        }),
        HashKey::Cookie { name, path, ttl, attributes } => {
            let attribute = |(name, value): &(Arc<str>, Arc<str>)| hash_policy::CookieAttribute {
                name: name.to_string(),
                value: value.to_string(),
            };
            PolicySpecifier::Cookie(hash_policy::Cookie {
                name: name.to_string(),
                path: path.as_ref().map(ToString::to_string).unwrap_or_default(),
                ttl: ttl.map(duration),
                attributes: attributes.iter().map(attribute).collect(),
            })
        }
        HashKey::SourceIp => {
            PolicySpecifier::ConnectionProperties(hash_policy::ConnectionProperties {
                source_ip: true,
            })
        }
        HashKey::Query(name) => {
            PolicySpecifier::QueryParameter(hash_policy::QueryParameter { name: name.to_string() })
        }
    };
    HashPolicy { policy_specifier: Some(specifier), ..Default::default() }
}

fn weighted(cluster: &ir::WeightedCluster) -> ClusterWeight {
    let ir::WeightedCluster { cluster, weight, origins: _ } = cluster;
    ClusterWeight { name: cluster.to_string(), weight: Some(*weight), ..Default::default() }
}

fn retry_policy(policy: &rows::RetryPolicy) -> Option<RetryPolicy> {
    let rows::RetryPolicy {
        attempts,
        per_try_timeout,
        retry_on,
        retriable_status_codes,
        avoid_previous_hosts,
        remote_localities,
        back_off,
    } = policy;
    if *attempts == 0 {
        return None;
    }
    let mut conditions: Vec<&str> = retry_on.iter().map(|c| &**c).collect();
    const BY_CODE: &str = "retriable-status-codes";
    if !retriable_status_codes.is_empty() && !conditions.contains(&BY_CODE) {
        conditions.push(BY_CODE);
    }
    Some(RetryPolicy {
        retry_on: conditions.join(","),
        num_retries: Some(*attempts),
        per_try_timeout: per_try_timeout.map(duration),
        retriable_status_codes: retriable_status_codes.iter().map(|c| u32::from(*c)).collect(),
        retry_host_predicate: avoid_previous_hosts.then(previous_hosts).into_iter().collect(),
        host_selection_retry_max_attempts: if *avoid_previous_hosts { 5 } else { 0 },
        retry_priority: remote_localities.then(previous_priorities),
        retry_back_off: back_off
            .as_ref()
            .map(|b| RetryBackOff { base_interval: Some(duration(b.base)), max_interval: None }),
        ..Default::default()
    })
}

fn previous_hosts() -> RetryHostPredicate {
    RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(Any::pack(
            &PreviousHostsPredicate::default(),
        ))),
    }
}

fn previous_priorities() -> RetryPriority {
    RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(retry_priority::ConfigType::TypedConfig(Any::pack(
            &PreviousPrioritiesConfig { update_frequency: 2 },
        ))),
    }
}

fn redirect(to: &ir::RedirectTo) -> RedirectAction {
    let ir::RedirectTo { path, prefix_rewrite, host, port, scheme, code } = to;
    let text = |t: &Option<Arc<str>>| t.as_ref().map(ToString::to_string);
    RedirectAction {
        host_redirect: text(host).unwrap_or_default(),
        port_redirect: match port {
            Some(PortRedirect::Number(number)) => u32::from(*number),
            Some(PortRedirect::ProtocolDefault) => match scheme.as_deref() {
                Some("https") => 443,
                Some("http") => 80,
                _ => 0,
            },
            // 0 keeps the port that the client asked for.
            Some(PortRedirect::Request) | None => 0,
        },
        scheme_rewrite_specifier: text(scheme).map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: text(path)
            .map(PathRewriteSpecifier::PathRedirect)
            .or_else(|| text(prefix_rewrite).map(PathRewriteSpecifier::PrefixRewrite)),
        response_code: match code {
            302 => RedirectResponseCode::Found,
            303 => RedirectResponseCode::SeeOther,
            307 => RedirectResponseCode::TemporaryRedirect,
            308 => RedirectResponseCode::PermanentRedirect,
            _ => RedirectResponseCode::MovedPermanently,
        }
        .into(),
        ..Default::default()
    }
}
