//! Layers: immutable sets of resources that scopes share, stacked on each other.
//!
//! In: edits by the one writer. Out: layers that share everything that was not edited with the
//! layer they were edited from, and remember the last edits, so that a stream which held an earlier
//! one looks at what was edited since.
//!
//! **Invariant:** a layer never changes; an edit costs what it touches, whatever the layer holds.

use std::collections::{BTreeSet, VecDeque};
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;

use envoy_api::{EncodedResource, ResourceType};
use rpds::RedBlackTreeMapSync;

use crate::whole::{Prepared, PreparedTypes};

/// Edits that a layer remembers.
const LOGGED: usize = 64;

/// Resources of one type by name; none = the name of lower layers is hidden.
type Entries = RedBlackTreeMapSync<Arc<str>, Option<Arc<EncodedResource>>>;

/// A set of resources, and of names that it hides.
#[derive(Clone, Debug)]
pub struct Layer {
    types: [Entries; 6],
    /// The layers that were edited from each other have the same.
    lineage: Arc<()>,
    revision: u64,
    /// The newest edits, oldest first: names by type.
    log: VecDeque<Arc<Names>>,
    prepared: PreparedTypes,
}

type Names = [Vec<Arc<str>>; 6];

/// Builds a layer from an earlier one; see [`Layer::edit`].
#[derive(Debug)]
pub struct LayerEdit {
    layer: Layer,
    touched: Names,
}

/// A layer on its way through a merge.
type Walk<'a> = Box<dyn Iterator<Item = (&'a Arc<str>, &'a Option<Arc<EncodedResource>>)> + 'a>;

/// The entries of several layers by name; the uppermost decides.
pub(crate) struct Merged<'a>(Vec<Peekable<Walk<'a>>>);

// === impl Layer ===

impl Default for Layer {
    fn default() -> Self {
        Self {
            types: std::array::from_fn(|_| Entries::new_sync()),
            lineage: Arc::new(()),
            revision: 0,
            log: VecDeque::new(),
            prepared: PreparedTypes::default(),
        }
    }
}

impl Layer {
    /// Start an edited copy.
    pub fn edit(&self) -> LayerEdit {
        LayerEdit { layer: self.clone(), touched: Names::default() }
    }

    /// What it says of a name, if anything; none within = it hides the name.
    pub fn get(&self, kind: ResourceType, name: &str) -> Option<&Option<Arc<EncodedResource>>> {
        self.types[kind as usize].get(name)
    }

    /// How many resources it sets, and how many names it hides. Costs as much as there are.
    pub fn counts(&self) -> (usize, usize) {
        let entries = self.types.iter().flat_map(|entries| entries.values());
        let (set, hidden): (Vec<_>, Vec<_>) = entries.partition(|entry| entry.is_some());
        (set.len(), hidden.len())
    }

    /// Number of names of a type of which it says something.
    pub(crate) fn size(&self, kind: ResourceType) -> usize {
        self.types[kind as usize].size()
    }

    /// Names of a type of which it says something, in order.
    pub(crate) fn names(&self, kind: ResourceType) -> impl Iterator<Item = &Arc<str>> {
        self.types[kind as usize].keys()
    }

    /// What it sets of a type, as all streams share it.
    pub(crate) fn prepared(&self, kind: ResourceType) -> Arc<Prepared> {
        let set = self.types[kind as usize].values().filter_map(Option::as_ref);
        self.prepared.get(kind, set)
    }

    /// Names that may differ between `earlier` and this layer.
    pub(crate) fn changed_since(&self, earlier: &Self, kind: ResourceType) -> Vec<Arc<str>> {
        let slot = kind as usize;
        if Arc::ptr_eq(&self.lineage, &earlier.lineage) && self.revision >= earlier.revision {
            let since = usize::try_from(self.revision - earlier.revision).unwrap_or(usize::MAX);
            if since <= self.log.len() {
                let edits = self.log.iter().rev().take(since);
                return edits.flat_map(|names| names[slot].iter().cloned()).collect();
            }
        }
        let (old, new) = (&earlier.types[slot], &self.types[slot]);
        let version = |entry: &Option<Arc<EncodedResource>>| entry.as_ref().map(|r| r.version());
        let differs = |name: &Arc<str>| old.get(name).map(version) != new.get(name).map(version);
        let gone = old.keys().filter(|name| !new.contains_key(*name));
        new.keys().filter(|name| differs(name)).chain(gone).cloned().collect()
    }
}

// === impl LayerEdit ===

impl LayerEdit {
    /// Add or replace a resource.
    #[must_use]
    pub fn set(mut self, resource: impl Into<Arc<EncodedResource>>) -> Self {
        let resource = resource.into();
        let (kind, name) = (resource.resource_type(), Arc::clone(resource.name()));
        self.touch(kind, &name);
        self.layer.types[kind as usize].insert_mut(name, Some(resource));
        self
    }

    /// Hide what lower layers have under this name.
    #[must_use]
    pub fn hide(mut self, kind: ResourceType, name: &Arc<str>) -> Self {
        self.touch(kind, name);
        self.layer.types[kind as usize].insert_mut(Arc::clone(name), None);
        self
    }

    /// Say nothing of a name any more; no error if nothing was said.
    #[must_use]
    pub fn remove(mut self, kind: ResourceType, name: &str) -> Self {
        if self.layer.types[kind as usize].remove_mut(name) {
            self.touch(kind, &Arc::from(name));
        }
        self
    }

    /// The edited layer.
    pub fn build(self) -> Layer {
        let Self { mut layer, touched } = self;
        layer.revision += 1;
        if layer.log.len() == LOGGED {
            layer.log.pop_front();
        }
        layer.log.push_back(Arc::new(touched));
        layer
    }

    fn touch(&mut self, kind: ResourceType, name: &Arc<str>) {
        self.touched[kind as usize].push(Arc::clone(name));
        self.layer.prepared.forget(kind);
    }
}

// === impl Merged ===

impl<'a> Merged<'a> {
    /// Entries of a type from a name on; lowest layer first.
    pub(crate) fn new(layers: &'a [Arc<Layer>], kind: ResourceType, from: &str) -> Self {
        let start: Bound<Arc<str>> = Bound::Included(Arc::from(from));
        let walk = |layer: &'a Arc<Layer>| {
            let entries = layer.types[kind as usize].range((start.clone(), Bound::Unbounded));
            (Box::new(entries) as Walk<'a>).peekable()
        };
        Self(layers.iter().map(walk).collect())
    }
}

impl<'a> Iterator for Merged<'a> {
    type Item = (&'a Arc<str>, &'a Arc<EncodedResource>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let first = self.0.iter_mut().filter_map(|w| w.peek().map(|(name, _)| *name)).min()?;
            let mut found = None;
            for walk in &mut self.0 {
                if let Some(entry) = walk.next_if(|(name, _)| *name == first) {
                    found = Some(entry);
                }
            }
            if let Some((name, Some(resource))) = found {
                return Some((name, resource));
            }
        }
    }
}

/// Names that may differ between two stacks of layers.
pub(crate) fn changed_since(
    new: &[Arc<Layer>],
    old: &[Arc<Layer>],
    kind: ResourceType,
) -> BTreeSet<Arc<str>> {
    if new.len() == old.len() {
        let pairs = new.iter().zip(old).filter(|(new, old)| !Arc::ptr_eq(new, old));
        return pairs.flat_map(|(new, old)| new.changed_since(old, kind)).collect();
    }
    let names = |layers| Merged::new(layers, kind, "").map(|(name, _)| Arc::clone(name));
    names(new).chain(names(old)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ResourceType::Cluster;

    fn cluster(name: &str, body: &[u8]) -> EncodedResource {
        EncodedResource::new(Cluster, name, body, vec![])
    }

    fn names(layers: &[Arc<Layer>]) -> Vec<(String, Vec<u8>)> {
        let all = Merged::new(layers, Cluster, "");
        all.map(|(name, r)| (name.to_string(), r.body().to_vec())).collect()
    }

    #[test]
    fn an_upper_layer_sets_and_hides() {
        let low = ["a", "b", "c"].map(|n| cluster(n, b"low"));
        let low = low.into_iter().fold(Layer::default().edit(), LayerEdit::set).build();
        let high = Layer::default().edit();
        let high = high.set(cluster("b", b"high")).hide(Cluster, &"c".into());
        let high = high.hide(Cluster, &"z".into()).set(cluster("d", b"high")).build();
        let stack = [Arc::new(low), Arc::new(high)];
        let text = |n: &str, b: &[u8]| (n.to_owned(), b.to_vec());
        let expected = [text("a", b"low"), text("b", b"high"), text("d", b"high")];
        assert_eq!(names(&stack), expected);
        let back = stack[1].edit().remove(Cluster, "c").remove(Cluster, "b").build();
        let stack = [Arc::clone(&stack[0]), Arc::new(back)];
        assert_eq!(names(&stack).len(), 4);
        assert_eq!(names(&stack)[1], text("b", b"low"));
    }

    #[test]
    fn what_an_edit_does_not_touch_stays_prepared() {
        let endpoints = EncodedResource::new(ResourceType::Endpoints, "a", b"1", vec![]);
        let base = Layer::default().edit().set(cluster("a", b"1")).set(endpoints).build();
        let prepared = [Cluster, ResourceType::Endpoints].map(|kind| base.prepared(kind));
        let edited = base.edit().set(cluster("b", b"1")).build();
        assert!(!Arc::ptr_eq(&edited.prepared(Cluster), &prepared[0]));
        assert!(Arc::ptr_eq(&edited.prepared(ResourceType::Endpoints), &prepared[1]));
        assert!(Arc::ptr_eq(&base.prepared(Cluster), &prepared[0]));
    }

    #[test]
    fn what_changed_is_found_by_the_log_and_by_walking_alike() {
        let base = ["a", "b", "c"].map(|n| cluster(n, b"1"));
        let base = base.into_iter().fold(Layer::default().edit(), LayerEdit::set).build();
        let edited = base.edit().set(cluster("b", b"2")).remove(Cluster, "c").build();
        let edited = edited.edit().set(cluster("d", b"1")).hide(Cluster, &"e".into()).build();
        let mut logged = edited.changed_since(&base, Cluster);
        let stranger = Layer { lineage: Arc::new(()), ..base.clone() };
        let mut walked = edited.changed_since(&stranger, Cluster);
        logged.sort();
        walked.sort();
        assert_eq!(logged, walked);
        assert_eq!(logged, ["b", "c", "d", "e"].map(Arc::from));
    }

    #[test]
    fn a_log_that_has_wrapped_is_not_trusted() {
        let base = Layer::default().edit().set(cluster("a", b"1")).build();
        let mut edited = base.edit().remove(Cluster, "a").build();
        for n in 0..LOGGED {
            edited = edited.edit().set(cluster("b", &n.to_be_bytes())).build();
        }
        let mut changed = edited.changed_since(&base, Cluster);
        changed.sort();
        assert_eq!(changed, ["a", "b"].map(Arc::from));
    }
}
