//! A simulated Envoy: what it subscribes to, in which order, what it holds.
//!
//! In: parts of responses. Out: requests, and the changes that it got to see.
//!
//! As Envoy does: clusters first; the endpoints of those that have some; the ACK of clusters once
//! these came; then listeners, their routes, the hosts of these. A stream that is opened again asks
//! for all types at once and says what it holds.
//!
//! **Invariant:** does no I/O.

use anyhow::{Context as _, Result, ensure};
use envoy_api::ResourceType;

use crate::known::{ContentId, Known, NameId, TYPES, index, text};
use crate::wire::{Part, Request};
use crate::world::Change;

const CDS: usize = 0;
const EDS: usize = 1;
const LDS: usize = 2;
const RDS: usize = 3;
const VHDS: usize = 4;

/// Which form of ADS a fleet speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    Delta,
    StateOfTheWorld,
}

/// One type on one stream.
#[derive(Debug, Default)]
struct TypeState {
    /// Whether it was asked for on this stream.
    asked: bool,
    answered: bool,
    /// Names that are subscribed to; none: all.
    names: Names,
    /// State of the world: the last one.
    version: String,
    nonce: String,
}

/// The response that is being read.
#[derive(Debug, Default)]
struct Incoming {
    kind: Option<usize>,
    nonce: String,
    version: String,
    contents: Vec<ContentId>,
    removed: Vec<String>,
    fault: Option<String>,
}

/// A set of names: a bit each, because thousands of proxies have thousands of names.
#[derive(Clone, Debug, Default)]
struct Names(Vec<u64>);

/// Messages and resources that came, by type; bytes are the connection's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) messages: [u64; TYPES.len()],
    pub(crate) resources: [u64; TYPES.len()],
    pub(crate) faults: Vec<String>,
}

/// A proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    variant: Variant,
    types: [TypeState; TYPES.len()],
    /// By the number of the name, the number of the content and one; zero = not held.
    held: [Vec<u32>; TYPES.len()],
    incoming: Incoming,
    /// Endpoints that clusters wait for.
    warming: Names,
    /// Responses with clusters that will be ACKed then: version and nonce.
    unacked: Vec<(String, String)>,
}

// === impl Variant ===

impl Variant {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Delta => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
            }
            Self::StateOfTheWorld => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
            }
        }
    }
}

// === impl Tally ===

impl Tally {
    /// Add what came later.
    pub(crate) fn add(&mut self, later: Self) {
        for at in 0..TYPES.len() {
            self.messages[at] += later.messages[at];
            self.resources[at] += later.resources[at];
        }
        self.faults.extend(later.faults);
    }
}

// === impl Names ===

impl Names {
    fn contains(&self, name: NameId) -> bool {
        self.0.get(name as usize / 64).is_some_and(|word| word >> (name % 64) & 1 == 1)
    }

    fn insert(&mut self, name: NameId) {
        let word = name as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (name % 64);
    }

    fn remove(&mut self, name: NameId) {
        if let Some(word) = self.0.get_mut(name as usize / 64) {
            *word &= !(1 << (name % 64));
        }
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    fn iter(&self) -> impl Iterator<Item = NameId> {
        let bits = |(at, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at as u32 * 64 + bit)
        };
        self.0.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(bits)
    }
}

impl FromIterator<NameId> for Names {
    fn from_iter<T: IntoIterator<Item = NameId>>(names: T) -> Self {
        let mut out = Self::default();
        names.into_iter().for_each(|name| out.insert(name));
        out
    }
}

// === impl Proxy ===

impl Proxy {
    pub(crate) fn new(variant: Variant) -> Self {
        Self {
            variant,
            types: Default::default(),
            held: Default::default(),
            incoming: Incoming::default(),
            warming: Names::default(),
            unacked: Vec::new(),
        }
    }

    /// Begin a stream, the first or another one.
    pub(crate) fn open(&mut self, node: &[u8], known: &Known, send: &mut impl FnMut(Vec<u8>)) {
        let resumes = self.held[CDS].iter().any(|held| *held > 0);
        let earlier = std::mem::take(&mut self.types);
        self.incoming = Incoming::default();
        self.warming = Names::default();
        self.unacked.clear();
        let again = TYPES.iter().enumerate().take(if resumes { TYPES.len() } else { 1 });
        for (at, _) in again {
            let TypeState { asked, names, version, .. } = &earlier[at];
            if at > 0 && !asked {
                continue;
            }
            self.types[at].names = names.clone();
            let mut request = self.request(at, known, names.iter());
            request.node = Some(node).filter(|_| at == CDS);
            request.version = version;
            if self.variant == Variant::Delta {
                request.versions = self.versions(at, known);
            }
            let message = self.encode(&request);
            self.types[at].asked = true;
            send(message);
        }
    }

    /// Whether it has everything that an Envoy needs to take traffic.
    pub(crate) fn is_configured(&self) -> bool {
        // What was held when the stream was opened counts.
        let has = |at: usize| self.types[at].answered || self.held[at].iter().any(|held| *held > 0);
        let hosts = self.variant == Variant::StateOfTheWorld || has(VHDS);
        has(CDS) && self.warming.is_empty() && has(LDS) && has(RDS) && hosts
    }

    /// The content of a name.
    pub(crate) fn held(&self, kind: ResourceType, name: NameId) -> Option<ContentId> {
        self.held[index(kind)].get(name as usize)?.checked_sub(1)
    }

    /// Every content that it holds of a type.
    pub(crate) fn holds(&self, kind: ResourceType) -> impl Iterator<Item = ContentId> {
        self.held[index(kind)].iter().filter_map(|held| held.checked_sub(1))
    }

    /// Work in a part of a response. Changes that it shows go to `seen`.
    pub(crate) fn receive(
        &mut self,
        part: Part<'_>,
        known: &mut Known,
        tally: &mut Tally,
        seen: &mut impl FnMut(Change),
        send: &mut impl FnMut(Vec<u8>),
    ) -> Result<()> {
        let incoming = &mut self.incoming;
        match part {
            Part::Version(version) => version_into(&mut incoming.version, version)?,
            Part::Nonce(nonce) => version_into(&mut incoming.nonce, nonce)?,
            Part::TypeUrl(url) => {
                incoming.kind = TYPES.iter().position(|t| t.type_url().as_bytes() == url);
            }
            Part::Removed(name) => incoming.removed.push(text(name)?.to_owned()),
            Part::Resource(bytes) => match known.entry(bytes, self.variant == Variant::Delta) {
                Ok(content) => {
                    known.content(content).changes.iter().copied().for_each(&mut *seen);
                    incoming.contents.push(content);
                }
                Err(error) => incoming.fault = Some(format!("{error:#}")),
            },
            Part::End => {
                let incoming = std::mem::take(incoming);
                let at = incoming.kind.context("a response of an unknown type")?;
                tally.messages[at] += 1;
                tally.resources[at] += incoming.contents.len() as u64;
                tally.faults.extend(incoming.fault.clone());
                self.take(at, incoming, known, send)?;
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        at: usize,
        incoming: Incoming,
        known: &mut Known,
        send: &mut impl FnMut(Vec<u8>),
    ) -> Result<()> {
        ensure!(self.types[at].asked, "{} was not asked for", TYPES[at]);
        let Incoming { nonce, version, contents, removed, fault, .. } = incoming;
        if fault.is_some() {
            self.answer(at, &version, &nonce, fault, known, send);
            return Ok(());
        }
        // Envoy takes no response that names a resource twice.
        let mut again = None;
        let mut gone: Vec<NameId> =
            removed.iter().filter_map(|name| known.find(TYPES[at], name)).collect();
        for id in &contents {
            let content = known.content(*id);
            ensure!(content.kind == TYPES[at], "{} among {}", content.kind, TYPES[at]);
            if gone.contains(&content.name) {
                again = Some(known.name(content.kind, content.name).to_owned());
            }
        }
        if let Some(name) = again {
            let fault = format!("{name} is among the added and the removed");
            self.answer(at, &version, &nonce, Some(fault), known, send);
            return Ok(());
        }
        self.types[at].answered = true;
        if self.variant == Variant::StateOfTheWorld && matches!(at, CDS | LDS) {
            let named: Names = contents.iter().map(|id| known.content(*id).name).collect();
            let held = self.held[at].iter().enumerate().filter(|(_, held)| **held > 0);
            gone = held.map(|(name, _)| name as NameId).filter(|n| !named.contains(*n)).collect();
        }
        let mut children = Vec::new();
        for id in contents {
            let content = known.content(id);
            hold(&mut self.held[at], content.name, id + 1);
            children.extend_from_slice(&content.children);
            if at == EDS {
                self.warming.remove(content.name);
            }
        }
        for name in gone {
            hold(&mut self.held[at], name, 0);
            if at == EDS {
                self.warming.remove(name);
            }
        }
        match at {
            CDS => {
                self.follow(EDS, &children, known, send);
                children.into_iter().for_each(|name| self.warming.insert(name));
                self.unacked.push((version, nonce));
            }
            LDS => {
                self.answer(LDS, &version, &nonce, None, known, send);
                self.follow(RDS, &children, known, send);
            }
            _ => self.answer(at, &version, &nonce, None, known, send),
        }
        if at == RDS && !self.types[VHDS].asked && self.hosts_apart(known) {
            self.subscribe(VHDS, &[], &[], known, send);
        }
        if self.warming.is_empty() && !self.unacked.is_empty() {
            for (version, nonce) in std::mem::take(&mut self.unacked) {
                self.answer(CDS, &version, &nonce, None, known, send);
            }
            if !self.types[LDS].asked {
                self.subscribe(LDS, &[], &[], known, send);
            }
        }
        Ok(())
    }

    fn hosts_apart(&self, known: &Known) -> bool {
        let mut routes = self.holds(ResourceType::RouteConfiguration);
        self.variant == Variant::Delta && routes.any(|id| known.content(id).hosts_apart)
    }

    /// Subscribe to what new parents name, and no more to what no parent names.
    fn follow(&mut self, at: usize, new: &[NameId], known: &Known, send: &mut impl FnMut(Vec<u8>)) {
        let names = &self.types[at].names;
        let added: Vec<_> = new.iter().copied().filter(|name| !names.contains(*name)).collect();
        let parents = self.holds(TYPES[at - 1]).flat_map(|id| &known.content(id).children);
        let named: Names = parents.copied().collect();
        let dropped: Vec<_> = names.iter().filter(|name| !named.contains(*name)).collect();
        if added.is_empty() && dropped.is_empty() {
            return;
        }
        for name in &dropped {
            hold(&mut self.held[at], *name, 0);
            self.warming.remove(*name);
        }
        self.subscribe(at, &added, &dropped, known, send);
    }

    fn subscribe(
        &mut self,
        at: usize,
        added: &[NameId],
        dropped: &[NameId],
        known: &Known,
        send: &mut impl FnMut(Vec<u8>),
    ) {
        let state = &mut self.types[at];
        state.asked = true;
        added.iter().for_each(|name| state.names.insert(*name));
        dropped.iter().for_each(|name| state.names.remove(*name));
        let message = match self.variant {
            Variant::Delta => {
                let mut request = self.request(at, known, added.iter().copied());
                request.unsubscribed = dropped.iter().map(|n| known.name(TYPES[at], *n)).collect();
                self.encode(&request)
            }
            Variant::StateOfTheWorld => {
                let TypeState { names, version, nonce, .. } = &self.types[at];
                let mut request = self.request(at, known, names.iter());
                (request.version, request.nonce) = (version, nonce);
                self.encode(&request)
            }
        };
        send(message);
    }

    /// ACK, or NACK with this error.
    fn answer(
        &mut self,
        at: usize,
        version: &str,
        nonce: &str,
        error: Option<String>,
        known: &Known,
        send: &mut impl FnMut(Vec<u8>),
    ) {
        let state = &mut self.types[at];
        version.clone_into(&mut state.version);
        nonce.clone_into(&mut state.nonce);
        let state = &self.types[at];
        let mut request = match self.variant {
            Variant::Delta => self.request(at, known, []),
            Variant::StateOfTheWorld => self.request(at, known, state.names.iter()),
        };
        request.version = version;
        request.nonce = nonce;
        request.error = error;
        send(self.encode(&request));
    }

    fn request<'a>(
        &self,
        at: usize,
        known: &'a Known,
        names: impl IntoIterator<Item = NameId>,
    ) -> Request<'a> {
        let names = names.into_iter().map(|name| known.name(TYPES[at], name)).collect();
        Request { type_url: TYPES[at].type_url(), names, ..Default::default() }
    }

    fn versions<'a>(&self, at: usize, known: &'a Known) -> Vec<(&'a str, &'a str)> {
        let contents = self.holds(TYPES[at]).map(|id| known.content(id));
        contents.map(|c| (known.name(c.kind, c.name), &*c.version)).collect()
    }

    fn encode(&self, request: &Request<'_>) -> Vec<u8> {
        match self.variant {
            Variant::Delta => request.delta(),
            Variant::StateOfTheWorld => request.state_of_the_world(),
        }
    }
}

fn hold(held: &mut Vec<u32>, name: NameId, content: u32) {
    let at = name as usize;
    if held.len() <= at {
        held.resize(at + 1, 0);
    }
    held[at] = content;
}

fn version_into(out: &mut String, bytes: &[u8]) -> Result<()> {
    text(bytes)?.clone_into(out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use envoy_api::Any;
    use envoy_api::envoy::config::cluster::v3::{Cluster, cluster};
    use envoy_api::envoy::config::endpoint::v3::ClusterLoadAssignment;
    use envoy_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, Resource};
    use prost::Message as _;

    use super::*;

    struct Script {
        proxy: Proxy,
        known: Known,
        tally: Tally,
    }

    impl Script {
        /// Let a response come. Out: the requests that it leads to.
        fn receive(&mut self, kind: ResourceType, resources: &[Resource]) -> Vec<String> {
            let entries: Vec<_> = resources.iter().map(Resource::encode_to_vec).collect();
            let mut parts: Vec<_> = entries.iter().map(|entry| Part::Resource(entry)).collect();
            parts.extend([Part::TypeUrl(kind.type_url().as_bytes()), Part::Nonce(b"n"), Part::End]);
            let mut sent = Vec::new();
            for part in parts {
                let Self { proxy, known, tally } = self;
                let mut send = |request: Vec<u8>| sent.push(described(&request));
                proxy.receive(part, known, tally, &mut |_| {}, &mut send).unwrap();
            }
            sent
        }
    }

    /// Type, names, versions, and whether it is an ACK, a NACK or neither.
    fn described(request: &[u8]) -> String {
        let request = DeltaDiscoveryRequest::decode(request).unwrap();
        let kind = ResourceType::from_type_url(&request.type_url).unwrap().short_name();
        let names = request.resource_names_subscribe.join(",");
        let held = request.initial_resource_versions.len();
        let answer = match (request.response_nonce.is_empty(), request.error_detail) {
            (true, _) => "",
            (false, None) => "ACK",
            (false, Some(_)) => "NACK",
        };
        format!("{kind} [{names}] {held} {answer}").trim_end().to_owned()
    }

    fn resource(name: &str, body: Any) -> Resource {
        let name = name.to_owned();
        Resource { name, version: "1".to_owned(), resource: Some(body), ..Default::default() }
    }

    fn cluster(name: &str) -> Resource {
        let eds = cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds as i32);
        let cluster_discovery_type = Some(eds);
        let name_of = name.to_owned();
        let body = Cluster { name: name_of, cluster_discovery_type, ..Default::default() };
        resource(name, Any::pack(&body))
    }

    #[test]
    fn it_asks_as_an_envoy_does_and_says_what_it_holds_when_it_comes_back() {
        let (proxy, known) = (Proxy::new(Variant::Delta), Known::default());
        let mut script = Script { proxy, known, tally: Tally::default() };
        let mut opened = Vec::new();
        script.proxy.open(b"", &script.known, &mut |r| opened.push(described(&r)));
        assert_eq!(opened, ["CDS [] 0"]);
        let sent = script.receive(ResourceType::Cluster, &[cluster("c")]);
        assert_eq!(sent, ["EDS [c] 0"], "the ACK of a cluster waits for its endpoints");
        let cluster_name = "c".to_owned();
        let endpoints = ClusterLoadAssignment { cluster_name, ..Default::default() };
        let endpoints = resource("c", Any::pack(&endpoints));
        let sent = script.receive(ResourceType::Endpoints, &[endpoints]);
        assert_eq!(sent, ["EDS [] 0 ACK", "CDS [] 0 ACK", "LDS [] 0"]);
        let bad = resource("other", Any::pack(&Cluster::default()));
        assert_eq!(script.receive(ResourceType::Cluster, &[bad]), ["CDS [] 0 NACK"]);
        assert_eq!(script.tally.faults.len(), 1);
        let mut opened = Vec::new();
        script.proxy.open(b"", &script.known, &mut |r| opened.push(described(&r)));
        assert_eq!(opened, ["CDS [] 1", "EDS [c] 1", "LDS [] 0"]);
    }
}
