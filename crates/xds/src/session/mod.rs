//! One delta stream as a state machine: requests and views in, responses out.
//!
//! In: requests, the view of the stream's scope, the time. Out: responses in the order in which
//! they must be written, rejections and notices for the controller, a status for people.
//!
//! The state is the difference between what is wanted and what is held, never a queue of events:
//! a slow client finds the newest state when it reads again.
//!
//! **Invariant:** does no I/O and reads no clock; `now` is the time since the stream began.

mod claims;
mod emit;
mod gate;
mod message;
mod overlay;
mod plan;
mod reject;
mod sotw;
mod state;
mod status;
mod stub;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use envoy_api::{ContentHash, ResourceType};

pub use message::{DeltaRequest, Notice, Rejection, Resources, Response, Settings, SotwRequest};
pub use sotw::SotwSession;
pub use status::TypeStatus;

use crate::publication::{ScopeView, parent_of};
use crate::whole::Whole;
use state::{Due, Held, TypeState};

/// The protocol state of one delta stream.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    /// State-of-the-world: responses of CDS and LDS are full sets, children are never removed.
    full_sets: bool,
    now: Duration,
    /// When requests began to be worked in.
    began: Duration,
    /// Whether the proxy held endpoints before, and clusters that it does not ask for may wait for
    /// them.
    awaits_endpoints: bool,
    view: Option<Arc<ScopeView>>,
    types: [TypeState; 6],
    last_nonce: u64,
    outbox: VecDeque<(u64, Response)>,
    /// Whether something happened since the last plan.
    dirty: bool,
    /// When the first wait ends by its limit.
    deadline: Option<Duration>,
    notices: Vec<Notice>,
    rejections: Vec<Rejection>,
}

// === impl Session ===

impl Session {
    /// A stream without subscriptions and without a view.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            full_sets: false,
            now: Duration::ZERO,
            began: Duration::ZERO,
            awaits_endpoints: false,
            view: None,
            types: ResourceType::ALL.map(TypeState::new),
            last_nonce: 0,
            outbox: VecDeque::new(),
            dirty: false,
            deadline: None,
            notices: Vec::new(),
            rejections: Vec::new(),
        }
    }

    /// Requests are worked in from now on; they waited for a view.
    pub fn begin_at(&mut self, now: Duration) {
        self.began = now;
    }

    /// Until when the proxy may still be asking for its types one by one.
    fn asked_by(&self) -> Duration {
        self.began + self.settings.ask_grace
    }

    /// Work in a request.
    pub fn on_request(
        &mut self,
        now: Duration,
        resource_type: ResourceType,
        request: DeltaRequest,
    ) {
        self.now = now;
        self.dirty = true;
        let first = !self.state(resource_type).seen;
        if first {
            self.awaits_endpoints |= resource_type == ResourceType::Endpoints
                && !request.initial_resource_versions.is_empty();
            if self.begin_whole(resource_type, &request) {
                return;
            }
            self.begin(resource_type, &request);
        } else {
            self.itemise(resource_type);
            self.settle(resource_type, &request.nonce, request.error.clone());
        }
        for name in request.subscribe {
            match name.as_str() {
                "*" => self.subscribe_all(resource_type),
                _ => self.subscribe(resource_type, name.into(), first),
            }
        }
        for name in &request.unsubscribe {
            match name.as_str() {
                "*" => self.unsubscribe_all(resource_type),
                _ => self.unsubscribe(resource_type, name),
            }
        }
    }

    /// Take over the newest view; the same view again costs nothing.
    pub fn on_view(&mut self, now: Duration, view: &Arc<ScopeView>) {
        self.now = now;
        if self.view.as_ref().is_some_and(|v| Arc::ptr_eq(v, view)) {
            return;
        }
        self.dirty = true;
        for resource_type in ResourceType::ALL {
            if matches!(self.state(resource_type).due, Some(Due::Named(_))) {
                self.itemise(resource_type);
            }
        }
        let earlier = self.view.replace(view.clone());
        for resource_type in ResourceType::ALL {
            // Whether endpoints exist depends on whether their cluster does.
            let of_endpoints = resource_type == ResourceType::Cluster
                && self.state(ResourceType::Endpoints).names.len() > 0;
            if !of_endpoints && !self.state(resource_type).seen {
                continue;
            }
            let names = view.changed_since(earlier.as_ref(), resource_type);
            if of_endpoints {
                let endpoints = self.state_mut(ResourceType::Endpoints);
                let named = names.iter().filter(|n| endpoints.names.contains(n)).cloned();
                let named: Vec<_> = named.collect();
                endpoints.todo.extend(named);
            }
            let state = self.state_mut(resource_type);
            if state.seen {
                state.todo.extend(names);
            }
        }
        if earlier.is_none() {
            // What initial versions said could not be compared until now.
            for resource_type in ResourceType::ALL {
                self.recognise(resource_type);
                let state = self.state_mut(resource_type);
                let held: Vec<_> = state.held.names().cloned().collect();
                state.todo.extend(held);
            }
        }
    }

    /// Time passed: look whether a wait has ended.
    pub fn on_timer(&mut self, now: Duration) {
        self.now = now;
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.dirty = true;
        }
    }

    /// The next response to write, if any. What it carries is decided now, so ask only when it
    /// can be written.
    pub fn poll_output(&mut self) -> Option<Response> {
        if std::mem::take(&mut self.dirty) {
            self.plan();
        }
        self.outbox.pop_front().map(|(_, response)| response)
    }

    /// Whether `poll_output` may have something.
    pub fn wants_output(&self) -> bool {
        self.dirty || !self.outbox.is_empty()
    }

    /// Whether the proxy asked for its listeners, which it does last, and has accepted or refused
    /// all that it was sent.
    pub fn has_caught_up(&self) -> bool {
        let sent = self.types.iter().any(|state| !state.sent.is_empty());
        self.state(ResourceType::Listener).seen && !sent && !self.wants_output()
    }

    /// When to call `on_timer`, at the latest.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Notices since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Rejections since the last call.
    pub fn take_rejections(&mut self) -> Vec<Rejection> {
        std::mem::take(&mut self.rejections)
    }

    fn state(&self, resource_type: ResourceType) -> &TypeState {
        &self.types[resource_type as usize]
    }

    fn state_mut(&mut self, resource_type: ResourceType) -> &mut TypeState {
        &mut self.types[resource_type as usize]
    }

    /// The first request of a type: its nonce, if any, is of another stream.
    fn begin(&mut self, resource_type: ResourceType, request: &DeltaRequest) {
        let resend = self.settings.resend_on_reconnect.contains(&resource_type);
        let everything = request.subscribe.iter().any(|name| name == "*")
            || (request.subscribe.is_empty() && resource_type.is_wildcard_capable());
        let view = self.view.clone();
        let state = self.state_mut(resource_type);
        state.seen = true;
        let named: HashSet<&String> = match everything && !resend {
            true => HashSet::new(),
            false => request.subscribe.iter().collect(),
        };
        for (name, version) in &request.initial_resource_versions {
            // A name in here is no subscription (R55): only what is asked for counts.
            let named = named.contains(name);
            if !(everything || named) || (named && resend) {
                continue;
            }
            // A version that is not ours differs from all of ours, so any number will do.
            let version = ContentHash::parse(version).unwrap_or(ContentHash(0));
            let ours = view.as_ref().and_then(|view| view.get(resource_type, name));
            let ours = ours.filter(|ours| ours.version() == version);
            let held = Held { version, resource: ours.cloned() };
            let name = ours.map_or_else(|| Arc::from(&**name), |ours| ours.name().clone());
            state.held.set(&name, Some(held));
            // Whether a host is wanted is for its parent to say.
            if ours.is_none() || resource_type == ResourceType::VirtualHost {
                state.todo.insert(name);
            }
        }
        if resource_type == ResourceType::RouteConfiguration {
            // Hosts held from an earlier stream may belong to none of the names asked for now.
            let hosts = self.state_mut(ResourceType::VirtualHost);
            hosts.todo.extend(hosts.on_stream_names());
        }
        if request.subscribe.is_empty() && everything {
            self.subscribe_all(resource_type);
        }
    }

    /// The first request of a type, where it is about just what the view offers: nothing is to be
    /// noted of any name. Says whether it was; if not, nothing was done.
    fn begin_whole(&mut self, resource_type: ResourceType, request: &DeltaRequest) -> bool {
        let (names, held) = (&request.subscribe, &request.initial_resource_versions);
        let everything = match &names[..] {
            [] => resource_type.is_wildcard_capable(),
            [name] => name == "*",
            _ => false,
        };
        let resend = self.settings.resend_on_reconnect.contains(&resource_type);
        // Hosts hang on each RouteConfiguration.
        let routes = resource_type == ResourceType::RouteConfiguration;
        if resend || routes || !request.unsubscribe.is_empty() {
            return false;
        }
        let whole = match everything {
            true if held.is_empty() => None,
            true => self.whole_of(resource_type, held.len()),
            false => self.named_whole(resource_type, names),
        };
        let Some(whole) = whole.filter(|whole| held.is_empty() || whole.is_held(held)) else {
            return false;
        };
        let state = self.state_mut(resource_type);
        state.seen = true;
        state.wildcard = everything;
        if held.is_empty() {
            state.want_named(whole);
            return true;
        }
        for part in whole.parts() {
            let _adopted = state.held.adopt(&part);
            if !everything {
                let _adopted = state.names.adopt(&part);
            }
        }
        let routes = self.state(ResourceType::RouteConfiguration);
        let hosts = resource_type == ResourceType::VirtualHost;
        if hosts && !whole.parents().all(|parent| routes.is_on_stream(parent)) {
            // Whether a host is wanted is for its parent to say.
            let names = whole.resources().map(|resource| resource.name().clone());
            self.state_mut(resource_type).todo.extend(names);
        }
        true
    }

    /// Everything that the view offers of a type, if these are its names and they are many.
    fn named_whole(&self, resource_type: ResourceType, names: &[String]) -> Option<Arc<Whole>> {
        // Of other types a name says more than that it is wanted, or there are few.
        if resource_type != ResourceType::Endpoints || names.is_empty() {
            return None;
        }
        self.whole_of(resource_type, names.len()).filter(|whole| whole.is_named(names))
    }

    /// Everything that the view offers of a type, if that may be as much as this.
    fn whole_of(&self, resource_type: ResourceType, count: usize) -> Option<Arc<Whole>> {
        let view = self.view.as_ref()?;
        // Layers may hide each other's.
        let size = view.size(resource_type);
        (count <= size && size <= 2 * count).then(|| Arc::new(self.whole(resource_type, view)))
    }

    fn whole(&self, resource_type: ResourceType, view: &Arc<ScopeView>) -> Whole {
        let is_one = self.full_sets || resource_type == ResourceType::VirtualHost;
        let limit = if is_one { usize::MAX } else { self.settings.response_bytes };
        Whole::new(view, resource_type, limit)
    }

    /// What is due of everything is due of each name.
    fn itemise(&mut self, resource_type: ResourceType) {
        let view = self.view.clone();
        let state = self.state_mut(resource_type);
        match (state.due.take(), view) {
            (Some(Due::Everything), Some(view)) => {
                let names = view.resources(resource_type).map(|(name, _)| name.clone());
                state.todo.extend(names);
            }
            (Some(Due::Named(whole)), _) => {
                state.asked.extend(whole.resources().map(|resource| resource.name().clone()));
            }
            (Some(Due::Everything) | None, _) => {}
        }
    }

    /// Fill in the content of what an earlier stream sent, where it is what we have.
    fn recognise(&mut self, resource_type: ResourceType) {
        let Some(view) = self.view.clone() else {
            return;
        };
        self.state_mut(resource_type).held.recognise(resource_type, &view);
    }

    fn subscribe_all(&mut self, resource_type: ResourceType) {
        let state = self.state_mut(resource_type);
        if state.wildcard {
            return;
        }
        state.wildcard = true;
        state.empty_answer =
            resource_type != ResourceType::VirtualHost && state.held.len() == 0 && !state.answered;
        state.due = Some(Due::Everything);
        if !state.is_blank() {
            self.itemise(resource_type);
        }
    }

    fn subscribe(&mut self, resource_type: ResourceType, name: Arc<str>, first: bool) {
        let state = self.state_mut(resource_type);
        let _before = state.names.set(&name, true);
        // Held from an earlier stream: the proxy does not wait, it only says what it wants.
        if !(first && state.held.contains(&name)) {
            state.asked.insert(name.clone());
        }
        if resource_type == ResourceType::RouteConfiguration {
            self.revisit_hosts(&name);
        }
    }

    fn unsubscribe(&mut self, resource_type: ResourceType, name: &str) {
        let state = self.state_mut(resource_type);
        if !state.names.contains(name) {
            return;
        }
        let name: Arc<str> = name.into();
        let _before = state.names.set(&name, false);
        if state.wildcard {
            // The proxy dropped its own interest and waits to hear what "*" says (R51).
            state.asked.insert(name);
        } else {
            self.forget(resource_type, &name);
        }
    }

    fn unsubscribe_all(&mut self, resource_type: ResourceType) {
        let state = self.state_mut(resource_type);
        state.wildcard = false;
        state.empty_answer = false;
        state.due = None;
        let mut dropped = state.on_stream_names();
        dropped.extend(state.todo.iter().chain(&state.asked).cloned());
        dropped.retain(|name| !state.names.contains(name));
        for name in dropped {
            self.forget(resource_type, &name);
        }
    }

    /// Unsubscribed: no response may mention the name any more, also none that waits (R10).
    fn forget(&mut self, resource_type: ResourceType, name: &Arc<str>) {
        self.state_mut(resource_type).forget(name);
        self.unqueue(resource_type, &|queued| queued == &**name);
        if resource_type == ResourceType::RouteConfiguration {
            self.unqueue(ResourceType::VirtualHost, &|host| parent_of(host) == Some(&**name));
            self.revisit_hosts(name);
        }
    }

    /// Take names out of responses that were not written yet.
    fn unqueue(&mut self, resource_type: ResourceType, which: &dyn Fn(&str) -> bool) {
        let state = &mut self.types[resource_type as usize];
        let full_sets = self.full_sets;
        self.outbox.retain_mut(|(nonce, response)| {
            if response.resource_type != resource_type {
                return true;
            }
            response.resources.leave_out(which);
            response.removed.retain(|name| !which(name));
            state.withdraw(*nonce, which);
            let empty = response.resources.is_empty() && response.removed.is_empty();
            if empty && !full_sets {
                state.sent.remove(nonce);
            }
            !empty || full_sets
        });
    }

    /// An ACK or NACK. A nonce that is not in flight is stale and says nothing (R28).
    fn settle(&mut self, resource_type: ResourceType, nonce: &str, error: Option<String>) {
        let now = self.now;
        let view = self.view.clone();
        let state = self.state_mut(resource_type);
        let Ok(nonce) = nonce.parse() else { return };
        if error.is_some() && state.sent.contains_key(&nonce) {
            state.spell_out();
        }
        let Some(sent) = state.sent.remove(&nonce) else {
            return;
        };
        let routes = resource_type == ResourceType::RouteConfiguration;
        let names: Vec<_> = sent.items.keys().filter(|_| routes).cloned().collect();
        match error {
            Some(error) => {
                state.tally.rejected_at = Some(now);
                let rejection =
                    reject::reject(state, resource_type, nonce, sent, error, view.as_deref());
                self.rejections.push(rejection);
            }
            None => {
                state.tally.acked += 1;
                state.tally.acked_nonce = nonce;
                state.tally.acked_at = Some(now);
                state.accept_all(nonce, sent, view.as_deref());
            }
        }
        for name in &names {
            self.revisit_hosts(name);
        }
    }

    /// A RouteConfiguration came or went: its virtual hosts may now be wanted, or not any more.
    fn revisit_hosts(&mut self, route_configuration: &str) {
        let state = &mut self.types[ResourceType::VirtualHost as usize];
        if !state.seen {
            return;
        }
        let of_this = |name: &Arc<str>| parent_of(name) == Some(route_configuration);
        let held = state.on_stream_names();
        state.todo.extend(held.into_iter().filter(of_this));
        if let Some(view) = &self.view {
            let offered = view.virtual_hosts(route_configuration);
            state.todo.extend(offered.map(|host| host.name().clone()));
        }
    }

    /// Length of the names that the proxy subscribed to, of all types, in bytes.
    pub fn name_bytes(&self) -> usize {
        self.types.iter().map(|state| state.names.bytes()).sum()
    }

    /// The versions that the proxy holds of a type.
    pub fn held(&self, resource_type: ResourceType) -> BTreeMap<Arc<str>, ContentHash> {
        let held = &self.state(resource_type).held;
        held.names().filter_map(|name| Some((name.clone(), held.version(name)?))).collect()
    }
}
