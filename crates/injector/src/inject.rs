//! A pod becomes part of the mesh.
//!
//! In: the pod, its namespace, settings. Out: the JSON patch, or why there is none.
//!
//! **Invariant:** adds, and changes what stands in its way (probes, annotations of metrics);
//! takes nothing away but a container of the user's that says how an injected one is to be.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation};
use serde_json::{Value, json};

use crate::annotations::{self, Wishes};
use crate::containers::{self, Application, PROXY_ID};
use crate::decide::{Namespace, Skip, Verdict, decide};
use crate::names::{INIT, PROXY, STATUS, TLS_MODE};
use crate::pod::{CONTAINERS, Container, INIT_CONTAINERS, Pod};
use crate::probes;
use crate::proxy_config::ProxyConfig;
use crate::refusal::{Fault, Refusal};
use crate::settings::Settings;
use crate::{custom, volumes};

/// Ports of the mesh itself: nothing that goes to one is captured.
const OWN_PORTS: std::ops::RangeInclusive<u64> = 15000..=15090;

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It gets a sidecar.
    Injected {
        /// How the pod changes.
        patch: Patch,
        /// What has no effect.
        warnings: Vec<String>,
    },
    /// It does not.
    Skipped(Skip),
}

/// Inject a pod. `mesh`: settings of proxies that the pod may override.
///
/// A pod that asks for a sidecar and cannot have it is refused, with everything that is wrong.
pub fn inject(
    pod: &Value,
    namespace: &Namespace,
    settings: &Settings,
    mesh: &ProxyConfig,
) -> Result<Outcome, Refusal> {
    inject_as(pod, Pod(pod).workload(), namespace, settings, mesh)
}

/// Inject a pod of this workload.
pub(crate) fn inject_as(
    pod: &Value,
    workload: Option<&str>,
    namespace: &Namespace,
    settings: &Settings,
    mesh: &ProxyConfig,
) -> Result<Outcome, Refusal> {
    if let Verdict::Skip(why) = decide(pod, namespace, settings)? {
        return Ok(Outcome::Skipped(why));
    }
    let pod = Pod(pod);
    pod.check()?;
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    let wishes = annotations::read(pod, mesh, &mut faults, &mut warnings);
    let customs = [INIT, PROXY].map(|name| custom::of(pod, name));
    for customs in &customs {
        if let [first, second, ..] = &customs[..] {
            let message = format!("stands for the same container as {}", first.place());
            faults.push(Fault::field(second.place(), message));
        }
    }
    let is_custom = |container: &Container<'_>| {
        customs.iter().flatten().any(|c| (c.list, c.index) == (container.list, container.index))
    };
    let apps: Vec<Container<'_>> = pod.containers().filter(|c| !is_custom(c)).collect();
    for app in &apps {
        check(pod, *app, &mut faults);
    }
    let mut editor = Editor::default();
    let resources = containers::resources(&wishes, settings, &mut faults);
    let mut application = Application { probes: serde_json::Map::new(), metrics: None };
    if wishes.captures() && !wishes.keep_probes {
        let names: Vec<&str> = customs.iter().flatten().map(|c| c.name()).collect();
        let rewritten = probes::rewrite(pod, &names);
        editor.0.extend(rewritten.changes);
        application.probes = rewritten.asked;
    }
    let mut notes = vec![];
    if wishes.merge_metrics {
        metrics(pod, &mut application, &mut notes, &mut warnings);
    }
    let mut proxy = containers::proxy(&wishes, settings, &resources, &application, &mut faults);
    let mut init = wishes.captures().then(|| containers::init(&wishes, settings, &resources));
    for (ours, customs) in [(init.as_mut(), &customs[0]), (Some(&mut proxy), &customs[1])] {
        if let Some((ours, custom)) = ours.zip(customs.first()) {
            custom::merge(ours, custom.body);
        }
    }
    let native = containers::is_native(&wishes, settings);
    editor.containers(pod, &customs, native, init, proxy);
    let added = volumes_of(pod, &wishes, settings, &mut faults);
    let status = status(&added, native, wishes.captures(), settings);
    editor.add_to_list(&["spec", "volumes"], &pod.spec()["volumes"], added);
    let secrets = pod.list("imagePullSecrets");
    let secret = |name: &String| json!({"name": name});
    let secrets = settings.image_pull_secrets.iter().map(secret).filter(|s| !secrets.contains(s));
    let existing = &pod.spec()["imagePullSecrets"];
    editor.add_to_list(&["spec", "imagePullSecrets"], existing, secrets.collect());
    editor.metadata(pod);
    editor.add_to_map(pod, "labels", labels(pod, workload, &wishes));
    let first = apps.iter().find(|app| app.list == CONTAINERS).map(|app| app.name());
    const DEFAULT: &str = "kubectl.kubernetes.io/default-container";
    if let Some(first) = first.filter(|_| pod.annotation(DEFAULT).is_none()) {
        notes.push((DEFAULT.to_owned(), first.to_owned()));
    }
    notes.push((STATUS.to_owned(), status));
    editor.add_to_map(pod, "annotations", notes);
    match faults.is_empty() {
        true => Ok(Outcome::Injected { patch: Patch(editor.0), warnings }),
        false => Err(Refusal(faults)),
    }
}

/// What an application must not have beside a sidecar.
fn check(pod: Pod<'_>, app: Container<'_>, faults: &mut Vec<Fault>) {
    let place = app.place();
    for port in app.body["ports"].as_array().into_iter().flatten() {
        let number = port["containerPort"].as_u64();
        if let Some(number) = number.filter(|n| OWN_PORTS.contains(n) && port["protocol"] != "UDP")
        {
            let message = format!(
                "port {number} is one of the mesh's own (15000 to 15090), which are not captured; \
                 choose another"
            );
            faults.push(Fault::field(place.clone(), message));
        }
    }
    // One that ends before the application starts may go around the proxy.
    if !app.stays() {
        return;
    }
    for (field, what) in [("runAsUser", "user"), ("runAsGroup", "group")] {
        let own = &app.body["securityContext"][field];
        let effective = if own.is_null() { &pod.spec()["securityContext"][field] } else { own };
        if effective.as_u64() == Some(PROXY_ID) {
            let message = format!(
                "runs as {what} {PROXY_ID}, which is the proxy's, so nothing that it sends would \
                 be captured; choose another {field}"
            );
            faults.push(Fault::field(place.clone(), message));
        }
    }
}

/// Where Prometheus finds the metrics of application and proxy, in one.
fn metrics(
    pod: Pod<'_>,
    application: &mut Application,
    notes: &mut Vec<(String, String)>,
    warnings: &mut Vec<String>,
) {
    const PORT: u16 = 15020;
    let get = |name: &str| pod.annotation(&format!("prometheus.io/{name}"));
    let scrape = get("scrape");
    if scrape == Some("false") {
        return;
    }
    if scrape.is_some() {
        let port = get("port").unwrap_or("80");
        match port.parse::<u16>() {
            Ok(PORT) => return,
            Ok(port) => {
                let (path, scheme) = (get("path"), get("scheme"));
                application.metrics = Some(json!({
                    "port": port,
                    "path": path.filter(|p| !p.is_empty()).unwrap_or("/metrics"),
                    "scheme": scheme.filter(|s| !s.is_empty()).unwrap_or("http"),
                }));
            }
            Err(_) => {
                let port = crate::refusal::quoted(port);
                warnings.push(format!(
                    "annotation prometheus.io/port: {port} is no port, so that the metrics of the \
                     application are not merged with those of the proxy"
                ));
                return;
            }
        }
    }
    let mut note = |name: &str, value: &str| {
        notes.push((format!("prometheus.io/{name}"), value.to_owned()));
    };
    note("scrape", "true");
    note("port", &PORT.to_string());
    note("path", "/stats/prometheus");
    if get("scheme").is_some() {
        note("scheme", "http");
    }
}

/// Volumes that are added: ours and those that the pod wishes for.
fn volumes_of(
    pod: Pod<'_>,
    wishes: &Wishes,
    settings: &Settings,
    faults: &mut Vec<Fault>,
) -> Vec<Value> {
    let mut all = volumes::volumes(settings);
    all.extend(wishes.volumes.iter().cloned());
    let names = |volumes: &[Value]| volumes.iter().map(|v| v["name"].clone()).collect::<Vec<_>>();
    for (index, name) in names(pod.list("volumes")).iter().enumerate() {
        if names(&all).contains(name) {
            let message = format!("{name} is the name of a volume of the sidecar; choose another");
            faults.push(Fault::field(format!("spec.volumes[{index}].name"), message));
        }
    }
    all
}

/// What was injected, in the form that tools know.
fn status(added: &[Value], native: bool, captures: bool, settings: &Settings) -> String {
    let init = captures.then_some(INIT);
    let (first, others) = match native {
        true => (init.into_iter().chain([PROXY]).collect(), vec![]),
        false => (init.into_iter().collect::<Vec<_>>(), vec![PROXY]),
    };
    let volumes: Vec<&Value> = added.iter().map(|volume| &volume["name"]).collect();
    json!({
        "initContainers": first,
        "containers": others,
        "volumes": volumes,
        "imagePullSecrets": settings.image_pull_secrets,
        "revision": settings.revision,
    })
    .to_string()
}

/// Labels of an injected pod that are not there yet.
fn labels(pod: Pod<'_>, workload: Option<&str>, wishes: &Wishes) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut set = |key: &str, value: &str| {
        if pod.label(key).is_none() {
            out.push((key.to_owned(), value.to_owned()));
        }
    };
    let inbound = wishes.capture.iter().find(|(flag, _)| *flag == "--include-inbound-ports");
    // Where nothing that comes in is captured, nobody could answer mutual TLS.
    if wishes.captures() && inbound.is_none_or(|(_, ports)| !ports.is_empty()) {
        set(TLS_MODE.0, TLS_MODE.1);
    }
    let first = |keys: [&str; 2]| keys.into_iter().find_map(|key| pod.label(key));
    if let Some(name) = first(["app.kubernetes.io/name", "app"]).or(workload) {
        // What a label may be at most.
        let short: String = name.chars().take(63).collect();
        set("service.istio.io/canonical-name", short.trim_end_matches(['-', '.', '_']));
    }
    let revision = first(["app.kubernetes.io/version", "version"]).unwrap_or("latest");
    set("service.istio.io/canonical-revision", revision);
    out
}

/// A place in the pod.
pub(crate) fn pointer(tokens: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(tokens.iter().copied())
}

/// Collects changes.
#[derive(Debug, Default)]
struct Editor(Vec<PatchOperation>);

// === impl Editor ===

impl Editor {
    fn add(&mut self, tokens: &[&str], value: Value) {
        self.0.push(PatchOperation::Add(AddOperation { path: pointer(tokens), value }));
    }

    /// Take out what the user said of ours, and put ours where they belong: a native sidecar
    /// before every container that needs the network; else the proxy first, held, and the one that
    /// captures last of those that come before, which then still reach the network.
    fn containers(
        &mut self,
        pod: Pod<'_>,
        customs: &[Vec<Container<'_>>],
        native: bool,
        init: Option<Value>,
        proxy: Value,
    ) {
        let mut out: Vec<_> = customs.iter().flatten().map(|c| (c.list, c.index)).collect();
        out.sort_unstable();
        for (list, index) in out.iter().rev() {
            let path = pointer(&["spec", list, &index.to_string()]);
            self.0.push(PatchOperation::Remove(RemoveOperation { path }));
        }
        let before = &pod.spec()[INIT_CONTAINERS];
        let at = ["spec", INIT_CONTAINERS];
        match native {
            true if before.is_null() => {
                self.add(&at, init.into_iter().chain([proxy]).collect());
            }
            true => {
                for container in [Some(proxy), init].into_iter().flatten() {
                    self.add(&["spec", INIT_CONTAINERS, "0"], container);
                }
            }
            false => {
                self.add(&["spec", CONTAINERS, "0"], proxy);
                self.add_to_list(&at, before, init.into_iter().collect());
            }
        }
    }

    /// Append to a list that may not be there.
    fn add_to_list(&mut self, at: &[&str], existing: &Value, items: Vec<Value>) {
        match (existing, items.is_empty()) {
            (_, true) => {}
            (Value::Null, false) => self.add(at, items.into()),
            _ => {
                let end = [at, &["-"]].concat();
                items.into_iter().for_each(|item| self.add(&end, item));
            }
        }
    }

    /// A template may have none.
    fn metadata(&mut self, pod: Pod<'_>) {
        if pod.0["metadata"].is_null() {
            self.add(&["metadata"], json!({}));
        }
    }

    /// Set entries of `metadata.labels` or `metadata.annotations`, which may not be there.
    fn add_to_map(&mut self, pod: Pod<'_>, map: &str, entries: Vec<(String, String)>) {
        if pod.0["metadata"][map].is_null() {
            let all: serde_json::Map<_, _> =
                entries.into_iter().map(|(k, v)| (k, Value::from(v))).collect();
            self.add(&["metadata", map], all.into());
            return;
        }
        for (key, value) in entries {
            self.add(&["metadata", map, &key], value.into());
        }
    }
}
