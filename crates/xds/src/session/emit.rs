//! Step 3 of the plan: turn what may go into responses.
//!
//! In: additions that passed the gate, missing names, removals. Out: numbered responses in the
//! outbox, noted as sent; children of what was sent are owed.
//!
//! **Invariant:** additions and removals never share a response; the additions of one group of
//! virtual hosts are never split.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_api::{EncodedResource, ResourceRef, ResourceType};

use super::Session;
use super::message::{Notice, Resources, Response};
use super::plan::Addition;
use super::state::{Due, Sent};
use crate::chunks::parts;
use crate::publication::ScopeView;
use crate::whole::Whole;

// === impl Session ===

impl Session {
    pub(super) fn emit_missing(&mut self, resource_type: ResourceType, missing: Vec<Arc<str>>) {
        if missing.is_empty() {
            return;
        }
        let silent = self.full_sets && !resource_type.is_wildcard_capable();
        if silent {
            let state = self.state_mut(resource_type);
            for name in missing {
                state.asked.remove(&name);
                state.todo.remove(&name);
            }
            return;
        }
        self.emit_names(resource_type, false, missing);
    }

    /// Step 3: write additions, in several responses where one would be too large. Says whether
    /// a push was among them.
    pub(super) fn emit_additions(
        &mut self,
        resource_type: ResourceType,
        view: &ScopeView,
        additions: Vec<Addition>,
    ) -> bool {
        let mut pushed = false;
        let (mut alone, batch): (Vec<_>, Vec<_>) = additions.into_iter().partition(|a| a.alone);
        // Whoever gives a domain up goes before whoever takes it.
        alone.sort_by_key(|addition| addition.takes);
        if self.full_sets && !alone.is_empty() {
            // A full set holds all suspects sent before, so they go one after the other.
            if self.state(resource_type).is_busy() {
                return true;
            }
            alone.truncate(1);
            let addition = alone.remove(0);
            self.emit_resources(resource_type, view, true, vec![addition.resource]);
            return true;
        }
        for addition in alone {
            self.emit_resources(resource_type, view, false, vec![addition.resource]);
        }
        let push = batch.iter().any(|addition| !addition.exempt);
        let is_host = resource_type == ResourceType::VirtualHost;
        let whole = self.full_sets || is_host && batch.iter().any(|a| a.exempt);
        let mut units: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for (at, addition) in batch.into_iter().enumerate() {
            let unit = if is_host { addition.group } else { at };
            units.entry(unit).or_default().push(addition.resource);
        }
        let mut response = Vec::new();
        let mut bytes = 0;
        for unit in units.into_values() {
            let more: usize = unit.iter().map(|r| r.delta_entry().len()).sum();
            if !whole && !response.is_empty() && bytes + more > self.settings.response_bytes {
                let full = std::mem::take(&mut response);
                self.emit_resources(resource_type, view, push, full);
                bytes = 0;
            }
            bytes += more;
            response.extend(unit);
        }
        if !response.is_empty() {
            self.emit_resources(resource_type, view, push, response);
            pushed = push;
        }
        pushed
    }

    fn emit_resources(
        &mut self,
        resource_type: ResourceType,
        view: &ScopeView,
        push: bool,
        resources: Vec<Arc<EncodedResource>>,
    ) {
        let items = resources.iter().map(|r| (r.name().clone(), Some(r.clone())));
        self.emit(resource_type, push, items.collect());
        for resource in &resources {
            self.owe_children(view, resource);
            if resource_type == ResourceType::RouteConfiguration {
                self.revisit_hosts(resource.name());
            }
        }
    }

    pub(super) fn emit_removals(&mut self, resource_type: ResourceType, names: Vec<Arc<str>>) {
        if names.is_empty() {
            return;
        }
        if self.full_sets && !resource_type.is_wildcard_capable() {
            // In SotW the parent's end is the child's (R40).
            for name in names {
                self.state_mut(resource_type).forget(&name);
            }
            return;
        }
        let in_use = self.in_use(resource_type, &names);
        if !in_use.is_empty() {
            // What the proxy asks for until then may show that it does not use them.
            self.remind(self.asked_by());
        }
        let mut free = Vec::new();
        for name in names {
            let blocked = in_use.contains(&name);
            if let Some(since) = self.wait(resource_type, &name, true, blocked) {
                let end = since + self.settings.gate;
                if end > self.now {
                    self.remind(end);
                    continue;
                }
                let resource = ResourceRef::new(resource_type, name.clone());
                self.notices.push(Notice::RemovedWhileReferenced { resource });
            }
            free.push(name);
        }
        self.emit_names(resource_type, true, free);
    }

    /// Write removed or missing names, in several responses where one would be too large.
    fn emit_names(&mut self, resource_type: ResourceType, push: bool, names: Vec<Arc<str>>) {
        // A full set says nothing of names.
        let limit = if self.full_sets { usize::MAX } else { self.settings.response_bytes };
        for names in parts(&names, limit) {
            let items = names.iter().map(|name| (name.clone(), None)).collect();
            self.emit(resource_type, push, items);
        }
    }

    /// Write everything that the view offers; nothing of it is held or on its way.
    pub(super) fn emit_whole(
        &mut self,
        resource_type: ResourceType,
        view: &Arc<ScopeView>,
        whole: &Arc<Whole>,
    ) {
        let at = self.now;
        let state = self.state_mut(resource_type);
        let asked = matches!(state.due.take(), Some(Due::Named(_)));
        let push = !asked && state.owed.is_empty();
        state.todo.clear();
        state.owed.clear();
        for part in whole.parts() {
            self.last_nonce += 1;
            let nonce = self.last_nonce;
            self.state_mut(resource_type).register_part(nonce, push, at, &part);
            self.queue(resource_type, nonce, Resources::Part(part), Vec::new());
        }
        let children: &[ResourceType] = match resource_type {
            ResourceType::Cluster => &[ResourceType::Endpoints, ResourceType::Secret],
            ResourceType::Listener => &[ResourceType::Secret],
            _ => &[],
        };
        if children.iter().any(|child| self.state(*child).seen) {
            for resource in whole.resources() {
                self.owe_children(view, resource);
            }
        }
    }

    /// Number a response, note it as sent, and queue it for `poll_output`.
    pub(super) fn emit(
        &mut self,
        resource_type: ResourceType,
        push: bool,
        items: BTreeMap<Arc<str>, Option<Arc<EncodedResource>>>,
    ) {
        self.last_nonce += 1;
        let nonce = self.last_nonce;
        let mut resources: Vec<_> = items.values().flatten().cloned().collect();
        let gone = items.iter().filter(|(_, resource)| resource.is_none());
        let mut removed: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        let at = self.now;
        let full_set = self.full_sets && resource_type.is_wildcard_capable();
        let state = self.state_mut(resource_type);
        state.register(nonce, Sent { push, at, items });
        if full_set {
            removed.clear();
            resources = state.expected_contents();
        }
        self.queue(resource_type, nonce, Resources::Own(resources), removed);
    }

    /// Queue what was noted as sent.
    fn queue(
        &mut self,
        resource_type: ResourceType,
        nonce: u64,
        resources: Resources,
        removed: Vec<Arc<str>>,
    ) {
        let response = Response {
            resource_type,
            nonce: nonce.to_string(),
            version: format!("{:016x}", self.state(resource_type).expected_version()),
            resources,
            removed,
        };
        self.outbox.push_back((nonce, response));
    }
}
