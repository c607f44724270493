//! A gateway proxy: listeners, and the virtual hosts behind each.
//!
//! In: a group. Out: its rows. Hosts of rules and of servers are intersected, the narrower of the
//! two being the domain; each domain is a virtual host of its own, so a domain never moves between
//! virtual hosts, whatever rules come and go.
//!
//! **Invariant:** every RouteConfiguration has exactly one `*` host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::virtual_host::{BoundRules, HostPlan, virtual_host};
use super::{Group, RowKey, Rows, View, precedence};
use crate::hosts;
use crate::ir;
use crate::names;
use crate::object::Origins;
use crate::rows::{Gateway, GatewayName, HostScope, RouteRules, Server};
use crate::snapshot::RowId;

type Listen = (Option<IpAddr>, u16);
type Opened<'a> = (&'a RowId, &'a Arc<Gateway>, &'a Server);

/// Add every row of a gateway proxy.
pub(crate) fn router(view: View<'_>, group: &Group, rows: &mut Rows) {
    let mut ports: BTreeMap<Listen, Vec<Opened<'_>>> = BTreeMap::new();
    for id in &group.gateways {
        let Some((id, gateway)) = view.gateway(id) else { continue };
        for server in &gateway.servers {
            let port = group.ports.get(&server.port).copied().unwrap_or(server.port);
            ports.entry((server.bind, port)).or_default().push((id, gateway, server));
        }
    }
    for ((bind, port), servers) in ports {
        let mut origins = Origins::default();
        for (id, _, server) in &servers {
            origins.push(id.origin(Arc::clone(&server.field)));
        }
        let route_config = names::gateway_route_config(bind, port);
        let listener = RowKey::Listener {
            bind,
            port,
            gateways: servers.iter().map(|(id, _, _)| (*id).clone()).collect(),
        };
        rows.add(listener, || {
            ir::Resource::Listener(ir::Listener {
                name: names::gateway_listener(bind, port),
                bind,
                port,
                route_config: Arc::clone(&route_config),
                access_log_file: view.mesh().access_log_file.clone(),
                origins: origins.clone(),
            })
        });
        let hosts = hosts_of_port(view, &servers);
        let mut keys = Vec::new();
        let mut inline = Vec::new();
        for (domain, plan) in hosts {
            let (key, host) = virtual_host(view, group, &route_config, &domain, plan, rows);
            if group.capabilities.vhds {
                rows.0.insert(key, Arc::new(ir::Resource::VirtualHost(host)));
            } else {
                keys.push(key);
                inline.push(Arc::new(host));
            }
        }
        let (inline_keys, virtual_hosts) = if group.capabilities.vhds {
            (None, ir::VirtualHosts::Discovered)
        } else {
            (Some(keys), ir::VirtualHosts::Inline(inline))
        };
        let name = Arc::clone(&route_config);
        rows.add(RowKey::RouteConfiguration { name, inline: inline_keys }, || {
            ir::Resource::RouteConfiguration(ir::RouteConfiguration {
                name: route_config,
                virtual_hosts,
                origins,
            })
        });
    }
}

/// Domains of a port, each with the rules that apply there in order of precedence.
fn hosts_of_port(view: View<'_>, servers: &[Opened<'_>]) -> BTreeMap<Arc<str>, HostPlan> {
    let mut hosts: BTreeMap<Arc<str>, HostPlan> = BTreeMap::new();
    // The `*` host always exists; without rules of its own it answers 404.
    let fallback = hosts.entry(Arc::from("*")).or_default();
    for (id, _, server) in servers {
        fallback.origins.push(id.origin(Arc::clone(&server.field)));
    }
    for (gateway_id, gateway, server) in servers {
        let bound = GatewayName::Gateway {
            namespace: Arc::clone(&gateway.namespace),
            name: Arc::clone(&gateway.name),
        };
        for (id, rules) in view.rules_bound_to(&bound) {
            for domain in served_domains(server, rules) {
                let plan = hosts.entry(domain).or_default();
                plan.origins.push(gateway_id.origin(Arc::clone(&server.field)));
                match plan.rules.iter_mut().find(|b| b.id == *id) {
                    Some(known) => {
                        known.ports.insert(server.port);
                    }
                    None => plan.rules.push(BoundRules {
                        id: id.clone(),
                        rules: Arc::clone(rules),
                        ports: BTreeSet::from([server.port]),
                    }),
                }
            }
        }
    }
    for plan in hosts.values_mut() {
        plan.rules.sort_by(|a, b| {
            precedence(a.rules.created, &a.id).cmp(&precedence(b.rules.created, &b.id))
        });
    }
    hosts
}

/// Domains that a server accepts for a rule list, each once.
pub(super) fn served_domains(server: &Server, rules: &RouteRules) -> BTreeSet<Arc<str>> {
    let mut domains = BTreeSet::new();
    for pattern in &server.hosts {
        if let HostScope::Namespace(namespace) = &pattern.scope
            && *namespace != rules.namespace
        {
            continue;
        }
        domains.extend(rules.hosts.iter().filter_map(|h| hosts::intersect(&pattern.host, h)));
    }
    domains
}
