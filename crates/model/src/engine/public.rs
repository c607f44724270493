//! What sidecars share: one layer with what everybody gets, and for each namespace with proxies a
//! layer with what is different there. Proxies that hold a certificate and those that hold none
//! share among themselves.
//!
//! A row is part of what everybody gets as often as hosts bring it: the cluster of a service comes
//! with every host whose rules name it. So rows are counted, and a host that changes costs what it
//! brings, whatever number of hosts there are. A namespace counts too: each host that is different
//! there adds what it brings instead and takes off what everybody gets for it. The row is shown
//! where the sum is above zero.
//!
//! Worked through: 10,000 hosts on port 80; in namespace `a` host `x` has a policy of its own.
//! Everybody: listener `80` 10,000, cluster `x` 1. `a`: listener `80` +1 −1 = 0, cluster `x` −1,
//! cluster `x` with the policy +1. So the layer of `a` hides one cluster and sets one.
//!
//! **Invariant:** what a namespace sees is the sum of the views of all hosts for it; `verify`
//! computes just that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::HashMap;

use super::held::HeldRows;
use super::{LayerDiff, LayerId, Update};
use crate::resolve::{BaseView, Client, HostViews, RowKey, RowSet, Viewer, Views};
use crate::snapshot::Snapshot;
use crate::track::{Graph, Query};

/// What everybody gets, and where it is different.
pub(super) struct Public {
    pub(super) id: LayerId,
    /// Whether it is for proxies that hold a certificate.
    mutual_tls: bool,
    base: Arc<RowSet>,
    views: BTreeMap<Arc<str>, Arc<Views>>,
    counts: HashMap<Arc<RowKey>, i64>,
    /// Rows that were counted in this batch, and whether they were shown before.
    dirty: HashMap<Arc<RowKey>, bool>,
    namespaces: BTreeMap<Arc<str>, Overlay>,
    /// Namespace → hosts that are different there, whether or not it has proxies.
    different: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Rows that some overlay counts.
    overlaid: HashMap<Arc<RowKey>, BTreeSet<Arc<str>>>,
}

/// What is different in a namespace.
struct Overlay {
    id: LayerId,
    /// Groups whose scope it is part of.
    groups: usize,
    counts: HashMap<Arc<RowKey>, i64>,
    shown: HashMap<Arc<RowKey>, Shown>,
    dirty: BTreeSet<Arc<RowKey>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Set,
    Hidden,
}

// === impl Public ===

impl Public {
    /// Everything that everybody gets.
    pub(super) fn new(id: LayerId, mutual_tls: bool, graph: &Graph, snapshot: &Snapshot) -> Self {
        let mut public = Self {
            id,
            mutual_tls,
            base: Arc::default(),
            views: BTreeMap::new(),
            counts: HashMap::default(),
            dirty: HashMap::default(),
            namespaces: BTreeMap::new(),
            different: BTreeMap::new(),
            overlaid: HashMap::default(),
        };
        public.rebase(graph, snapshot);
        for host in snapshot.outbound_hosts() {
            public.revisit(&host, graph, snapshot);
        }
        public
    }

    /// Whether no namespace has proxies.
    pub(super) fn is_unused(&self) -> bool {
        self.namespaces.is_empty()
    }

    /// What every sidecar has may be other rows.
    pub(super) fn rebase(&mut self, graph: &Graph, snapshot: &Snapshot) {
        let new = graph.want(snapshot, &self.base_view());
        let old = std::mem::replace(&mut self.base, Arc::clone(&new));
        self.count(&new, 1);
        self.count(&old, -1);
    }

    /// A host came, went, or has other views.
    pub(super) fn revisit(&mut self, host: &Arc<str>, graph: &Graph, snapshot: &Snapshot) {
        let query = self.host_views(host);
        let (new, old) = if snapshot.is_outbound_host(host) {
            let new = graph.want(snapshot, &query);
            (Arc::clone(&new), self.views.insert(Arc::clone(host), new))
        } else {
            graph.release(&query.key());
            (Arc::default(), self.views.remove(host))
        };
        let old = old.unwrap_or_default();
        self.count(&new.everybody, 1);
        self.count(&old.everybody, -1);
        for (namespace, rows) in &new.others {
            self.different.entry(Arc::clone(namespace)).or_default().insert(Arc::clone(host));
            self.count_in(namespace, rows, &new.everybody, 1);
        }
        for (namespace, rows) in &old.others {
            self.count_in(namespace, rows, &old.everybody, -1);
            if !new.others.contains_key(namespace)
                && let Some(hosts) = self.different.get_mut(namespace)
            {
                hosts.remove(host);
                if hosts.is_empty() {
                    self.different.remove(namespace);
                }
            }
        }
    }

    /// One more group is of this namespace. Returns its layer.
    pub(super) fn join(
        &mut self,
        namespace: &Arc<str>,
        new_layer: impl FnOnce() -> LayerId,
    ) -> LayerId {
        if let Some(overlay) = self.namespaces.get_mut(namespace) {
            overlay.groups += 1;
            return overlay.id;
        }
        let id = new_layer();
        let overlay = Overlay {
            id,
            groups: 1,
            counts: HashMap::default(),
            shown: HashMap::default(),
            dirty: BTreeSet::new(),
        };
        self.namespaces.insert(Arc::clone(namespace), overlay);
        for host in self.different.get(namespace).cloned().unwrap_or_default() {
            if let Some(views) = self.views.get(&host).cloned()
                && let Some(rows) = views.others.get(namespace)
            {
                self.count_in(namespace, rows, &views.everybody, 1);
            }
        }
        id
    }

    /// One group less is of this namespace.
    pub(super) fn leave(&mut self, namespace: &Arc<str>, held: &mut HeldRows, update: &mut Update) {
        let Some(overlay) = self.namespaces.get_mut(namespace) else { return };
        overlay.groups -= 1;
        if overlay.groups > 0 {
            return;
        }
        let Some(overlay) = self.namespaces.remove(namespace) else { return };
        for row in overlay.counts.keys() {
            forget_overlaid(&mut self.overlaid, row, namespace);
        }
        for (row, _) in overlay.shown.iter().filter(|(_, shown)| **shown == Shown::Set) {
            held.let_go(row);
        }
        update.drop_layer(overlay.id);
    }

    /// Nobody shares any more.
    pub(super) fn close(self, graph: &Graph, held: &mut HeldRows, update: &mut Update) {
        graph.release(&self.base_view().key());
        for host in self.views.keys() {
            graph.release(&self.host_views(host).key());
        }
        // What was counted in this batch is held as it was before.
        for row in self.counts.keys().filter(|row| !self.dirty.contains_key(*row)) {
            held.let_go(row);
        }
        for (row, _) in self.dirty.iter().filter(|(_, before)| **before) {
            held.let_go(row);
        }
        update.drop_layer(self.id);
    }

    /// The batch ends: say what the layers show now.
    pub(super) fn settle(
        &mut self,
        graph: &Graph,
        snapshot: &Snapshot,
        held: &mut HeldRows,
        update: &mut Update,
    ) {
        let mut diff = LayerDiff::default();
        for (row, before) in std::mem::take(&mut self.dirty) {
            for namespace in self.overlaid.get(&row).into_iter().flatten() {
                if let Some(overlay) = self.namespaces.get_mut(namespace) {
                    overlay.dirty.insert(Arc::clone(&row));
                }
            }
            match (before, self.counts.contains_key(&row)) {
                (false, true) => diff.set.push(held.hold(&row, graph, snapshot, update)),
                (true, false) => diff.unset.extend(held.let_go(&row)),
                _ => {}
            }
        }
        update.add_diff(self.id, diff);
        for overlay in self.namespaces.values_mut() {
            let mut diff = LayerDiff::default();
            for row in std::mem::take(&mut overlay.dirty) {
                let everybody = self.counts.get(&row).copied().unwrap_or_default();
                let own = overlay.counts.get(&row).copied().unwrap_or_default();
                let new = match (everybody > 0, everybody + own > 0) {
                    (false, true) => Some(Shown::Set),
                    (true, false) => Some(Shown::Hidden),
                    _ => None,
                };
                let old = match new {
                    Some(new) => overlay.shown.insert(Arc::clone(&row), new),
                    None => overlay.shown.remove(&row),
                };
                if old == new {
                    continue;
                }
                match new {
                    Some(Shown::Set) => diff.set.push(held.hold(&row, graph, snapshot, update)),
                    Some(Shown::Hidden) => diff.hidden.extend(held.id(&row)),
                    None => {}
                }
                match old {
                    Some(Shown::Set) => diff.unset.extend(held.let_go(&row)),
                    Some(Shown::Hidden) => diff.unhidden.extend(held.id(&row)),
                    None => {}
                }
            }
            update.add_diff(overlay.id, diff);
        }
    }

    /// The rows that proxies of a namespace have.
    pub(super) fn rows(&self, namespace: &Arc<str>) -> RowSet {
        let mut rows: RowSet = self.counts.keys().cloned().collect();
        let overlay = self.namespaces.get(namespace);
        for (row, shown) in overlay.into_iter().flat_map(|overlay| &overlay.shown) {
            match shown {
                Shown::Set => rows.insert(Arc::clone(row)),
                Shown::Hidden => rows.remove(row),
            };
        }
        rows
    }

    /// The query for what every sidecar has.
    fn base_view(&self) -> BaseView {
        BaseView(Viewer::sharing(Client::Anyone, self.mutual_tls))
    }

    fn host_views(&self, host: &Arc<str>) -> HostViews {
        HostViews { host: Arc::clone(host), mutual_tls: self.mutual_tls }
    }

    fn count(&mut self, rows: &RowSet, by: i64) {
        for row in rows {
            let count = self.counts.entry(Arc::clone(row)).or_default();
            self.dirty.entry(Arc::clone(row)).or_insert(*count > 0);
            *count += by;
            if *count == 0 {
                self.counts.remove(row);
            }
        }
    }

    /// Count what a host brings in a namespace, instead of what it brings for everybody.
    fn count_in(&mut self, namespace: &Arc<str>, own: &RowSet, everybody: &RowSet, by: i64) {
        let Some(overlay) = self.namespaces.get_mut(namespace) else { return };
        let differing = own.symmetric_difference(everybody);
        for row in differing {
            let by = if own.contains(row) { by } else { -by };
            let count = overlay.counts.entry(Arc::clone(row)).or_default();
            *count += by;
            if *count == 0 {
                overlay.counts.remove(row);
                forget_overlaid(&mut self.overlaid, row, namespace);
            } else {
                let namespaces = self.overlaid.entry(Arc::clone(row)).or_default();
                namespaces.insert(Arc::clone(namespace));
            }
            overlay.dirty.insert(Arc::clone(row));
        }
    }
}

fn forget_overlaid(
    overlaid: &mut HashMap<Arc<RowKey>, BTreeSet<Arc<str>>>,
    row: &Arc<RowKey>,
    namespace: &Arc<str>,
) {
    if let Some(namespaces) = overlaid.get_mut(row) {
        namespaces.remove(namespace);
        if namespaces.is_empty() {
            overlaid.remove(row);
        }
    }
}
