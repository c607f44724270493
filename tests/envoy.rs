//! A real Envoy judges every golden case.
//!
//! In: the binary that `ENVOY_BIN` names; skipped aloud without. Out: what it refuses.
//!
//! **Invariant:** Envoy gets the very messages of the case; only how it comes by them differs: what
//! is discovered in a mesh stands in one file here.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use envoy_api::ResourceType;
use envoy_api::bootstrap::Bootstrap;
use house::golden::{Case, Outcome};
use house::mesh::Envoy;
use serde_json::{Map, Value, json};

#[test]
fn given_each_golden_case_then_envoy_accepts_it() {
    let Some(envoy) = Envoy::binary() else {
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary");
        return;
    };
    let cases = Mutex::new(Case::all().expect("the cases are readable").into_iter());
    let refused = Mutex::new(Vec::new());
    let work = tempfile::tempdir().expect("a folder");
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (cases, refused, envoy, work) = (&cases, &refused, &envoy, &work);
            scope.spawn(move || {
                loop {
                    // Not in the head of the loop: the lock would be held all along.
                    let Some(case) = cases.lock().expect("no panic").next() else { return };
                    let outcome = case.run().expect("the case can be worked through");
                    let file = work.path().join(format!("{worker}.json"));
                    std::fs::write(&file, file_for(&outcome).to_string()).expect("writable");
                    let (accepted, log) = verdict(envoy, &file);
                    if !accepted || log.contains("deprecated") {
                        refused.lock().expect("no panic").push(format!("{}: {log}", case.name));
                    }
                }
            });
        }
    });
    let refused = refused.into_inner().expect("no panic");
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

fn verdict(envoy: &Path, file: &Path) -> (bool, String) {
    let output = Command::new(envoy)
        .args(["--mode", "validate", "--use-dynamic-base-id", "--log-level", "warning", "-c"])
        .arg(file)
        .output()
        .expect("Envoy starts");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A file with everything that the proxy would discover.
fn file_for(outcome: &Outcome) -> Value {
    let of = |wanted: ResourceType| {
        let all = outcome.resources.iter();
        all.filter(move |r| r.encoded.resource_type() == wanted)
            .map(|r| (r.encoded.name().to_string(), r.body()))
    };
    let endpoints: BTreeMap<String, Value> = of(ResourceType::Endpoints).collect();
    let clusters = of(ResourceType::Cluster).map(|(name, mut cluster)| {
        if let Some(set) = endpoints.get(&name) {
            cluster["type"] = "STATIC".into();
            cluster["load_assignment"] = set.clone();
            cluster.as_object_mut().expect("a message").remove("eds_cluster_config");
        }
        cluster
    });
    let mut routes: BTreeMap<String, Value> = of(ResourceType::RouteConfiguration).collect();
    for (name, host) in of(ResourceType::VirtualHost) {
        // `<route configuration>/<domain>`
        let parent = name.split('/').next().unwrap_or_default();
        let config = routes.get_mut(parent).expect("a host has a RouteConfiguration");
        config.as_object_mut().expect("a message").remove("vhds");
        match &mut config["virtual_hosts"] {
            Value::Array(hosts) => hosts.push(host),
            none => *none = json!([host]),
        }
    }
    let listeners: Vec<Value> = of(ResourceType::Listener)
        .map(|(_, mut listener)| {
            inline_routes(&mut listener, &routes);
            listener
        })
        .collect();
    // Names all routes even where no listener does, so that none goes unjudged.
    let routed =
        of(ResourceType::Listener).filter(|(_, l)| l.to_string().contains("\"rds\"")).count();
    assert_eq!(routed, routes.len(), "a listener per RouteConfiguration");
    let bootstrap = Bootstrap {
        node_id: "node".to_owned(),
        cluster: "cluster".to_owned(),
        xds_host: "127.0.0.1".to_owned(),
        xds_port: 1,
        metadata: Map::new(),
        ..Default::default()
    };
    let mut file = bootstrap.to_json();
    let known = file["static_resources"]["clusters"].as_array_mut().expect("the xDS cluster");
    known.extend(clusters);
    file["static_resources"]["listeners"] = listeners.into();
    file.as_object_mut().expect("a message").remove("dynamic_resources");
    file
}

/// Put the RouteConfiguration where the listener says that it is to be fetched.
fn inline_routes(value: &mut Value, routes: &BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            if let Some(rds) = fields.remove("rds") {
                let name = rds["route_config_name"].as_str().unwrap_or_default();
                let config = routes.get(name).expect("the routes of a listener exist");
                fields.insert("route_config".to_owned(), config.clone());
            }
            fields.values_mut().for_each(|v| inline_routes(v, routes));
        }
        Value::Array(items) => items.iter_mut().for_each(|v| inline_routes(v, routes)),
        _ => {}
    }
}
