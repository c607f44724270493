//! Everything that a view offers of one type, for streams that have none of it.
//!
//! A thousand proxies that come back after an outage are sent nearly the same: the large layers of
//! their views are shared. So a layer is prepared once, in order, with sums and joined bytes; a
//! view adds what its layers hide of each other; and a stream notes no more than which part of
//! that is on its way.
//!
//! **Invariant:** says nothing that the view does not say.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use envoy_api::{ContentHash, EncodedResource, ResourceType};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::chunks::chunk;
use crate::layer::Layer;
use crate::publication::{ScopeView, parent_of};

/// What one layer sets of a type, by name.
#[derive(Debug)]
pub(crate) struct Prepared {
    resources: Vec<Arc<EncodedResource>>,
    /// Totals of what comes before each, and of all.
    before: Vec<Totals>,
    index: OnceLock<HashMap<Arc<str>, usize>>,
    parents: OnceLock<BTreeSet<String>>,
    delta: OnceLock<Vec<(Range<usize>, Bytes)>>,
    sotw: OnceLock<Vec<(Range<usize>, Bytes)>>,
}

/// What a layer prepared, by type: nothing of what no stream needed since it was edited.
#[derive(Clone, Debug, Default)]
pub(crate) struct PreparedTypes([OnceLock<Arc<Prepared>>; 6]);

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    entries: usize,
    names: usize,
    sum: u64,
}

/// All resources of one type that a view offers.
#[derive(Debug)]
pub(crate) struct Whole {
    view: Arc<ScopeView>,
    resource_type: ResourceType,
    layers: Vec<Offered>,
    pieces: Vec<Piece>,
}

/// What a view offers of one of its layers.
#[derive(Debug)]
struct Offered {
    prepared: Arc<Prepared>,
    /// What layers above set or hide.
    covered: BTreeSet<usize>,
}

/// What one response carries: of some layers a range each.
#[derive(Debug, Default)]
struct Piece {
    ranges: Vec<(usize, Range<usize>)>,
    resources: OnceLock<Vec<Arc<EncodedResource>>>,
}

/// What one response carries of everything that a view offers.
#[derive(Clone, Debug)]
pub struct Part {
    whole: Arc<Whole>,
    at: usize,
}

/// What a name and its version add to the version of a set, in whatever order.
pub(crate) fn mix(name: &str, version: ContentHash) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), version.0)
}

// === impl Totals ===

impl Totals {
    fn of(resource: &EncodedResource) -> Self {
        Self {
            entries: resource.delta_entry().len(),
            names: resource.name().len(),
            sum: mix(resource.name(), resource.version()),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            entries: self.entries + other.entries,
            names: self.names + other.names,
            sum: self.sum.wrapping_add(other.sum),
        }
    }

    fn without(self, part: Self) -> Self {
        Self {
            entries: self.entries - part.entries,
            names: self.names - part.names,
            sum: self.sum.wrapping_sub(part.sum),
        }
    }
}

// === impl PreparedTypes ===

impl PreparedTypes {
    /// What is prepared of a type; `resources` are those of the layer, by name.
    pub(crate) fn get<'a>(
        &self,
        resource_type: ResourceType,
        resources: impl Iterator<Item = &'a Arc<EncodedResource>>,
    ) -> Arc<Prepared> {
        let prepare = || Arc::new(Prepared::new(resources.cloned().collect()));
        Arc::clone(self.0[resource_type as usize].get_or_init(prepare))
    }

    /// Something of a type is another.
    pub(crate) fn forget(&mut self, resource_type: ResourceType) {
        self.0[resource_type as usize] = OnceLock::new();
    }
}

// === impl Prepared ===

impl Prepared {
    fn new(resources: Vec<Arc<EncodedResource>>) -> Self {
        let mut total = Totals::default();
        let mut before = vec![total];
        for resource in &resources {
            total = total.and(Totals::of(resource));
            before.push(total);
        }
        Self {
            resources,
            before,
            index: OnceLock::new(),
            parents: OnceLock::new(),
            delta: OnceLock::new(),
            sotw: OnceLock::new(),
        }
    }

    fn find(&self, name: &str) -> Option<usize> {
        let index = self.index.get_or_init(|| {
            let names = self.resources.iter().map(|resource| Arc::clone(resource.name()));
            names.zip(0..).collect()
        });
        index.get(name).copied()
    }

    /// RouteConfigurations that virtual hosts belong to.
    fn parents(&self) -> &BTreeSet<String> {
        self.parents.get_or_init(|| {
            let parents = self.resources.iter().filter_map(|host| parent_of(host.name()));
            parents.map(str::to_owned).collect()
        })
    }

    fn totals(&self, range: &Range<usize>) -> Totals {
        self.before[range.end].without(self.before[range.start])
    }

    /// Entries as they are sent, as many in one piece as go into a chunk.
    fn join(&self, entry: impl Fn(&EncodedResource) -> Bytes) -> Vec<(Range<usize>, Bytes)> {
        let entries: Vec<_> = self.resources.iter().map(|resource| entry(resource)).collect();
        let mut joined = Vec::new();
        let mut start = 0;
        while let Some((taken, bytes)) = chunk(BytesMut::new(), &entries[start..]) {
            joined.push((start..start + taken, bytes));
            start += taken;
        }
        joined
    }
}

// === impl Whole ===

impl Whole {
    /// In parts of so many bytes, or of one resource that is larger.
    pub(crate) fn new(
        view: &Arc<ScopeView>,
        resource_type: ResourceType,
        response_bytes: usize,
    ) -> Self {
        let layers = view.layers().iter().enumerate();
        let layers = layers.filter(|(_, layer)| layer.size(resource_type) > 0);
        let offered = |(at, layer): (usize, &Arc<Layer>)| {
            let prepared = layer.prepared(resource_type);
            let above = view.layers()[at + 1..].iter().flat_map(|above| above.names(resource_type));
            let covered = above.filter_map(|name| prepared.find(name)).collect();
            Offered { prepared, covered }
        };
        let layers = layers.map(offered).collect();
        let mut whole = Self { view: Arc::clone(view), resource_type, layers, pieces: Vec::new() };
        whole.pieces = whole.split(response_bytes);
        whole
    }

    fn split(&self, response_bytes: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let (mut piece, mut free) = (Piece::default(), response_bytes);
        for (at, layer) in self.layers.iter().enumerate() {
            let before = &layer.prepared.before;
            let all = layer.prepared.resources.len();
            let mut start = 0;
            while start < all {
                let limit = before[start].entries.saturating_add(free);
                let fits = before[start + 1..].partition_point(|total| total.entries <= limit);
                let empty = piece.ranges.is_empty();
                let end = start + if empty { fits.max(1) } else { fits };
                if end > start {
                    piece.ranges.push((at, start..end));
                    free = free.saturating_sub(before[end].entries - before[start].entries);
                }
                if end < all {
                    pieces.push(std::mem::take(&mut piece));
                    free = response_bytes;
                }
                start = end;
            }
        }
        pieces.push(piece);
        pieces.retain(|piece| self.len_of(piece) > 0);
        pieces
    }

    pub(crate) fn view(&self) -> &Arc<ScopeView> {
        &self.view
    }

    pub(crate) fn parts(self: &Arc<Self>) -> impl Iterator<Item = Part> {
        (0..self.pieces.len()).map(|at| Part { whole: Arc::clone(self), at })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(crate) fn resources(&self) -> impl Iterator<Item = &Arc<EncodedResource>> {
        self.pieces.iter().flat_map(|piece| self.resources_of(piece))
    }

    /// Whether these are just its names, each once.
    pub(crate) fn is_named(&self, names: &[String]) -> bool {
        self.is_all(names.iter().map(|name| self.find(name)))
    }

    /// Whether these are just its names, each once, in these versions.
    pub(crate) fn is_held(&self, held: &[(String, String)]) -> bool {
        let same = |(name, version): &(String, String)| {
            let (layer, at) = self.find(name)?;
            let ours = self.layers[layer].prepared.resources[at].version();
            (ContentHash::parse(version) == Some(ours)).then_some((layer, at))
        };
        self.is_all(held.iter().map(same))
    }

    /// RouteConfigurations that its virtual hosts belong to.
    pub(crate) fn parents(&self) -> impl Iterator<Item = &String> {
        self.layers.iter().flat_map(|layer| layer.prepared.parents())
    }

    /// Layer of a name and place in it.
    fn find(&self, name: &str) -> Option<(usize, usize)> {
        let found = |(layer, offered): (usize, &Offered)| Some((layer, offered.find(name)?));
        self.layers.iter().enumerate().rev().find_map(found)
    }

    fn is_all(&self, found: impl ExactSizeIterator<Item = Option<(usize, usize)>>) -> bool {
        let all: usize = self.pieces.iter().map(|piece| self.len_of(piece)).sum();
        if found.len() != all {
            return false;
        }
        let sizes = self.layers.iter().map(|layer| layer.prepared.resources.len());
        let mut seen: Vec<_> = sizes.map(|size| vec![false; size]).collect();
        let mut once = |(layer, at)| {
            let seen: &mut Vec<bool> = &mut seen[layer];
            !std::mem::replace(&mut seen[at], true)
        };
        found.into_iter().all(|found| found.is_some_and(&mut once))
    }

    fn resources_of(&self, piece: &Piece) -> impl Iterator<Item = &Arc<EncodedResource>> {
        piece.ranges.iter().flat_map(|(layer, range)| {
            let layer = &self.layers[*layer];
            let open = range.clone().filter(|at| !layer.covered.contains(at));
            open.map(|at| &layer.prepared.resources[at])
        })
    }

    fn len_of(&self, piece: &Piece) -> usize {
        let len = |(layer, range): &(usize, Range<usize>)| {
            range.len() - self.layers[*layer].covered.range(range.clone()).count()
        };
        piece.ranges.iter().map(len).sum()
    }

    fn totals_of(&self, piece: &Piece) -> Totals {
        let totals = piece.ranges.iter().map(|(layer, range)| self.layers[*layer].totals(range));
        totals.fold(Totals::default(), Totals::and)
    }
}

// === impl Offered ===

impl Offered {
    fn find(&self, name: &str) -> Option<usize> {
        self.prepared.find(name).filter(|at| !self.covered.contains(at))
    }

    fn totals(&self, range: &Range<usize>) -> Totals {
        let covered = self.covered.range(range.clone());
        let covered = covered.map(|at| Totals::of(&self.prepared.resources[*at]));
        covered.fold(self.prepared.totals(range), Totals::without)
    }

    /// Bytes of a range: joined where nothing of it is left out.
    fn entries(
        &self,
        range: &Range<usize>,
        joined: &[(Range<usize>, Bytes)],
        entry: impl Fn(&EncodedResource) -> Bytes,
        out: &mut Vec<Bytes>,
    ) {
        let first = joined.partition_point(|(chunk, _)| chunk.end <= range.start);
        for (chunk, bytes) in &joined[first..] {
            let within = range.start.max(chunk.start)..range.end.min(chunk.end);
            if within.is_empty() {
                break;
            }
            if within == *chunk && self.covered.range(within.clone()).next().is_none() {
                out.push(bytes.clone());
                continue;
            }
            let open = within.filter(|at| !self.covered.contains(at));
            out.extend(open.map(|at| entry(&self.prepared.resources[at])));
        }
    }
}

// === impl Part ===

impl Part {
    /// Its resources, by layer and name.
    pub fn resources(&self) -> &[Arc<EncodedResource>] {
        let piece = self.piece();
        piece.resources.get_or_init(|| self.whole.resources_of(piece).cloned().collect())
    }

    /// Number of its resources.
    pub(crate) fn len(&self) -> usize {
        self.whole.len_of(self.piece())
    }

    /// Its resources as entries of a delta response, many in one piece.
    pub(crate) fn delta_entries(&self) -> Vec<Bytes> {
        self.entries(|prepared| &prepared.delta, EncodedResource::delta_entry)
    }

    /// Its resources as entries of a response by state of the world, many in one piece.
    pub(crate) fn sotw_entries(&self) -> Vec<Bytes> {
        self.entries(|prepared| &prepared.sotw, EncodedResource::sotw_entry)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<EncodedResource>> {
        let Whole { view, resource_type, layers, pieces } = &*self.whole;
        if pieces.len() == 1 {
            return view.get(*resource_type, name);
        }
        let (layer, at) = self.whole.find(name)?;
        let mut ranges = self.piece().ranges.iter();
        let found = ranges.any(|(of, range)| *of == layer && range.contains(&at));
        found.then(|| &layers[layer].prepared.resources[at])
    }

    /// Sum of [`mix`] over all.
    pub(crate) fn sum(&self) -> u64 {
        self.whole.totals_of(self.piece()).sum
    }

    /// Length of all names, in bytes.
    pub(crate) fn name_bytes(&self) -> usize {
        self.whole.totals_of(self.piece()).names
    }

    pub(crate) fn view(&self) -> &Arc<ScopeView> {
        &self.whole.view
    }

    /// The other parts of the same.
    pub(crate) fn others(&self) -> impl Iterator<Item = Self> {
        self.whole.parts().filter(|part| part.at != self.at)
    }

    /// Whether it is the same part of the same.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.whole, &other.whole) && self.at == other.at
    }

    fn piece(&self) -> &Piece {
        &self.whole.pieces[self.at]
    }

    fn entries(
        &self,
        form: impl Fn(&Prepared) -> &OnceLock<Vec<(Range<usize>, Bytes)>>,
        entry: fn(&EncodedResource) -> Bytes,
    ) -> Vec<Bytes> {
        let mut out = Vec::new();
        for (layer, range) in &self.piece().ranges {
            let layer = &self.whole.layers[*layer];
            let joined = form(&layer.prepared).get_or_init(|| layer.prepared.join(entry));
            layer.entries(range, joined, entry, &mut out);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ResourceType::Cluster;
    use proptest::prelude::*;

    use super::*;
    use crate::layer::LayerEdit;

    /// What a layer says of some names: sets them, or hides them.
    type Said = BTreeMap<u8, bool>;

    fn view(layers: &[Said]) -> Arc<ScopeView> {
        let layer = |(at, said): (usize, &Said)| {
            let say = |edit: LayerEdit, (name, set): (&u8, &bool)| {
                let name: Arc<str> = format!("n{name:03}").into();
                let body = format!("{at}").repeat(20);
                match set {
                    true => edit.set(EncodedResource::new(Cluster, name, body.as_bytes(), vec![])),
                    false => edit.hide(Cluster, &name),
                }
            };
            Arc::new(said.iter().fold(Layer::default().edit(), say).build())
        };
        Arc::new(ScopeView::of(layers.iter().enumerate().map(layer).collect()))
    }

    fn concat(entries: impl IntoIterator<Item = Bytes>) -> Vec<u8> {
        entries.into_iter().flatten().collect()
    }

    proptest! {
        #[test]
        fn it_is_what_the_view_offers_in_parts_that_fit(
            layers in proptest::collection::vec(
                proptest::collection::btree_map(0..200_u8, proptest::bool::weighted(0.8), 0..150),
                0..4,
            ),
            limit in prop_oneof![Just(1), 100..5_000_usize, Just(usize::MAX)],
        ) {
            let view = view(&layers);
            let whole = Arc::new(Whole::new(&view, Cluster, limit));
            let offered: Vec<_> = view.resources(Cluster).map(|(_, r)| Arc::clone(r)).collect();
            let parts: Vec<_> = whole.parts().collect();
            let mut found: Vec<_> = parts.iter().flat_map(|part| part.resources()).collect();
            found.sort_by_key(|resource| Arc::clone(resource.name()));
            prop_assert!(found.iter().map(|r| r.name()).eq(offered.iter().map(|r| r.name())));
            prop_assert!(found.iter().map(|r| r.version()).eq(offered.iter().map(|r| r.version())));
            for part in &parts {
                let own = part.resources();
                prop_assert!(!own.is_empty() && part.len() == own.len());
                let bytes = concat(own.iter().map(|r| r.delta_entry()));
                prop_assert!(own.len() == 1 || bytes.len() <= limit);
                prop_assert_eq!(concat(part.delta_entries()), bytes);
                let bytes = concat(own.iter().map(|r| r.sotw_entry()));
                prop_assert_eq!(concat(part.sotw_entries()), bytes);
                let mixed = own.iter().map(|r| mix(r.name(), r.version()));
                prop_assert_eq!(part.sum(), mixed.fold(0, u64::wrapping_add));
                prop_assert_eq!(part.name_bytes(), own.iter().map(|r| r.name().len()).sum::<usize>());
                for resource in &offered {
                    let has = part.get(resource.name()).map(|r| r.version());
                    let is_own = own.iter().any(|r| r.name() == resource.name());
                    prop_assert_eq!(has, is_own.then(|| resource.version()));
                }
            }
            let held = |r: &Arc<EncodedResource>| (r.name().to_string(), r.version().to_string());
            let mut held: Vec<_> = offered.iter().rev().map(held).collect();
            let names = |held: &[(String, String)]| held.iter().map(|h| h.0.clone()).collect::<Vec<_>>();
            prop_assert!(whole.is_held(&held) && whole.is_named(&names(&held)));
            if held.len() > 1 {
                held[0].1 = held[0].1.replace(char::is_numeric, "f");
                let same = held[0].1 == offered[offered.len() - 1].version().to_string();
                prop_assert_eq!(whole.is_held(&held), same);
                held[0] = held[1].clone();
                prop_assert!(!whole.is_held(&held) && !whole.is_named(&names(&held)));
                held.pop();
                prop_assert!(!whole.is_named(&names(&held)));
            }
        }
    }

    #[test]
    fn views_share_the_bytes_of_a_layer() {
        let base: Said = (0..200).map(|name| (name, true)).collect();
        let view = view(&[base]);
        let own = EncodedResource::new(Cluster, "own", b"", vec![]);
        let own = Arc::new(Layer::default().edit().set(own).build());
        let above = Arc::new(ScopeView::of(vec![Arc::clone(&view.layers()[0]), own]));
        let entries = |view: &Arc<ScopeView>| {
            let whole = Arc::new(Whole::new(view, Cluster, usize::MAX));
            let part = whole.parts().next().unwrap();
            (part.delta_entries(), part)
        };
        let ((first, _part), (second, _)) = (entries(&view), entries(&above));
        assert_eq!((first.len(), second.len()), (1, 2));
        assert_eq!(first[0].as_ptr(), second[0].as_ptr());
    }
}
