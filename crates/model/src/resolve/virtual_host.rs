//! One virtual host: the rules of a domain, turned into routes.
//!
//! In: rule lists in order of precedence, and what their destinations came to. Out: an
//! `ir::VirtualHost`.
//!
//! **Invariant:** routes keep the order of rules; only routes that match everything go last, so
//! that a second rule list for the same host can still be reached.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::cluster::hash_key;
use super::router::origins;
use super::{ClusterKey, HostKey, HostNames, Otherwise};
use crate::ir::{self, Action, PathMatch, RedirectTo, Route, RouteMatch, WeightedCluster};
use crate::names;
use crate::object::Origins;
use crate::rows::{
    HashKey, HttpAction, HttpMatch, HttpRule, Mesh, OutboundPolicy, RetryPolicy, Rewrite, Service,
    StringMatch, WeightedDestination,
};
use crate::snapshot::RowId;
use crate::track::View;

/// A rule list as it applies to a domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BoundRules {
    /// The rule list.
    pub id: RowId,
    /// Gateway ports, as declared, through which it is bound.
    pub ports: BTreeSet<u16>,
    /// Conditions that cannot hold here, by position of rule and condition.
    pub excluded: Arc<BTreeSet<(usize, usize)>>,
    /// For each rule and each of its destinations: the cluster, or none when it leaves the split.
    pub outcome: Arc<Vec<Vec<Option<ClusterKey>>>>,
}

/// Build the virtual host of a key.
pub(super) fn virtual_host(view: &View<'_>, key: &HostKey) -> ir::VirtualHost {
    let HostKey { route_config, domain, names: host_names, rules, otherwise, servers } = key;
    let mesh = view.mesh();
    let mut domains = vec![Arc::clone(domain)];
    let service = match host_names {
        HostNames::Domain => None,
        HostNames::Service { id, own, port } => {
            domains.extend(aliases(view, id, domain, *own, Some(*port)));
            Some(id)
        }
        HostNames::Endpoints { id, own } => {
            let host = domain.trim_start_matches("*.");
            let below = |name: Arc<str>| Arc::from(format!("*.{name}"));
            domains.extend(aliases(view, id, host, *own, None).into_iter().map(below));
            Some(id)
        }
    };
    let mut routes = Vec::new();
    let mut all = Origins::default();
    for bound in rules {
        all.push(bound.id.origin("spec.hosts"));
        let Some(list) = view.rules(&bound.id) else { continue };
        for (at, (rule, outcome)) in list.http.iter().zip(bound.outcome.iter()).enumerate() {
            for condition in conditions(at, rule, bound) {
                routes.push(route(view, &mesh, &bound.id, rule, outcome, condition));
            }
        }
    }
    if rules.len() > 1 {
        routes.sort_by_key(|r: &Route| r.matcher.is_everything());
    }
    if rules.is_empty() {
        routes.extend(fallback(view, &mesh, otherwise));
    }
    let service = service.map(|id| id.origin(""));
    for origin in origins(servers).0.into_iter().chain(service) {
        all.push(origin);
    }
    ir::VirtualHost {
        route_config: Arc::clone(route_config),
        name: names::virtual_host(route_config, domain),
        domains,
        routes,
        pinned: matches!(host_names, HostNames::Endpoints { .. }),
        origins: all,
    }
}

/// Other names of a service's host, and its addresses on a port. Its bare name means it only in its own
/// namespace.
fn aliases(view: &View<'_>, id: &RowId, host: &str, own: bool, port: Option<u16>) -> Vec<Arc<str>> {
    let Some(service) = view.service_by_id(id) else { return Vec::new() };
    let Service { name, namespace, addresses, .. } = &*service;
    let mut out: Vec<Arc<str>> = Vec::new();
    let qualified = format!("{name}.{namespace}");
    if host.strip_prefix(&*qualified).is_some_and(|rest| rest.starts_with(".svc.")) {
        if own {
            out.push(Arc::clone(name));
        }
        out.push(Arc::from(format!("{qualified}.svc")));
        out.push(Arc::from(qualified));
    }
    let text = |address: &IpAddr| match address {
        IpAddr::V4(address) => Arc::from(address.to_string()),
        IpAddr::V6(address) => Arc::from(format!("[{address}]")),
    };
    if let Some(port) = port {
        out.extend(addresses.iter().filter(|address| view.owns(id, **address, port)).map(text));
    }
    out
}

/// The route of a host for which no rules are in force; none = 404.
fn fallback(view: &View<'_>, mesh: &Mesh, otherwise: &Otherwise) -> Option<Route> {
    let forward = |cluster: &Arc<str>, retries, hash: Option<HashKey>| Action::Forward {
        clusters: vec![WeightedCluster {
            cluster: Arc::clone(cluster),
            weight: 1,
            origins: Origins::default(),
        }],
        rewrite: Rewrite::default(),
        timeout: None,
        retries,
        hash: hash.into_iter().collect(),
    };
    let (name, action) = match otherwise {
        Otherwise::NotFound => return None,
        Otherwise::Cluster(key) => {
            let retries = mesh.default_retry.clone();
            ("default", forward(&key.name, retries, hash_key(view, key)))
        }
        Otherwise::Policy(OutboundPolicy::AllowAny) => {
            let never = RetryPolicy { attempts: 0, ..RetryPolicy::default() };
            ("allow_any", forward(&Arc::from(names::PASSTHROUGH), never, None))
        }
        Otherwise::Policy(OutboundPolicy::RegistryOnly) => {
            ("block_all", Action::Respond { status: 502, body: None })
        }
    };
    let origins = Origins::default();
    Some(Route { name: Some(name.into()), matcher: RouteMatch::everything(), action, origins })
}

/// The conditions of a rule that can hold on these ports; one empty condition where it has none.
fn conditions<'a>(at: usize, rule: &'a HttpRule, bound: &BoundRules) -> Vec<Option<&'a HttpMatch>> {
    if rule.matches.is_empty() {
        return vec![None];
    }
    let holds = |(i, m): &(usize, &HttpMatch)| {
        m.port.is_none_or(|port| bound.ports.contains(&port)) && !bound.excluded.contains(&(at, *i))
    };
    rule.matches.iter().enumerate().filter(holds).map(|(_, m)| Some(m)).collect()
}

fn route(
    view: &View<'_>,
    mesh: &Mesh,
    id: &RowId,
    rule: &HttpRule,
    outcome: &[Option<ClusterKey>],
    condition: Option<&HttpMatch>,
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
        HttpAction::Respond { status, body } => {
            Action::Respond { status: *status, body: body.clone() }
        }
        HttpAction::Forward(forward) => Action::Forward {
            clusters: weighted(id, &forward.destinations, outcome),
            rewrite: forward.rewrite.clone(),
            timeout: forward.timeout,
            retries: forward.retries.clone().unwrap_or_else(|| mesh.default_retry.clone()),
            hash: hash_keys(view, outcome),
        },
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
        origins: Origins::one(id.origin(Arc::clone(field))),
    }
}

/// What decides the endpoint in those clusters that choose it by a hash.
fn hash_keys(view: &View<'_>, outcome: &[Option<ClusterKey>]) -> Vec<HashKey> {
    let keys = outcome.iter().flatten().filter_map(|cluster| hash_key(view, cluster));
    keys.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The split; equal clusters are added up, because Envoy would pick the same one twice.
fn weighted(
    id: &RowId,
    destinations: &[WeightedDestination],
    outcome: &[Option<ClusterKey>],
) -> Vec<WeightedCluster> {
    let mut out: Vec<WeightedCluster> = Vec::new();
    for (destination, cluster) in destinations.iter().zip(outcome) {
        let Some(cluster) = cluster else { continue };
        let origin = id.origin(Arc::clone(&destination.field));
        match out.iter_mut().find(|w| w.cluster == cluster.name) {
            Some(known) => {
                known.weight = known.weight.saturating_add(destination.weight);
                known.origins.push(origin);
            }
            None => out.push(WeightedCluster {
                cluster: Arc::clone(&cluster.name),
                weight: destination.weight,
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
        let HttpMatch {
            field: _,
            name: _,
            path,
            ignore_path_case,
            headers,
            query,
            port: _,
            source: _,
        } = condition;
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
