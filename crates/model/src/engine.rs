//! The engine: keeps the snapshot and says what changed for whom.
//!
//! In: batches of changed objects and of proxies that came and went. Out: an `Update`: resources
//! whose content differs, scopes whose members differ, proxies that moved to another scope.
//!
//! One batch, start to end: `Snapshot::apply` gives the facts that differ. `Graph::propagate` runs
//! the queries that read them (the algorithm stands in `track`). Proxies whose group differs move;
//! groups whose scope differs gain and lose rows; rows whose value differs are reported. What no
//! proxy and no scope wants any more is forgotten.
//!
//! **Invariant:** the output is a function of the objects and proxies, never of their history;
//! only the numbers given to resources and scopes depend on it, and no bytes depend on those.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::HashMap;

use crate::ir;
use crate::problem::Problem;
use crate::proxy::Proxy;
use crate::resolve::{Group, GroupOf, Key, LintPolicy, LintRules, RowKey, Scope};
use crate::snapshot::{Change, RowId, Snapshot};
use crate::track::{Graph, Query, Ran};

/// Names a connected proxy: one stream, one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProxyKey(pub u64);

/// Names a scope: a set of resources that some proxies are to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId(pub u32);

/// Names a resource; several may have one name on the wire, never within one scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId(pub u64);

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
    /// Resources whose content is what it was, and whose origins may be other ones.
    pub refreshed: Vec<(ResourceId, Arc<ir::Resource>)>,
    /// Scopes whose members differ; none = gone.
    pub scopes: Vec<(ScopeId, Option<Arc<BTreeSet<ResourceId>>>)>,
    /// Proxies and the scope they have from now on.
    pub assigned: Vec<(ProxyKey, ScopeId)>,
    /// Queries that ran again, in order.
    pub ran: Vec<Ran>,
}

/// The engine; one writer.
#[derive(Default)]
pub struct Engine {
    snapshot: Snapshot,
    graph: Graph,
    proxies: BTreeMap<ProxyKey, (Arc<Proxy>, Option<Group>)>,
    /// Streams of equal proxies.
    streams: HashMap<Arc<Proxy>, BTreeSet<ProxyKey>>,
    groups: BTreeMap<Group, Members>,
    rows: HashMap<RowKey, Held>,
    problems: BTreeMap<RowId, Arc<BTreeSet<Problem>>>,
    next_resource: u64,
    next_scope: u32,
}

/// The scope of a group.
struct Members {
    id: ScopeId,
    proxies: BTreeSet<ProxyKey>,
    rows: Arc<BTreeSet<RowKey>>,
}

/// A row and the number of scopes that hold it.
struct Held {
    id: ResourceId,
    scopes: usize,
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
        // A row that one scope drops and another takes in the same batch gets a new number.
        let first_new = self.next_resource;
        let facts = self.snapshot.apply(changes);
        let mut update = Update { touched: !facts.rows.is_empty(), ..Update::default() };
        let rows: Vec<RowId> = facts.rows.iter().cloned().collect();
        update.ran = self.graph.propagate(&self.snapshot, facts);
        let changed: Vec<Key> =
            update.ran.iter().filter(|r| r.differs).map(|r| r.key.clone()).collect();
        self.lint(&rows, &changed);
        for key in disconnected {
            self.disconnect(key, &mut update);
        }
        for (key, proxy) in connected {
            self.disconnect(key, &mut update);
            let proxy = Arc::new(proxy);
            self.streams.entry(Arc::clone(&proxy)).or_default().insert(key);
            self.proxies.insert(key, (proxy, None));
            self.assign(key, &mut update);
        }
        for key in &changed {
            let Key::Group(GroupOf(proxy)) = key else { continue };
            for stream in self.streams.get(proxy).cloned().unwrap_or_default() {
                self.assign(stream, &mut update);
            }
        }
        for key in &changed {
            if let Key::Scope(Scope(group)) = key {
                self.rescope(group, &mut update);
            }
        }
        for Ran { key, differs } in &update.ran {
            let Key::Row(row) = key else { continue };
            let Some(held) = self.rows.get(row).filter(|h| h.id.0 < first_new) else { continue };
            let Some(value) = self.graph.peek(row) else { continue };
            if *differs {
                update.resources.push((held.id, Some(value)));
            } else {
                update.refreshed.push((held.id, value));
            }
        }
        self.graph.sweep();
        update
    }

    /// Every problem between objects, sorted; faults within one object come from its `lower`.
    pub fn problems(&self) -> BTreeSet<Problem> {
        self.problems.values().flat_map(|p| p.iter().cloned()).collect()
    }

    /// Every resource that some scope holds, with its origins as they are now.
    pub fn resources(&self) -> impl Iterator<Item = (ResourceId, Arc<ir::Resource>)> {
        self.rows.iter().filter_map(|(key, held)| Some((held.id, self.graph.peek(key)?)))
    }

    /// Compare with a fresh engine that is given the same objects and proxies at once: every
    /// difference is a read that was not noted. Costs a cold build; for tests and for
    /// `--verify-engine`.
    pub fn verify(&self) -> Vec<String> {
        let mut fresh = Self::new();
        let changes = self.snapshot.changes();
        let proxies = self.proxies.iter().map(|(key, (proxy, _))| (*key, (**proxy).clone()));
        fresh.apply(Batch { changes, connected: proxies.collect(), disconnected: Vec::new() });
        let mut out = Vec::new();
        for (key, (proxy, group)) in &self.proxies {
            let wanted = fresh.proxies.get(key).and_then(|(_, group)| group.as_ref());
            if group.as_ref() != wanted {
                out.push(format!("group of {}: {group:?}, should be {wanted:?}", proxy.id));
            }
        }
        for (group, members) in &fresh.groups {
            let rows = self.groups.get(group).map(|m| &m.rows);
            if rows != Some(&members.rows) {
                let query = Scope(group.clone());
                let missed = self.graph.missed(&fresh.graph, &query.key());
                out.push(format!("scope of {group:?}; not noted: {missed:?}"));
            }
        }
        for row in fresh.rows.keys() {
            let (have, wanted) = (self.graph.peek(row), fresh.graph.peek(row));
            if have != wanted {
                let missed = self.graph.missed(&fresh.graph, &row.key());
                out.push(format!("row {row:?}; not noted: {missed:?}"));
            }
        }
        if self.problems() != fresh.problems() {
            out.push("problems between objects".to_owned());
        }
        out
    }

    /// Values kept and facts that have readers: what must not grow with history.
    pub fn size(&self) -> (usize, usize) {
        self.graph.size()
    }

    /// Look for problems of rows that are new, and take over those that differ.
    fn lint(&mut self, rows: &[RowId], changed: &[Key]) {
        for id in rows {
            let found = if self.snapshot.rules.get(id).is_some() {
                self.graph.want(&self.snapshot, &LintRules(id.clone()))
            } else if self.snapshot.policies.get(id).is_some() {
                self.graph.want(&self.snapshot, &LintPolicy(id.clone()))
            } else {
                self.problems.remove(id);
                self.graph.release(&LintRules(id.clone()).key());
                self.graph.release(&LintPolicy(id.clone()).key());
                continue;
            };
            self.problems.insert(id.clone(), found);
        }
        for key in changed {
            let (id, found) = match key {
                Key::LintRules(query) => (&query.0, self.graph.peek(query)),
                Key::LintPolicy(query) => (&query.0, self.graph.peek(query)),
                _ => continue,
            };
            if let (Some(known), Some(found)) = (self.problems.get_mut(id), found) {
                *known = found;
            }
        }
    }

    fn disconnect(&mut self, key: ProxyKey, update: &mut Update) {
        let Some((proxy, group)) = self.proxies.remove(&key) else { return };
        if let Some(streams) = self.streams.get_mut(&proxy) {
            streams.remove(&key);
            if streams.is_empty() {
                self.streams.remove(&proxy);
                self.graph.release(&GroupOf(proxy).key());
            }
        }
        if let Some(group) = group {
            self.leave(key, &group, update);
        }
    }

    /// Put a proxy into its group.
    fn assign(&mut self, key: ProxyKey, update: &mut Update) {
        let Some((proxy, old)) = self.proxies.get(&key).cloned() else { return };
        let group = self.graph.want(&self.snapshot, &GroupOf(proxy));
        if old.as_ref() == Some(&*group) {
            return;
        }
        if !self.groups.contains_key(&group) {
            let id = ScopeId(self.next_scope);
            self.next_scope += 1;
            let members = Members { id, proxies: BTreeSet::new(), rows: Arc::default() };
            self.groups.insert((*group).clone(), members);
            update.scopes.push((id, Some(Arc::default())));
            self.rescope(&group, update);
        }
        if let Some(members) = self.groups.get_mut(&group) {
            members.proxies.insert(key);
            update.assigned.push((key, members.id));
        }
        if let Some((_, assigned)) = self.proxies.get_mut(&key) {
            *assigned = Some((*group).clone());
        }
        if let Some(old) = old {
            self.leave(key, &old, update);
        }
    }

    fn leave(&mut self, key: ProxyKey, group: &Group, update: &mut Update) {
        let Some(members) = self.groups.get_mut(group) else { return };
        members.proxies.remove(&key);
        if !members.proxies.is_empty() {
            return;
        }
        let Some(members) = self.groups.remove(group) else { return };
        self.graph.release(&Scope(group.clone()).key());
        for row in members.rows.iter() {
            self.drop_row(row, update);
        }
        update.scopes.retain(|(id, _)| *id != members.id);
        update.scopes.push((members.id, None));
    }

    /// Bring the members of a group's scope up to date.
    fn rescope(&mut self, group: &Group, update: &mut Update) {
        let Some(members) = self.groups.get(group) else { return };
        let (id, old) = (members.id, Arc::clone(&members.rows));
        let new = self.graph.want(&self.snapshot, &Scope(group.clone()));
        for row in new.difference(&old) {
            self.hold_row(row, update);
        }
        for row in old.difference(&new) {
            self.drop_row(row, update);
        }
        let ids = new.iter().filter_map(|row| self.rows.get(row).map(|held| held.id));
        let ids: BTreeSet<ResourceId> = ids.collect();
        if *new != *old {
            update.scopes.retain(|(listed, _)| *listed != id);
            update.scopes.push((id, Some(Arc::new(ids))));
        }
        if let Some(members) = self.groups.get_mut(group) {
            members.rows = new;
        }
    }

    fn hold_row(&mut self, row: &RowKey, update: &mut Update) {
        if let Some(held) = self.rows.get_mut(row) {
            held.scopes += 1;
            return;
        }
        let id = ResourceId(self.next_resource);
        self.next_resource += 1;
        self.rows.insert(row.clone(), Held { id, scopes: 1 });
        let value = self.graph.want(&self.snapshot, row);
        update.resources.push((id, Some(value)));
    }

    fn drop_row(&mut self, row: &RowKey, update: &mut Update) {
        let Some(held) = self.rows.get_mut(row) else { return };
        held.scopes -= 1;
        if held.scopes == 0 {
            update.resources.retain(|(id, _)| *id != held.id);
            update.resources.push((held.id, None));
            self.rows.remove(row);
            self.graph.release(&row.key());
        }
    }
}
