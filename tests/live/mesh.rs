//! A mesh that runs: controllers, proxies, backends, and clients that ask without pause.
//!
//! In: a place, edits. Out: what clients saw that was not allowed, and what is wrong at the end.
//!
//! **Invariant:** an edit is done when every controller that serves has read it and every proxy has
//! ACKed what it is to have.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use house::backend::Backend;
use house::client::Client;
use house::mesh::{SyncState, replace, state};
use house::statistics::percentile;
use house::world::{Edit, World};
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::task::JoinSet;

use crate::journal::{self, Asked, Journal, SWAP, Tally};
use crate::place::{Form, Place, Plan, Proxy};
use crate::replicas::Replicas;

const REPLICAS: usize = 2;
/// Time that a replica takes to end.
pub(crate) const DRAIN: Duration = Duration::from_secs(1);
/// Clients of each proxy.
const CLIENTS: u64 = 2;
/// The longest pause of a client is this for each proxy: two cores are shared by all of it.
const PAUSE: Duration = Duration::from_millis(4);
/// Time that an edit may take, whatever happens meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time in which everything is warm that can be, once its proxy is connected.
const WARM: Duration = Duration::from_secs(5);
/// Time that a listener takes to go at most.
const DRAINED: Duration = Duration::from_secs(10);

/// All that runs.
pub(crate) struct Mesh {
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) replicas: Replicas,
    world: World,
    directory: PathBuf,
    backend_port: u16,
    backends: BTreeMap<Ipv4Addr, Backend>,
    journal: Arc<Journal>,
    clients: JoinSet<Tally>,
    began: Instant,
    latencies: Vec<Duration>,
    disturbances: BTreeMap<Disturbance, usize>,
    _place: Vec<house::namespace::Neighbour>,
}

/// What may happen while an edit is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Disturbance {
    /// Half of the proxies lose their connection.
    Cut,
    /// Proxies lose their connection within a message.
    CutWithin,
    /// A controller ends without a warning, and comes back.
    Killed,
    /// All do.
    AllKilled,
    /// A controller is told to end, and comes back.
    Stopped,
}

// === impl Disturbance ===

impl Disturbance {
    const ALL: [Self; 5] =
        [Self::Cut, Self::CutWithin, Self::Killed, Self::AllKilled, Self::Stopped];
}

// === impl Mesh ===

impl Mesh {
    /// Start everything, and the traffic once every host answers at every proxy.
    pub(crate) async fn start(
        controller: &Path,
        place: Place,
        work: &Path,
        seed: u64,
    ) -> Result<Self> {
        let Place { world, backend_port, plans, neighbours } = place;
        let directory = work.join("mesh");
        std::fs::create_dir(&directory)?;
        for (file, text) in world.files() {
            std::fs::write(directory.join(file), text)?;
        }
        let replicas = Replicas::start(controller, &directory, REPLICAS, DRAIN, work).await?;
        let journal = Arc::new(Journal::new(world.allowed(), plans.len()));
        let mut mesh = Self {
            proxies: start_all(plans, &replicas, work).await?,
            replicas,
            world,
            directory,
            backend_port,
            backends: BTreeMap::new(),
            journal,
            clients: JoinSet::new(),
            began: Instant::now(),
            latencies: Vec::new(),
            disturbances: BTreeMap::new(),
            _place: neighbours,
        };
        mesh.start_backends().await?;
        mesh.settle().await?;
        let pause = PAUSE * u32::try_from(mesh.proxies.len())?;
        for (number, proxy) in mesh.proxies.iter().enumerate() {
            first_answers(proxy.address, &mesh.world).await?;
            let Proxy { address, absent, form, .. } = *proxy;
            let asked = Asked { address, absent, whole: form == Form::Whole };
            for client in 0..CLIENTS {
                let seed = seed + client * 1000 + number as u64;
                let journal = Arc::clone(&mesh.journal);
                mesh.clients.spawn(journal::send(journal, number, asked, pause, seed));
            }
        }
        mesh.began = Instant::now();
        Ok(mesh)
    }

    /// Do an edit, and something bad while it is on its way.
    pub(crate) async fn edit(
        &mut self,
        index: usize,
        edit: Edit,
        disturbed: bool,
        rng: &mut StdRng,
    ) -> Result<()> {
        for part in 0.. {
            let Some(step) = self.world.edit(edit, part, rng) else { break };
            self.start_backends().await?;
            let bad = disturbed.then(|| Disturbance::ALL.choose(rng).copied()).flatten();
            let from = Instant::now();
            let by = format!("edit {index} ({edit:?}, part {part}, {bad:?}) of {}", step.file);
            self.journal.write(by.clone(), disturbed, self.world.allowed());
            let file = self.directory.join(&step.file);
            match &step.content {
                Some(text) => replace(&file, text)?,
                None => std::fs::remove_file(file)?,
            }
            self.replicas.wrote(step);
            if let Some(bad) = bad {
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..30))).await;
                self.disturb(bad, rng)?;
                *self.disturbances.entry(bad).or_default() += 1;
            }
            self.settle().await.with_context(|| by.clone())?;
            match bad {
                Some(_) => self.all_warm().await.context(by)?,
                None => self.latencies.push(from.elapsed()),
            }
            self.proxies.iter().for_each(|proxy| proxy.relay.cut_after(None));
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..40))).await;
            self.stop_backends();
        }
        Ok(())
    }

    fn disturb(&mut self, bad: Disturbance, rng: &mut StdRng) -> Result<()> {
        // It may be that one has not come back yet, but one serves: else nothing would be settled.
        let one = rng.random_range(0..self.replicas.serving());
        match bad {
            Disturbance::Cut => {
                self.proxies.iter().filter(|_| rng.random()).for_each(|proxy| proxy.relay.cut());
            }
            Disturbance::CutWithin => {
                for proxy in &self.proxies {
                    proxy.relay.cut_after(Some(rng.random_range(1..1000)));
                }
            }
            Disturbance::Killed => self.replicas.kill(one)?,
            Disturbance::AllKilled => {
                for _ in 0..self.replicas.serving() {
                    self.replicas.kill(0)?;
                }
            }
            Disturbance::Stopped => self.replicas.stop(one),
        }
        Ok(())
    }

    /// Wait until every replica that serves has read what was written last, and every proxy has all
    /// that it is to have. The stream of each proxy.
    pub(crate) async fn settle(&mut self) -> Result<Vec<SyncState>> {
        let began = Instant::now();
        let mut done: BTreeMap<usize, SyncState> = BTreeMap::new();
        let mut seen = Vec::new();
        while done.len() < self.proxies.len() {
            if self.replicas.look().await? {
                seen = self.replicas.streams().await?;
                for (number, proxy) in self.proxies.iter_mut().enumerate() {
                    proxy.envoy.check()?;
                    let mut own = seen.iter().filter(|stream| stream.page["proxy"] == *proxy.node);
                    // Another one is about to end, or to begin.
                    let (Some(stream), None) = (own.next(), own.next()) else { continue };
                    let Proxy { node, form, relay, .. } = proxy;
                    ensure!(stream.rejected == 0, "{node} rejected {:?}", stream.errors);
                    let types = stream.page["types"].as_object();
                    let asked = types.into_iter().flatten().map(|(name, _)| &**name);
                    // By state of the world nothing is held before it is sent.
                    let mut types = types.into_iter().flatten();
                    let sent = *form != Form::Whole || types.all(|(_, of)| of["sent"] != 0);
                    let complete = asked.eq(form.types()) && sent && stream.synced;
                    if complete && relay.carried().open == 1 {
                        let Entry::Vacant(entry) = done.entry(number) else { continue };
                        entry.insert(stream.clone());
                        self.journal.settled(number);
                    }
                }
            }
            if began.elapsed() > WARM {
                for (number, proxy) in self.proxies.iter().enumerate() {
                    if !done.contains_key(&number) && proxy.is_connected_for(WARM) {
                        proxy.is_warm(Duration::ZERO).await?;
                    }
                }
            }
            if began.elapsed() > PATIENCE {
                let missing = (0..self.proxies.len()).filter(|number| !done.contains_key(number));
                let missing: Vec<_> = missing.map(|number| &self.proxies[number].node).collect();
                bail!("not settled after {PATIENCE:?}: {missing:?}; streams are {seen:#?}");
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        Ok(done.into_values().collect())
    }

    /// Stop the traffic; fail if an answer was not allowed, or if a proxy is not as it should be.
    pub(crate) async fn end(mut self) -> Result<()> {
        tokio::time::sleep(2 * SWAP).await;
        let took = self.began.elapsed();
        self.journal.stop();
        let mut all = Tally::default();
        while let Some(tally) = self.clients.join_next().await {
            let Tally { requests, failed, between, told } = tally?;
            all.requests += requests;
            all.failed += failed;
            all.between += between;
            all.told.extend(told);
        }
        let edits = self.latencies.len() + self.disturbances.values().sum::<usize>();
        eprintln!(
            "{} proxies, {edits} edits in {took:.1?}, {} requests, {} failed, {} not \
             served by proxies that came back; from writing to the last ACK p50 {:.1?}, p99 {:.1?}; {} controllers; \
             {:?}",
            self.proxies.len(),
            all.requests,
            all.failed,
            all.between,
            percentile(&mut self.latencies, 50),
            percentile(&mut self.latencies, 99),
            self.replicas.started,
            self.disturbances,
        );
        let well = self.all_as_they_should_be().await;
        let told = all.told.join("\n");
        let failed = all.failed;
        ensure!(failed == 0, "{failed} answers are not allowed; at the end {well:?}\n{told}");
        well?;
        ensure!(all.requests > 10 * edits as u64, "only {} requests were sent", all.requests);
        // Streams end with their proxies.
        self.proxies.clear();
        self.replicas.end().await
    }

    /// Wait until all is done, and look at every proxy.
    async fn all_as_they_should_be(&mut self) -> Result<()> {
        self.replicas.all_serve().await?;
        self.settle().await?;
        self.all_warm().await?;
        for proxy in &self.proxies {
            as_it_should_be(proxy, &mut self.replicas).await.context(proxy.node.clone())?;
        }
        Ok(())
    }

    /// Wait until nothing warms anywhere.
    pub(crate) async fn all_warm(&self) -> Result<()> {
        for proxy in &self.proxies {
            proxy.is_warm(WARM).await?;
        }
        Ok(())
    }

    async fn start_backends(&mut self) -> Result<()> {
        for address in self.world.backends() {
            if let Entry::Vacant(entry) = self.backends.entry(address) {
                let socket = SocketAddr::from((address, self.backend_port));
                entry.insert(Backend::start(socket, &address.to_string()).await?);
            }
        }
        Ok(())
    }

    /// Stop backends that nobody may ask any more.
    fn stop_backends(&mut self) {
        let (used, recent) = (self.world.backends(), self.journal.recent_backends());
        let needed =
            |address: &Ipv4Addr| used.contains(address) || recent.contains(&address.to_string());
        self.backends.retain(|address, _| needed(address));
    }
}

async fn start_all(plans: Vec<Plan>, replicas: &Replicas, work: &Path) -> Result<Vec<Proxy>> {
    let starting = plans.into_iter().map(|plan| plan.start(&replicas.targets, work));
    futures::future::try_join_all(starting).await
}

/// Wait until every host answers: a listener may open a moment after its ACK.
async fn first_answers(proxy: SocketAddr, world: &World) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    for host in world.allowed().keys() {
        while !Client::new(proxy).get(host, "/").await.is_ok_and(|a| a.status == 200) {
            ensure!(Instant::now() < deadline, "{host} is not served at the start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

/// Nothing was ever rejected, and all is as it should be.
async fn as_it_should_be(proxy: &Proxy, replicas: &mut Replicas) -> Result<()> {
    let stats = proxy.envoy.page("/stats?format=json&filter=update_rejected").await?;
    let rejected = stats["stats"].as_array().into_iter().flatten();
    let rejected: Vec<_> =
        rejected.filter(|s| s["value"].as_u64().is_some_and(|n| n > 0)).collect();
    ensure!(rejected.is_empty(), "Envoy rejected updates: {rejected:?}");
    let desired = state(&replicas.desired(&proxy.node).await?);
    // A listener that was taken away lately keeps its routes until its connections are gone.
    let deadline = Instant::now() + DRAINED;
    loop {
        let held = proxy.envoy.state().await?;
        let names: BTreeSet<&String> = held.keys().chain(desired.keys()).collect();
        let differing: Vec<_> =
            names.into_iter().filter(|name| held.get(*name) != desired.get(*name)).collect();
        let Some(first) = differing.first() else {
            let routes = held.keys().filter(|name| name.starts_with("dynamic_route_configs"));
            ensure!(routes.count() > 0, "no routes in {:?}", held.keys());
            return Ok(());
        };
        ensure!(
            Instant::now() < deadline,
            "not as it should be: {differing:?}; {first} is {:#?}, not {:#?}",
            held.get(*first),
            desired.get(*first)
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
