//! Connections that get lost, on a simulated network with a simulated clock: whatever it drops,
//! holds and reorders, and however often the server dies, in the end every proxy holds what is
//! offered, nothing was sent without cause, and the server keeps nothing of streams that are gone.
//!
//! A run is a function of its input, so a failure prints all that it takes to see it again.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use envoy_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Endpoint, Server};
use turmoil::net::{TcpListener, TcpStream};
use turmoil::{Builder, Sim};
use xds::{Options, Publisher, ResourceType, ScopeView, Stats, XdsServer};

use super::dsl::*;
use super::model::{World, world};
use super::server::{Gate, request};

const SERVER: &str = "server";
const PORT: u16 = 15010;
const PROXIES: usize = 3;
const TICK: Duration = Duration::from_millis(50);
/// By then both sides have noticed by keepalive what is gone, and waits for references are over.
const QUIET: Duration = Duration::from_secs(120);

/// What happens next; numbers name proxies.
#[derive(Clone, Debug)]
enum Step {
    Publish(Box<World>),
    Partition(usize),
    Repair(usize),
    /// What is sent waits until it is released.
    Hold(usize),
    Release(usize),
    /// The server dies, and the next one starts.
    Restart,
    /// Time passes, in milliseconds.
    Pass(u64),
}

/// The simulated network's connection, as tonic's server wants it.
struct Accepted(TcpStream);

/// What a proxy holds across its streams.
#[derive(Default)]
struct Held {
    versions: BTreeMap<ResourceType, BTreeMap<String, String>>,
    streams: usize,
}

/// What was asked for or sent on one stream, so that more of it may come.
#[derive(Default)]
struct Owed(BTreeSet<(ResourceType, String)>);

/// The server's parts that outlive or replace each other.
struct Plane {
    gate: Arc<Gate>,
    /// Of the server that runs.
    stats: Mutex<Arc<Stats>>,
}

// === impl Accepted ===

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

// === impl Plane ===

impl Plane {
    fn new(offered: Arc<ScopeView>) -> Self {
        let publisher = Arc::new(Publisher::default());
        publisher.publish(publication(1, offered));
        Self { gate: Arc::new(Gate::new(true, publisher)), stats: Mutex::default() }
    }

    fn stats(&self) -> MutexGuard<'_, Arc<Stats>> {
        self.stats.lock().unwrap()
    }

    /// One life of the server.
    async fn serve(&self) -> Result<(), Box<dyn Error>> {
        let (events, _nobody) = mpsc::channel(16);
        let (_runs, closing) = watch::channel(false);
        let options = Options::new("replica-1", events, closing);
        *self.stats() = options.stats.clone();
        let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
        let (accepted, incoming) = mpsc::channel(16);
        let serving = Server::builder()
            // As the controller does.
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .add_service(XdsServer::new(self.gate.clone(), options))
            .serve_with_incoming(ReceiverStream::new(incoming));
        let accepting = async {
            loop {
                let stream = listener.accept().await.map(|(stream, _)| Accepted(stream));
                accepted.send(stream).await.expect("somebody serves");
            }
        };
        tokio::select! {
            served = serving => Ok(served?),
            () = accepting => Ok(()),
        }
    }
}

// === impl Held ===

impl Held {
    fn of(&mut self, kind: ResourceType) -> &mut BTreeMap<String, String> {
        self.versions.entry(kind).or_default()
    }

    fn names(&mut self, kind: ResourceType) -> Vec<String> {
        self.of(kind).keys().cloned().collect()
    }

    /// The requests that begin a stream, in Envoy's order.
    fn first_requests(&mut self, node: &str, owed: &mut Owed) -> Vec<DeltaDiscoveryRequest> {
        let mut node = Some(node);
        let mut first = |kind| DeltaDiscoveryRequest {
            initial_resource_versions: self.of(kind).clone().into_iter().collect(),
            resource_names_subscribe: match kind {
                Eds => self.names(Cds),
                Rds => vec!["r0".to_owned()],
                _ => vec![],
            },
            ..request(node.take(), kind)
        };
        let requests = [Eds, Lds, Rds, Vhds, Cds].map(&mut first);
        // Without endpoints from before, it waits for some.
        let without = self.names(Cds).into_iter().filter(|name| !self.of(Eds).contains_key(name));
        owed.0.extend(without.map(|name| (Eds, name)));
        requests.into()
    }

    /// Take in a response. Out: the requests that follow from it.
    fn receive(
        &mut self,
        response: &DeltaDiscoveryResponse,
        owed: &mut Owed,
    ) -> Vec<DeltaDiscoveryRequest> {
        let kind = ResourceType::from_type_url(&response.type_url).expect("a type");
        let before = self.names(kind);
        for resource in &response.resources {
            let name = &resource.name;
            if kind == Eds && !self.of(Cds).contains_key(name) {
                // It was sent before the server heard that the cluster is gone.
                continue;
            }
            let old = self.of(kind).insert(name.clone(), resource.version.clone());
            let parent = match kind {
                Vhds => name.split_once('/').expect("a parent").0,
                _ => name,
            };
            assert!(
                old.as_ref() != Some(&resource.version)
                    || owed.0.contains(&(kind, parent.to_owned())),
                "{kind} {name} is sent although it is held"
            );
            match kind {
                Cds => owed.0.insert((Eds, name.clone())),
                Rds => owed.0.insert((Vhds, name.clone())),
                _ => false,
            };
        }
        for name in &response.removed_resources {
            self.of(kind).remove(name);
        }
        let mut requests = vec![DeltaDiscoveryRequest {
            response_nonce: response.nonce.clone(),
            ..request(None, kind)
        }];
        if kind == Cds {
            let now = self.names(Cds);
            let new = now.iter().filter(|name| !before.contains(name)).cloned();
            let gone = before.iter().filter(|name| !now.contains(name)).cloned();
            let (new, gone): (Vec<_>, Vec<_>) = (new.collect(), gone.collect());
            gone.iter().for_each(|name| drop(self.of(Eds).remove(name)));
            if !(new.is_empty() && gone.is_empty()) {
                requests.push(DeltaDiscoveryRequest {
                    resource_names_subscribe: new,
                    resource_names_unsubscribe: gone,
                    ..request(None, Eds)
                });
            }
        }
        requests
    }
}

/// One stream of a proxy, to its end.
async fn stream(node: &str, held: &Mutex<Held>) -> Result<(), Box<dyn Error>> {
    let connect = |_| async { TcpStream::connect((SERVER, PORT)).await.map(TokioIo::new) };
    let channel = Endpoint::from_static("http://server")
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(5))
        .connect_with_connector(tower::service_fn(connect))
        .await?;
    let (requests, outgoing) = mpsc::channel(64);
    let mut owed = Owed::default();
    let first = held.lock().unwrap().first_requests(node, &mut owed);
    for request in first {
        requests.send(request).await?;
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let answer = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?;
    held.lock().unwrap().streams += 1;
    let mut responses = answer.into_inner();
    while let Some(response) = responses.message().await? {
        let next = held.lock().unwrap().receive(&response, &mut owed);
        for request in next {
            requests.send(request).await?;
        }
    }
    Ok(())
}

fn pass(sim: &mut Sim<'_>, time: Duration) {
    let end = sim.elapsed() + time;
    while sim.elapsed() < end {
        sim.step().expect("nobody fails");
    }
}

fn run(seed: u64, first: World, steps: Vec<Step>, mut last: World) {
    let plane = Arc::new(Plane::new(view(first.resources())));
    let mut sim = Builder::new()
        .rng_seed(seed)
        .enable_random_order()
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(200))
        .simulation_duration(Duration::from_secs(3600))
        .tcp_capacity(4096)
        .build();
    let serving = plane.clone();
    sim.host(SERVER, move || {
        let plane = serving.clone();
        async move { plane.serve().await }
    });
    let proxies: Vec<_> = (0..PROXIES).map(|n| (format!("proxy-{n}"), Arc::default())).collect();
    for (name, held) in &proxies {
        let (node, held): (String, Arc<Mutex<Held>>) = (name.clone(), Arc::clone(held));
        sim.host(name.as_str(), move || {
            let (node, held) = (node.clone(), held.clone());
            async move {
                loop {
                    let _ended = stream(&node, &held).await;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        });
    }
    let mut revision = 1;
    let mut publish = |world: &World| {
        revision += 1;
        plane.gate.publisher.publish(publication(revision, view(world.resources())));
    };
    let name = |n: usize| proxies[n % PROXIES].0.as_str();
    for step in steps {
        match step {
            Step::Publish(world) => publish(&world),
            Step::Partition(n) => sim.partition(SERVER, name(n)),
            Step::Repair(n) => sim.repair(SERVER, name(n)),
            Step::Hold(n) => sim.hold(SERVER, name(n)),
            Step::Release(n) => sim.release(SERVER, name(n)),
            Step::Restart => sim.bounce(SERVER),
            Step::Pass(milliseconds) => pass(&mut sim, Duration::from_millis(milliseconds)),
        }
    }
    for (name, _) in &proxies {
        sim.release(SERVER, name.as_str());
        sim.repair(SERVER, name.as_str());
    }
    last.base = 100;
    publish(&last);
    pass(&mut sim, QUIET);
    let offered = view(last.resources());
    for (name, held) in &proxies {
        let mut held = held.lock().unwrap();
        assert!(held.streams > 0, "{name} never had a stream");
        for kind in [Cds, Lds, Rds, Vhds] {
            let wanted = offered.resources(kind).filter(|(name, _)| match kind {
                Rds => &***name == "r0",
                Vhds => name.starts_with("r0/"),
                _ => true,
            });
            let wanted = wanted.map(|(name, r)| (name.to_string(), r.version().to_string()));
            assert_eq!(*held.of(kind), wanted.collect(), "{kind} of {name}");
        }
        assert_eq!(held.names(Eds), held.names(Cds), "clusters of {name} with endpoints");
        for (of, version) in held.of(Eds).clone() {
            let offered = offered.get(Eds, &of).map(|r| r.version().to_string());
            assert!(offered.is_none_or(|offered| offered == version), "endpoints of {of}, {name}");
        }
    }
    let streams: usize = proxies.iter().map(|(_, held)| held.lock().unwrap().streams).sum();
    println!("seed {seed}: {streams} streams in {:?} of simulated time", sim.elapsed());
    let open = plane.gate.open.load(Ordering::SeqCst);
    let counted = plane.stats().streams.get();
    assert_eq!((open, counted), (PROXIES, PROXIES as u64), "streams that the server keeps");
}

fn step() -> impl Strategy<Value = Step> {
    let proxy = || 0..PROXIES;
    prop_oneof![
        4 => world(false).prop_map(|world| Step::Publish(Box::new(world))),
        2 => proxy().prop_map(Step::Partition),
        2 => proxy().prop_map(Step::Repair),
        2 => proxy().prop_map(Step::Hold),
        2 => proxy().prop_map(Step::Release),
        1 => Just(Step::Restart),
        6 => (0_u64..2_000).prop_map(Step::Pass),
        1 => (20_000_u64..60_000).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 6,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn r107_whatever_the_network_loses_all_hold_what_is_offered_in_the_end(
        seed in any::<u64>(),
        first in world(false),
        steps in proptest::collection::vec(step(), 0..60),
        last in world(false),
    ) {
        run(seed, first, steps, last);
    }
}
