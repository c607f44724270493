//! The state-of-the-world protocol over the same planning.
//!
//! In: the full list of wanted names per request, turned here into what changed. Out: responses
//! whose CDS and LDS resources are the full set and whose other types hold what changed.
//!
//! **Invariant:** never says that a resource was removed; never an empty answer of a child type.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use envoy_api::{ContentHash, EncodedResource, ResourceType};

use super::Session;
use super::message::{Notice, Rejection, Response, Settings, SotwRequest};
use super::state::TypeState;
use super::status::TypeStatus;
use crate::publication::ScopeView;

/// The protocol state of one state-of-the-world stream.
#[derive(Debug)]
pub struct SotwSession {
    core: Session,
    /// Types of which a name was ever given: an empty list then means nothing, not everything.
    named: BTreeSet<ResourceType>,
    /// Names of requests with a stale nonce, to be honoured with the next push (R44).
    deferred: BTreeMap<ResourceType, Vec<String>>,
}

// === impl SotwSession ===

impl SotwSession {
    /// A stream without subscriptions and without a view.
    pub fn new(settings: Settings) -> Self {
        let mut core = Session::new(settings);
        core.full_sets = true;
        Self { core, named: BTreeSet::new(), deferred: BTreeMap::new() }
    }

    /// As [`Session::begin_at`].
    pub fn begin_at(&mut self, now: Duration) {
        self.core.begin_at(now);
    }

    /// Work in a request. VHDS has no such variant: its requests are ignored.
    pub fn on_request(&mut self, now: Duration, resource_type: ResourceType, request: SotwRequest) {
        if resource_type == ResourceType::VirtualHost {
            return;
        }
        self.core.now = now;
        let state = self.core.state_mut(resource_type);
        if !state.seen {
            state.seen = true;
        } else if !request.nonce.is_empty() {
            if request.nonce != state.tally.sent_nonce.to_string() {
                self.deferred.insert(resource_type, request.names);
                return;
            }
            // The newest nonce settles the older ones too: only it is ever answered for sure.
            let older: Vec<_> = state.sent.keys().map(u64::to_string).collect();
            for nonce in older.iter().filter(|nonce| **nonce != request.nonce) {
                self.core.settle(resource_type, nonce, None);
            }
            self.core.settle(resource_type, &request.nonce, request.error);
        }
        self.core.dirty = true;
        self.core.itemise(resource_type);
        self.deferred.remove(&resource_type);
        self.want(resource_type, request.names);
    }

    /// Take over the newest view; the same view again costs nothing.
    pub fn on_view(&mut self, now: Duration, view: &Arc<ScopeView>) {
        for (resource_type, names) in std::mem::take(&mut self.deferred) {
            self.core.dirty = true;
            self.want(resource_type, names);
        }
        self.core.on_view(now, view);
    }

    /// As [`Session::on_timer`].
    pub fn on_timer(&mut self, now: Duration) {
        self.core.on_timer(now);
    }

    /// As [`Session::poll_output`].
    pub fn poll_output(&mut self) -> Option<Response> {
        self.core.poll_output()
    }

    /// As [`Session::wants_output`].
    pub fn wants_output(&self) -> bool {
        self.core.wants_output()
    }

    /// As [`Session::has_caught_up`].
    pub fn has_caught_up(&self) -> bool {
        self.core.has_caught_up()
    }

    /// As [`Session::next_deadline`].
    pub fn next_deadline(&self) -> Option<Duration> {
        self.core.next_deadline()
    }

    /// As [`Session::take_notices`].
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.core.take_notices()
    }

    /// As [`Session::take_rejections`].
    pub fn take_rejections(&mut self) -> Vec<Rejection> {
        self.core.take_rejections()
    }

    /// As [`Session::status`].
    pub fn status(&self, now: Duration) -> Vec<TypeStatus> {
        self.core.status(now)
    }

    /// As [`Session::name_bytes`].
    pub fn name_bytes(&self) -> usize {
        self.core.name_bytes()
    }

    /// As [`Session::held`].
    pub fn held(&self, resource_type: ResourceType) -> BTreeMap<Arc<str>, ContentHash> {
        self.core.held(resource_type)
    }

    /// Replace the subscription of a type by this list.
    fn want(&mut self, resource_type: ResourceType, names: Vec<String>) {
        let whole = self.core.named_whole(resource_type, &names);
        let state = self.core.state_mut(resource_type);
        if let Some(whole) = whole.filter(|_| !state.wildcard) {
            if state.names.is_just(whole.view()) {
                return;
            }
            if state.is_blank() && state.names.len() == 0 {
                state.want_named(whole);
                return;
            }
        }
        let everything = names.iter().any(|name| name == "*")
            || (names.is_empty()
                && resource_type.is_wildcard_capable()
                && !self.named.contains(&resource_type));
        if !names.is_empty() {
            self.named.insert(resource_type);
        }
        let wanted: BTreeSet<String> = names.into_iter().filter(|name| name != "*").collect();
        let core = &mut self.core;
        for name in &wanted {
            if !core.state(resource_type).names.contains(name) {
                core.subscribe(resource_type, name.as_str().into(), false);
            }
        }
        match everything {
            true => core.subscribe_all(resource_type),
            false if core.state(resource_type).wildcard => core.unsubscribe_all(resource_type),
            false => {}
        }
        let had = &core.state(resource_type).names;
        if had.len() == wanted.len() {
            return;
        }
        let dropped = had.names().filter(|name| !wanted.contains(&***name)).cloned();
        for name in dropped.collect::<Vec<_>>() {
            if everything {
                let _before = core.state_mut(resource_type).names.set(&name, false);
            } else {
                core.unsubscribe(resource_type, &name);
            }
        }
    }
}

// === impl TypeState ===

impl TypeState {
    /// Everything the proxy has once it accepts what is in flight.
    pub(super) fn expected_contents(&self) -> Vec<Arc<EncodedResource>> {
        let names = self.on_stream_names();
        names.iter().filter_map(|name| self.expected_content(name).cloned()).collect()
    }
}
