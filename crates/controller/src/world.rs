//! What the loop publishes for everybody else: streams, admin, metrics.
//!
//! **Invariant:** immutable values, swapped as a whole; readers never reach into the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use identity::CertificateAuthority;
use model::{About, ObjectRef, Origin, Problem, ProxyKey, ResourceId, Row, ir};
use rpds::RedBlackTreeMapSync;
use tokio::sync::watch;
use xds::{EncodedResource, Publisher, ResourceType, ScopeId};

use crate::event::{FileProblem, SourceObject};
use crate::publish::{Encoded, Resources, Views};
use crate::pushes::Pushes;
use crate::sources::SourceStates;

/// How long every source may be silent before new proxies are better off elsewhere. When the API
/// server is away for all, nobody is there to hear that we are not ready, and we go on serving.
const LAG: Duration = Duration::from_secs(60);

/// The published values.
pub(crate) struct Shared {
    /// What proxies are offered.
    pub(crate) publisher: Arc<Publisher>,
    /// The rest.
    pub(crate) world: ArcSwap<World>,
    /// Whether every source has synced and what it said is published.
    pub(crate) ready: watch::Sender<bool>,
    /// Whether this replica leads.
    pub(crate) leading: watch::Sender<bool>,
    /// How the watches of sources are doing.
    pub(crate) sources: Arc<SourceStates>,
    /// Streams that ended while the inbox was full.
    pub(crate) ended: Mutex<Vec<ProxyKey>>,
    /// Whether there is to be a certificate authority.
    pub(crate) secured: bool,
    /// The certificate authority, once it is in service.
    pub(crate) ca: OnceLock<Arc<CertificateAuthority>>,
}

/// Objects as their sources have them; taking one over costs the same however many there are.
pub(crate) type Objects = RedBlackTreeMapSync<Arc<ObjectRef>, Arc<SourceObject>>;

/// Services and endpoints as objects gave them, each shared with the engine.
pub(crate) type Rows = RedBlackTreeMapSync<Arc<ObjectRef>, Arc<[Row]>>;

/// What decides each scope.
pub(crate) type Scopes = BTreeMap<ScopeId, About>;

/// Resources of a scope: what is offered, and the `ir` it was made of.
pub(crate) type Offered =
    BTreeMap<(ResourceType, Arc<str>), (Arc<EncodedResource>, Arc<ir::Resource>)>;

/// Everything that people may ask about, at one revision.
#[derive(Clone, Default)]
pub(crate) struct World {
    /// Grows with every publication.
    pub(crate) revision: u64,
    /// Objects as their sources have them.
    pub(crate) objects: Objects,
    /// Services and endpoints.
    pub(crate) rows: Rows,
    /// What decides each scope.
    pub(crate) scopes: Arc<Scopes>,
    /// What is wrong with files as a whole.
    pub(crate) files: Arc<Vec<FileProblem>>,
    /// What is wrong between objects, with what was made of them, and what proxies rejected.
    pub(crate) problems: Arc<BTreeSet<Problem>>,
    /// The last batches.
    pub(crate) pushes: Pushes,
    /// Every resource that some scope offers.
    pub(crate) resources: Resources,
    /// The view of every scope.
    pub(crate) views: Arc<Views>,
}

// === impl Shared ===

impl Default for Shared {
    fn default() -> Self {
        Self {
            publisher: Arc::default(),
            world: ArcSwap::default(),
            ready: watch::Sender::new(false),
            leading: watch::Sender::new(false),
            sources: Arc::default(),
            ended: Mutex::default(),
            secured: false,
            ca: OnceLock::new(),
        }
    }
}

impl Shared {
    /// What is missing before proxies can be served; none = nothing.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        if !*self.ready.borrow() {
            return Some("sources are not synced yet");
        }
        if self.sources.stale_for(SystemTime::now()).is_some_and(|time| time > LAG) {
            return Some("no source has answered for a minute; /debug/sourcez says why");
        }
        let waiting = self.secured && self.ca.get().is_none();
        waiting.then_some("there is no certificate authority yet; the log says why")
    }
}

// === impl World ===

impl World {
    /// What a scope offers; none when there is no such scope. Made when it is asked for: an edit
    /// must not cost as much as there are resources.
    pub(crate) fn offered(&self, scope: ScopeId) -> Option<Offered> {
        let view = self.views.get(&scope)?;
        let all = ResourceType::ALL.into_iter().flat_map(|kind| view.resources(kind));
        let entry = |(name, resource): (&Arc<str>, &Arc<EncodedResource>)| {
            let key = (resource.resource_type(), Arc::clone(name));
            Some((key, (Arc::clone(resource), self.made_of(resource)?)))
        };
        Some(all.filter_map(entry).collect())
    }

    /// What a resource that a scope offers was made of.
    pub(crate) fn source_of(
        &self,
        scope: ScopeId,
        kind: ResourceType,
        name: &str,
    ) -> Option<Arc<ir::Resource>> {
        self.made_of(self.views.get(&scope)?.get(kind, name)?)
    }

    fn made_of(&self, resource: &EncodedResource) -> Option<Arc<ir::Resource>> {
        let Encoded { ir, .. } = self.resources.get(&ResourceId(resource.row()))?;
        Some(Arc::clone(ir))
    }

    /// An origin in words, with file and line where they are known:
    /// `VirtualService default/reviews spec.http[0] (rules.yaml:12)`.
    pub(crate) fn describe(&self, origin: &Origin) -> String {
        match self.objects.get(&origin.object) {
            Some(object) => {
                let generation = match object.generation {
                    Some(generation) => format!(" generation {generation}"),
                    None => String::new(),
                };
                match object.place(&origin.field) {
                    Some(place) => format!("{origin}{generation} ({place})"),
                    None => format!("{origin}{generation}"),
                }
            }
            None => origin.to_string(),
        }
    }

    /// Every problem of one object, sorted.
    pub(crate) fn problems_of(&self, object: &ObjectRef) -> BTreeSet<&Problem> {
        let own = self.objects.get(object).map(|o| o.problems.iter()).unwrap_or_default();
        own.chain(self.problems.iter().filter(|p| *p.object == *object)).collect()
    }
}
