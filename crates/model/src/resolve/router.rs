//! A gateway proxy: listeners, and the virtual hosts behind each.
//!
//! In: a group. Out: the keys of its rows. Hosts of rules and of servers are intersected, the
//! narrower of the two being the domain; each domain is a virtual host of its own, so a domain
//! never moves between virtual hosts, whatever rules come and go.
//!
//! **Invariant:** every RouteConfiguration has exactly one `*` host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::client::Client;
use super::destination::Outcome;
use super::group::Group;
use super::place::{Near, matters};
use super::rules::{Excluded, Head, RulesHead};
use super::virtual_host::BoundRules;
use super::{ClusterKey, HostKey, HostNames, Otherwise, RowKey, RowSet, Servers, precedence};
use crate::hosts;
use crate::ir;
use crate::names;
use crate::object::Origins;
use crate::rows::{GatewayName, HostPattern};
use crate::snapshot::RowId;
use crate::track::View;

/// A server that opens a port.
struct Opened {
    gateway: RowId,
    bound: GatewayName,
    field: Arc<str>,
    declared: u16,
    hosts: Vec<HostPattern>,
}

/// What is known of a domain.
#[derive(Default)]
struct Plan {
    rules: Vec<(Option<i64>, BoundRules)>,
    /// Gateways that a rule list is bound by.
    bound: BTreeMap<RowId, BTreeSet<GatewayName>>,
    servers: Servers,
}

/// The rows of a gateway.
pub(super) fn rows(
    view: &View<'_>,
    group: &Group,
    gateways: &[RowId],
    mapped: &BTreeMap<u16, u16>,
    near: Option<&Near>,
) -> RowSet {
    let mut rows = RowSet::new();
    let mut missing = BTreeMap::new();
    for ((bind, port), opened) in ports(view, gateways, mapped) {
        let mut servers = Servers::new();
        for server in &opened {
            push_server(&mut servers, server);
        }
        let route_config = names::gateway_route_config(bind, port);
        rows.insert(Arc::new(RowKey::GatewayListener { bind, port, servers: servers.clone() }));
        for (domain, plan) in domains(view, group, &opened) {
            let Plan { rules, bound: _, servers } = plan;
            let rules: Vec<BoundRules> = rules.into_iter().map(|(_, bound)| bound).collect();
            for bound in &rules {
                let client = (near, group.capabilities.mutual_tls);
                add_clusters(view, client, bound, &mut rows, &mut missing);
            }
            rows.insert(Arc::new(RowKey::VirtualHost(HostKey {
                route_config: Arc::clone(&route_config),
                domain,
                names: HostNames::Domain,
                rules,
                otherwise: Otherwise::NotFound,
                servers,
            })));
        }
        let config = RowKey::RouteConfiguration { name: route_config, inline: None, servers };
        rows.insert(Arc::new(config));
    }
    let mutual_tls = group.capabilities.mutual_tls;
    let row = |cluster| Arc::new(RowKey::Cluster { cluster, mutual_tls });
    rows.extend(missing.into_values().map(row));
    rows
}

/// Ports that a group opens, with the servers behind each.
fn ports(
    view: &View<'_>,
    gateways: &[RowId],
    mapped: &BTreeMap<u16, u16>,
) -> BTreeMap<(Option<IpAddr>, u16), Vec<Opened>> {
    let mut ports: BTreeMap<_, Vec<Opened>> = BTreeMap::new();
    for id in gateways {
        let Some(gateway) = view.gateway(id) else { continue };
        for server in &gateway.servers {
            let port = mapped.get(&server.port).copied().unwrap_or(server.port);
            ports.entry((server.bind, port)).or_default().push(Opened {
                gateway: id.clone(),
                bound: GatewayName::Gateway {
                    namespace: Arc::clone(&gateway.namespace),
                    name: Arc::clone(&gateway.name),
                },
                field: Arc::clone(&server.field),
                declared: server.port,
                hosts: server.hosts.clone(),
            });
        }
    }
    ports
}

/// Domains of a port, each with the rules that apply there in order of precedence.
fn domains(view: &View<'_>, group: &Group, opened: &[Opened]) -> BTreeMap<Arc<str>, Plan> {
    let client = Client::Namespace(Arc::clone(&group.namespace));
    let mut domains: BTreeMap<Arc<str>, Plan> = BTreeMap::new();
    // The `*` host always exists; without rules of its own it answers 404.
    let fallback = domains.entry(Arc::from("*")).or_default();
    for server in opened {
        push_server(&mut fallback.servers, server);
    }
    for server in opened {
        for id in view.rules_of(&server.bound) {
            let head = view.get(&RulesHead(id.clone()));
            let Some(head) = &*head else { continue };
            if !client.sees(&view.visibility_of_rules(head)) {
                continue;
            }
            for domain in served_domains(&server.hosts, head) {
                let plan = domains.entry(domain).or_default();
                push_server(&mut plan.servers, server);
                plan.bound.entry(id.clone()).or_default().insert(server.bound.clone());
                match plan.rules.iter_mut().find(|(_, bound)| bound.id == id) {
                    Some((_, known)) => {
                        known.ports.insert(server.declared);
                    }
                    None => {
                        let outcome = view.get(&Outcome {
                            rules: id.clone(),
                            client: client.clone(),
                            port: server.declared,
                        });
                        let ports = BTreeSet::from([server.declared]);
                        let excluded = Arc::default();
                        let bound = BoundRules { id: id.clone(), ports, excluded, outcome };
                        plan.rules.push((head.created, bound));
                    }
                }
            }
        }
    }
    for plan in domains.values_mut() {
        for (_, rules) in &mut plan.rules {
            rules.excluded = view.get(&Excluded {
                rules: rules.id.clone(),
                client: client.clone(),
                labels: BTreeSet::new(),
                bound: plan.bound.get(&rules.id).cloned().unwrap_or_default(),
            });
        }
        plan.rules.sort_by(|(a_created, a), (b_created, b)| {
            precedence(*a_created, &a.id).cmp(&precedence(*b_created, &b.id))
        });
    }
    domains
}

fn push_server(servers: &mut Servers, server: &Opened) {
    let entry = (server.gateway.clone(), Arc::clone(&server.field));
    if !servers.contains(&entry) {
        servers.push(entry);
    }
}

/// Domains that a server's hosts leave to a rule list, each once.
pub(super) fn served_domains(patterns: &[HostPattern], head: &Head) -> BTreeSet<Arc<str>> {
    let mut domains = BTreeSet::new();
    for pattern in patterns {
        if !pattern.admits(&head.namespace) {
            continue;
        }
        domains.extend(head.hosts.iter().filter_map(|h| hosts::intersect(&pattern.host, h)));
    }
    domains
}

/// Add the clusters of a rule list. Of those that have no service the first destination that names
/// each is kept, so that the scope holds one of a name.
fn add_clusters(
    view: &View<'_>,
    (near, mutual_tls): (Option<&Near>, bool),
    bound: &BoundRules,
    rows: &mut RowSet,
    missing: &mut BTreeMap<Arc<str>, ClusterKey>,
) {
    for (rule, outcome) in bound.outcome.iter().enumerate() {
        for (position, cluster) in outcome.iter().enumerate() {
            let Some(cluster) = cluster else { continue };
            if cluster.service.is_some() {
                if cluster.has_endpoints {
                    let near = near.filter(|_| matters(view, cluster)).cloned();
                    rows.insert(Arc::new(RowKey::Endpoints { cluster: cluster.clone(), near }));
                }
                let cluster = cluster.clone();
                rows.insert(Arc::new(RowKey::Cluster { cluster, mutual_tls }));
                continue;
            }
            let asked_by = Some((bound.id.clone(), rule, position));
            let key = ClusterKey { asked_by, ..cluster.clone() };
            let known = missing.entry(Arc::clone(&key.name)).or_insert_with(|| key.clone());
            if key.asked_by < known.asked_by {
                *known = key;
            }
        }
    }
}

/// Build a RouteConfiguration.
pub(super) fn route_configuration(
    view: &View<'_>,
    name: &Arc<str>,
    inline: Option<&[Arc<RowKey>]>,
    servers: &Servers,
) -> ir::RouteConfiguration {
    let hosts = |keys: &[Arc<RowKey>]| {
        let rows = keys.iter().map(|key| view.get(key));
        rows.filter_map(|row| match &*row {
            ir::Resource::VirtualHost(host) => Some(Arc::new(host.clone())),
            _ => None,
        })
        .collect()
    };
    ir::RouteConfiguration {
        name: Arc::clone(name),
        virtual_hosts: inline
            .map_or(ir::VirtualHosts::Discovered, |keys| ir::VirtualHosts::Inline(hosts(keys))),
        origins: origins(servers),
    }
}

pub(super) fn origins(servers: &Servers) -> Origins {
    let mut origins = Origins::default();
    for (gateway, field) in servers {
        origins.push(gateway.origin(Arc::clone(field)));
    }
    origins
}
