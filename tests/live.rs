//! Real Envoys under traffic, while the files of their mesh are edited at random: a gateway, and a
//! gateway with two sidecars in namespaces of their own (root), one of them by state of the world.
//!
//! In: `ENVOY_BIN`; `HEDDLE_LIVE_SEED` and `HEDDLE_LIVE_EDITS` to choose a run. Out: every answer
//! that no state of the mesh allows which was valid while it was asked for.
//!
//! A state is valid from its writing until 250 ms after the ACK of the next: Envoy's workers swap
//! after the ACK. A 404 needs a state without a route for the host; nothing allows a 503.
//!
//! **Invariant:** what is allowed is computed before the answers are seen.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use envoy_api::bootstrap::{Bootstrap, Protocol};
use house::backend::Backend;
use house::client::Client;
use house::mesh::{Controller, Envoy, GATEWAY_NODE, free_address, free_address_of, replace};
use house::namespace::{self, Neighbour};
use house::process::built;
use house::world::{Allowed, Edit, World};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;

const SWAP: Duration = Duration::from_millis(250);
/// Time that a listener takes to go at most.
const DRAINED: Duration = Duration::from_secs(10);
const CLIENTS: u64 = 4;
const LEAST_OF_EACH: usize = 10;

/// What the mesh said for some time.
struct State {
    /// The edit that made it.
    by: String,
    from: Instant,
    until: Option<Instant>,
    allowed: Allowed,
}

/// What came back.
struct Seen {
    host: String,
    began: Instant,
    ended: Instant,
    /// How it is answered when the mesh has no route.
    absent: &'static str,
    /// Backend, or what there was instead.
    outcome: Result<String, String>,
}

/// A proxy that the test asks.
struct Proxy {
    node: &'static str,
    envoy: Envoy,
    address: SocketAddr,
    /// How it answers for a host that has no route.
    absent: &'static str,
}

/// Where everything is.
struct Place {
    gateway: SocketAddr,
    xds: SocketAddr,
    world: World,
    backend_port: u16,
    sidecars: Vec<(Neighbour, Ipv4Addr, Protocol, &'static str)>,
}

#[derive(Default)]
struct Shared {
    hosts: Mutex<Vec<String>>,
    stop: AtomicBool,
}

#[test]
fn given_traffic_when_the_mesh_is_edited_at_random_then_every_answer_is_allowed() {
    let Some(envoy) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    let controller = built(env!("CARGO"), "heddle-controller").expect("a controller");
    run(&envoy, &controller, 200, Place::of_a_gateway);
}

#[test]
fn given_a_gateway_and_two_sidecars_when_the_mesh_is_edited_then_every_answer_is_allowed() {
    let Some(envoy) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    let controller =
        || Ok(built(env!("CARGO"), "heddle-controller")?.to_string_lossy().into_owned());
    if namespace::is_within(controller) {
        let controller = PathBuf::from(namespace::carried());
        run(&envoy, &controller, 35, Place::of_a_mesh);
    }
}

fn run(
    envoy: &Path,
    controller: &Path,
    edits: u64,
    place: impl Fn(&Path, &mut StdRng) -> Result<Place>,
) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("HEDDLE_LIVE_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let edits = number("HEDDLE_LIVE_EDITS").unwrap_or(edits);
    eprintln!("seed {seed} (HEDDLE_LIVE_SEED repeats the edits)");
    let mut rng = StdRng::seed_from_u64(seed);
    let work = tempfile::tempdir().expect("a folder");
    let result = place(work.path(), &mut rng).and_then(|place| {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(live(envoy, controller, place, work.path(), rng, seed, edits as usize))
    });
    result.unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
}

async fn live(
    envoy: &Path,
    controller: &Path,
    place: Place,
    work: &Path,
    mut rng: StdRng,
    seed: u64,
    edits: usize,
) -> Result<()> {
    let Place { gateway, xds, mut world, backend_port, sidecars } = place;
    let directory = work.join("mesh");
    std::fs::create_dir(&directory)?;
    let mut backends = BTreeMap::new();
    start_backends(&world, backend_port, &mut backends).await?;
    for (file, text) in world.files() {
        std::fs::write(directory.join(file), text)?;
    }
    let log = work.join("controller.log");
    let mut controller = Controller::launch_at(controller, &directory, &log, xds, &[])?;
    controller.ready().await?;
    let proxy = Envoy::start(envoy, xds, work).await?;
    let mut proxies =
        vec![Proxy { node: GATEWAY_NODE, envoy: proxy, address: gateway, absent: "404" }];
    for (place, address, protocol, node) in &sidecars {
        proxies.push(sidecar(envoy, place, *address, *protocol, node, xds, work).await?);
    }
    let mut admin = Client::new(controller.admin);
    for proxy in &proxies {
        controller.synced(proxy.node, 0).await?;
        first_answers(proxy.address, &world).await?;
    }

    let shared = Arc::new(Shared::default());
    let first = State {
        by: "start".to_owned(),
        from: Instant::now(),
        until: None,
        allowed: world.allowed(),
    };
    let mut states = vec![first];
    shared.publish(&states);
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        for proxy in &proxies {
            let (address, absent) = (proxy.address, proxy.absent);
            clients.spawn(send(address, absent, Arc::clone(&shared), seed + number));
        }
    }
    let began = Instant::now();
    let mut latencies = Vec::new();
    for (index, edit) in plan(edits, &mut rng).into_iter().enumerate() {
        for part in 0.. {
            let revision = controller.revision(&mut admin).await?;
            let Some((file, content)) = world.edit(edit, part, &mut rng) else { break };
            start_backends(&world, backend_port, &mut backends).await?;
            let from = Instant::now();
            let by = format!("edit {index} ({edit:?}, part {part}) of {file}");
            states.push(State { by: by.clone(), from, until: None, allowed: world.allowed() });
            shared.publish(&states);
            match content {
                Some(text) => replace(&directory.join(file), &text)?,
                None => std::fs::remove_file(directory.join(file))?,
            }
            for proxy in &mut proxies {
                let settled = controller.settled(proxy.node, revision).await;
                let state = settled.with_context(|| by.clone())?;
                ensure!(state.rejected == 0, "{by} was rejected: {:?}", state.errors);
                proxy.envoy.check()?;
            }
            let now = Instant::now();
            latencies.push(now - from);
            let previous = states.len() - 2;
            states[previous].until = Some(now + SWAP);
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..40))).await;
            stop_backends(&world, &states, &mut backends);
        }
    }
    tokio::time::sleep(2 * SWAP).await;
    let took = began.elapsed();
    shared.stop.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> = clients.join_all().await.into_iter().flatten().collect();

    let failures: Vec<String> = seen.iter().filter_map(|seen| judge(seen, &states)).collect();
    let shown: Vec<&str> = failures.iter().take(10).map(String::as_str).collect();
    eprintln!(
        "{edits} edits in {took:.1?}, {} requests, {} failed, from writing to the last ACK p50 {:.1?}, \
         p99 {:.1?}",
        seen.len(),
        failures.len(),
        house::statistics::percentile(&mut latencies, 50),
        house::statistics::percentile(&mut latencies, 99),
    );
    ensure!(
        failures.is_empty(),
        "{} answers are not allowed:\n{}",
        failures.len(),
        shown.join("\n")
    );
    ensure!(seen.len() > 10 * edits, "only {} requests were sent", seen.len());
    for proxy in &proxies {
        at_the_end(&controller, proxy).await.context(proxy.node)?;
    }
    if let [_, delta, whole] = &proxies[..] {
        // A listener that was taken away lately keeps its routes until its connections are gone.
        let deadline = Instant::now() + DRAINED;
        loop {
            let (delta, whole) = (delta.envoy.state().await?, whole.envoy.state().await?);
            let differing = delta.iter().filter(|(name, body)| whole.get(*name) != Some(body));
            let differing: Vec<_> = differing.map(|(name, _)| name).collect();
            if differing.is_empty() && delta.keys().eq(whole.keys()) {
                let of = |name: &str| delta.keys().filter(|key| key.starts_with(name)).count();
                ensure!(of("dynamic_route_configs") > 0, "no routes in {:?}", delta.keys());
                break;
            }
            ensure!(Instant::now() < deadline, "by delta and whole differ: {differing:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    drop(proxies);
    controller.stop()
}

/// Start the sidecar of a namespace: what comes to its port 80 is taken as what its workload sends.
async fn sidecar(
    envoy: &Path,
    place: &Neighbour,
    address: Ipv4Addr,
    protocol: Protocol,
    node: &'static str,
    xds: SocketAddr,
    work: &Path,
) -> Result<Proxy> {
    let bootstrap = Bootstrap {
        node_id: node.to_owned(),
        cluster: "sidecar".to_owned(),
        xds_host: xds.ip().to_string(),
        xds_port: xds.port(),
        protocol,
        admin_address: Some((address.to_string(), 15000)),
        ..Default::default()
    };
    let work = work.join(address.to_string());
    std::fs::create_dir(&work)?;
    let file = work.join("envoy.json");
    std::fs::write(&file, bootstrap.to_json().to_string())?;
    let program = place.within(envoy, &work)?;
    let admin = SocketAddr::from((address, 15000));
    let envoy = Envoy::from_file(&program, &file, admin, &work).await?;
    Ok(Proxy { node, envoy, address: SocketAddr::from((address, 80)), absent: "502" })
}

/// Nothing rejected, nothing warming, everything synced.
async fn at_the_end(controller: &Controller, proxy: &Proxy) -> Result<()> {
    let Proxy { node, envoy: proxy, .. } = proxy;
    let mut admin = Client::new(controller.admin);
    let state = controller.sync_state(&mut admin, node).await?.context("connected")?;
    ensure!(state.synced && state.rejected == 0, "not synced: {:#}", state.page);
    let warming = proxy.warming().await?;
    ensure!(warming.is_empty(), "warming at the end: {warming:?}");
    let stats = proxy.page("/stats?format=json&filter=update_rejected").await?;
    let rejected = stats["stats"].as_array().into_iter().flatten();
    let rejected: Vec<_> =
        rejected.filter(|s| s["value"].as_u64().is_some_and(|n| n > 0)).collect();
    ensure!(rejected.is_empty(), "Envoy rejected updates: {rejected:?}");
    Ok(())
}

/// Each kind at least ten times, the rest at random, in random order.
fn plan(edits: usize, rng: &mut StdRng) -> Vec<Edit> {
    let mut plan: Vec<Edit> = Edit::ALL.into_iter().cycle().take(LEAST_OF_EACH * 7).collect();
    while plan.len() < edits {
        plan.extend(Edit::ALL.choose(rng));
    }
    plan.shuffle(rng);
    plan.truncate(edits);
    plan
}

async fn start_backends(
    world: &World,
    port: u16,
    backends: &mut BTreeMap<Ipv4Addr, Backend>,
) -> Result<()> {
    for address in world.backends() {
        if let Entry::Vacant(entry) = backends.entry(address) {
            let socket = SocketAddr::from((address, port));
            entry.insert(Backend::start(socket, &address.to_string()).await?);
        }
    }
    Ok(())
}

/// Stop backends that neither the mesh nor a state names which was valid within the last second:
/// requests that were on their way have ended.
fn stop_backends(world: &World, states: &[State], backends: &mut BTreeMap<Ipv4Addr, Backend>) {
    let now = Instant::now();
    let recent = states
        .iter()
        .rev()
        .take_while(|state| state.until.is_none_or(|until| until + Duration::from_secs(1) > now));
    let named: BTreeSet<&String> = recent.flat_map(|s| s.allowed.values().flatten()).collect();
    let used = world.backends();
    backends.retain(|address, _| used.contains(address) || named.contains(&address.to_string()));
}

/// Wait until every host answers: a listener may open a moment after its ACK.
async fn first_answers(gateway: SocketAddr, world: &World) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    for host in world.allowed().keys() {
        while !Client::new(gateway).get(host, "/").await.is_ok_and(|a| a.status == 200) {
            ensure!(Instant::now() < deadline, "{host} is not served at the start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

async fn send(
    gateway: SocketAddr,
    absent: &'static str,
    shared: Arc<Shared>,
    seed: u64,
) -> Vec<Seen> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut client = Client::new(gateway);
    let mut seen = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        // Some requests open a connection, which may be to another worker.
        if rng.random_range(0..20) == 0 {
            client = Client::new(gateway);
        }
        let Some(host) = shared.hosts().choose(&mut rng).cloned() else { continue };
        let began = Instant::now();
        let outcome = match client.get(&host, "/").await {
            Ok(answer) => match (answer.status.as_u16(), answer.backend) {
                (200, Some(backend)) => Ok(backend),
                (status, _) => Err(format!("{status} {}", String::from_utf8_lossy(&answer.body))),
            },
            Err(error) => Err(format!("{error:#}")),
        };
        seen.push(Seen { host, began, ended: Instant::now(), absent, outcome });
    }
    seen
}

/// Why an answer is not allowed, if so.
fn judge(seen: &Seen, states: &[State]) -> Option<String> {
    let Seen { host, began, ended, absent, outcome } = seen;
    let valid = states
        .iter()
        .filter(|state| state.from <= *ended && state.until.is_none_or(|until| until >= *began));
    let valid: Vec<&State> = valid.collect();
    let allowed = valid.iter().any(|state| match (state.allowed.get(host), outcome) {
        (Some(backends), Ok(backend)) => backends.contains(backend),
        (None, Err(text)) => text.starts_with(absent),
        (Some(_), Err(_)) | (None, Ok(_)) => false,
    });
    if allowed {
        return None;
    }
    let since = |state: &State| {
        format!(
            "{}, {:?} before the answer: {:?}",
            state.by,
            *ended - state.from,
            state.allowed.get(host)
        )
    };
    let states: Vec<String> = valid.into_iter().map(since).collect();
    Some(format!("{host}: {outcome:?}; valid were\n    {}", states.join("\n    ")))
}

// === impl Place ===

impl Place {
    fn of_a_gateway(_: &Path, rng: &mut StdRng) -> Result<Self> {
        let gateway = free_address()?;
        let backend_port = free_address_of(Ipv4Addr::new(127, 88, 0, 1))?.port();
        let world = World::new(gateway, backend_port, rng);
        Ok(Self { gateway, xds: free_address()?, world, backend_port, sidecars: Vec::new() })
    }

    /// Everything but the sidecars is in this namespace, at addresses that they reach.
    fn of_a_mesh(work: &Path, rng: &mut StdRng) -> Result<Self> {
        namespace::run("ip link set lo up")?;
        namespace::run("ip address add 10.9.0.1/32 dev lo")?;
        namespace::run("ip route add local 10.88.0.0/16 dev lo")?;
        let gateway = free_address()?;
        let world = World::of_mesh(gateway, 8080, [10, 88], rng);
        let mut sidecars = Vec::new();
        for (name, last, protocol, node) in [
            ("delta", 2, Protocol::Delta, "sidecar~10.9.0.2~a.default~default.svc.cluster.local"),
            ("whole", 3, Protocol::Sotw, "sidecar~10.9.0.3~b.default~default.svc.cluster.local"),
        ] {
            let address = Ipv4Addr::new(10, 9, 0, last);
            let place = Neighbour::start(name, &[address.into()], work)?;
            let redirect = "--dport 80 -j REDIRECT --to-ports 15001";
            place.run(&format!("iptables -t nat -A PREROUTING -p tcp {redirect}"))?;
            sidecars.push((place, address, protocol, node));
        }
        let xds = SocketAddr::from(([10, 9, 0, 1], 15010));
        Ok(Self { gateway, xds, world, backend_port: 8080, sidecars })
    }
}

// === impl Shared ===

impl Shared {
    fn hosts(&self) -> Vec<String> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hosts of the last states: those that are new, that stay, and that just went.
    fn publish(&self, states: &[State]) {
        let recent = states.iter().rev().take(3);
        let hosts: BTreeSet<&String> = recent.flat_map(|state| state.allowed.keys()).collect();
        let hosts = hosts.into_iter().cloned().collect();
        *self.hosts.lock().unwrap_or_else(PoisonError::into_inner) = hosts;
    }
}

mod judge {
    //! The judge itself, on answers made up.

    use super::*;

    fn state(from: Instant, until: Option<Instant>, backend: Option<&str>) -> State {
        let backends = |name: &str| BTreeSet::from([name.to_owned()]);
        let allowed = backend.map(|name| ("a".to_owned(), backends(name))).into_iter().collect();
        State { by: "test".to_owned(), from, until, allowed }
    }

    fn refused(outcome: Result<&str, &str>, at: Instant, states: &[State]) -> bool {
        let outcome = outcome.map(str::to_owned).map_err(str::to_owned);
        let seen = Seen { host: "a".to_owned(), began: at, ended: at, absent: "404", outcome };
        judge(&seen, states).is_some()
    }

    #[test]
    fn given_two_states_then_an_answer_of_the_first_is_allowed_only_while_it_is_valid() {
        let start = Instant::now();
        let at = |n| start + Duration::from_secs(n);
        let states = [state(start, Some(at(20)), Some("one")), state(at(10), None, Some("two"))];
        assert!(!refused(Ok("one"), at(5), &states));
        assert!(refused(Ok("two"), at(5), &states));
        assert!(!refused(Ok("one"), at(15), &states) && !refused(Ok("two"), at(15), &states));
        assert!(refused(Ok("one"), at(25), &states));
    }

    #[test]
    fn given_a_route_then_404_is_refused_and_503_always_is() {
        let now = Instant::now();
        let (with, without) = ([state(now, None, Some("one"))], [state(now, None, None)]);
        assert!(refused(Err("404 "), now, &with) && !refused(Err("404 "), now, &without));
        assert!(refused(Err("503 "), now, &with) && refused(Err("503 "), now, &without));
        assert!(refused(Ok("one"), now, &without));
    }
}
