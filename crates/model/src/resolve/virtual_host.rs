//! One virtual host: the rules of a domain, turned into routes.
//!
//! In: rule lists in order of precedence. Out: an `ir::VirtualHost`, and every cluster it names
//! added to the group's rows.
//!
//! **Invariant:** routes keep the order of rules; only routes that match everything go last, so
//! that a second rule list for the same host can still be reached.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::cluster::add_cluster;
use super::destination::{Share, split};
use super::{Group, RowKey, Rows, View};
use crate::ir::{self, Action, PathMatch, RedirectTo, Route, RouteMatch, WeightedCluster};
use crate::names;
use crate::object::Origins;
use crate::rows::{HttpAction, HttpMatch, HttpRule, Mesh, RouteRules, StringMatch};
use crate::snapshot::RowId;

/// A rule list as it applies to a domain.
pub(super) struct BoundRules {
    pub(super) id: RowId,
    pub(super) rules: Arc<RouteRules>,
    /// Gateway ports, as declared, through which it is bound.
    pub(super) ports: BTreeSet<u16>,
}

/// What is known of a domain before its routes are built.
#[derive(Default)]
pub(super) struct HostPlan {
    pub(super) rules: Vec<BoundRules>,
    pub(super) origins: Origins,
}

/// Build the virtual host of a domain.
pub(super) fn virtual_host(
    view: View<'_>,
    group: &Group,
    route_config: &Arc<str>,
    domain: &Arc<str>,
    plan: HostPlan,
    rows: &mut Rows,
) -> (RowKey, ir::VirtualHost) {
    let mesh = view.mesh();
    let mut routes = Vec::new();
    let mut origins = Origins::default();
    for bound in &plan.rules {
        origins.push(bound.id.origin("spec.hosts"));
        for rule in &bound.rules.http {
            for condition in conditions(rule, &bound.ports) {
                routes.push(route(view, group, &mesh, bound, rule, condition, rows));
            }
        }
    }
    if plan.rules.len() > 1 {
        routes.sort_by_key(|r: &Route| r.matcher.is_everything());
    }
    for origin in plan.origins.0 {
        origins.push(origin);
    }
    let host = ir::VirtualHost {
        route_config: Arc::clone(route_config),
        name: names::virtual_host(route_config, domain),
        domains: vec![Arc::clone(domain)],
        routes,
        origins,
    };
    let key = RowKey::VirtualHost {
        route_config: Arc::clone(route_config),
        domain: Arc::clone(domain),
        rules: plan.rules.into_iter().map(|b| (b.id, b.ports)).collect(),
        clusters: host.clusters().cloned().collect(),
    };
    (key, host)
}

/// The conditions of a rule that can hold on these ports; one empty condition where it has none.
fn conditions<'a>(rule: &'a HttpRule, ports: &BTreeSet<u16>) -> Vec<Option<&'a HttpMatch>> {
    if rule.matches.is_empty() {
        return vec![None];
    }
    let holds = |m: &&HttpMatch| m.port.is_none_or(|port| ports.contains(&port));
    rule.matches.iter().filter(holds).map(Some).collect()
}

fn route(
    view: View<'_>,
    group: &Group,
    mesh: &Mesh,
    bound: &BoundRules,
    rule: &HttpRule,
    condition: Option<&HttpMatch>,
    rows: &mut Rows,
) -> Route {
    let field = condition.map_or(&rule.field, |m| &m.field);
    let action = match &rule.action {
        HttpAction::Redirect(to) => Action::Redirect(RedirectTo {
            path: to.uri.clone(),
            prefix_rewrite: to.prefix_rewrite.clone(),
            host: to.authority.clone(),
            port: to.port,
            scheme: to.scheme.clone(),
            code: to.code,
        }),
        HttpAction::Forward(forward) => {
            let request_port =
                condition.and_then(|m| m.port).or(bound.ports.first().copied()).unwrap_or(80);
            let shares = split(view, &group.namespace, &forward.destinations, request_port);
            Action::Forward {
                clusters: weighted(view, mesh, bound, shares, rows),
                rewrite: forward.rewrite.clone(),
                timeout: forward.timeout,
                retries: forward.retries.clone().unwrap_or_else(|| mesh.default_retry.clone()),
            }
        }
    };
    let name = match (&rule.name, condition.and_then(|m| m.name.as_ref())) {
        (Some(rule), Some(condition)) => Some(Arc::from(format!("{rule}.{condition}"))),
        (name, None) => name.clone(),
        (None, name) => name.cloned(),
    };
    Route {
        name,
        matcher: condition.map_or_else(RouteMatch::everything, RouteMatch::from_condition),
        action,
        origins: Origins::one(bound.id.origin(Arc::clone(field))),
    }
}

/// Add the clusters of a split and name them; equal clusters are added up, because Envoy would
/// pick the same one twice.
fn weighted(
    view: View<'_>,
    mesh: &Mesh,
    bound: &BoundRules,
    shares: Vec<Share>,
    rows: &mut Rows,
) -> Vec<WeightedCluster> {
    let mut out: Vec<WeightedCluster> = Vec::new();
    for Share { target, weight, field } in shares {
        add_cluster(view, mesh, &target, rows);
        let origin = bound.id.origin(field);
        match out.iter_mut().find(|w| w.cluster == target.name) {
            Some(known) => {
                known.weight = known.weight.saturating_add(weight);
                known.origins.push(origin);
            }
            None => out.push(WeightedCluster {
                cluster: target.name,
                weight,
                origins: Origins::one(origin),
            }),
        }
    }
    out
}

// === impl RouteMatch ===

impl RouteMatch {
    fn everything() -> Self {
        Self { path: PathMatch::Any, headers: Vec::new(), query: Vec::new() }
    }

    fn from_condition(condition: &HttpMatch) -> Self {
        let HttpMatch { field: _, name: _, path, ignore_path_case, headers, query, port: _ } =
            condition;
        let ignore_case = *ignore_path_case;
        let path = match path {
            None | Some(StringMatch::Present) => PathMatch::Any,
            Some(StringMatch::Exact(path)) => {
                PathMatch::Exact { path: Arc::clone(path), ignore_case }
            }
            Some(StringMatch::Prefix(prefix)) => {
                PathMatch::Prefix { prefix: Arc::clone(prefix), ignore_case }
            }
            Some(StringMatch::Regex(regex)) => PathMatch::Regex(Arc::clone(regex)),
        };
        Self { path, headers: headers.clone(), query: query.clone() }
    }

    fn is_everything(&self) -> bool {
        let any_path = match &self.path {
            PathMatch::Any => true,
            PathMatch::Prefix { prefix, .. } => &**prefix == "/",
            PathMatch::Exact { .. } => false,
            PathMatch::Regex(regex) => &**regex == ".*",
        };
        any_path && self.headers.is_empty() && self.query.is_empty()
    }
}
