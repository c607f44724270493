//! The engine: keeps the snapshot and says what changed for whom.
//!
//! In: batches of changed objects and of proxies that came and went. Out: an `Update`: resources
//! whose content differs, layers whose members differ, scopes as stacks of layers, proxies that
//! moved to another scope.
//!
//! One batch, start to end: `Snapshot::apply` gives the facts that differ. `Graph::propagate` runs
//! the queries that read them (the algorithm stands in `track`). Hosts whose views differ are
//! counted anew (`public`). Proxies whose group differs move; groups whose own rows differ gain and
//! lose some; rows whose value differs are reported. What no proxy and no layer wants any more is
//! forgotten.
//!
//! A scope is a stack of layers: what everybody gets, what is different in a namespace, what the
//! group has of its own. An upper layer may hide what a lower one sets. Gateways, and sidecars whose
//! hosts are narrowed, have the last layer only.
//!
//! **Invariant:** the output is a function of the objects and proxies, never of their history;
//! only the numbers given to resources, layers and scopes depend on it, and no bytes depend on
//! those.

mod about;
mod held;
mod public;

pub use about::{About, AboutRole};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::HashMap;

use crate::ir;
use crate::problem::Problem;
use crate::proxy::Proxy;
use crate::resolve::{BaseView, Group, GroupOf, GroupRole, Key, Lint, RowSet, Scope, SidecarRows};
use crate::rows::GatewayName;
use crate::snapshot::{Change, IndexKey, RowId, Snapshot};
use crate::track::{Graph, Query, Ran};
use held::HeldRows;
use public::Public;

/// Names a connected proxy: one stream, one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProxyKey(pub u64);

/// Names a scope: a set of resources that some proxies are to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId(pub u32);

/// Names a layer: a set of resources that scopes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub u32);

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
    /// Layers whose members differ; none = gone.
    pub layers: Vec<(LayerId, Option<LayerDiff>)>,
    /// Scopes that are new or gone, with their layers, lowest first.
    pub scopes: Vec<(ScopeId, Option<Vec<LayerId>>)>,
    /// Proxies and the scope they have from now on.
    pub assigned: Vec<(ProxyKey, ScopeId)>,
    /// Queries that ran again, in order.
    pub ran: Vec<Ran>,
}

/// How the members of a layer differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerDiff {
    /// Resources that it sets from now on.
    pub set: Vec<ResourceId>,
    /// Resources that it set.
    pub unset: Vec<ResourceId>,
    /// Resources of lower layers that it hides from now on.
    pub hidden: Vec<ResourceId>,
    /// Resources that it hid.
    pub unhidden: Vec<ResourceId>,
}

/// The engine; one writer.
#[derive(Default)]
pub struct Engine {
    snapshot: Snapshot,
    graph: Graph,
    proxies: BTreeMap<ProxyKey, (Arc<Proxy>, Option<Arc<Group>>)>,
    /// Streams of equal proxies.
    streams: HashMap<Arc<Proxy>, BTreeSet<ProxyKey>>,
    groups: BTreeMap<Arc<Group>, Members>,
    /// What sidecars share, by whether they hold a certificate.
    public: BTreeMap<bool, Public>,
    held: HeldRows,
    /// Problems of rows that have any.
    problems: BTreeMap<RowId, Arc<BTreeSet<Problem>>>,
    next_layer: u32,
    next_scope: u32,
}

/// The scope of a group.
struct Members {
    id: ScopeId,
    proxies: BTreeSet<ProxyKey>,
    /// The layer that is its own, and what is in it.
    layer: LayerId,
    rows: Arc<RowSet>,
}

// === impl Update ===

impl Update {
    fn add_diff(&mut self, layer: LayerId, diff: LayerDiff) {
        if diff != LayerDiff::default() {
            self.layers.push((layer, Some(diff)));
        }
    }

    fn drop_layer(&mut self, layer: LayerId) {
        self.layers.retain(|(known, _)| *known != layer);
        self.layers.push((layer, None));
    }
}

// === impl Engine ===

impl Engine {
    /// An engine without objects and proxies.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, of an authority whose identities are of this domain.
    pub fn of_trust_domain(trust_domain: Arc<str>) -> Self {
        let mut engine = Self::new();
        engine.snapshot.trust_domain = Some(trust_domain);
        engine
    }

    /// Apply a batch and say what differs.
    pub fn apply(&mut self, batch: Batch) -> Update {
        let Batch { changes, connected, disconnected } = batch;
        self.held.begin();
        let facts = self.snapshot.apply(changes);
        let mut update = Update { touched: !facts.rows.is_empty(), ..Update::default() };
        let rows: Vec<RowId> = facts.rows.iter().cloned().collect();
        let mut hosts: BTreeSet<Arc<str>> =
            facts.members.iter().filter_map(outbound_host).cloned().collect();
        update.ran = self.graph.propagate(&self.snapshot, facts);
        let changed: Vec<Arc<Key>> =
            update.ran.iter().filter(|r| r.differs).map(|r| r.key.clone()).collect();
        self.lint(&rows, &changed);
        for key in &changed {
            match &**key {
                Key::HostViews(views) => drop(hosts.insert(Arc::clone(&views.host))),
                Key::BaseView(BaseView(viewer)) => {
                    if let Some(public) = self.public.get_mut(&viewer.mutual_tls) {
                        public.rebase(&self.graph, &self.snapshot);
                    }
                }
                _ => {}
            }
        }
        for public in self.public.values_mut() {
            for host in &hosts {
                public.revisit(host, &self.graph, &self.snapshot);
            }
        }
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
            let Key::Group(GroupOf(proxy)) = &**key else { continue };
            for stream in self.streams.get(proxy).cloned().unwrap_or_default() {
                self.assign(stream, &mut update);
            }
        }
        for key in &changed {
            if let Key::Scope(Scope(group)) = &**key {
                self.rescope(group, &mut update);
            }
        }
        for mutual_tls in [false, true] {
            if self.public.get(&mutual_tls).is_some_and(Public::is_unused)
                && let Some(public) = self.public.remove(&mutual_tls)
            {
                public.close(&self.graph, &mut self.held, &mut update);
            }
        }
        for public in self.public.values_mut() {
            public.settle(&self.graph, &self.snapshot, &mut self.held, &mut update);
        }
        for Ran { key, differs } in &update.ran {
            let Key::Row(row) = &**key else { continue };
            let Some(id) = self.held.old_id(row) else { continue };
            let Some(value) = self.graph.peek(row) else { continue };
            if *differs {
                update.resources.push((id, Some(value)));
            } else {
                update.refreshed.push((id, value));
            }
        }
        self.held.settle(&self.graph, &mut update);
        self.graph.sweep();
        update
    }

    /// Every problem between objects, sorted; faults within one object come from its `lower`.
    pub fn problems(&self) -> BTreeSet<Problem> {
        self.problems.values().flat_map(|p| p.iter().cloned()).collect()
    }

    /// Every resource that some scope holds, with its origins as they are now.
    pub fn resources(&self) -> impl Iterator<Item = (ResourceId, Arc<ir::Resource>)> {
        self.held.iter().filter_map(|(key, id)| Some((id, self.graph.peek(key)?)))
    }

    /// Every resource of a proxy.
    pub fn resources_of(&self, key: ProxyKey) -> BTreeMap<ResourceId, Arc<ir::Resource>> {
        let group = self.proxies.get(&key).and_then(|(_, group)| group.as_ref());
        let rows = group.map(|group| self.rows_of(group)).unwrap_or_default();
        let entry = |row| Some((self.held.id(row)?, self.graph.peek(row)?));
        rows.iter().filter_map(entry).collect()
    }

    /// Compare with a fresh engine that is given the same objects and proxies at once: every
    /// difference is a read that was not noted. Costs a cold build; for tests and for
    /// `--verify-engine`.
    pub fn verify(&self) -> Vec<String> {
        let mut fresh = Self::new();
        fresh.snapshot.trust_domain.clone_from(&self.snapshot.trust_domain);
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
        for group in fresh.groups.keys() {
            let (rows, wanted) = (self.rows_of(group), fresh.rows_of(group));
            if rows != wanted {
                let missed = self.graph.missed(&fresh.graph, &Scope(Arc::clone(group)).key());
                out.push(format!("scope of {group:?}; not noted: {missed:?}"));
            }
            if wanted != fresh.summed(group) {
                out.push(format!("scope of {group:?} is not the sum of the views of its hosts"));
            }
        }
        for (row, _) in fresh.held.iter() {
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
    fn lint(&mut self, rows: &[RowId], changed: &[Arc<Key>]) {
        for id in rows {
            if !self.snapshot.is_linted(id) {
                self.problems.remove(id);
                self.graph.release(&Lint(id.clone()).key());
                continue;
            }
            let found = self.graph.want(&self.snapshot, &Lint(id.clone()));
            self.found(id, found);
        }
        for key in changed {
            let Key::Lint(query) = &**key else { continue };
            let found = self.graph.peek(query).filter(|_| self.snapshot.is_linted(&query.0));
            if let Some(found) = found {
                self.found(&query.0, found);
            }
        }
    }

    fn found(&mut self, id: &RowId, problems: Arc<BTreeSet<Problem>>) {
        match problems.is_empty() {
            true => self.problems.remove(id),
            false => self.problems.insert(id.clone(), problems),
        };
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
        if old.as_ref() == Some(&group) {
            return;
        }
        if !self.groups.contains_key(&group) {
            self.open(&group, update);
        }
        if let Some(members) = self.groups.get_mut(&group) {
            members.proxies.insert(key);
            update.assigned.push((key, members.id));
        }
        if let Some((_, assigned)) = self.proxies.get_mut(&key) {
            *assigned = Some(group);
        }
        if let Some(old) = old {
            self.leave(key, &old, update);
        }
    }

    /// The first proxy of a group is there.
    fn open(&mut self, group: &Arc<Group>, update: &mut Update) {
        let mut new_layer = || {
            self.next_layer += 1;
            LayerId(self.next_layer)
        };
        let mut layers = Vec::new();
        if group.shares() {
            let mutual_tls = group.capabilities.mutual_tls;
            let public = self.public.entry(mutual_tls).or_insert_with(|| {
                Public::new(new_layer(), mutual_tls, &self.graph, &self.snapshot)
            });
            layers.extend([public.id, public.join(&group.namespace, &mut new_layer)]);
        }
        let layer = new_layer();
        layers.push(layer);
        let id = ScopeId(self.next_scope);
        self.next_scope += 1;
        let members = Members { id, proxies: BTreeSet::new(), layer, rows: Arc::default() };
        self.groups.insert(Arc::clone(group), members);
        update.scopes.push((id, Some(layers)));
        self.rescope(group, update);
    }

    fn leave(&mut self, key: ProxyKey, group: &Arc<Group>, update: &mut Update) {
        let Some(members) = self.groups.get_mut(group) else { return };
        members.proxies.remove(&key);
        if !members.proxies.is_empty() {
            return;
        }
        let Some(members) = self.groups.remove(group) else { return };
        self.graph.release(&Scope(Arc::clone(group)).key());
        for row in members.rows.iter() {
            self.held.let_go(row);
        }
        update.drop_layer(members.layer);
        if group.shares()
            && let Some(public) = self.public.get_mut(&group.capabilities.mutual_tls)
        {
            public.leave(&group.namespace, &mut self.held, update);
        }
        update.scopes.retain(|(id, _)| *id != members.id);
        update.scopes.push((members.id, None));
    }

    /// Bring the rows that a group has of its own up to date.
    fn rescope(&mut self, group: &Arc<Group>, update: &mut Update) {
        let Some(members) = self.groups.get_mut(group) else { return };
        let new = self.graph.want(&self.snapshot, &Scope(Arc::clone(group)));
        let old = std::mem::replace(&mut members.rows, Arc::clone(&new));
        let layer = members.layer;
        let mut diff = LayerDiff::default();
        for row in new.difference(&old) {
            diff.set.push(self.held.hold(row, &self.graph, &self.snapshot, update));
        }
        for row in old.difference(&new) {
            diff.unset.extend(self.held.let_go(row));
        }
        update.add_diff(layer, diff);
    }

    /// The rows of a group.
    fn rows_of(&self, group: &Arc<Group>) -> RowSet {
        let own = self.groups.get(group).map(|members| Arc::clone(&members.rows));
        let mut rows = own.as_deref().cloned().unwrap_or_default();
        if group.shares()
            && let Some(public) = self.public.get(&group.capabilities.mutual_tls)
        {
            rows.extend(public.rows(&group.namespace));
        }
        rows
    }

    /// The rows of a group, computed as if it shared nothing.
    fn summed(&self, group: &Arc<Group>) -> RowSet {
        let own = self.groups.get(group).map(|members| Arc::clone(&members.rows));
        let mut rows = own.as_deref().cloned().unwrap_or_default();
        if group.shares()
            && let GroupRole::Sidecar { viewer, .. } = &group.role
        {
            let all = SidecarRows(viewer.clone());
            rows.extend(self.graph.want(&self.snapshot, &all).iter().cloned());
        }
        rows
    }
}

/// The host that an index bucket is of, if sidecars may have it.
fn outbound_host(key: &IndexKey) -> Option<&Arc<str>> {
    match key {
        IndexKey::ServiceHost(host) | IndexKey::Claim(GatewayName::Mesh, host) => Some(host),
        _ => None,
    }
}
