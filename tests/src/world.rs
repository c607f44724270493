//! A made-up mesh that is edited at random, and what each of its states allows.
//!
//! In: a seeded source of chance. Out: files to write, and for each host the backends that may
//! answer.
//!
//! **Invariant:** says what users mean, in its own few lines: it shares no code with what it
//! judges.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

/// Kinds of edits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edit {
    /// Other weights.
    Weight,
    /// A subset that was not there, with its share of the split.
    NewSubset,
    /// A service that was not there, with its route.
    NewService,
    /// The host of a route has another name.
    HostRenamed,
    /// The service has another port, and the route names it.
    PortChanged,
    /// The VirtualService is deleted, and some time later created again.
    Recreated,
    /// Every endpoint of a service is replaced.
    EndpointsReplaced,
    /// Another time to connect: the clusters of a service change, their endpoints do not.
    Policy,
}

/// A service with its route: one file, so that an edit is one step.
#[derive(Clone, Debug)]
pub struct App {
    name: String,
    host: String,
    port: u16,
    subsets: Vec<Subset>,
    routed: bool,
    /// Time in which connections must be there. Unit: seconds.
    timeout: u32,
    /// How often the file was written.
    generation: u32,
}

#[derive(Clone, Debug)]
struct Subset {
    name: String,
    weight: u32,
    backends: Vec<Ipv4Addr>,
}

/// The mesh.
#[derive(Debug)]
pub struct World {
    apps: BTreeMap<String, App>,
    /// Where each gateway listens; their proxies have the label `edge` with their number.
    gateways: Vec<SocketAddr>,
    backend_port: u16,
    /// The first half of the addresses of backends.
    network: [u8; 2],
    /// Whether routes are for sidecars too.
    mesh: bool,
    count: u32,
}

/// Who may answer for each host that has a route; every other host is answered with 404.
pub type Allowed = BTreeMap<String, BTreeSet<String>>;

/// One step of an edit.
#[derive(Clone, Debug)]
pub struct Step {
    /// A file.
    pub file: String,
    /// What it says from now on; nothing = it is removed.
    pub content: Option<String>,
    /// Name of the Service in it.
    pub service: String,
    /// Generation of that Service from now on.
    pub generation: u32,
}

const MOST_APPS: usize = 8;
const MOST_SUBSETS: usize = 4;

// === impl Edit ===

impl Edit {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Weight,
        Self::NewSubset,
        Self::NewService,
        Self::HostRenamed,
        Self::PortChanged,
        Self::Recreated,
        Self::EndpointsReplaced,
        Self::Policy,
    ];
}

// === impl World ===

impl World {
    /// Some services behind gateways at these addresses. Every backend has an address of its own,
    /// and this port.
    pub fn new(gateways: Vec<SocketAddr>, backend_port: u16, rng: &mut StdRng) -> Self {
        Self::of(gateways, backend_port, [127, 88], false, rng)
    }

    /// The same, for sidecars too; the addresses of backends begin with `network`.
    pub fn of_mesh(
        gateways: Vec<SocketAddr>,
        backend_port: u16,
        network: [u8; 2],
        rng: &mut StdRng,
    ) -> Self {
        Self::of(gateways, backend_port, network, true, rng)
    }

    fn of(
        gateways: Vec<SocketAddr>,
        backend_port: u16,
        network: [u8; 2],
        mesh: bool,
        rng: &mut StdRng,
    ) -> Self {
        let apps = BTreeMap::new();
        let mut world = Self { apps, gateways, backend_port, network, mesh, count: 0 };
        for _ in 0..4 {
            world.add_app(rng);
        }
        world
    }

    /// Every file, as it is now.
    pub fn files(&self) -> Vec<(String, String)> {
        let mut gateways = String::new();
        for (number, address) in self.gateways.iter().enumerate() {
            let (ip, port) = (address.ip(), address.port());
            // Writing to a String does not fail.
            let _ = write!(
                gateways,
                "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: \
                 edge-{number}}}\nspec:\n  selector: {{edge: '{number}'}}\n  servers:\n  - port: \
                 {{number: {port}, name: http, protocol: HTTP}}\n    bind: {ip}\n    hosts: \
                 [\"*.example.com\"]\n"
            );
        }
        let declared_only = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: \
             default}\nspec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}\n";
        let sidecar = ("sidecar.yaml".to_owned(), declared_only.to_owned());
        let apps = self.apps.values().map(|app| (app.file(), self.yaml(app)));
        apps.chain([("gateways.yaml".to_owned(), gateways)])
            .chain(self.mesh.then_some(sidecar))
            .collect()
    }

    /// Every backend in use.
    pub fn backends(&self) -> BTreeSet<Ipv4Addr> {
        let subsets = self.apps.values().flat_map(|app| &app.subsets);
        subsets.flat_map(|subset| subset.backends.iter().copied()).collect()
    }

    /// What is allowed now.
    pub fn allowed(&self) -> Allowed {
        let routed = self.apps.values().filter(|app| app.routed);
        routed.map(|app| (app.host.clone(), app.answering())).collect()
    }

    /// Do an edit, up to its next step; `None` = it has no further step. Returns the file to write.
    pub fn edit(&mut self, edit: Edit, step: usize, rng: &mut StdRng) -> Option<Step> {
        if edit == Edit::Recreated && step == 1 {
            // The one that was deleted by the step before.
            let app = self.apps.values_mut().find(|app| !app.routed)?;
            app.routed = true;
            app.generation += 1;
            let app = app.clone();
            return Some(self.written(&app));
        }
        if edit == Edit::NewService && step == 1 {
            if self.apps.len() <= MOST_APPS {
                return None;
            }
            let oldest = self.apps.keys().next()?.clone();
            let app = self.apps.remove(&oldest)?;
            return Some(Step { content: None, ..self.written(&app) });
        }
        if step > 0 {
            return None;
        }
        let name = match edit {
            Edit::NewService => self.add_app(rng),
            _ => {
                let names: Vec<_> = self.apps.keys().cloned().collect();
                names.choose(rng)?.clone()
            }
        };
        let mut app = self.apps.get(&name)?.clone();
        match edit {
            Edit::NewService => {}
            Edit::Weight => app.reweigh(rng),
            Edit::NewSubset => {
                if app.subsets.len() == MOST_SUBSETS {
                    app.subsets.remove(0);
                }
                let subset = self.subset(rng);
                app.subsets.push(subset);
            }
            Edit::HostRenamed => app.host = self.host(),
            Edit::PortChanged => app.port = self.port(),
            Edit::Recreated => app.routed = false,
            Edit::Policy => app.timeout = app.timeout % 9 + 1,
            Edit::EndpointsReplaced => {
                for subset in &mut app.subsets {
                    let count = rng.random_range(1..=2);
                    subset.backends = (0..count).map(|_| self.backend()).collect();
                }
            }
        }
        app.generation += 1;
        let step = self.written(&app);
        self.apps.insert(name, app);
        Some(step)
    }

    fn written(&self, app: &App) -> Step {
        let App { name, generation, .. } = app;
        let content = Some(self.yaml(app));
        Step { file: app.file(), content, service: name.clone(), generation: *generation }
    }

    fn yaml(&self, app: &App) -> String {
        let gateways = (0..self.gateways.len()).map(|number| format!("edge-{number}"));
        let gateways: Vec<_> = gateways.chain(self.mesh.then(|| "mesh".to_owned())).collect();
        app.yaml(self.backend_port, &gateways.join(", "))
    }

    fn add_app(&mut self, rng: &mut StdRng) -> String {
        self.count += 1;
        // Numbered so that the first in order is the oldest.
        let name = format!("app-{:05}", self.count);
        let subsets = vec![self.subset(rng), self.subset(rng)];
        let (host, port) = (self.host(), self.port());
        let app = App {
            name: name.clone(),
            host,
            port,
            subsets,
            routed: true,
            timeout: 5,
            generation: 1,
        };
        self.apps.insert(name.clone(), app);
        name
    }

    fn subset(&mut self, rng: &mut StdRng) -> Subset {
        self.count += 1;
        let name = format!("v{}", self.count);
        Subset { name, weight: rng.random_range(1..=100), backends: vec![self.backend()] }
    }

    fn backend(&mut self) -> Ipv4Addr {
        self.count += 1;
        let [_, _, high, low] = self.count.to_be_bytes();
        let [first, second] = self.network;
        Ipv4Addr::new(first, second, high, low)
    }

    fn host(&mut self) -> String {
        self.count += 1;
        format!("host-{}.example.com", self.count)
    }

    fn port(&mut self) -> u16 {
        self.count += 1;
        8000 + u16::try_from(self.count % 50_000).unwrap_or(0)
    }
}

// === impl App ===

impl App {
    fn file(&self) -> String {
        format!("{}.yaml", self.name)
    }

    fn answering(&self) -> BTreeSet<String> {
        let used = self.subsets.iter().filter(|subset| subset.weight > 0);
        used.flat_map(|subset| subset.backends.iter().map(ToString::to_string)).collect()
    }

    /// Other weights, of which at least one is not 0.
    fn reweigh(&mut self, rng: &mut StdRng) {
        let before: Vec<u32> = self.subsets.iter().map(|s| s.weight).collect();
        loop {
            for subset in &mut self.subsets {
                subset.weight = *[0, 1, 10, 50, 90, 100].choose(rng).unwrap_or(&1);
            }
            let now: Vec<u32> = self.subsets.iter().map(|s| s.weight).collect();
            if now != before && now.iter().sum::<u32>() > 0 {
                return;
            }
        }
    }

    fn yaml(&self, backend_port: u16, gateways: &str) -> String {
        let Self { name, host, port, subsets, routed, timeout, generation } = self;
        let mut out = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, generation: \
             {generation}}}\nspec:\n  selector: {{app: {name}}}\n  ports: [{{name: http, port: {port}}}]\n"
        );
        let mut slice = format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, \
             labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{{name: \
             http, port: {backend_port}}}]\nendpoints:\n"
        );
        let mut rule = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: \
             {name}}}\nspec:\n  host: {name}\n  trafficPolicy: {{connectionPool: {{tcp: \
             {{connectTimeout: {timeout}s}}}}}}\n  subsets:\n"
        );
        let mut routes = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: \
             {name}}}\nspec:\n  hosts: [{host}]\n  gateways: [{gateways}]\n  http:\n  - retries: \
             {{attempts: 0}}\n    route:\n"
        );
        for Subset { name: version, weight, backends } in subsets {
            for address in backends {
                let pod = format!("{name}-{}", address.to_string().replace('.', "-"));
                // Writing to a String does not fail.
                let _ = write!(
                    out,
                    "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, labels: {{app: \
                     {name}, version: {version}}}}}\nstatus: {{podIP: {address}}}\n"
                );
                let _ = writeln!(
                    slice,
                    "- {{addresses: [{address}], targetRef: {{kind: Pod, name: {pod}}}}}"
                );
            }
            let _ = writeln!(rule, "  - {{name: {version}, labels: {{version: {version}}}}}");
            let _ = writeln!(
                routes,
                "    - {{destination: {{host: {name}, subset: {version}, port: {{number: \
                 {port}}}}}, weight: {weight}}}"
            );
        }
        out.push_str(&slice);
        out.push_str(&rule);
        if *routed {
            out.push_str(&routes);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    fn world() -> (World, StdRng) {
        let mut rng = StdRng::seed_from_u64(1);
        let gateway = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        (World::new(vec![gateway], 2, &mut rng), rng)
    }

    #[test]
    fn every_edit_changes_a_file() {
        let (mut world, mut rng) = world();
        for edit in Edit::ALL.into_iter().cycle().take(100) {
            let before: BTreeMap<_, _> = world.files().into_iter().collect();
            let step = world.edit(edit, 0, &mut rng).expect("a step");
            assert_ne!(before.get(&step.file), step.content.as_ref(), "{edit:?}");
            while world.edit(edit, 1, &mut rng).is_some_and(|_| edit != Edit::Recreated) {}
        }
    }

    #[test]
    fn what_is_written_is_read_without_a_problem() {
        let (world, _) = world();
        for (_, text) in world.files() {
            let read = config::read(&std::sync::Arc::from("test"), &text);
            assert!(read.problems.is_empty() && read.syntax.is_empty());
            for raw in read.objects {
                assert_eq!(config::lower(raw).1, []);
            }
        }
    }
}
