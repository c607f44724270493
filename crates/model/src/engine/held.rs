//! Rows that some layer holds, with the numbers that the world knows them by.
//!
//! **Invariant:** a row that leaves one layer and enters another in the same batch keeps its
//! number; one that no layer holds at the end of a batch is forgotten.

use std::collections::BTreeSet;
use std::sync::Arc;

use foldhash::HashMap;

use super::{ResourceId, Update};
use crate::resolve::RowKey;
use crate::snapshot::Snapshot;
use crate::track::{Graph, Query};

/// Every row that is held.
#[derive(Default)]
pub(super) struct HeldRows {
    rows: HashMap<Arc<RowKey>, Held>,
    /// Rows that a layer let go in this batch.
    let_go: Vec<Arc<RowKey>>,
    next: u64,
    /// The first number of this batch.
    first_new: u64,
}

struct Held {
    id: ResourceId,
    /// Layers that hold it.
    layers: usize,
}

// === impl HeldRows ===

impl HeldRows {
    /// A batch begins.
    pub(super) fn begin(&mut self) {
        self.first_new = self.next;
    }

    /// One more layer holds the row.
    pub(super) fn hold(
        &mut self,
        row: &Arc<RowKey>,
        graph: &Graph,
        snapshot: &Snapshot,
        update: &mut Update,
    ) -> ResourceId {
        if let Some(held) = self.rows.get_mut(row) {
            held.layers += 1;
            return held.id;
        }
        let id = ResourceId(self.next);
        self.next += 1;
        self.rows.insert(Arc::clone(row), Held { id, layers: 1 });
        update.resources.push((id, Some(graph.want(snapshot, row))));
        id
    }

    /// One layer less holds the row; takes effect at the end of the batch.
    pub(super) fn let_go(&mut self, row: &Arc<RowKey>) -> Option<ResourceId> {
        self.let_go.push(Arc::clone(row));
        self.id(row)
    }

    /// The number of a row.
    pub(super) fn id(&self, row: &Arc<RowKey>) -> Option<ResourceId> {
        self.rows.get(row).map(|held| held.id)
    }

    /// The number of a row that was held before this batch.
    pub(super) fn old_id(&self, row: &Arc<RowKey>) -> Option<ResourceId> {
        self.id(row).filter(|id| id.0 < self.first_new)
    }

    /// The batch ends: forget what nobody holds.
    pub(super) fn settle(&mut self, graph: &Graph, update: &mut Update) {
        let mut gone = BTreeSet::new();
        for row in std::mem::take(&mut self.let_go) {
            let Some(held) = self.rows.get_mut(&row) else { continue };
            held.layers -= 1;
            if held.layers == 0 {
                gone.insert(held.id);
                self.rows.remove(&row);
                graph.release(&row.key());
            }
        }
        if gone.is_empty() {
            return;
        }
        update.resources.retain(|(id, _)| !gone.contains(id));
        update.refreshed.retain(|(id, _)| !gone.contains(id));
        let known = gone.into_iter().filter(|id| id.0 < self.first_new);
        update.resources.extend(known.map(|id| (id, None)));
    }

    /// Every row and its number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<RowKey>, ResourceId)> {
        self.rows.iter().map(|(row, held)| (row, held.id))
    }
}
