//! Which proxies there are, and where everything is.
//!
//! In: binaries, a seeded source of chance. Out: a made-up mesh, and proxies that can be started.
//!
//! **Invariant:** loopback, or namespaces of the test's own.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use envoy_api::bootstrap::{Bootstrap, Protocol};
use house::mesh::{Envoy, free_address, free_address_of};
use house::namespace::{self, Neighbour};
use house::relay::{Carried, Relay, Targets};
use house::world::World;
use rand::rngs::StdRng;
use serde_json::{Map, json};

/// The Envoys of a fleet.
pub(crate) struct Envoys {
    pub(crate) new: PathBuf,
    /// One that takes no virtual hosts one by one.
    pub(crate) old: Option<PathBuf>,
}

/// In which form a proxy is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// Delta, virtual hosts one by one.
    OneByOne,
    /// Delta, virtual hosts within their RouteConfiguration.
    Inlined,
    /// State of the world.
    Whole,
}

/// Where everything is.
pub(crate) struct Place {
    pub(crate) world: World,
    pub(crate) backend_port: u16,
    pub(crate) plans: Vec<Plan>,
    /// Kept while proxies are in them.
    pub(crate) neighbours: Vec<Neighbour>,
}

/// A proxy that is not started yet.
pub(crate) struct Plan {
    form: Form,
    node: String,
    labels: Map<String, serde_json::Value>,
    program: PathBuf,
    /// Where its way to the controllers begins.
    relay: IpAddr,
    admin: SocketAddr,
    address: SocketAddr,
    absent: &'static str,
}

/// A proxy that is asked.
pub(crate) struct Proxy {
    pub(crate) form: Form,
    pub(crate) node: String,
    pub(crate) envoy: Envoy,
    /// Its way to the controllers.
    pub(crate) relay: Relay,
    pub(crate) address: SocketAddr,
    /// How it answers for a host that has no route.
    pub(crate) absent: &'static str,
}

// === impl Form ===

impl Form {
    fn protocol(self) -> Protocol {
        match self {
            Self::OneByOne | Self::Inlined => Protocol::Delta,
            Self::Whole => Protocol::Sotw,
        }
    }

    /// What a proxy asks for on each stream, in order of names, unless the mesh is empty.
    pub(crate) fn types(self) -> impl Iterator<Item = &'static str> {
        let hosts = (self == Self::OneByOne).then_some("VHDS");
        ["CDS", "EDS", "LDS", "RDS"].into_iter().chain(hosts)
    }
}

// === impl Place ===

impl Place {
    /// Gateways of each form in turn.
    pub(crate) fn of_a_fleet(envoys: &Envoys, count: usize, rng: &mut StdRng) -> Result<Self> {
        let mut addresses = BTreeSet::new();
        while addresses.len() < count {
            addresses.insert(free_address()?);
        }
        let addresses: Vec<SocketAddr> = addresses.into_iter().collect();
        let old = envoys.old.as_ref().map(|old| (Form::Inlined, old));
        let forms = [Some((Form::OneByOne, &envoys.new)), old, Some((Form::Whole, &envoys.new))];
        let forms = forms.into_iter().flatten().cycle();
        let plans = addresses.iter().zip(forms).enumerate();
        let plans = plans.map(|(number, (address, (form, envoy)))| {
            Plan::of_a_gateway(number, form, *address, envoy)
        });
        let plans = plans.collect::<Result<_>>()?;
        let backend_port = free_address_of(Ipv4Addr::new(127, 88, 0, 1))?.port();
        let world = World::new(addresses, backend_port, rng);
        Ok(Self { world, backend_port, plans, neighbours: Vec::new() })
    }

    /// A gateway and two sidecars. Everything but the sidecars is in this namespace, at addresses
    /// that they reach.
    pub(crate) fn of_a_mesh(envoy: &Path, work: &Path, rng: &mut StdRng) -> Result<Self> {
        const HERE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
        namespace::run("ip link set lo up")?;
        namespace::run(&format!("ip address add {HERE}/32 dev lo"))?;
        namespace::run("ip route add local 10.88.0.0/16 dev lo")?;
        let gateway = free_address()?;
        let world = World::of_mesh(vec![gateway], 8080, [10, 88], rng);
        let mut plans = vec![Plan::of_a_gateway(0, Form::OneByOne, gateway, envoy)?];
        let mut neighbours = Vec::new();
        for (name, last, form) in [("delta", 2, Form::OneByOne), ("whole", 3, Form::Whole)] {
            let address = Ipv4Addr::new(10, 9, 0, last);
            let place = Neighbour::start(name, &[address.into()], work)?;
            let redirect = "--dport 80 -j REDIRECT --to-ports 15001";
            // What comes to its port 80 is taken as what its workload sends.
            place.run(&format!("iptables -t nat -A PREROUTING -p tcp {redirect}"))?;
            plans.push(Plan {
                form,
                node: format!("sidecar~{address}~{name}.default~default.svc.cluster.local"),
                labels: Map::new(),
                program: place.within(envoy, work)?,
                relay: HERE.into(),
                admin: (address, 15000).into(),
                address: (address, 80).into(),
                absent: "502",
            });
            neighbours.push(place);
        }
        Ok(Self { world, backend_port: 8080, plans, neighbours })
    }
}

// === impl Plan ===

impl Plan {
    fn of_a_gateway(number: usize, form: Form, address: SocketAddr, envoy: &Path) -> Result<Self> {
        Ok(Self {
            form,
            node: format!("router~127.0.0.1~edge-{number}.default~default.svc.cluster.local"),
            labels: Map::from_iter([("edge".to_owned(), json!(number.to_string()))]),
            program: envoy.to_owned(),
            relay: Ipv4Addr::LOCALHOST.into(),
            admin: free_address()?,
            address,
            absent: "404",
        })
    }

    /// Start it, on its way to these controllers.
    pub(crate) async fn start(self, targets: &Targets, work: &Path) -> Result<Proxy> {
        let Self { form, node, labels, program, relay, admin, address, absent } = self;
        let relay = Relay::start(relay, targets).await?;
        let bootstrap = Bootstrap {
            node_id: node.clone(),
            cluster: "live".to_owned(),
            metadata: Map::from_iter([("LABELS".to_owned(), labels.into())]),
            xds_host: relay.address.ip().to_string(),
            xds_port: relay.address.port(),
            protocol: form.protocol(),
            ..Default::default()
        };
        let work = work.join(&node);
        std::fs::create_dir(&work)?;
        let envoy = Envoy::launch(&program, bootstrap, admin, &work).await?;
        Ok(Proxy { form, node, envoy, relay, address, absent })
    }
}

// === impl Proxy ===

impl Proxy {
    /// Whether its connection has lasted so long.
    pub(crate) fn is_connected_for(&self, time: Duration) -> bool {
        let Carried { open, last, .. } = self.relay.carried();
        open > 0 && last.is_some_and(|last| last.elapsed() > time)
    }

    /// Fail if anything warms after so long.
    pub(crate) async fn is_warm(&self, within: Duration) -> Result<()> {
        let Self { node, form, .. } = self;
        let deadline = Instant::now() + within;
        loop {
            let warming = self.envoy.warming().await?;
            if warming.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{node} ({form:?}) is warming {warming:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
