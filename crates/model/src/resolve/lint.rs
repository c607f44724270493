//! What is wrong between objects: references that lead nowhere, hosts claimed twice.
//!
//! In: the snapshot. Out: problems, whether or not any proxy is connected.
//!
//! **Invariant:** decides nothing: what a rule comes to is decided in `destination` and `router`,
//! and only described here.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::client::Client;
use super::destination::{Fault, examine, request_port};
use super::router::served_domains;
use super::rules::{Head, RulesHead};
use super::{Key, lint_services, precedence};
use crate::object::ObjectRef;
use crate::problem::{Problem, Reason};
use crate::rows::{
    DestinationPolicy, GatewayName, HostPattern, HttpAction, RouteRules, WeightedDestination,
};
use crate::snapshot::RowId;
use crate::track::{Query, View};

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lint(pub(crate) RowId);

// === impl Lint ===

impl Query for Lint {
    type Value = BTreeSet<Problem>;

    fn run(&self, view: &View<'_>) -> BTreeSet<Problem> {
        let (mut out, id) = (BTreeSet::new(), &self.0);
        if let Some(row) = view.rules(id) {
            rules(view, id, &row, &mut out);
        } else if let Some(row) = view.policy(id) {
            policy(view, id, &row, &mut out);
        } else if let Some(row) = view.service_by_id(id) {
            lint_services::service(view, id, &row, &mut out);
        } else if let Some(row) = view.sidecar_scope(id) {
            lint_services::sidecar(view, id, &row, &mut out);
        }
        out
    }

    fn key(&self) -> Key {
        Key::Lint(self.clone())
    }
}

fn rules(view: &View<'_>, id: &RowId, rules: &RouteRules, out: &mut BTreeSet<Problem>) {
    bindings(view, id, rules, out);
    for rule in &rules.http {
        if let HttpAction::Forward(forward) = &rule.action {
            let port = request_port(rule).unwrap_or(80);
            destinations(view, id, rules, port, &forward.destinations, out);
        }
    }
    for rule in &rules.tls {
        let port = rule.matches.iter().find_map(|m| m.connection.port).unwrap_or(443);
        destinations(view, id, rules, port, &rule.destinations, out);
    }
    for rule in &rules.tcp {
        let port = rule.matches.iter().find_map(|m| m.port).unwrap_or(80);
        destinations(view, id, rules, port, &rule.destinations, out);
    }
    host_conflicts(view, id, rules, out);
}

fn policy(view: &View<'_>, id: &RowId, policy: &DestinationPolicy, out: &mut BTreeSet<Problem>) {
    let object = &id.object;
    if !view.service_exists(&policy.host) {
        out.insert(host_without_service(object, &policy.host));
    }
    let rank = precedence(policy.created, id);
    let visibility = view.visibility_of_policy(policy);
    let all = view.policies_for(&policy.host);
    let first = all
        .iter()
        .filter(|(_, other)| other.namespace == policy.namespace)
        .filter(|(_, other)| view.visibility_of_policy(other).meets(&visibility))
        .map(|(id, other)| precedence(other.created, id))
        .min();
    if let Some((_, _, other)) = first.filter(|first| *first < rank) {
        out.insert(Problem::warning(
            object,
            "spec.host",
            Reason::HostConflict,
            format!(
                "{} is for the same host and takes precedence: of this one only subsets with other \
                 names are in force; merge the two",
                other.object
            ),
        ));
    }
}

/// Gateways that do not exist, hosts that none of them serves.
fn bindings(view: &View<'_>, id: &RowId, rules: &RouteRules, out: &mut BTreeSet<Problem>) {
    let mut servers: Vec<Vec<HostPattern>> = Vec::new();
    let mut mesh = false;
    for (index, gateway) in rules.gateways.iter().enumerate() {
        let GatewayName::Gateway { namespace, name } = gateway else {
            mesh = true;
            continue;
        };
        let found = view.gateways_named(namespace, name);
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
        for (_, gateway) in found {
            servers.extend(gateway.servers.iter().map(|s| s.hosts.clone()));
        }
    }
    if mesh || servers.is_empty() {
        return;
    }
    for (index, host) in rules.hosts.iter().enumerate() {
        let only = Head {
            namespace: Arc::clone(&rules.namespace),
            created: None,
            hosts: vec![Arc::clone(host)],
            gateways: Vec::new(),
            export_to: None,
            has_http: false,
            has_tls: false,
            has_tcp: false,
            source_labels: BTreeSet::new(),
            source_namespaces: BTreeSet::new(),
            destinations: BTreeSet::new(),
        };
        if servers.iter().all(|patterns| served_domains(patterns, &only).is_empty()) {
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
    view: &View<'_>,
    id: &RowId,
    rules: &RouteRules,
    request_port: u16,
    destinations: &[WeightedDestination],
    out: &mut BTreeSet<Problem>,
) {
    let client = Client::Namespace(Arc::clone(&rules.namespace));
    let examined = examine(view, &client, destinations, request_port);
    for (d, (_, fault)) in destinations.iter().zip(examined) {
        let Some(fault) = fault else { continue };
        let host = &d.destination.host;
        let subset = d.destination.subset.as_deref().unwrap_or_default();
        let port = d.destination.port.unwrap_or(request_port);
        let (field, reason, message) = match fault {
            Fault::HostNotFound if view.service_exists(host) => {
                let client = &rules.namespace;
                let message = format!(
                    "service {host} exists but is not exported to namespace {client}; add {client} \
                     to its exportTo, else its requests are answered with 503"
                );
                ("host", Reason::HostNotFound, message)
            }
            Fault::HostNotFound => (
                "host",
                Reason::HostNotFound,
                format!(
                    "there is no service {host}, so its requests are answered with 503; correct the host"
                ),
            ),
            Fault::PortNotFound => (
                "port",
                Reason::PortNotFound,
                format!(
                    "service {host} has no port {port}, so its requests are answered with 503; correct the port"
                ),
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

/// Older rule lists that name the same host for the same gateway.
fn host_conflicts(view: &View<'_>, id: &RowId, rules: &RouteRules, out: &mut BTreeSet<Problem>) {
    let rank = precedence(rules.created, id);
    let own = view.get(&RulesHead(id.clone()));
    let Some(visibility) = (*own).as_ref().map(|head| view.visibility_of_rules(head)) else {
        return;
    };
    for gateway in &rules.gateways {
        for (index, host) in rules.hosts.iter().enumerate() {
            let heads: Vec<_> = view
                .claims(gateway, host)
                .into_iter()
                .map(|other| (view.get(&RulesHead(other.clone())), other))
                .collect();
            let first = heads
                .iter()
                .filter_map(|(head, other)| Some(((**head).as_ref()?, other)))
                .filter(|(head, _)| view.visibility_of_rules(head).meets(&visibility))
                .map(|(head, other)| precedence(head.created, other))
                .min();
            let Some((_, _, first)) = first.filter(|first| *first < rank) else { continue };
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

fn host_without_service(object: &Arc<ObjectRef>, host: &str) -> Problem {
    Problem::warning(
        object,
        "spec.host",
        Reason::HostNotFound,
        format!("there is no service {host}, so this policy applies to nothing; correct the host"),
    )
}
