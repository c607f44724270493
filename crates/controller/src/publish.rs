//! From the engine's update to what streams are offered.
//!
//! In: resources and scopes that differ. Out: a view per scope, edited where it differs and shared
//! where it does not.
//!
//! **Invariant:** a resource is encoded once per content, whatever number of scopes holds it; one
//! that breaks a rule of Envoy's API is withheld, and its last good form stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::{Problem, Reason, ResourceId, Update, ir};
use xds::{EncodedResource, Publication, ResourceType, ScopeId, ScopeView};

/// Everything that is offered.
#[derive(Default)]
pub(crate) struct Offer {
    resources: Arc<Resources>,
    scopes: BTreeMap<ScopeId, Scope>,
    revision: u64,
}

/// Every resource that some scope offers.
pub(crate) type Resources = BTreeMap<ResourceId, Encoded>;

/// A resource, and what it was made of.
#[derive(Clone)]
pub(crate) struct Encoded {
    /// The last good form; none while there was none.
    pub(crate) resource: Option<Arc<EncodedResource>>,
    /// What it was made of, with its origins as they are now.
    pub(crate) ir: Arc<ir::Resource>,
    problems: Vec<Problem>,
}

struct Scope {
    members: Arc<BTreeSet<ResourceId>>,
    view: Arc<ScopeView>,
}

type Id = (ResourceType, Arc<str>);

// === impl Offer ===

impl Offer {
    /// Take over an update. Returns the names of resources whose content differs, and the scopes
    /// whose view does.
    pub(crate) fn apply(&mut self, update: &Update) -> (Vec<Id>, Vec<ScopeId>) {
        let mut changed = Vec::new();
        let mut gone = BTreeMap::new();
        for (id, resource) in &update.resources {
            match resource {
                Some(resource) => changed.extend(self.encode(*id, resource)),
                None => {
                    let old = Arc::make_mut(&mut self.resources).remove(id);
                    if let Some(Encoded { resource: Some(old), .. }) = old {
                        changed.push((old.resource_type(), Arc::clone(old.name())));
                        gone.insert(*id, old);
                    }
                }
            }
        }
        for (id, ir) in &update.refreshed {
            if let Some(entry) = Arc::make_mut(&mut self.resources).get_mut(id) {
                entry.ir = Arc::clone(ir);
            }
        }
        let differing: BTreeSet<ResourceId> =
            update.resources.iter().filter(|(_, r)| r.is_some()).map(|(id, _)| *id).collect();
        let mut edits: BTreeMap<ScopeId, Arc<BTreeSet<ResourceId>>> = self
            .scopes
            .iter()
            .filter(|(_, scope)| differing.iter().any(|id| scope.members.contains(id)))
            .map(|(id, scope)| (*id, Arc::clone(&scope.members)))
            .collect();
        for (id, members) in &update.scopes {
            let id = ScopeId(id.0);
            match members {
                Some(members) => {
                    edits.insert(id, Arc::clone(members));
                }
                None => {
                    edits.remove(&id);
                    self.scopes.remove(&id);
                }
            }
        }
        let scopes = edits.keys().copied().collect();
        for (id, members) in edits {
            self.edit(id, members, &differing, &gone);
        }
        (changed, scopes)
    }

    fn encode(&mut self, id: ResourceId, resource: &Arc<ir::Resource>) -> Option<Id> {
        let (encoded, violations) = translate::encode(resource);
        let entry = Arc::make_mut(&mut self.resources).entry(id).or_insert_with(|| Encoded {
            resource: None,
            ir: Arc::clone(resource),
            problems: Vec::new(),
        });
        entry.ir = Arc::clone(resource);
        entry.problems.clear();
        if violations.is_empty() {
            let key = (encoded.resource_type(), Arc::clone(encoded.name()));
            entry.resource = Some(Arc::new(encoded));
            return Some(key);
        }
        for violation in violations {
            tracing::error!(resource = ?encoded, field = violation.field, "{}", violation.message);
            let Some(origin) = resource.origins().0.first() else { continue };
            let message = format!(
                "Envoy would refuse {encoded:?}: {} {}; the resource is withheld",
                violation.field, violation.message
            );
            let problem = Problem::error(&origin.object, &*origin.field, Reason::Invalid, message);
            entry.problems.push(problem);
        }
        None
    }

    /// Bring the view of a scope up to date: first what left, then what came or differs, because
    /// a name may leave with one resource and come with another.
    fn edit(
        &mut self,
        id: ScopeId,
        members: Arc<BTreeSet<ResourceId>>,
        differing: &BTreeSet<ResourceId>,
        gone: &BTreeMap<ResourceId, Arc<EncodedResource>>,
    ) {
        let scope = self.scopes.entry(id).or_insert_with(|| Scope {
            members: Arc::new(BTreeSet::new()),
            view: Arc::new(ScopeView::default()),
        });
        let mut edit = scope.view.edit_shared();
        for left in scope.members.difference(&members) {
            let kept = self.resources.get(left).and_then(|e| e.resource.as_ref());
            if let Some(resource) = gone.get(left).or(kept) {
                edit = edit.remove(resource.resource_type(), resource.name());
            }
        }
        let stays =
            |member: &&ResourceId| !scope.members.contains(member) || differing.contains(member);
        for member in members.iter().filter(stays) {
            let encoded = self.resources.get(member).and_then(|e| e.resource.as_ref());
            if let Some(resource) = encoded {
                edit = edit.set(Arc::clone(resource));
            }
        }
        scope.view = Arc::new(edit.build());
        scope.members = members;
    }

    /// What streams are offered now.
    pub(crate) fn publication(&mut self) -> Publication {
        self.revision += 1;
        let scopes = self.scopes.iter().map(|(id, s)| (*id, Arc::clone(&s.view))).collect();
        Publication { revision: self.revision, scopes }
    }

    /// Number of publications so far.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Every resource.
    pub(crate) fn resources(&self) -> &Arc<Resources> {
        &self.resources
    }

    /// The members of every scope.
    pub(crate) fn scopes(&self) -> BTreeMap<ScopeId, Arc<BTreeSet<ResourceId>>> {
        self.scopes.iter().map(|(id, scope)| (*id, Arc::clone(&scope.members))).collect()
    }

    /// What was withheld and why.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.resources.values().flat_map(|e| &e.problems)
    }
}
