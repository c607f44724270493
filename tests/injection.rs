//! Cases of injection: `injection/<case>/{given,then}.yaml`, and what no file can hold.
//!
//! `given` is a pod, and where they matter its namespace (default: one that is labelled), settings
//! of the injector and of the mesh; `then` what becomes of it. `UPDATE=1` rewrites `then`: read
//! what changed before it is committed.
//!
//! **Invariant:** each patched pod is one of the Kubernetes API, and is not injected again.

#![allow(clippy::expect_used, clippy::panic, reason = "a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use injector::{Namespace, Outcome, ProxyConfig, Refusal, Settings, Skip, inject};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{Value, json};

/// `given.yaml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    #[serde(default = "labelled")]
    namespace: Place,
    #[serde(default)]
    settings: Value,
    #[serde(default)]
    mesh: Value,
    pod: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

fn labelled() -> Place {
    let labels = BTreeMap::from([("istio-injection".to_owned(), "enabled".to_owned())]);
    Place { name: "shop".to_owned(), labels, annotations: BTreeMap::new() }
}

// === impl Given ===

impl Given {
    fn read(folder: &Path) -> Self {
        let text = std::fs::read_to_string(folder.join("given.yaml")).expect("given.yaml");
        serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
    }

    fn inject(&self, pod: &Value) -> Result<Outcome, Refusal> {
        let Place { name, labels, annotations } = &self.namespace;
        let (labels, annotations) = (labels.clone(), annotations.clone());
        let namespace = Namespace { name: name.clone(), labels, annotations };
        let settings = Settings::read(&text_of(&self.settings)).expect("settings");
        let mesh = config::read_default_proxy_config(&text_of(&self.mesh)).expect("mesh settings");
        inject(pod, &namespace, &settings.for_cluster(None), &mesh.config)
    }
}

fn text_of(value: &Value) -> String {
    if value.is_null() { String::new() } else { value.to_string() }
}

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("injection");
    let entries = std::fs::read_dir(root).expect("the cases");
    let mut all: Vec<_> = entries.map(|entry| entry.expect("a case").path()).collect();
    all.sort();
    all
}

#[test]
fn given_each_case_then_the_pod_becomes_what_is_written() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for folder in folders() {
        let given = Given::read(&folder);
        let then = match given.inject(&given.pod) {
            Ok(Outcome::Skipped(why)) => json!({"skipped": why.to_string()}),
            Err(Refusal(faults)) => {
                json!({"refused": faults.iter().map(ToString::to_string).collect::<Vec<_>>()})
            }
            Ok(Outcome::Injected { patch, warnings }) => {
                let mut pod = given.pod.clone();
                json_patch::patch(&mut pod, &patch).expect("a patch that can be applied");
                let again = given.inject(&pod);
                assert_eq!(again, Ok(Outcome::Skipped(Skip::Injected)), "{}", folder.display());
                same_as_the_api(&pod);
                json!({"pod": pod, "warnings": warnings})
            }
        };
        let then = serde_yaml::to_string(&then).expect("YAML");
        let file = folder.join("then.yaml");
        if std::fs::read_to_string(&file).is_ok_and(|written| written == then) {
            continue;
        }
        match update {
            true => std::fs::write(&file, then).expect("then.yaml is writable"),
            false => wrong.push(folder.display().to_string()),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\nUPDATE=1 rewrites then.yaml");
    assert!(folders().len() >= 25, "only {} cases were found", folders().len());
}

/// Every field is one of the API: what its types do not know, they lose.
fn same_as_the_api(pod: &Value) {
    let typed: Pod = serde_json::from_value(pod.clone()).expect("a pod of the API");
    let mut back = serde_json::to_value(typed).expect("JSON");
    for added in ["apiVersion", "kind"] {
        back.as_object_mut().expect("an object").remove(added);
    }
    assert_eq!(&back, pod);
}

fn settled(pod: &Value) -> Result<Outcome, Refusal> {
    let namespace = Namespace {
        name: "shop".to_owned(),
        labels: labelled().labels,
        annotations: BTreeMap::new(),
    };
    let settings = Settings::default().for_cluster(None);
    inject(pod, &namespace, &settings, &ProxyConfig::default())
}

fn pod_of(containers: usize, probe: &Value) -> Value {
    let container =
        |n: usize| json!({"name": format!("c{n}"), "image": "a", "livenessProbe": probe});
    let containers: Vec<Value> = (0..containers).map(container).collect();
    json!({"metadata": {"name": "many"}, "spec": {"containers": containers}})
}

#[test]
fn given_a_hundred_containers_then_each_probe_is_asked_by_the_agent() {
    let pod = pod_of(100, &json!({"httpGet": {"path": "/", "port": 80}}));
    let Ok(Outcome::Injected { patch, .. }) = settled(&pod) else { panic!("not injected") };
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &patch).expect("a patch");
    let containers = patched["spec"]["containers"].as_array().expect("containers");
    assert_eq!(containers.len(), 100);
    for (n, container) in containers.iter().enumerate() {
        let path = format!("/app-health/c{n}/livez");
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], path);
    }
    // One that must be told more than an environment can hold is refused, not broken.
    let long = "x".repeat(2000);
    let refused = settled(&pod_of(100, &json!({"httpGet": {"path": long, "port": 80}})));
    let why = refused.expect_err("too much for an environment").to_string();
    assert!(why.contains("its 100 probes") && why.contains("rewriteAppHTTPProbers"), "{why}");
}

#[test]
fn given_a_pod_of_five_megabytes_then_its_patch_is_as_small_as_that_of_any_other() {
    let mut pod = pod_of(1, &Value::Null);
    pod["spec"]["containers"][0]["env"] = json!([{"name": "BIG", "value": "x".repeat(5 << 20)}]);
    let Ok(Outcome::Injected { patch, .. }) = settled(&pod) else { panic!("not injected") };
    let size = serde_json::to_vec(&patch).expect("JSON").len();
    assert!(size < 8192, "{size} bytes");
}

#[test]
fn given_objects_with_pods_then_each_is_injected_where_its_template_is_and_others_are_left() {
    let template =
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "a"}]}});
    let object = |version: &str, kind: &str, spec: Value| json!({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": spec});
    let spec = json!({"template": template});
    let cases = [
        (object("apps/v1", "Deployment", spec.clone()), "/spec/template"),
        (object("apps/v1", "StatefulSet", spec.clone()), "/spec/template"),
        (object("apps/v1", "DaemonSet", spec.clone()), "/spec/template"),
        (object("apps/v1", "ReplicaSet", spec.clone()), "/spec/template"),
        (object("batch/v1", "Job", spec.clone()), "/spec/template"),
        (
            object("batch/v1", "CronJob", json!({"jobTemplate": {"spec": spec}})),
            "/spec/jobTemplate/spec/template",
        ),
        (object("v1", "Pod", template["spec"].clone()), ""),
    ];
    let settings = Settings::default().for_cluster(None);
    let run = |object: &mut Value| {
        injector::inject_object(object, "default", &settings, &ProxyConfig::default())
    };
    let mut items = Vec::new();
    for (mut object, at) in cases {
        items.push(object.clone());
        assert!(run(&mut object).expect("injected").changed, "{object}");
        let names = object.pointer(at).expect("a template")["spec"]["initContainers"].to_string();
        assert!(names.contains("heddle-init") && names.contains("heddle-proxy"), "{object}");
        assert!(!run(&mut object).expect("no mistake").changed, "injected twice");
    }
    let service = object("v1", "Service", json!({"template": template}));
    let others = object("example.com/v1", "Deployment", json!({"template": template}));
    for untouched in [service, others] {
        let mut object = untouched.clone();
        assert!(!run(&mut object).expect("no mistake").changed);
        assert_eq!(object, untouched);
    }
    let mut list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    assert!(run(&mut list).expect("injected").changed);
    assert_eq!(list.to_string().matches("\"name\":\"heddle-proxy\"").count(), 7);
    let mut bad =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad"}, "spec": 1});
    let refused = run(&mut bad).expect_err("no pod").to_string();
    assert_eq!(refused, "Pod bad: spec: must be the specification of a pod");
}
