//! What is known of many names, as differences from a view that streams share.
//!
//! A proxy that has caught up holds what its view offers and has subscribed to just that. So a
//! stream keeps the view it was last compared with, and only the names of which something else is
//! true: a thousand streams of a scope hold one map of ten thousand names, not a thousand.
//!
//! Worked through: all clusters are ACKed one after the other and stand here each by itself. The
//! next `rebase` finds them as the view has them, and keeps none. One is changed: its old version
//! still holds, so it stands here, until the new one is ACKed and the next `rebase` drops it.
//!
//! **Invariant:** which view it is compared with changes how much is kept, never what it says.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_api::{EncodedResource, ResourceType};

use crate::publication::ScopeView;
use crate::whole::Part;

/// What is said of a name, where a view can say it.
pub(super) trait Said {
    /// What it comes to that a view has this, or nothing.
    fn of(resource: Option<&Arc<EncodedResource>>) -> Self;
    /// Whether it says just that.
    fn is(&self, resource: Option<&Arc<EncodedResource>>) -> bool;
}

/// Names of one type and what is said of each; of any other name: what nothing comes to.
#[derive(Debug)]
pub(super) struct Overlay<V> {
    resource_type: ResourceType,
    /// Says it of every name that is not in `own`.
    base: Option<Arc<ScopeView>>,
    /// Parts of the base that are still on their way: it says nothing of their names.
    lacks: Vec<Part>,
    own: BTreeMap<Arc<str>, V>,
    /// Number of names of which something is said.
    count: usize,
    /// Their length, in bytes.
    bytes: usize,
    /// How many stood here when a comparison was not worth it.
    tried: usize,
}

// === impl Overlay ===

impl<V: Said> Overlay<V> {
    pub(super) fn new(resource_type: ResourceType) -> Self {
        Self {
            resource_type,
            base: None,
            lacks: Vec::new(),
            own: BTreeMap::new(),
            count: 0,
            bytes: 0,
            tried: 0,
        }
    }

    /// What is said of a name, by this stream or else by the view.
    pub(super) fn get(&self, name: &str) -> Result<&V, Option<&Arc<EncodedResource>>> {
        self.own.get(name).ok_or_else(|| self.offered(name))
    }

    /// Whether anything is said of a name.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.get(name).map_or_else(|offered| offered.is_some(), |own| !own.is(None))
    }

    /// Say this of a name. Returns what was said by this stream or else by the view.
    pub(super) fn set(
        &mut self,
        name: &Arc<str>,
        value: V,
    ) -> Result<V, Option<Arc<EncodedResource>>> {
        let offered = self.offered(name).cloned();
        let has = !value.is(None);
        let own = match value.is(offered.as_ref()) {
            true => self.own.remove(name),
            false => self.own.insert(Arc::clone(name), value),
        };
        let had = own.as_ref().map_or(offered.is_some(), |own| !own.is(None));
        if had && !has {
            self.count -= 1;
            self.bytes -= name.len();
        }
        if has && !had {
            self.count += 1;
            self.bytes += name.len();
        }
        own.ok_or(offered)
    }

    /// Whether it says what this view says, and nothing else.
    pub(super) fn is_just(&self, view: &Arc<ScopeView>) -> bool {
        let base = self.base.as_ref().filter(|base| Arc::ptr_eq(base, view));
        base.is_some() && self.lacks.is_empty() && self.own.is_empty()
    }

    /// Say of the names of a part what the view says, if nothing is said but of other parts of it.
    /// Returns whether that was so.
    pub(super) fn adopt(&mut self, part: &Part) -> bool {
        if self.count == 0 {
            self.base = Some(Arc::clone(part.view()));
            self.own.clear();
            self.lacks = part.others().collect();
        } else {
            let at = self.lacks.iter().position(|lacks| lacks.is(part));
            let Some(at) = at.filter(|_| self.own.is_empty()) else {
                return false;
            };
            self.lacks.remove(at);
        }
        self.count += part.len();
        self.bytes += part.name_bytes();
        true
    }

    /// Number of names of which something is said.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Their length, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All names of which something is said, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let own = self.own.iter().filter(|(_, own)| !own.is(None)).map(|(name, _)| name);
        own.chain(self.unsaid().map(|(name, _)| name))
    }

    /// What stands here by itself.
    pub(super) fn own(&self) -> impl Iterator<Item = &V> {
        self.own.values()
    }

    /// As [`own`](Self::own), with names. What is said must come to the same.
    pub(super) fn own_mut(&mut self) -> impl Iterator<Item = (&Arc<str>, &mut V)> {
        self.own.iter_mut()
    }

    /// What the view says, and this stream nothing else.
    pub(super) fn unsaid(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<EncodedResource>)> {
        let offered = self.base.iter().flat_map(|base| base.resources(self.resource_type));
        offered.filter(|(name, _)| !self.lacks(name) && !self.own.contains_key(*name))
    }

    /// Compare with this view from now on, if that keeps less.
    pub(super) fn rebase(&mut self, view: &Arc<ScopeView>) {
        let resource_type = self.resource_type;
        // What did not come as a part of the base.
        let lacks = std::mem::take(&mut self.lacks);
        for resource in lacks.iter().flat_map(|part| part.resources()) {
            self.own.entry(Arc::clone(resource.name())).or_insert_with(|| V::of(None));
        }
        match &self.base {
            Some(base) if Arc::ptr_eq(base, view) && lacks.is_empty() => return,
            Some(base) => {
                for name in view.changed_since(Some(base), resource_type) {
                    let before = base.get(resource_type, &name);
                    self.own.entry(name).or_insert_with(|| V::of(before));
                }
            }
            None if self.own.len() <= 2 * self.tried => return,
            // A part of a view is not looked for in all of it.
            None if view.size(resource_type) > 2 * self.own.len() => return,
            None => {
                let others: Vec<_> = view.resources(resource_type).map(|(name, _)| name).collect();
                let as_it_says =
                    |(name, own): &(&Arc<str>, &V)| own.is(view.get(resource_type, name));
                let alike = self.own.iter().filter(as_it_says).count();
                if self.own.len() + others.len() - 2 * alike > self.own.len() / 2 {
                    self.tried = self.own.len();
                    return;
                }
                if alike == self.own.len() && alike == others.len() {
                    // Just what the view says, as of nearly every proxy.
                    self.own = BTreeMap::new();
                    self.base = Some(Arc::clone(view));
                    return;
                }
                for name in others {
                    self.own.entry(Arc::clone(name)).or_insert_with(|| V::of(None));
                }
            }
        }
        self.own.retain(|name, own| !own.is(view.get(resource_type, name)));
        self.base = Some(Arc::clone(view));
    }

    fn offered(&self, name: &str) -> Option<&Arc<EncodedResource>> {
        let base = self.base.as_ref().filter(|_| !self.lacks(name));
        base?.get(self.resource_type, name)
    }

    fn lacks(&self, name: &str) -> bool {
        self.lacks.iter().any(|part| part.get(name).is_some())
    }
}

// === impl bool ===

/// Whether a name is subscribed to.
impl Said for bool {
    fn of(resource: Option<&Arc<EncodedResource>>) -> Self {
        resource.is_some()
    }

    fn is(&self, resource: Option<&Arc<EncodedResource>>) -> bool {
        *self == resource.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::whole::Whole;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u8, bool),
        /// A part of the first view.
        Adopt(usize),
        /// The view is this from now on.
        View(Vec<u8>),
        Rebase,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..80_u8, any::<bool>()).prop_map(|(name, said)| Step::Set(name, said)),
            1 => proptest::collection::vec(0..80_u8, 0..80).prop_map(Step::View),
            2 => Just(Step::Rebase),
            1 => (0..5_usize).prop_map(Step::Adopt),
        ]
    }

    fn name(n: u8) -> Arc<str> {
        format!("n{n}").into()
    }

    fn view(names: impl IntoIterator<Item = u8>) -> Arc<ScopeView> {
        let resource = |n| EncodedResource::new(ResourceType::Cluster, name(n), b"", vec![]);
        Arc::new(ScopeView::new(names.into_iter().map(|n| Arc::new(resource(n)))))
    }

    proptest! {
        #[test]
        fn whatever_it_is_compared_with_it_says_what_was_set(
            adopted in 0..5_usize,
            steps in proptest::collection::vec(step(), 0..200),
        ) {
            let mut plain: BTreeMap<Arc<str>, bool> = BTreeMap::new();
            let mut overlay = Overlay::<bool>::new(ResourceType::Cluster);
            let mut current = view(0..60);
            let whole = Arc::new(Whole::new(&current, ResourceType::Cluster, 1000));
            let parts: Vec<_> = whole.parts().collect();
            prop_assert!(parts.len() > 4);
            let names = |part: &Part| {
                let names = part.resources().iter().map(|r| (Arc::clone(r.name()), true));
                names.collect::<Vec<_>>()
            };
            for part in &parts[..adopted] {
                prop_assert!(overlay.adopt(part) && !overlay.adopt(part));
                plain.extend(names(part));
            }
            prop_assert_eq!(overlay.own().count(), 0);
            for n in (0..60).filter(|_| adopted == 0) {
                plain.insert(name(n), true);
                let _before = overlay.set(&name(n), true);
            }
            for step in steps {
                match step {
                    Step::Set(n, said) => {
                        let had = plain.insert(name(n), said);
                        let before = overlay.set(&name(n), said);
                        let before = before.unwrap_or_else(|offered| offered.is_some());
                        prop_assert_eq!(before, had.is_some());
                    }
                    Step::View(names) => current = view(names),
                    Step::Adopt(at) => {
                        if overlay.adopt(&parts[at]) {
                            plain.extend(names(&parts[at]));
                        }
                    }
                    Step::Rebase => overlay.rebase(&current),
                }
                plain.retain(|_, said| *said);
                let mut names: Vec<_> = overlay.names().cloned().collect();
                names.sort();
                prop_assert_eq!(&names, &plain.keys().cloned().collect::<Vec<_>>());
                prop_assert_eq!(overlay.len(), plain.len());
                prop_assert_eq!(overlay.bytes(), names.iter().map(|name| name.len()).sum::<usize>());
                for n in 0..80 {
                    prop_assert_eq!(overlay.contains(&name(n)), plain.contains_key(&name(n)));
                }
            }
        }
    }

    #[test]
    fn what_a_view_says_is_kept_once() {
        let mut overlay = Overlay::<bool>::new(ResourceType::Cluster);
        (0..60).for_each(|n| drop(overlay.set(&name(n), true)));
        overlay.rebase(&view(0..58));
        assert_eq!(overlay.own().count(), 2);
        overlay.rebase(&view(1..60));
        assert_eq!((overlay.own().count(), overlay.len()), (1, 60));
    }

    #[test]
    fn a_part_of_a_view_stands_for_itself() {
        let mut overlay = Overlay::<bool>::new(ResourceType::Cluster);
        (0..40).for_each(|n| drop(overlay.set(&name(n), true)));
        overlay.rebase(&view(0..250));
        assert_eq!((overlay.own().count(), overlay.len()), (40, 40));
    }
}
