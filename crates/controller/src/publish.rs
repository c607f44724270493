//! From the engine's update to what streams are offered.
//!
//! In: resources, layers and scopes that differ. Out: layers edited where they differ, and a view
//! per scope, shared where nothing of it does.
//!
//! **Invariant:** a resource is encoded once per content, whatever number of scopes holds it; one
//! that breaks a rule of Envoy's API is withheld, and its last good form stays.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use model::{LayerDiff, LayerId, Problem, Reason, ResourceId, Update, ir};
use rpds::RedBlackTreeMapSync;
use xds::{EncodedResource, Publication, ResourceType, ScopeId, ScopeView};

/// Everything that is offered.
#[derive(Default)]
pub(crate) struct Offer {
    resources: Resources,
    /// Resources that break a rule of Envoy's API.
    withheld: BTreeMap<ResourceId, Vec<Problem>>,
    /// The layers that set a resource.
    holders: HashMap<ResourceId, BTreeSet<LayerId>>,
    layers: BTreeMap<LayerId, Layer>,
    stacks: BTreeMap<ScopeId, Vec<LayerId>>,
    /// The scopes that have a layer.
    scopes_of: HashMap<LayerId, BTreeSet<ScopeId>>,
    views: Arc<Views>,
    revision: u64,
}

/// Every resource that some layer sets.
pub(crate) type Resources = RedBlackTreeMapSync<ResourceId, Encoded>;

/// The view of every scope.
pub(crate) type Views = BTreeMap<ScopeId, Arc<ScopeView>>;

/// A resource, and what it was made of.
#[derive(Clone)]
pub(crate) struct Encoded {
    /// The last good form; none while there was none.
    pub(crate) resource: Option<Arc<EncodedResource>>,
    /// What it was made of, with its origins as they are now.
    pub(crate) ir: Arc<ir::Resource>,
}

/// A layer by name, and as it is published.
#[derive(Default)]
struct Layer {
    entries: HashMap<Id, Entry>,
    published: Arc<xds::Layer>,
}

/// What a layer says of a name.
#[derive(Default)]
struct Entry {
    set: Option<ResourceId>,
    /// Resources of this name that it hides.
    hidden: usize,
}

type Id = (ResourceType, Arc<str>);

/// Type and name that a resource has on the wire.
fn id_of(resource: &ir::Resource) -> Id {
    let kind = match resource {
        ir::Resource::Listener(_) => ResourceType::Listener,
        ir::Resource::RouteConfiguration(_) => ResourceType::RouteConfiguration,
        ir::Resource::VirtualHost(_) => ResourceType::VirtualHost,
        ir::Resource::Cluster(_) => ResourceType::Cluster,
        ir::Resource::Endpoints(_) => ResourceType::Endpoints,
    };
    (kind, resource.name())
}

// === impl Offer ===

impl Offer {
    /// Take over an update. Returns the names of resources whose content differs, and the scopes
    /// whose view does.
    pub(crate) fn apply(&mut self, update: &Update) -> (Vec<Id>, Vec<ScopeId>) {
        let mut changed = Vec::new();
        // Names to look at again, by layer.
        let mut touched: BTreeMap<LayerId, BTreeSet<Id>> = BTreeMap::new();
        for (id, resource) in &update.resources {
            let Some(resource) = resource else { continue };
            changed.extend(self.encode(*id, resource));
            for layer in self.holders.get(id).into_iter().flatten() {
                touched.entry(*layer).or_default().insert(id_of(resource));
            }
        }
        for (id, ir) in &update.refreshed {
            if let Some(entry) = self.resources.get_mut(id) {
                entry.ir = Arc::clone(ir);
            }
        }
        let mut gone = BTreeSet::new();
        for (id, diff) in &update.layers {
            match diff {
                Some(diff) => {
                    let names = self.differ(*id, diff);
                    touched.entry(*id).or_default().extend(names);
                }
                None => {
                    touched.remove(id);
                    gone.insert(*id);
                    self.drop_layer(*id);
                }
            }
        }
        for (id, _) in update.resources.iter().filter(|(_, resource)| resource.is_none()) {
            changed.extend(self.resources.get(id).map(|entry| id_of(&entry.ir)));
            self.resources.remove_mut(id);
            self.withheld.remove(id);
            self.holders.remove(id);
        }
        for (layer, names) in &touched {
            self.publish_layer(*layer, names);
        }
        let scopes = self.restack(update, &touched.into_keys().collect());
        (changed, scopes)
    }

    fn encode(&mut self, id: ResourceId, resource: &Arc<ir::Resource>) -> Option<Id> {
        let (encoded, violations) = translate::encode(resource);
        let last_good = self.resources.get(&id).and_then(|entry| entry.resource.clone());
        if violations.is_empty() {
            let key = (encoded.resource_type(), Arc::clone(encoded.name()));
            let encoded = Some(Arc::new(encoded.with_row(id.0)));
            let entry = Encoded { resource: encoded, ir: Arc::clone(resource) };
            self.resources.insert_mut(id, entry);
            self.withheld.remove(&id);
            return Some(key);
        }
        let mut problems = Vec::new();
        for violation in violations {
            tracing::error!(resource = ?encoded, field = violation.field, "{}", violation.message);
            let Some(origin) = resource.origins().0.first() else { continue };
            let message = format!(
                "Envoy would refuse {encoded:?}: {} {}, so the resource is withheld",
                violation.field, violation.message
            );
            let problem = Problem::error(&origin.object, &*origin.field, Reason::Invalid, message);
            problems.push(problem);
        }
        self.withheld.insert(id, problems);
        let entry = Encoded { resource: last_good, ir: Arc::clone(resource) };
        self.resources.insert_mut(id, entry);
        None
    }

    /// Note what a layer sets and hides. Returns the names to look at again.
    fn differ(&mut self, id: LayerId, diff: &LayerDiff) -> BTreeSet<Id> {
        let LayerDiff { set, unset, hidden, unhidden } = diff;
        let layer = self.layers.entry(id).or_default();
        let mut names = BTreeSet::new();
        let mut on = |resource: &ResourceId, change: &mut dyn FnMut(&mut Entry)| {
            let Some(name) = self.resources.get(resource).map(|entry| id_of(&entry.ir)) else {
                return;
            };
            let entry = layer.entries.entry(name.clone()).or_default();
            change(entry);
            if entry.set.is_none() && entry.hidden == 0 {
                layer.entries.remove(&name);
            }
            names.insert(name);
        };
        // First what left: a name may leave with one resource and come with another.
        for resource in unset {
            on(resource, &mut |entry| entry.set = entry.set.filter(|set| set != resource));
            if let Some(holders) = self.holders.get_mut(resource) {
                holders.remove(&id);
            }
        }
        for resource in unhidden {
            on(resource, &mut |entry| entry.hidden = entry.hidden.saturating_sub(1));
        }
        for resource in hidden {
            on(resource, &mut |entry| entry.hidden += 1);
        }
        for resource in set {
            on(resource, &mut |entry| entry.set = Some(*resource));
            self.holders.entry(*resource).or_default().insert(id);
        }
        names
    }

    fn drop_layer(&mut self, id: LayerId) {
        let Some(layer) = self.layers.remove(&id) else { return };
        for resource in layer.entries.values().filter_map(|entry| entry.set) {
            if let Some(holders) = self.holders.get_mut(&resource) {
                holders.remove(&id);
            }
        }
    }

    /// Edit what is published of a layer.
    fn publish_layer(&mut self, id: LayerId, names: &BTreeSet<Id>) {
        let Some(layer) = self.layers.get_mut(&id) else { return };
        let mut edit = layer.published.edit();
        for (kind, name) in names {
            let entry = layer.entries.get(&(*kind, Arc::clone(name)));
            let set = entry.and_then(|entry| self.resources.get(&entry.set?)?.resource.clone());
            edit = match (set, entry) {
                (Some(resource), _) => edit.set(resource),
                (None, Some(Entry { hidden: 1.., .. })) => edit.hide(*kind, name),
                _ => edit.remove(*kind, name),
            };
        }
        layer.published = Arc::new(edit.build());
    }

    /// Make the views of scopes that are new, or that have a layer which differs.
    fn restack(&mut self, update: &Update, touched: &BTreeSet<LayerId>) -> Vec<ScopeId> {
        let mut due = BTreeSet::new();
        for (id, stack) in &update.scopes {
            let id = ScopeId(id.0);
            match stack {
                Some(stack) => {
                    self.stack(id, stack);
                    due.insert(id);
                }
                None => {
                    self.stack(id, &[]);
                    due.remove(&id);
                    Arc::make_mut(&mut self.views).remove(&id);
                }
            }
        }
        due.extend(touched.iter().filter_map(|layer| self.scopes_of.get(layer)).flatten());
        for id in &due {
            let stack = self.stacks.get(id).into_iter().flatten();
            let published = |layer: &LayerId| match self.layers.get(layer) {
                Some(layer) => Arc::clone(&layer.published),
                None => Arc::default(),
            };
            let view = Arc::new(ScopeView::of(stack.map(published).collect()));
            Arc::make_mut(&mut self.views).insert(*id, view);
        }
        due.into_iter().collect()
    }

    /// A scope has these layers now, lowest first; none = it is gone.
    fn stack(&mut self, id: ScopeId, layers: &[LayerId]) {
        let before = match layers {
            [] => self.stacks.remove(&id),
            _ => self.stacks.insert(id, layers.to_vec()),
        };
        for layer in before.into_iter().flatten() {
            if let Some(scopes) = self.scopes_of.get_mut(&layer) {
                scopes.remove(&id);
                if scopes.is_empty() {
                    self.scopes_of.remove(&layer);
                }
            }
        }
        for layer in layers {
            self.scopes_of.entry(*layer).or_default().insert(id);
        }
    }

    /// What streams are offered now.
    pub(crate) fn publication(&mut self) -> Publication {
        self.revision += 1;
        Publication { revision: self.revision, scopes: Arc::clone(&self.views) }
    }

    /// Number of publications so far.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Every resource.
    pub(crate) fn resources(&self) -> &Resources {
        &self.resources
    }

    /// The view of every scope.
    pub(crate) fn views(&self) -> &Arc<Views> {
        &self.views
    }

    /// What was withheld and why.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.withheld.values().flatten()
    }
}
