//! What is wrong between objects: references that lead nowhere, hosts claimed twice.
//!
//! In: the snapshot. Out: problems, whether or not any proxy is connected.
//!
//! **Invariant:** decides nothing: what a rule comes to is decided in `destination` and `router`,
//! and only described here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::destination::{Fault, examine};
use super::router::served_domains;
use super::{View, precedence};
use crate::hosts;
use crate::object::ObjectRef;
use crate::problem::{Problem, Reason};
use crate::rows::{GatewayName, HttpAction, HttpRule, RouteRules, WeightedDestination};
use crate::snapshot::RowId;

/// Every problem between objects, sorted.
pub(crate) fn lint(view: View<'_>) -> BTreeSet<Problem> {
    let mut out = BTreeSet::new();
    for (id, rules) in view.rules() {
        bindings(view, id, rules, &mut out);
        for rule in &rules.http {
            if let HttpAction::Forward(forward) = &rule.action {
                destinations(view, id, rules, rule, &forward.destinations, &mut out);
            }
        }
    }
    host_conflicts(view, &mut out);
    policies(view, &mut out);
    out
}

/// Gateways that do not exist, hosts that none of them serves.
fn bindings(view: View<'_>, id: &RowId, rules: &RouteRules, out: &mut BTreeSet<Problem>) {
    let mut servers = Vec::new();
    let mut mesh = false;
    for (index, gateway) in rules.gateways.iter().enumerate() {
        let GatewayName::Gateway { namespace, name } = gateway else {
            mesh = true;
            continue;
        };
        let found: Vec<_> = view.gateways_named(namespace, name).collect();
        if found.is_empty() {
            out.insert(Problem::warning(
                &id.object,
                format!("spec.gateways[{index}]"),
                Reason::GatewayNotFound,
                format!(
                    "there is no Gateway {namespace}/{name}, so these rules are not in force there; \
                     create it or correct the name"
                ),
            ));
        }
        servers.extend(found.into_iter().flat_map(|(_, gateway)| gateway.servers.iter()));
    }
    if mesh || servers.is_empty() {
        return;
    }
    for (index, host) in rules.hosts.iter().enumerate() {
        let only = RouteRules { hosts: vec![Arc::clone(host)], ..rules.clone() };
        if servers.iter().all(|server| served_domains(server, &only).is_empty()) {
            out.insert(Problem::warning(
                &id.object,
                format!("spec.hosts[{index}]"),
                Reason::HostNotServed,
                format!(
                    "no server of the named gateways accepts host {host}, so it is not reachable; \
                     add it to the `hosts` of a server"
                ),
            ));
        }
    }
}

fn destinations(
    view: View<'_>,
    id: &RowId,
    rules: &RouteRules,
    rule: &HttpRule,
    destinations: &[WeightedDestination],
    out: &mut BTreeSet<Problem>,
) {
    let request_port = rule.matches.iter().find_map(|m| m.port).unwrap_or(80);
    let examined = examine(view, &rules.namespace, destinations, request_port);
    for (d, (_, fault)) in destinations.iter().zip(examined) {
        let Some(fault) = fault else { continue };
        let host = &d.destination.host;
        let subset = d.destination.subset.as_deref().unwrap_or_default();
        let port = d.destination.port.unwrap_or(request_port);
        let (field, reason, message) = match fault {
            Fault::HostNotFound => (
                "host",
                Reason::HostNotFound,
                format!("there is no service {host}; its requests are answered with 503"),
            ),
            Fault::PortNotFound => (
                "port",
                Reason::PortNotFound,
                format!("service {host} has no port {port}; its requests are answered with 503"),
            ),
            Fault::PortAmbiguous => (
                "port",
                Reason::PortNotFound,
                format!(
                    "service {host} has several ports and none is {port}, that of the request; name \
                     one, or requests that come in there are answered with 503"
                ),
            ),
            Fault::SubsetDerived => (
                "subset",
                Reason::SubsetNotFound,
                format!(
                    "no DestinationRule defines subset {subset} of {host}; the pods labelled \
                     version={subset} are used; define the subset to make this explicit"
                ),
            ),
            Fault::SubsetLeaves => (
                "subset",
                Reason::SubsetNotFound,
                format!(
                    "no DestinationRule defines subset {subset} of {host} and no pod is labelled \
                     version={subset}; this destination gets no requests while others of the split \
                     remain; define the subset"
                ),
            ),
            Fault::SubsetWhole => (
                "subset",
                Reason::SubsetNotFound,
                format!(
                    "no DestinationRule defines subset {subset} of {host} and no pod is labelled \
                     version={subset}; requests go to the whole service; define the subset"
                ),
            ),
        };
        let field = format!("{}.destination.{field}", d.field);
        out.insert(Problem::warning(&id.object, field, reason, message));
    }
}

/// Rules that claim a host, and which of their hosts it is.
type Claim<'a> = (&'a RowId, &'a Arc<RouteRules>, usize);

/// Rule lists that name the same host for the same gateway: all apply, in order of precedence.
fn host_conflicts(view: View<'_>, out: &mut BTreeSet<Problem>) {
    let mut claims: BTreeMap<(&GatewayName, &Arc<str>), Vec<Claim<'_>>> = BTreeMap::new();
    for (id, rules) in view.rules() {
        for gateway in &rules.gateways {
            for (index, host) in rules.hosts.iter().enumerate() {
                claims.entry((gateway, host)).or_default().push((id, rules, index));
            }
        }
    }
    for ((gateway, host), mut holders) in claims {
        holders.sort_by(|a, b| precedence(a.1.created, a.0).cmp(&precedence(b.1.created, b.0)));
        let Some(((first, ..), rest)) = holders.split_first() else { continue };
        for (id, _, index) in rest {
            if id == first {
                continue;
            }
            let message = match gateway {
                GatewayName::Mesh => format!(
                    "host {host} is also claimed by {}, which takes precedence, so these rules are \
                     not in force in the mesh; merge the two",
                    first.object
                ),
                GatewayName::Gateway { namespace, name } => format!(
                    "host {host} is also claimed by {} on gateway {namespace}/{name}; its rules are \
                     tried before these; merge the two if that is not meant",
                    first.object
                ),
            };
            let field = format!("spec.hosts[{index}]");
            out.insert(Problem::warning(&id.object, field, Reason::HostConflict, message));
        }
    }
}

/// Policies for hosts that do not exist, and policies for one host in one namespace.
fn policies(view: View<'_>, out: &mut BTreeSet<Problem>) {
    let mut first: BTreeMap<(&Arc<str>, &Arc<str>), &RowId> = BTreeMap::new();
    let mut all: Vec<_> = view.policies().collect();
    all.sort_by(|a, b| precedence(a.1.created, a.0).cmp(&precedence(b.1.created, b.0)));
    for (id, policy) in all {
        let known = if policy.host.starts_with('*') {
            view.services().any(|(_, s)| hosts::covers(&policy.host, &s.host))
        } else {
            view.service(&policy.host).is_some()
        };
        if !known {
            out.insert(host_without_service(&id.object, &policy.host));
        }
        let key = (&policy.namespace, &policy.host);
        match first.get(&key) {
            None => {
                first.insert(key, id);
            }
            Some(other) => {
                out.insert(Problem::warning(
                    &id.object,
                    "spec.host",
                    Reason::HostConflict,
                    format!(
                        "{} is for the same host and takes precedence: of this one only subsets with \
                         other names are in force; merge the two",
                        other.object
                    ),
                ));
            }
        }
    }
}

fn host_without_service(object: &Arc<ObjectRef>, host: &str) -> Problem {
    Problem::warning(
        object,
        "spec.host",
        Reason::HostNotFound,
        format!("there is no service {host}, so this policy applies to nothing; correct the host"),
    )
}
