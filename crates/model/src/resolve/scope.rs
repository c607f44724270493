//! The rows that a group of proxies does not share with everybody.
//!
//! **Invariant:** no two rows of a scope have the same name on the wire.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::group::{Group, GroupRole};
use super::{Key, RowKey, RowSet, SidecarRows, inbound, router};
use crate::track::{Query, View};

/// The rows that a group is to have of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Scope(pub(crate) Arc<Group>);

// === impl Scope ===

impl Query for Scope {
    type Value = RowSet;

    fn run(&self, view: &View<'_>) -> RowSet {
        let group = &self.0;
        let rows = match &group.role {
            GroupRole::Router { gateways, ports, near } => {
                router::rows(view, group, gateways, ports, near.as_ref())
            }
            GroupRole::Sidecar { viewer, inbound, others } => {
                let mut rows = inbound::rows(inbound, others, viewer.captures);
                if !group.shares() {
                    rows.extend(view.get(&SidecarRows(viewer.clone())).iter().cloned());
                }
                rows
            }
        };
        if group.capabilities.vhds { rows } else { inlined(rows) }
    }

    fn key(&self) -> Key {
        Key::Scope(self.clone())
    }
}

/// Put virtual hosts into their RouteConfigurations.
fn inlined(rows: RowSet) -> RowSet {
    let mut hosts: BTreeMap<Arc<str>, BTreeSet<Arc<RowKey>>> = BTreeMap::new();
    let mut out = RowSet::new();
    let mut configs = Vec::new();
    for row in rows {
        match &*row {
            RowKey::VirtualHost(key) => {
                hosts.entry(Arc::clone(&key.route_config)).or_default().insert(row);
            }
            RowKey::RouteConfiguration { name, servers, .. } => {
                configs.push((Arc::clone(name), servers.clone()));
            }
            _ => {
                out.insert(row);
            }
        }
    }
    for (name, servers) in configs {
        let inline = hosts.remove(&name).unwrap_or_default().into_iter().collect();
        let inline = Some(Arc::new(inline));
        out.insert(Arc::new(RowKey::RouteConfiguration { name, inline, servers }));
    }
    out
}
