//! Random runs against a model of Envoy: after quiet it holds exactly what is offered, and on the
//! way nothing arrives before what it refers to, nothing goes that is still used.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use xds::{
    DeltaRequest, EncodedResource, Notice, ResourceRef, ResourceType, Response, ScopeView, Session,
    Settings,
};

use super::dsl::*;

/// Content that contains this is refused.
const BAD: &str = "bad";

#[derive(Clone, Debug)]
enum Op {
    Publish(Box<World>),
    /// Read what the server writes, this many responses at most.
    Read(usize),
    /// Answer the oldest unanswered response of the n-th type.
    Answer(usize),
    SubscribeRoutes(usize),
    UnsubscribeRoutes(usize),
    AskEndpointsAgain(usize),
    Stale(usize),
    Wait(u64),
    Reconnect(usize),
}

/// What a scope offers; index = resource, 0 = absent, else version.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) base: u32,
    clusters: [u32; 4],
    listeners: [(u32, usize); 3],
    routes: [u32; 2],
    hosts: [(u32, usize); 6],
    /// Which host of its RouteConfiguration has each of these domains.
    domains: [usize; 4],
    bad: Option<usize>,
}

impl World {
    pub(super) fn resources(&self) -> Vec<EncodedResource> {
        let mut all = Vec::new();
        let bad = |i: usize| if self.bad == Some(i) { BAD } else { "" };
        let version = |v: u32| v + self.base;
        let to_cluster = |i: usize| match self.clusters[i % 4] {
            0 => vec![],
            _ => vec![ResourceRef::new(Cds, format!("c{}", i % 4))],
        };
        for (i, v) in self.clusters.iter().enumerate().filter(|(_, v)| **v > 0) {
            let name = format!("c{i}");
            let body = format!("{name} {} {}", version(*v), bad(i));
            all.push(EncodedResource::new(Cds, name.as_str(), body.as_bytes(), vec![]));
            if i != 0 {
                all.push(resource(Eds, &name, version(*v % 2)));
            }
        }
        for (i, (v, c)) in self.listeners.iter().enumerate().filter(|(_, l)| l.0 > 0) {
            let name = format!("l{i}");
            let refs = to_cluster(*c);
            let body = format!("{name} {} {refs:?} {}", version(*v), bad(4 + i));
            all.push(EncodedResource::new(Lds, name, body.as_bytes(), refs));
        }
        for (i, v) in self.routes.iter().enumerate().filter(|(_, v)| **v > 0) {
            all.push(resource(Rds, &format!("r{i}"), version(*v)));
            for (h, (v, c)) in self.hosts.iter().enumerate() {
                if *v == 0 || h % 2 != i {
                    continue;
                }
                let name = format!("r{i}/h{h}");
                let mut domains: Vec<Arc<str>> = vec![name.as_str().into()];
                let given = self.domains.iter().enumerate().filter(|(_, to)| **to == h);
                domains.extend(given.map(|(d, _)| Arc::from(format!("d{d}"))));
                let refs = to_cluster(*c);
                let body = format!("{name} {} {domains:?} {refs:?} {}", version(*v), bad(7 + h));
                let host = EncodedResource::new(Vhds, name, body.as_bytes(), refs);
                all.push(host.with_claims(domains));
            }
        }
        all
    }
}

/// The proxy: what it holds, and what it has not answered yet.
struct Envoy {
    session: Session,
    settings: Settings,
    now: Duration,
    view: Arc<ScopeView>,
    held: BTreeMap<ResourceType, BTreeMap<Arc<str>, Arc<EncodedResource>>>,
    routes: BTreeSet<String>,
    unanswered: BTreeMap<ResourceType, VecDeque<(Response, Option<String>)>>,
    ever_bad: bool,
    /// Of this stream: a notice comes with the plan, maybe a few responses before its resource.
    notices: Vec<Notice>,
}

impl Envoy {
    fn connect(settings: Settings, world: &World) -> Self {
        let mut envoy = Self {
            session: Session::new(settings.clone()),
            settings,
            now: Duration::ZERO,
            view: view(world.resources()),
            held: ResourceType::ALL.map(|t| (t, BTreeMap::new())).into(),
            routes: BTreeSet::from(["r0".to_owned()]),
            unanswered: BTreeMap::new(),
            ever_bad: world.bad.is_some(),
            notices: Vec::new(),
        };
        envoy.reconnect(0);
        envoy
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Publish(world) => self.publish(&world),
            Op::Read(n) => self.read(n),
            Op::Answer(n) => self.answer(ResourceType::ALL[n % 6]),
            Op::SubscribeRoutes(n) => {
                let name = format!("r{}", n % 2);
                self.routes.insert(name.clone());
                self.send(Rds, &[name], &[]);
            }
            Op::UnsubscribeRoutes(n) => {
                let name = format!("r{}", n % 2);
                self.routes.remove(&name);
                self.of(Rds).remove(name.as_str());
                self.send(Rds, &[], &[name]);
            }
            Op::AskEndpointsAgain(n) => {
                let clusters: Vec<_> = self.of(Cds).keys().map(|n| n.to_string()).collect();
                if let Some(name) = clusters.get(n % clusters.len().max(1)) {
                    self.send(Eds, std::slice::from_ref(name), &[]);
                }
            }
            Op::Stale(n) => {
                let request = DeltaRequest {
                    nonce: "0".into(),
                    error: Some("stale".into()),
                    ..DeltaRequest::default()
                };
                let resource_type = ResourceType::ALL[n % 6];
                if resource_type != Sds {
                    self.session.on_request(self.now, resource_type, request);
                }
            }
            Op::Wait(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.session.on_timer(self.now);
            }
            Op::Reconnect(order) => self.reconnect(order),
        }
    }

    fn publish(&mut self, world: &World) {
        self.ever_bad |= world.bad.is_some();
        self.view = view(world.resources());
        self.session.on_view(self.now, &self.view);
    }

    fn of(&mut self, t: ResourceType) -> &mut BTreeMap<Arc<str>, Arc<EncodedResource>> {
        self.held.get_mut(&t).unwrap()
    }

    fn send(&mut self, resource_type: ResourceType, subscribe: &[String], unsubscribe: &[String]) {
        let request = DeltaRequest {
            subscribe: subscribe.to_vec(),
            unsubscribe: unsubscribe.to_vec(),
            ..DeltaRequest::default()
        };
        self.session.on_request(self.now, resource_type, request);
    }

    fn reconnect(&mut self, order: usize) {
        self.session = Session::new(self.settings.clone());
        self.now = Duration::ZERO;
        self.unanswered.clear();
        self.notices.clear();
        let mut types = vec![Eds, Lds, Rds, Vhds, Cds];
        types.rotate_left(order % 5);
        if order.is_multiple_of(2) {
            self.session.on_view(self.now, &self.view);
        }
        for resource_type in types {
            let held = self.of(resource_type).values();
            let held: Vec<_> = held.map(|r| (**r).clone()).collect();
            let request = DeltaRequest {
                subscribe: match resource_type {
                    Eds => self.of(Cds).keys().map(|n| n.to_string()).collect(),
                    Rds => self.routes.iter().cloned().collect(),
                    _ => vec![],
                },
                initial_resource_versions: super::dsl::held(&held),
                nonce: "1".into(),
                ..DeltaRequest::default()
            };
            self.session.on_request(self.now, resource_type, request);
        }
        self.session.on_view(self.now, &self.view);
    }

    fn read(&mut self, n: usize) {
        for _ in 0..n {
            let Some(response) = self.session.poll_output() else {
                return;
            };
            self.notices.extend(self.session.take_notices());
            self.check(&response);
            self.receive(response);
            let unsplit = self.settings.response_bytes > 1000;
            for status in self.session.status(self.now).into_iter().filter(|_| unsplit) {
                assert!(status.pushes <= 1, "two un-ACKed pushes: {status:?}");
            }
        }
    }

    fn check(&self, response: &Response) {
        let t = response.resource_type;
        assert!(response.resources.is_empty() || response.removed.is_empty());
        let names: BTreeSet<_> = response.resources.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), response.resources.len());
        let noticed = |resource: &ResourceRef| {
            self.notices.iter().any(|notice| match notice {
                Notice::SentBeforeReference { resource: r, .. }
                | Notice::RemovedWhileReferenced { resource: r } => r == resource,
            })
        };
        for resource in &response.resources {
            let this = ResourceRef::new(t, resource.name().clone());
            let acked = self.session.held(Cds);
            let missing = |r: &&ResourceRef| !acked.contains_key(&r.name);
            if let Some(missing) = resource.refs().iter().find(missing) {
                // A notice is given when the plan is made, which may be a few responses ago.
                let waited = self.now >= Duration::from_secs(10);
                assert!(waited || noticed(&this), "{resource:?} before {missing:?}");
            }
            if t == Vhds {
                let parent = resource.name().split_once('/').unwrap().0;
                assert!(self.held[&Rds].contains_key(parent), "{resource:?} too early");
            }
        }
        for name in response.removed.iter().filter(|_| t == Cds) {
            let this = ResourceRef::new(Cds, name.clone());
            let mut users = self.held.values().flat_map(|held| held.values());
            let user = users.find(|user| user.refs().contains(&this));
            assert!(user.is_none() || noticed(&this), "{name} removed, but {user:?} uses it");
        }
    }

    fn receive(&mut self, response: Response) {
        let t = response.resource_type;
        let refused = |r: &&Arc<EncodedResource>| String::from_utf8_lossy(&r.body()).contains(BAD);
        let bad = response.resources.iter().find(refused).map(|r| r.name().clone());
        let mut error = bad.clone().map(|name| match t {
            Cds => format!("Error adding/updating cluster(s) {name}: bad"),
            _ => "bad".to_owned(),
        });
        let mut next = self.held[&t].clone();
        for resource in &response.resources {
            if bad.is_none() || (t == Cds && bad.as_ref() != Some(resource.name())) {
                next.insert(resource.name().clone(), resource.clone());
            }
        }
        for name in &response.removed {
            next.remove(name);
        }
        if t == Vhds && error.is_none() && has_shared_domain(&next) {
            assert!(self.ever_bad, "a domain twice after {response:?}");
            error = Some("duplicate domain".to_owned());
        }
        if error.is_none() || t == Cds {
            let before = self.held.insert(t, next).unwrap();
            if t == Cds {
                self.follow_clusters(&before);
            }
        }
        let queue = self.unanswered.entry(t).or_default();
        queue.push_back((response, error));
    }

    /// Envoy asks for the endpoints of new clusters and drops those of removed ones.
    fn follow_clusters(&mut self, before: &BTreeMap<Arc<str>, Arc<EncodedResource>>) {
        let now: BTreeSet<_> = self.of(Cds).keys().cloned().collect();
        let before: BTreeSet<_> = before.keys().cloned().collect();
        let new: Vec<_> = now.difference(&before).map(|n| n.to_string()).collect();
        let gone: Vec<_> = before.difference(&now).map(|n| n.to_string()).collect();
        for name in &gone {
            self.of(Eds).remove(name.as_str());
        }
        if !(new.is_empty() && gone.is_empty()) {
            self.send(Eds, &new, &gone);
        }
    }

    fn answer(&mut self, resource_type: ResourceType) {
        let queue = self.unanswered.entry(resource_type).or_default();
        if let Some((response, error)) = queue.pop_front() {
            let request = DeltaRequest { nonce: response.nonce, error, ..DeltaRequest::default() };
            self.session.on_request(self.now, resource_type, request);
        }
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.read(usize::MAX);
            if self.unanswered.values().all(VecDeque::is_empty) {
                match self.session.next_deadline() {
                    Some(deadline) => self.apply(Op::Wait((deadline - self.now).as_secs() + 1)),
                    None if self.session.wants_output() => {}
                    None => return,
                }
            }
            ResourceType::ALL.into_iter().for_each(|t| self.answer(t));
        }
        panic!("it never becomes quiet");
    }

    fn check_converged(&mut self) {
        let view = self.view.clone();
        for status in self.session.status(self.now) {
            let t = status.resource_type;
            assert_eq!((status.in_flight, status.unanswered), (0, false), "{t}");
            assert_eq!(status.sent_version, status.acked_version, "{t}");
        }
        for t in [Cds, Lds, Rds, Vhds] {
            let offered = view.resources(t);
            let wanted = offered.filter(|(name, _)| match t {
                Rds => self.routes.contains(&***name),
                Vhds => self.routes.contains(name.split_once('/').unwrap().0),
                _ => true,
            });
            let wanted: BTreeMap<_, _> = wanted.map(|(n, r)| (n.clone(), r.version())).collect();
            let held = self.held[&t].iter().map(|(n, r)| (n.clone(), r.version()));
            assert_eq!(held.collect::<BTreeMap<_, _>>(), wanted, "{t} held");
            assert_eq!(self.session.held(t), wanted, "{t} believed to be held");
        }
        for (name, _) in view.resources(Cds) {
            let held = &self.held[&Eds][name];
            match view.get(Eds, name) {
                Some(offered) => assert_eq!(held.version(), offered.version()),
                None => assert!(held.body().starts_with(b"\x0a")),
            }
        }
    }
}

fn has_shared_domain(hosts: &BTreeMap<Arc<str>, Arc<EncodedResource>>) -> bool {
    let mut seen = BTreeSet::new();
    let mut claims = hosts.iter().flat_map(|(name, host)| {
        let parent = name.split_once('/').unwrap().0;
        host.claims().iter().map(move |domain| (parent, domain))
    });
    claims.any(|claim| !seen.insert(claim))
}

pub(super) fn world(bad: bool) -> impl Strategy<Value = World> {
    let bad = if bad { proptest::option::of(0usize..13).boxed() } else { Just(None).boxed() };
    (
        any::<[u32; 4]>(),
        any::<[(u32, u8); 3]>(),
        any::<[u32; 2]>(),
        any::<[(u32, u8); 6]>(),
        any::<[u8; 4]>(),
        bad,
    )
        .prop_map(|(clusters, listeners, routes, hosts, domains, bad)| World {
            base: 0,
            clusters: clusters.map(|v| v % 3),
            listeners: listeners.map(|(v, c)| (v % 3, c.into())),
            routes: routes.map(|v| v % 3),
            hosts: hosts.map(|(v, c)| (v % 3, c.into())),
            domains: domains.map(|to| usize::from(to) % 8),
            bad,
        })
}

fn op(bad: bool) -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => world(bad).prop_map(|world| Op::Publish(Box::new(world))),
        6 => (1usize..6).prop_map(Op::Read),
        8 => (0usize..6).prop_map(Op::Answer),
        1 => (0usize..2).prop_map(Op::SubscribeRoutes),
        1 => (0usize..2).prop_map(Op::UnsubscribeRoutes),
        1 => (0usize..4).prop_map(Op::AskEndpointsAgain),
        1 => (0usize..6).prop_map(Op::Stale),
        2 => (1u64..9).prop_map(Op::Wait),
        1 => (0usize..10).prop_map(Op::Reconnect),
    ]
}

/// Responses are split at `response_bytes`.
fn run(response_bytes: usize, first: World, ops: Vec<Op>, mut last: World) {
    let mut envoy = Envoy::connect(Settings { response_bytes, ..Settings::default() }, &first);
    for op in ops {
        envoy.apply(op);
    }
    // New content everywhere: nothing of it was refused before.
    last.base = 100;
    last.bad = None;
    envoy.publish(&last);
    envoy.settle();
    envoy.check_converged();
    envoy.reconnect(1);
    while let Some(response) = envoy.session.poll_output() {
        assert!(response.resources.is_empty(), "sent again: {response:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn r107_after_quiet_the_proxy_holds_what_is_offered(
        split in prop_oneof![Just(1), Just(200), Just(2 << 20)],
        first in world(false),
        ops in proptest::collection::vec(op(false), 0..60),
        last in world(false),
    ) {
        run(split, first, ops, last);
    }

    #[test]
    fn r107_rejections_on_the_way_do_not_keep_it_from_converging(
        split in prop_oneof![Just(1), Just(200), Just(2 << 20)],
        first in world(true),
        ops in proptest::collection::vec(op(true), 0..60),
        last in world(true),
    ) {
        run(split, first, ops, last);
    }
}
