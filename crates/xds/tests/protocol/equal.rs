//! Delta and state of the world come to the same (R106).
//!
//! Both get the same worlds and the same subscriptions, in whatever order, and accept everything.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use xds::{
    DeltaRequest, EncodedResource, ResourceType, Response, ScopeView, Session, Settings,
    SotwRequest, SotwSession,
};

use super::dsl::*;

const TYPES: [ResourceType; 4] = [Cds, Eds, Lds, Rds];

#[derive(Clone, Debug)]
enum Op {
    /// A world: version of each cluster, endpoint set, listener and RouteConfiguration; 0 = none.
    Publish([[u32; 3]; 4]),
    Subscribe(ResourceType, usize),
    Unsubscribe(ResourceType, usize),
    /// Read and accept this many responses of each variant.
    Read(usize),
    Wait(u64),
}

fn name(resource_type: ResourceType, i: usize) -> String {
    match resource_type {
        // Endpoints have the name of their cluster.
        Cds | Eds => format!("c{i}"),
        Lds => format!("l{i}"),
        _ => format!("r{i}"),
    }
}

fn resources(world: &[[u32; 3]; 4]) -> Vec<EncodedResource> {
    let mut out = Vec::new();
    for (resource_type, versions) in TYPES.into_iter().zip(world) {
        for (i, version) in versions.iter().enumerate().filter(|(_, v)| **v > 0) {
            let cluster = name(Cds, (i + *version as usize) % 3);
            let refers_to = match resource_type {
                Lds | Rds if world[0][(i + *version as usize) % 3] > 0 => vec![(Cds, &*cluster)],
                _ => vec![],
            };
            out.push(refers(resource_type, &name(resource_type, i), *version, &refers_to));
        }
    }
    out
}

/// One proxy twice: a stream of each variant.
struct Twins {
    delta: Session,
    sotw: SotwSession,
    now: Duration,
    view: Arc<ScopeView>,
    /// Names that are asked for, of the types that have no wildcard.
    names: [BTreeSet<String>; 4],
    /// Nonce of the last response of each type to the second.
    nonces: [String; 4],
}

impl Twins {
    fn new() -> Self {
        let mut twins = Self {
            delta: Session::new(Settings::default()),
            sotw: SotwSession::new(Settings::default()),
            now: Duration::ZERO,
            view: view([]),
            names: Default::default(),
            nonces: Default::default(),
        };
        twins.offer();
        for resource_type in [Cds, Lds] {
            twins.delta.on_request(twins.now, resource_type, DeltaRequest::default());
            twins.say(resource_type);
        }
        twins
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Publish(world) => {
                self.view = view(resources(world));
                self.offer();
            }
            Op::Subscribe(resource_type, i) => self.subscribe(*resource_type, *i, true),
            Op::Unsubscribe(resource_type, i) => self.subscribe(*resource_type, *i, false),
            Op::Read(n) => drop(self.read(*n)),
            Op::Wait(seconds) => {
                self.now += Duration::from_secs(*seconds);
                self.delta.on_timer(self.now);
                self.sotw.on_timer(self.now);
            }
        }
    }

    fn offer(&mut self) {
        self.delta.on_view(self.now, &self.view);
        self.sotw.on_view(self.now, &self.view);
    }

    fn subscribe(&mut self, resource_type: ResourceType, i: usize, wanted: bool) {
        let name = name(resource_type, i);
        let names = &mut self.names[slot(resource_type)];
        let differs = if wanted { names.insert(name.clone()) } else { names.remove(&name) };
        if !differs {
            return;
        }
        let (subscribe, unsubscribe) =
            if wanted { (vec![name], vec![]) } else { (vec![], vec![name]) };
        let request = DeltaRequest { subscribe, unsubscribe, ..DeltaRequest::default() };
        self.delta.on_request(self.now, resource_type, request);
        self.say(resource_type);
    }

    /// The second says what it wants of a type, and that it accepted what it got.
    fn say(&mut self, resource_type: ResourceType) {
        let at = slot(resource_type);
        let names = self.names[at].iter().cloned().collect();
        let request = SotwRequest { names, nonce: self.nonces[at].clone(), error: None };
        self.sotw.on_request(self.now, resource_type, request);
    }

    /// Returns whether anything was written.
    fn read(&mut self, n: usize) -> bool {
        let mut any = false;
        for _ in 0..n {
            if let Some(Response { resource_type, nonce, .. }) = self.delta.poll_output() {
                let request = DeltaRequest { nonce, ..DeltaRequest::default() };
                self.delta.on_request(self.now, resource_type, request);
                any = true;
            }
            if let Some(Response { resource_type, nonce, .. }) = self.sotw.poll_output() {
                self.nonces[slot(resource_type)] = nonce;
                self.say(resource_type);
                any = true;
            }
        }
        any
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            if self.read(100) {
                continue;
            }
            let deadlines = [self.delta.next_deadline(), self.sotw.next_deadline()];
            match deadlines.into_iter().flatten().min() {
                Some(deadline) => self.apply(&Op::Wait((deadline - self.now).as_secs() + 1)),
                None => return,
            }
        }
        panic!("it never becomes quiet");
    }
}

fn slot(resource_type: ResourceType) -> usize {
    TYPES.iter().position(|t| *t == resource_type).expect("one of the four")
}

fn op() -> impl Strategy<Value = Op> {
    let child = || prop_oneof![Just(Eds), Just(Rds)];
    prop_oneof![
        4 => any::<[[u32; 3]; 4]>().prop_map(|w| Op::Publish(w.map(|row| row.map(|v| v % 3)))),
        3 => (child(), 0usize..3).prop_map(|(t, i)| Op::Subscribe(t, i)),
        2 => (child(), 0usize..3).prop_map(|(t, i)| Op::Unsubscribe(t, i)),
        6 => (1usize..6).prop_map(Op::Read),
        1 => (1u64..9).prop_map(Op::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn r106_both_variants_end_with_the_same(ops in proptest::collection::vec(op(), 0..60)) {
        let mut twins = Twins::new();
        for op in &ops {
            twins.apply(op);
        }
        twins.settle();
        for status in twins.delta.status(twins.now).into_iter().chain(twins.sotw.status(twins.now)) {
            prop_assert_eq!((status.in_flight, status.unanswered), (0, false));
            prop_assert_eq!(status.sent_version, status.acked_version);
        }
        for resource_type in TYPES {
            let names = &twins.names[slot(resource_type)];
            let wanted = |name: &str| matches!(resource_type, Cds | Lds) || names.contains(name);
            // A child that is gone goes with its parent in one variant, and is said to be gone in
            // the other; no parent here is left with it.
            let offered = |name: &str| twins.view.get(resource_type, name).is_some();
            let of = |held: std::collections::BTreeMap<Arc<str>, _>| {
                let mine = held.into_iter().filter(|(name, _)| wanted(name) && offered(name));
                mine.collect::<Vec<_>>()
            };
            let (delta, sotw) = (of(twins.delta.held(resource_type)), of(twins.sotw.held(resource_type)));
            prop_assert_eq!(&delta, &sotw, "{}", resource_type);
            let all = twins.view.resources(resource_type).filter(|(name, _)| wanted(name));
            let all: Vec<_> = all.map(|(name, r)| (name.clone(), r.version())).collect();
            prop_assert_eq!(delta, all, "{}", resource_type);
        }
    }
}
