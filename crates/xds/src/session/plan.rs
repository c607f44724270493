//! The plan: compare what is wanted with what is held, and write what may be written now.
//!
//! Per type, in push order, once everything went as it is to a stream that has none of it:
//! 1. every name on `todo`, `asked`, `owed` or `alone` becomes an addition, a removal, a missing
//!    name, or nothing;
//! 2. additions form groups that go together or not at all; a group waits for the references of
//!    its members, up to a limit;
//! 3. what the proxy waits for is answered at once; other additions go when no push is un-ACKed;
//!    removals go after them, when nothing refers to them any more.
//!
//! **Invariant:** a response is decided here and nowhere else; additions and removals never
//! share one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use envoy_api::{EncodedResource, ResourceRef, ResourceType};

use super::message::Notice;
use super::state::{Due, Waiting};
use super::{Session, stub};
use crate::publication::{ScopeView, parent_of};

/// What a proxy should have under a name.
enum Want {
    Resource(Arc<EncodedResource>),
    Absent,
    /// Whatever it has, if anything.
    AsIs,
}

/// A resource that should be sent.
pub(super) struct Addition {
    pub(super) resource: Arc<EncodedResource>,
    /// Not a push: asked for, child of a parent just sent, or a suspect on its own.
    pub(super) exempt: bool,
    pub(super) alone: bool,
    /// Additions of one group go together.
    pub(super) group: usize,
    /// Takes a domain from another host of the same RouteConfiguration.
    pub(super) takes: bool,
    /// The other host cannot give the domain up now.
    pub(super) conflict: bool,
    missing: Vec<ResourceRef>,
}

/// What to do about one type.
#[derive(Default)]
struct Work {
    additions: Vec<Addition>,
    removals: Vec<Arc<str>>,
    missing: Vec<Arc<str>>,
}

/// What the members of a group decide together.
#[derive(Default)]
struct Group {
    exempt: bool,
    /// Whether everything that is missing is at least on its way.
    on_its_way: bool,
    blocked_since: Option<Duration>,
    ready: bool,
}

// === impl Addition ===

impl Addition {
    pub(super) fn new(resource: Arc<EncodedResource>, group: usize) -> Self {
        Self {
            resource,
            exempt: false,
            alone: false,
            group,
            takes: false,
            conflict: false,
            missing: Vec::new(),
        }
    }
}

// === impl Session ===

impl Session {
    pub(super) fn plan(&mut self) {
        self.deadline = None;
        let Some(view) = self.view.clone() else {
            return;
        };
        self.owe_awaited_endpoints();
        for resource_type in ResourceType::ALL {
            if self.state(resource_type).seen {
                self.plan_type(resource_type, &view);
                self.state_mut(resource_type).condense(&view);
            }
        }
    }

    /// A proxy that lost its stream between a changed cluster and the endpoints of it asks for
    /// clusters only once that one is warm, and it is warm only once it is sent its endpoints,
    /// although the proxy holds them.
    fn owe_awaited_endpoints(&mut self) {
        let asked = self.state(ResourceType::Cluster).seen;
        if !self.awaits_endpoints || asked {
            return;
        }
        if self.now < self.asked_by() {
            return self.remind(self.asked_by());
        }
        self.awaits_endpoints = false;
        let endpoints = self.state_mut(ResourceType::Endpoints);
        let held: Vec<_> = endpoints.held.names().cloned().collect();
        endpoints.owed.extend(held);
    }

    fn plan_type(&mut self, resource_type: ResourceType, view: &Arc<ScopeView>) {
        self.plan_whole(resource_type, view);
        let mut work = self.compare(resource_type, view);
        let nothing = work.additions.is_empty() && work.removals.is_empty();
        if resource_type == ResourceType::VirtualHost {
            self.link_claims(view, &mut work.additions, &mut work.removals);
        }
        let ready = self.pass_gate(resource_type, view, work.additions);
        self.emit_missing(resource_type, work.missing);
        let pushed = self.emit_additions(resource_type, view, ready);
        if !pushed && !self.state(resource_type).is_busy() {
            self.emit_removals(resource_type, work.removals);
        }
        if nothing && self.state(resource_type).empty_answer {
            // The proxy waits for its first answer, even for an empty one (R42).
            self.emit(resource_type, false, BTreeMap::new());
        }
    }

    /// Step 0: what is due of everything goes as it is, if nothing speaks against it.
    fn plan_whole(&mut self, resource_type: ResourceType, view: &Arc<ScopeView>) {
        let whole = match &self.state(resource_type).due {
            None => return,
            Some(Due::Everything) => Arc::new(self.whole(resource_type, view)),
            Some(Due::Named(whole)) => Arc::clone(whole),
        };
        let offered = !whole.is_empty() && self.state(resource_type).is_blank();
        let free = match resource_type {
            ResourceType::Cluster | ResourceType::Endpoints | ResourceType::Secret => true,
            ResourceType::Listener => self.holds_clusters(view, &whole),
            ResourceType::VirtualHost => {
                let routes = self.state(ResourceType::RouteConfiguration);
                let mut parents = whole.parents();
                parents.all(|parent| routes.is_on_stream(parent))
                    && self.holds_clusters(view, &whole)
            }
            // They are few, and hosts depend on each.
            ResourceType::RouteConfiguration => false,
        };
        match offered && free {
            true => self.emit_whole(resource_type, view, &whole),
            false => self.itemise(resource_type),
        }
    }

    /// Step 1: sort the names into what is to be done about them.
    fn compare(&mut self, resource_type: ResourceType, view: &ScopeView) -> Work {
        let state = self.state(resource_type);
        let names = [&state.todo, &state.asked, &state.owed].into_iter().flatten();
        let names: BTreeSet<_> = names.chain(state.alone.keys()).cloned().collect();
        let mut work = Work::default();
        let mut done = Vec::new();
        for name in names {
            let state = self.state(resource_type);
            let asked = state.asked.contains(&name);
            let suspect = state.alone.get(&name).copied();
            let owed = state.owed.contains(&name);
            let expected = state.expected(&name);
            match self.want(resource_type, view, &name, asked) {
                Want::Resource(resource)
                    if asked
                        || owed
                        || suspect == Some(Some(resource.version()))
                        || expected != Some(resource.version()) =>
                {
                    // Newer content is no suspect.
                    let alone = suspect == Some(Some(resource.version()));
                    let group = work.additions.len();
                    work.additions.push(Addition {
                        exempt: asked || owed || alone,
                        alone,
                        ..Addition::new(resource, group)
                    });
                }
                Want::Absent | Want::AsIs if asked => work.missing.push(name),
                Want::Absent if expected.is_some() => work.removals.push(name),
                _ => done.push(name),
            }
        }
        let state = self.state_mut(resource_type);
        for name in done {
            state.todo.remove(&name);
            state.owed.remove(&name);
            state.alone.remove(&name);
            state.waiting.remove(&name);
        }
        self.group(resource_type, &mut work.additions);
        work
    }

    /// A warming proxy gets all of its listeners, or all hosts of a new RouteConfiguration, or
    /// none yet: it would start to serve with a part.
    fn group(&self, resource_type: ResourceType, additions: &mut [Addition]) {
        let state = self.state(resource_type);
        if resource_type == ResourceType::Listener && !state.answered {
            for addition in additions.iter_mut().filter(|a| !a.alone) {
                addition.group = 0;
            }
        }
        if resource_type == ResourceType::VirtualHost {
            let parent = |name: &str| parent_of(name).unwrap_or_default().to_owned();
            let fresh: BTreeSet<_> = state.owed.iter().map(|name| parent(name)).collect();
            let mut groups = BTreeMap::new();
            for addition in additions.iter_mut().filter(|a| !a.alone) {
                let parent = parent(addition.resource.name());
                if fresh.contains(&parent) {
                    addition.group = *groups.entry(parent).or_insert(addition.group);
                }
            }
        }
    }

    fn want(
        &self,
        resource_type: ResourceType,
        view: &ScopeView,
        name: &Arc<str>,
        asked: bool,
    ) -> Want {
        let state = self.state(resource_type);
        let is_host = resource_type == ResourceType::VirtualHost;
        if is_host && state.wildcard && !state.names.contains(name) {
            let parent = parent_of(name).unwrap_or_default();
            let routes = self.state(ResourceType::RouteConfiguration);
            if !routes.is_on_stream(parent) {
                let offered = view.get(ResourceType::RouteConfiguration, parent).is_some();
                return match routes.seen && !(offered && routes.wants(parent)) {
                    true => Want::Absent,
                    false => Want::AsIs,
                };
            }
        }
        if !state.wants(name) {
            return Want::AsIs;
        }
        let parked = state.parked.get(name);
        let Some(resource) = view.get(resource_type, name) else {
            return match resource_type {
                ResourceType::Endpoints if state.names.contains(name) => {
                    // A vanished cluster keeps its endpoints until it is removed itself.
                    let has_cluster = view.get(ResourceType::Cluster, name).is_some();
                    match asked || has_cluster || !state.is_on_stream(name) {
                        true => Want::Resource(stub::no_endpoints(name)),
                        false => Want::AsIs,
                    }
                }
                _ if parked.is_some_and(|parked| parked.version.is_none()) => Want::AsIs,
                _ => Want::Absent,
            };
        };
        match parked.filter(|parked| parked.version == Some(resource.version())) {
            None => Want::Resource(resource.clone()),
            Some(parked) => {
                let again = state.held.content(name).filter(|_| asked).cloned();
                let never = !state.held.contains(name);
                match again.or(parked.stand_in.clone().filter(|_| never)) {
                    Some(resource) => Want::Resource(resource),
                    None => Want::AsIs,
                }
            }
        }
    }

    /// Step 2: the additions that may go now.
    fn pass_gate(
        &mut self,
        resource_type: ResourceType,
        view: &ScopeView,
        mut additions: Vec<Addition>,
    ) -> Vec<Addition> {
        let now = self.now;
        let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
        for addition in &mut additions {
            addition.missing = self.missing_refs(view, &addition.resource);
            let on_its_way = addition.missing.iter().all(|r| {
                let target = self.state(r.resource_type);
                target.is_on_stream(&r.name)
            });
            let group = groups
                .entry(addition.group)
                .or_insert(Group { on_its_way: true, ..Group::default() });
            group.exempt |= addition.exempt;
            group.on_its_way &= on_its_way;
            let name = addition.resource.name();
            let blocked = addition.conflict || !addition.missing.is_empty();
            let since = self.wait(resource_type, name, false, blocked);
            group.blocked_since = group.blocked_since.into_iter().chain(since).min();
        }
        let (busy, answered) =
            (self.state(resource_type).is_busy(), self.state(resource_type).answered);
        for group in groups.values_mut() {
            let settings = &self.settings;
            let limit = match resource_type {
                ResourceType::Listener if !answered => settings.first_gate,
                ResourceType::RouteConfiguration | ResourceType::VirtualHost
                    if group.exempt || group.on_its_way =>
                {
                    settings.first_gate
                }
                _ => settings.gate,
            };
            let end = group.blocked_since.map(|since| since + limit);
            let open = end.is_none_or(|end| end <= now);
            if let Some(end) = end.filter(|_| !open) {
                self.remind(end);
                if !self.state(ResourceType::Cluster).seen {
                    self.remind(self.asked_by());
                }
            }
            group.ready = open && (group.exempt || !busy);
        }
        additions.retain(|addition| groups[&addition.group].ready);
        for addition in &mut additions {
            if !addition.missing.is_empty() {
                self.notices.push(Notice::SentBeforeReference {
                    resource: ResourceRef::new(resource_type, addition.resource.name().clone()),
                    missing: std::mem::take(&mut addition.missing),
                });
            }
            addition.exempt = groups[&addition.group].exempt;
        }
        additions
    }

    /// Note whether a name waits; since when, if it does.
    pub(super) fn wait(
        &mut self,
        resource_type: ResourceType,
        name: &Arc<str>,
        removal: bool,
        blocked: bool,
    ) -> Option<Duration> {
        let now = self.now;
        let waiting = &mut self.state_mut(resource_type).waiting;
        if !blocked {
            waiting.remove(name);
            return None;
        }
        let entry = waiting.entry(name.clone());
        let entry = entry.or_insert(Waiting { removal, since: now });
        if entry.removal != removal {
            *entry = Waiting { removal, since: now };
        }
        Some(entry.since)
    }

    pub(super) fn remind(&mut self, at: Duration) {
        if at > self.now {
            self.deadline = Some(self.deadline.map_or(at, |deadline| deadline.min(at)));
        }
    }
}
