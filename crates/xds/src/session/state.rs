//! What one stream knows about one type: what is wanted, held, in flight and refused.
//!
//! **Invariant:** everything is keyed by resource name, so memory is bounded by the number of
//! names, never by the number of changes; `held` moves on ACK only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use envoy_api::{ContentHash, EncodedResource, ResourceType};

use super::overlay::{Overlay, Said};
use crate::publication::{ScopeView, parent_of};
use crate::whole::{Part, Whole, mix};

/// A resource the proxy acknowledged; the content is unknown when an earlier stream sent it and
/// it differs from ours.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) version: ContentHash,
    pub(super) resource: Option<Arc<EncodedResource>>,
}

/// What is held by name, with a version of the whole that does not depend on the order.
#[derive(Debug)]
pub(super) struct Holdings {
    names: Overlay<Option<Held>>,
    sum: u64,
}

/// A response that was neither ACKed nor NACKed.
#[derive(Debug)]
pub(super) struct Sent {
    /// Whether it counts for "one un-ACKed push per type".
    pub(super) push: bool,
    pub(super) at: Duration,
    /// `None` = removed.
    pub(super) items: BTreeMap<Arc<str>, Option<Arc<EncodedResource>>>,
}

/// A version that was refused alone.
#[derive(Debug)]
pub(super) struct Parked {
    /// `None` = the removal was refused.
    pub(super) version: Option<ContentHash>,
    /// What the refused version claims: another holder may have been the reason.
    pub(super) claims: Vec<Arc<str>>,
    /// What to send while the proxy holds nothing under this name.
    pub(super) stand_in: Option<Arc<EncodedResource>>,
}

/// Since when a name waits, and whether for its removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) removal: bool,
    pub(super) since: Duration,
}

/// Why everything that a view offers is to be sent.
#[derive(Debug)]
pub(super) enum Due {
    /// All of whatever there is was asked for.
    Everything,
    /// Just these names were asked for.
    Named(Arc<Whole>),
}

/// Counters and times of one type, for people.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: u64,
    pub(super) acked: u64,
    pub(super) rejected: u64,
    pub(super) sent_nonce: u64,
    pub(super) acked_nonce: u64,
    pub(super) rejected_nonce: u64,
    pub(super) error: Option<String>,
    pub(super) sent_at: Option<Duration>,
    pub(super) acked_at: Option<Duration>,
    pub(super) rejected_at: Option<Duration>,
}

/// The state of one type.
#[derive(Debug)]
pub(super) struct TypeState {
    resource_type: ResourceType,
    /// Whether the proxy asked for this type on this stream.
    pub(super) seen: bool,
    /// Whether anything of it was sent on this stream.
    pub(super) answered: bool,
    /// Whether an empty answer is owed if there is nothing to send (R42).
    pub(super) empty_answer: bool,
    pub(super) wildcard: bool,
    /// Names subscribed to.
    pub(super) names: Overlay<bool>,
    pub(super) held: Holdings,
    pub(super) sent: BTreeMap<u64, Sent>,
    /// Parts of everything that are in flight, by nonce: what they carry stands here and nowhere
    /// else, until something about a single name of it has to be said.
    pub(super) parts: BTreeMap<u64, Part>,
    /// The newest un-ACKed sending of a name, unless it is in one of the parts: nonce and content
    /// (`None` = removed).
    pub(super) pending: BTreeMap<Arc<str>, (u64, Option<Arc<EncodedResource>>)>,
    /// How much what is in flight adds to the version of what is held.
    ahead: u64,
    /// Set = everything that the view offers is to be sent, and nothing of it was.
    pub(super) due: Option<Due>,
    /// Names to compare again; a name outside is known to be as it should be.
    pub(super) todo: BTreeSet<Arc<str>>,
    /// Names whose answer the proxy waits for.
    pub(super) asked: BTreeSet<Arc<str>>,
    /// Children of a parent just sent: send them although nothing changed.
    pub(super) owed: BTreeSet<Arc<str>>,
    /// Suspects of a NACK and the refused version: one per response.
    pub(super) alone: BTreeMap<Arc<str>, Option<ContentHash>>,
    pub(super) waiting: BTreeMap<Arc<str>, Waiting>,
    pub(super) parked: BTreeMap<Arc<str>, Parked>,
    pub(super) tally: Tally,
}

// === impl Held ===

impl Said for Option<Held> {
    fn of(resource: Option<&Arc<EncodedResource>>) -> Self {
        resource.map(|r| Held { version: r.version(), resource: Some(Arc::clone(r)) })
    }

    fn is(&self, resource: Option<&Arc<EncodedResource>>) -> bool {
        self.as_ref().map(|held| held.version) == resource.map(|r| r.version())
    }
}

// === impl Holdings ===

impl Holdings {
    fn new(resource_type: ResourceType) -> Self {
        Self { names: Overlay::new(resource_type), sum: 0 }
    }

    /// The version that is held under a name.
    pub(super) fn version(&self, name: &str) -> Option<ContentHash> {
        match self.names.get(name) {
            Ok(held) => held.as_ref().map(|held| held.version),
            Err(offered) => offered.map(|resource| resource.version()),
        }
    }

    /// What is held under a name, where it is known.
    pub(super) fn content(&self, name: &str) -> Option<&Arc<EncodedResource>> {
        match self.names.get(name) {
            Ok(held) => held.as_ref().and_then(|held| held.resource.as_ref()),
            Err(offered) => offered,
        }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Whether just what a view offers is held.
    pub(super) fn is_just(&self, view: &Arc<ScopeView>) -> bool {
        self.names.is_just(view)
    }

    /// Hold a part too, if nothing is held but the parts before it. Returns whether that was so.
    pub(super) fn adopt(&mut self, part: &Part) -> bool {
        let adopted = self.names.adopt(part);
        if adopted {
            self.sum = self.sum.wrapping_add(part.sum());
        }
        adopted
    }

    /// From now on this is held under a name, or nothing.
    pub(super) fn set(&mut self, name: &Arc<str>, held: Option<Held>) {
        if let Some(new) = &held {
            self.sum = self.sum.wrapping_add(mix(name, new.version));
        }
        let old = match self.names.set(name, held) {
            Ok(held) => held.map(|held| held.version),
            Err(offered) => offered.map(|resource| resource.version()),
        };
        if let Some(old) = old {
            self.sum = self.sum.wrapping_sub(mix(name, old));
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.names()
    }

    /// Every content that is known.
    pub(super) fn contents(&self) -> impl Iterator<Item = &Arc<EncodedResource>> {
        let own = self.names.own().flatten().filter_map(|held| held.resource.as_ref());
        own.chain(self.names.unsaid().map(|(_, resource)| resource))
    }

    /// Whether the content of something is not known.
    pub(super) fn has_unknown(&self) -> bool {
        self.names.own().flatten().any(|held| held.resource.is_none())
    }

    /// Fill in contents that are not known, where a view has the version that is held.
    pub(super) fn recognise(&mut self, resource_type: ResourceType, view: &ScopeView) {
        for (name, held) in self.names.own_mut() {
            if let Some(held) = held.as_mut().filter(|held| held.resource.is_none()) {
                let ours = view.get(resource_type, name);
                held.resource = ours.filter(|r| r.version() == held.version).cloned();
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Equal content, equal version, in whatever order it arrived.
    pub(super) fn sum(&self) -> u64 {
        self.sum
    }
}

// === impl TypeState ===

impl TypeState {
    pub(super) fn new(resource_type: ResourceType) -> Self {
        Self {
            resource_type,
            seen: false,
            answered: false,
            empty_answer: false,
            wildcard: false,
            names: Overlay::new(resource_type),
            held: Holdings::new(resource_type),
            sent: BTreeMap::new(),
            parts: BTreeMap::new(),
            pending: BTreeMap::new(),
            ahead: 0,
            due: None,
            todo: BTreeSet::new(),
            asked: BTreeSet::new(),
            owed: BTreeSet::new(),
            alone: BTreeMap::new(),
            waiting: BTreeMap::new(),
            parked: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    /// Nothing is on its way: share with the view what is as it says.
    pub(super) fn condense(&mut self, view: &Arc<ScopeView>) {
        if self.sent.is_empty() {
            self.held.names.rebase(view);
            self.names.rebase(view);
        }
    }

    /// Whether the subscription covers a name, if it exists.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// The version that the proxy has when it accepts all that is in flight.
    pub(super) fn expected(&self, name: &str) -> Option<ContentHash> {
        match (self.pending.get(name), self.in_part(name)) {
            (Some((_, resource)), _) => resource.as_ref().map(|r| r.version()),
            (None, Some(resource)) => Some(resource.version()),
            (None, None) => self.held.version(name),
        }
    }

    /// What the proxy has when it accepts all that is in flight, where it is known.
    pub(super) fn expected_content(&self, name: &str) -> Option<&Arc<EncodedResource>> {
        match self.pending.get(name) {
            Some((_, resource)) => resource.as_ref(),
            None => self.in_part(name).or_else(|| self.held.content(name)),
        }
    }

    fn in_part(&self, name: &str) -> Option<&Arc<EncodedResource>> {
        self.parts.values().find_map(|part| part.get(name))
    }

    /// Subscribe to just these names, of which nothing is held.
    pub(super) fn want_named(&mut self, whole: Arc<Whole>) {
        for part in whole.parts() {
            let _adopted = self.names.adopt(&part);
        }
        self.due = Some(Due::Named(whole));
    }

    /// Whether nothing is held, in flight, refused or waits.
    pub(super) fn is_blank(&self) -> bool {
        let Self { sent, asked, alone, waiting, parked, .. } = self;
        let waits = !(asked.is_empty() && alone.is_empty() && waiting.is_empty());
        self.held.len() == 0 && sent.is_empty() && parked.is_empty() && !waits
    }

    /// Whether the proxy has the resource in some version and will not lose it.
    pub(super) fn is_held(&self, name: &str) -> bool {
        self.held.contains(name) && !matches!(self.pending.get(name), Some((_, None)))
    }

    /// Whether the proxy has or is about to have it.
    pub(super) fn is_on_stream(&self, name: &str) -> bool {
        self.expected(name).is_some()
    }

    /// Whether a push waits for its ACK.
    pub(super) fn is_busy(&self) -> bool {
        self.sent.values().any(|sent| sent.push)
    }

    /// Names held or in flight.
    pub(super) fn on_stream_names(&self) -> BTreeSet<Arc<str>> {
        let parts = self.parts.values().flat_map(|part| part.resources());
        let names = self.held.names().chain(self.pending.keys());
        let names = names.chain(parts.map(|resource| resource.name()));
        names.filter(|n| self.is_on_stream(n)).cloned().collect()
    }

    /// Every content that the proxy may be using: held, or in flight.
    pub(super) fn contents(&self) -> impl Iterator<Item = &Arc<EncodedResource>> {
        let sent = self.sent.values().flat_map(|sent| sent.items.values());
        let parts = self.parts.values().flat_map(|part| part.resources());
        self.held.contents().chain(sent.flatten()).chain(parts)
    }

    /// Version of `expected` over all names.
    pub(super) fn expected_version(&self) -> u64 {
        self.held.sum().wrapping_add(self.ahead)
    }

    /// What was in flight is held: what the proxy has in the end is as it was.
    fn expect(&mut self, version: u64) {
        self.ahead = version.wrapping_sub(self.held.sum());
    }

    /// Change what is held or in flight of a name, and the version of it all with that.
    fn change(&mut self, name: &Arc<str>, change: impl FnOnce(&mut Self)) {
        let before = self.weight(name);
        change(self);
        self.ahead = self.ahead.wrapping_add(self.weight(name)).wrapping_sub(before);
    }

    /// What a name adds to `ahead`.
    fn weight(&self, name: &Arc<str>) -> u64 {
        let mixed = |version: Option<_>| version.map_or(0, |version| mix(name, version));
        mixed(self.expected(name)).wrapping_sub(mixed(self.held.version(name)))
    }

    /// The proxy dropped the name: nothing about it is true any more.
    pub(super) fn forget(&mut self, name: &Arc<str>) {
        if self.in_part(name).is_some() {
            self.spell_out();
        }
        self.change(name, |state| {
            state.held.set(name, None);
            state.pending.remove(name);
        });
        for sent in self.sent.values_mut() {
            sent.items.remove(name);
        }
        self.todo.remove(name);
        self.asked.remove(name);
        self.owed.remove(name);
        self.alone.remove(name);
        self.waiting.remove(name);
        self.parked.remove(name);
    }

    /// Note a response that is about to be written.
    pub(super) fn register(&mut self, nonce: u64, sent: Sent) {
        for (name, resource) in &sent.items {
            self.change(name, |state| {
                state.pending.insert(name.clone(), (nonce, resource.clone()));
            });
            self.todo.remove(name);
            self.asked.remove(name);
            self.owed.remove(name);
            self.alone.remove(name);
            self.waiting.remove(name);
        }
        self.answered = true;
        self.empty_answer = false;
        self.tally.sent += 1;
        self.tally.sent_nonce = nonce;
        self.tally.sent_at = Some(sent.at);
        self.sent.insert(nonce, sent);
    }

    /// Note a response that is about to be written and carries a part of everything, of which
    /// nothing is held.
    pub(super) fn register_part(&mut self, nonce: u64, push: bool, at: Duration, part: &Part) {
        self.register(nonce, Sent { push, at, items: BTreeMap::new() });
        self.parts.insert(nonce, part.clone());
        self.ahead = self.ahead.wrapping_add(part.sum());
    }

    /// Note each name of the parts by itself.
    pub(super) fn spell_out(&mut self) {
        for (nonce, part) in std::mem::take(&mut self.parts) {
            let Some(sent) = self.sent.get_mut(&nonce) else {
                continue;
            };
            for resource in part.resources() {
                let (name, item) = (resource.name(), Some(Arc::clone(resource)));
                sent.items.insert(Arc::clone(name), item.clone());
                // What is noted already was sent later.
                self.pending.entry(Arc::clone(name)).or_insert((nonce, item));
            }
        }
    }

    /// Take what a response carries as accepted.
    pub(super) fn accept_all(&mut self, nonce: u64, sent: Sent, view: Option<&ScopeView>) {
        let expected = self.expected_version();
        if let Some(part) = self.parts.remove(&nonce)
            && !(self.parked.is_empty() && self.held.adopt(&part))
        {
            for resource in part.resources() {
                let item = Some(Arc::clone(resource));
                self.accept(nonce, Arc::clone(resource.name()), item, view);
            }
        }
        for (name, resource) in sent.items {
            self.accept(nonce, name, resource, view);
        }
        self.expect(expected);
    }

    /// Take names out of a response that was not written yet.
    pub(super) fn withdraw(&mut self, nonce: u64, which: &dyn Fn(&str) -> bool) {
        if self.parts.contains_key(&nonce) {
            self.spell_out();
        }
        let Some(sent) = self.sent.get_mut(&nonce) else {
            return;
        };
        let names: Vec<_> = sent.items.keys().filter(|n| which(n)).cloned().collect();
        for name in &names {
            sent.items.remove(name);
        }
        for name in names {
            self.refuse(nonce, &name);
            self.todo.insert(name);
        }
    }

    /// Take one item of a response as accepted.
    pub(super) fn accept(
        &mut self,
        nonce: u64,
        name: Arc<str>,
        resource: Option<Arc<EncodedResource>>,
        view: Option<&ScopeView>,
    ) {
        let expected = self.expected_version();
        if self.pending.get(&name).is_some_and(|p| p.0 == nonce) {
            self.pending.remove(&name);
        }
        let version = resource.as_ref().map(|r| r.version());
        let stand_in = |parked: &Parked| parked.stand_in.as_ref().map(|r| r.version());
        if let Some(parked) = self.parked.get(&name) {
            let had = self.held.version(&name);
            if parked.version == version || stand_in(parked) != version && had != version {
                self.parked.remove(&name);
            }
        }
        // A placeholder is not what is wanted in the end, so look once more.
        let offered = view.and_then(|view| view.get(self.resource_type, &name));
        if version.is_none() || offered.map(|offered| offered.version()) != version {
            self.todo.insert(name.clone());
        }
        self.unpark_takers(&name, resource.as_deref());
        self.held.set(&name, Said::of(resource.as_ref()));
        self.expect(expected);
    }

    /// Take back one item of a response that was refused: an older one may still be in flight.
    pub(super) fn refuse(&mut self, nonce: u64, name: &Arc<str>) {
        if self.pending.get(name).is_none_or(|pending| pending.0 != nonce) {
            return;
        }
        let mut older = self.sent.iter().rev();
        let older = older.find_map(|(nonce, sent)| Some((*nonce, sent.items.get(name)?.clone())));
        self.change(name, |state| {
            match older {
                Some(older) => state.pending.insert(name.clone(), older),
                None => state.pending.remove(name),
            };
        });
    }

    /// A host gave domains up: whoever was refused while it had them may try again.
    fn unpark_takers(&mut self, giver: &str, now: Option<&EncodedResource>) {
        if self.parked.values().all(|parked| parked.claims.is_empty()) {
            return;
        }
        let had = self.held.content(giver).cloned();
        let unknown = self.held.contains(giver) && had.is_none();
        let keeps = |domain: &Arc<str>| now.is_some_and(|host| host.claims().contains(domain));
        let gave = |domain: &Arc<str>| {
            let had = had.as_ref().is_some_and(|host| host.claims().contains(domain));
            (unknown || had) && !keeps(domain)
        };
        let todo = &mut self.todo;
        self.parked.retain(|name, parked| {
            let taker = parent_of(name) == parent_of(giver) && parked.claims.iter().any(gave);
            let stays = &**name == giver || !taker;
            if !stays {
                todo.insert(name.clone());
            }
            stays
        });
    }
}
