//! The engine: keeps the snapshot and says what changed for whom.
//!
//! In: batches of changed objects and of proxies that came and went. Out: an `Update`: resources
//! whose content differs, scopes whose members differ, proxies that moved to another scope.
//!
//! One batch, worked through: a VirtualService's weight is edited. `Snapshot::apply` replaces its
//! row. Every proxy is asked for its group again (none moves). Each group is resolved to rows; all
//! rows but one virtual host compare equal to those kept, so the `Update` names one resource. No
//! scope gained or lost a member.
//!
//! Resolution is still coarse here: a batch that touches anything resolves every group anew. The
//! interface does not say so, and incremental resolution will not change it.
//!
//! **Invariant:** the output is a function of the objects and proxies, never of their history;
//! only the numbers given to resources and scopes depend on it, and no bytes depend on those.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ir;
use crate::object::ObjectRef;
use crate::problem::Problem;
use crate::proxy::{Proxy, Role};
use crate::resolve::{self, Group, RowKey, Rows, View};
use crate::snapshot::{Change, Snapshot};

/// Names a connected proxy: one stream, one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProxyKey(pub u64);

/// Names a scope: a set of resources that some proxies are to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId(pub u32);

/// Names a resource; several may have one name on the wire, never within one scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId(pub u32);

/// What happened since the last batch.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Objects that changed, in order.
    pub changes: Vec<Change>,
    /// Proxies that came, or whose node changed.
    pub connected: Vec<(ProxyKey, Proxy)>,
    /// Proxies that went.
    pub disconnected: Vec<ProxyKey>,
}

/// What differs after a batch.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Whether any object differs; `Engine::problems` may have changed then.
    pub touched: bool,
    /// Resources whose content differs; none = gone.
    pub resources: Vec<(ResourceId, Option<Arc<ir::Resource>>)>,
    /// Scopes whose members differ; none = gone.
    pub scopes: Vec<(ScopeId, Option<Arc<BTreeSet<ResourceId>>>)>,
    /// Proxies and the scope they have from now on.
    pub assigned: Vec<(ProxyKey, ScopeId)>,
}

/// The engine; one writer.
#[derive(Default)]
pub struct Engine {
    snapshot: Snapshot,
    proxies: BTreeMap<ProxyKey, (Proxy, Option<ScopeId>)>,
    groups: BTreeMap<Group, Scope>,
    resources: BTreeMap<RowKey, (ResourceId, Arc<ir::Resource>)>,
    problems: BTreeSet<Problem>,
    next_resource: u32,
    next_scope: u32,
}

struct Scope {
    id: ScopeId,
    members: Arc<BTreeSet<ResourceId>>,
}

// === impl Engine ===

impl Engine {
    /// An engine without objects and proxies.
    pub fn new() -> Self {
        Self::default()
    }

    /// Apply a batch and say what differs.
    pub fn apply(&mut self, batch: Batch) -> Update {
        let Batch { changes, connected, disconnected } = batch;
        let mut update = Update { touched: self.snapshot.apply(changes), ..Update::default() };
        let proxies_changed = !connected.is_empty() || !disconnected.is_empty();
        for (key, proxy) in connected {
            self.proxies.insert(key, (proxy, None));
        }
        for key in disconnected {
            self.proxies.remove(&key);
        }
        if update.touched {
            self.problems = resolve::lint(View::new(&self.snapshot));
        }
        if update.touched || proxies_changed {
            self.assign(&mut update);
            self.resolve(&mut update);
        }
        update
    }

    /// Every problem between objects, sorted; faults within one object come from its `lower`.
    pub fn problems(&self) -> &BTreeSet<Problem> {
        &self.problems
    }

    /// Every resource that some scope holds, with its origins as they are now.
    pub fn resources(&self) -> impl Iterator<Item = (ResourceId, &Arc<ir::Resource>)> {
        self.resources.values().map(|(id, resource)| (*id, resource))
    }

    /// Every object that gave a row, in order.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<ObjectRef>> {
        self.snapshot.objects()
    }

    /// Put every proxy into its group; make and drop scopes.
    fn assign(&mut self, update: &mut Update) {
        let view = View::new(&self.snapshot);
        let mut wanted: BTreeMap<Group, Vec<ProxyKey>> = BTreeMap::new();
        for (key, (proxy, _)) in &self.proxies {
            wanted.entry(resolve::group(view, proxy)).or_default().push(*key);
        }
        self.groups.retain(|group, scope| {
            let keep = wanted.contains_key(group);
            if !keep {
                update.scopes.push((scope.id, None));
            }
            keep
        });
        for (group, members) in wanted {
            let next = &mut self.next_scope;
            let scope = self.groups.entry(group).or_insert_with(|| {
                let id = ScopeId(*next);
                *next += 1;
                let members = Arc::new(BTreeSet::new());
                update.scopes.push((id, Some(Arc::clone(&members))));
                Scope { id, members }
            });
            for key in members {
                if let Some((_, assigned)) = self.proxies.get_mut(&key)
                    && *assigned != Some(scope.id)
                {
                    *assigned = Some(scope.id);
                    update.assigned.push((key, scope.id));
                }
            }
        }
    }

    /// Resolve every group and compare with what is kept.
    fn resolve(&mut self, update: &mut Update) {
        let view = View::new(&self.snapshot);
        let mut kept = BTreeMap::new();
        for (group, scope) in &mut self.groups {
            let mut rows = Rows::default();
            match group.role {
                Role::Router => resolve::router(view, group, &mut rows),
                // Sidecars get nothing yet: their outbound and inbound sides come with the
                // incremental engine.
                Role::Sidecar => {}
            }
            let mut members = BTreeSet::new();
            for (key, resource) in rows.0 {
                let id = match (kept.get(&key), self.resources.get(&key)) {
                    (Some((id, _)), _) => *id,
                    (None, Some((id, old))) => {
                        if *old != resource {
                            update.resources.push((*id, Some(Arc::clone(&resource))));
                        }
                        *id
                    }
                    (None, None) => {
                        let id = ResourceId(self.next_resource);
                        self.next_resource += 1;
                        update.resources.push((id, Some(Arc::clone(&resource))));
                        id
                    }
                };
                kept.entry(key).or_insert((id, resource));
                members.insert(id);
            }
            if *scope.members != members {
                scope.members = Arc::new(members);
                // A new scope is listed already, still empty.
                update.scopes.retain(|(id, _)| *id != scope.id);
                update.scopes.push((scope.id, Some(Arc::clone(&scope.members))));
            }
        }
        for (key, (id, _)) in &self.resources {
            if !kept.contains_key(key) {
                update.resources.push((*id, None));
            }
        }
        self.resources = kept;
    }
}
