//! Golden cases: what users write, what proxies get.
//!
//! In: a folder with `given.yaml`, maybe `proxy.yaml` and `when.yaml`. Out: the resources, problems
//! and pushed names that `then.yaml` must show.
//!
//! **Invariant:** the whole pipeline but delivery, and nothing else: no network, no clock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use envoy_api::{EncodedResource, ResourceType, json};
use model::{
    Batch, Capabilities, Change, Engine, EnvoyVersion, Problem, Proxy, ProxyKey, Reason,
    ResourceId, Severity, ir,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::mesh::{GATEWAY_LABELS, GATEWAY_NODE};

/// An object of `when.yaml` with this annotation is deleted.
const DELETED: (&str, &str) = ("heddle.io/test", "deleted");

/// The proxy of a case.
const PROXY: ProxyKey = ProxyKey(1);

/// A case.
#[derive(Clone, Debug)]
pub struct Case {
    /// `area/name`.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
}

/// Who asks; every field has a default.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asker {
    node: String,
    labels: BTreeMap<String, String>,
    envoy: String,
    delta: bool,
    interception_mode: String,
    locality: String,
    agent: bool,
}

/// What a case comes to.
#[derive(Debug)]
pub struct Outcome {
    /// Every resource of the proxy at the end.
    pub resources: Vec<Shown>,
    /// The file `then.yaml` that tells it.
    pub then: Then,
}

/// A resource with its origins.
#[derive(Clone, Debug)]
pub struct Shown {
    /// As it is sent.
    pub encoded: EncodedResource,
    /// Where it comes from.
    pub origins: Vec<String>,
    /// Whether it is the host that answers 404, which every gateway port has.
    is_fallback: bool,
    /// Whether it is there for what comes in to a workload.
    is_for_inbound: bool,
}

/// `then.yaml`.
#[derive(Debug, Serialize)]
pub struct Then {
    /// Names of every resource, by type.
    names: BTreeMap<String, Vec<String>>,
    /// Resources of the types that the area of the case is about, in full.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resources: Vec<ShownResource>,
    /// What is wrong with the objects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<ShownProblem>,
    /// Names that `when.yaml` made different, by type; `-` before what went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pushed: Option<BTreeMap<String, Vec<String>>>,
}

#[derive(Debug, Serialize)]
struct ShownResource {
    r#type: &'static str,
    name: String,
    origins: Vec<String>,
    body: Value,
}

#[derive(Debug, Serialize)]
struct ShownProblem {
    object: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    field: String,
    severity: Severity,
    reason: Reason,
    message: String,
}

// === impl Asker ===

impl Default for Asker {
    fn default() -> Self {
        Self {
            node: GATEWAY_NODE.to_owned(),
            labels: GATEWAY_LABELS
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            envoy: "1.40".to_owned(),
            delta: true,
            interception_mode: "REDIRECT".to_owned(),
            locality: String::new(),
            agent: false,
        }
    }
}

impl Asker {
    fn proxy(self) -> Result<Proxy> {
        let Self { node, labels, envoy, delta, interception_mode, locality, agent } = self;
        let (major, minor) = envoy.split_once('.').context("`envoy` is like \"1.40\"")?;
        let version = EnvoyVersion { major: major.parse()?, minor: minor.parse()? };
        let mut proxy = Proxy::parse(&node, None, Capabilities::of(Some(version), delta))?;
        proxy.locality = model::rows::Locality::parse(&locality);
        proxy.capabilities.mutual_tls = agent;
        proxy.captures = interception_mode != "NONE";
        proxy.labels = labels.into_iter().map(|(k, v)| (Arc::from(k), Arc::from(v))).collect();
        Ok(proxy)
    }
}

// === impl Case ===

impl Case {
    /// Every case, in order.
    pub fn all() -> Result<Vec<Self>> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
        let mut cases = Vec::new();
        for area in folders(&root)? {
            for folder in folders(&area)? {
                let name = folder.strip_prefix(&root)?.to_string_lossy().into_owned();
                cases.push(Self { name, folder });
            }
        }
        Ok(cases)
    }

    /// The case of a name such as `route/weights`.
    pub fn named(name: &str) -> Result<Self> {
        Self::all()?.into_iter().find(|case| case.name == name).with_context(|| name.to_owned())
    }

    /// Work it through.
    pub fn run(&self) -> Result<Outcome> {
        self.outcome().with_context(|| format!("golden case {}", self.name))
    }

    /// What `then.yaml` says now; empty if there is none.
    pub fn expected(&self) -> String {
        std::fs::read_to_string(self.folder.join("then.yaml")).unwrap_or_default()
    }

    /// Write `then.yaml`.
    pub fn rewrite(&self, then: &str) -> Result<()> {
        Ok(std::fs::write(self.folder.join("then.yaml"), then)?)
    }

    fn outcome(&self) -> Result<Outcome> {
        let asker: Asker = match self.read("proxy.yaml")? {
            Some(text) => serde_yaml::from_str(&text)?,
            None => Asker::default(),
        };
        let given = self.read("given.yaml")?.context("given.yaml is missing")?;
        let mut mesh = TestMesh::default();
        let first = mesh.batch(&given);
        let connected = vec![(PROXY, asker.proxy()?)];
        mesh.apply(Batch { changes: first, connected, disconnected: Vec::new() })?;
        let pushed = match self.read("when.yaml")? {
            None => None,
            Some(when) => {
                let before = mesh.versions();
                let changes = mesh.batch(&when);
                mesh.apply(Batch { changes, ..Batch::default() })?;
                Some(difference(&before, &mesh.versions()))
            }
        };
        if !mesh.syntax.is_empty() {
            bail!("not YAML: {}", mesh.syntax.join("; "));
        }
        let resources: Vec<Shown> = mesh.shown();
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for shown in &resources {
            let name = shown.encoded.name().to_string();
            names
                .entry(shown.encoded.resource_type().short_name().to_owned())
                .or_default()
                .push(name);
        }
        let area = self.name.split('/').next().unwrap_or_default();
        let in_full = resources.iter().filter(|s| {
            is_shown(area, s.encoded.resource_type())
                && (area == "gateway" || !s.is_fallback)
                && (["inbound", "mtls"].contains(&area) || !s.is_for_inbound)
        });
        let then = Then {
            names,
            resources: in_full.map(Shown::to_resource).collect(),
            problems: mesh.problems().into_iter().map(ShownProblem::from).collect(),
            pushed,
        };
        Ok(Outcome { resources, then })
    }

    fn read(&self, file: &str) -> Result<Option<String>> {
        let path = self.folder.join(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }
}

/// Resources that every sidecar has for what comes in.
fn is_for_inbound(name: &str) -> bool {
    use model::names::{BLACK_HOLE, INBOUND_PASSTHROUGH, VIRTUAL_INBOUND};
    [BLACK_HOLE, INBOUND_PASSTHROUGH, VIRTUAL_INBOUND].contains(&name)
}

/// Which types a case of an area shows in full; of the others only names.
fn is_shown(area: &str, resource_type: ResourceType) -> bool {
    use ResourceType::{Cluster, Endpoints, Listener, RouteConfiguration, VirtualHost};
    match area {
        "gateway" => matches!(resource_type, Listener | RouteConfiguration | VirtualHost),
        "sidecar" | "service-entry" => matches!(resource_type, Cluster | Listener | VirtualHost),
        "inbound" => matches!(resource_type, Cluster | Listener),
        "mtls" => matches!(resource_type, Cluster | Endpoints | Listener),
        "connections" => resource_type == Listener,
        "policy" => resource_type == Cluster,
        "endpoints" => matches!(resource_type, Cluster | Endpoints),
        "visibility" => matches!(resource_type, Cluster | VirtualHost),
        "destination" => matches!(resource_type, Cluster | Endpoints | VirtualHost),
        // Routes of older proxies stand in their RouteConfiguration.
        "inline" => resource_type == RouteConfiguration,
        _ => resource_type == VirtualHost,
    }
}

// === impl Shown ===

impl Shown {
    fn to_resource(&self) -> ShownResource {
        ShownResource {
            r#type: self.encoded.resource_type().short_name(),
            name: self.encoded.name().to_string(),
            origins: self.origins.clone(),
            body: self.body(),
        }
    }

    /// The message as JSON, without its type.
    pub fn body(&self) -> Value {
        let resource_type = self.encoded.resource_type();
        let mut body = json::to_json(resource_type.type_url(), &self.encoded.body());
        if let Value::Object(fields) = &mut body {
            fields.remove("@type");
        }
        body
    }
}

// === impl ShownProblem ===

impl From<Problem> for ShownProblem {
    fn from(problem: Problem) -> Self {
        let Problem { object, field, severity, reason, message } = problem;
        Self { object: object.to_string(), field, severity, reason, message }
    }
}

// === impl Then ===

impl Then {
    /// As the file has it.
    pub fn to_yaml(&self) -> Result<String> {
        Ok(serde_yaml::to_string(self)?)
    }
}

type Versions = BTreeMap<(ResourceType, String), String>;

/// An engine, what it last said, and what reading the objects said.
#[derive(Default)]
struct TestMesh {
    engine: Engine,
    resources: BTreeMap<ResourceId, (Arc<ir::Resource>, EncodedResource)>,
    problems: BTreeMap<String, Vec<Problem>>,
    syntax: Vec<String>,
}

// === impl TestMesh ===

impl TestMesh {
    /// Read and lower every document.
    fn batch(&mut self, text: &str) -> Vec<Change> {
        let read = config::read(&Arc::from("test"), text);
        self.syntax.extend(read.syntax.iter().map(|e| format!("{e:?}")));
        for raw in &read.objects {
            self.problems.remove(&raw.owner.to_string());
        }
        for located in read.problems {
            let key = located.problem.object.to_string();
            self.problems.entry(key).or_default().push(located.problem);
        }
        let mut changes = Vec::new();
        for raw in read.objects {
            let key = raw.owner.to_string();
            let annotation = raw.body.get("metadata").and_then(|m| m.get("annotations"));
            let mark = annotation.and_then(|a| a.get(DELETED.0)).and_then(|v| v.as_str());
            if mark == Some(DELETED.1) {
                changes.push(Change { owner: raw.owner, rows: Vec::new() });
                continue;
            }
            let (change, problems) = config::lower(raw);
            self.problems.entry(key).or_default().extend(problems);
            changes.push(change);
        }
        changes
    }

    fn apply(&mut self, batch: Batch) -> Result<()> {
        let update = self.engine.apply(batch);
        for (id, resource) in update.resources {
            let Some(resource) = resource else {
                self.resources.remove(&id);
                continue;
            };
            let (encoded, violations) = translate::encode(&resource);
            if !violations.is_empty() {
                bail!("{encoded:?} breaks rules of Envoy's API: {violations:?}");
            }
            self.resources.insert(id, (resource, encoded));
        }
        Ok(())
    }

    /// What the proxy of the case has.
    fn held(&self) -> impl Iterator<Item = &(Arc<ir::Resource>, EncodedResource)> {
        let ids = self.engine.resources_of(PROXY).into_keys();
        ids.filter_map(|id| self.resources.get(&id))
    }

    fn shown(&self) -> Vec<Shown> {
        let mut shown: Vec<Shown> = self
            .held()
            .map(|(resource, encoded)| Shown {
                encoded: encoded.clone(),
                origins: resource.origins().0.iter().map(ToString::to_string).collect(),
                is_for_inbound: is_for_inbound(&resource.name()),
                is_fallback: matches!(&**resource, ir::Resource::VirtualHost(h) if h.routes.is_empty()),
            })
            .collect();
        shown.sort_by(|a, b| {
            let key = |s: &Shown| (s.encoded.resource_type(), Arc::clone(s.encoded.name()));
            key(a).cmp(&key(b))
        });
        shown
    }

    fn versions(&self) -> Versions {
        let all = self.held().map(|(_, encoded)| {
            let key = (encoded.resource_type(), encoded.name().to_string());
            (key, encoded.version().to_string())
        });
        all.collect()
    }

    fn problems(&self) -> Vec<Problem> {
        let mut all: Vec<Problem> = self.problems.values().flatten().cloned().collect();
        all.extend(self.engine.problems());
        all.sort();
        all
    }
}

fn difference(before: &Versions, after: &Versions) -> BTreeMap<String, Vec<String>> {
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, version) in after {
        if before.get(key) != Some(version) {
            out.entry(key.0.short_name().to_owned()).or_default().push(key.1.clone());
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(key)) {
        out.entry(key.0.short_name().to_owned()).or_default().push(format!("- {}", key.1));
    }
    out
}

fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    let entries = std::fs::read_dir(root).with_context(|| format!("reading {}", root.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}
